"""Where many claims run: in this process, in a pool of processes, later on a cluster."""

import concurrent.futures
import dataclasses
import multiprocessing
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Protocol

from experiments import catalogue, contract, preemption, runner


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


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a task ended: a verdict, or "crashed", "refused" or "preempted" with the reason."""

    name: str
    verdict: str
    seconds: float
    remark: str = ""


class Engine(Protocol):
    """Runs tasks in any order and yields each outcome as it comes."""

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Run the tasks."""
        ...


def choose(name: str, jobs: int) -> Engine:
    """Return the engine called `name`.

    Raises:
        contract.CallError: unknown name, or fewer than one job.
    """
    if jobs < 1:
        message = f"--jobs={jobs}: give a number of processes of at least 1"
        raise contract.CallError(message)
    if name == "ray":
        message = "--engine=ray: not built yet; use --engine=local with --jobs=N"
        raise contract.CallError(message)
    if name != "local":
        message = f"--engine={name}: choose local"
        raise contract.CallError(message)
    return in_this_process if jobs == 1 else lambda tasks: in_processes(tasks, jobs)


def in_this_process(tasks: Sequence[Task]) -> Iterator[Outcome]:
    """Run the tasks one after the other, until the process is asked to end."""
    for task in tasks:
        if preemption.asked():
            return
        yield perform(task)


def in_processes(tasks: Sequence[Task], jobs: int) -> Iterator[Outcome]:
    """Run the tasks in a pool of processes; a claim whose process dies is reported as crashed."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = {pool.submit(perform, task): task for task in tasks}
        for future in concurrent.futures.as_completed(futures):
            try:
                yield future.result()
            except concurrent.futures.process.BrokenProcessPool:
                name = futures[future].name
                yield Outcome(name, "crashed", 0.0, "its process died; run it alone, or --resume")


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
    return outcome(record["verdict"], _remark(task, record))


def _remark(task: Task, record: dict) -> str:
    red = [check for check in record["checks"] if not check["passed"]]
    if record["verdict"] == "void":
        red = [check for check in red if check["role"] == "precondition"]
    known = " (known)" if task.entry.known_failure and record["verdict"] == "fails" else ""
    return "; ".join(check["name"] for check in red) + known
