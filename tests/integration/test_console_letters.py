"""Dead letters in the console of a real app: found, looked at and sent back in a real browser; and a redrive whose app is killed."""

import http.client
import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from integration.test_console_browser import Running, app_running
from integration.test_dlq import payloads, with_letters
from playwright.sync_api import Browser, expect
from unit.web.test_console import Browser as Client

from tools.browser import Visit, opened_browser

pytestmark = pytest.mark.usefixtures("warm_starts")

PROGRAM = """
import os
from sabot import App, NdjsonSink
from sabot.testing import MemoryBroker

app = App("<b>shop</b>", "memory://", state="state", version="v7", checkpoint_interval="1s")
MemoryBroker.get("memory://").publish("orders", [{"n": n, "note": f"<i>note {n}</i>"} for n in range(12)], key="ann")

@app.agent("orders", name="check", on_error="skip", sink=NdjsonSink("done.ndjson"))
async def check(ctx):
    n = ctx.message["n"]
    if n % 3 and not os.path.exists("fixed"):
        raise (KeyError if n % 3 == 1 else ValueError)(f"<i>no account {n}</i>: " + "the accounts were read, and " * 20)
    return {"n": n}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(PROGRAM)
    return tmp_path


def done(folder: Path, count: int) -> list[int]:
    """The witness: what the agent has handled, at least so many."""
    file, deadline = folder / "done.ndjson", time.monotonic() + 60
    while True:
        lines = file.read_text().splitlines() if file.exists() else []
        if len(lines) >= count or time.monotonic() > deadline:
            return sorted(json.loads(each)["n"] for each in lines)
        time.sleep(0.1)


@pytest.mark.slow  # two seconds of a core
def test_dead_letters_are_found_by_reason_and_sent_back_by_keyboard(browser: Browser, folder: Path) -> None:
    visit = Visit(browser, width=360)
    page = visit.page
    with app_running(folder) as running:
        assert done(folder, 4) == [0, 3, 6, 9]
        page.goto(running.link)
        page.get_by_role("link", name="Dead letters", exact=True).press("Enter")
        rows = page.locator("table.letters tbody tr")
        expect(rows).to_have_count(8)
        expect(page.locator("table.counts tbody")).to_contain_text("KeyError")
        assert visit.too_wide() == []
        page.locator("table.counts").get_by_role("link", name="ValueError").press("Enter")
        expect(rows).to_have_count(4)
        page.get_by_label("Search").fill("ACCOUNT 5")
        page.keyboard.press("Enter")
        expect(rows).to_have_count(1)
        rows.get_by_role("link").press("Enter")
        expect(page.locator("h1")).to_contain_text("Dead letter 0:")
        expect(page.locator(".problem").first).to_contain_text("<i>no account 5</i>")
        expect(page.locator("main")).to_contain_text("orders[0]@5")
        expect(page.locator("main")).not_to_contain_text("note 5")
        assert visit.too_wide() == []
        (folder / "fixed").touch()
        page.wait_for_load_state()  # a form that is sent before the page's script has run has no key
        page.get_by_role("button", name="Send back").press("Enter")
        expect(page.locator("main p").first).to_contain_text("1 dead letter is sent back: 1 to orders.")
        assert done(folder, 5) == [0, 3, 5, 6, 9]
        page.get_by_role("link", name="Back to Dead letters").press("Enter")
        expect(rows).to_have_count(7)
        page.wait_for_load_state()
        page.get_by_role("button", name="Send back all that these filters select").press("Enter")
        expect(page.locator("main p").first).to_contain_text("7 dead letters are sent back: 7 to orders.")
        assert done(folder, 12) == list(range(12))
        page.get_by_role("link", name="Back to Dead letters").click()
        expect(rows).to_have_text(["None."])
        page.get_by_label("sent back too").check()
        page.get_by_role("button", name="Show").click()
        expect(rows).to_have_count(8)
    visit.check()


@pytest.mark.slow  # seconds of a core in the browser
@pytest.mark.one_in(2, "two seconds of a core each")
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_on_the_screens_of_dead_letters(browser: Browser, folder: Path, dark: bool) -> None:
    with app_running(folder, words=("--web-payloads", "all")) as running:
        done(folder, 4)
        visit = Visit(browser, dark=dark)
        page = visit.page
        page.goto(running.link)
        page.get_by_role("link", name="Dead letters", exact=True).click()
        for _ in ("list", "letter"):
            assert visit.violations() == []
            for width in (360, 768, 1280):
                page.set_viewport_size({"width": width, "height": 900})
                assert visit.too_wide() == [], width
            page.locator("table.letters").get_by_role("link").first.click() if _ == "list" else None
        expect(page.locator("table.record")).to_contain_text("<i>note 11</i>")
        with page.expect_download() as download:
            page.get_by_role("link", name="Payload as it is").click()
        assert json.loads(download.value.path().read_bytes())["n"] == 11
        assert re.fullmatch(r"letter-0-\d+\.bin", download.value.suggested_filename)
        visit.check()


# -- killed -----------------------------------------------------------------------------------------------------------

ON_KAFKA = """
import os, signal
import sabot.engine.letters.redrive as selecting
from sabot import App, steps

app = App("shop", {url!r}, state="state")

@app.agent({topic!r}, name="check")
async def check(ctx): ...

class Killer:
    def at(self, what, *where):
        if what not in ({topic!r}, "sabot.dlq.{topic}.dlq", "{topic}.dlq.redriven"):
            return  # a step of the app itself
        seen.append(where)
        if f"{{where[0]}} {{where[1]}} {{seen.count(where)}}" == os.environ.get("KILL"):
            os.kill(os.getpid(), signal.SIGKILL)
    def before(self, name, what):
        self.at(what, "before", name)
    def after(self, name, what):
        self.at(what, "after", name)
    def torn(self, name, what, size):
        return size

seen = []
selecting._LETTERS = 3
steps.watch(Killer())
"""


def send_back_all(running: Running, place: str) -> str:
    """Sends the form of the page as a browser does. Returns the page that answers, "" if the app ends meanwhile."""
    address = urlsplit(running.link)
    client = Client(cast("Any", SimpleNamespace(port=address.port))).enter(address.query.partition("=")[2])
    try:
        return client.ask("/act/redrive-all", form={"place": place})[1]
    except (http.client.HTTPException, ConnectionError):
        return ""


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["after claim 1", "after produce 5", "after token 2", "before commit 3", "after commit 2"]
)
def test_an_app_that_is_killed_while_it_sends_back_sends_each_letter_once_when_it_is_asked_again(
    kafka_url: str, topic: str, tmp_path: Path, moment: str
) -> None:
    with_letters(kafka_url, topic, 12)
    (tmp_path / "shop.py").write_text(ON_KAFKA.format(url=kafka_url, topic=topic))
    with app_running(tmp_path, env={"KILL": moment}) as running:
        assert send_back_all(running, f"{topic}.dlq") == "", (tmp_path / "log").read_text()
        assert running.process.wait(60) == -signal.SIGKILL
    with app_running(tmp_path) as running:
        assert "dead letters are sent back" in send_back_all(running, f"{topic}.dlq")
        assert "0 dead letters are sent back" in send_back_all(running, f"{topic}.dlq")
    assert payloads(kafka_url, topic, 12) == list(range(12))
