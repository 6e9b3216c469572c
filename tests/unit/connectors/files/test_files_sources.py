"""Sources of files: chunks shared by readers, bad rows, compression, paths. Each format's common promises are in tests/contracts."""

import gzip
import json
import os
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv, ipc
from pyarrow import parquet as pq

import sabot
from sabot import App
from sabot.codecs.records import BAD_SCHEMA
from sabot.connectors.base import Positions, Source
from sabot.connectors.files import ArrowSource, CsvSink, CsvSource, FileSource, NdjsonSource, ParquetSource, files
from sabot.connectors.files.formats.base import Share
from sabot.connectors.files.formats.csv import CsvRecords
from sabot.connectors.files.formats.lines import lines_of
from sabot.connectors.files.formats.text import ChunkedFile
from sabot.connectors.files.paths import DataFile
from sabot.errors import UserError

N = pa.schema({"n": pa.int64()})


def rows_of(source: Source, max_rows: int = 1000) -> list[dict[str, Any]]:
    """All rows from here on; bad ones as {"bad": payload}, before the good ones of their batch."""
    found: list[dict[str, Any]] = []
    while not source.exhausted:
        batch = source.read_batch(max_rows, 0)
        if batch is None:
            continue
        batch.data.validate(full=True)
        if batch.bad is not None:
            assert batch.bad.schema.equals(BAD_SCHEMA)
            found += [{"bad": payload} for payload in batch.bad["payload"].to_pylist()]
        found += batch.data.to_pylist()
    return found


def scanned(source: FileSource, schema: pa.Schema | None = None) -> list[dict[str, Any]]:
    source.scan(schema, None)
    source.open(None)
    found = rows_of(source)
    source.close()
    return found


# --- lines in chunks

LINES = st.lists(st.sampled_from([b'{"n":1}', b'{"n": 222222222}', b"", b"\r", b" ", b"x", b'{"n":"no"}']), max_size=25)


def naive(data: bytes) -> list[tuple[str, Any]]:
    """The same by a loop: every line is a row, a bad one, or blank."""
    found: list[tuple[str, Any]] = []
    for line in data.split(b"\n"):
        text = line.strip(b" \r")
        if not text:
            continue
        try:
            value = json.loads(text)["n"]
        except (ValueError, TypeError):
            value = None
        found.append(("row", value) if isinstance(value, int) else ("bad", line.removesuffix(b"\r")))
    return found


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lines_of_blanks_are_neither_rows_nor_records(tmp_path: Path, end: bytes) -> None:
    """A line of spaces was skipped in columns, and a record that no agent could decode."""
    path = tmp_path / "in.ndjson"
    lines = [b" ", b'{"n":1}', b"\t \r", b"", b' {"n":2} ', b"\r", b"  "]
    path.write_bytes(end.join([*lines, b'{"n":3}']))
    assert scanned(NdjsonSource(path)) == [{"n": 1}, {"n": 2}, {"n": 3}]
    source = NdjsonSource(path)
    source.open(None)
    found = {row["offset"]: row["payload"] for row in rows_of(source)}
    source.close()
    places = [sum(len(line) + len(end) for line in lines[:before]) for before in (1, 4, 7)]
    assert found == dict(zip(places, [b'{"n":1}', b' {"n":2} ', b'{"n":3}'], strict=True))


@settings(max_examples=120, deadline=None)
@given(
    LINES, st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.integers(1, 40), st.integers(1, 4), st.integers(1, 9)
)
def test_any_chunk_size_and_any_number_of_readers_give_each_line_once(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[bytes],
    end: bytes,
    ended: bool,
    chunk: int,
    count: int,
    rows: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "chunks.ndjson"
    data = end.join(lines) + (end if ended else b"")
    path.write_bytes(data)
    source = NdjsonSource(path, block_bytes=chunk)
    source.scan(N, None)
    good: list[int] = []
    bad: list[tuple[int, bytes]] = []
    for reader in source.readers(count):
        reader.open(None)
        while not reader.exhausted:
            batch = reader.read_batch(rows, 0)
            if batch is None:
                continue
            assert batch.num_rows + (0 if batch.bad is None else batch.bad.num_rows) <= rows
            good += batch.data["n"].to_pylist()
            if batch.bad is not None:
                bad += zip(batch.bad["offset"].to_pylist(), batch.bad["payload"].to_pylist(), strict=True)
        reader.close()
    expected = naive(data)
    assert sorted(good) == sorted(value for kind, value in expected if kind == "row")
    assert [payload for _, payload in sorted(bad)] == [value for kind, value in expected if kind == "bad"]
    assert all(data[offset : offset + len(payload)] == payload for offset, payload in bad)


@settings(max_examples=60, deadline=None)
@given(LINES, st.integers(1, 40), st.integers(1, 3), st.integers(1, 3))
def test_readers_stopped_after_every_batch_give_each_line_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], chunk: int, count: int, rows: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "stops.ndjson"
    path.write_bytes(b"\n".join(lines))
    source = NdjsonSource(path, block_bytes=chunk)
    source.scan(N, None)
    found = []
    for reader in source.readers(count):
        positions: Positions | None = None
        ended = False
        while not ended:
            reader.open(positions)
            batch = reader.read_batch(rows, 0)
            positions, ended = reader.positions(), reader.exhausted
            found += [] if batch is None else batch.data["n"].to_pylist()
            found += [] if batch is None or batch.bad is None else ["bad"] * batch.bad.num_rows
            reader.close()
    assert sorted(map(str, found)) == sorted(
        str(value) if kind == "row" else "bad" for kind, value in naive(path.read_bytes())
    )


@pytest.mark.parametrize("named", [True, False], ids=["the checkpoint names its chunks", "as checkpoints were before"])
def test_an_app_goes_on_with_the_chunks_of_its_checkpoint(tmp_path: Path, named: bool) -> None:
    path = tmp_path / "rows.ndjson"
    path.write_text("".join(f'{{"n":{n}}}\n' for n in range(2_000)))
    positions: Positions = {}
    found = []

    def read(block_bytes: int, most: int) -> None:
        source = NdjsonSource(path, block_bytes=block_bytes)
        source.scan(N, None)
        for reader in source.readers(3):
            reader.open(positions)
            for _ in range(most):
                if (batch := reader.read_batch(50, 0)) is not None:
                    found.extend(batch.data["n"].to_pylist())
            positions.update(reader.positions())
            reader.close()

    read(1_000, 3)
    assert 0 < len(found) < 1_000
    if not named:
        positions = {place: at for place, at in positions.items() if "#chunks" not in place[0]}
    read(3_000 if named else 1_000, 1_000)
    assert sorted(found) == list(range(2_000))


