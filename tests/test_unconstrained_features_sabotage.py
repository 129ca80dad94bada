"""Wrong formulas and spoilt measurements must turn the claims on unconstrained features red."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.theory import mixup_features

ATTENUATION = "theory_checks/collapse/ufm_perturbation_attenuation"
MIXUP = "theory_checks/collapse/mixup_ufm_fixed_point"
pytestmark = [pytest.mark.claims, pytest.mark.timeout(900)]


def red(claim, *, prediction=None, result=None):
    """Return the checks that are red with some fields of prediction or result replaced."""
    outcome, found = claim.judge(prediction=prediction, **(result or {}))
    assert outcome in ("holds", "fails")
    return found


def predicted(experiment, config, **overrides):
    """Return the prediction for another configuration."""
    with jax.enable_x64(True):
        return jax.tree.map(
            np.asarray, experiment.predict(dataclasses.replace(config, **overrides))
        )


@pytest.mark.smoke_run_of(ATTENUATION)
class TestAttenuation:
    @pytest.fixture
    def main(self, claim):
        return claim.main

    def test_left_alone_it_holds(self, claim):
        assert not red(claim)

    def test_decays_that_change_places(self, claim, main):
        config = main.config
        swapped = predicted(
            claim.experiment, config, classifier_decay=config.feature_decay,
            feature_decay=config.classifier_decay,
        )  # fmt: skip
        found = red(claim, prediction={"in_span": swapped.in_span})
        assert "largest relative error of the in-span factor" in found

    def test_only_the_first_order_in_one_over_beta(self, claim, main):
        """What the paper proves is not enough: 1 - s/β against 1 / (1 + s/β)."""
        first = lambda factor: 2 - 1 / factor
        found = red(claim, prediction={"off_span": first(main.prediction.off_span)})
        assert "largest relative error of the off-span factor" in found
        found = red(claim, prediction={"same": first(main.prediction.same)})
        assert "largest error of a singular value of dH/dH0" in found

    def test_a_classifier_that_does_not_follow_the_means(self, claim, main):
        """Frozen, it damps a stretch as noise within classes and leaves other classes alone."""
        found = red(claim, prediction={"other": 0 * main.prediction.other})
        assert "largest error of a singular value of dH/dH0" in found

    def test_noise_that_is_not_isotropic(self, claim, main):
        found = red(claim, result={"variability": main.result.in_span**2})
        assert found == {"largest error of the fall of tr Σ_W / tr Σ_B in standard errors"}

    def test_decays_that_do_nothing(self, claim, main):
        still = np.broadcast_to(main.result.in_span[:, :1], main.result.in_span.shape)
        found = red(claim, result={"in_span": still})
        assert "smallest fall of log in-span factor where λ_H grows" in found
        assert "smallest rise of log in-span factor where λ_W grows" in found

    def test_an_anchor_that_is_a_simplex(self, claim, main):
        classes = main.config.num_classes
        gram = main.result.gram @ (np.eye(classes) - 1 / classes)
        found = red(claim, result={"gram": gram})
        assert found == {"largest error of an inner product of class means at the anchor"}


@pytest.mark.smoke_run_of(MIXUP)
class TestMixup:
    @pytest.fixture
    def main(self, claim):
        return claim.main

    def test_left_alone_it_holds(self, claim):
        assert not red(claim)

    def test_a_strength_without_its_factor_of_classes(self, claim, main):
        """κ = ω²/λ_h, as of an orthogonal frame."""
        classes = main.config.num_classes
        length = (1 - 1 / classes) ** 0.5 * main.config.classifier_length
        other = predicted(claim.experiment, main.config, classifier_length=length)
        found = red(claim, prediction={"logits": other.logits})
        assert "largest error of the logits under cross-entropy" in found
        assert "largest error of the logits under squared error" in found

    def test_features_mixed_as_labels_are(self, claim, main):
        shares = np.linspace(0, 1, main.config.num_shares)[:, None]
        ends = main.result.plane
        mixed = shares * ends[..., -1:, :] + (1 - shares) * ends[..., :1, :]
        found = red(claim, result={"plane": mixed})
        assert "largest distance from the mixture of class features" in found
        assert "length of a feature mixed half and half over a class feature's" in found

    def test_the_classifier_of_training_without_mixup(self, claim, main):
        """Pure classes alone, at the same decays, end in a longer classifier."""
        config = main.config
        with jax.enable_x64(True):
            kappa = mixup_features.joint_strength(
                jnp.eye(config.num_classes), config.classifier_decay, config.feature_decays[0]
            )
            pure = config.feature_decays[0] * kappa * (np.eye(5) - 1 / 5)
        gram = np.broadcast_to(pure, main.prediction.gram.shape)
        found = red(claim, prediction={"gram": gram})
        assert "relative error of W W^T after joint training" in found

    def test_training_that_is_not_over_is_void(self, claim, main):
        assert claim.judge(gradient=1e-3 + main.result.gradient)[0] == "void"
