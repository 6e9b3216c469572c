"""GROUP BY whose keys expire: a key that had no row for the time of `ttl=`, or STATE_TTL, starts anew."""

import asyncio
import logging
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from harness import figures

import sabot
from sabot import App, UserError
from sabot.sql.syntax.text import SqlError
from sabot.testing import BARRIER, CRASH, END, ListSink, ScriptedSource
from sabot.testing import run as run_lives
from tools.agent_tools import bounded, until

SCHEMA = pa.schema([("k", pa.string()), ("x", pa.int64()), ("ts", pa.int64())])
TTL_MS = 1000
Row = dict[str, Any]


def arrivals(seed: int) -> list[Row]:
    """Rows of ten keys, out of order by up to half a second. Gaps of a key are below, at and above TTL_MS."""
    rng = random.Random(seed)
    rows, at = [], 0
    for n in range(400):
        at += rng.choice([0, 1, 40, 125, 500, TTL_MS - 1, TTL_MS, 3 * TTL_MS]) if rng.random() < 0.3 else 20
        rows.append({"k": f"k{rng.randrange(10)}", "x": n, "ts": at})
    return sorted(rows, key=lambda row: row["ts"] + rng.randrange(500))


def expected(rows: list[Row]) -> list[Row]:
    """The result of each stretch of rows of a key without a gap of TTL_MS."""
    found: list[list[Row]] = []
    last: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["ts"]):
        stretch = last.get(row["k"])
        if stretch is None or row["ts"] - stretch[-1]["ts"] >= TTL_MS:
            stretch = last[row["k"]] = []
            found.append(stretch)
        stretch.append(row)
    return [
        {"k": rows[0]["k"], "n": len(rows), "total": sum(row["x"] for row in rows), "xs": len({r["x"] for r in rows})}
        for rows in found
    ]


@pytest.mark.one_in(4, "a tenth of a second of a core each")
@pytest.mark.parametrize("seed", range(4))
def test_each_stretch_of_a_key_is_counted_by_itself_whatever_dies(seed: int, tmp_path: Path) -> None:
    rng, rows, sink = random.Random(seed), arrivals(seed), ListSink()
    script: list[Any] = []
    while sum(map(len, script)) < len(rows):
        start = sum(map(len, script))
        script.append(pa.RecordBatch.from_pylist(rows[start : start + rng.choice([1, 7, 60])], schema=SCHEMA))
    for mark in (BARRIER, BARRIER, CRASH, BARRIER, CRASH):
        script.insert(rng.randrange(len(script)), mark)

    def build(folder: Path) -> App:
        app = App("stretches", parallelism=1 + seed % 2, checkpoint_dir=folder / "checkpoints")
        app.configure(checkpoint_interval=None)
        source = ScriptedSource([*script, END], name="rows", schema=SCHEMA)
        given = app.stream(source, time="ts", lateness="500ms")
        grouped = given.group_by("k").aggregate(
            ttl="1s", n=sabot.count(), total=sabot.sum("x"), xs=sabot.count_distinct("x")
        )
        grouped.materialize().to(sink)
        return app

    run_lives(build, tmp_path)
    key = lambda row: (row["k"], row["total"])  # noqa: E731
    assert sorted(sink.rows, key=key) == sorted(expected(rows), key=key)


async def test_a_key_that_expired_is_inserted_again_and_nothing_is_deleted() -> None:
    rows = [{"k": "a", "x": 1, "ts": 0}, {"k": "a", "x": 2, "ts": 999}, {"k": "b", "x": 3, "ts": 1998}]
    rows += [{"k": "a", "x": 4, "ts": 1999}, {"k": "b", "x": 5, "ts": 2997}]
    app, sink = App("again"), ListSink()
    given = app.stream(ScriptedSource([*([row] for row in rows), END], schema=SCHEMA), time="ts")
    given.group_by("k").aggregate(ttl="1s", total=sabot.sum("x")).changelog().select("op", "k", "total").to(sink)
    await bounded(app.run())
    assert [tuple(row.values()) for row in sink.rows] == [
        ("insert", "a", 1),
        ("update_before", "a", 1),
        ("update_after", "a", 3),
        ("insert", "b", 3),
        ("insert", "a", 4),
        ("update_before", "b", 3),
        ("update_after", "b", 8),
    ]


