/* Reads Protobuf messages into columns. protobuf_columns.h has the columns, and the undoing of a row.

   Source: https://protobuf.dev/programming-guides/encoding/. As it demands, unknown fields are skipped, and a field
   with another wire type than its own counts as unknown. If a field comes twice, the last value counts, messages are
   merged, and items are appended. Numbers may be packed or not, whatever the .proto file says. Where the page says
   nothing, this reader follows the library of C++ and Python: tags and lengths take at most five bytes, and bits
   beyond a number's width are dropped.

   Functions return the address after what they have read, or nullptr: then `reason_` says why, and the row is bad.
   Nothing here needs the GIL. Functions throw only std::bad_alloc, or std::overflow_error for a column that is too
   large for Arrow. Damaged input throws nothing. */
#pragma once

#include <charconv>
#include <mutex>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "binary/payloads.h"
#include "binary/protobuf_columns.h"
#include "binary/varint.h"
#include "arrow/utf8.h"

namespace sabot::protobuf {

constexpr int MAX_DEPTH = 100; /* levels of skipped groups; wanted groups are bounded by their types */
constexpr int64_t TIME_MIN = -62135596800, TIME_MAX = 253402300799; /* seconds of google.protobuf.Timestamp: years 1 to 9999 */
constexpr int64_t DURATION_MAX = 315576000000;                      /* seconds of google.protobuf.Duration: 10,000 years */

/* The header of payloads from one writer's .proto file. `places`: where the message may stand in that file, as
   indexes. `refusal`: why no payload can be read, or "". `other`: why a payload with another message cannot be read. */
struct Writer {
    std::vector<std::vector<int64_t>> places;
    std::string refusal, other;
};

/* The compiled description of a field; see `WireField` of protobuf.pyi. */
struct Spec {
    uint32_t number = 0;
    int op = 0, inner = 0; /* values of Op; `inner`: the type of a wrapped value */
    bool presence = false, required = false, repeated = false, map = false, group = false, closed = false;
    std::string path, first;
};

static inline uint32_t wire_of(Op op, bool group) {
    switch (op) {
        case Op::fixed32: return FIXED32;
        case Op::fixed64: return FIXED64;
        case Op::string: case Op::bytes: return LENGTH;
        case Op::timestamp: case Op::duration: case Op::wrapped: case Op::message: return group ? GROUP : LENGTH;
        default: return VARINT;
    }
}

class Decoder {
  public:
    Column root{Layout::struct_, false, Op::message, 0, ""};
    bool framed = false; /* true if payloads begin with the header of Confluent's registry */

    Decoder() { rows_.add(&root, &root); }

    /* Adds a field to a message. Returns the column of its values (for a list, of its items), which lives as long as
       the decoder. */
    Column* add(Column* message, const Spec& spec) {
        const Op op = static_cast<Op>(spec.op), inner = static_cast<Op>(spec.inner), stored = op == Op::wrapped ? inner : op;
        const uint32_t wire = wire_of(op, spec.group), tag = spec.number << 3;
        Scope* scope = message->scope;
        Column* list = nullptr;
        if (spec.repeated) {
            message->children.push_back(std::make_unique<Column>(Layout::list, false, Op::item, 0, spec.path));
            list = message->children.back().get();
            list->map = spec.map;
            scope->add(list, message);
            list->items = std::make_unique<Scope>();
            scope = list->items.get();
        }
        auto& owner = list ? list->children : message->children;
        owner.push_back(std::make_unique<Column>(layout_of(stored), spec.presence && !spec.required && !spec.repeated, op,
                                                 width_of(stored), spec.repeated ? spec.path + "[]" : spec.path));
        Column* column = owner.back().get();
        column->group = spec.group;
        column->required = spec.required;
        column->pair = spec.map;
        column->inner = inner;
        column->inner_tag = 1 << 3 | wire_of(inner, false);
        column->names.first = spec.first;
        column->names.closed = spec.closed;
        scope->add(column, message);
        message->tags.add(tag | wire, list ? Op::item : op, list ? list : column);
        if (list && wire != LENGTH && wire != GROUP) message->tags.add(tag | LENGTH, Op::packed, list);
        return column;
    }

