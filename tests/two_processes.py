"""One of two processes of two devices each: what every call gives, written to a file.

python tests/two_processes.py PROCESS PORT OUT.npz
"""

import os
import sys

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
)

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.measure import curvature
from dynamics.training import trajectory

NUM_MEMBERS = 5  # on four devices
KEY = 3


def member(pair):
    key, scale = pair
    return scale * jax.random.normal(key, (2,)), jax.random.key_data(jax.random.fold_in(key, 1))


def kernel(a, b):
    return jnp.tanh(a @ b.T)


def loss(params, inputs):
    return jnp.mean(jnp.tanh(inputs @ params) ** 2)


def means(params, of_params):
    """A gradient, a trace and a trajectory, for a loss that is spread or not."""
    trace = curvature.hessian_trace(of_params, params, key=jax.random.key(KEY), num_probes=2)
    descend = lambda at: at - 0.1 * jax.grad(of_params)(at)
    return {
        "gradient": jax.grad(of_params)(params),
        "trace": trace.mean,
        "trajectory": trajectory.record(descend, params, of_params, times=[0, 4]),
    }


def spread_results(pairs, inputs, params):
    """Every call by every engine, over the devices of both processes by default."""
    found = {}
    for engine in parallel.ENGINES:
        draws, data = parallel.ensemble(member, pairs, engine=engine)
        found |= {f"{engine} draws": draws, f"{engine} keys": data}
        one = jax.tree.map(lambda leaf: leaf[:1], pairs)
        found[f"{engine} one"] = parallel.ensemble(member, one, engine=engine)[0]
        found[f"{engine} kernel"] = parallel.kernel_blocks(kernel, inputs, engine=engine)
        assert all(leaf.is_fully_addressable for leaf in found.values())
    for engine in ("jit", "shard_map"):
        spread = parallel.data_parallel(loss, engine=engine)
        rows = means(params, lambda at, spread=spread: spread(at, inputs))
        found |= {f"{engine} {name}": value for name, value in rows.items()}
    for engine in ("jit", "pmap", "shard_map"):
        direct = parallel.data_parallel(jax.grad(loss), engine=engine)(params, inputs)
        assert direct.is_fully_addressable
        found[f"{engine}-called gradient"] = direct
    return found


def refusals(pairs, inputs, params):
    """What is not to be had says so, and names the argument."""
    spread = parallel.data_parallel(loss, engine="pmap")
    strangers = jax.local_devices(1 - jax.process_index())
    three = jax.devices()[:3]
    for call, word in (
        (lambda: jax.grad(lambda at: spread(at, inputs))(params), "engine='pmap'"),
        (lambda: parallel.ensemble(member, pairs, devices=strangers), "devices="),
        (lambda: parallel.ensemble(member, pairs, engine="pmap", devices=three), "engine='pmap'"),
    ):
        try:
            call()
        except ValueError as error:
            said = str(error)
        else:
            said = "nothing"
        assert word in said, said


def main(process: int, port: str, path: str) -> None:
    """Compute by all devices; process 0 also without any spreading."""
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process, initialization_timeout=100)
    pairs = jax.random.split(jax.random.key(0), NUM_MEMBERS), np.arange(1.0, 1 + NUM_MEMBERS)
    inputs = np.random.default_rng(0).normal(size=(11, 3))  # three left over
    params = jnp.asarray([0.3, -1.0, 0.5])
    found = spread_results(pairs, inputs, params)
    refusals(pairs, inputs, params)
    own = parallel.ensemble(member, pairs, devices=jax.local_devices())[0]
    found["own draws"] = own
    if process == 0:
        draws, data = jax.vmap(member)(pairs)
        wanted = {"draws": draws, "keys": data, "one": draws[:1], "kernel": kernel(inputs, inputs)}
        wanted |= means(params, lambda at: loss(at, inputs))
        found |= {f"{name} wanted": value for name, value in wanted.items()}
    np.savez(path, **{name: np.asarray(value) for name, value in found.items()})


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
