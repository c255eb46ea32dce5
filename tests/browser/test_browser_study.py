"""A whole study in a real browser: by mouse and by keyboard, with the network lost in the middle; how it looks is kept as pictures."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import expect

sys.path.append(str(Path(__file__).resolve().parents[1] / "human_study"))

pytestmark = pytest.mark.browser

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
#: ISR_SCREENSHOTS=FOLDER keeps the pictures (docs/assets/study is made with it).
SHOTS = os.environ.get("ISR_SCREENSHOTS")


@dataclass
class Site:
    url: str
    study: Any
    store: Any


@pytest.fixture(scope="module")
def browser() -> Generator[Any, None, None]:
    from conftest import chromium
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def site(tmp_path: Path) -> Generator[Site, None, None]:
    import uvicorn
    from isr.human_study.app import create_app
    from isr.human_study.making import new_study
    from isr.human_study.store import Store
    from study_help import make_run

    study = new_study(tmp_path / "study", make_run(16), 5, ["method"], training=1, attention=1, repeats=1, raters=2)
    store = Store(study)
    for _ in range(2):
        store.add_rater()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(create_app(study, store), host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield Site(f"http://127.0.0.1:{port}", study, store)
    server.should_exit = True
    thread.join(20)
    store.close()


@dataclass
class Watched:
    """A page together with everything that went wrong in it and every address it asked for."""

    page: Any
    errors: list[str]
    addresses: list[str]


def watch(context: Any) -> Watched:
    page = context.new_page()
    page.set_default_timeout(60_000)
    seen = Watched(page, [], [])
    page.on("pageerror", lambda e: seen.errors.append(str(e)))
    page.on(
        "console",
        lambda m: seen.errors.append(m.text) if m.type in ("error", "warning") and "ERR_" not in m.text else None,
    )
    page.on("request", lambda r: seen.addresses.append(r.url))
    return seen


def shoot(page: Any, name: str, *, full: bool = False) -> None:
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(300)
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=full)


def come_in(page: Any, site: Site, index: int = 0) -> None:
    page.goto(f"{site.url}/enter/{site.store.new_link(site.store.raters()[index])}")
    page.get_by_role("button", name="Begin").click()
    page.get_by_role("button", name="I have read this and agree").click()
    page.get_by_role("button", name="Begin").click()
    page.wait_for_url("**/item/1")


def choose(page: Any, *words: str) -> None:
    for fieldset, word in zip(page.locator("fieldset.question").all(), words, strict=True):
        fieldset.get_by_role("radio", name=word, exact=True).click()


def test_by_mouse_with_the_network_lost_in_the_middle(browser: Any, site: Site) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    seen = watch(context)
    page = seen.page
    come_in(page, site)
    choose(page, "No", "No", "No")
    page.get_by_role("button", name="Save and go on").click()
    page.wait_for_url("**/feedback/1")
    expect(page.get_by_role("heading", name="That is what we see, too")).to_be_visible()
    shoot(page, "feedback")
    opened = time.monotonic()
    page.get_by_role("link", name="Go on").click()
    page.wait_for_url("**/item/2")

    # zoom with the wheel: both pictures move alike
    frame = page.locator(".frame").first.bounding_box()
    page.mouse.move(frame["x"] + 30, frame["y"] + 30)
    page.mouse.wheel(0, -600)
    page.wait_for_timeout(100)
    moved = page.evaluate("[...document.querySelectorAll('.frame img')].map((i) => i.style.transform)")
    assert moved[0] == moved[1]
    assert page.evaluate("viewer.state().scale") > 1.5
    page.get_by_role("button", name="Whole picture").click()
    assert page.evaluate("viewer.state().scale") == 1

    choose(page, "Yes", "I cannot judge this", "Yes")
    page.get_by_label("Comment").fill("wing is bent")
    context.set_offline(True)
    page.get_by_role("button", name="Save and go on").dblclick()
    pressed = time.monotonic()
    page.get_by_text("Your answer is kept on this device").wait_for()
    page.wait_for_timeout(1500)  # it has tried again
    assert page.url.endswith("/item/2")
    assert len(site.store.history()) == 1
    shoot(page, "offline")
    context.set_offline(False)
    page.wait_for_url("**/item/3")
    [_, row] = site.store.history()
    assert (row.said, row.comment, row.revision) == (
        {"semantic_mismatch": True, "degradation": None, "overall": True},
        "wing is bent",
        1,
    )
    assert 0.1 <= row.seconds <= pressed - opened  # until the first press: what came after is the network's

    # the acknowledgement is lost, the answer is not, and it is not stored twice
    lost = []

    def swallow(route: Any) -> None:
        if route.request.method == "POST" and not lost:
            lost.append(route.fetch().status)
            route.abort()
        else:
            route.continue_()

    page.route("**/item/3", swallow)
    choose(page, "No", "Yes", "Yes")
    page.get_by_role("button", name="Save and go on").click()
    page.wait_for_url("**/item/4")
    assert lost == [200]
    assert len(site.store.history()) == 3

    # the laptop is closed while offline; the next visit sends what was kept
    choose(page, "Yes", "Yes", "Yes")
    context.set_offline(True)
    page.get_by_role("button", name="Save and go on").click()
    page.get_by_text("Your answer is kept on this device").wait_for()
    page.close()
    context.set_offline(False)
    assert len(site.store.history()) == 3
    again = watch(context)
    again.page.goto(site.url)
    again.page.wait_for_url("**/item/5")
    assert len(site.store.history()) == 4

    # back, change, and on to the end
    again.page.get_by_role("link", name="Back").click()
    again.page.wait_for_url("**/item/4")
    assert again.page.locator("#answer input:checked").count() == 3
    choose(again.page, "No", "No", "No")
    again.page.get_by_role("button", name="Save the change").click()
    again.page.wait_for_url("**/item/5")
    while "/item/" in again.page.url:
        here = again.page.url
        choose(again.page, "Yes", "No", "Yes")
        again.page.get_by_role("button", name="Save and go on").click()
        again.page.wait_for_url(lambda url, here=here: url != here)
    expect(again.page.get_by_role("heading", name="Thank you")).to_be_visible()
    assert len(site.store.answered(site.store.raters()[0].id)) == 8
    assert [a.revision for a in site.store.history()].count(2) == 1
    assert seen.errors + again.errors == []
    assert all(a.startswith(site.url) for a in seen.addresses + again.addresses)


def test_by_keyboard_alone(browser: Any, site: Site) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    seen = watch(context)
    page = seen.page
    press = page.keyboard.press
    page.goto(f"{site.url}/enter/{site.store.new_link(site.store.raters()[0])}")
    for pressed in range(3):  # enter, agree, begin: the button is reached by Tab
        if pressed == 1:
            shoot(page, "consent", full=True)
        here = page.url
        for _ in range(12):
            press("Tab")
            if page.evaluate("document.activeElement.matches('button.primary')"):
                break
        press("Enter")
        page.wait_for_url(lambda url, here=here: url != here)
    page.wait_for_url("**/item/1")
    shoot(page, "practice")
    for k in ("2", "2", "2", "Enter"):
        press(k)
    page.wait_for_url("**/feedback/1")
    press("Enter")
    page.wait_for_url("**/item/2")

    press("+")
    press("+")
    press("ArrowRight")
    state = page.evaluate("viewer.state()")
    assert (state["scale"], state["x"] < -0.5) == (2.25, True)
    press("0")
    press("f")
    assert page.evaluate("viewer.state().flicker")
    assert page.locator(".pane:visible").get_attribute("data-role") == "edited"
    press("Space")
    assert page.locator(".pane:visible").get_attribute("data-role") == "original"
    press("f")
    assert page.locator(".pane:visible").count() == 2

    press("1")
    assert page.locator(".question.active").get_attribute("data-key") == "degradation"
    press("k")
    press("3")  # a change of mind
    press("2")
    press("1")
    press("m")
    page.keyboard.type("1 2 f are letters here")
    press("Escape")
    shoot(page, "item")
    press("Enter")
    page.wait_for_url("**/item/3")
    row = site.store.history()[-1]
    assert row.said == {"semantic_mismatch": None, "degradation": False, "overall": True}
    assert row.comment == "1 2 f are letters here"
    press("b")
    page.wait_for_url("**/item/2")
    page.get_by_role("link", name="Where I was").press("Enter")
    page.wait_for_url("**/item/3")

    # an incomplete answer stays and says what is missing
    press("1")
    press("Enter")
    page.wait_for_timeout(200)
    assert page.url.endswith("/item/3")
    assert page.locator(".question.missing").count() == 2

    # single keys can be switched off
    press("?")
    page.get_by_label("Single keys are active").press("Space")
    press("Escape")
    page.evaluate("document.activeElement.blur()")
    press("2")
    assert page.locator("#answer input:checked").count() == 1
    page.get_by_role("button", name="Keys").press("Enter")
    page.get_by_label("Single keys are active").press("Space")
    press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.reload()  # a draft survives
    assert page.locator("#answer input:checked").count() == 1
    while "/item/" in page.url:
        here = page.url
        for k in ("1", "1", "1"):
            press(k)
        for _ in range(3):
            if page.locator("#answer input:checked").count() < 3:
                press("1")
        press("Enter")
        page.wait_for_url(lambda url, here=here: url != here)
    assert page.url.endswith("/done")
    assert len(site.store.answered(site.store.raters()[0].id)) == 8
    assert seen.errors == []


def test_two_tabs_lose_nothing(browser: Any, site: Site) -> None:
    context = browser.new_context()
    one = watch(context)
    come_in(one.page, site)
    two = watch(context)
    two.page.goto(f"{site.url}/item/1")
    choose(one.page, "Yes", "No", "Yes")
    choose(two.page, "No", "No", "No")
    one.page.get_by_role("button", name="Save and go on").click()
    one.page.wait_for_url("**/feedback/1")
    two.page.get_by_role("button", name="Save and go on").click()
    two.page.wait_for_url("**/feedback/1")
    assert [(a.revision, a.said["semantic_mismatch"]) for a in site.store.history()] == [(1, True), (2, False)]
    assert one.errors + two.errors == []


def test_without_scripts_the_forms_still_work(browser: Any, site: Site) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    come_in(page, site)
    choose(page, "No", "No", "No")
    page.get_by_role("button", name="Save and go on").click()
    page.wait_for_url("**/feedback/1")
    assert len(site.store.history()) == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("desktop", {"viewport": {"width": 1440, "height": 900}}),
        ("laptop", {"viewport": {"width": 1280, "height": 720}}),
        ("dark", {"viewport": {"width": 1440, "height": 900}, "color_scheme": "dark"}),
        ("tablet", {"viewport": {"width": 820, "height": 1180}, "has_touch": True}),
        ("phone", {"viewport": {"width": 390, "height": 844}, "has_touch": True}),
    ],
)
def test_it_fits_the_screen(browser: Any, site: Site, name: str, options: dict[str, Any]) -> None:
    seen = watch(browser.new_context(**options))
    page = seen.page
    come_in(page, site)
    shoot(page, f"screen-{name}", full=name in ("tablet", "phone"))
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.get_by_role("button", name="Save and go on").is_visible()
    box = page.get_by_role("button", name="Save and go on").bounding_box()
    assert box["y"] + box["height"] <= options["viewport"]["height"]  # in view without scrolling
    assert all(b["height"] >= 36 for b in (c.bounding_box() for c in page.locator(".choice").all()))
    # what a screen reader hears
    assert page.get_by_role("group", name="Semantic mismatch").get_by_role("radio", name="Yes").count() == 1
    assert page.get_by_role("img", name="Edited").count() == 1
    assert page.get_by_role("progressbar").count() == 1
    assert page.get_by_role("status", include_hidden=True).count() >= 1
    assert seen.errors == []


def test_the_organisers_page(browser: Any, site: Site) -> None:
    seen = watch(browser.new_context(viewport={"width": 1440, "height": 900}))
    page = seen.page
    page.goto(f"{site.url}/organiser/enter/{site.store.new_link()}")
    page.get_by_role("button", name="Open the organiser's page").click()
    page.get_by_role("button", name="Add a rater").click()
    link = page.locator("code.link").inner_text()
    expect(page.get_by_role("row")).to_have_count(4)
    shoot(page, "organiser", full=True)
    page.get_by_role("row", name="R2").get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("row", name="R2")).to_contain_text("revoked")
    with page.expect_download() as download:
        page.get_by_role("link", name="Ratings (CSV)").click()
    assert download.value.suggested_filename == "ratings.csv"
    assert page.get_by_role("link", name="Agreement").count() == 0
    page.get_by_label("for good").check()
    page.get_by_role("button", name="Close").click()
    expect(page.locator(".state")).to_have_text("closed")
    expect(page.get_by_role("link", name="Agreement")).to_have_count(1)
    other = browser.new_context().new_page()
    other.goto(link)
    expect(other.get_by_role("button", name="Begin")).to_be_visible()
    assert seen.errors == []
