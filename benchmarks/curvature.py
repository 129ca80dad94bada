"""Hessian products, traces, eigenvalues and densities: ours and four peers, turn by turn.

    python benchmarks/curvature.py [--peer PYTHON] [--turns 3]

An MLP (784-512-512-10, ReLU) and a small CNN (20,490 weights) on 1000 examples, cross-entropy,
single precision. Peers: PyHessian, curvlinops and hessian-eigenthings in PyTorch, in an environment
of their own, and matfree in JAX. The product with one direction must agree to 1e-3 on all sides
before anything is timed, traces within five standard errors, the largest eigenvalues to 1e-3.
Traces are compared by the time to a standard error of 1 %: probes needed (from the spread of ours,
the same estimator everywhere) times seconds a probe; the exact route is another algorithm and
labelled so. PYTHON is an interpreter with the peers; without it, an environment is made under
build/peers. Results go to benchmarks/results/curvature.json.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

# The stage of XLA that fuses into YNNPACK loses digits in second derivatives of convolutions.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_cpu_experimental_ynn_fusion_type="
)

import flax.linen as nn
import jax
import jax.numpy as jnp
import matfree.stochtrace
import numpy as np
from jax.flatten_util import ravel_pytree
from peers import client

from dynamics.measure import curvature, spectrum

SAMPLES, NUM_TOP = 1000, 20
PROBES = {"mlp": 20, "cnn": 8}
TOP_STEPS, DENSITY_STEPS = 150, 80
TORCH = ("pyhessian", "curvlinops", "eigenthings")
RESULT = Path(__file__).parent / "results" / "curvature.json"


def mlp(params, x):
    for kernel, bias in params[:-1]:
        x = jax.nn.relu(x @ kernel + bias)
    return x @ params[-1][0] + params[-1][1]


def cnn(params, x):
    for kernel, bias in params[:-1]:
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        x = nn.avg_pool(jax.nn.relu(x + bias), (2, 2), (2, 2))
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # PyTorch's order
    return x @ params[-1][0] + params[-1][1]


NETWORKS = {
    "mlp": (mlp, (784,), [(784, 512), (512, 512), (512, 10)], None),
    "cnn": (cnn, (28, 28, 1), [(3, 3, 1, 16), (3, 3, 16, 32), (1568, 10)], 50),
}


def cross_entropy(outputs, labels):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(outputs), labels[:, None], axis=1))


class Case:
    """One network with its data, a direction, and our programs."""

    def __init__(self, name: str):
        self.name = name
        self.network, sample_shape, shapes, self.batch_size = NETWORKS[name]
        rng = np.random.default_rng(0)
        draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
        he = lambda shape: draw(*shape) * np.float32((2 / np.prod(shape[:-1])) ** 0.5)
        self.params = [(he(shape), 0.1 * draw(shape[-1])) for shape in shapes]
        self.direction = jax.tree.map(lambda leaf: draw(*leaf.shape), self.params)
        self.x, self.labels = draw(SAMPLES, *sample_shape), np.arange(SAMPLES) % 10
        self.data = jnp.asarray(self.x), jnp.asarray(self.labels)
        plain = lambda params, data: cross_entropy(self.network(params, data[0]), data[1])
        # Whole data for the MLP; for the CNN small batches of products, as the docstring advises.
        self.loss = curvature.convolutions_as_products(plain) if name == "cnn" else plain
        self.batched = dict(data=self.data, batch_size=self.batch_size)
        self.whole = lambda params: plain(params, self.data)

    def save(self, folder: Path) -> None:
        """Write what the peer reads, in PyTorch's layout."""

        def laid(tree, letter):
            arrays = {}
            for index, leaf in enumerate(jax.tree.leaves(tree)):
                order = (3, 2, 0, 1) if leaf.ndim == 4 else tuple(reversed(range(leaf.ndim)))
                arrays[f"{letter}{index}"] = np.ascontiguousarray(leaf.transpose(order))
            return arrays

        x = self.x.transpose(0, 3, 1, 2) if self.x.ndim == 4 else self.x
        arrays = laid(self.params, "p") | laid(self.direction, "v")
        np.savez(
            folder / f"{self.name}.npz", x=np.ascontiguousarray(x), labels=self.labels, **arrays
        )

    def programs(self):
        """Return ours: name -> jitted function of (params, key)."""
        batched = self.batched
        probes, single = PROBES[self.name], lambda key: jax.random.fold_in(key, 0)

        def matvecs(params, key):
            product = curvature.hessian_vector_product(self.loss, params, *batched.values())
            scales = 1 + 0 * jax.random.uniform(key, (10,))  # ten products in one loop
            scaled = lambda c: jax.tree.map(lambda leaf: c * leaf, self.direction)
            return jax.lax.map(lambda c: product(scaled(c)), scales)

        def density(reorthogonalise):
            return lambda params, key: spectrum.spectral_density(
                self.loss, params, key=single(key), num_probes=2, num_iterations=DENSITY_STEPS,
                reorthogonalise=reorthogonalise, **batched,
            )  # fmt: skip

        made = {
            "matvec": matvecs,
            "trace": lambda params, key: curvature.hessian_trace(
                self.loss, params, key=key, num_probes=probes, **batched
            ),
            "exact trace": lambda params, key: curvature.exact_hessian_trace(
                self.network, params, *self.data, cross_entropy
            ),
            "matfree trace": self.matfree_trace,
        }
        if self.name == "mlp":
            made["top"] = lambda params, key: curvature.top_eigenpairs(
                self.loss, params, key=key, num=NUM_TOP, num_iterations=TOP_STEPS, **batched
            )
            made["density"] = density(False)
            made["density, reorthogonalised"] = density(True)
        return {name: jax.jit(program) for name, program in made.items()}

    def matfree_trace(self, params, key):
        """Matfree's Hutchinson estimate, a probe at a time: its vmap takes more memory and time."""
        flat, unravel = ravel_pytree(params)
        gradient = jax.grad(lambda flat: self.whole(unravel(flat)))
        matvec = lambda v: jax.jvp(gradient, (flat,), (v,))[1]
        sampler = matfree.stochtrace.sampler_signs(flat, num=1)
        estimate = matfree.stochtrace.estimator_monte_carlo(
            matfree.stochtrace.monte_carlo_trace(), sampler
        )
        keys = jax.random.split(key, PROBES[self.name])
        return jnp.mean(jax.lax.map(lambda key: estimate(matvec, key), keys))


