"""A durable batch agent: what one effect for a whole batch costs a row, beside one that is not durable, and beside one effect a record.

    python benchmarks/agents/durable_batches.py --rows 1000000 --records 10000

Rows of --bytes are read from an NDJSON file by an agent that hands the columns of each batch to a tool that does nothing, and is over when
the file is. The journal is an SQLite database in a temporary folder, and a checkpoint is taken each second.

    plain     a batch agent that calls the tool itself
    durable   a durable one: BEGIN holds the batch, and the intent of the unsafe effect is committed before the call
    records   a durable record agent, an unsafe effect a record, 64 at a time; --records of the rows

    rows_per_s, calls   of each, start and stop included
    fsync_ms            4 KiB appended to a file in the same folder and fsynced

Checked: each row is in one call, and the sum over a column. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

sys.path.insert(0, str(Path(__file__).parent))
from journal import fsync_ms

from sabot import App
from sabot.connectors.files import NdjsonSource
from sabot.llm import tool

SCHEMA = {"id": "int64", "account": "string", "amount": "int64", "note": "string"}


class Calls:
    """What the tool was given."""

    def __init__(self) -> None:
        self.calls = self.rows = self.total = 0

    def take(self, rows: int, total: int) -> int:
        self.calls += 1
        self.rows += rows
        self.total += total
        return self.rows


def write(path: Path, rows: int, nbytes: int) -> int:
    """The rows, of about so many bytes each -> the sum of their amounts."""
    note = "x" * max(0, nbytes - 60)
    with path.open("w") as file:
        for number in range(rows):
            file.write(f'{{"id":{number},"account":"acc{number % 1000}","amount":{number % 97},"note":"{note}"}}\n')
    return sum(number % 97 for number in range(rows))


def build(mode: str, folder: Path, calls: Calls) -> App:
    app = App("batches", state=str(folder / mode), checkpoint_interval="1s")
    source = NdjsonSource(str(folder / f"{mode}.ndjson"))

    @tool(effect="unsafe")
    async def pay(rows: pa.RecordBatch) -> int:
        return calls.take(rows.num_rows, pc.sum(rows.column("amount")).as_py())

    @tool(effect="unsafe")
    async def pay_one(amount: int) -> int:
        return calls.take(1, amount)

    async def durable(batch: pa.RecordBatch, ctx: Any) -> None:
        await ctx.call(pay, batch.select(["id", "amount"]))

    async def plain(batch: pa.RecordBatch, ctx: Any) -> None:
        calls.take(batch.num_rows, pc.sum(batch.column("amount")).as_py())

    async def records(ctx: Any) -> None:
        await ctx.call(pay_one, ctx.message["amount"])

    if mode == "records":
        app.agent(source, durable=True, concurrency=64)(records)
    elif mode == "durable":
        app.agent(source, batch=True, schema=SCHEMA, durable=True)(durable)
    else:
        app.agent(source, batch=True, schema=SCHEMA)(plain)
    return app


def measure(mode: str, rows: int, folder: Path, nbytes: int) -> dict[str, int]:
    """Runs the app to its end. Raises AssertionError where a row is missing, or came twice."""
    calls, total = Calls(), write(folder / f"{mode}.ndjson", rows, nbytes)
    app = build(mode, folder, calls)
    began = time.perf_counter()
    asyncio.run(app.run())
    seconds = time.perf_counter() - began
    assert (calls.rows, calls.total) == (rows, total), f"{mode}: {calls.rows} rows, a sum of {calls.total}"
    return {"rows_per_s": round(rows / seconds), "calls": calls.calls}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--records", type=int, default=10_000, help="rows of the record agent")
    parser.add_argument("--bytes", type=int, default=150, help="of a row")
    options = parser.parse_args()
    outcome: dict[str, Any] = {"benchmark": "durable_batches", "rows": options.rows, "bytes": options.bytes}
    with tempfile.TemporaryDirectory(prefix="sabot-bench-") as name:
        folder = Path(name)
        outcome["fsync_ms"] = round(fsync_ms(folder), 3)
        for mode in ("plain", "durable", "records"):
            rows = options.records if mode == "records" else options.rows
            outcome[mode] = measure(mode, rows, folder, options.bytes)
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
