"""A table of Iceberg as a sink, read back with pyiceberg and DuckDB: types, columns, partitions, owners, lost answers, errors."""

import datetime
import decimal
import json
import logging
import re
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadataV2
from pyiceberg.transforms import TruncateTransform
from pyiceberg.types import FixedType, IntegerType, LongType, NestedField, StringType, UUIDType

from sabot import App, UserError, col
from sabot._cython.arrow.batch import Batch
from sabot.connectors.base import Track
from sabot.connectors.iceberg import IcebergSink, IcebergSource
from sabot.errors import AppLocked, SabotError, TransientError
from sabot.testing import END, ScriptedSource
from tools.agent_tools import publish, started, until
from tools.iceberg_lake import lake_of, rows_in_lake, table_of
from tools.secrets_planted import leaks, planted

TRACK = Track("app", "out", "one")
SCHEMA = pa.schema([("n", pa.int64()), ("day", pa.string())])
NAME = "lake.orders"


class Lake:
    """A catalog in a SQLite file, and the table in it."""

    def __init__(self, folder: Path) -> None:
        self.catalog = lake_of(folder)

    def claimed(self, track: Track = TRACK, table: str = NAME, **options: Any) -> IcebergSink:
        sink = IcebergSink(self.catalog, table, **{"schema": SCHEMA, **options})
        sink.claim(track)
        return sink

    def opened(self) -> Catalog:
        return load_catalog("default", **self.catalog)

    def table(self) -> Table:
        found = table_of(self.catalog, NAME)
        assert found is not None
        return found

    def rows(self) -> list[dict[str, Any]]:
        """The rows as DuckDB reads them, which are those of pyiceberg."""
        found = sorted(rows_in_lake(self.catalog, NAME), key=lambda row: row["n"])
        assert len(found) == self.table().scan().count()
        return found

    def numbers(self) -> list[int]:
        return [row["n"] for row in self.rows()]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def batch(*numbers: int, day: str = "mon") -> pa.RecordBatch:
    return pa.record_batch({"n": list(numbers), "day": [day] * len(numbers)}, SCHEMA)


def put(sink: IcebergSink, seq: int, *batches: pa.RecordBatch) -> None:
    sink.deliver(seq, [sink.fitting(each) for each in batches])


# -- commits ----------------------------------------------------------------------------------------------------------


def test_a_part_is_one_snapshot_whatever_its_batches(lake: Lake) -> None:
    sink = lake.claimed()
    before = len(lake.table().snapshots())
    put(sink, 1, batch(1, 2), batch(3), batch())
    put(sink, 1, batch(1, 2), batch(3), batch())
    assert len(lake.table().snapshots()) == before + 1
    assert lake.numbers() == [1, 2, 3]


def test_the_snapshot_of_the_tag_has_the_number_of_the_part_beside_its_rows(lake: Lake) -> None:
    sink = lake.claimed()
    put(sink, 7, batch(1))
    snapshot = lake.table().snapshot_by_name(TRACK.key)
    assert snapshot == lake.table().current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    assert (snapshot.summary["sabot.part"], snapshot.summary["sabot.incarnation"]) == ("7", "one")
    assert snapshot.summary["added-records"] == "1"


def test_other_writers_commit_in_between(lake: Lake) -> None:
    sink = lake.claimed()
    for n in range(3):
        lake.table().append(pa.Table.from_batches([batch(100 + n)]))
        put(sink, n + 1, batch(n))
    lake.table().delete("n >= 101")  # files are written anew, and the tag stays behind `main`
    put(sink, 4, batch(3))
    assert lake.numbers() == [0, 1, 2, 3, 100]


