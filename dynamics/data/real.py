"""Real images: digits from scikit-learn's wheel, and the user's own MNIST and CIFAR-10 files.

The one data module that reads files. Files are treated as hostile: sizes are checked against what
the format allows before anything is allocated, archives are read in place and never extracted, and
pickles go through an unpickler that knows numpy arrays and plain containers, nothing else.
"""

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dynamics import arguments

_MNIST_PIXELS = 28 * 28
_CIFAR_PIXELS = 3 * 32 * 32
_CIFAR_ROWS = 10_000
_CIFAR_PICKLES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_MAX_MEMBER_BYTES = 400_000_000  # no file of the three data sets comes near this


class ImageData(NamedTuple):
    """Images as numbers from 0 to 1, and their classes."""

    train_images: np.ndarray  # (N, H, W, C) float32
    train_labels: np.ndarray  # (N,) int32
    test_images: np.ndarray  # (M, H, W, C) float32
    test_labels: np.ndarray  # (M,) int32


def digits(num_train: int = 1000) -> ImageData:
    """Return scikit-learn's 1797 handwritten digits, 8 x 8 pixels, ten classes.

    The split is always the same: a fixed permutation, of which the first `num_train` train.

    Args:
        num_train: how many of the 1797 images are for training.

    Raises:
        ValueError: `num_train` is not between 1 and 1796.

    References:
        Alpaydin and Kaynak 1998, UCI repository, "Optical Recognition of Handwritten Digits".

    Example:
        >>> digits().train_images.shape
        (1000, 8, 8, 1)
    """
    arguments.integers(num_train=num_train)
    if not 1 <= num_train <= 1796:
        message = f"num_train={num_train}: give 1 to 1796, so that at least one image is left"
        raise ValueError(message)
    from sklearn import datasets

    bunch = datasets.load_digits()
    order = np.random.default_rng(20240801).permutation(len(bunch.target))
    images = (bunch.images[order] / 16).astype(np.float32)[..., None]
    labels = bunch.target[order].astype(np.int32)
    return ImageData(images[:num_train], labels[:num_train], images[num_train:], labels[num_train:])


def select_classes(data: ImageData, classes: Sequence[int]) -> ImageData:
    """Return the images of some classes, labelled by their place in `classes`.

    Raises:
        ValueError: a class occurs twice or has no training image.
    """
    arguments.records(ImageData, data=data)
    arguments.shapes("C", classes=classes)
    arguments.labels(np.inf, classes=classes)
    if len(set(classes)) != len(classes):
        message = f"classes={tuple(classes)}: name each class once"
        raise ValueError(message)

    def pick(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        place = np.full(max(labels.max(initial=0), *classes) + 1, -1, dtype=np.int32)
        place[list(classes)] = np.arange(len(classes))
        kept = place[labels] >= 0
        return images[kept], place[labels[kept]]

    train, test = pick(data.train_images, data.train_labels), pick(*data[2:])
    if missing := sorted(set(range(len(classes))) - set(train[1].tolist())):
        message = f"classes: no training image of {[classes[i] for i in missing]}"
        raise ValueError(message)
    return ImageData(*train, *test)


def mnist(data_dir: str | Path) -> ImageData:
    """Return the user's own MNIST (or another set in its format), 28 x 28 pixels, ten classes.

    Args:
        data_dir: a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte,
            t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each plain or as .gz (a dot before
            "idx" will do as well).

    Raises:
        FileNotFoundError: the folder or one of the files is not there.
        ValueError: a file is torn, is not of that format, or contradicts its partner.
    """
    folder = _folder(data_dir)
    parts = []
    for split in ("train", "t10k"):
        images = _idx(folder, f"{split}-images-idx3-ubyte", 3)
        labels = _idx(folder, f"{split}-labels-idx1-ubyte", 1)
        if images.shape[1:] != (28, 28) or len(images) != len(labels):
            message = (
                f"data_dir={data_dir}: {split} has images {images.shape} and {len(labels)} labels; "
                "expected (N, 28, 28) and N, so one of the files is not the right one"
            )
            raise ValueError(message)
        parts += [_unit(images[..., None]), _labels(data_dir, labels)]
    return ImageData(*parts)


def cifar10(data_dir: str | Path) -> ImageData:
    """Return the user's own CIFAR-10, 32 x 32 pixels, three colours, ten classes.

    Args:
        data_dir: a folder that holds the python version (cifar-10-python.tar.gz, or the folder
            cifar-10-batches-py with data_batch_1 to 5 and test_batch) or the binary version
            (cifar-10-binary.tar.gz, or cifar-10-batches-bin with data_batch_1.bin and so on), or
            that is such a folder itself. Archives are read without being extracted.

    Raises:
        FileNotFoundError: none of these is there.
        ValueError: a file is torn, is not of that format, or holds anything but arrays.
    """
    folder = _folder(data_dir)
    for names, decode in ((_CIFAR_PICKLES, _cifar_pickle), (_CIFAR_BINARIES, _cifar_binary)):
        contents = _cifar_contents(folder, names)
        if contents is None:
            continue
        batches = [decode(data_dir, name, contents[name]) for name in names]
        images = [_unit(b[0].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)) for b in batches]
        labels = [_labels(data_dir, b[1]) for b in batches]
        return ImageData(
            np.concatenate(images[:-1]), np.concatenate(labels[:-1]), images[-1], labels[-1]
        )
    message = (
        f"data_dir={data_dir}: no CIFAR-10 there; expected cifar-10-python.tar.gz, "
        "cifar-10-batches-py/, cifar-10-binary.tar.gz or cifar-10-batches-bin/ with all six batches"
    )
    raise FileNotFoundError(message)


