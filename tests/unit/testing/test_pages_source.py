"""The connector that was written from the pages alone: its suite and its dance find nothing in it, and each fault that is put into it here
is found. The suites over more connectors, with more faults, are in `test_connector_suites.py`.
"""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pytest

from sabot import Source, UserError
from sabot.testing.connectors import ConnectorPlace, Dance, SourceSuite
from sabot.testing.connectors import place as places
from sabot.testing.connectors.place import NewPlace

CODE = Path(__file__).with_name("pages_source.py").read_text()
MOST_LINES = 60
SCHEMA = {"n": pa.int64()}


class Service(ThreadingHTTPServer):
    """Rows behind cursors that say nothing of their order. What a client has done with may be forgotten."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.rows: list[int] = []
        self.first = 0
        self.gone = False
        self.lock = threading.Lock()
        self.host = f"127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def page(self, after: str, limit: int) -> dict[str, Any] | None:
        at = place_of(after) if after else self.first
        if at < self.first:
            return None
        found = self.rows[at : at + limit]
        return {"rows": [{"n": n} for n in found], "next": cursor_of(at + len(found))}


def cursor_of(place: int) -> str:
    return f"c{place * 7919 % 1_000_003}"


def place_of(cursor: str) -> int:
    return int(cursor[1:]) * pow(7919, -1, 1_000_003) % 1_000_003


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def do_GET(self) -> None:
        given = dict(parse_qsl(urlsplit(self.path).query))
        with self.server.lock:
            found = self.server.page(given.get("after", ""), int(given["limit"]))
        self.answer(404 if self.server.gone else 410 if found is None else 200, found)

    def do_POST(self) -> None:
        given = dict(parse_qsl(urlsplit(self.path).query))
        with self.server.lock:
            self.server.first = max(self.server.first, place_of(given["before"]))
        self.answer(200, {})

    def answer(self, status: int, found: Any) -> None:
        body = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *given: object) -> None:
        """Says nothing."""


class PagesPlace(ConnectorPlace):
    def __init__(self, service: Service, kind: Callable[..., Source]) -> None:
        self.service, self.kind = service, kind

    def put(self, numbers: Sequence[int]) -> None:
        with self.service.lock:
            self.service.rows += numbers

    def remove(self, numbers: Sequence[int]) -> None:
        self.service.first = max(numbers) + 1

    def drop(self) -> None:
        self.service.gone = True

    def source(self) -> Source:
        return self.kind(self.service.host, SCHEMA)


def kind_of(code: str) -> Callable[..., Source]:
    """The class of a connector with this text."""
    module: dict[str, Any] = {"__name__": "pages_source"}
    exec(compile(code, "pages_source.py", "exec"), module)
    return module["PagesSource"]  # type: ignore[no-any-return]


@pytest.fixture
def new_service() -> Iterator[Callable[[], Service]]:
    made: list[Service] = []

    def make() -> Service:
        made.append(Service())
        return made[-1]

    yield make
    for each in made:
        each.shutdown()
        each.server_close()


class TestPages(SourceSuite):
    starts = ("earliest",)

    @pytest.fixture
    def new_place(self, new_service: Callable[[], Service]) -> NewPlace:
        kind = kind_of(CODE)
        return lambda: PagesPlace(new_service(), kind)


def test_it_has_so_few_lines() -> None:
    lines = [line for line in CODE[CODE.index("class ") :].splitlines() if line.strip()]
    assert len(lines) <= MOST_LINES


@pytest.mark.slow  # seven processes
@pytest.mark.usefixtures("warm_starts")
def test_no_row_is_lost_and_none_counts_twice_when_its_app_is_killed(
    tmp_path: Path, new_service: Callable[[], Service]
) -> None:
    service = new_service()
    (tmp_path / "pages_source.py").write_text(CODE)
    program = f"""
import asyncio, sys
import pyarrow as pa
sys.path.insert(0, {str(tmp_path)!r})
from pages_source import PagesSource
from sabot import App
from sabot.connectors.sql import SqlSink

