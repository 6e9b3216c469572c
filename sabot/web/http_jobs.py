"""The jobs of a kernel by HTTP: `jobs_app` is an application for a web server, or a part of one of Starlette or FastAPI.

   request ─▶ who(request) ─▶ Caller ─▶ scope, may ─▶ JobClient ─▶ JSON, or server-sent events

A job or a question of a scope that the caller may not see is answered as one that does not exist.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from sabot.agents.actions import ActionRecord, ActionStatus
from sabot.agents.app_jobs import JobsAsked
from sabot.agents.entry_values import as_plain
from sabot.agents.job_reads import shown_status
from sabot.agents.jobs import JobRecord, JobStatus
from sabot.agents.kernel.client import JobClient
from sabot.agents.kernel.handle import JobHandle
from sabot.agents.kernel.schedules import is_key_of_schedule
from sabot.agents.store import cancel_letter
from sabot.base.checks import TEXTS, Of, check
from sabot.base.options import answers_wrong_options
from sabot.base.quantities import plain
from sabot.base.redaction import scrubbed, visible
from sabot.base.threads import run_connected
from sabot.engine.calls.messages import ChatMessage, decode_prompt
from sabot.errors import (
    AppLocked,
    CorruptCheckpoint,
    CorruptJournal,
    IdempotencyConflict,
    IllegalTransition,
    LetterRefused,
    MissingExtra,
    NoJournal,
    OtherJournal,
    SabotError,
    ServerRefusal,
    StorageLost,
    TransientError,
    UserError,
    short_repr,
)
from sabot.jobs.answers import json_value
from sabot.jobs.url_ids import url_id
from sabot.journal.ended_jobs import MOST_CHARS, JobQuery

_log = logging.getLogger(__name__)

_MAY = ("read", "start", "answer", "change")
_MOST_BODY = 4 << 20
_MOST_JOBS = 200  # of a page
_MOST_WAIT_S = 60.0
_START = (
    "agent",
    "message",
    "scope",
    "principal",
    "session",
    "key",
    "idempotency_key",
    "budgets",
    "max_turns",
    "start_after",
    "priority",
    "metadata",
)
_OF_THE_SERVER = (AppLocked, CorruptCheckpoint, CorruptJournal, MissingExtra, OtherJournal, ServerRefusal, StorageLost)
_OF_USER = ChatMessage("user")  # without its content
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
_STREAM = {**_HEADERS, "x-accel-buffering": "no"}


@answers_wrong_options
@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request, as the function `who` of `jobs_app` has found out.

    - `name`: its name. It is recorded with answers, cancels and signals, and is the principal of its jobs.
    - `scopes`: the scopes (tenants) whose jobs it may see; None for all. A caller with scopes begins jobs in its own name
      only, and its messages to an Agent are those of a user.
    - `may`: its rights: "read" jobs and their events, "start" jobs, "answer" questions, which shows their arguments
      and tokens, and "change" jobs: cancel, signal and retry them, and raise `max_turns` of an Agent.
    - `priority_from`: the smallest `priority` that it may give to a job. With 0, its jobs pass before none of those that wait and were
      begun without a priority.
    """

    name: str
    scopes: Collection[str] | None = None
    may: Collection[str] = _MAY
    priority_from: int = 0

    def __post_init__(self) -> None:
        check("Caller: name", self.name, Of(str, "a text, such as the id of the user"))
        check("Caller: may", self.may, TEXTS)
        check("Caller: priority_from", self.priority_from, Of(int, "a whole number, such as -10"))
        if self.scopes is not None:
            for scope in check("Caller: scopes", self.scopes, TEXTS):
                if not 0 < len(scope) < MOST_CHARS:  # lists have a longer one cut
                    raise UserError(
                        f"Caller: scopes={short_repr(scope)}", hint=f"texts of 1 to {MOST_CHARS - 1} characters"
                    )
        if wrong := next((each for each in self.may if each not in _MAY), None):
            raise UserError(f"Caller: may={short_repr(wrong)}", hint=f"some of {', '.join(_MAY)}")

    def sees(self, scope: str) -> bool:
        """Returns True if this caller may see the jobs of a scope."""
        return self.scopes is None or scope in self.scopes


