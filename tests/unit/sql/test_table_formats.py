"""Formats of tables: Avro with a schema registry and without one, Debezium's changes, and instants in CSV and JSON."""

import json
import math
from collections.abc import Iterator
from datetime import datetime, time, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest

from sabot import App, DataError
from sabot.codecs.avro import AvroCodec, AvroEncoder
from sabot.sql.syntax.text import SqlError
from tools.agent_tools import publish, records
from tools.registry import SchemaServer, schema_server

PAYMENT = {
    "type": "record",
    "name": "Payment",
    "namespace": "bank",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "account", "type": "string"},
        {"name": "amount", "type": ["null", "int"], "default": None},
        {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}
ROWS = [{"id": n, "account": f"a{n % 2}", "amount": n * 10, "ts": 1_700_000_000_000 + n} for n in range(4)]


@pytest.fixture
def server() -> Iterator[SchemaServer]:
    with schema_server() as server:
        yield server


@pytest.fixture
def app(memory_url: str) -> App:
    return App("bank", memory_url)


def table(name, columns, server, *options, connector="kafka"):
    more = "".join(f", {option}" for option in options)
    declared = f"({columns}) " if columns else ""
    return (
        f"CREATE TABLE {name} {declared}WITH ('connector' = '{connector}', 'topic' = '{name}', 'scan.bounded.mode' = 'latest-offset', "
        f"'format' = 'avro-confluent', 'avro-confluent.url' = '{server.url}'{more})"
    )


def written(app, server, schema=PAYMENT, topic="payments"):
    encoder = AvroEncoder(schema, schema_id=server.add(f"{topic}-value", schema))
    publish(app, topic, encoder.encode(pa.RecordBatch.from_pylist(ROWS)).to_pylist())


def test_a_table_reads_the_columns_that_it_declares_of_records_in_avro(app, server):
    written(app, server)
    app.sql(
        table(
            "payments",
            "amount BIGINT, id BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts, o BIGINT METADATA FROM 'offset'",
            server,
        )
    )
    found = app.sql("SELECT id, amount / 3 AS third, CAST(ts AS STRING) AS ts, o FROM payments WHERE id > 1").collect()
    assert found.to_pylist() == [
        {"id": 2, "third": 6, "ts": "2023-11-14 22:13:20.002", "o": 2},
        {"id": 3, "third": 10, "ts": "2023-11-14 22:13:20.003", "o": 3},
    ]
    window = "TUMBLE(TABLE payments, DESCRIPTOR(ts), INTERVAL '1' SECOND)"
    windows = f"SELECT COUNT(*) AS n FROM TABLE({window}) GROUP BY window_start, window_end"
    assert app.sql(windows).collect().to_pylist() == [{"n": 4}]


@pytest.mark.parametrize(
    ("row", "refused"),
    [
        ((2.0, 2**53, "1.010"), ""),
        ((-3.0, -5, "-1.100"), ""),
        ((2.5, 5, "1.010"), r"column 'a': .* cannot be computed for 2\.5: "),
        ((math.nan, 5, "1.010"), r"column 'a': .* cannot be computed for nan: "),
        ((2.0, 2**53 + 1, "1.010"), r"column 'b': .* cannot be computed for 9007199254740993: "),
        ((2.0, 5, "1.005"), r"column 'c': .* cannot be computed for Decimal\(.1\.005.\): "),
    ],
)
def test_a_number_that_its_declared_type_would_cut_or_round_is_refused(app, server, row, refused):
    """A double of 2.5 was 2 in a BIGINT, 2^53 + 1 was 2^53 in a DOUBLE, and 1.005 was 1.01 in a DECIMAL(5, 2), in silence."""
    exact = {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 3}
    fields = [{"name": name, "type": kind} for name, kind in (("a", "double"), ("b", "long"), ("c", exact))]
    schema = {"type": "record", "name": "N", "fields": fields}
    types = pa.schema([("a", pa.float64()), ("b", pa.int64()), ("c", pa.decimal128(6, 3))])
    a, b, c = row
    data = pa.RecordBatch.from_pylist([{"a": a, "b": b, "c": Decimal(c)}], types)
    encoder = AvroEncoder(schema, schema_id=server.add("numbers-value", schema))
    publish(app, "numbers", encoder.encode(data).to_pylist())
    app.sql(table("numbers", "a BIGINT, b DOUBLE, c DECIMAL(5, 2)", server))
    rows = app.sql("SELECT * FROM numbers")
    if refused:
        with pytest.raises(DataError, match=refused):
            rows.collect()
    else:
        assert rows.collect().to_pylist() == [{"a": int(a), "b": float(b), "c": Decimal(c)}]


