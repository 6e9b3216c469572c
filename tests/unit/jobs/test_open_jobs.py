"""What a start reads of a journal: the entries of the jobs that are open, and of the trees to which these belong."""

from collections.abc import Iterator
from random import Random

import pytest

from sabot.agents.job_effects import folded_job
from sabot.agents.jobs import JobStatus
from sabot.agents.kernel.client import _end_in
from sabot.jobs.open_jobs import begun_or_queued, entries_of_trees, open_jobs
from sabot.jobs.tree import first_of, parent_of
from sabot.journal.base import Position
from sabot.journal.entries import Begin, Cancel, EffectResult, End, Entry, Letter, encode_entry
from sabot.journal.memory import MemoryJournal


def grown(journal: MemoryJournal, rng: Random) -> dict[str, list[tuple[Position, Entry]]]:
    """Appends some trees of jobs, of which some jobs have ended. Returns the entries of each tree, as the log has them."""
    open_ones, trees = list[str](), dict[str, list[tuple[Position, Entry]]]()

    def add(entry: Entry) -> None:
        trees.setdefault(first_of(entry.job), []).append((journal.append(entry), entry))

    for number in range(60):
        job = f"{rng.choice(open_ones)}~{number + 1}" if open_ones and rng.random() < 0.6 else f"j{number}"
        add(Begin(job, number, "app.f"))
        open_ones.append(job)
        add(rng.choice([EffectResult(rng.choice(open_ones), number, 1), Cancel(rng.choice(open_ones), number)]))
        if rng.random() < 0.5:
            job = open_ones.pop(rng.randrange(len(open_ones)))
            add(End(job, number, rng.choice(["failed", "succeeded"])))
            if rng.random() < 0.2:
                add(Begin(job, number, "app.f", run=2))
                open_ones.append(job)
    return trees


@pytest.mark.parametrize("seed", range(6))
def test_a_start_reads_whole_trees_of_open_jobs_in_the_order_of_the_log(seed: int) -> None:
    journal = MemoryJournal()
    trees = grown(journal, Random(seed))
    jobs = journal.unfinished(journal.positions())
    assert jobs
    assert any(parent_of(job)[0] for job in jobs)
    roots = {first_of(job) for job in jobs}
    assert roots < trees.keys()
    found = dict[str, list[tuple[Position, Entry]]]()
    for position, entry in entries_of_trees(journal, jobs):
        found.setdefault(first_of(entry.job), []).append((position, entry))
    assert found == {root: trees[root] for root in roots}


@pytest.mark.parametrize("seed", range(6))
def test_open_jobs_are_those_that_the_whole_log_has(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = MemoryJournal()
    grown(journal, Random(seed))
    half = {0: journal.positions()[0] // 2}
    ended = [(at, each) for at, each in journal.read() if isinstance(each, End) and at.offset < half[0]]
    unapplied = {each.job: at for at, each in ended[-1:]}
    found = [open_jobs(journal, *asked) for asked in (({}, {}), (half, {}), (half, unapplied))]

    def of_all(jobs: object) -> Iterator[tuple[Position, Entry]]:
        return journal.read()

    monkeypatch.setattr(journal, "read_jobs", of_all)
    assert found == [open_jobs(journal, *asked) for asked in (({}, {}), (half, {}), (half, unapplied))]
    assert {job.job_id for job in found[2]} - {job.job_id for job in found[1]} <= unapplied.keys()


class TakenMeanwhile(MemoryJournal):
    """A journal whose owner takes the retries of the job j0 while a reader looks: between its mark and their letter, or
    between their letter and its entries.
    """

    runs = 1

    def begin_again(self) -> None:
        self.runs += 1
        self.storage.untaken.clear()
        self.append(Begin("j0", self.runs, "app.f", run=self.runs))

    def retry(self) -> None:
        name = str(self.storage.marks["j0"].began.offset)
        self.post(Letter("retry", job="j0", name=name, body=encode_entry(Begin("j0", 5, "app.f", run=self.runs + 1))))

    def letter(self, once: str) -> Letter | None:
        if once.startswith("retry:j0@") and self.runs in self.between:
            self.begin_again()
            if self.runs < 3:
                self.append(End("j0", 4, "failed"))
                self.retry()
        return super().letter(once)

    between: tuple[int, ...] = ()


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
@pytest.mark.parametrize(("between", "runs"), [((1,), 2), ((1, 2), 3), ((), 1)])
def test_a_job_that_begins_again_while_it_is_looked_at_has_not_ended(
    outcome: str, between: tuple[int, ...], runs: int
) -> None:
    """A client that awaited its result got the outcome of the run before, with the retry under way."""
    journals = [TakenMeanwhile() for _ in range(3)]
    for journal in journals:
        journal.append(Begin("j0", 1, "app.f"))
        journal.append(End("j0", 2, outcome))
        assert _end_in(journal, "j0") is not None
        journal.retry()
        journal.between = between
    mark, queued = begun_or_queued(journals[0], "j0")
    assert mark is not None
    assert (mark.outcome == "", queued is None) == ((True, True) if runs == 3 else (False, False))
    assert journals[0].runs == runs
    assert _end_in(journals[1], "j0") is None
    status = folded_job(journals[2], "j0").record.status
    assert status is (JobStatus.RUNNING if runs == 3 else JobStatus.QUEUED)


def test_the_letter_of_a_job_that_was_begun_without_it_does_not_count() -> None:
    journal = TakenMeanwhile()
    journal.post(Letter("begin", job="j0", body=encode_entry(Begin("j0", 1, "app.f"))))
    _, queued = begun_or_queued(journal, "j0")
    assert queued is not None
    for entry in (Begin("j0", 1, "app.f"), End("j0", 2, "failed")):
        journal.append(entry)
    mark, queued = begun_or_queued(journal, "j0")
    assert (mark, queued) == (journal.job("j0"), None)
    assert _end_in(journal, "j0") is not None
    assert folded_job(journal, "j0").record.status is JobStatus.FAILED


def test_a_job_that_begins_again_before_its_entries_are_read_has_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = TakenMeanwhile()
    journal.append(Begin("j0", 1, "app.f"))
    journal.append(End("j0", 2, "failed"))
    history, entries = journal.history, journal.history.entries

    def begun_again(job_id: str) -> Iterator[tuple[Position, Entry]]:
        journal.begin_again()
        return entries(job_id)

    monkeypatch.setattr(history, "entries", begun_again)
    monkeypatch.setattr(TakenMeanwhile, "history", history)
    assert _end_in(journal, "j0") is None
