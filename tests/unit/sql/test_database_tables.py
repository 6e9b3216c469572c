"""Tables of SQLite and DuckDB in FROM, and behind FOR SYSTEM_TIME AS OF a PROCTIME()."""

import asyncio
import logging
import sqlite3
from contextlib import closing
from datetime import date, datetime, time
from decimal import Decimal

import duckdb
import pyarrow as pa
import pytest

from sabot import App
from sabot.connectors.sql import reading
from sabot.connectors.sql.database import Database
from sabot.connectors.sql.reading import DatabaseTable, value_of
from sabot.errors import TransientError, UserError
from sabot.sql.syntax.text import SqlError
from sabot.sql.tables import databases
from tools.agent_tools import write_lines

USERS = [
    (1, "ann", 30, "2024-01-01 10:00:00", "1.50", True),
    (2, "bob", 17, None, "2", False),
    (3, "cyd", 40, "2024-01-02 10:00:00.123456", "3.33", False),
]
PHONES = [(1, "11", "home"), (1, "12", "work"), (2, "21", "home")]
SUBSCRIPTIONS = [("a", 1), ("b", 2), ("c", 9), ("d", None), ("e", 1)]
TABLES = """
CREATE TABLE subscriptions (id STRING, user_id INT, ts TIMESTAMP(3), seen AS PROCTIME(), WATERMARK FOR ts AS ts)
    WITH ('connector' = 'filesystem', 'path' = '{place}/subscriptions.ndjson', 'format' = 'json');
CREATE TABLE users (id INT PRIMARY KEY NOT ENFORCED, name VARCHAR(255), age INT, joined TIMESTAMP(3), rich DECIMAL(10, 2), vip BOOLEAN)
    WITH ('connector' = 'jdbc', 'url' = 'jdbc:{url}', 'table-name' = 'users'{more});
CREATE TABLE phones (user_id INT, phone STRING, kind STRING, told AS UPPER(kind))
    WITH ('connector' = 'jdbc', 'url' = '{url}', 'table-name' = 'phones');
CREATE TABLE numbers (user_id INT, phone STRING, kind STRING)
    WITH ('connector' = 'jdbc', 'url' = '{url}', 'table-name' = 'phones');
"""
COLUMNS = {
    "users": "id INTEGER PRIMARY KEY, name TEXT, age INTEGER, joined {time}, rich {exact}, vip BOOLEAN",
    "phones": "user_id INTEGER, phone TEXT, kind TEXT",
}


@pytest.fixture(params=["sqlite", "duckdb"])
def url(request, tmp_path):
    """The address of a database with the users and their phones."""
    lines = [{"id": id, "user_id": user, "ts": f"2024-05-01 10:00:0{i}"} for i, (id, user) in enumerate(SUBSCRIPTIONS)]
    write_lines(tmp_path / "subscriptions.ndjson", lines)
    path = tmp_path / "dim.db"
    connect = sqlite3.connect if request.param == "sqlite" else duckdb.connect
    types = (
        {"time": "TEXT", "exact": "TEXT"}
        if request.param == "sqlite"
        else {"time": "TIMESTAMP", "exact": "DECIMAL(9, 3)"}
    )
    with closing(connect(str(path))) as database:
        for name, rows in (("users", USERS), ("phones", PHONES)):
            database.execute(f"CREATE TABLE {name} ({COLUMNS[name].format(**types)})")
            for row in rows:
                database.execute(f"INSERT INTO {name} VALUES ({', '.join('?' * len(row))})", row)
        database.commit()
    return f"{request.param}:{path}"


def answer(url, text, more=""):
    place = url.partition(":")[2].rpartition("/")[0]
    found = App("databases").sql(TABLES.format(place=place, url=url, more=more) + text).materialize().collect()
    return sorted((tuple(row.values()) for row in found.to_pylist()), key=repr)


