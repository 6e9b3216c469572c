"""Redis as an addition to a store: it signals answers at once, caches jobs that have ended, and keeps actions.

ActionManager A ─ resolve ─▶ store      Redis keeps no signal: a signal that is missed is found by the poll
     └─ notify ─▶ PUBLISH ─▶ ActionManager B ─ wait_for_resolution ─▶ looks into the store
"""

import asyncio
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from sabot.agents.actions import (
    ActionRecord,
    ActionSpec,
    ActionStatus,
    ActionStore,
    LocalSignals,
    check_resolution,
    no_action,
)
from sabot.agents.job_view import JobView
from sabot.agents.jobs import JobRecord, JobSpec, JobStatus, JobStore
from sabot.agents.store import JobsAndActions, as_json
from sabot.base.backoff import Backoff
from sabot.base.checks import Of, check
from sabot.base.config import Duration, parse_seconds
from sabot.base.options import answers_wrong_options
from sabot.base.threads import end_tasks, run_in_thread, run_to_end
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.connectors.redis.server import RedisServer
from sabot.errors import UNREADABLE, DataError, LetterRefused, TransientError, UserError
from sabot.journal.base import Journal

_log = logging.getLogger(__name__)

_BACKOFF = Backoff(0.05, 5.0)  # the waits between attempts


def _text(value: Any) -> str:
    """Returns a reply of the Redis client as a text. The client may return bytes or a text."""
    return value.decode() if isinstance(value, bytes) else str(value)


@answers_wrong_options
class RedisSignalChannel:
    """A SignalChannel for several processes, over one publish/subscribe channel of Redis. If the server does not
    answer, this is logged once. Until it answers again, an `ActionManager` finds answers only when it reads its store
    at its usual interval.
    """

    def __init__(self, client: Any, *, channel: str = "sabot:actions") -> None:
        """Makes a channel; `start` connects it. `client` is a `redis.asyncio.Redis`, which the caller closes, or the
        address of a server. `channel` is the name of the channel in Redis.
        """
        self._server = RedisServer.of(client, "signals", "RedisSignalChannel")
        self._channel = channel
        self._local = LocalSignals()
        self._hearing: asyncio.Task[None] | None = None
        self._silent = False

    async def start(self) -> None:
        """Begins to listen for signals. Raises TransientError if no server answers. Raises UserError if the server
        refuses the subscription, or if the channel was started before.
        """
        if self._hearing is not None:
            raise UserError("RedisSignalChannel has been started", hint="await channel.stop() first")
        heard = await self._subscribed()
        self._hearing = asyncio.create_task(self._hear(heard), name="signals of Redis")

    async def stop(self) -> None:
        """Stops listening, and closes the connections that the channel has opened. Does nothing if the channel was not
        started, or has been stopped before. After that `start` may be called again.
        """
        hearing, self._hearing = self._hearing, None
        if hearing is not None:
            await end_tasks([hearing])
            await self._server.close()

    async def __aenter__(self) -> "RedisSignalChannel":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def notify(self, action_id: str) -> None:
        """Wakes all callers in all processes that wait for this action. The caller of `notify` has closed the action
        before. If the Redis server does not answer or refuses, only logs this, because the answer is already in the
        store.
        """
        await self._local.notify(action_id)
        try:
            with self._server.explained():
                await self._server.client.publish(self._channel, action_id)
        except (TransientError, UserError) as error:
            self._tell(error)

    async def wait(self, action_id: str, seconds: float) -> None:
        """Waits until `notify` is called for this action, in any process, but for at most `seconds` seconds. Returns in
        both cases. Raises UserError if `start` was not called.
        """
        if self._hearing is None:
            raise UserError("RedisSignalChannel hears nothing yet", hint="await channel.start()")
        await self._local.wait(action_id, seconds)

    async def _subscribed(self) -> Any:
        """Subscribes to the channel in Redis. Returns the subscription (a `PubSub` of the client) when the server has
        confirmed it.
        """
        heard = self._server.client.pubsub()
        try:
            with self._server.explained():
                await heard.subscribe(self._channel)
                while await heard.get_message(timeout=1.0) is None:
                    pass
        except BaseException:
            await heard.aclose()
            raise
        return heard

    async def _hear(self, heard: Any) -> None:
        failures = 0
        while True:
            try:
                if heard is None:
                    heard = await self._subscribed()
                    self._silent = False
                failures = 0
                while True:
                    with self._server.explained():
                        message = await heard.get_message(ignore_subscribe_messages=True, timeout=1.0)
                    if message is not None:
                        await self._local.notify(_text(message["data"]))
            except (TransientError, UserError) as error:
                self._tell(error)
                await _closed(heard)
                heard = None
                failures += 1
                await asyncio.sleep(_BACKOFF.wait_s(failures))
            except asyncio.CancelledError:
                await _closed(heard)
                raise

    def _tell(self, error: Exception) -> None:
        if not self._silent:
            _log.warning("answers are found by polling only: %s", error)
        self._silent = True


