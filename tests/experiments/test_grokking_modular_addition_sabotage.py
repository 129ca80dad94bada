"""Curves without a delay, or from a network without decay, turn the grokking claim red."""

import numpy as np
import pytest

NAME = "experiments/grokking/grokking_modular_addition"
pytestmark = [pytest.mark.claims, pytest.mark.smoke_run_of(NAME), pytest.mark.timeout(900)]


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


def test_a_network_that_generalises_as_it_fits(claim):
    verdict, red = claim.judge(test_accuracy=claim.main.result.train_accuracy)
    assert verdict == "fails"
    assert {"steps to generalise / to fit, geometric mean", "test accuracy when fitted"} <= red


def test_the_network_without_decay_in_place_of_the_other(claim):
    fields = claim.main.result._asdict()
    swapped = {name: fields[name][:, ::-1] for name in fields if name != "step"}
    verdict, red = claim.judge(**swapped)
    assert verdict == "fails"
    assert {
        "steps to generalise / to fit, geometric mean",
        "test accuracy at the end",
        "participation at the end / when fitted, median neuron",
        "alignment of phases at the end",
        "test accuracy at the end, no decay",
        "participation at the end / when fitted, no decay",
    } <= red


def test_one_seed_that_never_generalises(claim):
    accuracy = claim.main.result.test_accuracy.copy()
    accuracy[0, 0] = 0.03
    verdict, red = claim.judge(test_accuracy=accuracy)
    assert verdict == "fails"
    assert "test accuracy at the end" in red


def test_phases_that_align_only_at_the_end(claim):
    alignment = claim.main.result.alignment.copy()
    alignment[:, 0, :-1] *= 0.5
    assert claim.judge(alignment=alignment) == ("fails", {"alignment of phases when fitted"})


def test_a_network_that_does_not_fit_is_void(claim):
    accuracy = np.minimum(claim.main.result.train_accuracy, 0.97)
    assert claim.judge(train_accuracy=accuracy)[0] == "void"


def test_neurons_of_several_frequencies_at_the_end(claim):
    """Participation that has only risen, as for two or three frequencies a neuron."""
    power = np.full_like(claim.main.result.power, 1 / claim.main.result.power.shape[-1])
    red = {"share of neurons with one frequency at the end, mean over seeds"}
    assert claim.judge(power=power) == ("fails", red)


def test_alignment_that_is_kept_without_decay(claim):
    alignment = claim.main.result.alignment.copy()
    alignment[:, 1] = np.minimum(np.maximum.accumulate(alignment[:, 1], axis=-1), 0.84)
    red = {"alignment of phases, no decay, lost from its highest to the end"}
    assert claim.judge(alignment=alignment) == ("fails", red)