app = App("paged", state="state", checkpoint_interval="50ms")
app.stream(PagesSource({service.host!r}, {{"n": pa.int64()}})).to(SqlSink("sqlite:out.db", table="every"))
asyncio.run(app.run())
"""

    def rows() -> list[int]:
        try:
            return [n for (n,) in sqlite3.connect(tmp_path / "out.db").execute("SELECT n FROM every")]
        except sqlite3.OperationalError:  # the table is made with the first rows
            return []

    place = PagesPlace(service, kind_of(CODE))
    danced = Dance(program, tmp_path, put=place.put, rows=rows, expected=lambda n: n, seed=1).run(kills=5)
    assert (danced.lost, danced.repeated, danced.wrong) == ([], [], [])


GOES_ON = "a_source_goes_on_behind_each_row_of_an_older_one"
FORGETS = "the_log_forgets_nothing_that_the_last_complete_checkpoint_does_not_cover"
IN_ORDER = "rows_come_in_order_in_batches_of_any_size"
FAULTS = {  # the fault: the lines that it changes, and the test of the suite that has to fail
    "remembers the cursor in front of its batch": (
        'self.next, self.cursor = self.next + len(found["rows"]), found["next"]\n',
        'self.kept = self.cursor\n        self.next, self.cursor = self.next + len(found["rows"]), found["next"]\n',
        "json.dumps([self.next, self.cursor])",
        'json.dumps([self.next, getattr(self, "kept", "")])',
        GOES_ON,
    ),
    "begins anew at each start": ("if position is not None:\n", "if False:\n", GOES_ON),
    "believes any position": ("if position != self.next:", "if False:", "a_position_that_does_not_exist_is_refused"),
    "takes the position of another source": (
        "(positions or {}).get((self.name, 0))",
        "next(iter((positions or {}).values()), None)",
        "positions_of_other_sources_are_not_its_own",
    ),
    "acknowledges what it has read": (
        "self.cursors[self.next] = self.cursor\n",
        'self.ask("POST", "/done", before=self.cursor)\n',
        FORGETS,
    ),
    "acknowledges all when a checkpoint is complete": (
        'self.ask("POST", "/done", before=cursor)',
        'self.ask("POST", "/done", before=self.cursor)',
        FORGETS,
    ),
    "gives whole pages": ("self.rows(max_rows)", "self.rows(100)", IN_ORDER),
    "gives rows without offsets": ("self.positions(), self.name)\n\n", "{}, self.name)\n\n", IN_ORDER),
    "reads the first page again": ("after=self.cursor, limit", 'after="", limit', IN_ORDER),
    "passes over what was removed": (
        "if answer.status != 200:\n",
        'if answer.status == 410:\n            self.cursor = ""\n            return self.rows(given["limit"])\n'
        "        if answer.status != 200:\n",
        "a_position_whose_rows_were_removed_is_refused",
    ),
    "takes an error for no rows": (
        "kind = TransientError if answer.status >= 500 else UserError\n"
        '            raise kind(f"source {self.name}: {answer.status} {answer.reason}")\n',
        'return {"rows": []}\n',
        "a_log_that_is_gone_is_an_error_and_no_end",
    ),
    "begins anywhere": (
        'elif start != "earliest":\n',
        'elif start == "nowhere":\n',
        "an_unknown_start_is_refused",
    ),
    "keeps its connection": (
        "self.client.close()\n        self.client = None",
        "self.kept = self.client\n        self.client = None",
        "close_releases_threads_and_files",
    ),
    "can be read when it is closed": (
        'raise UserError(f"source {self.name} is not open")',
        "self.client = http.client.HTTPConnection(self.host)",
        "close_may_come_twice_and_first_and_a_closed_source_reads_nothing",
    ),
    "waits for a row as long as it takes": (
        "<= 0:\n                return None\n",
        "<= -3600:\n                return None\n",
        "read_batch_comes_back_with_the_first_row_or_when_its_time_is_over",
    ),
}


@pytest.mark.slow  # a second or two of each, which a test that fails waits
@pytest.mark.parametrize("fault", FAULTS)
def test_each_way_in_which_it_is_broken_is_found(
    fault: str, new_service: Callable[[], Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "GUARD_SECONDS", 1.0)
    *changes, found = FAULTS[fault]
    code = CODE
    for before, after in zip(changes[::2], changes[1::2], strict=True):
        assert code.count(before) == 1, before
        code = code.replace(before, after)
    kind, suite = kind_of(code), TestPages()
    with pytest.raises((AssertionError, KeyError, UserError)):
        getattr(suite, f"test_{found}")(lambda: PagesPlace(new_service(), kind))
