"""RowTable beside its naive twin (tests/twins/row_table.py): the same calls, the same answers; and what the twin cannot show."""

import math
import random
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.groups.partition import hash_columns
from sabot._cython.rows.row_table import RowTable
from twins.row_table import RowTable as Twin
from twins.row_table import plain

ROWS = pa.schema([("k", pa.int64()), ("name", pa.string()), ("x", pa.float64()), ("flag", pa.bool_())])
SPREAD = st.sampled_from([0, 1, 2, 3, 50, -(2**63), 2**63 - 1])
ROW = st.tuples(
    st.none() | st.integers(0, 4),
    st.none() | st.sampled_from(["", "a", "a name that is longer than sixteen bytes"]),
    st.none() | st.sampled_from([0.0, -0.0, 1.5, math.nan]),
    st.none() | st.booleans(),
    SPREAD,
)


def ints(values: Any) -> pa.Array:
    return pa.array(values, pa.int64())


def batch(rows: list[tuple[Any, ...]], schema: pa.Schema = ROWS) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([dict(zip(schema.names, row, strict=False)) for row in rows], schema=schema)


def same(one: pa.RecordBatch, other: pa.RecordBatch) -> bool:
    """Equal in all rows, NaN to NaN."""
    one.validate(full=True)
    return one.schema == other.schema and plain(one.to_pylist()) == plain(other.to_pylist())


@pytest.mark.one_in(3, "a fifth of a second of a core each")
@pytest.mark.parametrize("keys", [["k"], ["name"], ["x"], ["k", "name"], ["flag", "x"], []], ids=str)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_table_does_what_its_naive_twin_does(keys: list[str], data: st.DataObject):
    table, twin = RowTable(ROWS, keys, counted=True), Twin(ROWS, keys, counted=True)
    columns = [ROWS.get_field_index(name) for name in keys]
    alive: list[int] = []
    for _ in range(data.draw(st.integers(1, 8))):
        rows = data.draw(st.lists(ROW, max_size=14))
        part, order = batch(rows), ints([row[-1] for row in rows])
        chosen = None
        if data.draw(st.booleans()):
            numbers = range(len(rows))
            chosen = pa.array([i for i in numbers if data.draw(st.booleans())], pa.int32())
        hashes = hash_columns([part.column(c) for c in columns]) if keys and data.draw(st.booleans()) else None
        given_rows = {"hashes": hashes, "selection": chosen}
        what = data.draw(
            st.sampled_from(["insert", "insert", "insert", "find", "at", "match", "remove", "order", "count"])
        )
        if what == "insert":
            order = order if data.draw(st.booleans()) else None
            ids = table.insert(part, order, **given_rows)
            assert ids.equals(twin.insert(part, order, **given_rows))
            alive += ids.to_pylist()
        elif what == "find":
            bounds = {
                "lower": order if data.draw(st.booleans()) else None,
                "upper": order if data.draw(st.booleans()) else None,
                "limit": data.draw(st.none() | st.integers(0, 3)),
            }
            pairs = table.find(part, columns, **given_rows, **bounds)
            wanted = twin.find(part, columns, **given_rows, **bounds)
            assert pairs[0].equals(wanted[0])
            assert pairs[1].equals(wanted[1])
            size = data.draw(st.integers(1, 5))
            pieces = list(table.find_chunks(part, columns, **given_rows, **bounds, rows=size))
            assert all(len(numbers) == size for numbers, _ in pieces[:-1])
            assert [x for _, ids in pieces for x in ids.to_pylist()] == wanted[1].to_pylist()
            assert [x for numbers, _ in pieces for x in numbers.to_pylist()] == wanted[0].to_pylist()
        elif what == "at":
            for name in ("last_at", "first_at"):
                found = getattr(table, name)(part, columns, order, **given_rows)
                assert found.equals(getattr(twin, name)(part, columns, order, **given_rows)), name
        elif what == "match":
            found = table.match(part, order, **given_rows)
            assert found.equals(twin.match(part, order, **given_rows))
        elif what == "remove":
            gone = [id for id in alive if data.draw(st.booleans())]
            random.Random(len(alive)).shuffle(gone)
            table.remove(ints(gone))
            twin.remove(ints(gone))
            alive = [id for id in alive if id not in gone]
        elif what == "order":
            bound = data.draw(SPREAD)
            assert table.below(bound).equals(twin.below(bound))
            assert table.superseded(bound).equals(twin.superseded(bound))
        else:
            ids = ints(data.draw(st.lists(st.sampled_from(alive), max_size=9)) if alive else [])
            by = data.draw(st.sampled_from([1, -2]))
            for more in (by, pa.array([by] * len(ids), pa.int32())):
                table.add_counts(ids, more)
                twin.add_counts(ids, more)
        ids = ints(alive)
        assert len(table) == len(twin) == len(alive)
        assert table.statistics()["keys"] == twin.statistics()["keys"]
        assert table.orders(ids).equals(twin.orders(ids))
        assert table.counts(ids).equals(twin.counts(ids))
        assert table.hashes(ids).equals(twin.hashes(ids))
        assert same(table.take(ints([*alive, -1])), twin.take(ints([*alive, -1])))
        assert same(table.take(ids, [3, 1]), twin.take(ids, [3, 1]))


