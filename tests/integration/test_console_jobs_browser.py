"""The screens of jobs in a real browser."""

import asyncio
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect
from unit.web.test_job_screens import handle, into_history, running

from sabot.web.console import Console
from sabot.web.payloads import Payloads
from tools.agent_tools import until
from tools.browser import Visit, opened_browser

pytestmark = pytest.mark.usefixtures("warm_starts")


def look(visit: Visit, picture: Path) -> None:
    """Fails if axe finds anything on the page, or if the page or, in a wide window, a table is too wide."""
    assert visit.violations() == []
    visit.page.screenshot(path=picture, full_page=True)
    assert visit.too_wide() == []


def find_and_cancel(console: Console, folder: Path, dark: bool, width: int) -> None:
    with opened_browser() as browser:
        visit = Visit(browser, dark=dark, width=width)
        page = visit.page
        page.goto(console.link)
        page.get_by_role("link", name="Jobs", exact=True).click()
        expect(page.locator("tbody tr")).to_have_count(2)
        look(visit, folder / "jobs.png")
        table = page.get_by_role("region", name="Jobs")
        if width < 1280:
            expect(table).to_have_class("scroll more-right")
            table.evaluate("each => each.scrollTo(each.scrollWidth, 0)")
            expect(table).to_have_class("scroll more-left")
        else:
            expect(table).to_have_class("scroll")
        created = table.locator("time").first
        assert re.fullmatch(r"\d\d:\d\d:\d\d", created.inner_text()), "of today"
        assert re.match(r"\d+ \w+ \d{4}, \d\d:\d\d:\d\d, \d{4}-", created.get_attribute("title") or "")
        page.get_by_label("Agent").fill("nobody")
        page.get_by_role("button", name="Show").click()
        expect(page.locator("main")).to_contain_text("No job is like this.")
        page.get_by_label("Agent").fill("handle")
        page.keyboard.press("Enter")
        page.locator("tbody th a").first.click()
        expect(page.locator(".badge")).to_have_text("waiting action")
        expect(page.locator("tbody tr")).to_have_count(1)
        look(visit, folder / "job.png")
        page.get_by_label("Reason").fill("not wanted")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("h1")).to_have_text("Done")
        visit.check()
        visit.context.close()


@pytest.mark.slow  # two seconds of a core
@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 360)])
async def test_a_job_is_found_looked_at_and_cancelled(memory_url: str, tmp_path: Path, dark: bool, width: int) -> None:
    async with running(memory_url, tmp_path / "state", ["ann", "bob"]) as (app, console):
        await asyncio.to_thread(find_and_cancel, console, tmp_path, dark, width)
        await until(lambda: app.statistics()["jobs"]["ended"] == 1)


def find_by_key(console: Console, folder: Path, dark: bool, width: int) -> None:
    with opened_browser() as browser:
        visit = Visit(browser, dark=dark, width=width)
        page = visit.page
        page.goto(console.link)
        page.get_by_role("link", name="Jobs", exact=True).click()
        page.get_by_label("Key").fill("bob")
        page.keyboard.press("Enter")
        expect(page.locator("tbody tr")).to_have_count(1)
        look(visit, folder / "jobs.png")
        page.locator("tbody th a").first.click()
        effects = page.get_by_role("region", name="Effects of the job")
        expect(effects).to_contain_text("4111")
        expect(effects).to_contain_text("bob")
        expect(page.get_by_text("Dry run and fork: The console does not know the program")).to_be_visible()
        look(visit, folder / "job.png")
        page.get_by_role("link", name="bob", exact=True).click()
        expect(page.locator("tbody tr")).to_have_count(1)
        page.get_by_label("Key").fill("bad")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Retry the 1 failed job of this list").click()
        expect(page.locator("h1")).to_have_text("Done")
        visit.check()
        visit.context.close()


@pytest.mark.slow  # seconds of a core in the browser; unit/web/test_job_screens.py has both
@pytest.mark.one_in(2, "three seconds of a core each")
@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 360)])
async def test_an_ended_job_is_found_by_its_key_and_a_failed_one_retried(
    memory_url: str, tmp_path: Path, dark: bool, width: int
) -> None:
    payloads = Payloads(names=frozenset({"look"}))
    async with running(memory_url, tmp_path / "state", ["ann", "bob", "bad"], handle, payloads=payloads) as (
        app,
        console,
    ):
        await into_history(app)
        await asyncio.to_thread(find_by_key, console, tmp_path, dark, width)
        await until(lambda: app.statistics()["jobs"]["ended"] == 4)
