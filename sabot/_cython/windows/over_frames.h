/* Aggregates over the last rows of each key slot, limited by number or by time. See over.pyi.

       ring:   oldest ▏ front rows ▏ back rows ▕ newest
       front:  for each front row, the merged accumulator of it and all front rows after it; that of the oldest row is on top
       back:   the merged accumulator of the back rows

   A new row is added to the back, and the oldest one is removed from the front. When the front is empty, all rows turn to
   it, from the newest to the oldest. The result of a frame is the front's top merged with the back. So nothing is ever
   subtracted, and a row costs three additions, however long the frame (two stacks; see Tangwongsan, Hirzel, Schneider 2017
   for their history).

   A late row is older than an earlier one of its key. It is inserted by time among the rows that are kept. The key's frames
   are then computed again from there, once per call, which also gives the results of the late rows.

   Nothing here needs the GIL. Functions throw only std::bad_alloc (`except +`). A sum that overflows sets `overflow`. */
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "arrow/column.h"
#include "groups/quotient.h"

namespace sabot {

enum class Fold : uint8_t { count, sum_int, sum_float, min, max, mean_int, mean_float, variance, first, last };

/* An accumulator of some rows. The meaning of a and b depends on its Fold. */
struct Folded {
    int64_t n = 0; /* the number of values that count; if 0, a and b are undefined */
    uint64_t a = 0, b = 0;
};

struct FrameCall {
    Fold fold;
    Type type;   /* the type of the argument, or `nothing` if there is none and rows are counted */
    Type result;
    int value;   /* the index of the value in a row, or -1 */
};

/* One value of a row: an argument under a filter. */
struct FrameValue {
    const View* argument; /* null if there is no argument, and rows count */
    const View* filter;   /* null if every row counts */
};

/* Bits of a value's state: the filter holds; the value is not null; in exported rows: the row belongs to the front. */
enum : uint8_t { COUNTS = 1, THERE = 2, FRONT = 4 };

static inline bool is_nan(const FrameCall& call, uint64_t bits) { return is_float(call.type) && std::isnan(double_of(bits)); }
static inline bool less_than(const FrameCall& call, uint64_t a, uint64_t b) {
    if (is_float(call.type)) return double_of(a) < double_of(b);
    if (is_unsigned(call.type)) return a < b;
    return static_cast<int64_t>(a) < static_cast<int64_t>(b);
}

/* Returns the accumulator of one row. Values are integers in 64 bits, or the bits of a double. */
static inline Folded lift(const FrameCall& call, uint64_t value, uint8_t state) {
    Folded one;
    if (!(state & COUNTS)) return one;
    if (call.fold == Fold::first || call.fold == Fold::last) return {1, value, static_cast<uint64_t>((state & THERE) != 0)};
    if (!(state & THERE)) return one;
    one.n = 1;
    if (call.fold == Fold::count) return one;
    one.a = value;
    if (call.fold == Fold::variance && !is_float(call.type)) {
        one.a = bits_of(is_unsigned(call.type) ? static_cast<double>(value) : static_cast<double>(static_cast<int64_t>(value)));
    }
    if (call.fold == Fold::mean_int || call.fold == Fold::sum_int) one.b = !is_unsigned(call.type) && static_cast<int64_t>(value) < 0 ? ~0ULL : 0;
    return one;
}

/* Merges the accumulators of rows and of the rows after them. */
static inline Folded together(const FrameCall& call, const Folded& x, const Folded& y) {
    if (x.n == 0) return y;
    if (y.n == 0) return x;
    Folded sum = {x.n + y.n, 0, 0};
    switch (call.fold) {
        case Fold::count: break;
        case Fold::sum_float: case Fold::mean_float: sum.a = bits_of(double_of(x.a) + double_of(y.a)); break;
        case Fold::sum_int: case Fold::mean_int: { /* 128 bits: a is the low half, b the high half */
            const unsigned __int128 total = ((unsigned __int128)x.b << 64 | x.a) + ((unsigned __int128)y.b << 64 | y.a);
            sum.a = static_cast<uint64_t>(total), sum.b = static_cast<uint64_t>(total >> 64);
            break;
        }
        case Fold::min: sum.a = is_nan(call, x.a) || (!is_nan(call, y.a) && less_than(call, y.a, x.a)) ? y.a : x.a; break;
        case Fold::max: sum.a = is_nan(call, x.a) || (!is_nan(call, y.a) && less_than(call, x.a, y.a)) ? y.a : x.a; break;
        case Fold::variance: { /* Chan, Golub, LeVeque 1979; a: the mean, b: the sum of squared distances from it */
            const double nx = static_cast<double>(x.n), ny = static_cast<double>(y.n);
            const double away = double_of(y.a) - double_of(x.a);
            sum.a = bits_of(double_of(x.a) + away * (ny / (nx + ny)));
            sum.b = bits_of(double_of(x.b) + double_of(y.b) + away * away * (nx * ny / (nx + ny)));
            break;
        }
        case Fold::first: sum.a = x.a, sum.b = x.b; break;
        case Fold::last: sum.a = y.a, sum.b = y.b; break;
    }
    return sum;
}

/* Computes the result. Returns false for null. */
static inline bool finished(const FrameCall& call, const Folded& all, uint64_t* out) {
    *out = all.a;
    switch (call.fold) {
        case Fold::count: *out = static_cast<uint64_t>(all.n); return true;
        case Fold::mean_float: *out = all.n ? bits_of(double_of(all.a) / static_cast<double>(all.n)) : 0; return all.n > 0;
        case Fold::mean_int: {
            const __int128 total = (__int128)((unsigned __int128)all.b << 64 | all.a);
            *out = all.n ? bits_of(nearest_mean(total, all.n)) : 0;
            return all.n > 0;
        }
        case Fold::variance:
            *out = bits_of(double_of(all.b) / static_cast<double>(all.n - 1));
            if (!std::isfinite(double_of(all.a))) *out = bits_of(std::nan("")); /* the variance of infinity is NaN */
            return all.n > 1;
        case Fold::first: case Fold::last: return all.n > 0 && all.b;
        default: return all.n > 0;
    }
}

/* Returns true if the sum of whole numbers fits into 64 bits. */
static inline bool fits(const FrameCall& call, const Folded& all) {
    return all.b == (is_unsigned(call.type) || static_cast<int64_t>(all.a) >= 0 ? 0 : ~0ULL);
}

/* The results of one aggregate, by row. */
struct FrameColumn {
    std::vector<uint64_t> raw;
    std::vector<uint8_t> valid;
};

class Frames {
   public:
    std::vector<FrameCall> calls;
    int values = 0;    /* the number of values of a row */
    int64_t rows = -1; /* the number of rows before a row in its frame, or -1 for frames limited by time */
    int64_t ms = 0;
    std::vector<FrameColumn> results; /* the results of the last `add` or `current`, one per aggregate */
    int64_t kept = 0;
    int64_t overflow = -1; /* the first row (for `current`, key) whose sum overflows 64 bits, or -1 */
    int overflow_call = 0;

