"""Limits of jobs in a journal that several workers share: the tables `limits` and `seats`, and columns of `inbox`.

   limits        by agent: its JobLimit, as the worker that has started last has it; its row is the lock of the agent's lanes
   seats         by job of such an agent: its lane, and when it was claimed; `parked` while it has given its seat up
   inbox         of a letter that begins a job, for the first time or again: agent, scope and key, its priority, and the time
                 before which nobody takes it, which is 0 as soon as it has come; `scope_key` is `lanes.key_of_scope`

A worker that claims letters of an agent with a limit locks the row of the agent, then counts its seats in another statement, and
then claims, all in one transaction. So no two workers count the same free seat. Nothing is stored about free seats: a seat counts
while its job is open, or while a worker has its letter claimed; a row whose letter was given back counts no more.

A claim reads what lanes have that have letters, and of these only the seats that are taken and the first letters. Neither jobs that
have given their seats up nor the letters behind the first ones cost anything.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from sabot.journal.base import once_of, queued_mark
from sabot.journal.begin_facts import facts_of
from sabot.journal.entries import Begin, Letter, decode_entry
from sabot.journal.lanes import JobLimit, Lanes, is_full, is_slow, pace_of, starts_at

_BEGINS = "starts_with(once, 'begin:')"
DUE = f"taken = 0 AND worker = 0 AND after_ms = 0 AND {_BEGINS}"
"""The condition on a letter in the inbox that begins a job, whose time has come, and that nobody has claimed."""

LATER = "taken = 0 AND worker = 0 AND after_ms > 0"
"""The condition on a letter whose time has not come, or has just come."""

RETRIES = "taken = 0 AND worker = 0 AND agent <> '' AND starts_with(once, 'retry:')"
"""The condition on a letter that begins a job again, and that the worker which holds the job has not claimed."""

TO_JOBS = f"taken = 0 AND NOT {_BEGINS}"
"""The condition on a letter to a job that has begun."""

_INDEXES = (
    f"CREATE INDEX IF NOT EXISTS letters_due ON inbox (agent, priority, number) WHERE {DUE}",
    f"CREATE INDEX IF NOT EXISTS letters_later ON inbox (after_ms) WHERE {LATER}",
    f"CREATE INDEX IF NOT EXISTS letters_to_jobs ON inbox (number) WHERE {TO_JOBS}",
    f"CREATE INDEX IF NOT EXISTS retries_due ON inbox (agent, priority, number) WHERE {RETRIES}",
    "CREATE INDEX IF NOT EXISTS letters_claimed ON inbox (worker) WHERE taken = 0 AND worker <> 0",
    "CREATE INDEX IF NOT EXISTS seats_taken ON seats (lane) WHERE NOT parked",
    "CREATE INDEX IF NOT EXISTS seats_begun ON seats (lane, at_ms)",
    "DROP INDEX IF EXISTS letters_to_claim",
    "DROP INDEX IF EXISTS seats_of_agent",
)
_INDEX_OF_LANES = "CREATE INDEX IF NOT EXISTS letters_by_{part} ON inbox (agent, {part}, priority, number) WHERE {due}"
_PART = {"scope": "scope", "key": "scope_key"}  # the column by which the lanes of a limit differ
_IS_THERE = "SELECT to_regclass(%s)"
# `lanes.key_of_scope`
_TEXT = "length(scope)::text || ':' || scope || key"
_KEY_OF_SCOPE = f"CASE WHEN key = '' THEN '' WHEN length({_TEXT}) > 500 THEN '#' || md5({_TEXT}) ELSE {_TEXT} END"

MAKE = (
    "ALTER TABLE inbox ADD COLUMN IF NOT EXISTS agent text COLLATE \"C\" NOT NULL DEFAULT ''",
    "ALTER TABLE inbox ADD COLUMN IF NOT EXISTS scope text COLLATE \"C\" NOT NULL DEFAULT ''",
    "ALTER TABLE inbox ADD COLUMN IF NOT EXISTS key text COLLATE \"C\" NOT NULL DEFAULT ''",
    f'ALTER TABLE inbox ADD COLUMN IF NOT EXISTS scope_key text COLLATE "C" GENERATED ALWAYS AS ({_KEY_OF_SCOPE}) STORED',
    "DROP INDEX IF EXISTS letters_by_key",
    "ALTER TABLE inbox ADD COLUMN IF NOT EXISTS priority bigint NOT NULL DEFAULT 0",
    "ALTER TABLE inbox ADD COLUMN IF NOT EXISTS after_ms bigint NOT NULL DEFAULT 0",
    'CREATE TABLE IF NOT EXISTS limits (agent text COLLATE "C" PRIMARY KEY, spec text NOT NULL)',
    'CREATE TABLE IF NOT EXISTS seats (job text COLLATE "C" PRIMARY KEY, agent text COLLATE "C" NOT NULL, '
    'lane text COLLATE "C" NOT NULL, at_ms bigint NOT NULL, parked boolean NOT NULL DEFAULT false)',
)
"""The statements that add them to a shared journal, whether it has some of them or not."""

NOW_MS = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
ARE_DUE = f"SELECT 1 FROM inbox WHERE {LATER} AND after_ms <= (SELECT {NOW_MS}) ORDER BY after_ms LIMIT 1"
"""Finds out whether `BECOME_DUE` has something to do."""

BECOME_DUE = (
    "UPDATE inbox SET after_ms = 0 WHERE number IN (SELECT number FROM inbox "
    f"WHERE {LATER} AND after_ms <= (SELECT {NOW_MS}) ORDER BY after_ms LIMIT 500 FOR UPDATE SKIP LOCKED) RETURNING number, agent, priority"
)
"""Puts letters whose time has come into the queue."""

_DROP_LIMITS = "DELETE FROM limits WHERE agent = ANY(%s) AND agent <> ALL(%s)"
_SET_LIMIT = "INSERT INTO limits VALUES (%s, %s) ON CONFLICT (agent) DO UPDATE SET spec = excluded.spec WHERE limits.spec <> excluded.spec"
LIMITS = "SELECT agent, spec FROM limits"
_LOCK = f"SELECT spec, {NOW_MS} FROM limits WHERE agent = %s FOR UPDATE SKIP LOCKED"
# Whether the seat of s is taken. By queries that each search an index for this one job: as a join, or by EXISTS, the planner reads the
# whole table `jobs` or all letters that are claimed, if it expects many seats.
_COUNTS = (
    "(coalesce((SELECT j.ended IS NULL FROM jobs j WHERE j.job = s.job), false) OR (SELECT true FROM "
    "(SELECT taken, worker FROM inbox WHERE inbox.job = s.job OFFSET 0) i WHERE taken = 0 AND worker <> 0 LIMIT 1) IS NOT NULL)"
)
_ROWS = f"SELECT s.job, s.lane, s.at_ms, {_COUNTS} FROM seats s"
_SEATS = (  # lane by lane: by ANY the planner reads all seats of a table of some thousands
    f"SELECT s.job, s.lane, s.at_ms, {_COUNTS} FROM unnest(%s::text[]) AS l (lane) CROSS JOIN LATERAL "
    "(SELECT job, lane, at_ms FROM seats WHERE lane = l.lane AND NOT parked OFFSET 0) s"
)
_BEGUN = "SELECT lane, count(*) FROM seats WHERE lane = ANY(%s) AND at_ms > %s GROUP BY lane"
_LANES_OF = f"SELECT s.job, s.lane, NOT s.parked AND {_COUNTS} FROM seats s WHERE s.job = ANY(%s)"
_QUEUED = (
    f"SELECT job, agent, scope, key, after_ms, {NOW_MS} FROM inbox WHERE once = ANY(?) AND taken = 0 AND worker = 0 UNION ALL "
    f"SELECT job, agent, scope, key, after_ms, {NOW_MS} FROM inbox WHERE {RETRIES} AND job = ANY(?)"
)
_TAKEN = f"SELECT s.lane, count(*) FROM seats s WHERE s.lane = ANY(?) AND NOT s.parked AND {_COUNTS} GROUP BY s.lane"
# the first of the jobs that fill the rate of a lane
_OLDEST = "SELECT at_ms FROM seats WHERE lane = ? AND at_ms > ? ORDER BY at_ms DESC OFFSET ? LIMIT 1"
_PARKED = "SELECT job, lane FROM seats WHERE job = ANY(%s) AND parked"
# the scopes, or keys of scopes, that have letters which are due, with the first letter of each, found by a search in the index
_FIRST = (
    "SELECT {part} AS part, priority, number FROM inbox WHERE {due} AND agent = %(agent)s AND {part} > {behind} "
    "ORDER BY agent, {part}, priority, number LIMIT 1"
)
_PARTS = (
    f"WITH RECURSIVE parts (part, priority, number) AS (({_FIRST.replace('{behind}', '%(after)s')}) UNION ALL "
    f"SELECT n.* FROM parts p CROSS JOIN LATERAL ({_FIRST.replace('{behind}', 'p.part')}) n) SELECT * FROM parts LIMIT %(most)s"
)
_NEXT = (
    "SELECT i.number, i.job, l.part, i.priority FROM unnest(%(parts)s::text[], %(free)s::bigint[]) AS l (part, free) "
    "CROSS JOIN LATERAL (SELECT number, job, priority FROM inbox WHERE {due} AND agent = %(agent)s {of_part} "
    "ORDER BY priority, number LIMIT l.free FOR UPDATE SKIP LOCKED) i ORDER BY i.priority, i.number LIMIT %(room)s"
)
_RETRIED = (  # by the worker that holds the job: the jobs below it are there
    f"SELECT i.number, i.job, i.scope, i.key FROM (SELECT * FROM inbox WHERE {RETRIES} AND agent = %s) i "
    "JOIN jobs j ON j.job = i.job WHERE j.worker = %s ORDER BY i.priority, i.number LIMIT %s"
)
_CLAIM = "UPDATE inbox SET worker = %s WHERE number = ANY(%s)"
_SIT = (
    "INSERT INTO seats (job, agent, lane, at_ms) SELECT *, %s FROM unnest(%s::text[], %s::text[], %s::text[]) "
    "ON CONFLICT (job) DO UPDATE SET agent = excluded.agent, lane = excluded.lane, at_ms = excluded.at_ms, parked = false"
)
_PARK = "UPDATE seats SET parked = true WHERE job = ANY(%s)"
_SIT_AGAIN = "UPDATE seats SET parked = false WHERE job = ANY(%s)"
_FORGET = "DELETE FROM seats WHERE job = ANY(%s)"
_VISIT = f"{_ROWS} WHERE s.job > %s ORDER BY s.job LIMIT {{most}}"
# not one that was claimed again since the visit
_FORGET_AS_SEEN = "DELETE FROM seats s USING unnest(%s::text[], %s::bigint[]) AS g (job, at_ms) WHERE s.job = g.job AND s.at_ms = g.at_ms"

AGENTS = "agents:"
"""The first characters of the names in the table `meta` under which workers note their agents."""

_NOTE_AGENTS = "INSERT INTO meta (name, value) VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
_THEIR_AGENTS = (
    f"SELECT m.value FROM workers w LEFT JOIN meta m ON m.name = '{AGENTS}' || w.number "
    "WHERE NOT w.gone AND w.until > clock_timestamp()"
)

_NOT_CLAIMED = (
    "SELECT number FROM inbox WHERE job = ANY(?) AND taken = 0 AND worker = 0 AND NOT starts_with(agent, chr(10)) "
    "AND (once = 'begin:' || job OR starts_with(once, 'retry:'))"
)
PASSES = "starts_with(agent, chr(10))"
"""The condition on a letter that begins a job which was cancelled before (`let_through`)."""

_CANCELS = "SELECT job, number, letter FROM inbox WHERE once = ANY(?) AND taken = 0"
_RETRIES_OF = "SELECT job, number FROM inbox WHERE job = ANY(?) AND taken = 0 AND starts_with(once, 'retry:')"
_LET_THROUGH = "UPDATE inbox SET agent = chr(10) || agent, after_ms = 0 WHERE taken = 0 AND worker = 0"
_LET_MANY_THROUGH = f"{_LET_THROUGH} AND number IN ({_NOT_CLAIMED} FOR UPDATE SKIP LOCKED)"

LANES_AT_ONCE = 256  # lanes that a claim looks at, beside those in which a job of this worker has ended
_COUNTED_AT_ONCE = 64  # lanes whose seats a claim counts with one statement, or as many as it has room for
_WANTS_AT_ONCE = 64  # jobs that want to go on, of which a claim looks for the lanes
_RETRIES_AT_ONCE = 64  # letters that begin jobs again, of which a claim looks for the lanes
VISITS = 500  # seats that are looked at for jobs that have ended, at once

_MOVE_SEATS = (  # into the lanes of keys of scopes; in format 10 a key was the same in all scopes
    "UPDATE seats s SET lane = s.agent || chr(10) || f.part "
    f"FROM (SELECT job, key, {_KEY_OF_SCOPE} AS part FROM jobs UNION SELECT job, key, scope_key FROM inbox WHERE agent <> '') f "
    "WHERE f.job = s.job AND f.key <> '' AND s.lane = s.agent || chr(10) || f.key "
    "AND s.agent IN (SELECT agent FROM limits WHERE spec::json->>'per' = 'key')"
)

_encode = msgspec.json.Encoder().encode


def cancelled(agent: str) -> str:
    """Returns what the column `agent` has for a letter of this agent after `let_through`: no limit has this name."""
    return f"\n{agent}"


def let_through(connection: Any, jobs: Collection[str]) -> None:
    """Lets workers claim letters at once and without a seat, since their jobs were cancelled before they have begun (`cancelled`).
    Passes over those that a worker has locked, which it claims: who waits for one while it has another locked would wait for ever.
    """
    connection.execute(_LET_MANY_THROUGH, (list(jobs),))


def cancels_of(select: Callable[..., list[tuple[Any, ...]]], jobs: Collection[str]) -> dict[str, tuple[int, bytes]]:
    """Returns, by job, the number and the data of the letter that has cancelled it before it has begun. `select`: runs a query."""
    names = [once_of(Letter("cancel", job=job), queued_mark(job)) for job in jobs]
    return {job: (number, data) for job, number, data in select(_CANCELS, (names,))} if names else {}


def retries_of(select: Callable[..., list[tuple[Any, ...]]], jobs: Collection[str]) -> dict[str, int]:
    """Returns, by job, the numbers of the letters that are to begin these jobs again. `select`: runs a query."""
    return dict(select(_RETRIES_OF, (list(jobs),))) if jobs else {}


def still_queued(connection: Any, jobs: Collection[str]) -> list[int]:
    """Returns the numbers of the letters that `let_through` has passed over and that were not claimed."""
    return [number for (number,) in connection.execute(_NOT_CLAIMED, (list(jobs),)).fetchall()]


def let_one_through(connection: Any, number: int) -> None:
    """Lets a worker claim a letter as `let_through` does. The connection has nothing locked."""
    connection.execute(f"{_LET_THROUGH} AND number = ? AND NOT starts_with(agent, chr(10))", (number,))


def columns_of(letter: Letter) -> Mapping[str, Any]:
    """Returns the values of the columns that the inbox of a shared journal has beside a letter, by their names."""
    if letter.kind not in ("begin", "retry"):
        return {}
    begin = decode_entry(letter.body, f"the letter ({letter.kind}) of job {letter.job}")
    assert isinstance(begin, Begin)
    agent, scope, _, _, key = facts_of(begin)
    times = {"priority": letter.priority, "after_ms": letter.after_ms}
    return {"agent": agent, "scope": scope, "key": key, **times}


def make_seats(connection: Any, letters: Collection[tuple[int, Letter]]) -> None:
    """Adds tables and columns to a shared journal. `letters`: those in its inbox that were not taken, with their numbers. The
    caller holds the lock under which journals are made.
    """
    for statement in MAKE:
        connection.execute(statement)
    for number, letter in letters:
        if columns := columns_of(letter):
            names = ", ".join(f"{name} = %s" for name in columns)
            connection.execute(f"UPDATE inbox SET {names} WHERE number = %s", (*columns.values(), number))
    connection.execute(_MOVE_SEATS)
    make_indexes(connection)


def make_indexes(connection: Any) -> None:
    """Adds the indexes by which letters and seats are found, unless they are there. Otherwise as `make_seats`."""
    if connection.execute(_IS_THERE, ("letters_due",)).fetchall() == [(None,)]:
        with connection.transaction():
            for statement in _INDEXES:
                connection.execute(statement)


def index_lanes(connection: Any, limits: Iterable[JobLimit]) -> None:
    """Adds the indexes by which the lanes of limits are found, unless they are there. Not called in a transaction."""
    for part in {_PART[limit.per] for limit in limits if limit.per != "agent"}:
        if connection.execute(_IS_THERE, (f"letters_by_{part}",)).fetchall() == [(None,)]:
            with connection.transaction():
                # before the inbox, as claims lock them: and of two workers that start, one makes the index
                connection.execute("LOCK TABLE limits IN EXCLUSIVE MODE")
                connection.execute(_INDEX_OF_LANES.format(part=part, due=DUE))


def set_limits(connection: Any, agents: Collection[str], limits: Mapping[str, JobLimit]) -> None:
    """Notes the limits of these agents, for all workers."""
    connection.execute(_DROP_LIMITS, (list(agents), list(limits)))
    for agent, limit in limits.items():
        spec = {name: getattr(limit, name) for name in ("agent", "per", "concurrency", "rate", "parked")}
        connection.execute(_SET_LIMIT, (agent, _encode(spec).decode()))


def note_agents(connection: Any, worker: int, agents: Collection[str]) -> None:
    """Notes which agents a worker has, for the reasons why jobs wait."""
    connection.execute(_NOTE_AGENTS, (f"{AGENTS}{worker}", _encode(sorted(agents)).decode()))


def limit_of(spec: str) -> JobLimit:
    """Returns the limit that a row of the table `limits` has."""
    return JobLimit(**msgspec.json.decode(spec))


class SharedLanes(Lanes):
    """The lanes of a worker. What its jobs ask of them is written with the next look for letters.

    - `parks`: jobs that give their seats up.
    - `wants`: what lets jobs go on that have given their seats up, by job; `places`: the lanes of those that were looked at.
    - `left`: jobs that have ended, whose lanes are looked at before others.
    - `after`: by agent, the scope or key behind which the next look begins, where there are many.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parks: set[str] = set()
        self.wants: dict[str, Callable[[], object]] = {}
        self.places: dict[str, str] = {}
        self.left: set[str] = set()
        self.after: dict[str, str] = {}
        self._visited = ""

    def _limit(self, job: str) -> JobLimit | None:
        return self.limits.get(job.partition("/")[0])

    def leave(self, job: str, *, blocked: bool = False) -> bool:
        """Parks a blocked job. The seat of one that is over counts no more, which other workers see by themselves."""
        with self.lock:
            self.wants.pop(job, None)
            self.places.pop(job, None)
        if blocked:
            return self.park(job)
        if self._limit(job) is not None:
            self.left.add(job)
        return False

    def park(self, job: str) -> bool:
        limit = self._limit(job)
        if limit is not None and limit.parked == "free":
            self.parks.add(job)
        return False

    def go_on(self, job: str, go: Callable[[], object]) -> None:
        limit = self._limit(job)
        self.parks.discard(job)
        if limit is None or limit.parked == "holds" or limit.concurrency is None:
            go()
            return
        with self.lock:
            before = self.wants.get(job)
            self.wants[job] = go if before is None else lambda: (before(), go())

    def granted(self, jobs: Iterable[str]) -> list[Callable[[], object]]:
        """Returns the calls that let jobs go on which have seats again. From then on they want nothing."""
        with self.lock:
            for job in jobs:
                self.places.pop(job, None)
            return [self.wants.pop(job) for job in jobs if job in self.wants]

    def wants_of(self, agent: str) -> list[str]:
        """Returns the jobs of an agent that go on as soon as they have seats."""
        return [job for job in list(self.wants) if job.partition("/")[0] == agent]

    def claim(self, connection: Any, agent: str, worker: int, room: int) -> tuple[list[str], list[int]]:
        """Claims letters of an agent as `claim_seats` does. Returns the jobs that go on now, and the numbers of the letters."""
        wants = self.wants_of(agent)
        closed = {self.places[job] for job in wants if job in self.places}
        left = [job for job in list(self.left) if job.partition("/")[0] == agent]
        after = self.after.get(agent, "")
        found = claim_seats(
            connection, agent, worker, room, wants[:_WANTS_AT_ONCE], closed=closed, left=left, after=after
        )
        if found is None:
            return ([], []) if agent in self.limits else (wants, [])
        self.left.difference_update(set(left) - found.still)
        self.after[agent] = found.after
        limit = self.limits.get(agent)
        with self.lock:
            for job, lane in found.waiting.items():
                if (go := self.wants.get(job)) is None:  # it has ended meanwhile
                    continue
                self.places[job] = lane
                if limit is not None and limit.per != "agent":  # those behind it may have seats in their lanes
                    del self.wants[job]
                    self.wants[job] = go
        return found.granted, found.letters

    def looks_into(self, agents: Collection[str]) -> None:
        """Notes that no other agents have letters: where their jobs have ended, nobody waits for a seat."""
        self.left.difference_update([job for job in list(self.left) if job.partition("/")[0] not in agents])

    @property
    def may_have_more(self) -> bool:
        """True if a lane may have a seat that the last look did not find."""
        return bool(self.left or self.parks or any(self.after.values()))

    def forget(self, connection: Any) -> None:
        """Deletes some rows of jobs that have ended, another part of the table with each call: claims delete those in the lanes that
        they look at, and not those of a lane that nobody uses any more.
        """
        rows = connection.execute(_VISIT.format(most=VISITS), (self._visited,)).fetchall()
        within_ms = max((pace_of(each)[1] for each in self.limits.values()), default=0)
        ((now_ms,),) = connection.execute(f"SELECT {NOW_MS}").fetchall()
        gone = [(job, at_ms) for job, _, at_ms, counts in rows if not counts and at_ms <= now_ms - within_ms]
        if gone:
            connection.execute(_FORGET_AS_SEEN, tuple(map(list, zip(*gone, strict=True))))
        self._visited = rows[-1][0] if len(rows) == VISITS else ""


