"""A job that is about to be taken away: SIGTERM ends a run at its next checkpoint."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

STATUS = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, call again
_ASKED = threading.Event()  # signals belong to the process, so this does too


class Preempted(Exception):
    """A run ended early because it was asked to; what it had finished is kept."""


def asked() -> bool:
    """Return whether this process was asked to end."""
    return _ASKED.is_set()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Let SIGTERM ask, for the length of the context; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may; whoever owns it listens
        return
    owner = os.getpid()

    def ask(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != owner:  # a fork that has not yet set its own
            os.kill(os.getpid(), signal.SIGTERM)
        _ASKED.set()
        line = "asked to end: going on to the next checkpoint (again: end at once)\n"
        os.write(sys.stderr.fileno() if sys.stderr else 2, line.encode())

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _ASKED.clear()
