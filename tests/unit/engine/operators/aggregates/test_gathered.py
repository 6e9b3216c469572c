"""Extras by slot beside a dict of lists of rows: rows come, slots are joined, emptied and used again, states go and come back."""

import math
from collections import defaultdict
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot.engine.operators.aggregates import gather as gathering
from sabot.engine.operators.aggregates import pairs
from sabot.engine.operators.aggregates.extras import Extras
from sabot.engine.operators.aggregates.gather import Gather, joined
from sabot.errors import UserError

SCHEMA = pa.schema([("text", pa.string()), ("number", pa.float64()), ("ok", pa.bool_()), ("t", pa.int64())])
TEXT, NUMBER, OK, T = range(4)
SLOTS = [0, 1, 2, 70, 150, 400]

Row = dict[str, Any]


class Texts:
    """A user's aggregate: how many texts, and their letters in order of the alphabet."""

    type = pa.string()

    def init(self) -> list[Any]:
        return [0, ""]

    def accumulate(self, state: list[Any], values: pa.Array) -> list[Any]:
        found = [v for v in values.to_pylist() if v is not None]
        return self.merge(state, [len(found), "".join(found)])

    def merge(self, state: list[Any], other: list[Any]) -> list[Any]:
        return [state[0] + other[0], "".join(sorted(state[1] + other[1]))]

    def finish(self, state: list[Any]) -> str:
        return f"{state[0]} {state[1]}"


def gather(name: str, kind: str, argument: int, by: int = -1, where: int = -1, function: Any = None) -> Gather:
    return Gather.of(name, kind, SCHEMA, argument, by=by, where=where, order=T, function=function)


def some(name: str, rows: list[Row]) -> list[Any]:
    return [row[name] for row in rows if row[name] is not None]


def by_time(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row["t"])


def best(rows: list[Row], pick: Callable[..., Row]) -> Any:
    ranked = [row for row in by_time(rows) if row["number"] is not None]
    return pick(ranked, key=lambda row: row["number"])["text"] if ranked else None


def summed(rows: list[Row]) -> str:
    found = some("text", rows)
    return f"{len(found)} {''.join(sorted(''.join(found)))}"


TWINS: list[tuple[Gather, Callable[[list[Row]], Any]]] = [
    (gather("all", "collect_list", TEXT), lambda rows: [row["text"] for row in by_time(rows)]),
    (
        gather("all_ok", "collect_list", NUMBER, where=OK),
        lambda rows: [row["number"] for row in by_time(rows) if row["ok"]],
    ),
    (gather("texts", "count_distinct", TEXT), lambda rows: len(set(some("text", rows)))),
    (gather("numbers", "count_distinct", NUMBER), lambda rows: len(set(some("number", rows)))),
    (gather("texts_each", "collect_set", TEXT), lambda rows: sorted(set(some("text", rows)))),
    (gather("numbers_each", "collect_set", NUMBER), lambda rows: sorted(set(some("number", rows)))),
    (gather("low", "min", TEXT), lambda rows: min(some("text", rows), default=None)),
    (gather("high", "max", TEXT), lambda rows: max(some("text", rows), default=None)),
    (gather("first", "first", TEXT), lambda rows: by_time(rows)[0]["text"] if rows else None),
    (gather("last", "last", TEXT), lambda rows: by_time(rows)[-1]["text"] if rows else None),
    (gather("least", "arg_min", TEXT, by=NUMBER), lambda rows: best(rows, min)),
    (gather("most", "arg_max", TEXT, by=NUMBER), lambda rows: best(rows, max)),
    (gather("user", "user", TEXT, function=Texts()), summed),
]
GATHERS = [one for one, _ in TWINS]


def ints(values: Any) -> pa.Int32Array:
    return pa.array(values, pa.int32())


def rows_for(step: int, slots: list[int]) -> list[Row]:
    """A row for each slot. Times are equal in one step and slot only, and do not grow from step to step."""
    return [
        {
            "text": None if (step + at) % 5 == 0 else "abcdefg"[(step * 3 + at * at) % 7],
            "number": None if (step + at) % 7 == 3 else float((step * 5 + at) % 4),
            "ok": (step + at) % 3 != 0,
            "t": step * 37 % 101 * 1000 + slot * 10 + at % 2,
        }
        for at, slot in enumerate(slots)
    ]


