"""The app of `sabot demo orders`.

customers (table) ─┐
                   ├─▶ join ─▶ sums by country ─▶ DuckDB
orders (table) ────┘
"""

from pathlib import Path

import sabot
from sabot.app import App
from sabot.connectors.postgres import PostgresChanges
from sabot.connectors.sql import SqlSink

SUMS = "sums.duckdb"


def build(folder: Path, url: str, schema: str) -> App:
    """Returns the app. `folder`: of its state and its result. `url`, `schema`: the place of the two tables."""
    app = App("orders-demo", state=str(folder / "state"), checkpoint_interval="300ms")
    customers = app.table(PostgresChanges(url, f"{schema}.customers", slot=f"{schema}_customers"))
    orders = app.table(PostgresChanges(url, f"{schema}.orders", slot=f"{schema}_orders"))
    placed = orders.join(customers.rename({"id": "customer"}), on="customer")
    sums = placed.group_by("country").aggregate(orders=sabot.count(), amount=sabot.sum("amount"))
    sums.upsert("country").to(SqlSink(f"duckdb:{folder / SUMS}", table="sums"))
    return app
