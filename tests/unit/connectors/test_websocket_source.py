"""Messages of a websocket. The server is the library's own, in threads of the test."""

import http
import ipaddress
import json
import logging
import queue
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.client import ClientConnection
from websockets.sync.server import Server, ServerConnection, serve

from sabot import App
from sabot.base.backoff import Backoff
from sabot.base.config import secret
from sabot.codecs.records import iterate_records
from sabot.connectors.base import Source
from sabot.connectors.http import WebsocketSource, websocket
from sabot.errors import UserError
from sabot.sql.syntax.text import SqlError
from sabot.testing.connectors import ConnectorPlace, SourceSuite
from sabot.testing.connectors.place import NewPlace
from sabot.testing.sinks import ListSink
from tools.agent_tools import until
from tools.broken_promises import FindsFaultsOfMemory
from tools.secure_broker import Authority

WAIT = 60.0  # seconds; only a test that fails waits so long


class Feed:
    """A server. `say`: what it does with each connection, the last one again and again. `refusals`: statuses of the next answers."""

    def __init__(self) -> None:
        self.say: list[Callable[[ServerConnection], object]] = []
        self.refusals: list[http.HTTPStatus] = []
        self.requests: list[Headers] = []
        self.heard: queue.Queue[Any] = queue.Queue()
        self.stopped = threading.Event()
        self.server: Server = serve(self.serve, "127.0.0.1", 0, process_request=self.request, max_size=None)
        self.port = self.server.socket.getsockname()[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def request(self, connection: ServerConnection, request: Request) -> Response | None:
        self.requests.append(request.headers)
        if not self.refusals:
            return None
        answer = connection.respond(self.refusals.pop(0), "no\n")
        answer.headers["Location"] = "ws://127.0.0.2/other"
        return answer

    def serve(self, connection: ServerConnection) -> None:
        say = self.say.pop(0) if len(self.say) > 1 else self.say[0]
        say(connection)

    def stays(self, *messages: str | bytes) -> Callable[[ServerConnection], object]:
        """Sends messages, and keeps the connection."""

        def say(connection: ServerConnection) -> None:
            for each in messages:
                connection.send(each)
            for heard in connection:
                self.heard.put(heard)

        return say

    def ends(self, *messages: str, code: int = 1000) -> Callable[[ServerConnection], object]:
        def say(connection: ServerConnection) -> None:
            for each in messages:
                connection.send(each)
            connection.close(code, "so it is")

        return say

    def source(self, **options: Any) -> WebsocketSource:
        source = WebsocketSource(f"ws://127.0.0.1:{self.port}/feed", **options)
        source.open(None)
        return source


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Feed]:
    monkeypatch.setattr(websocket, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(websocket, "BACKOFF", Backoff(0.01, 0.02))
    found = Feed()
    yield found
    found.server.shutdown()


class MessagesPlace(ConnectorPlace):
    """The messages of a server, each of which is sent once: to the last who has connected, when he has shown that he is there."""

    def __init__(self, feed: Feed) -> None:
        self.feed, self.unsent = feed, deque[int]()
        self.last: ServerConnection | None = None
        self.turn = threading.Lock()
        feed.say = [self.say]

    def say(self, connection: ServerConnection) -> None:
        self.last = connection
        with suppress(ConnectionClosed):
            while self.last is connection:
                if self.unsent and connection.ping().wait(1):
                    with self.turn:
                        if self.last is connection:
                            connection.send(json.dumps({"n": self.unsent.popleft()}))
                else:
                    with suppress(TimeoutError):  # until the next look, or the end of the connection
                        connection.recv(timeout=0.005)

    def put(self, numbers: Sequence[int]) -> None:
        self.unsent.extend(numbers)

    def source(self) -> Source:
        return WebsocketSource(f"ws://127.0.0.1:{self.feed.port}/feed")


class TestMessages(FindsFaultsOfMemory, SourceSuite):
    starts = ("earliest",)

    @pytest.fixture
    def new_place(self, feed: Feed) -> NewPlace:
        return lambda: MessagesPlace(feed)


def read(source: WebsocketSource, count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        batch = source.read_batch(2, WAIT)
        assert batch is not None
        assert batch.num_rows <= 2
        found += [each.payload or b"" for each in iterate_records(batch.data, source.name)]
    return found


def test_each_message_is_a_record_and_subscriptions_are_sent_at_each_connection(
    feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEED_TOKEN", "tok-1234567890")
    feed.say = [feed.ends('{"n": 1}', '{"n": 2}'), feed.stays('{"n": 3}', b"\xff\x00", "")]
    source = feed.source(subscribe=[{"op": "trades"}, "hello", secret("FEED_TOKEN"), lambda: "signed"])
    assert read(source, 5) == [b'{"n": 1}', b'{"n": 2}', b'{"n": 3}', b"\xff\x00", b""]
    assert [feed.heard.get(timeout=WAIT) for _ in range(4)] == ['{"op": "trades"}', "hello", "tok-1234567890", "signed"]
    assert source.positions() == {(source.name, 0): 5}
    assert source.figures()["reconnects"] == 1
    source.close()
    again = WebsocketSource(f"ws://127.0.0.1:{feed.port}/feed")
    again.recall(source.remember())
    again.open(source.positions())
    batch = again.read_batch(1, WAIT)
    assert batch is not None
    assert batch.data.column("offset").to_pylist() == [5]
    again.close()


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (lambda feed: feed.ends(), "was ended: 1000 so it is"),
        (lambda feed: feed.ends("1", code=1011), "was ended: 1011 so it is"),
        (lambda feed: lambda connection: connection.socket.shutdown(socket.SHUT_RDWR), "was cut off"),
    ],
)
def test_a_connection_that_ends_is_made_again(
    feed: Feed, caplog: pytest.LogCaptureFixture, ending: Callable[[Feed], Any], said: str
) -> None:
    feed.say = [ending(feed), ending(feed), feed.stays("2")]
    with caplog.at_level(logging.INFO, "sabot"):
        source = feed.source()
        while read(source, 1) != [b"2"]:
            pass
    assert said in caplog.text
    source.close()


@pytest.mark.parametrize("status", [http.HTTPStatus.SERVICE_UNAVAILABLE, http.HTTPStatus.TOO_MANY_REQUESTS])
def test_a_server_that_is_away_is_asked_again(
    feed: Feed, caplog: pytest.LogCaptureFixture, status: http.HTTPStatus
) -> None:
    feed.refusals, feed.say = [status, status], [feed.stays("1")]
    with caplog.at_level(logging.INFO, "sabot"):
        source = feed.source()
        assert read(source, 1) == [b"1"]
    said = [
        each.message.partition(f"/feed {'' if 'again' in each.message else 'cannot'}")[2] for each in caplog.records
    ]
    assert len(said) == 2
    assert f"answers {int(status)}: no" in caplog.text
    source.close()


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (http.HTTPStatus.UNAUTHORIZED, "answers 401: no"),
        (http.HTTPStatus.NOT_FOUND, "answers 404: no"),
        (http.HTTPStatus.FOUND, "answers 302: no"),
    ],
)
def test_a_server_that_refuses_ends_the_app(feed: Feed, status: http.HTTPStatus, said: str) -> None:
    feed.refusals = [status]
    source = feed.source()
    with pytest.raises(UserError, match=said):
        source.read_batch(10, WAIT)
    source.close()


