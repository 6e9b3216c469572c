"""A column gets another type between two starts: each aggregate of it goes on rightly, or the start is refused."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import sabot
from sabot import App, UserError, count_window, hopping, session, tumbling
from sabot.connectors.memory import MemoryBroker
from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.engine.plan import Verdict, compare, make_plan, planned
from tools.agent_tools import bounded, publish, until, values

Program = Callable[[Any], Any]


class Longest(sabot.UserAggregate):
    """A user's aggregate whose state is a value of the column."""

    type = pa.string()

    def init(self) -> Any:
        return ""

    def accumulate(self, state: Any, batch: Any) -> Any:
        return max([state, *map(str, batch.column("x").to_pylist())], key=len)

    def merge(self, a: Any, b: Any) -> Any:
        return max([a, b], key=len)

    def finish(self, state: Any) -> Any:
        return state


EVERY = {
    "rows": sabot.count(),
    "filled": sabot.count("x"),
    "total": sabot.sum("x"),
    "mean": sabot.mean("x"),
    "variance": sabot.variance("x"),
    "deviation": sabot.stddev("x", ddof=0),
    "least": sabot.min("x"),
    "most": sabot.max("x"),
    "first": sabot.first("x"),
    "last": sabot.last("x"),
    "distinct": sabot.count_distinct("x"),
    "about": sabot.approx_count_distinct("x"),
    "median": sabot.approx_quantile("x", 0.5),
    "greatest": sabot.top_k("x", 2),
    "every": sabot.collect_list("x"),
    "different": sabot.collect_set("x"),
    "lowest": sabot.arg_min("x", by="n"),
    "where": sabot.arg_max("n", by="x"),
    "longest": sabot.aggregate_with(Longest(), "x"),
    "some": sabot.mean("x").filter(sabot.col("n") > 3),
}
NUMBERLESS = {"total", "mean", "variance", "deviation", "median", "greatest", "some"}
IN_WINDOWS = {
    "distinct",
    "every",
    "different",
    "lowest",
    "where",
    "longest",
    "about",
    "median",
    "greatest",
}  # without a result after each row
OVER = ("filled", "total", "mean", "variance", "least", "most", "first", "last", "some")

WAYS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "group_by": lambda s, every: s.group_by("k").aggregate(**every),
    "running": lambda s, every: s.key_by("k").aggregate(**every),
    "running with ttl": lambda s, every: s.key_by("k").aggregate(ttl="1h", **every),
    "tumbling": lambda s, every: s.key_by("k").window(tumbling("1h")).aggregate(**every),
    "hopping": lambda s, every: s.key_by("k").window(hopping("1h", "30m")).aggregate(**every),
    "session": lambda s, every: s.key_by("k").window(session("1m")).aggregate(**every),
    "count_window": lambda s, every: s.key_by("k").window(count_window(8)).aggregate(**every),
    "over": lambda s, every: s.key_by("k").over(**every),
    "over a frame": lambda s, every: s.key_by("k").over(preceding=6, **every),
}
TIMED = ("running with ttl", "tumbling", "hopping", "session")
ORDERED = ("running with ttl", "over", "over a frame")  # rows wait for those of their time, with all their columns
NUMBERS = ["int32", "int64", "uint64", "float32", "float64"]
DECIMALS = ["decimal(12, 2)", "decimal(12, 4)", "decimal(30, 2)", "decimal(50, 4)"]
WIDE = DECIMALS[2:]
CHANGES = [
    *((one, two) for one in NUMBERS for two in NUMBERS if one != two),
    *((one, two) for one in DECIMALS for two in DECIMALS if one != two),
    ("int64", "decimal(12, 2)"),
    ("decimal(12, 2)", "float64"),
    ("float64", "decimal(12, 4)"),
    ("bool", "int64"),
    ("int64", "bool"),
    ("string", "int64"),
    ("int32", "string"),
    ("timestamp[ms]", "timestamp[us]"),
    ("date32", "timestamp[ms]"),
]
FEW = [("decimal(12, 2)", "decimal(12, 4)"), ("int32", "int64"), ("int64", "float64")]
_brokers = count()


def row_of(number: int, kind: str, change: tuple[str, str]) -> dict[str, Any]:
    """A row whose `x` is the same value in both types of a change."""
    value: Any = number % 2 if "bool" in change else 1 + number % 5
    if kind == "string":
        value = str(value)
    elif kind == "bool":
        value = bool(value)
    elif kind.startswith("decimal"):
        value = (
            str(Decimal(value) / 4) if change[0].startswith("decimal") and change[1].startswith("decimal") else value
        )
    elif kind.startswith(("timestamp", "date")):
        value = f"2024-01-0{value}"
    return {"k": f"k{number % 2 if 'bool' not in change else number % 3}", "n": number, "x": value, "ts": 1000 + number}


