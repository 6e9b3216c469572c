"""Arrow data from outside: what is not what its types say is an error that names it, never memory that is not the data's."""

import ctypes
import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc
from pyarrow import parquet as pq

from sabot._cython.arrow.batch import normalise
from sabot._cython.arrow.border import validate
from sabot._cython.text.json import JsonDecoder, encode_rows
from sabot.codecs.json import infer_schema
from sabot.connectors.files import ArrowSource, CsvSource, FileSource, ParquetSource
from sabot.errors import UserError

Offsets = list[int]


def texts(kind: pa.DataType, offsets: Offsets, data: bytes, validity: bytes | None = None, skip: int = 0) -> pa.Array:
    width = np.int64 if kind in (pa.large_string(), pa.large_binary()) else np.int32
    buffers = [
        None if validity is None else pa.py_buffer(validity),
        pa.py_buffer(np.array(offsets, width).tobytes()),
        pa.py_buffer(data),
    ]
    return pa.Array.from_buffers(kind, len(offsets) - 1 - skip, buffers, -1, skip)


def naive(batch: pa.RecordBatch) -> bool:
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def ours(batch: pa.RecordBatch) -> bool:
    try:
        validate(batch)
    except pa.ArrowInvalid:
        return False
    return True


PIECES = [
    b"a",
    b"x" * 600,
    "é".encode(),
    "日".encode(),
    "😀".encode(),
    b"\xff",
    b"\xc3",
    b"\xa9",
    b"\xed\xa0\x80",
    b"\xc0\xaf",
]


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from([pa.string(), pa.binary(), pa.large_string(), pa.large_binary()]),
    pieces=st.lists(st.sampled_from(PIECES), max_size=8),
    cuts=st.lists(st.floats(0, 1), min_size=1, max_size=6),
    ordered=st.integers(0, 5),
    validity=st.none() | st.binary(min_size=1, max_size=1),
    skip=st.integers(0, 2),
)
def test_what_is_accepted_is_what_pyarrow_accepts(kind, pieces, cuts, ordered, validity, skip):
    data = b"".join(pieces)
    offsets = [round(cut * len(data)) for cut in cuts]
    offsets = (
        sorted(offsets) if ordered else [min(offsets), *offsets, max(offsets)]
    )  # pyarrow makes no array of other ends
    batch = pa.record_batch([texts(kind, offsets, data, validity, min(skip, len(offsets) - 1))], names=["t"])
    assert ours(batch) == naive(batch)


def test_text_is_read_at_whole_characters_wherever_a_block_ends():
    for ahead in range(505, 520):
        data = b"x" * ahead + "é".encode() + b"x" * 600
        good = [0, ahead, ahead + 2, len(data)]
        assert ours(pa.record_batch([texts(pa.string(), good, data)], names=["t"]))
        with pytest.raises(pa.ArrowInvalid, match="column 't': Invalid UTF8 sequence at string index 0"):
            validate(pa.record_batch([texts(pa.string(), [0, ahead + 1, len(data)], data)], names=["t"]))


def broken() -> dict[str, Any]:
    small = pa.py_buffer(struct.pack("<4i", 0, 1, 9, 2))
    indices = pa.py_buffer(struct.pack("<2i", 0, 7))
    values = pa.array(["a", "b"])
    return {
        "dictionary": pa.DictionaryArray.from_buffers(
            pa.dictionary(pa.int32(), pa.string()), 2, [None, indices], values
        ),
        "list": pa.Array.from_buffers(pa.list_(pa.int64()), 3, [None, small], children=[pa.array([1, 2])]),
        "struct": pa.StructArray.from_arrays([texts(pa.string(), [0, 9, 1], b"a")], names=["f"]),
        "decimal": pa.Array.from_buffers(pa.decimal128(3, 0), 1, [None, pa.py_buffer(struct.pack("<2q", 12345, 0))]),
    }


@pytest.mark.parametrize("kind", sorted(broken()))
def test_every_type_is_checked_in_full_and_its_column_named(kind):
    batch = pa.RecordBatch.from_arrays([pa.array([1] * len(broken()[kind])), broken()[kind]], names=["good", kind])
    with pytest.raises(pa.ArrowInvalid, match=f"column '{kind}': "):
        validate(batch)


