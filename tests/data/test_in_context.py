"""Shifts of prompts, contracting dynamics and prompts of labelled images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.data import in_context, real

PLAIN = {"num_tasks": 4000, "num_context": 3, "dim": 2}


def within(values, expected, errors=5.0):
    """Whether the mean of independent values is `expected` within five standard errors."""
    values = np.asarray(values, np.float64)
    return abs(values.mean() - expected) < errors * values.std() / len(values) ** 0.5


def test_each_shift_moves_what_it_names_and_nothing_else(key):
    plain = in_context.linear_regression(key, **PLAIN)
    query = in_context.linear_regression(key, **PLAIN, query_eigenvalues=jnp.array([4.0, 1.0]))
    np.testing.assert_array_equal(query.inputs, plain.inputs)
    np.testing.assert_allclose(query.query, plain.query * jnp.array([2.0, 1.0]), rtol=1e-6)
    moved = in_context.linear_regression(key, **PLAIN, input_mean=jnp.array([3.0, 0.0]))
    assert within(moved.inputs[:, 1, 0], 3.0)
    assert within(moved.query[:, 0], 3.0)
    task = in_context.linear_regression(key, **PLAIN, task_mean=jnp.array([0.0, 5.0]), task_std=2)
    np.testing.assert_array_equal(task.inputs, plain.inputs)
    assert within(task.weights[:, 1], 5.0)
    assert within(task.weights[:, 0] ** 2, 4.0)
    for prompts in (query, moved, task):
        exact = jnp.einsum("bnd,bd->bn", prompts.inputs, prompts.weights)
        np.testing.assert_allclose(prompts.targets, exact, rtol=1e-4, atol=1e-4)
        exact = jnp.sum(prompts.query * prompts.weights, axis=1)
        np.testing.assert_allclose(prompts.answer, exact, rtol=1e-4, atol=1e-4)


def test_each_task_has_its_own_noise(key):
    stds = jnp.where(jnp.arange(4000) % 2, 0.5, 2.0)
    prompts = in_context.linear_regression(key, **PLAIN, noise_std=stds)
    noise = prompts.targets - jnp.einsum("bnd,bd->bn", prompts.inputs, prompts.weights)
    assert within(noise[::2, 0] ** 2, 4.0)
    assert within(noise[1::2, 0] ** 2, 0.25)


def test_a_contracting_system_has_the_singular_values_asked_for(key):
    states, matrices = in_context.linear_dynamical_system(key, 50, 4, 3, singular_values=(0.2, 0.7))
    values = np.linalg.svd(matrices, compute_uv=False)
    assert values.min() > 0.2
    assert values.max() < 0.7
    assert within(values.mean(axis=1), 0.45)
    np.testing.assert_allclose(states[3, 2], matrices[3] @ states[3, 1], rtol=1e-4, atol=1e-5)
    turned = in_context.linear_dynamical_system(key, 2, 3, 3, singular_values=(1.0, 1.0))[1]
    eyes = np.broadcast_to(np.eye(3), (2, 3, 3))
    np.testing.assert_allclose(turned @ turned.swapaxes(1, 2), eyes, atol=1e-5)


@pytest.fixture(scope="module")
def few_shot():
    """Images that are their own number, so that each can be told."""
    data = real.digits(300)
    images = np.arange(300.0)[:, None, None] * np.ones((1, 2, 1))
    prompts = in_context.few_shot_classification(
        jax.random.key(0), images, data.train_labels, num_tasks=400, num_ways=3, num_shots=2
    )
    return data.train_labels, prompts


def test_labels_are_the_prompts_own(few_shot):
    labels, prompts = few_shot
    shown = np.asarray(prompts.inputs[..., 0], int)
    classes = np.asarray(prompts.classes)
    np.testing.assert_array_equal(
        np.take_along_axis(classes, np.asarray(prompts.labels), axis=1), labels[shown]
    )
    query = np.asarray(prompts.query[:, 0], int)
    rows = np.arange(len(query))
    np.testing.assert_array_equal(classes[rows, np.asarray(prompts.answer)], labels[query])
    assert (np.sort(prompts.labels, axis=1) == [0, 0, 1, 1, 2, 2]).all()
    everything = np.concatenate([shown, query[:, None]], axis=1)
    assert all(len(set(row)) == 7 for row in everything), "no image twice"
    assert (np.diff(np.sort(classes, axis=1)) > 0).all(), "no class twice"


def test_every_class_gets_every_label_as_often(few_shot):
    """Given that class 7 is in a prompt its label is uniform; the answers are too."""
    _, prompts = few_shot
    _, label = np.nonzero(np.asarray(prompts.classes) == 7)
    for k in range(3):
        assert within(label == k, 1 / 3)
        assert within(np.asarray(prompts.answer) == k, 1 / 3)
        assert within(np.asarray(prompts.labels[:, 0]) == k, 1 / 3)


def test_tokens_and_projection_of_digits(key):
    data = real.digits(200)
    projection = jax.random.normal(key, (64, 5))
    args = key, data.train_images, data.train_labels, 6, 2, 2
    raw = in_context.few_shot_classification(*args)
    small = in_context.few_shot_classification(*args, projection=projection)
    np.testing.assert_allclose(small.inputs, raw.inputs @ projection, rtol=1e-4, atol=1e-4)
    tokens = small.tokens()
    assert tokens.shape == (6, 5, 7)
    np.testing.assert_array_equal(tokens[:, :-1, 5:].argmax(axis=2), small.labels)
    assert (tokens[:, -1, 5:] == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_eigenvalues": jnp.ones(3)}, "query_eigenvalues has shape"),
        ({"input_mean": jnp.ones(1)}, "input_mean has shape"),
        ({"task_mean": jnp.ones(1)}, "task_mean has shape"),
        ({"task_std": -1.0}, "task_std=-1.0"),
        ({"noise_std": -1.0}, "noise_std=-1.0"),
        ({"noise_std": jnp.ones(3)}, "noise_std has shape"),
    ],
)
def test_wrong_shifts_are_named(key, change, message):
    with pytest.raises(ValueError, match=message):
        in_context.linear_regression(key, 4, 3, 2, **change)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, k: f(k, np.ones((4, 1)), [0, 0, 1, 1], 1, 0, 1), "num_ways=0"),
        (lambda f, k: f(k, np.ones((4, 1)), [0, 0, 1, 1], 1, 3, 1), "labels has 2 classes"),
        (lambda f, k: f(k, np.ones((4, 1)), [0, 0, 1, 1], 1, 2, 2), "smallest with 2 images"),
        (lambda f, k: f(k, np.ones((4, 1)), [0, 1], 1, 2, 1), "labels has shape"),
    ],
)
def test_wrong_prompts_of_images_are_named(key, call, message):
    with pytest.raises(ValueError, match=message):
        call(in_context.few_shot_classification, key)
    with pytest.raises(ValueError, match="singular_values"):
        in_context.linear_dynamical_system(key, 1, 1, 1, singular_values=(0.5, 0.1))
