"""What every journal keeps about limits of jobs and about jobs that wait (`sabot/journal/lanes.py`, `seats.py`): one suite for all
homes. Of a journal that several workers share, two take turns.
"""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from contracts.test_journal_contract import HOMES, Home, InWorkers, database, home_of  # noqa: F401 - `database` is a fixture
from sabot.errors import LetterRefused
from sabot.journal import Journal
from sabot.journal.begin_facts import stored_key
from sabot.journal.entries import Begin, End, Letter, encode_entry
from sabot.journal.lanes import JobLimit
from sabot.journal.postgres_workers import PostgresWorker

AGENT = "k.a"


class Owners:
    """Those who take the letters of one journal, as a kernel does: one owner, or two workers."""

    def __init__(self, home: Home) -> None:
        self.home, self.held = home, dict[str, Journal]()
        self.journals = list[Journal]()
        self.limits = dict[str, JobLimit]()

    def open(self, *limits: JobLimit) -> None:
        self.limits = {each.agent: each for each in limits}
        for _ in range(2 if isinstance(self.home, InWorkers) else 1):
            journal = self.home.owner()
            self.journals.append(journal)
            journal.begins.agents = frozenset({AGENT})
            journal.begins.limit(self.limits)
            if isinstance(journal, PostgresWorker):
                journal.full_s = 0.0

    def close(self) -> None:
        for journal in self.journals:
            journal.close()
        self.journals.clear()

    def post(self, *letters: Letter) -> None:
        inbox = self.home.inbox()
        for each in letters:
            inbox.post(each)
        inbox.close()

    def takes(self) -> list[str]:
        """The jobs that begin, and then the kinds of other letters that are taken."""
        found = list[Any]()
        for journal in self.journals:
            taken = journal.take()
            assert all(journal.wait_durable(position, 60) for position, _ in taken)
            journal.begins.begun_all()
            granted, journal.begins.granted = journal.begins.granted, []
            for go in granted:
                go()
            found += [entry for _, entry in taken]
            self.held |= {entry.job: journal for _, entry in taken if isinstance(entry, Begin)}
        jobs = [entry.job.removeprefix(f"{AGENT}/") for entry in found if isinstance(entry, Begin)]
        return [*jobs, *(type(entry).__name__ for entry in found if not isinstance(entry, Begin))]

    def end(self, *jobs: str, outcome: str = "succeeded") -> None:
        for job in jobs:
            journal = self.held[f"{AGENT}/{job}"]
            assert journal.wait_durable(journal.append(End(f"{AGENT}/{job}", 2, outcome)), 60)
            journal.begins.lanes.leave(f"{AGENT}/{job}")

    def park(self, job: str) -> None:
        self.held[f"{AGENT}/{job}"].begins.lanes.park(f"{AGENT}/{job}")

    def go_on(self, job: str, go: Callable[[], object]) -> None:
        self.held[f"{AGENT}/{job}"].begins.lanes.go_on(f"{AGENT}/{job}", go)

    def waiting(self) -> list[str]:
        reader = self.home.reader()
        found = [each.job.removeprefix(f"{AGENT}/") for each in reader.letters()]
        reader.close()
        return found

    def pass_time(self, seconds: int) -> None:
        """Several workers go by the clock of their server."""
        if not isinstance(self.home, InWorkers):
            self.home.clock.advance(seconds)
            return
        with psycopg.connect(self.home.url, autocommit=True) as connection:
            connection.execute(f'SET search_path = "sabot_{self.home.app}"')
            connection.execute("UPDATE seats SET at_ms = at_ms - %s", (seconds * 1000,))
            connection.execute("UPDATE inbox SET after_ms = after_ms - %s WHERE after_ms > 0", (seconds * 1000,))

    def now_ms(self) -> int:
        if not isinstance(self.home, InWorkers):
            return round(self.home.clock.time() * 1000)
        with psycopg.connect(self.home.url, autocommit=True) as connection:
            ((now_ms,),) = connection.execute("SELECT (extract(epoch FROM now()) * 1000)::bigint").fetchall()
        return int(now_ms)


