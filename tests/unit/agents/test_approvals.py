"""Answers to the question whether a call may be made: with other arguments, for later calls too, with a comment."""

import asyncio
import dataclasses
import functools
import json
import logging
import math
import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pyarrow as pa
import pydantic
import pydantic.dataclasses
import pytest
from unit.jobs.hosting import Agent as Owner
from unit.jobs.hosting import entries, hosting, prefix

from sabot.agents import (
    ActionRecord,
    ActionStatus,
    AgentPolicy,
    ConstraintPolicy,
    Decision,
    DurableContext,
    ExecutionRequest,
    GuardedCall,
    ModelPolicy,
    PolicyDenied,
    PolicyEngine,
    RedactionPolicy,
    RuntimeEventType,
    RuntimeKernel,
    StateManager,
    ToolPolicy,
    audit_job,
    tool,
)
from sabot.agents.actions import ActionSpec, check_resolution
from sabot.agents.job_view import JobView
from sabot.agents.questions import ANSWERS, answer_questions, read_questions
from sabot.agents.replay.verification import verified
from sabot.agents.store import InMemoryActionStore
from sabot.engine.calls.tools import Tool
from sabot.errors import EffectError, TransientError, UserError
from sabot.jobs.answers import json_value
from sabot.jobs.guard import Behalf, decode_verdict, encode_verdict
from sabot.journal import Journal, Letter
from sabot.journal.entries import Answer, Attempt, Intent
from sabot.journal.memory import MemoryJournal, MemoryReader, MemoryStorage
from sabot.journal.sqlite import SqliteInbox, SqliteJournal
from sabot.llm import Agent, ExecutionEngine, ScriptedProvider, ToolCall, assistant
from tools.older_journals import OLDER

ASKS = ToolPolicy(["refund"], require_approval=True, name="asks")
MADE: list[Any] = []  # by tools that have no list of their own: it would tell them apart


class Money(pydantic.BaseModel):
    amount: int = pydantic.Field(alias="betrag", le=1000)
    currency: str = "EUR"


def refund_of(made: list[Any], effect: str = "unsafe") -> Tool:
    @tool(effect=effect, name="refund")  # the list tells it from no other, so the name has to
    def refunded(order: str, amount: int = 500, note: str = "") -> int:
        made.append((order, amount, note) if note else (order, amount))
        return amount

    return refunded


def calls(refund: Any, *arguments: tuple[Any, ...]) -> Any:
    """A job that makes these calls, and returns what each has given."""

    async def f(ctx: DurableContext) -> list[Any]:
        found: list[Any] = []
        for each in arguments:
            try:
                found.append(await ctx.call(refund, *each))
            except PolicyDenied as error:
                found.append(error.message)
        return found

    return f


def asked(home: MemoryStorage) -> list[ActionRecord]:
    known = JobView.of(MemoryReader(home))
    return [each for each in known.actions.values() if each.status is ActionStatus.PENDING]


async def answer(jobs: Any, home: MemoryStorage, said: bytes, by: str = "ann", job: str = "j") -> None:
    await jobs.until(lambda: [each for each in asked(home) if each.job_id == job])
    token = next(each.resume_token for each in asked(home) if each.job_id == job)
    jobs.journal.post(Letter("answer", token, body=said, by=by))
    await jobs.until(lambda: token not in [each.resume_token for each in asked(home)])


async def told(
    made: list[Any],
    said: bytes,
    *rules: Any,
    restart: bool = False,
    refund: Any = None,
    given: tuple[Any, ...] = ("o-1",),
) -> tuple[Any, MemoryStorage]:
    """What a job gets of one call that a person answers, and its journal."""
    home, policy = MemoryStorage(), PolicyEngine([ASKS, *rules])
    f = calls(refund or refund_of(made), given)
    async with hosting(home, Owner(f), guard=policy) as jobs:
        jobs.begin("j")
        if restart:
            await jobs.parks("j")
        else:
            await answer(jobs, home, said)
            await jobs.over("j")
            return jobs.agent.done["j"][0], home
    async with hosting(home, Owner(f), guard=policy) as jobs:
        await answer(jobs, home, said)
        await jobs.over("j")
        return jobs.agent.done["j"][0], home


# -- other arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
async def test_a_call_is_made_with_the_arguments_of_its_approval_and_the_audit_says_who_changed_what(
    restart: bool,
) -> None:
    made: list[Any] = []
    said, home = await told(made, b'{"approved": true, "arguments": {"amount": 50}}', restart=restart)
    assert (said, made) == (50, [("o-1", 50)])
    record = next(audit_job(MemoryReader(home), "j"))
    assert record.arguments == [[], {"order": "o-1", "amount": 500, "note": ""}]
    assert (record.approval, record.by, record.edited) == ("approved", "ann", {"amount": 50})


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            b'{"approved": true, "arguments": {"amount": 80}}',
            "as it was changed: amount is 80, and at most 60 is allowed",
        ),
        (b'{"approved": true, "arguments": {"amount": "much"}}', "amount does not take 'much'"),
        (b'{"approved": true, "arguments": {"amuont": 5}}', "refund has no argument 'amuont'"),
        (b'{"approved": true, "arguments": [5]}', "[5] are no arguments"),
        (b'{"approved": true, "arguments": {"*": 5}}', "refund has no argument '*'"),
        (b'{"approved": true, "arguments": {"": 5}}', "refund has no argument ''"),
    ],
)
@pytest.mark.parametrize("restart", [False, True])
async def test_a_change_that_a_rule_denies_or_the_tool_does_not_take_is_not_made(
    said: bytes, words: str, restart: bool
) -> None:
    made: list[Any] = []
    most = ConstraintPolicy(["refund"], "amount", max=60)
    found, _ = await told(made, said, most, restart=restart, given=("o-1", 40))
    assert words in found
    assert made == []


class Mail(pydantic.BaseModel):
    key: pydantic.SecretStr = pydantic.SecretStr("k-1")
    body: str = pydantic.Field("the ***bold*** card 4711", alias="text")
    end: str = "***"


STARRED = [
    ({"to": "***"}, "arguments.to"),
    ({"to": "card *** of ann"}, "arguments.to"),
    ({"mail": {"body": "card ***"}}, "arguments.mail.body"),
    ({"mail": {"text": "card ***"}}, "arguments.mail.text"),
    ({"mail": {"key": "**********"}}, "arguments.mail.key"),
    ({"tags": ["b", {"to": "***"}]}, "arguments.tags.1.to"),
    ({"more": {"***": 1}}, "arguments.more"),
    ({"more": {"***": 1, "a": "***bold***"}}, "arguments.more"),
    ({"keys": ["**********", "***"]}, "arguments.keys.0"),
    ({"note": "***bold***"}, ""),
    ({"mail": {"end": "the ***end***"}}, ""),
    ({"seen": ["*** b ***", "c"]}, ""),
    ({"more": {"a": "***bold***"}}, ""),
]


@pytest.mark.parametrize(("changes", "where"), STARRED, ids=repr)
async def test_stars_are_refused_in_a_change_only_where_the_question_has_them_in_place_of_a_value(
    changes: dict[str, Any], where: str
) -> None:
    made: list[Any] = []

    @tool
    def refund(
        to: str,
        mail: Mail,
        tags: list[Any],
        more: dict[str, Any],
        keys: list[pydantic.SecretStr],
        note: str = "as ***shown***",
        seen: tuple[str, ...] = ("*** a",),
    ) -> None:
        made.append((to, mail, tags, more, keys, note, seen))

    given = ("4711", Mail(), ["a 4711"], {"k 4711": 1, "a": "***"}, [pydantic.SecretStr("s")])
    home, policy = MemoryStorage(), PolicyEngine([ASKS, RedactionPolicy(["4711"])])
    f = calls(refund, given)
    async with hosting(home, Owner(f), guard=policy) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
    said = {"approved": True, "arguments": changes}
    posted: list[Letter] = []
    count = answer_questions(posted.append, read_questions(MemoryReader(home)), "approve", said, "ann")
    assert (count.answered, len(posted)) == ((0, 0) if where else (1, 1))
    if where:
        assert f"{where} has *** in it, which stands for what the question hides" in count.refused[0][1]
    async with hosting(home, Owner(f), guard=policy) as jobs:
        await answer(jobs, home, msgspec.json.encode(said))
        await jobs.over("j")
        found = jobs.agent.done["j"][0]
    assert (f"{where} has *** in it" in str(found)) == bool(where)
    assert len(made) == (0 if where else 1)


class Keys(pydantic.BaseModel):
    keys: list[pydantic.SecretStr] = []
    n: int = 1


KEY = pydantic.SecretStr("k")


