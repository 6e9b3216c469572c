"""The arguments of a tool's call as the tool will get them: by the names of its parameters, with the values of those
that the caller leaves out.

   @tool
   async def refund(order: str, amount: int = 500): ...

   call_arguments(refund, ("o-1",), {})     {"order": "o-1", "amount": 500}

`argument_values` finds the values at a path in such arguments, and `lacks` says whether a path certainly leads nowhere:
by the types of a Python function (`fields`), or by a tool's JSON schema (`schema_paths`). `edits` changes arguments. What
a function says of its parameters is read once.
"""

import inspect
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import partial
from types import FunctionType, GenericAlias, MethodType
from typing import Annotated, Any, NamedTuple, Unpack, cast, get_args, get_origin, get_type_hints
from weakref import WeakKeyDictionary

from sabot.engine.calls.fields import (
    MISSING_VALUE,
    REST,
    aliases_of,
    alike,
    choices_of,
    fields_of,
    inner_types,
    type_lacks,
    values_at,
)
from sabot.engine.calls.pydantic_types import MISSING_DEFAULT, conversion_of, default_of, field_in, is_field
from sabot.engine.calls.schema_paths import json_types, schema_lacks, schema_names, values_in_json, with_defaults
from sabot.engine.calls.tools import Tool
from sabot.errors import UserError, short_repr


class _Parameters(NamedTuple):
    """The parameters of a function.

    - `order`: the names of all parameters that have one value. `positional`: those that positional arguments fill.
    - `only`: the number of those that only positional arguments fill.
    - `defaults`: the default values.
    - `open`: True if the function takes arguments of any name. `rest`, `more`: the names of `*args` and `**kwargs`.
    """

    order: tuple[str, ...]
    positional: tuple[str, ...]
    only: int
    defaults: Mapping[str, Any]
    open: bool
    rest: str = ""
    more: str = ""


_UNKNOWN = _Parameters((), (), 0, {}, True)
_parameters: WeakKeyDictionary[FunctionType, _Parameters] = WeakKeyDictionary()
_types: WeakKeyDictionary[FunctionType, Mapping[str, Any]] = WeakKeyDictionary()


def _behind(
    func: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
) -> tuple[Any, bool, tuple[Any, ...], Mapping[str, Any]]:
    """Returns what a call of `func` with these arguments calls: the function behind partials, methods and objects that
    wrap a function (`functools.update_wrapper`), True if its first parameter is the object of a method, and all
    arguments that it gets.
    """
    kwargs = {} if kwargs is None else kwargs
    if type(func) is FunctionType:  # as most are
        return func, False, args, kwargs
    while isinstance(func, partial | Tool) or _is_wrapper(func):
        if isinstance(func, partial):
            args, kwargs = (*func.args, *args), {**func.keywords, **kwargs}
        func = func.func if isinstance(func, partial | Tool) else func.__wrapped__
    if isinstance(func, MethodType):
        return func.__func__, True, args, kwargs
    if not isinstance(func, type) and not inspect.isroutine(func) and isinstance(type(func).__call__, FunctionType):
        return type(func).__call__, True, args, kwargs
    return func, False, args, kwargs


def _is_wrapper(func: Any) -> bool:
    """Returns True for an object of a class of one's own that is called in place of a function, and has its parameters.
    A wrapper that is a function is none: `inspect.signature` says its parameters.
    """
    return not isinstance(func, type) and not inspect.isroutine(func) and callable(getattr(func, "__wrapped__", None))


def _parameters_of(func: Any) -> _Parameters:
    known = _parameters.get(func) if isinstance(func, FunctionType) else None
    if known is None:
        known = _read_parameters(func)
        if isinstance(func, FunctionType):
            _parameters[func] = known
    return known


