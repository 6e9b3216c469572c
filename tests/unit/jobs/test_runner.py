"""The runner makes each call once, tells each outcome once, and says no more of a call than is known of it.

Tests in which time passes run in the loop of a simulation, where it is virtual. Where a thread must really hang, it waits for an event of
the test.
"""

import asyncio
import contextvars
import gc
import logging
import random
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pytest

from sabot import secret
from sabot.base.process_exit import find_exit
from sabot.clock import SYSTEM_CLOCK, ManualClock
from sabot.engine.calls.effects import EffectClass, EffectId, Reconciled
from sabot.engine.calls.tool_context import Effect
from sabot.engine.calls.tools import Tool, tool
from sabot.errors import JournalFailed, NotSent, SabotError
from sabot.jobs.runner import Certainty, EffectRunner, Outcome
from sabot.jobs.values import MAX_RESULT_BYTES, unpack, unpack_error
from sabot.journal import Position
from sabot.testing.loop import SimulatedLoop
from tools.agent_tools import until

DONE, NOT_SENT, UNKNOWN = Certainty
SECONDS = 60  # for what takes none


LATE = Position(0, 7)


def durable_after(wait: Callable[[], Awaitable[object]]) -> Callable[[Position | None], Awaitable[None]]:
    """`sendable=` of a runner: the entry LATE is durable after `wait`, and all others are at once."""

    async def sendable(entry: Position | None) -> None:
        if entry == LATE:
            await wait()

    return sendable


class Told:
    """What was told, in order, and by when."""

    def __init__(self) -> None:
        self.all: list[Outcome] = []
        self.at: list[float] = []
        self._more = asyncio.Event()

    def __call__(self, outcome: Outcome) -> None:
        self.all.append(outcome)
        self.at.append(asyncio.get_running_loop().time())
        self._more.set()

    async def one(self, number: int = 1) -> Outcome:
        """The last of so many outcomes."""
        async with asyncio.timeout(SECONDS):
            while len(self.all) < number:
                self._more.clear()
                await self._more.wait()
        return self.all[number - 1]


def value_of(outcome: Outcome) -> Any:
    assert (outcome.certainty, outcome.outcome) == (DONE, "ok"), unpack_error(outcome.body)
    return unpack(outcome.body)


def error_of(outcome: Outcome) -> tuple[Certainty, str, str]:
    assert outcome.outcome != "ok"
    read = unpack_error(outcome.body)
    assert read.type == outcome.outcome
    return outcome.certainty, read.type, read.message


def effect(ordinal: int = 1, job: str = "job", attempt: int = 1) -> EffectId:
    return EffectId(job, ordinal, attempt)


def simulated(main: Coroutine[Any, Any, None], seed: int = 0) -> None:
    """Runs it to its end, in virtual time."""
    loop = SimulatedLoop(random.Random(seed))  # type: ignore[abstract]
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def call(made: Tool, *args: Any, runner: EffectRunner | None = None, **kwargs: Any) -> Outcome:
    """The outcome of one call."""
    told = Told()
    (runner or EffectRunner(clock=SYSTEM_CLOCK)).make(effect(), made, args, kwargs, told)
    return await told.one()


# -- calls that end well ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(EffectClass))
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_tool_of_any_class_is_called_once_with_its_arguments(kind: EffectClass, is_async: bool) -> None:
    calls: list[Any] = []

    async def async_add(a: int, *, b: int) -> int:
        calls.append((a, b))
        await asyncio.sleep(0)
        return a + b

    def sync_add(a: int, *, b: int) -> int:
        calls.append((a, b))
        return a + b

    look = (lambda effect, *args, **kwargs: True) if kind is EffectClass.RECONCILABLE else None
    made = tool(effect=kind, reconcile=look)(async_add if is_async else sync_add)
    assert value_of(await call(made, 1, b=2)) == 3
    assert calls == [(1, 2)]


async def test_a_sync_tool_runs_in_a_thread_and_its_event_loop_goes_on() -> None:
    go, where = threading.Event(), []

    @tool
    def wait() -> None:
        where.append(threading.current_thread())
        assert go.wait(SECONDS)

    told, runner = Told(), EffectRunner(clock=SYSTEM_CLOCK)
    runner.make(effect(), wait, (), {}, told)
    await turns()
    assert told.all == []
    go.set()
    await told.one()
    assert where[0] is not threading.current_thread()
    assert where[0].daemon


async def test_what_a_sync_function_gives_to_be_awaited_is_awaited_on_the_loop() -> None:
    """`ctx.step(lambda: client.get(url))`."""

    async def fetch() -> int:
        assert threading.current_thread() is threading.main_thread()
        return 7

    assert value_of(await call(tool(lambda: fetch()))) == 7


async def test_done_is_never_called_from_inside_make_whatever_the_task_factory() -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("a factory may be eager")

    told, runner = Told(), EffectRunner(clock=SYSTEM_CLOCK)
    asyncio.get_running_loop().set_task_factory(refused)
    try:
        runner.make(effect(), tool(identity), (1,), {}, told)
        assert told.all == []
    finally:
        asyncio.get_running_loop().set_task_factory(None)
    await told.one()


async def identity(value: Any) -> Any:
    return value


