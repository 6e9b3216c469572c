"""Durable agents on topics: jobs, their order, what survives a crash, and what is refused."""

import asyncio
import gc
import json
import re
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs
from typer.testing import CliRunner

from sabot import App, Message, UserError
from sabot.agents import ChildLimits, JobClient
from sabot.agents.durable import waiting_rows
from sabot.cli import commands
from sabot.connectors.memory import MemoryBroker
from sabot.engine.checkpoint import CheckpointStorage, ask
from sabot.engine.checkpoint.places import LocalPlace
from sabot.engine.checkpoint.savepoints import forget_savepoint
from sabot.engine.runtime.agents.source import AgentSource
from sabot.errors import AgentFailed, AppLocked, CheckpointFailed, CorruptJournal, EffectError, OtherJournal
from sabot.journal.entries import Answer, Begin, EffectResult, End
from sabot.journal.sqlite import SqliteReader
from sabot.llm import tool
from sabot.testing import ManualClock
from tools.agent_tools import PATIENCE, bounded, checkpoint, started, until


class Shop:
    """An app in a directory, again and again, and the calls that its tool has got."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.directory = directory
        self.clock = ManualClock(1_000_000.0)
        self.calls: list[Any] = []
        self.fails: set[Any] = set()

        @tool(effect="unsafe")
        async def refund(order: Any) -> str:
            self.calls.append(order)
            if order in self.fails:
                raise ValueError(f"no {order}")
            return f"refunded {order}"

        self.refund = refund

    def app(self, function: Callable[..., Any], *, dedupe: Any = "7d", **options: Any) -> App:
        app = App(
            "shop", self.url, state=str(self.directory), dedupe=dedupe, checkpoint_interval=3600, clock=self.clock
        )
        wiring = {"key": "customer", "sink": "answers", "durable": True, "concurrency": 8, **options}
        app.agent("tickets", name="handle", **wiring)(function)
        return app

    def ticket(self, customer: str, order: Any, **more: Any) -> None:
        self.tickets([{"customer": customer, "order": order, **more}])

    def tickets(self, tickets: Iterable[Any]) -> None:
        MemoryBroker.get(self.url).publish("tickets", list(tickets))

    def answers(self) -> list[Any]:
        return [record.value for record in MemoryBroker.get(self.url).records("answers")]

    def letters(self) -> list[Any]:
        return MemoryBroker.get(self.url).records("tickets.dlq")

    def entries(self) -> list[Any]:
        reader = SqliteReader(self.directory)
        try:
            return [entry for _, entry in reader.read()]
        finally:
            reader.close()

    async def handle(self, ctx: Any) -> Any:
        """Refunds, and counts what this customer has asked for."""
        order = ctx.message["order"]
        count = (await ctx.state().get("count") or 0) + 1
        await ctx.state().put("count", count)
        said = await ctx.call(self.refund, order)
        return {"order": order, "said": said, "count": count}

    async def sleepy(self, ctx: Any) -> Any:
        """As `handle`, an hour later where the ticket says so."""
        if ctx.message.get("sleeps"):
            await ctx.sleep("1h")
        return await self.handle(ctx)


@pytest.fixture
def shop(memory_url: str, tmp_path: Path) -> Shop:
    return Shop(memory_url, tmp_path / "state")


async def crash(app: App) -> None:
    """The next start finds the journal as it is now, and no later checkpoint than there is."""
    app.agent_runtime.checkpoint_coordinator.refuse("the process died")
    with pytest.raises(CheckpointFailed):
        await app.stop()


def jobs(app: App) -> dict[str, Any]:
    found = app.statistics()["jobs"]
    assert isinstance(found, dict)
    return found


def figures(app: App) -> dict[str, Any]:
    found = app.statistics()["operators"]["shop.handle"]
    assert isinstance(found, dict)
    return found


def orders(answers: list[Any]) -> list[Any]:
    return [each["order"] for each in answers]


# -- effects happen once ------------------------------------------------------------------------------------------------


async def test_what_a_job_has_done_before_a_crash_is_not_done_again(shop: Shop) -> None:
    app = shop.app(shop.handle)
    await app.start()
    shop.ticket("ann", 1)
    await until(lambda: len(shop.answers()) == 1)
    await checkpoint(app)
    for order in (2, 3, 4):
        shop.ticket("ann", order)
    await until(lambda: len(shop.answers()) == 4)
    await crash(app)
    app = shop.app(shop.handle)
    async with started(app):
        await until(lambda: len(shop.answers()) == 7)  # at least once: those behind the checkpoint come again
        shop.ticket("ann", 5)
        await until(lambda: len(shop.answers()) == 8)
    assert shop.calls == [1, 2, 3, 4, 5]
    said = [{"order": n, "said": f"refunded {n}", "count": n} for n in (1, 2, 3, 4, 2, 3, 4, 5)]
    assert shop.answers() == said


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("form", ["returned", "in a Message", "yielded"])
async def test_a_set_in_a_result_is_the_same_in_another_process_which_walks_it_in_another_order(
    shop: Shop, form: str
) -> None:
    """The run ended at each start: the job "has given other output than before the restart"."""
    orders = [[0, 8, 16], [16, 8, 0]]
    assert list(set(orders[0])) != list(set(orders[1]))

    async def tags(ctx: Any) -> Any:
        said = {"tags": set(walks), "ids": [frozenset({"b", "aa"})], "z": 1}
        return Message(said, key="k") if form == "in a Message" else said

    async def yields(ctx: Any) -> Any:
        yield await tags(ctx)

    walks = orders[0]
    app = shop.app(yields if form == "yielded" else tags)
    await app.start()
    await checkpoint(app)
    shop.ticket("ann", 1)
    await until(lambda: len(shop.answers()) == 1)
    await crash(app)
    walks = orders[1]
    async with started(shop.app(yields if form == "yielded" else tags)):
        await until(lambda: len(shop.answers()) == 2)
    assert shop.answers() == [{"tags": [0, 8, 16], "ids": [["aa", "b"]], "z": 1}] * 2


async def test_one_checkpoint_lets_jobs_begin(shop: Shop) -> None:
    """A second one followed at once, as the jobs were told of the first one last; on a busy machine it covered what came behind it, and a
    crash that was to repeat that in a test repeated nothing.
    """
    async with started(app := shop.app(shop.handle)):
        await until(lambda: app.statistics()["checkpoints"]["completed"] >= 1)
        for _ in range(3):
            await asyncio.sleep(0)  # what is asked for at once has been
        assert await checkpoint(app) == 2


@pytest.mark.slow  # half a second of a core
async def test_a_barrier_that_comes_before_the_row_of_an_ended_job_is_read_again_begins_no_second_job(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second life had run the job over its history, and its checkpoint said so, while its source stood before the row. The third life
    read the row and knew nothing of a job: the refund was made again.
    """
    app = shop.app(shop.handle)
    await app.start()
    shop.ticket("ann", 1)
    await until(lambda: len(shop.answers()) == 1)
    await checkpoint(app)
    shop.ticket("ann", 2)
    shop.ticket("bob", 3)
    await until(lambda: len(shop.answers()) == 3)
    await crash(app)
    begin = AgentSource.start

    def start_held(source: AgentSource) -> None:
        source.input.pause_for("the test")
        begin(source)

    with monkeypatch.context() as patch:
        patch.setattr(AgentSource, "start", start_held)
        app = shop.app(shop.handle)
        await app.start()
        await until(lambda: len(shop.answers()) == 5)  # both jobs were run over their history
        await checkpoint(app)
        await crash(app)
    app = shop.app(shop.handle)
    async with started(app):
        shop.ticket("ann", 4)
        await until(lambda: 4 in orders(shop.answers()))
        await until(lambda: figures(app)["rows"] == 0)
    assert sorted(shop.calls) == [1, 2, 3, 4]  # ann's second and bob's first may be made in either order
    assert [each["count"] for each in shop.answers() if each["order"] == 4] == [3]


async def test_jobs_begin_only_when_a_checkpoint_knows_of_their_journal(shop: Shop) -> None:
    shop.ticket("ann", 1)
    app = shop.app(shop.handle)
    storage_ids: list[list[str]] = []

    async def look(ctx: Any) -> None:
        storage_ids.append([path.name for path in (shop.directory / "checkpoints").rglob("*.json")])

    app = shop.app(look, sink=None)
    async with started(app):
        await until(lambda: storage_ids)
    assert storage_ids[0], "the first job began before the first checkpoint"


