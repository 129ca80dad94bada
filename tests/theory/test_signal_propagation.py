"""Maps of variance and correlation against Monte Carlo, closed forms and neural-tangents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.theory import criticality, dual_activations, infinite_width, signal_propagation

gelu = lambda u: jax.nn.gelu(u, approximate=False)


@pytest.mark.usefixtures("x64")
def test_variances_of_erf_are_those_of_its_closed_form():
    found = signal_propagation.variances(
        jax.scipy.special.erf, jnp.array([0.2, 3.0]), 6, weight_variance=1.7, bias_variance=0.3
    )
    k = np.array([0.2, 3.0])
    for layer in found:
        np.testing.assert_allclose(layer, k, rtol=1e-8)
        k = 1.7 * dual_activations.erf_dual(k, k, k).value + 0.3


@pytest.mark.usefixtures("x64")
def test_relu_correlations_are_those_of_neural_tangents():
    """The NNGP of a stack of depth l, and the derivative from the growth of its tangent kernel."""
    x = jnp.array([[1.0, 0.0], [0.6, 0.8], [-0.8, 0.6]]) * 2**0.5
    found = signal_propagation.relu_correlations(jnp.array([0.6, -0.8]), 5)
    # The kernel of depth l is of pre-activations l, whose variance is that of layer 0: 2 |x|²/2
    kernels = [
        infinite_width.kernels(infinite_width.fully_connected(depth, "relu", weight_std=2**0.5), x)
        for depth in range(6)
    ]
    for depth in range(6):
        correlation = kernels[depth].nngp[0, 1:] / kernels[depth].nngp[0, 0]
        np.testing.assert_allclose(found.defect[depth], 1 - correlation, atol=1e-7)
    for depth in range(5):
        gained = kernels[depth + 1].ntk - kernels[depth + 1].nngp
        expected = (gained / kernels[depth].ntk)[0, 1:]
        np.testing.assert_allclose(found.derivative[depth], expected, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_smooth_correlations_are_those_of_the_closed_form_of_erf():
    variance, weight = 0.7, 1.3
    found = signal_propagation.smooth_correlations(
        jax.scipy.special.erf, jnp.array([-0.6, 0.2]), 4, variance=variance,
        weight_variance=weight, num_nodes=48,
    )  # fmt: skip
    correlation = np.array([-0.6, 0.2])
    bias = variance - weight * dual_activations.erf_dual(variance, variance, variance).value
    for defect, derivative in zip(*found, strict=True):
        np.testing.assert_allclose(defect, 1 - correlation, atol=1e-7)
        dual = dual_activations.erf_dual(variance * correlation, variance, variance)
        np.testing.assert_allclose(derivative, weight * dual.derivative, atol=1e-6)
        correlation = (weight * dual.value + bias) / variance


def test_smooth_correlations_are_expectations(key):
    """A million draws, within five standard errors."""
    variance, weight, c = 0.5, 1.5, 0.3
    u, w = variance**0.5 * jax.random.normal(key, (2, 1_000_000))
    v = c * u + (1 - c**2) ** 0.5 * w
    found = signal_propagation.smooth_correlations(
        jnp.tanh, c, 1, variance=variance, weight_variance=weight
    )
    slope = lambda x: 1 - jnp.tanh(x) ** 2
    for value, draws in (
        (found.defect[1], weight * (jnp.tanh(u) - jnp.tanh(v)) ** 2 / (2 * variance)),
        (found.derivative[0], weight * slope(u) * slope(v)),
    ):
        assert abs(value - draws.mean()) < 5 * draws.std() / 1000


@pytest.mark.usefixtures("x64")
def test_laws_of_small_defects():
    """9π²/2l² and (l/L)³ for ReLU; 2/(C_W E[s''²] K l) and (l/L)² for tanh at its edge."""
    relu = signal_propagation.relu_correlations(jnp.array([0.3]), 2**18)
    assert abs(2**36 * relu.defect[-1, 0] / (4.5 * np.pi**2) - 1) < 4e-4
    log_kept = signal_propagation.backward_correlations(relu.derivative)[:, 0]
    assert abs(log_kept[2**17] / np.log(0.5) - 3) < 1e-3
    start = criticality.critical_initialisation(jnp.tanh, 0.5, num_nodes=36)
    smooth = signal_propagation.smooth_correlations(
        jnp.tanh, jnp.array([0.3]), 2**13, variance=0.5, weight_variance=start.weight_variance,
        num_nodes=36,
    )  # fmt: skip
    bend = lambda u: jax.grad(jax.grad(jnp.tanh))(u) ** 2
    roughness = signal_propagation.gaussian_mean(
        lambda u: jax.vmap(bend)(u), jnp.asarray(0.5), num_nodes=36
    )
    # 1/d grows by C_W E[s''²] K / 2 a layer; between two layers the constant drops out
    growth = jnp.diff(1 / smooth.defect[jnp.array([2**12, 2**13]), 0])[0] / 2**12
    assert abs(growth / (start.weight_variance * roughness * 0.5 / 2) - 1) < 3e-3
    log_kept = signal_propagation.backward_correlations(smooth.derivative)[:, 0]
    assert abs(log_kept[2**12] / np.log(0.5) - 2) < 1e-2


@pytest.mark.usefixtures("x64")
def test_biases_make_relu_correlations_converge_exponentially():
    found = signal_propagation.relu_correlations(jnp.array([0.0]), 100, gain=0.8).defect[:, 0]
    assert abs(found[100] / found[99] - 0.8) < 1e-4
    half = dual_activations.relu_dual(0.5, 1.0, 1.0).value
    once = signal_propagation.relu_correlations(0.5, 1, gain=0.8).defect[1]
    np.testing.assert_allclose(once, 1 - (1.6 * half + 0.2), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_crossing_layers_by_brute_force():
    found = signal_propagation.relu_correlations(jnp.array([-0.5, 0.7]), 400)
    depths = [30, 400]
    crossing = signal_propagation.crossing_layers(found, depths)
    for i, depth in enumerate(depths):
        kept = signal_propagation.backward_correlations(found.derivative[: depth + 1])
        below = found.defect[: depth + 1] < jnp.exp(kept)
        first = jnp.argmax(below, axis=0)
        assert jnp.all((first - 1 <= crossing[i]) & (crossing[i] <= first))


@pytest.mark.parametrize("activation", [jnp.tanh, gelu, jnp.sin])
@pytest.mark.usefixtures("x64")
def test_susceptibilities_are_derivatives(activation):
    """χ∥ of the variance map by automatic differentiation; χ⊥ of the correlation map at one."""
    found = signal_propagation.susceptibilities(activation, jnp.asarray(0.8), weight_variance=1.4)
    one_layer = lambda k: signal_propagation.variances(activation, k, 1, weight_variance=1.4)[1]
    np.testing.assert_allclose(found.parallel, jax.grad(one_layer)(0.8), rtol=1e-10)
    maps = signal_propagation.smooth_correlations(
        activation, 1 - 1e-7, 1, variance=0.8, weight_variance=1.4, num_nodes=64
    )
    np.testing.assert_allclose(maps.defect[1] / maps.defect[0], found.perpendicular, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda s: s.gaussian_mean(jnp.tanh, 1.0, num_nodes=0), "num_nodes"),
        (lambda s: s.variances(jnp.tanh, 1.0, -1), "num_layers"),
        (lambda s: s.variances(jnp.tanh, 1.0, 1, weight_variance=0.0), "weight_variance"),
        (lambda s: s.variances(jnp.tanh, 1.0, 1, bias_variance=-1.0), "bias_variance"),
        (lambda s: s.relu_correlations(1.5, 1), "correlation"),
        (lambda s: s.relu_correlations(0.5, 1, gain=1.5), "gain"),
        (
            lambda s: s.smooth_correlations(jnp.tanh, 0, 1, variance=0.0, weight_variance=1.0),
            "variance",
        ),
        (lambda s: s.crossing_layers(s.relu_correlations(jnp.zeros(1), 3), [4]), "depths"),
        (lambda s: s.crossing_layers(s.relu_correlations(0.0, 3), [2]), "correlations"),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call(signal_propagation)
