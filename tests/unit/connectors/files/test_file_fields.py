"""Columns that say from which file a row is: `stream(files(…), fields=…)`, and METADATA of tables of files in SQL."""

import gzip
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sabot import App, col, count, files
from sabot.clock import ManualClock
from sabot.connectors.files.followed import FollowedFiles
from sabot.errors import UserError
from sabot.sql.syntax.text import SqlError

FIELDS = {"path": "file.path", "name": "file.name", "size": "file.size", "changed": "file.modification-time"}


def write_rows(path: Path, rows: list[int]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"n": rows}), path)
        return
    texts = {
        ".csv": "n\n" + "".join(f"{n}\n" for n in rows),
        ".ndjson": "".join(f'{{"n": {n}}}\n' for n in rows),
        ".json": json.dumps([{"n": n} for n in rows]),
        ".gz": "n\n" + "".join(f"{n}\n" for n in rows),
    }
    text = texts[path.suffix].encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in/day=1").mkdir(parents=True)
    return tmp_path / "in"


def two_files(folder: Path, ending: str) -> list[dict[str, Any]]:
    """Writes two files, and returns what their rows say of them."""
    expected = []
    for at, (path, rows) in enumerate([(folder / f"b{ending}", [1, 2]), (folder / f"day=1/a{ending}", [3])]):
        write_rows(path, rows)
        os.utime(path, (at, at + 1700000000.25))
        facts = {"path": str(path), "name": path.name, "size": path.stat().st_size}
        facts["changed"] = datetime.fromtimestamp(at + 1700000000.25, UTC)
        expected += [{"n": n, **facts} for n in rows]
    return expected


@pytest.mark.parametrize("ending", [".csv", ".ndjson", ".json", ".parquet", ".csv.gz"])
@pytest.mark.parametrize("schema", [None, {"n": "int64"}])
def test_each_row_says_from_which_file_it_is(folder: Path, ending: str, schema: Any) -> None:
    expected = two_files(folder, ending)
    stream = App("facts").stream(files("in"), schema=schema, fields=FIELDS)
    assert stream.select("n", *FIELDS).collect().to_pylist() == expected
    days = [None, None, 1] if schema is None else None
    assert ("day" in stream.schema.names) == (schema is None)
    if days is not None:
        assert stream.collect()["day"].to_pylist() == days


@pytest.mark.parametrize("ending", [".csv", ".ndjson", ".parquet"])
def test_steps_may_need_nothing_but_the_file(folder: Path, ending: str) -> None:
    two_files(folder, ending)
    stream = App("facts", parallelism=2).stream(files("in"), fields=["file.name"], schema={"n": "int64"})
    counted = stream.group_by("file.name").aggregate(k=count()).materialize().collect()
    assert dict(zip(*counted.to_pydict().values(), strict=True)) == {f"b{ending}": 2, f"a{ending}": 1}
    assert stream.filter(col("file.name") == f"a{ending}").collect()["n"].to_pylist() == [3]


@pytest.mark.parametrize("schema", [None, {"n": "int64"}])
def test_rows_that_are_sorted_say_it_too(folder: Path, schema: Any) -> None:
    write_rows(folder / "a.ndjson", [3, 1])
    write_rows(folder / "b.ndjson", [2])
    stream = App("facts").stream(files("in", sort="n"), schema=schema, fields={"name": "file.name"})
    assert stream.select("name").collect()["name"].to_pylist() == ["a.ndjson", "b.ndjson", "a.ndjson"]


def test_the_time_of_a_file_may_be_event_time(folder: Path) -> None:
    two_files(folder, ".csv")
    stream = App("facts").stream(files("in"), fields=FIELDS, time="changed")
    assert stream.select("n", "changed").collect()["n"].to_pylist() == [1, 2, 3]


