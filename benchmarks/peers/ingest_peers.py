"""The programs of benchmarks/pipelines/kafka_ingest.py in other engines, which runs them by `--peers flink quix bytewax faust`.

    decode     3 of the 7 fields of each record, amounts added up
    windows    count, sum and max per account and minute of event time, back into a topic

They read a topic with the same transactions, whose keys are the accounts, so that those who group by a record's key need no other topic;
a last record in each partition has a time an hour later, and closes the windows of those who wait for more records. Time goes from the
first record that a peer reads, as it says itself, to the last one (`decode`), or to the last window that a reader of committed records
gets (of Flink: the end of the job, which is their commit). The start of a process, and the planning of SQL, are not in it.
`cpu_seconds` are those of the process, and of what it has started, in that time. Flink runs in --threads subtasks, in a JVM that has read
the topic once before, and ends with the topic; the others are one process each. Faust writes each window after each record: it closes
windows by the clock of the wall only.
"""

import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import ingest_flink
import pyarrow as pa
import pyarrow.compute as pc
import venvs
from confluent_kafka import Consumer, Producer, TopicPartition
from venvs import python_of

__all__ = ["PEERS", "Failed", "Program", "finish", "prepare", "run", "windows_of"]

HERE = Path(__file__).parent
PATIENCE_SECONDS = 180.0
ENDS = "end"  # the accounts of the last records
END_MS = 3_600_000
FETCHED = 10_000
# what a peer says of its first and last record: the time, its processor time, the sum of the amounts; Faust puts it into a line of its log
MARK = re.compile(r"\b(first|last) (\d+\.\d+) (\d+\.\d+)(?: (\d+\.\d+))? *\n")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Peer:
    """most_rows: more would take minutes. guarantee: of the windows in the topic. ends: with the topic, whose last windows close then."""

    most_rows: int
    guarantee: str
    ends: bool = False


PEERS = {
    "flink": Peer(5_000_000, "exactly once", ends=True),
    "quix": Peer(300_000, "exactly once"),
    "bytewax": Peer(300_000, "none, without recovery", ends=True),
    "faust": Peer(50_000, "at least once"),
}


@dataclass(frozen=True)
class Program:
    """kind: decode or windows. rows, windows: how many there are without those of the last records."""

    kind: str
    broker: str
    topic: str
    out: str
    partitions: int
    rows: int
    windows: int
    threads: int
    minute_ms: int
    disorder_ms: int

    def results(self, peer: str) -> int:
        """How many records a peer writes."""
        if peer == "faust":
            return self.rows + self.partitions
        return self.windows + (self.partitions if PEERS[peer].ends else 0)


class Failed(Exception):
    """A peer did not run to its end."""


def prepare(peer: str) -> None:
    """Its environment is there afterwards. Raises NotThere."""
    ingest_flink.prepare() if peer == "flink" else venvs.prepare(peer)


def finish(broker: str, topic: str, partitions: int, latest_ms: int) -> None:
    """Writes the last record of each partition."""
    producer = Producer({"bootstrap.servers": broker})
    for partition in range(partitions):
        row = f'{{"account":"{ENDS}{partition}","amount":0.0,"ts":{latest_ms + END_MS}}}'
        producer.produce(topic, row.encode(), f"{ENDS}{partition}".encode(), partition)
    assert producer.flush(30) == 0, "the broker does not take the last records"


def windows_of(peer: str, found: pa.Table) -> pa.Table:
    """The windows without those of the last records; the last record of each, where a peer writes several."""
    found = found.filter(pc.invert(pc.starts_with(found["account"], ENDS)))
    if peer != "faust":
        return found
    numbered = found.append_column("place", pa.array(range(found.num_rows)))
    last = numbered.group_by(["account", "window_start"]).aggregate([("place", "max")])
    return found.take(last["place_max"])


