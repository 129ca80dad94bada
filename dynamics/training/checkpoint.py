"""Trajectories that survive being killed: recorded in chunks, each saved by orbax when it ends.

A directory holds `run.json` (what the run is), `measurements_<chunk>` for every chunk and
`state_<chunk>` for the last two. Orbax writes beside and renames; a digest over all its files,
written after that, tells a torn one from a whole one before orbax reads it.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint

from dynamics import arguments
from dynamics.training import agreement, trajectory

KEPT_STATES = 2  # the newest, and the one before in case the newest is torn
Stop = Callable[[], bool]
Observe = Callable[[Any, Any], None]  # (times, measurements) of a chunk


class Interrupted(RuntimeError):
    """A run was asked to stop and did, after saving a chunk; the same call goes on from there."""


class WrongDirectoryError(ValueError):
    """A directory that holds another run, other files, a damaged note, or is in use."""


class NotSavedError(OSError):
    """A chunk that could not be saved (a full disk, no permission); those before it are there."""


def record_in_chunks(
    step: trajectory.Step,
    state: Any,
    measure: Callable[..., Any],
    *,
    times: Any,
    directory: str | os.PathLike[str],
    chunk_size: int,
    memory: Any = None,
    fingerprint: str = "",
    stop: Stop | None = None,
    observe: Observe | None = None,
) -> tuple[Any, ...]:
    """Return what `trajectory.record_with_state` returns, saving every `chunk_size` times.

    Called again with the same arguments after being killed at any moment, it goes on from the last
    chunk that is whole and ends in the same bits as an uninterrupted run on the same machine. A
    finished run is read back without any training. It compiles once, and once more if the last
    chunk is shorter. Arrays come back on the default device. Of several processes, which all make
    the same call, the first keeps the chunks, and all stop if any of them is asked to.

    Args:
        step: As in `trajectory.record`.
        state: As in `trajectory.record`; typed keys are saved as their numbers.
        measure: As in `trajectory.record`.
        times: (T,) strictly increasing non-negative integers.
        directory: Where the chunks go: empty, absent, or that of this very run.
        chunk_size: Times in a chunk; what a crash can cost, against 30 ms and one copy of the
            state on disk.
        memory: As in `trajectory.record`.
        fingerprint: Whatever else makes the run what it is (loss, optimiser, data), as
            text. Times, chunk size, the given state and memory, and all shapes are compared anyway.
        stop: Asked after each chunk but the last; True ends the run there (a job that is to be
            preempted, for example).
        observe: Told `(times, measurements)` of each chunk when it is saved; not of those that
            were saved before.

    Raises:
        ValueError: `chunk_size` is not positive; `times` is wrong; as a WrongDirectoryError:
            `directory` belongs to another run, holds other files, or is in use by another process.
        NotSavedError: `directory` cannot be written.
        Interrupted: `stop` returned True.
    """
    arguments.functions(step=step, measure=measure)
    arguments.functions(
        **{k: f for k, f in (("stop", stop), ("observe", observe)) if f is not None}
    )
    arguments.pytrees(state=state, memory=memory)
    arguments.records((str, os.PathLike), directory=directory)
    arguments.records(str, fingerprint=fingerprint)
    arguments.counts(chunk_size=chunk_size)

    def advance(carry: Any, since: Any) -> tuple[Any, Any]:
        found = trajectory.record_with_state(step, carry[0], measure, times=since, memory=carry[1])
        return found[0], (found[1], None if memory is None else found[2])

    carry = jax.tree.map(settled, (state, memory))
    measured = jax.eval_shape(measure, *(carry if memory is not None else carry[:1]))
    stacked, after = advance_in_chunks(
        advance,
        carry,
        measured if memory is None else measured[0],
        times=times,
        directory=directory,
        chunk_size=chunk_size,
        fingerprint=fingerprint,
        stop=stop,
        observe=observe,
    )
    return (stacked, after[0]) if memory is None else (stacked, *after)


def advance_in_chunks(
    advance: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    one_measurement: Any,
    *,
    times: Any,
    directory: str | os.PathLike[str],
    chunk_size: int,
    axis: int = 0,
    fingerprint: str = "",
    stop: Stop | None = None,
    observe: Observe | None = None,
) -> tuple[Any, Any]:
    """Return `(measurements, carry)` of any run that can be cut at its times, saving each chunk.

    Args:
        advance: `advance(carry, times since the carry) -> (measurements, carry)`.
        carry: Arrays at time 0.
        one_measurement: Shapes and types of the measurements of one time.
        times: As in `record_in_chunks`, and so on:
        directory: The same.
        chunk_size: The same.
        axis: The axis of times in the measurements.
        fingerprint: The same.
        stop: The same.
        observe: The same.

    Raises:
        ValueError: As `record_in_chunks`.
        NotSavedError: The same.
        Interrupted: `stop` returned True.
    """
    times = np.asarray(trajectory.checked_times(times))
    carry = jax.tree.map(settled, carry)
    chunks = [times[begin : begin + chunk_size] for begin in range(0, len(times), chunk_size)]
    folder = Path(directory).absolute()
    identity = {
        "times": digest(times),
        "chunk_size": chunk_size,
        "state and memory": digest(carry),
        "measurements": str(
            jax.tree.map(lambda leaf: f"{leaf.dtype}{leaf.shape}", one_measurement)
        ),
        "fingerprint": fingerprint,
    }
    shapes = [_stacked(one_measurement, len(chunk), axis) for chunk in chunks]
    with contextlib.ExitStack() as held:
        done = 0
        saved: list[Any] = []
        with agreement.first_process_succeeds() as keeps:  # of several it keeps everything
            if keeps:
                held.enter_context(_claimed(folder, identity))
                done, carry, saved = _resumed(folder, carry, shapes)
        done, carry, saved = _agreed(done, carry, saved, shapes)
        for index in range(done, len(chunks)):
            offset = chunks[index - 1][-1] if index else 0
            measurements, carry = advance(carry, chunks[index] - offset)
            saved.append(jax.tree.map(settled, measurements))
            if keeps:
                with _writing(folder):
                    _save(folder / f"measurements_{index:06}", saved[-1])
                    _save(folder / f"state_{index:06}", carry)
                _remove(folder / f"state_{index - KEPT_STATES:06}")
            if keeps and observe is not None:
                observe(chunks[index], saved[-1])
            if index + 1 < len(chunks) and agreement.any_process(stop is not None and stop()):
                message = f"stopped at step {chunks[index][-1]} of {times[-1]}; all of it is saved"
                raise Interrupted(message)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=axis), *saved), carry


def _resumed(folder: Path, start: Any, shapes: list[Any]) -> tuple[int, Any, list[Any]]:
    """Return the number of whole chunks, the state after them, and their measurements."""
    saved = []
    for index, shape in enumerate(shapes):
        part = _load(folder / f"measurements_{index:06}", shape)
        if part is None:
            break
        saved.append(part[0])
    done, carry = len(saved), None
    while done and (carry := _load(folder / f"state_{done - 1:06}", start)) is None:
        done -= 1
    for path in list(folder.iterdir()):  # torn, unfinished or beyond what is whole
        number = path.name.rpartition("_")[2]
        if path.is_dir() and not (number.isdigit() and int(number) < done):
            _remove(path)
    return done, start if carry is None else carry[0], saved[:done]


def _agreed(
    done: int, carry: Any, saved: list[Any], shapes: list[Any]
) -> tuple[int, Any, list[Any]]:
    """Return what process 0 has resumed, in every process."""
    if jax.process_count() == 1:
        return done, carry, saved
    done = int(agreement.of_first_process([np.array(done)])[0])
    blank = lambda shape: np.zeros(_plain_shape(shape).shape, _plain_shape(shape).dtype)
    mine = (carry, saved or jax.tree.map(blank, shapes[:done]))
    like, structure = jax.tree.flatten((carry, shapes[:done]))
    found = agreement.of_first_process(_arrays(mine))
    return done, *jax.tree.unflatten(structure, map(_revived, found, like))


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn what fails in writing below the folder, by Python or by orbax, into one error."""
    try:
        yield
    except WrongDirectoryError:
        raise
    except (OSError, ValueError) as error:  # the latter is what orbax makes of a full disk
        full = "No space left" in str(error)
        why = "the disk is full" if full else f"{type(error).__name__}: {error}"
        message = f"directory={folder}: cannot be written: {why}"
        raise NotSavedError(message) from error


