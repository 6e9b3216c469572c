"""Rows of a JSON API, whose server is a process of its own."""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sabot import App
from sabot.codecs.records import iterate_records
from sabot.connectors.base import Source
from sabot.connectors.http import PollSource, SseSource
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


def pages(server: WebServer, **more: Any) -> PollSource:
    return PollSource(f"{server.origin}/pages", next="link", **{"every": "20ms", **more})


def items(server: WebServer, **more: Any) -> PollSource:
    url = f"{server.origin}/items?team=shop"
    return PollSource(url, **{"every": "20ms", "items": "data.rows", "next": "cursor", "cursor": "after", **more})


class ApiPlace(ConnectorPlace):
    """The rows of an API."""

    def __init__(self, server: WebServer, made: Any) -> None:
        server.clear()
        self.server, self.made = server, made

    def put(self, numbers: Sequence[int]) -> None:
        self.server.put([{"n": n} for n in numbers])

    def source(self) -> Source:
        found: Source = self.made(self.server)
        return found


class TestApis(FindsFaultsOfMemory, SourceSuite):
    starts = ("earliest",)

    @pytest.fixture(params=[pages, items])
    def new_place(self, shared: WebServer, request: pytest.FixtureRequest) -> NewPlace:
        return lambda: ApiPlace(shared, request.param)


def read(source: Source, count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        batch = source.read_batch(100, WAIT)
        assert batch is not None
        found += [json.loads(each.payload or b"")["n"] for each in iterate_records(batch.data, source.name)]
    return found


def test_a_page_that_has_not_changed_is_not_sent_again(server: WebServer) -> None:
    server.put([{"n": n} for n in range(6)])
    source = pages(server)
    source.open(None)
    assert read(source, 6) == list(range(6))
    while len(server.requests) < 4:
        assert source.read_batch(100, 0.05) is None
    asked = [(path, headers.get("if-none-match")) for _, path, headers, _ in server.requests[:4]]
    assert asked == [("/pages", None), ("/pages?page=1", None), *[("/pages?page=1", '"4-2"')] * 2]
    memory, positions = source.remember(), source.positions()
    source.close()
    later = pages(server)
    later.recall(memory)
    later.open(positions)
    server.watch()
    server.put([{"n": 6}])
    assert read(later, 1) == [6]
    assert server.requests[0][2]["if-none-match"] == '"4-2"'
    later.close()


def test_a_cursor_is_a_parameter_of_the_address(server: WebServer) -> None:
    server.put([{"n": n} for n in range(5)])
    source = items(server)
    source.open(None)
    assert read(source, 5) == list(range(5))
    assert [path for _, path, _, _ in server.requests[:2]] == ["/items?team=shop", "/items?team=shop&after=4"]
    source.close()


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 429}, {"half": True}, {"slow": True}])
def test_a_server_that_does_not_answer_well_is_waited_for(
    server: WebServer, caplog: pytest.LogCaptureFixture, fault: dict[str, Any]
) -> None:
    server.put([{"n": n} for n in range(3)])
    server.fail(fault)
    source = pages(server, timeout="300ms" if "slow" in fault else "30s")
    source.open(None)
    with caplog.at_level(logging.INFO, "sabot"):
        assert read(source, 3) == [0, 1, 2]
    said = [re.sub(r"http\S+", "…", each.message).split(":")[0] for each in caplog.records]
    assert said == ["source … cannot be read, and is asked until it answers", "source … answers again"]
    source.close()


def test_retry_after_is_kept(server: WebServer) -> None:
    server.put([{"n": 1}])
    server.fail({"status": 429, "headers": {"Retry-After": "3000"}})
    source = pages(server)
    source.open(None)
    while not server.requests:
        assert source.read_batch(10, 0.05) is None
    for _ in range(5):
        assert source.read_batch(10, 0.05) is None
    assert len(server.requests) == 1
    source.close()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"status": 404}, "answers 404: no"),
        ({"status": 401}, "answers 401: no"),
        ({"text": "<html>Welcome</html>"}, "the answer is 'text/html', and no page"),
        ({"text": '{"rows": []}'}, "and no page"),
        ({"gzip": 70_000_000}, "has more than 67108864 bytes"),
        ({"status": 302, "headers": {"Location": "http://127.0.0.2/pages"}}, "it is another server"),
    ],
)
def test_what_is_no_page_ends_the_app(server: WebServer, fault: dict[str, Any], said: str) -> None:
    server.fail(fault)
    source = pages(server)
    source.open(None)
    with pytest.raises(UserError, match=said):
        source.read_batch(10, WAIT)
    source.close()


