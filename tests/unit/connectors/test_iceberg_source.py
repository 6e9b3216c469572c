"""A table of Iceberg as a source: a snapshot, and what later snapshots add, from any place in it on."""

import datetime
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.io.pyarrow import parquet_file_to_data_file, schema_to_pyarrow
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update import snapshot as producers
from pyiceberg.table.update.snapshot import _OverwriteFiles as Overwrite
from pyiceberg.types import LongType

from sabot import App, UserError, col
from sabot.connectors.base import Positions
from sabot.connectors.iceberg import IcebergSource, driver
from sabot.testing import ListSink
from tools.iceberg_lake import lake_of

NAME = "lake.orders"
Place = tuple[Positions, dict[tuple[str, int], bytes]]


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with closing(load_catalog("default", **lake_of(tmp_path))) as opened:
        opened.create_namespace("lake")
        yield opened


@pytest.fixture
def table(catalog: Catalog) -> Table:
    return catalog.create_table(NAME, pa.schema([("n", pa.int64()), ("day", pa.string())]))


def add(table: Table, *numbers: int) -> None:
    table.refresh()
    table.append(pa.table({"n": list(numbers), "day": [f"day {n}" for n in numbers]}))


def source_of(folder: Path, **options: Any) -> IcebergSource:
    return IcebergSource(lake_of(folder), NAME, **options)


def read(source: IcebergSource, at: Place | None = None, most: int = 1000, rows: int = 1000) -> tuple[list[int], Place]:
    """At most so many rows from a place on, and the place behind them."""
    source.recall({} if at is None else at[1])
    source.open(None if at is None else at[0])
    found: list[int] = []
    while len(found) < most:
        batch = source.read_batch(min(rows, most - len(found)), 0.0)
        if batch is None:
            break
        found += batch.taken().column("n").to_pylist()
    place = source.positions(), dict(source.remember())
    source.close()
    return found, place


def test_a_snapshot_is_read_as_pyiceberg_reads_it(table: Table, tmp_path: Path) -> None:
    add(table, 1, 2, 3)
    with table.update_schema() as update:
        update.rename_column("day", "weekday")
        update.add_column("seats", LongType())
    with table.update_schema() as update:
        update.move_first("weekday")
    table.append(pa.table({"n": [4], "weekday": ["x"], "seats": [7]}))
    table.delete("n = 2")
    old = table.snapshots()[0].snapshot_id
    source = source_of(tmp_path)
    assert source.scan(None, None)
    assert source.schema.names == ["weekday", "n", "seats"]
    source.open(None)
    found: list[dict[str, Any]] = []
    while (batch := source.read_batch(2, 0.0)) is not None:
        found += batch.taken().to_pylist()
    assert source.exhausted
    source.close()
    assert sorted(found, key=lambda row: row["n"]) == table.scan().to_arrow().sort_by("n").to_pylist()
    assert read(source_of(tmp_path, snapshot=old))[0] == [1, 2, 3]


@pytest.mark.parametrize("follow", [None, "1ms"])
def test_reading_goes_on_from_each_row(table: Table, tmp_path: Path, follow: str | None) -> None:
    add(table, 1, 2, 3)
    add(table, 4)
    for stop in range(6):
        found, place = read(source_of(tmp_path, follow=follow), most=stop, rows=2)
        rest, end = read(source_of(tmp_path, follow=follow), place, rows=2)
        assert found + rest == [1, 2, 3, 4]
        assert read(source_of(tmp_path, follow=follow), end)[0] == []


def test_files_of_a_snapshot_are_read_in_the_order_of_their_commits(table: Table, tmp_path: Path) -> None:
    """Their paths have random names."""
    with table.transaction() as changes:
        changes.set_properties({"commit.manifest-merge.enabled": "true", "commit.manifest.min-count-to-merge": "3"})
    for n in range(8):
        add(table, n)
    assert read(source_of(tmp_path))[0] == list(range(8))


def test_each_row_that_snapshots_add_comes_once_at_any_stop(table: Table, tmp_path: Path) -> None:
    add(table, 0, 1)
    found, place = read(source_of(tmp_path, follow="1ms"))
    for n in range(2, 8, 2):
        add(table, n, n + 1)
    for _ in range(3, 10):  # one row at a time, each by a new process
        more, place = read(source_of(tmp_path, follow="1ms"), place, most=1)
        found += more
    assert found == list(range(8))
    assert place[0] == {(NAME, 0): 8}


def test_a_table_without_rows_is_followed_from_its_first(table: Table, tmp_path: Path) -> None:
    found, place = read(source_of(tmp_path, follow="1ms"))
    assert found == []
    add(table, 1)
    add(table, 2)
    assert read(source_of(tmp_path, follow="1ms"), place)[0] == [1, 2]


