"""A kernel asks models for their answers in pieces, because somebody may listen to the job later."""

import asyncio
from typing import Any

import pytest

from sabot.agents import ExecutionRequest, InMemoryEventBus, RuntimeEventType, RuntimeKernel
from sabot.journal.memory import MemoryJournal, MemoryStorage
from sabot.llm import ScriptedProvider
from sabot.llm.agent import Agent
from sabot.llm.engine import ExecutionEngine


class Asked(ScriptedProvider):
    """ways: how it was asked."""

    def __init__(self) -> None:
        super().__init__(("Once ", "upon ", "a time"))
        self.ways: list[str] = []

    async def complete(self, *given: Any, **how: Any) -> Any:
        self.ways.append("whole")
        stream = super().stream(*given, **how)
        return [piece async for piece in stream][-1].completion

    def stream(self, *given: Any, **how: Any) -> Any:
        self.ways.append("pieces")
        return super().stream(*given, **how)


def kernel_of(provider: Asked, **options: Any) -> RuntimeKernel:
    return RuntimeKernel.create(agent=Agent(ExecutionEngine(provider), name="tells"), **options)


async def texts(handle: Any) -> list[str]:
    return [event.data["text"] async for event in handle.events() if event.type is RuntimeEventType.MODEL_TOKEN]


async def test_a_kernel_asks_for_pieces_also_where_nobody_listens_yet() -> None:
    provider = Asked()
    async with kernel_of(provider) as kernel:
        results = [await (await kernel.execute(ExecutionRequest(prompt=each))).result() for each in "ab"]
        handle = await kernel.execute(ExecutionRequest(prompt="c"))
        assert (await handle.result()).content == "Once upon a time"
        assert await texts(handle) == [], "the pieces of a recorded answer are nowhere"
    assert len(results) == 2
    assert provider.ways == ["pieces"] * 3


@pytest.mark.parametrize("way", ["at once", "in a task", "of many", "with a time-out"])
async def test_who_listens_when_he_gets_the_handle_hears_all_pieces(way: str) -> None:
    provider = Asked()
    async with kernel_of(provider) as kernel:
        asked = kernel.execute(ExecutionRequest(prompt="a"))
        if way == "of many":
            (handle,) = await asyncio.gather(asked)
        else:
            handle = await (asyncio.wait_for(asked, 60) if way == "with a time-out" else asked)
        if way == "in a task":
            listening = asyncio.create_task(texts(handle))
            await handle.result()
            heard = await listening
        else:
            heard = await texts(handle)
    assert (heard, provider.ways) == (["Once ", "upon ", "a time"], ["pieces"])


async def test_a_subscriber_of_the_bus_gets_pieces_where_he_wants_them() -> None:
    for wanted, count in ((RuntimeEventType.MODEL_TOKEN, 3), (RuntimeEventType.MODEL_DONE, 1)):
        provider, bus, seen = Asked(), InMemoryEventBus(), list[Any]()
        bus.on(seen.append, [wanted])
        async with kernel_of(provider, event_bus=bus) as kernel:
            await (await kernel.execute(ExecutionRequest(prompt="a"))).result()
            await bus.flush()
        assert (provider.ways, len(seen)) == (["pieces"], count)


async def test_who_listens_to_a_job_that_goes_on_after_a_restart_hears_its_pieces() -> None:
    home, provider = MemoryStorage(), Asked()
    journal = MemoryJournal(home)
    provider.hold()
    async with kernel_of(provider, journal=journal, stop_grace="0ms") as kernel:
        await kernel.execute(ExecutionRequest(prompt="a"))
        await provider.arrived(1)
    provider.release()
    async with kernel_of(provider, journal=journal) as kernel:
        (handle,) = await kernel.resume()
        assert await texts(handle) == ["Once ", "upon ", "a time"]
    assert provider.ways == ["pieces"] * 2


async def test_a_caller_that_goes_before_it_has_the_handle_holds_nothing_up() -> None:
    for turns in range(8):
        provider, request = Asked(), ExecutionRequest(prompt="a", idempotency_key="k")
        async with kernel_of(provider) as kernel:
            asking = asyncio.create_task(kernel.execute(request))
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            handle = await kernel.execute(request)
            assert (await handle.result()).content == "Once upon a time"
