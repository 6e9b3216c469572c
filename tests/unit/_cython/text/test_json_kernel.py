"""The JSON kernel against json.loads and pa.array, row by row, and against a table of texts that are JSON or are not."""

import json
import math
import threading
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sabot._cython.text.json import BadRow, JsonDecoder, encode_rows
from sabot.codecs.json import infer_schema
from sabot.errors import UserError
from twins.json_rows import twin


def check(schema, payloads, decoder=None):
    """Decodes as list, as Arrow array, as a slice of one, and as lines; all must be what the twin says. Returns the batch."""
    decoder = decoder or JsonDecoder(schema)
    rows, bad = twin(schema, payloads)
    expected = pa.RecordBatch.from_pylist(rows, schema=schema)
    around = pa.array([b'{"a":"before"}', *payloads, b"after"], pa.binary())
    array = pa.array(payloads, pa.binary())
    for given_payloads in (payloads, array, around[1:-1], around.slice(1, len(payloads))):
        batch, bad_rows = decoder.decode(given_payloads)
        batch.validate(full=True)
        assert [row.row for row in bad_rows] == bad
        assert all(row.reason for row in bad_rows)
        assert batch.schema.equals(schema, check_metadata=True)
        assert batch.num_rows == len(rows)
        assert bits(batch) == bits(expected) or not schema.names  # from_pylist makes no rows without columns
    if all(payload and payload.strip() and b"\n" not in payload for payload in payloads):
        batch, bad_rows = decoder.decode_lines(b"\n".join(payloads))
        assert [row.row for row in bad_rows] == bad
        assert batch.num_rows == len(rows)
        assert bits(batch) == bits(expected) or not schema.names
    return batch


def bits(batch):
    """Rows as text in which -0.0 and 0.0, 1 and 1.0 and True differ."""
    return repr(batch.to_pylist())


WIDE = pa.schema(
    [
        ("flag", pa.bool_()),
        ("tiny", pa.int8()),
        ("id", pa.int64()),
        ("count", pa.uint64()),
        ("amount", pa.float64()),
        ("ratio", pa.float32()),
        ("name", pa.string()),
        ("blob", pa.binary()),
        ("nothing", pa.null()),
        ("numbers", pa.list_(pa.int32())),
        ("place", pa.struct([("city", pa.string()), ("at", pa.list_(pa.float64()))])),
        ("legs", pa.list_(pa.struct([("x", pa.int16()), ("why", pa.string())]))),
        ("props", pa.map_(pa.string(), pa.int32())),
        pa.field("needed", pa.int32(), nullable=False),
    ],
    metadata={"made": "by hand"},
)

# ---- property tests ----------------------------------------------------------------------------------------------

numbers = (
    st.integers(-(2**70), 2**70)
    | st.sampled_from(
        [0, 127, 128, -128, -129, 2**31, -(2**31), 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64]
    )
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.floats(-1000, 1000, width=32)
)
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["city", "at", "x", "why", "o\n"]), inner, max_size=4)
    ),
    max_leaves=8,
)
likely = {
    "flag": st.booleans(),
    "tiny": st.integers(-130, 130),
    "id": st.integers(-(2**63), 2**63 - 1),
    "count": st.integers(0, 2**64 - 1),
    "amount": numbers,
    "ratio": st.floats(width=32, allow_nan=False, allow_infinity=False) | numbers,
    "name": st.text(max_size=60),
    "blob": st.text(max_size=20),
    "nothing": st.none(),
    "numbers": st.lists(st.none() | st.integers(-(2**31), 2**31 - 1), max_size=5),
    "place": st.fixed_dictionaries({}, optional={"city": st.none() | st.text(), "at": st.lists(numbers, max_size=3)}),
    "legs": st.lists(
        st.none() | st.fixed_dictionaries({}, optional={"x": st.integers(-40000, 40000), "why": st.text()}), max_size=3
    ),
    "props": st.dictionaries(st.text(max_size=20), st.none() | st.integers(-(2**31), 2**31), max_size=4),
    "needed": st.integers(0, 100),
    "unknown": anything,
    'un"kn\\own': anything,
    "a name that is longer than sixteen bytes": anything,
    "ключ": anything,
}


@st.composite
def objects(draw):
    """The text of an object: fields in any order, missing, twice; escapes and spaces by chance."""
    names = draw(st.lists(st.sampled_from(sorted(likely)), max_size=12))
    if draw(st.integers(0, 3)):
        names.append("needed")
    ascii_only = draw(st.booleans())
    space = draw(st.sampled_from(["", " ", "\t", " \r "]))
    parts = []
    for name in names:
        value = draw(anything) if draw(st.integers(0, 9)) == 0 else draw(likely[name])
        text = json.dumps(value, ensure_ascii=ascii_only, separators=(f"{space},", f":{space}"))
        key = json.dumps(name, ensure_ascii=ascii_only)
        if draw(st.integers(0, 15)) == 0:  # the same key, every letter escaped
            key = '"' + "".join(f"\\u{ord(c):04X}" for c in name) + '"'
        parts.append(f"{space}{key}{space}:{space}{text}{space}")
    return f"{space}{{{','.join(parts)}}}{space}".encode()


@settings(max_examples=80, deadline=None)
@given(st.lists(objects() | st.none() | st.binary(max_size=8), max_size=8))
def test_decoded_rows_are_what_json_loads_and_pyarrow_give(payloads):
    check(WIDE, payloads)


