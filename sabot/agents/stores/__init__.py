"""Stores on servers. In PostgreSQL: tables that other programs may read. In Redis: signals, a cache, actions and hot
state.
"""
