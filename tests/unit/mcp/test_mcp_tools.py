"""MCP tools in agents: their classes and labels, what their models are told, and who answers what their servers ask."""

import asyncio

import pytest
from mcp import MCPError, types
from mcp.server.lowlevel import Server

from sabot.agents import BudgetSpec, ExecutionRequest, ModelPolicy, PolicyEngine, RuntimeKernel, ToolPolicy
from sabot.engine.calls.effects import EffectClass
from sabot.engine.calls.tools import UNTRUSTED
from sabot.errors import EffectError, UserError
from sabot.llm import (
    Agent,
    CallBudget,
    Completion,
    ExecutionEngine,
    RequestContext,
    ScriptedProvider,
    ToolCall,
    assistant,
    tool,
)
from sabot.mcp import McpConfig, McpConnectionLost, McpRefused, McpServerPool, McpToolChanged
from sabot.mcp.elicitation import check_reply, shown_question
from tools.mcp_servers import FORM, Desk, ask_person, asking_once, in_memory, over_sockets, peer, text, told


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
async def pool():
    async with McpServerPool() as made:
        yield made


def by_name(tools):
    return {each.name: each for each in tools}


def scripted(*answers, **options):
    return ExecutionEngine(ScriptedProvider(list(answers)), retries=0, patience=0, **options)


def calls(name, arguments):
    return assistant("", ToolCall("c1", name, arguments))


# -- what they are ----------------------------------------------------------------------------------------------------


async def test_the_hints_of_a_server_propose_classes_and_the_program_has_the_last_word(pool, desk):
    connect = in_memory(lambda key: desk.server())
    found = by_name(await pool.tools("desk", connect=connect, effects={"count": "unsafe", "send": "metered"}))
    assert {name: str(each.effect) for name, each in found.items()} == {
        "add": "read",
        "book": "unsafe",
        "count": "unsafe",
        "fail": "unsafe",
        "send": "metered",
        "think": "unsafe",
        "turn": "unsafe",
    }
    distrusted = await pool.tools("desk", trust_annotations=False, effects={"add": "idempotent"})
    assert {str(each.effect) for each in distrusted if each.name != "add"} == {"unsafe"}
    assert {str(each.effect) for each in await pool.tools("desk", effects="read")} == {"read"}
    proposed = by_name(await pool.tools("desk"))
    assert proposed["count"].effect is EffectClass.IDEMPOTENT
    assert (proposed["count"].retry.retries, proposed["send"].retry.retries) == (1, 0)


async def test_results_of_an_open_world_are_not_trusted(pool, desk):
    found = by_name(await pool.tools("desk", connect=in_memory(lambda key: desk.server()), labels={"desk"}))
    assert found["send"].labels == {"desk", UNTRUSTED}
    assert found["count"].labels == {"desk"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"effects": {"subtract": "read"}}, "effects= names subtract, which it does not offer"),
        ({"effects": {"add": "pure"}}, "pure"),
        ({"effects": "reconcilable"}, "reconcilable"),
        ({"only": ["subtract"]}, "it offers no tool subtract"),
        ({"on_change": "maybe"}, "on_change='maybe'"),
        ({"in_doubt": "maybe"}, "in_doubt='maybe'"),
    ],
)
async def test_what_cannot_be_said_of_tools_is_refused(pool, desk, options, words):
    with pytest.raises(UserError, match=words):
        await pool.tools("desk", connect=in_memory(lambda key: desk.server()), **options)


async def test_a_list_that_changes_is_heard_of_by_a_subscription_too(pool, desk):
    """As servers tell it since 2026-07-28."""
    tools = by_name(await pool.tools("desk", connect=in_memory(lambda key: desk.server())))
    assert (await tools["add"](a=1, b=2)).text == "3"
    await tools["turn"]()

    async def until_it_changes():  # which may be told behind the answer
        while True:
            await tools["add"](a=1, b=2)

    with pytest.raises(McpToolChanged):
        await asyncio.wait_for(until_it_changes(), 60)