async def test_a_job_that_was_in_the_middle_goes_on_where_it_was(shop: Shop) -> None:
    seen: list[str] = []

    async def twice(ctx: Any) -> Any:
        seen.append("runs")
        first = await ctx.call(shop.refund, "a")
        await ctx.sleep("1h")
        return [first, await ctx.call(shop.refund, "b")]

    app = shop.app(twice)
    await app.start()
    shop.ticket("ann", 1)
    await until(lambda: jobs(app)["parked"] == 1)
    await crash(app)
    assert shop.calls == ["a"]
    app = shop.app(twice)
    async with started(app):
        await until(lambda: jobs(app)["parked"] == 1)
        shop.clock.advance(3600)
        await until(lambda: shop.answers())
    assert shop.answers() == [["refunded a", "refunded b"]]
    assert shop.calls == ["a", "b"]


async def test_without_a_key_jobs_are_independent_and_their_state_is_their_own(shop: Shop) -> None:
    async def lone(ctx: Any) -> Any:
        await ctx.state().put("n", (await ctx.state().get("n") or 0) + 1)
        if ctx.message["order"] == 1:
            await ctx.sleep("1h")
        return {"order": ctx.message["order"], "n": await ctx.state().get("n")}

    app = shop.app(lone, key=None)
    async with started(app):
        shop.ticket("ann", 1)
        shop.ticket("ann", 2)
        await until(lambda: orders(shop.answers()) == [2])
        shop.clock.advance(3600)
        await until(lambda: len(shop.answers()) == 2)
        assert app.statistics()["state"]["keys"] == 0
    assert shop.answers() == [{"order": 2, "n": 1}, {"order": 1, "n": 1}]


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("form", ["plain", "generator", "async generator"])
async def test_the_function_may_be_of_any_form(shop: Shop, form: str) -> None:
    def plain(ctx: Any) -> Any:
        return ctx.message["order"]

    def generator(ctx: Any) -> Any:
        yield ctx.message["order"]
        yield "more"

    async def async_generator(ctx: Any) -> Any:
        yield await ctx.call(shop.refund, ctx.message["order"])

    function = {"plain": plain, "generator": generator, "async generator": async_generator}[form]
    async with started(shop.app(function)):
        shop.ticket("ann", 1)
        await until(lambda: shop.answers())
    (begin,) = [entry for entry in shop.entries() if isinstance(entry, Begin)]
    assert begin.code.endswith(f" on Python {sys.version_info.major}.{sys.version_info.minor}")
    assert shop.answers() == {"plain": [1], "generator": [1, "more"], "async generator": ["refunded 1"]}[form]


# -- the order of a key, and mailboxes ----------------------------------------------------------------------------------


async def test_a_key_has_one_job_at_a_time_and_a_slow_one_holds_no_other(shop: Shop) -> None:
    gates = {"ann": asyncio.Event(), "bob": asyncio.Event()}
    at_work: list[str] = []
    most: list[int] = []

    @tool(effect="read")
    async def wait(customer: str) -> None:
        at_work.append(customer)
        most.append(at_work.count(customer))
        await gates[customer].wait()
        at_work.remove(customer)

    async def slow(ctx: Any) -> Any:
        await ctx.call(wait, ctx.message["customer"])
        return {"order": ctx.message["order"]}

    app = shop.app(slow)
    async with started(app):
        for order in range(3):
            shop.ticket("ann", order)
        for order in range(3, 6):
            shop.ticket("bob", order)
        gates["bob"].set()
        await until(lambda: orders(shop.answers()) == [3, 4, 5])
        gates["ann"].set()
        await until(lambda: orders(shop.answers()) == [3, 4, 5, 0, 1, 2])
    assert set(most) == {1}


@pytest.mark.slow  # half a second of a core
async def test_what_waits_behind_a_parked_key_is_in_its_mailbox_and_comes_in_order_after_a_restart(shop: Shop) -> None:
    app = shop.app(shop.sleepy, concurrency=1)
    await app.start()
    shop.ticket("ann", 0, sleeps=True)
    for order in range(1, 6):
        shop.ticket("ann", order)
    shop.ticket("bob", 9)
    await until(lambda: orders(shop.answers()) == [9])  # a parked job leaves its place to another, though concurrency=1
    await until(lambda: figures(app)["mailbox_rows"] == 5)
    assert jobs(app) | {"running": 0, "parked": 1, "waiting": 5} == jobs(app)
    await checkpoint(app)
    shop.ticket("ann", 6)
    await until(lambda: figures(app)["mailbox_rows"] == 6)
    await crash(app)
    app = shop.app(shop.sleepy, concurrency=1)
    async with started(app):
        await until(lambda: figures(app)["mailbox_rows"] == 6)
        shop.clock.advance(3600)
        await until(lambda: len(shop.answers()) == 8)
    assert orders(shop.answers())[1:] == list(range(7))
    assert shop.calls == [9, *range(7)]
    assert [each["count"] for each in shop.answers()[1:]] == list(range(1, 8))


async def test_jobs_that_wake_wait_for_a_place_among_those_that_run(shop: Shop) -> None:
    gate, runs, most = asyncio.Event(), [], []

    @tool(effect="read")
    async def look(order: int) -> None:
        runs.append(order)
        most.append(len(runs))
        await gate.wait()
        runs.remove(order)

    async def function(ctx: Any) -> Any:
        if ctx.message["order"]:
            await ctx.sleep("1h")
        await ctx.call(look, ctx.message["order"])
        return ctx.message

    app = shop.app(function, key="order", concurrency=1)
    async with started(app):
        for order in (1, 2, 3):
            shop.ticket("ann", order)
        await until(lambda: figures(app)["parked"] == 3)
        shop.ticket("ann", 0)
        await until(lambda: runs == [0])
        shop.clock.advance(3600)
        shop.ticket("ann", 4)
        await until(lambda: sum(isinstance(each, EffectResult) for each in shop.entries()) == 3)
        assert figures(app) | {"running": 1, "parked": 3} == figures(app)
        gate.set()
        await until(lambda: orders(shop.answers()) == [0, 1, 2, 3])  # those that wake before the new one
        await until(lambda: figures(app)["parked"] == 1)
    assert set(most) == {1}


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("crashes", [False, True])
async def test_a_job_that_was_parked_at_the_checkpoint_holds_its_key_and_is_not_run_at_the_restart(
    shop: Shop, crashes: bool
) -> None:
    runs: list[Any] = []

    async def sleepy(ctx: Any) -> Any:
        runs.append(ctx.message["order"])
        return await shop.sleepy(ctx)

    app = shop.app(sleepy)
    await app.start()
    shop.ticket("ann", 1, sleeps=True)
    shop.ticket("bob", 2, sleeps=True)
    await until(lambda: jobs(app)["parked"] == 2)
    await checkpoint(app)
    shop.ticket("ann", 3)
    await until(lambda: figures(app)["mailbox_rows"] == 1)
    if crashes:
        await crash(app)
    else:
        await app.stop()
    app = shop.app(sleepy)
    async with started(app):
        shop.ticket("ann", 4)
        shop.ticket("cid", 5)
        await until(lambda: orders(shop.answers()) == [5])
        await until(lambda: figures(app)["mailbox_rows"] == 2)
        assert runs == [1, 2, 5]
        assert (figures(app)["parked"], jobs(app)["parked"]) == (2, 2)
        shop.clock.advance(3600)
        await until(lambda: len(shop.answers()) == 5)
    assert [each for each in runs if each in (1, 3, 4)] == [1, 1, 3, 4]
    assert [(each["order"], each["count"]) for each in shop.answers() if each["order"] in (1, 3, 4)] == [
        (1, 1),
        (3, 2),
        (4, 3),
    ]
    assert sorted(shop.calls) == [1, 2, 3, 4, 5]


