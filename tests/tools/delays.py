"""Naps at random in threads, on event loops and around steps (`pytest --delays SEED`): they show races that a quiet machine hides.

A place is a kind of code that may be late on a busy machine. How often and how long the tests nap there is a function of the seed, the test
and the place: the n-th rename of a test naps as long with the same seed. Which thread comes there as the n-th is up to the machine. So
a failure may need a few runs with its seed, and a test that passes with a seed is not proven.
"""

import asyncio
import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest

from sabot import steps
from sabot.base.threads import Threads, Turn

# How often a thread naps at a place of a kind, and for how many seconds at most.
KINDS = {
    "callback": (0.004, 0.06),  # of an event loop
    "turn": (0.004, 0.06),  # of a thread of the engine
    "work": (0.15, 0.08),  # of a pool of threads: before it, and when it is done but not known to be
    "step": (0.1, 0.08),  # of `sabot.steps`: before it and behind it
    "thread": (0.2, 0.1),  # that starts
    "woken": (0.02, 0.06),  # behind a wait for a condition, an event, a queue or a future
    "process": (0.2, 0.3),  # that starts: before it and behind it
    "signal": (0.3, 0.3),  # to a process: before it and behind it
}
SWITCH_SECONDS = (
    1e-6,
    0.0005,
    0.005,
    0.03,
)  # until a thread that computes lets another one go on; Python's own is the third


class Delays:
    """A plugin of pytest that naps. `given`: a seed, or "7x3" for the seed 7 and naps three times as often."""

    def __init__(self, given: str, sleep: Callable[[float], object] = time.sleep) -> None:
        self.given = given
        self.naps: list[tuple[str, float]] = []  # of this test: the place and the seconds of each
        self._seed, _, times = given.partition("x")
        self._times = float(times or 1)
        self._sleep = sleep  # the true one, also where a test replaces it
        self._test = ""  # nobody naps between tests
        self._draws: dict[str, Callable[[], float]] = {}
        self._patch = pytest.MonkeyPatch()
        self._switch = sys.getswitchinterval()

    def begin(self, test: str) -> None:
        """Begins the naps of a test."""
        self._draws, self.naps, self._test = {}, [], test
        sys.setswitchinterval(Random(f"{self._seed} {test}").choice(SWITCH_SECONDS))

    def nap(self, kind: str, name: str = "") -> None:
        if self._test:
            place, (chance, most) = f"{kind} {name}".strip(), KINDS[kind]
            if (draw := self._draws.get(place)) is None:
                draw = self._draws.setdefault(place, Random(f"{self._seed} {self._test} {place}").random)
            part = draw() / chance / self._times
            if part < 1.0:
                self.naps.append((place, part * most))
                self._sleep(part * most)

    def patch(self) -> None:
        """Puts the naps into their places, until `end`."""
        begin, submit, spawn = steps.step.__init__, ThreadPoolExecutor.submit, Threads.spawn

        def beginning(step: Any, name: str, what: object = "") -> None:
            self.nap("step", name)
            begin(step, name, what)

        def submitting(pool: Any, work: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
            return submit(pool, self._napping("work", work, behind=True), *args, **options)

        def spawning(threads: Threads, name: str, turn: Turn) -> Any:
            # a simulation runs the turns one after the other, in an order of its own
            return spawn(threads, name, turn if threads.simulated else self._napping("turn", turn))

        for owner, name, kind, before, behind in (
            (asyncio.Handle, "_run", "callback", True, False),
            (threading.Thread, "run", "thread", True, False),
            (threading.Condition, "wait", "woken", False, True),
            (subprocess.Popen, "__init__", "process", True, True),
            (os, "kill", "signal", True, True),
            (steps.step, "__exit__", "step", False, True),
        ):
            self._patch.setattr(owner, name, self._napping(kind, getattr(owner, name), before, behind))
        self._patch.setattr(steps.step, "__init__", beginning)
        self._patch.setattr(ThreadPoolExecutor, "submit", submitting)
        self._patch.setattr(Threads, "spawn", spawning)

    def end(self) -> None:
        self._test = ""
        self._patch.undo()
        sys.setswitchinterval(self._switch)

    def _napping(
        self, kind: str, work: Callable[..., Any], before: bool = True, behind: bool = False
    ) -> Callable[..., Any]:
        @functools.wraps(work)
        def napping(*args: Any, **options: Any) -> Any:
            if before:
                self.nap(kind)
            try:
                return work(*args, **options)
            finally:
                if behind:
                    self.nap(kind)

        # A stack that tells the code of a user from that of others takes this for the standard library's.
        napping.__code__ = napping.__code__.replace(co_filename=threading.__file__)
        return napping

    # -- called by pytest ----------------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.begin(item.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        try:
            return (yield)
        finally:
            longest = ", ".join(f"{place} {seconds:.3f} s" for place, seconds in sorted(self.naps, key=_longest)[:10])
            told = f"{len(self.naps)} naps of --delays {self.given} until here; the longest: {longest}"
            item.add_report_section("call", "delays", told)  # shown if the test fails


def _longest(nap: tuple[str, float]) -> float:
    return -nap[1]
