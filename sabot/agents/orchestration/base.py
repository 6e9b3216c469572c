"""Operators, which are the steps of flows, and the context that a flow gives them.

Operator.execute(input, context) ─▶ OperatorResult        an agent, a function, or a pattern of other operators

A flow runs in the event loop of its caller, and calls tools and models only through `context.effects`. Outside of a job
these are plain calls; in a job each call is an effect. So a flow in a durable job needs no store of its own: after a
crash the flow runs again, and takes the results of its calls from the journal.
"""

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgspec

from sabot.agents.context import ExecutionContext
from sabot.agents.durable.context import DurableContext
from sabot.base.checks import Of, check
from sabot.base.config import check_numbers, checked_durations
from sabot.errors import EffectError, SabotError, UserError, message_of, short_repr
from sabot.jobs.guard import APART
from sabot.llm.agent import Agent, AgentEffects, current_effects
from sabot.llm.direct import DirectTools
from sabot.llm.engine import ExecutionEngine
from sabot.llm.errors import AgentRunError, BudgetExceeded, ModelError, ToolError
from sabot.llm.results import Completion, Piece, Usage
from sabot.llm.spec import RequestContext, RequestSpec
from sabot.llm.tools import Tool, as_tool

T = TypeVar("T")


class FlowError(SabotError):
    """The error for a flow that cannot continue. E2010: a loop has no limit. E2011: the flow is nested too deeply, or
    has too many branches. E2012: a step has failed. E2013: the time of the flow is over.
    """

    code = "E2012"


class FlowCycle(FlowError, UserError):
    """The error for a flow whose steps wait for each other, or that has a loop without a limit."""

    code = "E2010"


class DepthExceeded(FlowError):
    """The error for a flow with more steps, more branches or deeper nesting than allowed."""

    code = "E2011"


class FlowFailed(FlowError):
    """The error for a step that has failed. A pattern that contains a failed step fails with the same error."""


class FlowTimeout(FlowError, TimeoutError):
    """The error for a flow that has not ended within its time limit."""

    code = "E2013"


_FAILURES = (FlowFailed, ModelError, AgentRunError, ToolError, EffectError, BudgetExceeded, TimeoutError)
"""The errors that count as a failure of an operator. Any other error is a mistake in the program, and is raised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrchestrationConfig:
    """The limits of a flow.

    - `max_child_jobs`: the most operators that one pattern may start in one execution.
    - `max_depth`: the most patterns within patterns.
    - `timeout_seconds`: the time limit of one execution of the outermost pattern.
    - `inherit_budgets`: True if the usage of the steps counts in the `BudgetSpec` of the job that runs the flow. With
      False it only counts in the budget of the scope.
    - `propagate_cancellation`: True if a cancelled flow cancels the steps that it has started. With False it waits for
      their end.
    - `parallel_execution`: True if branches run side by side, at most `max_parallel` of them. With False they run one
      after the other.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorContext:
    """The context of a flow, which all operators of the flow get.

    - `execution`: the ExecutionContext, which says on whose behalf the flow runs.
    - `effects`: asks models and calls tools. With None the effects of the job around the flow are used, or plain calls
      if there is no job.
    - `config`: the limits of the flow.
    - `depth`: the number of patterns around this one.
    - `values`: values that the caller gives to all operators. The operators must not change them.
    """

    execution: ExecutionContext | None = None
    effects: AgentEffects | None = None
    config: OrchestrationConfig = field(default_factory=OrchestrationConfig)
    depth: int = 0
    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: "OperatorContext | ExecutionContext | DurableContext | None") -> "OperatorContext":
        """Makes an OperatorContext from one of these contexts, or from None. If `given` is the context of a durable
        agent, all calls of the flow become effects of the agent's job.
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
        return given if given.effects is not None else replace(given, effects=current_effects.get())

    async def call(self, tool: Tool | Callable[..., Any], /, **arguments: Any) -> Any:
        """Calls a tool, and returns its result. In a job the call is an effect of the tool's effect class. A plain
        function counts as a tool of the class "unsafe".
        """
        effects = DirectTools(RequestContext()) if self.effects is None else self.effects
        return await effects.call(as_tool(tool), arguments)


class _InJob:
    """The effects of a durable agent's job, for a flow that has not chosen an engine yet."""

    def __init__(self, ctx: DurableContext) -> None:
        self._ctx = ctx

    def of(self, engine: ExecutionEngine) -> AgentEffects:
        return self._ctx.llm(engine)

    async def complete(self, spec: RequestSpec) -> Completion:
        raise UserError("these effects have no engine to ask a model with", hint="context.effects.of(engine)")

    def stream(self, spec: RequestSpec) -> AsyncGenerator[Piece, None]:
        raise UserError("these effects have no engine to ask a model with", hint="context.effects.of(engine)")

    async def call(self, tool: Tool, arguments: Mapping[str, Any]) -> Any:
        return await self._ctx.call(tool, **arguments)


