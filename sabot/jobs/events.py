"""The events of a host, as its queue holds them. `JobHost` matches all of them in one place, and handles one after the other.

The runner adds two: `Outcome`, of an attempt, and `LookedUp`, the answer of a tool's `reconcile=`.
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
    """It is the turn of a job to begin (`JobHost.begin`)."""

    agent_id: str
    job_id: str
    record: bytes
    key: bytes
    digest: bytes
    run: int
    behalf: Behalf
    taken: Sequence[Entry]


class TurnCame(msgspec.Struct):
    """It is the turn of a child that has waited with its BEGIN in the journal."""

    job_id: str


class NotBegun(msgspec.Struct):
    """A child that a job has asked for does not begin, with this outcome."""

    job_id: str
    outcome: str
    body: bytes


class EndedBefore(msgspec.Struct):
    """A job has failed or was cancelled after the restored checkpoint."""

    job: OpenJob
    end: End


class Loaded(msgspec.Struct):
    """The history of a job was read."""

    job_id: str
    entries: list[tuple[Position, Entry]]


class Turned(msgspec.Struct):
    """A job is quiet: its next effect is taken up, and after the last one it is decided whether it ends, parks or waits."""

    running: RunningJob


class LastDurable(msgspec.Struct):
    """The last entry of a job that is about to end is durable. `error`: what its function has raised."""

    running: RunningJob
    error: BaseException | None


class AttemptDue(msgspec.Struct):
    """The function of a job that has failed is to run once more."""

    running: RunningJob


# -- effects ------------------------------------------------------------------------------------------------------------


class GuardDecided(msgspec.Struct):
    """The guard has decided on an effect."""

    running: RunningJob
    ask: Ask
    verdict: GuardVerdict


class RepeatDue(msgspec.Struct):
    """The back-off of a tool is over, after an attempt that failed."""

    running: RunningJob
    ask: Ask


class RepeatDecided(msgspec.Struct):
    """The guard has decided on another attempt. `denied`: its verdict, unless the attempt may be made."""

    running: RunningJob
    ask: Ask
    denied: GuardVerdict | None


class DoubtDue(msgspec.Struct):
    """A call that another worker has made has had its time, so it may be decided what has become of it."""

    running: RunningJob
    ask: Ask


class Resend(msgspec.Struct):
    """A call asks for another attempt, in which it sends its request again."""


class ResendDecided(msgspec.Struct):
    """The guard has decided on such an attempt. `denied`: as of RepeatDecided."""

    denied: GuardVerdict | None


class Instead(msgspec.Struct):
    """A call asks another model, on which this is the verdict, in place of the first one."""

    verdict: GuardVerdict


class AskPerson(msgspec.Struct):
    """A call asks a person. `kind`: the type of the question. `seconds`: how long it may be answered."""

    kind: str
    body: bytes
    seconds: float | None


class CallAsked(msgspec.Struct):
    """A call under way asks for something, and waits for `answer`."""

    effect: EffectId
    request: Resend | ResendDecided | Instead | AskPerson
    answer: "asyncio.Future[Any]"


# -- from outside -------------------------------------------------------------------------------------------------------


class Due(msgspec.Struct):
    """The time of a timer, of a question with a deadline, or of an attempt of the job (ordinal 0) has come."""

    job_id: str
    ordinal: int


class LettersCame(msgspec.Struct):
    """The inbox of the journal has letters. `posted_by`: the job that has posted one of them itself."""

    posted_by: str = ""


class Arrived(msgspec.Struct):
    """An entry that comes from neither the inbox nor an effect. It is recorded unless the job does not await `ask` any more."""

    entry: Answer | Signal | End
    ask: Ask | None = None


class HostStops(msgspec.Struct):
    """The host stops. `done` has its result when all events before this one are handled."""

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