    /* Makes these columns the members of a oneof: if several come, the last one counts. */
    void oneof(const std::vector<Column*>& members) {
        for (Column* member : members)
            for (Column* other : members)
                if (other != member) {
                    member->rivals.push_back(other);
                    member->contested = true;
                }
    }

    /* Decodes n values of a binary array. `offsets` has n + 1 entries; `validity` is null, or bits from `bit` on. Row
       i was written by writers[which[i]], or by writers[0] if `which` is null. Without writers, the message indexes
       in the header are not checked. OUT `out`: the good rows as a struct array; `bad`: the bad rows. May be called
       from any thread without the GIL. */
    void rows(const int32_t* offsets, const uint8_t* data, const uint8_t* validity, int64_t bit, int64_t n, const std::vector<Writer>& writers,
              const int32_t* which, ArrowArray* out, std::vector<BadRow>& bad) {
        std::lock_guard<std::mutex> lock(in_use_);
        root.begin(n);
        rows_.begin();
        Payloads payloads(offsets, data, validity, bit, n);
        for (int64_t i = 0; i < n; i++) {
            if (payloads.is_null(i)) {
                bad.push_back({i, "the payload is null"});
                continue;
            }
            writer_ = writers.empty() ? nullptr : &writers[static_cast<size_t>(which ? which[i] : 0)];
            start_ = payloads.at(i);
            if (SABOT_LIKELY(row(start_, start_ + payloads.size(i)))) continue;
            rows_.truncate(rows_.len);
            bad.push_back({i, reason_});
        }
        rows_.settle();
        hand_over(root, out);
    }

  private:
    Scope rows_;
    const uint8_t* start_ = nullptr; /* the start of the payload */
    const Writer* writer_ = nullptr; /* the writer of the payload, or null if message indexes are not checked */
    std::vector<int64_t> place_;
    std::string reason_;
    int depth_ = 0;
    bool dropped_ = false; /* true if the value just read is a number that a closed enum does not have */
    std::mutex in_use_;    /* serialises calls: a decoder has one set of columns */

    bool row(const uint8_t* p, const uint8_t* end) {
        depth_ = 0;
        dropped_ = false;
        if (framed) p = header(p, end);
        return p != nullptr && fields(root, p, end, rows_.len) != nullptr && close(rows_, end);
    }

    __attribute__((noinline, cold)) const uint8_t* fail(const uint8_t* at, const std::string& reason) {
        reason_ = reason + " at byte " + std::to_string(at - start_);
        return nullptr;
    }
    __attribute__((noinline, cold)) const uint8_t* damaged(const uint8_t* at, const char* reason) {
        return fail(at, std::string("invalid Protobuf: ") + reason);
    }
    __attribute__((noinline, cold)) const uint8_t* wrong(const uint8_t* at, const Column& column, const char* reason) {
        return fail(at, "field " + column.path + ": " + reason);
    }
    const uint8_t* cut(const uint8_t* at) { return damaged(at, "the message ends within a field"); }

    /* Reads the header of Confluent's registry: a byte 0, the schema's id in 4 bytes, and the position of the message
       in its file as a count of indexes and the indexes, all zigzag. A single 0 stands for the first message. */
    const uint8_t* header(const uint8_t* p, const uint8_t* end) {
        const uint8_t* const at = p;
        if (p == end || *p != 0) return fail(at, "the payload does not begin with the byte 0 of a schema registry's header");
        if (end - p < 6) return fail(at, "the payload ends within the header of a schema registry");
        uint64_t raw = 0;
        p = read_number(p + 5, end, raw);
        if (p == nullptr) return nullptr;
        int64_t left = zigzag_decode(raw);
        if (left < 0 || left > end - p) return fail(at + 5, "the header of a schema registry has a wrong number of message indexes");
        if (writer_ != nullptr && !writer_->refusal.empty()) return refuse(writer_->refusal);
        place_.assign(left == 0, 0);
        for (; left > 0; left--) {
            p = read_number(p, end, raw);
            if (p == nullptr) return nullptr;
            place_.push_back(zigzag_decode(raw));
        }
        if (writer_ == nullptr || std::find(writer_->places.begin(), writer_->places.end(), place_) != writer_->places.end()) return p;
        return refuse(writer_->other);
    }
    __attribute__((noinline, cold)) const uint8_t* refuse(const std::string& reason) {
        reason_ = reason;
        return nullptr;
    }

