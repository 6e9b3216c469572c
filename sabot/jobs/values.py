"""Packs the arguments, results and errors of effects into bytes. A job always gets the unpacked values, also on the
first run, so a replay sees the same values.

Values are packed as msgpack. Decimals, UUIDs, dates, times, datetimes with their zones, and timedeltas come back as they
were.
Some values come back as another type:

- Tuples and sets come back as lists. The sets in arguments, in questions and in the output of a job are sorted first.
- Dataclasses and Structs come back as dicts. So do models of pydantic, in the form of pydantic's JSON: their dates and
  Decimals are texts.
- An Arrow table comes back as a RecordBatch.
- Half of a surrogate pair in a text comes back as U+FFFD.

A `Secret` stays a reference. Of an error, the name of its class and its message are packed. Unpacking runs no code of a
user. Earlier versions packed Decimals, UUIDs, dates and times as texts, and datetimes in UTC. Such values are read as they were
written, and digests are still made of this form, so that jobs of earlier versions go on (`as_before`).
"""

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from copy import copy, deepcopy
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pyarrow as pa

from sabot._cython.binary.plain import plain_depth
from sabot.base.arrays import empty_batch
from sabot.base.config import Secret
from sabot.base.redaction import scrubbed
from sabot.base.stored_names import stored_name
from sabot.base.surrogates import whole_texts
from sabot.engine.calls.fields import setter_of
from sabot.engine.calls.messages import shown_messages
from sabot.engine.calls.tool_results import plain_form
from sabot.errors import UNREADABLE, CorruptJournal, EffectError, PolicyDenied, UserError, message_of

MAX_RESULT_BYTES = 16 << 20
"""The most bytes that a packed value may have. Longer values are refused, because a journal is not a store of files."""

_SECRET = 1  # the code of the msgpack extension that holds a secret's name
_ARROW = 2  # … an Arrow IPC stream of one batch
_EXACT = 3  # … a value that msgpack does not have: a letter for its type, and its text
_ITEMS = 4  # … the items of a dict with such values as keys, as pairs
_HEADROOM = 256  # levels of nesting that must be left, because the reader may have fewer left
_FLAT_BYTES = 512  # a value with fewer bytes cannot be nested too deep
_SHALLOW = 64  # levels of nesting that each reader has left
_DEEP = 1000  # levels that msgpack refuses
_MESSAGE = 4000  # characters of an error's message that are kept
_SCRUBBED = 64_000  # … that are looked through for secrets
_TYPE = 200
_PARTS = 5  # the most errors of a group that are named


def _plain(value: Any) -> Any:
    """Converts a value of a type that msgspec does not know to one that it can pack. Raises TypeError if there is no
    such conversion.
    """
    if isinstance(value, Secret):
        return msgspec.msgpack.Ext(_SECRET, value.name.encode())
    if isinstance(value, pa.RecordBatch | pa.Table):
        return msgspec.msgpack.Ext(_ARROW, _to_ipc(value))
    return plain_form(value)


def _is_model(value: Any) -> bool:
    return callable(getattr(value, "model_dump", None)) and not isinstance(value, type)


def plain_in_order(value: Any) -> Any:
    """Converts a value of a type that msgspec does not know to one that it can pack. Sorts the lists that pydantic has
    made from sets. Raises TypeError if there is no such conversion.
    """
    made = _plain(value)
    return _sets_sorted(made, value.model_dump(mode="python")) if _is_model(value) else made


def _sets_sorted(made: Any, python: Any) -> Any:
    """Returns a copy of the JSON value `made`, with the lists sorted that are sets in `python`. Both are forms of the
    same model. A part that has other members in the two forms, because of a serializer of the user, is not changed.
    """
    if isinstance(made, list) and isinstance(python, set | frozenset):
        return sorted(made, key=_encode_sorted)
    if isinstance(made, list) and isinstance(python, list | tuple) and len(made) == len(python):
        return [_sets_sorted(each, inner) for each, inner in zip(made, python, strict=True)]
    if isinstance(made, dict) and isinstance(python, dict) and len(made) == len(python):
        pairs = zip(made.items(), python.values(), strict=True)
        return {key: _sets_sorted(each, inner) for (key, each), inner in pairs}
    return made