@dataclass(frozen=True, slots=True)
class OperatorResult:
    """The result of an operator.

    - `content`: a text, a value of the agent's output type, or the value that a function has returned. For a failure it
      is a description of the failure.
    - `success`: False if the operator has failed.
    - `error`: the exception that made the operator fail, or None.
    - `usage`: the sum of the usage of all model calls.
    """

    content: Any
    success: bool = True
    error: BaseException | None = None
    usage: Usage = field(default_factory=Usage)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def checked(self, what: str) -> "OperatorResult":
        """Returns this result if it is a success. Otherwise raises FlowFailed. `what` names the step in the error message."""
        if self.success:
            return self
        why = self.error if self.error is not None else short_repr(self.content)
        raise FlowFailed(f"{what} has failed: {why}") from self.error


class Operator(ABC):
    """A step of a flow. A subclass implements `execute`. The step is named after its class, unless it is given another
    `name`.
    """

    def __init__(self, agent: Agent | None = None, *, name: str = "") -> None:
        """Makes a step. `agent` is the agent that the step runs, as `self.agent`, or None if the step runs none."""
        self.agent: Any = agent
        self._name = name

    @property
    def name(self) -> str:
        """The name of the operator in error messages."""
        return self._name or type(self).__name__

    @property
    def takes_items(self) -> bool:
        """True if the operator gets all steps of a plan at once, as the field "items". Otherwise it is executed once
        for each step.
        """
        return False

    @abstractmethod
    async def execute(self, input_data: Any, context: Any = None) -> OperatorResult:
        """Executes the step, and returns its result. The agents of the step make their calls through the effects of the
        flow.

        The step has failed if this raises a ModelError, AgentRunError, ToolError, EffectError, BudgetExceeded or
        TimeoutError. Any other error ends the flow.
        """


class Flow(Operator):
    """An operator that consists of other operators. `execute` takes an OperatorContext, an ExecutionContext, the
    context of a durable agent, or no context. If the input is a text, the operators get it as the field "text".
    """

    def __init__(self, *, name: str = "") -> None:
        super().__init__(name=name)

    async def execute(self, input_data: Any, context: Any = None) -> OperatorResult:
        """Executes the flow, and returns its result. If a step fails, the result says so, and nothing is raised. Raises
        FlowTimeout and DepthExceeded.
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
        if within.depth or seconds is None:
            return await self._flow(given, inside)
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await _kept(self._flow(given, inside), config)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise FlowTimeout(f"{self.name} has not ended within {seconds:g} s", hint="timeout_seconds=…") from error

    def _seconds(self, config: OrchestrationConfig) -> float | None:
        """Returns the time limit of the flow in seconds, or None if it has none. The limit applies only if this is the
        outermost flow.
        """
        return config.timeout_seconds

    @abstractmethod
    async def _flow(self, given: Any, context: OperatorContext) -> OperatorResult:
        """Executes the operators of the flow, and returns the result of the flow."""


async def _kept(flow: Coroutine[Any, Any, T], config: OrchestrationConfig) -> T:
    """Awaits the flow, and returns its result.

    If this call is cancelled: with `config.propagate_cancellation` the flow is cancelled too. Without it, the flow runs to
    its end, and only then does this call raise CancelledError.
    """
    if config.propagate_cancellation:
        return await flow
    task = asyncio.ensure_future(flow)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def step(operator: Operator, given: Any, context: OperatorContext) -> OperatorResult:
    """Executes an operator as a step of a flow, and returns its result. If the operator fails, returns a result that
    says so. The agents of the operator make their calls through `context`.
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


