"""The tools of child processes, as document 004 has them: `RuntimeConfig(mcp=McpConfig(...))` runs `cortex mcp stdio`."""

import sys
from pathlib import Path

import pytest

from sabot.errors import UserError
from sabot.mcp import McpConfig
from sabot.process import ProcessRuntime, RuntimeConfig, TaskDelegation

CORTEX = f"""#!{sys.executable}
import asyncio, sys
from pathlib import Path
from sabot.mcp import Memory, MemoryFile, ToolServer

Path(__file__).with_suffix(".words").write_text(" ".join(sys.argv[1:]))
memory = Memory(MemoryFile(Path(__file__).with_suffix(".memory")))
asyncio.run(ToolServer("cortex", memory.tools("all")).serve_stdio())
"""
ASKS = """while read -r task; do
    echo '{"id": 7, "method": "tools/call", "params": {"name": "cortex_store", "arguments": {"text": "Ada prefers tea"}}}'
    read -r answer; echo "{\\"result\\": $answer}"
done"""
TASK = TaskDelegation(objective="remember")


@pytest.fixture
def cortex(tmp_path: Path) -> Path:
    program = tmp_path / "cortex"
    program.write_text(CORTEX)
    program.chmod(0o700)
    return program


async def test_the_runtime_runs_the_server_that_its_config_names(cortex: Path) -> None:
    """The first task failed with an AttributeError: the config was taken for the servers."""
    async with ProcessRuntime(RuntimeConfig(mcp=McpConfig(cortex_binary_path=cortex))) as runtime:
        agent = await runtime.spawn_agent("worker-1", "developer", "sh", ["-c", ASKS])
        for _ in range(2):
            said = (await runtime.execute_task(agent, TASK)).result["result"]
            assert not said["isError"], said
            assert "Ada prefers tea" in said["content"][0]["text"] or "id" in said["content"][0]["text"]
    assert cortex.with_suffix(".words").read_text() == "mcp stdio"


async def test_a_runtime_without_a_config_uses_the_program_cortex_on_path(
    cortex: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", f"{cortex.parent}:/usr/bin:/bin")
    async with ProcessRuntime() as runtime:
        agent = await runtime.spawn_agent("worker-1", "developer", "sh", ["-c", ASKS])
        said = (await runtime.execute_task(agent, TASK)).result["result"]
        assert "id" in said["content"][0]["text"]
    assert cortex.with_suffix(".words").read_text() == "mcp stdio"
    async with ProcessRuntime(RuntimeConfig(mcp=None)) as runtime:
        agent = await runtime.spawn_agent("worker-1", "developer", "sh", ["-c", ASKS])
        assert "this runtime has no tools" in (await runtime.execute_task(agent, TASK)).result["error"]["message"]
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    async with ProcessRuntime() as runtime:
        agent = await runtime.spawn_agent("worker-1", "developer", "sh", ["-c", ASKS])
        assert "no program cortex on PATH" in (await runtime.execute_task(agent, TASK)).result["error"]["message"]
    assert "cortex" not in caplog.text, "nobody has asked for it"


async def test_without_a_program_cortex_the_runtime_has_no_tools_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    async with ProcessRuntime(RuntimeConfig(mcp=McpConfig())) as runtime:
        assert "there is no program cortex on PATH" in caplog.text
        agent = await runtime.spawn_agent("worker-1", "developer", "sh", ["-c", ASKS])
        said = (await runtime.execute_task(agent, TASK)).result
        assert "there is no program cortex on PATH" in said["error"]["message"]


async def test_a_program_that_is_named_and_not_there_is_refused_at_the_start() -> None:
    runtime = ProcessRuntime(RuntimeConfig(mcp=McpConfig(cortex_binary_path="/no/cortex")))
    with pytest.raises(UserError, match="cortex_binary_path='/no/cortex': there is no program /no/cortex"):
        await runtime.start()
    with pytest.raises(UserError, match="RuntimeConfig: mcp="):
        RuntimeConfig(mcp="cortex")  # type: ignore[arg-type]
