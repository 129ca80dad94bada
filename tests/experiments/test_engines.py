"""The same claims by the local engine and on an embedded Ray cluster, while processes die.

Each engine runs one command over a tree of its own in which one claim is fine, one loses its
process in the middle, one loses it always, one has a defect and one asks for too much memory.
"""

import contextlib
import dataclasses
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import (
    catalogue,
    contract,
    engines,
    execution,
    preemption,
    provenance,
    ray_cluster,
    ray_engine,
    records,
    runner,
)
from tests.conftest import TOY

ENTRY = "experiments/toys/"
FAULTS = {  # what a claim does first, as lines at the head of `run`
    "fine": "pass",
    "dies_once": """
    if config.probability == 0.7 and not os.path.exists(os.environ["TOY_DIED"]):
        open(os.environ["TOY_DIED"], "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    """,
    "defect": "raise TypeError('a defect')",
    "too_large": "raise MemoryError",
}


def plant(root):
    """Copy the library and the machinery to `root`, with the toy claims and no other."""
    shutil.copytree(catalogue.ROOT / "dynamics", root / "dynamics")
    for tree in catalogue.TREES:
        (root / tree / "toys").mkdir(parents=True)
        for path in (catalogue.ROOT / tree).glob("*.py"):
            shutil.copy(path, root / tree)
    shutil.copytree(catalogue.ROOT / "experiments/templates", root / "experiments/templates")
    folder = root / "experiments" / "toys"
    (folder / "__init__.py").write_text('"""Toys."""\n')
    head = '    log = os.environ.get("TOY_LOG")\n'
    for name, fault in FAULTS.items():
        (folder / f"{name}.py").write_text(TOY.lstrip().replace(head, f"    {fault}\n{head}"))
    dies = "import os\nimport signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
    text = TOY.lstrip().replace("import dataclasses\n", f"{dies}import dataclasses\n")
    (folder / "dies_always.py").write_text(text)
    return root


