"""Functions of the user over all rows of a window, over batches of a chosen size, and over rows in order of event time."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from harness import figures, rows_read

import sabot
from sabot import App, Stream, UserError, WindowedStream, files, session, tumbling
from sabot.testing import BARRIER, CRASH, END, ListSink, MemoryBroker, ScriptedSource, run
from tools.agent_tools import bounded, until

ROWS = [{"k": "abc"[n % 3], "x": float(n * 7 % 101), "ts": n * 700} for n in range(600)]
SCHEMA = {"k": "string", "x": "float64", "ts": "int64"}


@sabot.aggregate("float64")
def spread(xs: Any) -> Any:
    return pc.max(xs).as_py() - pc.min(xs).as_py()


@sabot.aggregate(pa.list_(pa.int64()))
def order(ts: Any, xs: Any) -> Any:
    return ts.take(pc.array_sort_indices(xs))[:2].to_pylist()


def groups() -> dict[tuple[str, int], list[dict[str, Any]]]:
    found: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in ROWS:
        found[row["k"], row["ts"] // 60_000].append(row)
    return found


def windows(parallelism: int = 1) -> WindowedStream:
    app = App("groups", parallelism=parallelism)
    return app.stream(ROWS, time="ts", schema=SCHEMA).key_by("k").window(tumbling("1m"))


@pytest.mark.parametrize("parallelism", [1, 2])
def test_a_function_over_all_values_of_a_group_is_an_aggregate(parallelism: int) -> None:
    stream = windows(parallelism)
    table = stream.aggregate(spread=spread("x"), least=order("ts", "x"), n=sabot.count()).collect()
    found = {(row["k"], row["window_start"].minute): row for row in table.to_pylist()}
    assert found.keys() == groups().keys()
    for key, rows in groups().items():
        xs = [row["x"] for row in rows]
        assert (found[key]["spread"], found[key]["n"]) == (max(xs) - min(xs), len(xs))
        assert found[key]["least"] == [row["ts"] for row in sorted(rows, key=lambda row: row["x"])[:2]]


@pytest.mark.slow  # half a second of a core
def test_the_values_of_open_groups_survive_a_crash(caplog: pytest.LogCaptureFixture) -> None:
    pieces = [ROWS[start : start + 7] for start in range(0, len(ROWS), 7)]
    script = [*pieces[:20], BARRIER, *pieces[20:30], CRASH, *pieces[30:60], BARRIER, CRASH, *pieces[60:], END]
    source, results = ScriptedSource(script, name="in"), ListSink()

    def build(directory: Path) -> App:
        app = App("groups", checkpoint_dir=directory, restart="fixed(3, 1ms)")
        keyed = app.stream(source, schema=SCHEMA, time="ts").key_by("k")
        keyed.window(tumbling("1m")).aggregate(spread=spread("x")).to(results)
        return app

    run(build)
    found = {(row["k"], row["window_start"].minute): row["spread"] for row in results.rows}
    xs = {key: [row["x"] for row in rows] for key, rows in groups().items()}
    assert found == {key: max(each) - min(each) for key, each in xs.items()}
    assert not [line for line in caplog.messages if "may be no time" in line], "a restart asks nothing again"


def best_of_polars(rows: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    return frame.sort("x", descending=True).head(2).select(place=pl.int_range(1, pl.len() + 1), best="x")


def best_of_pandas(rows: pa.Table) -> Any:
    frame = rows.to_pandas().nlargest(2, "x", keep="first").reset_index(drop=True)
    return frame.assign(place=frame.index + 1).rename(columns={"x": "best"})


@pytest.mark.parametrize("function", [best_of_polars, best_of_pandas])
def test_a_function_of_polars_or_pandas_runs_over_each_window(function: Any) -> None:
    stream = windows()
    table = stream.apply(function, schema={"place": "int64", "best": "float64"}).collect()
    assert table.column_names == ["k", "window_start", "window_end", "place", "best"]
    found = [(row["k"], row["window_start"].minute, row["place"], row["best"]) for row in table.to_pylist()]
    expected = []
    for (key, minute), rows in groups().items():
        xs = sorted((row["x"] for row in rows), reverse=True)
        expected += [(key, minute, place, x) for place, x in enumerate(xs[:2], 1)]
    assert sorted(found) == sorted(expected)


def test_results_of_apply_have_event_time_and_none_is_no_row() -> None:
    stream = windows()
    only_a = stream.apply(lambda rows: rows if rows["k"][0].as_py() == "a" else None, schema={"x": "float64"})
    table = only_a.window(tumbling("1h")).aggregate(n=sabot.count()).collect()
    assert table["n"].to_pylist() == [200]


@sabot.aggregate(pa.list_(pa.int64()))
def numbers(values: Any) -> Any:
    return values


@pytest.mark.parametrize("window", [tumbling("1m"), sabot.hopping("1m", "20s"), session("10s")], ids=str)
def test_functions_over_groups_see_rows_in_the_order_of_first_last_and_collect_list(window: Any) -> None:
    times = [9_000, 2_000, 5_000, 2_000, 12_000, 2_000, 7_000, 5_000]  # of equal times the first to arrive comes first
    for cuts in ([8], [1] * 8, [3, 5]):
        rows = iter({"k": "a", "x": n, "ts": time} for n, time in enumerate(times))
        source = ScriptedSource([*([next(rows) for _ in range(size)] for size in cuts), END])
        stream = App("order").stream(source, time="ts", lateness="1m", schema={**SCHEMA, "x": "int64"})
        windows = stream.key_by("k").window(window)
        found = windows.aggregate(
            ours=numbers("x"), list=sabot.collect_list("x"), first=sabot.first("x"), last=sabot.last("x")
        ).collect()
        for row in found.to_pylist():
            inside = [n for n, time in enumerate(times) if row["window_start"].timestamp() * 1000 <= time]
            inside = [n for n in inside if times[n] < row["window_end"].timestamp() * 1000]
            wanted = sorted(inside, key=lambda n: times[n])
            assert row["ours"] == row["list"] == wanted
            assert (row["first"], row["last"]) == (wanted[0], wanted[-1])


def test_apply_gets_rows_in_the_order_of_event_time() -> None:
    rows = [{"k": "a", "x": n, "ts": time} for n, time in enumerate([30, 10, 20, 10])]
    stream = App("order").stream(rows, time="ts", schema={**SCHEMA, "x": "int64"}).key_by("k").window(tumbling("1m"))
    assert stream.apply(lambda table: table, schema={"x": "int64"}).collect()["x"].to_pylist() == [1, 3, 2, 0]


def test_rows_of_groups_that_were_kept_without_their_time_come_first() -> None:
    function = numbers("x").function
    before = pa.record_batch({"x": [3, 1]})  # as in checkpoints of versions that kept rows in the order of arrival
    after = pa.record_batch({"x": [9, 8], "__time": pa.array([20, 10])})
    state = function.accumulate(function.accumulate(function.init(), before), after)
    assert function.finish(state).to_pylist() == [3, 1, 8, 9]
    assert function.finish(function.accumulate(function.init(), before)).to_pylist() == [3, 1]


def test_what_apply_cannot_do_is_said() -> None:
    stream = windows()
    with pytest.raises(UserError, match="apply: 'k' is the name of another column"):
        stream.apply(lambda rows: rows, schema={"k": "string"})
    with pytest.raises(UserError, match=r"returned no column 'y', but k, x, ts"):
        stream.apply(lambda rows: rows, schema={"y": "int64"}).collect()
    with pytest.raises(UserError, match=r"returned a int, which is not Arrow data"):
        stream.apply(lambda rows: 1, schema={"y": "int64"}).collect()
    with pytest.raises(UserError, match="needs the columns of the rows, which are unknown"):
        App("a").stream("topic").key_by("k").window(tumbling("1m")).apply(lambda rows: rows, schema={"y": "int64"})
    with pytest.raises(UserError, match="aggregate"):
        sabot.aggregate("float64")(3)  # type: ignore[arg-type]


def test_rows_limits_the_batches_of_a_function_and_what_is_read_before_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["n", *map(str, range(5000))]))
    read: list[int] = []
    seen: list[int] = []

    def noted(into: list[int]) -> Any:
        return lambda batch: (into.append(batch.num_rows), batch)[1]

    stream = App("small").stream(files(path)).map_batches(noted(read), schema={"n": "int64"})
    table = stream.map_batches(noted(seen), schema={"n": "int64"}, rows=300).collect()
    assert sorted(table["n"].to_pylist()) == list(range(5000))
    assert max(seen) <= 300
    assert max(read) <= 300, "a barrier waits for the rows that were read before it"
    with pytest.raises(UserError, match="map_batches: rows"):
        stream.map_batches(noted(seen), rows=0)


def test_rows_limits_the_batches_behind_a_shuffle() -> None:
    seen: list[int] = []
    keyed = App("shuffled", parallelism=2).stream(ROWS, time="ts").key_by("k").aggregate(n=sabot.count())
    keyed.map_batches(lambda batch: (seen.append(batch.num_rows), batch)[1], rows=10).collect()
    assert sum(seen) == 600
    assert max(seen) <= 10


async def test_a_barrier_waits_for_no_more_than_rows_of_a_slow_function(memory_url: str) -> None:
    MemoryBroker.get(memory_url).publish("in", [{"n": n} for n in range(1000)])
    seen: list[int] = []
    app = App("slow", memory_url)
    app.stream("in", schema={"n": "int64"}, until="now").map_batches(
        lambda batch: (seen.append(batch.num_rows), batch)[1], schema={"n": "int64"}, rows=50
    ).to(ListSink())
    await app.run()
    assert (sum(seen), max(seen)) == (1000, 50)


@pytest.mark.slow  # half a second of a core
def test_a_process_function_gets_rows_in_order_of_event_time_over_a_crash() -> None:
    shuffled = [ROWS[start + n] for start in range(0, len(ROWS), 10) for n in (3, 0, 9, 1, 2, 8, 4, 7, 5, 6)]
    pieces = [shuffled[start : start + 7] for start in range(0, len(shuffled), 7)]
    script = [*pieces[:20], BARRIER, *pieces[20:30], CRASH, *pieces[30:60], BARRIER, CRASH, *pieces[60:], END]

    def since_last(row: dict[str, Any], ctx: Any) -> dict[str, Any]:
        last = ctx.state("last").get()
        ctx.state("last").put(row["ts"])
        return {"k": row["k"], "ts": row["ts"], "since": None if last is None else row["ts"] - last}

    def gaps(order: Any) -> set[int | None]:
        source, results = ScriptedSource(script, name="in"), ListSink()

        def build(directory: Path) -> App:
            app = App("order", checkpoint_dir=directory, restart="fixed(3, 1ms)")
            keyed = app.stream(source, schema=SCHEMA, time="ts", lateness="10s").key_by("k")
            keyed.process(since_last, schema={"k": "string", "ts": "int64", "since": "int64"}, order=order).to(results)
            return app

        run(build)
        assert sorted(row["ts"] for row in results.rows) == [row["ts"] for row in ROWS]
        return {row["since"] for row in results.rows}

    assert gaps("time") == {None, 2100}
    assert min(gap for gap in gaps(None) if gap is not None) < 0
    with pytest.raises(UserError, match="process: order"):
        App("a").stream(ROWS, time="ts").key_by("k").process(since_last, schema=SCHEMA, order="k")  # type: ignore[arg-type]


def pauses_of(rows: list[dict[str, Any]], pause_ms: int) -> list[tuple[str, int, int]]:
    """Computes (key, rows, time) of each pause: a time at which a key had no row for `pause_ms`."""
    found = []
    for key in sorted({row["k"] for row in rows}):
        times = sorted(row["ts"] for row in rows if row["k"] == key)
        n = 0
        for at, following in zip(times, [*times[1:], None], strict=True):
            n += 1
            if following is None or following - at >= pause_ms:
                found.append((key, n, at + pause_ms))
                n = 0
    return sorted(found)


@pytest.mark.one_in(12, "a fifth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize("size", [1, 7, 400])
@pytest.mark.parametrize("on_error", ["dead_letter", "fail"])
def test_timers_fire_between_rows_in_order_of_event_time_whatever_the_batches(
    on_error: Any, size: int, parallelism: int
) -> None:
    draw = random.Random(4)
    rows = [{"k": draw.choice("abc"), "x": 0.0, "ts": 1000 * draw.randrange(2000)} for _ in range(400)]
    pieces = [rows[start : start + size] for start in range(0, len(rows), size)]
    script = [*pieces[: len(pieces) // 2], BARRIER, *pieces[len(pieces) // 2 :], CRASH, END]

    def count_rows(row: dict[str, Any], ctx: Any) -> None:
        due = ctx.state("due").get()
        if due is not None:
            ctx.timers.delete(due)
        ctx.state("due").put(row["ts"] + 20_000)
        ctx.state("n").put((ctx.state("n").get() or 0) + 1)
        ctx.timers.event(row["ts"] + 20_000)

    def pause(timer: Any, ctx: Any) -> dict[str, Any]:
        n = ctx.state("n").get()
        ctx.state("n").delete()
        ctx.state("due").delete()
        return {"k": ctx.key, "n": n, "at": timer.at}

    source, results = ScriptedSource(script, name="in"), ListSink()

    def build(directory: Path) -> App:
        app = App("pauses", checkpoint_dir=directory, restart="fixed(3, 1ms)", parallelism=parallelism)
        keyed = app.stream(source, schema=SCHEMA, time="ts", lateness="1h").key_by("k")
        schema = {"k": "string", "n": "int64", "at": "int64"}
        keyed.process(count_rows, on_timer=pause, schema=schema, order="time", on_error=on_error).to(results)
        return app

    run(build)
    found = [(row["k"], row["n"], row["at"]) for row in results.rows]
    assert sorted(found) == pauses_of(rows, 20_000)
    if parallelism == 1:
        assert [at for _, _, at in found] == sorted(at for _, _, at in found)


def test_timers_among_rows_in_order_are_refused_for_a_function_that_gets_many_rows_at_once() -> None:
    keyed = App("batches").stream(ROWS, time="ts", schema=SCHEMA).key_by("k")

    def pass_on(keys: Any, batch: Any, ctx: Any) -> Any:
        return batch

    def fired(keys: Any, at: Any, ctx: Any) -> None:
        raise AssertionError("no timer is set")

    with pytest.raises(UserError, match=r"cannot fire between rows that come at once") as refused:
        keyed.process(pass_on, batch=True, on_timer=fired, schema=SCHEMA, order="time")
    assert refused.value.hint is not None
    assert "batch=True" in refused.value.hint
    assert "order=" in refused.value.hint
    # Without timers, a batch of rows in order is what it says.
    ordered = keyed.process(pass_on, batch=True, schema=SCHEMA, order="time").collect()
    assert ordered.to_pylist() == ROWS


def test_a_row_that_fails_between_two_timers_is_set_apart_alone() -> None:
    rows = [{"k": "a", "x": float(n), "ts": n * 10_000} for n in range(9)]

    def remember(row: dict[str, Any], ctx: Any) -> dict[str, Any]:
        ctx.state("seen").put([*(ctx.state("seen").get() or []), row["x"]])
        ctx.timers.event(row["ts"] + 5000)
        if row["x"] in (3.0, 4.0, 8.0):
            raise ValueError("no")
        return {"seen": ctx.state("seen").get(), "at": row["ts"]}

    def clear(timer: Any, ctx: Any) -> dict[str, Any]:
        if timer.at == 15_000:
            raise ValueError("no timer")
        ctx.state("seen").delete()
        return {"seen": [-1.0], "at": timer.at}

    letters, results = ListSink("letters"), ListSink("results")
    app = App("apart")
    keyed = app.stream(rows, time="ts", dead_letter=letters).key_by("k")
    schema = {"seen": pa.list_(pa.float64()), "at": "int64"}
    stream = keyed.process(remember, on_timer=clear, schema=schema, order="time", on_error="dead_letter")
    stream.to(results)
    asyncio.run(app.run())
    expected: list[tuple[list[float], int]] = []
    for n in range(9):
        if n not in (3, 4, 8):
            expected.append(([1.0, 2.0] if n == 2 else [float(n)], n * 10_000))
            if n != 1:
                expected.append(([-1.0], n * 10_000 + 5000))
    assert [(row["seen"], row["at"]) for row in results.rows] == expected
    assert [row.get("x", row.get("at")) for row in letters.rows] == [15_000, 3.0, 4.0, 8.0]


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
def test_rows_sorted_within_a_time_are_in_order_over_a_crash_and_in_time_for_later_windows(parallelism: int) -> None:
    shuffled = [ROWS[start + n] for start in range(0, len(ROWS), 10) for n in (3, 0, 9, 1, 2, 8, 4, 7, 5, 6)]
    late = {**ROWS[0], "x": -1.0}
    pieces = [shuffled[start : start + 7] for start in range(0, len(shuffled), 7)]
    script = [*pieces[:20], BARRIER, *pieces[20:30], CRASH, *pieces[30:60], BARRIER, CRASH, *pieces[60:], [late], END]
    source, results = ScriptedSource(script, name="in"), ListSink()
    counts, dead = ListSink("counts"), ListSink("dead")

    def build(directory: Path) -> App:
        app = App("order", checkpoint_dir=directory, restart="fixed(3, 1ms)", parallelism=parallelism)
        ordered = app.stream(source, schema=SCHEMA, time="ts", dead_letter=dead).sorted(within="10s", late=dead)
        ordered.to(results)
        ordered.key_by("k").window(tumbling("1m")).aggregate(n=sabot.count()).to(counts)
        return app

    run(build)
    assert results.rows == ROWS
    assert sum(row["n"] for row in counts.rows) == len(ROWS)
    assert dead.rows == [late]


def test_sorted_needs_event_time_and_rows_that_are_only_added() -> None:
    stream = App("a").stream(ROWS, time="ts", schema=SCHEMA)
    with pytest.raises(UserError, match="sorted: the rows that come in are changes"):
        stream.group_by("k").aggregate(n=sabot.count()).sorted(within="1m")
    with pytest.raises(UserError, match="sorted: within: 'soon' is no duration"):
        stream.sorted(within="soon")
    with pytest.raises(UserError, match="event time"):
        App("b").stream(ROWS, schema=SCHEMA).sorted(within="1m").collect()


def test_a_decorator_without_the_type_of_the_value_says_where_it_goes() -> None:
    with pytest.raises(UserError, match=r'@sabot.aggregate\("float64"\)'):

        @sabot.aggregate  # type: ignore[arg-type]
        def longest(xs: Any) -> Any:
            return pc.max(xs)


@sabot.aggregate("int64")
def letters(texts: Any) -> Any:
    return pc.sum(pc.utf8_length(texts)).as_py()


PROGRAMS: dict[str, Callable[[Stream], Stream]] = {
    "windows": lambda rows: rows.key_by("k").window(tumbling("1h")).aggregate(n=letters("text")),
    "apply": lambda rows: (
        rows.key_by("k")
        .window(tumbling("1h"))
        .apply(lambda table: pa.table({"n": [letters_of(table)]}), schema={"n": "int64"})
    ),
    "sessions": lambda rows: rows.key_by("k").window(session("1h")).aggregate(n=letters("text")),
    "groups": lambda rows: rows.group_by("k").aggregate(n=letters("text")).materialize(),
    "groups that expire": lambda rows: rows.group_by("k").aggregate(n=letters("text"), ttl="1h").materialize(),
}


def letters_of(table: pa.Table) -> int:
    return int(pc.sum(pc.utf8_length(table["text"])).as_py())


@pytest.mark.slow  # seconds of a core each
@pytest.mark.parametrize("name", PROGRAMS)
async def test_rows_of_groups_beyond_the_memory_budget_are_on_disk(name: str, tmp_path: Path) -> None:
    """200 keys have 20 texts of 2,000 letters each: 8 MB of rows, with a budget of 1 MB. Between two rows of a key are those of others."""
    schema = pa.schema([("k", pa.string()), ("text", pa.string()), ("ts", pa.int64())])
    batches = [
        [{"k": f"k{key}", "text": "x" * 2000, "ts": turn * 1000 + start} for key in range(start, start + 10)]
        for turn in range(20)
        for start in range(0, 200, 10)
    ]
    app, sink = App("beyond", state=str(tmp_path), memory_budget="1MB", checkpoint_interval=0.05), ListSink()
    PROGRAMS[name](app.stream(ScriptedSource(batches, schema=schema), time="ts")).to(sink)
    running = asyncio.ensure_future(app.run())
    try:
        await until(lambda: rows_read(app.statistics()) >= 4000, "the rows to be read")
        await until(lambda: 0 < sum(figures(app.statistics(), "bytes")) < 2_500_000, "the state to be on disk")
        assert sum(figures(app.statistics(), "evicted_total")) > 100
    finally:
        await app.stop(drain=True)
        await bounded(running)
    assert {row["k"]: row["n"] for row in sink.rows} == {f"k{key}": 40_000 for key in range(200)}
