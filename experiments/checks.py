"""Checks: a measured number, the bounds it must keep, and why they are what they are."""

import dataclasses
import math
from typing import Literal

import numpy as np

Role = Literal["claim", "control", "precondition"]
ROLES = ("claim", "control", "precondition")


@dataclasses.dataclass(frozen=True)
class Check:
    """One assertion of a claim; it passes or fails by what it holds alone.

    Attributes:
        name: what is measured; the same for every configuration, so that records compare.
        role: "claim", "control" (must hold too) or "precondition" (if not, the verdict is void).
        measured: the number judged; NaN or infinity fails.
        lower: smallest value allowed, -inf where there is none.
        upper: largest value allowed, inf where there is none.
        interval: where given, the whole of it must lie inside the bounds as well.
        why: the reason for the bounds.
    """

    name: str
    role: Role
    measured: float
    lower: float
    upper: float
    interval: tuple[float, float] | None
    why: str

    def __post_init__(self):
        if self.role not in ROLES:
            message = f"role={self.role!r}: a check is one of {', '.join(ROLES)}"
            raise ValueError(message)
        if not self.why:
            message = f"why='' in check {self.name!r}: say where the bounds come from"
            raise ValueError(message)
        if math.isnan(self.lower) or math.isnan(self.upper) or self.lower > self.upper:
            message = f"check {self.name!r}: bounds [{self.lower}, {self.upper}] hold no number"
            raise ValueError(message)
        if self.lower == -math.inf and self.upper == math.inf:
            message = f"check {self.name!r} has no bound: a check that cannot fail is a defect"
            raise ValueError(message)

    @property
    def passed(self) -> bool:
        """Whether the measured value and the whole interval are finite and inside the bounds."""
        values = (self.measured, *(self.interval or ()))
        return all(math.isfinite(v) and self.lower <= v <= self.upper for v in values)


def between(name, measured, lower, upper, *, why, interval=None, role: Role = "claim") -> Check:
    """Return the check lower <= measured <= upper (and the same for the whole `interval`)."""
    return Check(
        name=name,
        role=role,
        measured=float(measured),
        lower=float(lower),
        upper=float(upper),
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
        why=why,
    )


def above(name, measured, lower, *, why, interval=None, role: Role = "claim") -> Check:
    """Return the check measured >= lower."""
    return between(name, measured, lower, math.inf, why=why, interval=interval, role=role)


def below(name, measured, upper, *, why, interval=None, role: Role = "claim") -> Check:
    """Return the check measured <= upper."""
    return between(name, measured, -math.inf, upper, why=why, interval=interval, role=role)


def close(
    name, measured, target, *, atol=0.0, rtol=0.0, why, interval=None, role: Role = "claim"
) -> Check:
    """Return the check |measured - target| <= atol + rtol |target|."""
    slack = float(atol) + float(rtol) * abs(float(target))
    target = float(target)
    return between(
        name, measured, target - slack, target + slack, why=why, interval=interval, role=role
    )


def every_seed(
    name, values, *, lower=-math.inf, upper=math.inf, why, role: Role = "claim"
) -> Check:
    """Return the check that each of `values` (one a seed) lies in [lower, upper].

    The measured value is the one nearest to breaking its bound, and the interval runs from the
    smallest to the largest, so the check passes only where every seed does.
    """
    values = np.asarray(values, dtype=float).ravel()
    if values.size == 0:
        message = f"values of check {name!r} are empty: pass one number a seed"
        raise ValueError(message)
    if not np.all(np.isfinite(values)):
        return between(name, math.nan, lower, upper, why=why, role=role)
    margin = np.minimum(values - lower, upper - values)
    interval = (values.min(), values.max())
    return between(
        name, values[np.argmin(margin)], lower, upper, why=why, interval=interval, role=role
    )


def stays_finite(name, steps, values, *, mend: str) -> Check:
    """Return the precondition that `values` (..., T), measured at `steps` (T,), stay finite.

    Measured is the last step up to which every value is finite; a failure thus names the step of
    the divergence, and `mend` says what to change.
    """
    steps = np.asarray(steps, dtype=float).ravel()
    values = np.asarray(values, dtype=float)
    if values.shape[-1] != steps.size:
        message = f"values {values.shape} of check {name!r} do not end in {steps.size} steps"
        raise ValueError(message)
    finite = np.isfinite(values).reshape(-1, steps.size).all(axis=0)
    last = steps.size if finite.all() else int(np.argmin(finite))
    measured = steps[last - 1] if last > 0 else -1.0
    why = f"the last step measured; a smaller number is the step before the divergence: {mend}"
    return above(name, measured, steps[-1], why=why, role="precondition")


def broken(check: Check, control: str, side: Literal["below", "above"], why: str) -> Check:
    """Return the control check that `check`, measured in a control run, misses its bounds.

    Args:
        check: the claim's check as it came out in the control run.
        control: the name of the control run.
        side: the side of the bounds on which the control must fall.
        why: why the mechanism is gone in that run.

    Raises:
        ValueError: the check has no bound on that side.
    """
    bound = check.lower if side == "below" else check.upper
    if not math.isfinite(bound):
        message = f"control {control!r}: check {check.name!r} has no bound to fall {side}"
        raise ValueError(message)
    if side == "below":
        lower, upper = -math.inf, np.nextafter(bound, -math.inf)
    else:
        lower, upper = np.nextafter(bound, math.inf), math.inf
    return between(
        f"control '{control}' misses '{check.name}'",
        check.measured,
        lower,
        upper,
        why=f"{why}; all of it, every seed included, must lie {side} {bound:g}",
        interval=check.interval,
        role="control",
    )


def verdict(checks: list[Check]) -> Literal["holds", "fails", "void"]:
    """Return the verdict: void if a precondition fails, else holds if every check passes."""
    if any(not check.passed for check in checks if check.role == "precondition"):
        return "void"
    return "holds" if all(check.passed for check in checks) else "fails"
