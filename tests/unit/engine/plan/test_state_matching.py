"""A changed program beside the checkpoint of the one before: whose state goes on. What is said is then tried by a restore."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

import sabot
from sabot import App, UserError, col, count_window, cumulative, hopping, session, tumbling
from sabot.connectors.memory import MemoryBroker
from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.engine.operators.reading import operators_of, state_of
from sabot.engine.plan import Verdict, check, compare, make_plan, planned
from tools.agent_tools import bounded, publish, until, values

SCHEMA = {"k": "string", "shop": "int32", "n": "int64", "ts": "int64"}
ROWS = [{"k": f"k{number % 5}", "shop": number % 2, "n": number, "ts": 1000 + number} for number in range(40)]

Program = Callable[[Any], Any]  # stream -> stream; what is written


@pytest.fixture
def run(memory_url: str, tmp_path: Path) -> Any:
    """Runs a program over ROWS, once more with each call, and stops it with a checkpoint. -> its app."""

    def make(program: Program, parallelism: int) -> App:
        app = App(
            "shop",
            broker=memory_url,
            state="memory",
            checkpoint_dir=tmp_path / "checkpoints",
            parallelism=parallelism,
        )
        program(app.stream("orders", schema=SCHEMA, time="ts"))
        return app

    async def one(program: Program, *, parallelism: int = 1, reads: str = "seen", drain: bool = False) -> App:
        app = make(lambda stream: (stream.select("n").to(reads), program(stream)), parallelism)
        before = len(values(app, reads)) if reads in MemoryBroker.get(memory_url).topics() else 0
        publish(app, "orders", ROWS)
        await app.start()
        await until(lambda: len(values(app, reads)) == before + len(ROWS))
        await bounded(app.stop(drain=drain))
        return app

    return one


def checkpoint(tmp_path: Path) -> Manifest:
    manifest = CheckpointStorage(tmp_path / "checkpoints").latest()
    assert manifest is not None
    return manifest


def verdicts(program: Program, manifest: Manifest, parallelism: int = 1, *, drop: Sequence[str] = ()) -> list[Verdict]:
    """What `sabot plan --against` says of a program."""
    app = App("shop", parallelism=parallelism)
    stream = app.stream("orders", schema=SCHEMA, time="ts")
    stream.select("n").to("seen")
    program(stream)
    return compare(planned(make_plan(app.spec.ends, parallelism=parallelism)), manifest, drop)


def outcomes(program: Program, manifest: Manifest, parallelism: int = 1) -> dict[str, str]:
    return {each.id: each.outcome for each in verdicts(program, manifest, parallelism)}


def why(program: Program, manifest: Manifest) -> str:
    (verdict,) = verdicts(program, manifest)
    assert verdict.outcome == "refuse"
    with pytest.raises(UserError, match=r"state that would be lost with this program.*--drop"):
        check([verdict], manifest.checkpoint_id)
    return verdict.why


def hours(stream: Any, window: Any = None, name: str | None = None, **aggregates: Any) -> Any:
    aggregates = aggregates or {"n": sabot.count(), "total": sabot.sum("n")}
    counted = stream.key_by("k").window(window or tumbling("1h")).aggregate(**aggregates)
    return counted if name is None else counted.named(name)


def counts(app: App, topic: str) -> dict[Any, int]:
    return {row["k"]: row["n"] for row in values(app, topic)}


async def test_the_same_program_keeps_everything(run: Any, tmp_path: Path) -> None:
    def program(stream: Any) -> None:
        hours(stream).to("hours")
        stream.key_by("k").aggregate(n=sabot.count(), ttl="1h").to("running")
        stream.key_by("k").reduce(lambda a, b: b).to("reduced")
        stream.deduplicate("k", within="1h").to("firsts")
        hours(stream, session("1m")).to("sessions")
        hours(stream, count_window(100)).to("hundreds")
        hours(stream, hopping("1h", "1m"), s=sabot.collect_list("n"), d=sabot.count_distinct("n")).to("hopping")

    await run(program)
    manifest = checkpoint(tmp_path)
    found = verdicts(program, manifest)
    assert {(each.outcome, each.why) for each in found} == {("keep", "")}
    assert len(found) == 9  # two hold rows back until it is their turn
    assert check(found, 1) == {each.id: each.id for each in found}
    assert {each.id for each in operators_of(manifest)} == {each.id for each in found}
    for each in operators_of(manifest):
        assert state_of(manifest, each.id).num_rows > 0 or each.kind == "rows in order"


async def test_steps_without_state_may_change_around_it(run: Any, tmp_path: Path) -> None:
    await run(lambda stream: hours(stream.filter(col("n") >= 0)).to("hours"))
    manifest = checkpoint(tmp_path)

    def changed(stream: Any) -> None:
        before = stream.with_columns(twice=col("n") * 2).filter(col("twice") >= -7)
        hours(before).filter(col("n") > 0).with_columns(half=col("total") / 2).to("hours")

    assert outcomes(changed, manifest) == {"tumbling-1": "keep"}
    app = await run(changed, drain=True)
    assert counts(app, "hours") == {f"k{number}": 16 for number in range(5)}


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("threads", [(1, 3), (3, 2), (2, 1)])
async def test_another_parallelism_deals_the_state_out_anew(run: Any, tmp_path: Path, threads: Any) -> None:
    def program(stream: Any) -> None:
        hours(stream, s=sabot.collect_list("n"), n=sabot.count()).to("hours")

    await run(program, parallelism=threads[0])
    manifest = checkpoint(tmp_path)
    (verdict,) = verdicts(program, manifest, parallelism=threads[1])
    assert verdict.outcome == "migrate"
    assert verdict.why == f"{threads[0]} subtasks before, {threads[1]} now: key groups are dealt out anew"
    app = await run(program, parallelism=threads[1], drain=True)
    assert counts(app, "hours") == {f"k{number}": 16 for number in range(5)}


@pytest.mark.one_in(3, "a fifth of a second of a core each")
@pytest.mark.parametrize("window", [tumbling("1h"), hopping("1h", "1h"), session("1h"), count_window(16)])
async def test_an_aggregate_may_get_another_name(run: Any, tmp_path: Path, window: Any) -> None:
    def program(stream: Any) -> None:
        hours(stream, window, n=sabot.count(), s=sabot.collect_list("n"), t=sabot.max("k")).to("hours")

    await run(program)

    def renamed(stream: Any) -> None:
        hours(stream, window, rows=sabot.count(), all=sabot.collect_list("n"), t=sabot.max("k")).to("hours2")

    (verdict,) = verdicts(renamed, checkpoint(tmp_path))
    assert (verdict.outcome, verdict.why) == ("migrate", "n is rows now, s is all now")
    app = await run(renamed, drain=True)
    assert {row["k"]: (row["rows"], len(row["all"]), row["t"]) for row in values(app, "hours2")} == {
        f"k{number}": (16, 16, f"k{number}") for number in range(5)
    }


@pytest.mark.slow  # half a second of a core
async def test_a_step_that_gets_a_name_keeps_its_state(run: Any, tmp_path: Path) -> None:
    await run(lambda stream: hours(stream).to("hours"))

    def named(stream: Any) -> None:
        hours(stream, name="totals").to("hours")

    (verdict,) = verdicts(named, checkpoint(tmp_path))
    assert (verdict.id, verdict.saved_as, verdict.outcome) == ("totals", "tumbling-1", "migrate")
    assert verdict.why == "the checkpoint calls it tumbling-1"
    await run(named)
    assert outcomes(named, checkpoint(tmp_path)) == {"totals": "keep"}
    app = await run(named, drain=True)
    assert counts(app, "hours") == {f"k{number}": 24 for number in range(5)}


async def test_a_new_step_before_the_others_takes_nobodys_state(run: Any, tmp_path: Path) -> None:
    """Ids are counted: the new step gets the id of an old one, which is another one's from now on."""
    await run(lambda stream: hours(stream).to("hours"))

    def more(stream: Any) -> None:
        hours(stream, tumbling("1m")).to("minutes")
        hours(stream).to("hours")

    found = verdicts(more, checkpoint(tmp_path))
    assert [(each.id, each.outcome, each.saved_as) for each in found] == [
        ("tumbling-1", "new", None),
        ("tumbling-2", "migrate", "tumbling-1"),
    ]
    app = await run(more, drain=True)
    assert counts(app, "hours") == {f"k{number}": 16 for number in range(5)}
    assert counts(app, "minutes") == {f"k{number}": 8 for number in range(5)}


