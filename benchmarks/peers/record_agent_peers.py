"""The same record agent in Sabot, Faust and Quix Streams, on the same real Kafka broker, one after the other.

    python benchmarks/peers/record_agent_peers.py --rows 200000
    python benchmarks/peers/record_agent_peers.py --only quix --repeat 3 --python python3.12

    topic (1 partition, written once) --JSON--> agent: count of this account, get + put --JSON--> a topic of its own

The broker is started on free ports in a temporary folder, unless --broker is given. Each agent is one process, reads the
topic from its start, and finds its output topic made. Time: from the agent's first record, as it says itself, to the last
result that a consumer of ours sees. Checked: the counts of each account are 1..n; a result that came twice is reported,
as none of them promises more than at least once. The peers are installed into .venv-peers/ (agent_*.py say how each is
set up); --python chooses their interpreter.

    sabot-memory-1, -64    state in memory, calls at a time: 1 or 64
    sabot-rocksdb-64       state in RocksDB, a checkpoint each second
    faust, faust-linger    table in memory, changelog topic; its producer's linger as it comes (0), or 5 ms
    quix                   state in RocksDB, changelog topic
"""

import argparse
import json
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from confluent_kafka import Consumer, TopicPartition

sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines"))
from record_agent import publish
from venvs import VENVS, python_of

from sabot.kafka import open_sink

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KAFKA = ROOT / "tools" / "kafka" / "kafka.sh"
AGENTS = {
    # framework, state, concurrency (Faust: the producer's linger in ms)
    "sabot-memory-1": ("sabot", "memory", 1),
    "sabot-memory-64": ("sabot", "memory", 64),
    "sabot-rocksdb-64": ("sabot", "rocksdb", 64),
    "faust": ("faust", "", 0),
    "faust-linger": ("faust", "", 5),
    "quix": ("quix", "", 0),
}
PACKAGES = {"faust": "faust-streaming", "quix": "quixstreams"}
PATIENCE_SECONDS = 60.0
SLOWEST_ROWS_PER_S = 1_000
FETCHED = 10_000


class Failed(Exception):
    """This agent did not run to its end."""


@contextmanager
def kafka_broker() -> Iterator[str]:
    """A broker of our own -> "host:port"; it is stopped by its pid."""
    with tempfile.TemporaryDirectory(prefix="sabot-bench-") as folder:
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        port, controller = (str(each.getsockname()[1]) for each in sockets)
        for each in sockets:
            each.close()
        options = ["--port", port, "--controller-port", controller, "--dir", folder]
        with open(Path(folder) / "kafka.out", "w") as out:  # no pipe: the broker would hold it open
            subprocess.run([KAFKA, "start", *options], stdout=out, stdin=subprocess.DEVNULL, check=True)
            try:
                yield f"127.0.0.1:{port}"
            finally:
                subprocess.run([KAFKA, "stop", *options], stdout=out, check=True)


class Observer:
    """Reads a topic in a thread of its own; knows when it saw the last record."""

    def __init__(self, broker: str, topic: str) -> None:
        self._consumer = Consumer({"bootstrap.servers": broker, "group.id": "observer", "enable.auto.commit": False})
        self._consumer.assign([TopicPartition(topic, 0, 0)])
        self.payloads: list[bytes] = []
        self.last_seen = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._closing.is_set():
            messages = self._consumer.consume(FETCHED, 0.02)
            if messages:
                self.last_seen = time.time()
                self.payloads += [message.value() for message in messages if message.error() is None]

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._consumer.close()


def command_of(name: str, broker: str, topics: list[str], folder: str, interpreter: str) -> list[str]:
    framework, state, number = AGENTS[name]
    script = str(HERE / f"agent_{framework}.py")
    if framework == "sabot":
        place = folder if state == "rocksdb" else state
        return [sys.executable, script, broker, *topics, place, str(number)]
    extra = [str(number)] if framework == "faust" else []
    return [python_of(framework, interpreter), script, broker, *topics, folder, *extra]


