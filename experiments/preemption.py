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
def listening(*, to_the_first_alone: bool = False) -> Iterator[None]:
    """Let SIGTERM ask, for the length of the context; a second one ends the process at once.

    With `to_the_first_alone` it does nothing: a scheduler sends SIGTERM to every process of a job,
    so that one whose parent passes it on hears it twice.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may; whoever owns it listens
        return
    owner = os.getpid()

    def ask(number: int, frame: object) -> None:
        forked = os.getpid() != owner  # and has not yet set its own
        deaf = to_the_first_alone and not forked
        signal.signal(signal.SIGTERM, (lambda *_: None) if deaf else signal.SIG_DFL)
        if forked:
            os.kill(os.getpid(), signal.SIGTERM)
        _ASKED.set()
        line = "asked to end: going on to the next checkpoint (again: end at once)\n"
        with contextlib.suppress(OSError):  # who listened may be gone: the same signal took it
            os.write(sys.stderr.fileno() if sys.stderr else 2, line.encode())

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _ASKED.clear()
