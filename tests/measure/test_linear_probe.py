"""Linear probes against scikit-learn, against closed forms, and against chance."""

import numpy as np
import pytest
import sklearn.linear_model
import sklearn.model_selection

from dynamics.measure import linear_probe


def table(num_samples=600, noise=0.5, seed=0):
    """Features of unequal scales and two noisy targets with a mean."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_samples, 4)) * [1, 10, 0.1, 1] + [0, 5, 0, 0]
    y = x @ rng.normal(size=(4, 2)) / [[1], [10], [0.1], [1]][0] + 3
    return x, y + noise * rng.normal(size=y.shape)


@pytest.mark.parametrize("intercept", [True, False])
def test_scores_and_weights_are_those_of_scikit_learn(intercept):
    x, y = table()
    found = linear_probe.linear_probe(x, y, seed=3, ridge=0.1, intercept=intercept)
    fold = np.random.default_rng(3).permutation(len(x)) % 5

    def peer(rows):
        spread = x[rows] - (x[rows].mean(axis=0) if intercept else 0)
        penalty = 0.1 * np.mean(spread**2) * rows.sum()
        model = sklearn.linear_model.Ridge(penalty, fit_intercept=intercept)
        return model.fit(x[rows], y[rows])

    predicted, mean = np.empty_like(y), np.empty_like(y)
    for train, test in sklearn.model_selection.PredefinedSplit(fold).split():
        rows = np.isin(np.arange(len(x)), train)
        predicted[test] = peer(rows).predict(x[test])
        mean[test] = y[train].mean(axis=0) if intercept else 0
    left, all_of_it = ((y - predicted) ** 2).sum(axis=0), ((y - mean) ** 2).sum(axis=0)
    np.testing.assert_allclose(found.r_squared, 1 - left.sum() / all_of_it.sum(), rtol=1e-9)
    np.testing.assert_allclose(found.r_squared_of_target, 1 - left / all_of_it, rtol=1e-9)
    everything = peer(np.ones(len(x), bool))
    np.testing.assert_allclose(found.weights, everything.coef_.T, rtol=1e-6)
    np.testing.assert_allclose(found(x), everything.predict(x), rtol=1e-6)


def test_the_interval_covers_the_score_as_often_as_it_says():
    """y = x + noise of equal size: R² is 1/2. 95 % of 200 is 190, three deviations below 181."""
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(400, 1))
        y = x + rng.normal(size=(400, 1))
        found = linear_probe.linear_probe(x, y, seed=seed, num_resamples=200)
        covered += found.lower <= 0.5 <= found.upper
    assert covered >= 178


def test_tokens_of_a_context_are_not_independent():
    """Features that say nothing but which context it is: known ones explain all, new ones none."""
    rng = np.random.default_rng(0)
    contexts = np.repeat(np.arange(60), 5)
    x, y = rng.normal(size=(60, 80))[contexts], rng.normal(size=(60, 1))[contexts]
    assert linear_probe.linear_probe(x, y, seed=0).r_squared > 0.99
    grouped = linear_probe.linear_probe(x, y, seed=0, contexts=contexts)
    assert grouped.upper < 0.3
    alone = linear_probe.linear_probe(x[::5], y[::5], seed=0)
    np.testing.assert_allclose(grouped.r_squared, alone.r_squared, rtol=1e-4)


def test_other_contexts_targets_are_not_explained():
    x, y = table()
    assert linear_probe.linear_probe(x, y, seed=0).lower > 0.5
    assert linear_probe.shuffled_probe(x, y, seed=0).upper < 0.02
    contexts = np.tile(np.arange(100), 6)
    assert linear_probe.shuffled_probe(x, y, seed=0, contexts=contexts).upper < 0.02


def test_shuffled_contexts_stay_together():
    contexts = np.tile(np.arange(5), 3)
    order = np.repeat(np.arange(3), 5)
    x = np.random.default_rng(0).normal(size=(15, 1))
    found = linear_probe.shuffled_probe(x, order + 0.0, seed=1, contexts=contexts, num_folds=2)
    kept = linear_probe.linear_probe(x, order + 0.0, seed=1, contexts=contexts, num_folds=2)
    assert found == kept._replace(
        r_squared_of_target=found.r_squared_of_target,
        weights=found.weights,
        intercept=found.intercept,
    ), "the k-th token of a context gets the k-th of another"


@pytest.mark.parametrize("num_contexts", [2, 3, 100])
def test_no_context_keeps_its_own(num_contexts):
    other = linear_probe.other_contexts(num_contexts, seed=5)
    assert sorted(other) == list(range(num_contexts))
    assert (other != np.arange(num_contexts)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": np.ones(3)}, "targets 3"),
        ({"features": np.full((10, 2), np.nan)}, "features is not finite"),
        ({"features": np.ones(())}, r"features has shape \(\)"),
        ({"targets": np.ones(10)}, "does not vary"),
        ({"ridge": -1.0}, "ridge=-1.0"),
        ({"num_folds": 1}, "num_folds=1"),
        ({"num_folds": 11}, "num_folds=11"),
        ({"contexts": np.ones(3)}, "contexts has shape"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    rng = np.random.default_rng(0)
    given = {"features": rng.normal(size=(10, 2)), "targets": rng.normal(size=10), **change}
    with pytest.raises(ValueError, match=message):
        linear_probe.linear_probe(given.pop("features"), given.pop("targets"), seed=0, **given)
    with pytest.raises(ValueError, match="equal ones"):
        linear_probe.shuffled_probe(np.ones(3), np.ones(3), seed=0, contexts=[0, 0, 1])
    with pytest.raises(ValueError, match="num_contexts=1"):
        linear_probe.other_contexts(1, seed=0)