async def _closed(heard: Any) -> None:
    if heard is not None:
        await heard.aclose()


@answers_wrong_options
class RedisJobCache(JobStore):
    """A cache in Redis in front of a store of jobs. Only jobs that have ended are cached. As they normally do not
    change any more, a cached job is up to date. While the Redis server does not answer, all jobs are read from the
    store. If the server refuses a command, for example because of a wrong password, `get` raises UserError.
    """

    def __init__(self, store: JobStore, client: Any, *, prefix: str = "sabot:jobs", ttl: Duration = "1h") -> None:
        """Makes a cache.

        - `store`: the store from which jobs are read that are not cached. All changes go to this store.
        - `client`: a `redis.asyncio.Redis`, which the caller closes, or the address of a server.
        - `prefix`: the prefix of the keys in Redis.
        - `ttl`: the time for which an ended job remains in the cache. A job of an app can run again after its end, if
          its dead letter is sent again. For this time the cache may still show such a job as ended.
        """
        check("RedisJobCache: store", store, Of(JobStore, "a PostgresJobStore, an InMemoryJobStore"))
        self.store, self.clock = store, store.clock
        self._server = RedisServer.of(client, "cache of jobs", "RedisJobCache")
        self._prefix = prefix
        self._ttl_ms = max(1, round(parse_seconds(ttl, name="ttl") * 1000))
        self._silent = False
        self.hits = self.misses = 0

    async def get(self, job_id: str) -> JobRecord | None:
        name, data = f"{self._prefix}:{job_id}", None
        try:
            with self._server.explained():
                data = await self._server.client.get(name)
            self._silent = False
        except TransientError as error:
            self._tell(error)
        if data is not None:
            try:
                known = msgspec.json.decode(data, type=JobRecord)
            except UNREADABLE:  # a record that another version has written
                _log.warning("%s in Redis is no job, and is read anew", name)
            else:
                self.hits += 1
                return known
        self.misses += 1
        job = await self.store.get(job_id)
        if job is not None and job.ended:
            await self._keep(job)
        return job

    async def _keep(self, job: JobRecord) -> None:
        try:
            with self._server.explained():
                await self._server.client.set(f"{self._prefix}:{job.job_id}", msgspec.json.encode(job), px=self._ttl_ms)
        except TransientError as error:
            self._tell(error)

    async def create(self, spec: JobSpec) -> tuple[JobRecord, bool]:
        return await self.store.create(spec)

    async def move(self, job_id: str, status: JobStatus, *, result_ref: str = "", error: str = "") -> JobRecord:
        return await self.store.move(job_id, status, result_ref=result_ref, error=error)

    async def find(self, *, scope_id: str | None = None, statuses: Sequence[JobStatus] = ()) -> list[JobRecord]:
        return await self.store.find(scope_id=scope_id, statuses=statuses)

    async def close(self) -> None:
        """Closes the connections to Redis, unless the caller has passed a client. Does not close `self.store`."""
        await self._server.close()

    def _tell(self, error: Exception) -> None:
        if not self._silent:
            _log.warning("jobs are read from their store: %s", error)
        self._silent = True


class _Closing(msgspec.Struct, kw_only=True):
    """The answer or the withdrawal that closes an action, as it is stored in Redis. `once` is a random id of the call.
    If the client sends the same call twice, the script in Redis recognizes this by the id.
    """

    once: str
    resolution: dict[str, Any] = {}
    resolved_at: float = 0.0
    by: str = ""


_CLOSE = """
local status = redis.call('HGET', KEYS[1], 'status')
if redis.call('HGET', KEYS[1], 'closing') == ARGV[2] then return '' end
if status ~= 'pending' then return status end
if ARGV[1] == 'resolved' and tonumber(ARGV[3]) > tonumber(redis.call('HGET', KEYS[1], 'expires')) then return 'late' end
redis.call('HSET', KEYS[1], 'status', ARGV[1], 'closing', ARGV[2])
return ''
"""


