"""One valid call of every public function of `dynamics.measure` that users call.

Networks here take samples of any shape, so that what refuses a shape is the library.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.measure import (
    batching,
    class_statistics,
    collapse,
    convolutions,
    curvature,
    curvature_trajectory,
    degeneracy,
    exact_trace,
    fourier,
    frames,
    gauss_newton,
    gram,
    grokking,
    hessian_products,
    hessian_trace,
    induced_weights,
    inverse_fisher,
    kernel_statistics,
    kernels,
    lanczos,
    linear_probe,
    memorising_neurons,
    mesa_layer,
    ntk_cost,
    ntk_products,
    optimal_brain_surgeon,
    piecewise_linear,
    preconditioned_curvature,
    progress_measures,
    restriction,
    selectability,
    similarity_of_errors,
    spectrum,
    statistics,
    survival,
    weight_constructions,
)

KEY = jax.random.key(0)
PARAMS = {"w": jnp.array([1.0, 2.0])}
DATA = jnp.arange(3.0)
X = jnp.arange(6.0).reshape(3, 2)
FEATURES = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
LABELS = jnp.array([0, 0, 1, 1])
STEPS, CURVES = np.arange(3), np.array([[0.0, 0.5, 1.0], [0.0, 1.0, 1.0]])
TABLE, SUMS = np.arange(27.0).reshape(3, 3, 3), np.arange(9).reshape(3, 3) % 3
WAITS, SEEN = np.array([1.0, 2.0, 3.0]), np.array([True, False, True])


def loss(params, *data):
    return jnp.sum(params["w"] ** 4) + sum(jnp.mean(part) for part in data)


def network(params, x):
    return jnp.sum(x.reshape(len(x), -1), axis=1, keepdims=True) * params["w"]


def mean_square(outputs, targets):
    return jnp.mean(outputs**2)


def tokens_to_number(params, tokens):
    return tokens[:, -1, 0] * tokens[:, 0, 0]


def double(vector):
    return 2 * vector


def square(eigenvalues):
    return eigenvalues**2


def _inverse():
    return inverse_fisher.invert(jnp.eye(2), 1.0)


def _window():
    return inverse_fisher.open_window(jnp.eye(2), 1.0)


def _tridiagonal():
    return lanczos.Tridiagonal(jnp.eye(2), jnp.ones(2), jnp.ones(2))


def _classes():
    return class_statistics.class_statistics(FEATURES, LABELS, num_classes=2)


LOSS = dict(loss_fn=loss, params=PARAMS, data=DATA, batch_size=2)
NETWORK = dict(apply_fn=network, params=PARAMS)
KERNEL = dict(**NETWORK, x1=X, x2=X, outputs="mean", batch_size=2)
GAUSS_NEWTON = dict(**NETWORK, x=X, targets=X, output_loss=mean_square, batch_size=2)
CLASSES = dict(features=FEATURES, labels=LABELS, num_classes=2)
PROMPTS = dict(
    apply_fn=tokens_to_number,
    params=PARAMS,
    tokens=jnp.arange(12.0).reshape(2, 3, 2),
    key=KEY,
    num_queries=4,
    query_std=1.0,
)
PROBE = dict(features=FEATURES, targets=np.array([1.0, 2.0, 4.0, 8.0]), seed=0)

CALLS = {
    batching.batches: lambda: dict(data=DATA, batch_size=2, name="data"),
    batching.of_samples: lambda: LOSS,
    batching.checked_params: lambda: dict(params=PARAMS),
    batching.check_scalar: lambda: dict(loss_fn=loss, params=PARAMS, batch=(DATA,)),
    batching.checked_matvec: lambda: dict(product=double, params=PARAMS),
    class_statistics.empty: lambda: dict(num_classes=2, num_features=2, dtype="float32"),
    class_statistics.class_statistics: lambda: CLASSES,
    class_statistics.merge_all: lambda: dict(
        parts=jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), _classes())
    ),
    class_statistics.merge: lambda: dict(first=_classes(), second=_classes()),
    class_statistics.update: lambda: dict(statistics=_classes(), features=FEATURES, labels=LABELS),
    class_statistics.class_means: lambda: CLASSES,
    class_statistics.over_blocks: lambda: dict(part=double, samples=X, num_classes=2),
    class_statistics.checked: lambda: CLASSES,
    class_statistics.check_every_class: lambda: dict(counts=jnp.ones(2)),
    collapse.neural_collapse: lambda: dict(
        **CLASSES, kernel=jnp.eye(2), bias=jnp.zeros(2), frame="simplex"
    ),
    collapse.from_statistics: lambda: dict(found=_classes(), kernel=jnp.eye(2), frame="simplex"),
    collapse.nearest_mean_disagreement: lambda: dict(
        features=FEATURES, means=jnp.eye(2), kernel=jnp.eye(2), bias=jnp.zeros(2)
    ),
    collapse.feature_collapse: lambda: dict(**CLASSES, frame="simplex"),
    collapse.collapse_along_depth: lambda: dict(
        features_of_layers=(FEATURES, FEATURES[:, :1]),
        labels=LABELS,
        num_classes=2,
        frame="simplex",
    ),
    collapse.within_between_ratio: lambda: CLASSES,
    convolutions.convolutions_as_products: lambda: dict(fn=double),
    convolutions.suited_to_device: lambda: dict(fn=double),
    curvature.top_eigenpairs: lambda: dict(
        **LOSS, key=KEY, num=1, which="largest", num_iterations=2, start=PARAMS
    ),
    curvature_trajectory.follow_curvature: lambda: dict(
        **LOSS,
        key=KEY,
        num=1,
        which="largest",
        num_iterations=2,
        num_trace_probes=2,
        num_density_probes=2,
        num_density_iterations=2,
        keep_vectors=False,
        params_of=double,
    ),
    degeneracy.layer_degeneracy: lambda: dict(**NETWORK, x=X, tolerance=1e-6, batch_size=2),
    degeneracy.output_jacobians: lambda: dict(upper_fn=square, activations=X),
    degeneracy.interaction_basis: lambda: dict(
        activations=X, jacobians=jnp.ones((3, 1, 2)), centre=True, tolerance=1e-6
    ),
    exact_trace.gauss_newton_trace: lambda: GAUSS_NEWTON,
    exact_trace.gauss_newton_diagonal: lambda: GAUSS_NEWTON,
    exact_trace.exact_hessian_trace: lambda: GAUSS_NEWTON,
    exact_trace.exact_hessian_diagonal: lambda: GAUSS_NEWTON,
    fourier.fourier_power: lambda: dict(weights=jnp.arange(3.0), modulus=3),
    fourier.inverse_participation_ratio: lambda: dict(
        weights=jnp.arange(3.0), modulus=3, remove_constant=True
    ),
    fourier.phase_alignment: lambda: dict(
        left=jnp.eye(3), right=jnp.eye(3), readout=jnp.eye(3), modulus=3
    ),
    frames.cosines: lambda: dict(vectors=X + 1),
    frames.coherence: lambda: dict(vectors=X + 1),
    frames.equiangularity: lambda: dict(vectors=X + 1),
    frames.equinorm: lambda: dict(vectors=X + 1),
    gauss_newton.gauss_newton_vector_product: lambda: GAUSS_NEWTON,
    gauss_newton.fisher_vector_product: lambda: dict(
        **NETWORK, x=X, likelihood="gaussian", batch_size=2
    ),
    gauss_newton.empirical_fisher_vector_product: lambda: LOSS,
    gram.checked: lambda: dict(params=PARAMS, x1=X, x2=X, outputs="mean"),
    gram.check_params: lambda: dict(params=PARAMS),
    gram.checked_batch_size: lambda: dict(batch_size=2, entries=2),
    grokking.accuracy: lambda: dict(logits=CURVES, labels=np.arange(len(CURVES))),
    grokking.first_crossing: lambda: dict(
        steps=STEPS, values=CURVES, threshold=0.7, direction="above"
    ),
    grokking.grokking_delay: lambda: dict(
        steps=STEPS, train_accuracy=CURVES, test_accuracy=CURVES, threshold=0.7
    ),
    grokking.grokking_delay_median: lambda: dict(
        steps=STEPS,
        train_accuracy=CURVES,
        test_accuracy=CURVES,
        threshold=0.7,
        confidence=0.9,
    ),
    hessian_products.hessian_vector_product: lambda: LOSS,
    hessian_products.second_derivative: lambda: LOSS,
    hessian_products.checked_finite: lambda: dict(**LOSS, found=jnp.ones(2)),
    hessian_trace.hessian_trace: lambda: dict(**LOSS, key=KEY, num_probes=2, method="hutchinson"),
    hessian_trace.hessian_diagonal: lambda: dict(**LOSS, key=KEY, num_probes=2),
    hessian_trace.random_signs: lambda: dict(key=KEY, like=PARAMS),
    induced_weights.induced_weights: lambda: PROMPTS,
    induced_weights.effective_learning_rate: lambda: PROMPTS,
    inverse_fisher.per_example_gradients: lambda: LOSS,
    inverse_fisher.invert: lambda: dict(gradients=X, damping=1.0),
    inverse_fisher.product: lambda: dict(inverse=_inverse(), vector=jnp.ones(2)),
    inverse_fisher.diagonal: lambda: dict(inverse=_inverse()),
    inverse_fisher.column: lambda: dict(inverse=_inverse(), index=1),
    inverse_fisher.check_index: lambda: dict(inverse=_inverse(), index=1),
    inverse_fisher.inverse_empirical_fisher_vector_product: lambda: dict(**LOSS, damping=1.0),
    inverse_fisher.open_window: lambda: dict(gradients=X, damping=1.0),
    inverse_fisher.slide: lambda: dict(window=_window(), gradient=jnp.ones(2)),
    inverse_fisher.window_product: lambda: dict(window=_window(), vector=jnp.ones(2)),
    inverse_fisher.window_inverse: lambda: dict(window=_window()),
    kernel_statistics.kernel_summary: lambda: dict(
        kernel=jnp.eye(2), targets=jnp.ones(2), reference=jnp.eye(2)
    ),
    kernel_statistics.ntk_spectrum: lambda: dict(kernel=jnp.eye(2)),
    kernel_statistics.kernel_target_alignment: lambda: dict(
        kernel=jnp.eye(2), targets=jnp.ones((2, 1))
    ),
    kernel_statistics.relative_change: lambda: dict(
        kernel_before=jnp.eye(2), kernel_after=2 * jnp.eye(2)
    ),
    kernel_statistics.effective_rank: lambda: dict(kernel=jnp.eye(2)),
    kernels.empirical_ntk: lambda: KERNEL,
    kernels.layerwise_ntk: lambda: KERNEL,
    kernels.linearise: lambda: NETWORK,
    lanczos.tridiagonalise: lambda: dict(
        matvec=double, start=jnp.array([1.0, 0.0]), key=KEY, num_iterations=2
    ),
    lanczos.three_term: lambda: dict(matvec=double, start=jnp.array([1.0, 0.0]), num_iterations=2),
    lanczos.as_matrix: lambda: dict(diagonal=jnp.ones(2), off_diagonal=jnp.ones(2)),
    lanczos.ritz_pairs: lambda: dict(tridiagonal=_tridiagonal(), num=1, which="largest"),
    lanczos.orthogonalise: lambda: dict(basis=jnp.eye(2), vector=jnp.ones(2)),
    lanczos.orthogonalise_in_parts: lambda: dict(
        basis=jnp.eye(2), vector=jnp.ones(2), num_rows=1, wanted=True
    ),
    linear_probe.linear_probe: lambda: dict(
        **PROBE,
        ridge=1e-3,
        num_folds=2,
        intercept=True,
        contexts=np.array([0, 0, 1, 1]),
        confidence=0.9,
        num_resamples=5,
    ),
    linear_probe.other_contexts: lambda: dict(num_contexts=3, seed=0),
    linear_probe.shuffled_probe: lambda: dict(**PROBE, num_folds=2, num_resamples=5),
    memorising_neurons.neuron_participation: lambda: dict(
        left=jnp.ones((3, 2)), right=jnp.ones((3, 2)), readout=jnp.ones((2, 3))
    ),
    memorising_neurons.memorising_neurons: lambda: dict(
        participation=jnp.array([0.2, 0.8]), threshold=0.5
    ),
    memorising_neurons.kept_neurons: lambda: dict(order=jnp.array([1, 0, 2]), num_pruned=1),
    memorising_neurons.prune_neurons: lambda: dict(
        readout=X, order=jnp.array([1, 0, 2]), num_pruned=1
    ),
    mesa_layer.mesa_layer: lambda: dict(
        keys=jnp.ones((3, 2)),
        values=jnp.ones((3, 1)),
        queries=jnp.ones((3, 2)),
        ridge=1.0,
        chunk_size=2,
    ),
    ntk_cost.ntk_cost: lambda: KERNEL,
    ntk_products.ntk_vector_product: lambda: dict(**KERNEL, vector=jnp.ones(3)),
    ntk_products.top_ntk_eigenpairs: lambda: dict(
        **NETWORK, x=X, key=KEY, num=1, num_iterations=2, outputs="mean", batch_size=2
    ),
    optimal_brain_surgeon.saliencies: lambda: dict(weights=jnp.ones(2), inverse=_inverse()),
    optimal_brain_surgeon.compensated: lambda: dict(
        weights=jnp.ones(2), inverse=_inverse(), index=1
    ),
    optimal_brain_surgeon.remove: lambda: dict(inverse=_inverse(), index=1),
    optimal_brain_surgeon.prune: lambda: dict(
        weights=jnp.ones(2), inverse=_inverse(), num_removed=2, order=jnp.array([1, 0])
    ),
    piecewise_linear.piecewise_linear_leaves: lambda: dict(**NETWORK, x=X),
    preconditioned_curvature.preconditioned_loss: lambda: dict(
        loss_fn=loss, params=PARAMS, preconditioner=PARAMS
    ),
    preconditioned_curvature.adam_preconditioner: lambda: dict(
        second_moment=PARAMS, count=1, b1=0.9, b2=0.999, eps=1e-8
    ),
    preconditioned_curvature.rmsprop_preconditioner: lambda: dict(second_moment=PARAMS, eps=1e-8),
    progress_measures.key_frequencies: lambda: dict(weights=jnp.arange(5.0), modulus=5, num=1),
    progress_measures.logits_on_sums: lambda: dict(logits=TABLE, frequencies=np.array([1])),
    progress_measures.restricted_logits: lambda: dict(logits=TABLE, frequencies=np.array([1])),
    progress_measures.excluded_logits: lambda: dict(logits=TABLE, frequencies=np.array([1])),
    progress_measures.restricted_loss: lambda: dict(
        logits=TABLE,
        labels=SUMS,
        frequencies=np.array([1]),
        where=SUMS == 0,
        loss=progress_measures.cross_entropy,
    ),
    progress_measures.excluded_loss: lambda: dict(
        logits=TABLE,
        labels=SUMS,
        frequencies=np.array([1]),
        where=SUMS == 0,
        loss=progress_measures.cross_entropy,
    ),
    restriction.restrict: lambda: dict(fn=loss, params=PARAMS, block="w"),
    selectability.selectable: lambda: dict(
        keys=np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), tolerance=1e-9
    ),
    similarity_of_errors.similarity_of_errors: lambda: dict(
        first=jnp.ones((2, 3)), second=jnp.ones((2, 3))
    ),
    similarity_of_errors.match_iterates: lambda: dict(
        layers=jnp.ones((1, 2, 3)), reference=jnp.ones((2, 2, 3))
    ),
    spectrum.spectral_density: lambda: dict(
        **LOSS, key=KEY, num_probes=2, num_iterations=2, reorthogonalise=True
    ),
    statistics.standard_error: lambda: dict(values=WAITS),
    statistics.mean_interval: lambda: dict(values=WAITS, confidence=0.9),
    statistics.median_interval: lambda: dict(values=WAITS, confidence=0.9),
    statistics.bootstrap_interval: lambda: dict(
        values=WAITS, statistic=np.mean, seed=0, confidence=0.9, num_resamples=5
    ),
    statistics.log_log_slope: lambda: dict(x=WAITS, y=WAITS),
    statistics.log_log_slope_interval: lambda: dict(
        x=WAITS,
        values=np.array([WAITS, 2 * WAITS]),
        seed=0,
        confidence=0.9,
        average="mean",
        num_resamples=5,
    ),
    survival.kaplan_meier: lambda: dict(times=WAITS, observed=SEEN),
    survival.kaplan_meier_median: lambda: dict(times=WAITS, observed=SEEN, confidence=0.9),
    survival.log_rank_test: lambda: dict(
        times=WAITS, observed=SEEN, other_times=WAITS, other_observed=SEEN
    ),
    weight_constructions.gradient_descent_construction: lambda: dict(
        dim=2, learning_rate=0.1, num_context=3, start=jnp.ones(2)
    ),
    weight_constructions.gradient_descent_plus_plus_construction: lambda: dict(
        dim=2, learning_rates=jnp.ones(2), input_rates=jnp.ones(2), num_context=3
    ),
    weight_constructions.newton_construction: lambda: dict(
        dim=1, num_iterations=1, start_scale=0.1, start="identity"
    ),
    weight_constructions.newton_tokens: lambda: dict(
        inputs=jnp.ones((3, 2)), targets=jnp.ones(3), query=jnp.ones(2)
    ),
    weight_constructions.short_newton_construction: lambda: dict(
        dim=1, num_iterations=1, start_scale=0.1
    ),
    weight_constructions.short_newton_tokens: lambda: dict(
        inputs=jnp.ones((3, 2)), targets=jnp.ones(3), query=jnp.ones(2)
    ),
}
