"""A console and metrics that strangers of the same machine attack, without a token: the app and its checkpoints go on."""

import http.client
import re
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tools.command_line import ENV, SABOT, child

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PROGRAM = """
import time
from sabot import App, NdjsonSink

app = App("shop", state="state", checkpoint_interval="500ms")

@app.source(schema={"number": "int64"})
def numbers(start):
    for number in range(start, 1_000_000_000):
        time.sleep(0.01)
        yield {"number": number}

app.stream(numbers).to(NdjsonSink("out.ndjson"))
"""
DESCRIPTORS = 400
SOCKETS = 700


class Attacked:
    """A run of the program, with few descriptors."""

    def __init__(self, folder: Path, process: object, said: str) -> None:
        self.folder = folder
        self.process = process
        self.link = re.findall(r"http://\S+/enter\?token=\S+", said)[0]
        self.port = urlsplit(self.link).port or 0
        self.metrics = int(re.findall(r"http://127.0.0.1:(\d+)/metrics", said)[0])

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def newest(self) -> int:
        """The number of the newest checkpoint."""
        kept = (self.folder / "state" / "checkpoints" / "checkpoints").glob("*.json")
        return max((int(each.name.partition("-")[0]) for each in kept), default=0)

    def loads(self) -> float:
        """The seconds that the page takes which the link names."""
        began = time.monotonic()
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        split = urlsplit(self.link)
        client.request("GET", f"{split.path}?{split.query}", headers={"Host": split.netloc})
        assert client.getresponse().status == 200
        client.close()
        return time.monotonic() - began

    def scrapes(self) -> float:
        began = time.monotonic()
        client = http.client.HTTPConnection("127.0.0.1", self.metrics, timeout=60)
        client.request("GET", "/metrics")
        assert b"sabot_" in client.getresponse().read()
        client.close()
        return time.monotonic() - began


@pytest.fixture
def attacked(tmp_path: Path) -> Iterator[Attacked]:
    (tmp_path / "shop.py").write_text(PROGRAM)
    log = tmp_path / "log"
    run = [*SABOT, "run", "shop:app", "--web", "--web-port", "0", "--metrics-port", "0", "--loglevel", "info"]
    few = ["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}", *run]
    with open(log, "w") as file, child(*few, cwd=tmp_path, env=ENV, stdout=file, stderr=file) as process:
        deadline = time.monotonic() + 60
        while "/metrics" not in log.read_text() or len(re.findall(r"/enter\?token=\S+\n", log.read_text())) < 2:
            assert time.monotonic() < deadline, log.read_text()
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        made = Attacked(tmp_path, process, log.read_text())
        while made.newest() < 2:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield made
        assert process.poll() is None


@contextmanager
def sockets(port: int, sent: bytes) -> Iterator[Callable[[], None]]:
    """Sockets that send and never read. Yields a function that opens those anew that the server has closed."""
    with ExitStack() as opened:
        mine: list[socket.socket] = []

        def again() -> None:
            for each in list(mine):
                try:
                    each.send(sent[:1] or b"x")
                except BlockingIOError:
                    continue
                except OSError:
                    each.close()
                    mine.remove(each)
            while len(mine) < SOCKETS:
                made = socket.socket()
                opened.callback(made.close)
                made.setblocking(False)
                with suppress(BlockingIOError):
                    made.connect(("127.0.0.1", port))
                with suppress(OSError):
                    made.send(sent)
                mine.append(made)

        again()
        yield again


@pytest.fixture(autouse=True, scope="module")
def enough_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1], 16_384), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("sent", ["nothing", "half a request", "requests"])
def test_sockets_that_do_not_read_take_nothing_from_the_app(attacked: Attacked, sent: str) -> None:
    """They shut everybody out, took all descriptors of the app, so that its checkpoints failed, and filled the log with 36 MB."""
    host = urlsplit(attacked.link).netloc
    request = f"GET /assets/console.css HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    first = {"nothing": b"", "half a request": request[:-2], "requests": request * 200}[sent]
    before = attacked.newest()
    began = time.monotonic()
    slowest = 0.0
    with sockets(attacked.port, first) as of_console, sockets(attacked.metrics, first) as of_metrics:
        while time.monotonic() < began + 15 or attacked.newest() <= before + 5:  # its checkpoints go on
            assert time.monotonic() < began + 120
            of_console()
            of_metrics()
            open_now = len(list(Path(f"/proc/{attacked.process.pid}/fd").iterdir()))  # type: ignore[attr-defined]
            assert open_now < DESCRIPTORS * 3 // 4 + 16
            slowest = max(slowest, attacked.loads(), attacked.scrapes())
            time.sleep(0.5)
    assert slowest < 30, "0.2 s on an idle machine"
    log = attacked.log()
    assert len(log) < 20_000
    assert not re.findall("checkpoint .*fail|Traceback|Too many open files", log)
