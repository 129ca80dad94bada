"""The residual network for small images (N, H, W, C)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn

from dynamics import arguments
from dynamics.aliases import Array
from dynamics.models import layers


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut, batch norm after each (He et al. 2016, figure 2).

    Attributes:
        channels: of both convolutions.
        stride: of the first; where the shape changes the shortcut is a 1 x 1 convolution.
    """

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Return (N, H / stride, W / stride, channels)."""
        arguments.counts(channels=self.channels, stride=self.stride)
        arguments.shapes("N H W C", x=x)
        norm: Any = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            param_dtype=layers.parameter_dtype(x),
        )
        conv: Any = partial(layers.Conv, use_bias=False, weight_std=2**0.5)
        strides = (self.stride, self.stride)
        out = nn.relu(norm()(conv(self.channels, strides=strides)(x)))
        out = norm()(conv(self.channels)(out))
        if x.shape != out.shape:
            x = norm()(conv(self.channels, kernel_size=(1, 1), strides=strides)(x))
        return nn.relu(out + x)


class ResNet(nn.Module):
    """Stages of residual blocks, the mean over positions, and a linear read-out.

    The stem is one 3 x 3 convolution without pooling, as is usual for 32 x 32 images; the default
    sizes are those of ResNet-18 (He et al. 2016, arXiv:1512.03385, table 1).

    Attributes:
        num_outputs: K.
        width: channels of the first stage; each further stage doubles them and halves the image.
        stage_sizes: residual blocks in each stage.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = ResNet(num_outputs=10, width=4, stage_sizes=(1, 1))
        >>> x = jnp.ones((2, 8, 8, 3))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (2, 10)
    """

    num_outputs: int
    width: int = 64
    stage_sizes: Sequence[int] = (2, 2, 2, 2)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Return the outputs (N, K); with `train` the batch's statistics are used and kept."""
        arguments.counts(num_outputs=self.num_outputs)
        features = self.features(x, train)
        return layers.Dense(self.num_outputs, "output", name="read_out")(features)

    @nn.compact
    def features(self, x: Array, train: bool = False) -> Array:
        """Return the features (N, last channels) that the read-out sees."""
        arguments.counts(width=self.width)
        arguments.sizes(stage_sizes=self.stage_sizes)
        arguments.shapes("N H W C", x=x)
        x = layers.Conv(self.width, role="input", use_bias=False, weight_std=2**0.5)(x)
        norm = nn.BatchNorm(
            use_running_average=not train, momentum=0.9, param_dtype=layers.parameter_dtype(x)
        )
        x = nn.relu(norm(x))
        for stage, size in enumerate(self.stage_sizes):
            for block in range(size):
                stride = 2 if stage and not block else 1
                x = ResidualBlock(self.width * 2**stage, stride)(x, train)
        return x.mean(axis=(1, 2))
