"""The judge of model calls. An app with rules or budgets sets one for its agents, for calls that are no effects of jobs."""

from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

JUDGE: ContextVar[Any] = ContextVar("JUDGE", default=None)
"""The judge of the calls that are made in this context (`llm.judges.CallJudge`). None allows all calls, as in the
context of a job's effect, which was judged before it began.
"""

# Set in the context of the main thread. Contexts copied from it have the value None; the empty contexts of threads have no
# value, by which `llm.judges.judge_of_this` tells them apart.
JUDGE.set(None)


def with_judge(function: Callable[P, T], judge: object) -> Callable[P, T]:
    """Returns a wrapper of the function. The wrapper runs the function in a copy of the present context, in which the
    context variable JUDGE is `judge`. So `judge` decides on every call of a model that the function makes, and on
    those of the tasks that it starts.
    """
    context = copy_context()
    context.run(JUDGE.set, judge)

    def within(*args: P.args, **kwargs: P.kwargs) -> T:
        return context.run(function, *args, **kwargs)

    return within
