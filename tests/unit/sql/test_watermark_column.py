"""CURRENT_WATERMARK(ts): the event time up to which all rows have come, as a column of each row."""

from datetime import UTC, datetime

import pyarrow as pa

from sabot import App
from sabot.testing import BARRIER, CRASH, END, ListSink, ScriptedSource, run

MINUTE = 60_000
SCHEMA = pa.schema([("id", pa.int64()), ("ts", pa.timestamp("ms"))])


def part(*minutes, first=0):
    """A batch of rows with these times; their ids go on from `first`."""
    times = pa.array([each * MINUTE for each in minutes], pa.int64()).cast(pa.timestamp("ms"))
    return pa.record_batch([pa.array(range(first, first + len(minutes)), pa.int64()), times], schema=SCHEMA)


PARTS = [part(10, 12), part(8, 13, first=2), part(11, 9, 30, first=4), part(12, 31, first=7)]


def results(text, script):
    found = ListSink("found")

    def build(directory):
        app = App("marks", checkpoint_dir=directory)
        rows = app.stream(ScriptedSource([*script, END], schema=SCHEMA), time="ts", lateness="1m")
        app.sql(text, given=rows).to(found)
        return app

    run(build)
    return found.rows


def minute(mark):
    return None if mark is None else int(mark.replace(tzinfo=UTC).timestamp()) // 60


def test_each_row_has_the_watermark_that_the_rows_before_have_made():
    found = results("SELECT id, CURRENT_WATERMARK(ts) AS mark FROM given", PARTS)
    assert {row["id"]: minute(row["mark"]) for row in found} == {
        **dict.fromkeys((0, 1)),
        **dict.fromkeys((2, 3), 11),
        **dict.fromkeys((4, 5, 6), 12),
        **dict.fromkeys((7, 8), 29),
    }
    assert all(isinstance(row["mark"], datetime) and row["mark"].tzinfo is None for row in found if row["mark"])


def test_late_rows_and_the_others_are_told_apart():
    late = "SELECT id FROM given WHERE CURRENT_WATERMARK(ts) IS NOT NULL AND ts <= CURRENT_WATERMARK(ts)"
    timely = "SELECT id FROM given WHERE CURRENT_WATERMARK(ts) IS NULL OR ts > CURRENT_WATERMARK(ts)"
    assert sorted(row["id"] for row in results(late, PARTS)) == [2, 4, 5, 7]
    assert sorted(row["id"] for row in results(timely, PARTS)) == [0, 1, 3, 6, 8]


def test_rows_keep_their_event_time_behind_it():
    text = (
        "SELECT window_start, COUNT(*) AS n FROM TABLE(TUMBLE(TABLE (SELECT *, CURRENT_WATERMARK(ts) AS mark FROM given), DESCRIPTOR(ts), "
        "INTERVAL '10' MINUTE)) GROUP BY window_start, window_end"
    )
    expected = results(text.replace("SELECT *, CURRENT_WATERMARK(ts) AS mark FROM given", "SELECT * FROM given"), PARTS)
    assert results(text, PARTS) == expected


def test_after_a_crash_the_watermark_is_unknown_until_the_next_one():
    found = results("SELECT id, CURRENT_WATERMARK(ts) AS mark FROM given", [*PARTS[:2], BARRIER, CRASH, *PARTS[2:]])
    assert sorted(row["id"] for row in found) == list(range(9))