def run(peer: str, program: Program) -> dict[str, float]:
    """-> seconds, cpu_seconds, rows; of `decode` the amount. Raises Failed."""
    try:
        if peer == "flink":
            given = (
                program.kind,
                program.broker,
                program.topic,
                program.out,
                program.threads,
                program.minute_ms,
                program.disorder_ms,
            )
            figures = ingest_flink.run(*given, PATIENCE_SECONDS)
        else:
            figures = _run(peer, program)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"was not done after {PATIENCE_SECONDS:.0f} s") from error
    except RuntimeError as error:
        raise Failed(str(error)) from error
    figures["rows"] = figures["rows"] - program.partitions if program.kind == "decode" else program.rows
    return figures


class _Results(threading.Thread):
    """Waits until a reader of committed records has got so many."""

    def __init__(self, program: Program, wanted: int) -> None:
        super().__init__(daemon=True)
        conf = {"bootstrap.servers": program.broker, "group.id": program.out, "enable.auto.commit": False}
        self._consumer = Consumer({**conf, "isolation.level": "read_committed"})
        self._consumer.assign([TopicPartition(program.out, partition, 0) for partition in range(program.partitions)])
        self._wanted, self._closing = wanted, threading.Event()
        self.count, self.full_at = 0, 0.0

    def run(self) -> None:
        while not self._closing.is_set() and not self.full_at:
            self.count += sum(message.error() is None for message in self._consumer.consume(FETCHED, 0.02))
            self.full_at = time.time() if self.count >= self._wanted else 0.0
        self._consumer.close()

    def close(self) -> None:
        self._closing.set()
        self.join()


def _run(peer: str, program: Program) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="sabot-bench-") as folder, open(Path(folder) / "said", "w") as said:
        words = [
            python_of(peer),
            str(HERE / f"ingest_{peer}.py"),
            program.kind,
            program.broker,
            program.topic,
            program.out,
            folder,
        ]
        words += [str(program.rows + program.partitions), str(program.minute_ms), str(program.disorder_ms)]
        results = _Results(program, program.results(peer)) if program.kind == "windows" else None
        process = subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT, cwd=folder)
        try:
            if results is not None:
                results.start()
            cpu = _wait(process, Path(said.name), results)
        finally:
            _stop(process)
            if results is not None:
                results.close()
        marks = _marks(Path(said.name))
    if "first" not in marks:
        raise Failed("it did not say when its first record came")
    began, cpu_before = marks["first"]
    if results is not None:
        return {"seconds": results.full_at - began, "cpu_seconds": cpu - cpu_before, "rows": program.rows}
    ended, cpu_after, amount = marks["last"]
    figures = {"seconds": ended - began, "cpu_seconds": cpu_after - cpu_before, "amount": amount}
    return {**figures, "rows": program.rows + program.partitions}


def _marks(said: Path) -> dict[str, list[float]]:
    return {found[1]: [float(each) for each in found.groups()[1:] if each] for found in MARK.finditer(said.read_text())}


def _wait(process: "subprocess.Popen[bytes]", said: Path, results: _Results | None) -> float:
    """Until the work is done -> the processor time that the process has used. Raises Failed."""
    deadline, cpu = time.monotonic() + PATIENCE_SECONDS, 0.0
    while True:
        ended = process.poll() is not None
        if not ended:
            cpu = _cpu_seconds(process.pid) or cpu
        if results.full_at if results is not None else "last" in _marks(said):
            return cpu
        if time.monotonic() > deadline or (ended and (results is None or process.returncode)):
            what = "ended" if ended else f"was not done after {PATIENCE_SECONDS:.0f} s"
            count = "" if results is None else f" with {results.count} results"
            raise Failed(f"{what}{count}: ...{said.read_text()[-1500:]}")
        time.sleep(0.02)


def _cpu_seconds(pid: int) -> float:
    """Of a process, its ended children, and its children; 0 where it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    return sum(map(int, stat[11:15])) / TICKS + sum(_cpu_seconds(int(child)) for child in children)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