async def test_steps_that_do_the_same_are_told_apart_by_what_comes_before_them(run: Any, tmp_path: Path) -> None:
    """Two windows alike behind two filters, and the program now says them in the other order: each had the other's state."""

    def program(order: list[int]) -> Program:
        def build(stream: Any) -> None:
            for shop in order:
                hours(stream.filter(col("shop") == shop)).to(f"shop{shop}")

        return build

    await run(program([0, 1]))
    found = verdicts(program([1, 0]), checkpoint(tmp_path))
    assert [(each.id, each.outcome, each.saved_as) for each in found] == [
        ("tumbling-1", "migrate", "tumbling-2"),
        ("tumbling-2", "migrate", "tumbling-1"),
    ]
    app = await run(program([1, 0]), drain=True)
    for shop in (0, 1):
        totals = {row["k"]: row["total"] for row in values(app, f"shop{shop}")}
        assert totals == {
            key: 2 * sum(row["n"] for row in ROWS if row["k"] == key and row["shop"] == shop) for key in totals
        }
        assert len(totals) == 5


async def test_where_nothing_tells_steps_apart_a_name_is_asked_for(run: Any, tmp_path: Path) -> None:
    def program(first: int, second: int) -> Program:
        def build(stream: Any) -> None:
            hours(stream.filter(col("n") > first)).to("a")
            hours(stream.filter(col("n") > second)).to("b")

        return build

    await run(program(0, 1))
    manifest = checkpoint(tmp_path)
    assert outcomes(program(0, 2), manifest) == {"tumbling-1": "keep", "tumbling-2": "keep"}
    found = verdicts(program(3, 4), manifest)
    assert {each.outcome for each in found} == {"refuse"}
    assert found[0].why == (
        "it may go on with the state of tumbling-1 or tumbling-2, and nothing says which: "
        "name them before the checkpoint, .named(…)"
    )


