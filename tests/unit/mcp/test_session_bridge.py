"""The session bridge, against a server that keeps sessions in a file."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sabot.clock import ManualClock
from sabot.errors import UserError
from sabot.llm import tool
from sabot.mcp import (
    ContextFailed,
    McpRefused,
    McpServerPool,
    RecoverableSession,
    RecoveryCheckFailed,
    SessionBridge,
    SessionError,
    SessionStopFailed,
    SnapshotFailed,
)
from tools import context_orchestrator
from tools.context_orchestrator import orchestrator_tools
from tools.mcp_session import PROGRAM, ServedTools


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tasks.json"


@pytest.fixture
async def pool() -> AsyncIterator[McpServerPool]:
    async with McpServerPool() as pool:
        yield pool


@pytest.fixture
def server(pool: McpServerPool, file: Path) -> ServedTools:
    return ServedTools(pool, orchestrator_tools(file, 0))


def bridged(server: ServedTools, clock: ManualClock, **options: Any) -> SessionBridge:
    """A bridge whose waits move the clock."""

    async def sleep(seconds: float) -> None:
        clock.advance(seconds)

    return SessionBridge(server, clock=clock, sleep=sleep, **options)


def kept(file: Path, task: str = "task-1") -> dict[str, Any]:
    return dict(json.loads(file.read_text())[task])


async def test_a_session_is_started_saved_restored_and_stopped(
    server: ServedTools, clock: ManualClock, file: Path
) -> None:
    bridge = bridged(server, clock)
    session = await bridge.start_session("agent-7", "task-1", {"phase": "reading", "pages": 3})
    assert (session.agent_id, session.started_at) == ("agent-7", 1_700_000_000.0)
    assert [each.session_id for each in bridge.sessions()] == ["task-1"]
    await bridge.save_snapshot("task-1", {"phase": "writing"}, "Read it all")
    assert await bridge.restore_snapshot("task-1") == {"phase": "writing", "pages": 3}
    await bridge.stop_session("task-1")
    assert bridge.sessions() == []
    assert kept(file)["context"]["status"] == "completed"
    assert kept(file)["changes"] == [
        "Session started for agent agent-7",
        "Read it all",
        "Session stopped: normal_termination",
    ]


async def test_heartbeats_are_sent_every_30_seconds_and_may_take_5(
    server: ServedTools, clock: ManualClock, file: Path
) -> None:
    bridge = bridged(server, clock)
    await bridge.start_session("agent-7", "task-1")
    clock.advance(29.9)
    await bridge.beat()
    assert kept(file)["version"] == 1
    clock.advance(0.1)
    await bridge.beat()
    await bridge.beat()
    assert kept(file)["version"] == 2
    assert kept(file)["context"]["lastHeartbeat"] == 1_700_000_030_000
    assert server.calls[-1] == ("save_context_snapshot", 5.0)


async def test_inside_the_bridge_heartbeats_go_on_by_themselves(pool: McpServerPool, file: Path) -> None:
    fourth = asyncio.Event()

    class Counted(ServedTools):
        async def call(self, *asked: Any, **options: Any) -> Any:
            answer = await super().call(*asked, **options)
            if len(self.calls) == 4:
                fourth.set()
            return answer

    async with SessionBridge(Counted(pool, orchestrator_tools(file, 0)), heartbeat_interval=0.02) as bridge:
        await bridge.start_session("agent-7", "task-1")
        await asyncio.wait_for(fourth.wait(), 60)
    assert kept(file)["changes"][1:4] == ["Heartbeat"] * 3


async def test_a_snapshot_that_hangs_delays_no_heartbeat(pool: McpServerPool, clock: ManualClock, file: Path) -> None:
    """All sessions of the bridge waited for it, up to two minutes, and the server took them for dead."""
    begun, ends = asyncio.Event(), asyncio.Event()

    class Slow(ServedTools):
        async def call(self, name: str, arguments: Any = None, **options: Any) -> Any:
            if arguments.get("updates", {}).get("phase") == "writing":
                begun.set()
                await ends.wait()
            return await super().call(name, arguments, **options)

    bridge = bridged(Slow(pool, orchestrator_tools(file, 0)), clock)
    for task in ("task-1", "task-2"):
        await bridge.start_session("agent-7", task)
    saving = asyncio.create_task(bridge.save_snapshot("task-1", {"phase": "writing"}))
    await begun.wait()
    clock.advance(30)
    await asyncio.wait_for(bridge.beat(), 60)
    for task in ("task-1", "task-2"):
        assert kept(file, task)["context"]["lastHeartbeat"] == 1_700_000_030_000
    ends.set()
    await saving
    assert await bridge.restore_snapshot("task-1") == {"phase": "writing"}


async def test_missed_heartbeats_are_counted_until_one_arrives(server: ServedTools, clock: ManualClock) -> None:
    bridge = bridged(server, clock, on_error="fail_fast")
    session = await bridge.start_session("agent-7", "task-1")
    server.cut = 2
    for missed in (1, 2, 0):
        clock.advance(30)
        await bridge.beat()
        assert (session.missed, bridge.reachable) == (missed, not missed)


async def test_a_call_that_finds_no_server_is_made_again_three_times_after_1_2_and_4_seconds(
    server: ServedTools, clock: ManualClock
) -> None:
    bridge = bridged(server, clock, on_error="fail_fast")
    server.cut = 3
    await bridge.start_session("agent-7", "task-1")
    assert clock.time() == 1_700_000_007.0
    server.cut = 4
    with pytest.raises(SessionError, match="session task-2: save_context_snapshot cannot be reached: no server"):
        await bridge.start_session("agent-7", "task-2")
    assert [each.session_id for each in bridge.sessions()] == ["task-1"]


async def test_graceful_the_agent_goes_on_and_the_next_heartbeat_brings_what_was_not_sent(
    server: ServedTools, clock: ManualClock, file: Path
) -> None:
    bridge = bridged(server, clock)
    server.cut = -1
    session = await bridge.start_session("agent-7", "task-1", {"phase": "reading"})
    await bridge.save_snapshot("task-1", {"pages": 3})
    assert (session.unsent, bridge.reachable, file.exists()) == (True, False, False)
    assert await bridge.restore_snapshot("task-1") == {"phase": "reading", "pages": 3}
    assert await bridge.check_recovery() == []
    server.cut = 0
    clock.advance(30)
    await bridge.beat()
    assert (session.unsent, bridge.reachable) == (False, True)
    context = kept(file)["context"]
    assert (context["phase"], context["pages"], context["status"]) == ("reading", 3, "in_progress")


async def test_graceful_the_context_of_another_session_is_not_made_up(server: ServedTools, clock: ManualClock) -> None:
    bridge = bridged(server, clock)
    server.cut = -1
    with pytest.raises(ContextFailed, match="session task-9: get_unified_context cannot be reached"):
        await bridge.restore_snapshot("task-9")


async def test_graceful_a_refusal_after_an_outage_is_an_error(
    pool: McpServerPool, clock: ManualClock, file: Path
) -> None:
    """The bridge took the server for unreachable still, and gave the context of this process for the server's."""

    class Refusing(ServedTools):
        async def call(self, name: str, *asked: Any, **options: Any) -> Any:
            if name == "get_unified_context":
                raise McpRefused("test", "get_unified_context: not for you")
            return await super().call(name, *asked, **options)

    server = Refusing(pool, orchestrator_tools(file, 0))
    bridge = bridged(server, clock)
    await bridge.start_session("agent-7", "task-1", {"phase": "reading"})
    server.cut = 4
    assert await bridge.check_recovery() == []
    assert not bridge.reachable
    with pytest.raises(ContextFailed, match="not for you"):
        await bridge.restore_snapshot("task-1")
    assert bridge.reachable


