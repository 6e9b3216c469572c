"""Steps of random programs that join, rank, wait and match; beside each, what it comes to over all rows at once."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from flows import SCHEMA, Computed, Dice, Flow, Row, grouped, narrow

import sabot
from sabot import Stream, col, hopping, tumbling
from sabot.llm import ExecutionEngine, Limits, RequestRefused, RequestSpec, ScriptedProvider

_FAR_MS = 4_000_000_000_000  # behind all rows: what is due then is due when the input ends
_SQL_HOW = {"full": "full outer"}


# -- joins ----------------------------------------------------------------------------------------------------------------


def two(left: Flow, right: Flow, step: Callable[[Stream, Stream], Stream], **facts: Any) -> Flow:
    """A step of both. facts: those of the result."""
    return replace(
        left,
        make=lambda given: step(left.make(given), right.make(given)),
        computed=(*left.computed, *(each for each in right.computed if each not in left.computed)),
        depth=max(left.depth, right.depth) + 1,
        **({"apart": False, "ordered": False} | facts),
    )


def columns_of_join(left: Flow, right: Flow, on: Sequence[str], how: str, middle: Sequence[str] = ()) -> dict[str, Any]:
    """The columns, as names and as SQL ("picked", of l and r), and what is known of them."""
    suffix = f"_r{max(left.depth, right.depth)}"
    both = how in ("right", "full")
    picked = [
        f"coalesce(l.{name}, r.{name}) as {name}" if both and name in on else f"l.{name}" for name in left.columns
    ]
    names = {name: name for name in right.columns if name not in on}
    taken = {*left.columns, *middle}
    names = {name: name + suffix if name in taken else name for name in names}
    if how in ("semi", "anti"):
        names = {}
    else:
        picked += [*middle, *(f"r.{name} as {new}" for name, new in names.items())]

    def known(kind: str) -> tuple[str, ...]:
        return (*getattr(left, kind), *(names[name] for name in getattr(right, kind) if name in names))

    unique = left.unique
    if how not in ("semi", "anti") and unique is not None and not set(right.unique or ("none",)) <= set(on):
        others = None if right.unique is None else [names.get(name, name) for name in right.unique]
        unique = None if others is None else tuple(dict.fromkeys((*unique, *others)))
    if both:
        unique = None
    columns = (*left.columns, *(middle if names or how not in ("semi", "anti") else ()), *names.values())
    return {
        "picked": ", ".join(picked),
        "suffix": suffix,
        "facts": {
            "columns": columns,
            "keys": tuple(dict.fromkeys(known("keys"))),
            "ints": tuple(dict.fromkeys(known("ints"))),
            "floats": tuple(dict.fromkeys(known("floats"))),
            "unique": unique,
            "many": left.many or right.many,
        },
    }


def pairs(left: Flow, right: Flow, picked: str, on: Sequence[str], how: str, also: str = "") -> str:
    """The join as SQL; also: of l and r, which have their event time as at_."""
    condition = " and ".join([f"l.{name} = r.{name}" for name in on] + ([also] if also else []))
    a, b = (f"(select *, {flow.time or 'null'} as at_ from ({flow.sql}))" for flow in (left, right))
    if how in ("semi", "anti"):
        word = "exists" if how == "semi" else "not exists"
        return f"select {picked} from {a} l where {word} (select 1 from {b} r where {condition})"
    return f"select {picked} from {a} l {_SQL_HOW.get(how, how)} join {b} r on {condition}"


def later(left: Flow, right: Flow, names: dict[str, Any]) -> str | None:
    """The event time of a pair, where it can be said of its columns."""
    if left.time != "ts" or right.time != "ts":
        return None
    found = f"ts{names['suffix']}"
    return f"greatest(ts, {found})" if found in names["facts"]["columns"] else None


def joined(left: Flow, right: Flow, dice: Dice) -> Flow:
    """The regular join."""
    on = shared_keys(left, right, dice)
    how = dice.choice(["inner", "left", "left", "right", "full", "full", "semi", "anti"])
    broadcast = not left.changes and how not in ("right", "full") and dice.random() < 0.25
    keep = None
    if not broadcast and not left.changes and not right.changes and dice.random() < 0.2:
        keep = ("30d", None if how in ("semi", "anti") else "30d")  # longer than all rows
    names = columns_of_join(left, right, on, how)
    changes = left.changes or right.changes or how not in ("inner", "semi")

    def step(a: Stream, b: Stream) -> Stream:
        return a.join(
            b.broadcast() if broadcast else b,
            on=list(on),
            how=how,
            suffix=names["suffix"],
            keep=keep,  # type: ignore[arg-type]
        )

    return two(
        left,
        right,
        step,
        sql=pairs(left, right, names["picked"], on, how),
        time=later(left, right, names) if how == "inner" and not changes else None,
        changes=changes,
        **names["facts"] | {"many": how not in ("semi", "anti")},
    )


def interval_joined(left: Flow, right: Flow, dice: Dice) -> Flow:
    on = shared_keys(left, right, dice)
    how = dice.choice(["inner", "left", "right", "full", "semi", "anti"])
    lower, upper = sorted(dice.choice([-5000, -700, -100, 0, 100, 700, 5000]) for _ in range(2))
    open_end = dice.choice(["", "", "", "lower", "upper"]) if how in ("inner", "semi") else ""
    bounds = (None if open_end == "lower" else lower, None if open_end == "upper" else upper)
    between = tuple(None if ms is None else ms / 1000 for ms in bounds)
    apart = "r.at_ - l.at_"
    also = [f"{apart} >= {lower}"] * (bounds[0] is not None) + [f"{apart} <= {upper}"] * (bounds[1] is not None)
    names = columns_of_join(left, right, on, how)
    time = left.time if how == "anti" or (how == "semi" and bounds[1] is not None) else None
    return two(
        left,
        right,
        lambda a, b: a.join(b, on=list(on), how=how, between=between, suffix=names["suffix"]),  # type: ignore[arg-type]
        sql=pairs(left, right, names["picked"], on, how, " and ".join(also)),
        time=time or (later(left, right, names) if how not in ("semi", "anti") else None),
        apart=left.apart and time is not None,
        **names["facts"] | {"many": True},
    )


def window_joined(left: Flow, right: Flow, dice: Dice) -> Flow:
    on = shared_keys(left, right, dice)
    how = dice.choice(["inner", "left", "right", "full", "semi", "anti"])
    size = dice.choice([300, 1000, 5000])
    hops = dice.choice([1, 1, 2]) if how not in ("semi", "anti") else 1
    slide = size // hops
    window = tumbling(size / 1000) if hops == 1 else hopping(size / 1000, slide / 1000)

    def in_windows(flow: Flow) -> Flow:
        start = f"({flow.time}) // {slide} * {slide} - hop * {slide}"
        return replace(
            flow, sql=f"select x.*, {start} as ws from ({flow.sql}) x, (select unnest(range({hops})) as hop)"
        )

    names = columns_of_join(left, right, on, how, ("window_start", "window_end"))
    starts = "coalesce(l.ws, r.ws) as window_start", f"coalesce(l.ws, r.ws) + {size} as window_end"
    picked = names["picked"].replace(", window_start, window_end", f", {', '.join(starts)}")
    sql = pairs(in_windows(left), in_windows(right), picked, on, how, "l.ws = r.ws")
    facts = names["facts"] | {"many": True}
    if how not in ("semi", "anti"):
        unique = facts["unique"]
        facts["unique"] = None if unique is None else (*unique, "window_start")
    return two(
        left,
        right,
        lambda a, b: a.join(b, on=list(on), how=how, window=window, suffix=names["suffix"]),  # type: ignore[arg-type]
        sql=sql,
        time="window_end - 1" if how not in ("semi", "anti") else None,
        **facts,
    )


def asof_joined(left: Flow, right: Flow, dice: Dice) -> Flow:
    """Both have times of their own."""
    on = shared_keys(left, right, dice)
    how = dice.choice(["left", "inner"])
    strategy = dice.choice(["backward", "backward", "forward", "nearest"])
    is_table = (
        strategy == "backward" and len(on) == 1 and right.ordered and dice.random() < 0.4
    )  # whose versions are its rows
    tolerance = dice.choice([100, 1000, 10_000]) if strategy != "backward" or dice.random() < 0.3 else None
    apart = "(r.ts - l.ts)"
    also = {"backward": f"{apart} <= 0", "forward": f"{apart} >= 0", "nearest": "true"}[strategy]
    if tolerance is not None:
        also += f" and abs({apart}) <= {tolerance}"
    names = columns_of_join(left, right, on, how)
    best = pairs(left, right, "l.ts as l_ts, r.*", on, "inner", also)
    best += f" qualify row_number() over (partition by l.ts order by abs({apart}), r.ts) = 1"
    sql = f"select {names['picked']} from ({left.sql}) l {how} join ({best}) r on l.ts = r.l_ts"
    return two(
        left,
        right,
        lambda a, b: a.join_asof(
            b.upsert(*on) if is_table else b,
            on=list(on),
            how=how,  # type: ignore[arg-type]
            strategy=strategy,  # type: ignore[arg-type]
            tolerance=None if tolerance is None else tolerance / 1000,
            suffix=names["suffix"],
        ),
        sql=sql,
        time="ts",
        apart=True,
        **names["facts"] | {"many": left.many, "unique": left.unique},
    )


def enriched(left: Flow, plain: Flow, dice: Dice) -> Flow:
    """With reference data: a stream that ends and has no event time is read first, so rows of the left meet all of it."""
    keys = shared_keys(left, plain, dice)
    if dice.random() < 0.4:
        return joined_to_all(left, plain, keys, dice.choice(["inner", "left", "semi", "anti"]))
    table = upserted(plain, dice, keys[0]) if plain.ordered and dice.random() < 0.5 else grouped(plain, keys[:1])
    if dice.random() < 0.3:
        return joined_to_all(left, table, keys[:1], dice.choice(["inner", "left", "semi", "anti"]))
    how = dice.choice(["left", "inner"])
    names = columns_of_join(left, table, keys[:1], how)
    return two(
        left,
        table,
        lambda a, b: a.lookup(b, on=keys[0], how=how, suffix=names["suffix"]),  # type: ignore[arg-type]
        sql=pairs(left, table, names["picked"], keys[:1], how),
        apart=left.apart,
        **names["facts"] | {"unique": left.unique, "many": left.many},
    )


def joined_to_all(left: Flow, right: Flow, on: Sequence[str], how: str) -> Flow:
    names = columns_of_join(left, right, on, how)
    changes = right.changes or how not in ("inner", "semi")
    return two(
        left,
        right,
        lambda a, b: a.join(b, on=list(on), how=how, suffix=names["suffix"]),  # type: ignore[arg-type]
        sql=pairs(left, right, names["picked"], on, how),
        time=None if changes else left.time,
        changes=changes,
        **names["facts"] | {"many": how not in ("semi", "anti")},
    )


def shared_keys(left: Flow, right: Flow, dice: Dice) -> tuple[str, ...]:
    shared = [name for name in left.keys if name in right.keys]
    return tuple(shared if len(shared) == 1 or dice.random() < 0.4 else [dice.choice(shared)])


# -- changes --------------------------------------------------------------------------------------------------------------


def ranked(flow: Flow, dice: Dice) -> Flow:
    """The first rows of each key."""
    keys = (dice.choice(flow.keys),)
    n = dice.choice([1, 2, 5])
    ties = dice.choice(["row_number", "rank", "dense_rank"] if flow.unique is not None else ["rank", "dense_rank"])
    by = [(name, dice.random() < 0.5) for name in dice.sample(number_columns(flow), 1)]
    if ties == "row_number":
        by += [(name, dice.random() < 0.5) for name in flow.unique or () if name not in (*keys, by[0][0])]
    place = flow.new("place") if dice.random() < 0.5 else None
    order = ", ".join(f"{name} {'desc' if falling else 'asc'} nulls last" for name, falling in by)
    rank = f"{ties}() over (partition by {keys[0]} order by {order})"
    shown = f", {rank} as {place}" if place else ""
    return flow.then(
        lambda s: s.key_by(*keys).top_n(
            n,
            [name for name, _ in by],
            descending=[falling for _, falling in by],
            ties=ties,  # type: ignore[arg-type]
            rank=place,
        ),
        f"select *{shown} from {{rows}} qualify {rank} <= {n}",
        *([place] if place else []),
        time=None,
        changes=True,
        apart=False,
        ordered=False,
        **({"unique": (*keys, place)} if place and ties == "row_number" else {}),
    )


def number_columns(flow: Flow) -> list[str]:
    return [*flow.ints, *flow.floats]


def upserted(flow: Flow, dice: Dice, key: str = "") -> Flow:
    """The last row of each key, of an ordered flow."""
    key = key or dice.choice(["k", "i"])
    return flow.then(
        lambda stream: stream.upsert(key),
        f"select * from {{rows}} qualify row_number() over (partition by {key} order by n desc) = 1",
        time=None,
        changes=True,
        apart=False,
        ordered=False,
        unique=(key,),
    )


# -- rows in the order of event time --------------------------------------------------------------------------------------


def over(flow: Flow, dice: Dice) -> Flow:
    key = dice.choice(["k", "i"])
    preceding = dice.choice([None, 0, 3, "1s", "10s"])
    frame = "rows unbounded preceding"
    if isinstance(preceding, int):
        frame = f"rows {preceding} preceding"
    elif preceding is not None:
        frame = f"range {int(preceding[:-1]) * 1000} preceding"
    columns: dict[str, Any] = {
        flow.new("sum"): (sabot.sum("amount"), f"sum(amount) over (part {frame})"),
        flow.new("top"): (sabot.max("n"), f"max(n) over (part {frame})"),
        flow.new("count"): (sabot.count("i"), f"count(i) over (part {frame})"),
        flow.new("before"): (sabot.lag("n", 2), "lag(n, 2) over (part)"),
        flow.new("after"): (sabot.lead("n"), "lead(n) over (part)"),
        flow.new("number"): (sabot.row_number(), "row_number() over (part)"),
    }
    chosen = {name: columns[name] for name in dice.sample(sorted(columns), dice.randint(1, 3))}
    words = ", ".join(f"{sql} as {name}" for name, (_, sql) in chosen.items())
    return flow.then(
        lambda s: s.key_by(key).over(preceding=preceding, **{name: each for name, (each, _) in chosen.items()}),
        f"select *, {words.replace('(part', f'(partition by {key} order by ts')} from {{rows}}",
        *chosen,
        ordered=False,
    )


def window_ranked(flow: Flow, dice: Dice) -> Flow:
    """The first rows of each key and window."""
    key = dice.choice(flow.keys)
    size = dice.choice([300, 1000, 5000])
    n = dice.choice([1, 3])
    ties = dice.choice(["rank", "dense_rank"])
    by, place = dice.choice(number_columns(flow)), flow.new("place")
    rank = f"{ties}() over (partition by {key}, ({flow.time}) // {size} order by {by} desc nulls last)"
    return flow.then(
        lambda s: s.key_by(key).window(tumbling(size / 1000)).top_n(n, by, ties=ties, rank=place),  # type: ignore[arg-type]
        f"select *, ({flow.time}) // {size} * {size} as window_start, window_start + {size} as window_end, {rank} as {place}"
        f" from {{rows}} qualify {rank} <= {n}",
        "window_start",
        "window_end",
        place,
        time="window_end - 1",
        apart=False,
        ordered=False,
    )


def matched(flow: Flow, dice: Dice) -> Flow:
    """A pattern: two or three steps, and what may not come between."""
    rests = [0, 1, 2]
    dice.shuffle(rests)
    steps = rests[: dice.choice([2, 3])]
    strict = [False, *(dice.random() < 0.25 for _ in steps[1:])]
    without = None if strict[1] or dice.random() < 0.5 else dice.choice([0, 1, 2, 3])
    within = dice.choice([2000, 30_000, None])
    skip = dice.choice(["past_last", "to_next"])
    pattern = sabot.pattern("s0", col("n") % 3 == steps[0])
    if without is not None:
        pattern = pattern.without(col("i") == without)
    for at, rest in enumerate(steps[1:], 1):
        pattern = (pattern.next if strict[at] else pattern.then)(f"s{at}", col("n") % 3 == rest)
    if within is not None:
        pattern = pattern.within(within / 1000)
    first, last = sabot.step("s0"), sabot.step(f"s{len(steps) - 1}")

    def matches(rows: list[Row]) -> list[Row]:
        return [
            match for part in by_key(rows).values() for match in matches_of(part, steps, strict, without, within, skip)
        ]

    schema = pa.schema(
        [("k", pa.string())] + [(name, pa.int64()) for name in ("match_start", "match_end", "begun", "ended")]
    )
    return from_python(
        flow,
        dice,
        lambda s: s.key_by("k").pattern(pattern, skip=skip, begun=first.first("n"), ended=last.last("n")),  # type: ignore[arg-type]
        matches,
        schema,
        time="match_end",
        unique=None,
    )


def matches_of(
    rows: list[Row], steps: list[int], strict: list[bool], without: int | None, within: int | None, skip: str
) -> Iterator[Row]:
    """Those of one key."""
    partial: list[tuple[Row, int]] = []  # (first row, steps that are done), the earliest first
    for row in rows:
        kept, done = [], []
        for start, at in partial:
            if within is not None and row["ts"] - start["ts"] > within:
                continue
            if at == 1 and without is not None and row["i"] == without:
                continue
            if row["n"] % 3 == steps[at]:
                (done if at + 1 == len(steps) else kept).append((start, at + 1))
            elif not strict[at]:
                kept.append((start, at))
        found = done if skip == "to_next" else done[:1]
        partial = [] if found and skip == "past_last" else kept
        if row["n"] % 3 == steps[0] and not (found and skip == "past_last"):
            partial.append((row, 1))
        for start, _ in found:
            yield {
                "k": row["k"],
                "match_start": start["ts"],
                "match_end": row["ts"],
                "begun": start["n"],
                "ended": row["n"],
            }


def by_key(rows: list[Row]) -> dict[Any, list[Row]]:
    parts: dict[Any, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["ts"]):
        parts[row["k"]].append(row)
    return parts


def from_python(
    flow: Flow,
    dice: Dice,
    step: Callable[[Stream], Stream],
    function: Callable[[list[Row]], list[Row]],
    schema: pa.Schema,
    **facts: Any,
) -> Flow:
    """A step whose answer is a function of all rows."""
    name = f"computed{dice.randrange(10**9)}"
    return flow.then(
        step,
        f"select * from {name}",
        only=schema.names,
        **{
            "keys": ("k",),
            "ints": tuple(each for each in schema.names if each not in ("k", "match_start", "match_end")),
            "floats": (),
            "apart": False,
            "ordered": False,
            "many": False,
            "computed": (*flow.computed, Computed(name, flow.sql, function, schema)),
        }
        | facts,
    )


# -- process functions ----------------------------------------------------------------------------------------------------

VISITS = pa.schema([("k", pa.string())] + [(name, pa.int64()) for name in ("due", "tally", "begun", "ended")])


class Visits:
    """Rows of a key that are less than a gap apart, told when no other can come: by a timer for each, of which those are deleted that
    a later row makes needless.
    """

    def __init__(self, gap: int, named: bool, deletes: bool) -> None:
        self._gap, self._deletes = gap, deletes
        self._name = "visit" if named else ""

    def process(self, row: Row, ctx: Any) -> None:
        ts, gap, rows = row["ts"], self._gap, ctx.map("rows")
        known = rows.items()
        rows.put(ts, row["n"])
        if self._deletes:
            for other in known:
                if other < ts < other + gap:
                    ctx.timers.delete(other + gap, self._name)
            if any(ts < other < ts + gap for other in known):
                return
        ctx.timers.event(ts + gap, self._name)

    def on_timer(self, timer: Any, ctx: Any) -> Row | None:
        last = timer.at - self._gap
        known = ctx.map("rows").items()
        mine = sorted(ts for ts in known if ts <= last)
        if any(last < ts < timer.at for ts in known) or not mine:
            return None
        for ts in mine:
            ctx.map("rows").delete(ts)
        return {"k": ctx.key, "due": timer.at, "tally": len(mine), "begun": known[mine[0]], "ended": known[mine[-1]]}


def visited(flow: Flow, dice: Dice) -> Flow:
    gap = dice.choice([100, 1000, 5000])
    named, deletes = dice.random() < 0.5, dice.random() < 0.5

    def visits(rows: list[Row]) -> list[Row]:
        found: list[Row] = []
        for part in by_key(rows).values():
            begin = 0
            for at in range(1, len(part) + 1):
                if at == len(part) or part[at]["ts"] - part[at - 1]["ts"] >= gap:
                    mine = part[begin:at]
                    found.append(
                        {
                            "k": mine[0]["k"],
                            "due": mine[-1]["ts"] + gap,
                            "tally": len(mine),
                            "begun": mine[0]["n"],
                            "ended": mine[-1]["n"],
                        }
                    )
                    begin = at
        return found

    return from_python(
        flow,
        dice,
        lambda s: s.key_by("k").process(Visits(gap, named, deletes), schema=VISITS),
        visits,
        VISITS,
        time="due",
        unique=("k", "due"),
    )


def counted_by_batch(flow: Flow, dice: Dice) -> Flow:
    """The form over batches: counts of each key, told when the input ends; a timer that is due earlier is only moved on."""
    early = dice.choice([0, 500])

    def count(keys: Any, batch: pa.RecordBatch, ctx: Any) -> None:
        parts = pa.table({"key": keys, "n": batch.column("n")}).group_by("key").aggregate([("n", "sum")])
        unique = parts.column("key").combine_chunks()
        before = pc.fill_null(ctx.state("sum").get_many(unique).cast(pa.int64()), 0)  # of null, where there is none
        ctx.state("sum").put_many(unique, pc.add(before, parts.column("n_sum").combine_chunks()))
        if early:
            ctx.timers.event_many(keys, pc.add(ctx.timestamp, early))
        else:
            ctx.timers.event_many(unique, _FAR_MS)

    def tell(keys: Any, at: Any, ctx: Any) -> Any:
        again = pc.less(at, _FAR_MS)
        ctx.timers.event_many(keys.filter(again), _FAR_MS)
        due = keys.filter(pc.invert(again))
        made = pa.record_batch([due, ctx.state("sum").get_many(due).cast(pa.int64())], ["k", "sum"])
        return made, at.filter(pc.invert(again))

    schema = {"k": "string", "sum": "int64"}
    return flow.then(
        lambda s: s.key_by("k").process(count, schema=schema, batch=True, on_timer=tell),
        "select k, sum(n) as sum from {rows} group by k",
        only=("k", "sum"),
        keys=("k",),
        ints=("sum",),
        floats=(),
        time=None,
        apart=False,
        ordered=False,
        unique=("k",),
    )


def connected(left: Flow, right: Flow, dice: Dice) -> Flow:
    """Rows of both sides, counted by key and part of time."""
    size = dice.choice([300, 2000])

    def count(side: str) -> Callable[[Row, Any], None]:
        def note(row: Row, ctx: Any) -> None:
            part = row["ts"] // size * size
            seen = ctx.map(side)
            seen.put(part, (seen.get(part) or 0) + 1)
            ctx.timers.event(part + size)

        return note

    def tell(timer: Any, ctx: Any) -> Row:
        part = timer.at - size
        counts = [ctx.map(side).get(part) or 0 for side in ("left", "right")]
        for side in ("left", "right"):
            ctx.map(side).delete(part)
        return {"k": ctx.key, "due": timer.at, "lefts": counts[0], "rights": counts[1]}

    schema = {"k": "string", "due": "int64", "lefts": "int64", "rights": "int64"}
    sides = " union all ".join(
        f"select k, ts // {size} * {size} + {size} as due, {a} as l, {b} as r from ({flow.sql})"
        for flow, a, b in ((left, 1, 0), (right, 0, 1))
    )
    return two(
        left,
        right,
        lambda a, b: (
            a.key_by("k")
            .connect(b.key_by("k"))
            .process(count("left"), right=count("right"), schema=schema, on_timer=tell)
        ),
        sql=f"select k, due, sum(l)::bigint as lefts, sum(r)::bigint as rights from ({sides}) group by k, due",
        columns=("k", "due", "lefts", "rights"),
        keys=("k",),
        ints=("lefts", "rights"),
        floats=(),
        time="due",
        unique=("k", "due"),
        many=False,
    )


def connected_broadcast(left: Flow, right: Flow, dice: Dice) -> Flow:
    """Each key's rows, and all rows of the broadcast side, told at the end; rows of the left leave by a side as they come."""
    aside = dice.random() < 0.3

    def count(row: Row, ctx: Any) -> None:
        ctx.state("rows").put((ctx.state("rows").get() or 0) + 1)
        ctx.timers.event(_FAR_MS)
        if aside:
            ctx.side("all", {"k": row["k"], "tally": row["n"], "rules": row["ts"]})

    def rule(row: Row, ctx: Any) -> None:
        ctx.broadcast("rules").put(row["n"], row["ts"])

    def tell(timer: Any, ctx: Any) -> Row:
        return {"k": ctx.key, "tally": ctx.state("rows").get(), "rules": len(ctx.broadcast("rules").items())}

    schema = {"k": "string", "tally": "int64", "rules": "int64"}

    def step(a: Stream, b: Stream) -> Stream:
        made = (
            a.key_by("k")
            .connect(b.broadcast())
            .process(count, right=rule, schema=schema, on_timer=tell, sides={"all": schema} if aside else None)
        )
        return made.side("all") if aside else made

    rules = f"(select count(*) from (select distinct n from ({right.sql})))"
    sql = f"select k, count(*) as tally, {rules} as rules from ({left.sql}) group by k"
    if aside:
        sql = f"select k, n as tally, ts as rules from ({left.sql})"
    return two(
        left,
        right,
        step,
        sql=sql,
        columns=("k", "tally", "rules"),
        keys=("k",),
        ints=("tally", "rules"),
        floats=(),
        time="rules" if aside else None,
        unique=None,
        many=False,
    )


