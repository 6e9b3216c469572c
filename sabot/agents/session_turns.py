"""Conversations of sessions in a kernel. The END entry of a job of an Agent has the messages of the job, its turn. The
conversation of a session is the turns of its jobs that have succeeded, in the order in which they have ended.

job 1   asks ──▶ waits for a person ────────────────▶ END with turn 1
job 2            recalls nothing ──▶ END with turn 2
job 3                                                          recalls turn 2, turn 1 ──▶ …

A job recalls the conversation once, as its first effect, so a replay finds what the job has seen. A turn is in the journal
as soon as its job has ended, and not before: no crash comes between the two.

To recall a conversation is to read the newest turn and what its job has recalled (`RecalledPart`), and the turns that have ended
while that job ran; so it does not read all turns of a long conversation. What the journal has forgotten is left out.

If a run has shortened the conversation for the context window of its model, its turn has the shorter form too
(`Turn.before`). A later job begins with that form, and does not read what it stands for.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import islice

import msgspec

from sabot.engine.calls.messages import ChatMessage
from sabot.jobs.open_jobs import whole_entry
from sabot.jobs.tree import parent_of
from sabot.jobs.values import unpack
from sabot.journal.base import EVERY, JobMark, JournalReader
from sabot.journal.ended_jobs import JobQuery, cut
from sabot.journal.entries import VALUE, Begin, Body, EffectResult, End, Intent

TURN = "turn"
"""The field of an Agent's result in its END entry that has the turn."""

_CLOCKS_DIFFER_MS = 60_000  # how far the clocks of the workers of a journal may differ


class SessionId(msgspec.Struct, frozen=True):
    """The name of a session. `agent`: the id of the agent. `principal` is a part of it, because whoever begins jobs may choose
    the session, and not on whose behalf they are.
    """

    agent: str
    scope: str
    principal: str
    session: str


class Turn(msgspec.Struct, frozen=True, omit_defaults=True):
    """The messages that a job has added to the conversation of its session.

    - `messages`: the messages of the job.
    - `before`: the messages that stand for the conversation that the job has recalled, if its run has shortened it; else
      None.
    - `seen`, `since_ms`: with `before`, the jobs that it stands for: those in `seen`, and all that had ended before `since_ms`,
      in milliseconds since 1970.
    """

    messages: list[ChatMessage]
    before: list[ChatMessage] | None = None
    seen: list[str] = []
    since_ms: int = 0


class RecalledPart(msgspec.Struct, frozen=True, array_like=True):
    """Some messages of a conversation that a job has recalled: the next `count` ones. They stay in the conversation as long
    as the journal has the entries of the job `job`.

    - `count`: the number of messages; 0 for a job that has no turn.
    - `seen`, `since_ms`: empty and 0 for the turn of the job. Else the messages are the shorter form of the conversation that
      the turn has (`Turn.before`), and these are the jobs for which it stands.
    """

    job: str
    count: int
    seen: list[str] = []
    since_ms: int = 0


class Recalled(msgspec.Struct, frozen=True, omit_defaults=True):
    """The conversation of a session at one moment. `labels`: the labels of all data in it. `seen`, `since_ms`: the jobs
    whose turns it has, as in a Turn. `parts`: from which jobs the messages are, in order; earlier versions recorded none.
    """

    messages: list[ChatMessage] = []
    labels: list[str] = []
    seen: list[str] = []
    since_ms: int = 0
    parts: list[RecalledPart] = []

    def turn(self, kept: list[ChatMessage], messages: list[ChatMessage]) -> Turn:
        """Returns the turn of a job that has recalled this conversation. `kept`: the messages of the
        conversation that are left after the run. `messages`: those of the run.
        """
        if kept == self.messages:
            return Turn(messages)
        return Turn(messages, kept, self.seen, self.since_ms)


Group = tuple[RecalledPart, list[ChatMessage]]
"""A part of a conversation, with its messages."""


def recall(reader: JournalReader, session: SessionId) -> Recalled:
    """Returns the conversation of a session: the turns of its jobs that have ended and whose entries the journal still has.
    Blocks.
    """
    marks = newest_first(reader.logged(_turns_of(session), EVERY))
    if not marks:
        return Recalled()
    places = {mark.job: place for place, mark in enumerate(reversed(marks))}
    read = cache(lambda mark: _turn_of(reader, mark, session))
    before, stands_for = list[Group](), _standing(())
    for mark in marks:
        if stands_for(mark):
            continue
        turn, _, recalled = read(mark)
        if turn is not None and (turn.before is not None or not before):
            before = [group for group in _before(reader, mark.job, turn, recalled) if group[0].job in places]
            stands_for = _standing([part for part, _ in before])
            if turn.before is not None:
                break  # the newest shorter form counts, also if a job that ended behind it knew the longer one
    own, labels = list[Group](), set[str]()
    for mark in marks:
        if not stands_for(mark):
            turn, end, _ = read(mark)
            own.append(
                (RecalledPart(mark.job, 0), [])
                if turn is None
                else (RecalledPart(mark.job, len(turn.messages)), turn.messages)
            )
            labels.update(() if turn is None else end.labels)  # among them those of what the job has recalled
    since_ms = marks[0].ended_ms - _CLOCKS_DIFFER_MS
    seen = [mark.job for mark in marks if mark.ended_ms >= since_ms]
    # a turn that ended first may be read last: if the shorter form that stood for it was forgotten
    whole = sorted([*before, *own], key=lambda group: (not group[0].seen, places[group[0].job]))
    messages = [each for _, group in whole for each in group]
    return Recalled(messages, sorted(labels), seen, since_ms, [part for part, _ in whole])


