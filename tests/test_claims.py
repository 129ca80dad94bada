"""The smoke run of every claim, as a user would start it: verdict, controls, figure, record."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from experiments import catalogue, checks, execution, judgement, records

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = catalogue.walk()
pytestmark = [pytest.mark.claims, pytest.mark.timeout(900)]


@pytest.fixture
def record(smoke_runs, entry):
    paths = records.Paths(smoke_runs, entry.tree, entry.theme, entry.slug)
    assert paths.record.exists(), (smoke_runs / "log.txt").read_text()
    return records.load_record(paths.record)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
class TestSmoke:
    def test_verdict(self, record, entry):
        """Holds with every control, or fails where it is known not to reproduce."""
        expected = "fails" if entry.known_failure else "holds"
        red = [check for check in record["checks"] if not check["passed"]]
        assert record["verdict"] == expected, red

    def test_every_claim_has_a_control(self, record, entry):
        roles = [check["role"] for check in record["checks"]]
        assert "claim" in roles
        assert "control" in roles

    def test_checks_are_told_from_each_other_and_say_why(self, record, entry):
        names = [check["name"] for check in record["checks"]]
        assert len(set(names)) == len(names)
        assert all(check["why"] for check in record["checks"])

    def test_figure_is_small(self, smoke_runs, record, entry):
        paths = records.Paths(smoke_runs, entry.tree, entry.theme, entry.slug)
        assert 5_000 < paths.figure.stat().st_size < 150_000

    def test_a_run_of_numbers_that_are_none_does_not_hold(self, smoke_runs, record, entry):
        """Whatever diverged, the verdict is void or fails; check does not stop with an error."""
        experiment = catalogue.load(entry)
        paths = records.Paths(smoke_runs, entry.tree, entry.theme, entry.slug)
        run = execution.load(experiment, paths.arrays)
        main = run.parts[execution.MAIN]
        fields = main.result._asdict()
        spoilt = {n: np.full_like(a, np.nan) for n, a in fields.items() if a.dtype.kind in "fc"}
        main = dataclasses.replace(main, result=main.result._replace(**spoilt))
        run = dataclasses.replace(run, parts={**run.parts, execution.MAIN: main})
        if spoilt:  # a result of integers alone cannot diverge
            assert checks.verdict(judgement.judge(experiment, run)) in ("void", "fails")

    def test_committed_record_is_of_this_claim(self, entry):
        """The record in figures/ was made by today's defaults and makes today's checks."""
        paths = records.Paths(ROOT / "figures", entry.tree, entry.theme, entry.slug)
        mend = f"run `python -m {entry.module}`, then commit its figures/**/{entry.slug}.*"
        assert paths.record.exists(), mend
        committed = records.load_record(paths.record)
        config = catalogue.load(entry).configure()
        assert committed["config"] == records.plain(dataclasses.asdict(config))
        assert committed["preset"] == "default"
        assert committed["title"] == entry.title
        assert committed["verdict"] == ("fails" if entry.known_failure else "holds")
        assert committed["num_seeds"] >= 5
        assert paths.figure.exists()

    def test_committed_checks_are_todays(self, record, entry):
        paths = records.Paths(ROOT / "figures", entry.tree, entry.theme, entry.slug)
        committed = records.load_record(paths.record)
        names = [(check["name"], check["role"]) for check in record["checks"]]
        assert [(check["name"], check["role"]) for check in committed["checks"]] == names
