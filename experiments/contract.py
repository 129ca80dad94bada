"""What a claim is: a configuration, a pure run, its checks, its figure, its controls."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

Precision = Literal["float32", "float64"]
PRESETS = ("default", "smoke", "paper")
_SCALARS = (bool, int, float, str)


class CallError(Exception):
    """The call was wrong: one line that names argument, value and mend; exit status 2."""


@dataclasses.dataclass(frozen=True)
class Control:
    """A run in which the mechanism is taken away, so that the claim must not hold.

    Attributes:
        overrides: differences from the configuration of the claim.
        breaks: for each claim check that must fail, the side of its bounds on which the control
            falls. The value must be finite: a control that diverges shows nothing.
        why: what the overrides take away.
        needs: preconditions of the claim that must hold in the control too.
    """

    overrides: Mapping[str, Any]
    breaks: Mapping[str, Literal["below", "above"]]
    why: str
    needs: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.breaks:
            message = "breaks={}: name at least one claim check that this control must fail"
            raise ValueError(message)
        for name, side in self.breaks.items():
            if side not in ("below", "above"):
                message = f"breaks[{name!r}]={side!r}: the side is 'below' or 'above'"
                raise ValueError(message)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A phenomenon measured in trained networks.

    Attributes:
        config: a frozen dataclass of scalars and tuples of scalars whose defaults are the full
            laptop run; it has `seed` and `num_seeds`.
        run: config -> NamedTuple of arrays; pure.
        check: (config, result) -> list of checks.
        plot: (config, result, figure) -> None; draws into a matplotlib Figure.
        smoke: overrides for the run of a few seconds that the test suite makes.
        controls: named runs in which the claim must not hold.
        paper: overrides for the published size.
        precision: "float32", or "float64" where the claim is an exact identity.
        known_failure: what was seen and where the paper saw it, for a claim that does not
            reproduce at this scale; its verdict is then demanded to be "fails".
    """

    config: type
    run: Callable[..., Any]
    check: Callable[..., list]
    plot: Callable[..., None]
    _: dataclasses.KW_ONLY
    smoke: Mapping[str, Any]
    controls: Mapping[str, Control] = dataclasses.field(default_factory=dict)
    paper: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    precision: Precision = "float32"
    known_failure: str | None = None

    def __post_init__(self):
        _require_config(self.config)
        for name, overrides in (("smoke", self.smoke), ("paper", self.paper)):
            self._require_fields(name, overrides)
        for name, control in self.controls.items():
            self._require_fields(f"controls[{name!r}]", control.overrides)
            if "." in name or not name:
                message = f"controls[{name!r}]: a control needs a name without dots"
                raise ValueError(message)
        if self.precision not in typing.get_args(Precision):
            message = f"precision={self.precision!r}: choose 'float32' or 'float64'"
            raise ValueError(message)

    def _require_fields(self, owner: str, overrides: Mapping[str, Any]) -> None:
        fields = {field.name for field in dataclasses.fields(self.config)}
        if unknown := sorted(set(overrides) - fields):
            message = f"{owner} sets {unknown}, which Config does not have: {sorted(fields)}"
            raise ValueError(message)

    def configure(self, preset: str = "default", overrides: Mapping[str, Any] | None = None):
        """Return the Config of a preset with some fields replaced.

        Raises:
            CallError: unknown preset or field, or a value that Config refuses.
        """
        if preset not in PRESETS:
            message = f"--preset={preset}: choose one of {', '.join(PRESETS)}"
            raise CallError(message)
        values = {"default": {}, "smoke": self.smoke, "paper": self.paper}[preset]
        return with_overrides(self.config(), {**values, **(overrides or {})})


@dataclasses.dataclass(frozen=True)
class TheoryCheck(Experiment):
    """A closed-form prediction next to the simulation that it predicts.

    `predict(config)` never sees the simulation; `check` and `plot` get the prediction between
    config and result. `resolution` is the smallest relative error of the prediction that the
    check promises to notice: scaled by 1 + resolution and by 1 - resolution, some claim check
    must fail, in every verdict.
    """

    _: dataclasses.KW_ONLY
    predict: Callable[..., Any]
    resolution: float

    def __post_init__(self):
        super().__post_init__()
        if not (0 < self.resolution < math.inf):
            message = f"resolution={self.resolution!r}: give a positive relative error"
            raise ValueError(message)


def with_overrides(config, overrides: Mapping[str, Any]):
    """Return `config` with fields replaced, each value converted to the type of its field.

    Raises:
        CallError: a field that Config does not have, or a value that it refuses.
    """
    hints = typing.get_type_hints(type(config))
    names = [field.name for field in dataclasses.fields(config)]
    values = {}
    for name, value in overrides.items():
        if name not in hints or name not in names:
            message = f"--{name}={value}: no such setting; choose from {', '.join(names)}"
            raise CallError(message)
        values[name] = convert(name, value, hints[name])
    try:
        config = dataclasses.replace(config, **values)
    except (ValueError, TypeError) as error:
        given = " ".join(f"--{name}={value}" for name, value in overrides.items())
        message = f"{given}: {error}"
        raise CallError(message) from error
    for name, minimum in (("num_seeds", 1), ("seed", 0)):
        if not minimum <= getattr(config, name) < 2**31:
            message = f"--{name}={getattr(config, name)}: give an integer from {minimum} to 2^31-1"
            raise CallError(message)
    return config


def convert(name: str, value: Any, kind: Any) -> Any:
    """Return `value` (text from a flag, or a plain value) as the type that a field declares."""
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):  # an optional setting
        if value is None or value == "none":
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
        origin = typing.get_origin(kind)
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        item_kind = typing.get_args(kind)[0]
        return tuple(_scalar(name, item, item_kind, value) for item in items)
    return _scalar(name, value, kind, value)


def _scalar(name: str, item: Any, kind: type, given: Any) -> Any:
    expected = {bool: "true or false", int: "an integer", float: "a finite number", str: "text"}
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[str(item).lower()]
        if kind is int and not isinstance(item, str) and int(item) != item:
            raise ValueError
        result = kind(item.strip() if isinstance(item, str) else item)
        if kind is float and not math.isfinite(result):
            raise ValueError
    except (ValueError, KeyError, TypeError, OverflowError):
        message = f"--{name}={given}: {item!r} is not {expected.get(kind, kind)}"
        raise CallError(message) from None
    return result


def _require_config(config: type) -> None:
    if not (dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen):
        message = f"config={config!r}: give a frozen dataclass"
        raise ValueError(message)
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        no_default = field.default is dataclasses.MISSING
        kinds = [k for k in (typing.get_args(hints[field.name]) or (hints[field.name],))]
        if no_default or any(k not in (*_SCALARS, type(None), Ellipsis) for k in kinds):
            message = f"Config.{field.name}: a setting is a scalar or tuple of scalars, defaulted"
            raise ValueError(message)
    if missing := [name for name in ("seed", "num_seeds") if hints.get(name) is not int]:
        message = f"Config lacks {missing}: every claim has `seed: int` and `num_seeds: int`"
        raise ValueError(message)