# -- calls ----------------------------------------------------------------------------------------------------------------


def called(flow: Flow, dice: Dice) -> Flow:
    """`map_async`: calls that wait, fail and are tried again; some in slices, some that give several rows or none."""
    by_batch, ordered = dice.random() < 0.25, dice.random() < 0.5
    waits = dice.choice([0.0, 0.05, 1.0])
    skips = dice.random() < 0.3
    fails = dice.choice([0, 0, 1, 2])
    slow = dice.random() < 0.2  # the first attempt takes too long
    concurrency = dice.choice([1, 3, 20])
    name, seed = flow.new("called"), dice.random()
    schema = pa.schema([SCHEMA.field(each) for each in flow.columns] + [(name, pa.int64())])

    def make(stream: Stream) -> Stream:
        own = random.Random(seed)
        attempts: dict[int, int] = defaultdict(int)

        async def call(row: Row) -> Any:
            attempts[row["ts"]] += 1
            if own.random() < 0.7:
                await asyncio.sleep(own.random() * waits)
            if attempts[row["ts"]] <= fails and row["n"] % 5 == 0:
                raise OSError("busy")
            if slow and row["n"] % 7 == 0 and attempts[row["ts"]] <= fails + 1:
                await asyncio.sleep(1000)
            if skips and row["n"] % 4 == 0:
                raise ValueError("bad")
            made = {**row, name: row["n"] * 2}
            return None if row["n"] % 11 == 3 else [made] if row["n"] % 2 else made

        async def call_slice(batch: pa.RecordBatch) -> pa.RecordBatch:
            await asyncio.sleep(own.random() * waits)
            return batch.append_column(name, pc.multiply(batch.column("n"), 2))

        return stream.map_async(
            call_slice if by_batch else call,
            schema=schema,
            concurrency=concurrency,
            ordered=ordered,
            timeout="10s",
            retries=fails + slow,
            backoff="10ms",
            on_error="skip" if skips else "fail",
            batch=by_batch,
            rows=5,
        )

    left_out = "" if by_batch else " where n % 11 <> 3" + (" and n % 4 <> 0" if skips else "")
    return flow.then(make, f"select *, n * 2 as {name} from {{rows}}{left_out}", name, ordered=flow.ordered and ordered)


