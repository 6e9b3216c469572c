"""Programs whose receiver refuses a row, for runs that are killed at each of their steps."""

import json
import sqlite3
from pathlib import Path

from sabot import App, NdjsonSink, SqlSink

REFUSED = [7, 100, 101]


def prepare(directory: Path) -> None:
    with sqlite3.connect(directory / "shop.db") as database:
        database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, n INTEGER CHECK (n < 100 AND n <> 7))")


def orders_to_sqlite(directory: Path) -> App:
    app = App("orders", checkpoint_dir=directory / "checkpoints", checkpoint_interval="20ms", restart="none")
    rows = app.stream(
        [{"id": n, "n": n} for n in range(102)], dead_letter=NdjsonSink(str(directory / "letters.ndjson"))
    )
    rows.to(SqlSink(f"sqlite://{directory / 'shop.db'}", "orders"))
    return app


def found(directory: Path) -> tuple[list[int], list[int]]:
    """The rows of the table, and those of the dead letters: a crash may repeat a letter, which then has the same id."""
    with sqlite3.connect(directory / "shop.db") as database:
        rows = [n for (n,) in database.execute("SELECT n FROM orders ORDER BY n")]
    letters = [json.loads(line) for line in (directory / "letters.ndjson").read_text().splitlines()]
    by_id = {dict(json.loads(each["headers"]))["sabot.row"]: json.loads(each["payload"])["n"] for each in letters}
    return rows, sorted(by_id.values())
