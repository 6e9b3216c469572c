"""The arguments of a tool's call as the tool will get them: by the names of its parameters, with the values of those
that the caller leaves out.

   @tool
   async def refund(order: str, amount: int = 500): ...

   call_arguments(refund, ("o-1",), {})     {"order": "o-1", "amount": 500}

`values_at` finds the values at a path in such arguments, by every name that a field has: that of the attribute, and its
aliases. `lacks` says whether a path certainly leads nowhere, by the types of the parameters or by their JSON schema.
`edited` changes a value as a person wants it who approves a call. What a function or a class says of its parameters and
fields is read once.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import MISSING, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import partial
from types import FunctionType, GenericAlias, MethodType, NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NotRequired,
    Required,
    Union,
    Unpack,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)
from weakref import WeakKeyDictionary

import msgspec

from sabot.errors import UserError, message_of, short_repr
from sabot.llm.pydantic_types import MISSING_DEFAULT, default_of, field_in, is_field
from sabot.llm.schema import Mismatch, converted
from sabot.llm.spec import JsonSchema
from sabot.llm.tools import Tool

MISSING_VALUE: Any = object()
"""The value that `values_at` returns for an item without the path."""

CLOSED_VALUE: Any = object()
"""The value that `values_at` returns in place of what it cannot look into: a text or a number in place of a list or an
object, a list in place of an object, and an iterator, which can be read only once.
"""

REST = "*"
"""The name under which arguments without a name of their own are, and the part of a path that stands for every item."""

_ANY = (Any, object)
_DEEPEST = 60  # levels of a JSON schema whose defaults are filled in


# -- parameters -------------------------------------------------------------------------------------------------------


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
    """Returns what a call of `func` with these arguments calls: the function behind partials and methods, True if its
    first parameter is the object of a method, and all arguments that it gets.
    """
    kwargs = {} if kwargs is None else kwargs
    while isinstance(func, partial | Tool):
        if isinstance(func, partial):
            args, kwargs = (*func.args, *args), {**func.keywords, **kwargs}
        func = func.func
    if isinstance(func, MethodType):
        return func.__func__, True, args, kwargs
    if not isinstance(func, type) and not inspect.isroutine(func) and isinstance(type(func).__call__, FunctionType):
        return type(func).__call__, True, args, kwargs
    return func, False, args, kwargs


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
    have the name "*". The parameter `effect: Effect` is left out, because the caller does not give it.
    """
    if tool.parameters is not None:
        given = {**kwargs, **({REST: tuple(args)} if args else {})}
        return _filled(given, tool.parameters.json, tool.parameters.json, 0) if filled else given
    func, bound, args, kwargs = _behind(tool.func, tuple(args), kwargs)
    known = _parameters_of(func)
    names = known.positional[bound:]
    given = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        given[name if name in known.order else _parameter_named(func, name)] = value
    found = {name: given.pop(name) for name in known.order if name in given}
    if filled and len(found) < len(known.order):
        left_out = {name: default_of(each) for name, each in known.defaults.items() if name not in found}
        found = {name: (found | left_out)[name] for name in known.order if name in found or name in left_out}
    if len(args) > len(names):
        found[REST] = args[len(names) :]
    if tool.takes_effect:
        found.pop("effect", None)
    return {**found, **given}


