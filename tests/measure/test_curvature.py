"""Curvature products and estimates against dense matrices in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from dynamics.measure import curvature, hessian_trace

SAMPLES = 11


@pytest.fixture
def problem(key):
    """A small classifier with a None leaf and a list: (apply_fn, params, data)."""
    with jax.enable_x64(True):
        keys = jax.random.split(key, 4)
        params = [
            dict(w=jax.random.normal(keys[0], (3, 4)), b=None),
            (jax.random.normal(keys[1], (4, 2)), jax.random.normal(keys[2], (2,))),
        ]
        x = jax.random.normal(keys[3], (SAMPLES, 3))
        labels = jax.nn.one_hot(jnp.arange(SAMPLES) % 2, 2)

        def apply_fn(params, x):
            return jnp.tanh(x @ params[0]["w"]) @ params[1][0] + params[1][1]

        yield apply_fn, params, (x, labels)


def cross_entropy(outputs, labels):
    return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(outputs), axis=1))


def losses(problem):
    """Return (loss of params, loss of params and data, params, data)."""
    apply_fn, params, data = problem
    on_data = lambda params, data: cross_entropy(apply_fn(params, data[0]), data[1])
    return lambda params: on_data(params, data), on_data, params, data


def dense_hessian(loss, params):
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda flat: loss(unravel(flat))))(flat))


def dense(matvec, params):
    """The matrix of a product on the parameter pytree."""
    flat, unravel = ravel_pytree(params)
    column = lambda vector: ravel_pytree(matvec(unravel(vector)))[0]
    return np.asarray(jax.jit(jax.vmap(column))(jnp.eye(flat.size))).T


@pytest.mark.parametrize("batch_size", [None, 1, 4, SAMPLES])
def test_hessian_product_is_the_dense_hessian(problem, batch_size):
    loss, on_data, params, data = losses(problem)
    expected = dense_hessian(loss, params)
    found = dense(curvature.hessian_vector_product(on_data, params, data, batch_size), params)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    if batch_size is None:
        found = dense(curvature.hessian_vector_product(loss, params), params)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def explicit_jacobian(apply_fn, params, x):
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jacrev(lambda flat: apply_fn(unravel(flat), x))(flat))  # (N, K, P)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_gauss_newton_and_fisher_are_their_definitions(problem, batch_size):
    """J^T L J with L written out, and the Fisher as the mean over the network's own labels."""
    apply_fn, params, (x, labels) = problem
    jacobian = explicit_jacobian(apply_fn, params, x)
    chances = np.asarray(jax.nn.softmax(apply_fn(params, x)))  # (N, K)
    fisher = 0
    for n in range(SAMPLES):
        for label in range(2):
            score = (np.eye(2)[label] - chances[n]) @ jacobian[n]
            fisher = fisher + chances[n, label] * np.outer(score, score) / SAMPLES
    options = dict(batch_size=batch_size)
    found = curvature.fisher_vector_product(
        apply_fn, params, x, likelihood="categorical", **options
    )
    np.testing.assert_allclose(dense(found, params), fisher, rtol=0, atol=1e-12)
    found = curvature.gauss_newton_vector_product(
        apply_fn, params, x, labels, cross_entropy, **options
    )
    np.testing.assert_allclose(dense(found, params), fisher, rtol=0, atol=1e-12)
    found = curvature.fisher_vector_product(apply_fn, params, x, likelihood="gaussian", **options)
    expected = np.einsum("nkp,nkq->pq", jacobian, jacobian) / SAMPLES
    np.testing.assert_allclose(dense(found, params), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_empirical_fisher_is_the_second_moment_of_gradients(problem, batch_size):
    _, on_data, params, (x, labels) = losses(problem)
    gradients = [
        ravel_pytree(jax.grad(on_data)(params, (x[n : n + 1], labels[n : n + 1])))[0]
        for n in range(SAMPLES)
    ]
    found = curvature.empirical_fisher_vector_product(
        on_data, params, (x, labels), batch_size=batch_size
    )
    expected = np.mean([np.outer(g, g) for g in gradients], axis=0)
    np.testing.assert_allclose(dense(found, params), expected, rtol=0, atol=1e-12)


RANKS = {
    "largest": lambda values: np.sort(values)[::-1],
    "smallest": np.sort,
    "magnitude": lambda values: values[np.argsort(-np.abs(values))],
}


@pytest.mark.parametrize("which", RANKS)
@pytest.mark.parametrize("batch_size", [None, 4])
def test_eigenpairs_are_those_of_the_dense_hessian(problem, key, which, batch_size):
    loss, on_data, params, data = losses(problem)
    matrix = dense_hessian(loss, params)
    expected = RANKS[which](np.linalg.eigvalsh(matrix))
    pairs = curvature.top_eigenpairs(
        on_data, params, key=key, num=4, which=which, data=data, batch_size=batch_size
    )
    vectors = np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(pairs.vectors))
    np.testing.assert_allclose(pairs.values, expected[:4], rtol=0, atol=1e-12)
    np.testing.assert_allclose(vectors @ matrix, pairs.values[:, None] * vectors, atol=1e-11)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-12)
    assert jax.tree.structure(pairs.vectors) == jax.tree.structure(params)


