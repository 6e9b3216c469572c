"""Who judges calls of models that are no effects of a job: the app around them, if it has rules or budgets. The engine asks it before each
call.
"""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from decimal import Decimal
from typing import Protocol

from sabot.llm.middleware import ModelCall, Outcome
from sabot.llm.results import Usage

__all__ = ["IN_JOB", "JUDGE", "CallJudge"]


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

IN_JOB: ContextVar[bool] = ContextVar("IN_JOB", default=False)
"""Whether the function of a job runs here. It asks models by its context: what it asks by itself would be judged and recorded by nobody."""
