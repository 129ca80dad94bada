"""Wrong formulas and spoilt measurements must turn the claims on kernel regression red."""

import dataclasses

import jax
import numpy as np
import pytest

RANDOM_FEATURES = "theory_checks/kernels/rf_risk_eigenframework"
OVERFITTING = "theory_checks/kernels/overfitting_obligatory_powerlaw"
DISTILLATION = "theory_checks/kernels/self_distill_ridge_over_alpha"
LOCAL = "theory_checks/kernels/local_kernel_exponents"
pytestmark = [pytest.mark.claims, pytest.mark.timeout(900)]


def red(claim, *, prediction=None, **result):
    """Return the checks that are red with some fields of prediction or result replaced."""
    outcome, found = claim.judge(prediction=prediction, **result)
    assert outcome in ("holds", "fails")
    return found


def predicted(claim, **overrides):
    """Return the prediction for another configuration."""
    config = dataclasses.replace(claim.main.config, **overrides)
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, claim.experiment.predict(config))


@pytest.mark.smoke_run_of(RANDOM_FEATURES)
class TestRandomFeatures:
    def test_left_alone_it_holds(self, claim):
        assert not red(claim)

    def test_a_ridge_that_is_times_the_samples(self, claim):
        """As if the loss were a mean: δ n in place of δ."""
        config = claim.main.config
        n = config.nums_samples[-1]
        other = predicted(
            claim, smallest_ridge=n * config.smallest_ridge, largest_ridge=n * config.largest_ridge
        )
        assert "test: largest deviation in standard errors" in red(
            claim, prediction={"test": other.test}
        )

    def test_the_formula_of_the_kernel_for_every_number_of_features(self, claim):
        test = claim.main.prediction.test
        kernel = np.broadcast_to(test[:, -1:], test.shape)
        assert "test: largest deviation in standard errors" in red(
            claim, prediction={"test": kernel}
        )

    def test_a_train_error_without_its_square(self, claim):
        part = claim.main.prediction
        wrong = np.sqrt(part.train * part.test)
        assert red(claim, prediction={"train": wrong}) == {
            "train: largest deviation in standard errors"
        }

    @pytest.mark.parametrize("factor", [0.7, 1.3])
    def test_noise_that_is_amplified_by_another_factor(self, claim, factor):
        by_noise = 1 + factor * (claim.main.prediction.by_noise - 1)
        assert red(claim, prediction={"by_noise": by_noise}) == {
            "largest relative deviation of what label noise adds to the test error"
        }

    def test_more_features_that_do_not_help(self, claim):
        test = claim.main.result.test.copy()
        test[:, :, 1] = test[:, :, 0]
        found = red(claim, test=test)
        assert (
            "smallest fall of log test in standard errors, best ridge, n or k to the next" in found
        )


@pytest.mark.smoke_run_of(OVERFITTING)
class TestOverfitting:
    def test_left_alone_it_holds(self, claim):
        assert not red(claim)

    def test_a_criterion_without_its_factor_of_alpha(self, claim):
        wrong = claim.main.prediction.critical * np.array(claim.main.config.alphas)
        assert red(claim, prediction={"critical": wrong}) == {
            "largest error of a critical noise in standard errors"
        }

    def test_noise_that_is_half_of_what_was_meant(self, claim):
        result = claim.main.result
        found = red(
            claim, test_variance=result.test_variance / 2, train_variance=result.train_variance / 2
        )
        assert "largest relative error of a test error over that without ridge" in found

    def test_a_ridge_that_helps_where_it_should_not(self, claim):
        bias = claim.main.result.test_bias.copy()
        bias[:, :, 1] *= 0.95
        assert "β > α, up to half the critical noise: best test error with a ridge" in red(
            claim, test_bias=bias
        )


@pytest.mark.smoke_run_of(DISTILLATION)
class TestDistillation:
    def test_left_alone_it_holds(self, claim):
        assert not red(claim)

    def test_a_limit_of_another_penalty(self, claim):
        result = claim.main.result
        found = red(claim, single=result.wrong)
        assert "largest distance of the limit from one fit of penalty λ/α" in found

    def test_one_step_too_many(self, claim):
        fits = np.roll(claim.main.result.fits, -1, axis=3)
        assert "largest distance of a fit from the closed form" in red(claim, fits=fits)

    def test_one_digit_of_a_printed_loss(self, claim):
        example = claim.main.result.example + 1e-5
        assert red(claim, example=example) == {"largest distance from a printed loss"}

    def test_a_best_weight_that_is_clipped(self, claim):
        clipped = np.clip(claim.main.prediction.best_weight, 0, 1)
        assert red(claim, prediction={"best_weight": clipped}) == {
            "best weight of the labels less the best of a grid"
        }


@pytest.mark.smoke_run_of(LOCAL)
class TestLocalKernels:
    def test_left_alone_it_holds(self, claim):
        assert not red(claim)

    def test_target_and_student_exchanged(self, claim):
        error = claim.main.prediction.error.swapaxes(0, 1)
        assert "largest relative deviation of a mean error from the eigenframework" in red(
            claim, prediction={"error": error}
        )

    def test_curves_that_know_one_exponent(self, claim):
        """Errors of all students fall as those of the one that sees all angles."""
        error = claim.main.result.error.copy()
        error[:, 0] = error[:, 0, 2:]
        found = red(claim, error=error)
        assert "exponent of t = 1 with s = 1" in found
        assert "exponent of s = 2 less that of s = 4, t = 1" in found

    @pytest.mark.parametrize(("student", "shift"), [(1, 0.1), (1, -0.1), (2, 0.09), (2, -0.09)])
    def test_a_theory_as_wrong_as_the_kernels(self, claim, student, shift):
        """Kernels of another smoothness, say: prediction and regression agree on it."""
        samples = np.array(claim.main.config.nums_samples)
        tilt = (samples / samples[0]) ** -shift
        part, tilts = claim.main, np.ones((3, 3, len(samples)))
        tilts[0, student] = tilt
        exponent = part.prediction.exponent.copy()
        exponent[0, student] += shift
        prediction = {"error": part.prediction.error * tilts, "exponent": exponent}
        found = red(claim, error=part.result.error * tilts, prediction=prediction)
        assert f"exponent of t = 1 with s = {(1, 2, 4)[student]}" in found

    def test_an_error_ten_percent_off_leaves_the_exponents_alone(self, claim):
        found = red(claim, error=1.1 * claim.main.result.error)
        assert found == {"largest relative deviation of a mean error from the eigenframework"}