def told(flow: Flow, dice: Dice) -> Flow:
    """`map_llm`: what a model says of a key, and nothing of null. Some keys are refused."""
    waits = dice.choice([0.0, 0.05, 1.0])
    name, seed = flow.new("told"), dice.random()
    ordered, cache, skips = dice.random() < 0.5, dice.choice([1, 3, 100]), dice.random() < 0.3
    limits = Limits(concurrency=dice.choice([1, 10]))

    def make(stream: Stream) -> Stream:
        own = random.Random(seed)

        async def answer(spec: RequestSpec) -> str:
            await asyncio.sleep(own.random() * waits)
            text = spec.messages[-1].text
            if skips and text.endswith("b"):
                raise RequestRefused("not this key")
            return text.upper()

        engine = ExecutionEngine(ScriptedProvider(answer), limits=limits)
        on_error: Any = "skip" if skips else "fail"
        return stream.map_llm("Say {k}", engine, output=name, ordered=ordered, cache=cache, on_error=on_error)

    left_out = " where k is null or k not like '%b'" if skips else ""
    made = f"select *, upper('Say ' || k) as {name} from {{rows}}{left_out}"
    return flow.then(make, made, name, ordered=flow.ordered and ordered)


def looked_up(flow: Flow, dice: Dice) -> Flow:
    """`lookup` with a coroutine function: a length for each key but for some, and none for null."""
    how = dice.choice(["left", "inner"])
    waits = dice.choice([0.0, 0.05, 1.0])
    name, seed = flow.new("length"), dice.random()
    options = {"cache": dice.choice([1, 3, 100]), "concurrency": dice.choice([1, 10]), "ordered": dice.random() < 0.5}

    def make(stream: Stream) -> Stream:
        own = random.Random(seed)

        async def call(key: str | None) -> Row | None:
            await asyncio.sleep(own.random() * waits)
            return None if key is None or key.endswith("b") else {name: len(key)}

        return stream.lookup(call, on="k", schema={name: "int64"}, how=how, **options)  # type: ignore[arg-type]

    found = f"case when k is null or k like '%b' then null else length(k) end as {name}"
    left_out = " where k is not null and k not like '%b'" if how == "inner" else ""
    return flow.then(
        make, f"select *, {found} from {{rows}}{left_out}", name, ordered=flow.ordered and bool(options["ordered"])
    )


