"""The page and the tables of verdicts, made from the records and nothing else."""

import dataclasses
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from experiments import contract, page, records

BEGIN, END = "<!-- verdicts:begin -->", "<!-- verdicts:end -->"
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure on disk: its address relative to the output folder, and its size in pixels."""

    source: str
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the catalogue with what its last run left.

    Attributes:
        entry: the claim as its file's header tells it.
        record: its record; None where it has not run or its record cannot be read.
        verdict: one of page.VERDICTS.
        figure: None where there is none, or no PNG.
    """

    entry: Any
    record: Mapping[str, Any] | None
    verdict: str
    figure: Figure | None


def build(entries: Sequence[Any], out: Path) -> Path:
    """Write `out`/index.html and `out`/README.md from the records below `out`; return the page.

    Claims without a record are shown as not run, records that cannot be read as unreadable. Each
    file lands whole or not at all, and the same records give the same bytes.

    Args:
        entries: the claims, as catalogue.walk() returns them.
        out: folder with TREE/THEME/SLUG.json and .png; made where it does not exist.

    Raises:
        CallError: the folder cannot be written.
    """
    found = read_records(out)
    claims = gather(entries, out, found)
    known = {claim.entry.name for claim in claims}
    strays = sorted(name for name in found if name not in known)
    index = out / "index.html"
    records.write_atomically(index, page.render(claims, strays).encode())
    records.write_atomically(out / "README.md", _readme(claims).encode())
    return index


def read_records(out: Path) -> dict[str, dict[str, Any] | None]:
    """Return the record of each tree/theme/slug below `out`; None where it cannot be read.

    A file that is torn, of another schema, or that names another claim than its place does, is
    one that cannot be read.
    """
    found: dict[str, dict[str, Any] | None] = {}
    for path in sorted(out.glob("*/*/[!.]*.json")):
        place = (path.parent.parent.name, path.parent.name, path.stem)
        try:
            record = records.load_record(path)
            sound = tuple(record[key] for key in ("tree", "theme", "slug")) == place
        except contract.CallError:
            sound = False
        found["/".join(place)] = record if sound else None
    return found


def gather(
    entries: Sequence[Any], out: Path, found: Mapping[str, dict[str, Any] | None]
) -> list[Claim]:
    """Return every claim with its record, verdict and figure, by theme, then by name."""
    claims = []
    for entry in sorted(entries, key=lambda entry: (entry.theme, entry.tree, entry.slug)):
        record = found.get(entry.name)
        figure = None if record is None else _figure(entry, out)
        claims.append(Claim(entry, record, _verdict(entry, found), figure))
    return claims


def verdict_table(entries: Sequence[Any], out: Path, *, folder: str = "figures") -> str:
    """Return the Markdown table of every claim, its verdict and its figure.

    Args:
        entries: the claims, as catalogue.walk() returns them.
        out: folder of the records.
        folder: that folder as seen from the file that will hold the table; "" for beside it.
    """
    return _table(gather(entries, out, read_records(out)), f"{folder}/" if folder else "")


def update_readme(text: str, table: str) -> str:
    """Return `text` with what stands between the two verdict markers replaced by `table`.

    Raises:
        ValueError: the markers are not there exactly once, in their order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        message = f"text must hold {BEGIN} and, after it, {END}, once each: put them back"
        raise ValueError(message)
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table.strip()}\n{END}{rest.split(END)[1]}"


def _verdict(entry: Any, found: Mapping[str, dict[str, Any] | None]) -> str:
    if entry.name not in found:
        return "not run"
    record = found[entry.name]
    if record is None:
        return "unreadable"
    if record["verdict"] == "fails" and entry.known_failure:
        return "not reproduced"
    return record["verdict"]


def _figure(entry: Any, out: Path) -> Figure | None:
    path = records.Paths(out, entry.tree, entry.theme, entry.slug).figure
    try:
        with open(path, "rb") as file:
            head = file.read(24)
    except OSError:
        return None
    if not head.startswith(_PNG) or len(head) < 24:
        return None
    width, height = struct.unpack(">II", head[16:24])
    return Figure(quote(f"{entry.name}.png"), width, height)


def _readme(claims: list[Claim]) -> str:
    return (
        "# Figures and verdicts\n\n"
        "Written by `python -m experiments report` from the records beside the figures; change a "
        "claim, not this file.\nOpen `index.html` for the checks, controls and provenance of "
        f"each claim.\n\n{_summary(claims)}\n\n{_table(claims, '')}"
    )


def _summary(claims: list[Claim]) -> str:
    counts = page.count(claims)
    return f"{len(claims)} claims: " + ", ".join(f"{v} {n}" for v, n in counts.items())


def _table(claims: list[Claim], prefix: str) -> str:
    lines = ["| theme | claim | verdict | figure |", "|---|---|---|---|"]
    for claim in claims:
        entry, figure = claim.entry, claim.figure
        drawn = f"[{_escape(entry.slug)}]({prefix}{figure.source})" if figure else ""
        cells = page.readable(entry.theme), entry.title, claim.verdict
        lines.append(f"| {' | '.join(map(_escape, cells))} | {drawn} |")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """Return `text` as Markdown shows it letter by letter, on one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|$~])", r"\\\1", text)