async def test_names_say_whose_the_state_is_whatever_else_changed(run: Any, tmp_path: Path) -> None:
    def program(order: list[int], least: int) -> Program:
        def build(stream: Any) -> None:
            for shop in order:
                few = stream.filter((col("shop") == shop) & (col("n") >= least))
                hours(few, name=f"of-{shop}").to(f"shop{shop}")

        return build

    await run(program([0, 1], 0))
    found = verdicts(program([1, 0], -1), checkpoint(tmp_path))
    assert [(each.id, each.outcome) for each in found] == [("of-1", "keep"), ("of-0", "keep")]
    app = await run(program([1, 0], -1), drain=True)
    assert {row["total"] for row in values(app, "shop0")} == {
        2 * sum(row["n"] for row in ROWS if row["k"] == f"k{key}" and row["shop"] == 0) for key in range(5)
    }


@pytest.mark.one_in(9, "some hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (lambda s: hours(s, tumbling("30m"), name="w"), "window was tumbling(3600000), is tumbling(1800000)"),
        (lambda s: hours(s, session("1m"), name="w"), "window was tumbling(3600000), is session(60000)"),
        (lambda s: hours(s, cumulative("1h", "1m"), name="w"), "is cumulative(3600000, 60000)"),
        (
            lambda s: hours(s, n=sabot.count(), total=sabot.mean("n"), name="w"),
            'aggregate total was sum(col("n")) int64, is mean(col("n")) double',
        ),
        (
            lambda s: hours(s, n=sabot.count(), total=sabot.sum(col("n") * 2), name="w"),
            'aggregate total was sum(col("n")) int64, is sum(col("n") * 2) int64',
        ),
        (
            lambda s: hours(s.with_columns(n=col("n").cast("float64")), name="w"),
            'aggregate total was sum(col("n")) int64, is sum(col("n")) double',
        ),
        (lambda s: hours(s, most=sabot.max("n"), name="w"), "none of its aggregates is left"),
        (
            lambda s: (
                s.key_by("k", "shop").window(tumbling("1h")).aggregate(n=sabot.count(), total=sabot.sum("n")).named("w")
            ),
            "key shop is new (int32)",
        ),
        (lambda s: s.key_by("k").aggregate(n=sabot.count()).named("w"), "it was a window, is a running aggregate"),
        (
            lambda s: (
                s.key_by("k")
                .window(tumbling("1h"), allowed_lateness="1m")
                .aggregate(n=sabot.count(), total=sabot.sum("n"))
                .named("w")
            ),
            "allowed lateness was 0 ms, is 60000 ms",
        ),
    ],
)
async def test_what_cannot_go_on_is_said_exactly(run: Any, tmp_path: Path, changed: Any, says: str) -> None:
    await run(lambda stream: hours(stream, name="w").to("hours"))
    manifest = checkpoint(tmp_path)
    assert says in why(lambda stream: changed(stream).to("hours"), manifest)
    with pytest.raises(UserError) as caught:
        await run(lambda stream: changed(stream).to("hours"))
    assert says in str(caught.value)
    assert checkpoint(tmp_path).checkpoint_id == manifest.checkpoint_id


def fates(verdict: Verdict) -> dict[str, str]:
    return {part.name: part.outcome for part in verdict.parts}


