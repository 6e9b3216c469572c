"""Schedules: jobs of a kernel that begin at times of a calendar.

   cron, zone ─▶ the next time ─▶ claim: the definition for it ─▶ a letter with the key NAME@TIME, which begins one job

The last time is that of the newest job of the schedule in the journal, or a later one at which none began. That one, the last claim,
the schedules and their pauses are notes of the journal, by which clients steer them (`Schedules`).

Kernels of two versions may have the schedule with different agents, scopes or messages. The first one notes its definition as that of
the time, in place of that of an earlier time; all begin the job of this definition.
"""

import asyncio
import logging
import re
import uuid
from base64 import b64decode, b64encode
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, replace
from dataclasses import fields as fields_of
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from sabot.agents.app_jobs import AppJobStore
from sabot.agents.context import checked_word
from sabot.agents.job_history import record_of
from sabot.agents.kernel.handle import JobHandle
from sabot.agents.kernel.jobs import ExecutionRequest, job_id_of
from sabot.base.checks import OneOf, check
from sabot.base.config import checked_name
from sabot.base.options import answers_wrong_options
from sabot.base.threads import run_connected, run_in_thread
from sabot.clock import Clock
from sabot.errors import TransientError, UserError, short_repr
from sabot.jobs.open_jobs import begun_or_queued
from sabot.jobs.values import pack, unpack
from sabot.journal import JournalReader
from sabot.journal.base import EVERY, entry_of_letter
from sabot.journal.begin_facts import key_text
from sabot.journal.ended_jobs import JobQuery, cut
from sabot.journal.entries import Begin, Entry

_log = logging.getLogger(__name__)

_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
_MONTHS = {
    name: at
    for at, name in enumerate(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1)
}
_DAYS = {name: at for at, name in enumerate(["sun", "mon", "tue", "wed", "thu", "fri", "sat"])}
_HINT = 'five fields: minute, hour, day, month, weekday; "0 9 * * mon-fri" is 9 o\'clock on workdays'
_MOST_DAYS = 8 * 366 + 1  # from one 29 February to another one, over a year without
_MOST_MISSED = 1_000
_MOST_READ = 1_000  # newest jobs with the key of a schedule that are looked at, in the log and in the history
_MOST_OWN = 10  # newest jobs of a schedule: one that makes up for a missed time may be newer than that of a later time
_DAY_S = 86_400
_LATE_S = 60.0  # an occurrence that is later was missed
_LOOK_S, _LEAST_S = 0.2, 0.01  # between two looks at the clock, which may be set
_MOST_TRIES = 10  # to claim one time, before the clock of the schedule begins again
# names of notes, with KERNEL.NAME behind them
_NOTES = "schedule-"
_BY_HAND = "!"  # in the idempotency key of a job that was triggered, behind the name of its schedule
_KEY = re.compile(r".+@\d{4}-\d\d-\d\dT\d\d:\d\dZ", re.DOTALL)
_DEFINED, _PAUSE, _LAST, _CLAIM = f"{_NOTES}of:", f"{_NOTES}pause:", f"{_NOTES}last:", f"{_NOTES}job:"
_MOST_PAUSES = 100  # that no kernel has seen


