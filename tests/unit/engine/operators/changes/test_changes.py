"""What cancels out of changes, the last row of each key, the table at the end, and the log: beside plain Python twins.

Rows come in any split into batches, over restarts, in any number of subtasks; tables are compared at every moment.
"""

import math
import tempfile
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.arrow.batch import Batch
from sabot.engine.operators.base import (
    DELETE,
    INSERT,
    OP_COLUMN,
    TIME_COLUMN,
    UPDATE_AFTER,
    UPDATE_BEFORE,
    OperatorContext,
    with_marks,
)
from sabot.engine.operators.changes.materialize import Materialize
from sabot.engine.operators.changes.steps import Changelog, Upsert, net
from sabot.engine.operators.changes.weaving import Weave, differ, same_rows
from sabot.errors import UserError
from tools.operator_run import OperatorRun

FEW = settings(max_examples=25, deadline=None)
PLAIN = pa.schema([("key", pa.string()), ("x", pa.float64()), ("tags", pa.list_(pa.string()))])
SIMPLE = pa.schema([("key", pa.string()), ("x", pa.float64())])
SCHEMA = with_marks(PLAIN, op=True, timed=True)

Row = tuple[Any, ...]
Change = tuple[int, Row, int]  # op, row, time


def batch_of(log: list[Change], schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    names = [name for name in schema.names if name not in (OP_COLUMN, TIME_COLUMN)]
    rows = [dict(zip(names, row, strict=True)) | {OP_COLUMN: op, TIME_COLUMN: time} for op, row, time in log]
    return pa.RecordBatch.from_pylist(rows, schema=schema)


def mark(row: Any) -> str:
    """The same for equal rows: -0.0 is 0.0, NaN is NaN."""
    if isinstance(row, list | tuple):
        return f"[{', '.join(map(mark, row))}]"
    return repr(row + 0.0 if isinstance(row, float) else row)


def user_rows(data: pa.RecordBatch) -> list[Row]:
    names = [name for name in data.schema.names if name not in (OP_COLUMN, TIME_COLUMN)]
    return list(zip(*(data.column(name).to_pylist() for name in names), strict=True))


def applied(batches: list[Batch], *, unique: int = 0) -> Counter[str]:
    """The table that changes make; checks that each can be, and that each key (the first columns) has one row."""
    table: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    for batch in batches:
        data = batch.taken()
        rows, ops = user_rows(data), data.column(OP_COLUMN).to_pylist()
        times = data.column(TIME_COLUMN).to_pylist()
        for at, (op, row) in enumerate(zip(ops, rows, strict=True)):
            timed = mark((*row, times[at]))
            if op in (DELETE, UPDATE_BEFORE):
                assert table[timed] > 0, f"{row} is taken, and is not there"
                table[timed] -= 1
                keys[mark(row[:unique])] -= 1
            else:
                table[timed] += 1
                keys[mark(row[:unique])] += 1
                assert not unique or keys[mark(row[:unique])] == 1
            if op == UPDATE_BEFORE:
                assert ops[at + 1] == UPDATE_AFTER
            if op == UPDATE_AFTER:
                assert ops[at - 1] == UPDATE_BEFORE
                assert mark(rows[at - 1][:unique]) == mark(row[:unique])
                assert mark(rows[at - 1]) != mark(row)
    return +table


ROW = st.tuples(
    st.sampled_from(["ann", "bob", "", None]),
    st.none() | st.sampled_from([0.0, -0.0, 1.5, math.nan]),
    st.none() | st.sampled_from([["a"], [], ["a", None]]),
)


@st.composite
def logs(draw: Any, most: int = 25) -> list[Change]:
    """Changes of which every prefix is valid."""
    there: list[tuple[Row, int]] = []
    log: list[Change] = []
    for time in range(draw(st.integers(0, most))):
        what = draw(st.sampled_from(["insert", "insert", "delete", "update"]))
        if there and what != "insert":
            row, at = there.pop(draw(st.integers(0, len(there) - 1)))
            log.append((DELETE if what == "delete" else UPDATE_BEFORE, row, at))
        if what != "delete":
            row = draw(ROW)
            there.append((row, time))
            log.append((UPDATE_AFTER if log and log[-1][0] == UPDATE_BEFORE else INSERT, row, time))
    return log


PARTS = st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0, 0, 1, 3])), min_size=1, max_size=6)