@pytest.mark.parametrize(
    ("kind", "before", "after", "paid"),
    [
        (list[pydantic.SecretStr], [KEY], [KEY], True),
        (list[pydantic.SecretStr], [KEY], [KEY, KEY], False),
        (dict[str, pydantic.SecretStr], {"a": KEY}, {"b": KEY}, False),
        (Keys, Keys(keys=[KEY]), Keys(keys=[KEY], n=2), False),
        (pydantic.SecretStr, KEY, pydantic.SecretStr(""), False),
        (pydantic.SecretBytes, pydantic.SecretBytes(b"k"), pydantic.SecretBytes(b""), False),
    ],
    ids=["same", "list", "dict", "model", "text", "bytes"],
)
async def test_an_approved_call_is_not_made_with_the_mask_of_a_secret_after_a_deploy(
    kind: Any, before: Any, after: Any, paid: bool
) -> None:
    """The default is another one, so that the recorded one was taken: the stars of its secrets."""
    made: list[Any] = []

    def job(default: Any) -> Any:
        def refund(order: str, by: Any = default) -> None:
            made.append(by)

        refund.__annotations__["by"] = kind
        return calls(tool(refund), ("o-1",))

    home, policy = MemoryStorage(), PolicyEngine([ASKS])
    async with hosting(home, Owner(job(before)), guard=policy) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
    async with hosting(home, Owner(job(after)), guard=policy) as jobs:
        await answer(jobs, home, b'{"approved": true}')
        await jobs.over("j")
        found = jobs.agent.done["j"][0]
    assert made == ([before] if paid else [])
    assert paid or "it was judged with a secret in by, which no journal has" in found


async def test_a_rule_that_asks_about_the_change_too_is_satisfied_and_texts_in_it_are_hidden() -> None:
    made: list[Any] = []
    rules = [ConstraintPolicy(["refund"], "amount", max=60, otherwise="ask"), RedactionPolicy(["4711"])]
    found, _ = await told(made, b'{"approved": true, "arguments": {"amount": 80, "note": "card 4711"}}', *rules)
    assert (found, made) == (80, [("o-1", 80, "card ***")])


async def test_an_async_rule_judges_the_change_too() -> None:
    made: list[Any] = []

    async def most(call: Any) -> Any:
        await asyncio.sleep(0)
        return Decision.DENY if call.arguments["amount"] == 80 else None

    for amount, wanted in ((80, []), (70, [("o-1", 70)])):
        said = b'{"approved": true, "arguments": {"amount": %d}}' % amount
        await told(made, said, most)
        assert made == wanted


async def test_fields_of_a_model_are_changed_by_each_of_their_names_and_checked() -> None:
    made: list[Any] = []

    @tool
    def refund(money: Money) -> None:
        made.append(money)

    for change, wanted in (
        (b'{"amount": 50}', [Money(betrag=50, currency="USD")]),
        (b'{"betrag": 50}', [Money(betrag=50, currency="USD")]),
        (b'{"betrag": 5000}', []),
        (b'{"curency": "CHF"}', []),
        (b'{"amount": 50, "betrag": 5}', []),  # the last one won
    ):
        made.clear()
        said = b'{"approved": true, "arguments": {"money": %s}}' % change
        await told(made, said, refund=refund, given=(Money(betrag=500, currency="USD"),))
        assert made == wanted


class Taxed(pydantic.BaseModel):
    fee: int
    note: str = ""

    @pydantic.field_validator("fee")
    @classmethod
    def with_tax(cls, fee: int) -> int:
        return fee * 10


class Counted(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)
    fee: int
    note: str = ""

    @pydantic.model_validator(mode="before")
    @classmethod
    def with_tax(cls, given: Any) -> Any:
        return given | {"fee": given["fee"] * 10}


