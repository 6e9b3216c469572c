"""What an app says of itself to the person who runs it: progress, figures in the log, and the summary."""

import io
import logging
from dataclasses import replace

import pytest

from sabot import App, NdjsonSink, NdjsonSource
from sabot.base.figures import AppFigures
from sabot.engine.runtime.watch.app_rates import AppReading
from sabot.engine.runtime.watch.reports import (
    Late,
    Reporter,
    Summary,
    figures_line,
    progress_line,
    screen_of_person,
    summary_of,
)
from sabot.testing import ManualClock, MemoryBroker
from tools.agent_tools import bounded, until


@pytest.mark.parametrize(
    ("figures", "line"),
    [
        ((0, 1000, 0, 0.5), "  0% of 1.0 kB, 0 rows"),
        ((250, 1000, 500, 2.0), " 25% of 1.0 kB, 500 rows, 250 rows/s, 6.0 s left"),
        ((1000, 1000, 2000, 4.0), "100% of 1.0 kB, 2,000 rows, 500 rows/s"),
        ((0, 0, 0, 1.0), "100% of 0 B, 0 rows"),
    ],
)
def test_the_progress_has_share_rows_rate_and_time_left(figures: tuple[float, ...], line: str) -> None:
    assert progress_line(*figures) == line  # type: ignore[arg-type]


def reading(seconds: float, **figures: object) -> AppReading:
    return AppReading("shop", seconds, 1000 * seconds, 1, AppFigures.of(figures))


def task(rows: int, **more: object) -> dict[str, object]:
    return {"rows": rows, "input": {"source": "orders", "rows_in": rows, **more}, "operators": {}, "edges": []}


def test_a_line_of_figures_has_rates_lag_checkpoint_and_what_went_wrong() -> None:
    before = reading(10, streams={"read-1/0": task(100)})
    written = {"rows": 30, "input": {}, "operators": {"write-1": {"sink": "out", "rows_in": 30, "rows_out": 30}}}
    streams = {"read-1/0": task(600, lag={"orders[0]": 7}, dead_letters=2), "write-1/0": written}
    after = reading(60, streams=streams, checkpoints={"last_at": 55.0, "last_id": 4})
    assert figures_line(before, after) == (
        "app shop: 10 rows/s in, 0.6 rows/s out, 7 rows not yet read, checkpoint 4 complete 5.0 s ago, 2 dead letters, 1 restart"
    )


def test_before_the_first_row_a_line_has_no_rate() -> None:
    before, after = reading(10, streams={"read-1/0": task(0)}), reading(11, streams={"read-1/0": task(0)})
    assert figures_line(before, after) == "app shop: no row read yet, 1 restart"
    later = reading(12, streams={"read-1/0": task(50)})
    assert figures_line(after, later) == "app shop: 50 rows/s in, 0 rows/s out, 1 restart"
    assert figures_line(later, replace(later, seconds=13.0)) == "app shop: 0 rows/s in, 0 rows/s out, 1 restart"


def test_what_is_left_of_a_file_is_said_in_bytes() -> None:
    streams = {
        "read-1/0": task(100, lag={"a.ndjson[0]": 1_500_000}, lag_unit="bytes"),
        "read-2/0": task(10, lag={"orders[0]": 7}, lag_unit="rows"),
    }
    line = figures_line(reading(10), reading(11, streams=streams))
    assert line == "app shop: 110 rows/s in, 0 rows/s out, 7 rows not yet read, 1.5 MB not yet read, 1 restart"


def test_the_log_gets_a_line_each_interval_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sabot.engine.runtime.watch.reports")
    clock, rows = ManualClock(), [0]
    reporter = Reporter(
        lambda: reading(clock.monotonic(), streams={"read-1/0": task(rows[0])}),
        lambda: (1, 2),
        60,
        screen=None,
        clock=clock,
    )
    for seconds in (30, 29.5, 0.5, 59, 1):
        clock.advance(seconds)
        rows[0] += 600
        reporter.look()
    reporter.close()
    assert [record.getMessage() for record in caplog.records] == [
        "app shop: 30 rows/s in, 0 rows/s out, 1 restart",
        "app shop: 20 rows/s in, 0 rows/s out, 1 restart",
    ]


