/* Writes rows of columns as Protobuf messages, each a value of one binary array.

   Fields are written in the order of their numbers; the numbers of a list are packed if the .proto file says so. A
   submessage is preceded by its length, which is known only at its end: one byte is kept free for the length, and the
   submessage is moved if the length takes more.

   Nothing here needs the GIL. Functions throw std::bad_alloc, std::overflow_error for more than 2 GiB, and
   `Unwritable` for a value that the message cannot represent (`except +`). */
#pragma once

#include <charconv>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "arrow/arrow_c.h"
#include "arrow/builder.h"
#include "binary/protobuf_read.h"

namespace sabot::protobuf {

struct Unwritable {
    std::string path, reason;
};

static inline int varint_size(uint64_t value) { return (63 - __builtin_clzll(value | 1)) / 7 + 1; }

/* A field to write. The array of its parent is borrowed. */
struct Out {
    Op op, inner;
    bool presence = false, required = false, repeated = false, packed = false, group = false;
    bool is_signed = false;      /* varint32: negative numbers are written with 64 bits */
    bool numbers = false;        /* enum_: the column has numbers, not names */
    uint32_t number = 0;
    int64_t per_second = 1;      /* timestamp, duration: units of the column per second */
    size_t child = 0;            /* the index of its column among the columns of the message */
    std::string path;
    std::map<std::string, int32_t, std::less<>> names; /* enum_: numbers by name */
    std::vector<std::unique_ptr<Out>> fields;          /* message: the fields that have a column, by number */
    std::vector<std::vector<Out*>> oneofs;             /* message: the members of each oneof with more than one column */

    Out(int op_, int inner_) : op(static_cast<Op>(op_)), inner(static_cast<Op>(inner_)) {}

    /* Adds a field of the message. Takes ownership. */
    Out* add(Out* field) {
        std::unique_ptr<Out> owned(field);
        fields.push_back(std::move(owned));
        return field;
    }
};

class Encoder {
  public:
    Out root{static_cast<int>(Op::message), static_cast<int>(Op::message)};
    std::string header; /* the first bytes of each payload */

    /* Writes the rows of a struct array without nulls (a record batch) as a binary array. Returns false if a value
       cannot be written; then `row`, `path` and `reason` say which and why. */
    bool rows(const ArrowArray* batch, ArrowArray* out, int64_t& row, std::string& path, std::string& reason) {
        int64_t at = 0;
        try {
            make_binary(batch->length, out, [&](Bytes& text, int64_t i) {
                at = i;
                text.put(header.data(), static_cast<int64_t>(header.size()));
                message(text, root, batch, i + batch->offset);
            });
            return true;
        } catch (const Unwritable& value) {
            row = at;
            path = value.path;
            reason = value.reason;
            return false;
        }
    }

  private:
    static bool valid(const ArrowArray* array, int64_t at) {
        const uint8_t* bits = array->n_buffers ? static_cast<const uint8_t*>(array->buffers[0]) : nullptr;
        return bits == nullptr || array->null_count == 0 || (bits[at >> 3] >> (at & 7) & 1);
    }
    template <class T>
    static T fixed(const ArrowArray* array, int64_t at) {
        T value;
        std::memcpy(&value, static_cast<const uint8_t*>(array->buffers[1]) + at * static_cast<int64_t>(sizeof(T)), sizeof(T));
        return value;
    }
    static std::string_view bytes(const ArrowArray* array, int64_t at) {
        const int32_t* offsets = static_cast<const int32_t*>(array->buffers[1]);
        const char* data = static_cast<const char*>(array->buffers[2]);
        if (data == nullptr) return {""}; /* all values are empty */
        return {data + offsets[at], static_cast<size_t>(offsets[at + 1] - offsets[at])};
    }

    static void tag(Bytes& out, const Out& field, uint32_t wire) { write_varint(out, field.number << 3 | wire); }

    /* Writes the bytes that `body` writes, preceded by their length. */
    template <class Body>
    static void with_length(Bytes& out, Body body) {
        out.put_byte(0);
        const int64_t begin = out.len;
        body();
        const int64_t size = out.len - begin;
        const int more = varint_size(static_cast<uint64_t>(size)) - 1;
        if (more) {
            out.ensure(more);
            std::memmove(out.data + begin + more, out.data + begin, static_cast<size_t>(size));
        }
        out.len = begin - 1;
        write_varint(out, static_cast<uint64_t>(size));
        out.len = begin + more + size;
    }

    /* Writes the fields of a message. `at`: its row, with the array's offset added. */
    void message(Bytes& out, const Out& of, const ArrowArray* array, int64_t at) const {
        for (const auto& members : of.oneofs) one_of(members, array, at);
        for (const auto& field : of.fields) {
            const ArrowArray* column = array->children[field->child];
            const int64_t row = at + column->offset;
            if (SABOT_UNLIKELY(!valid(column, row))) {
                if (field->required) throw Unwritable{field->path, "null, but the field is required"};
                if (!field->presence) throw Unwritable{field->path, "null, but the field cannot be absent"};
            } else if (field->repeated) {
                list(out, *field, column, row);
            } else {
                const bool always = field->presence || field->required;
                if (always || !is_default(*field, field->op, column, row)) value(out, *field, column, row);
            }
        }
    }

    static void one_of(const std::vector<Out*>& members, const ArrowArray* array, int64_t at) {
        const Out* found = nullptr;
        for (const Out* member : members) {
            const ArrowArray* column = array->children[member->child];
            if (!valid(column, at + column->offset)) continue;
            if (found) throw Unwritable{member->path, "it is set, and so is " + found->path + " of the same oneof"};
            found = member;
        }
    }