NESTED = pa.schema(
    [
        ("k", pa.int32()),
        ("list", pa.list_(pa.string())),
        ("record", pa.struct([("a", pa.list_(pa.float32())), ("b", pa.bool_())])),
        ("map", pa.map_(pa.string(), pa.int16())),
        ("pair", pa.list_(pa.int8(), 2)),
        ("money", pa.decimal128(20, 2)),
        ("wide", pa.decimal256(50, 1)),
        ("code", pa.binary(3)),
        ("none", pa.null()),
        ("at", pa.timestamp("us", "UTC")),
        ("day", pa.date32()),
        ("half", pa.float16()),
        ("span", pa.month_day_nano_interval()),
        ("data", pa.binary()),
    ]
)


def nested(numbers: list[int], schema: pa.Schema = NESTED) -> pa.RecordBatch:
    """Rows of every type: equal for equal numbers, some of their values null."""
    rows: list[dict[str, Any]] = []
    for n in numbers:
        row = {
            "k": n % 5,
            "list": ["x" * (n % 4), None, str(n)][: n % 4],
            "record": {"a": [math.nan, -0.0, n / 2][: n % 4], "b": n % 3 == 0},
            "map": [("key" * (n % 3), n), ("other", None)][: n % 3],
            "pair": [n % 100, None],
            "money": Decimal(n) / 100,
            "wide": Decimal(-n) / 10,
            "code": bytes([n % 256] * 3),
            "none": None,
            "at": n,
            "day": n,
            "half": np.float16(n % 7),
            "span": pa.MonthDayNano([n, 2, 3]),
            "data": b"\0" * (n % 20),
        }
        rows.append({name: None if (n + i) % 6 == 0 and i else value for i, (name, value) in enumerate(row.items())})
    return pa.RecordBatch.from_pylist(rows, schema=schema)


def test_every_type_comes_back_as_it_went_in():
    table, twin = RowTable(NESTED, ["k"]), Twin(NESTED, ["k"])
    everything = nested(list(range(40)))
    for part in (everything.slice(3, 17), everything.slice(20), everything.slice(7, 0)):
        assert table.insert(part).equals(twin.insert(part))
    picked = pa.array([5, 0, 39, 12], pa.int32())
    assert table.insert(everything, selection=picked).equals(twin.insert(everything, selection=picked))
    ids = ints([39, 2, 2, -1, 40, 0, 17, 16, 38])
    assert same(table.take(ids), twin.take(ids))
    assert same(table.take(ids.slice(1, 4), [2, 0, 3]), twin.take(ids.slice(1, 4), [2, 0, 3]))
    assert same(table.take(ints([])), twin.take(ints([])))
    probes = nested([5, 5, 5, 0, 77, 39, 12])
    assert table.match(probes).equals(twin.match(probes))


