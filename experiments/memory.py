"""The memory that a run may ask for: as much as the machine has left.

Linux promises more memory than there is, so that a request that is far too large succeeds and the
machine swaps, or ends the process without a word, when the memory is used. A limit on the process
turns it into an error at the request.
"""

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

_STATUS = Path("/proc/self/status")
_MACHINE = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")  # of a container


@contextlib.contextmanager
def held_to_the_machine(platform: str) -> Iterator[None]:
    """Refuse, for the length of the context, more data than now in use and now available.

    Args:
        platform: of JAX's devices; only on "cpu" do arrays lie in this process' memory, and
            drivers of accelerators reserve more addresses than there is memory.
    """
    limit = _used() + available() if sys.platform == "linux" and platform == "cpu" else 0
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == 0 or (soft != resource.RLIM_INFINITY and soft <= limit):
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def available() -> int:
    """Return the bytes that this machine, or this container, can still give."""
    left = _field(_MACHINE, "MemAvailable")
    with contextlib.suppress(OSError, ValueError):  # "max", or another layout
        most = int((_GROUP / "memory.max").read_text())
        used = int((_GROUP / "memory.current").read_text())
        # Files in the cache count as used, and are given back when memory is asked for.
        fields = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        left = min(left, most - used + int(fields.get("inactive_file", 0)))
    return max(left, 0)


def _used() -> int:
    return _field(_STATUS, "VmData")


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        label, _, value = line.partition(":")
        if label == name:
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
