"""The fully connected network."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from dynamics import arguments
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
        batch_norm: batch norm before each activation; call with `train=True` and
            `mutable=["batch_stats"]` to use and keep the batch's statistics, with `train=False`
            to use those kept.

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
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Return the outputs (N, K)."""
        arguments.sizes(widths=self.widths)
        return self._layer(len(self.widths) - 1, self.features(x, train))

    @nn.compact
    def features(self, x: Array, train: bool = False) -> Array:
        """Return the features (N, widths[-2]) that the last layer sees; inputs if there is one."""
        arguments.sizes(widths=self.widths)
        arguments.functions(activation=self.activation)
        arguments.shapes("N ...", x=x)
        x = x.reshape(x.shape[0], -1)
        for index in range(len(self.widths) - 1):
            x = self._layer(index, x)
            if self.batch_norm:
                norm = nn.BatchNorm(
                    use_running_average=not train,
                    param_dtype=layers.parameter_dtype(x),
                    name=f"norm_{index}",
                )
                x = norm(x)
            x = self.activation(x)
        return x

    def _layer(self, index: int, x: Array) -> Array:
        return layers.Dense(
            self.widths[index],
            layers.role_of(index, len(self.widths)),
            self.parameterisation,
            self.weight_std,
            self.bias_std,
            self.use_bias,
            name=f"layer_{index}",
        )(x)
