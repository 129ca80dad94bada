"""The claims on the table of addition turn red where a formula or a run is tampered with."""

import numpy as np
import pytest

from experiments import catalogue

MAXIMA = "theory_checks/grokking/li2_energy_fourier_maxima"
SAMPLING = "theory_checks/grokking/li2_sampling_fourier_vs_spike"
NETWORK = "theory_checks/grokking/modular_addition_analytic_network"
GRADIENT = "theory_checks/grokking/li2_gradient_is_energy_ascent"
pytestmark = [pytest.mark.claims, pytest.mark.timeout(900)]


def parts(claim):
    return claim.main.prediction, claim.main.result


@pytest.mark.smoke_run_of(MAXIMA)
class TestMaxima:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_starts_that_all_end_at_one_frequency(self, claim):
        """As predicted, but with no frequency left to the others."""
        prediction, result = parts(claim)
        one = np.ones_like(result.winner)
        outcome, red = claim.judge(
            role="claim", winner=one, prediction=prediction._replace(winner=one)
        )
        assert outcome == "fails"
        assert red == {"chi-squared of the frequencies' counts, last modulus"}

    def test_the_frequency_of_most_power_wins(self, claim):
        """Instead of the one whose logarithmic mean is largest."""
        prediction, result = parts(claim)
        strongest = 1 + result.share[:, 0].argmax(axis=-1)[:, None]
        outcome, red = claim.judge(role="claim", prediction=prediction._replace(winner=strongest))
        assert outcome == "fails"
        assert red == {"starts that end at another frequency than predicted"}

    def test_an_ascent_two_percent_too_fast(self, claim):
        """The end is the same: only the way there tells."""
        _, result = parts(claim)
        config = claim.main.config
        at = np.linspace(0, config.end_time, config.num_times)
        late = lambda curve: np.interp(at * 1.02, at, curve)
        energy = np.apply_along_axis(late, 2, result.energy)
        outcome, red = claim.judge(role="claim", energy=energy)
        assert outcome == "fails"
        assert red == {"largest error of E / (M/4) along the way"}

    def test_one_start_that_diverged_voids(self, claim):
        energy = parts(claim)[1].energy.copy()
        energy[0, 0, 40:, 0] = np.nan
        assert claim.judge(energy=energy)[0] == "void"


@pytest.mark.smoke_run_of(SAMPLING)
class TestSampling:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_crossings_at_their_leading_order(self, claim):
        prediction, _ = parts(claim)
        crossing = np.broadcast_to([1 / 2, 2 / 3], prediction.crossing.shape)
        outcome, red = claim.judge(role="claim", prediction=prediction._replace(crossing=crossing))
        assert outcome == "fails"
        assert red == {
            "largest error of a crossing, any modulus",
            "largest error of a crossing, last modulus",
        }

    def test_energies_at_their_leading_order(self, claim):
        """Off by O(1/M), below the noise of one sample."""
        prediction, _ = parts(claim)
        config = claim.main.config
        p = np.array(config.shares)
        leading = np.stack([p**2, p * (1 - p), 2 * p * (1 - p)]) / 4
        energy = leading * np.array(config.moduli)[:, None, None]
        energy[..., -1] = prediction.energy[..., -1]
        outcome, red = claim.judge(role="claim", prediction=prediction._replace(energy=energy))
        assert outcome == "fails"
        assert red == {"largest error of a mean energy in standard errors"}

    def test_pair_and_row_exchanged(self, claim):
        energy = parts(claim)[1].energy[:, :, :, [0, 2, 1]]
        outcome, red = claim.judge(role="claim", energy=energy)
        assert outcome == "fails"
        assert "largest error of a crossing, last modulus" in red


@pytest.mark.smoke_run_of(NETWORK)
class TestNetwork:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_logits_taken_as_gaussian(self, claim):
        """Two moments alone, both of them right."""
        prediction, _ = parts(claim)
        outcome, red = claim.judge(
            role="claim", prediction=prediction._replace(accuracy=prediction.gaussian)
        )
        assert outcome == "fails"
        assert red == {"largest accuracy less prediction"}

    def test_a_mean_logit_that_leaks_into_one_wrong_answer(self, claim):
        wrong = parts(claim)[1].wrong.copy()
        wrong[..., 1] += 1e-6
        outcome, red = claim.judge(role="claim", wrong=wrong)
        assert outcome == "fails"
        assert red == {"largest relative error of a mean wrong logit"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ridges": (0.1, 10.0)}, "1 among them"),
        ({"ridges": (1.0, 0.1)}, "rising"),
        ({"widths": (256,)}, "two or more"),
        ({"widths": (1024, 256)}, "two or more"),
    ],
)
def test_widths_and_ridges_that_give_no_exponent_are_refused(wrong, message):
    (entry,) = catalogue.find([GRADIENT])
    with pytest.raises(ValueError, match=message):
        catalogue.load(entry).config(**wrong)


@pytest.mark.smoke_run_of(GRADIENT)
class TestGradient:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_first_order_holds_on_a_shuffled_table_where_the_limit_of_width_does_not(self, claim):
        part = claim.run.parts["results at random places"]
        found = claim.experiment.check(part.config, part.prediction, part.result)
        passed = {check.name: check.passed for check in found}
        assert passed["largest ridge: angle over first order, less one, lowest"]
        assert passed["largest ridge: angle over first order, less one, highest"]
        assert not passed["exponent of the angle in the width at η = κ"]

    def test_half_of_the_first_order(self, claim):
        """As if only one of the two inverses were expanded."""
        prediction, _ = parts(claim)
        outcome, red = claim.judge(
            role="claim", prediction=prediction._replace(turn=prediction.turn / 2)
        )
        assert outcome == "fails"
        assert red == {"largest ridge: angle over first order, less one, highest"}

    def test_an_angle_five_percent_too_small(self, claim):
        outcome, red = claim.judge(role="claim", angle=0.95 * parts(claim)[1].angle)
        assert outcome == "fails"
        assert red == {"largest ridge: angle over first order, less one, lowest"}

    def test_an_angle_that_falls_as_the_width(self, claim):
        _, result = parts(claim)
        angle = result.angle.copy()
        angle[:, -1, :-1] /= 2
        outcome, red = claim.judge(role="claim", angle=angle)
        assert outcome == "fails"
        assert red == {"exponent of the angle in the width at η = κ"}
