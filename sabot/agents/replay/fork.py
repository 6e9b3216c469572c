"""A fork runs a job again from one of its steps, with another model, prompt or tool. By default it changes nothing outside.

recording ─▶ entries up to the result of step `at` ─▶ a journal in memory ─▶ the code runs over them ─▶ goes on live
         ─▶ a new recording
"""

import asyncio
import logging
import uuid
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import msgspec

from sabot.agents.accounts.job_limits import JobLimits
from sabot.agents.accounts.ledger import Ledger
from sabot.agents.durable.models import request_body
from sabot.agents.entry_values import as_plain
from sabot.agents.replay.answers import ForkAnswers, names_asked_for
from sabot.agents.replay.fork_guards import ForkGuard, ForkLedger
from sabot.agents.replay.recording import Recording, entries_until, record_job
from sabot.agents.replay.verification import JobCode, ReplayDifference, first_difference
from sabot.base.checks import TEXTS, Of, check
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.engine.calls.effects import EffectClass, EffectId
from sabot.engine.calls.judging import refuse_without_rules
from sabot.engine.calls.messages import system
from sabot.engine.calls.tool_context import EFFECT, Effect
from sabot.engine.calls.tools import Tool
from sabot.errors import NonDeterminism, UserError
from sabot.jobs.events import Arrived
from sabot.jobs.fork_history import doubted_calls
from sabot.jobs.guard import Behalf, EffectGuard, guard_of
from sabot.jobs.host import JobHost
from sabot.jobs.owner import AfterFailure, OpenJob
from sabot.jobs.run import Ask, JobRun
from sabot.jobs.tree import parent_of
from sabot.jobs.values import pack, unpack
from sabot.journal.entries import Begin, Entry, Intent
from sabot.journal.memory import MemoryJournal, MemoryReader, MemoryStorage

FORK_ALLOWS = ("local", "read", "metered")
"""The classes of effects that a fork really makes by default. Children are not among them: a child may do anything."""

