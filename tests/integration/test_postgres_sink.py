"""SqlSink on a real PostgreSQL server: values, tables, and faults that only a server has."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sabot import steps
from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.partition import hash_columns
from sabot.codecs.records import build_records
from sabot.connectors.base import Token, Track
from sabot.connectors.sql import SqlSink
from sabot.engine.letters.form import letter_headers
from sabot.engine.letters.places import Letters
from sabot.engine.letters.tables import TableHome
from sabot.errors import AppLocked, BrokerUnavailable, MissingExtra, TransientError, UserError
from tools.broker import free_ports
from tools.postgres import Postgres

TRACK = Track("app", "sink.1", "first")
CHILD = Path(__file__).with_name("postgres_child.py")


def query(url: str, statement: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []


def written(sink: SqlSink, *batches: Any) -> None:
    sink.open()
    for data in batches:
        sink.write(Batch(data))
    sink.flush()
    sink.close()


def results(*values: Any) -> pa.RecordBatch:
    payloads = [json.dumps(value).encode() for value in values]
    return build_records(payloads, None, [0] * len(payloads), 0, range(len(payloads)))


def child(url: str, table: str, parts: int, pause: str = "") -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": os.fspath(Path(__file__).parents[2])}
    command = [sys.executable, CHILD, url, table, str(parts), pause]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


# --- values


def test_every_type_is_stored_as_the_page_says(url: str) -> None:
    second = 1_769_860_800  # 2026-01-31 12:00
    data = pa.record_batch(
        {
            "truth": pa.array([True, None]),
            "small": pa.array([-5, None], pa.int8()),
            "middle": pa.array([7, None], pa.uint16()),
            "large": pa.array([-(2**63), None], pa.int64()),
            "unsigned": pa.array([2**64 - 1, None], pa.uint64()),
            "half": pa.array([1.5, None], pa.float32()).cast(pa.float16()),
            "float": pa.array([0.1, float("-inf")]),
            "text": pa.array(["it's ü", ""]),
            "view": pa.array(["v", None], pa.string_view()),
            "word": pa.array(["w", None]).dictionary_encode(),
            "bytes": pa.array([b"\xff\x00", b""]),
            "fixed": pa.array([b"ab", None], pa.binary(2)),
            "price": pa.array([Decimal("1234567890123456789.10"), None], pa.decimal128(30, 2)),
            "naive": pa.array([second * 1000 + 7, None], pa.timestamp("ms")),
            "zoned": pa.array([second * 10**9 + 1001, None], pa.timestamp("ns", "Europe/Berlin")),
            "day": pa.array([20484, None], pa.date32()),
            "clock": pa.array([3_600_000_001, None], pa.time64("us")),
            "lasts": pa.array([90, None], pa.duration("s")),
            "list": pa.array([["a", None], None]),
            "struct": pa.array([{"x": 1, "y": [0.5]}, None]),
            "nothing": pa.nulls(2),
        }
    )
    written(SqlSink(url, "results"), data)
    first, second_row = query(url, "SELECT * FROM results")
    noon = datetime(2026, 1, 31, 12)
    assert first == (
        *(True, -5, 7, -(2**63), Decimal(2**64 - 1), 1.5, 0.1, "it's ü", "v", "w", b"\xff\x00", b"ab"),
        *(Decimal("1234567890123456789.10"), noon.replace(microsecond=7000), noon.replace(tzinfo=UTC, microsecond=1)),
        *(date(2026, 1, 31), time(1, 0, 0, 1), 90, ["a", None], {"x": 1, "y": [0.5]}, None),
    )
    assert second_row == (*[None] * 6, float("-inf"), "", None, None, b"", *[None] * 10)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    rows=st.lists(
        st.tuples(
            st.none() | st.text(st.sampled_from("a\"\\.,;\n\r\t'N%s ü"), max_size=6),
            st.none() | st.binary(max_size=5),
            st.none() | st.floats(allow_nan=False),
        ),
        min_size=1,
        max_size=9,
    ),
    columns=st.sampled_from([(0, 1, 2), (0,), (1,), (2,), (2, 0)]),
)
def test_any_values_come_back_as_they_were(url: str, rows: list[Any], columns: tuple[int, ...]) -> None:
    """COPY has marks of its own: an end, an escape, a null, and a row of one empty column."""
    kinds = [pa.string(), pa.binary(), pa.float64()]
    arrays = [pa.array([row[place] for row in rows], kinds[place]) for place in columns]
    query(url, "DROP TABLE IF EXISTS results")
    written(SqlSink(url, "results"), pa.record_batch(arrays, names=[f"c{place}" for place in columns]))
    assert query(url, "SELECT * FROM results ORDER BY ctid") == [tuple(row[place] for place in columns) for row in rows]


def test_results_are_read_as_the_table_says(url: str) -> None:
    query(
        url,
        "CREATE TABLE results (id serial PRIMARY KEY, price numeric, tags jsonb, who uuid, at timestamptz, note text, "
        "raw bytea, words text[], twice numeric GENERATED ALWAYS AS (price * 2) STORED)",
    )
    who = "0b0f3c1e-54a5-4a3e-9b1f-5a5d1c3a9d10"
    sink = SqlSink(url, "public.results")
    written(
        sink,
        results({"price": 0.1, "tags": "one", "who": who, "at": 1_769_860_800_000, "note": "n", "raw": "\\x41"}),
        results({"price": 12345678901234567890, "tags": {"a": [1]}, "at": "2026-01-31T12:00:00Z", "note": [1]}),
        pa.record_batch({"note": pa.array([b"bytes"]), "raw": ["text"], "tags": [["t"]], "words": ['{"a b",c}']}),
    )
    noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
    rows = query(url, "SELECT id, price, tags, who::text, at, note, raw, words, twice FROM results ORDER BY id")
    assert rows == [
        (1, Decimal("0.1"), "one", who, noon, "n", b"\\x41", None, Decimal("0.2")),
        (2, Decimal(12345678901234567890), {"a": [1]}, None, noon, "[1]", None, None, Decimal(24691357802469135780)),
        (3, None, ["t"], None, None, "bytes", b"text", ["a b", "c"], None),
    ]


def test_a_value_that_the_table_refuses_is_named_with_its_row(url: str) -> None:
    query(url, "CREATE TABLE results (who uuid, n int CHECK (n > 0))")
    sink = SqlSink(url, "results")
    sink.claim(TRACK)
    for data, message in [
        ({"who": ["0b0f3c1e-54a5-4a3e-9b1f-5a5d1c3a9d10", "nobody"]}, r'"nobody".*\n.*line 2, column who'),
        ({"n": [1, 2, -3]}, r"check constraint.*\n.*\n.*line 3"),
        ({"n": [2**31]}, "out of range"),
        ({"who": ["nul \0"]}, "0x00"),
        ({"other": [1]}, r"no column other \(int64\)"),
    ]:
        with pytest.raises(UserError, match=message):
            sink.deliver(1, [pa.record_batch(data)])
        assert sink.claim(TRACK) is None
    sink.close()
    assert query(url, "SELECT * FROM results") == []


def test_a_fresh_start_empties_a_table_or_says_that_it_adds_to_it(url: str, caplog: pytest.LogCaptureFixture) -> None:
    name = 'of 100 %, "all"'

    def rows_after(**options: bool) -> list[Any]:
        sink = SqlSink(url, name, **options)  # type: ignore[arg-type]
        sink.start_afresh()
        written(sink, pa.record_batch({"n": [1]}))
        return query(url, 'SELECT n FROM "of 100 %, ""all"""')

    assert rows_after() == [(1,)]
    assert rows_after() == [(1,), (1,)]
    assert "adds to them (overwrite=True begins empty" in caplog.text
    assert rows_after(overwrite=True) == [(1,)]