def test_a_table_of_a_database_is_read_with_the_types_that_it_declares(url):
    assert answer(url, "SELECT * FROM users") == [
        (1, "ann", 30, datetime(2024, 1, 1, 10), Decimal("1.50"), True),
        (2, "bob", 17, None, Decimal("2.00"), False),
        (3, "cyd", 40, datetime(2024, 1, 2, 10, 0, 0, 123_000), Decimal("3.33"), False),
    ]
    assert answer(url, "SELECT user_id, told, COUNT(*) AS n FROM phones GROUP BY user_id, told") == [
        (1, "HOME", 1),
        (1, "WORK", 1),
        (2, "HOME", 1),
    ]
    joined = "SELECT s.id, u.name FROM subscriptions s JOIN users u ON s.user_id = u.id"
    assert answer(url, joined) == [("a", "ann"), ("b", "bob"), ("e", "ann")]


AS_OF = "FOR SYSTEM_TIME AS OF s.seen AS"


@pytest.mark.one_in(4, "a fifth of a second of a core each")
@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (
            f"SELECT s.id, u.name, u.id FROM subscriptions s JOIN users {AS_OF} u ON s.user_id = u.id",
            [("a", "ann", 1), ("b", "bob", 2), ("e", "ann", 1)],
        ),
        (
            f"SELECT s.id, u.name FROM subscriptions s LEFT JOIN users {AS_OF} u ON s.user_id = u.id AND u.age > 18",
            [("a", "ann"), ("b", None), ("c", None), ("d", None), ("e", "ann")],
        ),
        (
            f"SELECT s.id, n.phone FROM subscriptions s LEFT JOIN numbers {AS_OF} n ON n.user_id = s.user_id",
            [("a", "11"), ("a", "12"), ("b", "21"), ("c", None), ("d", None), ("e", "11"), ("e", "12")],
        ),
        (
            f"SELECT s.id, n.phone FROM subscriptions s LEFT JOIN numbers {AS_OF} n ON s.user_id = n.user_id AND n.kind = 'work'",
            [("a", "12"), ("b", None), ("c", None), ("d", None), ("e", "12")],
        ),
        (
            f"SELECT s.id, n.phone FROM subscriptions s JOIN numbers {AS_OF} n ON s.user_id = n.user_id AND n.kind <> s.id",
            [("a", "11"), ("a", "12"), ("b", "21"), ("e", "11"), ("e", "12")],
        ),
        (
            f"SELECT s.id, b.name FROM subscriptions s JOIN users {AS_OF} b (k, name) ON s.user_id + 1 = k".replace(
                "b (k, name)", "b (k, name, c, d, e, f)"
            ),
            [("a", "bob"), ("b", "cyd"), ("e", "bob")],
        ),
        (
            f"SELECT s.id, u.id, n.phone FROM subscriptions s JOIN users {AS_OF} u ON s.user_id = u.id "
            f"JOIN numbers {AS_OF} n ON u.id = n.user_id AND n.kind = 'home'",
            [("a", 1, "11"), ("b", 2, "21"), ("e", 1, "11")],
        ),
        (
            f"SELECT s.id, n.told, n.phone FROM subscriptions s JOIN phones {AS_OF} n ON s.user_id = n.user_id AND n.told <> 'WORK'",
            [("a", "HOME", "11"), ("b", "HOME", "21"), ("e", "HOME", "11")],
        ),
        (
            "CREATE VIEW grown AS SELECT UPPER(name) AS who, id AS k, COALESCE(age, 0) + 1 AS next FROM users WHERE age > 18;"
            f"SELECT s.id, g.who, next FROM subscriptions s LEFT JOIN grown {AS_OF} g ON s.user_id = g.k",
            [("a", "ANN", 31), ("b", None, None), ("c", None, None), ("d", None, None), ("e", "ANN", 31)],
        ),
        (
            "CREATE VIEW work AS SELECT phone AS p, user_id FROM (SELECT * FROM phones WHERE told = 'WORK');"
            f"SELECT s.id, w.p FROM subscriptions s JOIN work {AS_OF} w ON s.user_id = w.user_id",
            [("a", "12"), ("e", "12")],
        ),
        (
            "SELECT CAST(TUMBLE_START(ts, INTERVAL '1' HOUR) AS STRING) AS h, COUNT(*) AS n FROM (SELECT s.ts, u.name "
            f"FROM subscriptions s JOIN users {AS_OF} u ON s.user_id = u.id) GROUP BY TUMBLE(ts, INTERVAL '1' HOUR)",
            [("2024-05-01 10:00:00.000", 3)],
        ),
    ],
)
def test_rows_are_joined_with_those_that_a_database_has_for_their_key(url, text, rows):
    assert answer(url, text) == rows
    for more in (", 'lookup.cache.max-rows' = '10', 'lookup.cache.ttl' = '1 min'", ", 'lookup.cache' = 'PARTIAL'"):
        assert answer(url, text, more) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"SELECT s.id FROM subscriptions s JOIN users {AS_OF} u ON UPPER(s.id) = UPPER(u.name)",
            "AS OF of a table of a database needs ON a.key = b.key",
        ),
        (
            f"SELECT s.id FROM subscriptions s LEFT JOIN numbers {AS_OF} n ON s.user_id = n.user_id AND n.kind <> 'work'",
            "a condition of LEFT JOIN on a table of a database stands beside all columns of its PRIMARY KEY",
        ),
        (
            "CREATE VIEW most AS SELECT user_id, MAX(phone) AS p FROM numbers GROUP BY user_id; "
            f"SELECT s.id FROM subscriptions s JOIN most {AS_OF} m ON s.user_id = m.user_id",
            "m is computed from all rows of a database, and AS OF a PROCTIME() asks for those of a key",
        ),
        (
            f"CREATE VIEW work AS SELECT * FROM numbers WHERE kind = 'work'; SELECT s.id FROM subscriptions s LEFT JOIN work {AS_OF} m "
            "ON s.user_id = m.user_id",
            "a condition of LEFT JOIN on a table of a database stands beside all columns of its PRIMARY KEY",
        ),
        (
            "SELECT g.n, u.name FROM (SELECT user_id, COUNT(*) AS n FROM subscriptions GROUP BY user_id) g "
            "JOIN users FOR SYSTEM_TIME AS OF PROCTIME() AS u ON g.user_id = u.id",
            "these rows are updated as others come, and a lookup takes rows that are only added",
        ),
        (
            "SELECT s.id FROM subscriptions s JOIN users FOR SYSTEM_TIME AS OF s.ts AS u ON s.user_id = u.id",
            "u has no event time, so its rows are valid at no time",
        ),
    ],
)
def test_what_cannot_be_looked_up_is_refused_with_a_hint(url, text, message):
    with pytest.raises(SqlError) as caught:
        answer(url, text)
    (fault,) = caught.value.faults
    assert fault.message == message
    assert fault.hint


