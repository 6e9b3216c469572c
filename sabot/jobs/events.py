"""The events in the queue of a host. `JobHost` matches all of them in one place, and handles one after the other.

The runner adds two: `Outcome`, of an attempt, and `LookedUp`, the finding of a tool's `reconcile=`.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from sabot.jobs.guard import Behalf, GuardVerdict
from sabot.jobs.owner import OpenJob, RunningJob
from sabot.jobs.run import Ask
from sabot.jobs.runner import LookedUp, Outcome
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


class TurnCame(msgspec.Struct):
    """The event that the turn of a child has come, which has waited with its BEGIN in the journal."""

    job_id: str


class NotBegun(msgspec.Struct):
    """The event that a child that a job has asked for does not begin, with this outcome."""

    job_id: str
    outcome: str
    body: bytes


class EndedBefore(msgspec.Struct):
    """The event that a job had failed or was cancelled after the restored checkpoint."""

    job: OpenJob
    end: End


class Loaded(msgspec.Struct):
    """The event that the history of a job was read."""

    job_id: str
    entries: list[tuple[Position, Entry]]


class Turned(msgspec.Struct):
    """The event that a job is quiet: its next effect is taken up. After the last one, the job ends, is parked, or
    waits.
    """

    running: RunningJob


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


class GuardDecided(msgspec.Struct):
    """The event that the guard has decided on an effect."""

    running: RunningJob
    ask: Ask
    verdict: GuardVerdict


class RepeatDue(msgspec.Struct):
    """The event that the back-off of a tool is over, after an attempt that failed."""

    running: RunningJob
    ask: Ask


class RepeatDecided(msgspec.Struct):
    """The event that the guard has decided on another attempt. `denied` is its verdict, or None if the attempt may be
    made.
    """

    running: RunningJob
    ask: Ask
    denied: GuardVerdict | None


class DoubtDue(msgspec.Struct):
    """The event that the time-out of another worker's call is over, so that its doubt can be resolved."""

    running: RunningJob
    ask: Ask


class Resend(msgspec.Struct):
    """The request of a call for another attempt, in which it sends its request again."""


class ResendDecided(msgspec.Struct):
    """The decision of the guard on such an attempt. `denied` is its verdict, or None if the attempt may be made."""

    denied: GuardVerdict | None


class Instead(msgspec.Struct):
    """The notice of a call that it asks another model in place of the first one, with the verdict on that model."""

    verdict: GuardVerdict


class AskPerson(msgspec.Struct):
    """The request of a call to ask a person. `kind` is the type of the question, `seconds` the time for the answer, or
    None.
    """

    kind: str
    body: bytes
    seconds: float | None


class CallAsked(msgspec.Struct):
    """The event that a call under way has a request, and waits for `answer`."""

    effect: EffectId
    request: Resend | ResendDecided | Instead | AskPerson
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


class HostStops(msgspec.Struct):
    """The event that the host stops. `done` has its result when all events before this one are handled."""

    done: "asyncio.Future[None]"


Event = (
    Turned
    | Outcome
    | LookedUp
    | GuardDecided
    | RepeatDue
    | RepeatDecided
    | DoubtDue
    | CallAsked
    | BeginJob
    | TurnCame
    | NotBegun
    | EndedBefore
    | Loaded
    | LastDurable
    | AttemptDue
    | Due
    | LettersCame
    | Arrived
    | HostStops
)
