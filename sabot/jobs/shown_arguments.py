"""The arguments of a call as a question shows them to a person, and as an approved call is made with them: all of them by
name, with all fields of the objects in them.

   class Order(pydantic.BaseModel):
       id: str
       fee: int = pydantic.Field(500, exclude=True)

   refund(Order(id="o-1"))    packed as usual: [[{"id": "o-1"}], {}]    as it is shown: [[], {"order": {"id": "o-1", "fee": 500}}]

An object may hide fields where it is encoded: by `exclude=True`, a serializer or a base class as the declared type (pydantic),
`omit_defaults=True` (Structs), a name that begins with "_" (attrs). The tool gets them all the same.
"""

from collections import UserString, deque
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

import msgspec

from sabot.base.arrays import dumped_model
from sabot.base.redaction import HIDDEN
from sabot.engine.calls.fields import MISSING_VALUE, REST, beside_fields, fields_of
from sabot.errors import UserError, short_repr
from sabot.jobs.values import UNCHANGEABLE, pack, unpack


def packed_by_name(arguments: Mapping[str, Any], what: str) -> bytes:
    """Returns the arguments of a call, packed by the names of its parameters and with all of their fields. Those without a
    name are under `REST`. Leaves out fields that cannot be recorded, such as a client. `what`: their name in messages.
    """
    try:
        return _packed(whole(arguments), what)
    except UserError:
        return _packed(whole(arguments, recordable=True), what)


def _packed(shown: Mapping[str, Any], what: str) -> bytes:
    named = {name: each for name, each in shown.items() if name != REST}
    return pack([shown.get(REST, ()), named], what, sort=True)


def shown_form(value: Any) -> Any:
    """Returns an argument as `packed_by_name` records it, decoded again. Raises UserError if it cannot be recorded."""
    try:
        return unpack(pack(whole(value), "an argument", sort=True))
    except UserError:
        return unpack(pack(whole(value, recordable=True), "an argument", sort=True))


def whole(value: Any, *, recordable: bool = False) -> Any:
    """Returns a copy of a value in which objects that may hide fields are dicts with all of them. Returns the value itself
    if it has no such objects. `recordable`: True to leave out fields that `pack` refuses.
    """
    if isinstance(value, Mapping):
        if UNCHANGEABLE.issuperset(map(type, value.values())):  # as those of most calls
            return value
        changed = {key: new for key, each in value.items() if (new := whole(each, recordable=recordable)) is not each}
        return {**value, **changed} if changed else value
    if isinstance(value, list | tuple | deque | set | frozenset):
        made = [whole(each, recordable=recordable) for each in value]
        if all(new is old for new, old in zip(made, value, strict=True)):
            return value
        is_set = isinstance(value, set | frozenset)
        return sorted(made, key=lambda each: pack(each, "an argument", sort=True)) if is_set else made
    if _is_root(value):
        return whole(value.root, recordable=recordable)
    parts, hides = _parts_of(value)
    if parts is None:
        return value
    found = {name: whole(each, recordable=recordable) for name, each in parts.items()}
    if recordable:
        dumped = dumped_model(value, "json")
        told = dumped if isinstance(dumped, dict) else {}
        found = {name: each if _packs(each) else told.get(name, MISSING_VALUE) for name, each in found.items()}
        found = {name: each for name, each in found.items() if each is not MISSING_VALUE}
    return found if hides or recordable or any(found[name] is not parts[name] for name in parts) else value


def _parts_of(value: Any) -> tuple[dict[str, Any] | None, bool]:
    """Returns the fields of an object by the names under which they are shown, and True if it hides some of them where it is
    encoded. Returns None for a value without fields.
    """
    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        found = {each.encode_name: getattr(value, each.name) for each in msgspec.structs.fields(value)}
        found = {name: each for name, each in found.items() if each is not msgspec.UNSET}
        return ({config.tag_field: config.tag} if config.tag_field else {}) | found, config.omit_defaults
    if is_dataclass(value) and not isinstance(value, type):
        names = [each.name for each in fields(value) if hasattr(value, each.name)]
        # msgspec decodes a field into no attribute of the object if it has the default of the class
        hides = hasattr(value, "__dict__") and not vars(value).keys() >= set(names)
        return {name: getattr(value, name) for name in names}, hides
    kind = type(value)
    if isinstance(of_model := getattr(kind, "__pydantic_fields__", None), Mapping):
        computed = getattr(kind, "__pydantic_computed_fields__", {})
        extra = getattr(value, "__pydantic_extra__", None) or {}
        return {name: getattr(value, name) for name in (*of_model, *extra, *computed) if hasattr(value, name)}, True
    if attributes := getattr(kind, "__attrs_attrs__", ()):
        names = [each.name for each in attributes if hasattr(value, each.name)]
        return {name: getattr(value, name) for name in names}, any(name.startswith("_") for name in names)
    return None, False


