"""Aggregates by group, each kind beside plain Python: in one go, in parts that are merged, and through an export."""

import math
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sabot.engine.operators.aggregates import pairs
from sabot.engine.operators.aggregates.aggregator import AggregateColumn, Aggregator
from sabot.errors import UserError

NAN = float("nan")
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("number", pa.float64()),
        ("small", pa.int8()),
        ("text", pa.string()),
        ("money", pa.decimal128(12, 2)),
        ("when", pa.timestamp("us", tz="UTC")),
        ("tags", pa.list_(pa.string())),
        ("place", pa.struct([("x", pa.int64()), ("y", pa.string())])),
        ("raw", pa.binary()),
        ("ok", pa.bool_()),
        ("t", pa.int64()),
    ]
)

Row = dict[str, Any]


def rows(seed: int, count: int) -> list[Row]:
    dice = random.Random(seed)

    def some(*values: Any) -> Any:
        return dice.choice([None, *values])

    return [
        {
            "key": some("a", "b", "", "longer than the others"),
            "number": some(NAN, 0.0, -0.0, dice.randrange(-999, 999) / 64, math.inf)
            if seed % 2
            else some(dice.randrange(-999, 999) / 64),
            "small": some(-128, 127, dice.randrange(10)),
            "text": some("x", "y", "", "ß" * 30),
            "money": some(Decimal(dice.randrange(-(10**6), 10**6)) / 100),
            "when": some(dice.randrange(10**6)),
            "tags": some([], ["p", None], ["q"]),
            "place": some({"x": 1, "y": None}, {"x": None, "y": "here"}),
            "raw": some(b"", b"\xff", b"zz"),
            "ok": some(True, False),
            "t": dice.randrange(20),
        }
        for _ in range(count)
    ]


