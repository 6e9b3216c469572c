"""`sabot mcp serve`: the state of an app and the memory tools, asked for by the SDK's client."""

import asyncio
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

import sabot
from sabot import App, NdjsonSource
from sabot.cli.app_checkpoints import find_checkpoints
from sabot.cli.mcp import Checkpoints
from sabot.mcp import ToolServer, state_tools
from tools.command_line import ENV, SABOT, sabot_says

ROWS = [{"account": f"a{n % 5:02}", "amount": n, "shop": "north" if n % 2 else "south"} for n in range(40)]
TOTALS = {f"a{n:02}": sum(row["amount"] for row in ROWS if row["account"] == f"a{n:02}") for n in range(5)}
PROGRAM = """\
print("said at the import")
from sabot import App
app = App("totals", state="state")
"""


async def run(folder: Path, rows: list[dict[str, Any]] = ROWS) -> str:
    """The state directory of an app that has run to its end: totals by account, and what agents keep."""
    source = folder / "rows.ndjson"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    app = App("totals", state=str(folder / "state"))
    kept = app.stream(NdjsonSource(str(source))).key_by("account").aggregate(total=sabot.sum("amount"))
    kept.to(sabot.NdjsonSink(str(folder / "out.ndjson")))

    @app.agent(NdjsonSource(str(source)), key="account", name="seen")
    async def seen(ctx: Any) -> None:
        await ctx.state("last").put("row", {**ctx.message, "api_key": "k-123", "token_count": 5})
        await ctx.state("last").put("note", "x" * (20_000 if ctx.message["account"] == "a00" else 5))

    await app.run()
    return str(folder / "state")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> str:
    return asyncio.run(run(tmp_path_factory.mktemp("totals")))


@asynccontextmanager
async def served(
    state: str, *, only: tuple[str, ...] = (), largest: int = 1 << 20, fresh_s: float | None = None
) -> AsyncIterator[Client]:
    source = Checkpoints(find_checkpoints(state), fresh_s, largest)
    async with Client(ToolServer("sabot", state_tools(source.open, only=only)).server) as client:
        yield client


async def asked(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    return dict(result.structured_content)


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    return str(result.content[0].text)  # type: ignore[union-attr]


async def test_it_is_said_who_keeps_state_and_as_of_when(state: str) -> None:
    async with served(state) as client:
        listed = await asked(client, "state_list")
        assert [(each["name"], each["kind"], each["rows"]) for each in listed["state"]] == [
            ("aggregate-1", "running aggregate", 5),
            ("totals.seen", "agent", None),
        ]
        newest = find_checkpoints(state).manifest()
        assert listed["as_of"]["checkpoint"] == newest.checkpoint_id
        assert listed["as_of"]["written"].endswith("+00:00")
        tools = (await client.list_tools()).tools
        assert [each.name for each in tools] == ["state_list", "state_schema", "state_read"]
        assert all(each.annotations is not None and each.annotations.read_only_hint for each in tools)


async def test_the_columns_and_the_fields_of_values_are_told(state: str) -> None:
    async with served(state) as client:
        schema = await asked(client, "state_schema", name="aggregate-1")
        assert schema["key"] == ["account"]
        assert schema["columns"] == {"account": {"type": "string"}, "total": {"type": "int64"}}
        schema = await asked(client, "state_schema", name="totals.seen")
        assert schema["key"] == ["record_key", "key"]
        value = schema["columns"]["value"]
        assert (value["type"], value["kinds"]) == ("json", ["object", "string"])
        assert value["fields"]["amount"] == ["integer"]


async def test_rows_come_whole_by_key_and_by_the_beginning_of_the_key(state: str) -> None:
    async with served(state) as client:
        answer = await asked(client, "state_read", name="aggregate-1")
        assert {row["account"]: row["total"] for row in answer["rows"]} == TOTALS
        assert (answer["total"], answer["next"]) == (5, None)
        answer = await asked(client, "state_read", name="aggregate-1", key="a03")
        assert answer["rows"] == [{"account": "a03", "total": TOTALS["a03"]}]
        answer = await asked(client, "state_read", name="totals.seen", prefix="a04")
        assert {row["key"] for row in answer["rows"]} == {"note", "row"}
        assert (await asked(client, "state_read", name="aggregate-1", key="nobody"))["rows"] == []


async def test_values_are_data_secrets_in_them_hidden_and_long_ones_cut(state: str) -> None:
    async with served(state) as client:
        rows = (await asked(client, "state_read", name="totals.seen", key="a00"))["rows"]
    found = {row["key"]: row["value"] for row in rows}
    assert found["row"] == {"account": "a00", "amount": 35, "shop": "north", "api_key": "***", "token_count": 5}
    assert found["note"] == {"cut": '"' + "x" * 8191, "bytes": 20_002}


async def test_pages_follow_one_another_and_are_of_one_checkpoint(tmp_path: Path) -> None:
    state = await run(tmp_path)
    async with served(state) as client:
        first = await asked(client, "state_read", name="aggregate-1", limit=3)
        assert first["next"] == f"{first['as_of']['checkpoint']}:3"
        await run(tmp_path, [*ROWS, {"account": "b", "amount": 1, "shop": "east"}])
        second = await asked(client, "state_read", name="aggregate-1", limit=3, cursor=first["next"])
        assert second["as_of"] == first["as_of"]
        rows = [*first["rows"], *second["rows"]]
        assert {row["account"]: row["total"] for row in rows} == TOTALS
        assert second["next"] is None
        now = await asked(client, "state_read", name="aggregate-1")
        assert now["as_of"]["checkpoint"] > first["as_of"]["checkpoint"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "nobody"}, "has no operator or agent 'nobody' (there are aggregate-1, totals.seen"),
        ({"name": "aggregate-1", "limit": 0}, "limit=0 (from 1 to 1,000)"),
        ({"name": "aggregate-1", "cursor": "x:y"}, "cursor='x:y' (give back what stands under next"),
        ({"name": "aggregate-1", "cursor": "99:0"}, "checkpoint 99 does not exist any more: the app has newer ones"),
    ],
)
async def test_what_is_not_there_is_named(state: str, arguments: dict[str, Any], said: str) -> None:
    async with served(state) as client:
        assert said in await refused(client, "state_read", **arguments)