async def test_a_tool_that_is_listed_anew_while_it_is_called_is_looked_at_again(pool):
    """A server that demands headers by its schema is asked for its list again, and the call was made whatever that said."""
    add, calls = told("add"), []

    async def listed(ctx, params):
        return types.ListToolsResult.model_validate({"tools": [add]})

    async def call(ctx, params):
        if add["annotations"]["readOnlyHint"]:
            add.update(annotations={"readOnlyHint": False})
            raise MCPError(types.HEADER_MISMATCH, "the schema demands a header")
        calls.append(params.name)
        return types.CallToolResult.model_validate(text("3"))

    connect = in_memory(lambda key: Server("desk", version="1", on_list_tools=listed, on_call_tool=call))
    for number, options in enumerate([{}, {"on_change": "allow"}, {"on_change": "allow", "effects": "unsafe"}]):
        add.update(annotations={"readOnlyHint": True})
        (made,) = await pool.tools(f"desk{number}", connect=connect, **options)
        if "effects" in options:
            assert (await made()).text == "3"
        else:
            with pytest.raises(McpToolChanged):
                await made()
    assert calls == ["add"], "the one whose class was declared"


async def test_names_are_those_that_all_vendors_take(pool):
    async def echo(there, request):
        await there.answer(request, text(request["params"]["name"]))

    tools = await pool.tools("bad", connect=peer(echo, tools=[told("files/read.all")]), prefix="fs_")
    assert [each.name for each in tools] == ["fs_files_read_all"]
    assert (await tools[0]()).text == "files/read.all"
    assert len((await pool.tools("bad", prefix="x" * 100))[0].name) == 64


# -- in an agent ------------------------------------------------------------------------------------------------------


async def test_an_agent_calls_them_and_its_model_is_told_what_failed(pool, desk):
    engine = scripted(
        calls("add", '{"a": 1, "b": "x"}'), calls("add", '{"a": 1, "b": 2}'), calls("fail", "{}"), "no order"
    )
    agent = Agent(engine, tools=await pool.tools("desk", connect=in_memory(lambda key: desk.server())))
    result = await agent.run("How many?")
    told_ = [(each.text, each.is_error) for each in result.messages if each.role == "tool"]
    assert "expected integer, got string - at $.b" in told_[0][0]
    assert told_[1:] == [("3", False), ("no such order", True)]
    assert desk.calls == [("add", {"a": 1, "b": 2}), ("fail", {})], (
        "a tool that says that it failed is not called again"
    )
    assert result.content == "no order"


async def test_an_agent_calls_them_for_its_tenant(pool):
    async def say(there, request):
        await there.answer(request, text(f"{there.key.scope}/{there.key.principal}"))

    tools = await pool.tools("who", connect=peer(say))
    agent = Agent(scripted(calls("go", "{}"), "done"), tools=tools)
    result = await agent.run("Who am I?", context=RequestContext(tenant_id="acme", user_id="ann"))
    assert next(each.text for each in result.messages if each.role == "tool") == "acme/ann"


async def test_a_read_that_was_cut_off_is_made_again_and_another_call_is_not(pool):
    seen = []

    async def say(there, request):
        seen.append(request["params"]["name"])
        if len(seen) in (1, 3):
            there.writer.close()
            return
        await there.answer(request, text("done"))

    offered = [told("look", annotations={"readOnlyHint": True}), told("send")]
    look, send = await pool.tools("frail", connect=peer(say, tools=offered))
    agent = Agent(scripted(calls("look", "{}"), calls("send", "{}"), "done"), tools=[look, send])
    result = await agent.run("Go on")
    said = [(each.text, each.is_error) for each in result.messages if each.role == "tool"]
    assert said[0] == ("done", False)
    assert said[1][1]
    assert "the session ended before the answer came" in said[1][0]
    assert seen == ["look", "look", "send"]


async def test_two_servers_cannot_offer_one_name_to_an_agent(pool, desk):
    @tool
    def add(a: int) -> int:
        return a

    tools = await pool.tools("desk", connect=in_memory(lambda key: desk.server()))
    with pytest.raises(UserError, match="two tools are called 'add'"):
        Agent(scripted("x"), tools=[add, *tools])


# -- what servers ask -------------------------------------------------------------------------------------------------