    /* ---- fields ---------------------------------------------------------------------------------------------- */

    inline const uint8_t* read_tag(const uint8_t* p, const uint8_t* end, uint32_t& tag) {
        if (SABOT_LIKELY(*p < 0x80)) {
            tag = *p;
            p++;
        } else {
            uint64_t value = 0;
            const uint8_t* const at = p;
            p = read_number(p, end, value);
            if (SABOT_UNLIKELY(p == nullptr)) return nullptr;
            if (SABOT_UNLIKELY(p - at > 5 || value > UINT32_MAX)) return damaged(at, "a tag has more than 32 bits");
            tag = static_cast<uint32_t>(value);
        }
        return p;
    }

    inline const uint8_t* read_length(const uint8_t* p, const uint8_t* end, int64_t& length) {
        if (SABOT_LIKELY(p < end && *p < end - p && *p < 0x80)) {
            length = *p;
            return p + 1;
        }
        uint64_t value = 0;
        const uint8_t* const at = p;
        p = read_number(p, end, value);
        if (SABOT_UNLIKELY(p == nullptr)) return nullptr;
        if (SABOT_UNLIKELY(p - at > 5 || value > static_cast<uint64_t>(end - p))) return damaged(at, "a length is beyond the end of its message");
        length = static_cast<int64_t>(value);
        return p;
    }

    /* Reads a number. After `end` SHORT more bytes can be read, more than a number takes. */
    inline const uint8_t* read_number(const uint8_t* p, const uint8_t* end, uint64_t& value) {
        const uint8_t* const after = read_varint(p, value);
        return SABOT_LIKELY(after != nullptr && after <= end) ? after : odd_number(p, end, value);
    }

    /* Handles a number that does not end before `end`, or has more than 64 bits, of which the low ones count. */
    __attribute__((noinline, cold)) const uint8_t* odd_number(const uint8_t* p, const uint8_t* end, uint64_t& value) {
        if (end - p < VARINT_MAX) return cut(p);
        if (p[VARINT_MAX - 1] >= 0x80) return damaged(p, "a number takes more than 10 bytes");
        value = static_cast<uint64_t>(p[VARINT_MAX - 1]) << 63;
        for (int i = 0; i < VARINT_MAX - 1; i++) value |= static_cast<uint64_t>(p[i] & 0x7F) << (7 * i);
        return p + VARINT_MAX;
    }

    /* Finds the bytes of a message whose tag has been read: from p to `stop`. Returns the address after the message. */
    inline const uint8_t* body(bool group, uint32_t tag, const uint8_t*& p, const uint8_t* end, const uint8_t*& stop) {
        if (SABOT_UNLIKELY(group)) return skip_group(p, end, tag >> 3, &stop);
        int64_t length = 0;
        p = read_length(p, end, length);
        if (SABOT_UNLIKELY(p == nullptr)) return nullptr;
        stop = p + length;
        return stop;
    }

    /* Skips a value of any type. */
    __attribute__((noinline)) const uint8_t* skip(uint32_t tag, const uint8_t* p, const uint8_t* end) {
        uint64_t value = 0;
        int64_t length = 0;
        if (tag >> 3 == 0) return damaged(p, "a field has the number 0");
        switch (tag & 7) {
            case VARINT: return read_number(p, end, value);
            case FIXED64: return end - p < 8 ? cut(p) : p + 8;
            case FIXED32: return end - p < 4 ? cut(p) : p + 4;
            case LENGTH: p = read_length(p, end, length); return p ? p + length : nullptr;
            case GROUP: return skip_group(p, end, tag >> 3, nullptr);
            case END: return damaged(p, "a group ends without a beginning");
            default: return damaged(p, "a field has a wire type that does not exist");
        }
    }