def test_a_reader_of_several_has_one_buffer(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson"
    path.write_text("".join(f'{{"n":{n}}}\n' for n in range(40_000)))
    file = DataFile(str(path), 0, path.stat().st_size, 0)
    blocks = ChunkedFile(file, 0, Share(1, 2), 16_384, 1 << 20)
    buffers = []
    while blocks.next():
        buffers.append(blocks.buffer)
        blocks.take(blocks.high)
    blocks.close()
    assert len(buffers) > 10
    assert all(each is buffers[0] for each in buffers)


def test_a_line_longer_than_many_chunks_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "long.ndjson"
    texts = ["a", "b" * 200_000, "c", "d" * 50_000, "e"]
    path.write_text("".join(json.dumps({"t": text}) + "\n" for text in texts))
    for count in (1, 2, 3):
        source = NdjsonSource(path, block_bytes=1000)
        source.scan(None, None)
        found = []
        for reader in source.readers(count):
            reader.open(None)
            found += [row["t"] for row in rows_of(reader)]
            reader.close()
        assert sorted(found) == texts
    compressed = tmp_path / "long.ndjson.gz"
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    assert [row["t"] for row in scanned(NdjsonSource(compressed, block_bytes=1000))] == texts


def test_lines_of_very_different_lengths_stay_within_the_rows_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson"
    path.write_text("".join(json.dumps({"n": n, "t": "x" * (3000 if n % 50 == 0 else 0)}) + "\n" for n in range(500)))
    for max_rows in (1, 2, 7, 100):
        source = NdjsonSource(path, block_bytes=5000)
        source.scan(N, None)
        source.open(None)
        found = []
        while not source.exhausted:
            batch = source.read_batch(max_rows, 0)
            if batch is not None:
                assert batch.num_rows <= max_rows
                found += batch.data["n"].to_pylist()
        assert found == list(range(500))
        source.close()


def test_a_file_that_has_grown_goes_on_for_every_reader_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson"
    path.write_text("".join(f'{{"n":{n}}}\n' for n in range(100)))
    positions: Positions = {}
    found = []
    for size in (100, 250):
        with path.open("a") as file:
            file.writelines(f'{{"n":{n}}}\n' for n in range(100, size))
        source = NdjsonSource(path, block_bytes=64)
        source.scan(N, None)
        for reader in source.readers(3):
            reader.open(positions)
            found += [row["n"] for row in rows_of(reader)]
            positions |= reader.positions()
            reader.close()
    assert sorted(found) == list(range(250))


@pytest.mark.parametrize("left", [0, 164, 792])
@pytest.mark.parametrize("kind", [NdjsonSource, CsvSource])
def test_a_file_that_becomes_shorter_while_it_is_read_is_an_error_and_no_end(
    tmp_path: Path, kind: Any, left: int
) -> None:
    path = tmp_path / "rows.txt"
    path.write_text('{"n":1}\n' * 100 if kind is NdjsonSource else "n\n" + "1234567\n" * 99 + "12345\n")
    source = kind(path, block_bytes=80)
    source.scan(N, None)
    source.open(None)
    assert source.read_batch(100, 0) is not None
    os.truncate(path, left)
    with pytest.raises(
        UserError, match=rf"rows.txt' became shorter .* had 800 bytes and has {left}, .* offset \d+ .*copytruncate"
    ):
        rows_of(source)
    source.close()


def test_a_long_line_that_is_cut_off_while_it_is_stepped_over_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson"
    path.write_text('{"n":1}\n' * 10 + "x" * 100_000 + "\n")
    source = NdjsonSource(path, block_bytes=80, record_bytes=2000)
    source.scan(N, None)
    source.open(None)
    assert source.read_batch(100, 0) is not None
    os.truncate(path, 50_000)
    with pytest.raises(UserError, match="had 100081 bytes and has 50000, nothing is left to read at offset 50000"):
        rows_of(source)
    source.close()


# --- bad rows


def test_bad_lines_are_set_apart_with_their_place_and_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson"
    path.write_bytes(b'{"n":1}\n\nnope\r\n{"n":2}\n{"n":"x"}\n{"n":3}')
    source = NdjsonSource(path)
    source.scan(N, None)
    source.open(None)
    batch = source.read_batch(100, 0)
    assert batch is not None
    assert batch.data["n"].to_pylist() == [1, 2, 3]
    assert batch.bad is not None
    bad = batch.bad.to_pylist()
    assert [(row["payload"], row["offset"]) for row in bad] == [(b"nope", 9), (b'{"n":"x"}', 23)]
    assert all(row["reason"] for row in bad)
    assert batch.offsets == {(str(path), 0): path.stat().st_size}


def test_a_file_of_bad_rows_gives_batches_of_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_text("x\ny\n")
    (tmp_path / "b.ndjson").write_text('{"n":1}\n')
    source = NdjsonSource(tmp_path)
    source.scan(N, None)
    source.open(None)
    first = source.read_batch(100, 0)
    assert first is not None
    assert first.num_rows == 0
    assert first.bad is not None
    assert first.bad["payload"].to_pylist() == [b"x", b"y"]
    assert first.bad["headers"].to_pylist()[0] == [{"name": "file", "value": str(tmp_path / "a.ndjson").encode()}]
    assert rows_of(source) == [{"n": 1}]


def test_bad_csv_rows_are_set_apart_with_their_place_and_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'n,t\r\n1,a\r\nx,b\r\n\r\n2,"c\r\nd"\r\n3\r\n4,e,f\r\n5,g')
    source = CsvSource(path)
    source.scan(pa.schema({"n": pa.int64(), "t": pa.string()}), None)
    source.open(None)
    batch = source.read_batch(100, 0)
    assert batch is not None
    assert batch.data.to_pylist() == [{"n": 1, "t": "a"}, {"n": 2, "t": "c\r\nd"}, {"n": 5, "t": "g"}]
    assert batch.bad is not None
    bad = batch.bad.to_pylist()
    data = path.read_bytes()
    assert [(row["payload"], row["offset"]) for row in bad] == [
        (text, data.index(text)) for text in (b"x,b", b"3", b"4,e,f")
    ]
    assert "int64" in bad[0]["reason"]
    assert "columns" in bad[1]["reason"]


@pytest.mark.one_in(3, "a quarter of a second of a core each")
@pytest.mark.parametrize(
    ("lines", "bad", "reason"),
    [
        (b"x,y\n", b"x,y", "field n: invalid value 'x' for int64"),
        (b"1,2,3\n", b"1,2,3", "expected 2 columns, got 3: 1,2,3"),
        (b'5\n"6","a\nb"\n', b"5", "expected 2 columns, got 1: 5"),
        (b"1,2\n1,\xff\n", b"1,\xff", "field t: invalid UTF8 data for string"),
    ],
)
def test_bad_csv_rows_are_set_apart_in_few_passes_however_many_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: bytes, bad: bytes, reason: str
) -> None:
    passes = 0
    parse = csv.read_csv

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal passes
        passes += 1
        return parse(*given, **named)

    path = tmp_path / "rows.csv"
    path.write_bytes(b"n,t\n" + lines * 10_000)
    monkeypatch.setattr(csv, "read_csv", counted)
    source = CsvSource(path)
    source.scan(pa.schema({"n": pa.int64(), "t": pa.string()}), None)
    source.open(None)
    batch = source.read_batch(30_000, 0)
    assert batch is not None
    assert batch.bad is not None
    assert batch.num_rows == (0 if lines.count(b"\n") == 1 else 10_000)
    assert batch.bad["payload"].to_pylist() == [bad] * 10_000
    data = path.read_bytes()
    first = 4 + lines.index(bad)
    assert batch.bad["offset"].to_pylist() == list(range(first, len(data), len(lines)))
    assert set(batch.bad["reason"].to_pylist()) == {reason}
    assert passes < 10


# --- csv

FIELDS = st.sampled_from(["", "a", "ü", '"', ",", "\n", "\r\n", 'x"y', " ", "a\n\nb", "1"])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(FIELDS, FIELDS), min_size=1, max_size=12), st.integers(1, 30), st.integers(1, 5))
def test_quoted_line_breaks_are_no_record_ends_at_any_block_size(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], block: int, max_rows: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    table = pa.table({"a": [a for a, _ in rows], "b": [b for _, b in rows]})
    csv.write_csv(table, path)
    source = CsvSource(path, block_bytes=block)
    source.scan(table.schema, None)
    found = []
    positions: Positions | None = None
    ended = False
    while not ended:
        source.open(positions)
        batch = source.read_batch(max_rows, 0)
        positions, ended = source.positions(), source.exhausted
        found += [] if batch is None else batch.data.to_pylist()
        assert batch is None or batch.bad is None
        source.close()
    assert found == table.to_pylist()


def record_ends(data: bytes, delimiter: bytes) -> list[int]:
    """Byte after byte: a quote opens a field at its beginning, and nowhere else."""
    ends, state = [], "beginning"
    for at, byte in enumerate(data):
        mark = data[at : at + 1]
        if state == "quoted":
            state = "behind a quote" if mark == b'"' else "quoted"
        elif mark == b'"' and state in ("beginning", "behind a quote"):
            state = "quoted"
        else:
            state = "beginning" if mark in (b"\n", b"\r", delimiter) else "in a field"
            if byte in b"\r\n" and data[at : at + 2] != b"\r\n":
                ends.append(at + 1)
    return ends


PIECES = [b"a", b'"', b'"', b"\n", b"\r\n", b"\r", b'""', b",", b";", b'"\n"', b',"', b'",']


