"""A table of Delta Lake that is followed: what later versions add, and their changes by keys; deletion vectors and column mapping."""

import datetime
import json
import shutil
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sabot import App, DeltaSource, Stream, UserError
from sabot.codecs.engine_columns import OP_COLUMN
from sabot.connectors.base import Positions
from sabot.sql.syntax.text import SqlError
from sabot.testing import ListSink
from tools.agent_tools import until
from tools.delta_lake import actions, commit, delete_rows, entry

Place = tuple[Positions, dict[tuple[str, int], bytes]]
FEED = {"delta.enableChangeDataFeed": "true"}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "lake"


def add(table: Path, *numbers: int, **options: Any) -> None:
    rows = pa.table({"n": pa.array(numbers, pa.int64()), "text": [f"row {n}" for n in numbers]})
    deltalake.write_deltalake(table, rows, mode="append", **options)


def followed(table: Path, **options: Any) -> DeltaSource:
    return DeltaSource(table, follow="1ms", **options)


def taken(
    source: DeltaSource, at: Place | None = None, most: int = 1000, rows: int = 1000, start: str = "earliest"
) -> tuple[list[dict[str, Any]], Place]:
    """At most so many rows from a place on, and the place behind them."""
    source.recall({} if at is None else at[1])
    source.open(None if at is None else at[0], start)
    found: list[dict[str, Any]] = []
    while len(found) < most:
        batch = source.read_batch(min(rows, most - len(found)), 0.0)
        if batch is None:
            break
        found += batch.taken().to_pylist()
    place = source.positions(), dict(source.remember())
    source.close()
    return found, place


def numbers(source: DeltaSource, at: Place | None = None, **options: Any) -> tuple[list[int], Place]:
    found, place = taken(source, at, **options)
    return [row["n"] for row in found], place


def changes(source: DeltaSource, at: Place | None = None, **options: Any) -> tuple[list[tuple[int, int, str]], Place]:
    """(op, n, text) of each change."""
    found, place = taken(source, at, **options)
    return [(row[OP_COLUMN], row["n"], row["text"]) for row in found], place


def test_each_row_that_versions_add_comes_once_at_any_stop(table: Path) -> None:
    add(table, 0, 1)
    found, place = numbers(followed(table))
    for n in range(2, 8, 2):
        add(table, n, n + 1)
    for _ in range(3, 10):  # one row at a time, each by a new process
        more, place = numbers(followed(table), place, most=1)
        found += more
    assert found == list(range(8))
    assert place[0] == {(str(table), 0): 8}


def test_latest_and_since_leave_out_the_rows_before(table: Path) -> None:
    for n in range(4):
        add(table, n)
    found, place = numbers(followed(table), start="latest")
    assert found == []
    add(table, 4)
    assert numbers(followed(table), place)[0] == [4]
    for since in range(6):
        assert numbers(followed(table, since=since))[0] == list(range(since, 5))
    with pytest.raises(UserError, match="is at version 4, and since= says 6"):
        numbers(followed(table, since=6))
    with pytest.raises(UserError, match="since= is for a table that is followed"):
        DeltaSource(table, since=3)


def test_a_compaction_has_no_new_row_and_a_checkpoint_of_the_log_changes_nothing(table: Path) -> None:
    add(table, 0)
    _, place = numbers(followed(table))
    add(table, 1)
    lake = deltalake.DeltaTable(table)
    lake.optimize.compact()
    lake.create_checkpoint()
    add(table, 2)
    assert numbers(followed(table), place)[0] == [1, 2]


def test_a_version_that_removes_rows_ends_the_app_with_its_number(table: Path) -> None:
    add(table, 1, 2)
    _, place = numbers(followed(table))
    deltalake.DeltaTable(table).delete("n = 1")
    with pytest.raises(UserError, match=r"version 1 removes or replaces rows \(DELETE\)") as refused:
        numbers(followed(table), place)
    assert "keys=" in str(refused.value.hint)
    assert numbers(DeltaSource(table))[0] == [2]


