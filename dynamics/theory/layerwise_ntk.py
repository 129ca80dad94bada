"""The tangent kernel of a fully connected network as a sum over layers, and what it costs.

With A_(l-1) the inputs of layer l, (N, n_(l-1)), and B_l the derivatives of the output by its
pre-activations, (N, n_l), the rows of the Jacobian by its matrix are the outer products of the
rows of A_(l-1) and B_l, and so their inner products are (A_(l-1) A_(l-1)^T) * (B_l B_l^T), entry by
entry. Written out here with products of matrices alone, no automatic differentiation of networks.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array


class LayerGrams(NamedTuple):
    """The two factors of each layer's kernel, scales of the parameterisation included."""

    inputs: Array  # (L, N, N) products of the layer's inputs, by the square of its multiplier
    backward: Array  # (L, N, N) products of the derivatives by its pre-activations


class Flops(NamedTuple):
    """Multiplications and additions for the kernel of N samples."""

    jacobian: float  # by the Jacobian of all parameters
    layerwise: float  # by the two Gram matrices of each layer


def grams(
    matrices: Sequence[Array],
    biases: Sequence[Array],
    x: Array,
    *,
    activation: Callable[[Array], Array],
    multipliers: Sequence[float],
    bias_std: float,
) -> LayerGrams:
    """Return the Gram matrices of all layers of a network with one output.

    Layers compute z_l = m_l A_(l-1) W_l + bias_std b_l with A_l = σ(z_l), A_0 = x. The kernel of
    W_l is inputs * backward, that of b_l is bias_std² backward.

    Args:
        matrices: W_l (n_(l-1), n_l); the last has one column.
        biases: b_l (n_l,).
        x: (N, n_0).
        activation: σ, acting on each entry.
        multipliers: m_l, such as weight_std / sqrt(n_(l-1)) in the NTK parameterisation.
        bias_std: Scale of the biases.

    Raises:
        ValueError: the lists differ in length, or the network has more than one output.

    Reference: Engel et al. 2022, arXiv:2205.12372 (TorchNTK), section 3; Novak et al. 2022,
    arXiv:2206.08720, section 3.

    Example:
        >>> layer = [jnp.array([[2.0], [0.0]])], [jnp.zeros(1)], jnp.array([[1.0, 2.0]])
        >>> print(grams(*layer, activation=jnp.tanh, multipliers=[1.0], bias_std=0.0))
        LayerGrams(inputs=Array([[[5.]]], dtype=float32), backward=Array([[[1.]]], dtype=float32))
    """
    for index, matrix in enumerate(_listed("matrices", matrices)):
        arguments.shapes("n m", **{f"matrices[{index}]": matrix})
    for index, bias in enumerate(_listed("biases", biases)):
        arguments.shapes("m", **{f"biases[{index}]": bias})
    for index, multiplier in enumerate(_listed("multipliers", multipliers)):
        arguments.numbers(**{f"multipliers[{index}]": multiplier})
    arguments.shapes("N n_0, n_0 _", x=x, matrices=matrices[0])
    arguments.functions(activation=activation)
    arguments.numbers(bias_std=bias_std)
    if not len(matrices) == len(biases) == len(multipliers) or matrices[-1].shape[1] != 1:
        message = (
            f"matrices: {[w.shape for w in matrices]} with {len(biases)} biases and "
            f"{len(multipliers)} multipliers; give as many of each and one output"
        )
        raise ValueError(message)
    product = lambda a, b: jnp.matmul(a, b, precision="highest")
    inputs, slopes = [x], []
    for matrix, bias, multiplier in zip(matrices, biases, multipliers, strict=True):
        z = multiplier * product(inputs[-1], matrix) + bias_std * bias
        value, slope = jax.jvp(activation, (z,), (jnp.ones_like(z),))
        inputs.append(value)
        slopes.append(slope)
    backward = [jnp.ones((len(x), 1), x.dtype)]  # the output itself has no activation
    for index in range(len(matrices) - 1, 0, -1):
        pulled = multipliers[index] * product(backward[0], matrices[index].T)
        backward.insert(0, pulled * slopes[index - 1])
    scaled = [m * a for m, a in zip(multipliers, inputs, strict=False)]
    return LayerGrams(*(jnp.stack([product(a, a.T) for a in rows]) for rows in (scaled, backward)))


def flops(widths: Sequence[int], num_samples: int) -> Flops:
    """Return the cost of the kernel with biases of a network with one output.

    Both ways run through the network forward and back, 2 N Σ n_(l-1) n_l each, the way back
    without the first layer. The Jacobian is then filled, N P for P parameters, and multiplied by
    itself, 2 N² P; the Gram matrices of inputs and of derivatives, the latter for matrix and bias
    alike, take 2 N² Σ (n_(l-1) + n_l). For a wide network the ratio of the two thus ends at
    (2 N + 5) / 4: it is linear in the width only as long as the width is far below N. Terms of
    order N Σ n_l and N² alone are left out.

    Args:
        widths: n_0 to n_L, the last being 1.
        num_samples: N.

    Raises:
        ValueError: the last width is not 1, or there is no layer.

    Example:
        >>> cost = flops((10, 4096, 4096, 1), 64)
        >>> print(f"{cost.jacobian / cost.layerwise:.0f} of {(2 * 64 + 5) / 4:.0f}")
        32 of 33
    """
    arguments.sizes(widths=widths)
    arguments.counts(num_samples=num_samples)
    if len(widths) < 2 or widths[-1] != 1:
        message = f"widths={tuple(widths)}: give those of inputs, hidden layers and one output"
        raise ValueError(message)
    pairs = list(itertools.pairwise(widths))
    entries = [a * b for a, b in pairs]
    passes = 2 * num_samples * (2 * sum(entries) - entries[0])
    parameters = sum(entries) + sum(widths[1:])
    contraction = 2 * num_samples**2
    return Flops(
        passes + num_samples * parameters + contraction * parameters,
        passes + contraction * sum(a + b for a, b in pairs),
    )


def _listed(name: str, values: Any) -> Any:
    if not isinstance(values, Sequence) or isinstance(values, str) or not len(values):
        message = f"{name}={values!r}: give a sequence, one entry a layer"
        raise TypeError(message)
    return values
