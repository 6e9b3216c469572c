"""What a job may use: one that fits into its budget, and one that does not. Run it: python examples/agents/02_budget.py"""

import asyncio

from models import model

from sabot.agents import BudgetSpec, ExecutionRequest, RuntimeKernel
from sabot.llm import Agent, BudgetExceeded, ExecutionEngine

SUMMARY = "The document says that a budget is reserved before a call is made, and settled after it."


async def main():
    with model(SUMMARY) as provider:
        engine = ExecutionEngine(provider)  # the prices of known models are its default
        kernel = RuntimeKernel.create(engine=engine, agent=Agent(engine, instructions="Answer in one sentence."))

        handle = await kernel.execute(
            ExecutionRequest(
                prompt="Analyze this document...",
                scope_id="tenant-123",
                budgets=BudgetSpec(max_tokens=10_000, max_cost=1.0),
            )
        )
        result = await handle.result()
        print(result.content, f"({result.usage.total_tokens} tokens)")

        small = ExecutionRequest(prompt="Analyze it " + "again " * 100, budgets=BudgetSpec(max_tokens=100))
        try:
            print((await (await kernel.execute(small)).result()).content)
        except BudgetExceeded as error:
            print("not made:", error.message)
        await kernel.close()
        await engine.close()


if __name__ == "__main__":
    asyncio.run(main())
