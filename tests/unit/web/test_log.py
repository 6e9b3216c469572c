"""The log of the console: the last lines, bounded, without secrets, and not for sessions that may only read."""

import asyncio
import gzip
import json
import logging
import random
import threading
from collections.abc import Iterator

import pytest
from test_console import MARKUP, Browser

from sabot import App
from sabot.base.redaction import keep_secret
from sabot.engine.runtime.watch.log_ring import LogRing, first_page
from sabot.web.console import Console

LOG = logging.getLogger("sabot.test_log")


@pytest.fixture
def ring() -> Iterator[LogRing]:
    made = LogRing()
    made.open()
    yield made
    made.close()


@pytest.fixture
def console() -> Iterator[Console]:
    made = Console(App("shop", broker="memory://"), port=0)
    yield made
    made.close()


def messages(ring: LogRing, level: str = "", search: str = "") -> list[str]:
    return [each.message for each in ring.lines(level, search)]


def test_lines_are_chosen_by_level_and_text_the_newest_first(ring: LogRing) -> None:
    LOG.warning("job refunds/17: the tool failed")
    LOG.error("disk %s", "full")
    try:
        raise ValueError("no such account")
    except ValueError:
        LOG.exception("step broke")
    assert messages(ring) == ["step broke", "disk full", "job refunds/17: the tool failed"]
    assert messages(ring, "error") == ["step broke", "disk full"]
    assert messages(ring, "critical") == []
    assert messages(ring, "nonsense", "DISK") == ["disk full"]
    assert messages(ring, search="no such account") == ["step broke"], "in the traceback, too"
    last = ring.lines()[-1]
    assert (last.job, last.level, last.logger) == ("refunds/17", "warning", "sabot.test_log")


def test_a_line_names_the_thread_or_the_coroutine_that_wrote_it(ring: LogRing) -> None:
    thread = threading.Thread(target=LOG.warning, args=("from a task",), name="read-1")
    thread.start()
    thread.join()

    async def write() -> None:
        await asyncio.create_task(warn(), name="agent refunds")

    async def warn() -> None:
        LOG.warning("from an agent")

    asyncio.run(write())
    assert [each.step for each in ring.lines()] == ["agent refunds", "read-1"]
    assert messages(ring, search="READ-1") == ["from a task"]


def test_secrets_are_hidden_in_messages_and_tracebacks_also_where_a_line_is_cut(ring: LogRing) -> None:
    keep_secret("s3cr3t-of-the-log")
    LOG.warning("connect kafka://me:pass-9313@host with s3cr3t-of-the-log")
    LOG.warning("x" * 7_980 + "s3cr3t-of-the-log" * 3)
    try:
        raise ValueError("s3cr3t-of-the-log")
    except ValueError:
        LOG.exception("failed")
    text = repr(ring.lines())
    assert "s3cr" not in text
    assert "pass-9313" not in text
    assert "kafka://***@host" in text


@pytest.mark.slow  # half a second of a core
def test_lines_and_their_bytes_are_bounded(ring: LogRing) -> None:
    for number in range(2_100):
        LOG.warning("line %d", number)
    assert (len(ring.lines()), ring.lines()[0].message, ring.lines()[-1].message) == (2_000, "line 2099", "line 100")
    for _ in range(600):
        LOG.warning("y" * 10_000)
    kept = ring.lines()
    assert max(len(each.message) for each in kept) == 8_000
    assert kept[0].message.endswith("(cut)")
    assert sum(each.characters for each in kept) <= 4_000_000


def test_a_message_with_wrong_arguments_ends_nothing(ring: LogRing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    LOG.warning("%d rows", "many")
    LOG.warning("next")
    assert messages(ring) == ["next"]


def test_the_ring_is_closed_with_the_console() -> None:
    before = list(logging.getLogger().handlers)
    console = Console(App("shop", broker="memory://"), port=0)
    assert len(logging.getLogger().handlers) == len(before) + 1
    console.close()
    assert logging.getLogger().handlers == before


def test_the_page_shows_lines_as_text_and_gives_csv_and_json(console: Console) -> None:
    browser = Browser(console).enter(console.access.token("act"))
    LOG.warning("=1+1 %s", MARKUP)
    status, page = browser.ask("/log?q=%3D1%2B1&level=warning")
    assert status == 200
    assert "alert(1)" in page
    assert MARKUP not in page
    (line,) = json.loads(browser.ask("/log.json?q=alert")[1])
    assert line["message"] == f"=1+1 {MARKUP}"
    assert ",'=1+1" in browser.ask("/log.csv?q=alert")[1]
    assert "No line is like this." in browser.ask("/log?level=critical&q=nothing-of-this")[1]
    assert browser.ask(f"/log?level={MARKUP.replace('<', '%3C').replace('>', '%3E')}")[1].count(MARKUP) == 0


def test_a_session_that_may_read_has_no_log(console: Console) -> None:
    LOG.error("the row {'card': 4111} is wrong")
    reader = Browser(console).enter(console.access.token("read"))
    for path in ("/log", "/log.json", "/log.csv", "/events/log"):
        status, page = reader.ask(path)
        assert status == 403, path
        assert "4111" not in page
    assert 'href="/log"' not in reader.ask("/")[1]
    assert Browser(console).ask("/log")[0] == 401


def test_a_page_of_texts_that_cannot_be_compressed_stays_small(console: Console) -> None:
    letters = random.Random(7)
    for _ in range(300):
        LOG.warning("".join(chr(letters.randrange(0x4E00, 0x9FFF)) for _ in range(1_000)))
    browser = Browser(console).enter(console.access.token("act"))
    paths = ["/log", "/assets/console.js", "/assets/console.css", "/assets/icon.svg"]
    assert sum(len(gzip.compress(browser.ask(path)[1].encode())) for path in paths) <= 60_000
    assert "CSV and JSON have all" in browser.ask("/log")[1]
    assert len(first_page(LogRing().lines())) == 0