class Person:
    """asked: what they were shown."""

    def __init__(self, *answers):
        self.asked = []
        self._answers = list(answers)

    async def __call__(self, kind, payload, timeout_s):
        self.asked.append((kind, dict(payload), timeout_s))
        return self._answers.pop(0)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"smoking": False}, "accept {'smoking': False}"),
        ({"content": {"smoking": True}}, "accept {'smoking': True}"),
        ({"answer": True}, "accept {'smoking': True}"),
        ({"approved": False}, "decline None"),
        ({"action": "cancel"}, "cancel None"),
        (None, "cancel None"),
    ],
)
async def test_a_person_answers_what_a_server_asks(desk, answer, said):
    person = Person(answer)
    async with McpServerPool(McpConfig(question_timeout="1h"), ask=person) as pool:
        tools = await pool.tools("desk", connect=in_memory(lambda key: desk.server()), only=["book"])
        assert (await tools[0](seat="4A")).text == f"state 1: 4A: {said}"
    (asked,) = person.asked
    assert asked[0] == "input"
    assert asked[2] == 3600
    assert (asked[1]["server"], asked[1]["tool"], asked[1]["message"]) == ("desk", "book", "Do you smoke?")


async def test_a_person_is_asked_again_for_an_answer_that_does_not_fit(desk):
    person = Person({"smoking": "often"}, {"smoking": True})
    async with McpServerPool(ask=person) as pool:
        tools = await pool.tools("desk", connect=in_memory(lambda key: desk.server()), only=["book"])
        assert (await tools[0](seat="4A")).text.endswith("accept {'smoking': True}")
    assert person.asked[1][1]["wrong"] == "expected boolean, got string - at $.smoking"


UNCLEAR = [
    ({"action": "reject"}, "action='reject' is none of accept, decline, cancel"),
    ({"action": "Decline", "note": "no"}, "action='Decline' is none of"),
    ({"approved": "no"}, "approved='no' is neither true nor false"),
    ({"approved": 0}, "approved=0 is neither true nor false"),
    ({"approved": False, "action": "accept"}, "say two things"),
    ({"approved": True, "action": "decline"}, "say two things"),
]


@pytest.mark.parametrize(("answer", "words"), UNCLEAR)
async def test_an_answer_that_neither_accepts_nor_declines_accepts_nothing(answer, words):
    """A form without required fields took `{"action": "reject"}` for one that was sent empty, and the server went on."""
    form = {"message": "Book it?", "requestedSchema": {"type": "object", "properties": {"note": {"type": "string"}}}}
    person = Person(answer, {"approved": False})
    async with McpServerPool(ask=person) as pool:
        pool.add("old", connect=asking(("elicitation/create", form)))
        assert (await (await pool.session("old")).call("go")).text == "[{'action': 'decline'}]"
    shown = person.asked[1][1]
    assert words in shown.pop("wrong")
    with pytest.raises(UserError, match="server old asks for fields"):
        check_reply(shown, answer)
    check_reply(shown, {"note": "window"})
    visit = {"message": "Log in", "mode": "url", "url": "https://bank.example", "elicitationId": "e-1"}
    with pytest.raises(UserError, match="server old asks for a yes or no"):
        check_reply(shown_question("old", "go", visit), answer)
    async with McpServerPool(ask=Person(answer)) as pool:
        pool.add("old", connect=asking(("elicitation/create", visit)))
        assert "accept" not in (await (await pool.session("old")).call("go")).text


async def test_where_nobody_can_be_asked_the_server_is_told_so(pool, desk):
    tools = await pool.tools("desk", connect=in_memory(lambda key: desk.server()), only=["book"])
    assert (await tools[0](seat="4A")).text.endswith("cancel None")


def asking(*questions, then=None):
    """A peer of the time when servers asked by requests of their own."""
    waiting = {}

    async def ask(there, request):
        answers = []
        for number, (method, params) in enumerate(questions):
            key = f"{request['id']}-{number}"
            waiting[key] = asyncio.get_running_loop().create_future()
            await there.write({"id": key, "method": method, "params": params})
            answers.append(await waiting[key])
        await there.answer(request, text(str(answers)))

    async def hear(there, said):
        if said.get("id") in waiting:
            waiting[said["id"]].set_result(said.get("result") or said["error"]["message"])
        elif "method" in said and "id" in said:
            await there.refuse(said, -32601, "no")

    return peer(ask, on_other=hear, version="2025-06-18")


async def test_a_server_that_asks_by_a_request_of_its_own_waits_for_the_answer():
    person = Person({"sure": True}, {"approved": False})
    config = McpConfig(request_timeout="60s")
    async with McpServerPool(config, ask=person) as pool:
        pool.add("old", connect=asking(("elicitation/create", FORM), ("elicitation/create", FORM)))
        result = await (await pool.session("old")).call("go")
    assert result.text == "[{'action': 'accept', 'content': {'sure': True}}, {'action': 'decline'}]"


