"""A small set of claims, records and figures, one of each verdict."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import catalogue, checks, plotting, records

HOSTILE = "Scripts <script>document.title = 'taken'</script> & | `pipes` stay *inert*"
LONG = "A control of a rather long name misses the settled sharpness over (2 + 2β)/η in each seed"
CLAIMS = {  # name: (title, verdict, known_failure)
    "experiments/curvature/edge_of_stability": ("Sharpness settles at 2/η", "holds", None),
    "experiments/curvature/catapult": ("A large first step ends flat", "void", None),
    "experiments/grokking/delay_grows": (HOSTILE, "fails", None),
    "experiments/grokking/slingshot": (
        "Late spikes come before generalisation",
        "fails",
        "No spike in 20,000 steps; the paper saw them with float32 Adam after 50,000.",
    ),
    "theory_checks/in_context/one_step": ("One layer is one step", None, None),
    "theory_checks/in_context/loss_law": ("The loss follows its law", "torn", None),
}


def entry(name: str) -> catalogue.Entry:
    """Return the entry of one of CLAIMS."""
    tree, theme, slug = name.split("/")
    title, _, known_failure = CLAIMS[name]
    return catalogue.Entry(
        tree=tree,
        theme=theme,
        slug=slug,
        title=title,
        claim=f"This is what {slug} says about networks, at some length, so that a line is full "
        "and the next begins: gradient descent with step η raises the sharpness to 2/η.",
        control="With a tenth of the step the sharpness stays below its edge.",
        reference="Cohen et al. 2021, arXiv:2103.00065 (CIFAR-10 there, digits here).",
        paper_ids=("P122", "P288") if theme == "curvature" else ("P28",),
        pilot_seeds=(101,),
        known_failure=known_failure,
        path=Path(f"{name}.py"),
    )


def found(verdict: str) -> list[checks.Check]:
    """Return checks that come to `verdict`."""
    ready = -1.0 if verdict == "void" else 3.0
    measured = 1.09 if verdict == "fails" else 1.02
    settled = checks.close(
        "settled sharpness / (2/η)",
        measured,
        1.0,
        atol=0.05,
        interval=(measured - 0.02, measured + 0.015),
        why="theory says 1; a finite oscillation lifts it: pilots 1.01 to 1.034",
    )
    small = checks.below("largest error", 3e-13, 1e-9, why="round-off")
    return [
        checks.above("steps with finite loss", ready, 0, why="lower the step", role="precondition"),
        settled,
        small,
        checks.above(LONG, 31.5, 1.05, why="half the step", role="control"),
    ]


def record(name: str) -> dict:
    """Return the record of one of CLAIMS."""
    claim = entry(name)
    verdict = CLAIMS[name][1]
    return {
        "schema": records.SCHEMA,
        **{key: getattr(claim, key) for key in ("slug", "tree", "theme", "title")},
        "paper_ids": list(claim.paper_ids),
        "verdict": verdict,
        "checks": [records.encode_check(check) for check in found(verdict)],
        "config": {"learning_rates": [0.3, 0.35], "width": 64, "centred": True, "seed": 1},
        "preset": "default",
        "seed": 1,
        "num_seeds": 5,
        "seconds": {"compile": 6.1, "run": 22.3, "total": 28.4},
        "peak_memory_mb": 812.4,
        "platform": "cpu (x86_64, 2 cores)",
        "device_count": 1,
        "precision": "float32",
        "matmul_precision": "highest",
        "versions": {"python": "3.11.7", "jax": "0.10.1", "neural-tangents": "0.6.5"},
        "commit": "1c8fe1b1d4c914c40e1cc0c3cff88294c2e8216b",
        "arrays_sha256": "886793b31080b4aedbf32754a0e9b1546b01591560dfcdaf6abff738f3ab873a",
        "doctor": {"failed": [], "mend": None},
    }


def draw(figure) -> None:
    """Draw a band and a line."""
    rising = 2 - np.exp(-np.arange(50) / 10)
    values = rising + 0.05 * np.random.default_rng(0).normal(size=(5, 50))
    axes = figure.subplots()
    plotting.band(axes, np.arange(50), values, label="networks")
    plotting.threshold(axes, 2.0, label="2/η")
    axes.set(xlabel="step", ylabel="sharpness")
    axes.legend()


@pytest.fixture(scope="session")
def entries() -> list[catalogue.Entry]:
    """The claims of the set."""
    return [entry(name) for name in CLAIMS]


@pytest.fixture(scope="session")
def drawing() -> bytes:
    """The figure of each claim of the set."""
    return plotting.render_png(draw)


def fill(out: Path, drawing: bytes) -> Path:
    """Write the records and figures of the set below `out`."""
    for name, (_, verdict, _) in CLAIMS.items():
        path = out / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if verdict == "torn":
            path.write_text('{"schema": 1, "slug":')
        elif verdict:
            path.write_text(json.dumps(record(name)))
            path.with_suffix(".png").write_bytes(drawing)
    return out


@pytest.fixture
def folder(tmp_path, drawing) -> Path:
    """A folder of its own with the records and figures of the set."""
    return fill(tmp_path / "figures", drawing)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory, drawing) -> Path:
    """The same for tests that change nothing in it."""
    return fill(tmp_path_factory.mktemp("shared") / "figures", drawing)