@answers_wrong_options
@dataclass(frozen=True)
class Schedule:
    """A schedule of a kernel: an agent whose jobs begin at times of a calendar. For example, `Schedule("report", "reporter", "0 9 *
    * mon-fri", zone="Europe/Berlin")`. Its jobs have the name of the schedule as their `key`.

    - `name`: the name of the schedule. `agent`: the name of the agent. `message`, `scope`: those of its jobs.
    - `cron`: five fields: minute, hour, day, month, weekday (0 and 7 are Sunday), each `*`, a number, a name (`mon`, `jan`), a
      range `1-5`, a step `*/10`, or a list of these. If day and weekday are both given, one of them has to fit.
    - `zone`: the time zone, such as "Europe/Berlin". A time that does not exist, since the clocks are set forward, runs at the
      first moment behind the gap; one that comes twice runs the first time. If minute or hour has a `*`, each real hour counts.
    - `missed`: what becomes of times at which no kernel ran: "last" begins one job for the last of them, "all" one for each (at
      most 1,000), "none" none.
    - `overlap`: "skip" begins no job while the one before, or one that was triggered, is open; "allow" does. With "skip" times
      that were missed wait until it is over, and those that come while they wait go behind them.

    Raises UserError for values that are not valid, and for a cron that never fits.
    """

    name: str
    agent: str
    cron: str
    _: KW_ONLY
    message: Any = None
    zone: str = "UTC"
    missed: Literal["last", "all", "none"] = "last"
    overlap: Literal["skip", "allow"] = "skip"
    scope: str = "default"

    def __post_init__(self) -> None:
        checked_name(self.name, "Schedule: name")
        checked_word(self.agent, "Schedule: agent", empty=False)
        checked_word(self.scope, "Schedule: scope", empty=False)
        check("Schedule: missed", self.missed, OneOf(("last", "all", "none")))
        check("Schedule: overlap", self.overlap, OneOf(("skip", "allow")))
        CronTimes(self.cron, self.zone)
        pack(self.message, "Schedule: message")

    def request(self, at: int) -> ExecutionRequest:
        """Returns the request of the job for the time `at`, in seconds since 1970."""
        key = f"{self.name}@{_moment(at)}"
        return ExecutionRequest(
            prompt=self.message, agent=self.agent, scope_id=self.scope, idempotency_key=key, key=self.name
        )


