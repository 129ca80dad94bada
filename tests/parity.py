"""Every quantity by every engine on 1, 2, 4 and 8 devices, written to a file.

    python tests/parity.py OUT.json [--whole]

A process of its own with eight simulated devices; tests/test_parity.py reads what it writes. Single
precision, which differs in rounding alone, is left at eight devices without --whole.
"""

import functools
import json
import os
import sys

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.data_parallel import ENGINES
from dynamics.measure import class_statistics, collapse, curvature_trajectory, kernels
from dynamics.training import trajectory

NUM_DEVICES = (1, 2, 4, 8)
NUM_SAMPLES, NUM_CLASSES = 16, 3  # tests/test_data_parallel.py has samples left over
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(NUM_SAMPLES, 2))
LABELS = np.arange(NUM_SAMPLES) % NUM_CLASSES
PARAMS, DIRECTION = RNG.normal(size=(2, 2, NUM_CLASSES))  # of one leaf: compiled faster


def network(params, inputs):
    return jnp.tanh(inputs @ params)


def loss(params, data):
    inputs, labels = data
    return ((network(params, inputs) - jax.nn.one_hot(labels, NUM_CLASSES)) ** 2).sum(1).mean()


def moments(params, data):
    """What class statistics are made of, as means over samples."""
    inputs, labels = data
    found, member = network(params, inputs), jax.nn.one_hot(labels, NUM_CLASSES)
    member = member.astype(found.dtype)
    return member.mean(0), member.T @ found / len(found), found.T @ found / len(found)


def statistics(shares, sums, second):
    """Class statistics of all samples: a mean times their number is a sum."""
    counts, means = NUM_SAMPLES * shares, sums / shares[:, None]
    scatter = NUM_SAMPLES * second - means.T @ (counts[:, None] * means)
    return class_statistics.ClassStatistics(counts, means, scatter)


def measured(params, direction, data, spread=lambda mean: mean):
    """Everything that is made of means over samples, in one program; `spread` lays out a mean."""
    mean_loss = spread(loss)
    of_params = lambda at: mean_loss(at, data)
    gradient, product = jax.jvp(jax.grad(of_params), (params,), (direction,))
    measure, memory = curvature_trajectory.follow_curvature(
        of_params, params, key=jax.random.key(1), num=2, num_trace_probes=2,
        params_of=lambda at: at,
    )  # fmt: skip
    descend = lambda at: at - 0.1 * jax.grad(of_params)(at)
    run, last, _ = trajectory.record_with_state(
        descend, params, measure, times=[0, 3, 9], memory=memory
    )
    found = statistics(*spread(moments)(params, data))
    return {
        "gradient": gradient,
        "Hessian product": product,
        "trace": run.trace.mean,
        "top eigenvalues": run.sharpness,
        "trajectory": (run.loss, last),
        "neural collapse": collapse.from_statistics(found, params.T @ params),
    }


def of_members(params, inputs, labels, **where):
    """What the members of an ensemble or the blocks of a kernel give."""
    rates = jnp.asarray([0.1, 0.2, 0.3, 0.4, 0.5], inputs.dtype)

    def member(rate):
        descend = lambda at: at - rate * jax.grad(loss)(at, (inputs, labels))
        return trajectory.record(descend, params, lambda at: loss(at, (inputs, labels)), times=[4])

    shares = inputs.reshape(8, 2, 2), labels.reshape(8, 2)
    share = lambda data: class_statistics.class_statistics(
        network(params, data[0]), data[1], num_classes=NUM_CLASSES
    )
    merged = class_statistics.merge_all(parallel.ensemble(share, shares, **where))
    kernel = lambda a, b: kernels.empirical_ntk(network, params, a, b)
    return {
        "ensemble": parallel.ensemble(member, rates, **where),
        "NTK": parallel.kernel_blocks(kernel, inputs, **where),
        "neural collapse, merged": collapse.from_statistics(merged, params.T @ params),
    }


def expected(params, direction, inputs, labels):
    """The same by one device, without any spreading, and NC1 to NC3 from the features at once."""
    of_params = functools.partial(measured, direction=direction, data=(inputs, labels))
    found = jax.jit(of_params)(params)
    whole = collapse.neural_collapse(
        network(params, inputs), labels, params.T @ params, num_classes=NUM_CLASSES
    )
    found["neural collapse"] = found["neural collapse, merged"] = tuple(whole[:3])
    found["NTK"] = kernels.empirical_ntk(network, params, inputs)
    losses = []
    for rate in (0.1, 0.2, 0.3, 0.4, 0.5):
        at = params
        for _ in range(4):
            at = at - rate * GRADIENT(at, (inputs, labels))
        losses.append([loss(at, (inputs, labels))])
    found["ensemble"] = jnp.asarray(losses)
    return found


GRADIENT = jax.jit(jax.grad(loss))


def difference(found, wanted) -> float:
    """The largest difference of two pytrees by the largest number in them, leaf by leaf."""
    errors = jax.tree.map(
        lambda a, b: np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(b)),
        jax.device_get(found), jax.device_get(wanted),
    )  # fmt: skip
    return float(max(jax.tree.leaves(errors)))


def main(path: str, whole: bool) -> None:
    """Write {"float32 pmap 8 NTK": difference, ...}."""
    table = {}
    # On one device all engines are one program: compiled once, and kept from run to run.
    jax.config.update("jax_compilation_cache_dir", os.environ["TRAINING_DYNAMICS_CACHE"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    for precision in ("float32", "float64"):
        with jax.enable_x64(precision == "float64"):
            cast = lambda leaf, to=precision: jnp.asarray(leaf, to)
            params, direction = cast(PARAMS), cast(DIRECTION)
            inputs, labels = cast(INPUTS), jnp.asarray(LABELS)
            wanted = expected(params, direction, inputs, labels)
            for engine in ENGINES:
                for num_devices in NUM_DEVICES if whole or precision == "float64" else (8,):
                    where = dict(engine=engine, devices=jax.devices()[:num_devices])
                    of_params = functools.partial(
                        measured, direction=direction, data=(inputs, labels),
                        spread=functools.partial(parallel.data_parallel, **where),
                    )  # fmt: skip
                    found = jax.jit(of_params)(params)
                    if engine in parallel.ENGINES:
                        found |= of_members(params, inputs, labels, **where)
                    for name, value in found.items():
                        key = f"{precision} {engine} {num_devices} {name}"
                        table[key] = difference(value, wanted[name])
    with open(path, "w") as file:
        json.dump(table, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1], "--whole" in sys.argv)
