"""Functions and agents of a program in SQL."""

import asyncio
import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from sabot import App, UserError, files
from sabot.sql.registered import registered_function
from sabot.sql.syntax.text import SqlError

ROWS = {"id": [1, 2, 3, 4], "text": ["abcc", "", None, "c"], "n": [3, None, 5, 7], "k": [1, 1, 2, 2]}


@pytest.fixture
def app(tmp_path):
    pq.write_table(pa.table(ROWS), tmp_path / "t.parquet")
    app = App("registered", parallelism=2)
    app.register("t", app.stream(files(str(tmp_path / "t.parquet"))))
    return app


def rows(app, text):
    return sorted(app.sql(text).materialize().collect().to_pylist(), key=str)


def count_char(text: str | None, char: str) -> int | None:
    return None if text is None else text.count(char)


def test_a_function_is_called_with_the_values_of_a_row(app):
    app.register("count_char", count_char)
    assert rows(app, "SELECT id, COUNT_CHAR(text, 'c') + 1 AS n FROM t WHERE count_char(text, 'c') IS NOT NULL") == [
        {"id": 1, "n": 3},
        {"id": 2, "n": 1},
        {"id": 4, "n": 2},
    ]


def test_a_function_that_returns_an_array_is_a_table_function(app):
    app.register("letters", lambda text: None if text is None else [*text], returns=pa.list_(pa.string()))
    assert rows(app, "SELECT id, x FROM t, LATERAL TABLE(letters(text)) AS w (x)") == [
        *({"id": 1, "x": each} for each in "abcc"),
        {"id": 4, "x": "c"},
    ]
    left = rows(
        app, "SELECT t.id, x FROM t LEFT JOIN LATERAL TABLE(letters(LOWER(t.text))) AS w (x) ON TRUE WHERE id > 1"
    )
    assert left == [{"id": 2, "x": None}, {"id": 3, "x": None}, {"id": 4, "x": "c"}]
    assert rows(app, "SELECT id, x FROM t CROSS JOIN UNNEST(letters(text)) AS w (x) WHERE id = 4") == [
        {"id": 4, "x": "c"}
    ]


class Word(TypedDict):
    word: str
    size: int | None


@dataclass
class Placed:
    word: str
    places: set[int]


def words(text: str | None) -> Iterator[Word]:
    for each in (text or "").split("-"):
        yield {"word": each, "size": len(each) or None}


def placed(text: str | None) -> list[Placed] | None:
    return None if text is None else [Placed(text, {len(text)})]


def test_a_table_function_with_several_columns_has_those_of_its_annotation(app):
    app.register("words", words)
    app.register("placed", placed)
    assert rows(app, "SELECT id, word, size FROM t, LATERAL TABLE(words(text)) WHERE id = 1") == [
        {"id": 1, "word": "abcc", "size": 4}
    ]
    renamed = (
        "SELECT id, w, s FROM t LEFT JOIN LATERAL TABLE(words(CONCAT(text, '-'))) AS q (w, s) ON TRUE WHERE id = 1"
    )
    assert rows(app, renamed) == [{"id": 1, "w": "", "s": None}, {"id": 1, "w": "abcc", "s": 4}]
    assert rows(app, "SELECT id, q.* FROM t CROSS JOIN UNNEST(placed(text)) AS q WHERE id < 3") == [
        {"id": 1, "word": "abcc", "places": [4]},
        {"id": 2, "word": "", "places": [0]},
    ]


@pytest.mark.parametrize(
    ("result", "type"),
    [
        (list[str], pa.list_(pa.string())),
        (Iterator[int], pa.list_(pa.int64())),
        (Word, pa.struct([("word", pa.string()), ("size", pa.int64())])),
        (datetime.date | None, pa.date32()),
        (datetime.datetime, pa.timestamp("us", "UTC")),
        (bytes, pa.binary()),
    ],
    ids=str,
)
def test_an_annotation_is_the_type_of_the_results(result, type):
    def function(text: str) -> result: ...

    assert registered_function("f", function, {}).type == type


@pytest.mark.parametrize("result", [Decimal, tuple[str, int], dict[str, int], object], ids=str)
def test_an_annotation_that_is_no_type_of_a_column_is_refused(result):
    def function(text: str) -> result: ...

    with pytest.raises(
        UserError, match=r"register\('f'\): .* is no type of a column .*or returns= with a type of Arrow"
    ):
        registered_function("f", function, {})


