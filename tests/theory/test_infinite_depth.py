"""Deep kernels against exact rational recursions, finite differences and solved cases."""

from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.theory import dual_activations, hermite_expansion, infinite_depth

CUBIC = (0.0, 0.5, 0.0, 0.5)
pytestmark = pytest.mark.usefixtures("x64")


def rational(weights, defect, depth):
    """K_L and Θ_L in exact fractions."""
    weights = [Fraction(w) for w in weights]
    nngp = ntk = 1 - Fraction(defect)
    for _ in range(depth):
        slope = sum(k * w * nngp ** (k - 1) for k, w in enumerate(weights) if k)
        nngp = sum(w * nngp**k for k, w in enumerate(weights))
        ntk = nngp + slope * ntk
    return nngp, ntk


def logarithm(fraction):
    """Of any size, past the range of floats."""
    bits = fraction.numerator.bit_length() - fraction.denominator.bit_length()
    return float(np.log(float(fraction / Fraction(2) ** bits)) + bits * np.log(2))


@pytest.mark.parametrize(
    "weights", [CUBIC, (0, 0, 1.0), (0.25, 0, 0, 0.75), (0, 0.25, 0.5, 0.25), (0.5, 0.5)]
)
@pytest.mark.parametrize("defect", [1e-12, 0.01, 0.3, 0.9])
def test_recursion_in_exact_fractions(weights, defect):
    depths = (0, 1, 4, 7)  # 3^7 times as many digits as the defect has
    found = infinite_depth.kernels(jnp.array(weights), jnp.array(defect), depths=depths)
    for index, depth in enumerate(depths):
        nngp, ntk = rational(weights, defect, depth)
        np.testing.assert_allclose(found.log_nngp[index], logarithm(nngp), rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(found.log_ntk[index], logarithm(ntk), rtol=1e-12, atol=1e-14)
        _, diagonal = rational(weights, 0, depth)
        np.testing.assert_allclose(found.log_ntk_diagonal[index], logarithm(diagonal), rtol=1e-12)


def test_layers_of_sine_are_those_of_their_own_closed_form(key):
    """E sin(z) sin(z') = exp(-1) sinh(c): no Hermite series in it."""
    weights = hermite_expansion.coefficients(jnp.sin, number=30) ** 2
    defect = jax.random.uniform(key, (50,))
    found = infinite_depth.kernels(weights / weights.sum(), defect, depths=(1, 2, 6))
    nngp = ntk = 1 - defect
    for depth in range(1, 7):
        slope, nngp = jnp.cosh(nngp) / jnp.sinh(1), jnp.sinh(nngp) / jnp.sinh(1)
        ntk = nngp + slope * ntk
        if depth in (1, 2, 6):
            index = (1, 2, 6).index(depth)
            np.testing.assert_allclose(jnp.exp(found.log_nngp[index]), nngp, rtol=1e-11)
            np.testing.assert_allclose(jnp.exp(found.log_ntk[index]), ntk, rtol=1e-11)


def test_wide_erf_network_is_this_recursion(key):
    """The stack of `dual_activations`, its weights scaled so that variances stay where they are."""
    x = jnp.abs(jax.random.normal(key, (6, 4)))
    x = 2 * x / jnp.linalg.norm(x, axis=1, keepdims=True)  # unit mean square
    scale = 1 / jnp.sqrt(dual_activations.erf_dual(1.0, 1.0, 1.0).value)
    nngp = ntk = x @ x.T / 4
    for _ in range(3):
        dual = dual_activations.erf_dual(jnp.clip(nngp, -1, 1), 1.0, 1.0)
        nngp, ntk = scale**2 * dual.value, scale**2 * (dual.value + dual.derivative * ntk)
    weights = hermite_expansion.coefficients(jax.scipy.special.erf, number=120) ** 2
    defect = jnp.sum((x[:, None] - x) ** 2, axis=-1) / 8
    found = infinite_depth.kernels(weights / weights.sum(), defect, depths=(3,))
    np.testing.assert_allclose(jnp.exp(found.log_nngp[0]), nngp, rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(found.log_ntk[0]), ntk, rtol=1e-6)


weight_lists = st.lists(st.floats(0.05, 1), min_size=6, max_size=6)
limit_of = jax.jit(lambda *args: infinite_depth.singular_limit(*args, depth=900))


@hypothesis.given(weight_lists, st.floats(1e-9, 0.3))
def test_singular_limit_scales_from_layer_to_layer(tail, defect):
    """h(ψ(c)) = A'^2 h(c), and the offset of the NTK follows from one layer more."""
    weights = np.array([0, *tail])
    weights /= weights.sum()
    slope, defect = weights[1], jnp.array(defect)
    mapped = -jnp.sum(weights * jnp.expm1(jnp.arange(len(weights)) * jnp.log1p(-defect)))
    here, there = (limit_of(jnp.array(weights), d) for d in (defect, mapped))
    np.testing.assert_allclose(there.kernel, slope * here.kernel, rtol=1e-9)
    np.testing.assert_array_less(0, here.offset)


def test_tangent_kernel_grows_by_one_limit_a_layer():
    defect = jnp.geomspace(1e-4, 0.5, 9)
    weights = jnp.array(CUBIC)
    limit = infinite_depth.singular_limit(weights, defect, depth=100)
    found = infinite_depth.kernels(weights, defect, depths=(150, 400))
    for depth, log_ntk in zip((150, 400), found.log_ntk, strict=True):
        scaled = jnp.exp(log_ntk - depth * jnp.log(0.5))
        np.testing.assert_allclose(scaled, limit.kernel * (depth + limit.offset), rtol=1e-11)


@hypothesis.given(weight_lists)
def test_exponent_is_that_of_the_limit(tail):
    """Pairs B'^(1/2) closer have a kernel 1 / A'^2 as large: the definition of the exponent."""
    weights = np.array([0, *tail])
    weights /= weights.sum()
    growth = float(infinite_depth.slope_at_one(weights))
    alpha = infinite_depth.singular_exponent(weights[1] ** 0.5, growth)
    defect = jnp.array([1e-9, growth * 1e-9])
    near, far = limit_of(jnp.array(weights), defect).kernel
    np.testing.assert_allclose(jnp.log(near / far) / (jnp.log(growth) / 2), alpha, rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((0, 0, 1.0), "nearest_neighbour"),
        ((0.2, 0, 0, 0.8), "majority"),
        ((0.2, 0.2, 0, 0.6), "majority"),
        (CUBIC, "singular"),
        ((0, 1.0), "ordered"),
        ((0.6, 0.4), "ordered"),
        ((1.0,), "ordered"),
    ],
)
def test_limit_classifier(weights, expected):
    assert infinite_depth.limit_classifier(np.array(weights)) == expected