_log = logging.getLogger(__name__)


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
    - "confirm": the answer if `guard` requires an approval of a call. Approvals of the recorded job ("always") hold for no
      call of the fork.
    - "in_doubt": the answer if nobody knows whether a call of the fork was made. It is used once for each call.

    The other arguments are:

    - `at`: the ordinal of a step. 0 means the beginning of the job, and None means the end of everything that is
      recorded.
    - `model`: the model that is called instead of the models that the code names; "" changes nothing.
    - `prompt`: the text that replaces the instructions in requests to models; None changes nothing.
    - `allow`: the effect classes and the names of tools that are really called. By default these are the classes
      "local", "read" and "metered". All other calls are denied. A tool whose class comes from the hints of an MCP
      server only is "unsafe" here. Calls that are made have other idempotency keys than those of the job. So a call of the
      job of which nobody knows whether it was made is not made again, unless "in_doubt" says {"outcome": "not_done"}.
    - `guard`: a policy that also decides on the calls. None means that of the app or kernel to which the code belongs;
      `PolicyEngine([])` is none.
    - `ledger`: a ledger whose budgets limit the calls of the fork, and which records their usage, with the present time
      and a new job id. The caller closes it. None means that of the app or kernel to which the code belongs.
    - `no_wait`: True ends the fork when its job waits for a time: a timer, or the deadline of a question. With False
      the fork waits for that time, and logs for what it waits and how long.
    - `clock`: the clock that measures time in the fork. The time of day in the fork continues from the last recorded
      entry, so a deadline is as far away as it was in the original job.

    The limit `max_runtime_seconds` of the job does not apply to the fork. Raises these errors:

    - UserError for a recording without entries, or without a result of step `at`, if the value of "confirm" or
      "in_doubt" is no answer to such a question, and if `allow` has a call that the job may have made already.
    - ReplayDifference if the code requests other effects up to step `at` than the recording has.
    """
    check("fork: recording", recording, Of(Recording, "what record_job has recorded"))
    check("fork: code", code, Of(JobCode, "code_of(agent.spec)"))
    check("fork: allow", allow, TEXTS)
    entries = entries_until(recording, at)
    changes = ForkAnswers(answers or {}, prompt)
    _refuse_doubts(recording, entries, frozenset(allow), changes)
    guard = code.policy if guard is None else guard
    ledger = await code.accounts() if ledger is None and code.accounts is not None else ledger
    given = {"policy": guard, "budgets": ledger}
    refuse_without_rules(
        f"a fork of job {recording.job_id}", [name for name, each in given.items() if each is not None]
    )
    today = clock
    clock = _ForkClock(clock, max(entry.at_ms for entry in entries) / 1000)
    storage = MemoryStorage(clock)
    storage.key = recording.key
    journal = MemoryJournal(storage)
    for entry in entries:
        journal.append(entry)
    fork_id = f"{recording.job_id}/fork-{uuid.uuid4().hex[:12]}"
    owner = _ForkOwner(code, changes, clock, no_wait=no_wait)

    def run_of(*given: Any, **how: Any) -> JobRun:
        first_run = not hasattr(owner, "run")
        owner.run = _ForkRun(*given, **how, changes=changes, fork_id=fork_id, on_answered=owner.answer)
        if first_run:  # "always" was said of the calls of the recorded job, and of others that run
            owner.run.history.standing.clear()
            host.standing.clear()
        if owner.run.history.runs <= len(recording.seeds):
            owner.run.set_seed(recording.seeds[owner.run.history.runs - 1])
        return owner.run

    first = ForkGuard(recording.job_id, frozenset(allow), changes, model)
    guards: list[EffectGuard] = [first, *([] if guard is None else [guard]), JobLimits()]
    booked_as = "" if ledger is None else fork_id
    if ledger is not None:
        guards.append(ForkLedger(ledger, recording.job_id, booked_as, changes, today))
    host = JobHost(
        journal, clock=clock, on_broken=owner.broken, stop_grace_s=0.0, guard=guard_of(guards), make_run=run_of
    )
    agent = next(entry.agent for entry in entries if isinstance(entry, Begin))
    owner.host = host
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
    named = names_asked_for(recording.entries) | names_asked_for(made.entries) | {each.value for each in EffectClass}
    unused = tuple(each for each in (*allow, *changes.answers) if each not in named)
    difference = first_difference(recording, made)
    return Forked(outcome, owner.value, owner.error, made, difference, unused, owner.waits_for, booked_as)


def _refuse_doubts(recording: Recording, kept: Sequence[Entry], allow: Collection[str], changes: ForkAnswers) -> None:
    """Raises UserError if the fork, which begins with the entries `kept`, could make a call of the job again of which nobody
    knows whether it was made. The call of the fork has another idempotency key, so no service would drop it.
    """
    if changes.not_done:
        return
    steps = {entry.ordinal for entry in kept if isinstance(entry, Intent)}
    for call in doubted_calls(recording.entries):
        if call.ordinal in steps or changes.of(call.name) is not None or not {call.name, call.effect_class} & {*allow}:
            continue
        raise UserError(
            f"the fork may call {call.name} a second time: job {recording.job_id} has called it (step {call.ordinal}), and "
            "nobody knows whether it was done",
            hint="find that out first (`sabot actions list`, `sabot actions resolve TOKEN --done` or `--not-done`), and "
            f"record the job anew. In a fork, answers={{{call.name!r}: …}} stands in for the call, and "
            "answers={'in_doubt': {'outcome': 'not_done'}} says that it was not made",
        )


class _ForkClock:
    """A clock whose time of day begins at `since` (seconds since 1970), and continues with the speed of `clock`."""

    def __init__(self, clock: Clock, since: float) -> None:
        self.monotonic = clock.monotonic
        self._behind = since - clock.monotonic()

    def time(self) -> float:
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
        self, *given: Any, changes: ForkAnswers, fork_id: str, on_answered: Callable[[Ask], None], **how: Any
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

            tool = replace(tool, func=stand_in, takes_effect=False, takes_context="", is_async=True, reconcile=None)
        elif tool.takes_effect or tool.takes_context or tool.reconcile is not None:
            tool = self._with_own_key(tool)
        return super().call(tool, args, kwargs, body, model=model, **how)

    def _with_own_key(self, tool: Tool) -> Tool:
        func, look, context = tool.func, tool.reconcile, tool.takes_context

        def own(effect: Effect) -> Effect:
            return replace(effect, key=EffectId(self._fork_id, effect.id.ordinal).key)

        @wraps(func)
        def called(*args: Any, **kwargs: Any) -> Any:
            if tool.takes_effect:
                kwargs[EFFECT] = own(kwargs[EFFECT])
            if context:
                kwargs[context] = replace(kwargs[context], effect=own(kwargs[context].effect))
            return func(*args, **kwargs)

        def looked(effect: Effect, *args: Any, **kwargs: Any) -> Any:
            assert look is not None
            return look(own(effect), *args, **kwargs)

        takes = tool.takes_effect or context
        return replace(tool, func=called if takes else func, reconcile=None if look is None else looked)


class _ForkOwner:
    """The object that is responsible for the one job of a fork: it is its `JobOwner`, whose methods the JobHost of the
    fork calls. `over_as` is a future. Its result is the outcome of the fork (`Forked.outcome`), and it is set when the
    job ends, or when the job waits for something that will not come.
    """

    leaves_at_once = sleep_counts = False
    code = "of a fork"

    def __init__(self, code: JobCode, changes: ForkAnswers, clock: Clock, *, no_wait: bool) -> None:
        self._changes, self._clock, self._no_wait = changes, clock, no_wait
        self._said: set[int] = set()  # ordinals of the effects that the log has named as waited for
        self.waits_for: tuple[str, ...] = ()
        self.run: JobRun
        self.value: Any = None
        self.error: BaseException | None = None
        self.over_as: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._code = code
        self.host: JobHost  # set before the job runs

    def broken(self, what: str, error: BaseException) -> None:
        """Ends the fork: `fork` raises `error`. The JobHost calls this if its part `what` has failed."""
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
        self.error = error
        return "end"  # a fork does not try a failed job again

    def time_left(self, job: JobRun) -> tuple[float, str] | None:
        return None

    def backoff_s(self, attempt: int) -> float:
        return 0.0

    def begin_child(self, job_id: str, message: Any, *, failed: bool, behalf: Behalf) -> None:
        """Gives the job the result of a child job, without a child: the value that `answers` has for the agent of the
        child. `job_id` is the id that the child would have. Raises UserError if `answers` has no value for that agent.
        """
        name = self._changes.of(self.run.open[parent_of(job_id)[1]].name)
        if name is None:
            raise UserError(f"job {job_id} is not begun by a fork")
        self.host.child_not_begun(job_id, "succeeded", pack(self._changes.answers[name], f"the result of job {job_id}"))

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
            self.waits_for = tuple(self._changes.words(each, self._clock.time()) for each in asks)
            self._is_over("waits")
        elif new := [ask for ask in asks if ask.ordinal not in self._said]:
            self._said |= {ask.ordinal for ask in new}
            what = "; ".join(self._changes.words(each, self._clock.time()) for each in new)
            _log.warning("the fork of job %s waits for %s; no_wait=True (--no-wait) ends it there", job_id, what)

    def answer(self, ask: Ask) -> None:
        """Answers the question, or sends the signal, for which the effect `ask` waits, with the value in `answers`. A
        deadline of the question is not checked. If the value is no valid answer to a question about a call, the fork
        ends with a UserError.
        """
        try:
            entry = self._changes.entry(ask, self.run.job_id, self.host.now_ms())
        except UserError as error:
            self.broken("an answer", error)
        else:
            self.host.put(Arrived(entry, ask))

    def woken(self, job_id: str) -> None:
        self.host.parking.wake(job_id)

    def blocked(self, job_id: str, error: NonDeterminism) -> None:
        self.broken("the job", ReplayDifference(f"job {job_id}, before the fork: {error.message}"))

    def job_closed(self, job_id: str, outcome: str) -> None:
        self._is_over(outcome)

    def had_ended(self, job: OpenJob) -> None:
        pass  # the one job in the journal of a fork is always open
