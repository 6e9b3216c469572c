/* Copies chosen rows of several arrays of one type into one new array, each row once.

          parts     [a b c d] rows 0, 2          [e f] all rows
                     └───┬───────────────────────┬┘
          new array [a c e f]

   All columns lie in one block of memory. The caller takes the block from Arrow's pool: malloc gives blocks of this size
   as fresh pages of the system, and page faults would cost more than the copy. */
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "arrow/column.h"

namespace sabot {

/* A column of one batch, and the rows to copy from it. */
struct Part {
    View view;
    const int32_t* chosen; /* row numbers, or null for all rows */
    int64_t count;         /* the number of rows to copy */
};

/* The parts of one new column, one per batch. Owns no memory. */
struct Parts {
    const Part* first;
    size_t count;

    /* Calls body(part, row of the new array, row of the part) for each row. */
    template <class Body>
    void each_row(Body body) const {
        int64_t at = 0;
        for (size_t p = 0; p < count; p++) {
            const Part& part = first[p];
            if (part.chosen == nullptr) for (int64_t row = 0; row < part.count; row++) body(part, at++, row);
            else for (int64_t i = 0; i < part.count; i++) body(part, at++, static_cast<int64_t>(part.chosen[i]));
        }
    }
};

/* The offsets at which the buffers of a column begin in the block; -1 for a buffer that the column does not have. */
struct Place {
    Type type = Type::nothing;
    int64_t width = 0; /* bytes per value, for fixed-size bytes */
    int64_t validity = -1, values = -1, data = -1;
};

// a text of at most 32 bytes is copied as 32 bytes: a memcpy of a constant size is not a call
constexpr int64_t SHORT = 32;
constexpr int64_t ALIGNED = 64;

static inline bool is_text(Type type) { return type == Type::text || type == Type::bytes; }

static inline int64_t bytes_of(const Parts& parts) {
    int64_t bytes = 0;
    parts.each_row([&](const Part& part, int64_t, int64_t row) {
        const int64_t i = part.view.start + row;
        bytes += part.view.offsets[i + 1] - part.view.offsets[i];
    });
    return bytes;
}

/* Places each column in the block. Returns the size of the block in bytes, or -1 if a column has more bytes of text
   than 32-bit offsets can address. `parts` has `count` parts of the first column, then `count` parts of the second,
   and so on. No type is `other`. */
static inline int64_t place_columns(const Part* parts, size_t count, size_t columns, int64_t rows, Place* places) {
    int64_t end = 0;
    auto put = [&](int64_t bytes) {
        const int64_t start = end;
        end += (bytes + ALIGNED - 1) / ALIGNED * ALIGNED;
        return start;
    };
    for (size_t c = 0; c < columns; c++) {
        const Parts column{parts + c * count, count};
        Place& place = places[c];
        place.type = column.first[0].view.type;
        if (place.type == Type::nothing) continue;
        bool nullable = false;
        for (size_t p = 0; p < count; p++) {
            const View& view = column.first[p].view;
            nullable = nullable || view.nullable();
            if (view.width > place.width) place.width = view.width; /* the view of an empty array has width 0 */
        }
        if (nullable) place.validity = put((rows + 7) / 8);
        if (is_text(place.type)) {
            const int64_t bytes = bytes_of(column);
            if (bytes > INT32_MAX) return -1;
            place.values = put((rows + 1) * 4);
            place.data = put(bytes + SHORT);
        } else if (place.type == Type::bool_) {
            place.values = put((rows + 7) / 8);
        } else {
            place.values = put(rows * (place.type == Type::fixed ? place.width : width_of(place.type)));
        }
    }
    return end;
}

/* Writes the bit `bit(part, row)` for each row. Returns the number of zeros. */
template <class Bit>
static inline int64_t gather_bits(const Parts& parts, int64_t rows, uint8_t* bits, Bit bit) {
    int64_t zeros = 0;
    std::memset(bits, 0, static_cast<size_t>((rows + 7) / 8));
    parts.each_row([&](const Part& part, int64_t at, int64_t row) {
        const bool one = bit(part, row);
        zeros += !one;
        bits[at >> 3] = static_cast<uint8_t>(bits[at >> 3] | (one << (at & 7)));
    });
    return zeros;
}

template <class T>
static inline void gather_numbers(const Parts& parts, T* to) {
    for (size_t p = 0; p < parts.count; p++) {
        const Part& part = parts.first[p];
        if (part.count == 0) continue;
        const T* from = static_cast<const T*>(part.view.values) + part.view.start;
        if (part.chosen == nullptr) std::memcpy(to, from, static_cast<size_t>(part.count) * sizeof(T));
        else for (int64_t i = 0; i < part.count; i++) to[i] = from[part.chosen[i]];
        to += part.count;
    }
}

static inline void gather_texts(const Parts& parts, int32_t* offsets, uint8_t* data) {
    int32_t end = 0;
    offsets[0] = 0;
    parts.each_row([&](const Part& part, int64_t at, int64_t row) {
        const int64_t i = part.view.start + row;
        const uint8_t* from = part.view.data + part.view.offsets[i];
        const int32_t size = part.view.offsets[i + 1] - part.view.offsets[i];
        if (size <= SHORT && part.view.end - from >= SHORT) std::memcpy(data + end, from, SHORT);
        else std::memcpy(data + end, from, static_cast<size_t>(size));
        end += size;
        offsets[at + 1] = end;
    });
}

/* Fills the buffers of a column. Returns the number of null rows. */
static inline int64_t gather(const Parts& parts, int64_t rows, const Place& place, uint8_t* block) {
    if (place.type == Type::nothing) return rows;
    uint8_t* values = block + place.values;
    int64_t nulls = 0;
    if (place.validity >= 0) {
        auto valid = [](const Part& part, int64_t row) { return part.view.valid(row); };
        nulls = gather_bits(parts, rows, block + place.validity, valid);
    }
    if (is_text(place.type)) {
        gather_texts(parts, reinterpret_cast<int32_t*>(values), block + place.data);
    } else if (place.type == Type::bool_) {
        gather_bits(parts, rows, values, [](const Part& part, int64_t row) { return part.view.truth(row); });
    } else if (place.type == Type::fixed) {
        const size_t width = static_cast<size_t>(place.width);
        parts.each_row([&](const Part& part, int64_t at, int64_t row) {
            std::memcpy(values + at * place.width, part.view.data + (part.view.start + row) * place.width, width);
        });
    } else {
        with_number(place.type, [&](auto zero) { gather_numbers(parts, reinterpret_cast<decltype(zero)*>(values)); });
    }
    return nulls;
}

/* The struct owns the memory of its children and frees it when it is released. Arrow's import never moves a child out
   of it. */
static inline void release_gathered_child(ArrowArray* child) { child->release = nullptr; }

static inline void release_gathered(ArrowArray* array) {
    for (int64_t i = 0; i < array->n_children; i++) {
        std::free(array->children[i]->buffers);
        std::free(array->children[i]);
    }
    std::free(array->children);
    std::free(array->buffers);
    ArrowArray* block = static_cast<ArrowArray*>(array->private_data);
    if (block != nullptr && block->release != nullptr) block->release(block);
    std::free(block);
    array->release = nullptr;
}

template <class T>
static inline T* zeroed(size_t count) {
    T* memory = static_cast<T*>(std::calloc(count + 1, sizeof(T)));
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}

/* Makes `out` (IN zeroed) a struct array of the columns and copies the rows into them. `owner`: the array that owns
   the block; it moves into `out`. Throws bad_alloc; the caller releases `out` in any case. */
static inline void gather_columns(
    const Part* parts, size_t count, size_t columns, int64_t rows, const Place* places, uint8_t* block, ArrowArray* owner, ArrowArray* out
) {
    out->release = release_gathered;
    out->length = rows;
    out->n_buffers = 1;
    out->buffers = zeroed<const void*>(1);
    out->children = zeroed<ArrowArray*>(columns);
    for (size_t c = 0; c < columns; c++) {
        const Place& place = places[c];
        ArrowArray* child = zeroed<ArrowArray>(1);
        out->children[out->n_children++] = child;
        child->release = release_gathered_child;
        child->length = rows;
        child->buffers = zeroed<const void*>(3);
        child->n_buffers = place.type == Type::nothing ? 0 : is_text(place.type) ? 3 : 2;
        if (place.validity >= 0) child->buffers[0] = block + place.validity;
        if (place.values >= 0) child->buffers[1] = block + place.values;
        if (place.data >= 0) child->buffers[2] = block + place.data;
        child->null_count = gather(Parts{parts + c * count, count}, rows, place, block);
    }
    ArrowArray* kept = zeroed<ArrowArray>(1);
    *kept = *owner;
    owner->release = nullptr;
    out->private_data = kept;
}

/* Fills the column of the key hashes, which lies in the block after the columns of the batch. */
static inline void gather_hashes(const Part* parts, size_t count, int64_t rows, const Place& place, uint8_t* block) {
    gather(Parts{parts, count}, rows, place, block);
}

}  // namespace sabot
