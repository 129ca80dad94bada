"""Densities against the eigenvalues of dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.measure import lanczos, spectrum

EIGENVALUES = np.concatenate([np.linspace(-0.5, 1.0, 57), [4.0, 6.0, 6.0]])


def quadratic(params):
    """A loss with those eigenvalues, in a rotated basis of a pytree."""
    flat = jnp.concatenate([params["a"].ravel(), params["b"]])
    rotation = jnp.asarray(ROTATION, flat.dtype)
    return jnp.sum(jnp.asarray(EIGENVALUES, flat.dtype) * (rotation @ flat) ** 2) / 2


ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(60, 60)))[0]
PARAMS = {"a": np.zeros((5, 6)), "b": np.zeros(30)}


def params():
    return jax.tree.map(jnp.asarray, PARAMS)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reorthogonalise", [True, False])
def test_moments_and_density_are_calibrated(key, reorthogonalise):
    """z-scores over 30 keys: mean within four standard errors of 0, spread near 1."""
    call = lambda key: spectrum.spectral_density(
        quadratic, params(), key=key, num_probes=80, num_iterations=12,
        reorthogonalise=reorthogonalise,
    )  # fmt: skip
    found = jax.jit(jax.vmap(call))(jax.random.split(key, 30))
    each = [
        spectrum.SpectralDensity(nodes, weights, 60)
        for nodes, weights in zip(found.nodes, found.weights, strict=True)
    ]
    grid, width = jnp.array([0.3, 4.0, 6.0]), 0.4
    bump = lambda grid: np.exp(-((grid - EIGENVALUES) ** 2) / (2 * width**2)).mean()
    exact = np.array([bump(at) for at in np.asarray(grid)]) / np.sqrt(2 * np.pi * width**2)
    smooth = [one.smooth(grid, width) for one in each]
    z = [(s.mean - exact) / s.standard_error for s in smooth]
    traces = [one.trace_of(jnp.square) for one in each]
    z_trace = [(t.mean - np.sum(EIGENVALUES**2)) / t.standard_error for t in traces]
    scores = np.column_stack([np.array(z), np.array(z_trace)])
    assert np.all(np.abs(scores.mean(axis=0)) < 4 / np.sqrt(30))
    assert np.all((0.5 < scores.std(axis=0, ddof=1)) & (scores.std(axis=0, ddof=1) < 1.5))


@pytest.mark.usefixtures("x64")
def test_with_all_iterations_nodes_are_the_eigenvalues(key):
    found = spectrum.spectral_density(quadratic, params(), key=key, num_probes=2, num_iterations=60)
    np.testing.assert_allclose(found.nodes[0], np.sort(EIGENVALUES), atol=1e-8)
    np.testing.assert_allclose(found.weights.sum(axis=1), 1)
    grid = np.linspace(-6, 12, 4001)
    total = np.trapezoid(found.smooth(jnp.asarray(grid), 0.3).mean, grid)
    np.testing.assert_allclose(total, 1, rtol=1e-8)


@pytest.mark.usefixtures("x64")
def test_quadrature_is_exact_to_its_degree(key):
    """m nodes have the first 2m moments of v^T H^k v right, whatever v."""
    start = jax.random.normal(key, (60,))
    start = start / jnp.linalg.norm(start)
    matrix = ROTATION.T @ np.diag(EIGENVALUES) @ ROTATION
    for form in ("kept", "three-term"):
        if form == "kept":
            _, diagonal, off = lanczos.tridiagonalise(
                lambda v: matrix @ v, start, key=key, num_iterations=4
            )
        else:
            diagonal, off = lanczos.three_term(lambda v: matrix @ v, start, num_iterations=4)
        nodes, vectors = np.linalg.eigh(lanczos.as_matrix(diagonal, off))
        for power in range(8):
            exact = start @ np.linalg.matrix_power(matrix, power) @ start
            np.testing.assert_allclose(vectors[0] ** 2 @ nodes**power, exact, rtol=1e-9)
        assert abs(vectors[0] ** 2 @ nodes**9 / (start @ np.linalg.matrix_power(matrix, 9) @ start)
                   - 1) > 1e-6  # fmt: skip


@pytest.mark.usefixtures("x64")
def test_an_exhausted_space_ends_the_recurrence_cleanly():
    scales = jnp.array([3.0, 3.0, 1.0, 1.0, 1.0])
    diagonal, off = lanczos.three_term(lambda v: scales * v, jnp.ones(5) / 5**0.5, num_iterations=5)
    nodes, vectors = np.linalg.eigh(lanczos.as_matrix(diagonal, off))
    weight_at = lambda value: np.sum(vectors[0, np.abs(nodes - value) < 1e-9] ** 2)
    np.testing.assert_allclose([weight_at(3), weight_at(1)], [0.4, 0.6])


@pytest.mark.parametrize("num_rows", [1, 8, 11, 12])
def test_orthogonalising_in_parts_is_orthogonalising(num_rows):
    rng = np.random.default_rng(num_rows)
    basis = np.zeros((12, 40))
    basis[:num_rows] = np.linalg.qr(rng.normal(size=(40, num_rows)))[0].T
    for vector in (rng.normal(size=40), rng.normal(size=num_rows) @ basis[:num_rows]):
        with jax.enable_x64(True):
            found = lanczos.orthogonalise_in_parts(
                jnp.asarray(basis), jnp.asarray(vector), jnp.int32(num_rows)
            )
        exact = vector - basis.T @ (basis @ vector)
        np.testing.assert_allclose(found, exact, atol=1e-14)


def test_a_long_basis_gives_the_same_tridiagonal_matrix(key, monkeypatch):
    matrix = jnp.asarray(ROTATION.T @ np.diag(EIGENVALUES) @ ROTATION, jnp.float32)
    start = jax.random.normal(key, (60,))
    call = lambda: lanczos.tridiagonalise(
        lambda v: matrix @ v, start / jnp.linalg.norm(start), key=key, num_iterations=60
    )
    short = call()
    monkeypatch.setattr(lanczos, "MANY", 1)
    long = call()
    np.testing.assert_allclose(long.basis @ long.basis.T, np.eye(60), atol=1e-5)
    values = [np.linalg.eigvalsh(lanczos.as_matrix(*each[1:])) for each in (short, long)]
    np.testing.assert_allclose(values[1], values[0], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(num_probes=1), "num_probes=1"),
        (dict(num_iterations=0), "num_iterations=0"),
        (dict(num_iterations=61), "num_iterations=61"),
        (dict(loss_fn=lambda params: params["b"]), "loss_fn"),
        (dict(batch_size=3), "batch_size"),
        (dict(loss_fn=lambda params: jnp.sum(jnp.sqrt(params["b"]))), r"not finite in \['b'\]"),
    ],
)
def test_bad_arguments_are_named(change, named):
    arguments = dict(
        loss_fn=quadratic, params=params(), key=jax.random.key(0), num_probes=2, num_iterations=3
    )
    with pytest.raises(ValueError, match=named):
        spectrum.spectral_density(**arguments | change)
    with pytest.raises(ValueError, match="width=0"):
        spectrum.SpectralDensity(jnp.zeros((2, 1)), jnp.ones((2, 1)), 1).smooth(jnp.zeros(1), 0)
