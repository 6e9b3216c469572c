"""Actions: questions of jobs to people, each of which is answered once.

An action is pending until it is resolved, expires, or is cancelled. Anybody who has the token of an action may resolve it
once, from this process or, through the inbox of the journal, from another one. Programs use `ActionManager`.
`store.JournalStore` keeps actions in the same journal as jobs.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Protocol
from weakref import WeakValueDictionary

from sabot.agents.context import checked_fields, checked_word
from sabot.base.checks import TEXTS, Of, check
from sabot.base.config import Duration, parse_seconds
from sabot.base.options import answers_wrong_options
from sabot.clock import Clock
from sabot.engine.calls.edits import edited_arguments
from sabot.engine.calls.judging import ValueCode
from sabot.engine.calls.names import tools_named
from sabot.errors import IllegalTransition, LetterRefused, UserError, short_repr
from sabot.jobs.answers import ALWAYS, APPROVAL_WORDS, DOUBT_WORDS, check_no_mask
from sabot.jobs.given_results import check_result
from sabot.jobs.guard import CONFIRM
from sabot.jobs.history import ACTION_TYPES, IN_DOUBT, LOOK_UP, VERDICTS
from sabot.jobs.url_ids import stored_id
from sabot.mcp.elicitation import check_reply

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
    """The states of an action, which is a question of a job to a person. A new action is PENDING. The other three
    states are final: RESOLVED (a person answered), EXPIRED (the time for an answer ran out) and CANCELLED (the question
    was withdrawn, or the job ended first).
    """

    PENDING = "pending"
    RESOLVED = "resolved"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


@answers_wrong_options
@dataclass(frozen=True, slots=True, kw_only=True)
class ActionSpec:
    """The content of a new action, which is a question of a job to a person.

    - `job_id`: the id of the job that asks.
    - `type`: the type of the question, one of the words in `ACTION_TYPES`.
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


