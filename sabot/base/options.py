"""Options that are declared once: the type, the default and the help of each stand in one place.

    class AgentOptions(TypedDict, total=False):
        key: Annotated[str | None, declare(None, "the field of a record whose value owns the state")]

    @dataclass(frozen=True, kw_only=True)
    class Settings:
        parallelism: int = option(1, "the number of threads of each stage of a stream", check=threads, metavar="N")

A function takes options as `**options: Unpack[AgentOptions]`, or is decorated with `takes(Settings)`; type checkers
and editors then know their names. The decorator `spells_out` does the same for `inspect.signature` and `help`. The
tables in docs/ and the options of the command line are made from the declarations too.
"""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import field, fields, is_dataclass
from difflib import get_close_matches
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from sabot.base.checks import Kind, check
from sabot.base.dataclass import dataclass
from sabot.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An option: its default, and a line of help that begins with a noun."""

    default: Any
    help: str
    check: Kind | Callable[[Any], Any] | None = None
    """The kind of allowed values; or a function that returns the value to store, and raises UserError for a wrong
    value.
    """
    metavar: str = ""
    """The word for the value in the help of the command line; "" if the command line has no such option."""
    kind: type = str
    """The type of the value on the command line: str, int, bool (a flag) or list (the option may be repeated)."""
    bounds: tuple[int | None, int | None] = (None, None)
    """The least and the greatest number that the command line takes."""
    once: bool = False
    """True if the option applies to one start of the app: `sabot run --reload` leaves it out when it starts the app
    again.
    """

    def checked(self, name: str, value: Any) -> Any:
        """Returns the value to store. Raises UserError for a wrong value."""
        if self.check is None:
            return value
        return self.check(value) if callable(self.check) else check(name, value, self.check)


def declare(default: Any, help: str) -> Option:
    """Returns an option for an annotation: `Annotated[int, declare(1, "the number of …")]`."""
    return Option(default=default, help=help)


def option(default: Any, help: str, **facts: Any) -> Any:
    """Returns a dataclass field that is an option. `facts` are further fields of `Option`."""
    made = {"option": Option(default=default, help=help, **facts)}
    return field(default_factory=dict, metadata=made) if default == {} else field(default=default, metadata=made)


def options_of(declared: type) -> dict[str, Option]:
    """Returns the options of a TypedDict or a dataclass by name, in the order of their declaration."""
    if is_dataclass(declared):
        return {each.name: each.metadata["option"] for each in fields(declared)}
    return {name: hint.__metadata__[0] for name, hint in declared.__annotations__.items()}


def types_of(declared: type) -> dict[str, Any]:
    """Returns the types of the options of a TypedDict or a dataclass, by name."""
    if is_dataclass(declared):
        return {each.name: each.type for each in fields(declared)}
    return {name: hint.__origin__ for name, hint in declared.__annotations__.items()}


_ELSEWHERE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("output_type", "result_type", "response_format", "response_model", "output_schema"), ("output",)),
    **dict.fromkeys(("system_prompt", "system", "prompt", "role", "goal", "backstory"), ("instructions", "prompt")),
    **dict.fromkeys(("max_iterations", "max_steps", "max_iter", "recursion_limit", "max_rounds"), ("max_turns",)),
    **dict.fromkeys(("llm", "provider", "client", "model", "model_client"), ("engine", "provider")),
    **dict.fromkeys(("functions", "toolsets", "handoffs", "sub_agents"), ("tools",)),
    **dict.fromkeys(("agents", "node", "graph"), ("agent",)),
    **dict.fromkeys(
        ("tools", "tool", "agents", "names", "models"), ("tool_patterns", "agent_patterns", "model_patterns")
    ),
    **dict.fromkeys(("model_settings", "model_kwargs", "extra_body"), ("options",)),
    **dict.fromkeys(("checkpointer", "checkpoint", "saver", "storage", "db", "persistence", "memory"), ("journal",)),
    **dict.fromkeys(("tenant_id", "tenant", "scope", "organization_id"), ("scope_id", "scope", "allowed_scopes")),
    **dict.fromkeys(("user_id", "user", "actor"), ("principal_id", "principal", "allowed_principals")),
    **dict.fromkeys(("thread_id", "conversation_id"), ("session_id",)),
    **dict.fromkeys(("input", "inputs", "message", "messages", "query", "user_prompt", "content"), ("prompt",)),
    **dict.fromkeys(("usage_limits", "limits", "budget"), ("budgets", "budget")),
    **dict.fromkeys(("guardrails", "policies", "input_guardrails", "interrupt_before"), ("policy", "rules")),
    **dict.fromkeys(("max_retries", "retry"), ("retries", "repairs")),
    **dict.fromkeys(("parallel_tool_calls", "max_concurrency"), ("max_concurrent_tools", "max_jobs", "concurrency")),
    **dict.fromkeys(("requires_approval", "needs_approval", "approval"), ("policy", "rules")),
    **dict.fromkeys(("request_limit", "max_requests"), ("max_turns",)),
    **dict.fromkeys(("total_tokens_limit", "token_limit", "tokens"), ("max_tokens", "max_tokens_daily")),
    **dict.fromkeys(("max_dollars", "max_usd", "cost"), ("max_cost", "max_cost_daily")),
    **dict.fromkeys(("deadline", "max_seconds"), ("max_runtime_seconds", "timeout")),
    **dict.fromkeys(("callbacks", "hooks", "processors"), ("middleware", "event_bus")),
    **dict.fromkeys(("idempotent", "side_effects", "read_only"), ("effect",)),
    **dict.fromkeys(("group_by", "partition_by", "partition_key"), ("key",)),
    **dict.fromkeys(("output_topic", "to", "target"), ("sink",)),
    **dict.fromkeys(("deps_type", "context_type", "context_schema"), ("deps",)),
}
"""Names of options in other frameworks (Pydantic AI, the OpenAI Agents SDK, LangGraph, CrewAI), and what is nearest to
them here. The first one that a function has is suggested.
"""

_NOT_HERE = {
    **dict.fromkeys(("verbose", "debug"), "logging and events say what an agent does: docs/agent-runtime/events.md"),
    **dict.fromkeys(
        ("memory", "message_history", "history"), "agent.run(prompt, conversation=…), or session=True of app.llm_agent"
    ),
    "model": "the model is that of the agent: Agent(engine, model=…)",
    **dict.fromkeys(
        ("tenant_id", "user_id", "thread_id"),
        "each request has its own: ExecutionRequest(scope_id=…, principal_id=…, session_id=…)",
    ),
    **dict.fromkeys(
        ("guardrails", "requires_approval", "needs_approval", "interrupt_before"), "a policy decides: PolicyEngine"
    ),
}


def no_option(where: str, unknown: Iterable[str], known: Collection[str]) -> UserError:
    """Returns the error for options that a function or class does not have. Its hint has the option that was meant: one
    with a similar name, or the one for which other frameworks have this name. `where`: the name of the function.
    """
    wrong, hints = sorted(unknown), []
    for name in wrong:
        meant = [each for each in _ELSEWHERE.get(name, ()) if each in known][:1]
        meant = meant or get_close_matches(name, known, 1)
        if meant:
            hints.append(f"did you mean {meant[0]}= for {name}=?" if len(wrong) > 1 else f"did you mean {meant[0]}=?")
        elif name in _NOT_HERE:
            hints.append(_NOT_HERE[name])
    hints.append(f"it has {', '.join(sorted(known))}")
    return UserError(f"{where} has no option {', '.join(wrong)}", hint="; ".join(hints).replace("?; ", "? "))


def answers_wrong_options(made: T) -> T:
    """Decorates a class or a function, so that a keyword which it does not have is answered by the error of
    `no_option`, and no longer by a TypeError without a hint.
    """
    is_class = isinstance(made, type)
    function: Any = made.__init__ if is_class else made  # type: ignore[misc]
    where = made.__name__  # type: ignore[attr-defined]

    @wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        try:
            return function(*args, **given)
        except TypeError:
            given_by_name = (
                each for each in inspect.signature(function).parameters.values() if each.kind != each.POSITIONAL_ONLY
            )
            known = [each.name for each in given_by_name if each.name != "self"]
            if unknown := given.keys() - known:
                raise no_option(where, unknown, known) from None
            raise

    if not is_class:
        return cast("T", call)
    made.__init__ = call  # type: ignore[misc]
    return made


def check_names(where: str, declared: type, given: Mapping[str, Any]) -> None:
    """Raises UserError if `given` has a name that is not declared. `where`: the function or class that the message
    names.
    """
    known = options_of(declared)
    if unknown := given.keys() - known.keys():
        raise no_option(where, unknown, known)


def with_defaults(where: str, declared: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all declared options: the given values, and defaults for the others. Raises UserError for a name that
    is not declared.
    """
    check_names(where, declared, given)
    return {name: each.default for name, each in options_of(declared).items()} | dict(given)