def test_a_table_without_columns_has_those_of_the_registry(app, server):
    written(app, server)
    app.sql(table("payments", "", server))
    assert app.sql("DESCRIBE payments").select(["name", "type"]).to_pylist() == [
        {"name": "id", "type": "BIGINT"},
        {"name": "account", "type": "STRING"},
        {"name": "amount", "type": "INT"},
        {"name": "ts", "type": "TIMESTAMP_LTZ(3)"},
    ]
    assert app.sql("SELECT SUM(amount) AS s FROM payments").materialize().collect().to_pylist() == [{"s": 60}]


async def test_a_table_writes_avro_and_registers_the_schema_of_its_columns(app, server):
    app.sql(
        table(
            "totals",
            "account STRING, total BIGINT, PRIMARY KEY (account) NOT ENFORCED",
            server,
            "'avro-confluent.subject' = 'sums'",
            connector="upsert-kafka",
        )
        .replace("'scan.bounded.mode' = 'latest-offset', ", "")
        .replace("'format'", "'value.format'")
        .replace("'avro-confluent.", "'value.avro-confluent.")
    )
    rows = app.stream(
        [{"account": "a", "amount": 2}, {"account": "b", "amount": 3}, {"account": "a", "amount": 4}],
        schema={"account": "string", "amount": "int64"},
    )
    app.sql(
        "INSERT INTO totals SELECT account, SUM(amount) FROM rows GROUP BY account".replace("rows", "given"), given=rows
    )
    await app.run()
    assert list(server.subjects) == ["sums"]
    schema = json.loads(server.schemas[0]["schema"])
    assert [field["name"] for field in schema["fields"]] == ["account", "total"]
    payloads = [record.payload for record in records(app, "totals")]
    decoded, bad = AvroCodec(schema, schema_of=lambda id: json.dumps(schema)).decode(
        pa.record_batch({"payload": pa.array(payloads, pa.binary())})
    )
    assert not bad
    assert {row["account"]: row["total"] for row in decoded.to_pylist()} == {"a": 6, "b": 3}


PEOPLE = """
CREATE TABLE people (id BIGINT NOT NULL, name STRING, seen TIMESTAMP(3))
WITH ('connector' = 'memory', 'topic' = 'people', 'format' = 'avro', 'scan.bounded.mode' = 'latest-offset');
"""


async def test_plain_avro_is_read_and_written_with_the_schema_of_the_columns(app):
    nothing = "(2, CAST(NULL AS STRING), CAST(NULL AS TIMESTAMP(3)))"
    app.sql(PEOPLE + f"INSERT INTO people VALUES (1, 'Ada', TIMESTAMP '2024-01-01 10:00:00'), {nothing}")
    await app.run()
    # A long, then the places of null and of the type in their unions, as Flink writes them
    assert records(app, "people")[0].payload == b"\x02" + b"\x02\x06Ada" + b"\x02\x80\x94\xba\xc7\x98\x63"
    assert records(app, "people")[1].payload == b"\x04\x00\x00"
    again = App("again", app.broker)
    found = again.sql(PEOPLE + "SELECT id, name, CAST(seen AS STRING) AS seen FROM people").collect()
    assert found.to_pylist() == [
        {"id": 1, "name": "Ada", "seen": "2024-01-01 10:00:00.000"},
        {"id": 2, "name": None, "seen": None},
    ]


