"""Limits of jobs, and the queue of the jobs that wait to begin, in a journal with one owner.

   letter "begin" ─▶ later, until its time ─▶ lane ─▶ a seat is free, and the rate allows it ─▶ BEGIN ─▶ … ─▶ END: the seat is free
                                               ▲
   parked="free": a job that goes on takes a seat again, before jobs that begin

A lane has the jobs that share a limit: those of an agent, of one scope of it, or of one key of a scope. A job without a limit is in the
lane "", which is never full. A job keeps its seat until its end, with the jobs that it has begun; or with `parked="free"` until
all of them wait for something that takes long.

The queue is in memory, and the letters are in the inbox of the journal until their jobs begin. So nothing is lost with the
process. Jobs that have begun within the time of a rate are counted from the marks of the journal at the start.
"""

import heapq
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import md5
from typing import Literal

from sabot.base.checks import OneOf, Whole, check
from sabot.base.config import checked_text, parse_seconds
from sabot.base.options import answers_wrong_options
from sabot.errors import UserError, short_repr
from sabot.journal.begin_facts import facts_of
from sabot.journal.entries import Begin, Letter, decode_entry

_LONGEST_PART = 500  # characters, each of at most four bytes
_LAST_MS = 253_402_300_800_000  # the year 10,000
_RATE = 'such as rate="100/min", "5/s" or "20/10s": jobs that begin in each such time'


@answers_wrong_options
@dataclass(frozen=True)
class JobLimit:
    """A limit for the jobs of one agent of a kernel: how many run at a time, and how many begin in a time. Jobs beyond it stay
    queued, in the order of their priorities, and among these in the order in which they were asked for.

    - `agent`: the name of the agent.
    - `per`: "agent" counts all jobs of the agent together, "scope" those of each scope (tenant), "key" those of each `key=`
      of a scope: the same key of another scope is another one. Jobs without a key are not limited then.
    - `concurrency`: the most jobs that run at a time; None for no limit. `JobLimit("support", per="key", concurrency=1)` runs
      the jobs of one customer one after the other.
    - `rate`: the most jobs that begin within any such time: "100/min". None for no limit.
    - `parked`: "free" lets the next job pass while a job waits for a person, a signal, a long timer or a child that does; "holds"
      does not. By default "free", but "holds" for `per="key"`, where order matters.

    A job that another job has begun (`ctx.child`) belongs to that one, and has no seat of its own.
    """

    agent: str
    _: KW_ONLY
    per: Literal["agent", "scope", "key"] = "agent"
    concurrency: int | None = None
    rate: str | None = None
    parked: Literal["holds", "free"] | None = None

    def __post_init__(self) -> None:
        checked_text(self.agent, "JobLimit: agent")
        check("JobLimit: per", self.per, OneOf(("agent", "scope", "key")))
        if self.concurrency is not None:
            check("JobLimit: concurrency", self.concurrency, Whole(1))
        if self.parked is None:
            object.__setattr__(self, "parked", "holds" if self.per == "key" else "free")
        check("JobLimit: parked", self.parked, OneOf(("holds", "free")))
        pace_of(self)
        if self.concurrency is None and self.rate is None:
            raise UserError(f"JobLimit({self.agent!r}) limits nothing", hint="give it concurrency=, rate= or both")

    def lane(self, scope: str, key: str) -> str:
        """Returns the name of the lane of a job with this scope and key; "" if the job is not limited."""
        return self.lane_of(scope if self.per == "scope" else key_of_scope(scope, key))

    def lane_of(self, part: str) -> str:
        """Returns the name of a lane. `part`: the scope, or `key_of_scope`, as `per` says; it says nothing for `per="agent"`."""
        if self.per == "agent":
            return self.agent
        return f"{self.agent}\n{part}" if part else ""


def key_of_scope(scope: str, key: str) -> str:
    """Returns a text that only this key of this scope has, also where they have the separators of others; "" without a key.
    Of long names it is a digest, as an index of PostgreSQL takes no entry of more than 2,704 bytes. `seats.MAKE` has it in SQL.
    """
    text = f"{len(scope)}:{scope}{key}" if key else ""
    return text if len(text) <= _LONGEST_PART else f"#{md5(text.encode(), usedforsecurity=False).hexdigest()}"


def pace_of(limit: JobLimit | None) -> tuple[int, int]:
    """Returns how many jobs may begin by a limit within a time, and this time in milliseconds; (0, 0) without a rate. Raises
    UserError if the rate is not valid.
    """
    if limit is None or limit.rate is None:
        return 0, 0
    if not isinstance(limit.rate, str):  # the cache asks for a value with a hash
        raise UserError(f"JobLimit: rate={short_repr(limit.rate)}", hint=_RATE)
    return _parsed_rate(limit.rate)


