"""The steps of benchmarks/agents/effects.py in LangGraph. Runs in its own environment (requirements-langgraph.txt), started by effects.py.

kind "node": a graph with one node that runs once for each step, with `durability="sync"`: the checkpoint of a step is committed before the
next one begins. kind "task": an entrypoint with a `task` for each step; results of tasks are written in the background, so several may be
lost at a crash. Nothing is written before a call: both are at least once.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypedDict

import effects_job
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

options = effects_job.arguments()
meter = effects_job.Meter()
CONNECTIONS = 10


@asynccontextmanager
async def saver_of(address: str) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    if address.startswith("postgresql:"):
        settings = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
        async with AsyncConnectionPool(address, max_size=CONNECTIONS, kwargs=settings) as pool:
            postgres = AsyncPostgresSaver(pool)
            await postgres.setup()
            yield postgres
    else:
        async with AsyncSqliteSaver.from_conn_string(address) as sqlite:
            yield sqlite


def by_task(saver: BaseCheckpointSaver[Any]) -> Callable[[str, int], Awaitable[int]]:
    @task
    async def step(number: int) -> int:
        return await meter.step(number)

    @entrypoint(checkpointer=saver)
    async def job(steps: int) -> int:
        return await meter.job(step, steps)

    async def run(name: str, steps: int) -> int:
        return await job.ainvoke(steps, {"configurable": {"thread_id": name}}, durability="sync")

    return run


class State(TypedDict):
    total: int
    number: int
    steps: int
    began: float


def by_node(saver: BaseCheckpointSaver[Any]) -> Callable[[str, int], Awaitable[int]]:
    async def step(state: State) -> dict[str, Any]:
        now = time.perf_counter()
        if state["number"]:
            meter.waited.append(now - state["began"])  # from one step to the next one
        added = await meter.step(state["number"])
        return {"total": state["total"] + added, "number": state["number"] + 1, "began": now}

    def whither(state: State) -> str:
        return "step" if state["number"] < state["steps"] else END

    graph = StateGraph(State)
    graph.add_node("step", step)
    graph.add_edge(START, "step")
    graph.add_conditional_edges("step", whither, ["step", END])
    job = graph.compile(checkpointer=saver)

    async def run(name: str, steps: int) -> int:
        config: Any = {"configurable": {"thread_id": name}, "recursion_limit": steps + 2}
        begin = State(total=0, number=0, steps=steps, began=0.0)
        return (await job.ainvoke(begin, config, durability="sync"))["total"]

    return run


async def main() -> None:
    async with saver_of(options.address) as saver:
        await effects_job.measure(meter, {"task": by_task, "node": by_node}[options.kind](saver), options)
        config: Any = {"configurable": {"thread_id": f"job-{options.jobs - 1}"}}
        stored = 0
        async for checkpoint in saver.alist(config):
            pending = checkpoint.pending_writes or []
            stored += sum(channel == "__return__" for _, channel, _ in pending) if options.kind == "task" else 1
        assert stored >= options.steps, f"{stored} steps of the last job are stored"


asyncio.run(main())
