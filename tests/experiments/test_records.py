import errno
import fcntl
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from experiments import checks, contract, records

ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(3, dtype=np.int32)}


def paths(out):
    return records.Paths(out, "experiments", "toys", "coin")


CHECKS = [
    checks.between("mean", 0.5, 0.25, 0.75, interval=(0.375, 0.625), why="fair"),
    checks.above("tosses", 100, 10, why="enough", role="precondition"),
]


def a_record(**changes):
    values = {
        **dict.fromkeys(records.KEYS, "a"),
        **{"schema": 1, "verdict": "holds", "seed": 1, "num_seeds": 5, "peak_memory_mb": 90.5},
        **{"checks": [records.encode_check(check) for check in CHECKS], "paper_ids": ["P0"]},
        **{"seconds": {"compile": 1.5, "run": 2.5, "total": 4.0}, "config": {"seed": 1}},
        **{"versions": {"python": "3.11"}, "doctor": {"failed": [], "mend": None}},
    }
    return {**values, **changes}


def test_arrays_come_back_with_their_provenance(tmp_path):
    path = tmp_path / "deep" / "a.npz"
    sha256 = records.save_arrays(path, ARRAYS, {"seed": 1})
    arrays, origin = records.load_arrays(path)
    assert origin == {"seed": 1, "arrays_sha256": sha256}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype
    assert [p.name for p in path.parent.iterdir()] == ["a.npz"], "nothing is left beside it"


@given(hnp.arrays(np.float64, (2, 3)), st.integers(0, 5))
def test_the_digest_sees_every_bit(array, index):
    changed = array.copy()
    flat = changed.view(np.uint64).ravel()
    flat[index] ^= 1
    assert records.digest({"x": array}) != records.digest({"x": changed})
    assert records.digest({"x": array}) == records.digest({"x": array.copy()})
    assert records.digest({"x": array}) != records.digest({"y": array})
    assert records.digest({"x": array}) != records.digest({"x": array.reshape(3, 2)})


def tear(path):
    path.write_bytes(path.read_bytes()[:-200])


def flip(path):
    with np.load(path) as file:
        arrays = dict(file)
    arrays["a"] = arrays["a"] + 1
    np.savez(path, **arrays)


def pickled(path):
    np.savez(path, provenance=np.array("{}"), a=np.array([{}], dtype=object))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (tear, "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_text("hello"), "cannot be read"),
        (lambda path: np.savez(path, a=1.0), "cannot be read"),
        (pickled, "cannot be read"),
        (flip, "digest"),
        (lambda path: path.unlink(), "no saved arrays"),
    ],
)
def test_damaged_arrays_are_refused_in_one_line(tmp_path, damage, message):
    path = tmp_path / "a.npz"
    records.save_arrays(path, ARRAYS, {})
    damage(path)
    with pytest.raises(contract.CallError, match=message) as caught:
        records.load_arrays(path)
    assert "--stage=all" in str(caught.value)


def test_no_damaged_byte_is_more_than_one_line_or_changes_a_number(tmp_path):
    """Each third byte of the file, with a bit of it flipped; zip's own errors are of many kinds."""
    path = tmp_path / "a.npz"
    records.save_arrays(path, ARRAYS, {"seed": 1})
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            arrays, _ = records.load_arrays(path)
        except contract.CallError:
            refused += 1
        else:
            assert records.digest(arrays) == records.digest(ARRAYS), f"byte {place}"
    assert refused > len(whole) / 6
    with open(path, "wb") as file:
        np.save(file, ARRAYS["a"])
    with pytest.raises(contract.CallError, match="cannot be read"):
        records.load_arrays(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "schema 1"),
        (json.dumps({"schema": 2}), "schema 1"),
        (json.dumps({"schema": 1}), "lacks"),
    ],
)
def test_damaged_records_are_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(contract.CallError, match=message):
        records.load_record(path)