async def test_graceful_the_end_of_a_session_reaches_the_server_with_the_next_heartbeat(
    server: ServedTools, clock: ManualClock, file: Path
) -> None:
    """The server listed what had ended for recovery, and its last context was lost."""
    bridge = bridged(server, clock)
    await bridge.start_session("agent-7", "task-1", {"phase": "reading"})
    server.cut = -1
    await bridge.save_snapshot("task-1", {"phase": "done"})
    await bridge.stop_session("task-1")
    assert bridge.sessions() == []
    for cut in (-1, 0, 0):
        server.cut = cut
        clock.advance(30)
        await bridge.beat()
    context = kept(file)["context"]
    assert (context["phase"], context["status"], kept(file)["version"]) == ("done", "completed", 2)
    assert kept(file)["changes"][-1] == "Session stopped"
    assert await bridge.check_recovery() == []


@pytest.mark.parametrize("saving", [False, True], ids=["alone", "behind a snapshot"])
async def test_the_end_of_a_session_whose_stop_is_cancelled_reaches_the_server_with_the_next_heartbeat(
    pool: McpServerPool, clock: ManualClock, file: Path, saving: bool
) -> None:
    """The session was gone from this process, could not be stopped again, and the server listed it for recovery."""
    sent, go_on = asyncio.Event(), asyncio.Event()

    class Hanging(ServedTools):
        async def call(self, *asked: Any, **options: Any) -> Any:
            sent.set()
            await go_on.wait()
            return await super().call(*asked, **options)

    bridge = bridged(Hanging(pool, orchestrator_tools(file, 0)), clock)
    go_on.set()
    await bridge.start_session("agent-7", "task-1", {"phase": "reading"})
    sent.clear()
    go_on.clear()
    saved = asyncio.create_task(bridge.save_snapshot("task-1", {"phase": "done"})) if saving else None
    if saving:
        await sent.wait()
    stop = asyncio.create_task(bridge.stop_session("task-1"))
    await (asyncio.sleep(0) if saving else sent.wait())
    stop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stop
    go_on.set()
    if saved is not None:
        await saved
    clock.advance(30)
    await bridge.beat()
    assert kept(file)["context"]["status"] == "completed"
    assert (bridge.sessions(), await bridge.check_recovery()) == ([], [])


