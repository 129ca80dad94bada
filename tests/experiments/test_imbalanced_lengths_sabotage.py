"""What the control leaves standing is taken away here: order, collapse within classes, fit."""

import dataclasses

import numpy as np
import pytest

from experiments import catalogue, checks, execution, judgement, records

NAME = "experiments/collapse/imbalanced_lengths_follow_theory"
pytestmark = [pytest.mark.claims, pytest.mark.smoke_run_of(NAME), pytest.mark.timeout(900)]


@pytest.fixture
def claim(smoke_runs):
    (entry,) = catalogue.find([NAME])
    experiment = catalogue.load(entry)
    paths = records.Paths(smoke_runs[0], entry.tree, entry.theme, entry.slug)
    return experiment, execution.load(experiment, paths.arrays)


def judge(experiment, run, **fields):
    """Return the verdict with some fields of the result replaced, and the names of red checks."""
    main = run.parts[execution.MAIN]
    replaced = dataclasses.replace(main, result=main.result._replace(**fields))
    parts = {**run.parts, execution.MAIN: replaced}
    found = judgement.judge(experiment, execution.Run(parts, run.provenance))
    return checks.verdict(found), {check.name for check in found if not check.passed}


def test_left_alone_it_holds(claim):
    assert judge(*claim) == ("holds", set())


def test_lengths_in_another_order_of_classes(claim):
    """The right lengths at the wrong classes."""
    result = claim[1].parts["main"].result
    verdict, red = judge(
        *claim,
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
    alignment = np.ones_like(claim[1].parts["main"].result.alignment)
    verdict, red = judge(*claim, alignment=alignment)
    assert (verdict, red) == ("fails", {"outputs of a class, largest relative error"})


def test_classes_that_have_not_collapsed(claim):
    within = claim[1].parts["main"].result.within
    verdict, red = judge(*claim, within=within + 0.05)
    assert (verdict, red) == ("fails", {"variability within classes / between them"})


def test_a_class_that_died_out_is_void(claim):
    error = claim[1].parts["main"].result.train_error
    assert judge(*claim, train_error=error + 0.03)[0] == "void"
