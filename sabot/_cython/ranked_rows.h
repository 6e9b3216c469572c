/* Rows of any columns as bytes, one piece of memory a row: what is kept of rows that come and go one by one.

    null bits, a byte for 8 columns | columns of fixed width, each at its place | texts, bytes and nested values, one after the other

A null has zeros in its place, or nothing. -0.0 is kept as 0.0 and every NaN as the one quiet NaN: so rows are equal, column by
column, where their bytes are.

    value of a text:   uint32 size, bytes           of a list:  uint32 size, its values
    value of a child:  uint8 whether it is there, then the value; of a struct: its children */
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "arrow_c.h"

namespace sabot {

enum class Shape : uint8_t { nothing, bit, plain, real32, real64, bytes, list, fixed_list, record, unknown };

struct Node {
    Shape shape = Shape::unknown;
    int64_t width = 0; /* plain: bytes; fixed_list: values */
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

/* A column open for reading; row 0 stands at `start` of every buffer. */
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
        const int64_t inner = of->shape == Shape::record ? start : 0; /* a list's child is addressed by the list */
        for (size_t i = 0; i < children.size(); i++) children[i].open(&of->children[i], array->children[i], inner);
    }
    bool valid(int64_t row) const {
        if (node->shape == Shape::nothing) return false;
        const int64_t i = start + row;
        return validity == nullptr || ((validity[i >> 3] >> (i & 7)) & 1);
    }
    /* The value of a fixed width, not null. */
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

static inline void put_size(Bytes& out, int64_t size) {
    const uint32_t word = static_cast<uint32_t>(size);
    const size_t at = out.size();
    out.resize(at + 4);
    std::memcpy(out.data() + at, &word, 4);
}
static inline uint32_t take_size(const uint8_t*& at) {
    uint32_t size;
    std::memcpy(&size, at, 4);
    at += 4;
    return size;
}

/* A value that is not null. */
static inline void put_value(const Source& source, int64_t row, Bytes& out) {
    const int64_t i = source.start + row;
    const Node& node = *source.node;
    auto put_child = [&](const Source& child, int64_t at) {
        const bool there = child.valid(at);
        out.push_back(there);
        if (there) put_value(child, at, out);
    };
    switch (node.shape) {
        case Shape::bytes: {
            const int64_t size = source.offsets[i + 1] - source.offsets[i];
            put_size(out, size);
            if (size) out.insert(out.end(), source.values + source.offsets[i], source.values + source.offsets[i] + size);
            return;
        }
        case Shape::list:
            put_size(out, source.offsets[i + 1] - source.offsets[i]);
            for (int64_t k = source.offsets[i]; k < source.offsets[i + 1]; k++) put_child(source.children[0], k);
            return;
        case Shape::fixed_list:
            for (int64_t k = 0; k < node.width; k++) put_child(source.children[0], i * node.width + k);
            return;
        case Shape::record:
            for (const Source& child : source.children) put_child(child, row);
            return;
        default: {
            const size_t at = out.size();
            out.resize(at + node.width);
            source.copy(row, out.data() + at);
        }
    }
}

/* A column being made. */
struct Made {
    const Node* node = nullptr;
    int64_t rows = 0, nulls = 0;
    Bytes validity, values; /* bits; values, bits or bytes */
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

/* How rows of some columns are laid out. */
struct Layout {
    static constexpr int64_t AT_ONCE = 64; /* rows that are read column by column: they stay in the first-level cache */

    std::vector<Node> nodes;
    std::vector<int64_t> places; /* of the columns of fixed width; -1 else */
    std::vector<int> loose;      /* the other columns */
    int64_t head = 0;            /* null bits and fixed widths */

    /* False: the column's type cannot be kept. */
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
    /* The row's bytes, into `out`. */
    void write(const std::vector<Source>& columns, int64_t row, Bytes& out) const {
        out.resize(head);
        std::memset(out.data(), 0, head);
        for (size_t i = 0; i < nodes.size(); i++) {
            if (!columns[i].valid(row)) out[i >> 3] |= static_cast<uint8_t>(1 << (i & 7));
            else if (places[i] >= 0) columns[i].copy(row, out.data() + places[i]);
            else put_value(columns[i], row, out);
        }
    }
    /* Columns of rows: bytes_of(i) is where those of row i stand. wanted: null, or which columns are. visit(i) is called when
       row i is in the cache. */
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
            if (places[c] < 0 || (wanted != nullptr && !(*wanted)[c])) continue;
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

/* Memory for rows: pieces of slabs, by size; what is given back is used again for rows of its size. Long rows are malloc's. */
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
    /* All that is not malloc's has been given back, or is not needed any more. */
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