def _to_ipc(data: "pa.RecordBatch | pa.Table") -> bytes:
    data.validate()
    if isinstance(data, pa.Table):
        data = next(iter(data.combine_chunks().to_batches()), empty_batch(data.schema))
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, data.schema) as writer:
        writer.write_batch(data)
    return bytes(out.getvalue())


# -- exact values -----------------------------------------------------------------------------------------------------

# types that msgpack has, and secrets
_LEAVES = frozenset({type(None), bool, int, float, str, bytes, bytearray, memoryview, Secret})
_ARROW_TYPES = frozenset({pa.RecordBatch, pa.Table})
_HOLDERS = frozenset({dict, list, tuple, set, frozenset})
_EXACT_TYPES = (Decimal, datetime, date, time, timedelta, UUID)
UNCHANGEABLE = (_LEAVES - {bytearray, memoryview}) | {*_EXACT_TYPES}
"""Types of values that cannot be changed."""

_DATA = _HOLDERS | _LEAVES | {*_EXACT_TYPES}
_OF_MSGPACK = (bytes, bytearray, memoryview, msgspec.msgpack.Ext)
_KEPT = (*_EXACT_TYPES, *_OF_MSGPACK)


def _is_known(kind: type) -> bool:
    """Returns True if values of this type keep their form: Arrow data, and Structs of Sabot, which its code decodes."""
    return kind in _ARROW_TYPES or (issubclass(kind, msgspec.Struct) and kind.__module__.partition(".")[0] == "sabot")


def _exact(value: Any) -> Any:
    """Returns a copy of a value of plain types, with extensions of msgpack in the place of values of `_EXACT_TYPES`."""
    kind = type(value)
    if kind is dict:
        if any(type(key) in _EXACT_TYPES for key in value):
            return msgspec.msgpack.Ext(
                _ITEMS, _encoder.encode([[_exact(key), _exact(each)] for key, each in value.items()])
            )
        return {key: _exact(each) for key, each in value.items()}
    if kind in _HOLDERS:
        return [_exact(each) for each in value]
    if kind is Decimal:
        return _ext("n", str(value))
    if kind is UUID:
        return _ext("u", str(value))
    if kind is timedelta:
        return _ext("s", f"{value.days},{value.seconds},{value.microseconds}")
    if kind is date:
        return _ext("d", value.isoformat())
    if kind is time or (kind is datetime and value.tzinfo is not UTC):  # msgpack has datetimes in UTC
        zone = getattr(value.tzinfo, "key", None) or getattr(value.tzinfo, "zone", None) or ""  # of zoneinfo; of pytz
        return _ext("t" if kind is time else "z", f"{value.isoformat()},{zone},{value.fold or ''}")
    return value


def _encodable(value: Any, *, sort: bool, exact: bool) -> Any:
    """Returns a copy of a value in a form that msgpack can encode: half of a surrogate pair, as `json.loads` reads it, is
    U+FFFD, and an integer of more than 64 bits is an extension. Earlier versions refused such integers, and such halves
    in other objects than lists and dicts, so no digest is made of another form.
    """
    whole = whole_texts(value)
    with suppress(UnicodeEncodeError, OverflowError):
        _encoder.encode(whole)
        return whole

    plain = _plain_sorted(value) if sort else msgspec.to_builtins(value, builtin_types=_KEPT, enc_hook=_plain)
    return _with_long_integers(whole_texts(plain), exact=exact)


def _with_long_integers(value: Any, *, exact: bool) -> Any:
    """Returns a copy of a value of plain types, with extensions in the place of integers of more than 64 bits, and with
    `exact` of values of `_EXACT_TYPES` too.
    """
    match value:
        case dict():
            pairs = [[_with_long_integers(part, exact=exact) for part in pair] for pair in value.items()]
            if any(type(key) is msgspec.msgpack.Ext for key, _ in pairs):
                return msgspec.msgpack.Ext(_ITEMS, _encoder.encode(pairs))
            return dict(pairs)
        case list() | tuple():
            return [_with_long_integers(each, exact=exact) for each in value]
        case int() if not _is_short(value):
            return _ext("i", str(value))
    return _exact(value) if exact else value


