/* A column of kept rows, of any type, in Arrow's layout, so that results are exported without a copy.

   A Layout describes the memory of a type; a Store is one column of the type. Rows are added to a Store from an Arrow
   array (`append`) or from rows of other Stores (`gather`). A nested column has a Store for each child, filled by the
   same two functions.

   Nothing here needs the GIL. Functions throw std::bad_alloc, and std::overflow_error for a column above 2 GB. */
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#include "arrow/arrow_c.h"
#include "arrow/pages.h"
#include "groups/key_hash.h"

namespace sabot {

constexpr size_t MOST_EXPECTED = 64 << 20; /* the most bytes that are reserved by an estimate */
constexpr int FETCH = 16; /* how many rows ahead memory is prefetched */

/* Memory that grows, and in the end is exported to Arrow or freed. It may borrow a part of other memory until it has
   to grow. */
class Memory {
  public:
    Memory() = default;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    Memory(Memory&& other) noexcept { swap(other); }
    Memory& operator=(Memory&& other) noexcept {
        swap(other);
        return *this;
    }
    ~Memory() {
        if (own_) std::free(at_);
    }

    uint8_t* at() const { return at_; }
    template <class T>
    T* as() const { return reinterpret_cast<T*>(at_); }
    size_t room() const { return room_; }
    /* Makes room for `bytes` bytes in all, and for more if it had to grow before. */
    void reserve(size_t bytes) {
        if (bytes <= ready_) return;
        if (bytes > room_) grow(bytes);
        if (!keeps_) {
            ready_ = room_;
            return;
        }
        const size_t to = bytes + STEP < room_ ? bytes + STEP : room_;
        provide(at_ + ready_, to - ready_);
        ready_ = to;
    }
    /* Makes room for about `bytes` bytes of data that will be kept. The pages come from the system, not from memory
       freed before. */
    void keep(size_t bytes) {
        if (bytes > room_) grow(bytes);
        keeps_ = true;
    }
    /* Gives back the memory beyond `bytes` bytes if it is much. */
    void fit(size_t bytes) {
        bytes = (bytes + 63) & ~size_t(63);
        if (bytes == 0 || bytes + 4096 > room_) return;
        if (own_) {
            void* smaller = std::realloc(at_, bytes);
            if (smaller == nullptr) return;
            at_ = static_cast<uint8_t*>(smaller);
        }
        room_ = bytes;
        if (ready_ > room_) ready_ = room_;
    }
    /* Borrows memory and uses it until it is too small. The Memory must be empty. */
    void lend(uint8_t* at, size_t bytes) {
        at_ = at;
        room_ = ready_ = bytes;
        own_ = false;
    }

  private:
    static constexpr size_t STEP = size_t(1) << 17;

    uint8_t* at_ = nullptr;
    size_t room_ = 0;
    size_t ready_ = 0; /* bytes that can be written without another check */
    bool own_ = true;
    bool keeps_ = false;

    void grow(size_t bytes) {
        size_t more = room_ + room_ / 2;
        if (more < bytes) more = bytes;
        more = (more + 63) & ~size_t(63);
        void* grown = std::realloc(own_ ? at_ : nullptr, more);
        if (grown == nullptr) throw std::bad_alloc();
        if (!own_ && room_) std::memcpy(grown, at_, room_);
        at_ = static_cast<uint8_t*>(grown);
        room_ = more;
        own_ = true;
    }

    void swap(Memory& other) {
        std::swap(at_, other.at_);
        std::swap(room_, other.room_);
        std::swap(ready_, other.ready_);
        std::swap(keeps_, other.keeps_);
        std::swap(own_, other.own_);
    }
};

static inline bool bit_at(const uint8_t* bits, int64_t i) { return (bits[i >> 3] >> (i & 7)) & 1; }
static inline void put_bit(uint8_t* bits, int64_t i, bool on) {
    const uint8_t mask = static_cast<uint8_t>(1u << (i & 7));
    bits[i >> 3] = static_cast<uint8_t>(on ? bits[i >> 3] | mask : bits[i >> 3] & ~mask);
}
static inline void set_bits(uint8_t* bits, int64_t from, int64_t count) {
    const int64_t end = from + count;
    for (; from < end && (from & 7); from++) put_bit(bits, from, true);
    if (from + 8 <= end) {
        std::memset(bits + (from >> 3), 0xff, (end - from) >> 3);
        from += (end - from) & ~int64_t(7);
    }
    for (; from < end; from++) put_bit(bits, from, true);
}

struct Layout {
    enum class Shape : uint8_t { other, nothing, bits, fixed, bytes, list, fixed_list, record };
    Shape shape = Shape::other;
    int64_t width = 0;  /* for fixed: bytes; for fixed_list: items */
    int real = 0;       /* for fixed: bytes of a float; 0 for other types */
    std::vector<Layout> children;

