"""A fork runs a job again from one of its steps, with another model, prompt or tool. By default it changes nothing outside.

recording ─▶ entries up to the result of step `at` ─▶ a journal in memory ─▶ the code runs over them ─▶ goes on live
         ─▶ a new recording
"""

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import wraps
from typing import Any

import msgspec

from sabot.agents.accounts.guard import LedgerGuard
from sabot.agents.accounts.ledger import Ledger
from sabot.agents.accounts.limits import JobLimits
from sabot.agents.durable.models import request_body
from sabot.agents.entry_values import as_plain
from sabot.agents.job_view import JobView
from sabot.agents.replay.recording import Recording, record_job
from sabot.agents.replay.verification import JobCode, ReplayDifference, steps_of
from sabot.base.checks import TEXTS, Of, check
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import NonDeterminism, UserError, short_repr
from sabot.jobs.core import DOUBT
from sabot.jobs.events import Arrived
from sabot.jobs.fork_history import part_of
from sabot.jobs.guard import (
    CONFIRM,
    NO_OBJECTION,
    Behalf,
    CallKind,
    DecidedEffect,
    Decision,
    EffectGuard,
    GuardedCall,
    GuardVerdict,
    decode_verdict,
    guard_of,
)
from sabot.jobs.history import ASKS, IN_DOUBT, LOOK_UP, VERDICTS
from sabot.jobs.host import JobHost
from sabot.jobs.owner import AfterFailure, OpenJob
from sabot.jobs.run import Ask, JobRun, effect_words
from sabot.jobs.tree import parent_of
from sabot.jobs.values import pack, unpack
from sabot.journal import Journal
from sabot.journal.effects import EffectClass, EffectId
from sabot.journal.entries import Answer, Begin, End, Entry, Intent, Signal
from sabot.journal.memory import MemoryJournal, MemoryReader, MemoryStorage
from sabot.llm.messages import assistant, system
from sabot.llm.results import Completion
from sabot.llm.tools import Effect, Tool

FORK_ALLOWS = ("local", "read", "metered")
"""The classes of effects that a fork really makes by default. Children are not among them, because a child may do
anything.
"""

_log = logging.getLogger(__name__)

_CODE = "of a fork"


@dataclass(frozen=True, slots=True)
class Forked:
    """The result of a fork (`fork`).

    - `outcome`: "succeeded", "failed" or "cancelled"; or "waits" if the fork has ended while its job waits for an
      answer, a signal or a time.
    - `result`: the value that the function has returned, as JSON types.
    - `error`: the error that the function has raised, or None.
    - `recording`: the recording of the fork.
    - `first_difference`: the ordinal of the first step that differs from the original job, or None.
    - `unused`: the names in `allow` and `answers` that may be misspelt: no effect class has this name, and nothing with
      this name was called or requested in the job or the fork.
    - `waits_for`: descriptions of the things for which the job waits, if the outcome is "waits".
    - `booked_as`: the job id under which the ledger has the usage of the fork, or "" if there is no ledger.
    """

    outcome: str
    result: Any
    error: BaseException | None
    recording: Recording
    first_difference: int | None
    unused: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    booked_as: str = ""