async def test_a_tool_that_wants_it_gets_its_effect() -> None:
    clock = ManualClock(1000.0)
    runner = EffectRunner(clock=clock)

    async def charge(amount: int, effect: Effect) -> list[Any]:
        return [amount, effect.id, effect.key, effect.attempt, effect.deadline]

    for made, deadline in ((tool(charge), None), (tool(timeout=30)(charge), 1030.0)):
        told = Told()
        runner.make(effect(7, attempt=2), made, (5,), {}, told)
        assert value_of(await told.one()) == [5, ["job", 7, 2], effect(7).key, 2, deadline]


async def test_the_outcome_says_how_long_the_call_took_without_the_wait_for_its_intent() -> None:
    clock = ManualClock()
    durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @tool
    async def slow() -> None:
        clock.advance(3)

    told = Told()
    runner = EffectRunner(clock=clock, sendable=lambda entry: durable)
    runner.make(effect(), slow, (), {}, told)
    clock.advance(100)
    durable.set_result(None)
    await told.one()
    assert runner.tools()["slow"]["durations"][-1] == 3, "the seconds of all calls"


async def test_each_call_has_a_context_of_its_own() -> None:
    place = contextvars.ContextVar("place", default="nowhere")
    place.set("app")
    runner = EffectRunner(clock=SYSTEM_CLOCK)
    place.set("job")  # who asks for a call gives nothing on to it

    async def move() -> str:
        before = place.get()
        place.set("call")
        return before

    def sync_move() -> str:
        before = place.get()
        place.set("call")
        return before

    for each in (move, move, sync_move, sync_move):
        assert value_of(await call(tool(each), runner=runner)) == "app"
    assert place.get() == "job"


async def test_statistics_count_calls() -> None:
    durable = asyncio.Event()
    runner, told = EffectRunner(clock=ManualClock(), sendable=durable_after(durable.wait)), Told()
    go = asyncio.Event()

    @tool
    async def wait() -> None:
        await go.wait()

    assert runner.in_flight() == 0
    runner.make(effect(3), wait, (), {}, told, LATE)
    runner.make(effect(1), wait, (), {}, told)
    runner.make(effect(2), wait, (), {}, told)
    await turns()
    assert (runner.in_flight(), runner.statistics()["calls"]) == (3, 2)
    assert [runner.is_under_way("job", ordinal) for ordinal in (1, 2, 3, 4)] == [True, True, True, False]
    go.set()
    await told.one(2)
    assert runner.in_flight() == 1
    durable.set()
    await told.one(3)
    assert runner.statistics() == {
        **{"calls": 3, "in_flight": 0, "timeouts": 0, "unknown": 0, "not_sent": 0, "left_behind": 0, "threads": 0}
    }


# -- before a call -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [True, False])
async def test_nothing_is_sent_before_the_intent_is_durable(is_async: bool) -> None:
    seen: list[str] = []
    durable = asyncio.Event()

    async def sendable(entry: Position | None) -> None:
        assert entry == LATE
        await durable.wait()
        seen.append("durable")

    async def send() -> None:
        seen.append("sent")

    def sync_send() -> None:
        seen.append("sent")

    told = Told()
    runner = EffectRunner(clock=SYSTEM_CLOCK, sendable=sendable)
    runner.make(effect(), tool(send if is_async else sync_send), (), {}, told, LATE)
    await turns()
    assert seen == []
    durable.set()
    await told.one()
    assert seen == ["durable", "sent"]


async def refuses(entry: Position | None) -> None:
    raise JournalFailed("another worker has the journal")


async def test_without_its_journal_nothing_is_sent_and_the_run_ends() -> None:
    broken: list[SabotError] = []
    told, sent = Told(), []
    runner = EffectRunner(clock=SYSTEM_CLOCK, sendable=refuses, on_broken=broken.append)
    runner.make(effect(), tool(lambda: sent.append(1)), (), {}, told)
    await turns()
    assert ([str(each) for each in broken], sent, told.all) == (["another worker has the journal"], [], [])
    assert runner.in_flight() == 0


async def test_a_refused_call_gives_its_thread_back() -> None:
    allowed = [refuses(None), asyncio.sleep(0)]
    runner = EffectRunner(
        clock=SYSTEM_CLOCK,
        sendable=lambda entry: allowed.pop(0),
        sync_threads=1,
        on_broken=lambda error: None,
    )
    runner.make(effect(1), tool(len), ("a",), {}, Told())
    told = Told()
    runner.make(effect(2), tool(len), ("ab",), {}, told)
    assert value_of(await told.one()) == 2


# -- errors ------------------------------------------------------------------------------------------------------------------


class ok(Exception):
    """A name that an outcome has for something else."""


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (ValueError("declined"), (DONE, "ValueError", "declined")),
        (NotSent("full"), (NOT_SENT, "NotSent", "full")),
        (ConnectionRefusedError("no"), (NOT_SENT, "ConnectionRefusedError", "no")),
        (TimeoutError("late"), (UNKNOWN, "TimeoutError", "late")),
        (asyncio.CancelledError("gone"), (UNKNOWN, "CancelledError", "gone")),
        (ConnectionResetError("reset"), (UNKNOWN, "ConnectionResetError", "reset")),
        (type("ReadTimeout", (Exception,), {"__module__": "httpx"})("late"), (UNKNOWN, "ReadTimeout", "late")),
        (type("ConnectTimeout", (Exception,), {"__module__": "httpx"})("x"), (NOT_SENT, "ConnectTimeout", "x")),
    ],
    ids=repr,
)
@pytest.mark.parametrize("is_async", [True, False])
async def test_an_error_says_what_is_known_of_the_call(
    error: BaseException, known: tuple[Certainty, str, str], is_async: bool
) -> None:
    async def pay() -> None:
        raise error

    def sync_pay() -> None:
        raise error

    runner = EffectRunner(clock=SYSTEM_CLOCK)
    outcome = await call(tool(pay if is_async else sync_pay), runner=runner)
    assert error_of(outcome) == known
    figures = runner.statistics()
    assert (figures["unknown"], figures["not_sent"]) == (known[0] is UNKNOWN, known[0] is NOT_SENT)


