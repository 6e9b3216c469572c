"""What goes wrong around durable agents: deployments in the middle of calls, keys behind which much waits, `finally:` blocks, secrets."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pipelines.test_durable_agents import Shop, checkpoint, crash, figures, jobs, orders

from sabot import App, UserError, secret
from sabot.agents.durable.operator import DurableAgentOperator
from sabot.connectors.memory import MemoryBroker
from sabot.engine.checkpoint import CheckpointStorage
from sabot.errors import EffectError, SabotError
from sabot.jobs import host
from sabot.journal.entries import Intent
from sabot.journal.sqlite import SqliteJournal
from sabot.llm import tool
from tools.agent_tools import crash_image, started, until
from tools.command_line import sabot_says
from tools.secrets_planted import leaks, planted


@pytest.fixture
def shop(memory_url: str, tmp_path: Path) -> Shop:
    return Shop(memory_url, tmp_path / "state")


# -- a deployment -----------------------------------------------------------------------------------------------------------


async def test_a_deployment_while_a_hundred_effects_run_makes_none_of_them_twice(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the calls end in the time that a stop gives them; the others are cut, and a person is asked about each."""
    calls: list[int] = []
    go_on = asyncio.Event()

    @tool(effect="unsafe")
    async def pay(order: int) -> int:
        calls.append(order)
        await (go_on.wait() if order % 2 else asyncio.Event().wait())
        return order

    async def handle(ctx: Any) -> Any:
        return {"order": await ctx.call(pay, ctx.message["order"])}

    async def deployed(ctx: Any) -> Any:
        if ctx.patched("thanks"):
            await ctx.step(lambda: "thanks", effect="read")
        return {"order": await ctx.call(pay, ctx.message["order"])}

    monkeypatch.setitem(host.JobHost.__init__.__kwdefaults__, "stop_grace_s", 0.5)
    app = shop.app(handle, key=None, concurrency=100)
    await app.start()
    for order in range(100):
        shop.ticket("ann", order)
    await until(lambda: len(calls) == 100)
    stopping = asyncio.create_task(app.stop())
    await until(lambda: app.agent_runtime.runner.journal is None or not app.agent_runtime.runner.started)
    go_on.set()
    await stopping
    app = shop.app(deployed, key=None, concurrency=100)
    async with started(app):
        await until(lambda: len(shop.answers()) == 50)
        await until(lambda: jobs(app)["parked"] == 50)
        await checkpoint(app)  # what is read is what is durable
        questions = await app.actions.find()
        assert {each.type for each in questions} == {"in_doubt"}
        for each in questions:
            await app.actions.resolve(each.resume_token, {"outcome": "done", "result": -1})
        await until(lambda: len(shop.answers()) == 100)
    assert sorted(calls) == list(range(100))
    said = orders(shop.answers())
    assert sorted(said[:50]) == list(range(1, 100, 2))
    assert said[50:] == [-1] * 50


# -- order ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # a second of a core, or more
async def test_a_hundred_thousand_records_wait_behind_a_parked_job(shop: Shop) -> None:
    count = 100_000
    app = shop.app(shop.sleepy, mailbox=count)
    await app.start()
    shop.ticket("ann", -1, sleeps=True)
    await until(lambda: jobs(app)["parked"] == 1)
    MemoryBroker.get(shop.url).publish("tickets", [{"customer": "ann", "order": n} for n in range(count)])
    shop.ticket("bob", "another key")
    await until(lambda: figures(app)["mailbox_rows"] == count, patience=120)
    await until(lambda: orders(shop.answers()) == ["another key"])
    assert figures(app)["rows"] == 0  # they are in keyed state, and no checkpoint repeats them
    await checkpoint(app)
    await crash(app)
    app = shop.app(shop.sleepy, mailbox=count)
    async with started(app):
        assert figures(app)["mailbox_rows"] == count
        shop.clock.advance(3600)
        await until(lambda: len(shop.answers()) > 50)
    assert orders(shop.answers())[1:51] == list(range(-1, 49))
    assert len(shop.calls) == len(set(shop.calls))


