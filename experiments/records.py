"""Saved arrays and records: what lands on disk, atomically, and how it is read back."""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments import checks
from experiments.contract import CallError

SCHEMA = 1
PARTIAL = ".partial"  # ends the name of what is being written
KEYS = (
    "schema slug tree theme title paper_ids verdict checks config preset seed num_seeds seconds "
    "peak_memory_mb platform device_count precision matmul_precision versions commit "
    "arrays_sha256 doctor"
).split()
_KINDS = {
    **dict.fromkeys("slug tree theme title verdict preset arrays_sha256".split(), str),
    **dict.fromkeys("seed num_seeds".split(), int),
    **dict.fromkeys("checks paper_ids".split(), list),
    **dict.fromkeys("config seconds versions doctor".split(), dict),
}
_SECONDS = ("compile", "run", "total")
_PROVENANCE = "provenance"


@dataclasses.dataclass(frozen=True)
class Paths:
    """The files of one claim below an output folder."""

    out: Path
    tree: str
    theme: str
    slug: str

    @property
    def folder(self) -> Path:
        """The folder that holds them all."""
        return self.out / self.tree / self.theme

    @property
    def arrays(self) -> Path:
        """The saved arrays."""
        return self.folder / f"{self.slug}.npz"

    @property
    def record(self) -> Path:
        """The record with the verdict."""
        return self.folder / f"{self.slug}.json"

    @property
    def figure(self) -> Path:
        """The figure."""
        return self.folder / f"{self.slug}.png"

    @property
    def parts(self) -> Path:
        """The finished parts of a run that is not finished."""
        return self.folder / f".{self.slug}.parts"

    @property
    def events(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.out / "tensorboard" / self.tree / self.theme / self.slug

    @property
    def lock(self) -> Path:
        """The file that a running process holds."""
        return self.folder / f".{self.slug}.lock"


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, flush it to the disk, then rename it into place.

    Raises:
        CallError: the folder cannot be written or the disk is full; `path` is then as it was.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL
        )
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise CallError(_why_not_written(path, error)) from error


@contextlib.contextmanager
def exclusive(paths: Paths) -> Iterator[None]:
    """Hold the claim's lock, so that two runs into one folder never mix.

    What a run that was killed within a write has left half-written is removed.

    Raises:
        CallError: another process holds it, or the folder cannot be written or locked.
    """
    handle = _opened_lock(paths)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = (
                f"--out={paths.out}: another run is writing {paths.slug} there; "
                "wait for it or give another folder"
            )
            raise CallError(message) from error
        except OSError as error:  # some network file systems
            message = (
                f"--out={paths.out}: files cannot be locked there ({error.strerror}); "
                "give a folder on another file system"
            )
            raise CallError(message) from error
        for leftover in paths.folder.glob(f".{paths.slug}.*{PARTIAL}"):
            with contextlib.suppress(OSError):  # another user's
                leftover.unlink()
        yield
    finally:
        os.close(handle)


def require_writable(paths: Paths) -> None:
    """Raise a CallError where the claim's folder cannot be made or written."""
    os.close(_opened_lock(paths))


