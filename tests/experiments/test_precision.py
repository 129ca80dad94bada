"""Precision on the command line: recorded, in a folder of its own, and the second look."""

import dataclasses

import pytest

from experiments import checks, records, runner


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run a claim with flags, from an empty folder; returns status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(claim, *flags):
        status = runner.call(claim, ["fair_coin", *flags])
        return status, *capsys.readouterr()

    return run


def record(folder):
    return records.load_record(records.Paths(folder, "experiments", "toys", "fair_coin").record)


def narrow(toy):
    """A claim that holds only because single precision is coarse: 1 + 1e-9 is 1 there."""

    def check(config, result):
        lost = (result.mean.dtype.type(1) + 1e-9) - 1
        return [*toy.check(config, result), checks.below("1e-9 beside 1", float(lost), 0, why="-")]

    return dataclasses.replace(toy, check=check)


def test_the_precision_asked_for_is_computed_and_recorded_apart(toy, call, tmp_path):
    assert call(toy, "--precision=float64")[0] == 0
    assert not (tmp_path / "figures").exists()
    found = record(tmp_path / "results/float64")
    assert (found["precision"], found["matmul_precision"]) == ("float64", "highest")
    assert call(toy)[0] == 0
    assert record(tmp_path / "figures")["precision"] == "float32"
    assert call(toy, "--precision=float32", "--smoke")[0] == 0
    assert record(tmp_path / "results/smoke-float32")["precision"] == "float32"


def test_a_second_look_in_double_precision(toy, call, tmp_path):
    status, out, _ = call(toy, "--recheck")
    assert status == 0
    assert out.count("holds") == 2
    assert record(tmp_path / "figures")["precision"] == "float32"
    assert record(tmp_path / "results/float64")["precision"] == "float64"


def test_what_holds_by_rounding_alone_is_found_out(toy, call, tmp_path):
    claim = narrow(toy)
    assert call(claim)[0] == 0
    status, out, _ = call(claim, "--recheck")
    assert status == 1
    assert "fails" in out
    assert record(tmp_path / "figures")["verdict"] == "holds"
    assert record(tmp_path / "results/float64")["verdict"] == "fails"


def test_there_is_no_second_look_at_what_is_double_already(toy, call, tmp_path):
    assert call(dataclasses.replace(toy, precision="float64"), "--recheck")[0] == 0
    assert not (tmp_path / "results").exists()


def test_saved_arrays_keep_their_precision(toy, call):
    assert call(toy, "--out=here")[0] == 0
    status, _, err = call(toy, "--out=here", "--precision=float64", "--stage=check")
    assert status == 2
    assert "--precision=float64: the saved arrays were computed in float32" in err
    assert call(toy, "--out=here", "--precision=float32", "--stage=check")[0] == 0


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--precision=bfloat16"], "--precision=bfloat16"),
        (["--recheck", "--stage=check"], "--recheck with --stage=check"),
    ],
)
def test_wrong_flags_are_one_line(toy, call, flags, named):
    status, _, err = call(toy, *flags)
    assert status == 2
    assert named in err
    assert err.count("\n") == 1
