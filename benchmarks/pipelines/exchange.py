"""Rows between two processes on loopback: bare Arrow Flight, the exchange, a shuffle by key over it, and how long barriers take under load.

    python benchmarks/pipelines/exchange.py --rows 4000000

The rows are those of make_txns.py, 7 columns, in batches of 32,768. The bound is a `do_put` of them into a Flight server that does nothing
but read; the exchange moves the same batches from a channel here into a channel there. Rounds take turns, and the best counts. The
shuffle deals the rows by account to 4 edges, as selections. Barriers go down one edge each 8 batches while its channels are full, and
down one channel between two threads of one process, whose reader does the same work: the difference is what the border adds.

Checked: rows and the sum of amounts (in cents) arrive, every barrier in its place, and of the shuffle each account at one edge.
"""

import argparse
import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from make_txns import CHUNK_ROWS, Transactions
from pyarrow import flight

from sabot import Batch
from sabot._cython.flow.channel import END, Barrier, Channel, Gate
from sabot._cython.groups.partition import hash_columns, partition_indices
from sabot.engine.exchange import Exchange

BATCH_ROWS = 32_768
EDGES = 4
BATCHES_PER_BARRIER = 8
TOKEN = "SABOT_BENCHMARK_TOKEN"  # the variable of the child's environment


class Answer:
    """What has arrived: rows, cents, whose rows an edge brought, and when barriers came."""

    def __init__(self, *, dealt: bool = False) -> None:
        self.rows = self.cents = 0
        self.arrived: dict[int, float] = {}
        self._dealt = dealt
        self._owners: set[int] = set()

    def add(self, data: pa.RecordBatch) -> None:
        self.rows += data.num_rows
        self.cents += round((pc.sum(data.column("amount")).as_py() or 0.0) * 100)
        if self._dealt:
            _, bounds = partition_indices(hash_columns([data.column("account")]), EDGES)
            self._owners.update(np.flatnonzero(np.diff(bounds.to_numpy())).tolist())

    def figures(self) -> dict[str, object]:
        return {
            "rows": self.rows,
            "cents": self.cents,
            "owners": sorted(self._owners),
            "arrived": self.arrived,
            "cpu": time.process_time(),
        }