def test_a_row_is_found_by_value_whatever_its_floats_are_called():
    schema = pa.schema([("k", pa.float32()), ("v", pa.list_(pa.float64())), ("h", pa.float16())])
    table = RowTable(schema, ["k"])
    rows = [{"k": 0.0, "v": [math.nan, 0.0, None], "h": np.float16(-0.0)}, {"k": math.nan, "v": None, "h": None}]
    ids = table.insert(pa.RecordBatch.from_pylist(rows, schema=schema))
    other = [{"k": -0.0, "v": [-math.nan, -0.0, None], "h": np.float16(0.0)}, {"k": -math.nan, "v": None, "h": None}]
    assert table.match(pa.RecordBatch.from_pylist(other, schema=schema)).equals(ids)
    other[0]["v"] = [math.nan, 0.0]
    assert table.match(pa.RecordBatch.from_pylist(other, schema=schema)).to_pylist() == [-1, 1]


def numbered(count: int, keys: int, seed: int = 0) -> tuple[pa.RecordBatch, pa.Array]:
    """Rows of three columns, the keys in random order; and orders."""
    random_numbers = np.random.default_rng(seed)
    names = pa.array([None if n % 7 == 0 else f"name {n}" for n in range(101)])
    data = pa.record_batch(
        {
            "k": random_numbers.integers(0, keys, count),
            "n": np.arange(count),
            "s": names.take(pa.array(random_numbers.integers(0, 101, count))),
        }
    )
    return data, pa.array(random_numbers.integers(0, 1000, count))


@pytest.mark.slow  # a second of a core, or more
@pytest.mark.parametrize("mapped", [False, True])
def test_ids_stay_when_blocks_thin_out_and_are_written_anew(mapped: bool, tmp_path: Path):
    data, order = numbered(210_000, 1000)
    options: dict[str, Any] = {"directory": tmp_path, "memory_bytes": 0} if mapped else {}
    table = RowTable(data.schema, ["k"], counted=True, **options)
    ids = table.insert(data, order)
    full = table.nbytes
    table.add_counts(ids, pa.array(np.arange(210_000), pa.int32()))
    left = np.arange(210_000)
    for share in (2, 5, 3, 20):
        stay = np.random.default_rng(share).integers(0, share, len(left)) == 0
        table.remove(pa.array(left[~stay]))
        left = left[stay]
        rows = pa.array(left)
        assert same(table.take(rows), data.take(rows))
        assert table.orders(rows).equals(order.take(rows))
        assert table.counts(rows).to_pylist() == left.tolist()
        assert table.match(data.take(rows), order.take(rows)).equals(rows)
    figures = table.statistics()
    assert figures["rows"] == len(left)
    assert figures["bytes"] < full / (2 if mapped else 4)
    assert table.below(2000).to_pylist() == sorted(left.tolist(), key=lambda id: (order[id].as_py(), id))
    new = table.insert(data.slice(0, 10))
    assert new.to_pylist() == list(range(210_000, 210_010))
    table.remove(pa.array(left))
    assert len(table) == 10
    assert table.statistics()["blocks"] == 1


def test_a_block_that_empties_while_it_grows_is_freed_when_it_is_full():
    data, _ = numbered(1000, 10)
    table = RowTable(data.schema, ["k"])
    survivors = []
    for _ in range(200):
        ids = table.insert(data)
        table.remove(ids.slice(1))
        survivors.append(ids[0].as_py())
    assert table.statistics()["blocks"] == 200_000 // 65_536 + 1
    assert table.nbytes < 5_000_000
    assert same(
        table.take(ints(survivors)), pa.Table.from_batches([data.slice(0, 1)] * 200).combine_chunks().to_batches()[0]
    )


