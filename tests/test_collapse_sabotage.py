"""The claims on deep linear collapse turn red where a formula or a run is tampered with."""

import dataclasses

import numpy as np
import pytest

from dynamics.theory import deep_linear_collapse as theory
from experiments import execution

IMBALANCED = "theory_checks/collapse/deep_linear_imbalanced_gof"
TRANSITION = "theory_checks/collapse/deep_linear_minority_collapse_transition"
BALANCED = "theory_checks/collapse/deep_linear_balanced_of_vs_etf"
pytestmark = [pytest.mark.claims, pytest.mark.timeout(900)]


def predicted_with(claim, monkeypatch, name, function):
    """Return the prediction with one function of the theory replaced."""
    monkeypatch.setattr(theory, name, function)
    part = execution.compute_part(
        dataclasses.replace(claim.experiment, run=lambda config: claim.main.result),
        claim.main.config,
    )
    return part.prediction


@pytest.mark.smoke_run_of(IMBALANCED)
class TestImbalanced:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_rows_a_thousandth_too_long_though_the_frame_is_right(self, claim):
        """NC2 and NC3 divide by the norm and see nothing: absolute lengths are what is compared."""
        rows = claim.main.result.classifier
        outcome, red = claim.judge(role="claim", classifier=1.001 * rows)
        assert outcome == "fails"
        assert red == {"relative error of the squared lengths of the rows"}

    def test_means_of_the_wrong_power(self, claim):
        """|h|² = p / (p + N λ_H) instead of p / (p + N λ_H)²."""
        prediction = claim.main.prediction
        outcome, red = claim.judge(
            role="claim", prediction=prediction._replace(features=prediction.alignment)
        )
        assert outcome == "fails"
        assert red == {"relative error of the squared lengths of the class means"}

    def test_price_without_the_depth(self, claim, monkeypatch):
        right = theory.price
        wrong = lambda sizes, *, depth, **decays: right(sizes, depth=depth, **decays) / depth
        prediction = predicted_with(claim, monkeypatch, "price", wrong)
        outcome, red = claim.judge(role="claim", prediction=prediction)
        assert outcome == "fails"
        assert "relative error of the squared lengths of the rows" in red

    def test_classes_told_in_the_wrong_order(self, claim):
        rows = claim.main.result.classifier[:, :, ::-1, ::-1]
        outcome, red = claim.judge(role="claim", classifier=rows)
        assert outcome == "fails"
        assert "smallest rise in row length from a class to the next larger" in red


@pytest.mark.smoke_run_of(TRANSITION)
class TestTransition:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_largest_root_without_comparing_zero(self, claim):
        """The formula of the authors' code: a class lives up to the spinodal."""
        prediction = claim.main.prediction
        outcome, red = claim.judge(
            role="claim", prediction=prediction._replace(length=prediction.outer)
        )
        assert outcome == "fails"
        assert "largest error of the length, best start" in red

    def test_a_threshold_ten_percent_too_low(self, claim):
        prediction = claim.main.prediction
        wrong = prediction._replace(threshold=0.9 * prediction.threshold)
        outcome, red = claim.judge(role="claim", prediction=wrong)
        assert outcome == "fails"
        assert "β where the minima are equally deep, by theory" in red

    def test_no_hysteresis(self, claim):
        """Both starts end where the lower of the two does."""
        result = claim.main.result
        lowest = result.loss.argmin(axis=-1)[..., None]
        same = lambda array: np.repeat(np.take_along_axis(array, lowest, axis=-1), 3, axis=-1)
        outcome, red = claim.judge(role="claim", length=same(result.length), loss=same(result.loss))
        assert outcome == "fails"
        assert "largest error of the metastable length, large start" in red
        assert "largest length for M >= 2, small start" in red

    def test_a_continuous_transition_at_every_depth(self, claim):
        """The lengths of M = 1 in place of those of M = 2 and 3."""
        result = claim.main.result
        order = [0, 1, 0, 1, 0, 1]
        outcome, red = claim.judge(role="claim", length=result.length[:, order])
        assert outcome == "fails"
        assert "smallest length above zero for M >= 2, by the jump N λ_H (M - 1)" in red

    def test_one_run_that_diverged_voids(self, claim):
        loss = claim.main.result.loss.copy()
        loss[0, 0, 0, 0] = np.nan
        assert claim.judge(loss=loss)[0] == "void"


@pytest.mark.smoke_run_of(BALANCED)
class TestBalanced:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_bias_and_no_bias_exchanged(self, claim):
        result = claim.main.result
        outcome, red = claim.judge(
            role="claim", rows=result.rows[:, ::-1], means=result.means[:, ::-1]
        )
        assert outcome == "fails"
        assert "error of the rows' Gram matrix, by p" in red
        assert "NC2 of the means from the frame of each run" in red

    def test_rows_a_thousandth_too_long_though_the_frame_is_right(self, claim):
        outcome, red = claim.judge(role="claim", rows=1.001 * claim.main.result.rows)
        assert outcome == "fails"
        assert "products of rows by their length, less -1 / (K - 1), free bias" not in red
        assert "error of the rows' squared singular values, by p" in red

    def test_a_singular_value_that_the_bias_shrinks(self, claim):
        """As if the length followed from the K - 1 classes' worth of targets that are left."""
        prediction = claim.main.prediction
        rows = prediction.rows * np.array([1, 0.75])[:, None, None, None]
        outcome, red = claim.judge(role="claim", prediction=prediction._replace(rows=rows))
        assert outcome == "fails"
        assert "error of the rows' squared singular values, by p" in red

    def test_a_bias_of_zero(self, claim):
        bias = np.zeros_like(claim.main.result.bias)
        assert claim.judge(role="claim", bias=bias) == ("fails", {"error of the bias"})
