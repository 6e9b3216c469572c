"""Tools: the user's functions by which a job changes or asks the world outside, and what may be done when nobody knows how a call ended.

    @tool                                                   unsafe: made at most once; in doubt, a person is asked
    async def send_mail(to: str, text: str): ...

    @tool(effect="idempotent", timeout="10s", retries=3)    the service honours the key: made again with the same one
    async def put(path: str, data: bytes, effect: Effect):
        await client.put(path, data, headers={"Idempotency-Key": effect.key})

    @tool(reconcile=find_refund)                            in doubt, `find_refund(effect, …)` looks whether it was done
    async def refund(order: str, amount: int, effect: Effect): ...

A tool makes one call outside. One that makes several, and retries, raises an error of its own where a later call could not be sent: its
error would say that nothing was sent.
"""

import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args, overload
from weakref import WeakKeyDictionary

import msgspec

from sabot.calls.functions import unwrap
from sabot.calls.options import Retry
from sabot.checks import OneOf, Whole, check
from sabot.config import Duration, checked_name, parse_seconds
from sabot.errors import UserError, short_repr
from sabot.journal.effects import EffectClass, EffectId, effect_class
from sabot.llm.errors import ToolError
from sabot.llm.names import TOOLS
from sabot.llm.spec import JsonSchema, RequestSpec, ToolSchema

if TYPE_CHECKING:
    from sabot.llm.engine import ExecutionEngine
    from sabot.llm.results import Completion

UNTRUSTED = "untrusted"
"""The label of what came from the open world: anybody may have written it."""

InDoubt = Literal["ask", "fail", "assume_done"]

_EFFECT = "effect"  # the name of the parameter
_DOUBTED = (EffectClass.UNSAFE, EffectClass.RECONCILABLE)


@dataclass(frozen=True, slots=True)
class Effect:
    """The call that a tool is made for. A tool gets it by a parameter `effect: Effect`, which no schema shows.

    key: the idempotency key, the same in every attempt. attempt: from 1. deadline: when the call will be cancelled, in seconds since 1970;
    None: never. again: called before the tool itself sends its request once more, as it has not read what came of the one before. That is
    another attempt of the effect; its id is returned when it is recorded. Raises what a budget raises. None: there is no journal.
    """

    id: EffectId
    key: str
    attempt: int
    deadline: float | None
    again: "Callable[[EffectId], Awaitable[EffectId]] | None" = field(default=None, compare=False, repr=False)