async def test_what_a_parked_job_does_in_its_finally_reaches_nobody(shop: Shop) -> None:
    """Neither when it is parked, nor at a stop, nor at the next start's parking; behind its wait it counts."""

    async def careful(ctx: Any) -> Any:
        state = ctx.state()
        try:
            await ctx.sleep("1h")
        finally:
            await state.put("left", (await state.get("left") or 0) + 1)
            said = await ctx.call(shop.refund, "in the finally")
        return {"order": await state.get("left"), "said": said}

    app = shop.app(careful)
    async with started(app):
        shop.ticket("ann", 1)
        await until(lambda: jobs(app)["parked"] == 1)
        await checkpoint(app)
        assert not any(isinstance(entry, Intent) and entry.kind == "call" for entry in shop.entries())
    app = shop.app(careful)
    async with started(app):
        await until(lambda: jobs(app)["parked"] == 1)
        shop.clock.advance(3600)
        await until(lambda: shop.answers())
    assert orders(shop.answers()) == [1]
    assert shop.calls == ["in the finally"]


@pytest.mark.slow  # half a second of a core
async def test_parked_jobs_and_what_waits_behind_them_go_on_from_a_savepoint_with_another_parallelism(
    shop: Shop,
) -> None:
    app = shop.app(shop.sleepy)
    async with started(app):
        shop.ticket("ann", 0, sleeps=True)
        await until(lambda: jobs(app)["parked"] == 1)
        for order in (1, 2, 3):
            shop.ticket("ann", order)
        shop.ticket("bob", 4)
        await until(lambda: figures(app)["mailbox_rows"] == 3 and orders(shop.answers()) == [4])
        await checkpoint(app)
        kept = crash_image(shop.directory / "checkpoints", shop.directory.parent / "savepoint")
    app = shop.app(shop.sleepy)
    app.configure(from_=str(kept), parallelism=4, redeliver="skip")
    async with started(app):
        await until(lambda: (jobs(app)["parked"], figures(app)["mailbox_rows"]) == (1, 3))
        shop.ticket("ann", 5)
        shop.ticket("cid", 6)
        await until(lambda: orders(shop.answers()) == [4, 6])
        shop.clock.advance(3600)
        await until(lambda: orders(shop.answers()) == [4, 6, 0, 1, 2, 3, 5])
    assert shop.calls == [4, 6, 0, 1, 2, 3, 5]
    assert [each["count"] for each in shop.answers()] == [1, 1, 1, 2, 3, 4, 5]


# -- dead letters -----------------------------------------------------------------------------------------------------------


async def test_a_letter_that_was_sent_back_is_one_more_run_however_often_its_record_is_read(shop: Shop) -> None:
    """The job failed again, and a crash came before a checkpoint: the record was read again, begun once more, and gave one letter more.
    One that came while the job ran again, and was dropped, did so too.
    """
    runs: list[Any] = []

    async def fails(ctx: Any) -> Any:
        runs.append(ctx.message["order"])
        await ctx.call(shop.refund, ctx.message["order"])
        raise ValueError("not today")

    def send_back(number: int) -> None:
        letter = shop.letters()[number]
        own = letter.headers[: [name for name, _ in letter.headers].index("sabot.topic")]
        MemoryBroker.get(shop.url).publish("tickets", [letter.payload], headers=own)

    app = shop.app(fails, on_error="skip")
    await app.start()
    shop.ticket("ann", 1)
    await until(lambda: len(shop.letters()) == 1)
    await checkpoint(app)
    for _ in range(2):  # its letter came twice, as the crash of another app may have it
        send_back(0)
    await until(lambda: len(shop.letters()) == 2)
    await until(lambda: figures(app)["rows"] == 0)
    assert runs == [1, 1]
    await crash(app)
    app = shop.app(fails, on_error="skip")
    async with started(app):
        shop.ticket("bob", 2)  # behind the record that is read again
        await until(
            lambda: len(shop.letters()) == 4
        )  # at least once: the second one of order 1 again, and that of order 2
        await until(lambda: figures(app)["rows"] == 0)
        assert runs == [1, 1, 2]
        await checkpoint(app)
        send_back(0)
        send_back(1)
        await until(lambda: runs == [1, 1, 2, 1])
        await until(lambda: figures(app)["rows"] == 0)
    assert shop.calls == [1, 2]


