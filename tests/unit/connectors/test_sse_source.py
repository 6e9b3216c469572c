"""Events that a server sends over one long answer. The server is a process of its own."""

import json
import logging
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sabot import App
from sabot.codecs.records import iterate_records
from sabot.connectors.base import Source
from sabot.connectors.http import SseSource, events, sse
from sabot.connectors.http.events import EventParser
from sabot.errors import UserError
from sabot.sql.syntax.text import SqlError
from sabot.testing.connectors import ConnectorPlace, SourceSuite
from sabot.testing.connectors.place import NewPlace
from sabot.testing.sinks import ListSink
from tools.agent_tools import until
from tools.broken_promises import FindsFaultsOfMemory
from tools.web_server import WebServer

WAIT = 60.0  # seconds; only a test that fails waits so long


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    server = WebServer(tmp_path_factory.mktemp("web"))
    yield server
    server.stop()


@pytest.fixture
def server(shared: WebServer) -> WebServer:
    shared.clear()
    shared.watch()
    return shared


def opened(server: WebServer, **more: Any) -> SseSource:
    source = SseSource(f"{server.origin}/events", **more)
    source.open(None)
    return source


def read(source: Source, count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        batch = source.read_batch(100, WAIT)
        assert batch is not None
        found += [json.loads(each.payload or b"")["n"] for each in iterate_records(batch.data, source.name)]
    return found


def asked(server: WebServer) -> list[str | None]:
    return [headers.get("last-event-id") for _, _, headers, _ in server.requests]


class EventsPlace(ConnectorPlace):
    """The events of a server, each of which has an id. Those without (`ids="none"`) are sent once: to who is connected then."""

    def __init__(self, server: WebServer, ids: Any) -> None:
        server.clear()
        self.server, self.ids = server, ids

    def put(self, numbers: Sequence[int]) -> None:
        self.server.put([{"n": n} for n in numbers], "once" if self.ids == "none" else "")

    def source(self) -> Source:
        return SseSource(f"{self.server.origin}/events{'?once' if self.ids == 'none' else ''}", ids=self.ids)


class TestEvents(FindsFaultsOfMemory, SourceSuite):
    starts = ("earliest",)

    @pytest.fixture(params=["given", "consecutive", "none"])
    def new_place(self, shared: WebServer, request: pytest.FixtureRequest) -> NewPlace:
        return lambda: EventsPlace(shared, request.param)


# -- the form ---------------------------------------------------------------------------------------------------------

STREAM = (
    b"\xef\xbb\xbf: hello\n\nid: 1\ndata: a\ndata:b\ndata\n\n\n\nevent: tick\rdata:  x\r\r"
    b"id: 2\r\nretry: 70\r\nunknown: y\r\n\r\nid: \0\ndata: z\n\nid\ndata: empty\n\nevent: gone\nretry: no\n\ndata: cut off"
)
EVENTS = [
    (b"message", b"a\nb\n", b"1"),
    (b"tick", b" x", None),
    (b"", b"", b"2"),
    (b"message", b"z", None),
    (b"message", b"empty", b""),
]


def test_events_are_the_same_wherever_their_stream_is_cut() -> None:
    for cut in range(len(STREAM) + 1):
        parser = EventParser()
        assert parser.feed(STREAM[:cut]) + parser.feed(STREAM[cut:]) == EVENTS, cut
        assert parser.retry_ms == 70
    chosen = random.Random(53)
    for _ in range(50):
        parser, found, at = EventParser(), [], 0
        while at < len(STREAM):
            size = chosen.randint(1, 9)
            found += parser.feed(STREAM[at : at + size])
            at += size
        assert found == EVENTS


SHAPES: Sequence[tuple[bytes, tuple[bytes, bytes, bytes | None] | None]] = (
    (b"id: 1\ndata: a", (b"message", b"a", b"1")),
    (b"event: tick\nid:2\ndata:b", (b"tick", b"b", b"2")),
    (b"data: c", (b"message", b"c", None)),
    (b"data:", (b"message", b"", None)),
    (b"id:\ndata: an empty id", (b"message", b"an empty id", b"")),
    (b"id: \ndata: as empty", (b"message", b"as empty", b"")),
    (b"event: \ndata: of no type", (b"message", b"of no type", None)),
    (b"data: two\ndata: lines", (b"message", b"two\nlines", None)),
    (b"data: d\nid: 3", (b"message", b"d", b"3")),
    (b"event:\ndata: e", (b"message", b"e", None)),
    (b"comment: no\ndata: f", (b"message", b"f", None)),
    (b"retry: 1\nid: 4\ndata: g", (b"message", b"g", b"4")),
    (b"\ndata: behind two blank lines", (b"message", b"behind two blank lines", None)),
    (b": a comment", None),
    (b"", None),
)


def test_events_that_come_together_are_those_that_come_one_by_one() -> None:
    chosen = random.Random(182)
    for _ in range(500):
        shapes = chosen.choices(SHAPES[: chosen.randint(1, len(SHAPES))], k=chosen.randint(1, 6))
        piece = b"".join(text + b"\n\n" for text, _ in shapes)
        assert EventParser().feed(piece) == [event for _, event in shapes if event is not None], piece


def test_an_event_without_an_end_does_not_fill_the_memory(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "EVENT_BYTES", 1000)
    server.fail({"events": "data: " + "x" * 100_000})
    source = opened(server)
    with pytest.raises(UserError, match="an event has more than 1000 bytes"):
        source.read_batch(10, WAIT)
    source.close()


# -- connections ------------------------------------------------------------------------------------------------------


def test_a_connection_that_ends_is_made_again_behind_the_last_event(server: WebServer) -> None:
    server.fail(*({"events": f'retry: 50\nid: {n}\ndata: {{"n": {n}}}\n\n'} for n in (1, 2, 3)))
    source = opened(server)
    assert read(source, 3) == [1, 2, 3]
    server.put([{"n": n} for n in range(1, 6)])
    assert read(source, 2) == [4, 5]
    assert asked(server)[:4] == [None, "1", "2", "3"]
    assert source.figures()["reconnects"] == 3
    source.close()


def test_the_event_of_the_last_id_is_dropped_if_it_comes_again(server: WebServer) -> None:
    server.fail(
        {"events": 'retry: 50\nid: x\ndata: {"n": 1}\n\n'},
        {"events": 'id: x\ndata: {"n": 1}\n\nid: y\ndata: {"n": 2}\n\n'},
    )
    source = opened(server)
    assert read(source, 2) == [1, 2]
    source.close()


def test_a_batch_has_type_and_id_of_each_event_and_only_the_wanted_types(server: WebServer) -> None:
    server.fail(
        {"events": 'event: a\nid: 1\ndata: {"n": 1}\n\nevent: b\nid: 2\ndata: 2\n\nevent: a\nid: 3\ndata: {"n": 3}\n\n'}
    )
    source = opened(server, events=["a"])
    batch = source.read_batch(10, WAIT)
    assert batch is not None
    found = [(each.payload, each.headers) for each in iterate_records(batch.data, source.name)]
    assert found == [(f'{{"n": {n}}}'.encode(), (("event", b"a"), ("id", str(n).encode()))) for n in (1, 3)]
    source.close()
    server.fail({"events": "event: a\ndata: 1\nid: 1\n\nid: 2\nevent: b\ndata: 2\n\n"})
    source = SseSource(f"{server.origin}/events")
    source.leave_headers()  # as for a program that does not read them
    source.open(None)
    batch = source.read_batch(10, WAIT)
    assert batch is not None
    assert batch.data.column("headers").to_pylist() == [None, None]
    letters = source.with_headers(batch.data.slice(1))
    assert [each.headers for each in iterate_records(letters, source.name)] == [(("event", b"b"), ("id", b"2"))]
    source.close()


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 429}, {"status": 204}, {"silent": True}, {"events": ""}])
def test_a_server_that_sends_nothing_is_asked_again(
    server: WebServer, caplog: pytest.LogCaptureFixture, fault: dict[str, Any]
) -> None:
    server.put([{"n": n} for n in range(3)])
    server.fail(fault)
    source = opened(server, timeout="500ms" if "silent" in fault else "60s")
    with caplog.at_level(logging.INFO, "sabot"):
        assert read(source, 3) == [0, 1, 2]
    said = [re.sub(r"http\S+", "…", each.message).split(":")[0] for each in caplog.records]
    # a server that has sent its greeting was alive, and its silence is one of the network
    assert said == ["source … cannot be read, and is asked until it answers", "source … sends events again"]
    source.close()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"status": 404}, "answers 404: no"),
        ({"status": 401}, "answers 401: no"),
        ({"text": "<html>Welcome</html>"}, "the answer is 'text/html', and no stream of events"),
        ({"status": 302, "headers": {"Location": "http://127.0.0.2/events"}}, "it is another server"),
    ],
)
def test_what_is_no_stream_of_events_ends_the_app(server: WebServer, fault: dict[str, Any], said: str) -> None:
    server.fail(fault)
    source = opened(server)
    with pytest.raises(UserError, match=said):
        source.read_batch(10, WAIT)
    source.close()


