"""The screen of the rows behind a step over HTTP: rows while somebody looks, as far as they may be shown."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import unescape

import pytest
from unit.web.test_console import MARKUP, Browser, events

from sabot import App, col, count, tumbling
from sabot.engine.runtime.tasks.taps import Tap
from sabot.testing import MemoryBroker
from sabot.web.console import Console
from sabot.web.payloads import Payloads

pytestmark = pytest.mark.usefixtures("warm_starts")

NAMED = Payloads(names=frozenset({"account", "city"}))


def publish(url: str, first: int, last: int) -> None:
    rows = [
        {
            "ts": 1_700_000_000_000 + 100 * n,
            "account": f"a{n} {MARKUP}",
            "card": f"CARD{n}",
            "at": {"city": "Ghent", "zip": "ZIP9"},
        }
        for n in range(first, last)
    ]
    MemoryBroker.get(url).publish("orders", rows)


@asynccontextmanager
async def running(url: str, payloads: Payloads | None = None) -> AsyncIterator[tuple[App, Browser, Browser]]:
    app = App("shop", url)
    schema = {"ts": "int64", "account": "string", "card": "string", "at": "struct<city: string, zip: string>"}
    orders = app.stream("orders", schema=schema, time="ts")
    kept = orders.filter(col("account") != "nobody")
    kept.to("kept")
    kept.key_by("account").window(tumbling("1s"), late="late").aggregate(n=count()).to("counts")
    MemoryBroker.get(url).create_topic("orders")
    await app.start()
    console = Console(app, port=0, payloads=payloads)
    try:
        act = await asyncio.to_thread(Browser(console).enter, console.access.token("act"))
        read = await asyncio.to_thread(Browser(console).enter, console.access.token("read"))
        async with asyncio.timeout(60):
            page = ""
            while "filter-1" not in page:  # figures are taken once a second
                _, page = await ask(act, "/rows")
        yield app, act, read
    finally:
        console.close()
        await app.stop()


async def ask(browser: Browser, path: str) -> tuple[int, str]:
    return await asyncio.to_thread(browser.ask, path)


async def rows_of(browser: Browser, path: str, url: str, *, least: int = 1) -> list[dict[str, str]]:
    """The rows behind a step, after the tap was begun and rows have passed it."""
    await ask(browser, path)
    number = 0
    async with asyncio.timeout(60):
        while True:
            publish(url, number, number + 3)
            number += 3
            rows: list[dict[str, str]] = json.loads((await ask(browser, path.replace("/rows", "/rows.json")))[1])
            if len(rows) >= least:
                return rows
            await asyncio.sleep(0.2)


def taps(app: App) -> dict[str, Tap]:
    run = app.agent_runtime.runner._run
    assert run is not None
    tasks = run.parts.streams.tasks  # type: ignore[union-attr]
    receivers = {task.name: task.chain.process for task in tasks}
    for link in (link for task in tasks for link in task.chain.links):
        receivers[link.operator.step.id] = vars(link.operator).get("emit")
    return {name: each for name, each in receivers.items() if isinstance(each, Tap)}


async def test_rows_behind_each_step_are_shown_as_far_as_options_name_them(memory_url: str) -> None:
    async with running(memory_url, NAMED) as (_, browser, _reader):
        _, page = await ask(browser, "/rows")
        links = [unescape(each) for each in re.findall(r'href="(/rows\?of=[^"]+)"', page)]
        names = re.findall(r'href="/rows\?of=[^"]+"[^>]*>([^<]+)</a>', page)
        assert {"source orders", "filter-1", "tumbling-1"} <= set(names)
        rows = await rows_of(browser, links[names.index("filter-1")], memory_url)
        assert {row["card"] for row in rows} == {""}
        assert {row["at"] for row in rows} == {"city: Ghent"}
        assert rows[0]["account"].startswith("a")
        async with asyncio.timeout(60):
            while True:  # a page is rendered once a second
                _, page = await ask(browser, links[names.index("filter-1")])
                if "&lt;script&gt;" in page:
                    break
                await asyncio.sleep(0.2)
        assert "CARD" not in page
        assert "ZIP9" not in page
        assert MARKUP not in page
        assert "Values of" in page
        assert await rows_of(browser, links[names.index("tumbling-1")], memory_url)
        assert await rows_of(browser, links[names.index("source orders")], memory_url)


@pytest.mark.slow  # half a second of a core
async def test_at_most_fifty_rows_are_kept_and_copied_in_a_second(memory_url: str) -> None:
    async with running(memory_url, Payloads("all")) as (_, browser, _reader):
        await ask(browser, "/rows?of=filter-1")
        publish(memory_url, 0, 10_000)
        async with asyncio.timeout(60):
            while True:
                rows = json.loads((await ask(browser, "/rows.json?of=filter-1"))[1])
                if rows:
                    break
                await asyncio.sleep(0.2)
        assert len(rows) <= 50
        assert rows[0]["card"].startswith("CARD")


@pytest.mark.slow  # half a second of a core
async def test_a_tap_ends_with_its_last_viewer(memory_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sabot.engine.runtime.tasks.taps.LEASE_SECONDS", 3600.0
    )  # longer than any machine takes for the next line
    async with running(memory_url, NAMED) as (app, browser, _):
        assert taps(app) == {}
        assert await asyncio.to_thread(events, browser, 1.5, page="rows?of=filter-1")
        assert list(taps(app)) == ["filter-1"]
        taps(app)["filter-1"].until = 0.0  # its lease is over; a viewer would begin another one
        async with asyncio.timeout(60):
            while taps(app):
                publish(memory_url, 0, 1)
                await asyncio.sleep(0.1)


async def test_nothing_is_shown_without_an_option(memory_url: str) -> None:
    async with running(memory_url) as (_, browser, _reader):
        rows = await rows_of(browser, "/rows?of=filter-1", memory_url)
        assert {value for row in rows for value in row.values()} == {""}
        assert "Ghent" not in (await ask(browser, "/rows?of=filter-1"))[1]


async def test_a_session_that_may_read_sees_no_rows_and_begins_no_tap(memory_url: str) -> None:
    async with running(memory_url, Payloads("all")) as (app, _, reader):
        assert "/rows" not in (await ask(reader, "/"))[1]
        assert "/rows" not in (await ask(reader, "/steps"))[1]
        for path in (
            "/rows",
            "/rows?of=filter-1",
            "/rows.json?of=filter-1",
            "/rows.csv?of=filter-1",
            "/events/rows?of=filter-1",
        ):
            assert (await ask(reader, path))[0] == 403
        assert taps(app) == {}


@pytest.mark.slow  # half a second of a core
async def test_late_rows_of_the_time_before_the_page_was_opened_are_said_to_be_so(memory_url: str) -> None:
    async with running(memory_url) as (_, browser, _reader), asyncio.timeout(60):
        publish(memory_url, 0, 1_000)
        late: list[int] = []
        while not any(late):  # figures are taken once a second
            publish(memory_url, 0, 2)
            await asyncio.sleep(0.2)
            late = [step["late_rows"] for step in json.loads((await ask(browser, "/steps.json"))[1])]
        _, page = await ask(browser, "/rows?of=tumbling-1&branch=late")
        assert re.search(r"[1-9]\d* late rows so far", page)
        assert re.search(r"No row has come since this page was opened. The late rows? came before that", page)
        _, page = await ask(browser, "/rows?of=filter-1")
        assert "<td>No row has come since this page was opened.</td>" in page


async def test_steps_that_are_not_there_begin_nothing(memory_url: str) -> None:
    async with running(memory_url) as (app, browser, _):
        for of in ("nothing", f"{MARKUP}", "", "filter-1&branch=nothing"):
            status, page = await ask(browser, f"/rows?of={of}")
            assert (status, "no such step" in page) == ((404, True) if of else (200, False))
            assert MARKUP not in page
            assert (await ask(browser, f"/rows.json?of={of}"))[0] == status
        assert taps(app) == {}


async def test_an_app_without_streams_has_no_such_screen() -> None:
    console = Console(App("loose", broker="memory://"), port=0)
    try:
        browser = await asyncio.to_thread(Browser(console).enter, console.access.token("act"))
        assert (await ask(browser, "/rows"))[0] == 404
    finally:
        console.close()
