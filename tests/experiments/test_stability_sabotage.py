"""Orbits, chatter, opposing groups and warm-up that do something else turn their claims red."""

import dataclasses

import numpy as np
import pytest

ORBIT = "theory_checks/curvature/nonsmooth_lp_period2_sharpness"
LASSO = "theory_checks/implicit_bias/subgradient_lasso_l1_paradox"
SHARPENING = "theory_checks/curvature/opposing_signals_sharpening"
OSCILLATION = "experiments/curvature/opposing_signals_gd_oscillation"
WARMUP = "experiments/curvature/warmup_extends_max_lr"
pytestmark = [pytest.mark.claims, pytest.mark.timeout(900)]


def copied(claim, name):
    return getattr(claim.main.result, name).copy()


@pytest.mark.smoke_run_of(ORBIT)
class TestOrbit:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_a_sharpness_at_the_edge(self, claim):
        """As the picture of the edge of stability has it."""
        sharpness = np.full_like(claim.main.result.sharpness, 2.0)
        assert claim.judge(sharpness=sharpness)[1] == {"largest error of η f'' against 2(p - 1)"}

    def test_an_orbit_that_stays_on_one_side(self, claim):
        outcome, red = claim.judge(iterate=np.abs(claim.main.result.iterate))
        assert outcome == "fails"
        assert red == {"largest |x' / x + 1| of the last step"}

    def test_a_slower_approach(self, claim):
        """Every point twice."""
        slowed = np.repeat(claim.main.result.iterate, 2, axis=-1)
        assert (
            "largest error of the factor of a deviation against 2p - 3"
            in claim.judge(iterate=slowed)[1]
        )

    def test_another_exponent(self, claim):
        exponents = tuple(p + 1e-6 for p in claim.main.config.exponents)
        config = dataclasses.replace(claim.main.config, exponents=exponents)
        outcome, red = claim.judge(prediction=claim.experiment.predict(config))
        assert outcome == "fails"
        assert "largest error of η f'' against 2(p - 1)" in red

    def test_a_mean_curvature_off_the_edge(self, claim):
        mean = 0.999 * claim.main.result.mean_curvature
        assert claim.judge(mean_curvature=mean)[1] == {
            "largest error of η times the mean curvature of a step against 2"
        }

    def test_roundings_that_change_places(self, claim):
        result = claim.main.result
        outcome, red = claim.judge(
            ladder_radius=result.ladder_radius[:, ::-1],
            ladder_sharpness=result.ladder_sharpness[:, ::-1],
        )
        assert outcome == "fails"
        assert {
            "largest error of |x| / x* with a rounded kink",
            "largest error of η f'' on orbits with a rounded kink",
            "largest |x| / x* with a stable minimum",
            "largest error of η f'' at a stable minimum",
        } <= red


@pytest.mark.smoke_run_of(LASSO)
class TestLasso:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_methods_that_change_places(self, claim):
        result = claim.main.result
        outcome, red = claim.judge(norm=result.norm[:, ::-1], zeros=result.zeros[:, ::-1])
        assert outcome == "fails"
        assert {
            "time average of |w|_1 / its law",
            "slope of |w|_1 over λ / its law",
            "|w|_1 under a penalty of 32 / under the smallest",
            "share of weights that are zero, subgradient",
            "|w|_1 of proximal descent where the solution is zero",
            "largest rise of |w|_1 with the penalty, proximal descent",
        } <= red

    def test_a_chatter_of_half_the_width(self, claim):
        norm = copied(claim, "norm")
        norm[:, 0] /= 2
        outcome, red = claim.judge(norm=norm)
        assert outcome == "fails"
        assert "smallest |w|_1 / (d η λ / 2) from 4 |X^T y|_∞ on" in red

    def test_a_norm_beyond_that_of_two_cycles(self, claim):
        norm = copied(claim, "norm")
        norm[0, 0, 0, -2] *= 1.2
        assert claim.judge(norm=norm)[1] == {
            "largest |w|_1 / (d η λ / 2) / its bound, from 4 |X^T y|_∞ on"
        }

    def test_signs_of_another_draw(self, claim):
        signs = copied(claim, "cycle_signs")[:, :, ::-1]
        outcome, red = claim.judge(cycle_signs=signs)
        assert outcome == "fails"
        assert red == {"largest relative error of |w|_1 against that of its signs"}

    def test_a_weight_that_keeps_its_sign(self, claim):
        flips = copied(claim, "cycle_flips")
        flips[0, 0] = 0.99
        assert claim.judge(cycle_flips=flips)[1] == {
            "share of signs that a step changes, largest penalty"
        }


