"""What becomes of each shape of an answer that servers send (`answer_shapes`), by each API, on each surface: in a script,
in a job, in a kernel, in a column, and of an agent that is the tool of another one.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import pytest

from contracts.answer_shapes import MOST_TOKENS, SHAPES, Shape
from sabot import App
from sabot.agents import ExecutionRequest, RuntimeKernel
from sabot.connectors.memory import MemoryBroker
from sabot.errors import SabotError
from sabot.journal.memory import MemoryStorage
from sabot.llm import (
    Agent,
    AgentResult,
    AnthropicProvider,
    ExecutionEngine,
    OpenAIProvider,
    RequestSpec,
    ScriptedProvider,
    ToolCall,
    assistant,
    tool,
)
from sabot.testing import FakeModelServer, ListSink
from tools.agent_tools import started, until


@pytest.fixture
async def provider_of() -> AsyncIterator[Callable[[str, str], Any]]:
    """Makes providers that do not read the certificates of the machine, which takes as long as a test."""
    import anthropic  # not by each process that collects the tests: the two take a second
    import openai

    clients: list[Any] = []

    def make(api: Any, url: str) -> Any:
        sdk: Any = anthropic if api == "messages" else openai
        clients.append(sdk.DefaultAsyncHttpxClient(verify=False))
        if api == "messages":
            client = anthropic.AsyncAnthropic(api_key="any", base_url=url, http_client=clients[-1])
            return AnthropicProvider("model-1", client=client)
        chat = openai.AsyncOpenAI(api_key="any", base_url=f"{url}/v1", http_client=clients[-1])
        return OpenAIProvider("model-1", client=chat, api=api)

    yield make
    for each in clients:
        await each.aclose()


class Desk:
    """A server that answers the prompt, which is the name of a shape, in this shape; and an agent that asks it.

    made: the tool calls made, told: the results of calls that the model got, asked: the number of requests; each by the
    name of the shape.
    """

    def __init__(self, api: str, provider_of: Callable[[str, str], Any]) -> None:
        self.api = api
        self.shapes = {name: shape for name, shape in SHAPES.items() if shape.is_of(api)}
        self.made: dict[str, list[Any]] = {name: [] for name in self.shapes}
        self.told: dict[str, list[str]] = {name: [] for name in self.shapes}
        self.asked = dict.fromkeys(self.shapes, 0)
        self._name = ""
        self.server = FakeModelServer(self._answer)
        self.engine = ExecutionEngine(provider_of(api, self.server.url), retries=0, patience=0)

        @tool
        async def erase(folder: str = "") -> str:
            """Erases a folder."""
            self.made[self._name].append(("erase", {"folder": folder}))
            return f"erased {folder}"

        @tool(effect="read")
        async def look(city: str = "") -> str:
            """Looks a city up."""
            self.made[self._name].append(("look", {"city": city}))
            return f"{city} is there"

        self.tools = [erase, look]

    def agent(self, name: str, shape: Shape) -> Agent:
        return Agent(self.engine, name="clerk", tools=self.tools, max_tokens=MOST_TOKENS, output=shape.output)

    def _answer(self, spec: RequestSpec) -> Any:
        """One request is under way at a time."""
        (self._name,) = {each.text for each in spec.messages if each.role == "user"} & self.shapes.keys()
        number = self.asked[self._name]
        self.asked[self._name] += 1
        self.told[self._name] = [each.text for each in spec.messages if each.role == "tool"]
        return self.shapes[self._name].answer(self.api, number, stream=self.server.requests[-1].stream)


def said(error: BaseException) -> str:
    assert isinstance(error, SabotError)
    return f"{type(error).__name__}: {error.message}"


async def in_a_script(desk: Desk) -> dict[str, str]:
    return {name: await _tried(desk.agent(name, shape).run(name)) for name, shape in desk.shapes.items()}


async def in_a_script_that_streams(desk: Desk) -> dict[str, str]:
    async def streamed(agent: Agent, prompt: str) -> AgentResult:
        async with aclosing(agent.stream(prompt)) as events:
            *_, last = [event async for event in events]
        assert isinstance(last, AgentResult)
        return last

    return {name: await _tried(streamed(desk.agent(name, shape), name)) for name, shape in desk.shapes.items()}


async def _tried(result: Awaitable[Any]) -> str:
    try:
        return str((await result).content)
    except SabotError as error:
        return said(error)


async def in_a_job(desk: Desk) -> dict[str, str]:
    """One app has an agent for each output type, and reads the shapes as records."""
    app = App("desk", f"memory://shapes-{desk.api}", state="memory", journal="memory")
    broker = MemoryBroker.get(app.broker)
    outputs = {repr(shape.output): shape.output for shape in desk.shapes.values()}
    for number, output in enumerate(outputs.values()):
        app.llm_agent(
            f"asked{number}",
            desk.engine,
            name=f"clerk{number}",
            tools=desk.tools,
            max_tokens=MOST_TOKENS,
            output=output,
            sink="answers",
            on_error="skip",
            reply=lambda message, result: {"name": message["text"], "said": result.content},
        )
    found: dict[str, str] = {}
    async with started(app):
        for name, shape in desk.shapes.items():
            topic = f"asked{list(outputs).index(repr(shape.output))}"
            broker.publish(topic, [{"text": name}])
            ended = partial(_ended, broker, topic, name)
            await until(lambda ended=ended: ended() is not None, name)
            found[name] = ended() or ""
    broker.reset()
    return found


def _ended(broker: MemoryBroker, topic: str, name: str) -> str | None:
    """What the record of this shape has become, or None if it is under way."""
    for answer in broker.records("answers"):
        if answer.value["name"] == name:
            return str(answer.value["said"])
    for letter in broker.records(f"{topic}.dlq"):
        if letter.value["text"] == name:
            return _letter(letter)
    return None


def _letter(letter: Any) -> str:
    facts = {key: value.decode() for key, value in letter.headers}
    return f"{facts['sabot.error']}: {facts['sabot.message']}"


async def in_a_kernel(desk: Desk) -> dict[str, str]:
    return await _in_a_kernel(desk, watched=False)


async def in_a_kernel_that_is_watched(desk: Desk) -> dict[str, str]:
    """Then the answers are streamed."""
    return await _in_a_kernel(desk, watched=True)


async def _in_a_kernel(desk: Desk, *, watched: bool) -> dict[str, str]:
    found = {}
    for name, shape in desk.shapes.items():
        kernel = RuntimeKernel.create(agent=desk.agent(name, shape), journal=MemoryStorage())
        async with kernel:
            handle = await kernel.execute(ExecutionRequest(prompt=name))
            if watched:
                async for _ in handle.public_events():
                    pass
            found[name] = await _tried(handle.result())
    return found


async def as_a_tool(desk: Desk) -> dict[str, str]:
    """The lead hands the prompt on, and answers with what it gets."""
    found = {}
    for name, shape in desk.shapes.items():
        lead = ScriptedProvider(
            lambda spec: (
                spec.messages[-1].text
                if spec.messages[-1].role == "tool"
                else assistant("", ToolCall("1", "clerk", f'{{"prompt": "{spec.messages[-1].text}"}}'))
            )
        )
        found[name] = (await Agent(ExecutionEngine(lead), tools=[desk.agent(name, shape)]).run(name)).content
    return found


async def in_a_column(desk: Desk) -> dict[str, str]:
    rows = [{"text": name} for name, shape in desk.shapes.items() if shape.column != ""]
    app, answered = App("rows", f"memory://rows-{desk.api}"), ListSink()
    broker = MemoryBroker.get(app.broker)
    how: dict[str, Any] = {"concurrency": 1, "on_error": "skip", "dead_letter": "dead", "max_tokens": MOST_TOKENS}
    app.stream(rows).map_llm("{text}", desk.engine, **how).to(answered)
    async with started(app):
        await until(lambda: len(answered.rows) + len(broker.records("dead")) == len(rows))
    found = {row["text"]: row["content"] for row in answered.rows}
    found |= {letter.value["text"]: _letter(letter) for letter in broker.records("dead")}
    broker.reset()
    return found


SURFACES: dict[str, Callable[[Desk], Awaitable[dict[str, str]]]] = {
    "script": in_a_script,
    "script, streamed": in_a_script_that_streams,
    "job": in_a_job,
    "kernel": in_a_kernel,
    "kernel, streamed": in_a_kernel_that_is_watched,
    "tool": as_a_tool,
    "column": in_a_column,
}


def expected(desk: Desk, surface: str, found: dict[str, str]) -> dict[str, str]:
    """What `found` should be. Where a pattern is met, it is what was found."""
    rows = {}
    for name, shape in desk.shapes.items():
        pattern = shape.column if surface == "column" and shape.column is not None else shape.gives
        if pattern:
            there = found.get(name, "nothing")
            rows[name] = there if re.match(pattern, there, re.DOTALL) else f"{pattern!r} is not what it is: {there!r}"
    return rows


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
@pytest.mark.parametrize("surface", SURFACES)
async def test_each_shape_of_an_answer_is_what_it_means_on_each_surface(
    surface: str, api: str, provider_of: Callable[[str, str], Any]
) -> None:
    desk = Desk(api, provider_of)
    with desk.server:
        found = await SURFACES[surface](desk)
        assert found == expected(desk, surface, found)
        if surface == "column":
            return
        made = {name: sorted(desk.made[name], key=repr) for name in desk.shapes}
        assert made == {name: sorted(shape.made, key=repr) for name, shape in desk.shapes.items()}
        wrong = {name: told for name, told in desk.told.items() if desk.shapes[name].told not in "\n".join(told)}
        assert wrong == {}, "the model was told something else"
        asked = {name: desk.asked[name] for name, shape in desk.shapes.items() if shape.asked}
        assert asked == {name: desk.shapes[name].asked for name in asked}
