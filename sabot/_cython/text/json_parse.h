/* Parses JSON objects into columns.

   A Decoder owns a tree of Nodes, one per column (and per child of a struct or list). A row is parsed once, from left to
   right; the values of wanted fields go straight into the nodes' buffers, all other values are checked and skipped:

       row bytes --object()--> node of the field --value()--> valid[] data[] offsets[] text  --finish()--> ArrowArray

   Two things make the loops fast:
   - A row must end in '}', and `end` is right after it. So every scan outside a string stops at that byte by itself; only
     strings and closing braces compare with `end`. At least PADDING bytes after `end` can be read, whatever they contain.
   - The fields of a row usually come in the order of the row before: each key remembers its successor, and 16 bytes are
     compared at once.

   A syntax error ends the row: functions return nullptr and set `error`. A value of the wrong type does not end the row,
   because a later duplicate of the field may replace it: the value is skipped, `mismatch` is set, and the object remembers
   the error until its end.

   Nothing here needs the GIL. Functions throw only std::bad_alloc, or std::overflow_error for a column that is too large
   for Arrow (`except +`). Damaged input throws nothing. */
#pragma once

#include <algorithm>
#include <cassert>
#include <charconv>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#if defined(__APPLE__)
#include <xlocale.h>
#endif

#include "arrow/arrow_c.h"
#include "arrow/builder.h"
#include "arrow/decimal.h"
#include "arrow/utf8.h"
#include "text/json_text.h"

namespace sabot {

constexpr int64_t PADDING = 64;
constexpr int MAX_DEPTH = 512; /* of nested objects and lists; Python's own decoders stop at some 1,000 frames, including the caller's */
constexpr size_t MAX_KEYS = 1024; /* the most names that are remembered per object, wanted or not */

enum class Kind : uint8_t {
    null_, bool_, int8, int16, int32, int64, uint8, uint16, uint32, uint64, float32, float64,
    text,                   /* string, binary */
    timestamp, date32, date64,
    struct_, list,
    decimal128, decimal256,
    time32, time64,
    map,                    /* a list of structs, the entries: a text and a value */
};

static inline int width_of(Kind kind) {
    switch (kind) {
        case Kind::bool_: case Kind::int8: case Kind::uint8: return 1;
        case Kind::int16: case Kind::uint16: return 2;
        case Kind::int32: case Kind::uint32: case Kind::float32: case Kind::date32: case Kind::time32: return 4;
        case Kind::int64: case Kind::uint64: case Kind::float64: case Kind::timestamp: case Kind::date64: case Kind::time64: return 8;
        case Kind::decimal128: return 16;
        case Kind::decimal256: return 32;
        default: return 0;
    }
}

static inline Layout layout_of(Kind kind) {
    switch (kind) {
        case Kind::null_: return Layout::null_;
        case Kind::bool_: return Layout::bool_;
        case Kind::text: return Layout::bytes;
        case Kind::struct_: return Layout::struct_;
        case Kind::list: case Kind::map: return Layout::list;
        default: return Layout::fixed;
    }
}

struct Error {
    std::string reason;
    int64_t at = 0; /* the index of the byte in the payload */
};

struct BadRow {
    int64_t row;
    std::string reason;
    int64_t start = -1, end = -1; /* the bounds of its line in the data, or -1 if payloads were given one by one */
};

/* A field name of an object, and the name that followed it last time. */
struct Key {
    std::string name;
    std::string quoted;         /* "name" with its quotes; empty if it has characters that must be escaped: then it is never predicted */
    alignas(16) uint8_t head[16];
    /* a mask of those of the 16 head bytes that are after the name; 0xFFFF if the name is longer than the head */
    uint32_t rest_mask = 0;
    int field = -1;             /* the index of the wanted child, or -1 if the field is not wanted */
    int next = 0;
};

/* The field names of one object: wanted names first, then unknown ones as they come, at most MAX_KEYS. */
struct Keys {
    std::vector<Key> keys;
    std::vector<int> table;     /* open addressing: an index into keys, or -1 */
    int first = 0;              /* the first name of the last object */

    static uint64_t hash(const char* s, size_t n) {
        uint64_t h = 0xcbf29ce484222325ull; /* FNV-1a */
        for (size_t i = 0; i < n; i++) h = (h ^ static_cast<uint8_t>(s[i])) * 0x100000001b3ull;
        return h ^ (h >> 29);
    }

    int add(const char* s, size_t n, int field) {
        Key key;
        key.name.assign(s, n);
        key.field = field;
        bool plain = true;
        for (unsigned char c : key.name) plain = plain && c >= 0x20 && c != '"' && c != '\\';
        std::memset(key.head, 0, sizeof key.head);
        key.rest_mask = 0xFFFF;
        if (plain) {
            key.quoted = '"' + key.name + '"';
            if (key.quoted.size() <= 16) {
                std::memcpy(key.head, key.quoted.data(), key.quoted.size());
                key.rest_mask = 0xFFFFu & ~((1u << key.quoted.size()) - 1u);
            }
        }
        keys.push_back(std::move(key));
        if (keys.size() * 2 > table.size()) {
            table.assign(table.empty() ? 64 : table.size() * 2, -1);
            for (size_t i = 0; i < keys.size(); i++) place(static_cast<int>(i));
        } else {
            place(static_cast<int>(keys.size()) - 1);
        }
        return static_cast<int>(keys.size()) - 1;
    }

    void place(int index) {
        const std::string& name = keys[static_cast<size_t>(index)].name;
        size_t slot = hash(name.data(), name.size()) & (table.size() - 1);
        while (table[slot] >= 0) slot = (slot + 1) & (table.size() - 1);
        table[slot] = index;
    }

    int find(const char* s, size_t n) const {
        if (table.empty()) return -1;
        size_t slot = hash(s, n) & (table.size() - 1);
        for (; table[slot] >= 0; slot = (slot + 1) & (table.size() - 1)) {
            const std::string& name = keys[static_cast<size_t>(table[slot])].name;
            if (name.size() == n && std::memcmp(name.data(), s, n) == 0) return table[slot];
        }
        return -1;
    }
};

static inline bool predicted(const Key& key, const uint8_t* p, const uint8_t* end) {
    if (SABOT_LIKELY(key.rest_mask != 0xFFFF)) {
#if defined(__SSE2__)
        const __m128i same = _mm_cmpeq_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)),
                                            _mm_load_si128(reinterpret_cast<const __m128i*>(key.head)));
        if ((static_cast<uint32_t>(_mm_movemask_epi8(same)) | key.rest_mask) != 0xFFFFu) return false;
#else
        if (std::memcmp(p, key.head, key.quoted.size()) != 0) return false;
#endif
        return p + key.quoted.size() < end;
    }
    return !key.quoted.empty() && static_cast<int64_t>(key.quoted.size()) < end - p &&
           std::memcmp(p, key.quoted.data(), key.quoted.size()) == 0;
}

/* A clock is `ahead` seconds ahead of UTC from the time on that it shows as `shown`, in seconds since 1970. */
struct ClockStep {
    int64_t shown, ahead;
};