@pytest.mark.parametrize("feed", [FEED, {}], ids=["feed", "files"])
def test_changes_are_those_of_the_table_at_any_stop(table: Path, feed: dict[str, str]) -> None:
    """Without the feed, the rows of a file that is written anew come again, as updates to what they were."""
    add(table, *range(6), configuration=feed)
    lake = deltalake.DeltaTable(table)
    lake.update(updates={"text": "'new'"}, predicate="n = 2")
    lake.delete("n = 3")
    lake.update(updates={"n": "n + 1"}, predicate="n >= 4")  # 4 -> 5 and 5 -> 6: the new 5 replaces the old one
    add(table, 3)
    source = partial(followed, table, keys=["n"], version=0)
    whole, _ = changes(source())
    for stop in range(len(whole) + 1):
        first, place = changes(source(), most=stop, rows=2)
        rest, _ = changes(source(), place, rows=3)
        assert first + rest == whole, f"behind {stop} changes"
    assert whole[:6] == [(0, n, f"row {n}") for n in range(6)]
    if feed:
        assert whole[6:9] == [(2, 2, "new"), (3, 3, None), (3, 4, None)]
        assert sorted(whole[9:11]) == [(2, 5, "row 4"), (2, 6, "row 5")]
        assert whole[11:] == [(0, 3, "row 3")]
    rows: dict[int, str] = {}
    for op, n, text in whole:
        if op == 3:
            del rows[n]
        else:
            rows[n] = text
    there = pa.table(deltalake.DeltaTable(table).scan().read_all()).to_pylist()
    assert rows == {row["n"]: row["text"] for row in there}


async def test_an_app_has_the_table_as_it_changes(table: Path, tmp_path: Path) -> None:
    add(table, *range(4), configuration=FEED)
    deltalake.DeltaTable(table).delete("n = 1")
    deltalake.DeltaTable(table).update(updates={"text": "'new'"}, predicate="n = 2")
    app = App("table", state=str(tmp_path / "state"))
    rows = app.table(DeltaSource(table, keys=["n"]))
    assert sorted(rows.materialize().collect().to_pylist(), key=lambda row: row["n"]) == [
        {"n": 0, "text": "row 0"},
        {"n": 2, "text": "new"},
        {"n": 3, "text": "row 3"},
    ]


def test_keys_that_are_none_are_refused(table: Path) -> None:
    deltalake.write_deltalake(table, pa.table({"n": [1], "f": [1.5]}))
    for keys, why in ((["m"], "'m', which is no column"), (["f"], "'f', which is double")):
        with pytest.raises(UserError, match=why):
            DeltaSource(table, keys=keys).infer_schema()
    with pytest.raises(UserError, match="is no list"):
        DeltaSource(table, keys="n")


def test_rows_that_a_deletion_vector_marks_are_not_there(table: Path) -> None:
    add(table, *range(10), configuration={"delta.enableDeletionVectors": "true"})
    [first] = actions(table, 0, "add")
    delete_rows(table, 1, first, [2, 3])
    there = [row["n"] for row in pa.table(deltalake.DeltaTable(table).scan().read_all()).to_pylist()]
    assert numbers(DeltaSource(table))[0] == there == [0, 1, 4, 5, 6, 7, 8, 9]
    for stop in range(9):
        found, place = numbers(DeltaSource(table), most=stop, rows=3)
        assert found + numbers(DeltaSource(table), place, rows=2)[0] == there
    readers = [numbers(reader)[0] for reader in DeltaSource(table, version=1).readers(2)]
    assert sorted(n for found in readers for n in found) == there


def test_deletion_vectors_of_a_commit_are_deletions_and_restored_rows_insertions(table: Path) -> None:
    add(table, *range(5), configuration={"delta.enableDeletionVectors": "true"})
    [first] = actions(table, 0, "add")
    second = delete_rows(table, 1, first, [1])
    third = delete_rows(table, 2, second, [1, 4])
    delete_rows(table, 3, third, [4])  # RESTORE brings row 1 back
    found, place = changes(followed(table, keys=["n"], since=1))
    assert found == [(3, 1, None), (3, 4, None), (2, 1, "row 1")]
    add(table, 7)
    assert changes(followed(table, keys=["n"]), place)[0] == [(0, 7, "row 7")]


def test_a_deletion_vector_that_cannot_be_read_is_an_error_and_no_row(table: Path) -> None:
    add(table, *range(5), configuration={"delta.enableDeletionVectors": "true"})
    [first] = actions(table, 0, "add")
    marked = delete_rows(table, 1, first, [1])
    marked["deletionVector"]["pathOrInlineDv"] = "0" * 40
    commit(table, 1, {"remove": {"path": first["path"], "dataChange": True}}, {"add": marked})
    with pytest.raises(UserError, match=r"table .*lake: "):
        numbers(DeltaSource(table))