    /* Returns the bytes per row for types of fixed width, or 0. */
    int64_t wide() const { return shape == Shape::fixed ? width : 0; }
    /* Returns the layout of a type. For unsupported types (views, run ends, unions, 64-bit offsets, dictionaries) the
       shape is `other`, in the layout or in a child. */
    static Layout of(const ArrowSchema* schema) {
        Layout layout;
        const char* format = schema->format;
        if (schema->dictionary != nullptr) return layout;
        if (format[0] == '+') {
            if (format[1] == 's') layout.shape = Shape::record;
            else if (format[1] == 'l' || format[1] == 'm') layout.shape = Shape::list;
            else if (format[1] == 'w') {
                layout.shape = Shape::fixed_list;
                layout.width = std::strtoll(format + 3, nullptr, 10);
            }
            else return layout;
            if ((format[1] == 'v') || (format[1] == 'l' && format[2] != 0)) return Layout();
            for (int64_t c = 0; c < schema->n_children; c++) {
                layout.children.push_back(of(schema->children[c]));
                if (layout.children.back().shape == Shape::other) return Layout();
            }
            return layout;
        }
        const Type type = type_of(format);
        if (type == Type::nothing) layout.shape = Shape::nothing;
        else if (type == Type::bool_) layout.shape = Shape::bits;
        else if (type == Type::text || type == Type::bytes) layout.shape = Shape::bytes;
        else if (type == Type::fixed) layout.set(std::strtoll(format + 2, nullptr, 10));
        else if (type != Type::other) layout.set(width_of(type), is_float(type) ? width_of(type) : 0);
        else if (format[0] == 'e' && format[1] == 0) layout.set(2, 2);
        else if (format[0] == 'd') layout.set(decimal_width(format));
        else if (format[0] == 't' && format[1] == 'i') layout.set(format[2] == 'M' ? 4 : format[2] == 'D' ? 8 : 16);
        return layout;
    }

  private:
    void set(int64_t bytes, int float_bytes = 0) {
        shape = Shape::fixed;
        width = bytes;
        real = float_bytes;
    }
};

/* Returns true if two types are equal, apart from names of columns, nullability and metadata; names of fields in
   nested types count. */
static inline bool same_type(const ArrowSchema* a, const ArrowSchema* b) {
    if (std::strcmp(a->format, b->format) != 0 || a->n_children != b->n_children) return false;
    if ((a->dictionary != nullptr) != (b->dictionary != nullptr)) return false;
    for (int64_t c = 0; c < a->n_children; c++) {
        const char* name = a->children[c]->name;
        const char* other = b->children[c]->name;
        if (a->format[1] == 's' && std::strcmp(name ? name : "", other ? other : "") != 0) return false;
        if (!same_type(a->children[c], b->children[c])) return false;
    }
    return true;
}

/* Rows of an array, without its own offset: a run of rows, or a list of row numbers. */
struct Picked {
    const int64_t* rows; /* null for a run */
    int64_t first;
    int64_t count;

    int64_t operator[](int64_t i) const { return rows ? rows[i] : first + i; }
};

struct Store {
    int64_t rows = 0;
    bool nullable = false; /* true if some row is null, so that there is `validity` */
    Memory validity;
    Memory values; /* numbers or bits; for bytes and lists the offsets, one more than rows, as uint32 */
    Memory data;   /* the bytes, for bytes */
    std::vector<Store> children;