def _read_parameters(func: Any) -> _Parameters:
    try:
        signature = inspect.signature(func).parameters.values()
    except (TypeError, ValueError):  # a C function without a signature
        return _UNKNOWN
    named = [each for each in signature if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    defaults = {each.name: each.default for each in named if each.default is not each.empty}
    if any(each.name not in defaults and each.annotation is not each.empty for each in named):
        # `validate_call` of pydantic takes the default of a field
        for name, kind in _types_of(func).items():
            if (found := field_in(kind)) is not None:
                defaults.setdefault(name, found)
    return _Parameters(
        tuple(each.name for each in named),
        tuple(each.name for each in named if each.kind is not each.KEYWORD_ONLY),
        sum(each.kind is each.POSITIONAL_ONLY for each in named),
        {name: each for name, each in defaults.items() if default_of(each) is not MISSING_DEFAULT},
        any(each.kind is each.VAR_KEYWORD for each in signature),
        "".join(each.name for each in signature if each.kind is each.VAR_POSITIONAL),
        "".join(each.name for each in signature if each.kind is each.VAR_KEYWORD),
    )


def _types_of(func: Any) -> Mapping[str, Any]:
    """Returns the types of the function's parameters; without those that cannot be found. A field of pydantic that is
    the default of a parameter is a part of its type, since it has bounds.
    """
    known = _types.get(func) if isinstance(func, FunctionType) else None
    if known is None:
        try:
            hints = get_type_hints(func, include_extras=True)
            parameters = inspect.signature(func).parameters.values()
            fields = {each.name: each.default for each in parameters if is_field(each.default)}
            known = hints | {name: Annotated[hints.get(name, Any), each] for name, each in fields.items()}
        except Exception:  # an annotation is the user's code
            known = {}
        if isinstance(func, FunctionType):
            _types[func] = known
    return known


def _type_of(func: Any, name: str) -> Any:
    """Returns the type of a parameter; Any if it is not known. That of `*args` is a tuple, and of `**kwargs` a dict."""
    kind: Any = _types_of(func).get(name, Any)
    known = _parameters_of(func)
    if name == known.more:
        return get_args(kind)[0] if get_origin(kind) is Unpack else GenericAlias(dict, (str, kind))
    return GenericAlias(tuple, (kind, ...)) if name == known.rest else kind


def types_of(tool: Tool) -> Mapping[str, Any]:
    """Returns the types of the tool's parameters by name, without those that are not known."""
    return {} if tool.parameters is not None else _types_of(_behind(tool.func)[0])


def call_arguments(
    tool: Tool, args: Sequence[Any], kwargs: Mapping[str, Any], *, filled: bool = True
) -> dict[str, Any]:
    """Returns the arguments of a call by the names of the tool's parameters, in their order. With `filled=True` they
    contain the defaults of the parameters that the caller has left out. Positional arguments beyond the parameters
    have the name "*". The parameter `effect: Effect` is left out, because the caller does not give it. Raises UserError
    for an argument whose name is that of others together.
    """
    if tool.parameters is not None:
        given = {**kwargs, **({REST: tuple(args)} if args else {})}
        return with_defaults(given, tool.parameters.json) if filled else given
    func, bound, args, kwargs = _behind(tool.func, tuple(args), kwargs)
    if filled:
        args, kwargs = _converted(func, bound, args, kwargs)
    known = _parameters_of(func)
    names = known.positional[bound:]
    given = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name not in known.order:
            _check_not_rest(tool, known, name)
            name = _parameter_named(func, name)
        given[name] = value
    found = {name: given.pop(name) for name in known.order if name in given}
    if filled and len(found) < len(known.order):
        left_out = {name: default_of(each) for name, each in known.defaults.items() if name not in found}
        found = {name: (found | left_out)[name] for name in known.order if name in found or name in left_out}
    if len(args) > len(names):
        found[REST] = args[len(names) :]
    if tool.takes_effect:
        found.pop("effect", None)
    return {**found, **given}


def _converted(
    func: Any, bound: bool, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Returns the arguments as `validate_call` of pydantic gives them to the function, if it does not refuse them."""
    conversion = conversion_of(func)
    if conversion is None:
        return args, kwargs
    try:
        args, kwargs = conversion(*(None,) * bound, *map(_copy, args), **{name: _copy(kwargs[name]) for name in kwargs})
    except Exception:  # the code of a validator; the call is refused in the same way
        return args, kwargs
    return args[bound:], kwargs


def _copy(value: Any) -> Any:
    """Returns a copy of a dict or a list, which a validator may change."""
    with suppress(Exception):  # a client in it, or code of the user's
        return deepcopy(value) if isinstance(value, dict | list | set) else value
    return value


def converted_arguments(tool: Tool, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the arguments of a call, as `call_arguments` does, of a function with `validate_call` of pydantic, which converts
    them before it calls the function; {} for another tool.
    """
    converts = tool.plain is None and tool.parameters is None and conversion_of(_behind(tool.func)[0]) is not None
    return call_arguments(tool, args, kwargs) if converts else {}


def check_converted(tool: Tool, args: tuple[Any, ...], kwargs: Mapping[str, Any], names: Collection[str]) -> None:
    """Raises UserError if `validate_call` of pydantic would change arguments that are values of their types already: those of a
    person or a model, who has decided about these values and not about what another conversion makes of them.
    """
    found = converted_arguments(tool, args, kwargs)
    given = call_arguments(tool, args, kwargs, filled=False) if found else {}
    for name in names:
        if name in given and name in found and given[name] != found[name]:
            raise UserError(
                f"{tool.name} is called with {name}={short_repr(given[name])}, and validate_call makes {short_repr(found[name])} of it",
                hint=f"leave validate_call out, or let the function of {tool.name} do what the validator does",
            )


def _check_not_rest(tool: Tool, known: _Parameters, name: str) -> None:
    """Raises UserError for an argument in `**more` that has the name of `*rest` or of `**more` itself: a rule about
    `more.fee` would judge what is within this one, and the tool pay the other fee.
    """
    if name and name in (REST, known.rest, known.more):
        stars = f"**{name}" if name == known.more else f"*{known.rest or 'args'}"
        raise UserError(
            f"tool {tool.name} has {stars}, so no argument can be given by the name {name!r}",
            hint="give each of them by itself, or another name to this one",
        )


def leaves_out(tool: Tool, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Returns True if a call may leave out parameters of a Python function, which then have their defaults."""
    if tool.parameters is not None:
        return False
    func, bound, args, kwargs = _behind(tool.func, args, kwargs)
    known = _parameters_of(func)
    return bool(known.defaults) and bound + len(args) + len(kwargs) + tool.takes_effect < len(known.order)


def all_given(tool: Tool, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the arguments of a call as `call_arguments` does, if the caller gives all parameters of a function without
    aliases, wrappers and `Effect`. Returns None for another call, for which it takes longer. It is asked of each call.
    """
    if tool.plain is None or tool.takes_effect or tool.parameters is not None:
        return None
    (names, places, _), given = tool.plain, len(args)
    if given + len(kwargs) != len(names) or given > places:
        return None
    found = dict(zip(names, args, strict=False))
    for name in names[given:]:
        if name not in kwargs:
            return None
        found[name] = kwargs[name]
    return found


def plain_arguments(tool: Tool, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the arguments of a call as `call_arguments` does, of a function without aliases, wrappers and `*args`; {} if
    the call leaves none out. Returns None for another function, for which it takes longer. It is asked of each call.
    """
    if tool.plain is None:
        return None
    if not tool.plain.has_defaults:
        return {}
    names, places, _ = tool.plain
    given, whole = len(args), len(names) - tool.takes_effect
    if given + len(kwargs) >= whole:
        return {}
    func = cast("FunctionType", tool.func)
    defaults, named = func.__defaults__ or (), func.__kwdefaults__
    if kwargs or named:
        found = dict(zip(names[places - len(defaults) : places], defaults, strict=True))
        found |= named or {}
        found |= dict(zip(names[:places], args, strict=False))
        found |= kwargs
    else:
        found = dict(zip(names, (*args, *defaults[given - places :]), strict=False))
    return found if len(found) == whole and given <= places else None


def values_left_out(
    tool: Tool, args: Sequence[Any], kwargs: Mapping[str, Any], found: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the values of the parameters that the caller of a tool has left out, by name: their defaults, and those
    that a `functools.partial` gives. `found`: the arguments of the call (`call_arguments`), if they are known.
    """
    if all_given(tool, args, kwargs) is not None:
        return {}
    given = call_arguments(tool, args, kwargs, filled=False).keys() - _fixed_names(tool, kwargs)
    found = call_arguments(tool, args, kwargs) if found is None else found
    return {name: each for name, each in found.items() if name not in given}


def _fixed_names(tool: Tool, kwargs: Mapping[str, Any]) -> set[str]:
    """Returns the names of the parameters that a `functools.partial` gives, and not the caller."""
    if tool.parameters is not None or not isinstance(tool.func, partial):
        return set()
    func, bound, fixed, named = _behind(tool.func)
    names = _parameters_of(func).positional[bound:]
    rest = {REST} if len(fixed) > len(names) else set()
    return {*names[: len(fixed)], *rest, *(_parameter_named(func, name) for name in named.keys() - kwargs.keys())}


def _parameter_named(func: Any, alias: str) -> str:
    """Returns the name of the parameter that has this alias; the alias itself if none has it."""
    for name, kind in _types_of(func).items():
        if any(alias in aliases_of(each) for each in get_args(kind) if is_field(each)):
            return name
    return alias


def parameter_of(tool: Tool, alias: str) -> str:
    """Returns the name of the tool's parameter that has this alias; the alias itself if none has it."""
    return alias if tool.parameters is not None else _parameter_named(_behind(tool.func)[0], alias)


def with_arguments(
    tool: Tool, args: tuple[Any, ...], kwargs: Mapping[str, Any], values: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Returns the arguments of a call, positional ones and those by name, in which parameters have other values.

    `values`: by name, the new values of parameters; also of those that the caller has left out. Raises UserError for a
    parameter to which a `functools.partial` gives a value by place.
    """
    if not values:
        return args, kwargs
    if tool.parameters is not None and not args:  # then "*" is the name of a parameter, if it is there
        return args, {**kwargs, **values}
    func, bound, _, _ = _behind(tool.func) if tool.parameters is None else (None, False, (), {})
    known = _UNKNOWN if func is None else _parameters_of(func)
    fixed = 0 if func is None else len(_behind(tool.func)[2])
    names = known.positional[bound + fixed :]
    by_place = known.positional[bound:][:fixed] + ((REST,) if fixed > len(known.positional) - bound else ())
    for name in values:
        if func is not None and name != REST and name not in known.order:
            _check_not_rest(tool, known, name)
    for name in by_place:
        if name in values:
            raise UserError(
                f"{tool.name} gets {name} by its place in a functools.partial, so nobody else can give it",
                hint=f"partial({tool.name}, {name}=…)",
            )
    only = max(0, known.only - (len(known.positional) - len(names)))
    values, given = dict(values), list(args)
    if REST in values:
        given[len(names) :] = values.pop(REST)
    for at, name in enumerate(names[: len(args)]):
        if name in values:
            given[at] = values.pop(name)
    for name in names[len(args) : only]:
        given.append(values.pop(name, default_of(known.defaults.get(name))))
    return tuple(given), {**kwargs, **values}


def argument_values(
    tool: Tool | None, arguments: Mapping[str, Any], path: Sequence[str], *, extremes: bool = False
) -> list[Any]:
    """Returns the values at a path in the arguments of a call, as `values_at` does. `tool`: the tool, whose types say
    which names and defaults the fields of a dict have; None if it is not known.
    """
    if tool is not None and tool.parameters is not None:
        return values_in_json(arguments, path, [tool.parameters.json], tool.parameters.json)
    if tool is None or path[0] == REST:
        return values_at(arguments, path, dict[str, Any], extremes=extremes)
    first, rest = path[0], path[1:]
    if not rest and first in arguments and _has_these_alone(tool, arguments):
        return [arguments[first]]
    func = _behind(tool.func)[0]
    known = _parameters_of(func)
    found = _values_of(func, known, arguments, first, rest, extremes=extremes)
    if known.open:  # **more may have a name that the function takes for this one
        for name in alike(arguments, first):
            if name not in known.order:
                found += values_at(arguments[name], rest, extremes=extremes)
    return found


def _has_these_alone(tool: Tool, arguments: Mapping[str, Any]) -> bool:
    """Returns True if these are the parameters of a function without aliases and wrappers, and `**more` has none beside them."""
    return tool.plain is not None and len(arguments) + tool.takes_effect == len(tool.plain.names)


def _values_of(
    func: Any, known: _Parameters, arguments: Mapping[str, Any], first: str, rest: Sequence[str], *, extremes: bool
) -> list[Any]:
    if not rest and first in arguments:
        return [arguments[first]]
    if first not in arguments:
        first = _parameter_named(func, first)
        if first == known.rest:
            arguments = {first: arguments.get(REST, ())}
        elif first == known.more:
            arguments = {first: {name: arguments[name] for name in arguments if name not in (*known.order, REST)}}
        elif first not in arguments:
            return [MISSING_VALUE]
    return values_at(arguments[first], rest, _type_of(func, first) if rest else Any, extremes=extremes)


def may_hide(tool: Tool | None, arguments: Mapping[str, Any], path: Sequence[str]) -> str:
    """Returns the name of `*args` if an argument without a name of its own may be the one at the path, and else "". The
    function takes `*args, **kwargs` then, as a wrapper does that does not say whose parameters it has.
    """
    if tool is None or tool.parameters is not None or REST not in arguments:
        return ""
    known = _parameters_of(_behind(tool.func)[0])
    named = path[0] in arguments or path[0] in (REST, known.rest, known.more)
    return known.rest if known.open and not named else ""


def lacks(tool: Tool, path: Sequence[str]) -> str:
    """Returns the first part of a path that the arguments of the tool certainly do not have. Returns "" if they may
    have the path.
    """
    if tool.parameters is not None:
        return schema_lacks(tool.parameters.json, path)
    func, bound, _, _ = _behind(tool.func)
    known = _parameters_of(func)
    first = path[0]
    if first == REST:
        return ""
    names = known.order[bound:]
    if first not in names and (first := _parameter_named(func, first)) not in (*names, known.rest, known.more):
        return "" if known.open else path[0]
    return type_lacks(_type_of(func, first), path[1:])


def call_names(tool: Tool, path: Sequence[str]) -> list[str]:
    """Returns the names of the arguments of a tool, or of the fields at a path in them, as far as they are known."""
    if tool.parameters is not None:
        return schema_names(tool.parameters.json, path)
    if not path:
        func, bound, _, _ = _behind(tool.func)
        return [name for name in _parameters_of(func).order[bound:] if not (tool.takes_effect and name == "effect")]
    return [name for each in types_at(tool, path) for name in fields_of(each)]


def types_at(tool: Tool, path: Sequence[str]) -> list[Any]:
    """Returns the types of which a value at a path in the arguments of a tool may be, without None. `Any` is among them
    if the type of the value is not known. The list is empty if there is no such path.
    """
    if tool.parameters is not None:
        return json_types(tool.parameters.json, path)
    func = _behind(tool.func)[0]
    kinds = [_type_of(func, _parameter_named(func, path[0]))]
    for part in path[1:]:
        kinds = [inner for kind in kinds for each in choices_of(kind) for inner in inner_types(each, part)]
    return [each for kind in kinds for each in choices_of(kind)]
