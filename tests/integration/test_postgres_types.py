"""Values of each type of PostgreSQL, as the server sends them: by COPY, and as changes of a replication slot."""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from sabot._cython.binary.pgoutput import ChangeDecoder, SentRelation
from sabot.connectors.postgres.types import TYPES_QUERY, column_of, types_of
from sabot.errors import UserError
from tools.postgres import Postgres, server_or_skip

TYPES: dict[str, tuple[pa.DataType, list[str]]] = {
    "boolean": (pa.bool_(), ["true", "false"]),
    "smallint": (pa.int16(), ["-32768", "0", "32767"]),
    "integer": (pa.int32(), ["-2147483648", "0", "2147483647"]),
    "bigint": (pa.int64(), ["-9223372036854775808", "9223372036854775807"]),
    "oid": (pa.int64(), ["0", "4294967295"]),
    "real": (pa.float32(), ["-0", "1e-45", "3.4028235e38", "Infinity", "-Infinity"]),
    "double precision": (pa.float64(), ["-0", "5e-324", "1.7976931348623157e308", "Infinity", "0.1"]),
    "numeric(5,2)": (pa.decimal128(5, 2), ["-999.99", "0", "0.01", "1.5", "100", "12345e-3"]),
    "numeric(38,10)": (
        pa.decimal128(38, 10),
        ["-9999999999999999999999999999.9999999999", "1e-10", "10000", "99990000"],
    ),
    "numeric(76,38)": (pa.decimal256(76, 38), ["9" * 38 + "." + "9" * 38, "-1e-38", "1e37", "0"]),
    "numeric(76)": (pa.decimal256(76, 0), ["9" * 76, "-1" + "0" * 75]),
    "numeric(3,-2)": (pa.decimal128(5, 0), ["99900", "-100"]),
    "numeric(2,5)": (pa.decimal128(5, 5), ["0.00099", "-0.00001"]),
    "numeric(77,1)": (pa.string(), ["9" * 76 + ".9", "0.0"]),
    "numeric": (
        pa.string(),
        ["0", "0.00", "-1e-20", "1e40", "123456789.987654321", "NaN", "Infinity", "-Infinity", "10000.0001"],
    ),
    "text": (pa.string(), ["", "é😀\\\"'\n", "x" * 100_000]),
    "varchar(3)": (pa.string(), ["abc"]),
    "char(4)": (pa.string(), ["ab"]),
    "name": (pa.string(), ["a name"]),
    "xml": (pa.string(), ["<a>b</a>"]),
    "bytea": (pa.binary(), ["", "\\x00ff", "abc"]),
    "uuid": (pa.string(), ["00000000-0000-0000-0000-000000000000", "ffffffff-1234-5678-9abc-def012345678"]),
    "date": (pa.date32(), ["0001-01-01", "1969-12-31", "1970-01-01", "2000-02-29", "9999-12-31"]),
    "time": (pa.time64("us"), ["00:00", "23:59:59.999999"]),
    "timetz": (pa.string(), ["00:00+14", "24:00:00-05:30", "12:30:15.5+01:02:03"]),
    "timestamp": (
        pa.timestamp("us"),
        ["0001-01-01", "1969-12-31 23:59:59.999999", "2000-01-01", "9999-12-31 23:59:59.999999"],
    ),
    "timestamptz": (
        pa.timestamp("us", "UTC"),
        ["0001-01-02 00:00+00", "2024-03-31 02:30+02", "9999-12-30 23:59:59.999999+00"],
    ),
    "interval": (
        pa.string(),
        [
            "0",
            "1 year 2 months 3 days 04:05:06.789",
            "-1 month",
            "1 mon -1 day",
            "-1 day 2 hours",
            "-00:00:00.000001",
            "1 day -25 hours",
            "1 year 1 month 1 day",
            "178000000 years",
            "-13 months 5 days",
            "2562047788:00:54.775807",
        ],
    ),
    "json": (pa.string(), ['{"a":  [1, "é"]}', "null"]),
    "jsonb": (pa.string(), ['{"a":  [1, "é"]}', "1e3"]),
    "mood": (pa.string(), ["sad", "very ok"]),
    "inet": (
        pa.string(),
        [
            "10.1.2.3",
            "10.1.2.0/24",
            "0.0.0.0/0",
            "::",
            "::1",
            "fe80::1:0:0:2/64",
            "::ffff:1.2.3.4",
            "1:0:0:2::3",
            "1:2:3:4:5:6:7::",
            "1::",
            "1:2:3:4:5:6:7:8",
            "::1.2.3.4",
            "0:1::",
            "1:0:2:3:4:5:6:7",
        ],
    ),
    "cidr": (pa.string(), ["10/8", "192.168.1.1", "2001:db8::/32"]),
    "macaddr": (pa.string(), ["08:00:2b:01:02:03"]),
    "macaddr8": (pa.string(), ["08:00:2b:01:02:03:04:05"]),
    "bit(3)": (pa.string(), ["101"]),
    "varbit": (pa.string(), ["", "101010101"]),
    "int4range": (pa.string(), ["empty", "[1,5)", "(,)", "[1,)", "(,5)"]),
    "numrange": (pa.string(), ["(1.50,2.5]", "[0,1e5]"]),
    "daterange": (pa.string(), ["[0044-03-15 BC,infinity)", "[2024-01-01,2024-12-31]"]),
    "tsrange": (pa.string(), ['["2024-01-01 00:00:00","2024-01-01 00:00:00.5"]', "[-infinity,infinity)"]),
    "tstzrange": (pa.string(), ['["2024-01-01 00:00:00+02",)', '("0044-03-15 00:00:00 BC","294276-12-31 23:59:59")']),
    "int8multirange": (pa.string(), ["{}", "{[1,2),[5,7)}"]),
    "floatrange": (
        pa.string(),
        ["[1e15,123456789012345678)", "[-0.00001,0.0001]", "[100000,123456.5]", "[1e14,2e300]"],
    ),
    "textrange": (pa.string(), ['["a b","c\\"\\\\d")', '["",",")', "[a,b]"]),
    "integer[]": (pa.list_(pa.int32()), ["{}", "{1,NULL,-3}"]),
    "text[]": (pa.list_(pa.string()), ['{"",NULL,"NULL","a,b"}']),
    "numeric(10,2)[]": (pa.list_(pa.decimal128(10, 2)), ["{1.5,NULL,-99999999.99}"]),
    "timestamptz[]": (pa.list_(pa.timestamp("us", "UTC")), ['{"2024-01-01 00:00+01"}']),
    "mood[]": (pa.list_(pa.string()), ["{sad}"]),
    "positive": (pa.int32(), ["1"]),
    "price": (pa.decimal128(6, 2), ["1.5"]),
}
SETUP = """
CREATE TYPE mood AS ENUM ('sad', 'very ok');
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE DOMAIN price AS numeric(6,2);
CREATE TYPE floatrange AS RANGE (SUBTYPE = float8);
CREATE TYPE textrange AS RANGE (SUBTYPE = text);
CREATE TYPE pair AS (a int, b int);
"""
REFUSED = {
    "NaN": "numeric(5,2)",
    "infinity": "date",
    "-infinity": "timestamptz",
    "24:00:00": "time",
    "294276-12-31 23:59:59": "timestamp",
    "{{1,2},{3,4}}": "integer[]",
    '{"infinity"}': "date[]",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    server_or_skip()
    made = Postgres("wal_level=logical")
    try:
        with made.connect() as connection:
            connection.execute(SETUP)
        yield made
    finally:
        made.remove()


class Table:
    """A table with one column of each type, `c0`, `c1`, …, and a row for each value."""

    def __init__(self, connection: Any, name: str, types: list[str]) -> None:
        self.connection, self.name = connection, name
        self.names = [f"c{number}" for number in range(len(types))]
        declared = ", ".join(f"{each} {kind}" for each, kind in zip(self.names, types, strict=True))
        connection.execute(f"CREATE TABLE {name} (id integer PRIMARY KEY, {declared})")
        attributes = connection.execute(
            "SELECT attname, atttypid::int8, atttypmod FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum",
            [name],
        ).fetchall()
        found = connection.execute(TYPES_QUERY, [[oid for _, oid, _ in attributes]]).fetchall()
        types_found = types_of(found)
        columns = [(column, *column_of(column, oid, modifier, types_found)) for column, oid, modifier in attributes]
        fields = [pa.field(column, kind, column != "id") for column, kind, _ in columns]
        self.decoder = ChangeDecoder(pa.schema(fields), [kind for *_, kind in columns], ["id"])

    def copied(self) -> Any:
        messages = []
        with (
            self.connection.cursor() as cursor,
            cursor.copy(f"COPY (SELECT * FROM {self.name} ORDER BY id) TO STDOUT (FORMAT binary)") as copy,
        ):
            while data := copy.read():
                messages.append(bytes(data))
        return self.decoder.copy(messages)


def replicated(server: Postgres, publication: str, slot: str, until: int) -> list[bytes]:
    """The messages of a slot up to the end of WAL `until`."""
    messages = []
    with closing(psycopg.connect(server.url, autocommit=True, replication="database")) as connection:
        pgconn = connection.pgconn
        pgconn.send_query(
            f"START_REPLICATION SLOT {slot} LOGICAL 0/0 (proto_version '1', binary 'true', publication_names '{publication}')".encode()
        )
        assert pgconn.get_result().status == psycopg.pq.ExecStatus.COPY_BOTH
        while True:
            size, data = pgconn.get_copy_data(0)
            assert size > 0
            message = bytes(data)
            if message[:1] == b"w":
                messages.append(message)
            elif int.from_bytes(message[1:9], "big") >= until:
                return messages


def types_there(connection: Any) -> dict[str, tuple[pa.DataType, list[str]]]:
    """The types that this server has: some are built without XML, and few have pgvector."""
    found = dict(TYPES)
    try:
        connection.execute("SELECT '<a/>'::xml")
    except psycopg.errors.FeatureNotSupported:
        del found["xml"]
    if connection.execute("SELECT FROM pg_available_extensions WHERE name = 'vector'").rowcount:
        connection.execute("CREATE EXTENSION vector")
        found["vector(3)"] = pa.list_(pa.float32()), ["[1.5,-0.25,0]"]
        found["vector"] = pa.list_(pa.float32()), ["[1]", "[3.4028235e38,1e-45]"]
    return found


def test_each_type_is_read_by_copy_and_by_replication_as_the_server_shows_it(server: Postgres) -> None:
    with server.connect() as connection:
        connection.execute("SET timezone = 'UTC'")
        types = types_there(connection)
        table = Table(connection, "every_type", list(types))
        for name, (kind, _) in zip(table.names, types.values(), strict=True):
            assert table.decoder.schema.field(name).type == kind, name
        connection.execute("CREATE PUBLICATION every_type FOR TABLE every_type")
        connection.execute("SELECT pg_create_logical_replication_slot('every_type', 'pgoutput')")
        most = max(len(values) for _, values in types.values())
        with connection.transaction():
            for row in range(most + 1):
                values = [given[row] if row < len(given) else None for _, given in types.values()]
                shown = ", ".join(f"%s::{kind}" for kind in types)
                connection.execute(f"INSERT INTO every_type VALUES ({row}, {shown})", values)  # type: ignore[arg-type]
        columns = [  # format() uses the output function, where a cast adds /32 to an address and takes blanks from a char(4)
            f"CASE WHEN {name} IS NOT NULL THEN format('%s', {name}) END"
            if pa.types.is_string(kind)
            else f"{name}::text[]"
            if kind == pa.list_(pa.string())  # psycopg does not know the enum
            else f"{name}::real[]"
            if kind == pa.list_(pa.float32())  # nor a vector
            else name
            for name, (kind, _) in zip(table.names, types.values(), strict=True)
        ]
        expected = connection.execute(f"SELECT {', '.join(columns)} FROM every_type ORDER BY id").fetchall()  # type: ignore[call-overload]
        ((end,),) = connection.execute("SELECT pg_current_wal_lsn() - '0/0'").fetchall()
        copied = table.copied()
        messages = replicated(server, "every_type", "every_type", int(end))
    assert [bad.reason for bad in copied.bad] == []
    copied.rows.validate(full=True)
    for name, kind, values in zip(table.names, types, zip(*expected, strict=True), strict=True):
        column = copied.rows.column(name)
        assert column.to_pylist() == pa.array(values, column.type).to_pylist(), kind
    decoder = table.decoder
    first = decoder.decode(messages)
    assert isinstance(first.stop, SentRelation)
    assert [name for name, *_ in first.stop.columns] == ["id", *table.names]
    decoder.use(first.stop.oid, range(len(first.stop.columns)))
    run = decoder.decode(messages, first.next)
    assert (run.next, run.stop, run.bad) == (len(messages), None, [])
    assert run.rows.equals(copied.rows)
    assert first.position or run.position


def test_the_table_of_types_in_the_documents_has_types_that_are_read_here() -> None:
    text = (Path(__file__).parents[2] / "docs" / "postgres-changes.md").read_text()
    lines = re.findall(r"^\| `([\w\[\](), ]+)` \| ([^|]+) \|$", text.partition("## Types")[2], re.MULTILINE)
    assert len(lines) > 25
    for declared, shown in lines:
        assert shown.startswith(str(TYPES[declared][0])), declared


def test_values_that_arrow_lacks_are_refused_with_the_row_and_the_reason(server: Postgres) -> None:
    with server.connect() as connection:
        types = list(dict.fromkeys(REFUSED.values()))
        table = Table(connection, "refused", types)
        for row, (value, kind) in enumerate(REFUSED.items()):
            name = table.names[types.index(kind)]
            connection.execute(
                f"INSERT INTO refused (id, {name}) VALUES ({row * 2}, %s), ({row * 2 + 1}, NULL)", [value]
            )  # type: ignore[arg-type]
        run = table.copied()
    assert run.rows.column("id").to_pylist() == [row * 2 + 1 for row in range(len(REFUSED))]
    assert [bad.row for bad in run.bad] == list(range(len(REFUSED)))
    reasons = [bad.reason.partition(": ")[2] for bad in run.bad]
    assert reasons == [
        "NaN is no decimal number",
        "the date is infinite",
        "the time is infinite",
        "the time 24:00:00 is not within a day",
        "the time is after the year 294246, the last one in microseconds",
        "the array has 2 dimensions, and a list has one",
        "the date is infinite",
    ]
    assert (
        run.bad[0].payload
        == b'{"id": "0", "c0": "NaN", "c1": null, "c2": null, "c3": null, "c4": null, "c5": null, "c6": null}'
    )


@pytest.mark.parametrize("kind", ["pair", "point", "tsvector", "money", "pair[]", "int4multirange[]"])
def test_types_without_a_place_in_arrow_are_refused(server: Postgres, kind: str) -> None:
    with server.connect() as connection:
        with pytest.raises(UserError, match=r"column c0: values of the type .* cannot be read"):
            Table(connection, "odd", [kind])
        connection.execute("DROP TABLE odd")
