import subprocess
import sys

import pytest

from experiments import catalogue, contract

ENTRIES = catalogue.walk()
HEADER = '"""Title.\n\nClaim      c\nControl    d\nReference  e\n"""\n'


def test_the_header_is_read_without_importing(toy_path):
    entry = catalogue.read(toy_path)
    assert entry.name == "experiments/toys/fair_coin"
    assert entry.module == "experiments.toys.fair_coin"
    assert entry.title == "The mean of coin tosses is one half"
    assert entry.claim == "The mean of tosses of a fair coin is 1/2."
    assert entry.reference == "Bernoulli 1713."
    assert (entry.paper_ids, entry.pilot_seeds) == (("P0",), (101,))
    assert entry.known_failure is None


def test_a_paragraph_goes_on_over_lines_and_blank_lines(toy_path):
    text = toy_path.read_text()
    toy_path.write_text(text.replace("fair coin is 1/2.", "fair coin\n           is\n\n  half."))
    assert catalogue.read(toy_path).claim == "The mean of tosses of a fair coin is half."


def test_known_failure_is_read(toy_path):
    text = toy_path.read_text().replace("    plot,\n", "    plot,\n    known_failure='no',\n")
    toy_path.write_text(text)
    assert catalogue.read(toy_path).known_failure == "no"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "Claim, Control, Reference"),
        (HEADER.replace("Control", "Remark "), "Control"),
        (HEADER, "PAPER_IDS"),
        (HEADER + "PAPER_IDS = ('P1',)", "EXPERIMENT"),
        (HEADER + "PAPER_IDS = tuple(x)\nEXPERIMENT = 1", "literal"),
        ("def", "line 1"),
    ],
)
def test_a_file_that_is_no_claim_is_named(toy_path, text, message):
    toy_path.write_text(text)
    with pytest.raises(contract.CallError, match=message) as caught:
        catalogue.walk(toy_path.parents[2])
    assert "fair_coin.py" in str(caught.value)


def test_patterns(toy_path):
    root = toy_path.parents[2]
    for pattern in ("*", "*/toys/*", "fair_*", "experiments/toys/fair_coin"):
        assert [e.slug for e in catalogue.find([pattern], root)] == ["fair_coin"]
    with pytest.raises(contract.CallError, match="no_such"):
        catalogue.find(["*", "no_such"], root)


def test_listing_imports_neither_jax_nor_any_claim():
    code = (
        "import sys; from experiments.__main__ import main; status = main(['list']);"
        "heavy = {'jax', 'flax', 'scipy', 'matplotlib'} & set(sys.modules);"
        "claims = [m for m in sys.modules if m.count('.') == 2 and m.startswith('experiments.')];"
        "sys.exit(f'{heavy} {claims}' if heavy or claims or status else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
class TestEveryClaim:
    def test_has_pilot_seeds_that_are_not_reported(self, entry):
        assert not set(entry.pilot_seeds) & set(range(1, 101)), "1 to 100 are for reporting"

    def test_has_papers_and_a_file_of_bearable_length(self, entry):
        assert entry.paper_ids
        assert len(entry.path.read_text().splitlines()) <= 300  # aim at 150

    def test_theme_says_what_it_is(self, entry):
        init = (entry.path.parent / "__init__.py").read_text()
        assert init.startswith('"""')
