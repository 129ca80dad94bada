"""Delays that do not fall, or in another way, turn the claim on decay and data red."""

import numpy as np
import pytest

NAME = "experiments/grokking/delay_falls_with_decay_and_data"
BY_DECAY = "delay / that at the next stronger decay, least of all cells"
FLATTER = "exponent with most data less that at half of the table, mean"
STEEPER = "exponent with least data less that at half, two strongest decays, mean"
BY_DATA = "delay / that with the next larger share, least of all cells"
EXPONENT = "exponent of the delay in the decay, half of the table"
pytestmark = [pytest.mark.claims, pytest.mark.smoke_run_of(NAME), pytest.mark.timeout(900)]


def cells(result, shares=None, decays=None):
    """Return the curves with the cells of other shares and decays in place of theirs."""
    curves = {"train_accuracy": result.train_accuracy, "test_accuracy": result.test_accuracy}
    if shares is not None:
        curves = {name: curve[:, shares] for name, curve in curves.items()}
    if decays is not None:
        curves = {name: curve[:, :, decays] for name, curve in curves.items()}
    return curves


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


def test_decays_in_another_order(claim):
    verdict, red = claim.judge(**cells(claim.main.result, decays=[3, 2, 1, 0]))
    assert verdict == "fails"
    assert {BY_DECAY, EXPONENT, "share that generalises: least data, most decay"} <= red


def test_shares_in_another_order(claim):
    verdict, red = claim.judge(**cells(claim.main.result, shares=[2, 1, 0]))
    assert verdict == "fails"
    assert {BY_DATA, "share that generalises: most data, no decay"} <= red


@pytest.mark.parametrize("decays", [[0, 2, 1, 3], [0, 1, 1, 3]])
def test_decays_that_change_places_or_are_alike(claim, decays):
    verdict, red = claim.judge(**cells(claim.main.result, decays=decays))
    assert verdict == "fails"
    assert BY_DECAY in red


def test_the_law_of_more_data(claim):
    """At 60 % the delay falls too, but not as 1/decay."""
    verdict, red = claim.judge(**cells(claim.main.result, shares=[0, 2, 2]))
    assert verdict == "fails"
    assert {EXPONENT, FLATTER} <= red


def test_the_same_law_with_little_data(claim):
    verdict, red = claim.judge(**cells(claim.main.result, shares=[1, 1, 2]))
    assert verdict == "fails"
    assert STEEPER in red


def test_a_stronger_decay_that_undoes_generalisation(claim):
    accuracy = claim.main.result.test_accuracy.copy()
    accuracy[:, 1, 3] = 0.03
    verdict, red = claim.judge(test_accuracy=accuracy)
    assert verdict == "fails"
    assert BY_DECAY in red


def test_half_of_the_table_that_needs_no_decay(claim):
    result = claim.main.result
    accuracy = result.test_accuracy.copy()
    accuracy[:, 1, 0] = accuracy[:, 2, 0]
    verdict, red = claim.judge(test_accuracy=accuracy)
    assert verdict == "fails"
    assert "share that generalises: half of the table, no decay" in red


def test_sixty_percent_that_are_not_enough_without_decay(claim):
    accuracy = claim.main.result.test_accuracy.copy()
    accuracy[0, 2, 0] = 0.03
    verdict, red = claim.judge(test_accuracy=accuracy)
    assert verdict == "fails"
    assert red == {
        "share that generalises: 60 % of the table, no decay",
        "share that generalises: most data, no decay",  # the same share here
    }


def test_networks_that_do_not_fit_are_void(claim):
    accuracy = np.minimum(claim.main.result.train_accuracy, 0.9)
    assert claim.judge(train_accuracy=accuracy)[0] == "void"
