/* Fuzzes the JSON kernel: random schemas, rows that mostly fit them, damaged bytes. For AddressSanitizer and UBSan; see run.sh.

    json_fuzz SECONDS [SEED [ITERATION]]

An iteration is made from (seed, its number) alone; what fails prints both, and ITERATION runs that one again. Each checks:

- a naive twin (`Twin`, a recursive-descent reader of the grammar) accepts a row exactly when a decoder without columns does;
- every way in (payloads, binary arrays of both offset widths with nulls, lines), a fresh decoder and one that has learned
  other rows give the same rows and the same bad rows; lines give bad rows the bounds of their line;
- what comes out is a valid Arrow array, in which every byte can be read, and text is UTF-8;
- columns written as JSON and read back are the same. */
#include <sanitizer/common_interface_defs.h>

#include <cstdio>
#include <cstring>
#include <ctime>
#include <memory>
#include <string>
#include <vector>

#include "text/json_parse.h"
#include "text/json_write.h"

using namespace sabot;
using std::string;
using std::vector;

static uint64_t seed = 1, iteration = 0;

static void say_where() {
    std::fprintf(stderr, "in iteration %llu of seed %llu\n", (unsigned long long)iteration, (unsigned long long)seed);
}

#define CHECK(condition, ...)                                            \
    do {                                                                 \
        if (!(condition)) {                                              \
            std::fprintf(stderr, "wrong: %s (line %d): ", #condition, __LINE__); \
            std::fprintf(stderr, __VA_ARGS__);                           \
            std::fprintf(stderr, "\n");                                  \
            say_where();                                                 \
            std::abort();                                                \
        }                                                                \
    } while (0)

/* ---- chance --------------------------------------------------------------------------------------------------- */

struct Random {
    uint64_t state;
    uint64_t next() { /* splitmix64 */
        uint64_t z = state += 0x9e3779b97f4a7c15ull;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
    size_t below(size_t n) { return static_cast<size_t>(next() % n); }
    bool once_in(size_t n) { return below(n) == 0; }
    template <class T, size_t N>
    T& any(T (&items)[N]) { return items[below(N)]; }
};

/* ---- schemas -------------------------------------------------------------------------------------------------- */

struct Spec {
    string name;
    Kind kind = Kind::struct_;
    bool nullable = true;
    int64_t per_second = 1;
    vector<Spec> children;
};

static const char* const NAMES[] = {"a", "b", "id", "amount", "exactly14chars", "fifteen15chars_", "a name longer than sixteen bytes",
                                    "q\"uote", "back\\slash", "tab\there", "\xd0\xba\xd0\xbb\xd1\x8e\xd1\x87", "", "x"};

static Spec random_spec(Random& random, int depth) {
    Spec spec;
    const size_t pick = random.below(depth < 4 ? 22 : 18);
    if (pick < 17) {
        spec.kind = static_cast<Kind>(pick % 16);
        static const int64_t units[] = {1, 1000, 1000000, 1000000000};
        if (spec.kind == Kind::timestamp) spec.per_second = random.any(units);
        if (spec.kind == Kind::date64) spec.per_second = 1000;
    } else if (pick < 18) {
        spec.kind = Kind::text;
    } else if (pick < 20) {
        spec.kind = Kind::list;
        spec.children.push_back(random_spec(random, depth + 1));
    } else {
        size_t n = random.below(4);
        const size_t first = random.below(sizeof NAMES / sizeof *NAMES);
        for (size_t i = 0; i < n; i++) {
            spec.children.push_back(random_spec(random, depth + 1));
            spec.children.back().name = NAMES[(first + i * 3) % (sizeof NAMES / sizeof *NAMES)];
        }
    }
    spec.nullable = spec.kind == Kind::null_ || !random.once_in(6);
    return spec;
}

static Spec random_schema(Random& random) {
    Spec spec;
    const size_t n = random.below(7), first = random.below(sizeof NAMES / sizeof *NAMES);
    for (size_t i = 0; i < n; i++) {
        spec.children.push_back(random_spec(random, 1));
        spec.children.back().name = NAMES[(first + i) % (sizeof NAMES / sizeof *NAMES)];
    }
    spec.nullable = false;
    return spec;
}

static void add_nodes(Node& node, const Spec& spec) {
    for (const Spec& child : spec.children) {
        Node* made = new Node(static_cast<int>(child.kind), child.nullable, child.per_second, child.name, "type");
        node.add_child(made, child.name);
        add_nodes(*made, child);
    }
}

static void add_columns(Column& column, const Spec& spec) {
    bool first = true;
    for (const Spec& child : spec.children) {
        Column* made = new Column(static_cast<int>(child.kind), true, child.per_second, child.name, child.name, first);
        column.add_child(made);
        add_columns(*made, child);
        first = false;
    }
}

/* False where the written form, epoch ms, does not hold the whole value. */
static bool round_trips(const Spec& spec) {
    if (spec.kind == Kind::timestamp && spec.per_second > 1000) return false;
    for (const Spec& child : spec.children)
        if (!round_trips(child)) return false;
    return true;
}

/* ---- rows ----------------------------------------------------------------------------------------------------- */

static const char* const NUMBERS[] = {
    "0", "-0", "1", "-1", "127", "128", "-128", "-129", "255", "256", "32767", "32768", "65535", "65536", "2147483647", "2147483648",
    "-2147483648", "-2147483649", "4294967295", "4294967296", "9223372036854775807", "9223372036854775808", "-9223372036854775808",
    "-9223372036854775809", "18446744073709551615", "18446744073709551616", "99999999999999999999", "1.5", "-0.0", "1e5", "1E-5", "1e308",
    "1e309", "-1e400", "5e-324", "2e-324", "1e-400", "2.2250738585072011e-308", "1.7976931348623158e308", "0.1", "12345678.12345678",
    "123456789012345678901234567890.5", "3.4028235e38", "3.4028236e38", "1e-46", "1.00000017881393432617187499", "33.33", "1700000000000",
    "0.000000000000000000000000000000000000000000000001e48", "-9223372036854775807", "9223372036854775001", "9007199254740993", "1e22", "1e23", "8.5e-23", "86400000", "-1"};
static const char* const TIMES[] = {"1970-01-01", "2024-02-29T23:59:59.999999999Z", "0001-01-01T00:00:00+14:00", "9999-12-31 23:59:59",
                                    "2023-02-29", "2024-01-01T00:00:00.1234567890123-0130", "2024-13-01", "2024-01-01T24:00:00", "1969-12-31T23:59:59.5"};
static const char* const PIECES[] = {"a", "text of more than sixteen bytes without any escape", "\\n", "\\\"", "\\\\", "\\/", "\\u00e9",
                                     "\\ud83d\\ude00", "\\ud83d", "\\ude00", "\\u0000", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\x7f", " ",
                                     "0123456789abcde", "0123456789abcdef"};
static const char* const DAMAGE[] = {"{", "}", "[", "]", "\"", "\\", ",", ":", "null", "true", "false", "NaN", "0", "-", ".", "e", "E+", " ", "\t", "\r",
                                     "\x01", "\x1f", "\x80", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xff", "\\u", "\\uD800", "\\uDC00", "\xef\xbb\xbf",
                                     "\"a\":1,", "{\"a\":", "}}", "]]", "9999999999", "\\x"};

struct Maker {
    Random& random;
    string out;

    void space() {
        static const char* const spaces[] = {" ", "  ", "\t", "\r", " \r\t "};
        if (random.once_in(12)) out += random.any(spaces);
    }
    void text(const string& raw) { /* a string holding `raw` */
        out += '"';
        for (const char c : raw) {
            char escaped[8];
            const unsigned char u = static_cast<unsigned char>(c);
            if (u < 0x20 || c == '"' || c == '\\' || (u < 0x80 && random.once_in(30))) {
                std::snprintf(escaped, sizeof escaped, "\\u%04X", u);
                out += escaped;
            } else {
                out += c;
            }
        }
        out += '"';
    }
    void pieces() {
        out += '"';
        for (size_t n = random.below(5); n > 0; n--) out += random.any(PIECES);
        out += '"';
    }
    void number() {
        if (random.once_in(3)) {
            out += random.any(NUMBERS);
            return;
        }
        out += std::to_string(static_cast<int64_t>(random.next()) >> random.below(64));
        if (random.once_in(3)) out += "." + std::to_string(random.next() >> random.below(64));
        if (random.once_in(6)) out += "e" + std::to_string(static_cast<int64_t>(random.below(700)) - 350);
    }
    void anything(int depth) {
        switch (random.below(depth < 5 ? 8 : 6)) {
            case 0: out += "null"; break;
            case 1: out += "true"; break;
            case 2: out += "false"; break;
            case 3: pieces(); break;
            case 4: case 5: number(); break;
            case 6:
                out += '[';
                for (size_t i = 0, n = random.below(4); i < n; i++) {
                    if (i) out += ',';
                    space();
                    anything(depth + 1);
                    space();
                }
                out += ']';
                break;
            default:
                out += '{';
                for (size_t i = 0, n = random.below(4); i < n; i++) {
                    if (i) out += ',';
                    space();
                    text(random.any(NAMES));
                    space();
                    out += ':';
                    space();
                    anything(depth + 1);
                }
                space();
                out += '}';
        }
    }
    void value(const Spec& spec, int depth) {
        if (random.once_in(40)) return anything(depth);
        if (random.once_in(12)) {
            out += "null";
            return;
        }
        switch (spec.kind) {
            case Kind::null_: out += "null"; break;
            case Kind::bool_: out += random.once_in(2) ? "true" : "false"; break;
            case Kind::text: pieces(); break;
            case Kind::timestamp: case Kind::date32: case Kind::date64:
                if (random.once_in(2)) return number();
                out += '"';
                out += random.any(TIMES);
                out += '"';
                break;
            case Kind::list:
                out += '[';
                for (size_t i = 0, n = random.below(5); i < n; i++) {
                    if (i) out += ',';
                    space();
                    value(spec.children[0], depth + 1);
                }
                space();
                out += ']';
                break;
            case Kind::struct_: object(spec, depth + 1); break;
            case Kind::float32: case Kind::float64: number(); break;
            default:
                if (random.once_in(8)) return number();
                out += std::to_string(random.below(128));
        }
    }
    void object(const Spec& spec, int depth) {
        out += '{';
        bool first = true;
        auto field = [&](const string& name, const Spec* of) {
            if (!first) out += ',';
            first = false;
            space();
            text(name);
            space();
            out += ':';
            space();
            if (of) value(*of, depth);
            else anything(depth);
            space();
        };
        const size_t shift = random.once_in(4) ? random.below(8) : 0;
        for (size_t i = 0; i < spec.children.size(); i++) {
            const Spec& child = spec.children[(i + shift) % spec.children.size()];
            if (random.once_in(15)) continue;
            if (random.once_in(20)) field(child.name, random.once_in(2) ? &child : nullptr);
            field(child.name, &child);
            if (random.once_in(8)) field(random.once_in(2) ? random.any(NAMES) : "unknown", nullptr);
        }
        out += '}';
    }
};

static void damage(Random& random, string& row) {
    for (size_t n = random.below(4); n > 0; n--) {
        const size_t at = random.below(row.size() + 1), rest = row.size() - at;
        const size_t length = rest ? random.below(rest < 20 ? rest : 20) + 1 : 0;
        switch (random.below(7)) {
            case 0: row.insert(at, random.any(DAMAGE)); break;
            case 1: row.erase(at, length); break;
            case 2: row.insert(random.below(row.size() + 1), row.substr(at, length)); break;
            case 3: if (rest) row[at] = static_cast<char>(random.next()); break;
            case 4: if (rest) row[at] = static_cast<char>(row[at] ^ (1 << random.below(8))); break;
            case 5: row.resize(at); break;
            default: row.replace(at, length, random.any(DAMAGE));
        }
    }
    if (random.once_in(200)) { /* deep */
        const size_t depth = 500 + random.below(30);
        row = "{\"a\":" + string(depth, '[') + string(depth, ']') + "}";
    }
    for (char& c : row)
        if (c == '\n') c = ' '; /* so that the same rows can be lines */
}

/* ---- the naive twin ------------------------------------------------------------------------------------------- */

/* Reads RFC 8259 the slow way: one object, at most 512 deep, UTF-8, after an optional byte order mark. */
struct Twin {
    const string& s;
    size_t at = 0;

    int peek() const { return at < s.size() ? static_cast<unsigned char>(s[at]) : -1; }
    bool take(char c) { return peek() == static_cast<unsigned char>(c) && (at++, true); }
    bool take(const char* word) { return s.compare(at, std::strlen(word), word) == 0 && (at += std::strlen(word), true); }
    void space() {
        while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') at++;
    }
    bool digits() {
        const size_t from = at;
        while (peek() >= '0' && peek() <= '9') at++;
        return at > from;
    }
    bool number() {
        take('-');
        if (!take('0') && !digits()) return false;
        if (take('.') && !digits()) return false;
        if (take('e') || take('E')) {
            if (!take('+')) take('-');
            return digits();
        }
        return true;
    }
    bool continuation(int low, int high) { return peek() >= low && peek() <= high && (at++, true); }
    bool text() {
        if (!take('"')) return false;
        while (!take('"')) {
            const int c = peek();
            at++;
            if (c < 0x20) return false;
            if (c == '\\') {
                const int e = peek();
                at++;
                if (e == 'u') {
                    for (int i = 0; i < 4; i++, at++)
                        if (peek() < 0 || !std::isxdigit(peek())) return false;
                } else if (e < 0 || !std::strchr("\"\\/bfnrt", e) || e == 0) {
                    return false;
                }
            } else if (c >= 0x80) { /* table 3-7 of the Unicode standard */
                bool good = false;
                if (c >= 0xC2 && c <= 0xDF) good = continuation(0x80, 0xBF);
                else if (c == 0xE0) good = continuation(0xA0, 0xBF) && continuation(0x80, 0xBF);
                else if (c == 0xED) good = continuation(0x80, 0x9F) && continuation(0x80, 0xBF);
                else if (c >= 0xE1 && c <= 0xEF) good = continuation(0x80, 0xBF) && continuation(0x80, 0xBF);
                else if (c == 0xF0) good = continuation(0x90, 0xBF) && continuation(0x80, 0xBF) && continuation(0x80, 0xBF);
                else if (c >= 0xF1 && c <= 0xF3) good = continuation(0x80, 0xBF) && continuation(0x80, 0xBF) && continuation(0x80, 0xBF);
                else if (c == 0xF4) good = continuation(0x80, 0x8F) && continuation(0x80, 0xBF) && continuation(0x80, 0xBF);
                if (!good) return false;
            }
        }
        return true;
    }
    bool value(int depth) {
        if (depth > 512) return false;
        switch (peek()) {
            case '"': return text();
            case 't': return take("true");
            case 'f': return take("false");
            case 'n': return take("null");
            case '[': case '{': {
                const bool object = s[at++] == '{';
                const char close = object ? '}' : ']';
                space();
                if (take(close)) return true;
                for (;;) {
                    space();
                    if (object) {
                        if (!text()) return false;
                        space();
                        if (!take(':')) return false;
                        space();
                    }
                    const int c = peek();
                    if (!value(depth + (c == '[' || c == '{'))) return false;
                    space();
                    if (take(close)) return true;
                    if (!take(',')) return false;
                }
            }
            default: return number();
        }
    }
    bool row() {
        take("\xef\xbb\xbf");
        space();
        if (peek() != '{' || !value(1)) return false;
        space();
        return at == s.size();
    }
};

/* ---- what comes out ------------------------------------------------------------------------------------------- */

static bool there(const ArrowArray* array, int64_t i) {
    const uint8_t* bits = array->n_buffers ? static_cast<const uint8_t*>(array->buffers[0]) : nullptr;
    return !bits || (bits[i >> 3] >> (i & 7) & 1);
}

static volatile uint64_t seen; /* so that reading every byte is not optimised away */

/* `parents` says which rows have a parent; null: all. */
static void verify(const ArrowArray* array, const Spec& spec, const vector<bool>* parents) {
    const int64_t n = array->length;
    CHECK(array->offset == 0 && array->release, "offset");
    if (spec.kind == Kind::null_) {
        CHECK(array->null_count == n, "null_count");
        return;
    }
    int64_t nulls = 0;
    vector<bool> valid(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; i++) {
        valid[static_cast<size_t>(i)] = there(array, i);
        nulls += !there(array, i);
        CHECK(spec.nullable || there(array, i) || (parents && !(*parents)[static_cast<size_t>(i)]), "a null in a column without nulls");
    }
    CHECK(nulls == array->null_count, "%lld nulls, null_count %lld", (long long)nulls, (long long)array->null_count);
    const int width = width_of(spec.kind);
    if (width) {
        const int64_t bytes = spec.kind == Kind::bool_ ? (n + 7) / 8 : n * width;
        const uint8_t* data = static_cast<const uint8_t*>(array->buffers[1]);
        CHECK(data, "a null buffer");
        for (int64_t i = 0; i < bytes; i++) seen = seen + data[i];
    }
    if (spec.kind == Kind::text || spec.kind == Kind::list) {
        const int32_t* offsets = static_cast<const int32_t*>(array->buffers[1]);
        CHECK(offsets && offsets[0] == 0, "offsets");
        for (int64_t i = 0; i < n; i++) CHECK(offsets[i] <= offsets[i + 1], "offsets fall");
        if (spec.kind == Kind::list) {
            CHECK(array->children[0]->length == offsets[n], "items");
            verify(array->children[0], spec.children[0], nullptr);
            return;
        }
        const char* text = static_cast<const char*>(array->buffers[2]);
        CHECK(text, "a null buffer");
        for (int64_t i = 0; i < n; i++) {
            string quoted = "\"";
            for (int32_t k = offsets[i]; k < offsets[i + 1]; k++)
                if (static_cast<unsigned char>(text[k]) >= 0x80) quoted += text[k];
            quoted += '"';
            Twin twin{quoted};
            CHECK(twin.text(), "text is not UTF-8");
        }
    }
    if (spec.kind == Kind::struct_)
        for (size_t i = 0; i < spec.children.size(); i++) {
            CHECK(array->children[i]->length == n, "a child is longer or shorter");
            if (parents)
                for (size_t k = 0; k < valid.size(); k++) valid[k] = valid[k] && (*parents)[k];
            verify(array->children[i], spec.children[i], &valid);
        }
}

static bool equal(const ArrowArray* a, int64_t i, const ArrowArray* b, int64_t k, const Spec& spec) {
    if (spec.kind == Kind::null_) return true;
    if (there(a, i) != there(b, k)) return false;
    if (!there(a, i)) return true;
    const int width = width_of(spec.kind);
    if (spec.kind == Kind::bool_) {
        auto bit = [](const ArrowArray* of, int64_t at) { return static_cast<const uint8_t*>(of->buffers[1])[at >> 3] >> (at & 7) & 1; };
        return bit(a, i) == bit(b, k);
    }
    if (width)
        return std::memcmp(static_cast<const uint8_t*>(a->buffers[1]) + i * width, static_cast<const uint8_t*>(b->buffers[1]) + k * width,
                           static_cast<size_t>(width)) == 0;
    if (spec.kind == Kind::struct_) {
        for (size_t c = 0; c < spec.children.size(); c++)
            if (!equal(a->children[c], i, b->children[c], k, spec.children[c])) return false;
        return true;
    }
    const int32_t* from = static_cast<const int32_t*>(a->buffers[1]) + i;
    const int32_t* to = static_cast<const int32_t*>(b->buffers[1]) + k;
    if (from[1] - from[0] != to[1] - to[0]) return false;
    if (spec.kind == Kind::text)
        return std::memcmp(static_cast<const uint8_t*>(a->buffers[2]) + from[0], static_cast<const uint8_t*>(b->buffers[2]) + to[0],
                           static_cast<size_t>(from[1] - from[0])) == 0;
    for (int32_t c = 0; c < from[1] - from[0]; c++)
        if (!equal(a->children[0], from[0] + c, b->children[0], to[0] + c, spec.children[0])) return false;
    return true;
}

struct Result {
    ArrowArray batch{};
    vector<BadRow> bad;
    Result() = default;
    Result(const Result&) = delete;
    ~Result() {
        if (batch.release) batch.release(&batch);
    }
};

static void same(const Result& a, const Result& b, const Spec& spec, const char* what) {
    CHECK(a.bad.size() == b.bad.size(), "%s: %zu bad rows, not %zu", what, b.bad.size(), a.bad.size());
    for (size_t i = 0; i < a.bad.size(); i++)
        CHECK(a.bad[i].row == b.bad[i].row && a.bad[i].reason == b.bad[i].reason, "%s: row %lld, %s; row %lld, %s", what, (long long)a.bad[i].row,
              a.bad[i].reason.c_str(), (long long)b.bad[i].row, b.bad[i].reason.c_str());
    CHECK(a.batch.length == b.batch.length, "%s: rows", what);
    for (int64_t i = 0; i < a.batch.length; i++) CHECK(equal(&a.batch, i, &b.batch, i, spec), "%s: good row %lld", what, (long long)i);
}

/* ---- one iteration -------------------------------------------------------------------------------------------- */

/* Exactly as many bytes as there are, so that reading behind them is seen. */
struct Block {
    std::unique_ptr<uint8_t[]> bytes;
    explicit Block(const string& s) : bytes(new uint8_t[s.size()]) { std::memcpy(bytes.get(), s.data(), s.size()); }
};

template <class Offset>
static void by_array(Decoder& decoder, const vector<string>& rows, const vector<bool>& nulls, size_t before, Result& out) {
    string text(before, 'x'), bits((rows.size() + before) / 8 + 1, '\0');
    std::unique_ptr<Offset[]> offsets(new Offset[rows.size() + 1]);
    offsets[0] = static_cast<Offset>(before);
    for (size_t i = 0; i < rows.size(); i++) {
        text += rows[i];
        offsets[i + 1] = static_cast<Offset>(text.size());
        if (!nulls[i]) bits[(before + i) / 8] = static_cast<char>(bits[(before + i) / 8] | 1 << (before + i) % 8);
    }
    Block data(text), validity(bits);
    decoder.rows(offsets.get(), data.bytes.get(), validity.bytes.get(), static_cast<int64_t>(before), static_cast<int64_t>(rows.size()),
                 &out.batch, out.bad);
}

static uint64_t rows_read = 0, rows_bad = 0;

static void check_batch(Random& random, const Spec& schema, Decoder& learned, vector<string>& rows) {
    vector<bool> nulls(rows.size());
    vector<Block> blocks;
    vector<const uint8_t*> starts;
    vector<int64_t> lengths;
    for (size_t i = 0; i < rows.size(); i++) {
        nulls[i] = random.once_in(30);
        blocks.emplace_back(rows[i]);
        starts.push_back(nulls[i] ? nullptr : blocks.back().bytes.get());
        lengths.push_back(static_cast<int64_t>(rows[i].size()));
    }
    const int64_t n = static_cast<int64_t>(rows.size());

    Decoder fresh;
    add_nodes(fresh.root, schema);
    Result first, again, by_32, by_64;
    fresh.payloads(starts.data(), lengths.data(), n, &first.batch, first.bad);
    verify(&first.batch, schema, nullptr);
    CHECK(first.batch.length + static_cast<int64_t>(first.bad.size()) == n, "rows are lost");
    rows_read += rows.size();
    rows_bad += first.bad.size();
    learned.payloads(starts.data(), lengths.data(), n, &again.batch, again.bad);
    verify(&again.batch, schema, nullptr);
    same(first, again, schema, "a decoder that has learned");
    by_array<int32_t>(learned, rows, nulls, random.below(10), by_32);
    same(first, by_32, schema, "a binary array");
    by_array<int64_t>(fresh, rows, nulls, random.below(10), by_64);
    same(first, by_64, schema, "a large binary array");

    Decoder bare; /* no columns: nothing but the grammar counts */
    Result checked;
    bare.payloads(starts.data(), lengths.data(), n, &checked.batch, checked.bad);
    size_t bad = 0;
    for (size_t i = 0; i < rows.size(); i++) {
        Twin twin{rows[i]};
        const bool good = !nulls[i] && twin.row();
        const bool refused = bad < checked.bad.size() && checked.bad[bad].row == static_cast<int64_t>(i);
        CHECK(good != refused, "the twin says %d: %s", good, rows[i].c_str());
        bad += refused;
    }

    string text;
    vector<size_t> begins;
    vector<string> unbroken;
    for (size_t i = 0; i < rows.size(); i++)
        if (!nulls[i] && rows[i].find_first_not_of(" \t\r") != string::npos) {
            begins.push_back(text.size());
            unbroken.push_back(rows[i]);
            text += rows[i] + (random.once_in(9) ? "\n \r\n" : random.once_in(5) ? "\r\n" : "\n");
        }
    if (random.once_in(2) && !text.empty()) text.pop_back();
    Block data(text);
    Result by_lines, by_rows;
    learned.lines(data.bytes.get(), static_cast<int64_t>(text.size()), &by_lines.batch, by_lines.bad);
    by_array<int32_t>(fresh, unbroken, vector<bool>(unbroken.size()), 0, by_rows);
    verify(&by_lines.batch, schema, nullptr);
    same(by_rows, by_lines, schema, "lines");
    for (const BadRow& row : by_lines.bad) {
        const size_t i = static_cast<size_t>(row.row);
        CHECK(row.start == static_cast<int64_t>(begins[i]), "the start of a bad line");
        CHECK(row.end >= row.start && row.end <= static_cast<int64_t>(text.size()), "the end of a bad line");
        string line = text.substr(begins[i], static_cast<size_t>(row.end - row.start)), whole = unbroken[i];
        if (line != whole && whole.back() == '\r') whole.pop_back();
        CHECK(line == whole, "a bad line is %s, not %s", line.c_str(), whole.c_str());
    }

    Column root(static_cast<int>(Kind::struct_), false, 1, "", "", true);
    add_columns(root, schema);
    Result written;
    string path;
    if (!write_rows(root, &first.batch, &written.batch, path)) return; /* a time beyond epoch ms */
    const int32_t* offsets = static_cast<const int32_t*>(written.batch.buffers[1]);
    const uint8_t* json = static_cast<const uint8_t*>(written.batch.buffers[2]);
    Result back;
    learned.rows(offsets, json, static_cast<const uint8_t*>(nullptr), 0, written.batch.length, &back.batch, back.bad);
    if (round_trips(schema)) {
        first.bad.clear();
        same(first, back, schema, "written and read back");
    }
}

static void iterate() {
    Random random{seed * 0x2545f4914f6cdd1dull + iteration * 0x9e3779b97f4a7c15ull};
    for (int i = 0; i < 3; i++) random.next();
    const Spec schema = random_schema(random);
    Decoder learned;
    add_nodes(learned.root, schema);
    for (size_t batches = 1 + random.below(3); batches > 0; batches--) {
        const bool hurt = !random.once_in(4);
        vector<string> rows(random.below(20));
        for (string& row : rows) {
            Maker maker{random, {}};
            maker.space();
            maker.object(schema, 1);
            maker.space();
            row = maker.out;
            if (hurt && random.once_in(2)) damage(random, row);
        }
        check_batch(random, schema, learned, rows);
    }
}

/* No text passes Arrow's 32-bit offsets, however the buffer has grown before. */
static void check_two_gigabytes() {
    for (const int64_t held : {int64_t{1500000000}, MAX_OFFSET - 100}) {
        Bytes bytes; /* as if it held so much; the memory is asked for and never touched */
        bytes.len = bytes.cap = held;
        bytes.ensure(50);
        bytes.ensure(MAX_OFFSET - held);
        bool refused = false;
        try {
            bytes.ensure(MAX_OFFSET - held + 1);
        } catch (const std::overflow_error&) {
            refused = true;
        }
        CHECK(refused, "text beyond 2 GiB");
    }
}

int main(int argc, char** argv) {
    const double seconds = argc > 1 ? std::strtod(argv[1], nullptr) : 5;
    if (argc > 2) seed = std::strtoull(argv[2], nullptr, 10);
    __sanitizer_set_death_callback(say_where);
    check_two_gigabytes();
    if (argc > 3) {
        iteration = std::strtoull(argv[3], nullptr, 10);
        iterate();
        return 0;
    }
    const auto stop = std::clock() + static_cast<std::clock_t>(seconds * CLOCKS_PER_SEC);
    do {
        iterate();
        iteration++;
    } while (std::clock() < stop);
    std::printf("{\"seed\": %llu, \"iterations\": %llu, \"rows\": %llu, \"bad_rows\": %llu}\n", (unsigned long long)seed, (unsigned long long)iteration,
                (unsigned long long)rows_read, (unsigned long long)rows_bad);
}
