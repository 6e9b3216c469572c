"""A sink for a table of SQLite, DuckDB or PostgreSQL, exactly once: the rows and the track's token are in one transaction."""

from sabot.connectors.sql.sink import SqlSink

__all__ = ["SqlSink"]
