"""The event loop of one job. The function of the job does the same whenever it gets the same deliveries in the same
order.

   delivery    the owner of the loop resolves a future of the job, fires one of its timers, or cancels its main task
   turn        `run_until_quiet` makes a delivery, and runs everything that is ready, first come, first served
   quiet       every task waits for a delivery

Nothing else decides on an order. Tasks, futures and timers get numbers as they are made, and tasks and futures hash by
these numbers, so asyncio walks its sets of them in the same order in every process. Other sources of an order (sockets,
threads, other event loops, signals) are refused with an error that has a hint. The loop has no thread and no clock of
its own: a turn runs inside of the event loop of the app, on its thread.
"""

import asyncio
import logging
import sys
import warnings
import weakref
from asyncio import tasks
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable
from contextvars import Context, copy_context
from hashlib import blake2b
from itertools import count
from threading import get_ident
from types import CoroutineType, FrameType
from typing import Any, TypeVar, TypeVarTuple

from sabot.engine.calls.judging import JUDGE, RefusingJudge, collects_garbage, note_collections
from sabot.errors import InternalError, UserError, short_repr

_log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
# the running loop, the current task, the hooks of async generators
_Outside = tuple[asyncio.AbstractEventLoop | None, "asyncio.Task[Any] | None", Any]

_WAKES_A_SLEEPER = "_set_result_unless_cancelled"  # the callback of `asyncio.sleep`
_MOST_CALLBACKS = 100_000  # the most callbacks of a turn
_NEVER = 1e12  # seconds since 1970, in 30,000 years; asyncio.sleep(math.inf) is one way of waiting for a cancellation
_MOST_DROPS = 100  # the most exceptions for one coroutine, which may await in each of its `finally:` blocks
_HINT = "make it an effect: await ctx.step(f, ...) calls f outside of the job, once, and records what it returns"
_SHARED_HINT = "share no Lock, Semaphore, Event, Queue or Future with a job: only what is delivered to it is recorded; send it a signal"
_ASKED_AS = {  # the functions of asyncio that use a method of the loop, where the names differ
    "create_connection": "asyncio.open_connection (loop.create_connection)",
    "create_server": "asyncio.start_server (loop.create_server)",
    "create_unix_connection": "asyncio.open_unix_connection (loop.create_unix_connection)",
    "create_unix_server": "asyncio.start_unix_server (loop.create_unix_server)",
    "run_in_executor": "asyncio.to_thread (loop.run_in_executor)",
    "subprocess_exec": "asyncio.create_subprocess_exec (loop.subprocess_exec)",
    "subprocess_shell": "asyncio.create_subprocess_shell (loop.subprocess_shell)",
}
_CALLED_AS = {
    "DurableContext": "ctx.",
    "JobModel": "ctx.llm(engine).",
    "StateAccessor": "state.",
    "ValueState": "state.",
}
_WRAP_FUTURE = asyncio.wrap_future.__code__


class _Numbered:
    """A base class of the futures and tasks of a job. The hash of an object is a number that it gets when it is made.
    The number depends on the name of the job and on the order in which the job makes its futures and tasks, so it is
    the same in every process. Without the name of the job, tasks of different jobs would have equal hashes in the set
    in which asyncio keeps all tasks.
    """

    _number: int

    def __hash__(self) -> int:
        return self._number


