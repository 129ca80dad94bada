"""Networks on pairs of group elements, evaluated from tables over single elements.

Whatever sees one element of the pair at a time (an embedding, the linear maps behind it, keys and
values) is computed once for each of the G elements and then looked up for each pair: the same
function as the network on one-hot pairs or tokens, with G rows in place of G² in its first
products.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import initializers

from dynamics import arguments
from dynamics.aliases import Array, Params
from dynamics.models import layers, parameterisations, transformer


class PairMLP(nn.Module):
    """Two layers, without biases, on pairs (a, b): activation(left_a + right_b) readout.

    With `embedding_dim` the tables are embedding @ left and embedding @ right, one embedding for
    both places. The activation x², its default, makes addition modulo G exactly solvable
    (`dynamics.theory.modular_addition`).

    Attributes:
        order: G, the number of elements, and of outputs.
        width: number of hidden units W.
        activation: of the hidden units.
        embedding_dim: size of a learned embedding, or None for one-hot elements.
        first_std: standard deviation of what one element adds to a pre-activation.
        readout_std: of the readout's entries; width**-0.5 where None.
        factored: look the elements' rows up in tables; else gather the embeddings (or one-hot
            vectors) of both and multiply those. The function and its gradients are the same.
        padded_readout: multiply with the readout's transpose and one output of zeros more, that is
            cut off again. The function and its gradients are the same, up to round-off; on a CPU
            the step of a network with 31 outputs takes three quarters of the time, since without
            the padding XLA turns the readout's gradient into a product that is four times slower.

    Example:
        >>> import jax
        >>> model, pairs = PairMLP(order=7, width=16), jnp.array([[1, 2], [3, 4]])
        >>> model.apply(model.init(jax.random.key(0), pairs), pairs).shape
        (2, 7)
    """

    order: int
    width: int
    activation: Callable[[Array], Array] = jnp.square
    embedding_dim: int | None = None
    first_std: float = 0.5**0.5
    readout_std: float | None = None
    factored: bool = True
    padded_readout: bool = False

    @nn.compact
    def __call__(self, pairs: Array) -> Array:
        """Return logits (N, G) for pairs (N, 2) of integers from 0 to G - 1."""
        arguments.counts(order=self.order, width=self.width)
        arguments.functions(activation=self.activation)
        if self.embedding_dim is not None:
            arguments.integers(0, embedding_dim=self.embedding_dim)
        arguments.not_negative(first_std=self.first_std)
        arguments.not_negative(readout_std=0 if self.readout_std is None else self.readout_std)
        arguments.shapes("N 2", pairs=pairs)
        arguments.labels(self.order, pairs=pairs)
        rows = self.embedding_dim or self.order
        # A one-hot vector picks one entry of a column, an embedding sums all of them.
        scale = self.first_std / (self.embedding_dim or 1) ** 0.5
        left, right = (
            self.param(name, initializers.normal(scale), (rows, self.width))
            for name in ("left", "right")
        )
        readout_std = self.width**-0.5 if self.readout_std is None else self.readout_std
        readout = self.param("readout", initializers.normal(readout_std), (self.width, self.order))
        embedding = None
        if self.embedding_dim:
            shape = (self.order, self.embedding_dim)
            embedding = self.param("embedding", initializers.normal(1.0), shape)
        hidden = self.activation(self._pre_activations(pairs, left, right, embedding))
        if self.padded_readout:
            padded = jnp.pad(readout.T, ((0, 1), (0, 0)))  # (G + 1, W)
            return jnp.einsum("nw,gw->ng", hidden, padded)[:, :-1]
        return hidden @ readout

    def _pre_activations(
        self, pairs: Array, left: Array, right: Array, embedding: Array | None
    ) -> Array:
        if self.factored:
            if embedding is not None:
                left, right = embedding @ left, embedding @ right
            return left[pairs[:, 0]] + right[pairs[:, 1]]
        if embedding is None:
            tokens = nn.one_hot(pairs, self.order, dtype=left.dtype)  # (N, 2, G)
        else:
            tokens = embedding[pairs]  # (N, 2, E)
        return tokens.reshape(len(pairs), -1) @ jnp.concatenate([left, right])


def pair_tokens(pairs: Array, order: int) -> Array:
    """Return the tokens (N, 3) "a b =" of pairs (N, 2); the sign "=" is token `order`."""
    arguments.shapes("N 2", pairs=pairs)
    arguments.counts(order=order)
    equals = jnp.full((len(pairs), 1), order, pairs.dtype)
    return jnp.concatenate([pairs, equals], axis=1)


def pair_transformer_logits(
    model: transformer.Transformer, variables: Params, pairs: Array
) -> Array:
    """Return `model.apply(variables, pair_tokens(pairs, G))` (N, K) from tables over elements.

    Only the last position is read, so its query is one vector, keys and values depend on one
    element each, and the MLP runs on one position in three.

    Args:
        model: one layer, vocabulary G + 1, reading out the last position.
        variables: as made by `model.init`.
        pairs: (N, 2) of integers from 0 to G - 1.

    Raises:
        ValueError: the model has more layers or reads other positions; there is no short cut then.
    """
    arguments.records(transformer.Transformer, model=model)
    arguments.shapes("N 2", pairs=pairs)
    if model.num_layers != 1 or model.read_out != "last" or model.vocabulary is None:
        message = (
            f"num_layers={model.num_layers}, read_out={model.read_out!r}, vocabulary="
            f"{model.vocabulary}: give a Transformer(num_layers=1, read_out='last', vocabulary=G+1)"
        )
        raise ValueError(message)
    arguments.labels(model.vocabulary - 1, pairs=pairs)
    if not isinstance(variables, Mapping) or "params" not in variables:
        message = "variables: no collection 'params' in it; give what model.init returned"
        raise TypeError(message)
    params = variables["params"]
    arguments.params(variables=params)
    embedding, positions = params["embed"]["embedding"], params["positions"]
    states = (embedding[:-1] + positions[0], embedding[:-1] + positions[1])  # of a, of b: (G, D)
    last = embedding[-1:] + positions[2]  # (1, D), of "="
    normalise = lambda name, h: _normalise(model, params, name, h)
    normed = [normalise("attention_norm_0", h) for h in (*states, last)]
    h = last + _attend_from_last(model, params["attention_0"], normed, pairs)
    hidden = _dense(model, params["mlp_in_0"], "hidden", normalise("mlp_norm_0", h))
    h = h + _dense(model, params["mlp_out_0"], "hidden", model.activation(hidden))
    return _dense(model, params["read_out"], "output", normalise("final_norm", h))


def _attend_from_last(
    model: transformer.Transformer, params: Params, states: list[Array], pairs: Array
) -> Array:
    """Return what the last position reads (N, D) from a, b and itself, states (G, D) or (1, D)."""
    heads = lambda name, h: _dense(model, params[name], "hidden", h).reshape(
        len(h), model.num_heads, -1
    )
    query = heads("query", states[2])[0]  # (H, D / H)
    scale = query.shape[-1] if model.parameterisation == "mup" else query.shape[-1] ** 0.5
    scores = [jnp.einsum("ghd,hd->gh", heads("key", h), query) / scale for h in states]
    values = [heads("value", h) for h in states]  # (G, H, D / H)
    index = (pairs[:, 0], pairs[:, 1], jnp.zeros(1, pairs.dtype))
    found = [table[i] for table, i in zip(scores, index, strict=True)]
    found[2] = jnp.broadcast_to(found[2], found[0].shape)
    weights = nn.softmax(jnp.stack(found), axis=0)  # (3, N, H)
    mixed = sum(
        weight[..., None] * table[i]
        for weight, table, i in zip(weights, values, index, strict=True)
    )
    return _dense(model, params["mix"], "hidden", mixed.reshape(len(pairs), -1))


def _dense(
    model: transformer.Transformer, params: Params, role: parameterisations.Role, h: Array
) -> Array:
    layer = layers.Dense(params["kernel"].shape[1], role, model.parameterisation,
                         use_bias="bias" in params)  # fmt: skip
    return jnp.asarray(layer.apply({"params": params}, h))


def _normalise(model: transformer.Transformer, params: Params, name: str, h: Array) -> Array:
    return jnp.asarray(nn.LayerNorm().apply({"params": params[name]}, h)) if model.layer_norm else h