@settings(max_examples=100, deadline=None)
@given(objects(), st.data())
def test_a_damaged_payload_is_bad_exactly_when_json_loads_refuses_it(payload, data):
    at = data.draw(st.integers(0, len(payload) - 1))
    byte = data.draw(st.sampled_from([*b'{}[]",:\\0e.-tn \x00\x1f\x7f\x80\xc0\xe2\xff']))
    broken = payload[:at] + bytes([byte]) + payload[at + 1 :]
    try:
        json.dumps(json.loads(broken), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return  # half a surrogate pair: see the test of those
    except ValueError:
        pass
    check(WIDE, [payload, broken, payload, payload[:at], payload])


@settings(max_examples=150, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
@example(5e-324)
@example(2.2250738585072011e-308)
@example(1.7976931348623157e308)
@example(-0.0)
@example(9007199254740993.0)
def test_floats_are_read_exactly_however_they_are_written(number):
    texts = [repr(number), f"{number:.17g}", f"{number:.25e}", f"{number:.3f}"]
    payloads = [f'{{"x":{text}}}'.encode() for text in texts]
    batch, bad = JsonDecoder(pa.schema([("x", pa.float64())])).decode(payloads)
    assert not bad
    assert repr(batch.column(0).to_pylist()) == repr([float(text) for text in texts])


@settings(max_examples=150, deadline=None)
@given(st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?", fullmatch=True))
@example(
    "179769313486231580793728971405303415079934132710037826936173778980444968292764750946649017977587207096330286416692887910946555547851940402630657488671505820681908902000708383676273854845817711531764475730270069855571366959622842914819860834936475292719074168444365510704342711559699508093042880"
)
@example("0.0000000000000000000000000000000000000001e40")
@example("1" + "0" * 400 + "e-400")
@example("0." + "0" * 400 + "1e401")
@example("1e999999999999999999999")
@example("1e-999999999999999999999")
@example("9" * 400)
def test_any_number_of_the_grammar_is_read_as_python_reads_it(text):
    payload = [f'{{"x":{text}}}'.encode()]
    expected = float(text)
    batch, bad = JsonDecoder(pa.schema([("x", pa.float64())])).decode(payload)
    assert (batch.column(0).to_pylist(), len(bad)) == (([expected], 0) if math.isfinite(expected) else ([], 1))
    whole = "." not in text and "e" not in text.lower() and -(2**63) <= int(text) < 2**63
    batch, bad = JsonDecoder(pa.schema([("x", pa.int64())])).decode(payload)
    assert (batch.column(0).to_pylist(), len(bad)) == (([int(text)], 0) if whole else ([], 1))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abcdefg"), st.integers(0, 9), max_size=7), max_size=30))
def test_the_order_of_the_fields_does_not_matter_to_a_decoder_that_has_seen_another(rows):
    decoder = JsonDecoder(pa.schema([(name, pa.int64()) for name in "gca"]))
    for start in range(0, len(rows), 7):
        part = rows[start : start + 7]
        check(decoder.schema, [json.dumps(row).encode() for row in part], decoder)


# ---- texts that are JSON, and texts that are not -----------------------------------------------------------------

VALID = [
    "null", "true", "false", "0", "-0", "-1", "10", "1.5", "0.5", "-0.0", "1e5", "1E+5", "1e-5", "1.25e2", "0e0", "0e+1",
    '""', '"a"', r'"\""', r'"\\"', r'"\/"', r'"\b\f\n\r\t"', r'"\u0000"', r'"\u00e9"', r'"\uD83D\uDE00"', '"\x7f"', '"é"', '"😀"',
    '"\u2028"', '"' + "x" * 100 + '"', "[]", "[[]]", "[1,2]", "[ 1 , 2 ]", "{}", '{"":0}', '{"a":{}}', '{"a":[{"b":null}]}',
    "[" * 200 + "]" * 200, '{"a":' * 100 + "1" + "}" * 100, r'{"\u0061":1}', '{"x":1,"x":2}', "[null,true,1,\"s\",[],{}]",
    r'"\uD800"', r'"\uDC00\uD800"', r'"\uD800\uD800"', r'"\uD800x"',  # JSON, though no text
]  # fmt: skip
INVALID = [
    "", " ", "nul", "nulll", "True", "tru", "falsey", "NaN", "Infinity", "-Infinity", "undefined", "-",
    "+1", "01", "-01", "1.", ".5", "1.e1",
    "1e", "1e+", "0x10", "1 2", "1_000", "--1", "1a", "'a'", '"', '"a', '"\\"', r'"\x41"', r'"\u12"', r'"\u12g4"', r'"\U0041"', r'"\a"',
    '"\n"', '"\t"', '"\x00"', '"\x1f"', "[", "]", "[1", "[1,", "[1,]", "[,1]", "[,]", "[1,,2]", "[1 2]", "[1}", "{", "}", '{"a"', '{"a":',
    '{"a":1', '{"a":1,', '{"a":1,}', "{,}", '{"a",1}', "{a:1}", "{1:1}", "{null:1}", '{"a":1 "b":2}', '{"a"::1}', '{"a":1}}', '{"a":1]',
    "[1]]", '"a" "b"', "/* c */ 1", "1 // c", "\v1", "\xa01", "\ufeff1", "[1]x", '{"a":}', '{"a"}', '{:1}', '"a"b', "[\"a\",\n4\n,1,",
    '{"a":"b"', "tRue", "[" * 600 + "]" * 600, '{"a":' * 600 + "1" + "}" * 600, "[" * 100000,
]  # fmt: skip
BAD_UTF8 = [
    b"\x80", b"\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xc3", b"\xc3\x28", b"\xe0\x80\x80", b"\xe0\x9f\xbf", b"\xe2\x82", b"\xed\xa0\x80",
    b"\xed\xbf\xbf", b"\xf0\x80\x80\x80", b"\xf0\x8f\xbf\xbf", b"\xf0\x9f\x98", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xff", b"\xfe",
]  # fmt: skip


@pytest.mark.parametrize("text", VALID)
def test_valid_json_is_passed_over_in_a_field_nobody_wants(text):
    payload = f'{{"before":1,"skipped":{text},"after":2}}'.encode()
    batch, bad = JsonDecoder(pa.schema([("before", pa.int64()), ("after", pa.int64())])).decode([payload])
    assert not bad
    assert batch.to_pylist() == [{"before": 1, "after": 2}]


@pytest.mark.parametrize("text", INVALID, ids=lambda text: repr(text[:20]))
def test_invalid_json_is_a_bad_row_also_in_a_field_nobody_wants(text):
    payload = f'{{"before":1,"skipped":{text},"after":2}}'.encode()
    good = b'{"before":3,"after":4}'
    batch, bad = JsonDecoder(pa.schema([("before", pa.int64()), ("after", pa.int64())])).decode([good, payload, good])
    assert [row.row for row in bad] == [1]
    assert batch.to_pylist() == [{"before": 3, "after": 4}] * 2


@pytest.mark.parametrize("field", list(WIDE), ids=lambda field: field.name)
def test_invalid_json_is_a_bad_row_in_a_wanted_field_of_any_type(field):
    decoder = JsonDecoder(pa.schema([field.with_nullable(True), ("after", pa.int64())]))
    for text in INVALID:
        payload = f'{{"{field.name}":{text},"after":2}}'.encode()
        batch, bad = decoder.decode([b'{"after":1}', payload, b'{"after":3}'])
        batch.validate(full=True)
        assert [row.row for row in bad] == [1], text
        assert batch.to_pylist() == [{field.name: None, "after": 1}, {field.name: None, "after": 3}]


@pytest.mark.parametrize("garbage", BAD_UTF8)
@pytest.mark.parametrize("wanted", ["name", "blob", "another"])
def test_invalid_utf8_is_a_bad_row_wanted_or_not(garbage, wanted):
    decoder = JsonDecoder(pa.schema([(wanted, pa.string() if wanted != "blob" else pa.binary())]))
    for before in range(0, 33, 4):
        for text in (b"x" * before + garbage, b"x" * before + garbage + b"y" * 20):
            batch, bad = decoder.decode(
                ['{"name":"é"}'.encode(), b'{"name":"' + text + b'"}', b'{"' + text + b'":1}', b'{"blob":"ok"}']
            )
            assert [row.row for row in bad] == [1, 2]
            assert "invalid UTF-8" in bad[0].reason
            assert f"at byte {9 + before}" in bad[0].reason
            assert batch.num_rows == 2


@pytest.mark.parametrize("data_type", [pa.string(), pa.binary()])
@pytest.mark.parametrize(
    "text", [r"\uD800", r"\uDC00", r"ab\uDFFFcd", r"\uD800\uD800", r"\uDC00\uD800", r"\uD83D\n", r"\uD83Dx"]
)
def test_half_a_surrogate_pair_cannot_be_text_of_a_column_and_leaves_nothing_behind(text, data_type):
    decoder = JsonDecoder(pa.schema([("s", data_type), ("n", pa.int64())]))
    payloads = [
        '{"s":"one"}',
        f'{{"s":"{text}"}}',
        '{"s":"two"}',
        f'{{"s":"{text}","s":"three"}}',
        f'{{"{text}":0,"s":"four"}}',
    ]
    batch, bad = decoder.decode([payload.encode() for payload in payloads])
    batch.validate(full=True)
    assert [row.row for row in bad] == [1]
    assert "surrogate" in bad[0].reason
    assert batch.column("s").cast(pa.string()).to_pylist() == ["one", "two", "three", "four"]


# ---- bad rows ----------------------------------------------------------------------------------------------------


def test_a_bad_row_says_what_is_wrong_and_at_which_byte():
    decoder = JsonDecoder(
        pa.schema(
            [
                ("id", pa.int64()),
                ("small", pa.int8()),
                pa.field("must", pa.bool_(), nullable=False),
                ("order", pa.struct([("lines", pa.list_(pa.struct([("price", pa.float64())])))])),
            ]
        )
    )
    reasons = {
        b'{"must":true,"id":"7"}': "field id: expected int64, found a string at byte 18",
        b'{"must":true,"id":1.0}': "field id: a number with a fraction or exponent cannot be int64 at byte 18",
        b'{"must":true,"id":9223372036854775808}': "field id: the number is out of range for int64 at byte 18",
        b'{"must":true,"small":128}': "field small: the number is out of range for int8 at byte 21",
        b'{"must":true,"order":{"lines":[{"price":1},{"price":[]}]}}': (
            "field order.lines[].price: expected double, found a list at byte 52"
        ),
        b'{"must":null}': "field must: expected bool, found null at byte 8",
        b' {"id":1}': "field must is missing, and may not be null, at byte 1",
        b"": "the payload is empty at byte 0",
        b" \n ": "the payload is empty at byte 0",
        None: "the payload is null",
        b"[1]": "expected an object, found a list at byte 0",
        b"12": "expected an object, found a number at byte 0",
        b"hello": "expected an object, found no JSON at byte 0",
        b'{"must":true': "invalid JSON: the object does not end with '}' at byte 12",
        b'{"must":true} {}': "invalid JSON: there are bytes after the end of the object at byte 13",
        b'{"must" true}': "invalid JSON: expected ':' at byte 8",
        b'{"must":true,}': "invalid JSON: expected a field name in quotes at byte 13",
        b'{"must":truth}': "invalid JSON: expected a value at byte 8",
        b'{"must":true,"x":"a\x01"}': "invalid JSON: a string has a control character at byte 19",
        b'{"must":true,"x":"}': "invalid JSON: a string is not closed at byte 19",
        b'{"must":true,"x":{"y":1}': "invalid JSON: an object or list is not closed at byte 24",
    }
    batch, bad = decoder.decode(list(reasons))
    assert batch.num_rows == 0
    assert {list(reasons)[row.row]: row.reason for row in bad} == reasons


def test_bad_rows_in_the_middle_take_back_all_that_they_had_appended():
    lists, structs = pa.list_(pa.list_(pa.string())), pa.struct([("s", pa.string())])
    schema = pa.schema([("s", pa.string()), ("l", lists), ("o", structs), ("n", pa.int8())])
    good = b'{"s":"good","l":[["a","b"],[],null],"o":{"s":"x"},"n":1}'
    breakers = [
        b'"n":300}',
        b'"n":}',
        b'"n":1',
        b'"n":"x',
        b'"n":1},',
        b'"l":[["z","y"],["',
        b'"o":{"s":"w","s',
        b'"s":"\\x"}',
    ]
    broken = [b'{"s":"bad text","l":[["q"],["r",null]],"o":{"s":"bad"},' + tail for tail in breakers]
    payloads = [row for pair in zip(broken, [good] * len(broken), strict=True) for row in pair]
    batch = check(schema, payloads)
    assert batch.to_pylist() == [json.loads(good)] * len(broken)
    assert batch.column("l").flatten().flatten().to_pylist() == ["a", "b"] * len(broken)


@pytest.mark.parametrize(
    ("payload", "value"),
    [
        ('{"a":1,"a":2}', 2),
        ('{"a":"wrong","a":2}', 2),
        ('{"a":300000000000,"b":0,"a":2}', 2),
        ('{"a":1,"a":null}', None),
        ('{"a":1,"\\u0061":3}', 3),
        ('{"a":[1,{"x":"y"}],"a":4}', 4),
    ],
)
def test_of_duplicate_keys_the_last_wins_whatever_the_first_was(payload, value):
    batch, bad = JsonDecoder(pa.schema([("a", pa.int32())])).decode([payload.encode()])
    assert not bad
    assert batch.to_pylist() == [{"a": value}]


def test_duplicates_in_nested_objects_and_wrong_last_ones_are_as_json_loads_has_them():
    check(
        pa.schema([("o", pa.struct([("x", pa.int64()), ("l", pa.list_(pa.string()))])), ("n", pa.int64())]),
        [
            b'{"o":{"x":"s","x":1},"n":1}',
            b'{"o":{"x":1,"x":"s"},"n":1}',
            b'{"o":{"x":[]},"o":{"x":5,"l":["a"]},"n":2}',
            b'{"o":{"l":["a","b",3]},"o":{"l":["a"],"l":["c","d"]},"n":3}',
            b'{"o":{"x":1,"l":["a"]},"o":null,"n":4}',
            b'{"n":1,"n":2,"n":"x"}',
            b'{"n":"x","n":"y","n":6}',
        ],
    )


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ('{"a":1,"b":2,"a":3}', [("b", 2), ("a", 3)]),
        ('{"a":1,"\\u0061":2}', [("a", 2)]),
        ('{"x":7,"x":null,"x":7}', [("x", 7)]),
        ("{" + ",".join(f'"{i % 40}":{i}' for i in range(100)) + "}", [(str(i % 40), i) for i in range(60, 100)]),
    ],
)
def test_a_map_has_the_last_of_equal_keys(text, entries):
    payload = f'{{"m":{text},"n":{{"a":{text},"a":{text}}}}}'.encode()
    inner = pa.map_(pa.string(), pa.int64())
    decoder = JsonDecoder(pa.schema([("m", inner), ("n", pa.map_(pa.string(), inner))]))
    batch, bad = decoder.decode([b'{"m":{"before":1}}', payload, b'{"m":{}}'])
    batch.validate(full=True)
    assert not bad
    assert batch.column("m").to_pylist() == [[("before", 1)], entries, []]
    assert batch.column("n").to_pylist() == [None, [("a", entries)], None]


def test_a_map_with_a_wrong_value_or_key_is_a_bad_row_and_leaves_nothing_behind():
    decoder = JsonDecoder(pa.schema([("m", pa.map_(pa.string(), pa.list_(pa.int8())))]))
    payloads = [
        b'{"m":{"a":[1]}}',
        b'{"m":{"a":[2],"b":[300],"c":[4]}}',
        b'{"m":{"a":[5],"\\uD800":[6]}}',
        b'{"m":[]}',
        b'{"m":{"z":[]}}',
    ]
    batch, bad = decoder.decode(payloads)
    batch.validate(full=True)
    assert batch.column("m").to_pylist() == [[("a", [1])], [("z", [])]]
    assert [row.reason for row in bad] == [
        "field m.value[]: the number is out of range for int8 at byte 19",
        "field m.key: half of a surrogate pair cannot be written in string at byte 14",
        "field m: expected map<string, list<item: int8>>, found a list at byte 5",
    ]


def test_maps_are_written_as_objects_whatever_slice_they_are():
    maps = pa.array([[("x", 1)], None, [("a", 2), ('q"', None)], []], pa.map_(pa.string(), pa.int64()))
    rows = pa.record_batch({"m": maps, "l": pa.array([[1], [2], [3], [4]])})
    texts = ['{"x":1}', "null", '{"a":2,"q\\"":null}', "{}"]
    for start in range(4):
        part = rows.slice(start)
        assert encode_rows(part).to_pylist() == [
            f'{{"m":{text},"l":[{i + 1}]}}'.encode() for i, text in enumerate(texts) if i >= start
        ]
    decoded, bad = JsonDecoder(rows.schema).decode(encode_rows(rows))
    assert (decoded.to_pylist(), bad) == (rows.to_pylist(), [])


def test_bad_rows_compare_by_value_and_can_be_sent_to_another_process():
    import pickle

    row = BadRow(3, "why")
    assert pickle.loads(pickle.dumps(row)) == row != BadRow(4, "why")
    assert repr(row) == "BadRow(row=3, reason='why')"
    assert (row.start, row.end) == (-1, -1)
    placed = BadRow(3, "why", 10, 20)
    assert pickle.loads(pickle.dumps(placed)) == placed == BadRow(3, "why", start=10, end=20)
    assert row != placed != BadRow(3, "why", 10, 21)
    assert hash(placed) == hash(BadRow(3, "why", 10, 20))
    assert repr(placed) == "BadRow(row=3, reason='why', start=10, end=20)"


# ---- shapes of input ---------------------------------------------------------------------------------------------


def test_no_payloads_give_an_empty_batch_of_the_schema():
    decoder = JsonDecoder(WIDE)
    for empty in (
        [],
        (),
        pa.array([], pa.binary()),
        pa.array([b"{}"], pa.binary())[1:],
        pa.chunked_array([], pa.binary()),
    ):
        batch, bad = decoder.decode(empty)
        batch.validate(full=True)
        assert (batch.num_rows, batch.schema, bad) == (0, WIDE, [])
    for nothing in (b"", b"\n\r\n  \n", memoryview(b""), pa.py_buffer(b"\n")):
        batch, bad = decoder.decode_lines(nothing)
        assert (batch.num_rows, bad) == (0, [])


def test_a_schema_without_columns_still_counts_and_checks_rows():
    batch, bad = JsonDecoder(pa.schema([])).decode([b"{}", b'{"a":[1,{"b":2}]}', b'{"a":}', b"{}"])
    assert (batch.num_rows, batch.num_columns, [row.row for row in bad]) == (3, 0, [2])


@pytest.mark.parametrize(
    "data_type", [pa.string(), pa.large_binary(), pa.large_string(), pa.binary_view(), pa.string_view()]
)
def test_payloads_may_be_any_arrow_text_or_binary(data_type):
    array = pa.array(["x", '{"a":1}', None, '{"a":2}'], data_type)[1:]
    for payloads in (array, pa.chunked_array([array[:1], array[1:]])):
        batch, bad = JsonDecoder(pa.schema([("a", pa.int64())])).decode(payloads)
        assert batch.to_pylist() == [{"a": 1}, {"a": 2}]
        assert bad == [BadRow(1, "the payload is null")]


def test_what_is_no_payload_is_refused_before_anything_is_read():
    decoder = JsonDecoder(pa.schema([("a", pa.int64())]))
    with pytest.raises(TypeError, match="payload 1 is a str"):
        decoder.decode([b"{}", "{}"])
    with pytest.raises(TypeError, match="list"):
        decoder.decode(pa.array([[1]]))
    with pytest.raises(TypeError):
        decoder.decode_lines("text")


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\n\n", b" \n\t\n"])
def test_lines_end_in_any_way_and_blank_ones_are_not_counted(ending):
    rows = [b'{"a":%d,"pad":"%s"}' % (i, b"x" * (i % 70)) for i in range(300)]
    rows[7] = b"broken"
    for data in (ending.join(rows), ending.join(rows) + ending, ending + ending.join(rows)):
        batch, bad = JsonDecoder(pa.schema([("a", pa.int64())])).decode_lines(data)
        assert batch.column("a").to_pylist() == [i for i in range(300) if i != 7]
        assert [row.row for row in bad] == [7]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [b"", b"\n", b"\r\n", b"\n \n"])
