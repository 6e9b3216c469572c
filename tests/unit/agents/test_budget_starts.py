"""A kernel with budgets leaves what is open in the journal when it starts, and knows to the token what was spent and what is reserved."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sabot.agents import Budget, ExecutionRequest, InMemoryLedgerWriter, Ledger, RuntimeKernel, SqliteLedgerWriter
from sabot.journal.memory import MemoryStorage
from sabot.journal.sqlite import SqliteJournal
from sabot.llm import Completion, ExecutionEngine, ScriptedProvider, Usage, assistant
from tools.agent_tools import PATIENCE, until

READ, WRITTEN = 18, 50  # the tokens of a request, at most, and of its answer, at most
MOST = READ + WRITTEN
USED = 150


class Shop:
    """Kernels over one folder, whose agent asks a model, or a person."""

    def __init__(self, place, **options) -> None:
        said = Completion(message=assistant("yes"), usage=Usage(100, 50), model="m", provider="scripted")
        self.place, self.options = place, options
        self.provider = ScriptedProvider(said, model="m")
        self.engine = ExecutionEngine(self.provider, retries=0, patience=0)

    async def clerk(self, ctx) -> str:
        if ctx.message == "person":
            await ctx.ask("confirm", {})
            return "answered"
        return (await ctx.llm(self.engine).complete("one", max_tokens=WRITTEN)).message.text

    def kernel(self, place=None, *, most: int = 10_000) -> RuntimeKernel:
        options = {"budgets": [Budget("default", max_tokens_monthly=most, warn_at=1)], **self.options}
        return RuntimeKernel.create(agent=self.clerk, journal=place or self.place, **options)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "shop")


async def start(kernel, *messages):
    return [await kernel.execute(ExecutionRequest(prompt=each)) for each in messages]


async def ended(kernel, *messages):
    for each in await start(kernel, *messages):
        await asyncio.wait_for(each.result(), PATIENCE)


async def parked(kernel, jobs):
    await until(lambda: kernel.statistics()["parked"] == jobs)


async def standing(kernel):
    """What the scope has used and reserved."""
    found = await (await kernel.accounts()).standing("default")
    return found.used["monthly"].tokens, found.reserved.tokens


def copied(source: Path, target: Path) -> Path:
    """Copies a kernel's folder as a kill leaves it: what is durable, at one moment."""
    target.mkdir()
    for path in source.glob("*.db"):
        with closing(sqlite3.connect(path)) as database, closing(sqlite3.connect(target / path.name)) as copy:
            database.backup(copy)
    for path in source.iterdir():
        if path.is_file() and path.suffix not in (".db", ".lock") and "-" not in path.name:
            (target / path.name).write_bytes(path.read_bytes())
    return target


class Reads:
    """What a journal has read: the jobs whose entries were read, and the offsets behind which all of them were."""

    def __init__(self, monkeypatch) -> None:
        self.jobs, self.runs = [], []
        several, run = SqliteJournal.read_jobs, SqliteJournal.read_run

        def read_jobs(journal, jobs):
            self.jobs += jobs
            return several(journal, jobs)

        def read_run(journal, number, first):
            self.runs.append(first)
            return run(journal, number, first)

        monkeypatch.setattr(SqliteJournal, "read_jobs", read_jobs)
        monkeypatch.setattr(SqliteJournal, "read_run", read_run)


async def test_a_start_reads_no_entry_before_its_mark(shop, monkeypatch):
    async with shop.kernel() as kernel:
        await start(kernel, *["person"] * 5)
        await ended(kernel, "model")
        await parked(kernel, 5)
    reads = Reads(monkeypatch)
    async with shop.kernel() as kernel:
        assert (reads.jobs, reads.runs) == ([], [])
        assert await standing(kernel) == (USED, 0)
        await ended(kernel, "model")
        assert await standing(kernel) == (2 * USED, 0)
        assert len(await kernel.resume()) == 5
        await parked(kernel, 5)
        assert len(set(reads.jobs)) == 5


