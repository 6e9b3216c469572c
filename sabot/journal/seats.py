"""Limits of jobs in a journal that several workers share: the tables `limits` and `seats`, and columns of `inbox`.

   limits        by agent: its JobLimit, as the worker that has started last has it; its row is the lock of the agent's lanes
   seats         by job of such an agent: its lane, and when it was claimed; `parked` while it has given its seat up
   inbox         of a letter that begins a job: agent, scope and key, its priority, and the time before which nobody takes it

A worker that claims letters of an agent with a limit locks the row of the agent, then counts its seats in another statement, and
then claims, all in one transaction. So no two workers count the same free seat. Nothing is stored about free seats: a seat counts
while its job is open, or while a worker has its letter claimed; a row whose letter was given back counts no more.
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from sabot.journal.begin_facts import facts_of
from sabot.journal.entries import Begin, Letter, decode_entry
from sabot.journal.lanes import JobLimit, Lane, Lanes

MAKE = (
    "ALTER TABLE inbox ADD COLUMN IF NOT EXISTS agent text COLLATE \"C\" NOT NULL DEFAULT ''",
    "ALTER TABLE inbox ADD COLUMN IF NOT EXISTS scope text COLLATE \"C\" NOT NULL DEFAULT ''",
    "ALTER TABLE inbox ADD COLUMN IF NOT EXISTS key text COLLATE \"C\" NOT NULL DEFAULT ''",
    "ALTER TABLE inbox ADD COLUMN IF NOT EXISTS priority bigint NOT NULL DEFAULT 0",
    "ALTER TABLE inbox ADD COLUMN IF NOT EXISTS after_ms bigint NOT NULL DEFAULT 0",
    "CREATE INDEX IF NOT EXISTS letters_to_claim ON inbox (agent, priority, number) WHERE taken = 0 AND worker = 0",
    'CREATE TABLE IF NOT EXISTS limits (agent text COLLATE "C" PRIMARY KEY, spec text NOT NULL)',
    'CREATE TABLE IF NOT EXISTS seats (job text COLLATE "C" PRIMARY KEY, agent text COLLATE "C" NOT NULL, '
    'lane text COLLATE "C" NOT NULL, at_ms bigint NOT NULL, parked boolean NOT NULL DEFAULT false)',
    "CREATE INDEX IF NOT EXISTS seats_of_agent ON seats (agent)",
)
"""The statements that add them to a shared journal, whether it has some of them or not."""

NOW_MS = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"

_DROP_LIMITS = "DELETE FROM limits WHERE agent = ANY(%s) AND agent <> ALL(%s)"
_SET_LIMIT = "INSERT INTO limits VALUES (%s, %s) ON CONFLICT (agent) DO UPDATE SET spec = excluded.spec WHERE limits.spec <> excluded.spec"
LIMITS = "SELECT agent, spec FROM limits"
_LOCK = f"SELECT spec, {NOW_MS} FROM limits WHERE agent = %s FOR UPDATE SKIP LOCKED"
_COUNTS = (  # whether the seat of s is taken
    "CASE WHEN j.job IS NOT NULL THEN j.ended IS NULL ELSE EXISTS "
    "(SELECT 1 FROM inbox i WHERE i.once = 'begin:' || s.job AND i.taken = 0 AND i.worker <> 0) END"
)
_SEATS = f"SELECT s.job, s.lane, s.at_ms, s.parked, {_COUNTS} FROM seats s LEFT JOIN jobs j ON j.job = s.job WHERE s.agent = %s"
_NEXT = (
    "SELECT number, job, scope, key FROM inbox WHERE taken = 0 AND worker = 0 AND agent = %s AND starts_with(once, 'begin:') "
    "AND after_ms <= %s AND {lane} <> ALL(%s) ORDER BY priority, number LIMIT %s FOR UPDATE SKIP LOCKED"
)
_LANE_COLUMNS = {"agent": "''", "scope": "scope", "key": "key"}
_CLAIM = "UPDATE inbox SET worker = %s WHERE number = ANY(%s)"
_SIT = (
    "INSERT INTO seats (job, agent, lane, at_ms) SELECT *, %s FROM unnest(%s::text[], %s::text[], %s::text[]) "
    "ON CONFLICT (job) DO UPDATE SET agent = excluded.agent, lane = excluded.lane, at_ms = excluded.at_ms, parked = false"
)
_PARK = "UPDATE seats SET parked = true WHERE job = ANY(%s)"
_SIT_AGAIN = "UPDATE seats SET parked = false WHERE job = ANY(%s)"
_FORGET = "DELETE FROM seats WHERE job = ANY(%s)"

LET_THROUGH = "UPDATE inbox SET agent = '', after_ms = 0 WHERE once = ? AND taken = 0 AND worker = 0"
"""Lets a worker claim a letter at once and without a seat, since its job was cancelled before it has begun."""

_encode = msgspec.json.Encoder().encode


def columns_of(letter: Letter) -> Mapping[str, Any]:
    """Returns the values of the columns that the inbox of a shared journal has beside a letter, by their names."""
    if letter.kind != "begin":
        return {}
    begin = decode_entry(letter.body, f"the letter (begin) of job {letter.job}")
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


def set_limits(connection: Any, agents: Collection[str], limits: Mapping[str, JobLimit]) -> None:
    """Notes the limits of these agents, for all workers."""
    connection.execute(_DROP_LIMITS, (list(agents), list(limits)))
    for agent, limit in limits.items():
        spec = {name: getattr(limit, name) for name in ("agent", "per", "concurrency", "rate", "parked")}
        connection.execute(_SET_LIMIT, (agent, _encode(spec).decode()))


def limit_of(spec: str) -> JobLimit:
    """Returns the limit that a row of the table `limits` has."""
    return JobLimit(**msgspec.json.decode(spec))


class SharedLanes(Lanes):
    """The lanes of a worker. What its jobs ask of them is written with the next look for letters."""

    def __init__(self) -> None:
        super().__init__()
        self.parks: set[str] = set()
        self.wants: dict[str, Callable[[], object]] = {}

    def _limit(self, job: str) -> JobLimit | None:
        return self.limits.get(job.partition("/")[0])

    def leave(self, job: str, *, blocked: bool = False) -> bool:
        """Parks a blocked job. The seat of one that is over counts no more, which other workers see by themselves."""
        self.wants.pop(job, None)
        return blocked and self.park(job)

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
        before = self.wants.get(job)
        self.wants[job] = go if before is None else lambda: (before(), go())

    def wants_of(self, agent: str) -> list[str]:
        """Returns the jobs of an agent that go on as soon as they have seats."""
        return [job for job in list(self.wants) if job.partition("/")[0] == agent]


def park_seats(connection: Any, jobs: Collection[str]) -> None:
    """Notes which jobs have given their seats up."""
    connection.execute(_PARK, (list(jobs),))


def claim_seats(
    connection: Any, agent: str, worker: int, room: int, wants: Collection[str]
) -> tuple[list[str], int] | None:
    """Claims letters that begin jobs of an agent with a limit, at most `room`, after those of the jobs `wants`, which go on, have
    seats again. Returns those of `wants` that have one, and the number of letters. Returns None if another worker takes seats of
    this agent now, or if the agent has no limit any more. Called in a transaction.
    """
    found = connection.execute(_LOCK, (agent,)).fetchall()
    if not found:
        return None
    ((spec, now_ms),) = found
    limit = limit_of(spec)
    lanes: dict[str, Lane] = {}
    forgotten, seated, places = list[str](), set[str](), dict[str, str]()
    for job, name, at_ms, parked, counts in connection.execute(_SEATS, (agent,)).fetchall():
        lane = lanes.setdefault(name, Lane(name, limit if name else None))
        places[job] = name
        if counts and not parked:
            lane.seats.add(job)
            seated.add(job)
        if limit.most and at_ms > now_ms - limit.within_ms:
            lane.began_ms.append(at_ms)
        elif not counts:
            forgotten.append(job)
    for lane in lanes.values():
        lane.began_ms = deque(sorted(lane.began_ms))
    granted, again = list[str](), list[str]()
    waiting = set[str]()
    for job in wants:
        lane_name = places.get(job)
        if lane_name is None or job in seated:
            granted.append(job)
        elif not lanes[lane_name].is_full:
            lanes[lane_name].seats.add(job)
            granted.append(job)
            again.append(job)
        else:
            waiting.add(lane_name)
    if again:
        connection.execute(_SIT_AGAIN, (again,))
    if forgotten:
        connection.execute(_FORGET, (forgotten,))
    return granted, _claim(connection, agent, worker, room, limit, lanes, waiting, now_ms)


def _claim(
    connection: Any,
    agent: str,
    worker: int,
    room: int,
    limit: JobLimit,
    lanes: dict[str, Lane],
    waiting: set[str],
    now_ms: int,
) -> int:
    """Claims letters in lanes that have seats, and into which no job of `waiting` wants to come back."""
    statement = _NEXT.format(lane=_LANE_COLUMNS[limit.per])
    closed = {name for name, lane in lanes.items() if name in waiting or not _is_open(lane, now_ms)}
    numbers, jobs, names = list[int](), list[str](), list[str]()
    while len(numbers) < room and not (limit.per == "agent" and closed):
        left_out = [name.partition("\n")[2] for name in closed]
        found = connection.execute(statement, (agent, now_ms, left_out, room)).fetchall()
        found = [each for each in found if each[0] not in numbers]
        for number, job, scope, key in found:
            name = limit.lane(scope, key)
            lane = lanes.setdefault(name, Lane(name, limit if name else None))
            if len(numbers) >= room or name in closed:
                continue
            numbers.append(number)
            jobs.append(job)
            names.append(name)
            lane.seats.add(job)
            lane.began_ms.append(now_ms)
            if not _is_open(lane, now_ms):
                closed.add(name)
        if not found:
            break
        if numbers:
            connection.execute(_CLAIM, (worker, numbers))
    if numbers:
        connection.execute(_SIT, (now_ms, jobs, [agent] * len(jobs), names))
    return len(numbers)


def _is_open(lane: Lane, now_ms: int) -> bool:
    return not lane.is_full and lane.next_ms(now_ms) <= now_ms
