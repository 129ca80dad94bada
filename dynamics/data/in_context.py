"""Prompts for in-context learning: linear regression and linear dynamical systems."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from dynamics.aliases import Array, Key


class RegressionPrompts(NamedTuple):
    """A batch of regression tasks, each with its context and one query."""

    inputs: Array  # (B, N, D)
    targets: Array  # (B, N)
    query: Array  # (B, D)
    answer: Array  # (B,) without noise
    weights: Array  # (B, D)

    def tokens(self) -> Array:
        """Return (B, N + 1, D + 1): rows (x, y), the query last with 0 in the place of y."""
        query = jnp.concatenate([self.query, jnp.zeros_like(self.answer)[:, None]], axis=-1)
        context = jnp.concatenate([self.inputs, self.targets[..., None]], axis=-1)
        return jnp.concatenate([context, query[:, None]], axis=1)


def linear_regression(
    key: Key,
    num_tasks: int,
    num_context: int,
    dim: int,
    *,
    inputs: Literal["gaussian", "uniform"] = "gaussian",
    eigenvalues: Array | None = None,
    noise_std: float = 0.0,
) -> RegressionPrompts:
    """Return prompts y = w·x + noise with w ~ N(0, I) for each task.

    Args:
        key: of everything.
        num_tasks: B.
        num_context: N, examples before the query.
        dim: D.
        inputs: "gaussian" for N(0, 1) entries, "uniform" for U(-1/2, 1/2) ones.
        eigenvalues: (D,) factors on the variance of each coordinate, for ill-conditioned inputs.
        noise_std: of the context's targets; the answer has none.

    Raises:
        ValueError: a size below 1, an unknown kind of inputs, eigenvalues of another shape.
    """
    if min(num_tasks, num_context, dim) < 1:
        message = f"num_tasks={num_tasks}, num_context={num_context}, dim={dim}: at least 1 each"
        raise ValueError(message)
    if inputs not in ("gaussian", "uniform"):
        message = f"inputs={inputs!r}: choose gaussian or uniform"
        raise ValueError(message)
    scales = jnp.ones(dim) if eigenvalues is None else jnp.sqrt(jnp.asarray(eigenvalues))
    if scales.shape != (dim,):
        message = f"eigenvalues has shape {scales.shape}; give ({dim},)"
        raise ValueError(message)
    input_key, weight_key, noise_key = jax.random.split(key, 3)
    shape = (num_tasks, num_context + 1, dim)
    if inputs == "gaussian":
        x = jax.random.normal(input_key, shape)
    else:
        x = jax.random.uniform(input_key, shape, minval=-0.5, maxval=0.5)
    x = scales * x
    weights = jax.random.normal(weight_key, (num_tasks, dim))
    y = jnp.einsum("bnd,bd->bn", x, weights)
    noise = noise_std * jax.random.normal(noise_key, (num_tasks, num_context))
    return RegressionPrompts(x[:, :-1], y[:, :-1] + noise, x[:, -1], y[:, -1], weights)


def linear_dynamical_system(
    key: Key, num_tasks: int, num_steps: int, dim: int, *, noise_std: float = 0.0
) -> tuple[Array, Array]:
    """Return states (B, T, D) of s' = W s + noise and W (B, D, D), orthogonal for each task.

    The first state is drawn from N(0, I); orthogonal W keep its length.

    Raises:
        ValueError: a size below 1.
    """
    if min(num_tasks, num_steps, dim) < 1:
        message = f"num_tasks={num_tasks}, num_steps={num_steps}, dim={dim}: at least 1 each"
        raise ValueError(message)
    matrix_key, start_key, noise_key = jax.random.split(key, 3)
    matrices = jax.random.orthogonal(matrix_key, dim, (num_tasks,))
    start = jax.random.normal(start_key, (num_tasks, dim))
    noise = noise_std * jax.random.normal(noise_key, (num_steps - 1, num_tasks, dim))

    def step(state: Array, shock: Array) -> tuple[Array, Array]:
        state = jnp.einsum("bij,bj->bi", matrices, state) + shock
        return state, state

    _, states = jax.lax.scan(step, start, noise)
    return jnp.concatenate([start[None], states]).swapaxes(0, 1), matrices
