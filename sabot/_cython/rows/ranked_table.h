/* Rows by key slot, in the order of a sort key and of arrival, and the first n rows of each slot. See ranked.pyi.

       slot ─▶ Ordered ─▶ Entry (prefix, number, ─▶ Row) …     ascending; one block, or several for many entries
       hash ─▶ Row ─▶ next: an equal row that came before      only if rows can be removed

   `prefix` is the sort key itself if that is one column of fixed width (as an order-preserving integer, exact). Otherwise
   it is the first 8 bytes of a sort key whose bytes compare like its columns; that sort key is stored after the row.
   `number` counts arrivals; its highest bits say that the exact sort key is null. A row that cannot enter costs one
   comparison with the bound of its slot.

   Nothing here needs the GIL. Functions throw only std::bad_alloc (`except +`). */
#pragma once

#include <algorithm>
#include <new>

#include "arrow/column.h"
#include "groups/key_hash.h"
#include "rows/row_bytes.h"

namespace sabot {

enum class Ties : uint8_t { row_number, rank, dense_rank };

constexpr uint64_t NULL_KEY = 1ULL << 62; /* in Row.number: the sort key is null, which sorts last */
constexpr int64_t MOST_BYTES = 1LL << 30; /* the most bytes of rows that are converted to columns at once */

struct Row {
    uint64_t prefix, number; /* as in Entry */
    int64_t time;
    Row* next; /* the next older equal row */
    uint64_t hash;
    int32_t slot;
    uint32_t size;      /* bytes of the row */
    uint32_t sort_size; /* bytes of the sort key after the row */
    uint32_t rank;      /* the rank in the result, which rows of equal keys may share; 0 if the row is not in the result */

    uint8_t* bytes() { return reinterpret_cast<uint8_t*>(this + 1); }
    const uint8_t* bytes() const { return reinterpret_cast<const uint8_t*>(this + 1); }
    const uint8_t* sort() const { return bytes() + size; }
    int64_t nbytes() const { return sizeof(Row) + size + sort_size; }
    bool equals(const Row& other) const { return size == other.size && std::memcmp(bytes(), other.bytes(), size) == 0; }
};

struct Entry {
    uint64_t prefix = 0, number = 0;
    Row* row = nullptr;

    Entry() = default;
    explicit Entry(Row* row) : prefix(row->prefix), number(row->number), row(row) {}
};

/* The sort key of a row that need not be in the table. */
struct Probe {
    uint64_t prefix, number;
    const uint8_t* sort;
    uint32_t sort_size;

    Probe(uint64_t prefix, uint64_t number, const uint8_t* sort, uint32_t sort_size)
        : prefix(prefix), number(number), sort(sort), sort_size(sort_size) {}
    explicit Probe(const Entry& entry)
        : prefix(entry.prefix), number(entry.number), sort(entry.row->sort()), sort_size(entry.row->sort_size) {}
};

/* Compares the sort keys alone. Returns < 0, 0 or > 0. */
static inline int compare_keys(const Probe& a, const Probe& b, bool exact) {
    if (a.prefix != b.prefix) return a.prefix < b.prefix ? -1 : 1;
    if (exact) return static_cast<int>((a.number & NULL_KEY) != 0) - static_cast<int>((b.number & NULL_KEY) != 0);
    return std::memcmp(a.sort, b.sort, std::min(a.sort_size, b.sort_size)); /* no sort key is a prefix of another */
}
static inline int compare(const Probe& a, const Probe& b, bool exact) {
    const int keys = compare_keys(a, b, exact);
    return keys ? keys : a.number < b.number ? -1 : a.number > b.number ? 1 : 0;
}
static inline bool before(const Entry& a, const Probe& b, bool exact) {
    if (a.prefix != b.prefix) return a.prefix < b.prefix;
    return exact ? a.number < b.number : compare(Probe(a), b, false) < 0;
}

/* Entries in order: one block at first; many entries have several blocks of about BLOCK / 4 to BLOCK entries. */
class Ordered {
   public:
    static constexpr size_t BLOCK = 256;

    struct Place {
        size_t block, index;
        bool operator==(const Place& other) const { return block == other.block && index == other.index; }
    };

    size_t size() const { return count; }
    const Entry& at(Place place) const { return block(place.block)[place.index]; }
    Place end() const { return {blocks(), 0}; }
    bool is_end(Place place) const { return place.block >= blocks() || block(place.block).empty(); }
    Place begin() const { return {0, 0}; }
    const Entry& last() const { return block(blocks() - 1).back(); }

