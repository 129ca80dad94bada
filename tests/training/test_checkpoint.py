import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics.training import checkpoint, step, trajectory

ROOT = Path(__file__).resolve().parents[2]
TIMES = (0, 1, 4, 5, 9, 12, 20)  # chunks of three: 0-2, 3-5, 6
# A run in a process of its own, which dies by SIGKILL inside a measurement at step KILL_AT.
SCRIPT = """
import os, signal, sys
import jax, jax.numpy as jnp, optax, numpy as np
from dynamics.training import checkpoint, step

directory, kill_at, output = sys.argv[1], int(sys.argv[2]), sys.argv[3]
inputs = jnp.linspace(-1, 1, 24).reshape(12, 2)
data = inputs, jnp.sin(3 * inputs[:, 0])
loss = lambda weights, batch: ((jnp.tanh(batch[0] @ weights) - batch[1]) ** 2).mean()
optimiser = optax.adam(0.05)
update = step.minibatch_step(loss, optimiser, data, 4)
state = step.initial_minibatch_state(jnp.ones(2), optimiser, jax.random.key(7))

def die(now):
    if now == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

def measure(state, memory):
    jax.debug.callback(die, state.step)
    memory = 0.5 * memory + state.params
    return {"loss": loss(state.params, data), "memory": memory, "key": state.key}, memory

measurements, state, memory = checkpoint.record_in_chunks(
    update, state, measure, times=(0, 1, 4, 5, 9, 12, 20), directory=directory, chunk_size=3,
    memory=jnp.zeros(2), fingerprint="a test",
)
np.savez(output, loss=measurements["loss"], memories=measurements["memory"],
    keys=jax.random.key_data(measurements["key"]), params=state.params, step=state.step,
    key=jax.random.key_data(state.key), moments=state.optimiser_state[0].nu, memory=memory)
"""


def run_script(tmp_path, directory, kill_at=-1):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT))
    output = tmp_path / f"{directory.name}.npz"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    process = subprocess.run(
        [sys.executable, str(script), str(directory), str(kill_at), str(output)],
        env=environment,
        capture_output=True,
        timeout=120,
    )
    return process.returncode, output


