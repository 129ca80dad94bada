"""Wrong values for one argument of a valid call, and what a function may do with them."""

import dataclasses
import importlib
import inspect
import pkgutil
import re
import warnings
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import dynamics

ARRAYS = (np.ndarray, np.generic, jax.Array)
OBJECTS = np.array([object(), object()])


class Case(NamedTuple):
    """One argument of a valid call replaced."""

    argument: str
    what: str  # how it is wrong
    wrong: Any
    must_raise: bool  # else it may return, if no NaN comes of finite numbers
    runs: bool = False  # whether the numbers that come of it are looked at, or their shapes alone


def public() -> dict[str, Any]:
    """Return every public function and class of the library by its name without "dynamics."."""
    found = {}
    for module in pkgutil.walk_packages(dynamics.__path__, "dynamics."):
        for name, thing in vars(importlib.import_module(module.name)).items():
            own = getattr(thing, "__module__", None) == module.name
            if own and not name.startswith("_") and callable(thing):
                found[f"{module.name}.{name}".removeprefix("dynamics.")] = thing
    return found


def is_record(thing: Any) -> bool:
    """Return whether it is a bundle of results: a NamedTuple, or a dataclass that is no module."""
    if not inspect.isclass(thing) or issubclass(thing, nn.Module):
        return False
    return hasattr(thing, "_fields") or dataclasses.is_dataclass(thing)


def arguments_of(thing: Any) -> dict[str, str]:
    """Return the annotations of all named arguments, as text."""
    if inspect.isclass(thing) and issubclass(thing, nn.Module):
        fields = dataclasses.fields(thing)
        return {f.name: str(f.type) for f in fields if f.name not in ("parent", "name")}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        name: str(parameter.annotation)
        for name, parameter in inspect.signature(thing).parameters.items()
        if parameter.kind not in variadic
    }


def call(thing: Any, arguments: dict[str, Any]) -> Any:
    """Call a function; make and initialise a flax module, whose other arguments are its inputs."""
    if not (inspect.isclass(thing) and issubclass(thing, nn.Module)):
        return thing(**arguments)
    fields = {name: arguments[name] for name in arguments_of(thing)}
    inputs = {name: value for name, value in arguments.items() if name not in fields}
    init = lambda: thing(**fields).init(jax.random.key(0), **inputs)
    return jax.eval_shape(init)


def cases(thing: Any, valid: dict[str, Any]) -> list[Case]:
    """Return the wrong values of each argument in turn."""
    annotations = arguments_of(thing)
    return [
        Case(name, *wrong)
        for name, value in valid.items()
        for wrong in _wrong(value, annotations.get(name, "Array"))
    ]


def defect(name: str, thing: Any, valid: dict[str, Any], case: Case) -> str | None:
    """Return what is wrong with how a wrong argument is met, None if nothing is."""
    told = f"{name}({case.argument}={case.what})"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = outcome(
                thing, {**valid, case.argument: case.wrong}, case.runs or case.must_raise
            )
    except (ValueError, TypeError) as error:
        if re.search(rf"\b{re.escape(case.argument)}\b", str(error).split("\n\n")[0]):
            return None
        return f"{told}: does not name it: {type(error).__name__}: {str(error)[:90]!r}"
    except Exception as error:
        return f"{told}: {type(error).__name__}: {str(error)[:90]!r}"
    if case.must_raise:
        return f"{told}: accepted"
    if case.runs and has_nan(result) and not has_nan(call(thing, valid)):
        return f"{told}: NaN comes of it"
    return None


def outcome(thing: Any, arguments: dict[str, Any], runs: bool) -> Any:
    """Return the result of a call; where its numbers are not wanted, of its trace if it has one.

    The arguments are known to the trace, so that every check of them sees their values; but
    nothing is compiled.
    """
    if runs:
        return call(thing, arguments)
    try:
        return jax.eval_shape(lambda: _arrays_of(call(thing, arguments)))
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError, NotImplementedError):
        return call(thing, arguments)


def _arrays_of(result: Any) -> Any:
    return [leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array)]


def has_nan(tree: Any) -> bool:
    """Return whether there is a NaN in a pytree."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, (float, np.ndarray, np.generic, jax.Array)):
            if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
                continue
            values = np.asarray(leaf)
            if values.dtype.kind in "fc" and np.isnan(values).any():
                return True
    return False


def _wrong(value: Any, annotation: str) -> list[tuple[Any, ...]]:
    anything = annotation.endswith("Any") or "Params" in annotation
    none = [] if "None" in annotation else [("None", None, not anything)]
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return [("0.5", 0.5, True), ("'key'", "key", True), *none]
    if value is None:
        return _wrong_instead_of_none(annotation)
    if isinstance(value, bool):
        return []
    if isinstance(value, str):
        return [("unknown", "unknown", True), ("3", 3, True), *none]
    if isinstance(value, (int, np.integer)):
        whole = annotation in ("<class 'int'>", "int", "int | None")
        return [
            ("2.5", 2.5, whole),
            ("'3'", "3", True),
            ("-1", -1, whole, True),
            ("0", 0, False, True),
            ("True", True, False),
            *none,
        ]
    if isinstance(value, float) or (isinstance(value, ARRAYS) and not value.shape):
        return [
            ("'x'", "x", True),
            ("negative", -abs(float(value)) - 1.0, False, True),
            ("0.0", 0.0, False),
            ("nan", float("nan"), False),
            ("inf", float("inf"), False),
            *none,
        ]
    if callable(value) and not isinstance(value, tuple):
        return [("3", 3, True), ("'tanh'", "tanh", True), *none]
    if _is_numeric(value):
        return [*_wrong_array(value), *none]
    wrong = [("'x'", "x", not anything), ("3", 3, not anything), *none]
    leaves = jax.tree.leaves(value)
    if isinstance(value, dict) and all(isinstance(leaf, ARRAYS) for leaf in leaves):
        whole = jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.int32), value)
        wrong += [("integers", whole, "Any" not in annotation), ("{}", {}, False)]
    return wrong


def _wrong_instead_of_none(annotation: str) -> list[tuple[Any, ...]]:
    if annotation in ("int | None", "typing.Optional[int]"):
        return [("2.5", 2.5, True), ("'3'", "3", True), ("-1", -1, True), ("0", 0, False, True)]
    if "Array" in annotation or "float" in annotation:
        return [("'x'", "x", True), ("objects", OBJECTS, True)]
    if "Callable" in annotation:
        return [("3", 3, True)]
    return []


def _is_numeric(value: Any) -> bool:
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return False
    try:
        return np.asarray(value).dtype.kind in "biufc"
    except (TypeError, ValueError):
        return False


def _wrong_array(value: Any) -> list[tuple[Any, ...]]:
    array = np.asarray(value)
    made = jnp.asarray if isinstance(value, jax.Array) else np.asarray
    shorter = array[:-1] if len(array) > 1 else np.concatenate([array, array])
    wrong = [
        ("'x'", "x", True),
        ("objects", OBJECTS, True),
        ("first row", made(array[0]), False),
        ("an axis more", made(array[None]), False),
        ("empty", made(array[:0]), False, True),
        ("another length", made(shorter), False),
    ]
    if array.ndim > 1:
        narrower = array[..., :-1] if array.shape[-1] > 1 else np.repeat(array, 2, axis=-1)
        wrong.append(("another last axis", made(narrower), False))
    if array.dtype.kind in "iu":
        wrong += [
            ("- 100", made(array - 100), False, True),
            ("+ 9", made(array + 9), False),
            ("+ 0.5", made(array + 0.5), False),
        ]
    return wrong
