"""`ctx.child` makes ids such as `job~1`. A record that a stranger writes may name no job so: its end would settle an effect of the
job above.

A refund of 5,000 waited for a person. A request with the id `r-1~1` ended, and its result was the result of the refund: nobody had
approved it, nothing was paid, and the job went on as if both had happened. The same way it ended timers and took a child's place.
"""

import asyncio
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sabot import App
from sabot.agents import ConstraintPolicy, PolicyEngine, tool
from sabot.connectors.memory import MemoryBroker
from tools.agent_tools import started, until

RULES = [ConstraintPolicy(["pay"], field="amount", max=100, otherwise="ask")]


class Desk:
    """An agent whose jobs wait for something, and whose requests say how their jobs are called."""

    def __init__(self, url: str, folder: Path, **how: Any) -> None:
        self.paid: list[int] = []
        self.broker = MemoryBroker.get(url)
        self.app = app = App("desk", url, state=str(folder), checkpoint_interval=3600, policy=PolicyEngine(RULES))

        @tool
        async def pay(amount: int) -> str:
            self.paid.append(amount)
            return f"paid {amount}"

        @app.agent("requests", name="handle", sink="answers", durable=True, on_error="skip", dead_letter="bad", **how)
        async def handle(ctx: Any) -> Any:
            match ctx.message["what"]:
                case "pay":
                    return await ctx.call(pay, 5_000)
                case "sleep":
                    return await ctx.sleep("1h")
                case "child":
                    return await ctx.child(handle, {"what": "small"})
                case "small":
                    return await ctx.call(pay, 5)
                case "wait":
                    return await ctx.wait("go")
            return "of a stranger"

    def letters(self) -> list[bytes]:
        return [dict(each.headers)["sabot.message"] for each in self.broker.records("bad")]

    def ask(self, name: str, what: str) -> None:
        self.broker.publish("requests", [{"id": name, "what": what}])

    async def waits(self) -> str:
        """The id of the first job, once something is open in it."""
        found: list[str] = []
        while not found:
            await asyncio.sleep(0.01)
            found = [each.job_id for each in await self.app.jobs.find() if each.open]
        return found[0]


@pytest.mark.parametrize("what", ["pay", "sleep", "wait"])
async def test_a_request_with_the_id_of_a_child_settles_no_effect(memory_url: str, tmp_path: Path, what: str) -> None:
    desk = Desk(memory_url, tmp_path, job_id="id")
    async with started(desk.app):
        desk.ask("r-1", what)
        job = await desk.waits()
        desk.ask("r-1~1", "free")
        await until(desk.letters)
        assert b"field 'id' names job desk.handle/id=r-1~1, which is the id of a child" in desk.letters()[0]
        [record] = await desk.app.jobs.find()
        assert (record.job_id, record.ended, len(record.open)) == (job, False, 1)
    assert desk.paid == []
    assert desk.broker.records("answers") == []


async def test_a_request_with_the_id_of_a_child_takes_no_place_of_it(memory_url: str, tmp_path: Path) -> None:
    desk = Desk(memory_url, tmp_path, job_id="id")
    async with started(desk.app):
        desk.ask("r-1~1", "free")
        await until(desk.letters)
        desk.ask("r-1", "child")
        await until(lambda: len(desk.broker.records("answers")) == 2)
    assert [each.value for each in desk.broker.records("answers")] == ["paid 5", "paid 5"]  # the child and its parent
    assert desk.paid == [5]


@pytest.mark.parametrize("name", ["r-1~01", "r-1~", "~~", "r~x", "r-1~1~", "r-1~0"])
async def test_other_ids_are_those_of_jobs(memory_url: str, tmp_path: Path, name: str) -> None:
    desk = Desk(memory_url, tmp_path, job_id="id")
    async with started(desk.app):
        desk.ask(name, "small")
        await until(lambda: desk.paid)
        assert [each.job_id for each in await desk.app.jobs.find()] == [f"desk.handle/id={name}"]


async def test_a_header_names_no_child_of_the_same_agent(memory_url: str, tmp_path: Path) -> None:
    """The header `sabot.job` comes from dead letters, and whoever writes into a topic may give it."""
    desk = Desk(memory_url, tmp_path)
    async with started(desk.app):
        desk.ask("", "pay")
        job = await desk.waits()
        desk.broker.publish("requests", [{"what": "free"}], headers=[("sabot.job", f"{job}~1".encode())])
        await until(desk.letters)
        assert b"a child, whose parent knows" in desk.letters()[0]
        [record] = await desk.app.jobs.find()
        assert not record.ended
    assert desk.paid == []


async def jobs_of(app: App, count: int) -> list[Any]:
    """Its jobs, once they are so many: a job runs before it can be found."""
    found: list[Any] = []
    while len(found) < count:
        await asyncio.sleep(0.01)
        found = await app.jobs.find()
    return found


async def test_a_header_names_no_child_in_place_of_a_batch(memory_url: str, tmp_path: Path) -> None:
    app = App("desk", memory_url, state=str(tmp_path), checkpoint_interval=3600)
    broker, seen = MemoryBroker.get(memory_url), list[int]()

    @app.agent("requests", name="handle", batch=True, durable=True, schema={"n": "int64"})
    async def handle(batch: pa.RecordBatch, ctx: Any) -> None:
        seen.extend(batch["n"].to_pylist())
        await ctx.sleep("1h")

    async with started(app):
        broker.publish("requests", [{"n": 1}])
        [job] = await jobs_of(app, 1)
        broker.publish("requests", [{"n": 2}], headers=[("sabot.job", f"{job.job_id}~1".encode())])
        assert not any("~" in each.job_id for each in await jobs_of(app, 2))
    assert seen == [1, 2]
