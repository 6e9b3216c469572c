"""A model with tools answers customers: each has a conversation, and a refund above 50 waits for a person.

Run it: python examples/agents/support_agent.py. With state="support" in place of the two memories, `kill -9` in the middle makes no refund
happen twice, and a person answers from another terminal: sabot actions list --journal support
"""

import asyncio
import json
import re

from models import model

from sabot import App
from sabot.agents import ActionStatus, ConstraintPolicy, PolicyEngine
from sabot.llm import ExecutionEngine, ToolCall, assistant, tool
from sabot.testing import MemoryBroker

ORDERS = {"o-1": {"order": "o-1", "amount": 20}, "o-2": {"order": "o-2", "amount": 80}}
QUESTIONS = [
    ("ann", "My order o-1 came broken."),
    ("bo", "My order o-2 came broken."),
    ("ann", "Which order was that?"),
]


@tool(effect="read")
async def look_up(order: str) -> dict:
    """What was ordered, and what it cost."""
    return ORDERS.get(order, {"order": order, "state": "unknown"})


@tool(effect="unsafe")
async def refund(order: str, amount: int) -> str:
    """Gives the money for an order back."""
    return f"{amount} dollars were given back for {order}"


def script(request):  # what a model makes of the conversation
    last = request.messages[-1]
    if last.role == "tool" and last.text.startswith("{"):
        return assistant("", ToolCall("call_2", "refund", last.text))
    if last.role == "tool":
        return f"Sorry! {last.text}."
    if order := re.search(r"o-\d", last.text):
        return assistant("", ToolCall("call_1", "look_up", json.dumps({"order": order[0]})))
    return f"It was {re.search(r'o-[0-9]', request.messages[1].text)[0]}."


async def main():
    policy = PolicyEngine([ConstraintPolicy(["refund"], field="amount", max=50, otherwise="ask")])
    app = App("support", state="memory", journal="memory", policy=policy)
    broker = MemoryBroker.get()
    with model(script) as provider:
        async with ExecutionEngine(provider) as engine:
            app.llm_agent(
                "questions",
                engine,
                key="customer",
                concurrency=10,
                tools=[look_up, refund],
                instructions="Look an order up before you give money back, and give back what it cost.",
                reply=lambda message, result: f"{message['customer']}: {result.content}",
                sink="replies",
            )
            await app.start()
            broker.publish("questions", [{"customer": customer, "text": text} for customer, text in QUESTIONS])
            while len(broker.records("replies")) < len(QUESTIONS):
                for action in await app.actions.find(statuses=[ActionStatus.PENDING]):
                    print("a person approves", action.payload)
                    await app.actions.resolve(action.resume_token, {"approved": True})
                await asyncio.sleep(0.02)
            await app.stop()
    for record in broker.records("replies"):
        print(record.value)


if __name__ == "__main__":
    asyncio.run(main())
