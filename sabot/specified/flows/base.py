"""Operators, which are the steps of flows, and the context that a flow gives them.

Operator.execute(input, context) ─▶ OperatorResult        an agent, a function, or a pattern of other operators

A flow runs in the event loop of its caller, and calls tools and models only through `context.effects`. Outside of a job
these are plain calls; in a job each call is an effect. So a flow in a durable job needs no store of its own: after a
crash the flow runs again, and takes the results of its calls from the journal.
"""

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from sabot.agents.context import ExecutionContext
from sabot.agents.durable.context import DurableContext
from sabot.base.checks import Of, check
from sabot.base.config import check_numbers, checked_durations
from sabot.base.options import answers_wrong_options
from sabot.base.threads import run_to_end
from sabot.engine.calls.errors import AgentRunError, BudgetExceeded, ModelError, ToolError
from sabot.engine.calls.model_requests import RequestSpec, context_of
from sabot.engine.calls.tool_results import model_or_text
from sabot.engine.calls.tools import Tool, as_tool
from sabot.engine.calls.usage import Usage
from sabot.errors import EffectError, SabotError, UserError, message_of, short_repr
from sabot.jobs.guard import APART
from sabot.llm.agent import Agent, AgentEffects, current_effects
from sabot.llm.direct import DirectTools
from sabot.llm.engine import ExecutionEngine
from sabot.llm.results import Completion, Piece


class FlowError(SabotError):
    """The base class of the errors of flows. A flow is an operator that consists of other operators, such as a chain, a
    graph or a workflow. The codes are: E2010 for a loop without a limit (FlowCycle), E2011 for too deep nesting or too
    many branches (DepthExceeded), E2012 for a step that has failed (FlowFailed), and E2013 for a flow that takes too
    long (FlowTimeout).
    """

    code = "E2012"


class FlowCycle(FlowError, UserError):
    """The error for a graph whose nodes wait for each other in a circle, and for a workflow with a loop that has no
    limit.
    """

    code = "E2010"


class DepthExceeded(FlowError):
    """The error for a flow that has more steps or more levels of nested flows than its limits allow, and for a node of a
    workflow that has more branches.
    """

    code = "E2011"


class FlowFailed(FlowError):
    """The error for a step of a flow that has failed, or whose input is unusable. The flow that contains the step fails
    with it too.
    """


class FlowTimeout(FlowError, TimeoutError):
    """The error for a flow that has not ended within its time limit (`timeout_seconds`)."""

    code = "E2013"


_FAILURES = (FlowFailed, ModelError, AgentRunError, ToolError, EffectError, BudgetExceeded, TimeoutError)
"""The errors that count as a failure of an operator. Any other error is a mistake in the program, and is raised."""


@answers_wrong_options
@dataclass(frozen=True, slots=True, kw_only=True)
class OrchestrationConfig:
    """The limits of a flow, which is an operator that consists of other operators.

    - `max_child_jobs`: the most operators of one parallel step that run at the same time, as `max_parallel`; the lower
      limit holds. Further ones wait, as children of a job do (`ChildLimits`).
    - `max_depth`: the most levels of flows inside of flows. The outermost flow is level 1.
    - `timeout_seconds`: the time limit for one execution of the outermost flow; None sets no limit.
    - `inherit_budgets`: True if the usage of the steps counts in the limits (`BudgetSpec`) of the job that runs the
      flow. With False it only counts in the budget of the tenant.
    - `propagate_cancellation`: True if the running steps are cancelled when the flow is cancelled or its time limit has
      passed. With False, the flow first runs to its end; then CancelledError or FlowTimeout is raised.
    - `parallel_execution`: True if branches run at the same time, at most `max_parallel` of them. With False they run
      one after the other.
    """

    max_child_jobs: int = 10
    max_depth: int = 5
    timeout_seconds: float | None = 300.0
    inherit_budgets: bool = True
    propagate_cancellation: bool = True
    parallel_execution: bool = True
    max_parallel: int = 5

    def __post_init__(self) -> None:
        check_numbers(self, "max_child_jobs", "max_depth", "max_parallel", whole=True)
        checked_durations(self, "timeout_seconds", none=True)
        for name in ("inherit_budgets", "propagate_cancellation", "parallel_execution"):
            if not isinstance(value := getattr(self, name), bool):
                raise UserError(f"OrchestrationConfig: {name}={short_repr(value)}", hint="True or False")