def start(root, *flags, **variables):
    """Start `python -m experiments run` over the toys of `root`."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"TOY_DIED": str(root / "died"), "TOY_LOG": str(root / "log"), **variables}
    command = [sys.executable, "-m", "experiments", "run", *flags]
    return subprocess.Popen(
        command, cwd=root, env=environment, text=True, stdout=-1, stderr=-1, start_new_session=True
    )


@pytest.fixture(scope="module", params=["local", "ray"])
def command(request, tmp_path_factory):
    """Status, stdout, stderr, tree and engine of one run of all toys."""
    root = plant(tmp_path_factory.mktemp(request.param))
    flags = ["*/toys/*", "--out=out", "--jobs=2", "--retries=1", f"--engine={request.param}"]
    with start(root, *flags) as running:
        out, err = running.communicate(timeout=240)
    return running.returncode, out, err, root, request.param


def verdicts(err):
    """Return (verdict, slug) of each line of progress."""
    return re.findall(rf"^(\w+) +[\d.]+ s  {ENTRY}(\w+)", err, flags=re.MULTILINE)


def paths(root, slug):
    return records.Paths(root / "out", "experiments", "toys", slug)


def test_a_dead_process_costs_no_claim_but_its_own(command):
    status, out, err, _, _ = command
    assert status == 2, "a claim was refused"
    said = verdicts(err)
    assert sorted(said) == [
        ("crashed", "defect"),
        ("crashed", "dies_always"),
        ("holds", "dies_once"),
        ("holds", "fine"),
        ("refused", "too_large"),
        ("retried", "dies_always"),
        ("retried", "dies_once"),
    ], err
    for slug in ("dies_once", "dies_always"):
        places = [place for place, (_, name) in enumerate(said) if name == slug]
        assert said[places[0]][0] == "retried"
    assert out.count("crashed") == 2
    assert "died" in out, "the summary says why"
    assert "memory" in out


def test_a_claims_defect_is_shown_and_not_tried_again(command):
    _, out, err, _, _ = command
    assert err.count("TypeError: a defect") == 1
    assert "Traceback" in err
    assert "TypeError: a defect" in out


def test_files_land_at_the_driver_and_nothing_else(command):
    _, _, _, root, _ = command
    kinds = (".json", ".npz", ".png")
    folder = paths(root, "fine").folder
    assert sorted(path.name for path in folder.glob("[!.]*")) == sorted(
        f"{slug}{kind}" for slug in ("dies_once", "fine") for kind in kinds
    )
    for slug in ("dies_once", "fine"):
        record = records.load_record(paths(root, slug).record)
        _, origin = records.load_arrays(paths(root, slug).arrays)
        assert record["verdict"] == "holds"
        assert record["arrays_sha256"] == origin["arrays_sha256"]
        assert str(root) not in paths(root, slug).record.read_text()
    assert not paths(root, "dies_once").parts.exists()


def test_a_retried_claim_goes_on_from_what_was_kept(command):
    """The part before the death is not computed again: two claims and two controls in all."""
    _, _, _, root, _ = command
    assert sorted((root / "log").read_text().split()) == ["0.5", "0.5", "0.7", "0.7"]


def test_engines_and_this_process_give_the_same_bits(command, toy):
    _, _, _, root, _ = command
    results = [execution.compute_part(toy, part).result for part in parts(toy)]
    for slug in ("fine", "dies_once"):
        arrays, _ = records.load_arrays(paths(root, slug).arrays)
        for name, result in zip(("main", "loaded"), results, strict=True):
            np.testing.assert_array_equal(arrays[f"{name}/result/mean"], result.mean)


def parts(toy):
    return execution.configurations(toy, toy.configure()).values()


@pytest.mark.timeout(120)
def test_a_stopped_driver_takes_its_cluster_down(tmp_path):
    """It listens on the loopback interface alone; SIGTERM leaves no process, folder or lock."""
    root = plant(tmp_path)
    slow = root / "experiments/toys/fine.py"
    wait = "import time\nopen('began', 'w').close()\ntime.sleep(60)\n"
    slow.write_text(slow.read_text().replace("import dataclasses\n", f"{wait}import dataclasses\n"))
    flags = ["*/toys/fine", "--out=out", "--engine=ray"]
    with tempfile.TemporaryDirectory(prefix="td-") as folder:  # a short name
        with start(root, *flags, TMPDIR=folder) as running:
            until(lambda: (root / "began").exists())
            assert len(processes(folder)) > 3, "a cluster runs"
            assert listening(processes(folder)) == {"127.0.0.1"}
            running.terminate()
            said = running.communicate(timeout=60)[1]
        assert running.returncode == preemption.STATUS, said
        until(lambda: not processes(folder))
        assert not list(Path(folder).iterdir())
    assert not paths(root, "fine").record.exists()
    with records.exclusive(paths(root, "fine")):
        pass


@pytest.mark.timeout(120)
def test_a_pool_of_processes_is_preempted_too(tmp_path):
    """SIGTERM while a claim runs: it ends after the part at hand, and --resume does the rest."""
    root = plant(tmp_path)
    slow = root / "experiments/toys/fine.py"
    wait = "    import time\n    open('began', 'w').close()\n    time.sleep(3)\n"
    slow.write_text(
        slow.read_text().replace(
            "    keys = jax.random.split", f"{wait}    keys = jax.random.split"
        )
    )
    flags = ["*/toys/fine", "--out=out", "--jobs=2"]
    with start(root, *flags) as running:
        until(lambda: (root / "began").exists())
        running.terminate()
        said = running.communicate(timeout=60)[1]
    assert running.returncode == preemption.STATUS, said
    assert "preempted" in said
    assert not paths(root, "fine").record.exists()
    (root / "log").unlink()
    with start(root, *flags, "--resume") as running:
        running.communicate(timeout=60)
    assert running.returncode == 0
    assert (root / "log").read_text().split() == ["0.7"], "the control alone was left"


POOL = """
import os
import signal
import time

from experiments import engines, preemption, process_pool


def told_twice(task):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    return preemption.asked()


engines.perform = told_twice
if __name__ == "__main__":
    pool = process_pool._pool()
    print(pool.submit(process_pool._perform, None).result(), flush=True)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 60).result()