@pytest.mark.smoke_run_of(SHARPENING)
class TestSharpening:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_a_curve_a_little_later(self, claim):
        """The closed form of a start that is a hundred-thousandth smaller."""
        law = claim.main.prediction
        later = {"curvature": 0.99999 * law.curvature, "sharpness": 0.99999 * law.sharpness}
        assert claim.judge(prediction=later)[1] == {
            "largest relative error of the curvature along b_o",
            "largest relative error of the sharpness",
        }

    def test_an_end_at_the_signals_block(self, claim):
        """2|β| instead of α |β|."""
        sharpness = claim.main.result.sharpness / 5
        outcome, red = claim.judge(sharpness=sharpness)
        assert outcome == "fails"
        assert {
            "largest sharpness in the end over its closed form",
            "slope of the end over |β| / α",
            "largest relative error of the sharpness at a start with b_o",
            "largest relative error of the end after a fall",
        } <= red

    def test_no_fall(self, claim):
        sharpness, along = copied(claim, "sharpness"), copied(claim, "curvature")
        num = len(claim.main.config.signal_norms)
        sharpness[:, num:] = np.maximum.accumulate(sharpness[:, num:], axis=-1)
        along[:, num:] = np.maximum.accumulate(along[:, num:], axis=-1)
        outcome, red = claim.judge(sharpness=sharpness, curvature=along)
        assert outcome == "fails"
        assert {
            "lowest sharpness / that at the start",
            "lowest curvature along b_o / that at the start",
        } <= red

    def test_a_fall_through_the_floor(self, claim):
        along = copied(claim, "curvature")
        along[0, -1] /= 5
        assert claim.judge(curvature=along)[1] == {
            "lowest curvature along b_o / (α (c_0² - b_o0²))"
        }

    def test_a_fall_without_a_rise(self, claim):
        sharpness = copied(claim, "sharpness")
        num = len(claim.main.config.signal_norms)
        sharpness[:, num:] = np.minimum.accumulate(sharpness[:, num:], axis=-1)
        red = claim.judge(sharpness=sharpness)[1]
        assert "sharpness at the end / at the start, after a fall" in red

    def test_a_signal_learned_before_the_fall(self, claim):
        fitted = np.ones_like(claim.main.result.fitted)
        assert claim.judge(fitted=fitted)[1] == {
            "share of the signal learned at the lowest sharpness"
        }

    def test_what_is_not_conserved(self, claim):
        drift = claim.main.result.drift + 1e-4
        assert claim.judge(drift=drift)[1] == {"largest change of Q"}


