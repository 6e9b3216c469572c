"""Keys of records in tables of SQL: 'key.format', 'key.fields', 'key.fields-prefix' and 'value.fields-include', as in Flink."""

import json
import struct
from datetime import datetime

import pyarrow as pa
import pytest

from sabot import App, Avro
from sabot.kafka.registry import Registry
from sabot.sql.syntax.text import SqlError
from tools.agent_tools import records
from tools.registry import schema_server


@pytest.fixture
def app(memory_url: str) -> App:
    return App("keys", memory_url)


def table(columns: str, *options: str, connector: str = "kafka") -> str:
    given = [f"'connector' = '{connector}'", "'topic' = 't'", "'value.format' = 'json'", *options]
    return f"CREATE TABLE t ({columns}) WITH ({', '.join(given)});"


BOUNDED = "'scan.bounded.mode' = 'latest-offset'"
KEY = "'key.format' = '{}', 'key.fields' = '{}'"


async def written(app: App, text: str) -> list[tuple[bytes | None, bytes | None]]:
    app.sql(text)
    await app.run()
    return [(record.key, record.payload) for record in records(app, "t")]


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (KEY.format("json", "id"), b'{"id":7}'),
        (KEY.format("json", "name;id"), b'{"name":"a,b","id":7}'),
        (KEY.format("json", "at"), b'{"at":"2024-01-01 00:00:00.5"}'),
        (
            KEY.format("json", "at") + ", 'key.json.timestamp-format.standard' = 'ISO-8601'",
            b'{"at":"2024-01-01T00:00:00.5"}',
        ),
        (KEY.format("raw", "name"), b"a,b"),
        (KEY.format("csv", "id"), b"7"),
        (KEY.format("csv", "id;name"), b'7,"a,b"'),
        (
            KEY.format("json", "id") + ", 'value.fields-include' = 'ALL', 'key.json.ignore-parse-errors' = 'true'",
            b'{"id":7}',
        ),
        ("'key.fields' = 'id'", b"7"),
    ],
)
async def test_keys_are_written_in_their_format(app, key, expected):
    """'key.format' was ignored: one column was a bare value, whatever the format, and several columns were refused."""
    values = "INSERT INTO t VALUES (7, 'a,b', TIMESTAMP '2024-01-01 00:00:00.500')"
    found = await written(app, table("id BIGINT, name STRING, at TIMESTAMP(3)", key) + values)
    assert found == [(expected, b'{"id":7,"name":"a,b","at":"2024-01-01 00:00:00.5"}')]


OVERLAPPING = "k_version INT, k_user_id BIGINT, k_item_id STRING, version INT, behavior STRING"
APART = "'value.fields-include' = 'EXCEPT_KEY'"
PREFIX = f"{KEY.format('json', 'k_version;k_user_id;k_item_id')}, 'key.fields-prefix' = 'k_', {APART}"


async def test_a_key_and_a_payload_with_the_same_fields_are_told_apart_by_a_prefix(app):
    values = "INSERT INTO t VALUES (1, 5, 'a', 2, 'buy'), (1, CAST(NULL AS BIGINT), 'b', 3, 'see')"
    found = await written(app, table(OVERLAPPING, PREFIX) + values)
    assert found == [
        (b'{"version":1,"user_id":5,"item_id":"a"}', b'{"version":2,"behavior":"buy"}'),
        (b'{"version":1,"user_id":null,"item_id":"b"}', b'{"version":3,"behavior":"see"}'),
    ]
    again = App("again", app.broker)
    more = f"{OVERLAPPING}, o BIGINT METADATA FROM 'offset'"
    rows = again.sql(table(more, PREFIX, BOUNDED) + "SELECT * FROM t").collect().to_pylist()
    assert rows[0] == {"k_version": 1, "k_user_id": 5, "k_item_id": "a", "version": 2, "behavior": "buy", "o": 0}
    assert rows[1] == {"k_version": 1, "k_user_id": None, "k_item_id": "b", "version": 3, "behavior": "see", "o": 1}
    few = App("few", app.broker).sql(
        table(OVERLAPPING, PREFIX, BOUNDED) + "SELECT behavior, k_item_id AS i FROM t WHERE k_user_id = 5"
    )
    assert few.collect().to_pylist() == [{"behavior": "buy", "i": "a"}]