@pytest.fixture(params=[*HOMES, "workers"])
def owners(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Owners]:
    made = Owners(home_of(request.param, request, tmp_path))
    yield made
    made.close()


def letter(job: str, *, key: str = "", scope: str = "all", **fields: Any) -> Letter:
    begin = Begin(f"{AGENT}/{job}", 1, AGENT, key=stored_key(key), scope=scope)
    return Letter("begin", job=begin.job, name=AGENT, body=encode_entry(begin), **fields)


def test_no_more_jobs_are_open_than_the_limit_and_a_seat_is_free_when_its_job_ends(owners: Owners) -> None:
    owners.open(JobLimit(AGENT, concurrency=2))
    owners.post(*(letter(each) for each in "abcde"))
    assert (owners.takes(), owners.takes(), owners.waiting()) == (["a", "b"], [], ["c", "d", "e"])
    owners.end("b")
    assert (owners.takes(), owners.takes()) == (["c"], [])
    owners.end("a", "c")
    assert (owners.takes(), owners.waiting()) == (["d", "e"], [])


def test_jobs_begin_by_their_priority_and_then_in_their_order(owners: Owners) -> None:
    owners.open(JobLimit(AGENT, concurrency=1))
    owners.post(letter("first"))
    assert owners.takes() == ["first"]
    owners.post(letter("a", priority=5), letter("b"), letter("c", priority=-1), letter("d"))
    order = list[str]()
    before = "first"
    while before:
        owners.end(before)
        (before,) = owners.takes() or [""]
        order.append(before)
    assert order == ["c", "b", "d", "a", ""]


def test_jobs_of_a_key_and_of_a_scope_have_lanes_of_their_own_and_their_order(owners: Owners) -> None:
    owners.open(JobLimit(AGENT, per="key", concurrency=1))
    owners.post(*(letter(each, key=each[0]) for each in ("a1", "a2", "b1", "a3", "b2")), letter("x"), letter("y"))
    assert sorted(owners.takes()) == ["a1", "b1", "x", "y"]
    owners.park("a1")
    assert owners.takes() == [], "it holds its seat, also while it waits for a person"
    owners.end("a1")
    assert owners.takes() == ["a2"]
    owners.end("b1", "a2")
    assert sorted(owners.takes()) == ["a3", "b2"]


def test_a_key_is_one_of_its_scope_also_where_scopes_and_keys_look_alike(owners: Owners) -> None:
    """The jobs of one tenant's `ann` held up those of another tenant's."""
    owners.open(JobLimit(AGENT, per="key", concurrency=1))
    drawn = random.Random(1)
    long = "".join(chr(drawn.randrange(0x10000, 0x1F000)) for _ in range(500))  # more than an index of PostgreSQL takes
    alike = [
        ("x", "ann"),
        ("y", "ann"),
        ("x", "1ann"),
        ("x\ny", "ann"),
        ("x", "\nyann"),
        ("1:x", "ann"),
        ("", "ann"),
        ("ä\U0001d11e", "ann"),
        (long, long),
        (long, long[1:]),
    ]
    for turn in "ab":
        owners.post(*(letter(f"{turn}{at}", scope=scope, key=key) for at, (scope, key) in enumerate(alike)))
    every = range(len(alike))
    assert sorted(owners.takes()) == [f"a{at}" for at in every]
    assert owners.takes() == []
    owners.end("a1", "a7")
    assert sorted(owners.takes()) == ["b1", "b7"]
    assert owners.takes() == []
    owners.end(*(f"a{at}" for at in every if at not in (1, 7)))
    assert sorted(owners.takes()) == [f"b{at}" for at in every if at not in (1, 7)]


