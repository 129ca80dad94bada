"""Prompts for in-context learning: linear regression, dynamical systems, labelled images."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import arguments
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


class FewShotPrompts(NamedTuple):
    """A batch of prompts of labelled images, each with labels of its own and one query."""

    inputs: Array  # (B, N, D)
    labels: Array  # (B, N) int32, from 0 to num_ways - 1
    query: Array  # (B, D)
    answer: Array  # (B,) int32
    classes: Array  # (B, W) int32, which class of the data has label 0, 1, ...

    def tokens(self) -> Array:
        """Return (B, N + 1, D + W): rows (x, one-hot label), the query last with zeros there."""
        num_ways = self.classes.shape[1]
        shown = jax.nn.one_hot(self.labels, num_ways, dtype=self.inputs.dtype)
        context = jnp.concatenate([self.inputs, shown], axis=-1)
        query = jnp.pad(self.query, ((0, 0), (0, num_ways)))
        return jnp.concatenate([context, query[:, None]], axis=1)


def linear_regression(
    key: Key,
    num_tasks: int,
    num_context: int,
    dim: int,
    *,
    inputs: Literal["gaussian", "uniform"] = "gaussian",
    eigenvalues: Array | None = None,
    query_eigenvalues: Array | None = None,
    input_mean: Array | None = None,
    task_mean: Array | None = None,
    task_std: float = 1.0,
    noise_std: float | Array = 0.0,
) -> RegressionPrompts:
    """Return prompts y = w·x + noise with w ~ N(task_mean, task_std² I) for each task.

    A network trained on one setting and tested on another meets one of the shifts that the field
    tells apart: in the covariates (`eigenvalues`, `input_mean`, `inputs`), in the query alone
    (`query_eigenvalues`), in the task (`task_mean`, `task_std`), in the noise (`noise_std`). With
    the same key all of them are the same draws, moved or scaled.

    Args:
        key: of everything.
        num_tasks: B.
        num_context: N, examples before the query.
        dim: D.
        inputs: "gaussian" for N(0, 1) entries, "uniform" for U(-1/2, 1/2) ones.
        eigenvalues: (D,) factors on the variance of each coordinate, for ill-conditioned inputs.
        query_eigenvalues: (D,) the same for the query alone; those of the context where None.
        input_mean: (D,) added to context and query.
        task_mean: (D,) of the weights.
        task_std: of each weight.
        noise_std: of the context's targets, one number or (B,), one a task; the answer has none.

    Raises:
        ValueError: a size below 1, an unknown kind of inputs, an option of another shape, a
            negative eigenvalue or standard deviation.

    References:
        Zhang, Frei and Bartlett 2024, arXiv:2306.09927, section 4 (task, query, covariate shift).
    """
    arguments.keys(key=key)
    arguments.counts(num_tasks=num_tasks, num_context=num_context, dim=dim)
    arguments.choices(("gaussian", "uniform"), inputs=inputs)
    arguments.not_negative(
        eigenvalues=0 if eigenvalues is None else eigenvalues,
        query_eigenvalues=0 if query_eigenvalues is None else query_eigenvalues,
        task_std=task_std,
        noise_std=noise_std,
    )
    scales = jnp.sqrt(_vector("eigenvalues", eigenvalues, dim, jnp.ones(dim)))
    query_scales = jnp.sqrt(_vector("query_eigenvalues", query_eigenvalues, dim, scales**2))
    if jnp.shape(noise_std) not in ((), (num_tasks,)):
        message = f"noise_std has shape {jnp.shape(noise_std)}; give () or ({num_tasks},)"
        raise ValueError(message)
    input_key, weight_key, noise_key = jax.random.split(key, 3)
    shape = (num_tasks, num_context + 1, dim)
    if inputs == "gaussian":
        x = jax.random.normal(input_key, shape)
    else:
        x = jax.random.uniform(input_key, shape, minval=-0.5, maxval=0.5)
    x = jnp.concatenate([scales * x[:, :-1], query_scales * x[:, -1:]], axis=1)
    x = x + _vector("input_mean", input_mean, dim, jnp.zeros(dim))
    weights = task_std * jax.random.normal(weight_key, (num_tasks, dim))
    weights = weights + _vector("task_mean", task_mean, dim, jnp.zeros(dim))
    y = jnp.einsum("bnd,bd->bn", x, weights)
    drawn = jax.random.normal(noise_key, (num_tasks, num_context))
    noise = jnp.broadcast_to(noise_std, (num_tasks,))[:, None] * drawn
    return RegressionPrompts(x[:, :-1], y[:, :-1] + noise, x[:, -1], y[:, -1], weights)


def linear_dynamical_system(
    key: Key,
    num_tasks: int,
    num_steps: int,
    dim: int,
    *,
    noise_std: float = 0.0,
    singular_values: tuple[float, float] | None = None,
) -> tuple[Array, Array]:
    """Return states (B, T, D) of s' = W s + noise and W (B, D, D), one for each task.

    The first state is drawn from N(0, I). W is a Haar orthogonal matrix, which keeps lengths, or
    with `singular_values` U S V^T with U and V such matrices, which below 1 contracts.

    Args:
        key: of everything.
        num_tasks: B.
        num_steps: T, states of a sequence.
        dim: D.
        noise_std: added to each entry of each state after the first.
        singular_values: (smallest, largest) of W, drawn uniformly between; None for orthogonal W.

    Raises:
        ValueError: a size below 1; `singular_values` negative or falling.
    """
    arguments.keys(key=key)
    arguments.counts(num_tasks=num_tasks, num_steps=num_steps, dim=dim)
    arguments.not_negative(noise_std=noise_std)
    arguments.shapes("?2", singular_values=singular_values)
    matrix_key, start_key, noise_key = jax.random.split(key, 3)
    matrices = jax.random.orthogonal(matrix_key, dim, (num_tasks,))
    if singular_values is not None:
        low, high = singular_values
        if not 0 <= low <= high:
            message = f"singular_values={singular_values}: give (smallest, largest), from 0 on"
            raise ValueError(message)
        other_key, value_key = jax.random.split(jax.random.fold_in(matrix_key, 1))
        other = jax.random.orthogonal(other_key, dim, (num_tasks,))
        values = jax.random.uniform(value_key, (num_tasks, 1, dim), minval=low, maxval=high)
        matrices = (matrices * values) @ other
    start = jax.random.normal(start_key, (num_tasks, dim))
    noise = noise_std * jax.random.normal(noise_key, (num_steps - 1, num_tasks, dim))

    def step(state: Array, shock: Array) -> tuple[Array, Array]:
        state = jnp.einsum("bij,bj->bi", matrices, state) + shock
        return state, state

    _, states = jax.lax.scan(step, start, noise)
    return jnp.concatenate([start[None], states]).swapaxes(0, 1), matrices


def few_shot_classification(
    key: Key,
    images: Array,
    labels: np.ndarray,
    num_tasks: int,
    num_ways: int,
    num_shots: int,
    *,
    projection: Array | None = None,
) -> FewShotPrompts:
    """Return prompts of labelled images: what a label means is decided anew in every prompt.

    Each prompt draws `num_ways` classes, gives them labels 0, 1, ... in a random order, and shows
    `num_shots` different images of each, all in a random order; the query is yet another image of
    one of them. Nothing but the context tells which label is right.

    Args:
        key: of everything.
        images: (M, ...), flattened, such as `real.digits().train_images`.
        labels: (M,) integers from 0 on, concrete (not traced): the table of classes is made of
            them.
        num_tasks: B.
        num_ways: W, classes in a prompt.
        num_shots: images of each class in a prompt.
        projection: (pixels, D), the same for all prompts; raw pixels where None.

    Raises:
        ValueError: a size below 1, more ways than classes, a class with too few images, shapes
            that do not fit.

    References:
        Chan et al. 2022, arXiv:2205.05055 (labels that are assigned anew in each sequence).

    Example:
        >>> from dynamics.data import real
        >>> data = real.digits()
        >>> key = jax.random.key(0)
        >>> args = data.train_images, data.train_labels
        >>> prompts = few_shot_classification(key, *args, num_tasks=7, num_ways=2, num_shots=3)
        >>> prompts.tokens().shape
        (7, 7, 66)
    """
    arguments.keys(key=key)
    arguments.counts(num_tasks=num_tasks, num_ways=num_ways, num_shots=num_shots)
    arguments.shapes("M ..., M", images=images, labels=labels)
    arguments.labels(np.inf, labels=labels)
    labels = np.asarray(labels)
    pixels = jnp.asarray(images).reshape(len(images), -1)
    arguments.shapes("M P, ?P D", images=pixels, projection=projection)
    counts = np.bincount(labels)
    if num_ways > len(counts) or counts.min() <= num_shots:
        message = (
            f"num_ways={num_ways}, num_shots={num_shots}: labels has {len(counts)} classes, the "
            f"smallest with {counts.min()} images, and the query needs one more than the shots"
        )
        raise ValueError(message)
    if projection is not None:
        pixels = pixels @ projection
    members = np.zeros((len(counts), counts.max()), np.int32)  # images of each class, filled up
    for label, count in enumerate(counts):
        members[label, :count] = np.flatnonzero(labels == label)
    exists = jnp.arange(counts.max()) < counts[:, None]

    def prompt(key: Key) -> FewShotPrompts:
        class_key, image_key, order_key, query_key = jax.random.split(key, 4)
        classes = jax.random.permutation(class_key, len(counts))[:num_ways]
        score = jnp.where(exists[classes], jax.random.uniform(image_key, exists[classes].shape), -1)
        _, chosen = jax.lax.top_k(score, num_shots + 1)  # different images of each class
        shown = jnp.take_along_axis(jnp.asarray(members)[classes], chosen, axis=1)  # (W, S + 1)
        order = jax.random.permutation(order_key, num_ways * num_shots)
        answer = jax.random.randint(query_key, (), 0, num_ways)
        return FewShotPrompts(
            pixels[shown[:, 1:].reshape(-1)[order]],
            (order // num_shots).astype(jnp.int32),
            pixels[shown[answer, 0]],
            answer.astype(jnp.int32),
            classes.astype(jnp.int32),
        )

    return jax.jit(jax.vmap(prompt))(jax.random.split(key, num_tasks))


def _vector(name: str, values: Array | None, dim: int, default: Array) -> Array:
    arguments.shapes(f"?{dim}", **{name: values})
    return default if values is None else jnp.asarray(values)