def defaults_left_out(tool: Tool, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the default values of the parameters that the caller of a tool has left out, by name."""
    given = call_arguments(tool, args, kwargs, filled=False)
    return {name: each for name, each in call_arguments(tool, args, kwargs).items() if name not in given}


def _parameter_named(func: Any, alias: str) -> str:
    """Returns the name of the parameter that has this alias; the alias itself if none has it."""
    for name, kind in _types_of(func).items():
        if any(alias in _aliases(each) for each in get_args(kind) if is_field(each)):
            return name
    return alias


def with_arguments(
    tool: Tool, args: tuple[Any, ...], kwargs: Mapping[str, Any], values: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Returns the arguments of a call, positional ones and those by name, in which parameters have other values.

    `values`: by name, the new values of parameters; also of those that the caller has left out.
    """
    if not values:
        return args, kwargs
    if tool.parameters is not None and not args:  # then "*" is the name of a parameter, if it is there
        return args, {**kwargs, **values}
    func, bound, _, _ = _behind(tool.func) if tool.parameters is None else (None, False, (), {})
    known = _UNKNOWN if func is None else _parameters_of(func)
    names = known.positional[bound + len(_behind(tool.func)[2]) :]
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


# -- fields of values -------------------------------------------------------------------------------------------------


class _Field(NamedTuple):
    """A field of a class: its attribute, all names by which values may have it, its type, and a function that returns
    its default (None if it has none).
    """

    attribute: str
    names: tuple[str, ...]
    type: Any
    default: Callable[[], Any] | None


def _aliases(field: Any) -> list[str]:
    """Returns the aliases of a field of pydantic."""
    found: list[Any] = []
    for name in ("alias", "validation_alias", "serialization_alias"):
        said = getattr(field, name, None)
        for each in getattr(said, "choices", (said,)):  # AliasChoices
            path = getattr(each, "path", (each,))  # AliasPath
            found += path if len(path) == 1 else ()
    return [each for each in found if isinstance(each, str)]


_fields: WeakKeyDictionary[type, Mapping[str, _Field]] = WeakKeyDictionary()


def _fields_of(kind: Any) -> Mapping[str, _Field]:
    """Returns the fields of a class by each of their names; {} for a class without fields that are known."""
    if not isinstance(kind, type):
        return {}
    known = _fields.get(kind)
    if known is None:
        found = _read_fields(kind)
        known = {name: each for each in found for name in each.names}
        known |= {each.attribute: each for each in found}  # an alias may be the attribute of another field
        _fields[kind] = known
    return known


def _read_fields(kind: Any) -> list[_Field]:
    of_pydantic = getattr(kind, "__pydantic_fields__", None)
    if isinstance(of_pydantic, Mapping):
        return [
            _Field(
                name,
                tuple(dict.fromkeys((name, *_aliases(each)))),
                each.annotation,
                None if each.is_required() else partial(each.get_default, call_default_factory=True),
            )
            for name, each in of_pydantic.items()
        ]
    if issubclass(kind, msgspec.Struct):
        return [
            _Field(told.name, (told.name, told.encode_name), told.type, _default(told, msgspec.NODEFAULT))
            for told in msgspec.structs.fields(kind)
        ]
    hints = _hints_of(kind)
    if is_dataclass(kind):
        return [
            _Field(part.name, (part.name,), hints.get(part.name, Any), _default(part, MISSING)) for part in fields(kind)
        ]
    if is_typeddict(kind) or hasattr(kind, "_fields"):
        given = getattr(kind, "_field_defaults", {})
        return [
            _Field(name, (name,), of, partial(_same, given[name]) if name in given else None)
            for name, of in hints.items()
        ]
    return [
        _Field(each.name, (each.name, getattr(each, "alias", None) or each.name), hints.get(each.name, Any), None)
        for each in getattr(kind, "__attrs_attrs__", ())
    ]


def _default(field: Any, none: Any) -> Callable[[], Any] | None:
    if field.default is not none:
        return partial(_same, field.default)
    return None if field.default_factory is none else field.default_factory


def _same(value: Any) -> Any:
    return value


def _hints_of(kind: type) -> Mapping[str, Any]:
    try:
        return get_type_hints(kind, include_extras=True)
    except Exception:  # an annotation is the user's code
        return {}


def under_all_names(value: Any, kind: Any = Any) -> Any:
    """Returns a value in which objects with fields are dicts, which have each field under all of its names: that of the
    attribute, and its aliases. `kind`: the declared type of the value. A dict that is given for a model gets the other
    names and the defaults of the model's fields.
    """
    if isinstance(value, Mapping):
        declared = [field for each in _choices(kind) for field in _fields_of(each).values()]
        of = {name: field.type for field in declared for name in field.names}
        found = {name: under_all_names(each, of.get(name, _item_kind(kind))) for name, each in value.items()}
        for field in declared:
            present = next((name for name in field.names if name in found), None)
            if present is not None or field.default is not None:
                told = found[present] if present is not None else under_all_names(field.default(), field.type)  # type: ignore[misc]
                found = dict.fromkeys(field.names, told) | found
        return found
    if isinstance(value, list | tuple | Set) and not hasattr(value, "_fields"):
        return [under_all_names(each, _item_kind(kind)) for each in value]
    known = _fields_of(type(value))
    if not known:
        return value
    found = dict(getattr(value, "__pydantic_extra__", None) or {})
    for name, field in known.items():
        inner = getattr(value, field.attribute, msgspec.UNSET)
        if inner is not msgspec.UNSET:
            found[name] = under_all_names(inner, field.type)
    return found


def argument_values(tool: Tool | None, arguments: Mapping[str, Any], path: Sequence[str]) -> list[Any]:
    """Returns the values at a path in the arguments of a call, as `values_at` does. `tool`: the tool, whose types say
    which names and defaults the fields of a dict have; None if it is not known.
    """
    if tool is not None and tool.parameters is not None:
        return _values_in_json(arguments, path, [tool.parameters.json], tool.parameters.json)
    if tool is None or path[0] == REST:
        return values_at(arguments, path)
    first, rest, func = path[0], path[1:], _behind(tool.func)[0]
    if first not in arguments:
        known, first = _parameters_of(func), _parameter_named(func, first)
        if first == known.rest:
            arguments = {first: arguments.get(REST, ())}
        elif first == known.more:
            arguments = {first: {name: arguments[name] for name in arguments if name not in (*known.order, REST)}}
        elif first not in arguments:
            return [MISSING_VALUE]
    return values_at(arguments[first], rest, _type_of(func, first) if rest else Any)


def values_at(value: Any, path: Sequence[str], kind: Any = Any) -> list[Any]:
    """Returns the values at a path in a value. A part of the path is a key, an attribute, an alias of one, an index, or
    "*", which stands for every item. So there may be several values. The list contains `MISSING_VALUE` for each item
    that does not have the path, and `CLOSED_VALUE` for each that cannot be looked into. For example, the path ["items",
    "*", "price"] in {"items": [{"price": 1}, {}, "pen"]} gives [1, MISSING_VALUE, CLOSED_VALUE].

    `kind`: the declared type of the value. A dict that is given for a model has the aliases and the defaults of the
    model's fields.
    """
    if not path:
        return [value]
    first, rest = path[0], path[1:]
    found: list[tuple[Any, Any]]
    if isinstance(value, Mapping):
        found = _in_mapping(value, first, kind)
    elif isinstance(value, list | tuple | Set) and not hasattr(value, "_fields"):
        found = _in_items(value, first, kind)
    else:
        known = _fields_of(type(value))
        field = known.get(first)
        inner = getattr(value, first if field is None else field.attribute, MISSING_VALUE)
        if inner is not MISSING_VALUE:
            found = [(MISSING_VALUE if inner is msgspec.UNSET else inner, Any if field is None else field.type)]
        elif isinstance(value, Collection) and not isinstance(value, str | bytes) and not known:
            found = _in_items(value, first, kind)  # a deque, an array, a class with items of its own
        else:
            has_fields = value is None or (first != REST and (known or hasattr(value, "__dict__")))
            found = [(MISSING_VALUE if has_fields else CLOSED_VALUE, Any)]
    return [each for one, of in found for each in ([one] if _is_no_value(one) else values_at(one, rest, of))]


def _is_no_value(found: Any) -> bool:
    return found is MISSING_VALUE or found is CLOSED_VALUE


def _in_items(value: Collection[Any], name: str, kind: Any) -> list[tuple[Any, Any]]:
    """Returns the values that a list or another collection has at a part of a path, with their declared types. A plain
    tuple may be given for a NamedTuple.
    """
    items = list(value)
    if name == REST:
        return [(each, _item_kind(kind)) for each in items]
    if name.isdecimal() and not isinstance(value, Set):
        return [(items[int(name)] if int(name) < len(items) else MISSING_VALUE, _item_kind(kind))]
    for each in _choices(kind):
        names = getattr(each, "_fields", ())
        if name in names and names.index(name) < len(items):
            return [(items[names.index(name)], _fields_of(each)[name].type)]
    return [(CLOSED_VALUE, Any)]


def _in_mapping(value: Mapping[Any, Any], name: str, kind: Any) -> list[tuple[Any, Any]]:
    """Returns the values that a dict has under a name, with their declared types."""
    if name == REST:
        return [(each, _item_kind(kind)) for each in value.values()]
    found: list[tuple[Any, Any]] = []
    missing: list[tuple[Any, Any]] = []
    for each in _choices(kind):
        field = _fields_of(each).get(name)
        if field is None:
            found += [(value[name], _item_kind(each))] if name in value else []
            continue
        # if several names are there, each value is judged, since either may be the one that the tool takes
        named = [value[other] for other in field.names if other in value]
        found += [(one, field.type) for one in named]
        if not named and field.default is not None:
            missing.append((field.default(), field.type))
    if not found and name in value:
        found = [(value[name], Any)]
    return found or missing or [(MISSING_VALUE, Any)]


# -- declared types ---------------------------------------------------------------------------------------------------


def _choices(kind: Any) -> list[Any]:
    """Returns the types of which a value of this type may be, without None: the members of a union."""
    while True:
        if type(kind).__name__ == "TypeAliasType":  # `type Money = …`, in later versions of Python
            kind = kind.__value__
        elif hasattr(kind, "__supertype__"):  # NewType
            kind = kind.__supertype__
        elif get_origin(kind) in (Annotated, Required, NotRequired):
            kind = get_args(kind)[0]
        else:
            break
    if get_origin(kind) in (Union, UnionType):
        return [each for one in get_args(kind) if one is not NoneType for each in _choices(one)]
    return [kind]


def _item_kind(kind: Any) -> Any:
    """Returns the type of the items of a list or of the values of a dict; Any if it is not known."""
    for each in _choices(kind):
        given = [one for one in get_args(each) if one is not Ellipsis]
        origin = get_origin(each)
        if given and isinstance(origin, type) and issubclass(origin, Mapping):
            return given[-1]
        if given and isinstance(origin, type) and issubclass(origin, list | tuple | Set | Sequence):
            return given[0] if len(given) == 1 else Union[tuple(given)]  # noqa: UP007  # of a tuple of types
    return Any


def lacks(tool: Tool, path: Sequence[str]) -> str:
    """Returns the first part of a path that the arguments of the tool certainly do not have. Returns "" if they may
    have the path.
    """
    if tool.parameters is not None:
        return _schema_lacks(tool.parameters.json, tool.parameters.json, path, 0)
    func, bound, _, _ = _behind(tool.func)
    known = _parameters_of(func)
    first = path[0]
    if first == REST:
        return ""
    names = known.order[bound:]
    if first not in names and (first := _parameter_named(func, first)) not in (*names, known.rest, known.more):
        return "" if known.open else path[0]
    return _type_lacks(_type_of(func, first), path[1:])


def call_names(tool: Tool, path: Sequence[str]) -> list[str]:
    """Returns the names of the arguments of a tool, or of the fields at a path in them, as far as they are known."""
    if tool.parameters is not None:
        schemas: list[Any] = [tool.parameters.json]
        for part in path:
            schemas = [
                each.get("properties", {}).get(part, each.get("items"))
                for schema in schemas
                for each in _resolved(schema, tool.parameters.json, 0) or ()
            ]
        found = [each for schema in schemas for each in _resolved(schema, tool.parameters.json, 0) or ()]
        return [name for each in found for name in each.get("properties", ())]
    if not path:
        func, bound, _, _ = _behind(tool.func)
        return [name for name in _parameters_of(func).order[bound:] if not (tool.takes_effect and name == "effect")]
    return [name for each in types_at(tool, path) for name in _fields_of(each)]


def types_at(tool: Tool, path: Sequence[str]) -> list[Any]:
    """Returns the types of which a value at a path in the arguments of a tool may be, without None. `Any` is among them
    if the type of the value is not known. The list is empty if there is no such path.
    """
    if tool.parameters is not None:
        return _json_types(tool.parameters.json, tool.parameters.json, path, 0)
    func = _behind(tool.func)[0]
    kinds = [_type_of(func, _parameter_named(func, path[0]))]
    for part in path[1:]:
        kinds = [inner for kind in kinds for each in _choices(kind) for inner in _inner_types(each, part)]
    return [each for kind in kinds for each in _choices(kind)]


def _inner_types(kind: Any, part: str) -> list[Any]:
    if _choice_lacks(kind, [part]):
        return []
    field = _fields_of(kind).get(part)
    return [_item_kind(kind) if field is None else field.type]


def _type_lacks(kind: Any, path: Sequence[str]) -> str:
    if not path:
        return ""
    wrong = ""
    for each in _choices(kind):
        wrong = _choice_lacks(each, path)
        if not wrong:
            return ""
    return wrong


def _choice_lacks(kind: Any, path: Sequence[str]) -> str:
    first, rest = path[0], path[1:]
    origin = get_origin(kind) or kind
    if origin in _ANY or not isinstance(origin, type):
        return ""
    known = _fields_of(origin)
    if known:
        if first in known:
            return _type_lacks(known[first].type, rest) if origin is kind else ""
        config = getattr(origin, "model_config", None)
        extra = isinstance(config, Mapping) and config.get("extra") == "allow"
        unknown = extra or hasattr(origin, first) or ("__getattr__" in dir(origin) and not isinstance(config, Mapping))
        return "" if unknown else first
    if issubclass(origin, Mapping):
        return _type_lacks(_item_kind(kind), rest)
    if issubclass(origin, list | tuple | Set) or origin in (Sequence,):
        fits = first == REST or (first.isdecimal() and not issubclass(origin, Set))
        return _type_lacks(_item_kind(kind), rest) if fits else first
    return first if origin in _PLAIN and not hasattr(origin, first) else ""


_PLAIN = (str, int, float, bool, bytes, NoneType)


# -- JSON schemas -----------------------------------------------------------------------------------------------------


def _resolved(schema: Any, root: JsonSchema, depth: int) -> list[JsonSchema] | None:
    """Returns the schemas of which one describes a value: the choices of `anyOf` and `oneOf`, without null. Returns
    None if the schema is written in another way.
    """
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return None
    if "allOf" in schema:  # with one part, as pydantic 1 writes it, it is another name for the part
        parts = schema["allOf"]
        alone = isinstance(parts, list) and len(parts) == 1 and "properties" not in schema
        return _resolved(parts[0], root, depth + 1) if alone else None
    if "$ref" in schema:
        return _resolved(_referred(schema["$ref"], root), root, depth + 1)
    choices = schema.get("anyOf", schema.get("oneOf"))
    if choices is None:
        return [] if schema.get("type") == "null" else [schema]
    every: list[JsonSchema] = []
    for each in choices if isinstance(choices, list) else ():
        inner = _resolved(each, root, depth + 1)
        if inner is None:
            return None
        every += inner
    return every


def _referred(name: Any, root: JsonSchema) -> Any:
    """Returns the part of a schema that `$ref` names; None if there is none."""
    found: Any = root
    for part in str(name).removeprefix("#").strip("/").split("/"):
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found


def _filled(value: Any, schema: Any, root: JsonSchema, depth: int) -> Any:
    """Returns a copy of a JSON value, with the defaults of the fields that it leaves out."""
    choices = _resolved(schema, root, depth)
    if not choices or depth > _DEEPEST:
        return value
    if isinstance(value, list):
        items = choices[0].get("items") if len(choices) == 1 else None
        return value if items is None else [_filled(each, items, root, depth + 1) for each in value]
    if not isinstance(value, dict):
        return value
    objects = [each for each in choices if isinstance(each.get("properties"), dict)]
    if len(objects) != 1:  # it is not known which of several it is
        return value
    found = dict(value)
    for name, each in objects[0]["properties"].items():
        if name in found:
            found[name] = _filled(found[name], each, root, depth + 1)
        elif isinstance(each, dict) and each.get("default") is not None:
            found[name] = _filled(each["default"], each, root, depth + 1)
    return found


def _values_in_json(value: Any, path: Sequence[str], schemas: Sequence[Any], root: JsonSchema) -> list[Any]:
    """Returns the values at a path in a JSON value, as `values_at` does. `schemas`: those that may describe the value. A
    field that the value leaves out has the defaults of all these schemas, because each of them may be the one that holds.
    """
    if not path:
        return [value]
    first, rest = path[0], path[1:]
    objects = [each for schema in schemas for each in _parts(schema, root, 0)]
    declared = [each["properties"] for each in objects if isinstance(each.get("properties"), dict)]
    found: list[tuple[Any, list[Any]]]
    if isinstance(value, Mapping):
        others = [each.get("additionalProperties") for each in objects]
        of = {name: [*(each.get(name) for each in declared), *others] for name in (value if first == REST else [first])}
        found = [(value[name], of[name]) for name in of if name in value]
        if first != REST and first not in value:
            found = [
                (each["default"], of[first])
                for schema in of[first]
                for each in _parts(schema, root, 0)
                if "default" in each
            ] or [(MISSING_VALUE, [])]
    elif isinstance(value, list | tuple) and (first == REST or (first.isdecimal() and int(first) < len(value))):
        items = [each.get("items") for each in objects]
        found = [(each, items) for each in (value if first == REST else [value[int(first)]])]
    else:
        missing = value is None or (isinstance(value, list | tuple) and first.isdecimal())
        found = [(MISSING_VALUE if missing else CLOSED_VALUE, [])]
    return [
        each
        for one, of_it in found
        for each in ([one] if _is_no_value(one) else _values_in_json(one, rest, of_it, root))
    ]


def _parts(schema: Any, root: JsonSchema, depth: int) -> list[JsonSchema]:
    """Returns a schema, the schema that it refers to, its choices and its parts, as one list."""
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return []
    inner = [each for word in ("anyOf", "oneOf", "allOf") for each in schema.get(word) or ()]
    if "$ref" in schema:
        inner.append(_referred(schema["$ref"], root))
    return [schema, *(part for each in inner for part in _parts(each, root, depth + 1))]


def _schema_lacks(schema: Any, root: JsonSchema, path: Sequence[str], depth: int) -> str:
    choices = _resolved(schema, root, depth)
    if not path or not choices or depth > _DEEPEST:
        return ""
    first, rest, wrong = path[0], path[1:], ""
    for each in choices:
        properties, kind = each.get("properties"), each.get("type")
        if isinstance(properties, dict) and first in properties:
            wrong = _schema_lacks(properties[first], root, rest, depth + 1)
        elif kind == "array" and (first == REST or first.isdecimal()):
            wrong = _schema_lacks(each.get("items"), root, rest, depth + 1)
        elif isinstance(properties, dict) and properties and first != REST and "patternProperties" not in each:
            wrong = "" if each.get("additionalProperties") not in (None, False) else first
        else:
            wrong = first if kind in ("string", "integer", "number", "boolean", "array") else ""
        if not wrong:
            return ""
    return wrong


_JSON_TYPES: Mapping[Any, Any] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": NoneType,
}


