"""Texts, lists, values and first rows of windows under a budget that holds few of them: no result and no checkpoint differs."""

import json
import random
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sabot._cython.arrow.batch import Batch
from sabot.api.windows import CumulativeWindow, HoppingWindow, TumblingWindow
from sabot.engine.operators import spilled
from sabot.engine.operators.aggregates.aggregator import AggregateColumn
from sabot.engine.operators.base import DELETE, INSERT, OP_COLUMN, TIME_COLUMN, Operator, OperatorContext, Saved
from sabot.engine.operators.changes.groups import GroupAggregate
from sabot.engine.operators.changes.steps import Upsert
from sabot.engine.operators.windows.fixed import WindowAggregate
from sabot.engine.operators.windows.top import WindowTopN
from sabot.engine.state import segment_parts
from sabot.errors import CorruptCheckpoint, SabotError
from tools.operator_run import OperatorRun

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("n", pa.int64()),
        ("x", pa.float64()),
        ("price", pa.decimal128(12, 2)),
        ("note", pa.string()),
        (TIME_COLUMN, pa.int64()),
    ]
)
CHANGES = SCHEMA.insert(5, pa.field(OP_COLUMN, pa.int8()))
TINY = 36_000  # bytes, of which empty tables take more: some of the keys leave after each batch


class Longest:
    """An aggregate of the user's."""

    type = pa.string()

    def init(self) -> str:
        return ""

    def accumulate(self, state: str, values: Any) -> str:
        return max([state, *values.to_pylist()], key=lambda text: (len(text), text))

    def merge(self, state: str, other: str) -> str:
        return max(state, other, key=lambda text: (len(text), text))

    def finish(self, state: str) -> str:
        return state


def aggregate(name: str, kind: str, argument: str | None = None, **options: Any) -> AggregateColumn:
    return AggregateColumn(name, kind, argument, **options)


