"""Mixup's features against scipy on the full loss of features, and of features and classifier."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from dynamics.theory import mixup_features as theory
from dynamics.theory import unconstrained_features

pytestmark = pytest.mark.usefixtures("x64")
CLASSES = 4


def simplex(length, dim=5):
    """K rows of one length in D >= K dimensions, cosines -1/(K-1), turned at random."""
    rows = (np.eye(CLASSES) - 1 / CLASSES) * np.sqrt(CLASSES / (CLASSES - 1)) * length
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(dim, dim)))[0]
    return np.pad(rows, ((0, 0), (0, dim - CLASSES))) @ turn


def mixed(share, i=0, j=1):
    return share * np.eye(CLASSES)[i] + (1 - share) * np.eye(CLASSES)[j]


def best_feature(classifier, target, decay, *, cross_entropy):
    def objective(h):
        z = classifier @ h
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        if cross_entropy:
            value, slope = np.log(np.exp(z - z.max()).sum()) + z.max() - target @ z, p - target
        else:
            value, slope = ((z - target) ** 2).sum() / 2, z - target
        return value + decay / 2 * h @ h, classifier.T @ slope + decay * h

    start = np.ones(classifier.shape[1])
    return scipy.optimize.minimize(
        objective, start, jac=True, method="BFGS", options={"gtol": 1e-11}
    ).x


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize(("length", "decay"), [(1.0, 0.05), (2.0, 0.01), (0.5, 3.0)])
class TestFixedClassifier:
    def test_cross_entropy(self, share, length, decay):
        classifier = simplex(length)
        expected = best_feature(classifier, mixed(share), decay, cross_entropy=True)
        kappa = theory.strength(length, decay, num_classes=CLASSES)
        logits = theory.cross_entropy_logits(jnp.asarray(mixed(share)), kappa)
        np.testing.assert_allclose(logits, classifier @ expected, atol=1e-6)
        found = theory.features(jnp.asarray(classifier), logits)
        np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_squared_loss(self, share, length, decay):
        classifier = simplex(length)
        expected = best_feature(classifier, mixed(share), decay, cross_entropy=False)
        kappa = theory.strength(length, decay, num_classes=CLASSES)
        logits = theory.squared_loss_logits(jnp.asarray(mixed(share)), kappa)
        np.testing.assert_allclose(logits, classifier @ expected, atol=1e-7)
        found = theory.features(jnp.asarray(classifier), logits)
        np.testing.assert_allclose(found, expected, atol=1e-7)


class TestNewton:
    @hypothesis.given(st.floats(-3, 6), st.integers(0, 2**31 - 1))
    def test_solves_the_equation(self, log_kappa, seed):
        with jax.enable_x64(True):
            kappa = 10.0**log_kappa
            targets = jax.random.dirichlet(jax.random.key(seed), 0.3 * jnp.ones(6), (5,))
            logits = theory.cross_entropy_logits(targets, kappa)
            residual = logits + kappa * (jax.nn.softmax(logits) - targets)
            assert float(jnp.abs(residual).max()) < 1e-13 * (1 + kappa)

    @hypothesis.given(st.permutations(range(5)), st.floats(0.01, 100.0))
    def test_treats_classes_alike(self, order, kappa):
        with jax.enable_x64(True):
            target = jnp.array([0.6, 0.4, 0.0, 0.0, 0.0])
            order = jnp.array(order)
            one = theory.cross_entropy_logits(target, kappa)[order]
            np.testing.assert_allclose(
                theory.cross_entropy_logits(target[order], kappa), one, atol=1e-11
            )

    def test_single_precision_to_its_rounding(self):
        targets = jnp.array([[1.0, 0, 0], [0.7, 0.3, 0]], jnp.float32)
        logits = theory.cross_entropy_logits(targets, 1e4)
        assert logits.dtype == jnp.float32
        exact = theory.cross_entropy_logits(targets.astype(jnp.float64), 1e4)
        np.testing.assert_allclose(logits, exact, atol=1e-3)

    def test_batches_jit_and_vmap_agree(self, key):
        targets = jax.random.dirichlet(key, jnp.ones(3), (2, 4))
        kappas = jnp.array([0.5, 20.0])
        together = theory.cross_entropy_logits(targets, kappas[:, None])
        mapped = jax.jit(jax.vmap(theory.cross_entropy_logits))(targets, kappas)
        np.testing.assert_allclose(together, mapped, atol=1e-12)
        alone = theory.cross_entropy_logits(targets[1, 2], 20.0)
        np.testing.assert_allclose(together[1, 2], alone, atol=1e-12)

    def test_a_weak_classifier_mixes_linearly(self):
        """κ → 0: z = κ (y - 1/K), as under the squared loss."""
        targets = jnp.asarray(mixed(0.3))
        np.testing.assert_allclose(
            theory.cross_entropy_logits(targets, 1e-6) / 1e-6,
            theory.squared_loss_logits(targets, 1e-6) / 1e-6,
            atol=1e-6,
        )

    def test_pure_classes_are_those_of_the_unconstrained_features(self):
        """Without mixing, at the jointly best classifier, the logits are s (e - 1/K)."""
        scales = unconstrained_features.cross_entropy_scales(0.04, 0.05, num_classes=CLASSES)
        targets = jnp.eye(CLASSES)
        kappa = theory.joint_strength(targets, 0.04 / CLASSES, 0.05)
        length = scales.classifier * np.sqrt((CLASSES - 1) / CLASSES)
        expected = theory.strength(length, 0.05, num_classes=CLASSES)
        np.testing.assert_allclose(kappa, expected, rtol=1e-9)
        logits = theory.cross_entropy_logits(targets, kappa)
        np.testing.assert_allclose(logits, scales.logits * (targets - 1 / CLASSES), atol=1e-9)


class TestJointStrength:
    DIM = 4

    def train(self, targets, classifier_decay, feature_decay):
        """Return W (K, D) that scipy finds together with all features."""
        num, classes = targets.shape

        def objective(flat):
            w = flat[: classes * self.DIM].reshape(classes, self.DIM)
            h = flat[classes * self.DIM :].reshape(num, self.DIM)
            fit = -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(h @ w.T), axis=1))
            return (
                fit
                + classifier_decay / 2 * jnp.sum(w**2)
                + feature_decay / 2 * jnp.mean(jnp.sum(h**2, axis=1))
            )

        value = jax.jit(jax.value_and_grad(objective))
        start = np.random.default_rng(1).normal(size=(classes + num) * self.DIM)
        found = scipy.optimize.minimize(
            lambda flat: tuple(np.asarray(part) for part in value(flat)),
            start,
            jac=True,
            method="L-BFGS-B",
            options={"ftol": 1e-16, "gtol": 1e-10, "maxiter": 20000, "maxfun": 40000},
        )
        return found.x[: classes * self.DIM].reshape(classes, self.DIM)

    def targets(self):
        pairs = [(i, j) for i in range(CLASSES) for j in range(CLASSES)]
        return jnp.asarray([mixed(share, i, j) for share in (0.1, 0.35) for i, j in pairs])

    def test_is_where_joint_training_ends(self):
        classifier = self.train(self.targets(), 0.02, 0.1)
        gram = classifier @ classifier.T
        kappa = theory.joint_strength(self.targets(), 0.02, 0.1)
        expected = 0.1 * kappa * (np.eye(CLASSES) - 1 / CLASSES)
        np.testing.assert_allclose(gram, expected, atol=1e-4)

    def test_is_zero_from_where_everything_collapses(self):
        targets = self.targets()
        spread = float(jnp.mean(jnp.sum((targets - 1 / CLASSES) ** 2, axis=1)))
        critical = spread / (CLASSES - 1)
        assert theory.joint_strength(targets, 1.001 * critical, 1.0) == 0
        assert 0 < theory.joint_strength(targets, 0.999 * critical, 1.0) < 0.1
        assert np.abs(self.train(targets, 1.5 * critical, 1.0)).max() < 1e-4


class TestRefusals:
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: theory.strength(1.0, 0.0, num_classes=3), r"feature_decay=0.0: give a pos"),
            (lambda: theory.strength(1.0, 0.1, num_classes=1), r"num_classes=1: give at least 2"),
            (lambda: theory.cross_entropy_logits(jnp.ones(3) / 3, -1.0), r"strength=-1.0: give"),
            (lambda: theory.cross_entropy_logits(jnp.ones(1), 1.0), r"targets: shape \(1,\)"),
            (lambda: theory.features(jnp.ones((3, 2)), jnp.ones(4)), r"as in classifier"),
            (lambda: theory.joint_strength(jnp.eye(3), 0.0, 0.1), r"classifier_decay=0.0"),
            (lambda: theory.joint_strength(jnp.ones(3), 0.1, 0.1), r"targets has shape \(3,\)"),
        ],
    )
    def test_names_argument_value_and_mend(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()
