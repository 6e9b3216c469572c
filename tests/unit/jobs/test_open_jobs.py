"""What a start reads of a journal: the entries of the jobs that are open, and of the trees to which these belong."""

from collections.abc import Iterator
from random import Random

import pytest

from sabot.jobs.open_jobs import entries_of_trees, open_jobs
from sabot.jobs.tree import first_of, parent_of
from sabot.journal.base import Position
from sabot.journal.entries import Begin, Cancel, EffectResult, End, Entry
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
