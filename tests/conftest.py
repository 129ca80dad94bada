"""Fixtures shared by all tests."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

# Four simulated devices for the parity tests; must be set before JAX starts. Most of the suite's
# time is compilation, a fifth of it in the last stage of the code generator: the smoke runs go
# through that, the units without.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
)
# Threads of LAPACK wait for each other by spinning, which costs other processes a core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Compiled programs and the doctor's word are kept from one test run to the next.
ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("TRAINING_DYNAMICS_CACHE", str(ROOT / ".pytest_cache" / "cache"))

import hypothesis
import jax
import pytest

from experiments import catalogue, checks, execution, judgement, records

# Where sizes are drawn each example is a compilation: few of them here, many in the deep profile.
hypothesis.settings.register_profile("ci", derandomize=True, max_examples=12, deadline=None)
hypothesis.settings.register_profile("deep", max_examples=500, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def key():
    """A typed key; set TEST_SEED to try another."""
    seed = int(os.environ.get("TEST_SEED", "0"))
    print(f"TEST_SEED={seed}")
    return jax.random.key(seed)


@pytest.fixture
def x64():
    """Double precision for the length of one test."""
    with jax.enable_x64(True):
        yield


def pytest_collection_modifyitems(items):
    """Put what waits for the smoke runs last: they go on beside the other tests."""
    items.sort(key=lambda item: "smoke_runs" in item.fixturenames)


@pytest.fixture(scope="session", autouse=True)
def started_smoke_runs(request, tmp_path_factory):
    """Start one command with the smoke runs of all claims that this session's tests ask for.

    A test asks by a parameter `entry` of the catalogue, or by the mark `smoke_run_of(name)`.
    """
    chosen = set()
    for item in request.session.items:
        if "smoke_runs" in item.fixturenames:
            chosen |= {mark.args[0] for mark in item.iter_markers("smoke_run_of")}
            entry = getattr(item, "callspec", None) and item.callspec.params.get("entry")
            chosen |= {entry.name} if entry else set()
    if not chosen:
        yield None
        return
    out = tmp_path_factory.mktemp("smoke")
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    with (out / "log.txt").open("w") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "experiments", "run", *sorted(chosen), "--smoke",
             f"--out={out}"],
            cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    yield out, running
    running.kill()
    running.wait()


@pytest.fixture(scope="session")
def smoke_runs(started_smoke_runs):
    """The folder with the smoke runs, once they are over; what they printed is its log.txt."""
    out, running = started_smoke_runs
    running.wait()
    return out


@dataclasses.dataclass(frozen=True)
class SmokeRun:
    """A claim and its smoke run, to be tampered with and judged again."""

    experiment: Any
    run: Any

    @property
    def main(self):
        """Configuration, prediction and result of the claim itself, controls apart."""
        return self.run.parts[execution.MAIN]

    def checks(self):
        """Return the checks of the run as it is."""
        return judgement.judge(self.experiment, self.run)

    def judge(self, *, prediction=None, role=None, **fields):
        """Return the verdict and the names of the red checks, of one role if given.

        `fields` replace some of the result; `prediction` is another one, or a dictionary that
        replaces some of it.
        """
        part = self.main
        part = dataclasses.replace(part, result=part.result._replace(**fields))
        if prediction:
            whole = prediction if isinstance(prediction, dict) else prediction._asdict()
            part = dataclasses.replace(part, prediction=part.prediction._replace(**whole))
        parts = {**self.run.parts, execution.MAIN: part}
        found = judgement.judge(self.experiment, execution.Run(parts, self.run.provenance))
        red = {c.name for c in found if not c.passed and role in (None, c.role)}
        return checks.verdict(found), red


@pytest.fixture
def claim(request, smoke_runs):
    """The smoke run of the claim that the test's mark `smoke_run_of(name)` names."""
    (mark,) = request.node.iter_markers("smoke_run_of")
    (entry,) = catalogue.find(list(mark.args))
    experiment = catalogue.load(entry)
    paths = records.Paths(smoke_runs, entry.tree, entry.theme, entry.slug)
    return SmokeRun(experiment, execution.load(experiment, paths.arrays))


TOY = '''
"""The mean of coin tosses is one half.

Claim      The mean of tosses of a fair coin is 1/2.
Control    A loaded coin is not fair.
Reference  Bernoulli 1713.
"""

import dataclasses
import os
import signal
from typing import NamedTuple

import jax

from experiments import checks, contract, runner

PAPER_IDS = ("P0",)
PILOT_SEEDS = (101,)


@dataclasses.dataclass(frozen=True)
class Config:
    probability: float = 0.5
    factors: tuple[float, ...] = (1.0, 2.0)
    needs_luck: bool = False
    num_tosses: int = 4000
    num_seeds: int = 5
    seed: int = 1

    def __post_init__(self):
        if self.num_tosses < 1:
            raise ValueError("num_tosses must be at least 1")


class Result(NamedTuple):
    mean: jax.Array  # (S,)


def run(config: Config) -> Result:
    log = os.environ.get("TOY_LOG")
    if log:
        with open(log, "a") as file:
            file.write(f"{config.probability}\\n")
    if os.environ.get("TOY_KILL") == str(config.probability):
        os.kill(os.getpid(), signal.SIGKILL)
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    toss = lambda key: jax.random.bernoulli(key, config.probability, (config.num_tosses,))
    return Result(jax.vmap(toss)(keys).astype(float).mean(axis=1))  # float32 or float64


def check(config, result):
    return [
        checks.below("luck", float(config.needs_luck), 0, why="none needed", role="precondition"),
        checks.close("mean", result.mean.mean(), 0.5, atol=0.03, why="over 8 standard errors"),
    ]


def plot(config, result, figure):
    axes = figure.subplots()
    axes.plot(result.mean, "o")
    axes.set(xlabel="seed", ylabel="mean")


EXPERIMENT = contract.Experiment(
    Config,
    run,
    check,
    plot,
    smoke=dict(num_tosses=2000),
    paper=dict(num_tosses=8000),
    controls={"loaded": contract.Control(dict(probability=0.7), {"mean": "above"}, "loaded")},
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
'''


@pytest.fixture
def toy_path(tmp_path):
    """A small claim in a tree of its own."""
    path = tmp_path / "tree" / "experiments" / "toys" / "fair_coin.py"
    path.parent.mkdir(parents=True)
    path.write_text(textwrap.dedent(TOY).lstrip())
    return path


@pytest.fixture
def toy(toy_path, monkeypatch):
    """The EXPERIMENT of the small claim."""
    import importlib.util
    import sys

    spec = importlib.util.spec_from_file_location("toy_claim", toy_path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "toy_claim", module)
    spec.loader.exec_module(module)
    return module.EXPERIMENT