async def test_only_what_is_offered_is_seen(state: str) -> None:
    async with served(state, only=("aggregate-1",)) as client:
        assert [each["name"] for each in (await asked(client, "state_list"))["state"]] == ["aggregate-1"]
        for tool in ("state_read", "state_schema"):
            assert (
                await refused(client, tool, name="totals.seen")
                == "'totals.seen' is not offered (there are aggregate-1)"
            )


async def test_large_state_is_read_by_key_alone(state: str) -> None:
    async with served(state, largest=100) as client:
        said = await refused(client, "state_read", name="aggregate-1")
        assert said.startswith(f"the state of aggregate-1 in {state}/checkpoints has ")
        assert said.endswith("100 that are read whole (read it by key, or serve with a higher --largest)")
        assert len((await asked(client, "state_read", name="aggregate-1", key="a01"))["rows"]) == 1


async def test_a_running_app_is_asked_for_a_checkpoint_where_its_newest_is_old(tmp_path: Path) -> None:
    app = App("live", state=str(tmp_path / "state"), checkpoint_interval=3600)

    @app.agent("in", name="seen", sink="out")
    async def seen(ctx: Any) -> str:
        await ctx.state("last").put("value", ctx.message)
        return "ok"

    await app.start()
    try:
        done = sabot.kafka.KafkaSource("out", app.broker)
        await done.start()
        for message, fresh_s, expected in [("one", 0.0, ["one"]), ("two", 3600.0, ["one"]), ("two", 0.0, ["two"])]:
            await app.send("in", message)
            await done.get_next()
            async with served(str(tmp_path / "state"), fresh_s=fresh_s) as client:
                rows = (await asked(client, "state_read", name="last"))["rows"]
                assert [row["value"] for row in rows] == expected
    finally:
        await app.stop()


