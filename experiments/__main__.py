"""The catalogue's command line: list, run, report, doctor."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import catalogue, console, contract, distributed, preemption

_EPILOGUE = "PATTERN is a glob over tree/theme/slug, such as '*/grokking/*', or over the slug."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0 (every verdict holds), 1 (some fails or is void) or 2."""
    commands = {"list": list_claims, "run": run_claims, "report": report, "doctor": examine}
    with console.errors_in_one_line() as status:
        arguments = _parser().parse_args(argv)
        return commands[arguments.command](arguments)
    return status.code


def list_claims(arguments: argparse.Namespace) -> int:
    """Print the table of claims with their last verdicts; imports no claim and no JAX."""
    from rich import box, table
    from rich.markup import escape

    listing = table.Table(box=box.SIMPLE_HEAD)
    listing.add_column("claim", overflow="fold")
    listing.add_column("verdict")
    listing.add_column("title")
    for entry in catalogue.find(arguments.patterns):
        listing.add_row(entry.name, _last_verdict(entry, arguments.out), escape(entry.title))
    console.output().print(listing)
    return 0


def run_claims(arguments: argparse.Namespace) -> int:
    """Run the claims that match and print a summary; then rebuild the page beside them."""
    from experiments import engines, runner

    if arguments.smoke and arguments.preset not in (None, "smoke"):
        message = f"--smoke and --preset={arguments.preset}: give one of the two"
        raise contract.CallError(message)
    overrides = {"seed": arguments.seed} if arguments.seed is not None else {}
    settings = runner.Settings(
        preset="smoke" if arguments.smoke else arguments.preset or "default",
        overrides=overrides,
        out=arguments.out,
        resume=arguments.resume,
        precision=arguments.precision,
        recheck=arguments.recheck,
        tensorboard=arguments.tensorboard,
        hosts=_hosts(arguments),
    )
    tasks = [engines.Task(entry, settings) for entry in catalogue.find(arguments.patterns)]
    if (ended := distributed.enter(settings.hosts)) is not None:
        return ended
    with preemption.listening():
        if arguments.sweep or arguments.seeds is not None:
            return _sweep(arguments, settings)
        outcomes = _perform(_engine(arguments), tasks)
    console.print_outcomes(sorted(outcomes, key=lambda outcome: outcome.name))
    if outcomes and all(outcome.verdict == "refused" for outcome in outcomes):
        raise contract.CallError(outcomes[0].remark)
    distributed.decided(lambda: report(argparse.Namespace(out=settings.folder())))
    return _status(outcomes, len(tasks))


def _sweep(arguments: argparse.Namespace, settings: Any) -> int:
    """Run every cell of the grid for every claim, then write a table and a figure a claim."""
    from experiments import engines, execution, sweep_summary, sweeps

    if arguments.seed is not None and arguments.seeds is not None:
        message = f"--seed={arguments.seed} and --seeds={arguments.seeds}: give one of the two"
        raise contract.CallError(message)
    if settings.hosts is not None:
        message = "--sweep with --distributed: a grid is run by one process and its engine"
        raise contract.CallError(message)
    engine = _engine(arguments)
    axes, cells = sweeps.grid(arguments.sweep or [], arguments.seeds)
    if arguments.seed is not None and "seed" in axes:
        message = f"--seed={arguments.seed} and --sweep=seed={axes['seed'][0]}: give one of the two"
        raise contract.CallError(message)
    entries = catalogue.find(arguments.patterns)
    inner = [sweeps.settings_of(cell, settings) for cell in cells]
    for entry in entries:  # a wrong field or value is refused before anything runs
        experiment = catalogue.load(entry)
        for cell in inner:
            experiment.configure(cell.preset, cell.overrides)
    execution.prepare_jax()
    for entry in entries:
        programs, parts = sweeps.compute_together(entry, inner)
        line = f"{entry.name}: {programs} programs for {parts} runs of equal shapes"
        console.say(line)
    tasks = [engines.Task(e, cell, cell.out.name) for e in entries for cell in inner]
    outcomes = _perform(engine, tasks)
    console.print_outcomes(outcomes)
    out = settings.out or sweeps.FOLDER
    folders = [cell.folder() for cell in inner]
    ended = {outcome.name: outcome for outcome in outcomes}
    for entry in entries:
        of_entry = [ended.get(task.name) for task in tasks if task.entry is entry]
        made = sweep_summary.summarise(entry, axes, cells, folders, of_entry, out)
        print(*made, sep="\n")
    return _status(outcomes, len(tasks))


def _perform(engine: Any, tasks: list) -> list:
    """Run the tasks by the engine; tell of each as it ends."""
    outcomes = []
    with console.bar() as progress:
        bar = progress.add_task("claims", total=len(tasks))
        for outcome in engine(tasks):
            line = f"{outcome.verdict:8} {outcome.seconds:6.1f} s  {outcome.name}"
            if outcome.verdict == "retried":
                console.say(f"{line}: {outcome.remark}")
                continue
            progress.advance(bar)
            outcomes.append(outcome)
            if distributed.is_first():
                console.say(line)
    return outcomes