class JobFuture(_Numbered, asyncio.Future[Any]):
    """A future on the event loop of a job. Its result is set by the owner of the loop, or by the function of the job."""

    def __init__(self, loop: "JobLoop", on_cancel: Callable[[], None] | None = None) -> None:
        """Makes a future. `on_cancel`: a function that is called at once when the job's function cancels this future,
        or a task that awaits it; None to call nothing.
        """
        self._number = next(loop.numbers)
        self._on_cancel = on_cancel
        super().__init__(loop=loop)

    def cancel(self, msg: Any = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled and self._on_cancel is not None and not self.get_loop().is_closed():
            self._on_cancel()
        return cancelled


class JobTask(_Numbered, asyncio.Task[Any]):
    """A task on the loop of a job."""

    def __init__(self, steps: "_Watched", loop: "JobLoop", number: int, **options: Any) -> None:
        self._number = number  # before the task is made, because that puts it into a set
        super().__init__(steps, loop=loop, **options)

    def get_coro(self) -> Any:
        steps = super().get_coro()
        return steps.coroutine if isinstance(steps, _Watched) else steps


class JobTimer(asyncio.TimerHandle):
    """A timer on the loop of a job, made by `call_later` and `call_at`. A timer only equals itself.

    - `open`: True until the timer has fired or was cancelled. Always False for a timer that never fires.
    - `sleeps`: True for the timer of an `asyncio.sleep`; False for that of a timeout or of a `call_later`.
    """

    __slots__ = ("open", "sleeps")
    __hash__ = object.__hash__

    open: bool
    sleeps: bool

    def __eq__(self, other: object) -> bool:
        return self is other


class _Dropped(BaseException):
    """The exception that ends the coroutines of a discarded job. It is raised at the places where they wait.

    CancelledError cannot be used, because it would mean that the job was cancelled. GeneratorExit, by which Python
    closes a coroutine, cannot be used either: Python turns it into a RuntimeError if the coroutine awaits something
    while it ends.
    """


class _Watched(Coroutine[Any, Any, Any]):
    """A wrapper of a task's coroutine. It checks each object that the coroutine awaits, and raises an error in the
    coroutine if the object does not belong to the job's loop.
    """

    __slots__ = ("_loop", "_send", "coroutine", "number", "task")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], loop: "JobLoop", number: int) -> None:
        self.coroutine = coroutine
        self.number = number
        self.task: weakref.ref[asyncio.Task[Any]] | None = None  # weak: the task has this object
        self._send = coroutine.send
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self.coroutine, name)  # cr_frame, cr_code and the like, for tracebacks and names

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.coroutine.__await__()

    def send(self, value: Any) -> Any:
        try:
            awaited = self._send(value)
        except BaseException:
            self._loop.ended(self)
            raise
        if type(awaited) is JobFuture or awaited is None:  # None: sleep(0)
            return awaited
        return self._checked(awaited)

    def throw(self, *error: Any) -> Any:
        try:
            awaited = self.coroutine.throw(*error)
        except BaseException:
            self._loop.ended(self)
            raise
        return None if self._loop.refused is not None else self._checked(awaited)

    def close(self) -> None:
        self.coroutine.close()

    def _checked(self, awaited: Any) -> Any:
        refusal = self._loop.refusal_of(awaited)
        return awaited if refusal is None else self.throw(refusal)


