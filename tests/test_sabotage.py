"""Take a claim's mechanism away, and its verdict must turn red."""

import numpy as np
import pytest

EDGE = "experiments/curvature/edge_of_stability"
WIDE = "experiments/kernels/wide_network_trains_like_its_kernel"
pytestmark = [pytest.mark.claims, pytest.mark.timeout(900)]


@pytest.mark.smoke_run_of(EDGE)
class TestEdgeOfStability:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge()[0] == "holds"

    @pytest.mark.parametrize("factor", [0.8, 1.2])
    def test_a_sharpness_20_percent_off(self, claim, factor):
        sharpness = claim.main.result.sharpness
        outcome, red = claim.judge(sharpness=factor * sharpness)
        assert outcome != "holds"
        assert any("settled" in name or "edge reached" in name for name in red)

    def test_a_loss_that_never_rises(self, claim):
        rises = claim.main.result.rises
        outcome, red = claim.judge(rises=np.zeros_like(rises))
        assert outcome == "fails"
        assert red == {"share of settled steps on which the loss rises"}

    def test_a_flow_that_stops_at_the_edge(self, claim):
        config = claim.main.config
        flow = claim.main.result.flow_sharpness
        stopped = np.minimum(flow, 2 / max(config.learning_rates))
        assert claim.judge(flow_sharpness=stopped)[0] == "fails"

    def test_a_divergence_is_void_and_names_the_step(self, claim):
        loss = claim.main.result.train_loss.copy()
        loss[0, 0, 7:] = np.nan
        outcome, _ = claim.judge(train_loss=loss)
        assert outcome == "void"
        part = claim.main
        found = claim.experiment.check(part.config, part.result._replace(train_loss=loss))
        assert found[0].measured == part.result.step[6]

    def test_an_unresolved_sharpness_is_void(self, claim):
        result = claim.main.result
        assert claim.judge(residual=0.1 * result.sharpness)[0] == "void"


@pytest.mark.smoke_run_of(WIDE)
class TestWideNetwork:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge()[0] == "holds"

    def test_a_kernel_with_its_training_set_shuffled(self, claim):
        shuffled = claim.main.result.shuffled
        outcome, red = claim.judge(deviation=shuffled)
        assert outcome == "fails"
        assert "deviation from the linearisation: exponent in n" in red

    def test_only_the_proven_rate(self, claim):
        part = claim.main
        factor = np.sqrt(np.asarray(part.config.widths))
        change = part.result.kernel_change * factor
        outcome, red = claim.judge(kernel_change=change)
        assert outcome == "fails"
        assert "change of the kernel: exponent in n" in red

    def test_features_that_learn(self, claim):
        result = claim.main.result
        swapped = result.kernel_change[:, [2, 1, 0]]
        assert claim.judge(kernel_change=swapped)[0] == "fails"

    def test_a_law_with_the_wrong_spread_or_mean(self, claim):
        result = claim.main.result
        assert claim.judge(infinite_covariance=4 * result.infinite_covariance)[0] == "fails"
        assert claim.judge(infinite_mean=-result.infinite_mean)[0] == "fails"

    def test_a_network_that_is_not_fitted_is_void(self, claim):
        result = claim.main.result
        assert claim.judge(train_loss=10 + result.train_loss)[0] == "void"
