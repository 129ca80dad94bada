"""Event files, read back byte by byte and not by what wrote them."""

import struct
import sys

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from experiments import records, runner, tensorboard


def masked_crc32c(data: bytes) -> int:
    """Return the checksum that the TFRecord format asks for (CRC-32C, rotated, offset)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read(folder) -> list:
    """Return the values of the one event file of a folder."""
    (path,) = folder.iterdir()
    data, values = path.read_bytes(), []
    while data:
        (length, check) = struct.unpack("<QI", data[:12])
        assert check == masked_crc32c(data[:8])
        event = event_pb2.Event()
        event.ParseFromString(data[12 : 12 + length])
        values += [(value.tag, event.step, value) for value in event.summary.value]
        data = data[12 + length + 4 :]
    return values


def test_checks_figure_and_configuration(toy, tmp_path):
    assert runner.call(toy, ["fair_coin", f"--out={tmp_path}", "--tensorboard", "--seed=3"]) == 0
    assert runner.call(toy, ["fair_coin", f"--out={tmp_path}", "--tensorboard", "--seed=4"]) == 0
    paths = records.Paths(tmp_path, "experiments", "toys", "fair_coin")
    found = {tag: (step, value) for tag, step, value in read(paths.events)}
    record = records.load_record(paths.record)
    (measured,) = [c["measured"] for c in record["checks"] if c["name"] == "mean"]
    step, value = found["claims/mean"]
    assert step == 4
    assert value.simple_value == pytest.approx(measured)
    assert found["figure"][1].image.encoded_image_string.startswith(b"\x89PNG")
    text = found["record/text_summary"][1].tensor.string_val[0].decode()
    assert "num_tosses = 4000" in text
    assert "Verdict: holds" in text


def test_curves_and_chunks_are_means_over_seeds(tmp_path):
    from typing import NamedTuple

    from experiments import execution

    class Result(NamedTuple):
        step: np.ndarray
        loss: np.ndarray
        size: np.ndarray

    loss = np.arange(12.0).reshape(3, 1, 4)
    loss[:, :, 3] = np.nan  # what is not finite is left out
    result = Result(np.array([0, 1, 5, 9]), loss, np.ones((3, 2)))
    record = {"checks": [], "seed": 1, "config": {}, "title": "t", "verdict": "void"}
    from experiments import plotting

    image = plotting.render_png(lambda figure: figure.subplots())
    with tensorboard.Events(tmp_path / "events") as events:
        events.chunks("main")("mlp", np.array([2, 3]), {"loss": np.array([[1.0, 2.0], [3.0, 6.0]])})
        events.run(execution.Part(None, result, None), record, image)
    found = read(tmp_path / "events")
    curve = [(step, value.simple_value) for tag, step, value in found if tag == "curves/loss/0"]
    assert curve == [(0, 4.0), (1, 5.0), (5, 6.0)]
    chunk = [(step, v.simple_value) for tag, step, v in found if tag == "main/mlp/loss"]
    assert chunk == [(2, 2.0), (3, 4.0)]
    assert not any(tag.startswith("curves/size") for tag, _, _ in found)


def test_without_the_package_it_is_one_line(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert runner.call(toy, ["fair_coin", f"--out={tmp_path}", "--tensorboard"]) == 2
    assert "install the extra tensorboard" in capsys.readouterr().err
    assert runner.call(toy, ["fair_coin", f"--out={tmp_path}"]) == 0