def seconds_of(run, *arguments):
    begin = time.perf_counter()
    found = jax.block_until_ready(run(*arguments))
    return time.perf_counter() - begin, found


def check(case: Case, programs, torch) -> dict:
    """Raise where the sides disagree; return what both found, and the probes that 1 % takes."""
    params, key = case.params, jax.random.key(0)
    ours = jax.tree.map(lambda leaf: leaf[0], programs["matvec"](params, key))
    flat, v = ravel_pytree(ours)[0], ravel_pytree(case.direction)[0]
    found = [float(jnp.linalg.norm(flat)), float(flat @ v)]
    for peer in TORCH:
        answer = torch.ask(f"matvec {case.name} {peer} 1")["found"]
        np.testing.assert_allclose(answer, found, rtol=1e-3, err_msg=peer)
    exact = float(programs["exact trace"](params, key))
    many = jax.lax.map(
        lambda key: (
            curvature.hessian_trace(case.loss, params, key=key, num_probes=2, **case.batched).mean
        ),
        jax.random.split(key, 64 if case.name == "mlp" else 24),
    )
    spread = float(jnp.std(many, ddof=1)) * 2**0.5  # of one probe
    error = spread / PROBES[case.name] ** 0.5
    means = {peer: torch.ask(f"trace {case.name} {peer} {PROBES[case.name]}")["found"]
             for peer in TORCH}  # fmt: skip
    means["matfree"] = float(programs["matfree trace"](params, key))
    means["ours"] = float(programs["trace"](params, key).mean)
    for name, mean in means.items():
        assert abs(mean - exact) < 5 * error, (name, mean, exact, error)
    report = {"exact trace": exact, "traces": means, "spread of a probe": spread,
              "probes for 1 %": (spread / (0.01 * exact)) ** 2}  # fmt: skip
    if case.name == "mlp":
        top = programs["top"](params, key)
        answer = torch.ask(f"top mlp eigenthings {NUM_TOP} {TOP_STEPS}")
        np.testing.assert_allclose(sorted(answer["found"])[-5:], sorted(top.values)[-5:], rtol=1e-3)
        report["top"] = {
            "ours": np.asarray(top.values).tolist(),
            "ours, residual / value": np.asarray(top.residuals / top.values).tolist(),
            "eigenthings": answer["found"],
            "eigenthings, residuals": answer["residuals"],
            "eigenthings, iterations": answer["iterations"],
        }
        for name in ("density", "density, reorthogonalised"):
            programs[name](params, key)
    return report


