"""Requests that others send: answered when they are on the disk, and each delivery a row once."""

import asyncio
import base64
import hashlib
import hmac
import http.client
import ipaddress
import json
import logging
import socket
import sqlite3
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from sabot import App, secret, steps
from sabot.base import http_connections, http_server
from sabot.clock import ManualClock
from sabot.codecs.records import iterate_records
from sabot.connectors.base import Source
from sabot.connectors.http import WebhookSource, spool, webhook
from sabot.connectors.http.signatures import Signatures
from sabot.errors import AppLocked, UserError
from sabot.sql.syntax.text import SqlError
from sabot.testing.connectors import ConnectorPlace, SourceSuite
from sabot.testing.connectors.place import NewPlace
from sabot.testing.sinks import ListSink
from tools.agent_tools import until
from tools.broken_promises import FindsFaults, broken, check_found
from tools.broker import free_ports
from tools.secure_broker import Authority

WAIT = 60.0  # seconds; only a test that fails waits so long
Answer = tuple[int, str, Mapping[str, str]]


def ask(port: int, body: bytes = b"", *, method: str = "POST", path: str = "/in", **headers: str) -> Answer:
    with socket.create_connection(("127.0.0.1", port), WAIT) as there:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.sock = there
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), {name.lower(): value for name, value in answer.getheaders()}


def status(port: int, body: bytes = b"{}", **headers: str) -> int:
    return ask(port, body, **headers)[0]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., WebhookSource]]:
    """Opens sources over one spool; each closes the one before."""
    sources: list[WebhookSource] = []

    def make(positions: Any = None, start: str = "earliest", **more: Any) -> WebhookSource:
        for each in sources:
            each.close()
        source = WebhookSource(
            **{"spool": tmp_path / "hooks.db", "port": 0, "path": "/in", "key": "Webhook-Id", **more}
        )
        sources.append(source)
        source.open(positions, start)
        return source

    yield make
    for each in sources:
        each.close()


