"""The linear maps of all models, in any parameterisation."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jax import lax

from dynamics import arguments
from dynamics.aliases import Array, Params
from dynamics.models import parameterisations

PADDINGS = ("SAME", "VALID")


def parameter_dtype(x: Array) -> Any:
    """Return the type of a norm's or a table's parameters beside `x`: float32, or wider if it is.

    Flax gives them float32 always, which in a double precision run would be the one single
    precision number in a network.

    Example:
        >>> print(parameter_dtype(jnp.ones(2, jnp.bfloat16)).__name__)
        float32
    """
    arguments.floating(x=x)
    return jnp.promote_types(x.dtype, jnp.float32).type


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
        arguments.counts(features=self.features)
        arguments.choices(parameterisations.NAMES, parameterisation=self.parameterisation)
        arguments.choices(parameterisations.ROLES, role=self.role)
        arguments.not_negative(weight_std=self.weight_std, bias_std=self.bias_std)
        arguments.shapes("... D", x=x)
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
    `convolve`.
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
        arguments.counts(features=self.features)
        arguments.choices(parameterisations.NAMES, parameterisation=self.parameterisation)
        arguments.choices(parameterisations.ROLES, role=self.role)
        arguments.not_negative(weight_std=self.weight_std, bias_std=self.bias_std)
        arguments.shapes("N H W C", x=x)
        arguments.shapes("2, 2", kernel_size=self.kernel_size, strides=self.strides)
        arguments.sizes(kernel_size=self.kernel_size, strides=self.strides)
        arguments.choices(PADDINGS, padding=self.padding)
        shape = (*self.kernel_size, x.shape[-1], self.features)
        fan_in = self.kernel_size[0] * self.kernel_size[1] * x.shape[-1]
        scaling = parameterisations.layer_scaling(
            self.parameterisation, self.role, fan_in, self.features, weight_std=self.weight_std
        )
        kernel = self.param("kernel", initializers.normal(scaling.init_std), shape, x.dtype)
        convolved = convolve(x, kernel, self.strides, self.padding)
        return add_bias(self, scaling.multiplier * convolved)


def convolve(
    x: Array,
    kernel: Array,
    strides: Sequence[int] = (1, 1),
    padding: str = "SAME",
    *,
    by_patches: bool | None = None,
) -> Array:
    """Return the convolution (N, H', W', O) of x (N, H, W, I) with a kernel (h, w, I, O).

    Args:
        x: Images.
        kernel: Entries at rows, columns, inputs, outputs.
        strides: Steps between positions along the two spatial axes.
        padding: "SAME" or "VALID".
        by_patches: Whether patches are gathered and multiplied by the kernel as one matrix, or
            XLA's own convolution is used. None takes patches on CPU, where training a small
            network is eight times as fast that way (5 against 41 ms a step of three layers on 300
            images of 8 x 8, 2 cores), at the price of h w copies of x.
    """
    arguments.shapes("N H W I, h w I O, 2", x=x, kernel=kernel, strides=strides)
    arguments.sizes(strides=strides)
    arguments.choices(PADDINGS, padding=padding)
    if by_patches is None:
        by_patches = jax.default_backend() == "cpu"
    strides = tuple(strides)
    if not by_patches:
        names = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=names)
    window, sizes = kernel.shape[:2], x.shape[1:3]
    pads = lax.padtype_to_pads(sizes, window, strides, padding)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    ends = [(x.shape[i + 1] - window[i]) // strides[i] * strides[i] + 1 for i in (0, 1)]
    shifted = [
        x[:, row : row + ends[0] : strides[0], column : column + ends[1] : strides[1]]
        for row in range(window[0])
        for column in range(window[1])
    ]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def add_bias(layer: Any, outputs: Array) -> Array:
    """Add the bias that a layer asks for to its outputs (..., features)."""
    arguments.records(nn.Module, layer=layer)
    arguments.shapes("... _", outputs=outputs)
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
    arguments.integers(0, index=index)
    arguments.counts(num_layers=num_layers)
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
    arguments.records(Mapping, params=params)
    arguments.choices(parameterisations.NAMES, parameterisation=parameterisation)
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
