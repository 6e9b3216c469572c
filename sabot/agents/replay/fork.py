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
from typing import Any

import msgspec

from sabot.agents.accounts.guard import LedgerGuard
from sabot.agents.accounts.ledger import Ledger
from sabot.agents.accounts.limits import JobLimits
from sabot.agents.durable.models import ASKS, request_body
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
from sabot.jobs.history import IN_DOUBT
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
from sabot.llm.tools import Tool

FORK_ALLOWS = ("local", "read", "metered")
"""The classes of effects that a fork really makes by default. Children are not among them, because a child may do
anything.
"""

_log = logging.getLogger(__name__)

_CODE = "of a fork"


@dataclass(frozen=True, slots=True)
class Forked:
    """The result of a fork.

    - `outcome`: "succeeded", "failed" or "cancelled", or "waits" if the fork waits for an answer or a signal that
      nobody gives.
    - `result`: the value that the function has returned.
    - `error`: the error that the function has raised.
    - `waits_for`: the thing for which the fork waits, in words.
    - `recording`: the recording of the fork.
    - `first_difference`: the ordinal of the first step that differs from the original job, or None.
    - `unused`: the names in `allow` and `answers` that fit nothing. They name no class of effects, and nothing that the
      job or the fork has asked for, so they may be misspelt.
    - `booked_as`: the job id under which the ledger has the rows of the fork, or "" if there are none.
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
    """Runs the code over the recording up to the result of step `at`, and from there goes on with real calls. Returns
    the outcome.

    Up to that step nothing is called. Effects that the job had asked for before it, and that had no result by then, are
    asked for again. The fork also follows `ctx.continue_as`.

    - `at`: the ordinal of a step. 0 is the beginning, and None is behind everything that is recorded.
    - `answers`: results that are used in place of calls, by name. For a tool it is the return value. For a model ("llm"
      means all models) it is a text or a Completion. For an agent it is the result of the child. For the type of a
      question, or the name of a signal, it is the answer. "confirm" is the answer if `guard` asks for approval of a
      call. For a model it may be a list, with a result for each of several calls.
    - `model`: asked in place of the models that the code names.
    - `prompt`: replaces the instructions in requests to models.
    - `allow`: the classes of effects and the names of tools that are really called. Others are denied.
    - `guard`: decides on the calls in addition to `allow`.
    - `ledger`: judges the calls of the fork by its budgets, and gets their rows, with the time of today and a new job
      id. The caller closes it.
    - `no_wait`: True ends the fork when only time would let it go on: it waits for a timer, or for the deadline of a
      question that nobody answers. False lets the fork wait for that time; the log says for what and how long.
    - `clock`: measures the time of the fork. Its calendar time continues from the last entry that the fork has taken,
      so a deadline is as far away as it was for the job.

    Raises UserError for a recording without entries, or without a result of step `at`. Raises ReplayDifference if the
    code asks for something else than the recording has up to that step.
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
    changes = _Changes(answers or {}, prompt)
    owner = _ForkOwner(code, changes, clock, no_wait=no_wait)

    def run_of(*given: Any, **how: Any) -> JobRun:
        owner.run = _ForkRun(*given, **how, changes=changes, on_answered=owner.answer)
        if owner.run.history.runs <= len(recording.seeds):
            owner.run.set_seed(recording.seeds[owner.run.history.runs - 1])
        return owner.run

    first = _ForkGuard(recording.job_id, frozenset(allow), changes, model)
    guards: list[EffectGuard] = [first, *([] if guard is None else [guard]), JobLimits()]
    booked_as = "" if ledger is None else f"{recording.job_id}/fork-{uuid.uuid4().hex[:12]}"
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
    """Returns the names by which `answers` and `allow` can refer to the effects in these entries. An agent has two
    names: with the id of its app and without it. A request to a model also has two: "llm", and the name of the model.
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
    """Returns the entries up to the result of the step `at`, without the entries of effects that had no result by then.
    Raises UserError if the step has no result.
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
    """Returns for each step, by its ordinal, the number of entries from the first one to the result of the step. The
    key 0 stands for the beginning, which is one entry.
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
    """The changes that a fork makes.

    - `answers`, `prompt`: the arguments of `fork`.
    - `said`: for each model, the number of answers that were already used.
    - `stood_in`: the job id and ordinal of each call that was not made, because an answer was used in its place.
    """

    answers: Mapping[str, Any]
    prompt: str | None
    said: Counter[str] = field(default_factory=Counter)
    stood_in: set[tuple[str, int]] = field(default_factory=set)

    def of(self, name: str) -> str | None:
        """Returns the name under which `answers` has a result for this tool or agent, or None if it has no result."""
        return next((each for each in (name, name.rpartition(".")[2]) if each in self.answers), None)

    def of_model(self, name: str) -> str | None:
        """Returns the name under which `answers` has a result for this model, or None if it has no result."""
        return next((each for each in (name, ASKS) if each in self.answers), None)

    def completion(self, name: str) -> Completion:
        """Returns the next answer that `answers` has for a model. Raises UserError if no answer is left."""
        said = self.answers[name]
        if isinstance(said, list):
            if self.said[name] == len(said):
                raise UserError(f"answers={{{name!r}: …}} has {len(said)} answers, and the fork asks for another one")
            said = said[self.said[name]]
        self.said[name] += 1
        return said if isinstance(said, Completion) else Completion(message=assistant(said), model=name)


def _question(ask: Ask) -> str:
    """Returns the name under which `answers` may have the answer to a waiting effect. If the effect waits for a
    question, it is the type of the question; if it waits for a signal, it is the name of the signal. Returns "" if it
    waits for neither.
    """
    if ask.kind in ("ask", "wait"):
        return ask.name
    return IN_DOUBT if ask.phase is DOUBT and ask.token else CONFIRM if ask.token else ""


def _approval(said: Any, *, of_function: bool) -> Any:
    """Returns the answer to "confirm" in the form in which it is recorded. `of_function` is True for a question that
    the job's function asks; its answer may be more than yes or no. Raises UserError if the answer `said` is wrong for
    the question.
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


