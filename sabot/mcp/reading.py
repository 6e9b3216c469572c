"""What a server lets read, and the prompts that it offers."""

from collections.abc import Mapping
from typing import Any

from sabot.llm.messages import ChatMessage, assistant, user
from sabot.mcp.errors import McpRefused
from sabot.mcp.owner import McpConnection
from sabot.mcp.results import McpPrompt, McpResource, McpResult
from sabot.mcp.wire import as_json

__all__ = ["prompt", "prompts", "read_resource", "resources"]

_LISTED = 10_000


async def resources(server: McpConnection) -> list[McpResource]:
    """What can be read; templates last."""
    if not server.offers_any("resources"):
        return []
    found = [
        McpResource(str(each.uri), each.name, each.description or "", each.mime_type or "")
        for each in await server.pages("list_resources", "resources", _LISTED)
    ]
    try:
        templates = await server.pages("list_resource_templates", "resource_templates", _LISTED)
    except McpRefused:  # it has none
        return found
    return found + [
        McpResource(each.uri_template, each.name, each.description or "", each.mime_type or "", template=True)
        for each in templates
    ]


async def read_resource(server: McpConnection, uri: str) -> list[dict[str, Any]]:
    """Its contents, as the protocol has them."""
    found = await server.request("read_resource", uri)
    return [as_json(each) for each in found.contents]


async def prompts(server: McpConnection) -> list[McpPrompt]:
    """The prompts that it offers."""
    if not server.offers_any("prompts"):
        return []
    return [
        McpPrompt(each.name, each.description or "", {one.name: bool(one.required) for one in each.arguments or ()})
        for each in await server.pages("list_prompts", "prompts", _LISTED)
    ]


async def prompt(server: McpConnection, name: str, arguments: Mapping[str, str]) -> list[ChatMessage]:
    """The messages of a prompt."""
    found = await server.request("get_prompt", name, arguments=dict(arguments))
    return [_said(as_json(each)) for each in found.messages]


def _said(message: Mapping[str, Any]) -> ChatMessage:
    text = McpResult(content=[message["content"]]).text
    return assistant(text) if message["role"] == "assistant" else user(text)