async def test_what_calls_under_way_may_use_is_reserved_after_a_kill_before_any_job_goes_on(shop, tmp_path):
    """Of two such calls, one was under way when the last mark was made, and one has begun behind it. A further attempt is reserved for
    each, since the job will make it.
    """
    async with shop.kernel() as kernel:
        await start(kernel, *["person"] * 5)
        await parked(kernel, 5)
        shop.provider.hold()
        await start(kernel, "model")
        await shop.provider.arrived(1)
        first = copied(shop.place, tmp_path / "first")
        shop.provider.release()
    shop.provider.hold()
    async with shop.kernel(first) as kernel:
        assert await standing(kernel) == (0, 2 * MOST)
        await start(kernel, "model")
        await shop.provider.arrived(2)
        second = copied(first, tmp_path / "second")
        shop.provider.release()
    async with shop.kernel(second) as kernel:
        assert await standing(kernel) == (0, 4 * MOST)
        assert len(await kernel.resume()) == 7
        await parked(kernel, 5)
        await until(lambda: kernel.statistics()["ended"] == 2)
        assert await standing(kernel) == (2 * (USED + MOST), 0)
    async with shop.kernel(second) as kernel:
        assert await standing(kernel) == (2 * (USED + MOST), 0)


async def test_no_call_passes_a_budget_that_calls_under_way_have_reserved(shop, tmp_path):
    async with shop.kernel(most=3 * MOST - 1) as kernel:
        shop.provider.hold()
        await start(kernel, "model")
        await shop.provider.arrived(1)
        place = copied(shop.place, tmp_path / "killed")
        shop.provider.release()
    async with shop.kernel(place, most=3 * MOST - 1) as kernel:
        (new,) = await start(kernel, "model")
        with pytest.raises(Exception, match=f"0 used, {2 * MOST} reserved for calls in flight"):
            await new.result()
    assert len(shop.provider.requests) == 1


async def test_a_ledger_that_is_an_older_copy_gets_the_rows_that_it_lacks(shop, tmp_path):
    async with shop.kernel() as kernel:
        await ended(kernel, "model")
    old = copied(shop.place, tmp_path / "old")
    async with shop.kernel() as kernel:
        await ended(kernel, "model", "model")
    (shop.place / "ledger.db").write_bytes((old / "ledger.db").read_bytes())
    async with shop.kernel() as kernel:
        assert await standing(kernel) == (3 * USED, 0)
    (shop.place / "ledger.db").unlink()
    async with shop.kernel() as kernel:
        assert await standing(kernel) == (3 * USED, 0)


async def test_a_journal_that_is_an_older_copy_is_read_from_its_begin(shop, tmp_path, monkeypatch):
    async with shop.kernel() as kernel:
        await start(kernel, "person")
        await parked(kernel, 1)
    old = copied(shop.place, tmp_path / "old")
    async with shop.kernel() as kernel:
        await ended(kernel, "model")
    for path in shop.place.glob("ledger.db*"):
        (old / path.name).write_bytes(path.read_bytes())
    reads = Reads(monkeypatch)
    async with shop.kernel(old) as kernel:
        assert reads.runs == [0]
        assert len(reads.jobs) == 1
    async with shop.kernel(old) as kernel:
        assert reads.runs == [0]


async def test_a_mark_is_made_while_a_kernel_runs():
    """So a start after a kill reads only what came since."""
    writer, storage = InMemoryLedgerWriter(), MemoryStorage()
    shop = Shop(storage, budgets=Ledger(writer, budgets=[Budget("default", max_calls_monthly=10_000)]))
    async with shop.kernel() as kernel:
        before = await writer.notes(f"{storage.identity}/0")
        for _ in range(10):
            await asyncio.gather(*(ended(kernel, "model") for _ in range(60)))
        ((name, behind),) = (await writer.notes(f"{storage.identity}/0")).items()
        assert before == {name: "0"}
        assert storage.next // 2 < int(behind) <= storage.next


async def test_the_notes_of_a_ledger_are_kept_by_name(tmp_path):
    for writer in (InMemoryLedgerWriter(), SqliteLedgerWriter(tmp_path / "ledger.db")):
        await writer.note({"a/1": "x", "a/2": "y", "b": "z"})
        await writer.note({"a/1": "", "a/2": "w"})
        assert await writer.notes("a/") == {"a/2": "w"}
        assert await writer.notes("") == {"a/2": "w", "b": "z"}
        await writer.close()