async def test_time_in_which_a_person_thinks_does_not_count(time_limits):
    async def think(kind, payload, timeout_s):
        (limit,) = time_limits(17)
        assert "finished" in repr(limit), "the time of the call is not running"
        return {"sure": True}

    async with McpServerPool(ask=think) as pool:
        pool.add("old", connect=asking(("elicitation/create", FORM)))
        result = await (await pool.session("old")).call("go", timeout=17)
    assert "accept" in result.text
    assert len(time_limits(17)) == 2, "before the question, and behind it"


async def test_a_server_whose_question_nobody_answers_in_time_is_told_so(monkeypatch):
    """It waited for the answer until its session ended, though its call had been given up."""
    monkeypatch.setattr("sabot.mcp.calls._ANSWER_SECONDS", 0.0)
    told, here = asyncio.Queue(), asyncio.get_running_loop()

    async def hear(there, said):
        here.call_soon_threadsafe(told.put_nowait, said["error"]["message"])

    async def never(kind, payload, timeout_s):
        await asyncio.Event().wait()

    async with McpServerPool(McpConfig(question_timeout="10ms"), ask=never) as pool:
        pool.add("old", connect=asking_once(hear))
        call = asyncio.create_task((await pool.session("old")).call("go"))
        assert await asyncio.wait_for(told.get(), 60) == "nobody has answered"
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_a_call_that_ends_while_a_person_is_asked_ends_at_the_server_too(how):
    """It held its session, and the server its question, until the time for the answer was over: a day."""
    asked, told, here = asyncio.Event(), asyncio.Queue(), asyncio.get_running_loop()

    async def hear(there, said):
        here.call_soon_threadsafe(told.put_nowait, said["error"]["message"])

    async def person(kind, payload, timeout_s):
        asked.set()
        if how == "fails":
            raise RuntimeError("there is no desk")
        await asyncio.Event().wait()

    async with McpServerPool(ask=person) as pool:
        pool.add("old", connect=asking_once(hear))
        call = asyncio.create_task((await pool.session("old")).call("go"))
        await asked.wait()
        if how == "is cancelled":
            call.cancel()
        (raised,) = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(raised, RuntimeError if how == "fails" else asyncio.CancelledError)
        assert await asyncio.wait_for(told.get(), 60) == "nobody has answered"


async def test_a_question_that_may_be_of_several_calls_is_refused():
    waiting = []

    async def ask(there, request):
        waiting.append(request)
        if len(waiting) == 2:
            await ask_person(there, request)

    async def hear(there, said):
        for request in waiting:
            await there.answer(request, text(said["error"]["message"]))

    async with McpServerPool(ask=Person({"sure": True})) as pool:
        pool.add("old", connect=asking_once(hear, ask))
        session = await pool.session("old")
        first, second = await asyncio.gather(session.call("go"), session.call("go"))
    assert first.text == second.text == "several calls are under way: nobody can say who is asked"


async def test_a_server_cannot_ask_without_end(desk):
    person = Person(*[{"sure": True}] * 20)
    async with McpServerPool(McpConfig(max_questions=3), ask=person) as pool:
        pool.add("old", connect=asking(*[("elicitation/create", FORM)] * 4))
        result = await (await pool.session("old")).call("go")
        assert "it has asked too much" in result.text
        assert len(person.asked) == 3

    class Nosy(Desk):
        def _asking(self, name, given, params):
            params.input_responses = None
            return super()._asking(name, given, params)

    person = Person(*[{"smoking": True}] * 20)
    async with McpServerPool(McpConfig(max_questions=3), ask=person) as pool:
        pool.add("desk", connect=in_memory(lambda key: Nosy().server()))
        with pytest.raises(McpRefused, match="book asked more than 3 times"):
            await (await pool.session("desk")).call("book", {"seat": "4A"})


async def test_a_call_whose_server_died_while_a_person_was_asked_is_in_doubt():
    async def hear(there, said):
        there.writer.close()

    async with McpServerPool(ask=Person({"sure": True})) as pool:
        pool.add("old", connect=asking_once(hear))
        session = await pool.session("old")
        with pytest.raises(McpConnectionLost):
            await session.call("go")


# -- what servers ask of models ---------------------------------------------------------------------------------------


