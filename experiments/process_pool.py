"""Several claims at a time in processes of this machine, each of which may die on its own."""

import collections
import concurrent.futures
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

from experiments import engines, preemption

_DIED = "its process died: killed, out of memory, or a crash in compiled code"
_POLL = 1.0  # seconds between two looks at `stop`


def in_processes(
    tasks: Sequence[engines.Task],
    jobs: int,
    *,
    retries: int = engines.RETRIES,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[engines.Outcome]:
    """Run the tasks in `jobs` processes, the longest first.

    Each process is a pool of its own, so that one that dies costs the claim it was running and no
    other. Such a claim goes on alone, from what it has kept, when the others are done: what died
    for lack of memory may then have enough.

    A process is not held to a share of the cores. On two cores, two processes with one each took a
    sixth less processor time over six claims, but the order of sums follows the number of threads:
    four of the six ended in other bits.
    """
    waiting, lost = collections.deque(engines.longest_first(tasks)), []
    running: dict = {}  # the future of each busy pool: (pool, task, start)
    told = False
    idle = [_pool() for _ in range(min(jobs, len(waiting)))]
    others = set(multiprocessing.active_children())
    try:
        while (waiting and not stop()) or running:
            while idle and waiting and not stop():
                pool, task = idle.pop(), waiting.popleft()
                start = time.perf_counter()
                running[pool.submit(_perform, task)] = pool, task, start
            if stop() and not told:  # each ends at its next checkpoint
                told = True
                for process in _started_here(others):
                    process.terminate()
            done, _ = concurrent.futures.wait(running, _POLL, concurrent.futures.FIRST_COMPLETED)
            for future in done:
                pool, task, start = running[future]
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    seconds = time.perf_counter() - start
                    if retries:
                        lost.append(task.going_on())
                        then = f"{_DIED}; it goes on alone at the end"
                        outcome = engines.Outcome(task.name, "retried", seconds, then)
                    else:
                        outcome = engines.Outcome(task.name, "crashed", seconds, _DIED)
                    pool.shutdown(wait=False)
                    pool = _pool()
                del running[future]
                idle.append(pool)
                yield outcome
    finally:
        for pool in [*idle, *(pool for pool, _, _ in running.values())]:
            pool.shutdown(wait=False, cancel_futures=True)
        if running:  # interrupted: nothing is waited for
            for process in _started_here(others):
                process.kill()
    if lost and not stop():
        yield from in_processes(lost, 1, retries=retries - 1, stop=stop)


def _perform(task: engines.Task) -> engines.Outcome:
    """Run a claim in a process of the pool, which may be asked to end."""
    with preemption.listening(to_the_first_alone=True):
        return engines.perform(task)


def _started_here(others: set) -> set:
    return set(multiprocessing.active_children()) - others


def _pool() -> concurrent.futures.ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(
        1, mp_context=context, initializer=_end_with_the_parent
    )


def _end_with_the_parent() -> None:
    """Let this process end when its parent does, be it killed: it would hold the claim's lock."""

    def wait() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()
