/* Values of PostgreSQL in its binary format, as the text that PostgreSQL gives with DateStyle ISO, IntervalStyle postgres and
   TimeZone UTC: for columns whose values have no type of Arrow, for bounds of ranges, and for rows that are refused.

       Kind::range of Kind::date   02 | 00000004 | 000021d5 | 00000004 | 000021f4   ->   [2023-09-08,2023-10-09)

   The layouts are those of the *send functions of PostgreSQL 15 to 18 (src/backend/utils/adt). All numbers have the highest
   byte first. Nothing here needs the GIL. Functions throw Broken for bytes that no server sends, std::bad_alloc, and
   std::overflow_error. */
#pragma once

#include <strings.h>

#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "arrow/bytes.h"
#include "arrow/utf8.h"
#include "text/times_text.h"

namespace sabot::pg {

/* The kinds of values. Those from `numeric` on are written as text; `list`, `range` and `multirange` have values of another kind. */
enum class Kind : uint8_t {
    bool_, int2, int4, int8, oid, float4, float8, decimal, date, time, timestamp, timestamptz, text, jsonb, bytea, vector, list,
    numeric, uuid, timetz, interval, inet, macaddr, bits, range, multirange,
};

/* What is wrong with the bytes at `at`. */
struct Broken {
    const uint8_t* at;
    std::string reason;
};

constexpr int64_t DAY_US = 86400000000;
constexpr int64_t DAYS_TO_2000 = 10957;
constexpr int64_t US_TO_2000 = DAYS_TO_2000 * DAY_US;

template <class T>
static inline T load_big(const uint8_t* p) {
    std::make_unsigned_t<T> raw;
    std::memcpy(&raw, p, sizeof raw);
    if constexpr (sizeof(T) == 2) raw = __builtin_bswap16(raw);
    if constexpr (sizeof(T) == 4) raw = __builtin_bswap32(raw);
    if constexpr (sizeof(T) == 8) raw = __builtin_bswap64(raw);
    return static_cast<T>(raw);
}

/* Reads bytes one after the other. */
struct Cursor {
    const uint8_t* p;
    const uint8_t* end;