def check_values(declared: Any) -> None:
    """Checks the fields of a frozen dataclass and replaces them by the results of the checks. A field whose default
    is None may be None.

    Raises UserError for a wrong value.
    """
    for name, each in options_of(type(declared)).items():
        value = getattr(declared, name)
        if value is not None or each.default is not None:
            object.__setattr__(declared, name, each.checked(name, value))


def spells_out(declared: type) -> Callable[[F], F]:
    """Returns a decorator for a function whose last parameter is `**options`: it puts each option of `declared` into
    the function's signature and docstring.
    """

    def apply(function: F) -> F:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        known = {name: each for name, each in options_of(declared).items() if name not in signature.parameters}
        kind, types = inspect.Parameter.KEYWORD_ONLY, types_of(declared)
        more = [inspect.Parameter(name, kind, default=known[name].default, annotation=types[name]) for name in known]
        target: Any = function
        target.__signature__ = signature.replace(parameters=[*own, *more])
        lines = "\n".join(f"        `{name}`: {each.help}." for name, each in known.items())
        target.__doc__ = f"{(function.__doc__ or '').rstrip()}\n\n{lines}\n        "
        return function

    return apply


def takes(
    settings: Callable[P, object],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, P], None]]:
    """Returns a decorator that gives a method the parameters of the dataclass `settings`, for type checkers too."""
    return spells_out(settings)  # type: ignore[arg-type]


def takes_id_and(
    settings: Callable[P, object],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, str, P], None]]:
    """Returns a decorator that gives a method an id and the parameters of the dataclass `settings`, for type checkers
    too.
    """
    return spells_out(settings)  # type: ignore[arg-type]
