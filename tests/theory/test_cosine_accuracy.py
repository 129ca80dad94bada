"""Accuracy of the closed-form network against networks that are drawn, and its constants."""

import numpy as np
import pytest

from dynamics.theory import cosine_accuracy as theory

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize(("repeats", "modulus"), [(1, 31), (3, 31), (1, 59), (2, 59)])
def test_drawn_phases(repeats, modulus):
    """Every pair of the table has the same phases in distribution: (0, 0) stands for all."""
    random = np.random.default_rng(0)
    k = np.tile(np.arange(1, (modulus + 1) // 2), repeats)
    x, y = random.uniform(0, 2 * np.pi, (2, 10_000, len(k)))
    weights = (np.cos(x) + np.cos(y)) ** 2 * np.exp(1j * (x + y))
    logits = np.real(weights @ np.exp(2j * np.pi / modulus * np.outer(k, np.arange(modulus))))
    right = np.mean(logits.argmax(axis=1) == 0)
    error = np.sqrt(right * (1 - right) / 10_000)
    assert abs(right - theory.skewed_accuracy(repeats, modulus)) < 0.009 + 5 * error


def test_constants_by_integration():
    x, y = 2 * np.pi * np.indices((16, 16)) / 16
    off = (np.cos(x) + np.cos(y)) ** 2 * np.exp(1j * (x + y)) - 0.5
    assert np.mean(off) == pytest.approx(0, abs=1e-14)
    assert np.mean(off.real**2) == pytest.approx(theory.VARIANCE)
    assert np.mean(np.abs(off) ** 2) == pytest.approx(theory.SPREAD)
    assert np.mean(np.abs(off) ** 2 * off.real) == pytest.approx(theory.THIRD)


def test_wide_networks_are_right():
    found = [theory.skewed_accuracy(repeats, 31) for repeats in (1, 2, 4, 8)]
    assert np.all(np.diff(found) > 0)
    assert found[-1] > 0.999


@pytest.mark.parametrize("wrong", [(0, 31), (1, 30), (1, 1)])
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match=r"repeats=|modulus="):
        theory.skewed_accuracy(*wrong)
