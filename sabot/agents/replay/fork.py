"""A fork: a job as it was behind one of its steps goes on from there with another model, prompt or tool, and changes nothing outside.

recording ─▶ entries up to the result of step `at` ─▶ a journal in memory ─▶ the code runs over them ─▶ goes on live ─▶ a new recording
"""

import asyncio
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from sabot.agents.accounts.limits import JobLimits
from sabot.agents.reading import as_plain
from sabot.agents.replay.player import JobCode, ReplayDifference, steps_of
from sabot.agents.replay.recording import Recording, record_job
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import LetterRefused, NonDeterminism, UserError
from sabot.jobs.gate import Behalf, Decision, EffectGate, GatedCall, GateVerdict, gate_of
from sabot.jobs.host import JobHost
from sabot.jobs.owner import OpenJob, Verdict
from sabot.jobs.run import Ask, JobRun
from sabot.jobs.values import unpack
from sabot.journal import Letter, MemoryHome, MemoryJournal, MemoryReader
from sabot.journal.entries import Answer, Begin, EffectResult, Entry, Intent
from sabot.llm.tools import Tool

__all__ = ["FORK_ALLOWS", "Forked", "fork"]

FORK_ALLOWS = ("local", "read", "metered")
"""The classes of effects that a fork makes. A child may do anything, so it is never begun."""

_CODE = "of a fork"


@dataclass(frozen=True, slots=True)
class Forked:
    """What came of a fork.

    outcome: "succeeded", "failed", "cancelled"; "waits": for an answer or a signal that nobody gives it. result: what the function has
    returned. error: what it has raised. recording: of the fork. first_difference: the ordinal of the first step that is not as it was
    recorded; None: all are.
    """

    outcome: str
    result: Any
    error: BaseException | None
    recording: Recording
    first_difference: int | None


