/* Rows of any columns as bytes: the only encoding of rows that the engine itself reads back.

       value of fixed width:    its bytes as in Arrow (little endian), a bool as a byte
       value of a text:         uint32 size, bytes
       value of a list:         uint32 size, its values
       value of a child:        uint8 1 if it is not null, then the value; for a struct: its children

   There are two arrangements of a row's columns:

       Layout, in memory:      null bits | columns of fixed width, each at its place | the others, in sequence
       Compact, in a database: validity bits | the values that are not null, in sequence

   The bits take one byte for 8 columns. In a Layout a null has zeros in its fixed place, and no bytes otherwise. -0.0 is
   kept as 0.0 and every NaN as the one quiet NaN, so rows are equal, column by column, if their bytes are. Only a Compact
   that is not a key keeps floats unchanged.

   Two other encodings exist for other purposes. Keys of state are msgpack (key_hash.h), because they are hashed, and read
   by other programs. Values that have to sort as bytes are escaped (multiset_store.h). Compact and these two are part of
   the format of checkpoints.

   Nothing here needs the GIL. Functions that allocate (`open`, `write` of a Layout, `Made`) may throw std::bad_alloc;
   functions marked noexcept throw nothing. Callers have to check that rows, sizes and types are right. */
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "arrow/arrow_c.h"
#include "arrow/pages.h"

namespace sabot {

enum class Shape : uint8_t { nothing, bit, plain, real32, real64, bytes, list, fixed_list, record, unknown };

struct Node {
    Shape shape = Shape::unknown;
    int64_t width = 0; /* for plain: bytes; for fixed_list: values */
    std::vector<Node> children;

    bool fixed() const { return shape >= Shape::bit && shape <= Shape::real64; }
};

static inline Node node_of(const ArrowSchema* schema) {
    Node node;
    const char* f = schema->format;
    auto plain = [&](int64_t width) { node.shape = Shape::plain, node.width = width; };
    if (schema->dictionary != nullptr) return node;
    switch (f[0]) {
        case 'n': node.shape = Shape::nothing; break;
        case 'b': node.shape = Shape::bit, node.width = 1; break;
        case 'c': case 'C': plain(1); break;
        case 's': case 'S': case 'e': plain(2); break;
        case 'i': case 'I': plain(4); break;
        case 'l': case 'L': plain(8); break;
        case 'f': node.shape = Shape::real32, node.width = 4; break;
        case 'g': node.shape = Shape::real64, node.width = 8; break;
        case 'u': case 'z': node.shape = Shape::bytes; break;
        case 'w': plain(std::strtol(f + 2, nullptr, 10)); break;
        case 'd': {
            const char* comma = std::strchr(f + 2, ',');
            comma = comma ? std::strchr(comma + 1, ',') : nullptr;
            plain(comma ? std::strtol(comma + 1, nullptr, 10) / 8 : 16);
            break;
        }
        case 't':
            if (f[1] == 'd') plain(f[2] == 'D' ? 4 : 8);
            else if (f[1] == 't') plain(f[2] == 's' || f[2] == 'm' ? 4 : 8);
            else if (f[1] == 's' || f[1] == 'D') plain(8);
            else if (f[1] == 'i') plain(f[2] == 'M' ? 4 : f[2] == 'D' ? 8 : 16);
            break;
        case '+':
            if (f[1] == 's') node.shape = Shape::record;
            else if (f[1] == 'l' || f[1] == 'm') node.shape = Shape::list;
            else if (f[1] == 'w') node.shape = Shape::fixed_list, node.width = std::strtol(f + 3, nullptr, 10);
            break;
        default: break;
    }
    if (node.shape >= Shape::list && node.shape <= Shape::record) {
        for (int64_t i = 0; i < schema->n_children; i++) {
            node.children.push_back(node_of(schema->children[i]));
            if (node.children.back().shape == Shape::unknown) node.shape = Shape::unknown;
        }
    }
    return node;
}

/* A column open for reading. Row 0 is at `start` in every buffer. */
struct Source {
    const Node* node = nullptr;
    int64_t start = 0;
    const uint8_t* validity = nullptr;
    const uint8_t* values = nullptr;
    const int32_t* offsets = nullptr;
    std::vector<Source> children;