@pytest.mark.slow  # half a second of a core
async def test_keys_that_expired_are_no_state() -> None:
    """Each key has one row. Of 20,000 keys, those of the last second are in memory."""
    batches = [[{"k": f"k{n}", "x": n, "ts": n} for n in range(start, start + 500)] for start in range(0, 20_000, 500)]
    app, sink = App("bounded", checkpoint_interval=0.02), ListSink()
    given = app.stream(ScriptedSource(batches, schema=SCHEMA), time="ts")
    given.group_by("k").aggregate(ttl="1s", n=sabot.count(), xs=sabot.count_distinct("x")).changelog().to(sink)
    running = asyncio.ensure_future(app.run())
    await until(lambda: len(sink.rows) > 19_000, "the rows")
    (keys,) = [each for each in figures(app.statistics(), "keys") if isinstance(each, int)]
    assert 500 <= keys <= 2000
    app.request_stop()
    await bounded(running)


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda rows: rows.group_by().aggregate(ttl="1s", n=sabot.count()), "has one row for all, which never expires"),
        (
            lambda rows: rows.group_by("k").aggregate(ttl="0s", n=sabot.count()),
            "not a whole number of milliseconds, 1 or more",
        ),
        (
            lambda rows: rows.upsert("k").group_by("x").aggregate(ttl="1s", n=sabot.count()),
            r"group_by\(…\).aggregate\(ttl=\): the rows that come in are changes",
        ),
        (lambda rows: rows.group_by("k").aggregate(ttl="1s", n=sabot.count()).collect(), "event time"),
    ],
)
def test_keys_that_cannot_expire_are_refused(refused: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        refused(App("refused").stream([{"k": "a", "x": 1}]))


# -- in SQL ---------------------------------------------------------------------------------------------------------------

ROWS = [{"k": "a", "x": 1, "ts": 0}, {"k": "a", "x": 2, "ts": 500}, {"k": "a", "x": 4, "ts": 2000}]
COUNTED = "SELECT k, COUNT(*) AS n, SUM(x) AS total FROM t GROUP BY k"
HINTED = COUNTED.replace("SELECT", "SELECT /*+ STATE_TTL('t' = '1s') */")


def answer(text: str, *, time: str | None = "ts") -> list[tuple[Any, ...]]:
    app = App("answers")
    rows = app.sql(text, t=app.stream(ROWS, time=time)).changelog().collect().to_pylist()
    return [tuple(row.values()) for row in rows]


@pytest.mark.parametrize(
    "text",
    [
        HINTED,
        f"SET 'table.exec.state.ttl' = '1 s'; {COUNTED}",
        f"SET 'table.exec.state.ttl' = '1 d'; {HINTED}",
    ],
)
def test_a_key_of_sql_starts_anew_after_state_ttl(text: str) -> None:
    assert answer(text) == [("insert", "a", 2, 3), ("insert", "a", 1, 4)]


@pytest.mark.parametrize("text", [COUNTED, f"SET 'table.exec.state.ttl' = '0'; {COUNTED}"])
def test_a_key_is_kept_for_ever_without_it(text: str) -> None:
    assert answer(text) == [("insert", "a", 3, 7)]


@pytest.mark.parametrize(
    ("text", "time", "message"),
    [
        (
            COUNTED,
            None,
            r"SQL:1:12: STATE_TTL counts event time, and these rows have none[\s\S]*hint: WATERMARK FOR ts",
        ),
        (
            "SELECT n, COUNT(*) FROM (SELECT k, COUNT(*) AS n FROM t GROUP BY k) t GROUP BY n",
            "ts",
            r"SQL:1:12: STATE_TTL bounds a GROUP BY of rows that are only added[\s\S]*hint: give it to the query inside",
        ),
    ],
)
def test_the_hint_where_no_key_can_expire_is_an_error_with_a_place(text: str, time: str | None, message: str) -> None:
    with pytest.raises(SqlError, match=message):
        answer(text.replace("SELECT", "SELECT /*+ STATE_TTL('t' = '1s') */", 1), time=time)


def test_the_setting_is_that_of_joins_too_and_says_where_it_has_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    app = App("settings")
    for name, time in (("a", "ts"), ("b", "ts"), ("c", None)):
        app.register(name, app.stream(name, schema={"id": "int64", "ts": "int64"}, time=time))
    app.sql("SET 'table.exec.state.ttl' = '2 min'")
    assert "left kept 2 min, right kept 2 min" in app.sql("SELECT a.id FROM a JOIN b ON a.id = b.id").explain()
    with caplog.at_level(logging.WARNING):
        app.sql("SELECT id, COUNT(*) FROM a GROUP BY id")
        assert not caplog.records
        app.sql("SELECT id, COUNT(*) FROM c GROUP BY id")
    assert "'table.exec.state.ttl' has no effect without an event time" in caplog.text
    with pytest.raises(SqlError, match="'soon' is no duration"):
        app.sql("SET 'table.exec.state.ttl' = 'soon'")
