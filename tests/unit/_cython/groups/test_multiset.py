"""What is kept of values so that they can be taken away again, and values as bytes: beside plain Python twins."""

import datetime
import math
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.groups.multiset import Arrivals, DistinctNumbers, ExactSums, Multisets, join_keys, split_keys
from sabot._cython.rows.changes import Touches, weave
from sabot.engine.operators.aggregates.packed import (
    from_ordered,
    has_words,
    ordered,
    ordered_width,
    packed,
    unpacked,
    words,
)

FEW = settings(max_examples=40, deadline=None)
SLOTS = [0, 1, 7]


def values_of(keys: list[bytes]) -> pa.Array:
    return pa.array(keys, pa.binary())


# Distinct numbers of several filters

NUMBERS = st.sampled_from([0, 1, 2, 255, 2**32, 2**63, 2**64 - 1])


@FEW
@given(
    rows=st.lists(st.tuples(st.sampled_from(SLOTS), NUMBERS, st.integers(0, 7)), max_size=60),
    again=st.booleans(),
    gone=st.lists(st.sampled_from(SLOTS), unique=True),
)
def test_distinct_numbers_hold_a_set_for_each_filter(rows, again, gone):
    store, twin = DistinctNumbers(3, 8), {(slot, place): set() for slot in SLOTS for place in range(3)}
    for start in range(0, len(rows), 7):
        part = rows[start : start + 7]
        store.add([slot for slot, _, _ in part], [word for _, word, _ in part], [bits for _, _, bits in part])
    for slot, word, bits in rows:
        for place in range(3):
            if bits >> place & 1:
                twin[slot, place].add(word)
    store.remove(gone)
    twin |= {(slot, place): set() for slot in gone for place in range(3)}
    if again:
        other = DistinctNumbers(3, 8)
        for place in range(3):
            other.load(SLOTS, store.save(SLOTS, place), place)
        store = other
    for place in range(3):
        expected = [len(twin[slot, place]) for slot in SLOTS]
        assert store.differing([*SLOTS, 9_000], place).tolist() == [*expected, 0]
        values = Multisets()  # the states are those of multisets
        values.load(SLOTS, store.save(SLOTS, place))
        assert values.differing(SLOTS).tolist() == expected


def test_the_slots_of_distinct_numbers_grow_and_are_given_back():
    store = DistinctNumbers(1, 8)
    empty = store.nbytes
    store.add(np.zeros(10_000, np.int32), np.arange(10_000, dtype=np.uint64), np.ones(10_000, np.uint32))
    assert store.differing([0], 0).tolist() == [10_000]
    assert 16 * 10_000 < store.nbytes < 50 * 10_000
    store.clear()
    assert (store.nbytes, store.differing([0], 0).tolist()) == (empty, [0])


@pytest.mark.parametrize("state", [b"x", b"\1" + b"\0" * 7 + b"\2\0\0\0ab", b"\0" * 8 + b"\4\0\0\0abcd"])
def test_a_state_of_other_values_is_refused(state):
    with pytest.raises(ValueError, match=r"(a|the) state"):
        DistinctNumbers(1, 4).load([0], values_of([state]), 0)


def test_distinct_numbers_know_how_many_filters_there_are():
    store = DistinctNumbers(2, 8)
    for wrong in (lambda: store.add([0], [1], [4]), lambda: store.differing([0], 2), lambda: store.save([0], -1)):
        with pytest.raises(IndexError, match="filter"):
            wrong()
    with pytest.raises(ValueError, match="2 numbers, and filters of 1 rows"):
        store.add([0, 1], [1, 2], [1])


@pytest.mark.parametrize(
    "column",
    [
        pa.array([True, None, False]),
        pa.array([-128, 127, None, 0, 5], pa.int8()).slice(1),
        pa.array([-(2**63), 2**63 - 1, 0, None], pa.int64()),
        pa.array([0, 2**64 - 1, None], pa.uint64()),
        pa.array([-1.5, math.nan, -0.0, 0.0, math.inf, None]),
        pa.array([1.5, None, -2.25], pa.float32()),
        pa.array([-1, 0, None, 20_000], pa.date32()),
        pa.array([-1, 0, None], pa.timestamp("us", "UTC")),
        pa.array([], pa.int32()),
    ],
    ids=lambda column: str(column.type),
)
def test_words_are_the_bytes_that_sort_as_numbers(column):
    assert has_words(column.type)
    there = column.is_valid().to_pylist()
    found = [int(word) for word, valid in zip(words(column), there, strict=True) if valid]
    expected = [
        int.from_bytes(key, "big") for key, valid in zip(ordered(column).to_pylist(), there, strict=True) if valid
    ]
    assert found == expected
    assert all(word < 2 ** (8 * ordered_width(column.type)) for word in found)