class JobLoop(asyncio.AbstractEventLoop):
    """The event loop on which the function of one job runs. It is only used by its owner (`JobRun`), on one thread.

    - `now`: the time that `time()` returns, in seconds since 1970. The owner moves it forward, never back.
    - `main`: the task of the job's function. `start` makes it.
    - `refused`: the error of the first forbidden thing that the function has done, such as opening a socket; None
      before. After that no callback of the job runs, even if the function catches the error, and the job has to fail.
    - `forgotten`: an error about the first coroutine that the function has made and never awaited; None if there is
      none.
    - `dead`: True once `discard` was called. It is set before the `finally:` blocks of the discarded coroutines run.
    - `repeats`: True while the function does what it did before, in a replay, and while its coroutines are discarded.
      What it logs then is dropped.
    - `allows_io`: True if the function may open files and sockets (`direct_io`), because the job has ended before.
    """

    main: "asyncio.Task[Any]"

    def __init__(
        self, name: str, *, on_timer: Callable[[JobTimer], None], on_timer_gone: Callable[[JobTimer], None]
    ) -> None:
        """Makes a loop.

        - `name`: the name of the job, the same in every replay.
        - `on_timer`: a function that is called with each timer that the job's function sets.
        - `on_timer_gone`: a function that is called with each timer that the job's function cancels before it has
          fired.

        Both are called while the job's function runs. If they raise an error, it is raised in the job's function.
        """
        self.name = name
        self.now = 0.0
        self.dead = self.repeats = self.allows_io = False
        self.refused: UserError | None = None
        self.forgotten: UserError | None = None
        self._on_timer = on_timer
        self._on_timer_gone = on_timer_gone
        self._ready: deque[asyncio.Handle] = deque()
        # tasks that have not ended; asyncio itself holds tasks by weak references only
        self._tasks: dict[int, _Watched] = {}
        self._tasks_made = 0
        self._left: list[AsyncGenerator[Any, Any]] = []  # async generators that the garbage collector has found
        first = int.from_bytes(blake2b(name.encode(), digest_size=6).digest(), "little") << 10
        self.numbers = count(first + 1)  # the numbers of futures and tasks, of which their hashes are made
        self._in_turn = 0  # the thread that runs a turn of this loop, or 0

    def __repr__(self) -> str:
        return f"<JobLoop {self.name}{' dead' if self.dead else ''}>"

    # -- for the owner ------------------------------------------------------------------------------------------------

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Makes the main task, which runs this coroutine in a copy of the current context. The coroutine begins to
        run in the next turn (`run_until_quiet`).
        """
        self._in_turn = get_ident()
        context = copy_context()
        context.run(JUDGE.set, self.judge)
        try:
            self.main = self.create_task(coroutine, context=context)
        finally:
            self._in_turn = 0

    def run_until_quiet(self, deliver: Callable[[], object] | None = None) -> None:
        """Runs one turn of the job: calls `deliver`, if it is not None, and then runs all callbacks that are ready,
        until none is left or `refused` is set. The event loop of the app does not run meanwhile.

        Within the turn, this loop is the running event loop of the thread. Outside of a turn, `call_soon` raises
        UserError, so other code cannot wake the job. Raises a KeyboardInterrupt or SystemExit of the function.
        """
        ready, left = self._ready, _MOST_CALLBACKS
        outside = self._enter("runs")
        self._in_turn = get_ident()
        try:
            if deliver is not None:
                deliver()
            while ready and self.refused is None:
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()
                left -= 1
                if not left:
                    self.refuse(
                        f"runs on without waiting for anything: {_MOST_CALLBACKS:,} callbacks in one turn",
                        "wait for something in the loop that it spins in, for instance await ctx.sleep(1)",
                    )
        finally:
            self._in_turn = 0
            self._leave(outside)

    def _enter(self, what: str) -> "_Outside":
        """Makes this loop the running event loop of the thread. Returns the state that it replaces: the running loop,
        its current task, and the hooks of async generators. `_leave` restores that state. `what`: a verb such as
        "runs", for the message of the InternalError that is raised if the loop of another job is running.
        """
        loop, hooks = asyncio._get_running_loop(), sys.get_asyncgen_hooks()
        if isinstance(loop, JobLoop):
            raise InternalError(f"job {self.name} {what} inside of a turn of job {loop.name}")
        task = None if loop is None else asyncio.current_task(loop)
        if task is not None:
            # from Python 3.14 on, a thread is in one task, not in one per loop
            tasks._leave_task(task.get_loop(), task)
        sys.set_asyncgen_hooks(None, self._generator_dropped)
        asyncio._set_running_loop(self)
        return loop, task, hooks

    def _leave(self, outside: "_Outside") -> None:
        loop, task, hooks = outside
        asyncio._set_running_loop(loop)
        sys.set_asyncgen_hooks(*hooks)
        if task is not None:
            tasks._enter_task(task.get_loop(), task)

    def fire(self, timer: JobTimer) -> None:
        """Makes the callback of a timer ready. Does nothing if the timer has fired or was cancelled."""
        if timer.open:
            timer.open = False
            self._ready.append(timer)

    @property
    def has_tasks(self) -> bool:
        """True if a task has not ended."""
        return bool(self._tasks)

    def cancel_all(self) -> None:
        """Cancels all tasks that have not ended, the oldest first. May only be called within a turn."""
        for steps in list(self._tasks.values()):
            task = None if steps.task is None else steps.task()
            if task is not None:
                task.cancel("the function of the job has ended")

    def discard(self) -> None:
        """Ends the coroutines of all tasks, the youngest first. After that, nothing of the job runs, and the job logs
        nothing.

        Also drops the references from the loop to its main task and to its owner. Then the objects of the job form no
        cycles, and Python frees them at once. Otherwise the garbage collector would have to find them, and would stop
        all other jobs meanwhile when thousands of jobs end or park in a second.
        """
        outside = self._enter("is discarded")
        self.dead = self.repeats = True
        self._ready.clear()
        try:
            for steps in reversed(self._tasks.values()):
                self._drop(steps.coroutine)
            for generator in self._left:
                self._drop(generator.aclose())
        finally:
            self._tasks.clear()
            self._left.clear()
            self._leave(outside)
            self.__dict__.pop("main", None)
            self._on_timer = self._on_timer_gone = _told_nobody

    def _drop(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Ends a coroutine by raising `_Dropped` in it. If the coroutine then awaits something instead of ending, raises
        `_Dropped` again, _MOST_DROPS times in all. If it still has not ended, logs that it cannot be dropped.
        """
        # The `finally` of the coroutine runs in the context of whoever discards the job, which has no judge.
        before = JUDGE.set(self.judge)
        try:
            for _ in range(_MOST_DROPS):
                try:
                    coroutine.throw(_Dropped())
                except (_Dropped, StopIteration):
                    return
                except (KeyboardInterrupt, SystemExit):
                    raise
                except BaseException as error:
                    _log.debug("job %s: a coroutine was dropped and raised", self.name, exc_info=error)
                    return
        finally:
            JUDGE.reset(before)
        _log.error(
            "job %s: %s cannot be dropped: it catches BaseException and goes on", self.name, short_repr(coroutine)
        )

    # -- refusals -----------------------------------------------------------------------------------------------------

    @property
    def judge(self) -> RefusingJudge:
        """The judge of all code that runs while this loop is the running one, also in a context without a judge. Made
        anew each time, as the loop must be part of no reference cycle.
        """
        return RefusingJudge(self.refuse_call)

    def refuse(self, what: str, hint: str = _HINT) -> UserError:
        """Returns the error for something that the function must not do, and stores the first one in `refused`."""
        refusal = UserError(f"job {self.name}: the function {what}", hint=hint)
        if self.refused is None and not self.dead:
            self.refused = refusal
        return refusal

    def refuse_call(self, what: str, hint: str) -> UserError:
        """Does the same as `refuse` for a call of a tool or a model. The context of the function makes this call, perhaps
        in another thread or event loop. If the job has ended before, or is parked, the error is logged: nobody else
        gets it. A finalizer that the garbage collector runs does not let the job fail, because its moment is chance. A job
        that has ended under an older version, in which it went on, stays as it is.
        """
        if collects_garbage() or self.allows_io:
            return UserError(f"job {self.name}: the function {what}", hint=hint)
        error = self.refuse(what, hint)
        if self.dead:
            _log.warning("%s", error)
        return error

    def refusal_of(self, awaited: Any) -> UserError | None:
        """Checks whether the job's function may await this object. Returns None if it may. Otherwise returns the error
        that is raised in the function, and stores it in `refused`.
        """
        if awaited is None:
            return None
        what = f"awaits a {type(awaited).__name__}"  # not its repr, which may have data in it
        get_loop = getattr(awaited, "get_loop", None)
        if get_loop is None:
            return self.refuse(f"{what}, which is nothing of asyncio")
        other = get_loop()
        if other is self:
            return None
        whose = f"job {other.name}" if isinstance(other, JobLoop) else "the event loop outside of the job"
        return self.refuse(f"{what} that belongs to {whose}")

    def in_given_order(self, awaitables: Iterable[Any]) -> dict[Any, None]:
        """Returns the given objects as the keys of a dict, in their order and without duplicates. It replaces `set`
        in `asyncio.wait` and `asyncio.as_completed`, because the order of a set differs between processes. Raises
        UserError if the job's function must not await one of the objects.
        """
        ordered = dict.fromkeys(awaitables)
        for each in ordered:
            if asyncio.isfuture(each) and (refusal := self.refusal_of(each)) is not None:
                raise refusal
        return ordered

    # -- AbstractEventLoop --------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self.now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if self._in_turn == get_ident():
            self._ready.append(handle)
        elif not self.dead:
            raise self._woken_from_outside()
        return handle

    def _woken_from_outside(self) -> UserError:
        """Returns the error for code that wakes the job while no turn of the job is running (`run_until_quiet`). For
        example, another thread has set the result of a future of the job. `call_soon` raises the error in that code.
        The job fails with the error too. If that code belongs to another job, this other job also fails.
        """
        who = "the app, or another thread"
        other = asyncio._get_running_loop()
        if isinstance(other, JobLoop):
            who = f"job {other.name}"
            other.refuse(f"wakes job {self.name}, through something of asyncio that they share", _SHARED_HINT)
        return self.refuse(f"is woken by {who}, through something of asyncio that they share", _SHARED_HINT)

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> JobTimer:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> JobTimer:
        """Sets a timer that calls `callback` at the time `when`, in seconds since 1970. Passes the timer to the owner
        of the loop, which fires it when it is due. Two kinds of timers are not passed to the owner: if `when` is not
        later than now, the callback is ready at once; if `when` is infinite or thousands of years away, the timer
        never fires.
        """
        timer = JobTimer(when, callback, args, self, context)
        timer.open = when < _NEVER and not self.dead
        timer.sleeps = getattr(callback, "__name__", "") == _WAKES_A_SLEEPER
        if when <= self.now:
            self.fire(timer)
        elif timer.open:
            self._on_timer(timer)
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if isinstance(handle, JobTimer) and handle.open:
            handle.open = False
            if not self.dead:
                self._on_timer_gone(handle)

    def create_future(self) -> "asyncio.Future[Any]":
        if sys._getframe(1).f_code is _WRAP_FUTURE:
            raise self.refuse("awaits the future of a thread or of an executor (asyncio.wrap_future)")
        return JobFuture(self)

    def create_task(
        self, coro: Any, *, name: object = None, context: Context | None = None, **options: Any
    ) -> "asyncio.Task[Any]":
        if not asyncio.iscoroutine(coro):
            raise TypeError(f"a coroutine was expected, got {coro!r}")
        if self.dead:
            coro.close()
            raise RuntimeError(f"job {self.name} was dropped: it begins no task")
        self._tasks_made += 1
        number = next(self.numbers)
        steps = self._tasks[number] = _Watched(coro, self, number)
        name = f"Task-{self._tasks_made}" if name is None else str(name)
        task = JobTask(steps, self, number, name=name, context=context, **options)
        steps.task = weakref.ref(task)
        return task

    def ended(self, steps: _Watched) -> None:
        """Forgets a task, because its coroutine has ended. `steps`: the wrapper of that coroutine."""
        self._tasks.pop(steps.number, None)

    def is_running(self) -> bool:
        return self._in_turn != 0

    def is_closed(self) -> bool:
        return self.dead

    def get_debug(self) -> bool:
        return False

    def get_task_factory(self) -> None:
        return None

    def get_exception_handler(self) -> None:
        return None

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Logs an error that no code of the job receives: the error of a callback, or of a task whose result nobody
        has awaited.
        """
        if not self.dead:
            _log.error("job %s: %s", self.name, context.get("message"), exc_info=context.get("exception"))

    def coroutine_dropped(self, coroutine: Coroutine[Any, Any, Any]) -> bool:
        """Handles a coroutine of this job that was freed without ever having been awaited. Returns True if Python need
        not warn about it.

        If the program dropped the last reference to the coroutine, stores an error in `forgotten`. A replay does the
        same at the same place. If the garbage collector found the coroutine, stores nothing, because the moment of a
        garbage collection is chance.
        """
        in_turn = self._in_turn == get_ident() and not collects_garbage()
        if in_turn and self.forgotten is None:
            what = _call_words(coroutine) + _line_words(sys._getframe(2))
            self.forgotten = UserError(
                f"job {self.name}: {what} was never awaited, so it was not done",
                hint="write await before it; asyncio.create_task(…) begins it beside the rest",
            )
        return in_turn or self.dead

    def _generator_dropped(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Handles an async generator that has begun to run, has not ended, and has no references left. If the program
        dropped the last reference, closes the generator at once. If the garbage collector found the generator, stores
        it until the job is discarded, because the moment of a garbage collection is chance.
        """
        if self.dead:
            self._drop(generator.aclose())
        elif self._in_turn == get_ident() and not collects_garbage():
            self.create_task(generator.aclose())
        else:
            self._left.append(generator)


