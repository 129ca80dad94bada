"""The block on counts against the same block on the tokens, one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.models import token_counts


def layer_norm(x):
    return (x - x.mean(axis=-1, keepdims=True)) / x.std(axis=-1, keepdims=True)


def by_token(params, tokens, norm):
    """The logits (T, C) of every token of one sequence, in numpy."""
    p = token_counts.Block(*(np.asarray(leaf, dtype=float) for leaf in params))
    x = p.embedding[tokens]
    normed = norm(x)
    scores = (normed @ p.query) @ (normed @ p.key).T / np.sqrt(x.shape[1])
    weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    x = x + weights @ (normed @ p.value) @ p.output
    hidden = np.maximum(layer_norm(x) @ p.hidden[:-1] + p.hidden[-1], 0)
    x = x + hidden @ p.back[:-1] + p.back[-1]
    return x @ p.embedding.T


@pytest.mark.parametrize(
    ("norm", "reference"),
    [
        (token_counts.Norm(), layer_norm),
        (token_counts.Norm(project=0), lambda x: x / np.sqrt((x**2).mean(-1, keepdims=True))),
        (
            token_counts.Norm(project=0, scale=1 / 6),
            lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True) / 6**0.5,
        ),
        (token_counts.Norm(project=0, divide=0), lambda x: x),
    ],
)
def test_against_every_token(key, norm, reference):
    params = token_counts.init(key, num_classes=5, width=6, hidden=7)
    tokens = np.array([[0, 3, 3, 1, 0, 3], [4, 4, 4, 4, 4, 2]])
    counts = np.stack([np.bincount(row, minlength=5) for row in tokens])
    found = np.asarray(token_counts.apply(params, counts, norm))
    for row, logits in zip(tokens, found, strict=True):
        np.testing.assert_allclose(logits[row], by_token(params, row, reference), atol=2e-5)


def test_attention_sums_to_one_and_skips_the_absent(key):
    params = token_counts.init(key, num_classes=4, width=3, hidden=2)
    weights = token_counts.attention(params, jnp.array([[3, 0, 1, 2]]), token_counts.Norm())
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
    assert not weights[..., 1].any()
    alike = params._replace(query=0 * params.query)
    weights = token_counts.attention(alike, jnp.array([[3, 0, 1, 2]]), token_counts.Norm())
    np.testing.assert_allclose(weights[0], np.tile([0.5, 0, 1 / 6, 1 / 3], (4, 1)), rtol=1e-6)


def test_the_start_is_that_of_torch(key):
    params = token_counts.init(key, num_classes=300, width=64, hidden=40)
    assert params.embedding.std() == pytest.approx(1, rel=0.02)
    for leaf, bound in [(params.query, (6 / 256) ** 0.5), (params.key, (6 / 256) ** 0.5),
                        (params.value, (6 / 256) ** 0.5), (params.output, 1 / 8),
                        (params.hidden, 1 / 8), (params.back, 40**-0.5)]:  # fmt: skip
        assert jnp.abs(leaf).max() == pytest.approx(bound, rel=0.02)
        assert leaf.std() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert params.hidden.shape == (65, 40)
    assert params.back.shape == (41, 64)
    assert jax.tree.all(jax.tree.map(lambda leaf: bool(jnp.isfinite(leaf).all()), params))
