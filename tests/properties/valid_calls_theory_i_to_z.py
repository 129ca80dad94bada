"""One valid call of every public function of `dynamics.theory`, modules from i to z."""

import jax.numpy as jnp
import numpy as np

from dynamics.theory import (
    dual_activations,
    in_context_descent,
    in_context_regression,
    infinite_depth,
    infinite_width,
    inverse_covariance_probe,
    kernel_descent,
    layerwise_ntk,
    lazy_rich,
    linear_dynamics,
    local_kernels,
    matrix_factorisation,
    mixup_features,
    modular_addition,
    nonsmooth_descent,
    opposing_signals,
    relu_products,
    sampled_energy,
    self_distillation,
    sgd_stability,
    signal_propagation,
    stability,
    unconstrained_features,
)

ROWS = jnp.array([[2.0, 0.0], [-1.0, 0.5]])
EYE, ONES, ONE_HOT = jnp.eye(2), jnp.ones(2), jnp.eye(2)
MATRIX = np.array([[1.0, 2.0], [3.0, 5.0], [1.0, 1.0]])
LAYER = dict(classifier_decay=0.25, feature_decay=0.25)
NEURONS = dict(first=jnp.array([1.0, 0.5, 0.0]), second=jnp.array([0.5, 1.0, 0.2]))
WAVES = dict(frequencies=jnp.array([1, 1]), modulus=3)
PROMPT = dict(inputs=jnp.array([[2.0], [1.0]]), targets=jnp.array([6.0, 3.0]))
KERNELS = dict(kernel_train=EYE, kernel_test_train=jnp.ones((3, 2)))
DESCENT = dict(learning_rate=0.1, times=np.array([0.0, 1.0]), dynamics="discrete")
DEEP = dict(weights=jnp.array([0.0, 0.5, 0.0, 0.5]), defect=jnp.array([0.1, 0.2]))
WIDE = dict(weight_std=1.0, bias_std=0.5)
SPREAD = dict(activation=jnp.tanh, variance=jnp.ones(2))
DRAWN = dict(activations=jnp.ones((2, 4)), labels=jnp.array([0, 1, 0, 1]), num_labels=2)
GRADIENTS = dict(gradients=MATRIX)
SPECTRA = dict(eigenvalues=np.array([[1.0, 2.0], [1.0, 3.0]]))


def _moments():
    return lazy_rich.infinite_width_start(2)


def _quadratic():
    return lazy_rich.Quadratic(jnp.ones(2), jnp.eye(2))


def _sample():
    return lazy_rich.summarise(jnp.ones(2), ROWS, 2)


def _state():
    return opposing_signals.State(np.array(0.5), np.array([0.1, 0.2]), np.array(0.01))


def _kernel_fn(x1, x2=None, **_):
    return dual_activations.fully_connected_kernels(x1, x2, activation="relu", depth=1)


