"""The figures of an app as structs: each is told by some part of the engine, and nothing is lost on the way to a file."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

import sabot
from sabot import App
from sabot.base import figures
from sabot.base.figures import STEP_COUNTS, AppFigures, StepCount
from sabot.base.metrics import KINDS
from sabot.engine.runtime.watch.app_rates import AppReading, rates_between
from sabot.engine.runtime.watch.figure_rings import FigureRings
from sabot.web.records import flat, folded, step_records

SOURCES = Path(sabot.__file__).parent


def structs() -> list[type[msgspec.Struct]]:
    found = [each for each in vars(figures).values() if isinstance(each, type) and issubclass(each, msgspec.Struct)]
    assert len(found) > 15
    return [each for each in found if each is not StepCount]


def test_each_figure_is_told_by_a_part_of_the_engine() -> None:
    """A figure whose name nobody tells would always have its default, and look like 0."""
    paths = [
        path
        for path in SOURCES.rglob("*.py")
        if path.name == "app_watch.py"
        or (path.parent.name not in ("watch", "web", "cli") and path.name != "figures.py")
    ]
    told = "\n".join(path.read_text() for path in paths)
    names = {field.encode_name for struct in structs() for field in msgspec.structs.fields(struct)}
    assert [name for name in sorted(names) if f'"{name}"' not in told] == []


def test_figures_of_a_file_are_those_that_were_written() -> None:
    step = {"rows_in": 5, "late_most_ms": 70, "keys": 4, "sink": "out"}
    edge = {"from": "read-1", "to": "write-1", "branch": "", "rows": 5, "fill": 0.5, "keys": ("a",)}
    task = {"rows": 5, "operators": {"write-1": step}, "edges": [edge], "input": {"source": "t", "lag": {"t[0]": 3}}}
    found = AppFigures.of({"streams": {"write-1/0": task}, "app": "shop", "failure": None})
    assert AppFigures.of(msgspec.json.decode(msgspec.json.encode(found))) == found
    kept = found.streams["write-1/0"]
    assert (kept.operators["write-1"].rows_in, kept.edges[0].origin, kept.input.lag) == (5, "read-1", {"t[0]": 3})


def test_what_a_source_tells_of_its_server_is_words_for_people() -> None:
    told = {"slot": "shop", "held_wal_bytes": 12_300_000, "committed_ms": 0, "snapshot_seconds": 61, "reconnects": 2}
    found = AppFigures.of(
        {
            "streams": {
                "a/0": {"input": {"source": "public.orders", "figures": told}},
                "b/0": {"input": {"source": "t"}},
            },
            "sources": {"agent/public.events": {"figures": {"wal_status": "lost"}}},
        }
    )
    assert found.of_servers == {
        "public.orders": "committed 1970-01-01 00:00:00+00:00, held wal 12.3 MB, reconnects 2, slot shop, snapshot 1 min 1 s",
        "public.events": "wal status lost",
    }


def test_each_count_of_a_step_is_shown_as_the_sum_of_its_subtasks() -> None:
    """What a line of `STEP_COUNTS` does without a change elsewhere: its column in `sabot top` and on the console, and its metric."""
    for each in STEP_COUNTS:
        told = {"streams": {f"count/{task}": {"operators": {"count": {each.figure: 3 + task}}} for task in (0, 1)}}
        reading = AppReading("shop", 1.0, 1000.0, 0, AppFigures.of(told))
        (row,) = rates_between(reading, reading).tasks
        assert (row.counts[each.short], row.steps["count"].counts[each.short]) == (7, 7)
        (shown,) = folded(step_records(FigureRings(lambda told=told: told)))
        assert flat(shown)[each.column] == 7
        assert KINDS[each.metric].type == "counter"


class TornParts:
    """The parts of a run that ask a clock of the user, which raises."""

    asked = 0

    def agent_statistics(self) -> dict[str, Any]:
        self.asked += 1
        raise OSError("the clock is gone")

    def tap(self, point: Any) -> list[Any]:
        raise AssertionError("closed parts are asked")


async def test_a_clock_that_raises_at_the_end_leaves_no_closed_part_that_is_asked(memory_url: str) -> None:
    watch, parts = App("shop", memory_url).agent_runtime.runner.watch, TornParts()
    watch.begins()
    watch.parts = parts  # type: ignore[assignment]
    with pytest.raises(OSError, match="the clock is gone"):
        watch.keep()
    for _ in range(2):
        assert watch.report()["sources"] == {}
        assert watch.tap(None) == []  # type: ignore[arg-type]
    assert parts.asked == 1
