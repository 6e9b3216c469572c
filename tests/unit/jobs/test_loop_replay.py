"""Whatever a function does with asyncio, and in whatever order its effects come back: told the same again, it does the same.

A program is drawn, and run with deliveries in a drawn order. Then it is run again in another loop, from the list of those deliveries alone.
What it saw and what it asked for, task by task, must be the same.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sabot.jobs.loop import JobLoop, JobTimer

Program = tuple[Any, ...]
Delivery = tuple[str, int, Any]

LEAVES = st.one_of(
    st.tuples(st.just("ask")),
    st.tuples(st.just("sleep"), st.integers(1, 9)),
    st.tuples(st.just("spin"), st.integers(0, 3)),
    st.tuples(st.just("time")),
    st.tuples(st.just("fail")),
    st.tuples(st.just("put"), st.integers(0, 99)),
    st.tuples(st.just("get")),
    st.tuples(st.just("set")),
    st.tuples(st.just("clear")),
    st.tuples(st.just("until set")),
    st.tuples(st.just("pages"), st.integers(1, 3)),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
)


def _compound(parts: st.SearchStrategy[Program]) -> st.SearchStrategy[Program]:
    several = st.lists(parts, min_size=2, max_size=6)
    ways = ["in turn", "gather", "gather all", "group", "wait first", "wait failed", "wait all", "as completed"]
    around = ["try", "shield", "spawn", "lock", "semaphore", "wait for", "timeout", "finally ask"]
    return st.one_of(st.tuples(st.sampled_from(ways), several), st.tuples(st.sampled_from(around), parts))


PROGRAMS = st.lists(st.recursive(LEAVES, _compound, max_leaves=25), min_size=1, max_size=5)
WHEN = {
    "wait first": asyncio.FIRST_COMPLETED,
    "wait failed": asyncio.FIRST_EXCEPTION,
    "wait all": asyncio.ALL_COMPLETED,
}


class Run:
    """A run of a program in a loop of its own. trace: what it saw and asked for, with the task in which it did."""

    def __init__(self, program: list[Program]) -> None:
        self.loop = JobLoop("replayed", on_timer=self._timer, on_timer_gone=self._gone)
        self.asked: list[asyncio.Future[Any]] = []
        self.timers: list[JobTimer] = []
        self.trace: list[Any] = []
        self._queue: asyncio.Queue[int] = asyncio.Queue(2)
        self._event = asyncio.Event()
        self._lock = asyncio.Lock()
        self._semaphore = asyncio.Semaphore(2)
        self._tasks: list[asyncio.Task[Any]] = []
        self.loop.start(self._all(program))
        self.loop.run_until_quiet()

    # -- the owner ------------------------------------------------------------------------------------------------------

    def open(self) -> list[tuple[str, int]]:
        """What can be delivered."""
        asks = [("answer", number) for number, future in enumerate(self.asked) if not future.done()]
        return asks + [("ring", number) for number, timer in enumerate(self.timers) if timer.open]

    def deliver(self, delivery: Delivery) -> None:
        kind, which, value = delivery
        self.trace.append(delivery)
        match kind:
            case "answer":
                self.loop.run_until_quiet(partial(self.asked[which].set_result, value))
            case "error":
                self.loop.run_until_quiet(partial(self.asked[which].set_exception, LookupError(str(value))))
            case "ring":
                timer = self.timers[which]
                self.loop.now = max(self.loop.now, timer.when())
                self.loop.run_until_quiet(partial(self.loop.fire, timer))
            case "cancel":
                self.loop.run_until_quiet(self.loop.main.cancel)

    def close(self) -> list[Any]:
        """The trace, with how it ended."""
        main = self.loop.main
        if main.done():
            self._saw("cancelled" if main.cancelled() else repr(main.exception()))
        self._saw(self.loop.refused)
        trace = list(self.trace)
        self.loop.discard()
        return trace

    def _timer(self, timer: JobTimer) -> None:
        self._saw("timer", len(self.timers), timer.when())
        self.timers.append(timer)

    def _gone(self, timer: JobTimer) -> None:
        self._saw("gone", self.timers.index(timer))

    # -- the function ---------------------------------------------------------------------------------------------------

    def _saw(self, *what: Any) -> None:
        if not self.loop.dead:
            task = asyncio.current_task() if self.loop.is_running() else None
            self.trace.append((task and task.get_name(), *what))

    def _ask(self) -> "asyncio.Future[Any]":
        self._saw("ask", len(self.asked))
        future = asyncio.get_running_loop().create_future()
        self.asked.append(future)
        return future

    async def _pages(self, most: int) -> AsyncIterator[Any]:
        try:
            while True:
                yield await self._ask()
        finally:
            self._saw("page closed", await self._ask())

    async def _all(self, programs: list[Program]) -> list[Any]:
        return [await self._run(program) for program in programs]

    async def _run(self, program: Program) -> Any:
        try:
            result = await self._step(program)
        except BaseException as error:
            self._saw(program[0], type(error).__name__, str(error)[:40])
            raise
        self._saw(program[0], result)
        return result

    async def _step(self, program: Program) -> Any:
        match program:
            case ["ask"]:
                return await self._ask()
            case ["sleep", seconds]:
                return await asyncio.sleep(seconds, "slept")
            case ["spin", times]:
                for _ in range(times):
                    await asyncio.sleep(0)
            case ["time"]:
                return self.loop.time()
            case ["fail"]:
                raise ValueError(f"failed in {len(self.trace)}")
            case ["put", number]:
                await self._queue.put(number)
            case ["get"]:
                return await self._queue.get()
            case ["set"]:
                self._event.set()
            case ["clear"]:
                self._event.clear()
            case ["until set"]:
                return await self._event.wait()
            case ["pages", most]:
                seen = 0
                async for page in self._pages(most):
                    self._saw("page", page)
                    seen += 1
                    if seen == most:
                        break
            case ["cancel", number]:
                return number < len(self._tasks) and self._tasks[number].cancel()
            case ["in turn", parts]:
                return await self._all(parts)
            case ["gather" | "gather all" as way, parts]:
                results = await asyncio.gather(*map(self._run, parts), return_exceptions=way == "gather all")
                return list(map(repr, results))
            case ["group", parts]:
                async with asyncio.TaskGroup() as group:
                    for part in parts:
                        self._tasks.append(group.create_task(self._run(part)))
            case ["wait first" | "wait failed" | "wait all" as way, parts]:
                tasks = {asyncio.create_task(self._run(part)) for part in parts}
                done, pending = await asyncio.wait(tasks, timeout=5, return_when=WHEN[way])
                self._saw("done", [task.get_name() for task in done], [task.get_name() for task in pending])
                for task in pending:
                    task.cancel()
                return [repr(error) for error in await asyncio.gather(*tasks, return_exceptions=True)]
            case ["as completed", parts]:
                for each in asyncio.as_completed([self._run(part) for part in parts]):
                    self._saw("next", await each)
            case ["try", part]:
                try:
                    return await self._run(part)
                except Exception as error:
                    return f"caught {type(error).__name__}"
            case ["shield", part]:
                return await asyncio.shield(self._run(part))
            case ["spawn", part]:
                self._tasks.append(asyncio.create_task(self._run(part)))
            case ["lock", part]:
                async with self._lock:
                    return await self._run(part)
            case ["semaphore", part]:
                async with self._semaphore:
                    return await self._run(part)
            case ["wait for", part]:
                return await asyncio.wait_for(self._run(part), 3)
            case ["timeout", part]:
                async with asyncio.timeout(4):
                    return await self._run(part)
            case ["finally ask", part]:
                try:
                    return await self._run(part)
                finally:
                    self._saw("at last", await self._ask())
            case _:
                raise AssertionError(program)


def live(program: list[Program], dice: random.Random) -> tuple[list[Delivery], list[Any]]:
    """Runs it with deliveries in an order of the dice. Returns them, and the trace."""
    run, made = Run(program), []
    cancel_at = dice.randrange(60)
    while len(made) < 40 and (choices := run.open()) and not run.loop.main.done():
        kind, which = dice.choice(choices)
        if kind == "answer" and dice.random() < 0.15:
            kind = "error"
        delivery: Delivery = ("cancel", 0, None) if len(made) == cancel_at else (kind, which, dice.randrange(1000))
        made.append(delivery)
        run.deliver(delivery)
    return made, run.close()


@settings(max_examples=400)
@given(PROGRAMS, st.integers(0, 2**32))
def test_the_same_deliveries_make_a_function_see_and_ask_the_same(program: list[Program], seed: int) -> None:
    dice = random.Random(seed)
    made, trace = live(program, dice)
    elsewhere = [bytearray(dice.randrange(2000)) for _ in range(dice.randrange(300))]  # other objects, other addresses
    first, second = Run(program), Run(program)  # two, with their turns between each other's
    for delivery in made:
        first.deliver(delivery)
        second.deliver(delivery)
    assert first.close() == trace
    assert second.close() == trace
    del elsewhere