def _status(outcomes: list, num_tasks: int) -> int:
    """Return the exit status of a run of many claims."""
    if len(outcomes) < num_tasks or any(o.verdict == "preempted" for o in outcomes):
        return preemption.STATUS
    if any(outcome.verdict == "refused" for outcome in outcomes):
        return 2
    return 0 if all(outcome.verdict == "holds" for outcome in outcomes) else 1


def _hosts(arguments: argparse.Namespace) -> distributed.Hosts | None:
    values = {name: getattr(arguments, name) for name in distributed.FLAGS}
    asked = distributed.hosts(arguments.distributed, values)
    if asked is not None and (arguments.engine != "local" or arguments.jobs not in (None, 1)):
        message = (
            f"--engine={arguments.engine} --jobs={arguments.jobs}: with --distributed all "
            "processes work on one claim after the other; leave both out"
        )
        raise contract.CallError(message)
    return asked


def _engine(arguments: argparse.Namespace):
    """Return the engine that the flags of `run` ask for."""
    from experiments import engines

    cluster = engines.Cluster(
        address=arguments.ray_address,
        cpus_per_claim=arguments.cpus_per_claim,
        gpus_per_claim=arguments.gpus_per_claim,
    )
    retries = engines.RETRIES if arguments.retries is None else arguments.retries
    if arguments.engine == "ray" and arguments.recheck and arguments.out is None:
        message = "--recheck with --engine=ray: give --out, for the records of both"
        raise contract.CallError(message)
    return engines.choose(
        arguments.engine,
        arguments.jobs,
        retries=retries,
        cluster=cluster,
        stop=preemption.asked,
    )


def report(arguments: argparse.Namespace) -> int:
    """Build the page and the tables from the records."""
    from experiments import records
    from experiments import report as reporting

    out = arguments.out or Path("figures")
    entries = catalogue.walk()
    print(reporting.build(entries, out))
    readme = catalogue.ROOT / "README.md"
    if out.resolve() == catalogue.ROOT / "figures" and readme.exists():
        table = reporting.verdict_table(entries, out)
        text = reporting.update_readme(readme.read_text(encoding="utf-8"), table)
        records.write_atomically(readme, text.encode())
    return 0


def examine(arguments: argparse.Namespace) -> int:
    """Say whether this machine's JAX computes right numbers."""
    from experiments import doctor

    diagnosis = doctor.examine()
    console.output().print(doctor.render(diagnosis))
    return 0 if diagnosis.healthy else 1


def _last_verdict(entry: catalogue.Entry, out: Path | None) -> str:
    from experiments import records

    paths = records.Paths(out or Path("figures"), entry.tree, entry.theme, entry.slug)
    if not paths.record.exists():
        return "not run"
    try:
        return records.load_record(paths.record)["verdict"]
    except contract.CallError:
        return "unreadable"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        message = f"{message}; see python -m experiments --help"
        raise contract.CallError(message)


def _folder(text: str) -> Path:
    if not text:  # an unset variable of the shell, which would mean the folders of the code
        message = "give a folder, or leave the flag out"
        raise argparse.ArgumentTypeError(message)
    return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m experiments", epilog=_EPILOGUE, allow_abbrev=False)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="list|run|report|doctor"
    )

    def command(name, function, *, patterns):
        made = commands.add_parser(
            name, help=function.__doc__, epilog=_EPILOGUE, allow_abbrev=False
        )
        if patterns:
            made.add_argument("patterns", nargs=patterns, metavar="PATTERN")
        if name != "doctor":
            made.add_argument("--out", type=_folder, help="folder of figures and records")
        return made

    command("list", list_claims, patterns="*")
    run = command("run", run_claims, patterns="+")
    run.add_argument("--seed", help="base seed of every claim")
    run.add_argument("--smoke", action="store_true", help="the run of a few seconds")
    run.add_argument("--preset", help=" or ".join(contract.PRESETS))
    run.add_argument("--engine", default="local", help="local, or ray (the extra `cluster`)")
    run.add_argument("--jobs", type=int, help="claims at a time; 1 unless given")
    run.add_argument("--retries", type=int, help="of a claim whose process dies; 2 unless given")
    run.add_argument("--ray_address", metavar="auto|HOST:PORT|ray://HOST:PORT",
                     help="a Ray cluster; without it one is started here")  # fmt: skip
    run.add_argument("--cpus_per_claim", type=float, help="cores of that cluster for a claim; 2")
    run.add_argument("--gpus_per_claim", type=float, default=0.0, help="for ray; may be a share")
    run.add_argument("--resume", action="store_true", help="skip and continue what is done")
    run.add_argument("--precision", help="float32 or float64 instead of each claim's own")
    run.add_argument("--recheck", action="store_true", help="what holds in float32, in float64 too")
    run.add_argument("--tensorboard", action="store_true", help="write TensorBoard event files")
    run.add_argument("--sweep", action="append", metavar="FIELD=VALUE,VALUE",
                     help="a grid of runs; give it once for each field")  # fmt: skip
    run.add_argument("--seeds", metavar="FIRST:END", help="a run for each base seed, as a sweep")
    run.add_argument("--distributed", action="store_true", help="run as one of several processes")
    for name, meaning in distributed.FLAGS.items():
        run.add_argument(f"--{name}", help=meaning)
    command("report", report, patterns=None)
    command("doctor", examine, patterns=None)
    return parser


if __name__ == "__main__":
    sys.exit(main())
