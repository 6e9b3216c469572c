"""How fast a Kafka source reads what stands in a topic, beside the plain client, and what it holds in memory.

    python benchmarks/pipelines/kafka_source.py                          4 M records of 120 bytes, 4 partitions
    python benchmarks/pipelines/kafka_source.py --rows 1000000 --partitions 64 --set queued.max.messages.kbytes=65536

    sabot     KafkaSource.read_batch: record batches with their offsets, as a stream or agent takes them
    client    confluent_kafka's `Consumer.consume`, with the settings that it has by itself: a list of messages
    tuned     the same, with the settings of our source
    held      KafkaSource that has read one batch and then none: what its client has fetched ahead is all there

The topic is filled once (lz4, what our sinks send). The rounds go through all kinds, forth and back; each run is a process
of its own, from the first record to the last. Count and sum of the numbers in the payloads are checked in each. `rss_mb` is
the process's peak above what it had before it opened its consumer. `--set` gives settings of librdkafka to the source and to `tuned`.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import uuid
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Message, TopicPartition

from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import RECORD_SCHEMA, build_records
from sabot.kafka import KafkaSink, KafkaSource, admin
from sabot.kafka.client import FETCHING

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from tools.broker import running

KINDS = ("sabot", "client", "tuned", "held")
DIGITS = 10  # of the number that each payload begins with
POWERS = 10 ** np.arange(DIGITS - 1, -1, -1)
CHUNK_ROWS = 50_000
BATCH_ROWS = 16_384  # what the engine asks of a source
QUIET_SECONDS = 120.0  # a run in which nothing comes for so long has failed
LEVEL_SECONDS = 1.0  # memory that has not grown for so long is all that there is


# The input, and what it comes to


def fill(broker: str, topic: str, rows: int, size: int, partitions: int) -> None:
    """Payload n: its number, and digits that do not compress to nothing."""
    admin.create_topic(broker, topic, partitions, config={"retention.ms": "-1"})
    sink = KafkaSink(topic, broker)
    sink.open()
    noise = np.random.default_rng(1)
    for first in range(0, rows, CHUNK_ROWS):
        n = np.arange(first, min(first + CHUNK_ROWS, rows))
        digits = noise.integers(48, 58, (len(n), size), dtype=np.uint8)
        digits[:, :DIGITS] = 48 + n[:, None] // POWERS % 10
        payloads, keys = [row.tobytes() for row in digits], [b"%d" % number for number in n]
        sink.write(Batch(build_records(payloads, keys, np.zeros(len(n)), 0, n), None, topic))
    sink.flush()
    sink.close()


def numbers(payloads: bytes | memoryview, rows: int) -> int:
    """The sum of the numbers of payloads that stand one behind the other."""
    digits = np.frombuffer(payloads, np.uint8).reshape(rows, -1)[:, :DIGITS]
    return int((digits.astype(np.int64) - 48).sum(axis=0) @ POWERS)


def payloads_of(batch: Batch) -> tuple[memoryview, int]:
    column = batch.data.column(RECORD_SCHEMA.get_field_index("payload"))
    offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
    return memoryview(column.buffers()[2])[offsets[0] : offsets[-1]], len(column)


# One run


def rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def peak_mb() -> float:
    """The most that this program has had; `ru_maxrss` would also count what its parent had when it was started."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def read_source(source: KafkaSource, rows: int) -> tuple[int, int]:
    count = total = 0
    quiet_since = time.perf_counter()
    while count < rows:
        batch = source.read_batch(BATCH_ROWS, 1.0)
        if batch is None:
            assert time.perf_counter() < quiet_since + QUIET_SECONDS, f"{count} of {rows} records came"
            continue
        quiet_since = time.perf_counter()
        payloads, length = payloads_of(batch)
        count += length
        total += numbers(payloads, length)
    return count, total


def read_client(consumer: Any, rows: int) -> tuple[int, int]:
    count = total = 0
    while count < rows:
        messages = consumer.consume(1, QUIET_SECONDS)
        messages += consumer.consume(BATCH_ROWS - 1, 0)
        assert messages, f"{count} of {rows} records came"
        count += len(messages)
        total += numbers(b"".join(map(Message.value, messages)), len(messages))
    return count, total