def _told_nobody(timer: JobTimer) -> None:
    """Does nothing. A discarded loop calls this function instead of the callbacks by which it informed its owner
    about timers.
    """


note_collections()


def _call_words(coroutine: Any) -> str:
    """Returns the call by which a coroutine was made, such as "ctx.step(refund)", for a message. Only the first
    argument is shown, which is the tool or function. `coroutine`: a coroutine that has never run.
    """
    name, frame = coroutine.__qualname__.rpartition("<locals>.")[2], coroutine.cr_frame
    of, _, verb = name.rpartition(".")
    first = frame.f_code.co_varnames[bool(of)] if frame.f_code.co_argcount > bool(of) else ""
    given = frame.f_locals.get(first) if first else None
    own = getattr(given, "name", None) if callable(given) else None  # a tool may have another name than its function
    said = own if isinstance(own, str) else getattr(given, "__name__", None)
    return f"{_CALLED_AS.get(of, of + '.' if of else '')}{verb}({said or ('…' if first else '')})"


def _line_words(frame: FrameType) -> str:
    """Returns words for a message that name a file and a line: the place at which the program dropped a coroutine that
    it never awaited. Returns "" if the place is in Sabot's own code, as it is if the function has ended before.
    `frame`: the frame that dropped the last reference to the coroutine.
    """
    if frame.f_globals.get("__name__", "").partition(".")[0] == "sabot":
        return ""
    return f", in {frame.f_code.co_filename}, line {frame.f_lineno},"


