"""A table of Delta Lake as a source: one version of it, as polars reads it, from any position, by any number of readers."""

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deltalake
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sabot import App, DeltaSink, DeltaSource, UserError, count, files, lit
from sabot.connectors.base import Positions, Source

Place = tuple[Positions, dict[tuple[str, int], bytes]]

DAY = datetime.date(2026, 3, 1)
ROWS = [
    {"n": n, "day": None if n % 7 == 6 else f"d/{n % 3} é", "at": DAY + datetime.timedelta(n % 2), "text": f"row {n}"}
    for n in range(40)
]
SCHEMA = pa.schema([("n", pa.int64()), ("day", pa.string()), ("at", pa.date32()), ("text", pa.string())])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table with partitions, in several commits."""
    folder = tmp_path / "lake"
    for first in range(0, 40, 10):
        rows = pa.RecordBatch.from_pylist(ROWS[first : first + 10], SCHEMA)
        deltalake.write_deltalake(folder, rows, mode="append", partition_by=["day", "at"])
    return folder


def read(source: Source, place: Place | None = None, most: int = 1 << 30) -> tuple[list[dict[str, Any]], Place]:
    """The next rows from a place on, at most so many, and the place behind them."""
    found: list[dict[str, Any]] = []
    source.recall({} if place is None else place[1])
    source.open(None if place is None else place[0])
    while len(found) < most and (batch := source.read_batch(most - len(found), 0)) is not None:
        found += batch.taken().to_pylist()
    at = source.positions(), dict(source.remember())
    source.close()
    return found, at


def scanned(source: DeltaSource, columns: list[str] | None = None) -> DeltaSource:
    assert source.scan(None, columns)
    return source


def by_number(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["n"])


def test_a_stream_has_the_rows_that_polars_reads(table: Path) -> None:
    found = App("reads").stream(DeltaSource(table)).collect()
    assert by_number(found.to_pylist()) == ROWS == polars.read_delta(str(table)).sort("n").to_dicts()
    assert found.schema.equals(SCHEMA)


@pytest.mark.parametrize("columns", [["day"], ["text", "n"], ["at", "text"]])
def test_only_the_columns_that_are_wanted_come(table: Path, columns: list[str]) -> None:
    rows, _ = read(scanned(DeltaSource(table), columns))
    wanted = [tuple(row[name] for name in columns) for row in ROWS]
    assert sorted(map(repr, (tuple(row.values()) for row in rows))) == sorted(map(repr, wanted))


def test_rows_are_counted_without_a_column(table: Path) -> None:
    counted = (
        App("counts").stream(DeltaSource(table)).with_columns(k=lit(1)).group_by("k").aggregate(n=count()).materialize()
    )
    assert counted.collect().column("n").to_pylist() == [40]


@pytest.mark.slow  # a second of a core
def test_it_continues_behind_each_row(table: Path) -> None:
    whole, _ = read(scanned(DeltaSource(table)))
    for most in range(len(whole) + 1):
        first, at = read(scanned(DeltaSource(table)), most=most)
        rest, _ = read(scanned(DeltaSource(table)), at)
        assert first + rest == whole, f"behind {most} rows"


def test_readers_share_the_files_of_a_version(table: Path) -> None:
    source = scanned(DeltaSource(table, version=3))
    readers = source.readers(3)
    assert len(readers) == 3
    shares = [read(reader)[0] for reader in readers]
    assert all(shares)
    assert by_number([row for share in shares for row in share]) == ROWS
    assert len(scanned(DeltaSource(table)).readers(3)) == 1  # another process might find another version


def test_a_restart_reads_the_version_that_it_began_with(table: Path) -> None:
    whole, _ = read(scanned(DeltaSource(table)))
    first, at = read(scanned(DeltaSource(table)), most=7)
    deltalake.write_deltalake(table, pa.RecordBatch.from_pylist([{**ROWS[0], "n": 99}], SCHEMA), mode="append")
    deltalake.DeltaTable(table).optimize.compact()
    rest, _ = read(scanned(DeltaSource(table)), at)
    assert first + rest == whole
    assert len(read(scanned(DeltaSource(table)))[0]) == 41
    with pytest.raises(UserError, match="the checkpoint began at the newest version, and version= says 2"):
        read(scanned(DeltaSource(table, version=2)), at)


def test_an_older_version_has_its_rows_and_columns(table: Path) -> None:
    more = pa.schema([*SCHEMA, ("more", pa.float64())])
    last = {"n": 40, "day": "x", "at": DAY, "text": "t", "more": 1.5}
    deltalake.write_deltalake(table, pa.RecordBatch.from_pylist([last], more), mode="append", schema_mode="merge")
    assert by_number(App("old").stream(DeltaSource(table, version=1)).collect().to_pylist()) == ROWS[:20]
    newest = by_number(App("new").stream(DeltaSource(table)).collect().to_pylist())
    assert newest == [*({**row, "more": None} for row in ROWS), last]


@pytest.mark.parametrize("followed", [False, True])
def test_bytes_by_which_a_table_is_divided_are_not_their_text_in_the_log(tmp_path: Path, followed: bool) -> None:
    r"""b"ab" came as the twelve characters \u0061\u0062, as deltalake itself reads what it has written."""
    values = [b"ab", b"\x00\xff", "é".encode(), None, b"\\u0041"]
    rows = pa.table({"part": pa.array(values, pa.binary()), "n": range(5)})
    where = tmp_path / "bytes"
    if followed:
        deltalake.DeltaTable.create(where, deltalake.Schema.from_arrow(rows.schema), partition_by=["part"])
    else:
        deltalake.write_deltalake(where, rows, partition_by=["part"])
    source = scanned(DeltaSource(where, follow="1ms" if followed else None))
    if followed:
        source.open(None)
        deltalake.write_deltalake(where, rows, mode="append")
        found: list[dict[str, Any]] = []
        while len(found) < 5:
            if (batch := source.read_batch(10, 0.0)) is not None:
                found += batch.data.to_pylist()
        source.close()
    else:
        found = App("reads").stream(source).collect().to_pylist()
    assert by_number(found) == [{"part": part, "n": n} for n, part in enumerate(values)]


def test_rows_that_were_deleted_do_not_come(table: Path) -> None:
    deltalake.DeltaTable(table).delete("n >= 5")
    assert by_number(App("reads").stream(DeltaSource(table)).collect().to_pylist()) == ROWS[:5]
    deltalake.DeltaTable(table).delete()
    assert App("reads").stream(DeltaSource(table)).collect().num_rows == 0


def test_what_is_not_there_is_said(table: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        App("reads").stream(DeltaSource(tmp_path / "nowhere")).collect()
    with pytest.raises(UserError, match="has no version 77"):
        App("reads").stream(DeltaSource(table, version=77)).collect()
    source = scanned(DeltaSource(table))
    _, at = read(source, most=3)
    deltalake.DeltaTable(table).optimize.compact()
    deltalake.DeltaTable(table).vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    with pytest.raises(UserError, match="cannot be read, as it is not there"):
        read(scanned(DeltaSource(table)), at)


@pytest.mark.parametrize("name", ["a.parquet", "day=1/a.parquet"])
def test_a_folder_of_parquet_is_no_table_and_the_error_says_what_reads_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"n": [1]}), tmp_path / name)
    with pytest.raises(UserError, match="does not exist") as failed:
        App("a").stream(DeltaSource(tmp_path)).collect()
    assert f"files('{tmp_path}') reads them" in str(failed.value.hint)
    assert App("b").stream(files(tmp_path)).collect().column("n").to_pylist() == [1]
    sink = DeltaSink(tmp_path, schema=pa.schema([("n", pa.int64())]))
    with pytest.raises(UserError, match="their rows would not be in one that is made there"):
        sink.open()
    assert not deltalake.DeltaTable.is_deltatable(str(tmp_path))


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a text")
    with pytest.raises(UserError, match="give a folder that is there, or that can be made"):
        App("a").stream(DeltaSource(tmp_path / "file")).collect()


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    "path",
    [
        "../secret.parquet",
        "{outside}/secret.parquet",
        "file://{outside}/secret.parquet",
        "s3://another-bucket/secret.parquet",
        "%2e%2e/secret.parquet",
        "..%2Fsecret.parquet",
        "%2F{outside}/secret.parquet",
        "day=1/../../secret.parquet",
        "./../secret.parquet",
        "link.parquet",
        "linked/secret.parquet",
        "linked/deeper/link.parquet",
    ],
)
def test_a_log_that_lists_a_file_elsewhere_is_refused(table: Path, tmp_path: Path, path: str) -> None:
    """Whoever could write a log had any Parquet file of the machine read as rows of the table."""
    rows = pa.RecordBatch.from_pylist(ROWS[:1], SCHEMA)
    for folder in (tmp_path, tmp_path / "deeper"):
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.table(rows), folder / "secret.parquet")
    (tmp_path / "deeper" / "link.parquet").symlink_to(tmp_path / "secret.parquet")
    (table / "link.parquet").symlink_to(tmp_path / "secret.parquet")
    (table / "linked").symlink_to(tmp_path)
    _, before = read(DeltaSource(table, follow="1ms"))
    listed(table, path.format(outside=tmp_path))
    with pytest.raises(UserError, match=r"table .*lake, version 4: its log lists the file .*, which ") as refused:
        read(DeltaSource(table))
    with pytest.raises(UserError, match=r"version 4: its log lists the file .*, which "):
        read(DeltaSource(table, follow="1ms"), before)
    assert "shallow clone" in refused.value.hint


def test_a_table_may_be_behind_a_link_and_have_links_within(table: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table(pa.RecordBatch.from_pylist(ROWS[:1], SCHEMA)), table / "a b.parquet")
    (table / "inner.parquet").symlink_to(table / "a b.parquet")
    (tmp_path / "other").symlink_to(table)
    listed(table, "inner.parquet")
    assert len(read(DeltaSource(tmp_path / "other"))[0]) == 41


def listed(table: Path, path: str) -> None:
    """Writes a commit that adds this file to the table, as any program can."""
    (first, *_) = (table / "_delta_log").glob("*00.json")
    add = next(json.loads(line)["add"] for line in first.read_text().splitlines() if "add" in json.loads(line))
    add |= (
        {"path": path, "size": (table.parent / "secret.parquet").stat().st_size}
        if path != "inner.parquet"
        else {
            "path": path,
            "size": (table / path).stat().st_size,
        }
    )
    del add["stats"]
    (table / "_delta_log" / f"{4:020}.json").write_text(json.dumps({"add": add}) + "\n")


async def test_rows_go_from_table_to_table(table: Path, tmp_path: Path) -> None:
    app = App("copies", state=str(tmp_path / "state"))
    app.stream(DeltaSource(table)).to(DeltaSource(tmp_path / "copy"))  # a place to read is a place to write
    await app.run()
    assert polars.read_delta(str(tmp_path / "copy")).sort("n").to_dicts() == ROWS
    again = App("copies", state=str(tmp_path / "state"))
    again.stream(DeltaSource(table)).to(DeltaSink(tmp_path / "copy"))
    await again.run()
    assert polars.read_delta(str(tmp_path / "copy")).height == 40


async def test_sql_reads_a_version_of_a_table(table: Path, tmp_path: Path) -> None:
    app = App("sql")
    app.sql(f"CREATE TABLE lake WITH ('connector' = 'delta', 'table-path' = '{table}', 'versionAsOf' = '0')")
    rows = app.sql("SELECT n, day FROM lake WHERE n < 4").collect().to_pylist()
    assert by_number(rows) == [{"n": row["n"], "day": row["day"]} for row in ROWS[:4]]


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "anyone"}
    yield {"aws_endpoint_url": f"http://{host}:{port}", "aws_region": "us-east-1", "aws_allow_http": "true", **keys}
    server.stop()


@pytest.mark.slow  # the server of the store takes seconds to import
def test_a_table_in_s3(s3: dict[str, str]) -> None:
    from pyarrow import fs

    where = s3["aws_endpoint_url"].removeprefix("http://")
    fs.S3FileSystem(access_key="any", secret_key="anyone", region="us-east-1", scheme="http", endpoint_override=where,
                    allow_bucket_creation=True).create_dir("pond")  # fmt: skip
    rows = pa.RecordBatch.from_pylist(ROWS, SCHEMA)
    deltalake.write_deltalake("s3://pond/rows", rows, partition_by=["day"], storage_options=s3)
    source = DeltaSource("s3://pond/rows", storage_options=s3)
    assert by_number(App("reads").stream(source).collect().to_pylist()) == ROWS
    _, place = read(DeltaSource("s3://pond/rows", follow="1ms", storage_options=s3))
    deltalake.write_deltalake("s3://pond/rows", rows.slice(0, 9), mode="append", storage_options=s3)
    deltalake.DeltaTable("s3://pond/rows", storage_options=s3).optimize.compact()
    found, _ = read(DeltaSource("s3://pond/rows", follow="1ms", storage_options=s3), place)
    assert by_number(found) == ROWS[:9]


def test_times_of_spark_in_a_table_are_those_of_every_year(tmp_path: Path) -> None:
    far = pa.table(
        {"t": pa.array([datetime.datetime(9999, 12, 31), datetime.datetime(2024, 1, 1)], pa.timestamp("us", "UTC"))}
    )
    deltalake.write_deltalake(tmp_path / "lake", far)
    (file,) = (tmp_path / "lake").glob("*.parquet")
    pq.write_table(far, file, use_deprecated_int96_timestamps=True)
    assert App("far").stream(DeltaSource(tmp_path / "lake")).collect()["t"].to_pylist() == far["t"].to_pylist()