def test_residuals_are_true_and_bound_the_error(problem, key):
    """Few iterations: the residual is |Hv - value v|, and an eigenvalue lies within it."""
    loss, _, params, _ = losses(problem)
    matrix = dense_hessian(loss, params)
    for num_iterations in (3, 5, 8):
        pairs = curvature.top_eigenpairs(
            loss, params, key=key, num=3, num_iterations=num_iterations
        )
        vectors = np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(pairs.vectors))
        true = np.linalg.norm(vectors @ matrix - pairs.values[:, None] * vectors, axis=1)
        np.testing.assert_allclose(pairs.residuals, true, rtol=1e-8, atol=1e-14)
        assert np.all(true > 1e-6)  # far from converged, so that the comparison says something
        nearest = np.abs(np.linalg.eigvalsh(matrix) - pairs.values[:, None]).min(axis=1)
        assert np.all(nearest <= true)


def test_warm_start_goes_on_where_the_last_call_ended(problem, key):
    loss, _, params, _ = losses(problem)
    call = lambda num, **options: curvature.top_eigenpairs(
        loss, params, key=key, num=num, num_iterations=5, **options
    )
    exact = curvature.top_eigenpairs(loss, params, key=key, num=2)
    for num in (1, 2):
        start = jax.tree.map(lambda leaf, num=num: leaf[:num], exact.vectors)
        cold, warm = call(num), call(num, start=start)
        assert np.all(warm.residuals < 0.02 * cold.residuals)
        np.testing.assert_allclose(warm.values, exact.values[:num], rtol=1e-4)
    one = jax.tree.map(lambda leaf: leaf[0], exact.vectors)
    np.testing.assert_allclose(call(1, start=one).values, exact.values[:1], rtol=1e-4)


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_unusable_start_is_replaced(problem, key, bad):
    loss, _, params, _ = losses(problem)
    start = jax.tree.map(lambda leaf: jnp.full_like(leaf, bad), params)
    cold = curvature.top_eigenpairs(loss, params, key=key, num=2)
    found = curvature.top_eigenpairs(loss, params, key=key, num=2, start=start)
    np.testing.assert_allclose(found.values, cold.values, atol=1e-12)


def test_an_eigenvector_that_overtakes_is_found(key):
    """Started exactly on the second eigenvector, the first must still appear."""
    scales = jnp.linspace(0.1, 1, 40).at[3].set(1.5).at[5].set(2.0)
    pairs = curvature.top_eigenpairs(
        lambda p: jnp.sum(scales * p**2) / 2,
        jnp.ones(40),
        key=key,
        num=1,
        num_iterations=15,
        start=jnp.zeros(40).at[3].set(1.0),
    )
    np.testing.assert_allclose(pairs.values, 2.0, rtol=1e-4)


@pytest.mark.usefixtures("x64")
def test_exhausted_spaces_give_no_nan_and_repeated_values(key):
    """Three distinct eigenvalues exhaust the Krylov space after three steps."""
    scales = jnp.array([3.0, 3.0, 3.0, 1.0, 1.0, -2.0, -2.0, -2.0])
    for which, expected in (("largest", [3, 3, 3, 1]), ("smallest", [-2, -2, -2, 1])):
        pairs = curvature.top_eigenpairs(
            lambda p: jnp.sum(scales * p**2) / 2, jnp.ones(8), key=key, num=4, which=which
        )
        np.testing.assert_allclose(pairs.values, expected, atol=1e-12)
    zero = curvature.top_eigenpairs(lambda p: jnp.sum(0 * p), jnp.ones(5), key=key, num=2)
    np.testing.assert_array_equal(zero.values, 0)
    np.testing.assert_allclose(zero.vectors @ zero.vectors.T, jnp.eye(2), atol=1e-12)


