"""Payloads of CSV that no writer should have written: whatever they are, each is a row or a bad row by itself."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sabot.codecs.csv import CsvCodec

TWO = pa.schema([("name", pa.string()), ("n", pa.int64())])
SCHEMAS = [TWO, pa.schema(reversed(TWO)), pa.schema([("name", pa.string())]), pa.schema([("x", "f8"), ("ok", "bool")])]
MARK = b"\xef\xbb\xbf"
PIECES = st.sampled_from(
    [
        MARK,
        b'"',
        b'""',
        b",",
        b"\n",
        b"\r",
        b"\0",
        b"\xff",
        b"\xc3\xa9",
        b" ",
        b"\t",
        b"1",
        b"-0",
        b"0x1F",
        b"1e3",
        b"a",
    ]
)
PAYLOADS = st.lists(PIECES, max_size=6).map(b"".join)


def decoded(schema: pa.Schema, payloads: list[bytes]) -> list[Any]:
    """The rows, with the reasons of bad ones in their places."""
    data, bad = CsvCodec(schema).decode(pa.record_batch({"payload": pa.array(payloads, pa.binary())}))
    data.validate(full=True)
    reasons, rows = {each.row: each.reason for each in bad}, iter(data.to_pylist())
    return [reasons[number] if number in reasons else next(rows) for number in range(len(payloads))]


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: " ".join(schema.names))
@settings(max_examples=60, deadline=None)
@given(payloads=st.lists(PAYLOADS, min_size=1, max_size=5))
@example(payloads=[b'"""x,1'])  # Arrow's parser refuses it, and that ended the app
@example(payloads=[MARK + b'",1'])
@example(payloads=[b"1,1", MARK + b"1,1"])
def test_what_becomes_of_a_payload_depends_on_it_alone(schema: pa.Schema, payloads: list[bytes]) -> None:
    whole, alone = decoded(schema, payloads), [decoded(schema, [each])[0] for each in payloads]
    kinds = [each if isinstance(each, dict) else "bad" for each in whole]
    assert repr(kinds) == repr([each if isinstance(each, dict) else "bad" for each in alone])


def test_a_quote_that_does_not_end_makes_a_bad_row() -> None:
    found = decoded(TWO, [b'"""x,1', b'a,"1', b'"a""b",2', b'"a\nb"x,3'])
    assert [isinstance(each, str) and "a quote that does not end" in each for each in found] == [
        True,
        True,
        False,
        False,
    ]
    assert found[2:] == [{"name": 'a"b', "n": 2}, {"name": "a\nbx", "n": 3}]


def test_a_byte_order_mark_is_left_out_of_each_payload() -> None:
    found = decoded(TWO, [MARK + b"a,1", MARK + b"b,2\n", b"c" + MARK + b",3", MARK, MARK + MARK + b"d,4"])
    assert found[:3] == [{"name": "a", "n": 1}, {"name": "b", "n": 2}, {"name": "c\ufeff", "n": 3}]
    assert found[3:] == ["it has 1 of 2 fields", "it begins with several byte order marks"]