def test_a_killed_run_goes_on_and_ends_in_the_same_bits(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    code, reference = run_script(tmp_path, straight)
    assert code == 0
    code, output = run_script(tmp_path, killed, kill_at=9)  # inside the second chunk
    assert code == -signal.SIGKILL
    assert not output.exists()
    assert (killed / "state_000000").exists()
    assert not (killed / "state_000001").exists()
    # The first chunk may not be trained again: this would die at its measurement at step 1.
    code, output = run_script(tmp_path, killed, kill_at=1)
    assert code == 0
    with np.load(reference) as expected, np.load(output) as found:
        assert set(expected.files) == set(found.files)
        for name in expected.files:
            assert expected[name].tobytes() == found[name].tobytes(), name


def rotate(state):
    value, key = state
    return value + jax.random.normal(key), jax.random.fold_in(key, 1)


def measure(state):
    return {"value": state[0], "key": state[1]}


@pytest.fixture
def arguments(tmp_path, key):
    return dict(
        step=rotate,
        state=(jnp.float32(1), key),
        measure=measure,
        times=TIMES,
        directory=tmp_path / "run",
        chunk_size=3,
    )


def words(tree):
    """All leaves as bytes, so that equality is equality of bits."""
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    plain = lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf
    return [np.asarray(plain(leaf)).tobytes() for leaf in jax.tree.leaves(tree)]


def test_chunks_give_what_one_recording_gives(arguments):
    chunked = checkpoint.record_in_chunks(**arguments)
    whole = trajectory.record_with_state(rotate, arguments["state"], measure, times=TIMES)
    assert jax.tree.structure(chunked) == jax.tree.structure(whole)
    assert words(chunked) == words(whole)
    key = chunked[1][1]
    assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_a_finished_run_is_read_without_training(arguments, implementation):
    arguments["state"] = (jnp.float32(1), jax.random.key(3, impl=implementation))
    first = checkpoint.record_in_chunks(**arguments)

    def explode(state):
        message = "trained again"
        raise AssertionError(message)

    again = checkpoint.record_in_chunks(**(arguments | {"step": explode}))
    assert words(again) == words(first)
    assert jax.random.key_impl(again[1][1]) == jax.random.key_impl(first[1][1])


def tear(path):
    """Cut the largest file in half, as a full disk or a lost cache would."""
    largest = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def flip(path):
    """Change one bit in the middle of every data file."""
    for file in path.rglob("d/*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


def forget(path):
    """As if killed after orbax had written and before the digest was."""
    path.with_suffix(".sha256").unlink()


@pytest.mark.parametrize("harm", [tear, flip, forget, shutil.rmtree])
@pytest.mark.parametrize("victim", ["state_000002", "measurements_000002", "measurements_000000"])
def test_a_harmed_chunk_is_done_again(arguments, harm, victim):
    first = checkpoint.record_in_chunks(**arguments)
    harm(arguments["directory"] / victim)
    steps = []

    def watched(state):
        jax.debug.callback(lambda: steps.append(1))
        return rotate(state)

    again = checkpoint.record_in_chunks(**(arguments | {"step": watched}))
    assert words(again) == words(first)
    # From the previous chunk, which ends at step 12, or from the start.
    assert len(steps) == (20 if victim.endswith("0") else 8)


def test_a_digest_that_is_no_text_is_of_a_harmed_chunk(arguments):
    first = checkpoint.record_in_chunks(**arguments)
    for note in arguments["directory"].glob("*.sha256"):
        note.write_bytes(b"\xff" + note.read_bytes())
    assert words(checkpoint.record_in_chunks(**arguments)) == words(first)


def test_old_states_are_dropped(arguments):
    checkpoint.record_in_chunks(**(arguments | {"chunk_size": 1}))
    found = {path.stem for path in arguments["directory"].glob("state_*")}
    assert found == {"state_000005", "state_000006"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (dict(times=(0, 1, 4, 5, 9, 12, 21)), "times"),
        (dict(chunk_size=2), "chunk_size"),
        (dict(fingerprint="another loss"), "fingerprint"),
        (dict(state=(jnp.float32(2), jax.random.key(0))), "state"),
        (dict(measure=lambda state: state[0]), "measurements"),
    ],
)
def test_the_directory_of_another_run_is_refused(arguments, change, word):
    first = checkpoint.record_in_chunks(**arguments)
    with pytest.raises(ValueError, match=f"another run .different {word}.*empty directory"):
        checkpoint.record_in_chunks(**(arguments | change))
    assert words(checkpoint.record_in_chunks(**arguments)) == words(first)  # nothing was lost


def test_a_directory_with_other_files_is_refused_and_left_alone(arguments):
    arguments["directory"].mkdir()
    note = arguments["directory"] / "thesis.tex"
    note.write_text("precious")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        checkpoint.record_in_chunks(**arguments)
    assert note.read_text() == "precious"
    assert len(list(arguments["directory"].iterdir())) == 1


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_a_note_that_cannot_be_read_is_refused(arguments, content):
    checkpoint.record_in_chunks(**arguments)
    (arguments["directory"] / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json"):
        checkpoint.record_in_chunks(**arguments)


def test_two_runs_into_one_directory_do_not_mix(arguments):
    def inner(state):
        jax.debug.callback(intrude, ordered=False)
        return state[0]

    refusals = []

    def intrude():
        with pytest.raises(ValueError, match="another process") as caught:
            with checkpoint._claimed(arguments["directory"], {}):
                pass
        refusals.append(caught)

    checkpoint.record_in_chunks(**(arguments | {"measure": inner}))
    jax.effects_barrier()
    assert len(refusals) == len(TIMES)


def test_types_empty_arrays_and_no_arrays_survive(arguments, x64):
    state = {
        "double": jnp.float64(1 / 3),
        "half": jnp.ones(2, jnp.bfloat16),
        "none": jnp.zeros((0, 3)),
        "flag": jnp.array(True),
        "nothing": (),
        "count": 0,
    }
    count = lambda state: state | {"count": state["count"] + 1}
    change = dict(step=count, state=state, measure=lambda state: (state["none"], state["flag"]))
    first = checkpoint.record_in_chunks(**(arguments | change))
    again = checkpoint.record_in_chunks(**(arguments | change))
    assert words(first) == words(again)
    assert again[1]["count"] == 20
    assert again[1]["half"].dtype == jnp.bfloat16
    assert again[1]["double"] == 1 / 3
    assert again[0][0].shape == (7, 0, 3)


def test_it_is_silent_and_names_no_path(arguments, capfd):
    checkpoint.record_in_chunks(**arguments)
    checkpoint.record_in_chunks(**arguments)
    assert capfd.readouterr() == ("", "")
    note = json.loads((arguments["directory"] / "run.json").read_text())
    assert str(arguments["directory"]) not in str(note)


def test_an_adam_run_in_chunks_is_the_run_in_one_piece(arguments):
    optimiser = optax.adam(0.1)
    update = step.optax_step(lambda params: (params**4).sum(), optimiser)
    state = step.initial_state(jnp.array([1.0, -2.0]), optimiser)
    params = lambda state: state.params
    change = dict(step=update, state=state, measure=params)
    chunked, final = checkpoint.record_in_chunks(**(arguments | change))
    np.testing.assert_array_equal(chunked, trajectory.record(update, state, params, times=TIMES))
    assert isinstance(final, step.TrainState)


def test_a_chunk_holds_something(arguments):
    with pytest.raises(ValueError, match="chunk_size=0"):
        checkpoint.record_in_chunks(**(arguments | {"chunk_size": 0}))
