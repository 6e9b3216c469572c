"""Batches of which selected rows count are joined with one copy of these rows."""

from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sabot._cython.arrow.batch import Batch
from sabot._cython.arrow.gather import gathered
from sabot._cython.groups.partition import hash_columns

ROWS = pa.record_batch(
    {
        "number": pa.array([1, 2, 3, 4, 5, 6], pa.int64()),
        "small": pa.array([1, None, 3, 4, None, 6], pa.int16()),
        "real": [0.5, None, -0.0, 1.0, 2.0, 3.0],
        "yes": [True, False, None, True, True, False],
        "text": ["", "a", None, "x" * 31, "y" * 32, "z" * 33],
        "price": pa.array(
            [Decimal("1.50"), None, Decimal("2.25"), None, Decimal("0.01"), Decimal("7.00")], pa.decimal128(9, 2)
        ),
        "at": pa.array([0, 1, None, 3, 4, 5], pa.timestamp("ms", "UTC")),
        "nothing": pa.nulls(6),
    }
)
LISTS = ROWS.append_column("list", pa.array([[1], None, [], [2, 3], [4], [5]]))


@st.composite
def batches(draw, rows):
    start, length = draw(st.integers(0, 6)), draw(st.integers(0, 6))
    data = rows.slice(start, length)
    chosen = draw(st.none() | st.lists(st.integers(0, data.num_rows - 1)) if data.num_rows else st.none())
    selection = None if chosen is None else pa.array(chosen, pa.int32())
    return Batch(data, selection=selection, hashes=hash_columns([data.column(0)]))


def expected(parts):
    return [row for part in parts for row in part.taken().to_pylist()]


@pytest.mark.parametrize("rows", [ROWS, LISTS], ids=["plain columns", "a nested column"])
@given(data=st.data())
def test_the_rows_that_count_stand_one_batch_behind_the_other_with_their_hashes(rows, data):
    parts = data.draw(st.lists(batches(rows), min_size=1, max_size=4))
    joined, hashes = gathered(parts)
    joined.validate(full=True)
    assert joined.schema.equals(rows.schema)
    assert joined.to_pylist() == expected(parts)
    assert hashes.equals(hash_columns([joined.column(0)]))


def test_columns_outlive_the_batch_and_what_it_was_made_of():
    parts = [Batch(ROWS), Batch(ROWS, selection=pa.array([4, 5], pa.int32()))]
    joined, hashes = gathered(parts)
    texts, numbers = joined.column("text"), joined.column("number")
    assert hashes is None
    del parts, joined
    assert texts.to_pylist() == [*ROWS.column("text").to_pylist(), "y" * 32, "z" * 33]
    assert numbers.to_pylist() == [1, 2, 3, 4, 5, 6, 5, 6]


def test_hashes_that_one_batch_lacks_are_not_known_of_all():
    assert gathered([Batch(ROWS, hashes=hash_columns([ROWS.column(0)])), Batch(ROWS)])[1] is None


def test_rows_without_columns_are_rows():
    parts = [Batch(ROWS.select([]), selection=pa.array([1, 2], pa.int32())), Batch(ROWS.select([]))]
    assert gathered(parts)[0].num_rows == 8


def test_batches_of_other_columns_are_refused():
    with pytest.raises(ValueError, match=r"batches with different columns cannot be joined: \['text'\]"):
        gathered([Batch(ROWS), Batch(ROWS.select(["text"]))])
