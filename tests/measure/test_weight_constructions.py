"""Weights that run an algorithm, against the algorithm written out in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.measure import weight_constructions
from dynamics.models import linear_attention

SEEDS = st.integers(0, 2**31 - 1)
SIZES = st.sampled_from([(1, 1), (3, 8), (5, 3)])  # d, N: one example, more than d, fewer


def task(seed, dim, num_context):
    """Return x (N, d), y (N,) of a noisy task and a query (d,)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_context, dim))
    return x, x @ rng.normal(size=dim) + rng.normal(size=num_context), rng.normal(size=dim)


def prompt(x, y, query, label=0.0):
    last = np.append(query, label)
    return np.vstack([np.column_stack([x, y]), last])


@functools.partial(jax.jit, static_argnames="num_context")
def run(weights, tokens, num_context):
    """Return the tokens after the last layer."""
    return linear_attention.attention_stack(weights, tokens, num_context=num_context)[-1]


@given(seed=SEEDS, sizes=SIZES, rate=st.floats(0.01, 1.0))
def test_a_stack_of_gradient_descent(seed, sizes, rate):
    dim, num_context = sizes
    x, y, query = task(seed, dim, num_context)
    start = np.random.default_rng(seed + 1).normal(size=dim)
    make = weight_constructions.gradient_descent_construction
    with jax.enable_x64(True):
        first = make(dim, rate, num_context, start=start)
        other = make(dim, rate, num_context)
        one = run(jax.tree.map(lambda m: m[None], first), prompt(x, y, query, -query @ start),
                  num_context)  # fmt: skip
        # The slots now hold y - Δw·x, and the residual of descent is that less w0·x.
        tokens = np.asarray(one).copy()
        tokens[:-1, -1] -= x @ start
        after = run(jax.tree.map(lambda m: np.stack([m, m]), other), tokens, num_context)
    w = start
    for _ in range(3):
        w = w + rate / num_context * x.T @ (y - x @ w)
    np.testing.assert_allclose(-after[-1, -1], query @ w, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(after[:-1, -1], y - x @ w, rtol=1e-10, atol=1e-10)


@given(seed=SEEDS, sizes=SIZES)
def test_a_stack_of_gradient_descent_plus_plus(seed, sizes):
    dim, num_context = sizes
    x, y, query = task(seed, dim, num_context)
    rng = np.random.default_rng(seed + 1)
    eta, gamma = rng.uniform(0, 0.3, (2, 4)) / np.linalg.norm(x, 2) ** 2 * num_context
    make = weight_constructions.gradient_descent_plus_plus_construction
    with jax.enable_x64(True):
        after = run(make(dim, eta, gamma, num_context), prompt(x, y, query), num_context)
    residual, inputs, at, answer = y, x, query, 0.0
    for step, shrink in zip(eta, gamma, strict=True):
        moment = inputs.T @ inputs / num_context
        change = step / num_context * inputs.T @ residual
        answer, residual = answer + change @ at, residual - inputs @ change
        inputs, at = inputs - shrink * inputs @ moment, at - shrink * moment @ at
    np.testing.assert_allclose(-after[-1, -1], answer, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(after[:-1, :-1], inputs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_iterations", [0, 6])
@given(seed=SEEDS, start=st.sampled_from(["identity", "gram"]))
def test_newton_in_two_layers_an_iteration_and_in_one(num_iterations, seed, start):
    x, y, query = task(seed, 3, 6)
    gram = x.T @ x
    scale = 1 / np.linalg.norm(gram, 2) ** (1 if start == "identity" else 2)
    inverse = scale * (np.eye(3) if start == "identity" else gram)
    for _ in range(num_iterations):
        inverse = 2 * inverse - inverse @ gram @ inverse
    expected = query @ inverse @ x.T @ y
    make = weight_constructions
    with jax.enable_x64(True):
        stack = make.newton_construction(3, num_iterations, scale, start=start)
        assert len(stack.query) == 2 * num_iterations + 3
        after = run(stack, make.newton_tokens(x, y, query), 9)
        np.testing.assert_allclose(after[-1, -1], expected, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(after[6:-1, 4:7], inverse, rtol=1e-10, atol=1e-10)
        if start == "identity":
            stack = make.short_newton_construction(3, num_iterations, scale)
            assert len(stack.query) == num_iterations + 1
            after = run(stack, make.short_newton_tokens(x, y, query), 6)
            np.testing.assert_allclose(after[-1, -1], expected, rtol=1e-10, atol=1e-10)


def test_wrong_arguments_are_named():
    make = weight_constructions
    with pytest.raises(ValueError, match="dim=0"):
        make.gradient_descent_construction(0, 0.1, 3)
    with pytest.raises(ValueError, match="start has shape"):
        make.gradient_descent_construction(2, 0.1, 3, start=jnp.zeros(3))
    with pytest.raises(ValueError, match="learning_rates has shape"):
        make.gradient_descent_plus_plus_construction(2, [0.1], [0.1, 0.2], 3)
    with pytest.raises(ValueError, match="num_iterations=-1"):
        make.newton_construction(2, -1, 0.1)
    with pytest.raises(ValueError, match="start='zero'"):
        make.newton_construction(2, 1, 0.1, start="zero")
    with pytest.raises(ValueError, match="num_iterations=-2"):
        make.short_newton_construction(2, -2, 0.1)
    with pytest.raises(ValueError, match="targets"):
        make.newton_tokens(jnp.ones((3, 2)), jnp.ones(2), jnp.ones(2))
