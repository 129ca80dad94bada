"""A small convolutional network for images (N, H, W, C)."""

from collections.abc import Callable, Sequence

import flax.linen as nn

from dynamics import arguments
from dynamics.aliases import Array
from dynamics.models import layers, parameterisations


class ConvNet(nn.Module):
    """Convolutions with pooling, the mean over positions, and a linear read-out.

    Attributes:
        channels: number of channels of each 3 x 3 convolution.
        num_outputs: K.
        activation: after each convolution (and after its batch norm).
        pool: average pooling by two after each convolution but the last.
        batch_norm: batch norm before each activation; call with `train=True` and
            `mutable=["batch_stats"]` to update its statistics, with `train=False` to use them.
        parameterisation: of the convolutions and the read-out.
        weight_std: standard deviation of a pre-activation for inputs of unit mean square.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = ConvNet(channels=(4, 8), num_outputs=10)
        >>> x = jnp.ones((2, 8, 8, 1))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (2, 10)
    """

    channels: Sequence[int]
    num_outputs: int
    activation: Callable[[Array], Array] = nn.relu
    pool: bool = True
    batch_norm: bool = False
    parameterisation: parameterisations.Name = "standard"
    weight_std: float = 1.0

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Return the outputs (N, K)."""
        arguments.counts(num_outputs=self.num_outputs)
        arguments.sizes(channels=self.channels)
        return layers.Dense(
            self.num_outputs,
            "output",
            self.parameterisation,
            self.weight_std,
            name=f"layer_{len(self.channels)}",
        )(self.features(x, train))

    @nn.compact
    def features(self, x: Array, train: bool = False) -> Array:
        """Return the features (N, channels[-1]) that the read-out sees."""
        arguments.sizes(channels=self.channels)
        arguments.functions(activation=self.activation)
        arguments.shapes("N H W C", x=x)
        for index, channels in enumerate(self.channels):
            x = layers.Conv(
                channels,
                role="input" if index == 0 else "hidden",
                parameterisation=self.parameterisation,
                weight_std=self.weight_std,
                name=f"layer_{index}",
            )(x)
            if self.batch_norm:
                norm = nn.BatchNorm(
                    use_running_average=not train,
                    param_dtype=layers.parameter_dtype(x),
                    name=f"norm_{index}",
                )
                x = norm(x)
            x = self.activation(x)
            if self.pool and index < len(self.channels) - 1:
                x = nn.avg_pool(x, (2, 2), (2, 2))
        return x.mean(axis=(1, 2))