    /* Skips a group and its end tag. OUT stop: the address of its end tag. */
    const uint8_t* skip_group(const uint8_t* p, const uint8_t* end, uint32_t number, const uint8_t** stop) {
        if (++depth_ > MAX_DEPTH) return damaged(p, "groups are nested deeper than 100");
        const uint8_t* const at = p;
        while (p < end) {
            uint32_t tag = 0;
            if (stop) *stop = p;
            p = read_tag(p, end, tag);
            if (p == nullptr) return nullptr;
            if (tag == (number << 3 | END)) {
                depth_--;
                return p;
            }
            p = skip(tag, p, end);
            if (p == nullptr) return nullptr;
        }
        return damaged(at, "a group does not end");
    }

    /* Reads the fields of a message, up to `end`, into a row. */
    const uint8_t* fields(Column& message, const uint8_t* p, const uint8_t* end, int64_t row) {
        const Field* const shorts = message.tags.shorts();
        while (p < end) {
            uint32_t tag = *p;
            Field field;
            if (SABOT_LIKELY(tag < Tags::SHORT)) {
                field = shorts[tag];
                p++;
            } else {
                p = read_tag(p, end, tag);
                if (SABOT_UNLIKELY(p == nullptr)) return nullptr;
                field = message.tags.find(tag);
            }
            switch (field.op) {
                case Op::varint64: p = scalar<Op::varint64>(*field.column, p, end, row); break;
                case Op::varint32: p = scalar<Op::varint32>(*field.column, p, end, row); break;
                case Op::bool_: p = scalar<Op::bool_>(*field.column, p, end, row); break;
                case Op::fixed64: p = scalar<Op::fixed64>(*field.column, p, end, row); break;
                case Op::string: p = scalar<Op::string>(*field.column, p, end, row); break;
                case Op::skip_number: {
                    uint64_t number = 0;
                    p = read_number(p, end, number);
                    break;
                }
                case Op::skip_bytes: {
                    int64_t length = 0;
                    p = read_length(p, end, length);
                    if (SABOT_LIKELY(p != nullptr)) p += length;
                    break;
                }
                case Op::skip_8: p = end - p < 8 ? cut(p) : p + 8; break;
                case Op::skip_4: p = end - p < 4 ? cut(p) : p + 4; break;
                case Op::item: p = item(*field.column, tag, p, end); break;
                case Op::packed: p = packed(*field.column, p, end); break;
                case Op::unknown: p = skip(tag, p, end); break;
                default:
                    p = value(field.op, *field.column, tag, p, end, row);
                    if (!message.pair) dropped_ = false; /* a pair with such a number is dropped as a whole: see `item` */
            }
            if (SABOT_UNLIKELY(p == nullptr)) return nullptr;
        }
        return p;
    }

    /* Reads a value other than a message into a row of its column. */
    template <Op op>
    inline const uint8_t* scalar(Column& column, const uint8_t* p, const uint8_t* end, int64_t row) {
        if constexpr (op == Op::fixed32 || op == Op::fixed64) {
            constexpr int64_t width = op == Op::fixed32 ? 4 : 8;
            if (SABOT_UNLIKELY(end - p < width)) return cut(p);
            choose(column, row);
            std::memcpy(column.data + row * width, p, width);
            return p + width;
        } else if constexpr (op == Op::string || op == Op::bytes) {
            int64_t length = 0;
            const uint8_t* const at = p;
            p = read_length(p, end, length);
            if (SABOT_UNLIKELY(p == nullptr)) return nullptr;
            if (op == Op::string && SABOT_UNLIKELY(!is_short_ascii(p, length) && !is_utf8(p, length))) return wrong(at, column, "invalid UTF-8");
            choose(column, row);
            column.put_short(row, p, length);
            return p + length;
        } else {
            uint64_t number = 0;
            p = read_number(p, end, number);
            if (SABOT_UNLIKELY(p == nullptr)) return nullptr;
            if constexpr (op == Op::enum_) return named(column, static_cast<int32_t>(number), row), p;
            choose(column, row);
            const uint32_t low = static_cast<uint32_t>(number);
            if constexpr (op == Op::varint32) column.put(row, low);
            if constexpr (op == Op::varint64) column.put(row, number);
            if constexpr (op == Op::zigzag32) column.put(row, low >> 1 ^ (0 - (low & 1)));
            if constexpr (op == Op::zigzag64) column.put(row, zigzag_decode(number));
            if constexpr (op == Op::bool_) column.data[row] = number != 0;
            return p;
        }
    }