async def test_each_aggregate_is_kept_added_dropped_or_refused(run: Any, tmp_path: Path) -> None:
    await run(lambda stream: hours(stream, name="w", n=sabot.count(), total=sabot.sum("n"), t=sabot.max("k")).to("h"))
    manifest = checkpoint(tmp_path)

    def changed(stream: Any) -> None:
        hours(stream, name="w", sums=sabot.sum("n"), least=sabot.min("n"), n=sabot.count()).to("h")

    (verdict,) = verdicts(changed, manifest)
    assert verdict.outcome == "migrate"
    assert fates(verdict) == {"sums": "keep", "least": "add", "n": "keep", "t": "drop"}
    assert verdict.why == (
        'total is sums now; least is new (min(col("n")) int64): it begins empty; '
        't (max(col("k")) string) is gone: the program no longer has it; a table into which it was written keeps the column'
    )

    def other(stream: Any) -> None:
        hours(stream, name="w", n=sabot.count(), total=sabot.sum(col("n") * 2)).to("h")

    (verdict,) = verdicts(other, manifest)
    assert fates(verdict) == {"n": "keep", "total": "refuse", "t": "drop"}
    with pytest.raises(UserError, match=r"give up only this state: --drop w\.total\)"):
        check([verdict], manifest.checkpoint_id)
    (verdict,) = verdicts(other, manifest, drop=["w.total"])
    assert (verdict.outcome, verdict.forgets) == ("migrate", {"total"})
    assert fates(verdict) == {"n": "keep", "total": "add", "t": "drop"}


async def test_another_order_of_aggregates_is_no_change(run: Any, tmp_path: Path) -> None:
    await run(lambda stream: hours(stream, name="w").to("hours"))

    def turned(stream: Any) -> None:
        hours(stream, name="w", total=sabot.sum("n"), n=sabot.count()).to("hours")

    (verdict,) = verdicts(turned, checkpoint(tmp_path))
    assert (verdict.outcome, verdict.why) == ("keep", "")
    app = await run(turned, drain=True)
    assert counts(app, "hours") == {f"k{number}": 16 for number in range(5)}


async def test_a_changed_step_without_a_name_is_found_by_the_aggregates_that_it_has_left(
    run: Any, tmp_path: Path
) -> None:
    """Its number belongs to another step now."""

    def before(stream: Any) -> None:
        hours(stream, n=sabot.count(), s=sabot.sum("n")).to("a")
        hours(stream, t=sabot.max("k")).to("b")

    def after(stream: Any) -> None:
        hours(stream, t=sabot.max("k"), low=sabot.min("n")).to("b")
        hours(stream, n=sabot.count(), high=sabot.max("n")).to("a")

    await run(before)
    found = verdicts(after, checkpoint(tmp_path))
    assert [(each.id, each.saved_as, fates(each)) for each in found] == [
        ("tumbling-1", "tumbling-2", {"t": "keep", "low": "add"}),
        ("tumbling-2", "tumbling-1", {"n": "keep", "high": "add", "s": "drop"}),
    ]
    app = await run(after, drain=True)
    assert counts(app, "a") == {f"k{number}": 16 for number in range(5)}


async def test_where_several_steps_may_have_changed_into_one_it_is_refused(run: Any, tmp_path: Path) -> None:
    def before(stream: Any) -> None:
        hours(stream, n=sabot.count(), s=sabot.sum("n")).to("a")
        hours(stream, n=sabot.count(), t=sabot.max("k")).to("b")

    await run(before)
    manifest = checkpoint(tmp_path)
    found = verdicts(lambda stream: hours(stream, n=sabot.count(), low=sabot.min("n")).to("a"), manifest)
    assert found[0].outcome == "refuse"
    assert "tumbling-1 or tumbling-2" in found[0].why


async def test_what_is_given_up_is_named(run: Any, tmp_path: Path) -> None:
    await run(lambda stream: (hours(stream, name="w").to("hours"), hours(stream, name="v").to("others")))
    manifest = checkpoint(tmp_path)

    def changed(stream: Any) -> None:
        hours(stream, tumbling("30m"), name="w").to("halves")

    with pytest.raises(UserError, match=r"--drop w --drop v\)"):
        check(verdicts(changed, manifest), manifest.checkpoint_id)
    found = verdicts(changed, manifest, drop=["w", "v"])
    assert [(each.id, each.outcome, each.loses) for each in found] == [("w", "new", False), ("v", "drop", False)]
    assert check(found, manifest.checkpoint_id) == {}
    with pytest.raises(UserError, match=r"--drop x.*there are w, v, w\.n, w\.total"):
        verdicts(changed, manifest, drop=["x"])
    with pytest.raises(UserError, match=r"--drop w\.x"):
        verdicts(changed, manifest, drop=["w.x"])


async def test_a_step_is_given_up_by_the_name_that_it_has_now_or_had(run: Any, tmp_path: Path) -> None:
    await run(lambda stream: hours(stream).to("hours"))
    for name in ("totals", "tumbling-1"):
        found = verdicts(lambda stream: hours(stream, name="totals").to("hours"), checkpoint(tmp_path), drop=[name])
        assert [(each.outcome, each.saved_as) for each in found if each.id == "totals"] == [("new", None)]
        assert not any(each.loses for each in found)