def test_a_column_or_a_table_that_the_database_lacks_is_an_error(url):
    table = DatabaseTable(url, "phones", pa.schema([('pho"n`e', pa.string())]))
    with pytest.raises(UserError, match=r"table phones of .*pho.*n`e"):
        table.found(['pho"n`e'], ["11"])
    with pytest.raises(UserError, match=r"table mails of .*mails"):
        list(DatabaseTable(url, "mails", pa.schema([("id", pa.int32())]), ["id"]).rows(0))
    scheme, _, path = url.partition(":")
    with pytest.raises(UserError, match=r"database .*none\.db does not exist"):
        DatabaseTable(f"{scheme}:{path}.none.db", "phones", pa.schema([("id", pa.int32())])).found(["id"], [1])


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_table_that_is_only_asked_needs_no_sink_for_its_rows(url, caplog, tmp_path):
    text = f"""
        CREATE TABLE named (id STRING PRIMARY KEY NOT ENFORCED, name STRING)
            WITH ('connector' = 'sqlite', 'url' = '{url}', 'table-name' = 'named');
        INSERT INTO named SELECT s.id, u.name FROM subscriptions s JOIN users {AS_OF} u ON s.user_id = u.id"""
    app = App("asked")
    app.sql(TABLES.format(place=tmp_path, url=url, more="") + text)
    asyncio.run(app.run())
    assert "written nowhere" not in caplog.text
    assert answer(url, "SELECT id, name FROM users WHERE id = 1") == [(1, "ann")]
    with closing(sqlite3.connect(url.partition(":")[2])) as database:
        assert sorted(database.execute("SELECT * FROM named")) == [("a", "ann"), ("b", "bob"), ("e", "ann")]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_options_of_lookups_are_those_of_flink(url, caplog):
    with pytest.raises(SqlError, match=r"'lookup\.cache' = 'FULL' is not there") as caught:
        answer(url, "SELECT * FROM users", ", 'lookup.cache' = 'FULL'")
    assert "hint: 'PARTIAL' keeps the answers" in str(caught.value)
    answer(
        url,
        "SELECT * FROM users",
        ", 'driver' = 'org.sqlite.JDBC', 'scan.fetch-size' = '10', 'lookup.max-retries' = '1'",
    )
    assert "the option 'scan.fetch-size' has no effect" in caplog.text
    assert "lookup.max-retries" not in caplog.text


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_value_that_is_none_of_its_column_is_named(url):
    path = url.partition(":")[2]
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE users SET age = 'old' WHERE id = 2")
        database.commit()
    table = DatabaseTable(url, "users", pa.schema([("id", pa.int32()), ("age", pa.int32())]), ["id"])
    with pytest.raises(UserError, match="table users: column age: 'old' is no int32"):
        table.found(["id"], [2])
    app = App("letters")
    rows = app.sql(TABLES.format(place=path.rpartition("/")[0], url=url, more="") + "SELECT id, age FROM users")
    assert [row["id"] for row in rows.collect().to_pylist()] == [1, 3]


