"""Rows that are made by rules, at a rate: the connectors datagen and faker of SQL, for a script that has no source yet."""

from sabot.connectors.datagen.source import GeneratedSource

__all__ = ["GeneratedSource"]
