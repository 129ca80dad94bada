"""Norms that teach what they should not turn the claim on the majority red."""

import numpy as np
import pytest

pytestmark = [
    pytest.mark.claims,
    pytest.mark.timeout(900),
    pytest.mark.smoke_run_of("experiments/attention/layernorm_projection_majority"),
]
LAYERNORM, RMSNORM, SHORT_RMSNORM, SHORT_LAYERNORM = range(4)
MAJORITY, MARKED = range(2)


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


def test_the_papers_advantage_of_the_projection(claim):
    """As if LayerNorm learned twice as fast as RMSNorm."""
    accuracy = np.array(claim.main.result.accuracy)
    times = np.arange(accuracy.shape[-1])
    twice = np.minimum(2 * times, times[-1])
    accuracy[:, MAJORITY, LAYERNORM] = accuracy[:, MAJORITY, RMSNORM][..., twice]
    found = claim.judge(role="claim", accuracy=accuracy)
    assert found == ("fails", {"majority: steps with LayerNorm / RMSNorm"})


@pytest.mark.parametrize(
    ("short", "long", "name"),
    [(SHORT_RMSNORM, RMSNORM, "RMSNorm"), (SHORT_LAYERNORM, LAYERNORM, "LayerNorm")],
)
def test_a_scale_that_costs_nothing(claim, short, long, name):
    accuracy = np.array(claim.main.result.accuracy)
    accuracy[:, MAJORITY, short] = accuracy[:, MAJORITY, long]
    found = claim.judge(role="claim", accuracy=accuracy)
    assert found == ("fails", {f"majority: steps with keys of length 1/√D / √D, {name}"})


def test_queries_that_turn_alike_on_both_tasks(claim):
    tilt = np.array(claim.main.result.tilt)
    tilt[:, MARKED, LAYERNORM] = tilt[:, MAJORITY, LAYERNORM]
    name = "LayerNorm: gain of |cosine| of queries with (1, ..., 1), majority less half"
    assert claim.judge(role="claim", tilt=tilt) == ("fails", {name})


def test_a_projection_left_out(claim):
    along_one = np.array(claim.main.result.along_one)
    along_one[:, :, LAYERNORM] = along_one[:, :, RMSNORM]
    name = "LayerNorm: a query along (1, ..., 1), largest attention less the even one"
    assert claim.judge(role="claim", along_one=along_one) == ("fails", {name})


def test_a_block_that_never_learns(claim):
    accuracy = np.array(claim.main.result.accuracy)
    accuracy[0, MAJORITY, LAYERNORM] = 0.5
    name = "majority: most steps to learn with keys of length √D / the steps of the run"
    verdict, red = claim.judge(role="precondition", accuracy=accuracy)
    assert (verdict, red) == ("void", {name})