def test_a_bad_line_has_its_bounds_in_the_data(ending, last):
    good = b'{"a":1, "text":"%s"}' % (b"x" * 50)
    lines = [b"no", good, b"", b'{"a":"one"}', b"  ", b' {"a":2} {} ', good, b"[]", good, b'{"a":']
    data = memoryview(b"before" + ending.join(lines) + last)[6:]
    batch, bad = JsonDecoder(pa.schema([("a", pa.int64())])).decode_lines(data)
    assert batch.num_rows == 3
    assert [bytes(data[row.start : row.end]) for row in bad] == [lines[i] for i in (0, 3, 5, 7, 9)]
    assert [row.row for row in bad] == [0, 2, 3, 5, 7]  # blank lines are not counted
    assert bad[1].reason.endswith("at byte 5")


def test_an_object_does_not_reach_over_the_end_of_its_line():
    batch, bad = JsonDecoder(pa.schema([("a", pa.int64())])).decode_lines(b'{"a":\n1}\n{"a":2}\n')
    assert batch.to_pylist() == [{"a": 2}]
    assert [row.row for row in bad] == [0, 1]


@pytest.mark.parametrize("length", range(60, 90))
def test_a_row_never_borrows_bytes_from_the_next_one(length):
    """Rows are read 8 and 16 bytes at a time; what lies behind a cut row must not complete it."""
    whole = json.dumps({"s": "x" * (length - 40), "t": "}" * 8, "n": 12345678}).encode()
    for cut in range(1, len(whole)):
        array = pa.array([whole[:cut], whole[cut:] + b" " * 70, whole, b" " * 200], pa.binary())
        batch, bad = JsonDecoder(pa.schema([("s", pa.string()), ("n", pa.int64())])).decode(array)
        assert [row.row for row in bad] == [0, 1, 3]
        assert batch.to_pylist() == [{"s": "x" * (length - 40), "n": 12345678}]