def test_a_file_that_grows_has_the_size_with_which_its_rows_are_read(folder: Path) -> None:
    source = files("in/*.ndjson", follow="10s")
    assert isinstance(source, FollowedFiles)
    source = source.with_fields({"name": "file.name", "size": "file.size"})
    source.clock = clock = ManualClock()
    source.scan(pa.schema({"n": pa.int64(), "name": pa.string(), "size": pa.int64()}), None)
    source.open(None)
    found: list[Any] = []
    for text in ('{"n": 1}\n', '{"n": 2}\n{"n": 3}\n'):
        with (folder / "log.ndjson").open("a") as file:
            file.write(text)
        clock.advance(10)
        batch = source.read_batch(100, 1.0)
        assert batch is not None
        found += batch.data.to_pylist()
    source.close()
    assert found == [{"n": n, "name": "log.ndjson", "size": size} for n, size in ((1, 9), (2, 27), (3, 27))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fields": {"n": "file.name"}}, r"have a column 'n', which is also one of fields= .*\"file_n\""),
        ({"fields": {"n": "file.name"}, "schema": {"n": "int64"}}, "'n' is a column of schema= and also of fields="),
        ({"fields": ["key"]}, "fields= are for records, .* rows of files have file.path"),
        ({"fields": ["file.name", "key"]}, "the rows of files 'in' have no 'key'"),
        ({"fields": ["file.owner"]}, "'file.owner', which is not a field .*'file.modification-time'"),
    ],
)
def test_fields_that_files_do_not_have_are_refused(folder: Path, options: Any, message: str) -> None:
    two_files(folder, ".csv")
    with pytest.raises(UserError, match=message):
        App("facts").stream(files("in"), **options).collect()


@pytest.mark.parametrize("source", ["orders", [{"n": 1}]])
def test_records_and_rows_in_memory_have_no_file(source: Any) -> None:
    with pytest.raises(UserError, match=r"has no 'file.name' .*files\("):
        App("facts", "memory://").stream(source, fields=["file.name"])


def table(columns: str, ending: str) -> str:
    format = {".ndjson": "json"}.get(ending, ending.removeprefix("."))
    return f"CREATE TABLE t ({columns}) WITH ('connector' = 'filesystem', 'path' = 'in', 'format' = '{format}');"


@pytest.mark.parametrize("ending", [".csv", ".ndjson", ".parquet"])
def test_tables_of_sql_have_the_metadata_of_files(folder: Path, ending: str) -> None:
    expected = two_files(folder, ending)
    columns = (
        "`file.path` STRING NOT NULL METADATA, n INT, s BIGINT METADATA FROM 'file.size' VIRTUAL, f STRING METADATA FROM 'file.name', "
        "m TIMESTAMP_LTZ(3) METADATA FROM 'file.modification-time', c TIMESTAMP(3) METADATA FROM 'file.modification-time', "
        "h AS HOUR(m), WATERMARK FOR m AS m"
    )
    app = App("facts")
    found = app.sql(
        "SET 'table.local-time-zone' = 'Asia/Tokyo';" + table(columns, ending) + "SELECT * FROM t"
    ).collect()
    assert found.schema.names == ["file.path", "n", "s", "f", "m", "c", "h"]
    for row, facts in zip(found.to_pylist(), expected, strict=True):
        assert (row["n"], row["file.path"], row["f"], row["s"]) == (
            facts["n"],
            facts["path"],
            facts["name"],
            facts["size"],
        )
        assert (row["m"], row["h"]) == (facts["changed"], 7)
        assert row["c"] == facts["changed"].replace(hour=7, day=15, tzinfo=None)


def test_a_table_may_have_the_columns_of_its_files_beside_metadata(folder: Path) -> None:
    two_files(folder, ".csv")
    found = App("facts").sql(table("f STRING METADATA FROM 'file.name'", ".csv") + "SELECT n, f FROM t").collect()
    assert found.to_pylist() == [{"n": 1, "f": "b.csv"}, {"n": 2, "f": "b.csv"}, {"n": 3, "f": "a.csv"}]


async def test_rows_that_are_written_have_no_metadata_of_files(folder: Path) -> None:
    text = table("f STRING METADATA FROM 'file.name', n INT", ".ndjson").replace("'in'", "'out.ndjson'")
    app = App("facts")
    app.sql(text + "INSERT INTO t SELECT 7")
    await app.run()
    assert Path("out.ndjson").read_text() == '{"n":7}\n'


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (table("n INT, f STRING METADATA FROM 'file.owner'", ".csv"), "no metadata 'file.owner'", "there are file.path, file.name"),
        (table("n INT, o BIGINT METADATA FROM 'offset'", ".csv"), "no metadata 'offset'", "there are file.path, file.name"),
        (table("n INT, s DATE METADATA FROM 'file.size'", ".csv"), "the metadata 'file.size' is BIGINT, and no DATE", "declare its type"),
    ],
)  # fmt: skip
def test_metadata_that_files_do_not_have_is_refused(folder: Path, text: str, message: str, hint: str) -> None:
    with pytest.raises(SqlError) as caught:
        App("facts").sql(text)
    assert message in str(caught.value)
    assert hint in str(caught.value).split("hint: ")[1]