    Place after(Place place) const {
        if (++place.index < block(place.block).size()) return place;
        return {place.block + 1, 0};
    }
    bool is_begin(Place place) const { return place.block == 0 && place.index == 0; }
    Place ahead(Place place) const {
        if (place.index) return {place.block, place.index - 1};
        return {place.block - 1, block(place.block - 1).size() - 1};
    }
    /* Returns the place of the first entry that is not before the probe. */
    Place find(const Probe& probe, bool exact) const {
        size_t low = 0, high = blocks() - 1; /* finds the first block whose last entry is not before the probe */
        while (low < high) {
            const size_t middle = (low + high) / 2;
            if (before(block(middle).back(), probe, exact)) low = middle + 1;
            else high = middle;
        }
        const std::vector<Entry>& in = block(low);
        auto is_before = [](const Entry& entry, const Probe& value) { return before(entry, value, false); };
        const size_t index = exact ? lower_exact(in, probe)
                                   : std::lower_bound(in.begin(), in.end(), probe, is_before) - in.begin();
        return index < in.size() ? Place{low, index} : Place{low + 1, 0};
    }
    /* Returns the place of the first entry with a greater sort key. */
    Place beyond(const Entry& entry, bool exact) const {
        if (!exact) {
            Probe probe(entry);
            probe.number = ~0ULL;
            return find(probe, exact);
        }
        const bool null = entry.number & NULL_KEY;
        return find(Probe(entry.prefix, null ? ~0ULL : NULL_KEY, nullptr, 0), exact);
    }
    /* Returns the place of the first entry with this sort key. */
    Place group(const Entry& entry, bool exact) const {
        Probe probe(entry);
        probe.number = exact ? entry.number & NULL_KEY : 0;
        return find(probe, exact);
    }
    size_t index_of(Place place) const {
        size_t index = place.index;
        for (size_t i = 0; i < place.block && i < blocks(); i++) index += block(i).size();
        return index;
    }
    Place place_of(size_t index) const {
        for (size_t i = 0; i < blocks(); i++) {
            if (index < block(i).size()) return {i, index};
            index -= block(i).size();
        }
        return end();
    }
    /* Inserts an entry. `room`: the number of entries for which the first block has room. */
    void insert(const Entry& entry, bool exact, size_t room) {
        Place place = find(Probe(entry), exact);
        if (place.block == blocks()) place = {place.block - 1, block(place.block - 1).size()};
        std::vector<Entry>& in = block(place.block);
        if (in.capacity() == 0) in.reserve(room);
        in.insert(in.begin() + place.index, entry);
        count++;
        if (in.size() > BLOCK) split(place.block);
    }
    void erase(Place place) {
        std::vector<Entry>& in = block(place.block);
        in.erase(in.begin() + place.index);
        count--;
        if (more == nullptr) {
            if (in.capacity() > 4 * in.size() + 16) in.shrink_to_fit();
        } else if (in.size() < BLOCK / 4) {
            join(place.block);
        }
    }
    template <class Body>
    void each(Body body) const {
        for (size_t i = 0; i < blocks(); i++)
            for (const Entry& entry : block(i)) body(entry);
    }
    void prefetch() const {
        const char* at = reinterpret_cast<const char*>(flat.data());
        for (size_t i = 0; i < flat.size() * sizeof(Entry) && i < 256; i += 64) __builtin_prefetch(at + i, 1);
    }
    const Row* last_row() const { return more == nullptr && !flat.empty() ? flat.back().row : nullptr; }

   private:
    std::vector<Entry> flat;
    std::unique_ptr<std::vector<std::vector<Entry>>> more; /* replaces the single block */
    size_t count = 0;

    size_t blocks() const { return more == nullptr ? 1 : more->size(); }
    const std::vector<Entry>& block(size_t i) const { return more == nullptr ? flat : (*more)[i]; }
    std::vector<Entry>& block(size_t i) { return more == nullptr ? flat : (*more)[i]; }