# Multisets


WORDS = st.sampled_from([b"", b"a", b"b", b"ab", b"a\0", b"\0\0", b"\xff", b"a longer one than fits in a string"])


@FEW
@given(script=st.lists(st.tuples(st.sampled_from(SLOTS), WORDS, st.booleans()), max_size=60), again=st.booleans())
def test_multisets_hold_what_counters_hold(script, again):
    store, twin = Multisets(), {slot: Counter() for slot in SLOTS}
    rows = []
    for slot, key, take in script:
        take = take and twin[slot][key] > 0
        twin[slot][key] += -1 if take else 1
        rows.append((slot, key, take))
    for start in range(0, len(rows), 7):
        part = rows[start : start + 7]
        store.add([r[0] for r in part], values_of([r[1] for r in part]), np.array([r[2] for r in part], bool))
    if again:
        other = Multisets()
        other.load(SLOTS, store.save(SLOTS))
        store = other
    left = {slot: sorted((+counter).elements()) for slot, counter in twin.items()}
    asked = [*SLOTS, 3, 9000]
    assert store.differing(asked).tolist() == [len(set(left.get(slot, []))) for slot in asked]
    assert store.least(asked).to_pylist() == [min(left.get(slot, []), default=None) for slot in asked]
    assert store.greatest(asked).to_pylist() == [max(left.get(slot, []), default=None) for slot in asked]
    others = {slot: [key for key in keys if key != b"a"] or keys for slot, keys in left.items()}
    for found, pick in ((store.least(SLOTS, b"a"), min), (store.greatest(SLOTS, b"a"), max)):
        ends = [pick(left[slot], default=None) for slot in SLOTS]
        resorts = [pick(others[slot], default=None) for slot in SLOTS]
        assert found.to_pylist() == [resort if end == b"a" else end for end, resort in zip(ends, resorts, strict=True)]
    sizes, best = store.best(asked, 3)
    expected = [left.get(slot, [])[::-1][:3] for slot in asked]
    assert sizes.tolist() == [len(each) for each in expected]
    assert best.to_pylist() == [key for each in expected for key in each]
    store.remove(SLOTS)
    assert store.differing(SLOTS).tolist() == [0, 0, 0]


def test_a_slot_of_many_values_gives_them_all_back():
    rng = np.random.default_rng(1)
    keys = [b"%06d" % n for n in range(3000)]
    store = Multisets()
    empty = store.nbytes
    for order in (rng.permutation(3000), np.arange(3000), np.arange(3000)[::-1]):
        zeros = np.zeros(3000, np.int32)
        store.add(zeros, values_of([keys[n] for n in order]), zeros.astype(bool))
        assert store.best([0], 9999)[1].to_pylist() == keys[::-1]
        held = store.nbytes
        gone = rng.permutation(3000)
        for part in (gone[:2000], gone[2000:]):
            store.add(np.zeros(len(part), np.int32), values_of([keys[n] for n in part]), np.ones(len(part), bool))
            assert len(store.best([0], 9999)[1]) in (1000, 0)
        assert store.nbytes < held - 100_000 + empty
    assert store.differing([0]).tolist() == [0]


def test_what_cannot_be_is_refused():
    store = Multisets()
    with pytest.raises(IndexError, match="no slot -1"):
        store.add([-1], values_of([b"a"]), np.array([False]))
    with pytest.raises(TypeError, match="binary"):
        store.add([0], pa.array(["a"]), np.array([False]))
    with pytest.raises(ValueError, match="null"):
        store.add([0], values_of([None]), np.array([False]))
    with pytest.raises(ValueError, match="2 values"):
        store.add([0], values_of([b"a", b"b"]), np.array([False]))
    with pytest.raises(ValueError, match="middle of a value"):
        store.load([0], pa.array([b"abc"], pa.large_binary()))
    with pytest.raises(ValueError, match="middle of a value"):
        ExactSums().load([0], pa.array([b"abc"], pa.large_binary()))
    with pytest.raises(ValueError, match="middle of a value"):
        split_keys(pa.array([b"ab"], pa.large_binary()), [-1])


# Arrivals


