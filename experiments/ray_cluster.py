"""The Ray cluster that claims run on: an embedded one on this machine, or one that is there.

The embedded cluster listens on the loopback interface alone, behind a token of its own, without
dashboard and usage statistics; its files lie in a private folder that goes with it. To a cluster
with an address the driver's code is shipped, with the commit that it is from.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments import catalogue, contract, engines

# Must be set before ray is imported: without "clusters" Ray binds to 127.0.0.1, with them to all
# interfaces, whatever the name of the switch says of other systems.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
_LONGEST = 24  # characters of a folder below which Ray's sockets keep to the 107 of a name


@contextlib.contextmanager
def embedded(jobs: int) -> Iterator[Any]:
    """Yield ray, connected to a cluster on this machine that ends with the context."""
    usual = tempfile.gettempdir()
    base = usual if len(usual) <= _LONGEST else "/tmp"
    with tempfile.TemporaryDirectory("", "ray-", base, ignore_cleanup_errors=True) as folder:
        variables = {
            **_LOOPBACK,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            # Ray would set 1, and LAPACK's sums would differ from those of a local run.
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
            "TMPDIR": folder,  # what a killed worker leaves goes too
        }
        options = {"num_cpus": jobs, "include_dashboard": False, "_temp_dir": folder}
        with _environment(variables), _connected(address="local", **options) as ray:
            yield ray


@contextlib.contextmanager
def existing(cluster: engines.Cluster) -> Iterator[Any]:
    """Yield ray, connected to the cluster at an address, with this code shipped to it."""
    _require_answer(cluster.address)
    with tempfile.TemporaryDirectory(prefix="code-") as folder:
        ship(Path(folder))
        environment = {"working_dir": folder}
        with _connected(address=cluster.address, runtime_env=environment) as ray:
            yield ray


def _require_answer(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would try for minutes.

    Raises:
        contract.CallError: no answer within ten seconds.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isdigit()):
        return  # "auto", or another name that Ray knows
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        message = f"--ray_address={address}: nothing answers there ({error}); start Ray there first"
        raise contract.CallError(message) from error


def ship(folder: Path) -> None:
    """Copy all code that can move a number into `folder`, with the commit that it is from."""
    from experiments import provenance

    for tree in ("dynamics", *catalogue.TREES):
        for path in sorted((catalogue.ROOT / tree).rglob("*.py")):
            target = folder / path.relative_to(catalogue.ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    commit = provenance.commit(catalogue.ROOT) or ""
    (folder / provenance.SHIPPED_COMMIT).write_text(commit, encoding="utf-8")


@contextlib.contextmanager
def _connected(**arguments) -> Iterator[Any]:
    """Yield ray, initialised; SIGTERM does afterwards what it did before."""
    import ray

    listens = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if listens else None
    try:
        ray.init(log_to_driver=False, logging_level="error", **arguments)
    except Exception as error:  # of many kinds: no answer, other versions, no token
        address = arguments["address"]
        message = (
            f"--ray_address={address}: cannot join that cluster ({first_line(error)}); see that it "
            f"is up and has Python {sys.version.split()[0]} and Ray {ray.__version__}"
        )
        raise contract.CallError(message) from error
    if listens:  # Ray has put its own
        signal.signal(signal.SIGTERM, _end if before in (signal.SIG_DFL, None) else before)
    with contextlib.redirect_stdout(sys.stderr):  # Ray tells of workers that died
        try:
            yield ray
        except SystemExit as error:  # by _end; what waits for Ray makes 1 of any status
            sys.exit(128 + signal.SIGTERM if error.code == 1 else error.code)
        finally:
            ray.shutdown()
            if listens:
                signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)  # through the contexts above, which take the cluster down


def cpus(cluster: engines.Cluster) -> float:
    """Return the cores that Ray sets aside for a claim."""
    if cluster.address is None:
        return 1  # of as many as there are jobs
    return 2 if cluster.cpus_per_claim is None else cluster.cpus_per_claim


def require_room(ray, cluster: engines.Cluster) -> None:
    """Refuse a claim that no machine can hold; a cluster with an address may grow one.

    Raises:
        contract.CallError: the embedded cluster lacks what a claim asks for.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"GPU": cluster.gpus_per_claim, "CPU": cpus(cluster)}
    for kind, number in wanted.items():
        largest = max((node.get(kind, 0) for node in nodes), default=0)
        if number > largest:
            lack = f"--{kind.lower()}s_per_claim={number:g}: the largest machine has {largest:g}"
            if cluster.address is None:
                raise contract.CallError(lack)
            print(f"{lack}; waiting for a larger one to join", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def first_line(error: BaseException) -> str:
    """Return the first line of an error that says anything."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__
