/* The columns of Protobuf messages under construction.

   Fields come in any order, several times or not at all, so values are written by row number. A Scope is a set of columns
   with the same rows: the columns of a message and of the messages in it. The items of a repeated field are a scope of
   their own:

       message Order { string id = 1; Buyer buyer = 2; repeated Item items = 3; }

       scope of the batch:  id  buyer  buyer.name  items (offsets) ──▶ scope of the items:  item  item.sku  item.price

   The row being read has the number `len` of its scope. This row and all rows after it are blank: values are zero,
   optional fields null, texts and lists have no offsets. So a missing field needs no work except the offsets of texts and
   lists, which `close` writes.

   Nothing here needs the GIL. Functions throw only what ColumnBuilder throws. */
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "arrow/builder.h"
#include "binary/payloads.h"

namespace sabot::protobuf {

enum Wire : uint32_t { VARINT = 0, FIXED64 = 1, LENGTH = 2, GROUP = 3, END = 4, FIXED32 = 5 };

/* The reading of a value. */
enum class Op : uint8_t {
    varint32, varint64, zigzag32, zigzag64, bool_, fixed32, fixed64, /* numbers; a value takes as many bytes as its column is wide */
    enum_, string, bytes,
    timestamp, duration, /* messages of google.protobuf, as microseconds */
    wrapped,             /* a message of one optional field called value, like google.protobuf.StringValue */
    message,
    /* Only for fields: */
    item, packed,        /* one item of the column, which is a list; any number of items */
    /* fields without a column: a number; a length and as many bytes; 4 bytes; 8 bytes; anything else */
    skip_number, skip_bytes, skip_4, skip_8, unknown,
};

static inline Layout layout_of(Op op) {
    switch (op) {
        case Op::bool_: return Layout::bool_;
        case Op::enum_: case Op::string: case Op::bytes: return Layout::bytes;
        case Op::message: return Layout::struct_;
        default: return Layout::fixed;
    }
}

static inline int width_of(Op op) {
    switch (op) {
        case Op::bool_: return 1;
        case Op::varint32: case Op::zigzag32: case Op::fixed32: return 4;
        case Op::varint64: case Op::zigzag64: case Op::fixed64: case Op::timestamp: case Op::duration: return 8;
        default: return 0;
    }
}

constexpr int64_t SHORT = Payloads::PADDING; /* bytes of a short text */

struct Column;
struct Scope;

/* The meaning of a tag (field number and wire type) in a message. */
struct Field {
    Op op;
    Column* column;
};

/* The fields of a message by tag. Small tags, which are most, are looked up without a search. Unknown tags are
   skipped by their wire type. */
class Tags {
  public:
    static constexpr uint32_t SHORT = 128; /* tags below this value take one byte */

    Tags() {
        for (uint32_t tag = 0; tag < SHORT; tag++) low_.push_back(skipping(tag));
    }
    void add(uint32_t tag, Op op, Column* column) {
        if (tag >= 2048) {
            high_[tag] = {op, column};
            return;
        }
        for (uint32_t next = static_cast<uint32_t>(low_.size()); next <= tag; next++) low_.push_back(skipping(next));
        low_[tag] = {op, column};
    }
    inline Field find(uint32_t tag) const {
        if (SABOT_LIKELY(tag < low_.size())) return low_[tag];
        const auto found = high_.find(tag);
        return found == high_.end() ? skipping(tag) : found->second;
    }
    const Field* shorts() const { return low_.data(); } /* the fields of the tags below SHORT */

  private:
    std::vector<Field> low_; /* by tag */
    std::unordered_map<uint32_t, Field> high_;

    static Field skipping(uint32_t tag) {
        if (tag < 8) return {Op::unknown, nullptr}; /* field number 0 is invalid */
        switch (tag & 7) {
            case VARINT: return {Op::skip_number, nullptr};
            case FIXED64: return {Op::skip_8, nullptr};
            case LENGTH: return {Op::skip_bytes, nullptr};
            case FIXED32: return {Op::skip_4, nullptr};
            default: return {Op::unknown, nullptr};
        }
    }
};

/* The names of an enum's values. */
class Names {
  public:
    std::string first; /* the value of a missing field; empty for fields that are null if missing */
    bool closed = false; /* a number without a name is not a value of the field */