class Around(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(revalidate_instances="always")
    inner: Taxed


@pydantic.dataclasses.dataclass
class Checked:
    fee: int
    note: str = ""

    def __post_init__(self) -> None:
        self.fee *= 10


@dataclasses.dataclass(frozen=True)
class Plain:
    fee: int
    note: str = ""
    size: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fee", self.fee * 10)
        object.__setattr__(self, "size", len(self.note))


class Packed(msgspec.Struct):
    fee: int
    note: str = ""

    def __post_init__(self) -> None:
        self.fee *= 10


@attrs.define
class Small:
    fee: int
    note: str = ""

    def __attrs_post_init__(self) -> None:
        self.fee *= 10


@pytest.mark.parametrize(
    "given",
    [
        Small(fee=10),
        Taxed(fee=10),
        Counted(fee=10),
        Checked(fee=10),
        Plain(fee=10),
        Packed(fee=10),
        Around.model_construct(inner=Taxed(fee=10)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("restart", [False, True])
async def test_fields_that_the_person_has_not_named_stay_as_they_were_shown(given: Any, restart: bool) -> None:
    """A validator made 1000 of a fee of 100, which nobody was shown."""
    made: list[Any] = []

    def pay(order: Any) -> None:
        made.append(order)

    pay.__annotations__["order"] = type(given)
    change = b'{"inner": {"note": "soon"}}' if isinstance(given, Around) else b'{"note": "soon"}'
    said = b'{"approved": true, "arguments": {"order": %s}}' % change
    await told(made, said, refund=tool(name="refund")(pay), given=(given,), restart=restart)
    (paid,) = made
    paid = paid.inner if isinstance(paid, Around) else paid
    assert (paid.fee, paid.note, getattr(paid, "size", 4)) == (100, "soon", 4)


@tool(effect="unsafe")
async def wire(to: str, amount: int = 5) -> str:
    """Sends money."""
    WIRED.append((to, amount))
    return "sent"


WIRED: list[tuple[str, int]] = []


async def wires(ctx: DurableContext) -> str:
    try:
        return str(await ctx.call(wire, "eve"))
    except PolicyDenied as error:
        return error.message


async def begins(ctx: DurableContext) -> str:
    try:
        return str(await ctx.child("wires", ctx.message))
    except PolicyDenied as error:
        return error.message


CHANGED = "was not done: the rules have changed since a person was asked: "


async def later_rule(call: GuardedCall) -> Decision | None:
    return Decision.DENY if call.arguments.get("to") == "eve" else None


@pytest.mark.parametrize("answered", ["before the start", "behind it"])
@pytest.mark.parametrize(
    ("agent", "rules", "said"),
    [
        ("wires", [ToolPolicy(["wire"], denied=True)], f"wire {CHANGED}tool wire is denied"),
        ("wires", [ConstraintPolicy(["wire"], "amount", max=4)], f"wire {CHANGED}amount is 5"),
        ("wires", [later_rule], f"wire {CHANGED}deny"),
        ("wires", [RedactionPolicy(["eve"])], f"wire {CHANGED}texts in it are hidden"),
        ("begins", [AgentPolicy(["kernel.wires"], denied=True)], f"kernel.wires {CHANGED}agent kernel.wires is denied"),
        ("wires", [ConstraintPolicy(["wire"], "amount", max=4, otherwise="ask")], "sent"),
        ("wires", [ConstraintPolicy(["wire"], "amount", max=5)], "sent"),
        ("begins", [AgentPolicy(["kernel.*"], require_approval=True)], "sent"),
    ],
)
async def test_what_a_person_has_approved_is_judged_by_the_rules_of_a_later_start(
    agent: str, rules: list[Any], said: str, answered: str
) -> None:
    WIRED.clear()
    storage, agents = MemoryStorage(), [wires, begins]
    asks = ToolPolicy(["wire"], require_approval=True)
    asked = [asks] if agent == "wires" else [AgentPolicy(["kernel.wires"], require_approval=True)]
    async with RuntimeKernel.create(agent=agents, journal=storage, policy=PolicyEngine(asked)) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go", agent=agent))
        async for event in handle.events():
            if event.type == RuntimeEventType.ACTION_REQUIRED:
                token = event.data["resume_token"]
                break
    client = RuntimeKernel.create(agent=agents, journal=storage)
    if answered == "before the start":
        await client.actions.resolve(token, {"approved": True})
    async with RuntimeKernel.create(agent=agents, journal=storage, policy=PolicyEngine(rules)) as kernel:
        [handle] = [each for each in await kernel.resume() if each.job_id == handle.job_id]
        if answered == "behind it":
            await handle.resolve_action(token, {"approved": True})
        assert (await handle.result()).content.startswith(said)
    assert ([("eve", 5)] if said == "sent" else []) == WIRED


async def test_a_rule_may_forbid_changes_and_an_answer_that_makes_one_is_refused() -> None:
    with pytest.raises(UserError, match="nobody is asked"):
        ToolPolicy(["refund"], editable=False)
    with pytest.raises(UserError, match="nobody is asked"):
        ConstraintPolicy(["refund"], "amount", max=5, editable=False)
    made: list[Any] = []
    fixed = ToolPolicy(["refund"], require_approval=True, editable=False)
    said = b'{"approved": true, "arguments": {"amount": 50}}'
    found, _ = await told(made, said, fixed)  # straight into the inbox
    assert "with other arguments, which nobody may give it: editable=False" in found
    assert made == []


async def test_a_call_that_is_repeated_after_a_crash_has_the_arguments_of_its_approval() -> None:
    made: list[Any] = []
    said = b'{"approved": true, "arguments": {"note": "card 4711"}}'
    refund = refund_of(made, "idempotent")
    _, home = await told(made, said, RedactionPolicy(["4711"]), refund=refund)
    count = next(at for at, each in enumerate(entries(home), 1) if isinstance(each, Attempt))
    crashed = prefix(home, count)
    policy = PolicyEngine([ASKS, RedactionPolicy(["4711"])])
    async with hosting(crashed, Owner(calls(refund, ("o-1",))), guard=policy) as jobs:
        await jobs.over("j")
    assert made == [("o-1", 500, "card ***")] * 2


# -- for later calls too ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
async def test_an_approval_for_the_whole_job_holds_for_later_calls_of_the_tool_by_the_same_rule(restart: bool) -> None:
    made: list[Any] = []
    home, other = MemoryStorage(), ConstraintPolicy(["refund"], "amount", max=60, otherwise="ask")
    f = calls(refund_of(made), ("o-1", 1), ("o-2", 2), ("o-3", 100))
    policy = PolicyEngine([ASKS, other, ToolPolicy(["*"])])
    async with hosting(home, Owner(f), guard=policy) as jobs:
        jobs.begin("j")
        await answer(jobs, home, b'{"approved": true, "always": "job"}')
        await jobs.until(lambda: asked(home))
        assert made == [("o-1", 1), ("o-2", 2)]
        assert "at most 60" in asked(home)[0].payload["reason"], "the other rule still asks"
        if not restart:
            await answer(jobs, home, b'{"approved": true}')
            await jobs.over("j")
    if restart:
        async with hosting(home, Owner(f), guard=policy) as jobs:
            await answer(jobs, home, b'{"approved": true}')
            await jobs.over("j")
    assert len(made) == 3
    record = list(audit_job(MemoryReader(home), "j"))[1]
    assert (record.decision, record.rule) == ("allow", "asks")
    assert record.reason == "approved by ann for the whole job, in job j (effect 1)"
    async with hosting(home, Owner(f), guard=policy) as jobs:
        jobs.begin("j2")
        await jobs.until(lambda: [each for each in asked(home) if each.job_id == "j2"])  # another job is asked


def above(most: int) -> Any:
    def asks(call: GuardedCall) -> Decision | None:
        return Decision.ASK if call.arguments["amount"] > most else None

    return asks


def over(most: int, call: GuardedCall) -> Decision | None:
    return Decision.ASK if call.arguments["amount"] > most else None


def bound(most: int) -> Any:
    return ConstraintPolicy(["refund"], "amount", max=most, otherwise="ask")


@pytest.mark.parametrize("rule", [bound, above])
async def test_an_approval_for_the_whole_job_is_none_of_another_rule_with_the_same_name(rule: Any) -> None:
    made: list[Any] = []
    home, policy = MemoryStorage(), PolicyEngine([rule(50), rule(500)])
    f = calls(refund_of(made), ("o-1", 60), ("o-2", 70), ("o-3", 5000))
    async with hosting(home, Owner(f), guard=policy) as jobs:
        jobs.begin("j")
        await answer(jobs, home, b'{"approved": true, "always": "job"}')
        await answer(jobs, home, b'{"approved": false}')
        await jobs.over("j")
    assert made == [("o-1", 60), ("o-2", 70)]
    records = list(audit_job(MemoryReader(home), "j"))
    first = "ConstraintPolicy amount" if rule is bound else "asks"
    assert [(each.decision, each.rule) for each in records][::2] == [("ask", first), ("ask", f"{first} (2)")]


TOOL_RULE = {"tool_patterns": ["refund"], "require_approval": True, "name": "asks"}
ALWAYS = b'{"approved": true, "always": "scope"}'


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("before", "after", "holds"),
    [
        ([bound(50)], [bound(50)], True),
        ([bound(50)], [bound(500), bound(50)], True),  # a rule that a deploy puts first had its name, and its approval
        ([bound(50)], [bound(55)], False),
        ([bound(50), bound(500)], [bound(500), bound(55)], False),
        ([above(50)], [above(50)], True),
        ([above(50)], [above(500), above(50)], True),
        ([above(50)], [above(55)], False),
        ([functools.partial(over, 50)], [functools.partial(over, 50)], True),
        ([functools.partial(over, 50)], [functools.partial(over, 55)], False),
        ([ToolPolicy(**TOOL_RULE)], [ToolPolicy(**TOOL_RULE)], True),
        ([ToolPolicy(**TOOL_RULE)], [ToolPolicy(**{**TOOL_RULE, "tool_patterns": ["refund*"]})], False),
        ([ToolPolicy(**TOOL_RULE)], [ToolPolicy(**TOOL_RULE, editable=False)], False),
        (
            [ToolPolicy(**TOOL_RULE)],
            [ConstraintPolicy(["refund"], "amount", max=5, otherwise="ask", name="asks")],
            False,
        ),
    ],
)
async def test_an_approval_of_later_calls_holds_for_the_rule_as_it_was_declared_only(
    before: list[Any], after: list[Any], holds: bool
) -> None:
    made: list[Any] = []
    home, f = MemoryStorage(), calls(refund_of(made), ("o-1", 60))
    async with hosting(home, Owner(f), guard=PolicyEngine(before)) as jobs:
        jobs.begin("j")
        await answer(jobs, home, ALWAYS)
        await jobs.over("j")
    async with hosting(home, Owner(f), guard=PolicyEngine(after)) as jobs:
        jobs.begin("k")
        await jobs.until(lambda: len(made) == 2 or asked(home))
    assert len(made) == (2 if holds else 1)


async def test_an_approval_that_an_earlier_version_has_recorded_by_the_name_of_the_rule_is_asked_again() -> None:
    made: list[Any] = []
    home, f = MemoryStorage(), calls(refund_of(made), ("o-1", 60))
    async with hosting(home, Owner(f), guard=PolicyEngine([bound(50)])) as jobs:
        jobs.begin("j")
        await answer(jobs, home, ALWAYS)
        await jobs.over("j")
    older = MemoryStorage(home.clock)
    older.identity, older.key = home.identity, home.key
    journal = MemoryJournal(older)
    for entry in entries(home):
        verdict = decode_verdict(entry.note) if isinstance(entry, Intent) and entry.kind == "call" else None
        if verdict is not None:
            entry = msgspec.structs.replace(entry, note=encode_verdict(msgspec.structs.replace(verdict, terms="")))
        journal.append(entry)
    journal.close()
    async with hosting(older, Owner(f), guard=PolicyEngine([bound(50)])) as jobs:
        jobs.begin("k")
        await jobs.until(lambda: asked(older))
    assert len(made) == 1


async def test_an_approval_for_the_whole_job_holds_after_a_restart_and_after_continue_as() -> None:
    made: list[Any] = []
    refund = refund_of(made)

    async def f(ctx: DurableContext) -> Any:
        await ctx.call(refund, f"o-{ctx.message}")
        if ctx.message < 3:
            await ctx.wait("next")
            ctx.continue_as(ctx.message + 1)

    home = MemoryStorage()
    for number in (1, 2, 3):
        async with hosting(home, Owner(f), guard=PolicyEngine([ASKS])) as jobs:
            if number == 1:
                jobs.begin("j", 1)
                await answer(jobs, home, b'{"approved": true, "always": "job"}')
            else:
                jobs.journal.post(Letter("signal", f"s{number}", job="j", name="next"))
            await jobs.until(lambda number=number: len(made) == number)
            await (jobs.over("j") if number == 3 else jobs.parks("j"))
    assert [order for order, _ in made] == ["o-1", "o-2", "o-3"]


@pytest.mark.parametrize("word", ["job", "scope"])
async def test_an_approval_with_other_arguments_holds_for_its_call(word: str) -> None:
    """A program may write one straight into the inbox: the next call paid 500, of which the person had made 50."""
    made: list[Any] = []
    home, f = MemoryStorage(), calls(refund_of(made), ("o-1",), ("o-2",))
    async with hosting(home, Owner(f), guard=PolicyEngine([ASKS])) as jobs:
        jobs.begin("j", behalf=Behalf("acme", "eve"))
        await answer(jobs, home, b'{"approved": true, "arguments": {"amount": 50}, "always": "%s"}' % word.encode())
        await jobs.until(lambda: asked(home))
        assert made == [("o-1", 50)]
    async with hosting(home, Owner(f), guard=PolicyEngine([ASKS])) as jobs:
        jobs.begin("k", behalf=Behalf("acme", "bob"))
        await jobs.until(lambda: {each.job_id for each in asked(home)} == {"j", "k"})
    assert made == [("o-1", 50)]


@pytest.mark.parametrize("restart", [False, True])
async def test_an_approval_for_the_whole_scope_holds_for_other_jobs_of_the_tenant(restart: bool) -> None:
    made: list[Any] = []
    home, f = MemoryStorage(), calls(refund_of(made), ("o-1",))
    async with hosting(home, Owner(f), guard=PolicyEngine([ASKS])) as jobs:
        jobs.begin("j", behalf=Behalf("acme", "eve"))
        await answer(jobs, home, b'{"approved": true, "always": "scope"}')
        await jobs.over("j")
        if not restart:
            jobs.begin("k", behalf=Behalf("acme", "bob"))
            await jobs.over("k")
    async with hosting(home, Owner(f), guard=PolicyEngine([ASKS])) as jobs:
        if restart:
            jobs.begin("k", behalf=Behalf("acme", "bob"))
            await jobs.over("k")
        jobs.begin("guest", behalf=Behalf("guests"))
        await jobs.until(lambda: [each.job_id for each in asked(home)] == ["guest"])
    assert len(made) == 2
    assert next(audit_job(MemoryReader(home), "k")).reason == "approved by ann for the whole scope, in job j (effect 1)"


async def started(journal: Journal, owner: Owner) -> Any:
    async with hosting(journal, owner, restored=(journal.positions(), {}), guard=PolicyEngine([ASKS])) as jobs:
        return jobs


@pytest.mark.parametrize("form", [5, 6])
async def test_an_approval_for_the_scope_holds_until_its_job_is_trimmed_and_a_start_reads_no_entries_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: int
) -> None:
    """The first start over a journal of an older format reads the entries of all jobs, and begins anew if it is killed
    before it has noted what it has found.
    """
    made: list[Any] = []
    folder, f = tmp_path / "journal", calls(refund_of(made), ("o-1",))
    journal = SqliteJournal(folder)
    async with hosting(journal, Owner(f), guard=PolicyEngine([ASKS])) as jobs:
        jobs.begin("j", behalf=Behalf("acme"))
        await jobs.until(lambda: JobView.of(journal).actions)
        (question,) = JobView.of(journal).actions.values()
        journal.post(Letter("answer", question.resume_token, body=ALWAYS, by="ann"))
        await jobs.over("j")
    journal.close()
    if form == 5:
        with closing(sqlite3.connect(folder / "journal.db")) as database, database:
            OLDER[5](database.execute)
            database.execute("PRAGMA user_version = 5")

        def killed(self: Any, approvals: Any) -> None:
            raise TransientError("killed")

        with monkeypatch.context() as patch:
            patch.setattr(SqliteInbox, "keep_approvals", killed)
            journal = SqliteJournal(folder)
            assert journal.approvals() is None
            with pytest.raises(TransientError):
                await started(journal, Owner(f))
            journal.close()
        journal = SqliteJournal(folder)
        await started(journal, Owner(f))
        journal.close()
    journal = SqliteJournal(folder)
    assert [(*place, words) for *place, _, words in journal.approvals() or ()] == [
        ("j", "acme", "", "tool refund", "approved by ann for the whole scope, in job j (effect 1)")
    ]
    with monkeypatch.context() as patch:
        patch.setattr(journal, "read", None)
        jobs = await started(journal, Owner(f))
    assert list(jobs.host.standing) == [("acme", "", "tool refund")]
    async with hosting(journal, Owner(f), restored=(journal.positions(), {}), guard=PolicyEngine([ASKS])) as jobs:
        jobs.begin("k", behalf=Behalf("acme"))
        await jobs.over("k")
    assert len(made) == 2
    journal.trim(journal.positions(), 1 << 60)
    assert (await started(journal, Owner(f))).host.standing == {}
    journal.close()


async def test_an_approval_that_a_crash_has_kept_from_its_row_is_noted_by_the_next_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []
    refund, home = refund_of(made), MemoryStorage()

    async def f(ctx: DurableContext) -> None:
        await ctx.call(refund, "o-1")
        await ctx.wait("next")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryJournal, "note_approval", Journal.note_approval)
        async with hosting(home, Owner(f), guard=PolicyEngine([ASKS])) as jobs:
            jobs.begin("j", behalf=Behalf("acme"))
            await answer(jobs, home, ALWAYS)
            await jobs.parks("j")
    assert MemoryReader(home).approvals() == []
    async with hosting(home, Owner(f), restored=(jobs.journal.positions(), {}), guard=PolicyEngine([ASKS])):
        pass
    assert [words for *_, words in MemoryReader(home).approvals() or ()] == [
        "approved by ann for the whole scope, in job j (effect 1)"
    ]


@pytest.mark.parametrize("word", ["scope", "session"])
async def test_an_answer_to_a_question_of_the_job_itself_is_no_approval_for_other_jobs(word: str) -> None:
    """After a restart its payload, which the program or a record has written, was taken for the question of a rule."""
    made: list[Any] = []
    home, behalf = MemoryStorage(), Behalf("acme", "eve", session="c-1")

    async def asks(ctx: Any) -> None:
        await ctx.ask("confirm", {"message": "OK?", "effect": "refund", "rule": "asks"})

    async with hosting(home, Owner(asks), guard=PolicyEngine([ASKS])) as jobs:
        jobs.begin("j", behalf=behalf)
        await answer(jobs, home, b'{"approved": true, "always": "%s"}' % word.encode())
        await jobs.over("j")
    async with hosting(home, Owner(calls(refund_of(made), ("o-1",))), guard=PolicyEngine([ASKS])) as jobs:
        jobs.begin("k", behalf=behalf)
        await jobs.until(lambda: asked(home) or made)
    assert made == []


IN_SESSION = b'{"approved": true, "always": "session"}'
FIRST = Behalf("acme", "eve", session="c-1")


@pytest.mark.parametrize("restart", [False, True])
async def test_an_approval_for_a_session_holds_for_its_other_jobs_and_others_are_asked(
    restart: bool,
) -> None:
    made: list[Any] = []
    home, f = MemoryStorage(), calls(refund_of(made), ("o-1",), ("o-2",))
    async with hosting(home, Owner(f), guard=PolicyEngine([ASKS])) as jobs:
        jobs.begin("j", behalf=FIRST)
        await answer(jobs, home, IN_SESSION)
        await jobs.over("j")
        if not restart:
            jobs.begin("k", behalf=FIRST)
            await jobs.over("k")
    others = {"other": FIRST._replace(session="c-2"), "none": FIRST._replace(session="")}
    others["guest"] = FIRST._replace(scope="guests")
    others["bob"] = FIRST._replace(principal="bob")  # whoever begins jobs by HTTP chooses the session
    others["nobody"] = FIRST._replace(principal="", session="3 eve c-1")
    async with hosting(home, Owner(f), guard=PolicyEngine([ASKS])) as jobs:
        if restart:
            jobs.begin("k", behalf=FIRST)
            await jobs.over("k")
        for job_id, behalf in others.items():
            jobs.begin(job_id, behalf=behalf)
        await jobs.until(lambda: sorted(each.job_id for each in asked(home)) == sorted(others))
    assert len(made) == 4
    reason = "approved by ann for the whole session, in job j (effect 1)"
    assert next(audit_job(MemoryReader(home), "k")).reason == reason


@pytest.mark.parametrize("restart", [False, True])
async def test_an_answer_for_the_session_of_a_job_without_one_holds_for_the_call_only(restart: bool) -> None:
    made: list[Any] = []
    home, f = MemoryStorage(), calls(refund_of(made), ("o-1",), ("o-2",))
    async with hosting(home, Owner(f), guard=PolicyEngine([ASKS])) as jobs:
        jobs.begin("j")
        await answer(jobs, home, IN_SESSION)  # straight into the inbox
        await jobs.until(lambda: asked(home))
        if not restart:
            jobs.begin("k")
            await jobs.until(lambda: len(asked(home)) == 2)
    if restart:
        async with hosting(home, Owner(f), guard=PolicyEngine([ASKS])) as jobs:
            jobs.begin("k")
            await jobs.until(lambda: len(asked(home)) == 2)
    assert made == [("o-1", 500)]


async def test_an_approval_for_a_session_holds_after_continue_as_and_for_children() -> None:
    made: list[Any] = []
    refund, home = refund_of(made), MemoryStorage()

    async def f(ctx: DurableContext) -> Any:
        if ctx.message == "child":
            return [ctx.session, await ctx.call(refund, "o-3")]
        await ctx.call(refund, f"o-{ctx.message}")
        if ctx.message == 1:
            ctx.continue_as(2)
        return await ctx.child("agent", "child")

    async with hosting(home, Owner(f), guard=PolicyEngine([ASKS])) as jobs:
        jobs.begin("j", 1, behalf=FIRST)
        await answer(jobs, home, IN_SESSION)
        await jobs.over("j")
        assert (jobs.agent.errors, jobs.agent.done["j"]) == ({}, ["c-1", 500])
    assert [order for order, _ in made] == ["o-1", "o-2", "o-3"]


async def test_an_approval_for_a_session_of_a_kernel_holds_in_its_later_requests_and_after_a_deploy(
    tmp_path: Path,
) -> None:
    made: list[Any] = []

    def kernel(note: str) -> RuntimeKernel:
        @tool(name="refund")
        def refunded(order: str, note: str = note) -> None:
            made.append((order, note))

        async def pay(ctx: DurableContext) -> None:
            await ctx.call(refunded, ctx.message)

        return RuntimeKernel.create(agent=pay, policy=PolicyEngine([ASKS]), journal=str(tmp_path))

    async with kernel("old") as first:
        handle = await first.execute(ExecutionRequest(prompt="o-1", session_id="c-1"))
        await anext(event async for event in handle.events() if event.type == RuntimeEventType.ACTION_REQUIRED)
        (pending,) = await handle.get_pending_actions()
        assert pending.payload["always"] == ["job", "session", "scope"]
        await handle.resolve_action(pending.resume_token, {"approved": True, "always": "session"}, by="ann")
        await handle.result()
    async with kernel("new") as second:
        await (await second.execute(ExecutionRequest(prompt="o-2", session_id="c-1"))).result()
        handle = await second.execute(ExecutionRequest(prompt="o-3"))
        await anext(event async for event in handle.events() if event.type == RuntimeEventType.ACTION_REQUIRED)
        (pending,) = await handle.get_pending_actions()
        with pytest.raises(UserError, match="belongs to no session"):
            await handle.resolve_action(pending.resume_token, {"approved": True, "always": "session"})
    assert made == [("o-1", "old"), ("o-2", "new")]


async def test_a_job_restored_from_a_checkpoint_stays_in_its_session() -> None:
    made: list[Any] = []

    async def pay(ctx: DurableContext) -> str:
        await ctx.call(refund, "o-1", 5, "")
        await ctx.ask("confirm", {"text": "more?"})
        await ctx.call(refund, "o-2", 5, "")
        return ctx.session

    refund = refund_of(made)
    async with RuntimeKernel.create(agent=pay, policy=PolicyEngine([ASKS])) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go", session_id="c-1"))
        await until_asked(handle)
        (pending,) = await handle.get_pending_actions()
        await handle.resolve_action(pending.resume_token, {"approved": True, "always": "session"})
        await until_asked(handle)
        states = StateManager(kernel)
        await states.create(handle.job_id, "asked")
        restored = await states.restore(handle.job_id, "asked", beside=True)
        await until_asked(restored)
        (pending,) = await restored.get_pending_actions()
        await restored.resolve_action(pending.resume_token, {"ok": True})
        assert (await restored.result()).output == "c-1"
        assert verified(await kernel.record(restored.job_id), kernel.code()).same
    assert [order for order, _ in made] == ["o-1", "o-2"]


async def test_an_approval_for_the_whole_job_is_none_for_a_job_that_is_restored_from_it() -> None:
    """It was asked about the old job, beside which the restored one may run."""
    made: list[Any] = []

    async def pay(ctx: DurableContext) -> None:
        await ctx.call(refund, "o-1")
        await ctx.ask("confirm", {"text": "more?"})
        await ctx.call(refund, "o-2")

    refund = refund_of(made)
    async with RuntimeKernel.create(agent=pay, policy=PolicyEngine([ASKS])) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))
        await until_asked(handle)
        (pending,) = await handle.get_pending_actions()
        await handle.resolve_action(pending.resume_token, {"approved": True, "always": "job"})
        await until_asked(handle)
        states = StateManager(kernel)
        await states.create(handle.job_id, "asked")
        restored = await states.restore(handle.job_id, "asked", beside=True)
        for each, wanted in ((handle, [500, 500]), (restored, [500, 500, 500])):
            await until_asked(each)
            (pending,) = await each.get_pending_actions()
            await each.resolve_action(pending.resume_token, {"ok": True})
            if each is restored:
                await until_asked(each)
                (pending,) = await each.get_pending_actions()
                assert pending.payload["effect"] == "refund"
                await each.resolve_action(pending.resume_token, {"approved": True, "always": "job"})
            await each.result()
            assert [amount for _, amount in made] == wanted
        assert verified(await kernel.record(restored.job_id), kernel.code()).same


