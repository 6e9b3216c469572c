"""What becomes of the values of each type, at databases: `sabot.testing.connectors.TypesSuite`. Lakes have tables of their own types."""

import datetime
import json
import math
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from contracts.delivery_places import PLACES
from sabot.testing.connectors import TypesSuite
from sabot.testing.connectors.place import NewPlace


class TestDuckDB(TypesSuite):
    """Each value is the same."""

    @pytest.fixture
    def new_place(self, tmp_path: Path) -> NewPlace:
        with PLACES["duckdb"](tmp_path) as new:
            return new


class TestPostgres(TypesSuite):
    @pytest.fixture
    def new_place(self, tmp_path: Path) -> Iterator[NewPlace]:
        with PLACES["postgres"](tmp_path) as new:
            yield new

    def stored(self, value: Any, kind: pa.DataType) -> Any:
        return Decimal(value) if pa.types.is_uint64(kind) and value is not None else value


class TestSqlite(TypesSuite):
    """SQLite has whole numbers, floats without NaN, texts and bytes."""

    @pytest.fixture
    def new_place(self, tmp_path: Path) -> NewPlace:
        with PLACES["sqlite"](tmp_path) as new:
            return new

    def stored(self, value: Any, kind: pa.DataType) -> Any:
        if isinstance(value, bool):
            return int(value)
        if isinstance(value, float) and math.isnan(value):
            return None
        if isinstance(value, datetime.datetime) and value.tzinfo is not None:
            return f"{value.astimezone(datetime.UTC).replace(tzinfo=None)}Z"
        if isinstance(value, datetime.time):
            return value.isoformat("microseconds")
        if isinstance(value, datetime.date | Decimal):
            return str(value)
        if isinstance(value, list | dict):
            return json.dumps(value, separators=(",", ":"))
        return value
