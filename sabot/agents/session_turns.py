"""Conversations of sessions in a kernel. The END entry of a job of an Agent has the messages of the job, its turn. The
conversation of a session is the turns of its jobs that have succeeded, in the order in which they have ended.

job 1   asks ──▶ waits for a person ────────────────▶ END with turn 1
job 2            recalls nothing ──▶ END with turn 2
job 3                                                          recalls turn 2, turn 1 ──▶ …

A job recalls the conversation once, as its first effect, so a replay finds what the job has seen. A turn is in the journal
as soon as its job has ended, and not before: no crash comes between the two.

If a run has shortened the conversation for the context window of its model, its turn has the shorter form too
(`Turn.before`). A later job begins with that form, and does not read what it stands for.
"""

from collections.abc import Iterable

import msgspec

from sabot.engine.calls.messages import ChatMessage
from sabot.jobs.open_jobs import whole_entry
from sabot.jobs.tree import parent_of
from sabot.jobs.values import unpack
from sabot.journal.base import JobMark, JournalReader
from sabot.journal.ended_jobs import JobQuery, cut
from sabot.journal.entries import Begin, End

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


class Recalled(msgspec.Struct, frozen=True, omit_defaults=True):
    """The conversation of a session at one moment. `labels`: the labels of all data in it. `seen`, `since_ms`: the jobs
    whose turns it has, as in a Turn.
    """

    messages: list[ChatMessage] = []
    labels: list[str] = []
    seen: list[str] = []
    since_ms: int = 0

    def turn(self, kept: list[ChatMessage], messages: list[ChatMessage]) -> Turn:
        """Returns the turn of a job that has recalled this conversation. `kept`: the messages of the
        conversation that are left after the run. `messages`: those of the run.
        """
        if kept == self.messages:
            return Turn(messages)
        return Turn(messages, kept, self.seen, self.since_ms)


def recall(reader: JournalReader, session: SessionId) -> Recalled:
    """Returns the conversation of a session: the turns of its jobs that have ended and whose entries the journal still has.
    Blocks.
    """
    marks = newest_first(reader.of_session(JobQuery(session.agent, cut(session.scope)), cut(session.session)))
    if not marks:
        return Recalled()
    groups, labels = list[list[ChatMessage]](), set[str]()
    shortened: Turn | None = None  # the newest turn that has a shorter form of the conversation before it
    for mark in marks:
        if shortened is not None and mark.job in shortened.seen:
            continue
        if shortened is not None and mark.ended_ms < shortened.since_ms:
            break
        turn, end = _turn_of(reader, mark, session)
        if turn is None:
            continue
        groups.append(turn.messages)
        labels.update(end.labels)
        if shortened is None and turn.before is not None:
            shortened = turn
    if shortened is not None:
        groups.append(shortened.before or [])
    since_ms = marks[0].ended_ms - _CLOCKS_DIFFER_MS
    seen = [mark.job for mark in marks if mark.ended_ms >= since_ms]
    return Recalled([each for group in reversed(groups) for each in group], sorted(labels), seen, since_ms)


def jobs_of(reader: JournalReader, session: SessionId) -> tuple[list[str], str]:
    """Returns the jobs of a session whose entries the journal has, and those below them, and the first of them that has not
    ended, or "". Blocks.
    """
    marks = reader.of_session(JobQuery(session.agent, cut(session.scope)), cut(session.session))
    roots = [mark.job for mark in marks if not parent_of(mark.job)[0] and _is_of(reader, mark.job, session)]
    jobs = sorted({*roots, *reader.logged_below(roots)})
    is_open = (job for job in jobs if (mark := reader.job(job)) is not None and not mark.outcome)
    return jobs, next(is_open, "")


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


def _turn_of(reader: JournalReader, mark: JobMark, session: SessionId) -> tuple[Turn | None, End]:
    """Returns the turn of a job, and its END entry. The turn is None if the job has none, such as one of an earlier version,
    or if it belongs to another session: a mark has the first characters of long names only.
    """
    end, is_of = End(mark.job, mark.ended_ms, mark.outcome), False
    for _, entry in reader.read(mark.job):
        if isinstance(entry, Begin):
            is_of = _session(entry) == session
        elif isinstance(entry, End):
            end = entry
    if not is_of:
        return None, end
    said = unpack(whole_entry(reader, end).body) if end.body else None
    if not isinstance(said, dict) or TURN not in said:
        return None, end
    return msgspec.convert(said[TURN], Turn, strict=False), end


def without_turn(value: object) -> object:
    """Returns the value of an END entry without the turn of the job, for those who have asked for the result."""
    if isinstance(value, dict) and {"content", TURN} <= value.keys():
        return {name: each for name, each in value.items() if name != TURN}
    return value
