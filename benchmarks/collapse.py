"""Neural collapse of 50,000 x 512 features: ours and the loops of PyTorch code, turn by turn.

    python benchmarks/collapse.py [--peer PYTHON]

PYTHON is an interpreter that has torch and numpy; without it, an environment is made under
build/peers. Seconds, ratios, and the memory of our program go to benchmarks/results/collapse.json.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from peers import client

from dynamics.measure import collapse

NUM_SAMPLES, DIM = 50_000, 512
CLASSES = (10, 100, 1000)
TURNS = 7
SLOW_TURNS = 1  # of the loop over batches and classes
RESULT = Path(__file__).parent / "results" / "collapse.json"


def sample(num_classes: int) -> dict[str, np.ndarray]:
    """Return a network on its way to collapse: noisy features, a classifier along their means."""
    rng = np.random.default_rng(num_classes)
    means = rng.normal(size=(num_classes, DIM))
    labels = rng.permutation(np.arange(NUM_SAMPLES) % num_classes)
    features = means[labels] + 0.8 * rng.normal(size=(NUM_SAMPLES, DIM))
    kernel = means.T + 0.5 * rng.normal(size=(DIM, num_classes))
    bias = -0.5 * np.sum(means**2, axis=1)
    arrays = {"features": features, "kernel": kernel, "bias": bias}
    return {name: a.astype(np.float32) for name, a in arrays.items()} | {"labels": labels}


def compare(num_classes: int, python: str) -> dict:
    """Run both turn by turn on one data set."""
    arrays = sample(num_classes)
    device = {name: jnp.asarray(a) for name, a in arrays.items()}
    measure = jax.jit(lambda a: collapse.neural_collapse(**a, num_classes=num_classes))
    program = measure.lower(device).compile()
    ours = jax.block_until_ready(program(device))
    seconds: dict[str, list[float]] = {"ours": [], "by_class": [], "by_batch_and_class": []}
    with tempfile.TemporaryDirectory() as folder:
        for name, array in arrays.items():
            np.save(Path(folder) / f"{name}.npy", array)
        values = {}
        with client.started(python, "collapse_torch.py", folder) as torch:
            for turn in range(TURNS):
                begin = time.perf_counter()
                jax.block_until_ready(program(device))
                seconds["ours"].append(time.perf_counter() - begin)
                for name in ("by_class", "by_batch_and_class"):
                    if name == "by_batch_and_class" and turn >= SLOW_TURNS:
                        continue
                    answer = torch.ask(name)
                    values[name] = answer["values"]
                    # The first turn warms its threads and its memory.
                    if turn or name == "by_batch_and_class":
                        seconds[name].append(answer["seconds"])
    for found in values.values():
        np.testing.assert_allclose([float(part) for part in ours], found, rtol=2e-3, atol=1e-4)
    median = {name: float(np.median(s)) for name, s in seconds.items()}
    return {
        "num_classes": num_classes,
        "seconds": seconds,
        "median": median,
        "ratio_by_class": median["by_class"] / median["ours"],
        "ratio_by_batch_and_class": median["by_batch_and_class"] / median["ours"],
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
        "input_bytes": sum(a.nbytes for a in arrays.values()),
        "peer": torch.versions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="an interpreter with torch and numpy")
    python = parser.parse_args().peer or client.environment("torch", "torch", "numpy")
    rows = [compare(num_classes, python) for num_classes in CLASSES]
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "jax": jax.__version__}
    found = {"samples": NUM_SAMPLES, "dim": DIM, **machine, "rows": rows}
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    for row in rows:
        print(
            f"{row['num_classes']:5d} classes: ours {row['median']['ours']:.3f} s, "
            f"{row['ratio_by_class']:.1f}x by class, "
            f"{row['ratio_by_batch_and_class']:.0f}x by batch and class, "
            f"{row['temporary_bytes'] / 2**20:.0f} MiB beside {row['input_bytes'] / 2**20:.0f}"
        )


if __name__ == "__main__":
    main()
