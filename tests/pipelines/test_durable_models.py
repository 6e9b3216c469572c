"""Models and agents in jobs: what was answered is paid once, whatever crashes; and nothing that a model says breaks a job."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sabot import AgentContext, App
from sabot.agents import ActionStatus, PolicyEngine, ToolPolicy
from sabot.agents.durable.context import DurableContext
from sabot.api.context import DURABLE_NAMES
from sabot.clock import ManualClock
from sabot.connectors.memory import MemoryBroker
from sabot.errors import AgentFailed, CheckpointFailed, DataError, UserError
from sabot.llm import (
    AuthenticationFailed,
    ChatMessage,
    MalformedAnswer,
    MemoryCache,
    ModelUnavailable,
    OpenAIProvider,
    RateLimited,
    RequestSpec,
    ToolCall,
    assistant,
    tool,
)
from sabot.llm.agent import Agent
from sabot.llm.engine import ExecutionEngine
from sabot.llm.providers.scripted import ScriptedProvider
from sabot.testing import FakeModelServer
from tools.agent_tools import started, until

Answers = list[Any]


class Verdict(msgspec.Struct):
    label: str


class Desk:
    """An app with a model, in a directory, again and again."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.directory = directory
        self.clock = ManualClock(1_000_000.0)

    def app(self, function: Any, **options: Any) -> App:
        app = App("desk", self.url, state=str(self.directory), checkpoint_interval=3600, clock=self.clock)
        wiring = {"key": "customer", "sink": "answers", "durable": True, **options}
        app.agent("questions", name="handle", **wiring)(function)
        return app

    def ask(self, text: str, customer: str = "ann") -> None:
        MemoryBroker.get(self.url).publish("questions", [{"customer": customer, "text": text}])

    def answers(self) -> Answers:
        return [record.value for record in MemoryBroker.get(self.url).records("answers")]

    def letters(self) -> Answers:
        return MemoryBroker.get(self.url).records("questions.dlq")


@pytest.fixture
def desk(memory_url: str, tmp_path: Path) -> Desk:
    return Desk(memory_url, tmp_path / "state")


async def crash(app: App) -> None:
    app.agent_runtime.checkpoint_coordinator.refuse("the process died")
    with pytest.raises(CheckpointFailed):
        await app.stop()


def calls(*asked: tuple[str, str]) -> ChatMessage:
    return assistant("", *(ToolCall(f"c{number}", name, said) for number, (name, said) in enumerate(asked)))


async def test_an_answer_that_is_recorded_is_not_paid_again(desk: Desk) -> None:
    provider = ScriptedProvider(['{"label": "spam"}'])
    engine = ExecutionEngine(provider, retries=0, patience=0)

    async def handle(ctx: Any) -> Any:
        verdict = await ctx.llm(engine).complete(f"Classify: {ctx.message['text']}", output=Verdict)
        reply = await ctx.ask("confirm", {"label": verdict.output.label})
        return {"label": verdict.output.label, "approved": reply.approved, "tokens": verdict.usage.total_tokens}

    app = desk.app(handle)
    await app.start()
    desk.ask("buy now")
    await until(lambda: app.statistics()["jobs"]["parked"] == 1)
    await crash(app)
    app = desk.app(handle)
    async with started(app):
        (action,) = await app.actions.find()
        await app.actions.resolve(action.resume_token, resolution={"approved": True})
        await until(lambda: len(desk.answers()) == 1)
    assert desk.answers() == [{"label": "spam", "approved": True, "tokens": desk.answers()[0]["tokens"]}]
    assert len(provider.requests) == 1
    assert provider.keys[0], "the vendor gets the key of the effect"


async def test_a_model_s_error_is_of_its_class_live_and_in_replay(desk: Desk) -> None:
    provider = ScriptedProvider([RateLimited("slow down"), "fine"])
    engine = ExecutionEngine(provider, retries=0, patience=0)

    async def handle(ctx: Any) -> Any:
        try:
            await ctx.llm(engine).complete("one")
        except RateLimited as error:
            said = error.message
        await ctx.ask("confirm", {})
        return {"said": said, "then": (await ctx.llm(engine).complete("two")).content}

    app = desk.app(handle)
    await app.start()
    desk.ask("x")
    await until(lambda: app.statistics()["jobs"]["parked"] == 1)
    await crash(app)
    app = desk.app(handle)
    async with started(app):
        (action,) = await app.actions.find()
        await app.actions.resolve(action.resume_token, resolution={})
        await until(lambda: len(desk.answers()) == 1)
    assert "slow down" in desk.answers()[0]["said"]
    assert desk.answers()[0]["then"] == "fine"
    assert len(provider.requests) == 2