    void add(int32_t number, const std::string& name) {
        names_.emplace(number, name);
        if (number < 0 || number > 255) return;
        if (low_.size() <= static_cast<size_t>(number)) low_.resize(static_cast<size_t>(number) + 1, nullptr);
        low_[static_cast<size_t>(number)] = &names_.find(number)->second; /* elements of an unordered_map do not move */
    }
    inline const std::string* find(int32_t number) const {
        if (static_cast<uint32_t>(number) < low_.size()) return low_[static_cast<size_t>(number)];
        const auto found = names_.find(number);
        return found == names_.end() ? nullptr : &found->second;
    }

  private:
    std::unordered_map<int32_t, std::string> names_;
    std::vector<const std::string*> low_; /* by number */
};

/* One column. For a list, `children[0]` is the column of the items. */
struct Column : ColumnBuilder<Column> {
    Op op;
    bool contested = false;   /* a member of a oneof with other members */
    bool group = false;       /* a message between two tags, without a length */
    bool required = false;
    bool map = false;         /* a list of pairs; for equal keys the last pair counts */
    bool pair = false;        /* a message that is a pair of a map */
    Op inner = Op::varint32;  /* wrapped: how the value is read */
    uint32_t inner_tag = 0;
    Scope* scope = nullptr;   /* the scope that the column belongs to */
    std::unique_ptr<Scope> items;
    std::vector<Column*> rivals; /* the other members of its oneof */
    Tags tags;                /* message: its fields */
    Names names;              /* enum_: its names */
    int64_t seconds = 0;      /* timestamp, duration: the seconds in the row being read */
    int32_t nanos = 0;
    std::string path;         /* the name for messages: "order.items[].price" */

    Column(Layout layout_, bool nullable_, Op op_, int width_, const std::string& path_);
    ~Column();

    bool is_time() const { return op == Op::timestamp || op == Op::duration; }

    template <class T>
    inline void put(int64_t row, T value) {
        std::memcpy(data + row * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
    }
    inline void put_bytes(int64_t row, const void* from, int64_t n) {
        text.len = offsets[row]; /* of several values the last one counts */
        text.put(from, n);
    }
    /* Like put_bytes, if SHORT bytes can be read from `from`: a short text is copied as SHORT bytes, which is faster. */
    inline void put_short(int64_t row, const uint8_t* from, int64_t n) {
        if (SABOT_UNLIKELY(n > SHORT)) return put_bytes(row, from, n);
        text.len = offsets[row];
        text.ensure(SHORT);
        std::memcpy(text.data + text.len, from, SHORT);
        text.len += n;
    }
    /* Makes the rows `from` to `to` - 1 blank. They are not part of a closed row. */
    void blank_rows(int64_t from, int64_t to) {
        if (from >= to) return;
        std::memset(valid + from, !nullable && !required, static_cast<size_t>(to - from));
        if (width) std::memset(data + from * width, 0, static_cast<size_t>((to - from) * width));
    }
};

/* Columns with the same rows. */
struct Scope {
    int64_t len = 0;             /* the number of closed rows */
    int64_t cap = 0;
    std::vector<Column*> columns;
    std::vector<Column*> texts, lists, times;
    std::vector<Column*> firsts; /* enums whose missing value has a name */
    std::vector<std::pair<Column*, Column*>> required; /* required columns, each with its message */
    bool plain = true;           /* true if a row needs no work at its end: no text, list, time or required field */

    void add(Column* column, Column* message) {
        column->scope = this;
        columns.push_back(column);
        if (column->layout == Layout::bytes) texts.push_back(column);
        if (!column->names.first.empty()) firsts.push_back(column);
        if (column->layout == Layout::list) lists.push_back(column);
        if (column->layout == Layout::fixed && column->is_time()) times.push_back(column);
        if (column->required) required.emplace_back(column, message);
        plain = texts.empty() && lists.empty() && times.empty() && required.empty();
    }

