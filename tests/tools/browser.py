"""A real browser for the tests of the console: Debian's chromium-headless-shell, driven by Playwright.

`Visit` collects what no page of the console may cause: errors of scripts, reports of the content policy, and requests to another host.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tools.agent_tools import PATIENCE

_TOO_WIDE = """() => {
  const boxes = window.innerWidth < 1280 ? [] : [...document.querySelectorAll(".scroll")];
  return [document.documentElement, ...boxes].filter((each) => each.scrollWidth > each.clientWidth)
    .map((each) => `${each.ariaLabel ?? "the page"}: ${each.scrollWidth} > ${each.clientWidth}`);
}"""

PROGRAMS = ("chromium-headless-shell", "chromium")


def browser_or_skip() -> str:
    """The path of the browser. A machine without one skips the test, or fails it with SABOT_REQUIRE_BROWSER=1."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is not None:
        return found
    why = "there is no chromium-headless-shell"
    if os.environ.get("SABOT_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{why} (SABOT_REQUIRE_BROWSER=1)", pytrace=False)
    pytest.skip(why)


@contextmanager
def opened_browser() -> Iterator[Browser]:
    path = browser_or_skip()
    expect.set_options(timeout=1000 * PATIENCE)  # a loaded machine takes its time; what is there is seen at once
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A window of a browser. `problems`: what a page has done that none may do."""

    def __init__(self, browser: Browser, *, dark: bool = False, width: int = 1280) -> None:
        context = browser.new_context(
            color_scheme="dark" if dark else "light", viewport={"width": width, "height": 900}, locale="en-GB"
        )
        context.set_default_timeout(1000 * PATIENCE)
        self.context = context
        self.page: Page = context.new_page()
        self.problems: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", lambda said: self._note(said.type in ("error", "warning"), said.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def _note(self, bad: bool, text: str) -> None:
        # The end of the app, or a page that refuses a form, is an error for the browser's own console; the tests look at these pages.
        if bad and not text.startswith("Failed to load resource"):
            self.problems.append(text)

    def check(self) -> None:
        assert self.problems == []
        assert len(self.hosts) <= 1, self.hosts

    def violations(self) -> list[tuple[str, list[str]]]:
        """What axe finds on the page: rules, each with the elements that break it."""
        self.page.wait_for_load_state()  # with its style sheet
        found = Axe().run(self.page).response
        assert found["passes"]
        return [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]]

    def too_wide(self) -> list[str]:
        """What is too wide: the page, if it is wider than the window, and in a window of 1,280 pixels or more each table that is wider than
        its box.
        """
        self.page.wait_for_load_state()  # with its style sheet
        return list(self.page.evaluate(_TOO_WIDE))