def add(extras: Extras, slots: list[int], rows: list[Row], backwards: bool) -> None:
    """With a selection where `backwards`: the data is the other way round, behind a row that is not meant."""
    if backwards:
        data = pa.RecordBatch.from_pylist([{"text": "none", "t": 0}, *rows[::-1]], SCHEMA)
        extras.add(ints(slots), data, ints(range(len(rows), 0, -1)))
    else:
        extras.add(ints(slots), pa.RecordBatch.from_pylist(rows, SCHEMA), None)


some_slots = st.lists(st.sampled_from(SLOTS), min_size=1, max_size=12)
each_once = st.lists(st.sampled_from(SLOTS), min_size=1, unique=True)
steps = st.one_of(
    st.tuples(st.just("add"), some_slots, st.booleans()),
    st.tuples(st.just("add"), some_slots, st.booleans()),
    st.tuples(st.just("merge"), some_slots, st.booleans()),
    st.tuples(st.just("move"), each_once, st.integers(1, 5)),
    st.tuples(st.just("remove"), each_once, st.none()),
    st.tuples(st.just("results"), some_slots, st.none()),
    st.tuples(st.just("states"), each_once, st.none()),
    st.tuples(st.just("clear"), st.just([]), st.none()),
)


@pytest.mark.one_in(2, "half a second of a core each")
@pytest.mark.parametrize("run_bytes", [1 << 29, 400])
@settings(max_examples=40, deadline=None)
@given(script=st.lists(steps, max_size=30))
def test_slots_hold_what_a_dict_of_rows_holds(run_bytes, script):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "REDUCE_ROWS", 16)
        patch.setattr(pairs, "PIECE_ROWS", 4)
        patch.setattr(pairs, "RUN_BYTES", run_bytes)
        extras, twin = Extras(GATHERS), defaultdict(list)
        for step, (verb, slots, how) in enumerate([*script, ("results", SLOTS, None)]):
            rows = rows_for(step, slots)
            if verb == "add":
                add(extras, slots, rows, how)
            elif verb == "merge":  # what another holder has; its slots lie otherwise
                other = Extras(GATHERS)
                add(other, [slot + 3 for slot in slots], rows, how)
                there = sorted(set(slots), reverse=how)
                names = [field.name for one in GATHERS for field in one.states]
                states = other.states(ints([slot + 3 for slot in there]))
                extras.merge(ints(there), pa.RecordBatch.from_arrays(states, names=names))
            elif verb == "move":  # the last slots into the first ones, in turn
                into, source = slots[:how], slots[how:]
                targets = [into[at % len(into)] for at in range(len(source))]
                extras.move(ints(targets), ints(source))
                for target, gone in zip(targets, source, strict=True):
                    twin[target] += twin.pop(gone, [])
            elif verb == "remove":
                extras.remove(ints(slots))
                for slot in slots:
                    twin.pop(slot, None)
            elif verb == "clear":
                extras.clear()
                twin.clear()
            elif verb == "states":
                again = Extras(GATHERS)
                names = [field.name for one in GATHERS for field in one.states]
                again.merge(ints(slots), pa.RecordBatch.from_arrays(extras.states(ints(slots)), names=names))
                check(again, twin, slots)
            else:
                check(extras, twin, slots)
            if verb in ("add", "merge"):
                for slot, row in zip(slots, rows, strict=True):
                    twin[slot].append(row)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=14), width=st.integers(1, 8), cut=st.integers(0, 14))
def test_ranges_of_slots_have_the_results_of_their_rows(sizes, width, cut):
    """As in windows of several panes: slots of one key, then those of another, in the order of their times."""
    extras, twin, slots, cut = Extras(GATHERS), {}, list(range(2 * len(sizes), 0, -2)), min(cut, len(sizes))
    for place, (slot, size) in enumerate(zip(slots, sizes, strict=True)):
        rows = rows_for(3, [slot] * size)
        twin[slot] = [{**row, "t": 10 * place + at} for at, row in enumerate(rows)]
        if rows:
            add(extras, [slot] * size, twin[slot], backwards=place % 2 == 1)
    ranges = [
        (max(end - width, least), end)
        for least, most in ((0, cut), (cut, len(slots)))
        for end in range(least + 1, most + 1)
    ]
    ranges = ranges[1::2] + ranges[::2]
    first, end = np.array(ranges).T
    found = extras.results_over(np.array(slots, np.int32), first, end - first)
    for (one, expected), column in zip(TWINS, found, strict=True):
        column.validate(full=True)
        assert column.type == one.type
        rows = [[row for slot in slots[begin:upto] for row in twin[slot]] for begin, upto in ranges]
        assert column.to_pylist() == [expected(each) for each in rows], one.name


