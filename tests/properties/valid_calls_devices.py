"""One valid call of every public function that spreads work over devices or keeps long runs."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from dynamics import data_parallel, long_runs, parallel
from dynamics.training import checkpoint

X = jnp.ones((3, 2))
KEYS = jnp.arange(3.0)
ADDITION = jax.make_jaxpr(lambda x: x @ x.T)(X).jaxpr


def double(member, shared):
    return 2 * member * shared


def product(a, b):
    return a @ b.T


def square(state, data):
    return jnp.mean((data - state) ** 2)


def train(member):
    return long_runs.Training(itself, member, itself)


def itself(state):
    return state


CALLS = {
    parallel.ensemble: lambda: dict(
        fn=double, keys=KEYS, shared=2.0, engine="jit", batching="vmap", devices=None
    ),
    parallel.kernel_blocks: lambda: dict(
        kernel=product, x1=X, x2=X, num_blocks=1, engine="jit", devices=None
    ),
    parallel.choose_batching: lambda: dict(fn=itself, member=1.0, platform="cpu"),
    parallel.largest_product: lambda: dict(jaxpr=ADDITION),
    data_parallel.data_parallel: lambda: dict(fn=square, engine="jit", devices=None),
    long_runs.record_ensemble: lambda: dict(
        train=train,
        members=KEYS,
        times=[0, 1],
        checkpoints=None,
        chunk_size=0,
        name="training",
        fingerprint="",
        engine="jit",
        batching="vmap",
    ),
    checkpoint.record_in_chunks: lambda: dict(
        step=itself,
        state=1.0,
        measure=itself,
        times=[0, 1],
        directory=Path(tempfile.mkdtemp()),
        chunk_size=2,
        memory=None,
        fingerprint="",
        stop=None,
        observe=None,
    ),
}
