"""Agents look at how an answer has ended before they do anything with it: in jobs that go on after a restart, where
answers that were cut off are asked for, and in summaries. `contracts/test_answer_shapes.py` has the table of shapes.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest

from sabot import App
from sabot.agents import ExecutionRequest, PolicyEngine, RuntimeKernel, ToolPolicy
from sabot.connectors.memory import MemoryBroker
from sabot.errors import UserError
from sabot.journal.memory import MemoryStorage
from sabot.llm import (
    Agent,
    ChatMessage,
    Completion,
    ContentFiltered,
    Conversation,
    ExecutionEngine,
    MalformedAnswer,
    ScriptedProvider,
    ToolCall,
    assistant,
    tool,
    user,
)
from tools.agent_tools import started, until


@dataclass
class City:
    name: str


def ended(reason: str, text: str = "", *calls: ToolCall) -> Completion:
    return Completion(message=assistant(text, *calls), finish_reason=reason)


def agent_of(answers: Any, **options: Any) -> Agent:
    return Agent(ExecutionEngine(ScriptedProvider(answers), retries=0), **options)


# -- jobs that go on ----------------------------------------------------------------------------------------------------------


class Shop:
    """An agent whose first answer was cut off behind a call of `erase`, and whose second one calls `pay`, for which a
    person is asked.
    """

    def __init__(self, journal: MemoryStorage) -> None:
        self.erased: list[str] = []
        self.paid: list[str] = []
        self.journal = journal
        self.answers: list[Any] = [
            ended("length", "", ToolCall("1", "erase", '{"folder": "/"}')),
            assistant("", ToolCall("2", "pay", '{"order": "o-1"}')),
            "done",
        ]

    def kernel(self) -> RuntimeKernel:
        @tool
        async def erase(folder: str) -> str:
            """Erases a folder."""
            self.erased.append(folder)
            return f"erased {folder}"

        @tool
        async def pay(order: str) -> str:
            """Pays an order."""
            self.paid.append(order)
            return f"paid {order}"

        agent = agent_of(lambda spec: self.answers.pop(0), tools=[erase, pay])
        policy = PolicyEngine([ToolPolicy(["pay"], require_approval=True)])
        return RuntimeKernel.create(agent=agent, policy=policy, journal=self.journal)


@pytest.mark.parametrize("earlier", [False, True], ids=["this version", "an earlier version"])
async def test_a_job_goes_on_from_an_answer_that_was_cut_off_as_it_began(
    earlier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier version made the calls of such an answer: its jobs have them in their journals."""
    shop = Shop(MemoryStorage())
    with monkeypatch.context() as past:
        if earlier:
            past.setattr("sabot.llm.agent.words_of_end", lambda *_: "")
        async with shop.kernel() as kernel:
            await kernel.execute(ExecutionRequest(prompt="go"))
            await until(lambda: kernel.statistics()["parked"])
    assert shop.erased == (["/"] if earlier else [])
    async with shop.kernel() as kernel:
        (handle,) = await kernel.resume()
        (asked,) = await kernel.actions.find(statuses=["pending"])
        await kernel.actions.resolve(asked.resume_token, {"approved": True})
        assert (await handle.result()).content == "done"
    assert (shop.erased, shop.paid, shop.answers) == (["/"] if earlier else [], ["o-1"], [])


@pytest.mark.parametrize("way", ["agent", "complete"])
async def test_a_job_whose_function_goes_on_after_a_cut_answer_matches_its_journal(way: str) -> None:
    """The function asks for another effect after the error, as an earlier version did after the answer."""
    paid: list[str] = []

    @tool
    async def pay(order: str) -> str:
        """Pays an order."""
        paid.append(order)
        return f"paid {order}"

    async def work(ctx: Any) -> str:
        try:
            if way == "agent":
                said = (await agent.run("go", effects=ctx.llm(agent.engine))).content
            else:
                said = (await ctx.llm(agent.engine).complete("go", output=City)).content
        except Exception as error:
            said = type(error).__name__
        return f"{said}, {await ctx.call(pay, order='o-1')}"

    agent, journal = agent_of(ended("length", '{"name": "Ro"}')), MemoryStorage()
    policy = PolicyEngine([ToolPolicy(["pay"], require_approval=True)])
    async with RuntimeKernel.create(agent=work, policy=policy, journal=journal) as kernel:
        await kernel.execute(ExecutionRequest(prompt="go"))
        await until(lambda: kernel.statistics()["parked"])
    async with RuntimeKernel.create(agent=work, policy=policy, journal=journal) as kernel:
        (handle,) = await kernel.resume()
        (asked,) = await kernel.actions.find(statuses=["pending"])
        await kernel.actions.resolve(asked.resume_token, {"approved": True})
        assert (await handle.result()).content == "MalformedAnswer, paid o-1"