    /* Empties the scope and the scopes of its lists. `ColumnBuilder::begin` has made room for `rows` rows at least. */
    void begin() {
        len = 0;
        cap = MAX_OFFSET;
        for (Column* column : columns) cap = std::min(cap, column->cap);
        for (Column* column : columns) {
            column->blank_rows(0, cap);
            column->seconds = column->nanos = 0;
        }
        for (Column* list : lists) list->items->begin();
    }
    inline void room() {
        if (SABOT_UNLIKELY(len == cap)) grow();
    }
    __attribute__((noinline)) void grow() {
        if (cap == MAX_OFFSET) throw std::overflow_error("a column of this batch has more than 2^31 rows: use smaller batches");
        const int64_t rows = std::clamp<int64_t>(cap * 2, 64, MAX_OFFSET);
        for (Column* column : columns) {
            if (column->cap < rows) column->grow(rows);
            column->blank_rows(cap, rows);
        }
        cap = rows;
    }
    /* Keeps the first `rows` rows. Also removes the values of the row being read. */
    void truncate(int64_t rows) {
        if (cap == 0) return;
        for (Column* column : columns) {
            column->blank_rows(rows, std::min(len + 1, cap));
            column->seconds = column->nanos = 0;
        }
        for (Column* column : texts) column->text.len = column->offsets[rows];
        for (Column* column : lists) column->items->truncate(column->offsets[rows]);
        len = rows;
    }
    /* Sets the number of rows of the columns, before the batch is exported. */
    void settle() {
        for (Column* column : columns) {
            if (column->cap == 0) column->grow(8);
            column->len = len;
        }
        for (Column* list : lists) list->items->settle();
    }
    /* Copies a closed row to an earlier position. Rows are moved in order, so texts and items only move down. */
    void move(int64_t from, int64_t to) {
        if (from == to) return;
        for (Column* column : columns) {
            const int64_t width = column->width;
            column->valid[to] = column->valid[from];
            if (width) std::memcpy(column->data + to * width, column->data + from * width, static_cast<size_t>(width));
            if (column->offsets == nullptr) continue;
            const int32_t begin = column->offsets[from], size = column->offsets[from + 1] - begin, place = column->offsets[to];
            if (column->layout == Layout::bytes)
                std::memmove(column->text.data + place, column->text.data + begin, static_cast<size_t>(size));
            else
                for (int32_t i = 0; i < size; i++) column->items->move(begin + i, place + i);
            column->offsets[to + 1] = place + size;
        }
    }
};

inline Column::Column(Layout layout_, bool nullable_, Op op_, int width_, const std::string& path_)
    : ColumnBuilder(layout_, nullable_, width_), op(op_), path(path_) {}
inline Column::~Column() = default; /* Scope is complete only here */

/* Makes the value blank again in the row being read. */
static void clear(Column& column, int64_t row) {
    column.blank_rows(row, row + 1);
    column.seconds = column.nanos = 0;
    switch (column.layout) {
        case Layout::bytes: column.text.len = column.offsets[row]; break;
        case Layout::list: column.items->truncate(column.offsets[row]); break;
        case Layout::struct_:
            for (auto& child : column.children) clear(*child, row);
            break;
        default: break;
    }
}

/* Notes that the field has a value in this row, and clears the other members of its oneof. */
static inline void choose(Column& column, int64_t row) {
    column.valid[row] = 1;
    if (SABOT_UNLIKELY(column.contested))
        for (Column* rival : column.rivals)
            if (rival->valid[row]) clear(*rival, row);
}

/* Compares two keys of a map. */
static inline int compare_keys(const Column& key, int64_t a, int64_t b) {
    if (key.layout != Layout::bytes)
        return std::memcmp(key.data + a * key.width, key.data + b * key.width, static_cast<size_t>(key.width));
    const int32_t* at = key.offsets;
    const int64_t first = at[a + 1] - at[a], second = at[b + 1] - at[b];
    const int order = std::memcmp(key.text.data + at[a], key.text.data + at[b], static_cast<size_t>(std::min(first, second)));
    return order ? order : first < second ? -1 : first > second;
}

/* Removes the pairs from `begin` on whose key comes again later. */
static void keep_last(Scope& pairs, const Column& key, int64_t begin) {
    const int64_t n = pairs.len - begin;
    std::vector<int64_t> again; /* the rows to remove */
    if (n <= 8) {
        for (int64_t i = begin; i < pairs.len; i++)
            for (int64_t j = i + 1; j < pairs.len; j++)
                if (compare_keys(key, i, j) == 0) {
                    again.push_back(i);
                    break;
                }
    } else {
        std::vector<int64_t> order(static_cast<size_t>(n));
        for (int64_t i = 0; i < n; i++) order[static_cast<size_t>(i)] = begin + i;
        std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
            const int c = compare_keys(key, a, b);
            return c ? c < 0 : a < b;
        });
        for (size_t i = 1; i < order.size(); i++)
            if (compare_keys(key, order[i - 1], order[i]) == 0) again.push_back(order[i - 1]);
        std::sort(again.begin(), again.end());
    }
    if (again.empty()) return;
    int64_t to = again[0];
    size_t next = 0;
    for (int64_t from = to; from < pairs.len; from++) {
        if (next < again.size() && again[next] == from)
            next++;
        else
            pairs.move(from, to++);
    }
    pairs.truncate(to);
}

}  // namespace sabot::protobuf