def refund_of_stranger(made: list[Any]) -> Tool:
    @tool(name="refund")
    def refunded(order: str) -> str:
        made.append(("stranger", order))
        return order

    return refunded


@pytest.mark.parametrize("way", ["call", "step", "agent"])
@pytest.mark.parametrize("word", ["job", "session", "scope"])
async def test_an_approval_of_a_function_is_none_of_another_function_of_its_name(word: str, way: str) -> None:
    """Two toolsets may both have a `refund`: a person who approved those of the one had approved those of the other."""
    made: list[Any] = []
    own, other = refund_of(made), refund_of_stranger(made)

    async def pay(ctx: DurableContext) -> None:
        for number, each in enumerate((own, own, other)):
            if way == "agent":
                wanted = assistant("", ToolCall("c", "refund", f'{{"order": "o-{number}"}}'))
                says = functools.partial(
                    lambda wanted, spec: "done" if spec.messages[-1].role == "tool" else wanted, wanted
                )
                engine = ExecutionEngine(ScriptedProvider(says))
                await Agent(engine, tools=[each]).run("go", effects=ctx.llm(engine))
            else:
                await (ctx.step(each.func, f"o-{number}") if way == "step" else ctx.call(each, f"o-{number}"))

    async with RuntimeKernel.create(agent=pay, policy=PolicyEngine([ASKS])) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go", session_id="c-1"))
        await until_asked(handle)
        (pending,) = await handle.get_pending_actions()
        await handle.resolve_action(pending.resume_token, {"approved": True, "always": word})
        await until_asked(handle)
        assert [order for order, _ in made] == ["o-0", "o-1"]
        (pending,) = await handle.get_pending_actions()
        await handle.resolve_action(pending.resume_token, {"approved": True})
        await handle.result()
    assert made[2:] == [("stranger", "o-2")]


