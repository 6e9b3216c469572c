"""What servers list and answer, in all shapes that were seen, on each way on which a tool of theirs is called."""

import json
from collections.abc import AsyncIterator
from itertools import product
from typing import Any

import pytest

from sabot.agents import CedarPolicy, ConstraintPolicy, Decision, PolicyEngine, ToolPolicy
from sabot.errors import UserError
from sabot.llm import Agent, tool
from sabot.mcp import McpInvalidAnswer, McpRefused, McpServerPool, McpToolChanged, McpUnavailable, ToolServer
from tools.mcp_servers import Desk, in_memory, listing, peer, text, told
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


@pytest.mark.one_in(3, "hundredths of a second of a core each")
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
    assert (await Agent(asked_for("joined", given), tools=[joined]).run("go")).content == "<abcde>"
    pool.add(SERVER, connect=ToolServer("own", [joined]).connect)
    for surface in SURFACES:
        assert (await surface(pool, "joined", given)).strip('"') == "abcde", surface.__name__


# -- lists ------------------------------------------------------------------------------------------------------------

OLD, NEW = "2025-06-18", "2026-07-28"
versions = pytest.mark.parametrize("version", ["2024-11-05", OLD, NEW])
OBJECT = {"type": "object"}


async def named(there: Any, request: dict[str, Any]) -> None:
    """Answers with the name of the tool."""
    answer = text(request["params"]["name"], structuredContent={"a": 1})
    await there.answer(request, {**answer, "resultType": "complete"})


def connected(pool: McpServerPool, *tools: Any, version: str = OLD, **capabilities: Any) -> None:
    pool.add(SERVER, connect=listing(lambda: [{"tools": tools}], version, named, **capabilities))


ILL = {
    "inputSchema={}": {"name": "ill", "inputSchema": {}},
    "inputSchema=null": {"name": "ill", "inputSchema": None},
    "inputSchema missing": {"name": "ill"},
    "inputSchema=[]": {"name": "ill", "inputSchema": []},
    "inputSchema of a string": {"name": "ill", "inputSchema": {"type": "string"}},
    "inputSchema of several types": {"name": "ill", "inputSchema": {"type": ["object", "null"]}},
    "properties=[]": {"name": "ill", "inputSchema": {"type": "object", "properties": []}},
    "properties of texts": {"name": "ill", "inputSchema": {"type": "object", "properties": {"a": "string"}}},
    "required is a text": {"name": "ill", "inputSchema": {"type": "object", "required": "a"}},
    "required has numbers": {"name": "ill", "inputSchema": {"type": "object", "required": [1]}},
    "outputSchema is a text": told("ill", outputSchema="object"),
    "outputSchema of an unknown type": told("ill", outputSchema={"type": "dict"}),
    "description is a list": told("ill", description=["Reads."]),
    "title is a number": told("ill", title=5),
    "annotations is a list": told("ill", annotations=[]),
    "a hint is a text": told("ill", annotations={"readOnlyHint": "perhaps"}),
    "name is a number": {"name": 5, "inputSchema": OBJECT},
    "name is null": {"name": None, "inputSchema": OBJECT},
    "name is empty": told(""),
    "no name": {"inputSchema": OBJECT},
    "a text": "ill",
    "null": None,
    "a list": [],
}
ILL_BEFORE = {
    "outputSchema={}": told("ill", outputSchema={}),
    "outputSchema of a string": told("ill", outputSchema={"type": "string"}),
    "outputSchema: properties=[]": told("ill", outputSchema={"type": "object", "properties": []}),
}


