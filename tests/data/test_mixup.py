import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dynamics.data import mixup

NUM = 2000
INPUTS = jax.random.normal(jax.random.key(9), (NUM, 2, 3))
TARGETS = jnp.eye(NUM)[:, :50]


@pytest.mark.parametrize("concentration", [0.5, 1.0, 4.0])
def test_weights_are_of_the_beta_distribution(concentration):
    numbers = jnp.arange(NUM, dtype=float)[:, None]
    mixed, shares = mixup.mixup(
        jax.random.key(0), numbers, jnp.eye(NUM), concentration=concentration
    )  # targets that name the sample show who was mixed with whom, and how
    own = np.diag(np.asarray(shares))
    others = own[own < 1]  # a sample may be its own partner
    assert len(others) > NUM - 10
    assert stats.kstest(others, stats.beta(concentration, concentration).cdf).pvalue > 1e-3
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1.0)  # each is one other's partner
    np.testing.assert_allclose(mixed, shares @ numbers, rtol=1e-3)


def test_nothing_is_mixed_at_zero_and_the_concentration_may_be_traced():
    one = jax.jit(lambda c: mixup.mixup(jax.random.key(0), INPUTS, TARGETS, concentration=c))
    np.testing.assert_array_equal(one(0.0)[0], INPUTS)
    np.testing.assert_array_equal(one(0.0)[1], TARGETS)
    assert float(jnp.abs(one(1.0)[0] - INPUTS).max()) > 0.1
    expected = mixup.mixup(jax.random.key(0), INPUTS, TARGETS, concentration=1.0)
    np.testing.assert_allclose(one(1.0)[0], expected[0], atol=1e-6)
    both = jax.vmap(one)(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(both[0][0], INPUTS)
    np.testing.assert_allclose(both[0][1], expected[0], atol=1e-6)


def test_what_cannot_be_is_named():
    with pytest.raises(ValueError, match="targets has shape"):
        mixup.mixup(jax.random.key(0), INPUTS, TARGETS[:5])
    with pytest.raises(ValueError, match="concentration=-1"):
        mixup.mixup(jax.random.key(0), INPUTS, TARGETS, concentration=-1)
