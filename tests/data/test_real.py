"""The user's own files, in small: good ones, torn ones, hostile ones."""

import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from sklearn import datasets

from dynamics.data import real

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (7, 28, 28), dtype=np.uint8)
LABELS = RANDOM.integers(0, 10, 7, dtype=np.uint8)


def idx(array):
    sizes = b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


def write_mnist(folder, ending="", dot="-", pack=lambda data: data):
    for split, count in (("train", 7), ("t10k", 3)):
        for name, array in ((f"{split}-images{dot}idx3-ubyte", IMAGES[:count]),
                            (f"{split}-labels{dot}idx1-ubyte", LABELS[:count])):  # fmt: skip
            (folder / f"{name}{ending}").write_bytes(pack(idx(array)))


def test_digits_are_scikit_learns_in_a_fixed_order():
    data = real.digits(1500)
    together = np.concatenate([data.train_images, data.test_images])[..., 0]
    original = datasets.load_digits().images / 16
    assert data.train_images.dtype == np.float32
    assert data.train_labels.dtype == np.int32
    assert (together.min(), together.max()) == (0, 1)
    np.testing.assert_array_equal(
        np.sort(together.reshape(1797, -1) @ np.arange(64)),
        np.sort((original.reshape(1797, -1).astype(np.float32)) @ np.arange(64)),
    )
    np.testing.assert_array_equal(data.train_images, real.digits(1500).train_images)
    counts = np.bincount(np.concatenate([data.train_labels, data.test_labels]))
    np.testing.assert_array_equal(counts, np.bincount(datasets.load_digits().target))


@pytest.mark.parametrize("num_train", [0, -1, 1797])
def test_digits_need_a_split(num_train):
    with pytest.raises(ValueError, match="num_train"):
        real.digits(num_train)


def test_select_classes():
    chosen = real.select_classes(real.digits(), (8, 3))
    assert set(chosen.train_labels) == {0, 1}
    assert (chosen.train_labels == 0).sum() == (real.digits().train_labels == 8).sum()
    for classes in ((3, 3), (3, 11)):
        with pytest.raises(ValueError, match="classes"):
            real.select_classes(real.digits(), classes)


@pytest.mark.parametrize(
    "how", [{}, {"ending": ".gz", "pack": gzip.compress}, {"dot": "."}], ids=["idx", "gz", "dot"]
)
def test_mnist(tmp_path, how):
    write_mnist(tmp_path, **how)
    data = real.mnist(tmp_path)
    np.testing.assert_allclose(data.train_images[..., 0] * 255, IMAGES, rtol=1e-6)
    np.testing.assert_array_equal(data.train_labels, LABELS)
    assert data.test_images.shape == (3, 28, 28, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(IMAGES)[:-1], "torn"),
        (idx(IMAGES)[:9], "idx"),
        (b"", "idx"),
        (idx(LABELS), "rank 3"),
        (b"\0\0\x0d\3" + idx(IMAGES)[4:], "idx"),
        (bytes((0, 0, 8, 3)) + b"\xff" * 12, "torn"),
        (idx(IMAGES[:5]), "labels"),
        (idx(IMAGES[:, :9]), "28"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, content, message):
    write_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        real.mnist(tmp_path)
    assert "data_dir" in str(caught.value)
    assert "train" in str(caught.value)


def test_labels_above_nine_are_refused(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([1, 2, 10], np.uint8)))
    with pytest.raises(ValueError, match="10 is above 9"):
        real.mnist(tmp_path)


def test_a_gzip_bomb_is_not_inflated(tmp_path, monkeypatch):
    monkeypatch.setattr(real, "_MAX_MEMBER_BYTES", 10_000)
    write_mnist(tmp_path, ".gz", pack=lambda data: gzip.compress(data + bytes(10**6)))
    with pytest.raises(ValueError, match="larger"):
        real.mnist(tmp_path)


@pytest.mark.parametrize("load", [real.mnist, real.cifar10])
def test_missing_files_are_named(tmp_path, load):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="data_dir"):
            load(folder)


PIXELS = RANDOM.integers(0, 256, (6, 4, 3072), dtype=np.uint8)
CLASSES = RANDOM.integers(0, 10, (6, 4))
NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def python_batch(index):
    content = {b"data": PIXELS[index], b"labels": CLASSES[index].tolist(), b"batch_label": b"x"}
    return pickle.dumps(content, protocol=2)


def binary_batch(index):
    return np.hstack([CLASSES[index][:, None].astype(np.uint8), PIXELS[index]]).tobytes()


def batches(binary):
    make = binary_batch if binary else python_batch
    return {f"{name}.bin" if binary else name: make(i) for i, name in enumerate(NAMES)}


def write_tar(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("place", ["itself", "inner", "archive"])
@pytest.mark.parametrize("binary", [False, True], ids=["python", "binary"])
def test_cifar(tmp_path, binary, place):
    inner = "cifar-10-batches-bin" if binary else "cifar-10-batches-py"
    if place == "archive":
        name = "cifar-10-binary.tar.gz" if binary else "cifar-10-python.tar.gz"
        write_tar(tmp_path / name, {f"{inner}/{n}": d for n, d in batches(binary).items()})
    else:
        folder = tmp_path if place == "itself" else tmp_path / inner
        folder.mkdir(exist_ok=True)
        for name, data in batches(binary).items():
            (folder / name).write_bytes(data)
    data = real.cifar10(tmp_path)
    assert data.train_images.shape == (20, 32, 32, 3)
    np.testing.assert_array_equal(data.train_labels, CLASSES[:5].ravel())
    # In the files the colour is the slowest axis: pixel (row 1, column 2) of green of image 3.
    assert data.test_images[3, 1, 2, 1] * 255 == pytest.approx(PIXELS[5, 3, 1024 + 32 + 2])


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil_was_here",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Evil()),
        pickle.dumps({b"data": Evil(), b"labels": []}),
        pickle.dumps({b"data": np.array([Evil()], dtype=object), b"labels": [1]}),
        pickle.dumps({b"data": PIXELS[0][:, :9], b"labels": [1, 2, 3, 4]}),
        pickle.dumps({b"data": PIXELS[0], b"labels": [1]}),
        pickle.dumps({b"data": PIXELS[0], b"labels": [1, 2, 3, -4]}),
        pickle.dumps([1, 2]),
        python_batch(0)[:-40],
        b"",
    ],
)
def test_a_hostile_or_damaged_pickle_does_nothing(tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, data in {**batches(False), "data_batch_2": content}.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match="data_batch_2") as caught:
        real.cifar10(tmp_path)
    assert "data_dir" in str(caught.value)
    assert not (tmp_path / "evil_was_here").exists()


def test_an_archive_cannot_write_outside_and_a_torn_one_is_named(tmp_path):
    inner = tmp_path / "data"
    inner.mkdir()
    files = {f"../{name}": data for name, data in batches(False).items()}
    write_tar(inner / "cifar-10-python.tar.gz", {**files, "../escaped": b"x"})
    assert real.cifar10(inner).train_images.shape == (20, 32, 32, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    archive = inner / "cifar-10-python.tar.gz"
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"torn|lacks"):
        real.cifar10(inner)


@pytest.mark.parametrize("data", [b"", binary_batch(0)[:-1], b"x" * 5])
def test_a_torn_binary_is_named(tmp_path, data):
    for name, content in {**batches(True), "data_batch_3.bin": data}.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="data_batch_3"):
        real.cifar10(tmp_path)
