"""The key hash against its definition written out in Python, key groups, and the split of rows."""

import math
from collections import Counter

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sabot._cython.groups.partition import (
    HASH_VERSION,
    KEY_GROUPS,
    hash_array,
    hash_rows,
    key_group,
    key_hash,
    partition_indices,
)

WORD = 2**64 - 1
K0, K1, K2, K3 = 0x6A09E667F3BCC909, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1


def _mix(a, b):
    product = a * b
    return (product & WORD) ^ (product >> 64)


def _step(h, block, constant):
    a, b = int.from_bytes(block[:8], "little"), int.from_bytes(block[8:], "little")
    return (_mix(a ^ constant, b ^ h) + ((h << 27 | h >> 37) & WORD)) & WORD


def naive_hash(data):
    """The definition in `key_hash`'s docstring, word for word."""
    h = K0 ^ len(data)
    whole = len(data) // 16 * 16
    for i in range(0, whole, 16):
        h = _step(h, data[i : i + 16], K1)
    if whole < len(data):
        h = _step(h, data[whole:].ljust(16, b"\0"), K2)
    return _mix(h ^ K3, (K0 + len(data)) & WORD)


@given(st.binary(max_size=100))
def test_the_hash_is_what_its_docstring_says(data):
    assert key_hash(data) == naive_hash(data)
    assert key_group(data) == naive_hash(data) % KEY_GROUPS


def test_the_hash_of_version_1_never_changes():
    # in checkpoints of users: a change here needs a new HASH_VERSION and a way to read the old
    assert (HASH_VERSION, KEY_GROUPS) == (1, 1024)
    assert {data: hex(key_hash(data)) for data in GOLDEN} == GOLDEN


GOLDEN = {
    b"": "0x76e99c86327dcfae",
    b"\x2a": "0x3eb7405a1f5c3025",
    b"\xa5hello": "0xb50c005ab4da924b",
    b"sixteen bytes ok": "0xf0013c5993d7484c",
    b"a key that is longer than two blocks of it": "0x4ff7857c78f1d35d",
}


def test_every_bit_of_the_input_moves_half_of_the_hash():
    moved = []
    for size in (1, 5, 9, 16, 17, 40):
        data = bytes(range(size))
        for bit in range(size * 8):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            moved.append((key_hash(data) ^ key_hash(bytes(flipped))).bit_count())
    assert min(moved) > 10
    assert 31 < sum(moved) / len(moved) < 33


@pytest.mark.parametrize(
    "keys",
    [
        pa.array(range(200_000)),
        pa.array(range(0, 200_000 * 1024, 1024)),
        pa.array([f"customer-{i}" for i in range(200_000)]),
        pa.array([i / 7 for i in range(200_000)]),
    ],
    ids=["ints", "multiples of 1024", "names", "floats"],
)
def test_key_groups_are_filled_evenly(keys):
    groups = np.bincount(hash_array(keys).to_numpy() % np.uint64(KEY_GROUPS), minlength=KEY_GROUPS)
    expected = len(keys) / KEY_GROUPS
    chi_square = float(((groups - expected) ** 2 / expected).sum())
    assert chi_square < 1023 + 6 * math.sqrt(2 * 1023)
    assert len(hash_array(keys).unique()) == len(keys)


def test_all_integer_widths_hash_alike():
    kinds = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
    hashes = {tuple(hash_array(pa.array([0, 1, 100, None], kind)).to_pylist()) for kind in kinds}
    assert len(hashes) == 1


def test_equal_floats_hash_alike():
    floats = hash_array(pa.array([0.0, -0.0, math.nan, -math.nan])).to_pylist()
    assert floats[0] == floats[1]
    assert floats[2] == floats[3]
    assert hash_array(pa.array([0.5, None], pa.float32())) == hash_array(pa.array([0.5, None], pa.float64()))


def test_a_row_hashes_like_the_msgpack_of_its_key():
    keys = ["", "a", "ä" * 100, None]
    expected = [key_hash(msgspec.msgpack.encode(key)) for key in keys]
    assert hash_array(pa.array(keys)).to_pylist() == expected
    assert hash_array(pa.nulls(1)).to_pylist() == expected[3:]


def test_types_without_a_hash_are_named():
    with pytest.raises(TypeError, match="date32"):
        hash_array(pa.array([1], pa.date32()))
    with pytest.raises(TypeError, match="not an Arrow array"):
        hash_array([1, 2])


def test_record_keys_hash_by_their_raw_bytes():
    assert hash_rows([b"abc", None, b""]) == [key_hash(b"abc"), 0, key_hash(b"")]
    with pytest.raises(TypeError, match="str"):
        hash_rows(["abc"])


def naive_partition(hashes, parts):
    part = [h % KEY_GROUPS * parts // KEY_GROUPS for h in hashes]
    order = sorted(range(len(part)), key=part.__getitem__)  # Python's sort is stable
    count = Counter(part)
    bounds = [0]
    for p in range(parts):
        bounds.append(bounds[-1] + count[p])
    return order, bounds


@given(st.lists(st.integers(0, WORD)), st.integers(1, 9) | st.sampled_from([1023, 1024]))
def test_rows_are_split_by_key_group_and_keep_their_order(hashes, parts):
    indices, bounds = partition_indices(pa.array(hashes, pa.uint64()), parts)
    assert (indices.type, bounds.type) == (pa.int32(), pa.int32())
    assert (indices.to_pylist(), bounds.to_pylist()) == naive_partition(hashes, parts)


@given(st.lists(st.integers(0, WORD)), st.integers(1, 9), st.data())
def test_of_a_selection_only_its_rows_are_split(hashes, parts, data):
    chosen = [row for row in range(len(hashes)) if data.draw(st.booleans())]
    found, bounds = partition_indices(pa.array(hashes, pa.uint64()), parts, pa.array(chosen, pa.int32()))
    order, expected = naive_partition([hashes[row] for row in chosen], parts)
    assert (found.to_pylist(), bounds.to_pylist()) == ([chosen[i] for i in order], expected)


def test_a_selection_beyond_the_hashes_is_refused():
    with pytest.raises(IndexError, match="outside of the 1 rows"):
        partition_indices(pa.array([1], pa.uint64()), 2, pa.array([1], pa.int32()))


def test_parts_get_even_shares_of_the_key_groups():
    groups = pa.array(range(KEY_GROUPS), pa.uint64())
    for parts in (1, 2, 3, 7, 100, 1000, 1024):
        bounds = np.diff(partition_indices(groups, parts)[1].to_numpy())
        assert bounds.max() - bounds.min() <= 1


@pytest.mark.parametrize("parts", [0, -1, 1025])
def test_an_impossible_number_of_parts_is_refused(parts):
    with pytest.raises(ValueError, match="parts must be 1 to 1024"):
        partition_indices(pa.array([1], pa.uint64()), parts)


def test_what_is_no_hash_is_refused():
    with pytest.raises(TypeError, match="int64"):
        partition_indices(pa.array([1]), 2)
    with pytest.raises(ValueError, match="null"):
        partition_indices(pa.array([1, None], pa.uint64()), 2)