async def fork(
    recording: Recording,
    code: JobCode,
    *,
    at: int | None,
    answers: Mapping[str, Any] | None = None,
    model: str = "",
    prompt: str | None = None,
    allow: Collection[str] = FORK_ALLOWS,
    guard: EffectGuard | None = None,
    ledger: Ledger | None = None,
    no_wait: bool = False,
    clock: Clock = SYSTEM_CLOCK,
) -> Forked:
    """Runs the code of a job again, over the recorded results up to and including that of step `at`. From there the
    code continues with real calls. The fork has a journal of its own in memory. Returns the result of the fork when its
    job has ended, or when it waits for something that will not come.

    Up to step `at` nothing is called. An effect that was requested before that place, but had no result there yet, is
    requested again. After `ctx.continue_as` the fork continues with the new input.

    `answers` contains values that are used instead of calls. The key decides what a value is:

    - The name of a tool: the return value of the tool.
    - The name of a model, or "llm" for all models: a text or a Completion, or a list with one of these for each call.
    - The name of an agent: the result of the child job.
    - The type of a question, or the name of a signal: the answer.
    - "confirm": the answer if `guard` requires an approval of a call.
    - "in_doubt": the answer if nobody knows whether a call of the fork was made. It is used once for each call.

    The other arguments are:

    - `at`: the ordinal of a step. 0 means the beginning of the job, and None means the end of everything that is
      recorded.
    - `model`: the model that is called instead of the models that the code names; "" changes nothing.
    - `prompt`: the text that replaces the instructions in requests to models; None changes nothing.
    - `allow`: the effect classes and the names of tools that are really called. By default these are the classes
      "local", "read" and "metered". All other calls are denied. A tool whose class comes from the hints of an MCP
      server only is "unsafe" here. Calls that are made have other idempotency keys than those of the job.
    - `guard`: a policy that also decides on the calls. None means no policy.
    - `ledger`: a ledger whose budgets limit the calls of the fork, and which records their usage, with the present time
      and a new job id. The caller closes it.
    - `no_wait`: True ends the fork when its job waits for a time: a timer, or the deadline of a question. With False
      the fork waits for that time, and logs for what it waits and how long.
    - `clock`: the clock that measures time in the fork. The time of day in the fork continues from the last recorded
      entry, so a deadline is as far away as it was in the original job.

    The limit `max_runtime_seconds` of the job does not apply to the fork. Raises these errors:

    - UserError for a recording without entries, or without a result of step `at`, and if the value of "confirm" or
      "in_doubt" is no answer to such a question.
    - ReplayDifference if the code requests other effects up to step `at` than the recording has.
    """
    check("fork: recording", recording, Of(Recording, "what record_job has recorded"))
    check("fork: code", code, Of(JobCode, "code_of(agent.spec)"))
    check("fork: allow", allow, TEXTS)
    entries = _entries_until(recording, at)
    today = clock
    clock = _ForkClock(clock, max(entry.at_ms for entry in entries) / 1000)
    storage = MemoryStorage(clock)
    storage.key = recording.key
    journal = MemoryJournal(storage)
    for entry in entries:
        journal.append(entry)
    fork_id = f"{recording.job_id}/fork-{uuid.uuid4().hex[:12]}"
    changes = _Changes(answers or {}, prompt)
    owner = _ForkOwner(code, changes, clock, no_wait=no_wait)

    def run_of(*given: Any, **how: Any) -> JobRun:
        owner.run = _ForkRun(*given, **how, changes=changes, fork_id=fork_id, on_answered=owner.answer)
        if owner.run.history.runs <= len(recording.seeds):
            owner.run.set_seed(recording.seeds[owner.run.history.runs - 1])
        return owner.run

    first = _ForkGuard(recording.job_id, frozenset(allow), changes, model)
    guards: list[EffectGuard] = [first, *([] if guard is None else [guard]), JobLimits()]
    booked_as = "" if ledger is None else fork_id
    if ledger is not None:
        guards.append(_ForkLedger(ledger, recording.job_id, booked_as, changes, today))
    host = JobHost(
        journal, clock=clock, on_broken=owner.broken, stop_grace_s=0.0, guard=guard_of(guards), make_run=run_of
    )
    agent = next(entry.agent for entry in entries if isinstance(entry, Begin))
    owner.hosted(host)
    host.register(agent, owner)
    for name in changes.answers:  # it stands in for their children
        host.register(name if "." in name else f"{agent.rpartition('.')[0]}.{name}", owner)
    try:
        found = await host.open(None)
        host.start()
        for job in found:
            host.resume(job)
        outcome = await owner.over_as
    finally:
        await host.close()
        journal.close()
    made = record_job(MemoryReader(storage), recording.job_id)
    seeds = (*recording.seeds, *made.seeds[len(recording.seeds) :])
    made = replace(made, initial_input=recording.initial_input, seeds=seeds)
    named = _asked_for(recording.entries) | _asked_for(made.entries) | {each.value for each in EffectClass}
    unused = tuple(each for each in (*allow, *changes.answers) if each not in named)
    difference = _first_difference(recording, made)
    return Forked(outcome, owner.value, owner.error, made, difference, unused, owner.waits_for, booked_as)


