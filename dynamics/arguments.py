"""What a public function says of a wrong argument: its name, its value, and what to give instead.

Each check takes arguments by name, so that the message has the name, and costs nothing under `jit`:
types, shapes and Python values are looked at, the entries of an array only where they are known.
"""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import leaf_names


def integers(at_least: int | None = None, /, *, optional: bool = False, **given: Any) -> None:
    """Refuse what is no integer, or below `at_least`; a bool is none, None is one if `optional`.

    Raises:
        TypeError: not an integer.
        ValueError: too small.

    Example:
        >>> integers(2, num_probes=1)
        Traceback (most recent call last):
        ValueError: num_probes=1: give at least 2
    """
    for name, value in given.items():
        if value is None and optional:
            continue
        if isinstance(value, jax.core.Tracer):
            if value.shape or not jnp.issubdtype(value.dtype, jnp.integer):
                message = f"{name}: {value.dtype}{value.shape}; give one integer"
                raise TypeError(message)
            continue
        try:
            whole = operator.index("" if isinstance(value, bool) else value)  # type: ignore[arg-type]
        except TypeError:
            raise _refusal(TypeError, name, value, "an integer") from None
        if at_least is not None and whole < at_least:
            message = f"{name}={whole}: give at least {at_least}"
            raise ValueError(message)


def counts(**given: Any) -> None:
    """Refuse what is no integer from 1 on."""
    integers(1, **given)


def sizes(**given: Any) -> None:
    """Refuse what is no sequence of integers from 1 on, at least one of them.

    Example:
        >>> sizes(widths=(64, 0))
        Traceback (most recent call last):
        ValueError: widths=(64, 0): give integers, each at least 1
    """
    for name, value in given.items():
        shapes("L", **{name: value})
        for size in value:
            try:
                integers(1, **{name: size})
            except (TypeError, ValueError) as error:
                message = f"{name}={_short(value)}: give integers, each at least 1"
                raise type(error)(message) from None


def numbers(**given: Any) -> None:
    """Refuse what is neither a number nor an array of numbers.

    Example:
        >>> numbers(learning_rate="0.1")
        Traceback (most recent call last):
        TypeError: learning_rate='0.1': give a number or an array of numbers
    """
    for name, value in given.items():
        _numeric(name, value)


def scalars(**given: Any) -> None:
    """Refuse what is not one number, traced or not."""
    for name, value in given.items():
        shape, _ = _numeric(name, value)
        if shape:
            message = f"{name} has shape {shape}; give one number"
            raise ValueError(message)


def positive(**given: Any) -> None:
    """Refuse what is not positive, where it is known; NaN is not.

    Example:
        >>> positive(width=0.0)
        Traceback (most recent call last):
        ValueError: width=0.0: give a positive number
    """
    _each(lambda values: values > 0, "a positive number", given)


def not_negative(**given: Any) -> None:
    """Refuse what is negative, where it is known; NaN counts as negative."""
    _each(lambda values: values >= 0, "0 or a positive number", given)


def finite(**given: Any) -> None:
    """Refuse what is infinite or NaN, where it is known."""
    _each(np.isfinite, "a finite number", given)


def fractions(**given: Any) -> None:
    """Refuse what is outside [0, 1], where it is known."""
    _each(lambda values: (values >= 0) & (values <= 1), "a number from 0 to 1", given)


def choices(options: Sequence[Any], /, **given: Any) -> None:
    """Refuse what is not one of some strings.

    Example:
        >>> choices(("mean", "full"), outputs="all")
        Traceback (most recent call last):
        ValueError: outputs='all': choose one of mean, full
    """
    for name, value in given.items():
        if not isinstance(value, str) or value not in options:
            message = f"{name}={_short(value)}: choose one of {', '.join(options)}"
            raise ValueError(message)


def functions(**given: Any) -> None:
    """Refuse what cannot be called.

    Example:
        >>> functions(loss_fn=3)
        Traceback (most recent call last):
        TypeError: loss_fn=3: give a function
    """
    for name, value in given.items():
        if not callable(value):
            raise _refusal(TypeError, name, value, "a function")


