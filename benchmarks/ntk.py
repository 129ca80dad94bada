"""Empirical tangent kernels: ours, neural-tangents and torch.func, turn by turn.

    python benchmarks/ntk.py [--neural_tangents PYTHON] [--torch PYTHON] [--cases WORDS] [--turns N]

The PYTHONs are interpreters that have the peers; without them, environments are made under
build/peers. Each side of a case is a process of its own, so that its peak memory is its own. First
every kernel is checked on 20 samples against explicit Jacobians in double precision. Ours runs
twice: with XLA's own settings and, as `ours_without_ynn`, with its YNN fusion off. Ratios are
given of medians and of the least disturbed turns; seconds, first calls (with compilation),
memory and the share of the machine's matrix product rate go to benchmarks/results/ntk.json.
`--cases` picks those that contain one of some words split by commas, such as "mlp 1000,cnn";
"spectrum" is the last, the top of the spectrum of 20,000 samples with 10 outputs.
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from peers import client, ntk_networks, ntk_program

from dynamics.measure import kernels

ROOT = Path(__file__).resolve().parent.parent
RESULT = Path(__file__).parent / "results" / "ntk.json"
# Network, samples, outputs, implementations of neural-tangents, whether torch.func too.
CASES = (
    ("mlp", 1000, "full", (3,), False),
    ("mlp", 1000, "mean", (3,), False),
    ("mlp", 1000, "scalar", (3,), False),
    ("mlp", 200, "full", (3,), False),
    ("mlp", 200, "mean", (3,), True),
    ("mlp", 200, "scalar", (3,), True),
    ("mlp", 40, "full", (3,), True),
    ("cnn", 200, "full", (3,), False),
    ("cnn", 200, "mean", (3,), False),
    ("cnn", 200, "scalar", (3,), False),
    ("transformer", 100, "mean", (1, 3), False),
)
SPECTRUM_SAMPLES = 20_000
TOLERANCE = 1e-5  # of single precision against double, relative to the largest entry
NO_YNN = "--xla_cpu_experimental_ynn_fusion_type="
# What neural-tangents 0.6.5 still runs on with all its implementations; without its TensorFlow.
OLD_JAX = ("jax==0.4.25", "jaxlib==0.4.25", "numpy==1.26.4", "scipy<1.13", "frozendict")


def neural_tangents_environment() -> str:
    """Return the interpreter of an environment with neural-tangents."""
    python = client.environment("neural_tangents", *OLD_JAX)
    # Not imported here: it asks for TensorFlow, of which the peer's script stands in for a part.
    seek = "import importlib.util, sys; sys.exit(not importlib.util.find_spec('neural_tangents'))"
    if subprocess.run([python, "-c", seek], check=False).returncode:
        install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "neural-tangents==0.6.5"]
        subprocess.run(install, check=True)
    return python


@contextlib.contextmanager
def environment_variables(**values):
    """Set variables for the processes started within."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def reference(name: str, num_samples: int, outputs: str) -> np.ndarray:
    """Return the kernel of the first samples by explicit Jacobians in double precision."""
    with jax.enable_x64(True):
        params, x = jax.tree.map(jnp.asarray, ntk_networks.drawn(name, num_samples))
        apply_fn, word = ntk_networks.of_case(name, outputs)
        x = x[: ntk_program.CHECKED]
        total = 0.0
        for key, leaf in params.items():
            of_leaf = lambda leaf, sample, key=key: apply_fn({**params, key: leaf}, sample[None])[0]
            rows = jax.jit(jax.vmap(jax.jacrev(of_leaf), (None, 0)))(leaf, x)
            rows = np.asarray(rows).reshape(len(x), rows.shape[1], -1)
            contraction = "akp,bkp->ab" if word == "mean" else "akp,blp->abkl"
            total = total + np.einsum(contraction, rows, rows, optimize=True)
        return total / rows.shape[1] if word == "mean" else total


def matmul_rate() -> float:
    """Return the operations a second of a matrix product of order 2048."""
    matrix = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(matrix, matrix))
    begin = time.perf_counter()
    jax.block_until_ready(product(matrix, matrix))
    return 2 * 2048**3 / (time.perf_counter() - begin)


def operations(name: str, num_samples: int, outputs: str) -> float:
    """Return what our way of this kernel costs."""
    shaped = lambda array: jax.ShapeDtypeStruct(array.shape, jnp.float32)
    params, x = jax.tree.map(shaped, ntk_networks.drawn(name, num_samples))
    apply_fn, word = ntk_networks.of_case(name, outputs)
    return kernels.ntk_cost(apply_fn, params, x, outputs=word).layerwise.flops


