"""The handle that `RuntimeKernel.execute` returns. A caller waits for the job through it, watches the job, answers its
questions, and cancels it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Protocol

from sabot.agents.actions import ActionManager, ActionRecord, ActionStatus
from sabot.agents.events.bus import InMemoryEventBus, RuntimeEvent, RuntimeEventType, Subscription
from sabot.agents.kernel.jobs import ExecutionResult, KernelAgent
from sabot.agents.store import cancel_letter
from sabot.base.stored_names import stored_name
from sabot.errors import EffectError, JobCancelled, UserError
from sabot.jobs.values import unpack_error
from sabot.journal.entries import Letter
from sabot.llm.errors import BudgetExceeded, BudgetUnavailable, TurnLimitExceeded, model_error

_FINAL = (RuntimeEventType.FINAL_RESULT, RuntimeEventType.FINAL_ERROR)
_PIECES = (RuntimeEventType.MODEL_TOKEN, RuntimeEventType.MODEL_REASONING)
_LIMITS = {stored_name(each): each for each in (BudgetExceeded, BudgetUnavailable, TurnLimitExceeded, TimeoutError)}


class _Kernel(Protocol):
    """The interface of a kernel for its handles."""

    event_bus: InMemoryEventBus
    actions: ActionManager

    async def recorded_events(self, job_id: str) -> list[RuntimeEvent]: ...

    async def post(self, letter: Letter) -> None: ...


class ExecutionHandle:
    """The handle of one job of a kernel. Through it a program waits for the job's result, reads its events, answers its
    questions and cancels it. Any number of tasks may use the same handle.
    """

    __slots__ = (
        "_answered",
        "_begins",
        "_begun",
        "_ended",
        "_kernel",
        "_listening",
        "_outcome",
        "agent",
        "digest",
        "job_id",
    )

    def __init__(self, kernel: _Kernel, job_id: str, agent: KernelAgent, digest: bytes = b"") -> None:
        """Makes a handle. Only a kernel calls this. `digest` is the digest of the job's request. The kernel compares it
        with the digest of a later request that has the same idempotency key.
        """
        self.job_id = job_id
        self.digest = digest
        self._kernel = kernel
        self.agent = agent
        self._outcome: ExecutionResult | bytes | BaseException | None = None  # bytes: the body of its END
        self._ended = False  # the journal has an END of the job
        self._answered: asyncio.Event | None = None  # wakes the tasks that wait for the outcome
        self._begins: asyncio.Event | None = None  # wakes the tasks that wait for BEGIN
        self._begun: bool | None = None
        self._listening: list[Subscription] = []

    def __repr__(self) -> str:
        return f"<ExecutionHandle {self.job_id}>"

    @property
    def done(self) -> bool:
        """True if the job has ended or is blocked, or if its kernel has stopped. Then `result` returns or raises at
        once. A job is blocked if the present code of its agent requests other effects than its journal has.
        """
        return self._outcome is not None

    async def result(self) -> ExecutionResult:
        """Waits until the job has ended, and returns its result. If the job has ended without success, raises its
        error:

        - ModelError, BudgetExceeded, BudgetUnavailable, TurnLimitExceeded, TimeoutError (`max_runtime_seconds`) or
          JobCancelled.
        - EffectError for an error of any other class, with the name of that class and its message.

        Also raises:

        - NonDeterminism if the job is blocked, because the present code of its agent requests other effects than its
          journal has.
        - Mismatch if the recorded answer does not fit the present output type of the Agent.
        - UserError if the kernel is closed before the job has ended.
        - The error that has stopped the kernel, if there is one.
        """
        if self._outcome is None:
            if self._answered is None:
                self._answered = asyncio.Event()
            await self._answered.wait()
        if isinstance(self._outcome, bytes):
            self._outcome = self.agent.result(self.job_id, self._outcome)
        if isinstance(self._outcome, BaseException):
            raise self._outcome.with_traceback(None)
        assert self._outcome is not None
        return self._outcome

    async def events(self) -> AsyncIterator[RuntimeEvent]:
        """Yields the events of the job from its beginning, and then each new event when it comes. The last event is
        `final.result` or `final.error`.

        The events of streamed parts of a model's answer are not stored. They exist only if a caller of this method, or
        a subscriber of the event bus, listened when the model began that answer. A caller that iterates directly after
        `execute` gets all of them. Raises the error of `result` if the job is blocked, or if the kernel stops. Raises
        UserError if the job has ended and its entries are no longer in the journal.
        """
        live, told = self._kernel.event_bus.listen(job_id=self.job_id), set[str]()
        self._listening.append(live)
        early: list[RuntimeEvent] = []  # parts of answers, until the event of the whole answer comes
        if self.done and not self._ended:
            live.close()
        try:
            while True:
                missed = live.dropped  # what a slow reader has missed is in the journal
                recorded = await self._kernel.recorded_events(self.job_id)
                waiting = list(live.queue)
                early += [event for event in waiting if event.type in _PIECES]
                live.queue.clear()
                live.queue.extend(event for event in waiting if event.type not in _PIECES)
                if not recorded and self._ended:
                    raise UserError(f"job {self.job_id} has ended so long ago that its events are forgotten")
                for event in recorded:
                    for piece in _of(early, event):
                        yield piece
                    if event.event_id not in told:
                        told.add(event.event_id)
                        yield event
                    if event.type in _FINAL:
                        return
                for piece in _of(early, None):
                    yield piece
                while live.queue or live.dropped == missed:
                    try:
                        event = await anext(live)
                    except StopAsyncIteration:
                        await self.result()
                        return
                    if event.event_id not in told:
                        if event.type not in _PIECES:
                            told.add(event.event_id)
                        yield event
                    if event.type in _FINAL:
                        return
        finally:
            live.close()
            self._listening.remove(live)

    async def cancel(self, reason: str = "") -> None:
        """Requests that the job ends. Its function gets a CancelledError at the `await` where it waits. The request is
        durable when this method returns, but the job may end later. Raises LetterRefused if the job has ended, or if a
        cancel was requested before.
        """
        await self._kernel.post(cancel_letter(self.job_id, reason))

    async def get_pending_actions(self) -> list[ActionRecord]:
        """Returns the open questions of the job."""
        return await self._kernel.actions.find(job_id=self.job_id, statuses=[ActionStatus.PENDING])

    async def resolve_action(self, token: str, resolution: Mapping[str, Any], *, by: str = "") -> ActionRecord:
        """Answers the question with this token (`ActionRecord.resume_token`), and returns the answered action. `by` is
        the person who answers. The answer is durable when this method returns. Raises LetterRefused if there is no such
        question, or if it is closed, and UserError if the answer does not fit the question.
        """
        return await self._kernel.actions.resolve(token, resolution, by=by)

    # -- called by the kernel -----------------------------------------------------------------------------------------

    async def begins(self) -> bool:
        """Waits until the BEGIN entry of the job is in the journal, and returns True. Returns False if the kernel has
        decided not to begin the job.
        """
        if self._begun is None:
            if self._begins is None:
                self._begins = asyncio.Event()
            await self._begins.wait()
        return bool(self._begun)

    def begun(self, has: bool = True) -> None:
        """Ends the waits in `begins`, which then returns `has`. The kernel calls this with True when the BEGIN entry of
        the job is in the journal, and with False when it does not begin the job.
        """
        if self._begun is None:
            self._begun = has
            if self._begins is not None:
                self._begins.set()

    def settle(self, outcome: bytes | BaseException, *, ended: bool) -> None:
        """Sets the outcome that `result` returns or raises, and wakes the tasks that wait for it. Does nothing if there
        is an outcome already. The kernel calls this.

        - `outcome`: the encoded result, or the error.
        - `ended`: True if the journal has the END entry of the job. Then `events` yields a last event. False if the job
          is blocked or the kernel stops. Then `events` raises the error.
        """
        if self._outcome is not None:
            return
        self._outcome, self._ended = outcome, ended
        if not ended:
            for live in self._listening:
                live.close()
        if self._answered is not None:
            self._answered.set()


def _of(pieces: Any, event: RuntimeEvent | None) -> Iterator[RuntimeEvent]:
    """Yields events from `pieces`, a list of the streamed parts of model answers, and removes them from the list. Which
    events these are depends on `event`:

    - For a "model.done" event, the parts of the answer that it ends.
    - For any other event, none.
    - For None, all.
    """
    if not pieces or (event is not None and event.type is not RuntimeEventType.MODEL_DONE):
        return
    mine = [each for each in pieces if event is None or each.data["ordinal"] == event.data["ordinal"]]
    pieces[:] = [each for each in pieces if each not in mine]
    yield from mine


def outcome_of(job_id: str, outcome: str, body: bytes) -> bytes | BaseException:
    """Returns the outcome that a handle gets when its job has ended: the encoded result, or the error that
    `ExecutionHandle.result` raises. `outcome` and `body` are from the END entry of the job.
    """
    if outcome == "succeeded":
        return body
    if outcome == "cancelled":
        return JobCancelled(f"job {job_id} was cancelled")
    error = unpack_error(body)
    limit = _LIMITS.get(error.type)
    if limit is not None:
        return limit(error.message)
    return model_error(error.type, error.message) or EffectError(error.type, error.message)