def test_the_line_of_progress_takes_the_place_of_the_log_line_and_is_removed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sabot.engine.runtime.watch.reports")
    clock, screen = ManualClock(), io.StringIO()
    reporter = Reporter(lambda: reading(clock.monotonic()), lambda: (50, 100), 1, screen=screen, clock=clock)
    clock.advance(5)
    reporter.look()
    reporter.close()
    lines = [line.rstrip() for line in screen.getvalue().split("\r") if line]
    assert lines[0] == " 50% of 100 B, 0 rows, 5.0 s left"
    assert lines[-1] == "", "the last one overwrites it with blanks"
    assert caplog.records == []


def test_a_screen_that_is_gone_ends_the_reports() -> None:
    clock, screen = ManualClock(), io.StringIO()
    reporter = Reporter(lambda: reading(clock.monotonic()), lambda: (50, 100), 0, screen=screen, clock=clock)
    screen.close()
    reporter.look()
    reporter.close()


def test_no_person_looks_at_a_stream_that_is_no_terminal() -> None:
    assert screen_of_person() is None


def test_a_summary_folds_subtasks_and_names_late_rows_and_dead_letters() -> None:
    def windowed(late: int, most_ms: int) -> dict[str, object]:
        window = {"late_rows": late, "late_p50_ms": 1, "late_most_ms": most_ms, "rows_out": 5}
        return {"input": {}, "operators": {"tumbling-1": window}, "edges": []}

    bad = [{"from": "read-1", "to": "write-1", "branch": "dead letters", "rows": 3}]
    figures = {
        "streams": {
            "read-1/0": task(100, dead_letter_reasons={"invalid JSON": 2}) | {"edges": bad},
            "read-1/1": task(50, dead_letter_reasons={"invalid JSON": 1}),
            "tumbling-1/0": windowed(4, 98_000),
            "tumbling-1/1": windowed(1, 1_000),
            "tumbling-1/2": windowed(0, 0),
            "write-1/0": {"input": {}, "operators": {"write-1": {"sink": "bad", "rows_out": 3}}},
            "write-2/0": {"input": {}, "operators": {"write-2": {"sink": "counts", "rows_out": 10}}},
        }
    }
    found = summary_of("shop", AppFigures.of(figures), 75.0, 2)
    expected = Summary(
        "shop", 75.0, 150, {"counts": 10}, {"tumbling-1": Late(5, 98_000)}, {"invalid JSON": 3}, ("bad",), 2
    )
    assert found == expected
    assert str(found).splitlines() == [
        "app shop: 150 rows in, 10 out in 1 min 15 s (2 rows/s)",
        "  counts: 10 rows",
        "  late rows of tumbling-1 that do not count: 5, by up to 1 min 38 s",
        "  dead letters in bad: 3",
        "    3 × invalid JSON",
        "  restarts: 2; the counts begin at the last one",
    ]


async def test_a_run_ends_with_its_summary_in_the_log(tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO, "sabot.engine.runtime")
    bad, copies = tmp_path / "bad.ndjson", tmp_path / "copies.ndjson"
    (tmp_path / "orders.ndjson").write_text('{"k": "a"}\n{broken\n{"k": "b"}\n')
    app = App("shop", state="memory")
    assert app.summary == Summary("shop", 0.0)
    app.stream(NdjsonSource(tmp_path / "orders.ndjson"), dead_letter=NdjsonSink(bad)).to(NdjsonSink(copies))
    await bounded(app.run())
    found = app.summary
    assert (found.rows_in, found.rows_out, found.dead_letters_in) == (2, {str(copies): 2}, (str(bad),))
    assert list(found.dead_letters.values()) == [1]
    assert len([each for each in caplog.messages if each.startswith("app shop: 2 rows in, 2 out")]) == 1


async def test_the_summary_of_agents_counts_their_records(memory_url) -> None:
    app = App("shop", broker=memory_url)

    @app.agent("orders", sink="checked", on_error="skip", dead_letter="bad")
    async def check(ctx):
        if ctx.message["n"] == 2:
            raise ValueError("two")
        return ctx.message

    MemoryBroker.get(memory_url).publish("orders", [{"n": 1}, {"n": 2}, {"n": 3}])
    await app.start()
    await until(lambda: app.summary.rows_out == {"checked": 2} and app.summary.dead_letters)
    await bounded(app.stop())
    found = app.summary
    assert (found.rows_in, found.rows_out, found.dead_letters_in) == (3, {"checked": 2}, ("bad",))
    assert found.dead_letters == {"records of agent shop.check": 1}