    /* Has no branches, because they would be mispredicted each time. */
    static size_t lower_exact(const std::vector<Entry>& in, const Probe& probe) {
        const Entry* first = in.data();
        size_t left = in.size();
        while (left > 0) {
            const size_t half = (left + 1) / 2;
            const Entry& entry = first[half - 1];
            const bool less = (entry.prefix < probe.prefix) | ((entry.prefix == probe.prefix) & (entry.number < probe.number));
            first += less ? half : 0;
            left -= half;
        }
        return first - in.data();
    }
    void split(size_t i) {
        if (more == nullptr) {
            more = std::make_unique<std::vector<std::vector<Entry>>>();
            more->push_back(std::move(flat));
            flat = std::vector<Entry>();
        }
        std::vector<Entry>& in = (*more)[i];
        /* Entries are probably appended in order, so the old block is left full. */
        const size_t left = i + 1 == more->size() ? in.size() - BLOCK / 4 : in.size() / 2;
        std::vector<Entry> rest(in.begin() + left, in.end());
        rest.reserve(BLOCK + 1);
        in.resize(left);
        more->insert(more->begin() + i + 1, std::move(rest));
    }
    void join(size_t i) {
        auto& all = *more;
        if (all.size() == 1) {
            flat = std::move(all[0]);
            more.reset();
            return;
        }
        const size_t other = i + 1 < all.size() ? i + 1 : i - 1;
        const size_t low = std::min(i, other), high = std::max(i, other);
        if (all[low].size() + all[high].size() <= BLOCK * 3 / 4) {
            all[low].insert(all[low].end(), all[high].begin(), all[high].end());
            all.erase(all.begin() + high);
            if (all.size() == 1) {
                flat = std::move(all[0]);
                more.reset();
            }
        } else if (all[i].empty()) {
            all.erase(all.begin() + i);
        }
    }
};

/* An index of rows by the hash of their bytes: open addressing, with a chain of equal rows. */
class RowIndex {
   public:
    void put(Row* row) {
        if ((used + 1) * 4 > cells.size() * 3) grow();
        for (size_t i = row->hash & (cells.size() - 1);; i = (i + 1) & (cells.size() - 1)) {
            if (cells[i] == nullptr) {
                row->next = nullptr;
                cells[i] = row;
                used++;
                return;
            }
            if (cells[i]->hash == row->hash && cells[i]->equals(*row)) {
                row->next = cells[i];
                cells[i] = row;
                return;
            }
        }
    }
    /* Removes the newest row with these bytes from the index and returns it, or null if there is none. */
    Row* take(uint64_t hash, const uint8_t* bytes, uint32_t size) {
        if (cells.empty()) return nullptr;
        for (size_t i = hash & (cells.size() - 1); cells[i] != nullptr; i = (i + 1) & (cells.size() - 1)) {
            Row* row = cells[i];
            if (row->hash != hash || row->size != size || std::memcmp(row->bytes(), bytes, size) != 0) continue;
            cells[i] = row->next;
            if (cells[i] == nullptr) close(i);
            return row;
        }
        return nullptr;
    }
    void prefetch(uint64_t hash) const {
        if (!cells.empty()) __builtin_prefetch(&cells[hash & (cells.size() - 1)], 1);
    }
    void prefetch_row(uint64_t hash) const {
        if (!cells.empty()) __builtin_prefetch(cells[hash & (cells.size() - 1)]);
    }
    int64_t nbytes() const { return cells.capacity() * sizeof(Row*); }

   private:
    std::vector<Row*> cells;
    size_t used = 0;

    void grow() {
        std::vector<Row*> old(std::max<size_t>(64, cells.size() * 2), nullptr);
        old.swap(cells);
        for (Row* chain : old) {
            if (chain == nullptr) continue;
            size_t i = chain->hash & (cells.size() - 1);
            while (cells[i] != nullptr) i = (i + 1) & (cells.size() - 1);
            cells[i] = chain;
        }
    }
    /* Closes the gap at the empty cell i by moving later entries up (Knuth, 6.4 R). */
    void close(size_t i) {
        used--;
        const size_t mask = cells.size() - 1;
        for (size_t j = (i + 1) & mask; cells[j] != nullptr; j = (j + 1) & mask) {
            const size_t home = cells[j]->hash & mask;
            if (((j - home) & mask) >= ((j - i) & mask)) {
                cells[i] = cells[j];
                cells[j] = nullptr;
                i = j;
            }
        }
    }
};

/* A column of the sort key. */
struct SortColumn {
    int index;
    bool descending;
    bool decimal; /* read as little-endian two's complement; other types are read through `View` */
};

struct Change {
    Row* row;
    int64_t rank;
    int8_t op;
};

enum Op : int8_t { INSERT = 0, UPDATE_BEFORE = 1, UPDATE_AFTER = 2, DELETE = 3 };

/* Returns an integer that compares like the value. The value must not be null or NaN. */
static inline uint64_t ordered(int64_t value) { return static_cast<uint64_t>(value) ^ (1ULL << 63); }
static inline uint64_t ordered(uint64_t value) { return value; }
static inline uint64_t ordered(double value) {
    const uint64_t bits = bits_of(value == 0 ? 0.0 : value);
    return bits >> 63 ? ~bits : bits | 1ULL << 63;
}

class Ranking {
   public:
    Layout layout;
    std::vector<SortColumn> by;
    bool exact = true;
    int64_t n = 1;
    Ties ties = Ties::row_number;
    bool ranked = false;  /* ranks are part of the result, so a row whose rank changes is a change */
    bool changes = false; /* rows can be removed, so all are kept */
    bool borrows = false; /* all rows belong to absorbed tables */
    int64_t rows = 0, row_bytes = 0;
    std::vector<Change> out; /* the result of the last `settle` or `members` */

    Ranking() = default;
    Ranking(const Ranking&) = delete;
    ~Ranking() {
        if (borrows) return;
        for (Key& key : keys) key.order.each([&](const Entry& entry) { pool.give(entry.row, entry.row->nbytes()); });
        for (const Entry& entry : gone) pool.give(entry.row, entry.row->nbytes());
        for (Row* row : finished) pool.give(row, row->nbytes());
    }

    int64_t nbytes() const {
        int64_t bytes = std::max(row_bytes, pool.nbytes()) + index.nbytes() + keys.capacity() * sizeof(Key) + bounds.capacity() * 8;
        return bytes + rows * static_cast<int64_t>(sizeof(Entry));
    }

