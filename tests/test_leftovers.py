"""What a session of tests starts and writes goes with it, however it ends."""

import os
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tools.broker import Broker
from tools.command_line import child
from tools.leftovers import started
from tools.redis_server import server_or_skip

TESTS = Path(__file__).parent

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the watcher finds processes in /proc")

# A shell that ends at once leaves a process of its own session behind; so does kafka.sh. And a fork, which has no environment of its own.
SESSION = """
import os, signal, subprocess, sys, tempfile, time
from tools.leftovers import leftovers, temporary_folder

folder = temporary_folder()
subprocess.run("setsid sleep 300 > /dev/null & echo $! > $TMPDIR/pid", shell=True, check=True)
pids = [int((folder / "pid").read_text())]
if not (fork := os.fork()):
    signal.pause()
handle, written = tempfile.mkstemp()
print(folder, fork, *pids, flush=True)
if sys.argv[1] == "ends":
    leftovers().finish()
else:
    while True:  # not signal.pause(): a signal that comes just before it would end it only if there were another one
        time.sleep(0.1)
"""

# The same of pytest, with the plugin of these tests.
A_TEST = """
import subprocess, tempfile, time
from hypothesis import given, strategies

@given(strategies.text())
def test_property(text):
    assert text.strip() in text

def test_left(tmp_path):
    left = subprocess.Popen(["setsid", "sleep", "300"])
    print("!", tempfile.mkdtemp(), left.pid, flush=True)
    while True:
        time.sleep(0.1)
"""


def gone(pids: list[int], folder: Path, seconds: float = 60.0) -> bool:
    """None of the processes lives, and there is no folder; what was killed a moment ago is given some time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(started(pid) for pid in pids) and not folder.exists():
            return True
        time.sleep(0.02)
    return False


def session(*words: str, **environment: str) -> "AbstractContextManager[subprocess.Popen[str]]":
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", **environment}
    return child(sys.executable, *words, env=environment, stdout=subprocess.PIPE)


@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGKILL], ids=["ends", "interrupted", "killed"])
def test_processes_and_files_of_a_session_go_with_it(number: int | None) -> None:
    with session("-c", SESSION, "waits" if number else "ends") as process:
        assert process.stdout is not None
        folder, *pids = process.stdout.readline().split()
        if number is not None:
            process.send_signal(number)
        process.wait(60)
    assert gone([int(pid) for pid in pids], Path(folder))


@pytest.mark.slow  # a second of a core, or more
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, id="interrupted", marks=pytest.mark.slow),  # a session that ends by itself: above
        pytest.param(signal.SIGKILL, id="killed"),
    ],
)
def test_a_pytest_that_does_not_come_to_its_end_leaves_nothing(number: int, tmp_path: Path) -> None:
    program = tmp_path / "project" / "test_it.py"
    program.parent.mkdir()
    program.write_text(A_TEST)
    words = ("-m", "pytest", "-q", "-s", "-p", "conftest", "-p", "no:cacheprovider", str(program.parent))
    with session(*words, TMPDIR=str(tmp_path), PYTHONDONTWRITEBYTECODE="1") as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "!" in line)
        folder, pid = line.split("!")[1].split()
        process.send_signal(number)
        process.wait(60)
    assert Path(folder).parent.parent == tmp_path
    assert gone([int(pid)], Path(folder).parent)
    assert list(tmp_path.iterdir()) == [program.parent]
    assert list(program.parent.iterdir()) == [program]


@pytest.mark.slow  # a second of a core, or more
@pytest.mark.kafka
def test_a_broker_goes_with_a_session_that_is_killed(kafka: Broker, tmp_path: Path) -> None:
    program = f"""
import signal
from pathlib import Path
from tools.broker import Broker

folder = Path({str(tmp_path / "broker")!r})
folder.mkdir()
Broker(folder).start()
print((folder / "pid").read_text(), flush=True)
signal.pause()
"""
    with session("-c", program) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert started(pid)
        process.kill()
    assert gone([pid], tmp_path / "broker")


def test_a_redis_server_goes_with_a_session_that_is_killed() -> None:
    server_or_skip()
    program = """
import signal
from tools.redis_server import Redis

server = Redis()
print(server._process.pid, server.folder, flush=True)
signal.pause()
"""
    with session("-c", program) as process:
        assert process.stdout is not None
        pid, folder = process.stdout.readline().split()
        assert started(int(pid))
        process.kill()
    assert gone([int(pid)], Path(folder))
