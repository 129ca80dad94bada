"""The closed form against full losses minimised by scipy and differentiated by JAX, in float64."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from dynamics.theory import unconstrained_features as theory

pytestmark = pytest.mark.usefixtures("x64")
PER_CLASS = 2
DECAYS = [(0.3, 0.05), (0.05, 0.3), (0.8, 0.9)]


def one_hot(num_classes):
    return jnp.repeat(jnp.eye(num_classes), PER_CLASS, axis=0)


def loss(params, num_classes, decays, cross_entropy):
    """The loss of the module's header, written out; the bias does not decay."""
    classifier, features, bias = params
    logits, targets = features @ classifier.T + bias, one_hot(num_classes)
    if cross_entropy:
        fit = -jnp.sum(targets * jax.nn.log_softmax(logits)) / len(features)
    else:
        fit = jnp.sum((logits - targets) ** 2) / (2 * len(features))
    penalty = decays[0] * jnp.sum(classifier**2) / (2 * num_classes)
    return fit + penalty + decays[1] * jnp.sum(features**2) / (2 * len(features))


def minimise(key, *, num_classes, dim, decays, cross_entropy, bias):
    """Return (W, H, b) found by scipy from a random start."""
    shapes = [(num_classes, dim), (num_classes * PER_CLASS, dim), (num_classes,)]
    sizes = np.cumsum([np.prod(shape) for shape in shapes])[:-1]

    def unpack(flat):
        parts = [part.reshape(s) for part, s in zip(jnp.split(flat, sizes), shapes, strict=True)]
        return parts[0], parts[1], parts[2] * bias

    value = jax.jit(
        jax.value_and_grad(lambda flat: loss(unpack(flat), num_classes, decays, cross_entropy))
    )
    start = jax.random.normal(key, (sum(int(np.prod(shape)) for shape in shapes),))
    found = scipy.optimize.minimize(
        lambda flat: tuple(np.asarray(part) for part in value(flat)),
        np.asarray(start),
        jac=True,
        method="BFGS",
        options={"gtol": 1e-10, "maxiter": 5000},
    )
    return [np.asarray(part) for part in unpack(found.x)], found.fun


