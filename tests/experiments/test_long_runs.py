"""A claim that keeps checkpoints: killed, preempted, resumed, and its bits compared."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from experiments import records

ROOT = Path(__file__).resolve().parents[2]
WALK = '''
"""A random walk of unit steps has variance t.

Claim      The variance of a random walk after t steps is t.
Control    With steps of half the size it is a quarter of that.
Reference  Pearson 1905.
"""

import dataclasses
import os
import signal
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynamics import long_runs
from experiments import checks, contract, runner

PAPER_IDS = ("P0",)
PILOT_SEEDS = (101,)


@dataclasses.dataclass(frozen=True)
class Config:
    size: float = 1.0
    num_walkers: int = 2000
    chunk_size: int = 3
    num_seeds: int = 5
    seed: int = 1


class Result(NamedTuple):
    step: jax.Array  # (T,)
    variance: jax.Array  # (S, T)


def reached(step):
    with open(os.environ["WALK_LOG"], "a") as file:
        file.write(f"{step}\\n")
    number, _, at = os.environ.get("WALK_SIGNAL", "").partition("@")
    if number and int(step) == int(at):
        del os.environ["WALK_SIGNAL"]  # once, not once a seed
        os.kill(os.getpid(), int(number))


def run(config: Config, checkpoints=None) -> Result:
    def training(key):
        def step(state):
            where, count = state
            steps = jax.random.normal(jax.random.fold_in(key, count), where.shape)
            return where + config.size * steps, count + 1

        def measure(state):
            jax.debug.callback(reached, state[1])
            return jnp.var(state[0])

        return long_runs.Training(step, (jnp.zeros(config.num_walkers), 0), measure)

    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    times = jnp.arange(0, 16, 2)
    variance, _ = long_runs.record_ensemble(
        training, keys, times=times, checkpoints=checkpoints, chunk_size=config.chunk_size
    )
    return Result(times, variance)


def check(config, result):
    ratio = result.variance[:, -1] / result.step[-1]
    return [checks.every_seed("variance / t", ratio, lower=0.7, upper=1.3, why="9 std. errors")]


def plot(config, result, figure):
    figure.subplots().plot(result.step, result.variance.T)


EXPERIMENT = contract.Experiment(
    Config, run, check, plot, smoke=dict(num_walkers=1000),
    controls={"half": contract.Control(dict(size=0.5), {"variance / t": "below"}, "half")},
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
'''


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Run the claim as a command; returns its status, what it printed, and the steps it saw."""
    folder = tmp_path_factory.mktemp("walks")
    path = folder / "tree" / "experiments" / "toys" / "random_walk.py"
    path.parent.mkdir(parents=True)
    path.write_text(textwrap.dedent(WALK).lstrip())
    log = folder / "log"

    def run(out, *flags, send=""):
        log.write_text("")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "WALK_LOG": str(log)}
        done = subprocess.run(
            [sys.executable, str(path), f"--out={folder / out}", *flags],
            env={**environment, "WALK_SIGNAL": send},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout + done.stderr, [int(s) for s in log.read_text().split()]

    run.paths = lambda out: records.Paths(folder / out, "experiments", "toys", "random_walk")
    return run


@pytest.fixture(scope="module")
def whole(start):
    """The arrays of an uninterrupted run."""
    status, text, _ = start("whole")
    assert status == 0, text
    return records.load_arrays(start.paths("whole").arrays)[0]


def same_bits(start, out, whole):
    found = records.load_arrays(start.paths(out).arrays)[0]
    assert found.keys() == whole.keys()
    return all(found[name].tobytes() == whole[name].tobytes() for name in whole)


def test_killed_inside_a_chunk_it_goes_on_from_the_last(start, whole):
    status, _, seen = start("killed", send=f"{int(signal.SIGKILL)}@8")  # in the second chunk
    assert status == -signal.SIGKILL
    assert not start.paths("killed").record.exists()
    assert min(seen) == 0
    status, text, seen = start("killed", "--resume")
    assert status == 0, text
    claim = seen[: seen.index(0)]  # the control begins at 0 again
    assert sorted(set(claim)) == [6, 8, 10, 12, 14], "the first chunk is not trained again"
    assert same_bits(start, "killed", whole)
    assert not start.paths("killed").parts.exists()


def test_a_job_taken_away_ends_at_its_checkpoint(start, whole):
    status, text, seen = start("taken", send=f"{int(signal.SIGTERM)}@2")  # in the first chunk
    assert status == 75, text
    assert set(seen) == {0, 2, 4}
    message = "preempted: 0 of 2 parts are kept; call again with --resume; of the next one stopped"
    assert message in text.replace("\n", " ")
    assert "at step 4 of 14" in text
    assert "Traceback" not in text
    assert not start.paths("taken").record.exists()
    assert start("taken", "--resume")[0] == 0
    assert same_bits(start, "taken", whole)


def test_a_record_says_what_all_parts_took_although_some_were_kept(start, whole):
    record = json.loads(start.paths("whole").record.read_text())
    assert record["seconds"]["total"] >= record["seconds"]["run"] > 0
    assert record["peak_memory_mb"] > 50
    assert re.fullmatch(r"float32|float64", record["precision"])
    assert record["matmul_precision"] == "highest"