    void ready() {
        width = 1 + values + (values + 7) / 8;
        shift = 0;
        while (ms >> (shift + 1) >= 32) shift++; /* expired rows are dropped at most a 32nd of the frame later */
    }
    /* Returns the number of keys that have rows. */
    int64_t used() const { return present; }
    int64_t nbytes() const { return static_cast<int64_t>(keys.capacity() * sizeof(Key)) + heap + 4 * entries; }

    /* Adds rows and fills `results`. For frames limited by time, all rows with the same key and time must come in one
       call; later ones are late. */
    void add(const int32_t* slots, const int32_t* chosen, int64_t count, const std::vector<FrameValue>& from, const int64_t* times) {
        read(chosen, count, from);
        results.resize(calls.size());
        for (FrameColumn& column : results) {
            column.raw.assign(count, 0);
            column.valid.assign(count, 0);
        }
        next.assign(count, -1);
        touched.clear();
        for (int64_t i = 0; i < count; i++) {
            Key& key = at(slots[i]);
            if (key.first < 0) {
                key.first = static_cast<int32_t>(i);
                touched.push_back(slots[i]);
            } else {
                next[key.last] = static_cast<int32_t>(i);
            }
            key.last = static_cast<int32_t>(i);
        }
        auto time_of = [&](int32_t i) { return times[chosen ? chosen[i] : i]; };
        for (const int32_t slot : touched) {
            Key& key = keys[slot];
            heap -= key.nbytes();
            mine.clear();
            bool sorted = true;
            for (int32_t i = key.first; i >= 0; i = next[i]) {
                const int64_t time = time_of(i);
                sorted = sorted && (mine.empty() || mine.back().time <= time);
                mine.push_back({time, i});
            }
            key.first = -1;
            if (!sorted) {
                std::stable_sort(mine.begin(), mine.end(), [](const Come& a, const Come& b) { return a.time < b.time; });
            }
            size_t late = 0;
            if (key.size())
                while (late < mine.size() && mine[late].time < key.newest) late++;
            if (late) again(key, late);
            come(key, late, mine.size());
            if (rows < 0) schedule(slot);
            heap += key.nbytes();
        }
    }
    /* Drops rows that no later frame includes. Call it when no row below the watermark will come on time. OUT vacant:
       slots without rows. */
    void advance(int64_t upto, std::vector<int32_t>& vacant) {
        if (rows >= 0) return;
        watermark = std::max(watermark, upto);
        const int64_t now = watermark >> shift;
        std::vector<int32_t> stay;
        while (!wheel.empty() && wheel.begin()->first < now) {
            const int64_t bucket = wheel.begin()->first;
            std::vector<int32_t> slots;
            slots.swap(wheel.begin()->second);
            wheel.erase(wheel.begin());
            entries -= slots.size();
            for (const int32_t slot : slots) {
                Key& key = keys[slot];
                if (key.bucket != bucket) continue; /* it has another entry in the wheel, or its rows were removed */
                key.bucket = NO_BUCKET;
                heap -= key.nbytes();
                if (bucket_of(key.newest) < now) clear(key);
                while (key.size() && bucket_of(key.oldest()) < now) evict(key);
                heap += key.nbytes();
                if (key.size()) stay.push_back(slot);
                else vacant.push_back(slot);
            }
        }
        for (const int32_t slot : stay) schedule(slot);
    }
    /* Appends the slots that `advance` would check. */
    void due(int64_t upto, std::vector<int32_t>& slots) const {
        for (const auto& [bucket, some] : wheel) {
            if (bucket >= std::max(watermark, upto) >> shift) break;
            for (const int32_t slot : some)
                if (keys[slot].bucket == bucket) slots.push_back(slot);
        }
    }
    /* Removes the rows of these slots. */
    void remove(const int32_t* slots, int64_t count) {
        for (int64_t i = 0; i < count; i++) {
            if (slots[i] >= static_cast<int64_t>(keys.size())) continue;
            Key& key = keys[slots[i]];
            heap -= key.nbytes();
            clear(key);
            key.back = std::vector<Folded>();
            key.bucket = NO_BUCKET;
        }
    }
    /* Appends all slots that have rows. */
    void every(std::vector<int32_t>& slots) const {
        for (size_t slot = 0; slot < keys.size(); slot++)
            if (keys[slot].size()) slots.push_back(static_cast<int32_t>(slot));
    }
    /* Fills `results` with the newest frame of each of these slots, which have rows. */
    void current(const std::vector<int32_t>& slots, std::vector<int64_t>& newest) {
        for (const int32_t slot : slots) newest.push_back(keys[slot].newest);
        results.resize(calls.size());
        for (size_t c = 0; c < calls.size(); c++) {
            results[c].raw.assign(slots.size(), 0);
            results[c].valid.assign(slots.size(), 0);
            for (size_t i = 0; i < slots.size(); i++) give(keys[slots[i]], c, i);
        }
    }
    /* Returns the number of rows of a slot. */
    int64_t size_of(int32_t slot) const { return slot < static_cast<int64_t>(keys.size()) ? keys[slot].size() : 0; }
    /* Exports the rows of these slots, slot by slot, the oldest first: times, and for each value a pair of columns,
       value and state. */
    void export_rows(
        const int32_t* chosen, int64_t count, int32_t* slots, int64_t* times, uint64_t** raw, uint8_t** states
    ) const {
        int64_t out = 0;
        for (int64_t k = 0; k < count; k++) {
            if (size_of(chosen[k]) == 0) continue;
            const Key& key = keys[chosen[k]];
            const size_t front = key.front.size() / std::max<size_t>(calls.size(), 1);
            for (size_t i = 0; i < key.size(); i++, out++) {
                const uint64_t* row = key.row(i, width);
                slots[out] = chosen[k];
                times[out] = static_cast<int64_t>(row[0]);
                for (int v = 0; v < values; v++) {
                    raw[v][out] = row[1 + v];
                    states[v][out] = state_of(row, v) | (i < front ? FRONT : 0);
                }
            }
        }
    }
    /* Loads exported rows. The rows of the front become a front again, so that sums of floats stay the same, bit by
       bit. */
    void load(const int32_t* slots, int64_t count, const int64_t* times, const uint64_t** raw, const uint8_t** states) {
        std::vector<uint64_t> row(width);
        for (int64_t i = 0; i < count; i++) {
            Key& key = at(slots[i]);
            heap -= key.nbytes();
            std::fill(row.begin(), row.end(), 0);
            row[0] = static_cast<uint64_t>(times[i]);
            bool front = false;
            for (int v = 0; v < values; v++) {
                row[1 + v] = raw[v][i];
                set_state(row.data(), v, states[v][i] & (COUNTS | THERE));
                front = front || (states[v][i] & FRONT);
            }
            if (key.first >= 0 && !front) turn(key), key.first = -1;
            push(key, row.data());
            if (front) key.first = 0; /* its rows so far are those of the front */
            heap += key.nbytes();
        }
        for (int64_t i = 0; i < count; i++) {
            Key& key = keys[slots[i]];
            if (key.first >= 0) {
                heap -= key.nbytes();
                turn(key), key.first = -1;
                heap += key.nbytes();
            }
            if (rows < 0) schedule(slots[i]);
        }
    }