UNKNOWN = "'avro-confluent.ssl.keystore.location'"
REGISTERS = "'avro-confluent.properties.auto.register.schemas' = 'no'"


@pytest.mark.parametrize(
    ("columns", "options", "message", "hint"),
    [
        ("amuont INT", (), "column amuont is INT, and the schema in the registry lacks it", "did you mean amount"),
        ("account BIGINT", (), "column account is BIGINT, and the schema in the registry says STRING", "declare the type of that column"),
        ("id BIGINT", (f"{UNKNOWN} = 'x'",), f"there is no option {UNKNOWN}", "avro-confluent"),
        ("id BIGINT", (REGISTERS,), "'auto.register.schemas' cannot be 'no'", "'true' or 'false'"),
        ("id BIGINT", ("'avro-confluent.schema' = '{'",), "the schema is not JSON", "a dict, its JSON text"),
    ],
)  # fmt: skip
def test_a_table_of_avro_that_cannot_be_says_why(app, server, columns, options, message, hint):
    written(app, server)
    with pytest.raises(SqlError) as caught:
        app.sql(table("payments", columns, server, *options) + "; SELECT * FROM payments")
    assert message in str(caught.value)
    assert hint in str(caught.value).split("hint: ")[1]


def test_plain_avro_needs_columns_and_a_registry_its_address(app):
    with pytest.raises(SqlError, match="table t needs columns: records of Avro do not name them"):
        app.sql("CREATE TABLE t WITH ('connector' = 'kafka', 'topic' = 't', 'format' = 'avro')")
    with pytest.raises(SqlError, match=r"table t needs the option 'avro-confluent\.url'"):
        app.sql("CREATE TABLE t WITH ('connector' = 'kafka', 'topic' = 't', 'format' = 'avro-confluent')")


def test_the_login_of_a_registry_is_hidden(app, server):
    app.sql(
        table(
            "payments",
            "id BIGINT",
            server,
            "'avro-confluent.basic-auth.credentials-source' = 'USER_INFO'",
            "'avro-confluent.basic-auth.user-info' = 'ada:planted'",
        )
    )
    shown = app.sql("SHOW CREATE TABLE payments")
    assert "planted" not in shown
    assert "'avro-confluent.basic-auth.user-info' = '***'" in shown


def test_changes_of_debezium_are_a_table(app):
    def row(n):
        return n and {"id": 1, "n": n, "ts": 0}

    for op, before, after in (("c", None, 10), ("u", 10, 12), ("d", 12, None)):
        publish(app, "stock", [{"before": row(before), "after": row(after), "op": op}])
    publish(app, "stock", [{"before": None, "after": {"id": 2, "n": 7, "ts": 0}, "op": "r"}])
    app.sql(
        "CREATE TABLE stock (id BIGINT, n BIGINT, PRIMARY KEY (id) NOT ENFORCED) WITH ('connector' = 'kafka', 'topic' = 'stock', "
        "'format' = 'debezium-json', 'scan.bounded.mode' = 'latest-offset')"
    )
    assert app.sql("SELECT id, n FROM stock").materialize().collect().to_pylist() == [{"id": 2, "n": 7}]
    with pytest.raises(SqlError, match="'format' = 'debezium-json' can be read, and not written"):
        app.sql("INSERT INTO stock SELECT 1, 2")
    with pytest.raises(SqlError, match=r"table t needs PRIMARY KEY \(…\) NOT ENFORCED"):
        app.sql("CREATE TABLE t (id BIGINT) WITH ('connector' = 'kafka', 'topic' = 't', 'format' = 'debezium-json')")


