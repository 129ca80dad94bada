"""Thresholds against the spectral radius of each optimiser's own recursion."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.theory import stability


def growth(optimiser, rate, momentum, curvature):
    """Spectral radius of one step on curvature x²/2, its second moment held where it is."""
    heavy = {"gradient descent": 0, "rmsprop": 0, "adam": 0}.get(optimiser, momentum)
    if optimiser == "adam":  # m' = βm + (1 - β)λx, x' = x - ηm'
        b, c = momentum, (1 - momentum) * curvature
        matrix = [[1 - rate * c, -rate * b], [c, b]]
    elif optimiser == "nesterov":  # v' = βv + g, x' = x - η(g + βv')
        b, c = momentum, curvature
        matrix = [[1 - rate * (1 + b) * c, -rate * b * b], [c, b]]
    else:
        matrix = [[1 - rate * curvature, -rate * heavy], [curvature, heavy]]
    return np.max(np.abs(np.linalg.eigvals(matrix)))


@given(
    optimiser=st.sampled_from(stability.OPTIMISERS),
    rate=st.floats(0.01, 10),
    momentum=st.floats(0.05, 0.95),
)
def test_below_the_threshold_steps_shrink_and_above_they_grow(optimiser, rate, momentum):
    without = optimiser in ("gradient descent", "rmsprop")
    momentum = 0.0 if without else momentum
    edge = stability.stability_threshold(optimiser, rate, *([] if without else [momentum]))
    assert growth(optimiser, rate, momentum, 0.999 * edge) < 1
    assert growth(optimiser, rate, momentum, 1.001 * edge) > 1


@pytest.mark.parametrize(
    ("optimiser", "make"),
    [
        ("gradient descent", lambda rate: optax.sgd(rate)),
        ("momentum", lambda rate: optax.sgd(rate, momentum=0.8)),
        ("nesterov", lambda rate: optax.sgd(rate, momentum=0.8, nesterov=True)),
    ],
)
def test_optax_diverges_on_the_other_side(optimiser, make):
    """The library's own optimisers, step by step."""
    momentum = [] if optimiser == "gradient descent" else [0.8]
    edge = stability.stability_threshold(optimiser, 0.5, *momentum)
    ends = []
    for curvature in (0.98 * edge, 1.02 * edge):
        optimiser_of = make(0.5)
        x, state = jnp.array(1.0), optimiser_of.init(jnp.array(1.0))
        for _ in range(400):
            update, state = optimiser_of.update(curvature * x, state, x)
            x = x + update
        ends.append(abs(float(x)))
    assert ends[0] < 0.1
    assert ends[1] > 10


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("sgdm", 0.1), "optimiser='sgdm'"), (("gradient descent", 0.1, 0.9), "momentum=0.9"),
     (("rmsprop", 0.1, 0.9), "momentum=0.9")],
)  # fmt: skip
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        stability.stability_threshold(*arguments)
