"""What the tests of MCP share."""

import asyncio

import pytest


@pytest.fixture
def time_limits(monkeypatch):
    """`time_limits(seconds)`: the time-outs of so many seconds that were set."""
    made = []
    timeout = asyncio.timeout

    def recorded(seconds):
        made.append((seconds, timeout(seconds)))
        return made[-1][1]

    monkeypatch.setattr(asyncio, "timeout", recorded)
    return lambda wanted: [limit for seconds, limit in made if seconds == wanted]
