"""A tool that asks a person before it deploys. Run it: python examples/agents/03_approval.py

The tool waits for the answer, as long as the process lives. An approval that survives the process is a rule of the policy: support_agent.py
"""

import asyncio

from models import model

from sabot.agents import ActionManager, ActionSpec, ActionStatus, ExecutionRequest, InMemoryActionStore, RuntimeKernel
from sabot.llm import Agent, Effect, ExecutionEngine, ToolCall, assistant, tool

action_manager = ActionManager(InMemoryActionStore())


@tool
async def deploy_changes(effect: Effect) -> str:
    """Deploys the changes to production, if a person approves."""
    # Request approval
    action = await action_manager.require_action(
        ActionSpec(job_id=effect.id.job, type="confirm", payload={"message": "Deploy to production?"})
    )

    # Wait for resolution
    await action_manager.wait_for_resolution(action.action_id)

    # Proceed if approved
    if action.resolution.get("approved"):
        return "deployed"
    return "not approved"


async def person():
    while True:
        for action in await action_manager.find(statuses=[ActionStatus.PENDING]):
            print(action.payload["message"], "yes")
            await action_manager.resolve(action.resume_token, resolution={"approved": True})
        await asyncio.sleep(0.01)


def script(request):
    last = request.messages[-1]
    return f"It is {last.text}." if last.role == "tool" else assistant("", ToolCall("call_1", "deploy_changes", "{}"))


async def main():
    with model(script) as provider:
        engine = ExecutionEngine(provider)
        kernel = RuntimeKernel.create(engine=engine, agent=Agent(engine, tools=[deploy_changes]))
        handle = await kernel.execute(ExecutionRequest(prompt="Please deploy the changes."))
        answers = asyncio.create_task(person())
        print((await handle.result()).content)
        answers.cancel()
        await kernel.close()
        await engine.close()


if __name__ == "__main__":
    asyncio.run(main())
