"""Errors of another order, or another descent, must turn the claim on ReLU products red."""

import numpy as np
import pytest

NAME = "theory_checks/in_context/relu_products_simulate_gd"
pytestmark = [pytest.mark.claims, pytest.mark.smoke_run_of(NAME), pytest.mark.timeout(900)]
LINEAR = "distance over the linearised recursion, most ReLUs, largest departure"


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


def test_distances_that_fall_as_the_number_of_relus(claim):
    part = claim.main
    pieces = np.array(part.config.pieces, float)
    outcome, red = claim.judge(distance=part.result.distance * (pieces / 4)[:, None])
    assert outcome == "fails"
    assert "exponent of the distance in R, softplus" in red


def test_the_fall_of_relu_networks_is_lost_or_that_of_softplus(claim):
    name = "exponent of the distance in R, ReLU"
    pieces = np.array(claim.main.config.pieces, float)
    for power in (1, -1):
        distance = claim.main.result.distance.copy()
        distance[:, 1] *= (pieces / 4)[:, None] ** power
        assert name in claim.judge(distance=distance)[1]


def test_products_of_half_the_pieces(claim):
    result = claim.main.result
    outcome, red = claim.judge(
        product_error=4 * result.product_error, product_rms=4 * result.product_rms
    )
    assert outcome == "fails"
    assert {"largest error of a product over B²/R²",
            "RMS error of a product over 0.42 B²/R², largest departure from 1"} <= red  # fmt: skip


def test_errors_that_do_not_grow_or_are_not_carried_on(claim):
    distance = claim.main.prediction.distance.copy()
    distance[..., 1:] = distance[..., :-1]
    outcome, red = claim.judge(prediction={"distance": distance})
    assert outcome == "fails"
    assert LINEAR in red


def test_a_distance_above_its_bound(claim):
    distance = claim.main.result.distance.copy()
    distance[0, 0] *= 1.5
    outcome, red = claim.judge(distance=distance)
    assert outcome == "fails"
    assert "distance over ε ((1 + η H)^l - 1)/H, softplus, largest" in red


def test_a_loss_that_is_another(claim):
    outcome, red = claim.judge(loss=1.05 * claim.main.result.loss)
    assert outcome == "fails"
    assert "relative change of the loss, most ReLUs" in red


def test_factors_beyond_the_bound_are_void(claim):
    assert claim.judge(factor=3 * claim.main.result.factor)[0] == "void"


@pytest.mark.parametrize(("kind", "exponent"), [(0, -2.0), (1, -2.6)])
def test_distances_of_another_power(claim, kind, exponent):
    """Softplus at R^-2, no faster; ReLU as steep as softplus and more."""
    distance, pieces = claim.main.result.distance.copy(), np.array(claim.main.config.pieces, float)
    ends = np.log(distance[:, kind, 1:, -1]).mean(axis=0)
    found = np.polyfit(np.log(pieces[1:]), ends, 1)[0]
    distance[:, kind] *= ((pieces / pieces[-1]) ** (exponent - found))[:, None]
    names = "exponent of the distance in R, softplus", "exponent of the distance in R, ReLU less"
    _, red = claim.judge(distance=distance)
    assert any(name.startswith(names[kind]) for name in red)