def assert_matches(params, scales, num_classes, *, centred):
    classifier, features, _ = params
    means = features.reshape(num_classes, PER_CLASS, -1).mean(axis=1)
    pi = np.asarray(theory.directions(num_classes, centred=centred))
    np.testing.assert_allclose(features - np.repeat(means, PER_CLASS, axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(means @ classifier.T, scales.logits * pi, atol=1e-5)
    np.testing.assert_allclose(classifier @ classifier.T, scales.classifier**2 * pi, atol=1e-5)
    np.testing.assert_allclose(means @ means.T, scales.features**2 * pi, atol=1e-5)


class TestMinimum:
    @pytest.mark.parametrize("decays", DECAYS)
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize(("num_classes", "dim"), [(3, 5), (4, 4)])
    def test_squared_loss(self, key, decays, bias, num_classes, dim):
        params, _ = minimise(key, num_classes=num_classes, dim=dim, decays=decays,
                             cross_entropy=False, bias=bias)  # fmt: skip
        assert_matches(params, theory.squared_loss_scales(*decays), num_classes, centred=bias)
        np.testing.assert_allclose(params[2], bias / num_classes, atol=1e-6)

    @pytest.mark.parametrize("decays", DECAYS)
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize(("num_classes", "dim"), [(3, 5), (4, 3)])
    def test_cross_entropy(self, key, decays, bias, num_classes, dim):
        params, _ = minimise(key, num_classes=num_classes, dim=dim, decays=decays,
                             cross_entropy=True, bias=bias)  # fmt: skip
        scales = theory.cross_entropy_scales(*decays, num_classes=num_classes)
        assert_matches(params, scales, num_classes, centred=True)
        np.testing.assert_allclose(params[2] - params[2].mean(), 0, atol=1e-6)

    @pytest.mark.parametrize("cross_entropy", [False, True])
    def test_strong_decay_leaves_nothing(self, key, cross_entropy):
        decays = (2.0, 0.55)
        params, value = minimise(key, num_classes=3, dim=4, decays=decays,
                                 cross_entropy=cross_entropy, bias=False)  # fmt: skip
        assert max(np.abs(part).max() for part in params) < 1e-4
        assert value == pytest.approx(np.log(3) if cross_entropy else 0.5)
        if cross_entropy:
            scales = theory.cross_entropy_scales(*decays, num_classes=3)
        else:
            scales = theory.squared_loss_scales(*decays)
        np.testing.assert_array_equal(scales, 0)

    @hypothesis.given(st.floats(0.01, 0.9), st.floats(0.01, 0.9), st.integers(2, 9), st.booleans())
    def test_the_gradient_vanishes(self, classifier_decay, feature_decay, num_classes, entropy):
        """In K dimensions both factors are multiples of Π."""
        with jax.enable_x64(True):
            decays = (classifier_decay, feature_decay)
            if entropy:
                scales = theory.cross_entropy_scales(*decays, num_classes=num_classes)
            else:
                scales = theory.squared_loss_scales(*decays)
            pi = theory.directions(num_classes, centred=entropy)
            means = scales.features * pi
            params = (scales.classifier * pi, jnp.repeat(means, PER_CLASS, axis=0), jnp.zeros(()))
            gradient = jax.grad(loss)(params, num_classes, decays, entropy)
            assert max(float(jnp.abs(part).max()) for part in gradient[:2]) < 1e-13

    @pytest.mark.parametrize("entropy", [False, True])
    def test_works_under_jit_and_vmap(self, entropy):
        def scales(decay):
            if entropy:
                return theory.cross_entropy_scales(decay, 0.5, num_classes=4)
            return theory.squared_loss_scales(decay, 0.5)

        decays = jnp.array([0.1, 1.0, 3.0])
        together = jax.jit(jax.vmap(scales))(decays)
        for i, decay in enumerate(decays):
            np.testing.assert_allclose([part[i] for part in together], scales(float(decay)))


def response(decays, pull, *, num_classes, per_class, dim):
    """dH/dH_0 (K, n, D, K, n, D) at the minimum, by the implicit function theorem and autodiff.

    The Hessian in (W, H) comes from jax.hessian; W is eliminated by the Schur complement.
    """
    scales = theory.squared_loss_scales(*decays)
    num = num_classes * per_class
    means = scales.features * jnp.eye(num_classes, dim)
    features = jnp.repeat(means, per_class, axis=0)
    classifier = scales.classifier * jnp.eye(num_classes, dim)
    targets = jnp.repeat(jnp.eye(num_classes), per_class, axis=0)

    def objective(flat):
        w = flat[: num_classes * dim].reshape(num_classes, dim)
        h = flat[num_classes * dim :].reshape(num, dim)
        fit = jnp.sum((h @ w.T - targets) ** 2) / (2 * num)
        fit += decays[0] * jnp.sum(w**2) / (2 * num_classes) + decays[1] * jnp.sum(h**2) / (2 * num)
        return fit + pull * jnp.sum((h - features) ** 2) / (2 * num)

    at = jnp.concatenate([classifier.ravel(), features.ravel()])
    hessian = np.asarray(jax.hessian(objective)(at))
    cut = num_classes * dim
    schur = hessian[cut:, cut:] - hessian[cut:, :cut] @ np.linalg.solve(
        hessian[:cut, :cut], hessian[:cut, cut:]
    )
    jacobian = np.linalg.inv(schur) * pull / num
    return jacobian.reshape((num_classes, per_class, dim) * 2)


@pytest.mark.parametrize("decays", [(0.3, 0.05), (0.05, 0.3), (0.6, 1.1)])
@pytest.mark.parametrize("pull", [0.2, 3.0, 200.0])
class TestResponse:
    def test_attenuation(self, decays, pull):
        jacobian = response(decays, pull, num_classes=3, per_class=2, dim=5)
        factors = theory.attenuation(*decays, pull)
        moved = lambda change: np.einsum("anibmj,bmj->ani", jacobian, change)
        within = np.zeros((3, 2, 5))
        within[1, :, 0], within[2, :, 4] = (1, -1), (-2, 2)
        expected = within * [factors.within_in_span] * 1
        expected[2] = within[2] * factors.within_off_span
        np.testing.assert_allclose(moved(within), expected, atol=1e-10)
        for matrix, factor in (
            ([[1, 2, 0], [2, 0, 3], [0, 3, -1]], factors.stretch),
            ([[0, 2, 1], [-2, 0, 3], [-1, -3, 0]], factors.turn),
        ):
            means = np.zeros((3, 2, 5))
            means[:, :, :3] = np.asarray(matrix, float)[:, None]
            np.testing.assert_allclose(moved(means), factor * means, atol=1e-10)
        out = np.zeros((3, 2, 5))
        out[:, :, 3:] = np.arange(6.0).reshape(3, 1, 2)
        np.testing.assert_allclose(moved(out), factors.turn * out, atol=1e-10)

    @pytest.mark.parametrize(("num_classes", "per_class", "dim"), [(3, 2, 5), (2, 3, 2), (3, 1, 4)])
    def test_blocks(self, decays, pull, num_classes, per_class, dim):
        sizes = {"num_classes": num_classes, "per_class": per_class, "dim": dim}
        jacobian = response(decays, pull, **sizes)
        found = theory.block_singular_values(*decays, pull, **sizes)
        size = per_class * dim
        for a in range(num_classes):
            for b in range(num_classes):
                block = jacobian[a, :, :, b].reshape(size, size)
                expected = np.linalg.svd(block, compute_uv=False)
                np.testing.assert_allclose(
                    found.same if a == b else found.other, expected, atol=1e-10
                )


class TestLargePull:
    def test_error_falls_as_the_square(self):
        errors = []
        for pull in (50.0, 500.0):
            exact = theory.block_singular_values(0.3, 0.05, pull, num_classes=3, per_class=2, dim=5)
            found = theory.block_singular_values_large_pull(0.3, 0.05, pull)
            values = [exact.same[0], exact.same[-1], exact.other[0]]
            errors.append(np.abs(np.subtract(values, found)))
        assert errors[0][0] == errors[1][0] == 0
        np.testing.assert_allclose(np.log10(errors[0][1:] / errors[1][1:]), 2, atol=0.02)


class TestCentralPath:
    def problem(self, key):
        return jax.random.normal(key, (6, 4)), one_hot(3)

    def value(self, classifier, features, targets, decays):
        fit = jnp.sum((features @ classifier.T - targets) ** 2) / (2 * len(features))
        fit += decays[0] * jnp.sum(classifier**2) / (2 * targets.shape[1])
        return fit + decays[1] * jnp.sum(features**2) / (2 * len(features))

    def test_the_classifier_is_the_best(self, key):
        features, targets = self.problem(key)
        found = theory.optimal_classifier(features, targets, 0.3)
        gradient = jax.grad(self.value)(found, features, targets, (0.3, 0.05))
        np.testing.assert_allclose(gradient, 0, atol=1e-14)

    def test_the_velocity_is_the_gradient_of_what_is_left(self, key):
        """Differentiated through the classifier, found there by least squares on more rows."""
        features, targets = self.problem(key)

        def left(h):
            rows = jnp.concatenate([h, jnp.sqrt(0.3 * 2) * jnp.eye(4)])
            ys = jnp.concatenate([targets, jnp.zeros((4, 3))])
            best = jnp.linalg.lstsq(rows, ys)[0].T
            return self.value(best, h, targets, (0.3, 0.05))

        velocity = theory.central_path_velocity(features, targets, 0.3, 0.05)
        np.testing.assert_allclose(velocity, -6 * jax.grad(left)(features), atol=1e-12)

    def test_it_stands_still_at_the_minimum(self):
        scales = theory.squared_loss_scales(0.3, 0.05)
        features = scales.features * one_hot(3)
        velocity = theory.central_path_velocity(features, one_hot(3), 0.3, 0.05)
        np.testing.assert_allclose(velocity, 0, atol=1e-15)


class TestRefusals:
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: theory.squared_loss_scales(0.0, 0.1), r"classifier_decay=0.0: give a pos"),
            (lambda: theory.squared_loss_scales(float("nan"), 0.1), r"classifier_decay=nan"),
            (lambda: theory.cross_entropy_scales(0.1, -1.0, num_classes=3), r"feature_decay=-1.0"),
            (lambda: theory.cross_entropy_scales(0.1, 1.0, num_classes=1), r"num_classes=1: give"),
            (lambda: theory.directions(1, centred=True), r"num_classes=1: give at least 2"),
            (lambda: theory.attenuation(0.1, 1.0, 0.0), r"pull=0.0: give a positive"),
            (lambda: theory.attenuation(1.0, 1.0, 1.0), r"= 1.0: give a product below 1"),
            (lambda: theory.block_singular_values_large_pull(2.0, 1.0, 1.0), r"product below 1"),
            (
                lambda: theory.block_singular_values(
                    0.1, 0.1, 1.0, num_classes=3, per_class=1, dim=2
                ),
                r"dim=2: give at least 3",
            ),
            (
                lambda: theory.optimal_classifier(jnp.ones((3, 2)), jnp.ones((4, 2)), 0.1),
                r"targets has shape \(4, 2\).* as in features",
            ),
        ],
    )
    def test_names_argument_value_and_mend(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()
