"""Solutions of other problems and weights that go elsewhere turn the margin claim red."""

import numpy as np
import pytest

pytestmark = [
    pytest.mark.claims,
    pytest.mark.timeout(900),
    pytest.mark.smoke_run_of("theory_checks/attention/attention_svm_direction"),
]
W = "W: margin / |W|_F over the widest"
FACTORS = "K, Q: margin / |W|_* over the widest, median"
COSINE_W = "W: cosine with the Frobenius solution"
COSINE_FACTORS = "K, Q: cosine with the nuclear solution, median"


def judged(claim, result=None, prediction=None):
    return claim.judge(role="claim", prediction=prediction, **(result or {}))


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


def test_norms_exchanged(claim):
    """As if factors went to the Frobenius solution and W to the nuclear one."""
    prediction = claim.main.prediction
    swapped = {"weights": prediction.weights[:, ::-1], "norm": prediction.norm[:, ::-1]}
    verdict, red = judged(claim, prediction=swapped)
    assert verdict == "fails"
    assert red >= {W, FACTORS, COSINE_W, COSINE_FACTORS}


def test_parametrisations_exchanged(claim):
    result = claim.main.result
    swapped = {
        "weights": result.weights[:, :, ::-1],
        "margin": result.margin[:, ::-1],
        "norm": result.norm[:, :, ::-1],
    }
    verdict, red = judged(claim, swapped)
    assert verdict == "fails"
    assert red >= {W, FACTORS, COSINE_W, COSINE_FACTORS}


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_a_solver_that_is_off_by_little(claim, factor):
    norm = claim.main.prediction.norm * factor
    verdict, red = judged(claim, prediction={"norm": norm})
    assert verdict == "fails"
    assert red == {W, FACTORS}


def test_the_average_of_the_gradients(claim):
    """The sum of all gaps between tokens in place of the support vectors."""
    result = claim.main.result
    weights = result.weights.copy()
    weights[:, 0, 0, -1] = claim.main.result.weights[:, 0, 0, 0]  # a few steps from zero
    verdict, red = judged(claim, {"weights": weights})
    assert (verdict, red) == ("fails", {COSINE_W})


def test_training_that_ends_early(claim):
    result = claim.main.result
    margin = result.margin.copy()
    margin[..., -1] = (result.margin / result.norm[:, 0, :, :, 0] * result.norm[:, 0, :, -1:, 0])[
        ..., result.margin.shape[-1] // 3
    ]
    verdict, red = judged(claim, {"margin": margin})
    assert verdict == "fails"
    assert W in red


def test_a_sequence_that_selects_another_token(claim):
    selected = claim.main.result.selected.copy()
    selected[1, 0, 0, 2] = 3
    name = "W: share of sequences that select the relevant token"
    assert judged(claim, {"selected": selected}) == ("fails", {name})
    selected = claim.main.result.selected.copy()
    selected[:3, 0, 1, 2] = 3
    name = "K, Q: share of seeds that select every relevant token"
    assert judged(claim, {"selected": selected}) == ("fails", {name})


@pytest.mark.parametrize("index", [0, 1])
def test_margins_of_the_selected_that_stay_narrow(claim, index):
    ratio = claim.main.result.selected_ratio.copy()
    ratio[:, index] *= 0.9
    verdict, red = judged(claim, {"selected_ratio": ratio})
    name = ("W", "K, Q")[index]
    assert red == {f"random head, {name}: margin of the selected over the widest, median"}
    assert verdict == "fails"


def test_weights_beyond_the_widest_margin(claim):
    """No weights can be there: a sign of a wrong norm or a wrong solver."""
    margin = claim.main.result.margin * 1.02
    assert judged(claim, {"margin": margin}) == ("fails", {W, FACTORS})


def test_weights_that_blow_up(claim):
    norm = claim.main.result.norm.copy()
    norm[0, 0, 1, 5:] = np.nan
    verdict, red = claim.judge(norm=norm)
    assert verdict == "void"
    assert "steps on which the weights are finite" in red
