"""Questions that a tool asks a person while it is called in a job.

    the tool asks ─▶ INTENT (ask, with the ordinal of the call) ─▶ the call is cancelled, the job may be parked
                                    ANSWER ─▶ ATTEMPT: the tool is called again, from its beginning, and its question has its answer

So nothing waits in memory, and a kill meanwhile loses nothing: a call that had ended at its question is not in doubt. What the tool does
before it asks, it does twice. A call asks one question.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

from sabot.errors import EffectError, UserError
from sabot.jobs.derived import question_token
from sabot.jobs.owner import HostServices, RunningJob
from sabot.jobs.run import Ask
from sabot.jobs.timers import JobTimers
from sabot.journal.effects import EffectId, digest
from sabot.journal.entries import Answer, Intent

AsksPerson = Callable[[EffectId, str, bytes, float | None], Awaitable[str]]
"""Asks a question of this call: its type, its payload as JSON, the seconds in which it may be answered. Returns the token of the question,
when that is closed; until then whoever awaits it is cancelled.
"""


@dataclass(frozen=True, slots=True)
class CallUnderWay:
    """The effect whose tool is called, and how it asks a person."""

    effect: EffectId
    ask: AsksPerson


CALL: ContextVar[CallUnderWay | None] = ContextVar("CALL", default=None)
"""The call of a tool in which code runs; None: none of a job."""


class CallQuestions:
    """Of the calls of a host. On its event loop."""

    def __init__(
        self,
        host: HostServices,
        timers: JobTimers,
        *,
        stop: Callable[[EffectId], None],
        again: Callable[[RunningJob, Ask], None],
    ) -> None:
        """stop: cancels a call, of which nobody is told. again: makes another attempt."""
        self._host, self._timers, self._stop, self._again = host, timers, stop, again
        self._loop = asyncio.get_running_loop()

    async def ask(self, effect: EffectId, kind: str, body: bytes, seconds: float | None) -> str:
        """As `AsksPerson`. Raises UserError for a second question, EffectError where nobody waits for the call any more."""
        if asyncio.get_running_loop() is not self._loop:
            raise UserError(
                f"effect {effect} asks a person in an event loop of its own", hint="make its tool a coroutine function"
            )
        asked: asyncio.Future[str] = self._loop.create_future()
        self._host.put(partial(self._ask, effect, kind, body, seconds, asked))
        return await asked

    def _ask(
        self, effect: EffectId, kind: str, body: bytes, seconds: float | None, asked: "asyncio.Future[str]"
    ) -> None:
        running = self._host.running_job(effect.job)
        ask = None if running is None else running.job.open.get(effect.ordinal)
        if asked.done():
            return
        if running is None or ask is None or self._host.stopping:
            asked.set_exception(EffectError("EffectOver", f"nobody waits for effect {effect}: it asks nobody"))
            return
        history, key, ordinal = running.job.history, self._host.journal.key, effect.ordinal
        before, name = history.approvals.get(ordinal), digest(key, "ask", kind, body)
        if before is None:
            at_ms, token = self._host.now_ms(), question_token(key, effect.job, ordinal)
            due_ms = 0 if seconds is None else at_ms + round(seconds * 1000)
            question = Intent(effect.job, at_ms, ordinal, "ask", kind, name, "", body, token, due_ms)
            self._host.append(question, running)
            history.approvals[ordinal] = question
            history.stopped.add(ordinal)
            self._stop(effect)
            self.waits(running, ask, None)
        elif (before.name, before.digest) == (kind, name) and history.approval(ordinal) is not None:
            asked.set_result(before.token)
        else:
            said = f"{ask.name} asks a person, who was asked something else about this call before: a call asks one question"
            hint = "let another tool ask it, or the agent's function by ctx.ask; where a rule asks, the tool need not"
            asked.set_exception(UserError(said, hint=hint))

    def waits(self, running: RunningJob, ask: Ask, answer: Answer | None) -> None:
        """The last attempt of a call has ended at its question. Behind the answer there is another one."""
        if answer is not None:
            ask.token, ask.due_ms = "", 0
            self._again(running, ask)
            return
        question = running.job.history.approvals[ask.ordinal]
        ask.token, ask.due_ms = question.token, question.due_ms
        if ask.due_ms:
            self._timers.add_rest(question.at_ms, ask.due_ms, running.job.job_id, ask.ordinal)
        self._host.put_front([partial(self._host.settle, running)])