async def test_the_letter_of_a_job_that_went_on_with_another_input_is_sent_back(shop: Shop) -> None:
    """It has the last input, and was refused as another record than the one that the job had begun with."""
    broken = {"now": True}

    async def climb(ctx: Any) -> Any:
        order = ctx.message["order"]
        said = await ctx.call(shop.refund, order)
        if order < 3:
            ctx.continue_as({"customer": "ann", "order": order + 1})
        if broken["now"]:
            raise ValueError("not today")
        return {"order": order, "said": said, "headers": [name for name, _ in ctx.headers]}

    def send_back(change: bytes = b"") -> None:
        letter = shop.letters()[0]
        own = letter.headers[: [name for name, _ in letter.headers].index("sabot.topic")]
        MemoryBroker.get(shop.url).publish("tickets", [letter.payload + change], headers=own)

    app = shop.app(climb, on_error="skip")
    await app.start()
    shop.ticket("ann", 1)
    await until(lambda: len(shop.letters()) == 1)
    await checkpoint(app)
    send_back(change=b" ")
    await until(lambda: len(shop.letters()) == 2)
    changed = dict(shop.letters()[1].headers)
    assert changed["sabot.error"] == b"InputChanged", "what somebody has written into a letter is no input of the job"
    broken["now"] = False
    send_back()
    await until(lambda: shop.answers())
    await crash(app)
    async with started(app := shop.app(climb, on_error="skip")):  # both records of the job are read again
        await until(lambda: len(shop.letters()) == 3 and len(shop.answers()) == 2)
        shop.ticket("bob", 3)
        await until(lambda: len(shop.answers()) == 3)
        await until(lambda: figures(app)["rows"] == 0)
    assert shop.answers() == [{"order": 3, "said": "refunded 3", "headers": []}] * 3
    assert shop.calls == [1, 2, 3, 3]


