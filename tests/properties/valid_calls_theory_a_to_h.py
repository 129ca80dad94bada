"""One valid call of every public function of `dynamics.theory`, modules from a to h."""

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.theory import (
    attention_margin,
    batch_perceptron,
    bayesian_regression,
    catapult,
    cosine_accuracy,
    criticality,
    deep_linear_collapse,
    diagonal_linear,
    dual_activations,
    early_alignment,
    eigenframework,
    factor_balance,
    finite_width_signal,
    frames,
    gaussian_polytope,
    hermite_expansion,
    hierarchical_polynomials,
)

KEY = jax.random.key(0)
ROWS = jnp.array([[2.0, 0.0], [-1.0, 0.5]])
EYE, ONES, ONE_HOT = jnp.eye(2), jnp.ones(2), jnp.eye(2)
MATRIX = np.array([[1.0, 2.0], [3.0, 5.0], [1.0, 1.0]])
MARGINS = dict(constraints=np.array([[[2.0, 0.0]], [[0.0, 0.5]]]))
MOMENTS = dict(covariance=jnp.full(2, 0.5), variance1=ONES, variance2=ONES)
SIZES = dict(class_sizes=jnp.array([3.0, 1.0]))
DECAYS = dict(weight_decay=0.1, feature_decay=0.1, depth=2)
HALVES = dict(positive=np.ones(2), negative=np.ones(2), inputs=MATRIX)
EXPONENTS = dict(alpha=2.0, beta=1.5)
WIDE = dict(weight_std=1.0, bias_std=0.5)
SPREAD = dict(activation=jnp.tanh, variance=jnp.ones(2))


def _spectrum():
    return eigenframework.spectrum(jnp.ones(4), jnp.ones(4))