def test_a_job_that_waits_lets_the_next_one_pass_and_goes_on_before_others_begin(owners: Owners) -> None:
    owners.open(JobLimit(AGENT, concurrency=1))
    owners.post(*(letter(each) for each in "abc"))
    assert owners.takes() == ["a"]
    owners.park("a")
    assert owners.takes() == ["b"]
    went = list[str]()
    owners.go_on("a", lambda: went.append("a"))
    assert (owners.takes(), went) == ([], [])
    owners.end("b")
    assert (owners.takes(), went) == ([], ["a"])
    owners.end("a")
    assert owners.takes() == ["c"]


def test_a_job_begins_when_its_time_has_come(owners: Owners) -> None:
    owners.open(JobLimit(AGENT, concurrency=5))
    at_ms = owners.now_ms()
    owners.post(letter("later", after_ms=at_ms + 3_600_000), letter("soon", after_ms=at_ms + 600_000), letter("now"))
    assert (owners.takes(), owners.waiting()) == (["now"], ["later", "soon"])
    owners.pass_time(600)
    assert owners.takes() == ["soon"]
    owners.close()
    owners.open()
    assert owners.takes() == []
    owners.pass_time(3_000)
    assert owners.takes() == ["later"]


def test_a_rate_lets_so_many_jobs_begin_in_each_such_time(owners: Owners) -> None:
    owners.open(JobLimit(AGENT, rate="2/h", per="scope"))
    owners.post(*(letter(each, scope=each[0]) for each in ("x1", "x2", "x3", "y1", "x4")))
    assert sorted(owners.takes()) == ["x1", "x2", "y1"]
    owners.end("x1", "x2")
    assert owners.takes() == []
    owners.pass_time(3_500)
    assert owners.takes() == []
    owners.pass_time(100)
    assert owners.takes() == ["x3", "x4"]


def test_a_queued_job_that_is_cancelled_begins_at_once_and_takes_no_seat(owners: Owners) -> None:
    owners.open(JobLimit(AGENT, concurrency=1))
    owners.post(*(letter(each) for each in "abc"), Letter("cancel", job=f"{AGENT}/b"))
    assert sorted(owners.takes()) == ["Cancel", "End", "a", "b"], (
        "the cancel comes with it, before its function is called"
    )
    owners.end("a")
    assert owners.takes() == ["c"]


def test_a_cancelled_job_of_an_agent_that_nobody_has_is_ended_in_one_step(owners: Owners) -> None:
    """Its letter was left in the queue, and a journal with one owner took the cancel alone: the job was gone, its key taken."""
    owners.open(JobLimit(AGENT, concurrency=1))
    begin = Begin("k.gone/x", 1, "k.gone", scope="all", labels=("untrusted",))
    owners.post(Letter("begin", job="k.gone/x", name="k.gone", body=encode_entry(begin)))
    assert (owners.takes(), owners.waiting()) == ([], ["k.gone/x"])
    here = (
        "no worker that runs has agent k.gone"
        if isinstance(owners.home, InWorkers)
        else "this program has no agent k.gone"
    )
    assert owners.journals[0].waits(["k.gone/x"]) == {"k.gone/x": here}
    if not isinstance(owners.home, InWorkers):  # workers take signals when the job has begun
        owners.post(Letter("signal", token="t", name="go", body=b"1", job="k.gone/x"))
        assert owners.takes() == []
    owners.post(Letter("cancel", job="k.gone/x", name="a typo"))
    for journal in owners.journals:
        if isinstance(journal, PostgresWorker):
            journal.reap_s = 0.0  # it looks for such letters now
    took = owners.takes()
    assert [each for each in took if each != "Signal"] == ["k.gone/x", "Cancel", "End"]
    assert (owners.waiting(), owners.takes()) == ([], [])
    reader = owners.home.reader()
    mark, entries = reader.job("k.gone/x"), [entry for _, entry in reader.read("k.gone/x")]
    reader.close()
    assert mark is not None
    assert (mark.status, mark.result) == ("cancelled", "a typo")
    assert [type(each).__name__ for each in entries][-2:] == ["Cancel", "End"]
    assert entries[-1].labels == ("untrusted",)
    owners.close()
    owners.open()
    assert owners.takes() == []


