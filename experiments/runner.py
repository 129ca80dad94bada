"""The command line of one claim: run, save, judge, draw, report."""

import contextlib
import dataclasses
import inspect
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import catalogue, contract, records

STAGES = ("all", "run", "check", "plot")
_EXIT_STATUS = {"holds": 0, "fails": 1, "void": 1}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to run a claim, apart from what its Config says.

    Attributes:
        preset: "default", "smoke" or "paper".
        overrides: Config fields that the call sets.
        stage: "all", or one step: "run" saves arrays, "check" and "plot" work from saved ones.
        out: folder for figures and records; None for figures/ (results/PRESET/ for a preset, so
            that a quick look never replaces a full record).
        resume: go on from the parts that an interrupted run has finished.
    """

    preset: str = "default"
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stage: str = "all"
    out: Path | None = None
    resume: bool = False

    def __post_init__(self):
        for name, value, choices in (
            ("preset", self.preset, contract.PRESETS),
            ("stage", self.stage, STAGES),
        ):
            if value not in choices:
                message = f"--{name}={value}: choose one of {', '.join(choices)}"
                raise contract.CallError(message)

    def folder(self) -> Path:
        """Return the output folder."""
        default = "figures" if self.preset == "default" else f"results/{self.preset}"
        return self.out if self.out is not None else Path(default)


def main(experiment: contract.Experiment) -> None:
    """Run the claim as a command and exit with 0 (holds), 1 (fails, void) or 2 (wrong call)."""
    sys.exit(call(experiment, sys.argv))


def call(experiment: contract.Experiment, argv: Sequence[str]) -> int:
    """Run the claim as the command line `argv` asks; return the exit status."""
    from experiments import console

    entry = catalogue.read(Path(inspect.getsourcefile(experiment.run)))
    with console.errors_in_one_line() as status:
        settings = parse(experiment, entry, argv)
        if settings is None:
            return 0
        with console.claim_progress(entry, experiment, settings) as announce:
            record = perform(experiment, entry, settings, announce)
        if record is not None:
            console.print_record(record, settings.folder())
            return _EXIT_STATUS[record["verdict"]]
    return status.code


def perform(
    experiment: contract.Experiment,
    entry: catalogue.Entry,
    settings: Settings,
    announce: Callable[[str], None] = lambda part: None,
) -> dict[str, Any] | None:
    """Do the stages that `settings` asks for; return the record where one was made or is there.

    Raises:
        contract.CallError: the settings cannot be carried out; nothing is half-written.
    """
    paths = records.Paths(settings.folder(), entry.tree, entry.theme, entry.slug)
    config = experiment.configure(settings.preset, settings.overrides)
    if settings.resume and settings.stage == "all":
        if (finished := _finished(config, settings, paths)) is not None:
            return finished
    with records.exclusive(paths):
        if settings.stage in ("check", "plot"):
            return _from_saved(experiment, entry, settings, paths)
        return _from_scratch(experiment, entry, config, settings, paths, announce)


def _from_scratch(experiment, entry, config, settings, paths, announce):
    from experiments import execution, judgement

    execution.prepare_jax()
    run = execution.compute(
        experiment,
        entry,
        config,
        preset=settings.preset,
        paths=paths,
        resume=settings.resume,
        announce=announce,
    )
    if settings.stage == "run":
        execution.save(run, paths.arrays)
        shutil.rmtree(paths.parts, ignore_errors=True)
        return None
    try:
        found = judgement.judge(experiment, run)
        image = _image(experiment, run)
    except Exception as error:
        error.add_note("The run is kept: mend check or plot, and call again with --resume.")
        raise
    sha256 = execution.save(run, paths.arrays)
    records.write_atomically(paths.figure, image)
    record = judgement.record(entry, run, found, sha256)
    records.save_record(paths.record, record)
    shutil.rmtree(paths.parts, ignore_errors=True)
    return record


def _from_saved(experiment, entry, settings, paths):
    from experiments import execution, judgement

    run = execution.load(experiment, paths.arrays)
    saved = run.parts[execution.MAIN].config
    for name, value in settings.overrides.items():
        asked = getattr(contract.with_overrides(saved, {name: value}), name)
        if asked != getattr(saved, name):
            message = (
                f"--{name}={value}: the saved arrays were computed with {getattr(saved, name)}; "
                "leave the flag out, or run again with --stage=all"
            )
            raise contract.CallError(message)
    if settings.stage == "plot":
        records.write_atomically(paths.figure, _image(experiment, run))
        return None
    found = judgement.judge(experiment, run)
    record = judgement.record(entry, run, found, run.provenance["arrays_sha256"])
    records.save_record(paths.record, record)
    return record


def _finished(config, settings, paths) -> dict[str, Any] | None:
    """Return the record in place if the same code made it from the same configuration."""
    from experiments import provenance

    with contextlib.suppress(contract.CallError):
        record = records.load_record(paths.record)
        _, origin = records.load_arrays(paths.arrays)
        same = (
            records.plain(dataclasses.asdict(config)) == origin["config"]
            and origin["preset"] == settings.preset
            and origin["source_sha256"] == provenance.source_digest(catalogue.ROOT)
            and origin["versions"] == provenance.versions()
            and origin["arrays_sha256"] == record["arrays_sha256"]
            and paths.figure.exists()
        )
        return record if same else None
    return None


def _image(experiment, run) -> bytes:
    from experiments import judgement, plotting

    return plotting.render_png(lambda figure: judgement.draw(experiment, run, figure))


def parse(experiment, entry: catalogue.Entry, argv: Sequence[str]) -> Settings | None:
    """Return the settings that the flags ask for; None after --help.

    Raises:
        contract.CallError: an unknown flag or a value that its flag does not take.
    """
    values = flags.FlagValues()  # of this call alone: importing two claims never collides
    text = {"flag_values": values}
    flags.DEFINE_boolean("help", False, "show this help", **text)
    flags.DEFINE_boolean("smoke", False, "the run of a few seconds (--preset=smoke)", **text)
    flags.DEFINE_string("preset", None, f"one of {', '.join(contract.PRESETS)}", **text)
    flags.DEFINE_string("stage", "all", f"one of {', '.join(STAGES)}", **text)
    flags.DEFINE_string("out", None, "folder for figures and records", **text)
    flags.DEFINE_boolean("resume", False, "go on from an interrupted run", **text)
    defaults = dataclasses.asdict(experiment.config())
    for name, default in defaults.items():
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        flags.DEFINE_string(name, None, f"default: {shown}", **text)
    try:
        rest = values(list(argv))[1:]
    except flags.Error as error:
        message = f"{error}; see --help".replace("\n", " ")
        raise contract.CallError(message) from error
    if values.help:
        print(f"{entry.title}\n\npython -m {entry.module}\n{values.get_help()}")
        return None
    if rest:
        message = f"{' '.join(rest)}: a claim takes flags only, such as --seed=2; see --help"
        raise contract.CallError(message)
    if values.smoke and values.preset not in (None, "smoke"):
        message = f"--smoke and --preset={values.preset}: give one of the two"
        raise contract.CallError(message)
    return Settings(
        preset="smoke" if values.smoke else values.preset or "default",
        overrides={n: values[n].value for n in defaults if values[n].value is not None},
        stage=values.stage,
        out=None if values.out is None else Path(values.out),
        resume=values.resume,
    )