def _asked_for(entries: Sequence[Entry]) -> set[str]:
    """Returns the names by which the arguments `answers` and `allow` of `fork` can refer to the effects in these
    entries. An agent has two names: with the id of its app and without it. A request to a model also has two names:
    "llm" and the name of the model.
    """
    found = set[str]()
    for entry in entries:
        if isinstance(entry, Intent):
            verdict = decode_verdict(entry.note)
            found |= {entry.name, entry.name.rpartition(".")[2]}
            if verdict is not None:
                found |= {verdict.about, verdict.model}
    return found


def _entries_until(recording: Recording, at: int | None) -> list[Entry]:
    """Returns the recorded entries up to the result of the step with the ordinal `at`, or all entries before the END if
    `at` is None. Leaves out the entries of effects that had no result yet when that result came. Raises UserError if
    the recording has no entries, or no result of the step.
    """
    entries = recording.entries
    if not entries:
        raise UserError(
            "the recording has events only", hint="record_job(reader, job_id) records what code can run over"
        )
    places = _places(entries)
    if at is None:
        end = isinstance(entries[-1], End)
        return part_of(entries[: len(entries) - end]).settled
    if at not in places:
        steps = [entry.ordinal for entry in entries if isinstance(entry, Intent)]
        had = f"its steps are 1 to {max(steps)}" if steps else "it has no step"
        raise UserError(f"the recording of job {recording.job_id} has no result of step {at}: {had}")
    return part_of(entries[: places[at]]).settled


def _places(entries: Sequence[Entry]) -> dict[int, int]:
    """Returns the number of entries from the beginning of the recording up to the result of a step, by the ordinal of
    the step. Steps without a result are left out. The ordinal 0 stands for the beginning of the job, which is one
    entry.
    """
    view, places = JobView(), {0: 1}
    for count, entry in enumerate(entries, 1):
        over = [each for each in view.apply(entry).effects if each.ended_at is not None and each.state != "closed"]
        places |= {each.intent.ordinal: count for each in over}
    return places


def _first_difference(recording: Recording, made: Recording) -> int | None:
    before = {step["ordinal"]: step for step in steps_of(recording)}
    after = {step["ordinal"]: step for step in steps_of(made)}
    return next((at for at in sorted(before | after) if before.get(at) != after.get(at)), None)


@dataclass(slots=True)
class _Changes:
    """The changes that a fork makes to a recorded job.

    - `answers`, `prompt`: the arguments of `fork`.
    - `said`: the number of values of a model that were used already, by the key of the model in `answers`.
    - `stood_in`: the job id and the ordinal of each call that was not made, because a value of `answers` was used
      instead.
    - `doubts`: by the ordinal of a call, the token of the first question whether the call was made.
    """

    answers: Mapping[str, Any]
    prompt: str | None
    said: Counter[str] = field(default_factory=Counter)
    stood_in: set[tuple[str, int]] = field(default_factory=set)
    doubts: dict[int, str] = field(default_factory=dict)

    def of(self, name: str) -> str | None:
        """Returns the key of `answers` that fits a tool or an agent with this name: the name itself, or the name
        without the id of the app. Returns None if there is none.
        """
        return next((each for each in (name, name.rpartition(".")[2]) if each in self.answers), None)

    def of_model(self, name: str) -> str | None:
        """Returns the key of `answers` that fits the model with this name: the name itself, or "llm". Returns None if
        there is none.
        """
        return next((each for each in (name, ASKS) if each in self.answers), None)

    def answers_question(self, ask: Ask) -> bool:
        """Returns True if `answers` has the answer for which an effect waits. Returns False if it is asked again whether
        a call was made: with the same answer, the call could be repeated without end.
        """
        question = _question(ask)
        if question not in self.answers:
            return False
        return not _is_doubt(ask) or self.doubts.setdefault(ask.ordinal, ask.token) == ask.token

    def completion(self, name: str) -> Completion:
        """Returns the next value in `answers` for a model, as a Completion. `name` is the key in `answers`. Raises
        UserError if the value is no text and no Completion, or if it is a list whose items were all used already.
        """
        said = self.answers[name]
        if isinstance(said, list):
            if self.said[name] == len(said):
                raise UserError(f"answers={{{name!r}: …}} has {len(said)} answers, and the fork asks for another one")
            said = said[self.said[name]]
        self.said[name] += 1
        if isinstance(said, Completion):
            return said
        if not isinstance(said, str):
            raise UserError(
                f"answers={{{name!r}: …}} has the answer {short_repr(said)}",
                hint="a text, a Completion, or a list of these",
            )
        return Completion(message=assistant(said), model=name)


