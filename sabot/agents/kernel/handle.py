"""The handle that `RuntimeKernel.execute` returns. A caller waits for the job through it, watches the job, answers its
questions, and cancels it.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from sabot.agents.actions import ActionManager, ActionRecord, ActionStatus
from sabot.agents.context import checked_word
from sabot.agents.events.bus import InMemoryEventBus, RuntimeEvent, RuntimeEventType, Subscription
from sabot.agents.kernel.jobs import ExecutionResult, KernelAgent
from sabot.agents.kernel.pieces import HeardPieces
from sabot.agents.kernel.public import Disclosure, public_events, server_sent
from sabot.agents.store import cancel_letter
from sabot.base.config import Duration, parse_seconds
from sabot.base.stored_names import stored_name
from sabot.engine.calls.errors import BudgetExceeded, BudgetUnavailable, TurnLimitExceeded, model_error
from sabot.engine.calls.judging import note_labels
from sabot.errors import EffectError, JobCancelled, LetterRefused, UserError
from sabot.jobs.log import Fragment
from sabot.jobs.tree import parent_of
from sabot.jobs.url_ids import url_id
from sabot.jobs.values import unpack_error
from sabot.journal.entries import End, Letter
from sabot.llm.agent import Agent

_FINAL = (RuntimeEventType.FINAL_RESULT, RuntimeEventType.FINAL_ERROR)
_PIECES = (RuntimeEventType.MODEL_TOKEN, RuntimeEventType.MODEL_REASONING)
_WAITING = 1_024  # events that wait for a slow reader; what comes beyond them is read again
_LIMITS = {stored_name(each): each for each in (BudgetExceeded, BudgetUnavailable, TurnLimitExceeded, TimeoutError)}


class _Kernel(Protocol):
    """The interface of a kernel for its handles."""

    event_bus: InMemoryEventBus
    actions: ActionManager

    async def recorded_events(self, job_id: str) -> list[RuntimeEvent]: ...

    def kept_pieces(self, job_id: str) -> list[Fragment]: ...

    async def post(self, letter: Letter) -> None: ...


class JobHandle(ABC):
    """The handle of a job: the part that works in any process that reaches the journal. Through it a program answers the
    questions of the job, reads its public events, and cancels it.
    """

    __slots__ = ("_actions", "_post", "job_id")

    def __init__(self, job_id: str, actions: ActionManager, post: Callable[[Letter], Awaitable[None]]) -> None:
        self.job_id = job_id
        self._actions = actions
        self._post = post

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.job_id}>"

    @property
    def url_id(self) -> str:
        """The id of the job in a form that is one part of a URL: without a slash, or any character that URLs escape. The
        kernel, `kernel.jobs` and `sabot jobs` accept it in place of the id.
        """
        return url_id(self.job_id)

    def public_events(
        self,
        *,
        after: str | None = None,
        arguments: Mapping[str, Sequence[str]] | None = None,
        answers: bool | None = None,
    ) -> AsyncGenerator[RuntimeEvent, None]:
        """Yields the events of the job that its customer may see, from its beginning to `final.result` or
        `final.error`. They have no tokens of questions, prompts, reasoning, arguments, results of tools, reasons, errors,
        usage, costs, tenant or actor. What is not listed here is left out:

        - `job.started`: no data. It is the first event of a stream that begins: nothing that came before it holds.
        - `job.completed`, `.failed`, `.cancelled`, `final.error`: no data. `job.status_changed`: `status`, which is
          "running" or "waiting_action".
        - `tool.start`, `.end`, `.error`: `tool`, `ordinal`, `attempt`. `action.required`, `.resolved`, `.expired`,
          `.cancelled`: `ordinal`.
        - `model.token`: `text`, `ordinal`, `attempt`. The texts of an ordinal, one behind the other, are an answer. With
          `reset`, the texts of this ordinal that came before are no part of it, because the model was asked again.
        - `model.done`: `ordinal`, `attempt`; and `failed` if there is no answer.
        - `final.result`: `result`, the text of an Agent's answer, or the value that a function has returned.

        A listener gets each answer once and whole, whenever it comes. While the model writes, it gets the text so far as
        one event and each further piece; when the answer is recorded, it gets what it does not have of it as one event.
        A slow listener gets fewer and longer texts. If an answer is longer than what a kernel keeps (see `events`), a
        late listener gets it when it is recorded.

        - `after`: the `event_id` of the last event that the listener has got (the header `Last-Event-ID`). The stream
          goes on behind it, without gaps or repeats, in another process too. None, "", and a text that is no place in
          this stream begin at the beginning.
        - `arguments`: by the name of a tool, the names of those of its arguments that `tool.start` shows, such as
          `{"refund": ["order"]}`.
        - `answers`: True shows the texts of answers and the result, False does not. None shows them for an Agent. The
          models that a function asks may write for the program, so the answers of functions are not shown by default.

        Errors are those of `events`. Raises UserError for arguments that are not valid.
        """
        disclosure = Disclosure.of(arguments, answers, is_agent=self._is_agent)
        return public_events(self.job_id, self.events(), self._recorded_events, after, disclosure)

    def server_sent_events(self, *, pause: Duration = "15s", **public: Any) -> AsyncGenerator[bytes, None]:
        """Yields the public events of the job as server-sent events: the body of a response with the media type
        `text/event-stream`. The arguments of `public_events` can be passed too.

        Each event has its type in the field `event`, its data as JSON, and its id, which a browser that comes back sends
        in the header `Last-Event-ID`. After `pause` without an event, a comment is sent, so that proxies keep the
        connection. The stream ends behind the last event of the job; a page closes its `EventSource` there. It also ends,
        without an error, if the job is blocked or the kernel stops; the browser then comes back.
        """
        pause_s = parse_seconds(pause, name="pause", zero=False)
        return server_sent(self.public_events(**public), pause_s)

    @abstractmethod
    def events(self) -> AsyncGenerator[RuntimeEvent, None]:
        """Yields the events of the job from its beginning to `final.result` or `final.error`."""

    @property
    @abstractmethod
    def _is_agent(self) -> bool | None:
        """True if the job runs an Agent, False if it runs a function; None if only the program of the kernel knows it."""

    @abstractmethod
    async def _recorded_events(self, job_id: str) -> list[RuntimeEvent]: ...

    async def cancel(self, reason: str = "") -> None:
        """Requests that the job ends. Its function gets a CancelledError at the `await` where it waits. The request is
        durable when this method returns, but the job may end later. Raises LetterRefused if the job has ended, or if a
        cancel was requested before.
        """
        await self._post(cancel_letter(self.job_id, reason))

    async def get_pending_actions(self) -> list[ActionRecord]:
        """Returns the open questions of the job and of all jobs below it (its children, and theirs), in the order in
        which they were asked. `job_id` of a question is the job that has asked it.
        """
        found = await self._actions.find(statuses=[ActionStatus.PENDING])
        return [each for each in found if self._has(each.job_id)]

    def _has(self, job_id: str) -> bool:
        """Returns True for this job and each job below it."""
        while job_id and job_id != self.job_id:
            job_id, _ = parent_of(job_id)
        return bool(job_id)

    async def resolve_action(self, token: str, resolution: Mapping[str, Any], *, by: str = "") -> ActionRecord:
        """Answers the question with this token (`ActionRecord.resume_token`), and returns the answered action. `by` is
        the person who answers. The answer is durable when this method returns. Raises LetterRefused if no question of
        the job or of a job below it has this token, or if it is closed, and UserError if the answer does not fit it.
        """
        checked_word(token, "resolve: resume_token")
        if not any(each.resume_token == token for each in await self.get_pending_actions()):
            asked = await self._actions.find()
            if not any(each.resume_token == token and self._has(each.job_id) for each in asked):
                raise LetterRefused(
                    f"no question of job {self.job_id} or of its children has this token",
                    reason="unknown",
                    hint="kernel.actions.resolve(token, …) answers a question of any job",
                )
        return await self._actions.resolve(token, resolution, by=by)


class ExecutionHandle(JobHandle):
    """The handle of one job of a kernel. Through it a program waits for the job's result, reads its events, answers its
    questions and cancels it. Any number of tasks may use the same handle.
    """

    __slots__ = (
        "_answered",
        "_begins",
        "_begun",
        "_ended",
        "_kernel",
        "_labels",
        "_listening",
        "_outcome",
        "agent",
        "digest",
    )

    def __init__(self, kernel: _Kernel, job_id: str, agent: KernelAgent, digest: bytes = b"") -> None:
        """Makes a handle. Only a kernel calls this. `digest` is the digest of the job's request. The kernel compares it
        with the digest of a later request that has the same idempotency key.
        """
        super().__init__(job_id, kernel.actions, kernel.post)
        self.digest = digest
        self._kernel = kernel
        self.agent = agent
        self._outcome: ExecutionResult | bytes | BaseException | None = None  # bytes: the body of its END
        self._ended = False  # the journal has an END of the job, which may not be durable yet
        self._labels = frozenset[str]()  # of that END
        self._answered: asyncio.Event | None = None  # wakes the tasks that wait for the outcome
        self._begins: asyncio.Event | None = None  # wakes the tasks that wait for BEGIN
        self._begun: bool | None = None
        self._listening: list[Subscription] = []

    @property
    def done(self) -> bool:
        """True if the job has ended or is blocked, or if its kernel has stopped. Then `result` returns or raises at
        once. A job is blocked if the present code of its agent requests other effects than its journal has.
        """
        return self._outcome is not None

    async def result(self) -> ExecutionResult:
        """Waits until the job has ended and its end is durable, and returns its result. If the job has ended without
        success, raises its error:

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
        note_labels(self._labels)  # a tool of a job may have begun this one
        if isinstance(self._outcome, bytes):
            self._outcome = self.agent.result(self.job_id, self._outcome)
        if isinstance(self._outcome, BaseException):
            raise self._outcome.with_traceback(None)
        assert self._outcome is not None
        return self._outcome

    async def events(self) -> AsyncGenerator[RuntimeEvent, None]:
        """Yields the events of the job from its beginning, and then each new event when it comes. The last event is
        `final.result` or `final.error`. These events are for the program: they have prompts, arguments, results, costs,
        and the tokens with which anybody may answer the questions of the job. Customers get `public_events`.

        The pieces of answers (`model.token`, `model.reasoning`) are not in the journal. While a model writes an answer,
        its pieces are kept, so a caller that comes later gets them too: first one piece with all the text so far, then
        each further piece. When the answer is recorded, the pieces are dropped, and `model.done` has the whole answer. A
        caller gets the pieces of an attempt from its first one on, without gaps or repeats, or not at all: a kernel
        keeps at most 1,000,000 characters for a job and 50,000,000 in all, and drops the pieces of an answer beyond that.

        Raises the error of `result` if the job is blocked, or if the kernel stops. Raises UserError if the job has ended
        and its entries are no longer in the journal.
        """
        live, told, heard = (
            self._kernel.event_bus.listen(job_id=self.job_id, capacity=_WAITING),
            set[str](),
            HeardPieces(),
        )
        self._listening.append(live)
        if self.done and not self._ended:
            live.close()
        try:
            while True:
                missed = live.dropped  # what a slow reader has missed is in the journal, or kept
                kept = self._kernel.kept_pieces(self.job_id)
                recorded = await self._kernel.recorded_events(self.job_id)
                waiting = list(live.queue)
                early = [event for event in waiting if event.type in _PIECES]
                live.queue.clear()
                live.queue.extend(event for event in waiting if event.type not in _PIECES)
                if not recorded and self._ended:
                    raise UserError(f"job {self.job_id} has ended so long ago that its events are forgotten")
                first = recorded[0] if recorded else None
                whom = ("", "", "") if first is None else (first.scope_id, first.principal_id, first.session_id)
                starts = (at for at, event in enumerate(recorded) if event.type is RuntimeEventType.JOB_STARTED)
                last_start = max(starts, default=-1)
                for at, event in enumerate(recorded):
                    if event.event_id in told:
                        continue
                    if event.type is RuntimeEventType.MODEL_DONE:
                        for piece in heard.of(kept, early, whom, event.data["ordinal"]):
                            yield piece
                    told.add(event.event_id)
                    _note(heard, event)
                    yield event
                    if event.type in _FINAL and at > last_start and self._ended:  # not the end of a run before a retry
                        return
                for piece in heard.of(kept, early, whom, None):
                    yield piece
                while live.queue or live.dropped == missed:
                    try:
                        event = await anext(live)
                    except StopAsyncIteration:
                        await self.result()
                        return
                    if event.type in _PIECES:
                        if not heard.takes(event):
                            continue
                    elif event.event_id in told:
                        continue
                    else:
                        told.add(event.event_id)
                        _note(heard, event)
                    yield event
                    if event.type in _FINAL:
                        return
        finally:
            live.close()
            self._listening.remove(live)

    @property
    def _is_agent(self) -> bool:
        return isinstance(self.agent.agent, Agent)

    async def _recorded_events(self, job_id: str) -> list[RuntimeEvent]:
        return await self._kernel.recorded_events(job_id)

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

    def ends(self, labels: Iterable[str]) -> None:
        """Notes that the journal has the END entry of the job, with these labels. The kernel calls `settle` when the entry is
        durable.
        """
        self._ended, self._labels = True, frozenset(labels)

    def settle(self, outcome: bytes | BaseException, *, ended: bool) -> None:
        """Sets the outcome that `result` returns or raises, and wakes the tasks that wait for it. Does nothing if there
        is an outcome already. The kernel calls this.

        - `outcome`: the encoded result, or the error.
        - `ended`: True if the END entry of the job is durable. Then `events` yields a last event. False if the job is blocked or
          the kernel stops. Then `events` raises the error.
        """
        if self._outcome is not None:
            return
        self._outcome, self._ended = outcome, ended
        if not ended:
            for live in self._listening:
                live.close()
        if self._answered is not None:
            self._answered.set()


