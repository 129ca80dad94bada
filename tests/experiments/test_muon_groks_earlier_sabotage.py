"""Optimisers that change places turn the claim on Muon red, as does a lead that stays."""

import numpy as np
import pytest

NAME = "experiments/grokking/muon_groks_earlier"
MOST = "AdamW's steps / Muon's, most of the table, median"
LEAST = "AdamW's steps / Muon's, least of the table, medians"
pytestmark = [pytest.mark.claims, pytest.mark.smoke_run_of(NAME), pytest.mark.timeout(900)]


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


def test_optimisers_that_change_places(claim):
    accuracy = claim.main.result.test_accuracy[:, :, ::-1]
    verdict, red = claim.judge(test_accuracy=accuracy)
    assert verdict in ("fails", "void")
    assert MOST in red


def test_a_lead_that_is_the_same_with_scarce_data(claim):
    accuracy = claim.main.result.test_accuracy
    assert claim.judge(test_accuracy=accuracy[:, [1, 1]]) == ("fails", {LEAST})


def test_accuracy_that_does_not_last_is_no_generalisation(claim):
    """Muon's networks pass the threshold, and lose it at the end."""
    accuracy = claim.main.result.test_accuracy.copy()
    accuracy[:, 1, 1, -1] = 0.9
    verdict, red = claim.judge(test_accuracy=accuracy)
    assert verdict == "fails"
    assert MOST in red


def test_an_adamw_that_does_not_generalise_is_void(claim):
    accuracy = claim.main.result.test_accuracy.copy()
    accuracy[0, 0, 0] = np.minimum(accuracy[0, 0, 0], 0.9)
    assert claim.judge(test_accuracy=accuracy)[0] == "void"


def test_rates_that_are_comparable(claim):
    untuned = claim.main.result.untuned
    verdict, red = claim.judge(untuned=untuned[..., ::-1])
    assert verdict == "fails"
    assert red == {"AdamW's steps / Muon's at equal nominal settings, most of the table"}


def test_a_muon_that_learns_nothing_from_scarce_data_is_void(claim):
    """Steps of AdamW over infinity would be a lead that is gone."""
    accuracy = claim.main.result.test_accuracy.copy()
    accuracy[:, 0, 1] = 0.03
    assert claim.judge(test_accuracy=accuracy)[0] == "void"