def pays(region: Any) -> Tool:
    @tool
    async def pay(order: str) -> None:
        MADE.append((str(region), order))

    return pay


class Bank:
    def __init__(self, region: Any) -> None:
        self.region = region

    @tool
    async def pay(self, order: str) -> None:
        MADE.append((str(self.region), order))

    @tool(name="pay")
    async def paid(self, order: str) -> None:
        MADE.append((str(self.region), order))

    async def send(self, order: str) -> None:
        MADE.append((str(self.region), order))


def in_region(func: Any, region: Any) -> Any:
    @functools.wraps(func)
    async def pay(order: str) -> None:
        MADE.append((str(region), order))

    return pay


async def pay_in(region: Any, order: str) -> None:
    MADE.append((str(region), order))


async def pay_by_name(order: str, region: Any) -> None:
    MADE.append((str(region), order))


async def pay(order: str) -> None: ...


@dataclasses.dataclass(frozen=True)
class Region:
    name: str

    def __str__(self) -> str:
        return self.name


class Client:
    """What nobody can tell from another one of its kind."""

    def __init__(self, region: str) -> None:
        self.regions = [region]

    def __str__(self) -> str:
        return self.regions[0]


MAKERS: dict[str, Any] = {
    "a closure": pays,
    "a closure over an object": lambda region: pays(Bank(region)),
    "a closure over a tuple": lambda region: pays((region,)),
    "a method": lambda region: Bank(region).pay,
    "a method with a name": lambda region: Bank(region).paid,
    "a tool of a method": lambda region: tool(Bank(region).send),
    "a decorator": lambda region: tool(in_region(pay, region)),
    "a partial": lambda region: tool(functools.partial(pay_in, region)),
    "a partial by name": lambda region: tool(functools.partial(pay_by_name, region=region)),
}


async def pays_for(word: str, *tools: Tool) -> list[Any]:
    """What jobs pay that call one of the tools each, twice: a person approves all calls of the first one, and no others."""
    MADE.clear()
    home, policy = (
        MemoryStorage(),
        PolicyEngine([ToolPolicy(["pay", "pay_in", "pay_by_name", "send"], require_approval=True)]),
    )

    def calls_twice(made: Tool) -> Any:
        async def f(ctx: DurableContext) -> None:
            await ctx.call(made, "o-1")
            await ctx.call(made, "o-2")

        return f

    for number, made in enumerate(tools):
        job = f"j-{number}"
        async with hosting(home, Owner(calls_twice(made)), guard=policy) as jobs:  # each after a restart
            jobs.begin(job, behalf=Behalf("acme", "eve", session="s-1"))
            if number == 0:
                await jobs.until(lambda: asked(home))
                said = {"approved": True, "always": word}
                check_resolution(asked(home)[0], said)
                await answer(jobs, home, json.dumps(said).encode(), job=job)
                await jobs.over(job)
            await jobs.until(lambda: asked(home) or job in jobs.agent.outcomes)  # noqa: B023
    return MADE[:]


@pytest.mark.one_in(4, "some hundredths of a second of a core each")
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("word", ["session", "scope"])
@pytest.mark.parametrize("regions", [("eu", "us"), (Region("eu"), Region("us"))])
async def test_an_approval_of_a_function_that_another_one_has_made_is_for_what_it_was_made_of(
    regions: Any, word: str, maker: str
) -> None:
    """A person who approved the payments of one bank had approved those of all others that the same code makes."""
    make, (eu, us) = MAKERS[maker], regions
    assert len(await pays_for(word, make(eu), make(us))) == 2, "the second one is asked about"
    assert len(await pays_for(word, make(eu), make(eu))) == 4, "one that was made anew, as by a restart, is the same"


@pytest.mark.parametrize("maker", MAKERS)
async def test_an_approval_of_later_calls_is_refused_if_nothing_tells_a_tool_from_another(maker: str) -> None:
    make = MAKERS[maker]
    one, other = make(Client("eu")), make(Client("us"))
    with pytest.raises(UserError, match="from another tool of its name") as error:
        await pays_for("scope", one, other)
    assert '@tool(name="pay_eu")' in error.value.hint
    assert MADE == []


async def test_a_name_of_its_own_tells_a_tool_from_others() -> None:
    one, other = (tool(name=f"pay_{region}")(Bank(Client(region)).send) for region in ("eu", "us"))
    MADE.clear()
    home, policy = MemoryStorage(), PolicyEngine([ToolPolicy(["pay_*"], require_approval=True)])

    async def f(ctx: DurableContext) -> None:
        for each in (one, one, other):
            await ctx.call(each, "o-1")

    async with hosting(home, Owner(f), guard=policy) as jobs:
        jobs.begin("j")
        await answer(jobs, home, b'{"approved": true, "always": "job"}')
        await jobs.until(lambda: asked(home))
        assert MADE == [("eu", "o-1"), ("eu", "o-1")]


