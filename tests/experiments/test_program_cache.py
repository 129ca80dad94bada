import os
import subprocess
import sys
import time
import zlib

from experiments import program_cache

WHOLE = zlib.compress(bytes(range(256)) * 40)
TORN = {"half": WHOLE[: len(WHOLE) // 2], "empty": b"", "one byte short": WHOLE[:-1]}


def names(folder):
    return {path.name for path in folder.glob("*-cache")}


def test_what_was_cut_short_goes_and_what_is_whole_stays(tmp_path):
    program_cache.drop_torn(tmp_path / "not there yet")
    for turn in ("first", "second"):  # torn after the first look
        (tmp_path / f"{turn}-cache").write_bytes(WHOLE)
        for name, content in TORN.items():
            (tmp_path / f"{name}-cache").write_bytes(content)
        program_cache.drop_torn(tmp_path)
        assert names(tmp_path) >= {f"{turn}-cache"}
        assert not names(tmp_path) & {f"{name}-cache" for name in TORN}
        assert not list(tmp_path.glob(".checked.*"))
    assert names(tmp_path) == {"first-cache", "second-cache"}


def test_what_has_been_looked_at_is_not_read_again(tmp_path, monkeypatch):
    entry = tmp_path / "a-cache"
    entry.write_bytes(WHOLE)
    hour_ago = time.time() - 3600
    os.utime(entry, (hour_ago, hour_ago))
    read = []
    monkeypatch.setattr(program_cache, "_torn", lambda content: bool(read.append(content)))
    for _ in range(2):
        program_cache.drop_torn(tmp_path)
    assert read == [WHOLE]


def test_a_run_after_a_kill_within_such_a_write_compiles_once_and_says_nothing(tmp_path):
    code = (
        "import pathlib, sys, jax; from experiments import program_cache;"
        "program_cache.keep(pathlib.Path(sys.argv[1]));"
        "jax.jit(lambda x: x + 1)(jax.numpy.ones(3)).block_until_ready()"
    )
    words = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "compiled")]
    run = lambda: subprocess.run(words, check=True)
    run()
    entries = sorted((tmp_path / "compiled").glob("*-cache"))
    assert entries
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-5])
    run()  # -W error: JAX's warning would end it
    assert sorted((tmp_path / "compiled").glob("*-cache")) == entries
    assert all(zlib.decompress(entry.read_bytes()) for entry in entries)
