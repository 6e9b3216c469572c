"""map_async against a server that answers after 10 ms: how near it comes to concurrency / latency, 10,000 calls a second.

    python benchmarks/pipelines/map_async.py --rows 50000 --concurrency 100

Rows of a file -> `await ask(row)` -> a sink. The server (raw TCP, asyncio) is in this process, in a thread of its own. `seconds`
runs from the first call to the last row in the sink; `share` is of the ideal. The same function called by hand, from as many
coroutines that take numbers off one iterator, is the most that is possible here: `by_hand_share`. The best of --repeat runs.
Checked: every row's answer, in order where it is ordered; no answer came before its time.
"""

import argparse
import asyncio
import json
import selectors
import struct
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sabot import App, Batch, Sink
from sabot.connectors.files import files

PAIR = struct.Struct("<qq")  # (number of the request, value), both ways
WRITE_AT_ONCE = 8  # requests in one write; more would make calls wait for each other


class Pairs(asyncio.Protocol):
    """What both ends have in common."""

    def __init__(self) -> None:
        self._rest = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) // PAIR.size * PAIR.size
        self._rest = data[whole:]
        self.received(data[:whole])

    def received(self, pairs: bytes) -> None:
        """Whole pairs."""
        raise NotImplementedError


class Answers(Pairs):
    """The server's end: twice the value, so much later."""

    latency_s = 0.01
    least_s = float("inf")

    def received(self, pairs: bytes) -> None:
        self.loop.call_later(self.latency_s, self._answer, pairs, time.perf_counter())

    def _answer(self, pairs: bytes, came: float) -> None:
        Answers.least_s = min(Answers.least_s, time.perf_counter() - came)
        self.transport.write(b"".join([PAIR.pack(number, value * 2) for number, value in PAIR.iter_unpack(pairs)]))


class Client(Pairs):
    """One connection for all calls."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._asked = 0
        self._unwritten = bytearray()

    def ask(self, value: int) -> "asyncio.Future[int]":
        """The answer, when it comes."""
        answer = self._waiting[self._asked] = self.loop.create_future()
        if not self._unwritten:
            self.loop.call_soon(self._write)
        self._unwritten += PAIR.pack(self._asked, value)
        self._asked += 1
        if len(self._unwritten) >= WRITE_AT_ONCE * PAIR.size:
            self._write()
        return answer

    def _write(self) -> None:
        if self._unwritten:
            self.transport.write(bytes(self._unwritten))
            self._unwritten.clear()

    def received(self, pairs: bytes) -> None:
        for number, value in PAIR.iter_unpack(pairs):
            self._waiting.pop(number).set_result(value)


class Server(threading.Thread):
    """Its loop waits with select, whose time-outs are exact: epoll's are whole milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self.port = 0

    def run(self) -> None:
        self.loop.run_forever()

    def open(self) -> None:
        """Returns when it listens."""

        async def listen() -> int:
            server = await self.loop.create_server(Answers, "127.0.0.1", 0)
            return int(server.sockets[0].getsockname()[1])

        self.start()
        self.port = asyncio.run_coroutine_threadsafe(listen(), self.loop).result()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.join()
        self.loop.close()


class Clock:
    """When the first call began."""

    began = 0.0


def asking(port: int, clock: Clock) -> Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]:
    """The user's function, with its connection."""
    connecting: asyncio.Future[tuple[Any, Client]] | None = None
    client: Client | None = None

    async def ask(row: dict[str, Any]) -> dict[str, Any]:
        nonlocal connecting, client
        if client is None:
            if connecting is None:
                clock.began = time.perf_counter()
                loop = asyncio.get_running_loop()
                connecting = loop.create_task(loop.create_connection(Client, "127.0.0.1", port))
            _, client = await connecting
        n = row["n"]
        return {"n": n, "twice": await client.ask(n)}

    return ask


class Keep(Sink):
    """Keeps what comes, and when the last of it came."""

    def __init__(self) -> None:
        self.name = "answers"
        self.batches: list[pa.RecordBatch] = []
        self.last = 0.0

    def open(self) -> None:
        """Nothing to do."""

    def write(self, batch: Batch) -> None:
        self.batches.append(batch.data)
        self.last = time.perf_counter()

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def by_stream(port: int, path: Path, rows: int, concurrency: int, ordered: bool) -> float:
    """-> seconds."""
    clock, answers = Clock(), Keep()
    app = App("map_async")
    stream = app.stream(files(path), schema={"n": "int64"})
    schema = {"n": "int64", "twice": "int64"}
    stream.map_async(asking(port, clock), schema=schema, concurrency=concurrency, ordered=ordered).to(answers)
    app.main()
    table = pa.Table.from_batches(answers.batches)
    n, twice = table.column("n").to_numpy(), table.column("twice").to_numpy()
    assert len(n) == rows, f"{len(n)} answers to {rows} rows"
    assert (np.sort(n) == np.arange(rows)).all()
    assert (twice == n * 2).all()
    assert not ordered or (n == np.arange(rows)).all(), "not in order"
    return answers.last - clock.began


async def by_hand(port: int, rows: int, concurrency: int) -> float:
    """-> seconds."""
    clock = Clock()
    ask = asking(port, clock)
    numbers = iter(range(rows))
    total = 0

    async def work() -> None:
        nonlocal total
        for n in numbers:
            answer = await ask({"n": n})
            total += answer["twice"]

    await asyncio.gather(*(work() for _ in range(concurrency)))
    assert total == rows * (rows - 1)
    return time.perf_counter() - clock.began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--latency-ms", type=float, default=10.0)
    parser.add_argument("--repeat", type=int, default=1, help="runs of each; the best one is shown")
    options = parser.parse_args()
    Answers.latency_s = options.latency_ms / 1000
    ideal = options.concurrency / Answers.latency_s
    server = Server()
    server.open()
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        pq.write_table(pa.table({"n": np.arange(options.rows)}), path)
        for _ in range(options.repeat):
            runs = {
                "by_hand": asyncio.run(by_hand(server.port, options.rows, options.concurrency)),
                "ordered": by_stream(server.port, path, options.rows, options.concurrency, True),
                "unordered": by_stream(server.port, path, options.rows, options.concurrency, False),
            }
            seconds = {name: min(taken, seconds.get(name, taken)) for name, taken in runs.items()}
    server.close()
    assert Answers.least_s >= Answers.latency_s - 1e-5, f"an answer came after {Answers.least_s} s"
    share = {name: round(options.rows / taken / ideal, 3) for name, taken in seconds.items()}
    result = {
        "benchmark": "map_async",
        "rows": options.rows,
        "concurrency": options.concurrency,
        "latency_ms": options.latency_ms,
        "seconds": round(seconds["ordered"], 3),
        "calls_per_s": round(options.rows / seconds["ordered"]),
        "ideal_per_s": round(ideal),
        "share": share["ordered"],
        "unordered_share": share["unordered"],
        "by_hand_share": share["by_hand"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
