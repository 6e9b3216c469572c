"""How fast a topic of JSON is read and decoded, beside librdkafka's own consumer in C, which is the bound.

    python benchmarks/pipelines/kafka_ingest.py                     5 M records of 122 bytes, 4 partitions; with the peers
    python benchmarks/pipelines/kafka_ingest.py --rows 1000000 --kinds bound decode --rounds 5
    python benchmarks/pipelines/kafka_ingest.py --rows 1000000 --kinds bound decode windows --peers flink quix bytewax faust

    bound     kafka_count.cc: librdkafka without Python, which counts the records and their bytes; with our settings
    client    confluent_kafka's `Consumer.consume`, with our settings: a list of messages, counted
    source    KafkaSource.read_batch: record batches with their offsets, counted
    decode    the same without headers, and 3 of the 7 fields of each record decoded into columns, as a stream reads
    stream    an app whose stream of these 3 columns goes to a sink that adds up; checkpoints in memory
    windows   count, sum and max per account and minute of event time, into a topic exactly once; a checkpoint each second
    latency   the 3 columns of `stream` into another topic at least once: p50, p99 and p99.9 from produce to result

The topic is filled once with card transactions (make_txns.py; lz4, what our sinks send), and read WARMUPS times by the bound, which
does not count: the first read of a new topic is slower. The rounds go through all kinds, forth and back, and each kind has a run of the
bound beside it, before it in one round and after it in the next: what else the machine does at that time slows both. Each run is a
process of its own, from the first record to the last, and of the windows to the commit of the last transaction. Of
`stream`: from the start of the app. `start_seconds`: how long the windows were without a record (offsets, transactions that begin).
`of_bound` is the median of the ratios of such pairs, `of_bound_from_to` their least and greatest.
Checked in each run: the count, and the bytes of the payloads or the sum of the amounts; of the windows each row, as a consumer with
`read_committed` gets them, against what pyarrow groups. `cpu_seconds` are those of the reading process, so they hold on a machine that
does other work too. The latencies are taken once, of --seconds at 10, 50 and 80 % of the peak, which
is the rate at which the same producer, app and reader take --rows at once; then those of kafka_relay.cc in place of the app, at the same
rates: librdkafka in C, which passes the records on as they are. Row i is due i / rate seconds after the start, whatever
happened to the rows before it, and its latency counts from then: a producer or an app that is late is no excuse. Each row must come once.
--peers: `decode` and `windows` by other engines, once each, in this run and on the same transactions; benchmarks/peers/ingest_peers.py
says how, and installs them. Slow ones read fewer records: `rows`. Without the option all of them run where a million records or more
go through all kinds; `--peers` alone is none. The last line printed has the medians, for each kind its share of the bound's rate
(`of_bound`) and of its processor time (`cpu_of_bound`), and the peers.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

import sabot
import sabot.engine.runtime.life.run  # what an app loads when it runs, before the clock begins
from sabot import App, Sink, col, tumbling
from sabot._cython.arrow.batch import Batch
from sabot.codecs.json import JsonCodec
from sabot.codecs.records import RECORD_SCHEMA, row_records
from sabot.kafka import KafkaSink, KafkaSource, admin
from sabot.kafka.client import FETCHING
from sabot.kafka.reader import KafkaReader

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import ingest_peers
from jvm import NotThere
from make_txns import CHUNK_ROWS, DISORDER_MS, START_MS, Transactions

from tools.broker import running

KINDS = ("bound", "client", "source", "decode", "stream", "windows", "latency")
COLUMNS = {"account": "string", "amount": "float64", "ts": "int64"}
BATCH_ROWS = 16_384  # what the engine asks of a source
QUIET_SECONDS = 120.0  # a run in which nothing comes for so long has failed
COUNTER = Path(__file__).with_name("kafka_count.cc")
RELAY = Path(__file__).with_name("kafka_relay.cc")
MINUTE_MS = 60_000
SENDING = {  # settings of our sinks
    "enable.idempotence": "true",
    "linger.ms": "5",
    "compression.type": "lz4",
    "queue.buffering.max.kbytes": str(256 << 10),
    "log_level": "2",  # not each setting that is of the other client
}
LOADS = (10, 50, 80)  # percent of the peak
WARMUPS = 3
TICK_SECONDS = 0.001  # how long the producer sleeps where no row is due
PART_ROWS = 1_024  # the most that it writes in one call
SMOKE_RATE = 40_000  # a run of fewer --rows than this each second of --seconds is shorter
WINDOW = [("account", pa.string()), ("window_start", pa.int64())]
FIGURES = [("n", pa.int64()), ("total", pa.float64()), ("biggest", pa.float64())]
SHAPE = pa.schema(WINDOW + FIGURES)


# The input, and what it comes to


def fill(broker: str, topic: str, rows: int, partitions: int, keyed: bool = False) -> pa.Table:
    """Returns the windows that the rows come to. keyed: the key of a record is the account."""
    admin.create_topic(broker, topic, partitions, config={"retention.ms": "-1"})
    sink = KafkaSink(topic, broker)
    sink.open()
    drawn, windows = Transactions(7), SHAPE.empty_table()
    for number, start in enumerate(range(0, rows, CHUNK_ROWS)):
        batch = drawn.chunk(number, min(CHUNK_ROWS, rows - start))
        windows = grouped(pa.concat_tables([windows, windows_of(batch)]))
        for first in range(0, batch.num_rows, BATCH_ROWS):
            part = batch.slice(first, BATCH_ROWS)
            sink.write(Batch(row_records(part, part["account"].cast(pa.binary()), 0) if keyed else part, None, topic))
    sink.flush()
    sink.close()
    return windows


def windows_of(batch: pa.RecordBatch) -> pa.Table:
    """A window of each row."""
    amount = batch.column("amount")
    start = pc.multiply(pc.divide(batch.column("ts"), MINUTE_MS), MINUTE_MS)
    columns = [batch.column("account"), start, pa.array([1] * batch.num_rows), amount, amount]
    return pa.Table.from_arrays(columns, schema=SHAPE)


def grouped(windows: pa.Table) -> pa.Table:
    """Windows of the same account and minute as one."""
    merged = windows.group_by([name for name, _ in WINDOW])
    merged = merged.aggregate([("n", "sum"), ("total", "sum"), ("biggest", "max")])
    return merged.select(["account", "window_start", "n_sum", "total_sum", "biggest_max"]).rename_columns(SHAPE.names)


def payload_bytes(records: pa.RecordBatch) -> int:
    return pc.sum(pc.binary_length(records.column(RECORD_SCHEMA.get_field_index("payload")))).as_py() or 0


# One run


class Totals(Sink):
    """Counts the rows of a stream and adds up their amounts; `full` is set with the last."""

    def __init__(self, rows: int) -> None:
        self.name = "totals"
        self.wanted, self.rows, self.amount = rows, 0, 0.0
        self.full = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def open(self) -> None:
        """Nothing to do."""

    def write(self, batch: Batch) -> None:
        self.rows += batch.num_rows
        self.amount += pc.sum(batch.taken().column("amount")).as_py() or 0.0
        if self.rows >= self.wanted:
            self._loop.call_soon_threadsafe(self.full.set)

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def measured(began: float, cpu: float, rows: int, **answer: float) -> dict[str, float]:
    return {
        "rows": rows,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        **answer,
    }


def read_source(options: argparse.Namespace) -> dict[str, float]:
    codec = JsonCodec(pa.schema([(name, getattr(pa, kind)()) for name, kind in COLUMNS.items()]))
    source = KafkaSource(options.topic, options.broker, f"bench-{uuid.uuid4().hex}")
    if options.kind == "decode":
        source.leave_headers()
    source.open(None, "earliest")
    began, cpu = time.perf_counter(), time.process_time()
    rows, bytes_, amount, heard = 0, 0, 0.0, began
    while rows < options.rows:
        batch = source.read_batch(BATCH_ROWS, 1.0)
        if batch is None:
            assert time.perf_counter() < heard + QUIET_SECONDS, f"{rows} of {options.rows} records came"
            continue
        heard = time.perf_counter()
        began = began if rows else heard
        if options.kind == "decode":
            data, bad = codec.decode(batch.data)
            assert not bad, bad[0]
            rows += data.num_rows
            amount += pc.sum(data.column("amount")).as_py()
        else:
            rows += batch.num_rows
            bytes_ += payload_bytes(batch.data)
    answer = {"amount": amount} if options.kind == "decode" else {"bytes": bytes_}
    outcome = measured(began, cpu, rows, **answer)
    source.close()
    return outcome


def read_client(options: argparse.Namespace) -> dict[str, float]:
    conf = {"bootstrap.servers": options.broker.removeprefix("kafka://"), "group.id": f"bench-{uuid.uuid4().hex}"}
    consumer = Consumer({**conf, "enable.auto.commit": False, **FETCHING})
    began, cpu = time.perf_counter(), time.process_time()
    consumer.assign([TopicPartition(options.topic, index, 0) for index in range(options.partitions)])
    rows = bytes_ = 0
    while rows < options.rows:
        messages = consumer.consume(1, QUIET_SECONDS)
        began = began if rows else time.perf_counter()
        messages += consumer.consume(BATCH_ROWS - 1, 0)
        assert messages, f"{rows} of {options.rows} records came"
        rows += len(messages)
        bytes_ += sum(map(len, map(Message.value, messages)))
    outcome = measured(began, cpu, rows, bytes=bytes_)
    consumer.close()
    return outcome


async def read_stream(options: argparse.Namespace) -> dict[str, float]:
    app = App(f"bench-{uuid.uuid4().hex[:8]}", options.broker, checkpoint_interval="1s")
    totals = Totals(options.rows)
    app.stream(options.topic, schema=COLUMNS).to(totals)
    began, cpu = time.perf_counter(), time.process_time()
    await app.start()
    await asyncio.wait_for(totals.full.wait(), QUIET_SECONDS + options.rows / 20_000)
    outcome = measured(began, cpu, totals.rows, amount=totals.amount)
    await app.stop()
    return outcome


def note_first(times: list[float]) -> None:
    """From now on the time at which this process has its first records is added."""
    read_batch = KafkaReader.read_batch

    def noted(reader: KafkaReader, max_rows: int, timeout: float) -> Batch | None:
        batch = read_batch(reader, max_rows, timeout)
        if batch is not None:
            times.append(time.perf_counter())
            KafkaReader.read_batch = read_batch  # type: ignore[method-assign]
        return batch

    KafkaReader.read_batch = noted  # type: ignore[method-assign]


def write_windows(options: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="sabot-bench-") as folder:
        app = App(
            f"bench-{uuid.uuid4().hex[:8]}",
            options.broker,
            state="memory",
            checkpoint_dir=f"{folder}/checkpoints",
            checkpoint_interval="1s",
            parallelism=options.threads,
        )
        (
            app.stream(options.topic, schema=COLUMNS, time="ts", lateness=DISORDER_MS / 1000, until="now")
            .key_by("account")
            .window(tumbling("1m"))
            .aggregate(n=sabot.count(), total=sabot.sum("amount"), biggest=sabot.max("amount"))
            .select("account", "n", "total", "biggest", window_start=col("window_start").cast("int64"))
            .to(options.out, key="account", delivery="exactly_once")
        )
        first: list[float] = []
        note_first(first)
        began, cpu = time.perf_counter(), time.process_time()
        app.main()
        tasks = app.statistics()["streams"].values()
        rows = sum(task["input"].get("rows_in", 0) for task in tasks if "input" in task)
        return measured(first[0], cpu, rows, start_seconds=first[0] - began)


def committed(broker: str, topic: str, partitions: int) -> pa.Table:
    """The windows that a consumer of committed records gets: the Python client's, which shares nothing with the engine's source."""
    conf: dict[str, Any] = {
        "bootstrap.servers": broker.removeprefix("kafka://"),
        "group.id": f"check-{uuid.uuid4().hex}",
    }
    conf |= {"isolation.level": "read_committed", "enable.partition.eof": True, "enable.auto.commit": False}
    consumer = Consumer(conf)
    consumer.assign([TopicPartition(topic, index, 0) for index in range(partitions)])
    lines: list[bytes] = []
    ended = 0
    while ended < partitions:
        messages = consumer.consume(BATCH_ROWS, QUIET_SECONDS)
        assert messages, f"{ended} of {partitions} partitions of {topic} came to their end"
        for message in messages:
            if (error := message.error()) is None:
                lines.append(message.value() or b"")
            elif error.code() == KafkaError._PARTITION_EOF:
                ended += 1
            else:
                raise KafkaException(error)
    consumer.close()
    parsing = pyarrow.json.ParseOptions(explicit_schema=SHAPE, unexpected_field_behavior="error")
    return pyarrow.json.read_json(pa.BufferReader(b"\n".join(lines)), parse_options=parsing).select(SHAPE.names)


# Latency


async def forward(options: argparse.Namespace) -> None:
    """Until the standard input ends."""
    app = App(f"bench-{uuid.uuid4().hex[:8]}", options.broker, checkpoint_interval="1s")
    app.stream(options.topic, schema={"txn_id": "int64", **COLUMNS}).to(options.out)
    await app.start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await app.stop()


class Results(threading.Thread):
    """Reads the results of the rows from number `first` on: how often each came, and when."""

    def __init__(self, source: KafkaSource, first: int, rows: int) -> None:
        super().__init__(daemon=True)
        self.first, self.rows = first, rows
        self.times, self.arrived = np.zeros(rows, np.int64), np.zeros(rows)
        self._source = source
        self._codec = JsonCodec(pa.schema([("txn_id", pa.int64())]))

    def run(self) -> None:
        came, heard = 0, time.perf_counter()
        while came < self.rows and time.perf_counter() < heard + QUIET_SECONDS:
            batch = self._source.read_batch(BATCH_ROWS, 0.5)
            if batch is None:
                continue
            heard = time.perf_counter()
            data, _ = self._codec.decode(batch.data)
            numbers = data.column(0).to_numpy() - self.first
            self.times += np.bincount(numbers, minlength=self.rows)
            self.arrived[numbers] = heard
            came += len(numbers)


def offered(
    sink: KafkaSink, source: KafkaSource, pool: pa.RecordBatch, first: int, rows: int, rate: float
) -> tuple[float, Any]:
    """Writes rows at this rate, which may be infinite. -> rows per second to the last result, and the seconds that each row took."""
    results = Results(source, first, rows)
    results.start()
    began, sent = time.perf_counter(), 0
    while sent < rows:
        due = min(rows, sent + PART_ROWS, (time.perf_counter() - began) * rate)
        start = (first + sent) % pool.num_rows
        count = min(int(due) - sent, pool.num_rows - start)
        if count <= 0:
            time.sleep(TICK_SECONDS)
            continue
        numbers = pa.array(np.arange(first + sent, first + sent + count))
        sink.write(Batch(pool.slice(start, count).set_column(0, "txn_id", numbers), None, sink.name))
        sent += count
    sink.flush()
    results.join()
    wrong = np.flatnonzero(results.times != 1)
    assert not len(wrong), f"row {wrong[0]} came {results.times[wrong[0]]} times, {len(wrong)} of {rows} rows are wrong"
    return rows / (results.arrived.max() - began), results.arrived - began - np.arange(rows) / rate


def latency(broker: str, options: argparse.Namespace, relay: str) -> dict[str, Any]:
    """relay: the program of the bound."""
    app = passed_on(broker, options, [sys.executable, __file__, "--kind", "latency", "--broker", broker], None)
    bound = passed_on(broker, options, [relay, broker.removeprefix("kafka://")], app["peak_rows_per_s"])
    return {**app, "bound": bound}


def passed_on(broker: str, options: argparse.Namespace, words: list[str], peak: float | None) -> dict[str, Any]:
    """The latencies through a program, the app or the bound, at loads of the peak; None: of its own, which is taken first."""
    topic = f"bench-{uuid.uuid4().hex[:8]}"
    out = f"{topic}-out"
    for name in (topic, out):
        admin.create_topic(broker, name, options.partitions)
    if words[0] == sys.executable:
        words += ["--topic", topic, "--out", out]
    else:
        words += [topic, out, str(options.partitions)]
        words += [word for name, value in {**SENDING, **FETCHING}.items() for word in (name, str(value))]
    sink, source, pool = KafkaSink(topic, broker), KafkaSource(out, broker, f"{out}-reader"), Transactions(7).chunk(0)
    figures: dict[str, Any] = {}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n", f"{words[0]} did not start"
        sink.open()
        source.open(None, "earliest")
        own, _ = offered(sink, source, pool, 0, options.rows, float("inf"))
        figures["peak_rows_per_s"] = round(own)
        first, seconds = options.rows, min(options.seconds, options.rows / SMOKE_RATE)
        for load in LOADS:
            rate = (peak or own) * load / 100
            rows = max(1, int(rate * seconds))
            achieved, took = offered(sink, source, pool, first, rows, rate)
            first += rows
            p50, p99, p999 = (round(float(each) * 1000, 2) for each in np.percentile(took, [50, 99, 99.9]))
            figures[f"{load}_percent"] = {"rows": rows, "rows_per_s": round(achieved)}
            figures[f"{load}_percent"] |= {"p50_ms": p50, "p99_ms": p99, "p99.9_ms": p999}
        sink.close()
        source.close()
        program.stdin.close()
    assert program.returncode == 0, f"{words[0]} failed"
    for name in (topic, out):
        admin.delete_topic(broker, name)
    return figures


# All runs


def compiled(folder: str, source: Path) -> str:
    """Compiles a bound against the library that the Python client has loaded; our kernel, of the same name, is none."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    loaded = {line.split()[-1] for line in maps if re.search(r"/librdkafka(-\w+)?\.so", line)}
    assert len(loaded) == 1, f"the Python client holds its library in {sorted(loaded) or 'itself'}"
    library = Path(loaded.pop())
    program = f"{folder}/{source.stem}"
    ours = Path(sabot.__file__).parent / "_cython"
    words = ["c++", "-std=c++17", "-O2", "-I", ours, "-o", program, source, library, f"-Wl,-rpath,{library.parent}"]
    subprocess.run(words, check=True)
    return program


