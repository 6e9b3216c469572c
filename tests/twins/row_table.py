"""The naive twin of `sabot._cython.rows.row_table.RowTable`: the same interface over a list of Python rows. Slow, and simple to read."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from sabot._cython.groups.partition import hash_columns

__all__ = ["RowTable"]


def plain(value: Any) -> Any:
    """A value that is equal, and hashes equal, where the table says that values are."""
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else value + 0.0
    if isinstance(value, list | tuple):
        return tuple(plain(x) for x in value)
    if isinstance(value, dict):
        return tuple((name, plain(x)) for name, x in value.items())
    return value


class RowTable:
    def __init__(self, rows: pa.Schema, keys: Sequence[str], *, counted: bool = False) -> None:
        self.rows, self.keys, self.counted = rows, list(keys), counted
        self._columns = [rows.get_field_index(name) for name in keys]
        if -1 in self._columns or len(set(keys)) < len(keys):
            raise ValueError(f"keys {list(keys)} are not all columns of {rows.names}")
        self._next = 0
        self._rows: dict[int, pa.RecordBatch] = {}  # id -> a batch of one row
        self._values: dict[int, tuple[Any, ...]] = {}
        self._order: dict[int, int] = {}
        self._count: dict[int, int] = {}
        self._by_key: dict[Any, list[tuple[int, int]]] = {}  # (order, id), sorted

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self._rows.values())

    def statistics(self) -> dict[str, int]:
        return {"rows": len(self), "keys": len(self._by_key), "blocks": 1, "bytes": self.nbytes}

    def insert(self, data: Any, order: Any = None, *, hashes: Any = None, selection: Any = None) -> pa.Int64Array:
        data = data.select(range(len(self.rows)))
        if data.schema.types != self.rows.types:
            raise TypeError(f"rows of {data.schema.types} into a table of {self.rows.types}")
        ids = []
        for row in _chosen(data, selection):
            self._rows[self._next] = data.slice(row, 1)
            self._values[self._next] = _values(data.slice(row, 1))
            self._order[self._next] = 0 if order is None else order[row].as_py()
            self._count[self._next] = 0
            chain = self._by_key.setdefault(_key(data, self._columns, row), [])
            chain.append((self._order[self._next], self._next))
            chain.sort()
            ids.append(self._next)
            self._next += 1
        return pa.array(ids, pa.int64())

    def find(
        self,
        data: Any,
        keys: Sequence[int],
        *,
        hashes: Any = None,
        selection: Any = None,
        lower: Any = None,
        upper: Any = None,
        limit: int | None = None,
    ) -> tuple[pa.Int32Array, pa.Int64Array]:
        pairs: list[tuple[int, int]] = []
        for i, (row, chain) in enumerate(self._chains(data, keys, selection)):
            low = -math.inf if lower is None else lower[row].as_py()
            high = math.inf if upper is None else upper[row].as_py()
            pairs += [(i, id) for order, id in chain if low <= order <= high][:limit]
        return pa.array([i for i, _ in pairs], pa.int32()), pa.array([id for _, id in pairs], pa.int64())

    def find_chunks(self, *args: Any, rows: int = 65_536, **options: Any) -> Iterator[tuple[Any, Any]]:
        numbers, ids = self.find(*args, **options)
        for start in range(0, len(ids), rows):
            yield numbers.slice(start, rows), ids.slice(start, rows)

    def last_at(self, data: Any, keys: Any, at: Any, *, hashes: Any = None, selection: Any = None) -> pa.Int64Array:
        found = [
            [id for order, id in chain if order <= at[row].as_py()][-1:]
            for row, chain in self._chains(data, keys, selection)
        ]
        return pa.array([ids[0] if ids else -1 for ids in found], pa.int64())

    def first_at(self, data: Any, keys: Any, at: Any, *, hashes: Any = None, selection: Any = None) -> pa.Int64Array:
        found = [
            [id for order, id in chain if order >= at[row].as_py()][:1]
            for row, chain in self._chains(data, keys, selection)
        ]
        return pa.array([ids[0] if ids else -1 for ids in found], pa.int64())

    def match(self, data: Any, order: Any = None, *, hashes: Any = None, selection: Any = None) -> pa.Int64Array:
        data = data.select(range(len(self.rows)))
        used: set[int] = set()
        ids = []
        for row in _chosen(data, selection):
            wanted = (0 if order is None else order[row].as_py(), _values(data.slice(row, 1)))
            chain = self._by_key.get(_key(data, self._columns, row), [])
            found = [id for at, id in chain if (at, self._values[id]) == wanted and id not in used]
            used.update(found[:1])
            ids.append(found[0] if found else -1)
        return pa.array(ids, pa.int64())

    def key_ids(self, data: Any, keys: Any, *, hashes: Any = None, selection: Any = None) -> pa.Int32Array:
        first = {chain[0][1]: number for number, chain in enumerate(self._by_key.values())}
        chains = self._chains(data, keys, selection)
        return pa.array([first[chain[0][1]] if chain else -1 for _, chain in chains], pa.int32())

    def take(self, ids: Any, columns: Sequence[int] | None = None) -> pa.RecordBatch:
        schema = self.rows if columns is None else pa.schema([self.rows.field(c) for c in columns])
        wanted = range(len(self.rows)) if columns is None else columns
        rows = [None if id == -1 else self._row(id) for id in ids.to_pylist()]
        made = [
            pa.concat_arrays(
                [pa.nulls(0, self.rows.types[c])]
                + [pa.nulls(1, self.rows.types[c]) if row is None else row.column(c) for row in rows]
            )
            for c in wanted
        ]
        if not made:
            return pa.RecordBatch.from_struct_array(pa.array([{}] * len(rows), pa.struct([])))
        return pa.RecordBatch.from_arrays(made, schema=schema)

    def orders(self, ids: Any) -> pa.Int64Array:
        return pa.array([self._order[self._there(id)] for id in ids.to_pylist()], pa.int64())

    def hashes(self, ids: Any) -> pa.UInt64Array:
        rows = [self._row(id) for id in ids.to_pylist()]
        columns = [[row.column(c) for c in self._columns] for row in rows]
        return pa.array([hash_columns(keys)[0].as_py() if keys else 0 for keys in columns], pa.uint64())

    def counts(self, ids: Any) -> pa.Int32Array:
        if not self.counted:
            raise ValueError("the table is not counted")
        return pa.array([self._count[self._there(id)] for id in ids.to_pylist()], pa.int32())

    def add_counts(self, ids: Any, by: Any) -> None:
        self.counts(ids)
        for id, more in zip(ids.to_pylist(), [by] * len(ids) if isinstance(by, int) else by.to_pylist(), strict=True):
            self._count[id] += more

    def remove(self, ids: Any) -> None:
        gone = [self._there(id) for id in ids.to_pylist()]
        if len(set(gone)) < len(gone):
            raise ValueError("a row to be removed is named twice")
        for id in gone:
            key = _key(self._rows.pop(id), self._columns, 0)
            self._by_key[key].remove((self._order.pop(id), id))
            del self._count[id], self._values[id]
            if not self._by_key[key]:
                del self._by_key[key]

    def below(self, order: int) -> pa.Int64Array:
        return pa.array([id for at, id in sorted((at, id) for id, at in self._order.items()) if at < order], pa.int64())

    def superseded(self, order: int) -> pa.Int64Array:
        old = [id for chain in self._by_key.values() for _, id in [x for x in chain if x[0] < order][:-1]]
        return pa.array(sorted(old), pa.int64())

    def _there(self, id: int) -> int:
        if id not in self._rows:
            raise IndexError(f"row {id} is not there")
        return id

    def _row(self, id: int) -> pa.RecordBatch:
        return self._rows[self._there(id)]

    def _chains(self, data: Any, keys: Sequence[int], selection: Any) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """(row, its key's rows) of the selected rows; no rows where there is a null in the key."""
        if [data.schema.types[k] for k in keys] != [self.rows.types[c] for c in self._columns]:
            raise TypeError("keys of other types than the table's")
        for row in _chosen(data, selection):
            key = _key(data, keys, row)
            yield row, [] if None in key else self._by_key.get(key, [])


def _chosen(data: pa.RecordBatch, selection: Any) -> list[int]:
    return list(range(data.num_rows)) if selection is None else selection.to_pylist()


def _key(data: pa.RecordBatch, columns: Sequence[int], row: int) -> tuple[Any, ...]:
    return tuple(plain(data.column(c)[row].as_py()) for c in columns)


def _values(row: pa.RecordBatch) -> tuple[Any, ...]:
    return tuple(plain(column[0].as_py()) for column in row.columns)
