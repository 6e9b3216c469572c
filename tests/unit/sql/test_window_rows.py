"""Rows of window tables that an inner query passes on, and an outer one groups by their windows."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest

from sabot import App, Stream
from sabot.api.nodes.changes import GroupAggregate
from sabot.api.nodes.node import walk
from sabot.sql.scope import node_of
from sabot.sql.syntax.text import SqlError

SCHEMA = {"id": "int64", "k": "int64", "ts": "timestamp[ms]"}
ROWS = [{"id": i, "k": i % 3, "ts": i * 700} for i in range(100)]


@pytest.fixture
def app() -> App:
    app = App("rows")
    app.register("t", app.stream(ROWS, schema=SCHEMA, time="ts"))
    return app


HOP = "TABLE(HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '10' SECOND))"
CUMULATE = "TABLE(CUMULATE(TABLE t, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '15' SECOND))"
TUMBLE = "TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECOND))"


def ends(window: str, ts: int) -> list[int]:
    if window == TUMBLE:
        return [ts // 10_000 * 10_000 + 10_000]
    if window == HOP:
        return [ts // 5_000 * 5_000 + 5_000, ts // 5_000 * 5_000 + 10_000]
    return [end for end in range(ts // 15_000 * 15_000 + 5_000, ts // 15_000 * 15_000 + 15_001, 5_000) if end > ts]


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("window", [TUMBLE, HOP, CUMULATE], ids=["tumble", "hop", "cumulate"])
@pytest.mark.parametrize(
    "query",
    [
        "SELECT window_end AS e, SUM(half) AS n FROM (SELECT id * 2 AS half, ts, window_start, window_end FROM {} WHERE k <> 1) "
        "GROUP BY window_start, window_end",
        "SELECT e, SUM(half) AS n FROM (SELECT * FROM (SELECT window_end AS e, window_start AS s, id * 2 AS half, ts, k FROM {}) x "
        "WHERE k <> 1) y GROUP BY s, e",
        "SELECT e, SUM(half) AS n FROM (SELECT window_end AS e, window_start AS s, id * 2 AS half, ts, k FROM {}) x "
        "WHERE k <> 1 AND e > s GROUP BY s, e",
    ],
    ids=["grouped", "twice", "filtered by bounds"],
)
def test_rows_of_an_inner_query_are_grouped_by_their_windows(app, window, query):
    expected: Counter[int] = Counter()
    for row in ROWS:
        for end in ends(window, row["ts"]):
            expected[end] += row["id"] * 2 if row["k"] != 1 else 0
    stream = app.sql(query.format(window))
    found = stream.materialize().collect().to_pylist()
    assert {int(row["e"].replace(tzinfo=UTC).timestamp() * 1000): row["n"] for row in found} == {
        end: n for end, n in expected.items() if n
    }


GROUPED = f"SELECT k, window_start, window_end, window_time, COUNT(*) AS n FROM {TUMBLE} GROUP BY k, window_start, window_end, window_time"
BOUNDS = [
    f"SELECT window_start, window_end, window_time FROM {HOP}",
    "SELECT TUMBLE_END(ts, INTERVAL '10' SECOND) AS e FROM t GROUP BY TUMBLE(ts, INTERVAL '10' SECOND)",
    "SELECT window_start, window_end, window_time FROM w",
    "SELECT window_end - INTERVAL '1' HOUR AS e, FLOOR(window_end TO DAY) AS d, window_end + INTERVAL '1' MONTH AS m FROM w",
    "SELECT CASE WHEN n > 1 THEN window_end END AS c, COALESCE(window_end, TIMESTAMP '2024-01-01 00:00:00') AS d FROM w",
    "SELECT MAX(window_end) AS e, MIN(window_start) AS s, LAST_VALUE(window_time) AS t FROM w GROUP BY k",
    "SELECT window_end FROM (SELECT window_start, window_end, SUM(n) AS n FROM w GROUP BY window_start, window_end)",
    "SELECT window_end FROM w GROUP BY window_start, window_end HAVING window_end > TIMESTAMP '1970-01-01 00:00:10'",
    f"SELECT window_end FROM (SELECT * FROM {HOP}) GROUP BY window_end",
    "SELECT LAG(window_end) OVER (PARTITION BY k ORDER BY window_time) AS l, "
    "LAG(window_end) OVER (PARTITION BY k ORDER BY window_time) - INTERVAL '1' SECOND AS m FROM w",
    "SELECT window_end FROM w UNION ALL SELECT ts FROM t",
    "SELECT (SELECT MAX(window_end) FROM w) AS e FROM t",
    "SELECT w.window_end FROM t JOIN w ON t.k = w.k AND t.ts BETWEEN w.window_start AND w.window_end",
    "SELECT a.window_end FROM w a JOIN w b ON a.window_end = b.window_end AND a.window_start = b.window_start",
    "SELECT ts FROM t JOIN w ON t.ts = w.window_end AND t.k = w.k",
    "SELECT ts FROM t WHERE ts IN (SELECT window_end FROM w)",
    "SELECT e FROM w MATCH_RECOGNIZE (PARTITION BY k ORDER BY window_time MEASURES LAST(A.window_end) AS e "
    "ONE ROW PER MATCH AFTER MATCH SKIP PAST LAST ROW PATTERN (A) DEFINE A AS A.n > 0)",
]


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("query", BOUNDS)
def test_bounds_of_windows_of_a_timestamp_are_timestamps(app, query):
    """They were TIMESTAMP_LTZ as long as the session had no time zone, or could not stand beside a TIMESTAMP."""
    app.sql(f"CREATE VIEW w AS {GROUPED}")
    columns = app.sql(query).materialize().collect().schema
    assert [str(each.type) for each in columns] == ["timestamp[ms]"] * len(columns)


def test_a_list_of_bounds_has_timestamps_and_a_bound_beside_an_instant_is_one(app):
    app.sql(f"CREATE VIEW w AS {GROUPED}")
    (lists,) = app.sql("SELECT ARRAY_AGG(window_end) AS a FROM w WHERE k = 0").schema
    assert lists.type.value_type == pa.timestamp("ms")
    query = "SELECT CAST(window_end AS TIMESTAMP_LTZ(3)) AS a, GREATEST(window_end, TO_TIMESTAMP_LTZ(0, 3)) AS b FROM w"
    assert [str(each.type) for each in app.sql(query).schema] == ["timestamp[ms, tz=UTC]"] * 2
    assert app.sql("DESCRIBE w")["type"].to_pylist() == ["BIGINT", *["TIMESTAMP(3)"] * 3, "BIGINT"]


def test_bounds_of_windows_of_an_instant_are_instants():
    app = App("instants")
    rows = app.stream([{"ts": 5}], schema={"ts": "timestamp[ms, tz=UTC]"}, time="ts")
    query = "SELECT window_end FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND)) GROUP BY window_start, window_end"
    (column,) = app.sql(query, t=rows).schema
    assert column.type == pa.timestamp("ms", tz="UTC")


def test_a_bound_that_is_the_computed_key_of_a_ranking_is_a_timestamp(app):
    app.sql(f"CREATE VIEW w AS {GROUPED}")
    minute = "FLOOR(window_end TO MINUTE)"
    ranked = f"SELECT {minute} AS m, k, ROW_NUMBER() OVER (PARTITION BY {minute} ORDER BY k, window_end) AS r FROM w"
    found = app.sql(f"SELECT m, k FROM ({ranked}) WHERE r = 1").materialize().collect()
    assert found.schema.field("m").type == pa.timestamp("ms")
    assert {row["m"].second for row in found.to_pylist()} == {0}


def test_a_window_before_an_hour_that_the_clock_leaves_out_ends_behind_it():
    """On 31 March 2024 the clock of Berlin went from 02:00 to 03:00, at 01:00 in UTC."""
    app = App("spring")
    begin = int(datetime(2024, 3, 31, tzinfo=UTC).timestamp() * 1000)
    times = [{"ts": begin + 600_000 * n} for n in range(18)]
    rows = app.stream(times, schema={"ts": "timestamp[ms, tz=UTC]"}, time="ts")
    app.sql("SET 'table.local-time-zone' = 'Europe/Berlin'")
    query = (
        "SELECT DATE_FORMAT(window_start, 'HH:mm') AS s, DATE_FORMAT(window_end, 'HH:mm') AS e, COUNT(*) AS n "
        "FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '{}' MINUTE)) GROUP BY window_start, window_end"
    )
    found = [tuple(row.values()) for row in app.sql(query.format(60), t=rows).materialize().collect().to_pylist()]
    assert sorted(found) == [("01:00", "03:00", 6), ("03:00", "04:00", 6), ("04:00", "05:00", 6)]
    found = [tuple(row.values()) for row in app.sql(query.format(30), t=rows).materialize().collect().to_pylist()]
    assert sorted(found)[:3] == [("01:00", "01:30", 3), ("01:30", "03:00", 3), ("03:00", "03:30", 3)]


def test_the_state_of_a_query_over_bounds_of_windows_has_them_in_utc(app):
    """So that a checkpoint of a program from before they were shown as TIMESTAMP goes on."""
    app.sql(f"CREATE VIEW w AS {GROUPED}")
    stream = app.sql("SELECT k, MAX(window_end) AS m FROM w GROUP BY k")
    (kept,) = (node for node in walk([node_of(stream)]) if isinstance(node, GroupAggregate))
    assert Stream(app, kept).schema.field("m").type == pa.timestamp("ms", tz="UTC")
    assert stream.schema.field("m").type == pa.timestamp("ms")


@pytest.mark.parametrize("window", [TUMBLE, HOP, CUMULATE], ids=["tumble", "hop", "cumulate"])
def test_results_of_such_windows_are_not_updated(app, window):
    query = f"SELECT window_end, COUNT(*) FROM (SELECT id, ts, window_start, window_end FROM {window}) GROUP BY window_start, window_end"
    assert app.sql(f"EXPLAIN CHANGELOG {query}").endswith("rows are appended, and never change")


def test_sessions_of_an_inner_query_are_grouped(app):
    session = "TABLE(SESSION(TABLE (SELECT * FROM t WHERE k = 0 OR id < 3), DESCRIPTOR(ts), INTERVAL '1' SECOND))"
    inner = f"SELECT id, ts, window_start, window_end FROM {session}"
    query = f"SELECT window_start, window_end, COUNT(*) AS n FROM ({inner}) GROUP BY window_start, window_end"
    assert sorted(app.sql(query).collect()["n"].to_pylist()) == [1] * 32 + [4]
    with pytest.raises(SqlError, match="it would change which rows are together"):
        app.sql(query.replace("FROM (", "FROM (SELECT * FROM (").replace(") GROUP", ") WHERE id > 3) GROUP"))


@pytest.mark.parametrize(
    ("gap", "query"),
    [
        ("'2.1'", "SELECT k, COUNT(*) AS n FROM {} GROUP BY k, window_start, window_end"),
        ("'2.101'", "SELECT k, COUNT(*) AS n FROM {} GROUP BY window_start, k, window_end"),
        (
            "'2.101'",
            "SELECT who, COUNT(*) AS n FROM (SELECT k AS who, ts, window_start AS s, window_end AS e FROM {}) GROUP BY s, e, who",
        ),
    ],
    ids=["exactly the gap", "less than the gap", "of an inner query"],
)
def test_sessions_of_each_key_end_when_a_row_comes_a_whole_gap_later(app, gap, query):
    """The rows of each key are 2.1 seconds apart. In Flink those that are exactly a gap apart are together."""
    session = f"TABLE(SESSION(TABLE t PARTITION BY k, DESCRIPTOR(ts), INTERVAL {gap} SECOND))"
    found = Counter(tuple(row.values()) for row in app.sql(query.format(session)).collect().to_pylist())
    each = {0: 34, 1: 33, 2: 33}
    assert found == ({(k, 1): n for k, n in each.items()} if gap == "'2.1'" else {(k, n): 1 for k, n in each.items()})


def test_a_key_of_sessions_is_a_column_of_the_table(app):
    with pytest.raises(SqlError, match="PARTITION BY of SESSION takes columns"):
        app.sql("SELECT COUNT(*) FROM SESSION(TABLE t PARTITION BY k + 1, DESCRIPTOR(ts), INTERVAL '1' SECOND)")
    with pytest.raises(SqlError, match='there is no column "x"'):
        app.sql("SELECT COUNT(*) FROM SESSION(TABLE t PARTITION BY x, DESCRIPTOR(ts), INTERVAL '1' SECOND)")


def test_rows_without_a_group_and_joined_rows_have_each_of_their_windows(app):
    rows = app.sql(
        f"SELECT id, e FROM (SELECT id, ts, window_start, window_end AS e FROM {HOP}) WHERE id < 2"
    ).collect()
    assert rows.num_rows == 4
    joined = app.sql(
        f"SELECT a.id, a.window_end FROM (SELECT id, ts, window_start, window_end FROM {HOP}) a JOIN t ON a.id = t.id WHERE a.id < 2"
    )
    assert joined.collect().num_rows == 4
    count = app.sql(f"SELECT COUNT(*) AS n FROM (SELECT id, ts, window_start, window_end FROM {HOP})")
    assert count.materialize().collect()["n"].to_pylist() == [200]


def moment(second):
    return datetime(2024, 1, 1) + timedelta(seconds=second)


LEFT = [(1, 1), (2, 2), (70, 3), (71, None), (130, 1)]
RIGHT = [(3, 2), (72, 3), (80, 1), (81, None)]


@pytest.mark.parametrize("how", ["l.n IN", "l.n NOT IN", "EXISTS", "NOT EXISTS"])
@pytest.mark.parametrize(
    ("window", "size"),
    [
        ("TUMBLE(TABLE {}, DESCRIPTOR(ts), INTERVAL '1' MINUTE)", 60),
        ("HOP(TABLE {}, DESCRIPTOR(ts), INTERVAL '1' MINUTE, INTERVAL '2' MINUTE)", 120),
    ],
)
def test_rows_of_a_window_that_have_a_partner_in_the_same_window(how, window, size):
    """As in Flink's page on window joins, beside a walk over all pairs. NOT IN of a window with a NULL has no rows."""
    app, schema = App("semi"), {"ts": "timestamp[ms]", "n": "int64"}
    left, right = (
        app.stream([{"ts": moment(second), "n": n} for second, n in rows], schema=schema, time="ts")
        for rows in (LEFT, RIGHT)
    )
    equal = "" if "IN" in how else " AND l.n = r.n"
    found = app.sql(
        f"SELECT ts, window_start FROM (SELECT * FROM TABLE({window.format('a')})) AS l WHERE {how} (SELECT n FROM "
        f"(SELECT * FROM TABLE({window.format('b')})) AS r "
        f"WHERE l.window_start = r.window_start AND l.window_end = r.window_end{equal})",
        a=left,
        b=right,
    ).materialize()
    expected = set()
    for second, n in LEFT:
        for start in range(second // 60 * 60, second - size, -60):
            there = [other for at, other in RIGHT if start <= at < start + size]
            has = n is not None and n in there
            unknown = "IN" in how and there and (n is None or None in there)
            if has if "NOT" not in how else not has and not unknown:
                expected.add((moment(second), moment(start)))
    assert {(row["ts"], row["window_start"]) for row in found.collect().to_pylist()} == expected
    assert expected


@pytest.mark.parametrize(
    ("zone", "size", "starts", "ends"),
    [
        ("UTC", "DAY", ["2024-03-29 00:00:00", "2024-03-30 00:00:00"], ["2024-03-30 00:00:00", "2024-03-31 00:00:00"]),
        ("Asia/Shanghai", "DAY", ["2024-03-30 00:00:00", "2024-03-31 00:00:00"], ["2024-03-31 00:00:00", "2024-04-01 00:00:00"]),
        ("Asia/Kolkata", "HOUR", ["2024-03-29 23:00:00", "2024-03-31 03:00:00"], ["2024-03-30 00:00:00", "2024-03-31 04:00:00"]),
        ("Europe/Berlin", "DAY", ["2024-03-29 00:00:00", "2024-03-30 00:00:00"], ["2024-03-30 00:00:00", "2024-03-31 00:00:00"]),
    ],
)  # fmt: skip
async def test_bounds_of_windows_are_written_on_the_clock_of_the_session(tmp_path, zone, size, starts, ends):
    """As in Flink, for which `window_start` is a TIMESTAMP(3) on that clock. A TIMESTAMP_LTZ is the same instant."""
    app = App("bounds")
    app.sql(
        f"""
        SET 'table.local-time-zone' = '{zone}';
        CREATE TABLE bounds (s TIMESTAMP(3), e TIMESTAMP(3), t TIMESTAMP(3), i TIMESTAMP_LTZ(3), x STRING, n BIGINT)
            WITH ('connector' = 'filesystem', 'path' = '{tmp_path}/bounds.json', 'format' = 'json');
        INSERT INTO bounds SELECT window_start, window_end, window_time, window_start,
                DATE_FORMAT(window_start, 'yyyy-MM-dd HH:mm:ss'), COUNT(*)
            FROM TABLE(TUMBLE(TABLE seen_at, DESCRIPTOR(ts), INTERVAL '1' {size}))
            GROUP BY window_start, window_end, window_time
        """,
        seen_at=app.stream(
            [{"ts": datetime(2024, 3, day, hour, tzinfo=UTC)} for day, hour in ((29, 18), (30, 22))],
            schema={"ts": "timestamp[ms, UTC]"},
            time="ts",
        ),
    )
    await app.run()
    rows = [json.loads(line) for line in (tmp_path / "bounds.json").read_text().splitlines()]
    assert [row["s"] for row in rows] == [row["x"] for row in rows] == starts
    assert [row["e"] for row in rows] == ends
    last = [datetime.fromisoformat(each) - timedelta(milliseconds=1) for each in ends]
    assert [datetime.fromisoformat(row["t"]) for row in rows] == last
    instants = [datetime.fromisoformat(each).replace(tzinfo=ZoneInfo(zone)) for each in starts]
    assert [datetime.fromisoformat(row["i"]) for row in rows] == instants