async def test_a_full_mailbox_holds_the_source_and_nothing_is_lost(shop: Shop) -> None:
    app = shop.app(shop.sleepy, mailbox=3)
    async with started(app):
        shop.ticket("ann", 0, sleeps=True)
        await until(lambda: jobs(app)["parked"] == 1)
        shop.tickets(
            {"customer": "ann", "order": order} for order in range(1, 8)
        )  # which the source reads as one batch
        await until(lambda: figures(app)["mailbox_rows"] == 3)
        shop.ticket("bob", 9)
        await checkpoint(app)
        assert figures(app)["rows"] == 4  # they wait in memory, and in the checkpoint
        assert shop.answers() == []
        shop.clock.advance(3600)
        await until(lambda: len(shop.answers()) == 9)
    assert sorted(orders(shop.answers())) == [*range(8), 9]
    assert [order for order in orders(shop.answers()) if order != 9] == list(range(8))


async def test_rows_that_a_full_mailbox_has_no_room_for_may_be_dead_letters(shop: Shop) -> None:
    app = shop.app(shop.sleepy, mailbox=2, mailbox_full="dead_letter")
    async with started(app):
        shop.ticket("ann", 0, sleeps=True)
        await until(lambda: jobs(app)["parked"] == 1)
        for order in range(1, 5):
            shop.ticket("ann", order)
        await until(lambda: len(shop.letters()) == 2)
        shop.clock.advance(3600)
        await until(lambda: len(shop.answers()) == 3)
    assert orders(shop.answers()) == [0, 1, 2]
    letter = shop.letters()[0]
    headers = dict(letter.headers)
    assert (letter.value["order"], headers["sabot.error"]) == (3, b"MailboxFull")
    assert headers["sabot.job"].decode().endswith("/0/3")


async def test_a_drain_ends_what_runs_and_leaves_parked_jobs_for_the_next_start(shop: Shop) -> None:
    app = shop.app(shop.sleepy)
    await app.start()
    shop.ticket("ann", 0, sleeps=True)
    await until(lambda: jobs(app)["parked"] == 1)
    shop.ticket("ann", 1)
    shop.ticket("bob", 2)
    await until(lambda: app.statistics()["sources"]["shop.handle/tickets"]["rows_in"] == 3)
    await asyncio.wait_for(app.stop(drain=True), 60)
    assert orders(shop.answers()) == [2]
    app = shop.app(shop.sleepy)
    async with started(app):
        await until(lambda: jobs(app)["parked"] == 1)
        shop.clock.advance(3600)
        await until(lambda: orders(shop.answers()) == [2, 0, 1])


async def test_an_input_that_ends_is_waited_for_until_its_last_job_is_over(shop: Shop, tmp_path: Path) -> None:
    from sabot import files

    lines = [{"customer": "ann", "order": n, "sleeps": n == 0} for n in range(3)]
    (tmp_path / "tickets.ndjson").write_text("".join(json.dumps(line) + "\n" for line in lines))
    app = App("shop", shop.url, state=str(shop.directory), clock=shop.clock)
    app.agent(files(str(tmp_path / "tickets.ndjson")), name="handle", key="customer", sink="answers", durable=True)(
        shop.sleepy
    )
    run = asyncio.create_task(app.run())
    await until(lambda: jobs(app).get("parked") == 1)
    shop.clock.advance(3600)
    await asyncio.wait_for(run, 60)
    assert orders(shop.answers()) == [0, 1, 2]


