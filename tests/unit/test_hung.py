"""A test that hangs fails, and says what its tasks wait for (`tools.hung`)."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tools.hung import ends_if_hung


async def never_set() -> AsyncIterator[int]:
    await asyncio.Event().wait()
    yield 1


async def listens() -> None:
    async for _ in never_set():
        pass


def test_a_test_that_hangs_says_where_each_task_waits() -> None:
    async def main() -> None:
        beside = asyncio.create_task(listens(), name="the task beside it")
        await asyncio.wait([beside])

    with pytest.raises(pytest.fail.Exception) as raised, ends_if_hung(0.05):
        asyncio.run(main())
    said = str(raised.value)
    assert "it hangs: not done after 0.05 s" in said
    assert "the task beside it" in said
    assert "test_hung.py:12 never_set" in said


def test_a_test_that_ends_is_left_alone() -> None:
    with ends_if_hung(60):
        assert asyncio.run(asyncio.sleep(0, 7)) == 7