async def test_a_record_whose_key_cannot_be_read_is_a_dead_letter_and_one_without_a_key_has_nulls(app, caplog):
    for key in ('{"id":1}', "x", None, '{"id":"four"}', '{"id":5}'):
        await app.send("t", {"s": str(key)}, key=key)
    text = table("id BIGINT, s STRING", KEY.format("json", "id"), APART, BOUNDED)
    found = app.sql(text + "SELECT id, s FROM t").collect().to_pylist()
    assert [row["id"] for row in found] == [1, None, 5]
    assert "2 rows were set apart" in caplog.text
    assert "the record's key cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("form", "key", "type"), [("raw", "ada", "STRING"), ("csv", "ada", "STRING"), ("csv", "12", "BIGINT")]
)
async def test_a_column_is_read_from_keys_of_text(app, form, key, type):
    await app.send("t", {"s": "x"}, key=key)
    text = table(f"id {type}, s STRING", KEY.format(form, "id"), APART, BOUNDED)
    found = app.sql(text + "SELECT id, s FROM t").collect().to_pylist()
    assert found == [{"id": key if type == "STRING" else int(key), "s": "x"}]


@pytest.mark.parametrize("fields", ["name", "id;name", "at;name"])
async def test_keys_in_csv_are_read_as_they_were_written(app, fields):
    """The key "a,b" came with its quotes as the name, and keys of several columns were refused."""
    columns, key = "id BIGINT, name STRING, at TIMESTAMP(3), n BIGINT", KEY.format("csv", fields)
    at = datetime(2024, 1, 1, 0, 0, 0, 500_000)
    rows = [
        {"id": n, "name": name, "at": at, "n": n} for n, name in enumerate(("a,b", '5" disk', "", "ada", "2\nlines"))
    ]
    given = app.stream(rows, schema={"id": "int64", "name": "string", "at": "timestamp[ms]", "n": "int64"})
    app.sql(table(columns, key, APART) + "INSERT INTO t SELECT * FROM given", given=given)
    await app.run()
    again = App("again", app.broker)
    assert again.sql(table(columns, key, APART, BOUNDED) + "SELECT * FROM t").collect().to_pylist() == rows


@pytest.mark.one_in(4, "a tenth of a second of a core each")
@pytest.mark.parametrize("form", ["avro", "avro-confluent"])
@pytest.mark.parametrize("apart", ["'value.fields-include' = 'ALL'", APART])
async def test_keys_in_avro_are_written_and_read_and_delete_their_rows(app, form, apart):
    """They were refused."""
    columns = "id BIGINT, part STRING, n BIGINT, PRIMARY KEY (id, part) NOT ENFORCED"
    with schema_server() as server:
        key = f"'key.format' = '{form}'" + (f", 'key.avro-confluent.url' = '{server.url}'" if "-" in form else "")
        text = table(columns, key, apart, connector="upsert-kafka")
        rows = "(1, 'a', 5), (2, 'b', 6), (1, 'a', 7)"
        app.sql(
            text + f"INSERT INTO t SELECT id, part, MAX(n) FROM (VALUES {rows}) AS v(id, part, n) GROUP BY id, part"
        )
        await app.run()
        if "-" in form:
            assert list(server.subjects) == ["t-key"]
        await app.send("t", None, key=next(each.key for each in records(app, "t")))
        again = App("again", app.broker)
        text = table(columns, key, apart, BOUNDED, connector="upsert-kafka")
        found = again.sql(text + "SELECT * FROM t").materialize().collect().to_pylist()
    assert found == [{"id": 2, "part": "b", "n": 6}]


VALUES = ["json", "csv", "avro", "avro-confluent"]
KEYS = ["raw STRING", "raw BIGINT", "json STRING", "json BIGINT", "csv STRING", "avro BIGINT", "avro-confluent STRING"]