async def test_a_server_asks_a_model_by_the_engine_within_bounds(desk):
    provider = ScriptedProvider(["fine"])
    engine = ExecutionEngine(provider, retries=0, patience=0)
    async with McpServerPool(McpConfig(max_sampling_tokens=100), sampling=engine) as pool:
        tools = await pool.tools("desk", connect=in_memory(lambda key: desk.server()), only=["think"])
        assert (await tools[0]()).text == "state 1: fine"
    (request,) = provider.requests
    assert request.max_tokens == 100
    assert [(each.role, each.text) for each in request.messages] == [("user", "How are you?")]


async def test_a_server_of_before_asks_a_model_too():
    params = {"messages": [{"role": "user", "content": {"type": "text", "text": "Hm?"}}], "maxTokens": 10}
    async with McpServerPool(sampling=scripted("fine")) as pool:
        pool.add("old", connect=asking(("sampling/createMessage", {**params, "systemPrompt": "Be kind."})))
        result = await (await pool.session("old")).call("go")
    assert "'text': 'fine'" in result.text


@pytest.mark.parametrize(
    ("reason", "words"),
    [("length", "'stopReason': 'maxTokens'"), ("content_filter", "a filter of the provider held the answer back")],
)
async def test_a_server_is_told_how_the_answer_of_a_model_has_ended(reason, words):
    """A filtered answer was told as one that the model had ended."""
    params = {"messages": [{"role": "user", "content": {"type": "text", "text": "Hm?"}}], "maxTokens": 10}
    said = Completion(message=assistant("It is Ro"), finish_reason=reason)
    async with McpServerPool(sampling=scripted(said)) as pool:
        pool.add("old", connect=asking(("sampling/createMessage", params)))
        result = await (await pool.session("old")).call("go")
    assert words in result.text


HI = {"role": "user", "content": {"type": "text", "text": "Hi"}}


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"messages": [HI], "maxTokens": -5}, "a model is not asked for -5 tokens"),
        ({"messages": [HI], "maxTokens": 0}, "a model is not asked for 0 tokens"),
        ({"messages": [HI], "maxTokens": 10, "temperature": 99}, "a model is not asked at temperature 99"),
        ({"messages": [], "maxTokens": 10}, "a model is not asked without a message"),
    ],
)
async def test_what_no_model_takes_is_told_to_the_server_and_asked_of_none(params, words):
    provider = ScriptedProvider(["fine"])
    async with McpServerPool(sampling=ExecutionEngine(provider, retries=0, patience=0)) as pool:
        pool.add("old", connect=asking(("sampling/createMessage", params)))
        result = await (await pool.session("old")).call("go")
    assert words in result.text
    assert provider.requests == []


async def test_an_integer_of_more_than_64_bits_is_a_result(pool):
    """The tool had run, and its caller got an error, because journals could not record it."""

    async def answer(there, request):
        await there.answer(request, text("done", structuredContent={"a": 10**30}))

    pool.add("peer", connect=peer(answer))
    result = await (await pool.session("peer")).call("go")
    assert (result.text, result.structured) == ("done", {"a": 10**30})


async def test_a_budget_holds_for_what_servers_ask(desk):
    params = {"messages": [{"role": "user", "content": {"type": "text", "text": "Hm?"}}], "maxTokens": 10}
    engine = scripted("fine", "fine", budget=CallBudget(max_tokens=1))
    async with McpServerPool(sampling=engine) as pool:
        pool.add("old", connect=asking(("sampling/createMessage", params), ("sampling/createMessage", params)))
        result = await (await pool.session("old")).call("go")
    assert "tokens" in result.text


@pytest.mark.parametrize(
    ("sampling", "rules", "turns", "words"),
    [
        (None, [], 9, "no model answers servers: McpServerPool(sampling=engine) lets one"),
        (scripted("fine"), [ModelPolicy(["*"], denied=True)], 9, "ModelPolicy *"),
        (scripted("fine"), [], 0, "the job may"),
    ],
)
async def test_a_call_whose_server_asks_for_a_model_that_it_does_not_get_says_why(desk, sampling, rules, turns, words):
    """The words were those of the SDK's models, which take no refusal for an answer."""
    async with McpServerPool(sampling=sampling) as pool:
        (think,) = await pool.tools("desk", connect=in_memory(lambda key: desk.server()), only=["think"])

        async def work(ctx):
            try:
                return (await ctx.call(think)).text
            except EffectError as error:
                return f"{error.type}: {error.message}"

        async with RuntimeKernel.create(agent=work, policy=PolicyEngine(rules)) as kernel:
            request = ExecutionRequest(prompt="go", budgets=BudgetSpec(max_turns=turns))
            said = (await (await kernel.execute(request)).result()).output
    assert said.startswith("McpRefused: ")
    assert "MCP server desk: think asks for sampling/createMessage, which was refused: " in said
    assert words in said
    assert "validation" not in said
    assert len(desk.calls) == 1