    /* Adds and removes rows. `sort_views`: a view per column of `by`. `ops`: null if all rows are added. `arrival`:
       row r has the number arrival + r; for -1 the table counts on, in the order of `chosen`. Returns -1, or the
       first row that was to be removed and does not exist; the rows after it are not processed. */
    int64_t add(
        const std::vector<Source>& columns, const std::vector<View>& sort_views, const int32_t* slots, const int32_t* chosen,
        int64_t count, const int8_t* ops, const int64_t* times, int64_t arrival
    ) {
        uint64_t prefixes[BLOCK_ROWS] = {0}, hashes[BLOCK_ROWS];
        uint8_t nulls[BLOCK_ROWS];
        for (int64_t base = 0; base < count; base += BLOCK_ROWS) {
            const Rows block{chosen, base, static_cast<int>(std::min<int64_t>(BLOCK_ROWS, count - base))};
            grow(*std::max_element(slots + base, slots + base + block.count));
            if (exact) exact_keys(sort_views, block, prefixes, nulls);
            for (int i = 0; changes && i < block.count; i++) { /* prefetch: their places in the index are random */
                layout.write(columns, block[i], scratch);
                hashes[i] = sabot_hash(scratch.data(), scratch.size());
                index.prefetch(hashes[i]);
            }
            for (int i = 0; i < block.count; i++) {
                if (i + AHEAD < block.count) prefetch(slots, prefixes, base, i);
                if (changes && i + AHEAD / 2 < block.count) index.prefetch_row(hashes[i + AHEAD / 2]);
                const int64_t row = block[i];
                if (ops != nullptr && (ops[row] & 1)) {
                    layout.write(columns, row, scratch);
                    if (!take()) return row;
                    continue;
                }
                const int32_t slot = slots[base + i];
                const uint64_t prefix = exact ? prefixes[i] : sort_key(columns, sort_views, row);
                if (prefix > bounds[slot]) continue;
                const uint64_t came = arrival < 0 ? next_number : static_cast<uint64_t>(arrival + row);
                const uint64_t number = came | (exact && nulls[i] ? NULL_KEY : 0);
                if (prefix == bounds[slot] && !enters(slot, prefix, number)) continue;
                layout.write(columns, row, scratch);
                insert(slot, prefix, number, times ? times[row] : 0);
                next_number = std::max(next_number, came + 1);
            }
        }
        return -1;
    }
    /* Loads rows of a checkpoint. `numbers`: the arrival numbers in the checkpoint. */
    void load(
        const std::vector<Source>& columns, const std::vector<View>& sort_views, const int32_t* slots, int64_t count,
        const int64_t* numbers, const int64_t* times
    ) {
        uint64_t prefixes[BLOCK_ROWS] = {0};
        uint8_t nulls[BLOCK_ROWS];
        for (int64_t base = 0; base < count; base += BLOCK_ROWS) {
            const Rows block{nullptr, base, static_cast<int>(std::min<int64_t>(BLOCK_ROWS, count - base))};
            grow(*std::max_element(slots + base, slots + base + block.count));
            if (exact) exact_keys(sort_views, block, prefixes, nulls);
            for (int i = 0; i < block.count; i++) {
                const int64_t row = base + i;
                const uint64_t number = static_cast<uint64_t>(numbers[row]);
                const uint64_t prefix = exact ? prefixes[i] : sort_key(columns, sort_views, row);
                layout.write(columns, row, scratch);
                insert(slots[row], prefix, number | (exact && nulls[i] ? NULL_KEY : 0), times[row]);
                next_number = std::max(next_number, number + 1);
            }
        }
    }

    /* Adds the rows of another table of the same columns, with their arrival numbers; the other table keeps owning
       them. slots[s] gets the rows of its slot s. Once a row of a slot cannot enter, its later rows are skipped. */
    void absorb(const Ranking& other, const int32_t* slots) {
        borrows = true;
        const int64_t used = other.slots_used();
        if (used > 0) grow(*std::max_element(slots, slots + used));
        for (int64_t from = 0; from < used; from++) {
            if (from + 16 < used) {
                other.keys[from + 16].order.prefetch();
                __builtin_prefetch(&keys[slots[from + 16]], 1);
                __builtin_prefetch(&bounds[slots[from + 16]], 1);
                keys[slots[from + 8]].order.prefetch();
            }
            const Ordered& order = other.keys[from].order;
            if (order.size() == 0) continue;
            const int32_t slot = slots[from];
            Key& key = keys[slot];
            for (auto at = order.begin(); !order.is_end(at); at = order.after(at)) {
                const Entry& entry = order.at(at);
                if (entry.prefix > bounds[slot]) break;
                if (full(key)) {
                    const Probe mine(entry), last(key.order.last());
                    const int than = ties == Ties::row_number ? compare(mine, last, exact) : compare_keys(mine, last, exact);
                    if (than > 0) break;
                }
                enter(key, slot, entry);
            }
        }
    }