CALLS = {
    in_context_descent.excess_moment: lambda: dict(dim=2, num_context=3, kurtosis=3.0),
    in_context_descent.one_step_loss: lambda: dict(
        learning_rate=0.1, dim=2, num_context=3, variance=1.0, kurtosis=3.0, input_scale=1.0
    ),
    in_context_descent.optimal_one_step: lambda: dict(
        dim=2, num_context=3, variance=1.0, kurtosis=3.0
    ),
    in_context_descent.residual_factors: lambda: dict(
        eigenvalues=np.ones(3), learning_rates=np.ones(2), input_rates=np.ones(2)
    ),
    in_context_descent.best_rates: lambda: dict(
        **SPECTRA, num_layers=1, variance=1.0, tied=True, plus_plus=False
    ),
    in_context_descent.newton_inverse: lambda: dict(
        eigenvalues=np.array([0.5, 1.0]), num_iterations=2, start_scale=1.0, start="identity"
    ),
    in_context_descent.gradient_descent_steps: lambda: dict(condition=100.0, tolerance=0.1),
    in_context_descent.newton_iterations: lambda: dict(
        condition=100.0, tolerance=0.1, start="identity"
    ),
    in_context_descent.input_rates: lambda: dict(
        condition=100.0, num_layers=2, scheme="best", largest=1.0
    ),
    in_context_descent.whitened_condition: lambda: dict(
        condition=100.0, num_layers=2, scheme="best"
    ),
    in_context_descent.gradient_descent_plus_plus_layers: lambda: dict(
        condition=100.0, tolerance=0.1, scheme="best"
    ),
    in_context_regression.gradient_descent_predictions: lambda: dict(
        **PROMPT, num_steps=jnp.array([0, 1]), learning_rate=0.1
    ),
    in_context_regression.newton_predictions: lambda: dict(
        **PROMPT, num_iterations=jnp.array([0, 1])
    ),
    in_context_regression.ridge_predictions: lambda: dict(**PROMPT, ridge=0.1),
    infinite_depth.kernels: lambda: dict(**DEEP, depths=(0, 2)),
    infinite_depth.singular_limit: lambda: dict(**DEEP, depth=3),
    infinite_depth.slope_at_one: lambda: dict(weights=DEEP["weights"]),
    infinite_depth.singular_exponent: lambda: dict(mean_slope=0.7, mean_square_slope=2.0),
    infinite_depth.limit_classifier: lambda: dict(weights=DEEP["weights"]),
    infinite_width.kernels: lambda: dict(kernel_fn=_kernel_fn, x1=ROWS, x2=ROWS),
    infinite_width.fully_connected: lambda: dict(depth=1, activation="relu", **WIDE),
    infinite_width.convolutional: lambda: dict(
        depth=1, activation="relu", filter_size=3, stride=1, readout="pool", **WIDE
    ),
    infinite_width.attention: lambda: dict(depth=1, activation="relu", readout="pool", **WIDE),
    infinite_width.gradient_descent_mean_and_covariance: lambda: dict(
        kernel_fn=_kernel_fn, x_train=ROWS, y_train=ONES, x_test=ROWS, **DESCENT
    ),
    inverse_covariance_probe.wishart_spectra: lambda: dict(
        dim=2, num_context=3, num_draws=2, seed=0
    ),
    inverse_covariance_probe.descent_polynomial: lambda: dict(**SPECTRA, step=0.1, num_steps=2),
    inverse_covariance_probe.probe_r_squared: lambda: dict(**SPECTRA, applied=np.ones((2, 2))),
    inverse_covariance_probe.polynomial_r_squared: lambda: dict(**SPECTRA, degree=1),
    inverse_covariance_probe.raw_input_r_squared: lambda: dict(dim=2, num_context=9),
    kernel_descent.mean: lambda: dict(
        **KERNELS, targets=ONES, **DESCENT, initial_train=0.1, initial_test=0.1
    ),
    kernel_descent.covariance: lambda: dict(
        smoothers=jnp.ones((2, 3, 2)),
        nngp_test=jnp.eye(3),
        nngp_test_train=jnp.ones((3, 2)),
        nngp_train=EYE,
    ),
    kernel_descent.smoother: lambda: dict(**KERNELS, **DESCENT),
    kernel_descent.check: lambda: DESCENT,
    layerwise_ntk.grams: lambda: dict(
        matrices=(jnp.ones((2, 3)), jnp.ones((3, 1))),
        biases=(jnp.ones(3), jnp.ones(1)),
        x=ROWS,
        activation=jnp.tanh,
        multipliers=(1.0, 0.5),
        bias_std=0.1,
    ),
    layerwise_ntk.flops: lambda: dict(widths=(3, 4, 1), num_samples=2),
    lazy_rich.infinite_width_start: lambda: dict(input_dim=2),
    lazy_rich.weight_moments: lambda: dict(weights=ROWS),
    lazy_rich.predictor: lambda: dict(
        moments=_moments(), start=_moments(), output_scale=1.0, curvature=0.5
    ),
    lazy_rich.evaluate: lambda: dict(function=_quadratic(), inputs=ROWS),
    lazy_rich.descend: lambda: dict(
        moments=_moments(),
        residual=_quadratic(),
        learning_rate=0.1,
        output_scale=1.0,
        curvature=0.5,
    ),
    lazy_rich.population_loss: lambda: dict(function=_quadratic(), teacher=ONES),
    lazy_rich.pack: lambda: dict(function=_quadratic()),
    lazy_rich.unpack: lambda: dict(packed=jnp.ones(5), input_dim=2),
    lazy_rich.summarise: lambda: dict(teacher=ONES, inputs=ROWS, num_samples=2),
    lazy_rich.residual: lambda: dict(function=_quadratic(), sample=_sample()),
    lazy_rich.training_loss: lambda: dict(function=_quadratic(), sample=_sample()),
    linear_dynamics.unexplained_share: lambda: dict(dim=3, num_pairs=2),
    linear_dynamics.one_step_floor: lambda: dict(dim=3),
    local_kernels.patches: lambda: dict(num_circles=3, size=2),
    local_kernels.kernel: lambda: dict(angles1=ROWS, angles2=ROWS, size=2),
    local_kernels.spectrum: lambda: dict(num_circles=1, student_size=1, target_size=1),
    matrix_factorisation.excess_clock: lambda: dict(
        squares=np.array([0.1, 0.2]), learning_rate=0.1
    ),
    matrix_factorisation.symmetric_loss: lambda: dict(
        num_excess=2, num_steps=10, learning_rate=0.5
    ),
    matrix_factorisation.exact_rank_rate: lambda: dict(
        eigenvalues=np.array([1.0, 0.5]), learning_rate=0.2
    ),
    matrix_factorisation.excess_imbalance: lambda: dict(
        first=MATRIX, second=MATRIX, left=np.eye(3)[:, :1], right=np.eye(3)[:, :1]
    ),
    mixup_features.strength: lambda: dict(classifier_length=1.0, feature_decay=0.5, num_classes=3),
    mixup_features.cross_entropy_logits: lambda: dict(targets=ONE_HOT, strength=1.0),
    mixup_features.squared_loss_logits: lambda: dict(targets=ONE_HOT, strength=1.0),
    mixup_features.features: lambda: dict(classifier=EYE, logits=jnp.ones((3, 2))),
    mixup_features.joint_strength: lambda: dict(targets=ONE_HOT, **LAYER),
    modular_addition.energy: lambda: NEURONS,
    modular_addition.energy_gradient: lambda: NEURONS,
    modular_addition.largest_energy: lambda: dict(modulus=3),
    modular_addition.ascent_rates: lambda: NEURONS,
    modular_addition.ascent: lambda: dict(**NEURONS, times=jnp.array([0.0, 0.1])),
    modular_addition.analytic_network: lambda: dict(**WAVES, phases=jnp.ones((2, 2))),
    modular_addition.mean_logits: lambda: WAVES,
    modular_addition.logit_covariance: lambda: WAVES,
    modular_addition.analytic_accuracy: lambda: dict(width=4.0, modulus=3),
    nonsmooth_descent.orbit_radius: lambda: dict(exponent=1.5, learning_rate=0.1, rounding=0.01),
    nonsmooth_descent.orbit_sharpness: lambda: dict(exponent=1.5, learning_rate=0.1, rounding=0.01),
    nonsmooth_descent.chatter_norm: lambda: dict(
        gram=np.eye(2), signs=np.array([1.0, -1.0]), learning_rate=0.1, penalty=4.0
    ),
    nonsmooth_descent.mean_chatter_norm: lambda: dict(
        gram=np.eye(2), correlation=np.ones(2), learning_rate=0.1, penalty=4.0
    ),
    opposing_signals.conserved: lambda: dict(state=_state()),
    opposing_signals.flow: lambda: dict(
        start=_state(),
        teacher=np.array([1.0, 2.0]),
        outlier_variance=8.0,
        times=np.array([0.0, 0.1]),
    ),
    opposing_signals.hessian: lambda: dict(
        state=_state(), teacher=np.array([1.0, 2.0]), outlier_variance=8.0
    ),
    opposing_signals.final_sharpness: lambda: dict(
        conserved=0.5, signal_norm=1.0, outlier_variance=8.0
    ),
    opposing_signals.antiphase_bound: lambda: dict(label=1.0),
    relu_products.interpolated_square: lambda: dict(z=ONES, pieces=4, bound=2.0),
    relu_products.relu_product: lambda: dict(x=ONES, y=ONES, pieces=4, bound=2.0),
    relu_products.relu_matmul: lambda: dict(a=ROWS, b=EYE, pieces=4, bound=2.0),
    relu_products.largest_product_error: lambda: dict(pieces=4, bound=2.0),
    relu_products.growth_of_errors: lambda: dict(
        gradient_error=0.1, smoothness=1.0, learning_rate=0.5, steps=2
    ),
    sampled_energy.sampled_energy: lambda: dict(**DRAWN, drawn=jnp.array([1, 1, 0, 1])),
    sampled_energy.expected_sampled_energy: lambda: dict(**DRAWN, num_drawn=2.0),
    self_distillation.gains: lambda: dict(
        eigenvalues=ONES, ridge=1.0, label_weight=0.5, steps=np.array([1.0, 2.0])
    ),
    self_distillation.distill: lambda: dict(
        **KERNELS, labels=ONES, ridge=1.0, label_weight=0.5, steps=np.array([1.0, 2.0])
    ),
    self_distillation.best_label_weight: lambda: dict(
        label_fit=ONES, teacher_fit=0 * ONES, reference=ONES / 2
    ),
    sgd_stability.batch_weight: lambda: dict(num_samples=5, batch_size=2, with_replacement=False),
    sgd_stability.critical_point: lambda: dict(**GRADIENTS, weight=1.0),
    sgd_stability.radius: lambda: dict(**GRADIENTS, learning_rate=0.1, weight=1.0),
    sgd_stability.second_moments: lambda: dict(
        **GRADIENTS, start=np.eye(2), learning_rate=0.1, num_steps=2, weight=1.0
    ),
    signal_propagation.gaussian_mean: lambda: dict(function=jnp.tanh, variance=ONES, num_nodes=4),
    signal_propagation.slope_of: lambda: dict(activation=jnp.tanh),
    signal_propagation.variances: lambda: dict(
        **SPREAD, num_layers=2, weight_variance=1.0, bias_variance=0.1, num_nodes=4
    ),
    signal_propagation.susceptibilities: lambda: dict(**SPREAD, weight_variance=1.0, num_nodes=4),
    signal_propagation.relu_correlations: lambda: dict(
        correlation=jnp.array([0.1, 0.5]), num_layers=2, gain=0.9
    ),
    signal_propagation.smooth_correlations: lambda: dict(
        activation=jnp.tanh,
        correlation=jnp.array([0.1, 0.5]),
        num_layers=2,
        variance=1.0,
        weight_variance=1.0,
        num_nodes=4,
    ),
    signal_propagation.backward_correlations: lambda: dict(derivative=jnp.array([0.5, 0.2, 1.0])),
    signal_propagation.crossing_layers: lambda: dict(
        correlations=signal_propagation.Correlations(
            jnp.array([[1.0], [0.5], [0.2]]), jnp.array([[0.5], [0.7], [0.9]])
        ),
        depths=np.array([1, 2]),
    ),
    stability.stability_threshold: lambda: dict(optimiser="adam", learning_rate=0.1, momentum=0.9),
    unconstrained_features.directions: lambda: dict(num_classes=3, centred=True),
    unconstrained_features.squared_loss_scales: lambda: LAYER,
    unconstrained_features.cross_entropy_scales: lambda: dict(**LAYER, num_classes=3),
    unconstrained_features.attenuation: lambda: dict(**LAYER, pull=3.0),
    unconstrained_features.block_singular_values: lambda: dict(
        **LAYER, pull=3.0, num_classes=2, per_class=2, dim=3
    ),
    unconstrained_features.block_singular_values_large_pull: lambda: dict(**LAYER, pull=3.0),
    unconstrained_features.optimal_classifier: lambda: dict(
        features=ROWS, targets=ONE_HOT, classifier_decay=0.25
    ),
    unconstrained_features.central_path_velocity: lambda: dict(
        features=ROWS, targets=ONE_HOT, **LAYER
    ),
}