def test_a_login_that_is_refused_is_read_again(server: WebServer) -> None:
    logins = iter(["Bearer first-token", "Bearer second-token"])
    server.put([{"n": 1}])
    server.fail({"status": 401})
    source = opened(server, headers={"Authorization": lambda: next(logins)})
    assert read(source, 1) == [1]
    source.close()


def test_a_reader_that_is_slow_holds_the_server_and_not_the_memory(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "BUFFER_BYTES", 100_000)
    server.fail({"events": "".join(f'id: {n}\ndata: {{"n": {n}, "x": "{"x" * 1000}"}}\n\n' for n in range(5_000))})
    source = opened(server)
    found: list[Any] = []
    held = 0
    while len(found) < 5_000:
        batch = source.read_batch(100, WAIT)
        assert batch is not None
        held = max(held, int(source.figures()["buffered_bytes"]))
        found += [json.loads(each.payload or b"")["n"] for each in iterate_records(batch.data, source.name)]
    assert found == list(range(5_000))
    assert held < 100_000 + 1_500_000  # and one piece of the network
    source.close()


# -- what ids promise -------------------------------------------------------------------------------------------------


def test_a_server_that_has_forgotten_events_is_an_error_if_ids_are_counted(server: WebServer) -> None:
    first, later = 'retry: 50\nid: 7\ndata: {"n": 7}\n\n', 'id: 12\ndata: {"n": 12}\n\n'
    server.fail({"events": first}, {"events": later})
    source = opened(server, ids="consecutive")
    assert read(source, 1) == [7]
    with pytest.raises(UserError, match="has forgotten the events 8 to 11: behind 7 it sends 12"):
        read(source, 1)
    source.close()
    server.fail({"events": first}, {"events": later})
    source = opened(server)  # ids of any kind have no gaps that could be seen
    assert read(source, 2) == [7, 12]
    source.close()


