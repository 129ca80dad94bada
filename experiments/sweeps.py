"""Grids of runs: cells whose shapes are equal share one program, the others go to the engine."""

import copy
import dataclasses
import functools
import itertools
import math
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from experiments import (
    catalogue,
    contract,
    execution,
    memory,
    preemption,
    provenance,
    records,
    runner,
)

FOLDER = Path("results/sweep")  # where no other is given
Cell = Mapping[str, str]  # Config field: its value, as a flag would give it
MOST_CELLS = 100_000  # each is a folder with a record of its own
MOST_MEMBERS = 64  # configurations in one call of a shared program: memory stays bounded


def grid(sweeps: Sequence[str], seeds: str | None) -> tuple[dict[str, list[str]], list[Cell]]:
    """Return the axes `{field: values}` and every cell of their product.

    Args:
        sweeps: Texts `field=value,value,...`; a field that holds a tuple takes its values with
            ";" between them, as in `widths=64,64;128,128`.
        seeds: "FIRST:END" (END is left out, as in Python) or "1,2,3"; None for the one seed of
            the settings.

    Raises:
        contract.CallError: a text that is neither, a field or a value given twice, or no value.
    """
    axes: dict[str, list[str]] = {}
    for text in sweeps:
        field, equals, values = text.partition("=")
        found = [value.strip() for value in values.split(";" if ";" in values else ",")]
        if not equals or not all(found) or field in axes:
            message = f"--sweep={text}: give FIELD=VALUE,VALUE, each field once"
            raise contract.CallError(message)
        axes[field] = found
    if seeds is not None:
        if "seed" in axes:
            message = f"--seeds={seeds} and --sweep=seed={','.join(axes['seed'])}: give one of them"
            raise contract.CallError(message)
        axes["seed"] = [str(seed) for seed in _seeds(seeds)]
    for field, found in axes.items():
        if twice := sorted(value for value, count in Counter(found).items() if count > 1):
            message = f"--sweep={field}={','.join(found)}: {twice[0]} twice; give each value once"
            raise contract.CallError(message)
    if (cells := math.prod(map(len, axes.values()))) > MOST_CELLS:
        message = f"--sweep, --seeds: {cells} runs; give at most {MOST_CELLS}"
        raise contract.CallError(message)
    return axes, [dict(zip(axes, cell, strict=True)) for cell in itertools.product(*axes.values())]


def _seeds(text: str) -> Sequence[int]:
    first, colon, end = text.partition(":")
    try:
        found = range(int(first or 0), int(end)) if colon else [*map(int, text.split(","))]
    except ValueError:
        found = []
    if not found:
        message = f"--seeds={text}: give FIRST:END with END above FIRST, or seeds as in 1,2,3"
        raise contract.CallError(message)
    if colon and found.stop - found.start > MOST_CELLS:  # before a list is made of them
        message = f"--seeds={text}: give at most {MOST_CELLS} of them"
        raise contract.CallError(message)
    return found


def settings_of(cell: Cell, settings: runner.Settings) -> runner.Settings:
    """Return the settings of one cell: its overrides, in a folder of its own."""
    name = ",".join(f"{field}={value}" for field, value in cell.items())
    out = (settings.out or FOLDER) / name.replace("%", "%25").replace("/", "%2F")
    overrides = {**settings.overrides, **cell}
    # What the same code has finished from the same configuration is taken as it is.
    return dataclasses.replace(settings, overrides=overrides, out=out, resume=True)


def compute_together(entry: catalogue.Entry, cells: Sequence[runner.Settings]) -> tuple[int, int]:
    """Compute all parts of all cells that can share a program, and leave them in the cells.

    Parts whose configurations differ in numbers alone (fields of type float, and the seed) have
    equal shapes: they become members of one ensemble, with those numbers traced. A claim that
    needs one of them while its program is built (a loop length, a branch, a routine of NumPy)
    says so by an error, and its parts are then left to the engine.

    Returns:
        How many programs were shared, and how many parts they computed.

    Raises:
        contract.CallError: a cell's folder cannot be written.
    """
    experiment = runner.in_precision(catalogue.load(entry), cells[0])
    landing = _missing(experiment, entry, cells)
    groups: dict[tuple, list[Any]] = {}
    for config in landing:
        groups.setdefault(_static(config), []).append(config)
    programs = parts = 0
    for group in groups.values():
        if len(group) < 2 or preemption.asked():
            continue
        found = _ensemble(experiment, group)
        programs, parts = programs + bool(found), parts + len(found)
        for part, cost in found:
            for place in landing[part.config]:
                execution.land_part(part, cost, *place)
    return programs, parts


