"""Queries of Nexmark in Bytewax: a Python function a record, over lines of JSON; it ends with the files. Snapshots of the state.

    python nexmark_bytewax.py QUERY FOLDER RESULT CHECKPOINT_MS        RESULT: a file for the rows as NDJSON, or "-"

The watermark goes by the times of the events alone (`now_getter`), so that what is late does not depend on how fast the files are read.
A key has a watermark of its own there: windows of an auction close with its own next bid, or at the end. Therefore the best of all
auctions of a window (q5) is known at the end only, by `fold_final`. Started by nexmark_peers.py in an environment of its own.
"""

import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import bytewax.operators as op
import orjson
from bytewax.connectors.files import FileSource
from bytewax.dataflow import Dataflow
from bytewax.operators import windowing
from bytewax.operators.windowing import EventClock, SessionWindower, SlidingWindower, SystemClock, TumblingWindower
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main
from nexmark_rows import RUNNING, STATELESS, Output, Row, best_of, running, stateless

query, folder, result, checkpoint_ms = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TEN, TWO = timedelta(seconds=10), timedelta(seconds=2)
ALL = "all"
output = Output(result)
flow = Dataflow("nexmark")


def begun(line: str) -> Row:
    output.begin()
    return orjson.loads(line)


class Rows(StatelessSinkPartition):
    def write_batch(self, items: list) -> None:
        for item in items:
            if query in RUNNING:
                output.write(item[1], key=item[0])
            else:
                output.write(item)


class Sink(DynamicSink):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> Rows:
        return Rows()


def read(kind: str):
    return op.map(f"decode_{kind}", op.input(kind, flow, FileSource(folder / f"{kind}.ndjson")), begun)


def clock(time_of: Callable):
    return EventClock(
        lambda row: EPOCH + timedelta(milliseconds=time_of(row)),
        timedelta(seconds=1),
        now_getter=lambda: EPOCH,
        to_system_utc=lambda when: None,
    )


def q3():
    people = op.filter("states", read("person"), lambda row: row["state"] in ("OR", "ID", "CA"))
    auctions = op.filter("category", read("auction"), lambda row: row["category"] == 10)
    people = op.map("person_key", people, lambda row: (str(row["id"]), row))
    auctions = op.map("seller_key", auctions, lambda row: (str(row["seller"]), row))

    def join(state, row):
        """state: the person, or None, and the ids of auctions that wait for one."""
        person, waiting = state or (None, [])
        if "seller" not in row:
            person = {name: row[name] for name in ("name", "city", "state")}
            return (person, []), [{**person, "id": number} for number in waiting]
        if person is None:
            return (None, [*waiting, row["id"]]), []
        return (person, []), [{**person, "id": row["id"]}]

    return op.key_rm("values", op.stateful_flat_map("join", op.merge("both", people, auctions), join))


def q5():
    keyed = op.map("key", read("bid"), lambda bid: (str(bid["auction"]), bid["dateTime"]))
    hops = SlidingWindower(length=TEN, offset=TWO, align_to=EPOCH)
    counts = windowing.fold_window(
        "hops", keyed, clock(lambda ms: ms), hops, int, lambda n, ms: n + 1, lambda a, b: a + b
    )
    windows = op.map("window", counts.down, lambda item: (str(item[1][0]), (int(item[0]), item[1][1])))
    best = op.fold_final("best", windows, lambda: (0, []), lambda best, found: best_of(best, *found))
    return op.flat_map("rows", best, lambda item: [{"auction": row, "num": item[1][0]} for row in item[1][1]])


def q7():
    keyed = op.map("key", read("bid"), lambda bid: (ALL, bid))
    tens = TumblingWindower(length=TEN, align_to=EPOCH)
    highest = windowing.fold_window(
        "highest",
        keyed,
        clock(lambda bid: bid["dateTime"]),
        tens,
        lambda: (0, []),
        lambda best, bid: best_of(best, bid, bid["price"]),
        lambda a, b: max(a, b, key=lambda best: best[0]) if a[0] != b[0] else (a[0], a[1] + b[1]),
    )
    return op.flat_map("rows", highest.down, lambda item: [stateless("q0", folder)(bid) for bid in item[1][1][1]])


def q8():
    people = op.map("person_key", read("person"), lambda row: (str(row["id"]), (row["dateTime"], row["name"])))
    sellers = op.map("seller_key", read("auction"), lambda row: (str(row["seller"]), (row["dateTime"], None)))
    tens = TumblingWindower(length=TEN, align_to=EPOCH)
    both = windowing.fold_window(
        "both",
        op.merge("streams", people, sellers),
        clock(lambda item: item[0]),
        tens,
        lambda: (None, False),
        lambda state, item: (item[1] or state[0], state[1] or item[1] is None),
        lambda a, b: (a[0] or b[0], a[1] or b[1]),
    )

    def row(item):
        key, (window, (name, opened)) = item
        return {"id": int(key), "name": name, "starttime": window * 10_000} if name and opened else None

    return op.filter_map("rows", both.down, row)


def q11():
    keyed = op.map("key", read("bid"), lambda bid: (str(bid["bidder"]), bid["dateTime"]))
    counts = windowing.fold_window(
        "sessions",
        keyed,
        clock(lambda ms: ms),
        SessionWindower(gap=TEN - timedelta(milliseconds=1)),  # a gap of ten seconds begins another
        lambda: (0, None, 0),
        lambda state, ms: (state[0] + 1, ms if state[1] is None else min(state[1], ms), max(state[2], ms)),
        lambda a, b: (a[0] + b[0], min(a[1], b[1]), max(a[2], b[2])),
    )

    def row(item):
        bidder, (_, (count, first, last)) = item
        return {"bidder": int(bidder), "bid_count": count, "starttime": first, "endtime": last + 10_000}

    return op.map("rows", counts.down, row)


def q12():
    keyed = op.map("key", read("bid"), lambda bid: (str(bid["bidder"]), None))
    tens = TumblingWindower(length=TEN, align_to=EPOCH)
    counts = windowing.count_window("counts", keyed, SystemClock(), tens, lambda item: item[0])

    def row(item):
        bidder, (window, count) = item
        start = window * 10_000
        return {"bidder": int(bidder), "bid_count": count, "starttime": start, "endtime": start + 10_000}

    return op.map("rows", counts.down, row)


def statistics():
    key_of, step = running(query)
    keyed = op.map("key", read("bid"), lambda bid: (key_of(bid), bid))
    return op.stateful_map("rows", keyed, lambda row, bid: (step(row, bid),) * 2)


QUERIES = {"q17": statistics, "q18": statistics, "q3": q3, "q5": q5, "q7": q7, "q8": q8, "q11": q11, "q12": q12}
rows = op.filter_map("rows", read("bid"), stateless(query, folder)) if query in STATELESS else QUERIES[query]()
op.output("out", rows, Sink())
with tempfile.TemporaryDirectory(prefix="sabot-bench-") as snapshots:
    init_db_dir(Path(snapshots), 1)
    recovery = RecoveryConfig(snapshots) if checkpoint_ms else None
    cli_main(flow, epoch_interval=timedelta(milliseconds=checkpoint_ms or 10_000), recovery_config=recovery)
output.end()
