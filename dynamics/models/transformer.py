"""A small transformer over token ids or continuous tokens."""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array
from dynamics.models import layers, parameterisations


class Attention(nn.Module):
    """Multi-head softmax attention without dropout.

    Logits are q.k / sqrt(d_head), or q.k / d_head under muP (Yang et al. 2022, definition 4.1).
    """

    num_heads: int
    causal: bool = True
    parameterisation: parameterisations.Name = "standard"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return (N, T, width) for x (N, T, width)."""
        arguments.counts(num_heads=self.num_heads)
        arguments.choices(parameterisations.NAMES, parameterisation=self.parameterisation)
        arguments.shapes("N T D", x=x)
        num_examples, num_tokens, width = x.shape
        if width % self.num_heads:
            message = f"num_heads={self.num_heads} does not divide the width {width} of x"
            raise ValueError(message)

        def project(name: str) -> Array:
            made = layers.Dense(
                width, parameterisation=self.parameterisation, use_bias=False, name=name
            )(x)
            return made.reshape(num_examples, num_tokens, self.num_heads, -1)

        query, key, value = project("query"), project("key"), project("value")
        head_dim = width // self.num_heads
        scale = head_dim if self.parameterisation == "mup" else head_dim**0.5
        logits = jnp.einsum("nthd,nshd->nhts", query, key) / scale
        if self.causal:
            seen = jnp.tril(jnp.ones((num_tokens, num_tokens), bool))
            logits = jnp.where(seen, logits, -jnp.inf)
        mixed = jnp.einsum("nhts,nshd->nthd", nn.softmax(logits), value)
        return layers.Dense(
            width, parameterisation=self.parameterisation, use_bias=False, name="mix"
        )(mixed.reshape(num_examples, num_tokens, width))


class Transformer(nn.Module):
    """Blocks of attention and a two-layer MLP, each on a residual branch.

    The residual stream (N, T, width) after each block is there for the asking:
    `model.apply(params, x, mutable=["intermediates"])[1]["intermediates"]["residual_stream"]`.

    Attributes:
        num_outputs: K.
        width: size of the residual stream.
        num_layers: number of blocks.
        num_heads: number of attention heads.
        mlp_width: hidden width of the MLP; 4 * width where None.
        vocabulary: number of token ids for x (N, T) of integers; None for x (N, T, D) of numbers.
        max_tokens: the longest sequence, for the learned positions.
        causal: whether a token sees only those before it.
        layer_norm: normalise before each branch and at the end.
        read_out: "last" or "mean" position, giving (N, K), or "all", giving (N, T, K).
        activation: of the MLP.
        parameterisation: of all linear maps; embeddings are drawn from N(0, 1) throughout.

    Example:
        >>> import jax
        >>> model = Transformer(num_outputs=7, width=16, num_heads=2, vocabulary=7, max_tokens=3)
        >>> x = jnp.array([[1, 2, 6]])
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (1, 7)
    """

    num_outputs: int
    width: int = 128
    num_layers: int = 1
    num_heads: int = 4
    mlp_width: int | None = None
    vocabulary: int | None = None
    max_tokens: int = 64
    causal: bool = True
    layer_norm: bool = True
    read_out: Literal["last", "mean", "all"] = "last"
    activation: Callable[[Array], Array] = nn.relu
    parameterisation: parameterisations.Name = "standard"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the outputs (N, K), or (N, T, K) with read_out="all"."""
        arguments.counts(num_outputs=self.num_outputs, width=self.width, num_layers=self.num_layers)
        arguments.counts(num_heads=self.num_heads, max_tokens=self.max_tokens)
        if self.mlp_width is not None:
            arguments.counts(mlp_width=self.mlp_width)
        arguments.functions(activation=self.activation)
        arguments.choices(parameterisations.NAMES, parameterisation=self.parameterisation)
        arguments.choices(("last", "mean", "all"), read_out=self.read_out)
        h = self._embed(x)
        for index in range(self.num_layers):
            attention = Attention(
                self.num_heads, self.causal, self.parameterisation, name=f"attention_{index}"
            )
            h = h + attention(self._normalise(h, f"attention_norm_{index}"))
            h = h + self._mlp(self._normalise(h, f"mlp_norm_{index}"), index)
            self.sow("intermediates", "residual_stream", h)
        h = self._normalise(h, "final_norm")
        h = {"last": lambda: h[:, -1], "mean": lambda: h.mean(axis=1), "all": lambda: h}[
            self.read_out
        ]()
        return self._dense(self.num_outputs, "output", "read_out")(h)

    def _dense(self, features: int, role: parameterisations.Role, name: str) -> layers.Dense:
        return layers.Dense(features, role, self.parameterisation, name=name)

    def _embed(self, x: Array) -> Array:
        if self.vocabulary is None:
            arguments.shapes("N T D", x=x)
        else:
            arguments.counts(vocabulary=self.vocabulary)
            arguments.shapes("N T", x=x)
            arguments.labels(self.vocabulary, x=x)
        if x.shape[1] > self.max_tokens:
            message = f"x has {x.shape[1]} tokens; max_tokens={self.max_tokens}"
            raise ValueError(message)
        if self.vocabulary is None:
            h = self._dense(self.width, "input", "embed")(x)
        else:
            table = nn.initializers.normal(1.0)
            embed = nn.Embed(
                self.vocabulary,
                self.width,
                embedding_init=table,
                param_dtype=jnp.result_type(float),
                name="embed",
            )
            h = embed(x)
        positions = self.param(
            "positions", nn.initializers.normal(1.0), (self.max_tokens, self.width), h.dtype
        )
        return h + positions[: x.shape[1]]

    def _normalise(self, h: Array, name: str) -> Array:
        if not self.layer_norm:
            return h
        return nn.LayerNorm(param_dtype=layers.parameter_dtype(h), name=name)(h)

    def _mlp(self, h: Array, index: int) -> Array:
        hidden = self._dense(self.mlp_width or 4 * self.width, "hidden", f"mlp_in_{index}")(h)
        return self._dense(self.width, "hidden", f"mlp_out_{index}")(self.activation(hidden))
