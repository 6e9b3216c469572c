"""NDJSON files as records: lines split at any block border, crashes, and what the contract suites do not say."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import build_records
from sabot.connectors.files import NdjsonSink, NdjsonSource, files
from sabot.errors import UserError


def lines_of(source: NdjsonSource, max_rows: int = 1000) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while not source.exhausted:
        read = source.read_batch(max_rows, 0)
        if read is None:
            continue
        read.data.validate(full=True)
        found += zip(read.data.column(4).to_pylist(), read.data.column(0).to_pylist(), strict=True)
    return found


def naive(data: bytes) -> list[tuple[int, bytes]]:
    """The same by a loop over the lines."""
    found = []
    offset = 0
    for line in data.split(b"\n"):
        ended = offset + len(line) < len(data)
        payload = line[:-1] if ended and line.endswith(b"\r") else line
        if payload.strip(b" \t\r"):
            found.append((offset, payload))
        offset += len(line) + 1
    return found


PIECES = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"\r", b"0123456789", b"\xff", b" "]), max_size=60)


@settings(max_examples=200, deadline=None)
@given(PIECES, st.integers(1, 40), st.integers(1, 7))
def test_lines_are_the_same_for_any_block_and_batch_size(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], block: int, max_rows: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.ndjson"
    data = b"".join(pieces)
    path.write_bytes(data)
    source = NdjsonSource(path, block_bytes=block)
    source.open(None)
    assert lines_of(source, max_rows) == naive(data)
    assert source.positions() == {(str(path), 0): len(data)}
    source.close()


@settings(max_examples=100, deadline=None)
@given(PIECES, st.integers(1, 40), st.integers(1, 5))
def test_reading_goes_on_exactly_from_every_position(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], block: int, rows: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "resume.ndjson"
    data = b"".join(pieces)
    path.write_bytes(data)
    found: list[bytes] = []
    positions = None
    while True:
        source = NdjsonSource(path, block_bytes=block)
        source.open(positions)
        read = source.read_batch(rows, 0)
        positions = source.positions()
        ended = source.exhausted
        source.close()
        if read is not None:
            assert read.offsets == positions
            found += read.data.column(0).to_pylist()
        if ended:
            break
    assert found == [payload for _, payload in naive(data)]


def test_a_file_ends_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson"
    path.write_bytes(b"1\n2\n")
    source = NdjsonSource(path)
    source.open(None)
    assert source.bounded
    assert not source.exhausted
    assert source.lag() == {(str(path), 0): 4}
    assert len(lines_of(source)) == 2
    assert source.exhausted
    assert source.read_batch(10, 3600) is None


def test_an_empty_file_is_at_its_end_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson"
    path.touch()
    source = NdjsonSource(path)
    source.open(None)
    assert source.exhausted


def test_what_is_appended_after_the_opening_belongs_to_the_next_opening(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson"
    path.write_bytes(b"1\n")
    source = NdjsonSource(path)
    source.open(None)
    with path.open("ab") as file:
        file.write(b"2\n")
    assert lines_of(source) == [(0, b"1")]
    positions = source.positions()
    source.open(positions)
    assert lines_of(source) == [(2, b"2")]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.ndjson"
    with pytest.raises(UserError, match=r"nowhere\.ndjson"):
        NdjsonSource(path).open(None)
    with pytest.raises(UserError, match=str(tmp_path)):
        NdjsonSource(tmp_path).open(None)


def test_a_position_inside_a_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson"
    path.write_bytes(b"123\n456\n")
    for position in (1, 3, 9, -1):
        with pytest.raises(UserError, match=f"position {position}"):
            NdjsonSource(path).open({(str(path), 0): position})


def test_a_timestamp_takes_all_or_nothing_by_the_time_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson"
    path.write_bytes(b"1\n2\n")
    os.utime(path, (1_600_000_000, 1_600_000_000))
    source = NdjsonSource(path)
    source.open(None, 1_600_000_000_000)
    assert len(lines_of(source)) == 2
    source.open(None, 1_600_000_000_001)
    assert lines_of(source) == []


def test_an_unfinished_last_line_is_cut_off_when_the_sink_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson"
    for before, after in ((b'{"a":1}\n{"b"', b'{"a":1}\n'), (b'{"b"', b""), (b"1\n", b"1\n"), (b"", b"")):
        path.write_bytes(before)
        sink = NdjsonSink(path)
        sink.open()
        sink.write(Batch(pa.record_batch({"n": [1]})))
        sink.flush()
        sink.close()
        assert path.read_bytes() == after + b'{"n":1}\n'


def test_a_line_break_inside_a_payload_does_not_break_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson"
    sink = NdjsonSink(path)
    sink.open()
    payloads = [b'{\r\n  "a": 1\n}', b"2", None, b"\xff\n"]
    sink.write(Batch(build_records(payloads, None, np.zeros(4), 0, np.zeros(4))))
    sink.flush()
    assert path.read_bytes() == b'{    "a": 1 }\n2\nnull\n\xff \n'


def test_a_sink_makes_its_folder_and_names_what_it_cannot_write(tmp_path: Path) -> None:
    sink = NdjsonSink(tmp_path / "new" / "folder" / "rows.ndjson")
    sink.open()
    sink.close()
    assert (tmp_path / "new" / "folder" / "rows.ndjson").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        NdjsonSink(tmp_path / "file" / "rows.ndjson").open()


@pytest.mark.parametrize(
    ("option", "here"),
    [
        ("separator", "delimiter="),
        ("sep", "delimiter="),
        ("na_values", "null_values="),
        ("quote", "delimiter"),
        ("watch", "follow="),
    ],
)
def test_an_option_of_another_library_is_answered_with_that_of_sabot(option, here, tmp_path):
    (tmp_path / "a.csv").write_text("n;x\n1;2\n")
    with pytest.raises(UserError, match=f"files: {option}= is no option .*{here}"):
        files(tmp_path / "a.csv", **{option: ";"})
