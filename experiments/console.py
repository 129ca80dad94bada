"""What a person sees in the terminal: progress, tables, one line for a wrong call."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from rich import box, progress, table
from rich.console import Console
from rich.markup import escape

from experiments import contract, preemption

SLOWEST = 10  # claims named after a run of more than as many
_STYLES = {"holds": "green", "fails": "red", "void": "yellow"}


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[SimpleNamespace]:
    """Print a CallError as one line on stderr; the yielded `.code` is then 2, else 0.

    A run that was preempted prints one too, with the status that says "call again".
    """
    status = SimpleNamespace(code=0)
    try:
        yield status
    except contract.CallError as error:
        say("error: " + " ".join(str(error).split()))
        status.code = 2
    except preemption.Preempted as error:
        say(f"preempted: {error}")
        status.code = preemption.STATUS
    except KeyboardInterrupt:
        say("interrupted; go on with --resume")
        status.code = 130


def say(line: str) -> None:
    """Print a line on stderr; where nobody reads there any more, the run goes on without a word."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def bar() -> progress.Progress:
    """Return a progress bar with the elapsed time, shown only in a terminal."""
    return progress.Progress(
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


@contextlib.contextmanager
def claim_progress(entry, experiment: contract.Experiment, settings):
    """Yield a function that hears the name of each part of a claim as it begins."""
    if settings.stage in ("check", "plot"):
        yield lambda part: None
        return
    with bar() as progress_bar:
        total = 1 + len(experiment.controls)
        task = progress_bar.add_task(f"{entry.slug}: starting", total=total)
        begun = 0

        def announce(part: str) -> None:
            nonlocal begun
            label = "the claim" if part == "main" else f"control '{part}'"
            text = escape(f"{entry.slug}: {label}")
            progress_bar.update(task, description=text, completed=begun)
            begun += 1

        yield announce


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """Go on without a reader; the status of a run is its own."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def output() -> Console:
    """Return the console: as wide as the terminal, or wide enough for tables in a file or pipe."""
    return _Output(width=None if sys.stdout.isatty() else 140)


def print_record(record: dict, folder: Path) -> None:
    """Print a claim's checks and its verdict."""
    console = output()
    checks = table.Table(box=box.SIMPLE_HEAD, title=escape(record["title"]), title_justify="left")
    checks.add_column("")
    for column in ("check", "role"):
        checks.add_column(column, overflow="fold")
    for column in ("measured", "interval", "bounds"):
        checks.add_column(column, justify="right")
    for check in record["checks"]:
        mark = "[green]✓[/]" if check["passed"] else "[red]✗[/]"
        interval = check["interval"] and f"{number(check['interval'][0])} … " + number(
            check["interval"][1]
        )
        checks.add_row(
            mark,
            escape(check["name"]),
            check["role"],
            number(check["measured"]),
            interval or "",
            bounds(check),
        )
    console.print(checks)
    verdict = record["verdict"]
    stem = folder / record["tree"] / record["theme"] / record["slug"]
    console.print(
        f"[{_STYLES[verdict]} bold]{verdict}[/]  {record['seconds']['total']:.1f} s "
        f"({record['seconds']['compile']:.1f} s compiling), seed {record['seed']}, "
        f"{record['num_seeds']} seeds   {escape(str(stem))}.png",
        soft_wrap=True,
    )
    for check in record["checks"]:
        if not check["passed"] and (verdict != "void" or check["role"] == "precondition"):
            label = "unmet precondition" if check["role"] == "precondition" else "failed"
            console.print(f"  {label}: {escape(check['name'])}: {escape(check['why'])}")


def print_outcomes(outcomes: list) -> None:
    """Print the summary of a run of many claims."""
    summary = table.Table(box=box.SIMPLE_HEAD)
    summary.add_column("claim", overflow="fold")
    summary.add_column("verdict")
    summary.add_column("seconds", justify="right")
    summary.add_column("")
    for outcome in outcomes:
        style = _STYLES.get(outcome.verdict, "red bold")
        summary.add_row(
            escape(outcome.name),
            f"[{style}]{outcome.verdict}[/]",
            f"{outcome.seconds:.1f}",
            escape(outcome.remark),
        )
    output().print(summary)
    if len(outcomes) > SLOWEST:
        print_slowest(outcomes)


def print_slowest(outcomes: list) -> None:
    """Print the claims that took longest, and their share of all the seconds."""
    slowest = sorted(outcomes, key=lambda outcome: -outcome.seconds)[:SLOWEST]
    total = sum(outcome.seconds for outcome in outcomes)
    part = sum(outcome.seconds for outcome in slowest)
    print(f"the slowest {SLOWEST} took {part:.0f} of {total:.0f} s:")
    for outcome in slowest:
        print(f"  {outcome.seconds:7.1f} s  {outcome.name}")


def number(value: float | None) -> str:
    """Return a measured number with four significant digits; "not finite" for None."""
    if value is None:
        return "not finite"
    # The floats next to zero are bounds that exclude it.
    return f"{value:.4g}" if value == 0 or abs(value) > 1e-300 else f"{'-' * (value < 0)}0+"


def bounds(check: dict) -> str:
    """Return a check's bounds as an inequality or a range."""
    lower, upper = check["lower"], check["upper"]
    if lower is None:
        return f"≤ {number(upper)}"
    if upper is None:
        return f"≥ {number(lower)}"
    return f"{number(lower)} … {number(upper)}"
