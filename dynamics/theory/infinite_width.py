"""Infinitely wide networks: their kernels, and what gradient descent makes of them.

The kernels come from neural-tangents (the extra `infinite-width`), loaded when an architecture is
first built; `dual_activations` has fully connected ones in closed form without it. All are in the
NTK parameterisation: weights and biases from N(0, 1), layers weight_std W h / sqrt(fan_in) +
bias_std b, every layer trained, and the kernel is that of one of the independent outputs.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array
from dynamics.theory import dual_activations, kernel_descent, neural_tangents_bridge

InfiniteWidthKernels = dual_activations.InfiniteWidthKernels
# (x1, x2 or None) -> anything with arrays nngp and ntk, such as neural-tangents' own functions.
KernelFn = Callable[..., Any]
READOUTS = ("flatten", "pool")


class GradientDescentPrediction(NamedTuple):
    """The Gaussian law of the outputs of infinitely wide networks over initialisations."""

    mean: Array  # (T, M) or (T, M, K), shaped like the targets
    covariance: Array  # (T, M, M), the same for every output; outputs are independent


def kernels(kernel_fn: KernelFn, x1: Array, x2: Array | None = None) -> InfiniteWidthKernels:
    """Return the NNGP and the NTK between samples, (N1, N2) each.

    Args:
        kernel_fn: From this module, or any neural-tangents `kernel_fn`.
        x1: (N1, ...) samples.
        x2: (N2, ...) samples; the same as `x1` when None.

    Raises:
        ValueError: an empty batch, or samples of different shapes.
    """
    arguments.numbers(x1=x1)
    arguments.numbers(x2=x1 if x2 is None else x2)
    x1 = jnp.asarray(x1)
    x2 = None if x2 is None else jnp.asarray(x2)
    for name, x in (("x1", x1), ("x2", x1 if x2 is None else x2)):
        if x.ndim < 2 or 0 in x.shape or x.shape[1:] != x1.shape[1:]:
            message = f"{name}: shape {x.shape}; give samples of the shape of x1, with axes"
            raise ValueError(message)
    arguments.functions(kernel_fn=kernel_fn)
    with warnings.catch_warnings():  # about its own options, and JAX names that will move
        warnings.simplefilter("ignore")
        found = kernel_fn(x1, x2)
    return InfiniteWidthKernels(found.nngp, found.ntk)


def fully_connected(
    depth: int, activation: str = "relu", *, weight_std: float = 1.0, bias_std: float = 0.0
) -> KernelFn:
    """Return the kernel function of a fully connected network with `depth` hidden layers.

    Args:
        depth: Hidden layers, 0 or more.
        activation: "relu" or "erf".
        weight_std: Standard deviation of the weights times sqrt(fan_in).
        bias_std: Standard deviation of the biases.

    Raises:
        ValueError: an argument is out of range.
        ImportError: neural-tangents is not installed.

    Reference: Jacot et al. 2018, arXiv:1806.07572.
    """
    stax = _stax(activation, depth, weight_std, bias_std)
    dense = lambda: stax.Dense(1, W_std=weight_std, b_std=bias_std)
    hidden = [layer for _ in range(depth) for layer in (dense(), _activation(stax, activation))]
    return _kernel_fn(stax, [*hidden, dense()])


def convolutional(
    depth: int,
    activation: str = "relu",
    *,
    filter_size: int = 3,
    stride: int = 1,
    readout: str = "flatten",
    weight_std: float = 1.0,
    bias_std: float = 0.0,
) -> KernelFn:
    """Return the kernel function of `depth` convolutions, a readout and a dense layer.

    Samples are images (N, height, width, channels), padded to keep their size at stride 1.

    Args:
        depth: Convolutions with activation, 0 or more.
        activation: "relu" or "erf".
        filter_size: Side of the square filters, at least 1.
        stride: Of every convolution, at least 1.
        readout: "flatten", or "pool" for the mean over positions.
        weight_std: Standard deviation of the weights times sqrt(fan_in).
        bias_std: Standard deviation of the biases.

    Raises:
        ValueError: an argument is out of range.
        ImportError: neural-tangents is not installed.

    Reference: Arora et al. 2019, arXiv:1904.11955; Novak et al. 2019, arXiv:1810.05148.
    """
    arguments.counts(filter_size=filter_size, stride=stride)
    arguments.choices(READOUTS, readout=readout)
    stax = _stax(activation, depth, weight_std, bias_std)
    square, strides = (filter_size, filter_size), (stride, stride)
    hidden = [
        layer
        for _ in range(depth)
        for layer in (
            stax.Conv(1, square, strides, padding="SAME", W_std=weight_std, b_std=bias_std),
            _activation(stax, activation),
        )
    ]
    last = stax.Dense(1, W_std=weight_std, b_std=bias_std)
    return _kernel_fn(stax, [*hidden, _readout(stax, readout), last])


def attention(
    depth: int,
    activation: str = "relu",
    *,
    readout: str = "flatten",
    weight_std: float = 1.0,
    bias_std: float = 0.0,
) -> KernelFn:
    """Return the kernel function of an embedding, `depth` residual blocks of attention, a readout.

    The embedding is a dense layer at each position. A block adds self-attention to its input,
    then applies a dense layer to each position and the activation. Samples are sequences
    (N, length, channels) or images. Attention is the softmax with queries tied to keys and scores
    divided by the number of channels, for which the limit is known in closed form.

    Args:
        depth: Blocks, 0 or more.
        activation: "relu" or "erf".
        readout: "flatten", or "pool" for the mean over positions.
        weight_std: Standard deviation of all weights times sqrt(fan_in).
        bias_std: Standard deviation of the biases.

    Raises:
        ValueError: an argument is out of range.
        ImportError: neural-tangents is not installed.

    Reference: Hron et al. 2020, arXiv:2006.10540, section 4.
    """
    arguments.choices(READOUTS, readout=readout)
    stax = _stax(activation, depth, weight_std, bias_std)

    dense = lambda: stax.Dense(1, W_std=weight_std, b_std=bias_std)

    def block() -> list[Any]:
        attend = stax.GlobalSelfAttention(
            *(1, 1, 1, 1),  # channels and heads, irrelevant in the limit
            W_key_std=weight_std,
            W_query_std=weight_std,
            W_value_std=weight_std,
            W_out_std=weight_std,
            b_std=bias_std,
        )
        return [
            stax.FanOut(2),
            stax.parallel(attend, stax.Identity()),
            stax.FanInSum(),
            dense(),
            _activation(stax, activation),
        ]

    hidden = [layer for _ in range(depth) for layer in block()]
    return _kernel_fn(stax, [dense(), *hidden, _readout(stax, readout), dense()])


def gradient_descent_mean_and_covariance(
    kernel_fn: KernelFn,
    x_train: Array,
    y_train: Array,
    x_test: Array,
    *,
    learning_rate: float,
    times: Any,
    dynamics: str = "discrete",
) -> GradientDescentPrediction:
    """Return mean and covariance over initialisations of the outputs on `x_test` at `times`.

    Full-batch gradient descent on (1/2) Σ (f - y)^2, a SUM over samples and outputs, in the NTK
    parameterisation, θ <- θ - η ∇L, every network from its own initialisation. A loss that is
    the mean over N samples has the learning rate η / N here. neural-tangents' mean-squared-error
    functions instead take the mean over samples and outputs: their time t is η t N K in our
    terms, and always that of the flow.

    Args:
        kernel_fn: As in `kernels`.
        x_train: (N, ...) samples.
        y_train: (N,) or (N, K) targets.
        x_test: (M, ...) samples; `x_train` itself is allowed.
        learning_rate: η, positive.
        times: (T,) steps made, not negative; infinity allowed.
        dynamics: "discrete" steps, or the "flow" that they approach as η goes to 0 at given η t.

    Raises:
        ValueError: shapes do not fit, or a learning rate, time or `dynamics` is out of range.

    Reference: Lee et al. 2019, arXiv:1902.06720, eqs (14) to (16).
    """
    arguments.shapes("N D ..., N ..., M D ...", x_train=x_train, y_train=y_train, x_test=x_test)
    if jnp.ndim(x_train) != jnp.ndim(x_test):
        message = f"x_train {jnp.shape(x_train)}, x_test {jnp.shape(x_test)}: give as many axes"
        raise ValueError(message)
    kernel_descent.check(learning_rate, times, dynamics)
    train, test = kernels(kernel_fn, x_train), kernels(kernel_fn, x_test)
    test_train = kernels(kernel_fn, x_test, x_train)
    options = dict(learning_rate=learning_rate, times=times, dynamics=dynamics)
    outputs = kernel_descent.mean(train.ntk, test_train.ntk, y_train, **options)
    smoothers = kernel_descent.smoother(train.ntk, test_train.ntk, **options)
    spread = kernel_descent.covariance(smoothers, test.nngp, test_train.nngp, train.nngp)
    return GradientDescentPrediction(outputs, spread)


def _stax(activation: str, depth: int, weight_std: float, bias_std: float) -> Any:
    dual_activations.check_architecture(activation, depth, weight_std, bias_std)
    return neural_tangents_bridge.load().stax


def _activation(stax: Any, name: str) -> Any:
    return {"relu": stax.Relu, "erf": stax.Erf}[name]()


def _readout(stax: Any, name: str) -> Any:
    return {"flatten": stax.Flatten, "pool": stax.GlobalAvgPool}[name]()


def _kernel_fn(stax: Any, layers: list[Any]) -> KernelFn:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return stax.serial(*layers)[2]
