"""Packs the arguments, results and errors of effects into bytes. A job always gets the unpacked values, also on the
first run, so a replay sees the same values.

Values are packed as msgpack. Decimals, dates, times, datetimes with their zones, and timedeltas come back as they were.
Some values come back as another type:

- Tuples and sets come back as lists. The sets in arguments, in questions and in the output of a job are sorted first.
- Dataclasses and Structs come back as dicts. So do models of pydantic, in the form of pydantic's JSON: their dates and
  Decimals are texts.
- UUIDs come back as texts, and an Arrow table as a RecordBatch.
- Half of a surrogate pair in a text comes back as U+FFFD.

A `Secret` stays a reference. Of an error, the name of its class and its message are packed. Unpacking runs no code of a
user. Earlier versions packed Decimals, dates and times as texts, and datetimes in UTC. Such values are read as they were
written, and digests are still made of this form, so that jobs of earlier versions go on (`as_before`).
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pyarrow as pa

from sabot.base.arrays import plain_form
from sabot.base.config import Secret
from sabot.base.redaction import scrubbed
from sabot.base.stored_names import stored_name
from sabot.base.surrogates import whole_texts
from sabot.errors import UNREADABLE, CorruptJournal, EffectError, PolicyDenied, UserError, message_of

MAX_RESULT_BYTES = 16 << 20
"""The most bytes that a packed value may have. Longer values are refused, because a journal is not a store of files."""

_SECRET = 1  # the code of the msgpack extension that holds a secret's name
_ARROW = 2  # … an Arrow IPC stream of one batch
_EXACT = 3  # … a value that msgpack does not have: a letter for its type, and its text
_ITEMS = 4  # … the items of a dict with such values as keys, as pairs
_HEADROOM = 256  # levels of nesting that must be left, because the reader may have fewer left
_FLAT_BYTES = 512  # a value with fewer bytes cannot be nested too deep
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
        data = next(iter(data.combine_chunks().to_batches()), pa.RecordBatch.from_pylist([], schema=data.schema))
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, data.schema) as writer:
        writer.write_batch(data)
    return bytes(out.getvalue())


# -- exact values -----------------------------------------------------------------------------------------------------

# types that msgpack has, or that come back as text
_LEAVES = frozenset({type(None), bool, int, float, str, bytes, bytearray, memoryview, UUID, Secret})
_ARROW_TYPES = frozenset({pa.RecordBatch, pa.Table})
_HOLDERS = frozenset({dict, list, tuple, set, frozenset})
_EXACT_TYPES = (Decimal, datetime, date, time, timedelta)
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
    if kind is timedelta:
        return _ext("s", f"{value.days},{value.seconds},{value.microseconds}")
    if kind is date:
        return _ext("d", value.isoformat())
    if kind is time or (kind is datetime and value.tzinfo is not UTC):  # msgpack has datetimes in UTC
        zone = getattr(value.tzinfo, "key", None) or getattr(value.tzinfo, "zone", None) or ""  # of zoneinfo; of pytz
        return _ext("t" if kind is time else "z", f"{value.isoformat()},{zone},{value.fold or ''}")
    return value


def _ext(letter: str, text: str) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(_EXACT, f"{letter}{text}".encode())


def _read_exact(letter: str, text: str) -> Any:
    match letter:
        case "n":
            return Decimal(text)
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
    dates and times as texts, and datetimes in UTC, as earlier versions did. It is the default with `sort=True`, so that
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
        except UnicodeEncodeError:  # half of a surrogate pair, as `json.loads` reads it: no journal can hold it
            value = whole_texts(value)
            data = encode(value)
        if len(data) > _FLAT_BYTES and not isinstance(value, str | bytes):
            for _ in range(_HEADROOM):
                value = [value]
            _encoder.encode(value)
    except RecursionError:
        raise UserError(f"{what} is nested too deep to be recorded", hint="give it a flatter form") from None
    except Exception as error:  # an `enc_hook` calls the user's code
        raise UserError(
            f"{what} cannot be recorded: {type(error).__name__}: {message_of(error)}",
            hint="numbers, text, bytes, lists, dicts, dates, dataclasses, Arrow batches can",
        ) from error
    if len(data) > MAX_RESULT_BYTES:
        raise UserError(
            f"{what} has {len(data):,} bytes, and {MAX_RESULT_BYTES:,} are the most that is recorded",
            hint="store it elsewhere, and return where it is",
        )
    return data


# types of unchangeable values
_FIXED = frozenset({type(None), bool, int, float, str, bytes, Secret, pa.RecordBatch, pa.Table})


def _copied_fields(value: Any) -> Sequence[str] | None:
    """Returns the names of all fields of a Struct or a plain dataclass; None for other objects. `deepcopy` makes a Struct
    anew, so that its `__post_init__` runs again: rules would judge other values than the call gets.
    """
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    if is_dataclass(value) and not isinstance(value, type) and not hasattr(value, "__deepcopy__"):
        return [*vars(value)] if hasattr(value, "__dict__") else [each.name for each in fields(value)]
    return None


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
        names = _copied_fields(value)
        if names is None:
            return deepcopy(value)
        made = copy(value)
        put = msgspec.structs.force_setattr if isinstance(value, msgspec.Struct) else object.__setattr__
        for name in names:
            put(made, name, copied(getattr(value, name), what))
        return made
    except UserError:
        raise
    except Exception as error:  # the user's code
        raise UserError(
            f"{what} cannot be copied: {type(error).__name__}: {message_of(error)}",
            hint="numbers, text, bytes, lists, dicts, dates, dataclasses, Arrow batches can",
        ) from error


def _encode_exact(value: Any) -> bytes:
    if type(value) in _HOLDERS:
        data = _encoder.encode(value)  # first, because it refuses what has no end
        if _is_plain(value):
            return data
    elif _is_known(type(value)):
        return _encoder.encode(value)
    return _encoder.encode(_exact(msgspec.to_builtins(value, builtin_types=_KEPT, enc_hook=_plain)))


def _is_plain(value: Any) -> bool:
    """Returns True if msgspec changes nothing in a list or a dict, so that there are no dates and the like in it. Comparing
    is faster than Python code that would look for them: a value is packed for each effect, and most have none.
    """
    try:
        return bool(msgspec.to_builtins(value, builtin_types=_OF_MSGPACK, enc_hook=_plain) == value)
    except Exception:  # arrays of numpy are compared item by item
        return False


def _encode_exact_sorted(value: Any) -> bytes:
    try:
        plain = msgspec.to_builtins(value, builtin_types=_KEPT, enc_hook=plain_in_order, order="deterministic")
    except TypeError:  # as in `_encode_sorted`
        plain = msgspec.to_builtins(_sorted(value), builtin_types=_KEPT, enc_hook=_plain)
    return _encoder.encode(_exact(plain))


def as_before(data: bytes) -> bytes:
    """Returns a packed value as earlier versions packed it: Decimals, dates and times as texts, and datetimes in UTC."""
    return _encoder.encode(unpack(data))


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
        return _with_fields(value, _sorted)
    if names := _field_names(value):
        return {name: _sorted(getattr(value, name)) for name in names}
    return _sorted(plain_in_order(value)) if _is_model(value) else value


def _field_names(value: Any) -> list[str]:
    """Returns the names of the fields that are packed, if `value` is an object of a dataclass or of a class of attrs.
    Returns [] for any other value.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return [each.name for each in fields(value)]
    return [each.name for each in getattr(type(value), "__attrs_attrs__", ()) if not each.name.startswith("_")]


def _with_fields(value: msgspec.Struct, form: Callable[[Any], Any]) -> msgspec.Struct:
    """Returns a copy of the Struct in which `form` has converted each field. Does not convert empty sets, because they
    may be defaults that are not packed. Returns the Struct itself if no field changes.
    """
    given = {name: getattr(value, name) for name in value.__struct_fields__}
    kept = [name for name, each in given.items() if isinstance(each, set | frozenset) and not each]
    changed = {name: new for name, each in given.items() if name not in kept and (new := form(each)) is not each}
    if not changed:
        return value
    value = copy(value)
    for name, new in changed.items():
        msgspec.structs.force_setattr(value, name, new)  # `replace` would call the user's __post_init__
    return value


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
        return _with_fields(value, in_order)
    if names := _field_names(value):
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
        from sabot.llm.conversation import as_json  # where there is one, it is loaded

        packed.append(as_json(conversation))
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