def _json_types(schema: Any, root: JsonSchema, path: Sequence[str], depth: int) -> list[Any]:
    choices = _resolved(schema, root, depth)
    if choices is None or depth > _DEEPEST:
        return [Any]
    found: list[Any] = []
    for each in choices:
        if path and not _schema_lacks(each, root, path[:1], depth):
            inner = (each.get("properties") or {}).get(path[0])
            inner = inner or each.get("items" if each.get("type") == "array" else "additionalProperties")
            found += _json_types(inner, root, path[1:], depth + 1)
        elif not path and (values := [each["const"]] if "const" in each else each.get("enum")):
            found.append(Literal[tuple(values)])
        elif not path:
            kinds = each.get("type")
            of = [_JSON_TYPES.get(kind, Any) for kind in (kinds if isinstance(kinds, list) else [kinds])]
            found += [kind for kind in of if kind is not NoneType]
    return found


# -- changes ----------------------------------------------------------------------------------------------------------


def edited_arguments(
    tool: Tool, args: tuple[Any, ...], kwargs: Mapping[str, Any], edit: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Returns the arguments of a call, changed as a person wants them who approves it (`edited`). `edit`: the changes by
    the names of parameters, decoded from JSON. Raises UserError if the tool does not take them.
    """
    found, types = call_arguments(tool, args, kwargs), types_of(tool)
    values: dict[str, Any] = {}
    for alias, each in edit.items():
        name = alias if tool.parameters is not None else _parameter_named(_behind(tool.func)[0], alias)
        if alias == REST or lacks(tool, [name]):
            near = get_close_matches(alias, found, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its arguments are {', '.join(found)}"
            raise UserError(f"{tool.name} has no argument {short_repr(alias)}", hint=hint)
        values[name] = edited(found.get(name, MISSING_VALUE), each, types.get(name, Any), name)
    args, kwargs = with_arguments(tool, args, kwargs, values)
    if tool.parameters is not None:
        try:
            tool.parameters.decode(msgspec.json.encode(kwargs).decode())
        except (Mismatch, TypeError) as error:
            raise UserError(f"{tool.name} does not take these arguments: {message_of(error)}") from error
    return args, kwargs


def recorded_arguments(
    tool: Tool, args: tuple[Any, ...], kwargs: Mapping[str, Any], recorded: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Returns the arguments of a call in which parameters that the caller leaves out have their recorded values, if
    their defaults are others by now. The caller has to give the same arguments as when they were recorded.

    `recorded`: the values of all parameters, as a journal has recorded them when the call was judged. Raises UserError
    if the tool has no such parameter any more, or its type does not take the value.
    """
    if tool.parameters is not None:  # another process has the defaults, also those of fields within arguments
        return args, recorded
    given = call_arguments(tool, args, kwargs, filled=False)
    kept = {name: value for name, value in recorded.items() if name not in given}
    if not kept:
        return args, kwargs
    types, defaults = types_of(tool), defaults_left_out(tool, args, kwargs)
    values: dict[str, Any] = {}
    for name, value in kept.items():
        if lacks(tool, [name]):
            raise UserError(
                f"it was judged with {name}={short_repr(value)}, and {tool.name} has no argument {name} now"
            )
        made = edited(MISSING_VALUE, value, types.get(name, Any), f"argument {name} of {tool.name}")
        if name not in defaults or not _equal(defaults[name], made):
            values[name] = made
    return with_arguments(tool, args, kwargs, values)


def _equal(value: Any, other: Any) -> bool:
    try:
        return bool(value == other) and type(value) is type(other)
    except Exception:  # a comparison of the user's code
        return False


def whole(value: Any) -> Any:
    """Returns a copy of a value in which Structs that leave out defaults when they are encoded are dicts with all
    fields. Returns the value itself if it has none.
    """
    if isinstance(value, msgspec.Struct):
        found = {each.encode_name: whole(getattr(value, each.name)) for each in msgspec.structs.fields(value)}
        config = value.__struct_config__
        if not config.omit_defaults:
            inner = {name: getattr(value, name) for name in value.__struct_fields__}
            if all(new is old for new, old in zip(found.values(), inner.values(), strict=True)):
                return value
        return ({config.tag_field: config.tag} if config.tag_field else {}) | found
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        made = [whole(each) for each in value]
        return value if all(new is old for new, old in zip(made, value, strict=True)) else made
    if isinstance(value, dict):
        changed = {key: new for key, each in value.items() if (new := whole(each)) is not each}
        return {**value, **changed} if changed else value
    return value


def edited(value: Any, edit: Any, kind: Any, where: str) -> Any:
    """Returns a copy of an argument, changed as a person wants it: the fields that an object names are changed, and
    everything else is replaced. The new values are converted into the declared types.

    - `edit`: the change, decoded from JSON. `kind`: the declared type of the value; Any if it is not known.
    - `where`: the path of the value, for messages.

    Raises UserError if a field does not exist, or a value does not fit.
    """
    known = _fields_of(type(value))
    if not isinstance(edit, Mapping) or not (known or isinstance(value, Mapping)):
        return _converted(edit, kind, where)
    if not known:
        return _edited_mapping(value, edit, kind, where)
    changes: dict[str, Any] = {}
    for name, each in edit.items():
        field = known.get(name)
        if field is None:
            raise UserError(f"{where} has no field {short_repr(name)}", hint=f"its fields are {', '.join(known)}")
        inner = getattr(value, field.attribute, MISSING_VALUE)
        changes[field.attribute] = edited(inner, each, field.type, f"{where}.{name}")
    try:
        if hasattr(value, "model_validate"):
            return type(value).model_validate(_by_names_to_read(value, changes))
        if isinstance(value, msgspec.Struct):
            return msgspec.structs.replace(value, **changes)
        if isinstance(value, tuple):
            return type(value)(**{name: getattr(value, name) for name in known} | changes)
        return replace(value, **changes)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} cannot be changed: {message_of(error)}") from error


