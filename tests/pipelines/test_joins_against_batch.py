"""Every join against the same over all rows at once (DuckDB, or plain Python): whatever the splits of the batches, the interleaving of
the streams, the parallelism, and where barriers, crashes and restores fall.

A join whose result is changes is read as their log: applied to an empty table it gives the answer, and no prefix of it takes a row
that is not there. SABOT_STREAM_SEEDS=N draws N times as many circumstances.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import (
    EVENTS,
    WEEK_HOURS,
    Gate,
    Joined,
    Kept,
    Row,
    Rows,
    a_week,
    another_way,
    answers_are_the_same,
    by_key,
    deal,
    differences,
    draw,
    events,
    figures,
    figures_at,
    of,
    rows_of,
    run_in_turns,
    tumbles,
    until,
    windowed,
)

import sabot
from sabot import App, Stream, UserError, col, cumulative, hopping, session, tumbling

SEEDS = range(int(os.environ.get("SABOT_STREAM_SEEDS", "1")))
HOWS = ("inner", "left", "right", "full", "semi", "anti")
SQL_WORDS = {"full": "full outer", "semi": "semi", "anti": "anti"}

Build = Callable[..., Stream]


def sql(
    how: str,
    *,
    keys: Sequence[str] = ("k",),
    left: Sequence[str] = ("n", "k", "x"),
    right: Sequence[str] = ("n as n_right", "s"),
    a: str = "a",
    b: str = "b",
    also: str = "",
    between: Sequence[str] = (),
) -> str:
    """A join as DuckDB says it. between: columns behind those of the left; also: a condition beside the keys."""
    on = " and ".join([f"a.{key} = b.{key}" for key in keys] + ([also] if also else []))
    columns = [
        f"coalesce(a.{name}, b.{name}) as {name}" if name in keys and how in ("right", "full") else f"a.{name}"
        for name in left
    ]
    if how not in ("semi", "anti"):
        columns += [*between, *(f"b.{name}" for name in right)]
    if how == "semi":  # DuckDB's own word takes no other condition than equality
        return f"select {', '.join(columns)} from {a} a where exists (select * from {b} b where {on})"
    if how == "anti":
        return f"select {', '.join(columns)} from {a} a where not exists (select * from {b} b where {on})"
    return f"select {', '.join(columns)} from {a} a {SQL_WORDS.get(how, how)} join {b} b on {on}"


def joined(
    how: str,
    on: Any = "k",
    left: Sequence[str] = ("n", "k", "x"),
    right: Sequence[str] = ("n", "k", "s"),
    **options: Any,
) -> Build:
    return lambda a, b: a.select(*left).join(b.select(*right), on=on, how=how, **options)


def is_updated(how: str) -> bool:
    return how not in ("inner", "semi")


# -- regular joins --------------------------------------------------------------------------------------------------------

REGULAR = (
    [Joined(f"{how} join", joined(how), sql(how), changes=is_updated(how)) for how in HOWS]
    + [
        Joined(
            f"{how} join by two keys",
            joined(how, ["k", "j"], ("n", "k", "j", "x"), ("n", "k", "j", "s")),
            sql(how, keys=("k", "j"), left=("n", "k", "j", "x")),
            changes=is_updated(how),
        )
        for how in HOWS
    ]
    + [
        Joined(  # rows that are equal in everything
            f"{how} join of rows that are there several times",
            joined(how, "k", ("k", "x"), ("k", "j")),
            sql(how, left=("k", "x"), right=("j",)),
            changes=is_updated(how),
        )
        for how in HOWS
    ]
)

REGULAR += [
    Joined(
        "inner join of all columns",
        lambda a, b: a.join(b, on="k", suffix="_b"),
        sql("inner", left=EVENTS.names, right=[f"{name} as {name}_b" for name in EVENTS.names if name != "k"]),
        data=("plain", "sparse", "one", "empty"),
    ),
    Joined(
        "full join of keys of different names",
        lambda a, b: a.select("n", "x").join(b.select("j", "s", m="n"), left_on="x", right_on="j", how="full"),
        "select a.n, coalesce(a.x, b.j) as x, b.s, b.n as m from a full outer join b on a.x = b.j",
        changes=True,
    ),
    Joined(
        "left join by a float",
        lambda a, b: a.select("n", "f").join(b.select("f", m="n"), on="f", how="left"),
        lambda a, b: [
            {"n": row["n"], "f": row["f"], "m": m}
            for row in a
            for m in ([r["n"] for r in b if same_float(r["f"], row["f"])] or [None])
        ],
        changes=True,
    ),
    Joined(
        "a stream joined with itself",
        lambda a: a.select("n", "k").join(a.select("k", "x"), on="k"),
        "select a.n, a.k, b.x from a join a as b on a.k = b.k",
        sources=1,
    ),
    Joined(
        "a stream joined with a part of itself, anti",
        lambda a: a.select("n", "k", "x").join(a.filter(col("x") > 3).select("k"), on="k", how="anti"),
        "select n, k, x from a where not exists (select * from a as b where b.k = a.k and b.x > 3)",
        sources=1,
        changes=True,
    ),
    Joined(
        "three streams",
        lambda a, b, c: (
            a.select("n", "k").join(b.select("k", "x"), on="k", how="left").join(c.select("x", "s"), on="x", how="full")
        ),
        """select l.n, l.k, coalesce(l.x, c.x) as x, c.s from (select a.n, a.k, b.x from a left join b on a.k = b.k) l
           full outer join c on l.x = c.x""",
        sources=3,
        changes=True,
        data=("sparse", "one", "empty"),
    ),
    Joined(
        "an inner join, then totals",
        lambda a, b: joined("inner")(a, b).group_by("s").aggregate(c=sabot.count(), most=sabot.max("n_right")),
        f"select s, count(*) as c, max(n_right) as most from ({sql('inner')}) group by s",
        changes=True,
        key=("s",),
    ),
]


def same_float(a: float, b: float) -> bool:
    return a == b or (a != a and b != b)


GROUPS = {name: f"(select k, count(*) as c, sum(x)::bigint as total from {name} group by k)" for name in ("a", "b")}


def grouped(stream: Stream) -> Stream:
    return stream.group_by("k").aggregate(c=sabot.count(), total=sabot.sum("x"))


REGULAR += (
    [
        Joined(
            f"{how} join of two tables of groups",
            lambda a, b, how=how: grouped(a.filter(col("x") > 0)).join(
                grouped(b.filter(col("x") < 3)), on="k", how=how
            ),
            sql(
                how,
                left=("k", "c", "total"),
                right=("c as c_right", "total as total_right"),
                a=GROUPS["a"].replace("group", "where x > 0 group"),
                b=GROUPS["b"].replace("group", "where x < 3 group"),
            ),
            changes=True,
        )
        for how in HOWS
    ]
    + [
        Joined(
            f"{how} join of rows and a table",
            lambda a, b, how=how: a.select("n", "k", "x").join(b.select("k", "n", "s").upsert("k"), on="k", how=how),
            sql(how, b="(select k, arg_max_null(n, n) as n, arg_max_null(s, n) as s from b group by k)"),
            changes=True,
            arrival=True,
        )
        for how in HOWS
    ]
    + [
        Joined(
            f"{how} join of a table and rows",
            lambda a, b, how=how: a.select("k", "n", "x").upsert("k").join(b.select("k", "s"), on="k", how=how),
            sql(
                how,
                left=("k", "n", "x"),
                right=("s",),
                a="(select k, arg_max_null(n, n) as n, arg_max_null(x, n) as x from a group by k)",
            ),
            changes=True,
            arrival=True,
        )
        for how in HOWS
    ]
)

REGULAR += [
    Joined(  # nothing is so old
        f"{how} join that keeps rows for long",
        joined(how, keep=("300d", "400d")),
        sql(how),
        changes=is_updated(how),
    )
    for how in ("inner", "left", "right", "full")
]

BROADCAST = [
    Joined(
        f"{how} join of a broadcast stream",
        lambda a, b, how=how: a.select("n", "k", "x").join(b.select("n", "k", "s").broadcast(), on="k", how=how),
        sql(how),
        changes=is_updated(how),
    )
    for how in ("inner", "left", "semi", "anti")
] + [
    Joined(
        f"{how} join of a broadcast table",
        lambda a, b, how=how: a.select("n", "k", "x").join(
            b.group_by("k").aggregate(c=sabot.count(), low=sabot.min("x")).broadcast(), on="k", how=how
        ),
        sql(how, right=("c", "low"), b="(select k, count(*) as c, min(x) as low from b group by k)"),
        changes=True,
    )
    for how in ("inner", "left", "semi", "anti")
]

# -- joins by time --------------------------------------------------------------------------------------------------------

SPANS = [
    ("-10s", "5s", "b.ts between a.ts - 10000 and a.ts + 5000"),
    (0, "3s", "b.ts between a.ts and a.ts + 3000"),
    ("-8s", "-2s", "b.ts between a.ts - 8000 and a.ts - 2000"),
    ("1s", "20s", "b.ts between a.ts + 1000 and a.ts + 20000"),
    (0, 0, "b.ts = a.ts"),
]
OPEN = [(None, "3s", "b.ts <= a.ts + 3000"), ("-3s", None, "b.ts >= a.ts - 3000"), (None, None, "")]
DECIDED = {("left", 1), ("full", 1), ("anti", 1), ("right", 0), ("full", 0)}  # (how, the end that must be there)

INTERVAL = (
    [
        Joined(
            f"{how} join within {lower} to {upper}",
            joined(how, between=(lower, upper)),
            sql(how, also=also),
        )
        for how in HOWS
        for lower, upper, also in [*SPANS[: 5 if how in ("inner", "full", "anti") else 2], *OPEN]
        if not any((how, end) in DECIDED and (lower, upper)[end] is None for end in (0, 1))
    ]
    + [
        Joined(
            "full join within a time, by two keys",
            joined("full", ["k", "j"], ("n", "k", "j"), ("n", "k", "j"), between=("-30s", "10s")),
            sql(
                "full",
                keys=("k", "j"),
                left=("n", "k", "j"),
                right=("n as n_right",),
                also="b.ts between a.ts - 30000 and a.ts + 10000",
            ),
        ),
        Joined(
            "a stream joined with itself within a time",
            lambda a: a.select("n", "k").join(a.select("k", m="n"), on="k", between=("-4s", "4s")),
            "select a.n, a.k, b.n as m from a join a as b on a.k = b.k and b.ts between a.ts - 4000 and a.ts + 4000",
            sources=1,
        ),
    ]
    + [
        Joined(  # the time of a pair is the later of both; what follows is not told a watermark that rows still to come are below
            f"{how} join within {lower} to {upper}, then a window",
            lambda a, b, how=how, lower=lower, upper=upper: (
                joined(how, between=(lower, upper))(a, b)
                .key_by("k")
                .window(tumbling("7s"))
                .aggregate(c=sabot.count(), low=sabot.min("n"), high=sabot.max("n"))
            ),
            f"""select k, floor(t / 7000.0)::bigint * 7000 as window_start, window_start + 7000 as window_end, count(*) as c, min(n) as low,
            max(n) as high from (select coalesce(a.k, b.k) as k, a.n as n, greatest(a.ts, b.ts) as t from a {SQL_WORDS.get(how, how)}
            join b on a.k = b.k and b.ts between a.ts - {below} and a.ts + {above}) group by k, window_start""",
        )
        for how in ("inner", "left", "right", "full")
        for lower, upper, below, above in [("-6s", "4s", 6000, 4000), ("-9s", "-3s", 9000, -3000)]
    ]
    + [
        Joined(
            "anti join within a time, then totals",
            lambda a, b: (
                joined("anti", between=("-2s", "2s"))(a, b).group_by("k").aggregate(c=sabot.count(), low=sabot.min("n"))
            ),
            "select k, count(*) as c, min(n) as low from ("
            + sql("anti", also="b.ts between a.ts - 2000 and a.ts + 2000")
            + ") group by k",
            changes=True,
            key=("k",),
        ),
    ]
)


def in_windows(name: str, size: int, slide: int) -> str:
    last = f"floor(ts / {slide}.0)::bigint * {slide}"
    windows = f"unnest(range({last} - {size - slide}, {last} + 1, {slide}))"
    return f"(select *, w as window_start, w + {size} as window_end from (select *, {windows} as w from {name}))"


def window_join_sql(how: str, size: int, slide: int) -> str:
    window = (
        "coalesce(a.window_start, b.window_start) as window_start",
        "coalesce(a.window_end, b.window_end) as window_end",
    )
    bounds = ("window_start", "window_end") if how in ("semi", "anti") else ()
    return sql(
        how,
        left=("n", "k", "x", *bounds),
        a=in_windows("a", size, slide),
        b=in_windows("b", size, slide),
        also="a.window_start = b.window_start",
        between=window,
    )


WINDOW = (
    [
        Joined(f"{how} join in tumbling windows", joined(how, window=tumbling("5s")), window_join_sql(how, 5000, 5000))
        for how in HOWS
    ]
    + [
        Joined(
            f"{how} join in hopping windows", joined(how, window=hopping("9s", "3s")), window_join_sql(how, 9000, 3000)
        )
        for how in ("inner", "left", "right", "full")
    ]
    + [
        Joined(
            "inner join in tumbling windows with an offset, by two keys",
            joined("inner", ["k", "j"], ("n", "k", "j"), ("n", "k", "j"), window=tumbling("1m", offset="7s")),
            """select a.n, a.k, a.j, floor((a.ts - 7000) / 60000.0)::bigint * 60000 + 7000 as window_start,
           window_start + 60000 as window_end, b.n as n_right from a join b on a.k = b.k and a.j = b.j
           and floor((a.ts - 7000) / 60000.0) = floor((b.ts - 7000) / 60000.0)""",
        ),
        Joined(
            "inner join in cumulative windows",
            joined("inner", window=cumulative("6s", "2s")),
            """select a.n, a.k, a.x, a.s0 as window_start, w as window_end, b.n as n_right, b.s from
           (select *, floor(ts / 6000.0)::bigint * 6000 as s0, unnest([s0 + 2000, s0 + 4000, s0 + 6000]) as w from a) a join
           (select *, floor(ts / 6000.0)::bigint * 6000 as s0 from b) b on a.k = b.k and a.s0 = b.s0 and a.ts < w and b.ts < w""",
        ),
        Joined(  # the time of a result is the last moment of its window
            "join in windows, then larger windows",
            lambda a, b: (
                joined("full", window=tumbling("5s"))(a, b)
                .key_by("k")
                .window(tumbling("20s"))
                .aggregate(c=sabot.count("n_right"), low=sabot.min("n"))
            ),
            f"""select k, floor(ws / 20000.0)::bigint * 20000 as window_start, window_start + 20000 as window_end,
            count(n_right) as c, min(n) as low from (select k, n, n_right, window_start as ws from 
            ({window_join_sql("full", 5000, 5000)})) group by k, window_start""",
        ),
    ]
)


# -- as-of joins ----------------------------------------------------------------------------------------------------------


def asof(
    strategy: str = "backward", tolerance: int | None = None, how: str = "left", keys: Sequence[str] = ("k",)
) -> Any:
    """The naive as-of join: each row looks at all rows of its key."""

    def partner(row: Row, versions: list[Row]) -> Row | None:
        near = [each for each in versions if tolerance is None or abs(each["ts"] - row["ts"]) <= tolerance]
        before = [each for each in near if each["ts"] <= row["ts"]]
        after = [each for each in near if each["ts"] >= row["ts"]]
        last = max(before, key=lambda each: (each["ts"], each["n"]), default=None)
        next_time = min((each["ts"] for each in after), default=None)
        following = max((each for each in after if each["ts"] == next_time), key=lambda each: each["n"], default=None)
        if strategy == "backward":
            return last
        if strategy == "forward":
            return following
        if last is None or following is None:
            return last or following
        return last if row["ts"] - last["ts"] <= following["ts"] - row["ts"] else following

    def answer(a: list[Row], b: list[Row]) -> list[Row]:
        versions = by_key(b, keys)
        out = []
        for row in a:
            key = tuple(row[name] for name in keys)
            found = None if None in key else partner(row, versions.get(key, []))
            if found is not None or how == "left":
                more = {"n_right": found and found["n"], "s": found and found["s"]}
                out.append({**{name: row[name] for name in dict.fromkeys(["n", *keys, "x"])}, **more})
        return out

    return answer


def with_asof(keys: Sequence[str] = ("k",), **options: Any) -> Build:
    return lambda a, b: a.select("n", *keys, "x").join_asof(b.select("n", *keys, "s"), on=list(keys), **options)


ASOF = [
    # of equal times on the right the last to come counts: in one partition the order is known
    Joined("as-of", with_asof(), asof(), arrival=True),
    Joined("as-of by two keys", with_asof(("k", "j")), asof(keys=("k", "j")), arrival=True),
    Joined("as-of, inner", with_asof(how="inner"), asof(how="inner"), arrival=True),
    Joined("as-of within a tolerance", with_asof(tolerance="3s"), asof(tolerance=3000), arrival=True),
    Joined("as-of at the same time", with_asof(tolerance=0, how="inner"), asof(tolerance=0, how="inner"), arrival=True),
    Joined(
        "as-of of rows that are there once, from several partitions",
        lambda a, b: a.select("n", "k", "x").join_asof(
            b.select("n", "k", "s", "ts").deduplicate("k", "ts").select("n", "k", "s"), on="k"
        ),
        asof(),
        data=("one", "empty"),
    ),
    Joined(
        "as-of forward",
        with_asof(strategy="forward", tolerance="4s"),
        asof("forward", 4000),
        arrival=True,
        data=("apart",),
    ),
    Joined(
        "as-of forward, inner",
        with_asof(strategy="forward", tolerance="30s", how="inner"),
        asof("forward", 30000, "inner"),
        arrival=True,
        data=("apart", "one", "empty"),
    ),
    Joined(
        "as-of nearest",
        with_asof(strategy="nearest", tolerance="6s"),
        asof("nearest", 6000),
        arrival=True,
        data=("apart", "one", "empty"),
    ),
    Joined(
        "as-of nearest, inner",
        with_asof(strategy="nearest", tolerance="1s", how="inner"),
        asof("nearest", 1000, "inner"),
        arrival=True,
        data=("apart",),
    ),
    Joined(
        "as-of of a table",
        lambda a, b: a.select("n", "k", "x").join_asof(b.select("n", "k", "s").upsert("k"), on="k"),
        asof(),
        arrival=True,
    ),
    Joined(
        "as-of, then a window: the time of a pair is that of the row",
        lambda a, b: (
            with_asof()(a, b).key_by("k").window(tumbling("5s")).aggregate(c=sabot.count("n_right"), low=sabot.min("n"))
        ),
        lambda a, b: windowed(["k"], tumbles(5000), c=of("count", "n_right"), low=of("min", "n"))(
            [{**row, "ts": each["ts"]} for row, each in zip(asof()(a, b), a, strict=True)]
        ),
        arrival=True,
    ),
]

PROGRAMS = [*REGULAR, *BROADCAST, *INTERVAL, *WINDOW, *ASOF]


@pytest.mark.one_in(24, "a tenth of a second of a core each; the others run as often as they are drawn for `make slow`")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
async def test_a_join_gives_the_batch_answer(program: Joined, seed: int, tmp_path: Path) -> None:
    await answers_are_the_same(program, "split", seed, tmp_path)


@pytest.mark.one_in(90, "each program is run under any split above")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
async def test_a_join_gives_the_batch_answer_in_another_way(program: Joined, seed: int, tmp_path: Path) -> None:
    await answers_are_the_same(program, another_way(program, seed), seed, tmp_path)


def test_the_programs_have_names_of_their_own() -> None:
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS)


# -- lookups --------------------------------------------------------------------------------------------------------------

LAST = "(select k, arg_max_null(n, n) as n, arg_max_null(s, n) as s from b group by k)"

LOOKUPS = [
    Joined(
        f"{how} lookup in {kind}",
        lambda a, b, how=how, table=table: a.select("n", "k", "x").lookup(
            table(b.select("n", "k", "s")), on="k", how=how
        ),
        sql(how, b=LAST),
        arrival=True,
    )
    for how in ("left", "inner")
    for kind, table in [
        ("rows", lambda b: b),
        ("a table", lambda b: b.upsert("k")),
        ("a broadcast table", lambda b: b.upsert("k").broadcast()),
    ]
] + [
    Joined(
        "lookup in groups",
        lambda a, b: a.select("n", "k", "j").lookup(
            b.group_by("k", "j").aggregate(c=sabot.count()).filter(col("c") < 4), on=["k", "j"]
        ),
        "select a.n, a.k, a.j, b.c from a left join (select k, j, count(*) as c from b group by k, j having c < 4) b "
        "on a.k = b.k and a.j = b.j",
    )
]


@pytest.mark.one_in(10, "a third of a second of a core each")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("program", LOOKUPS, ids=lambda program: program.name)
async def test_a_table_that_ends_is_read_before_the_first_row_is_looked_up(
    program: Joined, seed: int, tmp_path: Path
) -> None:
    for way in ("split", "dying"):
        await answers_are_the_same(program, way, seed, tmp_path)


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("program", LOOKUPS, ids=lambda program: program.name)
async def test_a_lookup_meets_the_table_as_it_is_when_the_row_comes(program: Joined, seed: int, tmp_path: Path) -> None:
    how = draw(program, "lookup", seed)
    got = await run_in_turns(program, events(how.data, seed), how, tmp_path, order=[1, 0])
    wrong = differences(got, program.answer(events(how.data, seed)))
    assert not wrong, f"{program.name!r} {how}\n{wrong}"


async def test_what_changes_after_a_lookup_changes_no_row(tmp_path: Path) -> None:
    """Of a table without an end the rows of before the first turn are not there yet."""
    program, table = LOOKUPS[0], events("plain")
    gates, kept = [Gate(0.0), Gate(0.0)], Kept()
    rows, versions = (
        Rows(part, split="seven", gate=gate, name=f"rows{i}")
        for i, (part, gate) in enumerate(zip(deal(program, table), gates, strict=True))
    )
    versions.bounded = False
    app = App("late", parallelism=2, checkpoint_dir=tmp_path)
    program.build(*(app.stream(each, time="ts", lateness="5s") for each in (rows, versions))).to(kept)
    await app.start()
    try:
        gates[0].open_to(0.5)
        await until(lambda: gates[0].reached(1), "half of the rows")
        await app.agent_runtime.trigger_checkpoint()
        gates[1].open_to(1.0)
        await until(lambda: gates[1].reached(1), "the table")
        await app.agent_runtime.trigger_checkpoint()
        gates[0].open_to(1.0)
        await until(lambda: rows.exhausted or gates[0].reached(1), "the other half")
    finally:
        await app.stop(drain=True)
    got = sorted(rows_of(kept.table()), key=lambda row: row["n"])
    want = sorted(program.answer(table), key=lambda row: row["n"])
    assert [row["n"] for row in got] == [row["n"] for row in want]
    assert all(row["n_right"] is None for row in got[:60]), "these came before the table"
    assert got[60:] == want[60:]


# -- how much is kept -----------------------------------------------------------------------------------------------------

A_WEEK = [
    (Joined("everything that is kept an hour", joined("inner", "k", ("n", "k"), ("n", "k"), keep="1h"), ""), 1.1),
    (
        Joined(
            "full, of which an hour is kept",
            joined("full", "k", ("n", "k"), ("n", "k"), keep=("30m", "1h")),
            "",
            changes=True,
        ).logged(),
        1.0,
    ),
    # (program, hours of rows that it may keep)
    (Joined("inner", joined("inner", "k", ("n", "k"), ("n", "k"), between=("-1h", 0)), ""), 1.0),
    (Joined("full", joined("full", "k", ("n", "k"), ("n", "k"), between=("-1h", 0)), ""), 1.0),
    (Joined("anti", joined("anti", "k", ("n", "k"), ("n", "k"), between=("-30m", "30m")), ""), 1.0),
    (Joined("windows", joined("full", "k", ("n", "k"), ("n", "k"), window=tumbling("1h")), ""), 1.0),
    (Joined("as-of", lambda a, b: a.select("n", "k").join_asof(b.select("n", "k"), on="k"), ""), 1.0),
    (
        Joined(
            "as-of nearest",
            lambda a, b: a.select("n", "k").join_asof(b.select("n", "k"), on="k", strategy="nearest", tolerance="1h"),
            "",
        ),
        2.0,
    ),
]


@pytest.mark.one_in(8, "half a second of a core each")
@pytest.mark.parametrize(("program", "hours"), A_WEEK, ids=[program.name for program, _ in A_WEEK])
async def test_an_hour_of_join_over_a_week_of_rows_keeps_an_hour(program: Joined, hours: float, tmp_path: Path) -> None:
    table = a_week()
    found = await figures_at(program, table, 0.99, tmp_path, "left_rows", "right_rows")
    kept = sum(map(sum, found.values()))
    in_an_hour = table.num_rows / WEEK_HOURS
    # beside the hour: what has come since the last watermark, and of versions one of each of the 20 keys
    assert all(found.values()), "no operator says how many rows it keeps"
    assert kept <= hours * in_an_hour + 60, f"{kept} rows; an hour has {in_an_hour:.0f}: {found}"


async def test_a_join_without_time_keeps_all_rows(tmp_path: Path) -> None:
    """The other side of the measure: it sees rows where there are some."""
    program = Joined("inner", joined("inner", "k", ("n", "k"), ("n", "k")), "")
    found = await figures_at(program, a_week(600), 0.99, tmp_path, "left_rows", "right_rows")
    assert sum(map(sum, found.values())) >= 590


# -- what is refused ------------------------------------------------------------------------------------------------------


def two_streams() -> tuple[Stream, Stream]:
    app = App("refused")
    return app.stream("a", schema={"n": "int64", "ts": "int64", "k": "string", "x": "int64"}, time="ts"), app.stream(
        "b", schema={"m": "int64", "ts": "int64", "k": "string", "y": "float64"}, time="ts"
    )


REFUSED: dict[str, tuple[Callable[[Stream, Stream], Any], list[str]]] = {
    "a misspelt key": (lambda a, b: a.join(b, on="kk"), ["kk", "n, ts, k, x"]),
    "a key that only the left has": (lambda a, b: a.join(b, on="n"), ["'n'", "m, ts, k, y"]),
    "a misspelt key of the right": (lambda a, b: a.join(b, left_on="k", right_on="q"), ["'q'", "m, ts, k, y"]),
    "no keys": (lambda a, b: a.join(b), ["keys"]),
    "more keys on one side": (lambda a, b: a.join(b, left_on=["k", "n"], right_on="k"), ["keys"]),
    "keys said twice": (lambda a, b: a.join(b, on="k", left_on="k"), ["on="]),
    "another how": (lambda a, b: a.join(b, on="k", how="outer"), ["outer", "full"]),  # type: ignore[arg-type]
    "time said twice": (
        lambda a, b: a.join(b, on="k", between=(0, "1s"), window=tumbling("1s")),
        ["between", "window"],
    ),
    "an interval that is none": (lambda a, b: a.join(b, on="k", between="1h"), ["between"]),  # type: ignore[arg-type]
    "an empty interval": (lambda a, b: a.join(b, on="k", between=("5s", "-5s")), ["5s", "earlier"]),
    "an outer join with an open end": (
        lambda a, b: a.join(b, on="k", how="left", between=("-1s", None)),
        ["left", "open"],
    ),
    "a right join with an open end": (
        lambda a, b: a.join(b, on="k", how="right", between=(None, "1s")),
        ["right", "open"],
    ),
    "a window that two streams cannot share": (lambda a, b: a.join(b, on="k", window=session("1s")), ["tumbling"]),  # type: ignore[arg-type]
    "a right join of a broadcast stream": (
        lambda a, b: a.join(b.broadcast(), on="k", how="right"),
        ["broadcast", "right"],
    ),
    "an interval of a broadcast stream": (lambda a, b: a.join(b.broadcast(), on="k", between=(0, "1s")), ["broadcast"]),
    "as-of a broadcast stream": (lambda a, b: a.join_asof(b.broadcast(), on="k"), ["join_asof", "broadcast"]),
    "something that is no stream": (lambda a, b: a.join("b", on="k"), ["stream"]),  # type: ignore[arg-type]
    "a suffix that is taken": (lambda a, b: a.with_columns(ts_right="n").join(b, on="k"), ["ts_right", "suffix"]),
    "as-of another way": (lambda a, b: a.join_asof(b, on="k", strategy="previous"), ["previous", "backward"]),  # type: ignore[arg-type]
    "as-of forward for ever": (lambda a, b: a.join_asof(b, on="k", strategy="forward"), ["tolerance"]),
    "as-of full": (lambda a, b: a.join_asof(b, on="k", how="full"), ["full", "left"]),  # type: ignore[arg-type]
    "as-of by a misspelt key": (lambda a, b: a.join_asof(b, on="key"), ["'key'", "n, ts, k, x"]),
    "a lookup of all rows": (lambda a, b: a.lookup(b, on="k", how="right"), ["right", "left"]),  # type: ignore[arg-type]
    "a lookup by a misspelt key": (lambda a, b: a.lookup(b, left_on="k", right_on="kk"), ["'kk'", "m, ts, k, y"]),
    "a cache for a table": (lambda a, b: a.lookup(b, on="k", cache=5), ["cache", "table"]),
    "keys of different types": (lambda a, b: a.join(b, left_on="n", right_on="y").explain(), ["n", "int64", "double"]),
    "keys of different types, as-of": (
        lambda a, b: a.join_asof(b, left_on="k", right_on="m").explain(),
        ["string", "int64"],
    ),
    "half of a semi join kept": (
        lambda a, b: a.join(b, on="k", how="semi", keep=("1d", "1d")).explain(),
        ["semi", "between="],
    ),
    "keep beside a time": (lambda a, b: a.join(b, on="k", between=(0, "1s"), keep="1d"), ["between", "keep="]),
    "changes within a time": (lambda a, b: a.upsert("k").join(b, on="k", between=(0, "1s")), ["changes", "join"]),
    "changes in windows": (lambda a, b: a.join(b.upsert("k"), on="k", window=tumbling("1s")), ["changes", "join"]),
    "as-of of rows that change": (lambda a, b: a.upsert("k").join_asof(b, on="k"), ["changes", "join_asof"]),
    "the log of what does not change": (lambda a, b: a.join(b, on="k").changelog(), ["changelog", "no changes"]),
}


@pytest.mark.parametrize(("build", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_joined_is_refused_when_it_is_written(
    build: Callable[[Stream, Stream], Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as refused:
        build(*two_streams())
    said = f"{refused.value} {refused.value.hint}"
    assert all(word in said for word in words), said


def test_a_sum_of_what_was_joined_names_the_columns_that_there_are() -> None:
    a, b = two_streams()
    with pytest.raises(UserError) as refused:
        a.join(b, on="k", between=("-1h", 0)).key_by("k").aggregate(total=sabot.sum("yy"))
    said = f"{refused.value} {refused.value.hint}"
    assert all(word in said for word in ("'yy'", "'y'", "ts_right")), said


@pytest.mark.slow  # half a second of a core
def test_rows_that_are_too_late_for_a_join_within_a_time_are_counted() -> None:
    """A row is late that comes when event time has passed it; it is dropped, and the others are as if it had not come."""
    table = events("plain")
    app = App("late")
    given = [Rows(part, split="one", name=f"rows{i}") for i, part in enumerate([table, table.slice(0, 0)])]
    a, b = (app.stream(each, time="ts", lateness=0) for each in given)
    kept = Kept()
    joined("left", between=("-1s", "1s"))(a, b).to(kept)

    asyncio.run(app.run())
    (late,) = [each for each in figures(app.statistics(), "late_rows") if each] or [0]
    assert late > 0
    assert kept.table().num_rows + late == table.num_rows