def test_a_time_of_day_of_debezium_is_a_column_at_every_depth(app):
    after = {"id": 1, "opens": 28_800_000, "breaks": [43_200_000, None]}
    publish(app, "shops", [{"before": None, "after": after, "op": "c"}])
    app.sql(
        "CREATE TABLE shops (id BIGINT, opens TIME(3), breaks ARRAY<TIME(3)>, PRIMARY KEY (id) NOT ENFORCED) WITH ("
        "'connector' = 'kafka', 'topic' = 'shops', 'format' = 'debezium-json', 'scan.bounded.mode' = 'latest-offset')"
    )
    (row,) = app.sql("SELECT * FROM shops").materialize().collect().to_pylist()
    assert row == {"id": 1, "opens": time(8), "breaks": [time(12), None]}


TIMES = "2024-07-01 12:00:00\n2024-07-01T12:30:00.123456\n2024-07-01T12:45:00Z\n2024-07-01T12:50:00+04:00\n"


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ("Europe/Berlin", ["10:00:00.000", "10:30:00.123", "12:45:00.000", "08:50:00.000"]),
        ("UTC", ["12:00:00.000", "12:30:00.123", "12:45:00.000", "08:50:00.000"]),
    ],
)
def test_instants_of_csv_without_an_offset_are_on_the_clock_of_the_session(tmp_path, zone, expected):
    (tmp_path / "rides.txt").write_text(f"ts\n{TIMES}")
    app = App("rides")
    app.sql(f"""
        SET 'table.local-time-zone' = '{zone}';
        CREATE TABLE rides (ts TIMESTAMP_LTZ(3), WATERMARK FOR ts AS ts - INTERVAL '1' DAY)
            WITH ('connector' = 'files', 'path' = '{tmp_path}/rides.txt', 'format' = 'csv')""")
    found = app.sql("SELECT ts FROM rides").collect()
    assert found.schema.field("ts").type == pa.timestamp("ms", "UTC")
    assert [f"{each:%H:%M:%S.%f}"[:-3] for each in found["ts"].to_pylist()] == expected
    hours = "SELECT COUNT(*) AS n FROM TABLE(TUMBLE(TABLE rides, DESCRIPTOR(ts), INTERVAL '1' DAY)) GROUP BY window_start, window_end"
    assert app.sql(hours).collect()["n"].to_pylist() == [4]


BERLIN = {
    '"2024-07-01 12:00:00"': "2024-07-01 10:00:00.000",
    '"2024-07-01T12:30:00.123456"': "2024-07-01 10:30:00.123",
    '"2024-07-01T12:45:00Z"': "2024-07-01 12:45:00.000",
    '"2024-07-01T12:50:00+04:00"': "2024-07-01 08:50:00.000",
    "1719837000000": "2024-07-01 12:30:00.000",
    '"2024-01-01"': "2023-12-31 23:00:00.000",
    '"2024-03-31T02:30:00"': "2024-03-31 01:30:00.000",  # left out by the clock
    '"2024-10-27T02:30:00"': "2024-10-27 00:30:00.000",  # shown twice
    '"1890-01-01T00:00:00"': "1889-12-31 23:00:00.000",
    '"2301-07-01T12:00:00"': "2301-07-01 11:00:00.000",
}


@pytest.mark.parametrize("zone", ["Europe/Berlin", "UTC"])
def test_instants_of_json_without_an_offset_are_on_the_clock_of_the_session(tmp_path, zone):
    """They were read in UTC, though those of CSV and of CAST were on the clock."""
    lines = [f'{{"ts": {text}, "o": {{"at": [{text}]}}, "plain": {text}}}' for text in BERLIN]
    (tmp_path / "rides.json").write_text("\n".join(lines))
    app = App("rides")
    app.sql(f"""
        SET 'table.local-time-zone' = '{zone}';
        CREATE TABLE rides (ts TIMESTAMP_LTZ(3), o ROW<at ARRAY<TIMESTAMP_LTZ(3)>>, plain TIMESTAMP(3),
            WATERMARK FOR ts AS ts - INTERVAL '1000' DAY)
            WITH ('connector' = 'files', 'path' = '{tmp_path}/rides.json', 'format' = 'json')""")
    found = app.sql("SELECT ts, o, plain FROM rides").collect()
    assert found.schema.field("ts").type == pa.timestamp("ms", "UTC")
    plain = [f"{each:%Y-%m-%d %H:%M:%S.%f}"[:-3] for each in found["plain"].to_pylist()]
    expected = [*BERLIN.values()] if zone != "UTC" else plain
    assert [f"{each:%Y-%m-%d %H:%M:%S.%f}"[:-3] for each in found["ts"].to_pylist()] == expected
    assert [each["at"] for each in found["o"].to_pylist()] == [[each] for each in found["ts"].to_pylist()]
    assert plain[:2] == ["2024-07-01 12:00:00.000", "2024-07-01 12:30:00.123"]


