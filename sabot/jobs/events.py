"""The events in the queue of a host. `JobHost` matches all of them in one place, and handles one after the other.

Some events are not classes of this module:

- a RunningJob: its function is quiet. The host takes up its next effect; after the last one the job ends, is parked, or waits.
- an OpenJob: it had ended before this start, or its turn to run has come.
- an Outcome or a LookedUp: the runner reports the end of a call, or the finding of a tool's `reconcile=`.
- a future: the host sets its result, so whoever awaits it knows that all earlier events were handled.
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
    """The event that a child does not begin, although a job has asked for it. `outcome` and `body` are reported to that job."""

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
    """The event that the wait after a failed attempt of a job is over, and its function is to run once more."""

    running: RunningJob


# -- effects ------------------------------------------------------------------------------------------------------------


class EffectWaited(msgspec.Struct):
    """An event for which the host has waited outside of the queue. `event` is an event of the core, or the guard's verdict on an effect
    that has no INTENT yet.
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
    """The event of an entry for a job that comes neither from the inbox nor from a call. The host records the entry, unless
    the job no longer awaits the effect `ask`.
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
