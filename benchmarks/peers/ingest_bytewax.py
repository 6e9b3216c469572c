"""The jobs of kafka_ingest.py in Bytewax: a Python function a record; it ends with the topic. It has no recovery: a crash begins anew.

Started by ingest_peers.py in an environment of its own.
"""

import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import bytewax.operators as op
import orjson
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.operators import windowing
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.run import cli_main
from confluent_kafka import OFFSET_BEGINNING

kind, broker, in_topic, out_topic, folder, rows, minute_ms, disorder_ms = sys.argv[1:]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE = timedelta(milliseconds=int(minute_ms))
count, amount = 0, 0.0
begun = False


def decoded(message: KafkaSourceMessage) -> dict[str, Any]:
    global begun
    if not begun:
        begun = True
        print(f"first {time.time()} {time.process_time()}", flush=True)
    return orjson.loads(message.value)


class Totals(StatelessSinkPartition):
    def write_batch(self, items: list[tuple[str, float, int]]) -> None:
        global count, amount
        count += len(items)
        amount += sum(item[1] for item in items)
        if count == int(rows):
            print(f"last {time.time()} {time.process_time()} {amount!r}", flush=True)


class Sink(DynamicSink):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> Totals:
        return Totals()


def add(state: tuple[int, float, float], row: tuple[float, int]) -> tuple[int, float, float]:
    return state[0] + 1, state[1] + row[0], max(state[2], row[0])


def merged(one: tuple[int, float, float], other: tuple[int, float, float]) -> tuple[int, float, float]:
    return one[0] + other[0], one[1] + other[1], max(one[2], other[2])


def written(item: tuple[str, tuple[int, tuple[int, float, float]]]) -> KafkaSinkMessage:
    account, (window, (n, total, biggest)) = item
    row = {"account": account, "window_start": window * int(minute_ms), "n": n, "total": total, "biggest": biggest}
    return KafkaSinkMessage(account.encode(), orjson.dumps(row))


flow = Dataflow("ingest")
source = KafkaSource([broker], [in_topic], starting_offset=OFFSET_BEGINNING, tail=False, batch_size=1000)
read = op.map("decode", op.input("in", flow, source), decoded)
if kind == "decode":
    op.output("out", op.map("columns", read, lambda row: (row["account"], row["amount"], row["ts"])), Sink())
else:
    keyed = op.map("key", read, lambda row: (row["account"], (row["amount"], row["ts"])))
    clock = windowing.EventClock(
        lambda row: EPOCH + timedelta(milliseconds=row[1]),
        timedelta(milliseconds=int(disorder_ms)),
        now_getter=lambda: (
            EPOCH
        ),  # by the times of the records alone: by default the watermark goes on with the system's time too
        to_system_utc=lambda when: None,
    )
    minutes = windowing.TumblingWindower(align_to=EPOCH, length=MINUTE)
    closed = windowing.fold_window("windows", keyed, clock, minutes, lambda: (0, 0.0, float("-inf")), add, merged)
    op.output("out", op.map("write", closed.down, written), KafkaSink([broker], out_topic))
cli_main(flow)
