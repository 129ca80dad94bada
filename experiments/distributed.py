"""One run on several hosts: every process computes its share, the first one judges and writes.

The command starts itself once more as a child. The child joins the others by `jax.distributed`;
the parent turns its end into one line, since JAX aborts a process whose peers are gone, where
nothing can be caught. Processes agree through the key-value store of JAX's coordination service,
which waits for a slow process as long as it lives.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from experiments import contract

GONE = 3  # exit status where a process of the run has died
_PIPE = "TRAINING_DYNAMICS_DISTRIBUTED_PIPE"  # tells the child where to say that it has joined
_MONTH = 30 * 24 * 3600 * 1000  # ms; the end of a dead process is noticed by its heartbeat
# What jaxlib says when it gives up; the parent says it in one line instead.
_LAST_WORDS = re.compile(r"[WEF]\d{4} \S+ +\d+ (coordination_|client\.h|preemption_)")
_UNHEALTHY = re.compile(r"stopped sending heartbeats\):\s*([\d,\s]*\d)")


@dataclasses.dataclass(frozen=True)
class Hosts:
    """How a process joins the others.

    Attributes:
        coordinator: HOST:PORT that process 0 listens on; None with the next two where Slurm, a TPU
            pod or Open MPI tells all three.
        num_processes: of the whole run.
        process_id: of this one, from 0.
        timeout: seconds after which a process that gives no sign of life is given up; they are
            waited for three times as long to come.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    timeout: int = 100

    def __post_init__(self):
        given = (self.coordinator, self.num_processes, self.process_id)
        if 0 < given.count(None) < 3:
            message = (
                "--distributed: give --coordinator, --num_processes and --process_id, or none of "
                "them where Slurm, a TPU pod or Open MPI tells them"
            )
            raise contract.CallError(message)
        if self.timeout < 2:
            message = f"--distributed_timeout={self.timeout}: give at least 2 seconds"
            raise contract.CallError(message)
        if self.coordinator is None:
            return
        port = self.coordinator.rpartition(":")[2]
        if not re.fullmatch(r"\S+:\d{1,5}", self.coordinator) or not 0 < int(port) < 2**16:
            message = f"--coordinator={self.coordinator}: give HOST:PORT of process 0"
            raise contract.CallError(message)
        if self.num_processes < 1:
            message = f"--num_processes={self.num_processes}: give at least 1"
            raise contract.CallError(message)
        if not 0 <= self.process_id < self.num_processes:
            message = (
                f"--process_id={self.process_id}: give a number from 0 to {self.num_processes - 1}"
            )
            raise contract.CallError(message)


FLAGS = {
    "coordinator": "with --distributed: HOST:PORT of process 0",
    "num_processes": "with --distributed: processes of the run",
    "process_id": "with --distributed: this one's number, from 0",
    "distributed_timeout": "with --distributed: seconds until a silent process is given up (100)",
}


def hosts(distributed: bool, values: dict[str, str | None]) -> Hosts | None:
    """Return what the flags ask for, `values` being those of `FLAGS`; None for a run of its own.

    Raises:
        contract.CallError: flags that do not fit each other, or that are no numbers.
    """
    given = {name: value for name, value in values.items() if value is not None}
    if not distributed:
        if given:
            name, value = next(iter(given.items()))
            message = f"--{name}={value}: only with --distributed"
            raise contract.CallError(message)
        return None
    for name in set(given) - {"coordinator"}:
        given[name] = contract.convert(name, given[name], int)
    if "distributed_timeout" in given:
        given["timeout"] = given.pop("distributed_timeout")
    return Hosts(**given)


class _Session:
    """This process among the others."""

    def __init__(self, process: int, count: int, client: Any, timeout: int):
        self.process, self.count, self.client, self.timeout = process, count, client, timeout
        self._asked = 0

    def every(self, word: str, patience: int = _MONTH) -> list[str]:
        """Return each process' word; it is the same question for all by being the n-th one."""
        self._asked += 1
        self.client.key_value_set(f"{self._asked}/{self.process}", word)
        return [self._word(process, patience) for process in range(self.count)]

    def from_first(self, word: str | None) -> str:
        """Return the word of process 0."""
        self._asked += 1
        if word is None:
            return self._word(0, _MONTH)
        self.client.key_value_set(f"{self._asked}/0", word)
        return word

    def _word(self, process: int, patience: int) -> str:
        try:
            return self.client.blocking_key_value_get(f"{self._asked}/{process}", patience)
        except Exception as error:
            time.sleep(self.timeout)  # where a process has died, JAX ends this one meanwhile
            _leave(f"no word from process {process}: {error}")


