"""Critical points against the book's numbers, closed forms and the maps themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.theory import criticality, signal_propagation

gelu = lambda u: jax.nn.gelu(u, approximate=False)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.silu, gelu])
def test_a_critical_network_keeps_variance_and_gradients(activation):
    variance = {jnp.tanh: 0.5}.get(activation, 1.0)
    found = criticality.critical_initialisation(activation, variance)
    after = signal_propagation.variances(activation, variance, 3, **found._asdict())
    np.testing.assert_allclose(after, variance, rtol=1e-12)
    stretched = signal_propagation.susceptibilities(
        activation, jnp.asarray(variance), weight_variance=found.weight_variance
    )
    np.testing.assert_allclose(stretched.perpendicular, 1, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_gelu_and_silu_are_half_stable_where_the_book_says():
    """Roberts, Yaida, Hanin 2022, section 5.3.4; K of GELU is (3 + √17) / 2 by its closed form."""
    variance = criticality.half_stable_variance(gelu)
    assert abs(variance - (3 + 17**0.5) / 2) < 1e-5
    found = criticality.critical_initialisation(gelu, variance)
    np.testing.assert_allclose(found, (1.98305826, 0.17292239), atol=1e-6)
    assert abs(criticality.half_stable_variance(jax.nn.silu) - 14.32) < 5e-3


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (jax.nn.relu, "scale invariant"),
        (lambda u: u, "scale invariant"),
        (jax.nn.leaky_relu, "scale invariant"),
        (jnp.tanh, "zero variance"),
        (jnp.sin, "zero variance"),
        (jax.scipy.special.erf, "zero variance"),
        (gelu, "half stable"),
        (jax.nn.silu, "half stable"),
        (jax.nn.sigmoid, "none"),
        (jax.nn.softplus, "none"),
        (jnp.square, "none"),
    ],
)
def test_universality_classes(activation, expected):
    assert criticality.universality_class(activation) == expected


@pytest.mark.usefixtures("x64")
def test_series_of_closed_forms():
    """E[sin²] = (1 - exp(-2K)) / 2, and E[erf²] = (2/π) arcsin(2K / (1 + 2K))."""
    np.testing.assert_allclose(criticality.variance_series(jnp.sin), (1, -1, 2 / 3), rtol=1e-12)
    value = lambda k: 2 / jnp.pi * jnp.arcsin(2 * k / (1 + 2 * k))
    first = jax.grad(value)
    expected = [first(0.0), jax.grad(first)(0.0) / 2, jax.grad(jax.grad(first))(0.0) / 6]
    found = criticality.variance_series(jax.scipy.special.erf)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("activation", [jnp.tanh, jnp.sin])
def test_variance_decays_as_predicted(activation):
    """1/K_l - rate l - logarithm log l has a limit: its change from l to 4l falls as log l / l."""
    decay = criticality.variance_decay(activation)
    layers = np.array([1000, 4000])
    inverse = 1 / signal_propagation.variances(activation, 0.5, 4000, num_nodes=64)[layers]
    rest = inverse - decay.rate * layers - decay.logarithm * np.log(layers)
    assert abs(rest[1] - rest[0]) < 0.01


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: criticality.critical_initialisation(jnp.tanh, 0.0), "variance"),
        (lambda: criticality.critical_initialisation(lambda u: 1 + u, 1.0), "C_b"),
        (lambda: criticality.variance_decay(jnp.cos), "no critical point"),
        (lambda: criticality.variance_decay(jnp.sinh), "small variances grow"),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
