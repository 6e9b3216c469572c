"""Queries of Nexmark in Faust (faust-streaming): a Python coroutine over the records of a topic, whose key is that of the query; tables in
memory with a changelog topic; orjson and uvloop.

    python nexmark_faust.py QUERY FOLDER RESULT CHECKPOINT_MS BROKER TOPIC ROWS        RESULT: a file for the rows as NDJSON, or "-"

Windows close by the clock of the wall alone there, so each bid gives its window as it is then, and the last row of a window is its
result. Started by nexmark_peers.py in an environment of its own; ends behind the ROWS.
"""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import mode.loop

mode.loop.use("uvloop")

import faust  # noqa: E402 - the loop is chosen before
from nexmark_rows import RUNNING, STATELESS, Output, best_of, running, stateless  # noqa: E402

query, folder, result, checkpoint_ms, broker, topic, rows = sys.argv[1:]
TEN_SECONDS = 10
output = Output(result)
place = tempfile.TemporaryDirectory(prefix="sabot-bench-")
app = faust.App(
    f"{topic}-{time.time_ns()}",  # a name that no earlier run had: nothing to restore
    broker=f"kafka://{broker}",
    store="memory://",
    datadir=place.name,
    topic_partitions=1,
    topic_disable_leader=True,
    web_enabled=False,
    broker_commit_interval=int(checkpoint_ms) / 1000,
    worker_redirect_stdouts=False,
    stream_wait_empty=False,
)
bids = app.topic(topic, key_type=bytes, value_serializer="json")
if query in STATELESS:
    row_of = stateless(query, Path(folder))

    def take(bid):
        row = row_of(bid)
        if row is not None:
            output.write(row)

elif query in RUNNING:
    table = app.Table("rows", partitions=1)
    key_of, next_row = running(query)

    def take(bid):
        key = key_of(bid)
        table[key] = row = next_row(table.get(key), bid)
        output.write(row, key=key)

elif query == "q7":
    tens = app.Table("best", default=lambda: (0, []), partitions=1).tumbling(TEN_SECONDS)
    tens = tens.relative_to(lambda event: event.value["dateTime"] / 1000)
    row_of = stateless("q0", Path(folder))

    def take(bid):
        window = tens["all"]
        window_best = best_of(window.value(), row_of(bid), bid["price"])
        tens["all"] = window_best
        output.write(*window_best[1], key=bid["dateTime"] // 10_000)

else:
    tens = app.Table("counts", default=int, partitions=1).tumbling(TEN_SECONDS).relative_to(lambda event: time.time())

    def take(bid):
        bidder = bid["bidder"]
        count = tens[bidder].value()
        tens[bidder] = count + 1
        start = time.time() // TEN_SECONDS * TEN_SECONDS * 1000
        row = {"bidder": bidder, "bid_count": count + 1, "starttime": int(start), "endtime": int(start) + 10_000}
        output.write(row, key=(bidder, start))


@app.agent(bids)
async def nexmark(stream):
    count = 0
    async for bid in stream:
        count += 1
        if count > int(rows):
            continue
        output.begin()
        take(bid)
        if count == int(rows):
            output.end()
            os.kill(os.getpid(), signal.SIGTERM)


sys.argv = [sys.argv[0], "worker", "-l", "info", "--without-web"]
with place:
    app.main()
