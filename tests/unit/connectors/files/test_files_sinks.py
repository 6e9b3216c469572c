"""Sinks of files: journals, parts, what is there already. Each format's common promises are in tests/contracts."""

import gzip
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc
from pyarrow import parquet as pq

from sabot._cython.arrow.batch import Batch
from sabot.connectors.base import Sink
from sabot.connectors.files import ArrowSink, CsvSink, CsvSource, FileSink, NdjsonSink, ParquetSink, files
from sabot.connectors.files.formats.csv import end_of_records
from sabot.connectors.files.formats.text import end_of_lines
from sabot.connectors.files.parts import FRAME_BYTES
from sabot.engine.operators.base import OperatorContext
from sabot.engine.operators.sink import SinkWriter
from sabot.errors import TransientError, UserError


def rows(first: int, count: int) -> Batch:
    return Batch(
        pa.record_batch({"n": range(first, first + count), "t": [str(n) for n in range(first, first + count)]})
    )


def opened(sink: FileSink) -> FileSink:
    sink.open()
    return sink


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def parquet(path: Path) -> list[int]:
    found: list[int] = pq.read_table(path)["n"].to_pylist()
    return found


# --- the journal


@given(st.lists(st.text("ab", max_size=30), max_size=5), st.data())
@settings(max_examples=80, deadline=None)
def test_a_torn_journal_keeps_all_whole_frames(
    tmp_path_factory: pytest.TempPathFactory, frames: list[str], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("torn")
    journal = folder / ".t.ndjson.gz.journal"
    sink = opened(NdjsonSink(folder / "t.ndjson.gz"))
    ends = []
    for text in frames:
        sink.write(Batch(pa.record_batch({"text": [text]})))
        sink.flush()
        ends.append(journal.stat().st_size)
    kept = journal.read_bytes() if frames else b""
    sink.close()
    size = data.draw(st.integers(0, len(kept)))
    zeros = bytes(data.draw(st.integers(0, 40)))  # the size was on the disk before the bytes
    journal.write_bytes(kept[:size] + zeros)
    again = opened(NdjsonSink(folder / "t.ndjson.gz"))
    again.write(Batch(pa.record_batch({"text": ["later"]})))
    again.finish()
    again.close()
    lines = gzip.decompress((folder / "t.ndjson.gz").read_bytes()).splitlines()
    found = [json.loads(line)["text"] for line in lines]
    whole = sum(end <= size for end in ends)
    assert found[:whole] == frames[:whole]
    assert found == [*frames[: len(found) - 1], "later"]  # a frame may be whole but for zeros at its end
    assert names(folder) == ["t.ndjson.gz"]


def test_a_parquet_file_goes_on_after_a_crash_at_any_byte_of_its_journal(tmp_path: Path) -> None:
    sink = opened(ParquetSink(tmp_path / "a" / "t.parquet"))
    sizes = []
    journal = tmp_path / "a" / ".t.parquet.journal"
    for first in range(0, 9, 3):
        sink.write(rows(first, 3))
        sink.flush()
        sizes.append(journal.stat().st_size)
    shutil.copytree(tmp_path / "a", tmp_path / "crashed")
    sink.close()
    for size in [*range(0, sizes[-1], 97), *sizes, *(size - 1 for size in sizes)]:
        shutil.copytree(tmp_path / "crashed", tmp_path / "b")
        os.truncate(tmp_path / "b" / ".t.parquet.journal", size)
        again = opened(ParquetSink(tmp_path / "b" / "t.parquet"))
        again.write(rows(100, 1))
        again.finish()
        again.close()
        flushed = 3 * sum(end <= size for end in sizes)
        assert parquet(tmp_path / "b" / "t.parquet") == [*range(flushed), 100]
        assert names(tmp_path / "b") == ["t.parquet"]
        shutil.rmtree(tmp_path / "b")


def test_a_crash_between_the_new_name_and_the_end_of_the_journal_repeats_nothing(tmp_path: Path) -> None:
    for path in (tmp_path / "one" / "t.parquet", tmp_path / "many" / ""):
        text = str(path) + ("/" if path.name == "many" else "")
        sink = opened(ParquetSink(text))
        sink.write(rows(0, 5))
        sink.flush()
        folder = tmp_path / ("one" if path.name == "t.parquet" else "many")
        (journal,) = folder.glob(".*.journal")
        kept = journal.read_bytes()
        sink.finish()
        sink.close()
        journal.write_bytes(kept)
        again = opened(ParquetSink(text))
        again.finish()
        again.close()
        assert [row for name in names(folder) for row in parquet(folder / name)] == [0, 1, 2, 3, 4]


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".t.parquet.journal").write_text("my diary")
    with pytest.raises(UserError, match="no pending list"):
        opened(ParquetSink(tmp_path / "t.parquet"))
    assert (tmp_path / ".t.parquet.journal").read_text() == "my diary"