    const uint8_t* take(int64_t n, const char* what) {
        if (SABOT_UNLIKELY(n < 0)) throw Broken{p, std::string("the length of ") + what + " is negative"};
        if (SABOT_UNLIKELY(n > end - p)) throw Broken{end, std::string("it ends within ") + what};
        const uint8_t* const taken = p;
        p += n;
        return taken;
    }
    template <class T>
    T number(const char* what) {
        const uint8_t* const at = take(sizeof(T), what);
        if constexpr (sizeof(T) == 1) return static_cast<T>(*at);
        else return load_big<T>(at);
    }
    /* Reads a text that ends with a zero byte. */
    std::string name(const char* what) {
        const void* const zero = p == end ? nullptr : std::memchr(p, 0, static_cast<size_t>(end - p));
        if (zero == nullptr) throw Broken{end, std::string("it ends within ") + what};
        const uint8_t* const from = p;
        p = static_cast<const uint8_t*>(zero) + 1;
        if (!is_utf8(from, p - 1 - from)) throw Broken{from, std::string(what) + " is not UTF-8"};
        return std::string(reinterpret_cast<const char*>(from), static_cast<size_t>(p - 1 - from));
    }
    void finished() const {
        if (SABOT_UNLIKELY(p != end)) throw Broken{p, "there are bytes after its end"};
    }
};

static inline void sized(const uint8_t* p, int64_t n, int64_t size) {
    if (SABOT_UNLIKELY(n != size))
        throw Broken{p, "a value has " + std::to_string(n) + " bytes, and its type " + std::to_string(size)};
}

/* A value's kind, and for lists and ranges that of the values in it. */
struct Shape {
    Kind kind = Kind::text;
    const Shape* inner = nullptr;
};

static inline void put_text(Bytes& out, const char* text) { out.put(text, static_cast<int64_t>(std::strlen(text))); }

static inline void put_number(Bytes& out, int64_t value) {
    char shown[24];
    const auto end = std::to_chars(shown, shown + sizeof shown, value).ptr;
    out.put(shown, end - shown);
}

/* Writes at least `digits` digits of a number that is not negative. */
static inline void put_padded(Bytes& out, int64_t value, int digits) {
    char shown[24];
    const auto end = std::to_chars(shown, shown + sizeof shown, value).ptr;
    for (int64_t i = end - shown; i < digits; i++) out.put_byte('0');
    out.put(shown, end - shown);
}

/* Writes the fraction of a second without zeros at its end, or nothing. */
static inline void put_micros(Bytes& out, int64_t micros) {
    if (micros == 0) return;
    int digits = 6;
    for (; micros % 10 == 0; micros /= 10) digits--;
    out.put_byte('.');
    put_padded(out, micros, digits);
}

static inline void put_clock(Bytes& out, int64_t micros) {
    put_padded(out, micros / 3600000000, 2);
    out.put_byte(':');
    put_padded(out, micros / 60000000 % 60, 2);
    out.put_byte(':');
    put_padded(out, micros / 1000000 % 60, 2);
    put_micros(out, micros % 1000000);
}

static inline void put_date(Bytes& out, const Date& date) {
    put_padded(out, date.year > 0 ? date.year : 1 - date.year, 4);
    out.put_byte('-');
    put_padded(out, date.month, 2);
    out.put_byte('-');
    put_padded(out, date.day, 2);
}

static inline void put_day(Bytes& out, int32_t day) {
    if (day == INT32_MAX || day == INT32_MIN) return put_text(out, day > 0 ? "infinity" : "-infinity");
    const Date date = date_of(static_cast<int64_t>(day) + DAYS_TO_2000);
    put_date(out, date);
    if (date.year <= 0) put_text(out, " BC");
}

static inline void put_timestamp(Bytes& out, int64_t micros, const char* zone) {
    if (micros == INT64_MAX || micros == INT64_MIN) return put_text(out, micros > 0 ? "infinity" : "-infinity");
    const int64_t day = micros / DAY_US - (micros % DAY_US < 0);
    const Date date = date_of(day + DAYS_TO_2000);
    put_date(out, date);
    out.put_byte(' ');
    put_clock(out, micros - day * DAY_US);
    put_text(out, zone);
    if (date.year <= 0) put_text(out, " BC");
}

/* Writes an interval: us, days and months, which have signs of their own, as EncodeInterval does. */
static inline void put_interval(Bytes& out, int64_t micros, int32_t days, int32_t months) {
    if (micros == INT64_MAX && days == INT32_MAX && months == INT32_MAX) return put_text(out, "infinity");
    if (micros == INT64_MIN && days == INT32_MIN && months == INT32_MIN) return put_text(out, "-infinity");
    bool first = true, after_minus = false;
    auto part = [&](int64_t value, const char* unit) {
        if (value == 0) return;
        if (!first) out.put_byte(' ');
        if (after_minus && value > 0) out.put_byte('+');
        put_number(out, value);
        put_text(out, unit);
        if (value != 1) out.put_byte('s');
        after_minus = value < 0;
        first = false;
    };
    part(months / 12, " year");
    part(months % 12, " mon");
    part(days, " day");
    if (!first && micros == 0) return;
    if (!first) out.put_byte(' ');
    if (micros < 0) out.put_byte('-');
    else if (after_minus) out.put_byte('+');
    const uint64_t size = micros < 0 ? 0 - static_cast<uint64_t>(micros) : static_cast<uint64_t>(micros);
    put_padded(out, static_cast<int64_t>(size / 3600000000), 2);
    out.put_byte(':');
    put_padded(out, static_cast<int64_t>(size / 60000000 % 60), 2);
    out.put_byte(':');
    put_padded(out, static_cast<int64_t>(size / 1000000 % 60), 2);
    put_micros(out, static_cast<int64_t>(size % 1000000));
}

/* Writes the shortest text that is read back as this number. */
template <class Float>
static inline void put_float(Bytes& out, Float value) {
    if (std::isnan(value)) return put_text(out, "NaN");
    if (std::isinf(value)) return put_text(out, value > 0 ? "Infinity" : "-Infinity");
    char shown[64];
    auto end = std::to_chars(shown, shown + sizeof shown, value, std::chars_format::scientific).ptr;
    int exponent = 0;
    const char* mark = static_cast<const char*>(std::memchr(shown, 'e', static_cast<size_t>(end - shown)));
    std::from_chars(mark[1] == '+' ? mark + 2 : mark + 1, end, exponent);
    if (exponent >= -4 && exponent < (sizeof(Float) == 8 ? 15 : 6))
        end = std::to_chars(shown, shown + sizeof shown, value, std::chars_format::fixed).ptr;
    out.put(shown, end - shown);
}

/* A numeric: `count` digits of base 10,000, the first of which counts 10,000 to the power of `weight`. */
struct Numeric {
    int64_t count, weight;
    uint16_t sign;
    int64_t scale; /* decimal digits behind the point that are shown */
    const uint8_t* digits;