@answers_wrong_options
@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorContext:
    """The context that a flow passes to all of its operators.

    - `execution`: the ExecutionContext with the tenant and the actor for whom the flow runs, or None.
    - `effects`: the object through which operators call models and tools. With None, `OperatorContext.of` sets it to
      the effects of the job in which the flow runs. If there is no such job it remains None, and the calls are made
      directly.
    - `config`: the limits of the flow.
    - `depth`: the number of flows that contain the present operator.
    - `values`: values that the caller wants to pass to all operators. The operators must not change them.
    """

    execution: ExecutionContext | None = None
    effects: AgentEffects | None = None
    config: OrchestrationConfig = field(default_factory=OrchestrationConfig)
    depth: int = 0
    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: "OperatorContext | ExecutionContext | DurableContext | None") -> "OperatorContext":
        """Returns an OperatorContext for `given`:

        - For the context of a durable agent, a context with which all calls of the flow become effects of the agent's
          job.
        - For an ExecutionContext or None, a context with this as `execution`.
        - An OperatorContext is returned as it is.

        If the result has no `effects`, it gets the effects of the job in which this method is called, if there is such
        a job. Raises UserError for any other value, and outside of a job for an ExecutionContext with budgets or a
        policy, which nobody would hold there.
        """
        if given is None or isinstance(given, ExecutionContext):
            given = cls(execution=given)
        elif isinstance(given, DurableContext):
            given = cls(effects=_InJob(given))
        elif not isinstance(given, OperatorContext):
            raise UserError(
                f"{short_repr(given)} is no context of an operator",
                hint="an OperatorContext, an ExecutionContext, or the ctx of a durable agent",
            )
        if given.effects is None:
            given = replace(given, effects=current_effects.get())
        if given.effects is None and given.execution is not None:
            given.execution.request_context()  # what nobody would hold is refused before the first call
        return given

    async def call(self, tool: Tool | Callable[..., Any], /, **arguments: Any) -> Any:
        """Calls a tool with these arguments, and returns its result. If the flow runs in a job, the call is an effect
        of the job, with the effect class of the tool. A plain function is treated as a tool with the effect class
        "unsafe".
        """
        effects = DirectTools(context_of(self.execution)) if self.effects is None else self.effects
        return await effects.call(as_tool(tool), arguments)


class _InJob:
    """The effects through which a flow makes its calls in the job of a durable agent. `call` calls a tool. A model
    cannot be asked directly, because these effects belong to no engine: `complete` and `stream` raise UserError.
    `of(engine)` returns effects that ask the models of an engine.
    """

    def __init__(self, ctx: DurableContext) -> None:
        self._ctx = ctx

    def of(self, engine: ExecutionEngine) -> AgentEffects:
        return self._ctx.llm(engine)

    async def complete(self, spec: RequestSpec) -> Completion:
        raise UserError("these effects have no engine to ask a model with", hint="context.effects.of(engine)")

    def stream(self, spec: RequestSpec) -> AsyncGenerator[Piece, None]:
        raise UserError("these effects have no engine to ask a model with", hint="context.effects.of(engine)")

    async def call(self, tool: Tool, arguments: Mapping[str, Any], said: str | None = None) -> Any:
        return await self._ctx.call(tool, **arguments)

    def looks_at_ends(self) -> bool:
        """Returns True, because these effects get no answers of models."""
        return True

    def note_labels(self, labels: frozenset[str], /) -> None:
        """Does nothing, because agents run by the effects of their engines (`of`)."""


@dataclass(frozen=True, slots=True)
class OperatorResult:
    """The result of an operator.

    - `content`: the answer of an agent as a text, or as a value of the agent's output type; or the value that a
      function has returned. For a failure it is a description of the failure.
    - `success`: False if the operator has failed.
    - `error`: the exception because of which the operator has failed, or None.
    - `usage`: the sum of the tokens of all its calls of models.
    - `metadata`: further facts; the keys depend on the operator.
    """

    content: Any
    success: bool = True
    error: BaseException | None = None
    usage: Usage = field(default_factory=Usage)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def checked(self, what: str) -> "OperatorResult":
        """Returns this result if it is a success. Otherwise raises FlowFailed. `what` is the name of the step in the
        error message.
        """
        if self.success:
            return self
        why = self.error if self.error is not None else short_repr(self.content)
        raise FlowFailed(f"{what} has failed: {why}") from self.error


class Operator(ABC):
    """The base class of the steps of a flow. A subclass implements `execute`. The name of a step is the name of its
    class, unless `name` is given.
    """

    def __init__(self, agent: Agent | None = None, *, name: str = "") -> None:
        """Makes a step. `agent` is stored as `self.agent`; None is for a step that runs no agent. `name` is used in
        error messages; "" means the name of the class.
        """
        self.agent: Any = agent
        self._name = name

    @property
    def name(self) -> str:
        """The name of the operator in error messages."""
        return self._name or type(self).__name__

    @property
    def takes_items(self) -> bool:
        """True if a PlannerExecutorOperator shall execute this operator once, with all steps of the plan in the field
        "items". With False it executes the operator once for each step.
        """
        return False

    @abstractmethod
    async def execute(self, input_data: Any, context: Any = None) -> OperatorResult:
        """Executes the step with the input `input_data`, and returns its result. `context` is the OperatorContext of
        the flow. A subclass makes its calls of tools and models through `context`, or through `self.agent`.

        If this method raises a ModelError, AgentRunError, ToolError, EffectError, BudgetExceeded or TimeoutError, the
        step has failed. Any other error ends the flow, which then raises it.
        """


