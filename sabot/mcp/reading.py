"""The resources and prompts of a server."""

from collections.abc import Mapping
from typing import Any

from sabot.llm.messages import ChatMessage, assistant, user
from sabot.mcp.errors import McpRefused
from sabot.mcp.owner import McpConnection
from sabot.mcp.results import McpPrompt, McpResource, McpResult
from sabot.mcp.wire import as_json


async def resources(server: McpConnection) -> list[McpResource]:
    """Returns the resources of the server, templates last."""
    if not server.offers_any("resources"):
        return []
    found = [
        McpResource(each["uri"], each["name"], each.get("description", ""), each.get("mimeType", ""))
        for each in await server.pages("list_resources")
    ]
    try:
        templates = await server.pages("list_resource_templates")
    except McpRefused:  # it has none
        return found
    return found + [
        McpResource(
            each["uriTemplate"], each["name"], each.get("description", ""), each.get("mimeType", ""), template=True
        )
        for each in templates
    ]


async def read_resource(server: McpConnection, uri: str) -> list[dict[str, Any]]:
    """Returns the contents of a resource, as the protocol has them."""
    found = await server.request("read_resource", uri)
    return [as_json(each) for each in found.contents]


async def prompts(server: McpConnection) -> list[McpPrompt]:
    """Returns the prompts of the server."""
    if not server.offers_any("prompts"):
        return []
    return [
        McpPrompt(
            each["name"],
            each.get("description", ""),
            {one["name"]: bool(one.get("required")) for one in each.get("arguments", ())},
        )
        for each in await server.pages("list_prompts")
    ]


async def prompt(server: McpConnection, name: str, arguments: Mapping[str, str]) -> list[ChatMessage]:
    """Returns the messages of a prompt."""
    found = await server.request("get_prompt", name, arguments=dict(arguments))
    return [_said(as_json(each)) for each in found.messages]


def _said(message: Mapping[str, Any]) -> ChatMessage:
    text = McpResult(content=[message["content"]]).text
    return assistant(text) if message["role"] == "assistant" else user(text)