def one(options: argparse.Namespace, kind: str, program: str, broker: str, topic: str, out: str) -> dict[str, float]:
    if kind == "bound":
        words = [program, broker.removeprefix("kafka://"), topic, str(options.partitions), str(options.rows)]
        for name, value in FETCHING.items():
            words += [name, str(value)]
    else:
        words = [sys.executable, __file__, "--kind", kind, "--broker", broker, "--topic", topic]
        words += ["--rows", str(options.rows), "--partitions", str(options.partitions)]
        words += ["--out", out, "--threads", str(options.threads)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{kind}: the run failed")
    outcome: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{kind}: {outcome}", file=sys.stderr, flush=True)
    return outcome


def check(outcome: dict[str, float], rows: int, size: float, amount: float) -> None:
    """The bytes are those that the bound has counted when it warmed the broker up."""
    assert outcome["rows"] == rows, outcome
    assert outcome.get("bytes", size) == size, (outcome, size)
    assert abs(outcome.get("amount", amount) - amount) <= 1e-9 * amount, (outcome, amount)


def check_windows(found: pa.Table, wanted: pa.Table) -> None:
    """Row by row; sums may differ in the last digits by the order of addition."""
    found, wanted = (each.sort_by([(name, "ascending") for name, _ in WINDOW]) for each in (found, wanted))
    assert found.num_rows == wanted.num_rows, f"{found.num_rows} windows came, {wanted.num_rows} are right"
    for name in ("account", "window_start", "n", "biggest"):
        assert pc.all(pc.equal(found[name], wanted[name])).as_py(), f"column {name} is wrong"
    assert pc.max(pc.abs(pc.subtract(found["total"], wanted["total"]))).as_py() < 1e-5, "column total is wrong"


def measure_peer(broker: str, peer: str, options: argparse.Namespace) -> dict[str, Any]:
    """Its programs, on a topic of its own; a program that fails, or whose answer is wrong, has the reason in place of figures."""
    rows = min(options.rows, ingest_peers.PEERS[peer].most_rows)
    topic = f"bench-{uuid.uuid4().hex[:8]}"
    wanted = fill(broker, topic, rows, options.partitions, keyed=True)
    address = broker.removeprefix("kafka://")
    ingest_peers.finish(address, topic, options.partitions, START_MS + rows)  # rows are half a millisecond apart
    amount = pc.sum(wanted["total"]).as_py()
    figures: dict[str, Any] = {"rows": rows, "guarantee": ingest_peers.PEERS[peer].guarantee}
    for kind in [kind for kind in options.kinds if kind in ("decode", "windows")]:
        out = f"{topic}-{kind}"
        admin.create_topic(broker, out, options.partitions, config={"retention.ms": "-1"})
        shape = (options.partitions, rows, wanted.num_rows, options.threads, MINUTE_MS, DISORDER_MS)
        program = ingest_peers.Program(kind, address, topic, out, *shape)
        try:
            outcome = ingest_peers.run(peer, program)
            check(outcome, rows, -1.0, amount)
            if kind == "windows":
                check_windows(ingest_peers.windows_of(peer, committed(broker, out, options.partitions)), wanted)
        except (ingest_peers.Failed, AssertionError) as error:
            figures[kind] = {"error": f"{type(error).__name__}: {error}"}
        else:
            figures[kind] = {
                "rows_per_s": round(rows / outcome["seconds"]),
                "cpu_seconds_of_a_million": round(outcome["cpu_seconds"] * 1e6 / rows, 2),
            }
        print(f"{peer} {kind}: {figures[kind]}", file=sys.stderr, flush=True)
        admin.delete_topic(broker, out)
    admin.delete_topic(broker, topic)
    return figures


def measure_peers(broker: str, options: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for peer in options.peers:
        try:
            ingest_peers.prepare(peer)
        except NotThere as reason:
            figures[peer] = {"error": str(reason)}
        else:
            figures[peer] = measure_peer(broker, peer, options)
    return figures


def turns(kinds: list[str], rounds: int) -> Iterator[tuple[int, list[str]]]:
    """-> the round's number and the kinds that run next to each other: one with a run of the bound beside it, where that is asked for.

    ["bound", "decode", "windows"], 2 rounds: bound decode, bound windows; windows bound, decode bound
    """
    others = [kind for kind in kinds if kind != "bound"]
    beside = ["bound"] if "bound" in kinds else []
    for number in range(rounds):
        forth = number % 2 == 0
        for kind in others[:: 1 if forth else -1]:
            yield number, [*beside, kind] if forth else [kind, *beside]
        if not others and beside:
            yield number, beside


def measure(broker: str, options: argparse.Namespace) -> dict[str, Any]:
    topic = f"bench-{uuid.uuid4().hex[:8]}"
    windows = fill(broker, topic, options.rows, options.partitions)
    amount = pc.sum(windows["total"]).as_py()
    kinds = [kind for kind in options.kinds if kind != "latency"]
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    shares: dict[str, list[float]] = {kind: [] for kind in kinds if kind != "bound"}
    with tempfile.TemporaryDirectory() as folder:
        program = compiled(folder, COUNTER)
        relay = compiled(folder, RELAY) if "latency" in options.kinds else ""
        size = [one(options, "bound", program, broker, topic, "") for _ in range(WARMUPS)][-1]["bytes"]
        for number, turn in turns(kinds, options.rounds):
            for kind in turn:
                out = f"{topic}-{kind}-{number}"
                if kind == "windows":
                    admin.create_topic(broker, out, options.partitions, config={"retention.ms": "-1"})
                outcome = one(options, kind, program, broker, topic, out)
                check(outcome, options.rows, size, amount)
                if kind == "windows":
                    check_windows(committed(broker, out, options.partitions), windows)
                    admin.delete_topic(broker, out)
                found[kind].append(outcome)
            if len(turn) == 2:
                kind = next(kind for kind in turn if kind != "bound")
                shares[kind].append(found["bound"][-1]["seconds"] / found[kind][-1]["seconds"])
        waits = {"latency": latency(broker, options, relay)} if relay else {}
    admin.delete_topic(broker, topic)
    figures: dict[str, Any] = {"bytes_per_row": round(size / options.rows, 1)}
    for kind, runs in found.items():
        rates = sorted(options.rows / each["seconds"] for each in runs)
        figures[kind] = {
            "rows_per_s": round(median(rates)),
            "rows_per_s_from_to": [round(rates[0]), round(rates[-1])],
            "cpu_seconds": round(median(each["cpu_seconds"] for each in runs), 2),
        }
        if "start_seconds" in runs[0]:
            figures[kind]["start_seconds"] = round(median(each["start_seconds"] for each in runs), 2)
    if bound := figures.get("bound"):
        for kind, ratios in shares.items():
            figures[kind]["of_bound"] = round(median(ratios), 2)
            figures[kind]["of_bound_from_to"] = [round(min(ratios), 2), round(max(ratios), 2)]
            figures[kind]["cpu_of_bound"] = round(figures[kind]["cpu_seconds"] / max(bound["cpu_seconds"], 0.01), 2)
    figures |= waits
    if options.peers:
        figures["peers"] = measure_peers(broker, options)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--rounds", type=int, help="runs of each kind; default: 3, and 1 of fewer than 100,000 records")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--broker", metavar="URL", help="kafka://HOST:PORT; default: our own")
    parser.add_argument("--threads", type=int, default=2, help="subtasks of the windows")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load whose latency is taken")
    parser.add_argument("--peers", nargs="*", choices=ingest_peers.PEERS, help="other engines to run")
    for name in ("--topic", "--out", "--kind"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.rows >= 100_000 else 1)
    if options.peers is None:
        whole = options.rows >= 1_000_000 and set(options.kinds) == set(KINDS)
        options.peers = list(ingest_peers.PEERS) if whole else []
    if options.kind == "stream":
        print(json.dumps(asyncio.run(read_stream(options))))
    elif options.kind == "windows":
        print(json.dumps(write_windows(options)))
    elif options.kind == "latency":
        asyncio.run(forward(options))
    elif options.kind:
        print(json.dumps((read_client if options.kind == "client" else read_source)(options)))
    else:
        with running(options.broker) as broker:
            outcome = measure(broker, options)
        head = {"benchmark": "kafka_ingest", "rows": options.rows, "partitions": options.partitions}
        print(json.dumps({**head, **outcome}))


if __name__ == "__main__":
    main()
