"""Questions of servers of the official SDK, over stdio and HTTP, in each version of the protocol: they reach a person, outlive a restart of
worker and server, and no unsafe call is made twice without a person's word.
"""

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pipelines.test_durable_mcp import Office, crash, office, parked, question

from sabot import App, secret
from sabot.agents import ConstraintPolicy, PolicyEngine, ToolPolicy
from sabot.llm import ExecutionEngine, ScriptedProvider
from sabot.mcp import McpConnectionLost, McpRefused, McpServerPool
from tools.agent_tools import started, until
from tools.asking_server import asking_server
from tools.mcp_servers import over_http

stdio = pytest.mark.slow  # each server is a process that imports the SDK
__all__ = ["office"]  # a fixture
SERVER = Path(__file__).parent.parent / "tools" / "asking_server.py"


class Shop:
    """A server of the SDK, again and again: each pool starts another process, or, over HTTP, another server."""

    def __init__(self, office: Office, way: str, stack: ExitStack) -> None:
        self.office = office
        self.log = office.directory.parent / "log"
        self._way = way
        self._stack = stack

    def done(self) -> list[str]:
        return self.log.read_text().split("\n")[:-1] if self.log.exists() else []

    @asynccontextmanager
    async def open(
        self, name: str, *words: str, policy: PolicyEngine | None = None, order: Any = "o-1", **options: Any
    ) -> AsyncIterator[App]:
        """An app whose jobs call the tool. words: the words of the server's question."""
        async with McpServerPool() as pool:
            if self._way == "stdio":
                way: dict[str, Any] = {"command": [sys.executable, str(SERVER), str(self.log), *words]}
            else:
                app = asking_server(self.log, *words).streamable_http_app()
                way = {"url": f"{self._stack.enter_context(over_http(app))}/mcp"}
            (made,) = await pool.tools("desk", only=[name], **way, **options)

            async def handle(ctx: Any) -> Any:
                return (await ctx.call(made, order=order)).text

            yield self.office.app(handle, **({"policy": policy} if policy is not None else {}))

    async def answered(self, app: App, answer: Any) -> None:
        action = await question(app)
        await app.actions.resolve(action.resume_token, answer)

    async def says(self, answer: str) -> None:
        await until(lambda: self.office.answers() == [answer])


@pytest.fixture(params=[pytest.param("stdio", marks=stdio), "http"])
def shop(office: Office, request: pytest.FixtureRequest) -> Iterator[Shop]:
    with ExitStack() as stack:
        yield Shop(office, request.param, stack)


@pytest.mark.slow  # half a second of a core
async def test_a_question_outlives_a_server_that_forgets_its_state(shop: Shop) -> None:
    """The answer was refused, "Invalid or expired requestState": the SDK's server forgets its key when it ends."""
    async with shop.open("refund") as app:
        await app.start()
        shop.office.order()
        await parked(app)
        await crash(app)
    async with shop.open("refund") as app, started(app):
        await shop.answered(app, {"sure": True})
        await shop.says("o-1: True")
        assert len(await app.actions.find()) == 1, "the same question is not asked twice"
    assert shop.done() == ["refund o-1"]


async def test_another_question_of_the_server_is_asked_anew(shop: Shop) -> None:
    async with shop.open("refund", "Refund 5?") as app:
        await app.start()
        shop.office.order()
        await parked(app)
        await crash(app)
    async with shop.open("refund", "Refund 500?") as app, started(app):
        first = await question(app)
        await app.actions.resolve(first.resume_token, {"sure": True})
        second = await question(app, first.resume_token)
        assert (first.payload["message"], second.payload["message"]) == ("Refund 5?", "Refund 500?")
        await app.actions.resolve(second.resume_token, {"sure": False})
        await shop.says("o-1: False")
    assert shop.done() == ["refund o-1"]


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_call_goes_on_with_the_arguments_with_which_it_was_approved(shop: Shop, restarted: bool) -> None:
    """A person allowed another order and answered the server's question; the rest of the call had the first order again."""
    policy = PolicyEngine([ConstraintPolicy(["refund"], field="order", allowed=["o-2"], otherwise="ask")])
    async with shop.open("refund", policy=policy) as app:
        await app.start()
        shop.office.order()
        await parked(app)
        first = await question(app)
        await app.actions.resolve(first.resume_token, {"approved": True, "arguments": {"order": "o-2"}})
        second = await question(app, first.resume_token)
        assert second.type == "input"
        if not restarted:
            await app.actions.resolve(second.resume_token, {"sure": True})
            await shop.says("o-2: True")
            await app.stop()
        else:
            await parked(app)
            await crash(app)
    if restarted:
        async with shop.open("refund", policy=policy) as app, started(app):
            await shop.answered(app, {"sure": True})
            await shop.says("o-2: True")
    assert shop.done() == ["refund o-2"]


