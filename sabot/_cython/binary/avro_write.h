/* Writes columns in Avro's binary encoding: one record per row, as the values of one binary array.

   A schema, matched with the columns, is a tree of WriteSteps (codecs/avro/encoding.py makes it). It is bound to the
   arrays of each batch.

   Nothing here needs the GIL. Functions throw std::bad_alloc, and std::overflow_error for more than 2 GiB of payloads
   (`except +`). */
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "arrow/arrow_c.h"
#include "arrow/builder.h"
#include "arrow/column.h"
#include "arrow/utf8.h"
#include "binary/varint.h"

namespace sabot::avro {

enum class WriteOp : uint8_t {
    nothing,                /* no bytes: all rows of the column are null */
    boolean,
    whole,  /* integers and times: multiplied by `multiply`, divided by `divide` rounding down; must be from `least` to `most` */
    float32, float64,
    bytes, text,            /* text must be valid UTF-8 */
    fixed,                  /* `size` bytes */
    decimal,                /* `size` bytes, or for -1 a length and as many bytes */
    uuid,                   /* text, written as 16 bytes */
    enum_,                  /* text, written as the number of the symbol */
    record, array,          /* values of `steps` */
    constant,               /* no column: the bytes in `data` */
};

/* A value that the schema cannot represent. */
struct Unwritable {
    std::string path;
    std::string why;
};

/* The writing of one column. */
struct WriteStep {
    WriteOp op;
    uint8_t null_branch = NO_UNION; /* for a union of null and one type: the byte that stands for null */
    uint8_t value_branch = 0;
    int column;                     /* the index of the child in the parent's array, or -1 for none */
    int64_t size;
    int64_t multiply = 1, divide = 1;
    int64_t least = INT64_MIN, most = INT64_MAX;
    std::vector<WriteStep> steps;
    std::string data;               /* the bytes of a constant */
    std::vector<std::pair<std::string, int64_t>> symbols; /* sorted, with their numbers */
    std::string path;               /* the name for messages: "order.items[].price" */
    View view;                      /* the rows of the bound batch; the following fields too */
    const int32_t* bounds = nullptr; /* offsets of a list */

    static constexpr uint8_t NO_UNION = 0xFF;

    WriteStep(int op_, int column_, int64_t size_, const std::string& path_)
        : op(static_cast<WriteOp>(op_)), column(column_), size(size_), path(path_) {}

    void of_union(int null_at) {
        null_branch = null_at == 0 ? 0 : 2; /* zigzag encoding of 0 and 1 */
        value_branch = null_at == 0 ? 2 : 0;
    }
    /* Adds a step for the caller to fill in. The pointer is valid until the next step is added. */
    WriteStep* add_step(int op_, int column_, int64_t size_, const std::string& path_) {
        steps.emplace_back(op_, column_, size_, path_);
        return &steps.back();
    }
    void add_symbol(const std::string& name) { symbols.emplace_back(name, static_cast<int64_t>(symbols.size())); }
    void sort_symbols() { std::sort(symbols.begin(), symbols.end()); }

    /* Binds the step to an array. For the child of a struct, `parent_offset` and `length` are those of the struct. */
    void bind(const ArrowSchema* schema, const ArrowArray* array, int64_t parent_offset, int64_t length) {
        if (op == WriteOp::constant) return;
        view = op == WriteOp::decimal ? key_view_of(schema, array, parent_offset, length) : view_of(schema, array, parent_offset, length);
        bounds = nullptr;
        if (op == WriteOp::array && length > 0) bounds = static_cast<const int32_t*>(array->buffers[1]) + view.start;
        for (WriteStep& step : steps) {
            const int64_t i = step.column < 0 ? 0 : step.column;
            if (op == WriteOp::array)
                step.bind(schema->children[0], array->children[0], 0, array->children[0]->length);
            else if (step.op != WriteOp::constant)
                step.bind(schema->children[i], array->children[i], view.start, length);
        }
    }

    [[noreturn]] void refuse(const std::string& why) const { throw Unwritable{path, why}; }

