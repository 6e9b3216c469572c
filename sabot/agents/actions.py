"""Actions: questions of jobs to people, each of which is answered once.

An action is pending until it is resolved, expires, or is cancelled. Anybody who has the token of an action may resolve it
once, from this process or, through the inbox of the journal, from another one. Programs use `ActionManager`.
`store.JournalStore` keeps actions in the same journal as jobs.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from sabot.agents.context import checked_fields, checked_word
from sabot.base.checks import TEXTS, Of, check
from sabot.base.config import Duration, parse_seconds
from sabot.clock import Clock
from sabot.errors import IllegalTransition, LetterRefused, UserError, short_repr
from sabot.jobs.guard import CONFIRM
from sabot.jobs.history import ACTION_TYPES, IN_DOUBT, LOOK_UP, VERDICTS
from sabot.jobs.values import rows_of_answer

__all__ = [
    "ACTION_TYPES",
    "ActionManager",
    "ActionRecord",
    "ActionSpec",
    "ActionStatus",
    "ActionStore",
    "LocalSignals",
    "SignalChannel",
    "check_resolution",
]


class ActionStatus(StrEnum):
    """The states of an action. PENDING is the first. The others say how the action was closed, and are final."""

    PENDING = "pending"
    RESOLVED = "resolved"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionSpec:
    """The specification of a question.

    - `type`: one of ACTION_TYPES, or "custom".
    - `payload`: the data that the person is shown. It must be JSON.
    - `timeout_seconds`: the time in which the question may be answered; None means no limit.
    """

    job_id: str
    type: str = "confirm"
    payload: dict[str, Any] = field(default_factory=dict)
    timeout_seconds: Duration | None = None

    def __post_init__(self) -> None:
        checked_word(self.job_id, "job_id", empty=False)
        if self.type not in ACTION_TYPES:
            raise UserError(
                f"type={short_repr(self.type)} is no type of actions", hint=f"one of {', '.join(ACTION_TYPES)}"
            )
        if self.timeout_seconds is not None:
            object.__setattr__(self, "timeout_seconds", parse_seconds(self.timeout_seconds, name="timeout_seconds"))
        checked_fields(self.payload, "payload")


@dataclass(slots=True, kw_only=True)
class ActionRecord:
    """The record of an action. Times are in seconds since 1970. The caller that asked the question in this process has
    an object of its own, which an ActionManager updates when it sees the answer, and returns again.

    - `resolution`: the answer; {} unless the action was resolved.
    - `by`: the person who resolved the action, or "" if that is not known.
    """

    action_id: str
    job_id: str
    type: str
    payload: Mapping[str, Any]
    resume_token: str
    created_at: float
    expires_at: float | None
    status: ActionStatus = ActionStatus.PENDING
    resolution: Mapping[str, Any] = field(default_factory=dict)
    resolved_at: float | None = None
    by: str = ""

    @property
    def approves_effect(self) -> bool:
        """True if the question asks for approval of an effect."""
        return self.type == CONFIRM and self.payload.keys() >= {"effect", "ordinal", "rule"}

    def overdue(self, now: float) -> bool:
        """Returns True if the action is pending, although its time had run out at the time `now` (seconds since 1970)."""
        return self.status is ActionStatus.PENDING and self.expires_at is not None and now > self.expires_at


def no_action(action_id: str) -> UserError:
    """Returns the error for an id that no action has."""
    return UserError(
        f"action {action_id}: there is none of this name",
        hint="`find` lists the actions, as does `sabot actions list`; those of a job that ended long ago are forgotten",
    )


def check_resolution(action: ActionRecord, resolution: Mapping[str, Any]) -> None:
    """Checks the answer to a question about an effect. Raises UserError in two cases:

    - The answer does not say whether the effect may be made, or whether it was made. Without this check the job would
      take such an answer for a refusal or for "abandon".
    - The answer says that the effect was made, but lacks the rows that the effect returns.
    """
    if action.approves_effect and not isinstance(resolution.get("approved"), bool):
        raise UserError(
            f"action {action.action_id} asks whether {action.payload['effect']} may be done, "
            f"and {short_repr(dict(resolution))} does not say it",
            hint='{"approved": true}, or false',
        )
    if action.type == IN_DOUBT and "effect" in action.payload:
        said = resolution.get("outcome", resolution.get("answer"))
        if said not in (*VERDICTS, *action.payload.get("answers", ())):
            raise UserError(
                f"action {action.action_id} asks whether {action.payload['effect']} was done, "
                f"and {short_repr(dict(resolution))} does not say it",
                hint='{"outcome": "done"}, "not_done" (it is made again), or "abandon"'
                + (
                    ', or "look_up" (reconcile= is asked again)' if LOOK_UP in action.payload.get("answers", ()) else ""
                ),
            )
        if said == "done" and action.payload.get("gives") == "rows":
            rows_of_answer(resolution.get("result"))  # without the rows, the job would have no output for them


class ActionStore(ABC):
    """A store of actions, for one event loop. If the store is durable, the changes of a method are durable when it
    returns.
    """

    clock: Clock

    @abstractmethod
    async def require(self, spec: ActionSpec) -> ActionRecord:
        """Makes a pending action with a new token, and returns it. If the store knows the job of the action, the job
        then has the status `waiting_action`. Raises IllegalTransition if the job may not change to that status.
        """

    @abstractmethod
    async def action(self, action_id: str) -> ActionRecord | None:
        """Returns the action as it is now, or None if no action has this id. An answer that another process has given
        is included.
        """

    @abstractmethod
    async def resolve(self, token: str, resolution: Mapping[str, Any], by: str) -> ActionRecord:
        """Resolves the action with this token, and returns it. Raises LetterRefused with the reason: "unknown" (no
        action has the token), "second" (the action was answered before), "expired" or "closed".
        """

    @abstractmethod
    async def close_action(self, action_id: str, status: ActionStatus) -> ActionRecord:
        """Closes an action as expired or cancelled, and returns it. If it was answered before that, returns the
        answered action.
        """

    @abstractmethod
    async def actions(self, *, job_id: str | None = None, statuses: Sequence[ActionStatus] = ()) -> list[ActionRecord]:
        """Returns the actions of a job, or of all jobs if `job_id` is None, in the order in which they were asked. Only
        actions in one of `statuses` are returned; () means all.
        """


class SignalChannel(Protocol):
    """A channel that wakes the callers that wait for an action. It may lose signals, or send too many. So a waiting
    caller reads the store again after each signal, and also from time to time.
    """

    async def notify(self, action_id: str) -> None:
        """Wakes the callers that wait for this action. Called when the action was closed."""

    async def wait(self, action_id: str, seconds: float) -> None:
        """Waits for a signal about this action, for at most `seconds` seconds."""


class LocalSignals:
    """A SignalChannel within one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    async def notify(self, action_id: str) -> None:
        """Wakes the callers that wait for this action."""
        for event in self._waiting.get(action_id, ()):
            event.set()

    async def wait(self, action_id: str, seconds: float) -> None:
        """Waits for the next `notify` of this action, for at most `seconds` seconds."""
        event = asyncio.Event()
        waiting = self._waiting.setdefault(action_id, set())
        waiting.add(event)
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return
        finally:
            waiting.discard(event)
            if not waiting:
                self._waiting.pop(action_id, None)


