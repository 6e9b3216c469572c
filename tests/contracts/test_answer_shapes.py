"""What becomes of each shape of an answer that servers send (`answer_shapes`), by each API, on each surface: in a script,
in a job, in a kernel, in a column, and of an agent that is the tool of another one.
"""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import msgspec
import pytest

from contracts.answer_shapes import MOST_TOKENS, SHAPES, USED, USED_TOKENS, Shape, chat
from sabot import App
from sabot.agents import ExecutionRequest, RuntimeKernel
from sabot.connectors.memory import MemoryBroker
from sabot.errors import SabotError
from sabot.journal.memory import MemoryStorage
from sabot.llm import (
    Agent,
    AgentResult,
    AnthropicProvider,
    Completion,
    ExecutionEngine,
    ModelError,
    OpenAIProvider,
    RequestSpec,
    ScriptedProvider,
    ToolCall,
    Usage,
    assistant,
    tool,
    user,
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

    def __init__(
        self,
        api: str,
        provider_of: Callable[[str, str], Any],
        *,
        streams: bool,
        shapes: Mapping[str, Shape] = SHAPES,
    ) -> None:
        self.api = api
        self.shapes = {name: shape for name, shape in shapes.items() if shape.is_of(api, streams=streams)}
        self.wrong: list[str] = []
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

        self.tools: list[Any] = [erase, look]

    def agent(self, name: str, shape: Shape) -> Agent:
        return Agent(self.engine, name="clerk", tools=self.tools, max_tokens=MOST_TOKENS, output=shape.output)

    def _answer(self, spec: RequestSpec) -> Any:
        """One request is under way at a time."""
        (self._name,) = {each.text for each in spec.messages if each.role == "user"} & self.shapes.keys()
        number = self.asked[self._name]
        self.asked[self._name] += 1
        self.told[self._name] = [each.text for each in spec.messages if each.role == "tool"]
        self._check(spec)
        back = self.shapes[self._name].back
        if number and back is not None and json.dumps(back) not in json.dumps(self.server.requests[-1].body):
            self.wrong.append(f"{self._name}: request {number + 1} lacks {back}")
        return self.shapes[self._name].answer(self.api, number, stream=self.server.requests[-1].stream)

    def _check(self, spec: RequestSpec) -> None:
        """Notes what a server would refuse in the conversation: a call whose arguments are no JSON object or whose name
        is none, and ids of calls that are empty, equal, or not those of the results.
        """
        asked = [call for each in spec.messages for call in each.tool_calls]
        ids = [call.id for call in asked]
        answered = [each.tool_call_id for each in spec.messages if each.role == "tool"]
        if not all(ids) or len(set(ids)) < len(ids) or ids != answered:
            self.wrong.append(f"{self._name}: calls {ids} and results {answered}")
        for call in asked:
            if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", call.name):
                self.wrong.append(f"{self._name}: a call of {call.name!r}")
            try:
                good = isinstance(json.loads(call.arguments), dict)
            except ValueError:
                good = False
            if not good:
                self.wrong.append(f"{self._name}: arguments {call.arguments!r}")


def said(error: BaseException) -> str:
    assert isinstance(error, SabotError)
    return f"{type(error).__name__}: {error.message}"


async def in_a_script(desk: Desk) -> dict[str, str]:
    return {name: await _tried(desk.agent(name, shape).run(name)) for name, shape in desk.shapes.items()}


async def in_a_script_that_streams(desk: Desk) -> dict[str, str]:
    async def streamed(agent: Agent, prompt: str) -> AgentResult:
        last = [event async for event in agent.stream(prompt)][-1]
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
                else assistant("", ToolCall("1", "clerk", json.dumps({"prompt": spec.messages[-1].text})))
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


@pytest.mark.one_in(24, "two seconds of a core each")
@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
@pytest.mark.parametrize("surface", SURFACES)
async def test_each_shape_of_an_answer_is_what_it_means_on_each_surface(
    surface: str, api: str, provider_of: Callable[[str, str], Any]
) -> None:
    desk = Desk(api, provider_of, streams=surface.endswith("streamed"))
    with desk.server:
        found = await SURFACES[surface](desk)
        assert found == expected(desk, surface, found)
        assert desk.wrong == []
        if surface == "column":
            return
        made = {name: sorted(desk.made[name], key=repr) for name in desk.shapes}
        assert made == {name: sorted(shape.made, key=repr) for name, shape in desk.shapes.items()}
        wrong = {name: told for name, told in desk.told.items() if desk.shapes[name].told not in "\n".join(told)}
        assert wrong == {}, "the model was told something else"
        asked = {name: desk.asked[name] for name, shape in desk.shapes.items() if shape.asked}
        assert asked == {name: desk.shapes[name].asked for name in asked}


@pytest.mark.one_in(9, "a tenth of a second of a core each")
@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
@pytest.mark.parametrize("surface", SURFACES)
async def test_each_form_of_a_usage_counts_whole_on_each_surface(
    surface: str, api: str, provider_of: Callable[[str, str], Any]
) -> None:
    desk = Desk(api, provider_of, streams=surface.endswith("streamed"), shapes=USED)
    with desk.server:
        found = await SURFACES[surface](desk)
        assert found == expected(desk, surface, found)
        figures = desk.engine.statistics()
        assert sum(desk.asked.values()) >= len(desk.shapes) >= 2
        assert figures["input_tokens"] + figures["output_tokens"] == USED_TOKENS * sum(desk.asked.values())


async def test_an_error_inside_a_200_is_retried_and_then_given_to_the_fallback(
    provider_of: Callable[[str, str], Any],
) -> None:
    broken = chat({"content": "It is"}, "error", error={"message": "upstream overloaded"})
    with FakeModelServer(lambda spec: broken) as server:
        second = ScriptedProvider("It is Rome.")
        engine = ExecutionEngine(provider_of("chat", server.url), fallback=[second], retries=1, backoff="1ms")
        assert (await engine.complete("?")).content == "It is Rome."
        assert (len(server.requests), len(second.requests)) == (2, 1)


async def test_an_unknown_finish_reason_is_named_once_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    answer = Completion(message=assistant("It is Rome."), finish_reason="weary", usage=Usage(1, 1))
    engine = ExecutionEngine(ScriptedProvider(answer))
    for _ in range(3):
        assert (await engine.complete("?")).finish_reason == "weary"
    (said,) = [each.getMessage() for each in caplog.records if each.name == "sabot.llm"]
    assert "finish reason 'weary', which is unknown" in said


async def test_calls_are_no_pieces_of_a_stream_before_its_end_says_that_they_are_whole(
    provider_of: Callable[[str, str], Any],
) -> None:
    call = ToolCall("a", "erase", '{"folder": "/"}')
    answers: Any = [Completion(message=assistant("", call), finish_reason=each) for each in ("length", "tool_calls")]
    for api in ("chat", "responses", "messages"):
        with FakeModelServer(answers) as server:
            engine = ExecutionEngine(provider_of(api, server.url))
            for whole in (False, True):
                async with aclosing(engine.stream("?")) as stream:
                    *pieces, last = [piece async for piece in stream]
                assert last.completion is not None
                assert len(last.completion.tool_calls) == 1
                assert [piece.tool_call is not None for piece in pieces] == [True] * whole


WRONG = [None, "", 1, [], {}, "x", [None], {"a": 1}]


def changed(value: Any) -> Iterator[Any]:
    """Yields the JSON value again and again, each time with one of its parts left out or of another type."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for place, part in parts:
        for new in [*WRONG, *changed(part)]:
            yield {**value, place: new} if isinstance(value, dict) else [*value[:place], new, *value[place + 1 :]]
        yield (
            [new for at, new in parts if at != place]
            if isinstance(value, list)
            else {at: new for at, new in parts if at != place}
        )


@pytest.mark.one_in(6, "half a second of a core each")
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
async def test_an_answer_with_a_part_of_a_wrong_type_is_an_answer_or_an_error_of_models(
    api: str, streams: bool, provider_of: Callable[[str, str], Any]
) -> None:
    """An AttributeError ended the program, and no fallback was asked."""
    sent: Any = SHAPES["a message with additions" if api != "responses" else "a call with additions"].sent[api]
    answers = list(changed(sent.form(stream=streams)))[:: 2 if streams else 1]
    read = 0
    with FakeModelServer(list(answers)) as server:
        provider = provider_of(api, server.url)
        for _ in answers:
            with suppress(ModelError):
                if not streams:
                    answer = await provider.complete(RequestSpec(messages=(user("?"),)))
                else:
                    async with aclosing(provider.stream(RequestSpec(messages=(user("?"),)))) as pieces:
                        *_, last = [piece async for piece in pieces]
                        answer = last.completion
                assert msgspec.msgpack.decode(msgspec.msgpack.encode(answer), type=Completion) == answer
                read += 1
    assert len(answers) / 5 < read < len(answers)