async def test_wrong_arguments_are_the_tools_own_error() -> None:
    for each in (identity, len):
        certainty, kind, _ = error_of(await call(tool(each), 1, 2, 3))
        assert (certainty, kind) == (DONE, "TypeError")


async def test_an_error_is_never_taken_for_a_result() -> None:
    async def odd() -> None:
        raise ok("?")

    outcome = await call(tool(odd))
    assert (outcome.certainty, outcome.outcome) == (DONE, "Error")


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (b"x" * (50 << 20), f"its result has 52,428,805 bytes, and {MAX_RESULT_BYTES:,} are the most"),
        (object(), "its result cannot be recorded: TypeError: it has a value of type object in it"),
        (threading.Lock(), "its result cannot be recorded"),
    ],
    ids=["50 MB", "object", "lock"],
)
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_result_that_cannot_be_recorded_is_an_error_of_a_call_that_was_made(
    result: Any, says: str, is_async: bool
) -> None:
    made = []

    async def give() -> Any:
        made.append(1)
        return result

    def sync_give() -> Any:
        made.append(1)
        return result

    certainty, kind, said = error_of(await call(tool(name="give")(give if is_async else sync_give)))
    assert (certainty, kind, made) == (DONE, "ResultNotRecorded", [1])
    assert said.startswith(f"tool give was called, and {says}")


# -- time-outs -----------------------------------------------------------------------------------------------------------------


def test_a_call_that_takes_too_long_is_cancelled_and_unknown() -> None:
    ended: list[str] = []

    @tool(timeout="30s")
    async def hang() -> None:
        try:
            await asyncio.sleep(1e6)
        finally:
            ended.append("cancelled")

    async def main() -> None:
        runner, told = EffectRunner(clock=SYSTEM_CLOCK), Told()
        runner.make(effect(), hang, (), {}, told)
        await asyncio.sleep(29)
        assert told.all == []
        assert error_of(await told.one()) == (UNKNOWN, "TimeoutError", "the call took longer than timeout=30s")
        assert 30 <= told.at[0] < 30.1
        await turns()
        assert (ended, runner.left_behind, runner.statistics()["timeouts"]) == (["cancelled"], [], 1)

    simulated(main())


def test_the_time_out_begins_when_the_call_is_sent() -> None:
    async def main() -> None:
        told = Told()
        runner = EffectRunner(clock=SYSTEM_CLOCK, sendable=lambda entry: asyncio.sleep(10))
        runner.make(effect(), tool(timeout=1)(asyncio.sleep), (0.5, "slept"), {}, told)
        assert value_of(await told.one()) == "slept"

    simulated(main())


def test_a_call_that_ignores_its_cancellation_is_left_behind_and_what_it_gives_is_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @tool(timeout=10)
    async def stubborn() -> str:
        for _ in range(3):
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                continue
        return "late"

    async def main() -> None:
        runner, told = EffectRunner(clock=SYSTEM_CLOCK), Told()
        runner.make(effect(), stubborn, (), {}, told)
        assert (await told.one()).certainty is UNKNOWN
        assert told.at[0] < 10.1
        assert not runner.is_under_way("job", 1)
        assert runner.left_behind == ["tool stubborn, effect job/1.1"]
        await asyncio.sleep(5)
        assert "tool stubborn, effect job/1.1: it ignores that it was cancelled" in caplog.text
        second = Told()
        runner.make(effect(attempt=2), tool(identity), (2,), {}, second)  # the next attempt is another call
        assert value_of(await second.one()) == 2
        await asyncio.sleep(200)
        assert (len(told.all), runner.left_behind, runner.in_flight()) == (1, [], 0)

    simulated(main())


async def test_a_thread_that_hangs_is_left_behind_and_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    go = threading.Event()

    @tool(timeout="10ms")
    def hang() -> str:
        assert go.wait(SECONDS)
        return "late"

    runner, told = EffectRunner(clock=SYSTEM_CLOCK, sync_threads=1), Told()
    runner.make(effect(1), hang, (), {}, told)
    second = Told()
    runner.make(effect(2), tool(len), ("ab",), {}, second)
    assert error_of(await told.one())[:2] == (UNKNOWN, "TimeoutError")
    assert value_of(await second.one()) == 2
    assert runner.left_behind == ["tool hang, effect job/1.1"]
    assert "its thread cannot be cancelled" in caplog.text
    go.set()
    await until(lambda: not runner.left_behind)
    assert len(told.all) == 1


