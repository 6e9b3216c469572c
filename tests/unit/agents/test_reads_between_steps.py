"""Readers of a journal beside its owner: what goes from one place to another between two of their looks is missed by none."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from sabot.agents import ExecutionRequest, JobClient
from sabot.agents.app_jobs import AppJobStore
from sabot.agents.job_effects import folded_job
from sabot.agents.job_history import job_keeping
from sabot.agents.job_reads import find_jobs, jobs_page
from sabot.agents.kernel.client import _end_in
from sabot.agents.kernel.jobs import encode_request
from sabot.agents.kernel.schedules import Schedule, ScheduleClock
from sabot.agents.questions import OpenQuestions, find_question, read_questions
from sabot.journal.ended_jobs import JobQuery
from sabot.journal.entries import REQUEST, Begin, End, Intent, Letter, encode_entry
from sabot.journal.memory import MemoryJournal, MemoryReader
from sabot.testing import ManualClock

AGENT = "shop.work"


class Looks:
    """The looks of a reader of a journal, and of its history. After the one with the number `last`, `happens` is called."""

    def __init__(self, last: int) -> None:
        self.made, self.last = 0, last
        self.happens: Callable[[], object] | None = None  # looks before it is set are not counted

    def of(self, part: Any) -> Any:
        return _Looking(self, part)

    def note(self) -> None:
        if self.happens is not None:
            self.made += 1
            if self.made == self.last:
                self.happens()


def each_look() -> Iterator[Looks]:
    """Yields looks for one read after the other: the first read of them is disturbed after its first look, the second one after its
    second look, and so on, until a read has made no further look.
    """
    number = made = 1
    while number <= made:
        yield (looks := Looks(number))
        number, made = number + 1, looks.made
    assert made > 1


class _Looking:
    def __init__(self, looks: Looks, part: Any) -> None:
        self._looks, self._part = looks, part

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        if name == "history":
            return self._looks.of(found)
        return self._look(found) if callable(found) else found

    def _look(self, look: Callable[..., Any]) -> Callable[..., Any]:
        def looked(*args: Any, **kwargs: Any) -> Any:
            found = look(*args, **kwargs)
            found = iter(list(found)) if isinstance(found, Iterator) else found
            self._looks.note()
            return found

        return looked


def owner(*entries: Any) -> MemoryJournal:
    journal = MemoryJournal(clock=ManualClock(100.0))
    journal.begins.agents = frozenset({AGENT})
    journal.keeping = job_keeping("99999d, 1GB")
    for each in entries:
        journal.append(each)
    return journal


def with_letter() -> MemoryJournal:
    journal = owner()
    journal.post(Letter("begin", job="j", name=AGENT, body=encode_entry(Begin("j", 1, AGENT))))
    return journal


def moves(journal: MemoryJournal) -> None:
    journal.trim(journal.positions(), 1 << 60)


ENDED = Begin("j", 1, AGENT), End("j", 2, "succeeded")
BEGINS: Any = with_letter, MemoryJournal.take
MOVES: Any = lambda: owner(*ENDED), moves


def store_of(reader: Any) -> AppJobStore:
    store = AppJobStore(lambda: None, ManualClock(100.0))

    @contextmanager
    def opened() -> Iterator[Any]:
        yield reader

    store.reader = opened  # type: ignore[method-assign]
    return store


def found_by_store(reader: Any, **asked: Any) -> list[str]:
    return [job.job_id for job in asyncio.run(store_of(reader).find(**asked))]


LISTS: dict[str, Callable[[Any], list[str]]] = {
    "a page": lambda reader: [job.job_id for job in jobs_page(reader, JobQuery()).jobs],
    "a list": lambda reader: [job.job_id for job in find_jobs(reader)[0]],
    "a list of an agent": lambda reader: [job.job_id for job in find_jobs(reader, agent="work")[0]],
    "a store": found_by_store,
}
OF_A_STATUS: dict[str, Callable[[Any], list[str]]] = {
    "a page of a status": lambda reader: [job.job_id for job in jobs_page(reader, JobQuery(status="succeeded")).jobs],
    "a list of a status": lambda reader: [job.job_id for job in find_jobs(reader, statuses=["succeeded"])[0]],
    "a store of a status": lambda reader: found_by_store(reader, statuses=["succeeded"]),
}


@pytest.mark.parametrize(
    ("name", "make", "happens"),
    [
        *(pytest.param(name, *BEGINS, id=f"a letter is taken, {name}") for name in LISTS),
        *(pytest.param(name, *MOVES, id=f"a job moves, {name}") for name in LISTS | OF_A_STATUS),
    ],
)
def test_a_job_is_in_a_list_once_whenever_it_moves(
    name: str, make: Callable[[], MemoryJournal], happens: Callable[[MemoryJournal], object]
) -> None:
    """A job that moved into the history behind a look into the log was in no list; or it was on a page twice."""
    for looks in each_look():
        looks.happens = partial(happens, journal := make())
        assert (LISTS | OF_A_STATUS)[name](looks.of(journal)) == ["j"], f"after look {looks.last}"


def with_retry(outcome: str) -> MemoryJournal:
    """A journal with a job that has ended, and whose retry waits in the inbox."""
    asked = encode_request(ExecutionRequest(prompt="x"))
    journal = owner(Begin("j", 1, AGENT, asked, scope="acme", form=REQUEST), End("j", 2, outcome))
    again = encode_entry(Begin("j", 3, AGENT, asked, run=2, scope="acme", form=REQUEST))
    journal.post(Letter("retry", job="j", name="0", body=again))
    return journal


def got_by_store(reader: Any) -> list[str]:
    job = asyncio.run(store_of(reader).get("j"))
    return [] if job is None else [str(job.status)]


STATUSES: dict[str, Callable[[Any], list[str]]] = {
    "a page": lambda reader: [str(job.status) for job in jobs_page(reader, JobQuery()).jobs],
    "a page of those that are over": lambda reader: [
        *(str(job.status) for job in jobs_page(reader, JobQuery(status="failed")).jobs),
        *(str(job.status) for job in jobs_page(reader, JobQuery(status="cancelled")).jobs),
        "queued",
    ],
    "a list": lambda reader: [str(job.status) for job in find_jobs(reader)[0]],
    "one": lambda reader: [str(folded_job(reader, "j").record.status)],
    "one of a store": got_by_store,
    "its end": lambda reader: ["queued" if _end_in(reader, "j") is None else "ended"],
}


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
@pytest.mark.parametrize("name", STATUSES)
def test_a_job_whose_retry_is_taken_during_a_read_is_not_over(name: str, outcome: str) -> None:
    """Its mark was read, then its retry was taken; so no letter of it was found, and it had failed."""
    for looks in each_look():
        looks.happens = partial(MemoryJournal.take, journal := with_retry(outcome))
        found = STATUSES[name](looks.of(journal))
        assert found in (["queued"], ["running"]), f"after look {looks.last}"
        assert str(folded_job(journal, "j").record.status) == "running"


def asks_and_was_answered() -> MemoryJournal:
    journal = owner(Begin("j", 1, AGENT), Intent("j", 2, 1, "ask", "confirm", body=b"{}", token="t"))
    journal.post(Letter("answer", "t", body=b'{"yes": true}'))
    return journal


QUESTIONS: dict[str, Callable[[Any], list[str]]] = {
    "the open ones": lambda reader: [each.status for each in read_questions(reader)],
    "all": lambda reader: [each.status for each in read_questions(reader, everything=True)],
    "one": lambda reader: [find_question(reader, "t").status],
    "those of a screen": lambda reader: [each.status for each in OpenQuestions().read(reader)],
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_that_was_answered_is_never_shown_as_one_that_was_not(name: str) -> None:
    """The answers of the inbox were looked at last: of one that was taken meanwhile, the question was shown as open."""
    for looks in each_look():
        journal = asks_and_was_answered()
        looks.happens = journal.take
        assert "pending" not in QUESTIONS[name](looks.of(journal)), f"after look {looks.last}"


@pytest.mark.parametrize("begins_before", [True, False])
def test_a_question_of_a_job_that_ends_and_moves_during_a_read_is_not_open_for_ever(begins_before: bool) -> None:
    """The view had read past the END entry, which was gone, and showed the question until the program ended."""
    for looks in each_look():
        journal = owner(Begin("j", 1, AGENT), Intent("j", 2, 1, "ask", "confirm", body=b"{}", token="t"))
        questions = OpenQuestions()
        if begins_before:
            assert len(questions.read(journal)) == 1

        def ends(journal: MemoryJournal = journal) -> None:
            journal.append(End("j", 3, "failed"))
            moves(journal)
            journal.append(Begin("other", 4, AGENT))

        looks.happens = ends
        questions.read(looks.of(journal))
        assert questions.read(journal) == [], f"after look {looks.last}"


def test_a_schedule_finds_its_job_open_whenever_it_begins() -> None:
    """Its letter was looked at behind its mark: a job that began in between was not open, and another one began beside it."""
    for looks in each_look():
        asyncio.run(jobs_of_a_schedule(looks))


async def jobs_of_a_schedule(looks: Looks) -> None:
    clock = ManualClock(datetime(2026, 11, 28, 8, 30, tzinfo=UTC).timestamp())
    journal = MemoryJournal(clock=clock)
    journal.begins.agents = frozenset({AGENT})
    client, begun = JobClient(journal.storage, name="shop", clock=clock), list[str]()

    async def look(find: Callable[[Any], Any]) -> Any:
        return find(looks.of(MemoryReader(journal.storage)))

    async def begin(request: Any) -> None:
        begun.extend(each.job_id for each in await client.start_all([request]))

    times = ScheduleClock(Schedule("s", "work", "0 * * * *"), AGENT, clock, look, begin, client.schedules)
    await times.begin_due()
    clock.advance(3_600)
    await times.begin_due()
    looks.happens = journal.take
    clock.advance(3_600)
    await times.begin_due()
    assert len(begun) == 1, f"after look {looks.last}"