   private:
    static constexpr int64_t NO_BUCKET = INT64_MAX;

    struct Key {
        std::vector<uint64_t> ring;  /* rows of `width` words: time, values, a byte of state per value */
        std::vector<Folded> front;   /* accumulators per aggregate and row; those of the oldest row are last */
        std::vector<Folded> back;    /* accumulators per aggregate */
        size_t head = 0, end = 0;    /* the positions of the oldest row in the ring and after the newest */
        int64_t newest = 0;
        int32_t first = -1, last = -1; /* the key's rows in this call, as a linked list */
        int64_t bucket = NO_BUCKET;    /* its bucket in the wheel */

        size_t size() const { return end - head; }
        int64_t nbytes() const {
            return static_cast<int64_t>(ring.capacity() * 8 + (front.capacity() + back.capacity()) * sizeof(Folded));
        }
        const uint64_t* row(size_t i, size_t width) const { return ring.data() + (head + i) * width; }
        int64_t oldest() const { return static_cast<int64_t>(ring[head * (ring.size() / end)]); }
    };
    struct Come {
        int64_t time;
        int32_t i; /* the row in this call, or -1 for a kept row */
    };

    std::vector<Key> keys; /* by slot */
    std::map<int64_t, std::vector<int32_t>> wheel; /* slots by the time at which their oldest row expires, in steps of 2^shift ms */
    int64_t entries = 0;           /* entries of the wheel, including stale ones */
    int64_t present = 0, heap = 0; /* the number of keys that have rows; the bytes of all rows and accumulators */
    std::vector<std::vector<uint64_t>> read_values; /* the values of this call, by value and row */
    std::vector<std::vector<uint8_t>> read_states;
    std::vector<int32_t> next, touched;
    std::vector<Come> mine;
    std::vector<uint64_t> line, old;
    std::vector<size_t> peers;
    size_t width = 1;
    int shift = 0;
    int64_t watermark = INT64_MIN;