async def test_an_agent_in_a_job_calls_no_unsafe_tool_twice(desk: Desk) -> None:
    refunded: list[str] = []

    @tool
    async def refund(order: str) -> str:
        """Gives the money back."""
        refunded.append(order)
        return f"refunded {order}"

    def answer(spec: RequestSpec) -> Any:
        said = [each.text for each in spec.messages if each.role == "tool"]
        if not said:
            return calls(("refund", '{"order": "o1"}'), ("refund", '{"order": "o2"}'))
        return f"done: {', '.join(said)}"

    provider = ScriptedProvider(answer)
    agent = Agent(ExecutionEngine(provider), tools=[refund], name="support")

    async def handle(ctx: Any) -> Any:
        result = await agent.run(ctx.message["text"], effects=ctx.llm(agent.engine))
        await ctx.sleep("1h")
        return {"content": result.content, "tokens": result.usage.total_tokens}

    app = desk.app(handle)
    await app.start()
    desk.ask("my money!")
    await until(lambda: app.statistics()["jobs"]["parked"] == 1)
    await crash(app)
    app = desk.app(handle)
    async with started(app):
        desk.clock.advance(3600)
        await until(lambda: len(desk.answers()) == 1)
    assert desk.answers()[0]["content"] == "done: refunded o1, refunded o2"
    assert (sorted(refunded), len(provider.requests)) == (["o1", "o2"], 2)


async def test_a_conversation_of_a_key_goes_on_over_a_restart(desk: Desk) -> None:
    provider = ScriptedProvider(lambda spec: " / ".join(each.text for each in spec.messages if each.role == "user"))
    engine = ExecutionEngine(provider, retries=0, patience=0)

    def app() -> App:
        app = App("desk", desk.url, state=str(desk.directory), clock=desk.clock)
        app.llm_agent("questions", engine, name="handle", key="customer", sink="answers", instructions="Be kind.")
        return app

    async with started(app()):
        desk.ask("I am Ann")
        desk.ask("I am Bob", "bob")
        await until(lambda: len(desk.answers()) == 2)
    async with started(app()):
        desk.ask("Who am I?")
        desk.ask("And I?", "bob")
        await until(lambda: len(desk.answers()) == 4)
    assert [each["content"] for each in desk.answers()[2:]] == ["I am Ann / Who am I?", "I am Bob / And I?"]
    assert {spec.messages[0].text for spec in provider.requests} == {"Be kind."}


async def test_what_no_answer_matches_is_a_dead_letter_with_the_model_s_error(desk: Desk) -> None:
    engine = ExecutionEngine(
        ScriptedProvider(lambda spec: "no json" if "bad" in spec.messages[-1].text else '{"label": "x"}')
    )
    app = App("desk", desk.url, state=str(desk.directory), clock=desk.clock)
    app.llm_agent(
        "questions",
        engine,
        name="handle",
        prompt="Classify: {text}",
        output=Verdict,
        repairs=0,
        sink="answers",
        on_error="skip",
    )
    async with started(app):
        desk.ask("bad")
        MemoryBroker.get(desk.url).publish("questions", [{"nothing": 1}])
        desk.ask("good")
        await until(lambda: len(desk.answers()) == 1 and len(desk.letters()) == 2)
    assert desk.answers() == [{"label": "x"}]
    headers = [dict(letter.headers) for letter in desk.letters()]
    said = {each["sabot.error"].decode(): each["sabot.message"].decode() for each in headers}
    assert said.keys() == {MalformedAnswer.__name__, DataError.__name__}
    assert "'text'" in said["DataError"]


async def test_a_provider_that_is_down_is_told_by_its_class(desk: Desk) -> None:
    engine = ExecutionEngine(ScriptedProvider(lambda spec: ModelUnavailable("down")), retries=0)

    async def handle(ctx: Any) -> Any:
        with pytest.raises(ModelUnavailable, match="down"):
            await ctx.llm(engine).complete("one")
        return {"fine": True}

    async with started(desk.app(handle)):
        desk.ask("x")
        await until(lambda: desk.answers() == [{"fine": True}])