@pytest.mark.slow  # a second of a core, or more
def test_rows_that_are_not_flushed_wait_in_bounded_memory(tmp_path: Path) -> None:
    sink = opened(ParquetSink(tmp_path / "t.parquet"))
    big = Batch(pa.record_batch({"n": range(300_000)}))
    for _ in range(20):
        sink.write(big)
        assert sink._writing._part._waiting_bytes < FRAME_BYTES  # type: ignore[union-attr]
    sink.finish()
    sink.close()
    assert pq.read_metadata(tmp_path / "t.parquet").num_rows == 6_000_000


# --- what is there already


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_complete_file_is_added_to_by_an_app_that_goes_on(tmp_path: Path, overwrite: bool) -> None:
    """A crash after the file was complete and before the checkpoint was: rows since the last one come again."""
    path = tmp_path / "t.parquet"
    for first in (0, 2):
        sink = opened(ParquetSink(path, overwrite=overwrite))
        sink.write(rows(first, 3))
        assert not path.exists() or parquet(path) == [0, 1, 2]
        sink.flush()
        sink.close()
        sink.open()
        sink.finish()
        sink.close()
    assert parquet(path) == [0, 1, 2, 2, 3, 4]


def test_a_crash_while_a_complete_file_is_taken_over_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    sink = opened(ParquetSink(path))
    sink.write(rows(0, 3))
    sink.finish()
    sink.close()
    (tmp_path / ".t.parquet.copy").write_bytes(b"SABOTJ1\nhalf of")
    (tmp_path / ".t.parquet.tmp").write_bytes(b"PAR1")
    again = opened(ParquetSink(path))
    again.write(rows(3, 1))
    again.finish()
    again.close()
    assert parquet(path) == [0, 1, 2, 3]
    assert names(tmp_path) == ["t.parquet"]


def test_a_new_app_adds_to_a_complete_file_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.parquet"
    for first in (0, 3, 6):
        sink = ParquetSink(path)
        sink.start_afresh()
        sink.open()
        sink.write(rows(first, 3))
        sink.finish()
        sink.close()
        assert parquet(path) == list(range(first + 3))
    assert caplog.text.count("has rows already, and this start without a checkpoint adds to them") == 2


def test_a_complete_file_with_other_columns_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    sink = opened(ParquetSink(path))
    sink.write(rows(0, 3))
    sink.finish()
    sink.close()
    again = ParquetSink(path)
    again.start_afresh()
    again.open()
    with pytest.raises(UserError, match=r"do not fit those before.*overwrite=True"):
        again.write(Batch(pa.record_batch({"other": pa.array([1])})))
    again.close()
    assert parquet(path) == [0, 1, 2]