    void open(const Node* of, const ArrowArray* array, int64_t parent_start) {
        node = of;
        start = parent_start + array->offset;
        children.clear();
        validity = nullptr;
        if (array->n_buffers && array->null_count != 0) validity = static_cast<const uint8_t*>(array->buffers[0]);
        if (of->fixed()) values = static_cast<const uint8_t*>(array->buffers[1]);
        if (of->shape == Shape::bytes) values = static_cast<const uint8_t*>(array->buffers[2]);
        if (of->shape == Shape::bytes || of->shape == Shape::list) offsets = static_cast<const int32_t*>(array->buffers[1]);
        children.resize(of->children.size());
        const int64_t inner = of->shape == Shape::record ? start : 0; /* a list's child is addressed by the list's offsets */
        for (size_t i = 0; i < children.size(); i++) children[i].open(&of->children[i], array->children[i], inner);
    }
    bool valid(int64_t row) const {
        if (node->shape == Shape::nothing) return false;
        const int64_t i = start + row;
        return validity == nullptr || ((validity[i >> 3] >> (i & 7)) & 1);
    }
    /* Copies a value of fixed width, which is not null. */
    void copy(int64_t row, uint8_t* out) const {
        const int64_t i = start + row;
        switch (node->shape) {
            case Shape::bit: *out = (values[i >> 3] >> (i & 7)) & 1; return;
            case Shape::real32: {
                float value;
                std::memcpy(&value, values + 4 * i, 4);
                if (std::isnan(value)) value = std::nanf("");
                if (value == 0) value = 0;
                std::memcpy(out, &value, 4);
                return;
            }
            case Shape::real64: {
                double value;
                std::memcpy(&value, values + 8 * i, 8);
                if (std::isnan(value)) value = std::nan("");
                if (value == 0) value = 0;
                std::memcpy(out, &value, 8);
                return;
            }
            default:
                if (node->width == 8) std::memcpy(out, values + 8 * i, 8);
                else if (node->width == 4) std::memcpy(out, values + 4 * i, 4);
                else std::memcpy(out, values + node->width * i, node->width);
        }
    }
};

using Bytes = std::vector<uint8_t>;

static inline void put_size(uint8_t*& at, int64_t size) noexcept {
    const uint32_t word = static_cast<uint32_t>(size);
    std::memcpy(at, &word, 4);
    at += 4;
}
static inline uint32_t take_size(const uint8_t*& at) noexcept {
    uint32_t size;
    std::memcpy(&size, at, 4);
    at += 4;
    return size;
}

/* Calls body(child, row of the child) for the children of a value. */
template <class Body>
static inline void each_child(const Source& source, int64_t row, Body body) {
    const int64_t i = source.start + row, width = source.node->width;
    switch (source.node->shape) {
        case Shape::list:
            for (int64_t k = source.offsets[i]; k < source.offsets[i + 1]; k++) body(source.children[0], k);
            return;
        case Shape::fixed_list:
            for (int64_t k = i * width; k < (i + 1) * width; k++) body(source.children[0], k);
            return;
        default:
            for (const Source& child : source.children) body(child, row);
    }
}

/* Returns the number of bytes of a value that is not null. */
static inline int64_t value_size(const Source& source, int64_t row) noexcept {
    if (source.node->fixed()) return source.node->width;
    const int64_t i = source.start + row;
    if (source.node->shape == Shape::bytes) return 4 + source.offsets[i + 1] - source.offsets[i];
    int64_t size = source.node->shape == Shape::list ? 4 : 0;
    each_child(source, row, [&](const Source& child, int64_t at) { size += child.valid(at) ? 1 + value_size(child, at) : 1; });
    return size;
}

/* Writes a value that is not null, and moves `at` behind it. */
static inline void put_value(const Source& source, int64_t row, uint8_t*& at) noexcept {
    if (source.node->fixed()) {
        source.copy(row, at);
        at += source.node->width;
        return;
    }
    const int64_t i = source.start + row;
    if (source.node->shape == Shape::bytes) {
        const int64_t size = source.offsets[i + 1] - source.offsets[i];
        put_size(at, size);
        if (size) std::memcpy(at, source.values + source.offsets[i], size);
        at += size;
        return;
    }
    if (source.node->shape == Shape::list) put_size(at, source.offsets[i + 1] - source.offsets[i]);
    each_child(source, row, [&](const Source& child, int64_t k) {
        const bool there = child.valid(k);
        *at++ = there;
        if (there) put_value(child, k, at);
    });
}

/* A column under construction. */
struct Made {
    const Node* node = nullptr;
    int64_t rows = 0, nulls = 0;
    Bytes validity, values; /* `validity`: bits; `values`: bits or bytes */
    std::vector<int32_t> offsets;
    std::vector<Made> children;