    /* Returns true if n bytes are ASCII. n is small, and SHORT bytes can be read from p. */
    static inline bool is_short_ascii(const uint8_t* p, int64_t n) {
#if defined(__SSE2__)
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return n <= SHORT && (static_cast<uint32_t>(_mm_movemask_epi8(bytes)) & ((1u << n) - 1)) == 0;
#else
        return false;
#endif
    }

    /* Reads the value of any field into a row of its column. */
    __attribute__((noinline)) const uint8_t* value(Op op, Column& column, uint32_t tag, const uint8_t* p, const uint8_t* end,
                                                   int64_t row) {
        switch (op) {
            case Op::varint32: return scalar<Op::varint32>(column, p, end, row);
            case Op::varint64: return scalar<Op::varint64>(column, p, end, row);
            case Op::zigzag32: return scalar<Op::zigzag32>(column, p, end, row);
            case Op::zigzag64: return scalar<Op::zigzag64>(column, p, end, row);
            case Op::bool_: return scalar<Op::bool_>(column, p, end, row);
            case Op::fixed32: return scalar<Op::fixed32>(column, p, end, row);
            case Op::fixed64: return scalar<Op::fixed64>(column, p, end, row);
            case Op::enum_: return scalar<Op::enum_>(column, p, end, row);
            case Op::string: return scalar<Op::string>(column, p, end, row);
            case Op::bytes: return scalar<Op::bytes>(column, p, end, row);
            case Op::timestamp: case Op::duration: return time(column, tag, p, end, row);
            case Op::wrapped: return wrapped(column, tag, p, end, row);
            default: {
                const uint8_t* stop = nullptr;
                const uint8_t* const after = body(column.group, tag, p, end, stop);
                if (SABOT_UNLIKELY(after == nullptr)) return nullptr;
                choose(column, row);
                return fields(column, p, stop, row) ? after : nullptr;
            }
        }
    }

    /* Stores the name of an enum's value. A number without a name is stored as text, unless the enum is closed. */
    void named(Column& column, int32_t number, int64_t row) {
        const std::string* name = column.names.find(number);
        if (SABOT_LIKELY(name != nullptr)) {
            choose(column, row);
            column.put_bytes(row, name->data(), static_cast<int64_t>(name->size()));
        } else if (column.names.closed) {
            dropped_ = true;
        } else {
            char text[12];
            choose(column, row);
            column.put_bytes(row, text, std::to_chars(text, text + sizeof text, number).ptr - text);
        }
    }

    /* Reads a Timestamp or a Duration: field 1 is seconds, field 2 nanoseconds. `close` computes the value. */
    const uint8_t* time(Column& column, uint32_t tag, const uint8_t* p, const uint8_t* end, int64_t row) {
        const uint8_t* stop = nullptr;
        const uint8_t* const after = body(column.group, tag, p, end, stop);
        if (after == nullptr) return nullptr;
        choose(column, row);
        while (p < stop) {
            const uint8_t* const at = p;
            uint64_t number = 0;
            if (*p != (1 << 3 | VARINT) && *p != (2 << 3 | VARINT)) {
                p = read_tag(p, stop, tag);
                if (p != nullptr) p = skip(tag, p, stop);
                if (p == nullptr) return nullptr;
                continue;
            }
            p = read_number(p + 1, stop, number);
            if (p == nullptr) return nullptr;
            if (*at == (1 << 3 | VARINT))
                column.seconds = static_cast<int64_t>(number);
            else
                column.nanos = static_cast<int32_t>(number);
        }
        return after;
    }

    /* Reads a message of one field with the number 1: its value, or the default if the message is empty. */
    const uint8_t* wrapped(Column& column, uint32_t tag, const uint8_t* p, const uint8_t* end, int64_t row) {
        const uint8_t* stop = nullptr;
        const uint8_t* const after = body(column.group, tag, p, end, stop);
        if (after == nullptr) return nullptr;
        choose(column, row);
        while (p < stop) {
            p = read_tag(p, stop, tag);
            if (p == nullptr) return nullptr;
            p = tag == column.inner_tag ? value(column.inner, column, tag, p, stop, row) : skip(tag, p, stop);
            if (p == nullptr) return nullptr;
        }
        return after;
    }