/* A column under construction. */
struct Node : ColumnBuilder<Node> {
    Kind kind;
    int64_t per_second;         /* timestamps and times of day: units per second */
    std::string path;           /* the name for messages: "order.items[].price" */
    std::string type;           /* the type in pyarrow's notation, for messages */
    Keys keys;                  /* for struct: the names of the children and of unknown fields */
    int precision = 0, scale = 0; /* decimals: the number of digits, and of digits after the point */
    bool exact = false;         /* float64: a whole number of which the nearest float loses digits is of the wrong type */
    std::vector<ClockStep> clock; /* timestamp: the clock of texts without an offset, ascending; empty for UTC */

    Node(int kind_, bool nullable_, int64_t per_second_, const std::string& path_, const std::string& type_)
        : ColumnBuilder(layout_of(static_cast<Kind>(kind_)), nullable_, width_of(static_cast<Kind>(kind_))),
          kind(static_cast<Kind>(kind_)), per_second(per_second_), path(path_), type(type_) {}

    /* Returns the seconds that `clock` is ahead of UTC when it shows this time, in seconds since 1970. */
    int64_t ahead_at(int64_t shown) const {
        const auto later = std::upper_bound(clock.begin(), clock.end(), shown,
                                            [](int64_t time, const ClockStep& step) { return time < step.shown; });
        return (later == clock.begin() ? later : later - 1)->ahead;
    }

    /* Adds a child and takes ownership of it. `name` is its field name in a struct. */
    void add_child(Node* child, const std::string& name) {
        children.emplace_back(child);
        if (kind == Kind::struct_) keys.add(name.data(), name.size(), static_cast<int>(children.size()) - 1);
    }
};

/* ---- numbers ------------------------------------------------------------------------------------------------- */

static constexpr uint64_t POWERS[] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000};
static constexpr double EXACT_POWERS[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                          1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

/* Reads at most 8 digits at p. Returns their number, and their value in `value`. Does not branch on their number. */
static inline int digits8(const uint8_t* p, uint64_t& value) {
    uint64_t t = load8(p) ^ 0x3030303030303030ull; /* digits become 0 to 9 */
    /* A carry moves up only from a byte that is not a digit, so the first such byte is found correctly. */
    const uint64_t other = ((t + 0x7676767676767676ull) | t) & 0x8080808080808080ull;
    const int n = other ? __builtin_ctzll(other) >> 3 : 8;
    if (n == 0) return 0;
    t <<= (8 - n) * 8; /* adds leading zeros */
    t = t * 10 + (t >> 8);
    t = ((t & 0x000000FF000000FFull) * 0x000F424000000064ull +
         ((t >> 16) & 0x000000FF000000FFull) * 0x0000271000000001ull) >> 32;
    value = t;
    return n;
}

struct Number {
    const uint8_t* begin;
    const uint8_t* end;
    uint64_t mantissa;      /* all digits, without the point; undefined beyond 19 digits */
    int64_t digits;         /* the number of digits */
    int64_t whole_digits;   /* the number of digits before the point */
    int64_t exponent;       /* the exponent of ten, for the mantissa as a whole number */
    bool negative;
    bool whole;             /* true if there is neither a fraction nor an exponent */
};

/* Reads a JSON number. Returns the address after it, or nullptr for an invalid number; then `wrong` is the address of
   the error. */
__attribute__((always_inline)) static inline const uint8_t* scan_number(const uint8_t* p, Number& number, const uint8_t*& wrong) {
    number.begin = p;
    number.negative = *p == '-';
    p += number.negative;
    uint64_t mantissa = 0, part = 0;
    int n = digits8(p, mantissa);
    if (SABOT_UNLIKELY(n == 0 || (*p == '0' && n > 1))) {
        wrong = p;
        return nullptr;
    }
    p += n;
    int64_t digits = n;
    while (n == 8) {
        n = digits8(p, part);
        if (n == 0) break;
        mantissa = mantissa * POWERS[n] + part;
        digits += n;
        p += n;
    }
    number.whole_digits = digits;
    number.whole = true;
    number.exponent = 0;
    if (*p == '.') {
        number.whole = false;
        const uint8_t* fraction = ++p;
        do {
            n = digits8(p, part);
            if (n == 0) break;
            mantissa = mantissa * POWERS[n] + part;
            p += n;
        } while (n == 8);
        if (SABOT_UNLIKELY(p == fraction)) {
            wrong = p;
            return nullptr;
        }
        number.exponent = fraction - p;
        digits += p - fraction;
    }
    if (SABOT_UNLIKELY((*p | 0x20) == 'e')) {
        number.whole = false;
        p++;
        const bool down = *p == '-';
        if (*p == '-' || *p == '+') p++;
        if (*p < '0' || *p > '9') {
            wrong = p;
            return nullptr;
        }
        int64_t power = 0;
        for (; *p >= '0' && *p <= '9'; p++)
            if (power < 100000000) power = power * 10 + (*p - '0');
        number.exponent += down ? -power : power;
    }
    number.mantissa = mantissa;
    number.digits = digits;
    number.end = p;
    return p;
}

/* Computes the magnitude of a whole number. Returns false if it has more than 64 bits. */
static inline bool magnitude(const Number& number, uint64_t& value) {
    if (SABOT_LIKELY(number.digits <= 19)) {
        value = number.mantissa;
        return true;
    }
    if (number.digits > 20) return false; /* JSON has no leading zeros */
    value = 0;
    for (const uint8_t* p = number.begin + number.negative; p < number.end; p++)
        if (__builtin_mul_overflow(value, uint64_t{10}, &value) ||
            __builtin_add_overflow(value, static_cast<uint64_t>(*p - '0'), &value))
            return false;
    return true;
}

/* Computes the nearest value of type T (double or float) with the C++ library. Returns false if the number is larger
   than any. */
template <class T>
static inline bool nearest(const Number& number, T& value) {
#if defined(__cpp_lib_to_chars)
    const auto result = std::from_chars(reinterpret_cast<const char*>(number.begin),
                                        reinterpret_cast<const char*>(number.end), value);
    if (result.ec == std::errc()) return std::isfinite(value);
    int64_t leading = number.exponent + number.digits; /* the value is below 10^leading */
    for (const uint8_t* p = number.begin + number.negative; *p == '0' || *p == '.'; p++) leading -= *p == '0';
    if (leading > 0) return false;
    value = number.negative ? T(-0.0) : T(0.0);
    return true;
#else
    const char* const text = reinterpret_cast<const char*>(number.begin); /* on macOS a null locale is "C" */
    value = sizeof(T) == sizeof(float) ? static_cast<T>(strtof_l(text, nullptr, nullptr)) : static_cast<T>(strtod_l(text, nullptr, nullptr));
    return std::isfinite(value);
#endif
}

/* Computes the double of a number without a rounding before it. Returns false for a number that needs `nearest`. */
static inline bool to_short_double(const Number& number, double& value) {
    if (SABOT_LIKELY(number.digits <= 19 && number.mantissa <= (uint64_t{1} << 53) && number.exponent >= -22 &&
                     number.exponent <= 22)) {
        /* Both operands are exact, so the single rounding is correct (Clinger 1990). */
        double d = static_cast<double>(number.mantissa);
        d = number.exponent < 0 ? d / EXACT_POWERS[-number.exponent] : d * EXACT_POWERS[number.exponent];
        value = number.negative ? -d : d;
        return true;
    }
    return false;
}

/* Computes the nearest double. Returns false if the number is larger than any. */
static inline bool to_double(const Number& number, double& value) { return to_short_double(number, value) || nearest(number, value); }

/* Returns true if the nearest double `d` of a whole number of more than 15 digits keeps them: it is equal to the number, or the number
   is how it is written with the fewest digits, as JavaScript writes 12345678901234567000. */
__attribute__((noinline, cold)) static bool keeps(const Number& number, double d) {
    const char* const text = reinterpret_cast<const char*>(number.begin) + number.negative;
    size_t digits = static_cast<size_t>(number.digits), rest;
    char exactly[400]; /* the greatest double has 309 digits before the point */
    const int n = std::snprintf(exactly, sizeof exactly, "%.0f", std::fabs(d));
    if (n == number.digits && std::memcmp(exactly, text, digits) == 0) return true;
    for (rest = digits; rest > 1 && text[rest - 1] == '0'; rest--) {}
    if (rest <= 15) return true; /* such numbers are distinct as doubles */
#if defined(__cpp_lib_to_chars)
    char shortest[32];
    const char* const stop = std::to_chars(shortest, shortest + sizeof shortest, std::fabs(d), std::chars_format::scientific).ptr;
    size_t same = 0;
    for (const char* p = shortest; p < stop && *p != 'e'; p++) {
        if (*p == '.') continue;
        if (same == rest || *p != text[same]) return false;
        same++;
    }
    return same == rest;
#else
    return false;
#endif
}

/* Computes the nearest float. Returns false if the number is larger than any. */
static inline bool to_float(const Number& number, float& value) {
    double d;
    if (!to_double(number, d)) return false;
    uint64_t bits;
    std::memcpy(&bits, &d, 8);
    /* Rounding twice is wrong only if the double lies exactly between two floats: by its 29 spare bits, or below
       FLT_MIN. */
    if (SABOT_UNLIKELY((bits & 0x1FFFFFFF) == 0x10000000 || (std::fabs(d) < 1.1754943508222875e-38 && d != 0)))
        return nearest(number, value);
    value = static_cast<float>(d);
    return std::isfinite(value);
}

/* Computes the number at this scale. Returns false if it has more digits after the point, other than zeros, or more
   than `precision` in all. */
static inline bool to_decimal(const Number& number, int precision, int scale, Whole& value) {
    int64_t digits, shift; /* the value has `digits` digits, and is multiplied by 10^shift */
    if (SABOT_LIKELY(number.digits <= 19 && number.exponent + scale >= 0)) {
        value.words[0] = number.mantissa;
        if (number.mantissa == 0) return true;
        digits = number.digits;
        shift = number.exponent + scale;
        if (*(number.begin + number.negative) == '0') /* in 0.0012 the leading zeros do not count as digits */
            for (digits = 1; digits < 19 && number.mantissa >= TENS[digits]; digits++) {}
    } else {
        int64_t zeros = 0; /* zeros after the last digit that counts */
        digits = 0;
        for (const uint8_t* p = number.begin + number.negative; p < number.end && (*p | 0x20) != 'e'; p++) {
            if (*p == '.') continue;
            if (*p == '0') {
                zeros += digits > 0;
                continue;
            }
            digits += zeros + 1;
            if (digits > precision) return false;
            for (; zeros > 0; zeros--) value.times_plus(10, 0);
            value.times_plus(10, static_cast<uint64_t>(*p - '0'));
        }
        if (digits == 0) return true;
        shift = zeros + number.exponent + scale;
    }
    if (shift < 0 || digits + shift > precision) return false;
    for (; shift > 19; shift -= 19) value.times_plus(TENS[19], 0);
    value.times_plus(TENS[shift], 0);
    if (number.negative) value.negate();
    return true;
}

static const int64_t MOST_DAYS = 2932896; /* since 1970, of 9999-12-31 */

/* ---- times --------------------------------------------------------------------------------------------------- */

static inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }

/* Returns the days from 1970-01-01 to a date of the proleptic Gregorian calendar. Years are counted from March. */
static inline int64_t days_since_1970(int64_t year, int64_t month, int64_t day) {
    const int64_t y = month > 2 ? year : year - 1;
    const int64_t m = month > 2 ? month - 3 : month + 9;
    return 365 * y + floor_div(y, 4) - floor_div(y, 100) + floor_div(y, 400) + (153 * m + 2) / 5 + day - 1 - 719468;
}

/* Reads `n` digits at p, and moves p behind them. Returns false, with p anywhere, if there are fewer. */
static inline bool read_digits(const uint8_t*& p, const uint8_t* end, int n, int64_t& value) {
    if (end - p < n) return false;
    value = 0;
    for (; n > 0; n--, p++) {
        if (*p < '0' || *p > '9') return false;
        value = value * 10 + (*p - '0');
    }
    return true;
}

static inline bool take_byte(const uint8_t*& p, const uint8_t* end, char c) { return p < end && *p == c && (++p, true); }

/* Reads hh:mm[:ss[.fraction]] at p, and moves p behind it. OUT the second of the day, nanoseconds of the second, and true
   in `finer` if a digit other than 0 is beyond the ninth. Returns false for other text. */
static inline bool read_clock(const uint8_t*& p, const uint8_t* end, int64_t& of_day, int64_t& nanos, bool& finer) {
    int64_t hour, minute, second = 0;
    nanos = 0;
    finer = false;
    if (!read_digits(p, end, 2, hour) || !take_byte(p, end, ':') || !read_digits(p, end, 2, minute)) return false;
    if (take_byte(p, end, ':')) {
        if (!read_digits(p, end, 2, second)) return false;
        if (take_byte(p, end, '.') || take_byte(p, end, ',')) {
            int64_t scale = 100000000;
            const uint8_t* fraction = p;
            for (; p < end && *p >= '0' && *p <= '9'; p++, scale /= 10) {
                nanos += (*p - '0') * scale;
                finer = finer || (scale == 0 && *p != '0');
            }
            if (p == fraction) return false;
        }
    }
    of_day = hour * 3600 + minute * 60 + second;
    return hour <= 23 && minute <= 59 && second <= 59;
}

/* Reads an ISO 8601 time: a date, optionally [T or space] hh:mm[:ss[.fraction]] and Z or an offset; without an offset
   it is UTC. OUT seconds since 1970, nanoseconds of the second (digits beyond the ninth are dropped), and true in
   `zoned` if there is an offset. Returns false for other text. */
