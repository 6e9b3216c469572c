"""MATCH_RECOGNIZE: the answers of small tables that a reader can check by eye."""

import re
from decimal import Decimal

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
        (clause("A B", "A.p AS a", "C AS C.p < A.p"), "the pattern has no variable C"),
        (clause("A B", "A.p AS a", "B AS B.q < A.p"), 'there is no column "q"'),
        (clause("A B", "A.p + 1, B.p AS b", "B AS B.p < A.p"), "a measure needs a name"),
        (clause("A B", "A.p AS a", "B AS B.p < A.p", order="p"), "needs ORDER BY the event time"),
        (
            clause("A B", "A.p AS a", "B AS B.p < A.p", skip="AFTER MATCH SKIP TO LAST D"),
            "the pattern has no variable D",
        ),
        (clause("A B", "A.p AS a", "B AS B.p < A.p", skip="AFTER MATCH SKIP TO FIRST A"), "begin with the same row"),
        (clause("A B", "A.p AS a", "A AS A.p < B.p"), "no step of this name comes before"),
        (clause("A B", "A.p AS a", "B AS SUM(A.p + B.p) > 3"), "SUM takes columns of one variable"),
        (clause("A B", "A.p AS a", "B AS SUM(DISTINCT A.p) > 3"), "has no DISTINCT"),
        (clause("A B", "A.p AS a", "B AS LAST(A.p, B.p) > 3"), "LAST takes a number of rows"),
        (clause("A B", "A.p AS a", "B AS SUM(A.p, 1) > 3"), "SUM takes one column"),
        (clause("A? B*", "A.p AS a", "B AS B.p < 3"), "would match without any row"),
        (clause("A B", "A.p AS a", "B AS SUM(A.k) > 3"), "SUM of STRING"),
        (clause("A B", "A.p AS a", "B AS UPPER(A.k || B.k) = 'XX'"), "over several rows"),
    ],
)
def test_what_a_pattern_cannot_be_is_refused(app, text, message):
    with pytest.raises(SqlError, match=message):
        app.sql(text)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (clause("A B", "PREV(B.p) AS x", "B AS B.p > 1"), r":70: there is no function PREV", r"LAST\(A.x, 1\)"),
        (clause("A B", "B.p AS x", "B AS B.p > NEXT(B.p)"), "there is no function NEXT", "PATTERN"),
        (clause("A B", "CLASSIFIER() AS x", "B AS B.p > 1"), "there is no function CLASSIFIER", "COUNT"),
        (clause("A B", "MATCH_NUMBER() AS x", "B AS B.p > 1"), "there is no function MATCH_NUMBER", "ROW_NUMBER"),
        (clause("A B", "FINAL LAST(B.p) AS x", "B AS B.p > 1"), "FINAL is not supported", "leave it out"),
        (clause("A B", "B.p AS x", "B AS RUNNING LAST(B.p) > 1"), "RUNNING is not supported", "leave it out"),
        (clause("A B", "B.p AS x", "B AS B.p > 1", within="SUBSET S = (A, B)"), "SUBSET is", "over all rows"),
        (clause("A B", "B.p AS x", "B AS B.p > 1").replace("ONE ROW", "ALL ROWS"), "ALL ROWS PER MATCH is", "ONE ROW"),
        (clause("A B", "B.p AS x", "B AS B.p > 1", skip="SHOW EMPTY MATCHES"), "SHOW EMPTY MATCHES", "leave it out"),
        (clause("PERMUTE(A, B)", "B.p AS x", "B AS B.p > 1"), "PERMUTE is not supported", r"\(A B \| B A\)"),
        (clause("^A B", "B.p AS x", "B AS B.p > 1"), "anchors are not supported", "begin at any row"),
        (clause("A {- B -}", "B.p AS x", "B AS B.p > 1"), "\\{- … -\\} is not supported", "the variable alone"),
    ],
)
def test_what_flink_does_not_have_either_is_refused_with_a_way_out(app, text, message, hint):
    with pytest.raises(SqlError, match=message) as caught:
        app.sql(text)
    assert "^" in str(caught.value)
    assert re.search(f"hint: .*{hint}", str(caught.value))


def test_measures_take_rows_by_their_number_and_count_all_rows(app):
    text = clause(
        "A B+ C",
        "FIRST(B.p, 1) AS second, LAST(B.p, 1) AS last_but_one, LAST(B.p, 9) AS none, COUNT(*) AS n, p AS last",
        "A AS p IN (6, 10), B AS B.p < A.p, C AS p > A.p",
    )
    assert matches(app, text) == [("x", 7, 7, None, 5, 11), ("y", 3, 4, None, 4, 8)]


