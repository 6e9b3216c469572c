"""The pictures of the console in README and docs/console.md, made by journeys through the demos. `make pictures` makes them anew."""

import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urljoin

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
from playwright.sync_api import Locator, Page, expect
from unit.demos.test_watched_demos import Watched, watched

from tools.browser import Visit, opened_browser
from tools.small_png import small_png
from tools.source_tree import PROJECT

PICTURES = PROJECT / "docs" / "pictures"
MOST_BYTES = 150_000
WIDTH = 1_280  # pixels
MOST_HEIGHT = 1_100  # pixels of a picture whose page goes on

pytestmark = pytest.mark.slow  # a processor is busy, and an app is killed twice


class Camera:
    """A browser that looks at a demo, and the folder of its pictures."""

    def __init__(self, demo: Watched, visit: Visit, folder: Path) -> None:
        self.demo = demo
        self.page: Page = visit.page
        self._visit = visit
        self._folder = folder

    def goes_to(self, screen: str) -> None:
        self.page.get_by_role("link", name=re.compile(f"^{screen}( \\d+)?$")).first.click()

    def takes(self, name: str, *, dark: bool = False, until: Locator | None = None) -> None:
        """Takes a picture of the page, down to the end of an element. Fails if axe finds anything, or if the page is too wide."""
        page = self.page
        page.emulate_media(color_scheme="dark" if dark else "light")
        assert self._visit.violations() == []
        assert self._visit.too_wide() == []
        last = until or page.locator("main > :last-child")
        box = self.demo.until(last.bounding_box)  # an element that the live page has just replaced has none
        end = box["y"] + box["height"] + 20
        path = self._folder / f"{name}.png"
        page.mouse.move(0, 0)
        size = {"x": 0, "y": 0, "width": WIDTH, "height": end if until else min(end, MOST_HEIGHT)}
        taken = page.screenshot(full_page=True, clip=size)  # type: ignore[arg-type]
        path.write_bytes(small_png(self._visit.context, taken))
        assert path.stat().st_size < MOST_BYTES
        page.emulate_media(color_scheme="light")

    def looks_at_all_screens(self) -> None:
        """Fails if a page or a table is wider than the window on any of the listed screens."""
        screens = self.page.get_by_role("navigation", name="Screens").get_by_role("link").all()
        for path in [each.get_attribute("href") or "" for each in screens]:
            self.page.goto(urljoin(self.demo.link, path))
            assert self._visit.too_wide() == [], path


def through_fraud(camera: Camera) -> None:
    page, demo = camera.page, camera.demo
    expect(page.locator(".narrow")).to_contain_text("is the narrow place", timeout=60_000)
    expect(page.locator(".narrow")).to_contain_text("card_tokens", timeout=60_000)
    demo.until(lambda: sum(each["late_rows"] or 0 for each in demo.rows("/steps.json")) > 0)
    demo.until(lambda: len(demo.rows("/letters.json")) > 5)
    expect(page.locator("svg.sabot-plan .link").first).to_contain_text("/s")
    camera.takes("app", until=page.locator("svg.sabot-plan"))
    camera.goes_to("Steps")
    expect(page.locator("tbody")).to_contain_text("map_batches-1")
    camera.takes("steps")
    camera.goes_to("Rows")
    page.get_by_role("link", name=re.compile("map_batches-1")).first.click()
    expect(page.locator("tbody tr").nth(9)).to_be_visible()
    camera.takes("rows", dark=True)
    camera.goes_to("Dead letters")
    expect(page.locator(".letters tbody")).to_contain_text("amount is missing")
    camera.takes("letters")
    camera.looks_at_all_screens()


def through_agents(camera: Camera) -> None:
    page = camera.page
    camera.goes_to("Inbox")
    expect(page.locator("article")).to_have_count(2)
    camera.takes("inbox", dark=True)
    camera.goes_to("Jobs")
    expect(page.locator("table.jobs")).to_contain_text("at most")  # the answer of the model that a kill has lost
    camera.takes("jobs", until=page.locator("table.jobs"))
    page.get_by_label("Key").fill("c-1")
    page.keyboard.press("Enter")
    page.locator("tbody tr").nth(1).locator("th a").click()
    expect(page.locator("table.jobs")).to_contain_text("call refund")
    camera.takes("job")
    camera.goes_to("Budgets")
    expect(page.locator("tbody").first).to_contain_text("agents-demo")
    camera.takes("budgets")
    camera.goes_to("Models")
    expect(page.locator("tbody").first).to_contain_text("demo-1")
    camera.takes("models")
    camera.looks_at_all_screens()


JOURNEYS: dict[str, Callable[[Camera], None]] = {"fraud": through_fraud, "agents": through_agents}
OPTIONS = {"agents": ("--tickets", "20")}  # so that the list of jobs fits into its picture


def take(name: str, folder: Path) -> None:
    with (
        tempfile.TemporaryDirectory() as scratch,
        watched(Path(scratch), name, *OPTIONS.get(name, ())) as demo,
        opened_browser() as browser,
    ):
        visit = Visit(browser, width=WIDTH)
        visit.page.goto(demo.link)
        JOURNEYS[name](Camera(demo, visit, folder))
        visit.check()
        visit.context.close()


@pytest.mark.parametrize("name", JOURNEYS)
def test_the_screens_of_a_demo_can_be_looked_at(name: str, tmp_path: Path) -> None:
    take(name, tmp_path)


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for each in JOURNEYS:
        take(each, PICTURES)
    for picture in sorted(PICTURES.glob("*.png")):
        print(picture)
