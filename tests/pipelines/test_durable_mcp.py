"""MCP tools in durable agents: each step of a call is in the journal, what a server asks is an action, and who was in doubt asks."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sabot import App
from sabot.agents import ActionRecord, ActionStatus, Decision, GuardedCall, PolicyEngine, ToolPolicy
from sabot.clock import ManualClock
from sabot.connectors.memory import MemoryBroker
from sabot.errors import CheckpointFailed, EffectError, UserError
from sabot.journal import Letter
from sabot.llm import Agent, ExecutionEngine, ScriptedProvider, ToolCall, assistant
from sabot.mcp import McpServerPool
from tools.agent_tools import PATIENCE, started, until
from tools.mcp_servers import Desk, ask_person, asking_once, in_memory, peer, text, told


class Office:
    """An app in a directory, again and again, and a desk whose server it uses."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.directory = directory
        self.clock = ManualClock(1_000_000.0)
        self.desk = Desk()
        self.connect = in_memory(lambda key: self.desk.server())

    def app(self, function: Any, **options: Any) -> App:
        wiring = {"state": str(self.directory), "checkpoint_interval": 3600, "clock": self.clock}
        app = App("office", self.url, **wiring, **options)
        app.agent("orders", name="handle", key="customer", sink="answers", durable=True, scope="customer")(function)
        return app

    def order(self, customer: str = "ann") -> None:
        MemoryBroker.get(self.url).publish("orders", [{"customer": customer}])

    def answers(self) -> list[Any]:
        return [record.value for record in MemoryBroker.get(self.url).records("answers")]


@pytest.fixture
def office(memory_url: str, tmp_path: Path) -> Office:
    return Office(memory_url, tmp_path / "state")


@pytest.fixture
async def pool() -> AsyncIterator[McpServerPool]:
    async with McpServerPool() as made:
        yield made


async def crash(app: App) -> None:
    app.agent_runtime.checkpoint_coordinator.refuse("the process died")
    with pytest.raises(CheckpointFailed):
        await app.stop()


async def question(app: App, after: str = "") -> ActionRecord:
    """The one that nobody has answered; not the one of this token, whose answer may be on its way."""
    async with asyncio.timeout(PATIENCE):
        while True:
            for each in await app.actions.find(statuses=[ActionStatus.PENDING]):
                if each.resume_token != after:
                    return each
            await asyncio.sleep(0.002)


async def parked(app: App) -> None:
    await until(lambda: app.statistics()["jobs"]["parked"] == 1)


async def test_what_a_server_asks_is_an_action_that_outlives_worker_and_server(
    office: Office, pool: McpServerPool
) -> None:
    (book,) = await pool.tools("desk", connect=office.connect, only=["book"])

    async def handle(ctx: Any) -> Any:
        return (await ctx.call(book, seat="4A")).text

    app = office.app(handle)
    await app.start()
    office.order()
    await parked(app)
    await crash(app)
    async with McpServerPool() as later:
        (book,) = await later.tools("desk", connect=office.connect, only=["book"])
        async with started(app := office.app(handle)):
            action = await question(app)
            assert (action.type, action.payload["tool"], action.payload["message"]) == (
                "input",
                "book",
                "Do you smoke?",
            )
            for said in ({"smoking": "often"}, {"smokes": True}, {"approved": True}):
                with pytest.raises(UserError, match="server desk asks for the fields smoking"):
                    await app.actions.resolve(action.resume_token, said, by="ann")
            app.jobs.store.post(Letter("answer", action.resume_token, body=b'{"smoking": "often"}'))  # unchecked
            again = await question(app, action.resume_token)
            assert "expected boolean" in again.payload["wrong"]
            await app.actions.resolve(again.resume_token, {"smoking": False})
            await until(lambda: office.answers() == ["state 1: 4A: accept {'smoking': False}"])
    assert [name for name, _ in office.desk.calls] == ["book", "book"], "up to the question, and from there"