@FEW
@given(
    script=st.lists(st.tuples(st.sampled_from(SLOTS), WORDS, st.integers(0, 3), st.booleans()), max_size=60),
    again=st.booleans(),
)
def test_arrivals_stand_by_order_and_then_as_they_came(script, again):
    store, twin = Arrivals(), {slot: [] for slot in SLOTS}
    for at, (slot, key, order, take) in enumerate(script):
        missing = store.add([slot], values_of([key]), [order], np.array([take]))
        rows = twin[slot]
        if not take:
            rows.append((order, at, key))
            rows.sort()
            continue
        same_order = [row for row in rows if row[0] == order and row[2] == key]
        equal = [row for row in rows if row[2] == key]
        assert missing == (not equal)
        if equal:
            rows.remove((same_order or equal)[0])
        if again:
            other = Arrivals()
            other.load(SLOTS, store.save(SLOTS))
            store = other
    asked = [*SLOTS, 5]
    left = [[row[2] for row in twin.get(slot, [])] for slot in asked]
    assert store.first(asked).to_pylist() == [each[0] if each else None for each in left]
    assert store.last(asked).to_pylist() == [each[-1] if each else None for each in left]
    sizes, found = store.all(asked)
    assert sizes.tolist() == [len(each) for each in left]
    assert found.to_pylist() == [key for each in left for key in each]
    store.remove(SLOTS)
    assert store.all(SLOTS)[0].tolist() == [0, 0, 0]


# ExactSums


REALS = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.1, 1e300, 1e-300, 5e-324, -0.0])


@FEW
@given(script=st.lists(st.tuples(REALS, st.booleans()), max_size=40), again=st.booleans())
def test_sums_of_reals_are_those_of_fractions(script, again):
    left: list[float] = []
    store = ExactSums(squares=True)
    for x, take in script:
        if take and left:
            x = left.pop(len(left) // 2)
        else:
            take = False
            left.append(x)
        store.add_reals([1], [x], np.array([take]))
        if again:
            other = ExactSums(squares=True)
            other.load([1], store.save([1]))
            store = other
    total, mean, variance = (
        column[0].as_py() for column in (store.sums([1]), store.means([1]), store.variances([1], 1))
    )
    if not left:
        assert total is None
        assert mean is None
        return
    if any(map(math.isnan, left)) or {math.inf, -math.inf} <= set(left):
        assert math.isnan(total)
    elif any(map(math.isinf, left)):
        assert total == mean == next(x for x in left if math.isinf(x))
    else:
        exact = sum(map(Fraction, left))
        assert total == as_float(exact)
        assert mean == pytest.approx(as_float(exact / len(left)), rel=1e-15, abs=5e-324)
    if len(left) < 2:
        assert variance is None
    elif not all(map(math.isfinite, left)):
        assert math.isnan(variance)
    else:
        exact = sum(map(Fraction, left))
        squares = sum(Fraction(x) ** 2 for x in left)
        expected = (squares - exact * exact / len(left)) / (len(left) - 1)
        assert variance == pytest.approx(as_float(expected), rel=1e-15, abs=5e-324)


def as_float(exact: Fraction) -> float:
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


@FEW
@given(
    numbers=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=30),
    signed=st.booleans(),
    wide=st.booleans(),
)
def test_sums_of_whole_numbers_are_exact(numbers, signed, wide):
    if wide:
        numbers = [n * 2**40 for n in numbers]
    elif not signed:
        numbers = [abs(n) for n in numbers]
    store = ExactSums()
    width = 2 if wide else 1
    words = np.array([[(n >> (64 * w)) & (2**64 - 1) for w in range(width)] for n in numbers], np.uint64)
    store.add_words(np.zeros(len(numbers), np.int32), words, signed or wide, np.zeros(len(numbers), bool))
    found, valid = store.whole([0, 5], 4)
    total = sum(int(word) << (64 * w) for w, word in enumerate(found[0]))
    assert total == sum(numbers) % 2**256
    assert valid.tolist() == [True, False]
    assert store.sums([0])[0].as_py() == float(sum(numbers))
    if abs(sum(numbers)) >= 2**63:
        with pytest.raises(OverflowError, match="more than 64 bits"):
            store.whole([0], 1)
    half = len(numbers) // 2
    store.add_words(np.zeros(half, np.int32), words[:half], signed or wide, np.ones(half, bool))
    assert store.sums([0])[0].as_py() == float(sum(numbers[half:]))


# Values as bytes


