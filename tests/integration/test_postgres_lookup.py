"""A table of a real PostgreSQL server, read and looked up by SQL."""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import psycopg

from sabot import App
from tools.agent_tools import until, write_lines

TABLES = """
CREATE TABLE orders (id INT, owner STRING, seen AS PROCTIME())
    WITH ('connector' = 'filesystem', 'path' = '{place}/orders.ndjson', 'format' = 'json');
CREATE TABLE users (id STRING PRIMARY KEY NOT ENFORCED, born TIMESTAMP(3), seen TIMESTAMP_LTZ(3), worth DECIMAL(10, 2),
    vip BOOLEAN, tags ARRAY<STRING>, more STRING) WITH ('connector' = 'postgres', 'url' = '{url}', 'table-name' = 'shop.users%');
"""


def test_a_table_is_read_and_looked_up_with_its_types(url: str, tmp_path: Path) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA shop")
        connection.execute(
            'CREATE TABLE shop."users%" (id uuid PRIMARY KEY, born timestamp, seen timestamptz, worth numeric, vip boolean, '
            "tags text[], more jsonb)"
        )
        one, two = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"
        connection.execute(
            'INSERT INTO shop."users%%" VALUES (%s, %s, %s, 1.230, true, %s, %s), (%s, NULL, NULL, NULL, NULL, NULL, NULL)',
            (one, "2024-01-01 10:00:00.5", "2024-01-01 10:00:00+02", ["a", "b"], '{"x": [1]}', two),
        )
        write_lines(
            tmp_path / "orders.ndjson", [{"id": 1, "owner": one}, {"id": 2, "owner": None}, {"id": 3, "owner": two}]
        )
        tables = TABLES.format(place=tmp_path, url=url)
        user = (one, datetime(2024, 1, 1, 10, 0, 0, 500_000), datetime(2024, 1, 1, 8, tzinfo=UTC), Decimal("1.23"))
        whole = (*user, True, ["a", "b"], '{"x": [1]}')
        nothing = (None,) * 6
        read = App("read").sql(f"{tables} SELECT * FROM users").collect().to_pylist()
        assert [tuple(row.values()) for row in read] == [whole, (two, *nothing)]
        text = "SELECT o.id, u.* FROM orders AS o LEFT JOIN users FOR SYSTEM_TIME AS OF o.seen AS u ON o.owner = u.id"
        found = App("found").sql(f"{tables} {text}").collect().to_pylist()
        assert sorted((tuple(row.values()) for row in found), key=lambda row: row[0]) == [
            (1, *whole),
            (2, None, *nothing),
            (3, two, *nothing),
        ]
        left = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        asyncio.run(until(lambda: not connection.execute(left).fetchall(), "the end of the connections"))


def test_a_column_that_is_declared_as_a_text_has_the_text_of_the_server(url: str) -> None:
    """Numbers of JSON lost digits, truths were Python's, and the others ended as dead letters."""
    columns = {
        "digits": ("jsonb", '{"x": 0.12345678901234567890, "y": "é"}'),
        "truth": ("boolean", "true"),
        "span": ("interval", "1 mon 2 days 03:00:00"),
        "exacts": ("numeric[]", "{1.50,NULL}"),
        "between": ("int4range", "[1,5)"),
        "far": ("timestamp", "infinity"),
        "raw": ("json", '{"b":1,  "a":2}'),
    }
    with psycopg.connect(url, autocommit=True) as connection:
        declared = ", ".join(f"{name} {kind}" for name, (kind, _) in columns.items())
        connection.execute(f"CREATE TABLE told (id int, {declared})")
        connection.execute(
            f"INSERT INTO told VALUES (1{', %s' * len(columns)})", [text for _, text in columns.values()]
        )
    texts = ", ".join(f"{name} STRING" for name in columns)
    table = f"CREATE TABLE told (id INT, {texts}) WITH ('connector' = 'jdbc', 'url' = '{url}', 'table-name' = 'told');"
    (row,) = App("texts").sql(f"{table} SELECT * FROM told").collect().to_pylist()
    assert row == {"id": 1, **{name: text for name, (_, text) in columns.items()}}
