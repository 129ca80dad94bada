"""Two processes of two CPU devices each: one run, and what becomes of it when one of them dies."""

import os
import signal
import socket
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from experiments import __main__ as command_line
from experiments import contract, distributed, engines, records, runner

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 10  # seconds until a silent process is given up
BOUND = 100  # seconds until the others have ended, on a busy machine


@pytest.fixture
def toy_path(toy_path):
    """The small claim with its seeds, five of them, spread over the devices."""
    text = toy_path.read_text()
    assert "jax.vmap(toss)(keys)" in text
    text = text.replace("jax.vmap(toss)(keys)", "parallel.ensemble(toss, keys)")
    toy_path.write_text(
        text.replace("import jax\n", "import jax\n\nfrom dynamics import parallel\n")
    )
    return toy_path


@pytest.fixture
def together(toy_path, tmp_path):
    """Run the claim in two processes; return the status and the stderr of each."""

    def run(*flags, of_second=(), variables=({}, {}), slurm=False):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2 "
            "--xla_backend_optimization_level=0",
        }
        running = [
            subprocess.Popen(
                [sys.executable, str(toy_path), "--distributed", f"--distributed_timeout={TIMEOUT}",
                 f"--out={tmp_path}/out{process}", *flags, *own,
                 *([] if slurm else told_by_flags(process, port))],
                env=environment | variables[process] | (told_by_slurm(process) if slurm else {}),
                cwd=tmp_path, text=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )
            for process, own in enumerate(((), of_second))
        ]  # fmt: skip
        try:
            said = [process.communicate(timeout=BOUND)[1] for process in running]
        finally:
            for process in running:
                process.kill()
        return [(process.returncode, err) for process, err in zip(running, said, strict=True)]

    run.paths = lambda out: records.Paths(tmp_path / out, "experiments", "toys", "fair_coin")
    return run


def told_by_flags(process, port):
    return ["--num_processes=2", f"--process_id={process}", f"--coordinator=127.0.0.1:{port}"]


def told_by_slurm(process):
    """What `srun` sets; the port comes from the number of the job."""
    return {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(process),
        "SLURM_LOCALID": str(process),
    }


def last_line(err):
    """The one line that a process ends with; it says nothing else."""
    assert "Traceback" not in err
    assert "stack trace" not in err
    # Of a remembered program the compiler says that it was made for this very machine.
    (line,) = (line for line in err.splitlines() if "cpu_aot_loader" not in line)
    return line


def test_two_processes_write_one_record_with_the_numbers_of_one(together, toy, tmp_path):
    assert [status for status, _ in together()] == [0, 0]
    found = together.paths("out0")
    assert records.load_record(found.record)["device_count"] == 4
    assert found.figure.exists()
    assert not (tmp_path / "out1").exists(), "process 0 alone writes"
    assert runner.call(toy, ["toy", f"--out={tmp_path / 'alone'}"]) == 0
    alone, _ = records.load_arrays(together.paths("alone").arrays)
    arrays, origin = records.load_arrays(found.arrays)
    assert origin["doctor"]["failed"] == []
    assert set(arrays) == set(alone)
    for name, array in arrays.items():
        np.testing.assert_allclose(array, alone[name], rtol=1e-12)


def test_a_process_that_dies_ends_the_others_and_leaves_the_old_record(together, toy, tmp_path):
    assert runner.call(toy, ["toy", f"--out={tmp_path / 'out0'}", "--smoke"]) == 0
    paths, log = together.paths("out0"), tmp_path / "log"
    before = paths.record.read_bytes(), paths.arrays.read_bytes()
    killed, logged = {"TOY_KILL": "0.7"}, {"TOY_LOG": str(log)}

    # In the middle: the claim is done, the control begins.
    first, second = together("--seed=2", variables=({}, killed))
    assert first[0] == second[0] == distributed.GONE
    assert last_line(first[1]) == (
        "error: --distributed: process 1 of 2 is gone; call again with --resume on all hosts"
    )
    assert "process 1 of 2 died by SIGKILL" in last_line(second[1])

    first, second = together("--seed=2", "--resume", variables=(killed, {}))
    assert first[0] == second[0] == distributed.GONE
    assert "process 0 of 2 died by SIGKILL" in last_line(first[1])
    assert "process 0 of 2, the coordinator, is gone" in last_line(second[1])
    assert (paths.record.read_bytes(), paths.arrays.read_bytes()) == before

    ended = together("--seed=2", "--resume", variables=(logged, logged))
    assert [status for status, _ in ended] == [0, 0]
    assert log.read_text().split() == ["0.7", "0.7"], "what process 0 has is not computed again"
    assert records.load_record(paths.record)["seed"] == 2