@pytest.mark.slow  # half a second of a core
def test_a_payload_of_ten_megabytes_is_one_row():
    text = "long text, é and 😀 " * 500_000
    items = list(range(100_000))
    payload = json.dumps({"text": text, "items": items, "more": [text[:1000]] * 100}, ensure_ascii=False).encode()
    assert len(payload) > 10_000_000
    schema = pa.schema([("text", pa.string()), ("items", pa.list_(pa.int64()))])
    for payloads in ([payload, b"{}"], pa.array([payload, b"{}"])):
        batch, bad = JsonDecoder(schema).decode(payloads)
        assert not bad
        assert batch.column("text").to_pylist() == [text, None]
        assert batch.column("items").to_pylist() == [items, None]
    batch, bad = JsonDecoder(schema).decode([payload[:-1], payload[:-1] + b",}", b"{}"])
    assert ([row.row for row in bad], batch.num_rows) == ([0, 1], 1)


def test_nesting_is_bounded_with_and_without_a_schema_for_it():
    def nested(depth):
        return b'{"a":' * depth + b"1" + b"}" * depth

    assert JsonDecoder(pa.schema([])).decode([nested(512)])[1] == []
    for deep in (nested(513), nested(100_000), b'{"a":' + b"[" * 512 + b"]" * 512 + b"}"):
        assert "nested deeper than 512" in JsonDecoder(pa.schema([])).decode([deep])[1][0].reason
    data_type = pa.int64()
    for _ in range(50):
        data_type = pa.list_(pa.struct([("a", data_type)]))
    with pytest.raises(UserError, match="nested deeper than 60"):  # Arrow itself stops at 64
        JsonDecoder(pa.schema([("x", data_type)]))
    data_type = pa.int64()
    for _ in range(29):
        data_type = pa.list_(pa.struct([("a", data_type)]))
    value = 1
    for _ in range(29):
        value = [{"a": value}]
    payload = json.dumps({"x": value}).encode()
    batch, bad = JsonDecoder(pa.schema([("x", data_type)])).decode([payload, payload])
    assert (bad, batch.to_pylist()) == ([], [{"x": value}] * 2)


