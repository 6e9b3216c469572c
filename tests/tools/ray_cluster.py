"""A Ray cluster of two nodes on this machine, on loopback, with its files in a folder of the test."""

import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tools.broker import free_ports

__all__ = ["NODES", "RayCluster"]

NODES = ("head", "second")

_HOST = "127.0.0.2"  # loopback; for 127.0.0.1 Ray takes an address of the network card
_STORE_BYTES = 100_000_000  # of shared memory, for each node
_START_SECONDS = 90
_LOOK_SECONDS = 1  # `ray start --block` looks so often whether the processes of its node are there
_QUICK = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


class RayCluster:
    """A context manager. `address` is what `--ray` takes; `env` is for whoever connects, and says the cluster's token."""

    def __init__(self, folder: Path, **env: str) -> None:
        """env: for the nodes, and so for what runs on them."""
        self._folder = folder  # its path is short: Ray makes Unix sockets below it
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        # Otherwise the head takes the token that this user may have, and other nodes none.
        self.env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self._env = {**os.environ, **_QUICK, **env, **self.env}
        [port] = free_ports(1)
        self.address = f"{_HOST}:{port}"
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "RayCluster":
        self.mend()
        return self

    def __exit__(self, *error: object) -> None:
        for name in reversed(NODES):
            self._end(name)

    def mend(self) -> None:
        """Starts the nodes that are not there; without its head the cluster is over, and begins anew."""
        if not self._whole("head"):
            self.__exit__()
            port = self.address.rpartition(":")[2]
            self._start(
                "head",
                "--head",
                f"--port={port}",
                f"--temp-dir={self._folder}",
                "--include-dashboard=false",
                "--no-monitor",
            )
        if not self._whole("second"):
            self._end("second")
            self._start("second", f"--address={self.address}")

    def signal(self, name: str, number: signal.Signals) -> None:
        """To the raylet of a node, if that is there: it is what the cluster knows the node by, and what its workers end with."""
        for pid in self._raylet(name):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _raylet(self, name: str) -> list[int]:
        return [pid for pid in _members(self._nodes[name]) if _command(pid).startswith("raylet")]

    def _whole(self, name: str) -> bool:
        """Whether the node runs. One that the cluster has given up ends itself a moment after it has heard of it."""
        if name not in self._nodes or not self._raylet(name):
            return False
        with suppress(subprocess.TimeoutExpired):
            self._nodes[name].wait(2 * _LOOK_SECONDS)
        return self._nodes[name].poll() is None

    def _start(self, name: str, *words: str) -> None:
        log = self._folder / f"{name}.log"
        common = [f"--node-ip-address={_HOST}", "--num-cpus=2", f"--object-store-memory={_STORE_BYTES}", "--block"]
        common += ["--include-log-monitor=false"]
        with log.open("wb") as file:
            node = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", *words, *common, "--disable-usage-stats"],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._nodes[name] = node
        ends = time.monotonic() + _START_SECONDS
        while b"--block" not in log.read_bytes():
            if node.poll() is not None or time.monotonic() > ends:
                self.__exit__()
                raise RuntimeError(f"the Ray node {name} has not started: {log.read_text()}")
            time.sleep(0.1)

    def _end(self, name: str) -> None:
        """Ends `ray start --block` and all that it has started, also what its own children have started."""
        node = self._nodes.pop(name, None)
        if node is None:
            return
        for pid in {node.pid, *_members(node)}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait()


def _members(node: "subprocess.Popen[bytes]") -> list[int]:
    """The processes of its session, also those whose parent has ended, and all that descend from them."""
    parents, found = {}, set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile
                words = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                parents[int(entry.name)] = int(words[1])
                if int(words[3]) == node.pid:
                    found.add(int(entry.name))
    todo = [*found]
    while todo:
        above = todo.pop()
        below = [pid for pid, one in parents.items() if one == above and pid not in found]
        found.update(below)
        todo += below
    return sorted(found)


def _command(pid: int) -> str:
    """The name of its program; "" of a process that has ended."""
    try:
        return Path(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()).name
    except OSError:
        return ""