    void prepare(const Layout& layout) {
        children.resize(layout.children.size());
        for (size_t c = 0; c < children.size(); c++) children[c].prepare(layout.children[c]);
        if (layout.shape == Layout::Shape::bytes || layout.shape == Layout::Shape::list) {
            values.reserve(4);
            values.as<uint32_t>()[0] = 0;
        }
    }
    /* Makes room for `count` rows in all, and for as much variable data as `like` has. */
    void reserve(const Layout& layout, int64_t count, const Store* like) {
        switch (layout.shape) {
            case Layout::Shape::bits: values.reserve((count + 7) / 8); break;
            case Layout::Shape::fixed: values.reserve(count * layout.width); break;
            case Layout::Shape::bytes: case Layout::Shape::list: values.reserve(4 * (count + 1)); break;
            default: break;
        }
        if (nullable || (like && like->nullable)) validity.reserve((count + 7) / 8);
        if (like && layout.shape == Layout::Shape::bytes) data.reserve(like->values.as<uint32_t>()[like->rows]);
        for (size_t c = 0; like && c < children.size(); c++)
            children[c].reserve(layout.children[c], like->children[c].rows, &like->children[c]);
    }
    /* Makes room for the texts of `count` rows in all, estimated from the rows so far: growing step by step would
       copy, and touch new memory. */
    void expect(const Layout& layout, int64_t count) {
        if (layout.shape != Layout::Shape::bytes || rows == 0) return;
        const double each = values.as<uint32_t>()[rows] / static_cast<double>(rows);
        data.reserve(std::min(MOST_EXPECTED, static_cast<size_t>(each * 1.125 * static_cast<double>(count))));
    }
    void truncate(const Layout& layout, int64_t count) {
        if (rows <= count) return;
        rows = count;
        for (size_t c = 0; c < children.size(); c++) {
            int64_t left = count;
            if (layout.shape == Layout::Shape::list) left = values.as<uint32_t>()[count];
            if (layout.shape == Layout::Shape::fixed_list) left = count * layout.width;
            children[c].truncate(layout.children[c], left);
        }
    }
    /* Makes as many rows and children as the other store has, all empty. */
    void take_shape(const Store& other) {
        rows = other.rows;
        nullable = other.nullable;
        children.resize(other.children.size());
        for (size_t c = 0; c < children.size(); c++) children[c].take_shape(other.children[c]);
    }
    bool valid(int64_t row) const { return !nullable || bit_at(validity.at(), row); }
    int64_t nbytes() const {
        int64_t total = validity.room() + values.room() + data.room();
        for (const Store& child : children) total += child.nbytes() + sizeof(Store);
        return total;
    }
    /* Returns the size of variable data: bytes and items. */
    int64_t loose(const Layout& layout) const {
        int64_t total = layout.shape == Layout::Shape::bytes ? values.as<uint32_t>()[rows] : 0;
        if (layout.shape == Layout::Shape::list) total += 8 * children[0].rows;
        for (size_t c = 0; c < children.size(); c++) total += children[c].loose(layout.children[c]);
        return total;
    }