class ElsewhereHandle(ExecutionHandle):
    """The handle of a job that another worker of the journal runs. Its outcome and its events come from the journal: within a
    tenth of the time that was waited, and within a second. It has no pieces of answers. It stays good when the job moves.
    """

    __slots__ = ("_client",)

    def __init__(self, kernel: _Kernel, client: JobHandle, agent: KernelAgent) -> None:
        """`client`: the handle of a client for the same job."""
        super().__init__(kernel, client.job_id, agent)
        self._client = client
        self.begun()

    def events(self) -> AsyncGenerator[RuntimeEvent, None]:
        return self._client.events()

    async def _recorded_events(self, job_id: str) -> list[RuntimeEvent]:
        return await self._client._recorded_events(job_id)


def _note(heard: HeardPieces, event: RuntimeEvent) -> None:
    """Tells `heard` of a recorded event after which pieces count anew: the end of an answer, or the job's beginning."""
    if event.type is RuntimeEventType.MODEL_DONE:
        heard.close(event.data["ordinal"])
    elif event.type is RuntimeEventType.JOB_STARTED:
        heard.begin()


def outcome_in(end: End) -> bytes | BaseException:
    """Returns the outcome that an END entry has, whose body is in it (`outcome_of`)."""
    assert isinstance(end.body, bytes)
    return outcome_of(end.job, end.outcome, end.body)


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