class Shop:
    """An app whose program and whose column `x` change from start to start."""

    def __init__(self, folder: Path, change: tuple[str, str]) -> None:
        self.folder, self.change, self.url = folder, change, f"memory://changed-types-{next(_brokers)}"
        self.read = 0

    def app(self, way: str, every: dict[str, Any], kind: str) -> App:
        app = App("shop", broker=self.url, state="memory", checkpoint_dir=self.folder)
        schema = {"k": "string", "n": "int64", "x": kind, "ts": "int64"}
        timed: Any = {"time": "ts"} if way in TIMED else {}
        stream: Any = app.stream("orders", schema=schema, **timed)
        stream.select("n").to("seen")
        made = WAYS[way](stream, every).named("step")
        (made.changelog() if way == "group_by" else made).to("made")
        return app

    async def run(self, way: str, every: dict[str, Any], kind: str, rows: range, *, drain: bool = False) -> list[Any]:
        app = self.app(way, every, kind)
        before = len(values(app, "made")) if "made" in MemoryBroker.get(self.url).topics() else 0
        publish(app, "orders", [row_of(number, kind, self.change) for number in rows])
        self.read += len(rows)
        await app.start()
        await until(lambda: len(values(app, "seen")) == self.read)
        await bounded(app.stop(drain=drain))
        return list(values(app, "made")[before:])

    def verdicts(self, way: str, every: dict[str, Any], kind: str) -> dict[str, Verdict]:
        plan = make_plan(self.app(way, every, kind).spec.ends)
        manifest = CheckpointStorage(self.folder).latest()
        assert isinstance(manifest, Manifest)
        return {each.id: each for each in compare(planned(plan), manifest)}


def aggregated(way: str, kind: str) -> dict[str, Any]:
    number = not kind.startswith(("string", "timestamp", "date"))
    every = {name: each for name, each in EVERY.items() if number or name not in NUMBERLESS}
    left_out = IN_WINDOWS if way.startswith("running") else set(EVERY) - set(OVER) if way.startswith("over") else set()
    left_out = left_out | ({"median", "greatest"} if kind == "bool" else set())
    if way.startswith(("running", "over")):
        left_out |= {"least", "most"} if kind in WIDE else set()
        left_out |= {"least", "most", "first", "last"} if kind == "string" else set()
    return {name: each for name, each in every.items() if name not in left_out}


def last_rows(made: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    return {row["k"]: {name: row[name] for name in names if name in row} for row in made}


async def check_change(folder: Path, way: str, was: str, now: str) -> set[str]:
    """What goes on has the results of a fresh start. -> the names that are refused."""
    every = {name: each for name, each in aggregated(way, was).items() if name in aggregated(way, now)}
    shop, fresh = Shop(folder / "changed", (was, now)), Shop(folder / "fresh", (was, now))
    await shop.run(way, every, was, range(20))
    verdicts = shop.verdicts(way, every, now)
    verdict = verdicts["step"]
    refused = {each.name for each in verdict.parts if each.outcome == "refuse"}
    beside = [each.id for each in verdicts.values() if each.outcome == "refuse" and each.id != "step"]
    assert beside == (["step.order"] if way in ORDERED else [])
    if verdict.outcome == "refuse":
        with pytest.raises(UserError, match="state that would be lost"):
            await shop.run(way, every, now, range(0))
        if not refused:  # the step as a whole
            return set(every)
    if beside:
        return refused
    kept = {name: each for name, each in every.items() if name not in refused}
    if not kept:
        return refused
    await fresh.run(way, kept, now, range(20))
    made = last_rows(await shop.run(way, kept, now, range(20, 40), drain=True), list(kept))
    assert made == last_rows(await fresh.run(way, kept, now, range(20, 40), drain=True), list(kept))
    assert made
    return refused


@pytest.mark.one_in(18, "a tenth of a second of a core each")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("was", "now"), FEW, ids=str)
async def test_an_aggregate_goes_on_rightly_with_a_column_of_another_type_or_is_refused(
    tmp_path: Path, way: str, was: str, now: str
) -> None:
    await check_change(tmp_path, way, was, now)


@pytest.mark.one_in(4, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("was", "now", "moves", "stays"),
    [
        ("decimal(12, 2)", "decimal(12, 4)", {"mean", "some", "distinct", "where"}, {"rows", "variance"}),
        ("int64", "float64", {"mean", "some", "distinct", "where", "deviation"}, {"rows", "filled", "variance"}),
        ("int32", "int64", {"distinct", "where"}, {"total", "mean", "some", "variance", "deviation", "longest"}),
        ("decimal(10, 2)", "decimal(12, 2)", {"distinct"}, {"total", "mean", "some"}),
    ],
)
async def test_what_depends_on_the_type_of_its_column_is_refused_and_the_rest_goes_on(
    tmp_path: Path, was: str, now: str, moves: set[str], stays: set[str]
) -> None:
    refused = await check_change(tmp_path, "tumbling", was, now)
    assert moves <= refused
    assert not stays & refused


@pytest.mark.slow  # a second of a core for each
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("was", "now"), [each for each in CHANGES if each not in FEW], ids=str)
async def test_each_aggregate_goes_on_rightly_with_a_column_of_any_other_type_or_is_refused(
    tmp_path: Path, way: str, was: str, now: str
) -> None:
    await check_change(tmp_path, way, was, now)


@pytest.mark.slow  # a second of a core
@pytest.mark.parametrize(("was", "now"), [("decimal(12, 2)", "decimal(12, 4)"), ("int32", "int64")])
async def test_a_fingerprint_that_lacks_the_types_of_arguments_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: str, now: str
) -> None:
    """A planted fault: state of another type is taken over, which no column holds or which gives other results."""
    monkeypatch.setattr("sabot.engine.plan.state_matching._arguments", lambda schema: {})
    with pytest.raises((AssertionError, UserError)):
        await check_change(tmp_path, "tumbling", was, now)
