"""Models and what they call: messages and requests (`messages`, `spec`), answers (`results`), tools (`tools`). `provider` is the contract
of a vendor's API, `errors` the tree of what goes wrong.
"""

from sabot.journal.effects import Reconciled
from sabot.llm.errors import (
    AuthenticationFailed,
    ContentFiltered,
    ContextLengthExceeded,
    MalformedAnswer,
    ModelError,
    ModelTimeout,
    ModelUnavailable,
    RateLimited,
    RequestRefused,
    ToolError,
    ToolTimeout,
)
from sabot.llm.messages import ChatMessage, Image, Text, ToolCall, assistant, system, tool_result, user
from sabot.llm.provider import Provider
from sabot.llm.providers.scripted import ScriptedProvider
from sabot.llm.results import Completion, Embeddings, Piece, Usage
from sabot.llm.spec import RequestContext, RequestSpec, ToolSchema
from sabot.llm.tools import Effect, Tool, tool

__all__ = [
    "AuthenticationFailed",
    "ChatMessage",
    "Completion",
    "ContentFiltered",
    "ContextLengthExceeded",
    "Effect",
    "Embeddings",
    "Image",
    "MalformedAnswer",
    "ModelError",
    "ModelTimeout",
    "ModelUnavailable",
    "Piece",
    "Provider",
    "RateLimited",
    "Reconciled",
    "RequestContext",
    "RequestRefused",
    "RequestSpec",
    "ScriptedProvider",
    "Text",
    "Tool",
    "ToolCall",
    "ToolError",
    "ToolSchema",
    "ToolTimeout",
    "Usage",
    "assistant",
    "system",
    "tool",
    "tool_result",
    "user",
]
