"""Growth of aligned neurons against the recursion written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.theory import early_alignment


@given(
    norm=st.floats(1, 20), shrinkage=st.floats(10, 1e6), eta=st.floats(1e-3, 0.1),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_delay_is_that_of_an_aligned_neuron(norm, shrinkage, eta, seed):
    direction = np.random.default_rng(seed).normal(size=3)
    x = norm * direction / np.linalg.norm(direction)
    weight, outer = x / norm, 1.0
    delay = early_alignment.escape_delay(norm, shrinkage, eta)
    for _ in range(100):
        weight, outer = weight + eta * outer * x / 2, outer + eta * weight @ x / 2
    np.testing.assert_allclose(100 / np.log(outer) * np.log(shrinkage), delay, rtol=1e-9)
    flow = 2 * np.log(shrinkage) / norm
    assert flow <= eta * delay <= flow * (1 + eta * norm / 2)


def test_class_sums():
    generator = np.random.default_rng(0)
    inputs, labels = generator.normal(size=(7, 3)), np.array([1, -1, 1, 1, -1, -1, 1])
    expected = [np.linalg.norm(inputs[labels == sign].sum(axis=0)) for sign in (1, -1)]
    np.testing.assert_allclose(early_alignment.class_sum_norms(inputs, labels), expected, rtol=1e-5)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="labels"):
        early_alignment.class_sum_norms(np.ones((3, 2)), np.ones(2))
    with pytest.raises(ValueError, match="shrinkage"):
        early_alignment.escape_delay(1.0, 0.5, 0.1)
    with pytest.raises(ValueError, match="learning_rate"):
        early_alignment.escape_delay(1.0, 2.0, 0.0)
