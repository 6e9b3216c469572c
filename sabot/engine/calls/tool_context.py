"""What a tool's function is told about its call. Models do not see these parameters, and nothing records them.

    @tool                                        the tool gives the key to a service that knows it
    async def put(path: str, effect: Effect): ...

    @tool                                        the tool knows for whom it is called, and has the objects of its agent
    async def refund(ctx: ToolContext[Shop], order: str, amount: int):
        await ctx.deps.pay_back(order, amount, customer=ctx.principal, key=ctx.effect.key)

The function of `Agent(deps=…)` makes these objects at the first call of a tool that takes them: once for a run outside of
a job, and once for each time that a job comes into memory. They go when the run ends or the job leaves memory.
"""

import asyncio
import inspect
import logging
import re
import typing
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from itertools import count
from secrets import token_hex
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Concatenate,
    ForwardRef,
    Generic,
    Protocol,
    Union,
    get_args,
    get_origin,
)

import msgspec

from sabot.base.options import answers_wrong_options
from sabot.engine.calls.effects import EffectId
from sabot.engine.calls.functions import stands_for, unwrap
from sabot.engine.calls.judging import JUDGE, OnceJudge, present_judge
from sabot.errors import EffectError, UserError, message_of, short_repr

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # that of Python 3.13: only type checkers read this

    Deps = TypeVar("Deps", default=Any, covariant=True)
    Output = TypeVar("Output", default=Any, covariant=True)
else:
    from typing import TypeVar

    Deps, Output = TypeVar("Deps"), TypeVar("Output")

EFFECT = "effect"
"""The name of the parameter with the type Effect."""


@dataclass(frozen=True, slots=True)
class Effect:
    """The facts about one call of a tool's function. The function gets them if it has the parameter `effect: Effect`.
    Models do not see this parameter.

    - `id`: the id of the effect in the journal.
    - `key`: the idempotency key, which is the same in every attempt.
    - `attempt`: the number of the attempt, from 1.
    - `deadline`: the time at which the call will be cancelled, in seconds since 1970, or None for no limit.
    - `again`: an async function for a tool that could not read the answer to its request. The tool calls it with `id`
      before it sends the request once more. The function records a further attempt, and returns its id. It raises
      BudgetExceeded if a budget does not allow the attempt. None if there is no journal.
    """

    id: EffectId
    key: str
    attempt: int
    deadline: float | None
    again: "Callable[[EffectId], Awaitable[EffectId]] | None" = field(default=None, compare=False, repr=False)


class _OneAndEffect(Protocol):
    def __call__(self, first: Any, /, *, effect: Effect) -> Any: ...


class _TwoAndEffect(Protocol):
    def __call__(self, first: Any, second: Any, /, *, effect: Effect) -> Any: ...


TakesEffect = (
    _OneAndEffect
    | _TwoAndEffect
    | Callable[Concatenate[Effect, ...], Any]
    | Callable[[Any, Effect], Any]
    | Callable[[Any, Any, Effect], Any]
    | Callable[[Any, Any, Any, Effect], Any]
    | Callable[[Any, Any, Any, Any, Effect], Any]
    | Callable[[Any, Any, Any, Any, Any, Effect], Any]
)
"""A function with the parameter `effect: Effect`. Callers leave it out, which no ParamSpec can say, so the arguments of
such functions are not checked.
"""


CALL: ContextVar[tuple[EffectId, Any, dict[bytes, Iterator[int]]] | None] = ContextVar("CALL", default=None)
"""The attempt of a job's effect whose tool is called in this context: the id of the attempt, the function by which the
tool asks a person (`jobs.runner.AsksPerson`) or None, and the numbers of the calls that the tool makes by itself (see
`inner_id`). None outside of such a call.
"""

PLAIN_CALL: ContextVar[EffectId | None] = ContextVar("PLAIN_CALL", default=None)
"""The attempt of a tool's call that an agent makes outside of a job, and may make again."""

_CLOSE_SECONDS = 5.0  # the time that the context managers of dependencies have to close
_CONTEXT_OF = re.compile(r"ToolContext\[(.+?)\]\W*(?:None)?$")  # in a type that is written as a text
_HAS_NONE = re.compile(r"\b(None|Any|object|Optional)\b")
_AROUND = ("Optional", "Union", "Annotated")  # forms of a type that is written as a text, which may hold the one sought
_NO_EFFECT = Effect(EffectId("", 0), EffectId("", 0).key, 1, None)


