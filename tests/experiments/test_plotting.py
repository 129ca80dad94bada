import io

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from experiments import plotting

VALUES = np.random.default_rng(0).normal(size=(6, 20)).cumsum(axis=1)


def draw(figure):
    left, right = figure.subplots(1, 2)
    plotting.band(left, np.arange(20), VALUES, label="runs")
    plotting.points(right, np.arange(20), VALUES, label="runs")
    plotting.theory(right, np.arange(20), np.zeros(20))
    plotting.bounds(right, -1, 1)
    plotting.threshold(right, 0.5, label="edge")
    plotting.label_panels([left, right])
    left.set(xlabel="step", ylabel="loss")
    left.legend()


@pytest.mark.parametrize("render", [plotting.render_png, plotting.render_pdf])
def test_drawn_twice_the_bytes_are_the_same(render):
    assert render(draw) == render(draw)


def test_the_png_has_300_dots_an_inch_and_no_name_of_its_maker():
    data = plotting.render_png(draw, size=(4, 2))
    assert matplotlib.image.imread(io.BytesIO(data)).shape[:2] == (600, 1200)
    assert b"matplotlib" not in data.lower()


def test_a_heavy_figure_is_made_lighter_and_a_hopeless_one_refused():
    noise = np.random.default_rng(0)

    def heavy(figure):
        axes = figure.subplots()
        for colour in plotting.COLOURS:
            axes.plot(noise.normal(size=3000), color=colour, alpha=0.5)

    light = plotting.render_png(heavy)
    assert len(light) <= plotting.MAX_BYTES
    pixels = matplotlib.image.imread(io.BytesIO(light))
    assert pixels[0, 0, :3].min() == 1  # the ground stays white

    def hopeless(figure):
        figure.subplots().imshow(noise.uniform(size=(900, 900)), interpolation="nearest")

    with pytest.raises(ValueError, match="fewer points"):
        plotting.render_png(hopeless, size=(7, 7))


def test_a_band_is_the_mean_and_its_t_interval():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    line = plotting.band(axes, np.arange(20), VALUES)
    low, high = stats.t.interval(0.95, 5, VALUES.mean(axis=0), stats.sem(VALUES, axis=0))
    drawn = axes.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(line.get_ydata(), VALUES.mean(axis=0))
    assert np.isclose(drawn[:, 1].min(), low.min())
    assert np.isclose(drawn[:, 1].max(), high.max())


@pytest.mark.parametrize("spread", ["interval", "range", "log", "quartiles"])
def test_seeds_that_agree_to_the_bit_are_points_without_a_bar(spread):
    """The mean of three times 0.1 is an ulp above 0.1."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    plotting.points(axes, [0], np.full((3, 1), 0.1), spread=spread)
    (bar,) = axes.collections[0].get_segments()
    np.testing.assert_allclose(bar[:, 1], 0.1, rtol=1e-15)


def test_the_style_does_not_leak():
    before = dict(matplotlib.rcParams)
    plotting.render_png(draw)
    assert dict(matplotlib.rcParams) == before


def test_values_without_a_seed_axis_are_refused():
    with pytest.raises(ValueError, match="seeds"):
        plotting.band(None, np.arange(3), np.zeros(3))


def luminance(colour):
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_the_first_colours_differ_in_grey_too():
    levels = sorted(luminance(colour) for colour in plotting.COLOURS[:3])
    assert min(np.diff(levels)) > 0.02


def test_quartiles_do_not_follow_one_seed_astray():
    figure = Figure()
    axes = figure.subplots()
    values = np.array([[0.0], [1.0], [2.0], [3.0], [-1000.0]])
    line = plotting.band(axes, [1], values, spread="quartiles")
    assert line.get_ydata() == [1.0]
    low, high = axes.collections[0].get_paths()[0].get_extents().intervaly
    assert (low, high) == (0.0, 2.0)