def _missing(
    experiment: contract.Experiment, entry: catalogue.Entry, cells: Sequence[runner.Settings]
) -> dict[Any, list[tuple[Path, str]]]:
    """Return every configuration that is still to be run, and the places where its part lands."""
    landing: dict[Any, list[tuple[Path, str]]] = {}
    for settings in cells:
        paths = records.Paths(settings.folder(), entry.tree, entry.theme, entry.slug)
        config = experiment.configure(settings.preset, settings.overrides)
        if runner.finished(experiment, config, settings, paths) is not None:
            continue
        for name, part in execution.configurations(experiment, config).items():
            place = execution.part_file(experiment, part, name, settings.preset, paths)
            if execution.saved_part(experiment, part, *place) is None:
                records.require_writable(paths)  # before hours of work, not after them
                landing.setdefault(part, []).append(place)
    return landing


def _numbers(config: Any) -> list[str]:
    """Return the fields that may be traced: floats, tuples of floats, the seed."""
    hints = typing.get_type_hints(type(config))
    floats = (float, tuple[float, ...])
    return [name for name, kind in hints.items() if kind in floats or name == "seed"]


def _static(config: Any) -> tuple:
    """Return all that decides shapes and program: other fields, and how long tuples are."""
    numbers = set(_numbers(config))
    return tuple(
        (name, value if name not in numbers else np.shape(value))
        for name, value in dataclasses.asdict(config).items()
    )


def _ensemble(experiment: contract.Experiment, configs: list[Any]) -> list[tuple[Any, dict]]:
    """Return `(part, cost)` of every configuration, or none where they cannot be traced."""
    varying = [
        name for name in _numbers(configs[0]) if len({getattr(c, name) for c in configs}) > 1
    ]
    run = functools.partial(_traced_run, experiment, configs[0])
    wide = experiment.precision == "float64"
    watch = provenance.Stopwatch()
    padding = -len(configs) % min(MOST_MEMBERS, len(configs))
    padded = [*configs, *configs[:1] * padding]
    held = memory.held_to_the_machine(jax.default_backend())  # too many at once: each alone then
    with held, jax.enable_x64(wide), jax.default_matmul_precision(execution.MATMUL_PRECISION):
        values = {name: jnp.asarray([getattr(c, name) for c in padded]) for name in varying}
        try:
            jax.eval_shape(run, jax.tree.map(lambda leaf: leaf[0], values))
            with watch.watch():
                blocks = -(-len(configs) // MOST_MEMBERS)
                split = {name: jnp.split(value, blocks) for name, value in values.items()}
                of_block = lambda block: {name: value[block] for name, value in split.items()}
                found = [
                    jax.device_get(parallel.ensemble(run, of_block(block)))
                    for block in range(blocks)
                ]
        except Exception:  # whatever it is, each of them run alone will say it again
            return []
    cost = {key: value / len(configs) for key, value in watch.seconds().items()}
    cost["peak_memory_mb"] = provenance.peak_memory_mb()
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)
    member = lambda index: jax.tree.map(lambda leaf: np.asarray(leaf[index]), joined)
    return [(execution.Part(c, *member(i)), cost) for i, c in enumerate(configs)]


def _traced_run(experiment: contract.Experiment, config: Any, values: Mapping[str, Any]) -> Any:
    """Return the result and the prediction of `config` with some numbers that are traced."""
    traced = copy.copy(config)
    for name, value in values.items():
        plain = isinstance(getattr(config, name), tuple)  # checked then, when it was plain numbers
        object.__setattr__(traced, name, tuple(value) if plain else value)
    as_arrays: Callable[[Any], Any] = lambda named: jax.tree.map(jnp.asarray, named)
    result = as_arrays(experiment.run(traced))
    if isinstance(experiment, contract.TheoryCheck):
        return result, as_arrays(experiment.predict(traced))
    return result, None