def test_two_apps_write_one_table_at_the_same_time(lake: Lake) -> None:
    sinks = [lake.claimed(Track(f"app{n}", "out", "one")) for n in range(2)]

    def write(sink: IcebergSink, first: int) -> None:
        for n in range(5):
            put(sink, n + 1, batch(first + n))

    threads = [threading.Thread(target=write, args=(sink, 100 * number)) for number, sink in enumerate(sinks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lake.numbers() == [*range(5), *range(100, 105)]


def between(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Acts once, behind the look of the next commit at the table, and before the catalog has the commit."""
    commit = SqlCatalog.commit_table

    def later(*args: Any, **named: Any) -> Any:
        monkeypatch.setattr(SqlCatalog, "commit_table", commit)
        act()
        return commit(*args, **named)

    monkeypatch.setattr(SqlCatalog, "commit_table", later)


def test_a_commit_of_another_between_look_and_commit_costs_no_new_files(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = lake.claimed()
    between(monkeypatch, lambda: lake.table().append(pa.Table.from_batches([batch(100)])))
    put(sink, 1, batch(1))
    assert lake.numbers() == [1, 100]
    assert len(list(Path(lake.catalog["warehouse"]).rglob("*.parquet"))) == 2


def test_who_lost_the_track_between_its_look_and_its_commit_is_refused(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = lake.claimed()
    put(sink, 1, batch(1))
    between(monkeypatch, lake.claimed)
    with pytest.raises(AppLocked):
        put(sink, 2, batch(2))
    with pytest.raises(AppLocked):
        sink.claim(TRACK)
    assert lake.numbers() == [1]


@pytest.mark.parametrize("took_effect", [False, True])
def test_ten_answers_in_a_row_that_are_lost_lose_and_repeat_nothing(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, took_effect: bool
) -> None:
    sink = lake.claimed()
    commit, lost = SqlCatalog.commit_table, iter(range(10))

    def unsure(*args: Any, **named: Any) -> Any:
        if (number := next(lost, None)) is None:
            return commit(*args, **named)
        if took_effect:
            commit(*args, **named)
        raise ConnectionResetError("reset") if number % 2 else CommitStateUnknownException("504")

    monkeypatch.setattr(SqlCatalog, "commit_table", unsure)
    for n in range(12):
        put(sink, n + 1, batch(n))
    assert lake.numbers() == list(range(12))


def test_a_lost_answer_before_a_successor_came_is_no_commit_of_the_successors_part(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tag then says who has the track, whatever became of the commit."""
    sink, commit = lake.claimed(), SqlCatalog.commit_table

    def unsure(*args: Any, **named: Any) -> Any:
        monkeypatch.setattr(SqlCatalog, "commit_table", commit)
        commit(*args, **named)
        lake.claimed()
        raise ConnectionResetError("reset")

    monkeypatch.setattr(SqlCatalog, "commit_table", unsure)
    with pytest.raises(AppLocked):
        put(sink, 1, batch(1))
    assert lake.claimed().claim(TRACK) is not None
    assert lake.numbers() == [1]


def test_a_catalog_that_refuses_every_commit_is_given_up(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = lake.claimed()

    def refuses(*args: Any, **named: Any) -> Any:
        raise CommitFailedException("branch main has changed")

    monkeypatch.setattr(SqlCatalog, "commit_table", refuses)
    with pytest.raises(TransientError, match="no commit of ours comes through"):
        put(sink, 1, batch(1))


def test_a_claim_of_a_table_that_was_just_made_is_tried_again(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another sink makes the table at the same time: one of the two finds it there, and the claims of both meet."""
    create, commit = SqlCatalog.create_table_transaction, SqlCatalog.commit_table

    def another_makes_it(*args: Any, **named: Any) -> Any:
        monkeypatch.setattr(SqlCatalog, "create_table_transaction", create)
        monkeypatch.setattr(SqlCatalog, "commit_table", commit)
        lake.claimed(Track("another", "out", "one"))
        between(monkeypatch, lambda: lake.claimed(Track("third", "out", "one")))
        return create(*args, **named)

    monkeypatch.setattr(SqlCatalog, "create_table_transaction", another_makes_it)
    put(lake.claimed(), 1, batch(1))
    assert lake.numbers() == [1]
    assert {"sabot.another.out", "sabot.third.out", TRACK.key} < set(lake.table().refs())


def test_the_error_of_an_outage_that_does_not_end_is_its_own(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = lake.claimed()

    def gone(*args: Any, **named: Any) -> Any:
        raise ConnectionResetError("reset by the proxy")

    monkeypatch.setattr(SqlCatalog, "commit_table", gone)
    with pytest.raises(TransientError, match="cannot be reached: reset by the proxy"):
        put(sink, 1, batch(1))


def test_a_folder_in_which_this_process_may_not_write_is_an_error(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = lake.claimed()

    def refuses(*args: Any, **named: Any) -> Any:
        raise PermissionError(13, "Permission denied", "/lake/orders/data")

    monkeypatch.setattr("sabot.connectors.iceberg.driver.OnDisk.new_output", refuses)
    with pytest.raises(UserError, match="Permission denied") as told:
        put(sink, 1, batch(1))
    assert "change the owner or the mode" in told.value.hint


@pytest.mark.parametrize("name", ["write.data.path", "write.metadata.path"])
def test_a_table_whose_files_would_be_elsewhere_is_refused(lake: Lake, tmp_path: Path, name: str) -> None:
    """Who can write its metadata would have rows written into any folder; and a source refuses what is not below the table."""
    lake.claimed().close()
    with lake.table().transaction() as change:
        change.set_properties({name: f"{tmp_path}/elsewhere"})
    with pytest.raises(UserError, match=r"is elsewhere|and the catalog has its metadata at"):
        lake.claimed()
    assert not (tmp_path / "elsewhere").exists() or name == "write.metadata.path"


def test_a_table_that_names_code_for_its_paths_is_refused(lake: Lake) -> None:
    lake.claimed().close()
    metadata = Path(lake.table().metadata_location.removeprefix("file://"))
    said = json.loads(metadata.read_text())
    said["properties"]["write.py-location-provider.impl"] = "wave.Places"
    metadata.write_text(json.dumps(said))
    sys.modules.pop("wave", None)
    with pytest.raises(UserError, match=r"has its files named by 'wave.Places', which would be imported"):
        lake.claimed()
    assert "wave" not in sys.modules


def test_the_token_outlives_the_expiry_of_snapshots(lake: Lake) -> None:
    put(lake.claimed(), 5, batch(1))
    lake.table().append(pa.Table.from_batches([batch(2)]))
    table = lake.table()
    table.maintenance.expire_snapshots().older_than(datetime.datetime.now() + datetime.timedelta(days=1)).commit()
    assert len(lake.table().snapshots()) == 2
    token = lake.claimed().claim(TRACK)
    assert token is not None
    assert (token.seq, token.incarnation) == (5, "one")


def test_a_tag_that_was_removed_ends_the_delivery(lake: Lake) -> None:
    sink = lake.claimed()
    put(sink, 1, batch(1))
    lake.table().manage_snapshots().remove_tag(TRACK.key).commit()
    with pytest.raises(UserError, match="nobody knows what was delivered"):
        put(sink, 2, batch(2))


def test_a_table_that_was_dropped_meanwhile_is_not_made_anew(lake: Lake) -> None:
    sink = lake.claimed()
    put(sink, 1, batch(1))
    lake.opened().drop_table(NAME)
    with pytest.raises(UserError):
        put(sink, 2, batch(2))
    assert table_of(lake.catalog, NAME) is None


def test_manifests_are_merged(lake: Lake) -> None:
    """A fast append names one manifest more in each commit, which took twice as long after sixty."""
    sink = lake.claimed()
    lake.table().transaction().set_properties({"commit.manifest.min-count-to-merge": "4"}).commit_transaction()
    for n in range(12):
        put(sink, n + 1, batch(n))
    snapshot = lake.table().current_snapshot()
    assert snapshot is not None
    assert len(snapshot.manifests(lake.table().io)) < 5
    assert lake.numbers() == list(range(12))


def metadata_files(lake: Lake) -> list[str]:
    return sorted(
        each.name for each in (Path(lake.table().location().removeprefix("file://")) / "metadata").glob("*.json")
    )


def retained(lake: Lake, **properties: str) -> IcebergSink:
    """A sink of a table with these properties, in which age takes each snapshot that may expire."""
    lake.claimed().close()
    with lake.table().transaction() as change:
        change.set_properties({"history.expire.max-snapshot-age-ms": "-60000", **properties})
    return lake.claimed()


def test_snapshots_that_the_table_lets_expire_go_with_a_commit_and_rows_and_token_stay(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sabot.connectors.iceberg.driver.EXPIRED_AT_ONCE", 3)
    sink = retained(lake, **{"history.expire.min-snapshots-to-keep": "2"})
    with lake.table().manage_snapshots() as change:
        change.create_tag(lake.table().metadata.snapshots[0].snapshot_id, "kept")
    tagged = lake.table().metadata.snapshots[0]
    most = 0
    for n in range(1, 13):
        put(sink, n, batch(n))
        most = max(most, len(lake.table().metadata.snapshots))
    assert most == 2 + 3 + 1  # the last two, those before the next removal, and that of the tag
    assert tagged in lake.table().metadata.snapshots
    sink.close()
    sink = lake.claimed()
    put(sink, 12, batch(12))
    put(sink, 13, batch(13))
    assert lake.numbers() == list(range(1, 14))


def test_a_table_of_others_keeps_its_snapshots(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sabot.connectors.iceberg.driver.EXPIRED_AT_ONCE", 1)
    with lake.opened() as catalog:
        catalog.create_namespace("lake")
        catalog.create_table(NAME, SCHEMA, properties={"history.expire.max-snapshot-age-ms": "-60000"})
    sink = lake.claimed()
    before = len(lake.table().metadata.snapshots)
    for n in range(1, 6):
        put(sink, n, batch(n))
    assert len(lake.table().metadata.snapshots) == before + 5


def test_a_table_with_many_snapshots_is_told_and_again_when_they_have_doubled(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sabot.connectors.iceberg.sink.MANY_SNAPSHOTS", 4)
    sink = lake.claimed()
    with caplog.at_level(logging.WARNING, "sabot"):
        for n in range(1, 13):
            put(sink, n, batch(n))
    told = [record.getMessage() for record in caplog.records if "snapshots" in record.getMessage()]
    assert [re.findall("keeps ([0-9]+) snapshots", each) for each in told] == [["4"], ["8"]]


def test_files_of_old_metadata_are_removed_and_none_that_is_elsewhere(
    lake: Lake, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Commits of the sink go past pyiceberg's own, which removes them: a table had a file of each commit, each larger than the last."""
    sink = retained(lake, **{"write.metadata.previous-versions-max": "3"})
    for n in range(1, 9):
        put(sink, n, batch(n))
    assert len(metadata_files(lake)) == 4
    sink.close()
    (tmp_path / "mine.json").write_text("{}")
    metadata = Path(lake.table().metadata_location.removeprefix("file://"))
    said = json.loads(metadata.read_text())
    said["metadata-log"][0]["metadata-file"] = f"file://{tmp_path}/mine.json"
    metadata.write_text(json.dumps(said))
    with caplog.at_level(logging.WARNING, "sabot"):
        put(lake.claimed(), 9, batch(9))
    assert (tmp_path / "mine.json").exists()
    assert "old metadata cannot be removed" in caplog.text
    assert "is elsewhere" in caplog.text


def test_a_commit_copies_the_metadata_of_the_table_once(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyiceberg copied it for each look at it, fifteen times a commit: with 150 snapshots 0.15 s of a core went by, where 0.03 do."""
    copied = []
    deep_copy = TableMetadataV2.__deepcopy__

    def noted(metadata: TableMetadataV2, memo: dict[int, Any] | None = None) -> TableMetadataV2:
        copied.append(metadata)
        return deep_copy(metadata, memo)

    sink = lake.claimed()
    monkeypatch.setattr(TableMetadataV2, "__deepcopy__", noted)
    put(sink, 1, batch(1))
    assert len(copied) == 1  # by the catalog
    assert lake.numbers() == [1]


def bytes_moved() -> int:
    """What this process has read and written so far. The time of a commit depends on what else the machine does."""
    facts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(facts["rchar"]) + int(facts["wchar"])


@pytest.mark.slow  # 300 commits, of 0.03 s each
@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells what a process has read and written")
def test_commits_leave_metadata_that_does_not_grow_and_the_last_read_and_write_no_more(lake: Lake) -> None:
    """Each commit reads and writes the list of all snapshots, and a file of metadata with it: of 60 commits the last took twice as long
    as the first, and the files of a thousand would have had half a gigabyte. 100 snapshots are kept, and 100 removed at once: the second
    hundred of commits and the third find equally many.
    """
    sink = retained(lake)
    moved: list[int] = []
    sizes: list[int] = []
    for n in range(1, 301):
        before = bytes_moved()
        put(sink, n, batch(n))
        moved.append(bytes_moved() - before)
        if n % 50 in (0, 49):
            table = lake.table()
            sizes.append(len(json.dumps(table.metadata.model_dump(mode="json"))))
            assert len(table.metadata.snapshots) <= 202
            assert len(metadata_files(lake)) <= 102
    assert max(sizes[8:]) <= 1.1 * max(sizes[:8])
    assert statistics.median(moved[200:]) <= 1.1 * statistics.median(moved[100:200])
    current = lake.table().current_snapshot()
    assert current is not None
    assert len(current.manifests(lake.table().io)) <= 200
    assert lake.numbers() == list(range(1, 301))


def test_at_least_once_there_is_a_commit_for_each_flush(lake: Lake) -> None:
    sink = IcebergSink(lake.catalog, NAME, schema=SCHEMA)
    sink.open()
    for n in range(5):
        sink.write(Batch(batch(n)))
    assert lake.rows() == []
    sink.flush()
    sink.flush()
    assert lake.numbers() == list(range(5))
    assert len(lake.table().snapshots()) == 1
    sink.close()


# -- columns ----------------------------------------------------------------------------------------------------------

NOON = datetime.datetime(2026, 3, 1, 12, 0, 0, 250)
UTC = datetime.UTC
BERLIN = pa.timestamp("ms", "Europe/Berlin")
LONG = "ü" * 5_000_000
TYPES = [
    (pa.array([True, None]), "boolean", [True, None]),
    (pa.array([-128, 127], pa.int8()), "int", [-128, 127]),
    (pa.array([2**16 - 1], pa.uint16()), "int", [2**16 - 1]),
    (pa.array([-(2**31)], pa.int32()), "int", [-(2**31)]),
    (pa.array([2**32 - 1], pa.uint32()), "long", [2**32 - 1]),
    (pa.array([-(2**63), 2**63 - 1], pa.int64()), "long", [-(2**63), 2**63 - 1]),
    (pa.array([2**64 - 1], pa.uint64()), "decimal(20, 0)", [decimal.Decimal(2**64 - 1)]),
    (pa.array([1.5], pa.float32()).cast(pa.float16()), "float", [1.5]),
    (pa.array([float("inf"), None], pa.float32()), "float", [float("inf"), None]),
    (pa.array([float("-inf"), -0.0], pa.float64()), "double", [float("-inf"), -0.0]),
    (pa.array(["ü\0", ""], pa.large_string()), "string", ["ü\0", ""]),
    (pa.array([LONG]), "string", [LONG]),
    (pa.array(["a"]).dictionary_encode(), "string", ["a"]),
    (pa.array([b"abc"], pa.binary(3)), "binary", [b"abc"]),
    (pa.array([NOON], pa.timestamp("ns")), "timestamp", [NOON]),
    (pa.array([-1], pa.timestamp("ns")), "timestamp", [datetime.datetime(1969, 12, 31, 23, 59, 59, 999_999)]),
    (pa.array([0], BERLIN), "timestamptz", [datetime.datetime(1970, 1, 1, tzinfo=UTC)]),
    (pa.array([NOON.date()], pa.date64()), "date", [NOON.date()]),
    (pa.array([86_399], pa.time32("s")), "time", [datetime.time(23, 59, 59)]),
    (pa.array([1_999, None], pa.time64("ns")), "time", [datetime.time(0, 0, 0, 1), None]),
    (pa.array([decimal.Decimal("1.50")], pa.decimal256(10, 2)), "decimal(10, 2)", [decimal.Decimal("1.50")]),
    (pa.array([decimal.Decimal("9" * 38)]), "decimal(38, 0)", [decimal.Decimal("9" * 38)]),
    (pa.array([None]), "string", [None]),
    (pa.array([[1, None], []], pa.list_(pa.uint8())), "list<int>", [[1, None], []]),
    (pa.array([{"a": 1}, None], pa.struct([("a", pa.uint8())])), "struct<a: int>", [{"a": 1}, None]),
    (pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())), "map<string, long>", [[("k", 1)], []]),
]


def test_each_type_is_read_back_as_it_was(lake: Lake) -> None:
    """In one table, for making one takes long: a column of each type, with nulls below what it has."""
    rows = max(len(given) for given, _, _ in TYPES)
    columns = {
        f"c{n}": pa.concat_arrays([given, pa.nulls(rows - len(given), given.type)])
        for n, (given, _, _) in enumerate(TYPES)
    }
    data = pa.record_batch({"n": list(range(rows)), **columns})
    put(lake.claimed(schema=data.schema), 1, data)
    table = lake.table()
    found = table.scan().to_arrow().sort_by("n")
    for number, (given, kind, read) in enumerate(TYPES):
        shown = str(table.schema().find_field(f"c{number}").field_type)
        assert ("struct<a: int>" if shown.startswith("struct") else shown) == kind, given.type
        assert found.column(f"c{number}").to_pylist() == [*read, *[None] * (rows - len(read))], given.type
    source = IcebergSource(lake.catalog, NAME)
    source.open(None)
    batch = source.read_batch(rows, 0.0)
    assert batch is not None
    assert batch.taken().to_pylist() == found.to_pylist()
    source.close()


NAMED = [given.type for given, _, _ in TYPES] + [
    pa.decimal128(38, 2),
    pa.uint8(),
    pa.int16(),
    pa.date32(),
    pa.string(),
    pa.binary(),
]


def test_the_table_of_types_in_the_documents_is_true(lake: Lake) -> None:
    text = (Path(__file__).parents[3] / "docs" / "iceberg.md").read_text().partition("| Arrow | Iceberg |")[2]
    lines = re.findall(r"^\| (`[^|]+`) \| `([^|]+)` \|$", text, re.MULTILINE)
    kinds = {str(kind): kind for kind in NAMED}
    kinds |= {"struct<a: int8>": pa.struct([("a", pa.int8())]), "decimal128(38, 2)": pa.decimal128(38, 2)}
    pairs = [(kinds[each], shown) for given, shown in lines for each in re.findall("`([^`]+)`", given)]
    assert len(pairs) > 24
    schema = pa.schema([(f"c{number}", kind) for number, (kind, _) in enumerate(pairs)])
    lake.claimed(schema=schema)
    for number, (kind, shown) in enumerate(pairs):
        found = str(lake.table().schema().find_field(f"c{number}").field_type)
        assert re.sub(r"\d+: (\w+): optional ", r"\1: ", found) == shown, kind


def test_a_float_that_is_no_number_stays_one(lake: Lake) -> None:
    data = pa.record_batch({"n": [1], "v": [float("nan")]})
    put(lake.claimed(schema=data.schema), 1, data)
    assert str(lake.rows()[0]["v"]) == "nan"


@pytest.mark.parametrize("kind", [pa.duration("s"), pa.list_(pa.duration("s")), pa.decimal256(60, 2)])
def test_a_type_that_iceberg_does_not_have_is_refused_before_the_start(lake: Lake, kind: pa.DataType) -> None:
    with pytest.raises(UserError, match=r"column 'v' of type .* cannot be written as Iceberg") as refused:
        IcebergSink(lake.catalog, NAME).check_types(pa.schema([("v", kind)]))
    assert "drop('v')" in str(refused.value.hint)


def test_an_option_that_cannot_be_is_refused_by_name(lake: Lake) -> None:
    with pytest.raises(UserError, match="IcebergSink: overwrite='no'"):
        IcebergSink(lake.catalog, NAME, overwrite="no")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'orders' has no namespace"):
        IcebergSink(lake.catalog, "orders")
    with pytest.raises(UserError, match=r"partition_by='day' is no list"):
        IcebergSink(lake.catalog, NAME, partition_by="day")


def test_a_value_beyond_the_type_is_refused_before_it_is_in_a_checkpoint(lake: Lake) -> None:
    far = pa.record_batch({"v": pa.array([2**62], pa.timestamp("s"))})
    with pytest.raises(UserError, match=r"column v: .* out of"):
        lake.claimed(schema=far.schema).fitting(far)


def test_columns_that_do_not_come_are_null(lake: Lake) -> None:
    lake.claimed()
    put(lake.claimed(schema=pa.schema([("n", pa.int32())])), 1, pa.record_batch({"n": pa.array([5], pa.int32())}))
    assert lake.rows() == [{"n": 5, "day": None}]


def test_a_table_of_others_with_another_order_of_columns_takes_rows_by_name(lake: Lake) -> None:
    catalog = lake.opened()
    catalog.create_namespace("lake")
    catalog.create_table(
        NAME,
        Schema(
            NestedField(7, "day", StringType()),
            NestedField(3, "n", LongType(), required=True),
            NestedField(9, "other", IntegerType()),
        ),
    )
    sink = lake.claimed()
    put(sink, 1, batch(1, 2))
    assert lake.table().scan().to_arrow().sort_by("n").to_pylist() == [
        {"day": "mon", "n": n, "other": None} for n in (1, 2)
    ]
    with pytest.raises(UserError, match="column n is NOT NULL in the table, and a row has no value"):
        sink.fitting(pa.record_batch({"n": pa.array([1, None], pa.int64())}))
    with pytest.raises(UserError, match="column n is NOT NULL, and the rows do not have it"):
        lake.claimed(schema=pa.schema([("day", pa.string())]))


@pytest.mark.parametrize("kind", [UUIDType(), FixedType(3)], ids=str)
def test_columns_of_types_that_are_not_written_are_refused(lake: Lake, kind: Any) -> None:
    catalog = lake.opened()
    catalog.create_namespace("lake")
    catalog.create_table(NAME, Schema(NestedField(1, "n", LongType()), NestedField(2, "v", kind)))
    with pytest.raises(UserError, match=r"its column v is .*, which does not hold binary"):
        lake.claimed(schema=pa.schema([("n", pa.int64()), ("v", pa.binary())]))
    put(lake.claimed(schema=pa.schema([("n", pa.int64())])), 1, pa.record_batch({"n": [1]}))
    assert lake.numbers() == [1]


WIDER = [
    (pa.int32(), pa.int64()),
    (pa.float32(), pa.float64()),
    (pa.decimal128(10, 2), pa.decimal128(12, 2)),
]
OTHERS = [
    (pa.int64(), pa.string()),
    (pa.timestamp("us", "UTC"), pa.timestamp("us")),
    (pa.decimal128(10, 2), pa.decimal128(10, 3)),
    (pa.list_(pa.int32()), pa.list_(pa.int64())),
    (pa.struct([("a", pa.int32())]), pa.struct([("a", pa.int32()), ("b", pa.int32())])),
]


@pytest.mark.parametrize(("there", "given"), WIDER, ids=str)
def test_a_column_of_a_narrower_type_ends_the_start_and_evolve_widens_it(
    lake: Lake, there: pa.DataType, given: pa.DataType
) -> None:
    small, large = pa.array([1], pa.int8()).cast(there), pa.array([2], pa.int8()).cast(given)
    put(lake.claimed(schema=pa.schema([("n", there)])), 1, pa.record_batch({"n": small}))
    wide = pa.schema([("n", given)])
    with pytest.raises(UserError, match=r"its column n is .*, which does not hold"):
        lake.claimed(schema=wide)
    sink = lake.claimed(schema=wide, evolve=True)
    assert sink.misfit(wide) == ""
    put(sink, 2, pa.record_batch({"n": large}))
    found = lake.table().scan().to_arrow()
    assert (found.schema.field("n").type, sorted(found["n"].to_pylist())) == (given, [1, 2])


@pytest.mark.parametrize(("there", "given"), OTHERS, ids=str)
def test_a_column_that_cannot_hold_the_rows_ends_the_start(lake: Lake, there: pa.DataType, given: pa.DataType) -> None:
    lake.claimed(schema=pa.schema([("v", there)]))
    before = len(lake.table().snapshots())
    with pytest.raises(UserError, match=r"its column v is .*, which does not hold"):
        lake.claimed(schema=pa.schema([("v", given)]), evolve=True)
    assert len(lake.table().snapshots()) == before  # it has not claimed the track


def test_a_missing_column_ends_the_start_and_evolve_adds_it(lake: Lake) -> None:
    put(lake.claimed(), 1, batch(1))
    more = pa.schema([*SCHEMA, ("seats", pa.uint8())])
    with pytest.raises(UserError, match=r"has no column seats \(int32\)") as refused:
        lake.claimed(schema=more)
    assert "IcebergSink(…, evolve=True)" in str(refused.value.hint)
    sink = lake.claimed(schema=more, evolve=True)
    put(sink, 2, pa.record_batch({"n": [2], "day": ["tue"], "seats": pa.array([4], pa.uint8())}))
    assert lake.rows() == [{"n": 1, "day": "mon", "seats": None}, {"n": 2, "day": "tue", "seats": 4}]


def test_a_column_that_comes_in_the_middle_of_a_part_is_added_for_all_of_it(lake: Lake) -> None:
    put(lake.claimed(evolve=True), 1, batch(1), pa.record_batch({"n": [2], "more": ["x"]}), batch(3))
    found = [("mon", None), (None, "x"), ("mon", None)]
    assert lake.rows() == [{"n": n + 1, "day": day, "more": more} for n, (day, more) in enumerate(found)]


def test_names_that_differ_only_by_case_are_refused(lake: Lake) -> None:
    lake.claimed()
    with pytest.raises(UserError, match="differ only by case"):
        lake.claimed(schema=pa.schema([("N", pa.int64())]), evolve=True)


# -- partitions, and the first start ------------------------------------------------------------------------------------


def test_rows_are_in_the_files_of_their_partitions(lake: Lake) -> None:
    kinds = pa.schema([("n", pa.int64()), ("day", pa.string()), ("ts", pa.timestamp("us", "UTC"))])
    by = ["day(ts)", "day", "bucket(4, n)"]
    sink = lake.claimed(schema=kinds, partition_by=by)
    days = [datetime.datetime(2026, 3, day, tzinfo=UTC) for day in (1, 1, 2)]
    put(sink, 1, pa.record_batch([[1, 1, 1], ["a/b c", None, "mon"], days], schema=kinds))
    files = [task.file for task in lake.table().scan().plan_files()]
    assert len(files) == 3
    assert lake.table().scan("ts >= '2026-03-02T00:00:00+00:00'").to_arrow().num_rows == 1
    assert sorted(str(row["day"]) for row in lake.rows()) == ["None", "a/b c", "mon"]
    put(lake.claimed(schema=kinds), 2, pa.record_batch([[4], ["x"], days[:1]], schema=kinds))  # need not be said
    with pytest.raises(UserError, match=r"is partitioned by day\(ts\), day, bucket\(4, n\), and"):
        lake.claimed(schema=kinds, partition_by=["n"])


def test_a_table_that_is_partitioned_twice_by_a_column_is_refused(lake: Lake) -> None:
    """pyiceberg does not write such a table."""
    with pytest.raises(UserError, match="partitioned twice by day"):
        IcebergSink(lake.catalog, NAME, partition_by=["day", "truncate(2, day)"]).check_types(SCHEMA)
    lake.claimed(partition_by=["day"])
    with lake.table().update_spec() as spec:
        spec.add_field("day", TruncateTransform(2), "short")
    with pytest.raises(UserError, match="partitioned twice by day"):
        lake.claimed()


@pytest.mark.parametrize("by", ["day(n)", "hour(day)", "truncate(n)", "bucket(x)", "hours(n)"])
def test_partitions_that_cannot_be_are_refused_before_the_start(lake: Lake, by: str) -> None:
    with pytest.raises(UserError, match="partition_by"):
        IcebergSink(lake.catalog, NAME, partition_by=[by]).check_types(SCHEMA)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("exactly", [False, True])
def test_a_fresh_start_adds_to_the_table_or_begins_empty(
    lake: Lake, overwrite: bool, exactly: bool, caplog: pytest.LogCaptureFixture
) -> None:
    put(lake.claimed(), 1, batch(1))
    caplog.set_level(logging.INFO)
    sink = IcebergSink(lake.catalog, NAME, schema=SCHEMA, overwrite=overwrite)
    sink.start_afresh()
    if exactly:
        assert (sink.known(TRACK) is None) == overwrite
        sink.claim(TRACK)
        put(sink, 2, batch(2))
    else:
        sink.open()
        sink.write(Batch(batch(2)))
        sink.flush()
    assert lake.numbers() == ([2] if overwrite else [1, 2])
    assert (
        "are removed, as overwrite= says" if overwrite else "adds to them (overwrite=True begins empty)"
    ) in caplog.text
    sink.close()
    later = IcebergSink(lake.catalog, NAME, schema=SCHEMA, overwrite=overwrite)  # a restart from a checkpoint
    later.claim(TRACK)
    assert lake.numbers() == ([2] if overwrite else [1, 2])


def test_a_fresh_start_makes_the_table_with_its_first_part(lake: Lake) -> None:
    sink = IcebergSink(lake.catalog, NAME, schema=SCHEMA)
    sink.start_afresh()
    assert sink.known(TRACK) is None
    assert sink.claim(TRACK) is None
    assert table_of(lake.catalog, NAME) is None
    put(sink, 1, batch(1))
    assert lake.numbers() == [1]


def test_a_table_without_known_columns_is_not_made(lake: Lake) -> None:
    with pytest.raises(UserError, match="does not exist, and its columns are not known") as refused:
        IcebergSink(lake.catalog, NAME).claim(TRACK)
    assert "IcebergSink(…, schema=pa.schema" in str(refused.value.hint)


# -- whole apps ---------------------------------------------------------------------------------------------------------


async def test_a_stream_is_in_the_table_when_the_app_has_ended(lake: Lake, tmp_path: Path) -> None:
    app = App("orders", state=str(tmp_path / "state"))
    source = ScriptedSource([batch(1, 2), batch(3, day="tue"), END], schema=SCHEMA)
    app.stream(source).with_columns(double=col("n") * 2).to(IcebergSink(lake.catalog, NAME, partition_by=["day"]))
    await app.run()
    assert [(row["n"], row["double"]) for row in lake.rows()] == [(1, 2), (2, 4), (3, 6)]


def test_changes_are_refused_with_the_way_out(lake: Lake) -> None:
    app = App("orders", state="memory")
    changes = app.stream(ScriptedSource([batch(1), END], schema=SCHEMA)).upsert("n")
    with pytest.raises(UserError, match="final") as refused:
        changes.to(IcebergSink(lake.catalog, NAME))
    assert "changelog" in str(refused.value.hint)


async def test_results_of_an_agent_become_rows(memory_url: str, lake: Lake, tmp_path: Path) -> None:
    app = App("orders", broker=memory_url, state=str(tmp_path / "state"))

    @app.agent("orders", sink=IcebergSink(lake.catalog, NAME, schema=SCHEMA))
    async def large(ctx: Any) -> dict[str, Any]:
        return {"n": ctx.message["n"], "day": "mon", "unknown": 1}

    publish(app, "orders", [{"n": n} for n in range(3)])
    async with started(app):
        await until(lambda: len(rows_in_lake(lake.catalog, NAME)) == 3)
    assert lake.rows() == [{"n": n, "day": "mon"} for n in range(3)]


# -- catalogs, secrets, the missing package ------------------------------------------------------------------------------


def test_secrets_of_the_catalog_are_in_no_message(caplog: pytest.LogCaptureFixture) -> None:
    secret = planted("/+")
    catalog = {"type": "rest", "uri": "http://127.0.0.1:9", "token": secret, "s3.secret-access-key": secret}
    sink = IcebergSink(catalog, NAME, schema=SCHEMA)
    with pytest.raises(
        TransientError, match=r"table lake\.orders in catalog http://127\.0\.0\.1:9 cannot be reached"
    ) as away:
        sink.claim(TRACK)
    assert "catalog" in str(away.value.hint)
    assert not leaks(f"{away.value}{away.value.__cause__!r}{sink.name}{sink.address}{caplog.text}")


@pytest.mark.parametrize(
    ("uri", "warehouse", "said", "hint"),
    [
        (
            "sqlite:///{}/missing/lake.db",
            "lake",
            "in catalog .*missing/lake.db cannot be reached: unable to open",
            "its folder",
        ),
        (
            "sqlite:///{}/text",
            "lake",
            "in catalog .*text: file is not a database",
            "give the path of a database of SQLite",
        ),
        ("sqlite:///{}/lake.db", "text", "cannot be made: .*Not a directory: .*text", '"warehouse" is a folder'),
        (
            "sqlite:///{}/lake.db",
            "/proc/lake",
            "cannot be made: .*No such file or directory: ./proc",
            '"warehouse" is a folder',
        ),
    ],
)
def test_a_catalog_or_a_warehouse_that_cannot_be_is_named(
    uri: str, warehouse: str, said: str, hint: str, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("no database, but long enough to be taken for the header of one: " * 20)
    catalog = {"type": "sql", "uri": uri.format(tmp_path), "warehouse": str(tmp_path / warehouse)}
    with pytest.raises(SabotError, match=said) as failed:
        IcebergSink(catalog, NAME, schema=SCHEMA).claim(TRACK)
    assert hint in str(failed.value.hint)


def test_without_the_package_the_error_names_the_extra(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiceberg", None)
    with pytest.raises(UserError, match="Iceberg needs an optional package") as refused:
        IcebergSink(lake.catalog, NAME)
    assert "sabot[iceberg]" in str(refused.value.hint)


IMPORTS = """
import sys
from sabot.connectors.iceberg import IcebergSink
from sabot.connectors.iceberg.table import IcebergPlace

catalog = {"type": "rest", "uri": "http://127.0.0.1:9"}
sink, place = IcebergSink(catalog, "lake.orders", partition_by=["day(ts)"]), IcebergPlace(catalog, "lake.orders", "a test")
print("pyiceberg" in sys.modules)
print(len(place.unknown), "sqlalchemy" in sys.modules)
import sqlalchemy
print(sqlalchemy.exc.OperationalError in place.unknown)
"""


def test_pyiceberg_is_imported_when_a_table_is_opened_and_sqlalchemy_for_a_catalog_in_a_database(
    tmp_path: Path,
) -> None:
    """Each process of an app made the sink, and took a second to import what only one of them used."""
    said = subprocess.run([sys.executable, "-c", IMPORTS], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == ["False", "7 False", "True"]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.date32(), [-719_163, -719_162, 2_932_896, 2_932_897, 2**31 - 1]),
        (pa.timestamp("us"), [-62_135_596_800_000_001, -62_135_596_800_000_000, 253_402_300_799_999_999, 253_402_300_800_000_000, 2**62]),
    ],
)  # fmt: skip
def test_a_time_of_which_pyiceberg_has_no_statistics_is_a_refused_row(lake: Lake, kind: Any, values: list[int]) -> None:
    """A date or a timestamp outside of the years 1 to 9999 ended each delivery with an OverflowError: the sink was stuck for good."""
    whole = pa.int32() if kind == pa.date32() else pa.int64()
    times = pa.array(values, whole).view(kind)
    rows = pa.record_batch({"n": list(range(5)), "t": times, "s": pa.StructArray.from_arrays([times], ["t"])})
    sink = lake.claimed(schema=rows.schema)
    for number in (0, 3, 4):
        with pytest.raises(UserError, match=r"column t has a time that pyiceberg does not have: "):
            sink.fitting(rows.slice(number, 1))
    inside = rows.select(["n", "s"])
    with pytest.raises(
        UserError, match=r"column s\.t has a time that pyiceberg does not have: 2932897 days|25340230080"
    ):
        sink.fitting(inside.slice(3, 1))
    put(sink, 1, rows.slice(1, 2))
    assert [row["t"].year for row in lake.rows()] == [1, 9999]
