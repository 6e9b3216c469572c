"""Decodes the keys of records into the key columns of a table: the inverse of `codecs.records.record_keys`."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.binary.wire import HEADER_BYTES
from sabot._cython.text.json import BadRow, JsonDecoder
from sabot._cython.text.records import bytes_list
from sabot.codecs.base import Codec
from sabot.codecs.connect import SCHEMAS, ConnectTypes, by_schema, types_of

_SEVERAL = "the record's key cannot be read: it is not a single JSON value"
Found = tuple[list[Any], dict[int, str]]
"""The key columns, null where a key lacks the value, and the error of each row whose key cannot be read."""


class TextKeys:
    """A reader of keys for one key column of text or bytes: the record's key is the value, or is in JSON with a schema
    of Connect around it.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._kind = schema.field(0).type
        self._connect = JsonKeys(schema, connect=True)

    def read(self, keys: pa.Array) -> Found:
        return _read_apart(keys, in_connect(keys), self._connect.read, self._read)

    def _read(self, keys: pa.Array) -> Found:
        try:
            return [keys.cast(self._kind)], {}
        except pa.ArrowInvalid:
            texts: list[str | None] = []
            wrong: dict[int, str] = {}
            for row, key in enumerate(bytes_list(keys)):  # only if some key of the batch is wrong, which is rare
                try:
                    texts.append(None if key is None else key.decode())
                except UnicodeDecodeError as error:
                    texts.append(None)
                    wrong[row] = f"the record's key is not UTF-8: {error.reason} at byte {error.start}"
            return [pa.array(texts, self._kind)], wrong


BIG_ENDIAN = {
    pa.bool_(): "?",
    pa.int8(): "i1",
    pa.int16(): ">i2",
    pa.int32(): ">i4",
    pa.int64(): ">i8",
    pa.float32(): ">f4",
    pa.float64(): ">f8",
}
"""The types of numbers that may be the bytes of a key, as the serialisers of the Java client write them, and these bytes."""


class NumberKeys:
    """A reader of keys that are the bytes of one number, as BIG_ENDIAN has them."""

    def __init__(self, kind: pa.DataType) -> None:
        self._kind = kind
        self._bytes = np.dtype(BIG_ENDIAN[kind])

    def read(self, keys: pa.Array) -> Found:
        width = self._bytes.itemsize
        lengths = pc.binary_length(keys).fill_null(width).to_numpy(zero_copy_only=False)
        unfit = np.flatnonzero(lengths != width)
        wrong = {int(row): f"the record's key has {lengths[row]} bytes, and {self._kind} has {width}" for row in unfit}
        there = np.asarray(keys.is_valid()) & (lengths == width)
        data = keys.filter(pa.array(there)).cast(pa.binary(width))
        values = np.zeros(len(keys), self._bytes.newbyteorder("="))
        if there.any():
            values[there] = np.frombuffer(data.buffers()[1], self._bytes)[data.offset : data.offset + len(data)]
        return [pa.array(values, self._kind, mask=~there)], wrong


def number_keys(column: Any) -> Any:
    """Returns numbers as the bytes that `NumberKeys` reads; null stays null."""
    form = np.dtype(BIG_ENDIAN[column.type])
    filled = pc.fill_null(column, False if pa.types.is_boolean(column.type) else 0)
    data = pa.py_buffer(filled.to_numpy(zero_copy_only=False).astype(form).tobytes())
    whole: Any = pa.Array.from_buffers(pa.binary(form.itemsize), len(column), [None, data])
    return pc.if_else(pc.is_valid(column), whole.cast(pa.binary()), pa.scalar(None, pa.binary()))