ANY_TYPE = {
    pa.int8(): [1, -5, None, 127],
    pa.uint64(): [2**64 - 1, 0, None, 7],
    pa.float64(): [1.5, -2.0, None, -math.inf],
    pa.float32(): [1.5, 0.25, None, -3.0],
    pa.bool_(): [True, False, None, True],
    pa.string(): ["a", "", "x\0y", None],
    pa.binary(): [b"\0", b"\0\0", None, b"\xff\0"],
    pa.binary(3): [b"abc", None, b"\0\0\0", b"zzz"],
    pa.decimal128(20, 3): [Decimal("1.25"), Decimal("-7.001"), None, Decimal(0)],
    pa.decimal256(60, 3): [Decimal("1.25"), Decimal("-7.001"), None, Decimal(0)],
    pa.date32(): [datetime.date(2020, 1, 1), None, datetime.date(1900, 1, 1), datetime.date(1970, 1, 1)],
    pa.timestamp("ms", "UTC"): [1, None, -5, 9],
    pa.list_(pa.string()): [["a", None], [], None, ["zz", "", ""]],
    pa.list_(pa.struct([("x", pa.int32()), ("y", pa.list_(pa.bool_()))])): [
        [{"x": 1, "y": [True, None]}, None],
        None,
        [],
        [{"x": None, "y": None}],
    ],
    pa.struct([("q", pa.string()), ("r", pa.float64())]): [
        {"q": "a", "r": None},
        None,
        {"q": None, "r": 2.0},
        {"q": "", "r": 1.0},
    ],
    pa.map_(pa.string(), pa.int32()): [[("k", 1)], [], None, [("a", None), ("b", 2)]],
    pa.list_(pa.int16(), 2): [[1, 2], [1, 3], None, [None, 4]],
    pa.null(): [None] * 4,
    pa.struct([]): [{}, None, {}, {}],
    pa.month_day_nano_interval(): [(1, 2, 3), None, (0, 0, 0), (5, 5, 5)],
}
NO_ORDER = (pa.null(), pa.month_day_nano_interval())


@pytest.mark.parametrize("start", [0, 1, 3])
def test_rows_of_any_columns_come_back_from_their_bytes(start):
    columns = [pa.array(values, kind).slice(start) for kind, values in ANY_TYPE.items()]
    rows = packed(columns, 4 - start)
    found = unpacked(pa.concat_arrays([rows, pa.nulls(1, pa.large_binary())]), list(ANY_TYPE))
    for column, back in zip(columns, found, strict=True):
        back.validate(full=True)
        assert back.type == column.type
        assert back.to_pylist() == [*column.to_pylist(), None]


@pytest.mark.parametrize(
    "kind", [kind for kind in ANY_TYPE if not (pa.types.is_nested(kind) or kind in NO_ORDER)], ids=str
)
def test_bytes_sort_as_values_do(kind):
    column = pa.array(ANY_TYPE[kind], kind).drop_null()
    keys = ordered(column).cast(pa.large_binary())
    assert from_ordered(keys, kind).equals(column)
    order = sorted(range(len(column)), key=lambda at: keys[at].as_py())
    assert [column[at].as_py() for at in order] == sorted(column.to_pylist())


@FEW
@given(rows=st.lists(st.tuples(WORDS, st.integers(0, 255), WORDS), min_size=1, max_size=12))
def test_joined_keys_sort_as_their_parts_do(rows):
    parts = [values_of([row[0] for row in rows]), values_of([bytes([row[1]]) for row in rows])]
    parts.append(values_of([row[2] for row in rows]))
    keys = join_keys(parts, [-1, 1, -1])
    assert [each.to_pylist() for each in split_keys(keys, [-1, 1, -1])] == [each.to_pylist() for each in parts]
    assert sorted(range(len(rows)), key=lambda at: keys[at].as_py()) == sorted(range(len(rows)), key=rows.__getitem__)


# Touched slots


@FEW
@given(batches=st.lists(st.lists(st.tuples(st.sampled_from([0, 1, 5, 3000]), st.integers(-9, 9))), max_size=4))
def test_touched_slots_come_once_with_their_latest_time(batches):
    touches = Touches()
    for rows in batches:
        slots = np.array([slot for slot, _ in rows], np.int32)
        found, first, places, latest = touches.of(slots, np.array([time for _, time in rows], np.int64))
        assert found.tolist() == list(dict.fromkeys(slots.tolist()))
        assert found[places].tolist() == slots.tolist()
        assert first.tolist() == [slots.tolist().index(slot) for slot in found.tolist()]
        assert latest.tolist() == [max(time for slot, time in rows if slot == each) for each in found.tolist()]
        assert touches.of(slots)[3] is None
    with pytest.raises(IndexError, match="no slot -1"):
        touches.of(np.array([-1], np.int32))


def test_weaving_wants_as_many_of_both():
    with pytest.raises(ValueError, match="`added` has 1 rows"):
        weave(np.ones(2, bool), np.ones(1, bool))
