"""Every public function, every argument, wrong in each way its kind suggests: who is told what.

Given one valid call of each function (`valid_calls_*.py`), one argument at a time is replaced. The
call may return where the value is legitimate after all and no NaN is made of finite numbers; else
it raises a ValueError or a TypeError that names the argument. It never warns.
"""

import importlib.util
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fuzz = load(HERE / "wrong_arguments.py")
TABLES = {path.stem: load(path).CALLS for path in sorted(HERE.glob("valid_calls_*.py"))}
CALLS = {thing: make for table in TABLES.values() for thing, make in table.items()}
PUBLIC = fuzz.public()
NAMES = {thing: name for name, thing in PUBLIC.items()}
# Cases that are run at the least, a twentieth below what there was when this was written.
LEAST_CASES = {
    "valid_calls_data": 520,
    "valid_calls_devices": 130,
    "valid_calls_measure": 2380,
    "valid_calls_models": 970,
    "valid_calls_theory_a_to_h": 1140,
    "valid_calls_theory_i_to_z": 1970,
    "valid_calls_training": 200,
}
# Modules left out: the checks themselves, and what only the others call, on several processes.
LEFT_OUT = ("arguments.", "placement.", "training.agreement.")
NOT_COVERED = {
    # These take the plans and programs of one another, which functions that are covered make.
    *(f"measure.inner_products.{name}" for name in ("grouped", "terms_of", "products")),
    *(f"measure.inner_products.{name}" for name in ("by_gradients", "matmul")),
    *(f"measure.jacobian_rows.{name}" for name in ("plan", "cheapest", "rows_of_one", "formed")),
    *(f"measure.jacobian_rows.{name}" for name in ("gradients_cost", "pairs_cost", "widened")),
    *(f"measure.linear_layers.{name}" for name in ("written_out", "find", "evaluate", "run")),
    *(f"measure.linear_layers.{name}" for name in ("bound", "varying_alike", "windows")),
    *(f"measure.linear_layers.{name}" for name in ("layer_inputs", "layer_cotangents")),
    *(f"measure.ntk_cost.{name}" for name in ("chosen", "flops_of_program", "flops")),
    *("measure.ntk_cost.products_batch_size", "measure.ntk_products.kernel"),
    *("measure.gram.kernels", "measure.gram.in_flight", "measure.class_statistics.matmul"),
    # Files are their subject, and tests/data gives them wrong ones.
    *("data.real.mnist", "data.real.cifar10"),
    *("theory.neural_tangents_bridge.load", "data_parallel.samples_kept"),  # have no argument
    # Parts of the two functions that are covered, and the errors that they raise.
    *("training.checkpoint.advance_in_chunks", "training.checkpoint.settled"),
    *("training.checkpoint.digest", "training.checkpoint.Interrupted"),
    *("training.checkpoint.NotSavedError", "training.checkpoint.WrongDirectoryError"),
}
# What looks wrong and is not.
LEGITIMATE = {
    "data.regression_grams.uniform_tasks(shift=-1): accepted",  # turned the other way round
    "measure.batching.batches(name=unknown): accepted",  # any word will do
    "long_runs.record_ensemble(name=unknown): accepted",  # and here
    "long_runs.record_ensemble(fingerprint=unknown): accepted",
    "training.checkpoint.record_in_chunks(fingerprint=unknown): accepted",
    "training.checkpoint.record_in_chunks(directory='x'): accepted",
    "parallel.choose_batching(platform=unknown): accepted",  # JAX knows more than three
}


def test_every_public_function_has_a_valid_call():
    named = {name: thing for name, thing in PUBLIC.items() if not name.startswith(LEFT_OUT)}
    uncovered = {
        name for name, thing in named.items() if thing not in CALLS and not fuzz.is_record(thing)
    }
    assert uncovered == NOT_COVERED
    assert set(CALLS) <= set(named.values())


@pytest.mark.parametrize("table", TABLES)
def test_a_wrong_argument_is_named(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a legitimate name of a folder is made one
    count, defects = 0, []
    for thing, make in TABLES[table].items():
        valid = make()
        assert set(fuzz.arguments_of(thing)) <= set(valid), f"{NAMES[thing]}: give every argument"
        for case in fuzz.cases(thing, valid):
            count += 1
            defects.append(fuzz.defect(NAMES[thing], thing, valid, case))
    found = {told for told in defects if told is not None}
    assert not found - LEGITIMATE, "\n".join(sorted(found - LEGITIMATE))
    assert count >= LEAST_CASES[table]


def test_the_cases_of_all_packages_are_thousands():
    assert sum(LEAST_CASES.values()) >= 2000
    assert set(LEAST_CASES) == set(TABLES)


# The judge is judged: each of these functions meets some wrong argument in a way that it must see.
def silent(count: int):
    return count


def unnamed(count: int):
    message = "not this many"
    raise ValueError(message)


def crashing(count: int):
    return [1, 2, 3][count]


def making_nan(width: float):
    return width**0.5 if width >= 0 else float("nan")


@pytest.mark.parametrize(
    ("function", "valid", "told"),
    [
        (silent, dict(count=1), "f(count=-1): accepted"),
        (unnamed, dict(count=1), "f(count=2.5): does not name it: ValueError: 'not this many'"),
        (crashing, dict(count=1), "f(count='3'): does not name it: TypeError"),
        (making_nan, dict(width=1.0), "f(width=negative): NaN comes of it"),
    ],
)
def test_the_fuzz_sees_a_bad_function(function, valid, told):
    found = [fuzz.defect("f", function, valid, case) for case in fuzz.cases(function, valid)]
    assert any(one is not None and one.startswith(told) for one in found)
