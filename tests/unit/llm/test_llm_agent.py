"""The loop of an agent, over a model that answers by a script."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from sabot.engine.calls.errors import ToolError
from sabot.engine.calls.messages import tool_result
from sabot.errors import NotSent, UserError
from sabot.llm import (
    MIDDLEWARE,
    ChatMessage,
    ContextLengthExceeded,
    Effect,
    MalformedAnswer,
    ModelUnavailable,
    RequestContext,
    RequestSpec,
    ToolCall,
    TurnLimitExceeded,
    Usage,
    assistant,
    tool,
    user,
)
from sabot.llm.agent import Agent, AgentResult, ToolEnded, ToolStarted
from sabot.llm.conversation import Conversation, TokenEstimator, groups_of, without_oldest
from sabot.llm.engine import ExecutionEngine
from sabot.llm.middleware import CallBudget, Forward, ModelCall, Outcome
from sabot.llm.providers.scripted import ScriptedProvider


@tool(effect="read")
async def weather(city: str) -> str:
    """The weather of a city."""
    return f"{city}: 21 degrees"


@tool(effect="read")
def population(city: str) -> dict[str, Any]:
    """How many people live in a city."""
    return {"city": city, "people": 3_700_000}


def calls(*asked: tuple[str, str]) -> ChatMessage:
    return assistant("", *(ToolCall(f"c{number}", name, said) for number, (name, said) in enumerate(asked)))


def agent_of(answers: Any, **options: Any) -> tuple[Agent, ScriptedProvider]:
    provider = ScriptedProvider(answers)
    return Agent(ExecutionEngine(provider, retries=0, patience=0), **options), provider


def sent(provider: ScriptedProvider, number: int = -1) -> list[ChatMessage]:
    return list(provider.requests[number].messages)


async def test_a_model_without_tools_is_asked_once() -> None:
    agent, provider = agent_of("Paris", instructions="Answer in a word.")
    result = await agent.run("What is the capital of France?")
    assert (result.content, result.turns, result.tool_calls) == ("Paris", 1, 0)
    assert [each.role for each in sent(provider)] == ["system", "user"]
    assert result.messages == (user("What is the capital of France?"), assistant("Paris"))
    assert result.usage.output_tokens > 0


async def test_tools_are_called_side_by_side_and_told_in_the_order_in_which_they_were_asked() -> None:
    met = asyncio.Barrier(2)

    @tool(effect="read")
    async def slow(n: int) -> int:
        await met.wait()
        return n

    agent, provider = agent_of([calls(("slow", '{"n": 1}'), ("slow", '{"n": 2}')), "done"], tools=[slow])
    result = await agent.run("go")
    assert [(each.tool_call_id, each.content) for each in sent(provider)[-2:]] == [("c0", "1"), ("c1", "2")]
    assert (result.content, result.tool_calls, result.turns) == ("done", 2, 2)


async def test_no_more_tools_run_at_once_than_may() -> None:
    running = most = 0

    @tool(effect="read")
    async def counts() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    agent, _ = agent_of([calls(*[("counts", "{}")] * 9), "done"], tools=[counts], max_concurrent_tools=3)
    await agent.run("go")
    assert most == 3


async def test_sync_tools_and_what_they_return_as_json() -> None:
    agent, provider = agent_of(
        [calls(("population", '{"city": "Berlin"}')), "3.7 million"], tools=[weather, population]
    )
    assert (await agent.run("How many live in Berlin?")).content == "3.7 million"
    assert sent(provider)[-1].content == '{"city":"Berlin","people":3700000}'
    assert [each.name for each in provider.requests[0].tools] == ["weather", "population"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("nothing", "{}"), "there is no tool 'nothing'; tools are: weather, breaks"),
        (("weather", "{not json"), "ToolError"),
        (("weather", "[" * 10_000), "ToolError"),
        (("weather", '{"city": 7}'), "city"),
        (("weather", '{"city": "x", "more": 1}'), "more"),
        (("weather", "{}"), "city"),
        (("breaks", "{}"), "ValueError: it is broken"),
    ],
)
async def test_a_model_is_told_what_was_wrong_with_its_call(asked: tuple[str, str], told: str) -> None:
    @tool
    async def breaks() -> None:
        raise ValueError("it is broken")

    agent, provider = agent_of([calls(asked), "I see"], tools=[weather, breaks])
    assert (await agent.run("go")).content == "I see"
    result = sent(provider)[-1]
    assert result.is_error
    assert told in result.text


async def test_a_tool_that_takes_too_long_is_told_and_a_call_that_may_be_repeated_is() -> None:
    tried = []

    @tool(effect="read", timeout="1ms", retries=2, backoff="1ms")
    async def hangs() -> None:
        tried.append(1)
        await asyncio.Event().wait()

    @tool(retries=2, backoff="1ms")
    async def once() -> None:
        tried.append(2)
        raise OSError("gone")

    agent, provider = agent_of([calls(("hangs", "{}"), ("once", "{}")), "done"], tools=[hangs, once])
    await agent.run("go")
    assert sorted(tried) == [1, 1, 1, 2]  # an unsafe call is made once
    assert [each.text for each in sent(provider)[-2:]] == [
        "ToolTimeout: hangs did not return within 0.001 s",
        "OSError: gone",
    ]


async def test_a_tool_in_which_something_was_cancelled_is_told_and_a_run_that_is_cancelled_ends() -> None:
    began = asyncio.Event()

    @tool(retries=0)
    async def inner() -> None:
        task = asyncio.ensure_future(asyncio.Event().wait())
        task.cancel("enough")
        await task

    @tool
    def thread() -> None:
        raise asyncio.CancelledError("in a thread")

    @tool
    async def waits() -> None:
        began.set()
        await asyncio.Event().wait()

    asked = [calls(("inner", "{}"), ("thread", "{}")), calls(("waits", "{}")), "done"]
    agent, provider = agent_of(asked, tools=[inner, thread, waits])
    run = asyncio.create_task(agent.run("go"))
    await asyncio.wait({run, asyncio.create_task(began.wait())}, return_when=asyncio.FIRST_COMPLETED)
    assert [each.text for each in sent(provider)[-2:]] == ["CancelledError: enough", "CancelledError: in a thread"]
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


@pytest.mark.parametrize(
    "what", ["max_turns", "max_concurrent_tools", "context_window", "max_tool_chars", "max_tool_retries", "repairs"]
)
@pytest.mark.parametrize("value", [-1, True, 1.5, "2"])
def test_what_counts_is_a_whole_number(what: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"{what}=.*whole number"):
        agent_of("yes", **{what: value})


async def test_the_middleware_of_an_agent_is_that_of_its_engine() -> None:
    context, seen = RequestContext(tenant_id="acme"), []

    async def look(call: ModelCall, forward: Forward) -> Outcome:
        seen.append(call.context.tenant_id)
        return await forward(call)

    engine = ExecutionEngine(ScriptedProvider("Hello"), middleware=(*MIDDLEWARE, look))
    agent = Agent(engine=engine, tools=[weather], use_middleware=True)
    assert ((await agent.run("Hello!", context=context)).content, seen) == ("Hello", ["acme"])
    with pytest.raises(UserError, match="use_middleware=1"):
        Agent(engine, use_middleware=1)  # type: ignore[arg-type]


@tool(effect="read")
async def shaky() -> str:
    """Fails at first."""
    shaky_calls.append("call")
    if len(shaky_calls) == 1:
        raise ToolError("not yet")
    return "at last"


shaky_calls: list[str] = []


@pytest.mark.parametrize("with_it", [True, False])
async def test_the_middleware_stands_around_calls_of_tools_unless_the_agent_is_without_it(
    with_it: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Document 001: the chain (logging, timeout, retry, budget, telemetry) is that of the agent's tools. It was around models alone, and
    use_middleware=False was refused."""
    caplog.set_level("DEBUG", logger="sabot.llm")
    shaky_calls.clear()
    budget = CallBudget(max_tool_calls=3)
    engine = ExecutionEngine(
        ScriptedProvider([assistant("", *(ToolCall(str(n), "shaky", "{}") for n in range(1))), "done"]), budget=budget
    )
    agent = Agent(engine, tools=[shaky], max_tool_retries=1, tool_timeout="7s", use_middleware=with_it)
    result = await agent.run("go")
    assert result.messages[2].text == ("at last" if with_it else "ToolError: not yet")
    figures = engine.statistics()
    assert (figures["tool_calls"], figures["failed_tool_calls"]) == ((2, 1) if with_it else (0, 0))
    assert budget.tool_calls == (2 if with_it else 0)
    assert ("tool shaky for" in caplog.text) == with_it
    assert agent.tools["shaky"].timeout_s == (7.0 if with_it else None)  # type: ignore[union-attr]


