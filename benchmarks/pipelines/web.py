"""Rows to a web server and from it, beside the HTTP client alone.

    python benchmarks/pipelines/web.py --rows 500000 --rounds 3

    client, sink                requests of 1,000 rows each, by httpx2 with msgspec, and by `HttpSink.deliver`
    client-single, sink-single  a fiftieth of the rows, one in each request
    client-read, source         pages of 1,000 rows with a Link, by httpx2 with msgspec, and by `PollSource`
    client-events, events       server-sent events, by httpx2's lines, and by `SseSource`
    client-messages, websocket  messages of a websocket, by the library websockets, and by `WebsocketSource`
    server, receiver, webhook   a fiftieth of the rows, each a request of 32 senders: to uvicorn, which forgets it; to uvicorn
                                with a table of SQLite and a transaction for each; and to `WebhookSource`
    receiver-tls, webhook-tls   the same over TLS

The server (and sender) is a process of its own, which counts what it gets: number of rows and sum of a column must be
those that were sent, or that it has given.
The rows of a source become columns, as in an app, and those of a client objects of Python.
The ways take turns; of each the round with the least processor time of this process is printed, and its rate beside the
client's. The client is httpx2's for an event loop, which the connectors use, since their requests are bounded in time
as a whole; its other one needs half the processor time for a request.
"""

import argparse
import asyncio
import json
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket
from websockets.sync.client import connect as connect_websocket

from sabot._cython.text.json import JsonDecoder
from sabot.base.http_server import LimitedServer, Message, Receive, Send
from sabot.connectors.base import Source, Track
from sabot.connectors.http import HttpSink, PollSource, SseSource, WebhookSource, WebsocketSource

PAGE = 1_000
SENDERS = 32
SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string()), ("amount", pa.float64())])
Answer = tuple[int, int]  # the number of rows, and the sum of their ids


def parts(rows: int) -> list[pa.RecordBatch]:
    ids = np.arange(rows)
    amounts = np.random.default_rng(53).random(rows)
    whole = pa.record_batch([ids, pa.array(ids % 10_007).cast(pa.string()), amounts], SCHEMA)
    return [whole.slice(first, 100_000) for first in range(0, rows, 100_000)]


# -- the server -------------------------------------------------------------------------------------------------------


async def serve(rows: int) -> None:
    every = [row for part in parts(rows) for row in part.to_pylist()]
    pages = [msgspec.json.encode(every[first : first + PAGE]) for first in range(0, rows, PAGE)]
    events = [
        b"".join(b"id: %d\ndata: %b\n\n" % (row["id"], msgspec.json.encode(row)) for row in every[first : first + PAGE])
        for first in range(0, rows, PAGE)
    ]
    got = [0, 0]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                lines = head.lower().split("\r\n")
                size = next((int(line.split(":")[1]) for line in lines if line.startswith("content-length:")), 0)
                body = await reader.readexactly(size)
                path, more, data = head.split(" ")[1], b"", b""
                if path == "/rows":
                    found = msgspec.json.decode(body)
                    found = found if isinstance(found, list) else [found]
                    got[0], got[1] = got[0] + len(found), got[1] + sum(row["id"] for row in found)
                elif path.startswith("/send"):
                    port, count, tls = (int(part.split("=")[1]) for part in path.partition("?")[2].split("&"))
                    await send_requests(port, [msgspec.json.encode(row) for row in every[:count]], tls=bool(tls))
                elif path == "/got":
                    data, got[0], got[1] = msgspec.json.encode(got), 0, 0
                elif path == "/events":
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
                    for each in events:
                        writer.write(each)
                        await writer.drain()
                    await reader.read()
                    writer.close()
                    return
                else:
                    number = int(path.partition("page=")[2] or 0)
                    data = pages[number] if number < len(pages) else b"[]"
                    if number + 1 < len(pages):
                        more = b'Link: </pages?page=%d>; rel="next"\r\n' % (number + 1)
                writer.write(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (more, len(data), data))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    messages = [msgspec.json.encode(row) for row in every]

    async def say(connection: ServerConnection) -> None:
        for each in messages:
            await connection.send(each)
        await connection.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=1 << 24)
    async with serve_websocket(say, "127.0.0.1", 0, compression=None) as feed:
        print(server.sockets[0].getsockname()[1], feed.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


async def send_requests(port: int, bodies: list[bytes], *, tls: bool) -> None:
    """Sends each body under a number of its own, over as many connections as there are senders, and reads the answers."""
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    left = iter(enumerate(bodies))

    async def sender() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        for number, body in left:
            head = f"POST /in HTTP/1.1\r\nHost: a\r\nWebhook-Id: {number}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 202"), answer
        writer.close()

    await asyncio.gather(*(sender() for _ in range(SENDERS)))