def read(source: Source, count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        batch = source.read_batch(100, WAIT)
        assert batch is not None
        found += [json.loads(each.payload or b"")["n"] for each in iterate_records(batch.data, source.name)]
    return found


class HookPlace(ConnectorPlace):
    """A spool, and the port of its source. What is put while no source is open comes as it does to an app that runs for a moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (self.port,) = free_ports(1)
        self.sent = 0

    def put(self, numbers: Sequence[int]) -> None:
        try:
            self._send(numbers)
        except ConnectionRefusedError:
            source = self.source()
            source.open(None)
            self._send(numbers)
            source.close()

    def _send(self, numbers: Sequence[int]) -> None:
        for n in numbers:
            self.sent += 1
            assert status(self.port, json.dumps({"n": n}).encode(), Webhook_Id=f"{self.sent}") == 202

    def source(self) -> WebhookSource:
        return WebhookSource(self.path, port=self.port, path="/in", key="webhook-id")


class TestWebhooks(FindsFaults, SourceSuite):
    @pytest.fixture
    def new_place(self, tmp_path: Path) -> NewPlace:
        places: list[HookPlace] = []

        def make() -> HookPlace:
            places.append(HookPlace(tmp_path / str(len(places)) / "hooks.db"))
            return places[-1]

        return make

    @pytest.mark.slow
    def test_a_source_that_lets_its_spool_forget_before_a_checkpoint_is_found(
        self, new_place: NewPlace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def early(source: Any) -> None:
            read = source.read_batch

            def instead(max_rows: int, timeout: float) -> Any:
                batch = read(max_rows, timeout)
                source.commit(source.positions())
                end = time.monotonic() + WAIT
                while source.figures()["spool_rows"] > source.lag()[source.name, 0]:  # the spool forgets in a thread
                    assert time.monotonic() < end
                return batch

            source.read_batch = instead

        check_found(
            self,
            "the_log_forgets_nothing_that_the_last_complete_checkpoint_does_not_cover",
            broken(new_place, "source", early),
            monkeypatch,
        )


# -- answers ----------------------------------------------------------------------------------------------------------


def test_a_request_is_a_record_with_its_key_headers_and_time(made: Any) -> None:
    source = made()
    before = int(time.time() * 1000)
    assert (
        ask(
            source.port, b'{"n": 1}', Webhook_Id="a", X_Event="paid", Authorization="Bearer planted", Cookie="x=planted"
        )[0]
        == 202
    )
    batch = source.read_batch(10, WAIT)
    [record] = iterate_records(batch.data, source.name)
    assert (record.payload, record.key, record.offset) == (b'{"n": 1}', b"a", 0)
    assert before <= record.timestamp <= int(time.time() * 1000)
    assert dict(record.headers) == {"webhook-id": b"a", "x-event": b"paid"}


def test_a_sender_gives_a_record_no_headers_of_sabot_s_own(made: Any) -> None:
    # a request of "sabot.job" named the job of a durable agent: the second one of a name ended the app
    source, forged = made(), {"sabot.job": "parcels.parcels/1", "SABOT.Run": "0", "sabot.value": "x", "sabotage": "y"}
    assert status(source.port, Webhook_Id="a", **forged) == 202
    [record] = iterate_records(source.read_batch(10, WAIT).data, source.name)
    assert dict(record.headers) == {"webhook-id": b"a", "sabotage": b"y"}


def test_a_delivery_that_comes_again_is_answered_and_is_no_row_for_a_day(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    monkeypatch.setattr(spool, "SYSTEM_CLOCK", clock)
    source = made()
    assert [status(source.port, b'{"n": 1}', Webhook_Id="a") for _ in range(3)] == [202, 200, 200]
    assert status(source.port, b'{"n": 2}', Webhook_Id="b") == 202
    assert read(source, 2) == [1, 2]
    source.commit(source.positions())
    assert status(source.port, b'{"n": 1}', Webhook_Id="a") == 200  # its row was trimmed
    source = made(source.positions())
    clock.set(clock.time() + 3 * 86_400)  # a clock that is set forward makes no key old
    assert status(source.port, b'{"n": 1}', Webhook_Id="a") == 200
    clock.advance("23h")
    assert status(source.port, b'{"n": 1}', Webhook_Id="a") == 200
    clock.advance("2h")
    assert status(source.port, b'{"n": 3}', Webhook_Id="c") == 202  # by which old keys go
    assert status(source.port, b'{"n": 1}', Webhook_Id="a") == 202
    assert read(source, 2) == [3, 1]


def test_many_senders_of_the_same_deliveries_make_each_a_row_once(made: Any) -> None:
    source = made()

    def send(number: int) -> int:
        return status(source.port, json.dumps({"n": number % 40}).encode(), Webhook_Id=f"{number % 40}")

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(send, range(160)))
    assert sorted(answers) == [200] * 120 + [202] * 40
    assert sorted(read(source, 40)) == list(range(40))
    assert source.read_batch(10, 0) is None


@pytest.mark.parametrize(
    ("given", "expected", "said"),
    [
        ({"path": "/other"}, 404, "nothing is received"),
        ({"method": "GET"}, 405, "by POST"),
        ({"method": "PUT"}, 405, "by POST"),
        ({"Webhook_Id": ""}, 400, "has no webhook-id that names the delivery"),
        ({"Webhook_Id": "x" * 600}, 400, "of at most 512 bytes"),
        ({"body": b"x" * 1001}, 413, "at most 1000 bytes"),
        ({"Content_Encoding": "gzip"}, 415, "compressed"),
        ({"Origin": "http://example.org"}, 403, "of browsers"),
    ],
)
def test_a_request_that_is_not_taken_says_why(made: Any, given: dict[str, Any], expected: int, said: str) -> None:
    source = made(body_bytes=1000)
    body = given.pop("body", b"{}")
    found, text, headers = ask(source.port, body, **{"Webhook_Id": "a", **given})
    assert (found, headers["connection"]) == (expected, "close")
    assert said in text
    assert headers.get("allow") == ("POST" if expected == 405 else None)
    assert source.read_batch(10, 0) is None
    assert source.figures()[f"answers_{expected}"] == 1


def test_a_body_of_unknown_length_is_bounded_and_one_that_never_ends_is_left(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "BODY_SECONDS", 0.2)
    source = made(body_bytes=1000)
    head = b"POST /in HTTP/1.1\r\nHost: h\r\nWebhook-Id: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    for body, expected in ((b"5\r\n12345\r\n", 408), (b"3e9\r\n" + b"x" * 1001 + b"\r\n", 413)):
        with socket.create_connection(("127.0.0.1", source.port), WAIT) as there:
            there.sendall(head + body)
            assert there.recv(1000).startswith(f"HTTP/1.1 {expected} ".encode())
    with socket.create_connection(("127.0.0.1", source.port), WAIT) as there:
        there.sendall(head + b"5\r\n12345\r\n")  # and goes
    assert status(source.port, b"{}", Webhook_Id="b") == 202
    assert source.lag() == {(source.name, 0): 1}


def test_a_full_spool_takes_nothing_until_a_checkpoint_trims_it_and_still_knows_keys(made: Any) -> None:
    source = made(spool_bytes=1200)
    taken = 0
    while status(source.port, json.dumps({"n": taken, "x": "x" * 200}).encode(), Webhook_Id=f"{taken}") == 202:
        taken += 1
    assert taken == 3
    found, text, headers = ask(source.port, b"x" * 600, Webhook_Id="new")
    assert (found, text, headers["retry-after"]) == (503, "the spool is full", "5")
    assert status(source.port, b"{}", Webhook_Id="0") == 200
    assert read(source, 3) == [0, 1, 2]
    source.commit(source.positions())
    end = time.monotonic() + WAIT
    while source.figures()["spool_bytes"]:
        assert time.monotonic() < end
    assert status(source.port, b'{"n": 9}', Webhook_Id="new") == 202
    assert read(source, 1) == [9]


def test_a_disk_that_takes_nothing_is_said_to_the_sender_and_in_the_log(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spool, "WAIT_SECONDS", 0.05)
    source = made()
    with sqlite3.connect(tmp_path / "hooks.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")  # as a disk that is full, or a terminal of somebody
        with caplog.at_level(logging.INFO, "sabot"):
            for _ in range(2):
                assert status(source.port, b'{"n": 1}', Webhook_Id="a") == 503
            other.execute("ROLLBACK")
            assert status(source.port, b'{"n": 1}', Webhook_Id="a") == 202
    other.close()
    assert caplog.text.count("cannot be written, and takes nothing until it can: database is locked") == 1
    assert caplog.text.count("takes what arrives again") == 1
    assert read(source, 1) == [1]


def test_bodies_that_are_under_way_are_bounded_together(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "UNDER_WAY_BYTES", 1000)
    source = made()
    with socket.create_connection(("127.0.0.1", source.port), WAIT) as there:
        there.sendall(b"POST /in HTTP/1.1\r\nHost: h\r\nWebhook-Id: a\r\nContent-Length: 2000\r\n\r\n" + b"x" * 900)
        end = time.monotonic() + WAIT
        while (answer := ask(source.port, b"x" * 500, Webhook_Id="b"))[0] == 202:
            assert time.monotonic() < end
    assert (answer[0], answer[2]["retry-after"]) == (429, "5")


# -- senders who are slow ---------------------------------------------------------------------------------------------

HALF = b"POST /in HTTP/1.1\r\nHost: h\r\n"
WHOLE = HALF + b"Webhook-Id: %d\r\nContent-Length: 2\r\n\r\n{}"


def all_of(connection: socket.socket) -> bytes:
    """What the server sends until it ends the connection."""
    return b"".join(iter(partial(connection.recv, 4096), b""))


def test_a_head_that_does_not_come_is_told_so_and_a_silent_connection_is_closed(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connections, "HEAD_SECONDS", 0.2)
    source = made()
    with ExitStack() as opened:
        slow, silent = (
            opened.enter_context(socket.create_connection(("127.0.0.1", source.port), WAIT)) for _ in range(2)
        )
        slow.sendall(HALF)
        head, _, why = all_of(slow).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n")
        assert why == b"the head of the request has not come in 0.2 s"
        assert all_of(silent) == b""


@pytest.mark.parametrize("sent", [0, len(HALF), len(WHOLE % 1) - 1], ids=["nothing", "half a head", "half a body"])
def test_a_newer_sender_gets_the_place_of_the_slowest_one_who_is_told_so(
    made: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, sent: int
) -> None:
    """Who loses his place was cut off without a word, and each newer sender cost two of the others their places."""
    monkeypatch.setattr(http_server, "MOST_CONNECTIONS", 4)
    monkeypatch.setattr(http_connections, "HEAD_SECONDS", 3600.0)
    source = made()
    with ExitStack() as opened:
        slow = [opened.enter_context(socket.create_connection(("127.0.0.1", source.port), WAIT)) for _ in range(3)]
        for n, each in enumerate(slow):
            each.sendall((WHOLE % n)[:sent])
        known = http.client.HTTPConnection("127.0.0.1", source.port, timeout=WAIT)
        opened.callback(known.close)

        def send(delivery: str) -> int:
            known.request("POST", "/in", b"{}", {"Webhook-Id": delivery})
            answer = known.getresponse()
            answer.read()
            return answer.status

        assert send("known") == 202  # so all are there
        assert status(source.port, Webhook_Id="new") == 202
        head, _, why = all_of(slow[0]).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 5\r\n")
        assert why == b"the server has too many connections, and a newer one has got the place of this one"
        for n, each in enumerate(slow[1:], 1):
            each.sendall((WHOLE % n)[sent:])
            assert each.recv(4096).startswith(b"HTTP/1.1 202 ")
        assert send("known") == 200  # by the same connection
    assert caplog.text.count("source webhook /in has all its 4 connections, and ends the slowest") == 1


# -- crashes ----------------------------------------------------------------------------------------------------------


class LostAnswer:
    """The disk has what was committed, and does not say so."""

    def before(self, name: str, what: str) -> None:
        """Does nothing."""

    def after(self, name: str, what: str) -> None:
        if name == "spool":
            raise sqlite3.OperationalError("disk I/O error")

    def torn(self, name: str, what: str, size: int) -> int:
        return size


def test_a_row_whose_sender_got_no_answer_is_known_when_it_comes_again(made: Any) -> None:
    source = made()
    steps.watch(LostAnswer())
    try:
        assert status(source.port, b'{"n": 1}', Webhook_Id="a") == 503
    finally:
        steps.watch(None)
    assert status(source.port, b'{"n": 1}', Webhook_Id="a") == 200
    assert status(source.port, b'{"n": 2}', Webhook_Id="b") == 202
    assert read(source, 2) == [1, 2]
    later = made()
    assert status(later.port, b'{"n": 1}', Webhook_Id="a") == 200
    assert read(later, 2) == [1, 2]
    assert later.read_batch(10, 0) is None


def test_what_was_trimmed_or_is_of_another_spool_is_an_error(made: Any, tmp_path: Path) -> None:
    source = made()
    for n in range(3):
        status(source.port, json.dumps({"n": n}).encode(), Webhook_Id=f"{n}")
    read(source, 3)
    identity = source.topic_id()
    source.commit({(source.name, 0): 2})
    end = time.monotonic() + WAIT
    while source.figures()["spool_rows"] != 1:
        assert time.monotonic() < end
    with pytest.raises(UserError, match="the requests 1 to 1 are not in the spool"):
        made({(source.name, 0): 1})
    assert read(made({(source.name, 0): 2}), 1) == [2]
    assert read(made(), 1) == [2]  # afresh, with what there is
    other = made(spool=tmp_path / "other.db")
    assert other.topic_id() not in ("", identity)
    with pytest.raises(UserError, match=r"ends at 0, before the position 2"):
        made({(source.name, 0): 2}, spool=tmp_path / "other.db")


def test_a_spool_has_one_receiver_and_is_no_other_file(made: Any, tmp_path: Path) -> None:
    source = made()
    second = WebhookSource(tmp_path / "hooks.db", port=0)
    with pytest.raises(AppLocked, match="another process receives into it"):
        second.open(None)
    with pytest.raises(UserError, match=r"source webhook / has no port: \d+ is taken"):
        WebhookSource(tmp_path / "other.db", port=source.port).open(None)
    (tmp_path / "text.db").write_text(
        "some text that is no database, and is long enough to be read as the head of one" * 9
    )
    with pytest.raises(UserError, match="file is not a database"):
        WebhookSource(tmp_path / "text.db", port=0).open(None)
    sqlite3.connect(tmp_path / "own.db").execute("CREATE TABLE orders (n)").connection.close()
    with pytest.raises(UserError, match="it is another file"):
        WebhookSource(tmp_path / "own.db", port=0).open(None)


# -- signatures -------------------------------------------------------------------------------------------------------


def test_signatures_are_those_of_the_senders_own_pages() -> None:
    standard = Signatures("standard", ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
    github = Signatures("github", ["It's a Secret to Everybody"])
    for each in (standard, github):
        each.open()
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,other= v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE= v2,x",
    }
    assert standard.refusal(headers, b'{"test": 2432232314}', 1614265330 + 299) == ""
    assert "ago" in standard.refusal(headers, b'{"test": 2432232314}', 1614265330 + 301)
    assert "another secret or another body" in standard.refusal(headers, b'{"test": 2432232315}', 1614265330)
    assert "other" in standard.refusal({**headers, "webhook-id": "msg_2"}, b'{"test": 2432232314}', 1614265330)
    signed = {"x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"}
    assert github.refusal(signed, b"Hello, World!", 0) == ""
    assert github.refusal(signed, b"Hello, World?", 0)
    assert github.refusal({}, b"Hello, World!", 0) == "it has no x-hub-signature-256"


def of_stripe(secret: str, at: float, body: bytes) -> str:
    return f"t={at:.0f},v1={hmac.new(secret.encode(), f'{at:.0f}.'.encode() + body, hashlib.sha256).hexdigest()}"


def test_a_request_that_is_not_signed_by_a_secret_is_refused(
    made: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOOKS", "planted-secret-1")
    source = made(verify="stripe", secret=[secret("HOOKS"), "planted-secret-2"], key=None)
    now, body = time.time(), b'{"id": "evt_1", "n": 1}'
    for signature, expected in (
        (of_stripe("planted-secret-1", now, body), 202),
        (of_stripe("planted-secret-2", now, body), 200),
        ("v0=x,v1=x," + of_stripe("planted-secret-1", now, body), 200),
    ):
        assert status(source.port, body, Stripe_Signature=signature) == expected, signature
    for signature in (
        of_stripe("planted-secret-3", now, body),
        of_stripe("planted-secret-1", now - 400, body),
        of_stripe("planted-secret-1", now + 400, body),
        of_stripe("planted-secret-1", now, body + b" "),
        f"t={now:.0f},v1=",
        "t=,v1=x",
        "",
        "ü",
    ):
        assert status(source.port, body, Stripe_Signature=signature) == 401, signature
    other = b'{"n": 2}'
    assert (
        status(source.port, other, Stripe_Signature=of_stripe("planted-secret-1", now, other)) == 400
    )  # without an id
    assert read(source, 1) == [1]
    assert "planted" not in caplog.text + repr(source.figures())


def test_a_header_of_the_users_is_read_in_hex_and_in_base64(made: Any) -> None:
    source = made(verify="X-Shop-Hmac", secret="planted-secret")
    digest = hmac.new(b"planted-secret", b'{"n": 1}', hashlib.sha256).digest()
    for n, form in enumerate((digest.hex(), f"sha256={digest.hex()}", base64.b64encode(digest).decode())):
        assert status(source.port, b'{"n": 1}', X_Shop_Hmac=form, Webhook_Id=f"{n}") == 202
    assert status(source.port, b'{"n": 2}', X_Shop_Hmac=digest.hex(), Webhook_Id="9") == 401


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"port": -1}, "port"),
        ({"path": "in"}, "no path of an address"),
        ({"path": "/in?x"}, "no path of an address"),
        ({"host": "0.0.0.0"}, "their rows would be taken unsigned"),
        ({"verify": "github"}, "with 0 secrets"),
        ({"secret": "planted"}, "with 1 secrets"),
        ({"verify": "X Y", "secret": "planted"}, "is no header"),
        ({"key": "X Y"}, "key='X Y'"),
        ({"body_bytes": 0}, "body_bytes"),
        ({"keys": 0}, "keys"),
    ],
)
def test_what_cannot_be_is_refused_when_the_source_is_made(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        WebhookSource(**{"spool": "hooks.db", "port": 0, **options})
    assert "planted" not in str(raised.value)


def test_the_guarantee_depends_on_the_key() -> None:
    assert WebhookSource("hooks.db", port=0).guarantee == "at least once"
    assert WebhookSource("hooks.db", port=0, key="$.id").guarantee == "exactly once"
    assert WebhookSource("hooks.db", port=0, verify="github", secret="x").guarantee == "exactly once"


# -- apps -------------------------------------------------------------------------------------------------------------


async def test_an_app_goes_on_behind_the_requests_of_its_checkpoint(tmp_path: Path) -> None:
    place, out = HookPlace(tmp_path / "hooks.db"), ListSink()
    for count in (5, 8):
        app = App("received", state=tmp_path / "state", checkpoint_interval="50ms")
        source = place.source()
        app.stream(source, schema={"n": "int64"}).to(out, delivery="exactly_once")
        await app.start()
        await asyncio.to_thread(place.put, range(5) if count == 5 else range(5, 8))
        await until(lambda wanted=count: len(out.rows) >= wanted)
        await until(lambda wanted=count, source=source: source.figures()["spool_rows"] == 0)
        await app.stop()
    assert [row["n"] for row in out.rows] == list(range(8))


async def test_a_table_of_sql_receives_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKS", "planted-secret")
    place, out = HookPlace(tmp_path / "hooks.db"), ListSink()
    app = App("read", state=tmp_path / "state", checkpoint_interval="50ms")
    rows = app.sql(f"""
        CREATE TABLE orders (n BIGINT) WITH ('connector' = 'webhook', 'spool' = '{place.path}', 'port' = '{place.port}',
            'path' = '/in', 'key' = 'Webhook-Id', 'keys' = '1 h', 'verify' = 'X-Hmac', 'secret' = '${{env:HOOKS}}');
        SELECT * FROM orders;
    """)
    rows.to(out)
    await app.start()
    digest = hmac.new(b"planted-secret", b'{"n": 1}', hashlib.sha256).hexdigest()
    assert await asyncio.to_thread(status, place.port, b'{"n": 1}', X_Hmac=digest, Webhook_Id="a") == 202
    await until(lambda: out.rows)
    await app.stop()
    assert out.rows == [{"n": 1}]
    with pytest.raises(SqlError, match="needs the port at which it listens"):
        app.sql("CREATE TABLE t (n BIGINT) WITH ('connector' = 'webhook', 'spool' = 'x.db'); SELECT * FROM t")


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority() -> Authority:
    return Authority("tests")


@pytest.fixture
def shown(tmp_path: Path, authority: Authority) -> ssl.SSLContext:
    """The context of a server, with a certificate for 127.0.0.1."""
    (tmp_path / "server.pem").write_bytes(authority.server(x509.IPAddress(ipaddress.ip_address("127.0.0.1"))))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    return context


def post(port: int, body: bytes, trusted: ssl.SSLContext, key: str) -> int:
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=WAIT, context=trusted)
    connection.request("POST", "/in", body, {"Webhook-Id": key})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def test_requests_come_over_tls_with_the_certificate_that_is_given(
    made: Callable[..., WebhookSource], authority: Authority, shown: ssl.SSLContext
) -> None:
    source = made(tls=shown)
    trusted = ssl.create_default_context(cadata=authority.pem.decode())
    assert [post(source.port, b'{"n": 1}', trusted, "a") for _ in range(2)] == [202, 200]
    with pytest.raises(ssl.SSLCertVerificationError):
        post(source.port, b'{"n": 2}', ssl.create_default_context(), "b")
    with pytest.raises((http.client.HTTPException, OSError)):  # one who does not speak TLS
        ask(source.port, b'{"n": 3}', Webhook_Id="c")
    with socket.create_connection(("127.0.0.1", source.port), WAIT):  # a handshake that does not begin
        assert post(source.port, b'{"n": 4}', trusted, "d") == 202
    assert read(source, 2) == [1, 4]


def test_a_head_that_does_not_come_is_told_so_over_tls(
    made: Callable[..., WebhookSource],
    authority: Authority,
    shown: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that closes a connection of TLS in order waits for the other side, half a minute of one that is silent."""
    monkeypatch.setattr(http_connections, "HEAD_SECONDS", 0.2)
    source = made(tls=shown)
    trusted = ssl.create_default_context(cadata=authority.pem.decode())
    with (
        socket.create_connection(("127.0.0.1", source.port), WAIT) as plain,
        trusted.wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=True) as slow,
    ):
        slow.sendall(HALF)
        assert all_of(slow).startswith(b"HTTP/1.1 408 ")