def test_no_damaged_byte_of_a_record_is_believed(tmp_path):
    """A bit of each byte flipped: one line, or a verdict and checks that are as they were."""
    path = tmp_path / "r.json"
    records.save_record(path, a_record())
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        damaged = bytes([whole[place] ^ (1 << place % 7)])
        path.write_bytes(whole[:place] + damaged + whole[place + 1 :])
        try:
            found = records.load_record(path)
        except contract.CallError:
            refused += 1
        else:
            assert found["verdict"] == "holds"
            assert [check["passed"] for check in found["checks"]] == [True, True]
    assert refused > len(whole) / 3


@pytest.mark.parametrize(
    "changes",
    [
        {"verdict": "fails"},
        {"verdict": "void"},
        {"verdict": ["holds"]},
        {"checks": []},
        {"checks": [None]},
        {"checks": [{**records.encode_check(CHECKS[0]), "measured": 0.9}]},
        {"checks": [{**records.encode_check(CHECKS[0]), "interval": [0.4]}]},
        {"checks": [{**records.encode_check(CHECKS[0]), "lower": "0"}]},
        {"seconds": {"total": 4.0}},
        {"peak_memory_mb": None},
        {"seed": "1"},
    ],
)
def test_a_record_that_no_run_has_left_is_refused(tmp_path, changes):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(a_record(**changes)))
    with pytest.raises(contract.CallError, match="damaged"):
        records.load_record(path)


def test_a_record_has_the_keys_of_the_schema_and_no_more(tmp_path):
    path = tmp_path / "r.json"
    records.save_record(path, a_record())
    assert records.load_record(path) == a_record()
    with pytest.raises(ValueError, match="extra"):
        records.save_record(path, a_record(extra=1))
    with pytest.raises(ValueError, match="Out of range"):
        records.save_record(path, a_record(seed=float("nan")))
    assert records.load_record(path) == a_record()


def test_numbers_in_a_record_are_finite_or_null():
    encoded = records.encode_check(checks.above("x", np.nan, 1, interval=(0, np.inf), why="w"))
    assert (encoded["measured"], encoded["upper"], encoded["interval"]) == (None, None, [0, None])
    assert encoded["passed"] is False
    json.dumps(encoded, allow_nan=False)


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission"), (errno.EROFS, "read-only")],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, number, message
):
    path = tmp_path / "a"
    records.write_atomically(path, b"old")

    def fail(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(contract.CallError, match=message) as caught:
        records.write_atomically(path, b"new")
    assert "--out" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for call in (lambda p: records.write_atomically(p.record, b""), enter):
        with pytest.raises(contract.CallError, match="a part of that path is a file"):
            call(paths(tmp_path / "file"))


def enter(p):
    with records.exclusive(p):
        pass


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_truly_full_device_is_reported(tmp_path, monkeypatch):
    import tempfile

    def on_full_device(**_):
        return os.open("/dev/full", os.O_WRONLY), str(tmp_path / "partial")

    monkeypatch.setattr(tempfile, "mkstemp", on_full_device)
    with pytest.raises(contract.CallError, match="disk is full"):
        records.write_atomically(tmp_path / "a", b"content")


def test_two_runs_into_one_folder_do_not_mix(tmp_path):
    code = (
        "import sys; from pathlib import Path; from experiments import records;"
        "p = records.Paths(Path(sys.argv[1]), 'experiments', 'toys', 'coin');"
        "lock = records.exclusive(p); lock.__enter__(); print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(contract.CallError, match="another run"):
            enter(paths(tmp_path))
        other.kill()
        other.wait()
    enter(paths(tmp_path))  # the lock of a killed process is free


def test_what_a_kill_within_a_write_has_left_is_removed(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from experiments import records;"
        "os.replace = lambda *_: os.kill(os.getpid(), 9);"
        "records.write_atomically(Path(sys.argv[1]), b'half')"
    )
    where = paths(tmp_path)
    subprocess.run([sys.executable, "-c", code, str(where.record)], check=False)
    beside = where.folder / ".another.json.x.partial"  # of a claim that may be running
    beside.touch()
    assert len(list(where.folder.glob(".*.partial"))) == 2
    enter(where)
    assert list(where.folder.glob(".*.partial")) == [beside]


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def without_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", without_locks)
    with pytest.raises(contract.CallError, match="cannot be locked"):
        enter(paths(tmp_path))
