"""The claim on probes of S^-1 x turns red without depth, without context, without training."""

import numpy as np
import pytest

NAME = "experiments/in_context/mesa_probe_inverse_covariance"
CURVE = "largest error of R² on constructed layers, mean of seeds"
RISE = "least rise of R² from one depth to the next, mean of seeds"
WEIGHTS = "relative error of the weights against descent's iterate"
FIRST = "trained: lower end of R² after one layer less R² of x, mean of seeds"
BEST = "trained: R² after one layer, mean of seeds"
BEFORE = "trained: R² before the last layer less that before training, mean of seeds"
COSINE = "trained: cosine of its weights with the task's, mean of seeds"
OTHER = "R² with the S of another context, any layer, mean of seeds"
pytestmark = [pytest.mark.claims, pytest.mark.smoke_run_of(NAME), pytest.mark.timeout(900)]


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


def test_probes_of_other_contexts(claim):
    result = claim.main.result
    verdict, red = claim.judge(role="claim", constructed=result.shuffled)
    assert verdict == "fails"
    assert {CURVE, RISE} <= red


def test_layers_that_do_one_step_less(claim):
    """Depths 1, 2, 4, 8, 12 that are in truth 1, 1, 2, 4, 8."""
    verdict, red = claim.judge(
        role="claim", constructed=claim.main.result.constructed[:, [0, 0, 1, 2, 3]]
    )
    assert verdict == "fails"
    assert red == {CURVE, RISE}


def test_a_context_that_does_not_matter(claim):
    result = claim.main.result
    verdict, red = claim.judge(shuffled=result.constructed)
    assert verdict == "fails"
    assert red == {OTHER}


def test_weights_that_are_not_descents(claim):
    error = np.full_like(claim.main.result.weight_error, 0.01)
    verdict, red = claim.judge(role="claim", weight_error=error)
    assert verdict == "fails"
    assert red == {WEIGHTS}


def test_a_network_that_was_not_trained(claim):
    result = claim.main.result
    untrained = np.repeat(result.untrained[..., None], 3, axis=-1)
    verdict, red = claim.judge(role="claim", trained=untrained)
    assert verdict == "fails"
    assert {FIRST, BEFORE} <= red


def test_one_layer_that_does_more_than_one_layer_can(claim):
    trained = claim.main.result.trained.copy()
    trained[:, 1] = 0.95
    verdict, red = claim.judge(role="claim", trained=trained)
    assert verdict == "fails"
    assert red == {BEST}


def test_weights_of_another_task(claim):
    verdict, red = claim.judge(role="claim", cosine=0 * claim.main.result.cosine)
    assert verdict == "fails"
    assert red == {COSINE}


def test_a_network_that_did_not_learn_is_void(claim):
    loss = claim.main.result.loss.copy()
    loss[:, -1] = 1.0
    assert claim.judge(loss=loss)[0] == "void"


def test_a_second_layer_that_goes_on(claim):
    trained = claim.main.result.trained.copy()
    trained[:, 2] = 0.99
    name = "trained: R² before the last layer less that after one, mean of seeds"
    assert claim.judge(trained=trained) == ("fails", {name})


def test_layers_that_need_no_training(claim):
    untrained = np.full_like(claim.main.result.untrained, 0.75)
    name = "R² before training, any layer, mean of seeds"
    assert claim.judge(untrained=untrained) == ("fails", {name})