"""


def test_a_pool_hears_a_scheduler_once_and_ends_with_its_parent(tmp_path):
    """Slurm tells every process, the parent passes it on; and kill -9 leaves nobody behind."""
    path = tmp_path / "pool.py"
    path.write_text(POOL)
    environment = {**os.environ, "PYTHONPATH": str(catalogue.ROOT)}
    with subprocess.Popen([sys.executable, path], env=environment, text=True, stdout=-1) as parent:
        assert parent.stdout.readline() == "True\n"
        child = Path("/proc") / parent.stdout.readline().strip()
        assert child.exists()
        parent.kill()
    until(lambda: not child.exists(), 10)


def until(condition, seconds=60.0):
    """Wait until `condition()`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def processes(folder):
    """Return the ids of all processes whose command line or environment names `folder`."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            text = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
        except OSError:
            continue
        if folder.encode() in text:
            found.add(int(path.name))
    return found


def listening(numbers):
    """Return the addresses on which any of the processes listens."""
    sockets = set()
    for number in numbers:
        for handle in Path(f"/proc/{number}/fd").glob("*"):
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(handle))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                last = bytes.fromhex(words[1].partition(":")[0])[-4:]  # also of an IPv4 in IPv6
                found.add(".".join(map(str, reversed(last))))
    return found


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(name="ray", jobs=0), "--jobs=0"),
        (dict(name="ray", jobs=2, cluster=dict(address="auto")), "--ray_address=auto"),
        (dict(name="ray", jobs=2, cluster=dict(cpus_per_claim=2)), "--cpus_per_claim=2"),
        (dict(name="ray", jobs=None, cluster=dict(gpus_per_claim=1.5)), "--gpus_per_claim=1.5"),
        (dict(name="ray", jobs=None, cluster=dict(gpus_per_claim=-1)), "--gpus_per_claim=-1"),
        (dict(name="ray", jobs=None, cluster=dict(gpus_per_claim=float("nan"))), "nan"),
        (dict(name="local", jobs=2, retries=-1), "--retries=-1"),
        (dict(name="local", jobs=2, cluster=dict(address="auto")), "--ray_address=auto"),
        (dict(name="local", jobs=2, cluster=dict(gpus_per_claim=1)), "--gpus_per_claim=1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, named):
    def call(cluster=None, **rest):
        engines.choose(**rest, cluster=engines.Cluster(**cluster or {}))

    with pytest.raises(contract.CallError, match=re.escape(named)):
        call(**options)


def test_an_address_where_nothing_listens_is_refused_at_once(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        engine = engines.choose("ray", None, cluster=engines.Cluster(address=address))
        with pytest.raises(contract.CallError, match=f"--ray_address={address}"):
            next(engine([]))


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(contract.CallError, match="cluster"):
        engines.choose("ray", None)


def test_the_longest_claims_start_first(tmp_path):
    entries = catalogue.find(["*/signal/*"])[:3]
    tasks = [engines.Task(entry, runner.Settings(out=tmp_path)) for entry in entries]
    committed = [records.load_record(task.paths.record) for task in map(in_figures, tasks)]
    for task, record, seconds in zip(tasks[:2], committed[:2], (1.0, 1e6), strict=True):
        record["seconds"]["total"] = seconds
        records.save_record(task.paths.record, record)
    known = committed[2]["seconds"]["total"]
    assert 1.0 < known < 1e6
    assert engines.longest_first(tasks) == [tasks[1], tasks[2], tasks[0]]


def in_figures(task):
    settings = dataclasses.replace(task.settings, out=catalogue.ROOT / "figures")
    return dataclasses.replace(task, settings=settings)


def test_a_retry_never_returns_an_older_record(tmp_path):
    """A claim that dies is not said to hold because it held before."""
    (entry,) = catalogue.find(["tanh_inverse_depth_kernel"])
    task = engines.Task(entry, runner.Settings(out=tmp_path))
    assert task.going_on().settings.resume
    records.save_record(task.paths.record, records.load_record(in_figures(task).paths.record))
    assert not task.going_on().settings.resume


def test_a_second_look_is_not_skipped_for_the_first(toy, toy_path, tmp_path, monkeypatch):
    """What has held in float32 is not done before --recheck has seen it in float64."""
    monkeypatch.setattr(catalogue, "load", lambda entry: toy)
    settings = runner.Settings(out=tmp_path / "out", resume=True)
    once = engines.Task(catalogue.read(toy_path), settings)
    twice = dataclasses.replace(once, settings=dataclasses.replace(settings, recheck=True))
    assert engines.perform(once).verdict == "holds"
    assert ray_engine._done_before(once).verdict == "holds"
    assert ray_engine._done_before(twice) is None
    assert engines.perform(twice).verdict == "holds"
    assert ray_engine._done_before(twice).verdict == "holds"


@pytest.mark.parametrize(
    ("gpus", "variables"),
    [
        (0.0, {"JAX_PLATFORMS": "cpu"}),
        (0.25, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.225"}),
        (1.0, {}),
    ],
)
def test_a_claim_keeps_to_the_devices_it_asked_for(monkeypatch, gpus, variables):
    monkeypatch.setattr(os, "environ", {})
    ray_engine._choose_device(gpus)
    assert os.environ == variables


def test_what_is_shipped_is_all_code_that_moves_a_number(tmp_path):
    """A worker with the shipped files alone has the driver's digest and its commit."""
    ray_cluster.ship(tmp_path)
    assert provenance.source_digest(tmp_path) == provenance.source_digest(catalogue.ROOT)
    assert provenance.commit(tmp_path) == provenance.commit(catalogue.ROOT)


def test_a_worker_with_other_code_refuses(tmp_path):
    (entry,) = catalogue.find(["tanh_inverse_depth_kernel"])
    task = engines.Task(entry, runner.Settings(out=tmp_path))
    request = ray_engine.Request(task, {}, "0" * 64, "scratch", 1.0)
    delivery = ray_engine.perform_remotely(request)
    assert (delivery.outcome.verdict, delivery.files) == ("refused", {})
    assert "other code" in delivery.outcome.remark


def test_nothing_a_worker_returns_lands_outside_the_folder(tmp_path):
    landed = records.Paths(tmp_path / "out", "experiments", "toys", "fine")
    for name in ("../escaped", str(tmp_path / "escaped")):
        with pytest.raises(contract.CallError, match="outside"):
            ray_engine.land({name: b""}, landed)
    assert not (tmp_path / "escaped").exists()