    /* Fills `out` with the changes since the last call. OUT vacant: slots without rows, which may be reused. */
    void settle(std::vector<int32_t>& vacant) {
        bury();
        out.clear();
        adds.clear();
        if (walks()) {
            std::sort(gone.begin(), gone.end(), [&](const Entry& a, const Entry& b) {
                return a.row->slot != b.row->slot ? a.row->slot < b.row->slot : compare(Probe(a), Probe(b), exact) < 0;
            });
            std::sort(touched.begin(), touched.end(), [](const Touch& a, const Touch& b) { return a.slot < b.slot; });
            size_t left = 0; /* the position in `gone` of the first row of this slot or a later one */
            for (size_t i = 0; i < touched.size(); i++) {
                const Touch& touch = touched[i];
                if (i + 8 < touched.size()) __builtin_prefetch(&keys[touched[i + 8].slot]);
                if (i + 4 < touched.size()) keys[touched[i + 4].slot].order.prefetch();
                Key& key = keys[touch.slot];
                settle_key(key, touch, left);
                key.touch = 0;
                if (key.order.size() == 0) vacant.push_back(touch.slot);
            }
            touched.clear();
        } else {
            for (const Entry& entry : gone)
                if (arrival(entry) < first_number) out.push_back({entry.row, 0, DELETE});
            for (Row* row : fresh)
                if (row->rank != EVICTED) adds.push_back({row, 0, INSERT});
            fresh.clear();
        }
        out.insert(out.end(), adds.begin(), adds.end());
        for (const Entry& entry : gone) finished.push_back(entry.row);
        gone.clear();
        first_number = next_number;
    }
    /* Fills `out` with all rows that are among the first n, slot by slot, in order, with their ranks. */
    void members() {
        out.clear();
        for (Key& key : keys) {
            const Entry edge = edge_of(key);
            if (edge.row == nullptr) continue;
            int64_t place = 0, rank = 0;
            Entry last;
            for (auto at = key.order.begin(); !key.order.is_end(at); at = key.order.after(at)) {
                const Entry& entry = key.order.at(at);
                if (compare(Probe(entry), Probe(edge), exact) > 0) break;
                rank = next_rank(rank, place, last, entry);
                out.push_back({entry.row, rank, INSERT});
                last = entry;
                place++;
            }
        }
    }
    /* Appends the rows of these slots, slot by slot, in order. */
    void rows_of(const int32_t* slots, int64_t count, std::vector<const Row*>& found) const {
        for (int64_t i = 0; i < count; i++) {
            if (slots[i] >= static_cast<int64_t>(keys.size())) continue;
            keys[slots[i]].order.each([&](const Entry& entry) { found.push_back(entry.row); });
        }
    }
    /* Removes the rows of these slots, and empties `out`. All changes must be settled. */
    void remove(const int32_t* slots, int64_t count) {
        bury();
        out.clear();
        for (int64_t i = 0; i < count; i++) {
            if (slots[i] >= static_cast<int64_t>(keys.size())) continue;
            Key& key = keys[slots[i]];
            if (changes) key.order.each([&](const Entry& entry) { index.take(entry.row->hash, entry.row->bytes(), entry.row->size); });
            key.order.each([&](const Entry& entry) {
                row_bytes -= entry.row->nbytes();
                pool.give(entry.row, entry.row->nbytes());
            });
            rows -= key.order.size();
            key = Key();
            bounds[slots[i]] = ~0ULL;
        }
    }

    /* Returns how many changes of `out` from `start` on are converted at once: at most `most`, limited in bytes,
       without splitting a pair. */
    int64_t piece(int64_t start, int64_t most) const {
        int64_t count = 0, bytes = 0;
        while (start + count < static_cast<int64_t>(out.size()) && count < most) {
            bytes += out[start + count].row->size;
            if (count > 1 && bytes > MOST_BYTES) break;
            count++;
        }
        if (count > 1 && out[start + count - 1].op == UPDATE_BEFORE) count--;
        return count;
    }
    /* Returns an upper bound of the slots that hold rows. */
    int64_t slots_used() const {
        size_t used = keys.size();
        while (used > 0 && keys[used - 1].order.size() == 0) used--;
        return static_cast<int64_t>(used);
    }
    static int64_t arrival(const Row* row) { return static_cast<int64_t>(row->number & ~NULL_KEY); }

   private:
    static constexpr int AHEAD = 32;
    static constexpr uint32_t EVICTED = ~0U; /* the Row.rank of a row that came and went between two calls of `settle` */

    struct Key {
        Ordered order;
        Entry edge;            /* the last row that was among the first n at the last `settle`; has no row if there was none */
        int64_t distinct = 0;  /* the number of distinct sort keys, if rows are evicted by dense rank */
        int64_t touch = 0;     /* 1 + its index in `touched` */
    };
    struct Touch {
        int32_t slot;
        Entry least; /* the first entry that changed */
    };

    std::vector<Key> keys;        /* by slot */
    std::vector<uint64_t> bounds; /* by slot: rows with a greater prefix cannot enter */
    RowIndex index;
    RowPool pool;
    std::vector<Touch> touched;
    std::vector<Entry> gone;      /* removed since the last `settle` */
    std::vector<Row*> fresh;      /* added since the last `settle`, if changes are not found by walking the entries */
    std::vector<Row*> finished;   /* removed from the result, to be freed */
    std::vector<Change> adds, takes;
    std::vector<Entry> was, now;
    Bytes scratch, sort_scratch;
    uint64_t next_number = 0, first_number = 0;

