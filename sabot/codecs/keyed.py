"""The format of records whose keys have a format too, as in Flink's tables on topics."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import pyarrow as pa

from sabot._cython.text.json import BadRow
from sabot.base.arrays import empty_batch
from sabot.codecs.base import Codec, Encoder, EncodesKeys, Format, LostFloats
from sabot.codecs.keys import (
    BIG_ENDIAN,
    CodecKeys,
    FramedKeys,
    JsonKeys,
    NumberKeys,
    TextKeys,
    keys_of_schema,
    number_keys,
)
from sabot.codecs.records import RECORD_SCHEMA
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.codecs.schemas import SchemaRegistry

_KEY = "key"  # the name of the record in which keys in Avro are read


KeyRows: TypeAlias = CodecKeys | FramedKeys | JsonKeys | NumberKeys | TextKeys
"""A reader of the keys of records: `read(keys)` returns the key columns, and the errors of the rows whose keys cannot
be read.
"""


@dataclass(frozen=True)
class KeyAndValue(Format):
    """The format of records whose keys are encoded from several columns, or in another form than `record_keys` has it.

    `value`: the format of the payloads. `key`: the format of the keys. `fields`: the columns of the keys. `prefix`: the
    beginning of their names, which the keys lack. `in_value`: True if payloads have these columns too. `of_key`: the
    columns of keys, needed to read them apart from payloads whose format has columns of its own; a column of the same
    name in such payloads is left out. Each of the two formats encodes a record from one row.

        fields=("k_id",), prefix="k_", in_value=False       key {"id":1}    payload {"name":"Ada"}
    """

    name: ClassVar[str] = "key and value"
    value: Format
    key: Format
    fields: tuple[str, ...]
    prefix: str = ""
    in_value: bool = True
    of_key: pa.Schema | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "own_columns", self.value.own_columns)

    @property
    def known_columns(self) -> pa.Schema | None:
        return self._with_keys(self.value.known_columns)

    def columns(self, topic: str) -> pa.Schema | None:
        return self._with_keys(self.value.columns(topic))

    def _with_keys(self, payloads: pa.Schema | None) -> pa.Schema | None:
        if self.in_value or payloads is None or self.of_key is None:
            return payloads
        return pa.schema([*(each.with_nullable(True) for each in self.of_key), *self._payloads(payloads)])

    @property
    def sample_rows(self) -> int:
        return self.value.sample_rows

    @property
    def description(self) -> str:
        apart = "" if self.in_value else " alone"
        return f"{self.value.description}, with {', '.join(self.fields)} in keys{apart} as {self.key.description}"

    def check_input(self, schema: pa.Schema | None, where: str) -> None:
        self.value.check_input(schema, where)

    def codec(
        self, topic: str, schema: pa.Schema | None, columns: Sequence[str] | None = None, text: str | None = None
    ) -> Codec:
        if schema is None and not self.in_value and self.of_key is not None:
            schema = self._with_keys(self.value.codec(topic, None, None, text).schema)
        if self.in_value or schema is None:
            return self.value.codec(topic, schema, columns, text)
        wanted = schema.names if columns is None else columns
        payloads = self._payloads(schema)
        given = None if self.value.own_columns else payloads
        inner = self.value.codec(topic, given, [each for each in wanted if each in payloads.names], text)
        every = pa.schema([schema.field(name).with_nullable(True) for name in self.fields])
        keys = self.key_rows(every, self.fields)
        return _KeyedCodec(inner, keys, every, pa.schema([schema.field(name) for name in wanted]))

    def key_rows(self, schema: pa.Schema, wanted: Sequence[str]) -> KeyRows:
        """Returns a reader of these columns of the keys. `schema`: the columns of all fields, and maybe others."""
        from sabot.codecs.schemas import Avro, Protobuf

        plain = self._in_keys(schema, wanted)
        if self.key.needs_schema or isinstance(self.key, Avro | Protobuf):
            fields = self._in_keys(schema, self.fields)  # in their order in the keys
            names = [each for each in plain.names if each in fields.names]
            if isinstance(self.key, Avro) and self.key.registry is not None and self.key.schema is None:
                return _avro_keys(self.key.registry, fields, names, plain)
            return CodecKeys(self.key.codec("the keys", fields, names), plain)
        if self.key.name == "raw" and plain.field(0).type in BIG_ENDIAN:
            return NumberKeys(plain.field(0).type)
        text = len(plain) == 1 and plain.field(0).type in (pa.string(), pa.binary())
        return TextKeys(plain) if text and self.key.name != "json" else JsonKeys(plain, connect=False)

    def encoder(self, topic: str) -> Encoder:
        return _KeyedEncoder(self, self.value.encoder(topic), self.key.encoder(topic))

    def check_types(self, schema: pa.Schema, where: str) -> None:
        if not schema.equals(RECORD_SCHEMA):
            keys = self.keys_of(empty_batch(pa.schema([schema.field(n) for n in self.fields])))
            self.key.check_types(keys.schema, where)
        self.value.check_types(schema if self.in_value else self._payloads(schema), where)

    def floats_lost(self, kind: pa.DataType) -> LostFloats:
        return self.value.floats_lost(kind)

    def _payloads(self, schema: pa.Schema) -> pa.Schema:
        return pa.schema([field for field in schema if field.name not in self.fields])

    def _in_keys(self, schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
        return pa.schema([schema.field(name).with_name(self._name_in_key(name)) for name in columns])

    def _name_in_key(self, column: str) -> str:
        return column.removeprefix(self.prefix)

    def keys_of(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the columns of the keys of these rows, with the names that they have in keys."""
        columns = [rows.column(name) for name in self.fields]
        if self.key.name == "raw":
            columns = [number_keys(each) if each.type in BIG_ENDIAN else each for each in columns]
        return pa.RecordBatch.from_arrays(columns, names=[self._name_in_key(name) for name in self.fields])

    def values_of(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the columns of the payloads of these rows."""
        return rows if self.in_value else rows.select(self._payloads(rows.schema).names)


class _KeyedEncoder(EncodesKeys):
    """An encoder of payloads that also encodes the keys of the rows."""

    def __init__(self, format: KeyAndValue, values: Encoder, keys: Encoder) -> None:
        self._format, self._values, self._keys = format, values, keys

    def another(self) -> "_KeyedEncoder":
        return _KeyedEncoder(self._format, self._values.another(), self._keys.another())

    def encode(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        return self._values.encode(self._format.values_of(batch))

    def encode_keys(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        return self._keys.encode(self._format.keys_of(batch))


class _KeyedCodec:
    """A codec that reads some columns from the keys of records, and the others from their payloads.

    Of payloads without their records, as a table decodes them, the columns of the key are null.
    """

    def __init__(self, payloads: Codec, keys: KeyRows, of_key: pa.Schema, schema: pa.Schema) -> None:
        self._given = (keys, of_key, schema)
        self._payloads = payloads
        self._keys = keys
        self._of_key = of_key
        self.schema = pa.schema([of_key.field(each.name) if each.name in of_key.names else each for each in schema])

    @property
    def text(self) -> str | None:
        return self._payloads.text

    def another(self) -> "_KeyedCodec":
        return _KeyedCodec(self._payloads.another(), *self._given)

    def decode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[BadRow]]:
        data, bad = self._payloads.decode(batch)
        numbers = np.delete(np.arange(batch.num_rows), [each.row for each in bad])
        found: list[Any] = [pa.nulls(len(numbers), field.type) for field in self._of_key]
        wrong: dict[int, str] = {}
        if "key" in batch.schema.names:
            found, wrong = self._keys.read(batch.column("key").take(pa.array(numbers)))
        columns = dict(zip(self._of_key.names, found, strict=True)) | dict(
            zip(data.schema.names, data.columns, strict=True)
        )
        whole = pa.RecordBatch.from_arrays([columns[name] for name in self.schema.names], schema=self.schema)
        if not wrong:
            return whole, bad
        bad = sorted([*bad, *(BadRow(int(numbers[row]), why) for row, why in wrong.items())], key=lambda each: each.row)
        good = np.ones(len(numbers), bool)
        good[list(wrong)] = False
        return whole.filter(pa.array(good)), bad


def payload_codec(codec: Codec) -> Codec:
    """Returns the codec of the payloads: that inside of a codec that reads keys too."""
    return codec._payloads if isinstance(codec, _KeyedCodec) else codec


def key_rows_of(format: Format, schema: pa.Schema, keys: Sequence[str]) -> KeyRows | None:
    """Returns the reader of the keys of records that a format brings, or None. `keys`: the columns of the key in `schema`.

    Beside payloads in Avro with a registry, keys that begin with the id of a schema are read by it, as Kafka Connect writes them.
    """
    if isinstance(format, KeyAndValue):
        return format.key_rows(schema, keys)
    if not format.own_columns:
        return None
    from sabot.codecs.schemas import Avro

    if not isinstance(format, Avro) or format.registry is None:
        return None
    plain = pa.schema([schema.field(key) for key in keys])
    framed = _avro_keys(format.registry, plain, plain.names, plain)
    try:
        return FramedKeys(framed, keys_of_schema(plain, connect=False))
    except UserError:  # keys in JSON have no such type: a time of day
        return framed


def as_key(format: Format) -> Format:
    """Returns a format for the keys of records: its schema has the usual subject for keys, if it has the usual one for payloads."""
    if not format.own_columns:
        return format
    from sabot.codecs.schemas import Avro, Protobuf

    if isinstance(format, Avro | Protobuf) and format.subject == "{topic}-value":
        return replace(format, subject="{topic}-key")
    return format


def _avro_keys(registry: "SchemaRegistry", fields: pa.Schema, names: Sequence[str], plain: pa.Schema) -> CodecKeys:
    """Returns a reader of keys whose columns are known: the schema with which they were written says how they are read."""
    from sabot.codecs.avro import AvroCodec, avro_schema

    def schema_of(id: int) -> str:
        written = json.loads(registry.schema_of(id, "AVRO"))
        is_record = isinstance(written, dict) and isinstance(written.get("name"), str) and "fields" in written
        if not is_record and len(fields) == 1:  # a value alone has the bytes of a record with one field
            written = {"type": "record", "name": _KEY, "fields": [{"name": fields.names[0], "type": written}]}
        elif not is_record:
            return json.dumps(written)
        # a record is read by its own name only, and this one may have any
        space, _, _ = written["name"].rpartition(".")
        return json.dumps({**written, "name": f"{space}.{_KEY}" if space else _KEY})

    return CodecKeys(AvroCodec(avro_schema(fields, _KEY), schema_of=schema_of, columns=names), plain)
