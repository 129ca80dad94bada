"""Kernel gradient descent against explicit iteration, float64 formulas and neural-tangents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from dynamics.theory import dual_activations, infinite_width, kernel_descent, neural_tangents_bridge

TRAIN, TEST, OUTPUTS = 6, 4, 2


@pytest.fixture
def problem(key):
    """Kernels of random features, targets and initial outputs, in double precision."""
    with jax.enable_x64(True):
        feature_key, target_key, start_key = jax.random.split(key, 3)
        features = jax.random.normal(feature_key, (TRAIN + TEST, 9))
        kernel = features @ features.T / 9
        targets = jax.random.normal(target_key, (TRAIN, OUTPUTS))
        start = jax.random.normal(start_key, (TRAIN + TEST, OUTPUTS))
        yield kernel[:TRAIN, :TRAIN], kernel[TRAIN:, :TRAIN], targets, start[:TRAIN], start[TRAIN:]


def test_discrete_mean_is_the_iteration(problem):
    """Each step moves the outputs by -η Θ (f - y); here one step at a time."""
    train_kernel, test_kernel, targets, train, test = map(np.asarray, problem)
    rate = 1.7 / np.linalg.eigvalsh(train_kernel).max()  # some modes overshoot, some do not
    expected = [test]
    on_train = train
    for _ in range(30):
        test = test - rate * test_kernel @ (on_train - targets)
        on_train = on_train - rate * train_kernel @ (on_train - targets)
        expected.append(test)
    found = kernel_descent.mean(
        *problem[:3],
        learning_rate=rate,
        times=range(31),
        initial_train=problem[3],
        initial_test=problem[4],
    )
    np.testing.assert_allclose(found, expected, atol=1e-11)


def test_flow_mean_is_the_matrix_exponential(problem):
    train_kernel, test_kernel, targets, train, test = map(np.asarray, problem)
    times = np.array([0.0, 0.3, 2.5, 40.0])
    found = kernel_descent.mean(
        *problem[:3],
        learning_rate=0.2,
        times=times,
        dynamics="flow",
        initial_train=problem[3],
        initial_test=problem[4],
    )
    for time, outputs in zip(times, found, strict=True):
        learned = np.eye(TRAIN) - scipy.linalg.expm(-0.2 * time * train_kernel)
        change = test_kernel @ np.linalg.solve(train_kernel, learned @ (targets - train))
        np.testing.assert_allclose(outputs, test + change, atol=1e-10)


@pytest.mark.parametrize("dynamics", ["discrete", "flow"])
def test_both_ends_of_time(problem, dynamics):
    train_kernel, test_kernel, targets, train, test = problem
    found = kernel_descent.mean(
        train_kernel,
        test_kernel,
        targets,
        learning_rate=0.1,
        times=[0, np.inf],
        dynamics=dynamics,
        initial_train=train,
        initial_test=test,
    )
    solved = test + test_kernel @ jnp.linalg.solve(train_kernel, targets - train)
    np.testing.assert_array_equal(found[0], test)
    np.testing.assert_allclose(found[1], solved, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_unseen_directions_stay_where_they_started():
    """Two equal samples with targets 1 and 3: both end at 2, and finite times go there."""
    kernel = jnp.ones((2, 2))
    times = [0, 1, np.inf]
    found = kernel_descent.mean(
        kernel, kernel, jnp.array([1.0, 3.0]), learning_rate=0.25, times=times
    )
    np.testing.assert_allclose(found, [[0, 0], [1, 1], [2, 2]], atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_small_eigenvalues_do_not_cancel():
    kernel = jnp.diag(jnp.array([1e-14, 1.0]))
    found = kernel_descent.smoother(kernel, kernel, learning_rate=0.5, times=[1000])
    np.testing.assert_allclose(found[0, 0, 0], 500e-14, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_flow_is_that_of_neural_tangents(key):
    """Its loss is a mean over samples and outputs, so its time is ours times N K."""
    x_key, y_key = jax.random.split(key)
    x, y = jax.random.normal(x_key, (8, 3)), jax.random.normal(y_key, (5, 2))
    x_train, x_test = x[:5], x[5:]
    kernel_fn = infinite_width.fully_connected(2, "erf", weight_std=1.5, bias_std=0.1)
    times = [0.0, 0.7, 30.0, np.inf]
    found = infinite_width.gradient_descent_mean_and_covariance(
        kernel_fn, x_train, y, x_test, learning_rate=0.3, times=times, dynamics="flow"
    )
    predict = neural_tangents_bridge.load().predict.gradient_descent_mse_ensemble(
        kernel_fn, x_train, y, diag_reg=0.0
    )
    for index, time in enumerate(times):
        their_time = None if np.isinf(time) else 0.3 * time * y.size
        expected = predict(t=their_time, x_test=x_test, get="ntk", compute_cov=True)
        np.testing.assert_allclose(found.mean[index], expected.mean, atol=1e-8)
        np.testing.assert_allclose(found.covariance[index], expected.covariance, atol=1e-8)


@pytest.mark.usefixtures("x64")
def test_trained_samples_lose_their_variance(key):
    x = jax.random.normal(key, (5, 3))
    found = infinite_width.gradient_descent_mean_and_covariance(
        lambda x1, x2=None: dual_activations.fully_connected_kernels(
            x1, x2, activation="relu", depth=2
        ),
        *(x, x[:, 0], x),
        learning_rate=0.1,
        times=[0, np.inf],
    )
    prior = dual_activations.fully_connected_kernels(x, activation="relu", depth=2).nngp
    np.testing.assert_allclose(found.covariance[0], prior, atol=1e-12)
    np.testing.assert_allclose(found.covariance[1], 0, atol=1e-9)
    np.testing.assert_allclose(found.mean, [jnp.zeros(5), x[:, 0]], atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_linear_networks_are_followed_exactly(key):
    """Depth 0: ensembles of linear regressions, trained step by step, have this law."""
    x_key, y_key, init_key = jax.random.split(key, 3)
    x, y = jax.random.normal(x_key, (7, 6)), jax.random.normal(y_key, (4,))
    x_train, x_test = x[:4], x[4:]
    rate, steps, members = 0.4, 12, 20_000

    def train(weights):  # (6,)
        loss = lambda w: jnp.sum((x_train @ w / 6**0.5 - y) ** 2) / 2
        for _ in range(steps):
            weights = weights - rate * jax.grad(loss)(weights)
        return x_test @ weights / 6**0.5

    outputs = jax.jit(jax.vmap(train))(jax.random.normal(init_key, (members, 6)))  # (S, 3)
    found = infinite_width.gradient_descent_mean_and_covariance(
        infinite_width.fully_connected(0), x_train, y, x_test, learning_rate=rate, times=[steps]
    )
    error = jnp.std(outputs, axis=0) / members**0.5
    assert jnp.all(jnp.abs(jnp.mean(outputs, axis=0) - found.mean[0]) < 4 * error)
    scale = jnp.sqrt(jnp.diag(found.covariance[0]))
    allowed = 4 * jnp.outer(scale, scale) * (2 / members) ** 0.5
    assert jnp.all(jnp.abs(jnp.cov(outputs.T) - found.covariance[0]) < allowed)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(learning_rate=0.0), "learning_rate"),
        (dict(times=[-1]), "times"),
        (dict(times=[]), "times"),
        (dict(times=[0.5]), "times"),
        (dict(dynamics="sgd"), "dynamics"),
        (dict(targets=jnp.ones(3)), "targets"),
        (dict(kernel_test_train=jnp.ones((2, 3))), "kernel_test_train"),
    ],
)
def test_bad_arguments_are_named(change, named):
    arguments = dict(
        kernel_train=jnp.eye(2),
        kernel_test_train=jnp.ones((1, 2)),
        targets=jnp.ones(2),
        learning_rate=0.1,
        times=[1],
    )
    with pytest.raises(ValueError, match=named):
        kernel_descent.mean(**arguments | change)
