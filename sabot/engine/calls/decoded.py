"""What a type adds by itself to a value that is decoded from JSON, such as a new id or the present time. A job decodes the
recorded words of a model in each of its runs, and gets the additions of the first one.

    class Order(Struct):
        item: str
        id: UUID = field(default_factory=uuid4)

    first = decode('{"item": "pen"}')               Order(item="pen", id=UUID("1…"))
    form = form_of(first)                           {"item": "pen", "id": UUID("1…")}, which is recorded
    with_form(decode('{"item": "pen"}'), form)      Order(item="pen", id=UUID("1…")) again
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import NoneType
from typing import Any, Literal, get_args, get_origin
from uuid import UUID

import msgspec

from sabot.engine.calls.fields import fields_of, setter_of

NO_FORM: Any = object()
"""What `form_of` returns for an object that no journal can record, such as a path or a secret."""

_BASES: tuple[Any, ...] = (str, int, float, bytes)
_ATOMS = frozenset({NoneType, bool, *_BASES, Decimal, UUID, date, datetime, time, timedelta})
# as factories, they always make the same
_EMPTY = (list, dict, set, frozenset, tuple, bytearray, *_BASES, bool, Decimal)
_MOST_DEPTH = 100


def adds_values(kind: Any) -> bool:
    """Returns True if two objects of a type that are decoded from one text may differ: because of a `default_factory`, or
    of code of the user that runs when an object is made.
    """
    return _adds(kind, set())


def _adds(kind: Any, seen: set[Any]) -> bool:
    if type(kind).__name__ == "TypeAliasType":
        kind = kind.__value__
    kind = getattr(kind, "__supertype__", kind)  # of a NewType
    origin = get_origin(kind)
    if origin is Literal:
        return False
    if _run_code(getattr(kind, "__metadata__", ())) or any(_adds(each, seen) for each in get_args(kind)):
        return True
    made = origin if isinstance(origin, type) else kind
    if not isinstance(made, type) or made in seen:
        return False
    seen.add(made)
    return _makes_new(made) or any(_adds(field.type, seen) for field in fields_of(made).values())


def _makes_new(kind: type) -> bool:
    if hasattr(kind, "__post_init__") or hasattr(kind, "__attrs_post_init__"):
        return True
    decorators = getattr(kind, "__pydantic_decorators__", None)
    for name in ("validators", "field_validators", "root_validators", "model_validators"):
        if getattr(decorators, name, None):
            return True
    if getattr(kind, "__pydantic_post_init__", None) or getattr(kind, "__private_attributes__", None):
        return True
    for each in _declared_fields(kind):
        factory = getattr(each, "default_factory", None) or getattr(getattr(each, "default", None), "factory", None)
        if callable(factory) and factory not in _EMPTY:
            return True
        if getattr(each, "converter", None) is not None or _run_code(getattr(each, "metadata", ())):
            return True
    return False


def _run_code(notes: Any) -> bool:
    """Returns True if one of these notes of an `Annotated` is a validator of pydantic that runs a function."""
    return not isinstance(notes, Mapping) and any(callable(getattr(each, "func", None)) for each in notes)


def _declared_fields(kind: Any) -> Iterable[Any]:
    of_pydantic = getattr(kind, "__pydantic_fields__", None)
    if isinstance(of_pydantic, Mapping):
        return of_pydantic.values()
    if issubclass(kind, msgspec.Struct):
        return msgspec.structs.fields(kind)
    return fields(kind) if is_dataclass(kind) else getattr(kind, "__attrs_attrs__", ())


def form_of(value: Any, depth: int = 0) -> Any:
    """Returns a decoded value in a form that a journal can record: an object as a dict of its attributes, and a list or a
    tuple as a list of lists, each with the form of one item, or empty if that has none. NO_FORM for other objects.
    """
    kind = type(value)
    if kind in _ATOMS:
        return value
    if depth > _MOST_DEPTH:
        return NO_FORM
    if isinstance(value, Enum):
        return NO_FORM  # a member is the same in each run
    for base in _BASES:
        if isinstance(value, base):
            return base(value)
    if isinstance(value, dict):
        found = {key: form_of(each, depth + 1) for key, each in value.items() if type(key) is str}
        return {key: form for key, form in found.items() if form is not NO_FORM}
    names = _attributes(value)
    if names:
        found = {name: form_of(each, depth + 1) for name in names if (each := _get(value, name)) is not NO_FORM}
        return {name: form for name, form in found.items() if form is not NO_FORM}
    if isinstance(value, list | tuple):
        forms = [form_of(each, depth + 1) for each in value]
        return [[] if form is NO_FORM else [form] for form in forms]
    return NO_FORM


def _attributes(value: Any) -> list[str]:
    """Returns the names of the attributes of an object with fields, also those that are no fields; [] for others."""
    known = fields_of(type(value))
    if not known:
        return []
    private = getattr(value, "__pydantic_private__", None) or ()
    names = [*(field.attribute for field in known.values()), *getattr(value, "__dict__", ()), *private]
    return list(dict.fromkeys(names))


def _get(value: Any, name: str) -> Any:
    found = getattr(value, name, NO_FORM)
    return NO_FORM if found is msgspec.UNSET else found


def with_form(value: Any, form: Any) -> Any:
    """Returns a value that was decoded again, with the parts of the first one that are in `form`. Objects are changed. A
    part that has another type now, because the program was changed, stays as it is.
    """
    if isinstance(form, dict):
        if isinstance(value, dict):
            return value | {key: with_form(value[key], each) for key, each in form.items() if key in value}
        return _with_attributes(value, form)
    if isinstance(form, list):
        if not isinstance(value, list | tuple) or len(form) != len(value):
            plain = [each for one in form for each in one]
            fits = isinstance(value, list) and len(plain) == len(form) and _ATOMS.issuperset(map(type, plain))
            return plain if fits else value
        items = [with_form(old, *one) if one else old for old, one in zip(value, form, strict=True)]
        return items if isinstance(value, list) else tuple(items)
    if type(value) is type(form):
        return form
    if value is None or form is None:
        return form if type(value) in _ATOMS else value
    if not isinstance(value, Enum | bool) and isinstance(value, type(form)) and type(value) not in _ATOMS:
        return type(value)(form)
    return value


def _with_attributes(value: Any, form: dict[str, Any]) -> Any:
    names = _attributes(value)
    old = {name: found for name in names if name in form and (found := _get(value, name)) is not NO_FORM}
    changed = {name: new for name, each in old.items() if (new := with_form(each, form[name])) is not each}
    if not changed:
        return value
    if isinstance(value, tuple):  # a NamedTuple
        return type(value)(*(changed.get(name, getattr(value, name)) for name in fields_of(type(value))))
    private, put = getattr(value, "__pydantic_private__", None) or {}, setter_of(value)
    for name, new in changed.items():
        if name in private:
            private[name] = new
        else:
            put(value, name, new)
    return value
