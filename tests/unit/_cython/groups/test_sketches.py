"""Approximate aggregates and the greatest values: within the bounds that they state, and the same for any parts that are merged."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.groups.partition import hash_columns
from sabot._cython.groups.sketch import Distinct, Quantiles
from sabot.api import aggregates as api
from sabot.engine.operators.aggregates.aggregator import AggregateColumn, Aggregator
from sabot.errors import UserError

FEW = settings(max_examples=25, deadline=None)
SCHEMA = pa.schema([("key", pa.string()), ("x", pa.float64()), ("tag", pa.string()), ("ok", pa.bool_())])
CALLS = [
    AggregateColumn("differ", "approx_count_distinct", "tag"),
    AggregateColumn("some", "approx_count_distinct", "x", where="ok"),
    AggregateColumn("median", "approx_quantile", "x", q=0.5),
    AggregateColumn("ends", "approx_quantile", "x", q=[0.0, 1.0], where="ok"),
    AggregateColumn("best", "top_k", "x", k=2),
    AggregateColumn("tags", "top_k", "tag", k=3, where="ok"),
]

Row = tuple[Any, ...]


def aggregated(rows: list[Row]) -> list[Any]:
    """CALLS over rows of one key."""
    some = [x for _, x, _, ok in rows if ok and x is not None]
    numbers = sorted(x for _, x, _, _ in rows if x is not None and x == x)
    allowed = sorted(x for x in some if x == x)
    tags = [tag for _, _, tag, ok in rows if ok and tag is not None]
    return [
        len({tag for _, _, tag, _ in rows if tag is not None}),
        len({repr(x + 0.0) for x in some}),
        numbers[(len(numbers) - 1) // 2] if numbers else None,
        [allowed[0], allowed[-1]] if allowed else None,
        numbers[::-1][:2],
        sorted(tags)[::-1][:3],
    ]


def close(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(close, found, wanted))
    return bool(found == (pytest.approx(wanted, rel=0.01) if isinstance(wanted, float) else wanted))


ROW = st.tuples(
    st.sampled_from(["a", "b", None]),
    st.none() | st.sampled_from([0.0, -0.0, 1.0, -3.5, 1e9, 1e-9, math.nan, math.inf, -math.inf]),
    st.none() | st.sampled_from(["r", "g", "", "a longer one"]),
    st.sampled_from([True, False, None]),
)


@FEW
@given(parts=st.lists(st.lists(ROW, min_size=1, max_size=12), min_size=1, max_size=4), merged=st.booleans())
def test_parts_are_merged_to_what_the_whole_gives(parts, merged):
    aggregator = Aggregator(["key"], CALLS, SCHEMA)
    table, extras = aggregator.table(), aggregator.extras()
    for part in parts:
        data = pa.RecordBatch.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in part], schema=SCHEMA)
        if merged:
            other, beside = aggregator.table(), aggregator.extras()
            aggregator.add(other, beside, data)
            for state in aggregator.export_of(other, beside):
                aggregator.merge(table, extras, state)
        else:
            aggregator.add(table, extras, data)
        found = aggregator.finish(table, extras)  # asked in between, too
    rows = [row for part in parts for row in part]
    assert found.schema.types[1:] == [
        pa.int64(),
        pa.int64(),
        pa.float64(),
        pa.list_(pa.float64()),
        pa.list_(pa.float64()),
        pa.list_(pa.string()),
    ]
    for result in found.to_pylist():
        wanted = aggregated([row for row in rows if row[0] == result["key"]])
        assert all(map(close, list(result.values())[1:], wanted)), f"{result} should be {wanted}"


@FEW
@given(rows=st.lists(ROW, min_size=2, max_size=20))
def test_slots_are_moved_and_emptied(rows):
    aggregator = Aggregator([], CALLS, SCHEMA)
    extras = aggregator.extras()
    data = pa.RecordBatch.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], schema=SCHEMA)
    extras.add(pa.array([at % 2 for at in range(len(rows))], pa.int32()), data, None)
    extras.move(pa.array([5, 5], pa.int32()), pa.array([0, 1], pa.int32()))
    slots = pa.array([0, 5, 1], pa.int32())
    for at, wanted in ((0, []), (1, rows), (2, [])):
        found = [column[at].as_py() for column in extras.results(slots)]
        assert all(map(close, found, aggregated(wanted))), f"{found} should be {aggregated(wanted)}"
    assert extras.nbytes
    extras.remove(pa.array([5], pa.int32()))
    assert [column[1].as_py() for column in extras.results(slots)] == aggregated([])


@pytest.mark.parametrize("count", [0, 1, 511, 512])
def test_few_values_are_counted_exactly(count):
    sketch = Distinct()
    for _ in range(2):
        sketch.add(np.zeros(count, np.int32), hashes(count))
    assert sketch.estimates([0, 1]).tolist() == [count, 0]


def hashes(count: int, start: int = 0) -> Any:
    return hash_columns([pa.array(np.arange(start, start + count))]).to_numpy() if count else np.zeros(0, np.uint64)


@pytest.mark.parametrize("count", [600, 3_000, 10_000, 50_000, 400_000])
def test_many_values_are_counted_within_the_error_that_is_stated(count):
    errors = []
    for turn in range(8):
        sketch = Distinct()
        sketch.add(np.zeros(count, np.int32), hashes(count, turn * 10**7))
        errors.append(sketch.estimates([0])[0] / count - 1)
        assert sketch.nbytes < 9000
    assert np.sqrt(np.mean(np.square(errors))) < 2 * 0.0163  # of 8 trials: the standard error is 1.6 %
    assert max(map(abs, errors)) < 4 * 0.0163


def test_a_sketch_of_two_parts_is_that_of_the_whole():
    whole, left, right = Distinct(), Distinct(), Distinct()
    zeros = np.zeros(3000, np.int32)
    whole.add(zeros, hashes(3000))
    left.add(zeros[:2900], hashes(2900))
    right.add(zeros[:400], hashes(400, 2600))
    for into, other in ((left, right), (right, left)):
        copy = Distinct()
        copy.load([0, 0], pa.concat_arrays([into.save([0]), other.save([0])]))
        assert copy.estimates([0]) == whole.estimates([0])
        assert copy.save([0]).equals(whole.save([0]))


@pytest.mark.parametrize("scale", [1e-300, 1e-3, 1.0, 1e300])
def test_quantiles_are_within_one_percent_of_a_value_that_is_there(scale):
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.lognormal(0, 3, 5000), -rng.lognormal(1, 1, 3000), np.zeros(100)]) * scale
    sketch = Quantiles()
    sketch.add(np.zeros(len(values), np.int32), values)
    asked = [0, 0.01, 0.3, 0.37, 0.5, 0.9, 0.999, 1]
    found, there = sketch.quantiles([0, 4], asked)
    ordered = np.sort(values)
    exact = [ordered[math.floor(q * (len(values) - 1))] for q in asked]
    assert found[0].tolist() == pytest.approx(exact, rel=0.01, abs=5e-324)
    assert there.tolist() == [True, False]


def test_quantiles_forget():
    rng = np.random.default_rng(4)
    values, extra = rng.normal(0, 5, 1000), rng.normal(0, 50, 4000)
    sketch, whole = Quantiles(), Quantiles()
    whole.add(np.zeros(1000, np.int32), values)
    for part, take in ((values, False), (extra, False), (extra[::-1], True)):
        sketch.add(np.zeros(len(part), np.int32), part, np.full(len(part), take))
    assert sketch.save([0]).equals(whole.save([0]))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="damaged"):
        Distinct().load([0], pa.array([b"abc"], pa.large_binary()))
    with pytest.raises(ValueError, match="middle of a value"):
        Quantiles().load([0], pa.array([b"abc"], pa.large_binary()))
    with pytest.raises(IndexError, match="no slot -2"):
        Quantiles().add([-2], [1.0])
    nested = pa.schema([("v", pa.list_(pa.int8())), ("tag", pa.string())])
    for call, said in (
        (AggregateColumn("n", "approx_count_distinct", "v"), "approx_count_distinct of 'v'"),
        (AggregateColumn("n", "approx_quantile", "tag", q=0.5), "approx_quantile of 'tag', which is string"),
        (AggregateColumn("n", "top_k", "v", k=1), "top_k of 'v'"),
        (AggregateColumn("n", "top_k", "tag", k=0), "top_k of 0 values"),
    ):
        with pytest.raises(UserError, match=said):
            Aggregator([], [call], nested)
    with pytest.raises(UserError, match="no quantile 2"):
        Aggregator([], [AggregateColumn("n", "approx_quantile", "x", q=2)], SCHEMA)


def test_users_write_them_as_functions():
    assert api.approx_count_distinct("x").text() == 'approx_count_distinct(col("x"))'
    assert api.approx_quantile("x", 0.5).text() == 'approx_quantile(col("x"), q=0.5)'
    assert api.approx_quantile("x", (0, 1)).options == {"q": [0.0, 1.0]}
    assert api.top_k("x", 3).options == {"k": 3}
    with pytest.raises(UserError, match=r"q=1\.5 is not a fraction"):
        api.approx_quantile("x", 1.5)
    with pytest.raises(UserError, match="top_k: k=0 is not a number of values"):
        api.top_k("x", 0)


def test_decimals_and_times_are_counted():
    kinds = [pa.decimal128(9, 2), pa.timestamp("ms"), pa.bool_(), pa.binary(2), pa.uint8()]
    for kind in kinds:
        values = pa.array([0, 1, 1, None, 0], pa.int64())
        if pa.types.is_boolean(kind):
            column = pa.array([False, True, True, None, False])
        elif pa.types.is_fixed_size_binary(kind):
            column = pa.array([b"ab", b"cd", b"cd", None, b"ab"], kind)
        else:
            column = values.cast(pa.int64() if pa.types.is_timestamp(kind) else pa.int8()).cast(kind, safe=False)
        data = pa.RecordBatch.from_arrays([column], names=["v"])
        aggregator = Aggregator([], [AggregateColumn("n", "approx_count_distinct", "v")], data.schema)
        table, extras = aggregator.table(), aggregator.extras()
        aggregator.add(table, extras, data)
        assert aggregator.finish(table, extras).to_pylist() == [{"n": 2}]
