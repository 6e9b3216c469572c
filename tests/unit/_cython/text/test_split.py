"""One part of each text: beside Python's split."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.text.split import split_part

TEXTS = st.lists(st.one_of(st.none(), st.text("a/-ü", max_size=12)))


@settings(max_examples=80, deadline=None)
@given(TEXTS, st.sampled_from(["/", "--", "ü", "a-a"]), st.integers(-4, 4), st.integers(0, 9))
def test_each_part_is_that_of_pythons_split(texts, by, index, offset):
    array = pa.array(texts, pa.string()).slice(offset)
    found = split_part(array, by.encode(), index)
    found.validate(full=True)
    parts = [None if text is None else text.split(by) for text in texts[offset:]]
    assert found.to_pylist() == [
        None if each is None or not -len(each) <= index < len(each) else each[index] for each in parts
    ]


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="the separator is empty"):
        split_part(pa.array(["a"]), b"", 0)
    with pytest.raises(TypeError, match="must be string, not int64"):
        split_part(pa.array([1]), b"a", 0)
