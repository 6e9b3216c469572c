"""Batch and `normalise`. See batch.pyi for the contract."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.c_data cimport ArrowArray, array_of, schema_of

from sabot.base.arrays import table_of
from sabot.errors import UserError

__all__ = ["Batch", "normalise"]

_RecordBatch = pa.RecordBatch
cdef int64_t MAX_OFFSET = 2**31 - 1


cdef class Batch:
    """An Arrow RecordBatch with its source offsets: the only unit that moves between steps. Immutable.

    `data`: any object with `__arrow_c_array__` or `__arrow_c_stream__` (the chunks of a stream are joined); a
    pa.RecordBatch is kept as it is. `offsets`: {(topic, partition): the next offset to read}. `records`: the records
    that a decoded batch was decoded from. `rejected`: those that could not be decoded; their `row` counts rows of
    `records`. `selection`: the row numbers of `data` that count, used inside a compiled chain.
    """

    def __init__(self, data, offsets=None, str topic="", records=None, rejected=(), selection=None, hashes=None, bad=None):
        self.data = data if type(data) is _RecordBatch else _import(data)
        self._offsets = {} if offsets is None else dict(offsets)
        self.topic = topic
        self.records = records
        self.rejected = tuple(rejected)
        self.selection = selection
        self.hashes = hashes
        self.bad = bad
        self.num_rows = self.data.num_rows if selection is None else len(selection)
        self._nbytes = -1
        if records is not None and records.num_rows != self.num_rows + len(self.rejected):
            raise ValueError(
                f"a batch of {self.num_rows} rows and {len(self.rejected)} rejected rows has {records.num_rows} records"
            )

    @property
    def offsets(self):
        return self._offsets.copy()

    @property
    def nbytes(self):
        """The bytes of the selected rows (of a slice: the slice's share), including children, offsets and
        `records`.
        """
        return self.size()

    @property
    def schema(self):
        return self.data.schema

    def with_data(self, data):
        """Returns a batch of other rows with the same offsets and topic. It has no `records` and `rejected`, which
        belong to the old rows.
        """
        return self.over(data if type(data) is _RecordBatch else _import(data), self._offsets)

    def with_selection(self, selection, hashes=None):
        """Returns a batch of the same data in which only the rows of `selection` count, in that order.

        `selection`: row numbers of `data` (pa.Int32Array), or None for all rows. `hashes`: the key hash of every row
        of `data`, or None.
        """
        cdef Batch batch = self.over(self.data, self._offsets)
        batch.selection = selection
        batch.hashes = hashes
        batch.num_rows = batch.data.num_rows if selection is None else len(selection)
        return batch

    def taken(self):
        """Returns the rows that count: `data` itself if there is no selection, else a copy."""
        return self.data if self.selection is None else self.data.take(self.selection)

    def slice(self, int64_t offset, length=None):
        """Returns a part of the rows without copying. It keeps all offsets if it holds the last row; otherwise it has
        none.

        Consecutive slices divide the rejected rows among them: the `records` of a slice begin at its first row and
        end before the first row of the next slice. The first slice also has all records before its rows, the last one
        all records after them. Raises IndexError if `offset` is outside 0..num_rows, ValueError for a negative
        `length`.
        """
        if self.selection is not None:
            return self.over(self.taken(), self._offsets).slice(offset, length)
        if not 0 <= offset <= self.num_rows:
            raise IndexError(f"offset {offset} is outside a batch of {self.num_rows} rows")
        cdef int64_t rest = self.num_rows - offset
        cdef int64_t taken = rest
        if length is not None:
            taken = min(<int64_t>length, rest)
            if taken < 0:
                raise ValueError(f"length {length} is negative")
        if taken == self.num_rows:
            return self
        cdef Batch part = self.over(self.data.slice(offset, taken), self._offsets if taken == rest and taken > 0 else {})
        cdef int64_t first, end
        if self.records is not None and taken > 0:
            first = self.record_of(offset) if offset > 0 else 0
            end = self.records.num_rows if taken == rest else self.record_of(offset + taken)
            part.records = self.records.slice(first, end - first)
            part.rejected = tuple(
                [type(bad)(bad.row - first, bad.reason) for bad in self.rejected if first <= bad.row < end]
            )
        return part

    def __arrow_c_schema__(self):
        return self.data.schema.__arrow_c_schema__()

    def __arrow_c_array__(self, requested_schema=None):
        return self.taken().__arrow_c_array__(requested_schema)

    def __repr__(self):
        return f"Batch({self.num_rows} rows of {self.data.schema.names}, topic={self.topic!r}, offsets={self._offsets})"

    cdef int64_t size(self) except -1:
        # RecordBatch.nbytes counts the used part of each buffer; get_total_buffer_size would count the whole parent
        # of a slice.
        if self._nbytes < 0:
            self._nbytes = self.data.nbytes + (0 if self.records is None else self.records.nbytes)
            if self.selection is not None and self.data.num_rows > 0:
                self._nbytes = self._nbytes * self.num_rows // self.data.num_rows
        return self._nbytes

    cdef int64_t record_of(self, int64_t row) except -1:
        """Returns the row of `records` from which row `row` of `data` was decoded: `row` plus the number of rejected
        rows before it.
        """
        for bad in self.rejected:
            if bad.row > row:
                break
            row += 1
        return row

    cdef Batch over(self, object data, dict offsets):
        cdef Batch batch = Batch.__new__(Batch)
        batch.data = data
        batch._offsets = offsets
        batch.topic = self.topic
        batch.records = None
        batch.rejected = ()
        batch.selection = None
        batch.hashes = None
        batch.bad = None
        batch.num_rows = data.num_rows
        batch._nbytes = -1
        return batch


def normalise(data):
    """Converts any Arrow data to a RecordBatch of canonical types.

    View, large, dictionary and run-end types become string, binary, list or plain types; all others stay. A batch
    that is canonical already is returned unchanged. Raises TypeError for an object without Arrow capsules; UserError
    for data that has no canonical form and for columns whose buffers are too small for their rows. Offsets and values
    inside the buffers are not checked.
    """
    batch = data if isinstance(data, _RecordBatch) else _import(data)
    try:
        batch.validate()
    except pa.ArrowInvalid as error:
        raise UserError(f"the data is not valid Arrow: {error}", hint="a column has buffers that are too small for its rows, or that belong to other data") from error
    schema = batch.schema
    fields = list(schema)
    plain = [_plain_field(field) for field in fields]
    if all([new is old for new, old in zip(plain, fields)]):
        return batch
    columns = [
        column if new is old else _plain(column, new.name)
        for column, new, old in zip(batch.columns, plain, fields)
    ]
    return _RecordBatch.from_arrays(columns, schema=pa.schema(plain, schema.metadata))


def _import(data):
    """Imports any object with Arrow capsules as a pa.RecordBatch. The capsules are requested once, because a producer
    may give them only once.
    """
    if isinstance(data, _RecordBatch):
        return data
    if isinstance(data, pa.Table):
        return _joined(data)
    if hasattr(data, "__arrow_c_array__"):
        return _rows_of(_Capsules(data.__arrow_c_array__()))
    if hasattr(data, "__arrow_c_stream__"):
        return _joined(table_of(data))
    raise TypeError(f"{type(data).__name__} is not Arrow data: it has neither __arrow_c_array__ nor __arrow_c_stream__")


cdef object _rows_of(object capsules):
    """Imports a foreign struct array as a RecordBatch of its fields."""
    cdef ArrowArray* raw = array_of(capsules.pair[1])
    if schema_of(capsules.pair[0]).format != b"+s":
        raise TypeError(f"a batch is made from a struct array, not from an array of {pa.field(capsules).type}")
    if raw.length == 0:  # an empty array may have no buffers, which pyarrow refuses
        schema = pa.schema(capsules)
        return _RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)
    if raw.offset == 0 and raw.null_count == 0:
        return pa.record_batch(capsules)
    array = pa.array(capsules)  # pyarrow makes no batch of a struct array with an offset
    if array.null_count:
        raise UserError("a row of the struct array is null, and a batch cannot have such rows", hint="drop them, or make their columns null")
    return _RecordBatch.from_struct_array(array)


def _joined(table):
    """Joins a table's chunks into one RecordBatch."""
    columns = [_one_chunk(column) for column in table.columns]
    if not columns:
        return pa.record_batch([pa.nulls(table.num_rows)], names=["_"]).select([])
    return _RecordBatch.from_arrays(columns, schema=table.schema)


def _one_chunk(chunked):
    """Joins a ChunkedArray into one Array. A single chunk is not copied."""
    if chunked.num_chunks == 1:
        return chunked.chunk(0)
    if chunked.num_chunks == 0:
        return pa.nulls(0, chunked.type)
    return pa.concat_arrays(chunked.chunks)


class _Capsules:
    """A pair of capsules that pyarrow can import."""

    def __init__(self, pair):
        self.pair = pair

    def __arrow_c_schema__(self):
        return self.pair[0]

    def __arrow_c_array__(self, requested_schema=None):
        return self.pair


cdef object _from_capsules(object data):
    """Imports a foreign array as a pa.Array. The capsules are requested once."""
    capsules = _Capsules(data.__arrow_c_array__())
    if array_of(capsules.pair[1]).length == 0:
        return pa.nulls(0, pa.field(capsules).type)  # as in _rows_of
    return pa.array(capsules)


cdef object plain_array(object data):
    if not isinstance(data, pa.Array):
        if isinstance(data, pa.ChunkedArray):
            data = _one_chunk(data)
        elif hasattr(data, "__arrow_c_array__"):
            data = _from_capsules(data)
        elif hasattr(data, "__arrow_c_stream__"):
            data = _one_chunk(pa.chunked_array(data))
        else:
            raise TypeError(f"{type(data).__name__} is not an Arrow array")
    return data if _plain_type(data.type) is data.type else _plain(data, "array")


cdef object _plain_field(object field):
    """Returns the field itself, or the same field with the canonical type."""
    kind = field.type
    plain = _plain_type(kind)
    return field if plain is kind else field.with_type(plain)


cdef object _plain_type(object kind):
    """Returns the canonical type, which is the same object if nothing changes."""
    types = pa.types
    if not types.is_nested(kind):
        if types.is_dictionary(kind):
            return _plain_type(kind.value_type)
        if types.is_large_string(kind) or kind == pa.string_view():
            return pa.string()
        if types.is_large_binary(kind) or kind == pa.binary_view():
            return pa.binary()
        return kind
    if types.is_run_end_encoded(kind):
        return _plain_type(kind.value_type)
    if types.is_struct(kind):
        fields = list(kind)
        plain = [_plain_field(field) for field in fields]
        return kind if all([new is old for new, old in zip(plain, fields)]) else pa.struct(plain)
    if types.is_map(kind):
        key, item = kind.key_field, kind.item_field
        plain_key, plain_item = _plain_field(key), _plain_field(item)
        return kind if plain_key is key and plain_item is item else pa.map_(plain_key, plain_item, kind.keys_sorted)
    if types.is_list(kind) or types.is_fixed_size_list(kind):
        value = kind.value_field
        plain_value = _plain_field(value)
        if plain_value is value:
            return kind
        return pa.list_(plain_value, kind.list_size) if types.is_fixed_size_list(kind) else pa.list_(plain_value)
    if types.is_large_list(kind) or types.is_list_view(kind) or types.is_large_list_view(kind):
        return pa.list_(_plain_field(kind.value_field))
    return kind  # unions stay


cdef object _plain(object array, str name):
    """Converts an array to its canonical type. Raises UserError if it has no canonical form."""
    try:
        return _converted(array)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowCapacityError) as error:
        raise UserError(f"column {name!r} of type {array.type} cannot be converted to a type that Sabot uses: {error}") from error


