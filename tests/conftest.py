"""Fixtures shared by all tests."""

import os

# Four simulated devices for the parity tests; must be set before JAX starts.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile("ci", derandomize=True, max_examples=20, deadline=None)
hypothesis.settings.register_profile("deep", max_examples=500, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def key(request):
    """A typed key; set TEST_SEED to try another."""
    seed = int(os.environ.get("TEST_SEED", "0"))
    print(f"TEST_SEED={seed}")
    return jax.random.key(seed)


@pytest.fixture
def x64():
    """Double precision for the length of one test."""
    with jax.enable_x64(True):
        yield