def check(extras: Extras, twin: dict[int, list[Row]], slots: list[int]) -> None:
    for (one, expected), column in zip(TWINS, extras.results(ints(slots)), strict=True):
        column.validate(full=True)
        assert column.type == one.type
        assert column.to_pylist() == [expected(twin.get(slot, [])) for slot in slots], one.name


def test_rows_of_one_time_stay_in_the_order_in_which_they_came():
    extras = Extras([gather("all", "collect_list", TEXT), gather("a", "first", TEXT), gather("z", "last", TEXT)])
    came: list[str] = []
    for count in (8, 1, 1, 5, 1, 2, 1, 1, 9, 1):  # runs that are merged, and some that are not
        texts = [str(len(came) + at) for at in range(count)]
        came += texts
        add(extras, [2] * count + [1] * count, [{"text": text, "t": 5} for text in ["gone"] * count + texts], False)
        assert [column[0].as_py() for column in extras.results(ints([1]))] == [came, came[0], came[-1]]
        extras.remove(ints([2]))


def test_rows_without_a_time_are_last_in_a_list():
    extras = Extras([gather("all", "collect_list", TEXT)])
    rows = [{"text": text, "t": t} for text, t in zip("abcde", (None, 2, None, -(2**63), 2**63 - 1), strict=True)]
    add(extras, [1, 1, 1, 1, 1], rows, False)
    assert extras.results(ints([0, 1]))[0].to_pylist() == [[], ["d", "b", "e", "a", "c"]]
    extras.clear()
    add(extras, [1, 1, 1], [rows[4], rows[1], rows[3]], False)  # no null, and no sum of times that 64 bits hold
    assert extras.results(ints([1]))[0].to_pylist() == [["d", "b", "e"]]


