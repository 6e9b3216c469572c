"""kill -9 of `sabot run shop.sql` twice, and then a start with another text: each answer is there once.

The script has a join and an aggregate. The changed one has a statement more before them, which reads a table more, in
other places of the text, with other aliases and a column more.
"""

import asyncio
import sqlite3
import sys
from pathlib import Path

import pytest

from tools.agent_tools import manifests, read_lines, until, write_lines

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from tools.fault_tools import HOLDING, lines_of, running

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("warm_children")]

ROWS, CUSTOMERS = 300_000, 11
TABLES = """
SET 'pipeline.name' = 'shop';
CREATE TABLE orders (id BIGINT, customer STRING, amount BIGINT)
    WITH ('connector' = 'files', 'path' = 'orders.ndjson', 'format' = 'json');
CREATE TABLE paid (id BIGINT, price BIGINT) WITH ('connector' = 'files', 'path' = 'paid.ndjson', 'format' = 'json');
CREATE TABLE pairs (id BIGINT, amount BIGINT, price BIGINT)
    WITH ('connector' = 'files', 'path' = 'pairs.ndjson', 'format' = 'json', 'sink.delivery-guarantee' = 'exactly-once');
CREATE TABLE totals (customer STRING, n BIGINT, total BIGINT, PRIMARY KEY (customer) NOT ENFORCED)
    WITH ('connector' = 'sqlite', 'url' = 'sqlite:totals.db', 'table-name' = 'totals');
"""
FIRST = f"""{TABLES}
INSERT INTO pairs SELECT o.id, o.amount, p.price FROM orders o JOIN paid p ON o.id = p.id;
INSERT INTO totals SELECT customer, COUNT(*) AS n, SUM(amount) AS total FROM orders GROUP BY customer;
"""
CHANGED = f"""{TABLES}
CREATE TABLE refunds (id BIGINT, customer STRING, amount BIGINT)
    WITH ('connector' = 'files', 'path' = 'refunds.ndjson', 'format' = 'json');
CREATE TABLE refunded (customer STRING, n BIGINT, total BIGINT, PRIMARY KEY (customer) NOT ENFORCED)
    WITH ('connector' = 'sqlite', 'url' = 'sqlite:totals.db', 'table-name' = 'refunded');

INSERT INTO refunded SELECT customer, COUNT(*) AS n, SUM(amount) AS total FROM refunds GROUP BY customer;

-- the sums of each customer
INSERT INTO totals
SELECT x.customer, COUNT(*) AS number, SUM(x.amount) AS total
FROM orders AS x
GROUP BY x.customer;

INSERT INTO pairs
SELECT a.id, a.amount, b.price
FROM orders AS a
JOIN paid AS b ON a.id = b.id;
"""
REGROUPED = FIRST.replace("SELECT customer, COUNT(*)", "SELECT CAST(id AS STRING), COUNT(*)").replace(
    "GROUP BY customer", "GROUP BY id"
)


@pytest.mark.slow  # some five processes
@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["one process", "two workers"])
async def test_a_script_that_was_killed_goes_on_with_another_text(tmp_path, workers):
    orders = [{"id": i, "customer": f"c{i % CUSTOMERS}", "amount": i % 1000} for i in range(ROWS)]
    paid = [{"id": (i * 7919) % ROWS, "price": i} for i in range(ROWS)]
    refunds = [{"id": i, "customer": f"c{i % 3}", "amount": i} for i in range(1000)]
    for name, rows in (("orders", orders), ("paid", paid), ("refunds", refunds)):
        write_lines(tmp_path / f"{name}.ndjson", rows)
    script, log = tmp_path / "shop.sql", tmp_path / "log"
    script.write_text(FIRST)
    checkpoints = tmp_path / "state" / "checkpoints"
    words = ["shop.sql", "--state", "state", "--checkpoint-interval", "0.02", *workers]
    for _ in range(2):
        known = manifests(checkpoints)
        with running(log, *words, folder=tmp_path, program=HOLDING) as process:
            await checkpoint_of(process, checkpoints, known)
            assert process.poll() is None, lines_of(log)
            process.kill()
            process.wait()
    script.write_text(REGROUPED)
    with running(log, *words, folder=tmp_path) as process:
        assert await asyncio.to_thread(process.wait, 60) == 1, lines_of(log)
    said = lines_of(log)
    row = 1 + FIRST[: FIRST.index("INSERT INTO totals SELECT")].count("\n")
    assert f"(at shop.sql:{row}:20)" in said, "the error does not say where the GROUP BY is"
    assert "--drop totals.group-1" in said

    script.write_text(CHANGED)
    with running(log, *words, folder=tmp_path) as process:
        assert await asyncio.to_thread(process.wait, 150) == 0, lines_of(log)

    prices = {row["id"]: row["price"] for row in paid}
    found = read_lines(tmp_path / "pairs.ndjson")
    assert len(found) == ROWS, "a pair came twice, or is missing"
    assert {(row["id"], row["amount"], row["price"]) for row in found} == {
        (row["id"], row["amount"], prices[row["id"]]) for row in orders
    }
    assert totals(tmp_path, "totals") == sums(orders)
    assert totals(tmp_path, "refunded") == sums(refunds)


async def checkpoint_of(process, checkpoints: Path, known: set[str]) -> None:
    await until(lambda: process.poll() is not None or manifests(checkpoints) - known, "a checkpoint")


def totals(folder: Path, table: str) -> dict[str, tuple[int, int]]:
    with sqlite3.connect(folder / "totals.db") as database:
        return {row[0]: row[1:] for row in database.execute(f"SELECT customer, n, total FROM {table}")}


def sums(rows: list[dict[str, object]]) -> dict[object, tuple[int, int]]:
    found: dict[object, tuple[int, int]] = {}
    for row in rows:
        n, total = found.get(row["customer"], (0, 0))
        found[row["customer"]] = n + 1, total + int(str(row["amount"]))
    return found