class Flow(Operator):
    """The base class of operators that consist of other operators. The second argument of `execute` is an
    OperatorContext, an ExecutionContext, the context of a durable agent, or None. If the input is a text, the inner
    operators get {"text": input}.
    """

    def __init__(self, *, name: str = "") -> None:
        super().__init__(name=name)

    async def execute(self, input_data: Any, context: Any = None) -> OperatorResult:
        """Executes the flow with the input `input_data`, and returns its result. If a step fails, the result has
        `success=False`. Raises FlowTimeout if the flow takes too long, DepthExceeded if it is nested too deeply or has
        too many steps, and FlowFailed if its input or the content of a step is unusable, such as a plan without steps
        or the name of a route that does not exist.
        """
        within = OperatorContext.of(context)
        config = within.config
        if within.depth >= config.max_depth:
            raise DepthExceeded(
                f"{self.name}: flows are {within.depth + 1} deep here, and may be {config.max_depth}",
                hint="OrchestrationConfig(max_depth=…)",
            )
        given = {"text": input_data} if isinstance(input_data, str) else input_data
        inside = replace(within, depth=within.depth + 1)
        seconds = self._seconds(config)
        if within.depth:
            return await self._flow(given, inside)
        limit, flow = asyncio.timeout(seconds), self._flow(given, inside)
        try:
            async with limit:
                return await (flow if config.propagate_cancellation else run_to_end(flow))
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise FlowTimeout(f"{self.name} has not ended within {seconds:g} s", hint="timeout_seconds=…") from error

    def _seconds(self, config: OrchestrationConfig) -> float | None:
        """Returns the time limit of this flow in seconds, or None if it has no limit. The limit is not applied to a
        flow inside of another flow.
        """
        return config.timeout_seconds

    @abstractmethod
    async def _flow(self, given: Any, context: OperatorContext) -> OperatorResult:
        """Executes the operators of the flow, and returns the result of the flow."""


async def step(operator: Operator, given: Any, context: OperatorContext) -> OperatorResult:
    """Executes an operator as a step of a flow, and returns its result. The operator's calls of tools and models are
    made through `context.effects`. If the operator raises an error of a call (ModelError, AgentRunError, ToolError,
    EffectError, BudgetExceeded, TimeoutError) or FlowFailed, returns a result with `success=False` and that error. Any
    other error is raised.
    """
    before, counted = current_effects.set(context.effects), APART.set(APART.get() or not context.config.inherit_budgets)
    try:
        result = await operator.execute(given, context)
    except (FlowTimeout, DepthExceeded, FlowCycle):
        raise
    except _FAILURES as error:
        return OperatorResult(f"{type(error).__name__}: {message_of(error)}", success=False, error=error)
    finally:
        current_effects.reset(before)
        APART.reset(counted)
    if not isinstance(result, OperatorResult):
        raise UserError(
            f"operator {operator.name}: execute returned {short_repr(result)}", hint="return OperatorResult(content)"
        )
    return result


async def run_parallel(work: Sequence[tuple[Operator, Any]], context: OperatorContext) -> list[OperatorResult]:
    """Executes operators, each with its input, and returns their results in the order of `work`. If
    `context.config.parallel_execution` is True, at most `max_parallel` and at most `max_child_jobs` of them run at the
    same time; otherwise they run one after the other. The first error cancels the others, and is raised.
    """
    config = context.config
    if not config.parallel_execution:
        return [await step(operator, given, context) for operator, given in work]
    room = asyncio.Semaphore(min(config.max_parallel, config.max_child_jobs))

    async def one(operator: Operator, given: Any) -> OperatorResult:
        async with room:
            return await step(operator, given, context)

    tasks = [asyncio.create_task(one(operator, given)) for operator, given in work]
    try:
        return await asyncio.gather(*tasks)  # the first error in time, although an earlier operator waits for a person
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


