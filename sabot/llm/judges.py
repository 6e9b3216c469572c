"""The judge of the calls that are no effects of a job, as models and tools see it. An app with rules or budgets sets one
for its agents and streams; a job sets one for its function, and one for each of its effects.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from decimal import Decimal
from typing import Any, Protocol

from sabot.engine.calls import judging
from sabot.engine.calls.judging import Make, RefusingJudge
from sabot.engine.calls.usage import Usage
from sabot.errors import UserError
from sabot.llm.middleware import ModelCall, Outcome


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


JUDGE: ContextVar[CallJudge | None] = judging.JUDGE
"""The judge of the calls that are made in this context, with the type that this room knows."""


def judge_of_this(model: str) -> CallJudge | None:
    """Returns the CallJudge of the current context, or None if there is none. A model may be called only with the
    permission of this CallJudge. `model`: the name of the model, for the error message.

    Raises UserError if it is unknown which job makes the call (`calls.judging.judge_of_this`).
    """
    judge: CallJudge | None = judging.judge_of_this(model, "asked", "make it `async def`, and await the engine in it")
    return judge


ASKING: ContextVar[bool] = ContextVar("ASKING", default=False)
"""True while an engine asks a provider, after the judge has decided on the call."""


def refuse_beside_engine(model: str) -> None:
    """Raises UserError if code whose calls are judged asks a provider itself, and not by an engine: neither policy nor
    budgets would see the call, and nobody would count it. `model`: the name of the model.
    """
    if ASKING.get():
        return
    judge = judge_of_this(model)
    if isinstance(judge, RefusingJudge):
        raise judge.refuse_engine()
    if getattr(judge, "guarded", False):
        raise UserError(
            f"{model} was not asked: this code asks a provider without an engine, so no policy and no budget sees the call",
            hint="await ExecutionEngine(provider).complete(…), with one engine for all calls",
        )
