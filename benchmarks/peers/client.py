"""Programs to compare with: each in an environment of its own, asked line by line.

A peer reads a request a line from its stdin and answers with one line of JSON. The first line it
writes, before any request, tells its versions. It lives as long as the comparison does, so its
threads and its memory are warm as ours are.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent


def environment(name: str, *requirements: str) -> str:
    """Return the interpreter of an environment with these packages, made once under build/peers."""
    folder = BENCHMARKS.parent / "build" / "peers" / name
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
    return str(python)


class Peer:
    """A running peer."""

    def __init__(self, process: subprocess.Popen):
        self.process = process
        self.versions = json.loads(process.stdout.readline())

    def ask(self, request: str) -> dict:
        """Send one request and wait for its answer."""
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@contextlib.contextmanager
def started(python: str, script: str, *arguments: str) -> Iterator[Peer]:
    """Run `script` of benchmarks/peers with an interpreter, for the length of a block."""
    command = [python, str(BENCHMARKS / "peers" / script), *arguments]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    try:
        yield Peer(process)
        process.stdin.close()
        process.wait()
    finally:
        process.kill()