def test_a_damaged_entry_of_the_log_and_a_deletion_vector_elsewhere_are_errors(table: Path, tmp_path: Path) -> None:
    add(table, *range(5), configuration={"delta.enableDeletionVectors": "true"})
    _, place = numbers(followed(table, keys=["n"]))
    [first] = actions(table, 0, "add")
    elsewhere = {
        "storageType": "p",
        "pathOrInlineDv": f"file://{tmp_path}/secret.bin",
        "sizeInBytes": 1,
        "cardinality": 1,
    }
    commit(table, 1, {"add": {**first, "path": "other.parquet", "deletionVector": elsewhere}})
    with pytest.raises(UserError, match=r"secret\.bin', which is a deletion vector elsewhere"):
        numbers(followed(table, keys=["n"]), place)
    entry(table, 1).write_text('{"add": ')
    with pytest.raises(UserError, match=r"table .*lake"):
        numbers(followed(table, keys=["n"]), place)


NESTED = pa.table(
    {
        "n": pa.array([1, 2], pa.int64()),
        "day": ["a", None],
        "inner": pa.array([{"x": 1, "list": [{"z": 2}]}, None]),
        "map": pa.array([[("k", {"v": 1})], []], pa.map_(pa.string(), pa.struct([("v", pa.int64())]))),
    }
)


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["n"])


def renamed(table: Path, version: int, old: str, new: str) -> None:
    """Commits that a column of a table with column mapping has another name, as ALTER TABLE … RENAME COLUMN does."""
    [metadata] = actions(table, 0, "metaData")
    schema = json.loads(metadata["schemaString"])
    for field in schema["fields"]:
        field["name"] = new if field["name"] == old else field["name"]
    commit(table, version, {"metaData": {**metadata, "schemaString": json.dumps(schema)}})


@pytest.mark.parametrize("mode", ["name", "id"])
def test_a_table_with_column_mapping_has_the_names_of_the_table_at_all_depths(table: Path, mode: str) -> None:
    deltalake.write_deltalake(table, NESTED, partition_by=["day"], configuration={"delta.columnMapping.mode": mode})
    _, place = numbers(followed(table))
    deltalake.write_deltalake(table, NESTED, mode="append")
    rows = NESTED.to_pylist()
    assert in_order(taken(DeltaSource(table))[0]) == in_order(rows * 2)
    assert in_order(taken(followed(table), place)[0]) == rows
    renamed(table, 2, "inner", "outer")
    source = DeltaSource(table)
    assert source.scan(None, ["n", "outer", "day"])
    expected = [{"n": row["n"], "outer": row["inner"], "day": row["day"]} for row in rows * 2]
    assert in_order(taken(source)[0]) == in_order(expected)


def test_a_column_that_changes_under_a_follower_is_an_error_until_the_next_start(table: Path) -> None:
    deltalake.write_deltalake(table, NESTED, configuration={"delta.columnMapping.mode": "name"})
    source = followed(table)
    source.open(None)
    batch = source.read_batch(10, 0.0)
    assert batch is not None
    renamed(table, 1, "inner", "outer")
    with pytest.raises(UserError, match="version 1 has changed or dropped column inner"):
        source.read_batch(10, 0.0)
    place = source.positions(), dict(source.remember())
    source.close()
    unused = followed(table)
    assert unused.scan(None, ["n"])
    more = NESTED.slice(0, 1).rename_columns(["n", "day", "outer", "map"])
    deltalake.write_deltalake(table, more, mode="append")
    assert numbers(unused, place)[0] == [1]


def test_a_file_without_ids_of_columns_is_refused_in_a_table_that_finds_them_by_ids(table: Path) -> None:
    deltalake.write_deltalake(table, NESTED, configuration={"delta.columnMapping.mode": "id"})
    for path in table.rglob("*.parquet"):
        plain = pq.read_table(path)
        pq.write_table(pa.table(plain.columns[:1], names=plain.column_names[:1]), path)
    with pytest.raises(UserError, match="has no ids of columns"):
        numbers(DeltaSource(table))


def test_a_feature_that_changes_rows_is_refused_by_name(table: Path) -> None:
    add(table, 1)
    source = followed(table)
    source.open(None)
    assert source.read_batch(10, 0.0) is not None
    protocol = {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": ["rowsUpsideDown"],
        "writerFeatures": [],
    }
    commit(table, 1, {"protocol": protocol})
    with pytest.raises(UserError, match="rowsUpsideDown"):
        source.read_batch(10, 0.0)
    source.close()


