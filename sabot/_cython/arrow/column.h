/* The view through which every kernel reads a column (`View`), and the packing of results into a column. columns.pxd
   declares the same for Cython.

   A kernel reads a column in blocks of at most BLOCK_ROWS rows. `Rows` names the rows of a block: consecutive rows, or a
   part of a selection. Code that depends on the type is chosen once per block.

   Rules of the Arrow format that every reader must obey, and that `view_of` handles:

   - row i of an array is at `offset + i` in its buffers, also in the bits of validity and of bools;
   - the child of a struct has an offset of its own: row i of the parent is `parent.offset + i` of the child, hence
     `parent.offset + child.offset + i` of the child's buffers (a list's child is addressed by the list's offsets);
   - `null_count` may be -1 (not counted), and even then the validity buffer may be absent;
   - an empty array may have null pointers as buffers.

   All functions here are `noexcept nogil`: they allocate nothing, throw nothing and need no interpreter. A view owns no
   memory: the pair of capsules that it was made from must live as long as the view is read. */
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "arrow/arrow_c.h"

#define SABOT_INLINE __attribute__((always_inline)) /* for lambdas that are called once per row */

namespace sabot {

constexpr int BLOCK_ROWS = 512; /* slots, row addresses and values of so many rows fit into the first-level cache */

enum class Type : uint8_t {
    other, /* only its validity can be read */
    nothing, /* every row is null */
    bool_, int8, int16, int32, int64, uint8, uint16, uint32, uint64, float32, float64,
    text, bytes, fixed,
};

static inline bool has_bytes(Type type) { return type >= Type::text; }
static inline bool is_float(Type type) { return type == Type::float32 || type == Type::float64; }
static inline bool is_unsigned(Type type) { return type >= Type::uint8 && type <= Type::uint64; }

static inline int width_of(Type type) {
    switch (type) {
        case Type::int8: case Type::uint8: return 1;
        case Type::int16: case Type::uint16: return 2;
        case Type::int32: case Type::uint32: case Type::float32: return 4;
        default: return 8;
    }
}

/* Returns the type for an Arrow format. Dates, times, timestamps and durations have the type of the integers that
   store them. */
static inline Type type_of(const char* format) {
    if (format[0] == 't') {
        if (format[1] == 'd') return format[2] == 'D' ? Type::int32 : Type::int64;
        if (format[1] == 't') return format[2] == 's' || format[2] == 'm' ? Type::int32 : Type::int64;
        if (format[1] == 's' || format[1] == 'D') return Type::int64;
        return Type::other;
    }
    if (format[0] == 'w' && format[1] == ':') return Type::fixed;
    if (format[0] == 0 || format[1] != 0) return Type::other;
    switch (format[0]) {
        case 'n': return Type::nothing;
        case 'b': return Type::bool_;
        case 'c': return Type::int8;
        case 's': return Type::int16;
        case 'i': return Type::int32;
        case 'l': return Type::int64;
        case 'C': return Type::uint8;
        case 'S': return Type::uint16;
        case 'I': return Type::uint32;
        case 'L': return Type::uint64;
        case 'f': return Type::float32;
        case 'g': return Type::float64;
        case 'u': return Type::text;
        case 'z': return Type::bytes;
        default: return Type::other;
    }
}

/* A flat read-only view of one array. Rows are counted from 0. The accessors of a value do not check validity. */
struct View {
    Type type = Type::other;
    bool temporal = false;             /* true for a date, time, timestamp or duration; `type` is then the type of its integers */
    int64_t length = 0;                /* rows */
    int64_t start = 0;  /* the position of row 0 in every buffer: the array's offset, plus the parent's offset for a child */
    const uint8_t* validity = nullptr; /* null if no row is null */
    const void* values = nullptr;      /* numbers, bits, fixed-size bytes; null when length is 0 */
    const int32_t* offsets = nullptr;  /* for text and bytes; null when length is 0 */
    const uint8_t* data = nullptr;     /* the bytes, for all types that have bytes; null when length is 0 */
    const uint8_t* end = nullptr;      /* the end of the bytes of all rows */
    int64_t width = 0;                 /* bytes per row, for fixed-size bytes */

