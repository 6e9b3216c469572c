"""What is said of the rows of a key, against the same over all rows at once: process functions and their timers, rows around a row
(over), patterns, and calls of coroutine functions. Whatever the splits, the parallelism, the barriers, crashes and restores.

Functions that depend on the order of rows keep them until their time has passed, by a timer: that is what makes them have an answer.
SABOT_STREAM_SEEDS=N draws N times as many circumstances.
"""

import asyncio
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from harness import (
    EVENTS,
    Gate,
    Joined,
    Kept,
    Row,
    Rows,
    a_week,
    another_way,
    answers_are_the_same,
    by_key,
    differences,
    draw,
    events,
    figures_at,
    of,
    rows_read,
    run_in_turns,
    tumbles,
    until,
    windowed,
)

import sabot
from sabot import AgentFailed, App, SabotError, Stream, UserError, col, tumbling
from sabot.testing import ListSink, ManualClock, MemoryBroker

SEEDS = range(int(os.environ.get("SABOT_STREAM_SEEDS", "1")))
TEN = 10_000


def in_time(rows: Sequence[Row]) -> list[Row]:
    """By event time, equal ones as they came."""
    return sorted(rows, key=lambda row: row["ts"])


def each_key(keys: Sequence[str], answer: Callable[[list[Row]], list[Row]]) -> Callable[[list[Row]], list[Row]]:
    """An oracle that looks at the rows of one key, in the order of their arrival."""
    return lambda rows: [row for members in by_key(rows, keys).values() for row in answer(members)]


# -- process: state -------------------------------------------------------------------------------------------------------

TOTALS = {"n": "int64", "k": "string", "total": "int64", "seen": "int64"}


def add_up(row: Row, ctx: Any) -> Row:
    assert ctx.key == row["k"]
    assert ctx.timestamp == row["ts"]
    total = (ctx.state("total").get() or 0) + (row["x"] or 0)
    ctx.state("total").put(total)
    ctx.list("seen").add(row["n"])
    return {"n": row["n"], "k": ctx.key, "total": total, "seen": len(ctx.list("seen").get())}


def added_up(rows: list[Row]) -> list[Row]:
    out, total = [], 0
    for at, row in enumerate(rows):
        total += row["x"] or 0
        out.append({"n": row["n"], "k": row["k"], "total": total, "seen": at + 1})
    return out


class Changes(sabot.Process):
    """State of many shapes, and none; several rows at once, as a generator."""

    def process(self, row: Row, ctx: Any) -> Iterator[Row]:
        state, fields = ctx.state("last"), ctx.map("counts")
        before = state.get()
        state.put({"x": row["x"], "list": [row["s"], None, row["v"], True, b"\0\xff"]})
        fields.put(row["x"] if row["x"] is not None else "none", (fields.get(row["x"]) or 0) + 1)
        if row["n"] % 7 == 0:
            state.delete()
            fields.delete(3)
        if row["n"] % 11 == 0:
            fields.delete()
        for times in range(row["n"] % 3):
            yield {
                "key": list(ctx.key) == [row["k"], row["j"]],
                "n": row["n"],
                "times": times,
                "before": None if before is None else before["x"],
                "text": None if before is None else before["list"][0],
                "fields": len(fields.items()),
            }


CHANGES = {"key": "bool", "n": "int64", "times": "int64", "before": "int64", "text": "string", "fields": "int64"}


def changed(rows: list[Row]) -> list[Row]:
    out: list[Row] = []
    before: Row | None = None
    fields: dict[Any, int] = {}
    for row in rows:
        shown = before
        before = row
        fields[row["x"] if row["x"] is not None else "none"] = (fields.get(row["x"]) or 0) + 1
        if row["n"] % 7 == 0:
            before = None
            fields.pop(3, None)
        if row["n"] % 11 == 0:
            fields = {}
        for times in range(row["n"] % 3):
            told = {"before": shown and shown["x"], "text": shown and shown["s"], "fields": len(fields)}
            out.append({"key": True, "n": row["n"], "times": times, **told})
    return out


# -- process: timers ------------------------------------------------------------------------------------------------------

WINDOWS = {"k": "string", "window_start": "int64", "window_end": "int64", "c": "int64", "total": "int64"}


def count_in_windows(row: Row, ctx: Any) -> None:
    start = row["ts"] // TEN * TEN
    seen = ctx.map("windows").get(start) or [0, 0]
    ctx.map("windows").put(start, [seen[0] + 1, seen[1] + (row["x"] or 0)])
    ctx.timers.event(start + TEN)
    ctx.timers.event(start + TEN, "not this one")
    ctx.timers.delete(start + TEN, "not this one")


def window_ends(timer: Any, ctx: Any) -> Row:
    assert (timer.kind, timer.name, ctx.timestamp) == ("event", "", timer.at)
    assert ctx.watermark is None or ctx.watermark >= timer.at or ctx.watermark < 0
    c, total = ctx.map("windows").get(timer.at - TEN)
    ctx.map("windows").delete(timer.at - TEN)
    return {"k": ctx.key, "window_start": timer.at - TEN, "window_end": timer.at, "c": c, "total": total}


WINDOWS_OF = windowed(["k"], tumbles(TEN), c=of("count"), total=lambda rows: sum(row["x"] or 0 for row in rows))

TENS = {"ten": "int64", "c": "int64", "total": "int64"}


def count_tens(keys: pa.Array, batch: pa.RecordBatch, ctx: Any) -> None:
    """The batch form: state of all keys at once."""
    assert len(keys) == batch.num_rows == len(ctx.timestamp)
    assert keys.equals(batch["ten"])
    table = (
        pa.table({"key": keys, "x": pc.fill_null(batch["x"], 0)})
        .group_by("key")
        .aggregate([("x", "sum"), ("x", "count")])
    )
    own = table["key"].combine_chunks()
    for name, new in (("total", "x_sum"), ("c", "x_count")):
        before = pc.fill_null(pc.cast(ctx.state(name).get_many(own), pa.int64()), 0)
        ctx.state(name).put_many(own, pc.add(before, table[new].combine_chunks()))
    ctx.timers.event_many(own, pc.multiply(pc.add(own, 1), TEN))


def tens_end(keys: pa.Array, at: pa.Array, ctx: Any) -> pa.Table:
    assert ctx.kind == "event"
    assert pc.all(pc.equal(pc.multiply(pc.add(keys, 1), TEN), at)).as_py() in (True, None)
    totals, counts = ctx.state("total").get_many(keys), ctx.state("c").get_many(keys)
    ctx.state("total").delete_many(keys)
    ctx.state("c").delete_many(keys)
    return pa.table({"ten": keys, "c": counts, "total": totals})


