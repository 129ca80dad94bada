"""One style for every figure: theory as lines, simulation as points and bands over seeds."""

import io
from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from dynamics.measure import statistics

# Okabe and Ito 2008: told apart with every common colour blindness, and in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SIZE = (7.2, 3.0)  # inches: the width of two columns
DOTS_PER_INCH = 300
MAX_BYTES = 150_000
_STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 8.5,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8.5,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "legend.fontsize": 7.0,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.0,
    "pdf.fonttype": 42,
    "savefig.dpi": DOTS_PER_INCH,
    "svg.hashsalt": "training-dynamics",
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
}


def render_png(draw: Callable[[Figure], None], *, size: tuple[float, float] = SIZE) -> bytes:
    """Return the PNG that `draw(figure)` makes, the same bytes for the same drawing.

    300 dots per inch. A drawing above 150 kB is reduced to 256 colours, which a figure of lines
    and bands does not show. `draw` may change the size (figure.set_size_inches).

    Raises:
        ValueError: the image is still larger than 150 kB.
    """
    data = _render(draw, size, "png", {"Software": None})
    if len(data) <= MAX_BYTES:
        return data
    image = Image.open(io.BytesIO(data)).convert("RGB")
    for colours in (256, 64, 24):
        buffer = io.BytesIO()
        dots = (DOTS_PER_INCH, DOTS_PER_INCH)
        image.quantize(colours, dither=Image.Dither.NONE).save(
            buffer, "PNG", optimize=True, dpi=dots
        )
        if buffer.tell() <= MAX_BYTES:
            return buffer.getvalue()
    message = f"the figure has {buffer.tell()} bytes, above {MAX_BYTES}: draw fewer points"
    raise ValueError(message)


def render_pdf(draw: Callable[[Figure], None], *, size: tuple[float, float] = SIZE) -> bytes:
    """Return the PDF that `draw(figure)` makes, the same bytes for the same drawing."""
    return _render(draw, size, "pdf", {"CreationDate": None})


def band(axes, x, values, *, label=None, color=None, spread: str = "interval", **style):
    """Draw the mean over seeds of `values` (S, T) with its 95 % interval shaded; return the line.

    With spread="range" the shade runs from the smallest seed to the largest instead; with
    spread="log" mean and interval are those of the logarithm (the geometric mean); with
    spread="quartiles" the line is the median and the shade holds the middle half of the seeds.
    """
    mean, lower, upper = _summary(values, spread)
    (line,) = axes.plot(x, mean, label=label, color=color, **style)
    axes.fill_between(x, lower, upper, color=line.get_color(), alpha=0.2, linewidth=0)
    return line


def points(axes, x, values, *, label=None, color=None, marker="o", spread="interval", **style):
    """Draw the mean over seeds of `values` (S, X) as points with intervals, as `band` does."""
    mean, lower, upper = _summary(values, spread)
    return axes.errorbar(
        x,
        mean,
        yerr=[mean - lower, upper - mean],
        label=label,
        color=color,
        marker=marker,
        linestyle="none",
        capsize=2,
        elinewidth=1,
        **style,
    )


def theory(axes, x, y, *, label="theory", color="black", linestyle="--", **style):
    """Draw a prediction as a line; simulation never looks like this."""
    return axes.plot(x, y, label=label, color=color, linestyle=linestyle, zorder=3, **style)[0]


def bounds(axes, lower: float, upper: float, *, label=None, **style):
    """Shade the range of values that a check allows."""
    return axes.axhspan(
        lower, upper, color="#777777", alpha=0.15, linewidth=0, label=label, **style
    )


def threshold(axes, y: float, *, label=None, color="black", linestyle=":", **style):
    """Draw a horizontal line at a value that a check or a definition names; return it."""
    return axes.axhline(y, label=label, color=color, linestyle=linestyle, linewidth=1, **style)


def label_panels(axes) -> None:
    """Write (a), (b), ... at the top left of each panel."""
    for letter, panel in zip("abcdefgh", np.ravel(axes), strict=False):
        panel.set_title(f"({letter})", loc="left", fontweight="bold")


def _summary(values, spread: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values = np.asarray(values, dtype=float)
    if values.ndim != 2:
        message = f"values has shape {values.shape}; give (seeds, points)"
        raise ValueError(message)
    if spread == "log":
        mean, lower, upper = _summary(np.log(values), "interval")
        return np.exp(mean), np.exp(lower), np.exp(upper)
    if spread == "quartiles":
        lower, middle, upper = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
        return middle, lower, upper
    if spread == "range":
        # Rounding can carry the mean of equal values past them; bars have no negative length.
        lower, upper = values.min(axis=0), values.max(axis=0)
        return np.clip(values.mean(axis=0), lower, upper), lower, upper
    if len(values) == 1:
        return values[0], values[0], values[0]
    interval = statistics.mean_interval(values)
    return interval.estimate, interval.lower, interval.upper


def _render(draw, size, kind: str, metadata: dict) -> bytes:
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE, "backend": "agg"}):
        figure = Figure(figsize=size)
        FigureCanvasAgg(figure)
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()
