"""Conversions between bytes objects and Arrow, and the encoding of state keys and values."""

import math

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sabot._cython.groups.partition import KEY_GROUPS, hash_array, key_group
from sabot._cython.text.records import binary_array, bytes_list, decode_values, encode_keys, encode_values, state_key

pack = msgspec.msgpack.encode

INTS = st.integers(-(2**63), 2**64 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | INTS | TEXTS | st.binary() | st.floats(allow_nan=False).filter(lambda x: x != 0)
KEYS = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.lists(inner).map(tuple), max_leaves=20)

EDGES = [0, 1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
EDGES += [-1, -32, -33, -128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -(2**63)]


@given(st.lists(st.none() | st.binary()))
def test_bytes_go_into_an_array_and_come_back(values):
    array = binary_array(values)
    array.validate(full=True)
    assert array == pa.array(values, pa.binary())
    assert bytes_list(array) == values
    assert bytes_list(array.slice(1)) == values[1:]


def test_any_sequence_of_bytes_will_do():
    assert binary_array((b"a", None)) == pa.array([b"a", None], pa.binary())
    assert binary_array(iter([b"a"])) == pa.array([b"a"], pa.binary())


@pytest.mark.parametrize("bad", ["text", 5, bytearray(b"x")])
def test_an_item_that_is_no_bytes_is_named(bad):
    with pytest.raises(TypeError, match=r"item 1 is (str|int|bytearray)"):
        binary_array([b"a", bad])
    with pytest.raises(TypeError, match=r"item 1 is (str|int|bytearray)"):
        decode_values([b"\x01", bad])


def test_bytes_of_numbers_are_refused():
    with pytest.raises(TypeError, match="int64"):
        bytes_list(pa.array([1]))


@given(KEYS)
def test_a_state_key_is_its_key_group_and_its_msgpack(key):
    encoded = state_key(key)
    assert encoded[2:] == pack(key)
    assert encoded[:2] == key_group(encoded[2:]).to_bytes(2, "big")
    assert int.from_bytes(encoded[:2], "big") < KEY_GROUPS


@pytest.mark.parametrize("size", [0, 31, 32, 255, 256, 65535, 65536])
def test_long_keys_have_the_right_heads(size):
    for key in ("x" * size, b"x" * size, [1] * size):
        assert state_key(key)[2:] == pack(key)


@pytest.mark.parametrize("number", EDGES)
def test_numbers_are_as_narrow_as_msgpack_allows(number):
    assert state_key(number)[2:] == state_key([number])[3:] == pack(number)


def test_floats_that_are_equal_are_one_key():
    assert state_key(-0.0) == state_key(0.0)
    assert state_key(math.nan) == state_key(-math.nan) == state_key(float("inf") - float("inf"))
    assert state_key(1.0) != state_key(1)


def test_subclasses_are_encoded_by_value():
    class Name(str):
        __slots__ = ()

    class Number(int):
        pass

    assert state_key(Name("a")) == state_key("a")
    assert state_key(Number(5)) == state_key(5)
    assert state_key(True) != state_key(1)


@pytest.mark.parametrize("key", [{}, {1}, object(), 2**64, -(2**63) - 1, (1, {}), bytearray(b"x"), 1j])
def test_what_is_no_key_is_a_type_error(key):
    with pytest.raises(TypeError, match="a key of state"):
        state_key(key)


def test_a_key_inside_itself_is_an_error_and_no_crash():
    loop = []
    loop.append(loop)
    with pytest.raises(TypeError, match="nested at most 64 deep"):
        state_key(loop)


def test_a_lone_surrogate_is_no_key():
    with pytest.raises(UnicodeEncodeError):
        state_key("\ud800")


@given(KEYS, KEYS)
def test_a_scoped_key_keeps_the_scope_and_its_key_group(owner, key):
    scope = state_key(owner)
    assert state_key(key, scope=scope) == scope + pack(key)


def test_a_scope_that_is_no_key_is_refused():
    with pytest.raises(ValueError, match="not an encoded key"):
        state_key("a", scope=b"xx")


@given(st.lists(KEYS, min_size=2, max_size=2, unique_by=repr))
def test_no_key_is_a_prefix_of_another(keys):
    one, other = (pack(key) for key in keys)
    assert one == other or not one.startswith(other)


KEY_COLUMNS = st.one_of(
    st.lists(TEXTS).map(lambda v: pa.array(v, pa.string())),
    st.lists(st.binary()).map(lambda v: pa.array(v, pa.binary())),
    st.lists(st.booleans()).map(lambda v: pa.array(v, pa.bool_())),
    st.lists(st.floats()).map(lambda v: pa.array(v, pa.float64())),
    st.lists(st.integers(-(2**63), 2**63 - 1)).map(lambda v: pa.array(v, pa.int64())),
    st.lists(st.integers(0, 2**64 - 1)).map(lambda v: pa.array(v, pa.uint64())),
    st.lists(st.integers(-128, 127)).map(lambda v: pa.array(v, pa.int8())),
)


@given(KEY_COLUMNS)
def test_a_column_of_keys_is_encoded_like_each_key(keys):
    assert encode_keys(keys) == [state_key(key.as_py()) for key in keys]


@given(KEY_COLUMNS)
def test_the_hash_of_a_key_column_gives_the_group_in_its_state_keys(keys):
    groups = [int.from_bytes(encoded[:2], "big") for encoded in encode_keys(keys)]
    assert [h % KEY_GROUPS for h in hash_array(keys).to_pylist()] == groups


def test_null_keys_are_refused():
    with pytest.raises(ValueError, match="1 keys are null"):
        encode_keys(pa.array(["a", None]))
    with pytest.raises(ValueError, match="2 keys are null"):
        encode_keys(pa.nulls(2))


def test_keys_of_other_types_are_refused_by_name():
    with pytest.raises(TypeError, match=r"timestamp\[ms\]"):
        encode_keys(pa.array([1], pa.timestamp("ms")))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([True, None, False], pa.bool_()),
        ([*(e for e in EDGES if -(2**63) <= e < 2**63), None], pa.int64()),
        ([e for e in EDGES if e >= 0], pa.uint64()),
        ([0.5, -0.0, None, math.inf], pa.float64()),
        ([0.5, -0.0, None], pa.float32()),
        (["a", None, "ä" * 200, ""], pa.string()),
        ([b"a", None, b"\xff" * 300, b""], pa.binary()),
        ([b"ab", None], pa.binary(2)),
        ([[1, None], None, []], pa.list_(pa.int64())),
        ([{"a": 1, "b": ["x"]}, None], pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))])),
        ([None, None], pa.null()),
    ],
)
def test_values_are_written_as_msgpack_writes_them(values, kind):
    array = pa.array(values, kind)
    assert encode_values(array) == [None if v is None else pack(v) for v in array.to_pylist()]


