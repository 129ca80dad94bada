"""Training on addition modulo 97: our compiled scan and PyTorch's loops, turn by turn.

    python benchmarks/grokking.py [--peer PYTHON]

An MLP of width 512 and a one-layer transformer of width 128 train on 30 % of the table, full batch,
with AdamW, in two forms of the same function: standard (tokens of both elements through all
products) and factored (tables over single elements, looked up). The peer does both forms eagerly,
with the fused optimiser, and under torch.compile. Losses of the first steps must agree. PYTHON is
an interpreter with torch and numpy; without it, an environment is made under build/peers.
Milliseconds a step and seed go to benchmarks/results/grokking.json.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

# jaxlib 0.10.1 aborts ("(0 <= -2) is statically false") while it compiles the training of the
# standard transformer for this CPU, unless this fusion is off. Must be set before JAX starts.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from peers import client

from dynamics import parallel
from dynamics.data import algorithmic
from dynamics.models import pair_networks
from dynamics.models.transformer import Transformer
from dynamics.training import step, trajectory

MODULUS, FRACTION = 97, 0.3
STEPS = {"mlp": 40, "transformer": 6}
SEEDS = 256 if jax.default_backend() == "gpu" else 8
TURNS = 3
WAYS = ("eager", "fused", "compiled")
RESULT = Path(__file__).parent / "results" / "grokking.json"


def task() -> algorithmic.Table:
    """Return the table and its split."""
    return algorithmic.split_table(jax.random.key(0), algorithmic.cyclic_group(MODULUS), FRACTION)


def model_of(name: str, form: str):
    """Return init(key) -> params and logits(params, pairs)."""
    pairs = jnp.zeros((1, 2), jnp.int32)
    if name == "mlp":
        network = pair_networks.PairMLP(
            MODULUS, 512, activation=jax.nn.relu, embedding_dim=128, factored=form == "factored"
        )
        return lambda key: network.init(key, pairs), network.apply
    network = Transformer(
        MODULUS, width=128, num_heads=4, vocabulary=MODULUS + 1, max_tokens=3, layer_norm=False
    )
    tokens = lambda pairs: pair_networks.pair_tokens(pairs, MODULUS)
    logits = lambda params, pairs: network.apply(params, tokens(pairs))
    if form == "factored":
        logits = lambda params, pairs: pair_networks.pair_transformer_logits(network, params, pairs)
    return lambda key: network.init(key, tokens(pairs)), logits


def flat(params) -> dict[str, np.ndarray]:
    """Name the weights as the peer does."""
    leaves = jax.tree_util.tree_flatten_with_path(params["params"])[0]
    named = {"_".join(part.key for part in path): np.asarray(leaf) for path, leaf in leaves}
    drop = lambda name: name.removeprefix("attention_0_").replace("_0_", "_").removesuffix(
        "_kernel"
    ).replace("embed_embedding", "embedding")  # fmt: skip
    return {drop(name): leaf for name, leaf in named.items()}


def member(name: str, form: str, times):
    """Return `key -> losses at times`, training from the start that the key draws."""
    init, logits = model_of(name, form)
    table = task()
    optimiser = optax.adamw(1e-3, b1=0.9, b2=0.98, weight_decay=1.0)

    def loss(params):
        scores = logits(params, table.train_pairs)
        return optax.softmax_cross_entropy_with_integer_labels(scores, table.train_products).mean()

    def one(key):
        start = step.initial_state(init(key), optimiser)
        measure = lambda state: loss(state.params)
        return trajectory.record(step.optax_step(loss, optimiser), start, measure, times=times)

    return one


def seconds_of(run, keys) -> float:
    """Return the time of one call."""
    begin = time.perf_counter()
    jax.block_until_ready(run(keys))
    return time.perf_counter() - begin


def compare(name: str, form: str, torch: client.Peer) -> dict:
    """Run all ways of one model in one form, turn by turn."""
    steps = STEPS[name]
    first = np.asarray(jax.jit(member(name, form, np.arange(5)))(jax.random.key(1)))
    one = member(name, form, [steps])
    run = lambda keys: parallel.ensemble(one, keys)
    keys = {1: jax.random.split(jax.random.key(1), 1),
            SEEDS: jax.random.split(jax.random.key(1), SEEDS)}  # fmt: skip
    for chosen in keys.values():
        jax.block_until_ready(run(chosen))
    found: dict[str, list[float]] = {"ours": [], "ours_many": [], **{way: [] for way in WAYS}}
    for _ in range(TURNS):
        found["ours"].append(1e3 * seconds_of(run, keys[1]) / steps)
        found["ours_many"].append(1e3 * seconds_of(run, keys[SEEDS]) / steps / SEEDS)
        for way in WAYS:
            answer = torch.ask(f"{name} {form} {way} {steps}")
            print(name, form, way, f"{1e3 * answer['seconds'] / steps:.1f} ms", flush=True)
            np.testing.assert_allclose(answer["losses"], first, rtol=1e-3)
            found[way].append(1e3 * answer["seconds"] / steps)
    median = {way: float(np.median(times)) for way, times in found.items()}
    return {"model": name, "form": form, "milliseconds": found, "median": median}


def ratios(rows: list[dict]) -> dict[str, float]:
    """Return how many times as fast ours is, and what a seed among many costs over one."""
    at = {(row["model"], row["form"]): row["median"] for row in rows}
    found = {}
    for name in STEPS:
        standard, factored = at[name, "standard"], at[name, "factored"]
        best = lambda row: min(row[way] for way in WAYS)
        found |= {
            f"{name}: standard, eager / ours": standard["eager"] / standard["ours"],
            f"{name}: standard, compiled / ours": standard["compiled"] / standard["ours"],
            f"{name}: standard, best peer / ours": best(standard) / standard["ours"],
            f"{name}: best standard peer / ours factored": best(standard) / factored["ours"],
            f"{name}: factored, best peer / ours": best(factored) / factored["ours"],
            f"{name}: seed of {SEEDS} / seed alone, standard": standard["ours_many"]
            / standard["ours"],
            f"{name}: seed of {SEEDS} / seed alone, factored": factored["ours_many"]
            / factored["ours"],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="an interpreter with torch and numpy")
    python = parser.parse_args().peer or client.environment("torch", "torch", "numpy")
    with tempfile.TemporaryDirectory() as folder:
        table = task()
        np.save(Path(folder) / "pairs.npy", np.asarray(table.train_pairs, np.int64))
        np.save(Path(folder) / "products.npy", np.asarray(table.train_products, np.int64))
        for name in STEPS:
            init, _ = model_of(name, "standard")
            np.savez(Path(folder) / f"{name}.npz", **flat(init(jax.random.key(1))))
        with client.started(python, "grokking_torch.py", folder) as torch:
            forms = ("standard", "factored")
            rows = [compare(name, form, torch) for name in STEPS for form in forms]
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "jax": jax.__version__}
    machine |= {"device": jax.devices()[0].device_kind, "peer": torch.versions}
    report = {"modulus": MODULUS, "examples": len(table.train_pairs), "seeds": SEEDS, **machine,
              "rows": rows, "ratios": ratios(rows)}  # fmt: skip
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    for row in rows:
        times = ", ".join(f"{way} {value:.1f}" for way, value in row["median"].items())
        print(f"{row['model']:12s} {row['form']:9s} ms/step/seed: {times}")
    for name, value in report["ratios"].items():
        print(f"{value:6.2f}  {name}")


if __name__ == "__main__":
    main()
