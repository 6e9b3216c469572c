"""Makes events from the entries of a journal. The listener of a job host publishes them.

   BEGIN                action.cancelled for each open question of the history before (`ctx.continue_as`); job.started
   INTENT, ATTEMPT      tool.start, unless it is denied, or a person has to allow it first; action.required, job.status_changed
   parts of answers     model.token, model.reasoning
   RESULT               model.done, tool.end, tool.error
   ANSWER               action.resolved, .expired, .cancelled; job.status_changed
   END                  action.cancelled for each open question; job.completed, .failed, .cancelled; then final.result or final.error

The id of an event is made of the job id, the ordinal and attempt of the effect, and the type (`job/3/1/tool.end`). For an
event about the whole job it has the time of the entry instead, and for a part of an answer the number of the part. So an
event that is published again after a crash has the same id as before.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from sabot.agents.entry_values import as_plain, value_of
from sabot.agents.events.bus import RuntimeEvent, RuntimeEventType
from sabot.agents.job_view import EffectView, JobState, JobView, action_number, edit_of_effect
from sabot.agents.session_turns import without_turn
from sabot.base.quantities import plain
from sabot.engine.calls.effects import EffectClass
from sabot.engine.calls.messages import ChatMessage
from sabot.errors import EffectError
from sabot.jobs.guard import Decision, decode_verdict
from sabot.jobs.log import Blocked, EarlierEnd, Fragment, Notice, notices_of
from sabot.journal.entries import Answer, Attempt, Begin, EffectResult, End, Entry, Intent, StoredBody, body_of
from sabot.llm.agent import asks_summary

_TYPE = RuntimeEventType
_CLOSED = {"resolved": _TYPE.ACTION_RESOLVED, "expired": _TYPE.ACTION_EXPIRED}
_OF_HISTORIES = (Begin, End)  # of a job, or of a history of it
_ENDS = {"succeeded": _TYPE.JOB_COMPLETED, "cancelled": _TYPE.JOB_CANCELLED}


class JobEvents:
    """A listener that gets the journal entries of running jobs from the JobHost that runs these jobs (see
    `jobs.log.Listener`), and publishes them as events.

    - `publish`: the function to which the events are passed, such as `EventBus.publish`.
    - `wants`: a function that returns False if nobody needs events of a type and job, such as `EventBus.wants`.
    """

    def __init__(
        self, publish: Callable[[RuntimeEvent], Awaitable[None]], wants: Callable[[RuntimeEventType, str], bool]
    ) -> None:
        self._publish_event, self._wants = publish, wants
        self._view = JobView()  # the view of the jobs that have not ended

    async def wants_fragments(self, job_id: str) -> bool:
        """Returns True if a subscriber wants events for the streamed parts of this job's model answers. Otherwise the
        caller need not pass such parts to `publish`.
        """
        return self._wants(_TYPE.MODEL_TOKEN, job_id) or self._wants(_TYPE.MODEL_REASONING, job_id)

    async def publish(self, notice: Notice) -> None:
        """Publishes the events that follow from a notice of the JobHost that runs the jobs. A notice is an entry of the
        journal, a streamed part of a model's answer, or the message that a job is blocked.
        """
        runs_again = False
        if isinstance(notice, Fragment | Blocked | EarlierEnd):
            if isinstance(notice, Fragment):
                await self._piece(self._view.states.get(notice.job, JobState(notice.job)), notice)
                return
            if isinstance(notice, Blocked):
                job = self._view.states.get(notice.job, JobState(notice.job))
                await self._status(job, notice, "blocked", {"error": str(notice.error)})
                return
            notice, runs_again = notice.end, True
        unanswered: list[Intent] = []
        if type(notice) in _OF_HISTORIES and notice.job in self._view.states:
            unanswered.extend(self._view.states[notice.job].questions.values())
        job, effects, question, inherited = self._view.apply(notice)
        # A letter for a job that has ended; or for one from before a restart, all of whose entries come again.
        if not job.begun and not isinstance(notice, End):
            self._view.forget(notice.job)
            return
        if inherited:  # published already for the job whose checkpoint this one continues
            return
        match notice:  # the most frequent first
            case EffectResult():
                for intent in _calls(effects):
                    await self._result(job, intent, notice)
            case Intent(kind="call"):
                verdict = decode_verdict(notice.note)
                # if it is allowed, an ATTEMPT follows
                if verdict is None or verdict.decision not in (Decision.DENY, Decision.ASK):
                    await self._call(job, notice, 1)
            case Begin():
                await self._cancelled(job, unanswered, notice.at_ms)
                await self._began(job, notice)
            case Intent(kind="ask"):
                await self._asked(job, notice)
            case Attempt(ordinal=0):
                await self._status(job, notice, "running", {"attempt": notice.attempt})
            case Attempt() if not notice.note:  # an ATTEMPT with a note begins nothing (`entries.Attempt`)
                for intent in _calls(effects):
                    edited = edit_of_effect(effects[0])
                    await self._call(job, msgspec.structs.replace(intent, at_ms=notice.at_ms), notice.attempt, edited)
            case Answer():
                await self._answered(job, question, notice)
            case End():
                if not runs_again:
                    self._view.forget(notice.job)
                await self._cancelled(job, unanswered, notice.at_ms)
                await self._ended(job, notice)

    async def _publish(
        self, job: JobState, kind: RuntimeEventType, job_id: str, at_ms: int, name: str, data: Mapping[str, Any]
    ) -> None:
        event_id = f"{job_id}/{name}/{kind}"
        whom = job.scope, job.principal, job.session
        await self._publish_event(RuntimeEvent(kind, job_id, data, event_id, at_ms / 1000, *whom))

    async def _status(self, job: JobState, notice: Notice, status: str, data: Mapping[str, Any]) -> None:
        if self._wants(_TYPE.JOB_STATUS_CHANGED, notice.job):
            name = f"0/{job.attempt}/{notice.at_ms}/{status}"
            await self._publish(
                job,
                _TYPE.JOB_STATUS_CHANGED,
                notice.job,
                notice.at_ms,
                name,
                {"status": status, "agent": job.agent, **data},
            )

    async def _began(self, job: JobState, begin: Begin) -> None:
        if self._wants(_TYPE.JOB_STARTED, begin.job):
            data = {"agent": begin.agent, "code": begin.code, "input": _input(_said(begin))}
            at_ms, origin = begin.at_ms, begin.origin
            if origin is not None:
                at_ms, data["restored"] = origin.at_ms, {"job": origin.job, "checkpoint": origin.checkpoint}
            name = f"0/{job.attempt}/{at_ms}"
            await self._publish(job, _TYPE.JOB_STARTED, begin.job, at_ms, name, data)

    async def _call(self, job: JobState, intent: Intent, attempt: int, edited: Mapping[str, Any] | None = None) -> None:
        if _asks_model(intent) or not self._wants(_TYPE.TOOL_START, intent.job):
            return
        said = _said(intent)
        args, kwargs = said if isinstance(said, list) and len(said) == 2 else ([], {})
        data = {
            "tool": intent.name,
            "ordinal": intent.ordinal,
            "attempt": attempt,
            "effect": intent.effect_class,
            "arguments": as_plain(kwargs) if not args else as_plain([*args, kwargs] if kwargs else args),
        }
        data |= _decided(intent) | ({"edited": as_plain(dict(edited))} if edited else {})
        await self._publish(job, _TYPE.TOOL_START, intent.job, intent.at_ms, f"{intent.ordinal}/{attempt}", data)

    async def _piece(self, job: JobState, piece: Fragment) -> None:
        if self._wants(_TYPE.MODEL_TOKEN, piece.job) or self._wants(_TYPE.MODEL_REASONING, piece.job):
            for event in piece_events(piece, (job.scope, job.principal, job.session)):
                if self._wants(event.type, piece.job):
                    await self._publish_event(event)

    async def _result(self, job: JobState, intent: Intent, result: EffectResult) -> None:
        failed, model = result.outcome != "ok", _asks_model(intent)
        kind = _TYPE.MODEL_DONE if model else _TYPE.TOOL_ERROR if failed else _TYPE.TOOL_END
        if not self._wants(kind, result.job):
            return
        value = _said(result)
        data: dict[str, Any] = {"ordinal": result.ordinal, "attempt": result.attempt, "began_at": intent.at_ms / 1000}
        if not model:
            data["tool"] = intent.name
        if failed:
            data |= _error(value)
        elif model:
            data |= _answer(value)
            if _is_summary(intent):
                data["summary"] = True
        else:
            data["result"] = as_plain(value)
        data |= _decided(intent)
        name = f"{result.ordinal}/{result.attempt}"
        await self._publish(job, kind, result.job, result.at_ms, name, data)

    async def _asked(self, job: JobState, question: Intent) -> None:
        if self._wants(_TYPE.ACTION_REQUIRED, question.job):
            data = {
                **_action(question),
                "payload": as_plain(_said(question)),
                "resume_token": question.token,
                "expires_at": question.due_ms / 1000 if question.due_ms else None,
            }
            name = _action_name(question)
            await self._publish(job, _TYPE.ACTION_REQUIRED, question.job, question.at_ms, name, data)
        if len(job.questions) == 1:
            await self._status(job, question, "waiting_action", {})

    async def _answered(self, job: JobState, question: Intent | None, answer: Answer) -> None:
        kind = _CLOSED.get(answer.outcome, _TYPE.ACTION_CANCELLED)
        await self._closed(job, kind, question or answer, answer.at_ms, as_plain(_said(answer)), answer.by)
        if not job.questions:
            await self._status(job, answer, "running", {})

    async def _cancelled(self, job: JobState, unanswered: Iterable[Intent], at_ms: int) -> None:
        """Publishes that these questions are cancelled: nobody can answer them any more, and no ANSWER says so."""
        for each in unanswered:
            await self._closed(job, _TYPE.ACTION_CANCELLED, each, at_ms, {}, "")

    async def _closed(
        self, job: JobState, kind: RuntimeEventType, what: Intent | Answer, at_ms: int, resolution: Any, by: str
    ) -> None:
        """Publishes that a question is closed. `what`: the question, or the answer to one that is not known."""
        if self._wants(kind, what.job):
            known = _action(what) if isinstance(what, Intent) else {}
            name = _action_name(what) if isinstance(what, Intent) else f"{what.ordinal}/1"
            data = {"ordinal": what.ordinal, **known, "resolution": resolution, "by": by}
            await self._publish(job, kind, what.job, at_ms, name, data)

    async def _ended(self, job: JobState, end: End) -> None:
        kind = _ENDS.get(end.outcome, _TYPE.JOB_FAILED)
        final = _TYPE.FINAL_RESULT if kind is _TYPE.JOB_COMPLETED else _TYPE.FINAL_ERROR
        name = f"0/{job.attempt}/{end.at_ms}"
        if self._wants(kind, end.job):
            data = {"agent": job.agent, "outcome": end.outcome, "reason": end.result}
            await self._publish(job, kind, end.job, end.at_ms, name, data)
        if self._wants(final, end.job):
            value = _said(end)
            made = {"form": end.form} if end.form else {}
            said = (
                {"result": as_plain(without_turn(value, end.form)), **made}
                if final is _TYPE.FINAL_RESULT
                else _error(value)
            )
            await self._publish(job, final, end.job, end.at_ms, name, {"outcome": end.outcome, **said})


def piece_events(piece: Fragment, whom: tuple[str, str, str]) -> Iterator[RuntimeEvent]:
    """Yields the events of a piece of a model's answer: of its text and of its reasoning, if it has them. `whom`: the
    tenant, the actor and the session of the job.
    """
    for kind, text in ((_TYPE.MODEL_TOKEN, piece.text), (_TYPE.MODEL_REASONING, piece.reasoning)):
        if text:
            data = {"text": text, "ordinal": piece.ordinal, "attempt": piece.attempt, "number": piece.number}
            if piece.agent:
                data["agent"] = piece.agent
            event_id = f"{piece.job}/{piece.ordinal}/{piece.attempt}/{piece.number}/{kind}"
            yield RuntimeEvent(kind, piece.job, data, event_id, piece.at_ms / 1000, *whom)


async def events_of(entries: Iterable[Entry]) -> list[RuntimeEvent]:
    """Returns the events that a JobEvents would publish for these journal entries. There are no events for streamed
    parts of model answers, because these are not in the journal.
    """
    found: list[RuntimeEvent] = []

    async def keep(event: RuntimeEvent) -> None:
        found.append(event)

    listener = JobEvents(keep, lambda event_type, job_id: True)
    for notice in notices_of(entries):
        await listener.publish(notice)
    return found


def _calls(effects: Iterable[EffectView]) -> list[Intent]:
    """Returns the INTENT entries of the effects that are calls of tools or models, and not questions, timers or the
    like.
    """
    return [effect.intent for effect in effects if effect.intent.kind == "call"]


def _asks_model(intent: Intent) -> bool:
    return intent.effect_class == EffectClass.METERED


def _is_summary(intent: Intent) -> bool:
    """Returns True if this request to a model asked for a summary of a conversation, and so for no part of an answer."""
    said = _said(intent)
    news = said[-1] if isinstance(said, list) and said else ()
    return bool(news) and isinstance(news, list) and asks_summary(msgspec.convert(news[-1:], list[ChatMessage]))


def _said(entry: Any) -> Any:
    """Returns the decoded body of an entry. Returns None if the entry has no body, or if the body is so long that it is
    stored outside of the entry.
    """
    body = body_of(entry)
    return None if body is None or isinstance(body, StoredBody) else value_of(entry, body)


def _decided(intent: Intent) -> dict[str, Any]:
    """Returns the decision that a policy or budget made on a call, as a dict with the key "policy". Returns {} if the
    call needed no decision.
    """
    verdict = decode_verdict(intent.note)
    if verdict is None:
        return {}
    said = {
        "decision": verdict.decision.value,
        "rule": verdict.rule,
        "version": verdict.version,
        "reason": verdict.reason,
    }
    return {"policy": said}


def _input(value: Any) -> Any:
    """Returns the input of a job as JSON types, for an event: the prompt of a request, or the message of a record. An
    input that has neither is returned as a whole.
    """
    if isinstance(value, dict):
        value = value.get("prompt", value.get("message", value))
    return as_plain(value)


def _error(value: Any) -> dict[str, Any]:
    if isinstance(value, EffectError):
        return {"error": value.type, "message": value.message}
    return {"error": "", "message": as_plain(value)}


def _answer(value: Any) -> dict[str, Any]:
    """Returns the data of the event "model.done" for a call that was successful. `value` is the result of the call. For
    the answer of a model, the data has its content, tool calls, usage and cost. For any other call of the effect class
    "metered", it has the field "result".
    """
    if not isinstance(value, dict) or "message" not in value:
        return {"result": as_plain(value)}
    message = value["message"]
    facts = {name: value.get(name) for name in ("usage", "cost", "model", "provider", "request_id", "cached", "agent")}
    return {
        "content": as_plain(message.get("content", "")),
        "tool_calls": as_plain(message.get("tool_calls", [])),
        "finish_reason": value.get("finish_reason", "stop"),
        **as_plain({name: plain(each) if name == "cost" else each for name, each in facts.items() if each is not None}),
    }


def _action(question: Intent) -> dict[str, Any]:
    return {
        "action_id": f"{question.job}/{action_number(question, _said(question))}",
        "type": question.name,
        "ordinal": question.ordinal,
    }


def _action_name(question: Intent) -> str:
    ordinal, _, attempt = action_number(question, _said(question)).partition(".")
    return f"{ordinal}/{attempt}/doubt" if attempt else f"{ordinal}/1"  # an effect may have a question of each kind
