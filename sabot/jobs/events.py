"""The events in the queue of a host. `JobHost` matches all of them in one place, and handles one after the other.

Some values are events by themselves. A RunningJob is quiet: its next effect is taken up, and after the last one the job
ends, is parked, or waits. An OpenJob had ended before the start, or its turn has come. An Outcome or LookedUp is from the
runner. A future gets its result when all events before it are handled.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from sabot.jobs.core import EffectEvent, Judged, LookedUp, Outcome, PersonAsked
from sabot.jobs.guard import Behalf, GuardVerdict
from sabot.jobs.owner import OpenJob, RunningJob
from sabot.jobs.run import Ask
from sabot.journal import Position
from sabot.journal.effects import EffectId
from sabot.journal.entries import Answer, End, Entry, Signal

# -- jobs ---------------------------------------------------------------------------------------------------------------


class BeginJob(msgspec.Struct):
    """The event that a job begins: its turn in the queue has come (`JobHost.begin`)."""

    agent_id: str
    job_id: str
    record: bytes
    key: bytes
    digest: bytes
    run: int
    behalf: Behalf
    taken: Sequence[Entry]


class NotBegun(msgspec.Struct):
    """The event that a child that a job has asked for does not begin, with this outcome."""

    job_id: str
    outcome: str
    body: bytes


class Loaded(msgspec.Struct):
    """The event that the history of a job was read."""

    job_id: str
    entries: list[tuple[Position, Entry]]


class LastDurable(msgspec.Struct):
    """The event that the last entry of a job that is about to end is durable. `error` is the error of its function, or
    None.
    """

    running: RunningJob
    error: BaseException | None


class AttemptDue(msgspec.Struct):
    """The event that the function of a failed job is to run once more."""

    running: RunningJob


# -- effects ------------------------------------------------------------------------------------------------------------


class EffectWaited(msgspec.Struct):
    """An event of an effect for which the host has waited: one of the core, or the guard's verdict on an effect that has no
    INTENT yet.
    """

    running: RunningJob
    ask: Ask
    event: EffectEvent | GuardVerdict


CallRequest = Literal["again"] | Judged | GuardVerdict | PersonAsked
"""A request of a call under way. "again": it is about to send its request again, in another attempt, on which the guard
then decides (Judged). A verdict is that on another model, which the call asks in place of the first one.
"""


class CallAsked(msgspec.Struct):
    """The event that a call under way has a request, and waits for `answer`."""

    effect: EffectId
    request: CallRequest
    answer: "asyncio.Future[Any]"


# -- from outside -------------------------------------------------------------------------------------------------------


class Due(msgspec.Struct):
    """The event that a timer, the deadline of a question, or the end of an attempt's time (ordinal 0) is due."""

    job_id: str
    ordinal: int


class LettersCame(msgspec.Struct):
    """The event that the inbox of the journal has letters. `posted_by` is the job that has posted one of them itself."""

    posted_by: str = ""


class Arrived(msgspec.Struct):
    """The event of an entry that comes neither from the inbox nor from an effect. It is recorded unless the job no
    longer awaits `ask`.
    """

    entry: Answer | Signal | End
    ask: Ask | None = None


Event = (
    RunningJob
    | Outcome
    | LookedUp
    | EffectWaited
    | CallAsked
    | BeginJob
    | OpenJob
    | NotBegun
    | Loaded
    | LastDurable
    | AttemptDue
    | Due
    | LettersCame
    | Arrived
    | asyncio.Future[None]
)
