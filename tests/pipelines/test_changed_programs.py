"""A program that lives changes: half of the rows, a stop or a crash, another program, the rest. What was kept equals a run that nobody
interrupted; what was added equals a run over the rest alone.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import sabot
from sabot import (
    App,
    UserAggregate,
    UserError,
    aggregate_with,
    col,
    count_window,
    cumulative,
    hopping,
    session,
    tumbling,
)
from sabot.connectors.memory import MemoryBroker
from sabot.engine.operators.base import Stateful
from tools.agent_tools import bounded, checkpoint, crash_image, publish, until, values

SCHEMA = {"k": "string", "n": "int64", "x": "int64", "y": "float64", "w": "string", "ts": "int64"}
ROWS = [
    {
        "k": f"k{number * 7 % 11}",
        "n": number,
        "x": number * 37 % 101 - 50,
        "y": None if number % 13 == 0 else number * 0.5,
        "w": f"w{number * 5 % 17}",
        "ts": 1000 * number,
    }
    for number in range(240)
]
HALF = 130  # in the middle of windows and of keys

Program = Callable[[Any], Any]
Aggregates = dict[str, Any]


class Longest(UserAggregate):
    """The longest text; a state is a text."""

    type = pa.string()

    def init(self) -> Any:
        return ""

    def accumulate(self, state: Any, values: Any) -> Any:
        texts = values.column("w").to_pylist()
        return max([state, *texts], key=lambda text: (len(text), text))

    def merge(self, state: Any, other: Any) -> Any:
        return max(state, other, key=lambda text: (len(text), text))

    def finish(self, state: Any) -> Any:
        return state


def numbers() -> Aggregates:
    """Aggregates with accumulators of fixed width."""
    return {
        "n": sabot.count(),
        "s": sabot.sum("x"),
        "d": sabot.sum(col("x") * 2),
        "low": sabot.min("x"),
        "high": sabot.max("y"),
        "avg": sabot.mean("y"),
        "exact": sabot.mean(col("x").cast("decimal(19, 2)")),
        "var": sabot.variance("x"),
        "sd": sabot.stddev("y", ddof=0),
        "one": sabot.first("x"),
        "end": sabot.last("y"),
        "many": sabot.count("y"),
        "some": sabot.sum("x").filter(col("y") > 40),
    }


def gathered() -> Aggregates:
    """Aggregates of values without a fixed width."""
    return {
        "words": sabot.collect_list("w"),
        "kinds": sabot.count_distinct("w"),
        "word": sabot.max("w"),
        "latest": sabot.last("w"),
        "best": sabot.arg_max("w", "x"),
        "top": sabot.top_k("x", 3),
        "about": sabot.approx_count_distinct("x"),
        "median": sabot.approx_quantile("x", 0.5),
        "own": aggregate_with(Longest(), "w"),
    }


def halves(aggregates: Aggregates) -> tuple[Aggregates, Aggregates]:
    """(of the program before, of the program after): a third is gone, a third is kept, with other names, and a third is new."""
    kinds = list(aggregates.items())
    before = dict(kinds[0::3] + kinds[1::3])
    kept = [(f"{name}_", each) for name, each in kinds[1::3]]
    added = kinds[2::3]
    return before, dict(added[:1] + kept[::-1] + added[1:])


class Life:
    """Programs of one app, one after the other."""

    def __init__(self, broker: str, directory: Path, state: str) -> None:
        self.broker, self.directory, self.state = broker, directory, state
        self.sent = 0

    def app(self, program: Program, *, parallelism: int = 1, time: Any = "ts", **settings: Any) -> App:
        state = "memory" if self.state == "memory" else str(self.directory / "state")
        app = App(
            "shop",
            broker=self.broker,
            state=state,
            checkpoint_dir=self.directory / "checkpoints",
            parallelism=parallelism,
            memory_budget="256MB",
        )
        app.configure(**settings)
        stream = app.stream("orders", schema=SCHEMA, **(time if isinstance(time, dict) else {"time": time}))
        stream.select("n").to("seen")
        program(stream)
        return app

    def seen(self, app: App) -> int:
        return len(values(app, "seen")) if "seen" in MemoryBroker.get(self.broker).topics() else 0

    async def run(self, program: Program, rows: Sequence[Any], *, drain: bool = False, **settings: Any) -> App:
        """Runs it over these rows, behind those that there are, and stops it."""
        app = self.app(program, **settings)
        before = self.seen(app)
        publish(app, "orders", rows)
        await app.start()
        await until(lambda: self.seen(app) == before + len(rows))
        await bounded(app.stop(drain=drain))
        return app


@pytest.fixture(params=["memory", "rocksdb"])
def life(request: Any, memory_url: str, tmp_path: Path) -> Life:
    return Life(memory_url, tmp_path / "app", request.param)


async def alone(tmp_path: Path, program: Program, rows: Sequence[Any]) -> list[Any]:
    """What an app writes that has nothing but these rows, and is not interrupted."""
    directory = tmp_path / f"alone-{len(rows)}"
    other = Life(f"memory://{directory.name}-{tmp_path.name}", directory, "memory")
    app = await other.run(program, rows, drain=True)
    found = values(app, "out")
    MemoryBroker.get(other.broker).reset()
    return found


def rounded(value: Any) -> Any:
    return float(f"{value:.12g}") if isinstance(value, float) else value


def keyed(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[Any, Any]:
    """The last row of each key and window, with some of its columns. A restart sums parts, so floats are rounded."""
    return {
        (row.get("k"), row.get("window_end"), row.get("n_at")): {name.rstrip("_"): rounded(row[name]) for name in names}
        for row in rows
    }


def windowed(window: Any) -> Callable[[Aggregates], Program]:
    return lambda aggregates: (
        lambda stream: stream.key_by("k").window(window).aggregate(**aggregates).named("totals").to("out")
    )


def running(ttl: str | None = None) -> Callable[[Aggregates], Program]:
    return lambda aggregates: (
        lambda stream: (
            stream.key_by("k").aggregate(ttl=ttl, n_at=sabot.max("n"), **aggregates).named("totals").to("out")
        )
    )


def grouped(over_changes: bool) -> Callable[[Aggregates], Program]:
    def program(aggregates: Aggregates) -> Program:
        def build(stream: Any) -> None:
            rows = stream.upsert("n") if over_changes else stream
            rows.group_by("k").aggregate(**aggregates).named("totals").changelog().to("out")

        return build

    return program


def one_group(stream: Any, aggregates: Aggregates) -> None:
    stream.group_by().aggregate(**aggregates).named("totals").changelog().to("out")


def of_all(window: Any) -> Callable[[Aggregates], Program]:
    """Without keys: each thread combines its rows before they come together."""
    return lambda aggregates: lambda stream: stream.window(window).aggregate(**aggregates).named("totals").to("out")


STEPS: dict[
    str, tuple[Callable[[Aggregates], Program], bool]
] = {  # a program of aggregates, whether it takes all kinds
    "tumbling": (windowed(tumbling("150s")), True),
    "hopping": (windowed(hopping("120s", "40s")), True),
    "cumulative": (windowed(cumulative("160s", "40s")), True),
    "session": (windowed(session("20s")), True),
    "count": (windowed(count_window(30)), True),
    "running": (running(), False),
    "running with ttl": (running("1h"), False),
    "groups": (grouped(over_changes=False), True),
    "groups over changes": (grouped(over_changes=True), True),
    "one group": (lambda aggregates: lambda stream: one_group(stream, aggregates), True),
    "windows of all": (of_all(tumbling("150s")), True),
    "sessions of all": (of_all(session("20s")), True),
}


@pytest.mark.one_in(60, "a third of a second of a core each")
@pytest.mark.parametrize("threads", [(1, 1), (2, 2), (1, 2)], ids=["1", "2", "1 to 2"])
@pytest.mark.parametrize("step", STEPS)
async def test_kept_aggregates_go_on_and_added_ones_begin(
    life: Life, tmp_path: Path, step: str, threads: tuple[int, int]
) -> None:
    make, all_kinds = STEPS[step]
    aggregates = numbers() | (gathered() if all_kinds else {})
    if step == "groups over changes":
        del aggregates["about"]  # it cannot forget a row
    before, after = halves(aggregates)
    kept = [name for name in after if name.endswith("_")]
    added = [name for name in after if not name.endswith("_")]
    await life.run(make(before), ROWS[:HALF], parallelism=threads[0])
    app = await life.run(make(after), ROWS[HALF:], parallelism=threads[1], drain=True)
    found = [row for row in values(app, "out") if added[0] in row]  # without those of the program before
    whole = await alone(tmp_path, make(after), ROWS)
    waits = (
        step == "running with ttl"
    )  # the newest row waits until event time has passed it, and counts behind the change
    rest = await alone(tmp_path, make(after), ROWS[HALF - waits :])
    if step == "groups over changes":  # what is added begins with the rows of the table
        kept, added = list(after), list(after)
        rest = whole
    if step != "count":  # windows of a number of rows begin elsewhere in a run over the rest
        ends = keyed(rest, added)
        assert ends
        now = keyed(found, added)
        if step == "groups over changes":  # those that nothing has touched since do not come out again
            ends = {key: row for key, row in ends.items() if key in now}
        assert {key: now[key] for key in ends} == ends
    expected = keyed(whole, kept)
    assert len(expected) >= (1 if "one group" in step or "of all" in step else 11)
    now = keyed(found, kept)
    assert now
    assert now == {key: expected[key] for key in now}


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_a_crash_before_the_change_loses_and_doubles_nothing(life: Life, tmp_path: Path) -> None:
    """What was read behind the last checkpoint is read again by the program that came after."""
    make = windowed(tumbling("150s"))
    before, after = {"n": sabot.count(), "s": sabot.sum("x")}, {"biggest": sabot.max("x"), "rows": sabot.count()}
    app = life.app(make(before))
    publish(app, "orders", ROWS[:HALF])
    await app.start()
    await until(lambda: life.seen(app) == HALF)
    await checkpoint(app)
    publish(app, "orders", ROWS[HALF : HALF + 30])
    await until(lambda: life.seen(app) == HALF + 30)
    image = crash_image(life.directory / "checkpoints", tmp_path / "after" / "checkpoints")
    await bounded(app.stop())
    life.directory = image.parent
    crashed = life.app(make(after))
    publish(crashed, "orders", ROWS[HALF + 30 :])
    seen = life.seen(crashed)
    await crashed.start()
    await until(lambda: life.seen(crashed) == seen + len(ROWS) - HALF)
    await bounded(crashed.stop(drain=True))
    found = [row for row in values(crashed, "out") if "biggest" in row]
    assert keyed(found, ["rows"]) == keyed(await alone(tmp_path, make(after), ROWS), ["rows"])
    rest = keyed(await alone(tmp_path, make(after), ROWS[HALF:]), ["biggest"])
    now = keyed(found, ["biggest"])
    assert {key: now[key] for key in rest} == rest
    assert all(now[key] == {"biggest": None} for key in now.keys() - rest.keys())


@pytest.mark.slow  # half a second of a core
async def test_groups_have_counted_their_rows_before_they_are_asked_for_it(memory_url: str, tmp_path: Path) -> None:
    for over_changes in (False, True):
        life = Life(f"{memory_url}-{over_changes}", tmp_path / str(over_changes), "memory")
        make = grouped(over_changes)
        await life.run(make({"s": sabot.sum("x")}), ROWS[:HALF])
        app = await life.run(make({"s": sabot.sum("x"), "n": sabot.count()}), ROWS[HALF:], drain=True)
        found = keyed([row for row in values(app, "out") if "n" in row], ["n"])
        assert sum(row["n"] for row in found.values()) == len(ROWS)
        MemoryBroker.get(life.broker).reset()


@pytest.mark.slow  # half a second of a core
async def test_a_variance_goes_on_as_a_deviation_and_a_mean_beside_it_begins(memory_url: str, tmp_path: Path) -> None:
    """They share accumulators within one program: a mean that was added had the whole past of the variance beside it."""
    life = Life(memory_url, tmp_path, "memory")
    make = windowed(tumbling("1h"))
    await life.run(make({"v": sabot.variance("x", ddof=0), "w": sabot.variance("x")}), ROWS[:HALF])
    after = {
        "sd": sabot.stddev("x"),
        "avg": sabot.mean("x"),
        "v": sabot.variance("x", ddof=0),
        "many": sabot.count("x"),
    }
    app = await life.run(make(after), ROWS[HALF:], drain=True)
    whole, rest = await alone(tmp_path, make(after), ROWS), await alone(tmp_path, make(after), ROWS[HALF:])
    assert keyed(values(app, "out"), ["sd", "v"]) == keyed(whole, ["sd", "v"])
    assert keyed(values(app, "out"), ["avg", "many"]) == keyed(rest, ["avg", "many"])


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_what_is_dropped_by_name_begins_anew_once(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    make = running()
    await life.run(make({"n": sabot.count(), "s": sabot.sum("x")}), ROWS[:HALF])
    changed = make({"n": sabot.count(), "s": sabot.sum("n")})
    with pytest.raises(UserError, match=r"aggregate s was sum\(col\(\"x\"\)\) int64, is .*--drop totals\.s\)"):
        await life.run(changed, [])
    middle, dropped = HALF + 40, {"drop": ["totals.s"]}
    await life.run(changed, ROWS[HALF:middle], **dropped)
    assert 's is new (sum(col("n")) int64): its state is dropped, as asked' in caplog.text
    app = await life.run(changed, ROWS[middle:], **dropped)  # the same options, as a supervisor gives them
    last = {row["k"]: row for row in values(app, "out")}
    for key, row in last.items():
        assert row["n"] == sum(each["k"] == key for each in ROWS)
        assert row["s"] == sum(each["n"] for each in ROWS[HALF:] if each["k"] == key)


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_a_second_change_that_drops_the_same_name_drops_it_again(life: Life) -> None:
    """The hint named the option that was given, and had no effect: whoever followed it was refused again."""
    make = running()
    changes = [make({"s": sabot.sum(of)}) for of in ("x", "n", "y")]
    await life.run(changes[0], ROWS[:HALF])
    dropped = {"drop": ["totals.s"]}
    await life.run(changes[1], ROWS[HALF:200], **dropped)
    with pytest.raises(UserError) as refused:
        await life.run(changes[2], [])
    assert refused.value.hint == (
        "run the program that wrote it; or compute this state again: --refill totals; or give up only this state: "
        "--drop totals.s"
    )
    await life.run(changes[2], ROWS[200:220], **dropped)
    app = await life.run(changes[2], ROWS[220:], **dropped)  # as a supervisor gives it again
    last = {row["k"]: row["s"] for row in values(app, "out")}
    assert last == {key: sum(each["y"] or 0 for each in ROWS[200:] if each["k"] == key) for key in last}


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_a_step_that_is_dropped_by_name_begins_anew_and_the_others_go_on(life: Life) -> None:
    def program(size: str) -> Program:
        def build(stream: Any) -> None:
            running()({"n": sabot.count()})(stream)
            stream.key_by("k").window(tumbling(size)).aggregate(n=sabot.count()).named("windows").to("windows")

        return build

    await life.run(program("1h"), ROWS[:HALF])
    with pytest.raises(UserError, match=r"window was tumbling\(3600000\), is tumbling\(7200000\).*--drop windows\)"):
        await life.run(program("2h"), [])
    app = await life.run(program("2h"), ROWS[HALF:], drain=True, drop=["windows"])
    assert sum(row["n"] for row in values(app, "windows")) == len(ROWS) - HALF
    assert sum({row["k"]: row["n"] for row in values(app, "out")}.values()) == len(ROWS)


def inferring(broker: str, directory: Path, program: Program, **settings: Any) -> App:
    """An app that says nothing of its columns."""
    app = App("shop", broker=broker, state="memory", checkpoint_dir=directory)
    app.configure(**settings)
    program(app.stream("orders"))
    return app


async def test_a_field_that_came_later_is_read_when_the_schema_is_refreshed(
    memory_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def before(stream: Any) -> None:
        stream.key_by("k").aggregate(n=sabot.count()).named("totals").to("out")

    def after(stream: Any) -> None:
        stream.key_by("k").aggregate(n=sabot.count(), most=sabot.max("price")).named("totals").to("out")

    app = inferring(memory_url, tmp_path, before)
    publish(app, "orders", [{"k": "a", "x": 1}, {"k": "b", "x": 2}])
    await app.start()
    await until(lambda: "out" in MemoryBroker.get(memory_url).topics() and len(values(app, "out")) == 2)
    await bounded(app.stop())

    kept = inferring(memory_url, tmp_path, after)
    publish(kept, "orders", [{"k": "a", "price": 2.5}, {"k": "b", "x": 3, "price": 7.0}])
    with pytest.raises(UserError, match=r"price.*the checkpoint keeps the columns .*orders: k, x\); --schema refresh"):
        await kept.start()

    caplog.set_level("INFO")
    refreshed = inferring(memory_url, tmp_path, after, schema="refresh")
    await refreshed.start()
    await until(lambda: len(values(refreshed, "out")) == 4)
    await bounded(refreshed.stop())
    assert values(refreshed, "out")[2:] == [{"k": "a", "n": 2, "most": 2.5}, {"k": "b", "n": 2, "most": 7.0}]
    assert "stream orders: columns that the checkpoint did not have: price double" in caplog.text

    again = inferring(memory_url, tmp_path, after)  # what was found is kept from now on
    publish(again, "orders", [{"k": "a", "price": 9.0}])
    await again.start()
    await until(lambda: len(values(again, "out")) == 5)
    await bounded(again.stop())
    assert values(again, "out")[4] == {"k": "a", "n": 3, "most": 9.0}


def test_a_schema_is_kept_or_refreshed() -> None:
    with pytest.raises(UserError, match="schema='new'"):
        App("shop").configure(schema="new")


OVER: dict[str, dict[str, Any]] = {"all rows": {}, "rows": {"preceding": 4}, "time": {"preceding": "60s"}}


@pytest.mark.one_in(30, "a quarter of a second of a core each")
@pytest.mark.parametrize("threads", [(1, 1), (1, 2)], ids=["1", "1 to 2"])
@pytest.mark.parametrize("leads", [False, True], ids=["", "lead"])
@pytest.mark.parametrize("frame", OVER)
async def test_columns_over_rows_go_on_and_begin(
    life: Life, tmp_path: Path, frame: str, leads: bool, threads: tuple[int, int]
) -> None:
    def program(**columns: Any) -> Program:
        return lambda stream: stream.key_by("k").over(**OVER[frame], **columns).named("around").to("out")

    ahead = {"ahead_": sabot.lead("n", 2)} if leads else {}
    before = program(
        gone=sabot.mean("y"),
        e=sabot.sum(col("x") * 2),
        s=sabot.sum("x"),
        back=sabot.lag("x", 2),
        far=sabot.lag("n", 3),
        number=sabot.row_number(),
        **({"next": sabot.lead("n", 2)} if leads else {}),
    )
    kept = ["s_", "e_", "number_", "back_"]
    added = ["avg", "most", "some", "before", "ones"]
    after = program(
        avg=sabot.mean(col("x") * 3),
        most=sabot.last(col("y") * 2),
        number_=sabot.row_number(),
        s_=sabot.sum("x"),
        before=sabot.lag("y", default=-1.0),
        back_=sabot.lag("x", 2),
        some=sabot.sum("x").filter(col("y") > 40),
        e_=sabot.sum(col("x") * 2),
        ones=sabot.count(),
        **ahead,
    )
    await life.run(before, ROWS[:HALF], parallelism=threads[0])
    app = await life.run(after, ROWS[HALF:], parallelism=threads[1], drain=True)
    now = {row["n"]: row for row in values(app, "out") if "avg" in row}
    whole = {row["n"]: row for row in await alone(tmp_path, after, ROWS)}
    rest = {row["n"]: row for row in await alone(tmp_path, after, ROWS[HALF - 1 :])}  # the newest row waits
    waited = [n for n in now if n < HALF - 1]
    assert len(waited) == (22 if leads else 0)  # the last two of each key
    assert now.keys() == {*waited, *rest}
    for n, row in now.items():
        assert {name: rounded(row[name]) for name in kept} == {name: rounded(whole[n][name]) for name in kept}
        if leads:
            assert row["ahead_"] == whole[n]["ahead_"]
        if n in rest:
            assert {name: rounded(row[name]) for name in added} == {name: rounded(rest[n][name]) for name in added}


async def test_lead_does_not_go_while_rows_wait_for_it(memory_url: str, tmp_path: Path) -> None:
    life = Life(memory_url, tmp_path, "memory")

    def program(**columns: Any) -> Program:
        return lambda stream: stream.key_by("k").over(**columns).named("around").to("out")

    await life.run(program(s=sabot.sum("x"), next=sabot.lead("n")), ROWS[:HALF])
    with pytest.raises(UserError, match=r"rows wait for lead, of which no column is left.*--drop around\)"):
        await life.run(program(s=sabot.sum("x")), [])


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_what_a_process_function_keeps_is_dropped_by_its_name(life: Life) -> None:
    def remember(row: dict[str, Any], ctx: Any) -> dict[str, Any]:
        for name in ("seen", "last"):
            ctx.state(name).put((ctx.state(name).get() or 0) + 1)
        ctx.map("places").put(row["w"], row["n"])
        return {"k": row["k"], "seen": ctx.state("seen").get(), "last": ctx.state("last").get()}

    def program(stream: Any) -> None:
        schema = {"k": "string", "seen": "int64", "last": "int64"}
        stream.key_by("k").process(remember, schema=schema).named("flags").to("out")

    await life.run(program, ROWS[:HALF])
    with pytest.raises(UserError, match=r"--drop flags\.sen.*there are flags, flags\.last, flags\.places, flags\.seen"):
        await life.run(program, [], drop=["flags.sen"])
    for parallelism, rows in ((1, ROWS[HALF : HALF + 50]), (2, ROWS[HALF + 50 :])):
        app = await life.run(program, rows, drop=["flags.seen"], parallelism=parallelism)
    for row in {row["k"]: row for row in values(app, "out")}.values():
        assert row["last"] == sum(each["k"] == row["k"] for each in ROWS)
        assert row["seen"] == sum(each["k"] == row["k"] for each in ROWS[HALF:])


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_a_change_from_a_savepoint_drops_once_too(life: Life, tmp_path: Path) -> None:
    """The app is started with the same options again, and goes on from where it was then."""
    make = running()
    await life.run(make({"n": sabot.count(), "s": sabot.sum("x")}), ROWS[:HALF])
    savepoint = crash_image(life.directory / "checkpoints", tmp_path / "savepoint")
    life.directory = tmp_path / "again"
    options = {"from_": str(savepoint), "drop": ["totals.n"]}
    changed = make({"s": sabot.sum("x"), "n": sabot.count(), "biggest": sabot.max("x")})
    for rows in (ROWS[HALF : HALF + 40], ROWS[HALF + 40 :]):
        app = await life.run(changed, rows, **options)
    for row in {row["k"]: row for row in values(app, "out")}.values():
        mine, rest = ([each["x"] for each in rows if each["k"] == row["k"]] for rows in (ROWS, ROWS[HALF:]))
        assert (row["s"], row["n"], row["biggest"]) == (sum(mine), len(rest), max(rest))


def counted(stream: Any) -> None:
    stream.window(tumbling("10s")).aggregate(n=sabot.count()).named("totals").to("out")


@pytest.mark.one_in(6, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("time", "program", "said"),
    [
        ("n", counted, "n of orders"),
        (col("ts") + 1, counted, 'col("ts") + 1 of orders'),
        ({"time": "ts", "time_unit": "s"}, counted, "ts in s of orders"),
        (None, counted, "the records' timestamp of orders"),
        ("ts", lambda stream: counted(stream.with_time("n")), "n of with_time"),
        ("ts", lambda stream: counted(stream.union(stream.with_time("n"))), "n of with_time and ts of orders"),
    ],
    ids=["column", "expression", "unit", "records", "with_time", "union"],
)
async def test_open_windows_do_not_go_on_with_another_event_time(
    memory_url: str, tmp_path: Path, time: Any, program: Program, said: str
) -> None:
    """They held counts of both scales, and the former watermark made all new rows late."""
    life = Life(memory_url, tmp_path, "memory")
    await life.run(counted, ROWS[:HALF])
    with pytest.raises(UserError, match=f"event time was ts of orders, is {re.escape(said)}.*--drop totals") as refused:
        await life.run(program, [], time=time)
    assert "totals (" in refused.value.message
    for same in (col("ts"), {"time": "ts", "time_unit": "ms"}):
        await life.run(counted, [], time=same)


async def test_behind_a_drop_event_time_begins_anew(memory_url: str, tmp_path: Path) -> None:
    """Windows close by the new times, though these are long before the former ones."""
    life = Life(memory_url, tmp_path, "memory")

    def program(stream: Any) -> None:
        stream.window(tumbling("10ms")).aggregate(n=sabot.count(), first=sabot.min("n")).named("totals").to("out")

    await life.run(counted, ROWS[:HALF])
    app = life.app(program, time="n", drop=["totals"])
    before = len(values(app, "out"))
    publish(app, "orders", ROWS[HALF:])
    await app.start()
    await until(lambda: len(values(app, "out")) == before + 10)  # the last one is open
    await bounded(app.stop())
    assert [(row["first"], row["n"]) for row in values(app, "out")[before:]] == [(n, 10) for n in range(HALF, 230, 10)]


async def test_with_time_over_another_column_is_another_event_time(memory_url: str, tmp_path: Path) -> None:
    life = Life(memory_url, tmp_path, "memory")

    def by(time: str) -> Program:
        return lambda stream: counted(stream.with_time(time))

    await life.run(by("ts"), ROWS[:HALF])
    with pytest.raises(UserError, match=r"totals.*event time was ts of with_time, is n of with_time"):
        await life.run(by("n"), [])
    await life.run(by("ts"), [])


async def test_what_keeps_no_times_goes_on_and_a_checkpoint_that_does_not_say_is_taken(
    memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Life(memory_url, tmp_path, "memory")

    def program(stream: Any) -> None:
        counted(stream)
        stream.key_by("k").aggregate(n=sabot.count()).named("sums").to("sums")

    await life.run(program, ROWS[:HALF])
    with pytest.raises(UserError, match="event time was ts") as refused:
        await life.run(program, [], time="n")
    assert "sums" not in str(refused.value)
    about = Stateful.about_state

    def earlier(self: Stateful, groups: int) -> dict[str, Any]:
        return {name: fact for name, fact in about(self, groups).items() if name != "event_time"}

    with monkeypatch.context() as patched:
        patched.setattr(Stateful, "about_state", earlier)
        await life.run(program, [])
    await life.run(program, [], time="n")


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_rows_that_wait_for_calls_go_to_their_owners_where_other_keys_part_them(life: Life) -> None:
    """They stayed in the subtasks of the former keys, where the next step keeps its state by the new ones: two counts of a key."""
    asked: list[int] = []
    answers = asyncio.Event()

    async def ask(number: int) -> dict[str, int]:
        asked.append(number)
        await answers.wait()
        return {"twice": 2 * number}

    def looked_up(stream: Any, key: str) -> Any:
        rows = stream.key_by(key).deduplicate().named("first")
        return rows.lookup(ask, on="n", schema={"twice": "int64"}, concurrency=500).named("ask")

    def counted(stream: Any) -> None:
        looked_up(stream, "w").key_by("w").aggregate(n=sabot.count()).named("second").to("out")

    app = life.app(lambda stream: looked_up(stream, "n").select("w", "twice").to("out"), parallelism=2)
    publish(app, "orders", ROWS[:60])
    await app.start()
    await until(lambda: len(asked) == 60)
    await bounded(app.stop())
    answers.set()
    app = life.app(counted, parallelism=2, drop=["first"])
    await app.start()
    await bounded(app.stop(drain=True))
    counts = {row["w"]: row["n"] for row in values(app, "out")}
    assert counts == Counter(row["w"] for row in ROWS[:60])
