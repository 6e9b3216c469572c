"""The event loop of a job: what is equal in replay, what is refused, and what is left of a job that is discarded."""

import asyncio
import concurrent.futures
import contextvars
import gc
import logging
import math
import random
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from sabot.errors import InternalError, UserError
from sabot.jobs.loop import JobLoop, JobTimer
from sabot.testing.loop import SimulatedLoop


def never_awaited(warnings: pytest.WarningsRecorder) -> list[str]:
    return [str(each.message) for each in warnings if each.category is RuntimeWarning]


class Owner:
    """A job that runs alone: its effects are futures, made by `ask`, in the order in which the function asks for them."""

    def __init__(self, function: Callable[["Owner"], Any], name: str = "orders-7") -> None:
        self.loop = JobLoop(name, on_timer=self._timer, on_timer_gone=self._gone)
        self.asked: list[asyncio.Future[Any]] = []
        self.timers: list[JobTimer] = []
        self.gone: list[JobTimer] = []
        self.seen: list[Any] = []
        self.loop.start(function(self))
        self.loop.run_until_quiet()

    def ask(self) -> "asyncio.Future[Any]":
        future = asyncio.get_running_loop().create_future()
        self.asked.append(future)
        return future

    def answer(self, which: int, value: Any) -> None:
        self.loop.run_until_quiet(partial(self.asked[which].set_result, value))

    def ring(self, which: int = 0) -> None:
        timer = self.timers[which]
        self.loop.now = max(self.loop.now, timer.when())
        self.loop.fire(timer)
        self.loop.run_until_quiet()

    @property
    def result(self) -> Any:
        return self.loop.main.result()

    def _timer(self, timer: JobTimer) -> None:
        self.timers.append(timer)

    def _gone(self, timer: JobTimer) -> None:
        self.gone.append(timer)


# -- turns ---------------------------------------------------------------------------------------------------------------


def test_a_turn_ends_when_everything_waits_for_a_delivery() -> None:
    async def function(job: Owner) -> int:
        first = await job.ask()
        second, third = await asyncio.gather(job.ask(), job.ask())
        return first + second + third

    job = Owner(function)
    assert len(job.asked) == 1
    job.answer(0, 1)
    assert len(job.asked) == 3
    job.answer(2, 10)
    assert not job.loop.main.done()
    job.answer(1, 100)
    assert job.result == 111


def test_the_loop_and_the_hooks_of_the_app_are_restored_and_its_task_stays_the_current_one() -> None:
    async def app() -> None:
        loop, task, hooks = asyncio.get_running_loop(), asyncio.current_task(), sys.get_asyncgen_hooks()
        seen: list[Any] = []

        def run() -> None:
            loop_of_job = JobLoop("a", on_timer=lambda timer: None, on_timer_gone=lambda timer: None)

            async def inner() -> None:
                assert asyncio.current_task(loop) is None, "Python 3.14 has one current task in a thread"
                seen.append((asyncio.get_running_loop() is loop_of_job, asyncio.current_task() is loop_of_job.main))
                raise SystemExit(3)

            loop_of_job.start(inner())
            with pytest.raises(SystemExit):
                loop_of_job.run_until_quiet()
            assert not loop_of_job.is_running()
            loop_of_job.discard()

        run()
        assert seen == [(True, True)]
        assert (asyncio.get_running_loop(), asyncio.current_task(), sys.get_asyncgen_hooks()) == (loop, task, hooks)

    asyncio.run(app())
    simulated = SimulatedLoop(random.Random(7))
    simulated.run_until_complete(app())
    simulated.close()
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_a_turn_never_runs_inside_of_another_one() -> None:
    async def function(job: Owner) -> None:
        other = JobLoop("inner", on_timer=lambda timer: None, on_timer_gone=lambda timer: None)
        with pytest.raises(InternalError, match="job inner runs inside of a turn of job orders-7"):
            other.run_until_quiet()
        with pytest.raises(InternalError, match="job inner is discarded inside of a turn"):
            other.discard()

    assert Owner(function).result is None


