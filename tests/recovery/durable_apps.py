"""Durable agents that are crashed at every step: what their tools have done stands in a file, a line for each call.

Those of records are a chain of two, with state, so jobs are handed on too. That of batches gets its rows in other batches after each crash.
"""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa

from sabot import App, NdjsonSink, SqlSink
from sabot.engine.calls.effects import Reconciled
from sabot.llm import tool
from sabot.steps import step
from sabot.testing import BARRIER, END, ScriptedSource

ORDERS = 6
SCRIPT = [
    [{"id": n, "customer": "ab"[n % 2]} for n in range(3)],
    BARRIER,
    [{"id": n, "customer": "ab"[n % 2]} for n in range(3, ORDERS)],
    END,
]


def done(directory: Path, name: str) -> list[str]:
    """The calls that were made, in order."""
    path = directory / name
    return path.read_text().splitlines() if path.exists() else []


def do(directory: Path, name: str, line: str) -> None:
    """A call: a line more."""
    with step("call", line):
        file = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(file, f"{line}\n".encode())
        os.close(file)


def build(directory: Path, charge: Any, **options: Any) -> App:
    app = App("shop", state=str(directory / "state"), checkpoint_interval=3600)
    columns = pa.schema([("id", pa.int64()), ("half", pa.string()), ("n", pa.int64())])
    sink = SqlSink(f"sqlite:///{directory / 'out.db'}", table="charged", schema=columns)
    options |= {
        "key": "customer",
        "durable": True,
        "concurrency": 2,
        "dead_letter": NdjsonSink(str(directory / "bad.ndjson")),
    }

    @app.agent(sink=sink, **options)
    async def second(ctx: Any) -> Any:
        n = (await ctx.state().get("n") or 0) + 1
        await ctx.state().put("n", n)
        await ctx.call(charge, f"{ctx.message['id']} {ctx.message['half']}")
        return {"id": ctx.message["id"], "half": ctx.message["half"], "n": n}

    @app.agent(ScriptedSource(SCRIPT), sink=second, job_id="id", **options)
    async def first(ctx: Any) -> Any:
        await ctx.call(charge, f"{ctx.message['id']} begins")
        for half in ("one", "two"):
            yield {**ctx.message, "half": half}

    return app


def build_batches(directory: Path, charge: Any, **options: Any) -> App:
    """Two calls a batch, whose lines name its rows."""
    with (directory / "lives.txt").open("a") as lives:
        lives.write("a life\n")
    first, second = ([{"id": n} for n in ids] for ids in (range(3), range(3, ORDERS)))
    script = [first, BARRIER, second, END]
    if len(done(directory, "lives.txt")) > 1:  # the same places, in other batches
        script = [first[:1], first[1:], BARRIER, second[:2], second[2:], END]
    app = App("shop", state=str(directory / "state"), checkpoint_interval=3600)
    columns = pa.schema([("id", pa.int64()), ("said", pa.string())])
    sink = SqlSink(f"sqlite:///{directory / 'out.db'}", table="charged", schema=columns)
    letters = NdjsonSink(str(directory / "bad.ndjson"))

    @app.agent(ScriptedSource(script), sink=sink, batch=True, durable=True, dead_letter=letters, **options)
    async def pay(batch: pa.RecordBatch, ctx: Any) -> Any:
        names = ",".join(map(str, batch.column("id").to_pylist()))
        await ctx.call(charge, f"begins {names}")
        await ctx.call(charge, f"pays {names}")
        return batch.append_column("said", pa.array(["paid"] * batch.num_rows))

    return app


def looked_up(directory: Path) -> Any:
    """A tool that says what a crash has left in doubt."""

    def look(effect: Any, line: str) -> Any:
        return Reconciled.DONE if line in done(directory, "calls.txt") else Reconciled.NOT_DONE

    @tool(reconcile=look)
    def charge(line: str) -> None:
        do(directory, "calls.txt", line)

    return charge


def in_doubt(directory: Path) -> Any:
    """A tool that fails where nobody can say whether it was called."""

    @tool(effect="unsafe", in_doubt="fail")
    def charge(line: str) -> None:
        do(directory, "calls.txt", line)

    return charge


def reconciled(directory: Path) -> App:
    """What a crash leaves in doubt is looked up: each call is made once, and all is as if nothing had happened."""
    return build(directory, looked_up(directory))


def unsafe(directory: Path) -> App:
    """Nobody can say what a crash has left in doubt: the job fails, and its record is a dead letter."""
    return build(directory, in_doubt(directory), on_error="skip")


def reconciled_batches(directory: Path) -> App:
    """As `reconciled`."""
    return build_batches(directory, looked_up(directory))


def unsafe_batches(directory: Path) -> App:
    """As `unsafe`: all rows of the batch are dead letters."""
    return build_batches(directory, in_doubt(directory), on_error="skip")