def park_seats(connection: Any, jobs: Collection[str]) -> None:
    """Notes which jobs have given their seats up."""
    connection.execute(_PARK, (list(jobs),))


class Claimed(NamedTuple):
    """The result of a claim.

    - `granted`: the jobs that go on, since they have seats again. `waiting`: the lanes of the others, by job.
    - `letters`: the numbers of the letters.
    - `still`: those of the jobs that were over whose END is not durable yet.
    - `after`: the scope or key behind which the next claim begins to look; "" for the first one.
    """

    granted: list[str]
    waiting: dict[str, str]
    letters: list[int]
    still: set[str]
    after: str


def claim_seats(
    connection: Any,
    agent: str,
    worker: int,
    room: int,
    wants: Collection[str] = (),
    *,
    closed: Collection[str] = (),
    left: Collection[str] = (),
    after: str = "",
) -> Claimed | None:
    """Claims letters that begin jobs of an agent with a limit, at most `room`, after those of the jobs `wants`, which go on, have
    seats again. Letters that begin jobs of this worker again are the first. Returns None if another worker takes seats of this
    agent now, or if the agent has no limit any more. Called in a transaction.

    `closed`: lanes into which other jobs want to come back, and which so take no new one. `left`: jobs that are over, whose lanes
    are looked at first. `after`: the scope or key behind which it looks for others.
    """
    found = connection.execute(_LOCK, (agent,)).fetchall()
    if not found:
        return None
    ((spec, now_ms),) = found
    claim = _Claim(connection, agent, worker, limit_of(spec), now_ms)
    granted, waiting = claim.sit_again(wants)
    still, freed = claim.freed(left)
    letters, behind = list[int](), after
    if room > 0:
        closed = {*closed, *waiting.values()}
        letters = claim.retries(min(room, _RETRIES_AT_ONCE), closed)
        more, behind = claim.letters(room - len(letters), closed, freed, after)
        letters += more
    return Claimed(granted, waiting, letters, still, behind)


