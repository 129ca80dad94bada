"""Where many claims run: in this process, in several processes, on a Ray cluster."""

import contextlib
import dataclasses
import functools
import math
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from experiments import catalogue, contract, distributed, preemption, records, runner

RETRIES = 2  # of a claim whose process or worker dies; a claim's own error is not tried again


@dataclasses.dataclass(frozen=True)
class Task:
    """One claim to run, or one cell of a sweep of it."""

    entry: catalogue.Entry
    settings: runner.Settings
    cell: str = ""

    @property
    def name(self) -> str:
        """What to call it in a table."""
        return f"{self.entry.name} {self.cell}".rstrip()

    @property
    def paths(self) -> records.Paths:
        """Where its files land."""
        entry = self.entry
        return records.Paths(self.settings.folder(), entry.tree, entry.theme, entry.slug)

    def going_on(self) -> "Task":
        """Return the task that takes what an interrupted try has kept.

        Where an older record lies, that try begins anew: to resume would be to return the record.
        """
        if self.paths.record.exists():
            return self
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, resume=True))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a task ended: a verdict, or "crashed", "refused" or "preempted" with the reason.

    "retried" is the one that is no end: the process died, and another outcome follows.
    """

    name: str
    verdict: str
    seconds: float
    remark: str = ""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What the Ray engine runs on.

    Attributes:
        address: of a cluster that is there, as ray.init takes it; None for an embedded one.
        cpus_per_claim: cores that Ray sets aside for a claim on a cluster that has an address;
            None for two, which claims are sized for.
        gpus_per_claim: GPUs for a claim, or a share of one; with 0 a claim runs on the CPU.
    """

    address: str | None = None
    cpus_per_claim: float | None = None
    gpus_per_claim: float = 0.0

    def __post_init__(self):
        for name in ("cpus_per_claim", "gpus_per_claim"):
            value = getattr(self, name)
            allowed = value is None or 0 <= value < 1 or (1 <= value < 2**16 and value % 1 == 0)
            if not allowed or (name == "cpus_per_claim" and value == 0):
                message = f"--{name}={value}: give a whole number, or a share of one such as 0.5"
                raise contract.CallError(message)


class Engine(Protocol):
    """Runs tasks in any order and yields each outcome as it comes."""

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Run the tasks."""
        ...


def choose(
    name: str,
    jobs: int | None,
    *,
    retries: int = RETRIES,
    cluster: Cluster = Cluster(),
    stop: Callable[[], bool] = lambda: False,
) -> Engine:
    """Return the engine called `name`.

    Args:
        name: "local" or "ray".
        jobs: claims at a time, None for one; not for a cluster with an address, which decides.
        retries: how often a claim whose process dies is tried again.
        cluster: of the Ray engine alone.
        stop: asked now and then; once it says so, engines of several processes end early.

    Raises:
        contract.CallError: unknown name, too few jobs or retries, Ray not installed, or options
            of another engine.
    """
    if jobs is not None and jobs < 1:
        message = f"--jobs={jobs}: give a number of processes of at least 1"
        raise contract.CallError(message)
    if retries < 0:
        message = f"--retries={retries}: give 0 or more"
        raise contract.CallError(message)
    if name == "ray":
        from experiments import ray_engine

        ray_engine.require(jobs, cluster)
        return functools.partial(
            ray_engine.on_cluster, jobs=jobs or 1, cluster=cluster, retries=retries, stop=stop
        )
    if name != "local":
        message = f"--engine={name}: choose local or ray"
        raise contract.CallError(message)
    for flag, value in dataclasses.asdict(cluster).items():
        if value:
            flag = "ray_address" if flag == "address" else flag
            message = f"--{flag}={value}: only with --engine=ray"
            raise contract.CallError(message)
    if jobs in (None, 1):
        return in_this_process
    from experiments import process_pool

    return functools.partial(process_pool.in_processes, jobs=jobs, retries=retries, stop=stop)


def in_this_process(tasks: Sequence[Task]) -> Iterator[Outcome]:
    """Run the tasks one after the other, until the process, or another of its run, should end."""
    for task in tasks:
        if distributed.any_process(preemption.asked()):
            return
        yield perform(task)


def longest_first(tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks by the seconds of their last records, unknown ones first.

    Several processes then end at about the same time, not one long claim after all others.
    """

    def seconds(task: Task) -> float:
        committed = dataclasses.replace(task.paths, out=catalogue.ROOT / "figures")
        for paths in (task.paths, committed):
            with contextlib.suppress(contract.CallError, KeyError, TypeError, ValueError):
                return float(records.load_record(paths.record)["seconds"]["total"])
        return math.inf

    return sorted(tasks, key=seconds, reverse=True)


def perform(task: Task) -> Outcome:
    """Run one claim and turn whatever happens into an outcome."""
    start = time.perf_counter()
    name = task.name

    def outcome(verdict: str, remark: str = "") -> Outcome:
        return Outcome(name, verdict, time.perf_counter() - start, remark)

    try:
        experiment, settings = catalogue.load(task.entry), task.settings
        record = runner.perform(experiment, task.entry, settings)
        if runner.needs_recheck(experiment, settings, record):
            record = runner.perform(experiment, task.entry, settings.rechecked())
    except contract.CallError as error:
        return outcome("refused", str(error))
    except preemption.Preempted as error:
        return outcome("preempted", str(error))
    except Exception as error:  # one claim's defect must not end the others
        traceback.print_exc()
        return outcome("crashed", f"{type(error).__name__}: {error}")
    return outcome(record["verdict"], remark(task, record))


def remark(task: Task, record: dict) -> str:
    """Return what a summary says beside the verdict: the checks that made it so."""
    red = [check for check in record["checks"] if not check["passed"]]
    if record["verdict"] == "void":
        red = [check for check in red if check["role"] == "precondition"]
    known = " (known)" if task.entry.known_failure and record["verdict"] == "fails" else ""
    return "; ".join(check["name"] for check in red) + known
