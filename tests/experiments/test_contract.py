import dataclasses
from typing import NamedTuple

import numpy as np
import pytest

from experiments import checks, contract, execution, judgement


@dataclasses.dataclass(frozen=True)
class Config:
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    cutoff: float | None = None
    loud: bool = False
    num_seeds: int = 5
    seed: int = 1


class Result(NamedTuple):
    value: np.ndarray


class Prediction(NamedTuple):
    value: np.ndarray


def run(config) -> Result:
    return Result(np.array(config.rate))


def predict(config) -> Prediction:
    return Prediction(np.array(0.5))


def check(config, result):
    return [checks.close("value", result.value, 0.5, atol=0.01, why="w")]


def plot(config, result, figure):
    pass


def experiment(**changes):
    return contract.Experiment(Config, run, check, plot, **{"smoke": {}, **changes})


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("rate", "1e-3", 1e-3),
        ("rate", 2, 2.0),
        ("sizes", "3, 4,5", (3, 4, 5)),
        ("sizes", [6], (6,)),
        ("loud", "true", True),
        ("cutoff", "none", None),
        ("cutoff", "2", 2.0),
        ("seed", "0", 0),
    ],
)
def test_values_are_converted_to_the_type_of_their_field(name, given, expected):
    value = getattr(experiment().configure(overrides={name: given}), name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("rate", "fast"), ("rate", "nan"), ("rate", "inf"), ("seed", "1.5"), ("seed", 1.5),
        ("seed", "-1"), ("seed", str(2**40)), ("num_seeds", "0"), ("sizes", "1,x"),
        ("sizes", ""), ("loud", "perhaps"), ("learning", "1"), ("cutoff", "low"),
    ],
)  # fmt: skip
def test_wrong_values_name_argument_and_value(name, given):
    with pytest.raises(contract.CallError) as caught:
        experiment().configure(overrides={name: given})
    assert f"--{name}={given}" in str(caught.value)


def test_unknown_preset():
    with pytest.raises(contract.CallError, match="--preset=huge"):
        experiment().configure("huge")


def test_presets_are_differences_from_the_defaults():
    made = experiment(smoke=dict(rate=0.1), paper=dict(sizes=(9,)))
    assert made.configure("smoke") == Config(rate=0.1)
    assert made.configure("paper", {"rate": 3}) == Config(sizes=(9,), rate=3.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(smoke=dict(width=1)), "smoke"),
        (dict(controls={"c": contract.Control(dict(width=1), {"v": "below"}, "w")}), "width"),
        (dict(precision="bfloat16"), "precision"),
        (dict(controls={"a.b": contract.Control({}, {"v": "below"}, "w")}), "dots"),
    ],
)
def test_experiments_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        experiment(**changes)


@pytest.mark.parametrize(
    ("arguments", "message"), [(({}, {}, "w"), "breaks"), (({}, {"v": "off"}, "w"), "side")]
)
def test_controls_that_show_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        contract.Control(*arguments)


def make_config(**fields):
    annotations = {name: kind for name, (kind, _) in fields.items()}
    namespace = {"__annotations__": annotations, **{n: d for n, (_, d) in fields.items()}}
    return dataclasses.dataclass(frozen=True)(type("Made", (), namespace))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict, "frozen dataclass"),
        (make_config(seed=(int, 1)), "num_seeds"),
        (make_config(seed=(int, 1), num_seeds=(int, 5), data=(object, None)), "Config.data"),
    ],
)
def test_configs_are_frozen_scalars(config, message):
    with pytest.raises(ValueError, match=message):
        contract.Experiment(config, run, check, plot, smoke={})


def run_of(made, **parts):
    diagnosis = {"failed": [], "mend": None}
    return execution.Run(parts, {"doctor": diagnosis})


def judged(made, **values):
    parts = {
        name: execution.Part(Config(), Result(np.array(value)), None)
        for name, value in values.items()
    }
    return checks.verdict(judgement.judge(made, run_of(made, **parts)))


def test_a_verdict_needs_claim_and_control():
    made = experiment(controls={"off": contract.Control({"rate": 0.1}, {"value": "below"}, "w")})
    assert judged(made, main=0.5, off=0.1) == "holds"
    assert judged(made, main=0.6, off=0.1) == "fails"
    assert judged(made, main=0.5, off=0.5) == "fails", "a control that keeps the claim is red"
    assert judged(made, main=0.5, off=0.9) == "fails", "and so is one on the other side"
    assert judged(made, main=0.5, off=np.nan) == "fails", "and so is one that diverges"


def test_a_sick_compiler_makes_the_verdict_void():
    run_ = run_of(None, main=execution.Part(Config(), Result(np.array(0.5)), None))
    sick = execution.Run(run_.parts, {"doctor": {"failed": ["matmul"], "mend": "install another"}})
    assert checks.verdict(judgement.judge(experiment(), sick)) == "void"


def theory_check(atol):
    def compare(config, prediction, result):
        return [checks.close("value", result.value, prediction.value, atol=atol, why="w")]

    return contract.TheoryCheck(
        Config, run, compare, plot, smoke={}, predict=predict, resolution=0.1
    )


@pytest.mark.parametrize(("atol", "verdict"), [(0.02, "holds"), (0.2, "fails")])
def test_a_theory_check_must_notice_its_resolution(atol, verdict):
    part = execution.Part(Config(), Result(np.array(0.5)), Prediction(np.array(0.5)))
    made = theory_check(atol)
    assert checks.verdict(judgement.judge(made, run_of(made, main=part))) == verdict


@pytest.mark.parametrize("resolution", [0, -1, float("inf"), float("nan")])
def test_resolution_is_a_positive_number(resolution):
    with pytest.raises(ValueError, match="resolution"):
        dataclasses.replace(theory_check(0.1), resolution=resolution)


def test_controls_that_name_unknown_checks_are_a_defect():
    made = experiment(controls={"off": contract.Control({}, {"speed": "below"}, "w")})
    with pytest.raises(ValueError, match="speed"):
        judged(made, main=0.5, off=0.1)


def test_a_claim_without_a_claim_check_is_a_defect():
    made = dataclasses.replace(experiment(), check=lambda config, result: [])
    with pytest.raises(ValueError, match="role='claim'"):
        judged(made, main=0.5)


def test_a_result_is_a_named_tuple_of_arrays():
    made = dataclasses.replace(experiment(), run=lambda config: {"value": 1})
    with pytest.raises(TypeError, match="NamedTuple"):
        execution.compute_part(made, Config())