def test_more_unknown_names_than_a_decoder_remembers_are_still_passed_over():
    decoder = JsonDecoder(pa.schema([("wanted", pa.int64())]))
    payloads = [json.dumps({f"k{i}-{j}": j for j in range(50)} | {"wanted": i}).encode() for i in range(100)]
    batch, bad = decoder.decode(payloads)
    assert (batch.column(0).to_pylist(), bad) == (list(range(100)), [])


def test_a_byte_order_mark_is_passed_over():
    batch, bad = JsonDecoder(pa.schema([("a", pa.int64())])).decode_lines(b'\xef\xbb\xbf{"a":1}\n{"a":2}\n')
    assert (batch.column(0).to_pylist(), bad) == ([1, 2], [])


def test_several_threads_may_use_one_decoder():
    decoder = JsonDecoder(pa.schema([("s", pa.string()), ("n", pa.int64())]))
    wrong = []

    def work(seed):
        rows = [{"s": f"{seed}-{i}" * (i % 5), "n": i * seed} for i in range(500)]
        payloads = pa.array([json.dumps(row).encode() for row in rows])
        for _ in range(20):
            batch, bad = decoder.decode(payloads)
            if bad or batch.to_pylist() != rows:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_decoded_buffers_live_as_long_as_what_refers_to_them():
    decoder = JsonDecoder(pa.schema([("s", pa.string()), ("l", pa.list_(pa.int64()))]))
    column = decoder.decode([b'{"s":"%d","l":[%d]}' % (i, i) for i in range(1000)])[0].column("s")[10:20]
    items = decoder.decode([b'{"l":[%d]}' % i for i in range(1000)])[0].column("l").flatten()
    del decoder
    assert column.to_pylist() == [str(i) for i in range(10, 20)]
    assert items.to_pylist() == list(range(1000))


# ---- schemas -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data_type",
    [
        pa.decimal64(10, 2),
        pa.float16(),
        pa.large_string(),
        pa.map_(pa.int64(), pa.string()),
        pa.duration("s"),
    ],
)
def test_types_that_json_cannot_give_are_refused_by_name(data_type):
    with pytest.raises(UserError, match=r"column 'outer\[\]\.price'"):
        JsonDecoder(pa.schema([("outer", pa.list_(pa.struct([("price", data_type)])))]))


