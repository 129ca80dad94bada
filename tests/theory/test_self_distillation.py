"""Self-distillation against repeated regressions by scikit-learn, and by laws."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.kernel_ridge
import sklearn.metrics.pairwise as pairwise

from dynamics.theory import self_distillation

pytestmark = pytest.mark.usefixtures("x64")


def problem(seed, num_outputs=None):
    draw = np.random.default_rng(seed)
    inputs, test = draw.uniform(size=(12, 2)), draw.uniform(size=(7, 2))
    shape = (12,) if num_outputs is None else (12, num_outputs)
    kernels = (pairwise.rbf_kernel(x, inputs, gamma=5.0) for x in (inputs, test))
    return inputs, test, *(jnp.asarray(k) for k in kernels), draw.normal(size=shape)


@pytest.mark.parametrize("num_outputs", [None, 2])
@pytest.mark.parametrize("label_weight", [0.0, 0.3, 1.0])
def test_regressions_one_after_the_other(num_outputs, label_weight):
    inputs, test, train_kernel, test_kernel, labels = problem(0, num_outputs)
    found = self_distillation.distill(
        train_kernel, test_kernel, labels, ridge=0.3, label_weight=label_weight,
        steps=range(1, 8),
    )  # fmt: skip
    teacher = labels
    for fit in found.fits:
        model = sklearn.kernel_ridge.KernelRidge(alpha=0.3, kernel="rbf", gamma=5.0)
        model.fit(inputs, label_weight * labels + (1 - label_weight) * teacher)
        np.testing.assert_allclose(fit, model.predict(test), atol=1e-11)
        teacher = model.predict(inputs)


@pytest.mark.parametrize("label_weight", [0.1, 0.7])
def test_the_limit_is_one_regression_of_a_larger_ridge(label_weight):
    inputs, test, train_kernel, test_kernel, labels = problem(1)
    found = self_distillation.distill(
        train_kernel, test_kernel, labels, ridge=0.2, label_weight=label_weight, steps=[2000]
    )
    model = sklearn.kernel_ridge.KernelRidge(alpha=0.2 / label_weight, kernel="rbf", gamma=5.0)
    np.testing.assert_allclose(found.limit, model.fit(inputs, labels).predict(test), atol=1e-11)
    np.testing.assert_allclose(found.fits[0], found.limit, atol=1e-11)


@hypothesis.given(st.floats(0, 1), st.floats(-3, 2), st.integers(1, 40))
def test_gains(label_weight, log_ridge, step):
    """The recursion, the way to the limit, and less of every direction at every step."""
    ridge, values = 10**log_ridge, jnp.array([0.0, 1e-3, 1.0, 30.0])
    settings = dict(ridge=ridge, label_weight=label_weight)
    now, after, limit = self_distillation.gains(values, **settings, steps=[step, step + 1, np.inf])
    share = values / (values + ridge)
    np.testing.assert_allclose(
        after, share * (label_weight + (1 - label_weight) * now), rtol=1e-11, atol=1e-15
    )
    np.testing.assert_allclose(
        after - limit, (1 - label_weight) * share * (now - limit), rtol=1e-7, atol=1e-14
    )
    np.testing.assert_allclose(
        limit, label_weight * values / (label_weight * values + ridge), rtol=1e-11, atol=1e-300
    )
    assert np.all(after <= now + 1e-15)


def test_rate_is_that_of_late_steps():
    _, _, kernel, _, labels = problem(2)
    found = self_distillation.distill(
        kernel, kernel, labels, ridge=0.2, label_weight=0.2, steps=[60, 61]
    )
    gap = jnp.linalg.norm(found.fits - found.limit, axis=1)
    assert gap[1] / gap[0] == pytest.approx(float(found.rate), rel=1e-3)


def test_best_label_weight_beats_a_scan(key):
    a, b, v = jax.random.normal(key, (3, 20))
    best = self_distillation.best_label_weight(a, b, v)
    loss = lambda weight: jnp.sum((weight * a + (1 - weight) * b - v) ** 2)
    scan = jax.vmap(loss)(jnp.linspace(-3, 3, 601))
    assert loss(best) <= scan.min()
    assert jax.grad(loss)(best) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (dict(ridge=0.0), "ridge=0.0"),
        (dict(label_weight=1.5), "label_weight=1.5"),
        (dict(steps=[0]), "from 1 on"),
        (dict(steps=[1.5]), "whole"),
        (dict(labels=np.ones(3)), "labels"),
        (dict(kernel_test_train=jnp.ones((2, 3))), "kernel_test_train"),
    ],
)
def test_refusals(change, word):
    given = dict(
        kernel_train=jnp.eye(2), kernel_test_train=jnp.eye(2), labels=np.ones(2), ridge=1.0,
        label_weight=0.5, steps=[1],
    )  # fmt: skip
    with pytest.raises(ValueError, match=word):
        self_distillation.distill(**{**given, **change})