class ToolAnswer(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a tool returns that may say that it has failed, without an error being raised: an agent's model is told `text`, and that it is
    an error.
    """

    is_error: bool = False

    @property
    def text(self) -> str:
        """What a model is shown."""
        raise NotImplementedError


class ToolParameters(Protocol):
    """What arguments a tool takes, where its function's signature does not say it. description: of the tool. json: their schema."""

    description: str
    json: JsonSchema

    def decode(self, text: str) -> dict[str, Any]:
        """The arguments by name, from the JSON that a model wrote. Raises `schema.Mismatch`."""


class ToolCaller(Protocol):
    """Where a tool that converses is called: alone, or in a job, whose journal then has each step."""

    scope: str
    """The tenant for which it is called; "": not known."""

    principal: str
    """For whom; "": not known."""

    async def make(self, tool: "Tool", arguments: Mapping[str, Any]) -> Any:
        """One step: makes the call, and again where it has failed and its class allows that. Raises what the tool raises."""

    async def ask(
        self, kind: str, payload: Mapping[str, Any], timeout_s: float
    ) -> tuple[str, Mapping[str, Any]] | None:
        """Asks a person. -> ("resolved", "expired" or "cancelled", the answer); None: there is nobody to ask here."""

    async def complete(self, engine: "ExecutionEngine", spec: RequestSpec) -> "Completion":
        """Asks a model. Raises ModelError, and what a budget or a policy raises."""


@dataclass(frozen=True)
class Tool:
    """A function with what is known of its effect; called, it is that function.

    effect: how a call may be repeated. reconcile: `f(effect, *the same arguments)` says whether a call was done. in_doubt: what follows
    where nobody knows that. timeout_s: of one attempt. retry: attempts after failures, of calls that may be repeated. takes_effect: the
    function has the parameter `effect: Effect`. is_async: it is `async def`; others run in threads. says_retries: `retries=` was given, so
    that an agent's `max_tool_retries=` does not count. labels: of its results. parameters: its arguments, where the signature does not say
    them. converse: `converse(tool, site, arguments)` makes the call of several steps, between which people or models are asked; None: one
    call of `func` is all.
    """

    func: Callable[..., Any]
    name: str
    effect: EffectClass
    reconcile: Callable[..., Any] | None
    in_doubt: InDoubt
    timeout_s: float | None
    retry: Retry
    takes_effect: bool
    is_async: bool
    says_retries: bool = False
    labels: frozenset[str] = frozenset()
    parameters: ToolParameters | None = None
    converse: "Callable[[Tool, ToolCaller, Mapping[str, Any]], Awaitable[Any]] | None" = None

    def __post_init__(self) -> None:
        vars(self).update(__doc__=self.func.__doc__, __wrapped__=self.func)
        TOOLS.add(self.name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.func(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> "Tool":
        """A tool that is a method."""
        return self if instance is None else replace(self, func=MethodType(self.func, instance))

    @cached_property
    def schema(self) -> ToolSchema:
        """The tool as a model sees it: its parameters with their types, what the docstring says of it and of them. Raises UserError for
        parameters that have no JSON schema.
        """
        return ToolSchema(self.name, self._arguments.description, self._arguments.json)

    @cached_property
    def positional(self) -> tuple[str, ...]:
        """The names of the parameters that positional arguments fill."""
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return tuple(name for name, each in inspect.signature(self.func).parameters.items() if each.kind in kinds)

    def arguments(self, text: str) -> dict[str, Any]:
        """The arguments by name, from the JSON that a model wrote, as the types of the parameters. Raises ToolError, whose text the model
        can mend its call by.
        """
        from sabot.llm.schema import Mismatch

        try:
            return self._arguments.decode(text)
        except Mismatch as error:
            raise ToolError(f"{self.name} does not take these arguments: {error}") from error

    @cached_property
    def _arguments(self) -> ToolParameters:
        if self.parameters is not None:
            return self.parameters
        from sabot.llm.schema import Parameters  # for tools that a model calls; durable agents call theirs themselves

        return Parameters(self.func, f"tool {self.name}", (_EFFECT,) if self.takes_effect else ())


@overload
def tool(func: Callable[..., Any], /) -> Tool: ...


@overload
def tool(
    *,
    effect: str = "unsafe",
    reconcile: Callable[..., Any] | None = None,
    in_doubt: InDoubt = "ask",
    timeout: Duration | None = None,
    retries: int | None = None,
    backoff: Duration = "100ms",
    name: str | None = None,
    open_world: bool = False,
    labels: Collection[str] = (),
) -> Callable[[Callable[..., Any]], Tool]: ...


def tool(
    func: Callable[..., Any] | None = None,
    /,
    *,
    effect: str = "unsafe",
    reconcile: Callable[..., Any] | None = None,
    in_doubt: InDoubt = "ask",
    timeout: Duration | None = None,
    retries: int | None = None,
    backoff: Duration = "100ms",
    name: str | None = None,
    open_world: bool = False,
    labels: Collection[str] = (),
) -> Any:
    """Makes a tool of a function, sync or async: `@tool`, or `@tool(effect="read")`.

    effect: "read" (changes nothing), "idempotent" (the service makes equal calls, or calls of one key, once), "metered" (may be made again,
    and costs), "local" (asks nobody outside), "reconcilable" (see `reconcile`), or "unsafe".
    reconcile: a function, sync or async, that gets the `Effect` and the same arguments, and returns `Reconciled.DONE`,
    `(Reconciled.DONE, result)`, `Reconciled.NOT_DONE` or `Reconciled.UNKNOWN`; True and False are done and not done.
    in_doubt: where nobody knows whether an unsafe call was done: "ask" a person, "fail", or "assume_done".
    timeout: of one attempt; when it is over, the call is cancelled and in doubt.
    retries: further attempts after a failure, `backoff` before the first and twice as long before each next one; an unsafe call is made
    again only if nothing was sent. If not given: none, or `max_tool_retries` of the agent whose model calls the tool.
    name: in journals and messages; the function's, if not given.
    open_world: its results were written by anybody (a page of the web, a mail), so they carry the label "untrusted". labels: others that
    its results carry; rules of a policy may go by them. Raises UserError.
    """
    carried = _labels(name or "tool", labels, open_world)
    make = partial(_made, effect, reconcile, in_doubt, timeout, retries, backoff, name, labels=carried)
    return make if func is None else make(func)


def as_tool(
    what: Tool | Callable[..., Any],
    *,
    effect: str | None = None,
    timeout: Duration | None = None,
    retries: int | None = None,
) -> Tool:
    """The tool that `what` is, with what is said here in place of its own; a plain function becomes an unsafe tool."""
    if not isinstance(what, Tool):
        return _of_function(what, effect or "unsafe", timeout, retries)
    if effect is None and timeout is None and retries is None:
        return what
    return _checked(
        replace(
            what,
            effect=what.effect if effect is None else _class_of(what.name, effect),
            timeout_s=what.timeout_s if timeout is None else _seconds_of(what.name, "timeout", timeout),
            retry=what.retry if retries is None else replace(what.retry, retries=retries),
            says_retries=what.says_retries or retries is not None,
        )
    )


_KNOWN: WeakKeyDictionary[FunctionType, dict[str, tuple[Any, ...]]] = WeakKeyDictionary()
"""By function and class what its tool has beside it: `ctx.step` makes one for each call, and looking into a function takes a while. The
function itself must not be kept alive here.
"""


def _of_function(func: Callable[..., Any], effect: str, timeout: Duration | None, retries: int | None) -> Tool:
    if not isinstance(func, FunctionType) or not isinstance(effect, str) or timeout is not None or retries is not None:
        return _made(effect, None, "ask", timeout, retries, "100ms", None, func)
    known = _KNOWN.setdefault(func, {})
    if effect not in known:
        made = _made(effect, None, "ask", timeout, retries, "100ms", None, func)
        known[effect] = tuple(getattr(made, each.name) for each in fields(Tool)[1:])
    return Tool(func, *known[effect])


def _made(
    effect: str,
    reconcile: Callable[..., Any] | None,
    in_doubt: InDoubt,
    timeout: Duration | None,
    retries: int | None,
    backoff: Duration,
    name: str | None,
    func: Callable[..., Any],
    *,
    labels: frozenset[str] = frozenset(),
) -> Tool:
    if isinstance(func, Tool):
        raise UserError(f"tool {func.name}: it is a tool already", hint="say all of it in one @tool(…)")
    if not callable(func):
        raise UserError(f"tool: {short_repr(func)} is no function", hint='write @tool, or @tool(effect="read")')
    runs = unwrap(func)
    name = checked_name(_name_of(func) if name is None else name, "tool: name")
    if isinstance(func, type) or inspect.isgeneratorfunction(runs) or inspect.isasyncgenfunction(runs):
        kind = "a class" if isinstance(func, type) else "a generator"
        raise UserError(f"tool {name}: it is {kind}", hint="a function that returns its result")
    kind = _class_of(name, effect)
    if reconcile is not None and kind is EffectClass.UNSAFE:
        kind = EffectClass.RECONCILABLE
    timeout_s = None if timeout is None else _seconds_of(name, "timeout", timeout)
    return _checked(
        Tool(
            func,
            name,
            kind,
            reconcile,
            in_doubt,
            timeout_s,
            Retry(0 if retries is None else retries, _seconds_of(name, "backoff", backoff)),
            _takes_effect(name, runs),
            inspect.iscoroutinefunction(runs),
            retries is not None,
            labels,
        )
    )


def _labels(name: str, given: Collection[str], open_world: bool) -> frozenset[str]:
    if (
        not isinstance(given, Collection)
        or isinstance(given, str)
        or not all(isinstance(each, str) and each for each in given)
    ):
        raise UserError(f"tool {name}: labels={short_repr(given)}", hint='texts in a list or a set: labels={"pii"}')
    return frozenset(given) | ({UNTRUSTED} if open_world else frozenset())


def _checked(made: Tool) -> Tool:
    where, kind = f"tool {made.name}", made.effect
    check(f"{where}: retries", made.retry.retries, Whole(0))
    if made.timeout_s == 0:
        raise UserError(f"{where}: timeout=0", hint='more than nothing ("30s"), or None for no limit')
    check(f"{where}: in_doubt", made.in_doubt, OneOf(get_args(InDoubt)))
    if made.in_doubt != "ask" and kind not in _DOUBTED:
        raise UserError(
            f"{where}: in_doubt={made.in_doubt!r} of a tool whose effect is {str(kind)!r}",
            hint="such a call is made again where it is in doubt: leave in_doubt= out",
        )
    if kind is EffectClass.RECONCILABLE and not callable(made.reconcile):
        raise UserError(
            f"{where}: reconcile={short_repr(made.reconcile)}", hint="a function that looks whether a call was done"
        )
    if made.reconcile is not None and kind is not EffectClass.RECONCILABLE:
        raise UserError(
            f"{where}: reconcile= of a tool whose effect is {str(kind)!r}", hint="leave effect= out, or reconcile="
        )
    return made


def _class_of(name: str, effect: str) -> EffectClass:
    try:
        return effect_class(effect)
    except UserError as error:
        raise UserError(f"tool {name}: {error.message}", hint=error.hint) from None


def _seconds_of(name: str, what: str, value: Duration) -> float:
    try:
        return parse_seconds(value, name=what)
    except UserError as error:
        raise UserError(f"tool {name}: {error.message}", hint=error.hint) from None


def _name_of(func: Any) -> str:
    while isinstance(func, partial):
        func = func.func
    return cast("str", getattr(func, "__name__", type(func).__name__))


def _takes_effect(name: str, runs: Any) -> bool:
    """Whether the function has the parameter `effect: Effect`. A parameter of that class with another name is refused."""
    found = [each for each, kind in getattr(runs, "__annotations__", {}).items() if _is_effect(kind, runs)]
    found = [each for each in found if each != "return"]
    if not found:
        return False
    parameter = inspect.signature(runs).parameters[found[0]]
    if found != [_EFFECT] or parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        raise UserError(
            f"tool {name}: its parameter {found[0]!r} is an Effect", hint="it gets one by name: call it effect: Effect"
        )
    return True


def _is_effect(annotation: Any, runs: Any) -> bool:
    """Annotations may be text (`from __future__ import annotations`), whose names may be there for type checkers alone."""
    if not isinstance(annotation, str):
        return annotation is Effect or Effect in get_args(annotation)
    return any(_names_effect(each.strip(), runs) for each in annotation.split("|"))


def _names_effect(text: str, runs: Any) -> bool:
    first, *rest = text.split(".")
    if [first, *rest][-1] != Effect.__name__:
        return False
    meant = getattr(runs, "__globals__", {}).get(first)
    for each in rest:
        meant = getattr(meant, each, None)
    return meant is None or meant is Effect
