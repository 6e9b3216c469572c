/* Groups by key, with their accumulators. See keyed.pyi for their meaning; this file defines their layout in memory.

       hash ──top bits──▶ buckets_[ 11 tags and ids ]    a bucket is a cache line; an entry that finds it full goes to the next one
                                         │
                                         ▼
       segments_[id / SEGMENT][id % SEGMENT]             one row per group, all of one width:
           | hash 8 | tick 4 · bits 4 | key cells | more bits | accumulators |

   - id = slot + 1. Row 0 belongs to no group: a key that was not found gets id 0, so that loops need no branch.
   - A tag is 8 bits of the hash; comparing tags first avoids most comparisons of unequal keys. 0 marks a free place. A
     bucket counts the entries that went past it, so a search knows where to end, and removing an entry leaves no
     tombstone (as in Facebook's F14, 2019).
   - A key cell is a word (numbers, in 64 bits) or 16 bytes: the length, then up to INLINE bytes, or the first 4 bytes and
     the offset in the arena.
   - `bits`: one for each number key that is null, then one for each aggregate that has seen a value, then one for each
     that has seen a null (first, last).
   - state_[id]: LIVE, DIRTY. It is a byte of its own, so that marking a group dirty is one store.
   - cut_: the snapshot that another thread reads (keyed_cut.h). All code that writes rows does so under `Writing`, and
     calls `keep` before it changes a group.

   Rows are processed in blocks. First the slots of the whole block are found (index and rows are prefetched); then each
   aggregate runs over the block in a loop of its own, without the rows that do not count for it. Room is made before a
   block, so rows and index do not move while it is processed.

   Nothing here needs the GIL. Functions that make room for groups or keys may throw std::bad_alloc, and std::length_error
   for more than 2^31 groups (`except +`); the functions that keyed.pyx declares without `except +` throw nothing. A sum
   that overflows does not throw: it sets `overflow`, which the caller checks after each call. */
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "arrow/pages.h"
#include "groups/key_hash.h"
#include "groups/keyed_cut.h"
#include "groups/quotient.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "cells of keys are written for little-endian machines");

namespace sabot {

constexpr uint8_t LIVE = 1, DIRTY = 2, LEAVING = 4;
constexpr uint64_t ONES = 0x0101010101010101ULL; /* the LIVE bits of eight states */
static_assert(LIVE == 1 && DIRTY == 2, "where many states are looked at, they are found by shifting");
constexpr int SEGMENT_BITS = 15; /* a segment has 2^SEGMENT_BITS rows */
constexpr int64_t SEGMENT = 1 << SEGMENT_BITS;
constexpr int64_t MAX_GROUPS = 0x7ffffffe;
constexpr int INLINE = 12;
constexpr int AHEAD = 16; /* how many rows ahead memory is prefetched */
constexpr uint32_t NULL_LENGTH = 0xffffffff; /* the length that marks a null in a cell of bytes */

/* The accumulators of each kind, 8 bytes each, in the order of `export`.
   count: count.  sum min max: value.  mean: count, sum (of integers: high, low).
   variance: count, mean, sum of squared distances.  first last: value, order. */
enum class Kind : uint8_t { count, sum, min, max, mean, variance, first, last };
enum class Number : uint8_t { integer, natural, real }; /* the type of the accumulator: int64, uint64, float64 */

static inline Number number_of(Type type) {
    return is_float(type) ? Number::real : is_unsigned(type) ? Number::natural : Number::integer;
}

template <class T>
static inline T get(const uint8_t* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}
template <class T>
static inline void put(uint8_t* at, T value) {
    std::memcpy(at, &value, sizeof value);
}

template <class T>
struct Scattered { /* an allocator for vectors with random access */
    using value_type = T;
    Scattered() = default;
    template <class Other>
    Scattered(const Scattered<Other>&) {}
    T* allocate(size_t n) { return static_cast<T*>(sabot::allocate(n * sizeof(T))); }
    void deallocate(T* memory, size_t) { std::free(memory); }
    template <class Other>
    bool operator==(const Scattered<Other>&) const { return true; }
    template <class Other>
    bool operator!=(const Scattered<Other>&) const { return false; }
};

struct Bit {
    int at = 0;
    uint64_t mask = 0;
    void set(uint8_t* row) const { put(row + at, get<uint64_t>(row + at) | mask); }
    void clear(uint8_t* row) const { put(row + at, get<uint64_t>(row + at) & ~mask); }
    bool in(const uint8_t* row) const { return (get<uint64_t>(row + at) & mask) != 0; }
};

struct KeyColumn {
    Type type;
    int at;        /* the offset of its cell in a row */
    uint64_t null; /* its null bit in the header word; 0 for bytes, where the cell marks a null */
};

struct Aggregate {
    Kind kind;
    int index;     /* its number in the table */
    Type argument; /* `other` if there is no argument, or if only its validity is read */
    Number number;
    int fields;
    int at;   /* the offset of its accumulators in a row */
    Bit seen; /* for sum, min, max, first, last: set if there is a value */
    Bit null; /* for first, last: set if the value is null */
    Type result;
    Type field_types[3];
};

/* The inputs of one aggregate in a call. */
struct Inputs {
    const View* argument = nullptr; /* null if the aggregate has no argument */
    const View* filter = nullptr;   /* null if every row counts */
};

/* The memory for a column of results. */
struct Output {
    void* values = nullptr;       /* numbers or bits; for bytes, the offsets */
    uint8_t* validity = nullptr;
    uint8_t* data = nullptr;      /* the bytes */
    int64_t nulls = 0;
};

/* A column that can be read from the table: key `index`, the result of aggregate `index`, or its accumulator
   `field_index`. */
struct Source {
    enum What : uint8_t { key, result, field } what;
    int index;
    int field_index;
};

/* The addition of a value to an accumulator. The top bit of `wrong` is set, and stays set, when a sum overflows 64
   bits. */
template <class T>
struct AddSum {
    using Value = T;
    static void add(uint8_t* at, T value, uint64_t& wrong) {
        const T old = get<T>(at);
        if constexpr (std::is_floating_point_v<T>) {
            put(at, old + value);
        } else {
            const uint64_t x = static_cast<uint64_t>(old), y = static_cast<uint64_t>(value), sum = x + y;
            put(at, sum);
            if constexpr (std::is_signed_v<T>) wrong |= (x ^ sum) & (y ^ sum);
            else wrong |= (x & y) | ((x | y) & ~sum);
        }
    }
};
template <class T>
struct AddMin {
    using Value = T;
    static void add(uint8_t* at, T value, uint64_t&) {
        const T old = get<T>(at);
        if (value < old || old != old) put(at, value); /* any value replaces NaN */
    }
};
template <class T>
struct AddMax {
    using Value = T;
    static void add(uint8_t* at, T value, uint64_t&) {
        const T old = get<T>(at);
        if (value > old || old != old) put(at, value);
    }
};
template <class T>
struct AddMean {
    using Value = T;
    static void add(uint8_t* at, T value, uint64_t&) {
        put(at, get<int64_t>(at) + 1);
        if constexpr (std::is_floating_point_v<T>) put(at + 8, get<double>(at + 8) + value);
        else add_wide(at + 8, value);
    }
    static void add_wide(uint8_t* at, __int128 value) {
        const unsigned __int128 old = (unsigned __int128)get<uint64_t>(at) << 64 | get<uint64_t>(at + 8);
        const unsigned __int128 sum = old + (unsigned __int128)value;
        put(at, static_cast<uint64_t>(sum >> 64));
        put(at + 8, static_cast<uint64_t>(sum));
    }
};
/* Welford, Note on a method for calculating corrected sums of squares and products (1962). */
struct AddVariance {
    using Value = double;
    static void add(uint8_t* at, double value, uint64_t&) {
        const int64_t count = get<int64_t>(at) + 1;
        const double mean = get<double>(at + 8), delta = value - mean, moved = mean + delta / static_cast<double>(count);
        put(at, count);
        put(at + 8, moved);
        put(at + 16, get<double>(at + 16) + delta * (value - moved));
    }
};

/* Calls body(Op()) with the Op that adds values for the aggregate; not for count, first and last. */
template <class Body>
static inline void with_op(const Aggregate& a, Body body) {
    switch (a.kind) {
        case Kind::sum:
            if (a.number == Number::real) return body(AddSum<double>());
            if (a.number == Number::natural) return body(AddSum<uint64_t>());
            return body(AddSum<int64_t>());
        case Kind::min:
            if (a.number == Number::real) return body(AddMin<double>());
            if (a.number == Number::natural) return body(AddMin<uint64_t>());
            return body(AddMin<int64_t>());
        case Kind::max:
            if (a.number == Number::real) return body(AddMax<double>());
            if (a.number == Number::natural) return body(AddMax<uint64_t>());
            return body(AddMax<int64_t>());
        case Kind::mean:
            if (a.number == Number::real) return body(AddMean<double>());
            if (a.number == Number::natural) return body(AddMean<uint64_t>());
            return body(AddMean<int64_t>());
        default: return body(AddVariance());
    }
}

constexpr int PLACES = 11;
constexpr int MOST_IN_BUCKET = 9; /* when buckets are fuller on average, their number is doubled */

struct alignas(64) Bucket {
    uint32_t ids[PLACES + 1]; /* the last one is always 0, which is no group */
    uint8_t tags[PLACES];
    uint8_t unused;
    uint32_t passed; /* the number of entries that found this bucket full and went on to the next */

