"""The rows behind the steps of a real app in a real browser, in one process and with workers."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.test_console_browser import PROGRAM, Running, app_running
from playwright.sync_api import Browser, Page, expect

from tools.browser import Visit, opened_browser

pytestmark = pytest.mark.usefixtures("warm_starts")

LONG = PROGRAM.replace('f"a{n % 7}"', 'f"<i>a{n % 7}</i>"').replace("200_000", "600_000")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as made:
        yield made


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)], ids=["one process", "two workers"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder: Path = tmp_path_factory.mktemp("rows")
    (folder / "shop.py").write_text(LONG)
    words = ["--web-show", "account", *([] if request.param == 1 else ["--workers", "2"])]
    with app_running(folder, words=words) as made:
        yield made


def go_to(page: Page, running: Running, name: str) -> None:
    page.goto(running.link)
    expect(page.locator(".badge").first).to_have_text("running", timeout=60_000)
    page.get_by_role("link", name=name, exact=True).press("Enter")


@pytest.mark.slow  # it waits
def test_rows_are_reached_from_the_steps_and_move_by_themselves(browser: Browser, running: Running) -> None:
    visit = Visit(browser, width=360)
    page = visit.page
    go_to(page, running, "Steps")
    page.locator("tbody").get_by_role("link", name="map_batches-1").press("Enter")
    expect(page.locator("h1")).to_have_text("Rows")
    rows = page.locator("table.rows tbody tr")
    expect(rows.first).to_contain_text("<i>a")
    assert visit.too_wide() == []
    expect(page.locator("main")).to_contain_text("Values of amount")
    assert rows.count() <= 50
    assert set(page.locator("table.rows tbody td:nth-child(2)").all_inner_texts()) == {"hidden"}
    before = page.locator(".part p").first.inner_text()
    expect(page.locator(".part p").first).not_to_have_text(before)
    page.get_by_role("navigation", name="Steps").get_by_role("link", name=re.compile("^source ")).press("Enter")
    expect(rows.first).to_contain_text("<i>a")
    visit.check()


@pytest.mark.slow  # five seconds of a core
def test_rows_are_reached_from_the_graph(browser: Browser, running: Running) -> None:
    visit = Visit(browser)
    page = visit.page
    page.goto(running.link)
    step = page.locator("svg.sabot-plan a", has=page.locator('[data-step="map_batches-1"]'))
    expect(step).to_have_count(1, timeout=60_000)
    page.goto(running.address + str(step.get_attribute("href")))
    expect(page.locator("nav.points a[aria-current]")).to_have_text("map_batches-1")
    assert page.locator("svg.sabot-plan").count() == 0
    visit.check()


@pytest.mark.slow  # seconds of a core in the browser
@pytest.mark.one_in(2, "two seconds of a core each")
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_on_rows_and_their_graph(browser: Browser, running: Running, dark: bool) -> None:
    visit = Visit(browser, dark=dark)
    page = visit.page
    page.goto(running.link)
    expect(page.locator("svg.sabot-plan a").first).to_be_attached(timeout=60_000)
    for path in ("/", "/rows?of=map_batches-1"):
        page.goto(running.address + path)
        if path != "/":
            expect(page.locator("table.rows tbody tr").first).to_contain_text("<i>a")
        assert visit.violations() == [], path
        for width in (360, 768, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            assert visit.too_wide() == [], (path, width)
    visit.check()
