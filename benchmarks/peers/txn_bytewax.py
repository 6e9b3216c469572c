"""The job of benchmarks/pipelines/txn_workers.py in Bytewax, of which several processes run this: a Python function a record.

    python -m bytewax.run txn_bytewax:flow -i 0 -a "127.0.0.1:2101;127.0.0.1:2102"        TXN_FOLDER in the environment

A file is read by one process, and there is one watermark of a key, not one of each file: windows wait for an hour of event time, which is
longer than the files. Started by txn_peers.py in an environment of its own.
"""

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import orjson
from bytewax.connectors.files import DirSource
from bytewax.dataflow import Dataflow
from bytewax.operators import windowing
from bytewax.outputs import DynamicSink, StatelessSinkPartition

folder = Path(os.environ["TXN_FOLDER"])
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE_MS = 60_000
began = 0.0


def decoded(line: str) -> dict[str, Any]:
    global began
    began = began or time.time()
    return orjson.loads(line)


class Windows(StatelessSinkPartition):
    def __init__(self, worker: int) -> None:
        self._file = open(folder / f"{worker}.ndjson", "wb")  # noqa: SIM115 - `close` closes it
        self._ended = 0.0

    def write_batch(self, items: list[bytes]) -> None:
        self._file.writelines(items)
        self._ended = time.time()

    def close(self) -> None:
        self._file.close()
        (folder / f"{os.getpid()}.span").write_text(f"{began} {self._ended}\n")


class Sink(DynamicSink):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> Windows:
        return Windows(worker_index)


def add(state: tuple[int, float, float], row: tuple[float, int]) -> tuple[int, float, float]:
    return state[0] + 1, state[1] + row[0], max(state[2], row[0])


def merged(one: tuple[int, float, float], other: tuple[int, float, float]) -> tuple[int, float, float]:
    return one[0] + other[0], one[1] + other[1], max(one[2], other[2])


def line(item: tuple[str, tuple[int, tuple[int, float, float]]]) -> bytes:
    account, (window, (n, total, biggest)) = item
    row = {"account": account, "window_start": window * MINUTE_MS, "n": n, "total": total, "biggest": biggest}
    return orjson.dumps(row) + b"\n"


flow = Dataflow("txn_windows")
rows = op.map("decode", op.input("in", flow, DirSource(folder / "in")), decoded)
large = op.filter("large", rows, lambda row: row["amount"] > 10)
keyed = op.map("key", large, lambda row: (row["account"], (row["amount"], row["ts"])))
clock = windowing.EventClock(
    lambda row: EPOCH + timedelta(milliseconds=row[1]),
    timedelta(hours=1),
    now_getter=lambda: EPOCH,  # the watermark goes by the times of the records alone
    to_system_utc=lambda when: None,
)
minutes = windowing.TumblingWindower(align_to=EPOCH, length=timedelta(milliseconds=MINUTE_MS))
closed = windowing.fold_window("windows", keyed, clock, minutes, lambda: (0, 0.0, float("-inf")), add, merged)
op.output("out", op.map("write", closed.down, line), Sink())