@pytest.mark.parametrize(
    "kind", [pa.timestamp("us"), pa.date32(), pa.decimal128(10), pa.list_(pa.date32()), pa.map_(pa.string(), pa.int8())]
)
def test_values_that_msgpack_cannot_say_are_refused_by_name(kind):
    with pytest.raises(TypeError) as error:
        encode_values(pa.array([None], kind))
    assert str(kind) in str(error.value)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, -5, 2**63 - 1], pa.int64()),
        ([1, 2.5, None], pa.float64()),
        ([2.5], pa.float64()),
        (["a", None, ""], pa.string()),
        ([b"a", None, b""], pa.binary()),
        ([True, None, False], pa.bool_()),
        ([None, None], pa.null()),
        ([], pa.null()),
        ([[1], None, [2, 3]], pa.list_(pa.int64())),
        ([{"a": 1}, None], pa.struct([("a", pa.int64())])),
        ([2**64 - 1, 0, None], pa.uint64()),
        ([2.0**63, 0.5, None, -1.0], pa.float64()),
    ],
)
def test_values_come_back_as_the_narrowest_column(values, kind):
    array = decode_values([None if v is None else pack(v) for v in values])
    array.validate(full=True)
    assert array.type == kind
    assert array.to_pylist() == values


def test_nil_is_null_like_none():
    assert decode_values([pack(None), None, pack(1)]) == pa.array([None, None, 1])


def test_numbers_of_all_kinds_are_floats_together():
    assert decode_values([pack(2**63), pack(0.5), pack(-1)]) == pa.array([2.0**63, 0.5, -1.0])


def test_integers_that_fit_no_one_type_are_an_error():
    with pytest.raises((OverflowError, pa.ArrowInvalid)):
        decode_values([pack(2**64 - 1), pack(-1)])


def test_mixed_values_are_the_error_of_arrow():
    with pytest.raises(pa.ArrowInvalid):
        decode_values([pack(1), pack("a")])


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x01\x02", b"\xd9\x05ab", b"\xcb\x00", b"\xa3ab", b"\x92\x01"])
def test_what_is_no_msgpack_is_an_error(payload):
    with pytest.raises((msgspec.DecodeError, ValueError)):
        decode_values([payload])


def test_a_string_that_is_no_utf8_is_an_error():
    with pytest.raises(ValueError):
        decode_values([b"\xa2\xff\xfe"])


@given(
    st.lists(st.none() | INTS.filter(lambda i: i < 2**63))
    | st.lists(st.none() | TEXTS)
    | st.lists(st.none() | st.binary())
    | st.lists(st.none() | st.booleans())
    | st.lists(st.none() | st.floats(allow_nan=False))
)
def test_what_was_encoded_is_decoded(values):
    array = decode_values([None if v is None else pack(v) for v in values])
    assert array.to_pylist() == values
    assert decode_values(encode_values(array)) == array
