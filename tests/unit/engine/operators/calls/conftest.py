"""The event loop of these tests."""

import asyncio

import pytest
from unit.engine.operators.calls.async_runs import Loop


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.turns()
    assert not asyncio.all_tasks(loop), "tasks were left behind"
    loop.close()
