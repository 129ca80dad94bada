"""What a sweep found: one table and one figure for each claim, made from the cells' records."""

import itertools
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import catalogue, contract, engines, plotting, records

MOST_PANELS = 8  # claim checks drawn; the table holds all of them
Record = dict[str, Any] | None  # None: the cell has none, it crashed or is still to run
_WITH_RECORD = ("holds", "fails", "void")


def summarise(
    entry: catalogue.Entry,
    axes: Mapping[str, Sequence[str]],
    cells: Sequence[Mapping[str, str]],
    folders: Sequence[Path],
    outcomes: Sequence[engines.Outcome | None],
    out: Path,
) -> tuple[Path, Path]:
    """Write `<slug>.sweep.json` and `<slug>.sweep.png` below `out`; return their paths.

    A cell whose outcome is no verdict (None for one that is still to run) is shown without numbers,
    whatever record an earlier grid has left in its folder.
    """
    found = [
        _record(entry, folder) if outcome and outcome.verdict in _WITH_RECORD else None
        for folder, outcome in zip(folders, outcomes, strict=True)
    ]
    verdicts = [outcome and outcome.verdict for outcome in outcomes]
    paths = records.Paths(out, entry.tree, entry.theme, entry.slug)
    table = paths.folder / f"{entry.slug}.sweep.json"
    figure = table.with_suffix(".png")
    rows = [
        {
            "settings": dict(cell),
            "verdict": outcome and outcome.verdict,
            "remark": outcome and outcome.remark,
            "checks": record and record["checks"],
            "seconds": record and record["seconds"]["total"],
            "folder": folder.name,
        }
        for cell, outcome, record, folder in zip(cells, outcomes, found, folders, strict=True)
    ]
    content = {"schema": 1, "claim": entry.name, "axes": {**axes}, "cells": rows}
    records.write_atomically(table, (json.dumps(content, indent=1) + "\n").encode())
    draw = lambda canvas: _draw(entry, axes, cells, found, verdicts, canvas)
    records.write_atomically(figure, plotting.render_png(draw))
    return table, figure


def _record(entry: catalogue.Entry, folder: Path) -> Record:
    try:
        return records.load_record(
            records.Paths(folder, entry.tree, entry.theme, entry.slug).record
        )
    except contract.CallError:
        return None


def _draw(entry, axes, cells, found, verdicts, figure) -> None:
    """Draw each claim check over the first axis, a colour for every setting of the others."""
    across = [name for name in axes if name != "seed"] or ["seed"]
    names = _claim_checks(found)
    columns = min(3, len(names) + 1)
    height = -(-(len(names) + 1) // columns)
    figure.set_size_inches(2.6 * columns, 2.2 * height + 0.4)
    panels = figure.subplots(height, columns, squeeze=False).ravel()
    places, labels = _places(axes[across[0]])
    lines = list(itertools.product(*(axes[name] for name in across[1:])))
    for index, line in enumerate(lines):
        settings = [(value, *line) for value in axes[across[0]]]
        rows = [_chosen(across, values, cells, found) for values in settings]
        label = ", ".join(f"{n}={v}" for n, v in zip(across[1:], line, strict=True)) or None
        style = {"color": plotting.COLOURS[index % 8], "marker": plotting.MARKERS[index % 8]}
        ends = [_chosen(across, values, cells, verdicts) for values in settings]
        holds = [_mean([verdict == "holds" for verdict in row]) for row in ends]
        panels[0].plot(places, holds, label=label, **style)
        for panel, name in zip(panels[1:], names, strict=False):
            values = [[_measured(record, name) for record in row if record] for row in rows]
            low, middle, high = (np.array([f(v) for v in values]) for f in (_low, _mean, _high))
            panel.errorbar(places, middle, [middle - low, high - middle], capsize=2, **style)
    panels[0].set(ylabel="share of runs that hold", ylim=(-0.05, 1.05))
    for panel, name in zip(panels[1:], names, strict=False):
        for bound in _bounds(found, name):
            plotting.threshold(panel, bound)
        panel.set_title("\n".join(textwrap.wrap(name, 44)[:2]), fontsize=6.5)
        values = [_measured(record, name) for record in found if record]
        values = _finite([*values, *_bounds(found, name)])
        if values.min() > 0 and values.max() / values.min() > 50:
            panel.set_yscale("log")
    for panel in panels[: len(names) + 1]:
        panel.set_xlabel(across[0])
        if labels is not None:
            panel.set_xticks(places, labels)
        elif places.min() > 0 and places.max() / places.min() > 8:
            panel.set_xscale("log")
    for panel in panels[len(names) + 1 :]:
        panel.set_axis_off()
    if lines != [()]:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    title = f"{entry.slug}: dotted lines are the bounds of the checks"
    if without := sum(verdict not in _WITH_RECORD for verdict in verdicts):
        title += f"\n{without} of {len(verdicts)} runs have no verdict, and count as not holding"
    figure.suptitle(title, fontsize=8)


def _claim_checks(found: Sequence[Record]) -> list[str]:
    """Return the names of the claim checks of all records, in their order."""
    names = [c["name"] for record in found if record for c in record["checks"]
             if c["role"] == "claim"]  # fmt: skip
    return list(dict.fromkeys(names))[:MOST_PANELS]


def _places(values: Sequence[str]) -> tuple[np.ndarray, list[str] | None]:
    """Return where values stand on an axis: at themselves if numbers, else in order with labels."""
    try:
        return np.array([float(value) for value in values]), None
    except ValueError:
        return np.arange(len(values)), list(values)


def _chosen(names, values, cells, found) -> list[Any]:
    """Return what was found in the cells, over seeds, in which the fields have these values."""
    wanted = dict(zip(names, values, strict=True))
    return [
        one
        for cell, one in zip(cells, found, strict=True)
        if all(cell[name] == value for name, value in wanted.items())
    ]


def _measured(record: dict[str, Any], name: str) -> float:
    measured = [check["measured"] for check in record["checks"] if check["name"] == name]
    return float("nan") if not measured or measured[0] is None else measured[0]


def _bounds(found: Sequence[Record], name: str) -> set[float]:
    checks = [c for record in found if record for c in record["checks"] if c["name"] == name]
    bounds = {check[side] for check in checks for side in ("lower", "upper")}
    return {bound for bound in bounds if bound is not None}


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    kept = array[np.isfinite(array)]
    return kept if kept.size else np.array([np.nan])


def _mean(values: Sequence[float]) -> float:
    return float(_finite(values).mean())


def _low(values: Sequence[float]) -> float:
    return float(_finite(values).min())


def _high(values: Sequence[float]) -> float:
    return float(_finite(values).max())