def _question(ask: Ask) -> str:
    """Returns the key under which `answers` may have the answer for which an effect waits: the type of a question, or
    the name of a signal. It is "confirm" or "in_doubt" if a person is asked about the effect. Returns "" if the effect
    waits for something else.
    """
    if ask.kind in ("ask", "wait"):
        return ask.name
    return IN_DOUBT if _is_doubt(ask) else CONFIRM if ask.token else ""


def _is_doubt(ask: Ask) -> bool:
    """Returns True if a person is asked whether the call `ask` was made."""
    return ask.kind not in ("ask", "wait") and ask.phase is DOUBT and bool(ask.token)


def _approval(said: Any, *, of_function: bool) -> Any:
    """Converts the value `said`, which the user has given for "confirm", to the form in which the journal stores an
    approval ({"approved": True}). If the function of the job has asked the question itself (`of_function`), any value
    other than a dict is also accepted, and returned unchanged. Raises UserError for a value of another form.
    """
    if isinstance(said, bool):
        return {"approved": said}
    if isinstance(said, dict) and isinstance(said.get("approved", False if of_function else None), bool):
        return said
    if of_function and not isinstance(said, dict):
        return said
    raise UserError(
        f"answers={{{CONFIRM!r}: {short_repr(said)}}} says neither yes nor no",
        hint='true or false, or {"approved": true}, as in --answer confirm=true',
    )


def _checked_verdict(said: Any, ask: Ask) -> Any:
    """Returns the value `said`, which the user has given for "in_doubt", if it says whether the call `ask` was made.
    Otherwise raises UserError. Without this check, the job would treat the value as "abandon".
    """
    words = (*VERDICTS, LOOK_UP) if ask.effect_class == EffectClass.RECONCILABLE else VERDICTS
    if isinstance(said, dict) and said.get("outcome", said.get("answer")) in words:
        return said
    raise UserError(
        f"answers={{{IN_DOUBT!r}: {short_repr(said)}}} does not say whether call {ask.model or ask.name} was made",
        hint=f'{{"outcome": …}} with one of {", ".join(words)}; "done" may have a "result" too',
    )


class _ForkClock:
    """A clock whose time of day begins at `since` (seconds since 1970), and then continues with the
    speed of `clock`.
    """

    def __init__(self, clock: Clock, since: float) -> None:
        self.monotonic = clock.monotonic
        self._behind = since - clock.monotonic()

    def time(self) -> float:
        """Returns the time of the fork in seconds since 1970. It was `since` when this clock was made."""
        return self.monotonic() + self._behind


