"""The project of `sabot init --connector`: a source and a sink over a table of SQLite in a package, and the suites over both."""

from collections.abc import Mapping

from sabot.cli.pyproject import pyproject

_SOURCE = '''"""The source of records: reads a table of SQLite whose ids grow. Its position is the id of the next row."""

import sqlite3
import threading
import time
from pathlib import Path

from sabot import Batch, Source, UserError
from sabot.codecs.records import build_records
from sabot.connectors import Bounded
from sabot.connectors.places import goes_on_at


class LogSource(Source, Bounded):
    def __init__(self, path, follow="false"):  # the options of a table in SQL are texts
        self.path = str(path)
        self.name = self.path  # a checkpoint finds the source again by its name
        self.bounded = follow != "true"  # without follow the stream ends behind the rows that are there at its start
        self.db = None

    def open(self, positions, start="earliest"):
        if not Path(self.path).exists():
            raise UserError(f"source {self.name}: there is no such file", hint="the sink makes one")
        self.close()
        self.db = sqlite3.connect(self.path, check_same_thread=False)  # another thread reads, one at a time
        try:
            first, end = self.db.execute(
                "SELECT coalesce((SELECT min(id) FROM log), seq + 1), seq + 1 "
                "FROM (SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'log'), 0) AS seq)"
            ).fetchone()
        except sqlite3.OperationalError as error:
            raise UserError(f"source {self.name} cannot be read: {error}") from error
        position = (positions or {}).get((self.name, 0))
        if position is not None:  # no row between the position and the first one is passed over in silence
            self.next = goes_on_at(self.name, 0, position, (first, end), skips=False)
        elif start in ("earliest", "committed", "latest"):
            self.next = end if start == "latest" else first
        else:
            raise UserError(f"source {self.name} cannot start at {start!r}", hint="earliest or latest")
        self.end = end if self.bounded else None

    def read_batch(self, max_rows, timeout):
        if self.db is None:
            raise UserError(f"source {self.name} is not open")
        until = time.monotonic() + timeout
        while not self.exhausted:
            rows = self.db.execute(
                "SELECT id, payload FROM log WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
                (self.next, self.end or 1 << 62, max_rows),
            ).fetchall()
            if rows:
                ids, payloads = zip(*rows)
                self.next = ids[-1] + 1
                now = [int(time.time() * 1000)] * len(rows)
                return Batch(build_records(payloads, None, now, 0, ids), self.positions(), self.name)
            if self.end is not None:  # the last rows were removed
                self.next = self.end
            elif (left := until - time.monotonic()) > 0:
                threading.Event().wait(min(left, 0.02))
            else:
                break
        return None

    @property
    def exhausted(self):
        return self.end is not None and self.next >= self.end

    def positions(self):
        return {(self.name, 0): self.next}

    def close(self):
        if self.db is not None:
            self.db.close()
        self.db = None
'''

_SINK = '''"""The sink: adds rows to a table of SQLite, exactly once: one transaction stores the token of a track with them."""

import sqlite3
import time
import uuid
from contextlib import contextmanager

from sabot import Batch, Sink, Token, UserError
from sabot.codecs.records import to_records
from sabot.connectors import KeepsToken
from sabot.errors import AppLocked
from sabot.steps import step

TABLES = (
    "CREATE TABLE IF NOT EXISTS log(id INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB)",
    "CREATE TABLE IF NOT EXISTS tracks(key TEXT PRIMARY KEY, seq INTEGER, incarnation TEXT, owner TEXT)",
)


class LogSink(Sink, KeepsToken):
    def __init__(self, path):
        self.path = self.name = str(path)
        self.db = self.track = self.owner = None

    # -- at least once: delivery="at_least_once" of a program

    def open(self):
        if self.db is None:
            self.db = sqlite3.connect(self.path, isolation_level=None, timeout=10, check_same_thread=False)
            for table in TABLES:
                self.db.execute(table)

    def write(self, batch):
        with self.transaction():
            self.add(batch)

    def flush(self):
        if self.db is None:  # else each write is safe when it returns
            raise UserError(f"sink {self.name} is not open")

    def close(self):
        if self.db is not None:
            self.db.close()
        self.db = self.track = self.owner = None

    # -- exactly once: the rows of a checkpoint come as parts with growing numbers

    def known(self, track):
        self.open()
        return self.token(track)

    def claim(self, track):
        self.open()
        with self.transaction():
            if self.owner is not None and self.owner_of(track) != self.owner:
                raise AppLocked(f"sink {self.name}: another process has claimed {track.key}")
            self.track, self.owner = track, uuid.uuid4().hex
            self.db.execute(
                "INSERT INTO tracks VALUES (?, NULL, NULL, ?) ON CONFLICT DO UPDATE SET owner = excluded.owner",
                (track.key, self.owner),
            )
        return self.token(track)

    def deliver(self, seq, batches):
        with self.owned():
            last = self.token(self.track)
            if last is None or last.incarnation != self.track.incarnation or last.seq < seq:
                for data in batches:
                    self.add(Batch(data))
                self.set_token(seq)

    def settle(self, seq):
        with self.owned():
            self.set_token(seq)

    # -- what these share

    @contextmanager
    def transaction(self):
        if self.db is None:
            raise UserError(f"sink {self.name} is not open")
        try:
            self.db.execute("BEGIN IMMEDIATE")
            yield
            with step("commit", self.name):  # tests crash before and after it
                self.db.execute("COMMIT")
        except BaseException:
            if self.db is not None and self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise

    @contextmanager
    def owned(self):
        if self.track is None:
            raise UserError(f"sink {self.name} is not open")
        with self.transaction():
            if self.owner_of(self.track) != self.owner:
                raise AppLocked(f"sink {self.name}: another process has claimed {self.track.key}")
            yield

    def add(self, batch):
        records = to_records(batch, int(time.time() * 1000))  # whatever the columns are: one record a row
        payloads = [(each,) for each in records.column("payload").to_pylist()]
        self.db.executemany("INSERT INTO log(payload) VALUES (?)", payloads)

    def token(self, track):
        row = self.db.execute("SELECT seq, incarnation FROM tracks WHERE key = ?", (track.key,)).fetchone()
        return None if row is None or row[0] is None else Token(*row)

    def set_token(self, seq):
        self.db.execute(
            "UPDATE tracks SET seq = ?, incarnation = ? WHERE key = ?", (seq, self.track.incarnation, self.track.key)
        )

    def owner_of(self, track):
        row = self.db.execute("SELECT owner FROM tracks WHERE key = ?", (track.key,)).fetchone()
        return None if row is None else row[0]
'''