@pytest.mark.one_in(4, "a quarter of a second of a core each")
@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("edit", [False, True])
async def test_a_policy_asks_once_about_a_call_whose_server_asks_back(shop: Shop, restarted: bool, edit: bool) -> None:
    """The policy asked again at the step that brings the answer to the server: two approvals for one refund."""
    policy = PolicyEngine([ToolPolicy(["refund"], require_approval=True)])
    async with shop.open("refund", policy=policy) as app:
        await app.start()
        shop.office.order()
        await parked(app)
        first = await question(app)
        await app.actions.resolve(
            first.resume_token, {"approved": True, **({"arguments": {"order": "o-2"}} if edit else {})}
        )
        second = await question(app, first.resume_token)
        if restarted:
            await parked(app)
            await crash(app)
        else:
            await app.actions.resolve(second.resume_token, {"sure": True})
            await shop.says("o-2: True" if edit else "o-1: True")
            assert [each.type for each in await app.actions.find()] == ["confirm", "input"]
            await app.stop()
    if restarted:
        async with shop.open("refund", policy=policy) as app, started(app):
            await shop.answered(app, {"sure": True})
            await shop.says("o-2: True" if edit else "o-1: True")
            assert [each.type for each in await app.actions.find()] == ["confirm", "input"]


@pytest.mark.slow  # half a second of a core
async def test_another_call_of_the_same_tool_is_asked_about_again(shop: Shop) -> None:
    policy = PolicyEngine([ToolPolicy(["refund"], require_approval=True)])
    async with shop.open("refund", policy=policy) as app, started(app):
        tokens = [""]
        for _ in range(2):
            shop.office.order()
            for answer in ({"approved": True}, {"sure": True}):
                action = await question(app, tokens[-1])
                tokens.append(action.resume_token)
                await app.actions.resolve(action.resume_token, answer)
            await until(lambda: len(shop.office.answers()) == (len(tokens) - 1) // 2)
        assert [each.type for each in await app.actions.find()] == ["confirm", "input"] * 2


async def test_the_journal_of_a_call_that_asks_has_the_name_of_a_secret(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORDER_KEY", "o-very-secret")
    async with shop.open("refund", order=secret("ORDER_KEY")) as app, started(app):
        shop.office.order()
        await parked(app)
        await shop.answered(app, {"sure": True})
        await until(lambda: shop.done() == ["refund o-very-secret"])
        await until(lambda: len(shop.office.answers()) == 1)
        text = b"".join(each.read_bytes() for each in (shop.office.directory / "journal").iterdir() if each.is_file())
        assert b"ORDER_KEY" in text
        assert b"o-very-secret" not in text.replace(b"o-very-secret: True", b"")


@pytest.mark.one_in(3, "a fifth of a second of a core each")
@pytest.mark.parametrize(
    ("answer", "said"), [({"sure": True}, "True"), ({"approved": False}, "decline"), ({"action": "cancel"}, "cancel")]
)
async def test_a_tool_that_asks_while_it_runs_reaches_a_person(shop: Shop, answer: Any, said: str) -> None:
    async with shop.open("pay", legacy=True) as app, started(app):
        shop.office.order()
        await parked(app)
        await shop.answered(app, answer)
        await shop.says(f"o-1: {said}")
    assert shop.done() == ["begin o-1"] + ["pay o-1"] * (said == "True")


@pytest.mark.slow  # half a second of a core
async def test_it_does_so_where_the_server_would_speak_the_newest_version(shop: Shop) -> None:
    """The SDK refuses the question there. The tool had begun, so a person says whether it may begin again."""
    async with shop.open("pay") as app, started(app):
        shop.office.order()
        first = await question(app)
        assert first.type == "in_doubt"
        await app.actions.resolve(first.resume_token, {"outcome": "not_done"})
        second = await question(app, first.resume_token)
        await app.actions.resolve(second.resume_token, {"sure": True})
        await shop.says("o-1: True")
    assert shop.done() == ["begin o-1", "begin o-1", "pay o-1"]


@pytest.mark.slow  # half a second of a core
async def test_there_a_tool_that_only_reads_begins_again_by_itself(shop: Shop) -> None:
    async with shop.open("look") as app, started(app):
        shop.office.order()
        await shop.answered(app, {"sure": True})
        await shop.says("o-1: True")
    assert shop.done() == ["begin o-1", "begin o-1", "look o-1"]


@pytest.mark.slow  # half a second of a core
async def test_an_unsafe_call_that_asked_while_it_ran_is_in_doubt_after_a_restart(shop: Shop) -> None:
    async with shop.open("pay", legacy=True) as app:
        await app.start()
        shop.office.order()
        await parked(app)
        await crash(app)
    async with shop.open("pay", legacy=True) as app, started(app):
        asked = await question(app)
        await app.actions.resolve(asked.resume_token, {"sure": True})
        doubt = await question(app, asked.resume_token)
        assert doubt.type == "in_doubt"
        await app.actions.resolve(doubt.resume_token, {"outcome": "not_done"})
        await shop.says("o-1: True")
        assert len(await app.actions.find()) == 2, "the answer that was given serves the call that begins again"
    assert shop.done() == ["begin o-1", "begin o-1", "pay o-1"]


@pytest.mark.slow  # half a second of a core
async def test_a_call_that_only_reads_begins_again_after_a_restart(shop: Shop) -> None:
    async with shop.open("look", legacy=True) as app:
        await app.start()
        shop.office.order()
        await parked(app)
        await crash(app)
    async with shop.open("look", legacy=True) as app, started(app):
        await shop.answered(app, {"sure": True})
        await shop.says("o-1: True")
        assert len(await app.actions.find()) == 1
    assert shop.done() == ["begin o-1", "begin o-1", "look o-1"]


@pytest.mark.slow  # half a second of a core
async def test_a_question_of_one_version_is_not_answered_in_another(shop: Shop) -> None:
    """The call waited in its session, in which the server has done what it did: a new server must not begin it unasked."""
    async with shop.open("pay", legacy=True) as app:
        await app.start()
        shop.office.order()
        await parked(app)
        await crash(app)
    async with shop.open("pay") as app, started(app):
        asked = await question(app)
        await app.actions.resolve(asked.resume_token, {"sure": True})
        assert (await question(app, asked.resume_token)).type == "in_doubt"
    assert shop.done() == ["begin o-1"]


@stdio
async def test_all_that_a_server_asks_is_answered(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    async def person(kind: str, payload: Any, timeout_s: float) -> Any:
        asked.append((kind, payload["message"]))
        return {"approved": True} if kind == "confirm" else {"sure": True}

    heard: list[float] = []
    engine = ExecutionEngine(ScriptedProvider(["fine"]), retries=0, patience=0)
    async with McpServerPool(ask=person, sampling=engine) as pool:
        pool.add("desk", command=[sys.executable, str(SERVER), str(tmp_path / "log")], legacy=True)
        session = await pool.session("desk")
        assert (await session.call("twice")).text == "accept accept"
        assert (await session.call("visit")).text == "accept"
        assert (await session.call("visit_first")).text == "visited"
        assert (await session.call("think")).text == "fine"
        assert (await session.call("slow", progress=lambda done, total, words: heard.append(done))).text == "done"
        with pytest.raises(McpRefused, match="roots"):
            await session.call("roots")
    assert asked == [("input", "One?"), ("input", "Two?"), ("confirm", "Log in"), ("confirm", "Log in")]
    assert heard == [1.0]


@stdio
async def test_outside_of_jobs_the_caller_is_told_and_the_next_call_can_ask(tmp_path: Path) -> None:
    async def person(kind: str, payload: Any, timeout_s: float) -> Any:
        return {"sure": True} if said == ["yes"] else {"approved": False}

    said = ["no"]
    async with McpServerPool(ask=person) as pool:
        pool.add("desk", command=[sys.executable, str(SERVER), str(tmp_path / "log")])
        session, other = await pool.session("desk"), await pool.session("desk", scope="acme")
        with pytest.raises(McpConnectionLost, match="in the way of older versions of the protocol"):
            await session.call("pay", {"order": "o-1"})
        assert (await session.call("pay", {"order": "o-1"})).text == "o-1: decline"
        said[:] = ["yes"]
        assert (await other.call("pay", {"order": "o-2"})).text == "o-2: True", "other tenants of the server too"
        said[:] = ["no"]
        with pytest.raises(McpRefused, match="nobody visits the address"):
            await session.call("visit_first")
