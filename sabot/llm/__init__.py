"""Models and what they call: messages and requests (`messages`, `spec`), answers (`results`), tools (`tools`). `provider` is the contract
of a vendor's API, `errors` the tree of what goes wrong.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
from sabot.llm.results import Completion, Embeddings, Piece, Usage
from sabot.llm.spec import RequestContext, RequestSpec, ToolSchema
from sabot.llm.tools import Effect, Tool, tool

if TYPE_CHECKING:
    from sabot.llm.prices import GenaiPrices, Price, Prices, PriceTable
    from sabot.llm.providers.anthropic import AnthropicProvider
    from sabot.llm.providers.openai import OpenAIProvider
    from sabot.llm.providers.scripted import ScriptedProvider

__all__ = [
    "AnthropicProvider",
    "AuthenticationFailed",
    "ChatMessage",
    "Completion",
    "ContentFiltered",
    "ContextLengthExceeded",
    "Effect",
    "Embeddings",
    "GenaiPrices",
    "Image",
    "MalformedAnswer",
    "ModelError",
    "ModelTimeout",
    "ModelUnavailable",
    "OpenAIProvider",
    "Piece",
    "Price",
    "PriceTable",
    "Prices",
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

_HOMES = {  # of what `import sabot` has no need for
    "sabot.llm.prices": ("GenaiPrices", "Price", "PriceTable", "Prices"),
    "sabot.llm.providers.anthropic": ("AnthropicProvider",),
    "sabot.llm.providers.openai": ("OpenAIProvider",),
    "sabot.llm.providers.scripted": ("ScriptedProvider",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
