"""Rows through a stream of Redis, beside Redis' own client.

    python benchmarks/pipelines/redis_streams.py --rows 200000 --rounds 3

    client-write   the client alone: XADD in pipelines of 5,000
    sink           the same payloads by `RedisStreamSink.deliver`: each 100,000 rows is a part, with its token
    client-read    the client alone: XREAD of 5,000 entries, and a list of the payloads
    source         the same stream by `RedisStreamSource`, as records

The server is one of its own, on a port of loopback, without an append-only file, as the client has no token to keep. Processor time is that
of this process, without the server. All ways must have the same payloads. The ways take turns; of each the round with the least processor
time is printed, and its rate beside the client's.
"""

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing

import redis

from sabot.codecs.records import build_records
from sabot.connectors.base import Track
from sabot.connectors.redis import RedisStreamSink, RedisStreamSource

AT_ONCE = 5_000
ROWS_A_PART = 100_000


def payloads(rows: int) -> list[bytes]:
    return [b'{"account":"a%d","amount":%d,"ts":%d}' % (n % 1_000, n % 97, n) for n in range(rows)]


def client_write(url: str, rows: Sequence[bytes]) -> int:
    client = redis.Redis.from_url(url)
    for first in range(0, len(rows), AT_ONCE):
        pipeline = client.pipeline(transaction=False)
        for payload in rows[first : first + AT_ONCE]:
            pipeline.xadd("client", {"value": payload})
        pipeline.execute()
    return int(client.xlen("client"))


def sink(url: str, rows: Sequence[bytes]) -> int:
    made = RedisStreamSink(url, "sink")
    made.claim(Track("bench", "sink", "first"))
    for number, first in enumerate(range(0, len(rows), ROWS_A_PART), 1):
        some = rows[first : first + ROWS_A_PART]
        made.deliver(number, [build_records(some, None, [0] * len(some), 0, range(len(some)))])
    made.close()
    return int(redis.Redis.from_url(url).xlen("sink"))


def client_read(url: str, rows: Sequence[bytes]) -> int:
    client, last, found = redis.Redis.from_url(url), "0", 0
    while answer := client.xread({"client": last}, count=AT_ONCE):
        entries = answer[0][1]
        values = [fields[b"value"] for _, fields in entries]
        last, found = entries[-1][0], found + len(values)
        if values[0] != rows[found - len(values)]:
            return -1
    return found


def source(url: str, rows: Sequence[bytes]) -> int:
    made, found = RedisStreamSource(url, "client"), 0
    made.open(None)
    while batch := made.read_batch(AT_ONCE, 0):
        if batch.data.column("payload")[0].as_py() != rows[found]:
            return -1
        found += batch.num_rows
    made.close()
    return found


WAYS: dict[str, Callable[[str, Sequence[bytes]], int]] = {
    "client-write": client_write,
    "sink": sink,
    "client-read": client_read,
    "source": source,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = payloads(options.rows)
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp()
    words = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    best: dict[str, tuple[float, float]] = {}
    try:
        client = redis.Redis.from_url(url)
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.01)
        for _ in range(options.rounds):
            client.flushall()
            for way, run in WAYS.items():
                began, cpu = time.perf_counter(), time.process_time()
                found = run(url, rows)
                figures = time.process_time() - cpu, time.perf_counter() - began
                if found != len(rows):
                    sys.exit(f"{way}: {found} of {len(rows)} rows")
                best[way] = min(best.get(way, figures), figures)
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder)
    for way, (cpu, seconds) in best.items():
        beside = best["client-write" if way in ("client-write", "sink") else "client-read"][0] / cpu
        figures_of = {"rows": len(rows), "cpu_seconds": round(cpu, 3), "seconds": round(seconds, 3)}
        print(json.dumps({"way": way, **figures_of, "beside_client": round(beside, 2)}))


if __name__ == "__main__":
    main()