@pytest.mark.slow  # a second of a core
def test_instants_of_json_and_of_cast_are_the_same_around_all_changes_of_a_clock(tmp_path):
    begin = datetime(1970, 1, 1)
    texts = [f"{begin + timedelta(hours=hour, minutes=30):%Y-%m-%dT%H:%M:%S}" for hour in range(0, 24 * 365 * 40, 5)]
    (tmp_path / "times.json").write_text("\n".join(f'{{"at": "{text}", "t": "{text}"}}' for text in texts))
    for zone in ("Europe/London", "America/New_York", "Africa/Casablanca", "Australia/Lord_Howe", "Asia/Kathmandu"):
        app = App("times")
        app.sql(f"""
            SET 'table.local-time-zone' = '{zone}';
            CREATE TABLE times (at TIMESTAMP_LTZ(3), t STRING) WITH ('connector' = 'files', 'path' = '{tmp_path}/times.json')""")
        query = "SELECT COUNT(*) AS n FROM times WHERE at <> CAST(REPLACE(t, 'T', ' ') AS TIMESTAMP_LTZ(3))"
        assert app.sql(query).materialize().collect()["n"].to_pylist() in ([], [0])


RIDES = """
CREATE TABLE rides (id BIGINT, at TIMESTAMP(3), seen TIMESTAMP_LTZ(6), day DATE, stops ARRAY<ROW<at TIMESTAMP(3)>>)
WITH ('connector' = 'kafka', 'topic' = 'rides', 'format' = 'json', 'scan.bounded.mode' = 'latest-offset'{more});
"""
RIDE = "1, TIMESTAMP '2020-12-30 12:13:14.120', TIMESTAMP_LTZ '2020-12-30 12:13:14.123456Z', DATE '2020-12-30'"
SQL_TEXTS = (
    b'{"id":1,"at":"2020-12-30 12:13:14.12","seen":"2020-12-30 12:13:14.123456Z","day":"2020-12-30",'
    b'"stops":[{"at":"2020-12-30 12:00:00"}]}'
)


@pytest.mark.parametrize(
    ("standard", "expected"),
    [
        (None, SQL_TEXTS),
        ("SQL", SQL_TEXTS),
        ("ISO-8601", SQL_TEXTS.replace(b"30 12", b"30T12")),
        (
            "EPOCH-MILLIS",
            b'{"id":1,"at":1609330394120,"seen":1609330394123,"day":1609286400000,"stops":[{"at":1609329600000}]}',
        ),
    ],
)
async def test_times_in_json_are_the_texts_that_flink_writes_and_are_read_again(app, standard, expected):
    """They were written as ms since 1970, which Flink's format does not read."""
    table = RIDES.format(more="" if standard is None else f", 'json.timestamp-format.standard' = '{standard}'")
    stops = app.stream(
        [{"id": 1, "stops": [{"at": datetime(2020, 12, 30, 12)}]}],
        schema=pa.schema({"id": pa.int64(), "stops": pa.list_(pa.struct({"at": pa.timestamp("ms")}))}),
    )
    app.sql(table + f"INSERT INTO rides SELECT {RIDE}, stops FROM given", given=stops)
    await app.run()
    assert [record.payload for record in records(app, "rides")] == [expected]
    again = App("again", app.broker)
    texts = "CAST(at AS STRING) AS at, CAST(seen AS STRING) AS seen, CAST(day AS STRING) AS day"
    found = again.sql(table + f"SELECT {texts}, CAST(stops[1].at AS STRING) AS stop FROM rides").collect().to_pylist()
    digits = "000" if standard == "EPOCH-MILLIS" else "456"
    assert found == [
        {"at": "2020-12-30 12:13:14.120", "seen": f"2020-12-30 12:13:14.123{digits}", "day": "2020-12-30"}
        | {"stop": "2020-12-30 12:00:00.000"}
    ]


