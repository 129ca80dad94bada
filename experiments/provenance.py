"""Where a run came from: versions, commit, machine, seconds, memory."""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.monitoring

_COMPILATION = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
SHIPPED_COMMIT = "SHIPPED_COMMIT"  # the file that names it where code travels without its history
_PACKAGES = (
    "jax jaxlib flax optax numpy scipy matplotlib diffrax equinox matfree orbax-checkpoint "
    "neural-tangents scikit-learn"
).split()
_AT_FIRST: dict[Path, str] = {}  # the digest of a tree's code when this process first asked for it


def versions() -> dict[str, str]:
    """Return the version of Python and of each installed package that can move a number."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit(root: Path) -> str | None:
    """Return the commit of the code, with "+changes" where what runs is not as committed."""
    with contextlib.suppress(OSError):
        return (root / SHIPPED_COMMIT).read_text(encoding="utf-8").strip() or None
    code = ["dynamics", "experiments", "theory_checks", "setup.cfg", "requirements.lock"]

    def git(*words):
        return subprocess.run(
            ("git", *words), cwd=root, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None
        changed = git("status", "--porcelain", "--", *code) or _changed_meanwhile(root)
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def source_digest(root: Path) -> str:
    """Return the SHA-256 of all code that can move a number: both trees and the library.

    Where a file has changed since this process first asked, what runs is a mixture that no tree
    holds, and so is its digest: nobody will find it again.
    """
    found = _digest_of_files(root)
    if not _changed_meanwhile(root, found):
        return found
    return hashlib.sha256(f"{_AT_FIRST[root]} {found}".encode()).hexdigest()


def _changed_meanwhile(root: Path, found: str | None = None) -> bool:
    found = found or _digest_of_files(root)
    return _AT_FIRST.setdefault(root, found) != found


def _digest_of_files(root: Path) -> str:
    total = hashlib.sha256()
    for tree in ("dynamics", "experiments", "theory_checks"):
        for path in sorted((root / tree).rglob("*.py")):
            total.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def machine() -> dict[str, Any]:
    """Return platform and number of JAX devices, without names of hosts or paths."""
    device = jax.devices()[0]
    kind = device.device_kind if device.platform != "cpu" else platform.machine()
    return {
        "platform": f"{device.platform} ({kind}, {os.cpu_count()} cores)",
        "device_count": jax.device_count(),
    }


class Stopwatch:
    """Seconds since it was made, split into compilation and the rest; peak memory."""

    def __init__(self):
        self._spans: list[tuple[float, float]] = []
        self._start = time.perf_counter()
        _reset_peak_memory()

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Count JAX's lowering and compilation as such for as long as the context lasts.

        Tracing is left out: what it waits for, earlier programs still running, would count too.
        """

        def listen(event: str, start: float, end: float, **_):
            if event in _COMPILATION:
                self._spans.append((start, end))

        jax.monitoring.register_event_time_span_listener(listen)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_time_span_listener(listen)

    def seconds(self) -> dict[str, float]:
        """Return {"compile", "run", "total"} so far."""
        total = time.perf_counter() - self._start
        compiling = min(covered(self._spans), total)
        parts = {"compile": compiling, "run": total - compiling, "total": total}
        return {name: round(value, 3) for name, value in parts.items()}


def covered(spans: list[tuple[float, float]]) -> float:
    """Return the length of the union of time spans, which may lie within each other."""
    length, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        length += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return length


def peak_memory_mb() -> float:
    """Return the process' peak resident memory in MB, since the last Stopwatch where Linux."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        line = next(line for line in lines if line.startswith("VmHWM"))
        return round(int(line.split()[1]) / 1024, 1)
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def _reset_peak_memory() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