@pytest.mark.one_in(9, "a hundredth of a second of a core each")
@pytest.mark.parametrize(
    ("shape", "version"), [*product([*ILL, *ILL_BEFORE], [OLD]), *product([*ILL, "outputSchema: properties=[]"], [NEW])]
)
async def test_a_tool_that_is_ill_is_left_out_and_named_and_the_others_are_used(
    pool: McpServerPool, shape: str, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The whole server could not be used: the SDK checks the tools of a list together."""
    ill = (ILL | ILL_BEFORE)[shape]
    connected(pool, told("first"), ill, told("last"), version=version)
    assert [each.name for each in await pool.tools(SERVER)] == ["first", "last"]
    session = await pool.session(SERVER)
    name = ill["name"] if isinstance(ill, dict) and isinstance(ill.get("name"), str) else "#2"
    left_out = await session.left_out()
    assert set(left_out) == {name}
    assert left_out[name].startswith(("its schema cannot", "its output schema cannot", "it is n", "its name "))
    assert f"tool {name!r} is left out: {left_out[name]}" in caplog.text
    with pytest.raises(McpToolChanged, match="it offers no tool"):
        await session.call(name)
    assert (await session.call("last")).text == "last"


async def test_a_structured_result_may_be_of_any_type_in_the_newest_version(pool: McpServerPool) -> None:
    async def five(there: Any, request: dict[str, Any]) -> None:
        await there.answer(request, {**text("5"), "structuredContent": 5, "resultType": "complete"})

    offered = [told("any", outputSchema={}), told("number", outputSchema={"type": "integer"})]
    pool.add(SERVER, connect=listing(lambda: [{"tools": offered}], NEW, five))
    assert [(await each()).structured for each in await pool.tools(SERVER)] == [5, 5]


@surfaces
async def test_beside_an_ill_tool_the_others_are_called(pool: McpServerPool, surface: Surface) -> None:
    connected(pool, *ILL.values(), told("go"))
    assert await surface(pool, "go", {}) == "go"


USABLE = {
    "fields that nobody uses": told("go", icons="none", execution=5, _meta=[], other={"a": 1}),
    "nulls in place of what is left out": told("go", title=None, description=None, outputSchema=None, annotations=None),
    "hints of null": told("go", annotations={"readOnlyHint": None, "title": None, "other": 5}),
    "properties and required of null": told("go", {"type": "object", "properties": None, "required": None}),
    "a property that may be anything": told("go", {"type": "object", "properties": {"a": True, "b": {}}}),
    "a name in another script": told("ファイルを読む"),
    "a long name": told("go" * 50),
}


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@versions
@pytest.mark.parametrize("shape", USABLE)
async def test_a_tool_that_can_be_called_is_offered(pool: McpServerPool, shape: str, version: str) -> None:
    offered = USABLE[shape]
    connected(pool, offered, version=version)
    (made,) = await pool.tools(SERVER)
    assert (await made()).text == offered["name"]
    properties = made.schema.parameters["properties"]
    assert isinstance(properties, dict), "vendors take no null"
    assert made.schema.parameters.get("required", []) == []


async def test_a_digest_does_not_depend_on_what_is_ignored(pool: McpServerPool) -> None:
    """Digests that users have approved stay as they are: nulls and unknown fields are no part of them."""
    more = {"title": None, "icons": 5, "annotations": {"readOnlyHint": True, "title": None, "other": 1}}
    connected(pool, told("go", {"type": "object", "required": None}, **more))
    plain = told("go", {"type": "object", "required": None}, annotations={"readOnlyHint": True})
    pool.add("plain", connect=listing(lambda: [{"tools": [plain]}], NEW, named))
    assert await (await pool.session(SERVER)).digests() == await (await pool.session("plain")).digests()


async def test_a_server_whose_tools_are_all_ill_offers_none(pool: McpServerPool) -> None:
    connected(pool, *ILL.values())
    assert await pool.tools(SERVER) == []
    assert len(await (await pool.session(SERVER)).left_out()) >= 8


@versions
@pytest.mark.parametrize("cursor", ["", None])
async def test_an_empty_cursor_ends_a_list(pool: McpServerPool, cursor: str | None, version: str) -> None:
    """A server that ends its list by an empty cursor was asked for page after page."""
    asked: list[int] = []

    def pages() -> list[dict[str, Any]]:
        asked.append(1)
        return [{"tools": [told("first")], "nextCursor": "1"}, {"tools": [told("last")], "nextCursor": cursor}]

    pool.add(SERVER, connect=listing(pages, version, named))
    assert [each.name for each in await pool.tools(SERVER)] == ["first", "last"]
    assert len(asked) == 2


@pytest.mark.parametrize("page", [{}, {"tools": None}, {"tools": {"go": {}}}, {"tools": [], "nextCursor": 5}])
async def test_a_page_that_is_none_is_told(pool: McpServerPool, page: dict[str, Any]) -> None:
    with pytest.raises(McpUnavailable, match="list_tools: its answer is not what the protocol says"):
        await pool.tools(SERVER, connect=listing(lambda: [page], OLD, named))


@pytest.mark.parametrize("what", ["resources", "prompts"])
async def test_a_resource_or_prompt_that_is_ill_is_left_out_and_named(
    pool: McpServerPool, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One made all of them unreadable."""
    whole = {"uri": "file:///a", "uriTemplate": "file:///{a}", "name": "a", "arguments": None, "description": None}
    items = [whole, {"uri": 5, "name": "b", "arguments": 5}, None, {}]
    page = {"tools": [], "resources": items, "resourceTemplates": [], "prompts": items}
    pool.add(SERVER, connect=listing(lambda: [page], OLD, named, resources={}, prompts={}))
    session = await pool.session(SERVER)
    assert [each.name for each in await getattr(session, what)()][:1] == ["a"]
    assert f"{what[:-1]} 3 of its list is left out" in caplog.text


async def test_a_tool_that_comes_later_is_found_when_it_is_missed(pool: McpServerPool) -> None:
    """A server that reports no changes was never asked for its list again, as long as its session lasted."""
    offered = [told("first")]
    pool.add(SERVER, connect=listing(lambda: [{"tools": offered}], OLD, named))
    session = await pool.session(SERVER)
    with pytest.raises(McpToolChanged, match="it offers no tool 'later'"):
        await session.call("later")
    offered.append(told("later"))
    assert (await session.call("later")).text == "later"
    offered.append(told("latest"))
    (latest,) = await pool.tools(SERVER, only=["latest"])
    assert (await latest()).text == "latest"


# -- results ----------------------------------------------------------------------------------------------------------

WORDS = {"type": "text", "text": "x"}
RESULTS: dict[str, tuple[dict[str, Any], str]] = {
    "one text": ({"content": [WORDS]}, "x"),
    "no block": ({"content": []}, ""),
    "a long integer": ({"structuredContent": {"a": 2**70}}, f'{{"a":{2**70}}}'),
    "nulls": ({"content": [WORDS], "structuredContent": None, "isError": None, "_meta": None}, "x"),
    "nulls in a block": ({"content": [{**WORDS, "annotations": None, "_meta": None}]}, "x"),
    "structured alone": ({"structuredContent": {"a": 1}}, '{"a":1}'),
    "structured beside null": ({"content": None, "structuredContent": {"a": 1}}, '{"a":1}'),
    "a list as structured": ({"content": [], "structuredContent": [1, 2]}, "[1,2]"),
    "a text as structured": ({"content": [], "structuredContent": "a"}, '"a"'),
    "a block of an unknown kind": ({"content": [WORDS, {"type": "widget", "html": "<b>"}]}, "x\n[widget ]"),
    "a block with ill annotations": ({"content": [{**WORDS, "annotations": {"audience": "me", "priority": 9}}]}, "x"),
    "an image": ({"content": [{"type": "image", "data": "AA==", "mimeType": "image/png"}]}, "[image image/png]"),
    "an image without its type": ({"content": [{"type": "image", "data": "AA=="}]}, "[image ]"),
    "a link": ({"content": [{"type": "resource_link", "uri": "file:///a", "name": "a"}]}, "[resource file:///a]"),
    "a link without a name": ({"content": [{"type": "resource_link", "uri": "file:///a"}]}, "[resource file:///a]"),
    "a resource": ({"content": [{"type": "resource", "resource": {"uri": "file:///a", "text": "words"}}]}, "words"),
    "a resource without a uri": ({"content": [{"type": "resource", "resource": {"text": "words"}}]}, "words"),
    "fields that nobody uses": ({"content": [{**WORDS, "more": 1}], "more": [], "tools": [1], "_meta": []}, "x"),
}
WRONG: dict[str, dict[str, Any]] = {
    "empty": {},
    "content is null": {"content": None},
    "content is a text": {"content": "x"},
    "content is a block": {"content": WORDS},
    "a block is null": {"content": [None]},
    "a block is a text": {"content": ["x"]},
    "a block is no kind": {"content": [{"html": "<b>"}]},
    "a text is null": {"content": [{"type": "text", "text": None}]},
    "a text is a number": {"content": [{"type": "text", "text": 5}]},
    "a result of 2024": {"toolResult": {"a": 1}},
    "isError is a number": {"content": [WORDS], "isError": 5},
}


def answering(pool: McpServerPool, results: dict[str, dict[str, Any]], version: str = OLD) -> None:
    """A server with a tool for each result."""

    async def answer(there: Any, request: dict[str, Any]) -> None:
        said = results[request["params"]["name"]]
        await there.answer(request, {**said, "resultType": "complete"} if version == NEW else said)

    page = {"tools": [told(name) for name in results]}
    pool.add(SERVER, connect=listing(lambda: [page], version, answer))


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@surfaces
async def test_what_a_tool_returns_is_kept_in_each_shape(pool: McpServerPool, surface: Surface) -> None:
    """The tool had run, and its caller got an error: the SDK checks all blocks together."""
    answering(pool, {name: result for name, (result, _) in RESULTS.items()})
    for name, (_, words) in RESULTS.items():
        assert await surface(pool, name, {}) == words, name


@versions
async def test_what_a_tool_returns_is_kept_in_each_version(pool: McpServerPool, version: str) -> None:
    answering(pool, {name: result for name, (result, _) in RESULTS.items()}, version)
    session = await pool.session(SERVER)
    for name, (result, words) in RESULTS.items():
        found = await session.call(name)
        assert (found.text, found.is_error) == (words, False), name
        assert found.structured == result.get("structuredContent"), name


@versions
async def test_what_is_no_result_is_an_error_of_its_call(pool: McpServerPool, version: str) -> None:
    answering(pool, WRONG, version)
    session = await pool.session(SERVER)
    for name in WRONG:
        with pytest.raises(McpInvalidAnswer, match="is not what the protocol says"):
            await session.call(name)


# -- names ------------------------------------------------------------------------------------------------------------

LONG = "find_all_orders_of_a_customer_in_the_archive_of_the_warehouse_by_"


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    "names",
    [
        ["files.read", "files_read"],
        ["files.read", "files/read"],
        [f"{LONG}name", f"{LONG}number"],
        ["読む", "書く"],
        ["a.b", "a_b", "a/b", "a b", "a_b_"],
    ],
    ids=repr,
)
async def test_names_that_become_equal_are_made_distinct(names: list[str]) -> None:
    """An agent refused all of them, and the hint could not be followed: the names are the server's."""
    made = []
    for listed in (names, names[::-1]):
        async with McpServerPool() as pool:
            connected(pool, *map(told, listed))
            for prefix in ("", "fs_"):
                tools = await pool.tools(SERVER, prefix=prefix)
                found = {(await each()).text: each.name for each in tools}
                assert set(found) == set(names)
                assert len(set(found.values())) == len(names)
                assert all(len(each) <= 64 and each.replace("-", "_").isidentifier() for each in found.values())
                Agent(asked_for("x", {}), tools=tools)
                made.append(found)
    assert made[0] == made[2], "the same from start to start"
    assert made[1] == made[3]
    assert all(each not in names for each in made[0].values() if len(names) == 2)


