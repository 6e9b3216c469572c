"""What a test session starts and writes goes with it, however it ends: by itself, by Ctrl-C, or by SIGKILL.

A watcher, a process of its own session, reads from a pipe whose only other end this process holds. When that end closes, which the
kernel does for a process that is killed, the watcher ends every process that carries the session's mark in its environment, every
fork of this process, and those that it was told of, and removes the folders that it was told of.

Why not PR_SET_PDEATHSIG: the shell that starts a broker ends at once, so the broker's parent is not who started it; and the signal
comes when the thread ends that forked, which a test may do. Why not process groups: a broker leaves its own by setsid. The
environment is inherited by all of them, whoever their parent is. It is read from /proc: on a system without one, only forks and folders go.
"""

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MARK = "SABOT_TEST_SESSION"
POLITE_SECONDS = 1.5  # between SIGTERM and SIGKILL: a database removes its shared memory meanwhile
PATIENCE_SECONDS = 30.0
MEMORY = Path("/dev/shm")
ROOM_BYTES = 2 << 30


class Leftovers:
    """What this process leaves behind. `mark`: the value of MARK in the environment of its children."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        outside = {name: value for name, value in os.environ.items() if name != MARK}
        reading, self._pipe = os.pipe()
        subprocess.run(  # it leaves a process of its own behind, so that nobody has to wait for it
            [sys.executable, "-I", __file__, self.mark],
            stdin=reading,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=outside,
            start_new_session=True,  # Ctrl-C does not reach it
            check=True,
        )
        os.close(reading)
        self._last: list[Callable[[], None]] = []
        os.environ[MARK] = self.mark
        os.register_at_fork(after_in_child=self._forked)

    def folder(self, path: Path) -> Path:
        """The folder is removed at the end. -> the folder"""
        os.write(self._pipe, f"folder {path}\n".encode())
        return path

    def process(self, pid: int) -> None:
        """The process goes too, though it writes its title over its environment, as Redis does."""
        os.write(self._pipe, f"pid {pid} {started(pid)}\n".encode())

    def at_end(self, call: Callable[[], None]) -> None:
        """`finish` makes these calls, the last one first: for servers that can be stopped in good order."""
        self._last.append(call)

    def finish(self) -> None:
        """The tests are over. What is left then is removed when this process has ended: others may still clean up after themselves."""
        while self._last:
            self._last.pop()()

    def _forked(self) -> None:
        """A fork has the environment that this process began with, which has no mark; and it must not hold the pipe open."""
        if self._pipe >= 0:
            self.process(os.getpid())
            os.close(self._pipe)
            self._pipe = -1


@functools.cache
def leftovers() -> Leftovers:
    """The leftovers of this process, which is watched from the first call on."""
    return Leftovers()


def end_supervisor() -> None:
    """Ends the supervisor of children, if this process has one."""
    from sabot.process import Supervisor

    if Supervisor._current is not None:
        Supervisor._current.close()


def in_memory() -> Path | None:
    """A folder of the system's that is in memory. None where TMPDIR names another, where it has little room, as in a container, or where
    no program may stand in it.
    """
    if "TMPDIR" in os.environ or not os.access(MEMORY, os.W_OK | os.X_OK):
        return None
    about = os.statvfs(MEMORY)
    free = min(about.f_bavail * about.f_frsize, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)
    return MEMORY if free >= ROOM_BYTES and not about.f_flag & os.ST_NOEXEC else None


def temporary_folder() -> Path:
    """All temporary files of this process and its children are below it from now on, and go with it. They are in memory where they can
    be: each of some thousand tests writes and syncs files, and half of what those do was the disk's.
    """
    folder = leftovers().folder(Path(tempfile.mkdtemp(prefix="sabot-tests-", dir=in_memory())))
    folder.chmod(0o711)  # a database server that is another user finds its own folder in it
    os.environ["TMPDIR"] = str(folder)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "hypothesis")
    tempfile.tempdir = None
    return folder


def started(pid: int) -> str:
    """When a process began, in ticks: together with its number it is the same one. "" for none, or for one that has ended."""
    try:
        state, *figures = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state == "Z" else figures[18]


def marked(mark: str) -> list[int]:
    """The processes of the session with this mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is somebody else's
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def watch(mark: str) -> None:
    """The watcher's life. Returns at once where it was called, and goes on in a process of its own."""
    if os.fork():
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    folders: list[Path] = []
    forks: list[tuple[int, str]] = []
    for line in sys.stdin:
        kind, _, rest = line.rstrip("\n").partition(" ")
        if kind == "folder":
            folders.append(Path(rest))
        else:
            pid, _, ticks = rest.partition(" ")
            forks.append((int(pid), ticks))

    began = time.monotonic()
    while time.monotonic() < began + PATIENCE_SECONDS:
        alive = [*marked(mark), *(pid for pid, ticks in forks if ticks and started(pid) == ticks)]
        polite = time.monotonic() < began + POLITE_SECONDS
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if polite else signal.SIGKILL)
        if not alive:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
            if not any(folder.exists() for folder in folders):
                return
        time.sleep(0.05)


if __name__ == "__main__":
    watch(sys.argv[1])
