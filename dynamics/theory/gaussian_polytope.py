"""Convex hulls of Gaussian points: how many faces they have on average, in any dimension.

A key of dot-product attention gets the largest score from some query exactly where it is a vertex
of the convex hull of all keys, so the expected number of vertices is the number of keys that
attention can select.
"""

import math

import numpy as np
from scipy import special

from dynamics import arguments


def expected_faces(num_points: int, dim: int, face_dim: int = 0) -> float:
    """Return the mean number of k-dimensional faces of the hull of N Gaussian points in R^D.

    The points are independent N(0, I); any other common Gaussian of full rank gives the same.
    Such a hull is a random projection of the regular simplex T with N vertices, whence

        E f_k = 2 Σ_{m = D, D-2, ... > k} C(N, m) C(m, k + 1) β(T_k, T_{m-1}) γ(T_{m-1}, T_{N-1})

    with internal angles β and external angles γ (Affentranger and Schneider 1992,
    doi:10.1007/BF02187839). The relative error is below
    1e-8 for dim up to 15; above it the integral for β cancels.

    Args:
        num_points: N, at least 1.
        dim: D, from 1 to 15.
        face_dim: k, from 0 (vertices) to D - 1 (facets).

    Raises:
        ValueError: an argument outside of these ranges.

    Example:
        >>> round(expected_faces(20, 2), 3)  # vertices of a polygon of 20 points in the plane
        6.62
        >>> round(expected_faces(4, 3), 6)  # a tetrahedron keeps all four
        4.0
    """
    arguments.integers(num_points=num_points, dim=dim, face_dim=face_dim)
    if num_points < 1 or not 1 <= dim <= 15:
        message = f"num_points={num_points}, dim={dim}: give at least one point and dim 1 to 15"
        raise ValueError(message)
    if not 0 <= face_dim < dim:
        message = f"face_dim={face_dim}: give a number from 0 to dim - 1 = {dim - 1}"
        raise ValueError(message)
    if num_points <= dim:  # the hull is the simplex of all points
        return float(math.comb(num_points, face_dim + 1))
    total = 0.0
    for num in range(dim, face_dim, -2):  # vertices of the simplices T_{m-1}
        inner = internal_angle(face_dim + 1, num)
        ways = math.comb(num_points, num) * math.comb(num, face_dim + 1)
        total += 2 * ways * inner * external_angle(num, num_points)
    return total


def unselectable_share(num_keys: int, dim: int) -> float:
    """Return the mean share of N Gaussian keys in R^D that no query gives the largest score.

    1 - E f_0 / N. Keys whose mean over coordinates is taken away are Gaussian in D - 1 dimensions.

    Raises:
        ValueError: as `expected_faces`.

    Example:
        >>> round(unselectable_share(50, 3), 3)
        0.65
    """
    arguments.counts(num_keys=num_keys)
    return 1 - expected_faces(num_keys, dim) / num_keys


def external_angle(num_face: int, num_vertices: int) -> float:
    """Return the external angle γ of a regular simplex at a face: its share of all directions.

    sqrt(k/2π) ∫ Φ(x)^{n-k} exp(-k x²/2) dx for a face of k of the n vertices; the whole simplex
    has 1, and the angles at the vertices add up to 1.

    Raises:
        ValueError: not 1 <= num_face <= num_vertices.

    Example:
        >>> round(external_angle(1, 5), 6)
        0.2
    """
    _check_face(num_face, num_vertices)
    x = np.linspace(-13, 13, 4001)  # the trapezoid rule is exact to rounding for such integrands
    log_integrand = (num_vertices - num_face) * special.log_ndtr(x) - num_face * x**2 / 2
    integral = np.exp(log_integrand).sum() * (x[1] - x[0])
    return float(np.sqrt(num_face / (2 * np.pi)) * integral)


def internal_angle(num_face: int, num_vertices: int) -> float:
    """Return the internal angle β of a regular simplex at a face: the share that it fills.

    With m = n - k for a face of k of the n vertices it is the chance that m Gaussians with
    covariance δ_ij - 1/n are all negative, ∫ Φ(i x/√n)^m φ(x) dx (Kabluchko and Zaporozhets 2018,
    arXiv:1704.04968).

    Raises:
        ValueError: not 1 <= num_face <= num_vertices.

    Example:
        >>> round(6 * internal_angle(1, 3), 6)  # a corner of a triangle: 60 of 360 degrees
        1.0
    """
    _check_face(num_face, num_vertices)
    power = num_vertices - num_face
    x = np.linspace(-13, 13, 20_001) * np.sqrt(num_vertices)
    normal = special.erfc(-1j * x / np.sqrt(2 * num_vertices)) / 2  # Φ(i x/√n), never zero
    integrand = np.exp(power * np.log(normal) - x**2 / 2).real / np.sqrt(2 * np.pi)
    return float(integrand.sum() * (x[1] - x[0]))


def _check_face(num_face: int, num_vertices: int) -> None:
    arguments.integers(num_face=num_face, num_vertices=num_vertices)
    if not 1 <= num_face <= num_vertices:
        message = f"num_face={num_face}: give a number from 1 to num_vertices={num_vertices}"
        raise ValueError(message)
