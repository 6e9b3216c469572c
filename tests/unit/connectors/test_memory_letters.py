"""Dead letters in topics of the embedded broker: read back, and sent back once, also by a redrive that is broken off at any step."""

import gzip
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sabot import App, NdjsonSink, NdjsonSource, SqlSink, steps
from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import build_records
from sabot.engine.letters import redrive as selecting
from sabot.engine.letters.form import letter_headers
from sabot.engine.letters.opening import LetterPlace, letter_places, opened_letters, redrive
from sabot.engine.letters.pages import LetterFilter, letters_page, newest_page
from sabot.engine.letters.places import Letters
from sabot.engine.letters.redrive import Selection
from sabot.errors import TransientError, UserError
from sabot.testing import MemoryBroker

STAMP = 1_700_000_000_000


def headers(number: int, topic: str = "orders", step: str | None = None) -> tuple[tuple[str, bytes | None], ...]:
    error = KeyError(f"no account {number}") if number % 2 else ValueError(f"no price {number}")
    facts = {"partition": number % 2, "offset": 100 + number, "timestamp": STAMP + number, "attempts": 1}
    made = letter_headers(error, topic=topic, agent="shop.check", version="v7", step=step, **facts)  # type: ignore[arg-type]
    return (("trace", b"1"), *made)


def with_letters(url: str, count: int) -> MemoryBroker:
    broker = MemoryBroker.get(url)
    broker.create_topic("orders", 2)
    broker.create_topic("orders.dlq", 2)
    for n in range(count):
        broker.publish("orders.dlq", [b"%d" % n], key=b"k%d" % n, partition=n % 2, headers=headers(n))
    return broker


def redriven(url: str, selection: Selection = Selection(), place: str = "orders.dlq") -> selecting.Redriven:  # noqa: B008
    with opened_letters(LetterPlace(place), url, {}, sends=True) as dead:
        return redrive(dead, selection)


def payloads(broker: MemoryBroker, topic: str = "orders") -> list[int]:
    return sorted(int(each.payload or b"-1") for each in broker.records(topic))


class Crash(BaseException):
    """What a killed thread does not survive."""


class Crashing:
    """Raises Crash before or after the nth step."""

    def __init__(self, before: bool, nth: int) -> None:
        self.is_before, self.left = before, nth

    def before(self, name: str, what: str) -> None:
        self._count(self.is_before)

    def after(self, name: str, what: str) -> None:
        self._count(not self.is_before)

    def _count(self, counts: bool) -> None:
        self.left -= counts
        if counts and self.left == 0:
            raise Crash

    def torn(self, name: str, what: str, size: int) -> int:
        return size


@pytest.fixture
def unwatched() -> Iterator[None]:
    yield
    steps.watch(None)


def test_a_letter_goes_back_as_the_record_that_it_was(memory_url: str) -> None:
    broker = with_letters(memory_url, 2)
    done = redriven(memory_url)
    assert (done.letters, done.topics, done.left) == (2, {"orders": 2}, {})
    first, second = broker.records("orders")
    headers = (("sabot.letter", b"orders.dlq 0:0"), ("sabot.letter.attempts", b"1"), ("trace", b"1"))
    assert (first.payload, first.key, first.headers, first.timestamp) == (b"0", b"k0", headers, STAMP)
    assert (first.partition, second.partition) == (0, 1)


def test_a_second_redrive_sends_what_the_first_has_left(memory_url: str) -> None:
    broker = with_letters(memory_url, 10)
    assert redriven(memory_url, Selection(only=[(1, 3), (0, 2), (1, 3)])).letters == 2
    assert redriven(memory_url, Selection(only=[(1, 3)])).already == 1
    wanted = LetterFilter(reason="KeyError").selects
    assert redriven(memory_url, Selection(wanted=wanted, limit=2)).letters == 2
    with opened_letters(LetterPlace("orders.dlq"), memory_url, {}) as dead:
        assert len(list(dead.letters())) == 6
        assert sum(each.redriven for each in dead.letters(redriven=True)) == 4
    broker.publish("orders.dlq", [b"10"], partition=0, headers=headers(10))
    assert redriven(memory_url).letters == 7
    assert redriven(memory_url).letters == 0
    assert payloads(broker) == list(range(11))


@pytest.mark.usefixtures("unwatched")
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("nth", range(1, 8))
def test_a_redrive_that_is_broken_off_at_any_step_and_begun_again_sends_each_letter_once(
    memory_url: str, monkeypatch: pytest.MonkeyPatch, before: bool, nth: int
) -> None:
    monkeypatch.setattr(selecting, "_LETTERS", 3)
    broker = with_letters(memory_url, 7)
    steps.watch(Crashing(before, nth))
    with pytest.raises(Crash):
        redriven(memory_url)
    steps.watch(None)
    assert len(payloads(broker)) == nth - before
    assert redriven(memory_url).letters == 7 - nth + before
    assert payloads(broker) == list(range(7))


