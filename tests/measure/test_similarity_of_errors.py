"""Similarity of errors against its definition, and what it must not depend on."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.measure import similarity_of_errors as similarity


@given(st.integers(0, 2**31), st.floats(0.01, 100))
def test_definition_and_invariance(seed, scale):
    first, second = np.random.default_rng(seed).normal(size=(2, 3, 5, 4))
    expected = [
        np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(*pair, strict=True)])
        for pair in zip(first, second, strict=True)
    ]
    with jax.enable_x64(True):
        found = similarity.similarity_of_errors(scale * first, second)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(similarity.similarity_of_errors(first, -first), -1, rtol=1e-6)


@given(st.integers(0, 2**31), st.permutations(range(6)))
def test_a_reference_is_matched_with_itself(seed, order):
    reference = np.random.default_rng(seed).normal(size=(6, 20, 5))
    found = similarity.match_iterates(reference[list(order)], reference)
    assert list(found.iterate) == list(order)
    np.testing.assert_allclose(found.best, 1, atol=1e-5)
    np.testing.assert_allclose(
        found.similarity[0],
        similarity.similarity_of_errors(reference[list(order)][0], reference),
        atol=1e-5,
    )


def test_a_prompt_without_errors_counts_nothing():
    errors = np.ones((2, 3))
    errors[0] = 0
    assert float(similarity.similarity_of_errors(errors, np.ones((2, 3)))) == pytest.approx(0.5)


def test_refusals():
    with pytest.raises(ValueError, match="as in first"):
        similarity.similarity_of_errors(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="layers"):
        similarity.match_iterates(np.ones((2, 3)), np.ones((1, 2, 3)))
