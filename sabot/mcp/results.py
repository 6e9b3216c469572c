"""The results of MCP tools, and what servers list besides tools, as values that a journal can keep."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sabot.engine.calls.tools import ToolAnswer
from sabot.process.command import ToolRequest


class McpResult(ToolAnswer, frozen=True, omit_defaults=True, kw_only=True):
    """The answer of a tool.

    - `content`: a list of blocks in the form of MCP: `{"type": "text", "text": …}`, images, resources.
    - `structured`: the answer as a JSON value, if the tool has an output schema; else None.
    - `is_error`: True if the tool reports that it has failed.
    - `questions`: questions of the server that must be answered first, by their keys, each as `{"method": …, "params":
      …}`. A result with questions has no content. The caller then calls the tool again with the answers and with
      `state`.
    - `state`: a text that the server, or the session, needs to continue the call.
    - `restart`: True if the call was not done, and cannot continue with answers. The caller makes the call again from
      its beginning, but first gets the answers to `questions`, if there are any. Such a result has no content.
    - `changed`: of a result with questions or `restart`, the arguments that the call had and that its caller has not
      given so: defaults, and those that a person has changed who has approved it. The call goes on with them.
    """

    content: list[dict[str, Any]] = msgspec.field(default_factory=list)
    structured: Any = None
    questions: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    state: str = ""
    restart: bool = False
    changed: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def text(self) -> str:
        """The content as one text. Texts are included in full, also those of embedded resources; a block of another
        kind, such as an image, is only mentioned in brackets. If there is no content, the text is `structured` as JSON.
        """
        if not self.content and self.structured is not None:
            return msgspec.json.encode(self.structured).decode()
        return "\n".join(map(_words, self.content))

    @classmethod
    def from_person(cls, result: Any) -> "McpResult":
        """Returns the answer of a call of which a person has found out the result: a text, or any other JSON value,
        which becomes `structured`.
        """
        return cls(content=[{"type": "text", "text": result}]) if isinstance(result, str) else cls(structured=result)


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
    """A resource of a server. `template`: True if `uri` contains placeholders in braces, such as `{path}`, which the
    caller has to replace by values.
    """

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