def unseen(value: Any, path: str = "", within: frozenset[int] = frozenset()) -> list[str]:
    """Returns the paths of the attributes in arguments that are no fields (`beside_fields`): they reach the tool, and are
    neither shown nor recorded. `path`: the path of the value. `within`: the ids of the objects around it.
    """
    if id(value) in within:
        return []
    at, within = f"{path}." if path else "", within | {id(value)}
    found = [f"{at}{name}" for name in beside_fields(value)]
    inner: Mapping[Any, Any] = {}
    if isinstance(value, Mapping):
        inner = value
    elif isinstance(value, list | tuple | deque) and not hasattr(value, "_fields"):
        inner = dict(enumerate(value))
    elif known := fields_of(type(value)):
        inner = {each.attribute: getattr(value, each.attribute, None) for each in known.values()}
    return found + [each for name, part in inner.items() for each in unseen(part, f"{at}{name}", within)]


def hidden_in(value: Any, shown: Any, path: str = "") -> list[str]:
    """Returns the paths of the texts in an argument that a rule hides, or their type, as that of a secret: the shown form has
    `***`, and the value has another text there. `path`: the path of the value. Lists have the path of all of their items.
    """
    if _is_root(value):
        value = value.root
    if isinstance(shown, Mapping):
        parts = _own_parts(value)
        found = [path for name in shown if HIDDEN in str(name) and name not in parts]
        at = f"{path}." if path else ""
        return found + [
            each
            for name, inner in shown.items()
            for each in hidden_in(parts.get(name, MISSING_VALUE), inner, f"{at}{name}")
        ]
    if isinstance(shown, list | tuple):
        if isinstance(value, set | frozenset):  # their order is another one
            return [path] if any(hidden_in(MISSING_VALUE, each) and each not in value for each in shown) else []
        items = [*value] if isinstance(value, list | tuple | deque) else []
        items += [MISSING_VALUE] * (len(shown) - len(items))
        return [path] if any(map(hidden_in, items, shown)) else []
    if isinstance(value, Enum):
        value = value.value
    own = str(value) if isinstance(value, UserString | PurePath) else value
    starred = HIDDEN in shown if isinstance(shown, str) else isinstance(shown, bytes) and HIDDEN.encode() in shown
    return [path] if starred and not (isinstance(own, str | bytes) and own == shown) else []


def holds_mask(value: Any, within: frozenset[int] = frozenset()) -> bool:
    """Returns True if a secret in a value is the mask under which it is shown: it was made of a recorded form. `within`: the
    ids of the objects around it.
    """
    if id(value) in within:
        return False
    within |= {id(value)}
    if _is_root(value):
        value = value.root
    if hasattr(type(value), "get_secret_value"):
        kept = value.get_secret_value()
        return (kept.decode(errors="replace") if isinstance(kept, bytes) else kept) == str(value) != ""
    if isinstance(value, list | tuple | deque | set | frozenset):
        return any(holds_mask(each, within) for each in value)
    return any(holds_mask(each, within) for each in _own_parts(value).values())


def _own_parts(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    return {name: getattr(value, each.attribute, MISSING_VALUE) for name, each in fields_of(type(value)).items()}


def _is_root(value: Any) -> bool:
    return getattr(type(value), "__pydantic_root_model__", False) is True


def _packs(value: Any) -> bool:
    try:
        pack(value, "an argument", sort=True)
    except UserError:
        return False
    return True


def is_same(shown: Any, recorded: Any) -> bool:
    """Returns True if two decoded values are the same, also in their types: 1 is another value than True."""
    return pack(shown, "an argument", sort=True) == pack(recorded, "an argument", sort=True)


def changes_of(value: Any, shown: Any, recorded: Any) -> Any:
    """Returns the parts of the recorded form of an argument that differ from the present value, as `edits.edited` takes
    them. The other fields stay: a secret is recorded as a mask, and cannot be read from it again.

    `value`, `shown`: the present value, and its form (`shown_form`). `recorded`: the form of the recorded value.
    """
    if not (isinstance(shown, dict) and isinstance(recorded, dict)):
        return recorded
    if _is_root(value):
        return {"root": changes_of(value.root, shown, recorded)}
    known = fields_of(type(value))
    if not known:
        return recorded
    computed = getattr(type(value), "__pydantic_computed_fields__", {})
    changes: dict[str, Any] = {}
    for name, each in recorded.items():
        if name in computed or (name in shown and is_same(shown[name], each)):
            continue
        inner = getattr(value, known[name].attribute, MISSING_VALUE) if name in known else MISSING_VALUE
        changes[name] = changes_of(inner, shown.get(name), each)
    return changes


def added(shown: Any, recorded: Any, path: str) -> str:
    """Returns the first part of an argument that its recorded form does not have, as words with its value: "order.tip=900".
    Returns "" if there is none. `path`: the name of the argument.
    """
    if recorded is MISSING_VALUE:
        return f"{path}={short_repr(shown)}"
    pairs: list[tuple[str, Any, Any]] = []
    if isinstance(shown, dict) and isinstance(recorded, dict):
        pairs = [(f"{path}.{name}", each, recorded.get(name, MISSING_VALUE)) for name, each in shown.items()]
    elif isinstance(shown, list) and isinstance(recorded, list):
        pairs = [(f"{path}.{at}", *each) for at, each in enumerate(zip(shown, recorded, strict=False))]
    return next(filter(None, (added(each, before, where) for where, each, before in pairs)), "")
