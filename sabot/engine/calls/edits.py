"""Changes of the arguments of a call: as a person wants them who approves it, and as a journal has recorded them."""

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any

import msgspec

from sabot.engine.calls.arguments import (
    call_arguments,
    check_converted,
    lacks,
    parameter_of,
    types_of,
    values_left_out,
    with_arguments,
)
from sabot.engine.calls.fields import MISSING_VALUE, REST, ValueField, choices_of, fields_of, item_kind
from sabot.engine.calls.schema import Mismatch, converted
from sabot.engine.calls.tools import Tool
from sabot.errors import UserError, message_of, short_repr


def edited_arguments(
    tool: Tool, args: tuple[Any, ...], kwargs: Mapping[str, Any], edit: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Returns the arguments of a call, changed as a person wants them who approves it (`edited`). `edit`: the changes by
    the names of parameters, decoded from JSON. Raises UserError if the tool does not take them.
    """
    found, types = call_arguments(tool, args, kwargs), types_of(tool)
    values: dict[str, Any] = {}
    for alias, each in edit.items():
        name = parameter_of(tool, alias)
        if alias in ("", REST) or lacks(tool, [name]):
            near = get_close_matches(alias, found, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its arguments are {', '.join(found)}"
            raise UserError(f"{tool.name} has no argument {short_repr(alias)}", hint=hint)
        if name in values:
            raise _twice(tool.name, [each for each in edit if parameter_of(tool, each) == name])
        values[name] = edited(found.get(name, MISSING_VALUE), each, types.get(name, Any), name)
    args, kwargs = with_arguments(tool, args, kwargs, values)
    check_converted(tool, args, kwargs, values)
    if tool.parameters is not None:
        try:
            tool.parameters.decode(msgspec.json.encode(kwargs).decode())
        except (Mismatch, TypeError) as error:
            raise UserError(f"{tool.name} does not take these arguments: {message_of(error)}") from error
    return args, kwargs


def recorded_arguments(
    tool: Tool,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    recorded: Mapping[str, Any],
    changed: Mapping[str, Any],
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Returns the arguments of a call in which some parameters have their recorded values, because the caller leaves
    them or fields of them out, and their defaults are others by now. The caller has to give the same arguments as when
    they were recorded.

    `recorded`: the values of all parameters, as a journal has recorded them when the call was judged. `changed`: by name,
    the parts of those that are others by now (`edited`). Raises UserError if the tool has no such parameter any more, or
    its type does not take the value.
    """
    if tool.parameters is not None:  # another process has the defaults, also those of fields within arguments
        return args, recorded
    given = call_arguments(tool, args, kwargs, filled=False)
    types, defaults = types_of(tool), values_left_out(tool, args, kwargs)
    values: dict[str, Any] = {}
    for name, value in changed.items():
        if lacks(tool, [name]):
            raise UserError(
                f"it was judged with {name}={short_repr(recorded[name])}, and {tool.name} has no argument {name} now"
            )
        before = given.get(name, MISSING_VALUE)
        made = edited(before, value, types.get(name, Any), f"argument {name} of {tool.name}")
        if _has_other_values(made, value):
            raise UserError(
                f"it was judged with {name}={short_repr(value)}, of which a validator of {tool.name} makes {short_repr(made)} now"
            )
        if name not in defaults or not _equal(defaults[name], made):
            values[name] = made
    args, kwargs = with_arguments(tool, args, kwargs, values)
    check_converted(tool, args, kwargs, values)
    return args, kwargs


def _has_other_values(made: Any, recorded: Any) -> bool:
    """Returns True if a validator has changed a recorded value when it was read: recorded values are validated already."""
    if isinstance(recorded, Mapping):
        known = fields_of(type(made))
        inner = made if isinstance(made, Mapping) else {name: getattr(made, known[name].attribute) for name in known}
        return any(name in inner and _has_other_values(inner[name], recorded[name]) for name in recorded)
    if isinstance(recorded, list | tuple) and isinstance(made, list | tuple):
        return len(made) != len(recorded) or any(map(_has_other_values, made, recorded))
    return type(made) is type(recorded) and isinstance(made, str | int | float | bytes) and made != recorded


def _equal(value: Any, other: Any) -> bool:
    try:
        return bool(value == other) and type(value) is type(other)
    except Exception:  # a comparison of the user's code
        return False


def edited(value: Any, edit: Any, kind: Any, where: str) -> Any:
    """Returns a copy of an argument, changed as a person wants it: the fields that an object names are changed, and
    everything else is replaced. The new values are converted into the declared types.

    - `edit`: the change, decoded from JSON. `kind`: the declared type of the value; Any if it is not known.
    - `where`: the path of the value, for messages.

    Raises UserError if a field does not exist, or a value does not fit.
    """
    known = fields_of(type(value))
    if not isinstance(edit, Mapping) or not (known or isinstance(value, Mapping)):
        return _converted(edit, kind, where)
    if not known:
        return _edited_mapping(value, edit, kind, where)
    changes: dict[str, Any] = {}
    within: dict[str, Any] = {}  # the fields of which a part was changed
    more = getattr(value, "__pydantic_extra__", None) or {}  # of a model with extra="allow"
    for name, each in edit.items():
        field = known.get(name)
        if field is None and name in more:
            field = ValueField(name, (name,), Any, None)
        if field is None:
            raise UserError(f"{where} has no field {short_repr(name)}", hint=f"its fields are {', '.join(known)}")
        if field.attribute in changes:
            raise _twice(where, [each for each in edit if each in known and known[each].attribute == field.attribute])
        inner = getattr(value, field.attribute, MISSING_VALUE)
        changes[field.attribute] = edited(inner, each, field.type, f"{where}.{name}")
        if isinstance(each, Mapping):
            within[field.attribute] = changes[field.attribute]
    try:
        made = _made_anew(value, changes, known)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} cannot be changed: {message_of(error)}") from error
    return made if isinstance(value, tuple) else _with_named(value, made, changes, within)


