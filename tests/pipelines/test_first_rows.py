"""`head(n)`: the first n rows of a stream pass, once, whatever crashes, and with whatever number of threads the app goes on."""

from pathlib import Path

import pytest

import sabot
from sabot import App, col, tumbling
from sabot.testing import BARRIER, CRASH, END, ListSink, MemoryBroker, ScriptedSource, run
from tools.agent_tools import bounded, until, values

MINUTE = 60_000


def rows(*numbers: int) -> list[dict[str, int]]:
    return [{"n": n} for n in numbers]


@pytest.mark.parametrize("parallelism", [1, 3])
def test_a_crash_neither_repeats_nor_adds_a_row(parallelism: int) -> None:
    """The first crash is before n rows have passed, the second behind them; each time rows have come since the barrier."""
    script = [rows(1, 2), BARRIER, rows(3), CRASH, rows(4, 5, 6), BARRIER, rows(7, 8), CRASH, rows(9), END]
    sink = ListSink()

    def build(directory: Path) -> App:
        app = App("first", state="memory", checkpoint_dir=directory, parallelism=parallelism)
        app.stream(ScriptedSource(script)).head(5).to(sink)
        return app

    assert run(build) == 3
    assert sink.rows == rows(1, 2, 3, 4, 5)


async def test_over_lives_with_other_numbers_of_threads_n_rows_pass(tmp_path: Path, memory_url: str) -> None:
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("in", 3)
    came = []
    for life, parallelism in enumerate((1, 4, 2, 1)):
        app = App("first", memory_url, checkpoint_dir=tmp_path / "checkpoints", parallelism=parallelism)
        numbers = app.stream("in", schema={"n": "int64"})
        numbers.head(40).named("few").to("first")
        numbers.to("all")
        for number in range(15):
            broker.publish("in", rows(life * 15 + number), partition=number % 3)
        await app.start()
        await until(lambda app=app, life=life: len(values(app, "all")) == 15 * (life + 1), "the rows")
        await bounded(app.stop())
        came.append(len(values(app, "first")))
        assert app.state("few").to_arrow().to_pylist() == [{"rows": came[-1]}]
    assert came == [15, 30, 40, 40]
    found = [row["n"] for row in values(app, "first")]
    assert len(set(found)) == 40
    assert set(range(30)) <= set(found)


def test_a_greater_n_lets_so_many_more_through() -> None:
    """The rows that have passed count under another n too."""
    script = [rows(1, 2, 3), BARRIER, CRASH, rows(4, 5, 6), END]
    sink = ListSink()
    lives = iter((2, 4))

    def build(directory: Path) -> App:
        app = App("first", state="memory", checkpoint_dir=directory)
        app.stream(ScriptedSource(script)).head(next(lives)).to(sink)
        return app

    assert run(build) == 2
    assert sink.rows == rows(1, 2, 4, 5)


@pytest.mark.parametrize("parallelism", [1, 4])
def test_of_several_readers_n_rows_pass_each_in_its_order(parallelism: int) -> None:
    app = App("first", parallelism=parallelism)
    left, right = (app.stream(ScriptedSource([*map(rows, some), END])) for some in (range(100), range(100, 200)))
    found = left.union(right).head(60).collect()["n"].to_pylist()
    low, high = [n for n in found if n < 100], [n for n in found if n >= 100]
    assert low + high == [*range(len(low)), *range(100, 100 + len(high))]
    assert len(found) == 60


def test_no_rows_have_columns_still() -> None:
    table = App("first").stream(ScriptedSource([rows(1), END])).head(0).collect()
    assert (table.num_rows, table.column_names) == (0, ["n"])


def test_steps_behind_see_the_first_rows_alone() -> None:
    """A filter behind `head` is not moved before it, and no column need be used behind it."""
    stream = App("first").stream(ScriptedSource([rows(*range(10)), END]))
    assert stream.head(4).filter(col("n") > 1).collect()["n"].to_pylist() == [2, 3]
    assert stream.head(4).aggregate(c=sabot.count()).select("c").collect()["c"].to_pylist() == [1, 2, 3, 4]


@pytest.mark.parametrize("parallelism", [1, 2])
async def test_event_time_goes_on_when_no_row_passes_any_more(memory_url: str, parallelism: int) -> None:
    app = App("first", memory_url, parallelism=parallelism)
    times = app.stream("in", schema={"ts": "int64"}, time="ts")
    times.head(2).window(tumbling("1m")).aggregate(c=sabot.count()).select("c").to("counts")
    await app.start()
    try:
        await app.send("in", {"ts": 0})
        await app.send("in", {"ts": 1})
        await app.send("in", {"ts": 2})
        await app.send("in", {"ts": MINUTE})
        await until(lambda: values(app, "counts") == [{"c": 2}], "the window to close")
    finally:
        await bounded(app.stop())