# -- the ways ---------------------------------------------------------------------------------------------------------


async def client_writes(url: str, given: list[pa.RecordBatch], size: int) -> None:
    async with httpx2.AsyncClient() as client:
        for part in given:
            rows = part.to_pylist()
            for first in range(0, len(rows), size):
                body = rows[first : first + size] if size > 1 else rows[first]
                (await client.post(f"{url}/rows", content=msgspec.json.encode(body))).raise_for_status()


def sink_writes(url: str, given: list[pa.RecordBatch], size: int) -> None:
    sink = HttpSink(f"{url}/rows", batch=size)
    sink.claim(Track("bench", "streams.rows", "first"))
    for number, part in enumerate(given, 1):
        sink.deliver(number, [sink.fitting(part)])
    sink.close()


async def client_reads(url: str, rows: int) -> Answer:
    count = total = 0
    page: str | None = "/pages"
    async with httpx2.AsyncClient() as client:
        while page is not None:
            answer = await client.get(url + page)
            found = msgspec.json.decode(answer.content)
            count, total = count + len(found), total + sum(row["id"] for row in found)
            page = answer.links["next"]["url"] if "next" in answer.links else None
    return count, total


async def client_events(url: str, rows: int) -> Answer:
    count = total = 0
    last = ""
    async with httpx2.AsyncClient() as client, client.stream("GET", f"{url}/events") as answer:
        async for line in answer.aiter_lines():
            name, _, value = line.partition(":")
            if name == "id":
                last = value
            elif name == "data":
                count, total = count + 1, total + msgspec.json.decode(value)["id"]
                if count == rows:
                    break
    assert int(last) == rows - 1
    return count, total


def client_messages(url: str, rows: int) -> Answer:
    count = total = 0
    with connect_websocket(url, ping_interval=None, compression=None) as connection:
        while count < rows:
            count, total = count + 1, total + msgspec.json.decode(connection.recv(decode=False))["id"]
    return count, total