def test_the_main_task_runs_in_a_copy_of_the_context() -> None:
    tenant = contextvars.ContextVar("tenant", default="nobody")

    async def function(job: Owner) -> str:
        before = tenant.get()
        tenant.set("changed")
        return before

    tenant.set("blue")
    assert Owner(function).result == "blue"
    assert tenant.get() == "blue"


def test_a_function_that_spins_is_ended() -> None:
    async def function(job: Owner) -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    job = Owner(function)
    assert not job.loop.main.done()
    assert "runs on without waiting for anything: 100,000 callbacks" in str(job.loop.refused)
    job.loop.discard()


# -- timers --------------------------------------------------------------------------------------------------------------


def test_a_sleep_is_a_timer_that_the_owner_fires() -> None:
    async def function(job: Owner) -> float:
        await asyncio.sleep(30)
        return job.loop.time()

    job = Owner(function)
    assert [timer.when() for timer in job.timers] == [30.0]
    job.ring()
    assert job.result == 30.0
    assert job.gone == [], "sleep cancels its timer after it has fired, too"


def test_a_timeout_that_is_not_needed_any_more_is_told_to_the_owner() -> None:
    async def function(job: Owner) -> str:
        async with asyncio.timeout(10):
            await job.ask()
        try:
            async with asyncio.timeout(5):
                await job.ask()
        except TimeoutError:
            return "late"
        return "in time"

    job = Owner(function)
    job.answer(0, None)
    assert job.gone == job.timers[:1]
    job.ring(1)
    assert job.result == "late"
    assert job.asked[1].cancelled()
    assert job.gone == job.timers[:1]


