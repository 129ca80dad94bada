"""What no control of the claim on the linear delay breaks is broken here."""

import numpy as np
import pytest

NAME = "experiments/grokking/grokking_delay_linear_in_alpha"
EXPONENT = "exponent of the delay against α, mean"
STRICT = "exponent at the strict threshold less that at the other, median"
LINEARISED = "least test loss / start of the linearised network"
pytestmark = [pytest.mark.claims, pytest.mark.smoke_run_of(NAME), pytest.mark.timeout(900)]


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


def test_generalising_as_it_fits(claim):
    verdict, red = claim.judge(test_loss=claim.main.result.train_loss)
    assert verdict == "fails"
    assert {EXPONENT, LINEARISED} <= red


def test_curves_that_drop_past_both_thresholds_at_once(claim):
    result = claim.main.result
    dropped = {
        name: np.where(getattr(result, name) < 0.2, 0.01, getattr(result, name))
        for name in ("train_loss", "test_loss")
    }
    assert claim.judge(**dropped) == ("fails", {STRICT})


def test_the_largest_scale_in_place_of_the_linearised(claim):
    """Lazy, but not linearised: it does generalise at last in some seeds."""
    losses = claim.main.result.test_loss.copy()
    losses[:, 0, -1] = losses[:, 0, -3]
    assert claim.judge(test_loss=losses) == ("fails", {LINEARISED})


def test_one_linearised_network_that_generalises(claim):
    losses = claim.main.result.test_loss.copy()
    losses[0, 0, -1, -1] = 0.15
    assert claim.judge(test_loss=losses) == ("fails", {LINEARISED})


def test_few_samples_in_place_of_many(claim):
    result = claim.main.result
    twice = {name: getattr(result, name)[:, [0, 0]] for name in ("train_loss", "test_loss")}
    verdict, red = claim.judge(**twice)
    assert verdict == "fails"
    assert {
        "largest delay with many samples over that with few, median",
        "largest time to generalise over time to fit, many samples, median",
    } <= red


def test_a_delay_as_the_square_of_the_scale(claim):
    """Test curves of the lazier networks moved to later steps, until the delay goes as α²."""
    config, result = claim.main.config, claim.main.result
    losses = result.test_loss.copy()
    for c, scale in enumerate(config.all_scales()):
        stretched = result.step * config.all_scales()[0] / scale
        for seed in range(len(losses)):
            losses[seed, 0, c] = np.interp(stretched, result.step, losses[seed, 0, c])
    verdict, red = claim.judge(test_loss=losses)
    assert verdict in ("fails", "void")
    assert EXPONENT in red


def test_a_linearised_network_that_does_not_fit_is_void(claim):
    losses = np.maximum(claim.main.result.train_loss, 0.3)
    assert claim.judge(train_loss=losses)[0] == "void"