def test_a_retry_waits_for_a_seat(owners: Owners) -> None:
    owners.open(JobLimit(AGENT, concurrency=1))
    owners.post(letter("a"), letter("b"))
    assert owners.takes() == ["a"]
    owners.end("a", outcome="failed")
    assert owners.takes() == ["b"]
    mark = owners.journals[0].job(f"{AGENT}/a")
    assert mark is not None
    again = encode_entry(Begin(f"{AGENT}/a", 0, AGENT, scope="all", run=2))
    owners.post(Letter("retry", job=f"{AGENT}/a", name=str(mark.began.offset), body=again))
    assert owners.takes() == []
    owners.end("b")
    assert owners.takes() == ["a"]
    owners.post(letter("c"))
    assert owners.takes() == []
    owners.end("a")
    assert owners.takes() == ["c"]


def test_a_retry_that_waits_for_a_seat_can_be_cancelled_and_asked_for_again(owners: Owners) -> None:
    """Its cancel was refused, since the run before had ended."""
    job = f"{AGENT}/a"
    owners.open(JobLimit(AGENT, concurrency=1))
    owners.post(letter("a"), letter("b"))
    assert owners.takes() == ["a"]
    owners.post(Letter("cancel", job=job))
    assert owners.takes() == ["Cancel"]
    owners.end("a", outcome="cancelled")
    assert owners.takes() == ["b"]
    for run in (2, 3):
        mark = owners.journals[0].job(job)
        assert mark is not None
        again = encode_entry(Begin(job, 0, AGENT, scope="all", run=run))
        owners.post(Letter("retry", job=job, name=str(mark.began.offset), body=again))
        assert (owners.takes(), owners.waiting()) == ([], ["a"])
        owners.post(Letter("cancel", job=job, name=f"not run {run}"))
        with pytest.raises(LetterRefused, match="already sent"):
            owners.post(Letter("cancel", job=job))
        assert owners.takes() == ["a", "Cancel", "End"]
        mark = owners.journals[0].job(job)
        assert mark is not None
        assert (mark.status, mark.result, owners.waiting()) == ("cancelled", f"not run {run}", [])
        with pytest.raises(LetterRefused, match="has ended"):
            owners.post(Letter("cancel", job=job))
    owners.post(letter("c"))
    assert owners.takes() == []
    owners.end("b")
    assert owners.takes() == ["c"]


def test_a_list_says_why_a_job_waits(owners: Owners) -> None:
    owners.open(JobLimit(AGENT, per="key", concurrency=1, rate="3/h"))
    journal, later = owners.journals[0], owners.now_ms() + 3_600_000
    owners.post(
        *(letter(each, key=each[0]) for each in ("a1", "a2", "b1", "b2", "b3", "b4")), letter("c", after_ms=later)
    )
    owners.takes()
    for job in ("b1", "b2", "b3"):
        owners.end(job)
        owners.takes()
    said = journal.waits([f"{AGENT}/{each}" for each in ("a1", "a2", "b4", "c")])
    at = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC")
    assert {job: at.sub("TIME", why) for job, why in said.items()} == {
        f"{AGENT}/a2": "its lane is full: 1 of 1",
        f"{AGENT}/b4": "its rate, 3/h, lets the next job begin at TIME",
        f"{AGENT}/c": "starts at TIME",
    }
    reader = owners.home.reader()
    (starts,) = reader.waits([f"{AGENT}/c"], owners.home.clock).values()
    assert starts == said[f"{AGENT}/c"]
    reader.close()


def test_what_waits_is_there_for_the_next_owner(owners: Owners) -> None:
    owners.open(JobLimit(AGENT, concurrency=1))
    owners.post(*(letter(each) for each in "abc"))
    assert owners.takes() == ["a"]
    owners.end("a")
    owners.close()
    owners.open(JobLimit(AGENT, concurrency=1))
    assert owners.takes() == ["b"]
    assert owners.waiting() == ["c"]
