"""The same numbers by every engine, on 1, 2, 4 and 8 devices, and on two processes of two."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).resolve().parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(TESTS.parent)}
# Eigenvalues of matrices as small as this are resolved to rounding, as everything else is.
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}
BY_MEANS = (
    "gradient",
    "Hessian product",
    "trace",
    "top eigenvalues",
    "trajectory",
    "neural collapse",
)
BY_MEMBERS = ("ensemble", "NTK", "neural collapse, merged")


@pytest.fixture(scope="module")
def differences(tmp_path_factory):
    """Relative differences from one device: "float64 pmap 8 NTK" and so on."""
    path = tmp_path_factory.mktemp("parity") / "table.json"
    whole = ["--whole"] if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else []
    words = [sys.executable, str(TESTS / "parity.py"), str(path), *whole]
    subprocess.run(words, env=ENVIRONMENT, check=True, timeout=280, stderr=subprocess.DEVNULL)
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("precision", "num_devices"),
    [("float64", 1), ("float64", 2), ("float64", 4), ("float64", 8), ("float32", 8)],
)
@pytest.mark.parametrize("engine", ["jit", "pmap", "shard_map"])
def test_every_engine_on_every_number_of_devices(differences, engine, num_devices, precision):
    names = BY_MEANS if engine == "shard_map" else BY_MEANS + BY_MEMBERS
    found = {name: differences[f"{precision} {engine} {num_devices} {name}"] for name in names}
    assert all(error <= TOLERANCES[precision] for error in found.values()), found


def test_two_processes_hold_the_numbers_of_one(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    running = [
        subprocess.Popen(
            [sys.executable, str(TESTS / "two_processes.py"), str(process), str(port),
             str(tmp_path / f"{process}.npz")],
            env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for process in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=250)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    first, second = (np.load(tmp_path / f"{process}.npz") for process in range(2))
    wanted = {name for name in first.files if name.endswith(" wanted")}
    assert set(first.files) - wanted == set(second.files)
    for name in second.files:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        expected = first[f"{name.partition(' ')[2]} wanted"]
        np.testing.assert_allclose(first[name], expected, rtol=1e-12, atol=1e-13, err_msg=name)
