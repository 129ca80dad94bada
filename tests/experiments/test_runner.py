"""One claim on the command line: stages, flags, faults, kill and resume."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from experiments import catalogue, execution, provenance, records, runner


@pytest.fixture
def call(toy, tmp_path, capsys):
    """Run the small claim with flags; returns status, stdout, stderr."""

    def run(*flags):
        status = runner.call(toy, ["fair_coin", f"--out={tmp_path / 'out'}", *flags])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def paths(tmp_path):
    return records.Paths(tmp_path / "out", "experiments", "toys", "fair_coin")


def test_a_claim_lands_figure_arrays_and_record(call, paths):
    status, out, err = call()
    assert (status, err) == (0, "")
    assert "holds" in out
    record = records.load_record(paths.record)
    assert list(record) == records.KEYS
    assert record["verdict"] == "holds"
    assert [check["role"] for check in record["checks"]].count("control") == 1
    assert record["config"]["factors"] == [1.0, 2.0]
    arrays, origin = records.load_arrays(paths.arrays)
    assert sorted(arrays) == ["loaded/result/mean", "main/result/mean"]
    assert origin["arrays_sha256"] == record["arrays_sha256"]
    assert paths.figure.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in paths.folder.iterdir()) == [
        ".fair_coin.lock", "fair_coin.json", "fair_coin.npz", "fair_coin.png"
    ]  # fmt: skip
    text = paths.record.read_text()
    assert str(paths.out) not in text
    assert os.path.expanduser("~") not in text


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(call, paths):
    digests = []
    for seed in (1, 1, 2):
        call(f"--seed={seed}")
        digests.append(records.load_record(paths.record)["arrays_sha256"])
    assert digests[0] == digests[1] != digests[2]


def test_stages_do_in_three_calls_what_all_does_in_one(call, paths):
    call("--seed=3")
    whole = records.load_record(paths.record)
    image = paths.figure.read_bytes()
    for path in (paths.record, paths.figure, paths.arrays):
        path.unlink()
    assert call("--seed=3", "--stage=run")[0] == 0
    assert paths.arrays.exists()
    assert not paths.record.exists()
    assert call("--stage=check")[0] == 0
    assert call("--stage=plot")[0] == 0
    again = records.load_record(paths.record)
    for key in ("checks", "verdict", "arrays_sha256", "config"):
        assert again[key] == whole[key]
    assert list(again["config"]) == list(whole["config"]), "no noise in a diff"
    assert paths.figure.read_bytes() == image, "drawn twice from the same arrays: the same bytes"


def test_exit_status_tells_the_verdict(call):
    assert call("--num_tosses=4", "--num_seeds=2", "--seed=1")[0] == 1
    status, out, _ = call("--needs_luck=true")
    assert status == 1
    assert "void" in out
    assert "unmet precondition: luck" in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--probability=often"], ["--probability=often", "finite number"]),
        (["--num_tosses=0"], ["--num_tosses=0", "at least 1"]),
        (["--num_seeds=0"], ["--num_seeds=0"]),
        (["--seed=x"], ["--seed=x", "integer"]),
        (["--colour=red"], ["colour", "--help"]),
        (["--preset=huge"], ["--preset=huge", "default, smoke, paper"]),
        (["--smoke", "--preset=paper"], ["--smoke", "--preset=paper"]),
        (["--stage=later"], ["--stage=later", "check"]),
        (["--stage=check"], ["--stage", "no saved arrays"]),
        (["fast"], ["fast", "--help"]),
        (["--out="], ["--out=", "folder"]),
    ],
)
def test_a_wrong_call_is_one_line_and_status_two(call, paths, flags, words):
    status, out, err = call(*flags)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert all(word in err for word in words), err
    assert not paths.record.exists()


def test_an_unwritable_folder_is_one_line(toy, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert runner.call(toy, ["fair_coin", f"--out={tmp_path / 'file'}"]) == 2
    assert "--out" in capsys.readouterr().err


def test_flags_that_contradict_the_saved_arrays_are_refused(call):
    call("--stage=run", "--seed=2")
    assert call("--stage=check", "--seed=2")[0] == 0
    for flag, named in (("--seed=3", "--seed=3"), ("--smoke", "--preset=smoke")):
        status, _, err = call("--stage=check", flag)
        assert status == 2
        assert named in err


def test_saved_arrays_of_another_version_are_refused(call, paths):
    call()
    arrays, origin = records.load_arrays(paths.arrays)
    origin["config"]["temperature"] = 1.0
    records.save_arrays(paths.arrays, arrays, origin)
    status, _, err = call("--stage=check")
    assert status == 2
    assert "temperature" in err
    assert "--stage=all" in err


def test_a_failed_landing_leaves_the_old_record(call, paths, monkeypatch):
    call()
    old = paths.record.read_bytes()
    replace = os.replace

    def refuse(source, target):
        if str(target).endswith(".json"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    status, _, err = call("--seed=2")
    assert status == 2
    assert "disk is full" in err
    assert paths.record.read_bytes() == old


def test_memory_that_does_not_suffice_is_one_line(call, toy, monkeypatch):
    def exhausted(experiment, config):
        raise MemoryError

    monkeypatch.setattr(type(toy), "run", None, raising=False)
    monkeypatch.setattr(execution, "_to_host", lambda value: exhausted(None, None))
    status, _, err = call()
    assert status == 2
    assert "memory" in err


def command(toy_path, out):
    return [sys.executable, str(toy_path), f"--out={out}"]


def test_a_run_outlives_an_error_in_check_or_plot(toy, tmp_path, monkeypatch):
    """What was computed is there for --resume, and the error says so."""
    log = tmp_path / "log"
    monkeypatch.setenv("TOY_LOG", str(log))
    flags = ["fair_coin", f"--out={tmp_path / 'out'}"]

    def broken(config, result, figure=None):
        return 1 / 0

    for stage in ("check", "plot"):
        with pytest.raises(ZeroDivisionError) as raised:
            runner.call(dataclasses.replace(toy, **{stage: broken}), [*flags, "--resume"])
        assert "--resume" in "".join(raised.value.__notes__)
    assert runner.call(toy, [*flags, "--resume"]) == 0
    assert log.read_text().split() == ["0.5", "0.7"]  # the claim and its control, once each


def test_a_killed_run_resumes_to_the_same_bits(toy_path, tmp_path):
    log = tmp_path / "log"
    environment = {**os.environ, "TOY_LOG": str(log)}

    def start(out, *flags, **variables):
        return subprocess.run(
            [*command(toy_path, out), *flags],
            env={**environment, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    killed = start(tmp_path / "killed", TOY_KILL="0.7")  # in the middle: in the control's run
    assert killed.returncode == -signal.SIGKILL
    landed = records.Paths(tmp_path / "killed", "experiments", "toys", "fair_coin")
    assert not landed.record.exists()
    assert not landed.arrays.exists()

    log.unlink()
    assert start(tmp_path / "killed", "--resume").returncode == 0
    assert log.read_text().split() == ["0.7"], "the finished part is not run again"
    assert start(tmp_path / "whole").returncode == 0
    whole = records.Paths(tmp_path / "whole", "experiments", "toys", "fair_coin")
    digests = [json.loads(p.record.read_text())["arrays_sha256"] for p in (landed, whole)]
    assert digests[0] == digests[1]

    log.unlink()
    assert start(tmp_path / "killed", "--resume").returncode == 0
    assert not log.exists(), "what is finished is not run again"
    assert start(tmp_path / "killed", "--resume", "--seed=2").returncode == 0
    assert log.read_text().split() == ["0.5", "0.7"], "another configuration is"


def test_a_run_that_ends_before_its_record_does_not_pass_for_an_older_one(call, toy, tmp_path):
    """The checks have changed, the arrays have not: the record beside them is of other bounds."""
    assert call()[0] == 0

    def strict(config, result):
        bounds = {"lower": -2.0, "upper": -1.0}
        return [dataclasses.replace(made, **bounds) for made in toy.check(config, result)]

    flags = ["fair_coin", f"--out={tmp_path / 'out'}", "--resume"]
    assert runner.call(dataclasses.replace(toy, check=strict), flags) == 1


def test_saved_arrays_of_an_older_version_are_made_again(call, paths):
    call()
    arrays, origin = records.load_arrays(paths.arrays)
    records.save_arrays(paths.arrays, arrays, {"config": origin["config"]})
    assert call("--resume")[0] == 0
    assert "versions" in records.load_arrays(paths.arrays)[1]


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A file of code that is all that counts as such."""
    path = tmp_path / "code" / "dynamics" / "flow.py"
    path.parent.mkdir(parents=True)
    path.write_text("RATE = 1\n")
    monkeypatch.setattr(catalogue, "ROOT", path.parents[1])
    return path


