"""The contract of `sabot.engine.operators.base.Operator`, checked for each operator of streams: what comes out depends on the rows
alone, not on where batches end, where a barrier stands, or how many subtasks share the keys; and what is kept survives.

`operator_cases` has the operators. The first run of each (one batch, one subtask, no barrier) is what all others are compared with; whether
that is right is the matter of `tests/unit` and `tests/pipelines`.
"""

import gc
import importlib
import pkgutil
import random
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from operator_cases import CASES, CLOCK_CASES, LATE_CASES, Case, Row

import sabot.engine.operators
from sabot._cython.arrow.batch import Batch
from sabot.engine.operators.base import (
    INSERT,
    OP_COLUMN,
    TIME_COLUMN,
    UPDATE_AFTER,
    HoldsMarks,
    Operator,
    OperatorContext,
    SecondInput,
    Stateful,
    WaitsForCalls,
)
from sabot.engine.operators.layout import operator_table
from sabot.engine.operators.rows.subset import Head
from sabot.engine.operators.state_parts import StatefulOperator
from sabot.engine.operators.state_size import state_size
from sabot.engine.operators.windows.fixed import WindowAggregate
from sabot.engine.operators.windows.sessions import SessionAggregate
from sabot.engine.operators.windows.top import WindowTopN
from sabot.testing import lives
from tools.operator_run import Loop, OperatorRun

NOT_RUN = {
    "PatternState": "it reads the state of Pattern, and takes no rows",
    "WatermarkColumn": "its column is what had come before each batch: test_watermark_column has its rows",
    "SinkWriter": "it makes no rows: test_sink_contract runs what is behind it",
}
ONLY_BASES = {
    *("FilledFromTable", "GivesTable", "HasBranches", "HoldsMarks", "Polled", "Restorable", "SecondInput", "Stateful"),
    *("WaitsForCalls", "WritesOutside"),
    "QuestionOperator",
    "AsyncOperator",
    "JoinOperator",
    "StatefulOperator",
    "SavesWatermark",
    "TableOperator",
    "TimedJoin",
    "_KeyedOperator",
    "RankedOperator",
}
BUDGET = 100_000  # bytes: groups leave the memory for RocksDB

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


class Run(OperatorRun):
    """A case in so many subtasks. Rows of both inputs come in an order that the seed decides."""

    def __init__(self, case: Case, folder: Path, parallelism: int = 1, budget: int | None = None) -> None:
        self.case = case
        self.calls = Loop()
        super().__init__(
            case.make,
            case.schema,
            case.keys,
            folder,
            parallelism,
            budget,
            right=None if case.right is None else case.right_schema,
            right_keys=case.right_keys,
            broadcast=case.broadcast,
            loop=self.calls,
        )

    def _emit(self, subtask: int, batch: Batch) -> None:
        self._punctual = self.case.punctual and OP_COLUMN not in self.schema.names
        super()._emit(subtask, batch)

    def give(self, piece: "tuple[str, list[Row]]") -> None:
        """A batch of one of the inputs."""
        side, rows = piece
        if side == "left":
            self.feed(pa.RecordBatch.from_pylist(rows, schema=self.case.schema))
        else:
            self.feed_right(pa.RecordBatch.from_pylist(rows, schema=self.case.right_schema))
        self.poll(0)

    def stop(self) -> None:
        """Closes all of it, as an app that is stopped does."""
        for part in self.parts:
            part.close()
        self.calls.turns()
        self.calls.close()

    def kept(self) -> tuple[list[Any], Counter[str]]:
        """What the state consists of, and what is in it; of a run that was just restored."""
        parts = [part for part in self.parts if isinstance(part, Stateful)]
        rows = [row for part in parts for piece in part.contents() for row in piece.to_pylist()]
        found = Counter(map(repr, rows))
        if self.case.broadcast:  # all of it is in every subtask
            found = Counter(set(found))
        return [part.state_schema() for part in parts[:1]], found