async def test_a_budget_of_calls_of_tools_is_held_and_the_model_is_told() -> None:
    script = [assistant("", ToolCall("1", "weather", '{"city": "Oslo"}'), ToolCall("2", "weather", '{"city": "Rome"}'))]
    engine = ExecutionEngine(ScriptedProvider([*script, "done"]), budget=CallBudget(max_tool_calls=1))
    result = await Agent(engine, tools=[weather]).run("go")
    assert "the budget has 1 calls of tools" in result.messages[3].text


class Gone(NotSent):
    """Nothing was sent."""


@pytest.mark.parametrize(
    ("effect", "said", "error", "most", "attempts"),
    [
        ("read", {}, OSError("gone"), 3, 4),
        ("idempotent", {}, OSError("gone"), 2, 3),
        ("metered", {}, OSError("gone"), 0, 1),
        ("read", {"retries": 1}, OSError("gone"), 3, 2),
        ("read", {"retries": 0}, OSError("gone"), 3, 1),
        ("unsafe", {}, OSError("gone"), 3, 1),
        ("unsafe", {"retries": 5}, OSError("gone"), 3, 1),
        ("unsafe", {}, Gone("no connection"), 3, 4),
        ("reconcilable", {}, OSError("gone"), 3, 1),
    ],
)
async def test_a_call_that_failed_is_made_again_where_its_class_allows_it(
    effect: str, said: dict[str, Any], error: Exception, most: int, attempts: int
) -> None:
    tried = []
    more = {"reconcile": lambda effect: False} if effect == "reconcilable" else {}

    @tool(effect=effect, backoff=0, **said, **more)
    async def breaks() -> None:
        tried.append(1)
        raise error

    agent, provider = agent_of([calls(("breaks", "{}")), "I see"], tools=[breaks], max_tool_retries=most)
    await agent.run("go")
    assert (len(tried), sent(provider)[-1].is_error) == (attempts, True)
    assert str(error) in sent(provider)[-1].text