_TESTS = '''"""The suites of Sabot over both ends, and an app between them that is killed: python -m pytest"""

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest
from sabot.testing.connectors import ConnectorPlace, Dance, DeliverySuite, SinkSuite, SourceSuite

from {module}.sink import TABLES, LogSink
from {module}.source import LogSource


class Log(ConnectorPlace):
    """The table as other programs see it: by SQL of its own, not by the code of the connector."""

    def __init__(self, path, follow="false"):
        self.path, self.follow = path, follow

    def execute(self, text, rows=((),)):
        with contextlib.closing(sqlite3.connect(self.path)) as db, db:
            return [row for each in rows for row in db.execute(text, each)]

    def create(self):
        for table in TABLES:
            self.execute(table)
        return self

    def put(self, numbers):
        self.execute("INSERT INTO log(payload) VALUES (?)", [(json.dumps({"n": n}).encode(),) for n in numbers])

    def remove(self, numbers):  # as retention does
        self.execute("DELETE FROM log WHERE payload = ?", [(json.dumps({"n": n}).encode(),) for n in numbers])

    def drop(self):  # for good: what the connector does then must be an error
        self.execute("DROP TABLE log")

    def source(self):
        return LogSource(self.path, self.follow)

    def sink(self):
        return LogSink(self.path)

    def rows(self):
        if not self.execute("SELECT 1 FROM sqlite_master WHERE name = 'log'"):
            return []
        values = [json.loads(payload) for (payload,) in self.execute("SELECT payload FROM log ORDER BY id")]
        return [(value["n"], value.get("text")) for value in values]


@pytest.fixture
def paths(tmp_path):
    return (tmp_path / f"{number}.db" for number in range(1000))


class TestSource(SourceSuite):
    @pytest.fixture(params=["false", "true"])
    def new_place(self, paths, request):
        return lambda: Log(next(paths), request.param).create()


class TestDelivery(DeliverySuite):
    @pytest.fixture
    def new_place(self, paths):
        return lambda: Log(next(paths))


class TestSink(SinkSuite):
    @pytest.fixture
    def new_place(self, paths):
        return lambda: Log(next(paths))


PROGRAM = f"""
import asyncio, sys

sys.path.insert(0, {str(Path(__file__).parent)!r})
from sabot import App
from {module}.sink import LogSink
from {module}.source import LogSource

app = App("killed", state="state", checkpoint_interval="50ms")
app.stream(LogSource("in.db", follow="true"), schema={{"n": "int64"}}).to(LogSink("out.db"))
asyncio.run(app.run())
"""


def test_no_row_is_lost_and_none_is_there_twice_whenever_the_app_is_killed(tmp_path):
    log, out = Log(tmp_path / "in.db").create(), Log(tmp_path / "out.db")
    danced = Dance(
        PROGRAM, tmp_path, put=log.put, rows=lambda: [n for n, _ in out.rows()], expected=lambda n: n, seed=1
    ).run(kills=5)
    assert (danced.lost, danced.repeated, danced.wrong) == ([], [], [])
'''

FILES: Mapping[str, str] = {
    "{module}/__init__.py": '''"""A connector of Sabot: `'connector' = '{name}'` makes a table of it."""

from sabot.connectors import Connector

connector = Connector(
    "{name}", source="{module}.source:LogSource", sink="{module}.sink:LogSink", options=["path", "follow"]
)
''',
    "{module}/source.py": _SOURCE,
    "{module}/sink.py": _SINK,
    "test_connector.py": _TESTS,
    "pyproject.toml": pyproject(
        "sabot-{name}",
        """[project.entry-points."sabot.connectors"]
{name} = "{module}:connector"

[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[tool.setuptools]
packages = ["{module}"]
""",
    ),
    ".gitignore": "__pycache__/\n*.egg-info/\nbuild/\n",
    "README.md": """# {name}

A source and a sink of Sabot over a table of SQLite, both exactly once. Put your log and your receiver in its place: the
tests say what a connector must hold, and the docstrings of `sabot.connectors.base` what else it may do.

```sh
python -m pytest                  # -x stops at the first promise that is broken
pip install -e . && sabot connectors
```
""",
}