    Key& at(int32_t slot) {
        if (slot >= static_cast<int64_t>(keys.size())) keys.resize(std::max<size_t>(slot + 1, keys.size() * 3 / 2));
        return keys[slot];
    }
    uint8_t state_of(const uint64_t* row, int v) const { return reinterpret_cast<const uint8_t*>(row + 1 + values)[v]; }
    void set_state(uint64_t* row, int v, uint8_t state) const { reinterpret_cast<uint8_t*>(row + 1 + values)[v] = state; }

    void read(const int32_t* chosen, int64_t count, const std::vector<FrameValue>& from) {
        read_values.resize(values);
        read_states.resize(values);
        for (int v = 0; v < values; v++) {
            read_values[v].resize(count);
            read_states[v].resize(count);
            const FrameValue& value = from[v];
            for (int64_t base = 0; base < count; base += BLOCK_ROWS) {
                const Rows block{chosen, base, static_cast<int>(std::min<int64_t>(BLOCK_ROWS, count - base))};
                read_block(value, block, read_values[v].data() + base, read_states[v].data() + base);
            }
        }
    }
    static void read_block(const FrameValue& value, const Rows& block, uint64_t* raw, uint8_t* states) {
        const View* view = value.argument;
        if (view == nullptr || view->type == Type::other || view->type == Type::nothing || has_bytes(view->type)) {
            std::memset(raw, 0, 8 * block.count);
        } else if (is_float(view->type)) {
            double scratch[BLOCK_ROWS];
            std::memcpy(raw, numbers<double>(*view, block, scratch), 8 * block.count);
        } else {
            int64_t scratch[BLOCK_ROWS];
            std::memcpy(raw, numbers<int64_t>(*view, block, scratch), 8 * block.count);
        }
        each_row(block, [&](int i, int64_t row) {
            const bool counts = value.filter == nullptr || (value.filter->valid(row) && value.filter->truth(row));
            const bool there = view == nullptr || view->valid(row);
            states[i] = static_cast<uint8_t>((counts ? COUNTS : 0) | (there ? THERE : 0));
        });
    }

