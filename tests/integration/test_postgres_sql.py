"""Tables of SQL with 'connector' = 'postgres-cdc'."""

import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from sabot import App
from sabot.errors import UserError
from sabot.testing import ListSink
from tools.agent_tools import until
from tools.postgres import Postgres

COLUMNS = "(id BIGINT, status STRING, amount DECIMAL(12, 3), at TIMESTAMP(3), PRIMARY KEY (id) NOT ENFORCED)"


@pytest.fixture
def url(server: Postgres) -> Iterator[str]:
    with server.database() as address, psycopg.connect(address, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE orders (id integer PRIMARY KEY, status varchar(9), amount numeric(9, 2), at timestamp)"
        )
        connection.execute("ALTER TABLE orders REPLICA IDENTITY FULL")
        connection.execute("INSERT INTO orders VALUES (1, 'open', 5, '2024-01-01 10:00:00.5'), (2, 'paid', 2.5, NULL)")
        yield address


def table(url: str, columns: str = COLUMNS, **options: str) -> str:
    """The statement of a table `orders`; `_` in names of options stands for `.` or `-`."""
    place = urlsplit(url)
    given = {
        "hostname": str(place.hostname),
        "port": str(place.port),
        "username": str(place.username),
        "database-name": place.path[1:],
        "schema-name": "public",
        "table-name": "orders",
        **options,
    }
    words = ", ".join(
        f"'{name}' = '{value}'" for name, value in {"connector": "postgres-cdc", **given}.items() if value
    )
    return f"CREATE TABLE orders {columns} WITH ({words})"


async def test_a_table_of_sql_follows_that_of_the_database(url: str, tmp_path: Path) -> None:
    app = App("shop", state=tmp_path / "state", checkpoint_interval="50ms")
    app.sql(table(url, **{"slot.name": "of_sql", "decoding.plugin.name": "pgoutput", "heartbeat.interval": "1 s"}))
    totals = ListSink()
    app.sql("SELECT status, SUM(amount) AS amount FROM orders GROUP BY status").upsert("status").to(totals)
    await app.start()
    try:
        await shown(totals, {"open": "5.000", "paid": "2.500"})
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("UPDATE orders SET status = 'paid' WHERE id = 1")
            await shown(totals, {"paid": "7.500"})
            connection.execute("DELETE FROM orders WHERE id = 2")
            assert connection.execute("SELECT slot_name FROM pg_replication_slots").fetchall() == [("of_sql",)]
            await shown(totals, {"paid": "5.000"})
    finally:
        await app.stop()


async def shown(totals: ListSink, wanted: dict[str, str]) -> None:
    await until(lambda: {row["status"]: str(row["amount"]) for row in totals.current} == wanted)


def test_a_snapshot_is_a_bounded_read_with_the_declared_columns_or_all(url: str) -> None:
    app = App("shop")
    app.sql(table(url, **{"scan.startup.mode": "snapshot"}))
    rows = app.sql("SELECT CAST(id AS STRING) AS id, amount, CAST(at AS STRING) AS at FROM orders").collect()
    assert [{name: str(value) for name, value in row.items()} for row in rows.to_pylist()] == [
        {"id": "1", "amount": "5.000", "at": "2024-01-01 10:00:00.500"},
        {"id": "2", "amount": "2.500", "at": "None"},
    ]
    whole = App("whole")
    whole.sql(table(url, "", **{"scan.startup.mode": "snapshot"}))
    assert whole.sql("SELECT * FROM orders").collect().column_names == ["id", "status", "amount", "at"]


WRONG = {
    "column": ("(id INT, total INT)", {}, "column total is not in the table public.orders"),
    "type": ("(id INT, status INT)", {}, "column status is INT, and the table public.orders says STRING"),
    "key": (
        "(id INT, status STRING, PRIMARY KEY (status) NOT ENFORCED)",
        {},
        "the key of the table public.orders is id",
    ),
    "metadata": ("(id INT, at TIMESTAMP(3) METADATA FROM 'timestamp')", {}, "have no METADATA"),
    "host": (COLUMNS, {"hostname": ""}, "table orders needs the option 'hostname'"),
    "mode": (COLUMNS, {"scan.startup.mode": "latest"}, "'scan.startup.mode' cannot be 'latest'"),
    "plugin": (COLUMNS, {"decoding.plugin.name": "wal2json"}, "'decoding.plugin.name' cannot be 'wal2json'"),
    "slot": (COLUMNS, {"slot.name": "My Slot"}, "is no name of a slot"),
    "unknown": (COLUMNS, {"slot.nmae": "x"}, "there is no option 'slot.nmae'"),
    "table": (COLUMNS, {"table-name": "nothing"}, "there is no such table"),
}


@pytest.mark.parametrize("name", WRONG)
def test_options_and_columns_that_do_not_fit_are_refused_with_their_place(url: str, name: str) -> None:
    columns, options, message = WRONG[name]
    app = App("shop")
    with pytest.raises(UserError, match=message):
        app.sql(table(url, columns, **options) + "; SELECT * FROM orders")


def test_options_of_debezium_have_no_effect_and_are_named(url: str, caplog: pytest.LogCaptureFixture) -> None:
    app = App("shop")
    app.sql(table(url, **{"debezium.snapshot.mode": "never"}))
    with caplog.at_level(logging.WARNING):
        app.sql("SELECT id FROM orders")
    assert "the options 'debezium.*' have no effect: snapshot.mode" in caplog.text
