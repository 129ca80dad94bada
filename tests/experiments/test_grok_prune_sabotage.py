"""Pruning curves told in another order or of another network, and nothing left to prune."""

import numpy as np
import pytest

NAME = "experiments/grokking/grok_prune_memorising_neurons"
pytestmark = [pytest.mark.claims, pytest.mark.smoke_run_of(NAME), pytest.mark.timeout(900)]
WRONG, CLEAN, RANDOM, UNDECAYED = range(4)
LOWEST, HIGHEST, SHUFFLED, SHORTEST = range(4)
CURVES = ("wrong", "test", "corrected")


def told_as(result, *, conditions=(0, 1, 2, 3), orders=(0, 1, 2, 3)):
    return {c: getattr(result, c)[:, list(conditions)][:, :, list(orders)] for c in CURVES}


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


@pytest.mark.parametrize(
    ("orders", "red"),
    [
        ((HIGHEST, LOWEST, SHUFFLED, SHORTEST), {
            "lowest first: wrong labels lost, half pruned",
            "lowest first: test accuracy gained, half pruned, mean over seeds",
            "lowest first: wrongly labelled pairs answered right, half pruned",
            "highest first: test accuracy lost, half pruned",
            "highest first: wrong labels lost, half pruned",
            "area between test and wrong labels, lowest less random",
            "area between test and wrong labels, random less highest"}),
        ((LOWEST, HIGHEST, LOWEST, SHORTEST),
         {"area between test and wrong labels, lowest less random"}),
        ((LOWEST, HIGHEST, HIGHEST, SHORTEST),
         {"area between test and wrong labels, random less highest"}),
        ((SHORTEST, HIGHEST, SHUFFLED, SHORTEST),
         {"wrong labels lost, lowest ratio less shortest first, mean over seeds"}),
    ],
)  # fmt: skip
def test_another_order_of_pruning(claim, orders, red):
    verdict, found = claim.judge(**told_as(claim.main.result, orders=orders))
    assert verdict == "fails"
    assert red <= found


def test_a_network_without_a_rule_is_void(claim):
    """Without decay nothing generalises, so that there is nothing to keep."""
    fields = told_as(claim.main.result, conditions=(UNDECAYED, CLEAN, RANDOM, UNDECAYED))
    verdict, red = claim.judge(**fields)
    assert verdict == "void"
    assert "test accuracy, nothing pruned" in red


def test_labels_that_were_not_memorised_are_void(claim):
    fitted = np.minimum(claim.main.result.fitted, 0.9)
    assert claim.judge(fitted=fitted)[0] == "void"


@pytest.mark.parametrize(
    ("conditions", "red"),
    [
        ((CLEAN, CLEAN, RANDOM, UNDECAYED), "share of units that memorise"),
        ((RANDOM, CLEAN, RANDOM, UNDECAYED), "share of units that memorise"),
        ((WRONG, WRONG, RANDOM, UNDECAYED), "clean labels: share of units that memorise"),
        ((WRONG, CLEAN, WRONG, UNDECAYED), "random labels: share of units that memorise"),
    ],
)
def test_units_of_another_network(claim, conditions, red):
    participation = claim.main.result.participation[:, list(conditions)]
    assert claim.judge(participation=participation) == ("fails", {red})


@pytest.mark.parametrize(
    ("conditions", "red"),
    [
        ((WRONG, WRONG, RANDOM, UNDECAYED),
         {"clean labels: test accuracy lost, highest first, half pruned"}),
        ((WRONG, CLEAN, WRONG, UNDECAYED),
         {"random labels: wrong labels lost, lowest less highest first"}),
        ((WRONG, CLEAN, RANDOM, WRONG),
         {"no decay: test accuracy, nothing pruned",
          "no decay: test accuracy, lowest first, half pruned"}),
    ],
)  # fmt: skip
def test_controls_that_behave_like_the_claim(claim, conditions, red):
    fields = told_as(claim.main.result, conditions=conditions)
    assert claim.judge(**fields) == ("fails", red)


@pytest.mark.parametrize(
    ("wrong", "message"), [({"num_fractions": 4}, "odd"), ({"corruption": 1.0}, "between 0")]
)
def test_wrong_settings_are_refused(claim, wrong, message):
    with pytest.raises(ValueError, match=message):
        claim.experiment.config(**wrong)


def test_pairs_of_which_fewer_than_half_are_put_right(claim):
    corrected = claim.main.result.corrected.copy()
    corrected[:, WRONG] = np.minimum(corrected[:, WRONG], 0.45)
    red = {"lowest first: wrongly labelled pairs answered right, half pruned, mean"}
    assert claim.judge(corrected=corrected) == ("fails", red)


def test_a_rule_that_was_there_without_decay_and_pruned_away(claim):
    test = claim.main.result.test.copy()
    test[:, UNDECAYED, :, 0] = 0.99
    red = {"no decay: test accuracy, nothing pruned"}
    assert claim.judge(test=test) == ("fails", red)