@pytest.mark.parametrize(
    ("value", "type", "expected"),
    [
        ("3.335", pa.decimal128(10, 2), None),
        ("3.330", pa.decimal128(10, 2), Decimal("3.33")),
        ("123456789.5", pa.decimal128(9, 2), None),
        ("2024-02-29", pa.date32(), date(2024, 2, 29)),
        ("2024-02-29 00:00:00", pa.date32(), date(2024, 2, 29)),
        ("2024-02-29 10:00:00", pa.date32(), None),
        (datetime(2024, 2, 29, 10), pa.date32(), None),
        ("2.5", pa.int64(), None),
        (2.5, pa.int64(), None),
        (2**53 + 1, pa.float64(), None),
        (Decimal(2**53 + 1), pa.float64(), None),
        (str(2**53 + 1), pa.float64(), None),
        (2**53 + 2, pa.float64(), 2.0**53 + 2),
        (2**24 + 1, pa.float32(), None),
        (2**24, pa.float32(), 2.0**24),
        (Decimal("0.1"), pa.float64(), 0.1),
        ("1e400", pa.float64(), None),
        (time(9, 5, 0, 250_000), pa.time32("ms"), time(9, 5, 0, 250_000)),
        (time(9, 5, 0, 250_001), pa.time32("ms"), None),
        ("09:05:00.5", pa.time32("s"), None),
        ("09:05", pa.time32("s"), time(9, 5)),
        ("09:05:00.1234567", pa.time64("ns"), None),
        ("09:05:00.1234560", pa.time64("us"), time(9, 5, 0, 123_456)),
        ("09:05:00+01:00", pa.time64("us"), None),
        ("2024-02-29 10:00:00.123456789", pa.timestamp("ns"), None),
        ("2024-02-29 10:00:00.123456000", pa.timestamp("ns"), datetime(2024, 2, 29, 10, 0, 0, 123_456)),
    ],
)
def test_a_value_with_more_than_its_type_holds_is_refused(value, type, expected):
    """3.335 was read as 3.34 in a DECIMAL(10, 2), a time as the day that it is on, two ids as one DOUBLE, and a time of day
    without the digits that Python or its type lacks.
    """
    if expected is None:
        with pytest.raises((ValueError, ArithmeticError)):
            value_of(value, type)
    else:
        assert value_of(value, type) == expected


