"""What `connectors/base.py` promises of every source, of tables of lakehouses that are followed, and of the changes of one."""

import contextlib
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pytest
from pyiceberg.catalog import load_catalog

from sabot import DeltaSource
from sabot.connectors.base import Source
from sabot.connectors.iceberg import IcebergSource
from sabot.errors import UserError
from sabot.testing.connectors import ChangesSuite, ConnectorPlace, SourceSuite
from sabot.testing.connectors.place import NewPlace
from tools.broken_promises import FindsFaultsOfMemory
from tools.iceberg_lake import lake_of, table_of

COLUMNS = pa.schema([("n", pa.int64()), ("text", pa.string())])


def rows_of(numbers: Sequence[int]) -> pa.Table:
    return pa.table({"n": list(numbers), "text": [f"row {n}" for n in numbers]}, COLUMNS)


class DeltaPlace(ConnectorPlace):
    """A table of Delta Lake to which rows are added."""

    keys: Sequence[str] = ()

    def __init__(self, folder: Path) -> None:
        self.table = folder / uuid.uuid4().hex
        feed = {"delta.enableChangeDataFeed": str(bool(self.keys)).lower()}
        deltalake.DeltaTable.create(self.table, deltalake.Schema.from_arrow(COLUMNS), configuration=feed)

    def put(self, numbers: Sequence[int]) -> None:
        deltalake.write_deltalake(self.table, rows_of(numbers), mode="append")

    def source(self) -> Source:
        return DeltaSource(self.table, follow="1ms", keys=self.keys)


class ChangingDeltaPlace(DeltaPlace):
    """A table of Delta Lake with a change feed, whose rows change."""

    keys = ("n",)

    def change(self, numbers: Sequence[int]) -> None:
        for n in numbers:
            deltalake.DeltaTable(self.table).update(predicate=f"n = {n}", updates={"text": "'changed'"})

    def remove(self, numbers: Sequence[int]) -> None:
        for n in numbers:
            deltalake.DeltaTable(self.table).delete(f"n = {n}")


class IcebergPlace(ConnectorPlace):
    """A table of Iceberg, in a catalog in a SQLite file."""

    def __init__(self, folder: Path) -> None:
        self.catalog, self.name = lake_of(folder), f"lake.t{uuid.uuid4().hex}"
        with contextlib.closing(load_catalog("default", **self.catalog)) as opened:
            opened.create_namespace_if_not_exists("lake")
            opened.create_table(self.name, COLUMNS)

    def put(self, numbers: Sequence[int]) -> None:
        table = table_of(self.catalog, self.name)
        assert table is not None
        table.append(rows_of(numbers))

    def source(self) -> Source:
        return IcebergSource(self.catalog, self.name, follow="1ms")


def changed(place: ConnectorPlace) -> None:
    """Another process makes `n` a text in Delta, and a table anew with such a column in Iceberg."""
    texts = pa.table({"n": ["four"], "text": ["row 4"]})
    if isinstance(place, DeltaPlace):
        deltalake.write_deltalake(place.table, texts, mode="overwrite", schema_mode="overwrite")
    elif isinstance(place, IcebergPlace):
        with contextlib.closing(load_catalog("default", **place.catalog)) as opened:
            opened.drop_table(place.name)
            opened.create_table(place.name, texts.schema).append(texts)


@pytest.mark.parametrize("kind", [DeltaPlace, IcebergPlace])
def test_a_column_that_another_process_changes_between_plan_and_start_is_named(kind: Any, tmp_path: Path) -> None:
    """Rows with a text came to steps that were planned for a number."""
    place = kind(tmp_path)
    place.put([1, 2])
    source = place.source()
    assert source.infer_schema() == COLUMNS
    changed(place)
    with pytest.raises(UserError, match="column n was int64 when the program was planned, and is string now"):
        source.open(None)
    again = place.source()
    again.open(None)
    batch = again.read_batch(10, 0.0)
    again.close()
    assert batch is not None
    assert batch.data.to_pylist() == [{"n": "four", "text": "row 4"}]


class TestFollowedDelta(FindsFaultsOfMemory, SourceSuite):
    @pytest.fixture
    def new_place(self, tmp_path: Path) -> NewPlace:
        return lambda: DeltaPlace(tmp_path)


class TestChangesOfDelta(FindsFaultsOfMemory, ChangesSuite):
    @pytest.fixture
    def new_place(self, tmp_path: Path) -> NewPlace:
        return lambda: ChangingDeltaPlace(tmp_path)


class TestFollowedIceberg(FindsFaultsOfMemory, SourceSuite):
    @pytest.fixture
    def new_place(self, tmp_path: Path) -> NewPlace:
        return lambda: IcebergPlace(tmp_path)
