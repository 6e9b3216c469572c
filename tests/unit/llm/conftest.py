"""Time for engines that tests move by hand: whoever sleeps moves it on."""

import asyncio

import pytest

from sabot.clock import ManualClock


class HandTime:
    """slept: the seconds of each sleep."""

    def __init__(self):
        self.clock = ManualClock()
        self.slept = []

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.clock.advance(seconds)
        await asyncio.sleep(0)

    def options(self):
        """Of an engine that keeps this time."""
        return {"clock": self.clock, "sleep": self.sleep, "seed": 1}


@pytest.fixture
def time():
    return HandTime()
