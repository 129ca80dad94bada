"""Many claims on a Ray cluster: each a remote task whose files are sent back to the driver.

Nothing but the driver touches the output folder. A worker runs a claim in a folder of its own and
returns what it made; the driver lands it as a local run would, under the same lock, so that the
workers need not share a disk with it. Each worker compares the digest of its code with the
driver's before it runs anything.
"""

import collections
import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import catalogue, contract, engines, ray_cluster, records

_AT_ONCE = 256  # tasks handed to Ray at a time; each holds the lock of its claim, an open file
_POLL = 1.0  # seconds between two looks at `stop`
_REASONS = {
    "WorkerCrashedError": "its worker died: killed, out of memory, or a crash in compiled code",
    "OutOfMemoryError": "its worker was ended because its machine ran out of memory",
    "NodeDiedError": "its machine was lost",
}
_NOT_TRIED_AGAIN = ("RayTaskError", "RuntimeEnvSetupError", "TaskUnschedulableError")


@dataclasses.dataclass(frozen=True)
class Request:
    """What a worker is sent.

    Attributes:
        task: the claim and its settings.
        kept: files of an interrupted try, by their path below the output folder.
        source: digest of the driver's code.
        scratch: name of the folder for this run's files on the worker.
        gpus: GPUs, or the share of one, that the worker may use.
    """

    task: engines.Task
    kept: Mapping[str, bytes]
    source: str
    scratch: str
    gpus: float


@dataclasses.dataclass(frozen=True)
class Delivery:
    """What a worker sends back: the outcome, the files by path, and what was said on stderr."""

    outcome: engines.Outcome
    files: Mapping[str, bytes]
    said: str


@dataclasses.dataclass
class _Attempt:
    request: Request
    lock: contextlib.ExitStack
    number: int = 1
    start: float = dataclasses.field(default_factory=time.perf_counter)


def require(jobs: int | None, cluster: engines.Cluster) -> None:
    """Refuse a call that cannot be carried out, without importing Ray.

    Raises:
        contract.CallError: Ray is not installed, `jobs` for a cluster of its own size, or cores
            for one that `jobs` sizes.
    """
    if importlib.util.find_spec("ray") is None:
        message = (
            "--engine=ray: Ray is not installed; install the extra: pip install -e '.[cluster]'"
        )
        raise contract.CallError(message)
    if cluster.address is not None and jobs is not None:
        message = (
            f"--jobs={jobs} with --ray_address={cluster.address}: the cluster's size decides how "
            "many claims run at a time; set --cpus_per_claim or --gpus_per_claim instead"
        )
        raise contract.CallError(message)
    if cluster.address is None and cluster.cpus_per_claim is not None:
        message = (
            f"--cpus_per_claim={cluster.cpus_per_claim:g} without --ray_address: on this machine "
            "--jobs decides how many claims run at a time"
        )
        raise contract.CallError(message)