def pieces(log: list[Change], parts: Any) -> Any:
    """(rows of a batch, in how many subtasks to start anew before it, or 0, the changes up to its end)."""
    at = turn = 0
    while at < len(log):
        size, restart = parts[turn % len(parts)]
        turn += 1
        yield log[at : at + size], restart, log[: at + size]
        at += size


# net


@FEW
@given(log=st.lists(st.tuples(st.integers(0, 3), ROW, st.integers(0, 9)), max_size=30), backwards=st.booleans())
def test_opposite_changes_of_equal_rows_cancel_out(log, backwards):
    batch = Batch(batch_of(log))
    if backwards:
        batch = batch.with_selection(pa.array(range(len(log) - 1, -1, -1), pa.int32()))
        log = log[::-1]
    takes, adds = net(batch)
    assert takes.schema.names == adds.schema.names == [*PLAIN.names, TIME_COLUMN]
    left: Counter[str] = Counter()
    for op, row, _ in log:
        left[mark(row)] += -1 if op % 2 else 1
    expected_adds, expected_takes = [], []
    spare = dict(left)
    for op, row, time in reversed(log):  # the last adds stay
        if op % 2 == 0 and spare[mark(row)] > 0:
            spare[mark(row)] -= 1
            expected_adds.insert(0, mark((*row, time)))
    for op, row, time in log:  # the first takes stay
        if op % 2 and spare[mark(row)] < 0:
            spare[mark(row)] += 1
            expected_takes.append(mark((*row, time)))
    for found, expected in ((takes, expected_takes), (adds, expected_adds)):
        times = found.column(TIME_COLUMN).to_pylist()
        assert [mark((*row, time)) for row, time in zip(user_rows(found), times, strict=True)] == expected


def test_a_batch_without_takes_is_not_looked_at():
    data = batch_of([(INSERT, ("a", 1.0, None), 1), (UPDATE_AFTER, ("a", 1.0, None), 1)])
    takes, adds = net(Batch(data))
    assert takes.num_rows == 0
    assert adds.column("x").buffers()[1].address == data.column("x").buffers()[1].address
    plain = data.drop_columns([OP_COLUMN])
    assert net(Batch(plain))[1] is plain


ANY_TYPE = {
    pa.decimal128(9, 2): [Decimal("1.25"), Decimal("-3.00")],
    pa.list_(pa.float64()): [[0.0, math.nan], [], [None], [-0.0, math.nan]],
    pa.struct([("a", pa.int8()), ("b", pa.list_(pa.string()))]): [{"a": 1, "b": ["x"]}, {"a": None, "b": None}],
    pa.map_(pa.string(), pa.int32()): [[("k", 1)], [], [("k", None)]],
    pa.list_(pa.int16(), 2): [[1, 2], [1, None]],
    pa.binary(2): [b"ab", b"\0\0"],
    pa.dictionary(pa.int8(), pa.string()): ["u", "v"],
    pa.large_string(): ["", "w"],
    pa.timestamp("ms"): [0, 5],
    pa.float16(): [np.float16(1.0), np.float16(2.0)],
    pa.month_day_nano_interval(): [(1, 2, 3), (0, 0, 0)],
    pa.null(): [],
}


@pytest.mark.parametrize("kind", ANY_TYPE, ids=str)
def test_rows_of_any_type_are_compared(kind):
    values = [None, *ANY_TYPE[kind]] * 3
    column = pa.array(values, kind).slice(1)
    numbers = same_rows(pa.RecordBatch.from_arrays([column, pa.array(range(len(column)))], names=["c", TIME_COLUMN]))
    marks = [mark(value) for value in column.to_pylist()]
    assert len(numbers) == len(marks)
    for i, one in enumerate(marks):
        for j, other in enumerate(marks):
            assert (numbers[i] == numbers[j]) == (one == other)
    if not pa.types.is_dictionary(kind):  # no batch of the engine has one
        found = differ([column], [column.take(pa.array(range(len(column) - 1, -1, -1)))])
        assert found.tolist() == [one != other for one, other in zip(marks, marks[::-1], strict=True)]


