"""What a call asks of a claim, and the flags that say it."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import catalogue, contract, distributed

STAGES = ("all", "run", "check", "plot")
PRECISIONS = typing.get_args(contract.Precision)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to run a claim, apart from what its Config says.

    Attributes:
        preset: "default", "smoke" or "paper".
        overrides: Config fields that the call sets.
        stage: "all", or one step: "run" saves arrays, "check" and "plot" work from saved ones.
        out: folder for figures and records; None for figures/ (results/PRESET/ for a preset, so
            that a quick look never replaces a full record).
        resume: go on from the parts and checkpoints that an interrupted run has kept.
        precision: "float32" or "float64" instead of the claim's own; None for that.
        recheck: judge a claim that holds in float32 once more in float64.
        tensorboard: write event files with curves, checks and figure below the output folder.
        hosts: the other processes of the run, and how to join them; None for a run of its own.
    """

    preset: str = "default"
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stage: str = "all"
    out: Path | None = None
    resume: bool = False
    precision: str | None = None
    recheck: bool = False
    tensorboard: bool = False
    hosts: distributed.Hosts | None = None

    def __post_init__(self):
        for name, value, choices in (
            ("preset", self.preset, contract.PRESETS),
            ("stage", self.stage, STAGES),
            ("precision", self.precision or PRECISIONS[0], PRECISIONS),
        ):
            if value not in choices:
                message = f"--{name}={value}: choose one of {', '.join(choices)}"
                raise contract.CallError(message)
        if self.hosts is not None and self.stage in ("check", "plot"):
            message = f"--stage={self.stage}: is done by one process; leave --distributed out"
            raise contract.CallError(message)
        if self.recheck and self.stage != "all":
            message = f"--recheck with --stage={self.stage}: it runs anew; use --stage=all"
            raise contract.CallError(message)

    def folder(self) -> Path:
        """Return the output folder."""
        if self.out is not None:
            return self.out
        parts = [self.preset] if self.preset != "default" else []
        parts += [self.precision] if self.precision else []
        return Path("results", "-".join(parts)) if parts else Path("figures")

    def rechecked(self) -> "Settings":
        """Return the settings of the same run in float64, in a folder of its own."""
        out = None if self.out is None else self.out / "float64"
        return dataclasses.replace(self, precision="float64", recheck=False, out=out)


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
    flags.DEFINE_string("precision", None, f"one of {', '.join(PRECISIONS)}", **text)
    flags.DEFINE_boolean("recheck", False, "if it holds in float32, again in float64", **text)
    flags.DEFINE_boolean("tensorboard", False, "write TensorBoard event files too", **text)
    defaults = dataclasses.asdict(experiment.config())
    flags.DEFINE_boolean("distributed", False, "run as one of several processes", **text)
    for name, meaning in distributed.FLAGS.items():
        flags.DEFINE_string(name, None, meaning, **text)
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
    if values.out == "":
        message = "--out=: give a folder, or leave the flag out"
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
        precision=values.precision,
        recheck=values.recheck,
        tensorboard=values.tensorboard,
        hosts=distributed.hosts(
            values.distributed, {name: values[name].value for name in distributed.FLAGS}
        ),
    )
