"""PostgresChanges beside a real server: what a crash does at each moment, and what the start refuses."""

import asyncio
import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from sabot import App
from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.base import Positions, TakesBound
from sabot.connectors.places import Bound
from sabot.connectors.postgres import PostgresChanges, changes
from sabot.connectors.postgres.link import PostgresLink
from sabot.errors import BrokerUnavailable, UserError
from sabot.testing.connectors import ChangesSuite, ConnectorPlace
from sabot.testing.connectors.place import NewPlace
from tools.agent_tools import within
from tools.postgres import Postgres
from tools.tcp_proxy import TcpProxy

WAIT = 60.0  # seconds; only a test that fails waits so long
SOON = 0.2  # seconds, where it does not matter whether a batch comes
INSERT, UPDATE, DELETE = 0, 2, 3
Row = tuple[Any, ...]


@pytest.fixture(scope="module")
def database(server: Postgres) -> Iterator[str]:
    with server.database() as address:
        yield address


@pytest.fixture
def url(server: Postgres, database: str) -> Iterator[str]:
    """The address of an empty database, the same one for each test: to make and to drop one takes longer than most of the tests."""
    yield database
    server.empty(database)


@pytest.fixture
def sql(url: str) -> Iterator[Callable[..., Any]]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE orders (id int PRIMARY KEY, shop int, amount bigint)")

        def run(statement: str, *values: Any) -> Any:
            cursor = connection.execute(statement, values or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else None

        yield run


@pytest.fixture
def read(url: str) -> Iterator["Readers"]:
    readers = Readers(url)
    yield readers
    readers.close()


class Reader:
    """A reader of a table that keeps the rows, by key. It fails for a row that comes twice, or is changed before it came."""

    def __init__(self, source: PostgresChanges) -> None:
        self.source = source
        self.rows: dict[Any, Row] = {}
        self.memory: Mapping[tuple[str, int], bytes] = {}
        self.positions: Positions = {}
        self.ops: list[tuple[int, Row]] = []
        self.letters: list[tuple[bytes, str]] = []
        self.note()

    def note(self) -> None:
        """What a checkpoint would have now."""
        self.positions, self.memory = self.source.positions(), self.source.remember()

    def step(self, max_rows: int = 1000, timeout: float = WAIT) -> int | None:
        """Reads a batch. Returns its rows, or None if none comes in time."""
        batch = self.source.read_batch(max_rows, timeout)
        if batch is None:
            return None
        assert batch.offsets == self.source.positions()
        keys = self.source.keys
        for each in batch.data.to_pylist():
            op = each.pop("__op")
            key = tuple(each[name] for name in keys)
            self.ops.append((op, tuple(each.values())))
            assert (key in self.rows) == (op != INSERT), f"{op} of {key}"
            if op == DELETE:
                del self.rows[key]
            else:
                self.rows[key] = tuple(each.values())
        if batch.bad is not None:
            self.letters += zip(*(batch.bad.column(name).to_pylist() for name in ("payload", "reason")), strict=True)
        self.note()
        return batch.data.num_rows

    def until(self, done: Callable[[], bool], max_rows: int = 1000) -> "Reader":
        end = SYSTEM_CLOCK.monotonic() + WAIT
        while not done():
            assert SYSTEM_CLOCK.monotonic() < end, (self.rows, self.positions)
            self.step(max_rows, SOON)
        return self

    def all(self, expected: Callable[[], list[Row]], max_rows: int = 1000) -> "Reader":
        """Reads until the rows are those of the database."""
        return self.until(
            lambda: not self.source.backlog() and sorted(self.rows.values()) == sorted(expected()), max_rows
        )


class Readers:
    """Makes readers of one database, and closes them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.made: list[PostgresChanges] = []

    def __call__(self, table: str = "orders", before: Reader | None = None, app: str = "shop", **more: Any) -> Reader:
        """`before`: the reader whose checkpoint is restored; it counts as killed."""
        start, until = more.pop("start", "earliest"), more.pop("until", None)
        source = PostgresChanges(self.url, table, **more)
        source.app = app
        self.made.append(source)
        if until is not None:
            source.end_at(Bound(until))
        if before is not None:
            before.source.close()
            source.recall(before.memory)
        source.open(before.positions if before is not None else None, start)
        reader = Reader(source)
        if before is not None:
            reader.rows, reader.ops = dict(before.rows), list(before.ops)
        return reader

    def close(self) -> None:
        for each in self.made:
            each.close()


def of(sql: Callable[..., Any], table: str = "orders") -> Callable[[], list[Row]]:
    return lambda: sql(f"SELECT * FROM {table}")


def slots(sql: Callable[..., Any]) -> list[str]:
    return [name for (name,) in sql("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()")]


def publications(sql: Callable[..., Any]) -> list[str]:
    return [name for (name,) in sql("SELECT pubname FROM pg_publication")]


def end_connections(sql: Callable[..., Any]) -> None:
    """Ends all connections of sources, as a network that breaks."""
    sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'sabot %' AND pid <> pg_backend_pid()"
    )


# -- rows and changes -------------------------------------------------------------------------------------------------


def test_the_rows_come_first_and_then_each_change(sql: Any, read: Readers) -> None:
    sql("INSERT INTO orders SELECT g, g % 7, g * 10 FROM generate_series(1, 100) g")
    reader = read().all(of(sql), 30)
    assert len(reader.ops) == 100
    assert slots(sql) == publications(sql) == ["sabot_shop_orders"]
    sql("INSERT INTO orders VALUES (101, 1, NULL)")
    sql("UPDATE orders SET amount = 5 WHERE id < 3")
    sql("UPDATE orders SET id = 102 WHERE id = 1")
    sql("DELETE FROM orders WHERE id = 50")
    reader.all(of(sql))
    assert reader.ops[100:] == [
        (INSERT, (101, 1, None)),
        (UPDATE, (1, 1, 5)),
        (UPDATE, (2, 2, 5)),
        (DELETE, (1, None, None)),
        (INSERT, (102, 1, 5)),
        (DELETE, (50, None, None)),
    ]


def test_the_connection_of_the_changes_reads_no_catalog(sql: Any, read: Readers, monkeypatch: Any) -> None:
    """A server of version 18 decodes old rows with the columns that its process has read from the catalog before, or ends."""
    sent: dict[int, list[str]] = {}
    query, begin = PostgresLink.query, PostgresLink.begin_copy

    def noted(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(link: PostgresLink, text: str, *more: Any) -> Any:
            sent.setdefault(id(link), []).append(text)
            return call(link, text, *more)

        return run

    monkeypatch.setattr(PostgresLink, "query", noted(query))
    monkeypatch.setattr(PostgresLink, "begin_copy", noted(begin))
    reader = read()
    sql("INSERT INTO orders VALUES (1, 1, 1)")
    reader.all(of(sql))
    [texts] = [texts for texts in sent.values() if texts[-1].startswith("START_REPLICATION")]
    assert [text.split()[0] for text in texts] == ["SET", "IDENTIFY_SYSTEM", "START_REPLICATION"]


def test_rows_that_are_written_while_the_first_rows_are_read_count_once(sql: Any, read: Readers) -> None:
    sql("INSERT INTO orders SELECT g, 0, g FROM generate_series(1, 20) g")
    reader = read()
    for n in range(10):
        sql("INSERT INTO orders VALUES (%s, 1, 0)", 100 + n)
        sql("UPDATE orders SET amount = -1 WHERE id = %s", 20 - n)
        sql("DELETE FROM orders WHERE id = %s", n + 1)
        assert reader.step(2) == 2
    reader.all(of(sql))


@pytest.mark.parametrize("keys", ["id, shop", "shop, id"])
def test_a_key_of_several_columns_and_of_texts_in_the_order_of_a_collation(sql: Any, read: Readers, keys: str) -> None:
    sql(f'CREATE TABLE "OddNames" (id text COLLATE "C", shop numeric(9, 2), "a ""b" text, PRIMARY KEY ({keys}))')
    words = ["", "a", "B", "é", "a\\b", "it's", "\U0001f600"]
    for n, word in enumerate(words):
        sql("INSERT INTO \"OddNames\" VALUES (%s, %s, 'x')", word, n)
    sql('ALTER TABLE "OddNames" REPLICA IDENTITY FULL')
    reader = read("OddNames")
    while reader.step(1):
        sql("INSERT INTO \"OddNames\" VALUES (%s, %s, 'y')", f"{len(reader.rows)}", -len(reader.rows))
        reader = read("OddNames", before=reader)
    reader.all(of(sql, '"OddNames"'))


# -- crashes ----------------------------------------------------------------------------------------------------------


def test_a_start_behind_each_change_goes_on_there(sql: Any, read: Readers) -> None:
    sql("INSERT INTO orders SELECT g, 0, g FROM generate_series(1, 3) g")
    reader = read().all(of(sql))
    sql(
        "BEGIN; INSERT INTO orders VALUES (4, 1, 1), (5, 1, 1); UPDATE orders SET id = 6 WHERE id = 1;"
        "DELETE FROM orders WHERE id = 2; COMMIT"
    )
    sql("INSERT INTO orders VALUES (7, 1, 1)")
    sql("BEGIN; UPDATE orders SET amount = 9; INSERT INTO orders VALUES (8, 1, 1); COMMIT")
    starts = 0
    while sorted(reader.rows.values()) != sorted(of(sql)()):
        if reader.step(1):
            reader.source.commit(reader.positions)
            reader = read(before=reader)
            starts += 1
    assert starts == 5 + 1 + 6
    assert len(reader.ops) == 3 + starts


@pytest.mark.parametrize("committed", [True, False])
def test_rows_that_are_read_in_many_passes_and_changed_between_them_count_once(
    sql: Any, read: Readers, committed: bool
) -> None:
    """Before each pass, and within each, keys are written that were read, and that were not."""
    sql("INSERT INTO orders SELECT g * 10, 0, g FROM generate_series(1, 12) g")
    reader, new = read(), iter(range(1, 1000))
    passes = 0

    def write() -> None:
        at = max((key for (key,) in reader.rows), default=0)
        for key in (at - 9, at + 9):
            sql(
                "INSERT INTO orders VALUES (%s, 1, %s) ON CONFLICT (id) DO UPDATE SET amount = EXCLUDED.amount",
                key,
                next(new),
            )
        sql("UPDATE orders SET amount = -%s WHERE id IN (%s, %s)", next(new), at, at + 10)
        sql("UPDATE orders SET id = %s WHERE id = (SELECT min(id) FROM orders WHERE id > %s)", 500 + next(new), at)
        sql("UPDATE orders SET id = %s WHERE id = (SELECT max(id) FROM orders)", -next(new))
        sql("DELETE FROM orders WHERE id = (SELECT max(id) FROM orders WHERE id < %s)", at)

    while reader.step(1):
        write()
        if committed:
            reader.source.commit(reader.positions)
        reader.source.close()
        write()
        reader = read(before=reader)
        passes += 1
        write()
    assert reader.source.backlog() > 0  # what is left out is still to come
    assert passes > 10
    reader.all(of(sql))
    sql("INSERT INTO orders VALUES (10000, 1, 1)")
    reader = read(before=reader).all(of(sql))


def test_a_start_without_a_checkpoint_begins_anew_in_place_of_the_one_that_still_reads(sql: Any, read: Readers) -> None:
    sql("INSERT INTO orders VALUES (1, 1, 1)")
    first = read().all(of(sql))
    first.until(
        lambda: (
            sql("SELECT count(*) FROM pg_replication_slots WHERE active AND database = current_database()") == [(1,)]
        )
    )
    sql("INSERT INTO orders VALUES (2, 1, 1)")
    second = read().all(of(sql))
    assert second.ops == [(INSERT, (1, 1, 1)), (INSERT, (2, 1, 1))]
    assert slots(sql) == publications(sql) == ["sabot_shop_orders"]


def test_a_start_that_fails_leaves_nothing_at_the_server(
    sql: Any, read: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> None:
        raise BrokerUnavailable("the server went away")

    monkeypatch.setattr(changes, "TableScan", fail)
    with pytest.raises(BrokerUnavailable, match="went away"):
        read()
    assert slots(sql) == publications(sql) == []


def test_a_connection_that_ends_is_made_again(sql: Any, read: Readers) -> None:
    sql("INSERT INTO orders SELECT g, 0, g FROM generate_series(1, 100) g")
    reader = read()
    for n in (10, 30, 50):
        assert reader.step(10)
        end_connections(sql)
        sql("UPDATE orders SET amount = amount + 1")
        reader.until(lambda n=n: len(reader.rows) > n, 10)
    reader.all(of(sql))
    for n in range(200, 203):
        end_connections(sql)
        sql(
            "BEGIN; INSERT INTO orders VALUES (%s, 1, 1); UPDATE orders SET amount = amount + 1; COMMIT".replace(
                "%s", str(n)
            )
        )
        reader.all(of(sql), 7)
    assert reader.source.figures()["reconnects"] in (1, 2, 3)  # one that ended before it had begun is not counted


def test_a_network_that_is_cut_or_reset_is_waited_for(sql: Any, url: str) -> None:
    facts = psycopg.conninfo.conninfo_to_dict(url)
    with TcpProxy(f"127.0.0.1:{facts['port']}") as proxy:
        readers = Readers(url.replace(f"127.0.0.1:{facts['port']}", proxy.address))
        reader = readers().all(of(sql))
        sql("INSERT INTO orders VALUES (1, 1, 1)")
        reader.all(of(sql))
        proxy.cut()
        sql("INSERT INTO orders VALUES (2, 1, 1)")
        assert not reader.step(timeout=SOON)
        proxy.mend()
        reader.all(of(sql))
        proxy.reset()
        sql("INSERT INTO orders VALUES (3, 1, 1)")
        reader.all(of(sql))
        readers.close()


@pytest.mark.slow  # a server of its own, and some seconds without a reader
def test_a_large_transaction_comes_to_an_app_that_is_held_for_longer_than_the_server_waits() -> None:
    server = Postgres("wal_sender_timeout=6s")
    try:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE orders (id int PRIMARY KEY, shop int, amount bigint)")
            readers = Readers(server.url)
            reader = readers()
            reader.until(lambda: reader.source.backlog() == 0)
            connection.execute("INSERT INTO orders SELECT g, g, g FROM generate_series(1, 1000000) g")
            reader.until(lambda: bool(reader.rows), 1)  # the buffer fills, and stays full
            threading.Event().wait(10)  # the server would end a silent connection after six seconds

            def buffered() -> int:
                return int(reader.source.figures()["buffered_bytes"])

            end = SYSTEM_CLOCK.monotonic() + WAIT
            while buffered() < 60 << 20:
                assert SYSTEM_CLOCK.monotonic() < end, buffered()
                threading.Event().wait(0.01)  # else the thread that receives had to wait for its turn
            assert buffered() < 70 << 20
            left = 1_000_000 - len(reader.rows)
            while left:
                batch = reader.source.read_batch(32_768, WAIT)
                assert batch is not None
                left -= batch.num_rows
            assert reader.source.figures()["reconnects"] == 0
            readers.close()
    finally:
        server.remove()


@pytest.mark.slow  # a server of its own
def test_a_standby_is_refused_and_a_promoted_one_has_another_log() -> None:
    server = Postgres()
    readers = Readers(server.url)
    try:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE orders (id int PRIMARY KEY, shop int, amount bigint)")
        reader = readers()
        reader.until(lambda: reader.source.backlog() == 0)
        readers.close()
        server.stop()
        (server.folder / "data" / "standby.signal").touch()
        server.start()
        with pytest.raises(UserError, match="the server is a standby"):
            readers(app="other")
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")
        with pytest.raises(UserError, match="has timeline 2, and that of the checkpoint 1: a standby was promoted"):
            readers(before=reader)
    finally:
        readers.close()
        server.remove()


@pytest.mark.slow  # a server of its own, which writes 200 MB
def test_a_slot_whose_wal_runs_out_warns_and_is_an_error_when_it_is_lost(caplog: Any) -> None:
    server = Postgres("max_slot_wal_keep_size=96MB", "max_wal_size=64MB", "min_wal_size=32MB")
    readers = Readers(server.url)
    try:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE orders (id int PRIMARY KEY, shop int, amount bigint)")
            connection.execute("CREATE TABLE busy (n int, t text)")

            def write() -> None:
                connection.execute("INSERT INTO busy SELECT g, repeat('x', 1000) FROM generate_series(1, 16000) g")
                connection.execute("CHECKPOINT")

            reader = readers(heartbeat="20ms")
            reader.until(lambda: reader.source.backlog() == 0)
            for _ in range(4):
                write()
            reader.until(lambda: "and the server keeps" in caplog.text)  # nothing is confirmed
            readers.close()
            for _ in range(12):
                write()
            with pytest.raises(UserError, match="the server has removed WAL that sabot_shop_orders had not read"):
                readers(before=reader)
    finally:
        readers.close()
        server.remove()


@pytest.mark.parametrize(
    ("mutation", "error"),
    [("taken", r"of \(1,\)"), ("last key", r"of \(1,\)"), ("passes", r"of \(2,\)"), ("early", "is confirmed to")],
)
def test_a_source_that_breaks_a_promise_is_found(sql: Any, read: Readers, mutation: str, error: str) -> None:
    """It forgets the rows taken of a transaction, the last key, or which changes the rows have; or it confirms before a checkpoint."""

    def broken(reader: Reader, place: int, value: Any) -> Reader:
        facts = json.loads(reader.memory["public.orders", 0])
        facts[place] = value(facts[place])
        reader.memory = {("public.orders", 0): json.dumps(facts).encode()}
        return read(before=reader)

    def run() -> None:
        if mutation in ("last key", "passes"):
            sql("INSERT INTO orders VALUES (1, 1, 1), (3, 1, 1)")
        reader = read()
        if mutation in ("taken", "early"):
            reader.until(lambda: reader.source.backlog() == 0)
            sql("INSERT INTO orders VALUES (1, 1, 1), (2, 1, 1)")
            if mutation == "taken":
                broken(reader.until(lambda: bool(reader.rows), 1), 5, lambda taken: 0).all(of(sql))
            else:
                old = reader.positions, reader.memory
                reader.until(lambda: reader.positions != old[0])
                reader.source.commit(reader.positions)
                reader.until(lambda: confirmed(sql) == reader.positions["public.orders", 0])
                reader.positions, reader.memory = old
                read(before=reader)
            return
        assert reader.step(1) == 1
        sql("INSERT INTO orders VALUES (2, 1, 1)")
        if mutation == "last key":
            broken(reader, 3, lambda passes: [[lsn, []] for lsn, _ in passes]).all(of(sql))
        else:
            second = read(before=reader)
            assert second.step(1) == 1
            broken(second, 3, lambda passes: [[passes[0][0], last] for _, last in passes]).all(of(sql))

    with pytest.raises((UserError, AssertionError), match=error):
        run()


@pytest.mark.one_in(2, "a server is ended and begun again for each")
@pytest.mark.parametrize("kill", [True, False])
def test_a_server_that_is_killed_is_waited_for(
    sql: Any, read: Readers, server: Postgres, url: str, caplog: Any, kill: bool
) -> None:
    caplog.set_level(logging.INFO)
    sql("INSERT INTO orders VALUES (1, 1, 1)")
    reader = read().all(of(sql))
    sql("INSERT INTO orders VALUES (0, 1, 1)")
    reader.all(of(sql))
    server.stop(kill=kill)  # a shutdown does not wait for our next checkpoint
    try:
        reader.until(lambda: "is tried again until it answers" in caplog.text)
    finally:
        server.start()
    with psycopg.connect(url, autocommit=True) as again:
        again.execute("INSERT INTO orders VALUES (2, 1, 1)")
    reader.until(lambda: len(reader.rows) == 3)
    assert caplog.text.count("is tried again until it answers") == caplog.text.count("answers again") == 1


@pytest.mark.parametrize("rows", [True, False])
def test_no_call_waits_for_a_server_that_is_paused(sql: Any, read: Readers, rows: bool) -> None:
    sql("INSERT INTO orders SELECT g, 0, g FROM generate_series(1, 200000) g")
    reader = read(start="earliest" if rows else "latest")
    if not rows:
        sql("UPDATE orders SET amount = 0")
    assert reader.source.read_batch(10, WAIT) is not None
    pids = [pid for (pid,) in sql("SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'sabot %'")]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        began = SYSTEM_CLOCK.monotonic()
        silent = 0
        while silent < 10:  # a busy machine gives the thread that receives its turn late
            silent = silent + 1 if reader.source.read_batch(100_000, 0.05) is None else 0
            assert SYSTEM_CLOCK.monotonic() - began < WAIT
        with within(10):
            reader.source.close()
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):  # a connection of the start, which was ending when it was stopped
                os.kill(pid, signal.SIGCONT)


# -- the slot ---------------------------------------------------------------------------------------------------------


def confirmed(sql: Any) -> int:
    [(at,)] = sql("SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = 'sabot_shop_orders'")
    return int(at)


def test_the_server_may_forget_only_what_a_checkpoint_covers(sql: Any, read: Readers) -> None:
    reader = read().all(of(sql))
    begun = confirmed(sql)
    for n in range(20):
        sql("INSERT INTO orders VALUES (%s, 1, 1)", n)
    [(end,)] = sql("SELECT pg_current_wal_flush_lsn() - '0/0'")
    reader.until(lambda: reader.positions["public.orders", 0] >= end)
    place = reader.positions["public.orders", 0]
    for _ in range(10):  # statuses are sent
        reader.step(timeout=SOON)
    assert confirmed(sql) == begun < end
    reader.source.commit({("public.orders", 0): place})
    reader.until(lambda: confirmed(sql) == place)


def test_the_position_of_an_idle_table_moves_with_the_log(sql: Any, read: Readers) -> None:
    reader = read().all(of(sql))
    before = reader.positions["public.orders", 0]
    sql("CREATE TABLE busy AS SELECT generate_series(1, 10000) n")
    reader.until(lambda: reader.positions["public.orders", 0] > before + 100_000)
    assert not reader.ops
    sql("INSERT INTO orders VALUES (1, 1, 1)")
    reader = read(before=reader).all(of(sql))


def test_a_slot_that_was_confirmed_behind_the_checkpoint_is_an_error(sql: Any, read: Readers) -> None:
    reader = read().all(of(sql))
    old = dict(reader.positions), reader.memory
    sql("INSERT INTO orders VALUES (1, 1, 1)")
    reader.until(lambda: reader.positions["public.orders", 0] > old[0]["public.orders", 0])
    reader.source.commit(reader.positions)
    reader.until(lambda: confirmed(sql) > old[0]["public.orders", 0])
    reader.positions, reader.memory = old
    with pytest.raises(UserError, match=r"is confirmed to \w+/\w+, behind the position \w+/\w+ of the checkpoint"):
        read(before=reader)


def test_a_slot_that_is_gone_is_an_error(sql: Any, read: Readers) -> None:
    reader = read().all(of(sql))
    reader.source.close()
    end_connections(sql)
    sql("SELECT pg_drop_replication_slot('sabot_shop_orders')")
    with pytest.raises(UserError, match="slot sabot_shop_orders is gone") as raised:
        read(before=reader)
    assert "--fresh" in str(raised.value)


def test_a_publication_that_is_gone_is_an_error(sql: Any, read: Readers) -> None:
    reader = read().all(of(sql))
    sql("DROP PUBLICATION sabot_shop_orders")
    with pytest.raises(UserError, match="publication sabot_shop_orders is gone"):
        read(before=reader)


@pytest.mark.parametrize(
    ("place", "other", "error"),
    [
        (0, "7", "the server is another one: its system is"),
        (1, 7, "a standby was promoted, or a backup restored"),
        (2, 7, "the table was made again"),
    ],
)
def test_another_server_and_another_table_are_an_error(
    sql: Any, read: Readers, place: int, other: Any, error: str
) -> None:
    reader = read().all(of(sql))
    facts = json.loads(reader.memory["public.orders", 0])
    facts[place] = other
    reader.memory = {("public.orders", 0): json.dumps(facts).encode()}
    with pytest.raises(UserError, match=error):
        read(before=reader)


def test_a_slot_is_read_by_one_app(sql: Any, read: Readers) -> None:
    sql("INSERT INTO orders VALUES (1, 1, 1)")
    first = read(slot="shared").all(of(sql))
    with pytest.raises(UserError, match="there is a slot shared already, and this app has not made it"):
        read(app="other", slot="shared")
    sql("INSERT INTO orders VALUES (2, 1, 1)")
    first.all(of(sql))
    second = read(app="other").all(of(sql))
    assert slots(sql) == ["shared", "sabot_other_orders"]
    sql("INSERT INTO orders VALUES (3, 1, 1)")
    first.all(of(sql))
    second.all(of(sql))


def test_an_app_that_restores_while_another_process_reads_its_slot_is_refused(sql: Any, read: Readers) -> None:
    first = read(slot="shared").all(of(sql))
    thief = PostgresChanges(read.url, "orders", slot="shared")
    thief.app = "other"
    thief.recall(first.memory)
    first.until(lambda: sql("SELECT active FROM pg_replication_slots WHERE slot_name = 'shared'") == [(True,)])
    with pytest.raises(UserError, match=r"slot shared is read by another process: sabot shop public\.orders"):
        thief.open(first.positions)


def test_a_slot_that_holds_wal_gets_an_empty_transaction(sql: Any, read: Readers) -> None:
    reader = read(heartbeat="50ms").all(of(sql))
    sql("CREATE TABLE busy (n int, t text)")
    end = SYSTEM_CLOCK.monotonic() + WAIT
    for _ in range(6):
        sql("INSERT INTO busy SELECT g, repeat('x', 1000) FROM generate_series(1, 16000) g; CHECKPOINT")
        reader.step(timeout=SOON)
        reader.source.commit(reader.positions)
    while reader.source.figures().get("held_wal_bytes", 1 << 40) > 48 << 20:  # type: ignore[operator]
        assert SYSTEM_CLOCK.monotonic() < end, reader.source.figures()
        reader.step(timeout=SOON)
        reader.source.commit(reader.positions)
        sql("CHECKPOINT")
    assert reader.source.figures()["wal_status"] == "reserved"


# -- refusals of a start ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statements", "table", "error", "hint"),
    [
        ("", "nothing", "there is no such table", "public.orders"),
        ("CREATE VIEW v AS SELECT * FROM orders", "v", "it is no table", "tables behind it"),
        ("CREATE TABLE t (id int)", "t", "has no primary key", "ADD PRIMARY KEY"),
        ("CREATE UNLOGGED TABLE t (id int PRIMARY KEY)", "t", "unlogged", "SET LOGGED"),
        ("CREATE TABLE t (id int PRIMARY KEY, s text)", "t", "a large value of s", "REPLICA IDENTITY FULL"),
        (
            "CREATE TABLE t (id int PRIMARY KEY, n int GENERATED ALWAYS AS (id + 1) STORED)",
            "t",
            "column n is generated",
            "compute it",
        ),
        (
            "ALTER TABLE orders REPLICA IDENTITY NOTHING",
            "orders",
            "the replica identity is public.orders NOTHING",
            "ALTER TABLE public.orders REPLICA IDENTITY DEFAULT",
        ),
        (
            "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE t1 PARTITION OF t DEFAULT;"
            "ALTER TABLE t1 REPLICA IDENTITY FULL",
            "t",
            "the replica identity is public.t DEFAULT, public.t1 FULL",
            "ALTER TABLE public.t REPLICA IDENTITY FULL",
        ),
    ],
)
def test_a_table_whose_changes_would_be_incomplete_is_refused_with_the_statement_that_helps(
    sql: Any, read: Readers, statements: str, table: str, error: str, hint: str
) -> None:
    if statements:
        sql(statements)
    with pytest.raises(UserError, match=error) as raised:
        read(table)
    assert hint in str(raised.value)
    assert slots(sql) == publications(sql) == []


def test_a_column_that_the_program_does_not_use_refuses_nothing(sql: Any, read: Readers) -> None:
    sql("CREATE TABLE t (id int PRIMARY KEY, s text, n int)")
    sql("INSERT INTO t VALUES (1, 'x', 2)")
    source = PostgresChanges(read.url, "t")
    assert source.scan(None, ["n"])
    source.app = "shop"
    read.made.append(source)
    source.open(None)
    batch = source.read_batch(10, WAIT)
    assert batch is not None
    assert batch.data.to_pylist() == [{"n": 2, "__op": INSERT}]


def test_the_password_is_in_no_message(sql: Any, read: Readers) -> None:
    address = read.url.replace("sabot@", "sabot:hunter2-secret@")
    source = PostgresChanges(address, "nothing")
    with pytest.raises(UserError) as raised:
        source.open(None)
    assert "hunter2" not in repr(raised.value) + str(raised.value)
    with pytest.raises(BrokerUnavailable) as away:
        PostgresChanges(address.replace(str(psycopg.conninfo.conninfo_to_dict(address)["port"]), "1"), "orders").open(
            None
        )
    assert "hunter2" not in str(away.value)


# -- the table changes ------------------------------------------------------------------------------------------------


def test_a_large_value_that_an_update_leaves_alone_comes_from_the_old_row(sql: Any, read: Readers) -> None:
    sql("CREATE TABLE t (id int PRIMARY KEY, s text, n int); ALTER TABLE t REPLICA IDENTITY FULL")
    sql("ALTER TABLE t ALTER s SET STORAGE EXTERNAL")
    sql("INSERT INTO t VALUES (1, repeat('x', 100000), 1)")
    reader = read("t").all(of(sql, "t"))
    sql("UPDATE t SET n = 2")
    sql("UPDATE t SET id = 2")
    reader.all(of(sql, "t"))
    assert reader.rows == {(2,): (2, "x" * 100_000, 2)}


def test_a_new_column_is_left_out_with_one_warning(sql: Any, read: Readers, caplog: Any) -> None:
    sql("INSERT INTO orders VALUES (1, 1, 1)")
    reader = read()
    sql("ALTER TABLE orders ADD more int; INSERT INTO orders VALUES (2, 1, 1, 7)")
    sql(
        "BEGIN; INSERT INTO orders VALUES (3, 1, 1, 7); ALTER TABLE orders ADD yet int; INSERT INTO orders VALUES (4, 1, 1, 7, 8); COMMIT"
    )
    begun = reader.positions, reader.memory, dict(reader.rows)
    reader.all(lambda: sql("SELECT id, shop, amount FROM orders"))
    reader.positions, reader.memory, reader.rows = begun
    reader = read(before=reader)  # which knows the columns, and reads from before they were there
    sql("INSERT INTO orders VALUES (5, 1, 1, 7, 8)")
    reader.until(lambda: len(reader.rows) == 5)
    assert [reader.rows[n,][3:] for n in range(1, 6)] == [(None, None), (7, None), (7, None), (7, 8), (7, 8)]
    assert caplog.text.count("its new column more is not read") == 1
    assert caplog.text.count("its new column yet is not read") == 1


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("ALTER TABLE orders DROP amount", "it has no column amount, which the program uses"),
        ("ALTER TABLE orders RENAME amount TO total", "it has no column amount, which the program uses"),
        ("ALTER TABLE orders ALTER amount TYPE text", "column amount, which the program uses, is not bigint"),
        (
            "CREATE UNIQUE INDEX other ON orders (shop); ALTER TABLE orders ALTER shop SET NOT NULL; "
            "ALTER TABLE orders REPLICA IDENTITY USING INDEX other",
            "an UPDATE or a DELETE brings shop, and the key is id",
        ),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_a_column_that_the_program_uses_and_that_changes_is_an_error(
    sql: Any, read: Readers, statement: str, error: str, inside: bool
) -> None:
    reader = read().all(of(sql))
    change = f"{statement}; INSERT INTO orders VALUES (2, 2)"
    sql(f"BEGIN; INSERT INTO orders VALUES (1, 1, 1); {change}; COMMIT" if inside else change)
    for _ in range(2):
        with pytest.raises(UserError, match=error):
            reader.until(lambda: False)
    assert len(reader.rows) == int(inside)


@pytest.mark.parametrize(
    ("statements", "error", "hint"),
    [
        ("DROP TABLE orders", r"the table was dropped \(", "take it out of the program"),
        (
            "DROP TABLE orders; CREATE TABLE orders (id int PRIMARY KEY, shop int, amount bigint)",
            "the table was dropped and made again: its oid is",
            "--fresh",
        ),
        (
            "ALTER TABLE orders RENAME TO old; CREATE TABLE orders (id int PRIMARY KEY)",
            "the table has another name now: public.old",
            "give it its name back",
        ),
        (
            "CREATE SCHEMA kept; ALTER TABLE orders SET SCHEMA kept",
            "another name now: kept.orders",
            'PostgresChanges(…, "kept.orders")',
        ),
        ("DROP PUBLICATION sabot_shop_orders", "publication sabot_shop_orders is gone", "CREATE PUBLICATION"),
        (
            "CREATE TABLE other (n int); ALTER PUBLICATION sabot_shop_orders SET TABLE other",
            "does not have the table any more",
            "--fresh",
        ),
        (
            "DROP PUBLICATION sabot_shop_orders; INSERT INTO orders VALUES (2, 2, 2); "
            "CREATE PUBLICATION sabot_shop_orders FOR TABLE ONLY orders WITH (publish_via_partition_root = true)",
            "publication sabot_shop_orders was made again",
            "--fresh",
        ),
        (
            "CREATE TABLE other (n int); ALTER PUBLICATION sabot_shop_orders SET TABLE other; INSERT INTO orders VALUES (2, 2, 2);"
            "ALTER PUBLICATION sabot_shop_orders SET TABLE ONLY orders",
            "or the table was taken out of it and put back",
            "--fresh",
        ),
        (
            "ALTER TABLE orders REPLICA IDENTITY NOTHING",
            "the replica identity is public.orders NOTHING",
            "REPLICA IDENTITY DEFAULT",
        ),
        (
            "ALTER TABLE orders DROP CONSTRAINT orders_pkey",
            "the key was id, and the table has none now",
            "its key back",
        ),
        (
            "ALTER TABLE orders DROP CONSTRAINT orders_pkey, ADD PRIMARY KEY (id, shop)",
            "the key was id, and is id, shop now",
            "its key back",
        ),
    ],
)
def test_what_happens_to_the_table_beside_its_changes_is_said_behind_the_changes_before_it(
    sql: Any, read: Readers, statements: str, error: str, hint: str
) -> None:
    """No log of changes has it: the source waited in silence, and went on with what was left behind a restart."""
    reader = read(heartbeat="20ms").all(of(sql))
    sql("INSERT INTO orders VALUES (1, 1, 1)")
    begun = reader.positions, reader.memory
    sql(statements)
    with pytest.raises(UserError, match=error) as raised:
        reader.until(lambda: False)
    assert str(raised.value).startswith("table public.orders at ")
    assert hint in str(raised.value)
    assert (1,) in reader.rows
    if "publication" in error or "put back" in error:  # a start says it too: nobody may have looked in between
        reader.positions, reader.memory = begun
        with pytest.raises(UserError, match=error):
            read(before=reader)


def test_a_slot_that_is_dropped_while_rows_are_read_is_said_at_once(sql: Any, read: Readers) -> None:
    sql("INSERT INTO orders SELECT g, 1, 1 FROM generate_series(1, 9) g")
    reader = read(heartbeat="20ms")
    reader.step(1)
    sql("SELECT pg_drop_replication_slot('sabot_shop_orders')")
    with pytest.raises(UserError, match="slot sabot_shop_orders is gone, and with it the changes that were not read"):
        reader.until(lambda: False, 0)


def test_a_checkpoint_of_an_older_version_does_not_know_the_publication(sql: Any, read: Readers) -> None:
    sql("INSERT INTO orders VALUES (1, 1, 1)")
    reader = read().all(of(sql))
    facts = json.loads(reader.memory["public.orders", 0])
    reader.memory = {("public.orders", 0): json.dumps(facts[:7]).encode()}
    sql("INSERT INTO orders VALUES (2, 1, 1)")
    read(before=reader).all(of(sql))


def test_truncate_is_an_error_or_is_passed_over(sql: Any, read: Readers, caplog: Any) -> None:
    sql("INSERT INTO orders VALUES (1, 1, 1)")
    reader = read().all(of(sql))
    sql("BEGIN; INSERT INTO orders VALUES (2, 1, 1); TRUNCATE orders; INSERT INTO orders VALUES (3, 1, 1); COMMIT")
    with pytest.raises(UserError, match="a TRUNCATE behind") as raised:
        reader.until(lambda: False)
    assert 'on_truncate="ignore"' in str(raised.value)
    assert len(reader.rows) == 2
    reader = read(before=reader, on_truncate="ignore")
    reader.until(lambda: (3,) in reader.rows)
    assert len(reader.rows) == 3
    assert "a TRUNCATE is passed over" in caplog.text


def test_the_rows_of_partitions_are_those_of_their_table(sql: Any, read: Readers) -> None:
    sql(
        "CREATE TABLE t (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);"
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10); CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (100)"
    )
    sql("INSERT INTO t SELECT g, g FROM generate_series(5, 15) g")
    reader = read("t")
    reader.step(3)
    reader = read("t", before=reader).all(of(sql, "t"), 2)
    sql("CREATE TABLE t3 PARTITION OF t FOR VALUES FROM (100) TO (1000)")
    sql("INSERT INTO t VALUES (101, 1)")
    sql("UPDATE t SET id = id + 50, n = 0")
    sql("DELETE FROM t WHERE id < 60")
    reader.all(of(sql, "t"))


def test_rows_of_tables_that_inherit_are_not_those_of_the_table(sql: Any, read: Readers) -> None:
    sql("CREATE TABLE child (PRIMARY KEY (id)) INHERITS (orders)")
    sql("INSERT INTO child VALUES (1, 1, 1); INSERT INTO orders VALUES (2, 1, 1)")
    reader = read().all(lambda: sql("SELECT * FROM ONLY orders"))
    sql("INSERT INTO child VALUES (3, 1, 1); INSERT INTO orders VALUES (4, 1, 1)")
    reader.all(lambda: sql("SELECT * FROM ONLY orders"))


# -- other starts -----------------------------------------------------------------------------------------------------


def test_until_now_reads_the_rows_without_a_slot_and_goes_on_behind_the_last_key(sql: Any, read: Readers) -> None:
    sql("INSERT INTO orders SELECT g, 0, g FROM generate_series(1, 10) g")
    reader = read(until="now")
    assert reader.step(4) == 4
    sql("INSERT INTO orders VALUES (11, 1, 1)")
    reader = read(before=reader, until="now")
    reader.until(lambda: reader.source.exhausted, 3)
    assert len(reader.rows) == 11
    assert slots(sql) == publications(sql) == []
    assert read(before=reader, until="now").source.exhausted
    with pytest.raises(UserError, match="has read rows only"):
        read(before=reader)


def test_latest_reads_only_changes(sql: Any, read: Readers) -> None:
    sql("INSERT INTO orders VALUES (1, 1, 1)")
    reader = read(start="latest")
    sql("INSERT INTO orders VALUES (2, 1, 1)")
    reader.until(lambda: bool(reader.rows))
    assert reader.rows == {(2,): (2, 1, 1)}


def test_a_publication_of_the_users(sql: Any, read: Readers) -> None:
    with pytest.raises(UserError, match="there is no publication own") as raised:
        read(publication="own")
    assert "CREATE PUBLICATION" in str(raised.value)
    sql("CREATE PUBLICATION own FOR TABLE orders (id, shop)")
    with pytest.raises(UserError, match="publication own leaves out column amount"):
        read(publication="own")
    sql("ALTER PUBLICATION own SET TABLE orders WHERE (id > 5)")
    with pytest.raises(UserError, match="leaves out rows"):
        read(publication="own")
    sql("ALTER PUBLICATION own SET TABLE orders; ALTER PUBLICATION own SET (publish = 'insert')")
    with pytest.raises(UserError, match="leaves out some kinds of changes"):
        read(publication="own")
    assert slots(sql) == []
    sql("ALTER PUBLICATION own SET (publish = 'insert, update, delete, truncate')")
    sql("INSERT INTO orders VALUES (1, 1, 1)")
    reader = read(publication="own").all(of(sql))
    sql("INSERT INTO orders VALUES (2, 1, 1)")
    read(publication="own", before=reader).all(of(sql))
    assert publications(sql) == ["own"]


# -- in an app --------------------------------------------------------------------------------------------------------


def test_a_table_takes_its_key_from_the_source_and_a_stream_its_rows(sql: Any, url: str) -> None:
    sql("INSERT INTO orders VALUES (1, 1, 10), (2, 1, 20)")
    rows = [{"id": 1, "shop": 1, "amount": 10}, {"id": 2, "shop": 1, "amount": 20}]
    assert App("a").table(PostgresChanges(url, "orders"), until="now").materialize().collect().to_pylist() == rows
    assert App("b").stream(PostgresChanges(url, "orders"), until="now").collect().to_pylist() == rows
    with pytest.raises(UserError, match="until=5 is no place in a table"):
        App("c").stream(PostgresChanges(url, "orders"), until=5).collect()
    with pytest.raises(UserError, match="amount is int64, and schema= of the stream says string"):
        App("d").stream(PostgresChanges(url, "orders"), schema={"amount": "string"}, until="now").collect()


async def test_a_stream_stops_at_a_change_that_is_no_insertion(sql: Any, url: str) -> None:
    sql("INSERT INTO orders VALUES (1, 1, 10)")
    app = App("shop")
    out: list[Any] = []
    app.stream(PostgresChanges(url, "orders")).to(out)
    running = asyncio.create_task(app.run())
    end = SYSTEM_CLOCK.monotonic() + WAIT
    while not out:
        assert SYSTEM_CLOCK.monotonic() < end
        await asyncio.sleep(0.02)
    sql("UPDATE orders SET amount = 2")
    with pytest.raises(UserError, match="a row was changed or deleted"):
        await asyncio.wait_for(running, WAIT)


async def test_a_deletion_without_an_event_time_has_the_latest_one_before_it(sql: Any, url: str) -> None:
    sql("CREATE TABLE t (id int PRIMARY KEY, at timestamptz)")
    sql("INSERT INTO t VALUES (1, '2026-01-01'), (2, '2026-01-02')")
    app = App("shop")
    out: list[Any] = []
    app.table(PostgresChanges(url, "t"), time="at").changelog().to(out)
    running = asyncio.create_task(app.run())
    end = SYSTEM_CLOCK.monotonic() + WAIT
    for statement, rows in (("DELETE FROM t WHERE id = 1", 2), ("SELECT 1", 3)):
        while len(out) < rows:
            assert SYSTEM_CLOCK.monotonic() < end
            await asyncio.sleep(0.02)
        sql(statement)
    assert [(each["op"], each["id"]) for each in out] == [("insert", 1), ("insert", 2), ("delete", 1)]
    await app.stop()
    await asyncio.wait_for(running, WAIT)


# -- the suite for all sources of changes -----------------------------------------------------------------------------


class Numbered(ConnectorPlace):
    def __init__(self, sql: Callable[..., Any], url: str) -> None:
        self.sql, self.url = sql, url
        sql("CREATE TABLE numbered (n bigint PRIMARY KEY, changed int)")

    def put(self, numbers: Sequence[int]) -> None:
        for n in numbers:
            self.sql("INSERT INTO numbered VALUES (%s, 0)", n)

    def change(self, numbers: Sequence[int]) -> None:
        for n in numbers:
            self.sql("UPDATE numbered SET changed = changed + 1 WHERE n = %s", n)

    def remove(self, numbers: Sequence[int]) -> None:
        for n in numbers:
            self.sql("DELETE FROM numbered WHERE n = %s", n)

    def drop(self) -> None:
        """Ends the transactions that read the table: DROP TABLE waits for them, and the suite reads on only behind it."""
        self.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = 'numbered'::regclass AND pid <> pg_backend_pid()"
        )
        self.sql("DROP TABLE numbered")

    def source(self) -> PostgresChanges:
        return PostgresChanges(self.url, "numbered", heartbeat="50ms")


class TestPostgresChanges(ChangesSuite):
    @pytest.fixture
    def new_place(self, sql: Callable[..., Any], url: str) -> NewPlace:
        return lambda: Numbered(sql, url)

    def test_a_bound_is_where_the_log_was_at_the_first_start(self, new_place: NewPlace) -> None:
        """Rows that came after the start were read too, until the first batch. A restart amid the table has a snapshot of its own."""
        place = new_place()
        place.put(range(4))
        source = place.source()
        assert isinstance(source, TakesBound)
        source.end_at(Bound("now"))
        self.open(source)
        place.put([4, 5])
        assert self.read(place, source, 4, 3) == [0, 1, 2, 3]
        self.check_end(source)
        source.close()


def test_a_restart_in_the_table_does_not_wait_for_the_connection_of_the_start_before(sql: Any, read: Readers) -> None:
    """The server keeps the temporary slot of a connection that has ended until it notices."""
    sql("INSERT INTO orders SELECT g, g, g FROM generate_series(1, 9) g")
    first = read()
    first.step(1)
    sql("SELECT pg_create_logical_replication_slot('sabot_shop_orders_now', 'pgoutput', true)")
    for _ in range(5):  # each makes one, which may be there when the next does
        first = read(before=first)
        first.step(1)
    assert sorted(first.rows) == [(n,) for n in range(1, 7)]