@contextlib.contextmanager
def _claimed(folder: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Hold the folder for this process, after seeing that it is empty or that of this run."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"directory={folder}: another process is recording into it; give another one"
            raise WrongDirectoryError(message) from None
        with _writing(folder):
            _check_identity(folder, identity)
        yield
    finally:
        os.close(handle)  # and with it the lock, as also when the process dies


def _check_identity(folder: Path, identity: dict[str, Any]) -> None:
    note = folder / "run.json"
    mend = "give an empty directory"
    if not note.exists():
        if strangers := [path.name for path in folder.iterdir() if path.name != "run.new"]:
            message = f"directory={folder}: holds other files ({strangers[0]}, ...); {mend}"
            raise WrongDirectoryError(message)
        _replace(note, json.dumps(identity, indent=1))
        return
    try:
        found = json.loads(note.read_text())
        differing = [name for name in identity if found.get(name) != identity[name]]
    except (OSError, ValueError, AttributeError):
        message = f"directory={folder}: its run.json cannot be read; {mend}"
        raise WrongDirectoryError(message) from None
    if differing:
        message = (
            f"directory={folder}: holds another run (different {', '.join(differing)}); "
            f"{mend}, or the arguments of that run"
        )
        raise WrongDirectoryError(message)


def _checkpointer() -> orbax.checkpoint.Checkpointer:
    """Return orbax for this process alone: otherwise it waits for all processes to save too."""
    here = jax.process_index()
    options = orbax.checkpoint.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix="chunks"
    )
    handler = orbax.checkpoint.StandardCheckpointHandler(multiprocessing_options=options)
    return orbax.checkpoint.Checkpointer(handler, multiprocessing_options=options)


