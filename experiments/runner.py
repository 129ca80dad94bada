"""The command line of one claim: run, save, judge, draw, report."""

import contextlib
import dataclasses
import inspect
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments import catalogue, contract, distributed, preemption, records
from experiments.options import Settings, parse

_KEPT = (
    "The run is kept: mend check or plot, then call again with --stage=check and --stage=plot, or "
    "with --resume where no code has changed."
)
_EXIT_STATUS = {"holds": 0, "fails": 1, "void": 1}


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
        if (ended := distributed.enter(settings.hosts)) is not None:
            return ended
        with preemption.listening():
            with console.claim_progress(entry, experiment, settings) as announce:
                record = perform(experiment, entry, settings, announce)
            if record is None:
                return 0
            console.print_record(record, settings.folder())
            if needs_recheck(experiment, settings, record):
                settings = settings.rechecked()
                with console.claim_progress(entry, experiment, settings) as announce:
                    record = perform(experiment, entry, settings, announce)
                console.print_record(record, settings.folder())
        return _EXIT_STATUS[record["verdict"]]
    return status.code


def in_precision(experiment: contract.Experiment, settings: Settings) -> contract.Experiment:
    """Return the experiment in the precision that the settings ask for."""
    return dataclasses.replace(experiment, precision=settings.precision or experiment.precision)


def needs_recheck(experiment: contract.Experiment, settings: Settings, record: dict) -> bool:
    """Return whether the verdict is one that `--recheck` asks to see in float64 too."""
    precision = settings.precision or experiment.precision
    return settings.recheck and record["verdict"] == "holds" and precision == "float32"


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
    experiment = in_precision(experiment, settings)
    configure = lambda: experiment.configure(settings.preset, settings.overrides)
    config = distributed.together(configure)
    if settings.hosts is not None:
        from experiments import provenance

        identity = _identity(entry, experiment, config, settings)
        distributed.agree(**identity, versions=provenance.versions())
    if settings.resume and settings.stage == "all":
        kept = distributed.decided(lambda: finished(experiment, config, settings, paths))
        if kept is not None:
            return kept
    with distributed.held_by_first(lambda: records.exclusive(paths)):
        if settings.stage in ("check", "plot"):
            return _from_saved(experiment, entry, settings, paths)
        return _from_scratch(experiment, entry, config, settings, paths, announce)


def _from_scratch(experiment, entry, config, settings, paths, announce):
    from experiments import execution

    execution.prepare_jax()
    with _events(settings, paths) as events:
        run = execution.compute(
            experiment,
            entry,
            config,
            preset=settings.preset,
            paths=paths,
            resume=settings.resume,
            announce=announce,
            observe=events.chunks,
        )
        land = lambda: _landed(experiment, entry, run, settings, paths, events)
        return distributed.decided(land)


def _landed(experiment, entry, run, settings, paths, events):
    from experiments import execution, judgement

    if settings.stage == "run":
        execution.save(run, paths.arrays)
        shutil.rmtree(paths.parts, ignore_errors=True)
        return None
    try:
        found = judgement.judge(experiment, run)
        image = _image(experiment, run)
    except Exception as error:
        with contextlib.suppress(contract.CallError):
            execution.save(run, paths.arrays)
        error.add_note(_KEPT)
        raise
    sha256 = execution.save(run, paths.arrays)
    records.write_atomically(paths.figure, image)
    record = judgement.record(entry, run, found, sha256)
    records.save_record(paths.record, record)
    shutil.rmtree(paths.parts, ignore_errors=True)
    events.run(run.parts[execution.MAIN], record, image)
    return record


def _events(settings, paths):
    """Return what writes TensorBoard's event files, or what writes nothing."""
    from experiments import tensorboard

    wanted = settings.tensorboard and distributed.is_first()
    return tensorboard.Events(paths.events) if wanted else tensorboard.Silence()


def _from_saved(experiment, entry, settings, paths):
    from experiments import execution, judgement, provenance

    run = execution.load(experiment, paths.arrays)
    saved = run.parts[execution.MAIN].config
    if settings.precision not in (None, run.provenance["precision"]):
        message = (
            f"--precision={settings.precision}: the saved arrays were computed in "
            f"{run.provenance['precision']}; leave the flag out, or run again with --stage=all"
        )
        raise contract.CallError(message)
    if settings.preset not in ("default", run.provenance["preset"]):
        message = (
            f"--preset={settings.preset}: the saved arrays are of the preset "
            f"{run.provenance['preset']}; leave the flag out, or run again with --stage=all"
        )
        raise contract.CallError(message)
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
    if run.provenance.get("source_sha256") != provenance.source_digest(catalogue.ROOT):
        record["commit"] = f"{record['commit']}, judged by {provenance.commit(catalogue.ROOT)}"
    records.save_record(paths.record, record)
    return record


def _identity(entry, experiment, config, settings) -> dict[str, Any]:
    """Return what makes two processes do the same run, but for the versions of packages."""
    from experiments import provenance

    return {
        "claim": entry.name,
        "configuration": records.plain(dataclasses.asdict(config)),
        "preset": settings.preset,
        "precision": experiment.precision,
        "recheck": settings.recheck,
        "stage": settings.stage,
        "resume": settings.resume,
        "code": provenance.source_digest(catalogue.ROOT)[:12],
    }


def finished(experiment, config, settings, paths) -> dict[str, Any] | None:
    """Return the record in place if the same code made it from the same configuration.

    It is judged anew from the saved arrays, and taken if that comes to the same: a run that ended
    between its arrays and its record leaves an older record, perhaps with other bounds, beside
    arrays of the same bits.
    """
    from experiments import execution, judgement, provenance

    with contextlib.suppress(contract.CallError, KeyError):  # the latter: of an older version
        record = records.load_record(paths.record)
        run = execution.load(experiment, paths.arrays)
        origin = run.provenance
        same = (
            records.plain(dataclasses.asdict(config)) == origin["config"]
            and origin["preset"] == settings.preset
            and origin["precision"] == experiment.precision
            and origin["source_sha256"] == provenance.source_digest(catalogue.ROOT)
            and origin["versions"] == provenance.versions()
            and origin["arrays_sha256"] == record["arrays_sha256"]
            and paths.figure.exists()
        )
        if same:
            found = [records.encode_check(check) for check in judgement.judge(experiment, run)]
            return record if found == record["checks"] else None
    return None


def _image(experiment, run) -> bytes:
    from experiments import judgement, plotting

    try:
        return plotting.render_png(lambda figure: judgement.draw(experiment, run, figure))
    except Exception:
        if (text := judgement.why_not_drawn(experiment, run)) is None:
            raise
        return plotting.render_png(lambda figure: figure.text(0.5, 0.5, text, ha="center"))
