"""Ensembles of training runs that may take days: kept chunk by chunk, stopped and gone on with."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dynamics import arguments, parallel
from dynamics.training import checkpoint, trajectory


class Training(NamedTuple):
    """One run to record: `step(state) -> state` from `state`, seen by `measure(state)`."""

    step: Callable[[Any], Any]
    state: Any
    measure: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where a run keeps what it has done, who may stop it and who hears of it.

    Attributes:
        directory: Of this run alone; each of its ensembles has a folder of its own there.
        stop: Asked after every chunk; True ends the run with `checkpoint.Interrupted`.
        observe: Told `(name, times, measurements)` of every new chunk.
    """

    directory: Path
    stop: Callable[[], bool] = lambda: False
    observe: Callable[[str, Any, Any], None] = lambda name, times, measurements: None


def record_ensemble(
    train: Callable[[Any], Training],
    members: Any,
    *,
    times: Any,
    checkpoints: Checkpoints | None = None,
    chunk_size: int = 0,
    name: str = "training",
    fingerprint: str = "",
    engine: str = "jit",
    batching: str = "auto",
) -> tuple[Any, Any]:
    """Return `(measurements, states)` of every member: leaves (S, T, ...) and (S, ...).

    With `checkpoints` and a `chunk_size` every chunk of times is saved when it ends; called again
    with the same arguments after being stopped or killed, it goes on from there and ends in
    the bits of an uninterrupted run in the same chunks. Without either it is one program.

    Args:
        train: `train(member) -> Training`; called while tracing, so it may draw data, build a
            network and close over both. What it draws is drawn again for every chunk.
        members: As `keys` in `parallel.ensemble`.
        times: (T,) As in `trajectory.record`; the same for all members.
        checkpoints: Where to keep the chunks; None for a run that is short.
        chunk_size: Times in a chunk, 0 for no chunks: what a crash may cost.
        name: The folder of this ensemble below `checkpoints.directory`.
        fingerprint: As in `checkpoint.record_in_chunks`.
        engine: As in `parallel.ensemble`.
        batching: As in `parallel.ensemble`.

    Raises:
        ValueError: negative `chunk_size`; as `checkpoint.record_in_chunks`, `parallel.ensemble`.
        checkpoint.Interrupted: `checkpoints.stop` returned True.

    Example:
        >>> double = lambda member: Training(lambda x: 2 * x, member, lambda x: x)
        >>> print(record_ensemble(double, jax.numpy.array([1, 3]), times=[0, 1, 4])[0])
        [[ 1  2 16]
         [ 3  6 48]]
    """
    arguments.functions(train=train)
    arguments.samples(members=members)
    arguments.integers(0, chunk_size=chunk_size)
    arguments.records(str, name=name, fingerprint=fingerprint)
    times = trajectory.checked_times(times)

    def whole(member: Any, times: Any) -> tuple[Any, Any]:
        return trajectory.record_with_state(*_loop(train(member)), times=times)

    if checkpoints is None or chunk_size == 0:
        return parallel.ensemble(whole, members, shared=times, engine=engine, batching=batching)

    def part(given: Any, since: Any) -> tuple[Any, Any]:
        member, state = given
        training = train(member)._replace(state=state)
        return trajectory.record_with_state(*_loop(training), times=since)

    def advance(states: Any, since: Any) -> tuple[Any, Any]:
        given = (members, states)
        return parallel.ensemble(part, given, shared=since, engine=engine, batching=batching)

    def measured(member: Any) -> Any:
        _, state, measure = train(member)
        return measure(state)

    start = lambda member: jax.tree.map(checkpoint.settled, train(member).state)
    return checkpoint.advance_in_chunks(
        advance,
        parallel.ensemble(start, members, engine=engine, batching=batching),
        jax.eval_shape(jax.vmap(measured), members),
        times=times,
        directory=checkpoints.directory / name,
        chunk_size=chunk_size,
        axis=1,
        fingerprint=f"{fingerprint} members {checkpoint.digest(members)}",
        stop=checkpoints.stop,
        observe=lambda times, found: checkpoints.observe(name, times, found),
    )


def _loop(training: Training) -> tuple[Any, Any, Any]:
    return training.step, training.state, training.measure
