"""The claims of the tree, found by walking it and read without importing any of them."""

import ast
import dataclasses
import fnmatch
import importlib
import re
from collections.abc import Sequence
from pathlib import Path

from experiments import contract

TREES = ("experiments", "theory_checks")
ROOT = Path(__file__).resolve().parent.parent
_PARAGRAPHS = ("Claim", "Control", "Reference")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A claim as its file's header tells it."""

    tree: str
    theme: str
    slug: str
    title: str
    claim: str
    control: str
    reference: str
    paper_ids: tuple[str, ...]
    pilot_seeds: tuple[int, ...]
    known_failure: str | None
    path: Path

    @property
    def name(self) -> str:
        """tree/theme/slug, by which patterns, figures, records and tests know the claim."""
        return f"{self.tree}/{self.theme}/{self.slug}"

    @property
    def module(self) -> str:
        """The module that `python -m` runs."""
        return f"{self.tree}.{self.theme}.{self.slug}"


def walk(root: Path = ROOT) -> list[Entry]:
    """Return every claim below `root`, sorted by name.

    Raises:
        contract.CallError: a claim file without its header, PAPER_IDS or EXPERIMENT.
    """
    return [read(path) for path in _paths(root)]


def find(patterns: Sequence[str], root: Path = ROOT) -> list[Entry]:
    """Return the claims whose name matches one of the glob patterns, all of them for none.

    A pattern without a slash is matched against the slug alone.

    Raises:
        contract.CallError: a pattern that matches nothing, or a match that is no claim file.
    """
    paths = _paths(root)
    chosen = set()
    for pattern in patterns or ("*",):
        matches = {path for path in paths if _matches(path, pattern)}
        if not matches:
            message = f"PATTERN={pattern!r} matches no claim; see `python -m experiments list`"
            raise contract.CallError(message)
        chosen |= matches
    return [read(path) for path in paths if path in chosen]


def read(path: Path) -> Entry:
    """Return the entry of one claim file, parsed but not imported."""
    try:
        module = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        message = f"{path.name}, line {error.lineno}: not valid Python ({error.msg})"
        raise contract.CallError(message) from error
    title, paragraphs = _header(path, ast.get_docstring(module) or "")
    assigned = {
        target.id: node.value
        for node in module.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for name in ("PAPER_IDS", "EXPERIMENT"):
        if name not in assigned:
            message = f"{path.name} has no {name}: see CONTRIBUTING.md for what a claim file holds"
            raise contract.CallError(message)
    return Entry(
        tree=path.parent.parent.name,
        theme=path.parent.name,
        slug=path.stem,
        title=title,
        claim=paragraphs["Claim"],
        control=paragraphs["Control"],
        reference=paragraphs["Reference"],
        paper_ids=tuple(_literal(path, "PAPER_IDS", assigned["PAPER_IDS"])),
        pilot_seeds=tuple(_literal(path, "PILOT_SEEDS", assigned.get("PILOT_SEEDS")) or ()),
        known_failure=_known_failure(path, assigned["EXPERIMENT"]),
        path=path,
    )


def load(entry: Entry) -> contract.Experiment:
    """Return the EXPERIMENT of a claim; this imports its file."""
    return importlib.import_module(entry.module).EXPERIMENT


def _paths(root: Path) -> list[Path]:
    return [path for tree in TREES for path in sorted((root / tree).glob("*/[!_]*.py"))]


def _matches(path: Path, pattern: str) -> bool:
    name = path.with_suffix("").parts[-3:]  # tree, theme, slug
    return fnmatch.fnmatchcase("/".join(name) if "/" in pattern else name[-1], pattern)


def _header(path: Path, docstring: str) -> tuple[str, dict[str, str]]:
    title, _, body = docstring.partition("\n")
    paragraphs: dict[str, str] = {}
    label = None
    for line in body.splitlines():
        words = re.match(r"(\w+)\s{2,}(.*)", line)
        if words and words[1] in _PARAGRAPHS:
            label = words[1]
            paragraphs[label] = words[2].strip()
        elif label and line.strip():
            paragraphs[label] = f"{paragraphs[label]} {line.strip()}".strip()
    if missing := [name for name in _PARAGRAPHS if not paragraphs.get(name)]:
        message = f"{path.name}: the docstring lacks the paragraphs {', '.join(missing)}"
        raise contract.CallError(message)
    return title.strip().rstrip("."), paragraphs


def _literal(path: Path, name: str, node: ast.expr | None):
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError as error:
        message = f"{path.name}: {name} must be written out as a literal"
        raise contract.CallError(message) from error


def _known_failure(path: Path, node: ast.expr) -> str | None:
    keywords = node.keywords if isinstance(node, ast.Call) else []
    for keyword in keywords:
        if keyword.arg == "known_failure":
            return _literal(path, "known_failure", keyword.value)
    return None