    void begin(const Node* of) {
        node = of;
        if (of->shape == Shape::bytes || of->shape == Shape::list) offsets.push_back(0);
        children.resize(of->children.size());
        for (size_t i = 0; i < children.size(); i++) children[i].begin(&of->children[i]);
    }
    void mark(bool there) {
        if ((rows & 7) == 0) validity.push_back(0);
        validity.back() |= static_cast<uint8_t>(there << (rows & 7));
        nulls += !there;
    }
    void put_bit(bool value) {
        if ((rows & 7) == 0) values.push_back(0);
        values.back() |= static_cast<uint8_t>(value << (rows & 7));
    }
    void put_null() {
        mark(false);
        switch (node->shape) {
            case Shape::nothing: break;
            case Shape::bit: put_bit(false); break;
            case Shape::bytes: case Shape::list: offsets.push_back(offsets.back()); break;
            case Shape::fixed_list:
                for (int64_t k = 0; k < node->width; k++) children[0].put_null();
                break;
            case Shape::record:
                for (Made& child : children) child.put_null();
                break;
            default: values.resize(values.size() + node->width);
        }
        rows++;
    }
    void put(const uint8_t*& at) {
        mark(true);
        auto child = [&](Made& made) {
            if (*at++) made.put(at);
            else made.put_null();
        };
        switch (node->shape) {
            case Shape::bit: put_bit(*at++); break;
            case Shape::bytes: {
                const uint32_t size = take_size(at);
                values.insert(values.end(), at, at + size);
                at += size;
                offsets.push_back(static_cast<int32_t>(values.size()));
                break;
            }
            case Shape::list: {
                const uint32_t size = take_size(at);
                for (uint32_t k = 0; k < size; k++) child(children[0]);
                offsets.push_back(static_cast<int32_t>(children[0].rows));
                break;
            }
            case Shape::fixed_list:
                for (int64_t k = 0; k < node->width; k++) child(children[0]);
                break;
            case Shape::record:
                for (Made& made : children) child(made);
                break;
            default:
                values.insert(values.end(), at, at + node->width);
                at += node->width;
        }
        rows++;
    }
};

/* Rows in memory. A column of fixed width is read without reading the others. */
struct Layout {
    static constexpr int64_t AT_ONCE = 64; /* so many rows are read column by column, so that they stay in the first-level cache */

    std::vector<Node> nodes;
    std::vector<int64_t> places; /* the offsets of the columns of fixed width in a row; -1 for others */
    std::vector<int> loose;      /* the other columns */
    int64_t head = 0;            /* bytes of the null bits and the columns of fixed width */