def test_what_is_due_already_is_no_timer() -> None:
    async def function(job: Owner) -> str:
        await asyncio.sleep(-1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(job.ask(), 0)
        called = asyncio.Event()
        asyncio.get_running_loop().call_later(0, called.set)
        await called.wait()
        return "done"

    job = Owner(function)
    assert (job.result, job.timers) == ("done", [])


def test_a_sleep_without_end_is_no_timer_and_can_be_cancelled() -> None:
    async def function(job: Owner) -> None:
        await asyncio.sleep(math.inf)

    job = Owner(function)
    job.loop.run_until_quiet(job.loop.main.cancel)
    assert job.loop.main.cancelled()
    assert (job.timers, job.gone) == ([], [])


def test_two_timers_for_one_moment_are_two() -> None:
    async def function(job: Owner) -> None:
        await asyncio.gather(asyncio.sleep(1, job.seen), asyncio.sleep(1, job.seen))

    job = Owner(function)
    assert len(set(job.timers)) == 2
    job.loop.run_until_quiet(job.loop.main.cancel)
    assert len(set(job.gone)) == 2
    for timer in job.timers:
        job.loop.fire(timer)
    job.loop.run_until_quiet()
    assert job.loop.main.cancelled()


# -- order ---------------------------------------------------------------------------------------------------------------


def test_as_completed_begins_coroutines_in_the_order_in_which_they_were_given() -> None:
    async def one(job: Owner, number: int) -> int:
        job.seen.append(number)
        return await job.ask()

    async def function(job: Owner) -> list[int]:
        return [await each for each in asyncio.as_completed([one(job, number) for number in range(50)])]

    job = Owner(function)
    assert job.seen == list(range(50))
    for which in reversed(range(50)):
        job.answer(which, which)
    assert job.result == list(reversed(range(50)))


def test_the_sets_of_tasks_that_asyncio_keeps_are_walked_in_one_order() -> None:
    """Their hashes are those of their numbers, also where other objects lie elsewhere in memory."""

    async def function(job: Owner) -> list[str]:
        tasks = [asyncio.ensure_future(job.ask()) if number % 3 else None for number in range(40)]
        made = [asyncio.create_task(asyncio.sleep(number % 5 + 1)) for number in range(40)]
        futures = [task for task in tasks if task is not None]
        done, pending = await asyncio.wait([*futures, *made], return_when=asyncio.FIRST_COMPLETED)
        kept = [made, futures]  # a set of these, in another order of memory
        return [str(kept[0].index(each)) if each in made else f"f{futures.index(each)}" for each in [*done, *pending]]

    results = []
    for size in (1, 1000, 77777):
        job = Owner(function)
        other = [bytearray(size) for _ in range(size % 97)]
        job.ring(3)
        results.append(job.result)
        job.loop.discard()
        del other
    assert results[0] == results[1] == results[2]


def test_the_same_job_has_the_same_hashes_and_another_one_others() -> None:
    async def function(job: Owner) -> list[int]:
        return [hash(asyncio.current_task()), hash(job.ask()), hash(asyncio.create_task(asyncio.sleep(0)))]

    first, again, other = Owner(function), Owner(function), Owner(function, "orders-8")
    assert first.result == again.result
    assert set(first.result).isdisjoint(other.result), "all tasks of a process stand in one set"


def test_names_of_tasks_are_counted_per_job() -> None:
    async def function(job: Owner) -> list[str]:
        tasks = [
            asyncio.create_task(asyncio.sleep(0)),
            asyncio.create_task(asyncio.sleep(0), name="mine"),
            asyncio.create_task(asyncio.sleep(0)),
        ]
        return [task.get_name() for task in tasks]

    assert Owner(function).result == Owner(function).result == ["Task-2", "mine", "Task-4"]


def test_outside_of_jobs_wait_and_as_completed_are_what_they_were() -> None:
    async def app() -> None:
        task = asyncio.create_task(asyncio.sleep(0, 1))
        done, pending = await asyncio.wait([task, task])
        assert (done, pending) == ({task}, set())
        assert [await each for each in asyncio.as_completed([asyncio.sleep(0, 2)])] == [2]

    asyncio.run(app())


def test_a_task_tells_of_its_own_coroutine() -> None:
    async def function(job: Owner) -> None:
        await job.ask()

    task = Owner(function).loop.main
    assert task.get_coro().__name__ == "function"
    assert "function() running at" in repr(task)
    assert [frame.f_code.co_name for frame in task.get_stack()] == ["function"]


# -- what is refused -----------------------------------------------------------------------------------------------------


async def _socket() -> None:
    here, _ = socket.socketpair()
    try:
        await asyncio.get_running_loop().sock_recv(here, 1)
    finally:
        here.close()
        _.close()


def _asyncgen_of_the_loop() -> Any:
    return asyncio.get_running_loop().shutdown_asyncgens()


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "thread": (lambda: asyncio.to_thread(print), "asyncio.to_thread"),
    "executor": (lambda: asyncio.get_running_loop().run_in_executor(None, print), "loop.run_in_executor"),
    "connection": (lambda: asyncio.open_connection("localhost", 1), "asyncio.open_connection"),
    "server": (lambda: asyncio.start_server(lambda reader, writer: None), "asyncio.start_server"),
    "unix": (lambda: asyncio.open_unix_connection("/nowhere"), "asyncio.open_unix_connection"),
    "program": (lambda: asyncio.create_subprocess_exec("true"), "asyncio.create_subprocess_exec"),
    "shell": (lambda: asyncio.create_subprocess_shell("true"), "asyncio.create_subprocess_shell"),
    "name": (lambda: asyncio.get_running_loop().getaddrinfo("localhost", 1), "loop.getaddrinfo"),
    "socket": (_socket, "loop.sock_recv"),
    "reader": (lambda: asyncio.get_running_loop().add_reader(0, print), "loop.add_reader"),
    "signal": (lambda: asyncio.get_running_loop().add_signal_handler(10, print), "loop.add_signal_handler"),
    "threadsafe": (lambda: asyncio.get_running_loop().call_soon_threadsafe(print), "loop.call_soon_threadsafe"),
    "factory": (lambda: asyncio.get_running_loop().set_task_factory(None), "loop.set_task_factory"),
    "handler": (lambda: asyncio.get_running_loop().set_exception_handler(None), "loop.set_exception_handler"),
    "stop": (lambda: asyncio.get_running_loop().stop(), "loop.stop"),
    "asyncgens": (_asyncgen_of_the_loop, "loop.shutdown_asyncgens"),
}