    /* Sets the validity of the next `count` rows, to true or to valid(i). Called before `rows` grows. */
    void add_valid(int64_t count) {
        if (!nullable) return;
        validity.reserve((rows + count + 7) / 8);
        set_bits(validity.at(), rows, count);
    }
    template <class Valid>
    void add_validity(int64_t count, Valid valid) {
        int64_t i = 0;
        if (!nullable) {
            while (i < count && valid(i)) i++;
            if (i == count) return;
            validity.reserve((rows + count + 7) / 8);
            set_bits(validity.at(), 0, rows + i);
            nullable = true;
        }
        validity.reserve((rows + count + 7) / 8);
        for (; i < count; i++) put_bit(validity.at(), rows + i, valid(i));
    }
    /* Checks and returns the end of the next row for the offsets. */
    static uint32_t offset(uint64_t end) {
        if (end > 0x7fffffff) throw std::overflow_error("more than 2 GB in one column: read fewer rows at once");
        return static_cast<uint32_t>(end);
    }
};

template <class Body>
static inline void with_width(int64_t width, Body body) { /* calls body(width) with a compile-time constant for usual widths */
    switch (width) {
        case 1: return body(std::integral_constant<int, 1>());
        case 2: return body(std::integral_constant<int, 2>());
        case 4: return body(std::integral_constant<int, 4>());
        case 8: return body(std::integral_constant<int, 8>());
        case 16: return body(std::integral_constant<int, 16>());
        default: return body(std::integral_constant<int, 0>());
    }
}

/* Appends rows of an array of this type to the store. If it throws, the caller has to truncate the store. */
static inline void append(Store& to, const Layout& layout, const ArrowArray* from, const Picked& picked) {
    using Shape = Layout::Shape;
    const int64_t count = picked.count, shift = from->offset, rows = to.rows;
    if (count == 0) return;
    if (layout.shape == Shape::nothing) {
        to.rows += count;
        return;
    }
    const uint8_t* bits = from->null_count == 0 ? nullptr : static_cast<const uint8_t*>(from->buffers[0]);
    if (bits == nullptr) to.add_valid(count);
    else to.add_validity(count, [&](int64_t i) { return bit_at(bits, picked[i] + shift); });

    if (layout.shape == Shape::fixed) {
        to.values.reserve((rows + count) * layout.width);
        const uint8_t* source = static_cast<const uint8_t*>(from->buffers[1]) + shift * layout.width;
        uint8_t* out = to.values.at() + rows * layout.width;
        if (layout.width == 0) {
            /* fixed_size_binary(0) has no data, and perhaps no buffer */
        } else if (picked.rows == nullptr) {
            std::memcpy(out, source + picked.first * layout.width, count * layout.width);
        } else {
            with_width(layout.width, [&](auto constant) {
                const int64_t width = decltype(constant)::value ? decltype(constant)::value : layout.width;
                for (int64_t i = 0; i < count; i++) std::memcpy(out + i * width, source + picked.rows[i] * width, width);
            });
        }
    } else if (layout.shape == Shape::bits) {
        to.values.reserve((rows + count + 7) / 8);
        const uint8_t* source = static_cast<const uint8_t*>(from->buffers[1]);
        for (int64_t i = 0; i < count; i++) put_bit(to.values.at(), rows + i, bit_at(source, picked[i] + shift));
    } else if (layout.shape == Shape::bytes) {
        const int32_t* offsets = static_cast<const int32_t*>(from->buffers[1]) + shift;
        const uint8_t* source = static_cast<const uint8_t*>(from->buffers[2]);
        to.values.reserve(4 * (rows + count + 1));
        uint32_t* ends = to.values.as<uint32_t>() + rows;
        if (picked.rows == nullptr) {
            const int32_t first = offsets[picked.first];
            const int64_t size = offsets[picked.first + count] - first;
            const uint32_t base = ends[0];
            Store::offset(uint64_t(base) + size);
            to.data.reserve(base + size);
            if (size) std::memcpy(to.data.at() + base, source + first, size);
            for (int64_t i = 1; i <= count; i++) ends[i] = base + static_cast<uint32_t>(offsets[picked.first + i] - first);
        } else {
            uint64_t end = ends[0];
            for (int64_t i = 0; i < count; i++) {
                end += offsets[picked.rows[i] + 1] - offsets[picked.rows[i]];
                ends[i + 1] = Store::offset(end);
            }
            to.data.reserve(end);
            for (int64_t i = 0; i < count; i++) {
                const uint32_t size = ends[i + 1] - ends[i];
                if (size) std::memcpy(to.data.at() + ends[i], source + offsets[picked.rows[i]], size);
            }
        }
    } else if (layout.shape == Shape::record) {
        std::vector<int64_t> inner(picked.rows ? count : 0);
        for (size_t i = 0; i < inner.size(); i++) inner[i] = picked.rows[i] + shift;
        const Picked below{picked.rows ? inner.data() : nullptr, picked.first + shift, count};
        for (size_t c = 0; c < to.children.size(); c++) append(to.children[c], layout.children[c], from->children[c], below);
    } else { /* lists; a null list may have items, which are skipped */
        const bool fixed = layout.shape == Shape::fixed_list;
        const int32_t* offsets = fixed ? nullptr : static_cast<const int32_t*>(from->buffers[1]) + shift;
        std::vector<int64_t> items;
        uint64_t end = 0;
        if (!fixed) {
            to.values.reserve(4 * (rows + count + 1));
            end = to.values.as<uint32_t>()[rows];
        }
        for (int64_t i = 0; i < count; i++) {
            const int64_t row = picked[i];
            const int64_t first = fixed ? (row + shift) * layout.width : offsets[row];
            int64_t size = fixed ? layout.width : offsets[row + 1] - first;
            if (!fixed && bits && !bit_at(bits, row + shift)) size = 0;
            for (int64_t k = 0; k < size; k++) items.push_back(first + k);
            end += size;
            if (!fixed) to.values.as<uint32_t>()[rows + i + 1] = Store::offset(end);
        }
        const Picked below{items.data(), 0, static_cast<int64_t>(items.size())};
        append(to.children[0], layout.children[0], from->children[0], below);
    }
    to.rows += count;
}

/* The position of a row in a column. Without a store it is a row of nulls. */
struct Place {
    const Store* store;
    int64_t row;
};

struct Places { /* a list of places, as one type for all levels, so that template recursion over nested types ends */
    const Place* places;
    Place operator()(int64_t i) const { return places[i]; }
};

/* Appends rows of other stores of this type to the store. at(i) returns the Place of the i-th row. */
template <class At>
static inline void gather(Store& to, const Layout& layout, int64_t count, bool some_missing, At at) {
    using Shape = Layout::Shape;
    const int64_t rows = to.rows;
    if (count == 0) return;
    if (layout.shape == Shape::nothing) {
        to.rows += count;
        return;
    }
    if (layout.shape == Shape::fixed && layout.width > 0) { /* values first, because their memory is random */
        to.values.reserve((rows + count) * layout.width);
        uint8_t* out = to.values.at() + rows * layout.width;
        with_width(layout.width, [&](auto constant) {
            const int64_t width = decltype(constant)::value ? decltype(constant)::value : layout.width;
            for (int64_t i = 0; i < count; i++) {
                if (i + FETCH < count) {
                    const Place next = at(i + FETCH);
                    if (next.store) __builtin_prefetch(next.store->values.at() + next.row * width);
                }
                const Place place = at(i);
                if (place.store) std::memcpy(out + i * width, place.store->values.at() + place.row * width, width);
                else std::memset(out + i * width, 0, width);
            }
        });
    }
    bool nulls = some_missing;
    for (int64_t i = 0; !nulls && i < count; i++) nulls = at(i).store->nullable;
    if (nulls) {
        to.add_validity(count, [&](int64_t i) {
            const Place place = at(i);
            return place.store && place.store->valid(place.row);
        });
    } else {
        to.add_valid(count);
    }
    if (layout.shape == Shape::bits) {
        to.values.reserve((rows + count + 7) / 8);
        for (int64_t i = 0; i < count; i++) {
            const Place place = at(i);
            put_bit(to.values.at(), rows + i, place.store && bit_at(place.store->values.at(), place.row));
        }
    } else if (layout.shape == Shape::bytes) {
        to.values.reserve(4 * (rows + count + 1));
        uint32_t* ends = to.values.as<uint32_t>() + rows;
        uint64_t end = ends[0];
        for (int64_t i = 0; i < count; i++) {
            if (i + FETCH < count) {
                const Place next = at(i + FETCH);
                if (next.store) __builtin_prefetch(next.store->values.as<uint32_t>() + next.row);
            }
            const Place place = at(i);
            if (place.store) {
                const uint32_t* offsets = place.store->values.as<uint32_t>() + place.row;
                end += offsets[1] - offsets[0];
            }
            ends[i + 1] = Store::offset(end);
        }
        to.data.reserve(end);
        for (int64_t i = 0; i < count; i++) {
            if (i + FETCH < count) {
                const Place next = at(i + FETCH);
                if (next.store) __builtin_prefetch(next.store->data.at() + next.store->values.as<uint32_t>()[next.row]);
            }
            const uint32_t size = ends[i + 1] - ends[i];
            if (size == 0) continue;
            const Place place = at(i);
            std::memcpy(to.data.at() + ends[i], place.store->data.at() + place.store->values.as<uint32_t>()[place.row], size);
        }
    } else if (layout.shape == Shape::record) {
        for (size_t c = 0; c < to.children.size(); c++) {
            std::vector<Place> inner(count);
            for (int64_t i = 0; i < count; i++) {
                const Place place = at(i);
                inner[i] = {place.store ? &place.store->children[c] : nullptr, place.row};
            }
            gather(to.children[c], layout.children[c], count, some_missing, Places{inner.data()});
        }
    } else if (layout.shape == Shape::list || layout.shape == Shape::fixed_list) {
        const bool fixed = layout.shape == Shape::fixed_list;
        std::vector<Place> items;
        uint64_t end = 0;
        if (!fixed) {
            to.values.reserve(4 * (rows + count + 1));
            end = to.values.as<uint32_t>()[rows];
        }
        for (int64_t i = 0; i < count; i++) {
            const Place place = at(i);
            const uint32_t* offsets = fixed || !place.store ? nullptr : place.store->values.as<uint32_t>() + place.row;
            const int64_t first = fixed ? place.row * layout.width : offsets ? offsets[0] : 0;
            const int64_t size = fixed ? layout.width : offsets ? offsets[1] - offsets[0] : 0;
            for (int64_t k = 0; k < size; k++) items.push_back({place.store ? &place.store->children[0] : nullptr, first + k});
            end += size;
            if (!fixed) to.values.as<uint32_t>()[rows + i + 1] = Store::offset(end);
        }
        gather(to.children[0], layout.children[0], static_cast<int64_t>(items.size()), some_missing, Places{items.data()});
    }
    to.rows += count;
}

static inline double float_at(const uint8_t* at, int bytes, bool* is_nan) {
    if (bytes == 8) {
        double value;
        std::memcpy(&value, at, 8);
        *is_nan = value != value;
        return value;
    }
    if (bytes == 4) {
        float value;
        std::memcpy(&value, at, 4);
        *is_nan = value != value;
        return value;
    }
    uint16_t half; /* half floats are compared by their bits, except zeros and NaNs */
    std::memcpy(&half, at, 2);
    *is_nan = (half & 0x7c00) == 0x7c00 && (half & 0x3ff) != 0;
    return half == 0x8000 ? 0 : half;
}

/* Returns true if two values are equal: null equals null, NaN equals NaN, -0.0 equals 0.0. */
static inline bool same_value(const Layout& layout, const Store& a, int64_t i, const Store& b, int64_t j) {
    using Shape = Layout::Shape;
    if (layout.shape == Shape::nothing) return true;
    const bool valid = a.valid(i);
    if (valid != b.valid(j)) return false;
    if (!valid) return true;
    switch (layout.shape) {
        case Shape::bits: return bit_at(a.values.at(), i) == bit_at(b.values.at(), j);
        case Shape::fixed: {
            const uint8_t* x = a.values.at() + i * layout.width;
            const uint8_t* y = b.values.at() + j * layout.width;
            if (layout.width == 0 || std::memcmp(x, y, layout.width) == 0) return true;
            if (layout.real == 0) return false;
            bool x_nan, y_nan;
            const double left = float_at(x, layout.real, &x_nan), right = float_at(y, layout.real, &y_nan);
            return x_nan || y_nan ? x_nan && y_nan : left == right;
        }
        case Shape::bytes: {
            const uint32_t* x = a.values.as<uint32_t>() + i;
            const uint32_t* y = b.values.as<uint32_t>() + j;
            const uint32_t size = x[1] - x[0];
            return size == y[1] - y[0] && (size == 0 || std::memcmp(a.data.at() + x[0], b.data.at() + y[0], size) == 0);
        }
        case Shape::record:
            for (size_t c = 0; c < a.children.size(); c++)
                if (!same_value(layout.children[c], a.children[c], i, b.children[c], j)) return false;
            return true;
        default: {
            const bool fixed = layout.shape == Shape::fixed_list;
            const int64_t x = fixed ? i * layout.width : a.values.as<uint32_t>()[i];
            const int64_t y = fixed ? j * layout.width : b.values.as<uint32_t>()[j];
            const int64_t size = fixed ? layout.width : a.values.as<uint32_t>()[i + 1] - x;
            if (!fixed && size != b.values.as<uint32_t>()[j + 1] - y) return false;
            for (int64_t k = 0; k < size; k++)
                if (!same_value(layout.children[0], a.children[0], x + k, b.children[0], y + k)) return false;
            return true;
        }
    }
}

/* Returns a hash of a value; equal values have equal hashes. */
static inline uint64_t hash_value(const Layout& layout, const Store& store, int64_t row) {
    using Shape = Layout::Shape;
    if (layout.shape == Shape::nothing || !store.valid(row)) return hash_null();
    switch (layout.shape) {
        case Shape::bits: return hash_words(bit_at(store.values.at(), row) ? 0xc3 : 0xc2, 0, 1);
        case Shape::fixed: {
            const uint8_t* at = store.values.at() + row * layout.width;
            if (layout.real) {
                bool is_nan;
                const double value = float_at(at, layout.real, &is_nan);
                return is_nan ? SABOT_K1 : hash_float(value);
            }
            return sabot_hash(at, layout.width);
        }
        case Shape::bytes: {
            const uint32_t* offsets = store.values.as<uint32_t>() + row;
            return sabot_hash(store.data.at() + offsets[0], offsets[1] - offsets[0]);
        }
        case Shape::record: {
            uint64_t hash = SABOT_K2;
            for (size_t c = 0; c < store.children.size(); c++)
                hash = hash_combined(hash, hash_value(layout.children[c], store.children[c], row));
            return hash;
        }
        default: {
            const bool fixed = layout.shape == Shape::fixed_list;
            const int64_t first = fixed ? row * layout.width : store.values.as<uint32_t>()[row];
            const int64_t end = fixed ? first + layout.width : store.values.as<uint32_t>()[row + 1];
            uint64_t hash = SABOT_K3 ^ static_cast<uint64_t>(end - first);
            for (int64_t k = first; k < end; k++) hash = hash_combined(hash, hash_value(layout.children[0], store.children[0], k));
            return hash;
        }
    }
}

/* Export of stores as Arrow arrays */

struct Given { /* the memory that an exported array owns */
    Memory parts[3];
    const void* buffers[3];
    std::vector<ArrowArray*> children;
};

static inline void release_given(ArrowArray* array) {
    Given* given = static_cast<Given*>(array->private_data);
    for (ArrowArray* child : given->children) {
        if (child->release) child->release(child);
        delete child;
    }
    delete given;
    array->release = nullptr;
}

static inline void give_array(ArrowArray* out, int64_t length, int64_t null_count, int64_t buffers, Given* given) {
    *out = ArrowArray{};
    out->length = length;
    out->null_count = null_count;
    out->n_buffers = buffers;
    out->buffers = given->buffers;
    out->n_children = static_cast<int64_t>(given->children.size());
    out->children = given->children.empty() ? nullptr : given->children.data();
    out->release = release_given;
    out->private_data = given;
}

/* Exports the store as an array, and empties it. */
static inline void give_store(Store& store, const Layout& layout, ArrowArray* out) {
    using Shape = Layout::Shape;
    Given* given = new Given();
    const bool has_data = layout.shape == Shape::bytes;
    const bool has_values = has_data || layout.shape == Shape::bits || layout.shape == Shape::fixed || layout.shape == Shape::list;
    if (has_values && store.values.at() == nullptr) store.values.reserve(8);
    if (has_data && store.data.at() == nullptr) store.data.reserve(8);
    given->parts[0] = std::move(store.validity);
    given->parts[1] = std::move(store.values);
    given->parts[2] = std::move(store.data);
    for (int b = 0; b < 3; b++) given->buffers[b] = given->parts[b].at();
    if (!store.nullable) given->buffers[0] = nullptr;
    for (size_t c = 0; c < store.children.size(); c++) {
        given->children.push_back(new ArrowArray());
        give_store(store.children[c], layout.children[c], given->children.back());
    }
    const bool nothing = layout.shape == Shape::nothing;
    give_array(
        out, store.rows, nothing ? store.rows : store.nullable ? -1 : 0, nothing ? 0 : has_data ? 3 : has_values ? 2 : 1, given
    );
    store.rows = 0;
}

/* Exports columns of `rows` rows as one struct array. `columns`: for each store the index of its layout. */
static inline void give_columns(
    std::vector<Store>& stores, const std::vector<Layout>& layouts, const std::vector<int>& columns, int64_t rows, ArrowArray* out
) {
    Given* given = new Given();
    given->buffers[0] = nullptr;
    for (size_t c = 0; c < stores.size(); c++) {
        given->children.push_back(new ArrowArray());
        give_store(stores[c], layouts[columns[c]], given->children.back());
    }
    give_array(out, rows, 0, 1, given);
}

static inline Layout number_layout(int64_t width) {
    Layout layout;
    layout.shape = Layout::Shape::fixed;
    layout.width = width;
    return layout;
}

static inline void give_numbers(Memory& memory, int64_t width, int64_t rows, ArrowArray* out) {
    Store store;
    store.values = std::move(memory);
    store.rows = rows;
    give_store(store, number_layout(width), out);
}

/* Like `give_columns`, with two int64 columns at the end. */
static inline void give_cut_columns(std::vector<Store>& stores, const std::vector<Layout>& layouts, ArrowArray* out) {
    std::vector<Layout> all(layouts);
    all.resize(stores.size(), number_layout(8));
    std::vector<int> columns;
    for (size_t c = 0; c < stores.size(); c++) columns.push_back(static_cast<int>(c));
    const int64_t rows = stores.back().rows;
    give_columns(stores, all, columns, rows, out);
}

}  // namespace sabot