def _is_short(number: int) -> bool:
    return -(1 << 63) <= number < 1 << 64


def _ext(letter: str, text: str) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(_EXACT, f"{letter}{text}".encode())


def _read_exact(letter: str, text: str) -> Any:
    match letter:
        case "n":
            return Decimal(text)
        case "u":
            return UUID(text)
        case "i":
            return int(text)
        case "s":
            return timedelta(*map(int, text.split(",")))
        case "d":
            return date.fromisoformat(text)
        case "t" | "z":
            said, zone, fold = text.split(",")
            made: Any = (time if letter == "t" else datetime).fromisoformat(said).replace(fold=int(fold or 0))
            return made if not zone else _in_zone(made, zone)
    raise ValueError(f"an exact value of the kind {letter!r}")


def _in_zone(value: Any, name: str) -> Any:
    """Returns a time or a datetime in the zone `name`. If this machine has no such zone, or its clock was changed since
    by law, a datetime keeps the offset with which it was recorded.
    """
    try:
        zoned = value.replace(tzinfo=ZoneInfo(name))
    except (LookupError, ValueError, OSError):
        return value
    return zoned if isinstance(value, time) or zoned.utcoffset() == value.utcoffset() else value


def _extension(code: int, data: memoryview) -> Any:
    if code == _SECRET:
        return Secret(str(data, "utf-8"))
    if code == _EXACT:
        text = str(data, "utf-8")
        try:
            return _read_exact(text[:1], text[1:])
        except ArithmeticError as error:  # of Decimal
            raise ValueError(f"an exact value: {error}") from error
    if code == _ITEMS:
        return dict(_decoder.decode(bytes(data)))
    if code == _ARROW:
        try:
            with pa.ipc.open_stream(
                pa.py_buffer(bytes(data))
            ) as reader:  # a copy, as Arrow wants buffers that are aligned
                return reader.read_next_batch()
        except (pa.ArrowException, OSError, StopIteration) as error:
            raise ValueError(f"an Arrow batch: {error}") from error
    raise ValueError(f"an extension of type {code}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_sorting = msgspec.msgpack.Encoder(enc_hook=plain_in_order, order="deterministic")
_decoder = msgspec.msgpack.Decoder(ext_hook=_extension)


def pack(value: Any, what: str, *, sort: bool = False, exact: bool | None = None) -> bytes:
    """Returns the value as bytes, which `unpack` reads.

    `what`: the name of the value in messages. `sort`: True to pack equal dicts and equal sets into equal bytes in
    every process. It is needed for arguments that a replay compares with recorded ones. `exact`: False to pack Decimals,
    UUIDs, dates and times as texts, and datetimes in UTC, as earlier versions did. It is the default with `sort=True`, so that
    digests of arguments stay the same.

    Raises UserError for a value that msgpack cannot express, that is nested too deeply, or that is longer than
    MAX_RESULT_BYTES.
    """
    encode: Callable[[Any], bytes] = _encoder.encode
    if sort:
        encode = _encode_exact_sorted if exact else _encode_sorted
    elif exact is not False and type(value) not in _LEAVES:
        encode = _encode_exact
    try:
        try:
            data = encode(value)
        except (UnicodeEncodeError, OverflowError):
            value = _encodable(value, sort=sort, exact=not sort if exact is None else exact)
            data = encode(value)
        size = len(data)
        if size > _FLAT_BYTES and not 0 <= plain_depth(value, _DEEP) <= _SHALLOW:
            for _ in range(_HEADROOM):
                value = [value]
            _encoder.encode(value)
    except RecursionError:
        raise UserError(f"{what} is nested too deep to be recorded", hint="give it a flatter form") from None
    except Exception as error:  # an `enc_hook` calls the user's code
        raise UserError(
            f"{what} cannot be recorded: {type(error).__name__}: {message_of(error)}", hint=_what_can(value)
        ) from error
    if size > MAX_RESULT_BYTES:
        raise UserError(
            f"{what} has {size:,} bytes, and {MAX_RESULT_BYTES:,} are the most that is recorded",
            hint="store it elsewhere, and return where it is",
        )
    return data


# types of unchangeable values
_FIXED = frozenset({type(None), bool, int, float, str, bytes, Secret, pa.RecordBatch, pa.Table})


def field_names(value: Any, *, with_others: bool = False) -> Sequence[str]:
    """Returns the names of the fields that are packed of a Struct, or of an object of a dataclass or of a class of attrs.
    Returns () for any other value. `with_others`: True for all attributes of an object of a dataclass, also those that
    are no fields.
    """
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    if is_dataclass(value) and not isinstance(value, type):
        return [*vars(value)] if with_others and hasattr(value, "__dict__") else [each.name for each in fields(value)]
    return [each.name for each in getattr(type(value), "__attrs_attrs__", ()) if not each.name.startswith("_")]


def with_fields(value: Any, names: Iterable[str], form: Callable[[Any], Any]) -> Any:
    """Returns a copy of an object in which `form` has converted these fields, or the object itself if no field changes."""
    found = {name: getattr(value, name, None) for name in names}
    changed = {name: new for name, old in found.items() if (new := form(old)) is not old}
    if not changed:
        return value
    # `replace` would call the user's __post_init__, which may make other values of those that were judged and recorded
    value, put = copy(value), setter_of(value)
    for name, new in changed.items():
        put(value, name, new)
    return value


def copied(value: Any, what: str) -> Any:
    """Returns a deep copy of the value. Objects that cannot change, such as texts and Arrow batches, are not copied.
    So a reader of the copy sees the values that `pack` has packed, even if the original changes afterwards. `what`:
    the name of the value in messages.

    Raises UserError for an object that cannot be copied.
    """
    kind = type(value)
    if kind in _FIXED:
        return value
    if kind is dict:
        return {key: each if type(each) in _FIXED else copied(each, what) for key, each in value.items()}
    if kind is list:
        return [each if type(each) in _FIXED else copied(each, what) for each in value]
    if kind is tuple:
        return tuple([each if type(each) in _FIXED else copied(each, what) for each in value])
    try:
        # `deepcopy` makes a Struct anew, so that its `__post_init__` runs again: rules would judge other values than the
        # call gets
        if not isinstance(value, msgspec.Struct) and (not is_dataclass(kind) or hasattr(value, "__deepcopy__")):
            return deepcopy(value)
        made, put = copy(value), setter_of(value)
        for name in field_names(value, with_others=True):
            put(made, name, copied(getattr(value, name), what))
        return made
    except UserError:
        raise
    except Exception as error:  # the user's code
        raise UserError(
            f"{what} cannot be copied: {type(error).__name__}: {message_of(error)}",
            hint="numbers, text, bytes, lists, dicts, dates, dataclasses, Arrow batches can",
        ) from error


def _what_can(value: Any) -> str:
    """Returns the hint for a value that cannot be recorded."""
    if isinstance(value, AbstractContextManager | AbstractAsyncContextManager):
        return "the block of a context manager lasts no longer than the call: enter it in the body of the tool, and return what it gives"
    if isinstance(value, Iterator | AsyncIterator):
        return "return a list of its values"
    return "numbers, text, bytes, lists, dicts, dates, dataclasses, Arrow batches can"


def copied_arguments(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], what: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns copies of the arguments of a call, as `copied` makes them. Most are few values that cannot change."""
    return args if _FIXED.issuperset(map(type, args)) else copied(args, what), copied(kwargs, what) if kwargs else {}


def contents_of(value: Any) -> Any:
    """Returns a form of the value by which one sees later whether anything in it was changed: the forms from before and
    after are equal if nothing was. Also looks into objects that `pack` refuses, but not into the objects that these
    have in their attributes.
    """
    return _contents(value, {})


def _contents(value: Any, seen: dict[int, tuple[Any, Any]]) -> Any:
    kind = type(value)
    if kind is str or value is None:
        return value
    if isinstance(value, bytearray | memoryview):
        return kind, bytes(value)
    if kind in _LEAVES or isinstance(value, _EXACT_TYPES):
        return kind, value  # True is equal to 1
    if kind is list or kind is dict:
        kinds = [*map(type, value if kind is list else value.values())]
        if UNCHANGEABLE.issuperset(kinds):  # most values, also long ones: a copy of them takes no time
            return kind, copy(value), kinds
    if id(value) in seen:
        return seen[id(value)][1]
    seen[id(value)] = value, "itself"  # where a value contains itself; and it stays alive, with its id
    if isinstance(value, Mapping):
        form: Any = [(_contents(key, seen), _contents(each, seen)) for key, each in value.items()]
    elif isinstance(value, set | frozenset):
        form = frozenset(value)
    elif isinstance(value, list | tuple | deque):
        form = [_contents(each, seen) for each in value]
    elif names := field_names(value, with_others=not hasattr(value, "__deepcopy__")):
        form = [(name, _contents(getattr(value, name, None), seen)) for name in names]
    elif _is_model(value):  # also the fields that it does not pack
        parts = (getattr(value, name, None) for name in ("__dict__", "__pydantic_extra__", "__pydantic_private__"))
        form = [_contents(part, seen) for part in parts]
    else:
        given = {} if isinstance(value, type) else getattr(value, "__dict__", {})
        inner = ((name, _contents(each, seen) if type(each) in _DATA else id(each)) for name, each in given.items())
        form = (id(value), *inner)
    seen[id(value)] = value, (kind, form)
    return kind, form


def _encode_exact(value: Any) -> bytes:
    if type(value) in _HOLDERS:
        data = _encoder.encode(value)  # first, because it refuses what has no end
        if plain_depth(value, _DEEP) >= 0:  # so there are no dates and the like in it
            return data
    elif _is_known(type(value)):
        return _encoder.encode(value)
    return _encoder.encode(_exact(msgspec.to_builtins(value, builtin_types=_KEPT, enc_hook=_plain)))


def _encode_exact_sorted(value: Any) -> bytes:
    return _encoder.encode(_exact(_plain_sorted(value)))


def _plain_sorted(value: Any) -> Any:
    try:
        return msgspec.to_builtins(value, builtin_types=_KEPT, enc_hook=plain_in_order, order="deterministic")
    except TypeError:  # as in `_encode_sorted`
        return msgspec.to_builtins(_sorted(value), builtin_types=_KEPT, enc_hook=_plain)


def as_before(data: bytes) -> bytes:
    """Returns a packed value as earlier versions packed it: Decimals, UUIDs, dates and times as texts, datetimes in UTC."""
    value = unpack(data)
    try:
        return _encoder.encode(value)
    except OverflowError:  # earlier versions had no long integers
        return _encoder.encode(_encodable(value, sort=False, exact=False))


def _encode_sorted(value: Any) -> bytes:
    try:
        return _sorting.encode(value)
    except TypeError:  # msgspec sorts neither keys that are no text, nor a set of several types
        return _encoder.encode(_sorted(value))


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        pairs = ((_sorted(key), _sorted(each)) for key, each in value.items())
        return dict(sorted(pairs, key=lambda pair: _encoder.encode(pair[0])))
    if isinstance(value, set | frozenset):
        return tuple(sorted(map(_sorted, value), key=_encoder.encode))
    if isinstance(value, list | tuple):
        return tuple(map(_sorted, value))
    if isinstance(value, msgspec.Struct):
        return with_fields(value, _with_contents(value), _sorted)
    if names := field_names(value):
        return {name: _sorted(getattr(value, name)) for name in names}
    return _sorted(plain_in_order(value)) if _is_model(value) else value


def _with_contents(value: msgspec.Struct) -> list[str]:
    """Returns the names of the fields, except those with empty sets: these may be defaults that are not packed."""
    given = ((name, getattr(value, name)) for name in field_names(value))
    return [name for name, each in given if not isinstance(each, set | frozenset) or each]


def in_order(value: Any) -> Any:
    """Returns a copy of the value in which each set is replaced by a sorted list, because the order of a set differs
    between processes. Also looks into objects of dataclasses, of `msgspec.Struct`, of classes of attrs and of
    pydantic. Returns the value itself if it contains no sets.
    """
    kind = type(value)
    if kind in _FIXED:
        return value
    if isinstance(value, set | frozenset):
        inner = [in_order(each) for each in value]
        alike = {type(each) for each in inner}
        return sorted(inner) if alike in ({str}, {int}) else sorted(inner, key=_encode_sorted)
    if isinstance(value, Mapping):
        changed = {key: new for key, each in value.items() if (new := in_order(each)) is not each}
        return {**value, **changed} if changed else value
    if isinstance(value, list | tuple):
        made = [in_order(each) for each in value]
        return made if any(new is not each for new, each in zip(made, value, strict=True)) else value
    if isinstance(value, msgspec.Struct):
        return with_fields(value, _with_contents(value), in_order)
    if names := field_names(value):
        named = {name: getattr(value, name) for name in names}
        made = in_order(named)
        return value if made is named else made
    if _is_model(value) and in_order(python := value.model_dump(mode="python")) is not python:
        return plain_in_order(value)
    return value


def unpack(data: bytes) -> Any:
    """Returns the value from which `pack` has made these bytes. Some types come back as others (see the module).
    Raises CorruptJournal if the bytes cannot be decoded.
    """
    try:
        return _decoder.decode(data)
    except UNREADABLE as error:
        raise CorruptJournal(
            f"a recorded value cannot be read: {error}", hint="go back to a copy of the journal"
        ) from error


def pack_error(error: BaseException, *, whole: bool = False) -> bytes:
    """Returns the class name and the message of an error as bytes, which `unpack_error` reads. Known secrets are
    hidden in the message. `whole`: True to pack also the conversation with the model, if the error has one as its
    attribute `conversation`; `conversation_of` reads it.
    """
    said = error.message if isinstance(error, EffectError) else message_of(error)
    if isinstance(error, BaseExceptionGroup):
        said = "; ".join([said, *(f"{type(each).__name__}: {message_of(each)}" for each in error.exceptions[:_PARTS])])
    said = scrubbed(said[:_SCRUBBED])
    if len(said) > _MESSAGE:
        said = said[: _MESSAGE - 1] + "…"
    packed: list[Any] = [type_of(error), _legal(said)]
    conversation = getattr(error, "conversation", ()) if whole else ()
    if conversation:
        packed.append(shown_messages(conversation))
    return _encoder.encode(packed)


def type_of(error: BaseException) -> str:
    """Returns the name of the error's class. For an EffectError, returns its `type` instead."""
    name = error.type if isinstance(error, EffectError) else stored_name(type(error))
    return _legal(scrubbed(name)[:_TYPE])


def unpack_error(data: bytes) -> EffectError:
    """Returns the error that the function of a job receives, made from the bytes of `pack_error`. It is a
    PolicyDenied or an EffectError. Raises CorruptJournal if the bytes cannot be decoded.
    """
    told = _told(data)
    return (
        PolicyDenied(told.message) if told.type == stored_name(PolicyDenied) else EffectError(told.type, told.message)
    )


def conversation_of(data: bytes) -> bytes:
    """Returns the conversation with the model that `pack_error` has packed together with an error, as JSON; b"" if
    there is none. Raises CorruptJournal if the bytes cannot be decoded.
    """
    return _told(data).conversation


class _ToldError(msgspec.Struct, frozen=True, array_like=True):
    """An error as `pack_error` packs it: the name of its class, its message, and the conversation as JSON (b"" for
    none). New fields are only added at the end.
    """

    type: str
    message: str
    conversation: bytes = b""


_error = msgspec.msgpack.Decoder(_ToldError)


def _told(data: bytes) -> _ToldError:
    try:
        return _error.decode(data)
    except UNREADABLE as error:
        raise CorruptJournal(
            f"a recorded error cannot be read: {error}", hint="go back to a copy of the journal"
        ) from error


def _legal(text: str) -> str:
    """Returns the text with "?" in place of lone surrogates, which cannot be encoded."""
    return text.encode(errors="replace").decode()
