"""The record agent in Faust (faust-streaming): a table in memory with its changelog topic, orjson and uvloop.

Started by record_agent_peers.py; ends by SIGTERM.
"""

import sys
import time

import mode.loop

mode.loop.use("uvloop")

import faust  # noqa: E402 - the loop is chosen before

broker, in_topic, out_topic, folder, linger_ms = sys.argv[1:]
app = faust.App(
    out_topic,  # a name that no earlier run had: nothing to restore
    broker=f"kafka://{broker}",
    store="memory://",
    datadir=folder,
    topic_partitions=1,
    topic_disable_leader=True,
    web_enabled=False,
    worker_redirect_stdouts=False,
    producer_linger=int(linger_ms) / 1000,  # its default is 0
)
results = app.topic(out_topic, key_type=bytes, value_serializer="json")
seen = app.Table("seen", default=int, partitions=1)
first = True


@app.agent(app.topic(in_topic, key_type=bytes, value_serializer="json"))
async def count(payments):  # type: ignore[no-untyped-def]
    global first
    async for key, payment in payments.items():
        if first:
            first = False
            print(f"first {time.time()}", flush=True)
        account = payment["account"]
        seen[account] += 1
        await results.send(key=key, value={"account": account, "seen": seen[account]})


# "warn" would log at DEBUG inside, for its spinner
sys.argv = [sys.argv[0], "worker", "-l", "info", "--without-web"]
app.main()