@answers_wrong_options
class RedisActionStore(ActionStore):
    """A store of actions in Redis. It has no jobs. Any number of processes can ask questions and answer them; only one
    answer to an action is accepted. The changes survive a crash of the server only if its settings make it write each
    change to disk (`appendfsync always`).

    If the store is passed to a RuntimeKernel (`action_store=`), it copies the kernel's actions to Redis. There,
    RedisActionStores in other processes can read and answer them. The kernel reads these answers and puts them into its
    journal, which accepts one answer. If Redis then has another answer than the journal, the answer in Redis is
    replaced.

    Methods raise TransientError if the server does not answer. Then the caller can read the action again to find out
    whether the change was made.
    """

    def __init__(
        self, client: Any, *, prefix: str = "sabot:actions", poll: Duration = "200ms", clock: Clock = SYSTEM_CLOCK
    ) -> None:
        """Makes a store.

        - `client`: a `redis.asyncio.Redis`, which the caller closes, or the address of a server.
        - `prefix`: the prefix of the keys in Redis.
        - `poll`: the interval at which a store that is passed to a kernel reads new answers from Redis.
        - `clock`: the clock for the times of actions.
        """
        self.clock = clock
        self._poll_s = parse_seconds(poll, name="poll", zero=False)
        self._mirror: _Mirror | None = None
        self._server = RedisServer.of(client, "actions", "RedisActionStore")
        self._prefix = f"{{{prefix}}}"  # the braces put all keys into one slot of a cluster
        # by id: the handles that callers in this process have
        self._pending: WeakValueDictionary[str, ActionRecord] = WeakValueDictionary()

    def _key(self, action_id: str) -> str:
        return f"{self._prefix}:action:{action_id}"

    async def start(self) -> None:
        """Checks the connection to the server. Raises TransientError if the server does not answer, and UserError if it
        refuses.
        """
        with self._server.explained():
            await self._server.client.ping()

    async def require(self, spec: ActionSpec) -> ActionRecord:
        if self._mirror is not None:
            return await self._mirror.of.require(spec)
        payload = msgspec.json.decode(as_json(spec.payload, "payload"))
        now, seconds = self.clock.time(), spec.timeout_seconds
        with self._server.explained():
            number = await self._server.client.incr(f"{self._prefix}:count")
            action = ActionRecord(
                action_id=f"{spec.job_id}/{number}",
                job_id=spec.job_id,
                type=spec.type,
                payload=payload,
                resume_token=secrets.token_hex(20),
                created_at=now,
                expires_at=None if seconds is None else now + parse_seconds(seconds, name="timeout_seconds"),
            )
            expires = "inf" if action.expires_at is None else repr(action.expires_at)
            fields = {"action": msgspec.json.encode(action), "status": "pending", "expires": expires}
            pipeline = self._server.client.pipeline(transaction=True)
            pipeline.hset(self._key(action.action_id), mapping=fields)
            pipeline.hset(f"{self._prefix}:tokens", action.resume_token, action.action_id)
            pipeline.zadd(f"{self._prefix}:order", {action.action_id: number})
            await pipeline.execute()
        self._pending[action.action_id] = action
        return action

    async def action(self, action_id: str) -> ActionRecord | None:
        if self._mirror is not None:
            return await self._mirror.of.action(action_id)
        (found,) = await self._read([action_id])
        return found

    async def _read(self, action_ids: Sequence[str]) -> list[ActionRecord | None]:
        pipeline = self._server.client.pipeline(transaction=False)
        for action_id in action_ids:
            pipeline.hmget(self._key(action_id), "action", "status", "closing")
        with self._server.explained():
            rows = await pipeline.execute()
        return [self._seen(*pair) for pair in zip(action_ids, rows, strict=True)]

    def _seen(self, action_id: str, row: Sequence[Any]) -> ActionRecord | None:
        asked, status, closing = row
        if asked is None:
            return None
        action = self._pending.get(action_id)
        try:
            if action is None:
                action = msgspec.json.decode(asked, type=ActionRecord)
            if closing is not None:
                said = msgspec.json.decode(closing, type=_Closing)
                action.status = ActionStatus(_text(status))
                action.resolution, action.resolved_at, action.by = said.resolution, said.resolved_at, said.by
                self._pending.pop(action_id, None)
        except UNREADABLE as error:
            raise DataError(f"{self._key(action_id)} in Redis is no action: {error}") from error
        return action

    async def resolve(self, token: str, resolution: Mapping[str, Any], by: str) -> ActionRecord:
        if self._mirror is not None:
            return await self._mirror.of.resolve(token, resolution, by)
        said = msgspec.json.decode(as_json(dict(resolution), "resolution"))
        with self._server.explained():
            named = await self._server.client.hget(f"{self._prefix}:tokens", token)
        action = None if named is None else await self.action(_text(named))
        if action is None:
            raise LetterRefused("nobody has asked a question with this token", reason="unknown")
        check_resolution(action, said)
        status = await self._close(action.action_id, ActionStatus.RESOLVED, self._closing(said, by))
        if status:
            reason = "expired" if status == "late" else "second"
            raise LetterRefused(f"action {action.action_id} takes no answer: it is {status}", reason=reason)
        return await self._known(action.action_id)

    async def close_action(self, action_id: str, status: ActionStatus) -> ActionRecord:
        if self._mirror is not None:
            return await self._mirror.of.close_action(action_id, status)
        await self._known(action_id)
        await self._close(action_id, status, self._closing({}))
        return await self._known(action_id)

    def _closing(self, resolution: dict[str, Any], by: str = "") -> _Closing:
        return _Closing(once=secrets.token_hex(8), resolution=resolution, resolved_at=self.clock.time(), by=by)

    async def _close(self, action_id: str, status: ActionStatus, closing: _Closing) -> str:
        """Closes an action in Redis in one atomic step, with the status `status`. Returns "" if this was done.
        Otherwise changes nothing, and returns the status that the action already has, or "late" if the time for an
        answer has run out.
        """
        words = (str(status), msgspec.json.encode(closing), repr(self.clock.time()))
        with self._server.explained():
            return _text(await self._server.client.eval(_CLOSE, 1, self._key(action_id), *words))

    async def _known(self, action_id: str) -> ActionRecord:
        action = await self.action(action_id)
        if action is None:
            raise no_action(action_id)
        return action

    async def actions(self, *, job_id: str | None = None, statuses: Sequence[ActionStatus] = ()) -> list[ActionRecord]:
        if self._mirror is not None:
            return await self._mirror.of.actions(job_id=job_id, statuses=statuses)
        with self._server.explained():
            names = [_text(name) for name in await self._server.client.zrange(f"{self._prefix}:order", 0, -1)]
        wanted = [name for name in names if job_id in (None, name.rpartition("/")[0])]
        found = [action for action in await self._read(wanted) if action is not None] if wanted else []
        return [action for action in found if not statuses or action.status in statuses]

    async def close(self) -> None:
        """Closes the connections that the store itself has opened."""
        await self._server.close()

    # -- the view of a kernel's actions -------------------------------------------------------------------------------

    home = None  # a kernel cannot keep its journal in Redis (`LentStore.home`)

    def lend(self, to: JobsAndActions) -> None:
        """Connects the store with a kernel. After that, the store passes the calls of its methods to `to`, the kernel's
        own store. Raises UserError if the store is connected with a kernel already.
        """
        if self._mirror is not None:
            raise UserError("the RedisActionStore is that of another kernel", hint="make one for each")
        self._mirror = _Mirror(to)

    async def show(self, journal: Journal) -> None:
        """Begins to copy the actions of the kernel's journal to Redis, and to read answers from Redis. Raises
        TransientError if the server does not answer.
        """
        assert self._mirror is not None
        await self.start()
        self._mirror.journal, self._mirror.anew = journal, True
        await journal.flush()
        await self.became_durable()
        self._mirror.hearing = asyncio.create_task(self._hear_answers(self._mirror), name="answers of Redis")

    async def leave(self) -> None:
        """Ends the task that reads people's answers to the kernel's actions from Redis."""
        mirror = self._mirror
        if mirror is not None and mirror.hearing is not None:
            hearing, mirror.hearing = mirror.hearing, None
            await end_tasks([hearing])

    async def became_durable(self) -> None:
        """Copies the actions in the new durable entries of the kernel's journal to Redis. If the server does not
        answer, or refuses, logs this and raises no error; the next call then copies all actions.
        """
        mirror = self._mirror
        if mirror is None or mirror.journal is None:
            return
        async with mirror.turn:
            try:
                for action in await run_to_end(run_in_thread(mirror.news, mirror.journal)):
                    await self._show_action(mirror, action)
                mirror.silent = False
            except BaseException as error:
                mirror.anew = True
                if not isinstance(error, TransientError | UserError):
                    raise
                mirror.tell("actions are not shown: %s", error)

    async def _show_action(self, mirror: "_Mirror", action: ActionRecord) -> None:
        """Writes an action of the kernel's journal to Redis, with its state in the journal. If the action is open in
        the journal and already answered in Redis, does not change its state in Redis: the store passes that answer to
        the journal next.
        """
        closed = action.status is not ActionStatus.PENDING
        said = self._closing(dict(action.resolution), action.by)
        said.resolved_at = action.resolved_at or 0.0
        asked = replace(action, status=ActionStatus.PENDING, resolution={}, resolved_at=None, by="")
        expires = "inf" if action.expires_at is None else repr(action.expires_at)
        words = (msgspec.json.encode(asked), expires, str(action.status), msgspec.json.encode(said), action.action_id)
        keys = (self._key(action.action_id), *(f"{self._prefix}:{each}" for each in ("count", "tokens", "order")))
        with self._server.explained():
            before = await self._server.client.eval(_SHOW, len(keys), *keys, *words, action.resume_token)
        if closed:
            mirror.pending.pop(action.action_id, None)
        else:
            mirror.pending[action.action_id] = action.resume_token
        status, closing = _text(before[0]), before[1]
        if closed and status not in ("", "pending"):
            earlier = msgspec.json.decode(closing, type=_Closing)
            if (status, earlier.resolution) != (str(action.status), dict(action.resolution)):
                _log.warning(
                    "action %s is %s in Redis, and %s in the journal, which holds",
                    action.action_id,
                    status,
                    action.status,
                )

    async def _hear_answers(self, mirror: "_Mirror") -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            if mirror.anew:
                await self.became_durable()
            try:
                for action in await self._read(list(mirror.pending)) if mirror.pending else ():
                    if action is None:  # the server has lost the action
                        mirror.anew = True
                    elif action.status is ActionStatus.RESOLVED:
                        await self._pass_on(mirror, action)
            except (TransientError, UserError, DataError) as error:
                mirror.anew = True
                mirror.tell("answers in Redis are not heard: %s", error)

    async def _pass_on(self, mirror: "_Mirror", action: ActionRecord) -> None:
        token = mirror.pending.pop(action.action_id)
        try:
            await mirror.of.resolve(token, action.resolution, action.by)
        except TransientError:
            mirror.pending[action.action_id] = token
            raise
        except (
            LetterRefused,
            UserError,
        ) as error:  # another answer came first, or it is too late: the journal is shown
            _log.warning("the answer to action %s in Redis is not taken: %s", action.action_id, error)


