"""The keyed kernel beside its naive twin: groups in a dict, a list of the rows of each, and the results computed from the lists."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.arrow.selection import select_rows
from sabot._cython.groups.keyed import KINDS, GroupTable, SlidingTable, WindowMerge
from sabot._cython.groups.partition import hash_array, hash_columns, key_hash
from sabot.errors import DataError

WORD = 2**64 - 1
K0, K2 = 0x6A09E667F3BCC909, 0x3C6EF372FE94F82B


# The twin


def same(one: Any, other: Any) -> bool:
    """Equal to 12 digits, NaN to NaN."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=1e-12)
    return type(one) is type(other) and one == other


def canonical(value: Any) -> Any:
    """Equal keys are one key."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value + 0.0
    return (type(value).__name__, value)


def expected(kind: str, argument: pa.DataType | None, rows: list[tuple[Any, int]]) -> Any:
    """The result of one aggregate over (value, order) of the rows that count, in the order in which they came."""
    values = [value for value, _ in rows if value is not None]
    if kind == "count":
        return len(rows) if argument is None else len(values)
    if kind == "first":
        return min(rows, key=lambda row: row[1])[0] if rows else None
    if kind == "last":
        return max(reversed(rows), key=lambda row: row[1])[0] if rows else None
    if kind == "variance":
        if len(values) < 2:
            return None
        if not all(map(math.isfinite, values)):
            return math.nan
        mean = sum(map(Fraction, values)) / len(values)
        return float(sum((Fraction(value) - mean) ** 2 for value in values) / (len(values) - 1))
    if not values:
        return None
    if kind in ("min", "max"):
        numbers = [value for value in values if value == value]
        return {"min": min, "max": max}[kind](numbers) if numbers else math.nan
    if argument is not None and pa.types.is_floating(argument):
        total = math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
        return total if kind == "sum" else total / len(values)
    return sum(values) if kind == "sum" else sum(values) / len(values)


class NaiveTable:
    """What a GroupTable gives, from lists."""

    def __init__(self, aggregates: Sequence[tuple[str, pa.DataType | None]]) -> None:
        self.aggregates = aggregates
        self.groups: dict[Any, tuple[list[Any], list[list[tuple[Any, int]]]]] = {}
        self.arrived = 0

    def update(
        self,
        data: pa.RecordBatch,
        keys: Sequence[int],
        arguments: Sequence[int],
        filters: Sequence[int] | None = None,
        *,
        order: int = -1,
        selection: Iterable[int] | None = None,
    ) -> None:
        columns = [column.to_pylist() for column in data.columns]
        for row in range(data.num_rows) if selection is None else selection:
            key = [columns[k][row] for k in keys]
            group = self.groups.setdefault(tuple(map(canonical, key)), (key, [[] for _ in self.aggregates]))
            when = self.arrived if order < 0 else columns[order][row]
            self.arrived += 1
            for i, argument in enumerate(arguments):
                if filters is None or filters[i] < 0 or columns[filters[i]][row]:
                    group[1][i].append((None if argument < 0 else columns[argument][row], when))

    def finish(self) -> dict[Any, list[Any]]:
        return {
            key: [expected(kind, kind_of, rows) for (kind, kind_of), rows in zip(self.aggregates, group, strict=True)]
            for key, (_, group) in self.groups.items()
        }


def finished(table: GroupTable, slots: pa.Array | None = None) -> dict[Any, list[Any]]:
    """What `finish` gives, by canonical key."""
    columns = [column.to_pylist() for column in table.finish(slots)]
    keys = len(table.keys)
    for column in columns:
        assert len(column) == (len(table) if slots is None else len(slots))
    rows = [list(row) for row in zip(*columns, strict=True)] if columns else [[]] * len(table)
    result = {tuple(map(canonical, row[:keys])): row[keys:] for row in rows}
    assert len(result) == len(rows), "a key has two groups"
    return result


def key_rows(table: GroupTable, slots: pa.Array) -> list[list[Any]]:
    return [list(map(canonical, column.to_pylist())) for column in table.key_columns(slots)]


def assert_same(table: GroupTable, naive: NaiveTable) -> None:
    got, wanted = finished(table), naive.finish()
    assert got.keys() == wanted.keys()
    for key, results in wanted.items():
        assert same(got[key], results), (key, got[key], results)


# Generated data

SHORT = st.text("ab", max_size=3)
LONG = st.sampled_from(
    ["", "a", "twelve bytes", "thirteen byte", "thirteen bytf", "x" * 40, "x" * 39 + "y", "ä" * 9, "\0", "\0\0"]
)
# few values, so that groups have several rows; sums of 64ths are exact
KEYS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.bool_(): st.booleans(),
    pa.int8(): st.integers(-2, 2),
    pa.int64(): st.sampled_from([-(2**63), -1, 0, 1, 2**63 - 1]),
    pa.uint64(): st.sampled_from([0, 1, 2**63, 2**64 - 1]),
    pa.float32(): st.sampled_from([0.0, -0.0, 1.5, math.nan, math.inf]),
    pa.float64(): st.sampled_from([0.0, -0.0, 1.5, math.nan, -math.nan, -math.inf]),
    pa.string(): SHORT | LONG,
    pa.binary(): (SHORT | LONG).map(str.encode),
    pa.date32(): st.integers(0, 3),
    pa.time64("us"): st.integers(0, 3),
    pa.timestamp("ms", "UTC"): st.integers(0, 3),
    pa.duration("s"): st.integers(0, 3),
}
SIXTY_FOURTHS = st.integers(-(2**20), 2**20).map(lambda n: n / 64)
ARGUMENTS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.bool_(): st.booleans(),
    pa.int8(): st.integers(-128, 127),
    pa.int16(): st.integers(-(2**15), 2**15 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**50), 2**50),
    pa.uint8(): st.integers(0, 255),
    pa.uint16(): st.integers(0, 2**16 - 1),
    pa.uint32(): st.integers(0, 2**32 - 1),
    pa.uint64(): st.integers(0, 2**50),
    pa.float32(): st.integers(-1000, 1000).map(lambda n: n / 64),
    pa.float64(): SIXTY_FOURTHS | st.sampled_from([math.nan, -0.0]),
    pa.date32(): st.integers(0, 1000),
    pa.time64("us"): st.integers(0, 1000),
    pa.timestamp("ms", "UTC"): st.integers(0, 2**40),
    pa.duration("s"): st.integers(-5, 5),
}
NUMBERS = [kind for kind in ARGUMENTS if not pa.types.is_temporal(kind)]
SUMS = frozenset(["sum", "mean", "variance"])


def column(
    strategy: st.SearchStrategy[Any], kind: pa.DataType, rows: int, data: st.DataObject, *, nulls: bool = True
) -> pa.Array:
    """Values side by side, or behind others that are sliced away."""
    cell = strategy | st.none() if nulls and data.draw(st.booleans()) else strategy
    before = data.draw(st.integers(0, 2))
    values = data.draw(st.lists(cell, min_size=rows + before, max_size=rows + before))
    return pa.array(values, kind).slice(before)


@st.composite
def designs(draw: st.DrawFn) -> tuple[pa.Schema, list[tuple[str, pa.DataType | None]]]:
    keys = draw(st.lists(st.sampled_from(list(KEYS)), max_size=3))
    aggregates: list[tuple[str, pa.DataType | None]] = []
    for kind in draw(st.lists(st.sampled_from(sorted(KINDS)), max_size=5)):
        if kind == "count" and draw(st.booleans()):
            aggregates.append((kind, None))
        else:
            aggregates.append((kind, draw(st.sampled_from(NUMBERS if kind in SUMS else list(ARGUMENTS)))))
    return pa.schema([(f"k{i}", kind) for i, kind in enumerate(keys)]), aggregates


class Rows:
    """A batch for a table: its keys, arguments, filters and order, and where they stand."""

    def __init__(
        self,
        schema: pa.Schema,
        aggregates: list[tuple[str, pa.DataType | None]],
        rows: int,
        data: st.DataObject,
        *,
        ordered: bool = False,
    ) -> None:
        columns = [column(KEYS[field.type], field.type, rows, data) for field in schema]
        self.keys = list(range(len(columns)))
        self.arguments = []
        for _, kind in aggregates:
            self.arguments.append(-1 if kind is None else len(columns))
            if kind is not None:
                columns.append(column(ARGUMENTS[kind], kind, rows, data))
        self.filters = []
        for _ in aggregates:
            chosen = data.draw(st.booleans())
            self.filters.append(len(columns) if chosen else -1)
            if chosen:
                columns.append(column(st.booleans(), pa.bool_(), rows, data))
        columns.append(column(st.integers(0, 5), pa.int64(), rows, data, nulls=False))
        self.order = len(columns) - 1 if ordered or data.draw(st.booleans()) else -1
        self.data = pa.record_batch(columns, names=[f"c{i}" for i in range(len(columns))])


def maybe_selection(rows: int, data: st.DataObject) -> pa.Array | None:
    if data.draw(st.booleans()):
        return None
    chosen = st.lists(st.integers(0, rows - 1), max_size=2 * rows) if rows else st.just([])
    return pa.array(data.draw(chosen), pa.int32())


def listed(selection: pa.Array | None) -> list[int] | None:
    return None if selection is None else selection.to_pylist()


def feed(table: GroupTable, naive: NaiveTable, rows: Rows, data: st.DataObject) -> None:
    """The same rows to both, by one of the ways in."""
    selection = maybe_selection(rows.data.num_rows, data)
    naive.update(rows.data, rows.keys, rows.arguments, rows.filters, order=rows.order, selection=listed(selection))
    hashes = None
    if rows.keys and data.draw(st.booleans()):
        hashes = hash_columns([rows.data.column(k) for k in rows.keys], selection)
    if data.draw(st.booleans()):
        slots = table.update(
            rows.data,
            rows.keys,
            rows.arguments,
            rows.filters,
            order=rows.order,
            hashes=hashes,
            selection=selection,
            want_slots=True,
        )
    else:
        slots = table.resolve(rows.data, rows.keys, hashes=hashes, selection=selection)
        table.accumulate(slots, rows.data, rows.arguments, rows.filters, order=rows.order, selection=selection)
    taken = rows.data if selection is None else rows.data.take(selection)
    assert key_rows(table, slots) == [list(map(canonical, taken.column(key).to_pylist())) for key in rows.keys]


@settings(max_examples=80, deadline=None)
@given(designs(), st.lists(st.integers(0, 12), max_size=4), st.data())
def test_the_answer_is_that_of_the_twin(design, sizes, data):
    schema, aggregates = design
    table, naive = GroupTable(schema, aggregates), NaiveTable(aggregates)
    for size in sizes:
        feed(table, naive, Rows(schema, aggregates, size, data), data)
    assert_same(table, naive)
    assert [column.type for column in table.finish()] == [field.type for field in schema] + table.results


@settings(max_examples=40, deadline=None)
@given(designs(), st.lists(st.integers(0, 12), max_size=4), st.data())
def test_tables_merged_from_their_exports_are_one_table(design, sizes, data):
    schema, aggregates = design
    whole, naive = GroupTable(schema, aggregates), NaiveTable(aggregates)
    for size in sizes:
        table = GroupTable(schema, aggregates)
        feed(table, naive, Rows(schema, aggregates, size, data, ordered=True), data)
        state = table.export()
        assert state.schema.equals(table.states)
        state.validate(full=True)
        slots = whole.merge(state)
        assert same(key_rows(whole, slots), key_rows(table, table.slots()))
    assert_same(whole, naive)
    slots = maybe_selection(len(whole), data)
    picked = whole.export() if slots is None else whole.export().take(slots)
    assert same(*[[column.to_pylist() for column in state.columns] for state in (whole.export(slots), picked)])


@settings(max_examples=40, deadline=None)
@given(designs(), st.lists(st.integers(0, 12), max_size=3), st.data())
def test_running_results_are_those_after_each_row(design, sizes, data):
    schema, aggregates = design
    table, naive = GroupTable(schema, aggregates), NaiveTable(aggregates)
    for size in sizes:
        rows = Rows(schema, aggregates, size, data)
        selection = maybe_selection(size, data)
        slots = table.resolve(rows.data, rows.keys, selection=selection)
        got = table.running(slots, rows.data, rows.arguments, rows.filters, order=rows.order, selection=selection)
        assert [column.type for column in got] == table.results
        results = [column.to_pylist() for column in got]
        for i, row in enumerate(range(size) if selection is None else selection.to_pylist()):
            naive.update(rows.data, rows.keys, rows.arguments, rows.filters, order=rows.order, selection=[row])
            key = tuple(canonical(rows.data.column(k)[row].as_py()) for k in rows.keys)
            assert same([column[i] for column in results], naive.finish()[key])
    assert_same(table, naive)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "clear", "clean"]), st.integers(0, 2**32)), max_size=30))
def test_slots_are_used_again_and_the_rest_stays_right(steps):
    """Against a dict, through inserts, removals and clears: what is there, what is dirty, and that no slot has two keys."""
    table = GroupTable(pa.schema([("k", pa.string())]), [("sum", pa.int64())])
    twin: dict[str, int] = {}
    dirty: set[str] = set()
    for what, seed in steps:
        random = np.random.default_rng(seed)
        if what == "add":
            keys = [f"key{'-' * int(n % 20)}{n}" for n in random.integers(0, 300, int(random.integers(0, 200)))]
            batch = pa.record_batch(
                [pa.array(keys, pa.string()), pa.array(range(len(keys)), pa.int64())], names=["k", "v"]
            )
            table.update(batch, [0], [1])
            for value, key in enumerate(keys):
                twin[key] = twin.get(key, 0) + value
            dirty.update(keys)
        elif what == "remove" and twin:
            slots = table.slots()
            gone = slots.take(pa.array(np.flatnonzero(random.random(len(slots)) < 0.6)))
            for key in table.key_columns(gone)[0].to_pylist():
                del twin[key]
                dirty.discard(key)
            table.remove(gone)
        elif what == "clear":
            table.clear()
            twin.clear()
            dirty.clear()
        elif what == "clean":
            table.clean()
            dirty.clear()
        assert len(table) == len(twin)
        keys_, sums = table.finish()
        assert dict(zip(keys_.to_pylist(), sums.to_pylist(), strict=True)) == twin
        assert sorted(table.key_columns(table.dirty())[0].to_pylist()) == sorted(dirty)
        assert table.slots().to_pylist() == sorted(set(table.slots().to_pylist()))
        assert table.statistics() == {
            "groups": len(twin),
            "slots": table.statistics()["slots"],
            "dirty": len(dirty),
            "bytes": table.nbytes,
        }


# What single calls promise


def batch(**columns: Any) -> pa.RecordBatch:
    return pa.record_batch(
        [values if isinstance(values, pa.Array) else pa.array(values) for values in columns.values()], list(columns)
    )


def counts(kind: pa.DataType | None = None) -> GroupTable:
    return GroupTable(pa.schema([("k", kind or pa.int64())]), [("count", None)])


def test_no_key_is_one_group():
    table = GroupTable(pa.schema([]), [("count", None), ("sum", pa.int64())])
    table.update(batch(v=pa.array([], pa.int64())), [], [-1, 0])
    assert [column.to_pylist() for column in table.finish()] == [[], []]
    assert table.update(batch(v=[1, None, 5]), [], [-1, 0], want_slots=True).to_pylist() == [0, 0, 0]
    assert [column.to_pylist() for column in table.finish()] == [[3], [6]]


def test_many_groups_over_many_batches_grow_the_table():
    table = counts(pa.string())
    keys = [f"account-{i}" if i % 3 else f"an account with a long name {i}" for i in range(60_000)]
    for start in range(0, 60_000, 7_000):
        table.update(batch(k=keys[start : start + 7_000]), [0], [-1])
        table.update(batch(k=keys[: start + 1]), [0], [-1])
    got = dict(zip(*[column.to_pylist() for column in table.finish()], strict=True))
    assert got == {key: 1 + sum(i <= start for start in range(0, 60_000, 7_000)) for i, key in enumerate(keys)}


def test_keys_whose_hashes_agree_are_kept_apart():
    """Hashes come from outside: equal ones, equal upper halves, equal lower halves."""
    keys = [f"k{i}" for i in range(3_000)]
    for hashes in ([7] * 300, [5 << 32 | i for i in range(3_000)], [i << 32 for i in range(3_000)]):
        table = counts(pa.string())
        data = batch(k=keys[: len(hashes)])
        slots = table.update(data, [0], [-1], hashes=pa.array(hashes, pa.uint64()), want_slots=True)
        assert slots.to_pylist() == list(range(len(hashes)))
        assert table.resolve(data, [0], hashes=pa.array(hashes, pa.uint64()), insert=False).equals(slots)
        assert table.hashes(slots).to_pylist() == hashes
        table.remove(slots.slice(0, 100))
        assert table.resolve(data, [0], hashes=pa.array(hashes, pa.uint64()), insert=False).to_pylist() == [
            -1
        ] * 100 + list(range(100, len(hashes)))


def test_a_missing_key_gives_minus_one_and_is_passed_over():
    table = counts()
    table.update(batch(k=[1, 2]), [0], [-1])
    data = batch(k=[2, 3, 1])
    slots = table.resolve(data, [0], insert=False)
    assert slots.to_pylist() == [1, -1, 0]
    table.accumulate(slots, data, [-1])
    assert [column.to_pylist() for column in table.finish()] == [[1, 2], [2, 2]]
    assert table.running(slots, data, [-1])[0].to_pylist() == [3, None, 3]
    assert len(table) == 2


def test_an_empty_table_has_no_key_and_gives_no_row():
    table = GroupTable(pa.schema([("k", pa.string())]), [("mean", pa.float64())])
    assert table.resolve(batch(k=["a"]), [0], insert=False).to_pylist() == [-1]
    assert [len(column) for column in table.finish()] == [0, 0]
    assert table.export().num_rows == 0
    assert table.slots().to_pylist() == table.dirty().to_pylist() == []


def test_resolved_groups_are_empty_until_something_is_added():
    kinds = [
        ("count", None),
        ("sum", pa.int64()),
        ("min", pa.float64()),
        ("mean", pa.int8()),
        ("variance", pa.int8()),
        ("last", pa.bool_()),
    ]
    table = GroupTable(pa.schema([("k", pa.int64())]), kinds)
    slots = table.resolve(batch(k=[4]), [0])
    assert [column.to_pylist() for column in table.finish(slots)] == [[4], [0], [None], [None], [None], [None], [None]]
    other = GroupTable(table.keys, kinds)
    other.merge(table.export())
    assert other.finish() == table.finish()


def test_the_columns_of_a_state_say_what_they_are():
    table = GroupTable(
        pa.schema([("k", pa.string())]),
        [
            ("count", None),
            ("max", pa.date32()),
            ("mean", pa.float32()),
            ("mean", pa.int8()),
            ("variance", pa.int64()),
            ("first", pa.bool_()),
        ],
    )
    assert table.states.names == [
        "k", "0.count", "1.max", "2.count", "2.sum", "3.count", "3.high", "3.low", "4.count", "4.mean", "4.m2", "5.first", "5.order",
    ]  # fmt: skip
    assert table.results == [pa.int64(), pa.date32(), pa.float64(), pa.float64(), pa.float64(), pa.bool_()]


def test_of_equal_orders_the_first_to_come_counts_for_first_and_the_last_for_last():
    kinds = [("first", pa.int64()), ("last", pa.int64())]
    table, other = (GroupTable(pa.schema([]), kinds) for _ in range(2))
    table.update(batch(v=[1, 2, 3], t=[5, 5, 5]), [], [0, 0], order=1)
    assert [column.to_pylist() for column in table.finish()] == [[1], [3]]
    other.update(batch(v=[7, 8], t=[5, 5]), [], [0, 0], order=1)
    table.merge(other.export())
    assert [column.to_pylist() for column in table.finish()] == [[1], [8]]


def test_without_an_order_rows_stand_in_the_order_in_which_they_came_also_after_a_restore():
    kinds = [("first", pa.string()), ("last", pa.int64())]
    with pytest.raises(TypeError, match="first of string"):
        GroupTable(pa.schema([]), kinds)
    kinds[0] = ("first", pa.int64())
    table, restored, partial = (GroupTable(pa.schema([]), kinds) for _ in range(3))
    table.update(batch(v=list(range(100))), [], [0, 0])
    restored.merge(table.export())
    restored.update(batch(v=[7]), [], [0, 0])
    assert [column.to_pylist() for column in restored.finish()] == [[0], [7]]
    for value in (1, 2, 3):  # a table that is cleared after each export, as the local half of two phases is
        partial.update(batch(v=[value] * (10 - value)), [], [0, 0])
        restored.merge(partial.export())
        partial.clear()
    assert restored.finish()[1].to_pylist() == [7]  # its order was higher
    fresh = GroupTable(pa.schema([]), kinds)
    for value in (1, 2, 3):
        partial.update(batch(v=[value] * (10 - value)), [], [0, 0])
        fresh.merge(partial.export())
        partial.clear()
    assert [column.to_pylist() for column in fresh.finish()] == [[1], [3]]


def test_slots_are_merged_pair_by_pair_and_the_sources_are_empty_then():
    kinds = [
        ("count", None),
        ("sum", pa.int64()),
        ("min", pa.float64()),
        ("variance", pa.float64()),
        ("last", pa.int64()),
    ]
    table = GroupTable(pa.schema([("k", pa.int64())]), kinds)
    data = batch(k=[0, 1, 2, 0, 1, 2], v=[1, 2, 3, 4, 5, 6], x=[0.5, 1.5, -2.5, 3.5, 4.5, math.nan])
    table.update(data, [0], [-1, 1, 2, 2, 1])
    table.clean()
    table.merge_slots(pa.array([0, 1], pa.int32()), pa.array([2, 0], pa.int32()))
    whole = GroupTable(pa.schema([("k", pa.int64())]), kinds)
    order = pa.array([0, 3, 2, 5, 1, 4])  # 2 joins 0, then both join 1
    whole.update(data.set_column(0, "k", pa.array([1] * 6)), [0], [-1, 1, 2, 2, 1], selection=order.cast(pa.int32()))
    merged = finished(table)
    assert same(merged[(("int", 1),)][:3], finished(whole)[(("int", 1),)][:3])
    assert merged[(("int", 0),)] == merged[(("int", 2),)] == [0, None, None, None, None]
    assert merged[(("int", 1),)][4] == 6
    assert table.dirty().to_pylist() == [0, 1, 2]
    with pytest.raises(ValueError, match="slot 1 cannot be merged into itself"):
        table.merge_slots(pa.array([0, 1], pa.int32()), pa.array([2, 1], pa.int32()))


def test_touches_note_the_tick():
    table = counts()
    table.update(batch(k=[1, 2, 3]), [0], [-1])
    table.tick = 5
    table.resolve(batch(k=[2]), [0])
    table.tick = 6
    table.update(batch(k=[3]), [0], [-1])
    assert table.idle_since(5).to_pylist() == [0]
    assert table.idle_since(6).to_pylist() == [0, 1]
    assert table.idle_since(0).to_pylist() == []
    with pytest.raises(ValueError, match="tick"):
        table.tick = 2**31


def test_memory_is_bounded_by_what_is_there():
    """Groups come and go; keys in the arena and slots are used again."""
    table = counts(pa.string())
    sizes = []
    for round_ in range(40):
        table.update(batch(k=[f"a long key that must go to the arena {round_}-{i}" for i in range(500)]), [0], [-1])
        table.update(batch(k=[f"a key that stays for good, number {i}" for i in range(50)]), [0], [-1])
        kept = table.key_columns()[0].to_pylist()
        table.remove(table.slots().filter(pa.array([not key.startswith("a key") for key in kept])))
        sizes.append(table.nbytes)
    assert max(sizes) == max(sizes[:3])
    assert len(table) == 50


def test_an_index_that_is_reserved_does_not_grow():
    table = GroupTable(pa.schema([("k", pa.int64())]), [])
    table.resolve(batch(k=[1, 2, None]), [0])
    for groups in (50_000, 50_000, 0):
        table.reserve(groups)
    reserved = table.nbytes
    assert table.resolve(batch(k=[None, 2, 1]), [0]).to_pylist() == [2, 1, 0]
    twin = GroupTable(pa.schema([("k", pa.int64())]), [])
    for one in (table, twin):
        one.resolve(batch(k=list(range(40_000))), [0])
    assert table.nbytes - reserved < twin.nbytes
    assert sorted(table.key_columns(table.slots())[0].to_pylist(), key=str) == sorted([None, *range(40_000)], key=str)
    with pytest.raises(ValueError, match="2\\^31"):
        table.reserve(-1)


def test_a_cleared_table_keeps_its_memory():
    table = counts()
    table.update(batch(k=list(range(10_000))), [0], [-1])
    size = table.nbytes
    assert size < 10_000 * 200
    for rows in (10_000, 3, 10_000):
        table.clear()
        assert (len(table), table.nbytes) == (0, size)
        assert table.resolve(batch(k=[5]), [0], insert=False).to_pylist() == [-1]
        slots = table.update(batch(k=list(range(rows))), [0], [-1], want_slots=True)
        assert slots.to_pylist() == list(range(rows))
        assert table.finish()[1].to_pylist() == [1] * rows


def test_more_aggregates_than_bits_in_a_word():
    kinds = [("max", pa.int64())] * 40 + [("first", pa.int64())] * 40
    table = GroupTable(pa.schema([("k", pa.int64()), ("s", pa.string())]), kinds)
    values = [pa.array([i, None if i % 2 else -i, i - 5]) for i in range(80)]
    data = pa.record_batch([pa.array([1, 1, 2]), pa.array(["a", "a", None]), *values], [f"c{i}" for i in range(82)])
    table.update(data, [0, 1], range(2, 82))
    naive = NaiveTable(kinds)
    naive.update(data, [0, 1], range(2, 82))
    assert_same(table, naive)
    copy = GroupTable(table.keys, kinds)
    copy.merge(table.export())
    assert copy.finish() == table.finish()


def test_the_mean_of_integers_is_exact_where_their_sum_is_no_integer_of_64_bits():
    table = GroupTable(pa.schema([]), [("mean", pa.int64()), ("mean", pa.uint64())])
    table.update(batch(v=[2**63 - 1, 5, -(2**63)], u=pa.array([2**64 - 1, 2, 0], pa.uint64())), [], [0, 1])
    assert [column.to_pylist() for column in table.finish()] == [[4 / 3], [(2**64 + 1) / 3]]


@pytest.mark.parametrize(
    ("kind", "fits", "last"),
    [
        (pa.int64(), 2**63 - 2, 1),
        (pa.int64(), 1 - 2**63, -1),
        (pa.uint64(), 2**64 - 2, 1),
        (pa.uint64(), 2**63, 2**63 - 1),
    ],
)
@pytest.mark.parametrize("way", ["update", "accumulate", "running", "merge", "merge_slots", "pane"])
def test_a_sum_that_its_type_does_not_hold_is_an_error_that_names_its_key(kind, fits, last, way):
    """It wrapped: 2^63 - 1 and 1 made -2^63, in silence, in every kind of window."""
    aggregates = [("count", None), ("sum", kind)]

    def table_of(*numbers, sliding=False):
        table = (SlidingTable if sliding else GroupTable)(pa.schema([("k", pa.string())]), aggregates)
        if numbers:
            add(table, *numbers)
        return table

    def rows(*numbers):
        values = [0] * 700 + list(
            numbers
        )  # the group is found among others, in a block of its own and before more rows
        return batch(k=[f"k{i}" for i in range(700)] + ["full"] * len(numbers), v=pa.array(values, kind))

    def add(table, *numbers):
        table.update(rows(*numbers), [0], [-1, 1])

    table = table_of(fits)
    add(table, last)  # the greatest that there is
    assert table.finish(pa.array([700], pa.int32()))[2].to_pylist() == [fits + last]
    one = last if abs(last) == 1 else 1

    def go_on():
        if way == "update":
            add(table, 0, one, 0)
        elif way == "accumulate":
            table.accumulate(table.resolve(rows(one), [0]), rows(one), [-1, 1])
        elif way == "running":
            table.running(table.resolve(rows(one), [0]), rows(one), [-1, 1])
        elif way == "merge":
            table.merge(table_of(one).export())
        elif way == "merge_slots":
            other = table.resolve(batch(k=["other"], v=pa.array([one], kind)), [0])
            table.accumulate(other, batch(k=["other"], v=pa.array([one], kind)), [-1, 1])
            table.merge_slots(pa.array([700], pa.int32()), other)
        else:
            window = table_of(sliding=True)
            window.enter(table, 1)
            window.enter(table_of(one), 2)

    with pytest.raises(DataError, match=rf"a sum is more than {kind} holds: its key is k='full'"):
        go_on()


def test_variance_of_values_far_from_zero_keeps_its_digits():
    table, other = (GroupTable(pa.schema([]), [("variance", pa.float64())]) for _ in range(2))
    table.update(batch(v=[1e9 + i for i in range(50)]), [], [0])
    other.update(batch(v=[1e9 + i for i in range(50, 100)]), [], [0])
    table.merge(other.export())
    assert table.finish()[0].to_pylist() == [pytest.approx(100 * 101 / 12, rel=1e-12)]


# Hashes and selections


def test_the_hash_of_one_column_is_that_of_partition():
    for keys in (
        pa.array(["a", None, "b" * 30]),
        pa.array([1, -1, None]),
        pa.array([0.5, math.nan]),
        pa.array([b"1", b"2" * 15]),
    ):
        assert hash_columns([keys]) == hash_array(keys)
        picked = pa.array([1], pa.int32())
        assert hash_columns([keys], picked)[1] == hash_array(keys)[1]
    assert hash_columns([pa.array([7, None], pa.timestamp("ms"))]) == hash_array(pa.array([7, None]))


@pytest.mark.parametrize("size", range(36))
def test_texts_of_every_length_hash_as_they_are_defined(size):
    """One array ends with the text: nothing past its last byte may count."""
    text = bytes(range(65, 65 + size))
    head = bytes([0xA0 | size]) if size < 32 else bytes([0xD9, size])
    for keys in (pa.array([text.decode()]), pa.array(["x" * 20, text.decode(), "y" * 20]).slice(1, 1)):
        assert hash_columns([keys]).to_pylist() == [key_hash(head + text)]
    for keys in (pa.array([text], pa.binary()), pa.array([text], pa.binary(size))):
        assert hash_columns([keys]).to_pylist() == [key_hash(bytes([0xC4, size]) + text)]


def naive_combined(hashes: list[int]) -> int:
    h = hashes[0]
    for g in hashes[1:]:
        product = (g ^ K2) * (K0 ^ h)
        h = (((product & WORD) ^ (product >> 64)) + ((h << 27 | h >> 37) & WORD)) & WORD
    return h


def test_the_hash_of_several_columns_is_what_its_docstring_says():
    columns = [pa.array(["a", None, "b"]), pa.array([1, 2, None]), pa.array([True, False, None])]
    each = [hash_array(keys).to_pylist() for keys in columns]
    assert hash_columns(columns).to_pylist() == [naive_combined(list(row)) for row in zip(*each, strict=True)]
    # in checkpoints of users, as the hash of one column is
    assert hash_columns(columns).to_pylist()[0] == 0xEB99754771373B97
    assert hash_columns(columns[:2]) != hash_columns(columns[1::-1])


def test_what_cannot_be_hashed_is_refused():
    with pytest.raises(TypeError, match=r"list<item: int64>"):
        hash_columns([pa.array([[1]])])
    with pytest.raises(ValueError, match="no column"):
        hash_columns([])
    with pytest.raises(ValueError, match="2 and 1 rows"):
        hash_columns([pa.array([1, 2]), pa.array([1])])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.none() | st.booleans(), max_size=300), st.integers(0, 9), st.data())
def test_rows_are_selected_where_the_mask_is_true(values, skip, data):
    mask = pa.array([True] * skip + values, pa.bool_()).slice(skip)
    assert select_rows(mask).to_pylist() == [i for i, value in enumerate(values) if value]
    chosen = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=50)) if values else []
    selected = select_rows(mask, pa.array(chosen, pa.int32()))
    assert selected.type == pa.int32()
    assert selected.to_pylist() == [i for i in chosen if values[i]]


# Windows that slide


class Slider:
    """A window of `width` panes at most, moved as operators move it. A pane is a list of tables without a key in common."""

    def __init__(self, table: SlidingTable, width: int) -> None:
        self.table, self.width = table, width
        self.back: list[tuple[int, list[tuple[GroupTable, pa.Array]]]] = []
        self.front: deque[tuple[int, list[tuple[GroupTable, pa.Array]]]] = deque()
        self.number = 0

    def slide(self, pane: list[GroupTable], leave: int) -> None:
        """The pane comes, after so many have gone (those that are in the front)."""
        for _ in range(min(leave, len(self.front))):
            number, parts = self.front.popleft()
            for _, slots in reversed(parts):
                self.table.leave(number, slots)
        self.number += 1
        self.back.append((self.number, [(part, self.table.enter(part, self.number)) for part in pane]))
        for part, slots in self.back[-1][1]:
            assert key_rows(self.table, slots) == key_rows(part, part.slots())
        if not self.front and len(self.back) >= self.width:
            for number, parts in reversed(self.back):
                for part, slots in parts:
                    self.table.turn(part, number, slots)
                self.front.appendleft((number, parts))
            self.table.turned()
            self.back.clear()

    def __len__(self) -> int:
        return len(self.front) + len(self.back)


@settings(max_examples=60, deadline=None)
@given(designs(), st.integers(1, 4), st.lists(st.tuples(st.integers(0, 10), st.integers(0, 2)), max_size=9), st.data())
def test_a_window_that_slides_has_what_its_panes_have(design, width, steps, data):
    schema, aggregates = design
    aggregates = aggregates or [("count", None)]
    window = Slider(SlidingTable(schema, aggregates), width)
    drawn: list[Rows] = []
    for size, leave in steps:
        rows = Rows(schema, aggregates, size, data, ordered=True)
        later = pa.array([10 * len(drawn) + order.as_py() for order in rows.data.column(rows.order)], pa.int64())
        rows.data = rows.data.set_column(rows.order, "order", later)
        drawn.append(rows)
        pane = GroupTable(schema, aggregates)
        pane.update(rows.data, rows.keys, rows.arguments, rows.filters, order=rows.order)
        parts = [pane]
        if data.draw(st.booleans()):
            cut = data.draw(st.integers(0, len(pane)))
            parts = [GroupTable(schema, aggregates) for _ in range(2)]
            for part, slots in zip(parts, (pane.slots()[:cut], pane.slots()[cut:]), strict=True):
                part.merge(pane.export(slots))
        window.slide(parts, leave)
        naive = NaiveTable(aggregates)
        for rows in drawn[-len(window) :]:
            naive.update(rows.data, rows.keys, rows.arguments, rows.filters, order=rows.order)
        assert_same(window.table, naive)
        if data.draw(st.integers(0, 9)) == 0:
            window.table.clear()
            window = Slider(window.table, width)
            assert len(window.table) == 0


@pytest.mark.slow  # a second of a core, or more
def test_a_window_of_many_groups_slides_and_stays_small():
    dice = np.random.default_rng(5)
    table = SlidingTable(pa.schema([("k", pa.string())]), [("count", None), ("sum", pa.float64()), ("min", pa.int64())])
    window = Slider(table, 6)
    panes: list[tuple[np.ndarray, np.ndarray]] = []
    early = 0
    for step in range(40):
        keys, values = dice.integers(0, 3000, 1500) + 40 * step, dice.integers(-(2**20), 2**20, 1500)
        panes = [*panes[-5:], (keys, values)]
        pane = GroupTable(table.keys, [("count", None), ("sum", pa.float64()), ("min", pa.int64())])
        rows = batch(k=[f"key number {key}" for key in keys.tolist()], v=values / 64, w=values)
        pane.update(rows, [0], [-1, 1, 2])
        window.slide([pane], 1 if step >= 6 else 0)
        keys, values = (np.concatenate(part) for part in zip(*panes[-len(window) :], strict=True))
        there, at, times = np.unique(keys, return_inverse=True, return_counts=True)
        least = np.full(len(there), 2**62)
        np.minimum.at(least, at, values)
        wanted = zip(times.tolist(), np.bincount(at, values / 64).tolist(), least.tolist(), strict=True)
        got = {key: row for (key,), row in finished(table).items()}
        assert got == {("str", f"key number {k}"): list(row) for k, row in zip(there.tolist(), wanted, strict=True)}
        early = table.nbytes if step == 12 else early
    assert table.nbytes < 1.2 * early, "memory of groups that are gone is used again"


def test_a_pane_that_will_not_go_is_only_added():
    table, pane = SlidingTable(pa.schema([("k", pa.int64())]), [("count", None)]), counts()
    pane.update(batch(k=[1, 2, 2]), [0], [-1])
    for _ in range(3):
        table.enter(pane, 0)
    assert finished(table) == {(("int", 1),): [3], (("int", 2),): [6]}
    assert finished(pane) == {(("int", 1),): [1], (("int", 2),): [2]}


# Windows merged from the groups of one table


def check_spans(merge: WindowMerge, groups: list[Any], keys: list[Any], starts: list[int], width: int) -> None:
    """The groups of each result are those of its key in its window, in the order of their panes."""
    rows = [[canonical(value.as_py()) for value in row] for row in zip(*groups, strict=True)]
    rows = [rows[place] for place in merge.order().to_pylist()]
    assert sorted(merge.order().to_pylist()) == list(range(len(rows)))
    for place, (first, last) in enumerate(zip(*(each.to_pylist() for each in merge.spans()), strict=True)):
        key, start = [canonical(column[place].as_py()) for column in keys], starts[place]
        wanted = sorted(p[1] for *k, p in rows if k == key and start <= p[1] < start + width)
        assert [p[1] for *_, p in rows[first : last + 1]] == wanted
        assert all(k == key for *k, _ in rows[first : last + 1])


def merged(table: GroupTable, width: int, starts: list[int], rows: int) -> list[tuple[int, list[Any]]]:
    """The start of the window, the key and the results of each row, for windows of `width` panes."""
    panes = np.array(table.key_columns()[-1].to_pylist(), np.int64)
    order = np.argsort(panes, kind="stable")
    begin = np.array(starts, np.int64)
    slots, blocks = table.slots().take(pa.array(order)), panes[order] // width
    merge = WindowMerge(table, slots, *map(pa.array, (blocks, begin, begin + width, (begin + width - 1) // width)))
    found: list[tuple[int, list[Any]]] = []
    while (piece := merge.read(rows)) is not None:
        columns, windows = piece
        check_spans(
            merge,
            table.key_columns(slots),
            columns[: len(table.keys) - 1],
            [starts[w] for w in windows.to_pylist()],
            width,
        )
        del columns[len(table.keys) - 1]
        each = zip(*(column.to_pylist() for column in columns), strict=True) if columns else [()] * len(windows)
        found += [(starts[window], list(row)) for window, row in zip(windows.to_pylist(), each, strict=True)]
    return found


@settings(max_examples=60, deadline=None)
@given(designs(), st.integers(1, 7), st.lists(st.integers(0, 6), min_size=1, max_size=25), st.data())
def test_merged_windows_have_what_their_panes_have_and_depend_on_no_other_window(design, width, sizes, data):
    schema, aggregates = design
    aggregates = aggregates or [("count", None)]
    table = GroupTable(schema.append(pa.field("pane", pa.int64())), aggregates)
    first, drawn = data.draw(st.integers(-9, 9)), []
    for number, size in enumerate(sizes):
        rows = Rows(schema, aggregates, size, data, ordered=True)
        later = pa.array([10 * number + order.as_py() for order in rows.data.column(rows.order)], pa.int64())
        rows.data = rows.data.set_column(rows.order, f"c{rows.order}", later)
        drawn.append(rows)
        paned = rows.data.append_column("pane", pa.array([first + number] * size, pa.int64()))
        table.update(paned, [*rows.keys, paned.num_columns - 1], rows.arguments, rows.filters, order=rows.order)
    starts = [start for start in range(first - width, first + len(sizes) + 1) if data.draw(st.integers(0, 3))]
    found = merged(table, width, starts, data.draw(st.integers(1, 20)))
    assert [start for start, _ in found] == sorted(start for start, _ in found)
    for start in starts:
        naive = NaiveTable(aggregates)
        for rows in drawn[max(start - first, 0) : max(start - first + width, 0)]:
            naive.update(rows.data, rows.keys, rows.arguments, rows.filters, order=rows.order)
        of_window = [row for at, row in found if at == start]
        got = {tuple(map(canonical, row[: len(schema)])): row[len(schema) :] for row in of_window}
        wanted = naive.finish()
        assert len(of_window) == len(wanted)
        assert got.keys() == wanted.keys()
        for key, results in wanted.items():
            assert same(got[key], results), (key, got[key], results)
        assert sorted(map(repr, of_window)) == sorted(repr(row) for _, row in merged(table, width, [start], 1))


def test_a_sum_of_a_merged_window_that_its_type_does_not_hold_names_its_key():
    table = GroupTable(pa.schema([("k", pa.string()), ("__pane", pa.int64())]), [("sum", pa.int64())])
    rows = batch(k=["a", "b", "b"], p=[0, 0, 1], v=[1, 2**62, 2**62])
    slots = table.update(rows, [0, 1], [2], want_slots=True)
    for blocks, last in ([0, 0, 0], [0]), ([0, 0, 1], [1]):
        times = (pa.array(each, pa.int64()) for each in (blocks, [0], [2], last))
        with pytest.raises(DataError, match="its key is k='b'"):
            WindowMerge(table, slots, *times).read(10)


def test_windows_that_cannot_be_merged_are_refused():
    table = GroupTable(pa.schema([("pane", pa.int64())]), [("count", None)])
    slots = table.update(batch(p=[1, 2]), [0], [-1], want_slots=True)
    one, two, down = (pa.array(each, pa.int64()) for each in ([1], [1, 2], [2, 1]))
    with pytest.raises(ValueError, match="1 blocks for 2 groups"):
        WindowMerge(table, slots, one, two, two, two)
    with pytest.raises(ValueError, match="2 starts, 1 ends and 2 blocks"):
        WindowMerge(table, slots, two, two, one, two)
    for place in range(4):
        with pytest.raises(ValueError, match="must be ascending"):
            WindowMerge(table, slots, *(down if at == place else two for at in range(4)))
    with pytest.raises(IndexError, match="no group"):
        WindowMerge(table, pa.array([0, 7], pa.int32()), two, two, two, two)
    with pytest.raises(TypeError, match="the last key"):
        WindowMerge(GroupTable(pa.schema([]), [("count", None)]), pa.array([], pa.int32()), *[one[:0]] * 4)
    assert WindowMerge(table, slots, two, *[one[:0]] * 3).read(1) is None


def test_what_does_not_fit_a_sliding_window_is_refused():
    table, pane = SlidingTable(pa.schema([("k", pa.int64())]), [("count", None)]), counts()
    pane.update(batch(k=[1, 2]), [0], [-1])
    with pytest.raises(TypeError, match="a pane must be another table"):
        table.enter(table, 1)
    with pytest.raises(TypeError, match="the keys and aggregates of the window"):
        table.enter(GroupTable(pane.keys, [("sum", pa.int64())]), 1)
    for number in (-1, 2**31 - 1):
        with pytest.raises(ValueError, match="numbered from 1"):
            table.enter(pane, number)
    slots = table.enter(pane, 1)
    with pytest.raises(ValueError, match="1 slots for a pane of 2 groups"):
        table.turn(pane, 1, slots[:1])
    with pytest.raises(IndexError, match="no group"):
        table.turn(pane, 1, pa.array([0, 2], pa.int32()))
    with pytest.raises(ValueError, match="only 0 are in the front"):
        table.leave(1, slots)
    table.turn(pane, 1, slots)
    table.turned()
    table.leave(1, slots)
    assert len(table) == 0


# What is refused


@pytest.mark.parametrize(
    ("call", "error", "complaint"),
    [
        (lambda t: GroupTable(pa.schema([("k", pa.list_(pa.int8()))]), []), TypeError, "key 'k' cannot be list"),
        (lambda t: GroupTable(pa.schema([]), [("median", pa.int8())]), ValueError, "unknown aggregate 'median'"),
        (lambda t: GroupTable(pa.schema([]), [("sum", pa.date32())]), TypeError, "sum is not defined for date32"),
        (lambda t: GroupTable(pa.schema([]), [("max", pa.string())]), TypeError, "max of string"),
        (lambda t: GroupTable(pa.schema([]), [("sum", None)]), TypeError, "sum needs an argument"),
        (lambda t: t.update(batch(k=["a"], v=[1]), [0], [1]), TypeError, "column 'k' is string"),
        (lambda t: t.update(batch(k=[1], v=[1.0]), [0], [1]), TypeError, "column 'v' is double"),
        (lambda t: t.update(batch(k=[1], v=[1]), [0], [1], [0]), TypeError, "filter of aggregate 0"),
        (lambda t: t.update(batch(k=[1], v=[1]), [0], [2]), IndexError, "no column 2"),
        (lambda t: t.update(batch(k=[1], v=[1]), [0], [-1]), ValueError, r"aggregate 0 \(sum\) needs an argument"),
        (lambda t: t.update(batch(k=[1], v=[1]), [], [1]), ValueError, "0 key columns"),
        (lambda t: t.update(batch(k=[1], v=[1]), [0], []), ValueError, "0 arguments"),
        (lambda t: t.update(batch(k=[1], v=[1]), [0], [1], hashes=pa.array([1, 2], pa.uint64())), ValueError, "2 hashes"),
        (lambda t: t.update(batch(k=[1], v=[1]), [0], [1], hashes=pa.array([1])), TypeError, "hashes must be uint64"),
        (lambda t: t.update(batch(k=[1], v=[1]), [0], [1], selection=pa.array([1], pa.int32())), IndexError, "outside of the 1 rows"),
        (lambda t: t.update(pa.table({"k": [1]}), [0], [1]), TypeError, "not a Table"),
        (lambda t: t.accumulate(pa.array([0], pa.int32()), batch(k=[1], v=[1]), [1]), IndexError, "no group"),
        (lambda t: t.accumulate(pa.array([], pa.int32()), batch(k=[1], v=[1]), [1]), ValueError, "0 slots for 1 rows"),
        (lambda t: t.remove(pa.array([0], pa.int32())), IndexError, "no group"),
        (lambda t: t.finish(pa.array([-1], pa.int32())), IndexError, "no group"),
        (lambda t: t.finish(pa.array([None], pa.int32())), ValueError, "must not be null"),
        (lambda t: t.merge(batch(k=[1])), TypeError, "the table"),
        (lambda t: select_rows(pa.array([1])), TypeError, "a mask must be bool"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(
    call: Callable[[GroupTable], Any], error: type[Exception], complaint: str
):
    table = GroupTable(pa.schema([("k", pa.int64())]), [("sum", pa.int64())])
    with pytest.raises(error, match=complaint):
        call(table)
    assert len(table) == 0


def test_a_slot_is_removed_once():
    table = counts()
    table.update(batch(k=[1, 2]), [0], [-1])
    with pytest.raises(ValueError, match="twice"):
        table.remove(pa.array([0, 0], pa.int32()))
    table.remove(pa.array([0], pa.int32()))
    with pytest.raises(IndexError, match="no group"):
        table.remove(pa.array([0], pa.int32()))