class _ForkClock:
    """A clock whose calendar time continues from `since` (seconds since 1970)."""

    def __init__(self, clock: Clock, since: float) -> None:
        self.monotonic = clock.monotonic
        self._behind = since - clock.monotonic()

    def time(self) -> float:
        """Returns the time in seconds since 1970, as if the fork had begun at `since`."""
        return self.monotonic() + self._behind


class _ForkRun(JobRun):
    """A run of a fork's job: `answers` are used in place of some calls, and requests to models have other instructions.
    `on_answered` is a function that is called for each question or signal for which `answers` has an answer, when the
    job waits for it and the question is in the journal.
    """

    def __init__(self, *given: Any, changes: _Changes, on_answered: Callable[[Ask], None], **how: Any) -> None:
        super().__init__(*given, **how)
        self._changes, self._on_answered = changes, on_answered
        self._answered: set[tuple[int, str]] = set()  # ordinals and tokens: an effect may have several questions

    def may_park(self, now_s: float) -> bool:
        """Returns True if the run may be parked. Returns False if `answers` has the answer for which the run waits."""
        answered = [ask for ask in self.open.values() if _question(ask) in self._changes.answers]
        for ask in answered:
            if (named := (ask.ordinal, ask.token)) not in self._answered:
                self._answered.add(named)
                self._on_answered(ask)
        return not answered and super().may_park(now_s)

    def set_seed(self, seed: bytes) -> None:
        """Sets the seed of the random values, so that they are those of the original job."""
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
        return super().call(tool, args, kwargs, body, model=model, **how)