def wait_until_level() -> float:
    """The memory in MB, once it has not grown for LEVEL_SECONDS."""
    highest, grown = rss_mb(), time.perf_counter()
    while time.perf_counter() < grown + LEVEL_SECONDS:
        time.sleep(0.05)
        if (now := rss_mb()) > highest + 1:
            highest, grown = now, time.perf_counter()
    return highest


def hold(options: argparse.Namespace, source: KafkaSource, before: float) -> tuple[dict[str, Any], int, int]:
    """Memory of a client that is full, and what it costs to keep it so; with the records of the first batch."""
    first = source.read_batch(BATCH_ROWS, QUIET_SECONDS)
    assert first is not None, "no record came"
    held = wait_until_level() - before
    cpu = time.process_time()
    time.sleep(LEVEL_SECONDS)
    percent = 100 * (time.process_time() - cpu) / LEVEL_SECONDS
    payloads, count = payloads_of(first)
    rest, total = read_source(source, options.rows - count)
    return {"held_mb": round(held), "cpu_percent": round(percent, 1)}, count + rest, total + numbers(payloads, count)


def run(options: argparse.Namespace) -> dict[str, Any]:
    settings = dict(each.split("=", 1) for each in options.set)
    before = rss_mb()
    outcome: dict[str, Any] = {}
    if options.kind in ("sabot", "held"):
        source = KafkaSource(options.topic, options.broker, f"bench-{uuid.uuid4().hex}", **settings)
        source.open(None, "earliest")
    else:
        conf = {**FETCHING, **settings} if options.kind == "tuned" else {}
        address = {"bootstrap.servers": options.broker.removeprefix("kafka://")}
        group = {"group.id": f"bench-{uuid.uuid4().hex}", "enable.auto.commit": False}
        consumer = Consumer({**address, **group, **conf})
        consumer.assign([TopicPartition(options.topic, index, 0) for index in range(options.partitions)])
    began, cpu = time.perf_counter(), time.process_time()
    if options.kind == "held":
        outcome, count, total = hold(options, source, before)
    elif options.kind == "sabot":
        count, total = read_source(source, options.rows)
    else:
        count, total = read_client(consumer, options.rows)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    assert count == options.rows, f"{count} records came, {options.rows} are there"
    assert total == options.rows * (options.rows - 1) // 2, "the sum of the numbers is wrong"
    if options.kind != "held":
        outcome = {"rows_per_s": round(options.rows / seconds), "cpu_seconds": round(cpu, 2)}
    return {**outcome, "rss_mb": round(peak_mb() - before)}


# All runs


def one(options: argparse.Namespace, kind: str, broker: str, topic: str) -> dict[str, Any]:
    words = ["--kind", kind, "--broker", broker, "--topic", topic, "--rows", str(options.rows)]
    words += ["--partitions", str(options.partitions)]
    for each in options.set:
        words += ["--set", each]
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{kind}: the run failed")
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{kind}: {outcome}", file=sys.stderr, flush=True)
    return outcome


def measure(broker: str, options: argparse.Namespace) -> dict[str, Any]:
    topic = options.topic or f"bench-{uuid.uuid4().hex[:8]}"
    if options.topic is None:
        fill(broker, topic, options.rows, options.size, options.partitions)
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in options.kinds}
    for number in range(options.rounds):
        for kind in options.kinds[:: 1 if number % 2 == 0 else -1]:
            found[kind].append(one(options, kind, broker, topic))
    if options.topic is None:
        admin.delete_topic(broker, topic)
    return {
        kind: {name: round(median(each[name] for each in runs), 2) for name in runs[0]} for kind, runs in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--size", type=int, default=120, help="of a payload, in bytes")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of librdkafka")
    parser.add_argument("--broker", metavar="URL", help="kafka://HOST:PORT; default: our own")
    parser.add_argument("--topic", help="one that an earlier run has filled, with as many rows and partitions")
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(run(options)))
        return
    with running(options.broker) as broker:
        outcome = measure(broker, options)
    print(json.dumps({"benchmark": "kafka_source", "rows": options.rows, "partitions": options.partitions, **outcome}))


if __name__ == "__main__":
    main()