    bool walks() const { return ranked || changes; }
    static uint64_t arrival(const Entry& entry) { return entry.number & ~NULL_KEY; }

    void grow(int32_t slot) {
        if (slot < static_cast<int64_t>(keys.size())) return;
        const size_t size = std::max<size_t>(slot + 1, keys.size() * 3 / 2);
        keys.resize(size);
        bounds.resize(size, ~0ULL);
    }
    /* Prefetches for a later row. A row that cannot enter needs only the bound. */
    void prefetch(const int32_t* slots, const uint64_t* prefixes, int64_t base, int i) const {
        __builtin_prefetch(&bounds[slots[base + i + AHEAD]]);
        auto may_enter = [&](int k) { return !exact || prefixes[k] <= bounds[slots[base + k]]; };
        if (may_enter(i + AHEAD * 3 / 4)) __builtin_prefetch(&keys[slots[base + i + AHEAD * 3 / 4]], 1);
        if (may_enter(i + AHEAD / 2)) keys[slots[base + i + AHEAD / 2]].order.prefetch();
        if (!changes && may_enter(i + AHEAD / 4)) __builtin_prefetch(keys[slots[base + i + AHEAD / 4]].order.last_row(), 1);
    }
    void bury() {
        for (Row* row : finished) pool.give(row, row->nbytes());
        finished.clear();
        if (rows == 0 && gone.empty()) pool.clear();
    }

    void exact_keys(const std::vector<View>& views, const Rows& block, uint64_t* prefixes, uint8_t* nulls) const {
        std::memset(nulls, 0, block.count);
        if (by.empty()) {
            std::memset(prefixes, 0, sizeof(uint64_t) * block.count);
            return;
        }
        const View& view = views[0];
        const uint64_t flip = by[0].descending ? ~0ULL : 0;
        if (view.type == Type::bool_) {
            each_row(block, [&](int i, int64_t row) { prefixes[i] = view.truth(row) ^ flip; });
        } else if (view.type != Type::nothing) {
            with_number(view.type, [&](auto zero) {
                using From = decltype(zero);
                const From* from = static_cast<const From*>(view.values) + view.start;
                each_row(block, [&](int i, int64_t row) SABOT_INLINE {
                    if constexpr (std::is_floating_point_v<From>) {
                        prefixes[i] = from[row] != from[row] ? ~0ULL : ordered(static_cast<double>(from[row])) ^ flip;
                    } else if constexpr (std::is_unsigned_v<From>) {
                        prefixes[i] = static_cast<uint64_t>(from[row]) ^ flip;
                    } else {
                        prefixes[i] = ordered(static_cast<int64_t>(from[row])) ^ flip;
                    }
                });
            });
        }
        if (view.nullable()) {
            each_row(block, [&](int i, int64_t row) {
                if (!view.valid(row)) prefixes[i] = ~0ULL, nulls[i] = 1;
            });
        }
    }
    /* Writes the sort key of a row to `sort_scratch`. Returns its first 8 bytes. A column is written as 0 and the
       value, 1 for NaN, or 2 for null. */
    uint64_t sort_key(const std::vector<Source>& columns, const std::vector<View>& views, int64_t row) {
        Bytes& out = sort_scratch;
        out.clear();
        for (size_t i = 0; i < by.size(); i++) {
            const Source& source = columns[by[i].index];
            if (!source.valid(row)) {
                out.push_back(2);
                continue;
            }
            const size_t start = out.size() + 1;
            out.push_back(0);
            if (by[i].decimal) {
                const int64_t width = source.node->width;
                const uint8_t* value = source.values + (source.start + row) * width;
                for (int64_t k = width - 1; k >= 0; k--) out.push_back(value[k]);
                out[start] ^= 0x80;
            } else if (has_bytes(views[i].type)) {
                int64_t size;
                const uint8_t* data = views[i].bytes_at(row, &size);
                for (int64_t k = 0; k < size; k++) {
                    out.push_back(data[k]);
                    if (data[k] == 0) out.push_back(0xFF);
                }
                out.push_back(0);
                out.push_back(0);
            } else if (!put_number(views[i], row, out)) {
                out.back() = 1;
                continue;
            }
            if (by[i].descending)
                for (size_t k = start; k < out.size(); k++) out[k] = static_cast<uint8_t>(~out[k]);
        }
        uint64_t prefix = 0;
        for (size_t k = 0; k < 8 && k < out.size(); k++) prefix |= static_cast<uint64_t>(out[k]) << (56 - 8 * k);
        return prefix;
    }
    /* Returns false for NaN. */
    static bool put_number(const View& view, int64_t row, Bytes& out) {
        uint64_t word = 0;
        bool there = true;
        if (view.type == Type::bool_) {
            word = view.truth(row);
        } else {
            with_number(view.type, [&](auto zero) {
                using From = decltype(zero);
                const From value = static_cast<const From*>(view.values)[view.start + row];
                if constexpr (std::is_floating_point_v<From>) there = value == value, word = ordered(static_cast<double>(value));
                else if constexpr (std::is_unsigned_v<From>) word = value;
                else word = ordered(static_cast<int64_t>(value));
            });
        }
        if (!there) return false;
        for (int k = 56; k >= 0; k -= 8) out.push_back(static_cast<uint8_t>(word >> k));
        return true;
    }

