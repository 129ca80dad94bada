"""The linear maps of all models, in any parameterisation."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import initializers
from jax import lax

from dynamics.aliases import Array, Params
from dynamics.models import parameterisations


class Dense(nn.Module):
    """A linear map of the last axis: multiplier * (x W) + bias_std * b.

    Attributes:
        features: number of outputs.
        role: "input", "hidden" or "output", which decides the scaling.
        parameterisation: one of parameterisations.NAMES.
        weight_std: standard deviation of the outputs for inputs of unit mean square.
        bias_std: scale of the bias: b starts at 0 in the standard and muP parameterisations and
            is drawn from N(0, 1) in the others (where bias_std > 0).
        use_bias: whether there is a bias.
    """

    features: int
    role: parameterisations.Role = "hidden"
    parameterisation: parameterisations.Name = "standard"
    weight_std: float = 1.0
    bias_std: float = 0.0
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return (..., features) for x (..., fan_in)."""
        scaling = parameterisations.layer_scaling(
            self.parameterisation, self.role, x.shape[-1], self.features, weight_std=self.weight_std
        )
        kernel = self.param(
            "kernel", initializers.normal(scaling.init_std), (x.shape[-1], self.features), x.dtype
        )
        return add_bias(self, scaling.multiplier * (x @ kernel))


class Conv(nn.Module):
    """A convolution over the two spatial axes of (N, H, W, C), scaled like `Dense`.

    The fan-in is the number of entries of a patch. `strides` and `padding` are those of
    jax.lax.conv_general_dilated.
    """

    features: int
    kernel_size: Sequence[int] = (3, 3)
    strides: Sequence[int] = (1, 1)
    padding: str = "SAME"
    role: parameterisations.Role = "hidden"
    parameterisation: parameterisations.Name = "standard"
    weight_std: float = 1.0
    bias_std: float = 0.0
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return (N, H', W', features) for x (N, H, W, C)."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        fan_in = self.kernel_size[0] * self.kernel_size[1] * x.shape[-1]
        scaling = parameterisations.layer_scaling(
            self.parameterisation, self.role, fan_in, self.features, weight_std=self.weight_std
        )
        kernel = self.param("kernel", initializers.normal(scaling.init_std), shape, x.dtype)
        convolved = lax.conv_general_dilated(
            x,
            kernel,
            tuple(self.strides),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return add_bias(self, scaling.multiplier * convolved)


def add_bias(layer: Any, outputs: Array) -> Array:
    """Add the bias that a layer asks for to its outputs (..., features)."""
    if not layer.use_bias:
        return outputs
    if layer.parameterisation in ("standard", "mup"):
        start, scale = initializers.normal(layer.bias_std), 1.0
        if layer.bias_std == 0.0:
            start = initializers.zeros
    else:
        start, scale = initializers.normal(1.0), layer.bias_std
    return outputs + scale * layer.param("bias", start, (layer.features,), outputs.dtype)


def role_of(index: int, num_layers: int) -> parameterisations.Role:
    """Return the role of layer `index` out of `num_layers` in a plain stack."""
    if index == num_layers - 1:
        return "output"
    return "input" if index == 0 else "hidden"


def scalings(params: Params, parameterisation: parameterisations.Name) -> Params:
    """Return the LayerScaling of every kernel of a stack "layer_0", "layer_1", ...; else None.

    Biases share the learning rate of their layer under mean-field scaling, and under muP that of
    an input layer, whose fan-in is 1 (Yang et al. 2022, Table 3).

    Args:
        params: the variables or parameters of a model of this package.
        parameterisation: the one that the model was made with.
    """
    inner = params.get("params", params)
    names = sorted((n for n in inner if n.startswith("layer_")), key=lambda n: int(n[6:]))
    found = {}
    for index, name in enumerate(names):
        role = role_of(index, len(names))
        kernel = inner[name]["kernel"]
        fan_in, fan_out = int(jnp.size(kernel)) // kernel.shape[-1], kernel.shape[-1]
        scaling = parameterisations.layer_scaling(parameterisation, role, fan_in, fan_out)
        bias = scaling
        if parameterisation == "mup":
            bias = parameterisations.LayerScaling(1.0, 1.0, float(fan_out), 1.0)
            if role == "output":
                bias = parameterisations.LayerScaling(1.0, 1.0, 1.0, 1.0)
        found[name] = {key: scaling if key == "kernel" else bias for key in inner[name]}
    rest = {name: None for name in inner if name not in found}
    return {"params": {**found, **rest}} if "params" in params else {**found, **rest}