@pytest.mark.smoke_run_of(OSCILLATION)
class TestOscillation:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_a_slope_that_keeps_its_sign(self, claim):
        outcome, red = claim.judge(slope=np.abs(claim.main.result.slope))
        assert outcome == "fails"
        assert "share of steps with η × curvature along the feature above 2 that turn u" in red

    def test_groups_that_move_together(self, claim):
        together = np.repeat(claim.main.result.group_losses[..., :1], 2, axis=-1)
        assert claim.judge(group_losses=together)[1] == {
            "share of these steps in antiphase",
            "steps in antiphase other than |u + u'| < 2κ says",
        }

    def test_no_self_stabilisation(self, claim):
        """The sharpness stays where it was highest."""
        sharpness = np.maximum.accumulate(claim.main.result.sharpness, axis=-1)
        assert "η × sharpness in the end" in claim.judge(sharpness=sharpness)[1]

    def test_a_threshold_that_is_never_crossed(self, claim):
        sharpness = 0.5 * claim.main.result.sharpness
        outcome, red = claim.judge(sharpness=sharpness)
        assert outcome == "void"
        assert "highest η × sharpness" in red

    def test_no_spike(self, claim):
        loss = np.minimum.accumulate(claim.main.result.loss, axis=-1)
        assert claim.judge(loss=loss)[1] == {"peak of the loss / at the crossing"}

    def test_a_spike_below_the_threshold(self, claim):
        loss, sharpness = copied(claim, "loss"), copied(claim, "sharpness")
        loss[:, :, -1], sharpness[:, :, -1] = loss[:, :, 0], sharpness[:, :, 0]
        assert claim.judge(loss=loss, sharpness=sharpness)[1] == {
            "highest η × sharpness, small step",
            "largest rise of the loss, small step",
        }

    def test_a_signal_left_unlearned(self, claim):
        misfit = np.full_like(claim.main.result.misfit, 0.1)
        assert claim.judge(misfit=misfit)[1] == {"misfit of the signal in the end"}


@pytest.mark.smoke_run_of(WARMUP)
class TestWarmup:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_kinds_that_change_places(self, claim):
        error = claim.main.result.error[:, ::-1]
        outcome, red = claim.judge(error=error)
        assert outcome == "fails"
        assert {
            "share that trains at constant rates from 1.15 of 4/λ_0",
            "share that trains with warm-up at rates to 0.9/|y|",
        } <= red

    def test_a_short_warm_up_that_suffices(self, claim):
        error, loss = copied(claim, "error"), copied(claim, "loss")
        error[:, 1], loss[:, 2] = error[:, 2], loss[:, 3]
        assert claim.judge(error=error, loss=loss)[1] == {
            "share that trains with a short warm-up beyond 4/λ_0",
            "share of networks that train at the high rate with a short warm-up",
        }

    def test_what_diverges_at_small_rates(self, claim):
        error = copied(claim, "error")
        error[:, 0] = np.nan
        assert claim.judge(error=error)[1] == {
            "share that trains at constant rates to 0.75 of 4/λ_0"
        }

    def test_a_solution_above_every_stable_rate(self, claim):
        error = copied(claim, "error")
        error[:, 2] = 0
        assert claim.judge(error=error)[1] == {"share that trains with warm-up above 1.05/|y|"}

    def test_networks_that_warm_up_does_not_help(self, claim):
        loss = copied(claim, "loss")
        loss[:, 3] = loss[:, 1]
        assert claim.judge(loss=loss)[1] == {
            "share of networks that train at the high rate with warm-up"
        }

    def test_networks_that_need_no_warm_up(self, claim):
        loss = copied(claim, "loss")
        loss[:, 1] = loss[:, 3]
        assert claim.judge(loss=loss)[1] == {
            "share of networks that train at the high constant rate"
        }

    def test_a_curvature_that_is_not_lowered(self, claim):
        """The ramp of a network whose sharpness stays that of the start."""
        result, config = claim.main.result, claim.main.config
        rate = result.network_edge / result.sharpness
        sharpness = copied(claim, "sharpness")
        sharpness[:, 3] = sharpness[:, 3, :1]
        edge = copied(claim, "edge")
        edge[:, 2] = edge[:, 2] * np.linspace(1, 3, edge.shape[-1])
        outcome, red = claim.judge(sharpness=sharpness, network_edge=rate * sharpness, edge=edge)
        assert outcome == "fails"
        assert config.high_rate > 1
        assert {
            "η λ in the end, warm-up beyond 4/λ_0",
            "highest η λ after the first steps, warm-up",
            "median of η × sharpness at the edge of the ramp",
            "sharpness after the ramp / at the start",
        } <= red

    def test_a_network_that_trains_at_no_rate(self, claim):
        loss = copied(claim, "loss")
        loss[:, 0] = np.nan
        outcome, red = claim.judge(loss=loss)
        assert outcome == "void"
        assert red == {"networks that train at the low constant rate"}
