"""Synthetic data: moments in closed form, group laws, exact counts, refused arguments."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.data import algorithmic, in_context, mixtures, teachers

GROUPS = {
    "cyclic": algorithmic.cyclic_group(7),
    "dihedral": algorithmic.dihedral_group(5),
    "S3": algorithmic.symmetric_group(3),
    "S4": algorithmic.symmetric_group(4),
    "product": algorithmic.product_group(
        algorithmic.cyclic_group(2), algorithmic.dihedral_group(3)
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_every_table_is_a_group(name):
    table = GROUPS[name]
    order = len(table)
    assert (np.sort(table, axis=0) == np.arange(order)[:, None]).all(), "a Latin square"
    (identity,) = (e for e in range(order) if (table[e] == np.arange(order)).all())
    assert (table[:, identity] == np.arange(order)).all()
    a, b, c = np.meshgrid(*[np.arange(order)] * 3, indexing="ij")
    assert (table[table[a, b], c] == table[a, table[b, c]]).all(), "associative"


def test_which_groups_commute():
    commutes = {name: (table == table.T).all() for name, table in GROUPS.items()}
    assert commutes == dict(cyclic=True, dihedral=False, S3=False, S4=False, product=False)
    dihedral3 = algorithmic.dihedral_group(3)
    relabelled = (
        (np.array(p)[GROUPS["S3"]] == dihedral3[np.ix_(p, p)]).all()
        for p in itertools.permutations(range(6))
    )
    assert any(relabelled), "the triangle's symmetries are the permutations of its corners"


def test_a_split_is_a_partition_of_the_table(key):
    split = algorithmic.split_table(key, GROUPS["S3"], 0.4)
    assert len(split.train_pairs) == round(0.4 * 36)
    pairs = np.concatenate([split.train_pairs, split.test_pairs])
    assert len({tuple(pair) for pair in pairs.tolist()}) == 36
    products = np.concatenate([split.train_products, split.test_products])
    np.testing.assert_array_equal(GROUPS["S3"][pairs[:, 0], pairs[:, 1]], products)


def within(values, expected, errors=5.0):
    """Whether the mean of independent values is `expected` within five standard errors."""
    values = np.asarray(values, np.float64)
    return abs(values.mean() - expected) < errors * values.std() / len(values) ** 0.5


def test_teachers_have_the_moments_that_they_promise(key):
    linear = teachers.linear_teacher(key, 50_000, 6, noise_std=0.5)
    assert within(linear.targets**2, 1.25)
    quadratic = teachers.quadratic_teacher(key, 50_000, 6)
    assert within(quadratic.targets**2, 0.75)
    assert jnp.isclose(jnp.sum(quadratic.teacher**2), 6)
    assert within(jnp.sum(quadratic.inputs**2, axis=1), 1.0)
    two = teachers.two_layer_teacher(key, 50_000, 6, 1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    assert within(two.targets**2, np.tanh(nodes) ** 2 @ weights / weights.sum())


def test_mixture(key):
    data = mixtures.gaussian_mixture(key, (30_000, 10_000), 3, separation=2.0, std=0.5)
    np.testing.assert_array_equal(np.bincount(data.labels), [30_000, 10_000])
    np.testing.assert_allclose(jnp.linalg.norm(data.means, axis=1), 2.0, rtol=1e-5)
    residual = data.inputs - data.means[data.labels]
    assert within(residual[:, 0] ** 2, 0.25)
    assert within(residual[30_000:, 1], 0.0)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_exactly_the_fraction_is_wrong(key, fraction):
    labels = jax.random.randint(key, (1000,), 0, 5)
    corrupted = mixtures.corrupt_labels(key, labels, 5, fraction)
    assert int((corrupted != labels).sum()) == 1000 * fraction
    assert set(np.unique(corrupted).tolist()) <= set(range(5))


def test_prompts(key):
    kind = {"inputs": "uniform", "eigenvalues": jnp.array([1.0, 4.0])}
    prompts = in_context.linear_regression(key, 20_000, 3, 2, noise_std=0.1, **kind)
    assert within(prompts.query[:, 0] ** 2, 1 / 12)
    assert within(prompts.query[:, 1] ** 2, 4 / 12)
    noise = prompts.targets - jnp.einsum("bnd,bd->bn", prompts.inputs, prompts.weights)
    assert within(noise[:, 0] ** 2, 0.01)
    np.testing.assert_allclose(
        prompts.answer, jnp.sum(prompts.query * prompts.weights, axis=1), rtol=1e-5, atol=1e-6
    )
    tokens = prompts.tokens()
    np.testing.assert_array_equal(tokens[:, :3, :2], prompts.inputs)
    np.testing.assert_array_equal(tokens[:, :3, 2], prompts.targets)
    assert (tokens[:, 3, 2] == 0).all()


def test_a_dynamical_system_turns_and_does_not_stretch(key, x64):
    states, matrices = in_context.linear_dynamical_system(key, 5, 6, 3)
    gram = matrices @ matrices.swapaxes(1, 2)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), gram.shape), atol=1e-12)
    lengths = np.linalg.norm(states, axis=2)
    np.testing.assert_allclose(lengths, lengths[:, :1] * np.ones(6), rtol=1e-12)
    np.testing.assert_allclose(states[2, 4], matrices[2] @ states[2, 3], rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda k: teachers.linear_teacher(k, 0, 3), "num_samples"),
        (lambda k: teachers.linear_teacher(k, 1, 3, noise_std=-1), "noise_std"),
        (lambda k: teachers.quadratic_teacher(k, 5, 0), "dim"),
        (lambda k: teachers.two_layer_teacher(k, 5, 2, 0), "num_hidden"),
        (lambda k: mixtures.gaussian_mixture(k, (), 2), "counts"),
        (lambda k: mixtures.gaussian_mixture(k, (3, 0), 2), "counts"),
        (lambda k: mixtures.gaussian_mixture(k, (3,), 2, std=-1), "std"),
        (lambda k: mixtures.corrupt_labels(k, jnp.zeros(3, int), 3, 1.5), "fraction"),
        (lambda k: mixtures.corrupt_labels(k, jnp.zeros(3, int), 1, 0.5), "num_classes"),
        (lambda k: algorithmic.split_table(k, np.zeros((2, 3)), 0.5), "cayley_table"),
        (lambda k: algorithmic.split_table(k, GROUPS["S3"], 1.0), "train_fraction"),
        (lambda k: algorithmic.cyclic_group(0), "order"),
        (lambda k: in_context.linear_regression(k, 1, 0, 2), "num_context"),
        (lambda k: in_context.linear_regression(k, 1, 1, 2, inputs="cauchy"), "inputs"),
        (lambda k: in_context.linear_regression(k, 1, 1, 2, eigenvalues=[1.0]), "eigenvalues"),
        (lambda k: in_context.linear_dynamical_system(k, 1, 0, 2), "num_steps"),
    ],
)
def test_wrong_arguments_are_named(key, call, argument):
    with pytest.raises(ValueError, match=argument):
        call(key)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.333, 1.0])
def test_exactly_so_many_labels_are_corrupted(key, fraction):
    labels = jnp.arange(1000) % 31
    found = algorithmic.corrupt_labels(key, labels, 31, fraction)
    assert found.corrupted.sum() == round(fraction * 1000)
    assert (found.labels == labels)[~found.corrupted].all()
    assert found.labels.min() >= 0
    assert found.labels.max() < 31


def test_new_labels_are_uniform_and_may_be_right(key):
    """Shares within five standard errors; the chosen ones are spread over the labels as well."""
    labels = jnp.arange(50_000) % 5
    found = algorithmic.corrupt_labels(key, labels, 5, 0.4)
    drawn, old = (np.asarray(a[found.corrupted]) for a in (found.labels, labels))
    for label in range(5):
        assert within(drawn == label, 0.2)
        assert within(old == label, 0.2)
    assert within(drawn == old, 0.2)
    assert within(drawn[old == 3] == 1, 0.2)


def test_corruption_under_jit_and_vmap_and_its_refusals(key):
    keys, labels = jax.random.split(key, 3), jnp.arange(40) % 7
    corrupt = lambda key: algorithmic.corrupt_labels(key, labels, 7, 0.5)
    together = jax.jit(jax.vmap(corrupt))(keys)
    for k, one in enumerate(keys):
        np.testing.assert_array_equal(together.labels[k], corrupt(one).labels)
    assert (together.corrupted.sum(axis=1) == 20).all()
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="fraction="):
            algorithmic.corrupt_labels(key, labels, 7, fraction)
    with pytest.raises(ValueError, match="num_classes=0"):
        algorithmic.corrupt_labels(key, labels, 0, 0.5)
    for wrong in (jnp.zeros((2, 2)), jnp.zeros(0)):
        with pytest.raises(ValueError, match="labels has shape"):
            algorithmic.corrupt_labels(key, wrong, 7, 0.5)


@pytest.mark.parametrize(("modulus", "positions"), [(2, (0, 1, 2)), (3, (5, 0)), (5, (3,))])
def test_sparse_sums_are_those_of_the_named_tokens(key, modulus, positions):
    data = algorithmic.sparse_modular_addition(key, modulus, positions, 3000, 6)
    tokens, labels = np.asarray(data.tokens), np.asarray(data.labels)
    assert [sum(int(row[i]) for i in positions) % modulus for row in tokens] == labels.tolist()
    counts = np.apply_along_axis(np.bincount, 0, tokens, minlength=modulus)  # (modulus, T)
    spread = 5 * (3000 / modulus * (1 - 1 / modulus)) ** 0.5
    assert np.abs(counts - 3000 / modulus).max() < spread


def test_sparse_sums_refuse_wrong_positions(key):
    for positions in ((), (0, 0), (6,), (-1,)):
        with pytest.raises(ValueError, match="positions"):
            algorithmic.sparse_modular_addition(key, 2, positions, 4, 6)
    with pytest.raises(ValueError, match="modulus=1"):
        algorithmic.sparse_modular_addition(key, 1, (0,), 4, 6)