@answers_wrong_options
@dataclass(frozen=True, kw_only=True)  # with slots, ToolContext[Shop](…) would fail: Python writes the type into it
class ToolContext(Generic[Deps]):
    """The facts about one call of a tool. The function gets them if this is the type of its first parameter
    (`ctx: ToolContext`, or `ctx: ToolContext[Shop]`). Agents, jobs and models leave the parameter out. Who calls the tool
    as a function gives it: `refund(ToolContext(deps=shop), "o-1")` in a test, `refund(ctx, "o-1")` in another tool.

    - `scope`, `principal`, `session`: the tenant, the actor and the conversation for which the tool is called; "" if
      none is named.
    - `job`: the id of the job, or "" outside of a job.
    - `key`: the key of the job's record, or None. `message`: the input of the job; outside of a job, the prompt of the
      agent's run. In a job it is a copy. `metadata`: those of the request to a kernel.
    - `labels`: the labels of all data that the job has seen.
    - `deadline`: the time at which the call will be cancelled, in seconds since 1970, or None for no limit.
    - `deps`: the objects of `Agent(deps=…)`, or None.
    - `effect`: the id and the idempotency key of the call. A tool that is called by another one with its context has a
      key of its own.
    """

    scope: str = ""
    principal: str = ""
    session: str = ""
    job: str = ""
    key: bytes | None = None
    message: Any = field(default=None, repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    labels: frozenset[str] = frozenset()
    deadline: float | None = None
    deps: Deps = field(default=None, repr=False)  # type: ignore[assignment]  # without `Agent(deps=…)`
    effect: Effect = _NO_EFFECT
    # The numbers of calls that get this context from the tool, by their digest; None for a context of a program.
    _inner: dict[bytes, Iterator[int]] | None = field(default=None, compare=False, repr=False)


def inner_context(context: ToolContext[Deps], tool: str, arguments: Any) -> ToolContext[Deps]:
    """Returns the context of a call to which a program or another tool gives `context`. It has an idempotency key of its
    own, unless a program has chosen the key. If the other tool is called again, its calls with the same arguments have
    the same keys again. `tool`, `arguments`: the name of the called tool, and its other arguments.
    """
    outer, inner = context.effect, context._inner
    if outer is _NO_EFFECT:
        own = id_within(tool, arguments) or EffectId(f"{tool}/{token_hex(16)}", 0)
    elif inner is None:
        return replace(context, _inner={})
    else:
        own = inner_id(outer.key, inner, tool, arguments, outer.attempt)
    return replace(context, effect=replace(outer, id=own, key=own.key, again=None), _inner={})


def id_within(tool: str, arguments: Any) -> EffectId | None:
    """Returns the id of a call that a job's tool makes by itself without its context: by an agent that it runs, or with a
    context of its own. Equal calls of another attempt of the tool have the same ids. Returns None outside of jobs.
    """
    if (call := CALL.get()) is None:
        return None
    effect, _, made = call
    return inner_id(f"{effect.key}/by itself", made, tool, arguments, effect.attempt)


def inner_effect(given: Effect, tool: str, arguments: Any) -> Effect:
    """Returns the Effect of a call to which a job's tool gives on an Effect: with an idempotency key of its own, unless the
    program has chosen the key. `tool`, `arguments`: the name of the called tool, and its other arguments.
    """
    if (call := CALL.get()) is None or given.key != given.id.key:
        return given
    own = inner_id(f"{given.key}/given", call[2], tool, [given.key, arguments], given.attempt)
    return replace(given, id=own, key=own.key, again=None)


def inner_id(outer: str, made: dict[bytes, Iterator[int]], tool: str, arguments: Any, attempt: int) -> EffectId:
    """Returns the id of a call that a tool makes of another one: that of the same call in each attempt of the outer one.

    `outer`: the key of the outer call. `made`: the numbers of its calls, by their digest. Threads may share them.
    """
    said = _said([tool, arguments])
    return EffectId(f"{outer}/{said.hex()}", next(made.setdefault(said, count(1))), attempt)


def _said(call: Any) -> bytes:
    """Returns a digest of a call's arguments. Of objects that cannot be written down, such as a client, it has the type."""
    try:
        asked = msgspec.msgpack.encode(call, enc_hook=_written, order="deterministic")
    except (TypeError, ValueError, OverflowError, RecursionError):
        asked = str(call[0]).encode()
    return blake2b(asked, digest_size=16).digest()


def _written(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    return type(value).__qualname__ if dump is None else dump(mode="json")


# -- parameters -------------------------------------------------------------------------------------------------------


def takes_effect(name: str, runs: Any) -> bool:
    """Returns True if the function `runs` has the parameter `effect: Effect`. Raises UserError if a parameter with the
    type Effect has another name. `name`: the name of the tool, for the message.
    """
    found = _of_type(Effect, runs)
    if not found:
        return False
    parameter = inspect.signature(runs).parameters[found[0]]
    if found != [EFFECT] or parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        raise UserError(
            f"tool {name}: its parameter {found[0]!r} is an Effect", hint="the parameter has to be named effect: Effect"
        )
    return True


def context_parameter(name: str, func: Callable[..., Any]) -> str:
    """Returns the name of the parameter of a tool's function whose type is ToolContext, or "". Raises UserError if it is
    not the first one. `name`: the name of the tool, for the message.
    """
    runs = unwrap(func)
    found = _of_type(ToolContext, runs)
    if not found or inspect.signature(func).parameters.keys().isdisjoint(found):  # a partial may have given it
        return ""
    order = [each for each in inspect.signature(runs).parameters.values() if each.name != "self" or each.name in found]
    first = order[0]
    if found != [first.name] or first.kind not in (first.POSITIONAL_OR_KEYWORD, first.POSITIONAL_ONLY):
        raise UserError(
            f"tool {name}: its parameter {found[-1]!r} is a ToolContext, and is not its first parameter",
            hint=f"async def {name}({found[-1]}: ToolContext, …)",
        )
    return found[0]


def wanted_deps(func: Callable[..., Any], parameter: str) -> str:
    """Returns the type X of a tool's parameter `ToolContext[X]` as a text; "" if it names none, or one that None has too."""
    runs = inspect.unwrap(unwrap(func))
    annotation = getattr(runs, "__annotations__", {}).get(parameter)
    if isinstance(annotation, ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        with suppress(Exception):  # names that are there for type checkers only
            annotation = inspect.get_annotations(runs, eval_str=True)[parameter]
    if isinstance(annotation, str):
        named = _CONTEXT_OF.search(annotation)
        return named[1] if named and not _HAS_NONE.search(named[1]) else ""
    kinds = [annotation]
    while kinds:
        kind = kinds.pop()
        if get_origin(kind) is ToolContext:
            return _type_without_none(get_args(kind)[0])
        kinds += get_args(kind)
    return ""


def _type_without_none(kind: Any) -> str:
    kind = getattr(kind, "__value__", kind)  # of `type X = …`
    forms = get_args(kind) if get_origin(kind) in (Union, UnionType, Annotated) else (kind,)
    if any(each in (None, type(None), Any, object) or isinstance(each, typing.TypeVar) for each in forms):
        return ""
    name = kind.__forward_arg__ if isinstance(kind, ForwardRef) else getattr(kind, "__name__", str(kind))
    return "" if _HAS_NONE.search(name) else str(name)


def no_deps(where: str, parameter: str, wanted: str, *, agent: bool) -> UserError:
    """Returns the error for a tool that nobody gives its deps. `where`: the agent or the tool. `wanted`: their type.
    `agent`: True if an agent without deps has the tool; False if a function calls it.
    """
    hint = f"Agent(…, deps=…), a {wanted} or a function that makes it; or `{parameter}: ToolContext`, or ToolContext[{wanted} | None]"
    return UserError(
        f"{where}: its {parameter} is a ToolContext[{wanted}], and nobody gives deps",
        hint=hint
        if agent
        else f"only Agent(…, deps=…) gives them; a function calls a tool that has them by itself: a method of the {wanted}, "
        "or a tool that is defined where it exists",
    )


def with_context_by_name(func: Callable[..., Any], parameter: str) -> Callable[..., Any]:
    """Returns a function that calls `func`, and takes its context by name only. Its signature is that which models and
    callers see: without the context.
    """
    signature = inspect.signature(func)
    order = list(signature.parameters)
    at = order.index(parameter)
    others = [each for each in signature.parameters.values() if each.name != parameter]

    @stands_for(func, signature.replace(parameters=others))
    def served(*args: Any, **kwargs: Any) -> Any:
        return func(*args[:at], kwargs.pop(parameter), *args[at:], **kwargs)

    # names in its type may be there for type checkers only, and models do not see it
    served.__annotations__ = {name: kind for name, kind in served.__annotations__.items() if name != parameter}
    return served


def _of_type(kind: type, runs: Any) -> list[str]:
    """Returns the names of the parameters of the function `runs` whose type is this one, or a union that has it."""
    annotations = getattr(runs, "__annotations__", {}).items()
    return [each for each, given in annotations if each != "return" and _is_of_type(kind, given, runs)]


def _is_of_type(kind: type, annotation: Any, runs: Any) -> bool:
    """The annotation may be a text (`from __future__ import annotations`). Names in it are looked up in the module of the
    function `runs`; a name that is imported for type checkers only is not found there, and is compared as text.
    """
    if isinstance(annotation, ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        return any(_names(kind, each, runs) for each in annotation.split("|"))
    origin = get_origin(annotation)
    if origin is Annotated:
        return _is_of_type(kind, get_args(annotation)[0], runs)
    if origin is Union or origin is UnionType:
        return any(_is_of_type(kind, each, runs) for each in get_args(annotation))
    return annotation is kind or origin is kind


def _names(kind: type, text: str, runs: Any) -> bool:
    name, _, inner = text.strip(" '\"").partition("[")
    first, *rest = name.strip(" ]").split(".")
    last = [first, *rest][-1]
    if inner and last in _AROUND:
        return any(_names(kind, each, runs) for each in inner.split(","))
    meant = getattr(inspect.unwrap(runs), "__globals__", {}).get(first)
    for each in rest:
        meant = getattr(meant, each, None)
    if meant is None:
        return last == kind.__name__
    return not isinstance(meant, str) and _is_of_type(kind, meant, runs)


# -- dependencies -----------------------------------------------------------------------------------------------------

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class AgentDeps:
    """The argument `deps=` of the agent `agent`: a value, or a function of the ToolContext."""

    agent: str
    given: Any

    def __post_init__(self) -> None:
        if self.is_value:
            return
        where, runs = f"agent {self.agent}: deps={short_repr(self.given)}", unwrap(self.given)
        if inspect.isasyncgenfunction(runs) or inspect.isgeneratorfunction(inspect.unwrap(runs)):
            hint = "@contextlib.asynccontextmanager above an `async def` that yields the objects"
            raise UserError(f"{where} yields, and tools would get a generator", hint=hint)
        with suppress(ValueError):  # what is written in C may have no signature
            signature = inspect.signature(self.given)
            try:
                signature.bind(None)
            except TypeError as error:
                hint = "def deps(ctx: ToolContext): …"
                raise UserError(f"{where} does not take one ToolContext: {error}", hint=hint) from None

    @property
    def is_value(self) -> bool:
        """True if all tools get the argument itself."""
        return not inspect.isroutine(self.given) and not isinstance(self.given, partial)

    async def open(self, context: ToolContext[Any], stack: AsyncExitStack) -> Any:
        """Returns what the function has made. What an `async def` returns is used as it is, also if one could enter it;
        an async context manager that another function returns is entered in `stack`.
        """
        made = self.given(context)
        if isinstance(made, AbstractAsyncContextManager) and not inspect.iscoroutine(made):
            return await stack.enter_async_context(made)
        return await made if inspect.isawaitable(made) else made


class OpenDeps:
    """The dependencies of one run of an agent, or of one job in memory. Each is made when it is first needed."""

    def __init__(self) -> None:
        self._made: dict[AgentDeps, asyncio.Future[Any]] = {}
        self._keepers: dict[asyncio.Task[None], asyncio.Future[Any]] = {}
        self._over = asyncio.Event()

    async def of(self, deps: AgentDeps | None, context: ToolContext[Any]) -> Any:
        """Returns the objects of these dependencies, or None for None. Raises EffectError if their function fails; the
        next call tries again. If a call is cancelled that waits for them, they are still made, for the next call.
        """
        if deps is None or deps.is_value:
            return None if deps is None else deps.given
        made = self._made.get(deps)
        if made is None or (made.done() and (made.cancelled() or made.exception() is not None)):
            made = self._made[deps] = asyncio.get_running_loop().create_future()
            # A task of its own: some context managers have to be left in the task that has entered them.
            keeper = asyncio.create_task(self._keep(deps, context, made), name=f"deps of {deps.agent}")
            self._keepers[keeper] = made
        if not made.done():
            await asyncio.wait([made])
        if made.cancelled():
            raise EffectError("CancelledError", f"deps of agent {deps.agent}: what makes them was cancelled")
        if (error := made.exception()) is not None:
            raise EffectError(type(error).__name__, f"deps of agent {deps.agent}: {message_of(error)}") from error
        return made.result()

    async def _keep(self, deps: AgentDeps, context: ToolContext[Any], made: "asyncio.Future[Any]") -> None:
        # The function is called again after a failure, and whenever the job comes back into memory.
        JUDGE.set(OnceJudge(present_judge(), never=f"deps= of agent {deps.agent}"))
        try:
            async with AsyncExitStack() as stack:
                made.set_result(await deps.open(context, stack))
                await self._over.wait()
        except Exception as error:
            if made.done():
                _log.warning("deps of agent %s: %s: %s, when they were closed", deps.agent, type(error).__name__, error)
            else:
                made.set_exception(error)
                made.exception()  # the call that needed them may be gone
        finally:
            made.cancel()  # after an error that is no Exception; does nothing if they are made

    async def close(self) -> None:
        """Leaves the context managers, and logs their errors. A function that has not returned yet is cancelled."""
        self._over.set()
        for keeper, made in self._keepers.items():
            if not made.done():
                keeper.cancel()
        if self._keepers:
            _, left = await asyncio.wait(self._keepers, timeout=_CLOSE_SECONDS)
            for each in left:
                each.cancel()
