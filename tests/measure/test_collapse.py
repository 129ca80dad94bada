import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamics import parallel
from dynamics.measure import class_statistics, collapse
from dynamics.theory import frames

COUNTS = (7, 3, 12, 5)
NUM_CLASSES = len(COUNTS)


def sample(seed=0, dim=9, counts=COUNTS, noise=0.5, dtype=np.float64):
    """Imbalanced Gaussian classes and a random classifier."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    means = rng.normal(size=(len(counts), dim))
    features = means[labels] + noise * rng.normal(size=(len(labels), dim))
    kernel, bias = rng.normal(size=(dim, len(counts))), rng.normal(size=len(counts))
    return features.astype(dtype), labels, kernel.astype(dtype), bias.astype(dtype)


def by_definition(features, labels, kernel, bias):
    """NC1 to NC4 and the variability ratio, class by class and sample by sample, in float64."""
    num_classes = kernel.shape[1]
    means = np.stack([features[labels == c].mean(axis=0) for c in range(num_classes)])
    centred = (means - means.mean(axis=0)).T  # (D, C)
    within = sum(
        np.outer(h - means[c], h - means[c]) for h, c in zip(features, labels, strict=True)
    )
    within = within / len(features)
    between = centred @ centred.T / num_classes
    target = (np.eye(num_classes) - 1 / num_classes) / np.sqrt(num_classes - 1)
    gram, alignment = centred.T @ centred, kernel.T @ centred
    by_distance = [np.argmin([np.linalg.norm(h - mean) for mean in means]) for h in features]
    by_logit = [np.argmax(h @ kernel + bias) for h in features]
    return (
        np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / num_classes,
        np.linalg.norm(gram / np.linalg.norm(gram) - target),
        np.linalg.norm(alignment / np.linalg.norm(alignment) - target),
        np.mean(np.array(by_distance) != np.array(by_logit)),
        np.trace(within) / np.trace(between),
    )


# Fewer classes than features, as many, and more.
@pytest.mark.parametrize("dim", [9, 4, 3, 2])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_definition(x64, seed, dim):
    features, labels, kernel, bias = sample(seed, dim)
    *expected, ratio = by_definition(features, labels, kernel, bias)
    found = collapse.neural_collapse(features, labels, kernel, bias, num_classes=NUM_CLASSES)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    found = collapse.within_between_ratio(features, labels, num_classes=NUM_CLASSES)
    np.testing.assert_allclose(found, ratio, rtol=1e-12)


def test_equals_the_definition_in_single_precision_far_from_the_origin():
    features, labels, kernel, bias = sample()
    *expected, _ = by_definition(features, labels, kernel, bias - 300 * kernel.sum(axis=0))
    far = (features + 300).astype(np.float32)
    found = collapse.neural_collapse(
        far, labels, kernel.astype(np.float32), jnp.float32(bias - 300 * kernel.sum(axis=0)),
        num_classes=NUM_CLASSES,
    )  # fmt: skip
    np.testing.assert_allclose(found[:3], expected[:3], rtol=2e-4)


@pytest.mark.parametrize("dim", [3, 4, 20])
@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_a_simplex_has_collapsed_in_direction_whatever_the_counts(x64, key, dim, spread):
    frame_key, noise_key = jax.random.split(key)
    frame = 2.5 * frames.simplex(NUM_CLASSES, dim, key=frame_key)
    labels = jnp.repeat(jnp.arange(NUM_CLASSES), jnp.array([4, 2, 8, 6]))
    noise = spread * jax.random.normal(noise_key, (10, dim))
    # Deviations in opposite pairs leave the class means where they are.
    noise = jnp.stack([noise, -noise], axis=1).reshape(20, dim)
    found = collapse.neural_collapse(
        frame[labels] + noise + 1.0, labels, 0.3 * frame.T,
        -0.3 * frame.sum(axis=1), num_classes=NUM_CLASSES,
    )  # fmt: skip
    np.testing.assert_allclose(found[1:3], 0, atol=1e-12)
    assert found.nc4 == 0
    # Σ_B is c²/(C-1) on the frame's span: the prediction needs no pseudo-inverse.
    project = frame.T @ frame / (2.5**2 * NUM_CLASSES / (NUM_CLASSES - 1))
    expected = jnp.mean(jnp.sum((noise @ project) ** 2, axis=1)) * (NUM_CLASSES - 1) / 2.5**2
    np.testing.assert_allclose(found.nc1, expected / NUM_CLASSES, atol=1e-12)


def test_frames_without_a_bias(x64, key):
    lengths = jnp.array([3.0, 2.0, 1.5, 1.0])
    basis = jax.random.orthogonal(key, 6)[:4]
    means, kernel = lengths[:, None] * basis, (basis / lengths[:, None]).T
    labels = jnp.tile(jnp.arange(4), 3)

    def measure(frame, scale=lengths):
        features = (means * (scale / lengths)[:, None])[labels]
        return collapse.neural_collapse(features, labels, kernel, num_classes=4, frame=frame)

    general = collapse.OrthogonalFrame(features=lengths**2, alignment=jnp.ones(4))
    np.testing.assert_allclose(measure(general), 0, atol=1e-12)
    assert measure("orthogonal").nc2 > 0.3
    equal = measure("orthogonal", scale=jnp.ones(4))
    np.testing.assert_allclose(equal[:2], 0, atol=1e-12)
    # A centred orthogonal frame is a simplex; that both are near means nothing without this.
    assert measure("simplex").nc2 > 0.3
    np.testing.assert_allclose(measure("simplex", scale=jnp.ones(4)).nc2, 0, atol=1e-12)


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10), shift=st.floats(-3, 3))
def test_rotations_scales_shifts_and_names_of_classes_do_not_matter(seed, scale, shift):
    features, labels, kernel, bias = sample(seed)
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(9, 9)))
    names = rng.permutation(NUM_CLASSES)  # new name of each class
    moved = scale * features @ rotation + shift
    moved_kernel = (rotation.T @ kernel / scale)[:, np.argsort(names)]
    moved_bias = bias[np.argsort(names)] - shift * moved_kernel.sum(axis=0)
    with jax.enable_x64(True):
        measure = lambda *arrays: collapse.neural_collapse(*arrays, num_classes=NUM_CLASSES)
        before = measure(features, labels, kernel, bias)
        after = measure(moved, names[labels], moved_kernel, moved_bias)
    np.testing.assert_allclose(after, before, rtol=1e-8)


@settings(max_examples=8)  # every length of batch compiles anew
@given(cuts=st.lists(st.integers(0, 27), max_size=5), seed=st.integers(0, 1000))
def test_batches_of_any_length_add_up(cuts, seed):
    features, labels, kernel, _ = sample(seed)
    edges = [0, *sorted(cuts), 27]
    with jax.enable_x64(True):
        state = class_statistics.empty(NUM_CLASSES, 9, jnp.float64)
        for begin, end in itertools.pairwise(edges):
            if begin < end:
                batch = features[begin:end], labels[begin:end]
                state = class_statistics.update(state, *batch)
        found = collapse.from_statistics(state, kernel)
        expected = collapse.neural_collapse(features, labels, kernel, num_classes=NUM_CLASSES)
    np.testing.assert_allclose(found, expected[:3], rtol=1e-10)
    np.testing.assert_array_equal(state.counts, COUNTS)


def test_streaming_equals_one_shot_in_single_precision(key):
    features, labels, kernel, bias = sample(counts=(400, 300, 250, 50), dtype=np.float32)
    state = class_statistics.empty(NUM_CLASSES, 9)
    for begin in range(0, 1000, 64):
        end = min(begin + 64, 1000)
        state = class_statistics.update(state, features[begin:end], labels[begin:end])
    found = collapse.from_statistics(state, kernel)
    disagreements = [
        len(block) * collapse.nearest_mean_disagreement(block, state.means, kernel, bias)
        for block in np.split(features, [100, 700])
    ]
    one_shot = collapse.neural_collapse(features, labels, kernel, bias, num_classes=NUM_CLASSES)
    np.testing.assert_allclose(found, one_shot[:3], rtol=1e-6)
    np.testing.assert_allclose(sum(disagreements) / 1000, one_shot.nc4, rtol=1e-6)


@pytest.mark.parametrize("entries", [9, 40, 100])
def test_blocks_do_not_matter(monkeypatch, entries):
    arrays = sample(dtype=np.float32)
    whole = collapse.neural_collapse(*arrays, num_classes=NUM_CLASSES)
    monkeypatch.setattr(class_statistics, "BLOCK_ENTRIES", entries)
    blocks = collapse.neural_collapse(*arrays, num_classes=NUM_CLASSES)
    np.testing.assert_allclose(blocks, whole, rtol=1e-5)


def test_an_ensemble_at_once_and_compiled():
    arrays = [sample(seed, dtype=np.float32) for seed in range(3)]
    measure = lambda *member: collapse.neural_collapse(*member, num_classes=NUM_CLASSES)
    together = jax.jit(jax.vmap(measure))(*(np.stack(part) for part in zip(*arrays, strict=True)))
    for index, member in enumerate(arrays):
        np.testing.assert_allclose([part[index] for part in together], measure(*member), rtol=1e-5)


def test_labels_known_inside_a_compiled_function_are_checked_there():
    features, labels, kernel, _ = sample(dtype=np.float32)
    labels = jnp.asarray(labels)
    measure = lambda labels: jax.jit(
        lambda features: collapse.neural_collapse(features, labels, kernel, num_classes=NUM_CLASSES)
    )
    expected = collapse.neural_collapse(features, labels, kernel, num_classes=NUM_CLASSES)
    np.testing.assert_allclose(measure(labels)(features), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="labels: from 1 to 4"):
        measure(labels + 1)(features)


def test_along_depth_takes_images_and_rows():
    features, labels, _, _ = sample(dtype=np.float32)
    noisy = features + np.random.default_rng(1).normal(size=features.shape).astype(np.float32)
    found = collapse.collapse_along_depth(
        [noisy.reshape(-1, 3, 3), features], labels, num_classes=NUM_CLASSES
    )
    assert found.nc1.shape == (2,)
    assert found.nc1[0] > found.nc1[1]
    last = collapse.feature_collapse(features, labels, num_classes=NUM_CLASSES)
    np.testing.assert_allclose([part[1] for part in found], last)
    means = np.stack([features[labels == c].mean(axis=0) for c in range(NUM_CLASSES)])
    nearest = np.argmin(np.linalg.norm(features[:, None] - means, axis=2), axis=1)
    np.testing.assert_allclose(last.nearest_mean_error, np.mean(nearest != labels), rtol=1e-6)


def test_where_nothing_tells_classes_apart_there_is_no_number():
    labels = np.arange(8) % 4
    found = collapse.neural_collapse(np.ones((8, 9)), labels, np.ones((9, 4)), num_classes=4)
    assert all(np.isnan(part) for part in found[:3])


def test_an_empty_class_raises_or_is_nan_where_nothing_can_be_raised():
    features, labels, kernel, _ = sample(dtype=np.float32)
    labels = np.where(labels == 2, 1, labels)
    with pytest.raises(ValueError, match="no sample of class 2"):
        collapse.neural_collapse(features, labels, kernel, num_classes=NUM_CLASSES)
    measure = jax.jit(lambda *a: collapse.neural_collapse(*a, num_classes=NUM_CLASSES))
    assert all(np.isnan(part) for part in measure(features, labels, kernel)[:3])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (dict(features=np.ones(4)), ValueError, "features has shape"),
        (dict(features=np.ones((0, 9)), labels=np.ones(0, int)), ValueError, "features has shape"),
        (dict(features=np.ones((27, 9), int)), TypeError, "features: type"),
        (dict(labels=np.zeros(5, int)), ValueError, "labels has shape"),
        (dict(labels=np.full(27, 4)), ValueError, "labels: from 4 to 4"),
        (dict(labels=np.full(27, -1)), ValueError, "labels: from -1 to -1"),
        (dict(labels=np.zeros(27)), TypeError, "labels: type"),
        (dict(kernel=np.ones((4, 9))), ValueError, r"kernel: shape \(4, 9\); give \(D, C\)"),
        (dict(kernel=np.ones((9, 4), int)), TypeError, "kernel: type"),
        (dict(bias=np.ones(3)), ValueError, "bias has shape"),
        (dict(num_classes=1), ValueError, "num_classes=1"),
        (dict(frame="etf"), ValueError, "frame='etf'"),
        (
            dict(frame=collapse.OrthogonalFrame(np.ones(3), np.ones(3))),
            ValueError,
            "frame: lengths of shapes",
        ),
    ],
)
def test_what_cannot_be_is_named(change, error, words):
    features, labels, kernel, bias = sample()
    arguments = dict(features=features, labels=labels, kernel=kernel, bias=bias, num_classes=4)
    with pytest.raises(error, match=words):
        collapse.neural_collapse(**{**arguments, **change})


def test_other_calls_that_cannot_be():
    features, labels, kernel, _ = sample()
    with pytest.raises(ValueError, match="give at least one layer"):
        collapse.collapse_along_depth([], labels, num_classes=4)
    with pytest.raises(ValueError, match="as in features"):
        collapse.nearest_mean_disagreement(features, np.ones((4, 8)), kernel)
    with pytest.raises(ValueError, match="num_classes=1"):
        class_statistics.empty(1, 9)
    with pytest.raises(ValueError, match="second: class means of shape"):
        class_statistics.merge(class_statistics.empty(4, 9), class_statistics.empty(4, 8))
    with pytest.raises(ValueError, match="no sample of class 0, 1, 2, 3"):
        collapse.from_statistics(class_statistics.empty(4, 9), kernel)


def test_statistics_of_shares_on_several_devices_are_those_of_all(x64):
    random = np.random.default_rng(3)
    features, labels = random.normal(size=(11, 4)) + 100, np.arange(11) % 3
    filled = np.append(labels, 3)  # a sample of no class fills the last of four shares
    shares = np.append(features, features[:1], axis=0).reshape(4, 3, 4), filled.reshape(4, 3)
    share = lambda data: class_statistics.class_statistics(*data, num_classes=3)
    found = class_statistics.merge_all(parallel.ensemble(share, shares))
    means = np.array([features[labels == label].mean(axis=0) for label in range(3)])
    deviations = features - means[labels]
    np.testing.assert_allclose(found.counts, [4, 4, 3])
    np.testing.assert_allclose(found.means, means, rtol=1e-12)
    np.testing.assert_allclose(found.scatter, deviations.T @ deviations, rtol=1e-10)
