"""Types that only pydantic reads: its dataclasses, its constrained types such as `Annotated[int, Field(ge=1)]`, and unions
with its models. pydantic is imported only where such a type is found.

msgspec ignores what it does not know in `Annotated`, runs no validators of a pydantic dataclass, and reads no union with a
model or with two dataclasses. So `readable` puts a class into the place of such a type, which has the methods of a model
by which `schema` reads it. All values are read by the rules of JSON, so that a strict model takes a date from a text.
"""

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import is_dataclass
from functools import wraps
from types import FunctionType, MethodType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints, is_typeddict
from warnings import catch_warnings, simplefilter
from weakref import WeakKeyDictionary

import msgspec

from sabot.engine.calls.tool_context import EFFECT
from sabot.errors import UserError, message_of, short_repr

_LIBRARIES = ("pydantic", "pydantic_core", "annotated_types")
_BOUNDS = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern")
Conversion = Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]
MISSING_DEFAULT: Any = object()
"""The default of a field that has none."""


def is_field(value: Any) -> bool:
    """Returns True if the value is what `pydantic.Field(…)` returns."""
    return type(value).__module__ == "pydantic.fields" and hasattr(value, "get_default")


def default_of(value: Any) -> Any:
    """Returns the default of a parameter, which pydantic may have in a field. MISSING_DEFAULT if that has none."""
    if not is_field(value):
        return value
    return MISSING_DEFAULT if value.is_required() else value.get_default(call_default_factory=True)


def field_in(kind: Any) -> Any:
    """Returns the field of pydantic in an `Annotated[…]`, or None."""
    return next(filter(is_field, get_args(kind)), None) if get_origin(kind) is Annotated else None


def is_model(kind: Any) -> bool:
    """Returns True for a model of pydantic, and for a class that stands for a type in `readable`."""
    return isinstance(kind, type) and hasattr(kind, "model_json_schema") and hasattr(kind, "model_validate_json")


