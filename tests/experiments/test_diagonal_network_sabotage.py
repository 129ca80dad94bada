"""Diagonal networks, factors and SGD that do something else must turn their claims red."""

import numpy as np
import pytest

STABILITY = "theory_checks/curvature/sgd_trace_stability_threshold"
TRACES = "experiments/curvature/sgd_vs_gd_dln_trace"
PRODUCTS = "theory_checks/implicit_bias/gr_dln_conserved_product"
FLOODING = "theory_checks/implicit_bias/flooding_is_fd_gr"
FACTORS = "theory_checks/implicit_bias/sgd_noise_balances_factors"
pytestmark = [pytest.mark.claims, pytest.mark.timeout(900)]


@pytest.mark.smoke_run_of(STABILITY)
class TestStability:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    @pytest.mark.parametrize("factor", [1 - 1e-6, 1 + 1e-6])
    def test_a_threshold_a_millionth_off(self, claim, factor):
        _, red = claim.judge(critical=factor * claim.main.result.critical)
        assert {"largest relative error of the critical learning rate",
                "one length: critical η Tr H"} <= red  # fmt: skip

    def test_batches_that_do_not_matter(self, claim):
        critical = claim.main.result.critical
        _, red = claim.judge(critical=np.repeat(critical[..., :1], 3, axis=-1))
        assert "critical rate of a batch over that of the next smaller, least" in red

    def test_mean_squares_of_another_batch(self, claim):
        _, red = claim.judge(mean_square=claim.main.result.mean_square[..., [1, 0, 2]])
        assert red == {"largest relative error of the mean square over all orders"}

    def test_one_path_that_turns(self, claim):
        slope = claim.main.result.slope.copy()
        slope[0, 0, 0, 0] *= -1
        slope[0, 0, -1, 0] *= -1
        slope[0, 0, 3, 0] = 1e-9
        assert claim.judge(slope=slope)[1] == {
            "one length, η Tr H < 2: growth of log |d| a step, largest path",
            "one length, η Tr H > 2: growth of log |d| a step, smallest path",
            "one length, η Tr H = 2: largest change of log |d|",
        }

    def test_methods_that_change_places(self, claim):
        _, red = claim.judge(between=claim.main.result.between[:, ::-1])
        assert len([name for name in red if name.startswith("between the thresholds")]) == 2


@pytest.mark.smoke_run_of(TRACES)
class TestTraces:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_methods_that_change_places(self, claim):
        result = claim.main.result
        swapped = {name: getattr(result, name)[..., ::-1] for name in result._fields}
        outcome, red = claim.judge(**swapped)
        assert outcome == "fails"
        assert {"SGD: largest η Tr H of a minimum",
                "gradient descent: smallest η Tr H of a minimum, large rates",
                "largest rate: |β|_1 of gradient descent less that of SGD"} <= red  # fmt: skip

    def test_sgd_that_stays_at_the_minima_of_descent(self, claim):
        result = claim.main.result
        moved = result.moved_trace.copy()
        moved[..., 0] = result.trace[..., 1]
        assert claim.judge(moved_trace=moved)[1] == {
            "SGD from minima of gradient descent: largest η Tr H, large rates"
        }

    def test_descent_that_leaves_the_minima_of_sgd(self, claim):
        moved = claim.main.result.moved_trace.copy()
        moved[0, 0, 1] *= 1.05
        assert claim.judge(moved_trace=moved)[1] == {
            "gradient descent from minima of SGD: Tr H over what it was"
        }

    def test_a_rate_that_is_not_small(self, claim):
        trace = claim.main.result.trace.copy()
        trace[:, 0, 0] *= 0.8
        _, red = claim.judge(trace=trace, estimate=trace)
        assert "smallest rate: Tr H of SGD over that of gradient descent" in red

    def test_an_unstable_descent(self, claim):
        _, red = claim.judge(sharpness=5 * claim.main.result.sharpness)
        assert red == {"gradient descent: largest η λ_max"}

    def test_runs_that_do_not_converge_are_void(self, claim):
        assert claim.judge(loss=claim.main.result.loss + 1)[0] == "void"


@pytest.mark.smoke_run_of(PRODUCTS)
class TestProducts:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_another_exponent(self, claim):
        """8γ is the exponent: 7γ shows in the law, whatever the step."""
        result = claim.main.result
        start = 2 * np.log(claim.main.config.settings()[:, 0])[:, None, None]
        _, red = claim.judge(law=start + 7 / 8 * (result.law - start))
        assert "error of the law -8γ ∫ g g' dt at half of η over that at η, farthest" in red

    def test_a_flow_of_another_strength(self, claim):
        start = 2 * np.log(claim.main.config.settings()[:, 0])[:, None]
        flow = claim.main.prediction.log_product
        _, red = claim.judge(prediction={"log_product": start + 0.9 * (flow - start)})
        assert red == {
            "largest error of log w+ w- against the flow over its change, extrapolated to η = 0"
        }

    def test_an_ascent_that_does_not_matter(self, claim):
        result = claim.main.result
        product = result.log_product.copy()
        product[:, -1] = product[:, -2]
        _, red = claim.judge(log_product=product)
        assert "mean change of log w+ w- from one ε to the next, largest" in red

    def test_products_off_by_a_billionth(self, claim):
        _, red = claim.judge(stepwise=claim.main.result.stepwise + 1e-9)
        assert red == {"largest error of log w+ w- against the product over steps"}

    def test_ratios_outside_the_row_space(self, claim):
        outside = claim.main.result.outside + 0.05
        _, red = claim.judge(outside=outside)
        assert red == {"share of log w+/w- outside the row space, extrapolated"}

    def test_a_scale_that_shrinks_without_penalty(self, claim):
        product = claim.main.result.log_product.copy()
        product[:, 0] -= 0.01
        _, red = claim.judge(log_product=product)
        assert "γ = 0: largest change of log w+ w-" in red