@pytest.mark.parametrize("earlier", [False, True], ids=["this version", "an earlier version"])
async def test_a_job_goes_on_from_a_text_in_a_column_that_was_cut_off_as_it_began(
    earlier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of an earlier version was blocked: it had gone on with the text, and the function got an error now."""
    engine = ExecutionEngine(ScriptedProvider(ended("length", "It is Ro")), retries=0)

    async def work(ctx: Any) -> Any:
        try:
            rows = await ctx.llm(engine).map("{text}", pa.record_batch({"text": ["one", "two"]}))
            said = rows.column("content").to_pylist()
        except MalformedAnswer:
            said = []
        return [*said, (await ctx.ask("confirm", {})).approved]

    journal = MemoryStorage()
    with monkeypatch.context() as past:
        if earlier:
            past.setattr("sabot.llm.columns.error_of_end", lambda *_: None)
            past.setattr("sabot.llm.asked_batches._is_cut", lambda _: False)
        async with RuntimeKernel.create(agent=work, journal=journal) as kernel:
            await kernel.execute(ExecutionRequest(prompt="go"))
            await until(lambda: kernel.statistics()["parked"])
    async with RuntimeKernel.create(agent=work, journal=journal) as kernel:
        (handle,) = await kernel.resume()
        (asked,) = await kernel.actions.find(statuses=["pending"])
        await kernel.actions.resolve(asked.resume_token, {"approved": True})
        assert (await handle.result()).output == [*(["It is Ro"] * 2 if earlier else []), True]


# -- answers that were cut off, where they are asked for ------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_a_record_whose_answer_was_cut_off_is_a_dead_letter_and_the_agent_goes_on(
    reason: str, memory_url: str
) -> None:
    app, broker = App("desk", memory_url, state="memory", journal="memory"), MemoryBroker.get(memory_url)
    provider = ScriptedProvider([ended(reason, "It is Ro"), "It is Rome."])
    app.llm_agent("questions", ExecutionEngine(provider, retries=0), sink="answers")
    async with started(app):
        broker.publish("questions", ["one", "two"])
        await until(lambda: broker.records("answers"))
    assert [each.value for each in broker.records("answers")] == [{"content": "It is Rome."}]
    (letter,) = broker.records("questions.dlq")
    facts = dict(letter.headers)
    assert facts["sabot.error"] == (b"MalformedAnswer" if reason == "length" else b"ContentFiltered")
    assert b"It is Ro" in facts["sabot.conversation"]


async def test_answers_that_were_cut_off_have_a_mark_in_the_sink(memory_url: str) -> None:
    app, broker = App("desk", memory_url, state="memory", journal="memory"), MemoryBroker.get(memory_url)
    provider = ScriptedProvider([ended("length", "It is Ro"), ended("content_filter", "I"), "", "It is Rome."])
    app.llm_agent("questions", ExecutionEngine(provider, retries=0), sink="answers", allow_cut=True)
    async with started(app):
        broker.publish("questions", ["one", "two", "three", "four"])
        await until(lambda: len(broker.records("answers")) == 4)
    assert [each.value for each in broker.records("answers")] == [
        {"content": "It is Ro", "finish_reason": "length"},
        {"content": "I", "finish_reason": "content_filter"},
        {"content": "", "finish_reason": "stop"},
        {"content": "It is Rome.", "finish_reason": "stop"},
    ]


async def test_an_agent_that_is_a_tool_marks_an_answer_that_was_cut_off() -> None:
    clerk = agent_of(ended("length", "It is Ro"), name="clerk", allow_cut=True)
    assert (await clerk.run("go")).finish_reason == "length"
    call = assistant("", ToolCall("1", "clerk", '{"prompt": "go"}'))
    lead = agent_of(lambda spec: spec.messages[-1].text if spec.messages[-1].role == "tool" else call, tools=[clerk])
    assert (await lead.run("go")).content == "It is Ro\n(This answer is not whole: finish_reason=length.)"
    async with RuntimeKernel.create(agent=clerk, journal=MemoryStorage()) as kernel:
        result = await (await kernel.execute(ExecutionRequest(prompt="go"))).result()
    assert (result.content, result.finish_reason) == ("It is Ro", "length")


async def test_calls_of_a_cut_answer_are_not_made_where_such_answers_are_asked_for() -> None:
    made: list[str] = []

    @tool
    async def erase(folder: str) -> None:
        """Erases a folder."""
        made.append(folder)

    agent = agent_of(
        [ended("length", "So", ToolCall("1", "erase", '{"folder": "/"}')), "done"], tools=[erase], allow_cut=True
    )
    assert (await agent.run("go")).content == "done"
    assert made == []


def test_a_part_of_an_answer_has_no_type() -> None:
    with pytest.raises(UserError, match="allow_cut=True with output="):
        agent_of("", output=City, allow_cut=True)


# -- summaries ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("summary", "kept"),
    [
        (ended("length", "They spoke of Ro"), "They spoke of Ro … (the summary was cut off)"),
        (ended("content_filter", "I"), None),
        (ended("length"), None),
    ],
)
async def test_no_conversation_is_replaced_by_a_summary_that_is_none(summary: Completion, kept: str | None) -> None:
    before = [user("x" * 2000), assistant("y" * 2000)] * 4
    conversation = Conversation(before)
    agent = agent_of([summary, "It is Rome."], trim="summarize", context_window=2000, max_tokens=100)
    if kept is None:
        error = MalformedAnswer if summary.finish_reason == "length" else ContentFiltered
        with pytest.raises(error):
            await agent.run("go", conversation=conversation)
        assert conversation.messages[: len(before)] == before
        return
    assert (await agent.run("go", conversation=conversation)).content == "It is Rome."
    first: ChatMessage = conversation.messages[0]
    assert first.text.endswith(kept)
