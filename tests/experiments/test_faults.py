"""Faults of the machine and of the run: each ends in one line or in a verdict that names it."""

import contextlib
import dataclasses
import os
import resource
import signal
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import long_runs
from dynamics.training import checkpoint
from experiments import (
    catalogue,
    checks,
    console,
    contract,
    execution,
    judgement,
    memory,
    preemption,
    records,
    runner,
)


@pytest.fixture
def call(toy, tmp_path, monkeypatch, capsys):
    """Run the small claim with flags into a folder; returns status and the lines on stderr."""
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))

    def run(out, *flags):
        status = runner.call(toy, ["fair_coin", f"--out={out}", *flags])
        return status, capsys.readouterr().err

    return run


def paths(out):
    return records.Paths(out, "experiments", "toys", "fair_coin")


def contents(out):
    """Return the bytes of what a reader sees: not the arrays, from which the rest is made."""
    return {path.name: path.read_bytes() for path in (paths(out).record, paths(out).figure)}


@pytest.fixture
def disk(tmp_path):
    """A file system of a megabyte; `disk.remount(options)` changes it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True)
    except OSError:
        pytest.skip("there is no mount here")
    if made.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_in_the_middle_loses_nothing(call, disk, tmp_path):
    """The arrays land, the figure does not: the old record stays, and --resume goes on."""
    assert call(disk)[0] == 0
    old = contents(disk)
    filler = disk / "filler"
    room = os.statvfs(disk)
    filler.write_bytes(bytes(room.f_bavail * room.f_frsize - 20_000))
    status, err = call(disk, "--seed=2")
    assert (status, err.count("\n")) == (2, 1)
    assert "disk is full" in err
    assert "fair_coin.png" in err
    assert contents(disk) == old
    assert not list(disk.rglob("*.partial"))
    filler.unlink()
    (tmp_path / "log").unlink()
    assert call(disk, "--seed=2", "--resume")[0] == 0
    assert not (tmp_path / "log").exists(), "what was computed is not computed again"
    assert records.load_record(paths(disk).record)["seed"] == 2


def test_a_read_only_disk_is_one_line(call, disk):
    assert call(disk)[0] == 0
    old = contents(disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for flags in (["--seed=2"], ["--stage=check"], ["--stage=plot"]):
        status, err = call(disk, *flags)
        assert (status, err.count("\n")) == (2, 1)
        assert "read-only" in err
        assert contents(disk) == old


@pytest.fixture
def keeping(toy):
    """The small claim, after a run in chunks of a state of two megabytes."""

    def run(config, checkpoints=None):
        state = jax.random.normal(jax.random.key(0), (500_000,))
        checkpoint.record_in_chunks(
            lambda state: state, state, jnp.mean, times=[0, 1],
            directory=checkpoints.directory, chunk_size=1,
        )  # fmt: skip
        return toy.run(config)

    run.__annotations__ = toy.run.__annotations__
    return dataclasses.replace(toy, run=run)


def test_a_disk_that_a_checkpoint_fills_is_one_line(keeping, toy_path, disk):
    entry = catalogue.read(toy_path)
    with pytest.raises(contract.CallError, match="disk is full"):
        runner.perform(keeping, entry, runner.Settings(out=disk))
    with records.exclusive(paths(disk)):
        assert not paths(disk).record.exists()


def test_checkpoints_that_cannot_be_read_are_one_line(keeping, tmp_path):
    (tmp_path / "run.json").write_text("{")
    kept = long_runs.Checkpoints(tmp_path)
    with pytest.raises(contract.CallError, match=r"run\.json cannot be read.*without --resume"):
        execution.compute_part(keeping, keeping.configure(), kept)


def test_a_second_run_into_the_folder_changes_nothing(call, tmp_path):
    assert call(tmp_path)[0] == 0
    old = contents(tmp_path)
    with records.exclusive(paths(tmp_path)):
        for flags in (["--seed=2"], ["--stage=plot"], ["--stage=check"]):
            status, err = call(tmp_path, *flags)
            assert (status, err.count("\n")) == (2, 1)
            assert "another run" in err
    assert contents(tmp_path) == old
    assert call(tmp_path, "--seed=2")[0] == 0


def test_torn_arrays_are_refused_and_then_made_again(call, tmp_path):
    assert call(tmp_path)[0] == 0
    old = contents(tmp_path)
    arrays = paths(tmp_path).arrays
    arrays.write_bytes(arrays.read_bytes()[:-100])
    for stage in ("check", "plot"):
        status, err = call(tmp_path, f"--stage={stage}")
        assert (status, err.count("\n")) == (2, 1)
        assert "fair_coin.npz" in err
    assert contents(tmp_path) == old
    assert call(tmp_path, "--resume")[0] == 0
    records.load_arrays(arrays)


def test_a_run_is_preempted_though_nobody_listens(monkeypatch):
    """SIGTERM to all of a job ends `2>&1 | tee log` first; the checkpoint comes all the same."""
    reading, writing = os.pipe()
    os.close(reading)
    nobody = open(writing, "w")
    monkeypatch.setattr(sys, "stderr", nobody)
    with console.errors_in_one_line() as status, preemption.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.asked()
        message = "all of it is kept"
        raise preemption.Preempted(message)
    assert status.code == preemption.STATUS
    with contextlib.suppress(BrokenPipeError):
        nobody.close()


def test_a_request_beyond_the_memory_is_one_line(call, tmp_path, monkeypatch):
    """Not a machine that swaps: 500 million keys are 4 GB, where one GB is left."""
    monkeypatch.setattr(memory, "available", lambda: 2**30)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    status, err = call(tmp_path, "--num_seeds=500000000")
    assert (status, err.count("\n")) == (2, 1)
    assert "--num_seeds=500000000" in err
    assert "memory" in err
    assert not paths(tmp_path).record.exists()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert call(tmp_path)[0] == 0


def test_the_memory_available_is_part_of_the_machines():
    assert 0 < memory.available() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_container_gives_back_the_files_in_its_cache(tmp_path, monkeypatch):
    """After a gigabyte of data was read, a container of two has not one left, but nearly two."""
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{2**31}\n")
    (tmp_path / "memory.current").write_text(f"{2**30 + 2**20}\n")
    (tmp_path / "memory.stat").write_text(f"anon {2**20}\nfile {2**30}\ninactive_file {2**30}\n")
    machine = tmp_path / "meminfo"
    machine.write_text(f"MemAvailable: {2**24} kB\n")
    monkeypatch.setattr(memory, "_MACHINE", machine)
    assert memory.available() == 2**31 - 2**20
    (tmp_path / "memory.stat").unlink()  # another layout: the machine's word alone
    assert memory.available() == 2**34


class Descent(NamedTuple):
    loss: jax.Array  # (S, T)


NUM_STEPS = 12


def diverge(config):
    """Descend w^4 / 4 from 10 with steps of one half: it overflows after five."""

    def step(weight, _):
        return weight - 0.5 * weight**3, weight**4 / 4

    starts = jnp.array([0.5, 10.0])  # the first seed stays finite
    return Descent(jax.vmap(lambda w: jax.lax.scan(step, w, None, NUM_STEPS)[1])(starts))


def ends_below(config, result):
    return checks.every_seed("last loss", result.loss[:, -1], upper=1, why="it falls")


def with_precondition(config, result):
    finite = checks.stays_finite("finite", np.arange(NUM_STEPS), result.loss, mend="lower it")
    return [finite, ends_below(config, result)]


def without(config, result):
    return [ends_below(config, result)]


def stops(config, result):
    int(result.loss[1, -1])  # ValueError: not a number
    return [ends_below(config, result)]


def draws(config, result, figure):
    figure.subplots().plot(result.loss.T)


def limits(config, result, figure):
    figure.subplots().set_ylim(0, result.loss[:, -1].max())  # ValueError: NaN


def late(config, result, figure):
    def formatter(value, place):
        message = "no label"
        raise ValueError(message)

    figure.subplots().xaxis.set_major_formatter(formatter)  # raises when the figure is saved


@pytest.mark.parametrize(
    ("check", "plot", "verdict", "names"),
    [
        (with_precondition, draws, "void", "lower it"),
        (with_precondition, limits, "void", "lower it"),
        (stops, late, "void", "loss[1, "),
        (without, limits, "void", "loss[1, "),
    ],
)
def test_a_divergence_is_a_verdict_with_a_figure(
    toy, toy_path, tmp_path, check, plot, verdict, names
):
    experiment = dataclasses.replace(toy, run=diverge, check=check, plot=plot, controls={})
    out = tmp_path / "out"
    record = runner.perform(experiment, catalogue.read(toy_path), runner.Settings(out=out))
    assert record["verdict"] == verdict
    red = [made for made in record["checks"] if not made["passed"]]
    assert any(names in made["why"] for made in red)
    assert paths(out).figure.read_bytes().startswith(b"\x89PNG")
    if check is with_precondition:  # the step is named
        loss = np.asarray(diverge(None).loss)
        (named,) = [made["measured"] for made in red if made["name"] == "finite"]
        assert np.isfinite(loss[:, : int(named) + 1]).all()
        assert not np.isfinite(loss[1, int(named) + 1])


def test_a_time_that_never_came_is_no_divergence(toy):
    """Infinity may be meant, the claim then fails; NaN beside sound checks is padding."""
    experiment = dataclasses.replace(toy, check=without, controls={})
    origin = {"doctor": {"failed": [], "mend": None}}

    def verdict(loss):
        part = judgement.execution.Part(toy.configure(), Descent(np.array(loss)), None)
        run = judgement.execution.Run({"main": part}, origin)
        return checks.verdict(judgement.judge(experiment, run))

    assert verdict([[3.0, np.inf]]) == "fails"
    assert verdict([[np.nan, 0.5]]) == "holds"
    assert verdict([[np.nan, 2.0]]) == "fails"
    assert verdict([[0.5, np.nan]]) == "void"


def test_a_defect_of_a_finite_run_is_no_divergence(toy, toy_path, tmp_path):
    """An error in check or plot is told as one where the run is finite or the claim holds."""

    def hold(config, result):
        return [checks.above("one", 1, 0, why="always")]

    entry, settings = catalogue.read(toy_path), runner.Settings(out=tmp_path / "out")
    for changes in (dict(plot=late), dict(run=diverge, check=hold, plot=late)):
        experiment = dataclasses.replace(toy, controls={}, **changes)
        with pytest.raises(ValueError, match="no label"):
            runner.perform(experiment, entry, settings)
    broken = dataclasses.replace(toy, check=lambda config, result: 1 / 0, controls={})
    with pytest.raises(ZeroDivisionError):
        runner.perform(broken, entry, settings)


def test_a_control_that_is_not_finite_voids(toy):
    """Where check stops at a control's numbers, that is the reason given."""
    part = judgement.execution.Part(toy.configure(), Descent(np.full((2, 3), np.nan)), None)
    with pytest.raises(judgement._NotFiniteError) as raised:
        judgement._checks_of(dataclasses.replace(toy, check=stops), part)
    assert raised.value.check.role == "precondition"
    assert not raised.value.check.passed