@pytest.mark.one_in(8, "a tenth of a second of a core each")
@pytest.mark.parametrize("changed_first", [True, False])
@pytest.mark.parametrize("key", ["customer", None])
@pytest.mark.parametrize("crashes", [1, 2])
async def test_a_changed_letter_does_not_refuse_the_unchanged_one_that_is_read_with_it(
    shop: Shop, key: str | None, changed_first: bool, crashes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both come back in one batch, while the journal has not been asked which of them the job began with."""
    broken, asked = {"now": True}, []
    asks = DurableAgentOperator.ask_journal

    async def slowly(self: Any, call: Any) -> None:
        asked.append(call.job_id)
        if crashes == 2 and len(asked) == 1:
            await asyncio.sleep(3600)  # until the app crashes
        await asks(self, call)

    async def handle(ctx: Any) -> Any:
        if broken["now"]:
            raise ValueError("not today")
        return {"order": await ctx.call(shop.refund, ctx.message["order"]) and ctx.message["order"]}

    async with started(shop.app(handle, key=key, on_error="skip")):
        shop.ticket("ann", 1)
        await until(lambda: len(shop.letters()) == 1)
    letter = shop.letters()[0]
    own = letter.headers[: [name for name, _ in letter.headers].index("sabot.topic")]
    payloads = [letter.payload + b" ", letter.payload]
    MemoryBroker.get(shop.url).publish("tickets", payloads if changed_first else payloads[::-1], headers=own)
    broken["now"] = False
    monkeypatch.setattr(DurableAgentOperator, "ask_journal", slowly)
    if crashes == 2:
        await (app := shop.app(handle, key=key, on_error="skip")).start()
        await until(lambda: asked)
        await checkpoint(app)
        await crash(app)
    async with started(app := shop.app(handle, key=key, on_error="skip")):
        await until(lambda: shop.answers() and len(shop.letters()) == 2)
        await until(lambda: figures(app)["rows"] == 0)
    assert (shop.answers(), shop.calls) == ([{"order": 1}], [1])
    assert (shop.letters()[1].payload, dict(shop.letters()[1].headers)["sabot.error"]) == (payloads[0], b"InputChanged")


@pytest.mark.one_in(3, "a fifth of a second of a core each")
@pytest.mark.parametrize("changed_first", [True, False])
@pytest.mark.parametrize("crashes", [False, True])
async def test_a_letter_with_a_changed_key_does_not_refuse_the_unchanged_one_in_the_mailbox_of_another_key(
    shop: Shop, changed_first: bool, crashes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turn of both came, while the journal was being asked for one of them: the other one was compared with that one, and refused."""
    broken, asked, answered = {"now": True}, [], asyncio.Event()
    asks = DurableAgentOperator.ask_journal

    async def slowly(self: Any, call: Any) -> None:
        asked.append(call.job_id)
        await answered.wait()
        await asks(self, call)

    async def handle(ctx: Any) -> Any:
        if broken["now"]:
            raise ValueError("not today")
        await ctx.sleep(ctx.message.get("sleeps", 0))
        return {"order": await ctx.call(shop.refund, ctx.message["order"]) and ctx.message["order"]}

    await (app := shop.app(handle, on_error="skip")).start()
    shop.ticket("ann", 1)
    await until(lambda: len(shop.letters()) == 1)
    broken["now"] = False
    shop.ticket("ann", 2, sleeps=7200 if changed_first else 3600)
    shop.ticket("bob", 3, sleeps=3600 if changed_first else 7200)
    await until(lambda: jobs(app)["parked"] == 2)
    letter = shop.letters()[0]
    own = letter.headers[: [name for name, _ in letter.headers].index("sabot.topic")]
    changed = letter.payload.replace(b"ann", b"bob")
    MemoryBroker.get(shop.url).publish("tickets", [changed, letter.payload], headers=own)
    shop.tickets({"customer": customer, "order": order} for customer, order in (("ann", 4), ("bob", 5)))
    await until(lambda: figures(app)["mailbox_rows"] == 4)
    monkeypatch.setattr(DurableAgentOperator, "ask_journal", slowly)
    for count in (1, 2):
        shop.clock.advance(3600)
        await until(lambda count=count: len(shop.answers()) == count and asked)  # type: ignore[misc]
    if crashes:
        await checkpoint(app)
        await crash(app)
        await (app := shop.app(handle, on_error="skip")).start()
    answered.set()
    await until(lambda: {1, 4, 5} <= set(orders(shop.answers())))
    await until(lambda: (figures(app)["mailbox_rows"], figures(app)["rows"]) == (0, 0))
    await app.stop()
    assert sorted(shop.calls) == [1, 2, 3, 4, 5]
    assert [(each.payload, dict(each.headers)["sabot.error"]) for each in shop.letters()[1:]] == [
        (changed, b"InputChanged")
    ]


async def test_a_child_that_went_on_with_another_input_and_failed_is_tried_again_with_that_one(shop: Shop) -> None:
    """Its parent asks for it with the first input, whose function asked for what stood nowhere in the second history."""
    fails = iter([True, False])
    app = shop.app(shop.handle)

    @app.agent("steps", name="climb", durable=True, on_error="skip")
    async def climb(ctx: Any) -> Any:
        said = await ctx.call(shop.refund, ctx.message)
        if ctx.message < 2:
            ctx.continue_as(ctx.message + 1)
        if next(fails):
            raise ValueError("not today")
        return said

    @app.agent("trips", sink="answers", durable=True, on_error="retry", backoff="1ms")
    async def trip(ctx: Any) -> Any:
        return await ctx.child(climb, ctx.message)

    async with started(app):
        MemoryBroker.get(shop.url).publish("trips", [1])
        await until(lambda: shop.answers())
    assert (shop.answers(), shop.calls) == (["refunded 2"], [1, 2])


# -- rows in a checkpoint ---------------------------------------------------------------------------------------------------


async def test_a_checkpoint_repeats_only_the_rows_whose_jobs_have_not_begun(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are in the journal: a file of them cost each checkpoint three syncs."""
    monkeypatch.setitem(host.JobHost.__init__.__kwdefaults__, "stop_grace_s", 0.0)
    gate, looked = asyncio.Event(), []

    @tool(effect="read")
    async def look(order: int) -> int:
        looked.append(order)
        await gate.wait()
        return order

    async def handle(ctx: Any) -> Any:
        return {"order": await ctx.call(look, ctx.message["order"])}

    app = shop.app(handle, key=None, concurrency=2)
    await app.start()
    shop.tickets([{"order": order} for order in (1, 2, 3)])
    await until(lambda: looked == [1, 2] and figures(app)["rows"] == 3)
    await checkpoint(app)
    manifest = CheckpointStorage(shop.directory / "checkpoints").latest()
    assert manifest is not None
    (kept,) = manifest.tasks["agents"].meta["agents"]["shop.handle"]["unfinished"]
    rows = pa.ipc.open_stream(manifest.read_file("agents", kept["file"])).read_all()
    assert rows.column("offset").to_pylist() == [2]
    await crash(app)
    gate.set()
    async with started(app := shop.app(handle, key=None, concurrency=2)):
        await until(lambda: len(shop.answers()) == 3)
        await until(lambda: figures(app)["rows"] == 0)
    assert (looked[:2], sorted(looked[2:])) == ([1, 2], [1, 2, 3])
    assert sorted(orders(shop.answers())) == [1, 2, 3]


# -- jobs that made, or asked for, other jobs -------------------------------------------------------------------------------


async def test_a_row_that_is_handed_on_once_more_is_no_new_job_where_a_checkpoint_covers_the_first_one(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second life the job that had handed the row on waited for a place, while the job of the row was run over its history, and a
    checkpoint covered that one alone. In the third life the row came again, and nothing said that its job was over: a second refund.
    """
    gate = asyncio.Event()
    monkeypatch.setitem(host.JobHost.__init__.__kwdefaults__, "stop_grace_s", 0.0)

    @tool(effect="read")
    async def look(order: int) -> int:
        await gate.wait()
        return order

    def chain(concurrency: int) -> App:
        app = App("shop", shop.url, state=str(shop.directory), checkpoint_interval=3600, clock=shop.clock)

        @app.agent(sink="answers", durable=True)
        async def second(ctx: Any) -> Any:
            return {"order": ctx.message["order"], "said": await ctx.call(shop.refund, ctx.message["order"])}

        @app.agent("tickets", sink=second, durable=True, concurrency=concurrency)
        async def first(ctx: Any) -> Any:
            return ctx.message if ctx.message["order"] else {"order": await ctx.call(look, 0)}

        return app

    app = chain(2)
    await app.start()
    shop.ticket("ann", 0)
    shop.ticket("ann", 1)
    await until(lambda: orders(shop.answers()) == [1])
    await crash(app)
    app = chain(1)  # the job that looks has the only place
    await app.start()
    await until(lambda: orders(shop.answers()) == [1, 1])
    await checkpoint(app)
    await crash(app)
    async with started(app := chain(2)):
        gate.set()
        await until(lambda: 0 in orders(shop.answers()))
        await until(lambda: (jobs(app)["running"], jobs(app)["waiting"]) == (0, 0))
    assert shop.calls == [1, 0]


async def test_a_failed_child_that_the_journal_has_forgotten_is_not_begun_anew(shop: Shop) -> None:
    """Its parent was tried again when the time of `dedupe=` was over: the child had no history, and its effects were made again."""
    app = App("shop", shop.url, state=str(shop.directory), checkpoint_interval=3600, clock=shop.clock, dedupe="60s")

    @app.agent(durable=True, on_error="skip")
    async def child(ctx: Any) -> Any:
        await ctx.call(shop.refund, ctx.message)
        raise ValueError("no")

    @app.agent("tickets", durable=True, on_error="retry", retries=1, backoff="1ms")
    async def handle(ctx: Any) -> Any:
        try:
            await ctx.child("child", ctx.message["order"])
        except EffectError as error:
            if "forgotten" not in error.message:
                await ctx.sleep("1h")
            raise

    async with started(app):
        shop.ticket("ann", 1)
        await until(lambda: jobs(app)["parked"] == 1 and shop.calls)
        await until(lambda: jobs(app)["ended"] == 1)
        shop.clock.advance(61)
        for _ in range(4):
            await checkpoint(app)
        await until(lambda: not any(entry.job.endswith("~1") for entry in shop.entries()))
        shop.clock.advance(3600)
        await until(lambda: shop.letters())
        assert (
            "its history has been deleted from the journal" in dict(shop.letters()[0].headers)["sabot.message"].decode()
        )
    assert shop.calls == [1]


@pytest.mark.slow  # half a second of a core
async def test_an_agent_that_has_lost_its_key_is_refused_while_rows_wait_in_its_mailboxes(shop: Shop) -> None:
    """All but the first row of each mailbox waited for ever."""
    app = shop.app(shop.sleepy)
    await app.start()
    for order in range(3):
        shop.ticket("ann", order, sleeps=not order)
    await until(lambda: figures(app)["mailbox_rows"] == 2)
    await app.stop()
    with pytest.raises(UserError, match=r"has no key=, and 2 records wait .*keep the old key="):
        await shop.app(shop.sleepy, key=None).start()
    async with started(shop.app(shop.sleepy)):
        shop.clock.advance(3600)
        await until(lambda: orders(shop.answers()) == [0, 1, 2])


# -- the journal's disk -------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # a second of a core, or more
async def test_a_full_disk_under_the_journal_ends_the_run_and_nothing_is_done_without_its_intent(shop: Shop) -> None:
    app = shop.app(shop.handle, concurrency=1)
    await app.start()
    journal = app.agent_runtime.runner.journal
    assert isinstance(journal, SqliteJournal)
    (pages,) = journal._writing.execute("PRAGMA page_count").fetchone()
    journal._writing.execute(f"PRAGMA max_page_count = {pages + 20}")
    for order in range(200):
        shop.ticket("ann", order, text="x" * 2000)
    await until(lambda: app.statistics()["failure"])
    assert "disk is full" in str(app.statistics()["failure"])
    intents = {entry.job for entry in shop.entries() if isinstance(entry, Intent)}
    assert 0 < len(shop.calls) <= len(intents) < 200
    with pytest.raises(SabotError):
        await app.stop()
    app = shop.app(shop.handle, concurrency=1, on_error="skip")
    async with started(app):
        await until(lambda: jobs(app)["parked"] or orders(shop.answers())[-1:] == [199])
        await checkpoint(app)  # what is read is what is durable
        for action in await app.actions.find():  # of the call whose result found no room
            await app.actions.resolve(action.resume_token, {"outcome": "done", "result": "refunded by hand"})
        await until(lambda: orders(shop.answers())[-1:] == [199])
    assert len(shop.calls) == len(set(shop.calls))
    assert sorted(set(orders(shop.answers()))) == list(range(200))


# -- secrets ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # half a second of a core
async def test_a_secret_is_in_no_journal_log_answer_or_letter(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    value = planted()
    monkeypatch.setenv("BANK_KEY", value)
    used: list[str] = []

    @tool(effect="unsafe")
    async def pay(order: int, key: str) -> Any:
        used.append(key)
        if order == 2:
            raise ValueError(f"{key} is no key of ours")
        if order == 3:
            raise ConnectionError(f"the way to {key} is cut")
        return {"order": order, "with": key, "in": [f"a header with {key}", key.encode()]}

    async def handle(ctx: Any) -> Any:
        try:
            said = await ctx.call(pay, ctx.message["order"], key=secret("BANK_KEY"))
        except EffectError as error:
            await ctx.state().put("error", error.message)
            raise ValueError(f"failed: {error}") from error
        await ctx.state().put("said", said)
        return {"order": ctx.message["order"], "said": str(said)}

    app = shop.app(handle, on_error="skip")
    async with started(app):
        for order in (1, 2, 3):
            shop.ticket(f"customer {order}", order)
        await until(lambda: jobs(app)["parked"] == 1)
        await checkpoint(app)  # what is read is what is durable
        (action,) = await app.actions.find()
        await app.actions.resolve(action.resume_token, {"outcome": "abandon"})
        await until(lambda: len(shop.letters()) == 2)
        await checkpoint(app)
        figures_told = repr(app.statistics())
    told = [
        sabot_says(*words, "--journal", str(shop.directory))
        for words in (
            ["actions", "list", "--all"],
            ["jobs", "list"],
            *(["jobs", "show", job] for job in {entry.job for entry in shop.entries()}),
            *(["journal", "show", job] for job in {entry.job for entry in shop.entries()}),
        )
    ]
    assert used == [value] * 3
    assert {each.exit_code for each in told} == {0}
    letters = [(letter.value, letter.headers) for letter in shop.letters()]
    texts = [caplog.text, shop.answers(), letters, figures_told, *(each.output + each.stderr for each in told)]
    assert leaks(shop.directory, *texts, whole=(value,)) == []