def run(name: str, broker: str, in_topic: str, counts: list[int], interpreter: str) -> dict[str, Any]:
    """One agent over the whole topic -> its figures. Raises Failed."""
    out_topic = f"{name}-{time.time_ns()}"
    sink = open_sink(out_topic, f"kafka://{broker}")
    sink.open()  # makes the topic
    sink.close()
    with tempfile.TemporaryDirectory(prefix="sabot-bench-") as folder:
        command = command_of(name, broker, [in_topic, out_topic], folder, interpreter)
        observer = Observer(broker, out_topic)
        with open(Path(folder) / "said", "w+") as said:
            process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, cwd=ROOT)
            try:
                wait_for(sum(counts), process, observer, said)
            finally:
                stop(process, signal.SIGINT if name.startswith("sabot") else signal.SIGTERM)
                observer.close()
            said.seek(0)
            found = re.search(r"first (\d+\.\d+)", said.read())  # beside what a console is told
    if found is None:
        raise Failed("did not say when its first record came")
    seconds = observer.last_seen - float(found[1])
    rows = sum(counts)
    return {
        "rows_per_s": round(rows / seconds),
        "seconds": round(seconds, 3),
        "repeated_results": check(name, observer.payloads, counts),
    }


def wait_for(rows: int, process: "subprocess.Popen[bytes]", observer: Observer, said: IO[str]) -> None:
    seconds = PATIENCE_SECONDS + rows / SLOWEST_ROWS_PER_S
    deadline = time.monotonic() + seconds
    while len(observer.payloads) < rows:
        if process.poll() is not None or time.monotonic() > deadline:
            said.seek(0)
            what = "ended" if process.poll() is not None else f"was not done after {seconds:.0f} s"
            raise Failed(f"{what} with {len(observer.payloads)} results of {rows}: ...{said.read()[-1500:]}")
        time.sleep(0.05)


def stop(process: "subprocess.Popen[bytes]", sign: signal.Signals) -> None:
    process.send_signal(sign)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def check(name: str, payloads: list[bytes], counts: list[int]) -> int:
    """-> how many results came more than once."""
    seen: dict[str, Counter[int]] = {}
    for payload in payloads:
        result = json.loads(payload)
        seen.setdefault(result["account"], Counter())[result["seen"]] += 1
    for account, count in enumerate(counts):
        got = set(seen.get(f"acc{account}", ()))
        assert got == set(range(1, count + 1)), f"{name}: acc{account} counts {sorted(got)}, not 1..{count}"
    return len(payloads) - sum(counts)


def measure(broker: str, arguments: argparse.Namespace) -> dict[str, Any]:
    names = [name for name in AGENTS if not arguments.only or name.split("-")[0] in arguments.only]
    in_topic = f"payments-{time.time_ns()}"
    counts = publish(f"kafka://{broker}", in_topic, arguments.rows)
    figures: dict[str, Any] = {}
    for name in names:
        try:
            runs = [run(name, broker, in_topic, counts, arguments.python) for _ in range(arguments.repeat)]
        except (Failed, subprocess.CalledProcessError) as error:
            figures[name] = {"error": str(error)}
        else:
            rates = [each["rows_per_s"] for each in runs]
            figures[name] = {**runs[rates.index(max(rates))], "median_rows_per_s": round(statistics.median(rates))}
        print(name, json.dumps(figures[name]), file=sys.stderr)
    return figures


def versions(arguments: argparse.Namespace) -> dict[str, str]:
    """What ran; as pip in the peers' environments says."""
    found = {"sabot": version("sabot"), "python": sys.version.split()[0]}
    for peer, package in PACKAGES.items():
        folder = VENVS / f"{peer}-{Path(arguments.python).name}"
        if folder.exists():
            ask = f"import platform, importlib.metadata as m; print(m.version({package!r}), platform.python_version())"
            done = subprocess.run([folder / "bin" / "python", "-c", ask], capture_output=True, text=True, check=True)
            found[peer] = "{} on Python {}".format(*done.stdout.split())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--broker", default="", help="host:port of a running broker")
    parser.add_argument("--only", nargs="+", choices=["sabot", "faust", "quix"])
    parser.add_argument("--repeat", type=int, default=1, help="runs of each; the fastest and the median are given")
    parser.add_argument(
        "--python", default=f"python3.{sys.version_info.minor}", help="the interpreter for the peers' environments"
    )
    arguments = parser.parse_args()
    if arguments.broker:
        figures = measure(arguments.broker, arguments)
    else:
        with kafka_broker() as broker:
            figures = measure(broker, arguments)
    outcome = {
        "benchmark": "record_agent_peers",
        "rows": arguments.rows,
        "repeat": arguments.repeat,
        "versions": versions(arguments),
    }
    print(json.dumps({**outcome, **figures}))
    if any("error" in each for each in figures.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
