"""The stack of a busy task over HTTP: the user's function and the line in which the time goes."""

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from unit.web.test_console import MARKUP
from unit.web.test_job_screens import ask, enter

from sabot import App, NdjsonSink, NdjsonSource
from sabot.connectors.memory import MemorySource
from sabot.demos.fraud.watched import card_tokens
from sabot.engine.runtime.tasks import blocking
from sabot.web.console import Console
from tools.agent_tools import started, until

Step = Callable[[threading.Event], object]


def waits_here(go: threading.Event) -> None:
    go.wait()


async def sampled(console: Console) -> dict[str, Any]:
    """The line in which the task of `slow_app` is most."""
    browser = await enter(console, "act")
    steps = (await ask(browser, "/steps"))[1]
    while "/stack?task=read-1%2F0" not in steps:
        await asyncio.sleep(0.02)
        steps = (await ask(browser, "/steps"))[1]
    (row, *_) = json.loads((await ask(browser, "/stack.json?task=read-1%2F0"))[1])
    return row


@asynccontextmanager
async def slow_app(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: Step = waits_here
) -> AsyncIterator[tuple[App, Console, threading.Event]]:
    """An app whose only batch waits in the user's function until the event is set: `step` waits for it."""
    monkeypatch.setattr("sabot.web.stack_screens._SECONDS", 0.3)
    (folder / "rows.ndjson").write_text('{"n": 1}\n')
    begun, go = threading.Event(), threading.Event()

    def slowly(batch: pa.RecordBatch) -> pa.RecordBatch:
        if batch.num_rows:  # the schema is learned from a batch without rows
            begun.set()
            step(go)
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
        row = await sampled(console)
        assert row["share"] > 0.5  # on a busy machine it is seen on its way, too
        assert row["function"].endswith("slowly")
        assert row["file"].endswith("test_stack_screens.py")
        assert row["text"] == "go.wait()"
        browser = await enter(console, "act")
        status, page = await ask(browser, "/stack?task=read-1%2F0")
        assert (status, "go.wait()" in page, MARKUP in page) == (200, True, False)
        status, page = await ask(browser, "/stack?task=event%20loop")
        assert (status, "go.wait()" in page) == (200, False)


async def test_the_step_of_the_fraud_demo_is_code_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tokens(go: threading.Event) -> None:
        is_sabots, is_users = (
            blocking.is_sabots,
            blocking.is_users,
        )  # without frames of these tests only the demo's are a user's
        monkeypatch.setattr(blocking, "is_sabots", lambda file: file == __file__ or is_sabots(file))
        monkeypatch.setattr(blocking, "is_users", lambda file: file != __file__ and is_users(file))
        monkeypatch.setattr(hashlib, "pbkdf2_hmac", lambda *_: go.wait() and b"")
        card_tokens(pa.RecordBatch.from_pydict({"customer_id": [1]}))

    async with slow_app(tmp_path, monkeypatch, tokens) as (_, console, _go):
        row = await sampled(console)
        assert row["function"] == "card_tokens"
        assert row["text"].startswith("tokens = [hashlib.pbkdf2_hmac")


@pytest.mark.slow  # half a second of a core
async def test_a_line_that_calls_a_function_of_sabot_is_the_one_in_which_the_time_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = MemorySource("nothing", "memory://stack")
    source.open(None)

    def reads(go: threading.Event) -> None:
        while not go.is_set():
            source.read_batch(1, 0.2)

    async with slow_app(tmp_path, monkeypatch, reads) as (_, console, _go):
        row = await sampled(console)
        assert row["share"] > 0.5  # on a busy machine it is seen on its way, too
        assert row["text"] == "source.read_batch(1, 0.2)"


async def test_only_threads_of_tasks_are_sampled_and_only_for_those_who_act(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with slow_app(tmp_path, monkeypatch) as (_, console, _go):
        browser, reader = await enter(console, "act"), await enter(console, "read")
        for task in ("", "MainThread", "sabot-http", "nobody%2F0", "%3Cscript%3E"):
            status, page = await ask(browser, f"/stack?task={task}")
            assert (status, "<script>" in page) == (404, False)
        assert (await ask(browser, "/stack.json?task=MainThread"))[0] == 404
        for path in ("/stack?task=read-1%2F0", "/stack.csv?task=read-1%2F0"):
            assert (await ask(reader, path))[0] == 403
        assert "/stack?" not in (await ask(reader, "/steps"))[1]
