"""What the control leaves standing is taken away here: order, collapse within classes, fit."""

import numpy as np
import pytest

NAME = "experiments/collapse/imbalanced_lengths_follow_theory"
pytestmark = [pytest.mark.claims, pytest.mark.smoke_run_of(NAME), pytest.mark.timeout(900)]


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


def test_lengths_in_another_order_of_classes(claim):
    """The right lengths at the wrong classes."""
    result = claim.main.result
    verdict, red = claim.judge(
        classifier=np.roll(result.classifier, 1, axis=-1),
        features=np.roll(result.features, 1, axis=-1),
    )
    assert verdict == "fails"
    assert {
        "classifier row / that of the next smaller class",
        "class mean / that of the next smaller class",
        "class means, largest relative error of a squared length",
    } <= red


def test_outputs_that_fit_the_labels_exactly(claim):
    """Without decay the output of a class is one, not p / (p + N λ_H)."""
    alignment = np.ones_like(claim.main.result.alignment)
    verdict, red = claim.judge(alignment=alignment)
    assert (verdict, red) == ("fails", {"outputs of a class, largest relative error"})


def test_classes_that_have_not_collapsed(claim):
    within = claim.main.result.within
    verdict, red = claim.judge(within=within + 0.05)
    assert (verdict, red) == ("fails", {"variability within classes / between them"})


def test_a_class_that_died_out_is_void(claim):
    error = claim.main.result.train_error
    assert claim.judge(train_error=error + 0.03)[0] == "void"
