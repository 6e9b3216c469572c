"""Handles the requests that a call makes while it is under way: for another attempt, for another model, or for a
question to a person.

   a tool ─▶ resend | instead | ask_person ─▶ CallAsked ─▶ queue ─▶ answer ─▶ the tool goes on when the request's entry is durable

`resend`, `instead` and `ask_person` run in the task of the call. `answer` runs in the task of the host, which handles
the events of the queue.
"""

import asyncio
from typing import Any

from sabot.errors import EffectError, UserError
from sabot.jobs.core import Judged, PersonAsked, refusal, step
from sabot.jobs.events import CallAsked, CallRequest
from sabot.jobs.guard import EffectGuard, GuardVerdict, encode_verdict
from sabot.jobs.host_state import HostState
from sabot.jobs.log import JobLog
from sabot.jobs.owner import RunningJob
from sabot.jobs.run import Ask
from sabot.journal.effects import EffectId, digest
from sabot.journal.entries import Attempt
from sabot.llm.errors import model_error


class CallRequests:
    """The part of a host that handles the requests of calls under way. `resend`, `instead` and `ask_person` pass a
    request from the call to the host's queue; `answer` answers it when its turn in the queue comes.
    """

    def __init__(self, host: HostState, log: JobLog, guard: EffectGuard | None) -> None:
        self._host, self._log, self._guard = host, log, guard

    # -- in the task of the call --------------------------------------------------------------------------------------

    async def resend(self, effect: EffectId) -> EffectId:
        """Asks the host for another attempt of a call that has to send its request once more, because the answer to its
        last request was lost.

        Waits until the request may be sent. Returns `effect` with the number of the new attempt. Raises EffectError if
        nobody waits for the effect any more, and the error of the guard (such as BudgetExceeded) if the guard denies
        the attempt.
        """
        attempt, entry = await self._asked(effect, "again")
        await self._log.sendable(entry)
        return EffectId(effect.job, effect.ordinal, attempt)

    async def instead(self, effect: EffectId, verdict: GuardVerdict) -> None:
        """Records that the call asks another model from this attempt on. `verdict`: the guard's verdict on that model.
        Waits until the record is durable. Raises EffectError if nobody waits for the effect any more.
        """
        await self._log.sendable(await self._asked(effect, verdict))

    async def ask_person(self, effect: EffectId, kind: str, body: bytes, seconds: float | None) -> str:
        """Asks a person a question on behalf of a tool whose call is under way (the contract is `AsksPerson`).

        If a person has answered this question already, returns the token of the question. Otherwise it never returns:
        the host stops the call, and makes it again after the answer.

        `kind`: the type of the question. `body`: its payload as JSON. `seconds`: the time for the answer; None for no
        limit. Raises UserError if the call asks a second question, and EffectError if nobody waits for the call any
        more.
        """
        if asyncio.get_running_loop() is not self._host.loop:
            raise UserError(
                f"effect {effect} asks a person in an event loop of its own", hint="make its tool a coroutine function"
            )
        return str(await self._asked(effect, PersonAsked(kind, body, seconds)))

    async def _asked(self, effect: EffectId, request: CallRequest) -> Any:
        """Puts a request into the host's queue, and returns the answer of the host. Raises EffectError if nobody waits
        for the effect any more.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._host.put(CallAsked(effect, request, answer))
        return await answer

    # -- where the host handles events --------------------------------------------------------------------------------

    def answer(self, event: CallAsked, running: RunningJob, ask: Ask) -> PersonAsked | None:
        """Handles a request of a call: sets the result or the error of the future `event.answer`, and returns None. If
        a person has to be asked first, leaves the future open and returns the question; the caller then stops the call
        and asks the person.
        """
        effect, answer, now_ms = event.effect, event.answer, self._host.now_ms()
        match event.request:
            case "again":
                later = EffectId(effect.job, effect.ordinal, ask.attempt + 1)
                denied = None if self._guard is None else self._guard.decide_again(later)
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
        """Returns True if no person was asked about this call before. Otherwise returns False and sets `answer`: to the
        token of the question if the call asks the same question again and it was answered, else to an error.
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
