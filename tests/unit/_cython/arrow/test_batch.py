"""Batch: rows with their offsets, and the border where foreign Arrow data becomes canonical."""

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

import sabot._cython
from sabot._cython.arrow.batch import Batch, normalise
from sabot._cython.text.json import BadRow
from sabot.errors import UserError

ROWS = pa.record_batch({"n": pa.array(range(1000), pa.int64()), "s": pa.array(["x" * 10] * 1000)})


class Capsules:
    """Something that is not pyarrow and speaks Arrow only through its array capsule; counts how often it was asked."""

    def __init__(self, data):
        self.data = data
        self.asked = 0

    def __arrow_c_array__(self, requested_schema=None):
        self.asked += 1
        return self.data.__arrow_c_array__(requested_schema)


class Stream:
    """Something like a polars frame: a stream capsule and nothing else."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


def test_a_record_batch_is_kept_as_it_is():
    batch = Batch(ROWS, {("t", 0): 7}, "t")
    assert batch.data is ROWS
    assert (batch.num_rows, batch.topic, batch.offsets, batch.schema) == (1000, "t", {("t", 0): 7}, ROWS.schema)


def test_foreign_data_is_imported_once():
    foreign = Capsules(ROWS)
    batch = Batch(foreign)
    assert batch.data == ROWS
    assert batch.data.column(0).buffers()[1].address == ROWS.column(0).buffers()[1].address
    assert foreign.asked == 1


def test_foreign_data_keeps_its_schema_metadata():
    rows = ROWS.replace_schema_metadata({"k": "v"})
    assert Batch(Capsules(rows)).schema.metadata == Batch(Capsules(rows.slice(0, 0))).schema.metadata == {b"k": b"v"}


def test_a_stream_of_chunks_becomes_one_batch():
    table = pa.Table.from_batches([ROWS.slice(0, 300), ROWS.slice(300)])
    assert Batch(Stream(table)).data == ROWS
    assert Batch(table).data == ROWS
    assert Batch(Stream(ROWS.schema.empty_table())).data == ROWS.slice(0, 0)


def test_a_struct_array_with_an_offset_is_a_batch_of_its_fields():
    rows = pa.array([{"a": 1}, {"a": 2}, {"a": None}])
    assert Batch(Capsules(rows.slice(1))).data.to_pydict() == {"a": [2, None]}


@pytest.mark.parametrize("data", [5, [1, 2], None, Capsules(pa.array([1, 2]))])
def test_what_is_no_batch_of_columns_is_a_type_error(data):
    with pytest.raises(TypeError):
        Batch(data)


def test_rows_that_are_null_as_a_whole_are_refused():
    with pytest.raises(UserError, match="a row of the struct array is null"):
        Batch(Capsules(pa.array([{"a": 1}, None])))


def test_a_batch_leaves_through_its_capsules():
    batch = Batch(ROWS, {("t", 0): 7})
    assert pa.record_batch(batch) == ROWS
    assert pa.schema(batch) == ROWS.schema


def test_changing_the_offsets_that_it_gave_does_not_change_a_batch():
    given = {("t", 0): 7}
    batch = Batch(ROWS, given)
    given[("t", 0)] = 8
    batch.offsets[("t", 1)] = 9
    assert batch.offsets == {("t", 0): 7}


def test_with_data_keeps_offsets_and_topic():
    batch = Batch(ROWS, {("t", 0): 7}, "t").with_data(Capsules(ROWS.select(["n"])))
    assert (batch.data, batch.offsets, batch.topic) == (ROWS.select(["n"]), {("t", 0): 7}, "t")


def test_only_the_slice_with_the_last_row_has_the_offsets():
    batch = Batch(ROWS, {("t", 0): 7}, "t")
    first, rest, nothing = batch.slice(0, 400), batch.slice(400), batch.slice(1000)
    assert (first.num_rows, first.offsets, first.topic) == (400, {}, "t")
    assert (rest.num_rows, rest.offsets, rest.topic) == (600, {("t", 0): 7}, "t")
    assert (nothing.num_rows, nothing.offsets) == (0, {})
    assert batch.slice(0).offsets == batch.slice(0, 5000).offsets == {("t", 0): 7}
    assert rest.data == ROWS.slice(400)


def test_the_whole_of_an_empty_batch_has_its_offsets():
    batch = Batch(ROWS.slice(0, 0), {("t", 0): 7})
    assert batch.slice(0).offsets == {("t", 0): 7}


def test_slices_share_out_the_records_behind_them_and_the_rejected_rows():
    records = pa.record_batch({"payload": [f"{i}".encode() for i in range(8)]})
    bad = [BadRow(0, "a"), BadRow(3, "b"), BadRow(4, "c"), BadRow(7, "d")]
    good = [i for i in range(8) if i not in {0, 3, 4, 7}]
    batch = Batch(pa.record_batch({"n": good}), {("t", 0): 8}, "t", records, bad)
    assert batch.nbytes == batch.data.nbytes + records.nbytes
    parts = [batch.slice(0, 2), batch.slice(2, 1), batch.slice(3)]
    assert [part.data.column("n").to_pylist() for part in parts] == [[1, 2], [5], [6]]
    assert [part.records.column("payload").to_pylist() for part in parts] == [
        [b"0", b"1", b"2", b"3", b"4"],
        [b"5"],
        [b"6", b"7"],
    ]
    assert [[(entry.row, entry.reason) for entry in part.rejected] for part in parts] == [
        [(0, "a"), (3, "b"), (4, "c")],
        [],
        [(1, "d")],
    ]
    for part in parts:
        Batch(part.data, None, "", part.records, part.rejected)


def test_records_that_do_not_fit_the_rows_are_refused():
    with pytest.raises(ValueError, match="a batch of 1000 rows and 0 rejected rows has 5 records"):
        Batch(ROWS, None, "", ROWS.slice(0, 5))


def test_other_rows_have_no_records_behind_them():
    batch = Batch(ROWS, {("t", 0): 7}, "t", ROWS).with_data(ROWS.slice(5))
    assert (batch.records, batch.rejected) == (None, ())


def test_a_slice_outside_the_batch_is_an_error():
    with pytest.raises(IndexError):
        Batch(ROWS).slice(1001)
    with pytest.raises(IndexError):
        Batch(ROWS).slice(-1)
    with pytest.raises(ValueError):
        Batch(ROWS).slice(0, -1)


def test_nbytes_of_a_slice_is_its_share():
    # numbers 8 bytes a row; strings 10 bytes and 4 of offset a row, and the closing offset
    assert Batch(ROWS).nbytes == pytest.approx(1000 * 22, abs=8)
    assert Batch(ROWS).slice(100, 10).nbytes == pytest.approx(10 * 22, abs=8)
    assert ROWS.slice(100, 10).get_total_buffer_size() > 1000 * 22


def test_nbytes_counts_children():
    lists = pa.record_batch({"l": pa.array([[1, 2, 3]] * 100, pa.list_(pa.int64()))})
    assert Batch(lists).nbytes == pytest.approx(100 * (24 + 4), abs=8)
    assert Batch(lists).slice(10, 10).nbytes == pytest.approx(10 * (24 + 4), abs=8)


WORDS = ["alpha", None, "", "a word longer than twelve bytes", "alpha"]
FOREIGN = {
    "large_string": (pa.array(WORDS, pa.large_string()), pa.string()),
    "string_view": (pa.array(WORDS, pa.string_view()), pa.string()),
    "large_binary": (pa.array(WORDS).cast(pa.large_binary()), pa.binary()),
    "binary_view": (pa.array([None if w is None else w.encode() for w in WORDS], pa.binary_view()), pa.binary()),
    "dictionary": (pa.array(WORDS).dictionary_encode(), pa.string()),
    "dictionary of views": (
        pa.DictionaryArray.from_arrays(pa.array([0, None, 1, 2, 0], pa.int8()), pa.array(["a", "b", "c"], pa.string_view())),
        pa.string(),
    ),
    "run_end_encoded": (pc.run_end_encode(pa.array(WORDS)), pa.string()),
    "large_list": (
        pa.array([["a"], None, [], [None, "b"], ["c"]], pa.large_list(pa.large_string())),
        pa.list_(pa.string()),
    ),
    "list_view": (
        pa.ListViewArray.from_arrays(
            pa.array([2, 0, 0, 1, 0], pa.int32()), pa.array([1, 2, 0, 2, 3], pa.int32()), pa.array(["x", "y", "z"])
        ),
        pa.list_(pa.string()),
    ),
    "list": (pa.array([["a"], None, [], [None, "b"], ["c"]], pa.list_(pa.string_view())), pa.list_(pa.string())),
    "fixed_size_list": (
        pa.array([["a", "b"], None, ["c", None], ["d", "e"], None], pa.list_(pa.string_view(), 2)),
        pa.list_(pa.string(), 2),
    ),
    "struct": (
        pa.array([{"x": "a"}, None, {"x": None}, {"x": "b"}, {"x": "c"}], pa.struct([("x", pa.string_view())])),
        pa.struct([("x", pa.string())]),
    ),
    "map": (
        pa.array([[("k", "v")], None, [], [("a", None), ("b", "w")], []], pa.map_(pa.large_string(), pa.string_view())),
        pa.map_(pa.string(), pa.string()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_types_become_canonical_in_every_slice(name):
    column, canonical = FOREIGN[name]
    column.validate(full=True)
    table = pa.table({"c": column})
    for start in range(6):
        for length in range(6 - start):
            rows = normalise(Stream(table.slice(start, length)))
            rows.validate(full=True)
            assert rows.schema.field("c").type == canonical
            assert rows.column(0).to_pylist() == _as_canonical(column.slice(start, length).to_pylist(), canonical)


def _as_canonical(values, kind):
    return [None if v is None else v.encode() if isinstance(v, str) and kind == pa.binary() else v for v in values]


def test_canonical_data_comes_back_as_it_is():
    assert normalise(ROWS) is ROWS


def test_other_types_stay():
    rows = pa.record_batch(
        {"d": pa.array([1, 2]).cast(pa.decimal128(30, 2)), "t": pa.array([1, 2], pa.timestamp("ms", "UTC"))}
    )
    assert normalise(rows) is rows


def test_metadata_and_nullability_survive():
    schema = pa.schema([pa.field("s", pa.large_string(), nullable=False, metadata={"k": "v"})], metadata={"a": "b"})
    rows = normalise(pa.record_batch([pa.array(["x"], pa.large_string())], schema=schema))
    assert rows.schema.equals(
        pa.schema([pa.field("s", pa.string(), nullable=False, metadata={"k": "v"})], metadata={"a": "b"}),
        check_metadata=True,
    )


def test_a_batch_without_columns_keeps_its_number_of_rows():
    assert Batch(ROWS.select([])).num_rows == 1000
    assert normalise(ROWS.select([])).num_rows == 1000
    assert normalise(pa.table(ROWS).select([])).num_rows == 1000


def test_an_unbuilt_tree_says_to_make_it(tmp_path):
    source = Path(sabot._cython.__file__).parents[1]
    shutil.copytree(source, tmp_path / "sabot", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    run = subprocess.run(
        [sys.executable, "-c", "import sabot._cython"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "ImportError: sabot is not built: run `make`" in run.stderr