def test_a_column_named_twice_is_refused():
    with pytest.raises(UserError, match="there are two columns 'a'"):
        JsonDecoder(pa.schema([("a", pa.int64()), ("a", pa.string())]))


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1700000000123", datetime(2023, 11, 14, 22, 13, 20, 123000, UTC)),
        ("0", datetime(1970, 1, 1, tzinfo=UTC)),
        ("-1", datetime(1969, 12, 31, 23, 59, 59, 999000, UTC)),
        ('"2024-02-29"', datetime(2024, 2, 29, tzinfo=UTC)),
        ('"2024-02-29T23:59"', datetime(2024, 2, 29, 23, 59, tzinfo=UTC)),
        ('"2024-02-29T23:59:58Z"', datetime(2024, 2, 29, 23, 59, 58, tzinfo=UTC)),
        ('"2024-02-29 23:59:58.123z"', datetime(2024, 2, 29, 23, 59, 58, 123000, UTC)),
        ('"2024-02-29T23:59:58.123999999+05:30"', datetime(2024, 2, 29, 18, 29, 58, 123999, UTC)),
        ('"2024-03-01T00:30:00-0130"', datetime(2024, 3, 1, 2, 0, tzinfo=UTC)),
        ('"2024-03-01T00:30:00+01"', datetime(2024, 2, 29, 23, 30, tzinfo=UTC)),
        ('"1969-12-31T23:59:59.5Z"', datetime(1969, 12, 31, 23, 59, 59, 500000, UTC)),
        ('"1900-02-28T00:00:00\\u005a"', datetime(1900, 2, 28, tzinfo=UTC)),
    ],
)
def test_times_are_epoch_milliseconds_or_iso_8601_in_utc(text, moment):
    schema = pa.schema(
        [(unit, pa.timestamp(unit, "UTC")) for unit in ("s", "ms", "us", "ns")] + [("plain", pa.timestamp("us"))]
    )
    payload = "{" + ",".join(f'"{name}":{text}' for name in schema.names) + "}"
    batch, bad = JsonDecoder(schema).decode([payload.encode()])
    assert not bad
    row = {name: batch.column(name)[0] for name in schema.names}
    micros = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert row["s"].value == micros // 1_000_000
    assert row["ms"].value == micros // 1000
    assert row["us"].value == row["plain"].value == micros
    assert row["ns"].value // 1000 == micros
    midnight = moment.timetz().replace(tzinfo=None) == datetime.min.time()
    days = pa.schema([("d32", pa.date32()), ("d64", pa.date64())])
    for name in days.names:
        found, bad = JsonDecoder(days).decode([f'{{"{name}":{text}}}'.encode()])
        if text != "-1":  # the last day of 1969
            assert found.column(name).to_pylist() == ([moment.date()] if midnight else [])
            assert [f"field {name}" in each.reason for each in bad] == ([] if midnight else [True])


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
def test_a_date_of_json_loses_no_hour(kind):
    """A number that was no whole day, and the hour of a text, were cut in silence."""
    given = ["2932896", "2932897", "-2932896", "-2932897", "86400000", "86400001", "1704067200000", "1704103200000", "-86400000",
             '"2024-01-01T00:00:00.000Z"', '"2024-01-01T00:00:00.000000001"', '"2024-01-01T02:00+02:00"', '"2024-01-01T00:00+02:00"',
             '"2024-01-01 10:00"', "0", "-86399999"]  # fmt: skip
    schema = pa.schema([("n", pa.int64()), ("x", pa.list_(pa.struct([("day", kind)])))])
    payloads = [f'{{"n":{n},"x":[{{"day":{each}}}]}}'.encode() for n, each in enumerate(given)]
    for found, bad in (JsonDecoder(schema).decode(payloads), JsonDecoder(schema).decode_lines(b"\n".join(payloads))):
        unit = 1 if kind == pa.date32() else 86_400_000
        days = found["x"].flatten().flatten()[0].cast(pa.int32() if unit == 1 else pa.int64()).to_pylist()
        assert found["n"].to_pylist() == [0, 2, 4, 6, 8, 9, 11, 14]
        assert [day / unit for day in days] == [2_932_896, -2_932_896, 1, 19_723, -1, 19_723, 19_723, 0]
        assert [row.row for row in bad] == [1, 3, 5, 7, 10, 12, 13, 15]
        number = f"field x[].day: the number is no whole day, in ms or days since 1970, for {kind} at byte"
        text = f"field x[].day: the time is not midnight in UTC, which is lost in {kind} at byte"
        assert [row.reason.rsplit(" ", 1)[0] for row in bad] == [*[number] * 4, *[text] * 3, number]


@pytest.mark.parametrize(
    "text",
    ['"2023-02-29"', '"2024-13-01"', '"2024-01-32"', '"2024-00-10"', '"2024-01-01T24:00"', '"2024-01-01T10:60"', '"2024-01-01T10"',
     '"24-1-1"',
     '"2024-01-01T10:00:00."', '"2024-01-01T10:00Zx"', '"2024-01-01T10:00+25:00"', '"today"', '""', "1.5", "1e3", "true",
     "99999999999999999999",
     '"2024-01-01T10:00:00+1"', '"2024-01-01x"', '"1900-02-29"', "[0]"],
)  # fmt: skip
def test_what_is_no_time_is_a_bad_row(text):
    for data_type in (pa.timestamp("ms", "UTC"), pa.date32(), pa.date64()):
        batch, bad = JsonDecoder(pa.schema([("t", data_type)])).decode([f'{{"t":{text}}}'.encode(), b'{"t":0}'])
        assert [row.row for row in bad] == [0]
        assert batch.num_rows == 1


def test_a_time_beyond_its_unit_is_a_bad_row():
    payloads = [
        b'{"t":9223372036854775807}',
        b'{"t":-9223372036854775807}',
        b'{"t":"9999-12-31T00:00:00Z"}',
        b'{"t":1}',
    ]
    batch, bad = JsonDecoder(pa.schema([("t", pa.timestamp("ns", "UTC"))])).decode(payloads)
    assert ([row.row for row in bad], batch.num_rows) == ([0, 1, 2], 1)