@pytest.mark.slow  # starts an interpreter
async def test_beside_an_app_without_checkpoints_the_memory_alone_is_served(tmp_path: Path) -> None:
    """It was refused ("app shop keeps no checkpoints"), though the memory needs none."""
    (tmp_path / "shop.py").write_text('from sabot import App\n\napp = App("shop", "memory://shop")\n')
    words = [*SABOT[1:], "mcp", "serve", "shop.py", "--memory", "memory"]
    server = StdioServerParameters(command=sys.executable, args=words, env=ENV, cwd=tmp_path)
    async with Client(server) as client:
        names = [each.name for each in (await client.list_tools()).tools]
        assert names == ["cortex_search", "cortex_store", "cortex_retrieve", "cortex_consolidate"]
    refused_ = await asyncio.create_subprocess_exec(
        sys.executable, *words, "--only", "count", cwd=tmp_path, env=ENV, stderr=asyncio.subprocess.PIPE
    )
    _, said = await refused_.communicate()
    assert (refused_.returncode, b"app shop keeps no checkpoints" in said) == (1, True), "--only names state"


@pytest.mark.slow  # two seconds of a core
async def test_over_stdio_a_client_gets_state_and_a_memory_that_lasts(state: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(PROGRAM)
    (tmp_path / "state").symlink_to(state)
    words = [*SABOT[1:], "mcp", "serve", "app.py", "--memory", "memory", "--scope", "team"]
    server = StdioServerParameters(command=sys.executable, args=words, env=ENV, cwd=tmp_path)
    async with Client(server) as client:
        names = [each.name for each in (await client.list_tools()).tools]
        assert names == [
            *("state_list", "state_schema", "state_read"),
            *("cortex_search", "cortex_store", "cortex_retrieve", "cortex_consolidate"),
        ]
        answer = await asked(client, "state_read", name="aggregate-1", key="a02")
        assert answer["rows"] == [{"account": "a02", "total": TOTALS["a02"]}]
        kept = await asked(client, "cortex_store", text="Ada prefers tea", tags=["ada"])
    memory = sabot.mcp.Memory(sabot.mcp.MemoryFile(tmp_path / "memory"))
    assert (await memory.retrieve("team", kept["id"]))["text"] == "Ada prefers tea"


@pytest.mark.slow  # npm installs the inspector
def test_the_official_inspector_lists_the_tools_and_calls_them(state: str, tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    made = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--prefix", str(tmp_path), "@modelcontextprotocol/inspector@1"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if made.returncode:
        pytest.skip(f"npm cannot install the inspector: {made.stderr[-500:]}")
    server = tmp_path / "server"
    server.write_text(
        f"#!/bin/sh\nexec {shlex.join([*SABOT, 'mcp', 'serve', state, '--memory', str(tmp_path / 'memory')])}\n"
    )
    server.chmod(0o700)

    def inspected(method: str, *words: str) -> Any:
        inspector = [
            str(tmp_path / "node_modules/.bin/mcp-inspector"),
            "--cli",
            str(server),
            "--method",
            method,
            *words,
        ]
        done = subprocess.run(inspector, capture_output=True, text=True, env=ENV, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert len(inspected("tools/list")["tools"]) == 7
    found = inspected("tools/call", "--tool-name", "state_read", "--tool-arg", "name=aggregate-1", "key=a04")
    assert found["structuredContent"]["rows"] == [{"account": "a04", "total": TOTALS["a04"]}]
    inspected("tools/call", "--tool-name", "cortex_store", "--tool-arg", "text=Ada prefers tea")
    found = inspected("tools/call", "--tool-name", "cortex_search", "--tool-arg", "query=tea")
    assert [each["text"] for each in found["structuredContent"]["result"]] == ["Ada prefers tea"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "there is nothing to serve (name an APP, or give --memory DIR)"),
        (["nowhere"], 2, "there is no directory nowhere"),
        (["--memory", "m", "--token-file", "t"], 2, "--token-file is only for HTTP"),
        (["--memory", "m", "--http", "x:y:z"], 2, "--http 'x:y:z' is not an address"),
        (
            ["--memory", "m", "--http", "1", "--token-file", "none"],
            2,
            "--token-file none cannot be read: No such file or directory",
        ),
        (["--memory", "m", "--http", "0.0.0.0:0"], 1, "others can reach 0.0.0.0, and there is no token"),
    ],
)
def test_wrong_use_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SABOT_MCP_TOKEN", raising=False)
    answer = sabot_says("mcp", "serve", *words)
    assert answer.exit_code == code
    assert said in answer.stderr