def _save(path: Path, tree: Any) -> None:
    """Write a pytree; it counts as saved only when its digest stands beside it."""
    item = {f"{index:06}": array for index, array in enumerate(_arrays(tree)) if array.size}
    item["format"] = np.ones((), np.int32)  # orbax refuses a tree without arrays
    _remove(path)
    with _checkpointer() as writer:
        writer.save(path, item)
    _replace(_note(path), _file_digest(path))


def _load(path: Path, like: Any) -> tuple[Any] | None:
    """Return the pytree saved at `path`, in a tuple of one, or None where it is absent or torn."""
    if not _note(path).is_file() or _note(path).read_bytes() != _file_digest(path).encode():
        return None
    with _checkpointer() as reader:
        item = reader.restore(path)
    leaves, structure = jax.tree.flatten(like)
    revived = []
    for index, leaf in enumerate(leaves):
        empty = np.zeros(_plain_shape(leaf).shape, _plain_shape(leaf).dtype)
        revived.append(_revived(item[f"{index:06}"] if empty.size else empty, leaf))
    return (jax.tree.unflatten(structure, revived),)


def _stacked(one: Any, length: int, axis: int) -> Any:
    """Return the shapes of `length` measurements like `one`, stacked on `axis`."""
    repeat = lambda leaf: jnp.stack([leaf] * length, axis)
    return jax.eval_shape(lambda tree: jax.tree.map(repeat, tree), one)


def _arrays(tree: Any) -> list[Any]:
    """Return the leaves as NumPy arrays, typed keys as their numbers."""
    return [
        np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        for leaf in jax.tree.leaves(tree)
    ]


def _revived(array: Any, like: Any) -> Any:
    if _is_key(like):
        return jax.random.wrap_key_data(
            jnp.asarray(array), impl=jax.random.key_impl(jnp.empty((), like.dtype))
        )
    return jnp.asarray(array)


def settled(leaf: Any) -> Any:
    """Return a leaf as an array whose type is not weak, as it will be when read back."""
    return leaf if _is_key(leaf) else jnp.asarray(leaf, jnp.result_type(leaf))


def _plain_shape(leaf: Any) -> Any:
    return jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


def digest(tree: Any) -> str:
    """Return the SHA-256 of a pytree's structure, types, shapes and bytes; keys as numbers."""
    found = hashlib.sha256(str(jax.tree.structure(tree)).encode())
    for array in _arrays(tree):
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _file_digest(path: Path) -> str:
    found = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            found.update(f"{file.relative_to(path)} {file.stat().st_size} ".encode())
            found.update(file.read_bytes())
    return found.hexdigest()


def _note(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _replace(path: Path, text: str) -> None:
    """Write a small file so that it is either absent, old or whole."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)


def _remove(path: Path) -> None:
    _note(path).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)
