"""Timers by key: the kernel beside a plain Python twin, and the bytes that state stands under."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.flow.timers import EVENT, PROCESSING, TimerTable
from sabot._cython.groups.partition import hash_columns
from sabot._cython.text.records import key_rows, state_key

LEAST, MOST = -(2**63), 2**63 - 1


def ints(values: Any) -> pa.Int32Array:
    return pa.array(values, pa.int32())


def times(values: Any) -> pa.Int64Array:
    return pa.array(values, pa.int64())


class NaiveTimers:
    """TimerTable as a dict: (slot, at, kind, name) -> (serial of the slot, order in which it was set)."""

    def __init__(self) -> None:
        self.there: dict[tuple[int, int, int, str], tuple[int, int]] = {}
        self.serials: dict[int, int] = {}
        self.counts: dict[int, int] = {}
        self.numbers = 0
        self.held: set[tuple[int, int, int, str]] | None = None

    def set(self, slot: int, at: int, kind: int, name: str = "") -> bool:
        timer = (slot, at, kind, name)
        if timer in self.there:
            return False
        self.numbers += 1
        if not self.counts.get(slot):
            self.serials[slot] = self.numbers
        self.counts[slot] = self.counts.get(slot, 0) + 1
        self.there[timer] = (self.serials[slot], self.numbers)
        if self.held is not None and kind == PROCESSING:
            self.held.add(timer)
        return True

    def unset(self, slot: int, at: int, kind: int, name: str = "") -> bool:
        if self.there.pop((slot, at, kind, name), None) is None:
            return False
        self.counts[slot] -= 1
        if self.held is not None:
            self.held.discard((slot, at, kind, name))
        return True

    def due(self, limit: int, kind: int) -> list[tuple[int, int, int, str]]:
        found = [t for t in self.there if t[1] <= limit and t[2] == kind and t not in (self.held or ())]
        return sorted(found, key=lambda timer: (timer[1], *self.there[timer]))

    def take_one(self, limit: int, kind: int) -> tuple[int, int, str] | None:
        for slot, at, _, name in self.due(limit, kind)[:1]:
            self.unset(slot, at, kind, name)
            return slot, at, name
        return None

    def take(self, limit: int, kind: int, rows: int) -> list[tuple[int, int]]:
        seen: dict[int, int] = {}
        taken = []
        for slot, at, _, name in self.due(limit, kind)[:rows]:
            if seen.setdefault(slot, at) != at:
                break
            self.unset(slot, at, kind, name)
            taken.append((slot, at))
        return taken


def reloaded(table: TimerTable, mixed: Any = None) -> TimerTable:
    """Another table with the timers of this one."""
    timers = table.rows_of(ints(range(5)))
    if mixed is not None:
        timers = timers.take(pa.array(mixed.permutation(timers.num_rows)))
    new = TimerTable()
    new.put_back(timers.column("slot"), timers)
    assert len(new) == len(table)
    return new


TIMES = st.one_of(st.integers(-6, 6), st.sampled_from([LEAST, MOST, 1_700_000_000_000, 1_700_000_000_001]))
SLOTS, KINDS, NAMES = st.integers(0, 4), st.sampled_from([EVENT, PROCESSING]), st.sampled_from(["", "a", "b"])
STEP = st.one_of(
    st.tuples(st.just("set"), SLOTS, TIMES, KINDS, NAMES),
    st.tuples(st.just("unset"), SLOTS, TIMES, KINDS, NAMES),
    st.tuples(st.just("add"), st.lists(st.tuples(SLOTS, TIMES), max_size=8), KINDS),
    st.tuples(st.just("delete"), st.lists(st.tuples(SLOTS, TIMES), max_size=8), KINDS),
    st.tuples(st.just("take_one"), TIMES, KINDS),
    st.tuples(st.just("take"), TIMES, KINDS, st.integers(1, 6)),
    st.tuples(st.sampled_from(["reload", "hold", "release"])),
    st.tuples(st.just("move"), st.lists(SLOTS, min_size=1, max_size=3, unique=True)),
)


@settings(max_examples=250, deadline=None)
@given(st.lists(STEP, max_size=60))
def test_timers_fire_as_those_of_the_twin(steps: Any) -> None:
    table, twin = TimerTable(), NaiveTimers()
    for step, *given_ in steps:
        if step in ("set", "unset"):
            assert getattr(table, step)(*given_) == getattr(twin, step)(*given_)
        elif step in ("add", "delete"):
            pairs, kind = given_
            changed = getattr(table, step)(ints([s for s, _ in pairs]), times([at for _, at in pairs]), kind)
            one = twin.set if step == "add" else twin.unset
            assert changed == sum([one(slot, at, kind) for slot, at in pairs])
        elif step == "take_one":
            due = twin.due(*given_)
            assert table.next_slot(*given_) == (due[0][0] if due else None)
            assert table.take_one(*given_) == twin.take_one(*given_)
        elif step == "take":
            slots, at = table.take(*given_)
            assert list(zip(slots.to_pylist(), at.to_pylist(), strict=True)) == twin.take(*given_)
        elif step == "hold" and twin.held is None:
            table.hold(PROCESSING)
            twin.held = set()
        elif step == "release" and twin.held is not None:
            table.release(PROCESSING)
            twin.held = None
        elif step == "move":  # to the disk, and back
            moved = table.rows_of(ints(*given_))
            table.evict(ints(*given_))
            table.put_back(moved.column("slot"), moved)
        elif step == "reload" and twin.held is None:
            table = reloaded(table, np.random.default_rng(1))
        assert len(table) == len(twin.there)
        for kind in (EVENT, PROCESSING):
            soonest = table.soonest(kind)
            assert [at for _, at, *_ in twin.due(MOST, kind) if at < soonest] == []
    table.release(PROCESSING)
    twin.held = None
    for kind in (EVENT, PROCESSING):
        while (timer := twin.take_one(MOST, kind)) is not None:
            assert table.take_one(MOST, kind) == timer
        assert table.take_one(MOST, kind) is None
    assert len(table) == 0


def test_a_removed_timer_that_is_set_again_gets_back_its_place() -> None:
    table = TimerTable()
    for slot, name in ((1, "x"), (1, "y"), (2, "z")):
        table.set(slot, 5, EVENT, name)
    removed: list[Any] = [(*(table.take_one(5, EVENT) or ()), table.removed_from) for _ in range(2)]
    assert table.unset(2, 5, EVENT, "z")
    removed.append((2, 5, "z", table.removed_from))
    table.set(3, 5, EVENT, "later")
    for slot, at, name, place in reversed(removed):
        assert table.set(slot, at, EVENT, name, *place)
    assert [table.take_one(5, EVENT) for _ in range(4)] == [(1, 5, "x"), (1, 5, "y"), (2, 5, "z"), (3, 5, "later")]


def test_the_soonest_timer_is_known_without_taking_it() -> None:
    table = TimerTable()
    assert table.soonest(PROCESSING) == MOST
    for at in (700, -3, 900, 40):
        table.set(1, at, PROCESSING)
    table.set(1, -50, EVENT)
    seen = []
    while (at := table.soonest(PROCESSING)) != MOST:
        assert table.take_one(at - 1, PROCESSING) is None
        seen.append(at)
        assert table.take_one(at, PROCESSING) == (1, at, "")
        if at == 40:
            table.set(1, 12, PROCESSING)  # before what was given last
    assert seen == [-3, 40, 12, 700, 900]
    assert table.soonest(EVENT) == -50


def test_many_timers_fire_in_order_whatever_the_steps_of_the_watermark() -> None:
    random = np.random.default_rng(3)
    count = 30_000
    slots, at = random.permutation(count), 1_700_000_000_000 + random.integers(0, 40_000, count)
    table = TimerTable()
    for part in np.array_split(np.arange(count), 7):
        table.add(ints(slots[part]), times(at[part]), EVENT)
    given_slots, given_times = [], []
    watermark = 1_700_000_000_000
    while len(table):
        watermark += int(random.integers(0, 3000))
        late = random.integers(0, 5, 3)  # some are set again, in the past too
        table.add(ints(count + late), times(watermark - 500 + late), EVENT)
        while len((taken := table.take(watermark, EVENT, 1000))[0]):
            given_slots.append(taken[0].to_numpy())
            given_times.append(taken[1].to_numpy())
            assert (np.diff(given_times[-1]) >= 0).all()
            assert given_times[-1][-1] <= watermark
        if watermark > 1_700_000_041_000:
            break
    slots_given, times_given = np.concatenate(given_slots), np.concatenate(given_times)
    mine = slots_given < count
    np.testing.assert_array_equal(slots_given[mine], slots[np.argsort(at, kind="stable")])
    np.testing.assert_array_equal(times_given[mine], np.sort(at))


def test_keys_of_one_time_fire_in_the_order_in_which_they_got_their_first_timer() -> None:
    table = TimerTable()
    for slot, at in [(7, 9), (3, 5), (7, 5), (1, 5)]:
        table.set(slot, at, EVENT)
    assert [table.take_one(5, EVENT)[0] for _ in range(3)] == [7, 3, 1]  # type: ignore[index]
    table.set(3, 9, EVENT)
    table.set(1, 9, EVENT)
    assert [table.take_one(9, EVENT)[0] for _ in range(3)] == [7, 3, 1]  # type: ignore[index]


def test_memory_is_that_of_the_timers_that_are_there_not_of_those_that_were_deleted() -> None:
    table = TimerTable()
    for turn in range(200):
        slots = ints(np.arange(500))
        at = times(np.full(500, 10_000_000 + turn))
        table.add(slots, at, EVENT)
        table.delete(slots, at, EVENT)
        table.set(0, turn, PROCESSING, f"name {turn}")
        table.unset(0, turn, PROCESSING, f"name {turn}")
    assert len(table) == 0
    assert table.nbytes < 1_000_000
    assert table.statistics()["names"] == 0


def test_a_kept_table_gives_back_what_names_took() -> None:
    table = TimerTable()
    for turn in range(100):
        table.set(turn % 3, turn, EVENT, f"order {turn}")
        assert table.take_one(turn, EVENT) == (turn % 3, turn, f"order {turn}")
    assert table.statistics()["names"] == 0


def test_vacant_slots_are_those_without_a_timer_each_once() -> None:
    table = TimerTable()
    table.add(ints([4, 4, 5]), times([1, 2, 1]), EVENT)
    assert sorted(table.vacant(ints([9, 4, 9, 5, 8])).to_pylist()) == [8, 9]
    table.take(1, EVENT, 10)
    assert table.vacant(ints([])).to_pylist() == [5]
    table.take(2, EVENT, 10)
    table.add(ints([5]), times([7]), PROCESSING)
    assert table.vacant(ints([5, 4])).to_pylist() == [4]
    assert table.vacant(ints([])).to_pylist() == []


def test_the_guard_names_the_slot_that_sets_timers_without_end() -> None:
    table = TimerTable()
    table.guard(10)
    table.floor(100)
    table.add(ints([1] * 10), times(range(10)), EVENT)
    table.add(ints([2] * 50), times(range(101, 151)), EVENT)
    assert table.over == -1
    table.set(1, 11, EVENT)
    assert table.over == 1
    table.guard(10)
    assert table.over == -1
    table.add(ints([1] * 9), times(range(20, 29)), EVENT)
    assert table.over == -1


def test_soon_names_keys_whose_timers_are_next() -> None:
    table = TimerTable()
    table.add(ints(range(100)), times([1000 + 10 * i for i in range(100)]), EVENT)
    assert table.soon(999, EVENT, 10).to_pylist() == []
    table.delete(ints([3, 5]), times([1030, 1050]), EVENT)
    assert not {3, 5} & set(table.soon(1100, EVENT, 100).to_pylist())  # their keys may be gone
    first = table.soon(1100, EVENT, 10).to_pylist()
    assert 0 in first
    assert len(first) == 10


def test_arrays_may_be_slices_and_of_any_encoding() -> None:
    table = TimerTable()
    slots = pa.chunked_array([ints([9, 9, 1]), ints([2])]).combine_chunks().slice(2)
    table.add(slots, times([0, 0, 5, 6]).slice(2), EVENT)
    assert [table.take_one(9, EVENT) for _ in range(3)] == [(1, 5, ""), (2, 6, ""), None]


@pytest.mark.parametrize(
    ("slots", "at", "kind", "error"),
    [
        ([1], [1, 2], EVENT, ValueError),
        ([-1], [1], EVENT, IndexError),
        ([None], [1], EVENT, ValueError),
        ([1], [None], EVENT, ValueError),
        ([1], [1], 2, ValueError),
    ],
)
def test_what_cannot_be_a_timer_is_refused_before_anything_changes(slots: Any, at: Any, kind: int, error: type) -> None:
    table = TimerTable()
    with pytest.raises(error):
        table.add(ints(slots), times(at), kind)
    assert len(table) == 0
    with pytest.raises(TypeError):
        table.add(pa.array([1], pa.int64()), times([1]), EVENT)


# The keys of state

COLUMNS: dict[str, list[Any]] = {
    "text": ["", "a", "ü" * 40, None, "x" * 300, "a"],
    "binary": [b"", b"\xff", None, b"x" * 70_000, b"a", b"b"],
    "int64": [0, -1, 127, 128, None, -(2**63)],
    "uint64": [0, 2**64 - 1, 5, None, 1, 2],
    "int8": [1, -128, 127, None, 0, 3],
    "bool": [True, False, None, True, True, False],
    "double": [0.0, -0.0, float("nan"), 1.5, None, -1e300],
    "null": [None] * 6,
}


def column(name: str) -> Any:
    return pa.array(
        COLUMNS[name], getattr(pa, {"text": "string", "bool": "bool_", "double": "float64"}.get(name, name))()
    )


@pytest.mark.parametrize("name", COLUMNS)
def test_a_key_of_one_column_is_what_state_key_makes_of_the_value(name: str) -> None:
    keys = column(name)
    assert key_rows([keys], hash_columns([keys])) == [state_key(value) for value in keys.to_pylist()]
    part = keys.slice(2, 3)
    assert key_rows([part], hash_columns([part])) == [state_key(value) for value in part.to_pylist()]


def test_a_key_of_several_columns_is_an_array_behind_the_group_of_its_hash() -> None:
    columns = [column("text"), column("int64"), column("double")]
    hashes = hash_columns(columns)
    rows = key_rows(columns, hashes)
    for row, values, hash_ in zip(
        rows, zip(*(c.to_pylist() for c in columns), strict=True), hashes.to_pylist(), strict=True
    ):
        assert int.from_bytes(row[:2], "big") == hash_ % 1024
        assert row[2:] == state_key(values)[2:]
        assert len(msgspec.msgpack.decode(row[2:])) == 3


def test_columns_that_cannot_be_keys_are_refused() -> None:
    hashes = pa.array([1], pa.uint64())
    with pytest.raises(TypeError, match="timestamp"):
        key_rows([pa.array([datetime(2026, 1, 1, tzinfo=UTC)])], hashes)
    with pytest.raises(ValueError, match="2 rows"):
        key_rows([ints([1]), ints([1, 2])], hashes)
    with pytest.raises(ValueError, match="hashes"):
        key_rows([ints([1, 2])], hashes)
    with pytest.raises(ValueError, match="at least one column"):
        key_rows([], hashes)
