"""The loop of an agent: it asks a model, calls the tools that the model names, and asks again with their results,
until the model answers with text.

    run ─▶ fit the context window ─▶ ask the model ─┬─ text: matches the output's schema? ─ yes ─▶ AgentResult
                  ▲                                 │             └ no: send the error back ─┐
                  └── results, in order of calls ◀──┴─ tool calls, in parallel ◀─────────────┘

The loop itself makes no calls: it asks models and calls tools through `AgentEffects`. Outside of a job these calls
are made at once. In a job of a durable agent each of them is an effect, so after a crash the loop runs again over the
recorded results.
"""

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Container, Iterable, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Generic, Protocol, Unpack, cast, get_args, overload

import msgspec

from sabot.base.checks import FLAG, Of, OneOf, Whole, check
from sabot.base.config import Duration, checked_name, checked_text, parse_seconds
from sabot.base.options import answers_wrong_options
from sabot.base.redaction import scrubbed
from sabot.base.surrogates import whole_text
from sabot.engine.calls.effects import RULES, EffectClass
from sabot.engine.calls.errors import (
    AgentRunError,
    ContentFiltered,
    ContextLengthExceeded,
    MalformedAnswer,
    ModelError,
    ToolError,
    TurnLimitExceeded,
    with_message,
)
from sabot.engine.calls.functions import unwrap
from sabot.engine.calls.messages import (
    ChatMessage,
    ToolCall,
    cut,
    given_arguments,
    messages_of,
    system,
    tool_result,
    user,
)
from sabot.engine.calls.model_requests import NamesCaller, RequestContext, RequestSpec, ToolSchema, context_of
from sabot.engine.calls.names import MODELS, note_tool
from sabot.engine.calls.options import LoopOptions, Retry, Trim
from sabot.engine.calls.tool_context import (
    AgentDeps,
    Deps,
    Output,
    ToolContext,
    no_deps,
    wanted_deps,
    with_context_by_name,
)
from sabot.engine.calls.tool_results import json_of_result
from sabot.engine.calls.tools import Tool, ToolAnswer, as_tool, tool_of_agent
from sabot.engine.calls.usage import Usage
from sabot.errors import UNREADABLE, EffectError, SabotError, UserError, message_of, short_repr
from sabot.llm.conversation import Conversation, TokenEstimator, groups_of, with_shorter_results, without_oldest
from sabot.llm.direct import DirectEffects
from sabot.llm.engine import ExecutionEngine
from sabot.llm.requests import WHOLE_OUTPUT, error_of_end, request_of, with_output, words_of_end
from sabot.llm.results import FINISH_REASONS, Completion, Piece

_SUMMARY = (
    "Summarize the conversation so far for somebody who goes on with it: facts, names, numbers, decisions, what is open. "
    "Write only the summary."
)
# If messages have to be left out, enough go that only this share of the room is used. Then the requests of the next turns
# begin with the same messages, and vendors' prompt caches have them.
_FILLED_SHARE = 0.75
_LONGEST_NAME = 100  # characters to which the name of a call with too long arguments is cut
_WHOLE = ("stop", "tool_calls")  # the reasons of answers that are whole, if there is anything in them
_SUMMARIZED = "Summary of the conversation so far:\n"


def asks_summary(messages: Sequence[ChatMessage]) -> bool:
    """Returns True if these messages ask a model for a summary of a conversation that has become too long."""
    return bool(messages) and messages[-1].content == _SUMMARY