class Written:
    """Counts the rows of all runs that are made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows, make = 0, pairs._Run

        def counted(batch: pa.RecordBatch, age: int) -> Any:
            self.rows += batch.num_rows
            return make(batch, age)

        monkeypatch.setattr(pairs, "_Run", counted)


@pytest.mark.one_in(2, "a third of a second of a core each")
@pytest.mark.parametrize("kept", [1_000, 50_000])
def test_slots_that_come_and_go_cost_what_they_hold_not_what_is_kept(monkeypatch, kept):
    """Sorting all that was kept, each time a few sessions were over, made an app slower with every open session."""
    extras = Extras([gather("all", "collect_list", TEXT)])
    data = pa.RecordBatch.from_pylist([{"text": "x", "t": 1}] * kept, SCHEMA)
    extras.add(ints(range(100, 100 + kept)), data, None)
    extras.results(ints([100]))
    written = Written(monkeypatch)
    steps, few = 500, data.slice(0, 100)
    for _ in range(steps):
        extras.add(ints(range(100)), few, None)
        assert extras.results(ints(range(100)))[0].to_pylist() == [["x"]] * 100
        extras.remove(ints(range(100)))
    assert written.rows < steps * 100 * math.log2(kept) + 2 * kept
    assert extras.nbytes < 200 * (kept + 200)


@pytest.mark.slow  # a second of a core, or more
def test_a_slot_that_is_joined_into_smaller_ones_is_not_moved_each_time(monkeypatch):
    """A session that grows to the left becomes, each time, a part of the new one before it."""
    extras = Extras([gather("all", "collect_list", TEXT)])
    data = pa.RecordBatch.from_pylist([{"text": "x", "t": 1}] * 10, SCHEMA)
    extras.add(ints([0] * 10), data, None)
    written = Written(monkeypatch)
    joins = 1_000
    for slot in range(1, joins + 1):
        extras.add(ints([slot] * 10), data, None)
        extras.move(ints([slot]), ints([slot - 1]))
    assert written.rows < 2 * joins * 10 * math.log2(joins * 10)
    assert len(extras.results(ints([joins]))[0][0]) == 10 * (joins + 1)


def test_emptied_slots_leave_no_memory_behind():
    extras = Extras([gather("all", "collect_list", TEXT), gather("texts", "count_distinct", TEXT)])
    data = pa.RecordBatch.from_pylist([{"text": "some text", "t": 1}] * 10_000, SCHEMA)
    slots = np.arange(10_000, dtype=np.int32)
    extras.add(ints(slots), data, None)
    for part in np.split(slots, 100):
        extras.remove(ints(part))
    assert extras.nbytes <= 2 * 12 * 10_000  # stamps of the slots that there have been, as the table keeps slots
    extras.clear()
    assert extras.nbytes == 0


class Broken(Texts):
    """Texts, of which one method does something else."""

    def __init__(self, method: str, does: Callable[..., Any]) -> None:
        setattr(self, method, does)

    def accumulate(self, state: Any, values: pa.Array) -> Any:
        return [len(values), ""]


def divide(*_: Any) -> Any:
    return 1 / 0


@pytest.mark.parametrize(
    ("method", "does", "message"),
    [
        ("init", divide, r"aggregate mine: Broken\.init: ZeroDivisionError: division by zero$"),
        ("accumulate", divide, r"Broken\.accumulate: ZeroDivisionError: division by zero; 2 rows, the first is 'a'"),
        ("merge", divide, r"aggregate mine: Broken\.merge: ZeroDivisionError"),
        ("finish", divide, r"aggregate mine: Broken\.finish: ZeroDivisionError"),
        (
            "finish",
            lambda state: 7 + state[0],
            r"Broken\.finish returned 9, which is not a string \(.*`type` of the aggregate",
        ),
    ],
)
def test_what_a_users_aggregate_raises_or_gives_wrongly_says_where(method, does, message):
    extras = Extras([gather("mine", "user", TEXT, function=Broken(method, does))])
    rows = [{"text": "a"}, {"text": "b"}]

    def run() -> None:
        add(extras, [1, 1], rows, False)
        if method == "finish":
            extras.results(ints([1]))
        extras.states(ints([1]))
        add(extras, [2, 2], rows, False)
        extras.move(ints([1]), ints([2]))

    with pytest.raises(UserError, match=message) as caught:
        run()
    assert isinstance(caught.value.__cause__, ZeroDivisionError | TypeError | pa.ArrowException)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (object(), r"type object; it is <object object"),
        ({"a"}, r"type set; it is \{'a'\}"),
        ([2, Decimal("1.5")], r"type decimal\.Decimal; it is \[2, Decimal\('1\.5'\)\]"),
        ({"last": date(2026, 1, 1)}, r"type datetime\.date"),
        ([2**70], r"OverflowError"),
    ],
    ids=["object", "set", "decimal", "date", "int"],
)
def test_a_state_that_would_come_back_as_another_type_is_refused(state, message):
    """After a restart, a set was a list and a decimal a text: the function failed, or added up texts."""
    extras = Extras([gather("mine", "user", TEXT, function=Broken("accumulate", lambda *_: state))])
    add(extras, [1], [{"text": "a"}], False)
    with pytest.raises(UserError, match=rf"Broken\.state cannot be saved: .*{message}"):
        extras.states(ints([1]))


@pytest.mark.parametrize("kind", [pa.decimal64(5, 2), pa.month_day_nano_interval(), pa.uuid()])
def test_types_that_cannot_be_compared_are_refused_when_built(kind):
    with pytest.raises(UserError, match=r"m: max of 'v', which is .*cast it"):
        Gather.of("m", "max", pa.schema([("v", kind)]), 0, by=-1, where=-1, order=-1)


def test_more_than_a_batch_can_hold_is_an_error_and_not_a_part_of_it(monkeypatch):
    batch = pa.RecordBatch.from_pylist([{"text": "x"}])
    overflown = SimpleNamespace(combine_chunks=lambda: pa.Table.from_batches([batch, batch]))  # offsets have 31 bits
    table = SimpleNamespace(from_batches=lambda batches: overflown)
    monkeypatch.setattr(gathering, "pa", SimpleNamespace(Table=table))
    with pytest.raises(UserError, match="2 GiB"):
        joined([batch, batch])