def test_redrives_at_once_send_each_letter_once(memory_url: str) -> None:
    broker = with_letters(memory_url, 500)
    with ThreadPoolExecutor(4) as pool:
        sent = list(pool.map(lambda _: redriven(memory_url).letters, range(4)))
    assert sum(sent) == 500
    assert payloads(broker) == list(range(500))


def test_what_no_topic_takes_back_stays_and_says_why(memory_url: str) -> None:
    broker = with_letters(memory_url, 1)
    broker.publish("orders.dlq", [b"5"], partition=0, headers=headers(5, topic="gone"))
    broker.publish("orders.dlq", [b"6"], partition=0, headers=headers(6, step="app/map-1"))
    broker.publish("orders.dlq", [b"7"], partition=0)
    done = redriven(memory_url)
    assert (done.letters, set(done.remedies.values())) == (1, {"to", "create"})
    assert [why.partition(" ")[0] for why in done.left] == ["there", "they", "no"]
    assert "gone" not in broker.topics()
    assert redriven(memory_url, Selection(to="orders")).letters == 3
    assert payloads(broker) == [0, 5, 6, 7]


def test_a_full_topic_ends_a_redrive_and_the_next_one_goes_on(memory_url: str) -> None:
    broker = with_letters(memory_url, 5)
    broker.publish("orders", [b"x" * 1000], partition=0)
    topic = broker.topic("orders")

    class Slow:
        def position_of(self, part: object) -> int:
            return 0

    reader = Slow()
    topic.sources.add(reader)
    broker.retention_bytes = 1000
    with pytest.raises(TransientError, match="has not read"):
        redriven(memory_url)
    topic.sources.discard(reader)
    broker.retention_bytes = 1 << 30
    assert redriven(memory_url).letters == 5


def test_letters_of_a_file_go_to_topics_of_the_embedded_broker(memory_url: str, tmp_path: Path) -> None:
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("orders", 2)
    sink = NdjsonSink(tmp_path / "bad.ndjson")
    sink.open()
    made = [headers(n) for n in range(4)]
    rows = build_records([b"%d" % n for n in range(4)], [b"k"] * 4, [STAMP] * 4, 0, [0] * 4, made)
    sink.write(Batch(rows))
    sink.flush()
    sink.close()
    place = str(tmp_path / "bad.ndjson")
    assert redriven(memory_url, Selection(limit=1), place).letters == 1
    assert redriven(memory_url, place=place).letters == 3
    assert redriven(memory_url, place=place).letters == 0
    assert payloads(broker) == [0, 1, 2, 3]
    with opened_letters(LetterPlace(place), None, {}) as dead:
        assert type(dead) is Letters
        with pytest.raises(UserError, match="a broker"):
            redrive(dead, Selection())


def test_a_topic_that_is_not_there_is_named(memory_url: str) -> None:
    with (
        pytest.raises(UserError, match=r"topic 'x.dlq' does not exist"),
        opened_letters(LetterPlace("x.dlq"), memory_url, {}),
    ):
        pass
    assert "x.dlq" not in MemoryBroker.get(memory_url).topics()


def test_pages_follow_each_other_and_count_all(memory_url: str) -> None:
    with_letters(memory_url, 25)
    seen: list[str] = []
    after, pages = (-1, -1), 0
    while True:
        with opened_letters(LetterPlace("orders.dlq"), memory_url, {}) as dead:
            page = letters_page(dead, LetterFilter(text="ACCOUNT"), after=after, most=5)
        assert (page.found, dict(page.counts)) == (12, {("KeyError", "shop.check"): 12})
        seen += [each.facts["message"] for each in page.letters]
        pages += 1
        if page.following is None:
            break
        after = page.following
    assert seen == [f"'no account {n}'" for n in range(1, 25, 2)]
    assert pages == 3