@pytest.mark.slow  # half a second of a core
def test_one_key_may_have_very_many_rows_in_any_order_of_arrival():
    """The story: chains as plain sorted arrays are quadratic for a hot key."""
    count = 300_000
    for arrival in (np.arange(count), np.arange(count)[::-1], np.random.default_rng(1).permutation(count)):
        data = pa.record_batch({"k": np.zeros(count, np.int64), "n": arrival})
        table = RowTable(data.schema, ["k"])
        started = time.thread_time()
        ids = table.insert(data, pa.array(arrival))
        probe = pa.record_batch({"k": [0]})
        _, found = table.find(probe, [0], lower=ints([1000]), upper=ints([2999]))
        assert table.take(found).column(1).to_pylist() == list(range(1000, 3000))
        last = table.last_at(probe, [0], ints([count // 2]))
        assert table.orders(last).to_pylist() == [count // 2]
        by_order = table.find(probe, [0])[1].to_numpy()
        assert (arrival[by_order] == np.arange(count)).all()
        table.remove(ids.take(pa.array(np.random.default_rng(2).permutation(count)[: count - 5])))
        assert len(table) == 5 == len(table.find(probe, [0])[1])
        assert time.thread_time() - started < 20


@pytest.mark.parametrize("seed", range(4))
def test_long_chains_grow_and_shrink_as_sorted_lists_do(seed: int):
    """Rows of three keys, thousands each, that come and go at random, beside (order, id) in numpy arrays."""
    chance = np.random.default_rng(seed)
    table = RowTable(pa.schema([("k", pa.int64())]), ["k"])
    rows = np.zeros((0, 3), np.int64)  # key, order, id
    span = [10, 100_000][seed % 2]
    probe = pa.record_batch({"k": np.arange(4)})
    for step in range(25):
        more = int(chance.integers(1, 3000)) if step < 15 else 1
        keys, orders = chance.integers(0, 3, more), chance.integers(0, span, more)
        ids = table.insert(pa.record_batch({"k": keys}), pa.array(orders)).to_numpy()
        rows = np.concatenate([rows, np.stack([keys, orders, ids], axis=1)])
        stays = chance.random(len(rows)) < [1.0, 0.3, 0.8][step % 3]
        if step % 4 == 3:  # what is oldest goes
            stays = rows[:, 1] >= span // 4
        table.remove(pa.array(chance.permutation(rows[~stays, 2])))
        rows = rows[stays]
        rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]
        low, high = np.sort(chance.integers(-1, span + 1, (2, 4)), axis=0)
        inside = (rows[:, 1] >= low[rows[:, 0]]) & (rows[:, 1] <= high[rows[:, 0]])
        bounds = {"lower": pa.array(low), "upper": pa.array(high)}
        numbers, found = table.find(probe, [0], **bounds)
        assert numbers.to_pylist() == rows[inside, 0].tolist()
        assert found.to_pylist() == rows[inside, 2].tolist()
        pieces = list(table.find_chunks(probe, [0], rows=int(chance.integers(1, 900)), limit=1000, **bounds))
        wanted = [rows[inside & (rows[:, 0] == k), 2][:1000] for k in range(3)]
        assert [x for _, part in pieces for x in part.to_pylist()] == np.concatenate(wanted).tolist()
        before = [rows[(rows[:, 0] == k) & (rows[:, 1] <= high[k]), 2][-1:].tolist() for k in range(4)]
        after = [rows[(rows[:, 0] == k) & (rows[:, 1] >= low[k]), 2][:1].tolist() for k in range(4)]
        assert table.last_at(probe, [0], bounds["upper"]).to_pylist() == [x[0] if x else -1 for x in before]
        assert table.first_at(probe, [0], bounds["lower"]).to_pylist() == [x[0] if x else -1 for x in after]


@pytest.mark.one_in(3, "a fifth of a second of a core each")
@pytest.mark.parametrize("seed", range(3))
def test_rows_that_are_found_by_their_hash_are_those_that_are_found_one_by_one(seed: int):
    """A key with so many rows of one order that they get an index by value, which then follows what comes and goes."""
    chance = random.Random(seed)
    table, twin = RowTable(ROWS, ["k"]), Twin(ROWS, ["k"])
    alive: list[int] = []
    values = [None, 0.0, -0.0, 1.5, math.nan, *map(float, range(9))]
    for step in range(12):
        few = 1 if step == 8 else 130  # at some time there are few rows again
        rows = [(chance.randrange(2), chance.choice("ab"), chance.choice(values), None) for _ in range(few)]
        part, order = batch(rows), ints([chance.randrange(2) for _ in rows])
        assert table.match(part, order).equals(twin.match(part, order))
        ids = table.insert(part, order)
        assert ids.equals(twin.insert(part, order))
        alive += ids.to_pylist()
        gone = [id for id in alive if chance.random() < [0.2, 0.5, 1.0][step % 3 if step != 7 else 2]]
        for store in (table, twin):
            store.remove(ints(gone))
        alive = sorted(set(alive) - set(gone))
        again = batch(rows[::-1] * 2)
        orders = pa.concat_arrays([ints(order.to_pylist()[::-1])] * 2)
        assert table.match(again, orders).equals(twin.match(again, orders))


def test_rows_of_one_key_and_order_are_matched_without_a_look_at_all_of_them():
    """The story: retractions of a hot key's rows, of a table whose rows have no order."""
    count = 40_000
    data = pa.record_batch({"k": np.zeros(count, np.int64), "n": np.arange(count) // 2})
    table = RowTable(data.schema, ["k"])
    table.insert(data)
    started = time.thread_time()
    backwards = data.take(pa.array(np.arange(count)[::-1]))
    found = table.match(backwards).to_numpy()
    assert (found // 2 == np.arange(count)[::-1] // 2).all()
    assert len(set(found.tolist())) == count
    equal = pa.record_batch({"k": np.ones(count, np.int64), "n": np.ones(count, np.int64)})
    ids = table.insert(equal)
    assert table.match(equal).equals(ids)
    table.remove(ids.slice(0, count - 1))
    assert table.match(equal).to_pylist() == [ids[-1].as_py()] + [-1] * (count - 1)
    table.remove(pa.array(found[:-1]))
    assert table.match(data.slice(0, 2)).to_pylist() == [found[-1], -1]
    assert time.thread_time() - started < 20


def test_below_and_superseded_follow_a_bound_that_goes_on():
    """An as-of join's right side: with each bound the rows go that nobody will ask for again."""
    table, twin = RowTable(ROWS, ["k"]), Twin(ROWS, ["k"])
    random_numbers = random.Random(5)
    for bound in range(0, 400, 10):
        rows = [(random_numbers.randrange(6), "a", 0.0, True) for _ in range(40)]
        order = ints([max(0, bound + random_numbers.randrange(-30, 60)) for _ in rows])
        assert table.insert(batch(rows), order).equals(twin.insert(batch(rows), order))
        asked = bound - 25 if bound % 70 == 0 else bound
        gone = table.superseded(asked)
        assert gone.equals(twin.superseded(asked))
        assert table.below(asked).equals(twin.below(asked))
        if bound % 30:
            table.remove(gone)
            twin.remove(gone)
        if bound % 110 == 0:
            old = table.below(bound - 100)
            assert old.equals(twin.below(bound - 100))
            table.remove(old)
            twin.remove(old)


def test_what_is_below_costs_what_is_found_and_not_what_is_there():
    count = 400_000
    data, _ = numbered(count, 1000)
    table = RowTable(data.schema, ["k"])
    table.insert(data, pa.array(np.random.default_rng(0).permutation(count)))
    assert len(table.below(1)) == 1
    took = []
    for first in range(1, 1001, 250):
        started = time.thread_time()
        for bound in range(first, first + 250):
            table.remove(table.below(bound))
        took.append(time.thread_time() - started)
    assert len(table) == count - 1000
    assert min(took) < 0.1  # a millisecond; each look at all rows would be at 100 million of them


def test_the_rows_of_a_search_come_in_pieces_until_the_table_changes():
    data, _ = numbered(5000, 1)
    table = RowTable(data.schema, ["k"])
    table.insert(data)
    pieces = table.find_chunks(data, [0], rows=1000)
    numbers, ids = next(pieces)
    assert numbers.to_pylist() == [0] * 1000
    assert ids.to_pylist() == list(range(1000))
    numbers, ids = next(pieces)
    assert numbers.to_pylist() == [0] * 1000
    assert ids.to_pylist() == list(range(1000, 2000))
    table.insert(data.slice(0, 1))
    with pytest.raises(RuntimeError, match="changed"):
        next(pieces)
    assert list(table.find_chunks(data.slice(0, 0), [0])) == []


def test_a_cut_shows_the_rows_as_they_were():
    data, order = numbered(150_000, 500)
    table = RowTable(data.schema, ["k"])
    ids = table.insert(data, order)
    table.remove(ids.slice(1000, 60_000))
    cut = table.cut()
    there = np.r_[0:1000, 61_000:150_000]
    table.remove(ids.slice(61_000, 80_000))  # a whole block, and parts
    table.insert(data, order)  # the open block goes on
    assert len(cut) == 90_000
    assert cut.next_id == 150_000
    assert cut.rows_in(500, 61_500) == 1000
    assert cut.rows_in(500, 1001) == 500
    assert cut.rows_in(10**9, 10**10) == 0
    pieces = list(cut.read(rows=40_000))
    assert [part.num_rows for part in pieces] == [40_000, 40_000, 10_000]
    found = pa.Table.from_batches(pieces).combine_chunks()
    assert found.schema.names == ["k", "n", "s", "__order", "__id"]
    assert (found["__id"].to_numpy() == there).all()
    assert found["__order"].combine_chunks().equals(order.take(pa.array(there)))
    assert found.select(["k", "n", "s"]).equals(pa.Table.from_batches([data.take(pa.array(there))]))
    part = list(cut.read(999, 61_002))
    assert [x for some in part for x in some.column("__id").to_pylist()] == [999, 61_000, 61_001]
    cut.close()
    cut.close()
    with pytest.raises(ValueError, match="closed"):
        next(cut.read())


def test_wrong_arguments_say_what_is_wrong_and_change_nothing():
    table = RowTable(ROWS, ["k"])
    rows = batch([(1, "a", 1.0, True), (2, "b", 2.0, False)])
    table.insert(rows)
    for schema, keys, error in [
        (ROWS, ["z"], ValueError),
        (ROWS, ["k", "k"], ValueError),
        (pa.schema([("a", pa.large_string())]), [], TypeError),
        (pa.schema([("a", pa.list_(pa.dictionary(pa.int8(), pa.string())))]), [], TypeError),
        (pa.schema([("a", pa.binary(5))]), ["a"], TypeError),
    ]:
        with pytest.raises(error):
            RowTable(schema, keys)
    wrong: list[tuple[type[Exception], Any]] = [
        (TypeError, lambda: table.insert(rows.select([1, 0, 2, 3]))),
        (TypeError, lambda: table.insert(rows.select([0, 1]))),
        (TypeError, lambda: table.insert(rows, pa.array([1, 2], pa.int32()))),
        (ValueError, lambda: table.insert(rows, ints([1, None]))),
        (ValueError, lambda: table.insert(rows, ints([1]))),
        (IndexError, lambda: table.insert(rows, selection=pa.array([2], pa.int32()))),
        (TypeError, lambda: table.find(rows, [1])),
        (ValueError, lambda: table.find(rows, [0, 1])),
        (IndexError, lambda: table.find(rows, [9])),
        (ValueError, lambda: table.find(rows, [0], limit=-1)),
        (IndexError, lambda: table.take(ints([7]))),
        (IndexError, lambda: table.take(ints([0]), [4])),
        (IndexError, lambda: table.orders(ints([-1]))),
        (IndexError, lambda: table.remove(ints([0, 2]))),
        (ValueError, lambda: table.remove(ints([0, 1, 0]))),
        (ValueError, lambda: table.counts(ints([0]))),
        (ValueError, lambda: table.add_counts(ints([0]), 1)),
    ]
    for error, call in wrong:
        with pytest.raises(error):
            call()
    assert len(table) == 2
    assert same(table.take(ints([0, 1])), rows)
    assert table.find(rows, [0])[1].to_pylist() == [0, 1]


def test_more_columns_than_the_table_has_are_passed_over():
    rows = batch([(1, "a", 1.0, True)])
    table = RowTable(ROWS, ["k"])
    table.insert(rows.append_column("more", ints([3])))
    assert same(table.take(ints([0])), rows)
    assert table.match(rows.append_column("more", ints([4]))).to_pylist() == [0]


@pytest.mark.slow  # half a second of a core
def test_with_a_directory_full_blocks_are_moved_out_of_memory(tmp_path: Path):
    rows = nested(list(range(500)))
    rows = pa.Table.from_batches([rows] * 150).combine_chunks().to_batches()[0]
    tables = [RowTable(NESTED, ["k"]), RowTable(NESTED, ["k"], directory=tmp_path, memory_bytes=0)]
    ids, _ = [table.insert(rows, pa.array(np.arange(75_000))) for table in tables]
    assert tables[1].nbytes < tables[0].nbytes / 2
    assert list(tmp_path.iterdir()) == []  # files without names: nothing is left when the process is gone
    some = ids.take(pa.array(np.random.default_rng(0).integers(0, 75_000, 3000)))
    assert same(tables[0].take(some), tables[1].take(some))
    cuts = [table.cut() for table in tables]
    for table in tables:
        table.remove(ids.slice(0, 60_000))
        assert table.match(rows.slice(70_000, 10), pa.array(np.arange(70_000, 70_010))).to_pylist() == list(
            range(70_000, 70_010)
        )
    assert [x.num_rows for x in cuts[1].read(100, 3000)] == [2900]
    for one, other in zip(cuts[0].read(100, 3000), cuts[1].read(100, 3000), strict=True):
        assert same(one, other)
    tmp_path.rmdir()
    with pytest.raises(OSError, match="No such file"):
        tables[1].insert(rows)
    assert len(tables[1]) == 90_000


def test_a_cut_is_read_while_its_blocks_are_moved_out(tmp_path: Path):
    data, order = numbered(200_000, 500)
    table = RowTable(data.schema, ["k"], directory=tmp_path, memory_bytes=1_500_000)
    table.insert(data.slice(0, 100_000), order.slice(0, 100_000))
    cut = table.cut()
    pieces = cut.read(rows=30_000)
    first = next(pieces)
    table.insert(data.slice(100_000), order.slice(100_000))
    found = pa.Table.from_batches([first, *pieces]).select(["k", "n", "s"]).combine_chunks()
    assert found.equals(pa.Table.from_batches([data.slice(0, 100_000)]))


@pytest.mark.slow  # a second of a core, or more
def test_values_that_are_large_close_a_block_early():
    schema = pa.schema([("k", pa.int64()), ("v", pa.binary())])
    table = RowTable(schema, ["k"])
    large = b"x" * 1_000_000
    rows = pa.record_batch({"k": range(100), "v": pa.array([large] * 100, pa.binary())})
    ids = table.insert(rows)
    more = table.insert(rows.slice(0, 1))
    assert ids.to_pylist() == list(range(100))
    assert more.to_pylist() == [65_536]
    assert table.take(more).column(1)[0].as_py() == large
    assert table.statistics()["blocks"] == 2
    table.remove(ids)
    assert table.statistics()["blocks"] == 1
    assert table.nbytes < 10_000_000


def test_values_of_no_bytes_are_kept_as_they_are() -> None:
    """`fixed_size_binary(0)`: UBSan saw copies of nothing to nowhere."""
    kind = pa.binary(0)
    data = pa.record_batch({"k": pa.array([1, 2, 3]), "nothing": pa.array([b"", None, b""], kind)})
    table = RowTable(data.schema, ["k"])
    table.insert(data, pa.array([0, 1, 2]), selection=pa.array([2, 1], pa.int32()))
    table.insert(data.slice(0, 1), pa.array([3]))
    (found,) = table.cut().read()
    assert found.select(["k", "nothing"]).to_pylist() == [
        {"k": 3, "nothing": b""},
        {"k": 2, "nothing": None},
        {"k": 1, "nothing": b""},
    ]


@pytest.mark.one_in(3, "half a second of a core each")
@pytest.mark.parametrize("lengths", [(3, 30, 300), (300, 3, 90), (0, 60, 0)], ids=str)
def test_texts_that_get_longer_or_shorter_come_back_whole(lengths: tuple[int, int, int]):
    """A block makes room for texts as long as those before, and so does a result for those of its first rows."""
    rows = 66_000
    texts = [f"{row:x}" * (length // 4) for row, length in enumerate(np.repeat(lengths, rows).tolist())]
    data = pa.record_batch({"k": pa.array(np.arange(len(texts)) % 7_001), "text": texts, "other": texts[::-1]})
    table = RowTable(data.schema, ["k"])
    ids = pa.concat_arrays([table.insert(data.slice(first, 11_000)) for first in range(0, len(texts), 11_000)])
    for order in (np.arange(len(texts)), np.arange(len(texts))[::-1], np.random.default_rng(3).permutation(len(texts))):
        found = table.take(ids.take(pa.array(order)))
        found.validate(full=True)
        assert found.equals(data.take(pa.array(order)))
