/* A column builder: the buffers that a decoder fills row by row, and their export as an ArrowArray.

   While rows are read, validity and booleans take one byte per row, so that a bad row is undone by resetting lengths.
   finish() packs them into bits. `append`, `append_null` and `room` count the rows of each column separately, for
   decoders that read fields in any order. A decoder that fills all columns of a record at one row number may instead
   call `reserve`, write into the buffers, and set the lengths with `truncate`.

   Throws std::bad_alloc, or std::overflow_error for a column that is too large for Arrow. */
#pragma once

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#include "arrow/arrow_c.h"
#include "arrow/bytes.h"
#include "arrow/new_array.h"

namespace sabot {

/* The kind of a column, which decides what buffers it has. A map is a list of structs. */
enum class Layout : uint8_t { null_, bool_, fixed, bytes, list, struct_ };

/* A column under construction. `Self` is the class that derives from this one; the children have that class too. */
template <class Self>
struct ColumnBuilder {
    Layout layout;
    bool nullable;
    int64_t width;              /* bytes per value while rows are read: 1 for bools, 0 for layouts without fixed-width values */
    int64_t len = 0, cap = 0;   /* `len`: rows in the column; `cap`: rows for which the buffers have room */
    uint8_t* valid = nullptr;   /* one byte per row: 1 if the row is not null */
    uint8_t* data = nullptr;    /* values of fixed width; for bool, a byte per row */
    int32_t* offsets = nullptr; /* for bytes and list: cap + 1 offsets; offsets[len] is the length of `text` or of the child */
    Bytes text;
    std::vector<std::unique_ptr<Self>> children;
    double per_row = 0;         /* text bytes or list items per row in the last batch; begin() reserves room by it */

    ColumnBuilder(Layout layout_, bool nullable_, int64_t width_) : layout(layout_), nullable(nullable_), width(width_) {}
    ColumnBuilder(const ColumnBuilder&) = delete;
    ~ColumnBuilder() {
        std::free(valid);
        std::free(data);
        std::free(offsets);
    }

    bool has_offsets() const { return layout == Layout::bytes || layout == Layout::list; }

    __attribute__((noinline)) void grow(int64_t rows) {
        if (rows > MAX_OFFSET || len == MAX_OFFSET) throw std::overflow_error("a column of this batch has more than 2^31 rows: use smaller batches");
        resize(valid, rows + 8); /* finish() reads 8 bytes at a time */
        if (width) resize(data, rows * width + 8);
        if (has_offsets()) {
            const bool fresh = offsets == nullptr;
            resize(offsets, (rows + 1) * 4);
            if (fresh) offsets[0] = 0;
        }
        cap = rows;
    }
    inline void room() {
        if (SABOT_UNLIKELY(len == cap)) grow(doubled());
    }
    int64_t doubled() const { return std::clamp<int64_t>(cap * 2, 64, MAX_OFFSET); }

    template <class T>
    static void resize(T*& buffer, int64_t bytes) {
        void* grown = std::realloc(buffer, static_cast<size_t>(bytes));
        if (grown == nullptr) throw std::bad_alloc();
        buffer = static_cast<T*>(grown);
    }

    /* Makes room for `rows` rows in all, here and in the children of structs. Children are grown first, so none has
       less room than its parent. */
    void reserve(int64_t rows) {
        if (layout == Layout::struct_)
            for (auto& child : children) child->reserve(rows);
        if (rows > cap) grow(rows);
    }

    /* Empties the column and makes room for `rows` rows. */
    void begin(int64_t rows) {
        for (auto& child : children) {
            const double items = layout == Layout::list ? static_cast<double>(rows) * per_row * 1.1 : static_cast<double>(rows);
            child->begin(static_cast<int64_t>(items < 1e8 ? items : 1e8));
        }
        len = 0;
        if (rows > cap) grow(rows);
        if (offsets) offsets[0] = 0;
        if (layout == Layout::bytes) {
            text.len = 0;
            const double want = static_cast<double>(rows) * (per_row ? per_row * 1.1 : 8);
            text.ensure(static_cast<int64_t>(want < 1e9 ? want : 1e9));
        }
    }

    /* Keeps the first `rows` rows. Also removes the text and the child rows that an incomplete row has appended. */
    void truncate(int64_t rows) {
        len = rows;
        const int64_t below = offsets ? offsets[rows] : 0;
        if (layout == Layout::bytes) text.len = below;
        for (auto& child : children) child->truncate(layout == Layout::list ? below : rows);
    }

