"""A lake of Iceberg in a folder, and its rows as pyiceberg lists the files and DuckDB reads them."""

from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
from pyiceberg.catalog import load_catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.table import Table


def lake_of(folder: Path) -> dict[str, str]:
    """The properties of a catalog in a SQLite file of the folder."""
    return {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"{folder}/lake"}


def table_of(catalog: dict[str, str], name: str) -> Table | None:
    """The table as pyiceberg has it, or None."""
    with closing(load_catalog("default", **catalog)) as opened:
        try:
            return opened.load_table(name)
        except NoSuchTableError:
            return None


def rows_in_lake(catalog: dict[str, str], name: str) -> list[dict[str, Any]]:
    """The rows; none where the table is missing."""
    table = table_of(catalog, name)
    return [] if table is None else rows_of(table)


def rows_of(table: Table) -> list[dict[str, Any]]:
    """The rows, by pyiceberg's list of the files and DuckDB's reader of Parquet."""
    files = [task.file.file_path for task in table.scan().plan_files()]
    if not files:
        return []
    return (
        duckdb.sql("SELECT * FROM read_parquet($1, union_by_name = true, hive_partitioning = false)", params=[files])
        .to_arrow_table()
        .to_pylist()
    )