def test_names_are_only_names(url: str) -> None:
    schema, table, column = "Weird %s", 'a "b"; DROP TABLE x; --', "100% 'ü' %(n)s ?"
    query(url, f'CREATE SCHEMA "{schema}"')
    sink = SqlSink(url, f"{schema}.{table}", keys=[column])
    sink.claim(TRACK)
    sink.deliver(1, [pa.record_batch({column: ["'); DROP TABLE y; --"] * 2, "order": [1, 2]})])
    sink.deliver(2, [pa.record_batch({column: ["b"], "order": [3]})])
    sink.close()
    quoted = table.replace('"', '""')
    assert query(url, f'SELECT * FROM "{schema}"."{quoted}" ORDER BY 2') == [("'); DROP TABLE y; --", 2), ("b", 3)]
    assert query(url, f'SELECT lane, seq FROM "{schema}".sabot_tokens') == [(TRACK.key, 2)]


# --- keys


def test_with_keys_a_row_replaces_the_one_before(url: str) -> None:
    sink = SqlSink(url, "latest", keys=["account", "day"])
    sink.claim(TRACK)
    day = pa.array([date(2026, 1, 1)] * 3)
    sink.deliver(1, [pa.record_batch({"account": ["a", "b", "a"], "day": day, "n": [1, 2, 3]})])
    more = pa.record_batch({"n": [4], "account": ["b"], "day": day[:1]})
    sink.deliver(2, [more, pa.record_batch({"account": ["c"], "day": day[:1]}), more])
    sink.close()
    assert query(url, "SELECT account, n FROM latest ORDER BY account") == [("a", 3), ("b", 4), ("c", None)]
    query(url, "CREATE TABLE loose (account text, n int)")
    query(url, "CREATE UNIQUE INDEX ON loose (account) WHERE n > 0")
    with pytest.raises(UserError, match=r"loose of .* has no unique index on account"):
        SqlSink(url, "loose", keys=["account"], schema=pa.schema([("account", pa.string())])).open()