def test_a_next_page_at_another_server_is_not_asked_for(server: WebServer, tmp_path: Path) -> None:
    other = WebServer(tmp_path / "other")
    other.watch()
    server.fail({"text": json.dumps({"rows": [{"n": 1}], "next": f"{other.origin}/pages"})})
    source = PollSource(
        f"{server.origin}/pages", items="rows", next="next", headers={"Authorization": "Bearer planted"}
    )
    source.open(None)
    assert read(source, 1) == [1]
    with pytest.raises(UserError, match="that is another server"):
        source.read_batch(10, WAIT)
    assert other.requests == []
    source.close()
    other.stop()


def test_a_page_that_has_lost_rows_is_an_error(server: WebServer) -> None:
    server.put([{"n": n} for n in range(3)])
    source = pages(server)
    source.open(None)
    assert read(source, 3) == [0, 1, 2]
    server.clear()
    server.watch()
    with pytest.raises(UserError, match="a page has 0 rows, of which 3 were read before"):
        source.read_batch(10, WAIT)
    source.close()


def test_a_login_that_is_refused_is_read_again(server: WebServer) -> None:
    logins = iter(["Bearer first-token", "Bearer second-token"])
    server.put([{"n": 1}])
    server.fail({"status": 401})
    source = pages(server, headers={"Authorization": lambda: next(logins)})
    source.open(None)
    assert read(source, 1) == [1]
    source.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cursor": "after"}, "needs the path of its value"),
        ({"cursor": "after", "next": "link"}, "needs the path of its value"),
        ({"every": 0}, "every"),
        ({"items": None}, "items"),
        ({"url": "http://h/?token=planted"}, "a token in its query"),
        ({"url": "h"}, "no address of a web server"),
    ],
)
def test_what_cannot_be_is_refused_when_the_source_is_made(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        PollSource(**{"url": "http://h/", **options})
    assert "planted" not in str(raised.value)


@pytest.mark.parametrize(
    ("place", "refused"),
    [
        ("access_token=planted", True),
        ("//joe:planted@HOST/", True),
        ("page_token=abc", False),
        ("$skiptoken=abc", False),
    ],
)
def test_the_address_of_a_page_with_a_login_gets_into_no_checkpoint(
    server: WebServer, place: str, refused: bool
) -> None:
    """Some APIs repeat the token of a header in the addresses of their next pages, and checkpoints have these."""
    server.put([{"n": n} for n in range(3)])
    host = server.origin.partition("://")[2]
    link = f'<{place.replace("HOST", host) if place[0] == "/" else f"{server.origin}/pages?{place}"}>; rel="next"'
    server.fail({"status": 200, "headers": {"Link": link}, "says": '[{"n": 9}]'})
    source = pages(server)
    source.open(None)
    if refused:
        with pytest.raises(UserError, match="a password or a token in it") as raised:
            read(source, 1)
        assert "planted" not in str(raised.value)
    else:
        assert read(source, 1) == [9]
    assert b"planted" not in b"".join(source.remember().values())
    source.close()


async def test_an_app_goes_on_behind_the_rows_of_its_checkpoint(server: WebServer, tmp_path: Path) -> None:
    server.put([{"n": n} for n in range(7)])
    out = ListSink()
    for count in (7, 9):
        app = App("polled", state=tmp_path / "state", checkpoint_interval="50ms")
        app.stream(pages(server), schema={"n": "int64"}).to(out, delivery="exactly_once")
        await app.start()
        await until(lambda wanted=count: len(out.rows) >= wanted)
        await app.stop()
        server.put([{"n": n} for n in (7, 8)] if count == 7 else [])
    assert [row["n"] for row in out.rows] == list(range(9))


async def test_a_table_of_sql_reads_an_api(server: WebServer) -> None:
    app = App("read")
    app.sql(f"""
        CREATE TABLE orders (n BIGINT) WITH ('connector' = 'poll', 'url' = '{server.origin}/items', 'items' = 'data.rows',
            'next' = 'cursor', 'cursor' = 'after', 'every' = '20ms', 'headers.X-Team' = 'shop');
    """)
    with pytest.raises(SqlError, match="there is no option 'curser'"):
        app.sql(
            "CREATE TABLE t (n BIGINT) WITH ('connector' = 'poll', 'url' = 'http://h/', 'curser' = 'x'); SELECT * FROM t"
        )


@pytest.mark.parametrize(
    ("source", "elsewhere"),
    [(PollSource, "a cursor in the address"), (SseSource, "after= is the id")],
)
def test_a_source_of_the_web_begins_at_its_first_row_only(source: type[PollSource | SseSource], elsewhere: str) -> None:
    with pytest.raises(UserError, match="start='latest' is no place of a source of the web") as refused:
        source("http://127.0.0.1:1/rows").open(None, start="latest")
    assert elsewhere in (refused.value.hint or "")
