"""Rows sent to a web server that is a process of its own, and what it does to them."""

import ipaddress
import json
import logging
import ssl
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from sabot import App, secret
from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import build_records
from sabot.connectors.base import Sink, Track
from sabot.connectors.http import HttpSink
from sabot.connectors.http.client import HeaderValue, WebAnswer
from sabot.connectors.installed import summary
from sabot.engine.delivery.guarantees import sink_guarantee
from sabot.errors import RowErrors, TransientError, UserError
from sabot.sql.syntax.text import SqlError
from sabot.testing.connectors import ConnectorPlace, DeliverySuite, SinkSuite
from sabot.testing.connectors.delivery import columns, rows_of
from sabot.testing.connectors.place import NewPlace, Row, raises
from sabot.testing.sinks import ListSink
from tools.broken_promises import AGAIN, another_name_each_time, broken, check_found
from tools.secure_broker import Authority
from tools.web_server import WebServer

TRACK = Track("app", "sink.1", "first")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    server = WebServer(tmp_path_factory.mktemp("web"))
    yield server
    server.stop()


@pytest.fixture
def server(shared: WebServer) -> WebServer:
    """The server without rows, faults and notes."""
    shared.clear()
    return shared


class WebPlace(ConnectorPlace):
    """The rows of a server. It keeps nobody out, as there is no token at it."""

    fences = False

    def __init__(self, server: WebServer, batch: int, *, idempotent: bool) -> None:
        server.clear(idempotent=idempotent)
        self.server, self.batch, self.idempotent = server, batch, idempotent

    def sink(self) -> Sink:
        return HttpSink(self.server.url, batch=self.batch, idempotent=self.idempotent)

    def rows(self) -> Sequence[Row]:
        return [(row["n"], row["text"]) for row in self.server.rows()]


class TestRequests(SinkSuite):
    @pytest.fixture(params=[1, 4])
    def new_place(self, shared: WebServer, request: pytest.FixtureRequest) -> NewPlace:
        return lambda: WebPlace(shared, request.param, idempotent=False)


