"""The kernel of patterns beside a matcher that tries everything: random patterns over random rows, cut and restored anywhere."""

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.rows.pattern import TooManyPartials
from twins.pattern import OPS, Row, Spec, twin

BITS = 4
FAR = 2**40
TYPES = {"signed": pa.int64(), "unsigned": pa.uint64(), "float": pa.float64(), "bytes": pa.string()}
VALUES = {
    "signed": [None, -(2**62), -1, 0, 5],
    "unsigned": [None, 0, 3, 2**63, 2**64 - 1],
    "float": [None, -1.5, -0.0, 0.0, 7.25],
    "bytes": [None, "", "a", "ab", "é"],
}


# The kernel, driven


class Driven:
    """A table, keys as their own slots; `found` gathers (key, [(row, step), …]) by the rows' places in what was fed."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.table = spec, spec.table()
        self.numbers: dict[int, int] = {}
        self.found: list[tuple[int, list[tuple[int, int]]]] = []
        self.times: list[tuple[int, int, int]] = []
        self.weights: list[list[int]] = []  # of the rows of `found`
        self._fed = 0

    def feed(self, rows: list[Row], start: int = 0, sliced: bool = False) -> None:
        """`start`: so many rows before them are in the batch, and not in the selection; or the arrays are slices behind these."""
        padded = [Row(0, 0, [True] * BITS, None)] * start + rows
        columns = [pa.array([row.mask[bit] for row in padded], pa.bool_()) for bit in range(BITS)]
        time = pa.array([row.time for row in padded], pa.int64())
        value = pa.array([row.value for row in padded], TYPES[self.spec.kind])
        selection = pa.array(range(start, len(padded)), pa.int32()) if start else None
        if sliced:
            padded, selection, columns = rows, None, [column.slice(start) for column in columns]
            time, value, start = time.slice(start), value.slice(start), 0
        chosen, starts = self.table.choose(columns, len(padded), selection)
        assert set(starts.to_pylist()) <= set(chosen.to_pylist())
        slots = pa.array([padded[r].key for r in chosen.to_pylist()], pa.int32())
        self.table.begin(slots, time, [value])
        while not self.table.walk():
            self._take(start)
        self._take(start)
        self._fed += len(rows)

    def expire(self, watermark: int) -> None:
        while not self.table.expire(watermark):
            self._take(0)
        self._take(0)

    def _take(self, start: int) -> None:
        slots, first, last, _, offsets, steps, rows, weights, taken = (
            each.to_pylist() for each in self.table.matches()
        )
        for i, row in enumerate(taken):
            self.numbers[self.table.next_row - len(taken) + i] = self._fed + row - start
        for i, key in enumerate(slots):
            span = range(offsets[i], offsets[i + 1])
            self.found.append((key, [(self.numbers.get(rows[at], -1), steps[at]) for at in span]))
            self.weights.append([weights[at] for at in span])
            self.times.append((key, first[i], last[i]))

    def restart(self) -> None:
        partials, nodes = self.table.export()
        partials.validate(full=True)
        self.table = self.spec.table()
        self.table.load(partials, nodes, 1000)
        self.numbers = {1000 + row: self.numbers[row] for row in nodes.column("row").to_pylist() if row >= 0}

    def renumber(self) -> None:
        live = self.table.renumber().to_pylist()
        self.numbers = {i: self.numbers[row] for i, row in enumerate(live)}


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    count = draw(st.integers(1, 4))
    slots = draw(st.lists(st.tuples(st.integers(0, count - 1), st.booleans()), max_size=3, unique=True))
    asked = draw(st.sampled_from([0.0, 0.3, 0.8])) if slots else 0.0

    def test(below: int, own: int) -> Any:
        bit = draw(st.integers(-1 if draw(st.integers(0, 7)) == 0 else 0, BITS - 1))
        usable = [i for i, (step, _) in enumerate(slots) if step < below or step == own]
        conditions = []
        if usable and draw(st.floats(0, 1)) < asked:
            slot = draw(st.sampled_from(usable))
            conditions.append((draw(st.sampled_from(sorted(OPS))), slot, slots[slot][0] == own))
        return bit, conditions

    before = st.sampled_from(["then", "then", "next", "then_any"])
    steps = []
    for i in range(count):
        least = draw(st.sampled_from([1, 1, 1, 2]))
        most = draw(st.sampled_from([least, least, least + 1, None]))
        between = draw(before)
        greedy = between != "then_any" and draw(st.integers(0, 3)) == 0
        optional = count > 1 and draw(st.integers(0, 4)) == 0 and not (i == count - 1 and all(s[4] for s in steps))
        steps.append((least, most, draw(before), between, optional, greedy, test(i, i)))
    within = draw(st.none() | st.integers(0, 14))
    gaps = [[test(i, -1)] if i and draw(st.integers(0, 3)) == 0 else [] for i in range(count)]
    gaps.append([test(count, -1)] if within is not None and draw(st.integers(0, 3)) == 0 else [])
    kind = draw(st.sampled_from(sorted(TYPES)))
    return Spec(steps, gaps, slots, kind, within, draw(st.sampled_from(["past_last", "to_next", "none"])))


@st.composite
def feeds(draw: st.DrawFn) -> tuple[Spec, list[Row], list[int]]:
    spec = draw(specs())
    bit = st.sampled_from([True, True, True, False, None])
    row = st.tuples(
        st.integers(0, 1),
        st.integers(0, 3),
        st.lists(bit, min_size=BITS, max_size=BITS),
        st.sampled_from(VALUES[spec.kind]),
    )
    drawn = draw(st.lists(row, max_size=11))
    times = itertools.accumulate(step for _, step, _, _ in drawn)
    rows = [Row(key, time, mask, value) for (key, _, mask, value), time in zip(drawn, times, strict=True)]
    cuts = draw(st.lists(st.integers(0, len(rows)), max_size=4).map(sorted))
    return spec, rows, cuts


def expected(spec: Spec, rows: list[Row]) -> list[tuple[int, list[tuple[int, int]]]]:
    want = []
    for key in (0, 1):
        places = [i for i, row in enumerate(rows) if row.key == key]
        for match in twin(spec, [rows[i] for i in places]):
            want.append((key, [(places[r], step) for r, step in match]))
    return sorted(want)


@settings(max_examples=250, deadline=None)
@given(feeds(), st.integers(0, 5), st.sampled_from([1, 1 << 20]))
def test_matches_are_those_of_the_matcher_that_tries_everything(given_: Any, what: int, output_rows: int) -> None:
    spec, rows, cuts = given_
    spec.extra["output_rows"] = output_rows
    driven = Driven(spec)
    for low, high in itertools.pairwise([0, *cuts, len(rows)]):
        driven.feed(rows[low:high], start=what % 3 * 2, sliced=what == 5)
        if what >= 2 and high < len(rows):
            driven.expire(rows[high].time)
        if what >= 3:
            driven.restart()
        if what >= 4:
            driven.renumber()
    driven.expire(FAR)
    assert {weight for weights in driven.weights for weight in weights} <= {1}
    assert sorted(driven.found) == expected(spec, rows)
    if spec.within is not None:
        assert len(driven.table) == 0
        assert driven.table.live_nodes == 0
    for (key, match), (its, first, last) in zip(driven.found, driven.times, strict=True):
        assert (key, rows[match[0][0]].time) == (its, first)
        assert last == (first + spec.within if spec.gaps[-1] else rows[match[-1][0]].time)


def told(match: list[tuple[int, int]], keep: list[str]) -> list[tuple[int, int, int]]:
    """(row, step, weight) of a match, where not all rows are kept."""
    rows: list[tuple[int, int, int]] = []
    for step, group in itertools.groupby(match, lambda taken: taken[1]):
        places = [row for row, _ in group]
        if keep[step] == "count":
            rows.append((-1, step, len(places)))
        elif keep[step] == "ends" and len(places) > 1:
            rows += [(places[0], step, 1), (places[-1], step, len(places) - 1)]
        else:
            rows += [(place, step, 1) for place in places]
    return rows


@settings(max_examples=80, deadline=None)
@given(feeds(), st.booleans(), st.lists(st.sampled_from(["each", "ends", "count"]), min_size=4, max_size=4))
def test_matches_tell_what_is_kept_of_their_rows(given_: Any, restart: bool, keep: list[str]) -> None:
    spec, rows, cuts = given_
    spec.keeps = keep[: len(spec.steps)]
    driven = Driven(spec)
    for low, high in itertools.pairwise([0, *cuts, len(rows)]):
        driven.feed(rows[low:high])
        if restart:
            driven.restart()
            driven.renumber()
    driven.expire(FAR)
    found = [
        (key, [(*taken, weight) for taken, weight in zip(match, weights, strict=True)])
        for (key, match), weights in zip(driven.found, driven.weights, strict=True)
    ]
    assert sorted(found) == sorted((key, told(match, spec.keep)) for key, match in expected(spec, rows))


# One thing each

A = (1, 1, "then", "then", False, False, (0, []))
B = (1, 1, "then", "then", False, False, (1, []))


def spec_of(*steps: Any, within: int | None = None, skip: str = "past_last", **extra: Any) -> Spec:
    return Spec(list(steps), [[] for _ in range(len(steps) + 1)], [], "signed", within, skip, extra)


def rows_of(letters: str, key: int = 0) -> list[Row]:
    """Row i is at i ms; its letter is the bit that is set."""
    return [Row(key, i, ["abcd"[bit] == letter for bit in range(BITS)], None) for i, letter in enumerate(letters)]


def test_many_rows_at_any_offset_find_their_bits() -> None:
    rng = np.random.default_rng(3)
    whole = pa.array(rng.random(1000) < 0.3, mask=rng.random(1000) < 0.2)
    table = spec_of(A, B).table()
    for offset, length in itertools.product([0, 1, 7, 8, 63, 64, 65], [0, 1, 7, 63, 64, 65, 127, 500]):
        column = whole.slice(offset, length)
        none = pa.nulls(length, pa.bool_())
        chosen, starts = table.choose([column, none], length)
        want = [i for i, value in enumerate(column.to_pylist()) if value]
        assert chosen.to_pylist() == starts.to_pylist() == want


def test_a_row_that_nobody_waits_for_is_not_chosen() -> None:
    table = spec_of(A, B).table()
    columns = [pa.array([letter == want for letter in "xaxbxx"]) for want in "ab"]
    chosen, starts = table.choose(columns, 6)
    assert (chosen.to_pylist(), starts.to_pylist()) == ([1, 3], [1])


def test_partial_matches_go_when_the_watermark_has_passed_them() -> None:
    driven = Driven(spec_of(A, B, within=10))
    for start in range(0, 1000, 100):
        driven.feed([Row(start % 7, start + i, [True, False, False, False], None) for i in range(100)])
        driven.expire(start + 100)
        assert len(driven.table) == 10  # those of the last 10 ms can still be completed
        assert driven.table.live_nodes == 10
    driven.expire(2000)
    assert (len(driven.table), driven.table.live_nodes, driven.found) == (0, 0, [])


def test_keys_without_partial_matches_are_given_back_once() -> None:
    driven = Driven(spec_of(A, B, within=5))
    driven.feed([*rows_of("a", key=3), *rows_of("a", key=4), *rows_of("b", key=4)])
    assert driven.table.vacant().to_pylist() == [4]
    driven.expire(6)
    assert driven.table.vacant().to_pylist() == [3]
    assert driven.table.vacant().to_pylist() == []


def test_without_a_time_what_begins_later_and_is_as_far_is_not_kept() -> None:
    driven = Driven(spec_of(A, B))
    driven.feed(rows_of("a" * 5000))
    assert len(driven.table) == 1
    driven.feed(rows_of("b"))
    assert driven.found == [(0, [(0, 0), (5000, 1)])]


def test_a_loop_that_may_end_anywhere_keeps_one_for_each_beginning() -> None:
    loop = (1, None, "then", "then", False, False, (1, []))
    end = (1, 1, "then", "then", False, False, (2, []))
    driven = Driven(spec_of(A, loop, end, within=10**6))
    driven.feed(rows_of("a" + "b" * 5000))
    assert len(driven.table) == 1
    driven.feed([Row(0, 6000, [False, False, True, False], None)])
    assert [len(match) for _, match in driven.found] == [5002]


def test_too_many_rows_of_one_key_are_an_error_too() -> None:
    loop = (1, None, "then", "then", False, False, (1, []))
    driven = Driven(spec_of(A, loop, (*A[:-1], (2, [])), within=1000, max_rows=500))
    driven.feed(rows_of("a" * 10))
    driven.feed([Row(0, 10 + i, [False, True, False, False], None) for i in range(49)])
    with pytest.raises(TooManyPartials):
        driven.feed([Row(0, 100, [False, True, False, False], None)])


@pytest.mark.parametrize(("keep", "nodes"), [("each", 2525), ("ends", 75), ("count", 50)])
def test_what_need_not_be_told_of_a_loop_takes_no_memory(keep: str, nodes: int) -> None:
    loop = (1, None, "then", "then", False, False, (1, []))
    spec = spec_of(A, loop, (*A[:-1], (2, [])), within=1000)
    spec.keeps = ["each", keep, "each"]
    driven = Driven(spec)
    driven.feed(rows_of("a" * 25))
    driven.feed([Row(0, 25 + i, [False, True, False, False], None) for i in range(100)])
    assert len(driven.table) == 25
    assert driven.table.live_nodes == nodes
    driven.feed([Row(0, 200, [False, False, True, False], None)])
    assert sum(driven.weights[0]) == 102
    assert driven.table.live_nodes == 0


@pytest.mark.parametrize("output_rows", [1, 100, 1 << 20])
def test_too_many_partial_matches_of_one_key_are_an_error_that_names_it(output_rows: int) -> None:
    driven = Driven(spec_of(A, B, skip="none", max_partial=50, output_rows=output_rows))
    driven.feed(rows_of("a" * 50, key=7))
    with pytest.raises(TooManyPartials) as error:
        driven.feed(rows_of("a", key=7))
    assert error.value.args == (7,)


def test_matches_come_in_pieces() -> None:
    many = (1, 1, "then_any", "then", False, False, (1, []))
    driven = Driven(spec_of(A, many, skip="none", output_rows=10))
    rows = rows_of("aaa" + "b" * 40)
    columns = [pa.array([row.mask[bit] for row in rows]) for bit in range(BITS)]
    driven.table.choose(columns, len(rows))
    driven.table.begin(pa.array([0] * 43, pa.int32()), pa.array(range(43), pa.int64()), [pa.nulls(43, pa.int64())])
    sizes = []
    done = False
    while not done:
        done = driven.table.walk()
        sizes.append(len(driven.table.matches()[0]))
    assert sum(sizes) == 120
    assert max(sizes) < 10


@pytest.mark.parametrize(
    "change",
    [
        {"steps": []},
        {"steps": [(0, 1, "then", "then", False, False, (0, []))]},
        {"steps": [(2, 1, "then", "then", False, False, (0, []))]},
        {"steps": [(1, 2, "then", "then_any", False, True, (0, []))]},
        {"steps": [(1, 1, "then", "soon", False, False, (0, []))]},
        {"steps": [(1, 1, "then", "then", False, False, (63, []))]},
        {"gaps": [[], [(0, [])]]},
        {"skip": "all"},
        {"slots": [(1, True)]},
        {"steps": [(1, 1, "then", "then", False, False, (0, [("==", 0, False)]))]},
    ],
)
def test_plans_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    spec = spec_of(A)
    for name, value in change.items():
        setattr(spec, name, value)
    with pytest.raises(ValueError):
        spec.table()


def test_arrays_that_do_not_fit_are_refused() -> None:
    table = spec_of(A, B).table()
    bits = [pa.array([True, False])] * 2
    with pytest.raises(TypeError):
        table.choose([pa.array([1, 2])], 2)
    with pytest.raises(TypeError):
        table.choose(bits, 3)
    with pytest.raises(IndexError):
        table.choose(bits, 2, pa.array([2], pa.int32()))
    table.choose(bits, 2)
    time, value, slots = pa.array([1, 2]), pa.array([1, 2]), pa.array([0], pa.int32())
    with pytest.raises(ValueError):
        table.begin(pa.array([0, 0], pa.int32()), time, [value])
    with pytest.raises(ValueError):
        table.begin(slots, time, [])
    with pytest.raises(TypeError):
        table.begin(slots, time, [pa.array([1.0, 2.0])])
    with pytest.raises(ValueError):
        table.begin(slots, pa.array([None, 2], pa.int64()), [value])


def test_what_is_no_export_of_this_pattern_is_refused() -> None:
    driven = Driven(spec_of(A, B))
    driven.feed(rows_of("a"))
    partials, nodes = driven.table.export()
    other = spec_of(A, B).table()
    with pytest.raises(ValueError):
        other.load(nodes, partials, 0)
    with pytest.raises(ValueError):
        other.load(partials, nodes.slice(0, 0), 0)
    circle = nodes.set_column(1, "prev", pa.array([0]))
    with pytest.raises(ValueError):
        other.load(partials, circle, 0)


def changed(partials: pa.RecordBatch, **values: Any) -> pa.RecordBatch:
    """Partial matches with other values in the last row."""
    for name, value in values.items():
        place = partials.schema.get_field_index(name)
        column = pa.array([*partials.column(place).to_pylist()[:-1], value], partials.column(place).type)
        partials = partials.set_column(place, partials.schema.field(place), column)
    return partials


def test_a_complete_match_that_waits_comes_back_and_an_impossible_one_is_refused() -> None:
    """The match of `a b+` with the first two rows waits, because a third row may make it longer."""
    loop = (1, None, "next", "next", False, False, (1, []))
    spec = spec_of(A, loop, overlap="begun")
    driven = Driven(spec)
    driven.feed(rows_of("ab"))
    partials, nodes = driven.table.export()
    assert (len(driven.table), driven.found) == (2, [])
    longest = (1 << 63) - 1  # the bit of a complete match, and all bits of the ms from its first to its last row
    for other in (changed(partials, loop=True), changed(partials, first=(1 << 62) + 1, targets=longest)):
        with pytest.raises(ValueError, match="partial match 1 does not fit this pattern"):
            spec.table().load(other, nodes, 0)
    driven.restart()
    assert driven.table.flush(5)
    driven._take(0)
    assert driven.times == [(0, 0, 1)]


@pytest.mark.parametrize(
    ("column", "value"), [("targets", 1 << 9), ("count", 0), ("count", 2), ("start", -1), ("last", 1 << 62)]
)
def test_a_partial_match_that_no_rows_can_have_led_to_is_refused(column: str, value: int) -> None:
    """Of a checkpoint that somebody else has written: targets were followed to steps that the pattern does not have."""
    driven = Driven(spec_of(A, B))
    driven.feed(rows_of("a"))
    partials, nodes = driven.table.export()
    spec_of(A, B).table().load(partials, nodes, 0, 1)
    with pytest.raises(ValueError, match="node 0: a value is out of range"):
        spec_of(A, B).table().load(partials, nodes, 0, 0)  # of a row that is not there
    place = partials.schema.get_field_index(column)
    other = partials.set_column(place, partials.schema.field(place), pa.array([value], partials.column(place).type))
    with pytest.raises(ValueError, match="partial match 0 does not fit this pattern"):
        spec_of(A, B).table().load(other, nodes, 0, 1)
