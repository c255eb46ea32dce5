"""The report and the review in a real Chromium: what a person does, with no console error and no request to anyone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import expect

import isr
from isr.reporting.html import write
from isr.reviewing import Review
from isr.reviewing_server import ReviewServer
from isr.schema import Verdict

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reporting"))
from report_help import EVIL, report

pytestmark = pytest.mark.browser

#: Nothing that calls home, and nothing that needs a graphics card.
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
CASES = 2000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from conftest import chromium
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        yield made
        made.close()


class Watched:
    """A page that remembers every console message, error and request to a server."""

    def __init__(self, browser: Any, width: int = 1280, height: int = 900, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(f"{m.type}: {m.text}"))
        self.page.on("pageerror", lambda e: self.complaints.append(f"error: {e}"))
        self.page.on("dialog", self._refuse)
        self.page.on("request", lambda r: self.requests.append(r.url))

    def _refuse(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def outside(self) -> list[str]:
        return [url for url in self.requests if not url.startswith(("file:", "data:"))]


@pytest.fixture
def watched(browser: Any) -> Iterator[Watched]:
    made = Watched(browser)
    yield made
    made.context.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = report(CASES, words=EVIL, prompt=lambda i: f"{EVIL} make it {i % 7}")
    return write(made, tmp_path_factory.mktemp("page") / "report.html", budget=400_000).as_uri()


def count(page: Any) -> str:
    text: str = page.text_content("[data-pager] .where")
    return text


def seen(page: Any) -> None:
    """The first picture is really there."""
    page.locator(".case img").first.scroll_into_view_if_needed()
    expect(page.locator(".case img").first).to_have_js_property("naturalWidth", 12)


def filtered(page: Any, expected: str) -> None:
    expect(page.locator("[data-pager] .where").first).to_contain_text(expected)


def test_thousands_of_cases_open_filter_and_turn(watched: Watched, address: str) -> None:
    page = watched.page
    page.goto(address)
    page.wait_for_selector(".case")
    assert count(page) == f"1–24 of {CASES}"
    assert page.locator(".case").count() == 24
    # i % 6 == 0: judges disagree; 334 of 0…1999
    page.select_option("[name=rank]", "0")
    filtered(page, f"of 334 (of {CASES})")
    page.select_option("[name=method]", "sifm")  # even cases: all of the 334
    filtered(page, "of 334 (of")
    page.select_option("[name=method]", "mist")
    filtered(page, f"No case fits (of {CASES})")
    page.click("#filters [type=reset]")
    filtered(page, f"1–24 of {CASES}")
    page.select_option("[name=judge]", "b")
    page.select_option("[name=answer]", "no_verdict")  # i % 6 == 1: 334
    filtered(page, "of 334 (of")
    page.fill("[name=text]", "MAKE IT 3")
    expect(page.locator("[data-pager] .where").first).not_to_contain_text("of 334")
    assert all("make it 3" in text for text in page.locator(".case .prompt").all_text_contents())
    page.click("#filters [type=reset]")
    filtered(page, f"1–24 of {CASES}")
    page.click("[data-pager] [data-step='1'] >> nth=0")
    assert count(page) == f"25–48 of {CASES}"
    page.select_option("[name=size]", "48")
    assert page.locator(".case").count() == 48
    seen(page)
    assert watched.complaints == []
    assert watched.outside() == []


def test_tables_sort_and_filter(watched: Watched, address: str) -> None:
    page = watched.page
    page.goto(address)
    table = page.locator("#isr-prompt")
    heading = table.locator("thead th", has_text="ISR")
    assert heading.get_attribute("aria-sort") is None
    for expected in ("descending", "ascending"):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == expected
        values = [
            float(v) for v in table.locator("tbody tr td:nth-child(3)").evaluate_all("c => c.map(x => x.dataset.sort)")
        ]
        assert values == sorted(values, reverse=expected == "descending")
        assert len(values) == 7
    crossed = page.locator("#isr-method-prompt_kind")
    box = page.locator("[data-table]", has=crossed)
    box.locator("select").first.select_option("mist")
    assert crossed.locator("tbody tr:visible").count() == 2
    assert "2 of 4 rows" in box.text_content()
    assert watched.complaints == []


def test_keyboard_reaches_every_case_and_the_viewer(watched: Watched, address: str) -> None:
    page = watched.page
    page.goto(address)
    page.wait_for_selector(".case")
    page.locator(".case").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.place") == "1"
    for _ in range(23):
        page.keyboard.press("j")
    assert page.evaluate("document.activeElement.dataset.place") == "24"  # onto the next page
    assert count(page).startswith("25–48")
    page.keyboard.press("Enter")
    assert page.locator("#viewer").evaluate("d => d.open")
    page.keyboard.press("ArrowLeft")
    assert page.text_content("#viewer .where") == f"24 of {CASES}"
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").evaluate("d => d.open")
    expect(page.locator("[data-place='23']")).to_be_focused()  # the event that says it is closed comes later
    key = page.locator(".case").nth(3).get_attribute("id")
    page.goto(address + "#" + key)
    expect(page.locator(f"[id='{key}']")).to_be_focused()
    assert watched.complaints == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (820, "light"), (1400, "dark")])
def test_it_fits_and_can_be_read(browser: Any, address: str, width: int, scheme: str) -> None:
    watched = Watched(browser, width, 900, color_scheme=scheme)
    page = watched.page
    page.goto(address)
    page.wait_for_selector(".case")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.locator(".case >> nth=0 >> .pictures img").evaluate_all(
        "n => n.map(i => [i.clientWidth, i.clientHeight])"
    )
    assert len(sizes) == 3
    assert all(size == sizes[0] for size in sizes)  # original, control and immunized edit stand alike
    contrast = page.evaluate(_CONTRAST)
    assert contrast
    assert min(contrast.values()) >= 4.5, {k: v for k, v in contrast.items() if v < 4.5}
    assert watched.complaints == []
    watched.context.close()


#: Contrast (WCAG 2.2) of text against its nearest opaque background, per selector. Alpha text is not used.
_CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = (c) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = (c) => { const [r, g, b] = c.map((v) => v / 255).map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const behind = (n) => { for (; n; n = n.parentElement) { const c = rgb(getComputedStyle(n).backgroundColor); if (c[3] === 255) return c; } return [255, 255, 255, 255]; };
  const found = {};
  for (const selector of ['h1', '.title p', '.panel dt', '.panel small', '.sentences li', '.warnings h2', 'caption', 'tbody td', 'tbody td small', 'nav a', '.badge', '.flag', '.about', '.chip.yes', '.chip.no', '.chip.none', '.why .key', 'figcaption', 'label', '.where', 'footer p']) {
    const node = document.querySelector(selector);
    if (!node) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    found[selector] = (a + .05) / (b + .05);
  }
  return found;
}"""


