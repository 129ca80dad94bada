import io
import json

import jax
import jaxlib
import numpy as np
import pytest
from rich import console

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


def one_by_one(program):
    """A sum without partial sums."""

    def run(*inputs):
        return np.cumsum(np.asarray(inputs[0]).ravel())[-1]  # float32 throughout

    return run if program is jax.numpy.sum else jax.jit(program)


def printed(diagnosis):
    shown = console.Console(width=160, record=True, file=io.StringIO())
    shown.print(doctor.render(diagnosis))
    return shown.export_text()


def test_this_environment_is_healthy():
    diagnosis = doctor.examine()
    assert "healthy" in printed(diagnosis)
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
    assert jaxlib.__version__ in record["mend"]
    json.dumps(record, allow_nan=False)
    for word in ("layer norm", jaxlib.__version__, "MISCOMPUTES", "0.10.1", "XLA_FLAGS"):
        assert word in printed(diagnosis)


def test_low_matmul_precision_is_seen():
    failed = doctor.as_record(doctor.examine(to_tensor_float))["failed"]
    assert "matrix product" in failed


def test_naive_summation_is_seen():
    assert doctor.as_record(doctor.examine(one_by_one))["failed"] == ["sum of a million"]


def test_another_stream_of_random_numbers_is_seen():
    """A shift by one draw: each number is a right normal, but not the one of this seed."""
    shifted = lambda program: lambda *inputs: np.roll(jax.jit(program)(*inputs), 1)
    assert "random normals" in doctor.as_record(doctor.examine(shifted))["failed"]


def test_nan_is_not_healthy():
    diagnosis = doctor.examine(lambda program: lambda *inputs: np.nan * program(*inputs))
    assert not diagnosis.healthy
    assert doctor.as_record(diagnosis)["largest_error_over_bound"] is None


def without_probes(text):
    return json.dumps({**json.loads(text), "probes": []})  # would be healthy, by having no probe


def with_words_for_errors(text):
    saved = json.loads(text)
    saved["probes"][0]["error"] = "small"
    return json.dumps(saved)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-9],
        lambda text: "",
        lambda text: "[]",
        lambda text: "null",
        lambda text: '{"probes": [1]}',
        without_probes,
        with_words_for_errors,
    ],
)
def test_the_memory_is_used_and_a_damaged_one_is_not(tmp_path, monkeypatch, damage):
    calls = []
    probes = [doctor.Probe(make.__name__, 1e-7, 1e-5, "why") for make in doctor.PROBES]
    found = doctor.Diagnosis(tuple(probes), "1", "2", "cpu (cpu)", 0.5)
    monkeypatch.setattr(doctor, "examine", lambda: calls.append(1) or found)
    first = doctor.cached(tmp_path / "cache")
    assert doctor.cached(tmp_path / "cache") == first
    assert len(calls) == 1
    (path,) = (tmp_path / "cache").glob("doctor-*.json")
    path.write_text(damage(path.read_text()))
    assert doctor.cached(tmp_path / "cache") == found
    assert len(calls) == 2
    assert doctor.cached(tmp_path / "cache") == found
    assert len(calls) == 2
    assert list((tmp_path / "cache").iterdir()) == [path]


def test_other_compiler_flags_are_another_environment(tmp_path, monkeypatch):
    calls = []
    found = doctor.Diagnosis((), "1", "2", "cpu (cpu)", 0.5)
    monkeypatch.setattr(doctor, "examine", lambda: calls.append(1) or found)
    doctor.cached(tmp_path)
    monkeypatch.setenv("XLA_FLAGS", "--another")
    doctor.cached(tmp_path)
    assert len(calls) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cache_that_cannot_be_written_does_not_matter(tmp_path):
    (tmp_path / "file").write_text("")
    assert doctor.cached(tmp_path / "file" / "cache").healthy
