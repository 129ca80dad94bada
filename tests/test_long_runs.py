"""Ensembles of training runs in chunks, against one program and against a Python loop."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import long_runs
from dynamics.training import checkpoint

TIMES = (0, 1, 3, 7, 8, 20)


def descend(member):
    """Gradient descent on a quadratic whose minimum the member's key draws."""
    key, rate = member
    minimum = jax.random.normal(key, (3,))

    def step(state):
        weights, count = state
        return weights - rate * (weights - minimum), count + 1

    def measure(state):
        return {"loss": jnp.sum((state[0] - minimum) ** 2), "step": state[1]}

    return long_runs.Training(step, (jnp.zeros(3), 0), measure)


@pytest.fixture
def members(key):
    return jax.random.split(key, 5), jnp.linspace(0.1, 0.5, 5)


def by_hand(members):
    losses = []
    for key, rate in zip(*members, strict=True):
        minimum = np.asarray(jax.random.normal(key, (3,)), np.float64)
        # The distance to the minimum shrinks by 1 - rate in every step.
        losses.append([(minimum**2).sum() * (1 - float(rate)) ** (2 * t) for t in TIMES])
    return np.array(losses)


@pytest.mark.parametrize("chunk_size", [0, 1, 4, 99])
@pytest.mark.parametrize("engine", ["jit", "pmap"])
def test_chunks_of_any_size_give_the_closed_form(members, tmp_path, chunk_size, engine):
    heard = []
    found, (weights, count) = long_runs.record_ensemble(
        descend,
        members,
        times=TIMES,
        checkpoints=long_runs.Checkpoints(
            tmp_path, observe=lambda name, times, found: heard.append((name, *times))
        ),
        chunk_size=chunk_size,
        engine=engine,
    )
    assert found["loss"].shape == (5, len(TIMES))
    np.testing.assert_allclose(found["loss"], by_hand(members), rtol=1e-4, atol=1e-9)
    np.testing.assert_array_equal(found["step"], np.broadcast_to(TIMES, (5, len(TIMES))))
    assert weights.shape == (5, 3)
    np.testing.assert_array_equal(count, [20] * 5)
    cuts = range(0, len(TIMES), chunk_size) if chunk_size else ()
    assert heard == [("training", *TIMES[cut : cut + chunk_size]) for cut in cuts]


def test_a_stopped_run_goes_on_to_the_same_bits(members, tmp_path):
    arguments = dict(train=descend, members=members, times=TIMES, chunk_size=2)
    whole = long_runs.record_ensemble(
        **arguments, checkpoints=long_runs.Checkpoints(tmp_path / "whole")
    )
    for _ in range(2):  # one chunk a call, of three
        with pytest.raises(checkpoint.Interrupted, match="of 20; all of it is saved"):
            long_runs.record_ensemble(
                **arguments, checkpoints=long_runs.Checkpoints(tmp_path / "cut", stop=lambda: True)
            )
    heard = []
    found = long_runs.record_ensemble(
        **arguments,
        checkpoints=long_runs.Checkpoints(
            tmp_path / "cut", stop=lambda: True, observe=lambda *chunk: heard.append(chunk)
        ),
    )
    assert [list(times) for _, times, _ in heard] == [[8, 20]]
    same = lambda one, other: np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert all(jax.tree.leaves(jax.tree.map(same, found, whole)))


def test_the_folder_of_other_members_is_refused(members, tmp_path):
    arguments = dict(times=TIMES, chunk_size=3, checkpoints=long_runs.Checkpoints(tmp_path))
    long_runs.record_ensemble(descend, members, **arguments)
    fewer = jax.tree.map(lambda leaf: leaf[:4], members)
    others = (members[0], members[1] + 0.1)
    for strangers in (fewer, others):
        with pytest.raises(ValueError, match="directory"):
            long_runs.record_ensemble(descend, strangers, **arguments)


def test_a_negative_chunk_is_refused(members):
    with pytest.raises(ValueError, match="chunk_size=-1"):
        long_runs.record_ensemble(descend, members, times=TIMES, chunk_size=-1)


PROCESS = """
import sys
from pathlib import Path

import jax
import numpy as np

process, port, folder, stops = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
jax.distributed.initialize(f"localhost:{port}", 2, process)
sys.path.insert(0, sys.argv[5])
import test_long_runs as tests
from dynamics import long_runs
from dynamics.training import checkpoint

members = jax.random.split(jax.random.key(0), 5), jax.numpy.linspace(0.1, 0.5, 5)
mine = long_runs.Checkpoints(folder / str(process), stop=lambda: stops == "1" and process == 1)
try:
    found = long_runs.record_ensemble(
        tests.descend, members, times=tests.TIMES, chunk_size=4, checkpoints=mine
    )
except checkpoint.Interrupted:
    (folder / f"stopped_{process}").touch()
else:
    np.savez(folder / f"found_{process}.npz", *jax.tree.leaves(found))
"""


def test_two_processes_stop_together_and_go_on_from_what_the_first_kept(tmp_path):
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}

    def run(stops):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        words = [str(port), str(tmp_path), stops, str(Path(__file__).parent)]
        both = [
            subprocess.Popen([sys.executable, str(script), str(process), *words], env=environment)
            for process in (0, 1)
        ]
        assert [process.wait(120) for process in both] == [0, 0]

    run("1")  # the second process is asked to stop: both do
    assert {path.name for path in tmp_path.glob("stopped_*")} == {"stopped_0", "stopped_1"}
    assert not (tmp_path / "1").exists(), "the first alone keeps chunks"
    run("0")
    members = jax.random.split(jax.random.key(0), 5), jnp.linspace(0.1, 0.5, 5)
    with np.load(tmp_path / "found_0.npz") as one, np.load(tmp_path / "found_1.npz") as other:
        losses = one["arr_0"]
        np.testing.assert_allclose(losses, by_hand(members), rtol=1e-4, atol=1e-9)
        assert all(one[name].tobytes() == other[name].tobytes() for name in one.files)
