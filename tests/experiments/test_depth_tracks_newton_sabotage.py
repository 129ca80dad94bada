"""Decoders whose blocks do not go on as Newton's iterates must turn the claim red."""

import jax
import numpy as np
import pytest

from experiments.in_context import softmax_transformer_depth_tracks_newton as decoder_claim

CLAIM = "experiments/in_context/softmax_transformer_depth_tracks_newton"
ERROR = "error after the last block at the last example / variance, median"
GAIN = "Newton iterations that each block after the first gains, median"
LESS = "Newton iterations that the last block gains, less those of the second, median"
LAST = "descent steps of the last block / those most like its Newton iterate, median"
LAW = "descent steps of a block / those most like its Newton iterate, median"
DOUBLINGS = "doublings of the descent steps most like an iterate, per iteration"
LIKENESS = "likeness of the last block to its Newton iterate, less that to no answer, median"
DIFFERENCE = "likeness to Newton less likeness to descent, last block, median"
UNTRAINED = "control: descent steps of any block before training"
pytestmark = [
    pytest.mark.claims, pytest.mark.timeout(900), pytest.mark.smoke_run_of(CLAIM)
]  # fmt: skip


def peaks(similarity, iterates, wanted):
    """Return the similarities (S, T, L, R) with those of the end largest at `wanted` (S, L).

    The largest value of each block and its value for iterate 0 stay as they were.
    """
    changed = similarity.copy()
    end = changed[:, -1]
    nearest = np.argmin(np.abs(iterates - wanted[..., None]), axis=-1)
    best, first = end.max(axis=-1), end[..., 0].copy()
    end[...] = -1.0
    end[..., 0] = first
    np.put_along_axis(end, nearest[..., None], best[..., None], axis=-1)
    return changed


def matches(result):
    """Return Newton iterations and descent steps (S, L) of the blocks at the end."""
    return (
        decoder_claim.matched(result.newton[:, -1], decoder_claim.ITERATIONS),
        decoder_claim.matched(result.descent[:, -1], decoder_claim.STEPS),
    )


def both(result, iterations):
    """Return the fields of blocks at `iterations` (S, L), with the steps that the law gives."""
    steps = np.take_along_axis(result.equivalent, iterations, axis=1)
    return {
        "newton": peaks(result.newton, decoder_claim.ITERATIONS, iterations),
        "descent": peaks(result.descent, decoder_claim.STEPS, steps),
    }


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


def test_the_tampering_changes_nothing_where_it_asks_for_what_is_there(claim):
    result = claim.main.result
    newton, descent = matches(result)
    tampered = {
        "newton": peaks(result.newton, decoder_claim.ITERATIONS, newton),
        "descent": peaks(result.descent, decoder_claim.STEPS, descent),
    }
    assert claim.judge(**tampered) == ("holds", set())


def test_blocks_that_add_nothing_to_the_first(claim):
    newton, _ = matches(claim.main.result)
    first = np.repeat(newton[:, :1], newton.shape[1], axis=1)
    assert claim.judge(**both(claim.main.result, first)) == ("fails", {GAIN, LESS})


def test_blocks_that_gain_on_a_line(claim):
    """As the paper has it: the same number of iterations from block to block."""
    newton, _ = matches(claim.main.result)
    line = 2 + 2 * np.arange(newton.shape[1]) + np.zeros_like(newton)
    assert claim.judge(**both(claim.main.result, line)) == ("fails", {LESS})


def test_blocks_that_gain_more_than_a_layer_can(claim):
    newton, _ = matches(claim.main.result)
    steep = np.array([0, 8, 12, 14]) + np.zeros_like(newton)
    assert claim.judge(**both(claim.main.result, steep)) == ("fails", {GAIN})


def test_as_many_steps_as_iterations(claim):
    result = claim.main.result
    newton, _ = matches(result)
    outcome, red = claim.judge(descent=peaks(result.descent, decoder_claim.STEPS, newton))
    assert outcome == "fails"
    assert {LAST} <= red <= {LAST, LAW}