    /* Returns a bit mask of the places with this tag. */
    uint32_t places(uint8_t tag) const {
#if defined(__SSE2__)
        const __m128i here = _mm_loadu_si128(reinterpret_cast<const __m128i*>(tags));
        return _mm_movemask_epi8(_mm_cmpeq_epi8(here, _mm_set1_epi8(static_cast<char>(tag)))) & ((1u << PLACES) - 1);
#else
        uint64_t words[2];
        std::memcpy(words, tags, 16);
        uint32_t found = 0;
        for (int w = 0; w < 2; w++) { /* finds zero bytes exactly, without a carry between bytes */
            const uint64_t low = 0x7f7f7f7f7f7f7f7fULL, x = words[w] ^ (0x0101010101010101ULL * tag);
            const uint64_t zero = ~(((x & low) + low) | x | low);
            found |= static_cast<uint32_t>(((zero >> 7) * 0x0102040810204080ULL) >> 56) << (8 * w);
        }
        return found & ((1u << PLACES) - 1);
#endif
    }
};
static_assert(sizeof(Bucket) == 64, "a bucket is a cache line");

static inline uint8_t tag_of(uint64_t hash) {
    const uint8_t tag = static_cast<uint8_t>(hash >> 24);
    return tag + (tag == 0);
}

struct Cell {
    uint64_t low, high; /* a word and nothing; or the length and 4 bytes, then 8 more bytes or the offset in the arena */
    uint32_t length() const { return static_cast<uint32_t>(low); }
    bool is_long() const { return length() > INLINE && length() != NULL_LENGTH; }
};

/* The state of the block of rows being processed. */
struct Block {
    Rows rows;
    uint64_t hash[BLOCK_ROWS];
    uint8_t* at[BLOCK_ROWS];   /* the group's row in the table */
    uint32_t id[BLOCK_ROWS];
    uint8_t ok[BLOCK_ROWS];
    uint64_t nulls[BLOCK_ROWS]; /* the null bits of number keys, as in the header word */
    std::vector<Cell> cells;   /* the cell of key c in row i is at c * BLOCK_ROWS + i */
    bool any_absent = false;   /* true if some id is 0 */

    /* The rows that count for the aggregate being processed. */
    uint8_t* some_at[BLOCK_ROWS];
    int32_t some_rows[BLOCK_ROWS];
    int32_t some_index[BLOCK_ROWS];
    union {
        double reals[BLOCK_ROWS];
        int64_t integers[BLOCK_ROWS];
        uint64_t naturals[BLOCK_ROWS];
    };
    uint64_t raw[BLOCK_ROWS];
    uint8_t valid[BLOCK_ROWS];

    explicit Block(size_t keys) : cells(keys * BLOCK_ROWS) {}

    template <class T>
    const T* values(const View& view, const Rows& of) {
        if constexpr (std::is_same_v<T, double>) return numbers<double>(view, of, reals);
        else if constexpr (std::is_same_v<T, int64_t>) return numbers<int64_t>(view, of, integers);
        else return numbers<uint64_t>(view, of, naturals);
    }
    /* Returns numbers of any type as 64 bits: integers, or the bits of a double. */
    const uint64_t* words(const View& view, const Rows& of) {
        if (!is_float(view.type)) return numbers<uint64_t>(view, of, naturals);
        std::memmove(raw, numbers<double>(view, of, reals), 8 * of.count);
        return raw;
    }
};

class Table {
    friend class Slide;
    friend class Windows;

  public:
    int64_t groups = 0;
    int32_t tick = 0;
    int overflow = -1;          /* the aggregate whose sum overflowed 64 bits, or -1 */
    int64_t overflow_slot = -1; /* the slot of that sum, or -1 if unknown */

    Table() = default;
    Table(const Table&) = delete;
    Table& operator=(const Table&) = delete;
    ~Table() {
        for (uint8_t* segment : segments_) std::free(segment);
    }

    /* Call add_key for all keys, then add_aggregate for all aggregates, then `ready`. */
    void add_key(Type type) { keys_.push_back({type, 0, 0}); }
    void add_aggregate(Kind kind, Type argument, Type result) {
        Aggregate a{};
        a.kind = kind;
        a.index = static_cast<int>(aggregates_.size());
        a.argument = argument;
        a.number = number_of(argument);
        a.result = result;
        const Type sum = a.number == Number::real ? Type::float64 : a.number == Number::natural ? Type::uint64 : Type::int64;
        switch (kind) {
            case Kind::count: set_fields(a, {Type::int64}); break;
            case Kind::sum: set_fields(a, {sum}); break;
            case Kind::min: case Kind::max: set_fields(a, {argument}); break;
            case Kind::mean:
                if (a.number == Number::real) set_fields(a, {Type::int64, Type::float64});
                else set_fields(a, {Type::int64, Type::int64, Type::uint64});
                break;
            case Kind::variance: set_fields(a, {Type::int64, Type::float64, Type::float64}); break;
            default: set_fields(a, {argument, Type::int64});
        }
        aggregates_.push_back(a);
    }
    void ready();
    /* Makes room in the index for `more` groups, so that it does not grow in between. */
    void reserve(int64_t more);

    const std::vector<Aggregate>& aggregates() const { return aggregates_; }
    int64_t slots_used() const { return used_ - 1; }
    int64_t nbytes() const;
    int64_t dirty_groups() const { /* reads eight states at a time: the states after the last group are 0 */
        int64_t count = 0;
        for (int64_t id = 0; id < used_; id += 8) count += ((get<uint64_t>(&state_[id]) >> 1 & ONES) * ONES) >> 56;
        return count;
    }
    bool live(int64_t slot) const { return slot >= 0 && slot < slots_used() && (state_[slot + 1] & LIVE); }

    /* Adds rows. OUT slots[count], may be null. `hashes`: the hashes of all rows, or null. `order`: null for the
       order of arrival. */
    void update(
        const View* keys, const Inputs* inputs, const View* order, const uint64_t* hashes, const int32_t* chosen, int64_t count,
        int32_t* slots
    ) {
        Block block(keys_.size());
        for (int64_t base = 0; base < count; base += BLOCK_ROWS) {
            const Writing writing(*this);
            block.rows = {chosen, base, block_rows(base, count)};
            find_block<true>(block, keys, hashes);
            keep(block);
            touch(block, inputs);
            if (slots) give_slots(block, slots + base);
            for (size_t a = 0; a < aggregates_.size(); a++) add_block(block, aggregates_[a], inputs[a], order);
            arrived_ += block.rows.count;
        }
    }

    void resolve(const View* keys, const uint64_t* hashes, const int32_t* chosen, int64_t count, bool insert, int32_t* slots) {
        Block block(keys_.size());
        for (int64_t base = 0; base < count; base += BLOCK_ROWS) {
            const Writing writing(*this);
            block.rows = {chosen, base, block_rows(base, count)};
            if (insert) find_block<true>(block, keys, hashes);
            else find_block<false>(block, keys, hashes);
            for (int i = 0; i < block.rows.count; i++) set_tick(block.at[i]);
            give_slots(block, slots + base);
        }
    }

    void accumulate(const int32_t* slots, const Inputs* inputs, const View* order, const int32_t* chosen, int64_t count) {
        Block block(0);
        for (int64_t base = 0; base < count; base += BLOCK_ROWS) {
            const Writing writing(*this);
            block.rows = {chosen, base, block_rows(base, count)};
            take_slots(block, slots + base);
            keep(block);
            touch(block, inputs);
            for (size_t a = 0; a < aggregates_.size(); a++) add_block(block, aggregates_[a], inputs[a], order);
            arrived_ += block.rows.count;
        }
    }