def _by_names_to_read(model: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a pydantic model with some changes, by the names from which the model is validated."""
    found: dict[str, Any] = dict(getattr(model, "__pydantic_extra__", None) or {})
    for name, field in type(model).__pydantic_fields__.items():
        said = field.validation_alias or field.alias
        first = next(iter(getattr(said, "choices", (said,))), None)  # AliasChoices
        value = changes[name] if name in changes else getattr(model, name)
        found[first if isinstance(first, str) else name] = value
    return found


def _edited_mapping(value: Mapping[Any, Any], edit: Mapping[Any, Any], kind: Any, where: str) -> dict[Any, Any]:
    found = dict(value)
    known = {name for one in _choices(kind) for name in _fields_of(one)}
    for name, each in edit.items():
        if known and name not in known and name not in found:
            raise UserError(
                f"{where} has no field {short_repr(name)}", hint=f"its fields are {', '.join(sorted(known))}"
            )
        declared = [field for one in _choices(kind) if (field := _fields_of(one).get(name)) is not None]
        names = declared[0].names if declared else (name,)
        present = next((other for other in names if other in found), name)
        of = declared[0].type if declared else _item_kind(kind)
        found[present] = edited(found.get(present, MISSING_VALUE), each, of, f"{where}.{name}")
    return found


def _converted(value: Any, kind: Any, where: str) -> Any:
    try:
        return converted(value, kind)
    except ValueError as error:
        raise UserError(f"{where} does not take {short_repr(value)}: {error}") from error