async def test_runs_with_one_context_share_no_idempotency_key_and_the_attempts_of_a_call_do() -> None:
    """Each run numbered its calls from 1 by the request id of its context: the second payment had the key of the first,
    and the service dropped it.
    """
    keys: list[str] = []

    @tool(effect="idempotent", backoff=0)
    def pay(order: str, effect: Effect) -> str:
        keys.append(effect.key)
        if len(keys) == 1:
            raise ConnectionError("gone")
        return "paid"

    script = [text for order in ("o-1", "o-2") for text in (calls(("pay", f'{{"order": "{order}"}}')), "done")]
    agent, _ = agent_of(script, tools=[pay])
    context = RequestContext(request_id="request-1", tenant_id="acme")
    for _ in range(2):
        await agent.run("go", context=context)
    first, again, second = keys
    assert first == again != second


async def test_three_retries_are_the_default_and_the_model_is_not_told_of_a_failure_that_passed() -> None:
    tried = []

    @tool(effect="read", backoff=0)
    def sometimes() -> str:
        tried.append(1)
        if len(tried) < 4:
            raise ConnectionError("gone")
        return "here"

    agent, provider = agent_of([calls(("sometimes", "{}")), "I see"], tools=[sometimes])
    await agent.run("go")
    assert (len(tried), sent(provider)[-1].text) == (4, "here")


async def test_what_a_tool_returns_is_bounded() -> None:
    @tool(effect="read")
    async def long() -> str:
        return "x" * 10_000_000

    agent, provider = agent_of([calls(("long", "{}")), "done"], tools=[long], max_tool_chars=100)
    await agent.run("go")
    assert sent(provider)[-1].text == "x" * 100 + "\n… (9,999,900 more characters were cut off)"