    /* Like accumulate, and writes the results of each row's group after that row. OUT one output per aggregate. */
    void running(
        const int32_t* slots, const Inputs* inputs, const View* order, const int32_t* chosen, int64_t count, Output* outputs
    ) {
        Block block(0);
        for (int64_t base = 0; base < count; base += BLOCK_ROWS) {
            const Writing writing(*this);
            block.rows = {chosen, base, block_rows(base, count)};
            take_slots(block, slots + base);
            keep(block);
            for (int i = 0; i < block.rows.count; i++) {
                set_tick(block.at[i]);
                state_[block.id[i]] = LIVE | DIRTY;
            }
            for (size_t a = 0; a < aggregates_.size(); a++) {
                run_block(block, aggregates_[a], inputs[a], order);
                for (int i = 0; i < block.rows.count; i++) block.valid[i] &= block.id[i] != 0;
                Output& out = outputs[a];
                out.nulls += pack(
                    aggregates_[a].result, block.raw, block.valid, block.rows.count, base, out.values, out.validity
                );
            }
            state_[0] = 0;
            arrived_ += block.rows.count;
        }
    }

    /* Merges exported groups. `fields`: the columns of accumulators, in the order of `export`. OUT slots[count]. */
    void merge(const View* keys, const View* fields, const int32_t* chosen, int64_t count, int32_t* slots) {
        Block block(keys_.size());
        std::vector<uint64_t> words(3 * BLOCK_ROWS);
        for (int64_t base = 0; base < count; base += BLOCK_ROWS) {
            const Writing writing(*this);
            block.rows = {chosen, base, block_rows(base, count)};
            find_block<true>(block, keys, nullptr);
            keep(block);
            for (int i = 0; i < block.rows.count; i++) {
                set_tick(block.at[i]);
                state_[block.id[i]] = LIVE | DIRTY;
            }
            give_slots(block, slots + base);
            const View* views = fields;
            for (const Aggregate& a : aggregates_) {
                for (int f = 0; f < a.fields; f++) {
                    const uint64_t* from = block.words(views[f], block.rows);
                    std::memcpy(&words[f * BLOCK_ROWS], from, 8 * block.rows.count);
                }
                each_row(block.rows, [&](int i, int64_t row) {
                    uint64_t values[3];
                    for (int f = 0; f < a.fields; f++) values[f] = words[f * BLOCK_ROWS + i];
                    const bool some = views[a.kind == Kind::first || a.kind == Kind::last ? 1 : 0].valid(row);
                    if (some) merge_one(a, block.at[i], values, !views[0].valid(row));
                });
                views += a.fields;
            }
        }
    }

    /* Merges slot source[i] into into[i], in order, and empties the sources. All slots must hold groups, and into[i]
       != source[i]. */
    void merge_slots(const int32_t* into, const int32_t* source, int64_t count) {
        const Writing writing(*this);
        for (int64_t i = 0; i < count; i++) {
            keep(into[i] + 1);
            keep(source[i] + 1);
            uint8_t* to = row(into[i] + 1);
            uint8_t* from = row(source[i] + 1);
            for (const Aggregate& a : aggregates_) {
                uint64_t values[3];
                for (int f = 0; f < a.fields; f++) values[f] = get<uint64_t>(from + a.at + 8 * f);
                if (a.seen.mask == 0 || a.seen.in(from)) merge_one(a, to, values, a.null.mask && a.null.in(from));
            }
            put(from + 8, get<uint64_t>(from + 8) & (0xffffffffULL | key_nulls_));
            std::memcpy(from + body_at_, image_.data() + body_at_, stride_ - body_at_);
            state_[into[i] + 1] = state_[source[i] + 1] = LIVE | DIRTY;
        }
    }

    /* Returns the size in bytes of a key column of text or bytes for these slots. */
    int64_t key_bytes(int key, const int32_t* slots, int64_t count) const {
        return key_bytes_of(key, count, [&](int64_t i) { return row(slots[i] + 1); });
    }
    int64_t key_bytes(int key, const Copies& copies) const {
        return key_bytes_of(key, copies.count, [&](int64_t i) { return copies.rows.data() + i * stride_; });
    }

    /* Writes the columns of these slots. For bytes, `data` must have room for `key_bytes`. */
    void columns(const std::vector<Source>& sources, const int32_t* slots, int64_t count, Output* outputs) const {
        columns_of(sources, count, arena_.data(), outputs, [&](int64_t i) { return row(slots[i] + 1); });
    }
    void columns(const std::vector<Source>& sources, const Copies& copies, Output* outputs) const {
        columns_of(sources, copies.count, copies.bytes.data(), outputs, [&](int64_t i) {
            return const_cast<uint8_t*>(copies.rows.data()) + i * stride_;
        });
    }

    /* Takes a snapshot: of all groups, or of the dirty groups and of `more` live groups from slot `start` on. All
       groups are clean afterwards. */
    std::shared_ptr<Cut> cut(bool all, int64_t start, int64_t more);
    /* Fills `out` with the next rows of a snapshot of this table, `most` or a few more; none at the end. One thread
       at a time. */
    void read(Cut& cut, int64_t most, Copies& out) const;

  private:
    template <class RowAt>
    int64_t key_bytes_of(int key, int64_t count, RowAt row_at) const {
        int64_t total = 0;
        for (int64_t i = 0; i < count; i++) {
            if (i + AHEAD < count) __builtin_prefetch(row_at(i + AHEAD));
            const uint32_t length = get<uint32_t>(row_at(i) + keys_[key].at);
            total += length == NULL_LENGTH ? 0 : length;
        }
        return total;
    }

    template <class RowAt>
    void columns_of(
        const std::vector<Source>& sources, int64_t count, const uint8_t* arena, Output* outputs, RowAt row_at
    ) const {
        Block block(0);
        std::vector<int64_t> written(sources.size());
        for (size_t s = 0; s < sources.size(); s++)
            if (sources[s].what == Source::key && has_bytes(keys_[sources[s].index].type)) static_cast<int32_t*>(outputs[s].values)[0] = 0;
        for (int64_t base = 0; base < count; base += BLOCK_ROWS) {
            const int n = block_rows(base, count);
            for (int i = 0; i < n; i++) {
                block.at[i] = row_at(base + i);
                __builtin_prefetch(block.at[i]);
            }
            for (size_t s = 0; s < sources.size(); s++) {
                const Source& source = sources[s];
                Output& out = outputs[s];
                if (source.what == Source::key) {
                    const KeyColumn& key = keys_[source.index];
                    if (has_bytes(key.type)) {
                        out.nulls += put_bytes(key, arena, block.at, n, base, out, &written[s]);
                        continue;
                    }
                    for (int i = 0; i < n; i++) {
                        block.raw[i] = get<uint64_t>(block.at[i] + key.at);
                        block.valid[i] = (get<uint64_t>(block.at[i] + 8) & key.null) == 0;
                    }
                    out.nulls += pack(key.type, block.raw, block.valid, n, base, out.values, out.validity);
                } else {
                    const Aggregate& a = aggregates_[source.index];
                    Type type = a.result;
                    if (source.what == Source::result) {
                        for (int i = 0; i < n; i++) block.valid[i] = result_of(a, block.at[i], &block.raw[i]);
                    } else {
                        type = a.field_types[source.field_index];
                        for (int i = 0; i < n; i++) block.valid[i] = field_of(a, source.field_index, block.at[i], &block.raw[i]);
                    }
                    out.nulls += pack(type, block.raw, block.valid, n, base, out.values, out.validity);
                }
            }
        }
    }

  public:
    /* Writes the slots in this state to `out`, which has room for `groups`. Returns their number. */
    int64_t slots_in(uint8_t state, int32_t* out) const {
        int64_t n = 0;
        for (int64_t id = 1; id < used_; id++)
            if ((state_[id] & state) == state) out[n++] = static_cast<int32_t>(id - 1);
        return n;
    }
    int64_t slots_idle(int32_t since, int32_t* out) const {
        int64_t n = 0;
        for (int64_t id = 1; id < used_; id++)
            if (state_[id] && get<int32_t>(row(id) + 8) < since) out[n++] = static_cast<int32_t>(id - 1);
        return n;
    }
    void hashes(const int32_t* slots, int64_t count, uint64_t* out) const {
        for (int64_t i = 0; i < count; i++) out[i] = get<uint64_t>(row(slots[i] + 1));
    }
    void clean() {
        for (int64_t id = 1; id < used_; id++) state_[id] &= LIVE;
    }