def test_the_newest_first_is_an_order_of_all_partitions(memory_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sabot.engine.letters.places._BLOCK_LETTERS", 3)
    written = [STAMP + n for n in (0, 1, 2, 3, 9, 5, 6, 7, 8, 4)]  # a writer was behind
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("orders.dlq", 3)
    for n, at in enumerate(written):
        own = [each for each in headers(n) if each[0] != "sabot.written"]
        broker.publish(
            "orders.dlq", [b"%d" % n], headers=[*own, ("sabot.written", b"%d" % at)], partition=n % 2, timestamp=STAMP
        )
    seen: list[str] = []
    after = None
    while True:
        with opened_letters(LetterPlace("orders.dlq"), memory_url, {}) as dead:
            page = newest_page(dead, LetterFilter(), after=after, most=3)
        assert (page.found, page.complete) == (10, True)
        seen += [each.place for each in page.letters]
        if page.following is None:
            break
        after = page.following
    times = "8 6 6 4 4 4 3 2 1 0"  # never above that of a later one of the partition
    assert seen == ["0:4", "0:3", "0:2", "1:4", "1:3", "1:2", "1:1", "0:1", "1:0", "0:0"], times
    redriven(memory_url, Selection(only=[(0, 4), (1, 0)], to="orders.dlq"))
    with opened_letters(LetterPlace("orders.dlq"), memory_url, {}) as dead:
        waiting = [each.place for each in newest_page(dead, LetterFilter()).letters]
        assert len([place for place in waiting if place in seen]) == 8
        every = newest_page(dead, LetterFilter(reason="KeyError"), redriven=True).letters
        assert [each.redriven for each in every if each.place == "1:0"] == [True]
    monkeypatch.setattr("sabot.engine.letters.pages.MOST_READ", 4)
    with opened_letters(LetterPlace("orders.dlq"), memory_url, {}) as dead:
        page = newest_page(dead, LetterFilter())
        assert (len(page.letters), page.found, page.complete) == (4, 4, False)


@pytest.mark.parametrize("name", ["bad.ndjson", "bad.ndjson.gz", "bad", "table"])
def test_files_and_tables_are_read_from_the_newest_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("sabot.engine.letters.places._BLOCK_LETTERS", 2)
    monkeypatch.setattr("sabot.engine.letters.places._BLOCK_BYTES", 5_000)
    monkeypatch.setattr("sabot.engine.letters.files._COMPRESSED_LINES", 3)
    sink = (
        SqlSink(f"sqlite:{tmp_path}/bad.db", "bad")
        if name == "table"
        else NdjsonSink(tmp_path / name.removesuffix(".gz"))
    )
    sink.open()
    for n in range(12):
        payload = b"x" * (10_000 if n % 5 == 4 else 5)
        sink.write(Batch(build_records([payload], [b"%d" % n], [STAMP], 0, [0], [headers(n)])))
    sink.flush()
    sink.close()
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / "bad.ndjson").read_bytes()))
    place = LetterPlace(f"sqlite:{tmp_path}/bad.db", "bad") if name == "table" else LetterPlace(f"{tmp_path}/{name}")
    with opened_letters(place, None, {}) as dead:
        assert [letter.key for _, letter in dead.newest()] == [b"%d" % n for n in reversed(range(12))]


def test_a_page_of_a_long_topic_reads_a_part_of_it(memory_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sabot.engine.letters.pages.MOST_READ", 4)
    with_letters(memory_url, 20)
    with opened_letters(LetterPlace("orders.dlq"), memory_url, {}) as dead:
        page = letters_page(dead, LetterFilter(reason="KeyError"))
        assert (page.letters, page.following, page.complete) == ([], (0, 3), False)
        page = letters_page(dead, LetterFilter(reason="KeyError"), after=(0, 9))
        assert [each.place for each in page.letters] == ["1:0", "1:1", "1:2", "1:3"]


def test_the_places_of_an_app_are_those_of_its_streams_steps_and_agents(memory_url: str, tmp_path: Path) -> None:
    app = App("shop", memory_url)
    bad = NdjsonSink(tmp_path / "bad.ndjson")

    async def ask(row: object) -> object:
        return row

    app.stream(NdjsonSource(tmp_path / "in.ndjson"), schema={"a": "string"}, dead_letter=bad).map_async(
        ask, schema={"b": "string"}, on_error="skip", dead_letter="calls.dlq"
    ).to("out")
    app.stream("orders", schema={"a": "string"}, dead_letter="late.{topic}").to("out")

    @app.agent("tickets")
    async def handle(ctx: object) -> None: ...

    found = letter_places(app.spec.ends, app.spec.agent_specs)
    assert {each.name for each in found} == {str(tmp_path / "bad.ndjson"), "calls.dlq", "late.orders", "tickets.dlq"}
    assert {each.is_file for each in found if "bad" in each.name} == {True}


async def test_no_attempt_is_counted_for_a_record_that_cannot_be_decoded(memory_url: str) -> None:
    """That of a stream counted one, against the page, and that of an agent none."""
    broker = MemoryBroker.get(memory_url)
    app = App("shop", memory_url)
    app.stream("rows", schema={"n": "int64"}, until="now").to("out")

    @app.agent("records", until="now")
    async def look(ctx: Any) -> None:
        """Nothing."""

    @app.agent("batches", batch=True, schema={"n": "int64"}, until="now")
    async def count(batch: Any, ctx: Any) -> None:
        """Nothing."""

    for topic in ("rows", "records", "batches"):
        broker.publish(topic, [b'{"n": '])
    await app.run()
    letters = [
        dict(each.headers) for topic in ("rows", "records", "batches") for each in broker.records(f"{topic}.dlq")
    ]
    assert [each["sabot.attempts"] for each in letters] == [b"0"] * 3