async def test_state_is_never_dropped_in_silence(run: Any, tmp_path: Path) -> None:
    await run(lambda stream: hours(stream, name="w").to("hours"))
    manifest = checkpoint(tmp_path)
    found = verdicts(lambda stream: stream.to("hours"), manifest)
    assert [(each.id, each.outcome, each.now, each.groups) for each in found] == [("w", "drop", None, 5)]
    with pytest.raises(UserError, match=r"w \(tumbling window.*this program has no such operator.*--drop"):
        await run(lambda stream: stream.to("hours"))


async def test_a_step_that_holds_nothing_may_change_or_go(run: Any, tmp_path: Path) -> None:
    """After a drain every window is closed: another window begins anew, and no row is lost."""
    await run(lambda stream: hours(stream, name="w").to("hours"), drain=True)
    manifest = checkpoint(tmp_path)

    def changed(stream: Any) -> None:
        hours(stream, tumbling("30m"), name="w").to("halves")

    (verdict,) = verdicts(changed, manifest)
    assert verdict.outcome == "new"
    assert verdict.why.startswith(
        "window was tumbling(3600000), is tumbling(1800000); the checkpoint holds nothing of it"
    )
    assert outcomes(lambda stream: stream.to("copies"), manifest) == {"w": "drop"}
    app = await run(changed, drain=True)
    assert counts(app, "halves") == {f"k{number}": 8 for number in range(5)}


async def test_a_ttl_may_become_another_but_not_come_or_go(run: Any, tmp_path: Path) -> None:
    def program(ttl: str | None) -> Program:
        return lambda stream: stream.key_by("k").aggregate(n=sabot.count(), ttl=ttl).named("r").to("running")

    await run(program("1h"))
    manifest = checkpoint(tmp_path)
    longer = {each.id: (each.outcome, each.why) for each in verdicts(program("2h"), manifest)}
    assert longer["r"] == (
        "migrate",
        "ttl was 3600000 ms, is 7200000 ms: for what the checkpoint still has, and from here on",
    )
    assert longer["r.order"] == ("keep", "")
    never = {each.id: each for each in verdicts(program(None), manifest)}
    assert "ttl was 3600000 ms, is none" in never["r"].why
    app = await run(program("2h"), drain=True)
    assert counts(app, "running") == {f"k{number}": 16 for number in range(5)}


async def test_a_deduplicate_within_another_time_still_knows_its_keys(run: Any, tmp_path: Path) -> None:
    def program(within: str) -> Program:
        return lambda stream: stream.key_by("k").deduplicate(within=within).named("d").to("firsts")

    await run(program("1h"))
    found = {each.id: (each.outcome, each.saved_as) for each in verdicts(program("2h"), checkpoint(tmp_path))}
    assert found == {"d": ("migrate", "d"), "d.order": ("keep", "d.order")}
    app = await run(program("2h"), drain=True)
    assert sorted(row["k"] for row in values(app, "firsts")) == [f"k{number}" for number in range(5)]


async def test_rows_that_wait_lose_only_columns_that_nobody_reads(run: Any, tmp_path: Path) -> None:
    def firsts(*columns: str) -> Program:
        return lambda s: s.select("k", *columns).key_by("k").deduplicate(within="1ms").named("d").to("firsts")

    await run(firsts("n", "shop"))
    manifest = checkpoint(tmp_path)
    assert sum(each.rows or 0 for each in operators_of(manifest) if each.id == "d.order") > 0
    fewer = {each.id: (each.outcome, each.why) for each in verdicts(firsts("n"), manifest)}
    assert fewer["d.order"] == ("migrate", "rows that wait keep only k, n")
    app = await run(firsts("n"), drain=True)
    assert len(values(app, "firsts")) == 2 * len(ROWS) - 1  # the row that waited, and its like of the second run
    manifest = checkpoint(tmp_path)
    assert outcomes(firsts("n", "shop"), manifest)["d.order"] == "migrate"  # nothing waits after a drain


# Joins, changes, ranks, functions, patterns, calls


async def tripled(row: dict[str, Any]) -> dict[str, Any]:
    return {"k": row["k"], "n": row["n"] * 3}


async def place_of(key: str) -> dict[str, Any]:
    return {"place": f"in {key}"}


def remember(row: dict[str, Any], ctx: Any) -> None:
    ctx.state("n").put(row["n"])
    ctx.timers.event(ctx.timestamp + 3_600_000)


def late(timer: Any, ctx: Any) -> dict[str, Any]:
    return {"k": ctx.key, "n": ctx.state("n").get()}


