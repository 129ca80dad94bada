"""One valid call of every public function and module of `dynamics.models`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dynamics.aliases import LinearAttentionWeights
from dynamics.models import (
    adapters,
    convnet,
    deep_linear,
    diagonal_linear,
    free_features,
    in_context_decoder,
    inverse_covariance_attention,
    layers,
    linear_attention,
    mlp,
    pair_networks,
    parameterisations,
    resnet,
    saturated_attention,
    softmax_pooling,
    token_counts,
    transformer,
)

KEY = jax.random.key(0)
X = jnp.ones((2, 3))
IMAGES = jnp.ones((2, 4, 4, 1))
TOKENS = jnp.ones((2, 3, 2))
PAIRS = jnp.array([[0, 1], [2, 0]])
LAYER = LinearAttentionWeights(*[jnp.full((2, 2), 0.1)] * 4)
STACK = LinearAttentionWeights(*[jnp.full((2, 2, 2), 0.1)] * 4)
SCALED = dict(parameterisation="standard", weight_std=1.0)


def _free():
    return free_features.init(KEY, num_samples=3, width=2, num_classes=2, num_hidden=1, std=1.0)


def _diagonal():
    return diagonal_linear.DiagonalWeights(jnp.ones(2), jnp.ones(2))


def _block():
    return token_counts.init(KEY, num_classes=3, width=2, hidden=2)


def _pair_transformer():
    model = transformer.Transformer(3, 4, 1, 2, vocabulary=4, max_tokens=3)
    return dict(model=model, variables=model.init(KEY, pair_networks.pair_tokens(PAIRS, 3)))


def _decoder():
    model = in_context_decoder.InContextDecoder(4, 1, 2, 3)
    return dict(model=model, params=model.init(KEY, TOKENS), tokens=TOKENS)


def _haiku():
    import haiku as hk

    network = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(1)(x)))
    network = hk.transform(lambda x: hk.Linear(1)(x))
    return dict(transformed=network, params=network.init(KEY, X), state=None, key=KEY)


def _equinox():
    import equinox as eqx

    return eqx.nn.Linear(3, 1, key=KEY)


def _nnx():
    from flax import nnx

    return nnx.Linear(3, 1, rngs=nnx.Rngs(0))


CALLS = {
    adapters.from_linen: lambda: dict(
        module=nn.Dense(1), variables={"params": {"kernel": jnp.ones((3, 1))}}
    ),
    adapters.from_nnx: lambda: dict(model=_nnx()),
    adapters.from_equinox: lambda: dict(model=_equinox(), batched=False),
    adapters.from_haiku: _haiku,
    convnet.ConvNet: lambda: dict(
        channels=(2, 2),
        num_outputs=2,
        activation=nn.relu,
        pool=True,
        batch_norm=True,
        x=IMAGES,
        **SCALED,
    ),
    deep_linear.DeepLinear: lambda: dict(widths=(2, 1), x=X, **SCALED),
    diagonal_linear.initial_weights: lambda: dict(scale=0.5, input_dim=2),
    diagonal_linear.from_factors: lambda: dict(first=jnp.ones((2, 3)), second=jnp.ones((2, 3))),
    diagonal_linear.coefficients: lambda: dict(weights=_diagonal()),
    diagonal_linear.squared_loss: lambda: dict(
        weights=_diagonal(), data=(jnp.ones((3, 2)), jnp.ones(3))
    ),
    free_features.init: lambda: dict(
        key=KEY, num_samples=3, width=2, num_classes=2, num_hidden=1, std=1.0
    ),
    free_features.kernel: lambda: dict(params=_free(), depth=2),
    free_features.regularised_loss: lambda: dict(
        params=_free(),
        targets=jnp.ones((3, 2)),
        depth=2,
        num_samples=3.0,
        weight_decay=0.1,
        feature_decay=0.1,
        bias_scale=1.0,
    ),
    in_context_decoder.InContextDecoder: lambda: dict(
        width=4, num_layers=1, num_heads=2, max_examples=3, tokens=TOKENS
    ),
    in_context_decoder.interleaved: lambda: dict(tokens=TOKENS),
    in_context_decoder.residual_stream: _decoder,
    inverse_covariance_attention.descent_layers: lambda: dict(
        inputs=jnp.ones((2, 3, 2)), queries=jnp.ones((2, 1, 2)), step_size=0.1, num_layers=2
    ),
    inverse_covariance_attention.implicit_weights: lambda: dict(
        stack=inverse_covariance_attention.StackWeights(jnp.ones((2, 5, 5)), jnp.ones((2, 5, 5))),
        moment=jnp.ones((2, 2, 3)),
        task=jnp.ones((2, 3)),
    ),
    inverse_covariance_attention.query_tokens: lambda: dict(
        stack=inverse_covariance_attention.StackWeights(jnp.ones((2, 5, 5)), jnp.ones((2, 5, 5))),
        inputs=jnp.ones((3, 4, 2)),
        labels=jnp.ones((3, 4)),
        query=jnp.ones((3, 2)),
    ),
    layers.Dense: lambda: dict(
        features=2, role="hidden", bias_std=0.5, use_bias=True, x=X, **SCALED
    ),
    layers.Conv: lambda: dict(
        features=2,
        kernel_size=(3, 3),
        strides=(1, 1),
        padding="SAME",
        role="hidden",
        bias_std=0.5,
        use_bias=True,
        x=IMAGES,
        **SCALED,
    ),
    layers.convolve: lambda: dict(
        x=IMAGES, kernel=jnp.ones((3, 3, 1, 2)), strides=(1, 1), padding="SAME", by_patches=None
    ),
    layers.parameter_dtype: lambda: dict(x=jnp.ones((3, 2))),
    layers.role_of: lambda: dict(index=1, num_layers=3),
    layers.scalings: lambda: dict(
        params={"layer_0": {"kernel": jnp.ones((3, 2))}}, parameterisation="mup"
    ),
    linear_attention.linear_self_attention: lambda: dict(
        weights=LAYER, tokens=TOKENS, num_context=2
    ),
    linear_attention.attention_stack: lambda: dict(weights=STACK, tokens=TOKENS, num_context=2),
    linear_attention.random_weights: lambda: dict(key=KEY, dim=2, std=0.1),
    linear_attention.tie: lambda: dict(weights=LAYER, num_layers=2),
    linear_attention.context_gram: lambda: dict(tokens=TOKENS, num_context=2),
    linear_attention.layer_matrix: lambda: dict(weights=LAYER, gram=jnp.eye(2)),
    linear_attention.gram_self_attention: lambda: dict(
        weights=LAYER, gram=jnp.eye(2), query=jnp.ones(2)
    ),
    linear_attention.gram_stack: lambda: dict(weights=STACK, gram=jnp.eye(2), query=jnp.ones(2)),
    linear_attention.read_out_row: lambda: dict(weights=STACK, gram=jnp.eye(2)),
    linear_attention.LinearAttention: lambda: dict(
        num_layers=2, tied=False, num_context=2, init_std=0.1, x=TOKENS
    ),
    mlp.MLP: lambda: dict(
        widths=(2, 1),
        activation=jnp.tanh,
        bias_std=0.5,
        use_bias=True,
        batch_norm=True,
        x=X,
        **SCALED,
    ),
    pair_networks.PairMLP: lambda: dict(
        order=3,
        width=2,
        activation=jnp.square,
        embedding_dim=2,
        first_std=0.5,
        readout_std=0.5,
        factored=True,
        padded_readout=True,
        pairs=PAIRS,
    ),
    pair_networks.pair_tokens: lambda: dict(pairs=PAIRS, order=3),
    pair_networks.pair_transformer_logits: lambda: dict(**_pair_transformer(), pairs=PAIRS),
    parameterisations.layer_scaling: lambda: dict(
        name="mup", role="hidden", fan_in=2, fan_out=3, weight_std=1.0
    ),
    parameterisations.scale_by_layer: lambda: dict(
        scalings={"kernel": parameterisations.LayerScaling(1.0, 1.0, 1.0, 1.0)}, optimiser="sgd"
    ),
    resnet.ResidualBlock: lambda: dict(channels=2, stride=1, x=IMAGES),
    resnet.ResNet: lambda: dict(num_outputs=2, width=2, stage_sizes=(1,), x=IMAGES),
    saturated_attention.descent_direction: lambda: dict(
        logits=jnp.zeros((2, 3)), scores=jnp.array([[1.0, 2.0, 3.0]] * 2)
    ),
    softmax_pooling.SoftmaxPooling: lambda: dict(
        vocabulary=3, num_tokens=2, width=2, mlp_width=2, tokens=PAIRS
    ),
    token_counts.init: lambda: dict(key=KEY, num_classes=3, width=2, hidden=2),
    token_counts.attention: lambda: dict(
        params=_block(), counts=jnp.array([[2, 0, 1]]), norm=token_counts.Norm()
    ),
    token_counts.attention_logits: lambda: dict(params=_block(), norm=token_counts.Norm()),
    token_counts.apply: lambda: dict(
        params=_block(), counts=jnp.array([[2, 0, 1]]), norm=token_counts.Norm()
    ),
    transformer.Attention: lambda: dict(
        num_heads=2, causal=True, parameterisation="standard", x=jnp.ones((2, 3, 4))
    ),
    transformer.Transformer: lambda: dict(
        num_outputs=2,
        width=4,
        num_layers=1,
        num_heads=2,
        mlp_width=4,
        vocabulary=4,
        max_tokens=3,
        causal=True,
        layer_norm=True,
        read_out="last",
        activation=nn.relu,
        parameterisation="standard",
        x=np.array([[0, 1, 2]]),
    ),
    layers.add_bias: lambda: dict(layer=layers.Dense(2, use_bias=False), outputs=jnp.ones((3, 2))),
}
