"""An agent as a job of a kernel, without an app. Run it: python examples/agents/01_simple.py"""

import asyncio

from models import model

from sabot.agents import ExecutionRequest, RuntimeKernel
from sabot.llm import Agent, ExecutionEngine

POEM = "Two spaces, four, a colon too:\nthe snake has drawn the line for you."


async def main():
    with model(POEM) as provider:
        engine = ExecutionEngine(provider=provider)
        agent = Agent(engine=engine)

        kernel = RuntimeKernel.create(engine=engine, agent=agent)  # journal="jobs": its jobs survive kill -9

        handle = await kernel.execute(ExecutionRequest(prompt="Write a poem about Python"))

        result = await handle.result()
        print(result.content)
        await kernel.close()
        await engine.close()


if __name__ == "__main__":
    asyncio.run(main())
