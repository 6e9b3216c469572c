"""A misspelt option, and one that has its name from another framework, are answered with the option that is meant."""

import enum
import inspect
from collections.abc import Callable
from typing import Any

import pytest

import sabot.agents
import sabot.llm
import sabot.mcp
from sabot import App, UserError
from sabot.agents import (
    Budget,
    BudgetSpec,
    CedarPolicy,
    ChildLimits,
    ExecutionContext,
    ExecutionRequest,
    InMemoryLedgerWriter,
    Ledger,
    PolicyEngine,
    RuntimeKernel,
    SqliteJournal,
    ToolPolicy,
)
from sabot.llm import (
    Agent,
    AnthropicProvider,
    CallBudget,
    CircuitBreaker,
    ExecutionEngine,
    Limits,
    MemoryCache,
    OpenAIProvider,
    RequestContext,
    tool,
)
from sabot.llm.providers.scripted import ScriptedProvider
from sabot.mcp import McpConfig, McpServerPool
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
        (AGENT, "deps_type", "did you mean deps=?"),
        (AGENT, "context_schema", "did you mean deps=?"),
        (AGENT, "memory", "conversation="),
        (AGENT, "verbose", "events"),
        (KERNEL, "jornal", "did you mean journal=?"),
        (KERNEL, "checkpointer", "did you mean journal=?"),
        (KERNEL, "guardrails", "did you mean policy=?"),
        (KERNEL, "model", "did you mean engine=?"),
        (KERNEL, "tenant_id", "ExecutionRequest(scope_id=…"),
        (REQUEST, "model", "Agent(engine, model=…)"),
        (lambda **given: ToolPolicy(["refund"], **given), "tenant_id", "did you mean allowed_scopes=?"),
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
        (RequestContext, "tenant", "did you mean tenant_id=?"),
        (RequestContext, "user", "did you mean user_id=?"),
        (ChildLimits, "depth", "did you mean max_depth=?"),
        (lambda **given: ExecutionContext(scope_id="a", **given), "tenant_id", "did you mean scope_id=?"),
        (Limits, "requests_per_minut", "did you mean requests_per_minute=?"),
        (CallBudget, "max_dollars", "did you mean max_cost=?"),
        (CircuitBreaker, "failurs", "did you mean failures=?"),
        (MemoryCache, "max", "it has"),
        (CedarPolicy, "entitys", "did you mean entities=?"),
        (lambda **given: Ledger(InMemoryLedgerWriter(), **given), "budget", "did you mean budgets=?"),
        (SqliteJournal, "capacity", "did you mean capacity_bytes=?"),
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


async def test_tools_of_a_server_answer_with_their_own_options() -> None:
    """`pool.tools(efects=…)` was answered with the options of McpServerSpec, which has no effects."""
    pool = McpServerPool()
    with pytest.raises(UserError, match=r"McpServerPool\.tools has no option efects") as error:
        await pool.tools("files", command=["x"], efects="read")  # type: ignore[call-arg]
    assert (error.value.hint or "").startswith("did you mean effects=? it has approved, command, connect, effects")
    with pytest.raises(UserError, match=r"McpServerPool\.add has no option comand") as error:
        pool.add("files", comand=["x"])  # type: ignore[call-arg]
    assert "did you mean command=?" in (error.value.hint or "")
    await pool.close()


_RESULTS = {
    *("ActionRecord", "AgentProcess", "AgentResult", "AuditRecord", "ClaimCheck", "Completion", "DurableContext"),
    *("Effect", "Embeddings", "ExecutionHandle", "ExecutionResult", "Forked", "GraphResult", "GuardVerdict"),
    *("GuardedCall", "JobCheckpoint", "JobCode", "JobRecord", "LedgerEvent", "LedgerSum", "McpPrompt", "McpResource"),
    *("McpResult", "ModelCall", "OpenEffect", "OperatorResult", "Piece", "PluginRegistry"),
    *("Recording", "Reply", "RequestSpec", "RunMetadata", "RuntimeEvent", "SessionInfo", "SessionKey"),
    *(
        "SourceDocument",
        "Tool",
        "ToolCall",
        "Usage",
        "Verified",
        "WorkflowState",
        "ChatMessage",
        "Image",
        "Operator",
        "Memory",
    ),
    *("Conversation", "ToolRequest"),
}
"""What Sabot makes and a user reads, or is written without names."""


def classes_with_options() -> list[type]:
    found: dict[str, type] = {}
    for each in (sabot.agents, sabot.llm, sabot.mcp):
        for name in each.__all__:
            made = getattr(each, name)
            if not isinstance(made, type) or issubclass(made, BaseException | enum.Enum) or made.__name__ in _RESULTS:
                continue
            try:
                options = inspect.signature(made).parameters.values()
            except ValueError:  # made by Sabot only, such as a NamedTuple of C
                continue
            if any(option.default is not option.empty for option in options):
                found[made.__name__] = made
    return list(found.values())


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("made", classes_with_options(), ids=lambda made: made.__name__)
def test_each_public_class_with_options_answers_a_wrong_one(made: Any) -> None:
    with pytest.raises(UserError, match=f"{made.__name__} has no option optoin") as error:
        made(optoin=1)
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