def on_cluster(
    tasks: Sequence[engines.Task],
    jobs: int,
    cluster: engines.Cluster,
    *,
    retries: int = engines.RETRIES,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[engines.Outcome]:
    """Run the tasks on `cluster`, or on an embedded one that runs `jobs` claims at a time.

    A worker that dies costs the claim it was running; that is tried `retries` times more and goes
    on from what it has kept if it comes to the same machine. An error of the claim is final.

    Raises:
        contract.CallError: the cluster cannot be joined, or has no room for a claim.
    """
    embedded = cluster.address is None
    joined = ray_cluster.embedded(jobs) if embedded else ray_cluster.existing(cluster)
    with joined as ray, contextlib.ExitStack() as locks:
        ray_cluster.require_room(ray, cluster)
        remote = ray.remote(perform_remotely).options(
            num_cpus=ray_cluster.cpus(cluster), num_gpus=cluster.gpus_per_claim, max_retries=0
        )
        from experiments import provenance

        source = provenance.source_digest(catalogue.ROOT)
        scratch = f"training-dynamics-{secrets.token_hex(8)}"
        pending = collections.deque(engines.longest_first(tasks))
        flying: dict[Any, _Attempt] = {}
        while (pending or flying) and not stop():
            while pending and len(flying) < _AT_ONCE:
                task, lock = pending.popleft(), locks.enter_context(contextlib.ExitStack())
                try:
                    kept = _claim_folder(task, lock)
                except contract.CallError as error:
                    yield engines.Outcome(task.name, "refused", 0.0, str(error))
                    continue
                if (outcome := _done_before(task)) is not None:
                    lock.close()
                    yield outcome
                    continue
                request = Request(task, kept, source, scratch, cluster.gpus_per_claim)
                flying[remote.remote(request)] = _Attempt(request, lock)
            if not flying:
                continue
            done, _ = ray.wait(list(flying), num_returns=1, timeout=_POLL)
            for reference in done:
                attempt = flying.pop(reference)
                outcome = _result(ray, reference, attempt, retries)
                if outcome.verdict == "retried":
                    task = attempt.request.task.going_on()
                    again = dataclasses.replace(attempt.request, task=task)
                    flying[remote.remote(again)] = _Attempt(again, attempt.lock, attempt.number + 1)
                else:
                    attempt.lock.close()
                yield outcome


def perform_remotely(request: Request) -> Delivery:
    """Run one claim on a worker, in a folder of its own, and return its files."""
    _choose_device(request.gpus)
    from experiments import provenance  # after the device: it imports JAX

    task, said = request.task, io.StringIO()
    if provenance.source_digest(catalogue.ROOT) != request.source:
        why = "the worker imports other code than the driver's: install the same, or nothing, there"
        return Delivery(engines.Outcome(task.name, "refused", 0.0, why), {}, "")
    run = Path(tempfile.gettempdir()) / request.scratch  # its name cannot be guessed
    folder = run / hashlib.sha256(task.name.encode()).hexdigest()[:16]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in request.kept.items():
        if not (folder / name).exists():
            records.write_atomically(folder / name, content)
    settings = dataclasses.replace(task.settings, out=folder)
    with contextlib.redirect_stderr(said):
        outcome = engines.perform(dataclasses.replace(task, settings=settings))
    delivery = Delivery(outcome, _files(folder, folder), said.getvalue())
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        run.rmdir()  # unless another claim of this run is at work here
    return delivery


def _claim_folder(task: engines.Task, lock: contextlib.ExitStack) -> dict[str, bytes]:
    """Take the claim's lock; return the files that an interrupted run kept, to go on from."""
    lock.enter_context(records.exclusive(task.paths))
    if task.settings.resume:
        return _files(task.paths.parts, task.paths.out)
    shutil.rmtree(task.paths.parts, ignore_errors=True)
    return {}


def _done_before(task: engines.Task) -> engines.Outcome | None:
    """Return the outcome that is there already, for a task that resumes."""
    if not task.settings.resume:
        return None
    from experiments import runner

    with contextlib.suppress(Exception):  # the worker meets it again, and tells
        claim = catalogue.load(task.entry)

        def finished(settings: runner.Settings) -> dict[str, Any] | None:
            experiment = runner.in_precision(claim, settings)
            config = experiment.configure(settings.preset, settings.overrides)
            paths = dataclasses.replace(task.paths, out=settings.folder())
            return runner.finished(experiment, config, settings, paths)

        record = finished(task.settings)
        if record is not None and runner.needs_recheck(claim, task.settings, record):
            record = finished(task.settings.rechecked())
        if record is not None:
            remark = engines.remark(task, record)
            return engines.Outcome(task.name, record["verdict"], 0.0, remark)
    return None


def _result(ray, reference, attempt: _Attempt, retries: int) -> engines.Outcome:
    """Land what a worker returned, or say why it returned nothing."""
    name, seconds = attempt.request.task.name, time.perf_counter() - attempt.start
    try:
        delivery = ray.get(reference)
    except ray.exceptions.RayError as error:
        kind = next((k.__name__ for k in type(error).__mro__ if k.__name__ in _REASONS), "")
        why = _REASONS.get(kind) or f"{type(error).__name__}: {ray_cluster.first_line(error)}"
        final = any(k.__name__ in _NOT_TRIED_AGAIN for k in type(error).__mro__)
        if final or attempt.number > retries:
            tries = "" if final else f" ({attempt.number} tries)"
            return engines.Outcome(name, "crashed", seconds, why + tries)
        then = f"{why}; try {attempt.number + 1} of {retries + 1}"
        return engines.Outcome(name, "retried", seconds, then)
    if delivery.said:
        print(delivery.said, end="", file=sys.stderr, flush=True)
    try:
        land(delivery.files, attempt.request.task.paths)
    except contract.CallError as error:
        return engines.Outcome(name, "refused", delivery.outcome.seconds, str(error))
    return delivery.outcome


def land(files: Mapping[str, bytes], paths: records.Paths) -> None:
    """Write what a worker made below `paths.out`, records last.

    Raises:
        contract.CallError: the folder cannot be written; the old record is then still there.
    """
    for name in sorted(files, key=lambda name: (name.endswith(".json"), name)):
        path = paths.out / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            message = f"--engine=ray: a worker returned a file outside its folder, {name}"
            raise contract.CallError(message)
        records.write_atomically(path, files[name])
    if str(paths.record.relative_to(paths.out)) in files:
        shutil.rmtree(paths.parts, ignore_errors=True)


def _files(below: Path, out: Path) -> dict[str, bytes]:
    """Return the files below a folder, by their path from `out`; locks stay where they are."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(below.rglob("*"))
        if path.is_file() and path.suffix not in (".lock", records.PARTIAL)
    }


def _choose_device(gpus: float) -> None:
    """Keep a claim to the devices that Ray gave it; before JAX is imported."""
    if not gpus:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    elif gpus < 1:
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 * gpus:.3f}")
