"""The claims on signals in random networks turn red where a formula or a run is tampered with."""

import numpy as np
import pytest

MOMENT = "theory_checks/signal/depth_to_width_relu_moment"
pytestmark = [pytest.mark.claims, pytest.mark.timeout(900)]


@pytest.mark.smoke_run_of(MOMENT)
class TestMoment:
    RATIO = "E[z⁴] / 3 E[z²]² from theory, worst network, standard errors"
    LOG = "mean log G from theory, worst network, standard errors"

    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_one_layer_more(self, claim):
        wrong = claim.main.prediction.ratio * (1 + 5 / np.array(claim.main.config.widths))
        assert claim.judge(role="claim", prediction={"ratio": wrong}) == ("fails", {self.RATIO})

    def test_the_law_of_wide_networks(self, claim):
        """exp(5k/n) and exp(2k/n): right at width 32 to 6 %, not at width 8."""
        excess = np.array([[5.0], [2.0]]) / claim.main.config.moment_aspect
        wrong = np.broadcast_to(np.exp(excess), claim.main.prediction.ratio.shape)
        assert claim.judge(role="claim", prediction={"ratio": wrong}) == ("fails", {self.RATIO})

    def test_the_leading_order(self, claim):
        """1 + 5k/n is exact at one hidden layer only."""
        excess = np.array([[5.0], [2.0]]) / claim.main.config.moment_aspect
        wrong = np.broadcast_to(1 + excess, claim.main.prediction.ratio.shape)
        assert claim.judge(role="claim", prediction={"ratio": wrong}) == ("fails", {self.RATIO})

    def test_relu_and_linear_exchanged(self, claim):
        result = claim.main.result
        verdict, red = claim.judge(
            role="claim", fourth=result.fourth[:, ::-1], log_variance=result.log_variance[:, ::-1]
        )
        assert verdict == "fails"
        assert red == {self.RATIO, self.LOG}

    def test_a_log_gain_of_leading_order(self, claim):
        """-5k/2n in place of the exact mean, which at width 8 is a quarter lower."""
        excess = np.array([[5.0], [2.0]]) / claim.main.config.deep_aspect
        wrong = np.broadcast_to(-excess / 2, claim.main.prediction.log_variance.shape)
        verdict = claim.judge(role="claim", prediction={"log_variance": wrong})
        assert verdict == ("fails", {self.LOG})

    def test_networks_that_do_not_fluctuate(self, claim):
        """Each with the mean second moment: the ratio of a Gaussian."""
        fourth = 3 * claim.main.result.second**2
        verdict, red = claim.judge(fourth=fourth)
        assert verdict == "fails"
        assert self.RATIO in red
        assert "E[z⁴] / 3 E[z²]² above that of infinite width, standard errors" in red