Who = Callable[[Request], "Caller | Awaitable[Caller | None] | None"]
_Endpoint = Callable[[Request, Caller], Awaitable[Response]]


def sse(handle: JobHandle, last_event_id: str = "") -> AsyncIterator[bytes]:
    """Returns the public events of a job as server-sent events: the body of a response with the media type
    `text/event-stream`. They have no tokens of questions and no arguments. `last_event_id` is the header `Last-Event-ID`,
    behind which the stream goes on; "" begins at the first event.
    """
    return handle.server_sent_events(after=last_event_id)


def jobs_app(client: JobClient, *, who: Who) -> Starlette:
    """Returns an application that answers HTTP requests about the jobs of a kernel. A web server serves it as it is, or
    Starlette or FastAPI below a path: `app.mount("/api", jobs_app(client, who=who))`.

    - `client`: a client of the journal. The kernel runs in the same process, in another one, or not now.
    - `who`: a function, sync or async, that returns the Caller of a request, such as by its session or its token. For None
      the answer has the status 401.

    Requests and answers are JSON. Ids of jobs in paths have the form without a slash (`url_id`).

    - `POST /jobs` begins a job, with the arguments of `JobClient.start`: 202, or 200 if one of this key is known.
    - `GET /jobs` lists jobs: agent, scope, key, session, status, text, since, until, after, limit.
    - `GET /jobs/ID`, `GET /jobs/ID/result?wait=SECONDS`: a job; its result, or 202 while there is none.
    - `GET /jobs/ID/events`: its public events as server-sent events.
    - `POST /jobs/ID/cancel`, `/signal`, `/retry`, `POST /jobs/cancel`, `/jobs/retry`: change one job, or all of a query.
    - `GET /conversation?agent=NAME&session=NAME`: the texts of people and of the agent in a conversation.
    - `GET /actions`, `POST /actions/TOKEN`: the questions to people, and an answer.

    An error is `{"error": {"type", "message", "hint", "reason"}}`.
    """
    check("jobs_app: client", client, Of(JobClient, 'JobClient("jobs")'))
    if not callable(who):
        raise UserError(f"jobs_app: who={short_repr(who)}", hint="a function that returns the Caller of a request")
    jobs = _JobRequests(client)
    routes: list[tuple[str, str, str, _Endpoint]] = [
        ("POST", "/jobs", "start", jobs.start),
        ("GET", "/jobs", "read", jobs.list),
        ("POST", "/jobs/cancel", "change", jobs.cancel_all),
        ("POST", "/jobs/retry", "change", jobs.retry_all),
        ("GET", "/jobs/{id}", "read", jobs.get),
        ("GET", "/jobs/{id}/result", "read", jobs.result),
        ("GET", "/jobs/{id}/events", "read", jobs.events),
        ("POST", "/jobs/{id}/cancel", "change", jobs.cancel),
        ("POST", "/jobs/{id}/signal", "change", jobs.signal),
        ("POST", "/jobs/{id}/retry", "change", jobs.retry),
        ("GET", "/conversation", "read", jobs.conversation),
        ("GET", "/actions", "answer", jobs.actions),
        ("POST", "/actions/{token}", "answer", jobs.answer),
    ]
    return Starlette(
        routes=[
            Route(path, partial(_answered, who, right, endpoint), methods=[method], name=f"{method} {path}")
            for method, path, right, endpoint in routes
        ],
        exception_handlers={HTTPException: _refused},  # of paths and methods that there are not
    )