def pieces(case: Case, rng: random.Random | None) -> "list[tuple[str, list[Row]]]":
    """The input as batches: one of each side, or of any sizes, those of the sides in any order. A pair of updates stays in one batch."""
    sides = {"left": case.rows} if case.right is None else {"right": case.right, "left": case.rows}
    if rng is None:
        return list(sides.items())
    found = []
    for side, rows in sides.items():
        at = 0
        while at < len(rows):
            end = min(len(rows), at + rng.choice([1, 3, 10, 30]))
            while end < len(rows) and rows[end].get(OP_COLUMN) == UPDATE_AFTER:
                end += 1
            found.append((rng.random() if not case.right_first or side == "left" else -1.0, side, rows[at:end]))
            at = end
    places = {side: sorted(place for place, which, _ in found if which == side) for side in sides}
    order = sorted(
        (places[side].pop(0), number, side, rows) for number, (_, side, rows) in enumerate(found)
    )  # each side in its order
    return [(side, rows) for _, _, side, rows in order]


def time_of(rest: "list[tuple[str, list[Row]]]") -> int | None:
    """The greatest watermark that no row of these is below."""
    return min((row[TIME_COLUMN] for _, rows in rest for row in rows), default=None)


def came_of(run: Run) -> Counter[str]:
    """The rows that came out; of changes the table that they make, and each prefix of them was one."""
    found: Counter[str] = Counter()
    for row in run.results:
        op = INSERT if run.case.versions else row.pop(OP_COLUMN, INSERT)
        time = row.pop(TIME_COLUMN, None)
        if run.case.punctual and OP_COLUMN not in run.schema.names:
            row["time"] = time
        text = repr(row)
        found[text] += 1 if op in (INSERT, UPDATE_AFTER) else -1
        assert found[text] >= 0, f"{text} was taken away, and was not there"
    return +found


@cache
def expected(case: Case, folder: Path) -> Counter[str]:
    """Of one batch of each side, in one subtask, without a barrier."""
    run = Run(case, folder / "expected")
    for piece in pieces(case, None):
        run.give(piece)
    run.end()
    found = came_of(run)
    run.stop()
    assert found, "a case without results shows nothing"
    return found