def prices_of(app, prices, text):
    """The rows of a text over prices that come one a second, without their times' dates."""
    ticks = [{"k": "x", "p": price, "ts": 1_700_000_000_000 + 1000 * i} for i, price in enumerate(prices)]
    schema = pa.schema([("k", pa.string()), ("p", pa.int64()), ("ts", pa.timestamp("ms"))])
    stream = app.stream(pa.Table.from_pylist(ticks, schema), time="ts")
    return [
        tuple(row.values()) for row in app.sql(text.replace("FROM t", "FROM ticks"), ticks=stream).collect().to_pylist()
    ]


def test_the_examples_of_flinks_documentation(app):
    prices = [12, 17, 13, 16, 25, 2, 4, 10, 15, 25, 25, 30]
    text = clause("A+ B", "COUNT(A.p) AS n, AVG(A.p) AS mean", "A AS AVG(A.p) < 15")
    assert prices_of(app, prices, text) == [("x", 4, 14), ("x", 6, 13)]
    for pattern, last in (("A B* C", [16]), ("A B*? C", [13, 16])):
        text = clause(pattern, "C.p AS last", "A AS A.p > 10, B AS B.p < 15, C AS C.p > 12")
        assert [row[1] for row in prices_of(app, [10, 11, 12, 13, 14, 16], text)][: len(last)] == last
    falls = "D AS (LAST(D.p, 1) IS NULL AND D.p < S.p) OR D.p < LAST(D.p, 1), U AS U.p > LAST(D.p, 1)"
    text = clause(
        "S D+ U", "S.p AS start, LAST(D.p) AS bottom, LAST(U.p) AS top", falls, skip="AFTER MATCH SKIP TO LAST U"
    )
    assert prices_of(app, [12, 17, 19, 21, 25, 18, 15, 14, 24, 25, 19], text) == [("x", 25, 14, 24)]


@pytest.mark.parametrize(
    ("pattern", "define", "found"),
    [
        ("A+ B", "A AS A.p < 5", [(1, 6), (2, 9)]),  # the rows 3 and 4 at the end all fit A, so none is left for B
        ("A B+ C", "B AS B.p > 1, C AS C.p > 5", []),  # B takes each row for C
        ("A B{1,2} C", "B AS B.p > 1, C AS C.p > 5", [(1, 9)]),  # two rows are the most
        ("A B* C", "A AS A.p = 1, B AS B.p < 7, C AS C.p > 5", [(1, 9)]),  # also where B could have no row
        ("A B? C", "A AS A.p = 1, B AS B.p < 9, C AS C.p > 1", [(1, 6)]),  # an optional one is not greedy
        ("A B+? C", "B AS B.p > 1, C AS C.p > 5", [(1, 9)]),
        ("A (B B)+ C", "B AS B.p > 1, C AS C.p > 5", [(1, 9)]),  # a group goes back, as in standard SQL
        ("A B+", "A AS A.p = 2, B AS B.p > 2", [(2, 4)]),
    ],
)
def test_a_greedy_variable_takes_each_row_that_it_can_take(app, pattern, define, found):
    text = clause(pattern, "FIRST(p) AS first, LAST(p) AS last", define)
    assert [row[1:] for row in prices_of(app, [1, 6, 2, 9, 3, 4], text)] == found


def test_matches_that_wait_for_an_earlier_one_are_given_at_the_end(app):
    """The rows below 90 go on with the match of 90 until the input ends, which is not complete without a row above it."""
    define = "D AS D.p < S.p, U AS U.p > S.p"
    text = clause("S D+ U", "S.p AS start, U.p AS top", define)
    assert prices_of(app, [90, 5, 3, 7, 6, 4, 8], text) == [("x", 5, 7), ("x", 6, 8)]


def test_decimals_of_several_rows_are_compared(app):
    amounts = [Decimal(each) for each in ("1.00", "2.50", "2.49", "0.10", "0.20", "0.30")]
    times = [1_700_000_000_000 + 1000 * i for i in range(len(amounts))]
    table = pa.table(
        {
            "k": ["x"] * len(amounts),
            "p": pa.array(amounts, pa.decimal128(12, 2)),
            "ts": pa.array(times, pa.timestamp("ms")),
        }
    )
    text = clause(
        "A B{2}",
        "A.p AS a, LAST(B.p) AS b",
        "B AS B.p > COALESCE(LAST(B.p, 1), LAST(A.p)) AND LAST(A.p) < 0.15",
    )
    rows = app.sql(text.replace("FROM t", "FROM amounts"), amounts=app.stream(table, time="ts")).collect().to_pylist()
    assert [(row["a"], row["b"]) for row in rows] == [(Decimal("0.10"), Decimal("0.30"))]


