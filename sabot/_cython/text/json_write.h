/* Writes columns as JSON objects, one per row, as the values of one binary array.

   Nothing here needs the GIL. Functions throw std::bad_alloc, std::overflow_error for more than 2 GiB of text, and
   `Unwritable` with the path of a value that JSON cannot represent (`except +`). */
#pragma once

#include <charconv>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include "arrow/arrow_c.h"
#include "arrow/builder.h"
#include "arrow/utf8.h"
#include "text/json_parse.h"
#include "text/json_text.h"
#include "text/times_text.h"

namespace sabot {

/* A value that JSON cannot represent; becomes TypeError. */
struct Unwritable {
    std::string path;
};

static inline void write_text(Bytes& out, const uint8_t* p, int64_t n) {
    static const char hex[] = "0123456789abcdef";
    const uint8_t* const end = p + n;
    out.put_byte('"');
    while (p < end) {
        const uint8_t* plain = p;
        while (end - p >= 16) { /* plain16 also stops at non-ASCII bytes, which are written here */
            const int k = plain16(p);
            p += k;
            if (k == 16) continue;
            if (*p < 0x80) break;
            p++;
        }
        while (p < end && *p >= 0x20 && *p != '"' && *p != '\\') p++;
        out.put(plain, p - plain);
        if (p == end) break;
        const uint8_t c = *p++;
        uint8_t escaped[6] = {'\\', 'u', '0', '0', static_cast<uint8_t>(hex[c >> 4]), static_cast<uint8_t>(hex[c & 15])};
        switch (c) {
            case '\b': escaped[1] = 'b'; break;
            case '\f': escaped[1] = 'f'; break;
            case '\n': escaped[1] = 'n'; break;
            case '\r': escaped[1] = 'r'; break;
            case '\t': escaped[1] = 't'; break;
            case '"': case '\\': escaped[1] = c; break;
            default: break;
        }
        out.put(escaped, escaped[1] == 'u' ? 6 : 2);
    }
    out.put_byte('"');
}

template <class T>
static inline void write_whole(Bytes& out, T value) {
    out.ensure(24);
    char* at = reinterpret_cast<char*>(out.data + out.len);
    out.len += std::to_chars(at, at + 24, value).ptr - at;
}

/* Writes the fewest digits that round-trip for type T, always with a point or an exponent. */
template <class T>
static inline void write_float(Bytes& out, T value) {
    if (!std::isfinite(value)) {
        out.put("null", 4);
        return;
    }
    out.ensure(48);
    char* const at = reinterpret_cast<char*>(out.data + out.len);
    char* stop;
    const T size = std::fabs(value);
    const bool plain = size == 0 || (size >= T(1e-5) && size < T(1e16));
#if defined(__cpp_lib_to_chars) || defined(_LIBCPP_VERSION)
    stop = std::to_chars(at, at + 48, value, plain ? std::chars_format::fixed : std::chars_format::scientific).ptr;
#else
#error "Sabot needs std::to_chars for double: gcc 11, clang with libc++ 14, or newer"
#endif
    if (plain) {
        bool point = false;
        for (const char* c = at; c < stop; c++) point = point || *c == '.';
        if (!point) {
            *stop++ = '.';
            *stop++ = '0';
        }
    }
    out.len += stop - at;
}

/* Writes all digits: 1.50 at scale 2. */
__attribute__((noinline)) static void write_decimal(Bytes& out, Whole value, int scale) {
    char digits[100];
    char* p = digits + sizeof digits; /* the digits are made from the last one on */
    const bool negative = value.words[3] >> 63;
    if (negative) value.negate();
    int made = 0;
    while (!value.is_zero() || made <= scale) { /* at least one before the point */
        uint64_t part = value.divide(TENS[9]);
        const bool last = value.is_zero();
        for (int i = 0; i < 9 && (part != 0 || !last || made <= scale); i++, part /= 10) {
            if (made == scale && scale > 0) *--p = '.';
            *--p = static_cast<char>('0' + part % 10);
            made++;
        }
    }
    if (made == 0) *--p = '0', made = 1, scale = 0;
    if (negative) *--p = '-';
    out.put(p, digits + sizeof digits - p);
    for (; scale < 0; scale++) out.put_byte('0');
}

/* Writes `value` with at least `width` digits. */
static inline void write_digits(Bytes& out, int64_t value, int width) {
    char digits[20];
    char* p = digits + sizeof digits;
    for (int i = 0; i < width || value != 0; i++, value /= 10) *--p = static_cast<char>('0' + value % 10);
    out.put(p, digits + sizeof digits - p);
}

/* Writes 2024-05-17; a year beyond 9999 has a plus, and one before 0 a minus. */
static inline void write_date(Bytes& out, int64_t day) {
    const Date date = date_of(day);
    if (date.year < 0) out.put_byte('-');
    if (date.year > 9999) out.put_byte('+');
    write_digits(out, date.year < 0 ? -date.year : date.year, 4);
    out.put_byte('-');
    write_digits(out, date.month, 2);
    out.put_byte('-');
    write_digits(out, date.day, 2);
}

/* Writes a second of the day and its fraction, with as many digits as it needs: 12:30:00.25 */
static inline void write_clock(Bytes& out, int64_t of_day, int64_t fraction, int64_t per_second) {
    write_digits(out, of_day / 3600, 2);
    out.put_byte(':');
    write_digits(out, of_day / 60 % 60, 2);
    out.put_byte(':');
    write_digits(out, of_day % 60, 2);
    if (fraction == 0) return;
    int digits = per_second == 1000 ? 3 : per_second == 1000000 ? 6 : 9;
    for (; fraction % 10 == 0; digits--) fraction /= 10;
    out.put_byte('.');
    write_digits(out, fraction, digits);
}

/* Writes a date, `between`, and the time of day: 2024-05-17T12:30:00.25 */
static inline void write_date_time(Bytes& out, int64_t units, int64_t per_second, char between) {
    const int64_t seconds = floor_div(units, per_second);
    const int64_t day = floor_div(seconds, 86400);
    const int64_t of_day = seconds - day * 86400;
    write_date(out, day);
    out.put_byte(static_cast<uint8_t>(between));
    write_clock(out, of_day, units - seconds * per_second, per_second);
}

/* One column to write; `array` is borrowed. */
struct Column {
    Kind kind;
    bool checked;             /* true if text must be checked for valid UTF-8 */
    int64_t per_second;       /* timestamps and times of day: units per second */
    int scale = 0;            /* decimals: digits after the point */
    char between = 0;         /* times are texts with this character before the time of day; 0: they are epoch ms */
    bool zoned = false;       /* timestamp: true if the text ends in Z */
    std::string path;
    std::string key;          /* "name": in the object, with a comma before all but the first */
    const ArrowArray* array = nullptr;
    std::vector<std::unique_ptr<Column>> children;