@pytest.mark.parametrize(("turns", "asked"), [(0, 0), (1, 1), (2, 2)])
async def test_what_servers_ask_of_models_counts_in_the_limits_of_a_job(turns, asked):
    params = {"messages": [{"role": "user", "content": {"type": "text", "text": "Hm?"}}], "maxTokens": 10}
    provider = ScriptedProvider(["fine", "fine"])
    async with McpServerPool(sampling=ExecutionEngine(provider, retries=0, patience=0)) as pool:
        twice = asking(("sampling/createMessage", params), ("sampling/createMessage", params))
        (go,) = await pool.tools("old", connect=twice)

        async def work(ctx):
            return (await ctx.call(go)).text

        async with RuntimeKernel.create(agent=work) as kernel:
            request = ExecutionRequest(prompt="go", budgets=BudgetSpec(max_turns=turns))
            said = (await (await kernel.execute(request)).result()).output
    assert len(provider.requests) == asked
    assert said.count("'text': 'fine'") == asked
    assert ("the job may" in said) is (turns < 2)


@pytest.mark.parametrize("sampling", [None, scripted("fine")])
async def test_a_server_is_told_of_a_model_where_there_is_one(sampling):
    told_ = []

    async def serve(there):
        while True:
            said = await there.read()
            if said.get("method") == "initialize":
                told_.append(said["params"])
                info = {"serverInfo": {"name": "peer", "version": "1"}, "capabilities": {}}
                await there.answer(said, {"protocolVersion": "2025-06-18", **info})
            elif "id" in said:
                await there.refuse(said, -32601, "no")

    async with McpServerPool(sampling=sampling) as pool:
        pool.add("old", connect=over_sockets(serve))
        await pool.session("old")
    assert ("sampling" in told_[0]["capabilities"]) == (sampling is not None)
    assert told_[0]["clientInfo"]["name"] == "sabot"


@pytest.mark.parametrize("added", [{}, {"fee": {"type": "integer", "default": 100}}], ids=["as before", "a fee"])
@pytest.mark.parametrize("edit", [{}, {"arguments": {"seat": "2B"}}], ids=["", "edited"])
async def test_an_approval_holds_for_no_parameter_that_a_server_has_added_in_the_midst_of_a_call(
    tmp_path, desk, added, edit
):
    """A person had approved a seat; the server was restarted while it asked back, and the rest of the call paid its new fee."""
    policy = PolicyEngine([ToolPolicy(["book"], require_approval=True)])

    async def agent(ctx):
        return (await ctx.call(book, seat="1A")).text

    async def question(kernel, kind):
        while True:
            for action in await kernel.actions.find(statuses=["pending"]):
                if action.type == kind:
                    return action
            await asyncio.sleep(0.01)

    for first in (True, False):
        async with McpServerPool() as pool, asyncio.timeout(60):
            (book,) = await pool.tools("desk", only=["book"], connect=in_memory(lambda key: desk.server()))
            async with RuntimeKernel.create(agent=agent, journal=tmp_path / "jobs", policy=policy) as kernel:
                if first:
                    handle = await kernel.execute(ExecutionRequest(prompt="go"))
                    await handle.resolve_action(
                        (await question(kernel, "confirm")).resume_token, {"approved": True, **edit}
                    )
                    asked = await question(kernel, "input")
                    desk.tools[3]["inputSchema"]["properties"].update(added)
                    continue
                (handle,) = await kernel.resume()
                await handle.resolve_action(asked.resume_token, {"smoking": False})
                if added:
                    again = await question(kernel, "confirm")
                    assert again.payload["arguments"][1]["fee"] == 100
                    assert len(desk.calls) == 1
                    await handle.resolve_action(again.resume_token, {"approved": True, "arguments": {"fee": 0}})
                assert "accept" in (await handle.result()).output
    seat = "2B" if edit else "1A"
    assert desk.calls == [("book", {"seat": seat}), ("book", {"seat": seat, **({"fee": 0} if added else {})})]
