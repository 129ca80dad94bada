"""What README.md and CONTRIBUTING.md show is run."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import __main__ as command_line
from experiments import catalogue, checks, execution, judgement, runner, sweeps

ROOT = Path(__file__).resolve().parent.parent


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


def test_the_ten_lines_of_the_readme(capsys):
    (code,) = blocks("README.md")
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 10
    space = {}
    exec(code, space)
    kernel = space["ntk"]
    assert kernel.shape == (100, 100)
    assert abs(kernel - kernel.T).max() <= 1e-5 * abs(kernel).max()
    top = space["top"]
    assert all(top.values[:-1] >= top.values[1:])
    assert max(top.residuals) < 0.01 * top.values[0]
    assert capsys.readouterr().out


@pytest.mark.parametrize(("which", "times"), [(0, 5), (1, 4)], ids=["transformer", "convnet"])
def test_the_kernel_trajectories_of_the_guide(which, times):
    space = {}
    exec(blocks("docs/kernel_trajectories.md")[which], space)
    found = space["kernel"] if which == 0 else space["summary"]
    assert found.spectrum.shape == (times, len(space["x"]))
    assert found.relative_change[0] < 1e-4
    assert found.relative_change[-1] > 0.1
    trained = found.alignment[-1] > found.alignment[0]
    assert trained, "the kernel of a network that learns turns towards the targets"


def test_the_run_of_the_guide_to_curvature(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = {}
    (code,) = blocks("docs/curvature.md")
    exec(code, space)
    found = space["found"]
    assert found.sharpness.shape == (5, 2)
    assert found.sharpness[-1, 0] > 1.2 * found.sharpness[1, 0], "learning sharpens"
    difference = found.trace.mean[-1] - space["exact"]
    assert abs(difference) < 5 * found.trace.standard_error[-1]


def test_the_example_of_the_guide_is_a_claim_that_holds(tmp_path, monkeypatch):
    (code,) = blocks("CONTRIBUTING.md")
    path = tmp_path / "theory_checks" / "noise" / "stationary_variance.py"
    path.parent.mkdir(parents=True)
    path.write_text(code)
    assert catalogue.read(path).name == "theory_checks/noise/stationary_variance"
    spec = importlib.util.spec_from_file_location("stationary_variance", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "stationary_variance", module)
    spec.loader.exec_module(module)
    experiment = module.EXPERIMENT
    parts = {
        name: execution.compute_part(experiment, config)
        for name, config in execution.configurations(
            experiment, experiment.configure("smoke")
        ).items()
    }
    run = execution.Run(parts, {"doctor": {"failed": [], "mend": None}})
    found = judgement.judge(experiment, run)
    assert checks.verdict(found) == "holds", found


def test_commands_that_the_readme_names_exist():
    text = (ROOT / "README.md").read_text()
    modules = set(re.findall(r"python -m (experiments\.\S+|theory_checks\.\S+)", text))
    assert modules <= {entry.module for entry in catalogue.walk()}
    targets = set(re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(f"\n{target}:" in makefile for target in targets if target not in ("and",))
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "figures" in listed.stdout


def test_the_listing_of_the_guide_to_scale():
    space = {}
    (code,) = blocks("docs/scale.md")
    exec(code, space)
    weights = np.asarray(space["params"], np.float64)
    x, y = (np.asarray(a, np.float64) for a in (space["inputs"], space["targets"]))
    alone = np.mean((np.tanh(x @ weights) - y) ** 2)
    np.testing.assert_allclose(space["spread"](space["params"], (x, y)), alone, rtol=1e-4)
    assert space["top"].values[0] > space["top"].values[1]


def test_the_commands_of_the_guide_to_scale_are_understood():
    text = (ROOT / "docs" / "scale.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"python -m (experiments(?:\.\w+)*)((?: +[^\s#`|\"]+)*)", text)
    assert len(commands) >= 12
    for module, words in commands:
        argv = shlex.split(words)
        if module == "experiments":
            arguments = command_line._parser().parse_args(argv)
            patterns = getattr(arguments, "patterns", None) or ["*"]
            cells = sweeps.grid(getattr(arguments, "sweep", None) or [], None)[1]
            for experiment in map(catalogue.load, catalogue.find(patterns) if cells[0] else ()):
                experiment.configure(overrides=cells[0])
        else:
            (entry,) = (entry for entry in catalogue.walk() if entry.module == module)
            experiment = catalogue.load(entry)
            settings = runner.parse(experiment, entry, [entry.slug, *argv])
            experiment.configure(settings.preset, settings.overrides)


def test_verdict_table_of_the_readme_is_of_the_committed_records():
    from experiments import report

    text = (ROOT / "README.md").read_text()
    table = report.verdict_table(catalogue.walk(), ROOT / "figures")
    assert report.update_readme(text, table) == text, "run `python -m experiments report`"


def test_the_committed_page_is_of_the_committed_records(tmp_path):
    from experiments import report

    shutil.copytree(ROOT / "figures", tmp_path / "figures")
    entries = catalogue.walk()
    page = report.build(entries, tmp_path / "figures")
    for name in ("index.html", "README.md"):
        committed = (ROOT / "figures" / name).read_bytes()
        assert page.with_name(name).read_bytes() == committed, "run `python -m experiments report`"


def test_every_paper_that_a_claim_names_is_listed():
    listed = set(
        re.findall(r"^\| (P\d+) \|", (ROOT / "docs" / "papers.md").read_text(), re.MULTILINE)
    )
    for entry in catalogue.walk():
        assert set(entry.paper_ids) <= listed, entry.name