@dataclass(slots=True, kw_only=True, weakref_slot=True)
class ActionRecord:
    """The state of an action, which is a question of a job to a person. Times are in seconds since 1970.

    - `resume_token`: the secret with which anybody may answer the question.
    - `expires_at`: the time until which the question may be answered, or None if there is no limit.
    - `resolution`: the answer as a JSON object; {} unless the status is RESOLVED.
    - `resolved_at`: the time at which the action was closed, or None while it is pending.
    - `by`: the person who answered, or "" if that is not known.

    If the question was asked through an `ActionManager`, this manager updates the object that it has returned to the
    caller when it later reads the answer from the store.
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
        """True if the question of this action is whether a job may make an effect (an approval that a policy has
        required).
        """
        return self.type == CONFIRM and self.payload.keys() >= {"effect", "ordinal", "rule"}

    def overdue(self, now: float) -> bool:
        """Returns True if the action is still pending at the time `now` (seconds since 1970) and its `expires_at` is
        earlier than `now`.
        """
        return self.status is ActionStatus.PENDING and self.expires_at is not None and now > self.expires_at


def no_action(action_id: str) -> UserError:
    """Returns the error for an id that no action has."""
    return UserError(
        f"action {action_id}: there is none of this name",
        hint="`find` lists the actions, as does `sabot actions list`; those of a job that ended long ago are forgotten",
    )


def check_resolution(action: ActionRecord, resolution: Mapping[str, Any]) -> None:
    """Checks the answer `resolution` to the question `action`. Only questions about an effect and questions of MCP
    servers are checked. Raises UserError in these cases:

    - The question asks whether an effect may be made, and the answer has no True or False in the field "approved".
      Without this check, the job would treat such an answer as a refusal.
    - The answer to such a question has "arguments" that the call may not or cannot be given, or another word as "always"
      than "job", "scope" and, if the job has a session, "session", or a field of another name.
    - The question asks whether an effect was made, and the answer has none of the allowed words in the field "outcome".
      Without this check, the job would treat such an answer as "abandon".
    - The answer is that the effect was made, but it lacks the result that the tool returns, or has one of another type.
      Without this check, the job would continue with a value that its function does not expect.
    - The server of an MCP tool asks for certain fields, and the answer does not have them.
    """
    if action.approves_effect:
        _check_approval(action, resolution)
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
        _check_fields(action, resolution, DOUBT_WORDS)
        if "outcome" in resolution and "answer" in resolution:
            raise UserError(
                f"action {action.action_id}: outcome and answer are two names of one field", hint="give one of them"
            )
        if said == "done":
            check_result(action.payload, resolution.get("result"))
    check_reply(action.payload, resolution)


def _check_approval(action: ActionRecord, resolution: Mapping[str, Any]) -> None:
    effect, where = action.payload["effect"], f"action {action.action_id}"
    approved = resolution.get("approved")
    if not isinstance(approved, bool):
        raise UserError(
            f"{where} asks whether {effect} may be done, and {short_repr(dict(resolution))} does not say it",
            hint='{"approved": true}, or false',
        )
    _check_fields(action, resolution, APPROVAL_WORDS)
    always, changes = resolution.get("always"), resolution.get("arguments")
    if not approved and (always is not None or changes is not None):
        raise UserError(f"{where}: a refusal changes no arguments, and holds for this call", hint='{"approved": false}')
    if always is not None and always not in ALWAYS:
        raise UserError(
            f"{where}: always={short_repr(always)} is none of {', '.join(ALWAYS)}",
            hint='"job": for the rest of this job; "session": for its session; "scope": for all jobs of this tenant',
        )
    taken = action.payload.get("always", ALWAYS)
    if always is not None and not taken:
        raise UserError(
            f"{where} asks each time: by its rule, or because nothing tells {effect} from another tool of its name",
            hint="leave always= out; a lambda, and a function or a method that has got an object or a list where it was made, "
            'needs a name for it, which no other tool has: @tool(name="pay_eu")',
        )
    if always is not None and always not in taken:
        raise UserError(
            f"{where}: always={short_repr(always)}: job {action.job_id} belongs to no session",
            hint='"job" or "scope"; a session has a job that begins with ExecutionRequest(session_id="…"), or in an app '
            "one of an agent with key=",
        )
    if changes is None:
        return
    if always is not None and changes != {}:
        raise UserError(
            f"{where}: an approval with other arguments holds for this call",
            hint="leave always= out: later calls would be made with arguments that nobody has seen; or approve the call as it is",
        )
    if not isinstance(changes, Mapping):
        raise UserError(
            f"{where}: arguments={short_repr(changes)} is no object",
            hint='an object: {"approved": true, "arguments": {"amount": 50}}',
        )
    if action.payload.get("kind") != "tool" or not action.payload.get("editable", True):
        raise UserError(
            f"{where}: the arguments of {effect} cannot be changed",
            hint="approve or refuse it as it is: only calls of tools can be changed, and a rule may have editable=False",
        )
    try:
        check_no_mask(changes, _arguments(action)[1], action.payload.get("hidden", ()))
    except UserError as error:
        raise UserError(f"{where}: {error.message}", hint=error.hint) from None
    _check_changes(action, changes)


def _check_fields(action: ActionRecord, said: Mapping[str, Any], words: Sequence[str]) -> None:
    """Raises UserError for a field that the answer to this question does not have: it would be ignored, and the call be
    made otherwise than the person has meant.
    """
    unknown = next((name for name in said if name not in words), None)
    if unknown is None:
        return
    hint = f"its fields are {', '.join(words)}"
    if near := get_close_matches(str(unknown), words, n=1):
        hint = f"did you mean {near[0]!r}?"
    elif "arguments" in words:
        hint += f'; arguments are changed by {{"approved": true, "arguments": {{"{unknown}": …}}}}'
    raise UserError(f"action {action.action_id}: an answer has no field {short_repr(unknown)}", hint=hint)


def _arguments(action: ActionRecord) -> tuple[list[Any], dict[str, Any]]:
    match action.payload.get("arguments"):
        case [list() as args, dict() as named]:
            return args, named
    return [], {}


def _check_changes(action: ActionRecord, changes: Mapping[str, Any]) -> None:
    """Raises UserError if tools of this name are known in this process, and none of them takes the changes. Of arguments
    that are cut it is known only when the job gets the answer.
    """
    if action.payload.get("cut"):
        return
    args, named = _arguments(action)
    wrong: UserError | None = None
    for tool in tools_named(str(action.payload["effect"])):
        try:
            with ValueCode(tool.name):
                edited_arguments(tool, tuple(args), named, changes)
            return
        except UserError as error:
            wrong = error
    if wrong is not None:
        raise UserError(f"action {action.action_id}: {wrong.message}", hint=wrong.hint)


class ActionStore(ABC):
    """A store of actions. An action is a question of a job to a person. Only one event loop may use a store object. If
    the store is durable, each method returns only when its changes are durable.
    """

    clock: Clock

    @abstractmethod
    async def require(self, spec: ActionSpec) -> ActionRecord:
        """Stores a new pending action with a new token, and returns the action. If the store has the job of the action,
        the status of the job becomes `waiting_action`. Raises IllegalTransition if the job may not change to that
        status.
        """

    @abstractmethod
    async def action(self, action_id: str) -> ActionRecord | None:
        """Returns the present state of the action with this id, or None if there is no such action. Answers that other
        processes have given are included.
        """

    @abstractmethod
    async def resolve(self, token: str, resolution: Mapping[str, Any], by: str) -> ActionRecord:
        """Stores the answer `resolution` to the action with this token, and returns the answered action. `by` is the
        person who answers. Raises LetterRefused with one of these reasons:

        - "unknown": no action has this token.
        - "second": the action was answered or withdrawn before.
        - "expired": the time for an answer has run out.
        - "closed": the action is no longer open, for example because its job has ended.
        """

    @abstractmethod
    async def close_action(self, action_id: str, status: ActionStatus) -> ActionRecord:
        """Closes a pending action with the status `status`, which is EXPIRED or CANCELLED, and returns the action. If
        the action was closed before, for example by an answer, changes nothing and returns it with the status that it
        has.
        """

    @abstractmethod
    async def actions(self, *, job_id: str | None = None, statuses: Sequence[ActionStatus] = ()) -> list[ActionRecord]:
        """Returns the actions of a job, or of all jobs if `job_id` is None, in the order in which they were asked. Only
        actions in one of `statuses` are returned; () means all.
        """


class SignalChannel(Protocol):
    """A channel that wakes the callers that wait for an action. It may lose signals, and it may send signals for which
    there is no reason. So a waiting caller reads the store again after each signal, and also from time to time.
    """

    async def notify(self, action_id: str) -> None:
        """Wakes the callers that wait for this action, so that they read its state from the store. The caller of
        `notify` has closed the action before.
        """

    async def wait(self, action_id: str, seconds: float) -> None:
        """Waits until somebody calls `notify` for this action, but for at most `seconds` seconds. Returns in both
        cases.
        """


class LocalSignals:
    """A SignalChannel for callers that use the same event loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    async def notify(self, action_id: str) -> None:
        """Wakes the callers that wait for this action."""
        for event in self._waiting.get(action_id, ()):
            event.set()

    async def wait(self, action_id: str, seconds: float) -> None:
        """Waits until the next call of `notify` for this action, but for at most `seconds` seconds. Returns in both
        cases.
        """
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