def test_a_column_of_duckdb_that_is_declared_as_a_text_has_its_text(tmp_path):
    path = tmp_path / "told.db"
    with closing(duckdb.connect(str(path))) as database:
        database.execute(
            "CREATE TABLE told AS SELECT true AS truth, [1.50, NULL] AS exacts, {'a': DATE '2024-01-01'} AS day, INTERVAL 3 HOUR AS span"
        )
    schema = pa.schema([(name, pa.string()) for name in ("truth", "exacts", "day", "span")])
    ((rows, _),) = DatabaseTable(f"duckdb:{path}", "told", schema).rows(0)
    assert rows == [{"truth": "true", "exacts": "[1.50, NULL]", "day": "{'a': 2024-01-01}", "span": "03:00:00"}]


def test_a_table_is_read_on_behind_the_key_at_which_a_restart_begins(tmp_path):
    with closing(sqlite3.connect(tmp_path / "n.db")) as database:
        database.execute("CREATE TABLE n (k TEXT, i INTEGER, v INTEGER, PRIMARY KEY (k, i))")
        database.executemany("INSERT INTO n VALUES (?, ?, ?)", [(f"k{i % 2}", i, i * i) for i in range(10_002)])
        database.commit()
    schema = pa.schema([("v", pa.int64()), ("k", pa.string()), ("i", pa.int64())])
    expected = sorted((f"k{i % 2}", i, i * i) for i in range(10_002))
    for keys, cursor in ((["k", "i"], ["k1", 9997]), ([], 10_000)):
        table = DatabaseTable(f"sqlite:{tmp_path}/n.db", "n", schema, keys)
        (first, place), (rest, _) = table.rows(0)
        assert place == cursor
        assert len(first) == 10_000
        assert [row["v"] for row in first + rest] == (
            [v for _, _, v in expected] if keys else [i * i for i in range(10_002)]
        )
        ((again, _),) = table.rows(place)
        assert again == rest


def goes_away(monkeypatch, fails_at):
    """The database does not answer three statements, from this one on."""
    monkeypatch.setattr(reading, "PAUSE_SECONDS", 0.0)
    read, calls = Database.read, []

    def away(database, statement, values=()):
        calls.append(statement)
        if fails_at <= len(calls) < fails_at + 3:
            raise TransientError("the server is away")
        return read(database, statement, values)

    monkeypatch.setattr(Database, "read", away)


AWAY = [
    "table users cannot be read, and is tried again until it answers: the server is away",
    "table users answers again",
]


@pytest.mark.parametrize("fails_at", [1, 2, 4])
def test_a_database_that_is_away_after_the_first_rows_is_waited_for(url, fails_at, monkeypatch, caplog):
    """A server that was started again while a table was read ended the app: its three restarts came within five seconds."""
    monkeypatch.setattr(reading, "ROWS_AT_ONCE", 1)
    goes_away(monkeypatch, fails_at)
    table = DatabaseTable(url, "users", pa.schema([("id", pa.int64()), ("name", pa.string())]), ["id"])
    if fails_at == 1:  # at the first start, as of any source
        with pytest.raises(TransientError):
            list(table.rows(0))
        return
    with caplog.at_level(logging.INFO, "sabot"):
        found = list(table.rows(0))
    assert [row["name"] for rows, _ in found for row in rows] == ["ann", "bob", "cyd"]
    assert found.count(([], [fails_at - 1])) == 3
    assert [record.getMessage() for record in caplog.records] == AWAY


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_database_that_is_away_after_the_first_answer_is_waited_for(url, fails_at, monkeypatch, caplog):
    """A server that was away for ten seconds ended the app: a question was repeated within a second, and the app within five."""
    monkeypatch.setattr(databases, "AT_ONCE", 1)
    goes_away(monkeypatch, fails_at)
    text = f"SELECT s.id, u.name FROM subscriptions s JOIN users {AS_OF} u ON s.user_id = u.id"
    with caplog.at_level(logging.INFO, reading.__name__):
        if fails_at == 1:  # at the first start
            with pytest.raises(UserError, match="the server is away"):
                answer(url, text, ", 'lookup.max-retries' = '0'")
            return
        assert answer(url, text, ", 'lookup.max-retries' = '0'") == [("a", "ann"), ("b", "bob"), ("e", "ann")]
    assert [record.getMessage() for record in caplog.records if record.name == reading.__name__] == AWAY
