"""Handles the requests that a call makes while it is under way: for another attempt, for another model, or for a
question to a person.

   a tool ─▶ resend | instead | ask_person ─▶ CallAsked ─▶ queue ─▶ answer ─▶ the tool goes on when the request's entry is durable

`resend`, `instead` and `ask_person` run in the task of the call. `answer` runs in the task of the host, which handles
the events of the queue.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from sabot.engine.calls.effects import EffectId, digest
from sabot.engine.calls.errors import model_error
from sabot.errors import EffectError, UserError
from sabot.jobs.core import Judged, PersonAsked, refusal, step
from sabot.jobs.events import CallAsked, CallRequest
from sabot.jobs.guard import GuardVerdict, encode_verdict
from sabot.jobs.host_state import HostState
from sabot.jobs.log import JobLog
from sabot.jobs.owner import RunningJob
from sabot.jobs.run import Ask
from sabot.journal.entries import Attempt

DecidesAgain = Callable[[RunningJob, Ask], GuardVerdict | Awaitable[GuardVerdict | None] | None]


class CallRequests:
    """The part of a host (`JobHost`) for requests that a call makes while it is running: for another attempt, for
    another model, or for a question to a person. The methods `resend`, `instead` and `ask_person` run in the task of
    the call, and put a request into the host's queue of events. `answer` runs in the task of the host, which calls it
    when it handles that event.
    """

    def __init__(self, host: HostState, log: JobLog, again: DecidesAgain) -> None:
        """Makes the part of a host. `again`: asks the guard whether another attempt of an effect may be made."""
        self._host, self._log, self._again = host, log, again

    # -- in the task of the call --------------------------------------------------------------------------------------

    async def resend(self, effect: EffectId) -> EffectId:
        """Requests another attempt of a running call. The call got no answer to its last message to the service, and
        has to send the message again.

        Waits until the call may send. Returns `effect` with the number of the new attempt. Raises EffectError if the
        job no longer waits for the effect. If the guard (`EffectGuard`) denies the attempt, raises the error that the
        guard has chosen, such as BudgetExceeded.
        """
        attempt, entry = await self._asked(effect, "again")
        await self._log.sendable(entry)
        return effect.of_attempt(attempt)

    async def instead(self, effect: EffectId, verdict: GuardVerdict) -> None:
        """Records that a running call asks another model from this attempt on. Waits until this record, an ATTEMPT
        entry of the journal, is durable. `verdict`: the decision of the guard (`EffectGuard`) on the other model.
        Raises EffectError if the job no longer waits for the effect.
        """
        await self._log.sendable(await self._asked(effect, verdict))

    async def ask_person(self, effect: EffectId, kind: str, body: bytes, seconds: float | None) -> str:
        """Asks a person a question on behalf of the tool of a running call. The method is a function of the type
        `runner.AsksPerson`.

        If a person has answered this question before, returns the token of the question. Otherwise this method does
        not return: the host cancels the call, asks the person, and calls the tool again after the answer.

        `kind`: the type of the question. `body`: its payload as JSON. `seconds`: the time for the answer; None for no
        limit. Raises UserError if the call asks a second question, or if the tool runs in an event loop of its own.
        Raises EffectError if the job no longer waits for the call.
        """
        if asyncio.get_running_loop() is not self._host.loop:
            raise UserError(
                f"effect {effect} asks a person in an event loop of its own", hint="make its tool a coroutine function"
            )
        return str(await self._asked(effect, PersonAsked(kind, body, seconds)))

    async def _asked(self, effect: EffectId, request: CallRequest) -> Any:
        """Puts a request of a running call into the host's queue of events, and waits until the host has handled it.
        Returns the value that the host has set as the answer. Raises EffectError if the job no longer waits for the
        effect.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._host.put(CallAsked(effect, request, answer))
        return await answer

    # -- where the host handles events --------------------------------------------------------------------------------

    def answer(self, event: CallAsked, running: RunningJob, ask: Ask) -> PersonAsked | None:
        """Handles a request of a running call.

        Returns None if the request was answered now or is answered later; the answer is the result or the error of
        the future `event.answer`. Returns the question if a person has to be asked first. The future then remains
        without a result, and the caller has to cancel the call and to ask the person.

        `running`, `ask`: the job and the effect to which the call belongs.
        """
        effect, answer, now_ms = event.effect, event.answer, self._host.now_ms()
        match event.request:
            case "again":
                later = effect.of_attempt(ask.attempt + 1)
                denied = self._again(running, ask)
                if denied is None or isinstance(denied, GuardVerdict):
                    self._resend(running, ask, denied, answer)
                else:
                    self._host.put_when(
                        denied,
                        lambda said: CallAsked(later, Judged(said), answer),
                        f"what decides on effect {later}",
                    )
            case Judged(denied):
                self._resend(running, ask, denied, answer)
            case GuardVerdict() as verdict:
                entry = Attempt(effect.job, now_ms, *effect[1:], encode_verdict(verdict))
                answer.set_result(self._log.append(entry, running))
            case PersonAsked() if ask.dropped:
                answer.set_exception(EffectError("EffectOver", f"nobody waits for effect {effect} any more"))
            case PersonAsked() if not running.in_memory or self._host.stopping:
                answer.set_exception(EffectError("EffectOver", f"effect {effect} is left for the next start"))
            case PersonAsked() as asks if self._may_ask(running, ask, asks, answer):
                return asks
        return None

    def _resend(
        self, running: RunningJob, ask: Ask, denied: GuardVerdict | None, answer: "asyncio.Future[Any]"
    ) -> None:
        if denied is not None:
            said = refusal(ask, denied.reason, denied.rule)
            answer.set_exception(model_error(denied.error, said) or EffectError(denied.error, said))
            return
        (entry,), _ = step(running.job, ask, Judged(None), self._host.now_ms())
        answer.set_result((ask.attempt, self._log.append(entry, running)))

    def _may_ask(self, running: RunningJob, ask: Ask, asks: PersonAsked, answer: "asyncio.Future[Any]") -> bool:
        """Decides whether the host may ask a person the question `asks` of a running call. A call may ask only one
        question.

        - If no person was asked about the call before, returns True.
        - If a person has answered the same question before, returns False. The result of the future `answer` is then
          the token of that question.
        - In all other cases returns False. The future `answer` then has a UserError.
        """
        history = running.job.history
        if (before := history.approvals.get(ask.ordinal)) is None:
            return True
        named = asks.kind, digest(self._host.journal.key, "ask", asks.kind, asks.body)
        if (before.name, before.digest) == named and history.approval(ask.ordinal):
            answer.set_result(before.token)
        else:
            said = f"{ask.name} asks a person, who was asked something else about this call before: a call asks one question"
            hint = "let another tool ask it, or the agent's function by ctx.ask; where a rule asks, the tool need not"
            answer.set_exception(UserError(said, hint=hint))
        return False