    static constexpr uint16_t PLUS = 0, MINUS = 0x4000, NAN_ = 0xC000, INFINITE = 0xD000, MINUS_INFINITE = 0xF000;

    Numeric(const uint8_t* p, int64_t n) {
        Cursor in{p, p + n};
        count = in.number<uint16_t>("a numeric");
        weight = in.number<int16_t>("a numeric");
        sign = in.number<uint16_t>("a numeric");
        scale = in.number<uint16_t>("a numeric");
        digits = in.take(count * 2, "the digits of a numeric");
        in.finished();
        if (sign != PLUS && sign != MINUS && sign != NAN_ && sign != INFINITE && sign != MINUS_INFINITE)
            throw Broken{p + 4, "the sign of a numeric is none"};
        for (int64_t i = 0; i < count; i++)
            if (at(i) > 9999) throw Broken{digits + i * 2, "a digit of a numeric is above 9999"};
    }

    int at(int64_t i) const { return i >= 0 && i < count ? load_big<uint16_t>(digits + i * 2) : 0; }
    /* Returns the name of a value that is no number, or null. */
    const char* no_number() const {
        return sign == NAN_ ? "NaN" : sign == INFINITE ? "Infinity" : sign == MINUS_INFINITE ? "-Infinity" : nullptr;
    }
};

static inline void put_numeric(Bytes& out, const Numeric& number) {
    if (number.no_number() != nullptr) return put_text(out, number.no_number());
    if (number.sign == Numeric::MINUS) out.put_byte('-');
    if (number.weight < 0) out.put_byte('0');
    for (int64_t i = 0; i <= number.weight; i++) put_padded(out, number.at(i), i == 0 ? 1 : 4);
    if (number.scale == 0) return;
    out.put_byte('.');
    for (int64_t i = number.weight + 1, left = number.scale; left > 0; i++, left -= 4) {
        put_padded(out, number.at(i), 4);
        if (left < 4) out.len -= 4 - left;
    }
}

static inline void put_hex(Bytes& out, uint8_t byte) {
    static const char digits[] = "0123456789abcdef";
    out.put_byte(static_cast<uint8_t>(digits[byte >> 4]));
    out.put_byte(static_cast<uint8_t>(digits[byte & 15]));
}

static inline void put_uuid(Bytes& out, const uint8_t* p) {
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10) out.put_byte('-');
        put_hex(out, p[i]);
    }
}

static inline void put_ipv4(Bytes& out, const uint8_t* p) {
    for (int i = 0; i < 4; i++) {
        if (i) out.put_byte('.');
        put_number(out, p[i]);
    }
}

