import json

import jax
import numpy as np
import pytest

from experiments import doctor


def slightly_wrong(program):
    """A compiler that is one per cent off in a tenth of the numbers."""

    def run(*inputs):
        flat = np.array(jax.jit(program)(*inputs))
        flat.reshape(-1)[::10] *= 1.01
        return flat

    return run


def to_tensor_float(program):
    """An accelerator that multiplies with ten bits of mantissa."""

    def run(*inputs):
        rounded = (jax.lax.reduce_precision(a, exponent_bits=8, mantissa_bits=10) for a in inputs)
        return jax.jit(program)(*rounded)

    return run


def test_this_environment_is_healthy():
    diagnosis = doctor.examine()
    assert diagnosis.healthy, diagnosis
    record = doctor.as_record(diagnosis)
    assert record["failed"] == []
    assert record["mend"] is None
    assert 0 < record["largest_error_over_bound"] < 1


def test_a_wrong_compiler_is_seen_by_every_probe_and_told_how_to_mend():
    diagnosis = doctor.examine(slightly_wrong)
    assert not any(probe.passed for probe in diagnosis.probes)
    record = doctor.as_record(diagnosis)
    assert len(record["failed"]) == len(doctor.PROBES)
    assert "0.10.1" in record["mend"]
    json.dumps(record, allow_nan=False)


def test_low_matmul_precision_is_seen():
    failed = doctor.as_record(doctor.examine(to_tensor_float))["failed"]
    assert "matrix product" in failed


def test_nan_is_not_healthy():
    diagnosis = doctor.examine(lambda program: lambda *inputs: np.nan * program(*inputs))
    assert not diagnosis.healthy
    assert doctor.as_record(diagnosis)["largest_error_over_bound"] is None


@pytest.mark.parametrize("damage", ["{", "[]", '{"probes": [1]}', '{"probes": []}'])
def test_the_memory_is_used_and_a_damaged_one_is_not(tmp_path, monkeypatch, damage):
    calls = []
    real = doctor.examine
    monkeypatch.setattr(doctor, "examine", lambda: calls.append(1) or real())
    first = doctor.cached(tmp_path / "cache")
    assert doctor.cached(tmp_path / "cache") == first
    assert len(calls) == 1
    (path,) = (tmp_path / "cache").glob("doctor-*.json")
    path.write_text(damage)
    assert doctor.cached(tmp_path / "cache").healthy
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written_does_not_matter(tmp_path):
    (tmp_path / "file").write_text("")
    assert doctor.cached(tmp_path / "file" / "cache").healthy