def test_values_of_partitions_in_a_commit_are_those_of_deltalake(table: Path) -> None:
    """The log writes them as texts; of a version deltalake reads them."""
    when = datetime.datetime(2026, 3, 1, 12, 30, 1, 250, datetime.UTC)
    rows = pa.table(
        {
            "n": [1, 2],
            "day": [datetime.date(2026, 3, 1), None],
            "at": pa.array([when, None], pa.timestamp("us", "UTC")),
            "text": ["a b/é=%", None],
            "flag": [True, None],
            "price": pa.array([Decimal("1.50"), None], pa.decimal128(10, 2)),
            "whole": pa.array([-7, None], pa.int32()),
            "real": [1.5e-30, None],
        }
    )
    deltalake.write_deltalake(table, rows.slice(0, 0), partition_by=rows.column_names[1:])
    _, place = numbers(followed(table))
    deltalake.write_deltalake(table, rows, mode="append")
    found, _ = taken(followed(table), place)
    assert in_order(found) == rows.to_pylist()
    assert in_order(taken(DeltaSource(table))[0]) == rows.to_pylist()


def test_a_place_that_is_gone_is_an_error_and_no_gap(table: Path, tmp_path: Path) -> None:
    add(table, 1, 2)
    _, inside = numbers(followed(table), most=1)
    _, end = numbers(followed(table))
    add(table, 3)
    add(table, 4)
    _, later = numbers(followed(table), end)
    deltalake.DeltaTable(table).create_checkpoint()
    for version in (0, 1):
        entry(table, version).unlink()
    for place in (inside, end):
        with pytest.raises(UserError, match="at which reading goes on, is not in its history any more") as refused:
            numbers(followed(table), place)
        assert "--fresh" in str(refused.value.hint)
    assert numbers(followed(table), later)[0] == []
    shutil.rmtree(table)
    for n in range(4):
        add(table, n)
    with pytest.raises(UserError, match="was made anew"):
        numbers(followed(table), later)


def test_a_position_and_a_memory_of_two_moments_are_refused(table: Path) -> None:
    add(table, 1, 2)
    _, place = numbers(followed(table), most=1)
    with pytest.raises(UserError, match="position 2 is not that of the memory"):
        numbers(followed(table), ({(str(table), 0): 2}, place[1]))


async def numbers_of_sql(state: Path, columns: str, options: str, rows: int) -> list[int]:
    """The first so many rows of a table in SQL, or of its changes."""
    app = App("sql", state=str(state), checkpoint_interval="20ms")
    app.sql(f"CREATE TABLE lake {columns} WITH ('connector' = 'delta', {options})")
    found = ListSink()
    lake = app.sql("SELECT n FROM lake")
    assert isinstance(lake, Stream)
    (lake.changelog() if "KEY" in columns else lake).to(found)
    await app.start()
    try:
        await until(lambda: len(found.rows) >= rows)
    finally:
        await app.stop()
    return [row["n"] for row in found.rows]


async def test_sql_follows_a_table_and_its_changes(table: Path, tmp_path: Path) -> None:
    add(table, 1, 2, configuration=FEED)
    add(table, 3)
    add(table, 4)
    where = f"'table-path' = '{table}', 'mode' = 'streaming', 'monitor-interval' = '10ms'"
    assert await numbers_of_sql(tmp_path / "all", "", where, 4) == [1, 2, 3, 4]
    assert await numbers_of_sql(tmp_path / "later", "", f"{where}, 'startingVersion' = '1'", 2) == [3, 4]
    deltalake.DeltaTable(table).delete("n = 3")
    fed = f"{where}, 'startingVersion' = '1', 'readChangeFeed' = 'true'"
    columns = "(n BIGINT, text STRING, PRIMARY KEY (n) NOT ENFORCED)"
    assert await numbers_of_sql(tmp_path / "changes", columns, fed, 3) == [3, 4, 3]
    for options, why in (("'readChangeFeed' = 'true'", "read by a key"), ("'startingVersion' = 'latest'", "followed")):
        with pytest.raises(SqlError, match=why):
            App("none").sql(
                f"CREATE TABLE lake WITH ('connector' = 'delta', 'path' = '{table}', {options}); SELECT * FROM lake"
            )
