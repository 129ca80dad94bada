"""Minimisers of deep linear networks against polynomial roots and minimisation over matrices."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from dynamics.theory import deep_linear_collapse as collapse

SIZES = (6, 3, 2)


def cost(u, price, depth):
    """g(u), written out in numpy."""
    return 1 / (1 + u) + price * u ** (1 / depth)


def length_by_polynomial(price, depth):
    """The u of lowest g among zero and all positive roots of β (1 + x^M)² = M x^(M-1), u = x^M."""
    fit = np.zeros(depth + 1)
    fit[0], fit[-1] = 1, 1
    polynomial = price * np.polymul(fit, fit)
    polynomial[-depth] -= depth
    roots = np.roots(polynomial)
    real = roots[(np.abs(roots.imag) < 1e-9) & (roots.real > 0)].real ** depth
    candidates = np.append(real, 0.0)
    return candidates[np.argmin(cost(candidates, price, depth))], real


def minimise_over_matrices(sizes, decays, feature_decay, width, *, bias=False, starts=4):
    """The best of several L-BFGS runs on the full loss: features, product, bias, loss."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    targets = np.eye(len(sizes))[labels]
    shapes = [(len(labels), width), *[(width, width)] * (len(decays) - 1), (width, len(sizes))]
    ends = np.cumsum([np.prod(shape) for shape in shapes])

    def unpack(flat):
        parts = [part.reshape(s) for part, s in zip(jnp.split(flat, ends), shapes, strict=False)]
        return parts, flat[ends[-1] :]

    def loss(flat):
        (features, *matrices), offset = unpack(flat)
        outputs = features
        for matrix in matrices:
            outputs = outputs @ matrix
        residual = outputs + bias * offset - targets
        pay = sum(d * jnp.sum(m**2) for d, m in zip(decays, matrices, strict=True))
        pay += feature_decay * jnp.sum(features**2)
        return jnp.sum(residual**2) / (2 * len(labels)) + pay / 2

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    random = np.random.default_rng(0)
    runs = [
        scipy.optimize.minimize(
            lambda flat: tuple(np.asarray(part) for part in value_and_grad(flat)),
            random.normal(size=ends[-1] + len(sizes)) * random.uniform(0.3, 1.0),
            jac=True,
            method="L-BFGS-B",
            options=dict(maxiter=20_000, maxfun=40_000, ftol=1e-16, gtol=1e-10),
        )
        for _ in range(starts)
    ]
    best = min(runs, key=lambda run: run.fun)
    (features, *matrices), offset = unpack(best.x)
    product = matrices[0]
    for matrix in matrices[1:]:
        product = product @ matrix
    means = jnp.stack([features[labels == k].mean(axis=0) for k in range(len(sizes))])
    return features, means, product, offset, best.fun


@pytest.mark.usefixtures("x64")
class TestScaledLength:
    @hypothesis.given(st.integers(1, 6), st.floats(1e-4, 2.0))
    def test_is_the_best_root_of_the_polynomial(self, depth, price):
        hypothesis.assume(abs(price - collapse.threshold(depth)) > 1e-6)
        with jax.enable_x64(True):
            found = collapse.scaled_length(price, depth)
            expected, _ = length_by_polynomial(price, depth)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)

    @hypothesis.given(st.integers(1, 6), st.floats(1e-3, 0.999))
    def test_outer_branch_is_the_largest_root(self, depth, share):
        with jax.enable_x64(True):
            price = share * float(collapse.spinodal(depth))
            _, roots = length_by_polynomial(price, depth)
            found = collapse.scaled_length(price, depth, branch="outer")
            np.testing.assert_allclose(found, roots.max(), rtol=1e-5)

    @pytest.mark.parametrize("price", [0.01, 0.3, 0.9, 1.0, 1.5])
    def test_of_one_matrix_in_closed_form(self, price):
        expected = max(price**-0.5 - 1, 0)
        np.testing.assert_allclose(collapse.scaled_length(price, 1), expected, atol=1e-12)

    @pytest.mark.parametrize("depth", [1, 2, 3, 7])
    def test_no_grid_point_is_lower(self, depth):
        prices = jnp.linspace(0.02, 1.2, 60)
        found = np.asarray(collapse.scaled_length(prices, depth))
        grid = np.concatenate([[0.0], np.geomspace(1e-9, 1e4, 4000)])
        lowest = cost(grid[:, None], np.asarray(prices), depth).min(axis=0)
        assert np.all(cost(found, np.asarray(prices), depth) <= lowest + 1e-12)

    def test_free_length_is_infinite_and_nan_stays(self):
        assert collapse.scaled_length(0.0, 2) == jnp.inf
        assert np.isnan(jax.jit(lambda price: collapse.scaled_length(price, 2))(jnp.nan))

    def test_maps_over_depths_inside_jit(self):
        depths = jnp.arange(1, 5)
        found = jax.jit(jax.vmap(lambda depth: collapse.scaled_length(0.3, depth)))(depths)
        expected = [length_by_polynomial(0.3, depth)[0] for depth in range(1, 5)]
        np.testing.assert_allclose(found, expected, rtol=1e-8)


