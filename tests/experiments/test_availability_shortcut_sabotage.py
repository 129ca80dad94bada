"""Predictors that do not lean on the louder cue turn the claim on shortcuts red."""

import numpy as np
import pytest

NAME = "experiments/kernels/availability_shortcut_ntk"
SHALLOW = "NTK of depth 1, least to most amplified: rise of the bias"
DEEP = "NTK of depth 3, least to most amplified: rise of the bias"
NEXT = "NTK of depth {}: smallest rise from one amplification to the next"
RATIO = "rise of the networks by that of the NTK of depth 1 on the same samples"
LIKE = "correlation over samples of networks and NTK of depth 1, one amplification"
TRAINED = "networks, least to most amplified: rise of the bias"
pytestmark = [pytest.mark.claims, pytest.mark.smoke_run_of(NAME), pytest.mark.timeout(900)]


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


def test_least_squares_in_place_of_the_kernels(claim):
    bias = claim.main.result.bias
    verdict, red = claim.judge(bias=np.repeat(bias[:, :1], 3, axis=1))
    assert verdict == "fails"
    assert {SHALLOW, DEEP} <= red


def test_cues_exchanged(claim):
    """The louder the shortcut, the more the core is followed."""
    result = claim.main.result
    verdict, red = claim.judge(bias=-result.bias, network_bias=-result.network_bias)
    assert verdict == "fails"
    assert {SHALLOW, DEEP, TRAINED, "NTK of depth 1, most amplified: bias"} <= red


def test_a_rise_on_one_side_only(claim):
    """Nothing between the least amplified and the even."""
    bias = claim.main.result.bias.copy()
    bias[:, 1, :2] = bias[:, 1, 2:3]
    verdict, red = claim.judge(bias=bias)
    assert verdict == "fails"
    assert "NTK of depth 1, least amplified to even: rise of the bias" in red


def test_amplifications_in_another_order(claim):
    """Even and loudest exchanged: the rise from end to end is half, that from even is none."""
    bias = claim.main.result.bias[:, :, [0, 1, 4, 3, 2]]
    verdict, red = claim.judge(bias=bias)
    assert verdict == "fails"
    assert "NTK of depth 1, even to most amplified: rise of the bias" in red


@pytest.mark.parametrize(("model", "depth"), [(1, 1), (2, 3)])
@pytest.mark.parametrize("place", [1, 3])
def test_one_amplification_that_changes_nothing(claim, model, depth, place):
    """Such as 0.25 for 0.125: neither the rise from end to end nor that of a half would tell."""
    bias = claim.main.result.bias.copy()
    bias[:, model, place] = bias[:, model, place + 1 if place == 3 else place - 1]
    assert claim.judge(bias=bias) == ("fails", {NEXT.format(depth)})


def test_networks_that_do_not_follow_their_kernel(claim):
    bias = claim.main.result.network_bias
    still = np.repeat(bias[:, 2:3], bias.shape[1], axis=1)
    assert claim.judge(network_bias=still) == ("fails", {TRAINED, RATIO})


def test_networks_that_lean_half_as_much(claim):
    assert claim.judge(network_bias=claim.main.result.network_bias / 2) == ("fails", {RATIO})


def test_networks_trained_on_the_samples_of_another_seed(claim):
    bias = np.roll(claim.main.result.network_bias, 1, axis=0)
    assert claim.judge(network_bias=bias) == ("fails", {LIKE})


def test_a_linear_predictor_that_sees_amplification(claim):
    """As least squares with a ridge would."""
    change = np.full_like(claim.main.result.least_squares_change, 1e-3)
    verdict, red = claim.judge(least_squares_change=change)
    assert verdict == "fails"
    assert red == {"largest change of a least-squares prediction over amplifications"}


def test_networks_that_diverge_are_void(claim):
    loss = np.full_like(claim.main.result.train_loss, np.nan)
    assert claim.judge(train_loss=loss)[0] == "void"