class CodecKeys:
    """A reader of keys that are records of a format themselves, such as CSV: `codec` decodes each key as a payload.
    `schema`: the key columns; those that the codec does not give are null.
    """

    def __init__(self, codec: Codec, schema: pa.Schema) -> None:
        self._codec = codec
        self._schema = schema

    def read(self, keys: pa.Array) -> Found:
        there = np.flatnonzero(np.asarray(keys.is_valid()))
        data, refused = self._codec.decode(pa.RecordBatch.from_arrays([keys.drop_null()], names=["payload"]))
        columns, wrong = _spread(data, refused, there, len(keys))
        found = dict(zip(data.schema.names, columns, strict=True))
        made = [found.get(field.name, pa.nulls(len(keys), field.type)) for field in self._schema]
        return [column.cast(field.type) for column, field in zip(made, self._schema, strict=True)], wrong


class FramedKeys:
    """A reader of keys that may begin with the id of their schema in a registry (Confluent's wire format): `framed` reads
    these, and `plain` the others.
    """

    def __init__(self, framed: CodecKeys, plain: "TextKeys | JsonKeys") -> None:
        self._framed, self._plain = framed, plain

    def read(self, keys: pa.Array) -> Found:
        begun = pc.and_(pc.starts_with(keys, b"\0"), pc.greater(pc.binary_length(keys), HEADER_BYTES))
        return _read_apart(keys, np.asarray(begun.fill_null(False)), self._framed.read, self._plain.read)


class JsonKeys:
    """A reader of keys in JSON: objects with the key columns. A single column may also be its bare value, and a bare
    time may lack quotes. Each may be the payload of an object with a schema of Connect.

    `connect`: True if keys are written by Kafka Connect: always an object, with Connect's types. `named`: the text of the
    schema around the keys if it names such types, else b"".
    """

    def __init__(self, schema: pa.Schema, *, connect: bool, named: bytes = b"") -> None:
        self._schema = schema
        self._types = ConnectTypes(schema, types_of(named, alone=next(iter(schema.names), None))) if connect else None
        self._by_schema: dict[bytes, JsonKeys] = {}
        plain = schema if self._types is None else self._types.plain
        self._decoders = [JsonDecoder(plain)]
        if connect:
            self._decoders.append(JsonDecoder(pa.schema([("payload", pa.struct(list(plain)))])))
            if len(plain) == 1:
                self._decoders.append(JsonDecoder(pa.schema([plain.field(0).with_name("payload").with_nullable(True)])))
        self._connect = None if connect or "schema" in schema.names else JsonKeys(schema, connect=True)
        self._alone = None if connect or len(schema) > 1 else schema.field(0)
        if self._alone is not None:
            self._lists = JsonDecoder(pa.schema([self._alone.with_type(pa.list_(self._alone.type))]))

    def read(self, keys: pa.Array) -> Found:
        if self._types is None:
            return (
                self._read(keys)
                if self._connect is None
                else _read_apart(keys, in_connect(keys), self._connect.read, self._read)
            )
        parts = [(rows, self._of(named)._read(keys.take(pa.array(rows)))) for named, rows in by_schema(keys)]
        return _merged(parts) if parts else self._read(keys)

    def _of(self, named: bytes) -> "JsonKeys":
        """Returns the reader of keys with this schema around them."""
        if not named:
            return self
        if named not in self._by_schema:
            if len(self._by_schema) >= SCHEMAS:
                self._by_schema.clear()
            self._by_schema[named] = JsonKeys(self._schema, connect=True, named=named)
        return self._by_schema[named]

    def _read(self, keys: pa.Array) -> Found:
        several: dict[int, str] = {}
        if self._alone is not None:
            keys, several = self._objects(keys, self._alone)
        columns, wrong = self._decode(keys, 0)
        wrong.update(several)
        for way in range(1, len(self._decoders)):
            if all(column.null_count for column in columns):
                inside, _ = self._decode(keys, way)
                columns = [pc.coalesce(column, other) for column, other in zip(columns, inside, strict=True)]
        if self._types is None:
            return columns, wrong
        columns, unfit = self._types.typed(columns)
        return columns, {**unfit, **wrong}

    def _decode(self, keys: pa.Array, way: int) -> Found:
        there = np.flatnonzero(np.asarray(keys.is_valid()))
        given = keys.drop_null()
        data, refused = self._decoders[way].decode(given)
        columns, wrong = _spread(data, refused, there, len(keys))
        return columns[0].flatten() if way == 1 else columns, wrong

    def _objects(self, keys: pa.Array, alone: pa.Field) -> tuple[pa.Array, dict[int, str]]:
        """Wraps bare values as objects. Returns them, and the error of each row whose key is not one value. The check
        is needed because a key such as `5,"id":9` would become a valid object with a further member.
        """
        values = keys
        if pa.types.is_temporal(alone.type):
            bare = pc.invert(pc.match_substring_regex(keys, r'^(-?\d+$|"|\{)'))
            values = pc.if_else(bare, _joined(b'"', keys, b'"'), keys)
        begin = b"{" + msgspec.json.encode(alone.name) + b":"
        objects = pc.starts_with(keys, "{")
        asked = np.flatnonzero(pc.and_not(pc.match_substring(values, ","), objects).fill_null(False))
        several = {}
        # A text that is valid both as a member of an object and in a list is one value: `5,"id":9` is invalid in a
        # list.
        if len(asked):
            _, refused = self._lists.decode(_joined(begin + b"[", values.take(pa.array(asked)), b"]}"))
            several = {int(asked[each.row]): _SEVERAL for each in refused}
        found = pc.if_else(objects, keys, _joined(begin, values, b"}"))
        if several:
            single = np.ones(len(keys), bool)
            single[list(several)] = False
            found = pc.if_else(pa.array(single), found, pa.nulls(len(keys), found.type))
        return found, several


