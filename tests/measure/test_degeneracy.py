"""Ranks of layers against Jacobians formed in full, and the interaction basis against its laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.measure import degeneracy

SEEDS = st.integers(0, 10**6)
DIM, OUTPUTS, SAMPLES = 5, 3, 40
basis_of = jax.jit(degeneracy.interaction_basis)


def rank(matrix):
    values = np.linalg.svd(matrix, compute_uv=False)
    return int(np.sum(values > 1e-10 * values[0]))


@functools.partial(jax.jit, static_argnums=0)
def measured(apply_fn, params, x):
    """What the library finds, and the derivatives of all outputs by each leaf (N K, size)."""
    rows = jax.vmap(jax.jacrev(lambda p, s: apply_fn(p, s[None])[0]), in_axes=(None, 0))(params, x)
    rows = {name: leaf.reshape(-1, params[name].size) for name, leaf in rows.items()}
    return degeneracy.layer_degeneracy(apply_fn, params, x, batch_size=7), rows


def dense(params, x):
    return jnp.tanh(x @ params["a"] @ params["b"] + params["bias"]) @ params["c"]


def sequence(params, x):  # (N, T, D): the same matrix at every position
    return jnp.sum(jnp.tanh(x @ params["a"]), axis=1) @ params["c"]


def convolution(params, x):  # (N, W, D)
    out = jax.lax.conv_general_dilated(
        x, params["a"], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )
    return jnp.sum(jnp.tanh(out), axis=1) @ params["c"]


def of_rank(rng, rank, *shape):
    """Samples that span `rank` dimensions of their last axis."""
    return rng.normal(size=(*shape[:-1], rank)) @ rng.normal(size=(rank, shape[-1]))


@pytest.mark.parametrize(("r_a", "r_g"), [(2, 3), (6, 1)])
def test_a_dense_layer_before_a_narrow_one(x64, r_a, r_g):
    """a: 6 x 5 behind it b of rank r_g; the ranks are exact and so is their product."""
    rng = np.random.default_rng(r_a)
    params = dict(
        a=rng.normal(size=(6, 5)), b=of_rank(rng, r_g, 5, 7), bias=rng.normal(size=7),
        c=rng.normal(size=(7, 2)),
    )  # fmt: skip
    x = of_rank(rng, r_a, 60, 6)
    found, rows = measured(dense, params, x)
    assert set(found) == {"a", "b", "c"}, "the bias is no matrix"
    assert (int(found["a"].activation_rank), int(found["a"].gradient_rank)) == (r_a, r_g)
    assert int(found["a"].flat_directions) == 30 - rank(rows["a"])
    assert int(found["b"].activation_rank) == min(r_a, 5)
    assert int(found["c"].gradient_rank) == 2
    for name in "abc":
        flat = params[name].size - rank(rows[name])
        assert int(found[name].flat_directions) <= flat
    spectrum = np.linalg.svd(x, compute_uv=False)
    np.testing.assert_allclose(found["a"].activation_spectrum, spectrum, atol=1e-9)


@pytest.mark.parametrize("network", [sequence, convolution])
def test_layers_with_many_positions(x64, network):
    """Ranks over positions too; a count no larger than that of the Jacobian."""
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(4, 5) if network is sequence else (2, 4, 5))
    found, rows = measured(
        network, dict(a=matrix, c=of_rank(rng, 2, 5, 4)), of_rank(rng, 3, 50, 6, 4)
    )
    found = found["a"]
    assert int(found.activation_rank) == (3 if network is sequence else 6)
    assert int(found.gradient_rank) == 5, "tanh spreads the two directions of c over all units"
    flat = matrix.size - rank(rows["a"])
    assert int(found.flat_directions) == flat > 0


def hidden(seed):
    """Activations that hang together, of sizes from 1 to 100, and derivatives."""
    rng = np.random.default_rng(seed)
    activations = rng.normal(size=(SAMPLES, DIM)) * 10 ** np.linspace(0, 2, DIM)
    activations = activations @ np.linalg.qr(rng.normal(size=(DIM, DIM)))[0] + rng.normal(size=DIM)
    return rng, activations, rng.normal(size=(SAMPLES, OUTPUTS, DIM))


def moments(activations, jacobians):
    centred = activations - activations.mean(axis=0)
    covariance = centred.T @ centred / SAMPLES
    return covariance, np.einsum("nki,nkj->ij", jacobians, jacobians) / SAMPLES


@given(seed=SEEDS)
def test_the_basis_makes_both_moments_diagonal(seed):
    _, activations, jacobians = hidden(seed)
    covariance, curvature = moments(activations, jacobians)
    with jax.enable_x64(True):
        basis = jax.tree.map(np.asarray, basis_of(activations, jacobians))
    whole = np.sort(np.linalg.eigvals(covariance @ curvature).real)[::-1]
    top = whole[0]
    np.testing.assert_allclose(basis.values, whole, atol=1e-10 * top)
    forth, back = basis.to_basis, basis.from_basis
    np.testing.assert_allclose(forth @ back, np.eye(DIM), atol=1e-10)
    np.testing.assert_allclose(forth @ covariance @ forth.T, np.eye(DIM), atol=1e-9)
    np.testing.assert_allclose(back.T @ curvature @ back, np.diag(basis.values), atol=1e-9 * top)


@given(seed=SEEDS, power=st.floats(0, 3))
def test_coordinates_do_not_depend_on_how_the_layer_is_written(seed, power):
    """h -> R h + c with R of condition number 10^power, undone above."""
    rng, activations, jacobians = hidden(seed)
    turns = [np.linalg.qr(rng.normal(size=(DIM, DIM)))[0] for _ in range(2)]
    mixing = turns[0] @ np.diag(10 ** np.linspace(0, power, DIM)) @ turns[1]
    moved = activations @ mixing.T + rng.normal(size=DIM)
    with jax.enable_x64(True):
        basis = basis_of(activations, jacobians)
        again = basis_of(moved, jacobians @ np.linalg.inv(mixing))
        basis, again = jax.tree.map(np.asarray, (basis, again))
    bound = 1e-13 * 10**power
    np.testing.assert_allclose(again.values, basis.values, atol=100 * bound * basis.values[0])
    values = basis.values
    if np.min(-np.diff(values)) > 1e-3 * values[0]:  # distinct: coordinates up to sign
        coordinates = (activations - basis.mean) @ basis.to_basis.T
        others = (moved - again.mean) @ again.to_basis.T
        signs = np.sign(np.sum(coordinates * others, axis=0))
        np.testing.assert_allclose(others * signs, coordinates, atol=1e6 * bound)


def test_directions_without_activation_or_gradient_have_value_zero(x64):
    """One direction of h never moves and one never matters, hidden by R: three values are left."""
    rng, activations, jacobians = hidden(0)
    activations[:, 3] = 7.0
    jacobians[..., 4] = 0
    mixing = rng.normal(size=(DIM, DIM))
    found = basis_of(activations @ mixing.T, jacobians @ np.linalg.inv(mixing))
    covariance, curvature = moments(activations, jacobians)
    whole = np.sort(np.linalg.eigvals(covariance @ curvature).real)[::-1]
    assert whole[2] > 1e-6 * whole[0]
    np.testing.assert_allclose(found.values, whole, atol=1e-9 * whole[0])
    np.testing.assert_allclose(found.values[3:], 0, atol=1e-12 * whole[0])
    assert np.linalg.matrix_rank(found.to_basis) == 4, "what never moves has no coordinate"


def test_derivatives_of_the_network_above(x64, key):
    weights = jax.random.normal(key, (DIM, OUTPUTS))
    activations = jax.random.normal(key, (4, DIM))
    found = degeneracy.output_jacobians(lambda h: jnp.tanh(h @ weights), activations)
    slopes = 1 - np.tanh(activations @ weights) ** 2  # (4, K)
    np.testing.assert_allclose(found, slopes[..., None] * weights.T, atol=1e-12)


H = jnp.ones((4, 2))


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: degeneracy.interaction_basis(H[0], H[None]), ValueError, "activations has shape"),
        (lambda: degeneracy.interaction_basis(H, H), ValueError, "jacobians has shape"),
        (lambda: degeneracy.output_jacobians(jnp.sin, H[0]), ValueError, "activations has shape"),
        (
            lambda: degeneracy.layer_degeneracy(lambda w, x: x @ w, H.T, H, batch_size=0),
            ValueError,
            "batch_size=0",
        ),
        (
            lambda: degeneracy.layer_degeneracy(lambda w, x: x, jnp.ones(2, int), H),
            TypeError,
            "params",
        ),
    ],
)
def test_bad_arguments_are_named(call, error, named):
    with pytest.raises(error, match=named):
        call()
