"""Changes of a table of PostgreSQL as a source: its rows at the start, and then each change, by logical replication."""

from sabot.connectors.postgres.changes import PostgresChanges

__all__ = ["PostgresChanges"]