async def test_a_name_that_is_alone_stays_as_it_was(pool: McpServerPool) -> None:
    """Jobs that are open know it by this name."""
    connected(pool, told("files.read"), told("files_read"))
    assert [each.name for each in await pool.tools(SERVER, only=["files.read"])] == ["files_read"]


async def test_a_tool_that_comes_later_gets_no_rule_and_no_approval_of_another_one(pool: McpServerPool) -> None:
    """`files_read` was the tool files.read, and after an update of the server it was another one."""
    listed = ["files.read"]
    pool.add("files", connect=listing(lambda: [{"tools": [*map(told, listed)]}], OLD, named))
    (alone,) = await pool.tools("files")
    policy = PolicyEngine([ToolPolicy(["files_read"], require_approval=True)])
    assert (alone.name, (await policy.check_tool(alone)).decision) == ("files_read", Decision.ASK)
    listed.append("files_read")
    async with McpServerPool() as later:
        later.add("files", connect=listing(lambda: [{"tools": [*map(told, listed)]}], OLD, named))
        both = await later.tools("files")
        assert all(each.name.startswith("files_read_") for each in both)
        (same,) = [each for each in both if (await each()).text == "files.read"]
        found = await policy.check_tool(same)
        assert found.decision is Decision.DENY
        assert f"names 'files_read', which is {same.name} here" in found.reason