    /* ---- lists ----------------------------------------------------------------------------------------------- */

    /* Reads one item of a list. */
    const uint8_t* item(Column& list, uint32_t tag, const uint8_t* p, const uint8_t* end) {
        Scope& items = *list.items;
        Column& column = *list.children[0];
        items.room();
        p = value(column.op, column, tag, p, end, items.len);
        if (p == nullptr) return nullptr;
        if (SABOT_UNLIKELY(dropped_)) {
            dropped_ = false;
            items.truncate(items.len);
            return p;
        }
        return close(items, p) ? p : nullptr;
    }

    /* Reads the packed items of a list of numbers, which have no tags between them. */
    const uint8_t* packed(Column& list, const uint8_t* p, const uint8_t* end) {
        Scope& items = *list.items;
        Column& column = *list.children[0];
        int64_t length = 0;
        const uint8_t* const at = p;
        p = read_length(p, end, length);
        if (p == nullptr) return nullptr;
        const uint8_t* const stop = p + length;
        if (column.op == Op::fixed32 || column.op == Op::fixed64) {
            if (length % column.width) return wrong(at, column, "the length of packed values is not a multiple of the length of one value");
            while (p < stop) {
                items.room();
                const int64_t rows = std::min((stop - p) / column.width, items.cap - items.len), size = rows * column.width;
                std::memcpy(column.data + items.len * column.width, p, static_cast<size_t>(size));
                items.len += rows;
                p += size;
            }
            return p;
        }
        while (p < stop) {
            items.room();
            p = value(column.op, column, 0, p, stop, items.len);
            if (SABOT_UNLIKELY(p == nullptr)) return nullptr;
            if (SABOT_UNLIKELY(dropped_))
                dropped_ = false;
            else if (!close(items, p))
                return nullptr;
        }
        return p;
    }

    /* ---- the end of a row ------------------------------------------------------------------------------------ */

    /* Ends the row being read. Returns false if a required field is missing or a time is out of range. */
    inline bool close(Scope& scope, const uint8_t* at) {
        if (scope.plain) return scope.len++, true;
        const int64_t row = scope.len;
        for (Column* column : scope.firsts)
            if (column->text.len == column->offsets[row])
                column->text.put(column->names.first.data(), static_cast<int64_t>(column->names.first.size()));
        for (Column* column : scope.texts) column->offsets[row + 1] = static_cast<int32_t>(column->text.len);
        for (Column* column : scope.lists) {
            if (column->map && column->items->len - column->offsets[row] > 1)
                keep_last(*column->items, *column->children[0]->children[0], column->offsets[row]);
            column->offsets[row + 1] = static_cast<int32_t>(column->items->len);
        }
        for (Column* column : scope.times)
            if (column->valid[row] && !close_time(*column, row, at)) return false;
        for (const auto& [column, message] : scope.required)
            if (!column->valid[row] && message->valid[row]) return wrong(at, *column, "is required, and missing");
        scope.len++;
        return true;
    }

    bool close_time(Column& column, int64_t row, const uint8_t* at) {
        const int64_t seconds = column.seconds, nanos = column.nanos;
        column.seconds = column.nanos = 0;
        if (column.op == Op::timestamp) {
            if (seconds < TIME_MIN || seconds > TIME_MAX) return wrong(at, column, "the time is outside of the years 1 to 9999");
            if (nanos < 0 || nanos > 999999999) return wrong(at, column, "its nanoseconds are outside of 0 to 999,999,999");
        } else {
            if (seconds < -DURATION_MAX || seconds > DURATION_MAX) return wrong(at, column, "the duration is longer than 10,000 years");
            if (nanos < -999999999 || nanos > 999999999) return wrong(at, column, "its nanoseconds are outside of -999,999,999 to 999,999,999");
            if ((seconds < 0 && nanos > 0) || (seconds > 0 && nanos < 0)) return wrong(at, column, "its seconds and nanoseconds differ in sign");
        }
        column.put(row, seconds * 1000000 + nanos / 1000);
        return true;
    }
};

}  // namespace sabot::protobuf
