"""Results of durable agents: what has no form in their format, and what a job makes itself."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest
from unit.connectors.test_sink_floats import NAN, told_by_agents
from unit.engine.runtime.test_formats import LINES, ORDERS, ROWS

from sabot import App
from sabot.connectors.memory import MemoryBroker
from sabot.errors import EffectError, UserError
from sabot.llm import ExecutionEngine, ScriptedProvider, tool
from tools.agent_tools import publish, records, started, until, values


async def test_a_result_of_a_durable_agent_is_told_of(memory_url: str, tmp_path: Path, caplog: Any) -> None:
    app = App("shop", broker=memory_url, state=str(tmp_path / "state"))

    @app.agent("orders", sink="scores", durable=True)
    async def score(ctx: Any) -> Any:
        return {"x": NAN}

    publish(app, "orders", [{"n": 1}])
    async with started(app):
        await until(lambda: app.statistics()["operators"]["shop.score"].get("nulled") == 1)
    [told] = told_by_agents(caplog)
    assert "agent shop.score: 'x' of its result for job " in told


async def test_a_durable_agent_says_what_becomes_of_nan(memory_url: str, tmp_path: Path, caplog: Any) -> None:
    app = App("shop", broker=memory_url, state=str(tmp_path / "state"))

    @app.agent("orders", sink="meant", nan="null", durable=True)
    async def meant(ctx: Any) -> Any:
        return {"x": NAN}

    @app.agent("orders", sink="refused", nan="fail", on_error="skip", durable=True)
    async def refused(ctx: Any) -> Any:
        return {"n": ctx.message["n"], "x": NAN if ctx.message["n"] == 1 else 1.0}

    publish(app, "orders", [{"n": 1}, {"n": 2}])
    async with started(app):
        await until(lambda: len(values(app, "meant")) == 2 and len(values(app, "refused")) == 1)
        await until(lambda: len(values(app, "orders.dlq")) == 1)
    assert values(app, "refused") == [{"n": 2, "x": 1.0}]
    assert values(app, "orders.dlq") == [{"n": 1}]
    [told] = told_by_agents(caplog)
    assert "agent shop.refused: UserError: 'x' of its result for " in told
    assert "it is a dead letter" in told


async def test_what_a_job_makes_itself_is_json_and_comes_back_as_json_out_of_a_dead_letter(
    memory_url: str, tmp_path: Path
) -> None:
    """The first message of a job is CSV, that with which it goes on is not, nor is that of a child, whose dead letter is refused."""
    app = App("shop", memory_url, state=str(tmp_path / "state"), dedupe="7d", checkpoint_interval=3600)
    seen: list[Any] = []
    worse = {"now": True}

    @app.agent("lines", format="csv", schema=ORDERS, key="name", durable=True, on_error="skip", sink="done")
    async def lines(ctx: Any) -> Any:
        seen.append(ctx.message)
        if worse["now"] and ctx.message["id"] in (1, 20, 30):
            raise ValueError("not today")
        if ctx.message["id"] == 2:
            ctx.continue_as({"id": 20, "name": ctx.message["name"], "more": [1]})
        if ctx.message["id"] == 3:
            with suppress(EffectError):
                await ctx.child(lines, {"id": 30, "name": "child"})
        return {"id": ctx.message["id"], "headers": [name for name, _ in ctx.headers]}

    publish(app, "lines", LINES[1:4])
    async with started(app):
        await until(lambda: len(records(app, "lines.dlq")) == 3, "the dead letters")
        await until(lambda: len(records(app, "done")) == 1, "the job that went well")
        worse["now"] = False
        letters = sorted(records(app, "lines.dlq"), key=lambda letter: letter.payload or b"")
        for letter in letters:
            own = letter.headers[: [name for name, _ in letter.headers].index("sabot.topic")]
            MemoryBroker.get(memory_url).publish("lines", [letter.payload], headers=own)
        await until(lambda: len(records(app, "done")) == 3, "the jobs that were sent again")
        await until(lambda: len(records(app, "lines.dlq")) == 4, "the child that was sent again")
    went_on, child = {"id": 20, "name": "n2", "more": [1]}, {"id": 30, "name": "child"}
    assert letters[0].payload == LINES[1]
    assert [json.loads(letter.payload or b"") for letter in letters[1:]] == [went_on, child]
    assert seen.count(ROWS[1]) == seen.count(went_on) == 2
    assert seen.count(child) == 1
    assert json.loads(records(app, "lines.dlq")[-1].payload or b"") == child
    assert sorted(row["id"] for row in values(app, "done")) == [1, 3, 20]
    assert [row["headers"] for row in values(app, "done")] == [[]] * 3


@tool
def book(amount: int) -> None:
    """Books an amount."""
    BOOKED.append(amount)


BOOKED: list[int] = []


class Booked(pydantic.BaseModel):
    amount: int

    @pydantic.field_validator("amount")
    @classmethod
    def checked(cls, amount: int) -> int:
        book(amount)
        return amount


class Swallowed(Booked):
    @pydantic.field_validator("amount")
    @classmethod
    def checked(cls, amount: int) -> int:
        with suppress(UserError):
            book(amount)
        return amount


class Written(pydantic.BaseModel):
    amount: int

    @pydantic.field_serializer("amount")
    def booked(self, amount: int) -> int:
        book(amount)
        return amount


class Asked(msgspec.Struct):
    amount: int

    def __post_init__(self) -> None:
        asyncio.run(ENGINE.complete("how much?"))


MODEL = ScriptedProvider("much")
ENGINE = ExecutionEngine(MODEL)


@pytest.mark.parametrize("output", [Booked, Swallowed, Written, Asked, list[Booked]])
def test_an_example_of_an_output_calls_no_tool_and_no_model(memory_url: str, output: Any) -> None:
    """The example that tells whether a sink can write the answers is nobody's answer."""
    BOOKED.clear()
    app = App("shop", broker=memory_url, journal="memory")
    app.llm_agent("questions", ExecutionEngine(ScriptedProvider("")), output=output, sink="answers")
    assert (BOOKED, MODEL.requests) == ([], [])


def test_an_output_that_no_sink_can_write_is_refused_as_before(memory_url: str) -> None:
    class Broken(pydantic.BaseModel):
        amount: int

        @pydantic.field_serializer("amount")
        def broken(self, amount: int) -> int:
            raise ValueError("no amount")

    app = App("shop", broker=memory_url, journal="memory")
    with pytest.raises(UserError, match=r"the output of type .*Broken cannot be written: .*no amount") as caught:
        app.llm_agent("questions", ExecutionEngine(ScriptedProvider("")), output=Broken, sink="answers")
    assert "reply=" in caught.value.hint