async def test_a_name_that_two_tools_of_the_agents_have_tells_none_of_them() -> None:
    """Who had approved all payments of the European bank had approved those of the American one, unasked."""
    eu, us = (tool(name="transfer")(Bank(Client(region)).send) for region in ("eu", "us"))

    async def f(ctx: DurableContext) -> None:
        await ctx.call(eu, "o-1")
        await ctx.call(us, "o-1")

    MADE.clear()
    policy = PolicyEngine([ToolPolicy(["transfer"], require_approval=True)])
    async with RuntimeKernel.create(agent=f, policy=policy) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="x"))
        await until_asked(handle)
        (first,) = await handle.get_pending_actions()
        with pytest.raises(UserError, match="from another tool of its name"):
            await handle.resolve_action(first.resume_token, {"approved": True, "always": "job"})
        await handle.resolve_action(first.resume_token, {"approved": True})
        await until_asked(handle)
        assert MADE == [("eu", "o-1")]


@pytest.mark.parametrize("word", ["job", "scope"])
async def test_an_approval_of_a_lambda_is_none_of_another_one(word: str) -> None:
    made: list[str] = []

    async def f(ctx: DurableContext) -> None:
        await ctx.step(lambda: made.append("a mail"), effect="unsafe")
        await ctx.step(lambda: made.append("a payment"), effect="unsafe")

    home, policy = MemoryStorage(), PolicyEngine([ToolPolicy(["*"], require_approval=True)])
    async with hosting(home, Owner(f), guard=policy) as jobs:
        jobs.begin("j")
        await jobs.until(lambda: asked(home))
        with pytest.raises(UserError, match="always"):
            check_resolution(asked(home)[0], {"approved": True, "always": word})
        await answer(jobs, home, b'{"approved": true, "always": "%s"}' % word.encode())  # straight into the inbox
        await jobs.until(lambda: asked(home))
        assert made == ["a mail"]
        await answer(jobs, home, b'{"approved": true}')
        await jobs.over("j")
    assert made == ["a mail", "a payment"]


async def test_an_approval_that_a_lambda_has_asked_for_is_none_of_another_rule() -> None:
    """After a deploy with one rule more in front, the approvals of one were those of the other."""
    made: list[Any] = []
    home, behalf = MemoryStorage(), Behalf("acme", "eve")
    policy = PolicyEngine([lambda call: Decision.ASK if call.arguments["amount"] < 100 else None])
    async with hosting(home, Owner(calls(refund_of(made), ("o-1", 5))), guard=policy) as jobs:
        jobs.begin("j", behalf=behalf)
        await jobs.until(lambda: asked(home))
        with pytest.raises(UserError, match="always"):
            check_resolution(asked(home)[0], {"approved": True, "always": "scope"})
        await answer(jobs, home, b'{"approved": true, "always": "scope"}')
        await jobs.over("j")
    policy = PolicyEngine([lambda call: Decision.ASK if call.arguments["amount"] > 100 else None])
    async with hosting(home, Owner(calls(refund_of(made), ("o-2", 5000))), guard=policy) as jobs:
        jobs.begin("k", behalf=behalf)
        await jobs.until(lambda: asked(home) or len(made) == 2)
    assert made == [("o-1", 5)]


@pytest.mark.parametrize("restart", [False, True])
async def test_an_approval_of_a_model_is_none_of_a_tool_with_its_name(restart: bool) -> None:
    made: list[Any] = []
    engine = ExecutionEngine(ScriptedProvider(lambda spec: assistant("yes"), model="refund"), retries=0, patience=0)

    async def first(ctx: DurableContext) -> str:
        return (await ctx.llm(engine).complete("may I?")).content

    def rule(call: GuardedCall) -> Decision | None:
        return Decision.ASK if call.name == "refund" else None

    home = MemoryStorage()
    async with hosting(home, Owner(first), guard=PolicyEngine([rule])) as jobs:
        jobs.begin("j", behalf=Behalf("acme", "eve"))
        await answer(jobs, home, b'{"approved": true, "always": "scope"}')
        await jobs.over("j")
        jobs.begin("k", behalf=Behalf("acme", "eve"))
        await jobs.over("k")
        assert jobs.agent.done["k"] == "yes"
        if not restart:
            jobs.agent.func = calls(refund_of(made), ("o-1",))
            jobs.begin("m", behalf=Behalf("acme", "eve"))
            await jobs.until(lambda: asked(home) or made)
    if restart:
        async with hosting(home, Owner(calls(refund_of(made), ("o-1",))), guard=PolicyEngine([rule])) as jobs:
            jobs.begin("m", behalf=Behalf("acme", "eve"))
            await jobs.until(lambda: asked(home) or made)
    assert made == []


@pytest.mark.parametrize("restart", [False, True])
async def test_an_answer_after_the_job_was_cancelled_approves_no_later_calls(restart: bool) -> None:
    made: list[Any] = []
    home, policy, refund = MemoryStorage(), PolicyEngine([ASKS]), refund_of(made)
    behalf = Behalf("acme", "eve")
    async with hosting(home, Owner(calls(refund, ("o-1",))), guard=policy) as jobs:
        jobs.begin("j", behalf=behalf)
        await jobs.parks("j")
        (question,) = asked(home)
        jobs.journal.post(Letter("cancel", "", "j", name="no more", by="ann"))
        jobs.journal.post(
            Letter("answer", question.resume_token, body=b'{"approved": true, "always": "scope"}', by="ann")
        )
        await jobs.over("j")
        if not restart:
            jobs.begin("k", behalf=behalf)
            await jobs.until(lambda: asked(home) or made)
    if restart:
        async with hosting(home, Owner(calls(refund, ("o-1",))), guard=policy) as jobs:
            jobs.begin("k", behalf=behalf)
            await jobs.until(lambda: asked(home) or made)
    assert made == []


async def until_asked(handle: Any) -> None:
    async for event in handle.events():
        if event.type == RuntimeEventType.ACTION_REQUIRED and await handle.get_pending_actions():
            return


# -- refusals -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [b"comment", b"reason"])
async def test_the_comment_of_a_refusal_reaches_the_function(word: bytes) -> None:
    made: list[Any] = []
    found, _ = await told(made, b'{"approved": false, "%s": "too much"}' % word)
    assert found == "refund was not done: it was rejected by ann: too much"


