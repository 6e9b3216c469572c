"""Decimals as keys of the tables: groups, their states and cuts, and rows by key, against a dict."""

import random
from collections import Counter
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from sabot._cython.groups.keyed import GroupTable
from sabot._cython.groups.partition import hash_columns
from sabot._cython.rows.row_table import RowTable
from sabot.engine.state.tables.cold import RowCodec

VALUES = [None, Decimal("1.25"), Decimal("-7.5"), Decimal(0), Decimal("9999999.99")]


def counted(columns: Any) -> dict[Any, Any]:
    return dict(zip(*(column.to_pylist() for column in columns), strict=True))


@pytest.mark.parametrize("kind", [pa.decimal128(9, 2), pa.decimal256(60, 2)])
def test_tables_by_decimals(kind: pa.DataType) -> None:
    seeded = random.Random(15)
    for _ in range(50):
        column = pa.array([seeded.choice(VALUES) for _ in range(seeded.randrange(60))], kind).slice(seeded.randrange(5))
        batch = pa.record_batch({"a": column, "b": pa.array(range(len(column)), pa.int64())})
        keys, want = pa.schema([batch.schema.field(0)]), Counter(column.to_pylist())
        table = GroupTable(keys, [("count", None)])
        table.update(batch, [0], [-1])
        state = table.export()
        state.validate(full=True)
        assert counted(state.columns) == want
        other = GroupTable(keys, [("count", None)])
        other.merge(state)
        other.merge(state)
        assert counted(other.finish()) == {key: 2 * count for key, count in want.items()}
        cut, pieces = other.cut(), {}
        while (piece := cut.read(2)) is not None:
            pieces.update(counted(piece.columns))
        assert pieces == counted(other.finish())
        rows = RowTable(batch.schema, ["a"])
        rows.insert(batch)
        found, _ = rows.find(batch, [0])
        assert len(found) == sum(count * count for key, count in want.items() if key is not None)


@pytest.mark.parametrize("kind", [pa.decimal128(9, 2), pa.decimal256(60, 2)])
def test_they_have_the_hash_of_their_bytes_and_go_into_a_database(kind: pa.DataType) -> None:
    column = pa.array([*VALUES, Decimal("1.250")], kind)
    assert hash_columns([column]).equals(hash_columns([column.view(pa.binary(kind.byte_width))]))
    codec = RowCodec([kind], as_keys=True)
    packed = codec.pack([column])
    assert packed[1] == packed[5]
    (back,) = codec.unpack(packed)
    assert back.equals(column)