class _ForkRun(JobRun):
    """The execution of a fork's job. For calls that `answers` names, the value there is used instead. `prompt` replaces
    the instructions in requests to models. Requests that the original job has recorded are not changed. A call that is
    really made has an idempotency key made of `fork_id`: with the key of the step with its number in the original job, a
    service would drop it.

    `on_answered` is a function that is called when the job waits for a question or a signal for which `answers` has an
    answer. It is called once for each of them.
    """

    def __init__(
        self, *given: Any, changes: _Changes, fork_id: str, on_answered: Callable[[Ask], None], **how: Any
    ) -> None:
        super().__init__(*given, **how)
        self._changes, self._fork_id, self._on_answered = changes, fork_id, on_answered
        self._answered: set[tuple[int, str]] = set()  # ordinals and tokens: an effect may have several questions

    def may_park(self, now_s: float) -> bool:
        """Returns True if the job may be removed from memory while it waits. Returns False if `answers` has an answer
        for which the job waits, and calls `on_answered` for it.
        """
        answered = [ask for ask in self.open.values() if self._changes.answers_question(ask)]
        for ask in answered:
            if (named := (ask.ordinal, ask.token)) not in self._answered:
                self._answered.add(named)
                self._on_answered(ask)
        return not answered and super().may_park(now_s)

    def set_seed(self, seed: bytes) -> None:
        """Sets the seed of the job's random values, so that they are the same as in the original job."""
        self._seed = seed

    def call(
        self, tool: Tool, args: tuple[Any, ...], kwargs: Mapping[str, Any], body: bytes, *, model: str = "", **how: Any
    ) -> "asyncio.Future[Any]":
        changes, prompt = self._changes, self._changes.prompt
        if model and prompt is not None and not self.is_recorded(tool.name, body):
            spec = args[0]
            others = (each for each in spec.messages if each.role != "system")
            spec = msgspec.structs.replace(spec, messages=(system(prompt), *others))
            args, body = (spec, *args[1:]), request_body(spec)
        name = changes.of_model(model) if model else changes.of(tool.name)
        if name is not None:

            async def stand_in(*_: Any, **__: Any) -> Any:
                return changes.completion(name) if model else changes.answers[name]

            tool = replace(tool, func=stand_in, takes_effect=False, is_async=True, reconcile=None)
        elif tool.takes_effect or tool.reconcile is not None:
            tool = self._with_own_key(tool)
        return super().call(tool, args, kwargs, body, model=model, **how)

    def _with_own_key(self, tool: Tool) -> Tool:
        func, look = tool.func, tool.reconcile

        def own(effect: Effect) -> Effect:
            return replace(effect, key=EffectId(self._fork_id, effect.id.ordinal).key)

        @wraps(func)
        def called(*args: Any, effect: Effect, **kwargs: Any) -> Any:
            return func(*args, effect=own(effect), **kwargs)

        def looked(effect: Effect, *args: Any, **kwargs: Any) -> Any:
            assert look is not None
            return look(own(effect), *args, **kwargs)

        return replace(tool, func=called if tool.takes_effect else func, reconcile=None if look is None else looked)


class _ForkGuard(EffectGuard):
    """The first of the guards that decide on the calls of a fork. It allows calls for which `answers` has a value, and
    calls whose declared effect class or name is in `allow`. It denies all other calls. If `model` is not "", allowed requests to
    models use this model.
    """

    def __init__(self, job_id: str, allow: frozenset[str], changes: _Changes, model: str) -> None:
        self._job_id, self._allow, self._changes, self._model = job_id, allow, changes, model

    def decide(self, call: GuardedCall) -> GuardVerdict:
        is_model = call.kind == "model"
        if (self._changes.of_model(call.name) if is_model else self._changes.of(call.name)) is not None:
            if call.within is None:  # a call that is asked for within a tool has no stand-in
                self._changes.stood_in.add((call.effect.job, call.effect.ordinal))
            return NO_OBJECTION
        by_hint = call.tool is not None and call.tool.by_hint
        declared = EffectClass.UNSAFE if by_hint else call.effect_class
        if call.kind != "child" and (declared in self._allow or call.name in self._allow):
            if is_model and self._model:
                return GuardVerdict(Decision.DEGRADE, rule="fork", reason="another model is asked", model=self._model)
            return NO_OBJECTION
        kind = "a child" if call.kind == "child" else f"an effect of class {call.effect_class}"
        ways = f"answers={{{call.name!r}: …}} stands in for it"
        if by_hint:
            kind += " by the hints of its MCP server only"
            ways += f"; pool.tools(…, effects=…) declares its class, and allow=[{call.name!r}] makes it"
        reason = f"this is a fork of job {self._job_id}, and it is {kind}; {ways}"
        return GuardVerdict(Decision.DENY, rule="fork", reason=reason)

    def decide_degraded(self, call: GuardedCall) -> GuardVerdict:
        """Allows the call after its model was replaced by the model of the fork."""
        return NO_OBJECTION


