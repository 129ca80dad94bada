"""Arrows point one way: who may import whom, read from the imports themselves."""

import ast
import functools
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted((ROOT / "dynamics").rglob("*.py"))
MACHINERY = sorted((ROOT / "experiments").glob("*.py"))
CLAIMS = [
    path
    for tree in ("experiments", "theory_checks")
    for path in sorted((ROOT / tree).glob("*/*.py"))
]
BY_PATH = {"ids": lambda path: str(path.relative_to(ROOT))}
# Each package of the library, and what it may take from the others.
ARROWS = {
    "data": {"aliases", "arguments"},
    "models": {"aliases", "arguments"},
    "training": {"aliases", "arguments", "leaf_names"},
    "measure": {"aliases", "arguments", "leaf_names"},
    "leaf_names": {"aliases"},
    "arguments": {"leaf_names"},
    "parallel": {"aliases", "arguments", "data_parallel", "placement"},
    "data_parallel": {"aliases", "arguments", "placement"},
    "placement": {"aliases"},
    "long_runs": {"aliases", "arguments", "parallel", "training"},
    "theory": {"aliases", "arguments"},
    "aliases": set(),
    "__init__": set(),
}


@functools.cache  # each file is asked about for every claim
def imports(path):
    """Return every module that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", LIBRARY, **BY_PATH)
def test_the_library_is_pure(path):
    forbidden = {"absl", "matplotlib", "experiments", "theory_checks", "rich", "jinja2"}
    assert not {name.split(".")[0] for name in imports(path)} & forbidden


@pytest.mark.parametrize("path", LIBRARY, **BY_PATH)
def test_arrows_in_the_library(path):
    package = path.relative_to(ROOT / "dynamics").parts[0].removesuffix(".py")
    others = {name.split(".")[1] for name in imports(path) if name.startswith("dynamics.")}
    assert others - {package} <= ARROWS[package], f"{package} may import {ARROWS[package]}"


@pytest.mark.parametrize("path", CLAIMS, **BY_PATH)
def test_nothing_imports_a_claim(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for other in (*LIBRARY, *MACHINERY, *CLAIMS):
        assert not any(name.startswith(module + ".") or name == module for name in imports(other))


@pytest.mark.parametrize("path", [*LIBRARY, *MACHINERY, *CLAIMS], **BY_PATH)
def test_nothing_happens_on_import(path):
    """A module's top level only defines; the one call allowed is the claim's EXPERIMENT."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"line {node.lineno}: a bare call"
        assert not isinstance(node, (ast.For, ast.While, ast.With)), f"line {node.lineno}"


@pytest.mark.parametrize("path", [*LIBRARY, *MACHINERY], **BY_PATH)
def test_rooms_are_small(path):
    assert len(path.read_text().splitlines()) <= 400
    assert path.name != "utils.py"


def test_nothing_names_a_machine_path():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    files = [ROOT / name for name in listed.stdout.split("\n") if name]
    pattern = re.compile(r"/(home|root|Users|work)/\w")
    assert not [
        str(path.relative_to(ROOT))
        for path in files
        if path.suffix in {".py", ".md", ".json", ".cfg", ".toml", ".html", ".lock", ".in", ".j2"}
        and path != Path(__file__)
        and path.exists()
        and pattern.search(path.read_text())
    ]
