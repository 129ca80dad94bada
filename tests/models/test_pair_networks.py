"""Tables over elements against the plain network on one-hot pairs or tokens, and against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.models import pair_networks
from dynamics.models.transformer import Transformer

ORDER = 11
NAMES = ("left", "right", "readout")
pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture
def pairs():
    return jnp.asarray(np.random.default_rng(0).integers(0, ORDER, (40, 2)))


def doubled(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree)


def function_and_gradient(logits_of, params):
    targets = jnp.asarray(np.random.default_rng(1).normal(size=logits_of(params).shape))
    return logits_of(params), jax.grad(lambda p: jnp.sum((logits_of(p) - targets) ** 2))(params)


@pytest.mark.parametrize("embedding_dim", [None, 6])
def test_factored_mlp_is_the_same_function(key, pairs, embedding_dim):
    both = []
    for factored in (True, False):
        model = pair_networks.PairMLP(ORDER, 24, embedding_dim=embedding_dim, factored=factored)
        params = doubled(model.init(key, pairs))
        both.append(function_and_gradient(lambda p, model=model: model.apply(p, pairs), params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), *both)


def test_a_padded_readout_has_the_same_gradient(key, pairs):
    both = []
    for padded in (True, False):
        model = pair_networks.PairMLP(ORDER, 24, padded_readout=padded)
        params = doubled(model.init(key, pairs))
        both.append(function_and_gradient(lambda p, model=model: model.apply(p, pairs), params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), *both)


@pytest.mark.parametrize("padded_readout", [False, True])
def test_mlp_by_hand(key, pairs, padded_readout):
    model = pair_networks.PairMLP(ORDER, 24, padded_readout=padded_readout)
    variables = doubled(model.init(key, pairs))
    left, right, readout = (np.asarray(variables["params"][n]) for n in NAMES)
    expected = [np.square(left[a] + right[b]) @ readout for a, b in np.asarray(pairs)]
    np.testing.assert_allclose(model.apply(variables, pairs), expected, rtol=1e-12)


@pytest.mark.parametrize("embedding_dim", [None, 32])
def test_pre_activations_start_at_the_stated_scale(key, embedding_dim):
    """Pre-activations of variance 2 first_std² = 1, hence linear outputs of variance 1."""
    model = pair_networks.PairMLP(50, 4000, embedding_dim=embedding_dim, activation=lambda h: h)
    pairs = jnp.stack([jnp.arange(50), jnp.arange(50)[::-1]], axis=1)
    logits = model.apply(model.init(key, pairs), pairs)  # 2500 of them: s.e. 0.03 if independent
    assert jnp.var(logits) == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("parameterisation", ["standard", "ntk", "mup"])
def test_transformer_from_tables_is_the_same_function(key, pairs, layer_norm, parameterisation):
    model = Transformer(
        num_outputs=ORDER, width=16, num_heads=2, vocabulary=ORDER + 1, max_tokens=3,
        layer_norm=layer_norm, parameterisation=parameterisation,
    )  # fmt: skip
    tokens = pair_networks.pair_tokens(pairs, ORDER)
    params = doubled(model.init(key, tokens))
    plain = function_and_gradient(lambda p: model.apply(p, tokens), params)
    tables = function_and_gradient(
        lambda p: pair_networks.pair_transformer_logits(model, p, pairs), params
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), tables, plain)


def test_models_without_a_short_cut_are_refused(pairs):
    for change in ({"num_layers": 2}, {"read_out": "mean"}, {"vocabulary": None}):
        model = Transformer(**({"num_outputs": ORDER, "vocabulary": ORDER + 1} | change))
        with pytest.raises(ValueError, match="num_layers="):
            pair_networks.pair_transformer_logits(model, {}, pairs)