def test_senders_show_a_certificate_where_the_context_asks_for_one(
    made: Callable[..., WebhookSource], tmp_path: Path, authority: Authority, shown: ssl.SSLContext
) -> None:
    shown.load_verify_locations(cadata=authority.pem.decode())
    shown.verify_mode = ssl.CERT_REQUIRED
    source = made(tls=shown)
    trusted = ssl.create_default_context(cadata=authority.pem.decode())
    with pytest.raises((http.client.HTTPException, OSError)):
        post(source.port, b'{"n": 1}', trusted, "a")
    trusted.load_cert_chain(tmp_path / "server.pem")
    assert post(source.port, b'{"n": 2}', trusted, "b") == 202
    assert read(source, 1) == [2]


@pytest.mark.parametrize(
    ("tls", "said"),
    [
        ("cert.pem", "tls='cert.pem' is no ssl.SSLContext"),
        (ssl.create_default_context(), "shows no certificate to senders .*PROTOCOL_TLS_CLIENT"),
        (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "shows no certificate to senders"),
    ],
    ids=["a path", "that of a client", "without a certificate"],
)
def test_a_context_with_which_nobody_could_send_is_refused(tls: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        WebhookSource("hooks.db", port=0, tls=tls)
    assert "load_cert_chain" in (refused.value.hint or "")
