"""Stores on servers: tables in PostgreSQL, which other programs may read; signals, a cache and actions in Redis."""
