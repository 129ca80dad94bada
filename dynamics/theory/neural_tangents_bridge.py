"""The neural_tangents module on today's JAX and without TensorFlow.

Its last release, 0.6.5, imports names that JAX has since moved, and a TensorFlow corner that
nothing here needs. `load` gives the names back while the import lasts and takes them away again;
what remains afterwards is the imported module, and `jax.core.eval_context` where JAX lacks it.
"""

import contextlib
import functools
import importlib
import sys
import types
import warnings
from collections.abc import Iterator

import jax
import jax.extend.core
from jax.interpreters import ad

INSTALL = "pip install --no-deps neural-tangents==0.6.5 frozendict"
TENSORFLOW_CORNER = "neural_tangents.experimental"
# Where the names that neural_tangents imports from jax.core are now.
MOVED_TO_EXTEND = ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")
# Only ever named in annotations and dispatch tables: an empty class does.
ONLY_NAMED = ("AbstractValue", "Value")


@functools.cache
def load() -> types.ModuleType:
    """Return the neural_tangents module, imported on the first call.

    Its analytic kernels (`stax`), `predict` and implementations 1 and 2 of the empirical kernel
    work; implementation 3 (structured derivatives) needs JAX internals that are gone. Its
    `experimental` part, for TensorFlow, is left out.

    Raises:
        ImportError: neural_tangents or frozendict is not installed.
    """
    if sys.modules.get("neural_tangents") is not None:
        return sys.modules["neural_tangents"]
    try:
        with warnings.catch_warnings(), _moved_names():
            warnings.simplefilter("ignore")
            return importlib.import_module("neural_tangents")
    except ImportError as error:
        message = (
            "neural_tangents cannot be imported; it is the extra `infinite-width`, installed "
            f"without the TensorFlow that it asks for: {INSTALL}"
        )
        raise ImportError(message) from error


@contextlib.contextmanager
def _moved_names() -> Iterator[None]:
    """Give back what the import of neural_tangents looks for, for as long as it lasts."""
    if not _has(jax.core, "eval_context"):  # called later too, so it stays
        jax.core.eval_context = jax.ensure_compile_time_eval
    names = [(jax.core, name, getattr(jax.extend.core, name, None)) for name in MOVED_TO_EXTEND]
    names += [(jax.core, name, type(name, (), {})) for name in ONLY_NAMED]
    names.append((ad, "zeros_like_p", jax.extend.core.Primitive("zeros_like")))
    modules = {TENSORFLOW_CORNER: types.ModuleType(TENSORFLOW_CORNER), "jax.util": _jax_util()}
    missing_names = [(owner, name, value) for owner, name, value in names if not _has(owner, name)]
    missing_modules = {name: new for name, new in modules.items() if name not in sys.modules}
    for owner, name, value in missing_names:
        setattr(owner, name, value)
    sys.modules.update(missing_modules)
    try:
        yield
    finally:
        for owner, name, _ in missing_names:
            delattr(owner, name)
        for name in missing_modules:
            sys.modules.pop(name, None)
        # Whoever has TensorFlow can still import the corner itself.
        if (package := sys.modules.get("neural_tangents")) is not None:
            vars(package).pop("experimental", None)


def _has(owner: types.ModuleType, name: str) -> bool:
    with warnings.catch_warnings():  # JAX warns of names about to move
        warnings.simplefilter("ignore")
        return hasattr(owner, name)


def _jax_util() -> types.ModuleType:
    """The two names of jax.util that neural_tangents uses: map and zip over equal lengths."""
    module = types.ModuleType("jax.util")
    module.safe_zip = lambda *columns: list(zip(*columns, strict=True))  # type: ignore[attr-defined]
    module.safe_map = lambda function, *columns: [  # type: ignore[attr-defined]
        function(*row) for row in zip(*columns, strict=True)
    ]
    return module
