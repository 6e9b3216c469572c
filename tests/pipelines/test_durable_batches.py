"""Durable batch agents: which rows make a job, what survives a crash however the source cuts its batches then, and what is refused."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from sabot import App, NdjsonSource, RowErrors, UserError
from sabot.connectors.memory import MemoryBroker
from sabot.engine.runtime.agents.source import AgentSource
from sabot.errors import AgentFailed, CheckpointFailed
from sabot.journal.entries import Begin, End
from sabot.journal.sqlite import SqliteReader
from sabot.llm import tool
from sabot.testing import ManualClock
from tools.agent_tools import checkpoint, started, until


class Shop:
    """An app in a directory, again and again, and the calls that its tool has got: the ids of a batch each."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.directory = directory
        self.clock = ManualClock(1_000_000.0)
        self.calls: list[list[int]] = []

        @tool(effect="unsafe")
        async def charge(ids: pa.RecordBatch) -> Any:
            self.calls.append(ids.column("id").to_pylist())
            return ids.append_column("paid", pc.multiply(ids.column("id"), 10))

        self.charge_tool = charge

    async def charge(self, batch: pa.RecordBatch, ctx: Any) -> Any:
        """Charges all rows by one call; where a row says so, an hour later."""
        if "sleeps" in batch.schema.names and pc.any(batch.column("sleeps")).as_py():
            await ctx.sleep("1h")
        return await ctx.call(self.charge_tool, batch.select(["id"]))

    async def slow(self, batch: pa.RecordBatch, ctx: Any) -> Any:
        """As `charge`, and runs until the clock is moved."""
        await ctx.sleep("500ms")
        return await self.charge(batch, ctx)

    def app(self, function: Callable[..., Any] | None = None, **options: Any) -> App:
        app = App("shop", self.url, state=str(self.directory), checkpoint_interval=3600, clock=self.clock)
        schema = {"id": "int64", "sleeps": "bool"}
        wiring = {"batch": True, "sink": "paid", "durable": True, "schema": schema, **options}
        app.agent("orders", name="pay", **wiring)(function or self.charge)
        return app

    def order(self, *ids: Any, headers: Any = (), **more: Any) -> None:
        rows = [each if isinstance(each, dict) else {"id": each, **more} for each in ids]
        MemoryBroker.get(self.url).publish("orders", rows, partition=0, headers=headers)

    def paid(self) -> list[int]:
        return [record.value["id"] for record in MemoryBroker.get(self.url).records("paid")]

    def letters(self) -> list[Any]:
        return MemoryBroker.get(self.url).records("orders.dlq")

    def entries(self, kind: type) -> list[Any]:
        reader = SqliteReader(self.directory)
        try:
            return [entry for _, entry in reader.read() if isinstance(entry, kind)]
        finally:
            reader.close()


@pytest.fixture
def shop(memory_url: str, tmp_path: Path) -> Shop:
    return Shop(memory_url, tmp_path / "state")


async def begin(app: App, shop: Shop) -> None:
    """It runs, and has done an order, 100, of which a checkpoint knows."""
    await app.start()
    shop.order(100)
    await until(lambda: shop.paid() == [100])
    await checkpoint(app)


async def crash(app: App) -> None:
    """The next start finds the journal as it is now, and no later checkpoint than there is."""
    app.agent_runtime.checkpoint_coordinator.refuse("the process died")
    with pytest.raises(CheckpointFailed):
        await app.stop()


def figures(app: App) -> dict[str, Any]:
    found = app.statistics()["operators"]["shop.pay"]
    assert isinstance(found, dict)
    return found


async def asked(app: App) -> Any:
    """The one question that waits for an answer."""
    await until(lambda: app.statistics()["jobs"]["parked"] == 1)
    journal = app.agent_runtime.runner.journal
    assert journal is not None
    await journal.flush()
    (action,) = await app.actions.find(statuses=["pending"])  # type: ignore[list-item]
    return action


def hold_sources(patch: pytest.MonkeyPatch) -> list[AgentSource]:
    """Sources of apps that start now give nothing before they `go_on`."""
    start, held = AgentSource.start, []

    def start_held(source: AgentSource) -> None:
        source.input.pause_for("the test")
        held.append(source)
        start(source)

    patch.setattr(AgentSource, "start", start_held)
    return held


