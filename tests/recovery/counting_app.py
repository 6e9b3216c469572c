"""The program that the kill -9 tests run: counts the lines of an NDJSON file per key in keyed state.

    python counting_app.py DIRECTORY memory|rocksdb [KEY_OF_THE_AGENT]

In DIRECTORY: in.ndjson is read; out.ndjson gets {"k", "count"} for each line; trace.ndjson gets the number of each
line as its call begins, at once, so that it shows what was read again; `slow` (a file) makes each call take a while.
"""

import asyncio
import os
import sys
from pathlib import Path

from sabot import App
from sabot.connectors.files import NdjsonSink, NdjsonSource

directory, kind = Path(sys.argv[1]), sys.argv[2]
keyed = sys.argv[3] if len(sys.argv) > 3 else None
trace = os.open(directory / "trace.ndjson", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
slow = (directory / "slow").exists()

app = App(
    "counting",
    broker="memory://",
    state="memory" if kind == "memory" else f"rocksdb://{directory / 'state'}",
    checkpoint_dir=directory / "checkpoints",
    checkpoint_interval=0.1,
)


@app.agent(
    NdjsonSource(directory / "in.ndjson"),
    key=keyed,
    sink=NdjsonSink(directory / "out.ndjson"),
    concurrency=4 if keyed else 1,
)
async def count(ctx):
    os.write(trace, b"%d\n" % ctx.message["n"])
    name = "count" if keyed else f"count-{ctx.message['k']}"
    n = (await ctx.state().get(name) or 0) + 1
    await ctx.state().put(name, n)
    if slow:
        await asyncio.sleep(0.001)
    return {"k": ctx.message["k"], "count": n}


if __name__ == "__main__":
    app.main()