HOSTILE = [
    ("nothing", "{}"),
    ("note", '{"extra": {"a": ' + "[" * 40_000 + "]" * 40_000 + "}}"),
    ("note", '{"extra": ' + '{"a":' * 900 + "1" + "}" * 900 + "}"),
    ("note", '{"text": "' + "x" * 1_000_000 + '"}'),
    ("note", '{"number": 99999999999999999999}'),
    ("note", '{"number": NaN}'),
    ("note", '{"number": "7"}'),
    ("note", '{"__class__": "os.system"}'),
    ("note", '{"text": "a\\u0000b"}'),
]


async def test_hostile_calls_of_tools_break_no_job_and_its_replay_is_the_same(desk: Desk) -> None:
    noted: list[object] = []

    @tool(retries=0)
    async def note(text: str = "", number: int = 0, extra: dict[str, Any] | None = None) -> str:
        noted.append(text)
        return text

    provider = ScriptedProvider([calls(*HOSTILE), "done"])
    agent = Agent(ExecutionEngine(provider), tools=[note])

    async def handle(ctx: Any) -> Any:
        result = await agent.run(ctx.message["text"], effects=ctx.llm(agent.engine))
        told = [message.is_error for message in result.messages if message.role == "tool"]
        await ctx.sleep("1h")
        return {"content": result.content, "told": told}

    app = desk.app(handle)
    await app.start()
    desk.ask("go")
    await until(lambda: app.statistics()["jobs"]["parked"] == 1)
    await crash(app)
    app = desk.app(handle)
    async with started(app):
        desk.clock.advance(3600)
        await until(lambda: len(desk.answers()) == 1)
    told = [
        not text.endswith(("9}", 'b"}')) for _, text in HOSTILE
    ]  # an integer of any size, and a text, are good arguments
    assert desk.answers() == [{"content": "done", "told": told}]
    assert (noted, len(provider.requests)) == (["", "a\0b"], 2)


async def test_a_call_that_failed_is_made_again_in_a_job_too(desk: Desk) -> None:
    tried: list[int] = []

    @tool(effect="read", backoff=0)
    async def sometimes() -> str:
        tried.append(1)
        if len(tried) < 3:
            raise ConnectionError("gone")
        return "here"

    provider = ScriptedProvider([calls(("sometimes", "{}")), "done"])
    agent = Agent(ExecutionEngine(provider), tools=[sometimes])

    async def handle(ctx: Any) -> Any:
        result = await agent.run("go", effects=ctx.llm(agent.engine))
        return {"told": result.messages[2].text}

    async with started(desk.app(handle)):
        desk.ask("go")
        await until(lambda: desk.answers() == [{"told": "here"}])
    assert len(tried) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"durable": False}, "durable=False"),
        ({"batch": True}, "batch=True"),
        ({"prompt": 'Answer {"a": 1} for {text}'}, "is not a field of a record"),
        ({"prompt": "Summarize: { text }"}, "is not a field of a record"),
        ({"prompt": "Summarize: {text"}, "expected '}'"),
    ],
)
def test_an_llm_agent_that_cannot_work_is_refused_when_it_is_declared(options: dict[str, Any], words: str) -> None:
    app = App("desk", "memory://refused", state="memory")
    with pytest.raises(UserError, match=words) as caught:
        app.llm_agent("questions", ExecutionEngine(ScriptedProvider("x")), **options)
    assert caught.value.hint


def test_braces_in_a_prompt_are_written_twice() -> None:
    app = App("desk", "memory://refused", state="memory")
    app.llm_agent(
        "questions", ExecutionEngine(ScriptedProvider("x")), prompt='{{"a": 1}} {text} {place[city]} {price:.2f}'
    )


def test_an_agent_that_is_not_durable_says_so_when_it_asks_a_person() -> None:
    ctx = AgentContext({"text": "x"}, agent_id="desk.handle")
    with pytest.raises(AttributeError, match=r"only durable agents have ctx\.ask, and desk\.handle is not one"):
        ctx.ask("confirm", {})  # type: ignore[attr-defined]
    assert not hasattr(ctx, "ask")
    with pytest.raises(AttributeError, match="has no attribute 'lm'"):
        ctx.lm  # type: ignore[attr-defined]  # noqa: B018


