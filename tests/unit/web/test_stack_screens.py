"""The stack of a busy task over HTTP: the user's function and the line in which the time goes."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from unit.web.test_console import MARKUP
from unit.web.test_job_screens import ask, enter

from sabot import App, NdjsonSink, NdjsonSource
from sabot.web.console import Console
from tools.agent_tools import started, until


@asynccontextmanager
async def slow_app(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[App, Console, threading.Event]]:
    """An app whose only batch waits in the user's function until the event is set."""
    monkeypatch.setattr("sabot.web.stack_screens._SECONDS", 0.3)
    (folder / "rows.ndjson").write_text('{"n": 1}\n')
    begun, go = threading.Event(), threading.Event()

    def waits_here() -> None:
        begun.set()
        go.wait()

    def slowly(batch: pa.RecordBatch) -> pa.RecordBatch:
        if batch.num_rows:  # the schema is learned from a batch without rows
            waits_here()
        return batch

    app = App(f"shop {MARKUP}", state=str(folder / "state"))
    app.stream(NdjsonSource(folder / "rows.ndjson"), schema={"n": "int64"}).map_batches(slowly).to(
        NdjsonSink(folder / "out.ndjson")
    )
    console = Console(app, port=0)
    try:
        async with started(app):
            try:
                await until(begun.is_set)
                yield app, console, go
            finally:
                go.set()
    finally:
        console.close()


async def test_the_line_in_which_a_task_spends_its_time_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with slow_app(tmp_path, monkeypatch) as (_, console, _go):
        browser = await enter(console, "act")
        steps = (await ask(browser, "/steps"))[1]
        while "/stack?task=read-1%2F0" not in steps:
            steps = (await ask(browser, "/steps"))[1]
            await asyncio.sleep(0.02)
        (row, *_) = json.loads((await ask(browser, "/stack.json?task=read-1%2F0"))[1])
        assert row["share"] > 0.9
        assert row["function"].endswith("slowly")
        assert row["file"].endswith("test_stack_screens.py")
        assert row["text"] == "go.wait()"
        status, page = await ask(browser, "/stack?task=read-1%2F0")
        assert (status, "go.wait()" in page, MARKUP in page) == (200, True, False)
        status, page = await ask(browser, "/stack?task=event%20loop")
        assert (status, "go.wait()" in page) == (200, False)


async def test_only_threads_of_tasks_are_sampled_and_only_for_those_who_act(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with slow_app(tmp_path, monkeypatch) as (_, console, _go):
        browser, reader = await enter(console, "act"), await enter(console, "read")
        for task in ("", "MainThread", "sabot-console", "nobody%2F0", "%3Cscript%3E"):
            status, page = await ask(browser, f"/stack?task={task}")
            assert (status, "<script>" in page) == (404, False)
        assert (await ask(browser, "/stack.json?task=MainThread"))[0] == 404
        for path in ("/stack?task=read-1%2F0", "/stack.csv?task=read-1%2F0"):
            assert (await ask(reader, path))[0] == 403
        assert "/stack?" not in (await ask(reader, "/steps"))[1]
