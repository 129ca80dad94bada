"""Grids of runs: what shares a program, what does not, and that sharing changes no number."""

import dataclasses
import json
import resource
import types

import hypothesis
import hypothesis.strategies as st
import jax
import matplotlib.figure
import numpy as np
import pytest

from experiments import __main__ as command_line
from experiments import catalogue, execution, preemption, records, runner, sweeps


@pytest.fixture
def experiment(toy):
    """The small claim; how often its program is built stands in `.built`."""
    built = []

    def run(config):
        built.append(config.num_tosses)
        return toy.run(config)

    run.__annotations__ = toy.run.__annotations__
    counted = dataclasses.replace(toy, run=run)
    return types.SimpleNamespace(claim=counted, built=built)


@pytest.fixture
def call(experiment, toy_path, tmp_path, monkeypatch, capsys):
    """Run `python -m experiments run '*'` over a tree that holds the small claim alone."""
    walk, find = catalogue.walk, catalogue.find
    monkeypatch.setattr(catalogue, "walk", lambda: walk(toy_path.parents[2]))
    monkeypatch.setattr(catalogue, "find", lambda patterns: find(patterns, toy_path.parents[2]))
    monkeypatch.setattr(catalogue, "load", lambda entry: experiment.claim)
    monkeypatch.chdir(tmp_path)

    def run(*words):
        status = command_line.main(["run", "*", *words, "--out=out"])
        return status, *capsys.readouterr()

    return run


def arrays(tmp_path, cell):
    paths = records.Paths(tmp_path / "out" / cell, "experiments", "toys", "fair_coin")
    return records.load_arrays(paths.arrays)[0]


def test_equal_shapes_share_a_program_and_change_no_number(call, experiment, tmp_path):
    sweep = ("--sweep", "probability=0.45,0.5", "--sweep", "num_tosses=300,600", "--seeds=3:6")
    status, _, err = call(*sweep)
    assert status == 1  # at 0.45 the coin is not fair
    # Two lengths, so two programs; the control overrides probability, so its cells are shared.
    assert "2 programs for 18 runs" in err
    assert sorted(set(experiment.built)) == [300, 600]
    assert len(experiment.built) <= 6, "to see whether it can be traced, how large it is, and once"
    for length in (300, 600):
        for seed in (3, 5):
            config = experiment.claim.configure(
                overrides=dict(probability=0.45, num_tosses=length, seed=seed)
            )
            alone = execution.compute_part(experiment.claim, config)
            found = arrays(tmp_path, f"probability=0.45,num_tosses={length},seed={seed}")
            np.testing.assert_array_equal(found["main/result/mean"], alone.result.mean)
    table = json.loads((tmp_path / "out/experiments/toys/fair_coin.sweep.json").read_text())
    assert len(table["cells"]) == 12
    cells = {tuple(cell["settings"].values()): cell for cell in table["cells"]}
    assert cells["0.5", "600", "4"]["verdict"] == "holds"
    measured = [c["measured"] for c in cells["0.45", "600", "4"]["checks"] if c["name"] == "mean"]
    assert abs(measured[0] - 0.45) < 0.03
    assert (tmp_path / "out/experiments/toys/fair_coin.sweep.png").read_bytes()[1:4] == b"PNG"

    experiment.built.clear()
    assert call(*sweep)[0] == 1
    assert not experiment.built, "what is finished is not run again"


def test_what_cannot_be_traced_is_run_cell_by_cell(call, experiment, tmp_path):
    def run(config):
        experiment.built.append(config.probability)
        return toy_run(dataclasses.replace(config, probability=float(config.probability)))

    toy_run = experiment.claim.run
    run.__annotations__ = toy_run.__annotations__
    experiment.claim = dataclasses.replace(experiment.claim, run=run)
    status, _, err = call("--sweep", "probability=0.49,0.5", "--sweep", "num_tosses=3000")
    assert status == 0
    assert "0 programs for 0 runs" in err
    assert {0.49, 0.5, 0.7} <= {p for p in experiment.built if isinstance(p, float)}
    found = arrays(tmp_path, "probability=0.49,num_tosses=3000")
    assert 0.46 < found["main/result/mean"].mean() < 0.52


def test_cells_that_share_a_program_are_held_to_the_memory_too(experiment):
    """Many at once need more than each alone: an error then, not a machine that swaps."""
    limits = []

    def run(config):
        limits.append(resource.getrlimit(resource.RLIMIT_DATA)[0])
        return toy_run(config)

    toy_run = experiment.claim.run
    claim = dataclasses.replace(experiment.claim, run=run)
    configs = [claim.configure(overrides={"seed": seed}) for seed in (1, 2)]
    assert len(sweeps._ensemble(claim, configs)) == 2
    assert limits
    assert resource.RLIM_INFINITY not in limits


