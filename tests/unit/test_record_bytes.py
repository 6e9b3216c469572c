"""A record has a bound in bytes: one above it is a dead letter with its first bytes, and reading goes on behind it in bounded memory."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc
from pyarrow import parquet as pq

from sabot import App
from sabot.base.config import RECORD_BYTES
from sabot.connectors.files import ArrowSource, CsvSource, FileSource, NdjsonSource, ParquetSource, files
from sabot.errors import UserError
from sabot.testing import ListSink, MemoryBroker
from tools.agent_tools import until

N = pa.schema({"n": pa.int64()})

Apart = list[tuple[int, bytes, str]]


def read(source: FileSource, schema: pa.Schema | None, max_rows: int = 1000) -> tuple[list[Any], Apart]:
    """The rows, and what was set apart: (offset, payload, reason)."""
    if schema is not None:
        source.scan(schema, None)
    rows: list[Any] = []
    apart: Apart = []
    for reader in source.readers(2):
        reader.open(None)
        while not reader.exhausted:
            batch = reader.read_batch(max_rows, 0)
            if batch is not None:
                rows += batch.data.to_pylist()
                if batch.bad is not None:
                    apart += [(row["offset"], row["payload"], row["reason"]) for row in batch.bad.to_pylist()]
                reader.open(reader.positions())  # each end of a batch is a place to go on from
        reader.close()
    return rows, apart


def line(n: int, size: int) -> bytes:
    return b'{"n":%d,"t":"%s"}' % (n, b"x" * max(0, size - 20))


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 30, 39, 40, 41, 90, 300, 2000]), max_size=12),
    chunk=st.sampled_from([16, 64, 100, 1000]),
    packed=st.booleans(),
    ended=st.booleans(),
    records=st.booleans(),
    max_rows=st.sampled_from([1, 1000]),
)
def test_lines_above_the_bound_are_set_apart_and_all_others_are_read(
    tmp_path_factory, sizes, chunk, packed, ended, records, max_rows
):
    lines = [line(number, size) if size else b"" for number, size in enumerate(sizes)]
    text = b"\n".join(lines) + (b"\n" if ended else b"")
    path = tmp_path_factory.getbasetemp() / ("t.ndjson.gz" if packed else "t.ndjson")
    path.write_bytes(gzip.compress(text, 1) if packed else text)
    good, apart, at = [], [], 0
    for number, each in enumerate(lines):
        whole = len(each) + (ended or number < len(lines) - 1)
        if whole > 40:
            apart.append((at, whole))
        elif each:
            good.append(number)
        at += whole
    rows, found = read(NdjsonSource(path, block_bytes=chunk, record_bytes=40), None if records else N, max_rows)
    assert sorted(json.loads(row["payload"])["n"] if records else row["n"] for row in rows) == good
    assert sorted(offset for offset, _, _ in found) == [offset for offset, _ in apart]
    for (offset, payload, reason), (_, length) in zip(sorted(found), apart, strict=True):
        assert (
            reason
            == f"{length} bytes are more than a record may have (record_bytes=40): only the first of them are kept"
        )
        assert payload
        assert text[offset : offset + length].startswith(payload)


@pytest.mark.one_in(6, "a fifth of a second of a core each")
@pytest.mark.parametrize("name", ["t.ndjson", "t.ndjson.gz", "t.csv", "t.csv.gz"])
def test_one_long_field_takes_no_more_memory_than_a_few_records_of_the_bound(tmp_path: Path, name: str) -> None:
    """200 KB of .gz took 2 GB, 600 KB took 6 GB."""
    head, tail = (b'{"n":1}\n{"n":"', b'"}\n{"n":2}\n') if "json" in name else (b"n\n1\n", b"\n2\n")
    path = tmp_path / name
    with gzip.open(path, "wb", 1) if name.endswith("gz") else path.open("wb") as file:
        file.write(head)
        for _ in range(64):
            file.write(b"7" * (1 << 20))
        file.write(tail)
    source = files(path, record_bytes="1MiB")
    source.scan(N, None)
    source.open(None)
    source.read_batch(1, 0)
    tracemalloc.start()
    rows, apart = read(source, None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ([row["n"] for row in rows], len(apart)) == ([1, 2], 1)
    assert len(apart[0][1]) == 1024
    assert peak < 12 << 20  # blocks of 4 MiB, the bound 1 MiB, pieces of 1 MiB


def test_a_quote_that_is_not_closed_within_the_bound_spoils_its_own_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('n,t\n1,x\n2,"y\n' + "".join(f"{n},z\n" for n in range(3, 100)))
    rows, apart = read(CsvSource(path, block_bytes=32, record_bytes=64), pa.schema({"n": pa.int64(), "t": pa.string()}))
    assert [row["n"] for row in rows] == [1, *range(3, 100)]
    assert apart == [(8, b'2,"y\n', "a quote that is not closed within 64 bytes (record_bytes=)")]


def test_a_csv_header_above_the_bound_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(",".join(f"column{n}" for n in range(1000)))
    with pytest.raises(UserError, match=r"t\.csv': its header: 9889 bytes are more than a record may have"):
        CsvSource(path, record_bytes=1000).infer_schema()


def test_columns_are_inferred_of_what_is_not_above_the_bound(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("n,t\n" + "x" * 2000 + ",y\n1,z\n")
    (tmp_path / "t.ndjson").write_bytes(line(1, 2000) + b'\n{"m": 1}\n')
    assert CsvSource(tmp_path / "t.csv", record_bytes=1000).infer_schema().types == [pa.int64(), pa.string()]
    assert NdjsonSource(tmp_path / "t.ndjson", record_bytes=1000).infer_schema().names == ["m"]
    (tmp_path / "t.ndjson").write_bytes(line(1, 2000))
    with pytest.raises(
        UserError, match="does not hold JSON objects, its first line: 1994 bytes are more than a record"
    ):
        NdjsonSource(tmp_path / "t.ndjson", record_bytes=1000).infer_schema()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_rows_of_columns_above_the_bound_are_set_apart(tmp_path: Path, format: str, packed: bool) -> None:
    texts = pa.array(["a", "b" * 2000, "c" * 900, "d" * 1100])
    table = pa.table({"n": [1, 2, 3, 4], "t": texts.dictionary_encode() if packed else texts})
    path = tmp_path / f"t.{format}"
    if format == "parquet":
        pq.write_table(table, path)
    else:
        with ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    source = (ParquetSource if format == "parquet" else ArrowSource)(path, record_bytes=1000)
    rows, apart = read(source, None)
    assert [row["n"] for row in rows] == [1, 3]
    assert [(offset, payload) for offset, payload, _ in apart] == [(1, b"b" * 1024), (3, b"d" * 1024)]
    assert all("more than a record may have (record_bytes=1000)" in reason for _, _, reason in apart)


def test_a_dictionary_of_long_texts_becomes_plain_a_few_rows_at_a_time(tmp_path: Path) -> None:
    """Four bytes a row said a MiB each."""
    path = tmp_path / "t.arrow"
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), ["x" * (1 << 20)])
    with ipc.new_file(path, pa.schema({"t": column.type})) as writer:
        writer.write_table(pa.table({"t": column}))
    source = ArrowSource(path)
    source.scan(None, None)
    source.open(None)
    batch = source.read_batch(10_000, 0)
    assert batch is not None
    assert batch.num_rows == 64


@pytest.mark.parametrize("by_batch", [False, True])
async def test_agents_get_the_other_records_and_the_long_one_is_a_dead_letter(tmp_path: Path, by_batch: bool) -> None:
    path = tmp_path / "t.ndjson"
    path.write_bytes(line(1, 30) + b"\n" + line(2, 5000) + b"\n" + line(3, 30) + b"\n")
    app = App("long", broker=f"memory://long-{by_batch}")
    seen: list[int] = []

    def by_record(ctx: Any) -> None:
        seen.append(ctx.message["n"])

    def by_columns(batch: pa.RecordBatch, ctx: Any) -> None:
        seen.extend(batch["n"].to_pylist())

    app.agent(files(path, record_bytes=1000), name="a", batch=by_batch, dead_letter="dlq")(
        by_columns if by_batch else by_record
    )
    await app.run()
    assert seen == [1, 3]
    (letter,) = MemoryBroker.get(f"memory://long-{by_batch}").records("dlq")
    assert letter.payload == line(2, 5000)[:1024]
    assert b"4995 bytes are more than a record may have" in dict(letter.headers)["sabot.message"]


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("kind", ["stream", "record", "batch"])
async def test_a_record_of_a_topic_above_the_bound_is_a_dead_letter(kind: str) -> None:
    broker = MemoryBroker.get(f"memory://wide-{kind}")
    broker.publish("t", [{"n": 1, "t": ""}, {"n": 2, "t": "x" * (RECORD_BYTES + 2048)}, {"n": 3, "t": ""}])
    app = App("wide", broker=f"memory://wide-{kind}", checkpoint_interval=0.05)
    sink = ListSink()
    seen: list[int] = []
    if kind == "stream":
        app.stream("t", schema={"n": "int64"}).to(sink, delivery="at_least_once")
    elif kind == "batch":
        app.agent("t", name="a", batch=True)(lambda batch, ctx: seen.extend(batch["n"].to_pylist()))
    else:
        app.agent("t", name="a")(lambda ctx: seen.append(ctx.message["n"]))
    await app.start()
    await until(lambda: len(broker.records("t.dlq")) == 1 and len(sink.rows) + len(seen) == 2)
    await app.stop()
    assert [row["n"] for row in sink.rows] + seen == [1, 3]
    (letter,) = broker.records("t.dlq")
    assert letter.payload is not None
    assert (len(letter.payload), letter.payload[:12]) == (1024, b'{"n":2,"t":"')
    assert b"bytes are more than a record may have" in dict(letter.headers)["sabot.message"]