TEXTS = [
    aggregate("rows", "count"),
    aggregate("least", "min", "note"),
    aggregate("most", "max", "note"),
    aggregate("opening", "first", "note"),
    aggregate("closing", "last", "note"),
    aggregate("dearest", "arg_max", "note", by="x"),
    aggregate("total", "sum", "x"),
    aggregate("spread", "variance", "x"),
]
VALUES = [
    aggregate("all", "collect_list", "n"),
    aggregate("notes", "collect_list", "note"),
    aggregate("best", "top_k", "x", k=3),
    aggregate("differing", "count_distinct", "note"),
    aggregate("middle", "approx_quantile", "x", q=0.5),
    aggregate("prices", "sum", "price"),
    aggregate("longest", "user", "note", function=Longest()),
]
ABOUT = aggregate("about", "approx_count_distinct", "n")
ADDED: dict[str, Callable[[], Operator]] = {
    "windows": lambda: WindowAggregate(TumblingWindow(100), ["key"], [*TEXTS, *VALUES, ABOUT], allowed_lateness_ms=60),
    "hopping windows": lambda: WindowAggregate(
        HoppingWindow(90, 30), ["key"], [*VALUES, ABOUT], allowed_lateness_ms=30
    ),
    "cumulative windows": lambda: WindowAggregate(CumulativeWindow(120, 40), ["key"], TEXTS, emit_every_ms=25),
    "top_n of windows": lambda: WindowTopN(TumblingWindow(100), ["key"], 3, [("x", True)], allowed_lateness_ms=60),
    "top_n of hopping windows": lambda: WindowTopN(
        HoppingWindow(90, 30), ["key"], 2, [("note", False)], ties="dense_rank", rank="place", allowed_lateness_ms=30
    ),
    "top_n of cumulative windows": lambda: WindowTopN(
        CumulativeWindow(120, 40), ["key"], 2, [("note", True), ("n", False)], ties="rank"
    ),
    "texts of groups": lambda: GroupAggregate(["key"], TEXTS, changes=False),
    "values of groups": lambda: GroupAggregate(["key"], [*VALUES, ABOUT], changes=False),
}
REMOVED: dict[str, Callable[[], Operator]] = {
    "texts over changes": lambda: GroupAggregate(["key"], TEXTS, changes=True),
    "values over changes": lambda: GroupAggregate(["key"], VALUES, changes=True),
    "rows of changes": lambda: Upsert(["key"], changes=True),
}
KINDS = ADDED | REMOVED
each_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
Plan = list[tuple[str, Any]]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups leave after each batch, and are read in small pieces."""
    monkeypatch.setattr(spilled, "_MEASURED_BATCHES", 1)
    monkeypatch.setattr(spilled, "CHUNK_ROWS", 32)
    monkeypatch.setattr(segment_parts, "_PIECE_ROWS", 16)


def planned(seed: int, *, changes: bool, most: int, count: int = 500, keys: int = 80) -> Plan:
    """Batches of rows, of which some come again soon and some long after, watermarks, and restarts with so many subtasks."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for n in range(count):
        key = n // 15 % keys + rng.randrange(5) if rng.random() < 0.5 else rng.randrange(keys)
        row = {
            "key": f"key {key}",
            "n": n,
            "x": rng.choice([rng.uniform(-1e6, 1e6), float(rng.randrange(5)), -0.0, None]),
            "price": Decimal(rng.randrange(100_000)) / 100,
            "note": rng.choice(["", "ä", None if n % 3 else "null", "note " * rng.randrange(20)]) or f"text {n % 17}",
            TIME_COLUMN: 1_000 + n // 3 - rng.choice([0, 0, 30]),
        }
        rows.append(row)
    plan: Plan = []
    place, alive = 0, []
    while place < count:
        size = rng.choice([1, 20, 60, 200])
        given = rows[place : place + size]
        place += size
        if changes:
            added = [{**row, OP_COLUMN: INSERT} for row in given]
            alive += added
            rng.shuffle(alive)
            taken = [alive.pop() for _ in range(len(alive) // 5)]
            given = [*added, *({**row, OP_COLUMN: DELETE} for row in taken)]
        plan.append(("feed", pa.RecordBatch.from_pylist(given, schema=CHANGES if changes else SCHEMA)))
        if not changes and rng.random() < 0.5:
            plan.append(("advance", given[-1][TIME_COLUMN] - rng.choice([0, 20, 60])))
        if rng.random() < 0.2:
            plan.append(("restart", rng.randint(1, most)))
    return plan


def drive(
    make: Callable[[], Operator], plan: Plan, folder: Path, budget: int | None
) -> tuple[Counter[str], Counter[str]]:
    """What came out, and the figures of the state that were seen on the way."""
    schema = plan[0][1].schema
    run = OperatorRun(make, schema, ["key"], folder, 1, budget)
    moved: Counter[str] = Counter()
    for what, given in plan:
        if what == "restart":
            moved += figures(run)
            run.restart(given if budget is not None else 1)
        else:
            getattr(run, what)(given)
    moved += figures(run)
    kept = sum((Counter(map(repr, rows.to_pylist())) for part in run.parts for rows in contents(part)), Counter())
    run.end(timed=OP_COLUMN not in schema.names)
    return Counter(map(repr, run.results)) + kept + Counter(map(repr, run.late)), moved


def contents(part: Any) -> list[pa.RecordBatch]:
    return list(part.contents())


def figures(run: OperatorRun) -> Counter[str]:
    return Counter({name: run.statistic(name) for name in ("evicted_total", "faults_total", "cold")})


@pytest.mark.one_in(10, "all kinds leave the memory by the same code; half a second of a core each")
@pytest.mark.parametrize("most", [1, 2], ids=["one subtask", "two subtasks"])
@each_kind
def test_a_tiny_budget_changes_no_result(make: Callable[[], Operator], most: int, tmp_path: Path) -> None:
    plan = planned(most, changes=make in REMOVED.values(), most=most)
    wanted, _ = drive(make, plan, tmp_path / "memory", None)
    found, moved = drive(make, plan, tmp_path / "disk", TINY)
    assert moved["evicted_total"] > 50
    assert moved["faults_total"] > 5
    assert found == wanted


def opened(
    make: Callable[[], Operator], directory: Path | None, schema: pa.Schema = SCHEMA
) -> tuple[Operator, list[Any]]:
    out: list[Any] = []
    operator = make()
    operator.emit = lambda batch: out.extend(batch.taken().to_pylist())
    if directory is not None:
        directory.mkdir()
    operator.open(OperatorContext(schema, directory=directory, memory_budget=TINY))
    return operator, out


def fed(make: Callable[[], Operator], plan: Plan, directory: Path | None) -> tuple[Operator, list[Any]]:
    """An operator to which the batches of the plan were given."""
    operator, out = opened(make, directory, plan[0][1].schema)
    for what, given in plan:
        if what == "feed":
            operator.process(Batch(given))
    return operator, out


def saved(operator: Operator, directory: Path) -> Saved:
    directory.mkdir()
    facts, cut = operator.snapshot()
    assert cut is not None
    cut.save(directory)
    cut.discard()
    return Saved(directory, json.loads(json.dumps(facts)), own=True)


def of_windows(*aggregates: AggregateColumn) -> Callable[[], Operator]:
    return lambda: WindowAggregate(TumblingWindow(1_000), ["key"], aggregates)


def of_groups(*aggregates: AggregateColumn) -> Callable[[], Operator]:
    return lambda: GroupAggregate(["key"], aggregates, changes=False)


def of_changes(*aggregates: AggregateColumn) -> Callable[[], Operator]:
    return lambda: GroupAggregate(["key"], aggregates, changes=True)


@pytest.mark.one_in(3, "a fifth of a second of a core each")
@pytest.mark.parametrize("made", [of_windows, of_groups, of_changes])
def test_a_program_with_other_aggregates_goes_on_with_groups_on_disk(made: Any, tmp_path: Path) -> None:
    """One aggregate has gone, one is new, and two have changed their places."""
    plan = planned(5, changes=made is of_changes, most=1)
    count, total, most, all_ = TEXTS[0], TEXTS[6], TEXTS[2], VALUES[0]
    found = {}
    for name, directory in (("memory", None), ("disk", tmp_path / "disk")):
        before, _ = fed(made(count, most, all_), plan, directory)
        if name == "disk":
            assert before.statistics()["cold"] > 20
        kept = saved(before, tmp_path / f"saved in {name}")
        before.close()
        for place in (None, tmp_path / f"after {name}"):
            after, out = opened(made(VALUES[1], all_, count, total), place, plan[0][1].schema)
            after.restore([kept])
            found[name, place is None] = Counter(
                map(repr, (row for rows in contents(after) for row in rows.to_pylist()))
            )
            for rows in plan[:8]:
                if rows[0] == "feed":
                    after.process(Batch(rows[1]))
            found[name, place is None] += Counter(map(repr, out))
            after.close()
    assert len(found["memory", True]) > 70
    assert all(rows == found["memory", True] for rows in found.values())


def test_a_late_row_finds_its_group_on_disk(tmp_path: Path) -> None:
    """A pane of which everything has left takes no memory, and its window is emitted whole, and once more when a row comes late."""
    make = lambda: WindowAggregate(TumblingWindow(100), ["key"], VALUES[:2], allowed_lateness_ms=1_000)  # noqa: E731
    operator, out = opened(make, tmp_path / "state")

    def give(time: int, keys: list[str]) -> None:
        rows = [{"key": key, "n": n, "note": f"note {n}", TIME_COLUMN: time} for n, key in enumerate(keys)]
        operator.process(Batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA)))

    first, second = [f"early {n}" for n in range(50)], [f"later {n}" for n in range(400)]
    give(10, first)
    give(110, second)
    give(120, second)
    give(130, second)
    assert operator.statistics()["cold"] > 50
    operator.advance(100)
    assert {row["key"]: row["all"] for row in out} == {key: [n] for n, key in enumerate(first)}
    out.clear()
    give(20, ["early 3", "new"])
    operator.advance(150)
    assert {row["key"]: row["all"] for row in out} == {"early 3": [3, 0], "new": [1]}
    operator.advance(5_000)
    assert operator.statistics()["cold"] == 0
    assert operator.group_count() == 0
    assert not list((tmp_path / "state" / "cold").iterdir())
    operator.close()


