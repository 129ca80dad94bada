"""Running a claim: its parts, their saved arrays, and what is needed to judge them later."""

import dataclasses
import hashlib
import inspect
import json
import os
import shutil
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dynamics import long_runs
from dynamics.training import agreement, checkpoint
from experiments import (
    catalogue,
    contract,
    distributed,
    doctor,
    memory,
    preemption,
    program_cache,
    provenance,
    records,
)

MATMUL_PRECISION = "highest"  # on every platform; accelerators would round products otherwise
Observe = Callable[[str, Any, Any], None]  # (name, times, measurements) of a chunk
MAIN = "main"  # the part that is the claim itself; the others are its controls
_NO_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory")  # as XLA's errors say it


@dataclasses.dataclass(frozen=True)
class Part:
    """One run of the claim: itself, or one of its controls."""

    config: Any
    result: Any
    prediction: Any | None


@dataclasses.dataclass(frozen=True)
class Run:
    """All parts of a claim, and where they came from (a dict that JSON can hold)."""

    parts: Mapping[str, Part]
    provenance: Mapping[str, Any]


def cache_directory() -> Path:
    """Return the folder for compiled programs and the doctor's word; it may be deleted."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TRAINING_DYNAMICS_CACHE") or Path(base) / "training-dynamics")


def prepare_jax() -> None:
    """Let JAX keep its compiled programs between processes."""
    program_cache.keep(cache_directory() / "compiled")


def compute(
    experiment: contract.Experiment,
    entry: catalogue.Entry,
    config,
    *,
    preset: str,
    paths: records.Paths,
    resume: bool,
    announce: Callable[[str], None],
    observe: Callable[[str], Observe] = lambda part: lambda name, times, measurements: None,
) -> Run:
    """Return the claim's run, computed part by part.

    Each finished part lands in `paths.parts`, and each chunk of a part that keeps checkpoints;
    with `resume`, those that the same code has computed from the same configuration are taken
    from there. `announce` hears each part's name, `observe(part)` the chunks of a part.
    Of several processes the first has all parts, the others those that were computed now.

    Raises:
        contract.CallError: not enough memory, or a folder that cannot be written.
        preemption.Preempted: the process was asked to end.
    """
    diagnosis = distributed.worst(doctor.as_record(doctor.cached(cache_directory())))
    if not resume and distributed.is_first():
        shutil.rmtree(paths.parts, ignore_errors=True)
    parts, costs = {}, []
    for name, part_config in configurations(experiment, config).items():
        announce(name)
        place = part_file(experiment, part_config, name, preset, paths)
        saved = None
        if resume and distributed.is_first():
            saved = saved_part(experiment, part_config, *place)
        if distributed.decided(lambda saved=saved: saved is None):
            if agreement.any_process(preemption.asked()):
                raise preemption.Preempted(_how_far(len(parts), experiment))
            try:
                saved = _measured_part(experiment, part_config, place, observe(name))
            except checkpoint.Interrupted as error:
                how_far = f"{_how_far(len(parts), experiment)}; of the next one {error}"
                raise preemption.Preempted(how_far) from error
        if saved is not None:
            parts[name] = saved[0]
            costs.append(saved[1])
    origin = {
        "config": records.plain(dataclasses.asdict(config)),
        "preset": preset,
        "seconds": {
            key: round(sum(cost[key] for cost in costs), 3) for key in ("compile", "run", "total")
        },
        "peak_memory_mb": max((cost["peak_memory_mb"] for cost in costs), default=0.0),
        **provenance.machine(),
        "precision": experiment.precision,
        "matmul_precision": MATMUL_PRECISION,
        "versions": provenance.versions(),
        "commit": provenance.commit(catalogue.ROOT),
        "source_sha256": provenance.source_digest(catalogue.ROOT),
        "doctor": diagnosis,
    }
    return Run(parts, origin)


def _measured_part(
    experiment: contract.Experiment, config, place: tuple[Path, str], observe: Observe
) -> tuple[Part, dict]:
    """Compute a part, keep it, and return it with the seconds and memory that it took."""
    path, fingerprint = place
    folder = path.with_suffix(f".{fingerprint[:16]}")
    kept = long_runs.Checkpoints(folder, preemption.asked, observe)
    watch = provenance.Stopwatch()
    with watch.watch():
        part = distributed.together(lambda: compute_part(experiment, config, kept))
    cost = {**watch.seconds(), "peak_memory_mb": provenance.peak_memory_mb()}
    distributed.decided(lambda: land_part(part, cost, path, fingerprint))
    shutil.rmtree(folder, ignore_errors=True)
    return part, cost


def part_file(
    experiment: contract.Experiment, config, name: str, preset: str, paths: records.Paths
) -> tuple[Path, str]:
    """Return where a finished part lands, and the fingerprint of all that makes it what it is."""
    identity = (
        dataclasses.asdict(config),
        preset,
        experiment.precision,
        jax.device_count(),
        provenance.versions(),
        provenance.source_digest(catalogue.ROOT),
    )
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return paths.parts / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.npz", fingerprint


def land_part(part: Part, cost: Mapping[str, float], path: Path, fingerprint: str) -> None:
    """Keep a finished part, and the seconds and memory it took, for a run with `resume`."""
    origin = {"fingerprint": fingerprint, "cost": dict(cost)}
    records.save_arrays(path, _flatten(part), origin)


def _how_far(done: int, experiment: contract.Experiment) -> str:
    return f"{done} of {1 + len(experiment.controls)} parts are kept; call again with --resume"


def configurations(experiment: contract.Experiment, config) -> dict[str, Any]:
    """Return the configuration of every part: the claim's own, then each control's."""
    controls = {
        name: contract.with_overrides(config, control.overrides)
        for name, control in experiment.controls.items()
    }
    return {MAIN: config, **controls}


def compute_part(
    experiment: contract.Experiment, config, kept: long_runs.Checkpoints | None = None
) -> Part:
    """Run the claim once, in its precision, and bring its arrays to the host as numpy.

    A claim whose `run` takes `checkpoints` is given `kept`.

    Raises:
        contract.CallError: the device ran out of memory, or its checkpoints cannot be kept or read.
        checkpoint.Interrupted: the run was asked to stop, after it saved a checkpoint.
    """
    wide = experiment.precision == "float64"
    keeps = "checkpoints" in inspect.signature(experiment.run).parameters
    arguments = {"checkpoints": kept} if keeps else {}
    held = memory.held_to_the_machine(jax.default_backend())
    try:
        with held, jax.enable_x64(wide), jax.default_matmul_precision(MATMUL_PRECISION):
            prediction = None
            if isinstance(experiment, contract.TheoryCheck):
                prediction = _to_host(experiment.predict(config))
            return Part(config, _to_host(experiment.run(config, **arguments)), prediction)
    except checkpoint.NotSavedError as error:
        message = f"--out: {error}; what was saved before is there for --resume"
        raise contract.CallError(message) from error
    except checkpoint.WrongDirectoryError as error:
        message = f"--resume: {error}; or call without --resume"
        raise contract.CallError(message) from error
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in _NO_MEMORY):
            message = (
                f"--num_seeds={config.num_seeds}: this machine's memory does not hold the run; "
                "lower it, or the sizes in the configuration"
            )
            raise contract.CallError(message) from error
        raise


def save(run: Run, path: Path) -> str:
    """Land the arrays of all parts in one file; return their digest."""
    arrays = {
        f"{name}/{key}": array
        for name, part in run.parts.items()
        for key, array in _flatten(part).items()
    }
    return records.save_arrays(path, arrays, run.provenance)


def load(experiment: contract.Experiment, path: Path) -> Run:
    """Return a saved run.

    Raises:
        contract.CallError: unreadable arrays, or arrays of another version of the claim.
    """
    arrays, origin = records.load_arrays(path)
    mend = "run it again with --stage=all"
    try:
        config = contract.with_overrides(experiment.config(), origin["config"])
        parts = {
            name: _unflatten(experiment, part_config, arrays, f"{name}/")
            for name, part_config in configurations(experiment, config).items()
        }
    except (KeyError, TypeError, contract.CallError) as error:
        message = f"--stage: {path} was saved by another version of this claim ({error}); {mend}"
        raise contract.CallError(message) from error
    return Run(parts, origin)


def saved_part(experiment, config, path: Path, fingerprint: str) -> tuple[Part, dict] | None:
    """Return a finished part and what it took, if it is the one that `fingerprint` names."""
    try:
        arrays, origin = records.load_arrays(path)
        if origin.get("fingerprint") != fingerprint:
            return None
        return _unflatten(experiment, config, arrays, ""), origin["cost"]
    except (contract.CallError, KeyError):
        return None


def _flatten(part: Part) -> dict[str, np.ndarray]:
    pieces = {"result": part.result, "prediction": part.prediction}
    return {
        f"{piece}/{field}": array
        for piece, value in pieces.items()
        if value is not None
        for field, array in value._asdict().items()
    }


def _unflatten(experiment, config, arrays: Mapping[str, np.ndarray], prefix: str) -> Part:
    def rebuild(kind: type, piece: str):
        return kind(**{field: arrays[f"{prefix}{piece}/{field}"] for field in kind._fields})

    prediction = None
    if isinstance(experiment, contract.TheoryCheck):
        prediction = rebuild(returned_type(experiment.predict), "prediction")
    return Part(config, rebuild(returned_type(experiment.run), "result"), prediction)


def returned_type(function: Callable) -> type:
    """Return the NamedTuple that `function` declares as what it returns.

    Raises:
        TypeError: it declares none.
    """
    kind = typing.get_type_hints(function).get("return")
    if not hasattr(kind, "_fields"):
        message = f"{function.__name__} must declare `-> ` the NamedTuple of arrays it returns"
        raise TypeError(message)
    return kind


def _to_host(value):
    if not hasattr(value, "_asdict"):
        message = f"a claim returns a NamedTuple of arrays, not {type(value).__name__}"
        raise TypeError(message)
    jax.block_until_ready(value)  # raises what failed; np.asarray of a failed array would abort
    arrays = {field: np.asarray(array) for field, array in value._asdict().items()}
    if bad := [field for field, array in arrays.items() if array.dtype.kind not in "biufc"]:
        message = f"{type(value).__name__}.{', '.join(bad)}: every field is one array of numbers"
        raise TypeError(message)
    return type(value)(**arrays)