async def test_a_drain_does_not_wait_for_a_parked_job_whose_input_has_ended_and_the_app_has_not(
    shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The drain waited until the job woke, of which nobody told it otherwise; or, where the input ended behind it, the checkpoint said that
    the app had ended, and the next start that nothing is read twice, while the job went on.
    """
    first = from_file(shop, tmp_path, shop.sleepy)
    async with started(first):
        await until(
            lambda: (
                jobs(first).get("parked") == 1 and all(each["ended"] for each in first.statistics()["sources"].values())
            )
        )
        await asyncio.wait_for(first.stop(drain=True), 60)
    run = asyncio.create_task((second := from_file(shop, tmp_path, shop.sleepy)).run())
    await until(lambda: jobs(second).get("parked") == 1)
    assert "nothing is read twice" not in caplog.text
    shop.clock.advance(3600)
    await asyncio.wait_for(run, 60)
    await asyncio.wait_for(from_file(shop, tmp_path, shop.sleepy).run(), 60)
    assert "had ended with checkpoint" in caplog.text
    assert "start afresh with --fresh" in caplog.text
    assert orders(shop.answers()) == [0]


async def test_a_start_of_an_app_that_had_ended_but_for_a_blocked_job_says_that_the_job_goes_on(
    shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def other(ctx: Any) -> Any:
        await ctx.wait("paid")

    async with started(app := from_file(shop, tmp_path, shop.sleepy)):
        await until(lambda: jobs(app).get("parked") == 1)
    with pytest.raises(AgentFailed, match=r"at the end of its input: it has no result of job .*, which is blocked"):
        await asyncio.wait_for(from_file(shop, tmp_path, other).run(), 60)  # all that is left is blocked
    caplog.clear()
    run = asyncio.create_task((app := from_file(shop, tmp_path, shop.sleepy)).run())
    await until(lambda: jobs(app).get("parked") == 1)
    (said,) = [message for message in caplog.messages if "nothing is read twice" in message]
    assert said.startswith("app shop had read all its inputs with checkpoint")
    assert said.endswith("nothing is read twice, and open jobs go on: 1")
    shop.clock.advance(3600)
    await asyncio.wait_for(run, 60)
    assert orders(shop.answers()) == [0]


def from_file(shop: Shop, folder: Path, function: Callable[..., Any]) -> App:
    """An app whose one ticket is in a file, and sleeps."""
    from sabot import files

    path = folder / "tickets.ndjson"
    path.write_text(json.dumps({"customer": "ann", "order": 0, "sleeps": True}) + "\n")
    app = App("shop", shop.url, state=str(shop.directory), clock=shop.clock)
    app.agent(files(str(path)), name="handle", key="customer", sink="answers", durable=True)(function)
    return app


@pytest.mark.one_in(2, "a quarter of a second of a core each")
@pytest.mark.parametrize("key", ["customer", None])
async def test_parked_jobs_leave_the_garbage_collector_nothing_to_look_at(shop: Shop, key: str | None) -> None:
    """Each left a call, with a key two empty deques and their owner, and after a restart what the journal had said of it: with 100,000 of
    them a full collection held the event loop for 200 ms.
    """

    def tracked() -> Counter[str]:
        gc.collect()
        return Counter(type(each).__name__ for each in gc.get_objects())

    async def rest(app: App, count: int) -> None:
        await until(lambda: jobs(app)["parked"] == count)
        await checkpoint(app)

    async with started(app := shop.app(shop.sleepy, key=key)):
        shop.ticket("-", 0, sleeps=True)
        await rest(app, 1)
        before = tracked()
        shop.tickets({"customer": n, "order": n, "sleeps": True} for n in range(300))
        await rest(app, 301)
        assert {name: more for name, more in (tracked() - before).items() if more >= 300} == {}
    async with started(app := shop.app(shop.sleepy, key=key)):
        await rest(app, 301)
        assert {name: more for name, more in (tracked() - before).items() if more >= 300} == {}


async def test_all_mailboxes_of_an_app_have_one_bound(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        waiting_rows.MailRoom.__init__, "__kwdefaults__", {"capacity_rows": 3, "capacity_bytes": 1 << 20}
    )
    app = shop.app(shop.sleepy)
    async with started(app):
        for customer in ("ann", "bob"):
            shop.ticket(customer, customer, sleeps=True)
        await until(lambda: jobs(app)["parked"] == 2)
        for order in range(3):
            for customer in ("ann", "bob"):
                shop.ticket(customer, order)
        await until(lambda: figures(app)["mailbox_rows"] == 3)
        await checkpoint(app)
        await until(lambda: figures(app)["rows"] > 0)  # and the source is held
        shop.clock.advance(3600)
        await until(lambda: len(shop.answers()) == 8)
    assert sorted(map(str, shop.calls)) == ["0", "0", "1", "1", "2", "2", "ann", "bob"]


async def test_a_job_that_a_client_begins_in_the_journal_of_an_app_says_why_it_waits(shop: Shop) -> None:
    """It stayed queued, and only the log of the app said why."""
    app = shop.app(shop.sleepy)
    async with started(app):
        client = JobClient(str(shop.directory), name="shop")
        handle = await client.start("handle", {"order": 1})
        assert (await client.jobs.get(handle.job_id)).waits == (
            "no worker that runs has agent shop.handle (jobs of an App begin with the records of its agents: write one)"
        )
        await handle.cancel()


async def test_a_job_of_another_agent_stands_in_the_order_of_its_key(shop: Shop) -> None:
    app = App("shop", shop.url, state=str(shop.directory), checkpoint_interval=3600, clock=shop.clock)

    @app.agent("lookups", key="customer", durable=True)
    async def count(ctx: Any) -> Any:
        n = (await ctx.state().get("n") or 0) + 1
        await ctx.state().put("n", n)
        await ctx.sleep("1h")
        return {"n": n, "from": ctx.message["from"]}

    @app.agent("tickets", key="order", sink="answers", durable=True, concurrency=4)
    async def ask(ctx: Any) -> Any:
        said = await ctx.child(count, {"customer": ctx.message["customer"], "from": ctx.message["order"]})
        return {"order": ctx.message["order"], "said": said}

    async with started(app):
        shop.ticket("ann", 1)
        await until(lambda: jobs(app)["parked"] == 2)
        shop.ticket("ann", 2)
        await until(lambda: jobs(app)["parked"] == 3)  # the second child waits behind the first one
        shop.clock.advance(3600)
        await until(lambda: orders(shop.answers()) == [1])
        await until(lambda: jobs(app)["parked"] == 2)
        shop.clock.advance(3600)
        await until(lambda: orders(shop.answers()) == [1, 2])
    assert [each["said"] for each in shop.answers()] == [{"n": 1, "from": 1}, {"n": 2, "from": 2}]


@pytest.mark.one_in(3, "a quarter of a second of a core each")
@pytest.mark.parametrize("outlives", [True, False])
@pytest.mark.parametrize("covered", [True, False])
async def test_a_child_that_waits_behind_its_key_when_its_parent_has_ended_begins_once_after_a_restart(
    shop: Shop, covered: bool, outlives: bool
) -> None:
    """It waited in memory, to be asked for again by its parent; one that had ended asked for nothing, and the child was lost."""

    def build() -> App:
        app = App("shop", shop.url, state=str(shop.directory), checkpoint_interval=3600, clock=shop.clock)

        @app.agent("lookups", key="customer", durable=True)
        async def look(ctx: Any) -> None:
            await ctx.sleep("1h")
            await ctx.call(shop.refund, ctx.message["order"])

        @app.agent("tickets", sink="answers", durable=True, concurrency=4, children=ChildLimits(outlive=outlives))
        async def ask(ctx: Any) -> Any:
            looking = asyncio.ensure_future(ctx.child(look, ctx.message))
            await (looking if ctx.message["order"] == 1 else asyncio.sleep(0))
            return ctx.message

        return app

    app = build()
    await app.start()
    shop.ticket("ann", 1)
    await until(lambda: jobs(app)["parked"] == 2)
    shop.ticket("ann", 2)
    await until(lambda: orders(shop.answers()) == [2])
    if covered:
        await checkpoint(app)
    await crash(app)
    for refunded in ([1], [1, 2])[: 1 + outlives]:
        app = build()
        async with started(app):  # each in a life of its own
            await until(partial(_parks, app))
            shop.clock.advance(3600)
            await until(lambda refunded=refunded: shop.calls == refunded)  # type: ignore[misc]
    app = build()
    async with started(app):
        shop.ticket("eve", 3)  # who comes behind all that the restart has brought back
        await until(lambda: 3 in orders(shop.answers()))
    assert shop.calls == [1, 2][: 1 + outlives]


def _parks(app: App) -> bool:
    return jobs(app)["parked"] > 0


async def test_a_child_that_waits_behind_its_key_sleeps_from_its_turn_on_and_may_be_given_up(shop: Shop) -> None:
    app = App("shop", shop.url, state=str(shop.directory), checkpoint_interval=3600, clock=shop.clock)

    @app.agent("lookups", key="customer", durable=True)
    async def look(ctx: Any) -> None:
        await ctx.sleep("1h")
        await ctx.call(shop.refund, ctx.message["order"])

    @app.agent("tickets", sink="answers", durable=True, concurrency=4, children=ChildLimits(outlive=True))
    async def ask(ctx: Any) -> Any:
        if ctx.message["order"] != 2:
            await ctx.child(look, ctx.message)
            return ctx.message
        try:
            async with asyncio.timeout(60):
                await ctx.child(look, ctx.message)
        except TimeoutError:
            return {"order": "given up"}

    async with started(app):
        for order in (1, 2, 3):
            shop.ticket("ann", order)
            await until(lambda order=order: jobs(app)["parked"] == order + 1)  # type: ignore[misc]
        shop.clock.advance(60)
        await until(lambda: orders(shop.answers()) == ["given up"])
        shop.clock.advance(3540)
        await until(lambda: orders(shop.answers()) == ["given up", 1])
        await until(lambda: jobs(app)["parked"] == 2)  # the third child, which has its hour before it, and its parent
        shop.clock.advance(3599)
        await until(lambda: jobs(app)["running"] == 0)
        assert shop.calls == [1]
        shop.clock.advance(1)
        await until(lambda: orders(shop.answers()) == ["given up", 1, 3])
    assert shop.calls == [1, 3]


@pytest.mark.slow  # half a second of a core
async def test_an_agent_whose_mailbox_has_another_record_under_the_id_of_an_open_job_fails_at_the_start(
    shop: Shop,
) -> None:
    """The start never ended: it looked at the same row of the mailbox for ever."""
    app = shop.app(shop.sleepy, job_id="order", on_error="fail")
    await app.start()
    shop.ticket("ann", 1, sleeps=True)
    await until(lambda: jobs(app)["parked"] == 1)
    shop.ticket("ann", 2, sleeps=True)
    shop.ticket("ann", 2, text="something else")
    await until(lambda: figures(app)["mailbox_rows"] == 2)
    await checkpoint(app)
    shop.clock.advance(3600)
    await until(lambda: orders(shop.answers()) == [1] and jobs(app)["parked"] == 1)
    await crash(app)
    app = shop.app(shop.sleepy, job_id="order", on_error="fail")
    with pytest.raises(AgentFailed, match=r"job shop\.handle/order=2: it began with another record"):
        await bounded(app.run())
    async with started(shop.app(shop.sleepy, job_id="order", on_error="skip")):
        shop.clock.advance(3600)
        await until(lambda: 2 in orders(shop.answers()) and shop.letters())
    assert shop.calls == [1, 2]
    assert [dict(each.headers)["sabot.error"] for each in shop.letters()] == [b"InputChanged"]


@pytest.mark.slow  # half a second of a core
async def test_the_row_of_a_job_that_has_begun_leaves_its_mailbox_at_the_restore(shop: Shop) -> None:
    """It stayed there until the turn of its key came to it, behind the parked job: a checkpoint meanwhile covered its job and had the row
    still, from which the job began anew after the next crash, and the refund was made twice.
    """
    app = shop.app(shop.sleepy)
    await app.start()
    shop.ticket("ann", 1, sleeps=True)
    await until(lambda: jobs(app)["parked"] == 1)
    shop.ticket("ann", 2)
    shop.ticket("ann", 3, sleeps=True)
    await until(lambda: figures(app)["mailbox_rows"] == 2)
    await checkpoint(app)
    shop.clock.advance(3600)
    await until(lambda: orders(shop.answers()) == [1, 2] and jobs(app)["parked"] == 1)
    await crash(app)
    app = shop.app(shop.sleepy)
    await app.start()
    await until(lambda: orders(shop.answers()) == [1, 2, 1, 2] and jobs(app)["parked"] == 1)
    assert figures(app)["mailbox_rows"] == 0
    await checkpoint(app)
    await crash(app)
    app = shop.app(shop.sleepy)
    async with started(app):
        await until(lambda: jobs(app)["parked"] == 1)
        shop.clock.advance(3600)
        await until(lambda: 3 in orders(shop.answers()))
    assert shop.calls == [1, 2, 3]


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("restarts", [False, True])
async def test_a_child_that_failed_is_tried_again_over_what_it_has_done(shop: Shop, restarts: bool) -> None:
    """The next attempt of its parent began it as a new job, whose refund was made again; after a restart it was taken for one that is
    known, and never began.
    """
    mended = {"now": False}

    def build() -> App:
        app = App("shop", shop.url, state=str(shop.directory), checkpoint_interval=3600, clock=shop.clock)

        @app.agent("refunds", durable=True, on_error="skip")
        async def pay(ctx: Any) -> Any:
            said = await ctx.call(shop.refund, ctx.message)
            if restarts:
                await ctx.sleep("1h")
            if not mended["now"]:
                raise ValueError("not today")
            return said

        @app.agent("tickets", sink="answers", durable=True, on_error="retry", retries=3, backoff=0)
        async def ask(ctx: Any) -> Any:
            try:
                return await ctx.child(pay, ctx.message["order"])
            except EffectError:
                mended["now"] = True
                raise

        return app

    shop.ticket("ann", 1)
    if restarts:
        app = build()
        await app.start()
        await until(lambda: jobs(app)["parked"] == 2)
        await crash(app)
    app = build()
    async with started(app):
        await until(lambda: not restarts or jobs(app)["parked"] == 2)
        shop.clock.advance(3600)
        await until(lambda: shop.answers())
    assert shop.answers() == ["refunded 1"]
    assert shop.calls == [1]


async def test_an_agent_that_begins_itself_has_a_bound_and_a_cancel_ends_all_that_it_has_begun(shop: Shop) -> None:
    app = App("shop", shop.url, state=str(shop.directory), checkpoint_interval=3600, clock=shop.clock)

    @app.agent("tickets", sink="answers", durable=True, children=ChildLimits(max_depth=2))
    async def ask(ctx: Any) -> Any:
        try:
            return await ctx.child(ask, ctx.message)
        except EffectError as error:
            if ctx.message["customer"] == "ann":
                return f"{error.type} {error.message}"
            await ctx.wait("never")

    async with started(app):
        shop.ticket("ann", 1)
        await until(lambda: len(shop.answers()) == 3)
        shop.ticket("bob", 2)
        await until(lambda: jobs(app)["parked"] == 3)
        await checkpoint(app)  # so that all of it is in the journal
        root = min((job.job_id for job in await app.jobs.find(statuses=["running", "waiting_action"])), key=len)
        await app.jobs.cancel(root, "enough")
        await until(lambda: not jobs(app)["parked"] + jobs(app)["running"])
        await checkpoint(app)
    (said,) = set(shop.answers())
    assert said.startswith(
        "DepthExceeded shop.ask > shop.ask > shop.ask > shop.ask is not begun: jobs of shop.ask may be 2"
    )
    assert [job.status for job in await app.jobs.find() if job.job_id.startswith(root)] == ["cancelled"] * 3


@pytest.mark.parametrize("between", [False, True])
async def test_a_child_that_would_wait_for_a_job_above_it_is_refused(shop: Shop, between: bool) -> None:
    """Each of them waited for the other, and nothing said so: the key had no other job any more."""
    app = App("shop", shop.url, state=str(shop.directory), checkpoint_interval=3600, clock=shop.clock)

    @app.agent("tickets", key="customer", sink="answers", durable=True)
    async def ask(ctx: Any) -> Any:
        if ctx.message["customer"] == "eve":
            return "another key"
        said = [await ctx.child(ask, {**ctx.message, "customer": "eve"})]
        try:
            said.append(await ctx.child(relay if between else ask, ctx.message))
        except EffectError as error:
            said.append(error.message)
        return said

    @app.agent("relayed", durable=True, on_error="skip")
    async def relay(ctx: Any) -> Any:
        return await ctx.child(ask, ctx.message)

    async with started(app):
        shop.ticket("ann", 1)
        await until(lambda: len(shop.answers()) == 2)
    first, (second, refused) = shop.answers()
    assert first == second == "another key"
    assert "ctx.child: shop.ask has one job of customer 'ann' at a time, and that is job shop.ask/" in refused
    assert "/tickets/0/0, which would wait for this child" in refused


# -- errors -------------------------------------------------------------------------------------------------------------


async def test_a_failed_job_is_a_dead_letter_with_its_id_and_comes_again_after_a_restore_without_a_call(
    shop: Shop,
) -> None:
    shop.fails.add(2)
    runs: list[int] = []

    async def counted(ctx: Any) -> Any:
        runs.append(ctx.message["order"])
        return await shop.handle(ctx)

    app = shop.app(counted, on_error="skip")
    await app.start()
    shop.ticket("ann", 1)
    await until(lambda: shop.answers())
    await checkpoint(app)
    shop.ticket("ann", 2)
    shop.ticket("ann", 3)
    await until(lambda: orders(shop.answers()) == [1, 3])
    await crash(app)
    app = shop.app(counted, on_error="skip")
    async with started(app):
        await until(lambda: orders(shop.answers()) == [1, 3, 3])
    assert shop.calls == [1, 2, 3]
    assert runs == [1, 2, 3, 3]  # a replay runs the function of the job that succeeded, and not of the one that failed
    first, second = (dict(each.headers) for each in shop.letters())
    assert first["sabot.job"] == second["sabot.job"]
    assert first["sabot.error"] == second["sabot.error"] == b"ValueError"
    assert first["sabot.message"] == second["sabot.message"]


async def test_a_dead_letter_that_is_sent_again_is_the_same_job(shop: Shop) -> None:
    worse = {"now": True}

    async def twice(ctx: Any) -> Any:
        said = await ctx.call(shop.refund, ctx.message["order"])
        if worse["now"]:
            raise ValueError("not today")
        return {"order": ctx.message["order"], "said": said, "headers": [name for name, _ in ctx.headers]}

    app = shop.app(twice, on_error="skip")
    async with started(app):
        shop.ticket("ann", 1)
        await until(lambda: shop.letters())
        letter = shop.letters()[0]
        worse["now"] = False
        for _ in range(8):  # what a job has done that failed is kept for its dead letter
            await checkpoint(app)
        own = letter.headers[: [name for name, _ in letter.headers].index("sabot.topic")]
        MemoryBroker.get(shop.url).publish("tickets", [letter.payload], headers=own)
        await until(lambda: shop.answers())
    assert shop.calls == [1]  # refunded once
    assert shop.answers() == [{"order": 1, "said": "refunded 1", "headers": []}]


async def test_the_dead_letter_of_a_child_that_is_sent_again_makes_no_effect_again(shop: Shop) -> None:
    """It was another job, as its id is that of a job of its parent: the refund was made twice, and its input was the JSON."""
    app = App("shop", shop.url, state=str(shop.directory), checkpoint_interval=3600, clock=shop.clock)

    @app.agent("refunds", durable=True, on_error="skip")
    async def pay(ctx: Any) -> Any:
        await ctx.call(shop.refund, ctx.message)
        raise ValueError("not today")

    @app.agent("tickets", sink="answers", durable=True)
    async def ask(ctx: Any) -> Any:
        try:
            return await ctx.child(pay, ctx.message["order"])
        except EffectError as error:
            return error.type

    broker = MemoryBroker.get(shop.url)
    async with started(app):
        shop.ticket("ann", 1)
        await until(lambda: shop.answers() and broker.records("refunds.dlq"))
        for sent in (1, 2):  # a letter of a letter says the same
            letter = broker.records("refunds.dlq")[-1]
            own = letter.headers[: [name for name, _ in letter.headers].index("sabot.topic")]
            broker.publish("refunds", [letter.payload], headers=own)
            await until(lambda sent=sent: len(broker.records("refunds.dlq")) == 1 + sent)
            facts = dict(broker.records("refunds.dlq")[-1].headers)
            assert b"a child, whose parent knows that it has failed" in facts["sabot.message"]
    assert (shop.calls, shop.answers()) == ([1], ["ValueError"])


async def test_attempts_of_a_job_keep_its_results(shop: Shop) -> None:
    attempts: list[int] = []

    async def flaky(ctx: Any) -> Any:
        said = await ctx.call(shop.refund, ctx.message["order"])
        attempts.append(ctx.attempt)
        if len(attempts) < 3:
            raise OSError("not yet")
        return {"order": ctx.message["order"], "said": said}

    app = shop.app(flaky, on_error="retry", retries=5, backoff=0)
    async with started(app):
        shop.ticket("ann", 1)
        await until(lambda: shop.answers())
    assert attempts == [1, 2, 3]
    assert shop.calls == [1]


async def test_a_job_that_runs_longer_than_its_timeout_is_a_dead_letter_and_its_key_goes_on(shop: Shop) -> None:
    hangs, calls = asyncio.Event(), []

    @tool(effect="read")
    async def look(order: int) -> int:
        calls.append(order)
        if order == 1:
            await hangs.wait()
        return order

    async def function(ctx: Any) -> Any:
        await ctx.sleep("1h")  # parked: this takes none of its time
        return {"order": await ctx.call(look, ctx.message["order"])}

    app = shop.app(function, timeout="30s", on_error="skip")
    async with started(app):
        for order in (1, 2):
            shop.ticket("ann", order)
        await until(lambda: figures(app)["parked"] == 1)
        shop.clock.advance(3600)
        await until(lambda: calls == [1])
        shop.clock.advance(30)
        await until(lambda: len(shop.letters()) == 1)
        await until(lambda: figures(app)["parked"] == 1)
        shop.clock.advance(3600)
        await until(lambda: orders(shop.answers()) == [2])
    headers = dict(shop.letters()[0].headers)
    assert headers["sabot.error"] == b"TimeoutError"
    assert b"ran longer than timeout=30s" in headers["sabot.message"]


async def test_no_more_jobs_begin_in_a_second_than_rate_says(shop: Shop) -> None:
    begun: list[int] = []

    async def function(ctx: Any) -> Any:
        begun.append(ctx.message["order"])
        return ctx.message

    app = shop.app(function, key=None, rate="100/s", concurrency=8)
    async with started(app):
        shop.tickets({"customer": "ann", "order": order} for order in range(20))
        await until(lambda: len(begun) == 5)  # what comes in 50 ms may begin at once
        for more in range(6, 9):
            shop.clock.advance(0.01)
            await until(lambda more=more: len(begun) >= more)
            assert len(begun) == more
        while len(begun) < 20:
            shop.clock.advance(0.05)
            await asyncio.sleep(0.002)
        await until(lambda: len(shop.answers()) == 20)


async def test_an_agent_that_failed_tries_its_job_once_more_at_the_next_start(shop: Shop) -> None:
    mended = {"now": False}

    async def broken(ctx: Any) -> Any:
        said = await ctx.call(shop.refund, ctx.message["order"])
        if not mended["now"]:
            raise RuntimeError("a bug")
        return {"order": ctx.message["order"], "said": said}

    shop.ticket("ann", 1)
    app = shop.app(broken)
    with pytest.raises(AgentFailed, match=r"tickets\[0\]@0 .*a bug"):
        await asyncio.wait_for(app.run(), 60)
    app = shop.app(broken)
    with pytest.raises(AgentFailed, match="a bug"):
        await asyncio.wait_for(app.run(), 60)
    mended["now"] = True
    async with started(shop.app(broken)):
        await until(lambda: shop.answers())
    assert shop.calls == [1]


async def test_a_job_whose_function_asks_something_else_is_blocked_and_holds_its_key_only(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    app = shop.app(shop.sleepy)
    await app.start()
    shop.ticket("ann", 0, sleeps=True)
    await until(lambda: jobs(app)["parked"] == 1)
    await app.stop()

    async def other(ctx: Any) -> Any:
        await ctx.call(shop.refund, "something else")
        return {"order": ctx.message["order"]}

    app = shop.app(other)
    async with started(app):
        await until(lambda: jobs(app)["blocked"])
        shop.ticket("ann", 1)
        shop.ticket("bob", 2)
        await until(lambda: orders(shop.answers()) == [2])
        assert figures(app)["blocked"] == 1
        assert "something else" not in shop.calls[:-1]
        await until(lambda: figures(app)["mailbox_rows"] == 1)
        assert figures(app)["behind_blocked"] == 1
        shop.ticket("ann", 3)
        await until(lambda: figures(app)["behind_blocked"] == 2)
        (told,) = [message for message in caplog.messages if "wait behind job" in message]
        assert "agent shop.handle: rows for customer 'ann' wait behind job" in told
        assert "which is blocked" in told
    app = shop.app(shop.sleepy)
    async with started(app):
        await until(lambda: jobs(app)["parked"] == 1)
        shop.clock.advance(3600)
        await until(lambda: orders(shop.answers()) == [2, 0, 1, 3])


# -- which job a record is ----------------------------------------------------------------------------------------------


async def test_the_same_request_is_one_job_whoever_sends_it_again(shop: Shop) -> None:
    app = shop.app(shop.handle, key=None, job_id="order")
    async with started(app):
        for order in (1, 2, 1):
            shop.ticket("ann", order)
        await until(lambda: len(shop.answers()) == 2)
        shop.ticket("ann", 2)
        shop.ticket("ann", 3)
        await until(lambda: len(shop.answers()) == 3)
        await until(lambda: figures(app)["duplicates"] == 2)
    assert sorted(shop.calls) == [1, 2, 3]
    async with started(shop.app(shop.handle, key=None, job_id="order")):
        shop.ticket("ann", 3)
        shop.ticket("ann", 4)
        await until(lambda: len(shop.answers()) == 4)
    assert sorted(shop.calls) == [1, 2, 3, 4]


async def test_a_request_is_known_for_as_long_as_dedupe_says_and_then_it_is_a_new_one(shop: Shop) -> None:
    app = shop.app(shop.handle, key=None, job_id="order", dedupe="1h")

    def is_known(order: int) -> bool:
        reader = SqliteReader(shop.directory)
        try:
            return reader.job(f"shop.handle/order={order}") is not None
        finally:
            reader.close()

    async def trimmed(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await checkpoint(app)

    async with started(app):
        shop.ticket("ann", 1)
        await until(lambda: len(shop.answers()) == 1)
        shop.clock.advance(1800)
        shop.ticket("ann", 2)
        await until(lambda: len(shop.answers()) == 2)
        shop.clock.advance(1799)
        await trimmed(lambda: not shop.entries())
        assert is_known(1)
        shop.ticket("ann", 1)
        await until(lambda: figures(app)["duplicates"] == 1)
        shop.clock.advance(2)
        await trimmed(lambda: not is_known(1))
        assert is_known(2)
        shop.ticket("ann", 2)
        shop.ticket("ann", 1)
        await until(lambda: len(shop.answers()) == 3 and figures(app)["duplicates"] == 2)
    assert shop.calls == [1, 2, 1]


async def test_another_record_under_the_id_of_a_job_is_refused(shop: Shop) -> None:
    app = shop.app(shop.handle, key=None, job_id="order", on_error="skip")
    async with started(app):
        shop.ticket("ann", 1)
        await until(lambda: shop.answers())
        shop.ticket("bob", 1)
        MemoryBroker.get(shop.url).publish("tickets", [{"customer": "ann"}])
        await until(lambda: len(shop.letters()) == 2)
    assert {dict(each.headers)["sabot.error"] for each in shop.letters()} == {b"DataError", b"InputChanged"}
    assert shop.calls == [1]


async def test_rows_that_agents_hand_to_each_other_are_jobs_too(shop: Shop) -> None:
    seen: list[Any] = []

    def build() -> App:
        app = App("shop", shop.url, state=str(shop.directory), checkpoint_interval=3600, clock=shop.clock)

        @app.agent(key="customer", sink="answers", durable=True)
        async def second(ctx: Any) -> Any:
            seen.append(ctx.headers)
            return {"order": ctx.message["order"], "said": await ctx.call(shop.refund, ctx.message["order"])}

        @app.agent("tickets", key="customer", sink=second, durable=True)
        async def first(ctx: Any) -> Any:
            for half in "ab":
                yield {**ctx.message, "order": f"{ctx.message['order']}{half}"}

        return app

    app = build()
    await app.start()
    shop.ticket("ann", 1)
    await until(lambda: len(shop.answers()) == 2)
    await checkpoint(app)
    shop.ticket("ann", 2)
    await until(lambda: len(shop.answers()) == 4)
    await crash(app)
    async with started(build()):
        await until(lambda: len(shop.answers()) == 6)
    assert shop.calls == ["1a", "1b", "2a", "2b"]
    assert orders(shop.answers()) == ["1a", "1b", "2a", "2b", "2a", "2b"]
    assert set(seen) == {()}
    ids = {entry.job for entry in shop.entries() if isinstance(entry, Begin)}
    assert sum(each.startswith("shop.second/shop.first/") for each in ids) >= 2


async def test_a_memory_log_that_begins_again_is_another_log(shop: Shop) -> None:
    app = shop.app(shop.sleepy, concurrency=1)
    await app.start()
    shop.ticket("ann", 0, sleeps=True)
    await until(lambda: jobs(app)["parked"] == 1)
    await app.stop()
    MemoryBroker.get(shop.url).reset()
    shop.ticket("ann", 5)  # where the other one was
    async with started(app := shop.app(shop.sleepy, concurrency=1)):
        await until(lambda: figures(app)["mailbox_rows"] == 1)
        shop.clock.advance(3600)
        await until(lambda: orders(shop.answers()) == [0, 5])


# -- records are run again on purpose ------------------------------------------------------------------------------------


@pytest.mark.one_in(2, "a quarter of a second of a core each")
@pytest.mark.parametrize("job_id", [None, "order"])
async def test_records_are_run_again_as_new_jobs_where_one_asks_for_it(shop: Shop, job_id: str | None) -> None:
    def again() -> App:
        app = shop.app(shop.sleepy, job_id=job_id)
        app.configure(reprocess=["handle"])
        return app

    async with started(app := shop.app(shop.sleepy, job_id=job_id)):
        for order in (1, 2):
            shop.ticket("ann", order)
        shop.ticket("bob", 3, sleeps=True)
        await until(lambda: len(shop.answers()) == 2 and figures(app)["parked"] == 1)

    app = again()
    await app.start()
    await until(lambda: len(shop.answers()) == 4 and figures(app)["mailbox_rows"] == 1)
    assert [(each["order"], each["count"]) for each in shop.answers()] == [(1, 1), (2, 2), (1, 3), (2, 4)]
    await crash(app)  # no checkpoint knows of it: who asks again gets the same jobs
    async with started(app := again()):
        await until(lambda: len(shop.answers()) == 6 and figures(app)["mailbox_rows"] == 1)
        assert shop.calls == [1, 2, 1, 2]
        await checkpoint(app)
        assert app.spec.reprocess == set()  # a restart goes on from that one

    async with started(app := shop.app(shop.sleepy, job_id=job_id)):  # which goes on with them
        shop.ticket("ann", 4)
        shop.clock.advance(3600)
        await until(lambda: 4 in shop.calls and shop.calls.count(3) == 1 and figures(app)["parked"] == 1)
        shop.clock.advance(3600)
        await until(lambda: shop.calls.count(3) == 2)
    assert sorted(shop.calls) == [1, 1, 2, 2, 3, 3, 4]


async def test_what_cannot_be_run_again_is_refused_by_name(shop: Shop) -> None:
    def app(name: str) -> App:
        app = shop.app(shop.handle, sink=None)
        app.agent("plain", name="plain")(lambda ctx: None)
        app.agent(name="below", durable=True)(below := lambda ctx: None)
        app.agent("others", name="above", durable=True, sink=below)(shop.handle)
        app.configure(reprocess=[name])
        return app

    for name, words in (
        ("handle", "leave --reprocess out"),
        ("plain", "there are: shop.handle"),
        ("nobody", "no durable agent"),
        ("below", "but rows of shop.above"),
    ):
        with pytest.raises(UserError) as refused:
            await app(name).start()
        assert words in str(refused.value), str(refused.value)


# -- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": True, "job_id": "order"}, "batch=True"),
        ({"batch": True, "mailbox": 5}, "with batch=True"),
        ({"batch": True, "durable": False}, "one batch at a time"),
        ({"on_timer": lambda timer, ctx: None}, "ctx.sleep"),
        ({"timeout": 0}, "timeout=0"),
        ({"rate": "often"}, "rate"),
        ({"mailbox": 0}, "mailbox=0"),
        ({"mailbox_full": "drop"}, "mailbox_full='drop'"),
        ({"job_id": ""}, "job_id=''"),
        ({"key": None, "mailbox": 5}, "without key="),
        ({"durable": False, "mailbox": 5}, "durable=True"),
        ({"durable": 1}, "True or False"),
    ],
)
def test_options_that_do_not_go_together_are_refused(shop: Shop, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as refused:
        shop.app(shop.handle, **options)
    assert words in str(refused.value)


@pytest.mark.parametrize("dedupe", [0, "0s", -1, "a week", True, float("inf")])
def test_a_dedupe_that_is_no_time_is_refused_by_name(dedupe: Any) -> None:
    with pytest.raises(UserError, match="dedupe"):
        App("shop", dedupe=dedupe)


async def test_a_durable_agent_without_a_place_for_its_journal_is_refused(shop: Shop, tmp_path: Path) -> None:
    elsewhere = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "checkpoints"
    for settings, words in (
        ({}, "App(..., state=DIRECTORY)"),
        ({"state": "memory"}, "App(..., state=DIRECTORY)"),
        ({"journal": str(shop.directory)}, "no checkpoints"),
        ({"state": str(shop.directory), "checkpoint_dir": elsewhere}, "object store"),
        ({"state": str(shop.directory), "journal": "ftp://somewhere"}, "no journal has such an address"),
    ):
        app = App("shop", shop.url, **settings)
        app.agent("tickets", durable=True)(shop.handle)
        with pytest.raises(UserError) as refused:
            await app.start()
        assert words in str(refused.value)


async def test_a_journal_in_memory_is_enough_for_a_script(shop: Shop) -> None:
    app = App("shop", shop.url, journal="memory", clock=shop.clock)
    app.agent("tickets", key=None, sink="answers", durable=True)(shop.handle)
    for _ in range(2):
        async with started(app):
            shop.ticket("ann", 1)
            await until(lambda: shop.answers())
    assert set(shop.calls) == {1}


@pytest.mark.slow  # half a second of a core
async def test_rows_that_nothing_tells_apart_are_refused_and_job_id_is_the_fix(shop: Shop, tmp_path: Path) -> None:
    def fed_by_agent(job_id: str | None, durable: bool) -> App:
        app = App("shop", shop.url, state=str(shop.directory))

        @app.agent(durable=True, job_id=job_id)
        async def second(ctx: Any) -> None:
            """Nothing."""

        @app.agent("tickets", sink=second, durable=durable)
        async def first(ctx: Any) -> Any:
            return ctx.message

        return app

    with pytest.raises(UserError, match=r"agent shop\.second is durable, but its rows come from agent shop\.first"):
        await fed_by_agent(None, False).start()
    assert not (shop.directory / "journal").exists()
    for job_id, durable in (("order", False), (None, True)):
        async with started(fed_by_agent(job_id, durable)):
            pass

    app = App("shop", shop.url, state=str(shop.directory))

    @app.agent(durable=True)
    async def third(ctx: Any) -> None:
        """Nothing."""

    app.stream("rows", schema={"n": "int64"}).to(third)
    with pytest.raises(UserError, match="its rows come from a stream"):
        await app.start()

    (tmp_path / "rows.csv").write_text("n\n1\n")
    from sabot import files

    app = App("shop", shop.url, state=str(shop.directory))
    app.agent(files(str(tmp_path / "rows.csv")), name="csv", durable=True)(shop.handle)
    with pytest.raises(UserError, match=r"records of .*rows\.csv.* have no identity that lasts"):
        await app.start()


async def test_state_that_is_gone_while_the_journal_stays_is_refused_and_the_other_way_round(shop: Shop) -> None:
    app = shop.app(shop.handle)
    async with started(app):
        shop.ticket("ann", 1)
        await until(lambda: shop.answers())
    (shop.directory / "checkpoints").rename(shop.directory / "away")
    with pytest.raises(UserError, match=r"no checkpoint in .*/checkpoints contains them"):
        await shop.app(shop.handle).start()
    shutil.rmtree(shop.directory / "checkpoints")
    (shop.directory / "away").rename(shop.directory / "checkpoints")
    (shop.directory / "journal").rename(shop.directory / "elsewhere")
    with pytest.raises(OtherJournal):
        await shop.app(shop.handle).start()
    assert not (shop.directory / "journal").exists(), (
        "the refused start has left an empty one, where the user's copy belongs"
    )
    (shop.directory / "elsewhere").rename(shop.directory / "journal")
    with sqlite3.connect(shop.directory / "journal" / "journal.db") as database:
        database.execute("DELETE FROM entries")
        database.execute("UPDATE meta SET value = 0 WHERE name = 'trimmed'")
    with pytest.raises(CorruptJournal, match="entries 0 to 3 are missing"):
        await shop.app(shop.handle).start()
    with sqlite3.connect(shop.directory / "journal" / "journal.db") as database:
        database.execute("UPDATE log_end SET place = 0")  # as in a copy of before
    with pytest.raises(OtherJournal, match="ends at 0"):
        await shop.app(shop.handle).start()
    assert shop.calls == [1]


@pytest.mark.slow  # half a second of a core
async def test_fresh_forgets_effects_only_where_one_says_so(shop: Shop) -> None:
    async with started(shop.app(shop.handle)):
        shop.ticket("ann", 1)
        await until(lambda: shop.answers())
    app = shop.app(shop.handle)
    app.configure(fresh=True)
    with pytest.raises(UserError, match="--fresh --forget-effects"):
        await app.start()
    assert list((shop.directory / "checkpoints").rglob("*.json")), "the refused start has removed the checkpoints"
    app = shop.app(shop.handle)
    app.configure(forget_effects=True)
    with pytest.raises(UserError, match="they go together"):
        await app.start()
    app = shop.app(shop.handle)
    app.configure(fresh=True, forget_effects=True)
    async with started(app):
        await until(lambda: len(shop.answers()) == 2)
    assert shop.calls == [1, 1]


@pytest.mark.slow  # half a second of a core
async def test_open_jobs_of_an_agent_that_is_gone_refuse_the_start_by_name(shop: Shop) -> None:
    app = shop.app(shop.sleepy)
    async with started(app):
        shop.ticket("ann", 0, sleeps=True)
        await until(lambda: jobs(app)["parked"] == 1)
    other = App("shop", shop.url, state=str(shop.directory), clock=shop.clock)
    other.agent("tickets", name="handler")(shop.handle)
    with pytest.raises(UserError, match=r"not durable agents of this program: shop\.handle \(1\)"):
        await other.start()
    async with started(app := shop.app(shop.sleepy)):
        shop.clock.advance(3600)
        await until(lambda: shop.answers())
        await checkpoint(app)
    async with started(other):  # no job of the agent that is gone is open
        pass


async def test_a_journal_has_one_owner(shop: Shop, tmp_path: Path) -> None:
    journal = str(tmp_path / "journal")
    apps = []
    for name in ("one", "two"):
        app = App(name, shop.url, state=str(tmp_path / name), journal=journal)
        app.agent("tickets", durable=True)(shop.handle)
        apps.append(app)
    async with started(apps[0]):
        with pytest.raises(AppLocked, match=r"the journal in .* belongs to process"):
            await apps[1].start()


@pytest.mark.slow  # half a second of a core
async def test_the_journal_keeps_what_a_checkpoint_may_need_and_no_more(shop: Shop) -> None:
    app = shop.app(shop.sleepy)
    async with started(app):
        shop.ticket("bob", 0, sleeps=True)
        for order in range(1, 6):
            shop.ticket("ann", order)
        await until(lambda: len(shop.answers()) == 5)
        for _ in range(8):
            await checkpoint(app)

        await until(lambda: left(shop) == {"0"})
        assert not any(isinstance(entry, End | Answer) for entry in shop.entries())


def left(shop: Shop) -> set[str]:
    """The places of the records whose jobs have entries in the journal."""
    return {entry.job.rpartition("/")[2] for entry in shop.entries()}


async def savepoint(shop: Shop, place: Path) -> None:
    """As `sabot savepoint create` asks for it."""
    await bounded(asyncio.to_thread(ask, str(shop.directory / "checkpoints"), {"savepoint": str(place)}, 60.0))


def storage_of(shop: Shop) -> CheckpointStorage:
    return CheckpointStorage(shop.directory / "checkpoints")


async def many_checkpoints(app: App) -> None:
    """So many that the first ones are not retained, and what only they need is trimmed."""
    for _ in range(4):
        await checkpoint(app)


@pytest.mark.slow  # half a second of a core
async def test_a_savepoint_keeps_the_journal_until_it_is_dropped(shop: Shop, tmp_path: Path) -> None:
    place = tmp_path / "kept"
    app = shop.app(shop.handle)
    async with started(app):
        shop.ticket("ann", 1)
        await until(lambda: len(shop.answers()) == 1)
        await savepoint(shop, place)
        shop.ticket("ann", 2)
        await until(lambda: len(shop.answers()) == 2)
        await many_checkpoints(app)
        await until(lambda: left(shop) == {"1"})
    back = shop.app(shop.handle)
    back.configure(from_=str(place), redeliver="skip")
    async with started(back):
        await until(lambda: jobs(back)["ended"] == 1)
        await many_checkpoints(back)
        storage_of(shop).drop_savepoint(place)
        await many_checkpoints(back)
        await until(lambda: left(shop) == set())
    assert shop.calls == [1, 2], "the job behind the savepoint was made again"
    assert not (place / "checkpoints").exists()


@pytest.mark.one_in(2, "half a second of a core each")
@pytest.mark.parametrize("copied", [False, True])
async def test_a_start_from_a_savepoint_says_how_far_its_journal_has_gone_and_whether_it_is_an_older_copy(
    shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture, copied: bool
) -> None:
    """A savepoint names its journal and does not hold it; an older copy of the journal was taken without a word."""
    caplog.set_level("INFO")
    place, journal = tmp_path / "kept", shop.directory / "journal"
    async with started(app := shop.app(shop.handle)):
        await savepoint(shop, place)
        shop.ticket("ann", 1)
        await until(lambda: len(shop.answers()) == 1)
    shutil.copytree(journal, tmp_path / "copy")
    async with started(app := shop.app(shop.handle)):
        shop.ticket("ann", 2)
        await until(lambda: len(shop.answers()) == 2)
        await checkpoint(app)
    words = ["savepoint", "create", str(shop.directory), "--to", str(tmp_path / "later")]
    made = CliRunner().invoke(commands.cli, words)
    told = rf"is kept in .*/later\nthe journal of durable agents is not in it: a start needs journal .*{journal}"
    assert re.search(told, made.output)

    if copied:
        shutil.rmtree(journal)
        (tmp_path / "copy").rename(journal)
    back = shop.app(shop.handle)
    back.configure(from_=str(place), redeliver="skip")
    async with started(back):
        await until(lambda: jobs(back)["ended"] == 2)
    said = [each.message for each in caplog.records]
    assert any(re.search(r"does not contain the journal: .* goes on, with \d+ entries since", each) for each in said)
    assert any("it is an older copy" in each for each in said) is copied
    assert shop.calls == ([1, 2, 2] if copied else [1, 2])


@pytest.mark.slow  # half a second of a core
async def test_a_start_from_a_savepoint_whose_journal_was_trimmed_is_refused(shop: Shop, tmp_path: Path) -> None:
    place = tmp_path / "kept"
    app = shop.app(shop.handle)
    async with started(app):
        await savepoint(shop, place)
        shop.ticket("ann", 1)
        await until(lambda: len(shop.answers()) == 1)
        forget_savepoint(LocalPlace(shop.directory / "checkpoints"), place)
        await many_checkpoints(app)
        await until(lambda: left(shop) == set())
    back = shop.app(shop.handle)
    back.configure(from_=str(place))
    with pytest.raises(OtherJournal, match=r"the checkpoint needs those from 0 on.*newer checkpoint or savepoint"):
        await back.start()
    async with started(shop.app(shop.handle)):  # from its newest one
        shop.ticket("ann", 2)
        await until(lambda: len(shop.answers()) == 2)
    assert shop.calls == [1, 2]


@pytest.mark.slow  # half a second of a core
async def test_nothing_is_trimmed_while_nobody_knows_what_savepoints_need(shop: Shop, tmp_path: Path) -> None:
    app = shop.app(shop.handle)
    async with started(app):
        await savepoint(shop, tmp_path / "kept")
        (note,) = (shop.directory / "checkpoints" / "copies").iterdir()
        whole = note.read_bytes()
        note.write_bytes(whole[:-9])
        shop.ticket("ann", 1)
        await until(lambda: len(shop.answers()) == 1)
        await many_checkpoints(app)
        shutil.rmtree(tmp_path / "kept")
        note.write_bytes(whole)
        await many_checkpoints(app)  # behind which the first trims are over
        assert left(shop) == {"0"}
        with pytest.raises(UserError, match="holds no savepoint"):
            storage_of(shop).drop_savepoint(tmp_path / "kept")
        note.write_bytes(whole.replace(b'"made_ms":', b'"made_ms":-'))  # long ago
        await many_checkpoints(app)
        await until(lambda: left(shop) == set())
    assert not note.exists()
