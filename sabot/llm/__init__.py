"""Models and what they call: messages and requests (`messages`, `spec`), answers (`results`), tools (`tools`). `provider` is the contract
of a vendor's API, `errors` the tree of what goes wrong.
"""

from typing import TYPE_CHECKING

from sabot.journal.effects import Reconciled
from sabot.late import late_names
from sabot.llm.errors import (
    AgentError,
    AnswerTooLarge,
    AuthenticationFailed,
    BudgetExceeded,
    BudgetUnavailable,
    CircuitOpen,
    ContentFiltered,
    ContextLengthExceeded,
    MalformedAnswer,
    ModelError,
    ModelTimeout,
    ModelUnavailable,
    ModelUnreachable,
    RateLimited,
    RequestRefused,
    ToolError,
    ToolTimeout,
    TurnLimitExceeded,
)
from sabot.llm.messages import ChatMessage, Image, Text, ToolCall, assistant, system, tool_result, user
from sabot.llm.provider import Provider
from sabot.llm.results import Completion, Embeddings, Piece, Usage
from sabot.llm.spec import RequestContext, RequestSpec, ToolSchema
from sabot.llm.tools import Effect, Tool, tool

if TYPE_CHECKING:
    from sabot.llm.agent import Agent, AgentEvent, AgentResult, ToolEnded, ToolStarted
    from sabot.llm.cache import CompletionCache, MemoryCache, SqliteCache
    from sabot.llm.conversation import Conversation
    from sabot.llm.engine import ExecutionEngine
    from sabot.llm.idempotency import IdempotencyEvent, IdempotencyTracker
    from sabot.llm.limits import CircuitBreaker, Limits
    from sabot.llm.middleware import MIDDLEWARE, CallBudget, Forward, Middleware, ModelCall, Outcome
    from sabot.llm.prices import GenaiPrices, Price, Prices, PriceTable
    from sabot.llm.providers.anthropic import AnthropicProvider
    from sabot.llm.providers.openai import OpenAIProvider
    from sabot.llm.providers.scripted import ScriptedProvider
    from sabot.llm.schema import Mismatch, Schema

__all__ = [
    "MIDDLEWARE",
    "Agent",
    "AgentError",
    "AgentEvent",
    "AgentResult",
    "AnswerTooLarge",
    "AnthropicProvider",
    "AuthenticationFailed",
    "BudgetExceeded",
    "BudgetUnavailable",
    "CallBudget",
    "ChatMessage",
    "CircuitBreaker",
    "CircuitOpen",
    "Completion",
    "CompletionCache",
    "ContentFiltered",
    "ContextLengthExceeded",
    "Conversation",
    "Effect",
    "Embeddings",
    "ExecutionEngine",
    "Forward",
    "GenaiPrices",
    "IdempotencyEvent",
    "IdempotencyTracker",
    "Image",
    "Limits",
    "MalformedAnswer",
    "MemoryCache",
    "Middleware",
    "Mismatch",
    "ModelCall",
    "ModelError",
    "ModelTimeout",
    "ModelUnavailable",
    "ModelUnreachable",
    "OpenAIProvider",
    "Outcome",
    "Piece",
    "Price",
    "PriceTable",
    "Prices",
    "Provider",
    "RateLimited",
    "Reconciled",
    "RedisCache",
    "RequestContext",
    "RequestRefused",
    "RequestSpec",
    "Schema",
    "ScriptedProvider",
    "SqliteCache",
    "Text",
    "Tool",
    "ToolCall",
    "ToolEnded",
    "ToolError",
    "ToolSchema",
    "ToolStarted",
    "ToolTimeout",
    "TurnLimitExceeded",
    "Usage",
    "assistant",
    "system",
    "tool",
    "tool_result",
    "user",
]

_HOMES = {  # of what streams and agents without models have no need for
    "sabot.llm.agent": ("Agent", "AgentEvent", "AgentResult", "ToolEnded", "ToolStarted"),
    "sabot.llm.conversation": ("Conversation",),
    "sabot.llm.cache": ("CompletionCache", "MemoryCache", "RedisCache", "SqliteCache"),
    "sabot.llm.engine": ("ExecutionEngine",),
    "sabot.llm.idempotency": ("IdempotencyEvent", "IdempotencyTracker"),
    "sabot.llm.limits": ("CircuitBreaker", "Limits"),
    "sabot.llm.middleware": ("MIDDLEWARE", "CallBudget", "Forward", "Middleware", "ModelCall", "Outcome"),
    "sabot.llm.prices": ("GenaiPrices", "Price", "PriceTable", "Prices"),
    "sabot.llm.providers.anthropic": ("AnthropicProvider",),
    "sabot.llm.providers.openai": ("OpenAIProvider",),
    "sabot.llm.providers.scripted": ("ScriptedProvider",),
    "sabot.llm.schema": ("Mismatch", "Schema"),
}

if not TYPE_CHECKING:  # for type checkers every name would exist, misspelled ones too
    __getattr__, __dir__ = late_names(__name__, _HOMES)
