"""The programs of kafka_ingest.py in Quix Streams: a Python function a record; windows in its RocksDB state, exactly once by transactions.

Started by ingest_peers.py in an environment of its own; ends by SIGTERM.
"""

import sys
import time
from typing import Any

from quixstreams import Application
from quixstreams.dataframe.windows import Count, Max, Sum

kind, broker, in_topic, out_topic, folder, rows, minute_ms, disorder_ms = sys.argv[1:]
app = Application(
    broker,
    consumer_group=out_topic,  # one that no earlier run had: nothing to restore
    auto_offset_reset="earliest",
    state_dir=folder,
    loglevel="WARNING",
    commit_interval=1.0,
    processing_guarantee="exactly-once" if kind == "windows" else "at-least-once",
)
count, amount = 0, 0.0


def started(value: Any) -> None:
    global count
    if count == 0:
        print(f"first {time.time()} {time.process_time()}", flush=True)
    count += 1


def add(value: dict[str, Any]) -> None:
    global amount
    started(value)
    account, ts = value["account"], value["ts"]  # noqa: F841 - the three columns
    amount += value["amount"]
    if count == int(rows):
        print(f"last {time.time()} {time.process_time()} {amount!r}", flush=True)


def event_time(value: Any, headers: Any, timestamp: float, kind: Any) -> int:
    started(value)
    return int(value["ts"])


def windowed(result: dict[str, Any], key: bytes, timestamp: int, headers: Any) -> dict[str, Any]:
    return {
        "account": key.decode(),
        "window_start": result["start"],
        **{name: result[name] for name in ("n", "total", "biggest")},
    }


if kind == "decode":
    app.dataframe(app.topic(in_topic, value_deserializer="json")).update(add)
else:
    stream = app.dataframe(app.topic(in_topic, value_deserializer="json", timestamp_extractor=event_time))
    windows = stream.tumbling_window(int(minute_ms), grace_ms=int(disorder_ms))
    closed = windows.agg(n=Count(), total=Sum("amount"), biggest=Max("amount")).final(closing_strategy="partition")
    closed.apply(windowed, metadata=True).to_topic(app.topic(out_topic, value_serializer="json"))
app.run()
