"""Who judges calls of models that are no effects of a job: the app around them, if it has rules or budgets. The engine asks it before each
call.

The context of a call says who judges it. A thread that was given no context says nothing: what it asks could be of a tool of a job. While
jobs whose calls are judged run in this process, such calls are refused.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar, copy_context
from decimal import Decimal
from typing import Protocol

from sabot.errors import UserError
from sabot.llm.middleware import ModelCall, Outcome
from sabot.llm.results import Usage


class CallJudge(Protocol):
    """Judges calls."""

    async def __call__(
        self,
        call: ModelCall,
        model: str,
        price: Callable[[str, Usage], Decimal | None],
        ask: Callable[[], Awaitable[Outcome]],
    ) -> Outcome:
        """What the call of this model gives; `ask` makes it, as `call` then says. Raises PolicyDenied, BudgetExceeded where it may not be
        made.
        """


JUDGE: ContextVar[CallJudge | None] = ContextVar("JUDGE", default=None)
"""Of what runs here; None: all may be asked. The calls of jobs have been judged as effects."""

# The program's: contexts that are copied of it say that nobody judges, and those of bare threads say nothing.
JUDGE.set(None)

SENDABLE: ContextVar[Callable[[], Awaitable[None]] | None] = ContextVar("SENDABLE", default=None)
"""Returns when a request may be sent: of a call that is an effect of a job, while the claim of its journal holds. None: at any time."""

IN_JOB: ContextVar[bool] = ContextVar("IN_JOB", default=False)
"""Whether the function of a job runs here. It asks models by its context: what it asks by itself would be judged and recorded by nobody."""

_judging: dict[object, asyncio.AbstractEventLoop] = {}  # who runs calls that are judged, and where


def begin_judging(who: object) -> None:
    """From now on, until `end_judging`, this runs calls that are judged, on the event loop of here."""
    if who not in _judging:
        for each in [each for each, loop in list(_judging.items()) if loop.is_closed()]:
            _judging.pop(each, None)
        _judging[who] = asyncio.get_running_loop()


def end_judging(who: object) -> None:
    """It runs none any more. If it ran none, nothing happens."""
    _judging.pop(who, None)


def judge_of_this(model: str) -> CallJudge | None:
    """Who judges a call of this model that is made here; None: nobody has to. Raises UserError where that is not known."""
    judge = JUDGE.get()
    if judge is not None or not _judging or JUDGE in copy_context():
        return judge
    loops = [each for each in list(_judging.values()) if not each.is_closed()]
    if loops and asyncio.get_running_loop() not in loops and threading.current_thread() is not threading.main_thread():
        raise UserError(
            f"{model} was not asked: jobs with a policy or budgets run in this process, and thread {threading.current_thread().name} was "
            "given no context, so nobody knows whether a tool of them asks, and who judges that",
            hint="in a tool: make it `async def`, and await the engine in it; elsewhere begin the thread by asyncio.to_thread(…), or by "
            "contextvars.copy_context().run(…) of the program",
        )
    return None
