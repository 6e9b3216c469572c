"""The console of a real app in a real browser."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, expect
from unit.web.test_console import Browser as Client

from sabot.engine.checkpoint import CheckpointStorage
from tools.browser import Visit, opened_browser
from tools.command_line import ENV, SABOT, child

pytestmark = pytest.mark.usefixtures("warm_starts")

PROGRAM = """
import json, os, time
import sabot
from sabot import App, NdjsonSink, col, tumbling

if not os.path.exists("orders.ndjson"):  # a question of the console loads the program too
    with open("orders.ndjson", "w") as file:
        for n in range(800_000):
            file.write(json.dumps({"account": f"a{n % 7}", "amount": n * 1.0, "ts": 1_700_000_000_000 + 50 * n}) + "\\n")
            if n % 1000 == 500:
                file.write("{<b>broken</b>\\n")

app = App("<b>shop</b>", state="state", version="v7", checkpoint_interval="1s")
orders = app.stream(sabot.files("orders.ndjson", follow="1s"), time="ts", dead_letter=NdjsonSink("bad.ndjson"))

def slowly(batch):
    time.sleep(batch.num_rows / 5_000)
    return batch

slow = orders.map_batches(slowly)
slow.key_by("account").window(tumbling("1s")).aggregate(n=sabot.count()).to(NdjsonSink("counts.ndjson"))
"""


class Running:
    """An app with its console."""

    def __init__(self, process: "subprocess.Popen[str]", link: str, reading_link: str) -> None:
        self.process = process
        self.link = link
        self.reading_link = reading_link
        self.address = link.partition("/enter")[0]


@contextmanager
def app_running(
    folder: Path, port: int = 0, words: Sequence[str] = (), env: Mapping[str, str] = {}
) -> Iterator[Running]:
    log = folder / "log"
    command = [*SABOT, "run", "shop:app", "--web", "--web-port", str(port), "--loglevel", "warning", *words]
    with open(log, "w") as file, child(*command, cwd=folder, env=ENV | env, stdout=file, stderr=file) as process:
        deadline = time.monotonic() + 60
        while len(links := re.findall(r"http://\S+/enter\?token=\S+", log.read_text())) < 2:
            assert time.monotonic() < deadline, log.read_text()
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield Running(process, *links)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as made:
        yield made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("console")
    (made / "shop.py").write_text(PROGRAM)
    return made


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Running]:
    with app_running(folder) as made:
        yield made


@pytest.fixture
def visit(browser: Browser, running: Running) -> Iterator[Visit]:
    made = Visit(browser)
    made.page.goto(running.link)
    expect(made.page.locator("h1")).to_contain_text("<b>shop</b>")
    yield made
    made.check()
    made.context.close()


def fact(visit: Visit, name: str) -> Locator:
    found = visit.page.locator(".facts div", has=visit.page.locator("dt", has_text=re.compile(f"^{name}$")))
    return found.locator("dd")


def test_the_app_screen_shows_figures_that_move_without_a_reload(visit: Visit) -> None:
    page = visit.page
    expect(page.locator(".badge")).to_have_text("running")
    expect(page.locator("svg.sabot-plan")).to_contain_text("slowly")
    before = fact(visit, "rows read").inner_text()  # the slow function takes up to 7 s for one batch
    expect(fact(visit, "rows read")).not_to_have_text(before)
    expect(page.locator("svg.sabot-plan .link").first).to_contain_text("/s")
    assert page.url.endswith("/"), "the token does not stay in the address"
    expect(page.locator("#silence")).to_be_hidden()


def test_the_steps_are_sorted_and_searched(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("link", name="Steps", exact=True).click()
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(5)
    expect(rows.filter(has_text="map_batches-1")).to_contain_text("read-1")
    page.get_by_role("link", name="own time").click()
    expect(page.locator("th[aria-sort=descending]")).to_have_text("own time")
    expect(rows.first).to_contain_text("map_batches-1")
    before = rows.first.inner_text()
    expect(rows.first).not_to_have_text(before)
    page.get_by_label("Search").fill("TUMB")
    page.keyboard.press("Enter")
    expect(rows).to_have_count(1)
    page.wait_for_timeout(2_500)
    expect(rows).to_have_count(1)
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    text = download.value.path().read_text()
    assert text.startswith("step,kind,task,")
    assert "tumbling-1" in text
    assert "map_batches" not in text


@pytest.mark.slow  # a second of a core in the browser
def test_what_is_pressed_is_clicked_although_its_part_changes_meanwhile(visit: Visit) -> None:
    """A part that was replaced between press and release had taken the click with it."""
    page = visit.page
    page.get_by_role("link", name="Steps", exact=True).click()
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(5)
    page.get_by_role("link", name="own time").hover()
    page.mouse.down()
    page.evaluate(
        """() => new Promise((done) => {
            let steps = 0;
            const events = new EventSource(document.body.dataset.events);
            events.onmessage = (event) => {
                if ("steps" in JSON.parse(event.data).parts && ++steps == 3) { events.close(); done(); }
            };
        })"""
    )
    page.mouse.up()
    expect(page.locator("th[aria-sort=descending]")).to_have_text("own time")
    before = rows.first.inner_text()
    expect(rows.first).not_to_have_text(before)


def test_the_log_is_searched_by_text_step_and_level(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("link", name="Log", exact=True).click()
    rows = page.locator("tbody tr")
    line = rows.filter(has_text="the first row went to the dead letters")
    expect(line).to_contain_text("warning")
    page.get_by_label("Search").fill("NOTHING of this")
    page.keyboard.press("Enter")
    expect(rows).to_have_text(["No line is like this."])
    page.get_by_label("Search").fill("READ-1")
    page.get_by_label("Level").select_option("warning")
    page.get_by_role("button", name="Show").click()
    expect(rows.first).to_contain_text("read-1")
    page.wait_for_timeout(1_500)
    expect(rows.first).to_contain_text("read-1")


def test_the_keyboard_reaches_everything_and_keeps_its_place(visit: Visit) -> None:
    page = visit.page
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Stop":
            break
    assert page.evaluate("document.activeElement.textContent") == "Stop"
    page.wait_for_timeout(2_500)
    assert page.evaluate("document.activeElement.textContent") == "Stop"


@pytest.mark.one_in(3, "a second of a core each")
@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_pages_fit_the_window(browser: Browser, running: Running, dark: bool, width: int) -> None:
    visit = Visit(browser, dark=dark, width=width)
    visit.page.goto(running.link)
    expect(visit.page.locator(".badge")).to_have_text("running")
    for name in visit.page.locator("header nav a").all_inner_texts():
        visit.page.get_by_role("link", name=name, exact=True).click()
        expect(visit.page.locator("header nav a[aria-current]")).to_have_text(name)
        visit.page.wait_for_timeout(300)
        assert visit.too_wide() == [], name
    if width == 360:
        visit.page.get_by_role("link", name="SQL", exact=True).click()
        visit.page.get_by_role("link", name="SHOW TABLES").click()
        expect(visit.page.locator("h2")).to_have_text("Tables")
        assert visit.too_wide() == []
    visit.check()
    visit.context.close()


@pytest.mark.one_in(2, "a second of a core each")
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_on_any_screen(browser: Browser, running: Running, dark: bool) -> None:
    visit = Visit(browser, dark=dark)
    visit.page.goto(running.link)
    expect(visit.page.locator(".badge")).to_have_text("running")
    for name in visit.page.locator("header nav a").all_inner_texts():
        visit.page.get_by_role("link", name=name, exact=True).click()
        expect(visit.page.locator("header nav a[aria-current]")).to_have_text(name)
        assert visit.violations() == [], name
    visit.page.get_by_role("link", name="SQL", exact=True).click()
    visit.page.get_by_role("link", name="SHOW TABLES").click()
    expect(visit.page.locator("h2")).to_have_text("Tables")
    assert visit.violations() == []
    visit.context.close()


def test_pages_work_without_scripts(browser: Browser, running: Running) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(running.link)
    page.get_by_role("link", name="Continue").or_(page.locator(".badge")).first.wait_for()
    page.goto(running.address)
    expect(page.locator(".badge")).to_have_text("running")
    assert page.locator("noscript meta[http-equiv=refresh]").count() or "refresh" in page.content()
    context.close()


def test_an_action_without_scripts_asks_for_the_token(browser: Browser, running: Running) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(running.link)
    page.locator(".badge").wait_for()
    page.goto(f"{running.address}/checkpoints")
    page.get_by_role("button", name="Checkpoint now").click()
    expect(page.locator("h1")).to_have_text("Enter the token to act")
    page.get_by_label("Token").fill(running.link.rpartition("=")[2])
    page.get_by_role("button", name="Do it").click()
    expect(page.locator(".said")).to_contain_text("is complete")
    context.close()


def test_a_browser_gives_a_server_at_another_port_nothing_with_which_it_could_act(
    visit: Visit, running: Running
) -> None:
    """It got the cookie, which was all that an action needed, and for 30 days."""
    got: list[str] = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            got.append(self.headers.get("Cookie", ""))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: object) -> None: ...

    other = HTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    try:
        for host in ("127.0.0.1", "localhost", "shop.localhost"):
            visit.context.new_page().goto(f"http://{host}:{other.server_port}/")
        assert len(got) >= 3
        assert set(got) == {""}
        own = urlsplit(running.address).hostname  # somebody who has seen the link, as on a screen that is shared
        page = visit.context.new_page()
        page.goto(f"http://{own}:{other.server_port}/")
        assert page.evaluate("localStorage.length") == 0
    finally:
        other.shutdown()
        other.server_close()
    host = urlsplit(running.address)
    thief = Client(cast("Any", SimpleNamespace(port=host.port)))
    thief.host, thief.cookie = host.netloc, got[-1].partition(";")[0]
    form = re.search(r'name="form" value="(\w+)"', thief.ask("/")[1])
    assert form is not None, "who has the cookie may look, until the session ends"
    thief.form = form[1]
    assert thief.ask("/act/stop", form={})[0] == 403


def test_a_reader_sees_no_buttons(browser: Browser, running: Running) -> None:
    visit = Visit(browser)
    visit.page.goto(running.reading_link)
    expect(visit.page.locator(".badge")).to_have_text("running")
    assert visit.page.get_by_role("button").all_inner_texts() == ["Leave"]
    visit.page.get_by_role("button", name="Leave").click()
    expect(visit.page.locator("h1")).to_have_text("Enter")
    visit.page.get_by_label("Token").fill(running.reading_link.rpartition("=")[2])
    visit.page.get_by_role("button", name="Enter").click()
    expect(visit.page.locator(".badge")).to_have_text("running")
    visit.check()
    visit.context.close()


@pytest.mark.slow
def test_the_page_says_when_the_app_is_killed_and_shows_the_new_run(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    visit = Visit(browser)
    page = visit.page
    with app_running(tmp_path) as running:
        page.goto(running.link)
        page.wait_for_timeout(2_000)
        os.kill(running.process.pid, signal.SIGKILL)
        began = time.monotonic()
        expect(page.locator("#silence")).to_be_visible()
        assert time.monotonic() - began < 60, "3 s on an idle machine"
        expect(page.locator("#silence")).to_contain_text("The app does not answer since")
        expect(page.locator("h1 .badge")).to_have_attribute("data-at", re.compile(r"^ as of .*\d"))
        expect(page.locator("h1 .badge")).to_have_css("border-style", "dashed")
    with app_running(tmp_path, int(running.address.rpartition(":")[2])) as again:
        assert again.address == running.address
        expect(page.locator("#silence")).to_be_hidden()
        expect(page.locator(".badge")).to_have_text("running")
        expect(page.locator("h1 .badge")).to_have_css("border-style", "solid")
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.locator("h1")).to_have_text("Done")
        assert again.process.wait(60) == 0
        expect(page.locator("#silence")).to_contain_text("The app has ended, at")
    visit.check()


@pytest.mark.slow
def test_a_click_while_the_app_is_gone_keeps_the_page_and_is_tried_again(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    visit = Visit(browser)
    page, said = visit.page, visit.page.locator("#silence")
    with app_running(tmp_path) as running:
        page.goto(running.link)
        expect(page.locator("h1 .badge")).to_have_text("running")
        page.get_by_role("link", name="Log", exact=True).click()
        expect(page.locator("header nav a[aria-current]")).to_have_text("Log")
        os.kill(running.process.pid, signal.SIGKILL)
        expect(said).to_be_visible()
        page.get_by_label("Search").fill("dead")
        page.get_by_role("button", name="Show").click()
        expect(said).to_contain_text('"Show" is done as soon as it answers')
        page.get_by_role("link", name="Steps", exact=True).click()
        expect(said).to_contain_text('"Steps" is opened as soon as it answers')
        expect(page.locator("header nav a[aria-current]")).to_have_text("Log")
    with app_running(tmp_path, int(running.address.rpartition(":")[2])) as again:
        expect(page.locator("header nav a[aria-current]")).to_have_text("Steps")
        expect(said).to_be_hidden()
        page.get_by_role("link", name="App", exact=True).click()
        expect(page.locator("h1 .badge")).to_have_text("running")
        os.kill(again.process.pid, signal.SIGSTOP)
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(said).to_contain_text('"Stop" waits for its answer')
        os.kill(again.process.pid, signal.SIGKILL)
        expect(said).to_contain_text('"Stop" has had no answer, and is not sent again')
        expect(page.locator("h1")).to_contain_text("<b>shop</b>")
    with app_running(tmp_path, int(running.address.rpartition(":")[2])) as third:
        expect(said).to_be_hidden()
        expect(page.locator("h1 .badge")).to_have_text("running")
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.locator("h1")).to_have_text("Done")
        assert third.process.wait(60) == 0
        page.get_by_role("link", name="Back to App").click()
        expect(said).to_contain_text('"Back to App" is opened as soon as it answers')
        expect(page.locator("h1")).to_have_text("Done")
    visit.check()


@pytest.mark.slow
def test_checkpoints_and_savepoints_are_made_and_listed(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM.replace('checkpoint_interval="1s"', 'checkpoint_interval="1h"'))
    kept = tmp_path / "state" / "checkpoints"
    visit = Visit(browser)
    page = visit.page
    with app_running(tmp_path) as running:
        page.goto(running.link)
        expect(page.locator(".badge")).to_have_text("running")
        page.get_by_role("link", name="Checkpoints", exact=True).click()
        expect(page.locator("tbody")).to_have_text("None yet.")
        page.get_by_role("button", name="Checkpoint now").click()
        expect(page.locator("main p").first).to_have_text("Checkpoint 1 is complete.")
        page.get_by_role("link", name="Back to Checkpoints").click()
        expect(page.locator("tbody th")).to_have_text("1")
        page.get_by_role("button", name="Savepoint").click()
        expect(page.locator("main p").first).to_contain_text("Checkpoint 2 is kept in")
        page.get_by_role("link", name="App", exact=True).click()
        page.get_by_role("button", name="Stop with savepoint").click()
        expect(page.locator("main p").first).to_contain_text("is then kept in")
        assert running.process.wait(60) == 0
        said = re.search(r"checkpoint (\d+) is kept in (\S+)", (tmp_path / "log").read_text())
        assert said is not None, (tmp_path / "log").read_text()
        assert CheckpointStorage(said[2]).ids() == [int(said[1])] == CheckpointStorage(kept).ids()[-1:]
        assert len(list((kept / "savepoints").iterdir())) == 2
    visit.check()


def test_a_wrong_use_is_said_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text('import sabot\n\napp = sabot.App("shop")\n')
    for words, said in [
        (["--web-port", "8420"], "give --web too"),
        (["--web", "--web-origin", "shop.example"], "write it as https://name:port"),
    ]:
        done = subprocess.run(
            [*SABOT, "run", "shop:app", *words], cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2
        assert said in done.stderr