/* Writes an address of IPv6: the longest run of two or more zero words becomes "::", the last words of a mapped address IPv4. */
static inline void put_ipv6(Bytes& out, const uint8_t* p) {
    auto word = [&](int i) { return load_big<uint16_t>(p + i * 2); };
    int from = 8, length = 1;
    for (int i = 0; i < 8; i++) {
        int run = 0;
        while (i + run < 8 && word(i + run) == 0) run++;
        if (run > length) {
            from = i;
            length = run;
        }
        i += run;
    }
    const bool compressed = from < 8;
    const bool mapped = compressed && from == 0 && (length == 6 || (length == 5 && word(5) == 0xFFFF));
    for (int i = 0; i < (mapped ? 6 : 8); i++) {
        if (compressed && i >= from && i < from + length) {
            if (i == from) out.put_byte(':');
            continue;
        }
        if (i) out.put_byte(':');
        char shown[8];
        const auto end = std::to_chars(shown, shown + sizeof shown, word(i), 16).ptr;
        out.put(shown, end - shown);
    }
    if (mapped) {
        out.put_byte(':');
        return put_ipv4(out, p + 12);
    }
    if (compressed && from + length == 8) out.put_byte(':');
}

static inline void put_inet(Bytes& out, const uint8_t* p, int64_t n) {
    Cursor in{p, p + n};
    const uint8_t family = in.number<uint8_t>("an address"), bits = in.number<uint8_t>("an address");
    const bool is_cidr = in.number<uint8_t>("an address");
    const int64_t size = in.number<uint8_t>("an address");
    const uint8_t* const bytes = in.take(size, "an address");
    in.finished();
    if ((family != 2 || size != 4) && (family != 3 || size != 16)) throw Broken{p, "an address is neither of IPv4 nor of IPv6"};
    if (family == 2) put_ipv4(out, bytes);
    else put_ipv6(out, bytes);
    if (is_cidr || bits != size * 8) {
        out.put_byte('/');
        put_number(out, bits);
    }
}

/* Appends a part of a list or range, between quotes if it has one of `special`, a white space, a quote or a backslash. */
static inline void put_quoted(Bytes& out, const Bytes& part, const char* special, bool doubles, bool is_word) {
    bool quoted = part.len == 0 || is_word;
    for (int64_t i = 0; i < part.len; i++) {
        const uint8_t c = part.data[i];
        quoted = quoted || c == '"' || c == '\\' || c == ' ' || (c >= 9 && c <= 13) || (c && std::strchr(special, c) != nullptr);
    }
    if (!quoted) return part.len ? out.put(part.data, part.len) : void();
    out.put_byte('"');
    for (int64_t i = 0; i < part.len; i++) {
        const uint8_t c = part.data[i];
        if (c == '"' || c == '\\') out.put_byte(c == '"' && !doubles ? '\\' : c);
        out.put_byte(c);
    }
    out.put_byte('"');
}

static void put_value(const Shape& shape, const uint8_t* p, int64_t n, Bytes& out);

static inline void put_range(const Shape& bound, Cursor& in, Bytes& out) {
    enum : uint8_t { EMPTY = 1, LOWER_CLOSED = 2, UPPER_CLOSED = 4, NO_LOWER = 8, NO_UPPER = 16 };
    const uint8_t flags = in.number<uint8_t>("a range");
    if (flags & EMPTY) return put_text(out, "empty");
    auto put_bound = [&](uint8_t missing) {
        if (flags & missing) return;
        const int64_t size = in.number<int32_t>("a bound of a range");
        const uint8_t* const from = in.take(size, "a bound of a range");
        Bytes part;
        put_value(bound, from, size, part);
        put_quoted(out, part, "()[],", true, false);
    };
    out.put_byte(flags & LOWER_CLOSED ? '[' : '(');
    put_bound(NO_LOWER);
    out.put_byte(',');
    put_bound(NO_UPPER);
    out.put_byte(flags & UPPER_CLOSED ? ']' : ')');
}

