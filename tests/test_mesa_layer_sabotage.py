"""The claim on the mesa-layer turns red where the layer, the dynamics or a closed form is wrong."""

import numpy as np
import pytest

NAME = "theory_checks/in_context/mesa_layer_is_online_ridge"
LINE = "largest error of the share that mesa leaves, first D pairs"
NOTHING = "largest share that mesa leaves after 15 pairs and more"
ONE_STEP = "lowest share that one step of one size leaves, any number of pairs"
NOISE = "error of mesa over that of the noise, last pair, mean of seeds"
pytestmark = [pytest.mark.claims, pytest.mark.smoke_run_of(NAME), pytest.mark.timeout(900)]


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


@pytest.mark.parametrize("form", [0, 1])
def test_a_layer_that_sees_a_token_too_late(claim, form):
    """The ridge of all tokens but the newest."""
    result = claim.main.result
    outputs = result.outputs.copy()
    outputs[:, form, 1:] = outputs[:, form, :-1]
    outcome, red = claim.judge(role="claim", outputs=outputs)
    assert outcome == "fails"
    assert red == {f"largest error of an output, {('recursion', 'chunks')[form]}"}


@pytest.mark.parametrize("form", [0, 1])
def test_a_derivative_that_misses_the_ridge(claim, form):
    gradient = claim.main.result.gradient.copy()
    gradient[:, form, -1] = 0
    outcome, red = claim.judge(role="claim", gradient=gradient)
    assert outcome == "fails"
    assert red == {f"largest error of a derivative, {('recursion', 'chunks')[form]}"}


def test_a_line_that_counts_one_pair_more(claim):
    """Off by one between keys and queries: 1 - (t + 1) / D."""
    line = np.maximum(claim.main.prediction.unexplained - 1 / claim.main.config.dim, 0)
    outcome, red = claim.judge(role="claim", prediction={"unexplained": line})
    assert outcome == "fails"
    assert red == {LINE}


def test_a_mesa_layer_no_better_than_one_step(claim):
    outcome, red = claim.judge(role="claim", mesa=claim.main.result.one_step_each)
    assert outcome == "fails"
    assert {LINE, NOTHING, NOISE} <= red


def test_one_step_that_does_as_well(claim):
    result = claim.main.result
    outcome, red = claim.judge(role="claim", one_step=result.mesa)
    assert outcome == "fails"
    assert red == {ONE_STEP}


def test_noise_below_the_noise(claim):
    """An error smaller than what cannot be known."""
    outcome, red = claim.judge(role="claim", mesa=claim.main.result.mesa / 2)
    assert outcome == "fails"
    assert NOISE in red