def test_latest_reads_only_what_is_added(table: Table, tmp_path: Path) -> None:
    add(table, 1)
    source = source_of(tmp_path, follow="1ms")
    source.open(None, "latest")
    assert source.read_batch(10, 0.0) is None
    place = source.positions(), dict(source.remember())
    source.close()
    add(table, 2)
    assert read(source_of(tmp_path, follow="1ms"), place)[0] == [2]


def test_a_compaction_has_no_new_row(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyiceberg has no compaction, so the snapshot of one is made of what it has."""
    monkeypatch.setattr(producers, "update_snapshot_summaries", lambda summary, previous_summary: summary)
    add(table, 1)
    add(table, 2)
    _, place = read(source_of(tmp_path, follow="1ms"))
    table.refresh()
    files = [task.file for task in table.scan().plan_files()]
    with table.transaction() as changes:
        rewrite = Overwrite(Operation.REPLACE, changes, table.io)
        for file in files:
            rewrite.delete_data_file(file)
        merged = tmp_path / "lake" / "lake" / "orders" / "data" / "merged.parquet"
        pq.write_table(table.scan().to_arrow().cast(schema_to_pyarrow(table.schema())), merged)
        rewrite.append_data_file(parquet_file_to_data_file(table.io, changes.table_metadata, str(merged)))
        rewrite.commit()
    add(table, 3)
    assert read(source_of(tmp_path, follow="1ms"), place)[0] == [3]
    assert sorted(read(source_of(tmp_path))[0]) == [1, 2, 3]


def test_a_snapshot_that_removes_rows_ends_the_app_with_its_id(table: Table, tmp_path: Path) -> None:
    add(table, 1, 2)
    _, place = read(source_of(tmp_path, follow="1ms"))
    table.refresh()
    table.delete("n = 1")
    snapshot = table.current_snapshot()
    assert snapshot is not None
    with pytest.raises(UserError, match=rf"snapshot {snapshot.snapshot_id} removes or replaces rows"):
        read(source_of(tmp_path, follow="1ms"), place)


def test_a_place_that_has_expired_or_was_rolled_back_is_an_error(table: Table, tmp_path: Path) -> None:
    add(table, 1, 2)
    _, inside = read(source_of(tmp_path, follow="1ms"), most=1)
    _, end = read(source_of(tmp_path, follow="1ms"))
    first = table.metadata.current_snapshot_id
    assert first is not None
    add(table, 3)
    _, later = read(source_of(tmp_path, follow="1ms"), end)
    with table.manage_snapshots() as manage:
        manage.rollback_to_snapshot(first)
    add(table, 4)
    with pytest.raises(UserError, match="is not in its history any more"):
        read(source_of(tmp_path, follow="1ms"), later)
    add(table, 5)
    soon = datetime.datetime.now() + datetime.timedelta(days=1)
    table.maintenance.expire_snapshots().older_than(soon).commit()
    for place in (inside, end):
        with pytest.raises(UserError, match="is not in its history any more") as refused:
            read(source_of(tmp_path, follow="1ms"), place)
        assert "--fresh" in str(refused.value.hint)


@pytest.mark.one_in(4, "a sixth of a second of a core each")
@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("{outside}/secret.parquet", "is elsewhere"),
        ("file://{outside}/secret.parquet", "is elsewhere"),
        ("{table}/../../../secret.parquet", "leads out of the table"),
        ("{table}/data/../../../../secret.parquet", "leads out of the table"),
        ("{table}/link.parquet", "leads out of the table by a symbolic link"),
        ("{table}/linked/secret.parquet", "leads out of the table by a symbolic link"),
    ],
)
@pytest.mark.parametrize("follow", [None, "1ms"])
def test_a_file_elsewhere_is_refused(table: Table, tmp_path: Path, follow: str | None, path: str, why: str) -> None:
    """Whoever could write a table had any Parquet file of the machine read as rows of it."""
    place = read(source_of(tmp_path, follow=follow))[1]
    plant(tmp_path, Path(table.location()))
    table.add_files([path.format(outside=tmp_path, table=table.location())])
    with pytest.raises(UserError, match=rf"lists the file .*\.parquet.*, which {why}"):
        read(source_of(tmp_path))
    with pytest.raises(UserError, match=f", which {why}"):
        read(source_of(tmp_path, follow="1ms"), place if follow else None)


def plant(outside: Path, inside: Path) -> None:
    """Writes a file outside of the table, and links to it."""
    pq.write_table(pa.table({"n": [1], "day": ["x"]}), outside / "secret.parquet")
    (inside / "link.parquet").symlink_to(outside / "secret.parquet")
    (inside / "linked").symlink_to(outside)


@pytest.mark.parametrize("location", ["{outside}", "/", "{table}/..", "file://{outside}"])
def test_metadata_that_names_another_folder_than_its_own_is_refused(
    table: Table, tmp_path: Path, location: str
) -> None:
    """Whoever could write the files of a table named "/" as its folder, and below that all files of the machine are."""
    add(table, 1)
    plant(tmp_path, Path(table.location()))
    table.add_files([str(tmp_path / "secret.parquet")])
    metadata = Path(table.metadata_location)
    said = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(said | {"location": location.format(outside=tmp_path, table=table.location())}))
    with pytest.raises(UserError, match=r"and the catalog has its metadata at .*orders/metadata/"):
        read(source_of(tmp_path))


@pytest.mark.parametrize("what", ["the list", "a manifest"])
def test_manifests_elsewhere_are_refused(table: Table, tmp_path: Path, what: str) -> None:
    """They name the files, and could be those of a table that the app may not read."""
    add(table, 1)
    snapshot = table.current_snapshot()
    assert snapshot is not None
    (manifest,) = snapshot.manifests(table.io)
    moved = Path(snapshot.manifest_list if what == "the list" else manifest.manifest_path)
    (tmp_path / moved.name).write_bytes(moved.read_bytes())
    moved.unlink()
    moved.symlink_to(tmp_path / moved.name)
    with pytest.raises(
        UserError, match=rf"lists the file .*{moved.name}.*, which leads out of the table by a symbolic"
    ):
        read(source_of(tmp_path))


def test_a_catalog_that_is_away_is_waited_for(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add(table, 1)
    source = source_of(tmp_path, follow="1ms")
    source.open(None)
    away = iter([ConnectionResetError("reset"), ConnectionResetError("reset")])
    there = driver.read

    def sometimes(*args: Any) -> Any:
        if (error := next(away, None)) is not None:
            raise error
        return there(*args)

    monkeypatch.setattr(driver, "read", sometimes)
    assert [source.read_batch(10, 0.0) for _ in range(2)] == [None, None]
    batch = source.read_batch(10, 0.0)
    assert batch is not None
    assert batch.taken().column("n").to_pylist() == [1]
    assert caplog.text.count("reading goes on when it is back") == 1
    source.close()


def test_what_cannot_be_read_is_refused_by_name(table: Table, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lake\.orders has no snapshot 5"):
        source_of(tmp_path, snapshot=5).open(None)
    with pytest.raises(UserError, match=r"table lake\.none does not exist"):
        IcebergSource(lake_of(tmp_path), "lake.none").infer_schema()
    with pytest.raises(UserError, match="has no column m"):
        source_of(tmp_path).scan(pa.schema([("m", pa.int64())]), None)
    with pytest.raises(UserError, match="n is int64, and schema= of the stream says string"):
        source_of(tmp_path).scan(pa.schema([("n", pa.string())]), None)
    with pytest.raises(UserError, match="start='committed' is no place in a table"):
        source_of(tmp_path).open(None, "committed")
    with pytest.raises(UserError, match="is not open"):
        source_of(tmp_path).read_batch(1, 0.0)


def test_a_file_that_pyiceberg_cannot_read_is_an_error_that_names_the_table(table: Table, tmp_path: Path) -> None:
    add(table, 1)
    [task] = table.scan().plan_files()
    pq.write_table(pa.table({"n": [1], "day": ["x"]}), task.file.file_path)  # without the ids of columns
    with pytest.raises(UserError, match=r"table lake\.orders in catalog sqlite:.*field-ids"):
        read(source_of(tmp_path))


async def test_an_app_reads_a_table_into_another_one(table: Table, catalog: Catalog, tmp_path: Path) -> None:
    add(table, 1, 2, 3)
    app = App("copy", state=str(tmp_path / "state"))
    found = ListSink()
    app.stream(source_of(tmp_path)).filter(col("n") > 1).select("n").to(found)
    await app.run()
    assert sorted(row["n"] for row in found.rows) == [2, 3]


async def test_sql_reads_a_table(table: Table, tmp_path: Path) -> None:
    add(table, 1, 2)
    old = table.metadata.current_snapshot_id
    add(table, 3)
    lake = lake_of(tmp_path)
    options = f"""'connector' = 'iceberg', 'catalog-type' = 'jdbc', 'uri' = '{lake["uri"]}', 'warehouse' = '{lake["warehouse"]}',
        'catalog-database' = 'lake', 'catalog-table' = 'orders'"""
    app = App("sql")
    app.sql(
        f"CREATE TABLE orders WITH ({options}); CREATE TABLE before (n BIGINT) WITH ({options}, 'snapshot-id' = '{old}')"
    )
    assert sorted(app.sql("SELECT n FROM orders WHERE n <> 2").collect()["n"].to_pylist()) == [1, 3]
    assert sorted(App("sql2").sql(f"CREATE TABLE before (n BIGINT) WITH ({options}, 'snapshot-id' = '{old}'); SELECT n FROM before").collect()["n"].to_pylist()) == [1, 2]  # noqa: E501  # fmt: skip