cdef object _converted(object array):
    types = pa.types
    kind = array.type
    plain = _plain_type(kind)
    if plain is kind:
        return array
    if types.is_dictionary(kind):
        # The dictionary is converted first, because pyarrow cannot take from views.
        return pa.DictionaryArray.from_arrays(array.indices, _converted(array.dictionary)).dictionary_decode()
    if types.is_run_end_encoded(kind):
        return _converted(pc.run_end_decode(array))
    if types.is_struct(kind):
        columns = [_converted(array.field(i)) for i in range(kind.num_fields)]  # field(i) adds the parent's offset
        return pa.StructArray.from_arrays(columns, fields=list(plain), mask=array.is_null())
    if types.is_list(kind) or types.is_large_list(kind) or types.is_list_view(kind) or types.is_large_list_view(kind):
        # flatten() drops items behind null rows and puts views in order, so the new offsets are the running sums of the lengths.
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
        offsets = np.zeros(len(array) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        if offsets[len(array)] > MAX_OFFSET:
            raise pa.ArrowCapacityError("more than 2^31 - 1 values in the lists of one batch")
        return pa.ListArray.from_arrays(
            pa.array(offsets.astype(np.int32)), _converted(array.flatten()), type=plain, mask=array.is_null()
        )
    if types.is_fixed_size_list(kind):
        child = _converted(array.values)
        return pa.Array.from_buffers(plain, len(array), [array.buffers()[0]], -1, array.offset, [child])
    if types.is_map(kind):
        validity, offsets = array.buffers()[:2]
        entries = pa.StructArray.from_arrays(
            [_converted(array.keys), _converted(array.items)], fields=[plain.key_field, plain.item_field]
        )
        return pa.Array.from_buffers(plain, len(array), [validity, offsets], -1, array.offset, [entries])
    return array.cast(plain)