def others(stream: Any) -> Any:
    """A second side: other columns, of the same rows."""
    return stream.select("k", "ts", m="n")


def grouped(stream: Any) -> Any:
    return stream.group_by("k").aggregate(n=sabot.count(), most=sabot.max("n"))


def climbing(times: int = 50) -> sabot.Pattern:
    return sabot.pattern("low", col("n") == 0).then("high", col("n") > 0, times=times).within("1h")


STEPS: dict[str, Program] = {
    "join": lambda s: s.join(others(s), on="k"),
    "outer": lambda s: s.join(others(s), on="k", how="full").changelog(),
    "near": lambda s: s.join(others(s), on="k", between=("-1h", "1h")),
    "same-hour": lambda s: s.join(others(s), on="k", window=tumbling("1h")),
    "as-of": lambda s: s.join_asof(others(s), on="k"),
    "lookup": lambda s: s.lookup(others(s), on="k"),
    "groups": lambda s: grouped(s).changelog(),
    "groups-of-changes": lambda s: grouped(s).group_by("n").aggregate(keys=sabot.count()).changelog(),
    "upsert": lambda s: s.upsert("k").changelog(),
    "best": lambda s: s.key_by("k").top_n(3, by="n").changelog(),
    "best-of-hours": lambda s: s.key_by("k").window(tumbling("1h")).top_n(3, by="n"),
    "around": lambda s: s.key_by("k").over(preceding=5, total=sabot.sum("n"), before=sabot.lag("n")),
    "function": lambda s: s.key_by("k").process(remember, schema={"k": "string", "n": "int64"}, on_timer=late),
    "climbs": lambda s: s.key_by("k").pattern(climbing(), n=sabot.step("high").count()),
    "calls": lambda s: s.map_async(tripled, schema={"k": "string", "n": "int64"}),
    "asked": lambda s: s.lookup(place_of, on="k", schema={"place": "string"}),
    "some": lambda s: s.sample(0.5),
    "first": lambda s: s.head(2),
}
EMPTY = {"calls", "asked"}  # nothing was in flight


@pytest.mark.slow  # half a second of a core
async def test_the_same_program_keeps_everything_of_joins_changes_and_functions(run: Any, tmp_path: Path) -> None:
    def program(stream: Any) -> None:
        for name, step in STEPS.items():
            step(stream).named(name).to(name)

    await run(program)
    manifest = checkpoint(tmp_path)
    found = verdicts(program, manifest)
    assert {(each.outcome, each.why) for each in found} == {("keep", "")}
    assert STEPS.keys() <= {each.id for each in found}
    assert check(found, 1) == {each.id: each.id for each in found}
    known = {each.id: each for each in operators_of(manifest)}
    assert known.keys() == {each.id for each in found}
    for each in known.values():
        if each.kind in ("changelog", "sample"):
            with pytest.raises(UserError, match=f"{each.id} keeps no rows"):
                state_of(manifest, each.id)
        elif each.id not in EMPTY:
            assert state_of(manifest, each.id).num_rows > 0, each
            assert each.rows, each


async def test_the_first_rows_under_another_n_are_those_that_have_passed_and_more(run: Any, tmp_path: Path) -> None:
    await run(lambda stream: stream.head(2).to("few"))

    def more(stream: Any) -> None:
        stream.head(5).to("few")

    (verdict,) = verdicts(more, checkpoint(tmp_path))
    assert (verdict.outcome, verdict.why) == ("migrate", "n was 2, is 5: the rows that have passed count")
    app = await run(more)
    assert len(values(app, "few")) == 5


async def test_two_heads_of_one_stream_keep_their_counts_when_they_are_written_in_the_other_order(
    run: Any, tmp_path: Path
) -> None:
    def program(*some: int) -> Program:
        def build(stream: Any) -> None:
            for n in some:
                stream.head(n).to(f"first{n}")

        return build

    await run(program(2, 7))
    app = await run(program(7, 2))
    assert [len(values(app, f"first{n}")) for n in (2, 7)] == [2, 7]


@pytest.mark.parametrize("kind", ["lambdas", "closures"])
async def test_twins_behind_functions_of_one_name_keep_their_state_when_they_change_places(
    run: Any, tmp_path: Path, kind: str
) -> None:
    """The digest of a path has the name of a function, and two lambdas have one name: twins that changed places swapped their state."""

    def above(least: int) -> Any:
        return lambda batch: batch.filter(pc.greater(batch["n"], least))

    first, second = above(3), above(30)
    if kind == "lambdas":
        first, second = lambda batch: batch.slice(0, 1), lambda batch: batch.slice(1)

    def program(*functions: Any) -> Program:
        def build(stream: Any) -> None:
            for number, function in enumerate(functions):
                rows = stream.map_batches(function, schema=SCHEMA)
                rows.key_by("k").aggregate(count=sabot.count()).to(f"counts{number}")

        return build

    await run(program(first, second))
    stays = {each.id: each.saved_as for each in verdicts(program(first, second), checkpoint(tmp_path))}
    assert stays == {each: each for each in stays}
    one, other = stays
    swapped = {each.id: each.saved_as for each in verdicts(program(second, first), checkpoint(tmp_path))}
    assert swapped == {one: other, other: one}


