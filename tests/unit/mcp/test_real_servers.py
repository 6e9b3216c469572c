"""MCP servers that others wrote, of all ages of the protocol. `python tests/tools/mcp_real.py` installs them."""

import asyncio
import subprocess

import pytest

from sabot.mcp import McpConfig, McpServerPool, ToolCall
from sabot.process import Sandbox, SandboxUnavailable
from sabot.process.sandbox.levels import check_available
from tools.mcp_real import command

pytestmark = pytest.mark.slow  # each server takes seconds to start


@pytest.fixture
async def pool():
    async with McpServerPool(McpConfig(connect_timeout="60s", request_timeout="60s")) as made:
        yield made


@pytest.fixture
def start():
    def found(name, *arguments):
        words = command(name)
        if words is None:
            pytest.skip(f"the {name} server is not installed: python tests/tools/mcp_real.py")
        return [*words, *arguments]

    return found


@pytest.fixture
def repository(tmp_path):
    for words in (["init", "-q"], ["config", "user.email", "a@b"], ["config", "user.name", "Ada"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


async def test_the_time_server_is_an_agent_s_own(start):
    async with McpServerPool(command=start("time")) as pool:
        result = await pool.call_tool("reviewer", ToolCall("get_current_time", {"timezone": "UTC"}))
        assert '"timezone": "UTC"' in result.content[0]["text"]
        failed = await pool.call_tool("reviewer", ToolCall("get_current_time", {"timezone": "Mars/Base"}))
        assert failed.is_error


async def test_the_git_server_reads_and_changes_a_repository(pool, start, repository):
    (repository / "a.txt").write_text("words")
    tools = {each.name: each for each in await pool.tools("git", command=start("git", "--repository", str(repository)))}
    assert (str(tools["git_status"].effect), str(tools["git_commit"].effect)) == ("read", "unsafe")
    where = {"repo_path": str(repository)}
    await tools["git_add"](**where, files=["a.txt"])
    await tools["git_commit"](**where, message="First")
    assert "First" in (await tools["git_log"](**where, max_count=1)).text


async def test_the_fetch_server_says_what_it_could_not_fetch(pool, start):
    (fetch,) = await pool.tools("fetch", command=start("fetch"))
    result = await fetch(url="http://127.0.0.1:1/")
    assert result.is_error
    assert "127.0.0.1" in result.text


async def test_the_everything_server_has_everything(start):
    asked = []

    async def ask(kind, payload, timeout_s):
        asked.append(payload["message"])
        return {"action": "decline"}

    async with McpServerPool(McpConfig(connect_timeout="60s"), ask=ask) as pool:
        pool.add("everything", command=start("everything"))
        session = await pool.session("everything")
        assert (await session.call("echo", {"message": "hi"})).text == "Echo: hi"
        assert (await session.call("get-sum", {"a": 1, "b": 2})).text == "The sum of 1 and 2 is 3."
        heard = []
        long = {"duration": 0.2, "steps": 2}
        await session.call("trigger-long-running-operation", long, progress=lambda *said: heard.append(said[0]))
        assert heard == [1.0, 2.0]
        declined = await session.call("trigger-elicitation-request")
        assert "declined" in declined.text
        assert len(asked) == 1
        assert (await session.call("get-structured-content", {"location": "New York"})).structured["conditions"]
        assert "[image image/png]" in (await session.call("get-tiny-image")).text
        resources = await session.resources()
        assert (await session.read_resource(resources[0].uri))[0]["uri"] == resources[0].uri
        assert any(each.template for each in resources)
        prompt = next(each for each in await session.prompts() if each.arguments)
        assert await session.prompt(prompt.name, dict.fromkeys(prompt.arguments, "Engineering"))


async def test_the_filesystem_server_stays_in_its_folder(pool, start, tmp_path):
    (tmp_path / "a.txt").write_text("words")
    pool.add("files", command=start("filesystem", str(tmp_path)))
    session = await pool.session("files")
    assert (await session.call("read_text_file", {"path": str(tmp_path / "a.txt")})).text == "words"
    assert (await session.call("read_text_file", {"path": "/etc/passwd"})).is_error


async def test_the_memory_servers_of_two_tenants_know_nothing_of_each_other(pool, start, tmp_path):
    def environment(scope, principal):
        return {"MEMORY_FILE_PATH": str(tmp_path / f"{scope}.json")}

    pool.add("memory", command=start("memory"), environment=environment)
    ada, bob = [await pool.session("memory", scope=scope) for scope in ("ada", "bob")]
    entity = {"name": "tea", "entityType": "drink", "observations": ["hot"]}
    await ada.call("create_entities", {"entities": [entity]})
    found = [(await each.call("read_graph")).structured["entities"] for each in (ada, bob)]
    assert ([each["name"] for each in found[0]], found[1]) == (["tea"], [])


async def test_many_tenants_of_the_memory_server_know_nothing_of_each_other(start, tmp_path):
    """Six servers at a time: each tenant's is ended and started again between its calls, over the tenant's own file."""
    numbers, slots = {}, asyncio.Semaphore(4)

    def environment(scope, principal):
        return {"MEMORY_FILE_PATH": str(tmp_path / f"{scope}.json")}

    async with McpServerPool(McpConfig(connect_timeout="60s", request_timeout="60s", max_servers=6)) as pool:
        pool.add("memory", command=start("memory"), environment=environment)

        async def visit(scope, number):
            async with slots:
                session = await pool.session("memory", scope=scope)
                entity = {"name": f"{scope} {number}", "entityType": "note", "observations": []}
                await session.call("create_entities", {"entities": [entity]})
                found = (await session.call("read_graph")).structured["entities"]
                numbers[scope, number] = [each["name"] for each in found]

        for number in range(2):
            await asyncio.gather(*(visit(f"tenant{each}", number) for each in range(25)))
    assert numbers == {
        (scope, number): [f"{scope} {each}" for each in range(number + 1)]
        for scope in (f"tenant{each}" for each in range(25))
        for number in range(2)
    }


async def test_a_server_on_the_sdk_before_2_speaks_the_first_protocol(pool, start):
    pool.add("old", command=start("old"))
    session = await pool.session("old")
    assert await session.version() == "2024-11-05"
    assert (await session.call("add", {"a": 1})).text == "2"


@pytest.mark.parametrize(
    ("name", "tool", "arguments"),
    [
        ("time", "get_current_time", {"timezone": "UTC"}),
        ("git", "git_status", {"repo_path": "."}),
        ("everything", "echo", {"message": "heard"}),
        ("filesystem", "list_directory", {"path": "."}),
    ],
)
async def test_servers_run_in_a_sandbox(pool, start, repository, name, tool, arguments):
    """Those of Python and those of Node: what they need to run is found."""
    try:
        check_available(Sandbox(level="untrusted"), name)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    words = start(name, *{"git": ["--repository", "."], "filesystem": ["."]}.get(name, []))
    pool.add(name, command=words, trust="untrusted", working_dir=repository)
    result = await (await pool.session(name)).call(tool, arguments)
    assert not result.is_error
    assert {"time": "UTC", "git": "On branch", "everything": "heard", "filesystem": ".git"}[name] in result.text