def test_rows_that_stay_are_not_woven():
    weave = Weave(np.array([True, False, True, False]), np.array([True, False, False, True]))
    before, after = pa.array([1, 2, 3, 4]), pa.array([10, 20, 30, 40])
    assert weave.ops().to_pylist() == [UPDATE_BEFORE, UPDATE_AFTER, DELETE, INSERT]
    assert weave.woven(before, after).to_pylist() == [1, 10, 3, 40]
    assert weave.same(after, pa.array([3, 2, 1, 0])).to_pylist() == [40, 40, 20, 10]


# upsert


def last_rows(log: list[Change]) -> Counter[str]:
    """The table of an upsert: equal rows do not take each other's place."""
    table: dict[Any, tuple[Row, int]] = {}
    for op, row, time in log:
        if op == DELETE:
            table.pop(row[0], None)
        elif row[0] not in table or mark(table[row[0]][0]) != mark(row):
            table[row[0]] = (row, time)
    return Counter(mark((*row, time)) for row, time in table.values())


def without_times(table: Counter[str]) -> Counter[str]:
    return Counter({key.rpartition(",")[0]: n for key, n in table.items()})


@pytest.mark.parametrize("deletes", [False, True])
@FEW
@given(rows=st.lists(st.tuples(ROW, st.booleans()), max_size=30), parts=PARTS)
def test_the_last_row_of_a_key_is_its_row(deletes, rows, parts):
    log = [(DELETE if gone and deletes else INSERT, row, time) for time, (row, gone) in enumerate(rows)]
    schema = with_marks(PLAIN, op=deletes, timed=True)
    with tempfile.TemporaryDirectory() as directory:
        run = OperatorRun(lambda: Upsert(["key"], changes=deletes, deletes=deletes), schema, ["key"], Path(directory))
        for part, restart, so_far in pieces(log, parts):
            if restart:
                run.restart(restart)
            run.feed(batch_of(part, schema))
            found, expected = applied(run.batches, unique=1), last_rows(so_far)
            assert without_times(found) == without_times(expected)
        contents = [row for part in run.parts for piece in part.contents() for row in piece.to_pylist()]
        assert len(contents) == sum(applied(run.batches, unique=1).values())
        for part in run.parts:
            part.close()


def left_of(log: list[Change]) -> dict[Any, list[Row]]:
    """By key the rows that are there, in order of arrival; of equal ones the oldest is taken."""
    left: dict[Any, list[Row]] = {}
    for op, row, _ in log:
        rows = left.setdefault(row[0], [])
        if op in (DELETE, UPDATE_BEFORE):
            del rows[[mark(each) for each in rows].index(mark(row))]
        else:
            rows.append(row)
    return {key: rows for key, rows in left.items() if rows}


@FEW
@given(log=logs(), parts=PARTS)
def test_of_changes_the_row_that_came_last_and_is_still_there_is_the_keys_row(log, parts):
    with tempfile.TemporaryDirectory() as directory:
        run = OperatorRun(lambda: Upsert(["key"], changes=True), SCHEMA, ["key"], Path(directory))
        for part, restart, so_far in pieces(log, parts):
            if restart:
                run.restart(restart)
            run.feed(batch_of(part))
            expected = Counter(mark(rows[-1]) for rows in left_of(so_far).values())
            found = without_times(applied(run.batches, unique=1))
            assert found == Counter({key.rpartition("]")[0]: n for key, n in expected.items()})


def test_upsert_needs_a_key():
    with pytest.raises(UserError, match="needs a key"):
        Upsert([], changes=False)
    with pytest.raises(UserError, match="no column 'nope'"):
        Upsert(["nope"], changes=False).open(OperatorContext(PLAIN))


# changelog


