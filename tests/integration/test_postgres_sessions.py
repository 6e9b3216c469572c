"""Conversations of sessions whose jobs run in several workers of one journal in PostgreSQL."""

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from sabot.agents import ActionStatus, JobClient, JobLimit, PolicyEngine, RuntimeKernel, ToolPolicy
from sabot.llm import Agent, ExecutionEngine, ScriptedProvider, ToolCall, assistant, tool
from tools.agent_tools import until
from tools.postgres import server_or_skip


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server_or_skip().database() as found:
        yield found


@tool(effect="idempotent")
async def refund() -> str:
    return "refunded"


def answer(spec: Any) -> Any:
    said = [each.text for each in spec.messages if each.role == "user"]
    if said[-1] == "refund" and spec.messages[-1].role == "user":
        return assistant("", ToolCall("1", "refund", "{}"))
    return ",".join(said)


def worker(url: str, name: str, **options: Any) -> RuntimeKernel:
    agent = Agent(ExecutionEngine(ScriptedProvider(answer), retries=0), name="desk", tools=[refund])
    policy = PolicyEngine([ToolPolicy(["refund"], require_approval=True)])
    return RuntimeKernel.create(agent=agent, policy=policy, journal=url, name=name, shared=True, **options)


async def test_jobs_of_a_key_in_two_workers_have_one_conversation_in_their_order(url: str) -> None:
    name = f"k{uuid.uuid4().hex}"
    limits = [JobLimit("desk", per="key", concurrency=1)]
    async with worker(url, name, limits=limits, max_jobs=1) as one, worker(url, name, limits=limits, max_jobs=1) as two:
        await one.resume()
        await two.resume()
        client = JobClient(url, name=name)
        prompts = [f"q{each}" for each in range(8)]
        handles = [await client.start("desk", each, session="c-1", key="ann") for each in prompts]
        answers = [(await handle.result()).content for handle in handles]
        assert answers == [",".join(prompts[: each + 1]) for each in range(8)]
        conversation = await client.jobs.conversation("desk", "c-1")
        assert [each.text for each in conversation.messages if each.role == "user"] == prompts


async def test_a_turn_that_waits_for_a_person_comes_where_it_ends_whoever_ran_beside(url: str) -> None:
    name = f"k{uuid.uuid4().hex}"
    async with worker(url, name) as one, worker(url, name) as two:
        await one.resume()
        await two.resume()
        client = JobClient(url, name=name)
        waits = await client.start("desk", "refund", session="c-1")
        await until(lambda: one.statistics()["parked"] + two.statistics()["parked"])
        handles = await asyncio.gather(*(client.start("desk", f"q{each}", session="c-1") for each in range(8)))
        answers = {f"q{each}": (await handle.result()).content for each, handle in enumerate(handles)}
        (asked,) = await client.actions.find(statuses=[ActionStatus.PENDING])
        await client.actions.resolve(asked.resume_token, {"approved": True})
        assert (await waits.result()).content == "refund"
        found = (await client.jobs.conversation("desk", "c-1")).messages
        assert [each.role for each in found] == [*(["user", "assistant"] * 8), "user", "assistant", "tool", "assistant"]
        turns = zip(found[:16:2], found[1:16:2], strict=True)
        assert {question.text: said.text for question, said in turns} == answers
        assert await one.forget_session("c-1") == 9
        assert (await client.jobs.conversation("desk", "c-1")).messages == []
