"""Research in steps: a plan, an answer to each question, a summary, a text. Run it: python examples/agents/04_research.py"""

import asyncio
import json

from models import model

from sabot.agents import ExecutionContext, MapReduceOperator, Operator, OperatorResult, PlannerExecutorOperator
from sabot.llm import Agent, ExecutionEngine


class PlannerOperator(Operator):
    async def execute(self, input_data, context):
        said = await self.agent.run(
            f"Three questions about {input_data['topic']}, as a JSON list of texts, nothing else."
        )
        return OperatorResult(content=said.content)


class ResearcherOperator(Operator):
    async def execute(self, input_data, context):
        said = await self.agent.run(f"Answer in one sentence: {input_data['text']}")
        return OperatorResult(content=said.content)


class SummarizerOperator(Operator):
    async def execute(self, input_data, context):
        said = await self.agent.run(f"Keep the facts of this, in short:\n{input_data['text']}")
        return OperatorResult(content=said.content)


class SynthesizerOperator(Operator):
    async def execute(self, input_data, context):
        said = await self.agent.run(f"A paragraph on {input_data['topic']}, made of this:\n{input_data['text']}")
        return OperatorResult(content=said.content)


def script(spec):
    asked = spec.messages[-1].text
    if asked.startswith("Three questions"):
        return json.dumps(["Where does tea come from?", "Who drinks most of it?", "How hot is it made?"])
    if asked.startswith("Answer"):
        return {"Where": "From China.", "Who d": "People in Turkey.", "How h": "At 80 to 100 degrees."}[asked[24:29]]
    return asked.partition("\n")[2].replace("\n\n", " ")


async def main():
    with model(script) as provider:
        async with ExecutionEngine(provider) as engine:
            agent = Agent(engine)
            workflow = PlannerExecutorOperator(
                planner=PlannerOperator(agent),
                executor=MapReduceOperator(
                    map_operator=ResearcherOperator(agent), reduce_operator=SummarizerOperator(agent)
                ),
                synthesizer=SynthesizerOperator(agent),
            )
            result = await workflow.execute({"topic": "tea"}, ExecutionContext(scope_id="tenant-123"))
            print(result.checked("the research").content)
            print(engine.statistics()["calls"], "calls of the model for", result.metadata["plan"])


if __name__ == "__main__":
    asyncio.run(main())