    /* Returns true if the value is the default that a field without presence has when it is left out. */
    bool is_default(const Out& field, Op op, const ArrowArray* array, int64_t at) const {
        switch (op) {
            case Op::bool_: return !(static_cast<const uint8_t*>(array->buffers[1])[at >> 3] >> (at & 7) & 1);
            case Op::varint32: case Op::zigzag32: case Op::fixed32: return fixed<uint32_t>(array, at) == 0;
            case Op::varint64: case Op::zigzag64: case Op::fixed64: return fixed<uint64_t>(array, at) == 0;
            case Op::string: case Op::bytes: return bytes(array, at).empty();
            case Op::enum_: return number_of(field, array, at) == 0;
            default: return false;
        }
    }

    /* Writes the items of a list, or the pairs of a map. */
    void list(Bytes& out, const Out& field, const ArrowArray* array, int64_t at) const {
        const int32_t* offsets = static_cast<const int32_t*>(array->buffers[1]);
        const ArrowArray* items = array->children[0];
        const int64_t begin = offsets[at] + items->offset, end = offsets[at + 1] + items->offset;
        if (begin == end) return;
        for (int64_t i = begin; i < end; i++)
            if (SABOT_UNLIKELY(!valid(items, i))) throw Unwritable{field.path, "has a null item"};
        if (!field.packed) {
            for (int64_t i = begin; i < end; i++) value(out, field, items, i);
            return;
        }
        tag(out, field, LENGTH);
        with_length(out, [&] {
            for (int64_t i = begin; i < end; i++) number(out, field, field.op, items, i);
        });
    }

    /* Writes the tag and a value that is not null. */
    void value(Bytes& out, const Out& field, const ArrowArray* array, int64_t at) const {
        tag(out, field, wire_of(field.op, field.group));
        switch (field.op) {
            case Op::string: case Op::bytes: text(out, array, at); break;
            case Op::message: case Op::timestamp: case Op::duration: case Op::wrapped:
                if (!field.group) return with_length(out, [&] { content(out, field, array, at); });
                content(out, field, array, at);
                tag(out, field, END);
                break;
            default: number(out, field, field.op, array, at);
        }
    }

    static void text(Bytes& out, const ArrowArray* array, int64_t at) {
        const std::string_view found = bytes(array, at);
        write_varint(out, found.size());
        out.put(found.data(), static_cast<int64_t>(found.size()));
    }

    /* Writes the bytes of a submessage. */
    void content(Bytes& out, const Out& field, const ArrowArray* array, int64_t at) const {
        if (field.op == Op::message) return message(out, field, array, at);
        if (field.op != Op::wrapped) return time(out, field, fixed<int64_t>(array, at));
        if (is_default(field, field.inner, array, at)) return;
        write_varint(out, 1 << 3 | wire_of(field.inner, false));
        if (field.inner == Op::string || field.inner == Op::bytes)
            text(out, array, at);
        else
            number(out, field, field.inner, array, at);
    }

    static void time(Bytes& out, const Out& field, int64_t units) {
        int64_t seconds = units / field.per_second, nanos = units % field.per_second * (1000000000 / field.per_second);
        if (field.op == Op::timestamp && nanos < 0) seconds--, nanos += 1000000000;
        if (field.op == Op::timestamp && (seconds < TIME_MIN || seconds > TIME_MAX))
            throw Unwritable{field.path, "the time is outside of the years 1 to 9999"};
        if (field.op == Op::duration && (seconds < -DURATION_MAX || seconds > DURATION_MAX))
            throw Unwritable{field.path, "the duration is longer than 10,000 years"};
        if (seconds) write_varint(out, 1 << 3 | VARINT), write_varint(out, static_cast<uint64_t>(seconds));
        if (nanos) write_varint(out, 2 << 3 | VARINT), write_varint(out, static_cast<uint64_t>(nanos));
    }

    /* Writes a number without its tag. */
    void number(Bytes& out, const Out& field, Op op, const ArrowArray* array, int64_t at) const {
        switch (op) {
            case Op::bool_: return out.put_byte(static_cast<const uint8_t*>(array->buffers[1])[at >> 3] >> (at & 7) & 1);
            case Op::varint32: return write_varint(out, field.is_signed ? signed_(fixed<int32_t>(array, at)) : fixed<uint32_t>(array, at));
            case Op::varint64: return write_varint(out, fixed<uint64_t>(array, at));
            case Op::zigzag32: return write_varint(out, zigzag_encode(fixed<int32_t>(array, at)));
            case Op::zigzag64: return write_varint(out, zigzag_encode(fixed<int64_t>(array, at)));
            case Op::fixed32: return out.put(static_cast<const uint8_t*>(array->buffers[1]) + at * 4, 4);
            case Op::fixed64: return out.put(static_cast<const uint8_t*>(array->buffers[1]) + at * 8, 8);
            default: return write_varint(out, signed_(number_of(field, array, at)));
        }
    }

    /* Negative numbers of 32 bits take ten bytes, as if they had 64 bits. */
    static uint64_t signed_(int32_t value) { return static_cast<uint64_t>(static_cast<int64_t>(value)); }

    /* Returns the number of an enum's value. A text that is not a name may be the number itself, because decoding
       gives numbers without a name as text. */
    int32_t number_of(const Out& field, const ArrowArray* array, int64_t at) const {
        if (field.numbers) return fixed<int32_t>(array, at);
        const std::string_view name = bytes(array, at);
        const auto found = field.names.find(name);
        if (SABOT_LIKELY(found != field.names.end())) return found->second;
        int32_t value = 0;
        const auto read = std::from_chars(name.data(), name.data() + name.size(), value);
        if (read.ec != std::errc() || read.ptr != name.data() + name.size())
            throw Unwritable{field.path, "the text is not a value of the enum"};
        return value;
    }
};

}  // namespace sabot::protobuf
