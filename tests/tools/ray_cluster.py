"""A Ray cluster of two nodes on this machine, on loopback, with its files in a folder of the test."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tools.broker import free_ports

__all__ = ["RayCluster"]

_HOST = "127.0.0.2"  # loopback; for 127.0.0.1 Ray takes an address of the network card
_STORE_BYTES = 100_000_000  # of shared memory, for each node
_START_SECONDS = 90
_QUICK = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


class RayCluster:
    """A context manager. `address` is what `--ray` takes; `kill_second` kills the second node as a machine dies that loses its power."""

    def __init__(self, folder: Path, **env: str) -> None:
        """env: for the nodes, and so for what runs on them."""
        self._folder = folder  # its path is short: Ray makes Unix sockets below it
        self._env = {**os.environ, **_QUICK, **env}
        [port] = free_ports(1)
        self.address = f"{_HOST}:{port}"
        self._nodes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "RayCluster":
        port = self.address.rpartition(":")[2]
        self._start("head", "--head", f"--port={port}", f"--temp-dir={self._folder}", "--include-dashboard=false")
        self._start("second", f"--address={self.address}")
        return self

    def __exit__(self, *error: object) -> None:
        for node in reversed(self._nodes):
            _kill_all(node)

    def _start(self, name: str, *words: str) -> None:
        log = self._folder / f"{name}.log"
        common = [f"--node-ip-address={_HOST}", "--num-cpus=2", f"--object-store-memory={_STORE_BYTES}", "--block"]
        with log.open("wb") as file:
            node = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", *words, *common, "--disable-usage-stats"],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._nodes.append(node)
        ends = time.monotonic() + _START_SECONDS
        while b"--block" not in log.read_bytes():
            if node.poll() is not None or time.monotonic() > ends:
                self.__exit__()
                raise RuntimeError(f"the Ray node {name} has not started: {log.read_text()}")
            time.sleep(0.1)

    def kill_second(self) -> None:
        """Kills the processes of the node itself; its workers see that it is gone."""
        [raylet] = [pid for pid in _below(self._nodes[1].pid) if _command(pid).startswith("raylet")]
        os.kill(raylet, signal.SIGKILL)


def _kill_all(node: "subprocess.Popen[bytes]") -> None:
    """Ends `ray start --block` and all that it has started, also what its own children have started."""
    pids = [node.pid, *_below(node.pid)]
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    node.wait()


def _below(parent: int) -> list[int]:
    """The processes that descend from this one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:  # it has ended meanwhile
                continue
    found, todo = [], [parent]
    while todo:
        above = todo.pop()
        children = [pid for pid, one in parents.items() if one == above]
        found += children
        todo += children
    return found


def _command(pid: int) -> str:
    """The name of its program."""
    try:
        return Path(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()).name
    except OSError:
        return ""