def test_without_scripts_the_numbers_and_the_first_cases_stand(browser: Any, address: str) -> None:
    watched = Watched(browser, java_script_enabled=False)
    page = watched.page
    page.goto(address)
    assert page.locator("noscript li").count() == 100
    assert page.locator("#isr-method tbody tr").count() == 2
    assert not page.locator("#filters").is_visible()
    watched.context.close()


def test_pictures_beside_the_page_are_shown(watched: Watched, tmp_path: Path) -> None:
    path = write(report(6), tmp_path / "a b#c%.html", assets=True)
    watched.page.goto(path.as_uri())
    seen(watched.page)
    assert watched.complaints == []
    assert watched.outside() == []


def test_print_shows_everything_on_paper(browser: Any, address: str) -> None:
    watched = Watched(browser, 700, 1000, color_scheme="dark")
    page = watched.page
    page.goto(address)
    page.wait_for_selector(".case")
    page.emulate_media(media="print")
    assert not page.locator("#filters").is_visible()
    assert not page.locator("nav").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    assert page.pdf()[:5] == b"%PDF-"
    watched.context.close()


def test_review_saves_what_the_person_says(watched: Watched, tmp_path: Path) -> None:
    run = report(12, words=EVIL, prompt=lambda i: f"{EVIL} {i}").save(tmp_path / "run")
    page = watched.page
    with ReviewServer(Review(run, "ada")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            page.goto(server.url)
            page.wait_for_selector("#item:visible")
            assert page.text_content("#count") == "0 of 4 answered"
            page.click("[type=submit]")
            assert page.text_content("#problem") == "Please answer: Semantic mismatch"
            for key in "yny":
                page.keyboard.press(key)
            page.fill("[name=note]", EVIL)
            page.click("[type=submit]")
            expect(page.locator("#count")).to_have_text("1 of 4 answered")
            for _ in range(3):
                before = page.text_content("#count")
                for key in ("n", "n", "c", "Enter"):
                    page.keyboard.press(key)
                expect(page.locator("#count")).not_to_have_text(before)
            page.wait_for_selector("#done:visible")
            page.click("#back")
            assert page.locator("[name=q-semantic_mismatch]").first.is_checked()
            assert page.input_value("[name=note]") == EVIL
            page.click("#finish")
            page.wait_for_selector("#ended:visible")
        finally:
            server.shutdown()
            thread.join(10)
        assert [url for url in watched.outside() if not url.startswith(server.url)] == []
    assert watched.complaints == []
    first, *others = [j.answer for j in isr.Report.load(run).judgement_records if j.judge == "human:ada"]
    assert isinstance(first, Verdict)
    assert (first.semantic_mismatch, first.degradation, first.overall, first.observations) == (True, False, True, EVIL)
    assert [(a.semantic_mismatch, a.degradation, a.overall) for a in others if isinstance(a, Verdict)] == [
        (False, False, None)
    ] * 3