def batch(data: list[Row]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(data, SCHEMA)


# The twins: a group's rows, in order of arrival -> the result.


def values(name: str, keep_nan: bool = False) -> Callable[[list[Row]], list[Any]]:
    def some(group: list[Row]) -> list[Any]:
        found = [row[name] for row in group if row[name] is not None]
        return found if keep_nan else [v for v in found if v == v]

    return some


def one(pick: Callable[[list[Any]], Any], name: str) -> Callable[[list[Row]], Any]:
    return lambda group: pick(values(name)(group)) if values(name)(group) else None


def by_time(group: list[Row]) -> list[Row]:
    return sorted(group, key=lambda row: row["t"])


def arg(pick: Callable[..., Row], name: str, by: str) -> Callable[[list[Row]], Any]:
    def result(group: list[Row]) -> Any:
        ranked = [row for row in by_time(group) if row[by] is not None and row[by] == row[by]]
        return pick(ranked, key=lambda row: row[by])[name] if ranked else None

    return result


def variance(ddof: int) -> Callable[[list[Row]], Any]:
    def result(group: list[Row]) -> Any:
        found = values("number", keep_nan=True)(group)
        if len(found) <= ddof:
            return None
        if any(not math.isfinite(v) for v in found):
            return NAN
        mean = math.fsum(found) / len(found)
        return math.fsum((v - mean) ** 2 for v in found) / (len(found) - ddof)

    return result


def root(of: Callable[[list[Row]], Any]) -> Callable[[list[Row]], Any]:
    return lambda group: None if of(group) is None else math.sqrt(of(group))


def where(twin: Callable[[list[Row]], Any]) -> Callable[[list[Row]], Any]:
    return lambda group: twin([row for row in group if row["ok"]])


def distinct(name: str) -> Callable[[list[Row]], int]:
    def result(group: list[Row]) -> int:
        found = values(name, keep_nan=True)(group)
        return len({v for v in found if v == v}) + any(v != v for v in found)

    return result


class Longest:
    """A user's aggregate: the longest texts and how many rows there were."""

    type = pa.struct([("longest", pa.string()), ("rows", pa.int64())])

    def init(self) -> list[Any]:
        return [None, 0]

    def accumulate(self, state: list[Any], texts: pa.Array) -> list[Any]:
        for text in texts.to_pylist():
            state = self.merge(state, [text, 1])
        return state

    def merge(self, state: list[Any], other: list[Any]) -> list[Any]:
        return [
            max((s for s in (state[0], other[0]) if s is not None), key=lambda s: (len(s), s), default=None),
            state[1] + other[1],
        ]

    def finish(self, state: list[Any]) -> dict[str, Any]:
        return {"longest": state[0], "rows": state[1]}


class Width(Longest):
    """Without an argument it gets all columns."""

    type = pa.int64()

    def accumulate(self, state: list[Any], rows: pa.RecordBatch) -> list[Any]:
        return [None, state[1] + rows.num_rows * rows.num_columns]

    def finish(self, state: list[Any]) -> int:
        return state[1]


CALLS: list[tuple[AggregateColumn, Callable[[list[Row]], Any]]] = [
    (AggregateColumn("count", "count"), len),
    (AggregateColumn("count_ok", "count", where="ok"), where(len)),
    *[
        (AggregateColumn(f"count_{n}", "count", n), lambda g, n=n: sum(r[n] is not None for r in g))
        for n in ("number", "text", "tags", "money")
    ],
    (AggregateColumn("count_text_ok", "count", "text", where="ok"), where(lambda g: len(values("text")(g)))),
    (AggregateColumn("sum_small", "sum", "small"), one(sum, "small")),
    (AggregateColumn("sum_ok", "sum", "ok"), one(sum, "ok")),
    (AggregateColumn("sum_money", "sum", "money"), one(sum, "money")),
    (AggregateColumn("mean_small", "mean", "small"), one(lambda v: sum(v) / len(v), "small")),
    (AggregateColumn("mean_money", "mean", "money"), one(lambda v: float(sum(v) / len(v)), "money")),
    (AggregateColumn("variance", "variance", "number"), variance(1)),
    (AggregateColumn("stddev", "stddev", "number"), root(variance(1))),
    (AggregateColumn("stddev_0", "stddev", "number", ddof=0), root(variance(0))),
    (AggregateColumn("variance_2", "variance", "number", ddof=2, where="ok"), where(variance(2))),
    *[(AggregateColumn(f"min_{n}", "min", n), one(min, n)) for n in ("small", "text", "money", "when", "raw", "ok")],
    *[(AggregateColumn(f"max_{n}", "max", n), one(max, n)) for n in ("small", "text", "money", "when", "raw", "ok")],
    (
        AggregateColumn("min_number", "min", "number"),
        lambda g: min(values("number")(g), default=NAN if values("number", True)(g) else None),
    ),
    (
        AggregateColumn("max_number", "max", "number"),
        lambda g: max(values("number")(g), default=NAN if values("number", True)(g) else None),
    ),
    (AggregateColumn("max_text_ok", "max", "text", where="ok"), where(one(max, "text"))),
    *[
        (AggregateColumn(f"first_{n}", "first", n), lambda g, n=n: by_time(g)[0][n])
        for n in ("small", "text", "tags", "place", "money")
    ],
    *[(AggregateColumn(f"any_{n}", "any", n), lambda g, n=n: by_time(g)[0][n]) for n in ("small", "text")],
    *[
        (AggregateColumn(f"last_{n}", "last", n), lambda g, n=n: by_time(g)[-1][n])
        for n in ("small", "text", "tags", "place", "ok")
    ],
    *[
        (AggregateColumn(f"distinct_{n}", "count_distinct", n), distinct(n))
        for n in ("number", "small", "text", "money", "when", "raw", "ok")
    ],
    (AggregateColumn("distinct_small_ok", "count_distinct", "small", where="ok"), where(distinct("small"))),
    *[
        (AggregateColumn(f"list_{n}", "collect_list", n), lambda g, n=n: [r[n] for r in by_time(g)])
        for n in ("small", "text", "tags", "place", "money")
    ],
    (
        AggregateColumn("list_where", "collect_list", "text", where="ok"),
        where(lambda g: [r["text"] for r in by_time(g)]),
    ),
    (AggregateColumn("least_number", "arg_min", "text", by="number"), arg(min, "text", "number")),
    (AggregateColumn("most_number", "arg_max", "place", by="number"), arg(max, "place", "number")),
    (AggregateColumn("least_text", "arg_min", "small", by="text"), arg(min, "small", "text")),
    (AggregateColumn("most_money", "arg_max", "number", by="money", where="ok"), where(arg(max, "number", "money"))),
    (
        AggregateColumn("longest", "user", "text", function=Longest(), where="ok"),
        where(lambda g: {"longest": one(lambda v: max(v, key=lambda s: (len(s), s)), "text")(g), "rows": len(g)}),
    ),
    (AggregateColumn("cells", "user", function=Width()), lambda g: len(g) * len(SCHEMA)),
]


def normal(value: Any) -> Any:
    """What equal results have in common: NaN is itself, times are numbers."""
    if isinstance(value, float) and value != value:
        return "NaN"
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-9, abs=1e-9)
    if isinstance(value, list):
        return [normal(v) for v in value]
    return value