def test_every_64_bit_number_of_milliseconds_is_a_time():
    edges = [2**63 - 1, -(2**63), -(2**63) + 1, -(2**63) + 807, -(2**63) + 808, -1, 999, -1000, -1001]
    payloads = [b'{"t":%d}' % edge for edge in edges]
    batch, bad = JsonDecoder(pa.schema([("t", pa.timestamp("ms"))])).decode(
        [*payloads, b'{"t":%d}' % (2**63), b'{"t":%d}' % (-(2**63) - 1)]
    )
    assert batch.column(0).cast(pa.int64()).to_pylist() == edges
    assert [row.row for row in bad] == [len(edges), len(edges) + 1]
    batch, bad = JsonDecoder(pa.schema([("t", pa.timestamp("s"))])).decode(payloads)
    assert batch.column(0).cast(pa.int64()).to_pylist() == [edge // 1000 for edge in edges]
    days = [edge // 86_400_000 * 86_400_000 for edge in edges if edge > -(2**62)]
    batch, bad = JsonDecoder(pa.schema([("t", pa.date64())])).decode([b'{"t":%d}' % day for day in days])
    assert batch.column(0).cast(pa.int64()).to_pylist() == days


# ---- inference ---------------------------------------------------------------------------------------------------


def test_the_inferred_schema_is_the_narrowest_that_all_rows_fit():
    rows = [
        b'{"id":1,"amount":1,"ok":true,"none":null,"tags":[]}',
        b"not json",
        None,
        b'{"amount":1.5,"name":"x","place":{"lat":1},"tags":["a",null],"empty":[]}',
        b'{"id":null,"place":{"lon":2.5,"lat":null},"deep":[[1],[2.5],[]],"big":18446744073709551615,"o":{}}',
    ]
    schema = infer_schema(rows)
    assert schema == pa.schema(
        [
            ("id", pa.int64()),
            ("amount", pa.float64()),
            ("ok", pa.bool_()),
            ("none", pa.null()),
            ("tags", pa.list_(pa.string())),
            ("name", pa.string()),
            ("place", pa.struct([("lat", pa.int64()), ("lon", pa.float64())])),
            ("empty", pa.list_(pa.null())),
            ("deep", pa.list_(pa.list_(pa.float64()))),
            ("big", pa.decimal128(38, 0)),
            ("o", pa.struct([])),
        ]
    )
    batch, bad = JsonDecoder(schema).decode(rows)
    assert ([row.row for row in bad], batch.num_rows) == ([1, 2], 3)
    assert infer_schema([b"1", None, b"{"]) == pa.schema([])


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([b'{"a":1}', b'{"a":"x"}'], "'a'.*int64 .* string"),
        ([b'{"a":true}', b'{"a":0}'], "'a'.*bool .* int64"),
        ([b'{"a":{"b":1}}', b'{"a":{"b":[]}}'], r"'a\.b'.*int64 .* list"),
        ([b'{"a":[1,"x"]}'], r"'a\[\]'.*int64 .* string"),
        ([b'{"a":1.5}', b'{"a":{}}'], "'a'.*double .* struct"),
    ],
)
def test_rows_that_do_not_agree_are_named_with_both_types(rows, named):
    with pytest.raises(UserError, match=named):
        infer_schema(rows)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=5), anything, max_size=4), max_size=5))
def test_rows_fit_the_schema_inferred_from_them(rows):
    payloads = [json.dumps(row).encode() for row in rows]
    try:
        schema = infer_schema(payloads)
    except UserError:
        return
    check(schema, payloads)


# ---- writing -----------------------------------------------------------------------------------------------------


def test_rows_are_written_as_compact_json():
    batch = pa.record_batch(
        {
            "b": pa.array([True, None, False]),
            "i": pa.array([1, -(2**63), None]),
            "u": pa.array([2**64 - 1, 0, None], pa.uint64()),
            "f": pa.array([1.0, math.nan, -math.inf]),
            "g": pa.array([0.1, -0.0, None], pa.float32()),
            "s": pa.array(['q"\\/\b\f\n\r\t\x01\x1f\x7fé😀', "", None]),
            "y": pa.array([b"bytes", b"\xc3\xa9", None]),
            "t": pa.array([1, -1, None], pa.timestamp("us", "UTC")),
            "d": pa.array([date(1970, 1, 2), None, None]),
            "l": pa.array([[1, None], [], None]),
            "o": pa.array([{"x": 1, "y": [{"z": None}]}, {"x": None, "y": None}, None]),
            "n": pa.nulls(3),
            'na"me': pa.array([1, 2, 3], pa.int8()),
        }
    )
    texts = [
        r'{"b":true,"i":1,"u":18446744073709551615,"f":1.0,"g":0.1,"s":"q\"\\/\b\f\n\r\t\u0001\u001f' + "\x7fé😀"
        r'","y":"bytes","t":0,"d":86400000,"l":[1,null],"o":{"x":1,"y":[{"z":null}]},"n":null,"na\"me":1}',
        '{"b":null,"i":-9223372036854775808,"u":0,"f":null,"g":-0.0,"s":"","y":"é","t":-1,"d":null,"l":[],"o":{"x":null,"y":null},'
        r'"n":null,"na\"me":2}',
        '{"b":false,"i":null,"u":null,"f":null,"g":null,"s":null,"y":null,"t":null,"d":null,"l":null,"o":null,'
        r'"n":null,"na\"me":3}',
    ]
    written = encode_rows(batch)
    written.validate(full=True)
    assert [text.decode() for text in written.to_pylist()] == texts
    assert encode_rows(batch.slice(1, 2)).to_pylist() == written.to_pylist()[1:]
    assert encode_rows(batch.slice(3)).to_pylist() == []
    assert (
        encode_rows(pa.RecordBatch.from_struct_array(batch.to_struct_array()[1:])).to_pylist()
        == written.to_pylist()[1:]
    )


@pytest.mark.parametrize(
    ("number", "text"),
    [(1.0, "1.0"), (100000.0, "100000.0"), (1e15, "1000000000000000.0"), (1e16, "1e+16"), (0.00001, "0.00001"), (1e-7, "1e-07"),
     (123.456, "123.456"), (-2.5, "-2.5"), (5e-324, "5e-324"), (1.7976931348623157e308, "1.7976931348623157e+308")],
)  # fmt: skip
def test_floats_are_written_with_a_point_or_an_exponent(number, text):
    assert encode_rows(pa.record_batch({"x": [number]})).to_pylist() == [f'{{"x":{text}}}'.encode()]


@settings(max_examples=60, deadline=None)
@given(st.lists(objects(), min_size=1, max_size=5), st.data())
def test_what_is_written_reads_back_the_same_also_from_slices(payloads, data):
    decoder = JsonDecoder(WIDE)
    batch, _ = decoder.decode(payloads)
    start = data.draw(st.integers(0, batch.num_rows))
    part = batch.slice(start, data.draw(st.integers(0, batch.num_rows - start)))
    written = encode_rows(part)
    for text, row in zip(written.to_pylist(), part.to_pylist(), strict=True):
        assert json.loads(text)["name"] == row["name"]
    again, bad = decoder.decode(written)
    assert not bad
    assert bits(again) == bits(part)


