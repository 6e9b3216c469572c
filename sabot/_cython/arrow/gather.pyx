"""Joins the selected rows of several batches. See gather.pyi for the contract; the loops over rows are in gather.h."""

import pyarrow as pa

from libc.stdint cimport int32_t, int64_t, uint8_t, uintptr_t
from libc.string cimport memset
from libcpp.vector cimport vector

from sabot._cython.arrow.batch cimport Batch
from sabot._cython.arrow.c_data cimport ArrowArray, ArrowSchema, array_of, schema_of
from sabot._cython.arrow.columns cimport TYPE_OTHER, Numbers, View, key_view_of, open_view, rows_of

__all__ = ["gathered"]


cdef extern from "arrow/gather.h" namespace "sabot" nogil:
    cppclass Part:
        View view
        const int32_t* chosen
        int64_t count

    cppclass Place:
        int64_t values

    # IN `parts`, column by column. OUT `places`. Returns the size of the block in bytes, or -1 if texts are too long
    # for 32-bit offsets.
    int64_t place_columns(const Part* parts, size_t count, size_t columns, int64_t rows, Place* places) noexcept
    # OUT `out` (IN zeroed), which the caller releases in any case. `owner` moves into it. Throws bad_alloc.
    void gather_columns(
        const Part* parts, size_t count, size_t columns, int64_t rows, const Place* places, uint8_t* block, ArrowArray* owner,
        ArrowArray* out
    ) except +
    void gather_hashes(const Part* parts, size_t count, int64_t rows, const Place& place, uint8_t* block) noexcept

cdef object _UINT8 = pa.uint8()
cdef object _UINT64 = pa.uint64()


def gathered(parts):
    """Joins the selected rows of the batches, in order. Returns them and their key hashes, or None."""
    cdef Batch part
    cdef Batch first = parts[0]
    schema = first.data.schema
    cdef bint hashed = all([(<Batch> each).hashes is not None for each in parts])
    cdef size_t count = len(parts), columns = len(schema), c, p
    cdef vector[Part] found = vector[Part](count * (columns + hashed))
    cdef Numbers rows
    cdef ArrowSchema* described
    cdef ArrowArray* array
    cdef int64_t total = 0
    cdef list alive = []
    for p in range(count):
        part = parts[p]
        if p and not part.data.schema.equals(schema):
            raise ValueError(f"batches with different columns cannot be joined: {part.data.schema.names}, {schema.names}")
        rows = rows_of(part.selection, part.data.num_rows)
        capsules = part.data.__arrow_c_array__()
        alive.append((rows, capsules))
        described, array = schema_of(capsules[0]), array_of(capsules[1])
        for c in range(columns):
            found[c * count + p].view = key_view_of(described.children[c], array.children[c], array.offset, array.length)
            if found[c * count + p].view.type == TYPE_OTHER:
                return _concatenated(parts, hashed)
        if hashed:
            alive.append(open_view(part.hashes, &found[columns * count + p].view))
        for c in range(columns + hashed):
            found[c * count + p].chosen = rows.int32()
            found[c * count + p].count = rows.length
        total += rows.length
    cdef vector[Place] places = vector[Place](columns + hashed)
    cdef int64_t size
    with nogil:
        size = place_columns(found.data(), count, columns + hashed, total, places.data())
    if size < 0:
        return _concatenated(parts, hashed)
    buffer = pa.allocate_buffer(size)
    owner = pa.Array.from_buffers(_UINT8, size, [None, buffer]).__arrow_c_array__()
    cdef uint8_t* block = <uint8_t*> <size_t> buffer.address
    cdef ArrowArray* owning = array_of(owner[1])
    cdef ArrowArray out
    memset(&out, 0, sizeof(out))
    try:
        with nogil:
            gather_columns(found.data(), count, columns, total, places.data(), block, owning, &out)
            if hashed:
                gather_hashes(found.data() + columns * count, count, total, places[columns], block)
        joined = pa.RecordBatch._import_from_c(<uintptr_t> &out, schema)
    finally:
        if out.release != NULL:
            out.release(&out)
    if not hashed:
        return joined, None
    return joined, pa.Array.from_buffers(_UINT64, total, [None, buffer.slice(places[columns].values, total * 8)], 0)


cdef tuple _concatenated(parts, bint hashed):
    """Joins the batches with pyarrow, which copies chosen rows twice: for columns of types that kernels cannot read."""
    joined = pa.concat_batches([part.taken() for part in parts])
    if not hashed:
        return joined, None
    return joined, pa.concat_arrays(
        [part.hashes if part.selection is None else part.hashes.take(part.selection) for part in parts]
    )
