"""The judge of the calls that are no effects of jobs: calls of models by an engine, and plain calls of tools.

An app with rules or budgets sets a judge for its agents and streams. Each job sets one for its function, which may make
no such call, and one for each of its effects. The judge is found by the context of the call (`contextvars`). A context
that was not copied from another one has no judge, such as that of a plain thread. In the function of a job, its event
loop says then whose code it is. Elsewhere a job or an agent may have started it, so calls are refused there while an
app or a kernel with a policy or budgets runs in this process.
"""

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from copy import copy
from typing import Any, NoReturn, ParamSpec, TypeVar

from sabot.clock import Clock, ForwardClock, ManualClock, SystemClock
from sabot.engine.calls.certainty import Certainty, certainty_of
from sabot.errors import NotSent, Overloaded, PolicyDenied, UserError

P = ParamSpec("P")
T = TypeVar("T")

JUDGE: ContextVar[Any] = ContextVar("JUDGE", default=None)
"""The judge of the calls that are made in this context (`llm.judges.CallJudge`). None allows all calls, as in a program
without an app.
"""

SENDABLE: ContextVar[Callable[[], Awaitable[None]] | None] = ContextVar("SENDABLE", default=None)
"""A function that returns when a request may be sent, set for calls that are effects of a job: they may be sent while
the job's process owns its journal. None allows it at any time.
"""

OVER: ContextVar[Callable[[], str] | None] = ContextVar("OVER", default=None)
"""A function that returns why the call of a tool is over, within which this context is, although its thread goes on: a
thread cannot be cancelled. It returns "" if the call is not over.
"""

# Set in the context of the main thread. Contexts copied from it have the value None. Empty contexts have no value, by which
# `_judge_here` tells them apart.
JUDGE.set(None)
_main_has_value = threading.current_thread() is threading.main_thread() and asyncio._get_running_loop() is None
_NO_VALUE: Any = object()

# by owner of what is judged: its event loop, and the options "policy" and "budgets" that it has
_judging: dict[object, tuple[asyncio.AbstractEventLoop, frozenset[str]]] = {}


def with_judge(function: Callable[P, T], judge: object) -> Callable[P, T]:
    """Returns a wrapper of the function. The wrapper runs the function in a copy of the present context, in which the
    context variable JUDGE is `judge`. So `judge` decides on every call of a model or a tool that the function makes,
    and on those of the tasks that it starts.
    """
    context = copy_context()
    context.run(JUDGE.set, judge)

    def within(*args: "P.args", **kwargs: "P.kwargs") -> T:
        return context.run(function, *args, **kwargs)

    return within


@contextmanager
def judged_by(judge: object) -> Iterator[None]:
    """Makes `judge` the judge of the calls within the `with` block, in the present context; None leaves the present judge.
    Several threads may use one judge at once. The block awaits nothing.
    """
    if judge is None:
        yield
        return
    before = JUDGE.set(judge)
    try:
        yield
    finally:
        JUDGE.reset(before)


Make = Callable[[tuple[Any, ...], Mapping[str, Any]], Awaitable[Any]]
"""A function that makes a call of a tool with these arguments."""


class RefusingJudge:
    """The judge of the function of one job. The function may make no plain call of a tool or a model: nothing would
    record it, and each run of the function would make it again. The job fails, even if the function catches the error.
    """

    declared: frozenset[str] = frozenset()
    """Those of the options "policy" and "budgets" that an app or a kernel needs which this code starts."""

    def __init__(self, refuse: Callable[[str, str], UserError]) -> None:
        """Makes a judge. `refuse`: a function that lets the job fail, and returns the error. Its arguments are words for
        the call, such as "calls an engine directly", and the fix as a hint.
        """
        self._refuse = refuse

    async def __call__(self, call: Any, model: str, price: Any, ask: Any) -> NoReturn:
        raise self.refuse_engine()

    def refuse_engine(self) -> UserError:
        """Returns the error for an engine that the function uses directly."""
        return self._refuse(
            "calls an engine directly, so the policy cannot judge the call, nor the journal record it",
            "await ctx.llm(engine).complete(…), agent.run(…, effects=ctx.llm(engine)), or ctx.step or ctx.call",
        )

    def call_plainly(self, tool: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> NoReturn:
        raise self._refuse(
            f"calls the tool {tool.name} directly, so the policy cannot judge the call, nor the journal record it: each run of the "
            "function would make it again",
            f"await ctx.call({tool.name}, …)",
        )

    async def make(self, tool: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], make: Make) -> Any:
        self.call_plainly(tool, args, kwargs)