async def fork(
    recording: Recording,
    code: JobCode,
    *,
    at: int,
    answers: Mapping[str, Any] | None = None,
    allow: Collection[str] = FORK_ALLOWS,
    gate: EffectGate | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> Forked:
    """Runs the code over what is recorded up to the result of step `at`, and goes on from there. Up to there nothing is called; what was
    asked by then and had no result is asked anew.

    at: an ordinal; 0: from the beginning. answers: by the names of tools, what they return in place of being called; by the types of
    questions, the answers. allow: classes of effects, and names of tools, that are made; others are denied. gate: decides too.

    Raises UserError for a recording without entries, or without a result of that step; ReplayDifference where the code asks for something
    else before it.
    """
    entries = _up_to(recording, at)
    home = MemoryHome(clock)
    home.key = recording.key
    journal = MemoryJournal(home)
    for entry in entries:
        journal.append(entry)
    owner = _ForkOwner(code, journal, answers or {})

    def run_of(*given: Any, **how: Any) -> JobRun:
        owner.run = _ForkRun(*given, **how, answers=owner.answers)
        if owner.run.history.runs <= len(recording.seeds):
            owner.run.set_seed(recording.seeds[owner.run.history.runs - 1])
        return owner.run

    first = _ForkGate(recording.job_id, frozenset(allow), frozenset(owner.answers))
    gates: list[EffectGate] = [first, *([] if gate is None else [gate]), JobLimits()]
    host = JobHost(journal, clock=clock, on_broken=owner.broken, stop_grace_s=0.0, gate=gate_of(gates), make_run=run_of)
    owner.hosted(host)
    host.register(next(entry.agent for entry in entries if isinstance(entry, Begin)), owner)
    try:
        found = await host.open(None)
        host.start()
        for job in found:
            host.resume(job)
        outcome = await owner.over_as
    finally:
        await host.close()
        journal.close()
    made = record_job(MemoryReader(home), recording.job_id)
    made = replace(
        made, initial_input=recording.initial_input, seeds=(*recording.seeds, *made.seeds[len(recording.seeds) :])
    )
    return Forked(outcome, owner.value, owner.error, made, _first_difference(recording, made))


def _up_to(recording: Recording, at: int) -> list[Entry]:
    """The entries up to the result of this step, without those of effects that have none by then. Raises UserError."""
    entries = recording.entries
    if not entries:
        raise UserError(
            "the recording has events only", hint="record_job(reader, job_id) records what code can run over"
        )
    begins = [place for place, entry in enumerate(entries) if isinstance(entry, Begin)]
    ends = [
        place
        for place, entry in enumerate(entries)
        if isinstance(entry, EffectResult | Answer) and entry.ordinal == at and at > 0
    ]
    asked = {entry.ordinal for entry in entries if isinstance(entry, Intent)}
    if at == 0 and len(begins) == 1:
        ends = begins
    if not ends:
        had = f"its steps are 1 to {max(asked)}" if asked else "it has no step"
        raise UserError(f"the recording of job {recording.job_id} has no result of step {at}: {had}")
    if ends[-1] < begins[-1]:
        raise UserError(
            f"step {at} of job {recording.job_id} stands before ctx.continue_as",
            hint=f"fork at a step of its last history, behind {max(_ordinals(entries[: begins[-1]]), default=0)}",
        )
    kept = entries[: ends[-1] + 1]
    settled = {entry.ordinal for entry in kept if isinstance(entry, EffectResult | Answer)}
    settled |= {entry.ordinal for entry in kept if isinstance(entry, Intent) and entry.kind in ("wait", "patch")}
    return [entry for entry in kept if not (ordinal := getattr(entry, "ordinal", 0)) or ordinal in settled]


def _ordinals(entries: Collection[Entry]) -> list[int]:
    return [entry.ordinal for entry in entries if isinstance(entry, Intent)]


def _first_difference(recording: Recording, made: Recording) -> int | None:
    before = {step["ordinal"]: step for step in steps_of(recording)}
    after = {step["ordinal"]: step for step in steps_of(made)}
    return next((at for at in sorted(before | after) if before.get(at) != after.get(at)), None)


class _ForkRun(JobRun):
    """A run in which some tools have stand-ins."""

    def __init__(self, *given: Any, answers: Mapping[str, Any], **how: Any) -> None:
        super().__init__(*given, **how)
        self._answers = answers

    def set_seed(self, seed: bytes) -> None:
        """What is drawn by lot is drawn as it was."""
        self._seed = seed

    def call(
        self, tool: Tool, args: tuple[Any, ...], kwargs: Mapping[str, Any], body: bytes, **how: Any
    ) -> "asyncio.Future[Any]":
        if tool.name in self._answers:
            value = self._answers[tool.name]

            async def stand_in(*_: Any, **__: Any) -> Any:
                return value

            tool = replace(tool, func=stand_in, takes_effect=False, is_async=True, reconcile=None)
        return super().call(tool, args, kwargs, body, **how)


class _ForkGate(EffectGate):
    """Allows what changes nothing outside, and what has a stand-in."""

    def __init__(self, job_id: str, allow: frozenset[str], answers: frozenset[str]) -> None:
        self._job_id, self._allow, self._answers = job_id, allow, answers

    def decide(self, call: GatedCall) -> GateVerdict:
        allowed = call.effect_class in self._allow or call.name in self._allow or call.name in self._answers
        if call.kind != "child" and allowed:
            return GateVerdict()
        kind = "a child" if call.kind == "child" else f"an effect of class {call.effect_class}"
        reason = (
            f"this is a fork of job {self._job_id}, and it is {kind}; answers={{{call.name!r}: …}} stands in for a tool"
        )
        return GateVerdict(Decision.DENY, rule="fork", reason=reason)


class _ForkOwner:
    """The owner of the one job of a fork (`jobs.owner.JobOwner`). over_as: its outcome, when it is over or nobody will go on with it."""

    leaves_at_once = False
    code = _CODE

    def __init__(self, code: JobCode, journal: MemoryJournal, answers: Mapping[str, Any]) -> None:
        self.answers = answers
        self.run: JobRun
        self.value: Any = None
        self.error: BaseException | None = None
        self.over_as: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._code, self._journal = code, journal
        self._host: JobHost | None = None

    def broken(self, what: str, error: BaseException) -> None:
        """Nothing can go on."""
        if not self.over_as.done():
            self.over_as.set_exception(error)

    def _is_over(self, outcome: str) -> None:
        if not self.over_as.done():
            self.over_as.set_result(outcome)

    def call(self, job: JobRun) -> Coroutine[Any, Any, Any]:
        """As `JobOwner.call`."""
        return self._code.call(job)

    def ended(self, job: JobRun, value: Any) -> bytes:
        """As `JobOwner.ended`."""
        body = self._code.packed(job, value)
        self.value = as_plain(unpack(body))
        return body

    def failed(self, job: JobRun, error: BaseException) -> Verdict:
        """As `JobOwner.failed`. A fork is not tried again."""
        self.error = error
        return "end"

    def time_left_s(self, job: JobRun) -> float | None:
        """As `JobOwner.time_left_s`."""
        return None

    def backoff_s(self, attempt: int) -> float:
        """As `JobOwner.backoff_s`."""
        return 0.0

    def begin_child(self, job_id: str, message: Any, *, failed: bool, behalf: Behalf) -> None:
        """As `JobOwner.begin_child`."""
        raise UserError(f"job {job_id} is not begun by a fork")

    def continued(self, job: JobRun, message: Any) -> bytes:
        """As `JobOwner.continued`."""
        raise UserError(f"the fork of job {job.job_id} goes on with ctx.continue_as", hint="a fork is of one history")

    def parked(self, job_id: str) -> None:
        """As `JobOwner.parked`. What `answers` has is answered; where only a person could go on with it, the fork is over."""
        answered = [ask for ask in self.run.open.values() if self._has_answer(ask)]
        for ask in answered:
            asyncio.get_running_loop().call_soon(self._answer, ask)
        if not answered and not any(ask.due_ms for ask in self.run.open.values()):
            self._is_over("waits")

    def _has_answer(self, ask: Ask) -> bool:
        return ask.kind == "ask" and ask.name in self.answers

    def _answer(self, ask: Ask) -> None:
        body = msgspec.json.encode(self.answers[ask.name])
        try:
            self._journal.post(Letter("answer", ask.token, body=body, by="fork"))
        except LetterRefused as error:
            self.broken("an answer", error)

    def woken(self, job_id: str) -> None:
        """As `JobOwner.woken`."""
        assert self._host is not None
        self._host.parking.wake(job_id)

    def hosted(self, host: JobHost) -> None:
        """Its host."""
        self._host = host

    def blocked(self, job_id: str, error: NonDeterminism) -> None:
        """As `JobOwner.blocked`."""
        self.broken("the job", ReplayDifference(f"job {job_id}, before the fork: {error.message}"))

    def over(self, job_id: str, outcome: str) -> None:
        """As `JobOwner.over`."""
        self._is_over(outcome)

    def had_ended(self, job: OpenJob) -> None:
        """As `JobOwner.had_ended`."""
