"""The program of benchmarks/pipelines/txn_workers.py in Bytewax, of which several processes run this: a Python function a record.

    python -m bytewax.run txn_bytewax:flow -i 0 -a "127.0.0.1:2101;127.0.0.1:2102"        TXN_FOLDER in the environment

A file is read by one process, and there is one watermark of a key, not one of each file: windows wait for an hour of event time, which is
longer than the files. Started by txn_peers.py in an environment of its own.
"""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import orjson
from bytewax.connectors.files import DirSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax_minutes import totals

folder = Path(os.environ["TXN_FOLDER"])
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


flow = Dataflow("txn_windows")
rows = op.map("decode", op.input("in", flow, DirSource(folder / "in")), decoded)
large = op.filter("large", rows, lambda row: row["amount"] > 10)
closed = totals(large, 60_000, timedelta(hours=1))
op.output("out", op.map("write", closed, lambda row: orjson.dumps(row) + b"\n"), Sink())
