"""Adaptive optimisers away from their edge must turn the claim red."""

import numpy as np
import pytest

CLAIM = "experiments/curvature/adaptive_edge_of_stability"
LEVEL = "settled preconditioned sharpness / ((2+2β)/((1-β)η)), Adam"
pytestmark = [pytest.mark.claims, pytest.mark.timeout(900), pytest.mark.smoke_run_of(CLAIM)]


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


@pytest.mark.parametrize(
    "factor",
    [
        pytest.param(1 / 19, id="the edge of plain descent"),  # 2/η in place of 38/η
        pytest.param(1 / 10, id="a preconditioner without 1 - β"),
        pytest.param(1.25, id="a quarter above"),
        pytest.param(0.8, id="a fifth below"),
    ],
)
def test_another_threshold(claim, factor):
    result = claim.main.result
    scaled = dict(sharpness=factor * result.sharpness, residual=factor * result.residual)
    outcome, red = claim.judge(**scaled)
    assert outcome == "fails"
    assert LEVEL in red


def test_a_hessian_without_its_preconditioner(claim):
    result = claim.main.result
    assert LEVEL in claim.judge(sharpness=result.plain)[1]


def test_an_edge_of_plain_descent_would_be_seen(claim):
    rate = claim.main.config.adam_rates[0]
    plain = np.full_like(claim.main.result.plain, 2 / rate)
    assert "highest sharpness of H / (2/η)" in claim.judge(plain=plain)[1]


def test_a_loss_that_stops(claim):
    loss = np.maximum(claim.main.result.train_loss, claim.main.result.train_loss[..., :1])
    outcome, red = claim.judge(train_loss=loss)
    assert outcome == "fails"
    assert red == {"loss over the last quarter / on arrival"}


def test_eigenvectors_that_were_not_found(claim):
    outcome, _ = claim.judge(residual=claim.main.result.sharpness)
    assert outcome == "void"
