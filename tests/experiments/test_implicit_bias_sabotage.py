"""Descents that prefer another solution, or take another time, must turn their claims red."""

import dataclasses

import numpy as np
import pytest

PERCEPTRON = "theory_checks/implicit_bias/lr_gd_is_batch_perceptron"
WORST_CASE = "theory_checks/implicit_bias/lr_gd_worst_case_linear_in_n"
SYMMETRIC = "theory_checks/implicit_bias/matrix_fact_symmetric_t2"
ASYMMETRIC = "theory_checks/implicit_bias/matrix_fact_asymmetric_alpha2"
ALIGNMENT = "theory_checks/implicit_bias/early_alignment_and_escape_time"
pytestmark = [pytest.mark.claims, pytest.mark.timeout(900)]


def changed(array, index, value):
    """Return a copy of `array` with `value` at `index`."""
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.smoke_run_of(PERCEPTRON)
class TestPerceptron:
    BOUND = "distance from the perceptron over its bound"
    LEADING = "distance from path and leading difference over its bound"

    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_a_step_late(self, claim):
        outcome, red = claim.judge(iterates=np.roll(claim.main.result.iterates, 1, axis=2))
        assert outcome == "fails"
        assert {self.BOUND, self.LEADING} <= red

    def test_step_sizes_that_change_places(self, claim):
        iterates = claim.main.result.iterates[:, [0, 1, 3, 2, *range(4, 9)]]
        outcome, red = claim.judge(iterates=iterates)
        assert outcome == "fails"
        assert {self.BOUND, self.LEADING} <= red

    def test_a_hundredth_more_than_the_leading_difference(self, claim):
        path = claim.main.prediction.path[:, None]
        outcome, red = claim.judge(iterates=path + 1.01 * (claim.main.result.iterates - path))
        assert outcome == "fails"
        assert self.LEADING in red

    def test_a_perceptron_whose_first_step_is_whole(self, claim):
        path = claim.main.prediction.path
        outcome, red = claim.judge(prediction={"path": path + path[:, 1:2]})
        assert outcome == "fails"
        assert {self.BOUND, "distance from the perceptron at the largest step size"} <= red

    def test_a_separation_one_step_later(self, claim):
        separated = claim.main.result.separated
        assert claim.judge(separated=changed(separated, (2, 6), separated[2, 6] + 1)) == (
            "fails", {"step sizes γ >= 12 / m that separate at another step"},
        )  # fmt: skip

    def test_a_bound_on_the_steps_that_is_far_too_small(self, claim):
        most = claim.main.prediction.most_steps
        red = claim.judge(prediction={"most_steps": 1e-5 * most})[1]
        assert red == {"steps of the perceptron over N R² / μ²"}

    def test_losses_that_change_places(self, claim):
        outcome, red = claim.judge(loss=claim.main.result.loss[:, ::-1])
        assert outcome == "fails"
        assert "small step: rises of the loss" in red
        falling = -np.sort(-claim.main.result.loss, axis=2)
        assert claim.judge(loss=falling)[1] == {"runs with γ >= 12 / m whose loss rises on the way"}

    def test_a_small_step_that_follows_the_perceptron(self, claim):
        iterates = claim.main.result.iterates
        red = claim.judge(iterates=changed(iterates, np.s_[:, -1], iterates[:, -2]))[1]
        assert red == {"small step: distance over the length of the path"}


@pytest.mark.smoke_run_of(WORST_CASE)
class TestWorstCase:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    @pytest.mark.parametrize(
        ("where", "more", "name"),
        [((0, 0, 1, 0), 1, "no jitter, γ = 1e4: steps unlike floor(0.3 N + 0.2) + 1"),
         ((0, 0, 2, 1), 1, "N = 1000: numbers unlike those in the paper's table 1"),
         ((3, 1, 1, 0), 1, "steps more than the bound for descent, largest"),
         ((3, 1, 1, 0), -1, "steps more than the perceptron's, least"),
         ((2, 1, 0, 2), 1, "steps of normalised descent with γ >= 10, largest")],
    )  # fmt: skip
    def test_one_count_that_is_one_off(self, claim, where, more, name):
        steps = claim.main.result.steps
        outcome, red = claim.judge(steps=changed(steps, where, steps[where] + more))
        assert outcome == "fails"
        assert name in red

    @pytest.mark.parametrize(
        ("factor", "name"),
        [(1.2, "γ times (steps of normalised descent - upper end), γ <= 1, largest"),
         (0.8, "γ times (steps of normalised descent - lower end), γ <= 1, least"),
         (5.0, "steps of normalised descent over their guarantee, largest")],
    )  # fmt: skip
    def test_normalised_descent_at_another_speed(self, claim, factor, name):
        steps = claim.main.result.steps.astype(float)
        steps[..., -1] *= factor
        assert name in claim.judge(steps=steps)[1]

    def test_descent_that_is_as_slow_as_the_root_of_n(self, claim):
        steps = claim.main.result.steps.astype(float)
        steps[..., 0] = np.sqrt(steps[..., 0])
        outcome, red = claim.judge(steps=steps)
        assert outcome == "fails"
        assert "exponent of descent's steps in N, γ = 1e4" in red


