"""Tools: functions by which a job or an agent acts on the outside world. The class of a tool says what happens if its
call is in doubt, that is, if nobody knows whether it was made.

    @tool                                                   unsafe: called at most once; in doubt, a person is asked
    async def send_mail(to: str, text: str): ...

    @tool(effect="idempotent", timeout="10s", retries=3)    the service honours the key: called again with the same key
    async def put(path: str, data: bytes, effect: Effect):
        await client.put(path, data, headers={"Idempotency-Key": effect.key})

    @tool(reconcile=find_refund)                            in doubt, `find_refund(effect, …)` finds out whether it was made
    async def refund(order: str, amount: int, effect: Effect): ...

A tool with `retries=` makes one request to the outside. If its function makes several, and a later one could not be
sent, the function must raise an error of its own: the client's error would claim that nothing was sent, and the tool
would be called again.
"""

import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from types import BuiltinFunctionType, FunctionType, MethodType, MethodWrapperType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    NamedTuple,
    Protocol,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)
from weakref import WeakKeyDictionary, ref

import msgspec

from sabot.base.checks import OneOf, Whole, check
from sabot.base.config import Duration, checked_name, parse_seconds
from sabot.base.options import answers_wrong_options
from sabot.engine.calls.effects import EffectClass, EffectName, effect_class
from sabot.engine.calls.errors import ToolError
from sabot.engine.calls.functions import stands_for, unwrap
from sabot.engine.calls.judging import judge_of_this
from sabot.engine.calls.messages import given_arguments
from sabot.engine.calls.model_requests import JsonSchema, RequestSpec, ToolSchema
from sabot.engine.calls.names import TOOLS, note_tool
from sabot.engine.calls.options import Retry
from sabot.engine.calls.pydantic_types import MISSING_DEFAULT, default_of, field_in, is_field
from sabot.engine.calls.tool_context import (
    EFFECT,
    AgentDeps,
    Effect,
    TakesEffect,
    ToolContext,
    context_parameter,
    inner_context,
    inner_effect,
    takes_effect,
    wanted_deps,
    with_context_by_name,
)
from sabot.errors import UserError, short_repr

if TYPE_CHECKING:
    from typing_extensions import ParamSpec, TypeVar  # those of Python 3.13: only type checkers read this

    P = ParamSpec("P", default=...)
    R = TypeVar("R", default=Any, covariant=True)
else:
    from typing import ParamSpec, TypeVar

    P, R = ParamSpec("P"), TypeVar("R")

_JUDGED = frozenset(
    {"__call__", "__get__", "arguments", "effect", "func", "labels", "name", "parameters", "plain", "schema"}
)

UNTRUSTED = "untrusted"
"""The label of data from the open world, which anybody may have written."""

InDoubt = Literal["ask", "fail", "assume_done"]

IN_THREAD = "make it `async def`, and call the other tool in it"
"""What to do with a tool that calls another one in a thread without a context."""

_DOUBTED = (EffectClass.UNSAFE, EffectClass.RECONCILABLE)


