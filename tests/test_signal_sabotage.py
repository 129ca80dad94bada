"""The claims on signals in random networks turn red where a formula or a run is tampered with."""

import numpy as np
import pytest

MOMENT = "theory_checks/signal/depth_to_width_relu_moment"
TANH = "theory_checks/signal/tanh_inverse_depth_kernel"
THREE_FIFTHS = "theory_checks/signal/relu_eoc_three_fifths"
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


@pytest.mark.smoke_run_of(TANH)
class TestTanh:
    MEAN = "mean G of finite networks from theory at C_W = 1, standard errors"
    LAST = "rate × l K_l in the last layer, every input"

    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    @pytest.mark.parametrize("scale", [0, 2])
    def test_the_kernel_off_criticality(self, claim, scale):
        kernel = claim.main.result.kernel
        wrong = np.stack([kernel[0], kernel[scale], kernel[2]])
        verdict, red = claim.judge(role="claim", kernel=wrong)
        assert verdict == "fails"
        assert {self.LAST, "coefficient of log l in 1/K_l / theory, every input"} <= red

    def test_the_rate_of_sine(self, claim):
        """1/l: the third derivative of tanh at zero is twice that of sine."""
        rate = claim.main.prediction.rate / 2
        assert self.LAST in claim.judge(role="claim", prediction={"rate": rate})[1]

    def test_no_logarithm(self, claim):
        """As if K -> K - 2K² were the whole map, whose logarithm has the coefficient -2."""
        name = "coefficient of log l in 1/K_l / theory, every input"
        wrong = np.array(-2.0)
        assert claim.judge(role="claim", prediction={"logarithm": wrong}) == ("fails", {name})

    def test_a_kernel_that_remembers_its_input(self, claim):
        kernel = claim.main.result.kernel.copy()
        kernel[1, 0] *= 0.998
        name = "largest K_l / smallest, over inputs, in the last layer"
        assert name in claim.judge(role="claim", kernel=kernel)[1]

    def test_networks_of_infinite_width(self, claim):
        """Their mean is the recursion's, which finite networks stay below."""
        kernel = claim.main.result.kernel[..., : claim.main.result.network.shape[-1]]
        verdict, red = claim.judge(role="claim", prediction={"network_mean": kernel})
        assert (verdict, red) == ("fails", {self.MEAN})

    def test_a_correction_of_the_other_sign(self, claim):
        mean = claim.main.prediction.network_mean
        kernel = claim.main.result.kernel[..., : mean.shape[-1]]
        verdict, red = claim.judge(role="claim", prediction={"network_mean": 2 * kernel - mean})
        assert (verdict, red) == ("fails", {self.MEAN})

    def test_networks_of_twice_the_width(self, claim):
        network = claim.main.result.network
        mean = network.mean(axis=(0, 1))
        verdict, red = claim.judge(role="claim", network=mean + (network - mean) / 2**0.5)
        assert verdict == "fails"
        assert "variance of G at C_W = 1 over networks / theory" in red


@pytest.mark.smoke_run_of(THREE_FIFTHS)
class TestThreeFifths:
    AMPLITUDE = "l² (1 - c) / 9π²/2 at the largest depth, every pair"
    LOCAL = "local exponent of the crossing in L / theory, deepest"
    FORWARD = "1 - c of random networks from the recursion, upper half, standard errors"
    BACKWARD = (
        "correlation of gradients of random networks from the recursion, upper half, "
        "standard errors"
    )

    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_the_exponent_of_smooth_activations(self, claim):
        wrong = {"crossing": np.array(2 / 3), "backward": np.array(2.0)}
        verdict, red = claim.judge(role="claim", prediction=wrong)
        assert verdict == "fails"
        assert {self.LOCAL, "exponent of kept gradients in l/L / theory, largest depth"} <= red

    def test_no_logarithm(self, claim):
        """As if θ' = θ - θ²/3π were the whole map, whose logarithm has the coefficient 1."""
        name = "coefficient of log l in 3π/θ / theory, every pair"
        wrong = {"logarithm": np.array(1.0)}
        assert claim.judge(role="claim", prediction=wrong) == ("fails", {name})

    def test_the_depths_of_real_networks(self, claim):
        """The crossing measured at 2^8 and 2^10 in place of the deepest two: no 3/5 there."""
        crossing = claim.main.result.crossing.copy()
        depths = 2.0 ** np.array(claim.main.config.log2_depths)
        crossing[-1] = crossing[-2] * (crossing[1] / crossing[0]) ** (
            np.log(depths[-1] / depths[-2]) / np.log(depths[1] / depths[0])
        )
        assert self.LOCAL in claim.judge(role="claim", crossing=crossing)[1]

    def test_a_defect_two_percent_off(self, claim):
        defect = 1.02 * claim.main.result.defect
        assert claim.judge(role="claim", defect=defect) == ("fails", {self.AMPLITUDE})

    def test_linear_networks(self, claim):
        """They keep correlations, forward and backward."""
        result = claim.main.result
        still = np.broadcast_to(result.network_defect[:, :, :1], result.network_defect.shape)
        kept = result.network_kept[:, :, :1] ** 0 * (1 + 0.01 * result.network_kept)
        verdict, red = claim.judge(role="claim", network_defect=still, network_kept=kept)
        assert (verdict, red) == ("fails", {self.FORWARD, self.BACKWARD})

    def test_layers_counted_from_one(self, claim):
        result = claim.main.result
        shift = lambda a: np.concatenate([a[:, :, 1:], a[:, :, -1:]], axis=2)
        verdict, red = claim.judge(
            role="claim",
            network_defect=shift(result.network_defect),
            network_kept=shift(result.network_kept),
        )
        assert (verdict, red) == ("fails", {self.FORWARD, self.BACKWARD})

    def test_tanh_in_the_class_of_relu(self, claim):
        crossing = claim.main.result.smooth_crossing
        depths = 2.0 ** np.array(claim.main.config.log2_smooth_depths)
        verdict, red = claim.judge(smooth_crossing=np.ones_like(crossing) * depths[:, None] ** 0.6)
        assert verdict == "fails"
        assert red == {"tanh: local exponent of the crossing in L, deepest"}
