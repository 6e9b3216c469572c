"""INSERT INTO: which types of a query a column takes without a CAST, as Flink's implicit casts (LogicalTypeCasts)."""

import datetime
from decimal import Decimal

import pytest

from sabot import App
from sabot.sql.syntax.text import SqlError

TYPES = [
    *("BOOLEAN", "TINYINT", "SMALLINT", "INT", "BIGINT", "FLOAT", "DOUBLE", "DECIMAL(10, 2)", "DECIMAL(4, 0)"),
    *("STRING", "BYTES", "DATE", "TIME(0)", "TIMESTAMP(3)", "TIMESTAMP(6)", "TIMESTAMP_LTZ(3)", "ARRAY<INT>"),
    *("ARRAY<BIGINT>", "ROW<a INT>", "ROW<a BIGINT>"),
]
NUMBERS = ["TINYINT", "SMALLINT", "INT", "BIGINT", "FLOAT", "DOUBLE", "DECIMAL(10, 2)", "DECIMAL(4, 0)"]
INTEGERS = NUMBERS[:4]
TIMES = ["TIMESTAMP(3)", "TIMESTAMP(6)", "TIMESTAMP_LTZ(3)"]
TAKES = {
    **dict.fromkeys(INTEGERS, INTEGERS),  # wider ones too: Flink's SUM of INT is an INT
    "FLOAT": [each for each in NUMBERS if each != "DOUBLE"],
    "DOUBLE": NUMBERS,
    "DECIMAL(10, 2)": NUMBERS,
    "DECIMAL(4, 0)": NUMBERS,
    "DATE": TIMES,
    "TIME(0)": TIMES,
    **dict.fromkeys(TIMES, TIMES),
    "ARRAY<BIGINT>": ["ARRAY<INT>"],
    "ROW<a BIGINT>": ["ROW<a INT>"],
}


def app_with(given, wanted):
    app = App("assigned")
    app.sql(f"""
        CREATE TABLE a (x {given}) WITH ('connector' = 'files', 'path' = 'a.parquet', 'format' = 'parquet');
        CREATE TABLE b (y {wanted}) WITH ('connector' = 'blackhole');
    """)
    return app


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("wanted", TYPES)
def test_a_column_takes_what_flink_casts_implicitly_and_the_statement_is_refused_otherwise(wanted):
    for given in TYPES:
        app = app_with(given, wanted)
        if given == wanted or given in TAKES.get(wanted, []):
            app.sql("INSERT INTO b SELECT x FROM a")
            continue
        with pytest.raises(SqlError) as caught:
            app.sql("INSERT INTO b SELECT x FROM a")
        assert f"column y of table b is {wanted}, and the query gives {given}" in str(caught.value)
        assert f"CAST(x AS {wanted})" in str(caught.value)


async def written(column, query, tmp_path):
    app = App("written")
    app.sql(f"""
        CREATE TABLE b (y {column}) WITH ('connector' = 'files', 'path' = '{tmp_path}/out', 'format' = 'parquet');
        INSERT INTO b {query};
    """)
    await app.run()
    read = App("read")
    rows = read.sql(
        f"CREATE TABLE c (y {column}) WITH ('connector' = 'files', 'path' = '{tmp_path}/out', 'format' = 'parquet');"
        "SELECT y FROM c"
    )
    return rows.materialize().collect()["y"].to_pylist()


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("column", "query", "expected"),
    [
        ("DECIMAL(4, 1)", "SELECT CAST(2.25 AS DECIMAL(5, 2))", Decimal("2.3")),
        ("BIGINT", "VALUES 1", 1),
        ("DOUBLE", "SELECT CAST(3 AS DECIMAL(3, 0))", 3.0),
        ("DATE", "SELECT TIMESTAMP '2024-05-17 12:30:00'", datetime.date(2024, 5, 17)),
    ],
)
async def test_what_a_column_takes_is_cast(column, query, expected, tmp_path):
    assert await written(column, query, tmp_path) == [expected]


def test_a_double_is_not_cut_off_in_a_column_of_whole_numbers():
    app = app_with("DOUBLE", "BIGINT")
    with pytest.raises(SqlError, match="column y of table b is BIGINT, and the query gives DOUBLE"):
        app.sql("INSERT INTO b SELECT x * 2 FROM a")
    app.sql("INSERT INTO b SELECT CAST(x * 2 AS BIGINT) FROM a")


def test_the_results_of_functions_have_the_types_of_flink():
    """So that texts for Flink, which insert them into columns of these types, are taken."""
    app = App("types")
    app.sql("""
        CREATE TABLE a (t TINYINT, m SMALLINT, i INT, g BIGINT, f FLOAT, d DOUBLE, e DECIMAL(5, 2), s STRING,
            ts TIMESTAMP(3), tags ARRAY<STRING>)
            WITH ('connector' = 'files', 'path' = 'a.jsonl', 'format' = 'json');
    """)
    wanted = {
        "1": "INT",
        "-2147483648": "INT",
        "2147483648": "BIGINT",
        "t + 1": "INT",
        "m * 1000": "INT",
        "i + 1": "INT",
        "g + 1": "BIGINT",
        "i % 10": "INT",
        "MOD(m, i)": "INT",
        "m / 2": "INT",
        "f + 1": "FLOAT",
        "f * i": "FLOAT",
        "f * g": "FLOAT",
        "d + i": "DOUBLE",
        "f * e": "DOUBLE",
        "CHAR_LENGTH(s)": "INT",
        "POSITION('x' IN s)": "INT",
        "CARDINALITY(tags)": "INT",
        "YEAR(ts)": "BIGINT",
        "TIMESTAMPDIFF(DAY, ts, ts)": "BIGINT",  # longer than in Flink
        "ABS(m)": "SMALLINT",
        "SIGN(m)": "SMALLINT",
        "POWER(i, 2)": "DOUBLE",
        "COALESCE(m, 0)": "INT",
        "CASE WHEN t = 1 THEN 1 ELSE 0 END": "INT",
        "GREATEST(m, 7)": "INT",
        "CEIL(e)": "DECIMAL(5, 0)",
        "FLOOR(e)": "DECIMAL(5, 0)",
        "ROUND(e)": "DECIMAL(4, 0)",
        "ROUND(e, 1)": "DECIMAL(5, 1)",
        "ROUND(e, 2)": "DECIMAL(5, 2)",
        "ROUND(i, -1)": "INT",
    }
    for text, type in wanted.items():
        app.sql(f"CREATE VIEW v AS SELECT {text} AS x FROM a")
        assert app.sql("DESCRIBE v")["type"].to_pylist() == [type], text
        app.sql("DROP VIEW v")
    app.sql("CREATE VIEW w AS SELECT AVG(i) AS i, AVG(m) AS m, AVG(g) AS g, MAX(t) AS t FROM a")
    assert app.sql("DESCRIBE w")["type"].to_pylist() == ["INT", "SMALLINT", "BIGINT", "TINYINT"]