def waits_of_letters(select: Callable[..., list[tuple[Any, ...]]], jobs: Collection[str]) -> dict[str, str]:
    """Does what `JournalReader.waits` says, in a journal that several workers share. `select`: runs a query."""
    rows = select(_QUEUED, ([f"begin:{job}" for job in jobs], list(jobs)))
    limits = {agent: limit_of(spec) for agent, spec in select(LIMITS)} if rows else {}
    lanes = {job: limits[agent].lane(scope, key) for job, agent, scope, key, *_ in rows if agent in limits}
    names = sorted(set(filter(None, lanes.values())))
    taken = dict(select(_TAKEN, (names,))) if names else {}
    noted = [value for (value,) in select(_THEIR_AGENTS)] if rows else []
    # None: a worker of an earlier version, which notes none
    there = None if None in noted else {agent for value in noted for agent in msgspec.json.decode(value)}
    found = dict[str, str]()
    for job, agent, _, _, after_ms, now_ms in rows:
        limit, lane = limits.get(agent), lanes.get(job, "")
        most, within_ms = pace_of(limit) if lane else (0, 0)
        if after_ms > now_ms:
            found[job] = starts_at(after_ms)
        elif not noted:
            found[job] = "no worker runs"
        elif there is not None and agent.removeprefix("\n") not in there:
            found[job] = f"no worker that runs has agent {agent.removeprefix(chr(10))}"
        elif limit is not None and lane and limit.concurrency is not None and taken.get(lane, 0) >= limit.concurrency:
            found[job] = is_full(taken[lane], limit)
        elif limit is not None and most and (first := select(_OLDEST, (lane, now_ms - within_ms, most - 1))):
            found[job] = is_slow(int(first[0][0]) + within_ms, limit)
        else:
            found[job] = "no worker that has its agent had room for it yet"
    return found


