"""What `connectors/base.py` promises of every source, of tables of lakehouses that are followed, and of the changes of one."""

import contextlib
import uuid
from collections.abc import Sequence
from pathlib import Path

import deltalake
import pyarrow as pa
import pytest
from pyiceberg.catalog import load_catalog

from sabot import DeltaSource
from sabot.connectors.base import Source
from sabot.connectors.iceberg import IcebergSource
from sabot.testing.connectors import ChangesSuite, ConnectorPlace, SourceSuite
from sabot.testing.connectors.place import NewPlace
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


class TestFollowedDelta(SourceSuite):
    @pytest.fixture
    def new_place(self, tmp_path: Path) -> NewPlace:
        return lambda: DeltaPlace(tmp_path)


class TestChangesOfDelta(ChangesSuite):
    @pytest.fixture
    def new_place(self, tmp_path: Path) -> NewPlace:
        return lambda: ChangingDeltaPlace(tmp_path)


class TestFollowedIceberg(SourceSuite):
    @pytest.fixture
    def new_place(self, tmp_path: Path) -> NewPlace:
        return lambda: IcebergPlace(tmp_path)
