"""For every test: no keys, no network beyond this machine, one compute thread, warnings of our own code as errors."""

from __future__ import annotations

import importlib.util
import os
import shutil
import uuid
from collections.abc import Generator
from typing import Any

import netguard
import pytest
from hypothesis import HealthCheck, settings

# Before any test module imports torch or a client: both read the environment once.
netguard.quiet_environment()
netguard.install()

# The same examples on every machine and in every run; no deadlines, because runners differ in speed.
settings.register_profile(
    "isr", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("isr")

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str | None:
    """Path of an installed Chromium, or None."""
    return next((found for name in CHROMIUM if (found := shutil.which(name))), None)


def pytest_configure(config: pytest.Config) -> None:
    # A deprecated call in our own code is an error; other people's code may warn (numpy 2's `__array__` inside schedulers).
    config.addinivalue_line("filterwarnings", r"error::DeprecationWarning:isr\b")
    config.addinivalue_line("filterwarnings", r"error::FutureWarning:isr\b")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Browser tests, and tests of optional packages, skip with the reason where what they need is missing;
    ISR_REQUIRE_BROWSER=1 and ISR_REQUIRE_EXTRAS=1 (CI) make that a failure."""
    _skip_without_extras(items)
    wanted = [item for item in items if item.get_closest_marker("browser")]
    if not wanted or os.environ.get("ISR_REQUIRE_BROWSER") == "1":
        return
    missing = []
    if chromium() is None:
        missing.append("no Chromium (Debian: apt-get install chromium)")
    try:
        import playwright  # noqa: F401
    except ImportError:
        missing.append("no playwright (pip install playwright)")
    if missing:
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason=f"browser test: {' and '.join(missing)}"))


def _skip_without_extras(items: list[pytest.Item]) -> None:
    for item in items:
        needed = [name for mark in item.iter_markers("needs") for name in mark.args]
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing and os.environ.get("ISR_REQUIRE_EXTRAS") != "1":
            item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(missing)} (make setup-ci installs it)"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and item.get_closest_marker("browser") and os.environ.get("ISR_REQUIRE_BROWSER") == "1":
        report.outcome = "failed"
        report.longrepr = f"browser test skipped although ISR_REQUIRE_BROWSER=1: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Ray talks to this machine by its outside address, so its tests (their fixtures too) run without the guard."""
    if item.get_closest_marker("ray") is None:
        return (yield)
    netguard.uninstall()
    try:
        return (yield)
    finally:
        netguard.install()


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own answer cache, nor another test's."""
    monkeypatch.setenv("ISR_CACHE", str(tmp_path_factory.getbasetemp() / f"isr-cache-{uuid.uuid4().hex}"))


def expect(found: Any) -> Any:
    """Playwright's own waiting, for what a click or a key brings about later: a script that polls would need `eval`, which the
    pages' content security policy forbids."""
    from playwright.sync_api import expect as waiting

    waiting.set_options(timeout=30_000)
    return waiting(found)