def _refusing(method: str) -> Callable[..., Any]:
    asked = _ASKED_AS.get(method, f"loop.{method}")

    def refuse(self: JobLoop, *args: Any, **named: Any) -> Any:
        raise self.refuse(f"calls {asked}, which no job may call")

    return refuse


for _method in vars(asyncio.AbstractEventLoop):
    if not _method.startswith("_") and _method not in vars(JobLoop):
        setattr(JobLoop, _method, _refusing(_method))


def _set_in_order(items: Iterable[Any] = ()) -> "set[Any] | dict[Any, None]":
    loop = asyncio._get_running_loop()
    return loop.in_given_order(items) if isinstance(loop, JobLoop) and items else set(items)


# `asyncio.wait` and `as_completed` begin with `set(...)` of what they got. Coroutines hash by address, so `as_completed` would begin them
# in another order in every process. In a turn of a job, `set` in that module keeps the order; everywhere else it is the set that it was.
vars(tasks)["set"] = _set_in_order


# Python calls this function of `warnings` where a coroutine is freed that was never awaited, and so has done nothing of what its author
# asked for. In a turn of a job that is an error of the job, and more than a warning.
_warn_of_unawaited = vars(warnings).get("_warn_unawaited_coroutine")


def _coroutine_dropped(coroutine: "CoroutineType[Any, Any, Any]") -> None:
    loop = asyncio._get_running_loop()
    if isinstance(loop, JobLoop) and loop.coroutine_dropped(coroutine):
        return
    if coroutine.cr_origin is not None and _warn_of_unawaited is not None:
        _warn_of_unawaited(coroutine)  # with the lines that made the coroutine
    else:  # Python's function takes its caller for the line that dropped the coroutine, and its caller is this function
        text = f"coroutine '{coroutine.__qualname__}' was never awaited"
        warnings.warn(text, RuntimeWarning, stacklevel=2, source=coroutine)


vars(warnings)["_warn_unawaited_coroutine"] = _coroutine_dropped
