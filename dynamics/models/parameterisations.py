"""How weights are drawn, scaled and updated as a network gets wider."""

import dataclasses
import math
from typing import Any, Literal

import jax
import optax

from dynamics import arguments
from dynamics.aliases import Params

Name = Literal["standard", "ntk", "mean_field", "mup"]
Role = Literal["input", "hidden", "output"]
NAMES = ("standard", "ntk", "mean_field", "mup")
ROLES = ("input", "hidden", "output")


@dataclasses.dataclass(frozen=True)
class LayerScaling:
    """What a parameterisation prescribes for one weight matrix W of shape (fan_in, fan_out).

    The layer computes multiplier * (x W), with the entries of W drawn from N(0, init_std^2), and
    a global learning rate η becomes η times `sgd_rate` or `adam_rate`.
    """

    init_std: float
    multiplier: float
    sgd_rate: float
    adam_rate: float


def layer_scaling(
    name: Name, role: Role, fan_in: int, fan_out: int, *, weight_std: float = 1.0
) -> LayerScaling:
    """Return initial scale, forward multiplier and learning-rate factors of one layer.

    With n the width of the hidden layers:

    | name       | role   | init_std     | multiplier      | sgd_rate | adam_rate |
    |------------|--------|--------------|-----------------|----------|-----------|
    | standard   | any    | s/sqrt(in)   | 1               | 1        | 1         |
    | ntk        | any    | 1            | s/sqrt(in)      | 1        | 1         |
    | mean_field | output | 1            | s/in            | in       | 1         |
    | mean_field | other  | 1            | s/sqrt(in)      | in or out| 1         |
    | mup        | input  | s/sqrt(in)   | 1               | out      | 1         |
    | mup        | hidden | s/sqrt(in)   | 1               | 1        | 1/in      |
    | mup        | output | s/in         | 1               | 1/in     | 1/in      |

    "ntk" is Jacot et al. 2018, arXiv:1806.07572: the kernel has a limit as n grows. "mean_field"
    divides the output by a further sqrt(n) and multiplies the learning rate by n, so that
    features move by order one (Mei, Montanari, Nguyen 2018, arXiv:1804.06561); every layer's
    rate gets the same factor n. "mup" is Table 3 of Yang et al. 2022, arXiv:2203.03466, whose
    rates are stated up to constants: tune η at one width and keep it.

    Args:
        name: one of `NAMES`.
        role: whether the layer reads the input, lies between hidden layers, or is the output.
        fan_in: number of inputs of each unit.
        fan_out: number of units.
        weight_std: s, the standard deviation of a pre-activation for inputs of unit mean square.

    Raises:
        ValueError: unknown name or role, or a fan below 1.
    """
    arguments.choices(NAMES, name=name)
    arguments.choices(ROLES, role=role)
    arguments.counts(fan_in=fan_in, fan_out=fan_out)
    arguments.not_negative(weight_std=weight_std)
    root = weight_std / math.sqrt(fan_in)
    if name == "standard":
        return LayerScaling(root, 1.0, 1.0, 1.0)
    if name == "ntk":
        return LayerScaling(1.0, root, 1.0, 1.0)
    if name == "mean_field":
        width = fan_out if role == "input" else fan_in
        multiplier = weight_std / fan_in if role == "output" else root
        return LayerScaling(1.0, multiplier, float(width), 1.0)
    return {
        "input": LayerScaling(root, 1.0, float(fan_out), 1.0),
        "hidden": LayerScaling(root, 1.0, 1.0, 1.0 / fan_in),
        "output": LayerScaling(weight_std / fan_in, 1.0, 1.0 / fan_in, 1.0 / fan_in),
    }[role]


def scale_by_layer(
    scalings: Params, optimiser: Literal["sgd", "adam"] = "sgd"
) -> optax.GradientTransformation:
    """Return an optax transformation that multiplies each leaf's update by its layer's factor.

    Chain it after the optimiser: `optax.chain(optax.adam(1e-3), scale_by_layer(scalings, "adam"))`.

    Args:
        scalings: a pytree like the parameters whose leaves are `LayerScaling`, as the models'
            `scalings(params)` return; None leaves a parameter's update as it is.
        optimiser: which column to use; "adam" for every method with normalised updates.

    Raises:
        ValueError: unknown optimiser.
    """
    arguments.choices(("sgd", "adam"), optimiser=optimiser)

    def scale(scaling: Any, update: Any) -> Any:
        if scaling is None:
            return update
        return update * (scaling.sgd_rate if optimiser == "sgd" else scaling.adam_rate)

    def update_fn(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        is_leaf = lambda leaf: leaf is None or isinstance(leaf, LayerScaling)
        return jax.tree.map(scale, scalings, updates, is_leaf=is_leaf), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)