class _ForkLedger(LedgerGuard):
    """The last of the guards that decide on the calls of a fork. It checks the budgets of a ledger, and records the
    usage of the real calls there. The rows have the present time, and not the time of the fork's clock. They also have
    another job id, so that they do not collide with the rows of the original job.
    """

    def __init__(self, ledger: Ledger, job_id: str, booked_as: str, changes: _Changes, clock: Clock) -> None:
        super().__init__(ledger, closes=False)
        self._job_id, self._booked_as, self._changes, self._today = job_id, booked_as, changes, clock

    def _own(self, effect: EffectId) -> EffectId:
        return EffectId(self._own_job(effect.job), effect.ordinal, effect.attempt)

    def _own_job(self, job_id: str) -> str:
        return self._booked_as + job_id.removeprefix(self._job_id)

    def _now_ms(self) -> int:
        return round(self._today.time() * 1000)

    async def open(self, journal: Journal) -> None:
        """Prepares the guard for a journal. Records nothing for the effects that the journal already has, because their
        usage was recorded when the original job made them.
        """
        self._durable = journal.flush

    def decide(self, call: GuardedCall) -> GuardVerdict | Awaitable[GuardVerdict]:
        """Decides on a call by the budgets of the ledger. If a value of `answers` is used instead of the call, allows
        the call without a check, and records no usage for it.
        """
        if (call.effect.job, call.effect.ordinal) in self._changes.stood_in:
            return NO_OBJECTION
        return super().decide(msgspec.structs.replace(call, effect=self._own(call.effect)))

    def decide_degraded(self, call: GuardedCall) -> GuardVerdict | Awaitable[GuardVerdict]:
        return super().decide_degraded(msgspec.structs.replace(call, effect=self._own(call.effect)))

    def drop(self, effect: EffectId) -> None:
        super().drop(self._own(effect))

    def settle(self, effect: EffectId, kind: CallKind, name: str, outcome: str, body: bytes, at_ms: int) -> bytes:
        return super().settle(self._own(effect), kind, name, outcome, body, self._now_ms())

    def reopen(self, effect: EffectId, agent: str, behalf: Behalf, decided: DecidedEffect) -> None:
        if (effect.job, effect.ordinal) not in self._changes.stood_in:
            super().reopen(self._own(effect), agent, behalf, decided)

    def decide_again(self, effect: EffectId) -> GuardVerdict | Awaitable[GuardVerdict | None] | None:
        return super().decide_again(self._own(effect))

    def end_job(self, job_id: str, at_ms: int) -> bytes:
        return super().end_job(self._own_job(job_id), self._now_ms())

    def forget_job(self, job_id: str) -> None:
        super().forget_job(self._own_job(job_id))