_session: _Session | None = None


def is_first() -> bool:
    """Whether this process writes and prints: process 0, or the only one."""
    return _session is None or _session.process == 0


def enter(wanted: Hosts | None) -> int | None:
    """Join the others, and return None; in the call itself: the exit status of the run.

    Raises:
        contract.CallError: the others cannot be joined.
    """
    if wanted is None:
        return None
    if _session is None and _PIPE not in os.environ:
        return _supervise(wanted)
    _join(wanted)
    return None


def decided(function: Callable[[], Any]) -> Any:
    """Return what `function` gives in process 0, which alone calls it: something JSON can hold.

    Raises:
        contract.CallError: in the others, where it raises in process 0.
    """
    if _session is None:
        return function()
    if not is_first():
        word = json.loads(_session.from_first(None))
        if "error" in word:
            raise contract.CallError(word["error"])
        return word["value"]
    try:
        value = function()
    except BaseException as error:
        kind = "" if isinstance(error, contract.CallError) else f"{type(error).__name__}: "
        message = f"--distributed: process 0: {kind}{error}"
        _session.from_first(json.dumps({"error": message}))
        raise
    _session.from_first(json.dumps({"value": value}))
    return value


@contextlib.contextmanager
def held_by_first(make: Callable[[], Any]) -> Iterator[None]:
    """Hold the context that `make` returns in process 0 alone; its failure to begin is all's."""
    with contextlib.ExitStack() as stack:
        decided(lambda: stack.enter_context(make()))
        yield


def together(function: Callable[[], Any]) -> Any:
    """Return `function()`, called by all; where it raises in one process it raises in all.

    Raises:
        contract.CallError: it raised elsewhere.
    """
    if _session is None:
        return function()
    failure = None
    try:
        value = function()
    except Exception as error:
        failure = error
    word = "" if failure is None else f"{type(failure).__name__}: {failure}"
    # The others may wait in a computation for what this process has failed to give.
    patience = _MONTH if failure is None else (_session.timeout + 30) * 1000
    words = _session.every(word, patience)
    if failure is not None:
        raise failure
    for process, word in enumerate(words):
        if word:
            message = f"--distributed: process {process}: {word}"
            raise contract.CallError(message)
    return value


def any_process(flag: bool) -> bool:
    """Return whether `flag` is set in any process; all must call."""
    return flag if _session is None else "yes" in _session.every("yes" if flag else "no")


def agree(**of_this_process: Any) -> None:
    """Raise in every process where one is given other things than process 0.

    Raises:
        contract.CallError: names the process and what differs.
    """
    if _session is None:
        return
    words = [json.loads(word) for word in _session.every(json.dumps(of_this_process))]
    for process, word in enumerate(words):
        for name, value in word.items():
            if value != words[0][name]:
                here, there = _difference(words[0][name], value)
                message = (
                    f"--distributed: the {name} of process 0 ({here}) and of process {process} "
                    f"({there}) differ; give every process the same call and the same code"
                )
                raise contract.CallError(message)


def _difference(one: Any, other: Any) -> tuple[Any, Any]:
    """Return two things, of two dictionaries only what they do not share."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return one, other
    names = [n for n in {**one, **other} if one.get(n, n) != other.get(n, n)]
    return tuple(", ".join(f"{n}={d.get(n, 'none')}" for n in names) for d in (one, other))


def worst(diagnosis: dict[str, Any]) -> dict[str, Any]:
    """Return the doctor's word on a machine that miscomputes, if any process runs on one."""
    if _session is None:
        return diagnosis
    words = [json.loads(word) for word in _session.every(json.dumps(diagnosis))]
    return max(words, key=lambda word: len(word["failed"]))


