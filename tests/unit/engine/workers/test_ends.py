"""A worker that is gone: who has killed it, as far as the kernel says so."""

import asyncio
import errno
import os
import signal
from pathlib import Path

import pytest

from sabot.engine.workers.joining import Ticket
from sabot.engine.workers.launching import LocalLauncher, how_it_ended
from sabot.engine.workers.memory import KillCounts, MemoryKills
from sabot.errors import TransientError


class Kernel:
    """The files of a kernel, in a folder: version 1 or 2 of control groups, or none."""

    def __init__(self, folder: Path, version: int = 2, *, group: str = "/app", seen: str = "app", limit: str = "max"):
        """group: as /proc says. seen: where it is mounted."""
        self._proc, self._mount = folder / "proc", folder / "cgroup"
        (self._proc / "self").mkdir(parents=True)
        root = self._mount / "memory" if version == 1 else self._mount
        self._group = root / seen
        self._group.mkdir(parents=True)
        lines = {1: f"5:cpu:/other\n4:cpuacct,memory:{group}\n0::/elsewhere\n", 2: f"0::{group}\n", 0: ""}
        (self._proc / "self" / "cgroup").write_text(lines[version])
        self._counts = {0: None, 1: self._group / "memory.oom_control", 2: self._group / "memory.events"}[version]
        if self._counts is not None:
            name = "memory.limit_in_bytes" if version == 1 else "memory.max"
            (self._group / name).write_text(f"{limit}\n")
        self.killed(KillCounts(0, 0))
        self.kills = MemoryKills(self._proc, self._mount)

    def killed(self, kills: KillCounts) -> None:
        (self._proc / "vmstat").write_text(f"nr_free_pages 7\noom_kill {kills.machine}\n")
        if self._counts is not None:
            self._counts.write_text(f"oom 9\noom_kill_disable 0\noom_kill {kills.group}\noom_group_kill 3\n")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "has ended with exit code 0"),
        (3, "has ended with exit code 3"),
        (-signal.SIGSEGV, "was killed by SIGSEGV"),
        (-200, "was killed by signal 200"),
        (-signal.SIGKILL, "was killed by SIGKILL"),
    ],
)
def test_an_end_has_its_code_or_its_signal(tmp_path: Path, code: int, words: str) -> None:
    kernel = Kernel(tmp_path)
    assert how_it_ended(code, kernel.kills, KillCounts(0, 0)).how == words
    assert not how_it_ended(code, kernel.kills, KillCounts(0, 0)).out_of_memory


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("group", "seen"), [("/app", "app"), ("/docker/ab12", ""), ("/", "")], ids=["a group", "a container", "its root"]
)
def test_a_worker_that_the_memory_killer_has_killed_is_named_as_that(
    tmp_path: Path, version: int, group: str, seen: str
) -> None:
    kernel = Kernel(tmp_path, version, group=group, seen=seen, limit="4000000000")
    kernel.killed(KillCounts(2, 5))
    before = kernel.kills.so_far()
    assert how_it_ended(-signal.SIGKILL, kernel.kills, before).how == "was killed by SIGKILL"
    kernel.killed(KillCounts(3, 6))
    ended = how_it_ended(-signal.SIGKILL, kernel.kills, before)
    assert ended.how == "was killed by the system because memory ran out (the limit of its control group is 4,000 MB)"
    assert "fewer workers" in ended.why
    assert ended.out_of_memory
    assert how_it_ended(-signal.SIGSEGV, kernel.kills, before).how == "was killed by SIGSEGV"


@pytest.mark.parametrize("version", [0, 2])
def test_a_kill_elsewhere_on_the_machine_may_be_the_reason(tmp_path: Path, version: int) -> None:
    kernel = Kernel(tmp_path, version)
    before = kernel.kills.so_far()
    kernel.killed(KillCounts(0, 1))
    ended = how_it_ended(-signal.SIGKILL, kernel.kills, before)
    assert ended.how == "was killed by SIGKILL when the system killed processes because memory ran out"
    assert ended.out_of_memory


@pytest.mark.parametrize("limit", ["max", "9223372036854771712"])
def test_no_limit_is_none(tmp_path: Path, limit: str) -> None:
    assert Kernel(tmp_path, 2 if limit == "max" else 1, limit=limit).kills.limit_bytes is None


def test_where_nothing_says_so_nothing_is_known(tmp_path: Path) -> None:
    kills = MemoryKills(tmp_path / "none", tmp_path / "none")
    assert (kills.so_far(), kills.limit_bytes) == (KillCounts(None, None), None)
    assert "or the system" in how_it_ended(-signal.SIGKILL, kills, kills.so_far()).why


async def test_the_ctrl_c_of_a_terminal_does_not_reach_workers():
    """It goes to all processes of the group; an interpreter that starts would end with a traceback."""
    process = await LocalLauncher(["sleep", "600"]).launch(Ticket("127.0.0.1:1", "token"))
    assert process.pid is not None
    assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
    process.kill()
    assert (await process.wait()).how == "was killed by SIGKILL"


async def test_a_process_that_the_system_does_not_give_is_told_by_the_name_of_its_worker(monkeypatch):
    """A restart, or the number of workers before a rescale, may be what the system has room for."""

    async def refused(*words, **options):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refused)
    with pytest.raises(TransientError, match="worker 3: its process cannot be started: Resource temporarily"):
        await LocalLauncher(["sleep"]).launch(Ticket("127.0.0.1:1", "token", 2))