async def test_a_job_whose_server_waits_for_a_person_is_parked(office: Office, pool: McpServerPool) -> None:
    async def ask(there: Any, request: Any) -> None:
        waiting.append(request)
        await ask_person(there, request)

    async def hear(there: Any, said: Any) -> None:
        await there.answer(waiting.pop(), text(str(said["result"])))

    waiting: list[Any] = []
    (go,) = await pool.tools("old", connect=asking_once(hear, ask))

    async def handle(ctx: Any) -> Any:
        return (await ctx.call(go)).text

    async with started(app := office.app(handle)):
        office.order()
        await parked(app)
        action = await question(app)
        await app.actions.resolve(action.resume_token, {"sure": True})
        await until(lambda: office.answers() == ["{'action': 'accept', 'content': {'sure': True}}"])


async def test_a_job_that_is_cancelled_while_a_person_is_asked_ends_its_call_at_the_server(
    office: Office, pool: McpServerPool
) -> None:
    """The call held its session, and the server its question, until the time for the answer was over: a day."""

    async def hear(there: Any, said: Any) -> None:
        told_.append(said["error"]["message"])

    told_: list[str] = []
    (go,) = await pool.tools("old", connect=asking_once(hear))

    async def handle(ctx: Any) -> Any:
        return (await ctx.call(go)).text

    async with started(app := office.app(handle)):
        office.order()
        await parked(app)
        await app.jobs.cancel((await question(app)).job_id)
        await until(lambda: told_ == ["nobody has answered"])


async def test_a_call_in_which_the_server_died_is_in_doubt_and_a_person_says_what_became_of_it(
    office: Office, pool: McpServerPool
) -> None:
    seen: list[str] = []

    async def die(there: Any, request: Any) -> None:
        seen.append(request["params"]["name"])
        if len(seen) == 1:
            there.writer.close()
        else:
            await there.answer(request, text(f"{there.key.scope}: sent"))

    (send,) = await pool.tools("frail", connect=peer(die, tools=[told("send")]))

    async def handle(ctx: Any) -> Any:
        return (await ctx.call(send)).text

    async with started(app := office.app(handle)):
        office.order()
        await parked(app)
        action = await question(app)
        assert (action.type, action.payload["effect"], seen) == ("in_doubt", "send", ["send"])
        await app.actions.resolve(action.resume_token, {"outcome": "not_done"})
        await until(lambda: office.answers() == ["ann: sent"])
    assert seen == ["send", "send"]


@pytest.mark.parametrize("word", ["job", "scope"])
async def test_an_approval_of_a_tool_is_none_of_another_server_s_tool_of_that_name(
    office: Office, pool: McpServerPool, word: str
) -> None:
    """A person had approved the payments of the bank, and those of a stranger's tool "pay" were made without a question."""
    paid: list[str] = []

    def paying(server: str) -> Any:
        async def pay(there: Any, request: Any) -> None:
            paid.append(server)
            await there.answer(request, text(f"paid by {server}"))

        return peer(pay, tools=[told("pay")])

    (bank,) = await pool.tools("bank", connect=paying("bank"))
    (other,) = await pool.tools("stranger", connect=paying("stranger"))

    async def handle(ctx: Any) -> Any:
        return [(await ctx.call(each)).text for each in (bank, bank, other)]

    app = office.app(handle, policy=PolicyEngine([ToolPolicy(["pay"], require_approval=True)]))
    async with started(app):
        office.order()
        await parked(app)
        action = await question(app)
        assert action.payload["reason"] == "tool pay of MCP server bank needs approval"
        await app.actions.resolve(action.resume_token, {"approved": True, "always": word})
        action = await question(app, action.resume_token)
        assert action.payload["reason"] == "tool pay of MCP server stranger needs approval"
        assert paid == ["bank", "bank"]
        await app.actions.resolve(action.resume_token, {"approved": True})
        await until(lambda: office.answers() == [["paid by bank", "paid by bank", "paid by stranger"]])


