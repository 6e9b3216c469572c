/* Columns of Protobuf messages under construction.

Fields come in any order, more than once or not at all, so a row is written by its number. Columns whose rows are the same, those of a message
and of the messages in it, make a Scope; the items of a repeated field are a scope of their own:

    message Order { string id = 1; Buyer buyer = 2; repeated Item items = 3; }

    scope of the batch:  id  buyer  buyer.name  items (offsets) ──▶ scope of the items:  item  item.sku  item.price

The row number `len` of a scope, the one that is being read, and all rows behind it are blank: values zero, optional fields null, texts and
lists without offsets. So a field that does not come costs nothing, but for the offsets of texts and lists, which `close` writes.

All of it is `nogil`, and throws only what ColumnBuilder throws. */
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

/* How the bytes of a value are read. */
enum class Op : uint8_t {
    varint32, varint64, zigzag32, zigzag64, bool_, fixed32, fixed64, /* numbers: each becomes as many bytes as its column is wide */
    enum_, string, bytes,
    timestamp, duration, /* google.protobuf's, as microseconds */
    wrapped,             /* a message of one field, called value, which is optional: google.protobuf.StringValue and so on */
    message,
    /* Of fields alone: */
    item, packed,        /* one item of the list that is the column; any number of them */
    skip_number, skip_bytes, skip_4, skip_8, unknown, /* without a column: a number; a length and so many bytes; so many; anything else */
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

constexpr int64_t SHORT = Payloads::PADDING; /* bytes of short texts */

struct Column;
struct Scope;

/* What a tag (field number and wire type) means in a message. */
struct Field {
    Op op;
    Column* column;
};

/* The fields of a message by their tags. Most tags are small, and found without a search. Unknown ones are skipped, each in the way of its wire
type. */
class Tags {
  public:
    static constexpr uint32_t SHORT = 128; /* tags below take one byte */

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
    const Field* shorts() const { return low_.data(); } /* of the tags below SHORT */

  private:
    std::vector<Field> low_; /* by tag */
    std::unordered_map<uint32_t, Field> high_;

    static Field skipping(uint32_t tag) {
        if (tag < 8) return {Op::unknown, nullptr}; /* the field number is 0 */
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
    std::string first; /* what a field has that does not come; empty for fields that are null then */
    bool closed = false; /* a number without a name is no value of the field */

    void add(int32_t number, const std::string& name) {
        names_.emplace(number, name);
        if (number < 0 || number > 255) return;
        if (low_.size() <= static_cast<size_t>(number)) low_.resize(static_cast<size_t>(number) + 1, nullptr);
        low_[static_cast<size_t>(number)] = &names_.find(number)->second; /* which stays where it is */
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

/* One column; of a list, `children[0]` is the column of the items. */
struct Column : ColumnBuilder<Column> {
    Op op;
    bool contested = false;   /* is a member of a oneof with others */
    bool group = false;       /* a message between two tags, without a length */
    bool required = false;
    bool map = false;         /* a list of pairs, of which the last counts for each key */
    bool pair = false;        /* a message that is a pair of a map */
    Op inner = Op::varint32;  /* wrapped: of the value */
    uint32_t inner_tag = 0;
    Scope* scope = nullptr;   /* whose rows it has */
    std::unique_ptr<Scope> items;
    std::vector<Column*> rivals; /* the other members of its oneof */
    Tags tags;                /* message: its fields */
    Names names;              /* enum_ */
    int64_t seconds = 0;      /* timestamp, duration: of the row that is being read */
    int32_t nanos = 0;
    std::string path;         /* the name for users: "order.items[].price" */

    Column(Layout layout_, bool nullable_, Op op_, int width_, const std::string& path_);
    ~Column();

    bool is_time() const { return op == Op::timestamp || op == Op::duration; }

    template <class T>
    inline void put(int64_t row, T value) {
        std::memcpy(data + row * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
    }
    inline void put_bytes(int64_t row, const void* from, int64_t n) {
        text.len = offsets[row]; /* the last value counts */
        text.put(from, n);
    }
    /* The same for bytes behind whose first SHORT can be read: short ones are copied as so many, which is faster. */
    inline void put_short(int64_t row, const uint8_t* from, int64_t n) {
        if (SABOT_UNLIKELY(n > SHORT)) return put_bytes(row, from, n);
        text.len = offsets[row];
        text.ensure(SHORT);
        std::memcpy(text.data + text.len, from, SHORT);
        text.len += n;
    }
    /* Makes rows blank that are not part of a closed row. */
    void blank_rows(int64_t from, int64_t to) {
        if (from >= to) return;
        std::memset(valid + from, !nullable && !required, static_cast<size_t>(to - from));
        if (width) std::memset(data + from * width, 0, static_cast<size_t>((to - from) * width));
    }
};

/* Columns with the same rows. */
struct Scope {
    int64_t len = 0;             /* rows that are closed */
    int64_t cap = 0;
    std::vector<Column*> columns;
    std::vector<Column*> texts, lists, times;
    std::vector<Column*> firsts; /* enums that have the name of a value where none has come */
    std::vector<std::pair<Column*, Column*>> required; /* and the message that each is in */
    bool plain = true;           /* has none of these: there is nothing to do at the end of a row */

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

    /* Empties it, and those of its lists. The columns have made room by `ColumnBuilder::begin`, for `rows` at least. */
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
    /* Removes all rows but the first `rows`, and what the row that is being read has left. */
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
    /* Says the number of rows to the columns, before they are handed over. */
    void settle() {
        for (Column* column : columns) {
            if (column->cap == 0) column->grow(8);
            column->len = len;
        }
        for (Column* list : lists) list->items->settle();
    }
    /* Copies a closed row to an earlier place. Rows are moved in order, so texts and items only move down. */
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
inline Column::~Column() = default; /* here, where Scope is known */

/* Makes the value of the row that is being read blank again. */
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

/* Says that the field has a value in this row, which ends those of the other members of its oneof. */
static inline void choose(Column& column, int64_t row) {
    column.valid[row] = 1;
    if (SABOT_UNLIKELY(column.contested))
        for (Column* rival : column.rivals)
            if (rival->valid[row]) clear(*rival, row);
}

/* The order of two keys of a map. */
static inline int compare_keys(const Column& key, int64_t a, int64_t b) {
    if (key.layout != Layout::bytes)
        return std::memcmp(key.data + a * key.width, key.data + b * key.width, static_cast<size_t>(key.width));
    const int32_t* at = key.offsets;
    const int64_t first = at[a + 1] - at[a], second = at[b + 1] - at[b];
    const int order = std::memcmp(key.text.data + at[a], key.text.data + at[b], static_cast<size_t>(std::min(first, second)));
    return order ? order : first < second ? -1 : first > second;
}

/* Removes those pairs from `begin` on whose key comes again. */
static void keep_last(Scope& pairs, const Column& key, int64_t begin) {
    const int64_t n = pairs.len - begin;
    std::vector<int64_t> again; /* the rows that go */
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