    /* Adds a column. Returns false if its type is not supported. */
    bool add(const ArrowSchema* schema) {
        nodes.push_back(node_of(schema));
        return nodes.back().shape != Shape::unknown;
    }
    void ready() {
        head = (nodes.size() + 7) / 8;
        for (size_t i = 0; i < nodes.size(); i++) {
            places.push_back(nodes[i].fixed() ? head : -1);
            if (nodes[i].fixed()) head += nodes[i].width;
            else loose.push_back(static_cast<int>(i));
        }
    }
    /* Writes the bytes of a row to `out`. */
    void write(const std::vector<Source>& columns, int64_t row, Bytes& out) const {
        int64_t size = head;
        for (int c : loose) size += columns[c].valid(row) ? value_size(columns[c], row) : 0;
        out.resize(size);
        std::memset(out.data(), 0, head);
        uint8_t* at = out.data() + head;
        for (size_t i = 0; i < nodes.size(); i++) {
            if (!columns[i].valid(row)) out[i >> 3] |= static_cast<uint8_t>(1 << (i & 7));
            else if (places[i] >= 0) columns[i].copy(row, out.data() + places[i]);
            else put_value(columns[i], row, at);
        }
    }
    /* Makes columns from rows. bytes_of(i) returns the address of row i. `wanted`: one flag per column, or null for
       all columns. visit(i) is called while row i is in the cache. */
    template <class BytesOf, class Visit>
    void read(
        int64_t count, BytesOf bytes_of, std::vector<Made>& columns, const std::vector<char>* wanted, Visit visit
    ) const {
        columns.clear();
        columns.resize(nodes.size());
        for (size_t c = 0; c < nodes.size(); c++) {
            const Node& node = nodes[c];
            Made& made = columns[c];
            made.begin(&node);
            if (wanted != nullptr && !(*wanted)[c]) continue;
            if (node.shape == Shape::bytes) made.offsets.reserve(count + 1);
            if (places[c] < 0) continue;
            made.rows = count;
            made.validity.resize((count + 7) / 8);
            made.values.resize(node.shape == Shape::bit ? (count + 7) / 8 : count * node.width);
        }
        for (int64_t start = 0; start < count; start += AT_ONCE) {
            const int64_t end = start + AT_ONCE < count ? start + AT_ONCE : count;
            for (int64_t i = start; i < end; i++) {
                __builtin_prefetch(bytes_of(i));
                if (head > 64) __builtin_prefetch(bytes_of(i) + 64);
            }
            for (int64_t i = start; i < end; i++) visit(i);
            read_some(start, end, bytes_of, columns, wanted);
            if (start == 0 && end < count) reserve_texts(columns, end, count);
        }
    }
    /* Makes room for the texts of all rows, estimated from the first rows: growing step by step would copy, and touch
       new memory. */
    static constexpr size_t MOST_RESERVED = 64 << 20;
    void reserve_texts(std::vector<Made>& columns, int64_t first, int64_t count) const {
        for (int c : loose) {
            if (nodes[c].shape != Shape::bytes) continue;
            Bytes& texts = columns[c].values;
            texts.reserve(std::min(MOST_RESERVED, texts.size() * count / first * 9 / 8));
        }
    }
    template <class BytesOf>
    void read_some(
        int64_t start, int64_t end, BytesOf& bytes_of, std::vector<Made>& columns, const std::vector<char>* wanted
    ) const {
        for (size_t c = 0; c < nodes.size(); c++) {
            if (places[c] < 0 || (wanted != nullptr && !(*wanted)[c])) continue;
            switch (nodes[c].width) {
                case 8: read_fixed<8>(c, start, end, bytes_of, columns[c]); break;
                case 4: read_fixed<4>(c, start, end, bytes_of, columns[c]); break;
                case 2: read_fixed<2>(c, start, end, bytes_of, columns[c]); break;
                case 1: read_fixed<1>(c, start, end, bytes_of, columns[c]); break;
                default: read_fixed<0>(c, start, end, bytes_of, columns[c]);
            }
        }
        bool any_loose = false;
        for (int c : loose) any_loose = any_loose || wanted == nullptr || (*wanted)[c];
        if (!any_loose) return;
        for (int64_t i = start; i < end; i++) {
            const uint8_t* row = bytes_of(i);
            const uint8_t* at = row + head;
            for (int c : loose) {
                if ((row[c >> 3] >> (c & 7)) & 1) columns[c].put_null();
                else columns[c].put(at);
            }
        }
    }
    template <int WIDTH, class BytesOf>
    void read_fixed(size_t c, int64_t start, int64_t end, BytesOf& bytes_of, Made& made) const {
        const int64_t place = places[c], width = WIDTH ? WIDTH : nodes[c].width;
        const bool bit = nodes[c].shape == Shape::bit;
        uint8_t* out = made.values.data();
        for (int64_t i = start; i < end; i++) {
            const uint8_t* row = bytes_of(i);
            const bool there = !((row[c >> 3] >> (c & 7)) & 1);
            made.validity[i >> 3] |= static_cast<uint8_t>(there << (i & 7));
            made.nulls += !there;
            if (bit) out[i >> 3] |= static_cast<uint8_t>(row[place] << (i & 7));
            else std::memcpy(out + i * width, row + place, WIDTH ? WIDTH : width);
        }
    }
};

/* A column into which rows are read. OUT: memory of known size, all zeros at first. */
struct Filled {
    uint8_t* values = nullptr;   /* numbers, bits, or the bytes of texts */
    uint8_t* validity = nullptr; /* bits */
    int32_t* offsets = nullptr;  /* for texts: one more than rows, the first is 0 */
    int64_t nulls = 0;
};

/* Rows in a database, of columns without children. The format of `write` is part of the format of checkpoints. */
struct Compact {
    std::vector<Node> nodes;
    std::vector<int64_t> widths; /* bytes per value of the columns of fixed width; 0 for others */