def turn(case: Case, programs, torch, key) -> dict[str, float]:
    """Return seconds of everything once: per product, per probe, per top-20, per vector."""
    found = {}
    found["matvec, ours"] = seconds_of(programs["matvec"], case.params, key)[0] / 10
    for peer in TORCH:
        found[f"matvec, {peer}"] = torch.ask(f"matvec {case.name} {peer} 10")["seconds"]
    probes = PROBES[case.name]
    for name, label in (("trace", "ours"), ("matfree trace", "matfree")):
        found[f"probe, {label}"] = seconds_of(programs[name], case.params, key)[0] / probes
    for peer in TORCH:
        seconds = torch.ask(f"trace {case.name} {peer} {probes}")["seconds"]
        found[f"probe, {peer}"] = seconds / probes
    found["exact trace, ours"] = seconds_of(programs["exact trace"], case.params, key)[0]
    if case.name == "mlp":
        found["top, ours"] = seconds_of(programs["top"], case.params, key)[0]
        answer = torch.ask(f"top mlp eigenthings {NUM_TOP} {TOP_STEPS}")
        found["top, eigenthings"] = answer["seconds"]
        for name, peer in (("density", "curvlinops"), ("density, reorthogonalised", "pyhessian")):
            found[f"{name}, ours"] = seconds_of(programs[name], case.params, key)[0] / 2
            answer = torch.ask(f"density mlp {peer} {DENSITY_STEPS}")
            found[f"{name}, {peer}"] = answer["seconds"]
    return found


def ratios(case: str, seconds: dict[str, float], probes: float) -> dict[str, float]:
    """Return how many times as long as ours each peer takes."""
    made = {}
    for name, taken in seconds.items():
        what, _, who = name.rpartition(", ")
        if who != "ours":
            made[f"{case}: {what}, {who} / ours"] = taken / seconds[f"{what}, ours"]
            if what == "probe":
                exact = seconds["exact trace, ours"]
                made[f"{case}: trace to 1 %, {who} / our exact one"] = taken * probes / exact
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="an interpreter with the peers")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    python = options.peer or client.environment(
        "curvature", "torch", "curvlinops-for-pytorch==3.0.1", "hessian-eigenthings==1.0.0a5",
        "pyhessian==0.1",
    )  # fmt: skip
    report: dict = {"machine": platform.machine(), "cores": os.cpu_count(), "jax": jax.__version__,
                    "device": jax.devices()[0].device_kind, "cases": {}, "ratios": {}}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        cases = [Case(name) for name in NETWORKS]
        for case in cases:
            case.save(Path(folder))
        with client.started(python, "curvature_torch.py", folder) as torch:
            report["peer"] = torch.versions
            for case in cases:
                programs = case.programs()
                found = check(case, programs, torch)
                turns = [turn(case, programs, torch, jax.random.key(i))
                         for i in range(options.turns)]  # fmt: skip
                median = {name: float(np.median([t[name] for t in turns])) for name in turns[0]}
                report["cases"][case.name] = {"found": found, "turns": turns, "median": median}
                report["ratios"] |= ratios(case.name, median, found["probes for 1 %"])
                print(case.name, json.dumps(median, indent=1), flush=True)
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    for name, value in report["ratios"].items():
        print(f"{value:6.2f}  {name}")


if __name__ == "__main__":
    main()