CALLS = {
    attention_margin.token_constraints: lambda: dict(
        tokens=np.arange(12.0).reshape(2, 3, 2), queries=np.ones((2, 1)), selected=np.array([0, 2])
    ),
    attention_margin.frobenius_solution: lambda: MARGINS,
    attention_margin.nuclear_solution: lambda: dict(**MARGINS, tolerance=1e-3),
    batch_perceptron.path: lambda: dict(rows=ROWS, num_steps=2),
    batch_perceptron.expansion: lambda: dict(rows=ROWS, path=jnp.ones((3, 2)), step_size=2.0),
    batch_perceptron.separation_step: lambda: dict(rows=ROWS, iterates=jnp.ones((3, 2))),
    batch_perceptron.two_clusters: lambda: dict(num_samples=3),
    batch_perceptron.lone_row_steps: lambda: dict(
        rows=batch_perceptron.two_clusters(9), step_size=10.0
    ),
    batch_perceptron.normalised_steps: lambda: dict(num_samples=10, step_size=0.1),
    bayesian_regression.prior_predictive: lambda: dict(
        inputs=ROWS, prior=bayesian_regression.NormalInverseGamma()
    ),
    bayesian_regression.posterior_predictive: lambda: dict(
        inputs=ROWS, targets=ONES, prior=bayesian_regression.NormalInverseGamma()
    ),
    bayesian_regression.excess_risk: lambda: dict(
        answer=bayesian_regression.Predictive(ONES, ONES),
        best=bayesian_regression.Predictive(ONES, ONES),
    ),
    catapult.advance: lambda: dict(state=catapult.Pair(1.0, 2.0), learning_rate=0.5, target=0.0),
    catapult.largest_constant_rate: lambda: dict(curvature=2.0),
    catapult.largest_stable_rate: lambda: dict(target=2.0),
    cosine_accuracy.skewed_accuracy: lambda: dict(repeats=1, modulus=3),
    criticality.critical_initialisation: lambda: dict(
        activation=jnp.tanh, variance=1.0, num_nodes=8
    ),
    criticality.variance_series: lambda: dict(activation=jnp.tanh),
    criticality.variance_decay: lambda: dict(activation=jnp.tanh),
    criticality.half_stable_variance: lambda: dict(activation=jnp.tanh, num_nodes=8),
    criticality.universality_class: lambda: dict(activation=jnp.tanh),
    deep_linear_collapse.threshold: lambda: dict(depth=2),
    deep_linear_collapse.spinodal: lambda: dict(depth=2),
    deep_linear_collapse.jump: lambda: dict(depth=2),
    deep_linear_collapse.price: lambda: dict(**SIZES, **DECAYS),
    deep_linear_collapse.scaled_length: lambda: dict(
        price=jnp.array([0.25, 0.5]), depth=2, branch="global"
    ),
    deep_linear_collapse.minimiser: lambda: dict(**SIZES, **DECAYS, branch="global"),
    deep_linear_collapse.balanced_minimiser: lambda: dict(
        num_classes=2, class_size=2.0, **DECAYS, free_bias=True
    ),
    diagonal_linear.hessian_trace: lambda: HALVES,
    diagonal_linear.output_gradients: lambda: HALVES,
    diagonal_linear.product_factor: lambda: dict(
        gradient=1.0, ahead=1.0, learning_rate=0.5, strength=0.25, finite_step=1.0
    ),
    diagonal_linear.regularised_flow: lambda: dict(
        inputs=np.ones((1, 2, 2)),
        targets=np.ones((1, 2)),
        scale=0.5,
        strength=0.1,
        finite_step=0.1,
        horizon=0.1,
        tolerance=1e-3,
    ),
    diagonal_linear.outside_row_space: lambda: dict(
        log_ratio=np.array([3.0, 4.0]), inputs=np.array([[1.0, 0.0]])
    ),
    dual_activations.arc_cosine: lambda: dict(**MOMENTS, degree=1),
    dual_activations.relu_dual: lambda: MOMENTS,
    dual_activations.erf_dual: lambda: MOMENTS,
    dual_activations.dual_activation: lambda: dict(**MOMENTS, activation=jnp.tanh, order=3),
    dual_activations.fully_connected_kernels: lambda: dict(
        x1=ROWS, x2=ROWS, activation="relu", depth=1, **WIDE
    ),
    dual_activations.check_architecture: lambda: dict(activation="relu", depth=1, **WIDE),
    early_alignment.class_sum_norms: lambda: dict(inputs=ROWS, labels=jnp.array([1, -1])),
    early_alignment.escape_delay: lambda: dict(
        class_sum_norm=8.0, shrinkage=10.0, learning_rate=0.01
    ),
    eigenframework.spectrum: lambda: dict(eigenvalues=ONES, powers=ONES),
    eigenframework.power_law: lambda: dict(**EXPONENTS, num_modes=4, nugget=True),
    eigenframework.risk: lambda: dict(
        modes=_spectrum(), num_samples=2.0, ridge=0.1, num_features=3.0, noise=0.1
    ),
    eigenframework.optimal_ridge: lambda: dict(
        modes=_spectrum(), num_samples=2.0, num_features=3.0, noise=0.1
    ),
    eigenframework.critical_noise: lambda: dict(modes=_spectrum(), num_samples=2.0),
    eigenframework.power_law_critical_noise: lambda: EXPONENTS,
    eigenframework.power_law_test: lambda: dict(
        learned=jnp.array([0.5, 1.0]), **EXPONENTS, relative_noise=0.1
    ),
    eigenframework.power_law_fitting: lambda: dict(**EXPONENTS, relative_noise=0.1),
    factor_balance.covariance: lambda: dict(probabilities=np.array([0.25, 0.75])),
    factor_balance.hessian_trace: lambda: dict(outer=MATRIX, inner=np.ones(2), fisher=np.eye(3)),
    factor_balance.imbalance_change: lambda: dict(outer=MATRIX, inner=np.ones(2), noise=np.ones(3)),
    factor_balance.imbalance_course: lambda: dict(
        probability=0.5, first=2.0, second=0.5, learning_rate=0.1, num_steps=2
    ),
    factor_balance.drift: lambda: dict(
        outer=np.ones((2, 1)),
        inner=np.ones(1),
        fisher=factor_balance.covariance([0.5, 0.5]),
        times=np.array([0.0, 0.1]),
        tolerance=1e-3,
    ),
    finite_width_signal.gain_moment: lambda: dict(width=3, order=2, activation="relu"),
    finite_width_signal.log_gain: lambda: dict(width=3, activation="relu"),
    finite_width_signal.output_moment_ratio: lambda: dict(width=3, num_hidden=2, activation="relu"),
    finite_width_signal.moment_ratio_error: lambda: dict(
        width=3, num_hidden=2, num_networks=5, activation="relu"
    ),
    finite_width_signal.finite_width_variance: lambda: dict(
        **SPREAD, num_layers=2, width=3, weight_variance=1.0, num_nodes=4
    ),
    frames.welch_bound: lambda: dict(num_vectors=3, dim=2),
    frames.simplex: lambda: dict(num_classes=3, dim=2, key=KEY),
    gaussian_polytope.expected_faces: lambda: dict(num_points=4, dim=2, face_dim=1),
    gaussian_polytope.unselectable_share: lambda: dict(num_keys=4, dim=2),
    gaussian_polytope.external_angle: lambda: dict(num_face=1, num_vertices=3),
    gaussian_polytope.internal_angle: lambda: dict(num_face=1, num_vertices=3),
    hermite_expansion.coefficients: lambda: dict(
        activation=jnp.tanh, number=3, variance=1.0, order=8
    ),
    hermite_expansion.dual: lambda: dict(
        coefficients=jnp.ones(3), correlation=jnp.array([0.5]), variance=1.0
    ),
    hierarchical_polynomials.degree_two: lambda: dict(link=jnp.sin, dim=4, order=8),
    hierarchical_polynomials.recovered_overlap: lambda: dict(
        parts=hierarchical_polynomials.DegreeTwo(1.0, 0.5, 0.1, 50.0),
        num_samples=jnp.array([100.0, 300.0]),
    ),
    hierarchical_polynomials.features: lambda: dict(x=ROWS),
    hierarchical_polynomials.coefficients: lambda: dict(matrix=EYE),
}
