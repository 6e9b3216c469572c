"""What servers list and answer, in all shapes that were seen, on each way on which a tool of theirs is called."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sabot.llm import Agent, tool
from sabot.mcp import McpRefused, McpServerPool, ToolServer
from tools.mcp_servers import Desk, in_memory, peer, text, told
from tools.mcp_surfaces import SERVER, SURFACES, Surface, asked_for

surfaces = pytest.mark.parametrize("surface", SURFACES, ids=lambda each: each.__name__)


@pytest.fixture
async def pool() -> AsyncIterator[McpServerPool]:
    async with McpServerPool() as made:
        yield made


async def echo(there: Any, request: dict[str, Any]) -> None:
    """Answers with the arguments."""
    await there.answer(request, text(json.dumps(request["params"]["arguments"], sort_keys=True)))


# -- names of parameters ----------------------------------------------------------------------------------------------

# Names that functions of Sabot have on the way from the caller to the server, and names that no function can have.
_WORDS = """self cls key name tool func function call args kwargs arguments options given asked context ctx effect timeout
attempt session site make work loop callable server state answers scope principal progress on_error request
$answers $state * class a-b a.b"""
NAMES = _WORDS.split()


@surfaces
async def test_a_tool_may_have_parameters_of_any_name(pool: McpServerPool, surface: Surface) -> None:
    """`self` was refused as given twice, and `$answers` was taken for the answer of a person."""
    given = {name: f"the {name}" for name in [*NAMES, "", "two words"]}
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in given}, "required": [*given]}
    pool.add(SERVER, connect=peer(echo, tools=[told("go", schema)]))
    assert json.loads(await surface(pool, "go", given)) == given


async def test_a_default_of_any_name_is_filled_in(pool: McpServerPool) -> None:
    """For a job whose call a policy judges the defaults of the schema are filled in, as its rules see them."""
    schema = {"type": "object", "properties": {name: {"type": "string", "default": name} for name in NAMES}}
    pool.add(SERVER, connect=peer(echo, tools=[told("go", schema)]))
    for surface in SURFACES:
        assert set(json.loads(await surface(pool, "go", {})).items()) <= {(name, name) for name in NAMES}


async def test_a_call_that_asks_has_no_parameter_with_the_name_of_the_answer(pool: McpServerPool) -> None:
    desk = Desk()
    pool.add(SERVER, connect=in_memory(lambda key: desk.server()))
    (book,) = await pool.tools(SERVER, only=["book"])
    with pytest.raises(McpRefused, match=r"book asks, and the answer cannot be sent beside its parameter \$answers"):
        await book(seat="4A", **{"$answers": {"q": {"method": "elicitation/create", "result": {"action": "accept"}}}})
    assert len(desk.calls) == 1


async def test_a_tool_of_ones_own_may_have_such_parameters_too(pool: McpServerPool) -> None:
    @tool(effect="read")
    def joined(self: str, key: str, func: str, args: str, tool: str) -> str:
        return self + key + func + args + tool

    given = dict(zip(("self", "key", "func", "args", "tool"), "abcde", strict=True))
    assert joined(**given) == "abcde"
    assert (await Agent(asked_for("joined", given), tools=[joined]).run("go")).content == "abcde"
    pool.add(SERVER, connect=ToolServer("own", [joined]).connect)
    for surface in SURFACES:
        assert (await surface(pool, "joined", given)).strip('"') == "abcde", surface.__name__
