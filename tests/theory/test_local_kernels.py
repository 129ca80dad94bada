"""Local kernels against loops, their spectra against quadrature and the matrix of a grid."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from dynamics.theory import eigenframework, local_kernels

pytestmark = pytest.mark.usefixtures("x64")


def written_out(x, y, size):
    """Mean over cyclic patches of exp(-distance of the points on their circles)."""
    points = [np.stack([np.cos(a), np.sin(a)], axis=1) for a in (x, y)]
    starts = range(1 if size == len(x) else len(x))
    total = 0.0
    for start in starts:
        patch = [(start + j) % len(x) for j in range(size)]
        total += np.exp(-np.linalg.norm(points[0][patch] - points[1][patch]))
    return total / len(starts)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_kernel(key, size):
    x, y = (np.asarray(jax.random.uniform(k, (3, 4), maxval=6.3)) for k in jax.random.split(key))
    found = local_kernels.kernel(jnp.asarray(x), jnp.asarray(y), size=size)
    expected = [[written_out(a, b, size) for b in y] for a in x]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(jnp.diagonal(local_kernels.kernel(x, x, size=size)), 1, rtol=1e-12)


def test_one_circle_by_quadrature():
    found = np.sort(np.asarray(local_kernels.spectrum(1, 1, 1).eigenvalues))[::-1]
    for frequency in range(4):
        integrand = lambda a, m=frequency: np.exp(-2 * np.sin(a / 2)) * np.cos(m * a) / np.pi
        expected, _ = scipy.integrate.quad(integrand, 0, np.pi)
        assert found[frequency] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("num_circles", "size"), [(2, 1), (2, 2), (3, 2)])
def test_the_eigenvalues_of_a_grid(num_circles, size):
    """The kernel's matrix on a grid of 12 or 24 angles a circle; 5 % is folded back."""
    num = 24 if num_circles == 2 else 12
    grid = 2 * np.pi / num * np.array(list(itertools.product(range(num), repeat=num_circles)))
    matrix = np.asarray(local_kernels.kernel(grid, grid, size=size)) / len(grid)
    expected = np.linalg.eigvalsh(matrix)[::-1][:9]
    found = local_kernels.spectrum(num_circles, size, size)
    counts = np.round(found.traces / np.maximum(found.eigenvalues, 1e-300)).astype(int)
    every = np.sort(np.repeat(found.eigenvalues, np.clip(counts, 0, 100)))[::-1][:9]
    np.testing.assert_allclose(every, expected, rtol=0.08)


@pytest.mark.parametrize("student", [1, 2, 4])
@pytest.mark.parametrize("target", [1, 2, 4])
def test_traces(student, target):
    """Kernels are one at distance zero; what a small patch cannot see has no eigenvalue."""
    found = local_kernels.spectrum(4, student, target)
    np.testing.assert_allclose([found.traces.sum(), found.powers.sum()], 1, rtol=0.003)
    unseen = found.powers[found.eigenvalues == 0].sum()
    assert (unseen > 0.1) == (student < target)


@pytest.mark.parametrize("size", [1, 2])
def test_the_exponent_tends_to_one_over_the_patch(size):
    samples = jnp.array([[64.0, 128.0], [512.0, 1024.0]])
    error = eigenframework.risk(
        local_kernels.spectrum(4, size, 1), num_samples=samples, ridge=1e-9
    ).test
    early, late = np.log2(error[:, 0] / error[:, 1])
    assert abs(late - 1 / size) < abs(early - 1 / size)
    assert late == pytest.approx(1 / size, abs=0.06)


def test_refusals():
    with pytest.raises(ValueError, match="size=3"):
        local_kernels.patches(2, 3)
    with pytest.raises(ValueError, match="num_circles=5"):
        local_kernels.spectrum(5, 1, 1)
    with pytest.raises(ValueError, match="angles2"):
        local_kernels.kernel(jnp.ones((2, 3)), jnp.ones((2, 4)), size=1)
