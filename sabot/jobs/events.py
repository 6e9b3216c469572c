"""The events in the queue of a host. `JobHost._handle` takes one event after the other.

Most events are classes of this module. These come from other modules:

- RunningJob: the function of this job is quiet, that is, it waits for something. The host takes up its next effect. If
  no effect is left, the host ends the job, parks it, or leaves it in memory.
- OpenJob: the turn of a job that a start has found in the journal. Either it had ended before that start, or it may run
  now.
- Outcome, LookedUp: the runner reports the end of a call, or the answer of a tool's `reconcile=` function.
- a future: the host sets its result. Whoever awaits the future then knows that all earlier events were handled.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from sabot.engine.calls.effects import EffectId
from sabot.jobs.core import EffectEvent, Judged, LookedUp, Outcome, PersonAsked
from sabot.jobs.guard import Behalf, GuardedCall, GuardVerdict
from sabot.jobs.owner import OpenJob, RunningJob
from sabot.jobs.run import Ask
from sabot.journal import Position
from sabot.journal.entries import Answer, End, Entry, Signal

# -- jobs ---------------------------------------------------------------------------------------------------------------


class BeginJob(msgspec.Struct):
    """The event that a new job may begin now. The fields are the arguments of `JobHost.begin`."""

    agent_id: str
    job_id: str
    record: bytes
    key: bytes
    digest: bytes
    run: int
    behalf: Behalf
    taken: Sequence[Entry]
    form: str
    within: str


class NotBegun(msgspec.Struct):
    """The event that a child, which its parent has requested, will not begin. The parent gets a result with `outcome`
    and `body`, as it does for a child that has ended.
    """

    job_id: str
    outcome: str
    body: bytes


class Loaded(msgspec.Struct):
    """The event that the history of a job was read from the journal."""

    job_id: str
    entries: list[tuple[Position, Entry]]


class LastDurable(msgspec.Struct):
    """The event that the last entry of a job has become durable, so that the job can end. `error`: the error that its
    function has raised; None if the function has returned.
    """

    running: RunningJob
    error: BaseException | None


class AttemptDue(msgspec.Struct):
    """The event that the wait after a failed attempt of a job is over. The host then begins the next attempt. `error`: the
    packed error if the next attempt has to know it (`history.rejects_answer`); else b"".
    """

    running: RunningJob
    error: bytes = b""


# -- effects ------------------------------------------------------------------------------------------------------------


class EffectWaited(msgspec.Struct):
    """The event that an effect has finished waiting for a timer or for an awaitable of the guard. `event`: an event
    for `core.step`, or the guard's verdict on an effect that has no INTENT entry yet. `call`: the call on which the
    guard has decided; None for other events.
    """

    running: RunningJob
    ask: Ask
    event: EffectEvent | GuardVerdict
    call: GuardedCall | None = None


CallRequest = Literal["again"] | Judged | GuardVerdict | PersonAsked
"""A request of a call under way:

- "again": the call wants to send its request again, in another attempt. `Judged` then follows with the decision of the
  guard on that attempt.
- GuardVerdict: the call asks another model in place of the first one, and this is the guard's verdict on that model.
- PersonAsked: the call asks a person.
"""


class CallAsked(msgspec.Struct):
    """The event that a running call has made a request, such as for another attempt. The call waits for the result of
    the future `answer`.
    """

    effect: EffectId
    request: CallRequest
    answer: "asyncio.Future[Any]"


# -- from outside -------------------------------------------------------------------------------------------------------


class Due(msgspec.Struct):
    """The event that a timer of a job is due. `ordinal`: the ordinal of the effect for which the timer was set, which
    is a sleep or a question with a deadline. Ordinal 0 stands for the time limit of the job's attempt.
    """

    job_id: str
    ordinal: int


class LettersCame(msgspec.Struct):
    """The event that the inbox of the journal contains letters (class `Letter`): answers, signals or cancels.
    `posted_by`: the id of a job, if this host has posted one of the letters to withdraw a question of that job; "" if
    another process has posted them.
    """

    posted_by: str = ""


class Arrived(msgspec.Struct):
    """The event that code of this process, and not a letter, gives a job an entry: an answer, a signal or an end. The
    host appends the entry and delivers it. `ask`: the effect to which the entry belongs; the host drops the entry if
    the job no longer awaits this effect. None for an entry that is always recorded.
    """

    entry: Answer | Signal | End
    ask: Ask | None = None


class GiveBack(msgspec.Struct):
    """The event that a host which is stopping gives the jobs back that have no call under way. Letters are handled before
    or behind that. `done`: gets a result when the journal has them back.
    """

    done: asyncio.Future[None]


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
    | GiveBack
    | asyncio.Future[None]
)
