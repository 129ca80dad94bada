"""Faces of Gaussian hulls, by laws that every polytope keeps and by other routes to the angles."""

import math

import numpy as np
import pytest
from scipy import integrate, spatial, stats

from dynamics.theory import gaussian_polytope


def faces(num_points, dim):
    return [gaussian_polytope.expected_faces(num_points, dim, k) for k in range(dim)]


@pytest.mark.parametrize("dim", [2, 3, 5, 8, 15])
@pytest.mark.parametrize("excess", [1, 2, 10, 50])
def test_euler_and_dehn_sommerville(dim, excess):
    """Σ (-1)^k f_k = 1 - (-1)^D, and every ridge of a simplicial polytope lies in two facets."""
    found = faces(dim + excess, dim)
    signs = (-1.0) ** np.arange(dim)
    assert np.dot(signs, found) == pytest.approx(1 - (-1) ** dim, abs=1e-7 * max(found))
    assert 2 * found[-2] == pytest.approx(dim * found[-1], rel=1e-8)


@pytest.mark.parametrize(("num_points", "dim"), [(6, 2), (20, 2), (50, 3), (30, 5), (40, 9)])
def test_facets_by_a_hyperplane_with_all_points_on_one_side(num_points, dim):
    """Rényi and Sulanke: the plane through D of the points has an offset of N(0, 1/D)."""
    density = lambda p: stats.norm.cdf(p) ** (num_points - dim) * stats.norm.pdf(p, scale=dim**-0.5)
    value, _ = integrate.quad(density, -6, 6, epsabs=0, epsrel=1e-11)
    found = gaussian_polytope.expected_faces(num_points, dim, dim - 1)
    assert found == pytest.approx(2 * math.comb(num_points, dim) * value, rel=1e-8)


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 15])
def test_as_many_points_as_a_simplex_has_are_all_vertices(dim):
    for num_points in (1, dim, dim + 1):
        found = gaussian_polytope.expected_faces(num_points, dim)
        assert found == pytest.approx(min(num_points, 2) if dim == 1 else num_points, rel=1e-9)


def test_on_the_line_two_are_left():
    assert gaussian_polytope.expected_faces(37, 1) == pytest.approx(2)


@pytest.mark.parametrize(("num_points", "dim"), [(12, 3), (20, 4), (15, 6)])
def test_vertices_of_sampled_hulls(num_points, dim):
    points = np.random.default_rng(0).normal(size=(400, num_points, dim))
    counts = np.array([len(spatial.ConvexHull(draw).vertices) for draw in points])
    error = counts.std() / len(counts) ** 0.5
    found = gaussian_polytope.expected_faces(num_points, dim)
    assert abs(counts.mean() - found) < 4 * error
    share = gaussian_polytope.unselectable_share(num_points, dim)
    assert share == pytest.approx(1 - found / num_points)


def test_angles_of_the_tetrahedron():
    """Dihedral angle arccos(1/3); solid angle 3 arccos(1/3) - π of the 4π of a sphere."""
    dihedral = math.acos(1 / 3)
    angle = gaussian_polytope.internal_angle
    assert angle(2, 4) == pytest.approx(dihedral / (2 * math.pi), rel=1e-10)
    assert angle(1, 4) == pytest.approx((3 * dihedral - math.pi) / (4 * math.pi), rel=1e-10)
    assert angle(4, 4) == pytest.approx(1)
    assert gaussian_polytope.external_angle(2, 4) == pytest.approx(
        (math.pi - dihedral) / (2 * math.pi), rel=1e-10
    )


@pytest.mark.parametrize("num_vertices", [2, 4, 7, 12])
def test_angles_keep_gram_and_mcmullen(num_vertices):
    """Gram: Σ over faces of (-1)^dim β = 0; McMullen: Σ β(vertex, F) γ(F, T) = 1 over faces F."""
    whole = range(1, num_vertices + 1)
    ways = [math.comb(num_vertices, k) for k in whole]
    gram = sum(
        (-1) ** k * w * gaussian_polytope.internal_angle(k, num_vertices)
        for k, w in zip(whole, ways, strict=True)
    )
    assert gram == pytest.approx(0, abs=1e-9)
    around = sum(
        math.comb(num_vertices - 1, k - 1)
        * gaussian_polytope.internal_angle(1, k)
        * gaussian_polytope.external_angle(k, num_vertices)
        for k in whole
    )
    assert around == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: gaussian_polytope.expected_faces(0, 2), "num_points=0"),
        (lambda: gaussian_polytope.expected_faces(5, 16), "dim=16"),
        (lambda: gaussian_polytope.expected_faces(5, 3, 3), "face_dim=3"),
        (lambda: gaussian_polytope.external_angle(0, 3), "num_face=0"),
        (lambda: gaussian_polytope.internal_angle(4, 3), "num_face=4"),
    ],
)
def test_wrong_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=name):
        call()
