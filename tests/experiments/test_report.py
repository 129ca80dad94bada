"""From records to the page and the tables, without a browser."""

import html.parser
import json
import re

import pytest

from experiments import page, report
from experiments.contract import CallError

NAME = "experiments/curvature/edge_of_stability"


class Elements(html.parser.HTMLParser):
    """Every start tag with its attributes, and all text outside script and style."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.inside = [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text += data

    def every(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def built(entries, folder):
    return Elements(report.build(entries, folder).read_text(encoding="utf-8"))


def change(folder, **fields):
    path = folder / f"{NAME}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def verdict(entries, folder):
    claims = report.gather(entries, folder, report.read_records(folder))
    return next(claim.verdict for claim in claims if claim.entry.name == NAME)


def test_every_claim_is_there_with_its_verdict(built, entries):
    cards = {card["id"]: card["data-verdict"] for card in built.every("article")}
    assert cards == {
        "experiments/curvature/catapult": "void",
        "experiments/curvature/edge_of_stability": "holds",
        "experiments/grokking/delay_grows": "fails",
        "experiments/grokking/slingshot": "not reproduced",
        "theory_checks/in_context/loss_law": "unreadable",
        "theory_checks/in_context/one_step": "not run",
    }
    for entry in entries:
        assert f"python -m {entry.module}" in built.text
        assert entry.title in built.text


def test_what_a_record_says_is_shown(built):
    text = " ".join(built.text.split())
    for part in (
        "settled sharpness / (2/η)",
        "theory says 1; a finite oscillation lifts it",
        "3×10⁻¹³",
        "≤ 1×10⁻⁹",
        "0.3,0.35",
        "1c8fe1b1d4c914c40e1cc0c3cff88294c2e8216b",
        "neural-tangents 0.6.5",
        "886793b31080b4aedbf32754a0e9b1546b01591560dfcdaf6abff738f3ab873a",
        "6.1 compiling, 22.3 running",
        "812 MB",
        "No spike in 20,000 steps",
        "Unmet precondition: steps with finite loss.",
    ):
        assert part in text


def test_nothing_comes_from_outside(built, folder):
    for tag, attributes in built.tags:
        for name in ("src", "srcset", "poster", "data", "action", "style"):
            assert not (attributes.get(name) or "").startswith(("http", "//", "/")), tag
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
    for image in built.every("img"):
        assert (folder / image["src"]).exists()
        assert (image["width"], image["height"]) == ("2160", "900")
    assert {link.get("rel") for link in built.every("link")} == {"icon"}
    outside = [a["href"] for a in built.every("a") if ":" in a["href"]]
    assert set(outside) == {"https://arxiv.org/abs/2103.00065"}


def test_hostile_words_stay_words(entries, folder):
    hostile = '"><img src=x onerror=alert(1)><script>alert(1)</script>{{ 7 * 7 }}'
    record = json.loads((folder / f"{NAME}.json").read_text())
    check = {**record["checks"][1], "name": hostile, "why": hostile}
    change(
        folder,
        commit=hostile,
        platform=hostile,
        versions={hostile: hostile},
        config={hostile: hostile},
        preset=hostile,
        checks=[check],
    )
    built = Elements(report.build(entries, folder).read_text(encoding="utf-8"))
    assert len(built.every("script")) == 1
    assert len(built.every("img")) == 4
    assert built.text.count("{{ 7 * 7 }}") >= 6


def test_the_same_records_give_the_same_bytes(entries, folder):
    index, readme = report.build(entries, folder), folder / "README.md"
    first = index.read_bytes(), readme.read_bytes()
    assert report.build(entries[::-1], folder) == index
    assert (index.read_bytes(), readme.read_bytes()) == first
    assert str(folder).encode() not in first[0] + first[1]


def test_the_policy_names_the_digests_of_style_and_script(built, folder):
    import base64
    import hashlib

    text = (folder / "index.html").read_text(encoding="utf-8")
    (policy,) = (m["content"] for m in built.every("meta") if "http-equiv" in m)
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"schema": 2}', b'{"schema": 1}', b"null", b"[" * 100_000],
    ids=["empty", "torn", "list", "bytes", "schema", "bare", "null", "deep"],
)
def test_a_torn_record_is_unreadable_not_fatal(entries, folder, content):
    (folder / f"{NAME}.json").write_bytes(content)
    assert verdict(entries, folder) == "unreadable"
    assert "cannot be read" in report.build(entries, folder).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "fields",
    [
        {"checks": "none"},
        {"checks": [1]},
        {"checks": [{"name": "a", "role": "claim", "why": "b", "passed": True}]},
        {"verdict": "splendid"},
        {"verdict": ["holds"]},
        {"seconds": {"compile": 1}},
        {"seconds": {"compile": "x", "run": 1, "total": 2}},
        {"seconds": {"compile": float("nan"), "run": 1, "total": 2}},
        {"peak_memory_mb": None},
        {"config": []},
        {"versions": None},
        {"slug": "another"},
    ],
    ids=str,
)
def test_a_record_of_wrong_kinds_is_unreadable_not_fatal(entries, folder, fields):
    assert verdict(entries, folder) == "holds"
    change(folder, **fields)
    assert verdict(entries, folder) == "unreadable"
    report.build(entries, folder)


@pytest.mark.parametrize("numbers", [(None, 0.0, None), (0.0, 0.0, 0.0), (-1.7e308, None, 1.7e308)])
def test_odd_numbers_are_drawn(entries, folder, numbers):
    record = json.loads((folder / f"{NAME}.json").read_text())
    measured, lower, upper = numbers
    odd = {"measured": measured, "lower": lower, "upper": upper, "interval": [None, 1.0]}
    change(folder, checks=[{**record["checks"][1], **odd, "passed": False}], verdict="fails")
    assert verdict(entries, folder) == "fails"
    text = report.build(entries, folder).read_text(encoding="utf-8")
    assert not re.search(r'"-?(nan|inf)"', text)


def test_an_empty_folder_shows_every_claim_as_not_run(entries, tmp_path):
    built = Elements(report.build(entries, tmp_path / "new").read_text(encoding="utf-8"))
    assert {card["data-verdict"] for card in built.every("article")} == {"not run"}
    assert len(built.every("article")) == len(entries)
    assert report.build([], tmp_path / "none").exists()


def test_a_record_without_a_claim_is_named(entries, folder):
    rest = [entry for entry in entries if entry.name != NAME]
    text = report.build(rest, folder).read_text(encoding="utf-8")
    assert f'id="{NAME}"' not in text
    assert f"put the claim back: {NAME}." in text


def test_a_missing_or_foreign_figure_is_left_out(entries, folder):
    (folder / f"{NAME}.png").write_bytes(b"<svg onload=alert(1)>")
    (folder / "experiments/curvature/catapult.png").unlink()
    built = Elements(report.build(entries, folder).read_text(encoding="utf-8"))
    assert {image["src"].split("/")[1] for image in built.every("img")} == {"grokking"}
    assert built.text.count("There is no figure") == 2


def test_an_unwritable_folder_is_one_line_and_leaves_no_pieces(entries, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CallError, match="--out"):
        report.build(entries, tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_table_for_markdown(entries, folder):
    table = report.verdict_table(entries, folder)
    lines = table.splitlines()
    assert lines[0] == "| theme | claim | verdict | figure |"
    assert len(lines) == 2 + len(entries)
    cells = [re.split(r"(?<!\\)\|", line) for line in lines]
    assert {len(row) for row in cells} == {6}
    (row,) = (line for line in lines if "delay" in line)
    assert "<script" not in row
    assert "\\`pipes\\` stay \\*inert\\*" in row
    assert f"]({'figures'}/{NAME}.png) |" in table
    assert sum("not run" in line for line in lines) == 1
    report.build(entries, folder)
    beside = (folder / "README.md").read_text(encoding="utf-8")
    assert f"]({NAME}.png) |" in beside
    assert "holds 1, fails 1, not reproduced 1, void 1, not run 1, unreadable 1" in beside


def test_update_readme_changes_what_stands_between_the_markers_and_no_more():
    text = f"# A\n\n{report.BEGIN}\nold\n{report.END}\n\nrest\n"
    new = report.update_readme(text, "| new |\n")
    assert new == f"# A\n\n{report.BEGIN}\n| new |\n{report.END}\n\nrest\n"
    assert report.update_readme(new, "| new |\n") == new
    for broken in ("none", report.BEGIN, f"{report.END}{report.BEGIN}", f"{text}{report.BEGIN}"):
        with pytest.raises(ValueError, match="verdicts:begin"):
            report.update_readme(broken, "")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not finite"),
        (0.0, "0"),
        (-0.0, "0"),
        (1800.0, "1800"),
        (-2.5, "−2.5"),
        (0.123456, "0.1235"),
        (1.5e-7, "1.5×10⁻⁷"),
        (-3e20, "−3×10²⁰"),
        (2_000_000.0, "2×10⁶"),
    ],
)
def test_numbers(value, text):
    assert page.number(value) == text


def made(measured, lower, upper, interval=None):
    passed = measured is not None and (lower or measured) <= measured <= (upper or measured)
    numbers = {"measured": measured, "lower": lower, "upper": upper, "interval": interval}
    words = {"name": "a", "why": "b", "role": "claim", "passed": passed}
    return page.rows({"checks": [{**words, **numbers}]})[0][1][0]


def test_a_number_outside_its_bound_never_looks_as_if_it_were_on_it():
    row = made(1.050004, None, 1.05)
    assert (row["measured"], row["bounds"]) == ("1.050004", "≤ 1.05")
    assert made(1.02, None, 1.05)["measured"] == "1.02"


def test_a_bar_puts_its_marks_in_order():
    bar = made(2.0, 1.0, 4.0, [1.5, 3.0])["bar"]
    left, width = bar.band
    assert (left, left + width) == (10, 110)
    assert left < bar.interval[0] < bar.measured < bar.interval[1] < left + width
    assert made(5.0, 1.0, 4.0)["bar"].measured == 110
    one_sided = made(0.5, 1.0, None)["bar"]
    assert one_sided.band == (110, 10)
    assert one_sided.measured == 10
    decades = made(1e-12, None, 1e-10)["bar"], made(1e-11, 1e-14, 1e-8)["bar"]
    assert decades[1].measured == pytest.approx(60)