    template <class T>
    inline void append(T value) {
        room();
        valid[len] = 1;
        std::memcpy(data + len * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
        len++;
    }

    /* Appends a row without a value: null if the column is nullable, else zero or empty. A zero is never seen: its
       parent is null, or the row is removed again. */
    void append_null() {
        room();
        blank(len);
        if (layout == Layout::struct_)
            for (auto& child : children) child->append_null();
        len++;
    }

    /* Writes a row without a value at `row`, here and in the children of structs. There must be room for it. */
    void put_null(int64_t row) {
        blank(row);
        if (layout == Layout::struct_)
            for (auto& child : children) child->put_null(row);
    }

  private:
    void blank(int64_t row) {
        valid[row] = !nullable;
        if (width) std::memset(data + row * width, 0, static_cast<size_t>(width));
        if (has_offsets()) offsets[row + 1] = offsets[row];
    }
};

/* Packs n bytes, each 0 or 1, into bits in place, 8 at a time. Returns the number of ones. */
static inline int64_t pack_bits(uint8_t* bytes, int64_t n) {
    int64_t ones = 0;
    std::memset(bytes + n, 0, 8);
    for (int64_t i = 0; i < n; i += 8) {
        const uint64_t word = load8(bytes + i);
        const uint8_t bits = static_cast<uint8_t>((word * 0x0102040810204080ull) >> 56); /* byte k becomes bit k */
        ones += __builtin_popcount(bits);
        bytes[i >> 3] = bits;
    }
    return ones;
}

/* Returns the buffer of `held` bytes and sets the caller's pointer to null. The buffer is shrunk if much of it is
   unused. */
template <class T>
static inline T* fitted(T*& buffer, int64_t used, int64_t held) {
    T* taken = buffer;
    buffer = nullptr;
    if (taken != nullptr && held - used > 4096 && held - used > held / 4) {
        void* smaller = std::realloc(taken, static_cast<size_t>(used + 64));
        if (smaller != nullptr) taken = static_cast<T*>(smaller);
    }
    return taken;
}

/* Exports the column's rows as an ArrowArray that owns the buffers, and empties the column. */
template <class Node>
static void finish(Node& node, ArrowArray* out) {
    const int64_t n = node.len;
    const bool nothing = node.layout == Layout::null_;
    if (node.cap == 0) node.grow(8);
    const int64_t cap = node.cap;
    make_array(out, n, nothing ? 0 : node.layout == Layout::bytes ? 3 : node.layout == Layout::struct_ ? 1 : 2, node.children.size());
    const int64_t ones = node.nullable ? pack_bits(node.valid, n) : n;
    out->null_count = nothing ? n : n - ones;
    node.cap = 0;
    if (nothing) {
        std::free(node.valid);
        node.valid = nullptr;
        node.len = 0;
        return;
    }
    if (out->null_count)
        out->buffers[0] = fitted(node.valid, n / 8 + 8, cap + 8);
    else
        std::free(node.valid);
    node.valid = nullptr;
    if (node.layout == Layout::bool_) {
        pack_bits(node.data, n);
        out->buffers[1] = fitted(node.data, n / 8 + 8, cap + 8);
    } else if (node.layout == Layout::fixed) {
        out->buffers[1] = fitted(node.data, n * node.width, cap * node.width);
    }
    if (node.has_offsets()) {
        node.per_row = n ? static_cast<double>(node.offsets[n]) / static_cast<double>(n) : node.per_row;
        out->buffers[1] = fitted(node.offsets, (n + 1) * 4, (cap + 1) * 4);
    }
    if (node.layout == Layout::bytes) {
        node.text.ensure(0); /* the buffer must never be null */
        const int64_t used = node.text.len, held = node.text.cap;
        uint8_t* text = node.text.take();
        out->buffers[2] = fitted(text, used, held);
    }
    node.len = 0;
    for (size_t i = 0; i < node.children.size(); i++) {
        assert(node.layout != Layout::struct_ || node.children[i]->len == n);
        finish(*node.children[i], out->children[i]);
    }
}

/* Makes a binary array of n values. `append(bytes, i)` appends the bytes of value i. If it throws, `out` is left
   released. */
template <class Append>
static void make_binary(int64_t n, ArrowArray* out, Append append) {
    out->release = nullptr;
    try {
        Bytes bytes;
        make_array(out, n, 3, 0);
        int32_t* offsets = static_cast<int32_t*>(std::malloc(static_cast<size_t>(n + 1) * 4));
        if (offsets == nullptr) throw std::bad_alloc();
        out->buffers[1] = offsets;
        offsets[0] = 0;
        bytes.ensure(n < 100 ? 1024 : n * 32);
        for (int64_t i = 0; i < n; i++) {
            append(bytes, i);
            offsets[i + 1] = static_cast<int32_t>(bytes.len);
        }
        const int64_t used = bytes.len, held = bytes.cap;
        uint8_t* taken = bytes.take();
        out->buffers[2] = fitted(taken, used, held);
    } catch (...) {
        if (out->release) out->release(out);
        throw;
    }
}

/* Exports a whole batch. If it throws, `out` is left released. */
template <class Node>
static void hand_over(Node& root, ArrowArray* out) {
    out->release = nullptr;
    try {
        finish(root, out);
    } catch (...) {
        if (out->release) out->release(out);
        throw;
    }
}

}  // namespace sabot
