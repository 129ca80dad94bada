"""The deep linear network: a product of matrices."""

from collections.abc import Sequence

import flax.linen as nn

from dynamics import arguments
from dynamics.aliases import Array
from dynamics.models import layers, parameterisations


class DeepLinear(nn.Module):
    """f(x) = x W_1 W_2 ... W_L, without biases; parameters are named as in an MLP.

    Attributes:
        widths: number of outputs of each matrix; the last is the number of outputs K.
        parameterisation: "standard", "ntk", "mean_field" or "mup".
        weight_std: standard deviation of the outputs of each layer for inputs of unit mean square.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = DeepLinear(widths=(4, 4, 2))
        >>> params = model.init(jax.random.key(0), jnp.ones((1, 3)))
        >>> x = jax.random.normal(jax.random.key(1), (5, 3))
        >>> bool(jnp.allclose(model.apply(params, 2 * x), 2 * model.apply(params, x), atol=1e-5))
        True
    """

    widths: Sequence[int]
    parameterisation: parameterisations.Name = "standard"
    weight_std: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the outputs (N, K)."""
        arguments.sizes(widths=self.widths)
        arguments.shapes("N ...", x=x)
        x = x.reshape(x.shape[0], -1)
        for index, width in enumerate(self.widths):
            x = layers.Dense(
                width,
                layers.role_of(index, len(self.widths)),
                self.parameterisation,
                self.weight_std,
                use_bias=False,
                name=f"layer_{index}",
            )(x)
        return x
