"""The programs of kafka_ingest.py in Bytewax: a Python function a record; it ends with the topic. It has no recovery: a crash begins anew.

Started by ingest_peers.py in an environment of its own.
"""

import sys
import time
from datetime import timedelta
from typing import Any

import bytewax.operators as op
import orjson
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.run import cli_main
from bytewax_minutes import totals
from confluent_kafka import OFFSET_BEGINNING

kind, broker, in_topic, out_topic, folder, rows, minute_ms, disorder_ms = sys.argv[1:]
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


def written(row: dict[str, Any]) -> KafkaSinkMessage:
    return KafkaSinkMessage(row["account"].encode(), orjson.dumps(row))


flow = Dataflow("ingest")
source = KafkaSource([broker], [in_topic], starting_offset=OFFSET_BEGINNING, tail=False, batch_size=1000)
read = op.map("decode", op.input("in", flow, source), decoded)
if kind == "decode":
    op.output("out", op.map("columns", read, lambda row: (row["account"], row["amount"], row["ts"])), Sink())
else:
    closed = totals(read, int(minute_ms), timedelta(milliseconds=int(disorder_ms)))
    op.output("out", op.map("write", closed, written), KafkaSink([broker], out_topic))
cli_main(flow)