    /* Removes groups. All slots must hold groups. Returns false, with nothing changed, if a slot is named twice. */
    bool remove(const int32_t* slots, int64_t count) {
        const Writing writing(*this);
        int64_t marked = 0;
        while (marked < count && !(state_[slots[marked] + 1] & LEAVING)) state_[slots[marked++] + 1] |= LEAVING;
        if (marked < count) {
            while (marked > 0) state_[slots[--marked] + 1] &= LIVE | DIRTY;
            return false;
        }
        try { /* first the steps that may throw */
            free_.reserve(free_.size() + count);
            if (cut_) for (int64_t i = 0; i < count; i++) keep(slots[i] + 1);
        } catch (...) {
            while (marked > 0) state_[slots[--marked] + 1] &= LIVE | DIRTY;
            throw;
        }
        for (int64_t i = 0; i < count; i++) {
            if (i + 2 * AHEAD < count) __builtin_prefetch(row(slots[i + 2 * AHEAD] + 1));
            if (i + AHEAD < count) fetch_bucket(row(slots[i + AHEAD] + 1));
            const uint32_t id = slots[i] + 1;
            const uint8_t* at = row(id);
            for (const KeyColumn& key : keys_) {
                if (!has_bytes(key.type)) continue;
                const Cell cell{get<uint64_t>(at + key.at), 0};
                if (cell.is_long()) arena_dead_ += cell.length();
            }
            erase(get<uint64_t>(at), id);
            state_[id] = 0;
            free_.push_back(id);
        }
        groups -= count;
        if (groups == 0) reset();
        else if (arena_dead_ > 4096 && arena_dead_ > static_cast<int64_t>(arena_.size() / 2)) compact_arena();
        return true;
    }

    void clear() {
        if (groups == 0) return;
        leave_cut();
        if (groups < static_cast<int64_t>(buckets_.size())) { /* few groups in many buckets: remove them one by one */
            for (int64_t id = 1; id < used_; id++)
                if (state_[id]) erase(get<uint64_t>(row(id)), static_cast<uint32_t>(id));
        } else {
            std::memset(static_cast<void*>(buckets_.data()), 0, buckets_.size() * sizeof(Bucket));
        }
        std::fill(state_.begin(), state_.begin() + used_, 0);
        groups = 0;
        reset();
    }

  private:
    std::vector<KeyColumn> keys_;
    std::vector<Aggregate> aggregates_;
    uint64_t key_nulls_ = 0;   /* the mask of all null bits of keys in the header word */
    int body_at_ = 16;         /* the offset of the bits beyond the header word and of the accumulators */
    int end_ = 16;             /* the offset of the end of the accumulators */
    int64_t stride_ = 0;       /* bytes per row */
    std::vector<uint8_t> image_; /* the row of a group without values */
    std::vector<uint8_t*> segments_;
    int64_t capacity_ = 0;     /* rows */
    int64_t used_ = 1;         /* the number of ids given out, including 0 */
    std::vector<uint32_t> free_; /* ids that can be given out again */
    std::vector<uint8_t> state_;
    std::vector<Bucket, Scattered<Bucket>> buckets_;
    int bucket_bits_ = 0;      /* there are 2^bucket_bits_ buckets */
    std::vector<uint8_t> arena_;
    int64_t arena_dead_ = 0;   /* bytes in the arena that belonged to removed groups */
    int64_t arrived_ = 0;      /* rows so far, the order of arrival; never reset, so exported groups count as earlier */

    std::shared_ptr<Cut> cut_; /* the last snapshot, until it is found closed */

    static int block_rows(int64_t base, int64_t count) { return static_cast<int>(std::min<int64_t>(BLOCK_ROWS, count - base)); }

    static void set_fields(Aggregate& a, std::initializer_list<Type> types) {
        a.fields = 0;
        for (Type type : types) a.field_types[a.fields++] = type;
    }

    uint8_t* row(int64_t id) const { return segments_[id >> SEGMENT_BITS] + (id & (SEGMENT - 1)) * stride_; }

    /* The snapshot */

    /* A lock held while rows, arena and segments change, so that no reader of a snapshot sees them change. */
    class Writing {
      public:
        explicit Writing(Table& table) {
            if (!table.cut_) return;
            lock_ = std::unique_lock<std::mutex>(table.cut_->mutex_);
            if (table.cut_->open_) return;
            lock_.unlock();
            table.cut_.reset();
        }

      private:
        std::unique_lock<std::mutex> lock_;
    };
    /* Copies the row if the snapshot still needs it. Call it before the group changes. */
    void keep(uint32_t id) {
        if (cut_ && cut_->has(id)) put_aside(id);
    }
    void keep(const Block& block) {
        if (!cut_) return;
        for (int i = 0; i < block.rows.count; i++)
            if (cut_->has(block.id[i])) put_aside(block.id[i]);
    }
    void put_aside(uint32_t id);
    void leave_cut();
    void copy(Copies& to, const uint8_t* row, const uint8_t* arena) const;

    /* Room */

    void make_room(int64_t more);
    void grow_buckets(int bits);
    void reset() {
        used_ = 1;
        free_.clear();
        arena_.clear();
        arena_dead_ = 0;
    }
    void compact_arena();

    /* The index */

    size_t home(uint64_t hash) const { return hash >> (64 - bucket_bits_); }
    void fetch_bucket(const uint8_t* row) const { __builtin_prefetch(&buckets_[home(get<uint64_t>(row))]); }
    size_t next(size_t bucket) const { return (bucket + 1) & (buckets_.size() - 1); }

    void enter(uint64_t hash, uint32_t id) {
        size_t at = home(hash);
        uint32_t places;
        while ((places = buckets_[at].places(0)) == 0) {
            buckets_[at].passed++;
            at = next(at);
        }
        const int place = __builtin_ctz(places);
        buckets_[at].ids[place] = id;
        buckets_[at].tags[place] = tag_of(hash);
    }
    void erase(uint64_t hash, uint32_t id) {
        const uint8_t tag = tag_of(hash);
        for (size_t at = home(hash);; at = next(at)) {
            Bucket& bucket = buckets_[at];
            for (uint32_t places = bucket.places(tag); places != 0; places &= places - 1) {
                const int place = __builtin_ctz(places);
                if (bucket.ids[place] != id) continue;
                bucket.ids[place] = 0;
                bucket.tags[place] = 0;
                return;
            }
            bucket.passed--;
        }
    }

    /* Keys */

    void load_keys(Block& block, const View* views);

    bool same_bytes(const uint8_t* at, const Cell& cell) const {
        if (get<uint64_t>(at) != cell.low) return false;
        if (!cell.is_long()) return get<uint64_t>(at + 8) == cell.high;
        return std::memcmp(arena_.data() + get<uint64_t>(at + 8), reinterpret_cast<const void*>(cell.high), cell.length()) == 0;
    }
    bool same_key(const uint8_t* at, const Block& block, int i) const {
        if ((get<uint64_t>(at + 8) & key_nulls_) != block.nulls[i]) return false;
        for (size_t k = 0; k < keys_.size(); k++) {
            const Cell& cell = block.cells[k * BLOCK_ROWS + i];
            if (has_bytes(keys_[k].type) ? !same_bytes(at + keys_[k].at, cell) : get<uint64_t>(at + keys_[k].at) != cell.low)
                return false;
        }
        return true;
    }
    uint32_t insert(Block& block, int i);
    uint32_t new_id() {
        if (free_.empty()) return static_cast<uint32_t>(used_++);
        const uint32_t id = free_.back();
        free_.pop_back();
        return id;
    }

    template <bool INSERT>
    uint32_t find_one(Block& block, int i) {
        const uint8_t tag = tag_of(block.hash[i]);
        size_t at = home(block.hash[i]);
        for (size_t left = buckets_.size(); left > 0; left--, at = next(at)) {
            const Bucket& bucket = buckets_[at];
            for (uint32_t places = bucket.places(tag); places != 0; places &= places - 1) {
                const uint32_t id = bucket.ids[__builtin_ctz(places)];
                if (same_key(row(id), block, i)) return id;
            }
            if (bucket.passed == 0) break;
        }
        return INSERT ? insert(block, i) : 0;
    }

    /* Fills block.id and block.at. */
    template <bool INSERT>
    void find_block(Block& block, const View* views, const uint64_t* hashes);

    /* Reads the next rows of another table with the same keys and aggregates, from id `next` on, at most BLOCK_ROWS.
       Returns their number. */
    int next_rows(int64_t* next, uint8_t** rows) const {
        int n = 0;
        int64_t id = *next;
        for (; id < used_ && n < BLOCK_ROWS; id++) {
            rows[n] = row(id);
            n += state_[id] != 0;
        }
        *next = id;
        return n;
    }
    /* Like find_block, for the groups of rows of another table. Missing groups are inserted without values. */
    void find_rows(const Table& other, uint8_t* const* from, int n, Block& block);
    uint32_t find_row(const Table& other, const uint8_t* from);
    bool same_row(const uint8_t* at, const Table& other, const uint8_t* from) const {
        if ((get<uint64_t>(at + 8) ^ get<uint64_t>(from + 8)) & key_nulls_) return false;
        for (const KeyColumn& key : keys_) {
            if (get<uint64_t>(at + key.at) != get<uint64_t>(from + key.at)) return false;
            if (!has_bytes(key.type)) continue;
            Cell cell{get<uint64_t>(from + key.at), get<uint64_t>(from + key.at + 8)};
            if (cell.is_long()) cell.high = reinterpret_cast<uint64_t>(other.arena_.data() + cell.high);
            if (!same_bytes(at + key.at, cell)) return false;
        }
        return true;
    }

