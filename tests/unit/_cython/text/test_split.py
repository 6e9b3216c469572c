"""One part of each text, and the elements of a JSON array: beside Python's split and json."""

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.text.split import element_end, elements, split_part

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


VALUES = st.recursive(st.text('ab",[]{}\\ \n'), lambda inner: st.lists(inner) | st.dictionaries(st.text("a]"), inner))


@pytest.mark.slow  # half a second of a core
@settings(max_examples=80, deadline=None)
@given(st.lists(VALUES))
def test_the_elements_of_an_array_are_found_by_quotes_and_brackets(values):
    texts = [json.dumps(value).encode() for value in values]
    inside = b" , \n".join(texts)
    found, starts, close = elements(inside + b" ] ,")
    assert (found.to_pylist(), close) == (texts, len(inside) + 2)
    assert [inside[start : start + len(text)] for start, text in zip(starts, texts, strict=True)] == texts
    assert element_end(inside + b" ]") == close
    assert elements(inside)[0].to_pylist() == texts
    assert element_end(inside) == (len(inside) - len(texts[-1]) - 2 if len(texts) > 1 else 0)
    assert element_end(inside, 1) == (len(texts[0]) + 2 if len(texts) > 1 else 0)