def _standing(parts: Sequence[RecalledPart]) -> Callable[[JobMark], bool]:
    """Returns a function that returns True for the jobs whose turns are in these parts of a conversation."""
    named = {part.job for part in parts if not part.seen}
    short = [part for part in parts if part.seen]
    return lambda mark: (
        mark.job in named or any(mark.job in part.seen or mark.ended_ms < part.since_ms for part in short)
    )


def jobs_of(reader: JournalReader, session: SessionId) -> tuple[list[str], str]:
    """Returns the jobs of a session whose entries the journal has, and those below them, and the first of them that has not
    ended, or "". Blocks.
    """
    marks = reader.logged(_turns_of(session), EVERY)
    roots = [mark.job for mark in marks if not parent_of(mark.job)[0] and _is_of(reader, mark.job, session)]
    jobs = sorted({*roots, *reader.logged_below(roots)})
    is_open = (job for job in jobs if (mark := reader.job(job)) is not None and not mark.outcome)
    return jobs, next(is_open, "")


def _turns_of(session: SessionId) -> JobQuery:
    return JobQuery(session.agent, cut(session.scope), session=cut(session.session))


def _is_of(reader: JournalReader, job: str, session: SessionId) -> bool:
    begins = (entry for _, entry in reader.read(job) if isinstance(entry, Begin))
    return any(_session(begin) == session for begin in begins)


def _session(begin: Begin) -> SessionId:
    return SessionId(begin.agent, begin.scope, begin.principal, begin.session)


def newest_first(marks: Iterable[JobMark]) -> list[JobMark]:
    """Returns the jobs whose turns count, from the one that has ended last to the one that has ended first. A child has no
    turn: only its parent knows the conversation.
    """
    chosen = [mark for mark in marks if mark.outcome == "succeeded" and not parent_of(mark.job)[0]]
    return sorted(chosen, key=lambda mark: (mark.ended_ms, mark.began), reverse=True)


def _turn_of(reader: JournalReader, mark: JobMark, session: SessionId) -> tuple[Turn | None, End, Body]:
    """Returns the turn of a job, its END entry, and the body with what it has recalled, b"" if it has recalled nothing. The turn
    is None if the job has none, such as one of an earlier version, or if it belongs to another session: a mark has the first
    characters of long names only.
    """
    end, is_of, ordinal = End(mark.job, mark.ended_ms, mark.outcome), False, 0
    recalled: Body = b""
    for _, entry in reader.read(mark.job):
        if isinstance(entry, Begin):
            is_of = _session(entry) == session
        elif isinstance(entry, Intent) and entry.kind == "recall":
            ordinal = entry.ordinal
        elif isinstance(entry, EffectResult) and entry.ordinal == ordinal and entry.outcome == "ok":
            recalled = entry.body
        elif isinstance(entry, End):
            end = entry
    if not is_of:
        return None, end, b""
    said = unpack(whole_entry(reader, end).body) if end.body and end.form != VALUE else None
    if not isinstance(said, dict) or TURN not in said:
        return None, end, b""
    return msgspec.convert(said[TURN], Turn, strict=False), end, recalled


def _before(reader: JournalReader, job: str, turn: Turn, recalled: Body) -> list[Group]:
    """Returns the conversation before a turn of this job, as far as it says from whom the messages are: what the job has
    recalled, or the shorter form of it.
    """
    if turn.before is not None:
        return [(RecalledPart(job, len(turn.before), turn.seen, turn.since_ms), turn.before)]
    if not recalled:
        return []
    found = msgspec.convert(unpack(reader.load(recalled)), Recalled, strict=False)
    messages = iter(found.messages)
    return [(part, list(islice(messages, part.count))) for part in found.parts]


def without_turn(value: object, form: str) -> object:
    """Returns the value of an END entry of this form without the turn of the job, for those who have asked for the result."""
    if form != VALUE and isinstance(value, dict) and {"content", TURN} <= value.keys():
        return {name: each for name, each in value.items() if name != TURN}
    return value
