"""Arms that change places, and a curriculum that carries nothing over, turn the claim red."""

import pytest

NAME = "experiments/grokking/sparse_modular_curriculum"
SOONER = "log-rank statistic, modulo 2 first against from scratch"
MEDIAN = "median steps from scratch over those after modulo 2"
SHARE = "share of seeds that are sooner after modulo 2"
FOUND = "attention on the right tokens after modulo 2, mean"
PERMUTED = "log-rank statistic, permuted labels first against from scratch"
OTHER = "log-rank statistic, other tokens first against from scratch"
pytestmark = [pytest.mark.claims, pytest.mark.smoke_run_of(NAME), pytest.mark.timeout(900)]


def rearranged(claim, order):
    """The result with the arms in another order; those that solved modulo 2 stay where they are."""
    result = claim.main.result
    fields = ("test_accuracy", "attention")
    return {name: getattr(result, name)[:, order] for name in fields}


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


def test_from_scratch_twice(claim):
    """A curriculum that changes nothing."""
    verdict, red = claim.judge(**rearranged(claim, [0, 0, 2, 3]))
    assert verdict == "fails"
    assert {SOONER, MEDIAN, SHARE, FOUND} <= red


@pytest.mark.parametrize("order", [[1, 0, 2, 3], [0, 2, 1, 3], [0, 3, 2, 1]])
def test_two_arms_that_change_places(claim, order):
    verdict, red = claim.judge(**rearranged(claim, order))
    assert verdict == "fails"
    assert {SOONER, MEDIAN, SHARE, FOUND} <= red


def test_permuted_labels_that_help_as_much(claim):
    verdict, red = claim.judge(**rearranged(claim, [0, 1, 1, 3]))
    assert verdict == "fails"
    assert PERMUTED in red
    assert "attention on the right tokens after permuted labels, mean" in red


def test_other_tokens_that_help_as_much(claim):
    verdict, red = claim.judge(**rearranged(claim, [0, 1, 2, 1]))
    assert verdict == "fails"
    assert OTHER in red
    assert "attention on the right tokens after other tokens, mean" in red


def test_attention_that_stays_uniform(claim):
    attention = 0 * claim.main.result.attention + 3 / 8
    verdict, red = claim.judge(attention=attention)
    assert verdict == "fails"
    assert FOUND in red


@pytest.mark.parametrize("arm", [1, 3])
def test_a_first_task_that_is_not_learnt_is_void(claim, arm):
    accuracy = claim.main.result.pretrained_accuracy.copy()
    accuracy[:, arm] = 0.5
    assert claim.judge(pretrained_accuracy=accuracy)[0] == "void"