def test_relu_is_critical():
    """B' = 1 exactly; the quadrature stops short of it, as its weights' slopes converge slowly."""
    weights = hermite_expansion.coefficients(jax.nn.relu, number=100, order=1000) ** 2
    assert infinite_depth.limit_classifier(weights / weights.sum()) == "ordered"
    for odd in (jnp.tanh, jnp.sin):
        weights = hermite_expansion.coefficients(odd, number=60) ** 2
        assert infinite_depth.limit_classifier(weights / weights.sum()) == "singular"


def test_orthogonal_and_equal_samples():
    found = infinite_depth.kernels(jnp.array(CUBIC), jnp.array([0.0, 1.0]), depths=(0, 500))
    np.testing.assert_allclose(found.log_nngp[:, 0], 0, atol=1e-15)
    np.testing.assert_allclose(found.log_ntk[:, 0], found.log_ntk_diagonal)
    assert not np.any(np.isnan(found.log_ntk))
    np.testing.assert_array_equal(jnp.exp(found.log_ntk[:, 1]), 0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(weights=jnp.ones((1, 2))), "weights"),
        (dict(defect=jnp.array(1.5)), "defect"),
        (dict(depths=(3, 2)), "depths"),
        (dict(depths=()), "depths"),
        (dict(depths=(-1,)), "depths"),
    ],
)
def test_bad_arguments_are_named(change, named):
    arguments = dict(weights=jnp.array(CUBIC), defect=jnp.array(0.5), depths=(1,)) | change
    with pytest.raises(ValueError, match=named):
        infinite_depth.kernels(**arguments)


def test_weights_that_are_none():
    for weights in ([0.5, 0.4], [-0.5, 1.5], [[1.0]], [np.nan, 1]):
        with pytest.raises(ValueError, match="weights"):
            infinite_depth.limit_classifier(np.array(weights))
