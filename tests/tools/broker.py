"""A Kafka broker for the tests: started by tools/kafka/kafka.sh, in a folder of its own, on free ports. It ends with its starter."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tools.leftovers import MARK, leftovers

SCRIPT = Path(__file__).parents[2] / "tools" / "kafka" / "kafka.sh"


class BrokerMissing(Exception):
    """Java, Maven or the jars are missing, and cannot be fetched."""


class Broker:
    """`url` is its address. `stop` and `start` keep port and data; only a broker that we started can do that.

    keep: it and its folder outlive this process, however that ends.
    """

    def __init__(self, folder: Path | None = None, url: str = "", *, keep: bool = False) -> None:
        self.folder = folder
        self.keep = keep
        self.url = url
        self._ports = free_ports(2)
        if folder is not None:
            self.url = f"kafka://127.0.0.1:{self._ports[0]}"

    @property
    def ours(self) -> bool:
        return self.folder is not None

    def start(self) -> None:
        assert self.folder is not None
        if not self.keep:
            leftovers().folder(self.folder)
        if shutil.which("java") is None:
            raise BrokerMissing("no Kafka broker: Java is missing")
        (SCRIPT.parents[2] / ".kafka").mkdir(exist_ok=True)
        with open(
            SCRIPT.parents[2] / ".kafka" / "libs.lock", "w"
        ) as lock:  # two workers that fetch the jars at once would remove each other's
            fcntl.flock(lock, fcntl.LOCK_EX)
            libs = self._run("libs")
        if libs.returncode:
            raise BrokerMissing(f"no Kafka broker: {libs.stderr.strip().splitlines()[-1]}")
        done = self._run("start")
        if done.returncode:
            raise RuntimeError(f"the Kafka broker did not start: {done.stderr}")

    def stop(self) -> None:
        self._run("stop").check_returncode()

    def kill(self) -> None:
        """By SIGKILL; returns when it is gone."""
        assert self.folder is not None
        os.kill(int((self.folder / "pid").read_text()), signal.SIGKILL)
        self.stop()  # waits until it is gone

    def _run(self, verb: str) -> "subprocess.CompletedProcess[str]":
        port, controller = (str(port) for port in self._ports)
        command = [str(SCRIPT), verb, "--port", port, "--controller-port", controller, "--dir", str(self.folder)]
        environment = {**os.environ, "SABOT_KAFKA_JVM": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"}  # starts faster
        if self.keep:
            environment.pop(MARK, None)
        # the output goes to files: the broker outlives the script, and would hold a pipe open
        assert self.folder is not None
        with open(self.folder / "script.out", "w+") as out, open(self.folder / "script.err", "w+") as err:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=180, check=False, env=environment
            )
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, out.read(), err.read())


@contextmanager
def running(url: str | None) -> Iterator[str]:
    """The address of a broker: `url`, or that of a broker which is started here and stopped behind the block."""
    if url:
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="sabot-broker-") as folder:
        broker = Broker(Path(folder))
        try:
            broker.start()
            yield broker.url
        finally:
            broker.stop()


@contextmanager
def running_or_skipped(broker: Broker) -> Iterator[Broker]:
    """The broker runs inside the block. Without Java, Maven or the jars the tests are skipped, or fail with SABOT_REQUIRE_KAFKA=1."""
    try:
        broker.start()
    except BrokerMissing as missing:
        if required():
            pytest.fail(f"{missing} (SABOT_REQUIRE_KAFKA=1)", pytrace=False)
        pytest.skip(str(missing))
    yield broker
    broker.stop()


def required() -> bool:
    """True where a missing broker is a failure, not a reason to skip."""
    return os.environ.get("SABOT_REQUIRE_KAFKA") == "1"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
