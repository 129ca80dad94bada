"""What no control of the two-moments claim breaks is broken here."""

import pytest

NAME = "theory_checks/grokking/grokking_sufficient_statistics"
SAMPLED = "largest error of the test loss, mean over seeds, in standard errors"
pytestmark = [pytest.mark.claims, pytest.mark.smoke_run_of(NAME), pytest.mark.timeout(900)]


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


@pytest.mark.parametrize("factor", [0.87, 1.15])
def test_the_closed_form_alone_is_off(claim, factor):
    test_loss = claim.main.prediction.test_loss * factor
    verdict, red = claim.judge(prediction={"test_loss": test_loss})
    assert (verdict, red) == ("fails", {SAMPLED})


def test_the_recursion_of_another_seed(claim):
    prediction = claim.main.prediction._asdict()
    moments = {name: prediction[name][::-1] for name in ("mean", "second", "train_loss")}
    verdict, red = claim.judge(prediction=moments)
    assert verdict == "fails"
    assert {
        "largest error of the mean weight over amplified rounding",
        "largest error of the second moment over amplified rounding",
        "largest error of the training loss over amplified rounding",
    } <= red


def test_one_entry_of_the_moment_at_one_step(claim):
    second = claim.main.result.second.copy()
    second[1, 0, 5, 3, 2] += 1e-8
    assert claim.judge(second=second) == (
        "fails",
        {"largest error of the second moment over amplified rounding"},
    )


def test_a_network_that_begins_aligned(claim):
    alignment = claim.main.result.alignment[..., ::-1]
    verdict, red = claim.judge(alignment=alignment)
    assert verdict == "fails"
    assert "largest alignment with the teacher at the start" in red


def test_the_matrix_part_dropped(claim):
    """The control measured within the run: nothing was learnt beside the mean."""
    prediction = claim.main.prediction
    test_loss = prediction.linear_part + prediction.test_loss[..., :1]
    verdict, red = claim.judge(test_loss=test_loss, prediction={"test_loss": test_loss})
    assert verdict == "fails"
    assert "closed form without its matrix part / test loss at the end" in red


def test_too_few_test_inputs_are_void(claim):
    assert claim.judge(standard_error=claim.main.result.standard_error * 4)[0] == "void"
