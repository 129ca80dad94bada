"""The direction of saturated attention against automatic differentiation and fifty digits."""

import decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.models import saturated_attention


def draw(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape))


def cosine(a, b):
    return float(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))


def exact(logits, scores):
    """Return -∂L/∂logits of every sequence by decimal arithmetic, by the largest entry."""
    decimal.getcontext().prec = 60
    rows = []
    for row, worth in zip(logits.tolist(), scores.tolist(), strict=True):
        top = max(row)
        weights = [(decimal.Decimal(x) - decimal.Decimal(top)).exp() for x in row]
        attention = [w / sum(weights) for w in weights]
        worth = [decimal.Decimal(s) for s in worth]
        answer = sum(p * s for p, s in zip(attention, worth, strict=True))
        factor = 1 / (1 + answer.exp())
        pairs = lambda t, attention=attention, worth=worth: sum(
            attention[t] * p * (worth[t] - s) for p, s in zip(attention, worth, strict=True)
        )
        rows.append([factor * pairs(t) for t in range(len(row))])
    largest = max(abs(x) for row in rows for x in row)
    return np.array([[float(x / largest) for x in row] for row in rows])


def test_it_points_where_the_gradient_does(x64):
    logits, scores = draw(2, 4, 5)

    def loss(logits):
        return jnp.sum(jnp.log1p(jnp.exp(-jnp.sum(jax.nn.softmax(logits) * scores, axis=1))))

    direction = saturated_attention.descent_direction(logits, scores)
    assert cosine(direction, -jax.grad(loss)(logits)) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("gap", [1.0, 40.0, 900.0, 5000.0])
def test_against_sixty_digits_at_any_gap(x64, gap):
    scores = draw(3, 4)
    logits = gap * jnp.array([[1.0, 0, 0.01, -1], [0, 1.2, 0.2, 0.21], [0.3, 0, 0.2, 1.01]])
    direction = saturated_attention.descent_direction(logits, scores)
    expected = exact(np.asarray(logits), np.asarray(scores))
    np.testing.assert_allclose(
        direction / np.abs(direction).max(), expected, rtol=1e-10, atol=1e-15
    )


def test_a_shift_of_the_logits_changes_nothing(x64):
    logits, scores = draw(2, 3, 6)
    found = [
        saturated_attention.descent_direction(100 * logits + shift, scores) for shift in (0.0, 64.0)
    ]
    np.testing.assert_allclose(*found, rtol=1e-10)


def test_tokens_of_equal_worth_do_not_hide_the_others(x64):
    """Attention is on two worthless tokens, and what is left of the third is e^-2000."""
    direction = saturated_attention.descent_direction(
        jnp.array([[2000.0, 2000.0, 0.0]]), jnp.array([[-1.0, -1.0, 1.0]])
    )
    np.testing.assert_allclose(direction / direction.max(), [[-0.5, -0.5, 1]], rtol=1e-12)
