"""The compiled programs that JAX keeps between processes, and what a kill has left of one."""

import contextlib
import os
import zlib
from pathlib import Path

import jax

_CHECKED = ".checked"  # as old as the last look at the entries
_ZSTANDARD = b"\x28\xb5\x2f\xfd"  # how an entry begins where JAX has found that library


def keep(folder: Path) -> None:
    """Let JAX keep its compiled programs in `folder`, the small ones too."""
    if jax.config.jax_compilation_cache_dir != str(folder):  # once in a process
        drop_torn(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def drop_torn(folder: Path) -> None:
    """Remove entries that a kill or a full disk has cut short, of those since the last look.

    JAX writes an entry in place and never replaces one: such a program would be compiled anew in
    every run to come, with a warning. An entry that another process is writing may go as well; it
    is then compiled once more.
    """
    with contextlib.suppress(OSError):  # no folder yet, or none that can be written
        looking = folder / f"{_CHECKED}.{os.getpid()}"
        looking.touch()  # by the clock of the file system
        checked = folder / _CHECKED
        since = checked.stat().st_mtime_ns if checked.exists() else 0
        for entry in folder.glob("*-cache"):
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                if entry.stat().st_mtime_ns >= since and _torn(entry.read_bytes()):
                    entry.unlink()
        looking.replace(checked)


def _torn(content: bytes) -> bool:
    if content.startswith(_ZSTANDARD):
        return False  # not to be told without the library; JAX says so when it reads it
    try:
        zlib.decompress(content)
    except zlib.error:
        return True
    return False
