"""The page of all claims: one static file that loads nothing from anywhere else."""

import base64
import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape

TEMPLATES = Path(__file__).resolve().parent / "templates"
VERDICTS = ("holds", "fails", "not reproduced", "void", "not run", "unreadable")
MEANINGS = {
    "holds": "every check of the claim passes, and every control does what it must",
    "fails": "a check of the claim or a control fails",
    "not reproduced": "fails, and is known to: what was seen instead stands with the claim",
    "void": "a precondition is not met, so the run says nothing either way",
    "not run": "no record of a run is here",
    "unreadable": "the record is damaged; run the claim again",
}
MARKS = dict(zip(VERDICTS, "✓✗≠○–!", strict=True))
_ROLES = {"claim": "The claim", "control": "Controls", "precondition": "Preconditions"}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_BOUNDS = ("lower", "upper")
_BAR_WIDTH, _BAR_MARGIN = 120.0, 10.0


class Bar(NamedTuple):
    """Where a check's marks stand on a bar of width 120; None where there is no such mark."""

    band: tuple[float, float]  # left end, width
    interval: tuple[float, float] | None  # left end, right end
    measured: float | None


def render(claims: Sequence[Any], strays: Sequence[str] = ()) -> str:
    """Return the page.

    Whatever a claim or a record says is escaped, and the content security policy admits only this
    page's own style and script (by their digest) and images from beside it.

    Args:
        claims: report.Claim of each claim, in the order of the page.
        strays: names of records that no claim goes with.
    """
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(number=number, readable=readable, setting=setting, linked=linked)
    by_theme = itertools.groupby(claims, key=lambda claim: claim.entry.theme)
    return environment.get_template("page.html.j2").render(
        themes=[(theme, list(members)) for theme, members in by_theme],
        counts=count(claims),
        tally=tally(claims),
        total=len(claims),
        strays=strays,
        verdicts=VERDICTS,
        meanings=MEANINGS,
        marks=MARKS,
        rows=rows,
        style=Markup(style),
        script=Markup(script),
        style_digest=_digest(style),
        script_digest=_digest(script),
    )


def count(claims: Sequence[Any]) -> dict[str, int]:
    """Return how many claims have each verdict, without those that none has."""
    found = [claim.verdict for claim in claims]
    return {verdict: found.count(verdict) for verdict in VERDICTS if verdict in found}


def tally(claims: Sequence[Any]) -> list[tuple[str, float, float]]:
    """Return verdict, left end and width of each piece of a bar of width 100."""
    pieces, left = [], 0.0
    for verdict, number_of_claims in count(claims).items():
        width = 100 * number_of_claims / len(claims)
        pieces.append((verdict, round(left, 3), round(width, 3)))
        left += width
    return pieces


def rows(record: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the checks of each role, with their numbers as text and their bars."""
    groups = []
    for role, label in _ROLES.items():
        checks = [check for check in record["checks"] if check["role"] == role]
        if checks:
            groups.append((label, [_row(check) for check in checks]))
    return groups


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with so many significant digits; "not finite" for None.

    Example:
        >>> number(-0.000012), number(1800.0), number(0.25)
        ('−1.2×10⁻⁵', '1800', '0.25')
    """
    if value is None:
        return "not finite"
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{int(value)}".replace("-", "−")
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    mantissa = mantissa.replace("-", "−")
    return f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPT)}" if exponent else mantissa


def setting(value: Any) -> str:
    """Return a Config value as its flag takes it."""
    if isinstance(value, list):
        return ",".join(setting(item) for item in value)
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def readable(name: str) -> str:
    """Return the name of a theme as words."""
    return name.replace("_", " ")


def linked(text: str) -> Markup:
    """Return `text` escaped, with each arXiv number a link."""
    safe = str(escape(text))
    link = r'<a href="https://arxiv.org/abs/\1" rel="noreferrer">arXiv:\1</a>'
    return Markup(re.sub(r"arXiv:(\d{4}\.\d{4,5})", link, safe))


def bar(check: Mapping[str, Any]) -> Bar:
    """Return the bar of a check: allowed band, interval and measured value on one scale.

    The scale is logarithmic where all numbers are positive and span more than a factor of 100.
    """
    interval = check["interval"] if check["interval"] and None not in check["interval"] else None
    marks = [check["measured"], check["lower"], check["upper"], *(interval or ())]
    shown = [mark for mark in marks if mark is not None]
    logarithmic = min(shown) > 0 and max(shown) / min(shown) > 100
    scale = math.log if logarithmic else float
    low, high = scale(min(shown)), scale(max(shown))
    span = (high - low) or 1.0
    left = _BAR_MARGIN if high > low else _BAR_WIDTH / 2

    def place(value: float) -> float:
        inside = _BAR_WIDTH - 2 * _BAR_MARGIN
        return round(left + (scale(value) / span - low / span) * inside, 1)

    start = 0.0 if check["lower"] is None else place(check["lower"])
    end = _BAR_WIDTH if check["upper"] is None else place(check["upper"])
    return Bar(
        band=(start, round(max(end - start, 1.0), 1)),
        interval=None if interval is None else (place(interval[0]), place(interval[1])),
        measured=None if check["measured"] is None else place(check["measured"]),
    )


def _row(check: Mapping[str, Any]) -> dict[str, Any]:
    digits = _digits(check)
    lower, upper = (check[k] if check[k] is None else number(check[k], digits) for k in _BOUNDS)
    if lower is None:
        bounds = f"≤ {upper}"
    elif upper is None:
        bounds = f"≥ {lower}"
    else:
        bounds = f"{lower} … {upper}" if lower != upper else f"= {lower}"
    interval = check["interval"] and " … ".join(number(v, digits) for v in check["interval"])
    return {
        **{key: check[key] for key in ("name", "why", "passed")},
        "measured": number(check["measured"], digits),
        "interval": interval or None,
        "bounds": bounds,
        "bar": bar(check),
    }


def _digits(check: Mapping[str, Any]) -> int:
    """Return how many digits tell the measured numbers from the bounds that they are not."""
    values = [v for v in (check["measured"], *(check["interval"] or ())) if v is not None]
    limits = [check[key] for key in _BOUNDS if check[key] is not None]
    pairs = [(v, limit) for v in values for limit in limits if v != limit]
    for digits in range(4, 8):
        if all(number(v, digits) != number(limit, digits) for v, limit in pairs):
            return digits
    return 8


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
