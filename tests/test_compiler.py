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


DOUBLE = [probe for probe in doctor.PROBES if probe is not doctor.normal_draws]  # float32 by nature


@pytest.mark.parametrize("probe", DOUBLE, ids=lambda probe: probe.__name__)
def test_the_float64_twin_is_the_same_mathematics(probe, x64):
    """In double precision program and closed form agree to rounding, so a bound is not slack."""
    name, program, inputs, expected, _, _ = probe(np.random.default_rng(2))
    computed = program(*(jax.numpy.asarray(a) for a in inputs))
    assert doctor.relative_error(computed, expected) < 1e-12, name


@pytest.mark.parametrize(
    ("key", "counter", "published"),
    [  # Random123's kat_vectors for threefry2x32, 20 rounds
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_numpy_makes_the_published_random_words(key, counter, published):
    words = doctor.threefry(key, [np.array([word], np.uint32) for word in counter])
    assert tuple(int(word[0]) for word in words) == published


def test_the_version_known_to_miscompute_is_kept_out():
    assert jax.__version__ != "0.10.2"