def test_a_server_that_begins_anew_repeats_nothing_if_ids_are_counted(server: WebServer) -> None:
    every = [f'id: {n}\ndata: {{"n": {n}}}\n\n' for n in range(1, 6)]
    server.fail({"events": "retry: 50\n" + "".join(every[:3])}, {"events": "".join(every)})
    source = opened(server, ids="consecutive")
    assert read(source, 5) == [1, 2, 3, 4, 5]
    source.close()


def test_a_start_without_a_checkpoint_begins_behind_an_id(server: WebServer) -> None:
    server.put([{"n": n} for n in range(5)])
    source = opened(server, after="3", ids="consecutive")
    assert read(source, 2) == [3, 4]
    assert asked(server) == ["3"]
    source.close()


@pytest.mark.parametrize(
    ("ids", "text", "said"),
    [
        (
            "given",
            "event: ping\ndata: 1\n\n",
            "an event of type 'ping' has no id, so a restart could not go on behind it",
        ),
        ("consecutive", "data: 1\n\n", "an event of type 'message' has no id"),
        ("consecutive", "id: 1a\ndata: 1\n\n", "the id of an event is '1a', and no whole number"),
    ],
)
def test_events_without_the_promised_ids_are_an_error(server: WebServer, ids: Any, text: str, said: str) -> None:
    server.fail({"events": text})
    source = opened(server, ids=ids)
    with pytest.raises(UserError, match=said):
        source.read_batch(10, WAIT)
    source.close()