async def test_a_count_of_rows_that_would_be_lost_is_refused(run: Any, tmp_path: Path) -> None:
    """Without it the same number of rows would pass once more."""
    await run(lambda stream: stream.head(2).named("few").to("few"))
    found = verdicts(lambda stream: stream.head(2).named("first").to("few"), checkpoint(tmp_path))
    assert {each.id: each.outcome for each in found} == {"first": "new", "few": "drop"}
    with pytest.raises(UserError, match="few"):
        check(found, 1)


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("threads", [(1, 2), (2, 1), (2, 3)])
async def test_steps_that_do_the_same_go_on_with_another_parallelism(
    run: Any, tmp_path: Path, threads: tuple[int, int]
) -> None:
    """With one thread they are over-1 and over-2; with several each has a stage before it, which is counted too: over-2 and over-4."""

    def program(stream: Any) -> None:
        for topic in ("one", "other"):
            stream.key_by("k").over(place=sabot.row_number()).to(topic)

    before, after = threads
    await run(program, parallelism=before)
    found = verdicts(program, checkpoint(tmp_path), parallelism=after)
    assert {each.outcome for each in found} == {"migrate"}
    assert len({each.saved_as for each in found}) == 4  # two of them put the rows in order
    app = await run(program, parallelism=after, drain=True)
    for topic in ("one", "other"):
        assert sorted(row["place"] for row in values(app, topic)) == sorted([*range(1, 17)] * 5)


async def test_steps_that_do_the_same_are_not_taken_for_each_other_where_one_has_got_a_name(
    run: Any, tmp_path: Path
) -> None:
    def program(*names: str | None) -> Program:
        def build(stream: Any) -> None:
            for number, name in enumerate(names):
                hours(stream, name=name).to(f"hours{number}")

        return build

    await run(program(None, None))
    found = verdicts(program(None, "second"), checkpoint(tmp_path))
    assert {each.id: each.outcome for each in found} == {"tumbling-1": "refuse", "second": "refuse"}


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("name", ["near", "lookup", "groups-of-changes", "function"])
async def test_with_another_parallelism_they_go_on_as_they_were(run: Any, tmp_path: Path, name: str) -> None:
    def program(stream: Any) -> None:
        STEPS[name](stream).named("it").to("results")

    await run(program, parallelism=2)
    manifest = checkpoint(tmp_path)
    found = {each.id: (each.outcome, each.why) for each in verdicts(program, manifest, parallelism=3)}
    assert found["it"] == ("migrate", "2 subtasks before, 3 now: key groups are dealt out anew")
    before = state_of(manifest, "it")
    await run(program, parallelism=3)
    assert state_of(checkpoint(tmp_path), "it").num_rows >= before.num_rows


@pytest.mark.one_in(12, "some hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("join", lambda s: s.join(others(s), on="k", how="semi"), "how was inner, is semi"),
        ("join", lambda s: s.join(others(s), on="k", between=(0, "1h")), "it was a join, is a interval join"),
        (
            "near",
            lambda s: s.join(others(s), on="k", between=("-1h", "2h")),
            "upper ms was 3600000, is 7200000",
        ),
        (
            "same-hour",
            lambda s: s.join(others(s), on="k", window=tumbling("30m")),
            "window was tumbling(3600000), is tumbling(1800000)",
        ),
        (
            "as-of",
            lambda s: s.join_asof(others(s), on="k", tolerance="1m"),
            "tolerance ms was none, is 60000",
        ),
        (
            "groups",
            lambda s: s.group_by("k").aggregate(n=sabot.count(), most=sabot.min("n")).changelog(),
            'aggregate most was max(col("n")) int64, is min(col("n")) int64',
        ),
        ("upsert", lambda s: s.upsert("shop").changelog(), "key shop is new (int32)"),
        ("best", lambda s: s.key_by("k").top_n(5, by="n").changelog(), "n was 3, is 5"),
        ("best", lambda s: s.key_by("k").top_n(3, by="n", descending=False).changelog(), "by was"),
        (
            "around",
            lambda s: s.key_by("k").over(preceding=9, total=sabot.sum("n"), before=sabot.lag("n")),
            "frame was",
        ),
        (
            "function",
            lambda s: s.key_by("k", "shop").process(remember, schema={"k": "string", "n": "int64"}, on_timer=late),
            "key shop is new (int32)",
        ),
        (
            "climbs",
            lambda s: s.key_by("k").pattern(climbing(60), n=sabot.step("high").count()),
            "pattern was",
        ),
    ],
)
async def test_what_cannot_go_on_of_them_is_said_exactly(
    run: Any, tmp_path: Path, before: str, after: Any, says: str
) -> None:
    await run(lambda stream: STEPS[before](stream).named("it").to("results"))

    def changed(stream: Any) -> None:
        after(stream).named("it").to("results")

    (verdict,) = [each for each in verdicts(changed, checkpoint(tmp_path)) if each.id == "it"]
    assert verdict.outcome == "refuse"
    assert says in verdict.why
    with pytest.raises(UserError, match="--drop") as caught:
        await run(changed)
    assert says in str(caught.value)