class TestPartsAtAServerThatKnowsKeys(DeliverySuite):
    @pytest.fixture
    def new_place(self, shared: WebServer) -> NewPlace:
        return lambda: WebPlace(shared, 4, idempotent=True)

    @pytest.mark.slow
    def test_a_sink_that_gives_a_part_another_key_is_found(
        self, new_place: NewPlace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        check_found(self, AGAIN, broken(new_place, "sink", another_name_each_time), monkeypatch)


def claimed(server: WebServer, **options: Any) -> HttpSink:
    sink = HttpSink(server.url, **options)
    sink.claim(TRACK)
    return sink


def numbers(server: WebServer) -> list[int]:
    return [row["n"] for row in server.rows()]


# -- what a request is


def test_a_request_has_a_row_or_an_array_and_a_key_that_names_its_rows(server: WebServer) -> None:
    server.watch()
    sink = claimed(server, batch=3, headers={"X-Team": "shop"})
    sink.deliver(7, [columns(rows_of(0, 4))])
    sink.close()
    alone = HttpSink(server.url, method="PUT", headers={"Content-Type": "text/plain"})
    alone.open()
    alone.write(Batch(columns(rows_of(9, 1))))
    alone.close()
    (_, _, first, body), (_, _, second, rest), (method, path, third, row) = server.requests
    assert [json.loads(each) for each in (body, rest, row)] == [
        [{"n": n, "text": text} for n, text in rows_of(0, 3)],
        [{"n": n, "text": text} for n, text in rows_of(3, 1)],
        {"n": 9, "text": None},
    ]
    assert (first["idempotency-key"], second["idempotency-key"]) == (
        "sabot.app.sink.1/first/7/0-2",
        "sabot.app.sink.1/first/7/3-3",
    )
    assert (first["content-type"], first["x-team"], first["user-agent"]) == ("application/json", "shop", "sabot")
    assert (method, path, third["content-type"], len(third["idempotency-key"])) == ("PUT", "/rows", "text/plain", 36)


def test_a_payload_that_is_no_json_is_refused_where_it_would_break_an_array(server: WebServer) -> None:
    records = build_records([b'{"n": 1}', b"{", None], None, [0] * 3, 0, range(3))
    sink = HttpSink(server.url, batch=2)
    sink.open()
    with pytest.raises(RowErrors) as raised:
        sink.write(Batch(records))
    assert sorted(raised.value.rows) == [2]
    with pytest.raises(RowErrors, match="is no JSON") as raised:
        sink.write(Batch(records.slice(0, 2)))
    assert sorted(raised.value.rows) == [1]
    assert server.rows() == []
    sink.close()


# -- answers


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_an_answer_that_may_pass_is_waited_for(server: WebServer, status: int) -> None:
    server.fail({"status": status})
    sink = claimed(server)
    with pytest.raises(TransientError, match=f"answers {status}: no"):
        sink.deliver(1, [columns(rows_of(0, 2))])
    assert server.rows() == []
    sink.claim(TRACK)
    sink.deliver(1, [columns(rows_of(0, 2))])
    assert numbers(server) == [0, 1]
    sink.close()


@pytest.mark.parametrize("status", [204, 301, 302, 401, 403, 404, 405, 501])
def test_an_answer_that_says_nothing_about_rows_refuses_none(server: WebServer, status: int) -> None:
    server.fail({"status": status, "headers": {"Location": "/other", "Content-Length": "0"}})
    sink = claimed(server)
    if status == 204:
        sink.deliver(1, [columns(rows_of(0, 1))])
    else:
        with pytest.raises(UserError) as raised:
            sink.deliver(1, [columns(rows_of(0, 1))])
        assert str(status) in str(raised.value)
        assert sink.refused_rows([columns(rows_of(0, 1))]) == {}
    sink.close()


def test_a_redirect_within_the_server_is_followed_and_one_to_another_gets_nothing(
    server: WebServer, tmp_path: Path
) -> None:
    other = WebServer(tmp_path / "other")
    other.watch()
    server.watch()
    server.fail({"status": 307, "headers": {"Location": "/elsewhere"}})
    sink = claimed(server, headers={"Authorization": "Bearer planted-login"})
    sink.deliver(1, [columns(rows_of(0, 1))])
    assert [path for _, path, _, _ in server.requests] == ["/rows", "/elsewhere"]
    server.fail({"status": 307, "headers": {"Location": f"{other.url}?token=planted"}})
    with pytest.raises(UserError, match="redirects with 307") as raised:
        sink.deliver(2, [columns(rows_of(1, 1))])
    assert (other.requests, numbers(server)) == ([], [0])
    assert "planted" not in str(raised.value)
    server.fail(*[{"status": 308, "headers": {"Location": "/rows"}}] * 9)
    with pytest.raises(UserError, match="more than 5 times"):
        sink.deliver(3, [columns(rows_of(1, 1))])
    sink.close()
    other.stop()


def test_rows_of_a_refused_request_are_tried_alone_and_the_others_are_there_once(server: WebServer) -> None:
    rows = [{"n": n, "refuse": {2: 422, 5: 400}.get(n, 0)} for n in range(8)]
    records = build_records([json.dumps(row).encode() for row in rows], None, [0] * 8, 0, range(8))
    sink = claimed(server, batch=4)
    server.fail({}, {}, {"status": 503})  # among the halves
    with pytest.raises(TransientError):
        sink.deliver(1, [records])
    sink.claim(TRACK)
    for _ in range(2):  # the dead letters were not safe at first
        with pytest.raises(RowErrors):
            sink.deliver(1, [records])
        sink.claim(TRACK)
    refused = sink.refused_rows([records])
    assert {row: why.split("answers ")[1][:3] for row, why in refused.items()} == {2: "422", 5: "400"}
    sink.deliver(1, [records.take([0, 1, 3, 4, 6, 7])])
    assert numbers(server) == [0, 1, 3, 4, 6, 7]
    sink.deliver(2, [records.take([0])])  # the same row in another part is another row
    assert numbers(server)[6:] == [0]
    sink.close()


def test_a_key_that_is_being_worked_on_is_asked_for_again(server: WebServer) -> None:
    server.fail({"status": 409}, {"status": 409})
    sink = claimed(server)
    sink.deliver(1, [columns(rows_of(0, 1))])
    assert numbers(server) == [0]
    sink.close()


def test_retry_after_is_kept_and_no_request_comes_before_it(server: WebServer) -> None:
    server.watch()
    server.fail({"status": 429, "headers": {"Retry-After": "3000"}})
    sink = claimed(server)
    for said in ("answers 429", "in 3000 s", "in 3000 s"):
        with pytest.raises(TransientError, match=said):
            sink.deliver(1, [columns(rows_of(0, 1))])
        sink.claim(TRACK)
    assert len(server.requests) == 1
    sink.close()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"retry-after": "120"}, 120),
        ({"retry-after": "999999999"}, 3600),
        ({"retry-after": "-5"}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "Fri, 05 Jul 1996 00:01:30 GMT", "date": "Fri, 05 Jul 1996 00:00:00 GMT"}, 90),
        ({"retry-after": "Fri, 05 Jul 1996 00:00:00 GMT", "date": "Fri, 05 Jul 1996 00:01:00 GMT"}, 0),
        ({"retry-after": "Fri, 05 Jul 2996 00:00:00 GMT"}, 0),  # our clock may be wrong: the back-off waits
    ],
)
def test_the_wait_that_a_server_asks_for_is_by_its_own_clock_and_bounded(
    headers: dict[str, str], seconds: float
) -> None:
    assert WebAnswer(503, headers, b"").wait_s == seconds


