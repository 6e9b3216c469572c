"""Sessions of agents and their context, which a server keeps. The context is a dict of JSON values. The specification
002 calls such a server `context-orchestrator` (`docs/names.md` says which specification that is).

    server = await pool.session("orchestrator", principal="agent-7")
    async with SessionBridge(server) as bridge:                     heartbeats every 30 s
        await bridge.start_session("agent-7", "task-1", {"phase": "reading"})
        await bridge.save_snapshot("task-1", {"phase": "writing"})

The server offers `save_context_snapshot{taskId, sessionId, updates, changeSummary}`, which adds the fields `updates` to the context of
the task, `get_unified_context{taskId}` and `check_recovery`. A heartbeat is a snapshot whose only field is `lastHeartbeat`, in ms.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from sabot.base.config import Duration, checked_name, parse_seconds
from sabot.base.options import answers_wrong_options
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import SabotError, message_of, short_repr
from sabot.specified.mcp.bridges import BridgedServer, CallTool, OnBridgeError

_log = logging.getLogger("sabot.mcp.sessions")

_SAVE = "save_context_snapshot"
_LEAST_SECONDS = 0.01  # the least time between two rounds of heartbeats


class SessionError(SabotError):
    """A session cannot be started (E2050). Its subclasses are the other failures of a `SessionBridge`."""

    code = "E2050"


class SessionStopFailed(SessionError):
    """The server did not accept the end of a session. In this process, the session has ended nevertheless."""

    code = "E2051"


class SnapshotFailed(SessionError):
    """A snapshot was not saved."""

    code = "E2052"


class RecoveryCheckFailed(SessionError):
    """The request for the sessions that need recovery has failed."""

    code = "E2053"


class ContextFailed(SessionError):
    """The context of a session cannot be read from the server."""

    code = "E2054"


@dataclass
class SessionInfo:
    """A session that runs in this process.

    - `started_at`: when it began, in seconds since 1970.
    - `next_heartbeat`: when the next heartbeat is due, in seconds of the monotonic clock.
    - `context`: the context that this process has saved last. `unsent`: True if the server does not have the whole
      context yet, because it could not be reached.
    - `status`: the status that the server stores: "in_progress" until the session is stopped.
    - `missed`: how many heartbeats in a row have failed.
    - `order`: a lock for the requests of this session that change its context, so that they reach the server in order.
    """

    session_id: str
    agent_id: str
    started_at: float
    next_heartbeat: float
    context: dict[str, Any] = field(default_factory=dict)
    missed: int = 0
    unsent: bool = False
    status: str = "in_progress"
    # held so that one snapshot is sent at a time
    order: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False, compare=False)


@dataclass(frozen=True)
class RecoverableSession:
    """A session whose program ended without stopping it. `facts`: all data of the server about the session."""

    session_id: str
    agent_id: str
    facts: dict[str, Any]


@answers_wrong_options
class SessionBridge:
    """The sessions of agents at a server. The bridge starts and stops sessions, and saves and restores their context.
    As a context manager (`async with`), it also sends heartbeats.

    - `server`: a session with the server.
    - `heartbeat_interval`: the time between two heartbeats. `heartbeat_timeout`: the time limit of a heartbeat.
    - `on_error`: what happens if the server cannot be reached. With "fail_fast" a SessionError is raised. With
      "graceful" a context, or the end of a session, is kept in this process and sent with the next heartbeat.
    - `retries`: the number of further tries if the server cannot be reached. `backoff`: the wait before the second try;
      it doubles each time. `timeout`: the time limit of each try.
    """

    def __init__(
        self,
        server: CallTool,
        *,
        heartbeat_interval: Duration = "30s",
        heartbeat_timeout: Duration = "5s",
        retries: int = 3,
        backoff: Duration = "1s",
        timeout: Duration = "30s",
        on_error: OnBridgeError = "graceful",
        clock: Clock = SYSTEM_CLOCK,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._server = BridgedServer(server, on_error, retries, backoff, timeout, sleep)
        self._interval_s = parse_seconds(heartbeat_interval, name="bridge: heartbeat_interval", zero=False)
        self._heartbeat_s = parse_seconds(heartbeat_timeout, name="bridge: heartbeat_timeout", zero=False)
        self._clock = clock
        self._sleep = sleep
        self._sessions: dict[str, SessionInfo] = {}
        self._starting: set[str] = set()  # the sessions whose start is being sent
        self._stopped: dict[str, SessionInfo] = {}  # sessions whose end the server does not know yet
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "SessionBridge":
        self._beating = asyncio.create_task(self._beat_on())
        return self

    async def __aexit__(self, *raised: object) -> None:
        """Stops the heartbeats. Sessions that were not stopped stay open at the server, which lists them for
        recovery.
        """
        if self._beating is not None:
            self._beating.cancel()
            with suppress(asyncio.CancelledError):
                await self._beating

    @property
    def reachable(self) -> bool:
        """False if the server could not be reached in the last call, else True."""
        return self._server.reachable

    def sessions(self) -> list[SessionInfo]:
        """Returns the sessions that run in this process."""
        return list(self._sessions.values())

    async def start_session(
        self, agent_id: str, session_id: str, context: Mapping[str, Any] | None = None
    ) -> SessionInfo:
        """Starts a session at the server with this context, and returns it. Raises SessionError (E2050) if the server
        refuses the session, or if a session with this id runs in this process already. If the server cannot be
        reached, SessionError is raised with `on_error="fail_fast"`. With "graceful" the session is returned, and the
        next heartbeat sends its context.
        """
        checked_name(session_id, "session")
        checked_name(agent_id, "agent")
        with self._reserved(session_id):
            return await self._begin(agent_id, session_id, dict(context or {}), f"Session started for agent {agent_id}")

    async def resume_session(self, agent_id: str, session_id: str) -> SessionInfo:
        """Continues a session that `check_recovery` has returned, and returns it with the context that the server has
        stored.

        Raises ContextFailed (E2054) if the context cannot be read; SessionError (E2050) in the same cases as
        `start_session`. Whether the session needs a recovery is not checked again.
        """
        with self._reserved(session_id):
            context = await self._read(session_id)
            return await self._begin(agent_id, session_id, context, f"Session resumed by agent {agent_id}")

    @contextmanager
    def _reserved(self, session_id: str) -> Iterator[None]:
        """Reserves the id for a session that is started in the `with` block. Raises SessionError if another one with
        this id runs or is being started.
        """
        if session_id in self._sessions or session_id in self._starting:
            raise SessionError(f"session {session_id}: it runs already")
        self._starting.add(session_id)
        try:
            yield
        finally:
            self._starting.discard(session_id)

    async def _begin(self, agent_id: str, session_id: str, context: dict[str, Any], summary: str) -> SessionInfo:
        due = self._clock.monotonic() + self._interval_s
        session = SessionInfo(session_id, agent_id, self._clock.time(), due, context)
        await self._send(session, context | {"status": session.status}, summary, SessionError)
        self._stopped.pop(session_id, None)  # it goes on
        self._sessions[session_id] = session
        return session

    async def save_snapshot(self, session_id: str, context: Mapping[str, Any], summary: str = "") -> None:
        """Saves the fields of `context` at the server. Earlier fields that are not in `context` are kept. `summary`: a
        text that describes the change.

        Raises SnapshotFailed (E2052) if the session does not run in this process or the snapshot was not saved. If the
        server cannot be reached and `on_error` is "graceful", nothing is raised, and the next heartbeat sends the
        snapshot.
        """
        session = self._running(session_id, SnapshotFailed)
        async with session.order:
            whole = session.context | dict(context)
            updates = whole if session.unsent else dict(context)
            await self._send(session, updates, summary or "Context snapshot", SnapshotFailed)
            session.context = whole

    async def restore_snapshot(self, session_id: str) -> dict[str, Any]:
        """Returns the context of a session that was saved last, in this or in another process. It is read from the
        server, except in two cases, in which the context that this process has stored is returned:

        - The server has not got the last context of this process yet.
        - The session runs in this process, the server cannot be reached, and `on_error` is "graceful".

        Raises ContextFailed (E2054) if the context cannot be read.
        """
        session = self._sessions.get(session_id)
        if session is not None and session.unsent:
            return dict(session.context)
        try:
            return await self._read(session_id)
        except ContextFailed:
            if session is None or self.reachable or not self._server.graceful:
                raise
            return dict(session.context)

    async def check_recovery(self) -> list[RecoverableSession]:
        """Returns the sessions whose program ended without stopping them. If the server cannot be reached and
        `on_error` is "graceful", returns an empty list. Raises RecoveryCheckFailed (E2053).
        """
        what = "recovery check"
        said = await self._server.ask("check_recovery", {"includeHistory": False}, RecoveryCheckFailed, what) or {}
        found = said.get("needsRecovery", [])
        if not isinstance(found, list) or not all(isinstance(each, dict) and each.get("taskId") for each in found):
            raise RecoveryCheckFailed(
                f"{what}: check_recovery answers {short_repr(said)}", hint="needsRecovery: a list"
            )
        return [RecoverableSession(str(each["taskId"]), str(each.get("sessionId", "")), each) for each in found]

    async def stop_session(self, session_id: str, reason: str = "normal_termination") -> None:
        """Ends a session in this process and at the server, so that it needs no recovery. If the server cannot be
        reached and `on_error` is "graceful", nothing is raised, and the next heartbeat sends the end to the server. It
        also does so if this call is cancelled.

        Raises SessionStopFailed (E2051) in these cases:

        - The session does not run in this process.
        - The server does not accept the end, or cannot be reached and `on_error` is "fail_fast". The session has ended
          in this process nevertheless, but the server may list it for recovery.

        `reason`: with "normal_termination" the server stores the status "completed", with any other reason "archived".
        """
        session = self._running(session_id, SessionStopFailed)
        self._stopped[session_id] = self._sessions.pop(session_id)
        session.status = "completed" if reason == "normal_termination" else "archived"
        try:
            async with session.order:
                updates = (session.context if session.unsent else {}) | {"status": session.status}
                await self._send(session, updates, f"Session stopped: {reason}", SessionStopFailed)
        except Exception:  # unlike a cancelled call, which leaves the end to the next heartbeat
            self._forget(session)
            raise
        if not session.unsent:
            self._forget(session)

    def _forget(self, session: SessionInfo) -> None:
        if self._stopped.get(session.session_id) is session:
            del self._stopped[session.session_id]

    async def beat(self) -> None:
        """Sends the heartbeats of the sessions for which one is due. If the context or the end of a session could not
        be sent before, it is sent together with the heartbeat.
        """
        now = self._clock.monotonic()
        await asyncio.gather(*(self._beat(each) for each in self._with_heartbeats() if each.next_heartbeat <= now))

    def _with_heartbeats(self) -> list[SessionInfo]:
        return [*self._sessions.values(), *self._stopped.values()]

    async def _beat(self, session: SessionInfo) -> None:
        session.next_heartbeat = self._clock.monotonic() + self._interval_s
        if not session.order.locked():
            async with session.order:
                await self._send_heartbeat(session, unsent=session.unsent or session.status != "in_progress")
        elif session.status == "in_progress":  # a snapshot is being sent, which may take minutes
            await self._send_heartbeat(session, unsent=False)

    async def _send_heartbeat(self, session: SessionInfo, *, unsent: bool) -> None:
        """Sends a heartbeat of the session. With `unsent`, also sends the context and the status, which the server does
        not have yet. A caller that passes `unsent=True` must hold `session.order`.
        """
        what = f"session {session.session_id}"
        known = self._sessions if session.status == "in_progress" else self._stopped
        if known.get(session.session_id) is not session or session.session_id in self._starting:
            return  # it was stopped or started again meanwhile
        updates = session.context | {"status": session.status} if unsent else {}
        summary = "Heartbeat" if known is self._sessions else "Session stopped"
        arguments = _snapshot(session, updates | {"lastHeartbeat": int(self._clock.time() * 1000)}, summary)
        try:
            await self._server.ask(
                _SAVE, arguments, SnapshotFailed, what, once_s=self._heartbeat_s, gone=SnapshotFailed
            )
        except SnapshotFailed as failure:
            session.missed += 1
            _log.warning("%s: heartbeat missed, %d in a row: %s", what, session.missed, message_of(failure))
            if not self.reachable:
                return
        else:
            session.missed = 0
            session.unsent = session.unsent and not unsent
        if known is self._stopped:  # the server knows the end, or refuses it
            self._forget(session)

    async def _beat_on(self) -> None:
        while True:
            await self.beat()
            due = [each.next_heartbeat - self._clock.monotonic() for each in self._with_heartbeats()]
            await self._sleep(max(min([self._interval_s, *due]), _LEAST_SECONDS))

    async def _send(
        self, session: SessionInfo, updates: Mapping[str, Any], summary: str, error: type[SessionError]
    ) -> None:
        what = f"session {session.session_id}"
        arguments = _snapshot(session, updates, summary)
        session.unsent = await self._server.ask(_SAVE, arguments, error, what) is None

    async def _read(self, session_id: str) -> dict[str, Any]:
        arguments = {"taskId": session_id, "includeRelationships": False, "includeVersionHistory": False}
        what = f"session {session_id}"
        said = await self._server.ask("get_unified_context", arguments, ContextFailed, what, gone=ContextFailed) or {}
        context = said.get("context", said)
        if not isinstance(context, dict):
            raise ContextFailed(f"{what}: get_unified_context answers {short_repr(said)}", hint="context: an object")
        return {name: value for name, value in context.items() if name not in ("status", "lastHeartbeat")}

    def _running(self, session_id: str, error: type[SessionError]) -> SessionInfo:
        session = self._sessions.get(session_id)
        if session is None:
            raise error(f"session {session_id}: it does not run here", hint="start_session, or resume_session")
        return session


def _snapshot(session: SessionInfo, updates: Mapping[str, Any], summary: str) -> dict[str, Any]:
    return {
        "taskId": session.session_id,
        "sessionId": session.agent_id,
        "updates": dict(updates),
        "changeSummary": summary,
    }