def test_numbers_and_both_forms_of_texts_are_read_whatever_form_is_written(app):
    for at in (1609330394120, "2020-12-30 12:13:14.12", "2020-12-30T12:13:14.12", "2020-12-30T14:13:14.12+02:00"):
        publish(app, "rides", [{"seen": at}])
    for standard in ("SQL", "ISO-8601"):
        more = f", 'value.json.timestamp-format.standard' = '{standard}'"
        again = App(f"reads {standard}", app.broker)
        found = again.sql(RIDES.format(more=more) + "SELECT CAST(seen AS STRING) AS seen FROM rides").collect()
        assert found["seen"].to_pylist() == ["2020-12-30 12:13:14.120000"] * 4


async def test_files_of_json_and_printed_rows_have_times_as_texts(app, tmp_path, capsys):
    app.sql(f"""
        CREATE TABLE rides (at TIMESTAMP(3)) WITH ('connector' = 'filesystem', 'path' = '{tmp_path}/rides.json', 'format' = 'json');
        CREATE TABLE iso (at TIMESTAMP_LTZ(3)) WITH ('connector' = 'filesystem', 'path' = '{tmp_path}/iso.json', 'format' = 'json',
            'json.timestamp-format.standard' = 'ISO-8601');
        CREATE TABLE shown (at TIMESTAMP(3)) WITH ('connector' = 'print');
        INSERT INTO rides VALUES (TIMESTAMP '2020-12-30 12:13:14.120');
        INSERT INTO iso VALUES (TIMESTAMP_LTZ '2020-12-30 12:13:14.120Z');
        INSERT INTO shown VALUES (TIMESTAMP '2020-12-30 12:13:14.120')""")
    await app.run()
    assert (tmp_path / "rides.json").read_text() == '{"at":"2020-12-30 12:13:14.12"}\n'
    assert (tmp_path / "iso.json").read_text() == '{"at":"2020-12-30T12:13:14.12Z"}\n'
    assert capsys.readouterr().out == '{"at":"2020-12-30 12:13:14.12"}\n'


def test_another_form_of_times_in_json_is_refused(app):
    with pytest.raises(SqlError, match=r"'json\.timestamp-format\.standard' cannot be 'ISO'") as caught:
        app.sql(RIDES.format(more=", 'json.timestamp-format.standard' = 'ISO'"))
    assert "ISO-8601" in str(caught.value)


RAW = "CREATE TABLE lines ({}) WITH ('connector' = 'kafka', 'topic' = 'lines', 'format' = 'raw', 'raw.charset' = 'UTF-8'{});"
ENDS = ", 'scan.bounded.mode' = 'latest-offset'"


@pytest.mark.parametrize(("type", "expected"), [("STRING", "hi"), ("BYTES", b"hi")])
def test_a_table_of_raw_payloads_has_them_in_the_column_that_it_declares(app, type, expected):
    """It was refused, with a hint about schema=, which SQL does not have."""
    publish(app, "lines", [b"hi"])
    columns = f"log {type}, o BIGINT METADATA FROM 'offset', at TIMESTAMP_LTZ(3) METADATA FROM 'timestamp', WATERMARK FOR at AS at"
    app.sql(RAW.format(columns, ENDS))
    assert app.sql("SELECT log, o FROM lines").collect().to_pylist() == [{"log": expected, "o": 0}]
    windows = "SELECT COUNT(*) AS n FROM TABLE(TUMBLE(TABLE lines, DESCRIPTOR(at), INTERVAL '1' DAY)) GROUP BY window_start, window_end"
    assert app.sql(windows).collect()["n"].to_pylist() == [1]


