"""The laziness claim turns red where nothing becomes lazier, and where the curves are tampered."""

import jax
import numpy as np
import pytest

from experiments import catalogue, checks

(ENTRY,) = catalogue.find(["*/grokking/grok_delay_grows_with_laziness"])
RATIO = "growth of the ratio from smallest to largest α, median"
GAP = "exponent of the gap in kernel time against α, median"


@pytest.fixture(scope="module")
def experiment():
    return catalogue.load(ENTRY)


@pytest.fixture(scope="module")
def smoke(experiment):
    """The configuration and arrays of a smoke run with few seeds."""
    return run(experiment, num_seeds=3)


def run(experiment, **overrides):
    config = experiment.configure("smoke", overrides)
    with jax.enable_x64(True):
        return config, jax.tree.map(np.asarray, experiment.run(config))


def claims(experiment, config, result):
    with np.errstate(all="ignore"):  # as in a verdict
        found = experiment.check(config, result)
    return found, {check.name: check for check in found if check.role == "claim"}


def test_the_smoke_run_holds(experiment, smoke):
    found, _ = claims(experiment, *smoke)
    assert checks.verdict(found) == "holds", [check for check in found if not check.passed]


def test_red_where_the_output_scale_is_fixed(experiment):
    """Red on the side the control names, with finite numbers and every precondition met."""
    control = experiment.controls["output scale fixed"]
    config, result = run(experiment, num_seeds=3, **control.overrides)
    found, by_name = claims(experiment, config, result)
    assert checks.verdict(found) == "fails"
    for name in control.breaks:
        assert np.isfinite(by_name[name].measured)
        assert by_name[name].measured < by_name[name].lower


def test_red_where_the_scales_are_shuffled(experiment, smoke):
    """The same curves told in the opposite order of laziness."""
    config, result = smoke
    order = [2, 1, 0, 3, 4]
    shuffled = result._replace(
        train_loss=result.train_loss[:, :, order], test_loss=result.test_loss[:, :, order]
    )
    _, by_name = claims(experiment, config, shuffled)
    assert not by_name[RATIO].passed
    assert not by_name[GAP].passed


def test_red_where_generalisation_is_not_late(experiment, smoke):
    config, result = smoke
    found, _ = claims(experiment, config, result._replace(test_loss=result.train_loss))
    assert checks.verdict(found) == "fails"


def test_red_where_the_laziest_never_generalises(experiment, smoke):
    """A gap without end is not slower than α², at whatever step the run was cut."""
    config, result = smoke
    loss = result.test_loss.copy()
    loss[:, 0, 2] = np.maximum(loss[:, 0, 2], 0.9)
    _, by_name = claims(experiment, config, result._replace(test_loss=loss))
    assert by_name[GAP].measured > by_name[GAP].upper


def test_red_where_a_strong_kernel_does_as_well_as_a_weak_one(experiment, smoke):
    """Late as the others are at that output scale, but no later."""
    config, result = smoke
    loss = result.test_loss.copy()
    loss[:, 0, 2] = loss[:, 0, 3]
    found, _ = claims(experiment, config, result._replace(test_loss=loss))
    red = {check.name for check in found if not check.passed}
    assert "test loss with a strong kernel over that with a weak one, median" in red


def test_red_where_the_gap_grows_only_with_few_samples(experiment, smoke):
    """With many samples every scale takes the same time, and so the same number of steps."""
    config, result = smoke
    losses = {name: getattr(result, name).copy() for name in ("train_loss", "test_loss")}
    for loss in losses.values():
        loss[:, 1, :3] = loss[:, 1, :1]
    found, _ = claims(experiment, config, result._replace(**losses))
    red = {check.name for check in found if not check.passed}
    assert "exponent of the gap in kernel time against α, many samples, median" in red


def test_void_where_the_losses_diverge(experiment, smoke):
    config, result = smoke
    losses = result.train_loss.copy()
    losses[0, 0, 0, 30:] = np.nan
    found, _ = claims(experiment, config, result._replace(train_loss=losses))
    assert checks.verdict(found) == "void"
