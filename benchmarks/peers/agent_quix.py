"""The record agent in Quix Streams: its RocksDB state with its changelog topic, keyed by the key of the record.

Started by record_agent_peers.py; ends by SIGTERM.
"""

import sys
import time

from quixstreams import Application, State

broker, in_topic, out_topic, folder = sys.argv[1:]
# the group is one that no earlier run had: nothing to restore
app = Application(broker, consumer_group=out_topic, auto_offset_reset="earliest", state_dir=folder, loglevel="WARNING")
first = True


def count(payment: dict, state: State) -> dict:  # type: ignore[type-arg]
    global first
    if first:
        first = False
        print(f"first {time.time()}", flush=True)
    seen = state.get("seen", 0) + 1
    state.set("seen", seen)
    return {"account": payment["account"], "seen": seen}


payments = app.dataframe(app.topic(in_topic, value_deserializer="json"))
payments.apply(count, stateful=True).to_topic(app.topic(out_topic, value_serializer="json"))
app.run()
