"""A call may have been made when the process was killed, and the program of the next start has other defaults for it."""

from typing import Any

import pytest
from unit.jobs.hosting import Agent, entries, hosting, prefix

from sabot.agents import ConstraintPolicy, Effect, PolicyEngine, ToolPolicy
from sabot.agents.accounts.job_limits import JobLimits
from sabot.engine.calls.effects import Reconciled
from sabot.engine.calls.tools import Tool, tool
from sabot.jobs.guard import EffectGuard, EffectGuards
from sabot.journal.entries import Intent, Letter
from sabot.journal.memory import MemoryStorage

ALLOWED = ToolPolicy(["pay"], allowed_scopes=["*"])
BOUND = ConstraintPolicy(["pay"], "amount", max=50)


def paying(made: list[Any], effect: Any, amount: Any, *, by_name: bool = False) -> Tool:
    async def look(effect: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(("looked", args, kwargs))
        return Reconciled.NOT_DONE

    options = {"reconcile": look} if effect == "reconcilable" else {}
    if by_name:

        @tool(effect=effect, name="pay", **options)
        async def pay_by_name(to: str, *, amount: Any = amount, effect: Effect) -> None:
            made.append((effect.key, to, amount))

        return pay_by_name

    @tool(effect=effect, name="pay", **options)
    async def pay(to: str, amount: Any = amount) -> None:
        made.append((to, amount))

    return pay


def job(pay: Tool) -> Any:
    async def function(ctx: Any) -> Any:
        return await ctx.call(pay, "eve")

    return function


async def crashed_in(pay: Tool, guard: EffectGuard | None = None) -> MemoryStorage:
    """The journal of a process that was killed during this call."""
    home = MemoryStorage()
    async with hosting(home, Agent(job(pay)), guard=guard) as jobs:
        jobs.begin("j", {"prompt": 1, "budgets": {"max_tool_calls": 1}})
        await jobs.over("j")
    return prefix(home, next(at for at, each in enumerate(entries(home), 1) if isinstance(each, Intent)))


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("before", [None, [ALLOWED], [ALLOWED, BOUND]], ids=["no policy", "a rule", "a bound"])
@pytest.mark.parametrize("after", [None, [ALLOWED], [BOUND]], ids=["no policy", "a rule", "a bound"])
@pytest.mark.parametrize("default", [10, [10], {"usd": 10}])
async def test_a_call_that_is_made_again_has_the_defaults_with_which_it_was_made_first(
    before: Any, after: Any, default: Any
) -> None:
    """Under the same idempotency key the default of today was paid, beyond the bound of today."""
    if default != 10:
        before, after = (None if each is None else [ALLOWED] for each in (before, after))
    crashed = await crashed_in(paying([], "idempotent", default), before and PolicyEngine(before))
    made: list[Any] = []
    today = paying(made, "idempotent", {"eur": 99} if isinstance(default, dict) else 99)
    if before and after is None:
        after = []  # a job that a policy has judged is made again by none
    async with hosting(crashed, Agent(job(today)), guard=None if after is None else PolicyEngine(after)) as jobs:
        await jobs.over("j")
    assert made == [("eve", default)]


@pytest.mark.parametrize("effect", ["read", "local", "metered"])
async def test_a_call_of_each_class_is_made_again_as_it_was(effect: str) -> None:
    """Calls that change nothing had the default of today: another one than a rule or a person has seen."""
    crashed = await crashed_in(paying([], effect, 10))
    made: list[Any] = []
    async with hosting(crashed, Agent(job(paying(made, effect, 99)))) as jobs:
        await jobs.over("j")
    assert made == [("eve", 10)]


async def test_a_call_of_a_keyword_with_a_default_is_made_again_as_it_was() -> None:
    first: list[Any] = []
    crashed = await crashed_in(paying(first, "idempotent", 10, by_name=True))
    made: list[Any] = []
    async with hosting(crashed, Agent(job(paying(made, "idempotent", 99, by_name=True)))) as jobs:
        await jobs.over("j")
    assert made == first
    assert made[0][1:] == ("eve", 10)


async def test_a_call_is_looked_up_with_the_defaults_with_which_it_was_made() -> None:
    crashed = await crashed_in(paying([], "reconcilable", 10))
    made: list[Any] = []
    async with hosting(crashed, Agent(job(paying(made, "reconcilable", 99)))) as jobs:
        await jobs.over("j")
    assert made == [("looked", ("eve",), {"amount": 10}), ("eve", 10)]


async def test_a_call_that_a_person_says_was_not_made_is_made_with_what_the_question_shows() -> None:
    crashed = await crashed_in(paying([], "unsafe", 10))
    made: list[Any] = []
    async with hosting(crashed, Agent(job(paying(made, "unsafe", 99)))) as jobs:
        await jobs.parks("j")
        (asked,) = [each for each in entries(crashed) if isinstance(each, Intent) and each.kind == "ask"]
        jobs.journal.post(Letter("answer", asked.token, body=b'{"outcome": "not_done"}'))
        await jobs.over("j")
    assert made == [("eve", 10)]


@pytest.mark.parametrize("edited", [False, True])
async def test_a_call_that_is_judged_again_counts_once(edited: bool) -> None:
    """The job may make one call. A later program has added a parameter, or a person changes the call."""

    def limited() -> EffectGuard:
        asks = [ToolPolicy(["pay"], require_approval=True)] if edited else []
        return EffectGuards([PolicyEngine([BOUND, *asks]), JobLimits()])

    made: list[Any] = []

    @tool(effect="idempotent")
    async def pay(to: str, amount: int = 40, tip: int = 3) -> None:
        made.append((to, amount, tip))

    if edited:
        crashed = MemoryStorage()
    else:
        crashed = await crashed_in(paying([], "idempotent", 10), limited())
    async with hosting(crashed, Agent(job(pay)), guard=limited()) as jobs:
        if edited:
            jobs.begin("j", {"prompt": 1, "budgets": {"max_tool_calls": 1}})
            await jobs.parks("j")
            (asked,) = [each for each in entries(crashed) if isinstance(each, Intent) and each.kind == "ask"]
            body = b'{"approved": true, "arguments": {"amount": 10}}'
            jobs.journal.post(Letter("answer", asked.token, body=body))
        await jobs.over("j")
    assert made == [("eve", 10, 3)]
