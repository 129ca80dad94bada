import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.measure import frames as measured
from dynamics.theory import frames


@given(
    num_classes=st.sampled_from([2, 3, 7]), extra=st.sampled_from([0, 3]), seed=st.integers(0, 100)
)
def test_a_simplex_is_what_it_says(num_classes, extra, seed):
    dim = num_classes - 1 + extra
    with jax.enable_x64(True):
        frame = frames.simplex(num_classes, dim, key=jax.random.key(seed) if seed else None)
        cosines = np.array(frame @ frame.T)
        np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-12)
        off = cosines[~np.eye(num_classes, dtype=bool)]
        np.testing.assert_allclose(off, -1 / (num_classes - 1), atol=1e-12)
        np.testing.assert_allclose(measured.equiangularity(3 * frame), 0, atol=1e-12)
        np.testing.assert_allclose(measured.equinorm(3 * frame), 0, atol=1e-12)


# Equiangular tight frames that exist: three and six lines at one angle, and the simplex itself.
ICOSAHEDRON = (1 + 5**0.5) / 2
SIX_LINES = np.array(
    [(0, 1, s * ICOSAHEDRON) for s in (1, -1)]
    + [(1, s * ICOSAHEDRON, 0) for s in (1, -1)]
    + [(s * ICOSAHEDRON, 0, 1) for s in (1, -1)]
)
THREE_LINES = np.stack([np.cos(np.pi * np.arange(3) / 3), np.sin(np.pi * np.arange(3) / 3)], axis=1)


@pytest.mark.parametrize("lines", [THREE_LINES, SIX_LINES])
def test_equiangular_tight_frames_attain_the_bound(x64, lines):
    np.testing.assert_allclose(measured.coherence(lines), frames.welch_bound(*lines.shape))


@given(num=st.integers(2, 12), dim=st.integers(1, 6), seed=st.integers(0, 1000))
def test_nothing_comes_below_the_bound(num, dim, seed):
    vectors = np.random.default_rng(seed).normal(size=(num, dim))
    with jax.enable_x64(True):
        assert measured.coherence(vectors) >= frames.welch_bound(num, dim) - 1e-12


def test_measures_by_hand(x64):
    vectors = np.array([[1.0, 0], [0, 2], [3, 3]])  # cosines 0, and twice 1/sqrt(2)
    np.testing.assert_allclose(measured.coherence(vectors), 0.5**0.5)
    np.testing.assert_allclose(measured.equiangularity(vectors), np.std([0, 0.5**0.5, 0.5**0.5]))
    lengths = [1, 2, 18**0.5]
    np.testing.assert_allclose(measured.equinorm(vectors), np.std(lengths) / np.mean(lengths))


def test_what_cannot_be_is_named():
    with pytest.raises(ValueError, match="vectors: shape"):
        measured.coherence(np.ones((1, 3)))
    with pytest.raises(ValueError, match="num_vectors=1"):
        frames.welch_bound(1, 3)
    with pytest.raises(ValueError, match="num_classes=5, dim=3"):
        frames.simplex(5, 3)