@answers_wrong_options
class AgentStep(Operator):
    """A step that runs an agent. The content of its result is the agent's output, or the text of the answer if the
    agent has no output type.

    `prompt` makes the prompt from the input of the step. It is a template for the fields of the input ("Summarize:
    {text}"), or a function that gets the input. By default, the function `prompt_of` makes the prompt.
    """

    def __init__(self, agent: Agent, *, prompt: str | Callable[[Any], object] | None = None, name: str = "") -> None:
        check("AgentStep: agent", agent, Of(Agent, "an Agent of sabot.llm"))
        super().__init__(agent, name=name or agent.name)
        self._prompt = prompt

    async def execute(self, input_data: Any, context: Any = None) -> OperatorResult:
        """Runs the agent once with a prompt that is made from the input. Returns its output, or the text of its answer,
        as the content of the result.
        """
        said = self._said(input_data)
        within = OperatorContext.of(context)
        effects = None if within.effects is None else within.effects.of(self.agent.engine)
        ran = await self.agent.run(said, context=within.execution, effects=effects)
        content = ran.content if ran.output is None else ran.output
        return OperatorResult(content, usage=ran.usage, metadata={"turns": ran.turns, "cost": ran.cost})

    def _said(self, given: Any) -> object:
        if callable(self._prompt):
            return self._prompt(given)
        if self._prompt is None:
            return prompt_of(given)
        fields = given if isinstance(given, Mapping) else {"text": given}
        try:
            return self._prompt.format_map(fields)
        except (KeyError, IndexError, AttributeError) as error:
            raise UserError(
                f"operator {self.name}: its prompt {short_repr(self._prompt)} needs {error}",
                hint=f"its input has {', '.join(map(str, fields)) or 'no fields'}",
            ) from error


@answers_wrong_options
class FunctionStep(Operator):
    """A step that calls a function as `f(input)` or, if it has a second parameter, as `f(input, context)`. It may be
    async. It returns the content of the step's result, or an OperatorResult. In a durable job the function runs again
    after a crash, so it has to call tools by `context.call`, which records their results. A tool in place of the
    function is called in this way, with the input as its first argument.
    """

    def __init__(self, func: Callable[..., Any], *, name: str = "") -> None:
        super().__init__(name=name or getattr(func, "__name__", "function"))
        self._func = func
        self._takes_context = _positional(func) > 1

    async def execute(self, input_data: Any, context: Any = None) -> OperatorResult:
        """Calls the function with the input. Returns its value as the content of the result."""
        within = OperatorContext.of(context)
        if isinstance(self._func, Tool):
            return OperatorResult(await within.call(self._func, **{self._func.positional[0]: input_data}))
        value = self._func(input_data, within) if self._takes_context else self._func(input_data)
        if inspect.isawaitable(value):
            value = await value
        return value if isinstance(value, OperatorResult) else OperatorResult(value)


OperatorLike = Operator | Agent | Callable[..., Any]


def as_operator(given: Any, what: str) -> Operator:
    """Returns an operator for `given`. An operator is returned unchanged; an agent or a function is put into a step
    that runs it. Raises UserError for anything else. `what` is the name of the argument in the error message.
    """
    if isinstance(given, Operator):
        return given
    if isinstance(given, Agent):
        return AgentStep(given)
    if callable(given) and not isinstance(given, type):
        return FunctionStep(given)
    raise UserError(f"{what}: {short_repr(given)} is no operator", hint="an Operator, an Agent, or a function")


def _positional(func: Callable[..., Any]) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(func).parameters.values()
    except (TypeError, ValueError):
        return 1
    if any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters):
        return 2
    return sum(each.kind in kinds for each in parameters)


def prompt_of(given: Any) -> str:
    """Returns the input of a step as a text for a model. A text is returned unchanged. A mapping with one field becomes
    the value of that field, and one with several fields becomes a line "name: value" for each. Any other value becomes
    JSON.
    """
    if isinstance(given, str):
        return given
    if not isinstance(given, Mapping):
        return _shown(given)
    if len(given) == 1:
        return _shown(next(iter(given.values())))
    return "\n".join(f"{name}: {_shown(value)}" for name, value in given.items())


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=model_or_text).decode()


def fields_of(given: Any) -> dict[str, Any]:
    """Returns the input of a step as a dict. A mapping is copied; any other value is returned as {"text": value}."""
    return dict(given) if isinstance(given, Mapping) else {"text": given}


def with_content(given: Any, content: Any) -> dict[str, Any]:
    """Returns the input for the next step: a dict with the fields of `given`, to which `content`, the content of the
    previous step, is added. If the content is a mapping, its fields are added; otherwise it is added as the field
    "text".
    """
    builtin = content if isinstance(content, Mapping | str) else msgspec.to_builtins(content, enc_hook=model_or_text)
    return {**fields_of(given), **fields_of(builtin)}


def usage_of(results: Sequence[OperatorResult]) -> Usage:
    """Returns the sum of the usage of all results."""
    total = Usage()
    for result in results:
        total += result.usage
    return total