@given(st.lists(st.sampled_from(PIECES), max_size=30), st.integers(0, 20), st.sampled_from([b",", b";"]))
def test_records_end_where_the_parser_says_so(pieces: list[bytes], low: int, delimiter: bytes) -> None:
    data = bytearray(b"".join(pieces))
    low = min(low, len(data))
    ends = [low + end for end in record_ends(bytes(data[low:]), delimiter)]
    records = CsvRecords(delimiter.decode())
    assert records.first(data, low, len(data)) == (ends[0] if ends else len(data))
    ends = [end for end in ends if end < len(data) or not data.endswith(b"\r")]  # its \n may be still to come
    assert records.last(data, low, len(data)) == (ends[-1] if ends else low)


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (b'a,b\n5" disk,x\n6,"y\nz"\n7,w\n8,v\n', [('5" disk', "x"), ("6", "y\nz"), ("7", "w"), ("8", "v")]),
        (b"a,b\r5,x\r6,y\r7,w\r8,v", [("5", "x"), ("6", "y"), ("7", "w"), ("8", "v")]),
        (b'a,b\n"5"" disk,x\n6,""y"\n', []),
    ],
)
@pytest.mark.parametrize("max_rows", [1, 2, 100])
@pytest.mark.parametrize("block", [4, 1 << 20])
def test_a_quote_within_a_field_and_a_lone_return_neither_stop_reading_nor_move_records(
    tmp_path: Path, data: bytes, rows: list[tuple[str, str]], max_rows: int, block: int
) -> None:
    """Quotes were only counted: behind an odd one reading stood still, where a block had more rows than were asked for."""
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    source = CsvSource(path, block_bytes=block)
    source.scan(pa.schema({"a": pa.string(), "b": pa.string()}), None)
    source.open(None)
    found, bad = [], 0
    while not source.exhausted:
        batch = source.read_batch(max_rows, 0)
        found += [] if batch is None else [(row["a"], row["b"]) for row in batch.data.to_pylist()]
        bad += 0 if batch is None or batch.bad is None else batch.bad.num_rows
        source.open(source.positions())  # each end of a batch is a place to go on from
    assert (found, bad) == (rows, 0 if rows else 1)


def test_types_of_csv_columns_are_inferred_and_what_does_not_fit_later_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("i,f,b,t,d,none\n1,0.5,true,x,2024-01-02,\n,,,,,\n3,2,false,,2024-01-03,\n")
    schema = CsvSource(path).infer_schema()
    types = [pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.string(), pa.string()]
    assert schema.types == types
    with path.open("a") as file:
        file.write("x,0,true,z,2024-01-04,\n")
    source = CsvSource(path)
    source.scan(schema, ["i", "t"])
    source.open(None)
    rows = [{"i": 1, "t": "x"}, {"i": None, "t": None}, {"i": 3, "t": None}]
    assert rows_of(source) == [{"bad": b"x,0,true,z,2024-01-04,"}, *rows]


def test_a_file_has_the_same_types_as_csv_and_as_json(tmp_path: Path) -> None:
    rows = [
        {"ts": "2024-01-02 10:00:00", "d": "2024-01-02", "t": "10:00:00", "n": 1, "f": 1.5, "ok": True, "s": "x"},
        {"ts": "2024-01-02T11:00:00Z", "d": "2024-01-03", "t": "11:00", "n": 2, "f": 2.0, "ok": False, "s": "y"},
    ]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    (tmp_path / "t.ndjson").write_text("\n".join(json.dumps(row) for row in rows))
    texts = [json.dumps(value).strip('"') for row in rows for value in row.values()]
    (tmp_path / "t.csv").write_text("\n".join([",".join(rows[0]), ",".join(texts[:7]), ",".join(texts[7:])]))
    schemas = [files(tmp_path / f"t.{ending}").infer_schema() for ending in ("json", "ndjson", "csv")]
    assert schemas[0] == schemas[1] == schemas[2]
    assert str(schemas[0].field("d").type) == "string"


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("ending", ["csv", "ndjson", "json"])
def test_a_number_that_gets_a_fraction_late_is_told_with_the_fix_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    path = tmp_path / f"prices.{ending}"
    prices = [number if number < 1500 else number + 0.5 for number in range(2000)]
    rows = [{"id": "x" * 700, "price": price} for price in prices]
    path.write_text(
        {
            "csv": "\n".join(["id,price", *(f"{row['id']},{row['price']}" for row in rows)]),
            "ndjson": "\n".join(map(json.dumps, rows)),
            "json": json.dumps(rows),
        }[ending]
    )
    with caplog.at_level("INFO"):
        narrow = App("narrow").stream(files(path)).collect()
    assert narrow["price"].to_pylist() == prices[:1500]
    told = [line for line in caplog.messages if 'schema_overrides={"price": "float64"}, or infer= looks' in line]
    assert len(told) == 1
    assert [line for line in caplog.messages if "columns were inferred from the first 1," in line]
    wide = App("wide").stream(files(path), infer=10_000).collect()
    assert wide["price"].to_pylist() == prices
    cast = App("cast").stream(files(path), schema_overrides={"price": "float64"}).collect()
    assert cast["price"].to_pylist() == prices


def test_infer_is_refused_where_nothing_is_inferred(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"the types of .*t\.parquet' are in its files"):
        App("a").stream(files(tmp_path / "t.parquet"), infer=10)
    with pytest.raises(UserError, match="schema= has all types already"):
        App("a").stream("topic", schema={"n": "int64"}, infer=10)
    with pytest.raises(UserError, match="infer=10 is for JSON and CSV"):
        App("a").stream("topic", format="raw", infer=10)


def test_csv_dialects(tmp_path: Path) -> None:
    expected = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    for name, text, options in [
        ("bom.csv", "\ufeffa,b\n1,x\n2,y\n", {}),
        ("blank.csv", "\n\r\na,b\n\n1,x\n\n2,y\n\n", {}),
        ("tabs.tsv", "a\tb\n1\tx\n2\ty", {}),
        ("semi.csv", "a;b\n1;x\n2;y\n", {"delimiter": ";"}),
        ("bare.csv", "1,x\n2,y\n", {"columns": ["a", "b"]}),
        ("quoted.csv", '"a","b"\n1,"x"\n2,"y"\n', {}),
    ]:
        path = tmp_path / name
        path.write_text(text)
        assert scanned(CsvSource(path, **options)) == expected, name  # type: ignore[arg-type]


def test_csv_headers_that_cannot_be_are_named(tmp_path: Path) -> None:
    (tmp_path / "twice.csv").write_text("a,a\n1,2\n")
    with pytest.raises(UserError, match="two columns 'a'"):
        CsvSource(tmp_path / "twice.csv").scan(None, None)
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "1.csv").write_text("a,b\n1,2\n")
    (tmp_path / "many" / "2.csv").write_text("a,c\n1,2\n")
    with pytest.raises(UserError, match=r"2\.csv' has no column 'b'"):
        scanned(CsvSource(tmp_path / "many"))
    with pytest.raises(UserError, match="list"):
        scanned(CsvSource(tmp_path / "many" / "1.csv"), pa.schema({"a": pa.list_(pa.int64())}))


def step_over_unclosed(data: bytes, low: int) -> list[int]:
    """The same by a loop: while the last record is not closed, its first line is left out and the rest is read anew."""
    found = []
    while low < len(data):
        low += [0, *record_ends(data[low:], b",")][-1]
        if not record_ends(data[low:] + b"\na", b","):
            found.append(low)
            low = min(at for at in (data.find(b"\n", low) + 1, data.find(b"\r", low) + 1, len(data)) if at)
        else:
            break
    return found


@given(st.lists(st.sampled_from(PIECES), max_size=30), st.integers(0, 20))
def test_lines_whose_quotes_are_never_closed_are_those_that_a_loop_finds(pieces: list[bytes], low: int) -> None:
    data = bytearray(b"".join(pieces))
    low = min(low, len(data))
    assert CsvRecords().unclosed(data, low, len(data))[::-1] == step_over_unclosed(bytes(data), low)


