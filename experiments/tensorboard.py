"""Event files for TensorBoard: chunks of a long run as they land, then curves, checks, figure."""

import io
import itertools
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import contract

MOST_CURVES = 32  # of one array: settings, layers and so on, after the mean over seeds


class Silence:
    """Takes what `Events` takes and writes nothing."""

    def __enter__(self) -> "Silence":
        """Begin."""
        return self

    def __exit__(self, *error: object) -> None:
        """End."""

    def chunks(self, part: str) -> Callable[[str, Any, Any], None]:
        """Hear the chunks of a part."""
        return lambda name, times, measurements: None

    def run(self, part: Any, record: dict[str, Any], image: bytes) -> None:
        """Hear of a finished run."""


class Events(Silence):
    """Writes event files into a folder, which is emptied first.

    Raises:
        contract.CallError: tensorboardX is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: Path):
        try:
            import tensorboardX
        except ImportError as error:
            message = "--tensorboard: needs the package tensorboardX: install the extra tensorboard"
            raise contract.CallError(message) from error
        try:
            shutil.rmtree(folder, ignore_errors=True)
            self._writer = tensorboardX.SummaryWriter(str(folder), flush_secs=5)
        except OSError as error:
            message = f"--tensorboard: {folder} cannot be written ({error.strerror}); give --out"
            raise contract.CallError(message) from error

    def __exit__(self, *error: object) -> None:
        """Flush and close the file."""
        self._writer.close()

    def chunks(self, part: str) -> Callable[[str, Any, Any], None]:
        """Return what writes the mean over members of every scalar of a chunk, leaves (S, T)."""

        def observe(name: str, times: Any, measurements: Any) -> None:
            for path, leaf in jax.tree.leaves_with_path(measurements):
                if leaf.ndim == 2 and np.issubdtype(leaf.dtype, np.number):
                    key = jax.tree_util.keystr(path, simple=True, separator="/")
                    self._curve(f"{part}/{name}/{key}", times, np.asarray(leaf).mean(axis=0))

        return observe

    def run(self, part: Any, record: dict[str, Any], image: bytes) -> None:
        """Write the curves of a result, the checks of its record, its configuration and figure."""
        from matplotlib import image as images

        steps = getattr(part.result, "step", None)
        if steps is not None and np.ndim(steps) == 1:
            for field, values in part.result._asdict().items():
                self._curves(field, np.asarray(steps), np.asarray(values))
        for check in record["checks"]:
            if check["measured"] is not None:
                tag = f"{check['role']}s/{check['name']}"
                self._writer.add_scalar(tag, check["measured"], record["seed"])
        lines = [f"    {name} = {value}" for name, value in record["config"].items()]
        text = "\n".join([record["title"], "", f"Verdict: {record['verdict']}", "", *lines])
        self._writer.add_text("record", text, record["seed"])
        drawn = images.imread(io.BytesIO(image), format="png")[..., :3]
        self._writer.add_image("figure", drawn, record["seed"], dataformats="HWC")

    def _curves(self, field: str, steps: np.ndarray, values: np.ndarray) -> None:
        """Write an array (seed, ..., time): the mean over seeds, a curve for all the rest."""
        if values.ndim < 2 or values.shape[-1] != len(steps) or values.dtype.kind not in "biuf":
            return
        mean = values.mean(axis=0)
        places = itertools.product(*map(range, mean.shape[:-1]))
        for place in itertools.islice(places, MOST_CURVES):
            tag = "/".join([f"curves/{field}", *map(str, place)])
            self._curve(tag, steps, mean[place])

    def _curve(self, tag: str, steps: Any, values: np.ndarray) -> None:
        for step, value in zip(np.asarray(steps).tolist(), values.tolist(), strict=True):
            if math.isfinite(value):
                self._writer.add_scalar(tag, value, step)