static inline void put_multirange(const Shape& bound, const uint8_t* p, int64_t n, Bytes& out) {
    Cursor in{p, p + n};
    const uint32_t count = in.number<uint32_t>("a multirange");
    out.put_byte('{');
    for (uint32_t i = 0; i < count; i++) {
        const int64_t size = in.number<int32_t>("a range of a multirange");
        const uint8_t* const from = in.take(size, "a range of a multirange");
        if (i) out.put_byte(',');
        Cursor range{from, from + size};
        put_range(bound, range, out);
        range.finished();
    }
    in.finished();
    out.put_byte('}');
}

/* The items of an array: calls begin(items), and then item(p, n), or item(nullptr, 0) for a null. Returns the number of dimensions,
   and calls nothing if that is above 1. */
template <class Begin, class Item>
static inline int32_t each_item(const uint8_t* p, int64_t n, Begin begin, Item item) {
    Cursor in{p, p + n};
    const int32_t dimensions = in.number<int32_t>("an array");
    in.number<int32_t>("an array"); /* whether it has nulls */
    in.number<int32_t>("an array"); /* the type of the items */
    if (dimensions < 0 || dimensions > 6) throw Broken{p, "an array has " + std::to_string(dimensions) + " dimensions"};
    if (dimensions > 1) return dimensions;
    int64_t count = 0;
    if (dimensions == 1) {
        count = in.number<int32_t>("an array");
        in.number<int32_t>("an array"); /* the number of the first item */
        if (count < 0) throw Broken{p + 12, "the number of items of an array is negative"};
    }
    begin(count);
    for (; count > 0; count--) {
        const int64_t size = in.number<int32_t>("an item of an array");
        if (size == -1) item(nullptr, static_cast<int64_t>(0));
        else item(in.take(size, "an item of an array"), size);
    }
    in.finished();
    return dimensions;
}

static inline void put_list(const Shape& inner, const uint8_t* p, int64_t n, Bytes& out) {
    bool first = true;
    auto begin = [&](int64_t) { out.put_byte('{'); };
    const int32_t dimensions = each_item(p, n, begin, [&](const uint8_t* item, int64_t size) {
        if (!first) out.put_byte(',');
        first = false;
        if (item == nullptr) return put_text(out, "NULL");
        Bytes part;
        put_value(inner, item, size, part);
        const bool is_word = part.len == 4 && strncasecmp(reinterpret_cast<const char*>(part.data), "null", 4) == 0;
        put_quoted(out, part, "{},", false, is_word);
    });
    if (dimensions > 1) return put_text(out, "an array of several dimensions");
    out.put_byte('}');
}

static inline void put_vector(const uint8_t* p, int64_t n, Bytes& out) {
    Cursor in{p, p + n};
    const int64_t count = in.number<uint16_t>("a vector");
    in.number<int16_t>("a vector");
    out.put_byte('[');
    for (int64_t i = 0; i < count; i++) {
        if (i) out.put_byte(',');
        const uint32_t raw = in.number<uint32_t>("a vector");
        float value;
        std::memcpy(&value, &raw, 4);
        put_float(out, value);
    }
    in.finished();
    out.put_byte(']');
}

static inline void put_bits(const uint8_t* p, int64_t n, Bytes& out) {
    Cursor in{p, p + n};
    const int64_t count = in.number<int32_t>("a bit string");
    if (count < 0) throw Broken{p, "the length of a bit string is negative"};
    const uint8_t* const bytes = in.take((count + 7) / 8, "a bit string");
    in.finished();
    for (int64_t i = 0; i < count; i++) out.put_byte(bytes[i >> 3] >> (7 - (i & 7)) & 1 ? '1' : '0');
}

