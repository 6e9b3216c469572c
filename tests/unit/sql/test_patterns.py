"""MATCH_RECOGNIZE: the answers of small tables that a reader can check by eye."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sabot import App, files
from sabot.sql.syntax.text import SqlError

PRICES = {"x": [10, 8, 7, 9, 11, 6, 12], "y": [5, 5, 6, 4, 3, 8, 9]}


@pytest.fixture
def app(tmp_path):
    rows = [
        {"k": key, "p": price, "ts": 1_700_000_000_000 + 1000 * i}
        for key, prices in PRICES.items()
        for i, price in enumerate(prices)
    ]
    rows.sort(key=lambda row: row["ts"])
    schema = pa.schema([("k", pa.string()), ("p", pa.int64()), ("ts", pa.timestamp("ms"))])
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "t.parquet")
    app = App("patterns")
    app.register("t", app.stream(files(str(tmp_path / "t.parquet")), time="ts"))
    return app


def matches(app, text):
    return sorted(tuple(row.values()) for row in app.sql(text).collect().to_pylist())


def clause(pattern, measures, define, *, skip="", within="", order="ts"):
    return (
        f"SELECT * FROM t MATCH_RECOGNIZE (PARTITION BY k ORDER BY {order} MEASURES {measures} ONE ROW PER MATCH {skip} "
        f"PATTERN ({pattern}) {within} DEFINE {define}) AS m"
    )


FALL = "B AS LAST(B.p, 1) IS NULL OR B.p < LAST(B.p, 1), C AS C.p > LAST(B.p)"


def test_a_fall_and_a_rise(app):
    text = clause(
        "A B+ C",
        "A.p AS before, LAST(B.p) AS least, FIRST(C.p) AS after, COUNT(B.p) AS n",
        "A AS A.p IN (6, 10), B AS B.p < A.p, C AS C.p > A.p",
    )
    assert matches(app, text) == [("x", 10, 9, 11, 3), ("y", 6, 3, 8, 2)]


def test_a_row_is_compared_with_the_row_before_it(app):
    text = clause("A B+ C", "A.p AS a, LAST(B.p) AS least, AVG(B.p) AS mean, SUM(B.p) AS total, C.p AS c", FALL)
    assert matches(app, text) == [
        ("x", 10, 7, 7, 15, 9),
        ("x", 11, 6, 6, 6, 12),
        ("y", 4, 3, 3, 3, 8),
        ("y", 5, 5, 5, 5, 6),
    ]


def test_skip_and_within(app):
    rises = "B AS B.p > A.p"
    text = clause("A B", "A.p AS a, B.p AS b", rises, skip="AFTER MATCH SKIP TO NEXT ROW")
    assert matches(app, text) == [("x", 6, 12), ("x", 7, 9), ("x", 9, 11), ("y", 3, 8), ("y", 5, 6), ("y", 8, 9)]
    text = clause("A B", "A.p AS a, B.p AS b", rises, skip="AFTER MATCH SKIP PAST LAST ROW")
    assert matches(app, text) == [("x", 6, 12), ("x", 7, 9), ("y", 3, 8), ("y", 5, 6)]
    for within, found in (("'1' SECOND", 0), ("'1.001' SECOND", 4)):
        assert len(matches(app, clause("A B", "A.p AS a", rises, within=f"WITHIN INTERVAL {within}"))) == found


def test_the_results_are_grouped_and_joined_like_others(app):
    inner = clause("A B", "B.p - A.p AS step, MATCH_ROWTIME() AS at", "B AS B.p > A.p").removeprefix("SELECT * FROM ")
    assert matches(app, f"SELECT m.k, m.step FROM {inner} WHERE m.step > 4") == [("x", 6), ("y", 5)]
    window = f"TUMBLE(TABLE (SELECT * FROM {inner}), DESCRIPTOR(at), INTERVAL '1' DAY)"
    text = f"SELECT window_start, COUNT(*) AS n FROM TABLE({window}) GROUP BY window_start, window_end"
    assert [row[1] for row in matches(app, text)] == [4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (clause("A B+", "A.p AS a", "B AS B.p < A.p"), "the last variable cannot be repeated greedily"),
        (clause("A (B | C)", "A.p AS a", "B AS B.p < A.p"), "a sequence of variables"),
        (clause("A B A", "A.p AS a", "B AS B.p < A.p"), "A is in the pattern twice"),
        (clause("A B", "A.p AS a", "C AS C.p < A.p"), "the pattern has no variable C"),
        (clause("A B??", "p AS a", "B AS B.p < A.p"), "has the variable before it"),
        (clause("A B", "A.p AS a", "B AS B.q < A.p"), 'there is no column "q"'),
        (clause("A B", "A.p + 1, B.p AS b", "B AS B.p < A.p"), "a measure needs a name"),
        (clause("A B", "A.p AS a", "B AS B.p < A.p", order="p"), "needs ORDER BY the event time"),
        (
            clause("A B", "A.p AS a", "B AS B.p < A.p", skip="AFTER MATCH SKIP TO LAST B"),
            "SKIP TO LAST is not supported",
        ),
        (clause("A B+ C", "A.p AS a", "B AS B.p < LAST(B.p, 1)"), "the row before is NULL for the first row of B"),
        (clause("A B+ C", "A.p AS a", "C AS C.p < SUM(B.p)"), "SUM of B is not supported in DEFINE"),
        (clause("A B C", "A.p AS a", "C AS C.p < A.p + B.p"), "cannot compare a row with rows before it"),
        (clause("A+ B", "A.p AS a", "B AS B.p < LAST(A.p, 2)"), "with the offset 2"),
    ],
)
def test_what_the_patterns_of_the_engine_cannot_do_is_refused(app, text, message):
    with pytest.raises(SqlError, match=message):
        app.sql(text)


def test_measures_take_rows_by_their_number_and_count_all_rows(app):
    text = clause(
        "A B+ C",
        "FIRST(B.p, 1) AS second, LAST(B.p, 1) AS last_but_one, LAST(B.p, 9) AS none, COUNT(*) AS n, p AS last",
        "A AS p IN (6, 10), B AS B.p < A.p, C AS p > A.p",
    )
    assert matches(app, text) == [("x", 7, 7, None, 5, 11), ("y", 3, 4, None, 4, 8)]
