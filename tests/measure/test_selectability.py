"""Selectable keys by the hull and by a linear program for the query itself."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from scipy import optimize

from dynamics.measure import selectability


def has_query(keys, index):
    """Whether q·(k_i - k_j) >= 1 for all j has a solution."""
    gaps = keys[index] - np.delete(keys, index, axis=0)
    bounds = [(None, None)] * keys.shape[1]
    found = optimize.linprog(
        np.zeros(keys.shape[1]), A_ub=-gaps, b_ub=-np.ones(len(gaps)), bounds=bounds
    )
    return found.status == 0


@pytest.mark.parametrize(("num_keys", "dim"), [(8, 2), (12, 3), (12, 5)])
@pytest.mark.parametrize("centre", [False, True])
def test_against_the_linear_program(num_keys, dim, centre):
    keys = np.random.default_rng(num_keys + dim).normal(size=(num_keys, dim))
    if centre:
        keys -= keys.mean(axis=1, keepdims=True)
    expected = [has_query(keys, index) for index in range(num_keys)]
    assert selectability.selectable(keys).tolist() == expected


@hypothesis.given(
    seed=strategies.integers(0, 10_000),
    num_keys=strategies.integers(2, 12),
    dim=strategies.integers(1, 4),
)
def test_affine_maps_and_order_change_nothing(seed, num_keys, dim):
    generator = np.random.default_rng(seed)
    keys, shift = generator.normal(size=(num_keys, dim)), generator.normal(size=dim)
    basis = np.linalg.qr(generator.normal(size=(dim, dim)))[0]
    order = generator.permutation(num_keys)
    moved = (keys @ (basis * np.linspace(1, 3, dim)) + shift)[order]
    found = selectability.selectable(keys)
    assert selectability.selectable(moved).tolist() == found[order].tolist()
    own = keys / np.linalg.norm(keys, axis=1, keepdims=True)  # on a sphere
    distinct = 2 if dim == 1 else num_keys
    assert selectability.selectable(own).sum() in (distinct, len(np.unique(own.round(12), axis=0)))


def test_keys_on_a_line_and_at_a_point():
    line = np.outer([0.5, -2.0, 1.0, 3.0], [1.0, 2.0, -1.0])
    assert selectability.selectable(line).tolist() == [False, True, False, True]
    assert selectability.selectable(np.ones((3, 2))).sum() == 1


@pytest.mark.parametrize("keys", [np.zeros(3), np.zeros((0, 2)), np.array([[np.nan, 1.0]])])
def test_wrong_keys_are_named(keys):
    with pytest.raises(ValueError, match="keys: shape"):
        selectability.selectable(keys)