# -- networks


@pytest.mark.parametrize("fault", [{"lost": True}, {"half": True}, {"killed": True}])
def test_a_request_whose_answer_is_lost_comes_again_with_its_key(server: WebServer, fault: dict[str, Any]) -> None:
    sink = claimed(server, batch=2)
    server.fail({}, fault)
    with pytest.raises(TransientError):
        sink.deliver(1, [columns(rows_of(0, 5))])
    if "killed" in fault:
        with pytest.raises(TransientError):
            sink.deliver(1, [columns(rows_of(0, 5))])
        server.start()
    sink.claim(TRACK)
    sink.deliver(1, [columns(rows_of(0, 5))])
    assert numbers(server) == [0, 1, 2, 3, 2, 3, 4]  # the first request is not sent again
    keys = server.keys()
    assert keys[2:4] == keys[4:6]
    sink.close()


def test_a_server_that_sends_a_byte_now_and_then_holds_nobody_up(server: WebServer) -> None:
    server.fail({"slow": True})
    sink = claimed(server, timeout="2s")  # which the next request has too
    with pytest.raises(TransientError, match="no whole answer in 2 s"):
        sink.deliver(1, [columns(rows_of(0, 1))])
    sink.deliver(1, [columns(rows_of(0, 1))])
    assert numbers(server) == [0]
    sink.close()


def test_a_close_ends_a_request_that_waits(server: WebServer) -> None:
    server.watch()
    server.fail({"slow": True})
    sink = claimed(server, timeout="1h")
    raised: list[BaseException] = []

    def deliver() -> None:
        raised.append(raises(TransientError, lambda: sink.deliver(1, [columns(rows_of(0, 1))]), "deliver"))

    thread = threading.Thread(target=deliver)
    thread.start()
    while not server.requests:
        threading.Event().wait(0.01)
    sink.close()
    thread.join(60)
    assert "was closed" in str(raised[0])


def test_of_a_large_answer_only_the_beginning_is_read(server: WebServer) -> None:
    server.fail({"bytes": 30_000_000})
    sink = claimed(server)
    sink.deliver(1, [columns(rows_of(0, 1))])
    sink.deliver(2, [columns(rows_of(1, 1))])
    assert numbers(server) == [0, 1]
    sink.close()


def test_without_parts_a_server_that_is_away_is_waited_for(server: WebServer, caplog: pytest.LogCaptureFixture) -> None:
    server.fail({"status": 503}, {"lost": True})
    sink = HttpSink(server.url)
    sink.open()
    with caplog.at_level(logging.INFO, "sabot"):
        sink.write(Batch(columns(rows_of(0, 2))))
    assert numbers(server) == [0, 0, 1]
    assert len(set(server.keys())) == 2
    assert [record.message.split(f"{server.url} ", 1)[1] for record in caplog.records] == [
        f"takes no rows, and is tried until it does: sink {server.url} answers 503: no",
        "takes rows again, after 2 tries",
    ]
    sink.close()