class _ForkGuard(EffectGuard):
    """A guard that allows the classes of effects and the names in `allow`, and calls for which an answer is used
    instead. It denies all others. `model` is asked in place of all other models.
    """

    def __init__(self, job_id: str, allow: frozenset[str], changes: _Changes, model: str) -> None:
        self._job_id, self._allow, self._changes, self._model = job_id, allow, changes, model

    def decide(self, call: GuardedCall) -> GuardVerdict:
        is_model = call.kind == "model"
        if (self._changes.of_model(call.name) if is_model else self._changes.of(call.name)) is not None:
            if call.within is None:  # a call that is asked for within a tool has no stand-in
                self._changes.stood_in.add((call.effect.job, call.effect.ordinal))
            return GuardVerdict()
        if call.kind != "child" and (call.effect_class in self._allow or call.name in self._allow):
            if is_model and self._model:
                return GuardVerdict(Decision.DEGRADE, rule="fork", reason="another model is asked", model=self._model)
            return GuardVerdict()
        kind = "a child" if call.kind == "child" else f"an effect of class {call.effect_class}"
        reason = (
            f"this is a fork of job {self._job_id}, and it is {kind}; answers={{{call.name!r}: …}} stands in for it"
        )
        return GuardVerdict(Decision.DENY, rule="fork", reason=reason)

    def decide_degraded(self, call: GuardedCall) -> GuardVerdict:
        """Allows the call to the other model."""
        return GuardVerdict()


class _ForkLedger(LedgerGuard):
    """The guard that books the calls which a fork really makes in the program's ledger. They are booked at the real
    time, not at that of the fork's clock. They have a job id of their own, because the rows of the original job belong
    to its own effects.
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
        """Does nothing: the recorded effects were booked when they were made."""
        self._durable = journal.flush

    def decide(self, call: GuardedCall) -> GuardVerdict | Awaitable[GuardVerdict]:
        """Decides on a call. If an answer is used in place of the call, the call is allowed and uses nothing."""
        if (call.effect.job, call.effect.ordinal) in self._changes.stood_in:
            return GuardVerdict()
        return super().decide(replace(call, effect=self._own(call.effect)))

    def decide_degraded(self, call: GuardedCall) -> GuardVerdict | Awaitable[GuardVerdict]:
        return super().decide_degraded(replace(call, effect=self._own(call.effect)))

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
    """The owner of a fork's only job (`jobs.owner.JobOwner`). `over_as` is a future that gets the outcome of the fork:
    when its job has ended, or when its job waits for something that nobody will give.
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
        """Ends the fork with an error of the host of its job."""
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
        """Returns the decision to end the job, because a fork does not try a failed job again."""
        self.error = error
        return "end"

    def time_left(self, job: JobRun) -> tuple[float, str] | None:
        return None

    def backoff_s(self, attempt: int) -> float:
        return 0.0

    def begin_child(self, job_id: str, message: Any, *, failed: bool, behalf: Behalf) -> None:
        """Begins no child. Reports to the parent, as the result of the child `job_id`, the value that `answers` has under the
        name of the child's agent. Raises UserError if `answers` has none.
        """
        name, host = self._changes.of(self.run.open[parent_of(job_id)[1]].name), self._host
        if name is None or host is None:
            raise UserError(f"job {job_id} is not begun by a fork")
        host.child_not_begun(job_id, "succeeded", pack(self._changes.answers[name], f"the result of job {job_id}"))

    def continued(self, job: JobRun, message: Any) -> bytes:
        return self._code.continued(job, message)

    def parked(self, job_id: str) -> None:
        """Ends the fork if its job waits for a person, or if the job waits for a time and `no_wait` is True. Otherwise
        logs what the job waits for.
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
        if answer := question or (ask.name if ask.kind == "child" else ""):
            words += f": answers={{{answer!r}: …}} (--answer {answer}=JSON) answers it"
        return words

    def answer(self, ask: Ask) -> None:
        """Answers the question of an effect with the value in `answers`. The answer does not go through the inbox of
        the journal, so no deadline is checked.
        """
        host, job_id = self._host, self.run.job_id
        assert host is not None
        question = _question(ask)
        said = self._changes.answers[question]
        if question == CONFIRM and ask.kind != "wait":
            try:
                said = _approval(said, of_function=ask.kind == "ask")
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
        """Sets the host of the fork."""
        self._host = host

    def blocked(self, job_id: str, error: NonDeterminism) -> None:
        self.broken("the job", ReplayDifference(f"job {job_id}, before the fork: {error.message}"))

    def job_closed(self, job_id: str, outcome: str) -> None:
        self._is_over(outcome)

    def had_ended(self, job: OpenJob) -> None:
        """Does nothing: a fork's journal has one job, which is open."""
