"""What a guard decides is in the intent, before the effect, and holds from then on: over restarts, in a replay, whoever asks."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any

import msgspec
import pytest
from unit.jobs.hosting import AGENT, Agent, entries, hosting, prefix

from sabot.agents.durable.context import DurableContext
from sabot.clock import ManualClock
from sabot.engine.calls.effects import EffectId
from sabot.engine.calls.messages import user
from sabot.engine.calls.model_requests import RequestSpec
from sabot.engine.calls.tools import tool
from sabot.errors import EffectError, LetterRefused, PolicyDenied, UserError
from sabot.jobs.guard import (
    Behalf,
    CallKind,
    DecidedEffect,
    Decision,
    EffectGuard,
    EffectGuards,
    GuardedCall,
    GuardVerdict,
    decode_verdict,
    encode_verdict,
    judge_call,
)
from sabot.jobs.masking import mask
from sabot.jobs.values import unpack
from sabot.journal import Letter
from sabot.journal.entries import Attempt, EffectResult, Intent
from sabot.journal.memory import MemoryJournal, MemoryStorage

DENY = GuardVerdict(Decision.DENY, rule="no files", version="v1", reason="files are not for agents")
ASK = GuardVerdict(Decision.ASK, rule="people first", version="v1", reason="mail goes out")


@dataclass
class Judge(EffectGuard):
    """A guard that says what it is told, and notes what it is asked."""

    says: Callable[[GuardedCall], Any] = lambda _: GuardVerdict()
    used: bytes = b""
    asked: list[GuardedCall] = field(default_factory=list)
    settled: list[tuple[EffectId, CallKind, str]] = field(default_factory=list)
    dropped: list[EffectId] = field(default_factory=list)
    reopened: list[tuple[EffectId, str, Behalf, GuardVerdict]] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    def decide(self, call: GuardedCall) -> GuardVerdict | Awaitable[GuardVerdict]:
        if call.after == "again":
            return GuardVerdict()
        self.asked.append(call)
        return self.says(call)

    def drop(self, effect: EffectId) -> None:
        self.dropped.append(effect)

    def settle(self, entry: EffectResult, kind: CallKind, name: str) -> EffectResult:
        self.settled.append((EffectId(entry.job, entry.ordinal, entry.attempt), kind, entry.outcome))
        return msgspec.structs.replace(entry, usage=self.used)

    def reopen(self, effect: EffectId, agent: str, behalf: Behalf, decided: DecidedEffect) -> None:
        if effect not in [each for each, *_ in self.reopened]:  # told again when the job asks for it
            self.reopened.append((effect, agent, behalf, decided.verdict))

    def end_job(self, job_id: str, at_ms: int) -> bytes:
        if job_id not in self.gone:  # told again when its parent is told
            self.gone.append(job_id)
        return b""


def says(verdict: GuardVerdict) -> Judge:
    return Judge(lambda _: verdict)


def open_tokens(jobs: Any) -> list[str]:
    return [token for token, question in jobs.journal.storage.questions.items() if not question.closed]


async def answers(jobs: Any, body: bytes) -> str:
    """Answers the one question that is open."""
    await jobs.until(lambda: open_tokens(jobs))
    token = open_tokens(jobs)[0]
    jobs.journal.post(Letter("answer", token, body=body, by="ada"))
    return token


def verdicts(home: MemoryStorage) -> list[GuardVerdict | None]:
    return [decode_verdict(entry.note) for entry in entries(home) if isinstance(entry, Intent) and entry.kind != "ask"]


def kinds(home: MemoryStorage) -> list[str]:
    return [type(entry).__name__ for entry in entries(home)]


class Mail:
    """A tool that changes the world, and counts how often."""

    def __init__(self, effect: str = "unsafe") -> None:
        self.sent: Counter[Any] = Counter()

        @tool(effect=effect)
        async def send(to: str) -> str:
            self.sent[to] += 1
            return f"sent to {to}"

        self.send = send

    async def agent(self, ctx: DurableContext) -> Any:
        try:
            return await ctx.call(self.send, "bob")
        except PolicyDenied as error:
            return [error.type, error.message]


# -- deny -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", ["read", "metered", "idempotent", "unsafe"])
async def test_deny_leaves_the_world_as_it_is_and_the_function_may_catch_it(tmp_path: Path, effect: str) -> None:
    file, home, guard = tmp_path / "file", MemoryStorage(), says(DENY)

    @tool(effect=effect)
    def file_write(text: str) -> None:
        file.write_text(text)

    async def f(ctx: DurableContext) -> str:
        try:
            await ctx.call(file_write, "hello")
        except PolicyDenied as error:
            return error.message
        return "written"

    async with hosting(home, Agent(f), guard=guard) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert jobs.agent.done["j"] == "file_write was not done: files are not for agents (rule no files)"
    assert not file.exists()
    assert kinds(home) == ["Begin", "Intent", "EffectResult", "End"]
    assert verdicts(home) == [DENY]
    assert guard.settled == [(EffectId("j", 1), "tool", "PolicyDenied")]
    assert guard.gone == ["j"]


async def test_deny_is_the_error_of_a_job_that_does_not_catch_it() -> None:
    async def f(ctx: DurableContext) -> Any:
        return await ctx.call(Mail().send, "bob")

    async with hosting(MemoryStorage(), Agent(f), guard=says(DENY)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert isinstance(jobs.agent.errors["j"], PolicyDenied)
        assert jobs.agent.outcomes["j"] == "failed"


async def test_deny_holds_after_a_kill_before_its_result_though_the_policy_allows_it_now() -> None:
    mail, home = Mail(), MemoryStorage()
    async with hosting(home, Agent(mail.agent), guard=says(DENY)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    guard = Judge()
    async with hosting(prefix(home, 2), Agent(mail.agent), guard=guard) as jobs:
        await jobs.over("j")
        assert jobs.agent.done["j"][0] == "PolicyDenied"
    assert guard.asked == guard.reopened == []
    assert not mail.sent


async def test_what_was_allowed_is_made_after_a_kill_though_the_policy_denies_it_now() -> None:
    mail, home = Mail("idempotent"), MemoryStorage()
    async with hosting(home, Agent(mail.agent), guard=Judge()) as jobs:
        jobs.begin("j", behalf=Behalf("acme", "ada"))
        await jobs.over("j")
    guard, again = says(DENY), Mail("idempotent")
    async with hosting(prefix(home, 2), Agent(again.agent), guard=guard) as jobs:
        await jobs.over("j")
        assert jobs.agent.done["j"] == "sent to bob"
        jobs.begin("k")
        await jobs.over("k")
        assert jobs.agent.done["k"][0] == "PolicyDenied"
    assert [call.effect.job for call in guard.asked] == ["k"]
    assert guard.reopened == [(EffectId("j", 1), AGENT, Behalf("acme", "ada"), GuardVerdict())]


async def test_another_attempt_of_the_job_is_judged_anew_where_a_rule_has_denied() -> None:
    mail, home, found = Mail(), MemoryStorage(), [DENY, GuardVerdict()]

    async def f(ctx: DurableContext) -> Any:
        return await ctx.call(mail.send, "bob")

    async with hosting(home, Agent(f, verdict="again"), guard=Judge(lambda _: found.pop(0))) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert jobs.agent.done["j"] == "sent to bob"
    assert mail.sent == {"bob": 1}
    async with hosting(prefix(home, len(entries(home)) - 1), Agent(f), guard=Judge()) as jobs:
        await jobs.over("j")
        assert jobs.agent.done["j"] == "sent to bob"
    assert mail.sent == {"bob": 1}


async def test_a_rule_that_raises_denies_and_says_so() -> None:
    def broken(call: GuardedCall) -> GuardVerdict:
        raise ZeroDivisionError("the rule of Ada")

    async def broken_later(call: GuardedCall) -> GuardVerdict:
        await asyncio.sleep(0)
        raise ZeroDivisionError("the rule of Ada")

    for rule in (broken, broken_later):
        mail = Mail()
        async with hosting(MemoryStorage(), Agent(mail.agent), guard=Judge(rule)) as jobs:
            jobs.begin("j")
            await jobs.over("j")
            assert "what decides on it has failed: ZeroDivisionError: the rule of Ada" in jobs.agent.done["j"][1]
        assert not mail.sent


# -- ask ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", ["read", "unsafe"])
async def test_a_person_allows_it(effect: str) -> None:
    mail, home, guard = Mail(effect), MemoryStorage(), says(ASK)
    async with hosting(home, Agent(mail.agent), guard=guard) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        assert not mail.sent
        await answers(jobs, b'{"approved": true}')
        await jobs.over("j")
        assert jobs.agent.done["j"] == "sent to bob"
    assert mail.sent == {"bob": 1}
    assert kinds(home) == ["Begin", "Intent", "Intent", "Answer", "Attempt", "EffectResult", "End"]
    question = next(entry for entry in entries(home) if isinstance(entry, Intent) and entry.kind == "ask")
    assert (question.name, question.ordinal) == ("confirm", 1)
    asked = {"effect": "send", "kind": "tool", "ordinal": 1, "reason": "mail goes out", "rule": "people first"}
    assert msgspec.json.decode(question.body) == {**asked, "answers": ["approve", "reject"]}
    assert len(guard.asked) == 1


REJECTED = "it was rejected by ada"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"approved": false}', REJECTED),
        (b"{}", REJECTED),
        (b'{"approved": "true"}', REJECTED),
        (b"yes", "its approval cannot be read: Expecting value: line 1 column 1 (char 0)"),
        (b"", REJECTED),
    ],
)
async def test_any_other_answer_than_yes_refuses(body: bytes, why: str) -> None:
    mail = Mail()
    async with hosting(MemoryStorage(), Agent(mail.agent), guard=says(ASK)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        await answers(jobs, body)
        await jobs.over("j")
        assert jobs.agent.done["j"] == ["PolicyDenied", f"send was not done: {why}"]
    assert not mail.sent


@pytest.mark.parametrize(("body", "said"), [(b'{"approved": true}', "sent to bob"), (b"{}", ["PolicyDenied"])])
async def test_killed_after_each_entry_a_person_is_asked_once_and_mail_goes_out_at_most_once(
    body: bytes, said: Any
) -> None:
    mail, home = Mail(), MemoryStorage()
    async with hosting(home, Agent(mail.agent), guard=says(ASK)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        await answers(jobs, body)
        await jobs.over("j")
    written = entries(home)
    for count in range(1, len(written) + 1):
        again, guard = Mail(), says(ASK)
        before = {type(entry).__name__ for entry in written[:count]}
        async with hosting(prefix(home, count), Agent(again.agent), guard=guard) as jobs:
            if "Answer" not in before:
                await answers(jobs, body)
            elif "Attempt" in before and "EffectResult" not in before:  # it may have been sent: another question
                await answers(jobs, b'{"outcome": "done", "result": "sent to bob"}')
            await jobs.over("j")
            assert jobs.agent.done["j"] in (said, [*said, "send was not done: it was rejected by ada"])
            assert len(jobs.journal.storage.questions) <= 2
        assert len(guard.asked) == (1 if count == 1 else 0)
        assert again.sent.total() == (0 if "Attempt" in before or b"true" not in body else 1), count


async def test_a_parked_question_is_noted_so_a_start_needs_no_replay() -> None:
    home, notes, runs = MemoryStorage(), Notes(), Counter[str]()

    async def f(ctx: DurableContext) -> Any:
        runs[ctx.job_id] += 1
        return await ctx.call(Mail().send, "bob")

    async with hosting(home, Agent(f), guard=says(ASK), notes=notes) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
    guard = says(DENY)
    async with hosting(home, Agent(f), guard=guard, notes=notes) as jobs:
        assert jobs.rested == ["j"]
        assert runs["j"] == 1
        assert [effect for effect, *_ in guard.reopened] == [EffectId("j", 1, 0)]
        await answers(jobs, b'{"approved": true}')
        await jobs.over("j")
        assert jobs.agent.done["j"] == "sent to bob"


class Notes(dict[str, bytes]):
    def put(self, job_id: str, note: bytes) -> None:
        self[job_id] = note

    def remove(self, job_id: str) -> None:
        self.pop(job_id, None)


async def test_a_question_that_nobody_answers_in_time_is_a_refusal() -> None:
    clock, mail = ManualClock(), Mail()
    home = MemoryStorage(clock)
    guard = says(msgspec.structs.replace(ASK, wait_s=60.0))
    async with hosting(home, Agent(mail.agent, clock=clock), guard=guard) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
    async with hosting(home, Agent(mail.agent, clock=clock), guard=guard) as jobs:
        await jobs.parks("j")
        clock.advance(61)
        await jobs.over("j")
        assert "nobody has approved it: the question was expired" in jobs.agent.done["j"][1]
    assert not mail.sent


async def test_a_call_that_its_job_waits_for_no_longer_is_not_made_though_somebody_allows_it() -> None:
    mail, home = Mail(), MemoryStorage()

    async def f(ctx: DurableContext) -> Any:
        asked = asyncio.ensure_future(ctx.call(mail.send, "bob"))
        await ctx.wait("enough")
        asked.cancel()
        await asyncio.wait([asked])
        return await ctx.wait("end")

    async with hosting(home, Agent(f), guard=says(ASK)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        token = open_tokens(jobs)[0]
        jobs.journal.post(Letter("signal", "1", job="j", name="enough"))
        await jobs.until(lambda: not open_tokens(jobs))  # it is withdrawn
        with pytest.raises(LetterRefused):
            jobs.journal.post(Letter("answer", token, body=b'{"approved": true}'))
        jobs.journal.post(Letter("signal", "2", job="j", name="end", body=b'"over"'))
        await jobs.over("j")
        assert jobs.agent.done["j"] == "over"
    for count in range(2, len(entries(home))):
        async with hosting(prefix(home, count), Agent(f), guard=says(ASK)) as jobs:
            for name in ("enough", "end"):
                jobs.journal.post(Letter("signal", f"{name} {count}", job="j", name=name, body=b'"over"'))
            await jobs.over("j")
    assert not mail.sent


async def test_a_job_that_is_cancelled_withdraws_its_question() -> None:
    mail, home = Mail(), MemoryStorage()
    async with hosting(home, Agent(mail.agent), guard=says(ASK)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        jobs.journal.post(Letter("cancel", job="j", name="enough"))
        await jobs.over("j")
        assert jobs.agent.outcomes["j"] == "cancelled"
    assert not mail.sent


async def test_what_a_person_has_refused_stays_refused_in_another_attempt() -> None:
    mail, home, guard, tried = Mail(), MemoryStorage(), says(ASK), []

    async def f(ctx: DurableContext) -> Any:
        tried.append(ctx.attempt)
        try:
            return await ctx.call(mail.send, "bob")
        except PolicyDenied:
            if ctx.attempt == 1:
                raise
            return "refused"

    async with hosting(home, Agent(f, verdict="again"), guard=guard) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        await answers(jobs, b'{"approved": false}')
        await jobs.over("j")
        assert jobs.agent.done["j"] == "refused"
    assert len(guard.asked) == len(home.questions) == 1
    assert max(tried) == 2


async def test_an_approved_call_that_fails_unsent_is_made_again_and_counts_its_attempts() -> None:
    home, attempts = MemoryStorage(), []

    @tool(effect="idempotent", retries=2, backoff="0s")
    async def put(effect: Any = None) -> str:
        attempts.append(len(attempts) + 1)
        if len(attempts) < 3:
            raise ConnectionRefusedError
        return "put"

    async def f(ctx: DurableContext) -> Any:
        return await ctx.call(put)

    async with hosting(home, Agent(f), guard=says(ASK)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        await answers(jobs, b'{"approved": true}')
        await jobs.over("j")
    tries = [entry.attempt for entry in entries(home) if isinstance(entry, Attempt)]
    assert tries == attempts == [1, 2, 3]
    assert next(entry.attempt for entry in entries(home) if isinstance(entry, EffectResult)) == 3


# -- changes --------------------------------------------------------------------------------------------------------------


async def test_redact_hides_texts_from_the_tool_and_the_journal_and_the_digest_stays() -> None:
    home, plain, got = MemoryStorage(), MemoryStorage(), []
    hide = GuardVerdict(Decision.REDACT, rule="cards", hide=(r"\b\d{16}\b",))

    @tool(effect="idempotent")
    async def note(text: str, more: dict[str, Any]) -> None:
        got.append((text, more))

    async def f(ctx: DurableContext) -> None:
        await ctx.call(note, "card 1234567812345678", more={"pan": ["1234567812345678", 7]})

    plain.key = home.key
    async with hosting(plain, Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    async with hosting(home, Agent(f), guard=says(hide)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    shown = ("card ***", {"pan": ["***", 7]})
    assert got[1] == shown
    intent, asked = (next(e for e in entries(each) if isinstance(e, Intent)) for each in (home, plain))
    assert intent.digest == asked.digest
    assert unpack(intent.body) == [[], {"text": "card ***", "more": shown[1]}]
    async with hosting(prefix(home, 2), Agent(f), guard=Judge()) as jobs:  # made again, as it was decided
        await jobs.over("j")
    assert got[2] == shown


def test_hidden_looks_into_what_calls_are_given_and_leaves_the_rest_as_it_is() -> None:
    @dataclass
    class Place:
        town: str
        at: tuple[float, float] = (0.0, 1.0)

    spec = RequestSpec(messages=(user("my number is 4711"),), model="m")
    assert mask(spec, ["4711"]).messages[0].text == "my number is ***"
    assert mask(Place("4711"), ["4711"]) == Place("***")
    same = [Place("Ulm"), {"a": {"b": (1, 2.0, b"4711", None)}}, spec]
    assert mask(same, ["0815"]) is same
    assert mask({"4711": 1}, ["4711"]) == {"***": 1}
    assert mask([b"\xff is 4711"], ["4711"]) == [b"\xff is ***"], "texts in UTF-8, and what is none, stay bytes"
    with pytest.raises(UserError, match="texts cannot be hidden in an argument of type builtins"):
        mask([object()], ["4711"])


def test_hidden_leaves_members_of_enums_that_do_not_match() -> None:
    """A tool got the text of a member, which is not the member, because a rule had looked for another text."""

    class Town(StrEnum):
        ULM = "ulm"
        BONN = "bonn"

    class Size(Enum):
        SMALL = "small"

    given = [Town.ULM, Size.SMALL, {"town": Town.BONN}]
    assert mask(given, ["4711"]) is given
    assert mask(given, ["ulm"]) == ["***", Size.SMALL, {"town": Town.BONN}]


def test_hidden_loses_no_entry_of_a_dict() -> None:
    """A tool got one entry in place of two, because both keys were hidden."""
    assert mask({"ann@a": 1, "bob": 2}, [r"\w+@\w"]) == {"***": 1, "bob": 2}
    with pytest.raises(UserError, match="two keys of a dict would be equal"):
        mask([{"ann@a": 1, "bob@b": 2}], [r"\w+@\w"])


async def test_what_cannot_be_looked_into_is_denied_where_a_rule_hides_texts() -> None:
    class Odd:
        def model_dump(self, mode: str) -> str:
            return "4711"

    async def f(ctx: DurableContext) -> Any:
        return await ctx.call(Mail().send, Odd())

    async with hosting(MemoryStorage(), Agent(f), guard=says(GuardVerdict(Decision.REDACT, hide=("4711",)))) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert "texts cannot be hidden in an argument of type" in str(jobs.agent.errors["j"])


@pytest.mark.parametrize("effect", ["read", "idempotent", "unsafe"])
@pytest.mark.parametrize("changes", ["", ', "arguments": {"to": "eve"}'], ids=["as asked", "changed"])
async def test_a_call_without_a_result_waits_for_the_guard_that_has_judged_it(effect: str, changes: str) -> None:
    """Killed at any entry, it was made without the guard: as it was approved, or once more, also with changed arguments."""
    home, answer = MemoryStorage(), f'{{"approved": true{changes}}}'.encode()
    async with hosting(home, Agent(Mail(effect).agent), guard=says(ASK)) as jobs:
        jobs.begin("j")
        await answers(jobs, answer)
        await jobs.over("j")
    written = kinds(home)
    for count in range(1, len(written)):
        mail = Mail(effect)
        async with hosting(prefix(home, count), Agent(mail.agent)) as jobs:
            await jobs.over("j")
            if "EffectResult" in written[:count]:
                assert jobs.agent.done["j"] == f"sent to {'eve' if changes else 'bob'}"
            else:
                assert "at step 1, call send: policy= judged" in str(jobs.agent.blocks["j"])
        assert not mail.sent


async def test_without_the_guard_what_it_has_denied_stays_so_and_a_child_that_has_begun_goes_on() -> None:
    mail, home, told = Mail("idempotent"), MemoryStorage(), list[Any]()

    async def f(ctx: DurableContext) -> Any:
        if ctx.message != "below":
            said = [await mail.agent(ctx), await ctx.child("agent", "below")]
            await ctx.call(mail.send, "ann")
            return said
        return (await ctx.ask("confirm", {})).outcome

    async with hosting(
        home, Agent(f), guard=Judge(lambda call: DENY if call.kind == "tool" else GuardVerdict())
    ) as jobs:
        jobs.begin("j")
        await jobs.until(lambda: open_tokens(jobs))
    async with hosting(home, Agent(f)) as jobs:
        told.append(dict(jobs.agent.blocks))
        await answers(jobs, b"yes")
        await jobs.over("j")
        assert jobs.agent.outcomes == {"j~2": "succeeded"}
        assert "at step 3, call send: policy= judged" in str(jobs.agent.blocks["j"])
    assert told == [{}]
    assert not mail.sent


# -- who asks, and several guards --------------------------------------------------------------------------------------------


async def test_a_guard_is_told_who_asks_for_what_and_a_child_runs_on_its_parents_behalf() -> None:
    home, guard, mail = MemoryStorage(), Judge(used=b"used"), Mail()

    async def f(ctx: DurableContext) -> Any:
        if ctx.message == "child":
            return await ctx.call(mail.send, to="bob")
        return await ctx.child("agent", "child")

    async with hosting(home, Agent(f), guard=guard) as jobs:
        jobs.begin("j", behalf=Behalf("acme", "ada"))
        await jobs.over("j")
        jobs.begin("k", "child")
        await jobs.over("k")
    child, call, other = guard.asked
    assert (child.kind, child.name, child.arguments, child.scope) == ("child", AGENT, {"message": "child"}, "acme")
    assert (call.kind, call.name, call.effect_class, call.arguments) == ("tool", "send", "unsafe", {"to": "bob"})
    assert (call.effect.job, call.scope, call.principal) == ("j~1", "acme", "ada")
    assert (other.scope, other.principal, other.agent) == ("app", "", AGENT)
    assert [(kind, outcome) for _, kind, outcome in guard.settled] == [("tool", "ok"), ("child", "ok"), ("tool", "ok")]
    assert {entry.usage for entry in entries(home) if isinstance(entry, EffectResult)} == {b"used"}


async def test_others_go_on_while_a_rule_takes_its_time_and_a_job_that_is_gone_is_not_decided_for() -> None:
    mail, may = Mail(), asyncio.Event()

    async def slow(call: GuardedCall) -> GuardVerdict:
        await may.wait()
        return GuardVerdict()

    guard = Judge(lambda call: slow(call) if call.effect.job != "quick" else GuardVerdict())
    home = MemoryStorage()
    async with hosting(home, Agent(mail.agent), guard=guard) as jobs:
        jobs.begin("slow")
        jobs.begin("gone")
        jobs.begin("quick")
        await jobs.over("quick")
        assert mail.sent == {"bob": 1}
        jobs.journal.post(Letter("cancel", job="gone", name="enough"))
        await jobs.until(
            lambda: any(entry.job == "gone" and type(entry).__name__ == "Cancel" for entry in entries(home))
        )
        may.set()
        await jobs.over("slow", "gone")
    assert mail.sent == {"bob": 2}
    assert guard.dropped == [EffectId("gone", 1)]
    (gone,) = [entry for entry in entries(home) if isinstance(entry, Intent) and entry.job == "gone"]
    assert decode_verdict(gone.note).decision is Decision.DENY  # type: ignore[union-attr]


def call_of(name: str = "send") -> GuardedCall:
    return GuardedCall(EffectId("j", 1), "model", name, spec=RequestSpec(messages=(user("hi"),), model=name))


async def test_of_several_guards_the_strictest_holds_and_each_sees_what_the_one_before_has_changed() -> None:
    later = asyncio.Event()

    async def small(call: GuardedCall) -> GuardVerdict:
        await later.wait()
        return GuardVerdict(Decision.DEGRADE, rule="small", version="1", reason="too dear", model="small")

    first, second = Judge(small), says(GuardVerdict(Decision.WARN, version="2", reason="nearly used up", tokens=7))
    waits = EffectGuards([first, second]).decide(call_of("large"))
    later.set()
    verdict = await waits  # type: ignore[misc]
    assert verdict == GuardVerdict(
        Decision.DEGRADE, "small", "1 2", "too dear", model="small", tokens=7, notes=("nearly used up",)
    )
    assert [(call.name, call.spec.model) for call in second.asked if call.spec] == [("small", "small")]


def test_a_guard_that_denies_frees_what_the_ones_before_it_have_reserved() -> None:
    first, second, third = Judge(), says(DENY), Judge()
    assert EffectGuards([first, second, third]).decide(call_of()) == GuardVerdict(
        Decision.DENY, DENY.rule, DENY.version, DENY.reason
    )
    assert (first.dropped, second.dropped, third.asked) == ([EffectId("j", 1)], [], [])


async def test_without_a_guard_no_intent_has_a_note() -> None:
    home = MemoryStorage()
    async with hosting(home, Agent(Mail().agent)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    assert verdicts(home) == [None]
    assert MemoryJournal(home).is_new is False


def test_a_denial_is_an_error_of_an_effect() -> None:
    assert issubclass(PolicyDenied, EffectError)
    assert str(PolicyDenied("no")) == "PolicyDenied: no"


@pytest.mark.parametrize("goes_on", [False, True], ids=["ends", "continues"])
async def test_what_is_decided_too_late_is_not_made_and_a_restart_asks_the_same(goes_on: bool) -> None:
    """What nobody waited for had an ordinal and no intent: behind a restart, the job asked for something else than it had."""
    home, looked, decided = MemoryStorage(), Counter[str](), asyncio.Event()

    async def later(_: GuardedCall) -> GuardVerdict:
        await decided.wait()
        return GuardVerdict()

    @tool(effect="read")
    async def look() -> None:
        looked["there"] += 1

    async def f(ctx: DurableContext) -> Any:
        if ctx.message == "again":
            return await ctx.sleep("5ms")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.005):
                await ctx.call(look)
        if goes_on:
            ctx.continue_as("again")
        return "over"

    for restarted in (False, True):
        async with hosting(home, Agent(f), guard=Judge(later)) as jobs:
            if not restarted:
                jobs.begin("j")
            await jobs.over("j")
            assert (jobs.agent.outcomes, jobs.agent.blocks) == ({"j": "succeeded"}, {})
    asked = [entry for entry in entries(home) if isinstance(entry, Intent) and entry.kind == "call"]
    assert [decode_verdict(entry.note).decision for entry in asked] == [Decision.DENY]  # type: ignore[union-attr]
    assert not looked


async def test_a_job_does_not_go_on_as_another_before_all_that_it_has_asked_has_an_intent() -> None:
    """The question about the first call let the job go on before the second one was noted; a restart then missed an ordinal."""
    home, mail = MemoryStorage(), Mail("read")

    async def f(ctx: DurableContext) -> Any:
        if ctx.message == "again":
            await ctx.wait("go")
            return "over"
        calls = [asyncio.ensure_future(ctx.call(mail.send, to)) for to in ("ann", "bob")]
        await asyncio.wait(calls, timeout=0)
        ctx.continue_as("again")

    async with hosting(home, Agent(f), guard=says(ASK)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
    async with hosting(home, Agent(f), guard=says(ASK)) as jobs:
        jobs.journal.post(Letter("signal", "1", job="j", name="go"))
        await jobs.over("j")
        assert (jobs.agent.done, jobs.agent.blocks) == ({"j": "over"}, {})


@pytest.mark.parametrize(
    "verdict",
    [
        lambda: GuardVerdict(Decision.DENY, reason=42),  # type: ignore[arg-type]
        lambda: GuardVerdict(Decision.WARN, reason={"a": 1}),  # type: ignore[arg-type]
        lambda: GuardVerdict(Decision.DENY, rule="\ud800"),
        lambda: GuardVerdict(Decision.ALLOW, tokens="many"),  # type: ignore[arg-type]
    ],
)
@pytest.mark.parametrize("later", [False, True])
async def test_a_verdict_that_could_not_be_read_again_denies_the_call(
    verdict: Callable[[], GuardVerdict], later: bool
) -> None:
    """It was written, and no later start could open its journal."""

    async def told() -> GuardVerdict:
        return verdict()

    guard = Judge(lambda _: told() if later else verdict())
    made = judge_call(guard, call_of())
    found = made if isinstance(made, GuardVerdict) else await made
    assert found.decision is Decision.DENY
    assert found.reason.startswith("what decides on it has failed: ")
    assert decode_verdict(encode_verdict(found)) == found


async def test_a_rule_that_waits_for_what_was_cancelled_denies_the_call() -> None:
    async def told() -> GuardVerdict:
        other = asyncio.ensure_future(asyncio.sleep(3600))
        asyncio.get_running_loop().call_soon(other.cancel)
        await other
        return GuardVerdict()

    made = judge_call(Judge(lambda _: told()), call_of())
    assert not isinstance(made, GuardVerdict)
    assert (await made).decision is Decision.DENY
    waiting = asyncio.ensure_future(_awaited(judge_call(Judge(lambda _: _never()), call_of())))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def _never() -> GuardVerdict:
    await asyncio.Event().wait()
    return GuardVerdict()


async def _awaited(made: Any) -> Any:
    return await made