class _ForkOwner:
    """The object that is responsible for the one job of a fork: it is its `JobOwner`, whose methods the JobHost of the
    fork calls. `over_as` is a future. Its result is the outcome of the fork (`Forked.outcome`), and it is set when the
    job ends, or when the job waits for something that will not come.
    """

    leaves_at_once = sleep_counts = False
    code = _CODE

    def __init__(self, code: JobCode, changes: _Changes, clock: Clock, *, no_wait: bool) -> None:
        self._changes, self._clock, self._no_wait = changes, clock, no_wait
        self._said: set[int] = set()  # ordinals of the effects that the log has named as waited for
        self.waits_for: tuple[str, ...] = ()
        self.run: JobRun
        self.value: Any = None
        self.error: BaseException | None = None
        self.over_as: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._code = code
        self._host: JobHost | None = None

    def broken(self, what: str, error: BaseException) -> None:
        """Ends the fork: `fork` raises `error`. The JobHost that runs the job calls this if one of its parts has
        failed; `what` is the name of that part.
        """
        if not self.over_as.done():
            self.over_as.set_exception(error)

    def _is_over(self, outcome: str) -> None:
        if not self.over_as.done():
            self.over_as.set_result(outcome)

    def call(self, job: JobRun) -> Coroutine[Any, Any, Any]:
        return self._code.call(job)

    def ended(self, job: JobRun, value: Any) -> bytes:
        body = self._code.packed(job, value)
        self.value = as_plain(unpack(body))
        return body

    def failed(self, job: JobRun, error: BaseException) -> AfterFailure:
        """Stores the error of the job for the result of the fork. Returns "end", because a fork does not try a failed
        job again.
        """
        self.error = error
        return "end"

    def time_left(self, job: JobRun) -> tuple[float, str] | None:
        return None

    def backoff_s(self, attempt: int) -> float:
        return 0.0

    def begin_child(self, job_id: str, message: Any, *, failed: bool, behalf: Behalf) -> None:
        """Gives the job the result of a child job, without a child: the value that `answers` has for the agent of the
        child. `job_id` is the id that the child would have. Raises UserError if `answers` has no value for that agent.
        """
        name, host = self._changes.of(self.run.open[parent_of(job_id)[1]].name), self._host
        if name is None or host is None:
            raise UserError(f"job {job_id} is not begun by a fork")
        host.child_not_begun(job_id, "succeeded", pack(self._changes.answers[name], f"the result of job {job_id}"))

    def continued(self, job: JobRun, message: Any) -> bytes:
        return self._code.continued(job, message)

    def parked(self, job_id: str) -> None:
        """Decides what follows when the job waits for something that takes long:

        - If the job waits for a child job whose result is in `answers`, does nothing.
        - If `no_wait` is True, or if nothing for which the job waits has a time (a timer or a deadline), ends the fork
          with the outcome "waits".
        - Otherwise logs for what the job waits, and lets it wait.
        """
        asks = self.run.open.values()
        if any(ask.kind == "child" and not ask.token and self._changes.of(ask.name) is not None for ask in asks):
            return
        if self._no_wait or not any(ask.due_ms for ask in asks):
            self.waits_for = tuple(map(self._words, asks))
            self._is_over("waits")
        elif new := [ask for ask in asks if ask.ordinal not in self._said]:
            self._said |= {ask.ordinal for ask in new}
            what = "; ".join(map(self._words, new))
            _log.warning("the fork of job %s waits for %s; no_wait=True (--no-wait) ends it there", job_id, what)

    def _words(self, ask: Ask) -> str:
        words, question = f"{effect_words(ask.kind, ask.model or ask.name)} (step {ask.ordinal})", _question(ask)
        if question in (CONFIRM, IN_DOUBT) and ask.kind != "ask":
            words = f"a person who says whether {words} {'may be' if question == CONFIRM else 'was'} made"
        if ask.due_ms:
            left_s = max(0, round(ask.due_ms / 1000 - self._clock.time()))
            words += f", for {timedelta(seconds=left_s)}"
        if _is_doubt(ask) and ask.ordinal in self._changes.doubts:
            words += ", and was asked before"
        elif answer := question or (ask.name if ask.kind == "child" else ""):
            words += f": answers={{{answer!r}: …}} (--answer {answer}=JSON) answers it"
        return words

    def answer(self, ask: Ask) -> None:
        """Answers the question, or sends the signal, for which the effect `ask` waits, with the value in `answers`. A
        deadline of the question is not checked. If the value is no valid answer to a question about a call, the fork ends
        with a UserError.
        """
        host, job_id = self._host, self.run.job_id
        assert host is not None
        question = _question(ask)
        said = self._changes.answers[question]
        try:
            if question == CONFIRM and ask.kind != "wait":
                said = _approval(said, of_function=ask.kind == "ask")
            elif _is_doubt(ask):
                said = _checked_verdict(said, ask)
        except UserError as error:
            self.broken("an answer", error)
            return
        body, at_ms, token = msgspec.json.encode(said), host.now_ms(), ask.token
        entry: Answer | Signal = Answer(job_id, at_ms, ask.ordinal, token, "resolved", body, "fork")
        if ask.kind == "wait":
            entry = Signal(job_id, at_ms, ask.name, f"fork {ask.ordinal}", body, "fork")
        host.put(Arrived(entry, ask))

    def woken(self, job_id: str) -> None:
        assert self._host is not None
        self._host.parking.wake(job_id)

    def hosted(self, host: JobHost) -> None:
        """Sets the JobHost that runs the job of the fork."""
        self._host = host

    def blocked(self, job_id: str, error: NonDeterminism) -> None:
        self.broken("the job", ReplayDifference(f"job {job_id}, before the fork: {error.message}"))

    def job_closed(self, job_id: str, outcome: str) -> None:
        self._is_over(outcome)

    def had_ended(self, job: OpenJob) -> None:
        """Does nothing, because the one job in the journal of a fork is always open."""
