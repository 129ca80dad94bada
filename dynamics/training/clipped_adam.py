"""Adam behind a clipped gradient, its learning rate falling to zero: made for attention."""

import optax

from dynamics import arguments


def clipped_adam(
    learning_rate: float, num_steps: int, *, clip: float, b2: float = 0.98
) -> optax.GradientTransformation:
    """Return Adam with a constant learning rate for half of the steps, then falling to zero.

    Args:
        learning_rate: of the first half.
        num_steps: of the whole run; zero is reached at the last.
        clip: largest global norm of the gradient. In-context losses are polynomials of the weights
            of high degree, and a rare batch is steep.
        b2: decay of the second moment; 0.98, shorter than Adam's own, forgets such a batch sooner.

    Raises:
        ValueError: `num_steps` below 2, a negative `learning_rate`, `clip` not positive, or `b2`
            outside [0, 1].

    References:
        von Oswald et al. 2023, arXiv:2212.07677, appendix A.12 (clip, b2).

    Example:
        >>> import jax.numpy as jnp
        >>> optimiser = clipped_adam(0.1, 10, clip=1.0)
        >>> update, _ = optimiser.update(jnp.array(5.0), optimiser.init(jnp.array(1.0)))
        >>> print(f"{update:.5f}")
        -0.10000
    """
    arguments.not_negative(learning_rate=learning_rate)
    arguments.integers(2, num_steps=num_steps)
    arguments.positive(clip=clip)
    arguments.fractions(b2=b2)
    half = num_steps // 2
    falling = optax.linear_schedule(learning_rate, 0.0, num_steps - half)
    schedule = optax.join_schedules([optax.constant_schedule(learning_rate), falling], [half])
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(schedule, b2=b2, eps=1e-9))