async def test_threads_that_hang_are_bounded_and_sync_tools_then_wait_for_them() -> None:
    go = threading.Event()

    @tool(timeout="10ms")
    def hang() -> None:
        assert go.wait(SECONDS)

    runner, told, last = EffectRunner(clock=SYSTEM_CLOCK, sync_threads=1), Told(), Told()
    for ordinal in range(1, 7):
        runner.make(effect(ordinal), hang, (), {}, told)
    await told.one(5)
    runner.make(effect(9), tool(len), ("ab",), {}, last)
    await turns()
    assert (len(told.all), len(runner.left_behind), runner.statistics()["threads"]) == (5, 5, 5)
    go.set()
    assert value_of(await last.one()) == 2
    await until(lambda: not runner.left_behind)
    go.clear()
    for ordinal in range(11, 17):  # those that have returned do not count any more
        runner.make(effect(ordinal), hang, (), {}, told)
    await told.one(6 + 5)
    go.set()
    await told.one(6 + 6)


async def test_a_coroutine_that_a_thread_gives_too_late_is_closed(recwarn: pytest.WarningsRecorder) -> None:
    go = threading.Event()

    @tool(timeout="10ms")
    def late() -> Any:
        assert go.wait(SECONDS)
        return identity(1)

    runner, told = EffectRunner(clock=SYSTEM_CLOCK), Told()
    runner.make(effect(), late, (), {}, told)
    await told.one()
    go.set()
    await until(lambda: not runner.left_behind)
    assert [str(each.message) for each in recwarn] == []


def test_a_call_that_swallows_one_cancellation_is_cancelled_again() -> None:
    ended: list[float] = []

    @tool(timeout=10)
    async def deaf() -> None:
        try:
            await asyncio.sleep(1e6)
        except asyncio.CancelledError:
            await asyncio.sleep(1e6)
        finally:
            ended.append(asyncio.get_running_loop().time())

    async def main() -> None:
        runner, told = EffectRunner(clock=SYSTEM_CLOCK), Told()
        runner.make(effect(), deaf, (), {}, told)
        await asyncio.sleep(20)
        assert (len(told.all), runner.left_behind) == (1, [])
        assert 12.5 <= ended[0] < 12.6

    simulated(main())


def test_a_call_that_was_given_up_is_not_given_up_again_when_its_own_time_is_over() -> None:
    @tool(timeout="10s")
    async def deaf() -> None:
        until = asyncio.get_running_loop().time() + 15
        while asyncio.get_running_loop().time() < until:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(15)

    async def main() -> None:
        runner, told = EffectRunner(clock=SYSTEM_CLOCK), Told()
        runner.make(effect(), deaf, (), {}, told)
        await asyncio.sleep(1)
        runner.cut_short("job", TimeoutError("the job ran too long"))
        await asyncio.sleep(40)
        assert (len(told.all), runner.statistics()["timeouts"]) == (1, 0)

    simulated(main())


async def test_at_most_so_many_sync_calls_run_at_once_first_come_first_served() -> None:
    order: list[int] = []
    go = {number: threading.Event() for number in range(1, 8)}

    @tool
    def work(number: int) -> None:
        order.append(number)
        assert go[number].wait(SECONDS)

    runner, told = EffectRunner(clock=SYSTEM_CLOCK, sync_threads=3), Told()
    for number in go:
        runner.make(effect(number), work, (number,), {}, told)
    await until(lambda: len(order) == 3)
    assert sorted(order) == [1, 2, 3]
    for number in go:
        await turns()
        assert len(order) == min(number + 2, 7)
        go[number].set()
        await told.one(number)
        await until(lambda number=number: len(order) == min(number + 3, 7))
    assert order[3:] == [4, 5, 6, 7]
    assert runner.statistics()["threads"] == 3


def test_threads_that_have_nothing_to_do_end() -> None:
    async def main() -> None:
        runner, told = EffectRunner(clock=SYSTEM_CLOCK), Told()
        for number in range(1, 5):
            runner.make(effect(number), tool(len), ("a",), {}, told)
        await told.one(4)
        assert runner.statistics()["threads"] > 0
        await asyncio.sleep(60)
        assert runner.statistics()["threads"] == 0
        runner.make(effect(5), tool(len), ("ab",), {}, told)
        assert value_of(await told.one(5)) == 2

    for seed in range(5):
        simulated(main(), seed)