@pytest.mark.one_in(36, "half a second of a core each")
@pytest.mark.parametrize("apart", ["'value.fields-include' = 'ALL'", APART])
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", VALUES)
async def test_keys_of_each_format_beside_payloads_of_each_format_are_read_as_they_were_written(app, value, key, apart):
    """Beside payloads in Avro, keys could not be read, and payloads without the columns of the key not be written."""
    form, _, kind = key.partition(" ")
    ids = [1, 2, 2**40] if kind == "BIGINT" else ["ada", "bob", ""]
    with schema_server() as server:
        options = [f"'value.format' = '{value}'", f"'key.format' = '{form}'", apart]
        registered = [side for side, its in (("key", form), ("value", value)) if its == "avro-confluent"]
        options += [f"'{side}.avro-confluent.url' = '{server.url}'" for side in registered]
        for connector in ("kafka", "upsert-kafka"):
            fields = "'key.fields' = 'id'" if connector == "kafka" else ""
            primary = "" if fields else ", PRIMARY KEY (id) NOT ENFORCED"
            one = App(f"one-{connector}", app.broker)
            given = [f"'connector' = '{connector}'", f"'topic' = '{connector}'", *options, *[fields][: bool(fields)]]
            text = f"CREATE TABLE t (n BIGINT, id {kind}, city STRING{primary}) WITH ({', '.join(given)});"
            rows = [{"n": n, "id": id, "city": f"Ulm {n}"} for n, id in enumerate(ids)]
            kinds = {"n": "int64", "id": "int64" if kind == "BIGINT" else "string", "city": "string"}
            source = one.stream(rows, schema=kinds)
            source = source if fields else source.upsert("id")
            one.sql(text + "INSERT INTO t SELECT n, id, city FROM given", given=source)
            await one.run()
            if not fields:
                await one.send("upsert-kafka", None, key=records(one, "upsert-kafka")[1].key)
                rows = [rows[0], rows[2]]
            read = App(f"read-{connector}", app.broker).sql(
                text.replace(" WITH (", f" WITH ({BOUNDED}, ") + "SELECT * FROM t"
            )
            found = (read if fields else read.materialize()).collect().to_pylist()
            assert sorted(found, key=lambda row: row["n"]) == rows


async def test_a_topic_of_a_java_program_with_a_long_as_its_key_is_read_beside_avro(app):
    """LongSerializer writes eight bytes, and KafkaAvroSerializer a schema that has the key too, of another type."""
    with schema_server() as server:
        rows = pa.record_batch({"id": ["one", "two", "none", "bad"], "city": ["Ulm", "Bonn", "Rome", "Oslo"]})
        payloads = Avro(registry=Registry(server.url)).encoder("t").encode(rows).to_pylist()
        for key, payload in zip(
            [struct.pack(">q", -5), struct.pack(">q", 2**40), None, b"1234"], payloads, strict=True
        ):
            await app.send("t", payload, key=key)
        url = f"'value.avro-confluent.url' = '{server.url}'"
        text = "CREATE TABLE t (id BIGINT, city STRING) WITH ('connector' = 'kafka', 'topic' = 't', "
        text += f"'value.format' = 'avro-confluent', {url}, {KEY.format('raw', 'id')}, {APART}, {BOUNDED});"
        found = app.sql(text + "SELECT city, id FROM t").collect().to_pylist()
    assert found == [{"city": "Ulm", "id": -5}, {"city": "Bonn", "id": 2**40}, {"city": "Rome", "id": None}]


async def test_a_key_is_read_beside_a_payload_that_is_one_text(app):
    await app.send("t", b"hello", key=b"7")
    text = "CREATE TABLE t (s STRING, id BIGINT) WITH ('connector' = 'kafka', 'topic' = 't', 'value.format' = 'raw', "
    text += f"{KEY.format('csv', 'id')}, {APART}, {BOUNDED});"
    assert app.sql(text + "SELECT * FROM t").collect().to_pylist() == [{"s": "hello", "id": 7}]


CUSTOMERS = "name STRING, city STRING, PRIMARY KEY (name) NOT ENFORCED"