# -- login


def test_a_login_is_read_again_when_it_is_refused(server: WebServer) -> None:
    logins = iter(["Bearer first-token", "Bearer second-token", "Bearer second-token"])
    server.watch()
    server.fail({"status": 401}, {}, {"status": 401})
    sink = claimed(server, headers={"Authorization": lambda: next(logins)})
    sink.deliver(1, [columns(rows_of(0, 1))])
    with pytest.raises(UserError, match="answers 401"):
        sink.deliver(2, [columns(rows_of(1, 1))])
    found = [headers["authorization"] for _, _, headers, _ in server.requests]
    assert found == ["Bearer first-token", *["Bearer second-token"] * 2]
    sink.close()


def test_no_secret_is_in_a_name_a_message_or_a_log(
    server: WebServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ALERTS", "Bearer planted-token-1")
    url = server.url.replace("http://", "http://joe:planted-password-2@") + "?api_key=planted-key-3"
    server.watch()
    with caplog.at_level(logging.DEBUG):
        sink = HttpSink(url, headers={"X-Api-Key": "planted-header-4", "Authorization": secret("ALERTS")})
        sink.claim(TRACK)
        server.fail({"status": 404}, {"lost": True})
        said = [sink.name, sink.address, repr(sink)]
        for kind in (UserError, TransientError):
            said.append(str(raises(kind, lambda: sink.deliver(1, [columns(rows_of(0, 1))]), "deliver")))
        sink.deliver(1, [columns(rows_of(0, 1))])
        sink.close()
    assert "planted" not in "\n".join([*said, *(each.getMessage() for each in caplog.records if "sabot" in each.name)])
    (_, path, headers, _) = server.requests[0]
    assert (path, headers["authorization"]) == ("/rows?api_key=planted-key-3", "Bearer planted-token-1")


def test_the_user_of_an_address_logs_in(server: WebServer) -> None:
    server.watch()
    sink = HttpSink(server.url.replace("//", "//joe:p%40ss@"))
    sink.claim(TRACK)
    sink.deliver(1, [columns(rows_of(0, 1))])
    sink.close()
    assert server.requests[0][2]["authorization"] == "Basic am9lOnBAc3M="


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [
        ("ftp://h/x", {}, "no address of a web server"),
        ("http://", {}, "no address of a web server"),
        ("http://h:99999/", {}, "is no address"),
        ("http://h/\n", {}, "no address of a web server"),
        ("http://h/", {"batch": 0}, "batch"),
        ("http://h/", {"batch": True}, "batch"),
        ("http://h/", {"method": "GET"}, "method"),
        ("http://h/", {"timeout": "0s"}, "timeout"),
        ("http://h/", {"idempotent": 1}, "idempotent"),
        ("http://h/", {"headers": {"Host": "x"}}, "no header that can be set"),
        ("http://h/", {"headers": {"Idempotency-Key": "x"}}, "no header that can be set"),
        ("http://h/", {"headers": {"A b": "x"}}, "no header that can be set"),
        ("http://h/", {"headers": {"A": 1}}, "a value of type int"),
        ("http://h/", {"headers": ["A"]}, "headers="),
    ],
)
def test_what_cannot_be_is_refused_when_the_sink_is_made(url: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        HttpSink(url, **options)


def test_a_header_with_a_line_break_is_refused_before_it_is_sent(server: WebServer) -> None:
    sink = HttpSink(server.url, headers={"X-A": lambda: "a\r\nX-B: b"})
    with pytest.raises(UserError, match="the header X-A has a value that is no text of ASCII"):
        sink.open()
    sink.close()


def test_a_certificate_is_checked_and_tls_says_whom_to_trust(tmp_path: Path) -> None:
    authority = Authority("tests")
    here = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    (tmp_path / "server.pem").write_bytes(authority.server(here))
    server = WebServer(tmp_path / "kept", certificate=tmp_path / "server.pem")
    sink = claimed(server)
    with pytest.raises(UserError, match="CERTIFICATE_VERIFY_FAILED") as raised:
        sink.deliver(1, [columns(rows_of(0, 1))])
    assert "tls= takes an ssl.SSLContext" in (raised.value.hint or "")
    sink.close()
    trusting = claimed(server, tls=ssl.create_default_context(cadata=authority.pem.decode()))
    trusting.deliver(1, [columns(rows_of(0, 1))])
    assert numbers(server) == [0]
    trusting.close()
    server.stop()


# -- apps


async def test_refused_rows_of_an_app_become_dead_letters(server: WebServer, tmp_path: Path) -> None:
    letters = ListSink()
    app = App("alerts", state=tmp_path / "state")
    rows = [{"n": n, "refuse": 422 if n == 3 else 0} for n in range(6)]
    app.stream(rows, dead_letter=letters).to(HttpSink(server.url, batch=4))
    await app.run()
    assert numbers(server) == [0, 1, 2, 4, 5]
    (letter,) = letters.rows
    assert letter == {"n": 3, "refuse": 422}


def test_the_plan_says_what_a_crash_repeats() -> None:
    sink, known = HttpSink("https://h/a"), HttpSink("https://h/a", idempotent=True)
    said = "at least once: a request whose answer is lost is sent again, with the same Idempotency-Key"
    assert sink_guarantee(sink, None, kept=True) == said
    assert (
        sink_guarantee(known, "exactly_once", kept=True)
        == "exactly once: it knows a part that comes again by its number"
    )
    with pytest.raises(UserError, match="cannot deliver exactly once: a request whose answer is lost"):
        sink_guarantee(sink, "exactly_once", kept=True)
    assert {row[0]: row[1:3] for row in summary()}["http"] == ("", "at least once")


async def test_a_table_of_sql_is_an_address_with_headers(server: WebServer, tmp_path: Path) -> None:
    server.watch()
    app = App("alerts", state=tmp_path / "state")
    app.sql(f"""
        CREATE TABLE alerts (n BIGINT, text STRING) WITH ('connector' = 'http', 'url' = '{server.url}', 'method' = 'PUT',
            'batch' = '3', 'headers.X-Team' = 'shop', 'timeout' = '5 s', 'idempotent' = 'true');
        INSERT INTO alerts VALUES (1, 'a'), (2, NULL);
    """)
    await app.run()
    assert server.rows() == [{"n": 1, "text": "a"}, {"n": 2, "text": None}]
    (method, _, headers, _), *_ = server.requests
    assert (method, headers["x-team"]) == ("PUT", "shop")
    shown = app.sql("SHOW CREATE TABLE alerts")
    assert ("shop" in shown, "'headers.X-Team' = '***'" in shown) == (False, True), "a service may log in by any header"
    for option, said in (("'batch' = '1.5'", "batch"), ("'method' = 'GET'", "method"), ("'head' = 'x'", "head")):
        with pytest.raises(SqlError, match=said):
            App("wrong").sql(f"CREATE TABLE t (n BIGINT) WITH ('connector' = 'http', 'url' = 'http://h/', {option})")


@pytest.mark.parametrize("header", ["X-Auth", "X-Shop", "X-Signed"])
def test_values_of_headers_that_a_server_repeats_are_in_no_message(server: WebServer, header: str) -> None:
    """Only headers with the name of a secret were hidden: what stood in `X-Auth` came back in the text of an answer."""
    values: dict[str, HeaderValue] = {
        "X-Auth": "planted 1",
        "X-Shop": lambda: "planted 2",
        "X-Signed": "v1=planted-5f0c8e3a",
    }
    sink = claimed(server, headers={header: values[header], "X-Team": "kitchen and garden", "X-Version": "2026-11-28"})
    server.fail(
        {"status": 404, "says": "no planted 1, planted 2, v1=planted-5f0c8e3a of kitchen and garden 2026-11-28"}
    )
    said = str(raises(UserError, lambda: sink.deliver(1, [columns(rows_of(0, 1))]), "deliver"))
    shown = {"X-Auth": "planted 1", "X-Shop": "planted 2", "X-Signed": "v1=planted-5f0c8e3a"}[header]
    assert (shown in said, "***" in said, "kitchen and garden 2026-11-28" in said) == (False, True, True), said
    sink.close()
