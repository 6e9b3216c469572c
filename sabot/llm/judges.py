"""The judge of the calls that are no effects of a job, as models and tools see it. An app with rules or budgets sets one
for its agents and streams; a job sets one for its function, and one for each of its effects.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from decimal import Decimal
from typing import Any, NoReturn, Protocol

from sabot.calls import judging
from sabot.errors import UserError
from sabot.llm.middleware import ModelCall, Outcome
from sabot.llm.results import Usage

Make = Callable[[tuple[Any, ...], Mapping[str, Any]], Awaitable[Any]]
"""A function that makes a call of a tool with these arguments."""


class CallJudge(Protocol):
    """The interface of the object that applies an app's policy and budgets to calls of models and tools that are no
    effects of a job. An engine calls it before each call of a model, a Tool before each call of itself.
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

    def call_plainly(self, tool: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Decides whether `tool(*args, **kwargs)` may be called, and returns what the function of the tool returns. For
        an async tool, returns a coroutine that decides when it is awaited. Raises PolicyDenied or BudgetExceeded if
        the call may not be made, and UserError if no decision is possible here. `tool`: the Tool.
        """

    async def make(self, tool: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], make: Make) -> Any:
        """Does the same as `call_plainly` for a call that `make` makes, perhaps in several attempts."""


class RefusingJudge:
    """The judge of the function of one job. The function may make no plain call of a tool or a model: nothing would
    record it, and each run of the function would make it again. The job fails, even if the function catches the error.
    """

    def __init__(self, refuse: Callable[[str, str], UserError]) -> None:
        """Makes a judge. `refuse`: a function that lets the job fail, and returns the error. Its arguments are words for
        the call, such as "calls an engine directly", and the fix as a hint.
        """
        self._refuse = refuse

    async def __call__(self, call: ModelCall, model: str, price: Any, ask: Any) -> Outcome:
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


JUDGE: ContextVar[CallJudge | None] = judging.JUDGE
"""The judge of the calls that are made in this context, with the type that this room knows."""

SENDABLE: ContextVar[Callable[[], Awaitable[None]] | None] = ContextVar("SENDABLE", default=None)
"""A function that returns when a request may be sent, set for calls that are effects of a job: they may be sent while
the job's process owns its journal. None allows it at any time.
"""


def judge_of_this(model: str) -> CallJudge | None:
    """Returns the CallJudge of the current context, or None if there is none. A model may be called only with the
    permission of this CallJudge. `model`: the name of the model, for the error message.

    Raises UserError if it is unknown which job makes the call (`calls.judging.judge_of_this`).
    """
    judge: CallJudge | None = judging.judge_of_this(model, "asked", "make it `async def`, and await the engine in it")
    return judge