/* Appends the text of a value. */
static inline void put_value(const Shape& shape, const uint8_t* p, int64_t n, Bytes& out) {
    switch (shape.kind) {
        case Kind::bool_: return sized(p, n, 1), put_text(out, *p ? "true" : "false");
        case Kind::int2: return sized(p, n, 2), put_number(out, load_big<int16_t>(p));
        case Kind::int4: return sized(p, n, 4), put_number(out, load_big<int32_t>(p));
        case Kind::int8: return sized(p, n, 8), put_number(out, load_big<int64_t>(p));
        case Kind::oid: return sized(p, n, 4), put_number(out, load_big<uint32_t>(p));
        case Kind::float4: {
            sized(p, n, 4);
            const uint32_t raw = load_big<uint32_t>(p);
            float value;
            std::memcpy(&value, &raw, 4);
            return put_float(out, value);
        }
        case Kind::float8: {
            sized(p, n, 8);
            const uint64_t raw = load_big<uint64_t>(p);
            double value;
            std::memcpy(&value, &raw, 8);
            return put_float(out, value);
        }
        case Kind::decimal:
        case Kind::numeric: return put_numeric(out, Numeric(p, n));
        case Kind::date: return sized(p, n, 4), put_day(out, load_big<int32_t>(p));
        case Kind::time: {
            sized(p, n, 8);
            const int64_t micros = load_big<int64_t>(p);
            if (micros < 0 || micros > DAY_US) throw Broken{p, "a time is outside of a day"};
            return put_clock(out, micros);
        }
        case Kind::timestamp: return sized(p, n, 8), put_timestamp(out, load_big<int64_t>(p), "");
        case Kind::timestamptz: return sized(p, n, 8), put_timestamp(out, load_big<int64_t>(p), "+00");
        case Kind::text: return n ? out.put(p, n) : void();
        case Kind::jsonb:
            if (n < 1 || *p != 1) throw Broken{p, "jsonb is not of version 1"};
            return n > 1 ? out.put(p + 1, n - 1) : void();
        case Kind::bytea:
            put_text(out, "\\x");
            for (int64_t i = 0; i < n; i++) put_hex(out, p[i]);
            return;
        case Kind::vector: return put_vector(p, n, out);
        case Kind::list: return put_list(*shape.inner, p, n, out);
        case Kind::uuid: return sized(p, n, 16), put_uuid(out, p);
        case Kind::timetz: {
            sized(p, n, 12);
            const int64_t micros = load_big<int64_t>(p);
            const int64_t west = load_big<int32_t>(p + 8);
            if (micros < 0 || micros > DAY_US) throw Broken{p, "a time is outside of a day"};
            put_clock(out, micros);
            out.put_byte(west > 0 ? '-' : '+');
            const int64_t zone = west > 0 ? west : -west;
            put_padded(out, zone / 3600, 2);
            if (zone % 3600 == 0) return;
            out.put_byte(':');
            put_padded(out, zone / 60 % 60, 2);
            if (zone % 60 == 0) return;
            out.put_byte(':');
            return put_padded(out, zone % 60, 2);
        }
        case Kind::interval: return sized(p, n, 16), put_interval(out, load_big<int64_t>(p), load_big<int32_t>(p + 8), load_big<int32_t>(p + 12));
        case Kind::inet: return put_inet(out, p, n);
        case Kind::macaddr:
            if (n != 6 && n != 8) throw Broken{p, "an address has neither 6 nor 8 bytes"};
            for (int64_t i = 0; i < n; i++) {
                if (i) out.put_byte(':');
                put_hex(out, p[i]);
            }
            return;
        case Kind::bits: return put_bits(p, n, out);
        case Kind::range: {
            Cursor in{p, p + n};
            put_range(*shape.inner, in, out);
            return in.finished();
        }
        case Kind::multirange: return put_multirange(*shape.inner, p, n, out);
    }
    __builtin_unreachable();
}

}  // namespace sabot::pg
