"""A cut of a table beside its naive twin: a copy of a dict, made at the same moment."""

import gc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.groups.keyed import GroupTable, SlidingTable, TableCut

KEYS = pa.schema([("name", pa.string()), ("number", pa.int32())])
AGGREGATES = [("sum", pa.int64()), ("last", pa.int64()), ("count", None)]
Groups = dict[Any, tuple[int, int, int]]


def rows_of(numbers: list[int], values: list[int]) -> pa.RecordBatch:
    """Every third name is longer than a cell has room for; every seventh number is null."""
    names = [f"name{'-' * (20 if n % 3 == 0 else 0)}{n}" for n in numbers]
    whole = [None if n % 7 == 0 else n for n in numbers]
    columns = [pa.array(names, pa.string()), pa.array(whole, pa.int32()), pa.array(values, pa.int64())]
    return pa.record_batch(columns, names=["name", "number", "value"])


def groups_of(batches: list[pa.RecordBatch]) -> Counter[Any]:
    """Each group of some exports, with how often it is there; `last` has its value without the order."""
    found: Counter[Any] = Counter()
    for batch in batches:
        columns = {name: batch.column(name).to_pylist() for name in batch.schema.names}
        keys = zip(columns["name"], columns["number"], strict=True)
        found.update(zip(keys, columns["0.sum"], columns["1.last"], columns["2.count"], strict=True))
    return found


def rest_of(cut: TableCut, rows: int = 1) -> list[pa.RecordBatch]:
    batches = []
    while (batch := cut.read(rows)) is not None:
        batch.validate(full=True)
        assert batch.schema.equals(cut.schema)
        batches.append(batch)
    return batches


class Twin:
    """A table and a dict, changed alike."""

    def __init__(self) -> None:
        self.table = GroupTable(KEYS, AGGREGATES)
        self.groups: Groups = {}
        self.dirty: set[Any] = set()

    def add(self, numbers: list[int], values: list[int], how: str = "update") -> None:
        batch = rows_of(numbers, values)
        if how == "update":
            self.table.update(batch, [0, 1], [2, 2, -1])
        elif how == "merge":
            other = GroupTable(KEYS, AGGREGATES)
            other.update(batch, [0, 1], [2, 2, -1])
            self.table.merge(rows_later(other.export()))
        else:
            slots = self.table.resolve(batch, [0, 1])
            (self.table.accumulate if how == "accumulate" else self.table.running)(slots, batch, [2, 2, -1])
        for key, value in zip(keys_of(batch), values, strict=True):
            total, _, count = self.groups.get(key, (0, 0, 0))
            self.groups[key] = total + value, value, count + 1
            self.dirty.add(key)

    def remove(self, numbers: list[int]) -> None:
        batch = rows_of(numbers, numbers)
        slots = self.table.resolve(batch, [0, 1], insert=False).to_numpy()
        self.table.remove(pa.array(np.unique(slots[slots >= 0]).astype(np.int32)))
        for key in keys_of(batch):
            self.groups.pop(key, None)
            self.dirty.discard(key)

    def clear(self) -> None:
        self.table.clear()
        self.groups.clear()
        self.dirty.clear()

    def fold(self) -> None:
        """The second group is added to the first, and is empty then."""
        slots = self.table.slots()
        if len(slots) > 1:
            (one, other) = zip(*(column.to_pylist() for column in self.table.key_columns(slots[:2])), strict=True)
            self.table.merge_slots(slots[:1], slots[1:2])
            a, b = self.groups[one], self.groups[other]
            latest = self.table.export(slots[:1]).column("1.last")[0].as_py()
            self.groups[one] = a[0] + b[0], latest, a[2] + b[2]
            self.groups[other] = (None, None, 0)  # type: ignore[assignment]
            self.dirty.update([one, other])
            self.remove([int(other[0].removeprefix("name").lstrip("-"))])

    def cut(self, turn: tuple[int, int] | None) -> tuple[TableCut, Counter[Any]]:
        """A cut, and what it has to give."""
        slots = self.table.slots().to_numpy()
        wanted = set(self.groups)
        following = 0
        if turn is not None:
            from_here = slots[slots >= turn[0]]
            taken = from_here[: turn[1]]
            following = 0 if len(taken) == len(from_here) else int(taken[-1]) + 1 if len(taken) else 0
            columns = self.table.key_columns(pa.array(taken, pa.int32()))
            wanted = self.dirty | set(zip(*(column.to_pylist() for column in columns), strict=True))
        cut = self.table.cut(turn)
        if turn is None or turn[1]:
            assert cut.next_slot == following
        assert len(cut) == len(wanted)
        assert not len(self.table.dirty())
        self.dirty = set()
        return cut, Counter((key, *self.groups[key]) for key in wanted)

    def check(self) -> None:
        groups = groups_of([self.table.export()])
        assert groups == Counter((key, *group) for key, group in self.groups.items())


def keys_of(batch: pa.RecordBatch) -> list[Any]:
    return list(zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True))


def rows_later(state: pa.RecordBatch) -> pa.RecordBatch:
    """The same groups, whose last value came after all others."""
    index = state.schema.get_field_index("1.order")
    later = pa.array(state.column(index).to_numpy() + (1 << 40))
    return state.set_column(index, state.schema.field(index), later)