    /* Accumulators */

    void give_slots(const Block& block, int32_t* slots) const {
        for (int i = 0; i < block.rows.count; i++) slots[i] = static_cast<int32_t>(block.id[i]) - 1;
    }
    void take_slots(Block& block, const int32_t* slots) const {
        block.any_absent = false;
        for (int i = 0; i < block.rows.count; i++) {
            block.id[i] = static_cast<uint32_t>(slots[i] + 1);
            block.at[i] = row(block.id[i]);
            __builtin_prefetch(block.at[i]);
            block.any_absent |= block.id[i] == 0;
        }
    }
    void set_tick(uint8_t* at) const { put(at + 8, (get<uint64_t>(at + 8) & ~0xffffffffULL) | static_cast<uint32_t>(tick)); }

    /* Counts arrived rows, and sets the `seen` bits of aggregates for which all rows count. */
    void touch(const Block& block, const Inputs* inputs) {
        const uint64_t bits = all_seen(inputs) | static_cast<uint32_t>(tick);
        for (int i = 0; i < block.rows.count; i++) {
            uint8_t* at = block.at[i];
            put(at + 8, (get<uint64_t>(at + 8) & ~0xffffffffULL) | bits);
            state_[block.id[i]] = LIVE | DIRTY;
        }
        state_[0] = 0;
    }
    static bool every_row_counts(const Aggregate& a, const Inputs& input) {
        const bool plain = a.kind != Kind::first && a.kind != Kind::last;
        return plain && input.filter == nullptr && (input.argument == nullptr || !input.argument->nullable());
    }
    uint64_t all_seen(const Inputs* inputs) const {
        uint64_t bits = 0;
        for (size_t a = 0; a < aggregates_.size(); a++)
            if (aggregates_[a].seen.at == 8 && every_row_counts(aggregates_[a], inputs[a])) bits |= aggregates_[a].seen.mask;
        return bits;
    }

    /* Fills block.ok: 1 for each row that counts for the aggregate. Returns false if all rows count. */
    static bool choose(Block& block, const Aggregate& a, const Inputs& input, const View* order) {
        const bool ordered = a.kind == Kind::first || a.kind == Kind::last; /* null counts as a value, but not as an order */
        const View* needed = ordered ? order : input.argument;
        const bool nullable = needed != nullptr && needed->nullable();
        if (!nullable && input.filter == nullptr && !block.any_absent) return false;
        each_row(block.rows, [&](int i, int64_t row) {
            bool ok = block.id[i] != 0;
            if (nullable) ok &= needed->valid(row);
            if (input.filter) ok &= input.filter->valid(row) && input.filter->truth(row);
            block.ok[i] = ok;
        });
        return true;
    }

    void add_block(Block& block, const Aggregate& a, const Inputs& input, const View* order);
    void run_block(Block& block, const Aggregate& a, const Inputs& input, const View* order);

    static void keep(const Aggregate& a, uint8_t* at, uint64_t value, int64_t order, bool null) {
        const int64_t old = get<int64_t>(at + a.at + 8);
        if (a.seen.in(at) && (a.kind == Kind::first ? order >= old : order < old)) return;
        put(at + a.at, value);
        put(at + a.at + 8, order);
        a.seen.set(at);
        if (null) a.null.set(at);
        else a.null.clear(at);
    }

    void merge_one(const Aggregate& a, uint8_t* at, const uint64_t* values, bool null);

    /* Merges the accumulators of from[i] into those of to[i]; no row is in `to` twice. The layouts may differ, see
       Slide. */
    void merge_rows(
        const std::vector<Aggregate>& to_layout, uint8_t* const* to, const std::vector<Aggregate>& from_layout,
        uint8_t* const* from, int n
    );
    void merge_some(const Aggregate& a, uint8_t* const* to, const Aggregate& b, uint8_t* const* from, int n) {
        with_op(a, [&](auto op) {
            using Op = decltype(op);
            uint64_t wrong = 0;
            for (int i = 0; i < n; i++) Op::add(to[i] + a.at, get<typename Op::Value>(from[i] + b.at), wrong);
            if (static_cast<int64_t>(wrong) < 0)
                overflows<Op>(a, to, [&](int i) { return get<typename Op::Value>(from[i] + b.at); }, n);
        });
    }

    /* Finds the group whose sum overflowed. at[i] is a group's row, or a cell of a Slide, to which value_of(i) was
       added. Subtracting the values again, from the last to the first, finds the overflow. Runs once per table: the
       table must not be used after it. */
    template <class Op, class ValueOf>
    [[gnu::cold, gnu::noinline]] void overflows(const Aggregate& a, uint8_t* const* at, ValueOf value_of, int n) {
        if constexpr (std::is_integral_v<typename Op::Value>) {
            if (overflow >= 0) return;
            overflow = a.index;
            for (int i = n - 1; i >= 0; i--) {
                uint64_t wrong = 0;
                put(at[i] + a.at, get<uint64_t>(at[i] + a.at) - static_cast<uint64_t>(value_of(i)));
                uint64_t again = get<uint64_t>(at[i] + a.at);
                Op::add(reinterpret_cast<uint8_t*>(&again), value_of(i), wrong);
                if (static_cast<int64_t>(wrong) < 0) overflow_slot = slot_of(at[i]);
            }
        }
    }
    /* Returns the slot of a row, or -1 if the row is not in the table. */
    int64_t slot_of(const uint8_t* row) const {
        for (size_t s = 0; s < segments_.size(); s++) {
            const int64_t at = row - segments_[s], first = static_cast<int64_t>(s) * SEGMENT;
            if (at >= 0 && at < std::min(SEGMENT, capacity_ - first) * stride_) return first + at / stride_ - 1;
        }
        return -1;
    }