@pytest.mark.slow  # a second of a core, or more
def test_a_process_ends_although_a_sync_tool_never_returns() -> None:
    """Threads of an executor are joined at the end of the process: one that hangs would keep it for ever."""
    program = """
import asyncio, threading
from sabot.clock import SYSTEM_CLOCK
from sabot.jobs.runner import EffectRunner
from sabot.engine.calls.effects import EffectId
from sabot.llm import tool

begun = threading.Event()
def hang():
    begun.set()
    threading.Event().wait()

async def main():
    runner = EffectRunner(clock=SYSTEM_CLOCK)
    runner.make(EffectId("job", 1), tool(hang), (), {}, print)
    while not begun.is_set():
        await asyncio.sleep(0)
    await runner.close(0.0)
    print(runner.left_behind)

asyncio.run(main())
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert ran.stdout == "['tool hang, effect job/1.1']\n"


# -- adoption ------------------------------------------------------------------------------------------------------------------


class Gate(NamedTuple):
    """A tool whose calls wait."""

    made: Tool
    calls: list[int]
    go: asyncio.Event


def gate() -> Gate:
    calls: list[int] = []
    go = asyncio.Event()

    @tool
    async def wait(number: int) -> int:
        calls.append(number)
        await go.wait()
        return number

    return Gate(wait, calls, go)


async def test_a_call_that_is_under_way_is_adopted_and_not_made_twice() -> None:
    wait, calls, go = gate()
    runner, first, second = EffectRunner(clock=SYSTEM_CLOCK), Told(), Told()
    runner.make(effect(), wait, (1,), {}, first)
    await turns()
    runner.make(effect(attempt=2), wait, (2,), {}, second)
    go.set()
    assert value_of(await second.one()) == 1
    assert (first.all, calls, runner.in_flight()) == ([], [1], 0)
    assert second.all[0].effect == effect(), "the attempt that was made"


async def test_a_call_that_a_stop_cancels_before_its_first_step_leaves_nothing_that_nobody_awaits(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """The wait for its intent was a coroutine by then: "was never awaited", said Python at the end of a run that was killed."""
    runner, told = EffectRunner(clock=SYSTEM_CLOCK, sendable=lambda entry: asyncio.sleep(10)), Told()
    runner.make(effect(), tool(identity), (1,), {}, told)
    await runner.close(0.0)
    gc.collect()
    assert [each.stopped for each in told.all] == [True]
    assert [str(each.message) for each in recwarn] == []


async def test_a_call_that_is_cut_before_its_first_step_is_not_left_behind() -> None:
    wait, calls, _ = gate()
    runner, told = EffectRunner(clock=SYSTEM_CLOCK), Told()
    runner.make(effect(1), wait, (1,), {}, told)
    runner.cut_short("job", TimeoutError("its time is over"))
    runner.make(effect(2), wait, (2,), {}, told)
    await runner.close(0.0)
    assert (calls, runner.left_behind, runner.in_flight()) == ([], [], 0)
    assert [(each.certainty, each.outcome, each.stopped) for each in told.all] == [
        (NOT_SENT, "TimeoutError", False),
        (NOT_SENT, "", True),
    ]


async def test_a_call_that_stops_to_ask_a_person_is_no_failure_of_its_tool() -> None:
    wait, calls, go = gate()
    runner, told = EffectRunner(clock=SYSTEM_CLOCK), Told()
    runner.make(effect(), wait, (1,), {}, told)
    await until(lambda: calls == [1])
    runner.stop(effect())
    await until(lambda: not runner.left_behind)
    go.set()
    runner.make(effect(attempt=2), wait, (1,), {}, told)
    assert value_of(await told.one()) == 1
    figures, counted = runner.tools()["wait"], runner.statistics()
    assert [figures[name] for name in ("calls", "in_flight", "failed", "unknown")] == [2, 0, 0, 0]
    assert (counted["unknown"], counted["not_sent"], counted["in_flight"]) == (0, 0, 0)


async def test_errors_of_calls_that_end_in_the_grace_of_a_stop_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    go, told = asyncio.Event(), Told()

    @tool
    async def broken(waits: bool) -> None:
        if waits:
            await go.wait()
        raise ValueError("no")

    runner = EffectRunner(clock=SYSTEM_CLOCK)
    runner.make(effect(1), broken, (False,), {}, told)
    await told.one()
    runner.make(effect(2), broken, (True,), {}, told)
    closing = asyncio.create_task(runner.close(SECONDS))
    await turns()
    go.set()
    await closing
    assert "jobs: 1 more errors ValueError" in caplog.text


async def test_a_call_of_a_dropped_job_goes_on_and_may_be_adopted() -> None:
    wait, calls, go = gate()
    runner, first, second, other = EffectRunner(clock=SYSTEM_CLOCK), Told(), Told(), Told()
    runner.make(effect(1), wait, (1,), {}, first)
    runner.make(effect(2), wait, (2,), {}, first)
    runner.make(effect(1, job="other"), wait, (3,), {}, other)
    await turns()
    runner.drop("job")
    runner.drop("nobody")
    assert (runner.in_flight(), runner.is_under_way("job", 1)) == (3, True)
    runner.make(effect(1), wait, (1,), {}, second)
    go.set()
    assert value_of(await second.one()) == 1
    assert value_of(await other.one()) == 3
    await turns()
    assert (first.all, calls, runner.in_flight(), runner.is_under_way("job", 2)) == ([], [1, 2, 3], 0, False)


async def test_an_effect_that_is_asked_for_after_its_end_is_another_call() -> None:
    runner, told = EffectRunner(clock=SYSTEM_CLOCK), Told()
    for attempt in (1, 2):
        runner.make(effect(attempt=attempt), tool(identity), (attempt,), {}, told)
        assert value_of(await told.one(attempt)) == attempt


@dataclass
class Playing:
    running: int = 0
    most: int = 0
    calls: int = 0


@pytest.mark.one_in(12, "some hundredths of a second of a core each")
@pytest.mark.parametrize("seed", range(20))
def test_no_effect_has_two_calls_at_once_and_each_outcome_is_told_once(seed: int) -> None:
    """Makes, drops, time-outs and late ends in an order that a seed decides. Only a call that is left behind stands beside another one."""
    dice = random.Random(seed)
    playing: dict[tuple[str, int], Playing] = {}

    async def work(key: tuple[str, int], seconds: float, fate: str) -> str:
        mine = playing.setdefault(key, Playing())
        mine.running += 1
        mine.calls += 1
        mine.most = max(mine.most, mine.running)
        try:
            await asyncio.sleep(seconds)
        finally:
            mine.running -= 1
        if fate == "raise":
            raise ValueError(fate)
        return fate

    async def main() -> None:
        runner = EffectRunner(clock=SYSTEM_CLOCK, sync_threads=2)
        asked: list[tuple[tuple[str, int], list[Outcome]]] = []
        live: dict[tuple[str, int], list[Outcome]] = {}
        silent: set[int] = set()
        for _ in range(200):
            job, ordinal = f"job{dice.randrange(3)}", dice.randrange(1, 4)
            key = (job, ordinal)
            if dice.random() < 0.2:
                runner.drop(job)
                for other in [each for each in live if each[0] == job]:
                    silent.add(id(live.pop(other)))
            else:
                under_way = runner.is_under_way(*key)
                heard: list[Outcome] = []
                if under_way and key in live:
                    silent.add(id(live[key]))
                live[key] = heard
                asked.append((key, heard))

                def done(outcome: Outcome, key: Any = key, heard: list[Outcome] = heard) -> None:
                    heard.append(outcome)
                    if live.get(key) is heard:
                        del live[key]

                made = tool(timeout=2.0)(work)
                if dice.random() < 0.5:
                    made = tool(timeout=2.0)(lambda *args: work(*args))
                args = (key, dice.random() * 3, dice.choice(("raise", "fine")))
                runner.make(EffectId(job, ordinal), made, args, {}, done)
            if dice.random() < 0.5:
                await asyncio.sleep(dice.random())
        await asyncio.sleep(30)
        assert runner.in_flight() == 0
        assert runner.left_behind == []
        assert [len(heard) for _, heard in asked if id(heard) not in silent] == [
            1 for _, heard in asked if id(heard) not in silent
        ]
        assert [heard for _, heard in asked if id(heard) in silent and heard] == []
        assert {each.most for each in playing.values()} == {1}
        assert sum(each.calls for each in playing.values()) == runner.statistics()["calls"]

    simulated(main(), seed)


# -- reconciling -----------------------------------------------------------------------------------------------------------------


async def looked(answer: Any, *, is_async: bool = True, runner: EffectRunner | None = None) -> Any:
    """What is told of an effect whose reconciling function gives, or raises, this."""

    async def look(effect: Effect, order: str, *, amount: int) -> Any:
        return sync_look(effect, order, amount=amount)

    def sync_look(effect: Effect, order: str, *, amount: int) -> Any:
        assert (effect.key, effect.attempt, order, amount) == (EffectId("job", 1).key, 2, "o1", 5)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    @tool(reconcile=look if is_async else sync_look)
    async def refund(order: str, *, amount: int, effect: Effect) -> None:
        raise AssertionError("it is only looked up")

    heard: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    by = runner or EffectRunner(clock=SYSTEM_CLOCK)
    by.reconcile(EffectId("job", 1, 2), refund, ("o1",), {"amount": 5}, heard.set_result)
    async with asyncio.timeout(SECONDS):
        said = await heard
    assert said.effect == EffectId("job", 1, 2)
    return said.found, None if said.result is None else unpack(said.result)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Reconciled.DONE, (Reconciled.DONE, None)),
        ((Reconciled.DONE, {"id": 7}), (Reconciled.DONE, {"id": 7})),
        ((True, None), (Reconciled.DONE, None)),
        (True, (Reconciled.DONE, None)),
        (Reconciled.NOT_DONE, (Reconciled.NOT_DONE, None)),
        (False, (Reconciled.NOT_DONE, None)),
        (Reconciled.UNKNOWN, (Reconciled.UNKNOWN, None)),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_reconciling_function_says_what_it_has_found(answer: Any, told: Any, is_async: bool) -> None:
    assert await looked(answer, is_async=is_async) == told


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, "reconcile= gave None"),
        (1, "reconcile= gave 1"),
        (0, "reconcile= gave 0"),
        ("perhaps", "reconcile= gave 'perhaps'"),
        ((Reconciled.NOT_DONE, 3), "reconcile= gave ['not_done', 3]"),
        (ValueError("no such order"), "nobody knows whether it was done: ValueError: no such order"),
        (ConnectionRefusedError("down"), "nobody knows whether it was done: ConnectionRefusedError: down"),
        (object(), "ResultNotRecorded"),
    ],
    ids=lambda value: "object" if type(value) is object else str(value),
)
async def test_any_other_answer_and_any_error_is_unknown_and_says_why(
    answer: Any, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert await looked(answer) == (Reconciled.UNKNOWN, None)
    assert f"tool refund, effect job/1.2: {says}" in caplog.text or says in caplog.text


@pytest.mark.parametrize(("timeout", "seconds"), [(None, 60.0), (5.0, 5.0)])
def test_a_reconciling_function_that_does_not_answer_in_time_is_unknown(timeout: float | None, seconds: float) -> None:
    async def look(effect: Effect) -> None:
        await asyncio.sleep(1e6)

    async def main() -> None:
        runner, loop = EffectRunner(clock=SYSTEM_CLOCK), asyncio.get_running_loop()
        heard: asyncio.Future[Any] = loop.create_future()
        made = tool(reconcile=look, timeout=timeout)(identity)
        runner.reconcile(effect(), made, (), {}, lambda said: heard.set_result((said, loop.time())))
        said, at = await heard
        assert (said.found, said.result) == (Reconciled.UNKNOWN, None)
        assert seconds <= at < seconds + 0.1

    simulated(main())


async def test_looking_whether_a_call_was_made_does_not_adopt_the_call() -> None:
    wait, _, go = gate()
    runner, told = EffectRunner(clock=SYSTEM_CLOCK), Told()
    runner.make(effect(1), wait, (1,), {}, told)
    assert await looked(True, runner=runner) == (Reconciled.DONE, None)
    go.set()
    assert value_of(await told.one()) == 1


# -- secrets ---------------------------------------------------------------------------------------------------------------------

SECRET = "sk-live-51Hx0aB/+c"


@dataclass(frozen=True)
class Login:
    user: str
    key: Any


class Pair(NamedTuple):
    user: str
    key: Any


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SABOT_TEST_KEY", SECRET)
    return secret("SABOT_TEST_KEY")


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_tool_gets_the_secret_wherever_its_reference_stands(key: Any, is_async: bool) -> None:
    got: list[Any] = []

    async def take(*args: Any, **kwargs: Any) -> None:
        got.append((args, kwargs))

    def sync_take(*args: Any, **kwargs: Any) -> None:
        got.append((args, kwargs))

    given = ([key, 1], {"auth": {"key": key}}, (key,), {key}, frozenset([key]), Login("ann", key), Pair("ann", key))
    await call(tool(take if is_async else sync_take), key, *given, key=key)
    assert got == [
        (
            (
                *(SECRET, [SECRET, 1], {"auth": {"key": SECRET}}, (SECRET,), {SECRET}, frozenset([SECRET])),
                *(Login("ann", SECRET), Pair("ann", SECRET)),
            ),
            {"key": SECRET},
        )
    ]
    assert given[0] == [key, 1], "what the job has is left as it is"


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_secret_is_nowhere_in_what_is_told_or_logged(
    key: Any, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def echo(each: str) -> Any:
        return sync_echo(each)

    def sync_echo(each: str) -> Any:
        return {"text": f"Bearer {each}", each: [each.encode(), (each,)], "n": 1, "password=x": "password=y"}

    async def leak(each: str) -> Any:
        raise ValueError(f"401 for {each}") from RuntimeError(each)

    def sync_leak(each: str) -> Any:
        raise type(each, (ValueError,), {})(f"401 for {each}")

    outcome = await call(tool(echo if is_async else sync_echo), key)
    assert value_of(outcome) == {"text": "Bearer ***", "***": [b"***", ["***"]], "n": 1, "password=x": "password=y"}
    failed = await call(tool(leak if is_async else sync_leak), key)
    for each in (outcome, failed):
        assert SECRET.encode() not in each.body
        assert SECRET not in repr(each)
    assert unpack_error(failed.body).message == "401 for ***"
    assert SECRET not in caplog.text


async def test_a_result_of_a_call_without_secrets_is_left_as_it_is(key: Any) -> None:
    await call(tool(identity), key)
    assert value_of(await call(tool(identity), SECRET)) == SECRET


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_call_whose_secret_is_missing_is_not_sent(monkeypatch: pytest.MonkeyPatch, is_async: bool) -> None:
    monkeypatch.delenv("SABOT_TEST_KEY", raising=False)
    sent: list[Any] = []

    async def take(each: str) -> None:
        sent.append(each)

    runner = EffectRunner(clock=SYSTEM_CLOCK)
    outcome = await call(tool(take if is_async else sent.append), {"x": secret("SABOT_TEST_KEY")}, runner=runner)
    assert error_of(outcome) == (
        NOT_SENT,
        "UserError",
        "the secret SABOT_TEST_KEY is not there (set the environment variable SABOT_TEST_KEY)",
    )
    assert sent == []
    assert runner.statistics()["calls"] == 0


# -- the end ---------------------------------------------------------------------------------------------------------------------


def test_a_stop_waits_for_calls_that_end_in_its_grace() -> None:
    async def main() -> None:
        sendable = durable_after(partial(asyncio.sleep, 3))
        runner, told = EffectRunner(clock=SYSTEM_CLOCK, sendable=sendable), Told()
        for ordinal in (1, 2):
            runner.make(effect(ordinal), tool(lambda: asyncio.sleep(10, "slept")), (), {}, told)
        runner.make(effect(3), tool(asyncio.sleep), (5,), {}, told, LATE)
        await runner.close(30.0)
        assert [value_of(each) for each in told.all] == [None, "slept", "slept"]
        assert asyncio.get_running_loop().time() < 11

    simulated(main())


def test_a_stop_cuts_what_takes_longer_and_nobody_is_told_of_what_was_sent() -> None:
    """That the worker stopped is no outcome of a call: it would be recorded, and the job would see it in each replay. Of a call that was
    not sent it is told, so that the next start need not ask whether it was made.
    """
    sent: list[int] = []

    async def work(number: int) -> None:
        sent.append(number)
        await asyncio.sleep(1e6)

    async def main() -> None:
        runner, told = EffectRunner(clock=SYSTEM_CLOCK, sendable=durable_after(asyncio.Event().wait)), Told()
        runner.make(effect(1), tool(work), (1,), {}, told)
        runner.make(effect(2), tool(work), (2,), {}, told, LATE)
        await asyncio.sleep(1)
        await runner.close(30.0)
        assert 31 <= asyncio.get_running_loop().time() < 32
        assert [(each.effect, each.certainty, each.stopped) for each in told.all] == [(effect(2), NOT_SENT, True)]
        assert (sent, runner.in_flight(), runner.left_behind) == ([1], 0, [])
        runner.make(effect(3), tool(identity), (3,), {}, told)  # it may go on: a stop may be taken back
        assert value_of(await told.one(2)) == 3

    simulated(main())


def test_a_call_that_ignores_the_stop_is_named() -> None:
    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(20)
                return
            except asyncio.CancelledError:
                continue

    async def main() -> None:
        runner = EffectRunner(clock=SYSTEM_CLOCK)
        runner.make(effect(), tool(stubborn), (), {}, Told())
        await asyncio.sleep(1)
        await runner.close(0.0)
        assert asyncio.get_running_loop().time() < 7
        assert runner.left_behind == ["tool stubborn, effect job/1.1"]
        await asyncio.sleep(30)
        assert runner.left_behind == []

    simulated(main())


async def test_a_stop_leaves_no_thread_to_calls_that_waited_for_one() -> None:
    go = threading.Event()

    @tool
    def hang() -> None:
        assert go.wait(SECONDS)

    runner, told = EffectRunner(clock=SYSTEM_CLOCK, sync_threads=1), Told()
    for ordinal in (1, 2, 3):
        runner.make(effect(ordinal), hang, (), {}, told)
    await turns()
    await runner.close(0.0)
    assert (runner.left_behind, runner.statistics()["calls"]) == (["tool hang, effect job/1.1"], 1)
    for ordinal in (4, 5):
        runner.make(effect(ordinal), tool(len), ("ab",), {}, told)
    assert value_of(await told.one(4)) == 2
    assert [each.effect for each in told.all if each.stopped] == [effect(2), effect(3)]
    go.set()
    await until(lambda: not runner.left_behind)


async def test_a_stop_does_not_wait_for_calls_of_which_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their journal was away, and they waited for their intents for all of the grace."""
    monkeypatch.setattr("sabot.jobs.runner._UNSENT_SECONDS", 0.01)
    wait, calls, go = gate()
    runner, told, unsent = (
        EffectRunner(clock=SYSTEM_CLOCK, sendable=durable_after(asyncio.Event().wait)),
        Told(),
        Told(),
    )
    runner.make(effect(1), wait, (1,), {}, told)
    runner.make(effect(2), wait, (2,), {}, unsent, LATE)
    await until(lambda: calls == [1])
    stop = asyncio.create_task(runner.close(1e6))
    go.set()
    assert value_of(await told.one()) == 1  # that one is waited for
    await asyncio.wait_for(stop, SECONDS)
    assert (calls, [(each.effect, each.stopped) for each in unsent.all]) == ([1], [(effect(2), True)])