SOME = st.tuples(st.integers(0, 2**32), st.integers(1, 900))  # seed, rows
STEP = st.one_of(
    st.tuples(st.sampled_from(["update", "accumulate", "running", "update"]), SOME),
    st.tuples(st.just("remove"), SOME),
    st.tuples(st.sampled_from(["clear", "fold"])),
    st.tuples(st.just("cut"), st.none() | st.tuples(st.integers(0, 3000), st.integers(0, 3000))),
    st.tuples(st.just("cut"), st.none() | st.tuples(st.integers(0, 3000), st.integers(0, 3000))),
    st.tuples(st.just("read"), st.integers(1, 1500)),
    st.tuples(st.just("read"), st.integers(1, 1500)),
    st.tuples(st.sampled_from(["rewind", "end", "close"])),
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2500), st.lists(STEP, max_size=25))
def test_a_cut_gives_each_group_once_as_it_was_whatever_happens_meanwhile(groups, steps):
    twin = Twin()
    twin.add(list(range(groups)), list(range(groups)))
    open_cuts: list[tuple[TableCut, Counter[Any], list[pa.RecordBatch]]] = []
    for what, *about in steps:
        if what in ("update", "accumulate", "running", "remove"):
            random = np.random.default_rng(about[0][0])
            numbers = random.integers(0, 3000, about[0][1]).tolist()
            if what == "remove":
                twin.remove(numbers)
            else:
                twin.add(numbers, random.integers(-50, 50, len(numbers)).tolist(), what)
        elif what in ("clear", "fold"):
            getattr(twin, what)()
        elif what == "cut":
            open_cuts.append((*twin.cut(about[0]), []))
        elif open_cuts:
            cut, wanted, got = open_cuts[-1]
            if what == "read":
                got += [batch for batch in [cut.read(about[0])] if batch is not None]
            elif what == "rewind":
                cut.rewind()
                got.clear()
            elif what == "end":
                assert groups_of(got + rest_of(cut)) == wanted
                cut.close()
                open_cuts.pop()
            else:
                cut.close()
                open_cuts.pop()
    twin.check()
    for cut, wanted, got in open_cuts:
        assert groups_of(got + rest_of(cut, 700)) == wanted
        assert cut.read(1) is None
        cut.rewind()
        assert groups_of(rest_of(cut, 700)) == wanted


def test_a_merge_into_a_cut_table_is_not_in_the_cut():
    twin = Twin()
    twin.add(list(range(2000)), [1] * 2000)
    cut, wanted = twin.cut(None)
    first = cut.read(1)
    twin.add(list(range(0, 4000, 2)), [5] * 2000, "merge")
    assert groups_of([first, *rest_of(cut)]) == wanted
    twin.check()


@pytest.mark.slow  # a second of a core, or more
@pytest.mark.parametrize("seed", range(4))
def test_a_thread_reads_the_cut_while_the_owner_goes_on(seed):
    """Growth, removal, compaction of long keys and new groups in old slots, all while the rows are copied."""
    random = np.random.default_rng(seed)
    twin = Twin()
    twin.add(list(range(30_000)), [1] * 30_000)
    with ThreadPoolExecutor(1) as pool:
        for turn in range(6):
            cut, wanted = twin.cut(None if turn % 2 == 0 else (int(random.integers(0, 20_000)), 5_000))
            started = Event()

            def read(cut: TableCut = cut, started: Event = started) -> list[pa.RecordBatch]:
                started.set()
                return rest_of(cut, int(cut.next_slot) % 3_000 + 1)

            reading = pool.submit(read)
            started.wait()
            for _ in range(4):
                numbers = random.integers(0, 60_000, 3_000).tolist()
                twin.add(numbers, numbers, ["update", "running"][turn % 2])
                twin.remove(random.integers(0, 60_000, 6_000).tolist())
            if turn == 4:
                twin.clear()
                twin.add(list(range(10_000)), [3] * 10_000)
            assert groups_of(reading.result()) == wanted
            cut.close()
    twin.check()


def test_a_cut_keeps_the_table_of_an_owner_who_has_dropped_it():
    twin = Twin()
    twin.add(list(range(100)), list(range(100)))
    cut, wanted = twin.cut(None)
    del twin
    gc.collect()
    assert groups_of(rest_of(cut)) == wanted


def test_a_table_without_columns_has_a_cut():
    table = GroupTable(pa.schema([]), [])
    table.update(pa.record_batch([pa.array([1, 2])], names=["a"]), [], [])
    cut = table.cut()
    batch = cut.read(10)
    assert len(cut) == batch.num_rows == 1
    assert batch.num_columns == 0
    assert cut.read(10) is None


def test_a_closed_cut_is_not_read_and_costs_the_owner_nothing():
    twin = Twin()
    twin.add([1, 2], [3, 4])
    cut, _ = twin.cut(None)
    cut.close()
    cut.close()
    with pytest.raises(RuntimeError, match="closed"):
        cut.read(1)
    twin.add([1, 2], [3, 4])
    twin.check()


def test_what_cannot_be_cut_is_refused():
    table = GroupTable(KEYS, AGGREGATES)
    for turn in [(-1, 1), (0, -1)]:
        with pytest.raises(ValueError, match="turn"):
            table.cut(turn)
    with pytest.raises(ValueError, match="rows"):
        table.cut().read(0)
    with pytest.raises(TypeError, match="panes"):
        SlidingTable(KEYS, AGGREGATES).cut()