def numbers(result: pa.RecordBatch) -> list[Row]:
    columns = [c.cast(pa.int64()) if pa.types.is_timestamp(c.type) else c for c in result.columns]
    return pa.RecordBatch.from_arrays(columns, names=result.schema.names).to_pylist()


def check(
    found: list[pa.RecordBatch],
    data: list[Row],
    calls: list[tuple[AggregateColumn, Any]] = CALLS,
    keys: tuple[str, ...] = ("key",),
) -> None:
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in data:
        groups[tuple(row[key] for key in keys)].append(row)
    results = {tuple(row[key] for key in keys): row for part in found for row in numbers(part)}
    assert results.keys() == groups.keys()
    for key, group in groups.items():
        for call, twin in calls:
            assert normal(twin(group)) == normal(results[key][call.name]), (key, call.name)


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_every_kind_gives_what_plain_python_gives(seed, monkeypatch):
    monkeypatch.setattr(pairs, "REDUCE_ROWS", 16)  # so that a few rows are reduced several times
    data = rows(seed, 120)
    aggregator = Aggregator(["key"], [call for call, _ in CALLS], SCHEMA, order="t")
    table, extras = aggregator.table(), aggregator.extras()
    order = np.array(random.Random(seed).sample(range(200), 120), np.int32)
    for begin in range(0, 120, 30):  # rows lie anywhere in a batch; its selection says which, in order
        around: list[Row] = [data[0]] * 200
        for row, place in zip(data[begin : begin + 30], order, strict=False):
            around[place] = row
        aggregator.add(table, extras, batch(around), pa.array(order[:30]))
    found = aggregator.finish(table, extras)
    assert found.schema == aggregator.schema
    found.validate(full=True)
    check([found], data)


@pytest.mark.one_in(6, "a fifth of a second of a core each")
@pytest.mark.parametrize("seed", [4, 5])
@pytest.mark.parametrize("keys", [(), ("key",), ("key", "small")])
def test_parts_that_are_merged_give_what_one_table_gives(seed, keys):
    data = rows(seed, 90)
    aggregator = Aggregator(keys, [call for call, _ in CALLS], SCHEMA, order="t")
    whole, whole_extras = aggregator.table(), aggregator.extras()
    for begin in range(0, 90, 30):
        part, extras = aggregator.table(), aggregator.extras()
        aggregator.add(part, extras, batch(data[begin : begin + 30]))
        for state in aggregator.export_of(part, extras):
            assert state.schema == aggregator.states
            state.validate(full=True)
            rows_of_state = pa.array(range(state.num_rows), pa.int32())
            aggregator.merge(whole, whole_extras, state, None if begin else rows_of_state)
    check(list(aggregator.results_of(whole, whole_extras)), data, keys=keys)


def test_a_group_without_values_has_nulls_and_empty_lists():
    data = [{"key": "a", "t": 1, "ok": False}]
    calls = [call for call, _ in CALLS if call.kind != "user"]
    aggregator = Aggregator(["key"], calls, SCHEMA, order="t")
    table, extras = aggregator.table(), aggregator.extras()
    aggregator.add(table, extras, batch(data))
    [found] = numbers(aggregator.finish(table, extras))
    for call in calls:
        if call.kind in ("count", "count_distinct"):
            assert found[call.name] == (1 if call.name in ("count", "distinct_ok") else 0)
        elif call.kind == "collect_list":
            assert found[call.name] == ([] if call.where else [None])
        elif call.name == "last_ok":
            assert found[call.name] is False
        elif call.argument != "ok":
            assert found[call.name] is None, call.name


def test_without_an_order_the_first_to_come_is_first_also_after_a_merge():
    calls = [
        AggregateColumn("first", "first", "text"),
        AggregateColumn("last", "last", "text"),
        AggregateColumn("all", "collect_list", "text"),
    ]
    aggregator = Aggregator([], calls, SCHEMA)
    parts = []
    for texts in (["c", "a"], ["b", "d"]):
        table, extras = aggregator.table(), aggregator.extras()
        aggregator.add(table, extras, batch([{"text": text, "t": 0} for text in texts]))
        parts.extend(aggregator.export_of(table, extras))
    table, extras = aggregator.table(), aggregator.extras()
    for part in parts:
        aggregator.merge(table, extras, part)
    aggregator.add(table, extras, batch([{"text": "z", "t": 0}]))
    assert aggregator.finish(table, extras).to_pylist() == [
        {"first": "c", "last": "z", "all": ["c", "a", "b", "d", "z"]}
    ]