async def test_graceful_a_session_that_begins_again_is_not_ended_by_its_earlier_end(
    server: ServedTools, clock: ManualClock, file: Path
) -> None:
    bridge = bridged(server, clock)
    await bridge.start_session("agent-7", "task-1")
    server.cut = -1
    await bridge.stop_session("task-1")
    server.cut = 0
    await bridge.start_session("agent-8", "task-1")
    clock.advance(30)
    await bridge.beat()
    assert kept(file)["context"]["status"] == "in_progress"


async def test_graceful_an_end_that_the_server_refuses_is_not_sent_for_ever(
    server: ServedTools, clock: ManualClock, file: Path
) -> None:
    bridge = bridged(server, clock)
    server.cut = -1
    await bridge.start_session("agent-7", "task-1", {"text": "x" * 20_000})
    await bridge.stop_session("task-1")
    server.cut = 0
    asked = len(server.calls)
    for _ in range(3):
        clock.advance(30)
        await bridge.beat()
    assert len(server.calls) == asked + 1


async def test_of_two_starts_at_once_one_is_refused(server: ServedTools, clock: ManualClock) -> None:
    bridge = bridged(server, clock)
    both = await asyncio.gather(
        *(bridge.start_session(agent, "task-1") for agent in ("agent-7", "agent-8")), return_exceptions=True
    )
    assert [type(each).__name__ for each in both] == ["SessionInfo", "SessionError"]
    assert [each.agent_id for each in bridge.sessions()] == ["agent-7"]


async def test_what_ended_without_being_stopped_is_found_and_taken_up(
    server: ServedTools, clock: ManualClock, file: Path
) -> None:
    before = bridged(server, clock)
    await before.start_session("agent-7", "task-1", {"phase": "writing"})
    await before.start_session("agent-7", "task-2")
    await before.stop_session("task-2")

    bridge = bridged(server, clock)
    (lost,) = await bridge.check_recovery()
    assert lost == RecoverableSession("task-1", "agent-7", {"taskId": "task-1", "sessionId": "agent-7", "version": 1})
    session = await bridge.resume_session("agent-8", "task-1")
    assert session.context == {"phase": "writing"}
    await bridge.stop_session("task-1", "gave up")
    assert kept(file)["context"]["status"] == "archived"
    assert await bridge.check_recovery() == []


