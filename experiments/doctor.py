"""Does this machine's JAX compute right numbers? Jitted programs against float64 closed forms.

The compiler is not to be trusted: jaxlib 0.10.2 on CPU gets the gradient of a plain layer norm 12 %
wrong, without a warning and only at real sizes. Each probe compares a jitted float32 program with
the same quantity computed by numpy in float64, from a formula derived by hand.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import scipy.special

MEND = (
    "install jax and jaxlib 0.10.1, or with 0.10.2 set "
    "XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type="
)


@dataclasses.dataclass(frozen=True)
class Probe:
    """One comparison: the relative error in the Frobenius norm, and the most that rounding does."""

    name: str
    error: float
    bound: float
    why: str

    @property
    def passed(self) -> bool:
        """Whether the error is finite and within the bound."""
        return bool(np.isfinite(self.error) and self.error <= self.bound)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The probes of one environment."""

    probes: tuple[Probe, ...]
    jax: str
    jaxlib: str
    device: str
    seconds: float

    @property
    def healthy(self) -> bool:
        """Whether every probe passed."""
        return all(probe.passed for probe in self.probes)


def examine(transform: Callable[[Callable], Callable] = jax.jit) -> Diagnosis:
    """Return the diagnosis of this process' JAX; about 5 s on two cores.

    Args:
        transform: how the probed programs are run; a test gives a faulty one here.
    """
    start = time.perf_counter()
    probes = []
    with jax.enable_x64(False), jax.default_matmul_precision("highest"):
        for make in PROBES:
            name, program, inputs, expected, bound, why = make(np.random.default_rng(0))
            computed = transform(program)(*(jnp.asarray(a, jnp.float32) for a in inputs))
            probes.append(Probe(name, relative_error(computed, expected), bound, why))
    device = jax.devices()[0]
    return Diagnosis(
        tuple(probes),
        jax.__version__,
        jaxlib.__version__,
        f"{device.platform} ({device.device_kind})",
        time.perf_counter() - start,
    )


def relative_error(computed, expected) -> float:
    """Return |computed - expected| / |expected| in the Frobenius norm, in float64."""
    computed = np.asarray(computed, dtype=np.float64)
    return float(np.linalg.norm(computed - expected) / np.linalg.norm(expected))


def cached(directory: Path) -> Diagnosis:
    """Return the diagnosis of this environment and device, examined once and then remembered.

    The memory is a JSON file below `directory`; where it is damaged or cannot be written the
    examination is simply made again.
    """
    device = jax.devices()[0]
    environment = (
        jax.__version__, jaxlib.__version__, np.__version__, device.platform, device.device_kind,
        platform.machine(), os.environ.get("XLA_FLAGS", ""), Path(__file__).read_text(),
    )  # fmt: skip
    name = hashlib.sha256(repr(environment).encode()).hexdigest()[:16]
    path = directory / f"doctor-{name}.json"
    try:
        return _remembered(path.read_text())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    diagnosis = examine()
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(dataclasses.asdict(diagnosis)))
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return diagnosis


def _remembered(text: str) -> Diagnosis:
    """Return the diagnosis in a cache file; one that lacks a probe vouches for nothing."""
    saved = json.loads(text)
    probes = tuple(
        Probe(str(probe["name"]), float(probe["error"]), float(probe["bound"]), str(probe["why"]))
        for probe in saved.pop("probes")
    )
    if len(probes) != len(PROBES):
        message = f"{len(probes)} probes, expected {len(PROBES)}"
        raise ValueError(message)
    return Diagnosis(probes=probes, **saved)


def as_record(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return what a claim's record says of the machine: probes failed, largest share of a bound."""
    failed = [probe.name for probe in diagnosis.probes if not probe.passed]
    shares = [probe.error / probe.bound for probe in diagnosis.probes]
    worst = float(np.max(shares))
    return {
        "failed": failed,
        "mend": None if not failed else f"jaxlib {diagnosis.jaxlib} miscomputes: {MEND}",
        "probes": len(diagnosis.probes),
        "largest_error_over_bound": round(worst, 4) if np.isfinite(worst) else None,
    }


def render(diagnosis: Diagnosis):
    """Return the diagnosis as a table for the terminal."""
    from rich import box, table

    shown = table.Table(
        box=box.SIMPLE_HEAD,
        title=f"jax {diagnosis.jax}, jaxlib {diagnosis.jaxlib}, {diagnosis.device}: "
        + ("healthy" if diagnosis.healthy else "MISCOMPUTES"),
        caption=None if diagnosis.healthy else MEND,
    )
    for column in ("", "probe", "relative error", "bound", "why the bound"):
        shown.add_column(column)
    for probe in diagnosis.probes:
        mark = "[green]✓[/]" if probe.passed else "[red]✗[/]"
        shown.add_row(mark, probe.name, f"{probe.error:.1e}", f"{probe.bound:.0e}", probe.why)
    return shown


def layer_norm_vjp(random):
    """The case that jaxlib 0.10.2 gets wrong: ten cotangents of a mean-pooled, read-out norm."""
    h = random.standard_normal((60, 16, 128))
    readout = random.standard_normal((128, 10)) / 128**0.5
    epsilon = 1e-6

    def outputs(h, readout):
        # by rsqrt of the variance: 0.10.2 is right where one divides by the square root
        scale = jax.lax.rsqrt(jnp.var(h, -1, keepdims=True) + epsilon)
        normal = (h - h.mean(-1, keepdims=True)) * scale
        return normal.mean(axis=1) @ readout  # (60, 10)

    def program(h, readout):
        _, pull = jax.vjp(lambda h: outputs(h, readout), h)
        cotangents = jnp.broadcast_to(jnp.eye(10)[:, None, :], (10, 60, 10))
        return jax.vmap(lambda c: pull(c)[0])(cotangents)  # (10, 60, 16, 128)

    centred = h - h.mean(-1, keepdims=True)
    deviation = np.sqrt(np.mean(centred**2, -1, keepdims=True) + epsilon)
    normal = centred / deviation
    upstream = readout.T[:, None, None, :] / 16  # the mean over 16 positions; (10, 1, 1, 128)
    inner = np.mean(upstream * normal, -1, keepdims=True)
    expected = (upstream - upstream.mean(-1, keepdims=True) - normal * inner) / deviation
    why = "rounding of means over 128 features"
    return "layer norm: vmapped VJP", program, (h, readout), expected, 1e-5, why


def attention_vjp(random):
    """Softmax attention of 32 heads' worth of tokens, pulled back to the queries."""
    q, k, v, cotangent = random.standard_normal((4, 32, 64, 32))

    def program(q, k, v, cotangent):
        def attend(q):
            return jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / 32**0.5) @ v

        return jax.vjp(attend, q)[1](cotangent)[0]

    scores = q @ k.transpose(0, 2, 1) / 32**0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    pulled = cotangent @ v.transpose(0, 2, 1)
    expected = weights * (pulled - np.sum(weights * pulled, -1, keepdims=True)) @ k / 32**0.5
    return "attention: VJP", program, (q, k, v, cotangent), expected, 1e-5, "sums over 64 keys"