def _opened_lock(paths: Paths) -> int:
    try:
        paths.folder.mkdir(parents=True, exist_ok=True)
        return os.open(paths.lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise CallError(_why_not_written(paths.lock, error)) from error


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes, in the order of names."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype.str} {arrays[name].shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], provenance: Mapping) -> str:
    """Land the arrays with the provenance beside them; return their digest."""
    sha256 = digest(arrays)
    text = json.dumps({**provenance, "arrays_sha256": sha256})
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{**arrays, _PROVENANCE: np.array(text)})
    write_atomically(path, buffer.getvalue())
    return sha256


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays and the provenance of a saved run.

    Raises:
        CallError: no such file, a torn or foreign one, or one whose digest does not fit.
    """
    mend = "run the claim again with --stage=all"
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name != _PROVENANCE}
            provenance = json.loads(str(file[_PROVENANCE]))
    except FileNotFoundError as error:
        message = f"--stage: there are no saved arrays at {path}; {mend}"
        raise CallError(message) from error
    except Exception as error:  # of a dozen kinds: zip, zlib and numpy each have their own
        message = f"--stage: {path} cannot be read as saved arrays ({type(error).__name__}); {mend}"
        raise CallError(message) from error
    if not isinstance(provenance, dict) or provenance.get("arrays_sha256") != digest(arrays):
        message = f"--stage: the arrays in {path} do not have the digest saved with them; {mend}"
        raise CallError(message)
    return arrays, provenance


def encode_check(check: checks.Check) -> dict[str, Any]:
    """Return a check as the record holds it; numbers are finite or null."""
    interval = check.interval and [_finite(value) for value in check.interval]
    return {
        "name": check.name,
        "role": check.role,
        "measured": _finite(check.measured),
        "lower": _finite(check.lower),
        "upper": _finite(check.upper),
        "interval": interval,
        "passed": check.passed,
        "why": check.why,
    }


def save_record(path: Path, record: Mapping[str, Any]) -> None:
    """Land a record.

    Raises:
        ValueError: the record's keys are not those of the schema.
        CallError: it cannot be written.
    """
    if set(record) != set(KEYS):
        message = f"record has keys {sorted(set(record) ^ set(KEYS))} too many or too few"
        raise ValueError(message)
    text = json.dumps({key: record[key] for key in KEYS}, indent=1, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def load_record(path: Path) -> dict[str, Any]:
    """Return a record.

    Raises:
        CallError: no such file, not JSON, of another schema, or damaged: a verdict must follow
            from the checks, and whether a check has passed from its numbers.
    """
    mend = "run the claim again"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        message = f"--out: there is no record at {path}; {mend}"
        raise CallError(message) from error
    except (OSError, ValueError, RecursionError) as error:  # the last: nested without end
        message = f"--out: {path} cannot be read as a record ({type(error).__name__}); {mend}"
        raise CallError(message) from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        message = f"--out: {path} is not a record of schema {SCHEMA}; {mend}"
        raise CallError(message)
    if missing := sorted(set(KEYS) - set(record)):
        message = f"--out: {path} lacks {', '.join(missing)}; {mend}"
        raise CallError(message)
    try:
        _require_sound(record)
    except (KeyError, TypeError, ValueError) as error:
        message = f"--out: {path} is damaged ({type(error).__name__}: {error}); {mend}"
        raise CallError(message) from error
    return record


def plain(value: Any) -> Any:
    """Return `value` as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(value))


def _require_sound(record: Mapping[str, Any]) -> None:
    """Raise a KeyError, TypeError or ValueError where the values cannot be what a run has left."""
    for key, kind in _KINDS.items():
        if not isinstance(record[key], kind):
            message = f"{key} is {type(record[key]).__name__}, not {kind.__name__}"
            raise TypeError(message)
    for value in (*(record["seconds"][k] for k in _SECONDS), record["peak_memory_mb"]):
        _number(value)
    found = [_decoded(check) for check in record["checks"]]
    if not found or checks.verdict(found) != record["verdict"]:
        message = f"verdict {record['verdict']!r} does not follow from the checks"
        raise ValueError(message)


def _decoded(encoded: Any) -> checks.Check:
    """Return the check that `encode_check` has made this of."""
    interval = encoded["interval"]
    if interval is not None:
        low, high = interval
        interval = _number(low, math.nan), _number(high, math.nan)
    name, why = encoded["name"], encoded["why"]
    if not (isinstance(name, str) and isinstance(why, str)):
        message = f"a check called {name!r}, for the reason {why!r}"
        raise TypeError(message)
    check = checks.Check(
        name=name,
        role=encoded["role"],
        measured=_number(encoded["measured"], math.nan),
        lower=_number(encoded["lower"], -math.inf),
        upper=_number(encoded["upper"], math.inf),
        interval=interval,
        why=why,
    )
    if encoded["passed"] is not check.passed:
        message = f"check {name!r} has not passed={encoded['passed']} by its numbers"
        raise ValueError(message)
    return check


def _number(value: Any, missing: float | None = None) -> float:
    """Return a number of a record; `missing`, where one may be missing, for null."""
    if value is None and missing is not None:
        return missing
    # NaN and infinity are read from JSON by Python, though no record holds them.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        message = f"{value!r} is not a finite number"
        raise ValueError(message)
    return value


def _finite(value: float) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None


def _why_not_written(path: Path, error: OSError) -> str:
    reasons = {
        errno.ENOSPC: "the disk is full; free some space",
        errno.EDQUOT: "the quota is used up; free some space",
        errno.EACCES: "no permission to write there",
        errno.EPERM: "no permission to write there",
        errno.EROFS: "the file system is read-only",
        errno.ENOTDIR: "a part of that path is a file",
        errno.EEXIST: "a part of that path is a file",
    }
    reason = reasons.get(error.errno or 0, error.strerror or type(error).__name__)
    return f"--out: cannot write {path}: {reason}, or give another folder with --out"
