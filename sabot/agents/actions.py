"""Actions: questions to people, asked once, answered once.

An action is pending until it is resolved, expires, or is cancelled. Who has its token may resolve it, from this process or another one (the
inbox of the journal), once. `ActionManager` is what programs use; `store.JournalStore` keeps actions where it keeps jobs.
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
from sabot.jobs.core import IN_DOUBT, LOOK_UP, VERDICTS
from sabot.jobs.guard import CONFIRM
from sabot.jobs.history import ACTION_TYPES
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
    """pending, and how it was closed. What is closed stays so."""

    PENDING = "pending"
    RESOLVED = "resolved"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionSpec:
    """A question of a job.

    type: one of ACTION_TYPES; "custom" for what is none of them. payload: what the person is shown, as JSON can say it. timeout_seconds:
    how long it may be answered; None: for ever.
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
    """A handle of an action. Who asked by an ActionManager sees the answer in the same object, once that manager has seen it. Times are
    epoch seconds.

    resolution: {} until it is resolved, and where it never is. by: who resolved it, if they said so.
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
        """A rule wants to know whether an effect may be made."""
        return self.type == CONFIRM and self.payload.keys() >= {"effect", "ordinal", "rule"}

    def overdue(self, now: float) -> bool:
        """It is pending, and may not be answered any more."""
        return self.status is ActionStatus.PENDING and self.expires_at is not None and now > self.expires_at


def check_resolution(action: ActionRecord, resolution: Mapping[str, Any]) -> None:
    """Raises UserError where a job asks whether an effect was made, or may be made, and the answer does not say it: the job would take it
    for "abandon", or for a refusal. Likewise where the effect gives rows, and the answer says that it was done, and not which rows it gave.
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
            rows_of_answer(resolution.get("result"))  # which the job needs: it would have no output for them


class ActionStore(ABC):
    """Where actions are kept. Used from one event loop. What a method returns is durable, as far as the store is."""

    clock: Clock

    @abstractmethod
    async def require(self, spec: ActionSpec) -> ActionRecord:
        """A pending action with a token of its own. A job that the store knows waits for it: IllegalTransition where that cannot be."""

    @abstractmethod
    async def action(self, action_id: str) -> ActionRecord | None:
        """The action as it is now, with answers that came from outside."""

    @abstractmethod
    async def resolve(self, token: str, resolution: Mapping[str, Any], by: str) -> ActionRecord:
        """The action of this token, resolved. Raises LetterRefused with the reason: unknown, second, expired or closed."""

    @abstractmethod
    async def close_action(self, action_id: str, status: ActionStatus) -> ActionRecord:
        """The action, expired or cancelled; or as it is, where an answer came first."""

    @abstractmethod
    async def actions(self, *, job_id: str | None = None, statuses: Sequence[ActionStatus] = ()) -> list[ActionRecord]:
        """Actions of this job (None: of all) in one of these statuses (none: in any), in the order in which they were asked."""


class SignalChannel(Protocol):
    """How who waits for an action hears that it was closed. It may miss, or say too much: who waits looks again, now and then anyway."""

    async def notify(self, action_id: str) -> None:
        """This action was closed."""

    async def wait(self, action_id: str, seconds: float) -> None:
        """Returns when this action was closed after the call began, or after so many seconds."""


class LocalSignals:
    """A SignalChannel within an event loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    async def notify(self, action_id: str) -> None:
        """Wakes who waits for it."""
        for event in self._waiting.get(action_id, ()):
            event.set()

    async def wait(self, action_id: str, seconds: float) -> None:
        """Returns at `notify`, or after so many seconds."""
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
    """Actions of a store. With a store in a journal on disk they survive the process, and can be resolved while it is gone.

    signal_channel: by which `wait_for_resolution` hears of answers at once; answers from other processes are found each `poll`. Time is
    that of the store's clock.
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
        self._asked: dict[str, ActionRecord] = {}  # handles of questions that are open, as far as is known

    def _seen(self, action: ActionRecord) -> ActionRecord:
        """The handle that whoever asked has, with what is known now."""
        handle = self._asked.get(action.action_id, action)
        for name in ("status", "resolution", "resolved_at", "by"):
            setattr(handle, name, getattr(action, name))
        if handle.status is not ActionStatus.PENDING:
            self._asked.pop(handle.action_id, None)
        return handle

    async def require_action(self, spec: ActionSpec) -> ActionRecord:
        """Asks. The job waits for the answer (`waiting_action`), if it is one of the store's; IllegalTransition where it does not run.

        In a tool of an agent that a kernel or an app runs, with the id of its job: the call ends here, and the job is parked. Behind the
        answer the tool is called again from its beginning, and this returns the action as it was closed. So what stands before it happens
        twice, and what stands behind it once. A call asks one question; an event loop of the tool's own may not ask.
        """
        check("require_action: spec", spec, Of(ActionSpec, "ActionSpec(…)"))
        action = await self.store.require(spec)
        if action.status is ActionStatus.PENDING:
            self._asked[action.action_id] = action
        return action

    async def get(self, action_id: str) -> ActionRecord:
        """The action as it is now. Raises UserError where there is none."""
        action = await self.store.action(checked_word(action_id, "action_id"))
        if action is None:
            raise UserError(f"action {action_id}: there is none of this name")
        if action.overdue(self.store.clock.time()):
            return await self._closed(action_id, ActionStatus.EXPIRED)
        return self._seen(action)

    async def resolve(self, resume_token: str, resolution: Mapping[str, Any], *, by: str = "") -> ActionRecord:
        """Answers the action of this token, once. Raises LetterRefused with the reason: unknown, second, expired or closed."""
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
        """The question is withdrawn. Raises IllegalTransition where it was closed before."""
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
        """Returns when the action is closed, however it is: resolved, expired, cancelled. Raises TimeoutError after `timeout`; the action
        goes on.
        """
        seconds = None if timeout is None else parse_seconds(timeout, name="timeout")
        async with asyncio.timeout(seconds):
            while (action := await self.get(action_id)).status is ActionStatus.PENDING:
                await self._signals.wait(action_id, self._poll_seconds)
        return action

    async def expire(self) -> list[ActionRecord]:
        """Closes the actions that may not be answered any more, and returns those that no answer had reached first."""
        now = self.store.clock.time()
        overdue = [each for each in await self.store.actions(statuses=[ActionStatus.PENDING]) if each.overdue(now)]
        closed = [await self._closed(each.action_id, ActionStatus.EXPIRED) for each in overdue]
        return [each for each in closed if each.status is ActionStatus.EXPIRED]

    async def find(self, *, job_id: str | None = None, statuses: Sequence[ActionStatus] = ()) -> list[ActionRecord]:
        """As `ActionStore.actions`."""
        if job_id is not None:
            checked_word(job_id, "find: job_id")
        check("find: statuses", statuses, TEXTS)
        return list(map(self._seen, await self.store.actions(job_id=job_id, statuses=statuses)))