    bool nullable() const { return validity != nullptr || type == Type::nothing; }
    bool valid(int64_t row) const {
        if (type == Type::nothing) return false;
        const int64_t i = start + row;
        return validity == nullptr || ((validity[i >> 3] >> (i & 7)) & 1);
    }
    bool truth(int64_t row) const {
        const int64_t i = start + row;
        return (static_cast<const uint8_t*>(values)[i >> 3] >> (i & 7)) & 1;
    }
    const uint8_t* bytes_at(int64_t row, int64_t* size) const {
        const int64_t i = start + row;
        if (type == Type::fixed) {
            *size = width;
            return data + i * width;
        }
        *size = offsets[i + 1] - offsets[i];
        return data + offsets[i];
    }
    /* Returns the value in a column of integers of any width. A uint64 comes as the same 64 bits, to be cast back. */
    int64_t integer(int64_t row) const {
        const int64_t i = start + row;
        switch (type) {
            case Type::int8: return static_cast<const int8_t*>(values)[i];
            case Type::int16: return static_cast<const int16_t*>(values)[i];
            case Type::int32: return static_cast<const int32_t*>(values)[i];
            case Type::uint8: return static_cast<const uint8_t*>(values)[i];
            case Type::uint16: return static_cast<const uint16_t*>(values)[i];
            case Type::uint32: return static_cast<const uint32_t*>(values)[i];
            default: return static_cast<const int64_t*>(values)[i];
        }
    }
    /* Returns the value in a column of float32 or float64. */
    double real(int64_t row) const {
        if (type == Type::float32) return static_cast<const float*>(values)[start + row];
        return static_cast<const double*>(values)[start + row];
    }
    /* Returns the address of row 0 in a column of this C++ type, or null if the column has no rows. */
    template <class T>
    const T* from() const {
        return length == 0 ? nullptr : static_cast<const T*>(values) + start;
    }
    const int8_t* int8s() const { return from<int8_t>(); }
    const uint8_t* uint8s() const { return from<uint8_t>(); }
    const int32_t* int32s() const { return from<int32_t>(); }
    const int64_t* int64s() const { return from<int64_t>(); }
    const uint64_t* uint64s() const { return from<uint64_t>(); }
};

/* Makes the view of an array. For the child of a struct, `parent_offset` and `length` are those of the struct; for
   any other array they are 0 and array.length. If the type is `other`, only `valid` may be called. */
static inline View view_of(const ArrowSchema* schema, const ArrowArray* array, int64_t parent_offset, int64_t length) {
    View view;
    view.type = schema->dictionary != nullptr ? Type::other : type_of(schema->format);
    view.temporal = schema->format[0] == 't' && view.type != Type::other;
    view.length = length;
    view.start = parent_offset + array->offset;
    if (length == 0 || array->n_buffers == 0) return view;
    if (array->null_count != 0) view.validity = static_cast<const uint8_t*>(array->buffers[0]);
    if (view.type == Type::other || view.type == Type::nothing) return view;
    static const uint8_t none = 0; /* replaces `data` if all rows are empty and there is no buffer */
    if (view.type == Type::text || view.type == Type::bytes) {
        view.offsets = static_cast<const int32_t*>(array->buffers[1]);
        view.data = static_cast<const uint8_t*>(array->buffers[2]);
        if (view.data == nullptr) view.data = &none;
        view.end = view.data + view.offsets[view.start + length];
    } else {
        view.values = array->buffers[1];
        if (view.type == Type::fixed) {
            view.width = std::strtol(schema->format + 2, nullptr, 10);
            view.data = view.values == nullptr ? &none : static_cast<const uint8_t*>(view.values);
            view.end = view.data + (view.start + length) * view.width;
        }
    }
    return view;
}

/* Returns the number of bytes of a decimal with this format: d:precision,scale[,bits]. */
static inline int64_t decimal_width(const char* format) {
    const char* comma = std::strchr(format, ',');
    comma = comma == nullptr ? nullptr : std::strchr(comma + 1, ',');
    return comma == nullptr ? 16 : std::strtoll(comma + 1, nullptr, 10) / 8;
}

/* Returns the type of a key column. Decimals are compared by their bytes: all values of a column have the same scale,
   so equal decimals have equal bytes. */
static inline Type key_type_of(const char* format) { return format[0] == 'd' ? Type::bytes : type_of(format); }

/* Makes the view of a key column, like view_of. A decimal has the type `fixed`. */
static inline View key_view_of(const ArrowSchema* schema, const ArrowArray* array, int64_t parent_offset, int64_t length) {
    View view = view_of(schema, array, parent_offset, length);
    if (schema->format[0] != 'd' || schema->dictionary != nullptr) return view;
    static const uint8_t none = 0;
    view.type = Type::fixed;
    view.width = decimal_width(schema->format);
    if (length == 0 || array->n_buffers == 0) return view;
    view.values = array->buffers[1];
    view.data = view.values == nullptr ? &none : static_cast<const uint8_t*>(view.values);
    view.end = view.data + (view.start + length) * view.width;
    return view;
}

/* The rows of a block: `count` rows from number `base` on. With a selection (`chosen` is not null), `base` counts
   rows of the selection. */
struct Rows {
    const int32_t* chosen;
    int64_t base;
    int count;