def test_processes_of_slurm_that_would_compute_different_things_are_refused(together):
    for status, err in together(of_second=["--num_tosses=3000"], slurm=True):
        assert status == 2
        assert "configuration of process 0 (num_tosses=4000)" in last_line(err)
        assert "process 1 (num_tosses=3000)" in last_line(err)


def test_a_coordinator_that_is_not_there_is_one_line(toy_path, tmp_path):
    ended = subprocess.run(
        [sys.executable, str(toy_path), "--distributed", "--coordinator=127.0.0.1:1",
         "--num_processes=2", "--process_id=1", "--distributed_timeout=2"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True,
        timeout=BOUND,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "coordinator 127.0.0.1:1 was not reached within 6 s" in last_line(ended.stderr)


ALL_THREE = ["--coordinator=host:1234", "--num_processes=2", "--process_id=0"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (ALL_THREE, "--coordinator=host:1234: only with --distributed"),
        (["--distributed", *ALL_THREE[:2]], "or none of them"),
        (["--distributed", *ALL_THREE, "--process_id=2"], "--process_id=2: give a number from 0"),
        (["--distributed", *ALL_THREE, "--process_id=-1"], "--process_id=-1"),
        (["--distributed", *ALL_THREE, "--process_id=x"], "--process_id=x"),
        (["--distributed", *ALL_THREE, "--num_processes=0"], "--num_processes=0"),
        (["--distributed", *ALL_THREE, "--coordinator=host"], "--coordinator=host: give HOST:PORT"),
        (["--distributed", *ALL_THREE, "--coordinator=host:99999"], "host:99999"),
        (["--distributed", *ALL_THREE, "--distributed_timeout=0"], "--distributed_timeout=0"),
    ],
)
def test_a_wrong_call_is_one_line_from_both_commands(toy, flags, words, capsys):
    assert runner.call(toy, ["toy", *flags]) == 2
    assert words in last_line(capsys.readouterr().err)
    assert command_line.main(["run", "*/lsa_layer_is_one_gd_step", "--smoke", *flags]) == 2
    assert words in last_line(capsys.readouterr().err)


@pytest.mark.parametrize("flag", ["--jobs=2", "--engine=ray"])
def test_engines_of_many_processes_are_refused(flag, capsys):
    words = ["run", "*/lsa_layer_is_one_gd_step", "--distributed", flag]
    assert command_line.main(words) == 2
    assert flag in last_line(capsys.readouterr().err)


def test_stages_that_compute_nothing_are_refused(toy, capsys):
    assert runner.call(toy, ["toy", "--distributed", "--stage=plot"]) == 2
    assert "--stage=plot" in last_line(capsys.readouterr().err)


def test_a_run_of_its_own_asks_nobody():
    assert distributed.is_first()
    assert distributed.enter(None) is None
    assert distributed.decided(lambda: {1, 2}) == {1, 2}
    assert distributed.together(lambda: 3) == 3
    with pytest.raises(contract.CallError):
        distributed.decided(lambda: contract.convert("seed", "x", int))


@pytest.mark.parametrize(("words", "runs"), [(["no", "no"], True), (["no", "yes"], False)])
def test_between_two_claims_all_stop_if_one_is_asked_to(monkeypatch, words, runs):
    """Otherwise the one that was asked leaves, and the others wait for it in the next claim."""
    session = types.SimpleNamespace(every=lambda word: [word, *words[1:]])
    monkeypatch.setattr(distributed, "_session", session)
    monkeypatch.setattr(engines, "perform", lambda task: task)
    assert list(engines.in_this_process(["claim"])) == ["claim"] * runs


def test_the_others_are_given_up_by_name():
    wanted = distributed.Hosts("host:1", 4, 0)
    words = "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1,\n3\nT"
    said, status = distributed._last_line(wanted, signal.SIGABRT, [0, 4], words)
    assert status == distributed.GONE
    assert said.startswith("processes 1, 3 of 4 are gone")