_SHOW = """
local status = redis.call('HGET', KEYS[1], 'status')
local closing = redis.call('HGET', KEYS[1], 'closing')
if not status then  -- the status is written last: if a command is refused, the next call writes all of it
  redis.call('HSET', KEYS[3], ARGV[6], ARGV[5])
  redis.call('ZADD', KEYS[4], redis.call('INCR', KEYS[2]), ARGV[5])
  redis.call('HSET', KEYS[1], 'action', ARGV[1], 'expires', ARGV[2], 'status', 'pending')
end
if ARGV[3] ~= 'pending' then redis.call('HSET', KEYS[1], 'status', ARGV[3], 'closing', ARGV[4]) end
return {status or '', closing or ''}
"""


@dataclass(slots=True)
class _Mirror:
    """The data of a RedisActionStore that is connected with a kernel.

    - `of`: the kernel's own store of jobs and actions.
    - `journal`: the journal of the kernel, or None before the kernel has opened it.
    - `known`: the view of the jobs in that journal.
    - `pending`: by action id, the tokens of the actions that are open in the journal.
    - `hearing`: the task that reads new answers from Redis.
    - `turn`: a lock that is held while actions are copied to Redis.
    - `silent`: True if an error was logged and no call has succeeded since.
    - `anew`: True if the next call has to copy all actions. This is so at the beginning, and after an error, because
      the server may have lost actions.
    """

    of: JobsAndActions
    journal: Journal | None = None
    known: JobView | None = None
    pending: dict[str, str] = field(default_factory=dict)
    hearing: asyncio.Task[None] | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    silent: bool = False
    anew: bool = True

    def news(self, journal: Journal) -> list[ActionRecord]:
        """Returns the actions of all jobs that have new entries in `journal` since the last call. If `anew` is True,
        returns the actions of all jobs in the log. Blocks the thread.
        """
        known, anew, self.anew = self.known, self.anew, False
        if known is None or anew:
            known = JobView(journal)
        changed = known.follow(journal)
        found = [replace(action) for action in known.actions.values() if action.job_id in changed]
        known.forget_ended()
        self.known = known
        return found

    def tell(self, what: str, error: Exception) -> None:
        """Logs an error as a warning. After that, logs no further errors until a call has succeeded. `what` is the
        message, with "%s" at the place of the error.
        """
        if not self.silent:
            _log.warning(what, error)
        self.silent = True