    int64_t operator[](int i) const { return chosen ? chosen[base + i] : base + i; }
};

template <class Body>
static inline void each_row(const Rows& rows, Body body) {
    const int count = rows.count;
    if (rows.chosen) {
        const int32_t* chosen = rows.chosen + rows.base;
        for (int i = 0; i < count; i++) body(i, static_cast<int64_t>(chosen[i]));
    } else {
        const int64_t base = rows.base;
        for (int i = 0; i < count; i++) body(i, base + i);
    }
}

/* Returns true if all numbers are at least 0 and below `end`. */
static inline bool all_within(const int32_t* numbers, int64_t count, int64_t end) {
    int32_t least = INT32_MAX, greatest = INT32_MIN;
    for (int64_t i = 0; i < count; i++) {
        least = numbers[i] < least ? numbers[i] : least;
        greatest = numbers[i] > greatest ? numbers[i] : greatest;
    }
    return count == 0 || (least >= 0 && greatest < end);
}

/* Calls body(T()) with the C++ type T of a column of numbers. */
template <class Body>
static inline void with_number(Type type, Body body) {
    switch (type) {
        case Type::int8: return body(int8_t());
        case Type::int16: return body(int16_t());
        case Type::int32: return body(int32_t());
        case Type::int64: return body(int64_t());
        case Type::uint8: return body(uint8_t());
        case Type::uint16: return body(uint16_t());
        case Type::uint32: return body(uint32_t());
        case Type::uint64: return body(uint64_t());
        case Type::float32: return body(float());
        default: return body(double());
    }
}

/* Returns the numbers of a block as `To`. They are in `scratch`, unless the column has them consecutively in that
   type already. The value of a null row is undefined. */
template <class To>
static inline const To* numbers(const View& view, const Rows& rows, To* scratch) {
    if (view.type == Type::nothing) {
        std::memset(scratch, 0, sizeof(To) * rows.count);
        return scratch;
    }
    if (view.type == Type::bool_) {
        each_row(rows, [&](int i, int64_t row) { scratch[i] = view.truth(row); });
        return scratch;
    }
    const To* result = scratch;
    with_number(view.type, [&](auto zero) {
        using From = decltype(zero);
        const From* from = static_cast<const From*>(view.values) + view.start;
        if constexpr (std::is_same_v<From, To>) {
            if (!rows.chosen) {
                result = from + rows.base;
                return;
            }
        }
        each_row(rows, [&](int i, int64_t row) { scratch[i] = static_cast<To>(from[row]); });
    });
    return result;
}

static inline uint64_t bits_of(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, 8);
    return bits;
}
static inline double double_of(uint64_t bits) {
    double value;
    std::memcpy(&value, &bits, 8);
    return value;
}

/* Writes `count` rows of 64 bits (integers, or the bits of a double) into a column's buffers, from row `first` on,
   which is a multiple of 8. Returns the number of nulls. */
static inline int64_t pack(
    Type type, const uint64_t* raw, const uint8_t* valid, int count, int64_t first, void* values, uint8_t* validity
) {
    int64_t nulls = 0;
    for (int i = 0; i < count; i += 8) {
        uint8_t byte = 0;
        const int left = count - i < 8 ? count - i : 8;
        for (int j = 0; j < left; j++) {
            byte |= static_cast<uint8_t>((valid[i + j] != 0) << j);
            nulls += valid[i + j] == 0;
        }
        validity[(first + i) >> 3] = byte;
    }
    if (type == Type::bool_) {
        uint8_t* bits = static_cast<uint8_t*>(values);
        for (int i = 0; i < count; i += 8) {
            uint8_t byte = 0;
            for (int j = 0; j < 8 && i + j < count; j++) byte |= static_cast<uint8_t>((raw[i + j] != 0) << j);
            bits[(first + i) >> 3] = byte;
        }
        return nulls;
    }
    with_number(type, [&](auto zero) {
        using To = decltype(zero);
        To* to = static_cast<To*>(values) + first;
        for (int i = 0; i < count; i++) {
            if constexpr (std::is_floating_point_v<To>) to[i] = static_cast<To>(double_of(raw[i]));
            else to[i] = static_cast<To>(raw[i]);
        }
    });
    return nulls;
}

}  // namespace sabot
