"""Training linear attention in context, and the mesa-layer: ours and PyTorch, turn by turn.

    python benchmarks/in_context.py [--peer PYTHON]

One and two tied layers of linear self-attention train on fresh regression prompts, D = N = 10, 256
a step, one network and five: steps times networks a second. Ours reads the context through its
Gram matrix, by products with vectors (an exact rewriting); the peer acts on tokens, as published
code does, eagerly and under torch.compile, and, to tell the rewriting from the program, eagerly on
Gram matrices too. "From a pool" is ours as the claims train: tasks drawn before training, queries
averaged exactly, less work for the same end. The losses of the first steps on the same prompts must
agree. Then the mesa-layer, forwards and backwards over 512 tokens of 64 dimensions: ours in chunks
against our recursion and against PyTorch's. PYTHON is an interpreter with torch and numpy; without
it, an environment is made under build/peers. Results go to benchmarks/results/in_context.json.
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
import optax
from peers import client

from dynamics import parallel
from dynamics.data import in_context, regression_grams
from dynamics.measure import in_context as measured
from dynamics.models import linear_attention
from dynamics.training import step, trajectory

DIM, NUM_CONTEXT, BATCH = 10, 10, 256
NUM_TOKENS, WIDTH, RIDGE = 512, 64, 1.0
POOL = 20_000  # tasks, as in the claims
STEPS, SEEDS, TURNS, CHECKED = 1000, (1, 5), 5, 5
WAYS = ("tokens", "compiled", "gram")
RESULT = Path(__file__).parent / "results" / "in_context.json"


def prompts(key):
    """Return tokens (B, N + 1, D + 1) and answers (B,)."""
    made = in_context.linear_regression(key, BATCH, NUM_CONTEXT, DIM, inputs="uniform")
    return made.tokens(), made.answer


def loss_of(weights, tokens, answers, layers: int):
    """Return half the mean squared error of tied layers, from the row that a context makes."""
    gram = linear_attention.context_gram(tokens, num_context=NUM_CONTEXT)
    row = linear_attention.read_out_row(linear_attention.tie(weights, layers), gram)
    return 0.5 * jnp.mean((-jnp.sum(row * tokens[:, -1], axis=1) - answers) ** 2)


def optimiser():
    return optax.chain(optax.clip_by_global_norm(0.1), optax.adam(3e-3, b2=0.98, eps=1e-9))


def start():
    """Return the weights before training, and the prompts of the first steps."""
    weights = linear_attention.random_weights(jax.random.key(0), DIM + 1, 0.04)
    return weights, jax.vmap(prompts)(jax.random.split(jax.random.key(1), CHECKED))


def first_losses(layers: int) -> np.ndarray:
    """Return the losses before each of the first steps, on the prompts that the peer has."""
    weights, (tokens, answers) = start()

    def one(state, batch):
        loss = lambda weights: loss_of(weights, *batch, layers)
        return step.optax_step(loss, optimiser())(state), loss(state.params)

    begin = step.initial_state(weights, optimiser())
    return np.asarray(jax.lax.scan(one, begin, (tokens, answers))[1])


def member(layers: int):
    """Return `key -> weights`, trained on fresh prompts."""

    def update(state):
        batch = prompts(jax.random.fold_in(state.key, state.step))
        loss = lambda weights: loss_of(weights, *batch, layers)
        moved = step.optax_step(loss, optimiser())(step.TrainState(*state[:3]))
        return step.MinibatchState(*moved, state.key)

    def one(key):
        begin = step.initial_minibatch_state(start()[0], optimiser(), key)
        return trajectory.record(update, begin, lambda state: state.params, times=[STEPS])

    return one


def member_of_pool(layers: int):
    """Return the same as the claims train: tasks drawn beforehand, queries averaged exactly."""

    def loss(weights, tasks):
        row = linear_attention.read_out_row(linear_attention.tie(weights, layers), tasks.gram)
        return jnp.mean(regression_grams.query_loss(-row[..., :-1], tasks.weights))

    def one(key):
        data = regression_grams.uniform_tasks(key, POOL, NUM_CONTEXT, DIM)
        update = step.minibatch_step(loss, optimiser(), data, BATCH, with_replacement=True)
        begin = step.initial_minibatch_state(start()[0], optimiser(), key)
        return trajectory.record(update, begin, lambda state: state.params, times=[STEPS])

    return one


def seconds_of(run, *arguments) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return time.perf_counter() - begin


def training(layers: int, seeds: int, torch: client.Peer) -> dict:
    """Return microseconds a step and network of all ways."""
    expected = first_losses(layers)
    for way in WAYS:
        losses = torch.ask(f"check {layers} {way}")["losses"]
        np.testing.assert_allclose(losses, expected, rtol=1e-4)
    keys = jax.random.split(jax.random.key(2), seeds)
    ours = {"ours": member(layers), "ours, from a pool": member_of_pool(layers)}
    first = {name: seconds_of(parallel.ensemble, one, keys) for name, one in ours.items()}
    found: dict[str, list[float]] = {name: [] for name in (*ours, *WAYS)}
    for _ in range(TURNS):
        for name, one in ours.items():
            found[name].append(1e6 * seconds_of(parallel.ensemble, one, keys) / STEPS / seeds)
        for way in WAYS:
            taken = torch.ask(f"train {layers} {way} {seeds} {STEPS // 10}")["seconds"]
            found[way].append(1e6 * taken / (STEPS // 10) / seeds)
    median = {way: float(np.median(times)) for way, times in found.items()}
    print(layers, seeds, median, flush=True)
    return {"layers": layers, "networks": seeds, "first_call_seconds": first,
            "microseconds": found, "median": median}  # fmt: skip


def mesa_inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    draw = lambda: rng.normal(size=(NUM_TOKENS, WIDTH)).astype(np.float32) / WIDTH**0.5
    return {"keys": draw(), "values": draw(), "queries": draw(), "ridge": np.float32(RIDGE)}


def mesa(torch: client.Peer) -> dict:
    """Return milliseconds of forward and backward: chunks, recursion, PyTorch's recursion."""
    inputs = mesa_inputs()
    arrays = tuple(jnp.asarray(inputs[name]) for name in ("keys", "values", "queries"))

    def program(chunk_size):
        def total(keys, values, queries):
            out = measured.mesa_layer(keys, values, queries, RIDGE, chunk_size=chunk_size)
            return jnp.sum(out**2), out[-1]

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))

    ways = {"chunked": program(64), "recursion": program(None)}
    answer = torch.ask("mesa")
    for run in ways.values():
        (_, last), (gradient, *_) = run(*arrays)
        np.testing.assert_allclose(last, answer["output"], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(gradient[0], answer["gradient"], rtol=1e-2, atol=1e-3)
    found: dict[str, list[float]] = {"chunked": [], "recursion": [], "torch": []}
    for _ in range(TURNS):
        for way, run in ways.items():
            found[way].append(1e3 * min(seconds_of(run, *arrays) for _ in range(5)))
        found["torch"].append(1e3 * torch.ask("mesa")["seconds"])
    median = {way: float(np.median(times)) for way, times in found.items()}
    print(median, flush=True)
    return {"tokens": NUM_TOKENS, "dimensions": WIDTH, "milliseconds": found, "median": median}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="an interpreter with torch and numpy")
    python = parser.parse_args().peer or client.environment("torch", "torch", "numpy")
    with tempfile.TemporaryDirectory() as folder:
        weights, (tokens, answers) = start()
        np.savez(Path(folder) / "weights.npz", **weights._asdict())
        np.save(Path(folder) / "tokens.npy", tokens)
        np.save(Path(folder) / "answers.npy", answers)
        np.savez(Path(folder) / "mesa.npz", **mesa_inputs())
        with client.started(python, "in_context_torch.py", folder) as torch:
            rows = [training(layers, seeds, torch) for layers in (1, 2) for seeds in SEEDS]
            layer = mesa(torch)
            versions = torch.versions
    ratios = {
        f"{row['layers']} layers, {row['networks']} networks: {way} / {ours}": row["median"][way]
        / row["median"][ours]
        for row in rows
        for ours in ("ours", "ours, from a pool")
        for way in WAYS
    }
    for way in ("recursion", "torch"):
        ratios[f"mesa-layer: {way} / chunked"] = layer["median"][way] / layer["median"]["chunked"]
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "jax": jax.__version__}
    machine |= {"device": jax.devices()[0].device_kind, "peer": versions}
    report = {**machine, "training": rows, "mesa_layer": layer, "ratios": ratios}
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    for name, value in ratios.items():
        print(f"{value:6.2f}  {name}")


if __name__ == "__main__":
    main()