class InTime(sabot.Process):
    """Rows of a key in the order of event time: each waits for a timer. What it says depends on that order."""

    def process(self, row: Row, ctx: Any) -> None:
        ctx.list("waiting").add([row["ts"], row["n"], row["x"]])
        ctx.timers.event(row["ts"])

    def on_timer(self, timer: Any, ctx: Any) -> list[Row]:
        waiting = ctx.list("waiting")
        rows = waiting.get()
        waiting.delete()
        out = []
        for ts, n, x in sorted(rows):
            if ts > timer.at:
                waiting.add([ts, n, x])
                continue
            assert ts == timer.at, "an earlier timer did not fire"
            last = ctx.state("last").get()
            ctx.state("last").put([ts, x])
            out.append(
                {"n": n, "k": ctx.key, "gap": None if last is None else ts - last[0], "before": last and last[1]}
            )
        return out


GAPS = {"n": "int64", "k": "string", "gap": "int64", "before": "int64"}


def gaps(rows: list[Row]) -> list[Row]:
    out: list[Row] = []
    last: Row | None = None
    for row in in_time(rows):
        told = {"gap": None if last is None else row["ts"] - last["ts"], "before": last and last["x"]}
        out.append({"n": row["n"], "k": row["k"], **told})
        last = row
    return out


# -- process: sides, two streams, rules -----------------------------------------------------------------------------------


def by_sign(row: Row, ctx: Any) -> Row | None:
    if row["x"] is None:
        return None
    if row["x"] < 0:
        ctx.side("negative", {"n": row["n"], "x": row["x"]})
        return None
    return {"n": row["n"], "x": row["x"]}


def signs(a: Stream) -> Any:
    schema = {"n": "int64", "x": "int64"}
    return a.key_by("k").process(by_sign, schema=schema, sides={"negative": schema})


def signs_in_batches(a: Stream) -> Any:
    def split(keys: pa.Array, batch: pa.RecordBatch, ctx: Any) -> Any:
        negative = pc.fill_null(pc.less(batch["x"], 0), False)
        rows = batch.select(["n", "x"])
        ctx.side("negative", rows.filter(negative), pc.filter(ctx.timestamp, negative))
        positive = pc.fill_null(pc.greater_equal(batch["x"], 0), False)
        return rows.filter(positive), pc.filter(ctx.timestamp, positive)

    schema = {"n": "int64", "x": "int64"}
    return a.key_by("k").process(split, schema=schema, sides={"negative": schema}, batch=True)


class Meeting(sabot.Process):
    """For each row of the left, how many of the right have been before it: both wait for their time."""

    def process(self, row: Row, ctx: Any) -> None:
        ctx.list("left").add([row["ts"], row["n"]])
        ctx.timers.event(row["ts"] + 1)  # rows of the right of the same time have been then

    def process_right(self, row: Row, ctx: Any) -> None:
        ctx.list("right").add(row["ts"])

    def on_timer(self, timer: Any, ctx: Any) -> Iterator[Row]:
        right = ctx.list("right").get()
        left = ctx.list("left").get()
        ctx.list("left").delete()
        for ts, n in left:
            if ts < timer.at:
                yield {"n": n, "k": ctx.key, "before": sum(other <= ts for other in right)}
            else:
                ctx.list("left").add([ts, n])


def met(a: list[Row], b: list[Row]) -> list[Row]:
    right = by_key(b, ["k"])
    return [{"n": r["n"], "k": r["k"], "before": sum(o["ts"] <= r["ts"] for o in right.get((r["k"],), []))} for r in a]


class Rules(sabot.Process):
    """Rows are held against the rule that was in force at their time; rules come by the broadcast side, and end."""

    def process(self, row: Row, ctx: Any) -> None:
        ctx.list("waiting").add([row["ts"], row["n"], row["x"]])
        ctx.timers.event(row["ts"] + 1)

    def process_right(self, row: Row, ctx: Any) -> None:
        assert ctx.key is None
        rules = ctx.broadcast("rules")
        rules.put(row["n"], [row["ts"], row["j"]])
        rules.put("none", None)

    def on_timer(self, timer: Any, ctx: Any) -> list[Row]:
        rules = sorted([ts, n, least] for n, (ts, least) in ctx.broadcast("rules").items().items())
        assert ctx.broadcast("rules").get("none", "-") == "-"
        waiting = ctx.list("waiting")
        rows = waiting.get()
        waiting.delete()
        out = []
        for ts, n, x in rows:
            if ts >= timer.at:
                waiting.add([ts, n, x])
                continue
            known = [rule for rule in rules if rule[0] <= ts]
            out.append({"n": n, "x": x, "rule": known[-1][2] if known else None, "rules": len(known)})
        return out


def ruled(a: list[Row], b: list[Row]) -> list[Row]:
    rules = sorted([row["ts"], row["n"], row["j"]] for row in b)
    out = []
    for row in a:
        known = [rule for rule in rules if rule[0] <= row["ts"]]
        out.append({"n": row["n"], "x": row["x"], "rule": known[-1][2] if known else None, "rules": len(known)})
    return out


RULED = {"n": "int64", "x": "int64", "rule": "int64", "rules": "int64"}