@pytest.mark.slow  # a second of a core, or more
def test_state_takes_its_share_of_the_budget(tmp_path: Path) -> None:
    budget = 3_000_000
    operator = of_groups(TEXTS[0], VALUES[1])()
    operator.emit = lambda batch: None
    operator.open(OperatorContext(SCHEMA, directory=tmp_path, memory_budget=budget))
    most = 0
    for start in range(0, 30_000, 2_000):
        columns: dict[str, Any] = {"key": [f"key {n}" for n in range(start, start + 2_000)]}
        columns["note"] = ["note " * 20] * 2_000
        rows = [pa.array(columns.get(each.name, [None] * 2_000), each.type) for each in SCHEMA]
        rows[-1] = pa.array([1_000] * 2_000)
        operator.process(Batch(pa.RecordBatch.from_arrays(rows, schema=SCHEMA)))
        most = max(most, operator.statistics()["bytes"])
    assert operator.group_count() == 30_000
    assert operator.statistics()["cold"] > 20_000
    assert most < budget
    operator.close()


def test_a_full_disk_is_an_error_of_the_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sabot.engine.state.segments._write", full)
    with pytest.raises(SabotError, match="state directory"):
        fed(of_groups(VALUES[0]), planned(6, changes=False, most=1), tmp_path / "state")


def test_groups_on_disk_that_are_damaged_are_named(tmp_path: Path) -> None:
    make = of_groups(VALUES[0])
    operator, _ = fed(make, planned(6, changes=False, most=1), tmp_path / "state")
    kept = saved(operator, tmp_path / "saved")
    operator.close()
    next((tmp_path / "saved" / "cold").glob("0*.arrow")).write_bytes(b"nothing")
    for place in (None, tmp_path / "after"):
        after, _ = opened(make, place)
        with pytest.raises(CorruptCheckpoint, match="cold"):
            after.restore([kept])
        after.close()