_CIFAR_BINARIES = tuple(f"{name}.bin" for name in _CIFAR_PICKLES)


def _folder(data_dir: str | Path) -> Path:
    arguments.records((str, Path), data_dir=data_dir)
    folder = Path(data_dir)
    if not folder.is_dir():
        message = f"data_dir={data_dir}: no such folder; give the one with the data files"
        raise FileNotFoundError(message)
    return folder


def _unit(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) / 255


def _labels(data_dir: str | Path, labels: np.ndarray) -> np.ndarray:
    if labels.size and labels.max() > 9:
        message = f"data_dir={data_dir}: a label {labels.max()} is above 9: not one of ten classes"
        raise ValueError(message)
    return labels.astype(np.int32)


def _idx(folder: Path, name: str, rank: int) -> np.ndarray:
    """Read one idx file: two zero bytes, type, rank, sizes, data (all big-endian)."""
    spellings = [name, name.replace("-idx", ".idx")]
    candidates = [folder / f"{s}{ending}" for s in spellings for ending in ("", ".gz")]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        message = f"data_dir={folder}: {name} (or {name}.gz) is not there"
        raise FileNotFoundError(message)
    data = _bytes(path)
    header = 4 + 4 * rank
    if len(data) < header or data[:4] != bytes((0, 0, 8, rank)):
        message = f"data_dir={folder}: {path.name} is not an idx file of rank {rank} and bytes"
        raise ValueError(message)
    shape = tuple(np.frombuffer(data, ">u4", rank, 4).astype(int).tolist())
    promised = int(np.prod(shape, dtype=object))
    if len(data) - header != promised:
        message = (
            f"data_dir={folder}: {path.name} holds {len(data) - header} bytes where its header "
            f"promises {promised}: it is torn, fetch it again"
        )
        raise ValueError(message)
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _bytes(path: Path) -> bytes:
    """Return a file's content, decompressed where it is .gz, never more than the bound."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(_MAX_MEMBER_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        message = f"data_dir: {path} cannot be read ({error}): it is torn, fetch it again"
        raise ValueError(message) from error
    if len(data) > _MAX_MEMBER_BYTES:
        message = f"data_dir: {path} is larger than any file of this data set"
        raise ValueError(message)
    return data


def _cifar_contents(folder: Path, names: Sequence[str]) -> dict[str, bytes] | None:
    """Return the bytes of the six batches from a folder or an archive; None if not there."""
    binary = names[0].endswith(".bin")
    inner = folder / ("cifar-10-batches-bin" if binary else "cifar-10-batches-py")
    for place in (folder, inner):
        if all((place / name).is_file() for name in names):
            return {name: _bytes(place / name) for name in names}
    archive = folder / ("cifar-10-binary.tar.gz" if binary else "cifar-10-python.tar.gz")
    return _archive_contents(archive, names) if archive.is_file() else None


def _archive_contents(archive: Path, names: Sequence[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                name = Path(member.name).name
                wanted = name in names and member.isfile() and member.size <= _MAX_MEMBER_BYTES
                if wanted and (file := tar.extractfile(member)) is not None:
                    found[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        message = f"data_dir: {archive} cannot be read ({error}): it is torn, fetch it again"
        raise ValueError(message) from error
    if missing := [name for name in names if name not in found]:
        message = f"data_dir: {archive} lacks {', '.join(missing)}"
        raise ValueError(message)
    return found


def _cifar_binary(data_dir: str | Path, name: str, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    row = 1 + _CIFAR_PIXELS
    if not data or len(data) % row or len(data) > _CIFAR_ROWS * row:
        message = f"data_dir={data_dir}: {name} has {len(data)} bytes, no multiple of {row}: torn"
        raise ValueError(message)
    table = np.frombuffer(data, np.uint8).reshape(-1, row)
    return table[:, 1:], table[:, 0]


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that can make numpy arrays, and nothing else that is not a plain container."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the four callables that a pickled array needs."""
        if name == "_reconstruct" and module in (
            "numpy.core.multiarray",
            "numpy._core.multiarray",
        ):
            return _empty_array
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):
            return _latin
        message = f"it asks for {module}.{name}"
        raise pickle.UnpicklingError(message)


def _empty_array(kind: type, shape: tuple[int, ...], type_code: Any) -> np.ndarray:
    """What a pickled array begins with, before its content is set: always empty."""
    del kind, shape, type_code
    return np.ndarray.__new__(np.ndarray, (0,), "B")


def _latin(text: str, encoding: str) -> bytes:
    del encoding
    return text.encode("latin1")


def _cifar_pickle(data_dir: str | Path, name: str, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
        images = np.asarray(batch[b"data"])
        labels = np.asarray(batch[b"labels"])
        if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != _CIFAR_PIXELS:
            message = f"its data is {images.dtype}{images.shape}"
            raise ValueError(message)
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0:
            message = f"its labels are {labels.dtype}{labels.shape}"
            raise ValueError(message)
    except Exception as error:  # a pickle can fail in any way
        message = f"data_dir={data_dir}: {name} is no batch of CIFAR-10 ({error})"
        raise ValueError(message) from error
    return images, labels