def test_events_without_ids_count_at_most_once_and_the_source_says_so(server: WebServer) -> None:
    server.fail({"events": 'retry: 50\nid: 4\ndata: {"n": 1}\n\ndata: {"n": 2}\n\n'}, {"events": 'data: {"n": 3}\n\n'})
    source = opened(server, ids="none")
    assert read(source, 3) == [1, 2, 3]
    assert asked(server)[:2] == [None, None]
    source.close()
    assert (source.guarantee, SseSource("http://h/").guarantee) == ("at most once", "exactly once")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"events": "update"}, "events='update'"),
        ({"ids": "some"}, "ids"),
        ({"after": "3", "ids": "none"}, "after='3' with ids='none'"),
        ({"after": "x", "ids": "consecutive"}, "after is 'x', and no whole number"),
        ({"after": "a\nb"}, "after="),
        ({"timeout": 0}, "timeout"),
        ({"url": "h"}, "no address of a web server"),
    ],
)
def test_what_cannot_be_is_refused_when_the_source_is_made(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        SseSource(**{"url": "http://h/", **options})


# -- apps -------------------------------------------------------------------------------------------------------------


async def test_an_app_goes_on_behind_the_events_of_its_checkpoint(server: WebServer, tmp_path: Path) -> None:
    server.put([{"n": n} for n in range(7)])
    out = ListSink()
    for count in (7, 9):
        app = App("followed", state=tmp_path / "state", checkpoint_interval="50ms")
        source = SseSource(f"{server.origin}/events", ids="consecutive")
        app.stream(source, schema={"n": "int64"}).to(out, delivery="exactly_once")
        await app.start()
        await until(lambda wanted=count: len(out.rows) >= wanted)
        await app.stop()
        server.put([{"n": n} for n in (7, 8)] if count == 7 else [])
    assert [row["n"] for row in out.rows] == list(range(9))


async def test_a_table_of_sql_reads_events(server: WebServer, tmp_path: Path) -> None:
    app, out = App("read", state=tmp_path / "state", checkpoint_interval="50ms"), ListSink()
    server.put([{"n": 1}])
    rows = app.sql(f"""
        CREATE TABLE orders (n BIGINT) WITH ('connector' = 'sse', 'url' = '{server.origin}/events', 'events' = 'message, update',
            'ids' = 'consecutive', 'timeout' = '10 s', 'headers.X-Team' = 'shop');
        SELECT * FROM orders;
    """)
    rows.to(out)
    await app.start()
    await until(lambda: out.rows)
    await app.stop()
    assert out.rows == [{"n": 1}]
    assert server.requests[0][2]["x-team"] == "shop"
    with pytest.raises(SqlError, match="there is no option 'event'"):
        app.sql(
            "CREATE TABLE t (n BIGINT) WITH ('connector' = 'sse', 'url' = 'http://h/', 'event' = 'x'); SELECT * FROM t"
        )
