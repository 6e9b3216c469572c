"""Flows in jobs: whatever they asked is an effect, so a flow goes on after a crash at any of its steps."""

from typing import Any

import msgspec
from unit.jobs.hosting import Agent, entries, hosting, prefix

from sabot.agents import (
    AgentNode,
    ChainOperator,
    ConditionalNode,
    EndNode,
    MapReduceOperator,
    OperatorContext,
    PlannerExecutorOperator,
    Workflow,
)
from sabot.agents.durable.context import DurableContext
from sabot.clock import ManualClock
from sabot.journal.entries import EffectResult, Intent
from sabot.journal.memory import MemoryStorage
from sabot.llm import Agent as ModelAgent
from sabot.llm import ExecutionEngine, RequestSpec, ScriptedProvider, tool


def answer(spec: RequestSpec) -> str:
    """What a model says is made of what it is asked, so that each request may be known again."""
    asked = str(spec.messages[-1].text)
    return msgspec.json.encode(["tea", "milk"]).decode() if asked.startswith("plan") else f"<{asked}>"


class Research:
    """A plan, a finding for each of its steps, a summary, and a loop that ends in a note."""

    def __init__(self) -> None:
        self.provider = ScriptedProvider(answer)
        self.noted: list[str] = []
        engine = ExecutionEngine(self.provider)
        agent = ModelAgent(engine)

        @tool(effect="read")
        def note(text: str) -> int:
            """Keeps a text."""
            self.noted.append(text)
            return len(text)

        async def keep(given: Any, context: OperatorContext) -> Any:
            return await context.call(note, text=given["text"])

        async def find(given: Any) -> Any:
            return (await agent.run(f"find {given['text']}")).content

        async def sums_up(given: Any) -> Any:
            return (await agent.run(f"sum {given['text']}")).content

        async def plans(given: Any) -> Any:
            return (await agent.run("plan")).content

        plan = PlannerExecutorOperator(planner=plans, executor=MapReduceOperator(find, sums_up))
        self.flow = Workflow(
            "research",
            [
                AgentNode("plan", plan, next="keep"),
                AgentNode("keep", ChainOperator([keep, lambda given: given["text"]]), next="again", max_visits=3),
                ConditionalNode(
                    "again", lambda state: state["keep"] > 0 and len(self.told(state)) < 2, {"yes": "more", "no": "end"}
                ),
                AgentNode("more", lambda state: [*self.told(state), state["keep"]], next="keep"),
                EndNode("end"),
            ],
        )

    @staticmethod
    def told(state: Any) -> list[int]:
        return state.get("more", [])

    async def __call__(self, ctx: DurableContext) -> Any:
        return (await self.flow.execute({"topic": "drinks"}, ctx)).content


async def test_a_flow_goes_on_after_a_crash_at_any_of_its_steps_and_asks_nothing_that_was_answered() -> None:
    home = MemoryStorage(ManualClock(1_000.0))
    whole = Research()
    agent = Agent(whole, clock=ManualClock(1_000.0))
    async with hosting(home, agent) as running:
        running.begin("job")
        await running.over("job")
    done = agent.done["job"]
    assert done["plan"].startswith("<sum ")
    assert len(whole.provider.requests) == 4
    assert len(whole.noted) == 3
    written = entries(home)
    for count in range(1, len(written)):
        before = written[:count]
        answered = {entry.ordinal for entry in before if isinstance(entry, EffectResult)}
        asked = [entry for entry in before if isinstance(entry, Intent)]
        models = sum(entry.name == "llm" for entry in asked if entry.ordinal in answered)
        notes = sum(entry.name == "note" for entry in asked if entry.ordinal in answered)
        again = Research()
        agent = Agent(again, clock=ManualClock(2_000.0))
        async with hosting(prefix(home, count), agent) as running:
            await running.over("job")
        assert agent.blocks == {}
        assert agent.done["job"] == done, count
        assert (len(again.provider.requests), len(again.noted)) == (4 - models, 3 - notes), count
