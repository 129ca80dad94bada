"""The page in a real browser, driven through chromedriver's plain HTTP interface."""

import base64
import itertools
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from experiments import page, report

pytestmark = pytest.mark.browser

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --window-size=1280,900"
).split()
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
TAB, ESCAPE, ENTER = "\ue004", "\ue00c", "\ue007"


class Browser:
    """One session of a headless browser."""

    def __init__(self, service: str, profile: Path):
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        self.address = f"{service}/session"
        made = self.call("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self.address += f"/{made['sessionId']}"

    def call(self, method: str, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.address + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with DIRECT.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(error.read().decode()) from None

    def open(self, url: str) -> None:
        self.call("POST", "/url", {"url": "about:blank"})  # else a new hash loads nothing anew
        self.call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments):
        return self.call("POST", "/execute/sync", {"script": script, "args": arguments})

    def wait(self, script: str):
        body = {"script": f"const done = arguments[0]; {script}", "args": []}
        return self.call("POST", "/execute/async", body)

    def press(self, *keys: str) -> None:
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "k", "actions": strokes}]})

    def click(self, selector: str) -> None:
        found = self.call("POST", "/element", {"using": "css selector", "value": selector})
        self.call("POST", f"/element/{next(iter(found.values()))}/click", {})

    def command(self, name: str, **parameters):
        body = {"cmd": name, "params": parameters}
        return self.call("POST", "/goog/cdp/execute", body)

    def scheme(self, value: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": value}]
        self.command("Emulation.setEmulatedMedia", features=features)

    def size(self, width: int, height: int) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))

    def visible(self) -> list[str]:
        return self.run(
            "return [...document.querySelectorAll('article.claim')]"
            ".filter(card => card.getClientRects().length).map(card => card.id)"
        )

    def count(self) -> str:
        return self.run("return document.getElementById('count').textContent")


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    if CHROMIUM is None or CHROMEDRIVER is None:
        pytest.skip("there is no chromium with chromedriver")
    driver = subprocess.Popen(
        [CHROMEDRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        ports = (re.search(r"successfully on port (\d+)", line) for line in driver.stdout)
        port = next(match[1] for match in ports if match)
        browser = Browser(f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("profile"))
        try:
            yield browser
        finally:
            browser.call("DELETE", "")
    finally:
        driver.terminate()
        driver.wait(timeout=20)
        driver.stdout.close()


@pytest.fixture(scope="module")
def address(shared_folder, entries):
    return report.build(entries, shared_folder).as_uri()


@pytest.fixture
def browser(session, address):
    session.size(1280, 900)
    session.scheme("light")
    session.open(address)
    return session


ALL = {
    "experiments/curvature/catapult",
    "experiments/curvature/edge_of_stability",
    "experiments/grokking/delay_grows",
    "experiments/grokking/slingshot",
    "theory_checks/in_context/loss_law",
    "theory_checks/in_context/one_step",
}


def test_search_narrows_the_cards_and_says_how_many(browser):
    assert set(browser.visible()) == ALL
    assert browser.count() == "6 of 6 claims"
    browser.press("/")
    browser.press(*"p122")
    assert {name.split("/")[1] for name in browser.visible()} == {"curvature"}
    assert browser.count() == "2 of 6 claims"
    assert browser.run("return location.search") == "?q=p122"
    browser.press(" ", *"settles")  # every word must be found
    assert browser.visible() == ["experiments/curvature/edge_of_stability"]
    browser.press(*"zzz")
    assert browser.visible() == []
    assert browser.run("return document.getElementById('nothing').getClientRects().length") == 1
    browser.press(ESCAPE)
    assert set(browser.visible()) == ALL
    assert browser.run("return location.search") == ""


@pytest.mark.parametrize("verdict", page.VERDICTS)
def test_the_verdict_filter(browser, verdict):
    button = f"button[data-value='{verdict}']"
    assert browser.run(f'return document.querySelector("{button}").ariaPressed') == "false"
    browser.click(button)
    assert browser.run(f'return document.querySelector("{button}").ariaPressed') == "true"
    (name,) = browser.visible()
    shown = browser.run(
        f'return document.getElementById("{name}").querySelector(".verdict").innerText'
    )
    assert shown.endswith(verdict)


def test_filters_combine_and_are_kept_in_the_address(browser):
    browser.click("button[data-value='fails']")
    browser.click("button[data-value='void']")
    assert len(browser.visible()) == 2
    browser.click("button[data-value='grokking']")
    assert browser.visible() == ["experiments/grokking/delay_grows"]
    headings = "return [...document.querySelectorAll('main h2')].filter(h => h.offsetParent).length"
    assert browser.run(headings) == 1
    browser.open(browser.run("return location.href"))
    assert browser.visible() == ["experiments/grokking/delay_grows"]
    browser.click("#clear")
    assert set(browser.visible()) == ALL
    assert browser.run("return document.activeElement.id") == "search"


def test_a_deep_link_survives_the_filters(browser, address):
    name = "theory_checks/in_context/one_step"
    browser.open(f"{address}?verdict=holds#{name}")
    assert browser.visible() == ["experiments/curvature/edge_of_stability", name]
    top = f"return document.getElementById('{name}').getBoundingClientRect().top"
    inside = browser.run(f"const top = (() => {{ {top} }})(); return [top, innerHeight]")
    assert -1 <= inside[0] < inside[1]
    browser.click("button[data-value='fails']")  # a new filter is a new question
    assert name not in browser.visible()
    assert browser.run("return location.hash") == ""
    browser.open(f"{address}#{name}")
    assert set(browser.visible()) == ALL
    assert browser.run("return location.hash") == f"#{name}"
    at_end = "return scrollY + innerHeight + 2 >= document.documentElement.scrollHeight"
    assert abs(browser.run(top)) < 100 or browser.run(at_end)


def test_what_is_found_is_in_sight_of_a_reader_far_down(browser):
    browser.run("scrollTo(0, document.documentElement.scrollHeight)")
    browser.click("button[data-value='curvature']")
    top = "return document.querySelector('article.claim:not([hidden])').getBoundingClientRect().top"
    assert 0 <= browser.run(top) < 300


def test_a_link_within_the_page_reaches_a_claim_that_the_filters_hide(browser):
    browser.click("button[data-value='holds']")
    browser.click(".contents summary")
    browser.click(".contents a[href='#experiments/grokking/slingshot']")
    browser.wait("setTimeout(done, 50)")
    assert "experiments/grokking/slingshot" in browser.visible()
    assert browser.run("return location.search") == "?verdict=holds"


def test_the_keyboard_reaches_everything_in_order(browser):
    reached = []
    for _ in range(16):
        browser.press(TAB)
        reached.append(
            browser.run(
                "const e = document.activeElement, s = getComputedStyle(e);"
                "return [e.id || e.dataset.value || e.className || e.textContent.trim(),"
                " e.tagName, s.outlineStyle + s.outlineWidth]"
            )
        )
    names = [name for name, _, _ in reached]
    assert names[:3] == ["skip", "What the verdicts mean", "search"]
    assert names[3:12] == [*page.VERDICTS, "curvature", "grokking", "in_context"]
    assert names[12:14] == ["All claims", "permalink searchable"]
    assert all(tag in {"A", "INPUT", "BUTTON", "SUMMARY"} for _, tag, _ in reached)
    assert all(ring == "solid3px" for _, _, ring in reached), reached


def test_skip_link_and_slash(browser):
    browser.press(TAB, ENTER)
    assert browser.run("return document.activeElement.id") == "claims"
    browser.press("/")
    assert browser.run("return [document.activeElement.id, document.activeElement.value]") == [
        "search",
        "",
    ]
    browser.press("/")
    assert browser.run("return document.activeElement.value") == "/"
    browser.press(ESCAPE)
    browser.press(TAB, ENTER)
    assert browser.run("return document.activeElement.ariaPressed") == "true"


def load_images(browser):
    return browser.wait("""
        const images = [...document.images];
        const loaded = (image) => new Promise((resolve) => {
          image.loading = 'eager';
          const look = () => image.complete ? resolve() : setTimeout(look, 20);
          look();
        });
        const facts = (image) => [image.naturalWidth, image.alt, image.getAttribute('src')];
        Promise.all(images.map(loaded)).then(() => done(images.map(facts)));
    """)


def test_images_load_from_beside_the_page_and_nothing_else_does(session, address, shared_folder):
    session.call("POST", "/se/log", {"type": "performance"})  # empties it
    session.open(address)
    images = load_images(session)
    assert len(images) == 4
    for width, alt, source in images:
        assert width == 2160
        assert alt.startswith("Figure for the claim: ")
        assert (shared_folder / source).exists()
    events = [
        json.loads(entry["message"])["message"]
        for entry in session.call("POST", "/se/log", {"type": "performance"})
    ]
    sent = [event for event in events if event["method"] == "Network.requestWillBeSent"]
    asked = {event["params"]["request"]["url"] for event in sent}
    assert address in asked
    assert {url.split(":")[0] for url in asked} <= {"file", "about", "data"}
    entries = session.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith(("file:", "data:")) for name in entries)
    errors = session.call("POST", "/se/log", {"type": "browser"})
    assert not [entry for entry in errors if entry["level"] == "SEVERE"]


def test_the_policy_forbids_what_the_page_does_not_need(browser):
    blocked = browser.wait("""
        const seen = [];
        document.addEventListener('securitypolicyviolation',
                                  (event) => seen.push(event.effectiveDirective));
        const image = new Image();
        image.src = 'https://outside.invalid/a.png';
        const script = document.createElement('script');
        script.textContent = 'window.taken = true';
        document.body.append(image, script);
        document.body.setAttribute('onclick', 'window.taken = true');
        document.body.click();
        fetch('https://outside.invalid/').catch(() => 0);
        setTimeout(() => done([window.taken ?? false, seen.sort()]), 300);
    """)
    assert blocked == [False, ["connect-src", "img-src", "script-src-attr", "script-src-elem"]]


def test_a_script_in_a_title_is_text(browser):
    assert browser.run("return document.title") == "Training dynamics, claim by claim"
    heading = "return document.querySelector('#experiments\\\\/grokking\\\\/delay_grows h3')"
    assert "<script>document.title = 'taken'</script>" in browser.run(f"{heading}.textContent")
    assert browser.run(f"{heading}.children.length") == 0
    assert browser.run("return document.scripts.length") == 1


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_nothing_sticks_out_sideways(browser, width):
    browser.size(width, 740)
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    wide = browser.run(
        "const edge = document.documentElement.clientWidth;"
        "return [document.documentElement.scrollWidth - edge,"
        "[...document.querySelectorAll('body *')]"
        ".filter(e => e.getBoundingClientRect().right > edge + 0.5 && e.checkVisibility())"
        ".map(e => e.outerHTML.slice(0, 80))]"
    )
    assert wide == [0, []]


CONTRAST = """
const probe = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgba = (colour) => {
  probe.clearRect(0, 0, 1, 1); probe.fillStyle = colour; probe.fillRect(0, 0, 1, 1);
  return [...probe.getImageData(0, 0, 1, 1).data];
};
const light = (c) => c.slice(0, 3).map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ratio = (one, other) => {
  const [a, b] = [light(one), light(other)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
};
const ground = (e) => {
  for (; e; e = e.parentElement) {
    const c = rgba(getComputedStyle(e).backgroundColor);
    if (c[3] === 255) return c;
    if (c[3] !== 0) throw new Error('a translucent background');
  }
  throw new Error('no background');
};
document.querySelectorAll('details').forEach(d => { d.open = true; });
document.querySelector("button[data-value='holds']").setAttribute('aria-pressed', 'true');
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const found = [];
while (walker.nextNode()) {
  const e = walker.currentNode.parentElement;
  const empty = !walker.currentNode.textContent.trim();
  if (empty || !e.checkVisibility() || e.closest('script')) continue;
  found.push([ratio(rgba(getComputedStyle(e).color), ground(e)), e.outerHTML.slice(0, 100)]);
}
const field = document.getElementById('search');
found.push([ratio(rgba(getComputedStyle(field, '::placeholder').color), ground(field)), 'hint']);
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(browser, scheme):
    browser.scheme(scheme)
    found = browser.run(CONTRAST)
    assert len(found) > 150
    assert not [row for row in found if row[0] < 4.5]


def test_dark_mode_is_dark_and_keeps_figures_on_white(browser):
    paper = "return getComputedStyle(document.body).backgroundColor"
    light = browser.run(paper)
    browser.scheme("dark")
    dark = browser.run(paper)
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in (light, dark)]
    assert brightness[0] > 230
    assert brightness[1] < 40
    card = "return getComputedStyle(document.querySelector('figure a')).backgroundColor"
    assert browser.run(card) == "rgb(255, 255, 255)"


def test_without_script_everything_is_there(session, address):
    session.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        session.open(address)
        assert set(session.visible()) == ALL
        assert session.run("return document.getElementById('filters').getClientRects().length") == 0
    finally:
        session.command("Emulation.setScriptExecutionDisabled", value=False)


def test_names_of_controls_are_told_to_screen_readers(browser):
    assert (
        browser.run("""
        return [...document.querySelectorAll('a, button, summary, input')]
          .filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length
                         || e.querySelector('img[alt]')))
          .map(e => e.outerHTML);
    """)
        == []
    )
    levels = browser.run(
        "return [...document.querySelectorAll('h1, main :is(h2, h3, h4)')].map(h => +h.tagName[1])"
    )
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    names = browser.run("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(names) == len(set(names))
    role = "const c = document.getElementById('count'); return [c.getAttribute('role'), c.ariaLive]"
    assert browser.run(role) == ["status", "polite"]
