"""The compiler of this environment, at the sizes at which one version was wrong."""

import jax
import numpy as np
import pytest

from experiments import doctor


@pytest.mark.parametrize("probe", doctor.PROBES, ids=lambda probe: probe.__name__)
def test_jit_agrees_with_float64(probe):
    name, program, inputs, expected, bound, _ = probe(np.random.default_rng(1))
    with jax.default_matmul_precision("highest"):
        computed = jax.jit(program)(*(np.asarray(a, np.float32) for a in inputs))
    assert doctor.relative_error(computed, expected) < bound, name


@pytest.mark.parametrize("probe", doctor.PROBES, ids=lambda probe: probe.__name__)
def test_the_float64_twin_is_the_same_mathematics(probe, x64):
    """In double precision program and closed form agree to rounding, so a bound is not slack."""
    name, program, inputs, expected, _, _ = probe(np.random.default_rng(2))
    computed = program(*(jax.numpy.asarray(a) for a in inputs))
    assert doctor.relative_error(computed, expected) < 1e-12, name


def test_the_version_known_to_miscompute_is_kept_out():
    assert jax.__version__ != "0.10.2"
