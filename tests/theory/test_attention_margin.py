"""Margin problems by other solvers, by duality, and where a closed form is known."""

import numpy as np
import pytest
from scipy import optimize

from dynamics.theory import attention_margin


def random_constraints(seed, num=8, shape=(4, 3)):
    """Constraints that a hidden matrix meets."""
    generator = np.random.default_rng(seed)
    hidden, matrices = generator.normal(size=shape), generator.normal(size=(num, *shape))
    signs = np.sign(np.tensordot(matrices, hidden, axes=2))
    return matrices * signs[:, None, None]


@pytest.mark.parametrize("seed", range(3))
def test_frobenius_against_slsqp(seed):
    constraints = random_constraints(seed)
    flat = constraints.reshape(len(constraints), -1)
    found = optimize.minimize(
        lambda w: w @ w, np.linalg.pinv(flat) @ np.ones(len(flat)), jac=lambda w: 2 * w,
        constraints={"type": "ineq", "fun": lambda w: flat @ w - 1, "jac": lambda w: flat},
        method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    solution = attention_margin.frobenius_solution(constraints)
    np.testing.assert_allclose(solution.weights.ravel(), found.x, atol=1e-6)
    assert solution.lower_bound == pytest.approx(solution.norm, rel=1e-10)
    assert np.tensordot(constraints, solution.weights, axes=2).min() == pytest.approx(1)


@pytest.mark.parametrize("seed", range(3))
def test_nuclear_of_diagonal_matrices_is_a_linear_program(seed):
    """For diagonal constraints it is the least sum of absolute values."""
    diagonals = np.diagonal(random_constraints(seed, 6, (4, 4)), axis1=1, axis2=2)
    diagonals = np.abs(diagonals) * np.sign(np.random.default_rng(seed).normal(size=4))
    constraints = diagonals[:, :, None] * np.eye(4)
    both = np.hstack([diagonals, -diagonals])
    found = optimize.linprog(np.ones(8), A_ub=-both, b_ub=-np.ones(6))
    solution = attention_margin.nuclear_solution(constraints)
    assert solution.norm == pytest.approx(found.fun, rel=2e-6)


@pytest.mark.parametrize("seed", range(4))
def test_nuclear_is_certain_and_below_every_other(seed):
    constraints = random_constraints(seed, 12, (5, 4))
    solution = attention_margin.nuclear_solution(constraints)
    assert np.linalg.norm(solution.weights, "nuc") == pytest.approx(solution.norm)
    assert np.tensordot(constraints, solution.weights, axes=2).min() >= 1 - 1e-9
    assert solution.lower_bound <= solution.norm <= solution.lower_bound * (1 + 1e-6)
    frobenius = attention_margin.frobenius_solution(constraints)
    assert solution.norm < np.linalg.norm(frobenius.weights, "nuc")
    assert frobenius.norm < np.linalg.norm(solution.weights)


def test_one_constraint():
    """Along G in the Frobenius norm; along its leading singular vectors in the nuclear one."""
    matrix = np.diag([3.0, 1.0])
    frobenius = attention_margin.frobenius_solution([matrix])
    nuclear = attention_margin.nuclear_solution([matrix])
    np.testing.assert_allclose(frobenius.weights, matrix / 10, atol=1e-12)
    np.testing.assert_allclose(nuclear.weights, np.diag([1 / 3, 0]), atol=1e-5)


def test_scale_and_rotation():
    constraints = random_constraints(5)
    generator = np.random.default_rng(6)
    left, right = (np.linalg.qr(generator.normal(size=(n, n)))[0] for n in (4, 3))
    for solve in (attention_margin.frobenius_solution, attention_margin.nuclear_solution):
        plain, turned = solve(constraints), solve(7 * left @ constraints @ right)
        np.testing.assert_allclose(7 * turned.weights, left @ plain.weights @ right, atol=3e-3)
        assert 7 * turned.norm == pytest.approx(plain.norm, rel=2e-6)


def test_constraints_are_the_margins_of_the_tokens():
    generator = np.random.default_rng(0)
    tokens, queries = generator.normal(size=(3, 5, 4)), generator.normal(size=(3, 2))
    selected, weights = np.array([1, 0, 4]), generator.normal(size=(4, 2))
    found = np.tensordot(
        attention_margin.token_constraints(tokens, queries, selected), weights, axes=2
    )
    logits = np.einsum("ntd,de,ne->nt", tokens, weights, queries)
    margins = logits[np.arange(3), selected][:, None] - logits
    expected = np.concatenate([np.delete(m, s) for m, s in zip(margins, selected, strict=True)])
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize(
    "solve", [attention_margin.frobenius_solution, attention_margin.nuclear_solution]
)
def test_what_nothing_meets_is_refused(solve):
    with pytest.raises(ValueError, match="no weights meet all 2"):
        solve([[[1.0, 0.0]], [[-1.0, 0.0]]])
    with pytest.raises(ValueError, match="constraints has shape"):
        solve(np.ones((2, 3)))


def test_tokens_that_are_not_there():
    with pytest.raises(ValueError, match="selected"):
        attention_margin.token_constraints(np.ones((1, 2, 3)), np.ones((1, 3)), [2])
    with pytest.raises(ValueError, match="give \\(N, T, D\\)"):
        attention_margin.token_constraints(np.ones((2, 3)), np.ones((1, 3)), [0])
