"""Stores on servers: tables in PostgreSQL, which other programs may read; signals, a cache, actions and hot state in
Redis.
"""