def test_what_speaks_no_http_ends_the_app() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"220 mail.example.org ESMTP\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        source = WebsocketSource(f"ws://127.0.0.1:{server.getsockname()[1]}/")
        source.open(None)
        with pytest.raises(UserError, match=r"did not receive a valid HTTP response: .*220 mail\.example\.org ESMTP"):
            source.read_batch(10, WAIT)
        source.close()


def test_a_login_that_is_refused_is_read_again(feed: Feed) -> None:
    logins = iter(["Bearer first-token", "Bearer second-token"])
    feed.refusals, feed.say = [http.HTTPStatus.UNAUTHORIZED], [feed.stays("1")]
    source = feed.source(headers={"Authorization": lambda: next(logins)})
    assert read(source, 1) == [b"1"]
    assert [each["Authorization"] for each in feed.requests] == ["Bearer first-token", "Bearer second-token"]
    source.close()


def test_a_silent_server_is_asked_whether_it_is_there(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = WebsocketSource(f"ws://127.0.0.1:{silent.getsockname()[1]}/", timeout="50ms")
        source.open(None)
        assert source.read_batch(10, 0.3) is None
        source.close()
    pings, ping = threading.Semaphore(0), ClientConnection.ping

    def answered(connection: ClientConnection) -> threading.Event:
        """Returns when the library of the server has answered, which may take it longer than the timeout of the source."""
        told = ping(connection)
        assert told.wait(WAIT)
        pings.release()
        return told

    monkeypatch.setattr(ClientConnection, "ping", answered)

    def say(connection: ServerConnection) -> None:
        for _ in range(3):
            assert pings.acquire(timeout=WAIT)
        connection.send("late")
        for _ in connection:
            pass

    feed.say = [say]
    source = feed.source(timeout="50ms")
    assert read(source, 1) == [b"late"]
    assert source.figures()["reconnects"] == 0
    source.close()


def test_a_reader_that_is_slow_holds_the_server_and_not_the_memory(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "BUFFER_BYTES", 100_000)
    feed.say = [feed.stays(*(f"{n} {'x' * 10_000}" for n in range(1_000)))]
    source = feed.source()
    held, found = 0, list[bytes]()
    while len(found) < 1_000:
        found += read(source, 1)
        held = max(held, int(source.figures()["buffered_bytes"]))
    assert [int(each.split()[0]) for each in found] == list(range(1_000))
    assert held <= 100_000 + 20_000
    source.close()


def test_a_message_that_is_too_large_ends_the_app(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "MESSAGE_BYTES", 1_000)
    feed.say = [feed.stays("1", "x" * 1_001)]
    source = feed.source()
    assert read(source, 1) == [b"1"]
    with pytest.raises(UserError, match="a message has more than 1000 bytes"):
        source.read_batch(10, WAIT)
    source.close()


def test_an_error_of_a_function_of_subscribe_is_that_of_the_app(feed: Feed) -> None:
    def fails() -> str:
        raise RuntimeError("no key")

    source = feed.source(subscribe=[fails])
    with pytest.raises(RuntimeError, match="no key"):
        source.read_batch(10, WAIT)
    source.close()
    source = feed.source(subscribe=[lambda: 5])
    with pytest.raises(UserError, match="a function of subscribe= returns 5, and no text"):
        source.read_batch(10, WAIT)
    source.close()


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [
        ("http://h/x", {}, "is no address of a web server"),
        ("ws://", {}, "is no address"),
        ("ws://h/x", {"subscribe": "hello"}, "subscribe='hello'"),
        ("ws://h/x", {"subscribe": [5]}, "subscribe="),
        ("ws://h/x", {"headers": {"Host": "x"}}, "no header that can be set"),
        ("ws://h/x", {"timeout": "0s"}, "timeout"),
    ],
)
def test_wrong_options_are_refused(url: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        WebsocketSource(url, **options)


def test_a_certificate_is_checked_and_tls_says_whom_to_trust(tmp_path: Path) -> None:
    authority = Authority("tests")
    (tmp_path / "server.pem").write_bytes(authority.server(x509.IPAddress(ipaddress.ip_address("127.0.0.1"))))
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(tmp_path / "server.pem")
    with serve(lambda connection: connection.send("1"), "127.0.0.1", 0, ssl=shown) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"wss://127.0.0.1:{server.socket.getsockname()[1]}/feed"
        source = WebsocketSource(url)
        source.open(None)
        with pytest.raises(UserError, match="CERTIFICATE_VERIFY_FAILED") as raised:
            source.read_batch(10, WAIT)
        assert "tls= takes an ssl.SSLContext" in (raised.value.hint or "")
        source.close()
        source = WebsocketSource(url, tls=ssl.create_default_context(cadata=authority.pem.decode()))
        source.open(None)
        assert read(source, 1) == [b"1"]
        source.close()
        server.shutdown()


def test_the_passwords_of_an_address_are_in_no_name(feed: Feed) -> None:
    source = WebsocketSource("wss://ann:geheimnis99@example.org/feed?token=abcdefgh12345678")
    assert "geheimnis99" not in repr(source.name) + source.name
    assert "abcdefgh12345678" not in source.name


async def test_a_table_of_sql_has_the_messages(feed: Feed, tmp_path: Path) -> None:
    feed.say = [feed.stays(*(json.dumps({"n": n}) for n in range(3)))]
    app, found = App("feed", state=str(tmp_path / "state")), ListSink()
    rows: Any = app.sql(f"""
        CREATE TABLE ticks (n BIGINT) WITH ('connector' = 'websocket', 'url' = 'ws://127.0.0.1:{feed.port}/feed',
            'subscribe' = '{{"op": "ticks"}}', 'headers.X-Team' = 'shop', 'timeout' = '10 s');
        SELECT n * 2 AS n FROM ticks;
    """)
    rows.to(found)
    await app.start()
    await until(lambda: len(found.rows) == 3)
    await app.stop()
    assert [each["n"] for each in found.rows] == [0, 2, 4]
    assert feed.heard.get(timeout=WAIT) == '{"op": "ticks"}'
    assert feed.requests[0]["X-Team"] == "shop"
    with pytest.raises(SqlError, match=r"there is no option 'subscribed'(.|\n)*did you mean subscribe"):
        App("wrong").sql(
            "CREATE TABLE t (n BIGINT) WITH ('connector' = 'websocket', 'url' = 'ws://h/', 'subscribed' = 'x'); SELECT * FROM t"
        )
