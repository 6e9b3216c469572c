"""Clients that the functions of an app share, functions at its start and stop, and timers."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sabot import App, UserError
from sabot.errors import SabotError, TransientError
from tools.agent_tools import bounded, processed, publish, started, until


@pytest.fixture
def app(memory_url: str) -> App:
    return App("shop", broker=memory_url)


async def test_a_resource_is_open_for_agents_and_closed_behind_the_last_record(app: App) -> None:
    said: list[str] = []
    tasks: list[Any] = []

    @app.resource
    async def pool() -> AsyncIterator[list[int]]:
        said.append("opened")
        tasks.append(asyncio.current_task())
        yield []
        tasks.append(asyncio.current_task())
        said.append("closed")

    @app.resource
    async def client() -> AsyncIterator[str]:
        yield f"client of {len(pool())}"
        said.append("client closed")

    @app.on_start
    def begin() -> None:
        said.append(f"start with {client()}")

    @app.on_stop
    async def one() -> None:
        said.append(f"one, {len(pool())} seen")

    @app.on_stop
    async def two() -> None:
        said.append("two")

    @app.agent("orders")
    async def work(ctx: Any) -> None:
        pool().append(ctx.message)

    with pytest.raises(UserError, match="resource pool is not open"):
        pool()
    publish(app, "orders", [1, 2])
    for _ in range(2):  # each run has its own, and begins with the first record, as nothing was kept
        async with started(app):
            await until(lambda: len(pool()) == 2)
    rounds = ["opened", "start with client of 0", "one, 2 seen", "two", "client closed", "closed"]
    assert said == rounds * 2
    assert tasks[0] is tasks[1]  # scopes of some libraries belong to a task
    with pytest.raises(UserError, match="resource pool is not open"):
        pool()


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("where", ["resource", "on_start", "on_stop", "closing"])
async def test_a_function_that_fails_is_named_and_the_others_run(app: App, where: str, cancelled: bool) -> None:
    """One that awaited a cancelled task ended the run as if all inputs had ended."""
    said: list[str] = []

    def may_fail(here: str) -> None:
        if here == where:
            raise asyncio.CancelledError if cancelled else ValueError("no luck")

    @app.resource
    async def first() -> AsyncIterator[int]:
        yield 1
        said.append("first closed")

    @app.resource
    async def second() -> AsyncIterator[int]:
        may_fail("resource")
        yield 2
        may_fail("closing")

    @app.on_start
    async def begin() -> None:
        may_fail("on_start")

    @app.on_stop
    async def end() -> None:
        may_fail("on_stop")

    @app.agent("orders")
    async def work(ctx: Any) -> None: ...

    named = {
        "resource": "resource second could not be opened",
        "on_start": "on_start begin has failed",
        "on_stop": "on_stop end has failed",
        "closing": "resource second could not be closed",
    }
    why = "it cancelled itself" if cancelled else "ValueError: no luck"

    async def life() -> None:
        await app.start()
        await app.stop()

    with pytest.raises(UserError, match=f"{named[where]}: {why}"):
        await life()
    assert said == ["first closed"]
    assert not app.agent_runtime.runner.running


async def test_a_stop_while_a_resource_is_being_opened_ends_the_start(app: App) -> None:
    waiting = asyncio.Event()

    @app.resource
    async def slow() -> AsyncIterator[int]:
        waiting.set()
        await asyncio.Event().wait()
        yield 1

    @app.agent("orders")
    async def work(ctx: Any) -> None: ...

    running = asyncio.ensure_future(app.run())
    await bounded(waiting.wait())
    app.request_stop()
    await bounded(running)
    assert app.summary.seconds < 60, "it was the time since the machine began"


async def test_an_exit_at_the_start_ends_the_process(app: App) -> None:
    @app.on_start
    async def begin() -> None:
        raise SystemExit(3)

    @app.agent("orders")
    async def work(ctx: Any) -> None: ...

    with pytest.raises(SystemExit):
        await app.run()


async def test_a_timer_ticks_while_the_app_runs(app: App) -> None:
    ticks: list[int] = []

    @app.timer("1ms")
    async def tick() -> None:
        ticks.append(len(ticks))
        await app.send("orders", len(ticks))

    @app.agent("orders")
    async def work(ctx: Any) -> None: ...

    async with started(app):
        await until(lambda: processed(app, "work") >= 3)
    count = len(ticks)
    assert count >= 3
    assert len(asyncio.all_tasks()) == 1  # nothing ticks on


async def test_an_app_stops_though_a_timer_has_lost_its_cancellation(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `asyncio.wait_for` of Python 3.11 loses one, if the call that it awaits ends in the same turn."""
    monkeypatch.setattr("sabot.base.threads._CANCEL_AGAIN_SECONDS", 0.01)
    begun, lost = asyncio.Event(), 0

    @app.timer("1ms")
    async def sweep() -> None:
        nonlocal lost
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            lost += 1
        await asyncio.Event().wait()

    @app.agent("orders")
    async def work(ctx: Any) -> None: ...

    await app.start()
    await bounded(begun.wait())
    await bounded(app.stop())
    assert lost == 1
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("error", [ValueError, TransientError])
@pytest.mark.parametrize("policy", ["fail", "skip"])
async def test_a_timer_that_fails_ends_the_run_or_is_logged(
    app: App, policy: Any, error: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of app.send ended the run with "skip", too."""
    ticks: list[int] = []

    @app.timer(0.001, on_error=policy)
    async def sweep() -> None:
        ticks.append(1)
        raise error("no luck")

    @app.agent("orders")
    async def work(ctx: Any) -> None: ...

    app.configure(restart="none")
    running = asyncio.ensure_future(app.run())
    if policy == "fail":
        with pytest.raises(SabotError, match="no luck"):
            await bounded(running)
        assert ticks == [1]
        return
    with caplog.at_level(logging.ERROR, logger="sabot"):
        await until(lambda: len(ticks) >= 2)
        app.request_stop()
        await bounded(running)
    assert "no luck; it goes on in 0.001 s" in caplog.text


def test_what_cannot_be_is_refused(app: App) -> None:
    with pytest.raises(UserError, match="not an async generator"):
        app.resource(lambda: 1)  # type: ignore[arg-type, return-value]
    with pytest.raises(UserError, match="on_start: 3 is not a function"):
        app.on_start(3)  # type: ignore[type-var]
    with pytest.raises(UserError, match="timer <lambda> is not async"):
        app.timer("10s")(lambda: None)
    with pytest.raises(UserError, match="timer"):
        app.timer(0)
    with pytest.raises(UserError, match="on_error='never'"):
        app.timer("1s", on_error="never")  # type: ignore[arg-type]
