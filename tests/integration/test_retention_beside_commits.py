"""Retention of a journal in PostgreSQL while another connection commits: a long body that a new entry names is not removed with the job
that named it before.
"""

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest

from sabot.journal.base import EVERY
from sabot.journal.ended_jobs import EndedJob
from sabot.journal.entries import INLINE_BYTES, Begin, End
from sabot.journal.postgres import PostgresJournal
from sabot.journal.postgres_workers import PostgresWorker
from tools.postgres import server_or_skip

LONG = b"x" * (INLINE_BYTES + 1)
HELD = """
CREATE FUNCTION "{schema}".waits() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_advisory_xact_lock(TG_ARGV[0]::bigint);
RETURN NULL; END$$;
CREATE TRIGGER commit AFTER INSERT ON "{schema}".uses FOR EACH ROW EXECUTE FUNCTION "{schema}".waits(1);
CREATE TRIGGER trim AFTER UPDATE ON "{schema}".meta FOR EACH ROW WHEN (new.name = 'trimmed') EXECUTE FUNCTION "{schema}".waits(2);
"""
WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
    "AND (%s OR wait_event = 'advisory')"
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server_or_skip().database() as found:
        yield found


class Gates:
    """A commit of an entry with a long body stops in the server at gate 1, behind its rows, and a trim at gate 2, before it removes
    anything. They go on when the gate is opened.
    """

    def __init__(self, url: str, app: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute(HELD.format(schema=f"sabot_{app}"))  # type: ignore[arg-type]
        for gate in (1, 2):
            self._connection.execute("SELECT pg_advisory_lock(%s)", (gate,))

    def open(self, gate: int) -> None:
        self._connection.execute("SELECT pg_advisory_unlock(%s)", (gate,))

    def until(self, waiting: int, *, anyhow: bool = False, or_done: "Future[Any] | None" = None) -> None:
        """Returns when so many wait: at gates, or with `anyhow` also for another lock; or when a call has returned."""
        while self._connection.execute(WAITING, (anyhow,)).fetchall() != [(waiting,)]:
            if or_done is not None and or_done.done():
                return

    def close(self) -> None:
        self._connection.close()


def row_of(job: str) -> EndedJob:
    return EndedJob(job, "k.a", "a", "", "", "succeeded", 1, 2, "", 2, 0, b"")


@contextmanager
def ended(url: str, kind: Callable[..., PostgresJournal], *, moved: bool) -> Iterator[tuple[str, PostgresJournal]]:
    """A journal with one job that has ended and has a long body; with `moved` in the history."""
    app = f"app-{uuid.uuid4().hex}"
    with closing(kind(url, app)) as journal:
        journal.append(Begin("a", 1, "k.a", LONG))
        assert journal.wait_durable(journal.append(End("a", 2, "succeeded")), 60)
        assert not moved or journal.inbox.trim(["a"], EVERY, [row_of("a")]) == 2
        yield app, journal


def body_of(journal: PostgresJournal, job: str) -> bytes:
    (begin,) = [entry for _, entry in journal.read(job) if isinstance(entry, Begin)]
    return journal.load(begin.body)


@pytest.mark.parametrize("moved", [True, False], ids=["expire", "trim"])
@pytest.mark.parametrize("kind", [PostgresJournal, PostgresWorker])
def test_a_body_that_a_commit_names_stays(url: str, kind: Callable[..., PostgresJournal], moved: bool) -> None:
    with (
        ended(url, kind, moved=moved) as (app, journal),
        closing(Gates(url, app)) as gates,
        ThreadPoolExecutor() as pool,
    ):
        gates.open(2)
        begun = journal.append(Begin("b", 3, "k.a", LONG))
        gates.until(1)
        remove = (lambda: journal.inbox.expire(["a"])) if moved else (lambda: journal.inbox.trim(["a"], EVERY, []))
        removed = pool.submit(remove)
        gates.until(2, anyhow=True, or_done=removed)
        gates.open(1)
        removed.result(60)
        assert journal.wait_durable(begun, 60)
        assert not [entry for _, entry in journal.history.entries("a")]
        assert body_of(journal, "b") == LONG


def test_a_body_that_a_worker_names_which_joins_meanwhile_stays(url: str) -> None:
    with (
        ended(url, PostgresWorker, moved=False) as (app, journal),
        closing(Gates(url, app)) as gates,
        ThreadPoolExecutor() as pool,
    ):
        removed = pool.submit(journal.inbox.trim, ["a"], EVERY, [])
        gates.until(1)
        joining = pool.submit(PostgresWorker, url, app)
        gates.until(2, anyhow=True, or_done=joining)
        if joined_before := joining.done():
            begun = joining.result().append(Begin("b", 3, "k.a", LONG))
            gates.until(2)
        gates.open(2)
        assert removed.result(60) == 2
        with closing(joining.result(60)) as joined:
            if not joined_before:
                begun = joined.append(Begin("b", 3, "k.a", LONG))
            gates.open(1)
            assert joined.wait_durable(begun, 60)
            assert body_of(joined, "b") == LONG
