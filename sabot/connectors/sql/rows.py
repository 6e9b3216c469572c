"""Prepares rows for a table: JSON results of agents become columns, nested values become JSON text, binary becomes
hex.
"""

import decimal
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.text.json import JsonDecoder, encode_rows
from sabot._cython.text.records import binary_array, bytes_list
from sabot.base.arrays import integers, shown
from sabot.codecs.json import infer_schema
from sabot.errors import UNREADABLE, UserError

_log = logging.getLogger(__name__)

JsonKind: TypeAlias = pa.DataType | Literal["text", "json", "any"]
Columns: TypeAlias = Mapping[str, JsonKind]
"""The columns of a table, and how JSON values are read for each: as an Arrow type; "text": a string as it is, and any
other value as JSON text, which the database reads; "json": each value as JSON text; "any": each value by its own
type.
"""

_INFERENCE_ROWS = 1000
_DIGITS_OF_FLOATS = 15  # of a decimal that each float64 gives back
_EXACT = decimal.Context(prec=100)
_SLACK = 1e-9  # above the relative error of a float that Arrow makes of a decimal
_fields_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def inferred_schema(batches: Sequence[pa.RecordBatch]) -> pa.Schema:
    """Returns the columns of a table for these records, inferred from the first 1,000 payloads."""
    payloads: list[bytes | None] = []
    for batch in batches:
        payloads += bytes_list(batch.column("payload").slice(0, _INFERENCE_ROWS - len(payloads)))
    return infer_schema(payloads)


def decoded_records(data: pa.RecordBatch, columns: Columns, table: str, told: set[str]) -> pa.RecordBatch:
    """Returns records, each of which is one JSON object, as columns of the table; a field without a column is
    reported once, in the log.

    Raises UserError that names the first record which does not fit.
    """
    payloads = data.column("payload")
    fields = [_fields(payload, row, len(payloads), table) for row, payload in enumerate(bytes_list(payloads))]
    named: set[str] = set().union(*fields)
    _tell(named - columns.keys(), table, told)
    kept = [name for name in columns if name in named]
    if not kept and data.num_rows:
        raise UserError(
            f"table {table}: no result has one of its columns ({', '.join(columns)})",
            hint="results are objects, whose fields are the columns' names",
        )
    kinds = {
        name: _guessed([row.get(name) for row in fields]) if columns[name] == "any" else columns[name] for name in kept
    }
    typed = pa.schema([(name, kind) for name, kind in kinds.items() if isinstance(kind, pa.DataType)])
    read, bad = JsonDecoder(typed).decode(payloads)
    if bad:
        raise _unfit(bad[0].row, data.num_rows, table, bad[0].reason, payloads[bad[0].row].as_py())
    arrays: list[Any] = [
        read.column(name)
        if isinstance(kind, pa.DataType)
        else _texts([row.get(name) for row in fields], kind == "text")
        for name, kind in kinds.items()
    ]
    return pa.RecordBatch.from_arrays(arrays, names=kept)


def _guessed(values: list[msgspec.Raw | None]) -> JsonKind:
    """Returns how the values of this column are read: as their common type, or as text if they have none."""
    try:
        kind: pa.DataType = infer_schema([b'{"":%b}' % bytes(value or b"null") for value in values]).field(0).type
    except UserError:
        return "text"
    return "text" if pa.types.is_null(kind) else kind


def _fields(payload: bytes | None, row: int, rows: int, table: str) -> dict[str, msgspec.Raw]:
    try:
        return _fields_of(payload or b"")
    except UNREADABLE as error:
        raise _unfit(row, rows, table, str(error), payload) from error


def _unfit(row: int, rows: int, table: str, reason: str, payload: bytes | None) -> UserError:
    shown = "nothing" if payload is None else repr(payload[:100])
    return UserError(
        f"table {table}: row {row} of {rows} does not fit: {reason}; it is {shown}",
        hint="results for a table are objects, whose fields have the types of its columns",
    )


def _tell(unknown: set[str], table: str, told: set[str]) -> None:
    if unknown and not told:  # logged once, because there may be any number of unknown fields
        told.update(sorted(unknown)[:5])
        _log.warning("table %s has no column for %s of the results: left out", table, ", ".join(sorted(told)))


def _texts(values: list[msgspec.Raw | None], bare: bool) -> Any:
    """Returns JSON values as text; null stays null. `bare`: True takes the quotes off strings."""
    texts: list[bytes | None] = []
    for value in values:
        raw = None if value is None else bytes(value)
        if raw == b"null":
            raw = None
        elif bare and raw is not None and raw[:1] == b'"':
            raw = msgspec.json.decode(raw, type=str).encode()
        texts.append(raw)
    return binary_array(texts).cast(pa.string())


def json_text(column: Any, name: str) -> Any:
    """Returns lists and structs as one JSON text a row; null stays null. Raises UserError for values that JSON cannot
    express.
    """
    try:
        rows: Any = encode_rows(pa.RecordBatch.from_arrays([column], names=["v"]))
    except (TypeError, UserError) as error:
        raise UserError(
            f"column {name!r} of type {column.type} cannot be written as JSON",
            hint="cast it, or leave it out (select), before the sink",
        ) from error
    texts: Any = pc.binary_slice(rows, 5, -1).cast(pa.string())  # of {"v":...}
    return pc.if_else(pc.is_null(column), pa.scalar(None, pa.string()), texts)


