"""Newton stacks and GD++ that do something else must turn their claims red."""

import dataclasses

import numpy as np
import pytest

NEWTON = "theory_checks/in_context/newton_icl_in_2k_plus_3_layers"
WHITENING = "theory_checks/in_context/gdpp_is_newton_schulz_log_kappa"
pytestmark = [pytest.mark.claims, pytest.mark.timeout(900)]


@pytest.mark.smoke_run_of(NEWTON)
class TestNewton:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    @pytest.mark.parametrize(
        ("field", "name"),
        [("answer", "largest relative error of the answers of 2k + 3 layers"),
         ("short_answer", "largest relative error of the answers of k + 1 layers"),
         ("descent_answer", "largest relative error of the answers of 2^k layers of descent")],
    )  # fmt: skip
    def test_an_iteration_more_than_there_are(self, claim, field, name):
        shifted = np.roll(getattr(claim.main.result, field), 1, axis=-1)
        outcome, red = claim.judge(**{field: shifted})
        assert outcome == "fails"
        assert name in red

    def test_another_start(self, claim):
        """A closed form of a start that is a ten-thousandth larger."""
        config = dataclasses.replace(claim.main.config, relative_start=1.0001)
        outcome, red = claim.judge(prediction=claim.experiment.predict(config))
        assert outcome == "fails"
        assert "largest error of M S in the memory tokens" in red

    def test_one_count_that_is_one_off(self, claim):
        count = claim.main.result.count.copy()
        count[2, 1, 0] += 1
        outcome, red = claim.judge(count=count)
        assert outcome == "fails"
        assert red == {"counts of iterations and steps unlike those predicted"}

    def test_starts_that_change_places(self, claim):
        count = claim.main.result.count[..., [1, 0, 2]]
        outcome, red = claim.judge(count=count)
        assert outcome == "fails"
        assert {"iterations for each doubling of κ, from a I",
                "iterations for each doubling of κ, from a S"} <= red  # fmt: skip

    def test_a_descent_that_is_faster_than_kappa(self, claim):
        count = claim.main.result.count.copy()
        count[..., 2] = np.sqrt(count[..., 2])
        assert "exponent of the steps of descent in κ" in claim.judge(count=count)[1]


@pytest.mark.smoke_run_of(WHITENING)
class TestWhitening:
    def test_left_alone_it_holds(self, claim):
        assert claim.judge() == ("holds", set())

    def test_schemes_that_change_places(self, claim):
        inputs, left = (leaf[:, :, ::-1] for leaf in claim.main.result[:2])
        outcome, red = claim.judge(inputs=inputs, left=left)
        assert outcome == "fails"
        assert {"fall of κ in an early layer over 9/4, Schulz",
                "layers for each decade of κ, best γ",
                "largest error of X / |X| against Newton-Schulz"} <= red  # fmt: skip

    def test_every_other_layer(self, claim):
        """As if a layer evened out twice as much."""
        inputs = claim.main.result.inputs
        outcome, red = claim.judge(inputs=np.repeat(inputs[:, :, :, ::2], 2, axis=3))
        assert outcome == "fails"
        assert "largest relative error of κ after a layer" in red

    def test_a_layer_that_turns_the_inputs(self, claim):
        """κ is as it should be, and the iterate is another."""
        inputs = claim.main.result.inputs.copy()
        inputs[..., 5, :, :] = inputs[..., 5, :, ::-1]
        assert claim.judge(inputs=inputs)[1] == {"largest error of X / |X| against Newton-Schulz"}

    def test_a_last_step_of_another_rate(self, claim):
        left = 1 - 0.8 * (1 - claim.main.result.left)
        outcome, red = claim.judge(left=left)
        assert outcome == "fails"
        assert "numbers of layers unlike those predicted" in red

    def test_a_spectrum_wider_than_its_interval(self, claim):
        bound = 0.9 * claim.main.prediction.bound
        assert claim.judge(prediction={"bound": bound})[1] == {
            "κ over that of its whole interval, largest"
        }

    def test_a_plain_descent_that_needs_fewer_steps(self, claim):
        count = np.sqrt(claim.main.result.descent_count)
        outcome, red = claim.judge(descent_count=count)
        assert outcome == "fails"
        assert "exponent of the steps of plain descent in κ" in red
