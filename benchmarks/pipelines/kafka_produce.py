"""How fast a sink writes to a topic, beside librdkafka's own producer in C, which is the bound, and what it holds in memory.

    python benchmarks/pipelines/kafka_produce.py                    4 M records of 122 bytes, 4 partitions
    python benchmarks/pipelines/kafka_produce.py --rows 1000000 --kinds bound records --rounds 5

    bound     kafka_send.cc: librdkafka without Python, fed from memory; with our settings
    client    confluent_kafka's `Producer.produce`, with our settings: a call per record
    records   KafkaSink.write of batches of 16,384 records (payload, key, timestamp)
    json      the same of columns, which the sink encodes as JSON, without a key
    parts     KafkaSink.deliver: exactly once, a transaction for each 262,144 records

What is sent is one chunk of card transactions (make_txns.py), made before the clock runs, again and again: --rows, down to whole chunks.
The rounds go through all kinds, forth and back; each run is a process of its own, from the first record to the flush that says that the
broker has them all. Checked in each run, by a reader of committed records: the count, and the sum of a hash of key and payload.
`cpu_seconds` are those of the writing process for a million records; `peak_mb` is its peak above what it had when the clock began. The
last line printed has the medians.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from confluent_kafka import Producer

from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import row_records
from sabot.connectors.base import Track
from sabot.kafka import KafkaSink, KafkaSource, admin
from sabot.kafka.client import MESSAGE_BYTES

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from kafka_ingest import compiled
from kafka_source import peak_mb, rss_mb
from make_txns import CHUNK_ROWS, Transactions

from tools.broker import running

KINDS = ("bound", "client", "records", "json", "parts")
BATCH_ROWS = 16_384  # what the engine gives to a sink
SENDER = Path(__file__).with_name("kafka_send.cc")
QUIET_SECONDS = 120.0  # a topic of which nothing is read for so long has no more
SETTINGS = {  # those of our sinks
    "enable.idempotence": "true",
    "linger.ms": "5",
    "compression.type": "lz4",
    "message.max.bytes": str(MESSAGE_BYTES),
    "queue.buffering.max.kbytes": str(256 << 10),
    "partitioner": "murmur2_random",
    "delivery.report.only.error": "true",
}


# The input, and what it comes to


def columns(rows: int) -> pa.RecordBatch:
    return Transactions(7).chunk(0, rows)


def records(rows: int) -> pa.RecordBatch:
    data = columns(rows)
    return row_records(data, data.column("account").cast(pa.binary()), int(time.time() * 1000))


def batches(data: pa.RecordBatch) -> list[Batch]:
    return [Batch(data.slice(first, BATCH_ROWS)) for first in range(0, data.num_rows, BATCH_ROWS)]


def checksum(data: pa.RecordBatch, keyed: bool) -> int:
    """The sum of a hash of each record, whose order in the topic is not known."""
    key = "key" if keyed else "NULL"
    seen = pa.Table.from_batches([data.select(["payload", "key"])])  # noqa: F841 - duckdb finds it by its name
    ((total,),) = duckdb.sql(f"SELECT sum(hash(payload, {key}) % 4294967296)::UBIGINT FROM seen").fetchall()
    return int(total or 0)


def check(broker: str, topic: str, rows: int, wanted: int, keyed: bool) -> None:
    source = KafkaSource(topic, broker, f"check-{uuid.uuid4().hex}")
    source.open(None, "earliest")
    count = total = 0
    heard = time.perf_counter()
    while count < rows:
        batch = source.read_batch(65_536, 1.0)
        if batch is None:
            assert time.perf_counter() < heard + QUIET_SECONDS, f"{count} of {rows} records are there"
            continue
        heard = time.perf_counter()
        count += batch.num_rows
        total += checksum(batch.data, keyed)
    extra = source.read_batch(1, 0.5)
    source.close()
    assert count == rows, f"{count} records are there, not {rows}"
    assert extra is None, "more records are there than were sent"
    assert total == wanted, "the records are not those that were sent"


# One run


def send_client(options: argparse.Namespace, made: list[tuple[bytes, bytes, int]], topic: str) -> None:
    address = {"bootstrap.servers": options.broker.removeprefix("kafka://")}
    producer = Producer({**SETTINGS, **address, "delivery.report.only.error": True})
    for _ in range(options.chunks):
        for payload, key, stamp in made:
            while True:
                try:
                    producer.produce(topic, payload, key, timestamp=stamp)
                    break
                except BufferError:
                    producer.poll(0.1)
        producer.poll(0)
    assert producer.flush(QUIET_SECONDS) == 0, "the broker does not take all records"


def send_sink(options: argparse.Namespace, made: list[Batch], sink: KafkaSink) -> None:
    for _ in range(options.chunks):
        for batch in made:
            sink.write(batch)
    sink.flush()


def send_parts(options: argparse.Namespace, made: list[Batch], sink: KafkaSink) -> None:
    for seq in range(options.chunks):
        sink.deliver(seq, [batch.data for batch in made])


def run(options: argparse.Namespace) -> dict[str, float]:
    data = columns(options.chunk) if options.kind == "json" else records(options.chunk)
    made: Any = batches(data)
    to: Any = KafkaSink(options.topic, options.broker)
    send: Any = send_sink
    if options.kind == "client":
        send, to = send_client, options.topic
        made = list(zip(*(data.column(name).to_pylist() for name in ("payload", "key", "timestamp")), strict=True))
    elif options.kind == "parts":
        send = send_parts
        to.claim(Track("bench", options.topic, "run"))
    else:
        to.open()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of making the input
    before = rss_mb()
    began, cpu = time.perf_counter(), time.process_time()
    send(options, made, to)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": peak_mb() - before,
    }


# All runs


def write_file(path: Path, data: pa.RecordBatch) -> None:
    """The records as kafka_send.cc reads them."""
    with path.open("wb") as file:
        for key, payload in zip(data.column("key").to_pylist(), data.column("payload").to_pylist(), strict=True):
            file.write(np.array([len(key), len(payload)], np.int32).tobytes() + key + payload)


def one(options: argparse.Namespace, kind: str, program: list[str], broker: str, wanted: int) -> dict[str, float]:
    topic, rows = f"bench-{uuid.uuid4().hex[:8]}", options.chunks * options.chunk
    admin.create_topic(broker, topic, options.partitions, config={"retention.ms": "-1"})
    if kind == "bound":
        words = [program[0], broker.removeprefix("kafka://"), topic, program[1], str(options.chunks)]
        words += [word for setting in SETTINGS.items() for word in setting]
    else:
        words = [sys.executable, __file__, "--kind", kind, "--broker", broker, "--topic", topic]
        words += ["--rows", str(rows)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{kind}: the run failed")
    outcome: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    outcome["rows_per_s"] = round(rows / outcome.pop("seconds"))
    outcome["cpu_seconds"] = round(outcome["cpu_seconds"] * 1e6 / rows, 3)
    check(broker, topic, rows, options.chunks * wanted, keyed=kind != "json")
    admin.delete_topic(broker, topic)
    print(f"{kind}: {outcome}", file=sys.stderr, flush=True)
    return outcome


def measure(broker: str, options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in options.kinds}
    data = records(options.chunk)
    with tempfile.TemporaryDirectory() as folder:
        if "bound" in options.kinds:
            write_file(Path(folder) / "records", data)
        program = [compiled(folder, SENDER), f"{folder}/records"] if "bound" in options.kinds else []
        for number in range(options.rounds):
            for kind in options.kinds[:: 1 if number % 2 == 0 else -1]:
                wanted = checksum(data, keyed=kind != "json")
                found[kind].append(one(options, kind, program, broker, wanted))
    names = ("rows_per_s", "cpu_seconds", "peak_mb")
    return {
        kind: {name: round(median(each[name] for each in runs), 2) for name in names if name in runs[0]}
        for kind, runs in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16 * CHUNK_ROWS, help=f"whole chunks of {CHUNK_ROWS} are sent")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--rounds", type=int, help="runs of each kind; default: 3, and 1 of fewer than 100,000 records")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--broker", metavar="URL", help="kafka://HOST:PORT; default: our own")
    parser.add_argument("--topic", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.chunk = min(CHUNK_ROWS, options.rows)
    options.chunks = options.rows // options.chunk
    options.rounds = options.rounds or (3 if options.rows >= 100_000 else 1)
    if options.kind:
        print(json.dumps(run(options)))
        return
    with running(options.broker) as broker:
        outcome = measure(broker, options)
    head = {"benchmark": "kafka_produce", "rows": options.chunks * options.chunk, "partitions": options.partitions}
    print(json.dumps({**head, **outcome}))


if __name__ == "__main__":
    main()