def convolution_hvp(random):
    """H v of L = 1/4 Σ (w * x)^4: conv^T(3 (w * x)^2 (v * x)), by patches in numpy."""
    x = random.standard_normal((20, 12, 12, 4))
    w, v = random.standard_normal((2, 3, 3, 4, 8)) / 6

    def program(x, w, v):
        def loss(w):
            numbers = ("NHWC", "HWIO", "NHWC")
            out = jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=numbers)
            return jnp.sum(out**4) / 4

        return jax.jvp(jax.grad(loss), (w,), (v,))[1]

    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))  # NHWC33
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 36)
    out, tangent = patches @ w.reshape(36, 8), patches @ v.reshape(36, 8)
    expected = (patches.T @ (3 * out**2 * tangent)).reshape(3, 3, 4, 8)
    return "convolution: HVP", program, (x, w, v), expected, 2e-5, "sums over 2000 patches"


def matrix_product(random):
    """A product at full precision: TF32 would be off by 3e-4, bfloat16 by 3e-3."""
    a, b = random.standard_normal((2, 512, 512))
    return "matrix product", jnp.matmul, (a, b), a @ b, 5e-6, "float32; TF32 errs by 3e-4"


def scan_of_steps(random):
    """Heavy-ball descent on a quadratic in lax.scan, against a plain loop."""
    root = random.standard_normal((64, 64)) / 8
    hessian, start = root @ root.T + 0.1 * np.eye(64), random.standard_normal(64)

    def program(hessian, start):
        def step(carry, _):
            w, velocity = carry
            velocity = 0.9 * velocity + hessian @ w
            return (w - 0.05 * velocity, velocity), w

        return jax.lax.scan(step, (start, jnp.zeros_like(start)), length=200)[1]

    w, velocity, path = start, np.zeros(64), []
    for _ in range(200):
        path.append(w)
        velocity = 0.9 * velocity + hessian @ w
        w = w - 0.05 * velocity
    return "scan: 200 steps", program, (hessian, start), np.array(path), 1e-4, "errors add up"


def long_sum(random):
    """A million numbers in [0, 1]: summed one by one in float32 they are off by 1e-5."""
    values = random.uniform(0, 1, 1_000_000).astype(np.float32).astype(np.float64)
    why = "20 pairwise levels, 1e-7 each"
    return "sum of a million", jnp.sum, (values,), values.sum(), 2e-6, why


def normal_draws(random):
    """Draws of `jax.random.normal(key(0))`, remade by numpy: every seed means what it meant."""

    def program():
        with jax.threefry_partitionable(True):  # JAX's default, whatever the caller has set
            return jax.random.normal(jax.random.key(0, impl="threefry2x32"), (4096,), jnp.float32)

    zeros = np.zeros(4096, np.uint32)
    bits = np.bitwise_xor(*threefry((0, 0), (zeros, np.arange(4096, dtype=np.uint32))))
    uniform = (bits >> 9) / 2.0**22 - (1 - 2.0**-24)  # in (-1, 1), exact in float32
    expected = 2**0.5 * scipy.special.erfinv(uniform)
    return "random normals", program, (), expected, 5e-6, "float32 erfinv; other draws err by 1.4"


def threefry(key, counter):
    """Return the two words of Threefry-2x32-20 (Salmon et al. 2011) at arrays of counters."""
    keys = [np.full_like(counter[0], word) for word in (*key, key[0] ^ key[1] ^ 0x1BD11BDA)]
    first, second = counter[0] + keys[0], counter[1] + keys[1]
    for block in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[block % 2]:
            first = first + second
            second = (second << turn | second >> (32 - turn)) ^ first
        first = first + keys[(block + 1) % 3]
        second = second + keys[(block + 2) % 3] + np.uint32(block + 1)
    return first, second


PROBES = (
    layer_norm_vjp,
    attention_vjp,
    convolution_hvp,
    matrix_product,
    scan_of_steps,
    long_sum,
    normal_draws,
)