@pytest.mark.parametrize("on_error", ["fail_fast", "graceful"])
async def test_what_the_server_refuses_is_an_error_with_the_code_of_the_call(
    server: ServedTools, clock: ManualClock, on_error: str
) -> None:
    bridge = bridged(server, clock, on_error=on_error)
    large = {"text": "x" * 20_000}
    with pytest.raises(SessionError, match="session task-1: save_context_snapshot: a snapshot of more than") as refused:
        await bridge.start_session("agent-7", "task-1", large)
    assert refused.value.code == "E2050"
    await bridge.start_session("agent-7", "task-1", {"phase": "reading"})
    with pytest.raises(SnapshotFailed) as refused:
        await bridge.save_snapshot("task-1", large)
    assert refused.value.code == "E2052"
    assert await bridge.restore_snapshot("task-1") == {"phase": "reading"}
    with pytest.raises(ContextFailed, match="there is no task nobody") as refused:
        await bridge.restore_snapshot("nobody")
    assert refused.value.code == "E2054"
    with pytest.raises(SessionStopFailed, match="session nobody: it does not run here") as refused:
        await bridge.stop_session("nobody")
    assert refused.value.code == "E2051"
    with pytest.raises(SessionError, match="session task-1: it runs already"):
        await bridge.start_session("agent-7", "task-1")


async def test_a_server_without_the_tools_is_told_by_their_names(
    pool: McpServerPool, clock: ManualClock, file: Path
) -> None:
    save, *_ = orchestrator_tools(file, 0)
    bridge = bridged(ServedTools(pool, [save]), clock)
    with pytest.raises(
        RecoveryCheckFailed, match=r"recovery check: check_recovery: .* it offers no tool 'check_recovery'"
    ) as refused:
        await bridge.check_recovery()
    assert refused.value.code == "E2053"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"retries": -1}, "retries=-1"),
        ({"heartbeat_interval": 0}, "heartbeat_interval"),
    ],
)
async def test_options_that_make_no_sense_are_refused(server: ServedTools, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        SessionBridge(server, **options)


async def test_a_method_is_a_tool_of_an_agent(server: ServedTools, clock: ManualClock) -> None:
    bridge = bridged(server, clock)
    await bridge.start_session("agent-7", "task-1")
    save = tool(effect="idempotent")(bridge.save_snapshot)
    await save(**save.arguments('{"session_id": "task-1", "context": {"phase": "writing"}, "summary": "done reading"}'))
    assert await bridge.restore_snapshot("task-1") == {"phase": "writing"}


@pytest.mark.slow  # starts interpreters
async def test_over_stdio_a_session_outlives_its_server_and_its_agent(tmp_path: Path, clock: ManualClock) -> None:
    command = [*PROGRAM, context_orchestrator.__file__, str(tmp_path / "tasks.json"), "0"]
    async with McpServerPool() as pool:
        bridge = bridged(ServedTools(pool, [], command), clock, on_error="fail_fast")
        await bridge.start_session("agent-7", "task-1", {"phase": "writing"})
    async with McpServerPool() as pool:
        bridge = bridged(ServedTools(pool, [], command), clock, on_error="fail_fast")
        assert [each.session_id for each in await bridge.check_recovery()] == ["task-1"]
        assert (await bridge.resume_session("agent-8", "task-1")).context == {"phase": "writing"}


@pytest.mark.slow  # starts interpreters
async def test_over_stdio_a_server_that_is_killed_is_started_again_by_the_next_call(
    tmp_path: Path, clock: ManualClock
) -> None:
    command = [*PROGRAM, context_orchestrator.__file__, str(tmp_path / "tasks.json"), "0"]
    async with McpServerPool() as pool:
        bridge = bridged(ServedTools(pool, [], command), clock, on_error="fail_fast")
        await bridge.start_session("agent-7", "task-1")
        os.kill(kept(tmp_path / "tasks.json")["pid"], signal.SIGKILL)
        await bridge.save_snapshot("task-1", {"phase": "writing"})
        assert await bridge.restore_snapshot("task-1") == {"phase": "writing"}