def test_the_names_that_only_durable_agents_have_are_those_of_their_context() -> None:
    names = {name for name in dir(DurableContext) if not hasattr(AgentContext, name) and not name.startswith("_")}
    assert names == DURABLE_NAMES


KEY = "sk-proj-Zq81MvtT0p5ecret"


@pytest.mark.slow  # a second of a core
async def test_a_key_that_is_wrong_is_in_no_log_no_journal_and_no_letter(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    with FakeModelServer("done", keys=("another",)) as server:
        engine = ExecutionEngine(OpenAIProvider("any", base_url=server.openai_url, api_key=KEY))

        async def handle(ctx: Any) -> Any:
            with pytest.raises(AuthenticationFailed) as caught:
                await Agent(engine).run("go", effects=ctx.llm(engine))
            assert ctx.message["text"] != "fail", f"{caught.value!r} {engine!r} with {KEY}"
            return {"error": str(caught.value)}

        async with started(desk.app(handle, on_error="skip")):
            desk.ask("x")
            desk.ask("fail")
            await until(lambda: len(desk.answers()) == len(desk.letters()) == 1)
        await engine.close()
    written = [path for path in desk.directory.rglob("*") if path.is_file()]
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []
    assert any(b"is not accepted" in path.read_bytes() for path in written), "the journal has the error"
    assert KEY not in f"{desk.answers()} {desk.letters()} {caplog.text}"


# -- what a vendor adds ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # half a second of a core
async def test_what_a_vendor_adds_to_a_call_goes_back_with_it_after_a_crash_and_with_the_next_record(
    desk: Desk,
) -> None:
    """From the journal and from the conversation of the key. A server of Google refuses each request without it."""
    signed = {"extra_content": {"google": {"thought_signature": "c2lnbmVk"}}}

    @tool(effect="unsafe")
    def look(what: str) -> str:
        return "it is sunny"

    def answer(spec: RequestSpec) -> Any:
        if spec.messages[-1].role == "tool":
            return "sunny"
        return assistant("", ToolCall("c0", "look", '{"what": "the sky"}', vendor={"openai.chat": signed}))

    with FakeModelServer(answer) as server:

        def app() -> App:
            policy = PolicyEngine([ToolPolicy(["look"], require_approval=True)])
            made = App("desk", desk.url, state=str(desk.directory), checkpoint_interval=3600, policy=policy)
            engine = ExecutionEngine(OpenAIProvider("m", base_url=server.openai_url, api_key="k"), retries=0)
            made.llm_agent("questions", engine, key="customer", sink="answers", tools=[look], prompt="{text}")
            return made

        first = app()
        await first.start()
        desk.ask("how is the sky?")
        await until(lambda: first.statistics()["jobs"]["parked"] == 1)
        await crash(first)
        async with started(again := app()):
            for number in range(2):
                async with asyncio.timeout(60):  # what parks is counted before it is in the view
                    while not (found := await again.actions.find(statuses=[ActionStatus.PENDING])):  # noqa: ASYNC110
                        await asyncio.sleep(0.005)
                (action,) = found
                await again.actions.resolve(action.resume_token, resolution={"approved": True})
                await until(lambda number=number: len(desk.answers()) == number + 1)
                desk.ask("and now?")
        sent = [[each for each in asked.body["messages"] if each.get("tool_calls")] for asked in server.requests]
    assert [len(messages) for messages in sent[:4]] == [0, 1, 1, 2]
    called = [call for messages in sent for message in messages for call in message["tool_calls"]]
    assert [call["extra_content"] for call in called] == [signed["extra_content"]] * len(called)


# -- what a model answers wrongly ---------------------------------------------------------------------------------------------


def moods(desk: Desk, provider: Any, **options: Any) -> App:
    """An app whose model has to answer with a Verdict."""
    app = App("desk", desk.url, state=str(desk.directory), checkpoint_interval=3600, clock=desk.clock)
    wiring: dict[str, Any] = {"key": "customer", "sink": "answers", "session": False, "output": Verdict, **options}
    app.llm_agent("questions", ExecutionEngine(provider, retries=0, patience=0), name="moods", **wiring)
    return app


def headers(letter: Any) -> dict[str, str]:
    return {name: value.decode() for name, value in letter.headers}


def never_right(spec: RequestSpec) -> str:
    return '{"label": "fine"}' if spec.messages[0].text == "hello" else "I would rather not say"


async def test_a_wrong_answer_is_a_dead_letter_with_its_conversation_and_the_next_customer_is_served(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(moods(desk, ScriptedProvider(never_right))):
        desk.ask("are you well?", "ann")
        desk.ask("hello", "ann")
        desk.ask("hello", "bob")
        await until(lambda: len(desk.answers()) == 2)
        await until(lambda: len(desk.letters()) == 1)
    said = headers(desk.letters()[0])
    assert said["sabot.error"] == "MalformedAnswer"
    conversation = msgspec.json.decode(said["sabot.conversation"])
    assert [each["role"] for each in conversation] == ["user", *["assistant", "user"] * 2, "assistant"]
    assert [conversation[0]["content"], conversation[1]["content"]] == ["are you well?", "I would rather not say"]
    assert "it is a dead letter" in caplog.text


async def test_a_model_that_comes_to_no_end_costs_its_own_record_alone(desk: Desk) -> None:
    @tool(effect="read")
    def look() -> str:
        return "nothing"

    def turns(spec: RequestSpec) -> Any:
        return '{"label": "fine"}' if spec.messages[0].text == "hello" else calls(("look", "{}"))

    async with started(moods(desk, ScriptedProvider(turns), tools=[look], max_turns=3)):
        desk.ask("look for ever")
        desk.ask("hello")
        await until(lambda: len(desk.answers()) == len(desk.letters()) == 1)
    said = headers(desk.letters()[0])
    assert said["sabot.error"] == "TurnLimitExceeded"
    conversation = msgspec.json.decode(said["sabot.conversation"])
    assert conversation[1]["calls"] == [{"name": "look", "arguments": "{}"}]


async def test_a_record_that_makes_no_prompt_is_a_dead_letter(desk: Desk) -> None:
    async with started(moods(desk, ScriptedProvider(never_right), prompt="{text}")):
        MemoryBroker.get(desk.url).publish("questions", [{"customer": "ann"}])
        desk.ask("hello")
        await until(lambda: len(desk.answers()) == len(desk.letters()) == 1)
    assert headers(desk.letters()[0])["sabot.error"] == "DataError"


@pytest.mark.slow  # half a second of a core
async def test_the_letter_of_a_wrong_answer_is_written_whole_again_after_a_crash(desk: Desk) -> None:
    provider = ScriptedProvider(never_right)
    app = moods(desk, provider)
    await app.start()
    desk.ask("are you well?")
    await until(lambda: len(desk.letters()) == 1)
    await crash(app)
    asked = len(provider.requests)
    async with started(moods(desk, provider)):
        await until(lambda: len(desk.letters()) == 2)
    first, again = map(headers, desk.letters())
    assert first["sabot.conversation"] == again["sabot.conversation"]
    assert len(provider.requests) == asked


def send_back(desk: Desk, number: int = 0) -> None:
    letter = desk.letters()[number]
    own = letter.headers[: [name for name, _ in letter.headers].index("sabot.topic")]
    MemoryBroker.get(desk.url).publish("questions", [letter.payload], headers=own)


class Rude:
    """A model that looks something up, and then gives so many wrong answers before the right one."""

    def __init__(self, wrong: int, **options: Any) -> None:
        self.looked: list[str] = []
        self.left = wrong
        self.provider = ScriptedProvider(self.answer)

        @tool(effect="unsafe")
        def look(what: str) -> str:
            self.looked.append(what)
            return "it is sunny"

        self.tool = look

    def answer(self, spec: RequestSpec) -> Any:
        if spec.messages[-1].role == "user" and len(spec.messages) == 1:
            return calls(("look", '{"what": "the sky"}'))
        self.left -= 1
        return "I would rather not say" if self.left >= 0 else '{"label": "sunny"}'


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("cached", [False, True])
async def test_another_attempt_after_a_wrong_answer_asks_for_the_last_answer_anew_and_for_nothing_else(
    desk: Desk, cached: bool
) -> None:
    """It read the recorded answer again each time, and the model was never asked."""
    rude = Rude(wrong=4)  # the answer, two repairs, and that of the second attempt
    app = App("desk", desk.url, state=str(desk.directory), checkpoint_interval=3600, clock=desk.clock)
    engine = ExecutionEngine(rude.provider, retries=0, patience=0, cache=MemoryCache() if cached else None)
    wiring: dict[str, Any] = {"sink": "answers", "session": False, "output": Verdict, "tools": [rude.tool]}
    app.llm_agent("questions", engine, on_error="retry", retries=3, backoff=0, **wiring)
    async with started(app):
        desk.ask("how is the sky?")
        await until(lambda: len(desk.answers()) == 1)
        (job,) = await app.jobs.find()
        figures = engine.statistics()
    assert desk.answers() == [{"label": "sunny"}]
    assert desk.letters() == []
    assert rude.looked == ["the sky"]
    asked = [len(spec.messages) for spec in rude.provider.requests]
    assert asked == [1, 3, 5, 7, 7, 7], "the prompt and the repairs are asked once, the last answer three times"
    assert len(set(rude.provider.keys)) == len(asked), "each request has a key of its own"
    assert job.tokens == figures["input_tokens"] + figures["output_tokens"], "each of them counts"


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("crashes", [False, True])
async def test_a_dead_letter_of_a_wrong_answer_that_is_sent_back_asks_for_the_last_answer_anew(
    desk: Desk, crashes: bool
) -> None:
    rude = Rude(wrong=4)
    app = moods(desk, rude.provider, tools=[rude.tool])
    await app.start()
    desk.ask("how is the sky?")
    await until(lambda: len(desk.letters()) == 1)
    if crashes:
        await app.stop()
        app = moods(desk, rude.provider, tools=[rude.tool])
        await app.start()
    send_back(desk)  # the same answer once more
    await until(lambda: len(desk.letters()) == 2)
    send_back(desk, 1)
    await until(lambda: len(desk.answers()) == 1)
    await app.stop()
    assert rude.looked == ["the sky"]
    assert [len(spec.messages) for spec in rude.provider.requests] == [1, 3, 5, 7, 7, 7]


async def test_of_several_answers_the_one_that_did_not_match_is_asked_for_anew(desk: Desk) -> None:
    wrong = ["bad", "bad again"]

    def answer(spec: RequestSpec) -> str:
        return wrong.pop(0) if spec.messages[0].text == "first" and wrong else '{"label": "fine"}'

    provider = ScriptedProvider(answer)
    engine = ExecutionEngine(provider, retries=0, patience=0)

    async def handle(ctx: Any) -> Any:
        asked = (ctx.llm(engine).complete(each, output=Verdict) for each in ("first", "second"))
        said = await asyncio.gather(*asked, return_exceptions=True)
        for each in said:
            if isinstance(each, BaseException):
                raise each
        return [each.output.label for each in said]

    async with started(desk.app(handle, on_error="retry", retries=3, backoff=0)):
        desk.ask("go")
        await until(lambda: len(desk.answers()) == 1)
    assert desk.answers() == [["fine", "fine"]]
    assert [spec.messages[0].text for spec in provider.requests] == ["first", "second", "first", "first"]


async def test_another_attempt_after_another_error_reads_the_recorded_answer(desk: Desk) -> None:
    provider = ScriptedProvider('{"label": "fine"}')
    engine = ExecutionEngine(provider, retries=0, patience=0)
    attempts: list[int] = []

    async def handle(ctx: Any) -> Any:
        said = await ctx.llm(engine).complete("go", output=Verdict)
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            raise ValueError("not yet")
        return said.output.label

    async with started(desk.app(handle, on_error="retry", retries=3, backoff=0)):
        desk.ask("go")
        await until(lambda: len(desk.answers()) == 1)
    assert (attempts, len(provider.requests)) == ([1, 2, 3], 1)


async def test_an_llm_agent_that_says_on_error_fail_stops_at_a_wrong_answer(desk: Desk) -> None:
    app = moods(desk, ScriptedProvider(never_right), on_error="fail")
    desk.ask("are you well?")
    with pytest.raises(AgentFailed, match="does not"):
        await app.run()
    assert desk.letters() == []


@pytest.mark.slow  # half a second of a core
async def test_a_wrong_key_still_stops_an_llm_agent(desk: Desk) -> None:
    app = moods(desk, ScriptedProvider([AuthenticationFailed("no such key")]))
    desk.ask("hello")
    with pytest.raises(AgentFailed, match="no such key"):
        await app.run()
    assert desk.letters() == []
