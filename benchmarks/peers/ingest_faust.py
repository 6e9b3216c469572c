"""Programs of kafka_ingest.py in Faust (faust-streaming): a Python coroutine over records, a windowed table in memory with its changelog
topic, at least once; orjson and uvloop.

It closes windows by the clock of the wall, not by the times of records, so each record gives its window as it is then: the last of a
window is its result. Started by ingest_peers.py in an environment of its own; ends by SIGTERM.
"""

import sys
import time

import mode.loop

mode.loop.use("uvloop")

import faust  # noqa: E402 - the loop is chosen before

kind, broker, in_topic, out_topic, folder, rows, minute_ms, disorder_ms = sys.argv[1:]
app = faust.App(
    out_topic,  # a name that no earlier run had: nothing to restore
    broker=f"kafka://{broker}",
    store="memory://",
    datadir=folder,
    topic_partitions=4,
    topic_disable_leader=True,
    web_enabled=False,
    worker_redirect_stdouts=False,
    producer_linger=0.005,
    stream_wait_empty=False,
)
minute = int(minute_ms) / 1000
results = app.topic(out_topic, key_type=bytes, value_serializer="json")


if kind == "windows":
    table = app.Table("windows", default=lambda: (0, 0.0, float("-inf")), partitions=4)
    windows = table.tumbling(minute).relative_to(lambda event: event.value["ts"] / 1000)
count, amount = 0, 0.0


@app.agent(app.topic(in_topic, key_type=bytes, value_serializer="json"))
async def ingest(stream):  # type: ignore[no-untyped-def]
    global count, amount
    async for row in stream:
        if count == 0:
            print(f"first {time.time()} {time.process_time()}", flush=True)
        count += 1
        account, spent, ts = row["account"], row["amount"], row["ts"]
        if kind == "decode":
            amount += spent
            if count == int(rows):
                print(f"last {time.time()} {time.process_time()} {amount!r}", flush=True)
        else:
            window = windows[account]
            n, total, biggest = window.value()
            n, total, biggest = n + 1, total + spent, max(biggest, spent)
            windows[account] = (n, total, biggest)
            row = {"account": account, "window_start": ts - ts % int(minute_ms), "n": n, "total": total}
            await results.send(key=account.encode(), value={**row, "biggest": biggest})


sys.argv = [sys.argv[0], "worker", "-l", "info", "--without-web"]
app.main()