    void write(Bytes& out, int64_t row) const {
        if (op == WriteOp::constant) return out.put(data.data(), static_cast<int64_t>(data.size()));
        if (null_branch != NO_UNION) {
            const bool there = view.valid(row);
            out.put_byte(there ? value_branch : null_branch);
            if (!there) return;
        } else if (op != WriteOp::nothing && !view.valid(row)) {
            refuse("is null, which the schema does not allow");
        }
        switch (op) {
            case WriteOp::boolean: return out.put_byte(view.truth(row));
            case WriteOp::whole: return write_varint(out, zigzag_encode(whole(row)));
            case WriteOp::float32: return put(out, static_cast<float>(real(row)));
            case WriteOp::float64: return put(out, real(row));
            case WriteOp::bytes: case WriteOp::text: {
                int64_t n;
                const uint8_t* p = view.bytes_at(row, &n);
                if (op == WriteOp::text && !is_utf8(p, n)) refuse("is not valid UTF-8");
                write_varint(out, zigzag_encode(n));
                return out.put(p, n);
            }
            case WriteOp::fixed: {
                int64_t n;
                const uint8_t* p = view.bytes_at(row, &n);
                if (n != size) refuse("has " + std::to_string(n) + " bytes instead of " + std::to_string(size));
                return out.put(p, n);
            }
            case WriteOp::decimal: return decimal(out, row);
            case WriteOp::uuid: return uuid(out, row);
            case WriteOp::enum_: return symbol(out, row);
            case WriteOp::record: return fields(out, row);
            case WriteOp::array: {
                const int32_t first = bounds[row], last = bounds[row + 1];
                if (last > first) {
                    write_varint(out, zigzag_encode(last - first));
                    for (int32_t i = first; i < last; i++) steps[0].write(out, i);
                }
                return out.put_byte(0);
            }
            default: return;
        }
    }

    void fields(Bytes& out, int64_t row) const {
        for (const WriteStep& step : steps) step.write(out, row);
    }

  private:
    template <class T>
    static void put(Bytes& out, T value) {
        out.put(&value, sizeof value);
    }

    double real(int64_t row) const {
        return is_float(view.type) ? view.real(row) : static_cast<double>(view.integer(row));
    }

    int64_t whole(int64_t row) const {
        int64_t value = view.integer(row);
        const bool beyond = view.type == Type::uint64 && value < 0;
        if (divide > 1) value = value / divide - (value % divide < 0);
        if (beyond || __builtin_mul_overflow(value, multiply, &value) || value < least || value > most)
            refuse("is out of range for the type of the schema");
        return value;
    }

    void decimal(Bytes& out, int64_t row) const {
        int64_t n;
        const uint8_t* p = view.bytes_at(row, &n);
        const uint8_t sign = p[n - 1] & 0x80 ? 0xFF : 0;
        while (n > 1 && p[n - 1] == sign && (p[n - 2] & 0x80) == (sign & 0x80)) n--; /* the fewest bytes that hold the number */
        if (size >= 0 && n > size) refuse("needs more than " + std::to_string(size) + " bytes");
        if (size < 0) write_varint(out, zigzag_encode(n));
        for (int64_t i = n; i < size; i++) out.put_byte(sign);
        out.ensure(n);
        for (int64_t i = n - 1; i >= 0; i--) out.data[out.len++] = p[i];
    }

    void uuid(Bytes& out, int64_t row) const {
        int64_t n;
        const uint8_t* p = view.bytes_at(row, &n);
        uint8_t made[16];
        bool good = n == 36;
        for (int i = 0, from = 0; good && i < 16; i++) {
            if (i == 4 || i == 6 || i == 8 || i == 10) good = p[from++] == '-';
            const int high = digit(p[from]), low = digit(p[from + 1]);
            good = good && high >= 0 && low >= 0;
            made[i] = static_cast<uint8_t>((high & 15) << 4 | (low & 15));
            from += 2;
        }
        if (!good) refuse("is not a UUID");
        out.put(made, 16);
    }
    static int digit(uint8_t c) {
        if (c >= '0' && c <= '9') return c - '0';
        c |= 0x20;
        return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    }

    void symbol(Bytes& out, int64_t row) const {
        int64_t n;
        const uint8_t* p = view.bytes_at(row, &n);
        const std::string_view name(reinterpret_cast<const char*>(p), static_cast<size_t>(n));
        const auto found = std::lower_bound(symbols.begin(), symbols.end(), name, [](const auto& pair, std::string_view text) { return pair.first < text; });
        if (found == symbols.end() || found->first != name) refuse("is not a symbol of the enum");
        write_varint(out, zigzag_encode(found->second));
    }
};

/* Writes the rows of a batch as a binary array, each after the bytes of `header`. Returns -1, or the number of a row
   that cannot be written: then `wrong` says why and `out` is not made. */
static int64_t write_rows(WriteStep& root, const ArrowSchema* schema, const ArrowArray* batch, const std::string& header, ArrowArray* out,
                          Unwritable& wrong) {
    int64_t row = 0;
    try {
        root.bind(schema, batch, 0, batch->length);
        make_binary(batch->length, out, [&](Bytes& bytes, int64_t number) {
            row = number;
            bytes.put(header.data(), static_cast<int64_t>(header.size()));
            root.fields(bytes, number);
        });
        return -1;
    } catch (const Unwritable& value) {
        wrong = value;
        return row;
    }
}

}  // namespace sabot::avro
