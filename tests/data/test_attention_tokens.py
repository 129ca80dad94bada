"""Tokens on the unit sphere, and the scores of a head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.data import attention_tokens


def test_the_scores_are_those_of_one_unit_head(key):
    """Solved for from more tokens than dimensions, it has length one and labels of both signs."""
    data = attention_tokens.token_selection(key, 20, 6, 4)
    for array in (data.tokens, data.queries):
        np.testing.assert_allclose(jnp.linalg.norm(array, axis=-1), 1, rtol=1e-5)
    heads = np.array([
        np.linalg.lstsq(x, s, rcond=None)[0]
        for x, s in zip(np.asarray(data.tokens), np.asarray(data.scores), strict=True)
    ])  # fmt: skip
    labels = np.sign(heads @ heads[0])
    np.testing.assert_allclose(labels[:, None] * heads, np.tile(heads[0], (20, 1)), atol=1e-4)
    assert np.linalg.norm(heads[0]) == pytest.approx(1, rel=1e-4)
    assert set(labels) == {1.0, -1.0}


def test_one_relevant_token(key):
    data = attention_tokens.token_selection(key, 3, 4, 2, head="one relevant")
    other = attention_tokens.token_selection(key, 3, 4, 2)
    np.testing.assert_array_equal(data.tokens, other.tokens)
    np.testing.assert_array_equal(data.scores, np.tile([1, -1, -1, -1], (3, 1)))


@pytest.mark.parametrize(
    ("sizes", "head", "name"),
    [((0, 2, 2), "random", "num_sequences=0"), ((1, 1, 2), "random", "num_tokens=1"),
     ((1, 2, 0), "random", "dim=0"), ((1, 2, 2), "best", "head='best'")],
)  # fmt: skip
def test_wrong_arguments_are_named(sizes, head, name):
    with pytest.raises(ValueError, match=name):
        attention_tokens.token_selection(jax.random.key(0), *sizes, head=head)


def test_the_majority_leads_by_its_margin(key):
    counts, majority = attention_tokens.majority_counts(key, 500, 20, 8, margin=4)
    ordered = np.sort(counts, axis=1)
    assert (ordered[:, -1] - ordered[:, -2]).min() == 4
    np.testing.assert_array_equal(counts.argmax(axis=1), majority)
    assert set(counts.sum(axis=1).tolist()) == {20}
    share = np.bincount(majority, minlength=8) / 500
    assert np.abs(share - 1 / 8).max() < 5 * (1 / 8 / 500) ** 0.5


@pytest.mark.parametrize("sizes", [(1, 5, 2, 6), (1, 5, 2, 0), (0, 5, 2, 1)])
def test_impossible_majorities_are_named(sizes):
    *sizes, margin = sizes
    with pytest.raises(ValueError, match="give"):
        attention_tokens.majority_counts(jax.random.key(0), *sizes, margin=margin)