@pytest.mark.parametrize("unit", ["s", "ns"])
def test_the_row_with_the_shortest_wait_is_found(unit):
    """pyarrow, which reduces the rows, has no least duration: the app ended with an InternalError."""
    waits = pa.array([3000, -5, None, -5, 7], pa.duration(unit))
    schema = pa.schema([("n", pa.int64()), ("wait", waits.type)])
    calls = [AggregateColumn("least", "arg_min", "n", by="wait"), AggregateColumn("most", "arg_max", "n", by="wait")]
    aggregator = Aggregator([], calls, schema)
    table, extras = aggregator.table(), aggregator.extras()
    aggregator.add(table, extras, pa.RecordBatch.from_arrays([pa.array(range(5)), waits], schema=schema))
    assert aggregator.finish(table, extras).to_pylist() == [{"least": 1, "most": 0}]


def test_extras_move_and_go_with_their_slots():
    calls = [
        AggregateColumn("all", "collect_list", "text"),
        AggregateColumn("longest", "user", "text", function=Longest()),
    ]
    aggregator = Aggregator(["key"], calls, SCHEMA, order="t")
    table, extras = aggregator.table(), aggregator.extras()
    aggregator.add(table, extras, batch([{"key": k, "text": k * 2, "t": t} for t, k in enumerate("abcab")]))
    extras.move(pa.array([0], pa.int32()), pa.array([2], pa.int32()))
    extras.remove(pa.array([1], pa.int32()))
    lists, longest = extras.results(pa.array([2, 1, 0, 9], pa.int32()))
    assert lists.to_pylist() == [[], [], ["aa", "cc", "aa"], []]
    assert [value["rows"] for value in longest.to_pylist()] == [0, 0, 3, 0]
    extras.clear()
    assert extras.results(pa.array([0], pa.int32()))[0].to_pylist() == [[]]


def test_memory_is_by_what_must_be_kept_not_by_the_rows():
    calls = [
        AggregateColumn("low", "min", "text"),
        AggregateColumn("kinds", "count_distinct", "small"),
        AggregateColumn("opening", "first", "text"),
    ]
    aggregator = Aggregator(["key"], calls, SCHEMA, order="t")
    table, extras = aggregator.table(), aggregator.extras()
    many = batch([{"key": "a", "text": "some text", "small": 1, "t": 1}] * 10_000)
    largest = 0
    for _ in range(40):
        aggregator.add(table, extras, many)
        largest = max(largest, extras.nbytes)
    assert largest < 3 * (pairs.REDUCE_ROWS + 10_000) * 60


def test_calls_that_need_the_same_accumulator_share_it():
    kinds = {"a": "stddev", "b": "variance", "c": "mean", "d": "stddev"}
    calls = [AggregateColumn(name, kind, "number", ddof=0 if name == "d" else 1) for name, kind in kinds.items()]
    kernel = [kind for kind, _ in Aggregator([], calls, SCHEMA).kernel]
    assert kernel == ["variance", "mean", "variance", "count", "mean"]  # those of another ddof stand apart
    shared = [replace(call, shares=True) for call in calls]  # as checkpoints had it before
    assert [kind for kind, _ in Aggregator([], shared, SCHEMA).kernel] == ["variance", "mean", "count"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (AggregateColumn("a", "median", "number"), "no aggregate 'median'"),
        (AggregateColumn("a", "sum"), "sum needs a column"),
        (AggregateColumn("a", "sum", "text"), "sum of 'text', which is string"),
        (AggregateColumn("a", "mean", "when"), "mean of 'when'"),
        (AggregateColumn("a", "min", "tags"), "min of 'tags', which is list"),
        (AggregateColumn("a", "count_distinct", "place"), "count_distinct of 'place'"),
        (AggregateColumn("a", "arg_min", "text"), "needs `by`, the column to compare"),
        (AggregateColumn("a", "arg_min", "text", by="place"), "arg_min by 'place'"),
        (AggregateColumn("a", "arg_min", "text", by="half"), "'half' is halffloat"),
        (AggregateColumn("a", "sum", "nowhere"), "no column 'nowhere'.*there are key, number"),
        (AggregateColumn("a", "sum", "number", where="text"), "filter 'text' is string, not bool"),
        (AggregateColumn("key", "count"), "two columns 'key'"),
    ],
)
def test_what_cannot_be_aggregated_is_refused_by_name(call, message):
    with pytest.raises(UserError, match=message):
        Aggregator(["key"], [call], SCHEMA.append(pa.field("half", pa.float16())))
    if call.kind == "count":
        with pytest.raises(UserError, match="place"):
            Aggregator(["place"], [AggregateColumn("n", "count")], SCHEMA)