@pytest.mark.smoke_run_of(SYMMETRIC)
class TestSymmetric:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_an_excess_that_dies_a_ten_thousandth_slower(self, claim):
        squares = claim.main.result.squares * (1 + 1e-4)
        red = claim.judge(squares=squares)[1]
        assert red == {"relative error of the clocks' rate, K > r"}

    def test_another_learning_rate(self, claim):
        config = dataclasses.replace(claim.main.config, learning_rate=0.21)
        outcome, red = claim.judge(prediction=claim.experiment.predict(config))
        assert outcome == "fails"
        assert {"relative error of the clocks' rate, K > r",
                "loss over (K - r) / (4 η² T²), largest",
                "K = r: fall of the log loss over its rate"} <= red  # fmt: skip

    def test_a_loss_of_another_size(self, claim):
        loss = claim.main.result.loss
        larger = changed(loss, np.s_[:, 2], 1.05 * loss[:, 2])
        assert claim.judge(loss=larger)[1] == {"loss over (K - r) / (4 η² T²), largest"}
        smaller = changed(loss, np.s_[:, 2], 0.8 * loss[:, 2])
        assert claim.judge(loss=smaller)[1] == {"loss over (K - r) / (4 η² T²), least"}

    def test_another_power(self, claim):
        loss = claim.main.result.loss
        assert "power of T in the loss, K > r, highest" in claim.judge(loss=loss**0.8)[1]
        assert "power of T in the loss, K > r, highest" in claim.judge(loss=loss**1.1)[1]
        sensing = claim.main.result.sensing_loss
        for power in (0.7, 1.2):
            red = claim.judge(sensing_loss=sensing**power)[1]
            assert red == {"power of T in the loss, sensing"}

    def test_exact_rank_that_is_as_slow(self, claim):
        loss = claim.main.result.loss
        outcome, red = claim.judge(loss=changed(loss, np.s_[:, 0], loss[:, 1]))
        assert outcome == "fails"
        assert red == {"K = r: fall of the log loss over its rate",
                       "K = r: log10 of the last loss"}  # fmt: skip


@pytest.mark.smoke_run_of(ASYMMETRIC)
class TestAsymmetric:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_a_rate_that_is_an_eighth_off(self, claim):
        outcome, red = claim.judge(slowest=claim.main.result.slowest**1.125)
        assert outcome == "fails"
        assert {"rate over the smallest eigenvalue of F^T F in the end, - 1",
                "rate of the loss over that of its slowest part, least"} <= red  # fmt: skip

    def test_starts_that_change_places(self, claim):
        outcome, red = claim.judge(prediction={"rates": claim.main.prediction.rates[::-1]})
        assert outcome == "fails"
        assert {
            "relative error of the rate over α² ln(1/α), largest",
            "relative error of all free eigenvalues over α² ln(1/α), largest",
        } <= red

    def test_a_rate_that_goes_as_the_scale(self, claim):
        result, scales = claim.main.result, np.array(claim.main.config.scales)
        slowest = result.slowest ** (scales.max() / scales)[:, None]
        assert "exponent of the rate in α" in claim.judge(slowest=slowest)[1]

    def test_a_loss_that_falls_at_another_rate(self, claim):
        red = claim.judge(loss=claim.main.result.loss**1.5)[1]
        assert red == {"rate of the loss over that of its slowest part, largest"}

    def test_a_run_that_is_too_short(self, claim):
        outcome, red = claim.judge(prediction={"rates": 0.01 * claim.main.prediction.rates})
        assert outcome == "void"
        assert "e-folds in the run, least" in red


@pytest.mark.smoke_run_of(ALIGNMENT)
class TestAlignment:
    DELAY = "relative error of the delay of escape, largest"

    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_the_delay_of_the_flow(self, claim):
        """2 ln q / (η |x|), as if the step were small."""
        growth = np.log(1e3) / claim.main.prediction.delay  # of a step
        flow = np.log(1e3) / np.expm1(growth)
        assert claim.judge(prediction={"delay": flow}) == ("fails", {self.DELAY})

    def test_classes_that_change_places(self, claim):
        delay = claim.main.prediction.delay[..., ::-1]
        assert claim.judge(prediction={"delay": delay}) == ("fails", {self.DELAY})

    def test_an_alignment_that_feels_the_scale(self, claim):
        aligned = claim.main.result.aligned
        late = np.roll(aligned[:, 0], 3, axis=-1)
        late[..., :3] = 0
        red = claim.judge(aligned=changed(aligned, np.s_[:, 0], late))[1]
        assert red == {"steps between the last and the first alignment over ε"}

    def test_a_neuron_that_never_aligns(self, claim):
        aligned = np.minimum(claim.main.result.aligned, 0.95)
        outcome, red = claim.judge(aligned=aligned)
        assert outcome == "fails"
        assert {"share of neurons aligned, at best, least over ε",
                "alignment over the first escape, largest over ε"} <= red  # fmt: skip

    def test_weights_that_keep_what_they_started_with(self, claim):
        singular = claim.main.result.singular.copy()
        singular[:, :-1, 2] = 0.05 * singular[:, :-1, 0]
        red = claim.judge(singular=singular)[1]
        assert red == {"exponent of the third singular value in ε"}

    def test_weights_of_two_directions(self, claim):
        singular = claim.main.result.singular.copy()
        singular[..., 1] = 0.5 * singular[..., 0]
        assert "stable rank, largest over ε" in claim.judge(singular=singular)[1]

    @pytest.mark.parametrize(("power", "end"), [(0.5, "highest"), (1.5, "lowest")])
    def test_a_loss_of_another_power(self, claim, power, end):
        red = claim.judge(loss=claim.main.result.loss**power)[1]
        assert red == {f"late power of time in the loss, {end}"}

    def test_a_large_start_that_is_as_a_small_one(self, claim):
        result = claim.main.result
        same = {
            name: changed(array, np.s_[:, -1], array[:, 0])
            for name, array in result._asdict().items()
        }
        outcome, red = claim.judge(**same)
        assert outcome == "fails"
        assert red == {
            "ε = 0.3: first escape over alignment",
            "ε = 0.3: third singular value over the first",
        }