@answers_wrong_options
class ActionManager:
    """A manager of the actions (questions to people) in a store. If the store keeps them in a journal on disk, they
    survive the process, and can be answered while the process does not run.

    - `signal_channel`: wakes `wait_for_resolution` at once when an action is answered. None makes a channel for this
      event loop only.
    - `poll`: the time after which `wait_for_resolution` reads the store again. In this way it also finds an answer that
      the channel does not report, for example one from another process.

    The manager uses the clock of the store.
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
        # by id: the handles of actions that are open, as far as is known, and that a caller still has
        self._asked: WeakValueDictionary[str, ActionRecord] = WeakValueDictionary()

    def _seen(self, action: ActionRecord) -> ActionRecord:
        """Updates the ActionRecord that `require_action` has returned for this action earlier, and returns it. `action`
        is the present state in the store. If no such object is known (another manager has asked the question, the
        caller has dropped the object, or it was closed before), returns `action` itself.
        """
        handle = self._asked.get(action.action_id, action)
        for name in ("status", "resolution", "resolved_at", "by"):
            setattr(handle, name, getattr(action, name))
        if handle.status is not ActionStatus.PENDING:
            self._asked.pop(handle.action_id, None)
        return handle

    async def require_action(self, spec: ActionSpec) -> ActionRecord:
        """Asks a person the question `spec`, and returns its action. If the store has the job, the job waits for the
        answer with the status `waiting_action`. Raises IllegalTransition if the job does not run.

        A tool may also call this method, to ask a question for the job that has called the tool. `spec.job_id` is then
        the id of that job, and the store of this manager must be that of the app or kernel which runs the job. The
        first call of this method does not return: the call of the tool is cancelled, and the job waits for the answer.
        After the answer, the tool is called again from its beginning, and this method returns the closed action. So the
        code of the tool before this line runs twice, and the code after it runs once. Each call of a tool can ask one
        question, and must ask it on the event loop of the job.
        """
        check("require_action: spec", spec, Of(ActionSpec, "ActionSpec(…)"))
        action = await self.store.require(spec)
        if action.status is ActionStatus.PENDING:
            self._asked[action.action_id] = action
        return action

    async def get(self, action_id: str) -> ActionRecord:
        """Returns the present state of the action with this id. Closes the action first if its time has run out; the
        status is then EXPIRED, unless an answer came first. Raises UserError if there is no such action.
        """
        action = await self.store.action(checked_word(action_id, "action_id"))
        if action is None:
            raise no_action(action_id)
        if action.overdue(self.store.clock.time()):
            return await self._closed(action_id, ActionStatus.EXPIRED)
        return self._seen(action)

    async def resolve(self, resume_token: str, resolution: Mapping[str, Any], *, by: str = "") -> ActionRecord:
        """Stores the answer `resolution` to the action with this token, and returns the answered action. `by` is the
        person who answers. Raises LetterRefused with one of these reasons:

        - "unknown": no action has this token.
        - "second": the action was answered or withdrawn before.
        - "expired": the time for an answer has run out. Then all actions whose time has run out are closed.
        - "closed": the action is no longer open, for example because its job has ended.

        Raises UserError if the answer is not a JSON object, or does not fit a question about an effect.
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
        before, and UserError if there is no such action.
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
        """Waits until the action is resolved, expired or cancelled, and returns it. Raises TimeoutError if that takes
        longer than `timeout`; the action then remains open. `timeout=None` waits without a limit. Raises UserError if
        there is no such action.
        """
        seconds = None if timeout is None else parse_seconds(timeout, name="timeout")
        async with asyncio.timeout(seconds):
            while (action := await self.get(action_id)).status is ActionStatus.PENDING:
                await self._signals.wait(action_id, self._poll_seconds)
        return action

    async def expire(self) -> list[ActionRecord]:
        """Closes the pending actions whose time has run out. Returns the actions that this call has closed."""
        now = self.store.clock.time()
        overdue = [each for each in await self.store.actions(statuses=[ActionStatus.PENDING]) if each.overdue(now)]
        closed = [await self._closed(each.action_id, ActionStatus.EXPIRED) for each in overdue]
        return [each for each in closed if each.status is ActionStatus.EXPIRED]

    async def find(self, *, job_id: str | None = None, statuses: Sequence[ActionStatus] = ()) -> list[ActionRecord]:
        """Returns the actions of a job, or of all jobs if `job_id` is None, in the order in which they were asked. Only
        actions in one of `statuses` are returned; () means all. `job_id` may be in the form for URLs.
        """
        if job_id is not None:
            checked_word(job_id, "find: job_id")
        check("find: statuses", statuses, TEXTS)
        found = await self.store.actions(job_id=job_id, statuses=statuses)
        if not found and job_id is not None and (other := stored_id(job_id)) != job_id:
            found = await self.store.actions(job_id=other, statuses=statuses)
        return list(map(self._seen, found))