KEEPS_ROWS: dict[str, Program] = {
    "near": STEPS["near"],
    "upsert": lambda s: s.upsert("k"),
    "best": lambda s: s.key_by("k").top_n(3, by="n"),
    "best-of-hours": STEPS["best-of-hours"],
}


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize("name", KEEPS_ROWS)
async def test_a_column_that_nothing_reads_any_more_goes_from_kept_rows(run: Any, tmp_path: Path, name: str) -> None:
    def program(*columns: str) -> Program:
        def written(stream: Any) -> None:
            kept = KEEPS_ROWS[name](stream).named("it").select("k", "n", *columns)
            (kept.changelog() if kept.changes else kept).to("results")

        return written

    await run(program("shop"))
    manifest = checkpoint(tmp_path)
    assert "shop" in state_of(manifest, "it").schema.names
    (verdict,) = [each for each in verdicts(program(), manifest) if each.id == "it"]
    assert verdict.outcome == "migrate"
    assert verdict.why == f"the kept rows{' of the left' if name == 'near' else ''} go on without shop"
    kept = state_of(manifest, "it").drop_columns(["shop"])
    await run(program())
    manifest = checkpoint(tmp_path)
    rows = state_of(manifest, "it")
    assert rows.schema.names == kept.schema.names
    assert rows.num_rows >= kept.num_rows
    (verdict,) = [each for each in verdicts(program("shop"), manifest) if each.id == "it"]
    assert verdict.outcome == "refuse"
    assert "column shop is new (int32)" in verdict.why


async def test_functions_and_calls_may_become_others(run: Any, tmp_path: Path) -> None:
    """What a function does is its own; what it has kept goes on."""

    def again(row: dict[str, Any], ctx: Any) -> dict[str, Any]:
        return {"before": ctx.state("n").get()}

    await run(lambda stream: STEPS["function"](stream).named("it").to("results"))

    def changed(stream: Any) -> None:
        stream.key_by("k").process(again, schema={"before": "int64"}).named("it").to("before")

    assert outcomes(changed, checkpoint(tmp_path)) == {"it": "keep"}
    app = await run(changed)
    assert {row["before"] for row in values(app, "before")} == {35, 36, 37, 38, 39}


def test_a_name_is_given_once_and_to_a_step_with_state() -> None:
    stream = App("shop").stream("orders", schema=SCHEMA, time="ts")
    with pytest.raises(UserError, match="no step before this place keeps state"):
        stream.filter(col("n") > 1).named("x")
    with pytest.raises(UserError, match="called 'x' already"):
        hours(stream).named("x").named("y")
    with pytest.raises(UserError, match="is not an id"):
        hours(stream).named("a/b")
    app = App("shop")
    for topic in ("a", "b"):
        hours(app.stream(topic, schema=SCHEMA, time="ts"), name="twice").to(f"{topic}-hours")
    with pytest.raises(UserError, match="two steps are called 'twice'"):
        app.graph()
    app = App("shop")
    orders = app.stream("orders", schema=SCHEMA, time="ts")
    hours(orders).to("a")
    hours(orders, name="tumbling-1").to("b")
    with pytest.raises(UserError, match="two steps are called 'tumbling-1'"):
        app.graph()


def test_a_name_reaches_past_steps_without_state() -> None:
    app = App("shop")
    stream = app.stream("orders", schema=SCHEMA, time="ts")
    hours(stream).select("k", "n").named("totals").to("hours")
    assert [each.id for each in planned(make_plan(app.spec.ends))] == ["totals"]


def test_a_plan_whose_columns_are_not_known_cannot_be_compared() -> None:
    app = App("shop")
    app.stream("orders").key_by("k").aggregate(n=sabot.count()).to("running")
    with pytest.raises(UserError, match="the columns of orders are not known"):
        planned(make_plan(app.spec.ends))