    /* Adding and removing rows */

    bool full(const Key& key) const {
        return ties == Ties::dense_rank ? key.distinct >= n : static_cast<int64_t>(key.order.size()) >= n;
    }
    /* Returns true if a row can enter whose prefix equals the bound. */
    bool enters(int32_t slot, uint64_t prefix, uint64_t number) const {
        const Key& key = keys[slot];
        if (changes || !full(key)) return true;
        const Probe probe(prefix, number, sort_scratch.data(), static_cast<uint32_t>(sort_scratch.size()));
        const int than = compare_keys(probe, Probe(key.order.last()), exact);
        return than < 0 || (than == 0 && ties != Ties::row_number);
    }
    /* Adds the row whose bytes are in `scratch` and whose sort key is in `sort_scratch`. */
    void insert(int32_t slot, uint64_t prefix, uint64_t number, int64_t time) {
        const uint32_t size = static_cast<uint32_t>(scratch.size());
        const uint32_t sort_size = exact ? 0 : static_cast<uint32_t>(sort_scratch.size());
        Row* row = static_cast<Row*>(pool.take(sizeof(Row) + size + sort_size));
        row->prefix = prefix, row->number = number, row->time = time, row->next = nullptr, row->hash = 0;
        row->slot = slot, row->size = size, row->sort_size = sort_size, row->rank = 0;
        std::memcpy(row->bytes(), scratch.data(), size);
        if (sort_size) std::memcpy(row->bytes() + size, sort_scratch.data(), sort_size);
        const Entry entry(row);
        Key& key = keys[slot];
        if (walks()) touch(key, slot, entry);
        else fresh.push_back(row);
        if (changes) {
            row->hash = sabot_hash(row->bytes(), size);
            index.put(row);
        }
        row_bytes += row->nbytes();
        enter(key, slot, entry);
    }
    void enter(Key& key, int32_t slot, const Entry& entry) {
        if (!changes && ties == Ties::dense_rank) {
            const auto group = key.order.group(entry, exact);
            key.distinct += key.order.is_end(group) || compare_keys(Probe(key.order.at(group)), Probe(entry), exact) != 0;
        }
        key.order.insert(entry, exact, changes ? 4 : static_cast<size_t>(std::min<int64_t>(n + 1, 4)));
        rows++;
        if (!changes) evict(key, slot);
    }
    void touch(Key& key, int32_t slot, const Entry& entry) {
        if (key.touch == 0) {
            touched.push_back({slot, entry});
            key.touch = touched.size();
        } else {
            Entry& least = touched[key.touch - 1].least;
            if (compare(Probe(entry), Probe(least), exact) < 0) least = entry;
        }
    }
    void remove(Key& key, Ordered::Place place) {
        const Entry entry = key.order.at(place);
        key.order.erase(place);
        rows--;
        if (borrows) return;
        row_bytes -= entry.row->nbytes();
        gone.push_back(entry);
    }
    void remove_last(Key& key) {
        if (!walks() && !borrows) key.order.last().row->rank = EVICTED;
        remove(key, key.order.ahead(key.order.end()));
    }
    /* Removes rows that cannot be among the first n any more. */
    void evict(Key& key, int32_t slot) {
        Ordered& order = key.order;
        const size_t most = static_cast<size_t>(n);
        if (ties == Ties::row_number) {
            while (order.size() > most) remove_last(key);
        } else if (ties == Ties::rank) {
            while (order.size() > most) {
                const size_t first = order.index_of(order.group(order.last(), exact));
                if (first < most) break;
                while (order.size() > first) remove_last(key);
            }
        } else if (key.distinct > n) {
            const size_t first = order.index_of(order.group(order.last(), exact));
            while (order.size() > first) remove_last(key);
            key.distinct--;
        }
        bounds[slot] = full(key) ? order.last().prefix : ~0ULL;
    }
    /* Removes the row whose bytes are in `scratch`. Returns false if it does not exist. */
    bool take() {
        const uint32_t size = static_cast<uint32_t>(scratch.size());
        Row* row = index.take(sabot_hash(scratch.data(), size), scratch.data(), size);
        if (row == nullptr) return false;
        const Entry entry(row);
        Key& key = keys[row->slot];
        touch(key, row->slot, entry);
        remove(key, key.order.find(Probe(entry), exact));
        return true;
    }

    /* Changes of the result */

