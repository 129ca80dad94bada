"""Products with the inverse Fisher against dense float64 algebra, and pruning against refits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.measure import curvature, inverse_fisher, optimal_brain_surgeon

DIM, COUNT = 9, 5
EPSILON = np.finfo(float).eps
SEEDS = st.integers(0, 10**6)
DAMPINGS = st.floats(-6, 2).map(lambda power: 10.0**power)
invert = jax.jit(inverse_fisher.invert)
product = jax.jit(inverse_fisher.product)
slide = jax.jit(inverse_fisher.slide)
window_product = jax.jit(inverse_fisher.window_product)
column = jax.jit(inverse_fisher.column)
open_window = jax.jit(inverse_fisher.open_window)
window_inverse = jax.jit(inverse_fisher.window_inverse)
saliencies = jax.jit(optimal_brain_surgeon.saliencies)
compensated = jax.jit(optimal_brain_surgeon.compensated)
remove = jax.jit(optimal_brain_surgeon.remove)
prune = jax.jit(optimal_brain_surgeon.prune, static_argnums=2)


def draw(seed, count=COUNT):
    """Gradients of very different lengths, two of them nearly alike."""
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(count, DIM)) * 10 ** rng.uniform(-2, 1, size=(count, 1))
    gradients[1] = gradients[0] + 1e-3 * gradients[1]
    return gradients, rng.normal(size=DIM)


def fisher(gradients, damping):
    return damping * np.eye(DIM) + gradients.T @ gradients / len(gradients)


def error(found, matrix, vector):
    """Relative error of F^-1 x over ε times the condition number: what rounding x alone makes."""
    exact = np.linalg.solve(matrix, vector)
    difference = np.linalg.norm(np.asarray(found) - exact) / np.linalg.norm(exact)
    return difference / (EPSILON * np.linalg.cond(matrix))


@given(seed=SEEDS, damping=DAMPINGS)
def test_the_recursion_is_the_dense_inverse(seed, damping):
    gradients, vector = draw(seed)
    matrix = fisher(gradients, damping)
    with jax.enable_x64(True):
        inverse = invert(gradients, damping)
        for x in (vector, gradients[0], gradients.sum(axis=0)):
            assert error(product(inverse, x), matrix, x) < 20
        exact = np.diag(np.linalg.inv(matrix))
        bound = 20 * EPSILON * np.linalg.cond(matrix) * exact.max()
        np.testing.assert_allclose(inverse_fisher.diagonal(inverse), exact, atol=bound)
        np.testing.assert_allclose(column(inverse, 3), np.linalg.inv(matrix)[:, 3], atol=bound)


@given(seed=SEEDS, damping=DAMPINGS)
def test_the_recursion_is_a_cholesky_factorisation(seed, damping):
    gradients, _ = draw(seed)
    with jax.enable_x64(True):
        inverse = invert(gradients, damping)
        small = COUNT * damping * np.eye(COUNT) + gradients @ gradients.T
        rows = np.linalg.solve(np.linalg.cholesky(small), gradients) / damping**0.5
        found = inverse.directions / np.sqrt(inverse.scales)[:, None]
        bound = 20 * EPSILON * np.linalg.cond(small) * np.abs(rows).max()
        np.testing.assert_allclose(found, rows, atol=bound)


@given(seed=SEEDS, damping=DAMPINGS, slides=st.integers(0, 3 * COUNT))
def test_a_window_is_the_inverse_of_its_last_gradients(seed, damping, slides):
    gradients, vector = draw(seed, 4 * COUNT)
    with jax.enable_x64(True):
        window = open_window(gradients[:COUNT], damping)
        for gradient in gradients[COUNT : COUNT + slides]:
            window = slide(window, gradient)
        last = gradients[slides : COUNT + slides]
        matrix = fisher(last, damping)
        for x in (vector, last[-1]):
            assert error(window_product(window, x), matrix, x) < 20
            again = product(window_inverse(window), x)
            assert error(again, matrix, x) < 20


def network(params, data):
    x, y = data
    outputs = jnp.tanh(x @ params["first"]) @ params["second"]
    return jnp.mean((outputs[:, 0] - y) ** 2)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_it_undoes_the_product_with_the_empirical_fisher(x64, key, batch_size):
    drawn = jax.random.normal(key, (39,))
    params = dict(first=drawn[:6].reshape(2, 3), second=drawn[6:9].reshape(3, 1))
    data = drawn[9:29].reshape(10, 2), drawn[29:]
    vector = jax.tree.map(jnp.cos, params)

    @jax.jit
    def there_and_back():
        forward = curvature.empirical_fisher_vector_product(network, params, data)
        damped = jax.tree.map(lambda v, f: 0.1 * v + f, vector, forward(vector))
        return inverse_fisher.inverse_empirical_fisher_vector_product(
            network, params, data, damping=0.1, batch_size=batch_size
        )(damped)

    for found, expected in zip(*map(jax.tree.leaves, (there_and_back(), vector)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-11)


def test_nothing_of_size_d_by_d_is_made():
    """A matrix would have 250 times the numbers of the gradients."""
    shape = jax.ShapeDtypeStruct((8, 2000), jnp.float32)
    vector = jax.ShapeDtypeStruct((2000,), jnp.float32)

    def both(gradients, vector):
        window = inverse_fisher.open_window(gradients, 0.1)
        first = inverse_fisher.product(inverse_fisher.invert(gradients, 0.1), vector)
        return first + inverse_fisher.window_product(window, vector)

    memory = jax.jit(both).lower(shape, vector).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 20 * 4 * 8 * 2000


def loss_of_support(weights, matrix, kept):
    """Return the least 1/2 d^T F d over changes that put all but `kept` to zero."""
    removed = ~kept
    inner = np.linalg.inv(np.linalg.inv(matrix)[np.ix_(removed, removed)])
    return weights[removed] @ inner @ weights[removed] / 2


@given(seed=SEEDS, damping=st.floats(0.01, 1))
def test_pruning_is_refitting(seed, damping):
    """In a given order and the greedy one: least loss on the support, and its increases."""
    gradients, weights = draw(seed, 2 * DIM)
    gradients /= np.linalg.norm(gradients, axis=1, keepdims=True)
    matrix = fisher(gradients, damping)
    given_order = np.random.default_rng(seed + 1).permutation(DIM)
    with jax.enable_x64(True):
        inverse = invert(gradients, damping)
        for order in (None, given_order):
            found = prune(weights, inverse, DIM, order=order)
            if order is not None:
                np.testing.assert_array_equal(found.order, order)
            assert sorted(np.asarray(found.order)) == list(range(DIM))
            kept, total = np.ones(DIM, bool), 0.0
            for index, increase, moved in zip(*found, strict=True):
                candidates = []
                for other in np.flatnonzero(kept):
                    left = kept.copy()
                    left[other] = False
                    candidates.append(loss_of_support(weights, matrix, left))
                kept[index] = False
                total += increase
                change = np.asarray(moved) - weights
                assert np.all(np.asarray(moved)[~kept] == 0)
                least = loss_of_support(weights, matrix, kept)
                np.testing.assert_allclose(change @ matrix @ change / 2, least, rtol=1e-8)
                np.testing.assert_allclose(total, least, rtol=1e-8)
                if order is None:
                    np.testing.assert_allclose(total, min(candidates), rtol=1e-8)


@given(seed=SEEDS, damping=st.floats(0.01, 1), index=st.integers(0, DIM - 1))
def test_one_removal(seed, damping, index):
    gradients, weights = draw(seed)
    matrix = fisher(gradients, damping)
    kept = np.arange(DIM) != index
    with jax.enable_x64(True):
        inverse = invert(gradients, damping)
        predicted = saliencies(weights, inverse)[index]
        moved = compensated(weights, inverse, index)
        smaller = remove(inverse, index)
        change = moved - weights
        assert moved[index] == 0
        np.testing.assert_allclose(predicted, change @ matrix @ change / 2, rtol=1e-8)
        expected = np.zeros((DIM, DIM))
        expected[np.ix_(kept, kept)] = np.linalg.inv(matrix[np.ix_(kept, kept)])
        found = product(smaller, np.eye(DIM))
        np.testing.assert_allclose(found, expected, atol=1e-9 / damping)


G, V = jnp.ones((3, 4)), jnp.ones(4)
INVERSE, WINDOW = inverse_fisher.invert, inverse_fisher.open_window
LOSS = lambda slope, data: jnp.mean(slope * data)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: INVERSE(V, 1.0), "gradients has shape"),
        (lambda: INVERSE(G[:0], 1.0), "gradients has shape"),
        (lambda: INVERSE(G, 0.0), "damping=0.0"),
        (lambda: WINDOW(G, -1.0), "damping=-1.0"),
        (lambda: inverse_fisher.product(INVERSE(G, 1.0), G.T), "vector has shape"),
        (lambda: inverse_fisher.slide(WINDOW(G, 1.0), G), "gradient has shape"),
        (lambda: inverse_fisher.window_product(WINDOW(G, 1.0), G), "vector has shape"),
        (lambda: inverse_fisher.per_example_gradients(LOSS, 0.0, None), "data=None"),
        (lambda: inverse_fisher.per_example_gradients(LOSS, 0.0, V, batch_size=9), "batch_size=9"),
        (lambda: optimal_brain_surgeon.saliencies(G, INVERSE(G, 1.0)), "weights has shape"),
        (lambda: optimal_brain_surgeon.compensated(V[:3], INVERSE(G, 1.0), 0), "weights has shape"),
        (lambda: optimal_brain_surgeon.prune(V, INVERSE(G, 1.0), 5), "num_removed=5"),
        (lambda: optimal_brain_surgeon.prune(V, INVERSE(G, 1.0), 2, order=V), "order has shape"),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_half_precision_parameters_get_products_of_their_type(key):
    """The inverse is held in single precision, and what comes back is like `params`."""
    loss = lambda params, data: jnp.mean((data @ params["w"]) ** 2) / 2
    data = jax.random.normal(key, (5, 3))
    exact, found = (
        inverse_fisher.inverse_empirical_fisher_vector_product(
            loss, {"w": jnp.ones(3, kind)}, data.astype(kind), damping=1.0, batch_size=2
        )({"w": jnp.ones(3, kind)})["w"]
        for kind in (jnp.float32, jnp.bfloat16)
    )
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(float), exact, atol=0.03)