PAID = {"type": "object", "properties": {"receipt": {"type": "integer"}}, "required": ["receipt"]}


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ({}, "The call was done, as a person has confirmed. Its result is not known. Do not make the call again."),
        ({"result": {"receipt": 17}}, '{"receipt":17}'),
        (None, "The call is assumed to be done. Its result is not known. Do not make the call again."),
    ],
    ids=["unknown", "known", "assumed"],
)
async def test_a_call_that_was_done_as_a_person_says_reads_to_the_model_as_done(
    office: Office, pool: McpServerPool, answer: dict[str, Any] | None, read: str
) -> None:
    """The model read "ValidationError: Expected object, got null", took the call for failed, and paid once more."""
    paid: list[str] = []

    async def die(there: Any, request: Any) -> None:
        paid.append(request["params"]["name"])
        there.writer.close()

    connect = peer(die, tools=[told("pay", outputSchema=PAID)])
    tools = await pool.tools("frail", connect=connect, in_doubt="ask" if answer is not None else "assume_done")
    provider = ScriptedProvider([assistant("", ToolCall("c1", "pay", "{}")), "done"])
    agent = Agent(ExecutionEngine(provider, retries=0, patience=0), tools=tools, name="clerk")

    async def handle(ctx: Any) -> Any:
        result = await agent.run("go", effects=ctx.llm(agent.engine))
        return [[each.text, each.is_error] for each in result.messages if each.role == "tool"]

    async with started(app := office.app(handle)):
        office.order()
        if answer is not None:
            action = await question(app)
            for wrong in ("re_17", {"receipt": "17"}, {}):
                with pytest.raises(UserError, match="pay gives its caller a result"):
                    await app.actions.resolve(action.resume_token, {"outcome": "done", "result": wrong})
            await app.actions.resolve(action.resume_token, {"outcome": "done", **answer})
        await until(lambda: office.answers() == [[[read, False]]])
    assert paid == ["pay"]


async def test_a_model_that_a_server_asks_is_judged_and_paid_once(office: Office) -> None:
    def rule(call: GuardedCall) -> Decision:
        asked.extend([call.name] if call.kind == "model" else [])
        return Decision.ALLOW

    asked: list[str] = []
    provider = ScriptedProvider(["fine"])
    engine = ExecutionEngine(provider, retries=0, patience=0)
    async with McpServerPool(sampling=engine) as pool:
        (think,) = await pool.tools("desk", connect=office.connect, only=["think"])

        async def handle(ctx: Any) -> Any:
            said = await ctx.call(think)
            await ctx.sleep("1h")
            return said.text

        policy = PolicyEngine([rule])
        app = office.app(handle, policy=policy)
        await app.start()
        office.order()
        await parked(app)
        await crash(app)
        async with started(office.app(handle, policy=policy)):
            office.clock.advance(3600)
            await until(lambda: office.answers() == ["state 1: fine"])
    assert (len(asked), len(provider.requests), len(office.desk.calls)) == (1, 1, 2)


async def test_a_policy_holds_for_them(office: Office, pool: McpServerPool) -> None:
    (send,) = await pool.tools("desk", connect=office.connect, only=["send"])

    async def handle(ctx: Any) -> Any:
        try:
            return (await ctx.call(send)).text
        except EffectError as error:
            return error.message

    policy = PolicyEngine([ToolPolicy(["send"], allowed_scopes=["bob"], reason="only bob")])
    async with started(office.app(handle, policy=policy)):
        office.order("ann")
        office.order("bob")
        await until(lambda: len(office.answers()) == 2)
    assert set(office.answers()) == {"send was not done: only bob (rule ToolPolicy send)", "done"}
    assert office.desk.calls == [("send", {})]


async def test_an_agent_in_a_job_calls_no_tool_of_a_server_twice(office: Office, pool: McpServerPool) -> None:
    tools = await pool.tools("desk", connect=office.connect, only=["add", "fail", "send"])
    names = [("add", '{"a": 1, "b": 2}'), ("fail", "{}"), ("send", "{}")]
    asked = assistant("", *(ToolCall(f"c{number}", *call) for number, call in enumerate(names)))
    provider = ScriptedProvider([asked, "done"])
    agent = Agent(ExecutionEngine(provider, retries=0, patience=0), tools=tools, name="clerk")

    async def handle(ctx: Any) -> Any:
        result = await agent.run("go", effects=ctx.llm(agent.engine))
        await ctx.sleep("1h")
        return [[each.text, each.is_error] for each in result.messages if each.role == "tool"]

    app = office.app(handle)
    await app.start()
    office.order()
    await parked(app)
    await crash(app)
    async with started(office.app(handle)):
        office.clock.advance(3600)
        await until(lambda: office.answers() == [[["3", False], ["no such order", True], ["done", False]]])
    assert sorted(name for name, _ in office.desk.calls) == ["add", "fail", "send"]
