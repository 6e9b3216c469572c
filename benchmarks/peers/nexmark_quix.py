"""Queries of Nexmark in Quix Streams: a Python function a record of a topic, whose key is that of the query; state in RocksDB with a
changelog topic, a commit each CHECKPOINT_MS, for state by transactions.

    python nexmark_quix.py QUERY FOLDER RESULT CHECKPOINT_MS BROKER TOPIC ROWS        RESULT: a file for the rows as NDJSON, or "-"

A last record behind the ROWS, an hour later, closes the windows. Started by nexmark_peers.py in an environment of its own.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from nexmark_rows import RUNNING, STATELESS, Output, Row, best_of, running, stateless
from quixstreams import Application, State
from quixstreams.dataframe.windows import Count, Max, Min, Reduce

query, folder, result, checkpoint_ms, broker, topic, rows = sys.argv[1:]
TEN_MS, HOUR_MS = 10_000, 3_600_000
Q0 = stateless("q0", Path(folder))
KEY_AND_STEP = running(query)
output = Output(result)
count = 0


def event_time(value: Any, headers: Any, timestamp: float, kind: Any) -> int:
    if query != "q12":
        return int(value["dateTime"])
    return int(time.time() * 1000) + (0 if value["auction"] else HOUR_MS)


def begun(bid: Row) -> None:
    """Ends the application with the last record."""
    global count
    output.begin()
    count += 1
    if count > int(rows):
        app.stop()


def is_bid(bid: Row) -> bool:
    return bool(bid["auction"])


def write_best(window: Row) -> None:
    output.write(*map(Q0, window["best"][1]))


def write_count(window: Row) -> None:
    """Of a window, or of a session."""
    start, end = (window["first"], window["last"] + TEN_MS) if query == "q11" else (window["start"], window["end"])
    output.write({"bidder": window["bidder"], "bid_count": window["n"], "starttime": start, "endtime": end})


def update(bid: Row, state: State) -> None:
    key = KEY_AND_STEP[0](bid)
    row = KEY_AND_STEP[1](state.get(key), bid)
    state.set(key, row)
    output.write(row, key=key)


with tempfile.TemporaryDirectory(prefix="sabot-bench-") as state_dir:
    app = Application(
        broker,
        consumer_group=f"{topic}-{time.time_ns()}",  # one that no earlier run had: nothing to restore
        auto_offset_reset="earliest",
        state_dir=state_dir,
        loglevel="WARNING",
        commit_interval=int(checkpoint_ms) / 1000,
        processing_guarantee="at-least-once" if query in STATELESS else "exactly-once",
    )
    bids = app.dataframe(app.topic(topic, value_deserializer="json", timestamp_extractor=event_time)).update(begun)
    if query in STATELESS:
        found = bids.filter(is_bid).apply(stateless(query, Path(folder))).filter(lambda row: row is not None)
        found.update(output.write)
    elif query in RUNNING:
        bids.filter(is_bid).update(update, stateful=True)
    elif query == "q7":
        best = Reduce(lambda best, bid: best_of(best, bid, bid["price"]), lambda bid: (bid["price"], [bid]))
        bids.tumbling_window(TEN_MS).agg(best=best).final(closing_strategy="partition").update(write_best)
    else:
        windows = bids.session_window(TEN_MS - 1) if query == "q11" else bids.tumbling_window(TEN_MS)
        counts = windows.agg(n=Count(), first=Min("dateTime"), last=Max("dateTime"), bidder=Max("bidder"))
        counts.final(closing_strategy="partition").update(write_count)
    app.run()
output.end()