@pytest.mark.parametrize("way", REFUSED)
def test_what_reaches_outside_is_refused_by_name_even_if_the_function_swallows_it(way: str) -> None:
    act, name = REFUSED[way]

    async def function(job: Owner) -> None:
        try:
            waits = act()
            if waits is not None:
                await waits
        except Exception as error:
            job.seen.append(error)
        await asyncio.sleep(0)
        job.seen.append("went on")

    job = Owner(function)
    assert isinstance(job.loop.refused, UserError)
    assert name in job.loop.refused.message
    assert "job orders-7" in job.loop.refused.message
    assert "ctx.step" in job.loop.refused.hint
    assert job.seen == [job.loop.refused]
    job.loop.discard()


def test_every_public_method_of_a_loop_is_answered_or_refused() -> None:
    """What a version of Python adds to the event loop is refused until it is known here."""
    missing = [
        name
        for name in vars(asyncio.AbstractEventLoop)
        if not name.startswith("_") and getattr(JobLoop, name) is getattr(asyncio.AbstractEventLoop, name)
    ]
    assert missing == []


def _of_the_app() -> "asyncio.Future[Any]":
    return asyncio.Future(loop=APP)


APP = SimulatedLoop(random.Random(1))
FOREIGN: dict[str, Callable[[], Any]] = {
    "await": lambda: _of_the_app(),
    "gather": lambda: asyncio.gather(_of_the_app()),
    "shield": lambda: asyncio.shield(_of_the_app()),
    "wait": lambda: asyncio.wait([_of_the_app()]),
    "as_completed": lambda: next(iter(asyncio.as_completed([_of_the_app()]))),
}


@pytest.mark.parametrize("way", FOREIGN)
def test_a_future_of_another_event_loop_is_refused_even_if_the_function_swallows_it(way: str) -> None:
    async def function(job: Owner) -> None:
        try:
            await FOREIGN[way]()
        except Exception as error:
            job.seen.append(error)
        await job.ask()
        job.seen.append("went on")

    job = Owner(function)
    assert job.loop.refused is not None
    assert "Future that belongs to the event loop outside of the job" in job.loop.refused.message
    assert job.seen == [job.loop.refused]
    assert job.loop.refused.__traceback__ is not None, "it says where"
    job.loop.discard()


def test_a_task_of_another_job_is_refused() -> None:
    async def other(job: Owner) -> None:
        await job.ask()

    shared = Owner(other, "orders-8")

    async def function(job: Owner) -> None:
        await shared.loop.main

    job = Owner(function)
    assert "belongs to job orders-8" in str(job.loop.refused)
    job.loop.discard()
    shared.loop.discard()


def test_jobs_that_share_a_lock_are_both_refused() -> None:
    """Which of them gets it first is not recorded."""
    lock = asyncio.Lock()

    async def function(job: Owner) -> None:
        async with lock:
            await job.ask()
        job.seen.append("released")

    first, second = Owner(function, "orders-1"), Owner(function, "orders-2")
    first.answer(0, None)
    assert "wakes job orders-2, through something of asyncio that they share" in str(first.loop.refused)
    assert "is woken by job orders-1" in str(second.loop.refused)
    second.loop.run_until_quiet()
    assert (first.seen, second.asked) == ([], [])
    first.loop.discard()
    second.loop.discard()


def test_an_app_that_wakes_the_function_is_refused() -> None:
    """The job would go on now, and in replay, where nobody sets the event, it would not."""
    event = asyncio.Event()

    async def function(job: Owner) -> None:
        await event.wait()
        job.seen.append("went on")

    job = Owner(function)
    with pytest.raises(UserError, match="is woken by the app, or another thread, through something of asyncio"):
        event.set()
    job.loop.run_until_quiet()
    assert job.loop.refused is not None
    assert job.seen == []
    job.loop.discard()