def test_under_vmap_jit_and_scan(problem, key):
    loss, _, params, _ = losses(problem)
    members = [jax.tree.map(lambda leaf, c=c: c * leaf, params) for c in (0.5, 1.0, 2.0)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    call = lambda params, start: curvature.top_eigenpairs(
        loss, params, key=key, num=2, num_iterations=12, start=start
    )
    alone = [jax.jit(call)(member, params).values for member in members]
    together = jax.jit(jax.vmap(call, in_axes=(0, None)))(stacked, params).values
    np.testing.assert_allclose(together, alone, rtol=1e-9)

    def follow(start, member):
        pairs = call(member, start)
        return pairs.vectors, pairs.values

    start = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    followed = jax.jit(lambda: jax.lax.scan(follow, start, stacked))()[1]
    exact = [RANKS["largest"](np.linalg.eigvalsh(dense_hessian(loss, m)))[:2] for m in members]
    np.testing.assert_allclose(followed, exact, rtol=1e-3)


@pytest.mark.parametrize(("method", "num_probes"), [("hutchinson", 40), ("xtrace", 9)])
def test_trace_estimates_and_their_errors_are_calibrated(problem, key, method, num_probes):
    """z-scores over 30 keys: mean within four standard errors of 0, spread near 1."""
    loss, _, params, _ = losses(problem)
    exact = np.trace(dense_hessian(loss, params))
    estimate = lambda key: curvature.hessian_trace(
        loss, params, key=key, num_probes=num_probes, method=method
    )
    found = jax.jit(jax.vmap(estimate))(jax.random.split(key, 30))
    z = np.asarray((found.mean - exact) / found.standard_error)
    assert abs(z.mean()) < 4 / np.sqrt(30)
    assert 0.5 < z.std(ddof=1) < 1.5


def test_xtrace_pays_where_a_few_outliers_rule(key):
    """On outliers above a small bulk its error is a tenth of that of as many products."""
    scales = jnp.concatenate([jnp.array([10.0, 8.0, 5.0]), jnp.full(77, 0.01)])
    rotation = jnp.linalg.qr(jax.random.normal(key, (80, 80)))[0]
    loss = lambda params: jnp.sum(scales * (rotation @ params) ** 2) / 2
    errors = {}
    for method, num_probes in (("hutchinson", 24), ("xtrace", 12)):
        estimate = lambda key, method=method, num_probes=num_probes: curvature.hessian_trace(
            loss, jnp.zeros(80), key=key, num_probes=num_probes, method=method
        )
        found = jax.jit(jax.vmap(estimate))(jax.random.split(key, 30)).mean
        errors[method] = np.sqrt(np.mean((np.asarray(found) - 23.77) ** 2))
    assert errors["xtrace"] < 0.1 * errors["hutchinson"]


def test_second_derivatives_are_those_of_the_products(problem, key):
    loss, on_data, params, data = losses(problem)
    flat, unravel = ravel_pytree(params)
    vector = unravel(jax.random.normal(key, flat.shape))
    expected = ravel_pytree(vector)[0] @ dense_hessian(loss, params) @ ravel_pytree(vector)[0]
    for batch_size in (None, 4):
        along = curvature.second_derivative(on_data, params, data, batch_size)
        np.testing.assert_allclose(along(vector), expected, rtol=1e-12)


@jax.custom_vjp
def cubed(x):
    return x**3


cubed.defvjp(lambda x: (x**3, x), lambda x, cotangent: (3 * x**2 * cotangent,))


def test_losses_with_reverse_derivatives_alone_are_measured_too(key):
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(cubed, (1.0,), (1.0,))
    found = curvature.hessian_trace(
        lambda params: jnp.sum(cubed(params)), jnp.array([1.0, 2.0]), key=key, num_probes=3
    )
    np.testing.assert_allclose(found.mean, 18, rtol=1e-6)


def test_signs_are_fair_and_independent(key):
    signs = hessian_trace.random_signs(key, jnp.zeros((100, 330)))
    assert set(np.unique(signs)) == {-1.0, 1.0}
    overlap = np.asarray(signs @ signs.T) / 330**0.5  # off the diagonal of variance 1
    off = overlap[np.triu_indices(100, 1)]
    assert abs(off.mean()) < 5 / len(off) ** 0.5
    assert abs(off.var() - 1) < 0.1
    assert abs(np.asarray(signs).mean()) < 5 / signs.size**0.5


def test_a_block_has_the_block_of_the_hessian(problem, key):
    loss, on_data, params, data = losses(problem)
    named = {"first": params[0], "second": {"kernel": params[1][0], "bias": params[1][1]}}
    again = lambda tree: [tree["first"], (tree["second"]["kernel"], tree["second"]["bias"])]
    whole = dense_hessian(lambda tree: loss(again(tree)), named)  # leaves: first/w, bias, kernel
    for block, rows in (("second", slice(12, 22)), ("bias", slice(12, 14)),
                        (lambda path: path.endswith("w"), slice(0, 12))):  # fmt: skip
        fn, free = curvature.restrict(lambda tree, data: on_data(again(tree), data), named, block)
        product = curvature.hessian_vector_product(fn, free, data, 4)
        np.testing.assert_allclose(dense(product, free), whole[rows, rows], atol=1e-12)
    with pytest.raises(ValueError, match=r"'ker'.*second/kernel"):
        curvature.restrict(loss, named, "ker")


def test_preconditioned_eigenvalues_are_those_of_the_product(problem, key):
    loss, _, params, _ = losses(problem)
    matrix = dense_hessian(loss, params)
    flat, unravel = ravel_pytree(params)
    moments = jax.random.uniform(key, flat.shape, minval=0.1)
    preconditioner = curvature.adam_preconditioner(unravel(moments), 3, b1=0.8, b2=0.9, eps=0.01)
    diagonal = (1 - 0.8**3) * (np.sqrt(moments / (1 - 0.9**3)) + 0.01)
    expected = np.sort(np.linalg.eigvals(matrix / diagonal[:, None]).real)[::-1][:2]
    found = curvature.top_eigenpairs(
        *curvature.preconditioned_loss(loss, params, preconditioner), key=key, num=2
    )
    np.testing.assert_allclose(found.values, expected, rtol=1e-9)
    with pytest.raises(ValueError, match="not positive"):
        curvature.preconditioned_loss(loss, params, unravel(moments * 0))
    with pytest.raises(ValueError, match="preconditioner: shapes"):
        curvature.preconditioned_loss(loss, params, moments)
    with pytest.raises(ValueError, match="count=0"):
        curvature.adam_preconditioner(params, 0)


def test_preconditioners_are_what_optax_divides_by(key):
    """One more step on a frozen second moment moves by the running mean over P."""
    gradient = jax.random.normal(key, (5,))
    adam, rms = optax.scale_by_adam(b1=0.8, b2=0.99, eps=0.01), optax.scale_by_rms(eps=0.01)
    state = adam.init(gradient)
    for _ in range(4):
        update, state = adam.update(gradient, state)
    found = curvature.adam_preconditioner(state.nu, state.count, b1=0.8, b2=0.99, eps=0.01)
    np.testing.assert_allclose(update, state.mu / found, rtol=1e-5)
    update, state = rms.update(gradient, rms.init(gradient))
    found = curvature.rmsprop_preconditioner(state.nu, eps=0.01)
    np.testing.assert_allclose(update, gradient / found, rtol=1e-5)


def test_what_is_not_finite_is_named(key):
    params = {"good": jnp.ones(2), "bad": jnp.zeros(2)}
    rooted = lambda params: jnp.sum(params["good"] ** 2) + jnp.sum(jnp.sqrt(params["bad"]))
    kinked = lambda params: jnp.sum(params["good"] ** 2) + jnp.sum(params["bad"] ** 1.5)
    options = dict(key=key, num_probes=2)
    calls = (
        lambda loss: curvature.hessian_trace(loss, params, **options),
        lambda loss: curvature.hessian_diagonal(loss, params, **options),
        lambda loss: curvature.top_eigenpairs(loss, params, key=key, num=1),
        lambda loss: curvature.hessian_vector_product(loss, params)(params),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"gradient not finite in \['bad'\]"):
            call(rooted)
        with pytest.raises(ValueError, match="second derivatives are not finite"):
            call(kinked)


def test_trace_with_batches_is_that_without(problem, key):
    loss, on_data, params, data = losses(problem)
    whole = curvature.hessian_trace(loss, params, key=key, num_probes=3)
    batched = curvature.hessian_trace(
        on_data, params, key=key, num_probes=3, data=data, batch_size=4
    )
    np.testing.assert_allclose(batched, whole, rtol=1e-10)


def test_diagonal_estimates_are_unbiased(problem, key):
    loss, _, params, _ = losses(problem)
    matrix = dense_hessian(loss, params)
    num_probes = 2000
    found = jax.jit(
        lambda: curvature.hessian_diagonal(loss, params, key=key, num_probes=num_probes)
    )()
    off_diagonal = matrix - np.diag(np.diag(matrix))
    error = np.sqrt(np.sum(off_diagonal**2, axis=1) / num_probes)
    difference = ravel_pytree(found)[0] - np.diag(matrix)
    assert np.all(np.abs(difference) < 4.5 * error)
    assert np.all(error < 0.1 * np.abs(matrix).max())


PARAMS = {"w": jnp.ones(3)}
LOSS = lambda params: jnp.sum(params["w"] ** 2)
ON_DATA = lambda params, data: jnp.mean(params["w"][0] * data)
DATA = jnp.ones(4)


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        (dict(num=0), ValueError, "num=0"),
        (dict(num=4), ValueError, "num=4"),
        (dict(num=2, num_iterations=1), ValueError, "num_iterations"),
        (dict(num_iterations=4), ValueError, "num_iterations"),
        (dict(which="top"), ValueError, "which"),
        (dict(loss_fn=lambda params: params["w"]), ValueError, "loss_fn"),
        (dict(params={"w": jnp.ones(3, int)}), TypeError, "params"),
        (dict(params={}), ValueError, "params"),
        (dict(start={"v": jnp.ones(3)}), ValueError, "start"),
        (dict(start={"w": jnp.ones(4)}), ValueError, "start"),
        (dict(start={"w": jnp.ones((2, 4))}), ValueError, "start"),
        (dict(batch_size=2), ValueError, "batch_size"),
        (dict(loss_fn=ON_DATA, data=DATA, batch_size=0), ValueError, "batch_size"),
        (dict(loss_fn=ON_DATA, data=DATA, batch_size=5), ValueError, "batch_size"),
        (dict(loss_fn=ON_DATA, data=jnp.ones(0)), ValueError, "data"),
        (dict(loss_fn=ON_DATA, data=(DATA, jnp.ones(3))), ValueError, "data"),
    ],
)
def test_bad_arguments_are_named(change, error, named):
    arguments = dict(loss_fn=LOSS, params=PARAMS, key=jax.random.key(0), num=1)
    with pytest.raises(error, match=named):
        curvature.top_eigenpairs(**arguments | change)


def test_other_bad_arguments_are_named():
    with pytest.raises(ValueError, match="num_probes=1"):
        curvature.hessian_trace(LOSS, PARAMS, key=jax.random.key(0), num_probes=1)
    with pytest.raises(ValueError, match="method='exact'"):
        curvature.hessian_trace(LOSS, PARAMS, key=jax.random.key(0), num_probes=2, method="exact")
    with pytest.raises(ValueError, match="num_probes=4"):
        curvature.hessian_trace(LOSS, PARAMS, key=jax.random.key(0), num_probes=4, method="xtrace")
    with pytest.raises(ValueError, match="likelihood"):
        curvature.fisher_vector_product(None, PARAMS, DATA, likelihood="poisson")
    with pytest.raises(ValueError, match="data"):
        curvature.empirical_fisher_vector_product(ON_DATA, PARAMS, None)
    for vector in ({"w": jnp.ones(4)}, jnp.ones(3)):
        with pytest.raises(ValueError, match="v:"):
            curvature.hessian_vector_product(LOSS, PARAMS)(vector)
        with pytest.raises(ValueError, match="v:"):
            curvature.second_derivative(LOSS, PARAMS)(vector)
