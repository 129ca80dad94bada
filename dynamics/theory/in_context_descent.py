"""In-context linear regression: losses, best rates and step counts of algorithms, in closed form.

Tasks y = w·x with w ~ N(0, I) and no noise; x of independent entries of one variance s². S is the
second moment of the context, (1/N) sum x_i x_i^T, and a method is told by the factor r(λ) by which
it leaves the error along each eigenvector of S: its loss is (s²/2) E sum r(λ)². Kurtosis is
E x⁴ / s⁴: 3 for Gaussian entries, 9/5 for uniform ones.
"""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.optimize

from dynamics import arguments

Start = Literal["identity", "gram"]
Scheme = Literal["schulz", "best"]


class OneStep(NamedTuple):
    """The best single step of gradient descent from zero."""

    learning_rate: float  # of the mean over the context
    loss: float  # half mean squared error of a query


class BestRates(NamedTuple):
    """The rates of the best L steps of gradient descent or GD++ over a distribution of tasks."""

    learning_rates: np.ndarray  # (L,)
    input_rates: np.ndarray  # (L,), all zero for gradient descent; the last is never used
    loss: float  # half mean squared error of a query


def excess_moment(dim: int, num_context: int, kurtosis: float = 3.0) -> float:
    """Return c = E tr S² / (d s⁴) = 1 + (kurtosis + d - 2) / N.

    Raises:
        ValueError: `dim` or `num_context` below 1, or `kurtosis` below 1, which no variable has.

    Example:
        >>> excess_moment(10, 10, 1.8)
        1.98
    """
    arguments.counts(dim=dim, num_context=num_context)
    arguments.scalars(kurtosis=kurtosis)
    if kurtosis < 1:
        message = f"kurtosis={kurtosis}: E x⁴ / (E x²)² is at least 1 (uniform 1.8, Gaussian 3)"
        raise ValueError(message)
    return 1 + (kurtosis + dim - 2) / num_context


def one_step_loss(
    learning_rate: Any,
    dim: int,
    num_context: int,
    *,
    variance: float = 1.0,
    kurtosis: float = 3.0,
    input_scale: Any = 1.0,
) -> Any:
    """Return the loss of one step η of gradient descent from zero, (d s²/2)(1 - 2 η s² + η² s⁴ c).

    Args:
        learning_rate: η of the mean over the context; any shape.
        dim: d.
        num_context: N.
        variance: s² of an entry of x.
        kurtosis: of an entry of x.
        input_scale: r by which context and query are stretched after η was chosen; s is then r s.

    Raises:
        ValueError: as `excess_moment`.

    Example:
        >>> one_step_loss(0.0, dim=10, num_context=10)
        5.0
    """
    arguments.numbers(learning_rate=learning_rate, input_scale=input_scale)
    arguments.not_negative(variance=variance)
    moment = excess_moment(dim, num_context, kurtosis)
    stretched = variance * input_scale**2
    step = learning_rate * stretched
    return dim * stretched / 2 * (1 - 2 * step + step**2 * moment)


def optimal_one_step(
    dim: int, num_context: int, *, variance: float = 1.0, kurtosis: float = 3.0
) -> OneStep:
    """Return η* = 1 / (s² c) and its loss (d s²/2)(1 - 1/c), the best step from zero.

    Args:
        dim: d.
        num_context: N.
        variance: s² of an entry of x.
        kurtosis: of an entry of x.

    Raises:
        ValueError: as `excess_moment`.

    References:
        Derived here; for Gaussian inputs η* = 1 / (1 + (d + 1)/N) as in Zhang et al. 2023,
        arXiv:2306.09927, and Ahn et al. 2023, arXiv:2306.00297.

    Example:
        >>> print(round(optimal_one_step(10, 10, variance=1 / 12, kurtosis=1.8).learning_rate, 4))
        6.0606
    """
    arguments.positive(variance=variance)
    moment = excess_moment(dim, num_context, kurtosis)
    return OneStep(1 / (variance * moment), dim * variance / 2 * (1 - 1 / moment))


def residual_factors(eigenvalues: Any, learning_rates: Any, input_rates: Any = None) -> np.ndarray:
    """Return r(λ) = prod_l (1 - η_l λ_l) of L steps of GD++, with λ_{l+1} = λ_l (1 - γ_l λ_l)².

    Args:
        eigenvalues: (..., d) of S.
        learning_rates: η (L,).
        input_rates: γ (L,); None for gradient descent.

    Returns:
        (..., d) in float64: the error that is left along each eigenvector. The query's own
        (1 - γ_l λ_l) is counted in, as the learned weights act on the query as it came.

    Raises:
        ValueError: rates that are not of one shape (L,).

    Example:
        >>> print(residual_factors([1.0, 0.5], [1.0, 1.0]))
        [0.   0.25]
    """
    rates = dict(learning_rates=learning_rates, input_rates=input_rates)
    arguments.shapes("... d, L, ?L", eigenvalues=eigenvalues, **rates)
    eta = np.asarray(learning_rates, np.float64)
    gamma = np.zeros_like(eta) if input_rates is None else np.asarray(input_rates, np.float64)
    current = np.asarray(eigenvalues, np.float64)
    left = np.ones_like(current)
    for rate, input_rate in zip(eta, gamma, strict=True):
        left = left * (1 - rate * current)
        current = current * (1 - input_rate * current) ** 2
    return left