def _moment(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%MZ")


def is_key_of_schedule(text: object) -> bool:
    """Returns True if an idempotency key has the form of those of the times of schedules: `new-year@2027-01-01T08:00Z`."""
    return isinstance(text, str) and _KEY.fullmatch(text) is not None


class CronTimes:
    """The times of a cron in a zone, in seconds since 1970."""

    def __init__(self, cron: str, zone: str) -> None:
        words = cron.lower().split() if isinstance(cron, str) else []
        if len(words) != len(_FIELDS):
            raise UserError(f"Schedule: cron={short_repr(cron)}", hint=_HINT)
        try:
            self._zone = ZoneInfo(zone)
        except (ValueError, KeyError, OSError, TypeError):
            raise UserError(
                f"Schedule: zone={short_repr(zone)} is no time zone", hint='such as "Europe/Berlin"'
            ) from None
        parsed = [_values(word, *each) for word, each in zip(words, _FIELDS, strict=True)]
        self._minutes, self._hours, self._days, self._months, weekdays = parsed
        self._weekdays = {each % 7 for each in weekdays}
        self._any_day, self._any_weekday = words[2] == "*", words[4] == "*"
        self._each_hour = "*" in words[0] or "*" in words[1]
        if next(self.after(0.0), None) is None:
            raise UserError(f"Schedule: cron={short_repr(cron)} fits no day", hint=_HINT)

    def after(self, moment: float) -> Iterator[int]:
        """Yields the times later than a moment, in order. Ends if none comes in eight years."""
        day, empty, last = datetime.fromtimestamp(moment, self._zone).date() - timedelta(1), 0, moment
        while empty < _MOST_DAYS and day.year < 9_990:
            found = self._of_day(day) if self._fits(day) else []
            for at in found[bisect_right(found, last) :]:
                last, empty = at, 0
                yield at
            day, empty = day + timedelta(1), empty + 1

    def last(self, after: float, until: float, most: int) -> list[int]:
        """Returns the times that are later than `after` and not later than `until`, in order, and of many of them the last `most`."""
        first, day = (datetime.fromtimestamp(each, self._zone).date() for each in (after, until))
        day, found, more = day + timedelta(1), set[int](), True
        while day >= first - timedelta(1) and more:
            more = len(found) < most  # the day before has times among these if the clocks were set back over midnight
            found.update(at for at in (self._of_day(day) if self._fits(day) else ()) if after < at <= until)
            day -= timedelta(1)
        return sorted(found)[-most:]

    def _fits(self, day: date) -> bool:
        if day.month not in self._months:
            return False
        of_month, of_week = day.day in self._days, day.isoweekday() % 7 in self._weekdays
        if self._any_day or self._any_weekday:
            return of_month and of_week
        return of_month or of_week

    def _of_day(self, day: date) -> list[int]:
        if not self._each_hour:
            return sorted({self._utc(day, hour, minute) for hour in self._hours for minute in self._minutes})
        first, behind = self._utc(day, 0, 0), self._utc(day + timedelta(1), 0, 0)
        # A day in which the clocks are not changed, as most are, is not walked minute by minute: each claim of a time reads one.
        offsets = set(map(self._offset, range(first, behind, 3_600)))
        if first % 60 == 0 and behind - first == _DAY_S and len(offsets) == 1:
            hours, minutes = sorted(self._hours), sorted(self._minutes)
            return [first + 3_600 * hour + 60 * minute for hour in hours for minute in minutes]
        moments = ((at, datetime.fromtimestamp(at, self._zone)) for at in range(first - first % 60, behind, 60))
        return [at for at, local in moments if local.hour in self._hours and local.minute in self._minutes]

    def _offset(self, at: int) -> timedelta | None:
        return datetime.fromtimestamp(at, self._zone).utcoffset()

    def _utc(self, day: date, hour: int, minute: int) -> int:
        """Returns the first moment at which the clocks show this time, or the first one behind the gap in which it would be."""
        local = datetime(day.year, day.month, day.day, hour, minute, tzinfo=self._zone)
        at = round(local.timestamp())
        if datetime.fromtimestamp(at, self._zone).replace(tzinfo=None) == local.replace(tzinfo=None):
            return at
        early = round(local.replace(fold=1).timestamp())  # by the offset behind the change, it is before the change
        offset = self._offset(at)
        while early + 1 < at:
            middle = (early + at) // 2
            if self._offset(middle) == offset:
                at = middle
            else:
                early = middle
        return at


def _values(word: str, name: str, least: int, most: int) -> set[int]:
    """Returns the numbers that a field of a cron stands for. Raises UserError."""
    found, names = set[int](), {"month": _MONTHS, "weekday": _DAYS}.get(name, {})
    for part in word.split(","):
        span, slash, step = part.partition("/")
        low, dash, high = span.partition("-")
        if span == "*":
            bounds = [least, most - (name == "weekday")]
        else:
            ends = [low, high if dash else low if not slash else str(most)]
            bounds = [names.get(each, int(each) if each.isascii() and each.isdecimal() else -1) for each in ends]
        steps = int(step) if step.isascii() and step.isdecimal() else 0 if slash else 1
        if not least <= bounds[0] <= bounds[1] <= most or steps < 1:
            raise UserError(f"Schedule: {name} {short_repr(part)} of cron", hint=f"{least} to {most}; {_HINT}")
        found.update(range(bounds[0], bounds[1] + 1, steps))
    return found


def check_steps(schedule: Schedule) -> None:
    """Raises UserError for a step in the cron that is longer than its field: `*/61` of minutes would be each hour. Only kernels
    check it, since journals have schedules of earlier versions, which took any step.
    """
    for word, (name, least, most) in zip(schedule.cron.split(), _FIELDS, strict=True):
        longest = most - least + (name != "weekday")  # Sunday has two numbers
        steps = [int(part.partition("/")[2] or 1) for part in word.split(",")]
        if max(steps) > longest:
            raise UserError(
                f"schedule {schedule.name}: the step {max(steps)} of {name} {short_repr(word)} in its cron is longer than the field",
                hint=f"a step of 1 to {longest}; {_HINT}",
            )


def last_of(reader: JournalReader, agent: str, schedule: Schedule) -> tuple[float, str] | None:
    """Returns the time of the newest job of a schedule that the journal knows, and its id. Returns None if it knows none. Blocks.

    Clients may give their jobs any key. So jobs of other scopes, and those that run for somebody, are none of a schedule.
    """
    begins = [
        entry_of_letter(each, None, 0) for each in reader.letters() if each.kind == "begin" and each.name == agent
    ]
    query = JobQuery(agent=agent, scope=cut(schedule.scope), key=schedule.name)
    logged = [mark.job for mark in reader.logged(query, EVERY) if not mark.principal][:_MOST_READ]
    ended = islice(
        (job.job for job in reader.history.find(query, EVERY) if not record_of(job).principal_id), _MOST_READ
    )
    found = list[tuple[float, str]]()
    for each in (begins, _begins_of(reader, logged), _begins_of(reader, ended)):
        # a client, or `trigger`, may have begun any number of newer jobs with this key
        found += islice(_times_of(reader, agent, schedule, each), _MOST_OWN)
    return max(found, default=None)


def _begins_of(reader: JournalReader, jobs: Iterable[str]) -> Iterator[Entry]:
    """Yields the BEGIN entries of jobs. Blocks."""
    for job in jobs:
        yield from (entry for _, entry in islice(reader.history.entries(job), 1))


def _times_of(
    reader: JournalReader, agent: str, schedule: Schedule, begins: Iterable[Entry]
) -> Iterator[tuple[float, str]]:
    """Yields the times and the ids of those jobs that the schedule has begun. Blocks."""
    for begin in begins:
        if not isinstance(begin, Begin) or (begin.agent, begin.scope, begin.principal) != (agent, schedule.scope, ""):
            continue
        name, _, moment = str(unpack(reader.load(begin.body)).get("idempotency_key", "")).rpartition("@")
        if name == schedule.name == key_text(begin.key):
            with suppress(ValueError):  # another job with such a key
                yield datetime.strptime(moment, "%Y-%m-%dT%H:%MZ").replace(tzinfo=UTC).timestamp(), begin.job


def _open_triggered(reader: JournalReader, schedule: Schedule) -> Iterator[str]:
    """Yields the jobs of a schedule that were triggered and are open, whatever agent they have. Blocks."""
    letters = [entry_of_letter(each, None, 0) for each in reader.letters() if each.kind == "begin"]
    marks = reader.logged(JobQuery(scope=cut(schedule.scope), key=schedule.name), EVERY)
    open_jobs = [mark.job for mark in marks if not mark.principal and not mark.outcome][:_MOST_READ]
    for begin in (*letters, *_begins_of(reader, open_jobs)):
        if isinstance(begin, Begin) and (begin.scope, begin.principal) == (schedule.scope, ""):
            asked = str(unpack(reader.load(begin.body)).get("idempotency_key", ""))
            if asked.startswith(f"{schedule.name}{_BY_HAND}") and key_text(begin.key) == schedule.name:
                yield begin.job


class _Pause(msgspec.Struct, omit_defaults=True):
    """A note about a pause. `since`: when it began, or when it has ended, in seconds since 1970. `by`: who has asked for that, or "".
    `ended`: when the pauses have begun and ended behind which no time has passed yet.
    """

    paused: bool
    since: float
    by: str = ""
    ended: list[tuple[float, float]] = []

    @property
    def over(self) -> list[tuple[float, float]]:
        """When pauses have begun and ended. A note of an earlier version does not have the beginning."""
        return self.ended if self.ended or self.paused else [(0.0, self.since)]


class _Standing(NamedTuple):
    """The notes of the journal about the times of a schedule. `paused`: whether and since when, by the clock of the client that has asked
    for it, and the pauses that have ended. `passed`: the last time that has passed. `job`: the job of the last time for which one was
    to begin.
    """

    pause: _Pause
    passed: float
    job: str


class ShownSchedule(NamedTuple):
    """A schedule as the journal has it. `next_at`: its next time in seconds since 1970, or None while it is paused. `since`, `by`: when the
    last pause began or ended, in seconds since 1970 or 0.0, and who has asked for that, or "".
    """

    schedule: Schedule
    paused: bool
    next_at: float | None
    since: float = 0.0
    by: str = ""


def kernels_with_schedules(store: AppJobStore) -> list[str]:
    """Returns the names of the kernels that have noted schedules in a journal. Blocks."""
    with store.reader() as reader:
        noted = reader.notes(_DEFINED)
    return sorted({of.removeprefix(_DEFINED).removesuffix(f".{_name_in(text)}") for of, text in noted.items()})


def _name_in(text: str) -> str:
    return str(msgspec.json.decode(text)["name"])


def _encoded(schedule: Schedule) -> str:
    fields: dict[str, Any] = {each.name: getattr(schedule, each.name) for each in fields_of(schedule)}
    fields["message"] = b64encode(pack(schedule.message, "Schedule: message")).decode()
    return msgspec.json.encode(fields).decode()


def _decoded(text: str) -> Schedule:
    noted = msgspec.json.decode(text)
    names = {each.name for each in fields_of(Schedule)}.intersection(noted)  # later versions may have more
    fields = {name: noted[name] for name in names}
    return Schedule(**{**fields, "message": unpack(b64decode(noted["message"]))})


def _claim_of(note: str, name: str) -> tuple[int, Schedule | None]:
    """Returns the claim of a schedule that a note has: a time, and the definition by which its job begins. Returns (0, None) if there
    is none; if it is of another schedule (kernel "a" may have "b.c", and kernel "a.b" have "c"); or if the note is the id of a job,
    as earlier versions write it.
    """
    with suppress(msgspec.DecodeError):
        at, text = msgspec.json.decode(note, type=tuple[int, str])
        definition = _decoded(text)
        return (at, definition) if definition.name == name else (0, None)
    return 0, None


def _pause_of(notes: Mapping[str, str], of: str) -> _Pause:
    text = notes.get(f"{_PAUSE}{of}")
    return _Pause(False, 0.0) if text is None else msgspec.json.decode(text, type=_Pause)


class Schedules:
    """The schedules of a kernel as its journal has them, for clients and other kernels of this name. Their definitions come from the
    kernels: each notes its own when it starts. In a journal on Kafka there are none, and its schedules cannot be paused.
    """

    def __init__(
        self, name: str, store: AppJobStore, begin: Callable[[ExecutionRequest], Awaitable[JobHandle]]
    ) -> None:
        """Makes it. `name`: the name of the kernel. `begin`: begins a job."""
        self._name, self._store, self._begin = name, store, begin

    async def find(self) -> list[ShownSchedule]:
        """Returns all schedules, by their names. Raises UserError if there is no journal."""
        notes, now = await run_connected(self._notes), self._store.clock.time()
        found = list[ShownSchedule]()
        for name, text in sorted(notes.items()):
            # whole: of the name of a kernel "a" and that of "a.b" one begins with the other
            if name.startswith(_DEFINED) and name == f"{_DEFINED}{self._name}.{_name_in(text)}":
                schedule = _decoded(text)
                pause = _pause_of(notes, f"{self._name}.{schedule.name}")
                times = CronTimes(schedule.cron, schedule.zone)
                next_at = None if pause.paused else await run_in_thread(next, times.after(now), None)
                found.append(ShownSchedule(schedule, pause.paused, next_at, pause.since, pause.by))
        return found

    async def get(self, name: str) -> ShownSchedule:
        """Returns a schedule. Raises UserError if no kernel of this journal has noted one of this name."""
        every = await self.find()
        found = next((each for each in every if each.schedule.name == name), None)
        if found is None:
            names = ", ".join(each.schedule.name for each in every) or "none"
            raise UserError(
                f"the journal of kernel {self._name} has no schedule {short_repr(name)}",
                hint=f"it has {names}; a kernel with schedules= notes its own when it starts",
            )
        return found

    async def pause(self, name: str, *, by: str = "") -> None:
        """Lets no job begin by a schedule, in no kernel, until `go_on`, also over restarts. `by`: who asks for it; the journal keeps it.
        Raises the errors of `get`.
        """
        await self._set(name, paused=True, by=checked_word(by, "pause: by"))

    async def go_on(self, name: str, *, by: str = "") -> None:
        """Ends a pause. Times that were in it are not made up for. `by`: as in `pause`. Raises the errors of `get`."""
        await self._set(name, paused=False, by=checked_word(by, "go_on: by"))

    async def trigger(self, name: str, *, by: str = "") -> JobHandle:
        """Begins a job of a schedule now, also while it is paused or the job before is open. `by`: who asks for it; the job has it in its
        `metadata`, as "triggered_by". Raises the errors of `get`.
        """
        schedule, metadata = (await self.get(name)).schedule, {"triggered_by": checked_word(by, "trigger: by")}
        request = replace(schedule.request(0), idempotency_key=f"{name}{_BY_HAND}{uuid.uuid4().hex}")
        return await self._begin(replace(request, metadata=metadata) if by else request)

    async def remove(self, name: str) -> None:
        """Removes what the journal has noted of a schedule that no kernel has any more. Raises the errors of `get`."""
        await self.get(name)
        for kind in (_DEFINED, _PAUSE, _LAST, _CLAIM):
            await self._note(f"{kind}{self._name}.{name}", "")

    async def _set(self, name: str, *, paused: bool, by: str) -> None:
        await self.get(name)
        before, passed, _ = await self.stands(name)
        if before.paused != paused:
            now = self._store.clock.time()
            over = [*before.over, (before.since, now)] if before.paused else before.over
            kept = [each for each in over if each[1] > passed][-_MOST_PAUSES:]
            said = msgspec.json.encode(_Pause(paused, now, by, kept)).decode()
            await self._note(f"{_PAUSE}{self._name}.{name}", said)

    def _notes(self) -> dict[str, str]:
        with self._store.reader() as reader:
            return reader.notes(_NOTES)

    async def notes(self) -> dict[str, str]:
        """Returns what the journal has noted of schedules."""
        return await run_connected(self._notes)

    async def _note(self, name: str, value: str, before: str | None = None) -> bool:
        def note() -> bool:
            with self._store.inbox() as inbox:
                return inbox.note(name, value, before)

        return await run_connected(note)

    async def define(self, schedule: Schedule) -> None:
        """Notes a schedule of a kernel that starts."""
        name, said = f"{_DEFINED}{self._name}.{schedule.name}", _encoded(schedule)
        if (await self.notes()).get(name) != said:
            await self._note(name, said)

    async def passed(self, name: str, at: float) -> None:
        """Notes that a time of a schedule has passed, whether a job has begun or not."""
        await self._note(f"{_LAST}{self._name}.{name}", repr(at))

    async def claim(self, schedule: Schedule, at: int) -> Schedule | None:
        """Notes that the job of a time begins by this definition, unless one is noted for it already. Returns the definition that is
        noted for the time; None if one is noted for a later time. Raises TransientError if others are faster again and again.
        """
        name, mine = f"{_CLAIM}{self._name}.{schedule.name}", _encoded(schedule)
        before = (await self.notes()).get(name, "")
        for _ in range(_MOST_TRIES):
            claimed, definition = _claim_of(before, schedule.name)
            if claimed > max(at, self._store.clock.time() + _LATE_S):
                _log.warning(
                    "schedule %s: begins no job for %s, as a kernel whose clock is ahead has claimed %s",
                    *(schedule.name, _moment(at), _moment(claimed)),
                )
            if claimed >= at:
                return definition if claimed == at else None
            if await self._note(name, msgspec.json.encode((at, mine)).decode(), before):
                return schedule
            found = (await self.notes()).get(name, "")
            if found == before:  # a journal on Kafka keeps no notes
                return schedule
            before = found
        # who was faster each time has noted a later time than before, and there is an end to those before this one
        raise TransientError(f"other kernels claim times before {_moment(at)} all the while; it is looked at again")

    def job_of(self, schedule: Schedule, at: int) -> str:
        """Returns the id of the job of a time."""
        return job_id_of(f"{self._name}.{schedule.agent}", schedule.request(at))

    async def stands(self, name: str) -> "_Standing":
        """Returns what is noted of the times of a schedule."""
        notes, of = await self.notes(), f"{self._name}.{name}"
        noted = notes.get(f"{_CLAIM}{of}", "")
        claimed, definition = _claim_of(noted, name)
        job = noted if definition is None else self.job_of(definition, claimed)
        return _Standing(_pause_of(notes, of), float(notes.get(f"{_LAST}{of}", 0.0)), job)


class ScheduleClock:
    """Begins the jobs of one schedule. `look`: calls a function with a reader of the journal, in a thread. `notes`: those of the
    journal.
    """

    def __init__(
        self,
        schedule: Schedule,
        agent_id: str,
        clock: Clock,
        look: Callable[[Callable[[JournalReader], Any]], Awaitable[Any]],
        begin: Callable[[ExecutionRequest], Awaitable[Any]],
        notes: Schedules,
    ) -> None:
        self._schedule, self._agent_id, self._clock, self._look, self._begin = schedule, agent_id, clock, look, begin
        self._notes, self._is_defined = notes, False
        self._times = CronTimes(schedule.cron, schedule.zone)
        self._since = clock.time()
        self._last: float | None = None
        self._next: float | None = (
            None  # the first time after the last one; None if that is not known, or if there is none
        )
        self._job = ""  # that of the last time
        self._waits = False  # a missed time waits for the end of the job before
        self._stopped: tuple[float, float] | None = (
            None  # when this kernel has seen a pause for the first and the last time
        )

    async def run(self) -> None:
        """Begins a job at each time, and never returns. While the server of the journal does not answer, it is asked again."""
        while True:
            try:
                wait_s = await self.begin_due()
            except TransientError as error:
                _log.warning("schedule %s: %s", self._schedule.name, error)
                wait_s = _LOOK_S
            await asyncio.sleep(max(_LEAST_S, min(wait_s, _LOOK_S)))

    async def begin_due(self) -> float:
        """Begins the jobs whose time has come, and returns the seconds until the next time."""
        schedule, now = self._schedule, self._clock.time()
        if not self._is_defined:
            await self._notes.define(schedule)
            self._is_defined = True
        if self._last is None:
            found = await self._look(lambda reader: last_of(reader, self._agent_id, schedule))
            last, self._job = (0.0, "") if found is None else found
            noted = await self._notes.stands(schedule.name)
            self._last = max(last, noted.passed) or self._since
            if not noted.passed:  # times from now on are missed, also if this kernel ends before the first of them
                await self._notes.passed(schedule.name, self._last)
        if self._next is not None and now < self._next:
            return self._next - now
        noted = await self._notes.stands(schedule.name)
        if noted.pause.paused:  # times before it, at which no kernel ran, wait for its end
            self._stopped = (now if self._stopped is None else min(now, self._stopped[0]), now)
            return _LOOK_S
        over = [each for each in noted.pause.over if each[1] <= now]  # else the client's clock is ahead
        if self._stopped is not None:
            over.append(self._stopped)
        # in a thread, as the times of a long while are looked at day by day
        due = await run_in_thread(self._due, now, over)
        chosen = self._chosen(due, now)
        for at in chosen:
            before = await self._open_of({self._job, noted.job}) if schedule.overlap == "skip" else ""
            # Of times that were missed all but the first would be skipped, as the job of the first is open.
            if before and (self._waits or chosen[0] < now - _LATE_S):
                if not self._waits:
                    _log.info("schedule %s: the job for %s begins when %s is over", schedule.name, _moment(at), before)
                self._waits, self._next = True, None
                return _LOOK_S
            if before:
                _log.warning("schedule %s: its job %s is still open, and none begins now", schedule.name, before)
            elif (claimed := await self._notes.claim(schedule, at)) is not None:
                self._job = self._notes.job_of(claimed, at)
                try:
                    await self._begin(claimed.request(at))
                except UserError as error:  # another kernel has begun it, with another message
                    _log.warning("schedule %s: %s", schedule.name, error)
            self._last = at
        self._waits = False
        if due or self._stopped is not None:
            self._last = max([self._last, *due, *([] if self._stopped is None else self._stopped)])
            self._stopped = None
            await self._notes.passed(schedule.name, self._last)
        # all times until now are over, also if all were in pauses: the next one is later
        self._last = max(self._last, now)
        self._next = await run_in_thread(next, self._times.after(self._last), None)
        return _LOOK_S if self._next is None else self._next - now

    def _due(self, now: float, pauses: Sequence[tuple[float, float]]) -> list[int]:
        """Returns the times since the last one, and of many the last ones, without those in pauses."""
        found, until, first = list[int](), now, self._last or 0.0
        for began, ended in [*sorted(pauses, key=lambda pause: pause[1], reverse=True), (first, first)]:
            after, more = max(ended, first), _MOST_MISSED + 1 - len(found)
            if after < until and more > 0:
                found = [*self._times.last(after, until, more), *found]
            until = max(first, min(until, began))
        return found

    def _chosen(self, due: list[int], now: float) -> list[int]:
        """Returns those of the times that have come for which a job begins."""
        missed, on_time = [at for at in due if at < now - _LATE_S], [at for at in due if at >= now - _LATE_S]
        if self._schedule.missed == "none" or not missed:
            return on_time
        kept = missed[-_MOST_MISSED:] if self._schedule.missed == "all" else [] if on_time else missed[-1:]
        if not self._waits:  # else it has told of them, and has run since
            _log.warning(
                "schedule %s: no kernel ran at %s of its times; jobs begin for %d of these",
                *(
                    self._schedule.name,
                    f"more than {_MOST_MISSED:,}" if len(missed) > _MOST_MISSED else len(missed),
                    len(kept),
                ),
            )
        return [*kept, *on_time]

    async def _open_of(self, jobs: Iterable[str]) -> str:
        """Returns one of these jobs, or of those that were triggered, that is open. Returns "" if none is."""

        def look(reader: JournalReader) -> str:
            for job in filter(None, jobs):
                mark, queued = begun_or_queued(reader, job)
                if queued is not None or (mark is not None and not mark.outcome):
                    return job
            return next(_open_triggered(reader, self._schedule), "")

        return str(await self._look(look))