@lru_cache(256)
def _parsed_rate(rate: str) -> tuple[int, int]:
    count, slash, time = rate.partition("/")
    if not slash or not count.strip().isdecimal() or int(count) < 1:
        raise UserError(f"JobLimit: rate={short_repr(rate)}", hint=_RATE)
    time = time.strip()
    seconds = parse_seconds(time if time[:1].isdecimal() else f"1{time}", name="JobLimit: rate", zero=False, hint=_RATE)
    return int(count), max(1, round(seconds * 1000))


@dataclass(slots=True, eq=False)
class Lane:
    """A lane.

    - `queued`: a heap of the jobs that may begin next: priority, number of the letter, job. `waiting`: the number of jobs in the
      queue, also of those whose time has not come.
    - `seats`: the jobs that have a seat. `away`: those that have given theirs up while they wait. `woken`: those of them that want
      to go on.
    - `began_ms`: when the last jobs have begun, the oldest first, if there is a rate.
    - `pace`: how many jobs may begin within a time, and this time in milliseconds (`pace_of`).
    - `offered`: priority and number of the job by which the lane stands among the others, or None. `look_ms`: the time at which it is
      looked at again because of its rate, or None.
    """

    name: str
    limit: JobLimit | None
    queued: list[tuple[int, int, str]] = field(default_factory=list)
    waiting: int = 0
    seats: set[str] = field(default_factory=set)
    away: set[str] = field(default_factory=set)
    woken: dict[str, Callable[[], object]] = field(default_factory=dict)
    began_ms: deque[int] = field(default_factory=deque)
    offered: tuple[int, int] | None = None
    look_ms: int | None = None
    pace: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.pace = pace_of(self.limit)

    def begins(self, at_ms: int) -> None:
        if self.pace[0]:
            self.began_ms.append(at_ms)

    @property
    def is_full(self) -> bool:
        most = None if self.limit is None else self.limit.concurrency
        return most is not None and len(self.seats) >= most

    def next_ms(self, now_ms: int) -> int:
        """Returns the time from which on the rate allows another job: now, or later."""
        (most, within_ms), began = self.pace, self.began_ms
        if not most:
            return now_ms
        if began and began[-1] > now_ms:  # the clock was set back: they count as if they had begun now
            began = self.began_ms = deque(min(each, now_ms) for each in began)
        while began and began[0] + within_ms <= now_ms:
            began.popleft()
        return now_ms if len(began) < most else began[len(began) - most] + within_ms


@dataclass(slots=True, eq=False)
class _Queued:
    """A letter that begins a job, and waits. `following`: letters to the job that came after it. `cancelled`: True if one of these is
    a cancel: then it leaves the queue at once and has no seat. `lane`: None for a job that no lane lets begin (`Lanes.hold`).
    """

    number: int
    letter: Letter
    lane: Lane | None
    following: list[tuple[int, Letter]] = field(default_factory=list)
    cancelled: bool = False


def starts_at(after_ms: int) -> str:
    """Returns in words when a job begins whose time has not come."""
    return f"starts at {_moment(after_ms)}"


def is_full(taken: int, limit: JobLimit) -> str:
    """Returns in words that a lane has no seat."""
    return f"its lane is full: {taken} of {limit.concurrency}"


def is_slow(next_ms: int, limit: JobLimit) -> str:
    """Returns in words when the rate of a lane lets the next job begin."""
    return f"its rate, {limit.rate}, lets the next job begin at {_moment(next_ms)}"


def _moment(at_ms: int) -> str:
    at = datetime.fromtimestamp(at_ms / 1000, UTC) if at_ms < _LAST_MS else datetime.max
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _why(queued: _Queued, now_ms: int, room: int) -> str:
    lane = queued.lane
    if lane is None:
        return f"this program has no agent {queued.letter.name}"
    limit = lane.limit
    if queued.letter.after_ms > now_ms:
        return starts_at(queued.letter.after_ms)
    if limit is not None and lane.is_full:
        return is_full(len(lane.seats), limit)
    if lane.woken:
        return "jobs of its lane that go on are before it"
    if limit is not None and (next_ms := lane.next_ms(now_ms)) > now_ms:
        return is_slow(next_ms, limit)
    return "no room: as many jobs run as max_jobs allows" if room <= 0 else ""


