"""The screens of state and of checkpoints in a real browser."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from integration.test_console_jobs_browser import look
from playwright.sync_api import expect
from unit.engine.checkpoint.test_state_reads import count_first, count_later, shop

from sabot.web.console import Console
from sabot.web.payloads import Payloads
from tools.agent_tools import started
from tools.browser import Visit, opened_browser

pytestmark = pytest.mark.usefixtures("warm_starts")


def read_state(console: Console, folder: Path, dark: bool, width: int, go_on: Callable[[], None]) -> None:
    with opened_browser() as browser:
        visit = Visit(browser, dark=dark, width=width)
        page = visit.page
        page.goto(console.link)
        page.get_by_role("link", name="State", exact=True).click()
        expect(page.locator(".problem")).to_have_text("The app has no checkpoint yet.")
        page.get_by_role("button", name="Checkpoint now").click()
        page.get_by_role("link", name="Back to State").click()
        expect(page.locator("tbody th a")).to_have_text(["totals", "steady", "shop.notes"])
        look(visit, folder / "owners.png")
        page.get_by_role("link", name="totals").click()
        expect(page.locator("tbody tr")).to_have_count(40)
        look(visit, folder / "rows.png")
        page.get_by_role("searchbox").focus()
        page.keyboard.type("a7")
        page.keyboard.press("Enter")
        expect(page.locator("tbody td")).to_have_text(["a7", "5", "435"])
        go_on()
        page.get_by_role("button", name="Checkpoint now").click()
        page.get_by_role("link", name="Back to State").click()
        page.locator("select[name=step]").select_option("totals")
        page.locator("select[name=beside]").select_option("checkpoint 1")
        page.get_by_role("button", name="Show").click()
        expect(page.locator("tbody tr")).to_have_count(2)
        expect(page.locator("tbody")).to_contain_text(re.compile("changed\\s*a7\\s*n 5, total 435\\s*n 6, total 1435"))
        look(visit, folder / "difference.png")
        keep_and_delete(visit, folder)
        visit.check()
        visit.context.close()


def keep_and_delete(visit: Visit, folder: Path) -> None:
    page = visit.page
    page.get_by_role("link", name="Checkpoints", exact=True).click()
    page.get_by_role("button", name="Savepoint").click()
    page.get_by_role("link", name="Back to Checkpoints").click()
    savepoints = page.get_by_role("region", name="Savepoints")
    expect(savepoints.locator("tbody tr")).to_have_count(1)
    expect(page.get_by_role("link", name="2", exact=True)).to_be_visible()
    look(visit, folder / "checkpoints.png")
    page.get_by_role("link", name="2", exact=True).click()
    expect(page.locator("h1")).to_have_text("Checkpoint 2")
    expect(page.locator("tbody tr").first).to_contain_text("ms")
    look(visit, folder / "checkpoint.png")
    page.get_by_role("link", name="All checkpoints").click()
    page.get_by_text("Delete", exact=True).last.focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Delete for good").click()
    expect(page.locator("main p").first).to_contain_text("is removed.")
    page.get_by_role("link", name="Back to Checkpoints").click()
    expect(savepoints).to_have_count(0)


@pytest.mark.slow  # seconds of a core in the browser; unit/web/test_state_screens.py has the pages
@pytest.mark.one_in(2, "three seconds of a core each")
@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 360)])
async def test_state_is_read_searched_and_compared(memory_url: str, tmp_path: Path, dark: bool, width: int) -> None:
    app = shop(memory_url, tmp_path, "rocksdb")
    async with started(app):
        await count_first(app)
        console = Console(app, port=0, payloads=Payloads("all"))
        loop = asyncio.get_running_loop()

        def go_on() -> None:
            asyncio.run_coroutine_threadsafe(count_later(app), loop).result(60)

        try:
            await asyncio.to_thread(read_state, console, tmp_path, dark, width, go_on)
        finally:
            console.close()
