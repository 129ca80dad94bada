"""The eigenframework against its equations, exact cases, limits and regressions written out."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from dynamics.theory import eigenframework

pytestmark = pytest.mark.usefixtures("x64")
INDEX = np.arange(1.0, 301)


@pytest.fixture
def modes():
    return eigenframework.spectrum(INDEX**-1.5, INDEX**-1.3)


def two_equations(modes, n, k, ridge, noise):
    """Test and train error with the two unknowns solved for together, by another library."""
    lam, power = np.asarray(modes.eigenvalues), np.asarray(modes.powers)

    def missing(logs):
        kappa, gamma = np.exp(logs)
        z = np.sum(lam / (lam + gamma))
        return [z + ridge / kappa - n, z + k * kappa / gamma - k]

    start = eigenframework.risk(modes, num_samples=n, num_features=k, ridge=1.3 * ridge)
    found = scipy.optimize.root(missing, np.log([start.kappa, start.gamma]), tol=1e-13)
    kappa, gamma = np.exp(found.x)
    z, q = np.sum(lam / (lam + gamma)), np.sum((lam / (lam + gamma)) ** 2)
    left = gamma / (lam + gamma) - kappa * lam / (lam + gamma) ** 2 * k / (k - q)
    test = (np.sum(left * power) + noise) / (1 - (q * (k - 2 * z) + z**2) / (n * (k - q)))
    return test, (ridge / (n * kappa)) ** 2 * test


@pytest.mark.parametrize("k", [20.0, 64.0, 200.0])
@pytest.mark.parametrize("ridge", [1e-2, 3.0])
def test_the_two_equations_as_they_are_published(modes, k, ridge):
    found = eigenframework.risk(modes, num_samples=64.0, num_features=k, ridge=ridge, noise=0.1)
    np.testing.assert_allclose(
        [found.test, found.train], two_equations(modes, 64.0, k, ridge, 0.1), rtol=1e-7
    )


@pytest.mark.parametrize("k", [40.0, jnp.inf])
def test_regression_written_out(key, modes, k):
    """500 plain regressions of 60 samples with sampled noise: mean test and train error."""
    n, noise, ridge = 60, 0.3, 0.05
    lam, target = np.asarray(modes.eigenvalues), np.sqrt(modes.powers)

    def one(key):
        sample, weight, noise_key = jax.random.split(key, 3)
        functions = jax.random.normal(sample, (n, len(lam)))
        weights = jnp.diag(jnp.sqrt(lam))
        if np.isfinite(k):
            drawn = jax.random.normal(weight, (len(lam), int(k))) / k**0.5
            weights = weights @ drawn
        features = functions @ weights
        labels = functions @ target + noise**0.5 * jax.random.normal(noise_key, (n,))
        dual = jnp.linalg.solve(features @ features.T + ridge * jnp.eye(n), labels)
        error = weights @ (features.T @ dual) - target
        return jnp.sum(error**2) + noise, jnp.mean((ridge * dual) ** 2)

    drawn = np.stack(jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(key, 500)))
    found = eigenframework.risk(modes, num_samples=n, num_features=k, ridge=ridge, noise=noise)
    error = drawn.std(axis=1) / 500**0.5
    # And the part by which 60 samples differ from infinitely many.
    assert np.all(np.abs(drawn.mean(axis=1) - [found.test, found.train]) < 5 * error + 0.02)
    assert np.all(error < 0.02)


def test_ridgeless_linear_regression_exactly():
    """M equal modes: M/n > 1 is the known peak n / (M - n) of the variance at large M."""
    equal = eigenframework.spectrum(jnp.ones(200), jnp.zeros(200))
    for n in (50.0, 150.0):
        found = eigenframework.risk(equal, num_samples=n, ridge=0.0, noise=1.0)
        assert found.test == pytest.approx(200 / (200 - n), rel=1e-12)
        assert found.train == pytest.approx(0, abs=1e-20)
    # More samples than modes: the textbook σ² / (1 - M/n).
    found = eigenframework.risk(equal, num_samples=400.0, ridge=1e-12, noise=1.0)
    assert found.test == pytest.approx(1 / (1 - 200 / 400), rel=1e-9)
    assert found.train == pytest.approx(1 - 200 / 400, rel=1e-9)


def test_many_features_are_the_kernel(modes):
    at = lambda k: eigenframework.risk(
        modes, num_samples=64.0, num_features=k, ridge=0.1, noise=0.1
    )
    near, limit = at(1e9), at(jnp.inf)
    np.testing.assert_allclose([near.test, near.train], [limit.test, limit.train], rtol=1e-6)
    assert limit.kappa == limit.gamma


def test_fewer_features_than_samples_without_ridge(modes):
    """κ is zero there, and the training error the part (1 - k/n)² of the test error."""
    found = eigenframework.risk(modes, num_samples=64.0, num_features=16.0, ridge=0.0, noise=0.1)
    assert found.kappa / found.gamma == pytest.approx(0, abs=1e-12)
    assert found.train / found.test == pytest.approx((1 - 16 / 64) ** 2, rel=1e-10)


@hypothesis.given(st.floats(-4, 2), st.floats(1.5, 5.5), st.floats(1.5, 5.5), st.floats(-2, 2))
def test_laws(log_ridge, log_n, log_k, log_scale):
    """Kernel and ridge times c change nothing; powers times c are errors times c."""
    modes = eigenframework.spectrum(INDEX**-1.5, INDEX**-1.3)
    n, k, ridge, c = np.exp(log_n), np.exp(log_k), 10**log_ridge, 10**log_scale
    settings = dict(num_samples=n, num_features=k)
    found = eigenframework.risk(modes, **settings, ridge=ridge, noise=0.1)
    louder = modes._replace(powers=c * modes.powers)
    scaled = eigenframework.risk(louder, **settings, ridge=ridge, noise=0.1 * c)
    np.testing.assert_allclose(scaled.test, c * found.test, rtol=1e-9)
    larger = modes._replace(eigenvalues=c * modes.eigenvalues, traces=c * modes.traces)
    scaled = eigenframework.risk(larger, **settings, ridge=ridge * c, noise=0.1)
    np.testing.assert_allclose(scaled.test, found.test, rtol=1e-7)
    assert found.test > 0.1
    assert 0 <= found.train <= found.test
    # The ridge that the equation gives back at the γ found.
    back = found.gamma * (n - found.learned) * (1 - found.learned / k)
    assert back == pytest.approx(ridge, rel=1e-6)


def test_one_row_may_stand_for_many_modes(modes):
    ones = eigenframework.spectrum(jnp.ones(50), jnp.full(50, 0.02))
    row = eigenframework.Spectrum(*(jnp.array([x]) for x in (1.0, 50.0, 1.0)))
    of = lambda modes: eigenframework.risk(modes, num_samples=20.0, num_features=30.0, ridge=0.1)
    np.testing.assert_allclose(of(ones).test, of(row).test, rtol=1e-12)


def test_a_mode_without_eigenvalue_is_noise(modes):
    dead = eigenframework.Spectrum(
        jnp.append(modes.eigenvalues, 0.0), jnp.append(modes.traces, 0.0),
        jnp.append(modes.powers, 0.4),
    )  # fmt: skip
    settings = dict(num_samples=30.0, num_features=50.0, ridge=0.01)
    np.testing.assert_allclose(
        eigenframework.risk(dead, **settings, noise=0.1).test,
        eigenframework.risk(modes, **settings, noise=0.5).test, rtol=1e-12,
    )  # fmt: skip


def test_broadcasting_is_one_by_one(modes):
    n, k = jnp.array([20.0, 50.0])[:, None], jnp.array([10.0, 50.0, jnp.inf])
    table = eigenframework.risk(modes, num_samples=n, num_features=k, ridge=0.1, noise=0.2)
    one = eigenframework.risk(modes, num_samples=50.0, num_features=10.0, ridge=0.1, noise=0.2)
    assert table.test.shape == (2, 3)
    assert table.test[1, 0] == one.test


@pytest.mark.parametrize("k", [30.0, jnp.inf])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_optimal_ridge_against_a_scan_of_ridges(modes, k, noise):
    ridges = jnp.append(jnp.geomspace(1e-5, 1e3, 400), 0.0)
    scan = eigenframework.risk(modes, num_samples=50.0, num_features=k, ridge=ridges, noise=noise)
    found = eigenframework.optimal_ridge(modes, num_samples=50.0, num_features=k, noise=noise)
    assert found.test <= scan.test.min() * (1 + 1e-12)
    assert found.test == pytest.approx(float(scan.test.min()), rel=1e-4)
    again = eigenframework.risk(
        modes, num_samples=50.0, num_features=k, ridge=found.ridge, noise=noise
    )
    assert again.test == pytest.approx(float(found.test), rel=1e-9)


def test_more_is_better_at_the_optimum(modes):
    n, k = jnp.array([10.0, 20, 40, 80])[:, None], jnp.array([10.0, 20, 40, 80, 160, jnp.inf])
    best = eigenframework.optimal_ridge(modes, num_samples=n, num_features=k, noise=0.1).test
    assert np.all(np.diff(best, axis=0) < 0)
    assert np.all(np.diff(best, axis=1) < 0)


@pytest.mark.parametrize(("alpha", "beta"), [(1.3, 1.6), (1.75, 1.25), (2.0, 4.0)])
def test_sums_of_a_power_law_are_zeta_functions(alpha, beta):
    law = eigenframework.power_law(alpha, beta)
    zeta = scipy.special.zeta
    np.testing.assert_allclose(
        [law.traces.sum(), law.powers.sum()], [zeta(alpha), zeta(beta)], rtol=1e-7
    )
    lumped = eigenframework.power_law(alpha, beta, nugget=True)
    assert len(lumped.traces) == 4097
    np.testing.assert_allclose(lumped.traces.sum(), law.traces.sum(), rtol=1e-12)
    few, many = (eigenframework.power_law(alpha, beta, num_modes=m) for m in (512, 4096))
    of = lambda law: eigenframework.risk(law, num_samples=60.0, ridge=0.0, noise=0.1).test
    np.testing.assert_allclose(of(few), of(many), rtol=1e-6)


@pytest.mark.parametrize(("alpha", "beta"), [(1.3, 1.6), (1.75, 2.5), (1.75, 1.25)])
def test_discrete_sums_tend_to_the_closed_forms(alpha, beta):
    """Critical noise, error and train/test ratio at the optimum, each nearer with more samples."""
    law = eigenframework.power_law(alpha, beta)
    closed = eigenframework.power_law_critical_noise(alpha, beta)
    noise = 3 * abs(closed)
    fitting = eigenframework.power_law_fitting(alpha, beta, noise)
    curve = eigenframework.power_law_test(1 - fitting**0.5, alpha, beta, noise)
    gaps = []
    for n in (100.0, 1600.0):
        free = eigenframework.risk(law, num_samples=n, ridge=0.0).test
        critical = eigenframework.critical_noise(law, n) / free
        best = eigenframework.optimal_ridge(law, num_samples=n, noise=noise * free)
        worst = eigenframework.risk(law, num_samples=n, ridge=0.0, noise=noise * free)
        gaps.append(
            [
                critical / closed - 1,
                best.train / best.test - fitting,
                best.test / worst.test - curve,
            ]
        )
    gaps = np.abs(np.array(gaps))
    assert np.all(gaps[0] < 0.02)
    assert np.all(gaps[1] < gaps[0] / 4)


def test_critical_noise_is_where_a_small_ridge_begins_to_help():
    up = eigenframework.spectrum(INDEX**-1.5, INDEX**-2.5)
    critical = eigenframework.critical_noise(up, 50.0)
    slope = lambda noise: np.diff(
        eigenframework.risk(up, num_samples=50.0, ridge=jnp.array([0, 1e-6]), noise=noise).test
    )
    assert slope(0.98 * critical) > 0 > slope(1.02 * critical)


@pytest.mark.parametrize("alpha", [1.5, 2.0])
@pytest.mark.parametrize("noise", [0.0, 0.2, 5.0])
def test_fitting_is_the_minimum_of_the_curve(alpha, noise):
    for beta in (1.2, 1.9, 3.5):
        share = np.linspace(1e-3, 1, 200_001)
        curve = eigenframework.power_law_test(share, alpha, beta, noise)
        expected = (1 - share[np.argmin(curve)]) ** 2
        found = eigenframework.power_law_fitting(alpha, beta, noise)
        assert found == pytest.approx(expected, abs=1e-4)


def test_refusals():
    with pytest.raises(ValueError, match="eigenvalues"):
        eigenframework.spectrum(jnp.ones(3), jnp.ones(2))
    with pytest.raises(ValueError, match=r"alpha=1.0"):
        eigenframework.power_law(1.0, 2.0)
    with pytest.raises(ValueError, match=r"beta=0.5"):
        eigenframework.power_law(2.0, 0.5)
    with pytest.raises(ValueError, match="num_modes=0"):
        eigenframework.power_law(2.0, 2.0, num_modes=0)
    with pytest.raises(ValueError, match="beta=5"):
        eigenframework.power_law_critical_noise(2.0, 5.0)
    with pytest.raises(ValueError, match="relative_noise=-1"):
        eigenframework.power_law_fitting(2.0, 2.5, -1.0)
