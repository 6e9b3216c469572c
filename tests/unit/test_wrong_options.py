"""A misspelt option, and one that has its name from another framework, are answered with the option that is meant."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from sabot import App, UserError
from sabot.agents import Budget, BudgetSpec, ExecutionRequest, PolicyEngine, RuntimeKernel, ToolPolicy
from sabot.llm import Agent, AnthropicProvider, ExecutionEngine, OpenAIProvider, tool
from sabot.llm.providers.scripted import ScriptedProvider
from sabot.mcp import McpConfig
from sabot.mcp.config import McpServerSpec

ENGINE = ExecutionEngine(ScriptedProvider(["x"]))


async def work(ctx: Any) -> None: ...


AGENT = lambda **given: Agent(ENGINE, **given)  # noqa: E731
KERNEL = lambda **given: RuntimeKernel(ENGINE, work, **given)  # noqa: E731
REQUEST = lambda **given: ExecutionRequest(prompt="x", **given)  # noqa: E731
LLM_AGENT = lambda **given: App("shop").llm_agent("questions", ENGINE, **given)  # noqa: E731


@pytest.mark.parametrize(
    ("make", "option", "said"),
    [
        (AGENT, "output_type", "did you mean output=?"),
        (AGENT, "result_type", "did you mean output=?"),
        (AGENT, "system_prompt", "did you mean instructions=?"),
        (AGENT, "prompt", "did you mean instructions=?"),
        (AGENT, "instructons", "did you mean instructions=?"),
        (AGENT, "max_iterations", "did you mean max_turns=?"),
        (AGENT, "max_steps", "did you mean max_turns=?"),
        (AGENT, "functions", "did you mean tools=?"),
        (AGENT, "llm", "did you mean engine=?"),
        (AGENT, "model_settings", "did you mean options=?"),
        (AGENT, "deps_type", "ctx.call"),
        (AGENT, "memory", "conversation="),
        (AGENT, "verbose", "events"),
        (KERNEL, "jornal", "did you mean journal=?"),
        (KERNEL, "checkpointer", "did you mean journal=?"),
        (KERNEL, "guardrails", "did you mean policy=?"),
        (KERNEL, "model", "did you mean engine=?"),
        (REQUEST, "tenant_id", "did you mean scope_id=?"),
        (REQUEST, "user_id", "did you mean principal_id=?"),
        (REQUEST, "thread_id", "did you mean session_id=?"),
        (ExecutionRequest, "input", "did you mean prompt=?"),
        (BudgetSpec, "max_token", "did you mean max_tokens=?"),
        (BudgetSpec, "request_limit", "did you mean max_turns=?"),
        (lambda **given: Budget("acme", **given), "max_cost_dayly", "did you mean max_cost_daily=?"),
        (tool, "efect", "did you mean effect=?"),
        (tool, "requires_approval", "PolicyEngine"),
        (lambda **given: ExecutionEngine(ScriptedProvider(["x"]), **given), "retrys", "did you mean retries=?"),
        (lambda **given: OpenAIProvider("m", **given), "apikey", "did you mean api_key=?"),
        (lambda **given: AnthropicProvider("m", **given), "apikey", "did you mean api_key=?"),
        (PolicyEngine, "policies", "did you mean rules=?"),
        (ToolPolicy, "tools", "did you mean tool_patterns=?"),
        (ToolPolicy, "requires_approval", "did you mean require_approval=?"),
        (lambda **given: McpServerSpec(name="m", **given), "comand", "did you mean command=?"),
        (McpConfig, "tiemout", "it has"),
        (lambda **given: App("shop", **given), "jornal", "did you mean journal=?"),
        (lambda **given: App("shop").agent("orders", **given)(work), "kye", "did you mean key=?"),
        (LLM_AGENT, "kye", "did you mean key=?"),
        (LLM_AGENT, "output_type", "did you mean output=?"),
    ],
)
def test_an_option_that_is_not_there_is_answered_with_the_one_that_is_meant(
    make: Callable[..., Any], option: str, said: str
) -> None:
    with pytest.raises(UserError, match=f"no option {option}") as error:
        make(**{option: 3})
    assert said in (error.value.hint or "")
    assert "it has " in (error.value.hint or "")


def test_several_wrong_options_are_answered_each() -> None:
    with pytest.raises(UserError, match="Agent has no option output_type, system_prompt") as error:
        AGENT(output_type=int, system_prompt="x")
    hint = error.value.hint or ""
    assert "did you mean output= for output_type=? did you mean instructions= for system_prompt=?" in hint


def test_an_argument_that_is_missing_is_a_type_error_of_python() -> None:
    with pytest.raises(TypeError, match="missing 1 required"):
        Agent()  # type: ignore[call-arg]


def test_the_signature_is_that_of_the_class() -> None:
    assert "instructions" in inspect.signature(Agent).parameters
    assert "scope_id" in inspect.signature(ExecutionRequest).parameters
    assert "effect" in inspect.signature(tool).parameters