@pytest.mark.parametrize("path", ["t.parquet", "t.ndjson.gz", "parts/"])
def test_an_app_that_begins_drops_what_an_earlier_run_left_unfinished(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a worker is killed before its first checkpoint is complete."""
    kind = NdjsonSink if path == "t.ndjson.gz" else ParquetSink
    sink = opened(kind(f"{tmp_path}/a/{path}"))
    sink.write(rows(0, 3))
    sink.flush()
    shutil.copytree(tmp_path / "a", tmp_path / "crashed")
    sink.close()
    again = kind(f"{tmp_path}/crashed/{path}")
    again.start_afresh()
    again.open()
    again.write(rows(10, 1))
    again.finish()
    again.close()
    assert "left unfinished by an earlier run" in caplog.text
    (found,) = [path for path in (tmp_path / "crashed").rglob("*") if path.is_file()]
    if kind is ParquetSink:
        assert parquet(found) == [10]
    else:
        assert gzip.decompress(found.read_bytes()) == b'{"n":10,"t":"10"}\n'


def test_overwrite_replaces_a_file_when_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    for first in (0, 10):
        sink = ParquetSink(path, overwrite=True)
        sink.start_afresh()
        sink.open()
        sink.write(rows(first, 3))
        sink.flush()
        assert not path.exists() or parquet(path) == [0, 1, 2]
        sink.finish()
        sink.close()
    assert parquet(path) == [10, 11, 12]


def test_overwrite_does_not_empty_the_file_of_an_app_that_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    for write in (True, False):
        sink = ParquetSink(path, overwrite=True)
        sink.expect(rows(0, 1).schema)
        sink.open()
        if write:
            sink.write(rows(0, 3))
        sink.finish()
        sink.close()
    assert parquet(path) == [0, 1, 2]


def test_an_empty_run_with_overwrite_leaves_no_older_result(tmp_path: Path) -> None:
    for expected, found in ((None, []), (rows(0, 1).schema, ["t.parquet"])):
        (tmp_path / "t.parquet").write_bytes(b"old")
        sink = ParquetSink(tmp_path / "t.parquet", overwrite=True)
        sink.start_afresh()
        if expected is not None:
            sink.expect(expected)
        sink.open()
        sink.finish()
        sink.close()
        assert names(tmp_path) == found
    assert parquet(tmp_path / "t.parquet") == []


def test_an_empty_result_of_unknown_columns_is_no_file(tmp_path: Path) -> None:
    for path in ("t.parquet", "t.arrow", "parts/"):
        sink = opened((ArrowSink if path == "t.arrow" else ParquetSink)(f"{tmp_path}/{path}"))
        sink.flush()
        sink.finish()
        sink.close()
    assert names(tmp_path) == ["parts"]
    assert names(tmp_path / "parts") == []


def test_a_csv_file_is_only_added_to_under_the_same_header(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for batch in (rows(0, 1), rows(1, 1)):
        sink = opened(CsvSink(path))
        sink.write(batch)
        sink.flush()
        sink.close()
    assert path.read_text() == '"n","t"\n0,"0"\n1,"1"\n'
    sink = opened(CsvSink(path))
    with pytest.raises(UserError, match=r'begins with .*"n","t"'):
        sink.write(Batch(rows(0, 1).data.select(["t"])))
    sink.close()


# --- torn ends of text


@given(st.lists(st.sampled_from([b"a", b'"', b"\n", b"\r\n", b'""']), max_size=40))
def test_the_end_of_the_last_whole_record_is_found_from_the_beginning(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    ends = [at + 1 for at in range(len(data)) if data[at] == 10 and data.count(b'"', 0, at) % 2 == 0]
    assert end_of_records(io.BytesIO(data), len(data)) == (ends[-1] if ends else 0)
    assert end_of_lines(io.BytesIO(data), len(data)) == data.rfind(b"\n") + 1


def test_a_csv_record_that_was_cut_short_inside_its_quotes_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('"n","t"\n1,"a\nb"\n2,"c\nd')
    sink = opened(CsvSink(path))
    sink.write(Batch(pa.record_batch({"n": [3], "t": ["e"]})))
    sink.flush()
    sink.close()
    assert path.read_text() == '"n","t"\n1,"a\nb"\n3,"e"\n'


def test_times_come_back_from_csv(tmp_path: Path) -> None:
    values = [0, None, 1_700_000_000_123]
    types = [
        pa.timestamp("ms", "UTC"),
        pa.timestamp("us"),
        pa.timestamp("ms", "Europe/Berlin"),
        pa.date64(),
        pa.time32("ms"),
    ]
    data = pa.record_batch(
        [
            pa.array(
                [v if v is None else v % 86_400_000 if n > 3 else v - v % 86_400_000 * (n == 3) for v in values], t
            )
            for n, t in enumerate(types)
        ],
        names=list("abcde"),
    )
    sink = opened(CsvSink(tmp_path / "t.csv"))
    sink.write(Batch(data))
    sink.finish()
    sink.close()
    source = CsvSource(tmp_path / "t.csv")
    source.scan(data.schema, None)
    source.open(None)
    batch = source.read_batch(10, 0)
    assert batch is not None
    assert batch.bad is None
    assert batch.data.to_pylist() == data.to_pylist()
    assert (
        (tmp_path / "t.csv")
        .read_text()
        .splitlines()[1]
        .startswith('"1970-01-01 00:00:00.000Z",1970-01-01 00:00:00.000000,')
    )


# --- folders


def test_a_part_is_complete_at_the_flush_at_which_it_is_large_enough(tmp_path: Path) -> None:
    sink = opened(NdjsonSink(f"{tmp_path}/out/", part_bytes=40))
    for first in range(0, 10, 2):
        sink.write(rows(first, 2))
        sink.flush()
    sink.write(rows(10, 1))
    sink.finish()
    sink.close()
    assert names(tmp_path / "out") == [f"part-0000{n}.ndjson" for n in range(3)]
    text = "".join(path.read_text() for path in sorted((tmp_path / "out").iterdir()))
    assert text == "".join(f'{{"n":{n},"t":"{n}"}}\n' for n in range(11))


def test_parts_are_numbered_on_after_a_restart(tmp_path: Path) -> None:
    for run in range(3):
        sink = opened(ParquetSink(tmp_path / "out"))  # no suffix: a folder
        sink.write(rows(run, 1))
        if run == 1:
            sink.flush()
        else:
            sink.finish()
        sink.close()
    assert [parquet(tmp_path / "out" / f"part-0000{n}.parquet") for n in range(3)] == [[0], [1], [2]]


def test_a_folder_with_other_things_in_it_keeps_them(tmp_path: Path) -> None:
    for name in ("part-00007.csv", "part-x.parquet", "mine.parquet", ".part-00003.parquet.bak"):
        (tmp_path / name).write_text("kept")
    sink = ParquetSink(tmp_path, overwrite=True)
    sink.start_afresh()
    sink.open()
    sink.write(rows(0, 1))
    sink.finish()
    sink.close()
    assert len(names(tmp_path)) == 5
    assert parquet(tmp_path / "part-00000.parquet") == [0]


def test_compressed_parts(tmp_path: Path) -> None:
    sink = opened(NdjsonSink(f"{tmp_path}/", compression="gzip"))
    sink.write(rows(0, 2))
    sink.finish()
    sink.close()
    assert gzip.decompress((tmp_path / "part-00000.ndjson.gz").read_bytes()) == b'{"n":0,"t":"0"}\n{"n":1,"t":"1"}\n'
    with pytest.raises(UserError, match="'lzma' is no compression"):
        NdjsonSink(f"{tmp_path}/", compression="lzma")


# --- formats


@pytest.mark.slow  # a second of a core
def test_small_batches_become_large_row_groups(tmp_path: Path) -> None:
    sink = opened(ParquetSink(tmp_path / "t.parquet"))
    for first in range(0, 600_000, 2_000):
        sink.write(rows(first, 2_000))
    sink.finish()
    sink.close()
    found = pq.read_metadata(tmp_path / "t.parquet")
    assert [found.row_group(group).num_rows for group in range(found.num_row_groups)] == [264_000, 264_000, 72_000]
    assert parquet(tmp_path / "t.parquet") == list(range(600_000))


def test_waiting_rows_do_not_hold_the_large_batch_they_are_a_slice_of(tmp_path: Path) -> None:
    sink = opened(ArrowSink(tmp_path / "t.arrow"))
    before = pa.total_allocated_bytes()
    sink.write(Batch(pa.record_batch({"n": range(200_000)}).slice(5, 3)))
    assert pa.total_allocated_bytes() - before < 200_000
    sink.finish()
    sink.close()
    with ipc.open_file(tmp_path / "t.arrow") as reader:
        assert reader.read_all()["n"].to_pylist() == [5, 6, 7]


def test_nested_columns_are_written_where_the_format_can(tmp_path: Path) -> None:
    data = pa.record_batch({"l": [[1], None], "s": [{"a": "x"}, None]})
    for kind, name in ((ParquetSink, "t.parquet"), (ArrowSink, "t.arrow"), (NdjsonSink, "t.ndjson")):
        sink = opened(kind(tmp_path / name))
        sink.write(Batch(data))
        sink.finish()
        sink.close()
    assert pq.read_table(tmp_path / "t.parquet").to_pylist() == data.to_pylist()
    with ipc.open_file(tmp_path / "t.arrow") as reader:
        assert reader.read_all().to_pylist() == data.to_pylist()
    assert (tmp_path / "t.ndjson").read_text() == '{"l":[1],"s":{"a":"x"}}\n{"l":null,"s":null}\n'
    sink = opened(CsvSink(tmp_path / "t.csv"))
    with pytest.raises(UserError, match="'l' of type list"):
        sink.write(Batch(data))
    sink.close()


@pytest.mark.parametrize(
    "make", [lambda path: ParquetSink(f"{path}/t.parquet"), lambda path: NdjsonSink(f"{path}/t.ndjson")]
)
def test_a_folder_that_is_gone_is_a_fault_that_is_named(make: Any, tmp_path: Path) -> None:
    sink = opened(make(tmp_path / "gone"))
    sink.write(rows(0, 1))
    shutil.rmtree(tmp_path / "gone")
    if isinstance(sink, ParquetSink):
        with pytest.raises(TransientError, match=r"t\.parquet' cannot be written"):
            sink.flush()
    sink.close()


# --- what cannot be written


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: ParquetSink(folder / "x.csv"), r"x\.csv': its ending says csv, and ParquetSink writes parquet"),
        (lambda folder: NdjsonSink(folder / "x.parquet"), r"its ending says parquet, and NdjsonSink writes ndjson"),
        (lambda folder: CsvSink(folder / "x.json.gz"), r"its ending says ndjson, and CsvSink writes csv"),
        (lambda folder: ParquetSink(folder / "x.parquet.gz"), r"does not compress a file as a whole.*compression="),
        (lambda folder: ArrowSink(folder / "x.arrow.zst"), r"ArrowSink does not compress a file as a whole"),
        (
            lambda folder: NdjsonSink(folder / "x.ndjson", compression="gzip"),
            r"its ending does not say .*ending \.ndjson\.gz",
        ),
        (
            lambda folder: CsvSink(folder / "x.csv.gz", compression="zstd"),
            r"compression='zstd', which its ending does not",
        ),
    ],
)
def test_an_ending_that_says_something_else_is_refused(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: ParquetSink(path, compression="lzma"), r"compression='lzma' \(one of 'snappy'"),
        (lambda path: ArrowSink(path, compression="gzip"), r"compression='gzip' \(one of 'lz4', 'zstd'"),
        (lambda path: ParquetSink(path, part_bytes="64MB"), "part_bytes='64MB'"),
        (lambda path: NdjsonSink(path, part_bytes=0), "part_bytes=0"),
        (lambda path: NdjsonSink(path, overwrite="no"), r"overwrite='no' \(True or False"),
        (lambda path: ParquetSink(path, evolve="no"), "evolve='no'"),
        (lambda path: NdjsonSink(path, times="text"), r"times='text' \(one of 'ms', 'iso', 'sql'"),
        (lambda path: files([]), "a source of files needs a path, and the list of them is empty"),
        (lambda path: files(None), "path None is no path of files"),
        (lambda path: ParquetSink(path, partition_by="day"), r"partition_by='day' \(columns in a list"),
        (lambda path: CsvSink(path, partition_by="day"), "partition_by='day'"),
        (lambda path: CsvSink(path, delimiter=";;"), r"CsvSink\(delimiter=';;'\) \(one character"),
        (lambda path: CsvSink(path, delimiter='"'), "CsvSink.*no quote"),
        (lambda path: CsvSource(path, delimiter=""), r"CsvSource\(delimiter=''\)"),
        (lambda path: CsvSource(path, delimiter="é"), r"CsvSource\(delimiter='é'\)"),
        (lambda path: CsvSource(path, columns="ab"), "columns='ab'"),
        (lambda path: CsvSource(path, columns=["a", "a"]), "has two columns 'a'"),
        (lambda path: CsvSource(path, block_bytes=0), "block_bytes=0"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(tmp_path: Path, make: Any, message: str) -> None:
    """The error came with the first rows, with another reason, or not at all."""
    with pytest.raises(UserError, match=message):
        make(f"{tmp_path}/parts/")


def test_endings_that_say_nothing_and_folders_are_fine(tmp_path: Path) -> None:
    (tmp_path / "day.csv").mkdir()
    for sink in (
        NdjsonSink(tmp_path / "x.txt"),
        NdjsonSink(tmp_path / "x.json.gz"),
        CsvSink(tmp_path / "x.tsv.zst"),
        ParquetSink(tmp_path / "x.pq"),
        ArrowSink(tmp_path / "x.feather"),
        ParquetSink(f"{tmp_path}/x.csv/"),
        ParquetSink(tmp_path / "day.csv"),
    ):
        opened(sink).close()


def test_csv_takes_no_bytes_of_whatever_width(tmp_path: Path) -> None:
    sink = opened(CsvSink(tmp_path / "x.csv"))
    with pytest.raises(UserError, match=r"column 'c' of type fixed_size_binary\[2\] cannot be written as CSV"):
        sink.write(Batch(pa.record_batch({"c": pa.array([b"ab"], pa.binary(2))})))
    sink.close()


class Refusing(Sink):
    """A sink of a user's."""

    name = "mine"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def open(self) -> None: ...
    def write(self, batch: Batch) -> None:
        raise self.error

    def flush(self) -> None: ...
    def close(self) -> None: ...


def written(sink: Sink, data: pa.RecordBatch, key: str | None = None) -> None:
    writer = SinkWriter(sink, key, None, lambda: 0)
    writer.open(OperatorContext(data.schema))
    try:
        writer.process(Batch(data))
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (TypeError("no"), UserError, r"sink mine: TypeError: no \(cast the column"),
        (KeyError("c"), UserError, r"sink mine: KeyError: 'c'"),
        (ConnectionResetError("gone"), TransientError, r"sink mine: ConnectionResetError: gone"),
        (UserError("column 'c' is odd", hint="h"), UserError, r"sink mine: column 'c' is odd \(h\)"),
        (UserError("mine: odd"), UserError, r"^mine: odd$"),
    ],
)
def test_only_what_may_pass_by_itself_is_a_transient_error(error: Exception, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        written(Refusing(error), pa.record_batch({"n": [1]}))


@pytest.mark.parametrize("key", [None, "n"])
def test_bytes_that_are_no_text_are_named_with_their_row(tmp_path: Path, key: str | None) -> None:
    data = pa.record_batch({"n": [1, 2, 3], "c": [b"a", None, b"\xff\xfe"]})
    with pytest.raises(UserError, match=r"x\.ndjson: TypeError: column 'c'.*'c' of row 2 of 3 is .*cast the column"):
        written(NdjsonSink(tmp_path / "x.ndjson"), data, key)


def test_a_column_that_json_cannot_say_is_named_with_its_sink(tmp_path: Path) -> None:
    data = pa.record_batch({"d": pa.array([1], pa.duration("s"))})
    with pytest.raises(UserError, match=r"sink .*x\.ndjson: column 'd': duration\[s\] cannot be written as JSON"):
        written(NdjsonSink(tmp_path / "x.ndjson"), data)