class _Fault(Exception):
    """A request that is refused with this status and these words."""

    def __init__(self, status: int, message: str, *, hint: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.answer = _error(status, "UserError", message, hint, reason)


def _unknown(job_id: str, status: int = 404) -> _Fault:
    message = f"job {visible(job_id[:200], lines=False)}: there is none of this name"
    return _Fault(
        status, message, hint="GET /jobs lists the jobs; one that ended long ago is forgotten", reason="unknown"
    )


async def _answered(who: Who, right: str, endpoint: _Endpoint, request: Request) -> Response:
    """Returns the answer of an endpoint, or the error in place of it."""
    try:
        found = who(request)
        caller = await found if isawaitable(found) else found
        if caller is None:
            return _error(401, "UserError", "nobody is known by this request", "log in, or send the token", "")
        check("jobs_app: who", caller, Of(Caller, "a Caller, or None"))
    except HTTPException:
        raise
    except Exception as error:
        return _failed(request, error)
    try:
        if right not in caller.may:
            raise _Fault(403, f"{caller.name} may not {right} here")
        return await endpoint(request, caller)
    except _Fault as fault:
        return fault.answer
    except ClientDisconnect:
        return _error(400, "UserError", "the request did not arrive whole", "", "")
    except IdempotencyConflict as error:
        return _of_error(409, error, "second")
    except IllegalTransition as error:
        return _of_error(409, error, "closed")
    except LetterRefused as error:
        return _of_error(409, error, error.reason)
    except TransientError as error:
        return _later("the journal does not answer", error)
    except NoJournal as error:
        return _later("there is no journal yet", error)
    except _OF_THE_SERVER as error:  # no request makes it better, and its words are for who serves
        return _failed(request, error)
    except UserError as error:
        return _of_error(422, error, "")
    except Exception as error:
        return _failed(request, error)


def _later(why: str, error: SabotError) -> Response:
    """Logs an error that passes, and returns the answer that says so."""
    _log.warning("a request about jobs was not answered: %s", scrubbed(str(error)))
    answer = _error(503, type(error).__name__, why, "ask again later; a start with its key", "")
    answer.headers["retry-after"] = "2"
    return answer


def _failed(request: Request, error: Exception) -> Response:
    """Logs an error of ours, and returns the answer that names the line of the log."""
    number = secrets.token_hex(4)
    asked = visible(f"{request.method} {request.url.path}"[:200], lines=False)
    _log.error("error %s of a request about jobs: %s", number, asked, exc_info=error)
    return _error(500, "InternalError", f"this could not be done; the log has error {number}", "", "")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = _error(error.status_code, "UserError", str(error.detail), "", "")
    answer.headers.update(error.headers or {})
    return answer


def _of_error(status: int, error: SabotError, reason: str) -> Response:
    return _error(status, type(error).__name__, error.message, error.hint, reason)


def _error(status: int, kind: str, message: str, hint: str, reason: str) -> Response:
    told = {"type": kind, "message": scrubbed(message), "hint": scrubbed(hint), "reason": reason}
    return _json({"error": told}, status)


def _json(value: object, status: int = 200) -> Response:
    body = msgspec.json.encode(_encodable(value), enc_hook=str)
    return Response(body, status, _HEADERS, "application/json")


def _encodable(value: Any) -> Any:
    """Returns the value with texts that UTF-8 can write."""
    match value:
        case str():
            return value.encode(errors="replace").decode()
        case dict():
            return {_encodable(name): _encodable(each) for name, each in value.items()}
        case list() | tuple():
            return [_encodable(each) for each in value]
        case _:
            return value


async def _body(request: Request, known: Sequence[str], needed: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the fields of the JSON object in a request. Raises _Fault for anything else."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a form of another site can send any other type without being asked
        raise _Fault(
            415, f"the content-type is {visible(kind[:80], lines=False)!r}", hint="content-type: application/json"
        )
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BODY:
            raise _Fault(413, f"the body is longer than {_MOST_BODY:,} bytes")
    try:
        said = json_value(body.decode() or "{}")
    except UnicodeDecodeError:
        raise _Fault(400, "the body is not JSON: it is no UTF-8") from None
    except UserError as error:
        raise _Fault(400, f"the body is not JSON: {error.message}") from None
    if not isinstance(said, dict):
        raise _Fault(400, "the body is no JSON object")
    for name in said:
        if name not in known:
            raise _Fault(422, f"there is no field {short_repr(name)}", hint=f"the fields are {', '.join(known)}")
    for name in needed:
        if name not in said:
            raise _Fault(422, f"the field {name!r} is missing")
    return said


def _text(said: Mapping[str, Any], name: str) -> str:
    value = said.get(name, "")
    if not isinstance(value, str):
        raise _Fault(422, f"{name}={short_repr(value)}: a text is wanted")
    return value


def _parameters(request: Request, *known: str) -> dict[str, str]:
    """Returns the parameters of the address. Raises _Fault for one that is unknown or there twice."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            raise _Fault(
                422, f"there is no parameter {short_repr(name)}", hint=f"the parameters are {', '.join(known)}"
            )
        if name in found:
            raise _Fault(422, f"the parameter {name!r} is there twice")
        found[name] = value
    return found


def _number(said: Mapping[str, str], name: str, most: float, default: float, least: float = 0) -> float:
    """Returns the number that a parameter has. Raises _Fault unless it is from `least` to `most`."""
    try:
        value = float(said.get(name, default))
    except ValueError:
        value = -1.0
    if not least <= value <= most:
        raise _Fault(422, f"{name}={short_repr(said[name])}", hint=f"a number from {least:g} to {most:g}")
    return value


class _JobRequests:
    """The answers to requests, by the client of a journal."""

    def __init__(self, client: JobClient) -> None:
        self._client = client

    # -- one job ------------------------------------------------------------------------------------------------------

    async def start(self, request: Request, caller: Caller) -> Response:
        said = await _body(request, _START, ["agent", "message"])
        scope = said["scope"] if "scope" in said else _default_scope(caller)
        if isinstance(scope, str) and not caller.sees(scope):
            raise _Fault(404, f"scope {short_repr(scope)}: there is none of this name", reason="unknown")
        principal = said.get("principal", caller.name)
        if caller.scopes is not None and principal != caller.name:
            raise _Fault(403, f"{caller.name} begins jobs in its own name", hint="leave the field principal out")
        priority, least = said.get("priority", 0), caller.priority_from
        if isinstance(priority, int) and "priority" in said and priority < least:
            # the way to allow it is for whoever runs the server, and not for its customers
            allows = f"Caller({caller.name!r}, priority_from={priority}) lets it"
            _log.info("priority=%d of %s was refused: %s", priority, short_repr(caller.name), allows)
            raise _Fault(
                403, f"priority={priority}: {caller.name} may give {least} and greater numbers, which begin later"
            )
        if caller.scopes is not None and is_key_of_schedule(key := said.get("idempotency_key")):
            raise _Fault(
                422, f"idempotency_key={short_repr(key)} has the form of those of schedules", hint="another key"
            )
        if caller.scopes is not None and said.get("max_turns") is not None and "change" not in caller.may:
            raise _Fault(403, f"{caller.name} may not give max_turns, which may be more than those of the agent")
        if caller.scopes is not None and _speaks_for_others(said["message"]):
            raise _Fault(
                422,
                f"message: {caller.name} writes in the role 'user' only, and calls no tools",
                hint='a text, or messages with "role": "user" and "content"; what the agent has said is in its session',
            )
        handle = await self._client.start(**{**said, "scope": scope, "principal": principal})
        status = "queued" if handle.created else shown_status(await self._client.jobs.get(handle.job_id))
        told = {**_ids(handle.job_id), "status": status, "created": handle.created}
        return _json(told, 202 if handle.created else 200)

    async def get(self, request: Request, caller: Caller) -> Response:
        return _json(_job(await self._of(request, caller)))

    async def result(self, request: Request, caller: Caller) -> Response:
        wait_s = _number(_parameters(request, "wait"), "wait", _MOST_WAIT_S, 0.0)
        record = await self._of(request, caller)
        handle = await self._client.handle(record.job_id)
        if not record.ended and wait_s:
            await asyncio.wait([waits := asyncio.ensure_future(handle.result())], timeout=wait_s)
            waits.cancel()
            await asyncio.gather(waits, return_exceptions=True)
            record = await self._client.jobs.get(record.job_id)
        told = {**_ids(record.job_id), "status": shown_status(record)}
        if not record.ended:
            return _json(told, 202)
        told |= {"content": "", "output": None, "usage": None, "cost": None, "error": record.error}
        if record.status is JobStatus.SUCCEEDED:
            found = await handle.result()
            told |= {"content": found.content, "output": as_plain(found.output)}
            told["usage"] = msgspec.to_builtins(found.usage, enc_hook=str)
            told["cost"] = None if found.cost is None else plain(found.cost)
        return _json(told)

    async def events(self, request: Request, caller: Caller) -> Response:
        handle = await self._client.handle((await self._of(request, caller)).job_id)
        if request.method == "HEAD":
            return Response(None, 200, _STREAM, "text/event-stream")
        stream = sse(handle, request.headers.get("last-event-id", ""))
        return StreamingResponse(stream, headers=_STREAM, media_type="text/event-stream")

    async def cancel(self, request: Request, caller: Caller) -> Response:
        reason = _text(await _body(request, ["reason"]), "reason")
        record = await self._of(request, caller, 409)
        await self._client.post(cancel_letter(record.job_id, reason, caller.name))
        return _json(_ids(record.job_id), 202)

    async def signal(self, request: Request, caller: Caller) -> Response:
        said = await _body(request, ["name", "value", "token"], ["name"])
        record, token = await self._of(request, caller, 409), _text(said, "token")
        await self._client.jobs.signal(record.job_id, said["name"], said.get("value"), token=token, by=caller.name)
        return _json(_ids(record.job_id), 202)

    async def retry(self, request: Request, caller: Caller) -> Response:
        said = await _body(request, ["budgets", "max_turns"])
        record = await self._of(request, caller, 409)
        await self._client.jobs.retry(record.job_id, **said)
        return _json(_ids(record.job_id), 202)

    async def _of(self, request: Request, caller: Caller, unknown: int = 404) -> JobRecord:
        """Returns the job in the path of a request. Raises _Fault if the caller sees none of this name."""
        job_id = request.path_params["id"]
        try:
            record = await self._client.jobs.get(job_id)
        except UserError as error:
            if type(error) is not UserError:
                raise
            raise _unknown(job_id, unknown) from None
        if not caller.sees(record.scope_id):
            raise _unknown(job_id, unknown)
        return record

    # -- many jobs ----------------------------------------------------------------------------------------------------

    async def list(self, request: Request, caller: Caller) -> Response:
        said: dict[str, Any] = _parameters(request, *JobQuery.__dataclass_fields__, "limit")
        most = int(_number(said, "limit", _MOST_JOBS, 50.0, 1))
        said.pop("limit", None)
        for name in {"since", "until"} & said.keys():
            said[name] = _number(said, name, 253_402_300_800.0, 0.0)
        query = _seen(said, caller)
        if query is None:
            return _json({"jobs": [], "counts": {}, "found": 0, "following": ""})
        page = await self._client.jobs.page(query, most=most)
        jobs = [_job(each) for each in page.jobs]
        return _json({"jobs": jobs, "counts": page.counts, "found": page.found, "following": page.following})

    async def cancel_all(self, request: Request, caller: Caller) -> Response:
        said = await _body(request, ["query", "reason"], ["query"])
        query, reason = _seen(said["query"], caller), _text(said, "reason")
        if query is None:
            return _asked(JobsAsked(0, 0, []))
        return _asked(await self._client.jobs.cancel_all(query, reason=reason, by=caller.name))

    async def retry_all(self, request: Request, caller: Caller) -> Response:
        said = await _body(request, ["query", "budgets", "max_turns"], ["query"])
        query = _seen(said.pop("query"), caller)
        return _asked(JobsAsked(0, 0, []) if query is None else await self._client.jobs.retry_all(query, **said))

    # -- conversations ------------------------------------------------------------------------------------------------

    async def conversation(self, request: Request, caller: Caller) -> Response:
        said = _parameters(request, "agent", "session", "scope", "principal")
        if missing := next((name for name in ("agent", "session") if not said.get(name)), None):
            raise _Fault(422, f"{missing} is missing", hint="?agent=NAME&session=NAME")
        scope = said["scope"] if "scope" in said else _default_scope(caller)
        principal = said.get("principal", caller.name)
        if not caller.sees(scope):
            raise _Fault(404, f"scope {short_repr(scope)}: there is none of this name", reason="unknown")
        if caller.scopes is not None and principal != caller.name:
            raise _Fault(403, f"{caller.name} reads its own conversations", hint="leave the field principal out")
        found = await self._client.jobs.conversation(said["agent"], said["session"], scope=scope, principal=principal)
        shown = [each for each in found.messages if each.role in ("user", "assistant") and each.text]
        return _json({"messages": [{"role": each.role, "text": each.text} for each in shown]})

    # -- questions ----------------------------------------------------------------------------------------------------

    async def actions(self, request: Request, caller: Caller) -> Response:
        said = _parameters(request, "scope", "job_id", "status")
        status = said.get("status", ActionStatus.PENDING)
        if status not in [*ActionStatus, ""]:
            raise _Fault(422, f"status={short_repr(status)}", hint=f"one of {', '.join(ActionStatus)}")
        found = await self._client.actions.find(
            job_id=said.get("job_id"), statuses=[ActionStatus(status)] if status else []
        )
        scopes = await run_connected(self._scopes, {each.job_id for each in found})
        seen = [
            each
            for each in found
            if caller.sees(scopes[each.job_id]) and said.get("scope") in (None, scopes[each.job_id])
        ]
        return _json({"actions": [_action(each) for each in seen]})

    def _scopes(self, jobs: Collection[str]) -> dict[str, str]:
        with self._client.jobs.store.reader() as reader:
            marks = reader.marked(jobs)
        return {job: marks[job].scope if job in marks else "" for job in jobs}

    async def answer(self, request: Request, caller: Caller) -> Response:
        said = await _body(request, ["resolution"], ["resolution"])
        token = request.path_params["token"]
        if not await run_connected(self._sees_question, token, caller):
            raise _Fault(409, "no question has this token", reason="unknown")
        return _json(_action(await self._client.actions.resolve(token, said["resolution"], by=caller.name)))

    def _sees_question(self, token: str, caller: Caller) -> bool:
        if "\0" in token:
            return False
        with self._client.jobs.store.reader() as reader:
            question = reader.question(token)
            mark = None if question is None else reader.job(question.job)
        return question is not None and caller.sees("" if mark is None else mark.scope)


def _speaks_for_others(message: Any) -> bool:
    """Returns True if a message is a prompt of several messages for an Agent, one of which is not of a user: that of the system,
    of the model, or a result of a tool.
    """
    try:
        said = decode_prompt(message)
    except UserError:  # the input of a function; or of an Agent, which refuses it
        return False
    return not isinstance(said, str) and any(msgspec.structs.replace(each, content="") != _OF_USER for each in said)


def _default_scope(caller: Caller) -> str:
    scopes = ["default"] if caller.scopes is None else list(caller.scopes)
    if len(scopes) != 1:
        raise _Fault(422, f"{caller.name} may see {len(scopes)} scopes, and the request names none", hint="scope")
    return scopes[0]


def _seen(said: object, caller: Caller) -> JobQuery | None:
    """Returns a query as far as the caller may see jobs, or None if it may see none of them. Raises UserError for a query
    that is not valid, and _Fault if it names none of the caller's scopes.
    """
    if not isinstance(said, Mapping):
        raise _Fault(422, f"query={short_repr(said)}", hint='the conditions by name, such as {"status": "failed"}')
    query = JobQuery.of(said)
    if caller.scopes is None:
        return query
    if not query.scope:
        return JobQuery.of({**said, "scope": _default_scope(caller)}) if caller.scopes else None
    return query if caller.sees(query.scope) else None


def _ids(job_id: str) -> dict[str, str | None]:
    return {"job_id": job_id, "url_id": url_id(job_id)}


def _job(job: JobRecord) -> dict[str, Any]:
    return {
        **_ids(job.job_id),
        "agent": job.agent,
        "status": shown_status(job),
        "scope": job.scope_id,
        "principal": job.principal_id,
        "session": job.session_id,
        "key": job.key,
        "created_at": job.created_at,
        "updated_at": job.updated_at,
        "completed_at": job.completed_at,
        "attempt": job.attempt,
        "effects": job.effects,
        "open": [msgspec.to_builtins(each) for each in job.open],
        "tokens": job.tokens,
        "cost": plain(job.dollars),
        "error": job.error,
        "blocked": job.blocked,
        "waits": job.waits,
        "worker": job.worker or None,
    }


def _action(action: ActionRecord) -> dict[str, Any]:
    return {
        "action_id": action.action_id,
        **_ids(action.job_id),
        "type": action.type,
        "payload": as_plain(action.payload),
        "token": action.resume_token,
        "status": str(action.status),
        "created_at": action.created_at,
        "expires_at": action.expires_at,
        "resolution": as_plain(dict(action.resolution)),
        "resolved_at": action.resolved_at,
        "by": action.by,
    }


def _asked(asked: JobsAsked) -> Response:
    return _json({"found": asked.found, "done": asked.done, "refused": [list(each) for each in asked.refused]})