@pytest.mark.one_in(27, "a twentieth of a second of a core each")
@pytest.mark.one_in(6, "some hundredths of a second of a core each")
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
@pytest.mark.parametrize("max_rows", [1, 2, 100])
@pytest.mark.parametrize("block", [4, 32, 1 << 20])
@pytest.mark.parametrize("bound", [24, 1 << 24])
@pytest.mark.parametrize(
    ("lines", "bad"),
    [
        (['"4,k', "5,m", "6,n"], [0]),
        (["1,x", '2,"y', *(f"{n},z" for n in range(30, 130))], [1]),
        (["1,x", '"2\n\n",y', '3,"z', '4,""', "5,v", '6,w"'], [5]),
        (["1,x", '"2\n\n",y', '3,"z', '4,""', "5,v", "6,w"], [2]),
        (["1,x", "2,y", '3,"z'], [2]),
    ],
)
def test_a_quote_that_is_never_closed_spoils_its_own_line_alone(
    tmp_path: Path, lines: list[str], bad: list[int], bound: int, block: int, max_rows: int, name: str
) -> None:
    """All lines after it were lost if the file ended within the size bound of a record."""
    path = tmp_path / name
    if lines[-1] == '6,w"':  # closed in the last line: one row with line breaks, and an end that is no quote of a field
        lines, bad = [*lines[:2], "\n".join(lines[2:]), '7,"a'], [3]
        if bound == 24:
            bound = 40
    text = ("a,b\n" + "\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    source = CsvSource(path, block_bytes=block, record_bytes=bound)
    source.scan(pa.schema({"a": pa.string(), "b": pa.string()}), None)
    positions: Positions | None = None
    ended = False
    rows: list[str] = []
    apart: list[tuple[int, bytes]] = []
    while not ended:
        source.open(positions)
        batch = source.read_batch(max_rows, 0)
        if batch is not None:
            rows += batch.data["a"].to_pylist()
            if batch.bad is not None:
                apart += zip(batch.bad["offset"].to_pylist(), batch.bad["payload"].to_pylist(), strict=True)
        positions, ended = source.positions(), source.exhausted
        source.close()
    good = [line for number, line in enumerate(lines) if number not in bad]
    assert rows == [line.removeprefix('"').split("," if line[0] != '"' else '"')[0] for line in good]
    assert apart == [(text.index(lines[number].encode()), f"{lines[number]}\n".encode()) for number in bad]


@pytest.mark.slow  # seconds of a core
def test_many_quotes_that_are_never_closed_are_searched_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind each such line the rest would be open again: each of these lines lacks its first quote."""
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n" + 'x","1\n5,m\n' * 2_000)
    passes = 0
    last = CsvRecords.last

    def counted(*given: Any) -> int:
        nonlocal passes
        passes += 1
        return last(*given)

    monkeypatch.setattr(CsvRecords, "last", counted)
    source = CsvSource(path)
    source.scan(pa.schema({"a": pa.string(), "b": pa.string()}), None)
    source.open(None)
    found = rows_of(source)
    assert found == [{"bad": b'x","1\n'}, {"a": "5", "b": "m"}] * 2_000
    assert passes < 10


def test_a_header_whose_quote_is_never_closed_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a,"b\n1,2\n')
    with pytest.raises(UserError, match="its header: a quote that is not closed before the end of the file"):
        CsvSource(path).infer_schema()


def test_empty_files_of_text_have_no_rows(tmp_path: Path) -> None:
    for name in ("e.ndjson", "e.csv", "e.ndjson.gz", "e.csv.zst"):
        (tmp_path / name).touch()
        source = files(tmp_path / name)
        assert source.infer_schema().names == []
        assert scanned(source) == []
    (tmp_path / "header.csv").write_text("a,b\n")
    assert scanned(files(tmp_path / "header.csv")) == []
    assert files(tmp_path / "header.csv").infer_schema().names == ["a", "b"]
    (tmp_path / "blank.ndjson").write_text("\n\r\n\n")
    assert scanned(files(tmp_path / "blank.ndjson")) == []


# --- formats with columns

NESTED = pa.table(
    {
        "list": [[1, 2], None, []],
        "struct": [{"a": 1, "b": "x"}, {"a": None, "b": "ü"}, None],
        "deep": [[{"k": [1.5]}], [], None],
    }
)


def test_nested_columns_come_through(tmp_path: Path) -> None:
    pq.write_table(NESTED, tmp_path / "t.parquet")
    with ipc.new_file(tmp_path / "t.arrow", NESTED.schema) as writer:
        writer.write_table(NESTED)
    (tmp_path / "t.ndjson").write_text("".join(json.dumps(row) + "\n" for row in NESTED.to_pylist()))
    for name in ("t.parquet", "t.arrow", "t.ndjson"):
        assert scanned(files(tmp_path / name)) == NESTED.to_pylist()
        source = files(tmp_path / name)
        source.scan(None, ["struct"])
        source.open(None)
        assert rows_of(source) == NESTED.select(["struct"]).to_pylist()


def test_foreign_types_become_canonical(tmp_path: Path) -> None:
    table = pa.table(
        {
            "d": pa.array(["a", "b", "a"]).dictionary_encode(),
            "l": pa.array(["x", None, "y"], pa.large_string()),
            "v": pa.array(["p", "q", None], pa.string_view()),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    with ipc.new_file(tmp_path / "t.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("t.parquet", "t.arrow"):
        source = files(tmp_path / name)
        assert source.infer_schema().types == [pa.string()] * 3
        assert scanned(source) == table.to_pylist()


def test_files_of_one_folder_are_cast_to_the_first_and_a_missing_column_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1], "t": ["x"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"t": ["y"], "more": [0], "n": pa.array([2], pa.int32())}), tmp_path / "2.parquet")
    assert scanned(ParquetSource(tmp_path)) == [{"n": 1, "t": "x"}, {"n": 2, "t": "y"}]
    pq.write_table(pa.table({"n": ["word"], "t": ["z"]}), tmp_path / "3.parquet")
    with pytest.raises(UserError, match=r"3\.parquet.*'n' is string, wanted is int64"):
        scanned(ParquetSource(tmp_path))
    pq.write_table(pa.table({"n": [3]}), tmp_path / "3.parquet")
    with pytest.raises(UserError, match=r"3\.parquet' has no column 't'"):
        scanned(ParquetSource(tmp_path))


def test_a_compressed_arrow_file_and_large_batches(tmp_path: Path) -> None:
    table = pa.table({"n": range(1000), "t": [str(n) for n in range(1000)]})
    with ipc.new_file(tmp_path / "t.feather", table.schema, options=ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table, 300)
    source = ArrowSource(tmp_path / "t.feather")
    source.scan(None, ["t"])
    readers = source.readers(2)
    found = []
    for reader in readers:
        reader.open(None)
        found += rows_of(reader, 64)
        reader.close()
    assert sorted(int(row["t"]) for row in found) == list(range(1000))


# --- damaged files


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    text = b'{"n": 1}\n' * 1000
    (tmp_path / "cut.ndjson.gz").write_bytes(gzip.compress(text)[:-12])
    (tmp_path / "not.ndjson.gz").write_bytes(text)
    (tmp_path / "not.parquet").write_bytes(text)
    (tmp_path / "not.arrow").write_bytes(text)
    (tmp_path / "empty.arrow").touch()
    (tmp_path / "old.feather").write_bytes(b"FEA1 and so on")
    pq.write_table(pa.table({"n": [1]}), tmp_path / "t.parquet")
    (tmp_path / "t.parquet.gz").write_bytes(gzip.compress((tmp_path / "t.parquet").read_bytes()))
    for name in (
        "cut.ndjson.gz",
        "not.ndjson.gz",
        "not.parquet",
        "not.arrow",
        "empty.arrow",
        "old.feather",
        "t.parquet.gz",
    ):
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            scanned(files(tmp_path / name), N)


def test_several_members_of_a_compressed_file_are_one_text(tmp_path: Path) -> None:
    path = tmp_path / "t.ndjson.gz"
    path.write_bytes(gzip.compress(b'{"n":1}\n{"n"') + gzip.compress(b":2}\n") + gzip.compress(b""))
    assert scanned(NdjsonSource(path)) == [{"n": 1}, {"n": 2}]


# --- paths


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """n = 1..6 in files here and below, and much that is no data."""
    for n, name in enumerate(
        ["a.ndjson", "b.jsonl", "sub/c.json", "sub/d.ndjson.gz", "z.ndjson.zst", "zz.txt"], start=1
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        line = f'{{"n":{n}}}\n'.encode()
        packed = {".gz": gzip.compress, ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True)}
        path.write_bytes(packed.get(path.suffix, bytes)(line))
    for name in ("_SUCCESS", ".a.ndjson.tmp", ".hidden.ndjson", "README.md", "sub/_old.ndjson"):
        (tmp_path / name).write_text('{"n":100}\n')
    return tmp_path


def numbers(source: FileSource) -> list[int]:
    return [row["n"] for row in scanned(source, N)]


def test_a_folder_is_read_by_name_and_what_is_no_data_is_left_out(tree: Path) -> None:
    assert numbers(NdjsonSource(tree)) == [1, 2, 3, 4, 5]
    assert numbers(files(tree)) == [1, 2, 3, 4, 5]


def test_globs_and_lists_of_paths(tree: Path) -> None:
    assert numbers(NdjsonSource(f"{tree}/*.ndjson")) == [1]
    assert numbers(NdjsonSource(f"{tree}/[az]*.ndjson*")) == [1, 5]
    assert numbers(NdjsonSource(f"{tree}/**/*.gz")) == [4]
    assert numbers(NdjsonSource(f"{tree}/**/[b-d].*")) == [2, 3, 4]
    assert numbers(NdjsonSource([tree / "zz.txt", f"{tree}/sub/*.json", tree / "a.ndjson"])) == [6, 3, 1]
    assert numbers(files(tree / "zz.txt", "ndjson")) == [6]


def test_a_name_with_brackets_is_a_file_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "a[1].ndjson").write_text('{"n":1}\n')
    assert numbers(NdjsonSource(tmp_path / "a[1].ndjson")) == [1]


def test_paths_that_lead_nowhere_are_named(tree: Path) -> None:
    (tree / "empty").mkdir()
    for path, what in [
        (tree / "no.ndjson", r"no\.ndjson"),
        (f"{tree}/*.orc", r"no file matches .*\*\.orc"),
        (tree / "empty", "empty' has no file that ends in"),
        ([], "needs a path"),
    ]:
        with pytest.raises(UserError, match=what):
            files(path, "ndjson").open(None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"zz\.txt.*names no format"):
        files(tree / "zz.txt")
    (tree / "t.csv").write_text("n\n1\n")
    with pytest.raises(UserError, match=r"several formats: .*\(ndjson\).*\(csv\)"):
        files(tree)
    with pytest.raises(UserError, match="'orc' is no format"):
        files(tree, "orc")


def many(folder: Path, names: str) -> None:
    for name in names:
        (folder / f"{name}.ndjson").write_text("".join(f'{{"n":{ord(name) * 10 + n}}}\n' for n in range(4)))


def test_files_that_come_later_are_read_at_the_next_start(tmp_path: Path) -> None:
    many(tmp_path, "bdf")
    source = NdjsonSource(tmp_path)
    first = numbers(source)
    positions = source.positions()
    many(tmp_path, "gh")
    source.open(positions)
    assert [row["n"] // 10 for row in rows_of(source)] == [ord("g")] * 4 + [ord("h")] * 4
    assert len(first) == 12


def test_files_that_have_changed_before_the_position_are_refused(tmp_path: Path) -> None:
    many(tmp_path, "bdf")
    source = NdjsonSource(tmp_path)
    source.scan(N, None)
    source.open(None)
    for _ in range(2):
        assert source.read_batch(3, 0) is not None
    positions = source.positions()
    source.close()
    many(tmp_path, "e")
    source.open(positions)  # behind the file that is being read
    source.close()
    many(tmp_path, "a")
    with pytest.raises(UserError, match=r"files of .* are not those of the checkpoint"):
        source.open(positions)
    for name in "abe":
        (tmp_path / f"{name}.ndjson").unlink()
    with pytest.raises(UserError, match="are not those of the checkpoint"):
        source.open(positions)
    for name in "df":
        (tmp_path / f"{name}.ndjson").unlink()
    with pytest.raises(UserError, match="has no file"):
        source.open(positions)


def test_a_timestamp_begins_at_the_first_file_that_was_changed_then(tmp_path: Path) -> None:
    many(tmp_path, "abc")
    for n, name in enumerate("abc"):
        os.utime(tmp_path / f"{name}.ndjson", (1_600_000_000 + n, 1_600_000_000 + n))
    for start, count in ((0, 12), (1_600_000_001_000, 8), (1_600_000_001_001, 4), (1_600_000_003_000, 0)):
        source = NdjsonSource(tmp_path)
        source.scan(N, None)
        source.open(None, start)
        assert len(rows_of(source)) == count
        source.close()


def test_columns_are_inferred_from_the_first_file_that_has_rows(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").touch()
    (tmp_path / "b.ndjson").write_text("not json\n" + '{"n":1}\n' * 1500 + '{"n":1,"late":2}\n')
    source = NdjsonSource(tmp_path)
    assert source.infer_schema().equals(N)
    assert len(scanned(source)) == 1502


def test_long_lines_are_inferred_from_1000_too(tmp_path: Path) -> None:
    path = tmp_path / "long.ndjson"
    path.write_text("".join(f'{{"n":{n},"t":"{"x" * 3000}"}}\n' for n in range(998)) + '{"n":0.5}\n' * 2)
    assert NdjsonSource(path).infer_schema().field("n").type == pa.float64()


def test_the_number_of_readers_is_checked_and_one_piece_has_one(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("n\n1\n")
    assert len(CsvSource(path).readers(4)) == 1
    assert len(CsvSource(tmp_path).readers(4)) == 4
    with pytest.raises(UserError, match="at least one"):
        CsvSource(path).readers(0)


def test_records_of_several_files_have_offsets_that_grow(tmp_path: Path) -> None:
    many(tmp_path, "ab")

    def offsets() -> Iterator[int]:
        source = NdjsonSource(tmp_path)
        source.open(None)
        while not source.exhausted:
            batch = source.read_batch(3, 0)
            if batch is not None:
                yield from batch.data["offset"].to_pylist()
        source.close()

    found = list(offsets())
    assert len(found) == 8
    assert found == sorted(set(found))


def test_what_was_set_apart_goes_with_the_batch_of_the_source_alone(tmp_path: Path) -> None:
    (tmp_path / "t.ndjson").write_text('x\n{"n":1}\n{"n":2}\n')
    source = NdjsonSource(tmp_path / "t.ndjson")
    source.scan(N, None)
    source.open(None)
    batch = source.read_batch(100, 0)
    assert batch is not None
    assert batch.bad is not None
    assert batch.slice(0, 1).bad is None
    assert batch.with_data(batch.data).bad is None
    assert batch.with_selection(pa.array([0], pa.int32())).bad is None


# --- columns that streams do not support, or that two have the same name


def write_table(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with (
            ipc.new_stream(path, table.schema) if path.suffix == ".arrows" else ipc.new_file(path, table.schema) as file
        ):
            file.write_table(table)
    return path


NUMBERS = pa.array([1, 2, 3])
UNION = pa.UnionArray.from_sparse(pa.array([0, 0, 0], pa.int8()), [NUMBERS])
UUIDS = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"a" * 16, b"b" * 16, None], pa.binary(16)))
PLAIN_TYPES = [
    pa.decimal128(20, 2),
    pa.decimal256(40, 2),
    pa.time32("ms"),
    pa.time64("us"),
    pa.duration("ms"),
    pa.float16(),
    pa.binary(2),
    pa.list_(pa.int64(), 2),
    pa.map_(pa.string(), pa.int64()),
]


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.arrows"])
@pytest.mark.parametrize("kind", PLAIN_TYPES, ids=str)
def test_types_that_no_operator_computes_with_are_carried(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    values: Any = {pa.list_(pa.int64(), 2): [1, 2], pa.map_(pa.string(), pa.int64()): [("a", 1)], pa.binary(2): b"ab"}
    column = pa.array([values.get(kind, 1), None], kind)
    source = files(write_table(tmp_path / name, pa.table({"c": column, "n": [1, 2]})))
    assert isinstance(source, FileSource)
    assert scanned(source) == pa.table({"c": column, "n": [1, 2]}).to_pylist()
    assert source.infer_schema().field("c").type == kind


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.arrows"])
def test_extension_types_are_what_they_are_stored_as(tmp_path: Path, name: str) -> None:
    lists = pa.ListArray.from_arrays([0, 2, 2, 3], UUIDS)
    small = pa.array([1, 2, None], pa.decimal32(5, 2))
    source = files(write_table(tmp_path / name, pa.table({"u": UUIDS, "l": lists, "d": small})))
    assert scanned(source)[0] == {"u": b"a" * 16, "l": [b"a" * 16, b"b" * 16], "d": small[0].as_py()}
    bare = pa.binary(16)
    assert source.infer_schema() == pa.schema({"u": bare, "l": pa.list_(bare), "d": pa.decimal128(5, 2)})
    with pytest.raises(
        UserError, match=r"column 'u' cannot be read as .*uuid.*give fixed_size_binary\[16\] in schema="
    ):
        source.scan(pa.schema({"u": pa.uuid()}), None)


@pytest.mark.parametrize("name", ["t.arrow", "t.arrows"])
def test_a_column_that_no_stream_carries_matters_only_when_it_is_read(tmp_path: Path, name: str) -> None:
    path = write_table(tmp_path / name, pa.table({"bad": UNION, "n": NUMBERS}))
    source = files(path)
    source.scan(None, ["n"])
    source.open(None)
    assert [row["n"] for row in rows_of(source)] == [1, 2, 3]
    assert scanned(files(path), N) == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert len(scanned(files(path), pa.schema([]))) == 3
    with pytest.raises(UserError, match=rf"{name}': column 'bad' is sparse_union.*streams do not support \(.*schema="):
        source.scan(None, None)
    with pytest.raises(UserError, match=rf"{name}': column 'bad' is sparse_union.*wanted is int64"):
        scanned(files(path), pa.schema({"bad": pa.int64()}))


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.arrows"])
def test_two_columns_of_one_name_are_refused_where_they_are_read(tmp_path: Path, name: str) -> None:
    path = write_table(tmp_path / name, pa.table([NUMBERS, NUMBERS, NUMBERS], names=["a", "a", "n"]))
    with pytest.raises(UserError, match=rf"file '.*{name}' has two columns 'a' \(.*schema="):
        files(path).infer_schema()
    with pytest.raises(UserError, match=rf"file '.*{name}' has two columns 'a'"):
        scanned(files(path), pa.schema({"a": pa.int64()}))
    assert scanned(files(path), N) == [{"n": 1}, {"n": 2}, {"n": 3}]


# --- text that is not what its ending says


def test_csv_that_is_not_in_utf8_is_named_when_its_columns_are_inferred(tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_bytes("n,name\n1,Ada\n2,Jos\xe9\n".encode("latin-1"))
    with pytest.raises(
        UserError, match=r"people\.csv' is not in UTF-8: column 'name' \(files\(…, encoding=\"latin-1\"\).*\"binary\""
    ):
        CsvSource(path).infer_schema()
    found = scanned(CsvSource(path), pa.schema({"n": pa.int64(), "name": pa.string()}))
    assert found == [{"bad": b"2,Jos\xe9"}, {"n": 1, "name": "Ada"}]
    assert scanned(CsvSource(path), pa.schema({"name": pa.binary()}))[1] == {"name": b"Jos\xe9"}
    path.write_bytes(
        b"n,name\n1,Ada\n2,Jos\xe9,3\n"
    )  # pyarrow calls a handler with a text, and prints that it could not
    with pytest.raises(
        UserError, match=r"people\.csv' is not in UTF-8: a row with more or fewer fields than its header"
    ):
        CsvSource(path).infer_schema()
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        path.write_bytes("n,name\n1,Ada\n".encode(encoding))
        for options in ({}, {"encoding": "latin-1"}):
            with pytest.raises(
                UserError, match=r"people\.csv' is not in UTF-8: its first line \(it is in UTF-16: conv"
            ):
                CsvSource(path, **options).infer_schema()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_rows_in_utf16_are_named_as_such_where_no_header_tells(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "people.csv"
    path.write_bytes("1,Ada\n2,José\n".encode(encoding))
    text = pa.schema({"n": pa.string(), "name": pa.string()})
    for read in (
        lambda: scanned(CsvSource(path, columns=["n", "name"]), text),
        lambda: CsvSource(path, columns=["n", "name"]).infer_schema(),
        lambda: scanned(lines_of(path, pa.field("line", pa.string()), None), pa.schema({"line": pa.string()})),
    ):
        with pytest.raises(UserError, match=r"people\.csv' is not in UTF-8: its first line \(it is in UTF-16: conv"):
            read()
    line = pa.schema({"line": pa.binary()})
    assert len(scanned(lines_of(path, line.field(0), None), line)) >= 2  # bytes are taken as they are
    path.write_bytes(b"1,a\0b\n2,\0\0\n")
    assert scanned(CsvSource(path, columns=["n", "name"]), text) == [
        {"n": "1", "name": "a\0b"},
        {"n": "2", "name": "\0\0"},
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[1, 2]", r"one JSON object a line, or one array of objects"),
        ('{"n": 1}\n'.encode("utf-16"), r"UTF-16: convert it"),
        ('{"n": 1}\n'.encode("utf-16-le"), r"UTF-16: convert it"),
        (b'{\n  "n": 1\n}\n', r"its first line: invalid JSON.*one JSON object a line"),
    ],
)
def test_json_that_is_no_ndjson_says_so_instead_of_having_no_columns(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"t\.json' does not hold JSON objects.*{message}"):
        files(path).infer_schema()


def test_a_line_of_a_log_before_the_objects_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(b'[INFO] start\n{"n": 1}\n')
    assert scanned(files(path)) == [{"bad": b"[INFO] start"}, {"n": 1}]


def test_a_path_with_a_nul_in_it_is_refused_as_a_path() -> None:
    for make in (files, NdjsonSource, CsvSource):
        with pytest.raises(UserError, match=r"a.x00b.ndjson' has a NUL in it"):
            make("a\0b.ndjson").open(None)


def test_types_that_cannot_be_inferred_are_told_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mixed.ndjson"
    path.write_text('{"a": 1}\n{"a": "x"}\n')
    with pytest.raises(
        UserError, match=r"file '.*mixed\.ndjson': field 'a': its type is .* in one row and .*give a schema"
    ):
        NdjsonSource(path).infer_schema()


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    """A pipe held up the start for ever; a device (/dev/stdin, /dev/zero) was read as empty."""
    path = tmp_path / "rows.ndjson" if kind == "pipe" else Path("/dev/zero")
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(UserError, match=f"'{path}' is no file: a pipe, a device or the like"):
        App("special").stream(files(path, "ndjson"), schema={"a": "int64"}).collect()


def test_a_file_whose_name_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    """It was said to be damaged."""
    (tmp_path / "nu").mkdir()
    with open(os.fsencode(tmp_path / "nu") + b"/\xff.csv", "w") as file:
        file.write("a\n1\n")
    with pytest.raises(UserError, match=r"the name of file '.*\\udcff\.csv' is not UTF-8"):
        App("names").stream(files(tmp_path / "nu", "csv")).collect()


def collected(path: Path, schema: dict[str, str] | None = None, **options: Any) -> list[dict[str, Any]]:
    app = App("words")
    return app.stream(files(path, **options), schema=schema).collect().to_pylist()


def test_words_for_null_decimal_commas_and_other_encodings_of_csv_are_read(tmp_path: Path) -> None:
    path = tmp_path / "orte.csv"
    path.write_bytes('ort;grad;n\nMünchen;1,5;3\nKöln;NA;-\n"NA";-0,25;4\n'.encode("cp1252"))
    given = {"delimiter": ";", "decimal_comma": True, "null_values": ["NA", "-"], "encoding": "cp1252"}
    assert collected(path, **given) == [
        {"ort": "München", "grad": 1.5, "n": 3},
        {"ort": "Köln", "grad": None, "n": None},
        {"ort": "NA", "grad": -0.25, "n": 4},  # in quotes it is a text
    ]


def test_a_bad_row_of_such_a_file_is_set_apart_alone_with_its_own_bytes(tmp_path: Path) -> None:
    path = tmp_path / "orte.csv"
    rows = ["München;1,5", "Köln;zwei", "Ulm;NA", "Hof;1;2", "Ürzig;4,25"]
    path.write_bytes(b"ort;grad\n" + "\n".join(rows).encode("cp1252"))
    source = files(path, delimiter=";", decimal_comma=True, null_values=["NA"], encoding="cp1252")
    source.scan(pa.schema({"ort": pa.string(), "grad": pa.decimal128(10, 2)}), None)
    source.open(None)
    batch = source.read_batch(1000, 0)
    source.close()
    assert batch.data.to_pylist() == [
        {"ort": "München", "grad": Decimal("1.50")},
        {"ort": "Ulm", "grad": None},
        {"ort": "Ürzig", "grad": Decimal("4.25")},
    ]
    assert batch.bad["payload"].to_pylist() == ["Köln;zwei".encode("cp1252"), b"Hof;1;2"]


def test_a_header_of_one_column_names_the_delimiter_that_it_seems_to_have(tmp_path: Path) -> None:
    path = tmp_path / "semicolons.csv"
    path.write_text("a;b\n1;2\n")
    with pytest.raises(UserError, match=r"its header is one column 'a;b' .*delimiter=';'\)"):
        collected(path)
    assert collected(path, delimiter=",") == [{"a;b": "1;2"}]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"encoding": "utf-16"}, "its characters of ASCII are not single bytes"),
        ({"encoding": "latin-99"}, "encoding='latin-99' is unknown"),
        ({"decimal_comma": True}, "fields end with a comma too"),
        ({"null_values": "NA"}, "null_values='NA'"),
    ],
)
def test_words_of_csv_that_cannot_be_are_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=said):
        files(path, **options)


def test_words_of_csv_are_refused_for_other_formats(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_text('{"a": 1}\n')
    with pytest.raises(UserError, match="files: encoding is for CSV, and these files are ndjson"):
        files(path, encoding="latin-1")


FAR = [
    datetime(9999, 12, 31, 23, 59, 59, 999999),
    datetime(1, 1, 1),
    None,
    datetime(1500, 2, 3, 4, 5, 6, 7),
    datetime(2024, 5, 6, 7, 8, 9, 123456),
]


def int96(path: Path, table: pa.Table) -> None:
    """Writes times as Spark and Hive do."""
    pq.write_table(table, path, use_deprecated_int96_timestamps=True, row_group_size=2)


@pytest.mark.parametrize("readers", [1, 2])
def test_times_of_spark_and_hive_are_those_of_every_year(tmp_path: Path, readers: int) -> None:
    """9999-12-31, by which many systems mean "never", was 1816-03-30, as ns wrap."""
    kind = pa.timestamp("us")
    nested = {
        "t": pa.array(FAR, kind),
        "list": pa.array([[at, None] for at in FAR], pa.list_(kind)),
        "struct": pa.array([{"at": at, "n": 1} for at in FAR], pa.struct({"at": kind, "n": pa.int64()})),
        "map": pa.array([[("a", at)] for at in FAR], pa.map_(pa.string(), kind)),
        "n": pa.array(range(len(FAR)), pa.int64()),
    }
    int96(tmp_path / "a.parquet", pa.table(nested))
    source = ParquetSource(tmp_path / "a.parquet")
    assert source.infer_schema().field("t").type == kind
    found = []
    source.scan(None, None)
    for reader in source.readers(readers):
        reader.open(None)
        found += rows_of(reader, 3)
        reader.close()
    expected = pa.table(nested).to_pylist()
    assert sorted(found, key=lambda row: row["n"]) == expected
    for schema in ({"t": pa.string()}, {"t": pa.timestamp("s")}, {"n": pa.int64()}, {"t": pa.timestamp("us", "UTC")}):
        other = ParquetSource(tmp_path / "a.parquet")
        rows = scanned(other, pa.schema(schema))
        assert len(rows) == len(FAR)
        if "n" not in schema:
            assert str(rows[0]["t"]).startswith("9999-12-31")


def test_a_time_of_hive_that_its_unit_does_not_hold_is_an_error_and_no_other_time(tmp_path: Path) -> None:
    fine = pa.array([1_700_000_000_000_000_001, -1, 0], pa.timestamp("ns"))
    int96(
        tmp_path / "fine.parquet", pa.table({"t": fine, "l": pa.array([[each] for each in fine], pa.list_(fine.type))})
    )
    for name in ("t", "l"):
        with pytest.raises(
            UserError, match=f"column '{name}' is to be .*us.*a time with digits after the microseconds"
        ) as no:
            App("fine").stream(files(tmp_path / "fine.parquet")).select(name).collect()
        kind = "timestamp[ns]" if name == "t" else "list<element: timestamp[ns]>"
        assert no.value.hint == f'schema_overrides={{"{name}": "{kind}"}}'
        overrides = {"t": pa.timestamp("ns"), "l": pa.list_(pa.timestamp("ns"))}
        found = App("fine").stream(files(tmp_path / "fine.parquet"), schema_overrides=overrides).select(name).collect()
        assert pc.equal(pc.list_flatten(found[name]) if name == "l" else found[name], fine).to_pylist() == [True] * 3
    int96(tmp_path / "far.parquet", pa.table({"t": pa.array(FAR, pa.timestamp("us"))}))
    with pytest.raises(UserError, match=r"is to be timestamp\[ns\], and has a time before 1677 or after 2262") as no:
        App("far").stream(files(tmp_path / "far.parquet"), schema={"t": "timestamp[ns]"}).collect()
    assert no.value.hint == 'schema_overrides={"t": "timestamp[us]"}'


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.none() | st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999), max_size=40),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_each_time_in_int96_is_read_as_it_is_or_refused(
    tmp_path_factory: pytest.TempPathFactory, times: list[int | None], group: int, rows: int
) -> None:
    path = tmp_path_factory.mktemp("int96") / "a.parquet"
    table = pa.table({"t": pa.array(times, pa.timestamp("us"))})
    pq.write_table(table, path, use_deprecated_int96_timestamps=True, row_group_size=group)
    source = ParquetSource(path)
    source.scan(None, None)
    source.open(None)
    assert rows_of(source, rows) == table.to_pylist()
    source = ParquetSource(path)
    source.scan(pa.schema({"t": pa.timestamp("ns")}), None)
    source.open(None)
    if all(each is None or abs(each) <= (2**63 - 1) // 1000 for each in times):
        assert [row["t"] and row["t"].value // 1000 for row in rows_of(source, rows)] == times
    else:
        with pytest.raises(UserError, match="before 1677"):
            rows_of(source, rows)


BIG = [12345678901234567890123, 12345678901234567890124, 7, -(10**38) + 1]


@pytest.mark.parametrize(
    "code", ["01234", "00", "-007", "+4930123", "+1", "0x1F", "0X1f", " 012 "], ids=lambda code: code.strip()
)
def test_a_column_of_csv_with_a_code_that_looks_like_a_number_is_text(tmp_path: Path, code: str) -> None:
    (tmp_path / "a.csv").write_text(f"code,n\n98765,1\n{code},2\n,3\n")
    rows = App("codes").stream(files(tmp_path / "a.csv")).collect()
    assert rows.to_pydict() == {"code": ["98765", code, None], "n": [1, 2, 3]}
    as_number = App("numbers").stream(files(tmp_path / "a.csv"), schema_overrides={"code": "float64"})
    if "x" not in code.lower():
        assert as_number.collect()["code"].to_pylist() == [98765.0, float(code), None]


@pytest.mark.parametrize(("text", "type"), [("0", "int64"), ("-0", "int64"), ("00.5", "double"), ("+1.5", "double")])
def test_a_number_of_csv_that_is_no_code_stays_a_number(tmp_path: Path, text: str, type: str) -> None:
    (tmp_path / "a.csv").write_text(f"n\n1\n{text}\n")
    rows = App("numbers").stream(files(tmp_path / "a.csv")).collect()
    assert (str(rows.schema.field("n").type), rows["n"].to_pylist()) == (type, [1, float(text)])


@pytest.mark.parametrize("kind", ["csv", "tsv", "ndjson", "json"])
def test_integers_beyond_64_bits_are_decimals_and_not_one_float(tmp_path: Path, kind: str) -> None:
    """They were floats, so that two ids were one key."""
    file = tmp_path / f"ids.{kind}"
    if kind in ("csv", "tsv"):
        file.write_text("id\n" + "".join(f"{n}\n" for n in BIG))
    else:
        rows = [f'{{"id": {n}}}' for n in BIG]
        file.write_text("[" + ",".join(rows) + "]" if kind == "json" else "\n".join(rows))
    source = files(file)
    assert source.infer_schema().field("id").type == pa.decimal128(38, 0)
    assert [row["id"] for row in scanned(source)] == [Decimal(n) for n in BIG]
    counted = App("ids").stream(files(file)).group_by("id").aggregate(n=sabot.count()).collect()
    assert {row["n"] for row in counted.to_pylist()} == {1}


@pytest.mark.parametrize("kind", ["csv", "ndjson"])
def test_numbers_with_fractions_beside_integers_are_floats_and_integers_of_39_digits_dead_letters(
    tmp_path: Path, kind: str
) -> None:
    def read(values: list[str]) -> tuple[pa.DataType, list[Any]]:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.{kind}"
        file.write_text("".join(f"{each}\n" for each in (["v", *values] if kind == "csv" else values)))
        if kind == "ndjson":
            file.write_text("".join(f'{{"v": {each}}}\n' for each in values))
        source = files(file)
        return source.infer_schema().field("v").type, scanned(source)

    assert read(["1", "1.5", str(2**53)]) == (pa.float64(), [{"v": 1.0}, {"v": 1.5}, {"v": 2.0**53}])
    found, rows = read(["1", "9" * 39, "2"])
    assert found == pa.decimal128(38, 0)
    assert [row["v"] for row in rows if "v" in row] == [1, 2]
    assert len([row for row in rows if "bad" in row]) == 1
    assert read(["1", "2"])[0] == pa.int64()


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("block", [16, 1 << 20])
def test_a_header_with_a_byte_order_mark_may_have_a_quoted_line_break(
    tmp_path: Path, mark: bytes, end: bytes, block: int
) -> None:
    """The quote behind the mark opened no field, so that the header ended inside of it."""
    (tmp_path / "a.csv").write_bytes(mark + b'"a\nb",c' + end + b'1,"x\ny"' + end + b"2,z" + end)
    assert scanned(CsvSource(tmp_path / "a.csv", block_bytes=block)) == [
        {"a\nb": 1, "c": "x\ny"},
        {"a\nb": 2, "c": "z"},
    ]
    (tmp_path / "b.csv").write_bytes(mark + b'"a\nb"')
    assert CsvSource(tmp_path / "b.csv").infer_schema().names == ["a\nb"]


@pytest.mark.parametrize("blank", [b"", b"\n", b"\r\n", b" \n\n"])
@pytest.mark.parametrize("kind", ["csv", "csv without a header", "ndjson", "records of ndjson"])
def test_a_file_of_a_byte_order_mark_alone_has_no_rows(tmp_path: Path, kind: str, blank: bytes) -> None:
    """Programs of Windows write it where there are no rows. It ended the app, or was a dead letter, as did a blank first line."""
    csv = kind.startswith("csv")
    if b" " in blank and kind != "csv":
        return  # a line of spaces is a value, or a record of JSON that is empty
    if blank and kind == "csv without a header":
        return  # a blank line is a row where there is one column
    ending = "csv" if csv else "ndjson"
    (tmp_path / f"1.{ending}").write_bytes(b"\xef\xbb\xbf" + blank)
    line = b"1\n" if kind == "csv without a header" else b"a\n1\n" if csv else b'{"a":1}\n'
    (tmp_path / f"2.{ending}").write_bytes(b"\xef\xbb\xbf" + blank + line)
    options = {"columns": ["a"]} if kind == "csv without a header" else {}
    source: Any = (CsvSource if csv else NdjsonSource)(tmp_path / f"*.{ending}", **options)
    if kind == "records of ndjson":
        source.open(None)
        assert [row["payload"].removeprefix(b"\xef\xbb\xbf") for row in rows_of(source)] == [b'{"a":1}']
        source.close()
        return
    assert scanned(source) == [{"a": 1}]
    assert scanned((CsvSource if csv else NdjsonSource)(tmp_path / f"1.{ending}", **options)) == []


@pytest.mark.parametrize("name", ["utf-8-sig", "UTF-8-SIG", "utf_8_sig"])
def test_the_encoding_of_python_for_a_byte_order_mark_is_utf8(tmp_path: Path, name: str) -> None:
    """It was refused with "its characters of ASCII are not single bytes"."""
    (tmp_path / "a.csv").write_text("a,b\n1,ä\n", encoding="utf-8-sig")
    assert scanned(CsvSource(tmp_path / "a.csv", encoding=name)) == [{"a": 1, "b": "ä"}]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_blank_line_is_a_row_in_a_file_of_one_column(tmp_path: Path, end: str) -> None:
    """CsvSink writes null as nothing, so that rows of its files of one column were lost where they were read."""
    (tmp_path / "1.csv").write_bytes(end.join(["id", "", "7", "", "", "9", "x", "", "8", ""]).encode())
    read = App("one").stream(files(tmp_path / "1.csv"), schema={"id": "int64"}).collect()
    assert read.column("id").to_pylist() == [None, 7, None, None, 9, None, 8]  # "x" is a bad row
    (tmp_path / "2.csv").write_bytes(end.join(["id", "", "7", "", '"a', "", 'b"', ""]).encode())
    read = App("one").stream(files(tmp_path / "2.csv")).collect()
    assert read.column("id").to_pylist() == [None, "7", None, f"a{end}{end}b"]
    (tmp_path / "3.csv").write_bytes(end.join(["id", "", ""]).encode())
    assert App("one").stream(files(tmp_path / "3.csv")).collect().to_pylist() == [{"id": None}]


async def test_rows_of_one_column_come_back_from_csv(tmp_path: Path) -> None:
    rows = [{"x": text} for text in (None, "a", None, "", "null", None)]
    app = App("one")
    app.stream(rows, schema={"x": "string"}).to(CsvSink(tmp_path / "one.csv"))
    await app.run()
    assert App("two").stream(files(tmp_path / "one.csv")).collect().to_pylist() == rows


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_digits_of_times_that_the_first_file_lacks_are_not_cut_unless_a_schema_asks_for_it(
    tmp_path: Path, ending: str
) -> None:
    """The unit came from the first file, and the digits of later ones were cut off in silence; durations were refused."""
    for name, value, unit in (("1", 1, "ms"), ("2", 2_000, "us"), ("3", 3_001, "us")):
        table = pa.table({"at": pa.array([value], pa.timestamp(unit))})
        if ending == "parquet":
            pq.write_table(table, tmp_path / f"{name}.parquet")
        else:
            with pa.ipc.new_file(tmp_path / f"{name}.arrow", table.schema) as file:
                file.write_table(table)
    with pytest.raises(
        UserError, match=rf"3\.{ending}': column 'at' is timestamp\[us\], wanted is timestamp\[ms\].*3001"
    ):
        App("one").stream(files(tmp_path, ending)).collect()
    ms = App("one").stream(files(tmp_path, ending), schema={"at": "timestamp[ms]"}).collect()
    assert ms.column("at").cast(pa.int64()).to_pylist() == [1, 2, 3]
    us = App("one").stream(files(tmp_path, ending), schema={"at": "timestamp[us]"}).collect()
    assert us.column("at").cast(pa.int64()).to_pylist() == [1_000, 2_000, 3_001]
    (tmp_path / f"3.{ending}").unlink()
    assert App("one").stream(files(tmp_path, ending)).collect().column("at").cast(pa.int64()).to_pylist() == [1, 2]