class ToolAnswer(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A result by which a tool can report a failure without raising. The model of an agent gets `text`, marked as an
    error if `is_error` is True.
    """

    is_error: bool = False

    @property
    def text(self) -> str:
        """The text for the model."""
        raise NotImplementedError

    @classmethod
    def from_person(cls, result: Any) -> "ToolAnswer":
        """Returns the answer of a call of which a person has found out the result. `result`: that result as JSON."""
        return msgspec.convert(result, cls)


class ToolParameters(Protocol):
    """The parameters of a tool whose function's signature does not describe them, such as a tool of an MCP server.
    `description`: the description of the tool. `json`: the JSON schema of its parameters. `output`: the JSON schema of
    its result, or None. `server`: the name of the server of the tool, or "".
    """

    description: str
    json: JsonSchema
    output: JsonSchema | None
    server: str

    def decode(self, text: str) -> dict[str, Any]:
        """Returns the arguments by name, decoded from the JSON that a model wrote. Raises `schema.Mismatch`."""


class ToolCaller(Protocol):
    """An interface: the caller of a tool that has a function `converse`, which makes a call in several steps. The
    caller is an agent outside of a job, or a job, whose journal records each step.
    """

    scope: str
    """The tenant for whom the tool is called, or "" if unknown."""

    principal: str
    """The user for whom the tool is called, or "" if unknown."""

    async def make(self, tool: "Tool", arguments: Mapping[str, Any]) -> Any:
        """Makes one step of a call: calls the tool's function. After a failure, calls it again if the effect class of
        the tool allows it. Raises the error of the tool.
        """

    async def ask(
        self, kind: str, payload: Mapping[str, Any], timeout_s: float
    ) -> tuple[str, Mapping[str, Any]] | None:
        """Asks a person, and waits for the answer. Returns None if no person can be asked in this kind of run.

        Else returns a pair: "resolved", "expired" or "cancelled", and the answer, which is empty if nobody has
        answered. `kind`: the kind of the question. `payload`: its data. `timeout_s`: how long the person may take, in
        seconds.
        """

    async def complete(self, engine: Any, spec: RequestSpec) -> Any:
        """Asks a model of the engine, and returns its Completion. Raises ModelError, BudgetExceeded or PolicyDenied."""


class PlainParameters(NamedTuple):
    """The parameters of a function as its code has them, without `*args` and `**kwargs`.

    - `names`: their names. `places`: how many of them positional arguments fill; the others are by name only.
    - `has_defaults`: True if a parameter has a default.
    """

    names: tuple[str, ...]
    places: int
    has_defaults: bool


@dataclass(frozen=True)
class Tool(Generic[P, R]):
    """A function that agents and jobs can call as a tool, with its settings. Calling a Tool object calls the function,
    if the policy of the app allows it. In the function of a job it raises UserError, because `ctx.call` has to record
    the call.

    - `effect`: the effect class, which decides whether a call may be repeated (see `tool`).
    - `reconcile`: a function that finds out whether a call was made. Its arguments are the Effect of the call, and then
      the arguments of the call.
    - `in_doubt`: what a job does if it is unknown whether a call was made: "ask" a person, "fail", or "assume_done".
    - `timeout_s`: the time limit of one attempt in seconds, or None.
    - `retry`: the number of further attempts after a failure, and the waits before them.
    - `takes_effect`: True if the function has the parameter `effect: Effect`.
    - `is_async`: True for `async def`; other functions run in threads.
    - `has_retries`: True if `retries=` was given. Then `max_tool_retries=` of an agent has no effect on this tool.
    - `labels`: the labels of the tool's results, which the rules of a policy use.
    - `parameters`: the parameters, if they are not those of the function's signature; else None.
    - `converse`: an async function `converse(tool, caller, arguments)`. It makes the call in several steps, between
      which it can ask people or models. None if a call is simply one call of `func`.
    - `by_hint`: True if only the hints of an MCP server say that the tool is not unsafe. In a fork of a job the tool is
      then unsafe.
    - `is_agent`: True if the tool is another agent. `func` then returns the prompt with which this agent is run.
    - `other_names`: names by which a rule may mean the tool of an MCP server, but does not reach it, such as the server's.
    - `takes_context`: the name of the function's parameter with the type ToolContext, or "". `func` takes it by name only.
    - `deps`: what `ToolContext.deps` is made of; None for a tool of no agent. `wants_deps`: the type of these objects, if
      the function needs them (`wanted_deps`), or "".
    - `part_of`: the tool whose call this one goes on with, such as that of `NAME` for `NAME.resume`; else None. Rules about
      that tool hold for this one too, with its class. A tool of the class "read" only waits for the end of such a call: of
      those rules the ones about names and callers hold for it.
    - `copy_of`: the tool of which this one is a copy with other settings, as an agent makes one; else None.
    """

    func: Callable[P, R]
    name: str
    effect: EffectClass
    reconcile: Callable[..., Any] | None
    in_doubt: InDoubt
    timeout_s: float | None
    retry: Retry
    takes_effect: bool
    is_async: bool
    has_retries: bool = False
    labels: frozenset[str] = frozenset()
    parameters: ToolParameters | None = None
    converse: "Callable[[Tool, ToolCaller, Mapping[str, Any]], Awaitable[Any]] | None" = None
    by_hint: bool = False
    is_agent: bool = False
    other_names: tuple[str, ...] = ()
    takes_context: str = ""
    deps: AgentDeps | None = field(default=None, compare=False, repr=False)
    wants_deps: str = field(default="", compare=False, repr=False)
    part_of: "Tool | None" = field(default=None, compare=False, repr=False)
    copy_of: "Tool | None" = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        func: Any = self.func
        vars(self).update(
            # those of the function, so that `functools.wraps(tool)` and messages name it
            __name__=getattr(func, "__name__", self.name),
            __qualname__=getattr(func, "__qualname__", self.name),
            __doc__=func.__doc__,
            __wrapped__=func,
            __annotations__=getattr(func, "__annotations__", {}),  # else those of the class
        )
        TOOLS.add(self.name)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.takes_context:
            return self._called_with_context(*args, **kwargs)
        if self.takes_effect:
            own = partial(self._own_effect, [args, kwargs])
            args = cast("Any", tuple(map(own, args)))
            kwargs = cast("Any", {name: own(each) for name, each in kwargs.items()})
        judge = judge_of_this(self.name, "called", IN_THREAD)
        if judge is None:
            return self.func(*args, **kwargs)
        return cast("R", judge.call_plainly(self, args, kwargs))

    def _called_with_context(self, /, *args: Any, **kwargs: Any) -> R:
        """Calls the function with the ToolContext that is among the arguments. Rules and budgets see the others."""
        name, func = self.takes_context, cast("Any", self.func)
        context, *rest = (kwargs.pop(name), *args) if name in kwargs else args or (None,)
        if not isinstance(context, ToolContext):
            raise UserError(
                f"tool {self.name} was called without its {name}: ToolContext",
                hint=f"in another tool {self.name}({name}, …), in a test {self.name}(ToolContext(scope=…, deps=…), …)",
            )
        context = inner_context(context, self.name, [rest, kwargs])

        @stands_for(func)
        def called(*args: Any, **kwargs: Any) -> Any:
            return func(*args, **kwargs, **{name: context})

        return replace(self, func=called, takes_context="", deps=None)(*rest, **kwargs)

    def _own_effect(self, given: Any, value: Any) -> Any:
        """Returns the value of an argument, and for an Effect that another tool gives on, one with a key of its own."""
        if not isinstance(value, Effect):
            return value
        args, kwargs = given
        others = (
            [each for each in args if each is not value],
            {name: each for name, each in kwargs.items() if each is not value},
        )
        return inner_effect(value, self.name, others)

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuses a subclass that says otherwise what is called, and whether it may be."""
        super().__init_subclass__(**options)
        changed = sorted(vars(cls).keys() & _JUDGED)
        if changed:
            raise UserError(
                f"class {cls.__name__}: a tool whose {', '.join(changed)} is its own would be called beside policy, budgets and journal",
                hint="put it into the function of the tool: @tool over a function that does this, and then what the tool does",
            )

    @property
    def waits(self) -> bool:
        """True if the tool only waits for the end of the call of another one (`part_of`)."""
        return self.part_of is not None and self.effect is EffectClass.READ

    def __get__(self, instance: Any, owner: type | None = None) -> "Tool":
        """Binds the function, so that a tool can be a method."""
        return self if instance is None else replace(self, func=MethodType(self.func, instance))

    @cached_property
    def plain(self) -> PlainParameters | None:
        """The parameters of a function without aliases and wrappers; None for another one, whose parameters take longer
        to find out. Functions are asked once: each look at `__code__` or `__defaults__` raises an audit event, and calls
        the hooks of the process (`jobs.direct_io` has one).
        """
        func = self.func
        if type(func) is not FunctionType or func.__dict__:
            return None
        code = func.__code__
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        return PlainParameters(names, code.co_argcount, bool(func.__defaults__ or func.__kwdefaults__))

    @cached_property
    def schema(self) -> ToolSchema:
        """The description of the tool for a model: its docstring, and its parameters with their types. Raises
        UserError if a parameter's type has no JSON schema.
        """
        return ToolSchema(self.name, self._arguments.description, self._arguments.json)

    @cached_property
    def positional(self) -> tuple[str, ...]:
        """The names of the parameters that positional arguments fill."""
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return tuple(name for name, each in inspect.signature(self.func).parameters.items() if each.kind in kinds)

    def arguments(self, text: str) -> dict[str, Any]:
        """Decodes the JSON of a tool call that a model wrote. Returns the arguments by name, converted into the types
        of the parameters. Raises ToolError, whose message tells the model how to correct its call.
        """
        from sabot.engine.calls.schema import Mismatch

        try:
            return self._arguments.decode(given_arguments(text))
        except Mismatch as error:
            raise ToolError(f"{self.name} does not take these arguments: {error}") from error

    @cached_property
    def _arguments(self) -> ToolParameters:
        if self.parameters is not None:
            return self.parameters
        from sabot.engine.calls.schema import Parameters  # imported late: needed only if a model calls the tool

        return Parameters(self.func, f"tool {self.name}", (EFFECT,) if self.takes_effect else ())


class _MakesTool(Protocol):
    @overload
    def __call__(self, func: TakesEffect, /) -> Tool: ...
    @overload
    def __call__(self, func: Callable[P, R], /) -> Tool[P, R]: ...


@overload
def tool(func: TakesEffect, /) -> Tool: ...


@overload
def tool(func: Callable[P, R], /) -> Tool[P, R]: ...


@overload
def tool(
    *,
    effect: EffectName | EffectClass = "unsafe",
    reconcile: Callable[..., Any] | None = None,
    in_doubt: InDoubt = "ask",
    timeout: Duration | None = None,
    retries: int | None = None,
    backoff: Duration = "100ms",
    name: str | None = None,
    open_world: bool = False,
    labels: Collection[str] = (),
) -> _MakesTool: ...


@answers_wrong_options
def tool(
    func: Callable[..., Any] | None = None,
    /,
    *,
    effect: EffectName | EffectClass = "unsafe",
    reconcile: Callable[..., Any] | None = None,
    in_doubt: InDoubt = "ask",
    timeout: Duration | None = None,
    retries: int | None = None,
    backoff: Duration = "100ms",
    name: str | None = None,
    open_world: bool = False,
    labels: Collection[str] = (),
) -> Any:
    """Makes a Tool of a function, sync or async: `@tool`, or `@tool(effect="read")`.

    - `effect`: the effect class, which decides whether a call may be repeated. "read": it changes nothing.
      "idempotent": the service executes several equal calls, or calls with the same key, only once. "metered": it may
      be repeated, and costs money. "local": it changes nothing outside of the process. "reconcilable": `reconcile`
      finds out whether it was made. "unsafe": none of these.
    - `reconcile`: a function, sync or async, with the Effect of the call as its first argument, and then the arguments
      of the call. It returns `Reconciled.DONE`, `(Reconciled.DONE, result)`, `Reconciled.NOT_DONE` or
      `Reconciled.UNKNOWN`. True means DONE, and False NOT_DONE.
    - `in_doubt`: what a job does if it is unknown whether a call was made that may not be repeated: "ask" a person,
      "fail" the call, or "assume_done".
    - `timeout`: the time limit of one attempt. Then the call is cancelled, and it is unknown whether it was made.
    - `retries`: the number of further attempts after a failure. By default 0; if a model calls the tool, by default
      `max_tool_retries` of its agent. An unsafe or reconcilable call is repeated only if its request was certainly not
      sent.
    - `backoff`: the wait before the second attempt; each later wait is twice as long, at most 30 seconds.
    - `name`: the name in journals and messages; by default that of the function.
    - `open_world`: True if the results may contain text that anybody can have written, such as a web page or a mail.
      Then they get the label "untrusted".
    - `labels`: other labels of the results, which the rules of a policy use.

    The result of a generator function is the list of its values. Raises UserError for settings that contradict each
    other, and for a class.
    """
    carried = _labels(name or "tool", labels, open_world)
    make = partial(_make_tool, effect, reconcile, in_doubt, timeout, retries, backoff, name, labels=carried)
    return partial(_declare, make) if func is None else _declare(make, func)


def _declare(make: Callable[[Any], Tool], func: Any) -> Tool:
    made = make(func)
    _note_function(made)
    return made


def as_tool(
    what: Tool | Callable[..., Any],
    *,
    effect: str | None = None,
    timeout: Duration | None = None,
    retries: int | None = None,
    default_retries: int | None = None,
) -> Tool:
    """Returns a Tool. If `what` is a Tool, its function (`tool.func`), or a `functools.partial` of either, returns the tool, or a
    copy in which the settings that are given here replace its own. If it is another function, returns a Tool with these
    settings; its effect class is "unsafe" unless `effect` is given. Raises UserError for the function of several tools.

    `default_retries`: the retries of a Tool that was declared without `retries=`. It stays one that was.
    """
    if not isinstance(what, Tool):
        what = declared_tool(what)
        # a step that says no class is unsafe, which a tool with a look-up cannot be
        effect = None if effect == "unsafe" and isinstance(what, Tool) and what.reconcile is not None else effect
    if not isinstance(what, Tool):
        return tool_of_function(what, effect or "unsafe", timeout, retries)
    again = default_retries if retries is None and not what.has_retries else retries
    if effect is None and timeout is None and again is None:
        return what
    first = what.copy_of or what
    made = _check_tool(
        replace(
            what,
            effect=what.effect if effect is None else _class_of(what.name, effect),
            by_hint=what.by_hint and effect is None,
            timeout_s=what.timeout_s if timeout is None else _seconds_of(what.name, "timeout", timeout),
            retry=what.retry if again is None else replace(what.retry, retries=again),
            has_retries=what.has_retries or retries is not None,
            copy_of=first if effect is None else what.copy_of,
        )
    )
    note_tool(made)
    if effect is None:
        _note_function(first)  # which exists as long as the copy
    return made


def declared_tool(what: Tool | Callable[..., Any]) -> Tool | Callable[..., Any]:
    """Returns the tool that a call of `what` makes: the tool whose function it is (`tool.func`, `tool.__wrapped__`), and for a
    `functools.partial` of a tool or of such a function that tool, whose function gets what the partial gives. So the call is
    one call of that tool, by its name and class, not one of a function that calls the tool. For a partial that gives an
    Effect or a ToolContext, which the tool has to get in exchange for one of its own, returns a partial of the tool. Returns
    anything else unchanged. Raises UserError for the function of several tools.
    """
    if isinstance(what, Tool):
        return what
    if (made := _tool_with(what)) is not None or not isinstance(what, partial):
        return made or what
    inner = what.func if isinstance(what.func, Tool) else _tool_with(what.func)
    if inner is None:
        return what
    given = (*what.args, *what.keywords.values())
    takes_others = inner.parameters is not None or inner.converse is not None
    if takes_others or any(isinstance(each, Effect | ToolContext) for each in given):
        return partial(inner, *what.args, **what.keywords)
    look = None if inner.reconcile is None else _looking_with(inner.reconcile, what)
    made = replace(inner, func=partial(inner.func, *what.args, **what.keywords), reconcile=look)
    note_tool(made)
    return made


def wraps_itself(made: Tool) -> bool:
    """Returns True if the function of a tool wraps another tool of the same name, by `functools.wraps`."""
    func: Any = made.func
    while func is not None and not isinstance(func, Tool):
        func = func.func if isinstance(func, partial) else getattr(func, "__wrapped__", None)
    return isinstance(func, Tool) and func.name == made.name


def _looking_with(look: Callable[..., Any], given: "partial[Any]") -> Callable[..., Any]:
    """Returns the look-up of a tool for calls of a partial of it. It gets what the partial gives too, behind the Effect."""
    if not given.args:
        return partial(look, **given.keywords)
    if inspect.iscoroutinefunction(unwrap(look)):

        async def looked_up_later(effect: Effect, /, *args: Any, **kwargs: Any) -> Any:
            return await look(effect, *given.args, *args, **{**given.keywords, **kwargs})

        return looked_up_later

    def looked_up(effect: Effect, /, *args: Any, **kwargs: Any) -> Any:
        return look(effect, *given.args, *args, **{**given.keywords, **kwargs})

    return looked_up


def tool_within(part_of: Tool, func: Callable[..., Any], verb: str, effect: EffectName) -> Tool:
    """Returns the tool that goes on with a call of another one (`Tool.part_of`). Its name is that of the other with a verb:
    "work.resume".
    """
    made = replace(tool(effect=effect, name=f"{part_of.name}.{verb}")(func), part_of=part_of)
    note_tool(made)  # the first one is gone
    return made


async def _hand_over(prompt: str) -> str:
    return prompt


def tool_of_agent(name: str) -> Tool:
    """Returns the tool as which an agent is called by another one. What the agent does then is not a part of this call:
    its function only returns the prompt, as policy, budgets and people have allowed it. `name`: the name of the agent.
    """
    made = Tool(_hand_over, name, EffectClass.LOCAL, None, "ask", None, Retry(0, 0.0), False, True, is_agent=True)
    note_tool(made)
    return made


def recorded_way(made: Tool) -> str:
    """Returns the code with which the function of a durable agent calls this tool, for a hint."""
    return "agent.run(…, effects=ctx.llm(engine))" if made.is_agent else f"await ctx.call({made.name}, …)"


_TOOL_FIELDS: WeakKeyDictionary[FunctionType, dict[str, dict[str, Any]]] = WeakKeyDictionary()
"""The attributes of a tool except those that refer to its function, by function and class of effect; those of a bound
method are by its function and apart, as it has a parameter less. `ctx.step` makes a tool for each call, and inspecting a
function takes long. The keys are weak, so that functions are not kept alive.
"""
_DECLARED: WeakKeyDictionary[Any, dict[tuple[str, EffectClass], dict[int, "ref[Tool]"]]] = WeakKeyDictionary()
"""The tools that the program has declared, by their functions, their names and classes, and their ids. A step of such a
function is a call of the tool: rules are by its name, and its class says whether it may be repeated.
"""


def names_beside(made: Tool) -> frozenset[str]:
    """Returns the other names under which the program has declared tools of the function of this tool. None are known of
    methods, which belong to an object each.
    """
    groups = _DECLARED.get(made.func, {}) if isinstance(made.func, FunctionType) else {}
    if len(groups) == 1 and next(iter(groups))[0] == made.name:  # so it is of nearly all tools, at each of their calls
        return frozenset()
    return frozenset(name for (name, _), group in groups.copy().items() if group and name != made.name)


def _note_function(made: Tool) -> None:
    """Remembers whose function this is, as long as the tool or a copy of it exists."""
    func: Any = made.func
    while _is_key(plain := func.__func__ if type(func) is MethodType else func):
        # A group that is empty stays: to remove it here would race with a thread that adds a tool.
        group, key = _DECLARED.setdefault(plain, {}).setdefault((made.name, made.effect), {}), id(made)
        group[key] = ref(made, partial(_forget, group, key))
        if not is_ours(plain):
            return
        func = getattr(plain, "__wrapped__", None)  # the user's, within one of ours that fills in defaults


def _forget(group: dict[int, "ref[Tool]"], key: int, gone: "ref[Tool]") -> None:
    group.pop(key, None)


def _newest(group: dict[int, "ref[Tool]"]) -> Tool | None:
    """Returns the tool of a group that was declared last and still exists; None if none does."""
    with suppress(KeyError, RuntimeError, StopIteration):  # another thread, or the collector, removes one meanwhile
        if (made := group[next(reversed(group))]()) is not None:
            return made
    return next((made for refers in reversed(list(group.copy().values())) if (made := refers()) is not None), None)


def is_ours(func: Any) -> bool:
    """Returns True for a function of Sabot, such as one that calls a user's function in place of it (`stands_for`)."""
    return isinstance(func, FunctionType) and str(func.__globals__.get("__name__", "")).startswith("sabot.")


def _is_key(func: Any) -> bool:
    """Returns True if tools can be found by this function: it can be the key of a weak dictionary, and to hash it runs no
    code of the user's.
    """
    hashes: Any = type(func).__hash__
    if not getattr(type(func), "__weakrefoffset__", 0):  # as of None, and of str.upper
        return False
    return hashes is object.__hash__ or isinstance(func, BuiltinFunctionType)


def _tool_with(func: Any) -> Tool | None:
    """Returns the tool that the program has declared with this function; None if there is none."""
    plain = func.__func__ if type(func) is MethodType else func
    known = _DECLARED.get(plain) if type(plain) is FunctionType or _is_key(plain) else None
    if not known:
        is_call = type(func) in (MethodType, MethodWrapperType) and func.__name__ == "__call__"
        return _tool_with(func.__self__) if is_call and not isinstance(func.__self__, Tool) else None  # as func itself
    found = [made for group in list(known.values()) if (made := _newest(group)) is not None]
    if not found:
        return None
    if len(found) > 1:
        names = sorted({each.name for each in found})
        raise UserError(
            f"{_name_of(func)} is the function of {len(found)} tools ({', '.join(names)}), so it is not clear which one is called",
            hint=f"give the tool: ctx.call({names[0]}, …)",
        )
    (made,) = found
    is_bound = type(made.func) is MethodType
    if plain is func:
        return replace(made, func=func) if is_bound else made  # the object of a method is given as an argument
    return replace(made, func=func) if is_bound else made.__get__(func.__self__)


_KNOWN = (*(each.name for each in fields(Tool) if each.name != "func"), "__name__", "__qualname__", "__doc__", "plain")


def _with_field_defaults(func: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function itself, or, if pydantic has the defaults of some of its parameters (`days: int =
    Field(default=3)`), a function that calls it with their values: else it would get the field in place of the value.
    """
    if hasattr(func, "raw_function") or not _has_fields(func):  # `validate_call` of pydantic takes the values itself
        return func
    if isinstance(func, partial):
        return partial(_with_field_defaults(func.func), *func.args, **func.keywords)
    signature, known = inspect.signature(func), list[dict[str, Any]]()

    @stands_for(func)  # the types of an object's parameters are those of its method
    def filled(*args: Any, **kwargs: Any) -> Any:
        if not known:  # at the first call, when all names in annotations are there
            known.append(_fields_of_parameters(signature, unwrap(func)))
        given = signature.bind_partial(*args, **kwargs).arguments if known[0] else ()
        for name, told in known[0].items():
            if name not in given:
                kwargs[name] = default_of(told)
                if kwargs[name] is MISSING_DEFAULT:
                    raise TypeError(f"{_name_of(func)}() missing a required argument: {name!r}")
        return func(*args, **kwargs)

    return filled


def _collecting(func: Callable[..., Any], runs: Any) -> Callable[..., Any]:
    """Returns the function itself, or, if it is a generator, a function that returns the list of its values."""
    if inspect.isgeneratorfunction(runs):

        @stands_for(func)
        def collected(*args: Any, **kwargs: Any) -> list[Any]:
            return list(func(*args, **kwargs))

        return collected
    if not inspect.isasyncgenfunction(runs):
        return func

    @stands_for(func)
    async def gathered(*args: Any, **kwargs: Any) -> list[Any]:
        async with aclosing(func(*args, **kwargs)) as pieces:
            return [each async for each in pieces]

    return gathered


def _fields_of_parameters(signature: inspect.Signature, func: Any) -> dict[str, Any]:
    """Returns the fields of pydantic that have the defaults of parameters, by their names."""
    try:
        hints = get_type_hints(func, include_extras=True)
    except Exception:  # an annotation is the user's code
        hints = {}
    found: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if is_field(parameter.default):
            found[name] = parameter.default
        elif parameter.default is parameter.empty and (field := field_in(hints.get(name))) is not None:
            found[name] = field
    return found


def _has_fields(func: Any) -> bool:
    """Returns True if a parameter may have its default in a field of pydantic."""
    runs = unwrap(func)
    defaults = (*(getattr(runs, "__defaults__", None) or ()), *(getattr(runs, "__kwdefaults__", None) or {}).values())
    if any(map(is_field, defaults)):
        return True
    # an annotation may be a text: then its names are looked up when the tool is called
    kinds = getattr(runs, "__annotations__", {}).values()
    return any(field_in(kind) is not None or (isinstance(kind, str) and "Field(" in kind) for kind in kinds)


def tool_of_function(
    func: Callable[..., Any], effect: str = "unsafe", timeout: Duration | None = None, retries: int | None = None
) -> Tool:
    """Returns a Tool with the name of a function, also if the function is that of a tool."""
    # the tools of a method differ in their object only
    plain: Any = func.__func__ if type(func) is MethodType else func
    if type(plain) is not FunctionType or not isinstance(effect, str) or timeout is not None or retries is not None:
        return _make_tool(effect, None, "ask", timeout, retries, "100ms", None, func)
    known = _TOOL_FIELDS.setdefault(plain, {})
    effect_of = effect if func is plain else f"{effect} of a method"
    if effect_of not in known:
        made = _make_tool(effect, None, "ask", timeout, retries, "100ms", None, func)
        if made.func is not func:
            return made  # the cache must not keep a function that refers to the key of its entry
        known[effect_of] = {name: getattr(made, name) for name in _KNOWN}
    made = Tool.__new__(Tool)
    # `__init__` of a frozen class takes longer than all the rest
    vars(made).update(known[effect_of], func=func, __wrapped__=func, __annotations__=func.__annotations__)
    return made


def _make_tool(
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
        raise UserError(f"tool {func.name}: it is a tool already", hint="give all settings in one @tool(…)")
    if not callable(func):
        raise UserError(f"tool: {short_repr(func)} is no function", hint='write @tool, or @tool(effect="read")')
    runs = unwrap(func)
    name = checked_name(_name_of(func) if name is None else name, "tool: name")
    if isinstance(func, type):
        raise UserError(f"tool {name}: it is a class", hint="a function that returns its result")
    _check_names(name, func)
    kind = _class_of(name, effect)
    if reconcile is not None and kind is EffectClass.UNSAFE:
        kind = EffectClass.RECONCILABLE
    timeout_s = None if timeout is None else _seconds_of(name, "timeout", timeout)
    calls, context = _collecting(_with_field_defaults(func), runs), context_parameter(name, func)
    made = _check_tool(
        Tool(
            with_context_by_name(calls, context) if context else calls,
            name,
            kind,
            reconcile,
            in_doubt,
            timeout_s,
            Retry(0 if retries is None else retries, _seconds_of(name, "backoff", backoff)),
            takes_effect(name, runs),
            inspect.iscoroutinefunction(runs) or inspect.isasyncgenfunction(runs),
            retries is not None,
            labels,
            takes_context=context,
            wants_deps=wanted_deps(func, context) if context else "",
        )
    )
    note_tool(made)
    return made


def _check_names(name: str, func: Callable[..., Any]) -> None:
    """Raises UserError if two arguments of a call can have one name: rules would judge one of them, and a person see it."""
    try:
        found = list(inspect.signature(func).parameters.values())
    except (TypeError, ValueError):  # a C function without a signature
        return
    placed = [each.name for each in found if each.kind is each.POSITIONAL_ONLY and each.name not in ("self", "cls")]
    rest = next((each.name for each in found if each.kind is each.VAR_KEYWORD), "")
    if placed and rest:
        raise UserError(
            f"tool {name}: {placed[0]} is given by place alone, and **{rest} may have another {placed[0]}",
            hint=f"leave out the / behind {placed[-1]}, or take {rest}: dict",
        )


def _labels(name: str, given: Collection[str], open_world: bool) -> frozenset[str]:
    if (
        not isinstance(given, Collection)
        or isinstance(given, str)
        or not all(isinstance(each, str) and each for each in given)
    ):
        raise UserError(f"tool {name}: labels={short_repr(given)}", hint='texts in a list or a set: labels={"pii"}')
    return frozenset(given) | ({UNTRUSTED} if open_world else frozenset())


def _check_tool(made: Tool) -> Tool:
    where, kind = f"tool {made.name}", made.effect
    check(f"{where}: retries", made.retry.retries, Whole(0))
    if made.timeout_s == 0:
        raise UserError(f"{where}: timeout=0", hint='a time above 0 ("30s"), or None for no limit')
    check(f"{where}: in_doubt", made.in_doubt, OneOf(get_args(InDoubt)))
    if made.in_doubt != "ask" and kind not in _DOUBTED:
        raise UserError(
            f"{where}: in_doubt={made.in_doubt!r} of a tool whose effect is {str(kind)!r}",
            hint="a call of this class that is in doubt is repeated: leave in_doubt= out",
        )
    if kind is EffectClass.RECONCILABLE and not callable(made.reconcile):
        raise UserError(
            f"{where}: reconcile={short_repr(made.reconcile)}", hint="a function that finds out whether a call was made"
        )
    if made.reconcile is not None and (first := _no_effect_first(made, made.reconcile)):
        look = _name_of(made.reconcile)
        raise UserError(
            f"{where}: reconcile={look} gets the Effect of the call as its first argument, and {first}",
            hint=f"def {look}(effect: Effect, …), with the arguments of the call behind it",
        )
    if made.reconcile is not None and kind is not EffectClass.RECONCILABLE:
        raise UserError(
            f"{where}: reconcile= of a tool whose effect is {str(kind)!r}", hint="leave effect= out, or reconcile="
        )
    return made


def _no_effect_first(made: Tool, look: Callable[..., Any]) -> str:
    """Returns the words that say why a look-up was not written for an Effect as its first argument; "" if it may have been.
    One that has the parameters of the tool would take the Effect for another value, find nothing, and let the call be made
    again.
    """
    try:
        first = next(iter(inspect.signature(look).parameters.values()), None)
        own = inspect.signature(made.func).parameters
    except (TypeError, ValueError):  # a C function without a signature
        return ""
    if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
        return "it takes none by place"
    if first.kind is first.VAR_POSITIONAL:
        return ""
    try:
        kind = get_type_hints(unwrap(look)).get(first.name)
        kinds = [get_origin(each) or each for each in (get_args(kind) if get_origin(kind) in _UNIONS else [kind])]
        if all(isinstance(each, type) and each is not Any and not issubclass(Effect, each) for each in kinds):
            return f"{first.name} is declared as {' | '.join(getattr(each, '__name__', '') for each in kinds)}"
    except Exception:  # an annotation is the user's code
        kind = None
    said = first.annotation if isinstance(first.annotation, str) else ""  # its name may be known to type checkers only
    if kind not in (None, Any, object) or first.name == EFFECT or said.rpartition(".")[2] == Effect.__name__:
        return ""
    if first.name in own:
        return f"{first.name} is a parameter of the tool"
    names = [name for name, each in own.items() if each.kind in _NAMED and name not in (EFFECT, made.takes_context)]
    if any(_takes(look, names[:at], names[at:]) for at in range(len(names) + 1)):
        return ""
    return f"it does not take {', '.join(names)} behind {first.name}, which does not say that it is the Effect"


def _takes(look: Callable[..., Any], by_place: list[str], by_name: list[str]) -> bool:
    """Returns True if a look-up takes an Effect and then these arguments."""
    try:
        inspect.signature(look).bind(None, *by_place, **dict.fromkeys(by_name))
    except TypeError:
        return False
    return True


_NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_UNIONS = (Union, UnionType)


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