    Column(int kind_, bool checked_, int64_t per_second_, const std::string& path_, const std::string& name, bool first)
        : kind(static_cast<Kind>(kind_)), checked(checked_), per_second(per_second_), path(path_) {
        Bytes text;
        if (!first) text.put_byte(',');
        write_text(text, reinterpret_cast<const uint8_t*>(name.data()), static_cast<int64_t>(name.size()));
        text.put_byte(':');
        key.assign(reinterpret_cast<const char*>(text.data), static_cast<size_t>(text.len));
    }

    void add_child(Column* child) { children.emplace_back(child); }

    void bind(const ArrowArray* to) {
        array = to;
        for (size_t i = 0; i < children.size(); i++) children[i]->bind(to->children[i]);
    }

    template <class T>
    inline T fixed(int64_t at) const {
        T value;
        std::memcpy(&value, static_cast<const uint8_t*>(array->buffers[1]) + at * static_cast<int64_t>(sizeof(T)), sizeof(T));
        return value;
    }

    /* Writes the value of row `row` of this array (its own offset is added). */
    void write(Bytes& out, int64_t row) const {
        const int64_t at = row + array->offset;
        const uint8_t* validity = array->n_buffers ? static_cast<const uint8_t*>(array->buffers[0]) : nullptr;
        if (kind == Kind::null_ || (validity && array->null_count != 0 && !(validity[at >> 3] >> (at & 7) & 1))) {
            out.put("null", 4);
            return;
        }
        switch (kind) {
            case Kind::bool_:
                if (static_cast<const uint8_t*>(array->buffers[1])[at >> 3] >> (at & 7) & 1)
                    out.put("true", 4);
                else
                    out.put("false", 5);
                return;
            case Kind::int8: return write_whole(out, static_cast<int>(fixed<int8_t>(at)));
            case Kind::int16: return write_whole(out, static_cast<int>(fixed<int16_t>(at)));
            case Kind::int32: return write_whole(out, fixed<int32_t>(at));
            case Kind::int64: return write_whole(out, fixed<int64_t>(at));
            case Kind::uint8: return write_whole(out, static_cast<unsigned>(fixed<uint8_t>(at)));
            case Kind::uint16: return write_whole(out, static_cast<unsigned>(fixed<uint16_t>(at)));
            case Kind::uint32: return write_whole(out, fixed<uint32_t>(at));
            case Kind::uint64: return write_whole(out, fixed<uint64_t>(at));
            case Kind::float32: return write_float(out, fixed<float>(at));
            case Kind::float64: return write_float(out, fixed<double>(at));
            case Kind::date32: return write_day(out, fixed<int32_t>(at));
            case Kind::date64:
                return between ? write_day(out, floor_div(fixed<int64_t>(at), 86400000)) : write_whole(out, fixed<int64_t>(at));
            case Kind::timestamp: {
                const int64_t units = fixed<int64_t>(at);
                if (between) {
                    out.put_byte('"');
                    write_date_time(out, units, per_second, between);
                    return out.put(zoned ? "Z\"" : "\"", zoned ? 2 : 1);
                }
                if (per_second >= 1000) return write_whole(out, floor_div(units, per_second / 1000));
                int64_t ms;
                if (__builtin_mul_overflow(units, int64_t{1000}, &ms)) throw Unwritable{path};
                return write_whole(out, ms);
            }
            case Kind::time32: return write_time(out, fixed<int32_t>(at));
            case Kind::time64: return write_time(out, fixed<int64_t>(at));
            case Kind::decimal128: case Kind::decimal256: {
                Whole value;
                const int width = width_of(kind);
                std::memcpy(value.words, static_cast<const uint8_t*>(array->buffers[1]) + at * width, static_cast<size_t>(width));
                if (width == 16) value.words[2] = value.words[3] = 0 - (value.words[1] >> 63);
                return write_decimal(out, value, scale);
            }
            case Kind::text: {
                const int32_t* offsets = static_cast<const int32_t*>(array->buffers[1]);
                const uint8_t* text = static_cast<const uint8_t*>(array->buffers[2]) + offsets[at];
                const int64_t n = offsets[at + 1] - offsets[at];
                if (checked) check_utf8(text, text + n);
                return write_text(out, text, n);
            }
            case Kind::struct_: return write_object(out, at);
            case Kind::list: {
                const int32_t* offsets = static_cast<const int32_t*>(array->buffers[1]);
                out.put_byte('[');
                for (int32_t i = offsets[at]; i < offsets[at + 1]; i++) {
                    if (i > offsets[at]) out.put_byte(',');
                    children[0]->write(out, i);
                }
                out.put_byte(']');
                return;
            }
            case Kind::map: {
                const int32_t* offsets = static_cast<const int32_t*>(array->buffers[1]);
                const Column& entries = *children[0];
                out.put_byte('{');
                for (int32_t i = offsets[at]; i < offsets[at + 1]; i++) {
                    const int64_t entry = i + entries.array->offset;
                    if (i > offsets[at]) out.put_byte(',');
                    entries.children[0]->write(out, entry);
                    out.put_byte(':');
                    entries.children[1]->write(out, entry);
                }
                out.put_byte('}');
                return;
            }
            case Kind::null_: return;
        }
    }