async def run_parallel(
    who: str, work: Sequence[tuple[Operator, Any]], context: OperatorContext
) -> list[OperatorResult]:
    """Executes operators with their inputs, side by side if the configuration allows it. Returns their results, in the
    order of `work`. Raises DepthExceeded, naming the pattern `who`, if there are more operators than allowed.
    """
    config = context.config
    if len(work) > config.max_child_jobs:
        raise DepthExceeded(
            f"{who} would start {len(work)} operators, and may start {config.max_child_jobs}",
            hint="OrchestrationConfig(max_child_jobs=…)",
        )
    if not config.parallel_execution:
        return [await step(operator, given, context) for operator, given in work]
    room = asyncio.Semaphore(config.max_parallel)

    async def one(operator: Operator, given: Any) -> OperatorResult:
        async with room:
            return await step(operator, given, context)

    tasks = [asyncio.create_task(one(operator, given)) for operator, given in work]
    try:
        return [await task for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class AgentStep(Operator):
    """A step that runs an agent. Its content is the agent's output, or the text of the answer if the agent has no
    output type.

    `prompt` is a template over the fields of the input ("Summarize: {text}"), or a function of the input. By default
    `prompt_of` makes the prompt.
    """

    def __init__(self, agent: Agent, *, prompt: str | Callable[[Any], object] | None = None, name: str = "") -> None:
        check("AgentStep: agent", agent, Of(Agent, "an Agent of sabot.llm"))
        super().__init__(agent, name=name or agent.name)
        self._prompt = prompt

    async def execute(self, input_data: Any, context: Any = None) -> OperatorResult:
        """Runs the agent once over the input, and returns its output as the result."""
        said = self._said(input_data)
        effects = OperatorContext.of(context).effects
        ran = await self.agent.run(said, effects=None if effects is None else effects.of(self.agent.engine))
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


class FunctionStep(Operator):
    """A step that calls a function: `f(input)` or `f(input, context)`, async or not. The function returns the content
    of the step, or an OperatorResult. The function may compute; to call a tool it uses `context.call`.
    """

    def __init__(self, func: Callable[..., Any], *, name: str = "") -> None:
        super().__init__(name=name or getattr(func, "__name__", "function"))
        self._func = func
        self._takes_context = _positional(func) > 1

    async def execute(self, input_data: Any, context: Any = None) -> OperatorResult:
        """Calls the function with the input, and returns its result."""
        within = OperatorContext.of(context)
        value = self._func(input_data, within) if self._takes_context else self._func(input_data)
        if inspect.isawaitable(value):
            value = await value
        return value if isinstance(value, OperatorResult) else OperatorResult(value)


OperatorLike = Operator | Agent | Callable[..., Any]


def as_operator(given: Any, what: str) -> Operator:
    """Returns an operator for `given`: an operator unchanged, and for an agent or a function a step that runs it.
    Raises UserError for anything else. `what` names it in the error message.
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
    """Returns an input as a text for a model. A text is unchanged, a single field becomes its value, several fields
    become one line each, and any other value becomes JSON.
    """
    if isinstance(given, str):
        return given
    if not isinstance(given, Mapping):
        return _shown(given)
    if len(given) == 1:
        return _shown(next(iter(given.values())))
    return "\n".join(f"{name}: {_shown(value)}" for name, value in given.items())


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()


def fields_of(given: Any) -> dict[str, Any]:
    """Returns an input as fields. A mapping is copied; any other value becomes the field "text"."""
    return dict(given) if isinstance(given, Mapping) else {"text": given}


def with_content(given: Any, content: Any) -> dict[str, Any]:
    """Returns the input of the next step. It has the fields of the flow's input (`given`), and the content of the step
    before: the fields of that content, or the field "text".
    """
    builtin = content if isinstance(content, Mapping | str) else msgspec.to_builtins(content, enc_hook=str)
    return {**fields_of(given), **fields_of(builtin)}


def usage_of(results: Sequence[OperatorResult]) -> Usage:
    """Returns the sum of the usage of all results."""
    total = Usage()
    for result in results:
        total += result.usage
    return total