@pytest.mark.parametrize("first", ["long", "short"])
async def test_too_long_arguments_are_refused_by_place_if_calls_have_one_id(first: str) -> None:
    """A provider of a program's own gave two calls one id: the second one decided for both."""
    made = []

    @tool(effect="read")
    async def note(text: str) -> str:
        made.append(text)
        return "noted"

    texts = {"long": "x" * 500, "short": "y"}
    order = [first, *texts.keys() - {first}]
    both = [ToolCall("c", "note", f'{{"text": "{texts[each]}"}}') for each in order]
    agent, provider = agent_of([assistant("", *both), "done"], tools=[note], max_tool_chars=100)
    await agent.run("go")
    assert made == ["y"]
    *_, asked, one, other = sent(provider)
    refused = {"long": "and may have 100: it was not called", "short": "noted"}
    assert [refused[each] in said.text for each, said in zip(order, (one, other), strict=True)] == [True, True]
    assert "x" * 500 not in str(asked)


async def test_a_model_that_never_stops_calling_tools_is_stopped() -> None:
    agent, provider = agent_of(lambda spec: calls(("weather", '{"city": "x"}')), tools=[weather], max_turns=3)
    conversation = Conversation()
    with pytest.raises(TurnLimitExceeded, match="asked 3 times") as caught:
        await agent.run("go", conversation=conversation)
    assert (len(provider.requests), caught.value.code) == (3, "E2005")
    assert [each.role for each in conversation.messages] == ["user", *["assistant", "tool"] * 3]


# -- structured output ----------------------------------------------------------------------------------------------------


class Verdict(msgspec.Struct):
    label: str
    score: float


GOOD = '{"label": "spam", "score": 0.9}'


async def test_an_answer_is_read_as_the_type_that_was_asked_for() -> None:
    agent, provider = agent_of(GOOD, output=Verdict)
    assert (await agent.run("Is it spam?")).output == Verdict("spam", 0.9)
    assert provider.requests[0].output is not None


async def test_a_model_is_told_what_does_not_match_and_answers_again() -> None:
    agent, provider = agent_of(['{"label": "spam"}', "no json", GOOD], output=Verdict)
    result = await agent.run("Is it spam?")
    assert (result.output, result.turns) == (Verdict("spam", 0.9), 3)
    assert "score" in sent(provider, 1)[-1].text


async def test_answers_outside_of_the_schema_are_asked_for_three_times() -> None:
    agent, provider = agent_of("no json", output=Verdict)
    with pytest.raises(MalformedAnswer) as caught:
        await agent.run("Is it spam?")
    assert (len(provider.requests), caught.value.text, caught.value.code) == (3, "no json", "E2004")


# -- conversations --------------------------------------------------------------------------------------------------------


async def test_a_conversation_goes_on() -> None:
    agent, provider = agent_of(["Hello Ann", "Ann"], instructions="Be short.")
    conversation = Conversation()
    await agent.run("I am Ann", conversation=conversation)
    await agent.run("Who am I?", conversation=Conversation.from_bytes(conversation.to_bytes()))
    assert [each.text for each in sent(provider)] == ["Be short.", "I am Ann", "Hello Ann", "Who am I?"]


async def test_a_run_that_is_cancelled_in_a_tool_leaves_a_conversation_that_can_go_on() -> None:
    began = asyncio.Event()

    @tool(effect="read")
    async def hangs() -> None:
        began.set()
        await asyncio.Event().wait()

    agent, provider = agent_of(
        [calls(("weather", '{"city": "x"}')), calls(("weather", '{"city": "x"}'), ("hangs", "{}")), "fine"],
        tools=[weather, hangs],
    )
    conversation = Conversation()
    task = asyncio.create_task(agent.run("go", conversation=conversation))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [each.role for each in conversation.messages] == ["user", "assistant", "tool"]
    assert (await agent.run("go on", conversation=conversation)).content == "fine"
    assert groups_of(sent(provider)) == [(sent(provider)[0],), tuple(sent(provider)[1:3]), (sent(provider)[3],)]


