"""METADATA columns of tables on topics: headers as a MAP, and the parts of records that INSERT INTO writes."""

from datetime import UTC, datetime

import pytest

from sabot import App
from sabot.sql.syntax.text import SqlError
from tools.agent_tools import records


@pytest.fixture
def app(memory_url: str) -> App:
    return App("parts", memory_url)


BOUNDED = "'scan.bounded.mode' = 'latest-offset'"


def table(columns: str, *options: str, connector: str = "kafka", name: str = "t") -> str:
    given = [f"'connector' = '{connector}'", "'topic' = 't'", "'value.format' = 'json'", *options]
    return f"CREATE TABLE {name} ({columns}) WITH ({', '.join(given)});"


async def written(app: App, text: str) -> list[tuple[bytes | None, bytes | None, int, dict[str, bytes | None]]]:
    app.sql(text)
    await app.run()
    return [(each.key, each.payload, each.timestamp, dict(each.headers)) for each in records(app, "t")]


AT = 1_714_557_600_000
PARTS = "at TIMESTAMP_LTZ(3) METADATA FROM 'timestamp', h MAP<STRING, BYTES> METADATA FROM 'headers'"
VALUES = "(TO_TIMESTAMP_LTZ(1714557600000, 3), MAP['a', ENCODE('x', 'UTF-8'), 'b', CAST(NULL AS BYTES)], 7)"


async def test_the_time_and_the_headers_of_records_are_those_of_the_row(app):
    found = await written(
        app, table(f"{PARTS}, p INT METADATA FROM 'partition' VIRTUAL, id INT") + f"INSERT INTO t VALUES {VALUES}"
    )
    assert found == [(None, b'{"id":7}', AT, {"a": b"x", "b": None})]
    read = app.sql(f"SELECT id, at, h, h['a'] AS a FROM t /*+ OPTIONS({BOUNDED}) */").collect().to_pylist()
    assert read == [{"id": 7, "at": datetime(2024, 5, 1, 10, tzinfo=UTC), "h": [("a", b"x"), ("b", None)], "a": b"x"}]


async def test_a_column_without_a_value_gives_the_time_of_writing_and_no_headers(app):
    found = await written(
        app, table(f"{PARTS}, id INT") + "INSERT INTO t (id) VALUES (1); INSERT INTO t VALUES (NULL, NULL, 1)"
    )
    assert [(key, payload, headers) for key, payload, _, headers in found] == 2 * [(None, b'{"id":1}', {})]
    assert all(time > AT for _, _, time, _ in found)


async def test_one_header_and_the_key_are_texts(app):
    columns = "trace STRING METADATA FROM 'headers.trace', unit STRING METADATA FROM 'headers.unit', k STRING METADATA FROM 'key', id INT"
    text = "INSERT INTO t SELECT a, b, c, d FROM (VALUES ('t1', 'C', 'k1', 1), (CAST(NULL AS STRING), 'F', 'k2', 2)) AS v (a, b, c, d)"
    found = await written(app, table(columns) + text)
    assert [(key, payload, headers) for key, payload, _, headers in found] == [
        (b"k1", b'{"id":1}', {"trace": b"t1", "unit": b"C"}),
        (b"k2", b'{"id":2}', {"unit": b"F"}),
    ]


async def test_pairs_of_headers_are_written_beside_a_key_of_its_own_format(app):
    columns = "h ARRAY<ROW<name STRING, value BYTES>> METADATA FROM 'headers', id INT, s STRING"
    given = "ARRAY[ROW('n', ENCODE('v', 'UTF-8')), ROW('n', ENCODE('w', 'UTF-8'))]"
    values = f"INSERT INTO t SELECT {given}, id, s FROM (VALUES (1, 'x')) AS v (id, s)"
    app.sql(
        table(columns, "'key.format' = 'json', 'key.fields' = 'id'", "'value.fields-include' = 'EXCEPT_KEY'") + values
    )
    await app.run()
    (record,) = records(app, "t")
    assert (record.key, record.payload) == (b'{"id":1}', b'{"s":"x"}')
    assert list(record.headers) == [("n", b"v"), ("n", b"w")]


async def test_changes_of_a_table_have_the_time_of_their_row(app):
    columns = "at TIMESTAMP_LTZ(3) METADATA FROM 'timestamp', name STRING, n BIGINT, PRIMARY KEY (name) NOT ENFORCED"
    rows = app.stream([{"name": "ada"}, {"name": "ada"}], schema={"name": "string"})
    app.sql(
        table(columns, "'key.format' = 'json'", connector="upsert-kafka")
        + "INSERT INTO t SELECT TO_TIMESTAMP_LTZ(1714557600000 + COUNT(*), 3), name, COUNT(*) FROM given GROUP BY name",
        given=rows,
    )
    await app.run()
    last = records(app, "t")[-1]
    assert (last.key, last.payload, last.timestamp) == (b'{"name":"ada"}', b'{"name":"ada","n":2}', AT + 2)


async def test_headers_are_read_as_a_map_of_the_last_of_equal_names(app):
    pairs = table("h ARRAY<ROW<name STRING, value BYTES>> METADATA FROM 'headers', id INT", name="pairs")
    given = "ARRAY[ROW('a', ENCODE('x', 'UTF-8')), ROW('a', ENCODE('y', 'UTF-8'))]"
    await written(app, pairs + f"INSERT INTO pairs SELECT {given}, 1; INSERT INTO pairs (id) SELECT 2")
    found = app.sql(
        table("id INT, h MAP<STRING, BYTES> METADATA FROM 'headers'", BOUNDED) + "SELECT id, h FROM t"
    ).collect()
    assert sorted(found.to_pylist(), key=lambda row: row["id"]) == [{"id": 1, "h": [("a", b"y")]}, {"id": 2, "h": None}]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (table("id INT, h MAP<STRING, STRING> METADATA FROM 'headers'"), "the values of headers are bytes", "MAP<STRING, BYTES>"),
        (table("id INT, at TIMESTAMP_LTZ(3) METADATA FROM 'timestamp'") + "INSERT INTO t SELECT 1",
         "table t has 2 columns, and the query 1",
         "t(id, at): METADATA is written too, but for 'partition', 'offset' and VIRTUAL columns"),
        (table("id INT, k STRING METADATA FROM 'key'", "'key.fields' = 'id'") + "INSERT INTO t SELECT 1, 'x'",
         "column k is the key of the records, which 'key.fields' or the PRIMARY KEY gives too", "METADATA FROM 'key' VIRTUAL is read"),
        (table("id INT, at TIMESTAMP_LTZ(3) METADATA FROM 'timestamp'").replace("'json'", "'arrow'") + "INSERT INTO t SELECT 1, NOW()",
         "a record of 'arrow' has many rows", "VIRTUAL"),
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_is_refused_with_the_way_out(app, text, message, hint):
    with pytest.raises(SqlError) as caught:
        app.sql(text)
    assert message in str(caught.value)
    assert hint in str(caught.value).split("hint: ")[1]