def test_code_that_changes_during_a_run_has_not_made_it(paths, toy, toy_path, code):
    """The run began with the old code: neither with it nor with the new is it taken as finished."""
    log = []

    def edit(config):
        log.append(code.read_text())
        code.write_text("RATE = 2\n")
        return toy.run(config)

    edit.__annotations__ = toy.run.__annotations__

    def perform(**how):
        edited = dataclasses.replace(toy, run=edit)
        return runner.perform(
            edited, catalogue.read(toy_path), runner.Settings(out=paths.out, **how)
        )

    perform()
    digest = records.load_arrays(paths.arrays)[1]["source_sha256"]
    for text in ("RATE = 1\n", "RATE = 2\n"):
        code.write_text(text)
        assert digest != provenance._digest_of_files(catalogue.ROOT)
    log.clear()
    provenance._AT_FIRST.clear()  # as in a new process
    perform(resume=True)
    assert len(log) == 2, "the claim and its control"


def test_a_defect_of_check_costs_no_run_and_the_record_says_who_judged(
    toy, tmp_path, monkeypatch, code
):
    """The mend changes the code, so --resume would compute it all again; --stage=check does not."""
    log = tmp_path / "log"
    monkeypatch.setenv("TOY_LOG", str(log))
    monkeypatch.setattr(provenance, "commit", lambda root: code.read_text().strip())
    flags = ["fair_coin", f"--out={tmp_path / 'out'}"]
    with pytest.raises(ZeroDivisionError) as raised:
        runner.call(dataclasses.replace(toy, check=lambda config, result: 1 / 0), flags)
    assert "--stage=check" in "".join(raised.value.__notes__)
    code.write_text("RATE = 2\n")
    assert runner.call(toy, [*flags, "--stage=check"]) == 0
    assert log.read_text().split() == ["0.5", "0.7"], "nothing was computed again"
    record = records.load_record(
        records.Paths(tmp_path / "out", "experiments", "toys", "fair_coin").record
    )
    assert record["commit"] == "RATE = 1, judged by RATE = 2"


def test_a_torn_part_is_computed_again(call, paths, toy, monkeypatch):
    call()
    kept = records.load_record(paths.record)["arrays_sha256"]
    config = toy.configure()
    part = execution.compute_part(toy, config)
    monkeypatch.setattr(records, "load_arrays", lambda path: ({}, {"fingerprint": "other"}))
    assert execution.saved_part(toy, config, paths.arrays, "mine") is None
    monkeypatch.undo()
    np.testing.assert_array_equal(part.result.mean, execution.compute_part(toy, config).result.mean)
    assert call("--resume")[0] == 0
    assert records.load_record(paths.record)["arrays_sha256"] == kept


def test_help_lists_every_setting_with_its_default(call):
    status, out, _ = call("--help")
    assert status == 0
    for word in ("--probability", "1.0,2.0", "--stage", "python -m experiments.toys.fair_coin"):
        assert word in out