static inline bool read_iso(const uint8_t* p, const uint8_t* end, int64_t& seconds, int64_t& nanos, bool& zoned) {
    auto number = [&](int n, int64_t& value) { return read_digits(p, end, n, value); };
    auto take = [&](char c) { return take_byte(p, end, c); };
    int64_t year, month, day, of_day;
    bool finer;
    nanos = 0;
    zoned = false;
    if (!number(4, year) || !take('-') || !number(2, month) || !take('-') || !number(2, day)) return false;
    static const int lengths[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    if (month < 1 || month > 12 || day < 1) return false;
    const bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    if (day > lengths[month - 1] + (month == 2 && leap)) return false;
    seconds = days_since_1970(year, month, day) * 86400;
    if (p == end) return true;
    if (!take('T') && !take('t') && !take(' ')) return false;
    if (!read_clock(p, end, of_day, nanos, finer)) return false;
    seconds += of_day;
    if (p == end) return true;
    zoned = true;
    if ((*p == 'Z' || *p == 'z') && p + 1 == end) return true;
    if (*p != '+' && *p != '-') return false;
    const int64_t sign = *p++ == '-' ? -1 : 1;
    int64_t off_hour, off_minute = 0;
    if (!number(2, off_hour)) return false;
    if (p < end && (take(':'), !number(2, off_minute))) return false;
    if (p != end || off_hour > 23 || off_minute > 59) return false;
    seconds -= sign * (off_hour * 3600 + off_minute * 60);
    return true;
}

/* ---- the decoder --------------------------------------------------------------------------------------------- */

class Decoder {
  public:
    Node root{static_cast<int>(Kind::struct_), false, 0, "", "object"};
    int64_t others = 0; /* the number of names in all `keys` that are not wanted */

    /* Adds the paths of the names that are not wanted, at all levels, in the order in which each object met them. */
    static void unwanted(const Node& node, std::vector<std::string>& paths) {
        for (const Key& key : node.keys.keys)
            if (key.field < 0) paths.push_back(node.path.empty() ? key.name : node.path + "." + key.name);
        for (const auto& child : node.children) unwanted(*child, paths);
    }

    /* Decodes n values of a binary array. `offsets` has n + 1 entries; `validity` is null, or bits from `bit` on.

       This function and the next two write the good rows to `out` as a struct array, and the bad rows to `bad_rows`.
       They may be called from any thread without the GIL. They throw bad_alloc, and overflow_error beyond Arrow's
       32-bit offsets. */
    template <class Offset>
    void rows(const Offset* offsets, const uint8_t* data, const uint8_t* validity, int64_t bit, int64_t n,
              ArrowArray* out, std::vector<BadRow>& bad_rows) {
        std::lock_guard<std::mutex> lock(in_use);
        begin(n);
        const int64_t safe = n ? offsets[n] - PADDING : 0; /* a row that ends later has fewer than PADDING readable bytes after it */
        for (int64_t i = 0; i < n; i++) {
            const int64_t from = offsets[i], to = offsets[i + 1];
            if (validity && !(validity[(bit + i) >> 3] >> ((bit + i) & 7) & 1))
                null_row(i);
            else if (SABOT_LIKELY(to <= safe))
                row(data + from, to - from, i);
            else
                row_copied(data + from, to - from, i);
        }
        take(out, bad_rows);
    }

    /* Decodes n payloads; a null pointer is a null payload. */
    void payloads(const uint8_t* const* starts, const int64_t* lengths, int64_t n, ArrowArray* out,
                  std::vector<BadRow>& bad_rows) {
        std::lock_guard<std::mutex> lock(in_use);
        begin(n);
        for (int64_t i = 0; i < n; i++) {
            if (starts[i] == nullptr)
                null_row(i);
            else
                row_copied(starts[i], lengths[i], i);
        }
        take(out, bad_rows);
    }

    /* Decodes n bytes of NDJSON. */
    void lines(const uint8_t* data, int64_t n, ArrowArray* out, std::vector<BadRow>& bad_rows) {
        std::lock_guard<std::mutex> lock(in_use);
        begin(static_cast<int64_t>(static_cast<double>(n) / bytes_per_line) + 16);
        const uint8_t* const stop_all = data + n;
        int64_t count = 0;
        for (const uint8_t* p = data; p < stop_all;) {
            const void* found = std::memchr(p, '\n', static_cast<size_t>(stop_all - p));
            const uint8_t* stop = found ? static_cast<const uint8_t*>(found) : stop_all;
            if (SABOT_LIKELY(*p == '{') || !blank(p, stop)) {
                const bool good = SABOT_LIKELY(stop_all - stop >= PADDING) ? row(p, stop - p, count) : row_copied(p, stop - p, count);
                if (SABOT_UNLIKELY(!good)) {
                    bad.back().start = p - data;
                    bad.back().end = stop - data - (stop[-1] == '\r');
                }
                count++;
            }
            p = stop + 1;
        }
        if (count) bytes_per_line = static_cast<double>(n) / static_cast<double>(count) * 0.98;
        take(out, bad_rows);
    }

  private:
    /* The error of a value in an object that is not closed yet. */
    struct Poison {
        const Node* node;
        Error error;
    };

    const uint8_t* start = nullptr;
    const uint8_t* end = nullptr;
    Error error;
    bool mismatch = false;   /* true if the value just read has the wrong type, which `error` describes */
    bool lone_surrogate = false;
    std::vector<Poison> poisons;
    Bytes key_text, value_text, scratch;
    double bytes_per_line = 100;
    std::vector<BadRow> bad;
    std::mutex in_use; /* serialises calls, because a decoder learns from its rows */

    void begin(int64_t rows) {
        root.begin(rows);
        bad.clear();
        poisons.clear();
        mismatch = false;
    }

    void take(ArrowArray* out, std::vector<BadRow>& bad_rows) {
        bad_rows.swap(bad);
        hand_over(root, out);
    }

    /* Decodes row number `row`: n bytes at p, after which PADDING more can be read. A bad row leaves only its entry
       in `bad`. */
    bool row(const uint8_t* p, int64_t n, int64_t row) {
        const int64_t good = root.len;
        if (SABOT_LIKELY(parse(p, n))) return true;
        root.truncate(good);
        bad.push_back({row, error.reason + " at byte " + std::to_string(error.at)});
        poisons.clear();
        mismatch = false;
        return false;
    }

    /* Decodes a row after which no more bytes can be read. */
    bool row_copied(const uint8_t* p, int64_t n, int64_t row_) {
        scratch.len = 0;
        scratch.ensure(n + PADDING);
        if (n) std::memcpy(scratch.data, p, static_cast<size_t>(n));
        std::memset(scratch.data + n, 0, PADDING);
        return row(scratch.data, n, row_);
    }

    void null_row(int64_t row) { bad.push_back({row, "the payload is null"}); }

    static bool blank(const uint8_t* p, const uint8_t* stop) {
        while (p < stop && (*p == ' ' || *p == '\t' || *p == '\r')) p++;
        return p == stop;
    }

    __attribute__((noinline, cold)) const uint8_t* fail(const uint8_t* at, const char* reason) {
        error.reason = std::string("invalid JSON: ") + reason;
        error.at = at - start;
        return nullptr;
    }

    bool is_word(const uint8_t* p, const char* word) const {
        const size_t size = std::strlen(word);
        return static_cast<size_t>(end - p) >= size && std::memcmp(p, word, size) == 0;
    }

    const char* described(const uint8_t* p) const {
        switch (*p) {
            case '"': return "a string";
            case '{': return "an object";
            case '[': return "a list";
            case 't': case 'f': return is_word(p, "true") || is_word(p, "false") ? "a boolean" : "no JSON";
            case 'n': return is_word(p, "null") ? "null" : "no JSON";
            default: return *p == '-' || (*p >= '0' && *p <= '9') ? "a number" : "no JSON";
        }
    }

    /* Skips the value at p, which does not fit `node`. */
    __attribute__((noinline, cold)) const uint8_t* wrong(const Node& node, const uint8_t* p, int depth, const char* why = nullptr) {
        const uint8_t* after = skip(p, depth);
        if (after == nullptr) return nullptr;
        error.reason = "field " + node.path + ": " + (why ? why + node.type : "expected " + node.type + ", found " + described(p));
        error.at = p - start;
        mismatch = true;
        return after;
    }

    static inline const uint8_t* space(const uint8_t* p) {
        if (SABOT_LIKELY(*p > ' ')) return p;
        if (*p == ' ' && p[1] > ' ') return p + 1;
        while (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r') p++;
        return p;
    }

    bool parse(const uint8_t* p, int64_t n) {
        start = p;
        end = p + n;
        if (n >= 3 && p[0] == 0xEF && p[1] == 0xBB && p[2] == 0xBF) p += 3; /* skips a byte order mark */
        while (p < end && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r')) p++;
        while (end > p && (end[-1] == ' ' || end[-1] == '\t' || end[-1] == '\n' || end[-1] == '\r')) end--;
        if (SABOT_UNLIKELY(p == end || *p != '{' || end[-1] != '}')) {
            if (p == end)
                error.reason = "the payload is empty";
            else if (*p == '{')
                error.reason = "invalid JSON: the object does not end with '}'";
            else
                error.reason = std::string("expected an object, found ") + described(p);
            error.at = p == end ? 0 : *p != '{' ? p - start : end - start;
            return false;
        }
        p = object(root, p, 1);
        if (SABOT_UNLIKELY(p == nullptr)) return false;
        if (SABOT_UNLIKELY(mismatch)) return false;
        if (SABOT_UNLIKELY(p != end)) {
            fail(p, "there are bytes after the end of the object");
            return false;
        }
        return true;
    }

    /* Decodes the object whose '{' is at p. Every child gets exactly one row. */
    const uint8_t* object(Node& node, const uint8_t* p, int depth) {
        assert(p < end && *p == '{' && end[-1] == '}');
        node.room();
        const int64_t slot = node.len;
        const size_t poisoned = poisons.size();
        size_t filled = 0;
        Keys& keys = node.keys;
        if (SABOT_UNLIKELY(depth > MAX_DEPTH)) return fail(p, "nested deeper than 512");
        const uint8_t* const opening = p;
        p = space(p + 1);
        if (*p == '}') {
            p++;
        } else {
            int previous = -1; /* the key before this one */
            int guess = keys.first;
            for (;;) {
                int field;
                const Key* const key = keys.keys.data() + guess;
                if (SABOT_LIKELY(!keys.keys.empty() && predicted(*key, p, end))) {
                    p += key->quoted.size();
                    field = key->field;
                    previous = guess;
                    guess = key->next;
                } else {
                    int found;
                    p = other_key(keys, p, found);
                    if (SABOT_UNLIKELY(p == nullptr)) return nullptr;
                    if (found >= 0) {
                        (previous >= 0 ? keys.keys[static_cast<size_t>(previous)].next : keys.first) = found;
                        previous = found;
                        guess = keys.keys[static_cast<size_t>(found)].next;
                        field = keys.keys[static_cast<size_t>(found)].field;
                    } else {
                        field = -1; /* the key is not remembered: the prediction stays */
                    }
                }
                if (SABOT_UNLIKELY(*p != ':')) {
                    p = space(p);
                    if (*p != ':') return fail(p, "expected ':'");
                }
                p = space(p + 1);
                if (field >= 0) {
                    Node& child = *node.children[static_cast<size_t>(field)];
                    if (SABOT_UNLIKELY(child.len != slot)) { /* a duplicate key: the last one counts */
                        child.truncate(slot);
                        forget(child, poisoned);
                        filled--;
                    }
                    p = value(child, p, depth);
                    if (SABOT_UNLIKELY(p == nullptr)) return nullptr;
                    if (SABOT_UNLIKELY(mismatch)) {
                        poisons.push_back({&child, error});
                        mismatch = false;
                        child.truncate(slot);
                        child.append_null();
                    }
                    filled++;
                } else {
                    p = skip(p, depth);
                    if (SABOT_UNLIKELY(p == nullptr)) return nullptr;
                }
                p = space(p);
                if (SABOT_LIKELY(*p == ',')) {
                    p = space(p + 1);
                    continue;
                }
                if (SABOT_UNLIKELY(*p != '}')) return fail(p, "expected ',' or '}'");
                p++;
                break;
            }
        }
        if (SABOT_UNLIKELY(p == end && depth > 1)) return fail(p, "an object or list is not closed");
        if (SABOT_UNLIKELY(filled != node.children.size())) missing(node, slot, opening);
        node.valid[slot] = 1;
        node.len = slot + 1;
        if (SABOT_UNLIKELY(poisons.size() > poisoned)) {
            error = poisons[poisoned].error;
            poisons.resize(poisoned);
            mismatch = true;
        }
        return p;
    }

    __attribute__((noinline)) void missing(Node& node, int64_t slot, const uint8_t* opening) {
        for (auto& child : node.children) {
            if (child->len != slot) continue;
            child->append_null();
            if (!child->nullable)
                poisons.push_back({child.get(), {"field " + child->path + " is missing, and may not be null,", opening - start}});
        }
    }

    __attribute__((noinline, cold)) void forget(const Node& child, size_t from) {
        for (size_t i = poisons.size(); i > from; i--)
            if (poisons[i - 1].node == &child) poisons.erase(poisons.begin() + static_cast<std::ptrdiff_t>(i - 1));
    }

    /* Looks up a key that was not predicted. OUT found: its index, or -1 if it is unknown and cannot be remembered. */
    __attribute__((noinline)) const uint8_t* other_key(Keys& keys, const uint8_t* p, int& found) {
        if (*p != '"') return fail(p, "expected a field name in quotes");
        key_text.len = 0;
        lone_surrogate = false;
        p = string<true>(p + 1, key_text);
        if (p == nullptr) return nullptr;
        const char* name = reinterpret_cast<const char*>(key_text.data);
        const size_t n = static_cast<size_t>(key_text.len);
        found = -1;
        if (lone_surrogate) return p; /* no schema can have such a name */
        found = keys.find(name, n);
        if (found < 0 && keys.keys.size() < MAX_KEYS && n < 64) {
            found = keys.add(name, n, -1);
            others++;
        }
        return p;
    }

    /* Reads the rest of a string, after its opening quote, into `out`, or only checks it. Returns the address after
       the closing quote. */
    template <bool keep>
    inline const uint8_t* string(const uint8_t* p, Bytes& out) {
        for (;;) {
            /* Most strings end within 32 bytes. A longer one is searched 64 bytes at a time, so that its end is
               mispredicted less often. */
            if (keep) {
                out.ensure(32);
                std::memcpy(out.data + out.len, p, 32);
            }
            int n = plain32(p);
            p += n;
            if (keep) out.len += n;
            for (bool more = n == 32; more && SABOT_LIKELY(p < end); more = n == 64) {
                if (keep) {
                    out.ensure(64);
                    std::memcpy(out.data + out.len, p, 64);
                }
                n = plain64(p);
                p += n;
                if (keep) out.len += n;
            }
            if (SABOT_UNLIKELY(p >= end)) return fail(end, "a string is not closed");
            if (SABOT_LIKELY(*p == '"')) return p + 1;
            p = odd_text<keep>(p, out);
            if (SABOT_UNLIKELY(p == nullptr)) return nullptr;
        }
    }

    /* Reads an escape, or a run of non-ASCII text, inside a string. */
    template <bool keep>
    __attribute__((noinline)) const uint8_t* odd_text(const uint8_t* p, Bytes& out) {
        if (*p >= 0x80) {
            do {
                const int n = utf8_length(p, end);
                if (n == 0) return fail(p, "invalid UTF-8");
                if (keep) out.put(p, n);
                p += n;
            } while (*p >= 0x80 && p < end);
            return p;
        }
        if (*p != '\\') return fail(p, "a string has a control character");
        if (end - p < 3) return fail(p, "a string is not closed");
        uint8_t c;
        switch (p[1]) {
            case '"': case '\\': case '/': c = p[1]; break;
            case 'b': c = '\b'; break;
            case 'f': c = '\f'; break;
            case 'n': c = '\n'; break;
            case 'r': c = '\r'; break;
            case 't': c = '\t'; break;
            case 'u': return unicode_escape<keep>(p, out);
            default: return fail(p, "unknown escape");
        }
        if (keep) out.put_byte(c);
        return p + 2;
    }

    template <bool keep>
    const uint8_t* unicode_escape(const uint8_t* p, Bytes& out) {
        uint32_t point, low;
        if (!hex4(p + 2, point)) return fail(p, "a \\u escape needs four hexadecimal digits");
        p += 6;
        if (point >= 0xD800 && point < 0xE000) {
            if (point < 0xDC00 && end - p >= 6 && p[0] == '\\' && p[1] == 'u' && hex4(p + 2, low) && low >= 0xDC00 && low < 0xE000) {
                point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
                p += 6;
            } else {
                lone_surrogate = true; /* JSON allows it, UTF-8 does not */
                return p;
            }
        }
        if (keep) {
            out.ensure(4);
            out.len += utf8_write(point, out.data + out.len);
        }
        return p;
    }

    bool hex4(const uint8_t* p, uint32_t& value) const {
        value = 0;
        if (end - p < 4) return false;
        for (int i = 0; i < 4; i++) {
            const uint8_t c = p[i], letter = c | 0x20;
            if (c >= '0' && c <= '9')
                value = value << 4 | static_cast<uint32_t>(c - '0');
            else if (letter >= 'a' && letter <= 'f')
                value = value << 4 | static_cast<uint32_t>(letter - 'a' + 10);
            else
                return false;
        }
        return true;
    }

    static inline bool word4(const uint8_t* p, const char* word) { return std::memcmp(p, word, 4) == 0; }

    /* Returns true if `true` or `false` is at p, where the first letter is known. It has no branch on the value,
       because values are unpredictable. */
    static inline bool boolean(const uint8_t* p, bool& yes) {
        uint32_t word;
        yes = *p == 't';
        std::memcpy(&word, p + !yes, 4);
        return word == (yes ? 0x65757274u : 0x65736c61u); /* "true" and "alse", the lowest byte first */
    }

    /* Checks and skips any value. */
    inline const uint8_t* skip(const uint8_t* p, int depth) {
        assert(p < end);
        switch (*p) {
            case '"': return string<false>(p + 1, key_text);
            case 't': case 'f': {
                bool yes;
                return SABOT_LIKELY(boolean(p, yes)) ? p + 5 - yes : fail(p, "expected a value");
            }
            case 'n': return word4(p, "null") ? p + 4 : fail(p, "expected a value");
            case '{': return skip_object(p, depth + 1);
            case '[': return skip_list(p, depth + 1);
            default: {
                Number number;
                const uint8_t* wrong_at = p;
                const uint8_t* after = scan_number(p, number, wrong_at);
                if (SABOT_UNLIKELY(after == nullptr)) return fail(wrong_at, wrong_at == p ? "expected a value" : "not a number");
                return after;
            }
        }
    }

    __attribute__((noinline)) const uint8_t* skip_object(const uint8_t* p, int depth) {
        if (depth > MAX_DEPTH) return fail(p, "nested deeper than 512");
        p = space(p + 1);
        if (*p != '}') {
            for (;;) {
                if (*p != '"') return fail(p, "expected a field name in quotes");
                p = string<false>(p + 1, key_text);
                if (p == nullptr) return nullptr;
                p = space(p);
                if (*p != ':') return fail(p, "expected ':'");
                p = skip(space(p + 1), depth);
                if (p == nullptr) return nullptr;
                p = space(p);
                if (*p == '}') break;
                if (*p != ',') return fail(p, "expected ',' or '}'");
                p = space(p + 1);
            }
        }
        return ++p == end ? fail(p, "an object or list is not closed") : p;
    }

    __attribute__((noinline)) const uint8_t* skip_list(const uint8_t* p, int depth) {
        if (depth > MAX_DEPTH) return fail(p, "nested deeper than 512");
        p = space(p + 1);
        if (*p == ']') return p + 1;
        for (;;) {
            p = skip(p, depth);
            if (p == nullptr) return nullptr;
            p = space(p);
            if (*p == ']') return p + 1;
            if (*p != ',') return fail(p, "expected ',' or ']'");
            p = space(p + 1);
        }
    }

    /* Reads one value into `node`, which gets exactly one more row, unless this returns nullptr or sets `mismatch`. */
    inline const uint8_t* value(Node& node, const uint8_t* p, int depth) {
        assert(p < end);
        if (SABOT_UNLIKELY(*p == 'n')) {
            if (!word4(p, "null")) return fail(p, "expected a value");
            if (!node.nullable) return wrong(node, p, depth);
            node.append_null();
            return p + 4;
        }
        switch (node.kind) {
            case Kind::text:
                if (SABOT_UNLIKELY(*p != '"')) return wrong(node, p, depth);
                return text(node, p, depth);
            case Kind::float64: case Kind::float32: {
                Number number;
                const uint8_t* after = scan(p, number);
                if (SABOT_UNLIKELY(after == nullptr)) return no_number(node, p, depth);
                if (node.kind == Kind::float64) {
                    double d;
                    if (SABOT_UNLIKELY(!to_short_double(number, d))) return long_double(node, number, p, depth);
                    node.append(d);
                } else {
                    float f;
                    if (SABOT_UNLIKELY(!to_float(number, f))) return wrong(node, p, depth, "the number is out of range for ");
                    node.append(f);
                }
                return after;
            }
            case Kind::bool_: {
                bool yes;
                if (SABOT_UNLIKELY((*p != 't' && *p != 'f') || !boolean(p, yes))) return wrong(node, p, depth);
                node.append<uint8_t>(yes);
                return p + 5 - yes;
            }
            case Kind::struct_:
                if (*p != '{') return wrong(node, p, depth);
                return object(node, p, depth + 1);
            case Kind::list:
                if (*p != '[') return wrong(node, p, depth);
                return list(node, p, depth + 1);
            case Kind::map:
                if (*p != '{') return wrong(node, p, depth);
                return map(node, p, depth + 1);
            case Kind::timestamp: case Kind::date32: case Kind::date64:
                return time(node, p, depth);
            case Kind::decimal128: case Kind::decimal256:
                return decimal(node, p, depth);
            case Kind::time32: case Kind::time64:
                return time_of_day(node, p, depth);
            case Kind::null_:
                return wrong(node, p, depth);
            default:
                return integer(node, p, depth);
        }
    }

    __attribute__((always_inline)) static inline const uint8_t* scan(const uint8_t* p, Number& number) {
        const uint8_t* unused;
        return scan_number(p, number, unused);
    }

    /* Appends a double of many digits. It is apart, so that it does not change what is inlined for others. */
    __attribute__((noinline)) const uint8_t* long_double(Node& node, const Number& number, const uint8_t* p, int depth) {
        double d;
        if (!nearest(number, d)) return wrong(node, p, depth, "the number is out of range for ");
        if (node.exact && number.whole && !keeps(number, d)) return wrong(node, p, depth, "the number would lose digits in ");
        node.append(d);
        return number.end;
    }

    /* Reports that a number was expected: there is another value, or a syntax error, whose text skip() makes. */
    __attribute__((noinline, cold)) const uint8_t* no_number(const Node& node, const uint8_t* p, int depth) {
        return wrong(node, p, depth);
    }

    inline const uint8_t* text(Node& node, const uint8_t* p, int depth) {
        node.room();
        lone_surrogate = false;
        const uint8_t* after = string<true>(p + 1, node.text);
        if (SABOT_UNLIKELY(after == nullptr)) return nullptr;
        if (SABOT_UNLIKELY(lone_surrogate)) return wrong(node, p, depth, "half of a surrogate pair cannot be written in ");
        node.valid[node.len] = 1;
        node.offsets[++node.len] = static_cast<int32_t>(node.text.len);
        return after;
    }

    inline const uint8_t* integer(Node& node, const uint8_t* p, int depth) {
        Number number;
        const uint8_t* after = scan(p, number);
        if (SABOT_UNLIKELY(after == nullptr)) return no_number(node, p, depth);
        if (SABOT_UNLIKELY(!number.whole)) return wrong(node, p, depth, "a number with a fraction or exponent cannot be ");
        uint64_t size = 0;
        bool fits = magnitude(number, size);
        const bool minus = number.negative;
        auto within = [&](uint64_t most) { return size <= most + minus; };
        const uint64_t signed_value = minus ? ~size + 1 : size;
        switch (node.kind) {
            case Kind::int64:
                if (SABOT_LIKELY(fits && within(INT64_MAX))) return node.append(signed_value), after;
                break;
            case Kind::int32:
                if (fits && within(INT32_MAX)) return node.append(static_cast<uint32_t>(signed_value)), after;
                break;
            case Kind::int16:
                if (fits && within(INT16_MAX)) return node.append(static_cast<uint16_t>(signed_value)), after;
                break;
            case Kind::int8:
                if (fits && within(INT8_MAX)) return node.append(static_cast<uint8_t>(signed_value)), after;
                break;
            default:
                if (minus && size) break;
                if (node.kind == Kind::uint64 && fits) return node.append(size), after;
                if (node.kind == Kind::uint32 && fits && size <= UINT32_MAX) return node.append(static_cast<uint32_t>(size)), after;
                if (node.kind == Kind::uint16 && fits && size <= UINT16_MAX) return node.append(static_cast<uint16_t>(size)), after;
                if (node.kind == Kind::uint8 && fits && size <= UINT8_MAX) return node.append(static_cast<uint8_t>(size)), after;
        }
        return wrong(node, p, depth, "the number is out of range for ");
    }

    /* A copy that is never inlined, for code outside of hot loops: it does not change what compilers inline
       elsewhere. */
    __attribute__((noinline)) static const uint8_t* scan_apart(const uint8_t* p, Number& number) { return scan(p, number); }

    /* Reads a decimal: a number, or a string with a number. No digit is lost. */
    __attribute__((noinline)) const uint8_t* decimal(Node& node, const uint8_t* p, int depth) {
        Number number;
        const uint8_t* after;
        if (*p == '"') {
            value_text.len = 0;
            after = string<true>(p + 1, value_text);
            if (after == nullptr) return nullptr;
            value_text.ensure(16); /* scan_number reads beyond the end */
            std::memset(value_text.data + value_text.len, 0, 16);
            if (scan_apart(value_text.data, number) != value_text.data + value_text.len)
                return wrong(node, p, depth, "the string is not a number for ");
        } else {
            after = scan_apart(p, number);
            if (after == nullptr) return no_number(node, p, depth);
        }
        Whole value;
        if (!to_decimal(number, node.precision, node.scale, value))
            return wrong(node, p, depth, "the number has more digits, before or behind the point, than ");
        node.room();
        node.valid[node.len] = 1;
        const int width = width_of(node.kind);
        std::memcpy(node.data + node.len++ * width, value.words, static_cast<size_t>(width));
        return after;
    }

    /* Reads a time: epoch ms, or ISO 8601 in a string. A number for a date may be days since 1970 too, as Kafka Connect
       writes it: in ms, a whole day other than the first is more than the days of the years 1 to 9999. */
    inline const uint8_t* time(Node& node, const uint8_t* p, int depth) {
        int64_t seconds, nanos;
        bool zoned;
        const uint8_t* after;
        if (*p == '"') {
            value_text.len = 0;
            after = string<true>(p + 1, value_text);
            if (after == nullptr) return nullptr;
            if (!read_iso(value_text.data, value_text.data + value_text.len, seconds, nanos, zoned))
                return wrong(node, p, depth, "the string is not an ISO 8601 time for ");
            if (!zoned && !node.clock.empty()) seconds -= node.ahead_at(seconds);
        } else {
            Number number;
            after = scan(p, number);
            if (after == nullptr) return no_number(node, p, depth);
            if (!number.whole) return wrong(node, p, depth, "a number with a fraction or exponent cannot be ");
            uint64_t size = 0;
            if (!magnitude(number, size) || size > static_cast<uint64_t>(INT64_MAX) + number.negative)
                return wrong(node, p, depth, "the number is out of range for ");
            const int64_t ms = static_cast<int64_t>(number.negative ? ~size + 1 : size);
            if (node.kind == Kind::timestamp && node.per_second == 1000) return node.append(ms), after;
            const int64_t rest = ms % 1000;
            seconds = floor_div(ms, 1000);
            nanos = (rest + (rest < 0 ? 1000 : 0)) * 1000000;
            if (node.kind != Kind::timestamp && ms >= -MOST_DAYS && ms <= MOST_DAYS) seconds = ms * 86400, nanos = 0;
        }
        if (node.kind != Kind::timestamp) {
            if (SABOT_UNLIKELY(seconds % 86400 || nanos))
                return wrong(node, p, depth, *p == '"' ? "the time is not midnight in UTC, which is lost in "
                                                       : "the number is no whole day, in ms or days since 1970, for ");
            const int64_t days = seconds / 86400;
            if (node.kind == Kind::date32) {
                if (days < INT32_MIN || days > INT32_MAX) return wrong(node, p, depth, "the number is out of range for ");
                node.append(static_cast<int32_t>(days));
                return after;
            }
        }
        /* In 128 bits, because the second that contains the least time may begin before it. */
        const __int128 units = static_cast<__int128>(seconds) * node.per_second + nanos / (1000000000 / node.per_second);
        if (units < INT64_MIN || units > INT64_MAX) return wrong(node, p, depth, "the time is out of range for ");
        node.append(static_cast<int64_t>(units));
        return after;
    }

    /* Reads a time of day: hh:mm[:ss[.fraction]] in a string. No digit is lost, and no number is one, since its unit would
       be a guess. */
    __attribute__((noinline)) const uint8_t* time_of_day(Node& node, const uint8_t* p, int depth) {
        if (*p != '"') return wrong(node, p, depth);
        value_text.len = 0;
        const uint8_t* after = string<true>(p + 1, value_text);
        if (after == nullptr) return nullptr;
        const uint8_t* at = value_text.data;
        const uint8_t* const stop = at + value_text.len;
        const int64_t unit = 1000000000 / node.per_second;
        int64_t seconds, nanos;
        bool finer;
        if (!read_clock(at, stop, seconds, nanos, finer) || at != stop)
            return wrong(node, p, depth, "the string is not a time of day (hh:mm:ss) for ");
        if (finer || nanos % unit) return wrong(node, p, depth, "the time has more digits of the second than ");
        const int64_t units = seconds * node.per_second + nanos / unit;
        if (node.kind == Kind::time32)
            node.append(static_cast<int32_t>(units));
        else
            node.append(units);
        return after;
    }

    /* Decodes the list whose '[' is at p. */
    const uint8_t* list(Node& node, const uint8_t* p, int depth) {
        if (SABOT_UNLIKELY(depth > MAX_DEPTH)) return fail(p, "nested deeper than 512");
        node.room();
        Node& child = *node.children[0];
        bool spoiled = false;
        p = space(p + 1);
        if (*p == ']') {
            p++;
        } else {
            for (;;) {
                p = SABOT_LIKELY(!spoiled) ? value(child, p, depth) : skip(p, depth);
                if (SABOT_UNLIKELY(p == nullptr)) return nullptr;
                if (SABOT_UNLIKELY(mismatch)) {
                    spoiled = true; /* `error` keeps the first wrong item */
                    mismatch = false;
                }
                p = space(p);
                if (*p == ',') {
                    p = space(p + 1);
                    continue;
                }
                if (*p != ']') return fail(p, "expected ',' or ']'");
                p++;
                break;
            }
        }
        if (SABOT_UNLIKELY(spoiled)) {
            child.truncate(node.offsets[node.len]);
            mismatch = true;
            return p;
        }
        node.valid[node.len] = 1;
        node.offsets[++node.len] = static_cast<int32_t>(child.len);
        return p;
    }

    /* Decodes the object whose '{' is at p into the entries of a map. Of equal keys the last one counts: an object that has
       some is read once more, without those before it. */
    __attribute__((noinline)) const uint8_t* map(Node& node, const uint8_t* p, int depth) {
        if (depth > MAX_DEPTH) return fail(p, "nested deeper than 512");
        node.room();
        Node& all = *node.children[0];
        const int64_t first = all.len;
        bool spoiled = false;
        const uint8_t* after = entries(all, p, depth, nullptr, spoiled);
        if (after == nullptr) return nullptr;
        if (!spoiled) {
            const std::vector<bool> replaced = replaced_keys(*all.children[0], first);
            if (!replaced.empty()) {
                all.truncate(first);
                after = entries(all, p, depth, &replaced, spoiled);
                if (after == nullptr) return nullptr;
            }
        }
        if (spoiled) {
            all.truncate(first);
            mismatch = true;
            return after;
        }
        node.valid[node.len] = 1;
        node.offsets[++node.len] = static_cast<int32_t>(all.len);
        return after;
    }

    /* Reads the entries of the object whose '{' is at p, but for those that `replaced` names, if it is given. OUT spoiled: true
       if one does not fit, which `error` describes; then the entries are not whole. */
    const uint8_t* entries(Node& all, const uint8_t* p, int depth, const std::vector<bool>* replaced, bool& spoiled) {
        Node& key = *all.children[0];
        Node& item = *all.children[1];
        p = space(p + 1);
        if (*p == '}') {
            p++;
        } else {
            for (size_t number = 0;; number++) {
                if (*p != '"') return fail(p, "expected a field name in quotes");
                const bool kept = !spoiled && !(replaced != nullptr && (*replaced)[number]);
                const uint8_t* const name = p;
                lone_surrogate = false;
                if (kept) key.room();
                p = kept ? string<true>(p + 1, key.text) : string<false>(p + 1, key_text);
                if (p == nullptr) return nullptr;
                if (kept && lone_surrogate) {
                    error.reason = "field " + key.path + ": half of a surrogate pair cannot be written in " + key.type;
                    error.at = name - start;
                    spoiled = true;
                }
                p = space(p);
                if (*p != ':') return fail(p, "expected ':'");
                p = space(p + 1);
                if (kept && !spoiled) {
                    key.valid[key.len] = 1;
                    key.offsets[++key.len] = static_cast<int32_t>(key.text.len);
                    p = value(item, p, depth);
                    if (p == nullptr) return nullptr;
                    spoiled = mismatch; /* `error` keeps the first wrong value */
                    mismatch = false;
                    if (!spoiled) {
                        all.room();
                        all.valid[all.len++] = 1;
                    }
                } else {
                    p = skip(p, depth);
                    if (p == nullptr) return nullptr;
                }
                p = space(p);
                if (*p == ',') {
                    p = space(p + 1);
                    continue;
                }
                if (*p != '}') return fail(p, "expected ',' or '}'");
                p++;
                break;
            }
        }
        return p == end ? fail(p, "an object or list is not closed") : p;
    }

    /* Returns, for each key from number `first` on, whether an equal one comes later, or nothing if all differ. */
    static std::vector<bool> replaced_keys(const Node& key, int64_t first) {
        const int64_t n = key.len - first;
        std::vector<bool> found;
        if (n < 2) return found;
        std::vector<int64_t> order(static_cast<size_t>(n));
        for (int64_t i = 0; i < n; i++) order[static_cast<size_t>(i)] = first + i;
        const auto name = [&](int64_t i) {
            return std::string_view(reinterpret_cast<const char*>(key.text.data) + key.offsets[i],
                                    static_cast<size_t>(key.offsets[i + 1] - key.offsets[i]));
        };
        std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
            const int sign = name(a).compare(name(b));
            return sign < 0 || (sign == 0 && a < b);
        });
        for (size_t i = 1; i < order.size(); i++) {
            if (name(order[i - 1]) != name(order[i])) continue;
            if (found.empty()) found.resize(order.size());
            found[static_cast<size_t>(order[i - 1] - first)] = true;
        }
        return found;
    }
};

/* Returns true if a payload nests objects and lists deeper than MAX_DEPTH. Nearly all payloads have fewer brackets in
   all, so these are counted first, in a loop without branches. */
inline bool is_too_deep(const uint8_t* p, int64_t n) {
    int64_t opened = 0;
    for (int64_t i = 0; i < n; ++i) opened += (p[i] | 0x20) == '{'; /* '[' is '{' without this bit */
    if (opened <= MAX_DEPTH) return false;
    int depth = 0;
    bool in_text = false;
    for (int64_t i = 0; i < n; ++i) {
        const uint8_t c = p[i];
        if (in_text) {
            if (c == '\\') ++i;
            else if (c == '"') in_text = false;
        } else if (c == '"') {
            in_text = true;
        } else if ((c | 0x20) == '{') {
            if (++depth > MAX_DEPTH) return true;
        } else if ((c | 0x20) == '}') {
            --depth;
        }
    }
    return false;
}

}  // namespace sabot