class TestSinglePrecision:
    def test_agrees_with_double_and_stays_single(self):
        price = jnp.array([0.05, 0.3, 0.6], jnp.float32)
        found = collapse.scaled_length(price, 2)
        assert found.dtype == jnp.float32
        expected = [length_by_polynomial(float(b), 2)[0] for b in price]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.usefixtures("x64")
class TestBorders:
    @pytest.mark.parametrize("depth", [2, 3, 5])
    def test_both_minima_are_equally_deep_at_the_threshold(self, depth):
        price = float(collapse.threshold(depth))
        length = float(collapse.scaled_length(price, depth, branch="outer"))
        np.testing.assert_allclose(length, collapse.jump(depth), rtol=1e-7)
        np.testing.assert_allclose(cost(length, price, depth), 1.0, rtol=1e-12)
        assert collapse.scaled_length(price * (1 + 1e-9), depth) == 0

    @pytest.mark.parametrize("depth", [2, 3, 5])
    def test_the_other_minimum_ends_at_the_spinodal(self, depth):
        price = float(collapse.spinodal(depth))
        assert collapse.scaled_length(price * 0.9999, depth, branch="outer") > 0
        assert collapse.scaled_length(price * 1.0001, depth, branch="outer") == 0
        x = np.linspace(1e-6, 3, 200_001)
        steepest = (depth * x ** (depth - 1) / (1 + x**depth) ** 2).max()
        np.testing.assert_allclose(price, steepest, rtol=1e-8)

    def test_values_by_hand(self):
        np.testing.assert_allclose(collapse.threshold(jnp.array([1, 2])), [1, 0.5])
        np.testing.assert_allclose(collapse.spinodal(jnp.array([1, 2])), [1, 9 / 8 / 3**0.5])


@pytest.mark.usefixtures("x64")
class TestMinimiser:
    @pytest.mark.parametrize(
        ("decays", "feature_decay"),
        [((0.05,), 0.02), ((0.02, 0.02), 0.01), ((0.01, 0.04), 0.01), ((0.02,) * 3, 0.004)],
    )
    def test_is_what_minimisation_over_matrices_finds(self, decays, feature_decay):
        features, means, product, _, loss = minimise_over_matrices(SIZES, decays, feature_decay, 4)
        theory = collapse.minimiser(
            jnp.array(SIZES),
            weight_decay=float(np.prod(decays) ** (1 / len(decays))),
            feature_decay=feature_decay,
            depth=len(decays),
        )
        assert theory.classifier.min() > 0
        np.testing.assert_allclose(loss, theory.loss, rtol=1e-8)
        np.testing.assert_allclose(product.T @ product, np.diag(theory.classifier), atol=1e-4)
        np.testing.assert_allclose(means @ means.T, np.diag(theory.features), atol=1e-4)
        np.testing.assert_allclose(means @ product, np.diag(theory.alignment), atol=1e-4)
        np.testing.assert_allclose(features, jnp.repeat(means, jnp.array(SIZES), axis=0), atol=1e-4)

    def test_a_class_dies_while_its_other_minimum_lives(self):
        """Between threshold and spinodal: the global minimum has lost the smallest class."""
        settings = dict(weight_decay=0.14, feature_decay=0.013, depth=2)
        price = collapse.price(jnp.array(SIZES), **settings)
        assert collapse.threshold(2) < price[-1] < collapse.spinodal(2)
        theory = collapse.minimiser(jnp.array(SIZES), **settings)
        *_, product, _, loss = minimise_over_matrices(SIZES, (0.14, 0.14), 0.013, 4, starts=12)
        np.testing.assert_allclose(loss, theory.loss, rtol=1e-8)
        assert theory.classifier[-1] == 0
        np.testing.assert_allclose(product.T @ product, np.diag(theory.classifier), atol=1e-4)
        other = collapse.minimiser(jnp.array(SIZES), **settings, branch="outer")
        assert other.classifier[-1] > 0
        assert other.loss > theory.loss

    @hypothesis.given(st.floats(0.2, 0.8), st.floats(0.01, 0.99))
    def test_one_matrix_in_closed_form(self, share, product_of_decays):
        """p_k = √(λ_H / λ_W) (√n_k - √(N² λ_W λ_H))_+."""
        with jax.enable_x64(True):
            sizes = np.array([10 * share, 10 * (1 - share)])
            weight_decay, feature_decay = 0.5, product_of_decays / 50
            root = sizes**0.5 - 10 * (weight_decay * feature_decay) ** 0.5
            expected = (feature_decay / weight_decay) ** 0.5 * np.maximum(root, 0)
            found = collapse.minimiser(
                jnp.array(sizes), weight_decay=weight_decay, feature_decay=feature_decay, depth=1
            )
            np.testing.assert_allclose(found.classifier, expected, atol=1e-10)

    def test_large_classes_have_long_columns_and_short_features(self):
        found = collapse.minimiser(
            jnp.array([20, 10, 6, 4]), weight_decay=0.01, feature_decay=0.003, depth=3
        )
        assert np.all(np.diff(found.classifier) < 0)
        assert np.all(np.diff(found.features) > 0)


