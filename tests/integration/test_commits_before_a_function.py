"""How many commits a start makes before the function of its job runs: while nobody can commit entries, the function begins."""

import asyncio
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sabot.agents import ExecutionRequest, JobClient, RuntimeKernel
from tools.postgres import server_or_skip

Held = Callable[[], AbstractContextManager[Callable[[], int]]]
COMMITS_OF_FILE = slice(8, 12)  # of the index of a write-ahead log: "iChange, incremented with each transaction"
ENTRIES = "SELECT count(*) FROM sabot_kernel.entries"


@pytest.fixture(params=["SQLite", "PostgreSQL", "PostgreSQL, shared"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, bool, Held]]:
    """The address, whether workers share it, and what holds each commit of entries up; it gives the number of entries that are there."""
    if request.param == "SQLite":
        yield str(tmp_path), False, lambda: locked_file(tmp_path)
        return
    with server_or_skip().database() as url:
        yield url, request.param != "PostgreSQL", lambda: locked_table(url)


@contextmanager
def locked_file(folder: Path) -> Iterator[Callable[[], int]]:
    (path,) = folder.rglob("*.db")
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield lambda: connection.execute("SELECT count(*) FROM entries").fetchone()[0]
    finally:
        connection.close()


@contextmanager
def locked_table(url: str) -> Iterator[Callable[[], int]]:
    with psycopg.connect(url) as connection:
        connection.execute("LOCK TABLE sabot_kernel.entries IN EXCLUSIVE MODE")
        yield lambda: connection.execute(ENTRIES).fetchone()[0]  # type: ignore[index]


async def test_the_function_of_a_job_that_its_own_process_starts_waits_for_no_commit(
    home: tuple[str, bool, Held],
) -> None:
    """The start returns behind one: that of the first entry."""
    place, shared, held = home
    began = asyncio.Event()

    async def work(ctx: Any) -> Any:
        began.set()
        return ctx.message

    async with RuntimeKernel.create(agent=work, journal=place, shared=shared) as kernel:
        await kernel.resume()
        with held() as entries:
            starting = asyncio.create_task(kernel.execute(ExecutionRequest(prompt="x", agent="work")))
            await began.wait()
            assert (entries(), starting.done()) == (0, False)
        assert (await (await starting).result()).output == "x"


async def test_the_function_of_a_job_that_a_client_starts_waits_for_the_commit_of_its_letter(
    home: tuple[str, bool, Held], tmp_path: Path
) -> None:
    """And in a shared journal for that of the worker that claims it, not for that of its first entry."""
    place, shared, held = home
    began, commits = asyncio.Event(), list[int]()

    async def work(ctx: Any) -> Any:
        commits.extend(committed(path) for path in tmp_path.rglob("*-shm"))
        began.set()
        return ctx.message

    async with RuntimeKernel.create(agent=work, journal=place, shared=shared) as kernel:
        await kernel.resume()
        client = JobClient(place)
        if "://" not in place:  # nobody can post a letter while the file is locked
            (path,) = tmp_path.rglob("*-shm")
            before = list[int]()
            for _ in range(5):
                before.append(committed(path))
                handle = await client.start("work", "x")
                assert (await handle.result()).output == "x"
            counts = [then - first for first, then in zip(before, commits, strict=True)]
            # The first entry may be durable before the function begins, and what comes by time, as a renewal, may come between.
            assert (min(counts) in (1, 2), max(counts) < 10) == (True, True), counts
            return
        with held() as entries:
            handle = await client.start("work", "x")
            await began.wait()
            assert entries() == 0
        assert (await handle.result()).output == "x"


def committed(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[COMMITS_OF_FILE], sys.byteorder)