    static bool result_of(const Aggregate& a, const uint8_t* row, uint64_t* raw);
    static bool field_of(const Aggregate& a, int field, const uint8_t* row, uint64_t* raw) {
        *raw = get<uint64_t>(row + a.at + 8 * field);
        switch (a.kind) {
            case Kind::count: return true;
            case Kind::mean: case Kind::variance: return field == 0 || get<int64_t>(row + a.at) > 0;
            case Kind::first: case Kind::last: return a.seen.in(row) && (field == 1 || !a.null.in(row));
            default: return a.seen.in(row);
        }
    }
    int64_t put_bytes(const KeyColumn& key, const uint8_t* arena, uint8_t* const* at, int count, int64_t base, Output& out, int64_t* written) const;
};

/* Layout and growth */

inline void Table::ready() {
    int at = 16, bit = 32;
    for (KeyColumn& key : keys_) {
        key.at = at;
        at += has_bytes(key.type) ? 16 : 8;
        if (!has_bytes(key.type)) {
            if (bit == 64) throw std::invalid_argument("more than 32 key columns of numbers");
            key.null = 1ULL << bit++;
            key_nulls_ |= key.null;
        }
    }
    body_at_ = at;
    int word = 8;
    auto next_bit = [&]() {
        if (bit == 64) {
            word = at;
            at += 8;
            bit = 0;
        }
        return Bit{word, 1ULL << bit++};
    };
    for (Aggregate& a : aggregates_) {
        if (a.kind != Kind::count && a.kind != Kind::mean && a.kind != Kind::variance) a.seen = next_bit();
        if (a.kind == Kind::first || a.kind == Kind::last) a.null = next_bit();
    }
    for (Aggregate& a : aggregates_) {
        a.at = at;
        at += 8 * a.fields;
    }
    end_ = at;
    stride_ = 16; /* up to 64 bytes a power of two, so that a row lies in one cache line */
    while (stride_ < at && stride_ < 64) stride_ *= 2;
    if (stride_ < at) stride_ = (at + 15) / 16 * 16;
    image_.assign(stride_, 0);
    for (const Aggregate& a : aggregates_) {
        uint8_t* value = image_.data() + a.at;
        if (a.kind != Kind::min && a.kind != Kind::max) continue;
        const bool least = a.kind == Kind::min;
        if (a.number == Number::real) put(value, std::numeric_limits<double>::quiet_NaN());
        else if (a.number == Number::natural) put<uint64_t>(value, least ? ~0ULL : 0);
        else put<int64_t>(value, least ? std::numeric_limits<int64_t>::max() : std::numeric_limits<int64_t>::min());
    }
    make_room(0);
}

/* Makes room for `more` groups. If it throws, nothing has changed for the caller. */
inline void Table::make_room(int64_t more) {
    while (groups + more > MOST_IN_BUCKET * static_cast<int64_t>(buckets_.size())) grow_buckets(std::max(3, bucket_bits_ + 1));
    const int64_t needed = used_ + std::max<int64_t>(0, more - static_cast<int64_t>(free_.size()));
    if (needed <= capacity_) return;
    if (needed > MAX_GROUPS) throw std::length_error("more than 2^31 groups in one table");
    while (capacity_ < needed) {
        int64_t rows = SEGMENT; /* the size of a further segment; the first one grows up to it */
        const bool first = capacity_ < SEGMENT;
        if (first) {
            rows = std::max<int64_t>(64, capacity_);
            while (rows < needed && rows < SEGMENT) rows *= 2;
        }
        const int64_t total = first ? rows : capacity_ + SEGMENT;
        state_.resize(total);
        segments_.reserve(segments_.size() + 1);
        uint8_t* segment = static_cast<uint8_t*>(allocate(rows * stride_));
        if (first && !segments_.empty()) {
            std::memcpy(segment, segments_[0], capacity_ * stride_);
            std::free(segments_[0]);
            segments_[0] = segment;
        } else {
            segments_.push_back(segment);
        }
        if (capacity_ == 0) std::memset(segment, 0, stride_);
        capacity_ = total;
    }
}

inline void Table::reserve(int64_t more) {
    int bits = std::max(3, bucket_bits_);
    while (groups + more > MOST_IN_BUCKET * (int64_t(1) << bits)) bits++;
    if (bits > bucket_bits_) grow_buckets(bits);
}

inline void Table::grow_buckets(int bits) {
    std::vector<Bucket, Scattered<Bucket>> more(size_t(1) << bits);
    buckets_.swap(more);
    bucket_bits_ = bits;
    for (int64_t id = 1; id < used_; id++) {
        if (id + AHEAD < used_) fetch_bucket(row(id + AHEAD));
        if (state_[id]) enter(get<uint64_t>(row(id)), static_cast<uint32_t>(id));
    }
}

inline void Table::compact_arena() {
    std::vector<uint8_t> live;
    live.reserve(arena_.size() - arena_dead_);
    for (int64_t id = 1; id < used_; id++) {
        if (!state_[id]) continue;
        for (const KeyColumn& key : keys_) {
            if (!has_bytes(key.type)) continue;
            uint8_t* at = row(id) + key.at;
            const Cell cell{get<uint64_t>(at), get<uint64_t>(at + 8)};
            if (!cell.is_long()) continue;
            put<uint64_t>(at + 8, live.size());
            live.insert(live.end(), arena_.begin() + cell.high, arena_.begin() + cell.high + cell.length());
        }
    }
    arena_.swap(live);
    arena_dead_ = 0;
}

inline int64_t Table::nbytes() const {
    return static_cast<int64_t>(
        sizeof(Table) + buckets_.capacity() * sizeof(Bucket) + capacity_ * stride_ + state_.capacity() + free_.capacity() * 4 + arena_.capacity()
        + segments_.capacity() * sizeof(uint8_t*) + image_.capacity() + keys_.capacity() * sizeof(KeyColumn)
        + aggregates_.capacity() * sizeof(Aggregate)
    );
}

/* The snapshot */

inline void Table::copy(Copies& to, const uint8_t* from, const uint8_t* arena) const {
    to.rows.resize(to.count * stride_); /* changes nothing unless an earlier call threw in between */
    to.rows.insert(to.rows.end(), from, from + stride_);
    for (const KeyColumn& key : keys_) {
        if (!has_bytes(key.type)) continue;
        const Cell cell{get<uint64_t>(from + key.at), get<uint64_t>(from + key.at + 8)};
        if (!cell.is_long()) continue;
        put<uint64_t>(to.rows.data() + to.count * stride_ + key.at + 8, to.bytes.size());
        to.bytes.insert(to.bytes.end(), arena + cell.high, arena + cell.high + cell.length());
    }
    to.count++;
}

/* Copies the row to the kept rows. Called under the cut's lock. */
inline void Table::put_aside(uint32_t id) {
    Cut& cut = *cut_;
    if (cut.kept_rows() == static_cast<int64_t>(cut.kept_.size()) * Cut::KEPT_ROWS) {
        auto piece = std::make_unique<Cut::Kept>();
        piece->rows.rows.reserve(Cut::KEPT_ROWS * stride_);
        cut.kept_.push_back(std::move(piece));
    }
    Cut::Kept& piece = *cut.kept_.back();
    piece.late[piece.rows.count] = id < cut.next_id_;
    copy(piece.rows, row(id), arena_.data());
    cut.bits_[id >> 6] &= ~(1ULL << (id & 63));
}

/* Copies all rows out of the table that the snapshot still needs. */
inline void Table::leave_cut() {
    if (!cut_) return;
    {
        std::lock_guard<std::mutex> hold(cut_->mutex_);
        for (size_t w = 0; w < cut_->bits_.size(); w++)
            while (cut_->bits_[w]) put_aside(static_cast<uint32_t>(w * 64 + __builtin_ctzll(cut_->bits_[w])));
    }
    cut_.reset();
}

inline std::shared_ptr<Cut> Table::cut(bool all, int64_t start, int64_t more) {
    auto cut = std::make_shared<Cut>();
    const int64_t words = (used_ + 63) / 64;
    cut->bits_.resize(words);
    leave_cut();
    auto bits_of = [&](int64_t word, int shift) { /* packs 64 states into 64 bits; states after the last group are 0 */
        uint64_t bits = 0;
        for (int part = 0; part < 8; part++) {
            const uint64_t states = get<uint64_t>(&state_[word * 64 + part * 8]) >> shift & ONES;
            bits |= (states * 0x0102040810204080ULL >> 56) << (8 * part);
        }
        return bits;
    };
    for (int64_t w = 0; w < words; w++) {
        const uint64_t bits = bits_of(w, all ? 0 : 1);
        cut->bits_[w] = bits;
        cut->groups += __builtin_popcountll(bits);
        if (bits == 0) continue;
        for (int part = 0; part < 8; part++) {
            uint8_t* states = &state_[w * 64 + part * 8];
            put(states, get<uint64_t>(states) & ONES);
        }
    }
    int64_t last = 0; /* the id of the last group of the turn */
    bool through = true;
    for (int64_t id = start + 1, w = id / 64; !all && w < words; w++) {
        uint64_t live = bits_of(w, 0);
        if (w == id / 64) live &= ~0ULL << (id & 63);
        uint64_t taken = 0;
        if (__builtin_popcountll(live) <= more) taken = live;
        else for (int64_t left = more; left > 0; left--) taken |= (live ^ taken) & -(live ^ taken);
        more -= __builtin_popcountll(taken);
        if (taken) last = w * 64 + 63 - __builtin_clzll(taken);
        cut->groups += __builtin_popcountll(taken & ~cut->bits_[w]);
        cut->bits_[w] |= taken;
        if (taken != live) {
            through = false;
            break;
        }
    }
    cut->next_slot = through ? 0 : last; /* the slot after `last`: slot = id - 1, plus 1 */
    if (cut->groups) cut_ = cut;
    return cut;
}

inline void Table::read(Cut& cut, int64_t most, Copies& out) const {
    out.clear();
    out.rows.reserve((most + Cut::READ_ROWS + 64) * stride_);
    for (bool some = true; some && out.count < most;) {
        std::lock_guard<std::mutex> hold(cut.mutex_);
        if (!cut.open_) throw std::logic_error("the cut is closed");
        const int64_t enough = out.count + Cut::READ_ROWS;
        const int64_t words = static_cast<int64_t>(cut.bits_.size());
        int64_t w = cut.next_id_ / 64;
        for (const int64_t end = std::min(words, w + Cut::READ_WORDS); w < end && out.count < enough; w++)
            for (uint64_t bits = cut.bits_[w]; bits; bits &= bits - 1) copy(out, row(w * 64 + __builtin_ctzll(bits)), arena_.data());
        cut.next_id_ = w * 64;
        if (w < words) continue;
        const int64_t kept = cut.kept_rows(); /* rows that are kept later were read before, and are marked late */
        for (; cut.next_kept_ < kept && out.count < enough; cut.next_kept_++) {
            const Cut::Kept& piece = *cut.kept_[cut.next_kept_ / Cut::KEPT_ROWS];
            const int64_t index = cut.next_kept_ % Cut::KEPT_ROWS;
            if (!piece.late[index]) copy(out, piece.rows.rows.data() + index * stride_, piece.rows.bytes.data());
        }
        some = cut.next_kept_ < kept;
    }
}

/* Finding groups */

inline void Table::load_keys(Block& block, const View* views) {
    const Rows& rows = block.rows;
    std::memset(block.nulls, 0, sizeof(uint64_t) * rows.count);
    for (size_t k = 0; k < keys_.size(); k++) {
        const KeyColumn& key = keys_[k];
        const View& view = views[k];
        Cell* cells = &block.cells[k * BLOCK_ROWS];
        if (has_bytes(key.type)) {
            const bool nullable = view.nullable();
            each_row(rows, [&](int i, int64_t row) {
                if (nullable && !view.valid(row)) {
                    cells[i] = {NULL_LENGTH, 0};
                    return;
                }
                int64_t size;
                const uint8_t* data = view.bytes_at(row, &size);
                if (__builtin_expect(size <= INLINE, 1)) {
                    const Words words = short_words(data, size, view.end);
                    cells[i] = {static_cast<uint64_t>(size) | words.low << 32, words.low >> 32 | words.high << 32};
                } else {
                    uint32_t prefix;
                    std::memcpy(&prefix, data, 4);
                    cells[i] = {static_cast<uint64_t>(size) | static_cast<uint64_t>(prefix) << 32, reinterpret_cast<uint64_t>(data)};
                }
            });
            continue;
        }
        if (is_float(key.type)) {
            const double* values = block.values<double>(view, rows);
            for (int i = 0; i < rows.count; i++) {
                const double value = values[i];
                cells[i].low = value != value ? 0x7ff8000000000000ULL : bits_of(value == 0.0 ? 0.0 : value);
            }
        } else {
            const uint64_t* values = block.values<uint64_t>(view, rows);
            for (int i = 0; i < rows.count; i++) cells[i].low = values[i];
        }
        if (view.nullable()) {
            each_row(rows, [&](int i, int64_t row) {
                if (view.valid(row)) return;
                cells[i].low = 0;
                block.nulls[i] |= key.null;
            });
        }
    }
}

inline uint32_t Table::insert(Block& block, int i) {
    for (size_t k = 0; k < keys_.size(); k++) { /* first the steps that may throw */
        if (!has_bytes(keys_[k].type)) continue;
        Cell& cell = block.cells[k * BLOCK_ROWS + i];
        if (!cell.is_long()) continue;
        const uint8_t* bytes = reinterpret_cast<const uint8_t*>(cell.high);
        cell.high = arena_.size();
        arena_.insert(arena_.end(), bytes, bytes + cell.length());
    }
    const uint32_t id = new_id();
    uint8_t* to = row(id);
    std::memcpy(to, image_.data(), stride_);
    put(to, block.hash[i]);
    put(to + 8, static_cast<uint64_t>(static_cast<uint32_t>(tick)) | block.nulls[i]);
    for (size_t k = 0; k < keys_.size(); k++) {
        const Cell& cell = block.cells[k * BLOCK_ROWS + i];
        put(to + keys_[k].at, cell.low);
        if (has_bytes(keys_[k].type)) put(to + keys_[k].at + 8, cell.high);
    }
    state_[id] = LIVE | DIRTY;
    enter(block.hash[i], id);
    groups++;
    return id;
}

template <bool INSERT>
inline void Table::find_block(Block& block, const View* views, const uint64_t* hashes) {
    const Rows& rows = block.rows;
    const int n = rows.count;
    if (INSERT) make_room(n);
    else if (buckets_.empty()) make_room(1);
    if (keys_.empty()) std::memset(block.hash, 0, 8 * n);
    else if (hashes) each_row(rows, [&](int i, int64_t row) { block.hash[i] = hashes[row]; });
    else for (size_t k = 0; k < keys_.size(); k++) hash_block(views[k], rows, k > 0, block.hash);

    const Bucket* buckets = buckets_.data();
    const int shift = 64 - bucket_bits_;
    for (int i = 0; i < n; i++) __builtin_prefetch(buckets + (block.hash[i] >> shift));
    load_keys(block, views);
    for (int i = 0; i < n; i++) { /* tries only the first place with the tag in the first bucket, which is nearly always right */
        const uint64_t hash = block.hash[i];
        const Bucket& bucket = buckets[hash >> shift];
        const uint32_t id = bucket.ids[__builtin_ctz(bucket.places(tag_of(hash)) | 1u << PLACES)];
        block.id[i] = id;
        block.ok[i] = id != 0;
        block.at[i] = row(id);
        __builtin_prefetch(block.at[i]);
    }
    for (size_t k = 0; k < keys_.size(); k++) {
        const Cell* cells = &block.cells[k * BLOCK_ROWS];
        const int at = keys_[k].at;
        if (has_bytes(keys_[k].type)) for (int i = 0; i < n; i++) block.ok[i] &= same_bytes(block.at[i] + at, cells[i]);
        else for (int i = 0; i < n; i++) block.ok[i] &= get<uint64_t>(block.at[i] + at) == cells[i].low;
    }
    if (key_nulls_)
        for (int i = 0; i < n; i++) block.ok[i] &= (get<uint64_t>(block.at[i] + 8) & key_nulls_) == block.nulls[i];
    int left = 0; /* rows that need the full search: new keys, also repeated ones, and the rare keys whose tag another key has too */
    for (int i = 0; i < n; i++) {
        block.some_index[left] = i;
        left += !block.ok[i];
    }
    block.any_absent = false;
    for (int j = 0; j < left; j++) {
        const int i = block.some_index[j];
        block.id[i] = find_one<INSERT>(block, i);
        block.at[i] = row(block.id[i]);
        block.any_absent |= block.id[i] == 0;
    }
}

inline void Table::find_rows(const Table& other, uint8_t* const* from, int n, Block& block) {
    make_room(n);
    const Bucket* buckets = buckets_.data();
    const int shift = 64 - bucket_bits_;
    for (int i = 0; i < n; i++) __builtin_prefetch(buckets + ((block.hash[i] = get<uint64_t>(from[i])) >> shift));
    for (int i = 0; i < n; i++) { /* as in find_block */
        const uint64_t hash = block.hash[i];
        const Bucket& bucket = buckets[hash >> shift];
        const uint32_t id = bucket.ids[__builtin_ctz(bucket.places(tag_of(hash)) | 1u << PLACES)];
        block.id[i] = id;
        block.at[i] = row(id);
        __builtin_prefetch(block.at[i], 1);
    }
    for (int i = 0; i < n; i++) {
        if (block.id[i] != 0 && same_row(block.at[i], other, from[i])) continue;
        block.id[i] = find_row(other, from[i]);
        block.at[i] = row(block.id[i]);
    }
}

inline uint32_t Table::find_row(const Table& other, const uint8_t* from) {
    const uint64_t hash = get<uint64_t>(from);
    const uint8_t tag = tag_of(hash);
    size_t at = home(hash);
    for (size_t left = buckets_.size(); left > 0; left--, at = next(at)) {
        const Bucket& bucket = buckets_[at];
        for (uint32_t places = bucket.places(tag); places != 0; places &= places - 1) {
            const uint32_t id = bucket.ids[__builtin_ctz(places)];
            if (same_row(row(id), other, from)) return id;
        }
        if (bucket.passed == 0) break;
    }
    std::vector<uint64_t> places; /* the offsets of long keys in the arena; reserved first, because this may throw */
    for (const KeyColumn& key : keys_) {
        if (!has_bytes(key.type)) continue;
        const Cell cell{get<uint64_t>(from + key.at), get<uint64_t>(from + key.at + 8)};
        if (!cell.is_long()) continue;
        const uint8_t* bytes = other.arena_.data() + cell.high;
        places.push_back(arena_.size());
        arena_.insert(arena_.end(), bytes, bytes + cell.length());
    }
    const uint32_t id = new_id();
    uint8_t* to = row(id);
    std::memcpy(to, from, body_at_);
    std::memcpy(to + body_at_, image_.data() + body_at_, stride_ - body_at_);
    put(to + 8, (get<uint64_t>(from + 8) & key_nulls_) | static_cast<uint32_t>(tick));
    size_t long_keys = 0;
    for (const KeyColumn& key : keys_)
        if (has_bytes(key.type) && Cell{get<uint64_t>(to + key.at), 0}.is_long()) put(to + key.at + 8, places[long_keys++]);
    state_[id] = LIVE | DIRTY;
    enter(hash, id);
    groups++;
    return id;
}

/* Adding rows */

inline void Table::add_block(Block& block, const Aggregate& a, const Inputs& input, const View* order) {
    Rows rows = block.rows;
    uint8_t* const* at = block.at;
    const bool some = choose(block, a, input, order);
    if (some) { /* keeps only the rows that count */
        int n = 0;
        each_row(rows, [&](int i, int64_t row) {
            block.some_at[n] = block.at[i];
            block.some_rows[n] = static_cast<int32_t>(row);
            block.some_index[n] = i;
            n += block.ok[i];
        });
        rows = {block.some_rows, 0, n};
        at = block.some_at;
    }
    const int n = rows.count;
    if (a.kind == Kind::count) {
        for (int i = 0; i < n; i++) put(at[i] + a.at, get<int64_t>(at[i] + a.at) + 1);
        return;
    }
    if (a.kind == Kind::first || a.kind == Kind::last) {
        const uint64_t* values = block.words(*input.argument, rows);
        const bool nullable = input.argument->nullable();
        for (int i = 0; i < n; i++) {
            const int64_t row = rows[i];
            const int64_t when = order ? static_cast<const int64_t*>(order->values)[order->start + row]
                                       : arrived_ + (some ? block.some_index[i] : i);
            keep(a, at[i], values[i], when, nullable && !input.argument->valid(row));
        }
        return;
    }
    with_op(a, [&](auto op) {
        using Op = decltype(op);
        const auto* values = block.values<typename Op::Value>(*input.argument, rows);
        uint64_t wrong = 0;
        for (int i = 0; i < n; i++) Op::add(at[i] + a.at, values[i], wrong);
        if (static_cast<int64_t>(wrong) < 0) overflows<Op>(a, at, [&](int i) { return values[i]; }, n);
    });
    if (a.seen.mask && (some || a.seen.at != 8))
        for (int i = 0; i < n; i++) a.seen.set(at[i]);
}

/* Like add_block, but row by row: block.raw and block.valid become the results after each row. */
inline void Table::run_block(Block& block, const Aggregate& a, const Inputs& input, const View* order) {
    const Rows& rows = block.rows;
    const int n = rows.count;
    if (!choose(block, a, input, order)) std::memset(block.ok, 1, n);
    if (a.kind == Kind::count) {
        for (int i = 0; i < n; i++) {
            const int64_t count = get<int64_t>(block.at[i] + a.at) + block.ok[i];
            put(block.at[i] + a.at, count);
            block.raw[i] = static_cast<uint64_t>(count);
            block.valid[i] = 1;
        }
    } else if (a.kind == Kind::first || a.kind == Kind::last) {
        const uint64_t* values = block.words(*input.argument, rows);
        for (int i = 0; i < n; i++) {
            const int64_t row = rows[i];
            const int64_t when = order ? static_cast<const int64_t*>(order->values)[order->start + row] : arrived_ + i;
            if (block.ok[i]) keep(a, block.at[i], values[i], when, !input.argument->valid(row));
            block.valid[i] = result_of(a, block.at[i], &block.raw[i]);
        }
    } else {
        with_op(a, [&](auto op) {
            using Op = decltype(op);
            const auto* values = block.values<typename Op::Value>(*input.argument, rows);
            for (int i = 0; i < n; i++) {
                if (block.ok[i]) {
                    uint64_t wrong = 0;
                    Op::add(block.at[i] + a.at, values[i], wrong);
                    if (static_cast<int64_t>(wrong) < 0) overflows<Op>(a, &block.at[i], [&](int) { return values[i]; }, 1);
                    a.seen.set(block.at[i]);
                }
                block.valid[i] = result_of(a, block.at[i], &block.raw[i]);
            }
        });
    }
}

/* Merges the accumulators of another group. For variance: Chan, Golub, LeVeque, Updating formulae ... (1979). */
inline void Table::merge_one(const Aggregate& a, uint8_t* row, const uint64_t* values, bool null) {
    uint8_t* at = row + a.at;
    switch (a.kind) {
        case Kind::count: put(at, get<uint64_t>(at) + values[0]); return;
        case Kind::first: case Kind::last: {
            const int64_t order = static_cast<int64_t>(values[1]);
            if (order >= arrived_ && order < std::numeric_limits<int64_t>::max()) arrived_ = order + 1;
            return keep(a, row, values[0], order, null);
        }
        case Kind::mean:
            if (values[0] == 0) return;
            put(at, get<uint64_t>(at) + values[0]);
            if (a.number == Number::real) put(at + 8, get<double>(at + 8) + double_of(values[1]));
            else AddMean<int64_t>::add_wide(at + 8, static_cast<__int128>((unsigned __int128)values[1] << 64 | values[2]));
            return;
        case Kind::variance: {
            const double more = static_cast<double>(static_cast<int64_t>(values[0]));
            const double here = static_cast<double>(get<int64_t>(at));
            if (values[0] == 0) return;
            const double total = here + more, delta = double_of(values[1]) - get<double>(at + 8);
            put(at, get<uint64_t>(at) + values[0]);
            if (here == 0) {
                put(at + 8, values[1]);
                put(at + 16, values[2]);
                return;
            }
            put(at + 8, get<double>(at + 8) + delta * (more / total));
            put(at + 16, get<double>(at + 16) + double_of(values[2]) + delta * delta * (here * more / total));
            return;
        }
        default:
            with_op(a, [&](auto op) {
                using Op = decltype(op);
                typename Op::Value value;
                std::memcpy(&value, values, 8);
                uint64_t wrong = 0;
                Op::add(at, value, wrong);
                if (static_cast<int64_t>(wrong) < 0) overflows<Op>(a, &row, [&](int) { return value; }, 1);
            });
            a.seen.set(row);
    }
}

inline void Table::merge_rows(
    const std::vector<Aggregate>& to_layout, uint8_t* const* to, const std::vector<Aggregate>& from_layout,
    uint8_t* const* from, int n
) {
    uint64_t bits = 0; /* the aggregates' bits in the header word, which nearly always has all of them */
    int to_word = 0, from_word = 0;
    for (size_t k = 0; k < to_layout.size(); k++) {
        const Aggregate& a = to_layout[k];
        const Aggregate& b = from_layout[k];
        switch (a.kind) {
            case Kind::count:
                for (int i = 0; i < n; i++) put(to[i] + a.at, get<uint64_t>(to[i] + a.at) + get<uint64_t>(from[i] + b.at));
                break;
            case Kind::sum: case Kind::min: case Kind::max: /* a group without a value has the neutral element */
                merge_some(a, to, b, from, n);
                if (bits == 0) {
                    to_word = a.seen.at;
                    from_word = b.seen.at;
                }
                if (a.seen.at == to_word) bits |= a.seen.mask;
                else for (int i = 0; i < n; i++) if (b.seen.in(from[i])) a.seen.set(to[i]);
                break;
            default:
                for (int i = 0; i < n; i++) {
                    uint64_t values[3];
                    for (int f = 0; f < a.fields; f++) values[f] = get<uint64_t>(from[i] + b.at + 8 * f);
                    if (b.seen.mask == 0 || b.seen.in(from[i])) merge_one(a, to[i], values, b.null.mask && b.null.in(from[i]));
                }
        }
    }
    if (bits) for (int i = 0; i < n; i++) put(to[i] + to_word, get<uint64_t>(to[i] + to_word) | (get<uint64_t>(from[i] + from_word) & bits));
}

/* Reading results */

inline bool Table::result_of(const Aggregate& a, const uint8_t* row, uint64_t* raw) {
    const uint8_t* at = row + a.at;
    switch (a.kind) {
        case Kind::count: *raw = get<uint64_t>(at); return true;
        case Kind::mean: {
            const int64_t count = get<int64_t>(at);
            if (count <= 0) *raw = bits_of(0.0);
            else if (a.number == Number::real) *raw = bits_of(get<double>(at + 8) / static_cast<double>(count));
            else *raw = bits_of(nearest_mean(static_cast<__int128>((unsigned __int128)get<uint64_t>(at + 8) << 64 | get<uint64_t>(at + 16)), count));
            return count > 0;
        }
        case Kind::variance: {
            const int64_t count = get<int64_t>(at);
            *raw = bits_of(count > 1 ? get<double>(at + 16) / static_cast<double>(count - 1) : 0.0);
            return count > 1;
        }
        case Kind::first: case Kind::last: *raw = get<uint64_t>(at); return a.seen.in(row) && !a.null.in(row);
        default: *raw = get<uint64_t>(at); return a.seen.in(row);
    }
}

inline int64_t Table::put_bytes(
    const KeyColumn& key, const uint8_t* arena, uint8_t* const* at, int count, int64_t base, Output& out, int64_t* written
) const {
    int32_t* offsets = static_cast<int32_t*>(out.values) + base + 1;
    int64_t to = *written, nulls = 0;
    for (int i = 0; i < count; i++) {
        const Cell cell{get<uint64_t>(at[i] + key.at), get<uint64_t>(at[i] + key.at + 8)};
        const bool valid = cell.length() != NULL_LENGTH;
        uint8_t& byte = out.validity[(base + i) >> 3];
        if (((base + i) & 7) == 0) byte = 0;
        byte |= static_cast<uint8_t>(valid << ((base + i) & 7));
        nulls += !valid;
        if (cell.is_long()) {
            std::memcpy(out.data + to, arena + cell.high, cell.length());
            to += cell.length();
        } else if (valid && cell.length()) {
            std::memcpy(out.data + to, at[i] + key.at + 4, cell.length());
            to += cell.length();
        }
        offsets[i] = static_cast<int32_t>(to);
    }
    *written = to;
    return nulls;
}

}  // namespace sabot