@pytest.mark.parametrize("factor", [1 / 3, 3])
def test_steps_of_another_law(claim, factor):
    result = claim.main.result
    _, descent = matches(result)
    outcome, red = claim.judge(descent=peaks(result.descent, decoder_claim.STEPS, factor * descent))
    assert (outcome, red) == ("fails", {LAST, LAW})


def test_blocks_before_the_last_of_another_law(claim):
    result = claim.main.result
    _, descent = matches(result)
    descent = descent * np.array([3, 3, 3, 1])
    tampered = peaks(result.descent, decoder_claim.STEPS, descent)
    assert claim.judge(descent=tampered) == ("fails", {LAW})


@pytest.mark.parametrize("base", [1.0, 2.0])
def test_algorithms_of_another_law(claim, base):
    """Steps in proportion to iterations, and twice as many for each."""
    iterations = decoder_claim.ITERATIONS
    steps = iterations if base == 1 else base**iterations
    equivalent = np.broadcast_to(steps, claim.main.result.equivalent.shape)
    outcome, red = claim.judge(equivalent=equivalent)
    assert outcome == "fails"
    assert DOUBLINGS in red


def test_networks_that_learned_nothing(claim):
    error = np.ones_like(claim.main.result.error)
    assert claim.judge(error=error) == ("fails", {ERROR})


def test_errors_as_like_to_no_answer(claim):
    descent = claim.main.result.descent.copy()
    descent[:, -1, :, 0] = descent[:, -1, :, 1:].max(axis=-1) - 0.01
    assert claim.judge(descent=descent) == ("fails", {LIKENESS})


@pytest.mark.parametrize("less", ["newton", "descent"])
def test_errors_that_are_like_one_algorithm_alone(claim, less):
    outcome, red = claim.judge(**{less: getattr(claim.main.result, less) - 0.05})
    assert (outcome, red) == ("fails", {DIFFERENCE})


def test_an_untrained_network_that_answers(claim):
    descent = claim.main.result.descent.copy()
    descent[:, 0] = descent[:, -1]
    assert claim.judge(descent=descent) == ("fails", {UNTRAINED})


def test_a_network_that_diverged(claim):
    error = claim.main.result.error.copy()
    error[0, -1] = np.nan
    assert claim.judge(error=error)[0] == "void"


def test_prompts_are_solved_once_there_are_as_many_examples_as_weights(claim):
    dim, errors = claim.main.config.dim, claim.main.result.least_squares  # (S, N)
    assert np.all(np.median(errors, axis=0)[dim + 1 :] < 1e-3)
    np.testing.assert_allclose(errors[:, 0].mean(), 1, atol=0.25)  # targets of variance one


def test_parameters_are_drawn_as_the_model_draws_them():
    model = decoder_claim.decoder(decoder_claim.Config(num_layers=3)).clone(num_layers=1, width=64)
    tokens = np.zeros((1, 8, 7), np.float32)
    expected = jax.jit(model.init)(jax.random.key(0), tokens)
    drawn = decoder_claim.initial_params(jax.random.key(1), model, tokens)
    assert jax.tree.structure(drawn) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(drawn), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape
        if one.ndim == 1:
            np.testing.assert_array_equal(one, other)
        else:  # seven standard errors of the ratio of two standard deviations
            tolerance = 7 / one.size**0.5
            np.testing.assert_allclose(np.std(one) / np.std(other), 1, atol=tolerance)
            assert abs(np.mean(one)) < 5 * np.std(one) / one.size**0.5


def test_no_token_holds_its_own_target():
    examples = np.zeros((2, 8, 4), np.float32)
    later = examples.copy()
    later[:, 5:, -1] = 1
    before, after = (np.asarray(decoder_claim.joined(tokens)) for tokens in (examples, later))
    changed = np.any(before != after, axis=(0, 2))
    np.testing.assert_array_equal(changed, np.arange(8) > 5)
