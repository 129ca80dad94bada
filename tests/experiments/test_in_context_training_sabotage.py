"""Decoders that do not learn in context, or not as Bayes or Newton would, must turn claims red."""

import numpy as np
import pytest

BAYES = "experiments/in_context/icl_uncertainty_bayes_gap"
pytestmark = [pytest.mark.claims, pytest.mark.timeout(900)]


@pytest.mark.smoke_run_of(BAYES)
class TestBayes:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_networks_that_see_no_pairs(self, claim):
        """As the control does: whatever the noise and the inputs, no more than the prior."""
        excess = claim.main.result.excess.copy()
        excess[:, :, 0] = excess[:, :, 1]
        outcome, red = claim.judge(excess=excess)
        assert outcome == "fails"
        assert {
            "excess risk over Bayes as trained, nats",
            "excess risk over that of the prior, as trained",
            "excess risk over that of the prior, louder noise",
            "excess risk over that of the prior, larger inputs",
        } <= red

    @pytest.mark.parametrize(
        ("condition", "name"),
        [(1, "excess risk with louder noise / as trained"),
         (2, "excess risk with larger inputs / as trained")],
    )  # fmt: skip
    def test_networks_that_are_as_near_to_bayes_when_shifted(self, claim, condition, name):
        excess = claim.main.result.excess.copy()
        excess[:, condition, 0] = excess[:, 0, 0]
        outcome, red = claim.judge(excess=excess)
        assert outcome == "fails"
        share = "excess risk over that of the prior, louder noise / larger inputs"
        assert red == ({name} if condition == 1 else {name, share})

    def test_networks_lost_beyond_the_trained_length(self, claim):
        excess = claim.main.result.excess.copy()
        length = claim.main.config.num_examples
        excess[:, 0, 0, length:] = excess[:, 0, 1, length:]
        assert claim.judge(excess=excess) == (
            "fails",
            {"excess risk beyond the trained length / within it"},
        )

    def test_standard_deviations_of_other_targets(self, claim):
        log_std = claim.main.result.log_std.copy()
        log_std[:, 0, 0] = np.roll(log_std[:, 0, 0], log_std.shape[-1] // 2, axis=-1)
        outcome, red = claim.judge(log_std=log_std)
        assert outcome == "fails"
        assert red == {
            "rank correlation of standard deviations with Bayes'",
            "slope of log standard deviation in Bayes', as trained",
        }

    def test_standard_deviations_that_are_those_of_bayes(self, claim):
        log_std = claim.main.result.log_std.copy()
        log_std[:, 0, 0] = log_std[:, 0, 1]
        name = "slope of log standard deviation in Bayes', as trained"
        assert claim.judge(log_std=log_std) == ("fails", {name})

    def test_standard_deviations_that_follow_bayes_all_the_way(self, claim):
        log_std = claim.main.result.log_std.copy()
        log_std[:, 1, 0] = log_std[:, 1, 1]
        assert claim.judge(log_std=log_std) == (
            "fails",
            {"slope of log standard deviation in Bayes', louder noise"},
        )

    def test_a_control_that_learned(self, claim):
        control = claim.main.result.control_excess.copy()
        control[:, :, 0] = claim.main.result.excess[: len(control), :, 0]
        outcome, red = claim.judge(control_excess=control)
        assert outcome == "fails"
        assert red == {"control: another task's targets shown, excess risk over that of the prior"}

    def test_a_network_that_diverged(self, claim):
        loss = claim.main.result.loss.copy()
        loss[0, -1] = np.nan
        assert claim.judge(loss=loss)[0] == "void"
