"""The verdict of a run: its checks, its controls, and the record of both."""

import math
from typing import Any

import jax
import numpy as np

from experiments import catalogue, checks, contract, execution, records


def judge(experiment: contract.Experiment, run: execution.Run) -> list[checks.Check]:
    """Return all checks of a run: preconditions, the claim, then what each control must do.

    A run with numbers that are not finite, on which the claim's own check stops with an error, has
    one precondition that says so; one where a claim check measures no finite number and none of
    the claim's own preconditions says why has it too.

    Raises:
        ValueError: a control names a check that the claim does not make, or two checks share
            a name.
    """
    main = run.parts[execution.MAIN]
    try:
        found = _checks_of(experiment, main)
        found = [_healthy(run), *_diverged(main, found), *found]
        for name, control in experiment.controls.items():
            found += _control_checks(experiment, name, control, run.parts[name])
        if isinstance(experiment, contract.TheoryCheck):
            found += [_notices(experiment, main, sign) for sign in (1, -1)]
    except _NotFiniteError as error:
        return [_healthy(run), error.check]
    names = [check.name for check in found]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        message = f"several checks are called {doubled}: give each a name of its own"
        raise ValueError(message)
    if not any(check.role == "claim" for check in found):
        message = "check() returned no check with role='claim'"
        raise ValueError(message)
    return found


def record(
    entry: catalogue.Entry, run: execution.Run, found: list[checks.Check], arrays_sha256: str
) -> dict[str, Any]:
    """Return the record of a judged run, in the schema of experiments/records.py."""
    config = run.provenance["config"]
    copied = (
        "preset seconds peak_memory_mb platform device_count precision matmul_precision versions "
        "commit doctor"
    )
    return {
        "schema": records.SCHEMA,
        "slug": entry.slug,
        "tree": entry.tree,
        "theme": entry.theme,
        "title": entry.title,
        "paper_ids": list(entry.paper_ids),
        "verdict": checks.verdict(found),
        "checks": [records.encode_check(check) for check in found],
        "config": config,
        "seed": config["seed"],
        "num_seeds": config["num_seeds"],
        "arrays_sha256": arrays_sha256,
        **{key: run.provenance[key] for key in copied.split()},
    }


def draw(experiment: contract.Experiment, run: execution.Run, figure) -> None:
    """Draw the claim's figure into a matplotlib Figure."""
    part = run.parts[execution.MAIN]
    experiment.plot(*_arguments(part), figure)


def why_not_drawn(experiment: contract.Experiment, run: execution.Run) -> str | None:
    """Return what a figure says that cannot be drawn because the run is not finite.

    None where the run is finite, or where the claim holds all the same: plot has a defect then.
    """
    where = _first_not_finite(run.parts[execution.MAIN])
    if where is None or checks.verdict(judge(experiment, run)) == "holds":
        return None
    return f"not drawn: {where}"


def _arguments(part: execution.Part) -> tuple:
    given = () if part.prediction is None else (part.prediction,)
    return (part.config, *given, part.result)


def _checks_of(experiment, part: execution.Part) -> list[checks.Check]:
    try:
        with np.errstate(all="ignore"):  # a divergence is a check that fails, not a warning
            return list(experiment.check(*_arguments(part)))
    except Exception as error:
        if (where := _first_not_finite(part)) is None:
            raise
        raise _NotFiniteError(where, error) from error


class _NotFiniteError(Exception):
    """What `check` stopped at is a run that is not finite."""

    def __init__(self, where: str, error: Exception):
        stopped = " ".join(f"{type(error).__name__}: {error}".split())
        self.check = _not_finite(f"{where}; check() stopped with {stopped}")


def _not_finite(seen: str) -> checks.Check:
    return checks.above(
        "numbers of the run that check() needs are finite",
        0,
        1,
        why=f"{seen}; lower the step, or whatever made it so",
        role="precondition",
    )


def _diverged(part: execution.Part, found: list[checks.Check]) -> list[checks.Check]:
    """Return the precondition that a run with NaNs misses if a claim check has nothing to judge.

    Infinity alone is left to the checks: it may stand for a time that never came.
    """
    if any(check.role == "precondition" and not check.passed for check in found):
        return []  # it is void already, and one of them says why
    lost = [c.name for c in found if c.role == "claim" and not math.isfinite(c.measured)]
    if not lost or (where := _first_not_finite(part, np.isnan)) is None:
        return []
    return [_not_finite(f"{where}; '{lost[0]}' measures no finite number")]


def _first_not_finite(part: execution.Part, kind: Any = lambda a: ~np.isfinite(a)) -> str | None:
    """Say which number of a part's result is the first that is not finite, by its place."""
    for name, array in part.result._asdict().items():
        bad = np.argwhere(kind(array))
        if bad.size:
            place = ", ".join(map(str, bad[0]))
            return f"{name}[{place}] of shape {array.shape} is {array[tuple(bad[0])]}"
    return None


def _control_checks(experiment, name, control: contract.Control, part) -> list[checks.Check]:
    found = {check.name: check for check in _checks_of(experiment, part)}
    if missing := sorted({*control.breaks, *control.needs} - set(found)):
        message = f"control {name!r} names checks that the claim does not make: {missing}"
        raise ValueError(message)
    needs = [
        checks.between(
            f"control '{name}': {found[need].name}",
            found[need].measured,
            found[need].lower,
            found[need].upper,
            interval=found[need].interval,
            why=found[need].why,
            role="precondition",
        )
        for need in control.needs
    ]
    breaks = [
        checks.broken(found[check], name, side, control.why)
        for check, side in control.breaks.items()
    ]
    return [*needs, *breaks]


def _notices(experiment: contract.TheoryCheck, part, sign: int) -> checks.Check:
    factor = 1 + sign * experiment.resolution
    scaled = jax.tree.map(
        lambda a: a * factor if np.issubdtype(a.dtype, np.inexact) else a, part.prediction
    )
    distorted = execution.Part(part.config, part.result, scaled)
    red = [c for c in _checks_of(experiment, distorted) if c.role == "claim" and not c.passed]
    return checks.above(
        f"claim checks that notice a prediction scaled by {factor:.12g}",
        len(red),
        1,
        why="the resolution that this theory check promises",
        role="control",
    )


def _healthy(run: execution.Run) -> checks.Check:
    diagnosis = run.provenance["doctor"]
    return checks.below(
        "probes of this machine's compiler that fail",
        len(diagnosis["failed"]),
        0,
        why=diagnosis["mend"] or "jit agrees with float64 closed forms at real sizes",
        role="precondition",
    )
