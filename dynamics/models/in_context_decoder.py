"""A GPT-style decoder that predicts each target of a prompt from the examples before it."""

import flax.linen as nn
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array, Params
from dynamics.models import transformer


class InContextDecoder(nn.Module):
    """Causal transformer over the prompt x1 y1 x2 y2 ..., read out at the inputs.

    Each example is two tokens, the input with a zero in the place of the target and the target
    with zeros in the place of the input, and a mark which of the two it is. What is read at x_i
    has seen x_1, y_1, ..., y_(i-1) and x_i, and so predicts y_i in context.

    Attributes:
        width: size of the residual stream.
        num_layers: number of blocks.
        num_heads: number of attention heads.
        max_examples: the longest prompt, for the learned positions.

    Source:
        Garg et al. 2022, arXiv:2208.01066, section 3, and Fu et al. 2023, arXiv:2310.17086 (12
        layers, 8 heads, width 256, D = 20 there); with a mark instead of their position parity.

    Example:
        >>> import jax
        >>> model = InContextDecoder(width=16, num_layers=2, num_heads=2, max_examples=5)
        >>> tokens = jnp.ones((7, 5, 4))
        >>> model.apply(model.init(jax.random.key(0), tokens), tokens).shape
        (7, 5)
    """

    width: int = 256
    num_layers: int = 12
    num_heads: int = 8
    max_examples: int = 41

    def setup(self) -> None:
        """Make the transformer that does the work."""
        arguments.counts(width=self.width, num_layers=self.num_layers, num_heads=self.num_heads)
        arguments.counts(max_examples=self.max_examples)
        self.decoder = transformer.Transformer(
            num_outputs=1,
            width=self.width,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            max_tokens=2 * self.max_examples,
            read_out="all",
        )

    def __call__(self, tokens: Array) -> Array:
        """Return the predictions (B, N) for tokens (B, N, D + 1), rows of inputs and target."""
        arguments.shapes("B N _", tokens=tokens)
        if tokens.shape[1] > self.max_examples:
            message = f"tokens has {tokens.shape[1]} examples; max_examples={self.max_examples}"
            raise ValueError(message)
        return self.decoder(interleaved(tokens))[:, ::2, 0]


def interleaved(tokens: Array) -> Array:
    """Return (B, 2N, D + 2) for rows (x, y): x with mark 1, then y with mark 0, example by example.

    Raises:
        ValueError: `tokens` is not (B, N, D + 1) with D of at least 1.
    """
    arguments.shapes("B N _", tokens=tokens)
    if tokens.shape[-1] < 2:
        message = f"tokens has shape {tokens.shape}; give (prompts, examples, D + 1)"
        raise ValueError(message)
    mark = jnp.ones_like(tokens[..., :1])
    inputs = jnp.concatenate([tokens.at[..., -1].set(0), mark], axis=-1)
    targets = jnp.concatenate([tokens.at[..., :-1].set(0), 0 * mark], axis=-1)
    return jnp.stack([inputs, targets], axis=2).reshape(len(tokens), -1, tokens.shape[-1] + 1)


def residual_stream(model: InContextDecoder, params: Params, tokens: Array) -> Array:
    """Return the stream (L, B, N, width) after each block, at the inputs' positions."""
    arguments.records(InContextDecoder, model=model)
    arguments.params(params=params)
    arguments.shapes("B N D", tokens=tokens)
    _, found = model.apply(params, tokens, mutable=["intermediates"])
    return jnp.stack(found["intermediates"]["decoder"]["residual_stream"])[:, :, ::2]
