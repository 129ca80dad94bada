"""Take a claim's mechanism away, and its verdict must turn red."""

import dataclasses

import numpy as np
import pytest

from experiments import catalogue, checks, execution, judgement, records

EDGE = "experiments/curvature/edge_of_stability"
WIDE = "experiments/kernels/wide_network_trains_like_its_kernel"
pytestmark = [pytest.mark.claims, pytest.mark.timeout(900)]


def saved(name, smoke_runs):
    """Return a claim and its smoke run."""
    (entry,) = catalogue.find([name])
    experiment = catalogue.load(entry)
    paths = records.Paths(smoke_runs[0], entry.tree, entry.theme, entry.slug)
    return experiment, execution.load(experiment, paths.arrays)


def verdict(experiment, run, **fields):
    """Return the verdict with some fields of the claim's result replaced, and the red checks."""
    part = run.parts[execution.MAIN]
    replaced = dataclasses.replace(part, result=part.result._replace(**fields))
    run = execution.Run({**run.parts, execution.MAIN: replaced}, run.provenance)
    found = judgement.judge(experiment, run)
    return checks.verdict(found), [check.name for check in found if not check.passed]


@pytest.fixture
def edge(smoke_runs):
    return saved(EDGE, smoke_runs)


@pytest.fixture
def wide(smoke_runs):
    return saved(WIDE, smoke_runs)


@pytest.mark.smoke_run_of(EDGE)
class TestEdgeOfStability:
    def test_left_alone_it_holds(self, edge):
        assert verdict(*edge)[0] == "holds"

    @pytest.mark.parametrize("factor", [0.8, 1.2])
    def test_a_sharpness_20_percent_off(self, edge, factor):
        sharpness = edge[1].parts["main"].result.sharpness
        outcome, red = verdict(*edge, sharpness=factor * sharpness)
        assert outcome != "holds"
        assert any("settled" in name or "edge reached" in name for name in red)

    def test_a_loss_that_never_rises(self, edge):
        rises = edge[1].parts["main"].result.rises
        outcome, red = verdict(*edge, rises=np.zeros_like(rises))
        assert outcome == "fails"
        assert red == ["share of settled steps on which the loss rises"]

    def test_a_flow_that_stops_at_the_edge(self, edge):
        config = edge[1].parts["main"].config
        flow = edge[1].parts["main"].result.flow_sharpness
        stopped = np.minimum(flow, 2 / max(config.learning_rates))
        assert verdict(*edge, flow_sharpness=stopped)[0] == "fails"

    def test_a_divergence_is_void_and_names_the_step(self, edge):
        loss = edge[1].parts["main"].result.train_loss.copy()
        loss[0, 0, 7:] = np.nan
        outcome, _ = verdict(*edge, train_loss=loss)
        assert outcome == "void"
        part = edge[1].parts["main"]
        found = edge[0].check(part.config, part.result._replace(train_loss=loss))
        assert found[0].measured == part.result.step[6]

    def test_an_unresolved_sharpness_is_void(self, edge):
        result = edge[1].parts["main"].result
        assert verdict(*edge, residual=0.1 * result.sharpness)[0] == "void"


@pytest.mark.smoke_run_of(WIDE)
class TestWideNetwork:
    def test_left_alone_it_holds(self, wide):
        assert verdict(*wide)[0] == "holds"

    def test_a_kernel_with_its_training_set_shuffled(self, wide):
        shuffled = wide[1].parts["main"].result.shuffled
        outcome, red = verdict(*wide, deviation=shuffled)
        assert outcome == "fails"
        assert "deviation from the linearisation: exponent in n" in red

    def test_only_the_proven_rate(self, wide):
        part = wide[1].parts["main"]
        factor = np.sqrt(np.asarray(part.config.widths))
        change = part.result.kernel_change * factor
        outcome, red = verdict(*wide, kernel_change=change)
        assert outcome == "fails"
        assert "change of the kernel: exponent in n" in red

    def test_features_that_learn(self, wide):
        result = wide[1].parts["main"].result
        swapped = result.kernel_change[:, [2, 1, 0]]
        assert verdict(*wide, kernel_change=swapped)[0] == "fails"

    def test_a_law_with_the_wrong_spread_or_mean(self, wide):
        result = wide[1].parts["main"].result
        assert verdict(*wide, infinite_covariance=4 * result.infinite_covariance)[0] == "fails"
        assert verdict(*wide, infinite_mean=-result.infinite_mean)[0] == "fails"

    def test_a_network_that_is_not_fitted_is_void(self, wide):
        result = wide[1].parts["main"].result
        assert verdict(*wide, train_loss=10 + result.train_loss)[0] == "void"