PROCESSES = [
    Joined(
        "process: a total",
        lambda a: a.key_by("k").process(add_up, schema=TOTALS),
        each_key(["k"], added_up),
        sources=1,
        arrival=True,
    ),
    Joined(
        "process: state of many shapes",
        lambda a: a.key_by("k", "j").process(Changes(), schema=CHANGES),
        each_key(["k", "j"], changed),
        sources=1,
        arrival=True,
    ),
    Joined(
        "process: timers at the ends of windows",
        lambda a: a.key_by("k").process(count_in_windows, schema=WINDOWS, on_timer=window_ends),
        WINDOWS_OF,
        sources=1,
    ),
    Joined(
        "process: timers, in batches",
        lambda a: a.key_by((col("ts") // TEN).cast("int64").alias("ten")).process(
            count_tens, schema=TENS, on_timer=tens_end, batch=True
        ),
        lambda rows: [
            {"ten": row["window_start"] // TEN, "c": row["c"], "total": row["total"]}
            for row in windowed([], tumbles(TEN), c=of("count"), total=lambda rs: sum(r["x"] or 0 for r in rs))(rows)
        ],
        sources=1,
    ),
    Joined(
        "process: rows in the order of time",
        lambda a: a.key_by("k").process(InTime(), schema=GAPS),
        each_key(["k"], gaps),
        sources=1,
    ),
    Joined(  # what a timer gives has its time
        "process: timers, then windows",
        lambda a: (
            a.key_by("k")
            .process(count_in_windows, schema=WINDOWS, on_timer=window_ends)
            .window(tumbling("1m"))
            .aggregate(c=sabot.sum("c"), parts=sabot.count())
        ),
        lambda rows: windowed([], tumbles(60_000), c=of("sum", "c"), parts=of("count"))(
            [{**row, "ts": row["window_end"]} for row in WINDOWS_OF(rows)]
        ),
        sources=1,
    ),
    Joined(  # what a row gives has the time of the row
        "process: rows, then windows",
        lambda a: signs(a).key_by("x").window(tumbling("20s")).aggregate(c=sabot.count(), low=sabot.min("n")),
        lambda rows: windowed(["x"], tumbles(20_000), c=of("count"), low=of("min", "n"))(
            [row for row in rows if row["x"] is not None and row["x"] >= 0]
        ),
        sources=1,
    ),
    *(
        Joined(
            f"process: {name}{form}",
            build,
            oracle,
            sources=1,
        )
        for form, split in (("", signs), (", in batches", signs_in_batches))
        for name, build, oracle in [
            ("what does not leave by the side", split, "select n, x from a where x >= 0"),
            ("the side", lambda a, split=split: split(a).side("negative"), "select n, x from a where x < 0"),
            (
                "the side, then windows",
                lambda a, split=split: (
                    split(a).side("negative").key_by("x").window(tumbling("20s")).aggregate(c=sabot.count())
                ),
                """select x, floor(ts / 20000.0)::bigint * 20000 as window_start, window_start + 20000 as window_end, count(*) as c
                   from a where x < 0 group by x, window_start""",
            ),
        ]
    ),
    Joined(
        "process: both ways together",
        lambda a: (lambda split: split.union(split.side("negative")))(signs(a)),
        "select n, x from a where x is not null",
        sources=1,
    ),
    Joined(
        "connect: two streams by time",
        lambda a, b: (
            a.key_by("k")
            .connect(b.key_by("k"))
            .process(Meeting(), schema={"n": "int64", "k": "string", "before": "int64"})
        ),
        met,
    ),
    Joined(
        "connect: rules of a broadcast stream",
        lambda a, b: a.key_by("k").connect(b.filter(col("n") % 8 == 1).broadcast()).process(Rules(), schema=RULED),
        lambda a, b: ruled(a, [row for row in b if row["n"] % 8 == 1]),
    ),
]

# -- over -----------------------------------------------------------------------------------------------------------------

ORDERED = "partition by {k} order by ts, n"
FRAMES: dict[str, tuple[Any, str]] = {
    "all rows before": (None, f"({ORDERED} rows between unbounded preceding and current row)"),
    "five rows before": (5, f"({ORDERED} rows between 5 preceding and current row)"),
    "no row before": (0, f"({ORDERED} rows between 0 preceding and current row)"),
    "five seconds": ("5s", "(partition by {k} order by ts range between 5000 preceding and current row)"),
    "an hour": ("1h", "(partition by {k} order by ts range between 3600000 preceding and current row)"),
    "the same moment": (0.0, "(partition by {k} order by ts range between current row and current row)"),
}


def over(name: str, keys: Sequence[str] = ("k",), **options: Any) -> Joined:
    preceding, frame = FRAMES[name]
    frame = frame.format(k=", ".join(keys))
    return Joined(
        f"over {name}, by {' and '.join(keys)}",
        lambda a: (
            a.select("n", "k", "j", "x", "v", "s")
            .key_by(*keys)
            .over(
                preceding=preceding,
                c=sabot.count(),
                some=sabot.count("v"),
                total=sabot.sum("v"),
                low=sabot.min("x"),
                high=sabot.max("v"),
                mean=sabot.mean("x"),
                large=sabot.count().filter(col("v") > 20),
            )
        ),
        f"""select n, k, j, x, v, s, count(*) over w as c, count(v) over w as some, sum(v) over w as total, min(x) over w as low,
            max(v) over w as high, avg(x) over w as mean, count(*) filter (where v > 20) over w as large from a window w as {frame}""",
        sources=1,
        near=("mean",),
        **options,
    )


ALONE = "partition by k order by ts, n"
OVERS = [
    *(over(name, data=("distinct",)) for name in FRAMES),
    over("five rows before", ("k", "j"), arrival=True),
    over("five seconds", ("j",)),  # peers of the same time are all in: whatever came first
    Joined(
        "over: rows before and after",
        lambda a: (
            a.select("n", "k", "x", "s")
            .key_by("k")
            .over(
                before=sabot.lag("x"),
                two_before=sabot.lag("s", 2, "none"),
                after=sabot.lead("n"),
                three_after=sabot.lead("x", 3, -99),
                place=sabot.row_number(),
            )
        ),
        f"""select n, k, x, s, lag(x) over w as before, lag(s, 2, 'none') over w as two_before, lead(n) over w as after,
            lead(x, 3, -99) over w as three_after, row_number() over w as place from a window w as ({ALONE})""",
        sources=1,
        arrival=True,
    ),
    Joined(
        "over: places",
        lambda a: a.select("n", "k").key_by("k").over(place=sabot.rank(), dense=sabot.dense_rank()),
        "select n, k, rank() over w as place, dense_rank() over w as dense from a window w as (partition by k order by ts)",
        sources=1,
    ),
    Joined(
        "over: the first and last of ten rows",
        lambda a: (
            a.select("n", "k", "x")
            .key_by("k")
            .over(preceding=9, begin=sabot.first("n"), end=sabot.last("x"), place=sabot.row_number())
        ),
        f"""select n, k, x, first(n) over w as begin, last(x) over w as "end", row_number() over ({ALONE}) as place from a
            window w as ({ALONE} rows between 9 preceding and current row)""",
        sources=1,
        arrival=True,
    ),
    Joined(
        "over: floats that are none",
        lambda a: (
            a.select("n", "k", "f")
            .key_by("k")
            .over(preceding=3, total=sabot.sum("f"), low=sabot.min("f"), high=sabot.max("f"))
        ),
        each_key(["k"], lambda rows: frames_of_floats(rows)),
        sources=1,
        arrival=True,
    ),
    Joined(
        "over: filters and expressions",
        lambda a: (
            a.select("n", "k", "x")
            .key_by("k")
            .over(preceding=4, even=sabot.sum(col("x") * 2).filter(col("n") % 2 == 0), before=sabot.lag(col("x") + 1))
        ),
        f"""select n, k, x, (sum(x * 2) filter (where n % 2 = 0) over w)::bigint as even, lag(x + 1) over ({ALONE}) as before from a
            window w as ({ALONE} rows between 4 preceding and current row)""",
        sources=1,
        arrival=True,
    ),
    Joined(  # rows come out in their own time, also those that wait for rows after them
        "over, then windows",
        lambda a: (
            a.select("n", "k", "x")
            .key_by("k")
            .over(after=sabot.lead("n", 2), place=sabot.row_number())
            .key_by("k")
            .window(tumbling("15s"))
            .aggregate(c=sabot.count("after"), most=sabot.max("place"), high=sabot.max("after"))
        ),
        f"""select k, floor(ts / 15000.0)::bigint * 15000 as window_start, window_start + 15000 as window_end, count(a2) as c,
            max(p) as most, max(a2) as high from (select k, ts, lead(n, 2) over w as a2, row_number() over w as p from a
            window w as ({ALONE})) group by k, window_start""",
        sources=1,
        arrival=True,
    ),
]


def frames_of_floats(rows: list[Row]) -> list[Row]:
    rows = in_time(rows)
    out = []
    for at, row in enumerate(rows):
        frame = rows[max(0, at - 3) : at + 1]
        kinds = {"total": "sum", "low": "min", "high": "max"}
        out.append(
            {
                "n": row["n"],
                "k": row["k"],
                "f": row["f"],
                **{name: of(kind, "f")(frame) for name, kind in kinds.items()},
            }
        )
    return out


# -- patterns -------------------------------------------------------------------------------------------------------------

Taken = list[tuple[int, int]]  # (step, place of the row)


@dataclass
class Step:
    """A step for the naive matcher. is_it: (row, the rows of each step so far) -> whether it may be taken."""

    name: str
    is_it: Callable[..., Any]
    before: str = "then"
    least: int = 1
    most: int | None = 1
    between: str = ""
    optional: bool = False
    forbidden: list[Callable[[Row], Any]] = field(default_factory=list)


def all_matches(
    rows: list[Row], steps: list[Step], within: int | None, ending: Callable[[Row], Any] | None = None
) -> list[Taken]:
    """Every match, by trying everything. rows: of one key, in order."""

    def rows_of_steps(taken: Taken) -> dict[str, list[Row]]:
        return {step.name: [rows[at] for which, at in taken if which == number] for number, step in enumerate(steps)}

    def is_it(number: int, at: int, taken: Taken) -> bool:
        return steps[number].is_it(rows[at], rows_of_steps(taken)) is True

    def following(taken: Taken, number: int, how: str, forbidden: list[Any]) -> Iterator[Taken]:
        """The ways to take one row of the step, behind what is taken."""
        for at in range(taken[-1][1] + 1, len(rows)):
            if within is not None and rows[at]["ts"] - rows[taken[0][1]]["ts"] > within:
                return
            if any(each(rows[at]) is True for each in forbidden):
                return
            if is_it(number, at, taken):
                yield [*taken, (number, at)]
                if how != "then_any":
                    return
            elif how == "next":
                return

    def explore(taken: Taken, number: int, count: int) -> Iterator[Taken]:
        step = steps[number]
        nexts = []
        for behind in range(number + 1, len(steps)):
            nexts.append(behind)
            if not steps[behind].optional:
                break
        if count >= step.least:
            if number == len(steps) - 1:
                yield taken
                return
            for behind in nexts:
                for more in following(taken, behind, steps[behind].before, steps[behind].forbidden):
                    yield from explore(more, behind, 1)
        if step.most is None or count < step.most:
            forbidden = [each for behind in nexts for each in steps[behind].forbidden] if count >= step.least else []
            for more in following(taken, number, step.between or step.before, forbidden):
                yield from explore(more, number, count + 1)

    found = []
    for at in range(len(rows)):
        for number, step in enumerate(steps):
            if is_it(number, at, []):
                found += list(explore([(number, at)], number, 1))
            if not step.optional:
                break
    if ending is not None:
        assert within is not None
        found = [
            taken
            for taken in found
            if not any(
                ending(row) is True and row["ts"] - rows[taken[0][1]]["ts"] <= within
                for row in rows[taken[-1][1] + 1 :]
            )
        ]
    return found


def apart(matches: list[Taken], skip: str) -> list[Taken]:
    """Those of all matches that are left where they may not overlap."""
    if skip == "none":
        return matches
    left, chosen = list(matches), []
    while left:
        done = min(taken[-1][1] for taken in left)
        ready = [taken for taken in left if taken[-1][1] == done]
        first = min(taken[0][1] for taken in ready)
        ready = [taken for taken in ready if taken[0][1] == first]
        best = max(ready, key=lambda taken: [any(at == row for _, at in taken) for row in range(first, done + 1)])
        chosen.append(best)
        edge = done if skip == "past_last" else first
        left = [taken for taken in left if taken[0][1] > edge]
    return chosen


def found_by(
    steps: list[Step], *, within: int | None = None, skip: str = "past_last", ending: Callable[[Row], Any] | None = None
) -> Callable[[list[Row]], list[Row]]:
    """The oracle: of each match the keys, its ends, and of each step the numbers of its rows."""

    def answer(rows: list[Row]) -> list[Row]:
        rows = in_time(rows)
        out = []
        for taken in apart(all_matches(rows, steps, within, ending), skip):
            start = rows[taken[0][1]]["ts"]
            out.append(
                {
                    "k": rows[0]["k"],
                    "match_start": start,
                    "match_end": rows[taken[-1][1]]["ts"] if ending is None else start + within,  # type: ignore[operator]
                    **{
                        step.name: tuple(rows[at]["n"] for which, at in taken if which == number)
                        for number, step in enumerate(steps)
                    },
                }
            )
        return out

    return each_key(["k"], answer)


def listed(pattern: Any) -> dict[str, Any]:
    return {step.name: sabot.step(step.name).list("n") for step in pattern.steps}


def matching(
    name: str,
    pattern: Any,
    steps: list[Step],
    *,
    skip: str = "past_last",
    within: int | None = None,
    ending: Any = None,
    **options: Any,
) -> Joined:
    return Joined(
        f"pattern: {name}",
        lambda a: a.key_by("k").pattern(pattern, skip=skip, **listed(pattern)),
        found_by(steps, within=within, skip=skip, ending=ending),
        sources=1,
        arrival=True,
        data=("plain", "old", "sparse", "one", "empty")
        if skip == "none"
        else ("plain", "old", "sparse", "hot", "one", "empty"),
        **options,
    )


def is_x(*values: int) -> Callable[..., Any]:
    return lambda row, steps=None: row["x"] in values


LOW, MIDDLE, HIGH, ANY = col("x") < 0, col("x").is_in([0, 1, 2]), col("x") > 2, col("n") >= 0
is_low, is_middle, is_high = is_x(-3, -2, -1), is_x(0, 1, 2), is_x(3, 4, 5)

PATTERNS = [
    *(
        matching(
            f"three steps, {skip}",
            sabot.pattern("a", LOW).then("b", MIDDLE).then("c", HIGH),
            [Step("a", is_low), Step("b", is_middle), Step("c", is_high)],
            skip=skip,
        )
        for skip in ("past_last", "to_next", "none")
    ),
    *(
        matching(
            f"three steps within a time, {skip}",
            sabot.pattern("a", LOW).then("b", MIDDLE).then("c", HIGH).within("20s"),
            [Step("a", is_low), Step("b", is_middle), Step("c", is_high)],
            skip=skip,
            within=20_000,
        )
        for skip in ("past_last", "to_next", "none")
    ),
    *(
        matching(
            f"rows that follow each other, {skip}",
            sabot.pattern("a", LOW).next("b", ANY).next("c", HIGH),
            [Step("a", is_low), Step("b", lambda row, steps: True, "next"), Step("c", is_high, "next")],
            skip=skip,
        )
        for skip in ("past_last", "to_next", "none")
    ),
    *(
        matching(
            f"any later rows, {skip}",
            sabot.pattern("a", LOW).then_any("b", MIDDLE).then("c", HIGH).within("15s"),
            [Step("a", is_low), Step("b", is_middle, "then_any"), Step("c", is_high)],
            skip=skip,
            within=15_000,
        )
        for skip in ("past_last", "none")
    ),
    *(
        matching(
            f"two to four in the middle, {skip}",
            sabot.pattern("a", LOW).then("b", MIDDLE, times=(2, 4)).then("c", HIGH).within("40s"),
            [Step("a", is_low), Step("b", is_middle, least=2, most=4), Step("c", is_high)],
            skip=skip,
            within=40_000,
        )
        for skip in ("past_last", "none")
    ),
    *(
        matching(
            f"one or more in the middle, {skip}",
            sabot.pattern("a", LOW).then("b", MIDDLE, times=(1, None)).then("c", HIGH).within("30s"),
            [Step("a", is_low), Step("b", is_middle, most=None), Step("c", is_high)],
            skip=skip,
            within=30_000,
        )
        for skip in ("past_last", "none")
    ),
    matching(
        "three at once, twice",
        sabot.pattern("a", LOW, times=3).then("b", HIGH, times=2),
        [Step("a", is_low, least=3, most=3), Step("b", is_high, least=2, most=2)],
        skip="none",
    ),
    matching(
        "two that follow each other",
        sabot.pattern("a", LOW).then("b", MIDDLE, times=2).consecutive().then("c", HIGH),
        [Step("a", is_low), Step("b", is_middle, least=2, most=2, between="next"), Step("c", is_high)],
        skip="none",
    ),
    *(
        matching(
            f"not that between, {skip}",
            sabot.pattern("a", LOW).without(col("j") == 1).then("b", HIGH),
            [Step("a", is_low), Step("b", is_high, forbidden=[lambda row: row["j"] == 1])],
            skip=skip,
        )
        for skip in ("past_last", "none")
    ),
    matching(
        "not that between three steps, within a time",
        sabot.pattern("a", LOW).then("b", MIDDLE, times=(1, 2)).without(col("j") == 2).then("c", HIGH).within("1m"),
        [Step("a", is_low), Step("b", is_middle, most=2), Step("c", is_high, forbidden=[lambda row: row["j"] == 2])],
        skip="none",
        within=60_000,
    ),
    matching(
        "and then not that",
        sabot.pattern("a", LOW).then("b", HIGH).without(MIDDLE).within("12s"),
        [Step("a", is_low), Step("b", is_high)],
        skip="none",
        within=12_000,
        ending=is_middle,
    ),
    *(
        matching(
            f"a step that may be left out, {skip}",
            sabot.pattern("a", LOW).then("b", MIDDLE).optional().then("c", HIGH).within("25s"),
            [Step("a", is_low), Step("b", is_middle, optional=True), Step("c", is_high)],
            skip=skip,
            within=25_000,
        )
        for skip in ("past_last", "none")
    ),
    *(
        matching(
            f"more than before, {skip}",
            sabot.pattern("a", LOW)
            .then("b", col("v") > sabot.step("a").last("v"))
            .then("c", col("v") > sabot.step("b").last("v") * 1.5)
            .within("40s"),
            [
                Step("a", is_low),
                Step("b", lambda row, steps: more(row["v"], steps["a"][-1]["v"])),
                Step("c", lambda row, steps: more(row["v"], steps["b"][-1]["v"], 1.5)),
            ],
            skip=skip,
            within=40_000,
        )
        for skip in ("past_last", "none")
    ),
    Joined(
        "pattern: what is measured",
        lambda a: a.key_by("k").pattern(
            sabot.pattern("a", LOW).then("b", MIDDLE, times=2).then("c", HIGH),
            n=sabot.step("b").count(),
            total=sabot.step("b").sum("v"),
            low=sabot.step("b").min("v"),
            high=sabot.step("b").max("x"),
            mean=sabot.step("b").mean("x"),
            first=sabot.step("a").first("s"),
            last=sabot.step("c").last("s"),
            texts=sabot.step("b").list("s"),
            span=sabot.step("c").last("ts") - sabot.step("a").first("ts"),
        ),
        lambda rows: measured(rows),
        sources=1,
        arrival=True,
        near=("mean",),
    ),
    Joined(  # a match has the time of its end
        "pattern: then windows",
        lambda a: (
            a.key_by("k")
            .pattern(sabot.pattern("a", LOW).then("b", HIGH), n=sabot.step("b").last("n"))
            .key_by("k")
            .window(tumbling("30s"))
            .aggregate(c=sabot.count(), high=sabot.max("n"))
        ),
        lambda rows: windowed(["k"], tumbles(30_000), c=of("count"), high=lambda rs: max(r["b"][0] for r in rs))(
            [{**row, "ts": row["match_end"]} for row in found_by([Step("a", is_low), Step("b", is_high)])(rows)]
        ),
        sources=1,
        arrival=True,
    ),
]


def more(value: float | None, than: float | None, times: float = 1.0) -> bool:
    return value is not None and than is not None and value > than * times


def measured(rows: list[Row]) -> list[Row]:
    numbered = {row["n"]: row for row in rows}
    steps = [Step("a", is_low), Step("b", is_middle, least=2, most=2), Step("c", is_high)]
    out = []
    for match in found_by(steps)(rows):
        a, b, c = ([numbered[n] for n in match[name]] for name in "abc")
        told = {
            "n": 2,
            "total": of("sum", "v")(b),
            "low": of("min", "v")(b),
            "high": of("max", "x")(b),
            "mean": of("mean", "x")(b),
            "first": a[0]["s"],
            "last": c[0]["s"],
            "texts": [row["s"] for row in b],
            "span": c[0]["ts"] - a[0]["ts"],
        }
        out.append({**{name: match[name] for name in ("k", "match_start", "match_end")}, **told})
    return out


# -- calls ----------------------------------------------------------------------------------------------------------------


async def doubled(row: Row) -> Any:
    """Some at once, some later; nothing, a row or two."""
    if row["n"] % 3:
        await asyncio.sleep((row["n"] * 7 % 5) / 2000)
    if row["x"] is None:
        return None
    found = {"n": row["n"], "k": row["k"], "twice": row["x"] * 2}
    return [found, {**found, "n": -row["n"]}] if row["n"] % 4 == 0 else found


DOUBLED = {"n": "int64", "k": "string", "twice": "int64"}
DOUBLED_SQL = (
    """select unnest(if(n % 4 = 0, [n, -n], [n])) as n, k, (x * 2)::bigint as twice from a where x is not null"""
)


async def doubled_batch(batch: pa.RecordBatch) -> Any:
    await asyncio.sleep(batch.num_rows % 3 / 1000)
    kept = batch.filter(pc.is_valid(batch["x"]))
    return pa.table({"n": kept["n"], "k": kept["k"], "twice": pc.multiply(kept["x"], 2)})


class Unsteady:
    """Fails the first times that it is asked for a row."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.asked: Counter[int] = Counter()

    async def __call__(self, row: Row) -> Row:
        self.asked[row["n"]] += 1
        if self.asked[row["n"]] <= self.failures and row["n"] % 5 == 0:
            if row["n"] % 2:
                await asyncio.sleep(60)  # until the timeout
            raise ConnectionError("not now")
        return {"n": row["n"]}


async def name_of(key: Any) -> Row | None:
    await asyncio.sleep(0.001)
    return None if key in ("c", "e") else {"name": f"<{key}>", "x": len(str(key))}


NAMES = {"name": "string", "x": "int64"}
NAMES_SQL = """select n, k, x, if(k in ('c', 'e'), null, '<' || k || '>') as name,
    if(k in ('c', 'e'), null, length(k)) as x_right from a"""

CALLS = [
    *(
        Joined(
            f"map_async, {word}, {concurrency} at a time",
            lambda a, ordered=ordered, concurrency=concurrency: a.map_async(
                doubled, schema=DOUBLED, ordered=ordered, concurrency=concurrency
            ),
            DOUBLED_SQL,
            sources=1,
        )
        for word, ordered in (("ordered", True), ("unordered", False))
        for concurrency in (1, 30)
    ),
    *(
        Joined(  # event time does not overtake what is in flight
            f"map_async, {word}, then windows",
            lambda a, ordered=ordered: (
                a.map_async(doubled, schema=DOUBLED, ordered=ordered, concurrency=20)
                .key_by("k")
                .window(tumbling("10s"))
                .aggregate(c=sabot.count(), total=sabot.sum("twice"), high=sabot.max("n"))
            ),
            f"""select k, floor(ts / 10000.0)::bigint * 10000 as window_start, window_start + 10000 as window_end, count(*) as c,
                sum(twice)::bigint as total, max(n) as high from ({DOUBLED_SQL.replace("select unnest", "select ts, unnest")})
                group by k, window_start""",
            sources=1,
        )
        for word, ordered in (("ordered", True), ("unordered", False))
    ),
    Joined(
        "map_async of batches",
        lambda a: a.map_async(doubled_batch, schema=DOUBLED, batch=True, rows=10, concurrency=4, ordered=False),
        "select n, k, (x * 2)::bigint as twice from a where x is not null",
        sources=1,
    ),
    Joined(
        "map_async with attempts",
        lambda a: a.map_async(
            Unsteady(2), schema={"n": "int64"}, retries=3, backoff="1ms", timeout="20ms", concurrency=50
        ),
        "select n from a",
        sources=1,
        data=("sparse", "one", "empty"),
    ),
    Joined(
        "map_async, then groups",
        lambda a: (
            a.map_async(doubled, schema=DOUBLED, ordered=False)
            .group_by("k")
            .aggregate(c=sabot.count(), t=sabot.sum("twice"))
        ),
        f"select k, count(*) as c, sum(twice)::bigint as t from ({DOUBLED_SQL}) group by k",
        sources=1,
        changes=True,
        key=("k",),
    ),
    *(
        Joined(
            f"lookup by a function, {how}, {cache} answers kept",
            lambda a, how=how, cache=cache: (
                a.filter(col("k").is_not_null())
                .select("n", "k", "x")
                .lookup(name_of, on="k", schema=NAMES, how=how, cache=cache)
            ),
            f"select * from ({NAMES_SQL}) where k is not null" + (" and name is not null" if how == "inner" else ""),
            sources=1,
        )
        for how, cache in (("left", 10_000), ("inner", 10_000), ("left", 2), ("inner", 0))
    ),
    Joined(
        "lookup by a function, out of order",
        lambda a: a.filter(col("k") != "").select("n", "k", "x").lookup(name_of, on="k", schema=NAMES, ordered=False),
        f"select * from ({NAMES_SQL}) where k <> ''",
        sources=1,
    ),
]

PROGRAMS = [*PROCESSES, *OVERS, *PATTERNS, *CALLS]


@pytest.mark.one_in(15, "a tenth of a second of a core each; the others run as often as they are drawn for `make slow`")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
async def test_functions_of_keys_give_the_batch_answer(program: Joined, seed: int, tmp_path: Path) -> None:
    await answers_are_the_same(program, "split", seed, tmp_path)


@pytest.mark.one_in(30, "each program is run under any split above")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
async def test_functions_of_keys_give_the_batch_answer_in_another_way(
    program: Joined, seed: int, tmp_path: Path
) -> None:
    await answers_are_the_same(program, another_way(program, seed), seed, tmp_path)


def test_the_programs_have_names_of_their_own() -> None:
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS)


# -- timers of the clock, and what is forgotten --------------------------------------------------------------------------


async def test_timers_of_the_clock_fire_when_it_is_time_and_not_before(memory_url: str) -> None:
    clock = ManualClock()
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("rows")
    fired: list[tuple[str, int]] = []

    def remind(row: Row, ctx: Any) -> None:
        ctx.timers.processing(ctx.now() + row["x"] * 1000, "later")
        ctx.timers.processing(ctx.now() + 5000)
        ctx.timers.delete(ctx.now() + 5000, kind="processing")

    def ring(timer: Any, ctx: Any) -> Row:
        assert (timer.kind, timer.name) == ("processing", "later")
        assert ctx.now() >= timer.at
        fired.append((ctx.key, timer.at))
        return {"k": ctx.key}

    kept = Kept()
    app = App("clock", broker=memory_url, clock=clock)
    rows = app.stream("rows", schema={"k": "string", "x": "int64"})
    rows.key_by("k").process(remind, schema={"k": "string"}, on_timer=ring).to(kept)
    broker.publish("rows", [{"k": "b", "x": 60}, {"k": "a", "x": 30}, {"k": "c", "x": 90}])
    running = asyncio.ensure_future(app.run())
    try:
        await until(lambda: rows_read(app.statistics()) == 3 or running.done(), "the rows")
        for seconds, names in ((29, ""), (2, "a"), (28, "a"), (2, "ab"), (40, "abc")):
            await asyncio.sleep(0.05)  # nothing fires while the clock stands
            clock.advance(seconds)
            await until(lambda names=names: len(fired) == len(names), f"{names!r}, not {fired}")
            assert [key for key, _ in fired] == list(names)
    finally:
        app.request_stop()
        await running


def test_timers_of_the_clock_that_are_pending_at_the_end_do_not_fire() -> None:
    def remind(row: Row, ctx: Any) -> Row:
        ctx.timers.processing(ctx.now() + 3_600_000)
        return {"n": row["n"]}

    def ring(timer: Any, ctx: Any) -> Row:
        raise AssertionError("it fired")

    stream = App("clock").stream(Rows(events("plain"), split="seven"), time="ts", lateness="5s")
    got = stream.key_by("k").process(remind, schema={"n": "int64"}, on_timer=ring).collect()
    assert sorted(got["n"].to_pylist()) == list(range(240))


@pytest.mark.parametrize("batch", [False, True])
def test_a_value_is_forgotten_so_long_after_it_was_put(batch: bool) -> None:
    times = [0, 4000, 9000, 25_000, 26_000, 60_000]
    table = pa.table(
        {"ts": pa.array(times, pa.int64()), "k": ["a"] * len(times), "n": pa.array(range(len(times)), pa.int64())}
    )

    def count(row: Row, ctx: Any) -> Row:
        seen = (ctx.state("seen").get() or 0) + 1
        ctx.state("seen").put(seen)
        return {"n": row["n"], "seen": seen}

    def count_all(keys: pa.Array, rows: pa.RecordBatch, ctx: Any) -> Any:
        seen = pc.add(pc.fill_null(pc.cast(ctx.state("seen").get_many(keys), pa.int64()), 0), 1)
        ctx.state("seen").put_many(keys, seen)
        return pa.table({"n": rows["n"], "seen": seen})

    function = count_all if batch else count
    stream = App("ttl").stream(Rows(table, split="one"), time="ts")
    got = stream.key_by("k").process(function, schema={"n": "int64", "seen": "int64"}, ttl="10s", batch=batch).collect()
    assert got["seen"].to_pylist() == [1, 2, 3, 1, 2, 1]


def test_of_a_broadcast_stream_all_subtasks_have_all_rules(tmp_path: Path) -> None:

    def check(row: Row, ctx: Any) -> Row:
        return {"n": row["n"], "rules": len(ctx.broadcast("rules").items())}

    def rule(row: Row, ctx: Any) -> None:
        ctx.broadcast("rules").put(row["n"], row["x"])
        if row["n"] % 4 == 1:
            ctx.broadcast("rules").delete(row["n"])

    program = Joined(
        "rules",
        lambda a, b: (
            a.key_by("k").connect(b.broadcast()).process(check, right=rule, schema={"n": "int64", "rules": "int64"})
        ),
        lambda a, b: [{"n": row["n"], "rules": sum(r["n"] % 4 != 1 and r["x"] is not None for r in b)} for row in a],
    )
    for seed in range(2):
        how = draw(program, "rules", seed)
        got = asyncio.run(run_in_turns(program, events(how.data, seed), how, tmp_path / str(seed), order=[1, 0]))
        wrong = differences(got, program.answer(events(how.data, seed)))
        assert not wrong, f"{how}\n{wrong}"


async def test_a_rule_is_put_by_the_side_of_rules_alone() -> None:
    def check(row: Row, ctx: Any) -> None:
        ctx.broadcast("rules").put(1, 1)

    app = App("rules")
    a, b = (app.stream(Rows(events("plain"), name=name), time="ts") for name in "ab")
    a.key_by("k").connect(b.broadcast()).process(check, right=lambda row, ctx: None, schema={"n": "int64"}).to(Kept())
    with pytest.raises(SabotError, match="broadcast"):
        await app.run()


# -- calls: order, how many at a time, what fails ------------------------------------------------------------------------


def test_ordered_calls_keep_the_order_of_the_rows() -> None:
    table = events("plain")
    stream = App("calls").stream(Rows(table, split="mixed"), time="ts", lateness="5s")
    assert stream.map_async(Unsteady(0), schema={"n": "int64"}, concurrency=40).collect()["n"].to_pylist() == list(
        range(240)
    )


@pytest.mark.parametrize("ordered", [True, False])
def test_no_more_calls_are_in_flight_than_was_said(ordered: bool) -> None:
    flying: Counter[str] = Counter()

    async def fly(row: Row) -> Row:
        flying["now"] += 1
        flying["most"] = max(flying["most"], flying["now"])
        await asyncio.sleep(0.002)
        flying["now"] -= 1
        return {"n": row["n"]}

    stream = App("calls").stream(Rows(events("plain"), split="all"))
    got = stream.map_async(fly, schema={"n": "int64"}, concurrency=16, ordered=ordered).collect()
    assert sorted(got["n"].to_pylist()) == list(range(240))
    assert flying["most"] == 16


def test_unordered_calls_do_not_wait_for_a_slow_one() -> None:
    rest = asyncio.Event()

    async def call(row: Row) -> Row:
        if row["n"] == 0:
            await asyncio.wait_for(rest.wait(), 60)
        if row["n"] == 200:
            rest.set()
        return {"n": row["n"]}

    stream = App("calls").stream(Rows(events("plain"), split="seven"))
    got = stream.map_async(call, schema={"n": "int64"}, concurrency=4, ordered=False).collect()["n"].to_pylist()
    assert sorted(got) == list(range(240))
    assert got.index(0) > got.index(190)


async def test_a_call_that_fails_stops_the_job_or_its_row_goes_to_the_dead_letters() -> None:
    async def call(row: Row) -> Row:
        if row["n"] % 10 == 3:
            raise ValueError(f"row {row['n']}")
        return {"n": row["n"]}

    app = App("calls")
    app.stream(Rows(events("plain"))).map_async(call, schema={"n": "int64"}).to(Kept())
    with pytest.raises((AgentFailed, SabotError), match="row 3"):
        await app.run()
    kept, dead = Kept(), ListSink("dead")
    app = App("calls", parallelism=2)
    app.stream(Rows(events("plain"))).map_async(call, schema={"n": "int64"}, on_error="skip", dead_letter=dead).to(kept)
    await app.run()
    assert sorted(kept.table()["n"].to_pylist()) == [n for n in range(240) if n % 10 != 3]
    assert len(dead.rows) == 24


@pytest.mark.one_in(2, "a quarter of a second of a core each")
@pytest.mark.parametrize("share", [0.5, 1.0], ids=["while rows come", "when the input has ended"])
async def test_a_call_of_before_a_crash_is_made_again(share: float, tmp_path: Path) -> None:
    """What was in flight when the checkpoint was taken is called again after the restart; what had an answer is not lost either."""
    asked: Counter[int] = Counter()
    table = events("plain").slice(0, 40)
    flying = int(40 * share)

    async def call(row: Row) -> Row:
        asked[row["n"]] += 1
        if row["n"] % 2 and row["n"] < flying and asked[row["n"]] == 1:
            await asyncio.sleep(60)
        return {"n": row["n"]}

    def app_with(kept: Kept, gate: Gate, place: Path) -> App:
        app = App("again", state=str(place), checkpoint_dir=place / "checkpoints", checkpoint_timeout="5s")
        stream = app.stream(Rows(table, split="all", gate=gate))
        stream.map_async(call, schema={"n": "int64"}, ordered=False, timeout=None).to(kept)
        return app

    first = Kept()
    app = app_with(first, Gate(share), tmp_path / "life")
    await app.start()
    try:
        await until(lambda: len(asked) == flying, "the calls")
        await app.agent_runtime.trigger_checkpoint()
        first.crash()
        # What a crash leaves: the stop makes a checkpoint behind this one, of answers that came meanwhile and never landed.
        shutil.copytree(tmp_path / "life", tmp_path / "left")
    finally:
        await app.stop()
    second = first.again()
    await asyncio.wait_for(app_with(second, Gate(), tmp_path / "left").run(), 60)
    assert sorted(set(second.table()["n"].to_pylist())) == list(range(40))
    assert all(asked[n] >= 2 for n in range(1, flying, 2))


# -- how much is kept -----------------------------------------------------------------------------------------------------

A_WEEK = [
    ("over an hour", lambda a: a.key_by("k").over(preceding="1h", c=sabot.count(), low=sabot.min("x"))),
    (
        "over ten rows",
        lambda a: a.key_by("k").over(preceding=10, c=sabot.count(), low=sabot.min("x"), before=sabot.lag("x")),
    ),
    (
        "a pattern within an hour",
        lambda a: a.key_by("k").pattern(
            sabot.pattern("a", col("x") == 1).then("b", col("x") == 7).within("1h"),
            skip="none",
            n=sabot.step("b").list("n"),
        ),
    ),
    ("windows by timers", lambda a: a.key_by("k").process(count_in_windows, schema=WINDOWS, on_timer=window_ends)),
]


def numbers(found: Any) -> list[int]:
    return [each for each in found if isinstance(each, int)]


@pytest.mark.slow  # half a second of a core
@pytest.mark.parametrize(("name", "build"), A_WEEK, ids=[name for name, _ in A_WEEK])
async def test_what_is_kept_of_a_week_is_no_more_than_of_a_day(
    name: str, build: Callable[[Stream], Stream], tmp_path: Path
) -> None:
    """Bytes of state, as the operators say, late in the week and after its first day."""
    program = Joined(name, build, "", sources=1)
    table = a_week()
    day, week = [await figures_at(program, table, share, tmp_path, "bytes") for share in (1 / 7, 0.99)]
    assert numbers(week["bytes"]), f"no operator says how much it keeps: {week}"
    assert sum(numbers(week["bytes"])) <= 2 * sum(numbers(day["bytes"])) + 20_000, f"{day}\n{week}"


# -- what is refused ------------------------------------------------------------------------------------------------------


def a_key() -> Any:
    return App("refused").stream("a", schema=EVENTS, time="ts").key_by("k")


def beside(keyed: Any, *keys: str) -> Any:
    """Another stream of the same app."""
    return keyed._steps.owner.stream("b", schema=EVENTS, time="ts").key_by(*keys)


A, B = sabot.pattern("a", LOW), sabot.pattern("a", LOW).then("b", HIGH)

REFUSED: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "a misspelt key": (lambda k: k.process(add_up, schema={}), ["schema"]),
    "a process without a schema": (lambda k: k.process(add_up, schema=None), ["schema"]),
    "a process of no function": (lambda k: k.process(3, schema=TOTALS), ["3", "function"]),
    "a coroutine": (lambda k: k.process(doubled, schema=TOTALS), ["async", "map_async"]),
    "a column of ours": (lambda k: k.process(add_up, schema={"__time": "int64"}), ["__time"]),
    "a side that is not there": (
        lambda k: k.process(by_sign, schema=TOTALS, sides={"bad": TOTALS}).side("good"),
        ["'good'", "bad"],
    ),
    "a ttl of nothing": (lambda k: k.process(add_up, schema=TOTALS, ttl=0), ["ttl"]),
    "two streams by other keys": (
        lambda k: k.connect(beside(k, "k", "j")),
        ["keys", "broadcast"],
    ),
    "two streams, and one function": (lambda k: k.connect(beside(k, "s")).process(add_up, schema=TOTALS), ["right="]),
    "one stream, and two functions": (lambda k: k.process(Meeting(), schema=TOTALS, on_timer=3), ["on_timer"]),
    "a misspelt column behind": (
        lambda k: k.process(add_up, schema=TOTALS).filter(col("totl") > 1),
        ["'totl'", "'total'"],
    ),
    "over nothing": (lambda k: k.over(preceding=3), ["column"]),
    "over a word": (lambda k: k.over(c="count"), ["c='count'"]),
    "fewer than no rows": (lambda k: k.over(preceding=-1, c=sabot.count()), ["-1"]),
    "over a name that is taken": (lambda k: k.over(x=sabot.count()), ["'x'"]),
    "a misspelt frame": (lambda k: k.over(preceding="an hour", c=sabot.count()), ["an hour"]),
    "no rows before": (lambda k: k.over(c=sabot.lag("x", 0)), ["0"]),
    "the last text over rows": (lambda k: k.over(c=sabot.last("s")).explain(), ["last", "string"]),
    "no pattern": (lambda k: k.pattern(LOW), ["pattern"]),
    "a misspelt column in a pattern": (lambda k: k.pattern(sabot.pattern("a", col("xx") > 1)), ["'xx'", "n, ts, k"]),
    "a misspelt column in a measure": (lambda k: k.pattern(A, v=sabot.step("a").last("vv")), ["'vv'", "n, ts, k"]),
    "a step that is not there": (lambda k: k.pattern(B, v=sabot.step("c").count()), ["step", "a, b"]),
    "a later step": (lambda k: k.pattern(sabot.pattern("a", col("x") > sabot.step("b").last("x"))), ["step", "a"]),
    "another skip": (lambda k: k.pattern(B, skip="next"), ["next", "past_last"]),
    "a pattern without an end": (lambda k: k.pattern(B.without(MIDDLE)), ["within"]),
    "within twice": (lambda k: B.within("1m").within("2m"), ["within"]),
    "fewer times than none": (lambda k: B.then("c", LOW, times=(3, 2)), ["times"]),
    "all optional": (lambda k: k.pattern(A.optional()), ["optional"]),
    "a measure named as a key": (lambda k: k.pattern(B, k=sabot.step("a").count()), ["'k'"]),
}


@pytest.mark.parametrize(("build", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_is_refused_when_it_is_written(build: Callable[[Any], Any], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        build(a_key())
    said = f"{refused.value} {refused.value.hint}"
    assert all(word in said for word in words), said


def nothing(row: Row) -> Row:
    return row


async def yields(row: Row) -> Any:
    yield row


CALLS_REFUSED: dict[str, tuple[Callable[[Stream], Any], list[str]]] = {
    "a function that does not wait": (lambda s: s.map_async(nothing, schema={"n": "int64"}), ["nothing", "async def"]),
    "a lookup that yields": (lambda s: s.lookup(yields, on="k", schema=NAMES), ["yields"]),
    "no calls at a time": (lambda s: s.map_async(doubled, schema=DOUBLED, concurrency=0), ["concurrency=0"]),
    "fewer than no attempts": (lambda s: s.map_async(doubled, schema=DOUBLED, retries=-1), ["retries=-1"]),
    "another word for errors": (lambda s: s.map_async(doubled, schema=DOUBLED, on_error="ignore"), ["ignore", "skip"]),  # type: ignore[arg-type]
    "no columns": (lambda s: s.map_async(doubled, schema={}), ["columns"]),
    "a misspelt column behind": (lambda s: s.map_async(doubled, schema=DOUBLED).select("twce"), ["'twce'", "'twice'"]),
    "a lookup without columns": (lambda s: s.lookup(name_of, schema=NAMES), ["on="]),
    "a lookup by a misspelt key": (lambda s: s.lookup(name_of, on="kk", schema=NAMES), ["'kk'", "n, ts, k"]),
    "a lookup of another kind": (lambda s: s.lookup(name_of, on="k", schema=NAMES, how="full"), ["full", "left"]),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("build", "words"), CALLS_REFUSED.values(), ids=CALLS_REFUSED.keys())
def test_calls_that_cannot_be_are_refused_when_they_are_written(
    build: Callable[[Stream], Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as refused:
        build(App("refused").stream("a", schema=EVENTS, time="ts"))
    said = f"{refused.value} {refused.value.hint}"
    assert all(word in said for word in words), said