@pytest.mark.smoke_run_of(FLOODING)
class TestFlooding:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_a_pair_that_is_two_descents(self, claim):
        result = claim.main.result
        _, red = claim.judge(identity=result.descents)
        assert red == {"ascent and descent: largest relative error against η² of the quotient"}

    def test_an_error_of_second_order(self, claim):
        rates = np.array(claim.main.config.learning_rates)
        _, red = claim.judge(relative=claim.main.result.relative * rates)
        assert {"exponent of that distance in η",
                "distance from -η² H ∇L over the predicted, smallest rate"} <= red  # fmt: skip

    def test_flooding_at_half_the_speed(self, claim):
        """As if the drift were -η² H ∇L / 4."""
        part = claim.main
        times = part.config.times()
        slow = np.array([np.interp(times / 2, times, row) for row in part.prediction.square])
        _, red = claim.judge(square=np.repeat(slow[:, None], part.result.square.shape[1], axis=1))
        assert "largest relative error of |∇L|² along flooding at the smallest rate" in red

    def test_gradients_that_do_not_fall(self, claim):
        square = claim.main.result.square
        _, red = claim.judge(square=np.repeat(square[..., :1], square.shape[-1], axis=-1))
        assert "|∇L|² at the end of flooding over that at the start, mean of seeds" in red

    def test_a_loss_that_leaves_its_level(self, claim):
        loss = claim.main.result.loss.copy()
        loss[0, -1, -1] /= 2
        assert claim.judge(loss=loss)[1] == {
            "largest distance of the loss from its level over η |∇L|²"
        }


@pytest.mark.smoke_run_of(FACTORS)
class TestFactors:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_without_the_fluctuation_of_the_logit(self, claim):
        """(1 - η² p (1 - p))^t alone decays too slowly, and that is seen."""
        config = claim.main.config
        variance = config.probability * (1 - config.probability)
        times = config.times(config.num_steps)
        bare = (1 - np.array(config.rates)[:, None] ** 2 * variance) ** times
        _, red = claim.judge(prediction={"balance": bare})
        assert red == {
            "one logit: largest error of log E[u² - v²] against the predicted, over the fall"
        }

    def test_a_drift_at_half_the_speed(self, claim):
        times = np.arange(claim.main.config.num_times + 1)
        imbalance = claim.main.prediction.imbalance
        slow = np.array([np.interp(times / 2, times, row) for row in imbalance])
        _, red = claim.judge(prediction={"imbalance": slow})
        assert red == {
            "eight tokens: error of |A|² - |b|² over its fall and first η Tr H, mean of seeds"
        }

    @pytest.mark.parametrize(
        ("field", "name"),
        [("balance_error", "one logit: largest relative error of u² - v² against the product"),
         ("imbalance_error", "eight tokens: largest relative error of A^T A - b b^T"),
         ("still", "no noise: largest change of u² - v², u² + v² and the trace")],
    )  # fmt: skip
    def test_identities_off_by_a_billionth(self, claim, field, name):
        assert claim.judge(**{field: getattr(claim.main.result, field) + 1e-9})[1] == {name}

    def test_sampled_noise_that_flattens_nothing(self, claim):
        result = claim.main.result
        flatness, trace = result.flatness.copy(), result.trace.copy()
        flatness[:, 0], trace[:] = 1, 1
        assert {
            "one logit: u² + v² at the end over its start, smaller rate",
            "eight tokens: trace at the end over its start, mean of seeds",
        } <= claim.judge(flatness=flatness, trace=trace)[1]

    def test_isotropic_noise_that_flattens(self, claim):
        flatness = claim.main.result.flatness.copy()
        flatness[:, 2] = flatness[:, 0]
        assert claim.judge(flatness=flatness)[1] == {
            "isotropic noise: u² + v² at the end over its start, mean of seeds"
        }

    def test_a_loss_that_rises(self, claim):
        result = claim.main.result
        _, red = claim.judge(excess=2 * result.excess, vector_excess=3 * result.vector_excess)
        assert red == {
            "one logit: loss above the entropy over η Tr H / 4, last half",
            "eight tokens: loss above the entropy over η Tr H / 4, last half",
        }