class Lanes:
    """The lanes of a journal with one owner, and the letters that wait in them. May be used from any thread.

    `limits`: by the id of an agent, its limit. They are set before the first letter comes.
    """

    def __init__(self) -> None:
        self.limits: Mapping[str, JobLimit] = {}
        self.lock = threading.Lock()
        self._free = Lane("", None)  # of jobs without a limit
        self._lanes: dict[str, Lane] = {}
        self._queued: dict[str, _Queued] = {}
        self._seated: dict[str, Lane] = {}
        self._later: list[tuple[int, int, str]] = []  # a heap: time, number of the letter, job
        # Two heaps, so that a start costs the same with one lane and with a lane for each of 100,000 customers. What a lane does not
        # say itself any more (`offered`, `look_ms`) is passed over. Of lanes that may have a seat: priority and number of the first job.
        self._offered: list[tuple[int, int, str]] = []
        self._slow: list[tuple[int, str]] = []  # when to look at a lane again because of its rate
        self._now_ms = 0  # of the last look
        self._following: deque[tuple[int, Letter]] = deque()  # letters to jobs that have begun

    # -- jobs that wait to begin --------------------------------------------------------------------------------------

    def hold(self, number: int, letter: Letter) -> None:
        """Puts a letter that begins a job into the queue until a cancel of the job comes."""
        with self.lock:
            self._queued.setdefault(letter.job, _Queued(number, letter, None))

    def arrive(self, number: int, letter: Letter, now_ms: int) -> list[tuple[int, Letter]]:
        """Puts a letter that begins a job into the queue, and letters to a job in the queue behind it. Returns the letters that
        are to be taken now: any other letter; or with a cancel of a job in the queue all of this job, in their order.
        """
        with self.lock:
            waiting = self._queued.get(letter.job) if letter.job else None
            if letter.kind in ("begin", "retry"):
                if waiting is not None:
                    return []
                lane = self._lane_of(letter)
                if letter.kind == "retry" and lane is self._free:
                    return [(number, letter)]
                self._add(_Queued(number, letter, lane), lane, now_ms)
                return []
            if waiting is None:
                return [(number, letter)]
            if letter.kind == "cancel":
                waiting.cancelled = True
                return [(waiting.number, waiting.letter), *waiting.following, (number, letter)]
            if all(number != each for each, _ in waiting.following):
                waiting.following.append((number, letter))
            return []

    def _add(self, made: _Queued, lane: Lane, now_ms: int) -> None:
        self._queued[made.letter.job] = made
        lane.waiting += 1
        if made.letter.after_ms > now_ms:
            heapq.heappush(self._later, (made.letter.after_ms, made.number, made.letter.job))
        else:
            self._line_up(made, lane)

    def _line_up(self, queued: _Queued, lane: Lane) -> None:
        heapq.heappush(lane.queued, (queued.letter.priority, queued.number, queued.letter.job))
        self._settle(lane)

    def _lane_of(self, letter: Letter) -> Lane:
        if not self.limits:
            return self._free
        begin = decode_entry(letter.body, f"the letter ({letter.kind}) of job {letter.job}")
        assert isinstance(begin, Begin)
        _, scope, _, _, key = facts_of(begin)
        return self._lane(begin.agent, scope, key)

    def _lane(self, agent: str, scope: str, key: str) -> Lane:
        limit = self.limits.get(agent)
        name = "" if limit is None else limit.lane(scope, key)
        if not name:
            return self._free
        if name not in self._lanes:
            self._lanes[name] = Lane(name, limit)
        return self._lanes[name]

    def waits(self, jobs: Collection[str], now_ms: int, room: int) -> dict[str, str]:
        """Returns, by job, why these jobs of the queue do not begin yet."""
        with self.lock:
            waiting = {job: queued for job in jobs if (queued := self._queued.get(job)) is not None}
            found = {job: _why(queued, now_ms, room) for job, queued in waiting.items()}
        return {job: why for job, why in found.items() if why}

    def is_due(self, now_ms: int, room: int) -> bool:
        """Returns True if a letter of the queue may be taken. `room`: how many more jobs may begin."""
        return self.next_due(now_ms, room) is not None

    def next_due(self, now_ms: int, room: int) -> tuple[int, Letter] | None:
        """Returns the next letter that may be taken, with its number, or None. It stays there until `taken`."""
        with self.lock:
            if self._following:
                return self._following[0]
            found = self._next(now_ms) if room > 0 else None
            return None if found is None else (found.number, found.letter)

    def _next(self, now_ms: int) -> _Queued | None:
        while self._later and self._later[0][0] <= now_ms:
            waiting = self._queued.get(heapq.heappop(self._later)[2])
            if waiting is not None and waiting.lane is not None:
                self._line_up(waiting, waiting.lane)
        if now_ms < self._now_ms:  # the clock was set back: rates are counted anew
            again, self._slow = self._slow, []
            for _, name in again:
                if (lane := self._lanes.get(name)) is not None:
                    self._look(lane, now_ms)
        self._now_ms = now_ms
        while self._slow and self._slow[0][0] <= now_ms:
            at_ms, name = heapq.heappop(self._slow)
            if (lane := self._lanes.get(name)) is not None and lane.look_ms == at_ms:
                self._look(lane, now_ms)
        while self._offered:
            priority, number, name = self._offered[0]
            lane = self._lanes.get(name) if name else self._free
            if lane is not None and lane.offered == (priority, number):
                if not lane.is_full and not lane.woken:
                    if (next_ms := lane.next_ms(now_ms)) <= now_ms:
                        return self._queued[lane.queued[0][2]]
                    self._look_at(lane, next_ms)
                lane.offered = None
            heapq.heappop(self._offered)
        return None

    def _settle(self, lane: Lane) -> None:
        """Lets a lane stand among the others by its first job, or forgets it if nothing of it has to be known."""
        while lane.queued and lane.queued[0][2] not in self._queued:  # it has begun, or was cancelled
            heapq.heappop(lane.queued)
        if lane.queued:
            priority, number, _ = lane.queued[0]
            if lane.offered != (priority, number):
                lane.offered = priority, number
                heapq.heappush(self._offered, (priority, number, lane.name))
            return
        lane.offered = None
        if lane is self._free or lane.waiting or lane.seats or lane.away:
            return
        if lane.began_ms:
            self._look_at(lane, lane.began_ms[-1] + lane.pace[1])
        else:
            del self._lanes[lane.name]

    def _look(self, lane: Lane, now_ms: int) -> None:
        lane.look_ms = None
        lane.next_ms(now_ms)  # forgets the beginnings that its rate counts no more
        self._settle(lane)

    def _look_at(self, lane: Lane, at_ms: int) -> None:
        if lane.look_ms is None or at_ms < lane.look_ms:
            lane.look_ms = at_ms
            heapq.heappush(self._slow, (at_ms, lane.name))

    def taken(self, letter: Letter, now_ms: int, *, begun: bool) -> None:
        """Notes that a letter has left the queue. `begun`: True if its job has begun, which has a seat from now on."""
        with self.lock:
            if self._following and self._following[0][1] is letter:
                self._following.popleft()
                return
            if letter.kind not in ("begin", "retry") or (queued := self._queued.pop(letter.job, None)) is None:
                return
            self._following.extend(queued.following)
            if (lane := queued.lane) is None:
                return
            lane.waiting -= 1
            if begun and lane is not self._free and not queued.cancelled:
                self._seated[letter.job] = lane
                lane.seats.add(letter.job)
                lane.begins(now_ms)
            self._settle(lane)

    # -- jobs that have begun -----------------------------------------------------------------------------------------

    def was_open(self, job: str, agent: str, scope: str, key: str) -> None:
        """Gives a job that has begun before the start a seat, also if its lane is full."""
        with self.lock:
            lane = self._lane(agent, scope, key)
            if lane is not self._free:
                self._seated[job] = lane
                lane.seats.add(job)

    def had_begun(self, agent: str, scope: str, key: str, at_ms: int) -> None:
        """Notes that a job has begun before the start, for the rate. They are noted in the order of their times."""
        with self.lock:
            lane = self._lane(agent, scope, key)
            if lane is not self._free:
                lane.begins(at_ms)
                self._settle(lane)

    def leave(self, job: str, *, blocked: bool = False) -> bool:
        """Ends the seat of a job that is over; or with `blocked`, of one that cannot continue, unless the order of its lane
        matters (`per="key"`). Returns True if another job may begin now.
        """
        with self.lock:
            lane = self._seated.get(job)
            if blocked and lane is not None and lane.limit is not None and lane.limit.per == "key":
                return False
            self._seated.pop(job, None)
        return lane is not None and self._gets_up(job, lane)

    def park(self, job: str) -> bool:
        """Ends the seat of a job that waits for something that takes long, unless its lane holds it. Returns as `leave` does."""
        with self.lock:
            lane = self._seated.get(job)
            if lane is None or lane.limit is None or lane.limit.parked == "holds" or job not in lane.seats:
                return False
            lane.away.add(job)
        return self._gets_up(job, lane)

    def _gets_up(self, job: str, lane: Lane) -> bool:
        with self.lock:
            lane.seats.discard(job)
            if job not in self._seated:
                lane.away.discard(job)
                lane.woken.pop(job, None)
            go = None
            if lane.woken and not lane.is_full:
                first = next(iter(lane.woken))
                go = self._sits(first, lane)
            self._settle(lane)
            may_begin = bool(lane.queued) and not lane.is_full
        if go is not None:
            go()
        return may_begin

    def _sits(self, job: str, lane: Lane) -> Callable[[], object]:
        lane.away.discard(job)
        lane.seats.add(job)
        return lane.woken.pop(job)

    def go_on(self, job: str, go: Callable[[], object]) -> None:
        """Calls `go` as soon as a job that has waited has a seat: at once, unless others have all seats of its lane. Such a
        job goes before those that begin.
        """
        with self.lock:
            lane = self._seated.get(job)
            if lane is not None and job in lane.away:
                lane.woken[job] = go
                if lane.is_full:
                    return
                self._sits(job, lane)
        go()