async def test_a_run_that_failed_before_an_answer_leaves_nothing() -> None:
    agent, _ = agent_of([ModelUnavailable("down")])
    conversation = Conversation()
    with pytest.raises(ModelUnavailable):
        await agent.run("go", conversation=conversation)
    assert conversation.messages == []


def long_conversation(turns: int) -> Conversation:
    messages: list[ChatMessage] = []
    for turn in range(turns):
        messages += [user(f"{turn} " + "x" * 400), calls(("weather", '{"city": "x"}'))]
        messages += [tool_result("c0", "y" * 400), assistant(f"{turn} " + "z" * 400)]
    return Conversation(messages)


async def test_what_does_not_fit_is_left_out_the_oldest_first_and_no_call_without_its_result() -> None:
    agent, provider = agent_of("fine", context_window=2000, max_tokens=500)
    conversation = long_conversation(20)
    await agent.run("and now?", conversation=conversation)
    messages = sent(provider)
    assert 4 < len(messages) < 20
    assert messages[-1] == user("and now?")
    assert [each for group in groups_of(messages) for each in group] == messages
    assert TokenEstimator().tokens(messages) <= 1500
    assert conversation.messages == [*messages, assistant("fine")], "what was left out is not kept either"


async def test_the_oldest_turns_may_be_summarized() -> None:
    def answer(spec: RequestSpec) -> str:
        return "they spoke of x" if spec.messages[-1].text.startswith("Summarize") else "fine"

    agent, provider = agent_of(answer, context_window=2000, max_tokens=500, trim="summarize")
    conversation = long_conversation(20)
    await agent.run("and now?", conversation=conversation)
    assert len(provider.requests) == 2
    assert sent(provider)[0].text == "Summary of the conversation so far:\nthey spoke of x"
    assert conversation.messages[0] == sent(provider)[0]
    await agent.run("and then?", conversation=conversation)
    assert len(provider.requests) == 3, "it is summarized once"


@pytest.mark.parametrize("trim", ["refuse", "drop_oldest"])
async def test_a_prompt_above_the_context_window_is_refused_before_it_is_sent(trim: Any) -> None:
    agent, provider = agent_of("fine", context_window=2000, max_tokens=500, trim=trim)
    with pytest.raises(ContextLengthExceeded, match="room for 1,500") as caught:
        await agent.run("x" * 10_000)
    assert (provider.requests, caught.value.code) == ([], "E2003")


async def test_where_the_provider_finds_it_too_long_half_of_it_is_sent() -> None:
    agent, provider = agent_of([ContextLengthExceeded("too long"), "fine"])
    await agent.run("and now?", conversation=Conversation(long_conversation(400).messages))
    assert len(provider.requests[1].messages) < len(provider.requests[0].messages)


async def test_a_model_is_told_of_its_newest_calls_however_long_their_results_are() -> None:
    paid: list[int] = []

    @tool(effect="unsafe")
    async def pay(amount: int) -> str:
        """Pays, and says much or little of it."""
        paid.append(amount)
        return f"paid {amount} " + "x" * (50_000 if amount > 5 else 10)

    def answer(spec: RequestSpec) -> ChatMessage | str:  # calls what it has not been told of
        if spec.messages[-1].role == "tool":
            return "done"
        return calls(*(("pay", f'{{"amount": {amount}}}') for amount in (5, 6, 7)))

    agent, provider = agent_of(answer, tools=[pay], context_window=2000, max_tokens=500)
    conversation = long_conversation(5)
    assert (await agent.run("pay", conversation=conversation)).content == "done"
    assert (len(provider.requests), paid) == (2, [5, 6, 7])
    *_, prompt, asked, little, much, more = sent(provider)
    assert (prompt, len(asked.tool_calls)) == (user("pay"), 3)
    assert little.text == "paid 5 xxxxxxxxxx", "a short result is whole"
    assert all(each.text.endswith("more characters were cut off)") for each in (much, more))
    assert 1400 < TokenEstimator().tokens(sent(provider)) <= 1500
    assert conversation.messages == [prompt, asked, little, much, more, assistant("done")]


