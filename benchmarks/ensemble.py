"""Members of an ensemble side by side (vmap) or one after the other (map), turn by turn.

    python benchmarks/ensemble.py

trains multilayer perceptrons of several sizes, eight members on one device, and
writes seconds per step and member to benchmarks/results/ensemble.json. From it comes
`parallel.LARGE_PRODUCT`.
"""

import json
import os
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import parallel
from dynamics.training import step, trajectory

# (examples, width): one sweep over widths, then few examples in wide and many in narrow networks.
SIZES = (
    *((500, width) for width in (8, 16, 32, 64, 96, 128, 192, 256, 512)),
    *((32, 512), (32, 1024), (4000, 32), (4000, 64), (4000, 128)),
)
INPUT_DIM, NUM_CLASSES = 64, 10
NUM_MEMBERS = 8
NUM_TURNS = 7
RESULT = Path(__file__).parent / "results" / "ensemble.json"


def train(num_examples, width, num_steps):
    """Return the function of one member: the final loss after `num_steps` full-batch steps."""
    data_key, label_key = jax.random.split(jax.random.key(0))
    x = jax.random.normal(data_key, (num_examples, INPUT_DIM))
    labels = jax.random.randint(label_key, (num_examples,), 0, NUM_CLASSES)
    dims = (INPUT_DIM, width, width, NUM_CLASSES)
    optimiser = optax.sgd(0.05, momentum=0.9)

    def loss(params):
        hidden = x
        for weight in params[:-1]:
            hidden = jnp.tanh(hidden @ weight)
        logits = hidden @ params[-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def member(key):
        keys = jax.random.split(key, len(dims) - 1)
        params = [
            jax.random.normal(key, (rows, columns)) / jnp.sqrt(rows)
            for key, rows, columns in zip(keys, dims[:-1], dims[1:], strict=True)
        ]
        state = step.initial_state(params, optimiser)
        update = step.optax_step(loss, optimiser)
        return trajectory.record(update, state, lambda state: loss(state.params), times=[num_steps])

    return member


def measure(num_examples, width):
    """Return one row of the table."""
    num_steps = int(np.clip(3e8 / (num_examples * width * (width + 64)), 5, 200))
    fn = train(num_examples, width, num_steps)
    keys = jax.random.split(jax.random.key(1), NUM_MEMBERS)
    device = jax.local_devices()[:1]
    seconds = {"vmap": [], "map": []}
    for turn in range(NUM_TURNS + 1):
        for batching, taken in seconds.items():
            start = time.perf_counter()
            jax.block_until_ready(parallel.ensemble(fn, keys, batching=batching, devices=device))
            if turn:  # the first turn compiles
                taken.append((time.perf_counter() - start) / num_steps / NUM_MEMBERS)
    jaxpr = jax.make_jaxpr(fn)(keys[0])
    # The least disturbed turn: the machine may be shared.
    best = {name: min(taken) for name, taken in seconds.items()}
    return {
        "examples": num_examples,
        "width": width,
        "largest_product": parallel.largest_product(jaxpr.jaxpr),
        "microseconds_vmap": round(1e6 * best["vmap"], 1),
        "microseconds_map": round(1e6 * best["map"], 1),
        "vmap_over_map": round(best["vmap"] / best["map"], 3),
        "vmap_over_map_median_of_turns": round(
            float(np.median(np.divide(seconds["vmap"], seconds["map"]))), 3
        ),
        "chosen": parallel.choose_batching(fn, keys[0], device[0].platform),
    }


def main():
    rows = []
    for num_examples, width in SIZES:
        rows.append(measure(num_examples, width))
        print(rows[-1], flush=True)
    result = {
        "what": "seconds per training step and member, eight members on one device, minimum of "
        f"{NUM_TURNS} turns",
        "platform": jax.default_backend(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "versions": {"jax": jax.__version__, "jaxlib": jax.lib.__version__},
        "large_product": parallel.LARGE_PRODUCT,
        "rows": rows,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
