"""Journals of an older format, made from those of today: what a migration finds."""

from collections.abc import Callable

from sabot.journal import Journal
from sabot.journal.base import JobKeeping
from sabot.journal.ended_jobs import EndedJob
from sabot.journal.entries import Answer, Begin, EffectResult, End, Entry, Intent

_COLUMNS = ("agent", "scope", "principal", "session", "key", "created_ms", "tried", "asks", "again")

EFFECT = "sabot-6f1c"
"""The key of an effect whose tool has begun the jobs "again" and "works"."""

GIVEN: list[Entry] = [
    Begin("done", 1000, "shop.refund", scope="eu"),
    Begin("asks", 2000, "shop.refund", scope="us", principal="ann"),
    Intent("asks", 2001, 1, "ask", "confirm", token="before"),
    Begin("asks", 2002, "shop.refund", scope="us", principal="ann"),  # ctx.continue_as
    Intent("asks", 2003, 2, "ask", "confirm", token="open"),
    Intent("asks", 2003, 3, "ask", "confirm", token="closed"),
    Answer("asks", 2004, 3, "closed"),
    Begin("works", 3000, "shop.mail", within=EFFECT),
    Intent("works", 3001, 1, "call", "send"),
    EffectResult("works", 3002, 1),
    Begin("again", 3003, "shop.mail", within=EFFECT),
    End("again", 3004, "failed", "ValueError"),
    Begin("again", 3005, "shop.mail", run=2),
    End("again", 3006, "failed", "ValueError"),
    Begin("requested", 4000, body=b'{"scope_id":"uk"}'),
    End("done", 5000, "failed", "ValueError"),
]
"""Entries of jobs of each status."""


def write_given(journal: Journal) -> None:
    """Appends `GIVEN`, durably."""
    places = [journal.append(entry) for entry in GIVEN]
    assert journal.wait_durable(places[-1], 60)


def write_ended(journal: Journal) -> None:
    """Writes jobs of two sessions and one of none, and moves them into the history."""
    sessions = {"a": "chat-1", "b": "chat-2", "c": "chat-1", "d": ""}
    for at_ms, (job, session) in enumerate(sessions.items()):
        journal.append(Begin(job, at_ms, "shop.desk", session="before"))
        journal.append(Begin(job, at_ms, "shop.desk", session=session))  # the last one counts
        journal.append(EffectResult(job, at_ms, 1, body=b"\xa5begin"))
        place = journal.append(End(job, at_ms + 1, "succeeded"))
    assert journal.wait_durable(place, 60)
    journal.keeping = JobKeeping(
        lambda _, job: EndedJob(job, "shop.desk", "desk", "", "", "succeeded", ord(job), ord(job), "", 0, 0, b""),
        1e12,
        1 << 40,
    )
    assert journal.trim(journal.positions(), 1 << 60)


def without_sessions(execute: Callable[[str], object]) -> None:
    """Takes away what the tables of a journal have today and the formats 8 and 11 have not. The caller notes the format."""
    execute("DROP INDEX history_of_session")
    execute("ALTER TABLE history DROP COLUMN session")


def without_within(execute: Callable[[str], object]) -> None:
    """Takes away what the tables of a journal have today and the formats 6 and 7 have not. The caller notes the format."""
    without_sessions(execute)
    for name in ("jobs_begun_within", "jobs_of_session", "jobs_of_key"):
        execute(f"DROP INDEX {name}")
    execute("ALTER TABLE jobs DROP COLUMN within")


def without_approvals(execute: Callable[[str], object]) -> None:
    """Takes away what the tables of a journal have today and the format 5 has not. The caller notes the format."""
    without_within(execute)
    execute("DROP TABLE approvals")
    execute("DELETE FROM meta WHERE name = 'approvals'")


def without_reasons(execute: Callable[[str], object]) -> None:
    """Takes away what the tables of a journal have today and the format 4 has not. The caller notes the format."""
    without_approvals(execute)
    execute("ALTER TABLE jobs DROP COLUMN blocked")


def without_list(execute: Callable[[str], object]) -> None:
    """Takes away what the tables of a journal have today and the format 3 has not. The caller notes the format."""
    without_reasons(execute)
    for name in ("jobs_by_creation", "jobs_begun_again", "jobs_open"):
        execute(f"DROP INDEX {name}")
    for name in _COLUMNS:
        execute(f"ALTER TABLE jobs DROP COLUMN {name}")
    execute("ALTER TABLE questions DROP COLUMN place")


OLDER = {3: without_list, 4: without_reasons, 5: without_approvals, 6: without_within, 8: without_sessions}
"""By a format of a journal's tables: the function that takes away what the tables of today have and it has not."""