def test_a_cell_without_a_verdict_shows_no_older_one(call, experiment, tmp_path, monkeypatch):
    """The record that a smaller grid has left is not what this one found."""
    drawn = []
    suptitle = matplotlib.figure.Figure.suptitle
    note = lambda figure, text, **how: (drawn.append(text), suptitle(figure, text, **how))
    monkeypatch.setattr(matplotlib.figure.Figure, "suptitle", note)
    assert call("--seeds=1:3", "--smoke")[0] == 0
    assert "no verdict" not in drawn[0]
    assert (tmp_path / "out/seed=2/experiments/toys/fair_coin.json").exists()

    def run(config):
        if int(config.seed) == 2:
            message = "a defect"
            raise TypeError(message)
        return toy_run(config)

    toy_run = experiment.claim.run
    run.__annotations__ = toy_run.__annotations__
    experiment.claim = dataclasses.replace(experiment.claim, run=run)
    assert call("--seeds=1:3")[0] == 1
    table = json.loads((tmp_path / "out/experiments/toys/fair_coin.sweep.json").read_text())
    assert [cell["verdict"] for cell in table["cells"]] == ["holds", "crashed"]
    assert table["cells"][1]["checks"] is None
    assert "a defect" in table["cells"][1]["remark"]
    assert "1 of 2 runs have no verdict" in drawn[1]


def test_a_preempted_sweep_says_so(call, monkeypatch):
    monkeypatch.setattr(preemption, "asked", lambda: True)
    assert call("--seeds=0:2")[0] == preemption.STATUS


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--sweep", "speed=1,2"], "--speed=1"),
        (["--sweep", "probability"], "--sweep=probability"),
        (["--sweep", "probability=0.1,,0.2"], "--sweep"),
        (["--sweep", "probability=0.1", "--sweep", "probability=0.2"], "--sweep"),
        (["--sweep", "num_tosses=10,ten"], "--num_tosses=ten"),
        (["--sweep", "num_tosses=10,0"], "num_tosses must be at least 1"),
        (["--seeds=3:3"], "--seeds=3:3"),
        (["--seeds=a:b"], "--seeds=a:b"),
        (["--seeds=-1:2"], "--seed=-1"),
        (["--seeds=1:3", "--seed=1"], "--seed=1 and --seeds=1:3"),
        (["--sweep", "seed=1,2", "--seed=1"], "--seed=1 and --sweep=seed=1"),
        (["--sweep", "seed=1,2", "--seeds=1:3"], "--seeds=1:3 and --sweep=seed=1,2"),
        (["--sweep", "probability=0.5,0.6,0.5"], "0.5 twice"),
        (["--seeds=1,2,1"], "1 twice"),
        (["--seeds=0:1000000000"], "--seeds=0:1000000000"),
        (["--seeds=0:9" + 30 * "9"], "at most 100000"),
        (["--sweep", "needs_luck=0,1", "--seeds=0:60000"], "120000 runs"),
        (["--seeds=1:3", "--jobs=0"], "--jobs=0"),
        (["--seeds=1:3", "--retries=-1"], "--retries=-1"),
    ],
)
def test_a_wrong_grid_is_one_line_before_anything_runs(call, experiment, words, named):
    status, _, err = call(*words)
    assert status == 2
    assert err.count("\n") == 1
    assert named in err
    assert not experiment.built


@hypothesis.given(
    st.dictionaries(
        st.text("abc_", min_size=1, max_size=4),
        st.lists(st.integers(0, 99).map(str), min_size=1, max_size=3, unique=True),
        max_size=3,
    ),
    st.integers(0, 5),
    st.integers(1, 4),
)
def test_a_grid_is_the_product_of_its_axes(axes, first, count):
    texts = [f"{name}={','.join(values)}" for name, values in axes.items()]
    found, cells = sweeps.grid(texts, f"{first}:{first + count}")
    assert found == {**axes, "seed": [str(seed) for seed in range(first, first + count)]}
    assert len(cells) == count * int(np.prod([len(values) for values in axes.values()]))
    assert len({tuple(cell.items()) for cell in cells}) == len(cells)


def test_values_of_tuples_stand_between_semicolons():
    assert sweeps.grid(["widths=64,64;128,128"], None)[0] == {"widths": ["64,64", "128,128"]}
    assert sweeps.grid([], "4,7")[0] == {"seed": ["4", "7"]}


def test_a_folder_that_cannot_be_written_is_found_before_anything_runs(call, experiment, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "seed=2").write_text("in the way")
    status, _, err = call("--seeds=1:3")
    assert (status, err.count("\n")) == (2, 1)
    assert "seed=2" in err
    assert not experiment.built


def test_cells_have_folders_of_their_own():
    cells = sweeps.grid(["a=1,2", "b=x/y,x_y,x%2Fy"], None)[1]
    settings = [sweeps.settings_of(cell, runner.Settings()) for cell in cells]
    assert len({one.folder() for one in settings}) == 6
    assert all(len(one.folder().relative_to("results/sweep").parts) == 1 for one in settings)


def test_tuples_of_floats_are_traced_and_others_are_not():
    @dataclasses.dataclass(frozen=True)
    class Config:
        rates: tuple[float, ...] = (0.1, 0.2)
        widths: tuple[int, ...] = (4,)
        num_seeds: int = 1
        seed: int = 1

    static = sweeps._static
    assert static(Config()) == static(Config(rates=(0.3, 0.4), seed=9))
    assert static(Config()) != static(Config(rates=(0.3,)))
    assert static(Config()) != static(Config(widths=(5,)))
    traced = []

    def run(config):
        traced.append(config.rates)
        return config.rates[0] + config.rates[1] + jax.numpy.zeros(config.num_seeds)

    claim = types.SimpleNamespace(run=run, precision="float32")
    configs = [Config(rates=(float(i), 1.0), seed=i) for i in range(3)]
    parts = sweeps._ensemble(claim, configs)
    assert [float(part.result[0]) for part, _ in parts] == [1.0, 2.0, 3.0]
    assert not any(isinstance(rate, float) for rate in traced[-1])
