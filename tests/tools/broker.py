"""A Kafka broker for the tests: started by tools/kafka/kafka.sh, in a folder of its own, on free ports. It ends with its starter."""

import contextlib
import fcntl
import os
import secrets
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

    keep: it and its folder outlive this process, however that ends. mark: it goes with this session in place of that of
    this process, and so does its folder; all processes of the session may start it.
    """

    def __init__(
        self, folder: Path | None = None, url: str = "", *, keep: bool = False, mark: str | None = None
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.mark = mark
        self.url = url
        if folder is not None:
            self._ports = ports_of(folder)
            self.url = f"kafka://127.0.0.1:{self._ports[0]}"

    @property
    def ours(self) -> bool:
        return self.folder is not None

    def start(self) -> None:
        assert self.folder is not None
        if not self.keep and self.mark is None:
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
        # Sabot waits 8 s for an answer of a broker, which is fewer than one without a core may need beside a whole test run. Who may not
        # raise a priority gets a word of `nice` on stderr, and the broker.
        command = ["nice", "-n", "-5", *command]
        environment = {**os.environ, "SABOT_KAFKA_JVM": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"}  # starts faster
        if self.keep:
            environment.pop(MARK, None)
        elif self.mark is not None:
            environment[MARK] = self.mark
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
    """The address of a broker: `url`, or $SABOT_BROKER, or that of a broker which is started here and stopped behind the block."""
    if url := url or os.environ.get("SABOT_BROKER"):
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="sabot-broker-") as folder:
        broker = Broker(Path(folder))
        try:
            broker.start()
            yield broker.url
        finally:
            broker.stop()


def started_or_skipped(broker: Broker) -> Broker:
    """The broker, which runs now. Without Java, Maven or the jars the tests are skipped, or fail with SABOT_REQUIRE_KAFKA=1."""
    try:
        broker.start()
    except BrokerMissing as missing:
        if required():
            pytest.fail(f"{missing} (SABOT_REQUIRE_KAFKA=1)", pytrace=False)
        pytest.skip(str(missing))
    return broker


@contextmanager
def running_or_skipped(broker: Broker) -> Iterator[Broker]:
    """The broker runs inside the block; see `started_or_skipped`."""
    yield started_or_skipped(broker)
    broker.stop()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Of all processes only this one is inside a block of this folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Brokers:
    """The brokers that all processes of a test session share: six workers wait for one JVM and not for six. The first that asks for
    one starts it. It goes with the session with this mark; `stop` is called by the process that began the session.
    """

    def __init__(self, folder: Path, mark: str) -> None:
        self.folder = folder
        self.mark = mark

    def started(self, name: str) -> Broker:
        """The broker of this name; the tests are skipped where there can be none."""
        with locked(self.folder / name):
            return started_or_skipped(Broker(self.folder / name, mark=self.mark))

    @contextmanager
    def alone(self, name: str) -> Iterator[Broker]:
        """Another broker of this name for this process alone, which may stop it and start it again."""
        with locked(self.folder / name):
            yield started_or_skipped(Broker(self.folder / name, mark=self.mark))

    def stop(self) -> None:
        for pid in self.folder.glob("*/pid"):
            Broker(pid.parent, mark=self.mark).stop()


def ports_of(folder: Path) -> tuple[int, int]:
    """The ports of the broker in this folder, the controller's last: free ones the first time, and the same ones from then on."""
    file = folder / "ports"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        first, second = free_ports(2)
        file.write_text(f"{first} {second}")
    port, controller = file.read_text().split()
    return int(port), int(controller)


def required() -> bool:
    """True where a missing broker is a failure, not a reason to skip."""
    return os.environ.get("SABOT_REQUIRE_KAFKA") == "1"


def has_ipv6() -> bool:
    """Whether this machine has a loopback of IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


# A system gives connections their ports from 32768 on. One of those could be taken between the choice and its use; and a client that
# tries again and again to reach one at which nobody listens may be given it for its own end, and is then connected to itself.
PORTS = range(10_000, 32_768)


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses, and that the system gives nobody who asks for any."""
    found: list[int] = []
    while len(found) < count:
        port = secrets.choice(
            PORTS
        )  # not `random`: a test that sets its seed would choose what another worker has chosen
        with socket.socket() as trial, contextlib.suppress(OSError):  # in use
            trial.bind(("127.0.0.1", port))
            found += [port] if port not in found else []
    return found
