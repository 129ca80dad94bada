"""Shares left unexplained on orthogonal dynamics, against scipy's Haar matrices in float64."""

import numpy as np
import pytest
import scipy.stats

from dynamics.theory import linear_dynamics


def trajectories(dim, num_systems, num_states):
    """States (B, T, D) from scipy's orthogonal matrices."""
    matrices = scipy.stats.ortho_group.rvs(dim, size=num_systems, random_state=dim)
    state = np.random.default_rng(dim).normal(size=(num_systems, dim))
    states = [state]
    for _ in range(num_states - 1):
        states.append(np.einsum("bij,bj->bi", matrices, states[-1]))
    return np.stack(states, axis=1)


@pytest.mark.parametrize("dim", [1, 2, 3, 6])
def test_least_squares_leaves_what_is_outside_the_span(dim):
    """Within five standard errors of the mean over systems, by lstsq of each."""
    states = trajectories(dim, 400, dim + 3)
    for t in range(dim + 2):
        left = []
        for s in states:
            fit = np.linalg.lstsq(s[:t], s[1 : t + 1], rcond=None)[0] if t else np.zeros((dim, dim))
            left.append(np.sum((s[t + 1] - s[t] @ fit) ** 2) / np.sum(s[t + 1] ** 2))
        error = np.std(left) / len(left) ** 0.5
        assert abs(np.mean(left) - linear_dynamics.unexplained_share(dim, t)) < 5 * error + 1e-6


@pytest.mark.parametrize("dim", [1, 2, 3, 6])
def test_one_step_after_many_pairs(dim):
    """By the eigenvectors of each matrix: the time average of s s^T keeps their energies apart."""
    matrices = scipy.stats.ortho_group.rvs(dim, size=4000, random_state=dim).reshape(-1, dim, dim)
    start = np.random.default_rng(0).normal(size=(len(matrices), dim, 1))
    _, vectors = np.linalg.eig(matrices)
    energy = np.abs(np.linalg.solve(vectors, start.astype(complex))[..., 0]) ** 2  # of each vector
    energy *= np.sum(np.abs(vectors) ** 2, axis=1)
    second, third = (np.mean(np.sum(energy**power, axis=1)) for power in (2, 3))
    expected = 1 - second**2 / (dim * third)
    assert abs(linear_dynamics.one_step_floor(dim) - expected) < 0.03


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="dim=0"):
        linear_dynamics.one_step_floor(0)
    with pytest.raises(ValueError, match="num_pairs=-1"):
        linear_dynamics.unexplained_share(3, -1)