def records(kind: Any, /, **given: Any) -> None:
    """Refuse what is not an instance of a class, or of one of some classes.

    Example:
        >>> records(tuple, weights=[1.0])
        Traceback (most recent call last):
        TypeError: weights=[1.0]: give a tuple
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    for name, value in given.items():
        if not isinstance(value, kinds):
            raise _refusal(TypeError, name, value, f"a {' or '.join(k.__name__ for k in kinds)}")


def modules(**given: Any) -> None:
    """Refuse what has no methods `init` and `apply`, as a flax linen module or a haiku pair has."""
    for name, value in given.items():
        if not (callable(getattr(value, "init", None)) and callable(getattr(value, "apply", None))):
            raise _refusal(TypeError, name, value, "a module with `init` and `apply`")


def optimisers(**given: Any) -> None:
    """Refuse what is no optax transformation: has no `init` and `update`."""
    for name, value in given.items():
        if not (hasattr(value, "init") and hasattr(value, "update")):
            raise _refusal(TypeError, name, value, "an optax transformation, as optax.adam(1e-3)")


def types(**given: Any) -> None:
    """Refuse what names no type of an array's entries."""
    for name, value in given.items():
        try:
            jnp.dtype(value)
        except TypeError:
            raise _refusal(TypeError, name, value, "a type of numbers, as jnp.float32") from None


def keys(**given: Any) -> None:
    """Refuse what is not one key of `jax.random`.

    Example:
        >>> keys(key=0)
        Traceback (most recent call last):
        TypeError: key=0: give a key, from jax.random.key
    """
    for name, value in given.items():
        dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
        typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
        if not (typed or (dtype == jnp.uint32 and shape is not None and len(shape) == 1)):
            raise _refusal(TypeError, name, value, "a key, from jax.random.key")
        if typed and shape != ():
            message = f"{name} has shape {shape}; give one key"
            raise ValueError(message)


def params(**given: Any) -> None:
    """Refuse a pytree without arrays, or with one that is not of floating-point type.

    Example:
        >>> params(params={"kernel": True})
        Traceback (most recent call last):
        TypeError: params: ['kernel'] is of type bool; make every leaf a floating-point array
    """
    for name, tree in given.items():
        leaves = leaf_names.named_leaves(tree)
        if not leaves:
            message = f"{name}: no arrays in it; give a pytree of floating-point arrays"
            raise ValueError(message)
        for path, leaf in leaves:
            dtype = _numeric(f"{name}: {path}", leaf)[1]
            if not jnp.issubdtype(dtype, jnp.floating):
                message = (
                    f"{name}: {path} is of type {dtype}; make every leaf a floating-point array"
                )
                raise TypeError(message)


def pytrees(**given: Any) -> None:
    """Refuse a pytree of anything but arrays of numbers and keys.

    Example:
        >>> pytrees(state={"step": "first"})
        Traceback (most recent call last):
        TypeError: state: ['step']='first': give a number or an array of numbers
    """
    for name, tree in given.items():
        for path, leaf in leaf_names.named_leaves(tree):
            _numbers_or_keys(f"{name}: {path}", leaf)


def samples(**given: Any) -> int:
    """Return the common length of the arrays in one pytree; refuse one without, or an empty axis.

    The arrays are of numbers or keys.

    Example:
        >>> samples(data=(np.ones((3, 2)), np.ones(3)))
        3
    """
    for name, tree in given.items():
        paths = leaf_names.named_leaves(tree)
        found = [_numbers_or_keys(f"{name}: {path}", leaf) for path, leaf in paths]
        lengths = {shape[0] if shape else 0 for shape in found}
        if len(lengths) != 1 or 0 in lengths:
            message = (
                f"{name}: leaves of shapes {found}; give arrays with one common, non-empty axis 0"
            )
            raise ValueError(message)
    return int(lengths.pop())


def floating(**given: Any) -> None:
    """Refuse arrays that are not of floating-point type."""
    for name, value in given.items():
        dtype = _numeric(name, value)[1]
        if not jnp.issubdtype(dtype, jnp.floating):
            message = f"{name}: type {dtype}; give floating-point numbers"
            raise TypeError(message)


def labels(num_classes: Any, /, **given: Any) -> None:
    """Refuse arrays that are no integers, or where it is known outside 0 to num_classes - 1.

    Example:
        >>> labels(3, labels=np.array([0, 3]))
        Traceback (most recent call last):
        ValueError: labels: from 0 to 3; give integers from 0 to 2
    """
    for name, value in given.items():
        _, dtype = _numeric(name, value)
        if not jnp.issubdtype(dtype, jnp.integer):
            message = f"{name}: type {dtype}; give integers"
            raise TypeError(message)
        if not _all(name, value, lambda values: (values >= 0) & (values < num_classes)):
            least, most = np.asarray(value).min(), np.asarray(value).max()
            upwards = "on" if np.isinf(num_classes) else f"to {num_classes - 1}"
            message = f"{name}: from {least} to {most}; give integers from 0 {upwards}"
            raise ValueError(message)