@pytest.mark.slow  # half a second of a core
def test_a_function_is_called_in_each_clause(app):
    app.register("double", lambda n: None if n is None else 2 * n, returns="int64")
    grouped = "SELECT double(k) AS d, SUM(double(n)) AS s FROM t GROUP BY double(k) HAVING SUM(double(n)) > 10"
    assert rows(app, grouped) == [{"d": 4, "s": 24}]
    assert rows(app, "SELECT double(double(k) + 1) AS d FROM t WHERE id = 1") == [{"d": 6}]
    joined = "SELECT a.id, b.id AS other FROM t a JOIN t b ON double(a.id) = b.id AND double(b.k) > a.id"
    assert rows(app, joined) == [{"id": 1, "other": 2}, {"id": 2, "other": 4}]
    both = "SELECT a.id, b.id AS other FROM t a JOIN t b ON a.k = b.k AND double(a.id) = b.id"
    assert rows(app, both) == [{"id": 1, "other": 2}]
    assert rows(app, "SELECT id FROM t ORDER BY double(id) DESC LIMIT 2") == [{"id": 3}, {"id": 4}]


def test_equal_calls_are_one_call(app):
    calls = []
    app.register("seen", lambda n: calls.append(n) or n, returns="int64")
    rows(app, "SELECT seen(id) AS a, seen(id) + 1 AS b FROM t")
    assert sorted(calls) == [1, 2, 3, 4]


def test_a_batch_function_gets_arrays(app):
    app.register("total", lambda a, b: pc.add(a, b), batch=True, returns="int64")
    assert rows(app, "SELECT total(n, 1) AS x FROM t") == [{"x": 4}, {"x": 6}, {"x": 8}, {"x": None}]


def test_an_async_function_is_awaited(app):
    async def distance(a: int, b: int) -> float:
        await asyncio.sleep(0)
        return abs(a - b) / 2

    app.register("distance", distance, concurrency=3)
    assert rows(app, "SELECT id, distance(n, id) AS d FROM t WHERE id <> 4") == [
        {"id": 1, "d": 1.0},
        {"id": 2, "d": None},
        {"id": 3, "d": 1.0},
    ]


def test_create_function_takes_the_registered_one(app):
    text = "CREATE FUNCTION count_char AS 'com.github.nexmark.flink.udf.CountChar'"
    with pytest.raises(SqlError, match=r'has not registered the function count_char[\s\S]*app.register\("count_char"'):
        app.sql(text)
    app.register("count_char", count_char)
    assert rows(app, text + "; SELECT count_char(text, 'b') AS n FROM t WHERE id = 1") == [{"n": 1}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SELECT count_char(text) FROM t", r"1:8: count_char: missing a required argument: 'char'"),
        ("SELECT count_char(txt, 'c') FROM t", 'there is no column "txt"'),
        ("SELECT COUNT(*), count_char('x', 'c') FROM t", "count_char cannot be called here"),
        ("SELECT count_char(text, 'c') FROM (SELECT MAX(text) AS text FROM t)", "rows that are updated"),
        ("SELECT count_chr(text, 'c') FROM t", "did you mean count_char"),
        ("SELECT count_char(DISTINCT text, 'c') FROM t", "is no aggregate"),
    ],
)
def test_a_call_that_cannot_be_has_a_position(app, text, message):
    app.register("count_char", count_char)
    with pytest.raises(SqlError, match=message):
        app.sql(text)


@pytest.mark.parametrize(
    ("name", "thing", "options", "message"),
    [
        ("upper", count_char, {}, "SQL has a function of this name"),
        ("f", lambda x: x, {}, "the type of the results is not known"),
        ("f", count_char, {"retries": 3}, "retries= is for async functions"),
        ("f", 3, {}, "no stream, function, agent or engine"),
        ("not a name", count_char, {}, "is no name of SQL"),
    ],
)
def test_what_cannot_be_registered_is_refused(name, thing, options, message):
    with pytest.raises(UserError, match=message):
        App("refused").register(name, thing, **options)


def test_rows_are_inserted_into_an_agent(app):
    seen = []

    @app.agent()
    async def alarms(ctx):
        seen.append(ctx.message)

    app.register("alarms", alarms)
    app.sql("INSERT INTO alarms SELECT id, n AS size FROM t WHERE n > 4")
    app.main()
    assert sorted(each["id"] for each in seen) == [3, 4]


def test_an_agent_has_its_own_name_in_sql(app):
    seen = []

    @app.agent()
    async def alarms(ctx):
        seen.append(ctx.message["id"])

    app.sql("INSERT INTO alarms SELECT id FROM t WHERE n > 4")
    app.main()
    assert sorted(seen) == [3, 4]


def test_the_results_of_a_function_over_columns_are_not_cut_to_its_type(app):
    app.register("eighth", lambda n: pc.divide(pc.cast(n, pa.float64()), 8.0), returns="decimal128(9, 2)", batch=True)
    with pytest.raises(UserError, match="would be"):
        rows(app, "SELECT id, eighth(id) AS e FROM t")