class _Claim:
    """A claim of seats, in a transaction that has the lock of the agent. `_free`: by lane that was looked at, how many more jobs may
    sit in it; `_pace`: how many more may begin now by its rate.
    """

    def __init__(self, connection: Any, agent: str, worker: int, limit: JobLimit, now_ms: int) -> None:
        self._run, self._agent, self._worker, self._limit, self._now_ms = (
            connection.execute,
            agent,
            worker,
            limit,
            now_ms,
        )
        self._free, self._pace = Counter[str](), Counter[str]()
        self._begin_within = pace_of(limit)
        self._read: set[str] = set()

    def _look(self, lanes: Iterable[str]) -> None:
        """Counts the seats that are taken in lanes. Deletes those of jobs that are over."""
        fresh, limit = sorted(set(lanes) - self._read), self._limit
        if not fresh:
            return
        self._read.update(fresh)
        most, within_ms = self._begin_within
        since_ms, gone = self._now_ms - within_ms, list[str]()
        if limit.concurrency is not None:
            self._free.update(dict.fromkeys(fresh, limit.concurrency))
            for job, lane, at_ms, counts in self._run(_SEATS, (fresh,)).fetchall():
                self._free[lane] -= counts
                if not counts and at_ms <= since_ms:
                    gone.append(job)
        if most:
            self._pace.update(dict.fromkeys(fresh, most))
            self._pace.subtract(dict(self._run(_BEGUN, (fresh, since_ms)).fetchall()))
        if gone:
            self._run(_FORGET, (gone,))

    def _most(self, lane: str, room: int) -> int:
        """Returns how many more jobs, of at most `room`, may begin in a lane."""
        if self._limit.concurrency is not None and lane:
            room = min(room, self._free[lane])
        return min(room, self._pace[lane]) if self._begin_within[0] and lane else room

    def sit_again(self, wants: Collection[str]) -> tuple[list[str], dict[str, str]]:
        """Lets jobs sit that have given their seats up. Returns those that have seats, and the lanes of the others by job."""
        places = dict(self._run(_PARKED, (list(wants),)).fetchall()) if wants else {}
        self._look(places.values())
        granted, again, waiting = list[str](), list[str](), dict[str, str]()
        for job in wants:
            lane = places.get(job)
            if lane is None:
                granted.append(job)
            elif self._limit.concurrency is None or self._free[lane] > 0:
                self._free[lane] -= 1
                granted.append(job)
                again.append(job)
            else:
                waiting[job] = lane
        if again:
            self._run(_SIT_AGAIN, (again,))
        return granted, waiting

    def freed(self, left: Collection[str]) -> tuple[set[str], set[str]]:
        """Returns those of the jobs that have left whose seats count still, and the lanes of the others."""
        rows = self._run(_LANES_OF, (list(left),)).fetchall() if left else []
        return {job for job, _, counts in rows if counts}, {lane for _, lane, counts in rows if not counts}

    def retries(self, room: int, closed: Collection[str]) -> list[int]:
        """Claims letters that begin jobs again, which this worker holds. Returns their numbers."""
        rows = self._run(_RETRIED, (self._agent, self._worker, room)).fetchall()
        asked = [(number, job, self._limit.lane(scope, key)) for number, job, scope, key in rows]
        asked = [each for each in asked if each[2] not in closed]
        self._look(lane for _, _, lane in asked if lane)
        taken = list[tuple[int, str, str]]()
        for number, job, lane in asked:
            if self._most(lane, 1) > 0:
                self._free[lane] -= 1
                self._pace[lane] -= 1
                taken.append((number, job, lane))
        return self._claim(taken)

    def _claim(self, taken: Collection[tuple[int, str, str]]) -> list[int]:
        """Claims letters, and lets their jobs sit in their lanes. Returns their numbers."""
        if not taken:
            return []
        numbers = [number for number, _, _ in taken]
        self._run(_CLAIM, (self._worker, numbers))
        if seated := [(job, lane) for _, job, lane in taken if lane]:
            jobs, names = map(list, zip(*seated, strict=True))
            self._run(_SIT, (self._now_ms, jobs, [self._agent] * len(jobs), names))
        return numbers

    def letters(self, room: int, closed: Collection[str], freed: Collection[str], after: str) -> tuple[list[int], str]:
        """Claims letters in lanes that have seats: of those that were looked at the first by priority and number. Returns their
        numbers, and the scope or key behind which the next claim begins.
        """
        first, of_part, behind = {""}, "", ""
        parts = [""]
        if self._limit.per != "agent":
            found, behind = self._parts(after)
            first.update(lane.partition("\n")[2] for lane in freed)
            parts = [*first, *(part for part in found if part not in first)]
            of_part = f"AND {_PART[self._limit.per]} = l.part"
        lanes = {part: lane for part in parts if (lane := self._limit.lane_of(part)) not in closed}
        free, rest, enough = dict[str, int](), list(lanes), room + len(first)
        # the first letters of all lanes are in those whose first letters are the first ones
        while rest and len(free) < enough:
            some, rest = rest[: max(enough, _COUNTED_AT_ONCE)], rest[max(enough, _COUNTED_AT_ONCE) :]
            self._look(filter(None, map(lanes.__getitem__, some)))
            free |= {part: most for part in some if (most := self._most(lanes[part], room)) > 0}
        if not free:
            return [], behind
        values = {"parts": list(free), "free": list(free.values()), "agent": self._agent, "room": room}
        rows = self._run(_NEXT.format(due=DUE, of_part=of_part), values).fetchall()
        return self._claim([(number, job, lanes[part]) for number, job, part, _ in rows]), behind

    def _parts(self, after: str) -> tuple[list[str], str]:
        """Returns the scopes, or keys of scopes, that have letters, from one on, by their first letters, and the one behind which the
        next look begins.
        """
        statement, found = _PARTS.format(part=_PART[self._limit.per], due=DUE), list[tuple[int, int, str]]()
        behind = ""
        for first in (after, "") if after else ("",):
            values = {"agent": self._agent, "after": first, "most": LANES_AT_ONCE - len(found)}
            rows = self._run(statement, values).fetchall()
            found += [(*letter, part) for part, *letter in rows if first or not after or part <= after]
            if len(rows) == values["most"]:
                behind = str(rows[-1][0])
                break
        return [part for *_, part in sorted(found)], behind