# -- chains ---------------------------------------------------------------------------------------------------------------


def slim(flow: Flow, dice: Dice) -> Flow:
    """As a side of a join."""
    columns = ["n", "ts", "k", "i", *(["amount"] if dice.random() < 0.5 else [])]
    return narrow(flow, [name for name in columns if name in flow.columns])


def append_step(flow: Flow, other: Flow, dice: Dice) -> Flow:
    """One step whose rows stay (but for the regular join), over rows that have times of their own."""
    other = slim(other, dice)
    step = dice.choice(
        [
            *[interval_joined, window_joined, asof_joined, joined, connected, connected_broadcast],
            *[over, window_ranked, matched, matched, visited, visited, counted_by_batch],
        ]
    )
    if step in (over, window_ranked, matched, visited, counted_by_batch):
        return step(flow, dice)  # type: ignore[operator, call-arg, arg-type]
    return step(flow, other, dice)  # type: ignore[operator, call-arg, arg-type]


def changes_step(flow: Flow, others: Sequence[Flow], dice: Dice) -> Flow:
    """One step whose result is changes, or a join, whose may be."""
    kind = dice.choice(["group", "top", "join", "join", "upsert"])
    if kind == "upsert" and flow.ordered and not flow.changes:
        return upserted(flow, dice)
    if kind == "top" and number_columns(flow):
        return ranked(flow, dice)
    if kind in ("join", "upsert") and (found := joined_with(flow, slim(dice.choice(list(others)), dice), dice)):
        return found
    return grouped(flow, tuple(dice.sample(flow.keys, min(len(flow.keys), dice.choice([1, 1, 2])))))


def joined_with(flow: Flow, other: Flow, dice: Dice) -> Flow | None:
    """With rows of the other, or of a table made of them: one row for each key, where many by many would be too many."""
    shared = [name for name in flow.keys if name in other.keys]
    if not shared:
        return None
    if not flow.many and dice.random() < 0.5:
        return joined(flow, other, dice)
    table = upserted(other, dice) if other.ordered and dice.random() < 0.5 else grouped(other, (dice.choice(shared),))
    assert table.unique is not None
    return joined(flow, replace(table, keys=table.unique), dice) if set(table.unique) <= set(shared) else None