@pytest.mark.parametrize("restart", [False, True])
async def test_a_refused_call_is_not_asked_for_again_and_after_three_times_the_job_says_so(
    restart: bool, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[Any] = []
    caplog.set_level(logging.WARNING)
    refund, home = refund_of(made), MemoryStorage()

    async def f(ctx: DurableContext) -> list[str]:
        found = []
        for number in range(5):
            try:  # with and without the default: the same arguments
                await (
                    ctx.call(refund, order="o-1") if number % 2 else ctx.call(refund, order="o-1", amount=500, note="")
                )
            except PolicyDenied as error:
                found.append(error.message)
            if number == 2 and restart:
                await ctx.wait("restarted")
        return [*found, await ctx.call(refund, "o-2")]

    async with hosting(home, Owner(f), guard=PolicyEngine([ASKS])) as jobs:
        jobs.begin("j")
        await answer(jobs, home, b'{"approved": false, "comment": "too much"}')
        if not restart:
            await answer(jobs, home, b'{"approved": true}')  # for other arguments a person is asked
            await jobs.over("j")
            found = jobs.agent.done["j"]
        else:
            await jobs.parks("j", 1)
    if restart:
        async with hosting(home, Owner(f), guard=PolicyEngine([ASKS])) as jobs:
            jobs.journal.post(Letter("signal", "s", job="j", name="restarted"))
            await answer(jobs, home, b'{"approved": true}')
            await jobs.over("j")
            found = jobs.agent.done["j"]
    first, second, third, fourth, fifth, paid = found
    assert first == "refund was not done: it was rejected by ann: too much"
    for each in (second, third, fourth, fifth):
        assert "it was rejected by ann: too much; nobody is asked again about the same call" in each
    assert "asked for 3 times" in fourth
    assert "asked for 4 times" in fifth
    assert "times" not in third
    assert made == [("o-2", 500)]
    assert paid == 500
    assert "it has asked for refund 3 times after a person has refused it" in caplog.text


# -- the check of an answer -------------------------------------------------------------------------------------------------


async def question(*rules: Any) -> tuple[ActionRecord, Tool, MemoryStorage]:
    home, refund = MemoryStorage(), refund_of([])
    async with hosting(home, Owner(calls(refund, ("o-1",))), guard=PolicyEngine(list(rules) or [ASKS])) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
    return asked(home)[0], refund, home


@pytest.mark.parametrize(
    ("said", "words", "hint"),
    [
        ({"approved": True, "argument": {"amount": 5}}, "has no field 'argument'", "did you mean 'arguments'"),
        ({"approved": True, "amount": 5}, "has no field 'amount'", '"arguments": {"amount": …}'),
        ({"approved": True, "scope": "job"}, "has no field 'scope'", "its fields are approved, arguments, always"),
        ({"approved": False, "dry_run": True}, "has no field 'dry_run'", "its fields are"),
        ({"approved": True, "arguments": {"amuont": 5}}, "has no argument 'amuont'", "did you mean 'amount'"),
        ({"approved": True, "arguments": {"amount": "much"}}, "amount does not take 'much'", ""),
        ({"approved": True, "arguments": 5}, "arguments=5", "an object"),
        ({"approved": False, "arguments": {"amount": 5}}, "a refusal changes no arguments", ""),
        ({"approved": True, "always": "week"}, "always='week' is none of job, session, scope", "rest of this job"),
        ({"approved": True, "always": "session"}, "job j belongs to no session", "ExecutionRequest(session_id="),
        ({"approved": False, "always": "job"}, "a refusal", ""),
    ],
)
async def test_an_answer_that_cannot_be_meant_is_refused_when_it_is_given(
    said: dict[str, Any], words: str, hint: str
) -> None:
    action, refund, home = await question()
    assert refund.name == "refund"
    with pytest.raises(UserError) as caught:
        check_resolution(action, said)
    assert words in caught.value.message
    assert hint in (caught.value.hint or "")
    posted: list[Letter] = []
    count = answer_questions(posted.append, read_questions(MemoryReader(home)), "approve", said, "ann")
    assert (count.answered, posted) == (0, [])


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
async def test_a_number_that_json_does_not_have_is_no_answer(number: float) -> None:
    """It was written as null, and the call made with None, which of an amount may mean all of it."""
    home = (await question())[2]
    said = {"approved": True, "comment": number}
    posted: list[Letter] = []
    count = answer_questions(posted.append, read_questions(MemoryReader(home)), "approve", said, "ann")
    assert (count.answered, posted) == (0, [])
    assert f"{number} is no number of JSON" in count.refused[0][1]
    store = InMemoryActionStore()
    asked_again = await store.require(ActionSpec(job_id="j", type="confirm", payload={"amount": 5}))
    for each in (said, {"choice": [number]}, {"choice": {"at": (number, 1.5)}}):
        with pytest.raises(UserError, match="is no number of JSON"):
            await store.resolve(asked_again.resume_token, each, "ann")
    await store.resolve(asked_again.resume_token, {"choice": [None, 1.5]}, "ann")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"approved": false, "approved": true}', "the field 'approved' is there twice"),
        ('{"approved": true, "arguments": {"to": "x", "to": "eve"}}', "the field 'to' is there twice"),
        ('{"amount": NaN}', "NaN is no number of JSON"),
        ('{"amount": -Infinity}', "-Infinity is no number of JSON"),
        ('{"amount": 1e400}', "1e400 is no number of JSON"),
        ("[" * 100_000, "nested too deep"),
        ("{", "Expecting property name"),
    ],
)
def test_what_a_person_writes_as_json_has_one_meaning(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        json_value(text)
    assert words in caught.value.message
    assert json_value('{"amount": 1.5, "to": [null, {"to": 1e3}]}') == {"amount": 1.5, "to": [None, {"to": 1000.0}]}


FAULTY = [
    ('{"approved": true, "argument": {"amount": 5}}', "has a field 'argument' (did you mean 'arguments'?)"),
    ('{"approved": true, "amount": 5}', "has a field 'amount' (its fields: approved, arguments, always,"),
    ('{"approved": true, "dry_run": true}', "has a field 'dry_run'"),
    ('{"approved": false, "approved": true}', "cannot be read: the field 'approved' is there twice"),
    ('{"approved": true, "arguments": {"amount": 5, "amount": 500}}', "the field 'amount' is there twice"),
    ('{"approved": true, "arguments": {"amount": NaN}}', "NaN is no number of JSON"),
    ('{"approved": true, "always": "forever"}', "has always='forever', which is none of job, session, scope"),
    ("[true]", "is no object: [True]"),
]


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize(("letter", "words"), FAULTY)
@pytest.mark.parametrize("restart", [False, True])
async def test_a_letter_that_cannot_be_meant_approves_nothing(
    letter: str, words: str, restart: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It was no answer of a person's tool, which checks it: the call was made with the arguments that were to be changed."""
    made: list[Any] = []
    got, home = await told(made, letter.encode(), restart=restart)
    assert made == []
    assert "refund was not done: its approval" in str(got)
    assert words in str(got)
    assert words in next(each.getMessage() for each in caplog.records if "the answer to the question" in each.msg)
    [called] = [each for each in audit_job(MemoryReader(home), "j") if each.name == "refund"]
    assert called.approval == "rejected"


async def test_the_same_call_is_asked_about_again_after_a_letter_that_cannot_be_meant() -> None:
    """Nobody has refused it."""
    home, made = MemoryStorage(), list[Any]()
    f = calls(refund_of(made), ("o-1",), ("o-1",))
    async with hosting(home, Owner(f), guard=PolicyEngine([ASKS])) as jobs:
        jobs.begin("j")
        await answer(jobs, home, b'{"approved": true, "amount": 5}')
        await answer(jobs, home, b'{"approved": true}')
        await jobs.over("j")
    assert made == [("o-1", 500)]


@pytest.mark.parametrize(
    "letter",
    [
        '{"outcome": "done", "outcome": "not_done"}',
        '{"outcome": "not_done", "answer": "done"}',
        '{"outcome": "not_done", "amount": 5}',
    ],
)
@pytest.mark.parametrize("restart", [False, True])
async def test_a_letter_about_a_doubt_that_cannot_be_meant_is_asked_for_again(letter: str, restart: bool) -> None:
    made: list[Any] = []
    home, f = MemoryStorage(), calls(refund_of(made), ("o-1",))
    async with hosting(home, Owner(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    crashed = prefix(home, next(at for at, each in enumerate(entries(home), 1) if isinstance(each, Intent)))
    made.clear()
    async with hosting(crashed, Owner(f)) as jobs:
        await answer(jobs, crashed, letter.encode())
        await jobs.until(lambda: asked(crashed))
        if not restart:
            await answer(jobs, crashed, b'{"outcome": "done", "result": 500}')
            await jobs.over("j")
    if restart:
        async with hosting(crashed, Owner(f)) as jobs:
            await answer(jobs, crashed, b'{"outcome": "done", "result": 500}')
            await jobs.over("j")
    assert made == []
    assert jobs.agent.done["j"] == [500]


def test_an_answer_about_a_doubt_says_one_thing() -> None:
    """`answer` is another name of `outcome`: the call was made again for whoever had said both."""
    payload = {"effect": "refund", "attempt": 1, "ordinal": 1}
    asked_about = ActionRecord(
        action_id="j/1.1",
        job_id="j",
        type="in_doubt",
        payload=payload,
        resume_token="t",
        created_at=0.0,
        expires_at=None,
    )
    with pytest.raises(UserError, match="two names of one field"):
        check_resolution(asked_about, {"answer": "done", "outcome": "not_done"})
    check_resolution(asked_about, {"answer": "not_done"})


async def test_an_approval_that_an_earlier_version_has_taken_is_read_as_it_was() -> None:
    """Earlier versions took one with any fields, and have made the call."""
    made: list[Any] = []
    _, home = await told(made, b'{"approved": true}')
    old = MemoryStorage(home.clock)
    old.identity, old.key = home.identity, home.key
    journal = MemoryJournal(old)
    for each in entries(home):
        is_answer = isinstance(each, Answer) and each.body
        journal.append(msgspec.structs.replace(each, body=b'{"approved": true, "ticket": 7}') if is_answer else each)
    journal.close()
    [called] = [each for each in audit_job(MemoryReader(old), "j") if each.name == "refund"]
    assert (called.approval, called.outcome) == ("approved", "ok")
    until_attempt = next(at for at, each in enumerate(entries(old), 1) if isinstance(each, Attempt))
    owner = Owner(calls(refund_of(made), ("o-1",)))
    async with hosting(prefix(old, until_attempt), owner, guard=PolicyEngine([ASKS])) as jobs:
        await jobs.parks("j")  # the call is in doubt, as it was approved
        assert [each.type for each in asked(jobs.journal.storage)] == ["in_doubt"]


async def test_answers_that_fit_are_taken() -> None:
    action, refund, _ = await question()
    assert refund.name == "refund"
    assert (action.payload["editable"], action.payload["always"]) == (True, ["job", "scope"])
    for said in (
        ANSWERS["approve"],
        {"approved": True, "arguments": {"amount": 50}, "comment": "fine"},
        {"approved": True, "arguments": {}, "always": "scope", "comment": "fine"},
        {"approved": False, "comment": "no"},
    ):
        check_resolution(action, said)
    with pytest.raises(UserError, match="an approval with other arguments holds for this call"):
        check_resolution(action, {"approved": True, "arguments": {"amount": 50}, "always": "job"})
    fixed, _, _ = await question(ToolPolicy(["refund"], require_approval=True, editable=False))
    with pytest.raises(UserError, match="the arguments of refund cannot be changed"):
        check_resolution(fixed, {"approved": True, "arguments": {"amount": 50}})


def test_a_model_policy_has_the_option_too() -> None:
    assert not ModelPolicy(["*"], require_approval=True, editable=False).editable


# -- in a kernel, by a model ----------------------------------------------------------------------------------------------


def said_to(provider: ScriptedProvider) -> str:
    return str(provider.requests[-1].messages[-1])


@pytest.mark.parametrize(
    ("said", "wanted", "words"),
    [
        ({"approved": True, "arguments": {"amount": 50}}, [("o-1", 50)], "50"),
        ({"approved": False, "comment": "ask for less"}, [], "it was rejected by ann: ask for less"),
    ],
)
async def test_a_handle_of_a_kernel_answers_for_a_model_which_reads_the_comment(
    said: dict[str, Any], wanted: list[Any], words: str
) -> None:
    made: list[Any] = []
    provider = ScriptedProvider([assistant("", ToolCall("c", "refund", '{"order": "o-1"}')), "done"])
    agent = Agent(ExecutionEngine(provider), tools=[refund_of(made)])
    async with RuntimeKernel.create(agent=agent, policy=PolicyEngine([ASKS])) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))
        await anext(event async for event in handle.events() if event.type == RuntimeEventType.ACTION_REQUIRED)
        pending = await handle.get_pending_actions()
        assert pending[0].payload["arguments"] == [[], {"order": "o-1", "amount": 500, "note": ""}]
        with pytest.raises(UserError, match="has no argument 'amuont'"):
            await handle.resolve_action(pending[0].resume_token, {"approved": True, "arguments": {"amuont": 5}})
        await handle.resolve_action(pending[0].resume_token, said, by="ann")
        assert (await handle.result()).content == "done"
    assert made == wanted
    assert words in said_to(provider)


async def test_an_event_says_with_which_arguments_a_changed_call_is_made() -> None:
    events: list[Any] = []
    made: list[Any] = []

    async def f(ctx: DurableContext) -> Any:
        return await ctx.call(refund_of(made), "o-1")

    async with RuntimeKernel.create(agent=f, policy=PolicyEngine([ASKS])) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))

        async def listen() -> None:
            async for event in handle.events():
                events.append(event)
                if event.type == RuntimeEventType.ACTION_REQUIRED:
                    token = event.data["resume_token"]
                    await handle.resolve_action(token, {"approved": True, "arguments": {"amount": 50}}, by="ann")

        await asyncio.gather(listen(), handle.result())
    (start,) = [each.data for each in events if each.type == RuntimeEventType.TOOL_START]
    assert (start["arguments"]["amount"], start["edited"]) == (500, {"amount": 50})