    Entry edge_of(const Key& key) const {
        const Ordered& order = key.order;
        if (order.size() == 0) return Entry();
        if (!changes) return order.last();
        if (ties == Ties::dense_rank) {
            auto place = order.begin();
            for (int64_t i = 0; i < n && !order.is_end(place); i++) place = order.beyond(order.at(place), exact);
            return order.at(order.ahead(place));
        }
        if (static_cast<int64_t>(order.size()) <= n) return order.last();
        const Entry& nth = order.at(order.place_of(n - 1));
        return ties == Ties::row_number ? nth : order.at(order.ahead(order.beyond(nth, exact)));
    }
    /* Returns the rank of an entry at `place`, which follows the entry `last` with the rank `rank`. */
    int64_t next_rank(int64_t rank, int64_t place, const Entry& last, const Entry& entry) const {
        if (ties == Ties::row_number || last.row == nullptr) return place + 1;
        if (compare_keys(Probe(last), Probe(entry), exact) == 0) return rank;
        return ties == Ties::rank ? place + 1 : rank + 1;
    }
    bool within(const Entry& entry, const Entry& edge) const {
        return edge.row != nullptr && compare(Probe(entry), Probe(edge), exact) <= 0;
    }
    void settle_key(Key& key, const Touch& touch, size_t& left) {
        const Entry old_edge = key.edge, edge = edge_of(key);
        key.edge = edge;
        was.clear();
        now.clear();
        takes.clear();
        const size_t first_add = adds.size();
        auto of_removed = [&](const Entry* upto) { /* counts removed rows before this entry */
            for (; left < gone.size() && gone[left].row->slot == touch.slot; left++) {
                const Entry& entry = gone[left];
                if (upto != nullptr && compare(Probe(entry), Probe(*upto), exact) > 0) return;
                if (arrival(entry) >= first_number || !within(entry, old_edge)) continue;
                if (numbered()) was.push_back(entry);
                else takes.push_back({entry.row, entry.row->rank, DELETE});
            }
        };
        auto at = key.order.find(Probe(touch.least), exact);
        int64_t place = ranked ? static_cast<int64_t>(key.order.index_of(at)) : 0;
        const int64_t start = place;
        Entry last = ranked && place > 0 ? key.order.at(key.order.ahead(at)) : Entry();
        int64_t rank = last.row == nullptr ? 0 : last.row->rank;
        for (; !key.order.is_end(at); at = key.order.after(at)) {
            const Entry& entry = key.order.at(at);
            const bool is_in = within(entry, edge), before_edge = within(entry, old_edge);
            if (!is_in && !before_edge) break;
            const bool was_in = before_edge && arrival(entry) < first_number;
            of_removed(&entry);
            if (numbered()) {
                if (was_in) was.push_back(entry);
                if (is_in) now.push_back(entry);
                continue;
            }
            int64_t given = was_in ? 1 : 0, gives = is_in ? 1 : 0;
            if (ranked) {
                given = entry.row->rank;
                gives = is_in ? rank = next_rank(rank, place, last, entry) : 0;
                entry.row->rank = static_cast<uint32_t>(gives);
                last = entry;
                place++;
            }
            if (given == gives) continue;
            if (given) takes.push_back({entry.row, given, DELETE});
            if (gives) adds.push_back({entry.row, gives, INSERT});
        }
        of_removed(nullptr);
        if (numbered()) {
            pairs(start);
        } else {
            if (changes && !takes.empty() && adds.size() > first_add) cancel(first_add);
            out.insert(out.end(), takes.begin(), takes.end());
        }
    }
    bool numbered() const { return ranked && ties == Ties::row_number; }
    /* Emits the changes from `was` to `now`, whose first rows have the rank after `start`. */
    void pairs(int64_t start) {
        for (size_t i = 0; i < was.size() || i < now.size(); i++) {
            const int64_t rank = start + static_cast<int64_t>(i) + 1;
            if (i >= was.size()) {
                out.push_back({now[i].row, rank, INSERT});
            } else if (i >= now.size()) {
                out.push_back({was[i].row, rank, DELETE});
            } else if (was[i].row != now[i].row && !was[i].row->equals(*now[i].row)) {
                out.push_back({was[i].row, rank, UPDATE_BEFORE});
                out.push_back({now[i].row, rank, UPDATE_AFTER});
            }
        }
    }
    /* Cancels opposite changes of equal rows: of `takes`, and of `adds` from `first` on. */
    void cancel(size_t first) {
        auto less = [](const Change& a, const Change& b) {
            if (a.rank != b.rank) return a.rank < b.rank;
            if (a.row->hash != b.row->hash) return a.row->hash < b.row->hash;
            if (a.row->size != b.row->size) return a.row->size < b.row->size;
            return std::memcmp(a.row->bytes(), b.row->bytes(), a.row->size) < 0;
        };
        std::vector<Change> added(adds.begin() + first, adds.end());
        if (!ranked)
            for (Change& take : takes) take.rank = 1; /* the rank of the added rows */
        std::stable_sort(takes.begin(), takes.end(), less);
        std::stable_sort(added.begin(), added.end(), less);
        std::vector<Change> kept;
        adds.resize(first);
        std::set_difference(takes.begin(), takes.end(), added.begin(), added.end(), std::back_inserter(kept), less);
        std::set_difference(added.begin(), added.end(), takes.begin(), takes.end(), std::back_inserter(adds), less);
        takes.swap(kept);
    }
};

}  // namespace sabot
