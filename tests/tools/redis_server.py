"""A Redis server for the tests: Debian's program, in a folder of its own, on a free port of loopback."""

import functools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tools.broker import free_ports
from tools.leftovers import leftovers

_START_SECONDS = 60.0


class RedisMissing(Exception):
    """The program is not installed."""


class Redis:
    """A server whose `stop` and `start` keep the port. `password`: the password that clients have to give. `keeps`: True for an
    append-only file, so that no data is lost either.
    """

    def __init__(self, password: str = "", *, keeps: bool = False) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise RedisMissing("no Redis server: apt-get install redis-server")
        self._program = program
        self._password = password
        self._keeps = keeps
        self.folder = leftovers().folder(Path(tempfile.mkdtemp(prefix="sabot-redis-")))
        (self.port,) = free_ports(1)
        self.url = f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        settings = [
            "port",
            str(self.port),
            "bind",
            "127.0.0.1",
            "save",
            "",
            "appendonly",
            "yes" if self._keeps else "no",
            "appendfsync",
            "always",
            "dir",
            str(self.folder),
        ]
        if self._password:
            settings += ["requirepass", self._password]
        words = [f"--{word}" if place % 2 == 0 else word for place, word in enumerate(settings)]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [self._program, *words], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        leftovers().process(self._process.pid)
        until = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"Redis did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.005)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))  # and not -LOADING
        except OSError:
            return False

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(60)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@functools.cache
def shared_server() -> Redis:
    """One server for all tests of the session. RedisMissing where its program is missing."""
    server = Redis()
    leftovers().at_end(server.remove)
    return server


def server_or_skip(password: str = "", *, keeps: bool | None = None) -> Redis:
    """The shared server, or with a password or `keeps` one of the caller's own, who removes it. A machine without one skips the test, or
    fails it with SABOT_REQUIRE_REDIS=1.
    """
    try:
        return shared_server() if keeps is None and not password else Redis(password, keeps=bool(keeps))
    except RedisMissing as missing:
        if os.environ.get("SABOT_REQUIRE_REDIS") == "1":
            pytest.fail(f"{missing} (SABOT_REQUIRE_REDIS=1)", pytrace=False)
        pytest.skip(str(missing))