def conversion_of(func: Any) -> Conversion | None:
    """Returns what `validate_call` makes of the arguments of a function before it calls it: a function that takes the
    arguments, and returns them converted, as a pair of those by place and those by name. None for a function without it.
    """
    raw = getattr(func, "raw_function", None)
    if raw is None or not isinstance(func, FunctionType):
        return None
    known = _conversions.get(func)
    if known is None:
        from pydantic import validate_call

        def given(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, kwargs

        signature = inspect.signature(func)
        taken: Any = wraps(raw)(given)
        # the call gets its Effect later
        taken.__signature__ = signature.replace(
            parameters=[each for each in signature.parameters.values() if each.name != EFFECT]
        )
        known = _conversions[func] = validate_call(config=_config_of(func))(taken)
    return known


def converted_by_name(func: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what `validate_call` makes of arguments that are given by name; {} for a function without it, and if it takes
    them not.
    """
    bound = isinstance(func, MethodType)
    conversion = conversion_of(func.__func__ if bound else func)
    if conversion is None:
        return {}
    try:
        args, kwargs = conversion(*(None,) * bound, **given)
        return inspect.signature(func).bind_partial(*args[bound:], **kwargs).arguments
    except Exception:  # the code of a validator
        return {}


def _config_of(func: Any) -> Any:
    """Returns the config that was given to `validate_call`; None for none."""
    while func is not None:
        for cell in getattr(func, "__closure__", None) or ():
            held = None
            with suppress(ValueError):  # it is empty
                held = cell.cell_contents
            owner = getattr(held, "__self__", None)
            for name in ("config_wrapper", "_config_wrapper"):
                if (found := getattr(getattr(owner, name, None), "config_dict", None)) is not None:
                    return found
        func = getattr(func, "__wrapped__", None)
    return None


_conversions: WeakKeyDictionary[FunctionType, Conversion] = WeakKeyDictionary()


def readable(kind: Any, where: str) -> Any:
    """Returns the type as msgspec can decode it: the type itself, or a class that stands for a type of pydantic. A text in
    `Annotated` becomes a description. `where`: the text with which messages of errors begin. Raises UserError if a part of
    an `Annotated` would be ignored, and for a type that pydantic refuses.
    """
    if type(kind).__name__ == "TypeAliasType" and not get_args(kind):
        kind = kind.__value__
    found = _Parts({}, set())
    _look(kind, found, inside=False)
    told = found.told
    if "unknown" in told:
        raise UserError(
            f"{where} has {short_repr(told['unknown'])} in Annotated, which Sabot does not know",
            hint="pydantic.Field(…) and msgspec.Meta(…) give bounds and descriptions; leave other objects out",
        )
    if "bound" not in told and "model" not in told and ("struct" in told or _msgspec_reads(kind)):
        return _described(kind)
    if "struct" in told:
        return _beside_struct(kind, told, where)
    if "bound" not in told and "own" not in told and _msgspec_reads(kind):
        return kind
    return _stand_in(kind, told, where)


class _Parts(NamedTuple):
    """The parts of a type that decide who reads it.

    - `told`: an example of each kind. "bound": an object of pydantic in `Annotated`. "model": a class of pydantic. "own":
      one of these that msgspec would read in its own way. "struct": a Struct. "meta": a Meta of msgspec. "unknown": another
      object in `Annotated`.
    - `seen`: the classes that were looked into.
    """

    told: dict[str, Any]
    seen: set[Any]


def _look(kind: Any, found: _Parts, *, inside: bool) -> None:
    """Adds what is in a type to `found`. `inside`: True for the type of a field of a class."""
    if type(kind).__name__ == "TypeAliasType":
        kind = kind.__value__
    kind = getattr(kind, "__supertype__", kind)  # of a NewType
    origin = get_origin(kind)
    if origin is Annotated:
        inner, *notes = get_args(kind)
        for note in notes:
            if isinstance(note, msgspec.Meta):
                found.told.setdefault("meta", note)
            elif _is_of_pydantic(note):
                found.told.setdefault("bound", note)
            elif not inside and not isinstance(note, str | None) and not hasattr(note, "documentation"):
                found.told.setdefault("unknown", note)
        _look(inner, found, inside=inside)
    elif origin is not Literal:
        for each in get_args(kind):
            _look(each, found, inside=inside)
    kind = origin if isinstance(origin, type) else kind
    if not isinstance(kind, type) or kind in found.seen:
        return
    found.seen.add(kind)
    if is_model(kind):
        found.told.setdefault("model", kind)
    elif "__pydantic_validator__" in vars(kind) or hasattr(kind, "__get_pydantic_core_schema__"):
        found.told["own"] = found.told["model"] = kind
    elif issubclass(kind, msgspec.Struct) or is_dataclass(kind) or is_typeddict(kind) or hasattr(kind, "_fields"):
        if issubclass(kind, msgspec.Struct):
            found.told.setdefault("struct", kind)
        try:
            hints = get_type_hints(kind, include_extras=True)
        except Exception:  # an annotation is the user's code, and msgspec says what is wrong with it
            hints = {}
        for each in hints.values():
            _look(each, found, inside=True)


def _is_of_pydantic(note: Any) -> bool:
    kind = note if isinstance(note, type) else type(note)
    return kind.__module__.partition(".")[0] in _LIBRARIES or hasattr(note, "__get_pydantic_core_schema__")


def _described(kind: Any) -> Any:
    """Returns a type in which texts and `Doc`s in its `Annotated` are a description of msgspec."""
    if get_origin(kind) is not Annotated:
        return kind
    inner, *notes = get_args(kind)
    metas = [each for each in notes if isinstance(each, msgspec.Meta)]
    texts = [getattr(each, "documentation", each) for each in notes if not isinstance(each, msgspec.Meta | None)]
    for text in texts[:1]:
        metas.insert(0, msgspec.Meta(description=str(text)))
    for meta in metas:
        inner = Annotated[inner, meta]
    return inner


def _msgspec_reads(kind: Any) -> bool:
    try:
        msgspec.json.Decoder(kind, dec_hook=lambda kind, value: value)
    except (TypeError, NotImplementedError):
        return False
    return True


def _beside_struct(kind: Any, told: Mapping[str, Any], where: str) -> Any:
    """Returns a type with Structs in it, which pydantic cannot read. What `Field` says of the whole type is told to
    msgspec.
    """
    struct, field = told["struct"].__name__, field_in(kind)
    if field is not None:
        inner = (
            Annotated[tuple(each for each in get_args(kind) if each is not field)]
            if len(get_args(kind)) > 2
            else get_args(kind)[0]
        )
        bounds = {
            name: value
            for each in field.metadata
            for name in _BOUNDS
            if (value := getattr(each, name, None)) is not None
        }
        meta = msgspec.Meta(**bounds, title=field.title, description=field.description)
        return Annotated[readable(inner, where), meta]
    ignored = told.get("bound", told.get("own"))
    if ignored is not None:
        raise UserError(
            f"{where} has {short_repr(ignored)} of pydantic beside {struct}, a msgspec Struct, which ignores it",
            hint="make the Struct a model of pydantic; or give bounds as Annotated[int, msgspec.Meta(ge=1)]",
        )
    return kind


class _StandIn(type):
    """The class of the classes that stand for types of pydantic. msgspec asks whether a value that pydantic has made is an
    object of such a class.
    """

    def __instancecheck__(cls, instance: Any) -> bool:
        return True


def _stand_in(kind: Any, told: Mapping[str, Any], where: str) -> Any:
    """Returns a class that stands for a type of pydantic. msgspec gives it the value in JSON, and pydantic reads that."""
    outer: list[msgspec.Meta] = []
    if get_origin(kind) is Annotated:
        inner, *notes = get_args(kind)
        outer = [each for each in notes if isinstance(each, msgspec.Meta)]
        rest = [_field_of(each) for each in notes if not isinstance(each, msgspec.Meta)]
        kind = Annotated[(inner, *rest)] if rest else inner
    if "meta" in told and told["meta"] not in outer:
        raise UserError(
            f"{where} has {short_repr(told['meta'])} in a type of pydantic, which ignores it", hint="pydantic.Field(…)"
        )
    try:
        from pydantic import TypeAdapter
    except ImportError:
        if "bound" not in told and "model" not in told:
            return kind
        raise UserError(
            f"{where} has {short_repr(told.get('bound'))}, and pydantic is not installed",
            hint="pip install pydantic; or Annotated[int, msgspec.Meta(ge=1)]",
        ) from None
    try:
        with catch_warnings():  # of an alias, which is the parameter's and not the type's
            simplefilter("ignore")
            adapter: Any = TypeAdapter(kind)
        schema = adapter.json_schema()
    except Exception as error:  # pydantic, and the code of a model
        if "bound" not in told and "own" not in told:
            return kind  # a TypedDict with a model in it, for example, which msgspec reads
        said = message_of(error).splitlines()[0]
        raise UserError(f"{where}: pydantic does not take its type: {said}", hint="a type that JSON has") from error
    methods = {
        "model_json_schema": staticmethod(lambda: deepcopy(schema)),
        "model_validate_json": staticmethod(adapter.validate_json),
    }
    made: Any = _StandIn(getattr(kind, "__name__", "value"), (), methods)
    for meta in outer:
        made = Annotated[made, meta]
    return made


def _field_of(note: Any) -> Any:
    """Returns a text or a `Doc` in `Annotated` as a field with this description; other notes unchanged."""
    text = getattr(note, "documentation", note)
    if not isinstance(text, str):
        return note
    from pydantic import Field

    return Field(description=text)
