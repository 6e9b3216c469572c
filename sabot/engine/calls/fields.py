"""The fields of values: by every name that a field has, that of the attribute and its aliases; and what a declared type
says of them. What a class says of its fields is read once.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from copy import deepcopy
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cached_property, lru_cache, partial
from inspect import getattr_static
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    NamedTuple,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)
from unicodedata import normalize
from weakref import WeakKeyDictionary

import msgspec
import pyarrow as pa

from sabot.engine.calls.batches import column_values, has_rows, rows_of
from sabot.errors import UserError, short_repr

MISSING_VALUE: Any = object()
"""The value that `values_at` returns for an item without the path."""

CLOSED_VALUE: Any = object()
"""The value that `values_at` returns in place of what it cannot look into: a text or a number in place of a list or an
object, a list in place of an object, a dict in place of a list, an iterator, which can be read only once, and an object
without attributes, such as a member of an Enum.
"""

LEFT_VALUE: Any = object()
"""The value that `values_at` returns for a field that was left out, if the tool takes a value of its own then that nobody
knows: an optional field of a JSON schema without a default, a key that a TypedDict may leave out, `msgspec.UNSET`.
"""

REST = "*"
"""The name under which arguments without a name of their own are, and the part of a path that stands for every item."""

_ANY = (Any, object)
_PLAIN = (str, int, float, bool, bytes, NoneType)


class ValueField(NamedTuple):
    """A field of a class: its attribute, all names by which values may have it, its type, and a function that returns
    its default (None if it has none).
    """

    attribute: str
    names: tuple[str, ...]
    type: Any
    default: Callable[[], Any] | None


_fields: WeakKeyDictionary[type, Mapping[str, ValueField]] = WeakKeyDictionary()


def fields_of(kind: Any) -> Mapping[str, ValueField]:
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


def _read_fields(kind: Any) -> list[ValueField]:
    of_pydantic = getattr(kind, "__pydantic_fields__", None)
    if isinstance(of_pydantic, Mapping):
        return [
            ValueField(
                name,
                tuple(dict.fromkeys((name, *aliases_of(each)))),
                each.annotation,
                None if each.is_required() else partial(each.get_default, call_default_factory=True),
            )
            for name, each in of_pydantic.items()
        ]
    if issubclass(kind, msgspec.Struct):
        return [
            ValueField(told.name, (told.name, told.encode_name), told.type, _default(told, msgspec.NODEFAULT))
            for told in msgspec.structs.fields(kind)
        ]
    hints = _hints_of(kind)
    if is_dataclass(kind):
        return [
            ValueField(part.name, (part.name,), hints.get(part.name, Any), _default(part, MISSING))
            for part in fields(kind)
        ]
    if is_typeddict(kind) or hasattr(kind, "_fields"):
        given = getattr(kind, "_field_defaults", {})
        return [
            ValueField(name, (name,), of, partial(_same, given[name]) if name in given else None)
            for name, of in hints.items()
        ]
    return [
        ValueField(each.name, (each.name, getattr(each, "alias", None) or each.name), hints.get(each.name, Any), None)
        for each in getattr(kind, "__attrs_attrs__", ())
    ]


def aliases_of(field: Any) -> list[str]:
    """Returns the aliases of a field of pydantic."""
    found: list[Any] = []
    for name in ("alias", "validation_alias", "serialization_alias"):
        said = getattr(field, name, None)
        for each in getattr(said, "choices", (said,)):  # AliasChoices
            path = getattr(each, "path", (each,))  # AliasPath
            found += path if len(path) == 1 else ()
    return [each for each in found if isinstance(each, str)]


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


def beside_fields(value: Any) -> dict[str, Any]:
    """Returns the attributes of an object with fields, or of a subclass of a plain type such as dict, that are none of its
    fields: private attributes of pydantic, and attributes that were set on the object. They reach a tool, and are not
    packed. Values of a `cached_property` are left out.
    """
    kind = type(value)
    if kind in _BASES or isinstance(value, Enum) or not (isinstance(value, _BASES) or fields_of(kind)):
        return {}
    private = getattr(value, "__pydantic_private__", None)
    found = dict(private) if isinstance(private, Mapping) else {}
    known = {each.attribute for each in fields_of(kind).values()}
    for name, each in getattr(value, "__dict__", {}).items():
        if name not in known and not isinstance(getattr_static(kind, name, None), cached_property):
            found[name] = each
    return found


_BASES = (str, int, float, bytes, dict, list, tuple, set, frozenset)


def setter_of(value: Any) -> Callable[[Any, str, Any], None]:
    """Returns the function that sets an attribute of an object, also of a frozen one."""
    return msgspec.structs.force_setattr if isinstance(value, msgspec.Struct) else object.__setattr__


def under_all_names(value: Any, kind: Any = Any) -> Any:
    """Returns a value in which objects with fields are dicts, which have each field under all of its names: that of the
    attribute, and its aliases. `kind`: the declared type of the value. A dict that is given for a model gets the other
    names and the defaults of the model's fields.
    """
    if isinstance(value, Mapping):
        classes = [each for each in choices_of(kind) if fields_of(each)]
        of = {name: field.type for each in classes for field in fields_of(each).values() for name in field.names}
        found = {name: under_all_names(each, of.get(name, item_kind(kind))) for name, each in value.items()}
        for each in classes:
            made = object_of(each, value)
            for field in fields_of(each).values():
                told = [found[name] for name in field.names if name in found][:1]
                inner = msgspec.UNSET if made is None else getattr(made, field.attribute, msgspec.UNSET)
                if inner is msgspec.UNSET:
                    inner = field.default() if field.default is not None and not told else inner
                if inner is not msgspec.UNSET:
                    told.append(under_all_names(inner, field.type))
                if told and told[0] != told[-1]:
                    raise UserError(
                        f"{field.attribute} is {short_repr(told[0])}, and {each.__name__} makes {short_repr(told[-1])} of it",
                        hint=f"give an object of {each.__name__}, which has one value",
                    )
                if told:
                    found = dict.fromkeys(field.names, told[0]) | found
        return found
    if isinstance(value, list | tuple | Set) and not hasattr(value, "_fields"):
        return [under_all_names(each, item_kind(kind)) for each in value]
    known = fields_of(type(value))
    if not known:
        return value
    found = dict(getattr(value, "__pydantic_extra__", None) or {})
    for name, field in known.items():
        inner = getattr(value, field.attribute, msgspec.UNSET)
        if inner is not msgspec.UNSET:
            found[name] = under_all_names(inner, field.type)
    return found


def values_at(value: Any, path: Sequence[str], kind: Any = Any, *, extremes: bool = False) -> list[Any]:
    """Returns the values at a path in a value. A part of the path is a key, an attribute, an alias of one, an index, or
    "*", which stands for every item. So there may be several values. The list contains `MISSING_VALUE` for each item
    that does not have the path, `LEFT_VALUE` if the tool has a value of its own then, and `CLOSED_VALUE` for each that
    cannot be looked into. A None on the path is the value: who gets it takes what he has instead. For example, the path
    ["items", "*", "price"] in {"items": [{"price": 1}, {}, None, "pen"]} gives [1, MISSING_VALUE, None, CLOSED_VALUE].

    `kind`: the declared type of the value. A dict that is given for a model has the aliases and the defaults of the
    model's fields. The rows of a batch, a table or a data frame are items whose fields are the columns; of a column there
    is each value once, with `extremes` only the least and the greatest one, None and NaN.
    """
    if not path or value is None:
        return [value]
    first, rest = path[0], path[1:]
    found: list[tuple[Any, Any]]
    if isinstance(value, Mapping):
        found = _in_mapping(value, first, kind, is_last=not rest)
    elif isinstance(value, list | tuple | Set) and not hasattr(value, "_fields"):
        found = _in_items(value, first, kind)
    elif (first == REST or first.isdecimal()) and (rows := rows_of(value)) is not None:
        return _in_rows(rows, path, extremes)
    elif first == REST and isinstance(value, pa.Array | pa.ChunkedArray):
        found = [(each, Any) for each in column_values(value, extremes=extremes and not rest)]
    else:
        known = fields_of(type(value))
        field = known.get(first)
        inner = getattr(value, first if field is None else field.attribute, MISSING_VALUE)
        if inner is not MISSING_VALUE:
            found = [(LEFT_VALUE if inner is msgspec.UNSET else inner, Any if field is None else field.type)]
        elif isinstance(value, Collection) and not isinstance(value, str | bytes) and not known:
            found = _in_items(value, first, kind)  # a deque, an array, a class with items of its own
        else:
            is_item = first == REST or first.isdecimal()
            # a member of an Enum and an object without attributes stand for a value that was left out
            has_fields = not is_item and (known or (not isinstance(value, Enum) and getattr(value, "__dict__", None)))
            found = [(MISSING_VALUE if has_fields else CLOSED_VALUE, Any)]
        if more := getattr(value, "__pydantic_extra__", None):  # of a model with extra="allow"
            found = [*found, *((more[name], Any) for name in alike(more, first) if name not in known)]
    return [
        each
        for one, of in found
        for each in ([one] if is_no_value(one) else values_at(one, rest, of, extremes=extremes))
    ]


def _in_rows(rows: pa.Table, path: Sequence[str], extremes: bool) -> list[Any]:
    """Returns the values at a path in rows: "*" or the number of a row, and then the name of a column."""
    if path[0] != REST:
        row = rows.slice(int(path[0]), 1).to_pylist()
        return values_at(row[0], path[1:]) if row else [MISSING_VALUE]
    if len(path) == 1:
        return rows.to_pylist()  # type: ignore[no-any-return]
    name, rest = path[1], path[2:]
    columns = rows.column_names
    named = [at for at, each in enumerate(columns) if name in (each, REST)]  # two columns may have one name
    none = [MISSING_VALUE] if not named and len(rows) else []
    named += [at for at, each in enumerate(columns) if each in alike(columns, name)]
    values = (each for at in named for each in column_values(rows.column(at), extremes=extremes and not rest))
    return [*none, *(found for each in values for found in values_at(each, rest))]


def alike(names: Iterable[Any], name: str) -> list[str]:
    """Returns the names that a reader may take for `name`, although they are written otherwise: in upper or lower case, with
    other spaces, hyphens or underscores, or in other characters of Unicode for the same letters. Many programs read the
    keys of JSON so.
    """
    if name == REST or name.isdecimal():
        return []
    plain = _plain_name(name)
    likes = [each for each in names if isinstance(each, str) and each != name and _plain_name(each) == plain]
    return likes if plain else []


@lru_cache(maxsize=4096)
def _plain_name(name: str) -> str:
    folded = normalize("NFKC", name).casefold()
    return "".join(each for each in folded if each.isalnum())


def is_no_value(found: Any) -> bool:
    """Returns True for MISSING_VALUE, LEFT_VALUE and CLOSED_VALUE."""
    return found is MISSING_VALUE or found is LEFT_VALUE or found is CLOSED_VALUE


def _in_items(value: Collection[Any], name: str, kind: Any) -> list[tuple[Any, Any]]:
    """Returns the values that a list or another collection has at a part of a path, with their declared types. A plain
    tuple may be given for a NamedTuple.
    """
    items = list(value)
    if name == REST:
        of_items = item_kind(kind)
        return [(each, of_items) for each in items]
    if name.isdecimal() and not isinstance(value, Set):
        return [(items[int(name)] if int(name) < len(items) else MISSING_VALUE, item_kind(kind))]
    for each in choices_of(kind):
        names = getattr(each, "_fields", ())
        if name in names and names.index(name) < len(items):
            return [(items[names.index(name)], fields_of(each)[name].type)]
    return [(CLOSED_VALUE, Any)]


def _in_mapping(value: Mapping[Any, Any], name: str, kind: Any, *, is_last: bool) -> list[tuple[Any, Any]]:
    """Returns the values that a dict has under a name, with their declared types. `is_last`: True for the last part of a
    path.
    """
    if name == REST or name.isdecimal():
        taken = _takes_mapping(kind)
        if taken is False:  # the tool reads a list: it gets the keys
            return [(CLOSED_VALUE, Any)]
        if name == REST:
            keys = keys_as_items(value) if is_last and taken is None else ()
            of_items = item_kind(kind)
            return [*((each, of_items) for each in value.values()), *((each, Any) for each in keys)]
    found: list[tuple[Any, Any]] = []
    missing: list[tuple[Any, Any]] = []
    keys = _keys_named(value, name)
    for each in choices_of(kind):
        field = fields_of(each).get(name)
        if field is None:
            found += [(value[key], item_kind(each)) for key in keys]
            continue
        # if several names are there, each value is judged, since either may be the one that the tool takes
        named = [value[other] for other in field.names if other in value]
        found += [(one, field.type) for one in named]
        if not named and field.default is not None:
            missing.append((field.default(), field.type))
        elif not named and name in getattr(each, "__optional_keys__", ()) and each.__required_keys__ <= value.keys():
            missing.append((LEFT_VALUE, Any))
    if not found:
        found = [(value[key], Any) for key in keys]
    if not found and isinstance(value, defaultdict) and value.default_factory is not None:
        found = [(value.default_factory(), Any)]  # as the tool gets it
    made = [pair for each in choices_of(kind) if fields_of(each) for pair in _as_read(each, value, name)]
    missing = missing or ([] if made else [(MISSING_VALUE, Any)])
    declared = {other for each in choices_of(kind) for other in fields_of(each)}
    likes = [(value[key], item_kind(kind)) for key in alike(value, name) if key not in declared]
    return [*(found or missing), *likes, *made]


def _as_read(kind: type, value: Mapping[Any, Any], name: str) -> list[tuple[Any, Any]]:
    """Returns the field that an object has which a class makes of a dict, with its type, in a list: validators may change it,
    and an AliasPath take it from anywhere in the dict. [] if the class takes no such dict, or has no such field.
    """
    made, field = object_of(kind, value), fields_of(kind).get(name)
    inner = MISSING_VALUE if made is None else getattr(made, name if field is None else field.attribute, MISSING_VALUE)
    if inner is MISSING_VALUE or inner is msgspec.UNSET or (field is None and callable(inner)):
        return []
    return [(inner, Any if field is None else field.type)]


def object_of(kind: type, value: Mapping[Any, Any]) -> Any:
    """Returns the object that a class with fields makes of a dict, as a tool may do that gets it; None if it takes no such
    dict.
    """
    try:
        given = deepcopy(dict(value))  # validators may change it
        if hasattr(kind, "model_validate"):
            return kind.model_validate(given)
        if (validator := getattr(kind, "__pydantic_validator__", None)) is not None:  # a dataclass of pydantic
            return validator.validate_python(given)
        if issubclass(kind, msgspec.Struct):
            return msgspec.convert(given, kind, strict=False)
        return kind(**given) if is_dataclass(kind) or hasattr(kind, "__attrs_attrs__") else None
    except Exception:  # the code of a class
        return None


def _keys_named(value: Mapping[Any, Any], name: str) -> list[Any]:
    """Returns the keys of a dict that a part of a path names: the text, and keys that are no texts, such as 7 or a member
    of an Enum.
    """
    number = int(name) if name.isdecimal() else None
    found: list[Any] = [name] if name in value else []
    for each in value:
        if isinstance(each, str):
            continue
        names = (each.name, str(each.value)) if isinstance(each, Enum) else (str(each),)
        if name in names or (number is not None and each == number):
            found.append(each)
    return found


def _takes_mapping(kind: Any) -> bool | None:
    """Returns True if a value of this type may be a dict or an object with fields, and False if it certainly is a list or
    another thing of which a tool reads the items. Returns None if that is not known.
    """
    told: set[bool | None] = set()
    for each in choices_of(kind):
        origin = get_origin(each) or each
        if not isinstance(origin, type) or origin in _ANY:
            told.add(None)
        elif issubclass(origin, Mapping) or fields_of(origin):
            return True
        else:
            told.add(False if issubclass(origin, (Iterable, *_PLAIN)) else None)
    return None if None in told else False


def keys_as_items(value: Mapping[Any, Any]) -> list[Any]:
    """Returns the keys of a dict that a tool may take for a list, because it declares no type: reading it, it gets the
    keys. Returns none if these are certainly names: texts that are no numbers, of values that are no texts.
    """
    names = all(isinstance(each, str) and not each.strip().lstrip("+-")[:1].isdecimal() for each in value)
    return [] if names and not any(isinstance(each, str) for each in value.values()) else list(value)


def choices_of(kind: Any) -> list[Any]:
    """Returns the types of which a value of this type may be, without None: the members of a union."""
    if isinstance(kind, type):  # asked for each item of a list, and `get_origin` takes long
        return [kind]
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
        return [each for one in get_args(kind) if one is not NoneType for each in choices_of(one)]
    return [kind]


def item_kind(kind: Any) -> Any:
    """Returns the type of the items of a list or of the values of a dict; Any if it is not known."""
    for each in choices_of(kind):
        given = [one for one in get_args(each) if one is not Ellipsis]
        origin = get_origin(each)
        if given and isinstance(origin, type) and issubclass(origin, Mapping):
            return given[-1]
        if given and isinstance(origin, type) and issubclass(origin, list | tuple | Set | Sequence):
            return given[0] if len(given) == 1 else Union[tuple(given)]  # noqa: UP007  # of a tuple of types
    return Any


def type_lacks(kind: Any, path: Sequence[str]) -> str:
    """Returns the first part of a path that a value of this type certainly does not have; "" if it may have the path."""
    if not path:
        return ""
    wrong = ""
    for each in choices_of(kind):
        wrong = _choice_lacks(each, path)
        if not wrong:
            return ""
    return wrong


def _choice_lacks(kind: Any, path: Sequence[str]) -> str:
    first, rest = path[0], path[1:]
    origin = get_origin(kind) or kind
    if origin in _ANY or not isinstance(origin, type):
        return ""
    known = fields_of(origin)
    if known:
        if first in known:
            return type_lacks(known[first].type, rest) if origin is kind else ""
        config = getattr(origin, "model_config", None)
        extra = isinstance(config, Mapping) and config.get("extra") == "allow"
        unknown = extra or hasattr(origin, first) or ("__getattr__" in dir(origin) and not isinstance(config, Mapping))
        return "" if unknown else first
    if issubclass(origin, Mapping):
        return type_lacks(item_kind(kind), rest)
    if has_rows(origin):
        return "" if first == REST or first.isdecimal() or hasattr(origin, first) else first
    if issubclass(origin, list | tuple | Set) or origin in (Sequence,):
        fits = first == REST or (first.isdecimal() and not issubclass(origin, Set))
        return type_lacks(item_kind(kind), rest) if fits else first
    return first if origin in _PLAIN and not hasattr(origin, first) else ""


def inner_types(kind: Any, part: str) -> list[Any]:
    """Returns the types of which a field or an item of a value of this type may be; none if it has no such part."""
    if _choice_lacks(kind, [part]):
        return []
    field = fields_of(kind).get(part)
    return [item_kind(kind) if field is None else field.type]