def test_groups_alternatives_and_every_skip(app):
    prices = [1, 5, 2, 6, 9, 3, 7]
    define = "L AS L.p < 4, H AS H.p > 4, T AS T.p > 8"
    text = clause("(L H)+ T", "FIRST(L.p) AS first, LAST(L.p) AS last, COUNT(*) AS n, MAX(H.p) AS high", define)
    assert prices_of(app, prices, text) == [("x", 1, 2, 5, 6)]
    text = clause("L (H | T){1,2}", "L.p AS low, LAST(p) AS last, COUNT(T.p) AS t", define)
    assert prices_of(app, prices, text) == [("x", 1, 5, 0), ("x", 2, 9, 0), ("x", 3, 7, 0)]
    text = clause("L (T | H){1,2}", "L.p AS low, LAST(p) AS last, COUNT(T.p) AS t", define)
    assert prices_of(app, prices, text) == [("x", 1, 5, 0), ("x", 2, 9, 1), ("x", 3, 7, 0)]
    found = {}
    for skip in ("PAST LAST ROW", "TO NEXT ROW", "TO FIRST H", "TO LAST H", "TO H"):
        text = clause(
            "L? H+",
            "FIRST(p) AS first, LAST(p) AS last",
            define.removesuffix(", T AS T.p > 8"),
            skip=f"AFTER MATCH SKIP {skip}",
        )
        found[skip] = [row[1:] for row in prices_of(app, prices, text)]
    assert found["PAST LAST ROW"] == [(1, 5), (2, 9), (3, 7)]
    assert found["TO NEXT ROW"] == [(1, 5), (5, 5), (2, 9), (6, 9), (9, 9), (3, 7), (7, 7)]
    assert found["TO FIRST H"] == [(1, 5), (5, 5), (2, 9), (6, 9), (9, 9), (3, 7), (7, 7)]
    assert found["TO LAST H"] == found["TO H"] == [(1, 5), (5, 5), (2, 9), (9, 9), (3, 7), (7, 7)]


def test_conditions_over_several_rows(app):
    prices = [3, 4, 8, 1, 13, 2, 20]

    def sums(condition, measures="FIRST(A.p) AS a, C.p AS c"):
        text = clause("A B C", measures, f"C AS {condition}", skip="AFTER MATCH SKIP TO NEXT ROW")
        return [row[1:] for row in prices_of(app, prices, text)]

    assert sums("C.p > A.p + B.p") == [(3, 8), (8, 13), (13, 20)]
    assert sums("NOT (C.p > A.p OR C.p > B.p)") == [(4, 1)]
    assert sums("C.p = LAST(B.p, 0) * 2 OR C.p < FIRST(A.p)") == [(3, 8), (4, 1)]
    assert sums("SUM(p) = 15 OR COUNT(*) > 3") == [(3, 8)]
    assert sums("MAX(B.p) - MIN(A.p) = -7 AND LAST(A.p, 1) IS NULL") == [(8, 13)]
    assert sums("C.p BETWEEN A.p AND B.p * 100", "A.p * 10 + C.p AS a") == [(38,), (93,), (12,), (150,)]
    assert sums("CASE WHEN A.p > 5 THEN C.p > 5 ELSE FALSE END") == [(8, 13), (13, 20)]


@pytest.mark.slow  # half a second of a core
@pytest.mark.parametrize(("compared", "turned"), [("<", ">"), ("<=", ">="), (">", "<"), (">=", "<=")])
def test_a_mean_is_compared_as_the_whole_number_that_it_is(app, compared, turned):
    """AVG is cut off towards zero: that of -3 and 2 is 0. A comparison with a constant is bound without a division, and one of
    AVG + 0 with it."""
    prices, matched = [-7, 2, 3, 4, -3, 2, 0, 1, 1, 0, 5], 0
    for bound in (0, 1, 3):
        found = []
        for condition in (
            f"AVG(B.p) {compared} {bound}",
            f"AVG(B.p) + 0 {compared} {bound}",
            f"{bound} {turned} AVG(B.p)",
        ):
            text = clause("A B B", "A.p AS a, AVG(B.p) AS b", f"B AS {condition}", skip="AFTER MATCH SKIP TO NEXT ROW")
            found.append(prices_of(app, prices, text))
        assert found[0] == found[1] == found[2], bound
        matched += len(found[0])
    assert matched