class ActionManager:
    """A manager of the actions in a store. If the store is over a journal on disk, the actions survive the process, and
    can be resolved while the process does not run.

    - `signal_channel`: wakes `wait_for_resolution` at once when an action is answered.
    - `poll`: the time after which `wait_for_resolution` reads the store again. So it also finds an answer that the
      channel does not report, for example one from another process.

    The time of day is that of the store's clock.
    """

    def __init__(
        self, store: ActionStore, signal_channel: SignalChannel | None = None, *, poll: Duration = "200ms"
    ) -> None:
        check(
            "ActionManager: store",
            store,
            Of(ActionStore, "an InMemoryActionStore, a PostgresActionStore, a JournalStore"),
        )
        self.store = store
        self._signals = signal_channel if signal_channel is not None else LocalSignals()
        self._poll_seconds = parse_seconds(poll, name="poll")
        self._asked: dict[str, ActionRecord] = {}  # by id: the handles of actions that are open, as far as is known

    def _seen(self, action: ActionRecord) -> ActionRecord:
        """Updates the ActionRecord that `require_action` has returned for this action, and returns that object. If
        nobody in this process has asked the question, returns `action`.
        """
        handle = self._asked.get(action.action_id, action)
        for name in ("status", "resolution", "resolved_at", "by"):
            setattr(handle, name, getattr(action, name))
        if handle.status is not ActionStatus.PENDING:
            self._asked.pop(handle.action_id, None)
        return handle

    async def require_action(self, spec: ActionSpec) -> ActionRecord:
        """Asks a question, and returns its action. If the store knows the job, the job then waits for the answer
        (`waiting_action`). Raises IllegalTransition if the job does not run.

        A tool of an agent may also call this, with the id of the agent's job, if a kernel or an app runs that job. Then
        the call of the tool ends here, and the job is parked. After the answer the tool is called again from its
        beginning, and this method returns the closed action. So the tool's code before this line runs twice, and the
        code after it once. Each call of a tool can ask one question, on the event loop of the job.
        """
        check("require_action: spec", spec, Of(ActionSpec, "ActionSpec(…)"))
        action = await self.store.require(spec)
        if action.status is ActionStatus.PENDING:
            self._asked[action.action_id] = action
        return action

    async def get(self, action_id: str) -> ActionRecord:
        """Returns the action as it is now. Raises UserError if no action has this id."""
        action = await self.store.action(checked_word(action_id, "action_id"))
        if action is None:
            raise no_action(action_id)
        if action.overdue(self.store.clock.time()):
            return await self._closed(action_id, ActionStatus.EXPIRED)
        return self._seen(action)

    async def resolve(self, resume_token: str, resolution: Mapping[str, Any], *, by: str = "") -> ActionRecord:
        """Answers the action with this token, and returns it. Raises LetterRefused with the reason: "unknown" (no
        action has the token), "second" (the action was answered before), "expired" or "closed".
        """
        checked_word(resume_token, "resolve: resume_token")
        check("resolve: resolution", resolution, Of(Mapping, 'an object, as in {"approved": True}'))
        try:
            action = await self.store.resolve(resume_token, resolution, checked_word(by, "by"))
        except LetterRefused as refused:
            if refused.reason == "expired":
                await self.expire()
            raise
        await self._signals.notify(action.action_id)
        return self._seen(action)

    async def cancel(self, action_id: str) -> ActionRecord:
        """Withdraws the question, and returns the cancelled action. Raises IllegalTransition if the action was closed
        before.
        """
        action = await self.get(action_id)
        if action.status is ActionStatus.PENDING:
            action = await self._closed(action_id, ActionStatus.CANCELLED)
            if action.status is ActionStatus.CANCELLED:
                return action
        raise IllegalTransition(f"action {action_id} is {action.status}, and cannot become cancelled")

    async def _closed(self, action_id: str, status: ActionStatus) -> ActionRecord:
        action = await self.store.close_action(action_id, status)
        await self._signals.notify(action_id)
        return self._seen(action)

    async def wait_for_resolution(self, action_id: str, timeout: Duration | None = None) -> ActionRecord:
        """Waits until the action is resolved, has expired or was cancelled, and returns it. If that takes longer than
        `timeout`, raises TimeoutError, and the action stays open. None waits without a limit.
        """
        seconds = None if timeout is None else parse_seconds(timeout, name="timeout")
        async with asyncio.timeout(seconds):
            while (action := await self.get(action_id)).status is ActionStatus.PENDING:
                await self._signals.wait(action_id, self._poll_seconds)
        return action

    async def expire(self) -> list[ActionRecord]:
        """Closes the pending actions whose time has run out. Returns those that are now expired."""
        now = self.store.clock.time()
        overdue = [each for each in await self.store.actions(statuses=[ActionStatus.PENDING]) if each.overdue(now)]
        closed = [await self._closed(each.action_id, ActionStatus.EXPIRED) for each in overdue]
        return [each for each in closed if each.status is ActionStatus.EXPIRED]

    async def find(self, *, job_id: str | None = None, statuses: Sequence[ActionStatus] = ()) -> list[ActionRecord]:
        """Returns the actions of a job, or of all jobs if `job_id` is None, in the order in which they were asked. Only
        actions in one of `statuses` are returned; () means all.
        """
        if job_id is not None:
            checked_word(job_id, "find: job_id")
        check("find: statuses", statuses, TEXTS)
        return list(map(self._seen, await self.store.actions(job_id=job_id, statuses=statuses)))