def _made_anew(value: Any, changes: Mapping[str, Any], names: Collection[str]) -> Any:
    """Returns an object of the same class with some changes, by which the class checks them."""
    if hasattr(value, "model_validate"):
        return type(value).model_validate(_by_names_to_read(value, changes))
    if hasattr(value, "__pydantic_fields__"):  # a dataclass of pydantic
        return type(value)(**_by_names_to_read(value, changes))
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.replace(value, **changes)
    if isinstance(value, tuple):
        return type(value)(**{**{name: getattr(value, name) for name in names}, **changes})
    if attributes := getattr(type(value), "__attrs_attrs__", ()):
        found = {each.alias: changes.get(each.name, getattr(value, each.name)) for each in attributes if each.init}
        return type(value)(**found)
    return replace(value, **changes)


def _with_named(value: Any, made: Any, changes: Mapping[str, Any], within: Mapping[str, Any]) -> Any:
    """Returns a copy of the object `value` in which only the fields that the person has named are those of `made`. The
    class may have changed others too: a validator that counts the tax in counts it in again.

    `within`: the fields of which only a part was named, with their values.
    """
    named = {**{name: getattr(made, name) for name in changes}, **within}
    if hasattr(value, "model_copy"):
        return value.model_copy(update=named)
    if is_dataclass(value):
        named = {
            each.name: getattr(made, each.name) for each in fields(value) if not each.init
        } | named  # made of others
    found = copy(value)
    put = msgspec.structs.force_setattr if isinstance(value, msgspec.Struct) else object.__setattr__
    for name, each in named.items():
        put(found, name, each)
    return found


def _by_names_to_read(model: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of an object of pydantic with some changes, by the names from which its class reads them."""
    more = getattr(model, "__pydantic_extra__", None) or {}
    found: dict[str, Any] = {name: changes.get(name, each) for name, each in more.items()}
    for name, field in type(model).__pydantic_fields__.items():
        if field.init is False:
            continue
        said = field.validation_alias or field.alias
        first = next(iter(getattr(said, "choices", (said,))), None)  # AliasChoices
        path = getattr(first, "path", (name if first is None else first,))  # AliasPath
        _put(found, path, changes[name] if name in changes else getattr(model, name))
    return found


def _put(found: Any, path: Sequence[str | int], value: Any) -> None:
    """Puts a value at a path of names and numbers into a dict or a list, with what is missing above it."""
    first, rest = path[0], path[1:]
    if isinstance(first, int):
        found += [None] * (first + 1 - len(found))
    if not rest:
        found[first] = value
        return
    inner = found.get(first) if isinstance(first, str) else found[first]
    if not isinstance(inner, dict | list):
        inner = found[first] = [] if isinstance(rest[0], int) else {}
    _put(inner, rest, value)


def _edited_mapping(value: Mapping[Any, Any], edit: Mapping[Any, Any], kind: Any, where: str) -> dict[Any, Any]:
    found, named = dict(value), dict[Any, Any]()
    known = {name for one in choices_of(kind) for name in fields_of(one)}
    for name, each in edit.items():
        if known and name not in known and name not in found:
            raise UserError(
                f"{where} has no field {short_repr(name)}", hint=f"its fields are {', '.join(sorted(known))}"
            )
        declared = [field for one in choices_of(kind) if (field := fields_of(one).get(name)) is not None]
        names = declared[0].names if declared else (name,)
        present = next((other for other in names if other in found), name)
        if present in named:
            raise _twice(where, [named[present], name])
        named[present] = name
        of = declared[0].type if declared else item_kind(kind)
        found[present] = edited(found.get(present, MISSING_VALUE), each, of, f"{where}.{name}")
    return found


def _twice(where: str, names: Collection[Any]) -> UserError:
    return UserError(f"{where}: {' and '.join(map(str, names))} are names of one field", hint="give it once")


def _converted(value: Any, kind: Any, where: str) -> Any:
    try:
        return converted(value, kind)
    except ValueError as error:
        raise UserError(f"{where} does not take {short_repr(value)}: {error}") from error
