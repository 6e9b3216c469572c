"""The results of MCP tools, and what servers list besides tools, as values that a journal can keep."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sabot.llm.tools import ToolAnswer
from sabot.process.executor import ToolRequest


class McpResult(ToolAnswer, frozen=True, omit_defaults=True, kw_only=True):
    """The answer of a tool.

    - `content`: a list of blocks in the form of the protocol: `{"type": "text", "text": …}`, images, resources.
    - `structured`: the same answer as a JSON value, if the tool has an output schema; else None.
    - `is_error`: True if the tool reports that it has failed.
    - `questions`: the questions that the server has to ask first, by key, each as `{"method": …, "params": …}`. A
      result with questions has no content: the caller has to make the call again, with the answers and with `state`.
    """

    content: list[dict[str, Any]] = msgspec.field(default_factory=list)
    structured: Any = None
    questions: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    state: str = ""

    @property
    def text(self) -> str:
        """The content as one text, in which a block that is no text is only named. Without any content, it is
        `structured` as JSON.
        """
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
"""The name that the specification 004 has for `ToolRequest`. It is only a second name, not a class of its own, since
the class `sabot.llm.ToolCall` is a model's request."""


@dataclass(frozen=True, slots=True)
class McpResource:
    """A resource of a server. `template`: True if `uri` has names in braces, for which a caller has to put in values."""

    uri: str
    name: str
    description: str = ""
    mime_type: str = ""
    template: bool = False


@dataclass(frozen=True, slots=True)
class McpPrompt:
    """A prompt of a server. `arguments`: the names of its arguments, each with True if it must be given."""

    name: str
    description: str = ""
    arguments: Mapping[str, bool] = field(default_factory=dict)
