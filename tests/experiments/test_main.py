"""The catalogue's command line."""

import json

import pytest

from experiments import __main__ as command_line
from experiments import catalogue, console, engines, records


@pytest.fixture
def call(toy, toy_path, tmp_path, monkeypatch, capsys):
    """Run `python -m experiments ...` over a tree that holds the small claim alone."""
    entry = catalogue.read(toy_path)
    root = toy_path.parents[2]
    walk, find = catalogue.walk, catalogue.find
    monkeypatch.setattr(catalogue, "walk", lambda: walk(root))
    monkeypatch.setattr(catalogue, "find", lambda patterns: find(patterns, root))
    monkeypatch.setattr(catalogue, "load", lambda entry: toy)
    monkeypatch.chdir(tmp_path)

    def run(*words):
        status = command_line.main(words)
        return status, *capsys.readouterr()

    run.entry = entry
    return run


def test_run_list_and_report(call, tmp_path):
    assert "not run" in call("list")[1]
    status, out, _ = call("run", "*", "--seed=2")
    assert status == 0
    assert "experiments/toys/fair_coin" in out.replace("\n", "")
    record = records.load_record(tmp_path / "figures/experiments/toys/fair_coin.json")
    assert record["seed"] == 2
    assert (tmp_path / "figures/index.html").exists()
    assert "holds" in call("list", "*/toys/*")[1]
    (tmp_path / "figures/index.html").unlink()
    assert call("report")[0] == 0
    assert (tmp_path / "figures/index.html").exists()


def test_presets_do_not_replace_the_full_record(call, tmp_path):
    assert call("run", "*", "--smoke")[0] == 0
    assert not (tmp_path / "figures").exists()
    record = tmp_path / "results/smoke/experiments/toys/fair_coin.json"
    assert records.load_record(record)["preset"] == "smoke"


def test_a_corrupt_record_is_shown_not_fatal(call, tmp_path):
    call("run", "*")
    record = tmp_path / "figures/experiments/toys/fair_coin.json"
    whole = json.loads(record.read_text())
    for damaged in ("{", "[]", json.dumps({**whole, "schema": 2}), json.dumps({"schema": 1})):
        record.write_text(damaged)
        assert "unreadable" in call("list")[1]
    assert call("report")[0] == 0
    assert call("run", "*", "--resume")[0] == 0
    assert records.load_record(record)["arrays_sha256"] == whole["arrays_sha256"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["run", "nothing*"], "nothing*"),
        (["list", "nothing"], "nothing"),
        (["run"], "PATTERN"),
        (["run", "*", "--seed=x"], "--seed=x"),
        (["run", "*", "--preset=big"], "--preset=big"),
        (["run", "*", "--smoke", "--preset=paper"], "--preset=paper"),
        (["run", "*", "--jobs=0"], "--jobs=0"),
        (["run", "*", "--jobs=many"], "--jobs"),
        (["run", "*", "--engine=ray", "--jobs=0"], "--jobs=0"),
        (["run", "*", "--gpus_per_claim=1"], "--engine=ray"),
        (["run", "*", "--gpus_per_claim=many"], "--gpus_per_claim"),
        (["run", "*", "--retries=-1"], "--retries=-1"),
        (["run", "*", "--engine=warp"], "--engine=warp"),
        (["run", "*", "--see=2"], "--see=2"),
        (["run", "*", "--out="], "--out: give a folder"),
        (["fly"], "fly"),
        ([], "list|run|report|doctor"),
    ],
)
def test_a_wrong_call_is_one_line_and_status_two(call, words, named):
    status, _, err = call(*words)
    last = err.splitlines()[-1]
    assert status == 2
    assert last.startswith("error: ")
    assert named in last


def test_exit_status_is_one_where_a_claim_fails(call, toy, monkeypatch):
    monkeypatch.setattr(catalogue, "load", lambda entry: type(toy)(
        toy.config, toy.run, toy.check, toy.plot, smoke=dict(probability=0.9)
    ))  # fmt: skip
    assert call("run", "*", "--smoke")[0] == 1


def test_a_crash_is_told_and_does_not_end_the_others(call, monkeypatch):
    def crash(entry):
        message = "boom"
        raise RuntimeError(message)

    monkeypatch.setattr(catalogue, "load", crash)
    status, out, _ = call("run", "*")
    assert status == 1
    assert "crashed" in out


def test_the_slowest_ten_of_many_are_named(capsys):
    outcomes = [engines.Outcome(f"claim_{i}", "holds", float(i)) for i in range(13)]
    console.print_outcomes(outcomes[:10])
    assert "slowest" not in capsys.readouterr().out
    console.print_outcomes(outcomes)
    told = capsys.readouterr().out.partition("the slowest 10 took 75 of 78 s:\n")[2].split()
    assert told[2::3] == [f"claim_{i}" for i in range(12, 2, -1)]
