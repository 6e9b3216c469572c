"""The screens of dead letters over HTTP: the list, one dead letter, what is hidden of it, and sending back."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from unit.web.test_console import MARKUP, Browser

from sabot import App, NdjsonSink, NdjsonSource, SqlSink, steps
from sabot.base.redaction import keep_secret
from sabot.engine.letters.form import letter_headers
from sabot.testing import MemoryBroker
from sabot.web.console import Console
from sabot.web.payloads import Payloads
from tools.agent_tools import started, until

STAMP = 1_700_000_000_000


def put(url: str, number: int, *, topic: str = "orders", step: str | None = None, message: str = "") -> None:
    error = KeyError(message or f"no account {number}") if number % 2 else ValueError(message or f"no price {number}")
    headers = letter_headers(
        error,
        topic=topic,
        partition=0,
        offset=100 + number,
        timestamp=STAMP + number,
        agent="shop.check",
        attempts=3,
        version="v7",
        step=step,
    )
    payload = json.dumps({"order": number, "name": f"Ann {MARKUP}"}).encode()
    MemoryBroker.get(url).publish("orders.dlq", [payload], key=f"k{number}", headers=(("trace", b"t1"), *headers))


def sent(url: str) -> list[int]:
    return sorted(json.loads(each.payload or b"")["order"] for each in MemoryBroker.get(url).records("orders"))


@asynccontextmanager
async def shown(url: str, payloads: Payloads | None = None) -> AsyncIterator[tuple[Browser, Browser]]:
    """The console of an app whose agent has dead letters: a browser that may act, and one that may read."""
    app = App("shop", url)

    @app.agent("orders", name="check")
    async def check(ctx: Any) -> None: ...

    MemoryBroker.get(url).create_topic("orders")
    console = Console(app, port=0, payloads=payloads)
    try:
        act = await asyncio.to_thread(Browser(console).enter, console.access.token("act"))
        read = await asyncio.to_thread(Browser(console).enter, console.access.token("read"))
        yield act, read
    finally:
        console.close()


async def ask(browser: Browser, path: str, form: dict[str, str] | None = None) -> tuple[int, str]:
    return await asyncio.to_thread(browser.ask, path, form=form)


def links(page: str, path: str) -> list[str]:
    return [unescape(each) for each in re.findall(rf'href="({path}\?[^"]+)"', page)]


async def test_dead_letters_are_counted_by_reason_and_step_filtered_and_shown(memory_url: str) -> None:
    for number in range(5):
        put(memory_url, number)
    async with shown(memory_url) as (browser, _):
        status, page = await ask(browser, "/letters")
        assert status == 200
        assert re.search(r"5 dead letters wait", page)
        reasons = re.findall(r'<th scope="row"><a [^>]*>(\w+)</a></th><td>shop.check</td><td class="n">(\d)', page)
        assert reasons == [("ValueError", "3"), ("KeyError", "2")]
        assert "orders[0]@103" in page
        (by_reason,) = [each for each in links(page, "/letters") if "KeyError" in each]
        status, page = await ask(browser, by_reason)
        assert len(links(page, "/letter")) == 2
        assert "no price" not in page
        status, page = await ask(browser, "/letters?q=ACCOUNT+3")
        (link,) = links(page, "/letter")
        status, page = await ask(browser, link)
        assert status == 200
        for words in ("no account 3", "orders[0]@103", "shop.check", "v7"):
            assert words in page
        assert ("There is no traceback" in page, "log has" in page, links(page, "/log")) == (True, False, [])
        rows = json.loads((await ask(browser, "/letters.json?reason=KeyError"))[1])
        assert [(each["letter"], each["offset"], each["error"]) for each in rows] == [
            ("0:3", 103, "KeyError"),
            ("0:1", 101, "KeyError"),
        ]
        assert re.findall(r"orders\[0\]@(\d+)", (await ask(browser, "/letters"))[1]) == [
            "104",
            "103",
            "102",
            "101",
            "100",
        ]
        (oldest,) = [each for each in links((await ask(browser, "/letters?q=no"))[1], "/letters") if "oldest" in each]
        assert re.findall(r"orders\[0\]@(\d+)", (await ask(browser, oldest))[1]) == ["100", "101", "102", "103", "104"]
        assert "payload" not in rows[0]
        assert (await ask(browser, "/letters.csv?q=nothing"))[0] == 200


async def test_letters_of_a_step_with_a_long_name_are_filtered(memory_url: str) -> None:
    step = "select " + ", ".join(f"column_{number} = x + {number}" for number in range(40))
    for number in range(3):
        put(memory_url, number, step=step, topic="out")
    async with shown(memory_url) as (browser, _):
        page = (await ask(browser, "/letters"))[1]
        (by_reason,) = [each for each in links(page, "/letters") if "KeyError" in each]
        assert len(links((await ask(browser, by_reason))[1], "/letter")) == 1


async def test_a_letter_that_was_sent_back_and_dies_again_leads_to_the_first_one(memory_url: str) -> None:
    app = App("shop", memory_url)
    runs = 0

    @app.agent("orders", name="check", on_error="skip")
    async def check(ctx: Any) -> None:
        nonlocal runs
        runs += 1
        raise ValueError("no such customer")

    broker = MemoryBroker.get(memory_url)
    broker.publish("orders", [b'{"order": 1}'], key="k", timestamp=STAMP)
    began = time.time()
    console = Console(app, port=0)
    try:
        async with started(app):
            browser = await asyncio.to_thread(Browser(console).enter, console.access.token("act"))
            await until(lambda: "orders.dlq" in broker.topics() and len(broker.records("orders.dlq")) == 1)
            form = {"place": "orders.dlq", "letter": "0:0"}
            assert (await ask(browser, "/act/redrive", form))[0] == 200
            await until(lambda: len(broker.records("orders.dlq")) == 2)
            _, page = await ask(browser, "/letters")
            assert "again: it was dead letter 0:0" in page
            (written,) = re.findall(r'<time datetime="([^"]+)"', page.partition("<tbody>")[2].partition("Oldest")[2])[
                :1
            ]
            assert datetime.fromisoformat(written).timestamp() >= began - 0.01, "not the time of the record"
            _, page = await ask(browser, links(page, "/letter")[0])
            assert "It was sent back before" in page
            assert "<dt>attempts</dt><dd>2</dd>" in page
            assert "in check" in unescape(page)
            assert "raise ValueError(&#34;no such customer&#34;)" in page
            assert links(page, "/log") == ["/log?q=ValueError"]
            (first,) = links(page, "/letter")
            _, page = await ask(browser, first)
            assert "sent back" in page.partition("</h1>")[0]
            assert links(page, "/letter") == ["/letter?place=orders.dlq&at=0%3A1"]
            assert "it is now" in page
    finally:
        console.close()
    assert runs == 2


async def test_a_row_of_a_step_leads_to_the_dead_letter_that_its_record_was_before_and_back(memory_url: str) -> None:
    app = App("shop", memory_url)

    def fails(batch: Any) -> Any:
        raise ValueError("no such customer")

    orders = app.stream("orders", schema={"order": "int64"})
    orders.map_batches(fails, schema={"order": "int64"}).to("done")
    put(memory_url, 1)
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("orders")
    broker.publish("orders", [b"{broken"], key="k", timestamp=STAMP)
    console = Console(app, port=0)
    try:
        async with started(app):
            browser = await asyncio.to_thread(Browser(console).enter, console.access.token("act"))
            await until(lambda: len(broker.records("orders.dlq")) == 2)  # the broken record too
            letter = "/letter?place=orders.dlq&at=0%3A0"
            assert links((await ask(browser, letter))[1], "/letter") == []
            assert (await ask(browser, "/act/redrive", {"place": "orders.dlq", "letter": "0:0"}))[0] == 200
            await until(lambda: len(broker.records("orders.dlq")) == 3)
            (again,) = links((await ask(browser, letter))[1], "/letter")
            assert again == "/letter?place=orders.dlq&at=0%3A2"
            _, page = await ask(browser, again)
            assert "It was sent back before" in page
            assert links(page, "/letter") == [letter]
    finally:
        console.close()


@pytest.mark.parametrize("first", ["/letters", "/letters?order=oldest"])
async def test_pages_of_the_list_follow_each_other(memory_url: str, first: str) -> None:
    for number in range(120):
        put(memory_url, number)
    async with shown(memory_url) as (browser, _):
        path, seen = first, 0
        for _ in range(3):
            _, page = await ask(browser, path)
            seen += len(links(page, "/letter"))
            path = next((each for each in links(page, "/letters") if "after=" in each), "")
        assert (seen, path) == (120, "")


async def test_nothing_of_a_record_is_shown_unless_an_option_names_it(memory_url: str) -> None:
    put(memory_url, 1)
    secret = "correct-horse-battery"
    owner = Payloads()
    keep_secret(secret, owner=owner)
    put(memory_url, 2, message=f"bad login {secret}")
    at = "at=0%3A0&place=orders.dlq"
    async with shown(memory_url) as (browser, _):
        for path in (f"/letter?{at}", "/letters", "/letters.json", "/letters?q=Ann"):
            _, page = await ask(browser, path)
            assert "Ann" not in page.replace("q=Ann", "").replace('value="Ann"', "")
            assert "k1" not in page
            assert secret not in page
        assert "2 values are hidden" in (await ask(browser, f"/letter?{at}"))[1]
        assert (await ask(browser, f"/letter.bin?{at}"))[0] == 404
    async with shown(memory_url, Payloads(names=frozenset({"name"}))) as (browser, _):
        _, page = await ask(browser, f"/letter?{at}")
        assert "Ann &lt;script&gt;" in page
        assert "1 value is hidden" in page
        assert (await ask(browser, f"/letter.bin?{at}"))[0] == 404
    async with shown(memory_url, Payloads("all")) as (browser, reader):
        _, page = await ask(browser, f"/letter?{at}")
        assert ">k1<" in page
        (link,) = links(page, "/letter.bin")
        status, payload = await ask(browser, link)
        assert (status, json.loads(payload)) == (200, {"order": 1, "name": f"Ann {MARKUP}"})
        assert browser.answer_headers["content-type"] == "application/octet-stream"
        assert browser.answer_headers["content-disposition"] == 'attachment; filename="letter-0-0.bin"'
        assert browser.answer_headers["x-content-type-options"] == "nosniff"
        assert (await ask(reader, link))[0] == 403


async def test_markup_in_errors_and_origins_is_shown_as_text(memory_url: str) -> None:
    put(memory_url, 1, message=MARKUP, step=f"shop/{MARKUP}")
    async with shown(memory_url, Payloads("all")) as (browser, _):
        paths = ["/letters", "/letter?at=0:0", f"/letters?q={MARKUP}&reason={MARKUP}&step={MARKUP}&place={MARKUP}"]
        for path in [*paths, f"/letter?at={MARKUP}", f"/letters?after={MARKUP}"]:
            assert MARKUP not in (await ask(browser, path))[1], path
        status, page = await ask(browser, "/act/redrive-all", {"to": MARKUP, "place": "orders.dlq"})
        assert status == 409
        assert MARKUP not in page
        assert "alert(1)" in page


async def test_a_session_that_may_read_sees_no_dead_letters(memory_url: str) -> None:
    put(memory_url, 1)
    async with shown(memory_url, Payloads("all")) as (_, reader):
        assert "/letters" not in (await ask(reader, "/"))[1]
        for path in (
            "/letters",
            "/letters.json",
            "/letters.csv",
            "/letter?at=0:0",
            "/letter.bin?at=0:0",
            "/events/letters",
        ):
            assert (await ask(reader, path))[0] == 403
        for action in ("redrive", "redrive-all"):
            assert (await ask(reader, f"/act/{action}", {"place": "orders.dlq", "letter": "0:0"}))[0] == 403
        assert sent(memory_url) == []


async def test_one_letter_and_then_all_of_a_filter_are_sent_back_each_once(memory_url: str) -> None:
    for number in range(6):
        put(memory_url, number)
    async with shown(memory_url) as (browser, _):
        status, page = await ask(browser, "/act/redrive", {"place": "orders.dlq", "letter": "0:2"})
        assert (status, "1 dead letter is sent back: 1 to orders." in page) == (200, True)
        assert 'href="/letters"' in page
        status, page = await ask(browser, "/act/redrive", {"place": "orders.dlq", "letter": "0:2"})
        assert "1 were sent back before" in page
        status, page = await ask(browser, "/act/redrive-all", {"place": "orders.dlq", "reason": "ValueError"})
        assert "2 dead letters are sent back" in page
        assert sent(memory_url) == [0, 2, 4]
        _, page = await ask(browser, "/letters")
        assert "3 dead letters wait" in page
        _, page = await ask(browser, "/letters?all=1")
        assert page.count("<td>yes</td>") == 3
        assert "sent back</span>" in (await ask(browser, "/letter?at=0:2"))[1]
        await asyncio.gather(*(ask(browser, "/act/redrive-all", {"place": "orders.dlq"}) for _ in range(3)))
        assert sent(memory_url) == list(range(6))
        for form in ({"letter": "x"}, {"letter": "0:99"}, {"letter": "0:0", "place": "other"}):
            assert (await ask(browser, "/act/redrive", form))[0] == 409


async def test_letters_of_a_step_ask_for_the_target(memory_url: str) -> None:
    put(memory_url, 1, step="shop/map_async-1")
    async with shown(memory_url) as (browser, _):
        assert "only to a target topic" in (await ask(browser, "/letters"))[1]
        status, page = await ask(browser, "/act/redrive-all", {"place": "orders.dlq"})
        assert status == 409
        assert "rows of a step" in page
        assert "give a target topic" in page
        status, page = await ask(browser, "/act/redrive-all", {"place": "orders.dlq", "to": "nowhere"})
        assert (status, "there is no topic" in page) == (409, True)
        assert (await ask(browser, "/act/redrive-all", {"place": "orders.dlq", "to": "orders"}))[0] == 200
        assert sent(memory_url) == [1]


class Broken(Exception):
    """Ends a redrive at a step, as the end of its process does."""


@pytest.fixture
def watched() -> Iterator[None]:
    yield
    steps.watch(None)


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("nth", [1, 3, 5])
async def test_a_redrive_that_is_broken_off_and_begun_again_sends_each_letter_once(
    memory_url: str, before: bool, nth: int
) -> None:
    class Breaking:
        def __init__(self) -> None:
            self.left = nth

        def at(self, counts: bool) -> None:
            self.left -= counts
            if counts and self.left == 0:
                raise Broken

        def before(self, name: str, what: str) -> None:
            self.at(before and what == "orders")

        def after(self, name: str, what: str) -> None:
            self.at(not before and what == "orders")

        def torn(self, name: str, what: str, size: int) -> int:
            return size

    for number in range(5):
        put(memory_url, number)
    async with shown(memory_url) as (browser, _):
        steps.watch(Breaking())
        assert (await ask(browser, "/act/redrive-all", {"place": "orders.dlq"}))[0] == 500
        steps.watch(None)
        assert len(sent(memory_url)) == nth - before
    async with shown(memory_url) as (browser, _):
        assert (await ask(browser, "/act/redrive-all", {"place": "orders.dlq"}))[0] == 200
        assert sent(memory_url) == list(range(5))


async def test_steps_that_would_drop_late_rows_again_are_named(memory_url: str, tmp_path: Path) -> None:
    app = App("shop", memory_url)
    from sabot import count, tumbling

    orders = app.stream("orders", schema={"ts": "int64", "a": "string"}, time="ts")
    orders.key_by("a").window(tumbling("1s")).aggregate(n=count()).to(NdjsonSink(tmp_path / "out.ndjson"))
    put(memory_url, 1)
    console = Console(app, port=0)
    try:
        browser = await asyncio.to_thread(Browser(console).enter, console.access.token("act"))
        _, page = await ask(browser, "/letters")
        assert "These steps drop those that are late" in page
        assert "tumbling" in page
    finally:
        console.close()


async def test_files_and_tables_are_places_and_one_that_is_not_there_yet_is_no_error(
    memory_url: str, tmp_path: Path
) -> None:
    app = App("shop", memory_url)
    source = tmp_path / "in.ndjson"
    source.write_text('{"id": 1}\nbroken\n')
    table = SqlSink(f"sqlite:{tmp_path}/bad.db", "bad")
    for n, sink in enumerate((NdjsonSink(tmp_path / "bad.ndjson"), table)):
        app.stream(NdjsonSource(source), schema={"id": "int64"}, dead_letter=sink).to(
            NdjsonSink(tmp_path / f"{n}.ndjson")
        )
    console = Console(app, port=0)
    try:
        browser = await asyncio.to_thread(Browser(console).enter, console.access.token("act"))
        status, page = await ask(browser, "/letters")
        assert (status, "does not exist" in page) == (200, True)
        await app.run()
        for place in re.findall(r'<option value="([^"]+)"', page):
            status, page = await ask(browser, f"/letters?place={unescape(place)}")
            assert status == 200
            (link,) = links(page, "/letter")
            assert "broken" not in (await ask(browser, link))[1]
            assert "records of files came from no topic" in page
    finally:
        console.close()


async def test_an_app_without_dead_letters_has_no_such_screen() -> None:
    console = Console(App("loose", broker="memory://"), port=0)
    try:
        browser = await asyncio.to_thread(Browser(console).enter, console.access.token("act"))
        assert (await ask(browser, "/letters"))[0] == 404
    finally:
        console.close()
