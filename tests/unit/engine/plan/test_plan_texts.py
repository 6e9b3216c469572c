"""What plans say, and what is refused, word for word: expected/plans.txt and expected/refusals.txt.

A step's id, and the digest of what its rows have gone through (`Step.path`), tell whose state a checkpoint holds: if either changes,
checkpoints of today are not taken over. A text that is meant to change is written anew by
`python tests/unit/engine/plan/test_plan_texts.py`.
"""

import itertools
from pathlib import Path
from typing import Any

import pytest

import sabot
from sabot import App, UserError, col, count_window, cumulative, hopping, session, tumbling
from sabot.engine.plan import make_plan, mermaid
from sabot.engine.plan.optimise import walk, with_schemas
from sabot.engine.plan.paths import steps_of

HINT = "if the new text is meant: python tests/unit/engine/plan/test_plan_texts.py writes all of them anew; look at the diff"
EXPECTED = Path(__file__).with_name("expected")
SCHEMA = {"id": "int64", "k": "string", "x": "float64", "n": "int64", "ts": "int64"}


def doubled(batch: Any) -> Any:
    return batch


def words(row: dict[str, Any]) -> Any:
    return [row]


def added(so_far: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    return so_far


def remember(row: dict[str, Any], ctx: Any) -> None: ...


async def asked(row: Any) -> Any: ...


CALL = {"schema": {"k": "string", "y": "float64"}}


class Streams:
    """What the programs below are made of."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.rows = app.stream("rows", schema=SCHEMA, time="ts", lateness="5s")
        self.plain = app.stream("plain", schema=SCHEMA)
        self.others = app.stream(
            "others", schema={"k": "string", "y": "float64", "n": "int64", "at": "int64"}, time="at"
        )
        self.table = app.table("table", key="k", schema={"k": "string", "y": "float64"})
        self.timed_table = app.table(
            "prices", key="k", schema={"k": "string", "y": "float64", "at": "int64"}, time="at"
        )
        self.unknown = app.stream("unknown")
        self.by = self.rows.key_by("k")


def joined(s: Streams, **how: Any) -> Any:
    return s.rows.join(s.others, on="k", **how)


def two_filters(s: Streams) -> Any:
    more = s.rows.with_columns(twice=col("x") * 2, half=col("x") / 2).rename({"n": "number"}).drop("id")
    return more.filter(col("number") > 3).select("k", "twice", total=col("number") + 1).filter(col("k") == "a")


def diamond(s: Streams) -> Any:
    both = s.rows.with_columns(twice=col("x") * 2)
    big, small = both.split(col("twice") > 10)
    return big.union(small.filter(col("n") > 0)).key_by("k").aggregate(n=sabot.count())


def every_aggregate(s: Streams) -> Any:
    return s.by.window(tumbling("1m")).aggregate(
        n=sabot.count(),
        a=sabot.sum(col("x") * 2),
        b=sabot.mean(col("x") * 2),
        c=sabot.first("x"),
        d=sabot.collect_list("n"),
        e=sabot.approx_quantile("x", 0.5),
        f=sabot.arg_max("id", "x"),
        g=sabot.count_distinct("n"),
    )


def sides(s: Streams) -> Any:
    made = s.by.process(remember, schema={"k": "string"}, sides={"odd": {"n": "int64"}})
    made.side("odd").to("odd")
    return made.filter(col("k") == "a")


def connected(s: Streams) -> Any:
    return s.by.connect(s.others.key_by("k")).process(remember, right=remember, schema={"k": "string"}, ttl="1h")


def minutes_of(s: Streams) -> Any:
    return s.by.window(tumbling("1m")).aggregate(t=sabot.sum("x"))


def shared_sink(s: Streams) -> Any:
    for stream in (s.rows, s.others):
        stream.select("k").to("shared", key="k")
    return s.plain.select("n")


FALL = sabot.pattern("high", col("x") > 3, times=(2, None)).then("low", col("x") < 1).within("1m")
PROGRAMS: dict[str, Any] = {
    "the stream itself": lambda s: s.rows,
    "filters move": two_filters,
    "diamond": diamond,
    "map_batches": lambda s: (
        s.rows.map_batches(doubled, schema=SCHEMA).key_by("k").window(tumbling("1m")).aggregate(n=sabot.count())
    ),
    "flat_map": lambda s: s.rows.flat_map(words, schema=SCHEMA).select("k"),
    "map_async": lambda s: s.by.aggregate(t=sabot.sum("x")).map_async(
        asked, schema={"k": "string"}, on_error="skip", dead_letter="dead"
    ),
    "lookup by calls": lambda s: s.rows.lookup(asked, on="k", **CALL, on_error="skip", dead_letter="dead").select("y"),
    "lookup in a table": lambda s: s.rows.lookup(s.table, on="k"),
    "lookup in a broadcast table": lambda s: s.rows.lookup(s.table.broadcast(), on="k"),
    "every aggregate": every_aggregate,
    "hopping, early and late": lambda s: s.by.window(hopping("1h", "1m"), emit_every="1m", late="late").aggregate(
        n=sabot.count()
    ),
    "cumulative": lambda s: (
        s.by.window(cumulative("1d", "1h"), allowed_lateness="1m").aggregate(n=sabot.count()).named("days")
    ),
    "session": lambda s: s.by.window(session("5m")).aggregate(n=sabot.count()),
    "count window": lambda s: s.plain.key_by("k").window(count_window(5)).aggregate(n=sabot.count()),
    "window of all": lambda s: s.rows.window(tumbling("1m")).aggregate(n=sabot.count(), t=sabot.sum(col("x") + 1)),
    "window of all, late": lambda s: s.rows.window(tumbling("1m"), late="late").aggregate(n=sabot.count()),
    "aggregate": lambda s: s.by.aggregate(t=sabot.sum(col("x") * 2), n=sabot.count()),
    "aggregate with ttl": lambda s: s.by.aggregate(ttl="1h", t=sabot.sum("x")).named("totals"),
    "aggregate of all": lambda s: s.rows.aggregate(t=sabot.sum("x")),
    "reduce": lambda s: s.by.reduce(added),
    "reduce with ttl": lambda s: s.by.reduce(added, ttl="1h"),
    "deduplicate": lambda s: s.rows.deduplicate("k"),
    "deduplicate within": lambda s: s.rows.deduplicate(col("k"), (col("n") % 5).alias("m"), within="1h"),
    "deduplicate changes": lambda s: s.rows.group_by("k").aggregate(t=sabot.sum("x")).deduplicate("t").changelog(),
    "group_by": lambda s: s.rows.group_by("k").aggregate(t=sabot.sum("x"), f=sabot.first("x")).upsert("k"),
    "group_by of all": lambda s: s.plain.group_by().aggregate(t=sabot.sum("x")).changelog(),
    "groups of groups": lambda s: (
        s.rows.group_by("k").aggregate(t=sabot.sum("x")).group_by("t").aggregate(n=sabot.count()).materialize()
    ),
    "upsert": lambda s: (
        s.rows.upsert("k").filter(col("x") > 3).rename({"x": "z"}).drop("id").select("k", "z").upsert("k")
    ),
    "upsert of another key": lambda s: s.table.upsert("y"),
    "union of changes": lambda s: s.rows.select("k", "x").upsert("k").union(s.rows.select("k", "x")).changelog(),
    "union by time": lambda s: (
        s.rows.select("k").union(s.others.select("k")).key_by("k").window(tumbling("1m")).aggregate(n=sabot.count())
    ),
    "union of timed and not": lambda s: s.by.over(preceding=3, a=sabot.lag("x")).select("k").union(s.plain.select("k")),
    "sort": lambda s: (
        s.app.stream("ended", schema=SCHEMA, until="now").sort("x", "k", descending=[True, False]).named("sorted")
    ),
    "sort by event time": lambda s: s.rows.sort("ts", "k").select("k", "x"),
    "materialize": lambda s: s.rows.upsert("k").materialize().named("newest"),
    "top_n": lambda s: s.by.top_n(3, ["x", "n"], descending=[True, False], rank="place").changelog(),
    "top_n by rank": lambda s: s.by.top_n(3, "x", ties="dense_rank").materialize(),
    "top_n of all": lambda s: s.rows.key_by("k").top_n(1, "x").select("x").changelog(),
    "top_n of a window": lambda s: s.by.window(tumbling("1m"), late="late").top_n(3, "x", rank="place").named("best"),
    "over rows": lambda s: s.by.over(preceding=5, mean=sabot.mean(col("x") * 2), before=sabot.lag("n")).drop("n"),
    "over time": lambda s: s.by.over(preceding="1h", total=sabot.sum("x"), place=sabot.row_number()).named("hours"),
    "join": joined,
    "left join": lambda s: joined(s, how="left").changelog(),
    "semi join": lambda s: joined(s, how="semi").select("x"),
    "join that keeps": lambda s: joined(s, keep=("1h", "1d")),
    "join that keeps the left": lambda s: joined(s, keep=("1h", None)),
    "interval join": lambda s: joined(s, between=("-1h", "5m"), how="full").select("x", "y"),
    "open interval join": lambda s: joined(s, between=(None, "5m")),
    "window join": lambda s: joined(s, window=tumbling("1m"), how="left", suffix="_2"),
    "broadcast join": lambda s: s.rows.join(s.others.broadcast(), on="k", how="left").named("near").changelog(),
    "join of two keys": lambda s: s.rows.join(s.others, left_on=["k", "n"], right_on=["k", "n"]),
    "join with another time": lambda s: (
        s.rows.join(s.plain.select("k", "x"), on="k").key_by("k").window(tumbling("1m")).aggregate(n=sabot.count())
    ),
    "join_asof": lambda s: s.rows.join_asof(s.timed_table, on="k", tolerance="1h"),
    "join_asof of a filtered table": lambda s: s.rows.join_asof(
        s.timed_table.filter(col("y") > 0).with_columns(z=col("y") * 2), on="k"
    ),
    "join_asof of an upsert": lambda s: s.rows.join_asof(s.others.upsert("k"), on="k", how="inner"),
    "join_asof nearest": lambda s: s.rows.join_asof(s.others, on="k", strategy="nearest", tolerance="5s"),
    "pattern": lambda s: s.by.pattern(FALL, rows=sabot.step("high").count(), x=sabot.step("low").last("x")).named(
        "falls"
    ),
    "process": sides,
    "connect": connected,
    "connect a broadcast": lambda s: s.by.connect(s.others.broadcast()).process(
        remember, right=remember, schema={"k": "string"}
    ),
    "head": lambda s: s.rows.head(10).select("k"),
    "head of a key's rows": lambda s: s.by.aggregate(t=sabot.sum("x")).head(10).filter(col("t") > 3).named("few"),
    "sample": lambda s: s.rows.sample(0.25, seed=7).select("k"),
    "columns not known": lambda s: s.unknown.filter(col("a") > 3).key_by("k").aggregate(n=sabot.count()),
    "all columns of an unknown topic": lambda s: s.unknown.with_columns(b=col("a") + 1).drop("c").rename({"d": "e"}),
    "records' own time": lambda s: s.plain.key_by("k").window(tumbling("1m")).aggregate(n=sabot.count()),
    "no column used": lambda s: s.plain.aggregate(n=sabot.count()).select("n"),
    "shared sink": shared_sink,
    "long": lambda s: (
        minutes_of(s)
        .key_by("k")
        .window(tumbling("1h"))
        .aggregate(most=sabot.max("t"))
        .group_by("k")
        .aggregate(n=sabot.count())
        .changelog()
    ),
}


def said(program: Any, parallelism: int) -> str:
    """The plan, of each step its id and path, and (with several threads) the graph."""
    app = App("shop", parallelism=parallelism)
    streams = Streams(app)
    stream = program(streams)
    stream.to("result")
    writes = app.spec.ends
    reads = {id(node): getattr(node, "schema", None) for node in walk(writes) if not node.inputs}
    plan = make_plan(with_schemas(writes, reads), parallelism=parallelism)
    steps = [
        f"{step.id} {steps_of(step.path)}{' named' if step.named else ''}"
        for stage in plan.stages
        for step in stage.steps()
    ]
    graph = [mermaid(plan)] if parallelism > 1 else []
    return "\n".join([plan.text(), *steps, *graph])


REFUSED: dict[str, Any] = {
    "sort of a stream without an end": lambda s: s.rows.sort("x"),
    "sort of changes without an end": lambda s: s.table.sort("k"),
    "sort without columns": lambda s: s.rows.sort([]),
    "sort with a flag too few": lambda s: s.rows.sort("ts", "x", descending=[True]),
    "filter by a misspelt column": lambda s: s.rows.filter(col("xx") > 3),
    "filter by a name": lambda s: s.rows.filter("x"),
    "filter by nothing": lambda s: s.rows.filter(),
    "select a misspelt column": lambda s: s.rows.select("ks"),
    "select twice": lambda s: s.rows.select("k", "k"),
    "with a misspelt column": lambda s: s.rows.with_columns(y=col("y") + 1),
    "drop a misspelt column": lambda s: s.rows.drop("y"),
    "rename a misspelt column": lambda s: s.rows.rename({"y": "z"}),
    "a column of ours": lambda s: s.rows.with_columns(__time=col("n")),
    "a column of ours by rename": lambda s: s.rows.rename({"n": "__op"}),
    "key by a misspelt column": lambda s: s.rows.key_by("y"),
    "key by nothing": lambda s: s.rows.key_by(),
    "key in the place of a column": lambda s: s.rows.key_by((col("k") + "x").alias("k")),
    "union with no stream": lambda s: s.rows.union(3),
    "union with another app": lambda s: s.rows.union(Streams(App("till")).rows),
    "head of fewer than no rows": lambda s: s.rows.head(-1),
    "head of changes": lambda s: s.table.head(3),
    "sample too much": lambda s: s.rows.sample(2),
    "dead letters of calls that stop the app": lambda s: s.rows.map_async(
        asked, schema={"k": "string"}, dead_letter="dead"
    ),
    "dead letters of a lookup that stops the app": lambda s: s.rows.lookup(asked, on="k", **CALL, dead_letter="dead"),
    "sample with a seed that is no number": lambda s: s.rows.sample(0.5, seed="x"),
    "rename of a name": lambda s: s.rows.rename("k"),
    "upsert of a column twice": lambda s: s.rows.upsert("k", "k"),
    "join with a suffix that is no text": lambda s: s.rows.join(s.others, on="k", suffix=2),
    "join_asof with a suffix that is no text": lambda s: s.rows.join_asof(s.others, on="k", suffix=2),
    "lookup with a suffix that is no text": lambda s: s.rows.lookup(s.others, on="k", suffix=2),
    "top_n with a rank that is no name": lambda s: s.by.top_n(3, "x", rank=5),
    "top_n of a window with a rank that is no name": lambda s: s.by.window(tumbling("1m")).top_n(3, "x", rank=5),
    "flat_map of no function": lambda s: s.rows.flat_map(3, schema=SCHEMA),
    "schema of no kind": lambda s: s.rows.flat_map(words, schema=3),
    "aggregate without a name": lambda s: s.by.aggregate(sabot.count()),
    "aggregate of nothing": lambda s: s.by.aggregate(),
    "aggregate of a misspelt column": lambda s: s.by.aggregate(t=sabot.sum("y")),
    "aggregate with a short ttl": lambda s: s.by.aggregate(ttl="10us", t=sabot.sum("x")),
    "aggregate of changes": lambda s: s.table.aggregate(t=sabot.sum("y")),
    "window of changes": lambda s: s.table.window(tumbling("1m")).aggregate(n=sabot.count()),
    "window of no window": lambda s: s.by.window("1m"),
    "window of sessions, allowed_lateness": lambda s: s.by.window(session("1m"), allowed_lateness="1s"),
    "window of sessions, early": lambda s: s.by.window(session("1m"), emit_every="1s"),
    "window with the name of a key": lambda s: s.by.window(tumbling("1m")).aggregate(k=sabot.count()),
    "group with the name of a key": lambda s: s.rows.group_by("k").aggregate(k=sabot.count()),
    "group by a misspelt column": lambda s: s.rows.group_by("k").aggregate(t=sabot.sum("y")),
    "reduce changes": lambda s: s.table.key_by("k").reduce(added),
    "deduplicate changes within": lambda s: s.table.deduplicate("k", within="1h"),
    "deduplicate by a misspelt column": lambda s: s.rows.deduplicate("y"),
    "top_n of no number": lambda s: s.by.top_n("3", "x"),
    "top_n of misspelt columns": lambda s: s.by.top_n(3, "y"),
    "top_n of no columns": lambda s: s.by.top_n(3, []),
    "top_n with other directions": lambda s: s.by.top_n(3, "x", descending=[True, False]),
    "top_n with other ties": lambda s: s.by.top_n(3, "x", ties="same"),
    "top_n with a rank that is there": lambda s: s.by.top_n(3, "x", rank="n"),
    "top_n of a window with a rank that is there": lambda s: s.by.window(tumbling("1m")).top_n(3, "x", rank="n"),
    "top_n of a session": lambda s: s.by.window(session("1m")).top_n(3, "x"),
    "top_n of a window of changes": lambda s: s.table.window(tumbling("1m")).top_n(3, "y"),
    "over nothing": lambda s: s.by.over(),
    "over a column that is there": lambda s: s.by.over(n=sabot.count()),
    "over a misspelt column": lambda s: s.by.over(m=sabot.lag("y")),
    "over changes": lambda s: s.table.key_by("k").over(m=sabot.lag("y")),
    "over fewer than no rows": lambda s: s.by.over(preceding=-1, m=sabot.lag("x")),
    "map_async of changes": lambda s: s.table.map_async(asked, schema={"k": "string"}),
    "map_batches of changes": lambda s: s.table.map_batches(doubled),
    "lookup by a misspelt column": lambda s: s.rows.lookup(asked, on="y", **CALL),
    "lookup from changes": lambda s: s.table.lookup(s.others, on="k"),
    "join on a misspelt column": lambda s: s.rows.join(s.others, on="id"),
    "join on no column": lambda s: s.rows.join(s.others),
    "join of a name twice": lambda s: s.rows.with_columns(n_right=col("n")).join(s.others, on="k"),
    "join between and window": lambda s: joined(s, between=("-1h", "1h"), window=tumbling("1m")),
    "join between nothing": lambda s: joined(s, between=("1h", "-1h")),
    "join with an open end": lambda s: joined(s, between=("-1h", None), how="left"),
    "join of changes between": lambda s: s.table.join(s.others, on="k", between=("-1h", "1h")),
    "join of changes in a window": lambda s: s.rows.join(s.table, on="k", window=tumbling("1m")),
    "join that keeps changes": lambda s: s.rows.join(s.table, on="k", keep=(None, "1h")),
    "join that keeps and is by time": lambda s: joined(s, between=("-1h", "1h"), keep="1h"),
    "join semi that keeps": lambda s: joined(s, how="semi", keep="1h"),
    "join of another kind": lambda s: joined(s, how="outer"),
    "broadcast join of changes": lambda s: s.table.join(s.others.broadcast(), on="k"),
    "broadcast join that is full": lambda s: s.rows.join(s.others.broadcast(), on="k", how="full"),
    "join_asof of changes": lambda s: s.timed_table.join_asof(s.others, on="k"),
    "join_asof with a group": lambda s: s.rows.join_asof(s.others.group_by("k").aggregate(t=sabot.sum("y")), on="k"),
    "join_asof of another key": lambda s: s.rows.join_asof(s.others.upsert("n"), on="k"),
    "join_asof forward for ever": lambda s: s.rows.join_asof(s.others, on="k", strategy="forward"),
    "pattern of a misspelt column": lambda s: s.others.key_by("k").pattern(FALL, x=sabot.step("low").last("y")),
    "pattern of changes": lambda s: s.table.key_by("k").pattern(
        sabot.pattern("a", col("y") > 3), n=sabot.step("a").count()
    ),
    "pattern with few matches": lambda s: s.by.pattern(FALL, max_partial=0),
    "process changes": lambda s: s.table.key_by("k").process(remember, schema={"k": "string"}),
    "connect other keys": lambda s: s.by.connect(s.others.key_by("k", "n")),
    "connect changes": lambda s: s.by.connect(s.table.key_by("k")).process(
        remember, right=remember, schema={"k": "string"}
    ),
    "a side that is not there": lambda s: s.by.process(remember, schema={"k": "string"}).side("odd"),
    "changelog of no changes": lambda s: s.rows.changelog(),
    "upsert by nothing": lambda s: s.rows.upsert(),
    "upsert by a misspelt column": lambda s: s.rows.upsert("y"),
    "named twice": lambda s: s.by.aggregate(n=sabot.count()).named("a").named("b"),
    "named without state": lambda s: s.rows.filter(col("x") > 3).named("a"),
    "named what is no id": lambda s: s.by.aggregate(n=sabot.count()).named("a b"),
    "two of a name": lambda s: s.by.aggregate(n=sabot.count()).named("a").deduplicate("k").named("a").select("k"),
    "changes into a file": lambda s: s.table.to(sabot.NdjsonSink("out.ndjson")),
    "changes without a key": lambda s: s.rows.group_by("k").aggregate(n=sabot.count()).to("out"),
    "changes whose key is gone": lambda s: s.table.drop("k").to("out"),
    "changes with another key": lambda s: s.table.to("out", key="y"),
    "a misspelt key of records": lambda s: s.rows.to("out", key="y"),
    "two keys of a sink": lambda s: (s.rows.to("same", key="k"), s.others.to("same"), s.rows)[-1],
    "event time under another value": lambda s: (
        s.by.aggregate(ts=sabot.max("n")).window(tumbling("1m")).aggregate(n=sabot.count())
    ),
    "event time computed": lambda s: s.rows.with_columns(ts=col("n")).window(tumbling("1m")).aggregate(n=sabot.count()),
}


def refusal(program: Any) -> str:
    """What the user is told: the error, and its hint."""
    app = App("shop")
    try:
        stream = program(Streams(app))
        if app.spec.ends:
            app.graph()
        stream.explain()
    except UserError as error:
        return f"{error.message} | {error.hint}"
    raise AssertionError("nothing was refused")


def all_plans() -> dict[str, str]:
    return {
        f"{name}, parallelism {parallelism}": said(program, parallelism)
        for (name, program), parallelism in itertools.product(PROGRAMS.items(), (1, 2))
    }


def all_refusals() -> dict[str, str]:
    return {name: refusal(program) for name, program in REFUSED.items()}


def expected(file: str) -> dict[str, str]:
    """Title -> text: titles stand behind "== "."""
    parts = (EXPECTED / file).read_text().removeprefix("== ").split("\n== ")
    return dict(part.rstrip("\n").split("\n", 1) for part in parts)  # type: ignore[misc]


def write(file: str, texts: dict[str, str]) -> None:
    (EXPECTED / file).write_text("\n".join(f"== {title}\n{text}" for title, text in texts.items()) + "\n")


@pytest.mark.one_in(6, "a hundredth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_plan_says_what_it_said(name: str, parallelism: int) -> None:
    assert said(PROGRAMS[name], parallelism) == expected("plans.txt").get(f"{name}, parallelism {parallelism}"), HINT


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_it_said(name: str) -> None:
    assert refusal(REFUSED[name]) == expected("refusals.txt").get(name), HINT


if __name__ == "__main__":
    write("plans.txt", all_plans())
    write("refusals.txt", all_refusals())
