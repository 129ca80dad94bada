"""Arms of the corrupted labels told in another order, and what the controls leave standing."""

import numpy as np
import pytest

NAME = "experiments/grokking/grok_corrupted_labels_phases"
pytestmark = [pytest.mark.claims, pytest.mark.smoke_run_of(NAME), pytest.mark.timeout(900)]
MEMORISE, COEXIST, UNLEARN, FORGET, CLEAN, RANDOM, PENALTY = range(7)
CURVES = ("train", "test", "wrong", "corrected")


def told_as(result, **arms):
    """Return the curves with those of some arms replaced by others': memorise=COEXIST."""
    place = {"memorise": MEMORISE, "coexist": COEXIST, "unlearn": UNLEARN, "forget": FORGET,
             "clean": CLEAN, "random": RANDOM, "penalty": PENALTY}  # fmt: skip
    order = np.arange(7)
    for name, other in arms.items():
        order[place[name]] = other
    return {curve: getattr(result, curve)[:, order] for curve in CURVES}


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


@pytest.mark.parametrize(
    ("arms", "red"),
    [
        ({"memorise": COEXIST}, {"no decay: test accuracy, end"}),
        ({"memorise": UNLEARN}, {"no decay: agreement with wrong labels, end"}),
        ({"coexist": UNLEARN}, {"some decay: agreement with wrong labels, end"}),
        ({"coexist": MEMORISE}, {"some decay: test accuracy, end"}),
        ({"unlearn": COEXIST}, {"strong decay: agreement with wrong labels, end",
                                "strong decay: wrongly labelled pairs answered right, end",
                                "strong decay: training accuracy less plateau, end"}),
        ({"unlearn": CLEAN}, {"strong decay: most agreement with wrong labels",
                              "strong decay: training accuracy less plateau, end",
                              "delay to generalise, wrong labels / clean ones"}),
        ({"forget": UNLEARN}, {"too strong: training accuracy, end"}),
        ({"clean": UNLEARN}, {
            "clean labels: least training accuracy from a quarter of the run on",
            "delay to generalise, wrong labels / clean ones"}),
        ({"random": CLEAN}, {"random labels: most test accuracy"}),
        ({"penalty": MEMORISE}, {"penalty in the loss: agreement with wrong labels, end",
                                 "penalty in the loss: test accuracy, end"}),
    ],
)  # fmt: skip
def test_another_phase_in_its_place(claim, arms, red):
    verdict, found = claim.judge(**told_as(claim.main.result, **arms))
    assert verdict == "fails"
    assert red <= found


def test_a_plateau_that_is_a_quarter_of_the_corruption_off(claim):
    config, train = claim.main.config, claim.main.result.train.copy()
    for shift in (-config.corruption / 4, config.corruption / 4):
        moved = train.copy()
        moved[:, UNLEARN, -1] += shift
        red = {"strong decay: training accuracy less plateau, end"}
        assert claim.judge(train=moved) == ("fails", red)


def test_unlearning_without_having_learnt(claim):
    """The end is right, but the wrong labels were never fitted."""
    wrong = np.minimum(claim.main.result.wrong, 0.5)
    verdict, red = claim.judge(wrong=wrong)
    assert verdict == "fails"
    assert "strong decay: most agreement with wrong labels" in red


def test_a_network_that_does_not_generalise_in_time(claim):
    """A test accuracy that never gets there has an infinite delay, and fails."""
    test = claim.main.result.test.copy()
    test[:, UNLEARN] = np.minimum(test[:, UNLEARN], 0.5)
    verdict, red = claim.judge(test=test)
    assert verdict == "fails"
    assert "delay to generalise, wrong labels / clean ones" in red


def test_a_divergence_is_void(claim):
    loss = claim.main.result.loss.copy()
    loss[0, 1, 5:] = np.nan
    assert claim.judge(loss=loss)[0] == "void"


@pytest.mark.parametrize("control", ["decay in the loss", "no decay"])
def test_a_control_is_not_red_for_being_short(claim, control):
    """The claim itself, cut off at the control's last step, breaks none of the checks it names."""
    result, part = claim.main.result, claim.run.parts[control]
    kept = result.step <= part.config.num_steps
    cut = {name: getattr(result, name)[..., kept] for name in ("step", "loss", *CURVES)}
    _, red = claim.judge(**cut)
    assert not red & set(claim.experiment.controls[control].breaks)


@pytest.mark.parametrize(
    ("wrong", "message"), [({"decays": (0.0, 1.0)}, "give 4"), ({"corruption": 0.0}, "between 0")]
)
def test_wrong_settings_are_refused(claim, wrong, message):
    with pytest.raises(ValueError, match=message):
        claim.experiment.config(**wrong)