    /* One key */

    bool over(int64_t time, int64_t now) const {
        return now > time && static_cast<uint64_t>(now) - static_cast<uint64_t>(time) > static_cast<uint64_t>(ms);
    }
    void clear(Key& key) {
        kept -= key.size();
        present -= key.size() > 0;
        key.ring = std::vector<uint64_t>();
        key.front = std::vector<Folded>();
        key.back.clear();
        key.head = key.end = 0;
    }
    int64_t bucket_of(int64_t time) const { return (time > INT64_MAX - ms ? INT64_MAX : time + ms) >> shift; }
    /* Inserts a key into the wheel, for its oldest row. */
    void schedule(int32_t slot) {
        Key& key = keys[slot];
        if (key.size() == 0) return;
        const int64_t bucket = bucket_of(key.oldest());
        if (key.bucket <= bucket) return; /* the key is checked before that */
        key.bucket = bucket;
        wheel[bucket].push_back(slot);
        if (++entries > 2 * present + 1024) sweep();
    }
    /* Removes stale entries from the wheel. */
    void sweep() {
        wheel.clear();
        entries = 0;
        for (size_t slot = 0; slot < keys.size(); slot++) {
            if (keys[slot].bucket == NO_BUCKET) continue;
            wheel[keys[slot].bucket].push_back(static_cast<int32_t>(slot));
            entries++;
        }
    }
    void push(Key& key, const uint64_t* row) {
        if (key.back.empty()) key.back.resize(calls.size());
        present += key.size() == 0;
        key.ring.insert(key.ring.end(), row, row + width);
        key.end++;
        kept++;
        for (size_t c = 0; c < calls.size(); c++) key.back[c] = together(calls[c], key.back[c], lifted(row, c));
        key.newest = static_cast<int64_t>(row[0]);
    }
    Folded lifted(const uint64_t* row, size_t c) const {
        const FrameCall& call = calls[c];
        return lift(call, row[1 + call.value], state_of(row, call.value));
    }
    void turn(Key& key) {
        key.front.clear();
        key.front.reserve(key.size() * calls.size());
        for (size_t i = key.size(); i-- > 0;) {
            const uint64_t* row = key.row(i, width);
            const size_t above = key.front.size() - calls.size();
            for (size_t c = 0; c < calls.size(); c++) {
                const Folded one = lifted(row, c);
                key.front.push_back(i + 1 == key.size() ? one : together(calls[c], one, key.front[above + c]));
            }
        }
        std::fill(key.back.begin(), key.back.end(), Folded());
    }
    /* Removes the oldest row. */
    void evict(Key& key) {
        if (key.front.empty() && !calls.empty()) turn(key);
        key.front.resize(key.front.size() - calls.size());
        key.head++;
        kept--;
        if (key.head == key.end) {
            present--;
            key.ring.clear();
            key.head = key.end = 0;
        } else if (key.head >= 8 && key.head * 2 > key.end) {
            key.ring.erase(key.ring.begin(), key.ring.begin() + key.head * width);
            key.end -= key.head;
            key.head = 0;
            if (key.ring.capacity() > 4 * key.ring.size()) key.ring.shrink_to_fit();
            if (key.front.capacity() > 4 * key.front.size() + 64) key.front.shrink_to_fit();
        }
    }
    void trim(Key& key) {
        if (rows >= 0)
            while (static_cast<int64_t>(key.size()) > rows + 1) evict(key);
        else
            while (over(key.oldest(), key.newest)) evict(key);
    }
    void give(const Key& key, size_t c, size_t i) {
        const FrameCall& call = calls[c];
        const bool some = !key.front.empty();
        const Folded all = some ? together(call, key.front[key.front.size() - calls.size() + c], key.back[c]) : key.back[c];
        results[c].valid[i] = finished(call, all, &results[c].raw[i]);
        if (call.fold == Fold::sum_int && !fits(call, all) && overflow < 0) {
            overflow = static_cast<int64_t>(i);
            overflow_call = static_cast<int>(c);
        }
    }
    /* Adds row i of this call. If it is the last row of its time, computes its result and those of `peers`. */
    void step(Key& key, int64_t time, int32_t i, bool last_of_time, const uint64_t* row) {
        push(key, row);
        if (i >= 0) peers.push_back(i);
        if (rows < 0 && !last_of_time) return;
        trim(key);
        for (size_t c = 0; c < calls.size() && !peers.empty(); c++) {
            give(key, c, peers[0]);
            for (const size_t peer : peers) {
                results[c].raw[peer] = results[c].raw[peers[0]];
                results[c].valid[peer] = results[c].valid[peers[0]];
            }
        }
        peers.clear();
    }
    void write(const Come& came, std::vector<uint64_t>& out) const {
        out.assign(width, 0);
        out[0] = static_cast<uint64_t>(came.time);
        for (int v = 0; v < values; v++) out[1 + v] = read_values[v][came.i], set_state(out.data(), v, read_states[v][came.i]);
    }
    /* Adds rows mine[from] to mine[to - 1], none of which is older than the newest row. */
    void come(Key& key, size_t from, size_t to) {
        for (size_t k = from; k < to; k++) {
            write(mine[k], line);
            step(key, mine[k].time, mine[k].i, k + 1 == to || mine[k + 1].time != mine[k].time, line.data());
        }
    }
    /* Inserts the first `late` rows of `mine` among the kept rows. */
    void again(Key& key, size_t late) {
        old.assign(key.row(0, width), key.row(0, width) + key.size() * width);
        clear(key);
        const size_t there = old.size() / width;
        auto old_time = [&](size_t at) { return static_cast<int64_t>(old[at * width]); };
        size_t i = 0, k = 0;
        while (rows < 0 && i < there && over(old_time(i), watermark)) i++; /* skips expired rows that `advance` has not dropped yet */
        while (i < there || k < late) {
            const bool is_old = k == late || (i < there && old_time(i) <= mine[k].time);
            const int64_t time = is_old ? old_time(i) : mine[k].time;
            const size_t after_old = i + is_old, after_late = k + !is_old;
            const bool more = (after_old < there && old_time(after_old) == time) || (after_late < late && mine[after_late].time == time);
            if (is_old) {
                step(key, time, -1, !more, old.data() + i * width);
            } else {
                write(mine[k], line);
                step(key, time, mine[k].i, !more, line.data());
            }
            i = after_old, k = after_late;
        }
    }
};

}  // namespace sabot
