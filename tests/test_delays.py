"""`pytest --delays SEED` naps in threads, on event loops and around steps, the same naps with the same seed."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path

import pytest

from sabot.base.threads import run_in_thread, threads
from sabot.steps import step
from tools.delays import KINDS, Delays

TESTS = Path(__file__).parent


def naps_of(given: str, test: str = "a test") -> dict[str, list[float]]:
    """The naps at each place of a small program that comes to all of them, until each kind has had some."""
    slept: list[float] = []
    delays = Delays(given, slept.append)
    turns = iter(range(2000))

    async def work() -> None:
        for number in range(400):
            await run_in_thread(str, number)

    delays.patch()
    try:
        asyncio.run(work())
        assert slept == []  # no test has begun
        delays.begin(test)
        asyncio.run(work())
        (engine := threads.spawn("engine", lambda seconds: next(turns, None) is not None)).start()
        engine.join()
        for _ in range(30):
            (thread := threading.Thread(target=str)).start()
            thread.join()
            os.kill(os.getpid(), signal.SIGCONT)
        for name in ["rename", "commit"] * 100:
            with step(name):
                pass
        for _ in range(10):
            subprocess.run("true", check=True)
    finally:
        delays.end()
    naps = defaultdict(list)
    for place, seconds in delays.naps:
        naps[place].append(seconds)
    assert sorted(slept) == sorted(seconds for _, seconds in delays.naps)
    return naps


def test_naps_come_at_all_places() -> None:
    naps = naps_of("7")
    assert {place.partition(" ")[0] for place in naps} == set(KINDS)
    assert all(0 <= seconds < KINDS[place.partition(" ")[0]][1] for place in naps for seconds in naps[place])
    thrice = naps_of("7x3")
    assert all(len(thrice[place]) > len(naps[place]) for place in naps)


def test_naps_of_a_test_are_the_same_with_the_same_seed() -> None:
    naps, again, other, elsewhere = naps_of("7"), naps_of("7"), naps_of("8"), naps_of("7", "another test")
    for place, seconds in naps.items():
        count = min(len(seconds), len(again[place]))  # how often the threads come to a place may differ
        assert seconds[:count] == again[place][:count] != []
        assert seconds[0] not in (*other[place], *elsewhere[place])
    assert naps["step rename"] == again["step rename"] != naps["step commit"]


A_TEST = """
from sabot.steps import step

def test_steps():
    for number in range(50):
        with step("rename"):
            pass
    raise AssertionError("so that it tells of the naps")
"""


@pytest.mark.slow  # a second of a core, or more
def test_a_failure_tells_of_the_naps_of_its_test(tmp_path: Path) -> None:
    (tmp_path / "test_steps.py").write_text(A_TEST)
    words = ("-q", "-p", "conftest", "-p", "no:cacheprovider", "--delays", "7", "test_steps.py")
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    session = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert " naps of --delays 7 until here; the longest: step " in session.stdout