def keys_of_schema(schema: pa.Schema, *, connect: bool) -> TextKeys | JsonKeys:
    """Returns the reader of keys as `codecs.records.record_keys` makes them. `connect`: as in JsonKeys."""
    text = len(schema) == 1 and schema.field(0).type in (pa.string(), pa.binary()) and not connect
    return TextKeys(schema) if text else JsonKeys(schema, connect=connect)


def in_connect(keys: pa.Array) -> Any:
    """Returns, as a numpy mask, the keys, or payloads, that have a schema of Connect around them."""
    begun, told = pc.starts_with(keys, b'{"schema":'), pc.match_substring(keys, b'"payload":')
    return np.asarray(pc.and_(begun, told).fill_null(False))


def _read_apart(
    keys: pa.Array, which: Any, read: Callable[[pa.Array], Found], others: Callable[[pa.Array], Found]
) -> Found:
    """Reads the keys of the mask `which` with `read`, the others with `others`."""
    if not which.any():
        return others(keys)
    ways = ((np.flatnonzero(~which), others), (np.flatnonzero(which), read))
    return _merged([(rows, way(keys.take(pa.array(rows)))) for rows, way in ways])


def _merged(parts: Sequence[tuple[Any, Found]]) -> Found:
    """Joins what was found for parts of the keys, each with the numbers of its rows."""
    order = pa.array(np.argsort(np.concatenate([rows for rows, _ in parts])))
    columns = [pa.concat_arrays(each).take(order) for each in zip(*(found for _, (found, _) in parts), strict=True)]
    return columns, {int(rows[row]): why for rows, (_, wrong) in parts for row, why in wrong.items()}


def _spread(read: pa.RecordBatch, refused: Sequence[BadRow], there: Any, count: int) -> Found:
    """Returns the columns of keys that were decoded, with null where there is no key, and the errors of the others.
    `there`: the rows of the decoded keys, bad ones included, among `count` rows.
    """
    wrong = {int(there[each.row]): f"the record's key cannot be read: {each.reason}" for each in refused}
    there = np.delete(there, [each.row for each in refused])
    places = np.full(count, -1)
    places[there] = np.arange(len(there))
    return read.take(pa.array(places, mask=places < 0)).columns, wrong


def _joined(before: bytes, values: pa.Array, after: bytes) -> Any:
    return pc.binary_join_element_wise(pa.scalar(before), values, pa.scalar(after), pa.scalar(b""))
