"""The judge of model calls that are not effects of a job. An app with rules or budgets sets one, and the engine asks
it before each call.

The judge is found by the context of the call. A thread that was started without a context has no judge, although a
tool of a job may have started it. Such calls are refused while jobs whose calls are judged run in this process.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar, copy_context
from decimal import Decimal
from typing import Protocol

from sabot.calls import judging
from sabot.errors import UserError
from sabot.llm.middleware import ModelCall, Outcome
from sabot.llm.results import Usage


class CallJudge(Protocol):
    """The interface of the object that applies an app's policy and budgets to a model call. An engine calls it before
    each call.
    """

    async def __call__(
        self,
        call: ModelCall,
        model: str,
        price: Callable[[str, Usage], Decimal | None],
        ask: Callable[[], Awaitable[Outcome]],
    ) -> Outcome:
        """Decides whether a call may be made, makes it with the function `ask`, and returns the outcome. It may change
        `call` before. Raises PolicyDenied or BudgetExceeded if the call may not be made.

        `model`: the model to be asked. `price`: a function that returns the cost in US dollars of a model's tokens, or
        None if the price is unknown.
        """


JUDGE: ContextVar[CallJudge | None] = judging.JUDGE
"""The judge of the calls that are made in this context, with the type that this room knows."""

SENDABLE: ContextVar[Callable[[], Awaitable[None]] | None] = ContextVar("SENDABLE", default=None)
"""A function that returns when a request may be sent, set for calls that are effects of a job: they may be sent while
the job's process owns its journal. None allows it at any time.
"""

IN_JOB: ContextVar[bool] = ContextVar("IN_JOB", default=False)
"""True while the function of a job runs here. It asks models through its context, because calls that it made itself
would be neither judged nor recorded.
"""

_judging: dict[object, asyncio.AbstractEventLoop] = {}  # by owner of jobs whose calls are judged: its event loop


def begin_judging(who: object) -> None:
    """Records that jobs of an app with a policy or budgets run on the current event loop, until `end_judging`.
    `judge_of_this` uses this. `who`: the owner of these jobs.
    """
    if who not in _judging:
        for each in [each for each, loop in list(_judging.items()) if loop.is_closed()]:
            _judging.pop(each, None)
        _judging[who] = asyncio.get_running_loop()


def end_judging(who: object) -> None:
    """Ends the record that `begin_judging` has made for `who`. Does nothing if there is none."""
    _judging.pop(who, None)


def judge_of_this(model: str) -> CallJudge | None:
    """Returns the CallJudge of the current context, or None if there is none. A model may be called only with the
    permission of this CallJudge.

    Raises UserError if it is unknown which job makes the call. That is so in a thread that was started without a
    context, while jobs of an app with a policy or budgets run on another event loop of this process. `model`: the name
    of the model, for the error message.
    """
    judge = JUDGE.get()
    if judge is not None or not _judging or JUDGE in copy_context():
        return judge
    loops = [each for each in list(_judging.values()) if not each.is_closed()]
    if loops and asyncio.get_running_loop() not in loops and threading.current_thread() is not threading.main_thread():
        raise UserError(
            f"{model} was not asked: jobs with a policy or budgets run in this process, and thread {threading.current_thread().name} has "
            "no context, so Sabot cannot tell whether one of these jobs makes the call",
            hint="in a tool: make it `async def`, and await the engine in it; elsewhere begin the thread by asyncio.to_thread(…), or by "
            "contextvars.copy_context().run(…) of the program",
        )
    return None