def test_a_changelog_says_what_each_row_is():
    log = [(op, ("a", float(op), None), op) for op in (INSERT, UPDATE_BEFORE, UPDATE_AFTER, DELETE)]
    step = Changelog()
    found: list[Batch] = []
    step.emit = found.append
    schema = step.open(OperatorContext(SCHEMA))
    step.process(Batch(batch_of(log), {("t", 0): 4}))
    step.process(Batch(batch_of(log)).with_selection(pa.array([3, 0], pa.int32())))
    assert schema.names == ["op", *PLAIN.names, TIME_COLUMN]
    assert all(batch.schema.equals(schema) for batch in found)
    words = ["insert", "update_before", "update_after", "delete"]
    assert [batch.taken().column("op").to_pylist() for batch in found] == [words, ["delete", "insert"]]
    assert found[0].offsets == {("t", 0): 4}


def test_the_log_of_a_drained_app_that_goes_on_begins_time_anew(tmp_path: Path) -> None:
    """Its rows had the end of time as theirs, until the first watermark came."""

    def logged(run: OperatorRun, time: int) -> int:
        run.feed(batch_of([(DELETE, ("a", 1.0, None), time)]))
        return run.results[-1][TIME_COLUMN]

    run = OperatorRun(Changelog, SCHEMA, ["key"], tmp_path)
    run.advance(10)
    assert logged(run, 7) == 10
    run.restart(2)
    assert logged(run, 7) == 10
    run.end()
    run.restart(1)
    assert logged(run, 8) == 8
    run.advance(20)
    assert logged(run, 9) == 20


def test_a_changelog_is_of_changes_and_has_its_column_alone():
    with pytest.raises(UserError, match="needs changes"):
        Changelog().open(OperatorContext(PLAIN))
    with pytest.raises(UserError, match="adds a column 'op'") as refused:
        Changelog().open(OperatorContext(with_marks(pa.schema([("op", pa.int8())]), op=True, timed=False)))
    assert ".rename(" in str(refused.value)


# materialize


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("schema", [PLAIN, SIMPLE], ids=["bytes", "columns"])
@FEW
@given(log=logs(), parts=PARTS, keyed=st.booleans())
def test_the_rows_that_are_left_come_out_once(schema, log, parts, keyed):
    materialized(schema, log, parts, keyed)


@pytest.mark.parametrize("schema", [PLAIN, SIMPLE], ids=["bytes", "columns"])
def test_rows_that_do_not_fit_in_memory_are_materialized(schema):
    rows = [(("ann", "bob", "", None)[n % 4], float(n % 7), [str(n % 3)]) for n in range(40)]
    log = [(INSERT, row, n) for n, row in enumerate(rows)] + [(DELETE, row, n) for n, row in enumerate(rows[::3])]
    materialized(schema, log, [(20, 0), (20, 2)], True, budget=1)


def materialized(schema: pa.Schema, log: list[Change], parts: Any, keyed: bool, budget: int | None = None) -> None:
    """budget 1: all groups leave memory after each batch."""
    input = with_marks(schema, op=True, timed=True)
    log = [(op, row[: len(schema)], time) for op, row, time in log]
    keys = ["key"] if keyed else []
    with tempfile.TemporaryDirectory() as directory:
        run = OperatorRun(lambda: Materialize(keys), input, keys, Path(directory), 1, budget)
        for part, restart, _ in pieces(log, parts):
            if restart:
                run.restart(restart)
            run.feed(batch_of(part, input))
            assert all(part.advance(7) == -(2**63) for part in run.parts)
        assert not run.batches
        expected = Counter(mark(row) for rows in left_of(log).values() for row in rows)
        kept = [row for part in run.parts for piece in part.contents() for row in user_rows(piece)]
        assert Counter(map(mark, kept)) == expected
        run.end()
        run.end()
        assert Counter(mark(row) for batch in run.batches for row in user_rows(batch.data)) == expected
        assert run.schema.names == [*schema.names, TIME_COLUMN]
        run.restart(2)  # what was given is not given again
        run.end()
        assert sum(batch.num_rows for batch in run.batches) == sum(expected.values())
        for part in run.parts:
            part.close()