@settings(max_examples=200, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_written_floats_are_the_shortest_that_read_back(number):
    text = encode_rows(pa.record_batch({"x": [number]})).to_pylist()[0][5:-1].decode()
    assert float(text) == number
    digits = text.lower().split("e")[0].replace(".", "").replace("-", "").strip("0")
    assert len(digits) == len(repr(number).lower().split("e")[0].replace(".", "").replace("-", "").strip("0"))


@pytest.mark.slow  # half a second of a core
def test_times_are_written_as_texts_with_the_digits_that_they_need():
    days = np.arange(-719_528, 2_932_897, 7)  # each seventh of all days with a year of four digits
    written = encode_rows(pa.record_batch({"x": pa.array(days, pa.int32()).cast(pa.date32())}), "iso").to_pylist()
    assert written == [f'{{"x":"{day}"}}'.encode() for day in days.astype("datetime64[D]").astype(str)]
    moments = {"s": 5, "ms": 5_250, "us": -1, "ns": 1_000_000_001}
    texts = ["00:00:05", "00:00:05.25", "23:59:59.999999", "00:00:01.000000001"]
    for (unit, moment), text in zip(moments.items(), texts, strict=True):
        day = "1969-12-31" if moment < 0 else "1970-01-01"
        plain, zoned = (pa.array([moment, None], pa.timestamp(unit, zone)) for zone in (None, "UTC"))
        batch = pa.record_batch({"x": plain, "y": pa.array([[moment], []], pa.list_(zoned.type))})
        for form, between in (("iso", "T"), ("sql", " ")):
            one = f"{day}{between}{text}"
            rows = [f'{{"x":"{one}","y":["{one}Z"]}}', '{"x":null,"y":[]}']
            assert [each.decode() for each in encode_rows(batch, form).to_pylist()] == rows
    far = pa.record_batch({"x": pa.array([253_402_300_800, -62_167_219_201], pa.timestamp("s"))})
    assert encode_rows(far, "iso").to_pylist() == [b'{"x":"+10000-01-01T00:00:00"}', b'{"x":"-0001-12-31T23:59:59"}']


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.datetimes())), st.sampled_from(["iso", "sql"]))
def test_times_that_are_written_as_texts_read_back_the_same(moments, form):
    batch = pa.record_batch(
        {"x": pa.array(moments, pa.timestamp("us")), "y": pa.array(moments, pa.timestamp("us", "UTC"))}
    )
    again, bad = JsonDecoder(batch.schema).decode(encode_rows(batch, form))
    assert not bad
    assert again.equals(batch)


CLOCKS = [pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")]


@pytest.mark.parametrize(
    ("text", "nanos"),  # of the day; one that a unit would cut is a bad row in it
    [
        ("00:00", 0),
        ("09:05", 32_700_000_000_000),
        ("23:59:59", 86_399_000_000_000),
        ("12:30:00.250", 45_000_250_000_000),
        ("12:30:00,000001", 45_000_000_001_000),
        ("00:00:00.000000001", 1),
        ("00:00:00.0000000010", 1),
        ("23:59:59.999999999", 86_399_999_999_999),
    ],
)
def test_a_time_of_day_is_a_text_that_keeps_all_of_its_digits(text, nanos):
    payload = f'{{"t":"{text}","l":[{{"t":"{text}"}}]}}'.encode()
    for kind in CLOCKS:
        unit = 1_000_000_000 // {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[kind.unit]
        found, bad = JsonDecoder(pa.schema([("t", kind), ("l", pa.list_(pa.struct([("t", kind)])))])).decode([payload])
        if nanos % unit:
            assert bad[0].reason.startswith(f"field t: the time has more digits of the second than {kind}")
            continue
        whole = pa.int32() if kind.bit_width == 32 else pa.int64()
        assert found.column(0).cast(whole).to_pylist() == [nanos // unit]
        assert found.column(1).flatten().flatten()[0].equals(found.column(0))
        for form in ("ms", "iso", "sql"):
            again, bad = JsonDecoder(found.schema).decode(encode_rows(found, form))
            assert (again, bad) == (found, [])


@pytest.mark.parametrize(
    "text",
    ['"24:00"', '"12:60"', '"12:00:60"', '"9:05"', '"12"', '"12:00:00."', '"12:00Z"', '"12:00+01:00"', '"2024-01-01T12:00"', '""',
     "45000", "1.5", "true", '"00:00:00.0000000001"'],
)  # fmt: skip
def test_what_is_no_time_of_day_is_a_bad_row(text):
    for kind in CLOCKS:
        found, bad = JsonDecoder(pa.schema([("t", kind)])).decode([f'{{"t":{text}}}'.encode(), b'{"t":"01:02"}'])
        assert ([row.row for row in bad], found.num_rows) == ([0], 1)
        assert bad[0].reason.startswith("field t: ")
        assert str(kind) in bad[0].reason


def test_times_of_day_are_written_with_the_digits_that_they_need():
    nanos = pa.array([0, 86_399_999_999_999, 45_000_250_000_000, None], pa.time64("ns"))
    data = pa.record_batch({"t": nanos, "l": pa.array([[1, None], [], None, [86_399]], pa.list_(pa.time32("s")))})
    assert encode_rows(data).to_pylist() == [
        b'{"t":"00:00:00","l":["00:00:01",null]}',
        b'{"t":"23:59:59.999999999","l":[]}',
        b'{"t":"12:30:00.25","l":null}',
        b'{"t":null,"l":["23:59:59"]}',
    ]
    for outside in (-1, 86_400):
        with pytest.raises(TypeError, match="column 't' has a value that JSON cannot hold"):
            encode_rows(pa.record_batch({"t": pa.array([outside], pa.int32()).view(pa.time32("s"))}))


def test_columns_of_other_libraries_types_are_written_too():
    batch = pa.record_batch(
        {
            "d": pa.array(["x", "y", "x"]).dictionary_encode(),
            "v": pa.array(["a", None, "b"], pa.string_view()),
            "l": pa.array([[1], [], None], pa.large_list(pa.int64())),
        }
    )
    assert [json.loads(text) for text in encode_rows(batch).to_pylist()] == batch.to_pylist()


def test_what_has_no_form_in_json_is_refused_by_name():
    with pytest.raises(UserError, match="'price'"):
        encode_rows(pa.record_batch({"price": pa.array([None], pa.decimal32(9, 2))}))
    with pytest.raises(UserError, match="scale is beyond 76"):
        encode_rows(pa.record_batch({"price": pa.array([None], pa.decimal128(9, 77))}))
    with pytest.raises(TypeError, match="'raw'"):
        encode_rows(pa.record_batch({"raw": [b"fine", b"\xff"]}))


def test_rows_without_columns_are_empty_objects():
    assert encode_rows(JsonDecoder(pa.schema([])).decode([b"{}", b"{}"])[0]).to_pylist() == [b"{}", b"{}"]