# -- one effect a batch -------------------------------------------------------------------------------------------------


async def test_a_batch_is_one_job_whose_begin_lists_its_rows(shop: Shop) -> None:
    app = shop.app()
    async with started(app):
        shop.order(1, 2, 3)
        await until(lambda: len(shop.paid()) == 3)
    assert shop.calls == [[1, 2, 3]]
    (begin,) = shop.entries(Begin)
    assert begin.job.endswith("/0/0+3")
    (end,) = shop.entries(End)
    assert end.outcome == "succeeded"
    assert len(end.body) < 100, "the output is not stored in the journal"
    assert [record.value["paid"] for record in MemoryBroker.get(shop.url).records("paid")] == [10, 20, 30]


async def test_batches_of_a_restart_are_those_of_the_journal_however_the_source_cuts_them_now(shop: Shop) -> None:
    app = shop.app()
    await begin(app, shop)
    for ids in ((0, 1), (2,), (3, 4, 5)):
        shop.order(*ids)
        await until(lambda ids=ids: ids[-1] in shop.paid())
    await crash(app)
    shop.order(6, 7)  # the source now gives all eight rows at once
    app = shop.app()
    async with started(app):
        await until(lambda: len(shop.paid()) == 15)
        await until(lambda: figures(app)["rows"] == 0)
        assert figures(app)["duplicates"] == 6
    assert shop.calls == [[100], [0, 1], [2], [3, 4, 5], [6, 7]]
    assert sorted(shop.paid()) == sorted([*range(6), *range(8), 100])  # a topic in memory is at least once


async def test_rows_that_waited_and_rows_that_had_begun_come_out_once_behind_a_checkpoint(shop: Shop) -> None:
    """One batch is in the middle of its job, and one waits for it, at the barrier and at the crash: both are in the checkpoint."""
    app = shop.app(shop.slow)
    await app.start()
    shop.order(0, 1, 2)
    await until(lambda: figures(app)["running"] == 1)
    shop.order(3, 4)
    await until(lambda: figures(app)["rows"] == 5)
    await checkpoint(app)
    await crash(app)
    shop.order(5)
    app = shop.app(shop.slow)
    async with started(app):
        await until(lambda: shop.clock.advance(1) or len(shop.paid()) == 6)
        await until(lambda: figures(app)["rows"] == 0)
        assert figures(app)["duplicates"] == 3
    assert sorted(shop.paid()) == [0, 1, 2, 3, 4, 5]
    assert shop.calls[0] == [0, 1, 2]
    assert sorted(row for batch in shop.calls for row in batch) == [0, 1, 2, 3, 4, 5]