# --- rights, addresses


def test_keys_besides_those_of_a_table_are_found_in_pieces(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sabot.connectors.sql.sink._KEYS_AT_A_TIME", 7)
    kinds = pa.schema({"a": pa.int32(), "B%d": pa.string()})
    there = pa.record_batch({"a": [n // 5 for n in range(50)], "B%d": [f"é'{n % 5}" for n in range(50)]}, schema=kinds)
    written(sink := SqlSink(url, table="t", keys=["a", "B%d"]), there)
    left = sink.keys_besides(hash_columns(there.slice(0, 46).columns), kinds)
    assert left is not None
    assert left.to_pylist() == there.slice(46).to_pylist()
    one = SqlSink(url, table="one", keys=["a"])
    written(one, pa.record_batch({"a": range(20)}))
    assert one.keys_besides(pa.array([], pa.uint64()), pa.schema({"a": pa.int64()})).num_rows == 20  # type: ignore[union-attr]


def test_a_table_that_evolves_gets_the_columns_that_it_lacks(url: str) -> None:
    written(SqlSink(url, "cars", keys=["id"]), pa.record_batch({"id": [1, 2]}))
    more = pa.record_batch({"id": [2, 3], "seats": [5, 4], "paid": pa.array([1, None], pa.decimal128(5, 2))})
    assert SqlSink(url, "cars", keys=["id"]).missing_columns(more.schema) == ["seats", "paid"]
    with pytest.raises(UserError, match=r"has no column seats \(int64\), paid \(decimal128\(5, 2\)\)"):
        written(SqlSink(url, "cars", keys=["id"]), more)
    written(SqlSink(url, "cars", keys=["id"], evolve=True), more)
    assert query(url, "SELECT * FROM cars ORDER BY id") == [(1, None, None), (2, 5, Decimal("1.00")), (3, 4, None)]


def test_a_row_that_is_written_again_gets_the_default_of_a_column_that_is_not_written_any_more(url: str) -> None:
    query(url, "CREATE TABLE cars (id bigint PRIMARY KEY, n bigint, state text NOT NULL DEFAULT 'new', note text)")
    query(url, "INSERT INTO cars VALUES (1, 1, 'old', 'red'), (2, 2, 'old', 'red')")
    sink = SqlSink(url, "cars", keys=["id"], evolve=True)
    sink.expect_no_more(["n", "state", "gone"])
    written(sink, pa.record_batch({"id": [2, 3], "trips": [5, 6]}))
    assert query(url, "SELECT * FROM cars ORDER BY id") == [
        (1, 1, "old", "red", None),
        (2, None, "new", "red", 5),
        (3, None, "new", None, 6),
    ]


def test_who_may_not_create_uses_the_tables_that_are_there(url: str) -> None:
    query(url, "DROP ROLE IF EXISTS guest")
    query(url, "CREATE ROLE guest LOGIN")
    guest = url.replace("sabot@", "guest@")
    data = pa.record_batch({"n": [1]})
    with pytest.raises(UserError, match="permission denied"):
        SqlSink(guest, "results").claim(TRACK)
    sink = SqlSink(url, "results")
    sink.claim(TRACK)
    sink.deliver(1, [data])
    sink.close()
    query(url, "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO guest")
    sink = SqlSink(guest, "results")
    assert sink.claim(TRACK) == Token(1, "first")
    sink.deliver(2, [data])
    sink.close()
    assert query(url, "SELECT * FROM results") == [(1,), (1,)]
    query(url, "DROP OWNED BY guest")
    query(url, "DROP ROLE guest")


def test_a_server_that_is_not_there_is_named_without_the_password(server: Postgres) -> None:
    (port,) = free_ports(1)
    with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}/shop") as caught:
        SqlSink(f"postgresql://me:hunter2@127.0.0.1:{port}/shop", "results").claim(TRACK)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(UserError, match='"nothing" does not exist'):
        SqlSink(server.url.replace("/postgres", "/nothing"), "results").claim(TRACK)
    with pytest.raises(UserError, match="cannot be read"):
        SqlSink("postgresql://host:port:port/x?nonsense=1", "results")


def test_without_the_driver_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtra, match=r"sabot\[postgres\]"):
        SqlSink("postgresql://host/db", "results")


# --- faults


def test_sinks_that_start_together_make_the_tables_once(url: str) -> None:
    errors: list[BaseException] = []
    barrier = threading.Barrier(6)

    def work(number: int) -> None:
        sink = SqlSink(url, "results", schema=pa.schema([("n", pa.int64())]))
        barrier.wait()
        try:
            sink.claim(Track("app", f"sink.{number}", "first"))
            sink.deliver(1, [pa.record_batch({"n": [number]})])
        except BaseException as error:
            errors.append(error)
        sink.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert query(url, "SELECT n FROM results ORDER BY n") == [(number,) for number in range(6)]


@pytest.mark.one_in(2, "a second of a core each")
@pytest.mark.parametrize("fault", ["backend", "server"])
def test_a_lost_connection_may_be_tried_again_after_a_claim(fault: str, url: str, server: Postgres) -> None:
    sink = SqlSink(url, "results")
    sink.claim(TRACK)
    sink.deliver(1, [pa.record_batch({"n": [1]})])
    if fault == "server":
        server.stop(kill=True)
    else:
        query(url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'sabot-%'")
    with pytest.raises(TransientError):
        sink.deliver(2, [pa.record_batch({"n": [2]})])
    if fault == "server":
        with pytest.raises(BrokerUnavailable):
            sink.claim(TRACK)
        server.start()
    assert sink.claim(TRACK) == Token(1, "first")
    sink.deliver(2, [pa.record_batch({"n": [2]})])
    sink.close()
    assert query(url, "SELECT * FROM results") == [(1,), (2,)]


@pytest.mark.slow  # many processes; a crash at each step: test_sql_sink
def test_a_process_that_is_killed_again_and_again_delivers_each_part_once(url: str) -> None:
    parts, chance = 30, random.Random(4)
    told = kills = 0
    while told < parts:
        # Where two were killed one may go on to the end: this process may have no core until then.
        process = child(url, "results", parts if kills > 1 else 10**6)
        assert process.stdout is not None
        claimed = int(process.stdout.readline().split()[1])
        assert claimed >= told  # what was reported is in the token
        told = claimed
        for line in itertools.islice(process.stdout, chance.randrange(8, 14)):
            told = int(line)
        if process.poll() is None:
            kills += 1
        process.kill()
        process.wait(60)
        process.stdout.close()
    assert kills >= 2
    found = query(url, "SELECT part, n FROM results ORDER BY n")
    assert len(found) >= parts * 100
    assert found == [(n // 100, n) for n in range(100, 100 + len(found))]


@pytest.mark.slow  # a second of a core, or more
def test_a_paused_process_is_taken_over_and_refused_when_it_wakes(url: str) -> None:
    process = child(url, "results", 3, "part")
    assert process.stdout is not None
    assert [process.stdout.readline().split()[0] for _ in range(3)] == ["claimed", "1", "stopping"]
    sink = SqlSink(url, "results")
    assert sink.claim(TRACK) == Token(1, "first")  # does not wait for the other's transaction
    sink.deliver(2, [pa.record_batch({"part": [2], "n": [-2]})])
    process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 1
    assert process.stdout.read() == ""
    process.stdout.close()
    sink.deliver(3, [pa.record_batch({"part": [3], "n": [-3]})])
    sink.close()
    assert query(url, "SELECT part, n FROM results WHERE part > 1") == [(2, -2), (3, -3)]


def test_one_whose_transaction_was_ended_learns_at_its_claim_that_the_track_is_anothers(url: str) -> None:
    before, after = SqlSink(url, "results"), SqlSink(url, "results")
    before.claim(TRACK)
    before.deliver(1, [pa.record_batch({"n": [1]})])

    class TakeOver:
        """The successor comes when the rows are sent, and not committed."""

        def before(self, name: str, what: str) -> None:
            if name == "commit":
                steps.watch(None)
                assert after.claim(TRACK) == Token(1, "first")

        def after(self, name: str, what: str) -> None:
            """Nothing."""

        def torn(self, name: str, what: str, size: int) -> int:
            return size

    steps.watch(TakeOver())
    try:
        with pytest.raises(TransientError):
            before.deliver(2, [pa.record_batch({"n": [2]})])
    finally:
        steps.watch(None)
    with pytest.raises(AppLocked):
        before.claim(TRACK)
    after.deliver(2, [pa.record_batch({"n": [2]})])
    before.close()
    after.close()
    assert query(url, "SELECT * FROM results") == [(1,), (2,)]


# --- dead letters


def test_dead_letters_are_read_back_as_they_were(url: str) -> None:
    facts = letter_headers(
        ValueError("no 'price'"),
        topic="orders",
        partition=2,
        offset=7,
        timestamp=5,
        agent="shop.check",
        attempts=3,
        version="v7",
    )
    payloads: list[bytes | None] = [
        b'{"n": 1}',
        b"\xff\x00",
        b"a\0b",
        b"base64:",
        None,
        *(b"%d" % n for n in range(1200)),
    ]
    headers = [(("a", b"1"), *facts)] * len(payloads)
    written(
        SqlSink(url, table="bad %"),
        build_records(payloads, payloads[::-1], [0] * len(payloads), 0, [0] * len(payloads), headers),
    )
    letters = Letters(TableHome(url, "bad %"))
    try:
        found = list(letters.letters())
        assert [(each.payload, each.key) for each in found] == list(zip(payloads, payloads[::-1], strict=True))
        assert {each.headers for each in found} == {(("a", b"1"),)}
        told = {name.removeprefix("sabot."): value.decode() for name, value in facts}
        assert found[0].timestamp == int(told.pop("written"))
        assert found[0].facts == told
        assert letters.find(0, found[1000].offset) == found[1000]
    finally:
        letters.close()
    with pytest.raises(UserError, match=r"table none of .*does not exist"):
        TableHome(url, "none")