def compare(case: tuple, pythons: dict[str, str], turns: int, folder: str) -> dict:
    """Run all sides of one case turn by turn."""
    name, num_samples, outputs, implementations, with_torch = case
    described = (name, str(num_samples), outputs)
    flags = os.environ.get("XLA_FLAGS", "")
    sides = {
        "ours": (sys.executable, "ntk_ours.py", (), flags),
        "ours_without_ynn": (sys.executable, "ntk_ours.py", (), f"{flags} {NO_YNN}"),
    }
    for number in implementations:
        sides[f"neural_tangents_{number}"] = (
            pythons["neural_tangents"], "ntk_neural_tangents.py", (str(number),), flags
        )  # fmt: skip
    if with_torch:
        arrays = Path(folder) / "arrays.npz"
        params, x = ntk_networks.drawn(name, num_samples)
        np.savez(arrays, **{k: np.float32(v) for k, v in (params | {"x": x}).items()})
        sides["torch_func"] = (pythons["torch"], "ntk_torch.py", (str(arrays),), flags)
    with contextlib.ExitStack() as stack:
        peers = {}
        for side, (python, script, more, xla_flags) in sides.items():
            with environment_variables(XLA_FLAGS=xla_flags):
                started = client.started(python, script, *described, *more)
                peers[side] = stack.enter_context(started)
        first = {side: peer.ask("run")["seconds"] for side, peer in peers.items()}
        expected = reference(name, num_samples, outputs)
        errors, answers, rates = {}, {side: [] for side in peers}, []
        for side, peer in peers.items():
            head = peer.ask("check")
            found = np.reshape(head["kernel"], head["shape"])
            errors[side] = float(np.abs(found - expected).max() / np.abs(expected).max())
            assert errors[side] < TOLERANCE, f"{described} {side}: off by {errors[side]}"
        for turn in range(turns):
            rates.append(matmul_rate())
            for side, peer in peers.items():
                if side != "torch_func" or turn < 3:  # it takes seconds
                    answers[side].append(peer.ask("run"))
        versions = {side: peer.versions for side, peer in peers.items()}
    seconds = {side: [answer["seconds"] for answer in found] for side, found in answers.items()}
    peak = {side: found[-1]["peak_bytes"] for side, found in answers.items()}
    row = {
        "case": " ".join(described),
        "seconds": seconds,
        "median": {side: float(np.median(times)) for side, times in seconds.items()},
        "least": {side: min(times) for side, times in seconds.items()},
        "core_seconds": {
            side: float(np.median([answer["core_seconds"] for answer in found]))
            for side, found in answers.items()
        },
        "first_call": first,
        "peak_bytes": peak,
        "relative_error": errors,
        "versions": versions,
        "operations": operations(name, num_samples, outputs),
        "matmul_rate": max(rates),
    }
    row["share_of_matmul_rate"] = (
        row["operations"] / min(row["least"]["ours"], row["least"]["ours_without_ynn"])
    ) / row["matmul_rate"]
    return row | ratios(row)


def ratios(row: dict) -> dict[str, float]:
    """Return how many times as long and as much memory the peers take, the best of each."""
    found = {}
    for peer in ("neural_tangents", "torch_func"):
        sides = [side for side in row["seconds"] if side.startswith(peer)]
        if not sides:
            continue
        for measure in ("median", "least", "core_seconds"):
            best = min(row[measure][side] for side in sides)
            for ours in ("ours", "ours_without_ynn"):
                found[f"{peer} / {ours}, {measure}"] = best / row[measure][ours]
        memory = min(row["peak_bytes"][side] for side in sides)
        found[f"ours / {peer}, peak memory"] = row["peak_bytes"]["ours"] / memory
    return found


def spectrum() -> dict:
    """Return the top of the spectrum of many samples, in a process of its own."""
    script = Path(__file__).parent / "peers" / "ntk_spectrum.py"
    done = subprocess.run(
        [sys.executable, script, str(SPECTRUM_SAMPLES)], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--neural_tangents", help="an interpreter with neural-tangents 0.6.5")
    parser.add_argument("--torch", help="an interpreter with torch and numpy")
    parser.add_argument("--cases", default="", help="words of the cases to run, split by commas")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULT, help="where the numbers go")
    given = parser.parse_args()
    words = given.cases.split(",")
    picked = lambda text: any(word in text for word in words)
    cases = [case for case in CASES if picked(" ".join(map(str, case[:3])))]
    pythons = {}
    if cases:
        pythons["neural_tangents"] = given.neural_tangents or neural_tangents_environment()
    if any(case[4] for case in cases):
        pythons["torch"] = given.torch or client.environment("torch", "torch", "numpy")
    # Ours is the code beside this file, whatever the interpreter has installed.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    )
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "jax": jax.__version__}
    report: dict = {**machine, "device": jax.devices()[0].device_kind, "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            row = compare(case, pythons, given.turns, folder)
            report["rows"].append(row)
            print(f"{row['case']}: {100 * row['share_of_matmul_rate']:.0f} % of matmul rate")
            for side, median in row["median"].items():
                print(
                    f"    {side:18s} {median:8.4f} s, least {row['least'][side]:8.4f}, first "
                    f"{row['first_call'][side]:5.1f}, {row['peak_bytes'][side] / 2**20:5.0f} MiB",
                )
            for ratio in (name for name in row if " / " in name):
                print(f"    {row[ratio]:8.2f}  {ratio}", flush=True)
    if picked("spectrum"):
        report["spectrum"] = spectrum()
        print("spectrum:", json.dumps(report["spectrum"]))
    given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