async def test_a_question_shows_the_first_rows_of_a_batch() -> None:
    """A person approved a payout and saw the names of its columns only."""
    paid: list[Any] = []

    @tool
    async def payout(rows: pa.RecordBatch, note: str = "n") -> int:
        paid.extend(rows.to_pylist())
        return rows.num_rows

    rows = [{"to": f"o-{number}", "amount": Decimal(number)} for number in range(25)]

    async def work(ctx: Any) -> Any:
        return await ctx.call(payout, pa.RecordBatch.from_pylist(rows))

    rule = ToolPolicy(["payout"], require_approval=True)
    async with RuntimeKernel.create(agent=work, policy=PolicyEngine([rule])) as kernel:
        job = await kernel.execute(ExecutionRequest(prompt="go"))
        asked: list[Any] = []
        while not asked:
            asked = await kernel.actions.find()
        shown = asked[0].payload["arguments"]
        await kernel.actions.resolve(asked[0].resume_token, {"approved": True})
        assert (await job.result()).output == 25
    first = [{"to": f"o-{number}", "amount": str(number)} for number in range(20)]
    batch = {"rows": 25, "columns": ["to", "amount"], "first": first}
    assert shown == [[], {"rows": batch, "note": "n"}]
    assert paid == rows


@pytest.mark.parametrize("on_disk", [False, True])
async def test_a_question_shows_arguments_that_are_stored_outside_of_their_entry(tmp_path: Path, on_disk: bool) -> None:
    """A refund of 9,999 with a note of 70,000 characters was asked about without a single argument."""
    paid: list[Any] = []

    @tool
    async def refund(amount: int, note: str, parts: list[dict[str, Any]]) -> int:
        paid.append((amount, len(note), len(parts)))
        return amount

    parts = [{"to": "o" * 200, "amount": number} for number in range(2_000)]

    async def work(ctx: Any) -> Any:
        return await ctx.call(refund, 9_999, "n" * 70_000, parts)

    rule = ToolPolicy(["refund"], require_approval=True)
    home = str(tmp_path / "jobs") if on_disk else None
    async with RuntimeKernel.create(agent=work, policy=PolicyEngine([rule]), journal=home) as kernel:
        job = await kernel.execute(ExecutionRequest(prompt="go"))
        await until_asked(job)
        [question] = await kernel.actions.find()
        [], shown = question.payload["arguments"]
        assert shown["amount"] == 9_999
        assert shown["note"] == f"{'n' * 10_922}… (59,078 more characters)"
        assert shown["parts"][1]["amount"] == 1
        assert shown["parts"][42:] == ["… 1,958 more"]
        changes = {"amount": 50, "note": "short"}
        await kernel.actions.resolve(question.resume_token, {"approved": True, "arguments": changes})
        assert (await job.result()).output == 50
    assert paid == [(50, 5, 2_000)]


async def test_the_job_refuses_changes_that_no_process_could_check_before(caplog: pytest.LogCaptureFixture) -> None:
    made: list[Any] = []
    changed = b'{"approved": true, "arguments": {"amuont": 5}}'
    found, _ = await told(made, changed, given=("o-1", 500, "n" * 70_000))
    assert (
        found
        == "refund was not done: it was approved with arguments that it does not take: refund has no argument 'amuont'"
    )
    assert made == []


async def test_a_person_who_is_asked_about_a_long_request_sees_its_last_message() -> None:
    engine = ExecutionEngine(ScriptedProvider("yes"))
    rule = ModelPolicy(["*"], require_approval=True)
    agent = Agent(engine, name="desk")
    async with RuntimeKernel.create(agent=agent, policy=PolicyEngine([rule])) as kernel:
        job = await kernel.execute(ExecutionRequest(prompt="Who pays? " + "x" * 70_000))
        await until_asked(job)
        [question] = await kernel.actions.find()
        shown = str(question.payload["arguments"][-1])
        assert "Who pays? " in shown
        assert "more characters" in shown
        await kernel.actions.resolve(question.resume_token, {"approved": True})
        assert (await job.result()).content == "yes"


class OfPath(pydantic.BaseModel):
    note: str = "n"
    amount: int = pydantic.Field(default=10, validation_alias=pydantic.AliasPath("money", "value"))
    currency: str = pydantic.Field(default="EUR", validation_alias=pydantic.AliasPath("money", "currency"))
    first: int = pydantic.Field(default=1, validation_alias=pydantic.AliasPath("parts", 1, "n"))


class OfChoices(pydantic.BaseModel):
    note: str = "n"
    amount: int = pydantic.Field(
        default=10, validation_alias=pydantic.AliasChoices(pydantic.AliasPath("money", 0), "betrag")
    )


@pydantic.dataclasses.dataclass
class OfDataclass:
    note: str = "n"
    amount: int = pydantic.Field(default=10, alias="betrag")
    counted: int = pydantic.Field(default=3, init=False)


@pytest.mark.parametrize("kind", [OfPath, OfChoices, OfDataclass])
@pytest.mark.parametrize("edit", [{"amount": 50}, {"note": "z"}, {"amount": 5_000}])
async def test_a_changed_field_that_its_class_reads_by_another_name_is_the_one_that_is_called(
    kind: Any, edit: Any
) -> None:
    """A person wrote 50 in place of 70, the page said "approved", and the call was made with the default of the field, 10."""
    made: list[Any] = []

    @tool
    async def refund(order: Any) -> int:
        made.append(order)
        return int(order.amount)

    refund.func.__annotations__["order"] = kind
    whole = {
        OfPath: {"money": {"value": 70, "currency": "CHF"}, "parts": [{"n": 4}, {"n": 5}]},
        OfChoices: {"money": [70]},
    }
    order = kind(**whole.get(kind, {"betrag": 70}))

    async def work(ctx: Any) -> Any:
        return await ctx.call(refund, order)

    rules = [ToolPolicy(["refund"], require_approval=True), ConstraintPolicy(["refund"], "order.amount", max=100)]
    async with RuntimeKernel.create(agent=work, policy=PolicyEngine(rules)) as kernel:
        job = await kernel.execute(ExecutionRequest(prompt="go"))
        await until_asked(job)
        [question] = await kernel.actions.find()
        await kernel.actions.resolve(question.resume_token, {"approved": True, "arguments": {"order": edit}})
        if edit.get("amount", 0) > 100:
            with pytest.raises(EffectError, match=r"order\.amount is 5000, and at most 100 is allowed"):
                await job.result()
            assert made == []
            return
        await job.result()
    [called] = made
    assert (called.amount, called.note) == (edit.get("amount", 70), edit.get("note", "n"))
    others = ("currency", "first", "counted")
    assert [getattr(called, each) for each in others if hasattr(called, each)] == [
        getattr(order, each) for each in others if hasattr(order, each)
    ]
