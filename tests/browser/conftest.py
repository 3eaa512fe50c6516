"""A real browser: Debian's chromium, driven by Playwright; without one these tests are skipped."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import serve  # noqa: F401 - a fixture

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]


@dataclass
class Tab:
    """An open page, and what it said and asked for."""

    page: Any
    told: list[str] = field(default_factory=list)
    """Console messages and uncaught errors."""
    requests: list[str] = field(default_factory=list)

    def violations(self) -> list[str]:
        """Accessibility rules of level A and AA that the page breaks, as axe finds them."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page, options={"runOnly": RULES})
        return [one["id"] for one in found.response["violations"]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser per file: while Playwright is open, no other test could run an event loop."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="NO BROWSER TESTS: type `make test-browser`"
    )
    pytest.importorskip("axe_playwright_python", reason="NO BROWSER TESTS: no axe")
    if CHROMIUM is None:
        pytest.skip("NO BROWSER TESTS: chromium is not installed; type `make test-browser`")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


Open = Callable[..., Tab]


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Open]:
    contexts = []

    def open_tab(where: str | Path, **options: Any) -> Tab:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        contexts.append(context)
        tab = Tab(context.new_page())
        tab.page.on("console", lambda message: tab.told.append(message.text))
        tab.page.on("pageerror", lambda error: tab.told.append(str(error)))
        tab.page.on("request", lambda request: tab.requests.append(request.url))
        tab.page.goto(where if isinstance(where, str) else where.resolve().as_uri())
        return tab

    yield open_tab
    for context in contexts:
        context.close()