# --- files


def a_table() -> pa.Table:
    return pa.table(
        {
            "n": [1, 2, None],
            "t": ["one", "zwei", "drei und vier"],
            "d": pa.array(["x", "y", "x"]).dictionary_encode(),
            "l": [[1], [], [2, 3]],
            "m": pa.array([12, None, 1], pa.decimal128(5, 2)),
        }
    )


def as_arrow(path: Path, table: pa.Table, compression: str | None = None) -> None:
    with ipc.new_file(path, table.schema, options=ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)


def as_packed(path: Path, table: pa.Table) -> None:
    as_arrow(path, table, "zstd")


def as_stream(path: Path, table: pa.Table) -> None:
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def as_parquet(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path)


WRITERS: dict[str, tuple[type[FileSource], Callable[[Path, pa.Table], None]]] = {
    "file": (ArrowSource, as_arrow),
    "packed": (ArrowSource, as_packed),
    "stream": (ArrowSource, as_stream),
    "parquet": (ParquetSource, as_parquet),
}


WRITTEN = [pa.int64(), pa.float64(), pa.string(), pa.list_(pa.int64())]


def text_of(source: FileSource) -> bytes:
    """All rows as the text writer gives them: it follows every offset."""
    source.scan(None, None)
    source.open(None)
    found = []
    while not source.exhausted:
        batch = source.read_batch(2, 0)
        if batch is not None:
            columns = [field.name for field in batch.schema if field.type in WRITTEN]
            found += encode_rows(batch.data.select(columns)).to_pylist()
            assert str(batch.data.to_pylist())
    source.close()
    return b"\n".join(found)


@pytest.mark.one_in(4, "half a second of a core each; `make fuzz` damages columns for minutes")
@pytest.mark.parametrize("format", sorted(WRITERS))
def test_a_file_with_one_damaged_byte_is_read_or_named(tmp_path: Path, format: str) -> None:
    """One patched offset gave a segmentation fault, or memory from beyond the buffer in the output."""
    kind, write = WRITERS[format]
    path = tmp_path / "t"
    write(path, a_table())
    whole = path.read_bytes()
    random = Random(9)
    named: list[str] = []
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= random.choice([0x01, 0x10, 0x7F, 0x80, 0xFF])
        path.write_bytes(damaged)
        try:
            text_of(kind(path))
        except UserError as error:
            named.append(str(error))
    assert len(named) > 20
    assert all(repr(str(path)) in each for each in named)


def rows_left(source: FileSource) -> int:
    return sum(0 if batch is None else batch.num_rows for batch in iter(lambda: source.read_batch(100_000, 0), None))


def patched(path: Path, was: bytes, put: bytes) -> None:
    whole = path.read_bytes()
    assert whole.count(was) == 1
    path.write_bytes(whole.replace(was, put))


@pytest.mark.parametrize("format", ["file", "stream"])
def test_a_patched_offset_names_file_rows_and_column(tmp_path: Path, format: str) -> None:
    kind, write = WRITERS[format]
    path = tmp_path / "t"
    write(path, pa.table({"n": [1, 2, 3], "t": ["one", "zwei", "drei und vier"]}))
    patched(path, struct.pack("<4i", 0, 3, 7, 20), struct.pack("<4i", 0, 1 << 30, 7, 20))
    with pytest.raises(UserError, match=r"t' cannot be read at offset 0: rows 0 to 2, column 't': .*offset"):
        text_of(kind(path))


@pytest.mark.parametrize("format", sorted(WRITERS))
def test_text_that_is_not_utf8_is_refused_and_can_be_had_as_binary(tmp_path: Path, format: str) -> None:
    kind, write = WRITERS[format]
    path = tmp_path / "t"
    write(path, pa.table({"n": [1, 2], "t": texts(pa.string(), [0, 1, 2], b"a\xff")}))
    with pytest.raises(UserError, match=r"rows 0 to 1, column 't': Invalid UTF8 .* index 1") as caught:
        text_of(kind(path))
    assert "binary" in str(caught.value.hint)
    source = kind(path)
    source.scan(pa.schema({"t": pa.binary()}), None)
    source.open(None)
    batch = source.read_batch(10, 0)
    assert batch is not None
    assert batch.data.column("t").to_pylist() == [b"a", b"\xff"]


