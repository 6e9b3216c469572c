"""What a call of an MCP tool asks and gives, as values that a journal keeps: they are JSON as the protocol has it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sabot.llm.tools import ToolAnswer
from sabot.process.executor import ToolRequest


class McpResult(ToolAnswer, frozen=True, omit_defaults=True, kw_only=True):
    """What a tool has answered.

    content: its blocks, as the protocol has them: `{"type": "text", "text": …}`, images, resources. structured: the same as JSON, by tools
    that have an output schema. is_error: the tool says that it has failed. questions: what the server wants to know before it goes on, by
    a key: `{"method": …, "params": …}`; then there is no content yet, and `state` is what it gets back with the answers.
    """

    content: list[dict[str, Any]] = msgspec.field(default_factory=list)
    structured: Any = None
    questions: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    state: str = ""

    @property
    def text(self) -> str:
        """The texts of its content; a word for each block that is none. Where there are none: `structured` as JSON."""
        if not self.content and self.structured is not None:
            return msgspec.json.encode(self.structured).decode()
        return "\n".join(map(_words, self.content))


def _words(block: Mapping[str, Any]) -> str:
    kind, resource = block.get("type"), block.get("resource")
    if kind == "text":
        return str(block.get("text", ""))
    if isinstance(resource, Mapping):
        return str(resource["text"]) if "text" in resource else f"[resource {resource.get('uri', '')}]"
    if kind == "resource_link":
        return f"[resource {block.get('uri', '')}]"
    return f"[{kind} {block.get('mimeType', '')}]"


ToolCall = ToolRequest


@dataclass(frozen=True, slots=True)
class McpResource:
    """Something that a server lets read. template: its uri has names in braces, to be filled in."""

    uri: str
    name: str
    description: str = ""
    mime_type: str = ""
    template: bool = False


@dataclass(frozen=True, slots=True)
class McpPrompt:
    """A prompt that a server offers. arguments: the names of what fills it in, and whether it must be given."""

    name: str
    description: str = ""
    arguments: Mapping[str, bool] = field(default_factory=dict)
