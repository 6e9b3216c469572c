"""`sabot web` and a run with workers in a real browser: an app that is killed while its page is open, and one that is rescaled."""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from integration.test_console_browser import PROGRAM, app_running
from playwright.sync_api import Browser, expect

from sabot.engine.runtime.watch.run_record import RECORD_FILE
from tools.browser import Visit, opened_browser
from tools.command_line import ENV, SABOT, child

pytestmark = pytest.mark.usefixtures("warm_starts")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as made:
        yield made


@contextmanager
def started(folder: Path, log: str, *words: str) -> Iterator[str]:
    """Runs a command until the end of the block, and yields the link that it prints."""
    file = folder / log
    with (
        open(file, "w") as out,
        child(*SABOT, *words, cwd=folder, env=ENV | {"XDG_STATE_HOME": str(folder)}, stdout=out, stderr=out) as process,
    ):
        deadline = time.monotonic() + 60
        while not (links := re.findall(r"http://\S+/enter\?token=\S+", file.read_text())):
            assert time.monotonic() < deadline, file.read_text()
            assert process.poll() is None, file.read_text()
            time.sleep(0.1)
        yield links[0]


def recorded(folder: Path) -> Path:
    """The folder, when the run in it has written its record, without which `sabot web` may find no state yet."""
    deadline = time.monotonic() + 60
    while not (folder / "state" / RECORD_FILE).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 360)])
def test_the_page_of_sabot_web_says_that_the_app_was_killed_and_shows_the_new_run(
    browser: Browser, tmp_path: Path, dark: bool, width: int
) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    visit = Visit(browser, dark=dark, width=width)
    page = visit.page
    words = ("web", "state", "--web-port", "0")
    with app_running(tmp_path) as running, started(recorded(tmp_path), "web.log", *words) as link:
        page.goto(link)
        expect(page.locator("h1")).to_have_text("Apps")
        expect(page.locator("tbody .badge")).to_have_text("running")
        page.get_by_role("link", name="<b>shop</b>").click()
        expect(page.locator(".notice")).to_contain_text("the app runs in another process")
        os.kill(running.process.pid, signal.SIGKILL)
        began = time.monotonic()
        expect(page.locator(".notice")).to_contain_text("its process has ended without a stop")
        assert time.monotonic() - began < 60, "a second on an idle machine"
        expect(page.locator("h1 .badge")).to_have_text("killed")
        assert visit.violations() == []
        assert visit.too_wide() == []
        page.screenshot(path=tmp_path / "killed.png", full_page=True)
        with app_running(tmp_path):
            expect(page.locator(".notice")).to_contain_text("the app runs in another process")
            expect(page.locator("h1 .badge")).to_have_text("running")
            row = page.locator("tr", has_text="killed").first
            expect(row).to_contain_text("its process ended without a stop")
            page.get_by_role("link", name="Checkpoints", exact=True).click()
            page.get_by_role("button", name="Checkpoint now").click()
            expect(page.locator("main p").first).to_contain_text("is complete.")
            page.get_by_role("link", name="All apps").click()
            page.screenshot(path=tmp_path / "apps.png", full_page=True)
            assert visit.too_wide() == []
            assert visit.violations() == []
    address = link.partition("/enter")[0]
    with started(tmp_path, "again.log", "web", "state", "--web-port", address.rpartition(":")[2]) as again:
        assert again == link, "the token outlives the server"
        page.goto(address)
        expect(page.locator("h1")).to_have_text("Apps")
    visit.check()


@pytest.mark.slow
def test_an_app_with_workers_is_shown_and_rescaled(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    visit = Visit(browser)
    page = visit.page
    words = (
        "run",
        "shop:app",
        "--workers",
        "2",
        "--parallelism",
        "2",
        "--web",
        "--web-port",
        "0",
        "--loglevel",
        "warning",
    )
    with started(tmp_path, "log", *words) as link:
        page.goto(link)
        expect(page.locator("h1 .badge")).to_have_text("running", timeout=60_000)
        page.reload()
        expect(page.locator("svg.sabot-plan")).to_contain_text("slowly")
        page.get_by_role("link", name="Steps", exact=True).click()
        expect(page.locator("tbody tr").filter(has_text="map_batches-1")).to_contain_text("read-1")
        page.get_by_role("link", name="Log", exact=True).click()
        expect(page.locator("main")).to_contain_text("of the coordinator")
        page.route("**/events/**", lambda route: None)  # the figures are held back until `unroute`
        page.get_by_role("link", name="App", exact=True).click()
        page.get_by_label("Workers").fill("3")
        page.locator("form", has=page.get_by_label("Workers")).evaluate("form => { form.id = 'first'; }")
        page.unroute("**/events/**")
        expect(page.locator("#first")).to_have_count(0)  # the first figures replace the form, and keep what was typed
        page.get_by_role("button", name="Rescale").click(timeout=100_000)
        expect(page.locator("main p").first).to_have_text("The app has 3 workers.", timeout=100_000)
        page.get_by_role("link", name="Back to App").click()
        expect(page.locator("tr", has_text="rescaled").first).to_contain_text("to 3 workers")
        expect(page.get_by_label("Workers")).to_have_value("3")
        page.screenshot(path=tmp_path / "workers.png", full_page=True)
    visit.check()