class ValueCode(RefusingJudge):
    """The judge of the code of values while a call is judged, shown, recorded or copied: validators, serializers,
    properties, `__deepcopy__`, `__iter__`. It runs any number of times, also at each start, and no rule has decided yet.
    So it may call no tool or model, and start no app or kernel: the call whose value does so is refused, even if the
    code catches the error. As a context manager it is the judge of its `with` block, and raises that error at the end.
    """

    _refused: UserError | None = None

    def __init__(self, name: str) -> None:
        """Makes a judge. `name`: the name of the tool whose arguments or result are looked at."""
        self._name = name  # some ten of them are made for each call

    def _refuse(self, what: str, hint: str) -> UserError:
        self._refused = UserError(
            f"{what}: code of a value of {self._name} does it (a validator, a serializer, a property, __deepcopy__, …), which "
            f"runs while the call of {self._name} is judged, shown and recorded, at any time and more than once",
            hint=hint,
        )
        return self._refused

    def refuse_engine(self) -> UserError:
        return self._refuse("a model was not asked", f"ask it in the body of {self._name}, or before its call")

    def refuse_start(self, what: str) -> UserError:
        """Returns the error for an app or a kernel that the code starts, or a job that it begins. `what`: its name."""
        return self._refuse(f"{what} was not started", "start it in the program, before its agents run")

    def call_plainly(self, tool: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> NoReturn:
        hint = f"call {tool.name} in the body of {self._name}, or before its call, and give the result as an argument"
        raise self._refuse(f"{tool.name} was not called", hint)

    def __enter__(self) -> None:
        self._token = JUDGE.set(self)

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        JUDGE.reset(self._token)
        if self._refused is not None and self._refused is not error and not isinstance(error, _ENDS):
            raise self._refused from error


_ENDS = (KeyboardInterrupt, SystemExit)


class ClockCode(ValueCode):
    """The judge of a Clock of a user's own, which an app, a kernel or a thread of theirs asks for the time."""

    def _refuse(self, what: str, hint: str) -> UserError:
        self._refused = UserError(
            f"{what}: {self._name} does it while it is asked for the time, which happens at any time, in the middle of anything",
            hint="call it in an agent, a tool or a function of the app",
        )
        return self._refused


class JudgedClock:
    """A clock of a user's own that may call no tool or model, and start no app or kernel, wherever it is asked: in the task
    of the agents, in a thread, in a checkpoint. Other attributes are those of the clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock, self._name = clock, f"the clock {type(clock).__name__}"

    def time(self) -> float:
        with ClockCode(self._name):
            return self._clock.time()

    def monotonic(self) -> float:
        with ClockCode(self._name):
            return self._clock.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)


def judged_clock(clock: Clock) -> Clock:
    """Returns the clock, or, if it has code of a user's, a JudgedClock."""
    return clock if type(clock) in _OURS else JudgedClock(clock)


_OURS = (SystemClock, ManualClock, ForwardClock, JudgedClock)


class OnceJudge:
    """A judge for a function that is called again after a failure (`retries=`, Overloaded, RowErrors, halves of a
    batch). It lets no attempt call a tool that must not be called twice, if an earlier attempt on the same item has
    called it. A worker has one for all its items, and an unsafe tool with `retries=` one for each call: an error by
    which nothing was sent is no reason to repeat this call if it has called such a tool itself. With `never` it lets
    no attempt call a tool that changes something.
    """

    def __init__(self, around: Any, never: str = "") -> None:
        """Makes a judge. `around`: the judge that decides on all other grounds, or None. `never`: words for a function
        that Sabot may call at any time again, also in another process; it may call no tool that changes something.
        """
        self._around, self._never = around, never
        self.declared: frozenset[str] = getattr(around, "declared", frozenset())
        self.guarded: bool = getattr(around, "guarded", False)
        self.called: list[str] = []
        """The names of the tools that must not be called twice and that attempts since the last `begin` have called, or
        earlier attempts on the same item: one for each call."""
        self._before: frozenset[str] = frozenset()  # what earlier attempts have called

    def begin(self, attempts: int) -> None:
        """Begins an attempt. Not needed while `called` is empty. `attempts`: the number of attempts on the same item that
        have failed.
        """
        if not attempts:
            self.called.clear()
        self._before = frozenset(self.called)

    repeats = True  # its attempts

    def repeats_with_key(self) -> bool:
        """Returns True if the attempts may make a call with an idempotency key again."""
        around = self._around
        return not self._never and (not getattr(around, "repeats", False) or bool(around.repeats_with_key()))

    def why_not_again(self, tool: Any) -> str:
        """Returns why a job that an attempt has begun may not call this tool, or "". Notes the call if it may."""
        if self._never and tool.effect in _CHANGE:
            return f"{self._never} has begun it, which may be called again, and {_classed(tool)}"
        around = self._around
        why = str(around.why_not_again(tool)) if getattr(around, "repeats", False) else ""
        if why or tool.effect not in _ONCE:
            return why
        if tool.name in self._before:
            return (
                f"an earlier attempt of the code that has begun it has called {tool.name}, and {_classed(tool)}: begin the job with "
                "idempotency_key= over a durable journal, or leave retries= out"
            )
        self.called.append(tool.name)
        return ""

    def within(self, judge: Any) -> "OnceJudge":
        """Returns the judge of the calls that a tool makes itself. What they call, the same attempt has called.
        `judge`: the judge that decides on these calls on all other grounds.
        """
        inner = copy(self)
        inner._around = judge
        return inner

    def forget(self) -> None:
        """Forgets what the last attempt has called. For a function that has ended well for a part of an item."""
        self.called = list(self._before)

    async def __call__(self, call: Any, model: str, price: Any, ask: Any) -> Any:
        return await (ask() if self._around is None else self._around(call, model, price, ask))

    def call_plainly(self, tool: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        if tool.is_async:
            return self._awaited(tool, args, kwargs)
        with self._once(tool):
            return self._plainly(tool, args, kwargs)

    async def _awaited(self, tool: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        with self._once(tool):
            return await self._plainly(tool, args, kwargs)

    def _plainly(self, tool: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        return tool.func(*args, **kwargs) if self._around is None else self._around.call_plainly(tool, args, kwargs)

    async def make(self, tool: Any, args: tuple[Any, ...], kwargs: Any, make: Any) -> Any:
        with self._once(tool):
            return await (make(args, kwargs) if self._around is None else self._around.make(tool, args, kwargs, make))

    @contextmanager
    def _once(self, tool: Any) -> Iterator[None]:
        if self._never and tool.effect in _CHANGE:
            raise UserError(
                f"{tool.name} was not called: {self._never} may be called again, also with other idempotency keys, and the class "
                f"{str(tool.effect)!r} of {tool.name} says that it changes something",
                hint=f'call it in a tool or in a step; or declare what it does: effect="read" for {tool.name}',
            )
        if tool.effect not in _ONCE:
            yield
            return
        if tool.name in self._before:
            raise UserError(
                f"{tool.name} was not called: an earlier attempt has called it, and its class {str(tool.effect)!r} does not allow "
                "to repeat it",
                hint="leave retries= out, and let what can fail come before this call; or declare what it does: "
                f'effect="idempotent" for {tool.name}; or await ctx.call({tool.name}, …) in the function of a durable agent',
            )
        self.called.append(tool.name)
        try:
            yield
        except (NotSent, Overloaded, PolicyDenied) as error:
            if isinstance(error, PolicyDenied) or certainty_of(error) is Certainty.NOT_SENT:  # it was not made
                self.called.remove(tool.name)
            raise


def _classed(tool: Any) -> str:
    return f"the class of {tool.name} is {str(tool.effect)!r}"


_ONCE = ("unsafe", "reconcilable")  # the classes of tools that must not be called twice (`effects`)
_CHANGE = (*_ONCE, "idempotent")  # those of tools that change something


def refuse_without_rules(what: str, own: Collection[str]) -> None:
    """Raises UserError if judged code starts an app or a kernel that lacks a policy or budgets: nobody would judge the
    calls of its jobs then, although they are made on behalf of this code. `what`: the app or kernel. `own`: those of the
    options "policy" and "budgets" that it has.
    """
    judge = present_judge()
    if isinstance(judge, ValueCode):
        raise judge.refuse_start(what)
    missing = sorted(getattr(judge, "declared", frozenset()) - set(own))
    if missing:
        options = " and ".join(f"{each}=" for each in missing)
        raise UserError(
            f"{what} has no {options}, and code whose calls are judged starts it: its own calls would be judged by nobody",
            hint=f"give it {options}, such as those of the app or kernel around it; or start it in the program, outside of "
            "agents, tools and functions of an app",
        )


def repeated_around(*, keyed: bool = False) -> Any:
    """Returns the judge of the code that begins a job or starts an app, if this code may be repeated, so that it would begin
    another job; else None. The judge says by `why_not_again(tool)` why that job may not call a tool, or "".

    `keyed`: True if the same job is found again by its idempotency key in a durable journal. Code of a class that may be
    repeated with the same key then begins one job in all.
    """
    judge = present_judge()
    if isinstance(judge, ValueCode):
        raise judge.refuse_start("a job")
    if not getattr(judge, "repeats", False):
        return None
    return None if keyed and judge.repeats_with_key() else judge


def begin_judging(who: object, declared: frozenset[str]) -> None:
    """Records that jobs, agents or streams with a policy or budgets run on the current event loop, until
    `end_judging`. `judge_of_this` uses this. `who`: their owner. `declared`: those of the options "policy"
    and "budgets" that it has.
    """
    if not _judging:
        note_collections()
        if JUDGE.get(_NO_VALUE) is _NO_VALUE:
            JUDGE.set(None)  # nothing judged runs yet, so a plain thread that starts an app is the program
    if who not in _judging:
        for each in [each for each, (loop, _) in list(_judging.items()) if loop.is_closed()]:
            _judging.pop(each, None)
        _judging[who] = asyncio.get_running_loop(), declared


def end_judging(who: object) -> None:
    """Ends the record that `begin_judging` has made for `who`. Does nothing if there is none."""
    _judging.pop(who, None)


def judge_of_this(what: str, verb: str, fix: str) -> Any:
    """Returns the judge of the code that runs, or None if there is none. The call may be made only with the permission
    of this judge.

    Raises UserError if the call is made by a tool whose own call is over. Raises UserError if it is unknown whose code
    makes the call, while an app or a kernel with a policy or budgets runs in this process: in an empty context, as that
    of a plain thread, and in a finalizer that the garbage collector runs. For the message: `what` is the name of the
    model or tool, `verb` is "asked" or "called", and `fix` says what to do in a tool.
    """
    if (over := OVER.get()) is not None and (why := over()):
        raise UserError(
            f"{what} was not {verb}: {why}, and its thread goes on",
            hint="a longer timeout= of this tool, or `async def`, which ends with its call",
        )
    judge = _judge_here()
    if judge is None or judge is _NO_VALUE:
        if not _judging or not (unknown := _unknown_code(judge)):
            return None
        raise UserError(
            f"{what} was not {verb}: {unknown}",
            hint=f"in a tool: {fix}; {_KEEP_CONTEXT}",
        )
    return judge


_KEEP_CONTEXT = (
    "elsewhere begin the thread by asyncio.to_thread(…), or by contextvars.copy_context().run(…) of the program, and a task "
    "or a callback without context="
)


def present_judge() -> Any:
    """Returns the judge of the code that runs, or None if there is none. If it is unknown whose code it is (see
    `judge_of_this`), returns a judge that refuses all calls.
    """
    judge = _judge_here()
    if judge is not None and judge is not _NO_VALUE:
        return judge
    if not _judging or not (unknown := _unknown_code(judge)):
        return None
    refusing = RefusingJudge(lambda what, _: UserError(f"code {what.partition(',')[0]}: {unknown}", hint=_KEEP_CONTEXT))
    refusing.declared = frozenset[str]().union(*(declared for _, declared in _judging.values()))
    return refusing


def labels_here() -> frozenset[str]:
    """Returns the labels of all data that the job has received whose tool runs here, for a place that keeps data, and for a
    job that the tool begins. Empty outside of the tools of jobs, and beside no rules.
    """
    labels: frozenset[str] = getattr(_innermost(), "labels", frozenset())
    return labels


async def permitted_begin(agent: str, message: Any) -> Any:
    """Returns the input of a job that the code which runs here begins, other than by ctx.child: with hidden texts, if the rules
    around this code hide some. Raises PolicyDenied, or BudgetExceeded, if they do not let it begin a job of this agent; they
    judge it as a child. `agent`: the id of the agent.
    """
    permit = getattr(_innermost(), "permitted_begin", None)
    return message if permit is None else await permit(agent, message)


def note_labels(labels: frozenset[str]) -> None:
    """Gives the job whose tool runs here the labels of data that a place has kept. Does nothing outside of such tools."""
    note = getattr(_innermost(), "note_labels", None)
    if labels and note is not None:
        note(labels)


def _innermost() -> Any:
    judge = present_judge()
    while isinstance(judge, OnceJudge):
        judge = judge._around
    return judge


def _judge_here() -> Any:
    """Returns the judge of the code that runs: that of its context. In a context without a value, returns the judge of
    the job in whose turn it runs, or _NO_VALUE if none does. Only a job's own code runs in its turn.
    """
    judge = JUDGE.get(_NO_VALUE)
    if judge is _NO_VALUE:  # `judge` of `jobs.loop.JobLoop`; no other loop has it
        judge = getattr(asyncio._get_running_loop(), "judge", _NO_VALUE)
    return judge


def _unknown_code(judge: object) -> str:
    """Returns words for the code that runs, if that may be code of an app or a kernel that judges. Returns "" if it
    cannot be. `judge`: None in a context of the program, _NO_VALUE in one without a value.
    """
    collected, thread = collects_garbage(), threading.current_thread()
    if not collected and (judge is None or (thread is threading.main_thread() and not _main_has_value)):
        return ""  # where Sabot was imported in a task, the program's own contexts have no value either
    if all(loop.is_closed() for loop, _ in list(_judging.values())):
        return ""
    if collected:
        who = "the garbage collector runs this finalizer"
    elif thread is threading.main_thread():
        who = "this code has no context of the program"
    else:
        who = f"thread {thread.name} has no context"
    return (
        f"an app or a kernel with a policy or budgets runs in this process, and {who}, so Sabot cannot tell whether a job or an agent of "
        "it makes the call"
    )


_collecting = 0  # the thread that collects garbage at this moment


def collects_garbage() -> bool:
    """Returns True while the garbage collector runs on this thread."""
    return _collecting == threading.get_ident()


def _note_collection(phase: str, info: dict[str, int]) -> None:
    global _collecting
    _collecting = threading.get_ident() if phase == "start" else 0


def note_collections() -> None:
    """Lets `collects_garbage` tell from now on."""
    if _note_collection not in gc.callbacks:
        gc.callbacks.append(_note_collection)