def test_a_thread_that_wakes_the_function_is_refused() -> None:
    def wake(waits: "asyncio.Future[Any]") -> None:
        with pytest.raises(UserError) as caught:
            waits.set_result(1)
        errors.append(caught.value)

    async def function(job: Owner) -> None:
        waits = asyncio.get_running_loop().create_future()
        asyncio.ensure_future(waits).add_done_callback(job.seen.append)
        thread = threading.Thread(target=wake, args=(waits,))
        thread.start()
        thread.join()
        await waits

    errors: list[UserError] = []
    job = Owner(function)
    assert errors == [job.loop.refused]
    assert "is woken by the app, or another thread" in str(job.loop.refused)
    assert job.seen == []
    job.loop.discard()


def test_a_future_of_a_thread_is_refused() -> None:
    thread: concurrent.futures.Future[int] = concurrent.futures.Future()

    async def function(job: Owner) -> None:
        await asyncio.wrap_future(thread)

    job = Owner(function)
    assert "the future of a thread or of an executor (asyncio.wrap_future)" in str(job.loop.refused)
    thread.set_result(1)
    job.loop.discard()


def test_what_is_not_of_asyncio_is_refused() -> None:
    class Strange:
        def __await__(self) -> Any:
            yield "a trap of another framework"

    async def function(job: Owner) -> None:
        await Strange()

    job = Owner(function)
    assert "awaits a str, which is nothing of asyncio" in str(job.loop.refused)
    job.loop.discard()


def test_a_function_that_swallows_in_a_loop_gets_no_second_try() -> None:
    async def function(job: Owner) -> None:
        while True:
            try:
                await _of_the_app()
            except Exception as error:
                job.seen.append(error)

    job = Owner(function)
    assert len(job.seen) == 1
    job.loop.discard()


def test_another_thread_is_told_that_it_may_not() -> None:
    async def function(job: Owner) -> None:
        await job.ask()

    job = Owner(function)
    errors: list[Exception] = []

    def call() -> None:
        try:
            job.loop.call_soon_threadsafe(print)
        except UserError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert errors == [job.loop.refused]
    job.loop.discard()


# -- discarded jobs ------------------------------------------------------------------------------------------------------


