"""Where rows come from is known through selections, slices and joins."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from sabot._cython.arrow.batch import Batch
from sabot.engine.operators.rows.origin import RowOrigin, joined_origin


def batch_of(places: list[tuple[int, int]], chosen: list[int] | None) -> Batch:
    partitions, offsets = ([place[k] for place in places] for k in (0, 1))
    origin = RowOrigin.of_records(pa.array(partitions, pa.int32()), pa.array(offsets, pa.int64()))
    data = pa.record_batch({"x": offsets})
    if chosen is None:
        return Batch(data, None, "t", origin)
    return Batch(data, None, "t", origin.counting(len(chosen)), (), pa.array(chosen, pa.int32()))


PLACES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**40)), min_size=1, max_size=8)
PARTS = st.lists(
    PLACES.flatmap(lambda places: st.tuples(st.just(places), st.none() | st.sets(st.integers(0, len(places) - 1))))
)


@given(PARTS.filter(bool), st.data())
def test_the_rows_of_joined_batches_keep_their_places(parts, data):
    parts = [(places, None if chosen is None else sorted(chosen)) for places, chosen in parts]
    joined = joined_origin([batch_of(*part) for part in parts])
    want = [places[row] for places, chosen in parts for row in (range(len(places)) if chosen is None else chosen)]
    assert joined.num_rows == len(want)
    asked = data.draw(st.lists(st.integers(0, len(want) - 1), max_size=10)) if want else []
    partitions, offsets = joined.columns(pa.array(asked, pa.int32()))
    assert (partitions.type, offsets.type) == (pa.int32(), pa.int64())
    assert list(zip(partitions.to_pylist(), offsets.to_pylist(), strict=True)) == [want[row] for row in asked]
    assert joined.places(asked) == [want[row] for row in asked]


def test_one_batch_whose_origin_is_not_known_makes_that_of_all_unknown():
    assert joined_origin([batch_of([(0, 1)], None), Batch(pa.record_batch({"x": [1]}), None, "t")]) is None
