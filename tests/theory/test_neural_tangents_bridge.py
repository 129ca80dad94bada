"""The bridge in fresh interpreters, where its import can be watched."""

import subprocess
import sys
from pathlib import Path

import pytest

from dynamics.theory import neural_tangents_bridge

ROOT = Path(__file__).resolve().parents[2]
HEAD = """
import sys, warnings
warnings.simplefilter("error")
import jax, jax.numpy as jnp
from jax.interpreters import ad
jax.config.update("jax_enable_x64", {x64})
from dynamics.theory import infinite_width, neural_tangents_bridge as bridge
"""


def python(code, x64=False):
    """Run code in an interpreter of its own; its assertions are the test."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD.format(x64=x64) + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("x64", [False, True])
def test_loads_late_quietly_and_leaves_jax_as_it_was(x64):
    python(
        """
before = set(vars(jax.core)), set(vars(ad))
assert "neural_tangents" not in sys.modules
module = bridge.load()
assert bridge.load() is module and sys.modules["neural_tangents"] is module
assert (set(vars(jax.core)), set(vars(ad))) == before
assert "jax.util" not in sys.modules
assert not any("neural_tangents.experimental" in name for name in sys.modules)
assert not any(name.split(".")[0] in ("tensorflow", "tf2jax") for name in sys.modules)
init, apply, kernel_fn = module.stax.serial(
    module.stax.Dense(8), module.stax.Erf(), module.stax.Dense(1))
x = jnp.linspace(-1, 1, 6).reshape(3, 2)
params = init(jax.random.key(0), x.shape)[1]
warnings.simplefilter("ignore")  # its empirical kernels call JAX in a way that is deprecated
first, second = (
    module.empirical_ntk_fn(apply, implementation=number)(x, None, params) for number in (1, 2))
assert jnp.allclose(first, second, rtol=1e-5)
assert kernel_fn(x, None, "ntk").dtype == x.dtype
""",
        x64,
    )


def test_absence_names_the_extra_and_the_command():
    python(
        """
sys.modules["neural_tangents"] = None
try:
    infinite_width.fully_connected(1)
except ImportError as error:
    assert "infinite-width" in str(error) and bridge.INSTALL in str(error)
    assert "--no-deps" in str(error)
else:
    raise AssertionError
assert "jax.util" not in sys.modules and not hasattr(jax.core, "Jaxpr")
"""
    )


def test_one_module_however_often_it_is_asked_for():
    module = neural_tangents_bridge.load()
    neural_tangents_bridge.load.cache_clear()
    assert neural_tangents_bridge.load() is module