async def test_a_stop_without_calls_returns_at_once() -> None:
    await EffectRunner(clock=SYSTEM_CLOCK).close(1e6)


@pytest.mark.parametrize("asked", [SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_tool_that_asks_for_the_end_of_the_process_ends_the_run(asked: BaseException, is_async: bool) -> None:
    async def leave() -> None:
        raise asked

    def sync_leave() -> None:
        raise asked

    broken: list[SabotError] = []
    told = Told()
    runner = EffectRunner(clock=SYSTEM_CLOCK, on_broken=broken.append)
    runner.make(effect(), tool(leave if is_async else sync_leave), (), {}, told)
    await until(lambda: broken != [])
    await turns()
    assert find_exit(broken[0]) is asked
    assert (told.all, runner.in_flight(), len(broken)) == ([], 0, 1)


async def test_an_exit_of_a_call_that_was_left_behind_is_not_lost() -> None:
    go = threading.Event()

    @tool(timeout="10ms")
    def leave() -> None:
        assert go.wait(SECONDS)
        raise SystemExit(3)

    broken: list[SabotError] = []
    told = Told()
    EffectRunner(clock=SYSTEM_CLOCK, on_broken=broken.append).make(effect(), leave, (), {}, told)
    await told.one()
    go.set()
    await until(lambda: broken != [])
    assert isinstance(find_exit(broken[0]), SystemExit)


def test_without_an_owner_an_exit_comes_out_of_the_loop() -> None:
    async def leave() -> None:
        raise SystemExit(3)

    async def main() -> None:
        EffectRunner(clock=SYSTEM_CLOCK).make(effect(), tool(leave), (), {}, Told())
        await asyncio.sleep(SECONDS)

    with pytest.raises(SystemExit, match="3"):
        asyncio.run(main())


async def test_an_error_of_who_is_told_ends_the_run() -> None:
    broken: list[SabotError] = []

    def done(outcome: Outcome) -> None:
        raise KeyError("our bug")

    EffectRunner(clock=SYSTEM_CLOCK, on_broken=broken.append).make(effect(), tool(identity), (1,), {}, done)
    await turns()
    assert [str(each).partition(" (")[0] for each in broken] == [
        "what is told of tool identity, effect job/1.1 has ended unexpectedly: KeyError: 'our bug'"
    ]


async def test_somebody_elses_cancellation_of_the_task_leaves_the_call_unknown() -> None:
    wait, _, _ = gate()
    told = Told()
    EffectRunner(clock=SYSTEM_CLOCK).make(effect(), wait, (1,), {}, told)
    await turns()
    for each in asyncio.all_tasks():
        if each.get_name().startswith("effect"):
            each.cancel()
    assert error_of(await told.one())[:2] == (UNKNOWN, "CancelledError")
