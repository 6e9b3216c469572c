"""Records' keys -> the columns of a table's key: the way back of `connectors.base.record_keys`."""

from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.json import JsonDecoder
from sabot._cython.rows import bytes_list
from sabot.codecs.debezium import ConnectTypes

__all__ = ["JsonKeys", "TextKeys"]

Found = tuple[list[Any], dict[int, str]]
"""Columns, null where a key does not say them; row -> what is wrong with its key."""


class TextKeys:
    """One column of text or bytes: the key as it stands."""

    def __init__(self, schema: pa.Schema) -> None:
        self._kind = schema.field(0).type

    def read(self, keys: pa.Array) -> Found:
        try:
            return [keys.cast(self._kind)], {}
        except pa.ArrowInvalid:
            texts: list[str | None] = []
            wrong: dict[int, str] = {}
            for row, key in enumerate(bytes_list(keys)):  # rare: only where one of them is wrong
                try:
                    texts.append(None if key is None else key.decode())
                except UnicodeDecodeError as error:
                    texts.append(None)
                    wrong[row] = f"the record's key is no UTF-8: {error.reason} at byte {error.start}"
            return [pa.array(texts, self._kind)], wrong


class JsonKeys:
    """A JSON object with the columns; of one column also its value alone, a time also as text without quotes.

    connect: as Kafka Connect writes keys, in an object, which may be the payload of one with a schema.
    """

    def __init__(self, schema: pa.Schema, *, connect: bool) -> None:
        self._types = ConnectTypes(schema) if connect else None
        plain = schema if self._types is None else self._types.plain
        self._decoders = [JsonDecoder(plain)]
        if connect:
            self._decoders.append(JsonDecoder(pa.schema([("payload", pa.struct(list(plain)))])))
        self._alone = None if connect or len(schema) > 1 else schema.field(0)

    def read(self, keys: pa.Array) -> Found:
        keys = keys if self._alone is None else self._objects(keys)
        columns, wrong = self._decode(keys, 0)
        if len(self._decoders) > 1 and all(column.null_count for column in columns):
            inside, _ = self._decode(keys, 1)
            columns = [pc.coalesce(column, other) for column, other in zip(columns, inside, strict=True)]
        if self._types is None:
            return columns, wrong
        columns, unfit = self._types.typed(columns)
        return columns, {**unfit, **wrong}

    def _decode(self, keys: pa.Array, way: int) -> Found:
        there = np.flatnonzero(np.asarray(keys.is_valid()))
        read, refused = self._decoders[way].decode(keys.drop_null())
        wrong = {int(there[each.row]): f"the record's key cannot be read: {each.reason}" for each in refused}
        there = np.delete(there, [each.row for each in refused])
        places = np.full(len(keys), -1)
        places[there] = np.arange(len(there))
        spread = read.take(pa.array(places, mask=places < 0))
        return spread.column(0).flatten() if way else spread.columns, wrong

    def _objects(self, keys: pa.Array) -> pa.Array:
        """Values alone, as objects."""
        assert self._alone is not None
        values = keys
        if pa.types.is_temporal(self._alone.type):
            bare = pc.invert(pc.match_substring_regex(keys, r'^(-?\d+$|"|\{)'))
            values = pc.if_else(bare, _joined(b'"', keys, b'"'), keys)
        name = msgspec.json.encode(self._alone.name)
        return pc.if_else(pc.starts_with(keys, "{"), keys, _joined(b"{" + name + b":", values, b"}"))


def _joined(before: bytes, values: pa.Array, after: bytes) -> Any:
    return pc.binary_join_element_wise(pa.scalar(before), values, pa.scalar(after), pa.scalar(b""))