async def test_calls_that_have_no_room_even_without_their_results_end_the_run() -> None:
    agent, provider = agent_of(
        calls(("weather", f'{{"city": "{"x" * 20_000}"}}')), tools=[weather], context_window=2000, max_tokens=500
    )
    with pytest.raises(ContextLengthExceeded, match="room for 1,500"):
        await agent.run("go")
    assert len(provider.requests) == 1


def test_messages_of_a_broken_conversation_are_left_out() -> None:
    whole = [user("a"), calls(("x", "{}")), tool_result("c0", "1")]
    broken = [tool_result("c9", "?"), *whole, calls(("x", "{}"), ("y", "{}")), tool_result("c0", "1"), user("b")]
    assert [each for group in groups_of(broken) for each in group] == [*whole, user("b")]
    assert without_oldest(broken, 0, 0, TokenEstimator())[1] == []


# -- events ---------------------------------------------------------------------------------------------------------------


async def test_a_stream_has_the_pieces_the_tools_and_the_result() -> None:
    agent, _ = agent_of([calls(("weather", '{"city": "Oslo"}')), "It is warm"], tools=[weather])
    events = [event async for event in agent.stream("How is Oslo?")]
    kinds = [type(event).__name__ for event in events]
    assert kinds.index("ToolStarted") < kinds.index("ToolEnded") < kinds.index("AgentResult") == len(kinds) - 1
    assert "".join(getattr(event, "text", "") for event in events) == "It is warm"
    assert isinstance(events[-1], AgentResult)
    assert events[-1].content == "It is warm"


async def test_a_stream_that_is_left_cancels_what_runs() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    @tool(effect="read")
    async def hangs() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    agent, _ = agent_of([calls(("hangs", "{}"), ("weather", '{"city": "x"}'))], tools=[weather, hangs])
    events = agent.stream("go")
    async for event in events:
        if isinstance(event, ToolEnded):
            break
    assert began.is_set()
    await events.aclose()
    assert ended.is_set()


# -- other agents ---------------------------------------------------------------------------------------------------------


async def test_an_agent_hands_over_to_another_one() -> None:
    other, _ = agent_of("42", name="mathematician", instructions="Computes.")
    agent, provider = agent_of([calls(("mathematician", '{"prompt": "6 * 7"}')), "It is 42"], tools=[other])
    result = await agent.run("What is 6 times 7?")
    assert sent(provider)[-1].text == "42"
    assert result.usage.total_tokens > Usage().total_tokens
    assert provider.requests[0].tools[0].description == "Computes."


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trim": "forget"}, "trim='forget'"),
        ({"max_turns": 0}, "max_turns=0"),
        ({"tools": [weather, weather]}, "two tools are called 'weather'"),
        ({"tools": [3]}, "is no function"),
        ({"tools": weather}, "a list of functions"),
        ({"instructions": ["Be kind."]}, "instructions="),
        ({"name": ""}, "name"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    make: Callable[..., Any] = lambda: agent_of("x", **options)  # noqa: E731
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize("engine", ["openai:gpt-4o", ScriptedProvider("x"), ExecutionEngine])
def test_an_agent_without_an_engine_is_refused_with_the_way_to_make_one(engine: Any) -> None:
    with pytest.raises(UserError, match="is no engine") as caught:
        Agent(engine)
    assert "ExecutionEngine(OpenAIProvider(" in caught.value.hint


def test_started_and_ended_are_values() -> None:
    call = ToolCall("c0", "weather", "{}")
    assert ToolStarted(call) == ToolStarted(call)


@pytest.mark.parametrize(("given", "sent"), [({}, None), ({"temperature": 0.2}, 0.2)])
async def test_an_agent_sends_a_temperature_only_where_it_was_given_one(given: dict[str, float], sent: Any) -> None:
    """Reasoning models refuse the parameter. The bound of the answer stays: budgets reserve by it."""
    provider = ScriptedProvider("yes")
    await Agent(ExecutionEngine(provider), **given).run("hello")
    assert (provider.requests[0].temperature, provider.requests[0].max_tokens) == (sent, 4096)
