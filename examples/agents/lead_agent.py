"""A lead hands the parts of a query to workers, each a job of its own, and puts their answers together. Every call is in the journal, so a
process that is killed goes on where it was. Run it: python examples/agents/lead_agent.py
"""

import asyncio
import json
import tempfile

from models import model

from sabot.agents import BudgetSpec, ExecutionRequest, RuntimeKernel, tool
from sabot.llm import Agent, ExecutionEngine, ToolCall, assistant

SALES = {"tea": [12, 15, 11, 19], "coffee": [31, 28, 30, 33]}


@tool(effect="read")
def sales_of(product: str) -> list[int]:
    """Sales of a product in the last four quarters."""
    return SALES[product]


def script(spec):
    asked, first = spec.messages[-1], spec.messages[0].text
    if first.startswith("You are the lead") and asked.text.startswith("Query"):
        return json.dumps({"analyst": "How did tea sell?", "writer": "What is tea?"})
    if first.startswith("You are the lead"):
        return asked.text.partition("\n")[2].replace("\n", " ")
    if asked.role == "tool":
        return f"Tea sold {asked.text}."
    if first.startswith("You are the analyst"):
        return assistant("", ToolCall("1", "sales_of", '{"product": "tea"}'))
    return "Tea is made of leaves."


async def main():
    with model(script) as provider, tempfile.TemporaryDirectory() as folder:
        async with ExecutionEngine(provider) as engine:
            lead = Agent(engine, name="planner", instructions="You are the lead: you split queries and join answers.")
            analyst = Agent(engine, name="analyst", instructions="You are the analyst.", tools=[sales_of])
            writer = Agent(engine, name="writer", instructions="You are the writer.")

            async def handle_query(ctx):
                query = ctx.message
                effects = ctx.llm(engine)
                plan = await lead.run(f"Query: {query}\nWho of analyst, writer does what? As JSON.", effects=effects)
                tasks = json.loads(plan.content)
                answers = await asyncio.gather(*(ctx.child(worker, task) for worker, task in tasks.items()))
                said = "\n".join(answer["content"] for answer in answers)
                return (await lead.run(f"Join these answers:\n{said}", effects=effects)).content

            kernel = RuntimeKernel.create(agent=[handle_query, analyst, writer], engine=engine, journal=folder)
            async with kernel:
                request = ExecutionRequest(
                    prompt="Tell me about tea.",
                    agent="handle_query",
                    scope_id="workspace-1",
                    session_id="session-1",
                    budgets=BudgetSpec(max_runtime_seconds=60),
                )
                handle = await kernel.execute(request)
                print((await handle.result()).content)
                jobs = await kernel.jobs.find()
                print(f"{len(jobs)} jobs, {engine.statistics()['calls']} calls of the model")


if __name__ == "__main__":
    asyncio.run(main())