@pytest.mark.slow  # half a second of a core
async def test_a_barrier_before_the_rows_of_ended_jobs_are_read_again_forgets_none_of_them(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second life runs the jobs over their history and takes a checkpoint while its source stands before their rows."""
    app = shop.app()
    await begin(app, shop)
    shop.order(0, 1)
    shop.order(2, 3)
    await until(lambda: len(shop.paid()) == 5)
    await crash(app)
    with monkeypatch.context() as patch:
        hold_sources(patch)
        app = shop.app()
        await app.start()
        await until(lambda: len(shop.paid()) == 9)
        await checkpoint(app)
        await crash(app)
    shop.order(4)
    app = shop.app()
    async with started(app):
        await until(lambda: 4 in shop.paid())
        await until(lambda: figures(app)["rows"] == 0)
    assert sorted(row for batch in shop.calls for row in batch) == [0, 1, 2, 3, 4, 100]


@pytest.mark.slow  # half a second of a core
async def test_a_parked_batch_holds_no_other_and_goes_on_after_a_restart(shop: Shop) -> None:
    app = shop.app()
    await app.start()
    shop.order(0, 1, sleeps=True)
    await until(lambda: figures(app)["parked"] == 1)
    shop.order(2)
    await until(lambda: shop.paid() == [2])
    await checkpoint(app)
    assert figures(app)["rows"] == 0  # a parked batch is in the journal
    await crash(app)
    app = shop.app()
    async with started(app):
        await until(lambda: figures(app)["parked"] == 1)
        shop.clock.advance(3600)
        await until(lambda: len(shop.paid()) == 3)
    assert shop.calls == [[2], [0, 1]]
    assert shop.paid() == [2, 0, 1]


async def test_as_many_batches_run_as_concurrency_says(shop: Shop) -> None:
    app = shop.app(shop.slow, concurrency=2)
    async with started(app):
        for number in range(4):
            shop.order(number)
            await until(lambda number=number: figures(app)["rows"] == number + 1)
        await until(lambda: figures(app)["running"] == 2)
        await until(lambda: shop.clock.advance(1) or len(shop.paid()) == 4)
    assert len(shop.calls) == 4


async def test_a_batch_of_many_bytes_is_several_jobs(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sabot.agents.durable.batch_operator._PIECE_BYTES", 200)
    app = shop.app()
    async with started(app):
        shop.order(*range(12))
        await until(lambda: len(shop.paid()) == 12)
    assert len(shop.calls) > 2
    assert [row for batch in shop.calls for row in batch] == list(range(12))


# -- rows that go wrong -------------------------------------------------------------------------------------------------


async def test_all_rows_of_a_failed_batch_are_dead_letters_of_one_job_and_one_of_them_brings_it_back_whole(
    shop: Shop,
) -> None:
    worse = {"now": True}

    async def pay(batch: pa.RecordBatch, ctx: Any) -> Any:
        done = await shop.charge(batch, ctx)
        if worse["now"]:
            raise ValueError("not today")
        return done

    app = shop.app(pay, on_error="skip")
    async with started(app):
        shop.order(0, 1, 2)
        await until(lambda: len(shop.letters()) == 3)
        letters = shop.letters()
        assert {dict(each.headers)["sabot.error"] for each in letters} == {b"ValueError"}
        (job,) = {dict(each.headers)["sabot.job"] for each in letters}
        assert job.endswith(b"/0/0+3")
        worse["now"] = False
        for at, letter in enumerate(letters):  # the second and third come when the job is over
            MemoryBroker.get(shop.url).publish("orders", [letter.payload], partition=0, headers=(("sabot.job", job),))
            await until(lambda: len(shop.paid()) == 3)
            await until(lambda at=at: figures(app)["duplicates"] == at)
        assert figures(app)["rows"] == 0
    assert shop.calls == [[0, 1, 2]]
    assert shop.paid() == [0, 1, 2]


async def test_a_batch_that_was_sent_back_is_one_more_run_however_often_its_rows_are_read(shop: Shop) -> None:
    """The job failed again, and a crash came before a checkpoint: its rows were read again, and it was begun once more."""
    runs: list[int] = []

    async def pay(batch: pa.RecordBatch, ctx: Any) -> Any:
        runs.append(batch.num_rows)
        done = await shop.charge(batch, ctx)
        if batch.num_rows == 3:
            raise ValueError("not today")
        return done

    def send_back(letter: Any) -> None:
        own = letter.headers[: [name for name, _ in letter.headers].index("sabot.topic")]
        MemoryBroker.get(shop.url).publish("orders", [letter.payload], partition=0, headers=own)

    app = shop.app(pay, on_error="skip")
    await begin(app, shop)
    shop.order(0, 1, 2)
    await until(lambda: len(shop.letters()) == 3)
    await checkpoint(app)
    for number in range(3):  # the second and third come when the job has failed again
        send_back(shop.letters()[number])
        await until(lambda: len(shop.letters()) == 6)
        await until(lambda: figures(app)["rows"] == 0)
    assert runs == [1, 3, 3]
    await crash(app)
    app = shop.app(pay, on_error="skip")
    async with started(app):
        shop.order(9)  # behind the rows that are read again
        await until(lambda: 9 in shop.paid())
        await until(lambda: figures(app)["rows"] == 0)
        assert runs == [1, 3, 3, 1]
        send_back(shop.letters()[3])
        await until(lambda: runs == [1, 3, 3, 1, 3])
    assert shop.calls == [[100], [0, 1, 2], [9]]


@pytest.mark.slow  # half a second of a core
async def test_a_row_that_was_sent_back_is_not_lost_with_another_one_whose_content_was_changed(shop: Shop) -> None:
    """The second row was dropped, as one of the job of the first; then that job was refused, and nothing ran for either."""

    async def pay(batch: pa.RecordBatch, ctx: Any) -> Any:
        if batch.num_rows == 3 and not mended:
            raise ValueError("not today")
        return await (shop.charge if batch.num_rows == 3 else shop.slow)(batch, ctx)

    def send_back(letter: Any, payload: Any) -> None:
        own = letter.headers[: [name for name, _ in letter.headers].index("sabot.topic")]
        MemoryBroker.get(shop.url).publish("orders", [payload], partition=0, headers=own)

    mended: list[bool] = []
    async with started(app := shop.app(pay, on_error="skip", concurrency=1)):
        shop.order(0, 1, 2)
        await until(lambda: len(shop.letters()) == 3)
        mended.append(True)
        shop.order(9)  # holds the only place until the clock is moved
        await until(lambda: figures(app)["running"] == 1)
        send_back(shop.letters()[0], {"id": 7})
        await until(lambda: figures(app)["rows"] == 2)
        send_back(shop.letters()[1], shop.letters()[1].payload)
        await until(lambda: figures(app)["rows"] == 3 or figures(app)["duplicates"])
        shop.clock.advance(1)
        await until(lambda: sorted(shop.paid()) == [0, 1, 2, 9])
    assert [letter.value["id"] for letter in shop.letters()] == [0, 1, 2, 7]
    assert dict(shop.letters()[3].headers)["sabot.error"] == b"InputChanged"


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("running", [True, False])
async def test_a_row_with_changed_content_is_not_lost_in_the_job_of_an_unchanged_one(shop: Shop, running: bool) -> None:
    """It was dropped, as one of the rows of the job that ran or waited, and nobody learned that the change had no effect."""
    runs: list[int] = []

    async def pay(batch: pa.RecordBatch, ctx: Any) -> Any:
        runs.append(batch.num_rows)
        if runs == [3]:
            raise ValueError("not today")
        return await shop.slow(batch, ctx)

    def send_back(letter: Any, payload: Any) -> None:
        own = letter.headers[: [name for name, _ in letter.headers].index("sabot.topic")]
        MemoryBroker.get(shop.url).publish("orders", [payload], partition=0, headers=own)

    async with started(app := shop.app(pay, on_error="skip", concurrency=1)):
        shop.order(0, 1, 2)
        await until(lambda: len(shop.letters()) == 3)
        first, second, third = shop.letters()
        if not running:
            shop.order(9)  # holds the only place until the clock is moved
            await until(lambda: runs == [3, 1])
        send_back(first, first.payload)
        await until(lambda: runs == [3, 3] if running else figures(app)["rows"] == 2)
        send_back(second, {"id": 7})
        await until(lambda: len(shop.letters()) == 4 if running else figures(app)["rows"] == 3)
        send_back(third, third.payload)
        await until(lambda: figures(app)["duplicates"] if running else figures(app)["rows"] == 4)
        shop.clock.advance(1)
        await until(lambda: runs[-1] == 3)
        shop.clock.advance(1)
        await until(lambda: {0, 1, 2} <= set(shop.paid()))
        await until(lambda: figures(app)["rows"] == 0)
        assert figures(app)["duplicates"] == 1
    assert [letter.value["id"] for letter in shop.letters()] == [0, 1, 2, 7]
    assert dict(shop.letters()[3].headers)["sabot.error"] == b"InputChanged"


async def test_rows_of_a_forgotten_job_that_come_apart_are_not_lost(shop: Shop) -> None:
    """The first became a job of its own with the id of the forgotten one, and the others were dropped as rows of that job."""
    runs: list[int] = []

    async def pay(batch: pa.RecordBatch, ctx: Any) -> Any:
        runs.append(batch.num_rows)
        return await shop.slow(batch, ctx)

    async with started(app := shop.app(pay, on_error="skip")):
        job = b"shop.pay/0123456789/0/0+2"  # the journal has no such job any more
        for id in (0, 1):
            MemoryBroker.get(shop.url).publish(
                "orders", [{"id": id}], partition=0, headers=(("sabot.job", job), ("sabot.run", b"1"))
            )
            await until(lambda: runs == [1])
        await until(lambda: shop.letters() or figures(app)["duplicates"])
        shop.clock.advance(1)
        await until(lambda: shop.paid() == [0])
    assert [letter.value["id"] for letter in shop.letters()] == [1]
    assert dict(shop.letters()[0].headers)["sabot.error"] == b"InputChanged"


async def test_a_person_who_says_that_a_batch_was_done_says_which_rows_it_gave(shop: Shop) -> None:
    """ctx.call returned None, and the output of the batch was lost in silence."""

    @tool(effect="unsafe")
    async def pay_out(rows: pa.RecordBatch) -> pa.RecordBatch:
        raise TimeoutError("nobody knows")

    async def pay(batch: pa.RecordBatch, ctx: Any) -> Any:
        paid = await ctx.call(pay_out, batch.select(["id"]))
        return paid.filter(pc.greater(paid.column("paid"), 10))

    async with started(app := shop.app(pay)):
        shop.order(1, 2)
        action = await asked(app)
        for rows in (
            {},
            {"result": None},
            {"result": {"id": 1}},
            {"result": [{"id": 1}, 2]},
            {"result": [{"a": 1}, {}]},
        ):
            with pytest.raises(UserError, match="the rows that it gave are no list of objects"):
                await app.actions.resolve(action.resume_token, {"outcome": "done", **rows})
        with pytest.raises(UserError, match="the rows that it gave are no columns"):
            await app.actions.resolve(action.resume_token, {"outcome": "done", "result": [{"id": 1}, {"id": "b"}]})
        rows = [{"id": 1, "paid": 10}, {"id": 2, "paid": 20}]
        await app.actions.resolve(action.resume_token, {"outcome": "done", "result": rows})
        await until(lambda: shop.paid() == [2])
        shop.order(3)
        action = await asked(app)
        await app.actions.resolve(action.resume_token, {"outcome": "not_done"})  # other answers need no rows


async def test_a_failed_batch_is_not_called_after_a_restore_and_its_letters_come_again(shop: Shop) -> None:
    runs: list[Any] = []

    async def pay(batch: pa.RecordBatch, ctx: Any) -> Any:
        runs.append(batch.num_rows)
        done = await shop.charge(batch, ctx)
        if batch.num_rows == 2:
            raise ValueError("never")
        return done

    app = shop.app(pay, on_error="skip")
    await begin(app, shop)
    shop.order(0, 1)
    await until(lambda: len(shop.letters()) == 2)
    await crash(app)
    app = shop.app(pay, on_error="skip")
    async with started(app):
        await until(lambda: len(shop.letters()) == 4)
        await until(lambda: figures(app)["duplicates"] == 2)
    assert (runs, shop.calls) == ([1, 2], [[100], [0, 1]])
    assert [each.value["id"] for each in shop.letters()] == [0, 1, 0, 1]
    assert len({(dict(each.headers)["sabot.job"], dict(each.headers)["sabot.message"]) for each in shop.letters()}) == 1


async def test_an_agent_that_failed_at_a_batch_tries_it_once_more_at_the_next_start(shop: Shop) -> None:
    worse = {"now": True}

    async def pay(batch: pa.RecordBatch, ctx: Any) -> Any:
        done = await shop.charge(batch, ctx)
        if worse["now"]:
            raise ValueError("not today")
        return done

    shop.order(0, 1)
    with pytest.raises(AgentFailed, match=r"orders\[0\]@0 \(2 rows\) .*not today"):
        await asyncio.wait_for(shop.app(pay).run(), 60)
    worse["now"] = False
    shop.order(2)
    app = shop.app(pay)
    async with started(app):
        await until(lambda: len(shop.paid()) == 3)
    assert shop.calls == [[0, 1], [2]]


async def test_rows_that_are_named_as_bad_before_any_effect_are_given_up_alone(shop: Shop) -> None:
    async def pay(batch: pa.RecordBatch, ctx: Any) -> Any:
        bad = [row for row, each in enumerate(batch.column("id").to_pylist()) if each < 0]
        if bad:
            raise RowErrors({bad[0]: "negative"})  # one after the other
        return await shop.charge(batch, ctx)

    app = shop.app(pay)
    await begin(app, shop)
    shop.order(1, -2, 3, -4, 5)
    await until(lambda: len(shop.paid()) == 4)
    await crash(app)
    app = shop.app(pay)
    async with started(app):
        await until(lambda: len(shop.paid()) == 7 and figures(app)["rows"] == 0)
    assert shop.calls == [[100], [1, 3, 5]]
    letters = shop.letters()
    assert [each.value["id"] for each in letters] == [-2, -4] * 2  # in the step that ends the job, like its output
    assert {dict(each.headers)["sabot.message"] for each in letters} == {b"negative"}
    assert not any("sabot.job" in dict(each.headers) for each in letters)  # sent again they are new rows


async def test_rows_that_are_named_as_bad_behind_an_effect_fail_their_batch(shop: Shop) -> None:
    async def pay(batch: pa.RecordBatch, ctx: Any) -> Any:
        await shop.charge(batch, ctx)
        raise RowErrors({0: "too late"})

    app = shop.app(pay, on_error="skip")
    async with started(app):
        shop.order(0, 1)
        await until(lambda: len(shop.letters()) == 2)
    assert shop.calls == [[0, 1]]


async def test_rows_that_cannot_be_decoded_belong_to_no_job(shop: Shop) -> None:
    app = shop.app()
    await begin(app, shop)
    shop.order(0, {"id": "zero"}, 2)
    await until(lambda: len(shop.paid()) == 3)
    await crash(app)
    app = shop.app()
    async with started(app):
        shop.order(3)
        await until(lambda: shop.paid()[-1:] == [3])
    assert shop.calls == [[100], [0, 2], [3]]
    assert len(shop.letters()) == 2  # they come again, as the checkpoint knew nothing of them


async def test_a_log_with_other_rows_than_those_of_a_job_is_refused(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file it is known by its first line which one it is."""
    path = tmp_path / "orders.ndjson"

    def app_of(*ids: int) -> App:
        path.write_text("".join(f'{{"id": {number}}}\n' for number in ids))
        app = App("shop", shop.url, state=str(shop.directory), checkpoint_interval=3600, clock=shop.clock)
        wiring = {"batch": True, "sink": "paid", "durable": True, "schema": {"id": "int64"}}
        app.agent(NdjsonSource(str(path)), name="pay", **wiring)(shop.slow)
        return app

    app = app_of(1, 2, 3)
    with monkeypatch.context() as patch:
        sources = hold_sources(patch)
        await app.start()
        await checkpoint(app)
    for source in sources:
        source.input.resume_for("the test")
    await until(lambda: figures(app)["running"] == 1)
    await crash(app)
    with pytest.raises(
        AgentFailed, match=r"orders.ndjson\[0\]@10 \(1 rows\): a job began with other records at these places"
    ):
        await asyncio.wait_for(app_of(1, 7, 3).run(), 60)


@pytest.mark.slow  # half a second of a core
async def test_a_memory_log_that_begins_again_is_another_log_and_rows_of_the_old_one_keep_their_jobs(
    shop: Shop,
) -> None:
    app = shop.app(shop.slow)
    await app.start()
    shop.order(0, 1)
    await until(lambda: figures(app)["running"] == 1)
    shop.order(2, 3)
    await until(lambda: figures(app)["rows"] == 4)
    await checkpoint(app)
    await crash(app)
    MemoryBroker.get(shop.url).reset()
    for _ in range(2):  # the second one finds in its checkpoint rows of a log that had gone before the first one
        app = shop.app(shop.slow)
        async with started(app):
            await until(lambda app=app: figures(app)["running"] == 1)
            await checkpoint(app)
    shop.order(10, 11)
    app = shop.app(shop.slow)
    async with started(app):
        await until(lambda: shop.clock.advance(1) or len(shop.paid()) == 6)
    assert sorted(row for batch in shop.calls for row in batch) == [0, 1, 2, 3, 10, 11]
    assert [0, 1] in shop.calls


# -- agents behind, and what is refused ---------------------------------------------------------------------------------


async def test_rows_that_a_batch_agent_hands_on_are_jobs_too(shop: Shop) -> None:
    seen: list[int] = []

    @tool(effect="unsafe")
    async def mail(number: int) -> None:
        seen.append(number)

    def app_of() -> App:
        app = App("shop", shop.url, state=str(shop.directory), checkpoint_interval=3600, clock=shop.clock)

        @app.agent(durable=True, sink="paid", concurrency=4)
        async def told(ctx: Any) -> Any:
            await ctx.call(mail, ctx.message["id"])
            return ctx.message

        app.agent("orders", name="pay", batch=True, durable=True, sink=told, schema={"id": "int64"})(shop.charge)
        return app

    app = app_of()
    await app.start()
    await checkpoint(app)  # the first one, which comes by itself, might have what is paid
    shop.order(0, 1, 2)
    await until(lambda: len(shop.paid()) == 3)
    await crash(app)
    app = app_of()
    async with started(app):
        await until(lambda: len(shop.paid()) == 6)
        shop.order(3)
        await until(lambda: len(shop.paid()) == 7)
    assert shop.calls == [[0, 1, 2], [3]]
    assert sorted(seen) == [0, 1, 2, 3]


async def test_an_agent_whose_open_jobs_are_of_the_other_kind_is_refused_by_name(shop: Shop) -> None:
    async def one(ctx: Any) -> None:
        await ctx.sleep("1h")

    app = shop.app()
    await app.start()
    shop.order(0, sleeps=True)
    await until(lambda: figures(app)["parked"] == 1)
    await crash(app)
    app = shop.app(one, batch=False, sink=None)
    with pytest.raises(UserError, match=r"takes records, and its open job .*\+1 has a batch"):
        await app.start()
    await app.stop()


async def test_a_batch_agent_whose_open_jobs_are_records_is_refused_by_name(shop: Shop) -> None:
    async def one(ctx: Any) -> None:
        await ctx.sleep("1h")

    app = shop.app(one, batch=False, sink=None)
    await app.start()
    shop.order(0)
    await until(lambda: figures(app)["parked"] == 1)
    await crash(app)
    app = shop.app()
    with pytest.raises(UserError, match=r"takes batches, and its open job .* has a record"):
        await app.start()
    await app.stop()


async def test_state_is_refused_with_the_fix(shop: Shop) -> None:
    async def count(batch: pa.RecordBatch, ctx: Any) -> None:
        await ctx.state().put("n", 1)

    app = shop.app(count, on_error="skip")
    async with started(app):
        shop.order(0)
        await until(lambda: shop.letters())
    assert b"has no state" in dict(shop.letters()[0].headers)["sabot.message"]


async def test_rows_of_agents_are_refused_as_nothing_says_which_they_are(shop: Shop) -> None:
    app = App("shop", shop.url, state=str(shop.directory))

    @app.agent(batch=True, durable=True)
    async def pay(batch: Any, ctx: Any) -> None: ...

    @app.agent("orders", durable=True, sink=pay)
    async def first(ctx: Any) -> None: ...

    with pytest.raises(UserError, match=r"put a topic between the two"):
        await app.start()


async def test_the_job_of_a_batch_has_the_labels_of_all_of_its_rows(shop: Shop) -> None:
    seen: list[list[str]] = []

    async def look(batch: pa.RecordBatch, ctx: Any) -> Any:
        seen.append(sorted(ctx.labels))
        return await shop.charge(batch, ctx)

    app = shop.app(look, labels=["untrusted"])
    shop.order(1, headers=(("sabot.labels", b"pii,web"),))
    shop.order(2, headers=(("other", b"x"),))
    shop.order(3)
    async with started(app):
        await until(lambda: len(shop.paid()) == 3)
    assert {label for labels in seen for label in labels} == {"pii", "untrusted", "web"}
    assert all("untrusted" in each.labels for each in shop.entries(Begin))
    assert {label for each in shop.entries(End) for label in each.labels} == {"pii", "untrusted", "web"}