    /* Adds a column. Returns false if its type is not supported. `keys`: true to write floats that compare equal as
       equal bytes. */
    bool add(const ArrowSchema* schema, bool keys) {
        Node node = node_of(schema);
        if (!keys && (node.shape == Shape::real32 || node.shape == Shape::real64)) node.shape = Shape::plain;
        nodes.push_back(node);
        widths.push_back(node.fixed() ? node.width : 0);
        return node.fixed() || node.shape == Shape::bytes;
    }
    int64_t size(const std::vector<Source>& columns, int64_t row) const noexcept {
        int64_t size = bits();
        for (size_t c = 0; c < widths.size(); c++)
            if (columns[c].valid(row)) size += widths[c] ? widths[c] : value_size(columns[c], row);
        return size;
    }
    /* Writes the row into `out`, which has as many bytes as the row takes. */
    void write(const std::vector<Source>& columns, int64_t row, uint8_t* out) const noexcept {
        uint8_t* at = out + bits();
        std::memset(out, 0, bits());
        for (size_t c = 0; c < widths.size(); c++) {
            if (!columns[c].valid(row)) continue;
            out[c >> 3] |= static_cast<uint8_t>(1 << (c & 7));
            if (widths[c]) {
                columns[c].copy(row, at);
                at += widths[c];
            } else {
                put_value(columns[c], row, at);
            }
        }
    }
    /* Returns true if these bytes are a row. Adds the size of its text in column c to text_bytes[c]. */
    bool measure(const uint8_t* row, int64_t size, int64_t* text_bytes) const noexcept {
        int64_t at = bits();
        for (size_t c = 0; c < nodes.size() && at <= size; c++) {
            if (!is_there(row, c)) continue;
            if (nodes[c].fixed()) {
                at += nodes[c].width;
                continue;
            }
            if (at + 4 > size) return false;
            const uint8_t* place = row + at;
            const int64_t length = take_size(place);
            at += 4 + length;
            text_bytes[c] += length;
        }
        return at == size;
    }
    /* Reads a measured row into row `i` of the columns. Rows must be read in order. */
    void read(const uint8_t* row, int64_t i, Filled* columns) const noexcept {
        const uint8_t* at = row + bits();
        for (size_t c = 0; c < nodes.size(); c++) {
            Filled& column = columns[c];
            const int64_t width = nodes[c].width;
            if (nodes[c].shape == Shape::bytes) column.offsets[i + 1] = column.offsets[i];
            if (!is_there(row, c)) {
                column.nulls++;
                continue;
            }
            column.validity[i >> 3] |= static_cast<uint8_t>(1 << (i & 7));
            if (nodes[c].shape == Shape::bytes) {
                const uint32_t size = take_size(at);
                if (size) std::memcpy(column.values + column.offsets[i], at, size);
                column.offsets[i + 1] += static_cast<int32_t>(size);
                at += size;
            } else if (nodes[c].shape == Shape::bit) {
                column.values[i >> 3] |= static_cast<uint8_t>((*at++ != 0) << (i & 7));
            } else {
                if (width == 8) std::memcpy(column.values + i * 8, at, 8);
                else std::memcpy(column.values + i * width, at, width);
                at += width;
            }
        }
    }

   private:
    int64_t bits() const noexcept { return (nodes.size() + 7) / 8; }
    static bool is_there(const uint8_t* row, size_t c) noexcept { return (row[c >> 3] >> (c & 7)) & 1; }
};

/* Memory for rows: pieces of slabs, by size. A freed piece is reused for rows of its size. Long rows come from
   malloc. */
class RowPool {
   public:
    RowPool() = default;
    RowPool(const RowPool&) = delete;
    ~RowPool() { clear(); }

    void* take(int64_t bytes) {
        const size_t units = (bytes + UNIT - 1) / UNIT;
        if (units >= SIZES) {
            void* piece = std::malloc(bytes);
            if (piece == nullptr) throw std::bad_alloc();
            return piece;
        }
        if (unused[units] != nullptr) {
            void* piece = unused[units];
            std::memcpy(&unused[units], piece, sizeof(void*));
            return piece;
        }
        if (slabs.empty() || at + units * UNIT > SLAB) {
            slabs.push_back(std::unique_ptr<uint8_t[]>(new uint8_t[SLAB]));
            provide(slabs.back().get(), SLAB);
            at = 0;
        }
        at += units * UNIT;
        return slabs.back().get() + at - units * UNIT;
    }
    void give(void* piece, int64_t bytes) {
        const size_t units = (bytes + UNIT - 1) / UNIT;
        if (units >= SIZES) return std::free(piece);
        std::memcpy(piece, &unused[units], sizeof(void*));
        unused[units] = piece;
    }
    /* Frees all slabs at once. Every row in them must be freed or no longer needed. */
    void clear() {
        slabs.clear();
        std::fill(unused, unused + SIZES, nullptr);
    }
    int64_t nbytes() const { return slabs.size() * SLAB; }

   private:
    static constexpr size_t UNIT = 16, SIZES = 65, SLAB = 1 << 18;
    std::vector<std::unique_ptr<uint8_t[]>> slabs;
    void* unused[SIZES] = {nullptr};
    size_t at = 0;
};

}  // namespace sabot