def best_rates(
    eigenvalues: Any, num_layers: int, *, variance: float = 1.0, tied: bool, plus_plus: bool
) -> BestRates:
    """Return the rates that minimise (s²/2) mean_m sum_i r(λ_mi)² over tasks with given spectra.

    Args:
        eigenvalues: (M, d) of S, a row a task; 2000 rows fix the loss to about a percent.
        num_layers: L.
        variance: s² of an entry of the query.
        tied: one η (and one γ) for all layers, or one a layer.
        plus_plus: GD++, or plain gradient descent (γ = 0).

    Raises:
        ValueError: `num_layers` below 1, or `eigenvalues` not of two axes.

    Example:
        >>> found = best_rates([[1.0], [3.0]], 1, tied=True, plus_plus=False)
        >>> print(found.learning_rates.round(4))  # (1 + 3) / (1 + 9)
        [0.4]
    """
    arguments.shapes("M d", eigenvalues=eigenvalues)
    arguments.finite(eigenvalues=eigenvalues)
    arguments.counts(num_layers=num_layers)
    arguments.positive(variance=variance)
    arguments.finite(variance=variance)
    spectra = np.asarray(eigenvalues, np.float64)
    unit = 1 / spectra.mean()  # rates are found in units of one over the mean eigenvalue
    num_eta = 1 if tied else num_layers
    num_gamma = (1 if tied else num_layers - 1) * (plus_plus and num_layers > 1)

    def rates(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        eta, gamma = numbers[:num_eta], numbers[num_eta:]
        if tied:
            eta, gamma = np.tile(eta, num_layers), np.tile(gamma, num_layers)
        input_rates = np.zeros(num_layers)
        input_rates[: len(gamma)] = gamma[:num_layers]
        return unit * eta, unit * input_rates

    def loss(numbers: np.ndarray) -> float:
        left = residual_factors(spectra, *rates(numbers))
        return float(variance / 2 * np.mean(np.sum(left**2, axis=1)))

    spread = np.full(1, 0.6) if num_eta == 1 else np.linspace(0.4, 1.0, num_eta)
    found = scipy.optimize.minimize(
        loss, np.append(spread, np.full(num_gamma, 0.1)), method="Nelder-Mead",
        options={"xatol": 1e-7, "fatol": 1e-12, "maxiter": 4000},
    )  # fmt: skip
    return BestRates(*rates(found.x), loss(found.x))


def newton_inverse(
    eigenvalues: Any, num_iterations: Any, start_scale: Any, start: Start = "identity"
) -> Any:
    """Return the eigenvalues of M_k after k steps M ← 2M - M S M, those of S being given.

    I - M_k S = (I - M_0 S)^(2^k), so M_k has (1 - (1 - a λ)^(2^k)) / λ from M_0 = a I, and a λ² in
    the place of a λ from M_0 = a S.

    Args:
        eigenvalues: (..., d), positive; an array of NumPy or JAX.
        num_iterations: k; any shape that broadcasts with the eigenvalues.
        start_scale: a.
        start: "identity" for M_0 = a I, "gram" for a S.

    Raises:
        ValueError: an unknown `start`.

    Example:
        >>> print(newton_inverse(np.array([0.5]), 2, 1.0))  # (1 - 0.5^4) / 0.5
        [1.875]
    """
    arguments.numbers(eigenvalues=eigenvalues)
    arguments.numbers(num_iterations=num_iterations, start_scale=start_scale)
    arguments.choices(("identity", "gram"), start=start)
    done = start_scale * (eigenvalues if start == "identity" else eigenvalues**2)
    return (1 - (1 - done) ** (2.0**num_iterations)) / eigenvalues


def gradient_descent_steps(condition: float, tolerance: float) -> int:
    """Return the steps after which |I - η S|^t, η = 1 / λmax, is at most `tolerance`.

    About κ ln(1/tolerance) of them.

    Raises:
        ValueError: `condition` not above 1, or `tolerance` outside (0, 1).

    Example:
        >>> gradient_descent_steps(100.0, 1e-3)
        688
    """
    _check_goal(condition, tolerance)
    return math.ceil(math.log(tolerance) / math.log1p(-1 / condition))


def newton_iterations(condition: float, tolerance: float, start: Start = "identity") -> int:
    """Return the iterations after which |I - M_k S| is at most `tolerance`.

    From M_0 = I / λmax they make 2^k steps of gradient descent: log2 κ + log2 ln(1/tolerance).
    From S / λmax² it is κ² that counts, so nearly twice as many.

    Raises:
        ValueError: `condition` not above 1, `tolerance` outside (0, 1), or an unknown `start`.

    Example:
        >>> newton_iterations(100.0, 1e-3), newton_iterations(100.0, 1e-3, "gram")
        (10, 17)
    """
    arguments.choices(("identity", "gram"), start=start)
    _check_goal(condition, tolerance)
    squared = condition if start == "identity" else condition**2
    return max(0, math.ceil(math.log2(math.log(tolerance) / math.log1p(-1 / squared))))


def input_rates(
    condition: float, num_layers: int, *, scheme: Scheme, largest: float = 1.0
) -> np.ndarray:
    """Return γ (L,) of GD++ layers that even out a spectrum on [largest / condition, largest].

    "schulz": γ = 1 / (3 λmax), with which x ← (I - γ S) x is the Newton-Schulz iteration for the
    polar factor of X up to its factor 3/2. "best": γ λmax = 1 / (1 + s + s²), s² = λmin / λmax, at
    which both ends of the spectrum land on one value: no other cubic evens out more.

    Args:
        condition: κ of S.
        num_layers: L.
        scheme: "schulz" or "best".
        largest: λmax of S.

    Raises:
        ValueError: `condition` below 1, `num_layers` below 1, or an unknown `scheme`.

    References:
        Chen and Chow 2014, "A stable scaling of Newton-Schulz for improving the sign function
        computation of a Hermitian matrix" (the "best" scale); derived here as well.

    Example:
        >>> print(input_rates(100.0, 2, scheme="schulz"))
        [0.33333333 0.75      ]
    """
    return _whitening(condition, num_layers, scheme, largest)[0]


def whitened_condition(condition: float, num_layers: int, *, scheme: Scheme) -> np.ndarray:
    """Return κ (L + 1,) of S before and after each of L layers with the rates of `input_rates`.

    For κ far above 1 it falls by 9/4 a layer ("schulz") or 27/4 ("best"). For "best" this is
    that of the whole interval of eigenvalues, and a bound for a spectrum inside it.

    Raises:
        ValueError: as `input_rates`.

    Example:
        >>> print(whitened_condition(1e6, 1, scheme="best").round(-1))
        [1000000.  148300.]
    """
    return _whitening(condition, num_layers, scheme, 1.0)[1]


def gradient_descent_plus_plus_layers(condition: float, tolerance: float, scheme: Scheme) -> int:
    """Return the GD++ layers that leave at most `tolerance` of the error along every eigenvector.

    All but the last only even out the inputs; the last is a step 2 / (λmax + λmin), which leaves
    (κ - 1) / (κ + 1) of whatever κ it finds.

    Raises:
        ValueError: `condition` not above 1, `tolerance` outside (0, 1), or an unknown `scheme`.

    Example:
        >>> [gradient_descent_plus_plus_layers(1e6, 0.1, scheme) for scheme in ("schulz", "best")]
        [19, 10]
    """
    arguments.choices(("schulz", "best"), scheme=scheme)
    _check_goal(condition, tolerance)
    whitened = whitened_condition(condition, 200, scheme=scheme)
    reached = (whitened - 1) / (whitened + 1) <= tolerance
    return int(np.argmax(reached)) + 1


def _whitening(
    condition: float, num_layers: int, scheme: str, largest: float
) -> tuple[np.ndarray, np.ndarray]:
    arguments.choices(("schulz", "best"), scheme=scheme)
    arguments.counts(num_layers=num_layers)
    arguments.scalars(condition=condition, largest=largest)
    arguments.finite(condition=condition, largest=largest)
    arguments.positive(largest=largest)
    if condition < 1:
        message = f"condition={condition}: give at least 1"
        raise ValueError(message)
    high, low = float(largest), largest / condition
    rates, conditions = [], [high / low]
    for _ in range(num_layers):
        ratio = math.sqrt(low / high)
        share = 1 / 3 if scheme == "schulz" else 1 / (1 + ratio + ratio**2)  # γ λmax
        rate = share / high
        peak = high if scheme == "schulz" else 1 / (3 * rate)  # where λ (1 - γ λ)² is largest
        high, low = peak * (1 - rate * peak) ** 2, low * (1 - rate * low) ** 2
        rates.append(rate)
        conditions.append(high / low)
    return np.array(rates), np.array(conditions)


def _check_goal(condition: float, tolerance: float) -> None:
    arguments.scalars(condition=condition, tolerance=tolerance)
    arguments.finite(condition=condition)
    if not condition > 1:
        message = f"condition={condition}: give a number above 1"
        raise ValueError(message)
    if not 0 < tolerance < 1:
        message = f"tolerance={tolerance}: give a share between 0 and 1"
        raise ValueError(message)