@pytest.mark.parametrize(
    ("own", "pattern", "prefix", "name"),
    [("pay.out", "*y.out", "", "pay_out"), ("send_off", "send_*", "fs_", "fs_send_off")],
)
async def test_a_rule_that_names_a_tool_as_its_server_does_is_refused_with_the_name_that_it_has(
    pool: McpServerPool, own: str, pattern: str, prefix: str, name: str
) -> None:
    """Such a rule held nothing, and there was one warning."""
    connected(pool, told(own))
    for rule in (
        ToolPolicy([own], denied=True),
        ToolPolicy([pattern], denied=True),
        ConstraintPolicy([own], "amount", max=50),
        CedarPolicy(f'permit(principal, action, resource); forbid(principal, action, resource == Tool::"{own}");'),
    ):
        policy = PolicyEngine([rule])
        (paying,) = await pool.tools(SERVER, prefix=prefix)
        found = await policy.check_tool(paying)
        assert found.decision is Decision.DENY
        assert f"which is {name} here: a rule names a tool of an MCP server as models do" in found.reason
        with pytest.raises(UserError, match="which has another name here") as refused:
            policy.check_names([], [], "app")
        assert f"{name!r}" in (refused.value.hint or "")
    named_well = PolicyEngine([ToolPolicy([name], denied=True)])
    named_well.check_names([], [], "app")
    assert "is denied" in (await named_well.check_tool(paying)).reason


