"""A server of Google's object store for the tests: an emulator, in memory, in a process of its own, on a free port of loopback."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import urlopen

from tools.broker import free_ports
from tools.leftovers import leftovers

_START_SECONDS = 60.0


@contextmanager
def gcs_server(bucket: str) -> Iterator[int]:
    """Gives its port. There is this bucket, and no other. It has to be another process: pyarrow asks for the size of a file without
    letting other threads run.
    """
    (port,) = free_ports(1)
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--in-memory", "--quiet", "--default-bucket", bucket]
    server = subprocess.Popen(
        [sys.executable, "-m", "gcp_storage_emulator", "start", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    leftovers().process(server.pid)
    try:
        _wait(server, f"http://127.0.0.1:{port}/")
        yield port
    finally:
        server.kill()
        server.wait()


def _wait(server: "subprocess.Popen[bytes]", url: str) -> None:
    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            with urlopen(url, timeout=5):
                return
        except OSError as error:  # on a busy machine also one that accepts, and answers later
            if server.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"the emulator at {url} does not answer: {error}") from error
        time.sleep(0.02)