def server_takes(origin: str, rows: int, tls: ssl.SSLContext | None = None, *, kept: bool = True) -> Answer:
    """uvicorn alone. `kept`: a request is answered when it is on the disk."""
    found = [0, 0]
    folder = tempfile.TemporaryDirectory(dir=".")
    disk = sqlite3.connect(Path(folder.name, "kept.db"), isolation_level=None, check_same_thread=False)
    disk.execute("PRAGMA journal_mode = WAL")
    disk.execute("PRAGMA synchronous = FULL")
    disk.execute("CREATE TABLE rows (key TEXT PRIMARY KEY, payload BLOB)")

    async def answer(scope: Message, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        found[0], found[1] = found[0] + 1, found[1] + msgspec.json.decode(body)["id"]
        if kept:
            disk.execute("INSERT OR IGNORE INTO rows VALUES (?, ?)", (dict(scope["headers"])[b"webhook-id"], body))
        await send({"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def beside() -> None:
        await asyncio.Event().wait()

    server = LimitedServer(0, "127.0.0.1", name="bench", option="port", tls=tls)
    server.start(answer, beside, lambda: None)
    ask_to_send(origin, server.port, rows, tls)
    server.close()
    disk.close()
    folder.cleanup()
    return found[0], found[1]


def webhook_takes(origin: str, rows: int, tls: ssl.SSLContext | None) -> Answer:
    with tempfile.TemporaryDirectory(dir=".") as folder:
        source = WebhookSource(Path(folder, "hooks.db"), port=0, path="/in", key="Webhook-Id", tls=tls)
        return source_reads(source, rows, lambda: ask_to_send(origin, source.port, rows, tls))


def ask_to_send(origin: str, port: int, rows: int, tls: ssl.SSLContext | None) -> None:
    httpx2.get(f"{origin}/send?port={port}&count={rows}&tls={int(tls is not None)}", timeout=600).raise_for_status()


def certificate() -> ssl.SSLContext:
    """Returns the context of a server, with a certificate that is made for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number())
    made = made.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=6))
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(secret + made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
        file.flush()
        context.load_cert_chain(file.name)
    return context


def source_reads(source: Source, rows: int, begin: Callable[[], None] | None = None) -> Answer:
    """`begin`: lets the rows come, in a thread, when the source is open."""
    count = total = 0
    decoder = JsonDecoder(SCHEMA)
    source.leave_headers()
    source.open(None)
    beginning = threading.Thread(target=begin or (lambda: None))
    beginning.start()
    while count < rows:
        batch = source.read_batch(32_768, 60)
        if batch is None:
            break
        found, bad = decoder.decode(batch.data.column("payload"))
        assert not bad
        count, total = count + found.num_rows, total + pc.sum(found.column("id")).as_py()
    beginning.join()
    source.close()
    return count, total


BESIDE = {
    "sink": "client",
    "sink-single": "client-single",
    "source": "client-read",
    "events": "client-events",
    "websocket": "client-messages",
    "webhook": "receiver",
    "webhook-tls": "receiver-tls",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", help="only these, with commas between them")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rows, single = options.rows, options.rows // 50
    if options.serve:
        asyncio.run(serve(rows))
        return
    command = [sys.executable, __file__, "--serve", "--rows", str(rows)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port, feed = server.stdout.readline().split()
        run(f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{feed}", rows, single, options)
    finally:
        server.kill()
        server.wait()


def run(url: str, feed: str, rows: int, single: int, options: argparse.Namespace) -> None:
    given, few, tls = parts(rows), parts(single), certificate()
    ways: dict[str, tuple[int, Callable[[], Any]]] = {
        "client": (rows, lambda: asyncio.run(client_writes(url, given, PAGE))),
        "sink": (rows, lambda: sink_writes(url, given, PAGE)),
        "client-single": (single, lambda: asyncio.run(client_writes(url, few, 1))),
        "sink-single": (single, lambda: sink_writes(url, few, 1)),
        "client-read": (rows, lambda: asyncio.run(client_reads(url, rows))),
        "source": (rows, lambda: source_reads(PollSource(f"{url}/pages", next="link"), rows)),
        "client-events": (rows, lambda: asyncio.run(client_events(url, rows))),
        "events": (rows, lambda: source_reads(SseSource(f"{url}/events", ids="consecutive"), rows)),
        "client-messages": (rows, lambda: client_messages(feed, rows)),
        "websocket": (rows, lambda: source_reads(WebsocketSource(feed), rows)),
        "server": (single, lambda: server_takes(url, single, kept=False)),
        "receiver": (single, lambda: server_takes(url, single)),
        "webhook": (single, lambda: webhook_takes(url, single, None)),
        "receiver-tls": (single, lambda: server_takes(url, single, tls)),
        "webhook-tls": (single, lambda: webhook_takes(url, single, tls)),
    }
    if options.ways:
        ways = {way: ways[way] for way in options.ways.split(",")}
    best: dict[str, tuple[float, float]] = {}
    for _ in range(options.rounds):
        for way, (count, work) in ways.items():
            began, cpu = time.perf_counter(), time.process_time()
            found = work()
            figures = time.process_time() - cpu, time.perf_counter() - began
            found = found or tuple(httpx2.get(f"{url}/got").json())
            if found != (count, count * (count - 1) // 2):
                sys.exit(f"{way}: {found}, and {count} rows were given")
            best[way] = min(best.get(way, figures), figures)
    for way, (cpu, seconds) in best.items():
        beside = best.get(BESIDE.get(way, way), (cpu, seconds))[0] / cpu
        figures_of = {"rows": ways[way][0], "cpu_seconds": round(cpu, 3), "seconds": round(seconds, 3)}
        print(json.dumps({"way": way, **figures_of, "beside_client": round(beside, 2)}))


if __name__ == "__main__":
    main()