def hex_text(column: Any) -> Any:
    r"""Returns binary as hex text (`\x0aff`); null stays null. All values are converted in one call, which takes twice
    their bytes in memory.
    """
    values = column.cast(pa.binary())
    if len(values) == 0:
        return pa.array([], pa.string())
    offsets = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1]
    start, end = int(offsets[0]), int(offsets[-1])
    data = values.buffers()[2]
    digits = b"" if data is None or start == end else bytes(memoryview(data)[start:end]).hex().encode()
    if len(digits) > 2**31 - 1:
        raise UserError(f"{end - start} bytes of binary in one batch are too many")
    moved = ((offsets - start) * 2).astype(np.int32)
    plain: Any = pa.StringArray.from_buffers(len(values), pa.py_buffer(moved), pa.py_buffer(digits))
    prefixed: Any = pc.binary_join_element_wise("\\x", plain, "")
    return pc.if_else(pc.is_null(values), pa.scalar(None, pa.string()), prefixed)


def refusals(name: str, column: Any, wrong: Any, why: str) -> dict[int, str]:
    """Returns the reason for each row in which `wrong` is True: the column, its value, and `why`."""
    if not (rows := np.flatnonzero(pc.fill_null(wrong, False).to_numpy(zero_copy_only=False)).tolist()):
        return {}
    return {row: f"column {name!r}: {shown(column[row]):.80} {why}" for row in rows}


def loses_digits(column: Any, bits: int, most: int = 0) -> Any:
    """Returns which integers or decimals have more significant bits than a float with `bits` of them, and are none of
    the integers from -`most` - 1 to `most`. Decimals with a fraction have at most 15 digits: a float gives them back.
    """
    if not pa.types.is_decimal(column.type):
        values = integers(column)
        far = values > 2**bits
        if values.dtype.kind == "i":
            far |= values < -(2**bits)
        if not far.any():
            return pa.array(far)
        wide = [bool(is_far) and _bits(int(value)) > bits for is_far, value in zip(far, values, strict=True)]
        return pc.and_(pa.array(wide), column.is_valid())  # the memory behind a null may have any value
    lost = np.zeros(len(column), dtype=bool)
    far = np.flatnonzero(_may_lose_digits(column, bits, most))
    for row, value in zip(far.tolist(), column.take(pa.array(far, pa.int64())).to_pylist(), strict=True):
        if value == value.to_integral_value():
            whole = int(value)
            lost[row] = not -most - 1 <= whole <= most and _bits(whole) > bits
        else:
            lost[row] = len(value.normalize(_EXACT).as_tuple().digits) > _DIGITS_OF_FLOATS
    return pa.array(lost, pa.bool_())


def _may_lose_digits(column: Any, bits: int, most: int) -> Any:
    """Returns, in numpy, which decimals have to be looked at one by one: nearly none of a usual column. All others have few digits
    and are near 0, or are integers within `most`.
    """
    texts = column.cast(pa.string())
    digits = pc.binary_length(pc.ascii_trim(pc.replace_substring_regex(texts, "E.*|[-.]", ""), "0"))
    size = np.abs(pc.cast(column, pa.float64()).fill_null(0).to_numpy(zero_copy_only=False))
    # The float of a decimal may be a little off.
    far = (digits.fill_null(0).to_numpy(zero_copy_only=False) > _DIGITS_OF_FLOATS) | (size > 2**bits * (1 - _SLACK))
    if most and far.any():
        whole = pc.match_substring_regex(texts, r"^-?[0-9]+(\.0*)?$").fill_null(False)
        far &= ~(whole.to_numpy(zero_copy_only=False) & (size < most * (1 - _SLACK)))
    return far


def _bits(value: int) -> int:
    """Returns how many bits there are from the first one that is set to the last one."""
    return (value // (value & -value)).bit_length() if value else 0


def not_held(name: str, kind: Any) -> UserError:
    """Returns the error for a column whose type no table can have."""
    return UserError(
        f"column {name!r}: a database cannot hold {kind}", hint="cast it, or leave it out, before the sink"
    )


def utc(column: Any) -> Any:
    """Returns a timestamp with a time zone as the same moment in UTC, and one without a zone unchanged."""
    return column if column.type.tz in (None, "UTC") else column.cast(pa.timestamp(column.type.unit, "UTC"))


def last_of_each_key(data: pa.RecordBatch, keys: Sequence[str]) -> pa.RecordBatch:
    """Returns the rows that no later row of the same key replaces, in order."""
    columns: list[Any] = [data.column(key) for key in keys]
    names = [str(place) for place in range(len(keys))]
    numbered = pa.Table.from_arrays([*columns, pa.array(np.arange(data.num_rows))], names=[*names, "row"])
    last = numbered.group_by(names, use_threads=False).aggregate([("row", "max")]).column("row_max").to_numpy()
    if len(last) == data.num_rows:
        return data
    rows: Any = pa.array(np.sort(last))
    return data.take(rows)