    void write_day(Bytes& out, int64_t day) const {
        if (!between) return write_whole(out, day * 86400000);
        out.put_byte('"');
        write_date(out, day);
        out.put_byte('"');
    }

    void write_time(Bytes& out, int64_t units) const {
        if (units < 0 || units >= 86400 * per_second) throw Unwritable{path};
        out.put_byte('"');
        write_clock(out, units / per_second, units % per_second, per_second);
        out.put_byte('"');
    }

    /* Writes the values of row `row` of each child array. */
    void write_object(Bytes& out, int64_t row) const {
        out.put_byte('{');
        for (const auto& child : children) {
            out.put(child->key.data(), static_cast<int64_t>(child->key.size()));
            child->write(out, row);
        }
        out.put_byte('}');
    }

    void check_utf8(const uint8_t* p, const uint8_t* end) const {
        while (p < end) {
            const int n = *p < 0x80 ? 1 : utf8_length(p, end);
            if (n == 0) throw Unwritable{path};
            p += n;
        }
    }
};

/* Writes the rows of a struct array without nulls (a record batch) as a binary array. Returns false if JSON cannot
   represent a value of column `path`. Throws bad_alloc, overflow_error. */
static bool write_rows(Column& root, const ArrowArray* batch, ArrowArray* out, std::string& path) {
    try {
        root.bind(batch);
        make_binary(batch->length, out, [&](Bytes& text, int64_t row) { root.write_object(text, row + batch->offset); });
        return true;
    } catch (const Unwritable& value) {
        path = value.path;
        return false;
    }
}

}  // namespace sabot
