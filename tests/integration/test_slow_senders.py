"""Ten thousand senders who are slow connect to an app that receives webhooks: the others are answered, and the app keeps its memory."""

import contextlib
import http.client
import json
import os
import resource
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from tools.agent_tools import PATIENCE
from tools.broker import free_ports

SLOW = 10_000
UNDER_WAY = 1_200  # of them: as many as have places, and as many as the kernel lets wait for one
DESCRIPTORS = 1_024  # that the app may have, so that a quarter is for connections
PLACES = 256
PROGRAM = f"""
import asyncio, resource, sys

resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS}))
from sabot import App
from sabot.connectors.files import NdjsonSink
from sabot.connectors.http import WebhookSource

app = App("received", state="state", checkpoint_interval="100ms")
hooks = WebhookSource("hooks.db", port=int(sys.argv[1]), path="/in", key="Webhook-Id")
app.stream(hooks, schema={{"n": "int64"}}).to(NdjsonSink("out.ndjson"))
asyncio.run(app.run())
"""
HEAD = b"POST /in HTTP/1.1\r\nHost: h\r\nWebhook-Id: slow\r\n"
LARGE = 1 << 20
KINDS = {  # what a sender sends at once, and what then again and again
    "nothing": (b"", b""),
    "a half of a head": (HEAD, b""),
    "a head line by line": (HEAD, b"X-Slow: 1\r\n"),
    "no body": (HEAD + b"Content-Length: 1000\r\n\r\n", b""),
    "a body byte by byte": (HEAD + b"Content-Length: 1000\r\n\r\n", b"x"),
    "the first half of a large body": (HEAD + b"Content-Length: %d\r\n\r\n" % LARGE + bytes(LARGE // 2), b""),
}


@dataclass(eq=False)
class Slow:
    """A sender who is slow. `said`: what he was answered."""

    kind: str
    connection: socket.socket
    unsent: memoryview
    said: bytearray = field(default_factory=bytearray)

    def step(self, *, again: bool) -> bool:
        """Sends and reads what can be. `again`: sends a little more. Returns False when the server has ended the connection."""
        if again and not self.unsent:
            self.unsent = memoryview(KINDS[self.kind][1])
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while self.unsent:
                self.unsent = self.unsent[self.connection.send(self.unsent) :]
        try:
            while piece := self.connection.recv(4096):
                self.said += piece
        except BlockingIOError:
            return True
        except ConnectionError:
            pass
        return False

    @property
    def status(self) -> int:
        return int(self.said.split()[1]) if self.said else 0


def crowd(port: int) -> Iterator[Slow]:
    """Connects one slow sender after the other, as fast as the server ends them, and gives each that it has ended."""
    kinds, open_ones = list(KINDS), selectors.DefaultSelector()
    begun, trickled = 0, time.monotonic()
    end = trickled + PATIENCE
    while begun < SLOW or open_ones.get_map():
        assert time.monotonic() < end, f"{len(open_ones.get_map())} of {begun} slow senders have kept their connection"
        while begun < SLOW and len(open_ones.get_map()) < UNDER_WAY:
            kind = kinds[begun % len(kinds)]
            made = socket.create_connection(("127.0.0.1", port), PATIENCE)
            made.setblocking(False)
            open_ones.register(made, selectors.EVENT_READ, Slow(kind, made, memoryview(KINDS[kind][0])))
            open_ones.get_key(made).data.step(again=False)
            begun += 1
        ready = {key.data for key, _ in open_ones.select(0.1)}
        if again := time.monotonic() - trickled > 0.5:
            trickled = time.monotonic()
            ready = {key.data for key in open_ones.get_map().values()}
        for each in ready:
            if not each.step(again=again):
                open_ones.unregister(each.connection)
                each.connection.close()
                yield each
    open_ones.close()


def post(port: int, n: int) -> int:
    """Sends a delivery, and returns the status of the answer; 0 for none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("POST", "/in", json.dumps({"n": n}), {"Webhook-Id": f"d-{n}"})
        return connection.getresponse().status
    except (ConnectionError, http.client.BadStatusLine):
        return 0
    finally:
        connection.close()


class Sender(threading.Thread):
    """A sender who sends one delivery after the other, each until it is taken, as senders do. `waits`: the seconds for each."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port, self.over = port, threading.Event()
        self.waits: list[float] = []
        self.answers: Counter[int] = Counter()

    def run(self) -> None:
        for n in count():
            began = time.monotonic()
            while (status := post(self.port, n)) not in (200, 202):
                self.answers[status] += 1
                if time.monotonic() - began > PATIENCE:
                    return
            self.answers[status] += 1
            self.waits.append(time.monotonic() - began)
            if self.over.is_set():
                return


class App:
    """The app, as the kernel sees it."""

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        self.folder = folder
        (folder / "received.py").write_text(PROGRAM)
        self.process = subprocess.Popen([sys.executable, "received.py", str(self.port)], cwd=folder)

    def bytes(self, name: str) -> int:
        """The memory of the process: VmRSS, what it has now; VmHWM, the most that it had."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def rows(self) -> list[int]:
        return [json.loads(line)["n"] for line in (self.folder / "out.ndjson").read_text().splitlines()]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    made = App(tmp_path)
    end = time.monotonic() + PATIENCE
    while post_or_none(made.port) != 404:
        assert made.process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    yield made
    made.process.kill()
    made.process.wait()


def post_or_none(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("POST", "/other", "{}")
        return connection.getresponse().status
    except ConnectionRefusedError:
        return 0
    finally:
        connection.close()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """More of them for this process, if it has too few for all who are under way."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before, min(2 * UNDER_WAY, most)), most))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


@pytest.mark.slow  # half a minute of two cores
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of another process in /proc")
def test_slow_senders_keep_nobody_out_take_little_memory_and_are_told_why_they_are_refused(
    app: App, many_descriptors: None
) -> None:
    sender = Sender(app.port)
    sender.start()
    end = time.monotonic() + PATIENCE
    while len(sender.waits) < 300:  # the app has what it needs for deliveries
        assert time.monotonic() < end
        time.sleep(0.05)
    memory, files = app.bytes("VmRSS"), app.descriptors()
    before = len(sender.waits)
    began, ended, most_files = time.monotonic(), defaultdict(list), files
    for number, each in enumerate(crowd(app.port)):
        ended[each.kind].append(each)
        if number % 100 == 0:
            most_files = max(most_files, app.descriptors())
    seconds = time.monotonic() - began
    sender.over.set()
    sender.join(PATIENCE)

    waits = sorted(sender.waits[before:])
    grown = app.bytes("VmHWM") - memory
    answers = {kind: dict(Counter(each.status for each in those)) for kind, those in ended.items()}
    print(
        f"{SLOW} slow senders in {seconds:.1f} s; beside them {len(waits)} deliveries: half in {waits[len(waits) // 2]:.3f} s, "
        f"the slowest {waits[-1]:.3f} s, answers {dict(sender.answers)}; {grown >> 20} MiB and {most_files - files} descriptors more; "
        f"they were told {answers}"
    )
    assert not sender.is_alive()
    assert len(waits) > 10
    assert waits[-1] < 30
    assert most_files - files < PLACES + 100
    assert grown < 200 << 20
    for kind, those in ended.items():
        told = {each.status for each in those}
        assert told <= ({0, 503} if kind == "nothing" else {408, 429, 503}), (kind, answers)
        assert all(each.said.rpartition(b"\r\n")[2] for each in those if each.said), "an answer has its reason"
    end = time.monotonic() + PATIENCE
    while len(rows := app.rows()) < len(sender.waits):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert rows == list(range(len(sender.waits)))