@pytest.mark.parametrize("apart", ["'value.fields-include' = 'ALL'", APART])
async def test_a_table_of_flink_with_keys_in_json_is_read_and_its_rows_are_deleted(app, apart):
    """The key of a tombstone was taken as the text {"name":"ada"}, so that the row of ada stayed."""
    whole = "ALL" in apart
    for name, city in (("ada", "Ulm"), ("bob", "Bonn"), ("ada", None)):
        row = ({"name": name} if whole else {}) | {"city": city}
        await app.send("t", row if city else None, key=json.dumps({"name": name}))
    text = table(CUSTOMERS, "'key.format' = 'json'", apart, BOUNDED, connector="upsert-kafka")
    assert app.sql(text + "SELECT name, city FROM t").materialize().collect().to_pylist() == [
        {"name": "bob", "city": "Bonn"}
    ]


@pytest.mark.parametrize(
    ("primary", "fields", "keys"),
    [
        ("name", "name", ('"a,b"', "bob")),
        ("name, city", "name;city", ('"a,b",Ulm', "bob,Bonn")),
        ("name, city", "city;name", ('Ulm,"a,b"', "Bonn,bob")),
    ],
)
async def test_a_tombstone_with_its_key_in_csv_deletes_the_row(app, primary, fields, keys):
    """Its key was taken as a text with quotes, or as JSON, so that the row stayed."""
    ada = {"name": "a,b", "city": "Ulm"}
    for row, key in ((ada, keys[0]), ({"name": "bob", "city": "Bonn"}, keys[1]), (None, keys[0])):
        await app.send("t", row, key=key)
    columns = f"name STRING, city STRING, PRIMARY KEY ({primary}) NOT ENFORCED"
    text = table(columns, KEY.format("csv", fields), BOUNDED, connector="upsert-kafka")
    assert app.sql(text + "SELECT name, city FROM t").materialize().collect().to_pylist() == [
        {"name": "bob", "city": "Bonn"}
    ]


async def test_changes_are_written_with_their_keys_and_without_them_in_the_payload(app):
    text = table(
        CUSTOMERS.replace("city", "n").replace("n STRING", "n BIGINT"),
        "'key.format' = 'json'",
        APART,
        connector="upsert-kafka",
    )
    rows = app.stream([{"name": "ada"}, {"name": "bob"}, {"name": "ada"}], schema={"name": "string"})
    app.sql(text + "INSERT INTO t SELECT name, COUNT(*) FROM given GROUP BY name", given=rows)
    await app.run()
    last = {record.key: record.payload for record in records(app, "t")}
    assert last == {b'{"name":"ada"}': b'{"n":2}', b'{"name":"bob"}': b'{"n":1}'}


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (("'key.format' = 'json'",), "'key.format' needs the option 'key.fields'", "'key.fields' = 'id', or 'a;b'"),
        (("'key.fields' = 'id;s'",), "'key.fields' needs the option 'key.format'", "'key.format' = 'json'"),
        ((APART, "'key.fields' = 'id'"), "'value.fields-include' needs the option 'key.format'", "'key.format' = 'json'"),
        ((KEY.format("json", "ix"),), 'there is no column "ix" for the key', "there are id, s"),
        ((KEY.format("raw", "id;s"),), "'key.format' = 'raw' is for one column: STRING, BYTES", "'key.format' = 'json'"),
        ((KEY.format("json", "id"), "'key.fields-prefix' = 'k_'", APART), "column id of the key does not begin with 'k_'", "k_id"),
        ((KEY.format("json", "id"), "'key.fields-prefix' = 'i'"), "'key.fields-prefix' needs the option 'value.", "payloads"),
        ((KEY.format("jsn", "id"),), "'key.format' cannot be 'jsn'", "did you mean json"),
        ((KEY.format("json", "id"), "'value.fields-include' = 'NONE'"), "'value.fields-include' cannot be 'NONE'", "EXCEPT_KEY"),
    ],
)  # fmt: skip
def test_keys_that_cannot_be_are_refused_where_the_table_is_declared(app, options, message, hint):
    with pytest.raises(SqlError) as caught:
        app.sql(table("id BIGINT, s STRING", *options))
    assert message in str(caught.value)
    assert hint in str(caught.value).split("hint: ")[1]