def test_an_arrow_file_that_is_overwritten_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    """It was mapped: the process ended with SIGBUS."""
    path = tmp_path / "t.arrow"
    with ipc.new_file(path, pa.schema({"n": pa.int64()})) as writer:
        for _ in range(3):
            writer.write_table(pa.table({"n": range(100_000)}))
    source = ArrowSource(path)
    source.scan(None, None)
    source.open(None)
    assert source.read_batch(100_000, 0) is not None
    path.write_bytes(path.read_bytes()[:900_000])
    with pytest.raises(UserError, match=r"t\.arrow' cannot be read at offset \d+: File too short"):
        rows_left(source)


def test_pages_of_parquet_with_check_sums_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"n": [123456789, 2]}), path, write_page_checksum=True, use_dictionary=False, compression="none",
        write_statistics=False,
    )  # fmt: skip
    patched(path, struct.pack("<q", 123456789), struct.pack("<q", 123456780))
    with pytest.raises(UserError, match=r"t\.parquet' cannot be read .*[Cc][Rr][Cc]"):
        text_of(ParquetSource(path))


def test_runs_become_rows_only_as_they_are_read(tmp_path: Path) -> None:
    """Sixteen bytes say two thousand million rows: they took 16 GB."""
    path = tmp_path / "t.arrow"
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2**31 - 1], pa.int32()), pa.array([7], pa.int64()))
    table = pa.RecordBatch.from_arrays([runs], names=["n"])
    with ipc.new_file(path, table.schema) as writer:
        writer.write_batch(table)
    source = ArrowSource(path)
    source.scan(None, None)
    source.open(None)
    before = pa.total_allocated_bytes()
    for _ in range(3):
        batch = source.read_batch(1000, 0)
        assert batch is not None
        assert batch.data.num_rows == 1000
    assert pa.total_allocated_bytes() - before < 1 << 20


# --- what a program gives


class Foreign:
    """A batch whose text has more rows than offsets, as code of others may hand it over."""

    def __init__(self) -> None:
        self._exported = pa.record_batch({"t": ["a", "b"]}).__arrow_c_array__()
        address = ctypes.pythonapi.PyCapsule_GetPointer
        address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        struct_array = (ctypes.c_int64 * 7).from_address(address(self._exported[1], b"arrow_array"))
        child = (ctypes.c_int64 * 2).from_address(ctypes.c_int64.from_address(struct_array[6]).value)
        offsets = ctypes.c_int64.from_address((ctypes.c_int64 * 6).from_address(ctypes.addressof(child))[5] + 8).value
        (ctypes.c_int32 * 3).from_address(offsets)[2] = -5

    def __arrow_c_schema__(self) -> Any:
        return self._exported[0]

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        return self._exported


def test_a_batch_from_elsewhere_whose_ends_are_wrong_is_refused() -> None:
    with pytest.raises(UserError, match=r"the data is not valid Arrow: .*offset"):
        normalise(Foreign())


@pytest.mark.slow  # two seconds of a core
def test_what_columns_are_inferred_from_has_a_bound_of_fields(tmp_path: Path) -> None:
    """100,000 fields took minutes: each was compared with each."""
    wide = json.dumps({f"k{n}": n for n in range(100_000)})
    with pytest.raises(UserError, match="the first 1 records have more than 10000 fields") as caught:
        infer_schema([wide.encode()])
    assert "schema=" in str(caught.value.hint)
    (tmp_path / "t.csv").write_text(",".join(f"k{n}" for n in range(20_000)) + "\n")
    with pytest.raises(UserError, match=r"t\.csv' has 20000 columns, more than 10000"):
        CsvSource(tmp_path / "t.csv").infer_schema()
    decoder = JsonDecoder(pa.schema([(f"k{n}", pa.int64()) for n in range(0, 100_000, 10)]))
    assert decoder.decode([wide.encode()])[0].num_columns == 10_000