def read(channels: list[Channel], *, dealt: bool = False) -> list[Answer]:
    """Reads all channels, each behind a gate of its own, in threads, until END."""
    answers = [Answer(dealt=dealt) for _ in channels]

    def run(channel: Channel, answer: Answer) -> None:
        gate = Gate([channel])
        while (item := gate.next(60))[1] is not END:
            if isinstance(item[1], Batch):
                answer.add(item[1].taken())
            else:
                answer.arrived[item[1].checkpoint_id] = time.monotonic()

    threads = [threading.Thread(target=run, args=each) for each in zip(channels, answers, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


class Bare(flight.FlightServerBase):
    """Reads what is put."""

    def do_put(self, context, descriptor, reader, writer) -> None:
        answer = Answer()
        for chunk in reader:
            answer.add(chunk.data)
        writer.write(json.dumps(answer.figures()).encode())


def receive() -> None:
    """The child: says its addresses, then takes commands, a line each, until its input ends."""
    exchange = Exchange(os.environ[TOKEN])
    bare = Bare(("127.0.0.1", 0))
    print(json.dumps({"exchange": exchange.address, "bare": bare.port}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        channels = [Channel() for _ in asked["edges"]]
        for edge, channel in zip(asked["edges"], channels, strict=True):
            exchange.receive(edge, channel)
        answers = read(channels, dealt=len(channels) > 1)
        print(json.dumps([answer.figures() for answer in answers]), flush=True)
    exchange.close()
    bare.shutdown()


class Receiver:
    """The child, as the sender sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        said = json.loads(process.stdout.readline())
        self.exchange, self.bare = said["exchange"], said["bare"]

    def expect(self, edges: list[str]) -> None:
        self._process.stdin.write(json.dumps({"edges": edges}) + "\n")
        self._process.stdin.flush()

    def answers(self) -> list[dict]:
        return json.loads(self._process.stdout.readline())


@contextlib.contextmanager
def receiver(token: str) -> Iterator[Receiver]:
    command = [sys.executable, __file__, "--receive"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, TOKEN: token}
    ) as process:
        yield Receiver(process)
        process.stdin.close()


def failed(edge: str, error: BaseException) -> None:
    print(f"{edge}: {error}", file=sys.stderr)
    os._exit(1)


class Run:
    """The rows, and ways to send them."""

    def __init__(self, rows: int, child: Receiver, exchange: Exchange) -> None:
        drawn = Transactions(7)
        chunks = [drawn.chunk(number) for number in range(min(4, -(-rows // CHUNK_ROWS)))]
        parts = [chunk.slice(start, BATCH_ROWS) for chunk in chunks for start in range(0, CHUNK_ROWS, BATCH_ROWS)]
        count = max(1, rows // BATCH_ROWS)
        self.batches = [parts[number % len(parts)] for number in range(count)]
        self.rows = sum(batch.num_rows for batch in self.batches)
        self.cents = sum(round(pc.sum(batch.column("amount")).as_py() * 100) for batch in self.batches)
        self.child = child
        self.exchange = exchange
        self._cpu_there = 0.0
        self._names = (f"edge {number}" for number in range(1 << 30))

    def timed(self, step: Callable[[], float]) -> tuple[float, float]:
        """-> (seconds, processor seconds of both processes) of one of the next three."""
        here, there = time.process_time(), self._cpu_there
        took = step()
        return took, time.process_time() - here + self._cpu_there - there

    def bare(self) -> float:
        client = flight.FlightClient(("127.0.0.1", self.child.bare))
        began = time.perf_counter()
        writer, reader = client.do_put(flight.FlightDescriptor.for_path("bare"), self.batches[0].schema)
        for batch in self.batches:
            writer.write_batch(batch)
        writer.done_writing()
        answer = json.loads(reader.read().to_pybytes())
        took = time.perf_counter() - began
        writer.close()
        client.close()
        self.check([answer])
        return took

    def exchanged(self) -> float:
        (channel,) = self._edges(1)
        batches = [Batch(batch) for batch in self.batches]
        began = time.perf_counter()
        for batch in batches:
            channel.put(batch)
        channel.put(END)
        answers = self.child.answers()
        took = time.perf_counter() - began
        self.check(answers)
        return took

    def shuffled(self) -> float:
        channels = self._edges(EDGES)
        batches = [Batch(batch) for batch in self.batches]
        began = time.perf_counter()
        for batch in batches:
            hashes = hash_columns([batch.data.column("account")])
            rows, bounds = partition_indices(hashes, EDGES)
            ends = bounds.to_pylist()
            for channel, start, end in zip(channels, ends, ends[1:], strict=False):
                if end > start:
                    channel.put(batch.with_selection(rows.slice(start, end - start), hashes))
        for channel in channels:
            channel.put(END)
        answers = self.child.answers()
        took = time.perf_counter() - began
        self.check(answers)
        owners = [answer["owners"] for answer in answers]
        assert owners == [[number] for number in range(EDGES)], f"rows of {owners} came by the edges"
        return took

    def barriers(self, *, local: bool) -> np.ndarray:
        """How long each took, in ms, from its put to the gate of the reader."""
        channel = Channel() if local else self._edges(1)[0]
        found: list[Answer] = []
        reader = threading.Thread(target=lambda: found.extend(read([channel])))
        if local:
            reader.start()
        put: dict[int, float] = {}
        for number, batch in enumerate(self.batches, 1):
            channel.put(Batch(batch))
            if number % BATCHES_PER_BARRIER == 0:
                put[number] = time.monotonic()
                channel.put(Barrier(number))
        channel.put(END)
        if local:
            reader.join()
            answers = [found[0].figures()]
        else:
            answers = self.child.answers()
        self.check(answers)
        arrived = {int(number): at for number, at in answers[0]["arrived"].items()}
        assert list(arrived) == list(put), "barriers came in another order"
        return np.array([arrived[number] - put[number] for number in put] or [0.0]) * 1000

    def _edges(self, count: int) -> list[Channel]:
        names = [next(self._names) for _ in range(count)]
        self.child.expect(names)
        channels = [Channel() for _ in names]
        for name, channel in zip(names, channels, strict=True):
            self.exchange.send(name, channel, self.child.exchange)
        return channels

    def check(self, answers: list[dict]) -> None:
        self._cpu_there = max(answer["cpu"] for answer in answers)
        for name, want in (("rows", self.rows), ("cents", self.cents)):
            got = sum(answer[name] for answer in answers)
            assert got == want, f"{got} {name} arrived of {want}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--receive", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.receive:
        receive()
        return
    token = secrets.token_hex(16)
    exchange = Exchange(token)
    exchange.on_failed = failed
    with receiver(token) as child:
        run = Run(options.rows, child, exchange)
        seconds: dict[str, list[tuple[float, float]]] = {"bare": [], "exchange": [], "shuffle": []}
        latencies: dict[str, list[np.ndarray]] = {"channel": [], "exchange": []}
        for _ in range(options.rounds):
            for name, step in (("bare", run.bare), ("exchange", run.exchanged), ("shuffle", run.shuffled)):
                seconds[name].append(run.timed(step))
            latencies["channel"].append(run.barriers(local=True))
            latencies["exchange"].append(run.barriers(local=False))
        exchange.close()
    best = {name: min(took for took, _ in all_of) for name, all_of in seconds.items()}
    cpu = {name: min(used for _, used in all_of) for name, all_of in seconds.items()}
    p50, p99 = ({name: float(np.percentile(np.concatenate(of), q)) for name, of in latencies.items()} for q in (50, 99))
    figures = {
        "benchmark": "exchange",
        "rows": run.rows,
        **{f"{name}_rows_per_s": round(run.rows / took) for name, took in best.items()},
        "of_bare": round(best["bare"] / best["exchange"], 3),
        "shuffle_of_bare": round(best["bare"] / best["shuffle"], 3),
        **{f"{name}_cpu_s_per_m_rows": round(used / run.rows * 1e6, 4) for name, used in cpu.items()},
        **{f"barrier_{name}_p50_ms": round(value, 3) for name, value in p50.items()},
        **{f"barrier_{name}_p99_ms": round(value, 3) for name, value in p99.items()},
        "barrier_added_p50_ms": round(p50["exchange"] - p50["channel"], 3),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
