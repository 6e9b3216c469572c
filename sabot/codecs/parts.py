"""The format of records of which some columns are parts beside the payload: METADATA of Flink's tables on topics."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.base.arrays import epoch
from sabot.codecs.base import Codec, Encoder, EncodesKeys, EncodesParts, Format, LostFloats
from sabot.codecs.records import RECORD_SCHEMA

_HEADERS: Any = RECORD_SCHEMA.field("headers").type


@dataclass(frozen=True)
class WithParts(Format):
    """The format of records that are written with parts from columns, which their payloads lack.

    `payload`: the format of the payloads. `timestamp`: the column of the timestamps, or None. `headers`: pairs of a column
    and of the name of the header that its texts are; of a column of all headers, maps or lists of pairs, the name is "".
    `key`: the column of the keys, which `key=` of the sink names too, or None.
    """

    name: ClassVar[str] = "parts"
    payload: Format
    timestamp: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    key: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "own_columns", self.payload.own_columns)
        object.__setattr__(self, "one_row", self.payload.one_row)

    @property
    def description(self) -> str:
        return f"{self.payload.description}, with {', '.join(self._columns)} beside it"

    @property
    def _columns(self) -> tuple[str, ...]:
        return tuple(each for each in (self.timestamp, *(column for column, _ in self.headers), self.key) if each)

    def codec(
        self, topic: str, schema: pa.Schema | None, columns: Sequence[str] | None = None, text: str | None = None
    ) -> Codec:
        return self.payload.codec(topic, schema, columns, text)

    def encoder(self, topic: str) -> Encoder:
        inner = self.payload.encoder(topic)
        return _KeyedPartsEncoder(self, inner) if isinstance(inner, EncodesKeys) else _PartsEncoder(self, inner)

    def check_types(self, schema: pa.Schema, where: str) -> None:
        given = (
            schema if schema.equals(RECORD_SCHEMA) else pa.schema([schema.field(each) for each in self._rest(schema)])
        )
        self.payload.check_types(given, where)

    def floats_lost(self, kind: pa.DataType) -> LostFloats:
        return self.payload.floats_lost(kind)

    def _rest(self, schema: pa.Schema) -> list[str]:
        return [name for name in schema.names if name not in self._columns]

    def payload_of(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the columns of the payloads of these rows."""
        return rows.select(self._rest(rows.schema))


class _PartsEncoder(EncodesParts):
    """An encoder of payloads that makes the timestamps and headers of the rows too."""

    def __init__(self, format: WithParts, payloads: Any) -> None:
        self._format, self._payloads = format, payloads

    def another(self) -> "_PartsEncoder":
        return type(self)(self._format, self._payloads.another())

    def encode(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        made: pa.BinaryArray = self._payloads.encode(self._format.payload_of(batch))
        return made

    def parts(self, batch: pa.RecordBatch) -> tuple[Any, Any]:
        time, headers = self._format.timestamp, self._format.headers
        return None if time is None else _ms(batch.column(time)), _headers(batch, headers) if headers else None


class _KeyedPartsEncoder(_PartsEncoder, EncodesKeys):
    """An encoder of payloads, parts and keys."""

    def encode_keys(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        made: pa.BinaryArray = self._payloads.encode_keys(self._format.payload_of(batch))
        return made


def _ms(times: Any) -> Any:
    return times.cast(pa.int64()) if pa.types.is_integer(times.type) else epoch(times, "ms")


def _headers(rows: pa.RecordBatch, columns: Sequence[tuple[str, str]]) -> Any:
    """Returns the headers of each row, null for none. `columns`: see WithParts."""
    found = [_named(rows.column(column), name) if name else _pairs(rows.column(column)) for column, name in columns]
    owners = np.concatenate([each for each, _, _ in found])
    order = pa.array(np.argsort(owners, kind="stable"))
    names, values = (pa.concat_arrays([each[i] for each in found]).take(order) for i in (1, 2))
    counts = np.bincount(owners, minlength=rows.num_rows)
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    pairs = pa.StructArray.from_arrays([names, values], fields=list(_HEADERS.value_type))
    return pa.ListArray.from_arrays(pa.array(bounds), pairs, mask=pa.array(counts == 0))


def _named(texts: Any, name: str) -> tuple[Any, Any, Any]:
    """Returns the rows that have this header, its name for each, and its values."""
    there = np.flatnonzero(np.asarray(texts.is_valid()))
    return there, pa.repeat(pa.scalar(name), len(there)), texts.drop_null().cast(pa.binary())


def _pairs(lists: Any) -> tuple[Any, Any, Any]:
    """Returns the row of each header, its name and its value. Headers without a name are left out."""
    starts = np.asarray(lists.offsets).astype(np.int64)
    sizes = np.where(np.asarray(lists.is_valid()), np.diff(starts), 0)
    owners = np.repeat(np.arange(len(lists)), sizes)
    places = pa.array(np.arange(len(owners)) + np.repeat(starts[:-1] - (np.cumsum(sizes) - sizes), sizes))
    if pa.types.is_map(lists.type):
        names, values = lists.keys.take(places), lists.items.take(places)
    else:
        pairs = lists.values.take(places)
        names, values = (pc.struct_field(pairs, [i]) for i in (0, 1))
    named = names.is_valid()
    owners = owners[np.asarray(named)]
    return owners, names.filter(named).cast(pa.string()), values.filter(named).cast(pa.binary())
