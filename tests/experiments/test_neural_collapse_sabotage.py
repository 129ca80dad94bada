"""Take the mechanism of neural collapse away, and the verdict turns red; and the published size."""

import jax
import numpy as np
import pytest

from experiments import catalogue

NAME = "experiments/collapse/neural_collapse_of_a_trained_network"
pytestmark = [pytest.mark.claims, pytest.mark.smoke_run_of(NAME), pytest.mark.timeout(900)]


def swapped(part, setting):
    """Return the metrics with those of cross-entropy replaced by another setting's."""
    names = part.config.conditions
    here, there = (names.index(f"mlp: {name}") for name in ("cross-entropy", setting))
    metrics = {}
    for name in ("nc1", "nc2", "nc3", "nc4"):
        values = getattr(part.result, name).copy()
        values[:, here] = values[:, there]
        metrics[name] = values
    return metrics


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


@pytest.mark.parametrize(
    ("setting", "red"),
    [
        ("no decay", {"NC1 at the end / at zero error", "NC2 at the end", "NC3 at the end"}),
        ("frozen features", {"NC1 at the end / at zero error", "NC2 at the end / at zero error",
                             "NC2 at the end", "NC3 at the end", "NC4 at the end"}),
        ("mixup", {"NC1 at the end / at zero error"}),
    ],
)  # fmt: skip
def test_a_run_without_the_mechanism_is_no_collapse(claim, setting, red):
    verdict, found = claim.judge(**swapped(claim.main, setting))
    assert verdict == "fails"
    assert red <= found


def test_a_network_that_never_fits_is_void(claim):
    error = claim.main.result.train_error
    verdict, red = claim.judge(train_error=np.maximum(error, 0.01))
    assert verdict == "void"
    assert "zero training error reached, share of the run" in red


def test_a_divergence_is_void(claim):
    nc1 = claim.main.result.nc1.copy()
    nc1[0, 1, 5:] = np.nan
    assert claim.judge(nc1=nc1)[0] == "void"


def test_decay_that_is_dropped_turns_the_run_red():
    """Not another column of the same run, but the protocol itself without its decay."""
    (entry,) = catalogue.find([NAME])
    experiment = catalogue.load(entry)
    config = experiment.configure("smoke", dict(weight_decay=0.0, mlp_steps=300, num_seeds=1))
    result = jax.tree.map(np.asarray, experiment.run(config))
    red = {check.name for check in experiment.check(config, result) if not check.passed}
    assert {"NC1 at the end / at zero error", "NC2 at the end"} <= red


def test_the_published_protocol_runs_on_small_files(tmp_path):
    """ResNet, minibatches, running statistics and pmap, at a size that a laptop can bear."""
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        labels = np.tile(np.arange(10, dtype=np.uint8), 2)[:, None]
        (tmp_path / f"{name}.bin").write_bytes(np.hstack([labels, pixels]).tobytes())
    (entry,) = catalogue.find([NAME])
    experiment = catalogue.load(entry)
    small = dict(data_dir=str(tmp_path), num_images=40, batch_size=20, convnet_steps=12,
                 resnet_width=2, resnet_stages=(1, 1), num_times=2, num_seeds=2,
                 conditions=("resnet: cross-entropy", "resnet: no decay", "resnet: mixup",
                             "resnet: frozen features"))  # fmt: skip
    config = experiment.configure("paper", small)
    result = experiment.run(config)
    assert result.step.tolist() == [[10, 12]] * 4
    assert result.nc1.shape == (2, 4, 2)
    assert np.isfinite(result.nc2).all()
    np.testing.assert_allclose(result.nc2[:, 3, 0], result.nc2[:, 3, 1], rtol=0.2)
