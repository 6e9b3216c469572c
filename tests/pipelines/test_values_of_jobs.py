"""Values that a job gets from its journal: results of steps and tools, of children, its input, and what it returns."""

import dataclasses
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pyarrow as pa
import pydantic
import pytest

from sabot import App
from sabot.agents import ExecutionRequest, RuntimeKernel
from sabot.clock import ManualClock
from sabot.connectors.memory import MemoryBroker
from sabot.errors import CheckpointFailed
from sabot.jobs import values
from sabot.llm import tool
from tools.agent_tools import checkpoint, started, until

EXACT = {
    "price": Decimal("2.50"),
    "id": UUID("0e9d3c1a-5b5e-4c0e-9d3c-1a5b5e4c0e9d"),
    "day": date(2026, 1, 2),
    "time": time(3, 4, 5),
    "naive": datetime(2026, 1, 2, 3),
    "utc": datetime(2026, 1, 2, 3, tzinfo=UTC),
    "plus": datetime(2026, 1, 2, 0, 30, tzinfo=timezone(timedelta(hours=2))),  # in UTC it is another day
    "berlin": datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
    "long": timedelta(days=1, microseconds=1),
    "many": [Decimal("1.0"), {"day": date(2026, 1, 2)}, UUID(int=1)],
    "by_day": {date(2026, 1, 2): Decimal(3)},
    "by_id": {UUID(int=2): "two"},
}


@dataclasses.dataclass
class Order:
    price: Decimal
    sent: datetime


ORDER = Order(Decimal("2.50"), EXACT["plus"])  # type: ignore[arg-type]
AS_DICT = dataclasses.asdict(ORDER)


@tool(effect="read")
def order() -> Order:
    return ORDER


def exact() -> dict[str, Any]:
    return EXACT


async def test_a_job_gets_exact_values_from_steps_children_and_inputs_also_after_a_crash(
    memory_url: str, tmp_path: Path
) -> None:
    seen: list[dict[str, Any]] = []
    clock = ManualClock(1_000_000.0)

    def made() -> App:
        app = App("values", memory_url, state=str(tmp_path / "s"), checkpoint_interval=3600, clock=clock)

        @app.agent("children", name="child", durable=True)
        async def child(ctx: Any) -> Any:
            await ctx.sleep("1h")
            return {"given": ctx.message, "headers": ctx.headers, "own": EXACT}

        @app.agent("asked", name="parent", durable=True, sink="answers")
        async def parent(ctx: Any) -> Any:
            if not isinstance(ctx.message, dict):
                return str(ctx.message)
            if "again" not in ctx.message:
                ctx.continue_as({**EXACT, "again": True})
            found = {"step": await ctx.step(exact), "tool": await ctx.call(order), "input": dict(ctx.message)}
            found["child"] = await ctx.child(child, EXACT)
            seen.append(found)
            return {"ended": True}

        return app

    app = made()
    await app.start()
    MemoryBroker.get(memory_url).publish("asked", [{"text": "go"}])
    await until(lambda: app.statistics()["jobs"]["parked"] == 2)
    app.agent_runtime.checkpoint_coordinator.refuse("the process died")
    with pytest.raises(CheckpointFailed):
        await app.stop()
    async with started(made()):
        clock.advance(3600)
        await until(lambda: MemoryBroker.get(memory_url).records("answers"))
    [found] = seen
    assert repr(found["step"]) == repr(EXACT)
    assert repr(found["tool"]) == repr(AS_DICT)
    assert repr(found["input"]) == repr({**EXACT, "again": True})
    assert {name: repr(each) for name, each in found["child"]["given"].items()} == {
        n: repr(e) for n, e in EXACT.items()
    }
    assert repr(found["child"]["own"]) == repr(EXACT)
    assert found["child"]["headers"] in ([], {})


async def test_a_kernel_gives_exact_values_back(tmp_path: Path) -> None:
    async def handle(ctx: Any) -> Any:
        return {"given": ctx.message, "step": await ctx.step(exact)}

    async with RuntimeKernel(None, handle, journal=tmp_path) as kernel:
        result = await (await kernel.execute(ExecutionRequest(prompt=EXACT))).result()
    assert repr(result.output) == repr({"given": EXACT, "step": EXACT})


@pytest.mark.parametrize(
    ("value", "content"),
    [
        (pa.table({"name": ["tea"], "price": [2.5]}), '[{"name":"tea","price":2.5}]'),
        ({"price": Decimal("2.50"), "id": UUID(int=1)}, f'{{"price":"2.50","id":"{UUID(int=1)}"}}'),
        (float("nan"), "null"),
        (None, ""),
        ("tea", "tea"),
    ],
    ids=["table", "dict", "nan", "none", "text"],
)
async def test_the_content_of_a_function_that_is_an_agent_has_the_form_of_results_of_tools(
    value: Any, content: str, tmp_path: Path
) -> None:
    """A table was the text of its schema and its first values."""
    async with RuntimeKernel(None, lambda ctx: value, journal=tmp_path) as kernel:
        assert (await (await kernel.execute(ExecutionRequest(prompt="go"))).result()).content == content


async def test_a_job_of_an_earlier_version_goes_on_whose_output_and_child_have_dates_as_texts(
    memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has ended behind the checkpoint: it runs again, and its END entry is compared with what it gives now."""
    broker = MemoryBroker.get(memory_url)

    def made() -> App:
        app = App("values", memory_url, state=str(tmp_path / "s"), checkpoint_interval=3600)

        @app.agent("children", name="child", durable=True)
        async def child(ctx: Any) -> Any:
            return EXACT

        @app.agent("asked", name="parent", durable=True, sink="answers")
        async def parent(ctx: Any) -> Any:
            await ctx.step(lambda given: given, EXACT, effect="unsafe")
            await ctx.child(child, EXACT)
            return ORDER

        return app

    with monkeypatch.context() as earlier:
        earlier.setattr(values, "_encode_exact", msgspec.msgpack.encode)
        earlier.setattr(values, "_encode_exact_sorted", values._encode_sorted)
        app = made()
        await app.start()
        await checkpoint(app)
        broker.publish("asked", [{"text": "go"}])
        await until(lambda: broker.records("answers"))
        app.agent_runtime.checkpoint_coordinator.refuse("the process died")
        with pytest.raises(CheckpointFailed):
            await app.stop()
    async with started(made()):
        await until(lambda: len(broker.records("answers")) == 2)
    first, second = broker.records("answers")
    assert first.payload == second.payload == b'{"price":"2.50","sent":"2026-01-02T00:30:00+02:00"}'


async def test_a_question_shows_values_as_models_see_them(tmp_path: Path) -> None:
    class Tea(pydantic.BaseModel):
        price: Decimal

    async def handle(ctx: Any) -> Any:
        return (await ctx.ask("confirm", {"tea": Tea(price=Decimal("2.50")), "counts": np.array([1, 2])})).outcome

    async with RuntimeKernel(None, handle, journal=tmp_path) as kernel:
        await kernel.execute(ExecutionRequest(prompt="go"))
        await until(lambda: kernel.statistics()["parked"])
        [action] = await kernel.actions.find()
    assert dict(action.payload) == {"tea": {"price": "2.50"}, "counts": [1, 2]}