@dataclass(frozen=True, slots=True)
class AgentResult(Generic[Output]):
    """The result of one run of an agent.

    - `content`: the text of the model's last answer.
    - `output`: the last answer, decoded as the type `Agent(output=...)`; None if the agent has no output type.
    - `messages`: all messages of this run, beginning with the prompt. Turns that were left out because they did not fit
      into the context window are missing.
    - `usage`, `cost`: the tokens and the US dollars of all model calls of the run, including those of other agents that
      it called as tools, unless such an agent failed; `cost` is None if the price of one of them is unknown. An answer
      for which the vendor reports no tokens adds none here; budgets count what was reserved for it.
    - `turns`: the number of turns. In each turn the agent asks the model once.
    - `tool_calls`: the number of tool calls.
    - `finish_reason`: the reason why the last answer ended; "length" means that it was cut off at `max_tokens`.
    """

    content: str
    output: Output = None  # type: ignore[assignment]  # of an agent without an output type
    messages: tuple[ChatMessage, ...] = ()
    usage: Usage = field(default_factory=Usage)
    cost: Decimal | None = None
    turns: int = 0
    tool_calls: int = 0
    finish_reason: str = "stop"


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """An event of `Agent.stream`: the model has asked for the tool call `call`, and the agent is about to make it."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class ToolEnded:
    """An event of `Agent.stream`: the tool call `call` has ended. `result` is the message with which the model gets the
    tool's result or error.
    """

    call: ToolCall
    result: ChatMessage


AgentEvent = Piece | ToolStarted | ToolEnded | AgentResult[Any]


class AgentEffects(Protocol):
    """An interface: the object through which an agent asks models and calls tools. It does so directly, or as effects
    of a job.
    """

    def of(self, engine: ExecutionEngine) -> "AgentEffects":
        """Returns an AgentEffects for the same run or job, whose `complete` and `stream` ask the models of `engine`."""

    async def complete(self, spec: RequestSpec, /) -> Completion:
        """Asks the model, and returns its answer. Raises ModelError."""

    def stream(self, spec: RequestSpec, /) -> AsyncGenerator[Piece, None]:
        """Asks the model, and yields its answer in pieces. The last piece contains the whole answer as a Completion.
        Raises ModelError if the model gives no answer; BudgetExceeded, PolicyDenied, or in a job another EffectError if
        the call is not allowed or cannot be made.
        """

    async def call(self, tool: Tool, arguments: Mapping[str, Any], said: str | None = None) -> Any:
        """Calls the tool. Raises the error of the tool, or ToolTimeout. `said`: the arguments as the model has written
        them.
        """

    def looks_at_ends(self) -> bool:
        """Returns True if the end of the answer that has just come counts. Returns False in a job that has gone on from
        this answer with an earlier version of Sabot, which did not look at it.
        """

    def note_labels(self, labels: frozenset[str], /) -> None:
        """Gives the labels of data that the agent has got with its prompt to the job on whose behalf it runs, if there is one."""


ASKING_AGENT: ContextVar[tuple[AgentEffects, str] | None] = ContextVar("ASKING_AGENT", default=None)
"""The effects of an agent that runs another one as its tool, and the name of that one. None outside of such tools."""

current_effects: ContextVar[AgentEffects | None] = ContextVar("current_effects", default=None)
"""The effects of agents whose `run` gets none. A flow sets them while it runs (`sabot.specified.flows`)."""


def _effects_for(effects: AgentEffects | None, engine: ExecutionEngine) -> AgentEffects | None:
    return None if effects is None else effects.of(engine)


_Instructions = str | Callable[[ToolContext[Deps]], str | Awaitable[str]]
_MakesDeps = Callable[[ToolContext[Any]], Any]


@answers_wrong_options
class Agent(Generic[Deps, Output]):
    """A model with tools and instructions. An Agent stores nothing between its runs. Several runs may be in progress at
    the same time, each with its own conversation.

    `Agent[Deps, Output]` names the types of `deps` and `output` where a type checker cannot find them.
    """

    @overload
    def __init__(
        self: "Agent[Any, Output]",
        engine: ExecutionEngine,
        *,
        instructions: _Instructions[Any] = "",
        deps: _MakesDeps,
        output: type[Output],
        name: str = "agent",
        **options: Unpack[LoopOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: "Agent[Any, Any]",
        engine: ExecutionEngine,
        *,
        instructions: _Instructions[Any] = "",
        deps: _MakesDeps,
        output: Any = None,
        name: str = "agent",
        **options: Unpack[LoopOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        engine: ExecutionEngine,
        *,
        instructions: _Instructions[Deps] = "",
        deps: Deps = ...,
        output: type[Output],
        name: str = "agent",
        **options: Unpack[LoopOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: "Agent[Deps, Any]",
        engine: ExecutionEngine,
        *,
        instructions: _Instructions[Deps] = "",
        deps: Deps = ...,
        output: Any = None,
        name: str = "agent",
        **options: Unpack[LoopOptions],
    ) -> None: ...
    def __init__(
        self,
        engine: ExecutionEngine,
        *,
        tools: "Sequence[Tool | Agent[Any, Any] | Callable[..., Any]]" = (),
        instructions: str | Callable[..., Any] = "",
        deps: Any = None,
        output: Any = None,
        name: str = "agent",
        model: str = "",
        max_turns: int = 20,
        max_concurrent_tools: int = 10,
        tool_timeout: Duration = "300s",
        max_tool_retries: int = 3,
        max_tool_chars: int = 100_000,
        repairs: int = 2,
        allow_cut: bool = False,
        context_window: int = 128_000,
        trim: Trim = "drop_oldest",
        temperature: float | None = None,
        max_tokens: int | None = 4096,
        options: Mapping[str, Any] | None = None,
        use_middleware: bool = True,
    ) -> None:
        """Makes an agent.

        - `tools`: functions, Tools and agents that the model may call. A plain function becomes a tool of the effect
          class "unsafe" (see `tool`). An agent becomes a tool with one parameter, the text `prompt`. Policy and budgets
          decide on a call of this tool by its name, and then on each call that the agent makes.
        - `instructions`: a text, or a function of a ToolContext, sync or async, that returns it. The function is called
          at the beginning of each run, as the "read" tool `NAME_instructions`: in a job its text is recorded.
        - `deps`: the value that tools get as `ToolContext.deps`: an object, or a function that makes it of a ToolContext.
          An `async def` is awaited, and an async context manager that another function returns is entered. A function is
          called when a tool first needs it, once for each run outside of a job, and once for each time that a job comes
          into memory. Models, rules and journals do not see the value.
        - `output`: the type of the answer (see `Schema`), or None for text. If an answer does not match, the model gets
          the error and is asked again, at most `repairs` times in a run.
        - `allow_cut`: True to return a text that was cut off at `max_tokens`, was filtered or is empty;
          `AgentResult.finish_reason` then says so. With False the run raises MalformedAnswer or ContentFiltered. It is
          refused together with `output`. Tool calls of an answer that was cut off are never made.
        - `max_turns`: the most turns of a run. In each turn the model is asked once.
        - `max_concurrent_tools`: the most tool calls of one turn that are made at the same time.
        - `tool_timeout`: the time limit of a tool call, for tools without a `timeout=` of their own.
        - `max_tool_retries`: the number of further attempts after a tool call has failed, for tools without `retries=`.
          An unsafe or reconcilable call is repeated only if its request was certainly not sent.
        - `max_tool_chars`: the most characters of a tool's result; a longer result is cut. It is also the most
          characters of the arguments of a call. A call with longer arguments is not made, and the model gets an error.
        - `context_window`: the size of the model's context window in tokens.
        - `trim`: what happens if a conversation does not fit into the context window. "drop_oldest" leaves out the
          oldest messages, "summarize" replaces them by a summary that the model writes, "refuse" raises
          ContextLengthExceeded.
        - `model`, `temperature`, `max_tokens`, `options`: the fields with these names of each RequestSpec.
        - `use_middleware`: True to apply `tool_timeout` and `max_tool_retries` to tool calls, and outside of a job also
          the engine's logging, budget and telemetry. False to apply none of these to tool calls. Model calls always
          pass through the engine's middleware.

        Raises UserError for arguments that are not valid, and if two tools have the same name.
        """
        where = f"agent {checked_name(name, 'Agent: name')}"
        if not isinstance(engine, ExecutionEngine):
            raise UserError(
                f"{where}: {short_repr(engine)} is no engine",
                hint='Agent(ExecutionEngine(OpenAIProvider("gpt-4o-mini")), …)',
            )
        check(f"{where}: use_middleware", use_middleware, Of(bool, "True or False"))
        if not isinstance(tools, Sequence) or isinstance(tools, str):
            raise UserError(f"{where}: tools={short_repr(tools)}", hint="a list of functions, tools and agents")
        if not callable(instructions):
            checked_text(instructions, f"{where}: instructions")
        check(f"{where}: allow_cut", allow_cut, FLAG)
        if allow_cut and output is not None:
            raise UserError(f"{where}: allow_cut=True with output=", hint=WHOLE_OUTPUT)
        check(f"{where}: trim", trim, OneOf(get_args(Trim)))
        counted = {
            "max_turns": max_turns,
            "max_concurrent_tools": max_concurrent_tools,
            "context_window": context_window,
        }
        for what, value in {**counted, "max_tool_chars": max_tool_chars}.items():
            check(f"{where}: {what}", value, Whole(1))
        check(f"{where}: max_tool_retries", max_tool_retries, Whole(0))
        check(f"{where}: repairs", repairs, Whole(0))
        parse_seconds(tool_timeout, name=f"{where}: tool_timeout")
        check(f"{where}: options", options, Of(Mapping | None, "parameters by the vendor's names"))
        self.engine = engine
        self.name = name
        own = AgentDeps(name, deps)
        self.instructions = "" if callable(instructions) else instructions
        self.instructions_tool = _tool_of_instructions(instructions, name, own) if callable(instructions) else None
        self.max_turns = max_turns
        self.max_concurrent_tools = max_concurrent_tools
        self.max_tool_chars = max_tool_chars
        self.repairs = repairs
        self.allow_cut = allow_cut
        self.context_window = context_window
        self.trim = trim
        self.use_middleware = use_middleware
        self.tools: dict[str, Tool | Agent[Any, Any]] = {}
        self.agent_tools: dict[str, Tool] = {}  # the tools as which other agents are called, by their names
        for each in tools:
            made = each if isinstance(each, Agent) else as_tool(each)
            if isinstance(made, Tool) and use_middleware:
                timeout = tool_timeout if made.timeout_s is None else None
                made = as_tool(made, timeout=timeout, default_retries=max_tool_retries)
            if isinstance(made, Tool) and made.takes_context:
                if made.wants_deps and deps is None:
                    raise no_deps(f"{where}: tool {made.name}", made.takes_context, made.wants_deps, agent=True)
                made = replace(made, deps=own)
                note_tool(made)
            if made.name in self.tools:
                raise UserError(
                    f"{where}: two tools are called {made.name!r}",
                    hint='@tool(name="…") gives one another name, and pool.tools(…, prefix="…") those of a server',
                )
            self.tools[made.name] = made
            if isinstance(made, Agent):
                self.agent_tools[made.name] = tool_of_agent(made.name)
        empty = RequestSpec(
            messages=(),
            model=model,
            tools=tuple(_schema_of(each) for each in self.tools.values()),
            temperature=temperature,
            max_tokens=max_tokens,
            options=dict(options or {}),
        )
        self.request, self.output = request_of(empty, output, {})
        MODELS.add(model)

    def __repr__(self) -> str:
        return f"<Agent {self.name}>"

    async def run(
        self,
        prompt: object,
        *,
        conversation: Conversation | None = None,
        context: RequestContext | NamesCaller | None = None,
        effects: AgentEffects | None = None,
        max_turns: int | None = None,
    ) -> AgentResult[Output]:
        """Asks the model and makes the tool calls that it asks for, until the model answers; returns the result.

        - `prompt`: a text, a ChatMessage, or a list of them.
        - `conversation`: the messages of earlier runs, which the model gets too; the messages of this run are added to
          it at the end of the run. Earlier messages that do not fit into the context window are removed from it, or,
          with `trim="summarize"`, replaced by their summary.
        - `context`: a RequestContext or an ExecutionContext, with the tenant, user and trace of the calls. It is used only
          for direct calls, without effects.
        - `effects`: the object that asks models and calls tools, such as `ctx.llm(engine)` in a durable agent. If None,
          the agent uses the effects of the flow (`sabot.specified.flows`) that runs it. Outside of a flow it calls
          the engine and the tools directly.
        - `max_turns`: the most turns of this run; None for those of the agent.

        Raises MalformedAnswer if no answer matched the output type, if the answer was cut off or is empty, or if two
        answers in a row were cut off within their tool calls; ContentFiltered if it was filtered or the model has
        refused to answer; ContextLengthExceeded if the messages do not fit into the context window; another ModelError
        if the model cannot be asked; TurnLimitExceeded after `max_turns` turns; BudgetExceeded; PolicyDenied. The error
        of a tool is not raised: the model gets it as the result of the call.
        """
        given = self._events(prompt, conversation, context, effects, streams=False, max_turns=max_turns)
        async with aclosing(given) as events:
            async for event in events:
                if isinstance(event, AgentResult):
                    return cast("AgentResult[Output]", event)
        raise AssertionError("an agent's events end with its result")

    async def stream(
        self,
        prompt: object,
        *,
        conversation: Conversation | None = None,
        context: RequestContext | NamesCaller | None = None,
        effects: AgentEffects | None = None,
    ) -> AsyncIterator[AgentEvent]:
        """Does the same as `run`, with the same parameters and errors, and yields events as they happen: pieces of
        text, the start and the end of each tool call, and the AgentResult as the last event.
        """
        async with aclosing(self._events(prompt, conversation, context, effects, streams=True)) as events:
            async for event in events:
                yield event

    def _events(
        self,
        prompt: object,
        conversation: Conversation | None,
        context: RequestContext | NamesCaller | None,
        effects: AgentEffects | None,
        *,
        streams: bool,
        max_turns: int | None = None,
    ) -> AsyncGenerator[AgentEvent, None]:
        if max_turns is not None:
            check("run: max_turns", max_turns, Whole(1))
        effects = (
            effects
            or _effects_for(current_effects.get(), self.engine)
            or DirectEffects(self.engine, context_of(context))
        )
        run = _AgentRun(
            self,
            effects.of_run(prompt, self.use_middleware) if isinstance(effects, DirectEffects) else effects,
            Conversation() if conversation is None else conversation,
            messages_of(prompt),
            streams,
            self.max_turns if max_turns is None else max_turns,
        )
        return run.events()

    def _labels_of_results(self, messages: Sequence[ChatMessage]) -> frozenset[str]:
        """Returns the labels of the tools of this agent whose results are among messages. A program that keeps a conversation
        itself gives it with the prompt, and what an earlier run has read is in it.
        """
        names = {call.id: call.name for each in messages for call in each.tool_calls}
        results = [names.get(each.tool_call_id, "") for each in messages if each.role == "tool"]
        return frozenset(label for name in results for label in _labels_of(self.tools.get(name)))


def _prompt_of(call: ToolCall) -> str:
    """Returns the prompt in the arguments of `call`, by which a model calls another agent as a tool. Raises ToolError
    if the arguments are not a JSON object with the text `prompt`.
    """
    try:
        return msgspec.json.decode(given_arguments(call.arguments), type=_Prompt).prompt
    except UNREADABLE as error:
        raise ToolError(f"{call.name} takes one text: {error}") from error


def _twice(error: ModelError) -> SabotError:
    """Returns the error for the second answer in a row with which nothing can be done: a third one would be paid in
    vain too.
    """
    advice = "; a higher max_tokens= of the agent gives room for it" if "max_tokens" in error.message else ""
    return with_message(error, f"{error.message}, twice in a row{advice}")


def _without_arguments(vendor: dict[str, Any] | None, ids: Container[str]) -> dict[str, Any] | None:
    """Returns what a vendor wants back of a message (`ChatMessage.vendor`), without the arguments of the calls with these
    ids. Vendors have their own form of a call in it: a block with `id` and `input`, or an item with `call_id` and
    `arguments`. The rest stays, because some refuse a call without the signed reasoning before it.
    """

    def emptied(part: Any) -> Any:
        if not isinstance(part, dict) or (part.get("call_id") or part.get("id")) not in ids:
            return part
        arguments: dict[str, Any] = {"input": {}} if "input" in part else {"arguments": "{}"}
        return {**part, "name": str(part.get("name"))[:_LONGEST_NAME], **arguments}

    if vendor is None:
        return None
    return {name: list(map(emptied, kept)) if isinstance(kept, list) else kept for name, kept in vendor.items()}


class _Prompt(msgspec.Struct):
    prompt: str


def _text_of(tool: str, value: Any) -> str:
    """Returns what the tool has returned as text: a text unchanged, also one that is a text only in JSON, such as a date;
    any other value as JSON. Raises ToolError for a value that JSON cannot express.
    """
    if type(value) is str:
        return value
    written = json_of_result(tool, value)
    return msgspec.json.decode(written, type=str) if written[0] == '"' else written


def _tool_of_instructions(function: Callable[..., Any], agent: str, deps: AgentDeps) -> Tool:
    """Returns the tool by which an agent gets its instructions from a function of a ToolContext."""
    where = f"agent {agent}: instructions"
    try:
        parameter = next(iter(inspect.signature(function).parameters))
    except (StopIteration, TypeError, ValueError):
        hint = "def instructions(ctx: ToolContext) -> str: …"
        raise UserError(f"{where}: {short_repr(function)} takes no ToolContext", hint=hint) from None
    if deps.given is None and (wanted := wanted_deps(function, parameter)):
        raise no_deps(where, parameter, wanted, agent=True)
    made = Tool(
        with_context_by_name(function, parameter),
        f"{agent}_instructions",
        EffectClass.READ,
        None,
        "ask",
        None,
        Retry(0, 0.0),
        takes_effect=False,
        is_async=inspect.iscoroutinefunction(unwrap(function)),
        takes_context=parameter,
        deps=deps,
    )
    note_tool(made)
    return made


def _labels_of(tool: "Tool | Agent[Any, Any] | None") -> Iterable[str]:
    if isinstance(tool, Agent):
        return {label for each in tool.tools.values() for label in _labels_of(each)}
    return () if tool is None else tool.labels


def _schema_of(tool: "Tool | Agent[Any, Any]") -> ToolSchema:
    if isinstance(tool, Tool):
        return tool.schema
    parameters = {"type": "object", "properties": {"prompt": {"type": "string"}}, "required": ["prompt"]}
    return ToolSchema(tool.name, tool.instructions or f"Hands over to {tool.name}.", parameters)


class _AgentRun:
    """The state of one run of an agent: its messages, its turns, and the sums of its tokens and cost."""

    def __init__(
        self,
        agent: Agent[Any, Any],
        effects: AgentEffects,
        conversation: Conversation,
        prompt: Sequence[ChatMessage],
        streams: bool,
        max_turns: int,
    ) -> None:
        self._agent = agent
        self._max_turns = max_turns
        self._instructions = agent.instructions
        self._effects = effects
        self._conversation = conversation
        self._prompt = tuple(prompt)
        self._messages: list[ChatMessage] = []  # the messages after the prompt
        self._streams = streams
        self._estimator = TokenEstimator()  # not shared with other runs: a run in a job must not depend on them
        self._usage = Usage()
        self._cost: Decimal | None = Decimal(0)
        self._turns = self._tool_calls = 0
        # calls of this turn with too long arguments: the length, by place, as ids may be equal
        self._too_long: dict[int, int] = {}
        self._end = ""  # what is wrong with the end of the answer of this turn; "" if nothing is
        self._refuses_all = False  # True if none of its calls is made, False if those are that change nothing
        self._calls_made = 0  # calls of this turn that were not refused because of its end

    async def events(self) -> AsyncGenerator[AgentEvent, None]:
        try:
            async with aclosing(self._run_turns()) as events:
                async for event in events:
                    yield event
        except (ModelError, AgentRunError) as error:
            error.conversation = (*self._prompt, *self._messages)
            raise
        finally:
            whole = [message for group in groups_of(self._messages) for message in group]
            if whole:
                self._conversation.messages += [*self._prompt, *whole]
            if isinstance(self._effects, DirectEffects):
                await self._effects.close()

    async def _run_turns(self) -> AsyncGenerator[AgentEvent, None]:
        agent, repairs, max_tokens = self._agent, self._agent.repairs, self._agent.request.max_tokens
        if labels := agent._labels_of_results((*self._conversation.messages, *self._prompt)):
            self._effects.note_labels(labels)
        if agent.instructions_tool is not None:
            given = await self._effects.call(agent.instructions_tool, {})
            self._instructions = checked_text(
                given, f"agent {agent.name}: what its function of instructions has returned"
            )
        was_cut = False  # True if nothing was done with the answer before, because of its end
        while self._turns < self._max_turns:
            completion: Completion | None = None
            async with aclosing(self._ask_model()) as pieces:
                async for piece in pieces:
                    if self._streams:
                        yield piece
                    completion = piece.completion
            assert completion is not None
            message = self._without_long_arguments(completion.message)
            self._messages.append(message)
            self._end, self._calls_made = self._words_of_end(completion), 0
            self._refuses_all = completion.finish_reason in FINISH_REASONS
            wrong = (error_of_end(completion, max_tokens) or MalformedAnswer(self._end)) if self._end else None
            if message.tool_calls:
                if wrong is not None and (isinstance(wrong, ContentFiltered) or (was_cut and self._refuses_all)):
                    raise _twice(wrong) if was_cut else wrong
                async with aclosing(self._call_tools(message.tool_calls)) as events:
                    async for event in events:
                        yield event
                if wrong is not None and was_cut and not self._calls_made:
                    raise _twice(wrong)
                was_cut = not self._calls_made
                continue
            if wrong is not None and completion.finish_reason == "pause_turn":
                continue  # the message goes back, and the model goes on
            try:
                if wrong is not None and not agent.allow_cut:
                    raise wrong
                output = with_output(completion, agent.output, looks_at_end=False).output
            except MalformedAnswer as error:
                if repairs == 0 or (wrong is not None and (was_cut or agent.output is None)):
                    if was_cut and wrong is not None:
                        raise _twice(error) from error
                    raise
                repairs, was_cut = repairs - 1, wrong is not None
                shorter = ", in fewer words," if completion.finish_reason == "length" else ","
                self._messages.append(
                    user(f"This does not do: {error.message}\nAnswer again{shorter} and write nothing but the answer.")
                )
                continue
            yield self._result(completion, output)
            return
        raise TurnLimitExceeded(
            f"agent {agent.name}: the model was asked {self._max_turns} times, and has not answered",
            hint="raise max_turns, or say in the instructions when to end",
        )

    def _words_of_end(self, completion: Completion) -> str:
        """Returns what is wrong with the end of an answer, or "" if nothing is."""
        if completion.finish_reason in _WHOLE and (completion.message.tool_calls or completion.content.strip()):
            return ""
        words = words_of_end(completion, self._agent.request.max_tokens)
        if not words and completion.tool_calls and completion.finish_reason not in FINISH_REASONS:
            words = f"the answer has ended with {completion.finish_reason!r}, which is unknown"
        if not words and self._agent.output is None and not (completion.tool_calls or completion.content.strip()):
            words = "the answer is empty"
        return words if words and self._effects.looks_at_ends() else ""

    def _result(self, completion: Completion, output: Any) -> AgentResult[Any]:
        messages = (*self._prompt, *self._messages)
        return AgentResult(
            completion.content,
            output,
            messages,
            self._usage,
            self._cost,
            self._turns,
            self._tool_calls,
            completion.finish_reason,
        )

    # -- the model ----------------------------------------------------------------------------------------------------

    async def _ask_model(self) -> AsyncGenerator[Piece, None]:
        """Asks the model once, and yields the pieces of its answer. If the provider refuses the request because it is
        too long, the request is shortened to half of the context window and sent once more. With `trim="refuse"` the
        provider's error is raised instead.
        """
        room = self._agent.context_window - (self._agent.request.max_tokens or 0)
        self._turns += 1
        spec = await self._next_request(room)
        try:
            async with aclosing(self._answer(spec)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        except ContextLengthExceeded:
            if self._agent.trim == "refuse":
                raise
        async with aclosing(self._answer(await self._next_request(room // 2))) as pieces:
            async for piece in pieces:
                yield piece

    async def _answer(self, spec: RequestSpec) -> AsyncGenerator[Piece, None]:
        if not self._streams:
            yield Piece(completion=self._count(spec, await self._effects.complete(spec)))
            return
        async with aclosing(self._effects.stream(spec)) as pieces:
            async for piece in pieces:
                if piece.completion is not None:
                    self._count(spec, piece.completion)
                yield piece

    def _count(self, spec: RequestSpec, completion: Completion) -> Completion:
        self._estimator.learn(spec.messages, spec.tools, completion)
        self._usage += completion.usage or Usage()
        self._cost = None if self._cost is None or completion.cost is None else self._cost + completion.cost
        return completion

    async def _next_request(self, room: int) -> RequestSpec:
        """Returns the next request. If it has more than `room` tokens, messages are left out until it fits: first those
        of earlier runs, the oldest first, then the oldest turns of this run.

        The newest turn is always sent, because the model would ask for the same tool calls again without it. If that
        turn does not fit, the results of its tool calls are cut.
        """
        agent, estimator, history = self._agent, self._estimator, self._conversation.messages
        head = (system(self._instructions),) if self._instructions else ()
        request = agent.request
        fixed = estimator.tokens((*head, *self._prompt), request.tools)
        said = estimator.tokens(self._messages)
        if fixed + said + estimator.tokens(history) > room:
            self._check_room(fixed, room, said)
            left, kept = without_oldest(history, fixed + said, round(room * _FILLED_SHARE), estimator)
            if agent.trim == "summarize" and left:
                kept = [await self._summary(left, room), *kept]
            history[:] = kept
            if fixed + said > room:
                _, newest = without_oldest(self._messages, fixed, room, estimator)
                self._messages = newest or with_shorter_results(groups_of(self._messages)[-1], room - fixed, estimator)
                self._check_room(fixed + estimator.tokens(self._messages), room)
        return msgspec.structs.replace(request, messages=(*head, *history, *self._prompt, *self._messages))

    def _check_room(self, fixed: int, room: int, said: int = 0) -> None:
        window = self._agent.context_window
        if fixed > room or self._agent.trim == "refuse":
            raise ContextLengthExceeded(
                f"agent {self._agent.name}: the request has about {fixed + said:,} tokens, and the context window of {window:,} leaves "
                f"room for {room:,}",
                hint="shorten the prompt, or give the agent a model with a longer context_window=",
            )

    async def _summary(self, left: Sequence[ChatMessage], room: int) -> ChatMessage:
        """Asks the model to summarize the messages `left`, which the request will not contain, and returns the summary
        as a message. `room`: the most tokens of the request for the summary; the oldest messages that do not fit are
        not summarized.
        """
        ask = user(_SUMMARY)
        _, shown = without_oldest(left, self._estimator.tokens((ask,)), room, self._estimator)
        spec = msgspec.structs.replace(self._agent.request, messages=(*shown, ask), tools=(), output=None)
        told = self._count(spec, await self._effects.complete(spec))
        wrong = error_of_end(told, spec.max_tokens)
        if wrong is None or not self._effects.looks_at_ends():
            return user(_SUMMARIZED + told.content)
        if told.finish_reason != "length" or not told.content.strip():  # nothing that could stand for the messages
            raise wrong
        return user(f"{_SUMMARIZED}{told.content} … (the summary was cut off)")

    # -- tools --------------------------------------------------------------------------------------------------------

    async def _call_tools(self, calls: Sequence[ToolCall]) -> AsyncGenerator[AgentEvent, None]:
        """Makes the tool calls of one turn in parallel, and yields a ToolStarted and a ToolEnded for each. At the end,
        appends the results to the messages of the run, in the order of `calls`.
        """
        limit, ended = asyncio.Semaphore(self._agent.max_concurrent_tools), asyncio.Queue[int]()

        async def one(number: int) -> ChatMessage:
            try:
                async with limit:
                    return await self._call(number, calls[number])
            finally:
                ended.put_nowait(number)

        self._tool_calls += len(calls)
        for call in calls:
            yield ToolStarted(call)
        tasks = [asyncio.create_task(one(number)) for number in range(len(calls))]
        try:
            for _ in tasks:
                number = await ended.get()
                yield ToolEnded(calls[number], await tasks[number])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        self._messages += [task.result() for task in tasks]

    async def _call(self, number: int, call: ToolCall) -> ChatMessage:
        """Makes a tool call, and returns its result as a message. If the tool fails, the message contains the error, so
        that the model can react to it.
        """
        try:
            value = await self._call_tool(number, call)
            if isinstance(value, ToolAnswer):
                return tool_result(call.id, self._short(value.text), is_error=value.is_error)
            return tool_result(call.id, self._short(_text_of(call.name, value)))
        except (ModelError, AgentRunError) as error:  # raised by another agent that is a tool of this one
            return tool_result(call.id, f"{type(error).__name__}: {error.message}", is_error=True)
        except EffectError as error:
            return tool_result(call.id, f"{error.type}: {error.message}", is_error=True)
        except Exception as error:
            return tool_result(call.id, self._short(f"{type(error).__name__}: {message_of(error)}"), is_error=True)

    def _without_long_arguments(self, message: ChatMessage) -> ChatMessage:
        """Returns the model's message as the conversation stores it. If the arguments of a tool call are longer than
        `max_tool_chars`, they are replaced by "{}", and `_call_tool` will raise a ToolError in place of the call.
        """
        sizes = {at: len(call.name) + len(call.arguments) for at, call in enumerate(message.tool_calls)}
        self._too_long = {at: size for at, size in sizes.items() if size > self._agent.max_tool_chars}
        if not self._too_long:
            return message
        calls = (
            msgspec.structs.replace(call, name=call.name[:_LONGEST_NAME], arguments="{}")
            if at in self._too_long
            else call
            for at, call in enumerate(message.tool_calls)
        )
        vendor = _without_arguments(message.vendor, {message.tool_calls[at].id for at in self._too_long})
        return msgspec.structs.replace(message, tool_calls=tuple(calls), vendor=vendor)

    async def _call_tool(self, number: int, call: ToolCall) -> Any:
        tool = self._agent.tools.get(call.name)
        if self._end and (self._refuses_all or not isinstance(tool, Tool) or RULES[tool.effect].settles):
            raise ToolError(
                f"{self._end}, so {call.name or 'it'} was not called: write less, or call fewer tools at once"
            )
        self._calls_made += 1
        if number in self._too_long:
            size, most = self._too_long[number], self._agent.max_tool_chars
            raise ToolError(f"its arguments have {size:,} characters, and may have {most:,}: it was not called")
        if tool is None:
            there = ", ".join(self._agent.tools) or "none"
            raise ToolError(f"there is no tool {short_repr(call.name)}; tools are: {there}")
        if isinstance(tool, Tool):
            return await self._effects.call(tool, tool.arguments(call.arguments), call.arguments)
        prompt = await self._effects.call(self._agent.agent_tools[tool.name], {"prompt": _prompt_of(call)})
        before = ASKING_AGENT.set((self._effects, tool.name))
        try:
            result = await tool.run(prompt, effects=self._effects.of(tool.engine))
        finally:
            ASKING_AGENT.reset(before)
        self._usage += result.usage
        self._cost = None if self._cost is None or result.cost is None else self._cost + result.cost
        if tool.allow_cut and result.finish_reason != "stop":
            return f"{result.content}\n(This answer is not whole: finish_reason={result.finish_reason}.)"
        return result.content

    def _short(self, text: str) -> str:
        """Returns a text for the model, in which known secrets are hidden, cut to `max_tool_chars`."""
        return cut(scrubbed(whole_text(text)), self._agent.max_tool_chars)