def _join(wanted: Hosts) -> None:
    global _session
    with contextlib.suppress(OSError, AttributeError):  # Linux: end with the parent
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    signal.signal(signal.SIGUSR2, _hear)
    import jax
    from jax._src import distributed  # the key-value store has no public name

    # Its handler of SIGTERM would take the place of the one that ends the run.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            wanted.coordinator,
            wanted.num_processes,
            wanted.process_id,
            initialization_timeout=3 * wanted.timeout,
            heartbeat_timeout_seconds=wanted.timeout,
            shutdown_timeout_seconds=wanted.timeout,
        )
    except (ValueError, RuntimeError) as error:
        message = f"--distributed: {error}"
        if "start RPC server" in message:
            message = f"--coordinator={wanted.coordinator}: its port is taken; give another"
        elif "coordinator_address" in message:
            message = (
                "--distributed: no Slurm, TPU pod or Open MPI here; give --coordinator=HOST:PORT, "
                "--num_processes and --process_id"
            )
        raise contract.CallError(message) from error
    state = distributed.global_state
    _session = _Session(state.process_id, state.num_processes, state.client, wanted.timeout)
    with os.fdopen(int(os.environ.pop(_PIPE)), "w") as pipe:
        pipe.write(f"{state.process_id} {state.num_processes}")
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # what there is to read, process 0 prints


def _hear(number: int, frame: Any) -> None:
    """Take SIGTERM as the parent passes it on, once with any that waits already."""
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _leave(message: str) -> NoReturn:
    """End at once: the others are somewhere else in the run, and nothing is to be waited for."""
    print(f"error: --distributed: {' '.join(message.split())}", file=sys.stderr, flush=True)
    os._exit(GONE)


def _supervise(wanted: Hosts) -> int:
    reading, writing = os.pipe()
    # Blocked in the child for good: a scheduler sends SIGTERM to every process of a job, and with
    # what is passed on the child would hear it twice.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env={**os.environ, _PIPE: str(writing)},
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        pass_fds=(writing,),
        process_group=0,  # a terminal's interrupt comes through this process alone
    )
    os.close(writing)
    passed_on = []

    def pass_on(number, frame):
        passed_on.append(number)
        child.send_signal(signal.SIGUSR2 if number == signal.SIGTERM else number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    withheld = []
    relay = threading.Thread(target=_relay, args=(child.stderr, withheld), daemon=True)
    relay.start()
    status = child.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    relay.join(timeout=5)
    with os.fdopen(reading) as pipe:
        joined = [int(number) for number in pipe.read().split()]
    if status >= 0:
        return status
    if passed_on:  # that ended it, or made it leave the others, for which JAX aborts it
        return 128 + passed_on[-1]
    message, code = _last_line(wanted, -status, joined, "".join(withheld))
    print(f"error: --distributed: {message}", file=sys.stderr, flush=True)
    return code


def _relay(lines, withheld: list[str]) -> None:
    """Pass on what the child says, but for what jaxlib says when it gives up."""
    for line in lines:
        if withheld or _LAST_WORDS.match(line):
            withheld.append(line)
        else:
            print(line, end="", file=sys.stderr, flush=True)


def _last_line(wanted: Hosts, number: int, joined: list[int], words: str) -> tuple[str, int]:
    """Return the reason of the child's death by a signal, and the exit status."""
    if not joined:
        if wanted.process_id == 0:
            which = f"not all of {wanted.num_processes} processes came"
        else:
            which = f"the coordinator {wanted.coordinator or ''} was not reached"
        return f"{which} within {3 * wanted.timeout} s; start all of them, with the same flags", 2
    mend = "call again with --resume on all hosts"
    this, count = joined
    if found := _UNHEALTHY.search(words):
        gone = [int(process) for process in re.findall(r"\d+", found[1])]
        named = ", ".join(map(str, gone))
        verb = "processes {} of {} are gone" if len(gone) > 1 else "process {} of {} is gone"
        return f"{verb.format(named, count)}; {mend}", GONE
    if number == signal.SIGABRT and words:
        if this == 0:
            return f"another of the {count} processes has ended too early; {mend}", GONE
        return f"process 0 of {count}, the coordinator, is gone; {mend}", GONE
    died = f"process {this} of {count} died by {signal.Signals(number).name}"
    return f"{died}; {mend}", GONE
