"""The table of formats of files: with an entry and a class a format is read and written by all that reads and writes files."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs as arrow_fs

from sabot import App, FileSink, FileSource, ObjectSink, UserError, files
from sabot._cython.arrow.batch import Batch
from sabot.connectors.files.formats import table as formats
from sabot.connectors.files.formats.base import FileReader, FoundRows, Share
from sabot.connectors.files.formats.text import BLOCK_BYTES, BlockReader, Blocks, Lines, TextFormat, open_blocks
from sabot.connectors.files.paths import DataFile
from sabot.testing import END, ScriptedSource

COLUMNS = pa.schema([("line", pa.string())])
ROWS = [{"line": f"row {number}"} for number in range(6)]


class Shouted(TextFormat):
    """Lines in capitals."""

    suffixes = (".shout", ".loud")

    def open_file(self, file: DataFile, offset: int, share: Share, schema: pa.Schema | None) -> FileReader:
        return ShoutReader(open_blocks(file, offset, share, BLOCK_BYTES, self.record_bytes), Lines())

    def infer(self, files: Sequence[DataFile]) -> pa.Schema:
        return COLUMNS

    def lines(self, batch: Batch) -> bytes:
        return b"".join(line.upper().encode() + b"\n" for line in self.columns(batch)["line"].to_pylist())


class ShoutReader(BlockReader):
    def decode_block(self, blocks: Blocks, end: int) -> FoundRows:
        lines = bytes(memoryview(blocks.buffer)[blocks.low : end]).decode().lower().splitlines()
        return FoundRows(pa.record_batch([pa.array(lines, pa.string())], schema=COLUMNS))


@pytest.fixture(autouse=True)
def shouted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(formats.FORMATS, "shout", Shouted)
    for suffix in Shouted.suffixes:
        monkeypatch.setitem(formats.SUFFIXES, suffix, "shout")


def build(directory: Path, out: str = "out/") -> App:
    app = App("loud", state="memory", checkpoint_dir=directory / "checkpoints")
    app.stream(ScriptedSource([*ROWS, END])).to(FileSink(Shouted(f"{directory}/{out}")), delivery="exactly_once")
    return app


@pytest.mark.parametrize("out", ["out/", "out.shout.gz"])
def test_a_format_of_the_table_is_written_and_read(tmp_path: Path, out: str) -> None:
    asyncio.run(build(tmp_path, out).run())
    source = files(tmp_path / out)
    source.open(None)
    found: list[str] = []
    while not source.exhausted:
        if (read := source.read_batch(4, 0)) is not None:
            found += read.data["line"].to_pylist()
    assert found == [row["line"] for row in ROWS]


def test_a_format_of_the_table_has_partitions_and_goes_to_object_stores(tmp_path: Path) -> None:
    sink = ObjectSink((arrow_fs.LocalFileSystem(), str(tmp_path / "store")), "shout", partition_by=["day"])
    sink.open()
    sink.write(Batch(pa.record_batch({"day": ["mon", "tue"], "line": ["a", "b"]})))
    sink.finish()
    sink.close()
    texts = {path.parent.name: path.read_text() for path in (tmp_path / "store").rglob("*.shout")}
    assert texts == {"day=mon": "A\n", "day=tue": "B\n"}


def test_a_format_of_the_table_is_one_of_sql(tmp_path: Path) -> None:
    (tmp_path / "in.loud").write_text("ONE\nTWO\n")
    app = App("loud", state="memory", checkpoint_dir=tmp_path / "checkpoints")
    app.sql(f"CREATE TABLE heard (line STRING) WITH ('connector' = 'filesystem', 'path' = '{tmp_path}/in.loud')")
    app.sql(f"CREATE TABLE said (line STRING) WITH ('connector' = 'filesystem', 'path' = '{tmp_path}/out.shout')")
    app.sql("INSERT INTO said SELECT line FROM heard WHERE line <> 'one'")
    asyncio.run(app.run())
    assert (tmp_path / "out.shout").read_text() == "TWO\n"


def test_no_two_formats_have_one_suffix() -> None:
    every = [suffix for format in formats.FORMATS.values() for suffix in format.suffixes]
    assert len(every) == len(set(every)) == len(formats.SUFFIXES)
    assert all(format.suffixes[0] == f".{name}" for name, format in formats.FORMATS.items())


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: FileSink("x.csv"), "CsvSink('x.csv')"),
        (lambda: FileSink(Path("out.parquet")), "ParquetSink('out.parquet')"),
        (lambda: FileSink("out/"), " or ".join(f"{name}Sink('out/')" for name in ("Ndjson", "Csv", "Parquet", "Arrow"))),
        (lambda: FileSource("in.jsonl"), "NdjsonSource('in.jsonl'); files('in.jsonl') chooses by the ending"),
        (lambda: FileSource("in.csv", "csv"), "CsvSource('in.csv'); files('in.csv') chooses by the ending"),
    ],
)  # fmt: skip
def test_a_path_where_a_format_belongs_is_refused_with_the_class_of_its_ending(make, hint):
    """FileSink("x.csv") ended in an AttributeError of `str`."""
    with pytest.raises(UserError, match=r"^File(Sink|Source) is for formats of your own, and ") as raised:
        make()
    assert raised.value.hint == hint
