"""The fully connected network."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from dynamics.aliases import Array
from dynamics.models import layers, parameterisations


class MLP(nn.Module):
    """A fully connected network of len(widths) linear maps, one activation between any two.

    Inputs of any shape (N, ...) are flattened to (N, D).

    Attributes:
        widths: number of outputs of each layer; the last is the number of outputs K.
        activation: applied after every layer but the last.
        parameterisation: "standard", "ntk", "mean_field" or "mup".
        weight_std: standard deviation of a pre-activation for inputs of unit mean square.
        bias_std: scale of the biases.
        use_bias: whether there are biases.

    Example:
        >>> import jax
        >>> model = MLP(widths=(32, 3))
        >>> x = jnp.ones((5, 8))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (5, 3)
    """

    widths: Sequence[int]
    activation: Callable[[Array], Array] = jnp.tanh
    parameterisation: parameterisations.Name = "standard"
    weight_std: float = 1.0
    bias_std: float = 0.0
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the outputs (N, K)."""
        x = x.reshape(x.shape[0], -1)
        for index, width in enumerate(self.widths):
            role = layers.role_of(index, len(self.widths))
            if index:
                x = self.activation(x)
            x = layers.Dense(
                width,
                role,
                self.parameterisation,
                self.weight_std,
                self.bias_std,
                self.use_bias,
                name=f"layer_{index}",
            )(x)
        return x