def shapes(spec: str, /, **given: Any) -> None:
    """Refuse arrays of another rank than `spec` says, empty ones, and sizes that do not fit.

    Args:
        spec: The axes of each array, "N D, N": one name stands for one size, at least 1, in all of
            them; a number for itself; "_" for any size, 0 too. "..." first stands for any axes that
            broadcast against one another, "..." last for any. "?" before them: None will do.
        **given: The arrays, in the order of `spec`.

    Raises:
        TypeError: not an array of numbers.
        ValueError: the shape does not fit.

    Example:
        >>> shapes("N D, N", features=np.ones((3, 2)), labels=np.ones(2))
        Traceback (most recent call last):
        ValueError: labels has shape (2,); give (N,), with N = 3 as in features
    """
    sizes: dict[str, tuple[int, str]] = {}
    leading: tuple[int, ...] = ()
    led = ""
    for part, (name, value) in zip(spec.split(","), given.items(), strict=True):
        axes = part.replace("?", " ").split()
        if value is None and "?" in part:
            continue
        shape, _ = _numeric(name, value)
        wanted = f"({', '.join(axes)}{',' * (len(axes) == 1)})"
        fixed = [axis for axis in axes if axis != "..."]
        rest = len(shape) - len(fixed)
        if rest < 0 or (rest and "..." not in axes):
            message = f"{name} has shape {shape}; give {wanted}"
            raise ValueError(message)
        first = axes[:1] == ["..."]
        if first:
            try:
                leading = np.broadcast_shapes(leading, shape[:rest])
            except ValueError:
                message = (
                    f"{name} has shape {shape}; its first axes must broadcast with those of {led}"
                )
                raise ValueError(message) from None
            led = f"{led}, {name}" if led else name
        if 0 in (shape[:rest] if first else shape[len(shape) - rest :]):
            message = f"{name} has shape {shape}; give {wanted}, not empty"
            raise ValueError(message)
        for axis, size in zip(fixed, shape[rest:] if first else shape, strict=False):
            if axis == "_":
                continue
            expected, whose = (int(axis), "") if axis.isdigit() else sizes.get(axis, (size, name))
            if size != expected:
                beside = f", with {axis} = {expected} as in {whose}" if whose else ""
                message = f"{name} has shape {shape}; give {wanted}{beside}"
                raise ValueError(message)
            if size == 0:
                message = f"{name} has shape {shape}; give {wanted}, not empty"
                raise ValueError(message)
            sizes[axis] = (expected, whose)


def _numeric(name: str, value: Any) -> tuple[tuple[int, ...], Any]:
    """Return shape and type of what must be numbers."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        shape, dtype = tuple(value.shape), value.dtype
    elif any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value)):
        try:
            found = jax.eval_shape(jnp.asarray, value)
        except (TypeError, ValueError):
            found = jax.ShapeDtypeStruct((), bool)
            value = None
        shape, dtype = found.shape, None if value is None else found.dtype
    else:
        try:
            array = np.asarray(value)
        except (TypeError, ValueError):
            array = np.asarray(None)
        shape, dtype = array.shape, array.dtype
    if dtype is None or not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
        raise _refusal(TypeError, name, value, "a number or an array of numbers")
    return shape, dtype


def _numbers_or_keys(name: str, value: Any) -> tuple[int, ...]:
    """Return the shape of what must be numbers or keys."""
    if jnp.issubdtype(getattr(value, "dtype", np.float32), jax.dtypes.prng_key):
        return tuple(value.shape)
    return _numeric(name, value)[0]


def _each(holds: Any, mend: str, given: dict[str, Any]) -> None:
    for name, value in given.items():
        if not _all(name, value, holds):
            raise _refusal(ValueError, name, value, mend)


def _all(name: str, value: Any, holds: Any) -> bool:
    """Return whether something holds of all entries; where they are not known it is granted."""
    _numeric(name, value)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
        return True
    return bool(np.all(holds(np.asarray(value))))


def _refusal(kind: type[Exception], name: str, value: Any, mend: str) -> Exception:
    return kind(f"{name}={_short(value)}: give {mend}")


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
