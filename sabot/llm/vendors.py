"""Engines by the name of a vendor, for models that SQL texts declare."""

from decimal import Decimal
from typing import Any

from sabot.llm.engine import ExecutionEngine
from sabot.llm.middleware import CallBudget
from sabot.llm.provider import Provider


def engine_of(
    vendor: str, model: str, *, max_tokens: int | None, max_cost: Decimal | str | float | None, **options: Any
) -> ExecutionEngine:
    """Creates an engine for a model. `vendor`: "openai" or "anthropic".

    `max_tokens`, `max_cost`: the budget of tokens and of US dollars for all calls together; None for no limit.
    `options`: the parameters of the vendor's provider.
    """
    limited = max_tokens is not None or max_cost is not None
    budget = CallBudget(max_tokens=max_tokens, max_cost=max_cost) if limited else None
    return ExecutionEngine(_PROVIDERS[vendor](model, **options), budget=budget)


def _openai(model: str, **options: Any) -> Provider:
    from sabot.llm.providers.openai import OpenAIProvider

    return OpenAIProvider(model, **options)


def _anthropic(model: str, **options: Any) -> Provider:
    from sabot.llm.providers.anthropic import AnthropicProvider

    return AnthropicProvider(model, **options)


_PROVIDERS = {"openai": _openai, "anthropic": _anthropic}