@pytest.mark.usefixtures("x64")
class TestBalanced:
    @pytest.mark.parametrize("free_bias", [False, True])
    @pytest.mark.parametrize("depth", [1, 2])
    def test_is_what_minimisation_over_matrices_finds(self, depth, free_bias):
        _, means, product, offset, _ = minimise_over_matrices(
            (4, 4, 4), (0.03,) * depth, 0.01, 4, bias=free_bias
        )
        theory = collapse.balanced_minimiser(
            3, 4, weight_decay=0.03, feature_decay=0.01, depth=depth, free_bias=free_bias
        )
        assert theory.classifier[0, 0] > 0
        np.testing.assert_allclose(product.T @ product, theory.classifier, atol=1e-4)
        np.testing.assert_allclose(means @ means.T, theory.features, atol=1e-4)
        np.testing.assert_allclose(means @ product, theory.alignment, atol=1e-4)
        if free_bias:
            np.testing.assert_allclose(offset, theory.bias, atol=1e-5)

    def test_without_bias_it_is_the_case_of_equal_sizes(self):
        settings = dict(weight_decay=0.01, feature_decay=0.003, depth=3)
        general = collapse.minimiser(jnp.full(4, 10), **settings)
        balanced = collapse.balanced_minimiser(4, 10, **settings)
        np.testing.assert_allclose(balanced.classifier, np.diag(general.classifier), rtol=1e-12)
        np.testing.assert_array_equal(balanced.bias, 0)


GOOD = dict(weight_decay=0.1, feature_decay=0.1, depth=2)


class TestRefusals:
    @pytest.mark.parametrize(
        ("sizes", "changes", "match"),
        [
            ([1.0, 0.0], {}, "class_sizes"),
            ([[1.0]], {}, "class_sizes has shape"),
            ([1.0], dict(weight_decay=0.0), "weight_decay=0.0"),
            ([1.0], dict(weight_decay=-1.0), "weight_decay=-1.0"),
            ([1.0], dict(feature_decay=0.0), "feature_decay=0.0"),
            ([1.0], dict(depth=0), "depth=0.0"),
            ([1.0], dict(branch="largest"), "branch='largest'"),
        ],
    )
    def test_names_argument_value_and_mend(self, sizes, changes, match):
        with pytest.raises(ValueError, match=match):
            collapse.minimiser(jnp.array(sizes), **{**GOOD, **changes})

    def test_of_the_rest(self):
        with pytest.raises(ValueError, match="price"):
            collapse.scaled_length(-0.1, 2)
        with pytest.raises(ValueError, match="num_classes=1"):
            collapse.balanced_minimiser(1, 5, **GOOD)
        with pytest.raises(ValueError, match="depth"):
            collapse.threshold(0)
