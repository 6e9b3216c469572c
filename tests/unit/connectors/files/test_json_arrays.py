"""JSON files that are one array of objects: each element is a row, in blocks of any size, from any position."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot import App
from sabot.connectors.files import NdjsonSource, files
from sabot.errors import UserError

_TEXTS = st.text(st.sampled_from('ab",[]{}\\\n é'), max_size=6)
_ROWS = st.lists(
    st.fixed_dictionaries(
        {"n": st.integers(-9, 9), "t": _TEXTS, "in": st.fixed_dictionaries({"l": st.lists(_TEXTS, max_size=3)})}
    ),
    min_size=1,
    max_size=12,
)
_SCHEMA = pa.schema({"n": pa.int64(), "t": pa.string(), "in": pa.struct([pa.field("l", pa.list_(pa.string()))])})


def read(source: NdjsonSource, rows: int = 1000) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The good rows and the bad payloads; after each batch, reading is continued from its position by a new reader."""
    good: list[dict[str, Any]] = []
    bad: list[bytes] = []
    source.open(None)
    while not source.exhausted:
        batch = source.read_batch(rows, 0)
        if batch is not None:
            good += batch.data.to_pylist()
            bad += [] if batch.bad is None else batch.bad["payload"].to_pylist()
            source.open(batch.offsets)
    source.close()
    return good, bad


@settings(max_examples=150, deadline=None)
@given(_ROWS, st.sampled_from([None, 1, "\t"]), st.booleans(), st.integers(1, 60), st.integers(1, 5), st.booleans())
def test_each_element_of_an_array_is_a_row(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, Any]],
    indent: Any,
    escaped: bool,
    block: int,
    count: int,
    packed: bool,
) -> None:
    text = json.dumps(rows, indent=indent, ensure_ascii=escaped).encode() + b"\n"
    path = tmp_path_factory.getbasetemp() / ("rows.json.gz" if packed else "rows.json")
    path.write_bytes(gzip.compress(text) if packed else text)
    source = NdjsonSource(path, block_bytes=block)
    source.scan(_SCHEMA, None)
    assert read(source, count) == (rows, [])


def test_an_array_is_read_as_it_comes_from_a_program(tmp_path: Path) -> None:
    path = tmp_path / "cars.json"
    path.write_text('[\n  {"name": "a", "mpg": 18},\n  {"name": "b, [c]", "mpg": null}\n]\n')
    table = App("cars").stream(files(path)).collect()
    assert table.to_pylist() == [{"name": "a", "mpg": 18}, {"name": "b, [c]", "mpg": None}]


def test_an_element_that_is_no_object_is_a_bad_row_and_so_is_text_behind_the_array(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('[{"n": 1}, null, {"n": "x"},, {"n": 2}] {"n": 3}')
    for count in (1, 1000):
        source = files(path)
        source.scan(pa.schema({"n": pa.int64()}), None)
        assert read(source, count) == ([{"n": 1}, {"n": 2}], [b"null", b'{"n": "x"}', b"", b'{"n": 3}'])


@pytest.mark.parametrize(
    ("text", "rows", "bad"),
    [
        ('[{"n": 1}, {"n": 2}, {"n"', 2, [(b'{"n"', 21), (b"", 25)]),
        ('[{"n": 1}, {"n": 2}', 2, [(b"", 19)]),
        ('[{"n": 1}, {"n": 2},', 2, [(b"", 20)]),
        ('[{"n": 1}, {"n": 2} \n', 2, [(b"", 21)]),
        ('[{"n": 1}, {"n": 2}, {"n": "a]', 2, [(b'{"n": "a]', 21), (b"", 30)]),
        ("[", 0, [(b"", 1)]),
    ],
)
@pytest.mark.parametrize("block", [10, 20, 1000])
@pytest.mark.parametrize("packed", [False, True])
def test_an_array_that_is_cut_off_keeps_its_whole_elements_and_tells_where_it_ends(
    tmp_path: Path, text: str, rows: int, bad: list[tuple[bytes, int]], block: int, packed: bool
) -> None:
    path = tmp_path / ("t.json.gz" if packed else "t.json")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    for count in (1, 1000):
        source = NdjsonSource(path, block_bytes=block)
        source.scan(pa.schema({"n": pa.int64()}), None)
        source.open(None)
        good, found = [], []
        while not source.exhausted:
            batch = source.read_batch(count, 0)
            if batch is not None:
                good += batch.data["n"].to_pylist()
                found += [] if batch.bad is None else batch.bad.to_pylist()
                source.open(batch.offsets)
        source.close()
        assert good == [1, 2][:rows]
        assert [(each["payload"], each["offset"]) for each in found] == bad
        assert "without the closing bracket of its array" in found[-1]["reason"]


def test_an_element_above_the_size_of_a_record_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps([{"t": "x"}, {"t": "x" * 100}]))
    source = NdjsonSource(path, block_bytes=16, record_bytes=64)
    source.scan(pa.schema({"t": pa.string()}), None)
    with pytest.raises(UserError, match=r"t\.json': the element of its array at offset 12 has more than 64 bytes"):
        read(source)


def test_several_readers_share_folders_of_arrays_and_lines(tmp_path: Path) -> None:
    for number in range(4):
        rows = [{"n": 10 * number + each} for each in range(3)]
        lines = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / f"{number}.json").write_text(json.dumps(rows) if number % 2 else lines)
    source = files(tmp_path)
    source.scan(pa.schema({"n": pa.int64()}), None)
    found = [row["n"] for reader in source.readers(3) for row in read(reader)[0]]
    assert sorted(found) == [10 * number + each for number in range(4) for each in range(3)]


def test_agents_get_each_element_as_a_record(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('[ {"n": 1} ,\n {"n": [1, 2]} ]')
    good, bad = read(files(path))
    assert ([row["payload"] for row in good], bad) == ([b'{"n": 1}', b'{"n": [1, 2]}'], [])
    assert [path.read_bytes()[row["offset"] :].startswith(row["payload"]) for row in good] == [True, True]