def test_a_discarded_job_is_dead_before_its_first_finally_and_silent(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(logging.INFO)

    async def child(job: Owner, name: str) -> None:
        try:
            await job.ask()
        finally:
            job.seen.append((name, job.loop.dead))
            await asyncio.sleep(5)  # nobody rings

    async def failed() -> None:
        raise ValueError("nobody asks for this")

    async def numbers(job: Owner) -> Any:
        try:
            yield 1
            yield 2
        finally:
            job.seen.append(("generator", job.loop.dead))
            await asyncio.sleep(5)

    async def function(job: Owner) -> None:
        asyncio.create_task(failed())  # noqa: RUF006
        held = asyncio.create_task(failed())
        generator = numbers(job)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(child(job, "first"))
                group.create_task(child(job, "second"))
                assert await anext(generator) == 1
                await job.ask()
        finally:
            job.seen.append(("main", job.loop.dead))
            asyncio.create_task(child(job, "too late"))  # noqa: RUF006
        assert held

    job = Owner(function)
    caplog.clear()  # of what failed while the job was alive
    assert job.seen == []
    timers = len(job.timers)
    job.loop.discard()
    assert job.seen == [("second", True), ("first", True), ("main", True), ("generator", True)]
    assert (len(job.timers), job.gone) == (timers, [])
    for future in job.asked:
        future.cancel()
    job.loop.run_until_quiet()
    del job
    gc.collect()
    assert [each.message for each in caplog.records if each.name.startswith(("asyncio", "sabot.jobs"))] == []
    assert never_awaited(recwarn) == []


def test_a_job_that_is_discarded_before_its_first_step_says_nothing(recwarn: pytest.WarningsRecorder) -> None:
    ran = []

    async def function() -> None:
        ran.append(1)

    loop = JobLoop("never", on_timer=lambda timer: None, on_timer_gone=lambda timer: None)
    loop.start(function())
    loop.discard()
    loop.run_until_quiet()
    del loop
    gc.collect()
    assert (ran, never_awaited(recwarn)) == ([], [])


def test_a_coroutine_that_cannot_be_dropped_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async def function(job: Owner) -> None:
        while not job.seen:
            try:
                await job.ask()
            except BaseException:
                continue

    job = Owner(function)
    job.loop.discard()
    assert "job orders-7: <coroutine object" in caplog.text
    assert "cannot be dropped: it catches BaseException and goes on" in caplog.text
    job.seen.append("let it end")


def test_the_error_of_a_background_task_is_logged_with_the_job(caplog: pytest.LogCaptureFixture) -> None:
    async def failed() -> None:
        raise ValueError("no such order")

    async def function(job: Owner) -> None:
        asyncio.create_task(failed())  # noqa: RUF006
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(int, "x")

    job = Owner(function)
    gc.collect()
    assert job.loop.main.done()
    # in any order: the first is told when the garbage collector comes to the task
    assert {record.getMessage().split(" in ")[0] for record in caplog.records} == {
        "job orders-7: JobTask exception was never retrieved",
        "job orders-7: Exception",
    }
    assert len(caplog.records) == 2
    assert "no such order" in caplog.text


def test_a_task_that_nobody_holds_lives_until_its_end() -> None:
    """asyncio holds tasks by weak references, so that the garbage collector may take one that waits."""

    async def child(job: Owner) -> None:
        waits = job.ask()
        del job.asked[:]
        job.seen.append(await waits)

    async def function(job: Owner) -> None:
        asyncio.create_task(child(job))  # noqa: RUF006

    job = Owner(function)
    before = len(asyncio.all_tasks(job.loop))
    gc.collect()
    assert before == len(asyncio.all_tasks(job.loop)) == 1
    job.loop.discard()
    gc.collect()
    assert asyncio.all_tasks(job.loop) == set()


# -- async generators ----------------------------------------------------------------------------------------------------


async def _pages(job: Owner) -> Any:
    try:
        while True:
            yield await job.ask()
    finally:
        job.seen.append(await job.ask())


def test_an_async_generator_that_is_left_is_closed_in_the_same_turn() -> None:
    async def function(job: Owner) -> str:
        async for page in _pages(job):
            job.seen.append(page)
            break
        await asyncio.sleep(1)
        return "done"

    job = Owner(function)
    job.answer(0, "page")
    job.answer(1, "closed")
    assert job.seen == ["page", "closed"]
    job.ring()
    assert job.result == "done"


def test_an_async_generator_that_the_garbage_collector_finds_is_closed_when_the_job_is_discarded() -> None:
    """When it finds it is chance, so it must not ask anything then."""

    async def function(job: Owner) -> None:
        holder: dict[str, Any] = {"pages": _pages(job)}
        holder["itself"] = holder
        job.seen.append(await anext(holder["pages"]))
        del holder
        gc.collect()
        await job.ask()

    job = Owner(function)
    job.answer(0, "page")
    assert len(job.asked) == 2, "the function's own"
    gc.collect()
    job.loop.discard()
    assert job.seen == ["page"]
    assert len(job.asked) == 3


def test_async_generators_of_a_discarded_job_come_to_their_end(recwarn: pytest.WarningsRecorder) -> None:
    """One that is suspended at its yield, one that awaits, and one that is closing already; each asks something on its way out."""

    async def pages(job: Owner, name: str) -> Any:
        try:
            yield name
            yield await job.ask()
        finally:
            try:
                await job.ask()
            finally:
                job.seen.append(name)
                raise asyncio.CancelledError("parked")

    async def function(job: Owner) -> None:
        async for _ in pages(job, "closing"):
            break
        at_its_yield = pages(job, "at its yield")
        await anext(at_its_yield)
        async for _ in pages(job, "awaits"):
            continue

    job = Owner(function)
    assert len(job.asked) == 2
    job.loop.discard()
    del job.asked[:]
    gc.collect()
    assert sorted(job.seen) == ["at its yield", "awaits", "closing"]
    assert never_awaited(recwarn) == []