async def test_a_rule_about_a_tool_of_ones_own_is_none_about_that_of_a_server(pool: McpServerPool) -> None:
    @tool
    def give_back(order: str) -> None: ...

    connected(pool, told("give_back"))
    (remote,) = await pool.tools(SERVER, prefix="fs_")
    policy = PolicyEngine([ToolPolicy(["give_back"], denied=True)])
    policy.check_names([], [], "app")
    assert [(await policy.check_tool(each)).allowed for each in (give_back, remote)] == [False, True]


async def test_a_rule_about_a_tool_without_a_prefix_is_none_about_the_one_with_a_prefix(pool: McpServerPool) -> None:
    connected(pool, told("look_up"))
    (plain,), (other,) = await pool.tools(SERVER), await pool.tools(SERVER, prefix="fs_")
    policy = PolicyEngine([ToolPolicy(["look_up"], denied=True)])
    policy.check_names([], [], "app")
    assert [(await policy.check_tool(each)).allowed for each in (plain, other)] == [False, True]


async def test_a_server_cannot_take_the_name_that_another_tool_gets(pool: McpServerPool) -> None:
    connected(pool, told("files.read"), told("files_read"))
    (given,) = [each.name for each in await pool.tools(SERVER) if (await each()).text == "files.read"]
    pool.add("sly", connect=listing(lambda: [{"tools": [*map(told, ["files.read", "files_read", given])]}], OLD, named))
    sly = [each.name for each in await pool.tools("sly")]
    assert len(set(sly)) == 3
    assert given not in sly