@pytest.fixture(scope="module")
def once() -> Iterator[Path]:
    with lives.temporary_directory() as folder:
        yield folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where nothing waits for a disk."""
    with lives.temporary_directory() as folder:
        yield folder


def drive(run: Run, rng: random.Random, *, barriers: bool, most: int = 1) -> None:
    """All of the input, with watermarks between; with barriers between, at each of which the run is restored in 1 to `most` subtasks."""
    rest = pieces(run.case, rng)
    passed = None
    while rest:
        run.give(rest.pop(0))
        possible = time_of(rest)
        if possible is not None and rng.random() < 0.5:
            passed = max(possible - rng.choice([0, 0, 3, 50]), possible if passed is None else passed)
            run.advance(min(passed, possible))
        if barriers and rng.random() < 0.15:
            run.restart(rng.randint(1, most))
            run.poll(0)
    run.end()


def check(case: Case, run: Run, once: Path) -> None:
    found, wanted = came_of(run), expected(case, once)
    run.stop()
    assert found == wanted, (
        f"too many: {sorted((found - wanted).elements())[:5]}, missing: {sorted((wanted - found).elements())[:5]}"
    )


@pytest.mark.one_in(16, "each operator is in a case of two of these tests")
@pytest.mark.parametrize("seed", range(2))
@each_case
def test_any_split_into_batches_gives_the_same_rows(case: Case, seed: int, folder: Path, once: Path) -> None:
    run = Run(case, folder)
    drive(run, random.Random(f"split {seed}"), barriers=False)
    check(case, run, once)


@pytest.mark.one_in(16, "each operator is in a case of two of these tests")
@pytest.mark.parametrize("budget", [None, BUDGET], ids=["memory", "directory"])
@each_case
def test_any_place_of_the_barrier_gives_the_same_rows(case: Case, budget: int | None, folder: Path, once: Path) -> None:
    run = Run(case, folder, budget=budget)
    drive(run, random.Random(f"barrier {budget}"), barriers=True)
    check(case, run, once)


@pytest.mark.one_in(16, "the late cases are of few operators, and any place of the barrier is tried above")
@pytest.mark.parametrize("case", [*CASES, *LATE_CASES], ids=lambda case: case.name)
def test_barriers_change_nothing_where_rows_are_late(case: Case, folder: Path) -> None:
    """The watermark runs ahead of the rows. The same input, with a barrier and a restore after every batch and without: the same rows come
    out, and the same leave as late ones.
    """
    case = replace(case, punctual=False)  # a row that is late makes rows below the watermark
    rng = random.Random("late")
    given = pieces(case, rng)
    ahead = [rng.choice([None, -60, 0, 40]) for _ in given]
    found = []
    for barriers in (False, True):
        run, passed, seen = Run(case, folder / str(barriers)), 0, 0
        for piece, by in zip(given, ahead, strict=True):
            run.give(piece)
            seen = max(seen, *(row[TIME_COLUMN] for row in piece[1]))
            if by is not None and seen + by > passed:
                passed = seen + by
                run.advance(passed)
            if barriers:
                run.restart(1)
                run.poll(0)
        run.end()
        found.append((came_of(run), Counter(map(repr, run.late))))
        run.stop()
    assert found[0] == found[1]


@pytest.mark.one_in(8, "each operator is in a case of two of these tests")
@pytest.mark.parametrize("budget", [None, BUDGET], ids=["memory", "directory"])
@pytest.mark.parametrize("case", [case for case in CASES if case.rescales], ids=lambda case: case.name)
def test_any_number_of_subtasks_gives_the_same_rows(case: Case, budget: int | None, folder: Path, once: Path) -> None:
    """One, then two, then three, then any, with the key groups dealt out anew each time."""
    rng = random.Random(f"rescale {budget}")
    run = Run(case, folder, budget=budget)
    rest = pieces(case, rng)
    for number, piece in enumerate(rest):
        run.give(piece)
        possible = time_of(rest[number + 1 :])
        if possible is not None:
            run.advance(possible)
        if number % 4 == 1:
            run.restart(min(2 + number // 4, 3) if number < 12 else rng.randint(1, 3))
            run.poll(0)
    run.end()
    check(case, run, once)


@pytest.mark.one_in(16, "each operator is in a case of two of these tests")
@pytest.mark.parametrize("budget", [None, BUDGET], ids=["memory", "directory"])
@each_case
def test_contents_after_a_restore_are_those_before(case: Case, budget: int | None, folder: Path) -> None:
    """Restored twice from one barrier after another, without a row between: what is kept is the same, in whatever number of subtasks."""
    rng = random.Random("contents")
    run = Run(case, folder, budget=budget)
    given = pieces(case, rng)
    half = len(given) // 2
    for piece in given[:half]:
        run.give(piece)
    possible = time_of(given[half:])
    assert possible is not None
    run.advance(possible - 20)
    run.restart(1)
    schema, before = run.kept()
    for parallelism in (2, 3, 1) if case.rescales else (1,):
        run.restart(parallelism)
        assert run.kept() == (schema, before)
    run.stop()


@pytest.mark.one_in(24, "each operator is in a case of two of these tests")
@each_case
def test_batches_without_rows_are_nothing(case: Case, folder: Path, once: Path) -> None:
    """Neither one that has none, nor one of which none is selected."""
    empty = Batch(pa.RecordBatch.from_pylist([], schema=case.schema))
    some = Batch(pa.RecordBatch.from_pylist(case.rows[:3], schema=case.schema))
    none_selected = some.with_selection(pa.array([], pa.int32()))
    run = Run(case, folder)

    def no_row(batch: Batch) -> None:
        assert batch.taken().num_rows == 0

    def give_nothing() -> None:
        (part,) = run.parts
        emit, part.emit = part.emit, no_row
        for batch in (empty, none_selected):
            part.process(batch)
        if case.right is not None:
            assert isinstance(part, SecondInput)
            part.process_right(Batch(pa.RecordBatch.from_pylist([], schema=case.right_schema)))
        run.poll(0)
        part.emit = emit

    give_nothing()
    for piece in pieces(case, random.Random("empty")):
        run.give(piece)
        give_nothing()
    run.end()
    check(case, run, once)


@pytest.mark.one_in(18, "a hundredth of a second of a core each")
@pytest.mark.parametrize("case", [*CASES, *LATE_CASES, *CLOCK_CASES], ids=lambda case: case.name)
def test_a_batch_whose_rows_are_all_late_ends_nothing(case: Case, folder: Path) -> None:
    """A step of windows drops all of its rows, so nothing is left to work with: before there is state, with state, and after a restore.
    One such batch ended an app with windows of the calendar for good, since each start read it again.
    """
    year = 366 * 86_400_000
    run = Run(replace(case, punctual=False), folder)
    run.advance(year)
    late = pieces(case, None)
    for piece in late:
        run.give(piece)
    for side, rows in late:
        run.give((side, [{**row, TIME_COLUMN: row[TIME_COLUMN] + 2 * year} for row in rows]))
    for piece in late:
        run.give(piece)
    run.advance(year + 1)
    run.restart(1)
    for piece in late:
        run.give(piece)
    run.end()
    if isinstance(run.parts[0], WindowAggregate | WindowTopN | SessionAggregate):
        assert Counter(row["n"] for row in run.late) == {row["n"]: 3 for row in case.rows}
        assert run.results, "the rows in time are there"
    run.stop()


@pytest.mark.one_in(6, "a hundredth of a second of a core each")
@each_case
def test_what_is_told_of_time_never_goes_back(case: Case, folder: Path) -> None:
    """Nor beyond the watermark; and a watermark that comes twice changes nothing."""
    run = Run(case, folder)
    rng = random.Random("time")
    rest = pieces(case, rng)
    told = passed = -(2**63)
    while rest:
        run.give(rest.pop(0))
        possible = time_of(rest)
        if possible is None:
            break
        for watermark in (possible - 15, possible, possible):
            if watermark >= passed and not isinstance(run.parts[0], HoldsMarks):
                passed = watermark
                again = run.parts[0].advance(watermark)
                now = watermark if again is None else again
                assert told <= now <= watermark
                told = now
    run.end()
    run.stop()


@pytest.mark.one_in(12, "each operator is in a case of two of these tests")
@pytest.mark.parametrize("budget", [None, BUDGET], ids=["memory", "directory"])
@each_case
def test_closing_early_lets_go_of_everything(case: Case, budget: int | None, folder: Path, once: Path) -> None:
    """Before it was opened, in the middle of the input, and twice; after that another one may have its place."""
    case.make().close()
    threads = threading.active_count()
    run = Run(case, folder / "first", budget=budget)
    given = pieces(case, random.Random("close"))
    for piece in given[: len(given) // 2]:
        run.give(piece)
    saved = run.checkpoint()
    directory = folder / "first" / "state-0-0" if budget is not None else None
    for part in run.parts:
        part.close()
        part.close()
        assert not isinstance(part, WaitsForCalls) or part.left_behind == []
    run.stop()
    assert threading.active_count() <= threads
    loop = Loop()
    after = case.make()
    after.emit = lambda batch: None
    if isinstance(after, HoldsMarks):
        after.on_mark = lambda mark: None
    context = OperatorContext(case.schema, right=None if case.right is None else case.right_schema, directory=directory)
    context.loop = lambda: loop
    after.open(context)
    if isinstance(after, Stateful):
        after.restore(saved)
    after.close()
    loop.turns()
    loop.close()


def every_operator() -> tuple[set[str], set[str]]:
    """The names of the classes of operators: those that no class is made of, and those that are the base of another."""
    for module in pkgutil.walk_packages(sabot.engine.operators.__path__, "sabot.engine.operators."):
        importlib.import_module(module.name)
    found: set[type[Operator]] = set()
    waiting = [Operator]
    while waiting:
        below = [each for each in waiting.pop().__subclasses__() if each.__module__.startswith("sabot.")]
        waiting += below
        found |= set(below)
    bases = {each for each in found if each.__subclasses__()}
    return {each.__name__ for each in found - bases}, {each.__name__ for each in bases}


def test_every_operator_is_run() -> None:
    """A new one that has no case fails here; also one that another is made of, unless it is a mere base."""
    run = {case.kind.__name__ for case in CASES} | {"LocalCombine"}
    operators, bases = every_operator()
    assert operators - run - NOT_RUN.keys() == set(), (
        "add a Case for each to CASES in tests/contracts/operator_cases.py"
    )
    assert NOT_RUN.keys() - (operators - run) == set(), "these have a case or are gone: take them off NOT_RUN"
    assert bases - run - ONLY_BASES == set(), "a base class needs a Case in operator_cases.py, or a line in ONLY_BASES"
    assert ONLY_BASES - (bases - run) == set(), "these are no mere bases any more: take them off ONLY_BASES"


def test_an_operator_without_a_case_is_found() -> None:
    class Forgotten(Operator):
        __module__ = "sabot.engine.operators.forgotten"

    assert "Forgotten" in every_operator()[0]
    del Forgotten
    gc.collect()  # a class is in a circle of references; later tests must not see it
    assert "Forgotten" not in every_operator()[0]


def test_each_kind_of_state_has_a_reader_and_a_case() -> None:
    """What keeps state can be read from outside: the kind that `state_schema` says has a reader."""
    kinds = set()
    for case in CASES:
        made = case.make()
        made.emit = lambda batch: None
        if isinstance(made, HoldsMarks):
            made.on_mark = lambda mark: None
        loop = Loop()
        context = OperatorContext(case.schema, right=None if case.right is None else case.right_schema)
        context.loop = lambda loop=loop: loop
        made.open(context)
        schema = made.state_schema() if isinstance(made, Stateful) else None
        made.close()
        loop.turns()
        loop.close()
        if schema is not None:
            kinds.add(schema["window"].partition("(")[0] if schema["kind"] == "window" else schema["kind"])
    read = operator_table._readers().keys()
    assert kinds - read == set(), "the module of the operator gives STATE_READERS a reader of this kind of state"
    assert read - kinds == set(), "add a Case for an operator with this kind of state to operator_cases.py"


@pytest.mark.one_in(6, "a hundredth of a second of a core each")
@each_case
@pytest.mark.parametrize("budget", [None, BUDGET], ids=["memory", "disk"])
def test_the_figures_say_how_large_the_state_is(case: Case, folder: Path, budget: int | None) -> None:
    """The figures of each step have their own names; the gauges of state read them, and an app of streams showed none."""
    run = Run(case, folder, budget=budget)
    for piece in pieces(case, None):
        run.give(piece)
    for part in run.parts:
        size = state_size(part.statistics())
        if isinstance(part, Head):  # it keeps one number
            continue
        if isinstance(part, StatefulOperator) and part.group_count():
            assert size["state_keys"] > 0, f"{type(part).__name__} has groups"
            assert size["state_bytes"] > 0, f"{type(part).__name__} has groups"
        elif not isinstance(part, Stateful):
            assert size["state_keys"] == size["state_bytes"] == 0
    run.stop()


@pytest.mark.one_in(24, "some hundredths of a second of a core each")
@each_case
def test_keys_on_disk_are_counted_as_keys(case: Case, folder: Path) -> None:
    """An app with 50,000 keys showed the 15,647 that its budget left in memory."""
    counted = []
    for name, budget in [("memory", None), ("disk", 1)]:
        run = Run(case, folder / name, budget=budget)
        for piece in pieces(case, random.Random("keys")):
            run.give(piece)
        counted.append(sum(state_size(part.statistics())["state_keys"] for part in run.parts))
        run.stop()
    in_memory, on_disk = counted
    assert in_memory <= on_disk <= 2 * in_memory  # a key may have some of its rows in memory and others on disk