def test_raw_payloads_are_one_column_of_text_or_bytes(app):
    for columns in ("a BIGINT", "a STRING, b STRING"):
        with pytest.raises(SqlError, match="'format' = 'raw' is for one column of STRING or BYTES"):
            App(columns, app.broker).sql(RAW.format(columns, ENDS) + "SELECT * FROM lines")
    with pytest.raises(SqlError, match=r"'raw\.charset' cannot be 'UTF-16'"):
        app.sql(RAW.format("a STRING", "").replace("UTF-8", "UTF-16"))


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize(("delimiter", "between"), [(";", ";"), ("|", "|"), ("\\t", "\t")])
async def test_the_delimiter_of_csv_is_that_of_the_table(app, tmp_path, delimiter, between):
    of_csv = f"'format' = 'csv', 'csv.field-delimiter' = '{delimiter}'"
    app.sql(f"""
        CREATE TABLE sent (id BIGINT, name STRING) WITH ('connector' = 'kafka', 'topic' = 'sent', {of_csv});
        CREATE TABLE kept (id BIGINT, name STRING) WITH ('connector' = 'filesystem', 'path' = '{tmp_path}/kept.csv', {of_csv});
        INSERT INTO sent VALUES (1, 'a,b');
        INSERT INTO kept VALUES (1, 'a,b')""")
    await app.run()
    assert [record.payload for record in records(app, "sent")] == [f"1{between}a,b".encode()]
    assert (tmp_path / "kept.csv").read_text().splitlines()[1].replace('"', "") == f"1{between}a,b"
    again = App("again", app.broker)
    again.sql(f"""
        CREATE TABLE sent (id BIGINT, name STRING) WITH ('connector' = 'kafka', 'topic' = 'sent', {of_csv}{ENDS});
        CREATE TABLE kept (id BIGINT, name STRING) WITH ('connector' = 'filesystem', 'path' = '{tmp_path}/kept.csv', {of_csv})""")
    for table in ("sent", "kept"):
        assert again.sql(f"SELECT id, name FROM {table}").collect().to_pylist() == [{"id": 1, "name": "a,b"}]


async def test_a_map_in_json_is_an_object_that_is_read_and_written(app, tmp_path):
    columns = "id INT, m MAP<STRING, INT>, r ROW<t MAP<STRING, ARRAY<TIMESTAMP_LTZ(3)>>>"
    options = "WITH ('connector' = 'kafka', 'topic' = 'maps', 'format' = 'json', 'scan.bounded.mode' = 'latest-offset')"
    rows = "SELECT 1, MAP['a', 2], ROW(MAP['x', ARRAY[TO_TIMESTAMP_LTZ(0, 3)]]) UNION ALL SELECT 2, CAST(NULL AS MAP<STRING, INT>), NULL"
    app.sql(f"CREATE TABLE maps ({columns}) {options}; INSERT INTO maps {rows}")
    await app.run()
    assert sorted(record.payload for record in records(app, "maps")) == [
        b'{"id":1,"m":{"a":2},"r":{"t":{"x":["1970-01-01 00:00:00Z"]}}}',
        b'{"id":2,"m":null,"r":null}',
    ]
    publish(app, "maps", [{"id": 3, "m": {"a": 5, "b": None}, "r": {"t": {"x": ["1970-01-01 09:00:00"]}}}])
    read = "SELECT id, m['a'] AS a, CARDINALITY(m) AS n, CAST(r.t['x'][1] AS STRING) AS t FROM maps"
    found = app.sql(f"SET 'table.local-time-zone' = 'Asia/Tokyo'; {read}").collect().to_pylist()
    assert sorted(found, key=lambda row: row["id"]) == [
        {"id": 1, "a": 2, "n": 1, "t": "1970-01-01 09:00:00.000"},
        {"id": 2, "a": None, "n": None, "t": None},
        {"id": 3, "a": 5, "n": 2, "t": "1970-01-01 09:00:00.000"},
    ]
