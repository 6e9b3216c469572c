/* The neighbours of a row among the rows of its key: the rows before it (Places) and the rows after it (Waiting). See
   over.pyi.

   Nothing here needs the GIL. Functions throw only std::bad_alloc (`except +`). */
#pragma once

#include <map>

#include "rows/row_bytes.h"

namespace sabot {

constexpr int64_t NO_ROW = -1;

struct Kept {
    int64_t time, number;
    int64_t mark; /* its index in the results of this call, or -1 */
    int32_t slot;
    uint32_t size;

    uint8_t* bytes() { return reinterpret_cast<uint8_t*>(this + 1); }
    const uint8_t* bytes() const { return reinterpret_cast<const uint8_t*>(this + 1); }
    int64_t nbytes() const { return sizeof(Kept) + size; }
};

struct Arrived {
    int64_t time;
    int32_t i; /* the number of the row in this call */
};

/* The rows of a call by slot. The rows of a slot are sorted by time; rows with equal times stay in the order in which
   they came. */
class BySlot {
   public:
    std::vector<int32_t> slots; /* the slots that have rows, in the order of their first rows */

    void sort(const int32_t* of, int64_t count) {
        next.assign(count, -1);
        slots.clear();
        for (int64_t i = 0; i < count; i++) {
            if (of[i] >= static_cast<int64_t>(first.size())) {
                first.resize(std::max<size_t>(of[i] + 1, first.size() * 3 / 2), -1);
                last.resize(first.size(), -1);
            }
            if (first[of[i]] < 0) {
                first[of[i]] = static_cast<int32_t>(i);
                slots.push_back(of[i]);
            } else {
                next[last[of[i]]] = static_cast<int32_t>(i);
            }
            last[of[i]] = static_cast<int32_t>(i);
        }
    }
    /* Returns the rows of a slot. May be called once for each slot. */
    const std::vector<Arrived>& take(int32_t slot, const int64_t* times, const int32_t* chosen) {
        rows.clear();
        bool sorted = true;
        for (int32_t i = first[slot]; i >= 0; i = next[i]) {
            const int64_t time = times[chosen ? chosen[i] : i];
            sorted = sorted && (rows.empty() || rows.back().time <= time);
            rows.push_back({time, i});
        }
        first[slot] = -1;
        if (!sorted) {
            std::stable_sort(rows.begin(), rows.end(), [](const Arrived& a, const Arrived& b) { return a.time < b.time; });
        }
        return rows;
    }
    int64_t nbytes() const { return (first.capacity() + last.capacity() + next.capacity()) * 4; }

   private:
    std::vector<int32_t> first, last, next;
    std::vector<Arrived> rows;
};

/* Keeps rows as bytes. */
class Keeping {
   public:
    Layout layout;
    int64_t rows = 0;

    Kept* keep(const std::vector<Source>& columns, int64_t row, int64_t time, int64_t number, int32_t slot) {
        layout.write(columns, row, scratch);
        Kept* kept = static_cast<Kept*>(pool.take(sizeof(Kept) + scratch.size()));
        *kept = {time, number, -1, slot, static_cast<uint32_t>(scratch.size())};
        std::memcpy(kept->bytes(), scratch.data(), scratch.size());
        rows++;
        return kept;
    }
    void drop(Kept* kept) {
        rows--;
        pool.give(kept, kept->nbytes());
    }
    int64_t nbytes() const { return pool.nbytes(); }

   private:
    RowPool pool;
    Bytes scratch;
};

/* The position of each row among the rows of its key, by time: numbers, ranks, and values of earlier rows.

   `last`: the key's newest rows, at most `depth` of them, the oldest first. */
class Places {
   public:
    Keeping kept; /* the rows, with the columns whose values are returned */
    int64_t depth = 0;
    std::vector<int64_t> offsets; /* 1 to depth */

    /* The results of the last `add`, by row. `sources`, by offset: i >= 0 for row i of this call; -1 for none; -2 - h
       for history[h]. */
    std::vector<int64_t> numbers, ranks, dense_ranks;
    std::vector<std::vector<int64_t>> sources;
    std::vector<const Kept*> history;

    ~Places() {
        for (Key& key : keys)
            for (Kept* row : key.last) kept.drop(row);
        bury();
    }

    void add(
        const std::vector<Source>& columns, const int32_t* slots, const int32_t* chosen, int64_t count, const int64_t* times
    ) {
        bury();
        history.clear();
        numbers.resize(count);
        ranks.resize(count);
        dense_ranks.resize(count);
        sources.resize(offsets.size());
        for (auto& each : sources) each.assign(count, NO_ROW);
        by_slot.sort(slots, count);
        for (const int32_t slot : by_slot.slots) {
            if (slot >= static_cast<int64_t>(keys.size())) keys.resize(std::max<size_t>(slot + 1, keys.size() * 3 / 2));
            Key& key = keys[slot];
            const std::vector<Arrived>& mine = by_slot.take(slot, times, chosen);
            number(key, mine);
            if (depth > 0) look_back(key, slot, mine, columns, chosen);
        }
    }
    int64_t used() const { return present; }
    int64_t nbytes() const {
        return keys.capacity() * sizeof(Key) + kept.nbytes() + kept.rows * 8 + by_slot.nbytes();
    }
    /* Appends all slots that have counted rows. */
    void every(std::vector<int32_t>& slots) const {
        for (size_t slot = 0; slot < keys.size(); slot++)
            if (keys[slot].rows > 0) slots.push_back(static_cast<int32_t>(slot));
    }
    /* Appends those of these slots that have counted rows. */
    void there(const int32_t* slots, int64_t count, std::vector<int32_t>& out) const {
        for (int64_t i = 0; i < count; i++)
            if (slots[i] < static_cast<int64_t>(keys.size()) && keys[slots[i]].rows > 0) out.push_back(slots[i]);
    }
    /* Returns the counters of these slots (rows, newest, rank, dense rank) and how many of their rows are kept. */
    void counters(
        const std::vector<int32_t>& slots, int64_t* rows, int64_t* newest, int64_t* rank, int64_t* dense, int64_t* last
    ) const {
        for (size_t i = 0; i < slots.size(); i++) {
            const Key& key = keys[slots[i]];
            rows[i] = key.rows, newest[i] = key.newest, rank[i] = key.rank, dense[i] = key.dense;
            last[i] = static_cast<int64_t>(key.last.size());
        }
    }
    void load_counter(int32_t slot, int64_t rows, int64_t newest, int64_t rank, int64_t dense) {
        if (slot >= static_cast<int64_t>(keys.size())) keys.resize(std::max<size_t>(slot + 1, keys.size() * 3 / 2));
        present += (rows > 0) - (keys[slot].rows > 0);
        keys[slot].rows = rows, keys[slot].newest = newest, keys[slot].rank = rank, keys[slot].dense = dense;
    }
    void history_of(const std::vector<int32_t>& slots, std::vector<const Kept*>& out) const {
        for (const int32_t slot : slots) out.insert(out.end(), keys[slot].last.begin(), keys[slot].last.end());
    }
    /* Removes these slots. */
    void remove(const int32_t* slots, int64_t count) {
        for (int64_t i = 0; i < count; i++) {
            if (slots[i] >= static_cast<int64_t>(keys.size())) continue;
            Key& key = keys[slots[i]];
            for (Kept* row : key.last) kept.drop(row);
            present -= key.rows > 0;
            key = Key();
        }
    }
    /* Loads the next row of a slot. Returns false if its counter is missing, or it has `depth` rows already. */
    bool load(const std::vector<Source>& columns, int64_t row, int32_t slot, int64_t time) {
        if (slot >= static_cast<int64_t>(keys.size()) || static_cast<int64_t>(keys[slot].last.size()) >= depth) return false;
        keys[slot].last.push_back(kept.keep(columns, row, time, 0, slot));
        return true;
    }

   private:
    struct Key {
        int64_t rows = 0, newest = 0, rank = 0, dense = 0;
        std::vector<Kept*> last;
    };
    struct Seen {
        int64_t time;
        int64_t i; /* a row of this call, or -1 - k for key.last[k] */
    };

    std::vector<Key> keys;
    BySlot by_slot;
    int64_t present = 0; /* the number of slots that have counted rows */
    std::vector<Kept*> gone;
    std::vector<Seen> seen;
    std::vector<Kept*> left;

    void bury() {
        for (Kept* row : gone) kept.drop(row);
        gone.clear();
    }
    void number(Key& key, const std::vector<Arrived>& mine) {
        present += key.rows == 0;
        for (const Arrived& row : mine) {
            key.rows++;
            if (key.rows == 1 || row.time > key.newest) {
                key.newest = row.time;
                key.rank = key.rows;
                key.dense++;
            }
            numbers[row.i] = key.rows;
            ranks[row.i] = key.rank;
            dense_ranks[row.i] = key.dense;
        }
    }
    void look_back(
        Key& key, int32_t slot, const std::vector<Arrived>& mine, const std::vector<Source>& columns, const int32_t* chosen
    ) {
        seen.clear();
        for (size_t k = 0, m = 0; k < key.last.size() || m < mine.size();) {
            const bool is_old = m == mine.size() || (k < key.last.size() && key.last[k]->time <= mine[m].time);
            if (is_old) seen.push_back({key.last[k]->time, -1 - static_cast<int64_t>(k)}), k++;
            else seen.push_back({mine[m].time, mine[m].i}), m++;
        }
        for (size_t p = 0; p < seen.size(); p++) {
            if (seen[p].i < 0) continue;
            for (size_t o = 0; o < offsets.size(); o++) {
                if (static_cast<int64_t>(p) < offsets[o]) continue;
                const int64_t i = seen[p - offsets[o]].i;
                sources[o][seen[p].i] = i >= 0 ? i : remembered(key.last[-1 - i]);
            }
        }
        left.clear();
        const size_t from = seen.size() > static_cast<size_t>(depth) ? seen.size() - depth : 0;
        for (size_t p = 0; p < seen.size(); p++) {
            const int64_t i = seen[p].i;
            if (i < 0 && p < from) gone.push_back(key.last[-1 - i]);
            if (p < from) continue;
            left.push_back(i < 0 ? key.last[-1 - i] : kept.keep(columns, chosen ? chosen[i] : i, seen[p].time, 0, slot));
        }
        key.last.assign(left.begin(), left.end());
        for (Kept* row : key.last) row->mark = -1;
    }
    int64_t remembered(Kept* row) {
        if (row->mark < 0) {
            row->mark = static_cast<int64_t>(history.size());
            history.push_back(row);
        }
        return -2 - row->mark;
    }
};

/* Rows that wait until `depth` rows of their key have come after them, by time. */
class Waiting {
   public:
    Keeping kept;
    int64_t depth = 1;
    int64_t next_number = 0;
    std::vector<int64_t> offsets; /* 1 to depth */

    /* The results of the last `add` or `flush`, in the order of arrival. `sources`, by offset: the row ahead, or
       null. */
    std::vector<const Kept*> ready;
    std::vector<std::vector<const Kept*>> sources;

    ~Waiting() {
        for (Key& key : keys)
            for (Kept* row : key) kept.drop(row);
        bury();
    }
    int64_t waiting() const { return kept.rows - static_cast<int64_t>(gone.size()); }
    int64_t nbytes() const {
        return keys.capacity() * sizeof(Key) + kept.nbytes() + kept.rows * 8 + times_there.size() * 64 + by_slot.nbytes();
    }
    /* Returns the time of the oldest waiting row; there must be one. */
    int64_t least() const { return times_there.begin()->first; }

    void add(
        const std::vector<Source>& columns, const int32_t* slots, const int32_t* chosen, int64_t count, const int64_t* times
    ) {
        bury();
        by_slot.sort(slots, count);
        for (const int32_t slot : by_slot.slots) {
            if (slot >= static_cast<int64_t>(keys.size())) keys.resize(std::max<size_t>(slot + 1, keys.size() * 3 / 2));
            Key& key = keys[slot];
            const size_t there = key.size();
            for (const Arrived& row : by_slot.take(slot, times, chosen)) {
                key.push_back(kept.keep(columns, chosen ? chosen[row.i] : row.i, row.time, next_number + row.i, slot));
                times_there[row.time]++;
            }
            std::inplace_merge(key.begin(), key.begin() + there, key.end(), [](const Kept* a, const Kept* b) { return a->time < b->time; });
            if (static_cast<int64_t>(key.size()) > depth) release(key, key.size() - depth);
        }
        next_number += count;
        arrange();
    }
    /* Releases all rows at the end of the input. OUT slots: those that had rows. */
    void flush(std::vector<int32_t>& slots) {
        bury();
        for (size_t slot = 0; slot < keys.size(); slot++) {
            if (keys[slot].empty()) continue;
            release(keys[slot], keys[slot].size());
            slots.push_back(static_cast<int32_t>(slot));
        }
        arrange();
    }
    void all(std::vector<const Kept*>& out) const {
        for (const Key& key : keys) out.insert(out.end(), key.begin(), key.end());
    }
    void rows_of(const int32_t* slots, int64_t count, std::vector<const Kept*>& out) const {
        for (int64_t i = 0; i < count; i++)
            if (slots[i] < static_cast<int64_t>(keys.size())) {
                out.insert(out.end(), keys[slots[i]].begin(), keys[slots[i]].end());
            }
    }
    /* Removes the rows of these slots. */
    void remove(const int32_t* slots, int64_t count) {
        for (int64_t i = 0; i < count; i++) {
            if (slots[i] >= static_cast<int64_t>(keys.size())) continue;
            for (Kept* row : keys[slots[i]]) {
                forget(row->time);
                kept.drop(row);
            }
            keys[slots[i]] = Key();
        }
    }
    /* Loads the next row of a slot. */
    void load(const std::vector<Source>& columns, int64_t row, int32_t slot, int64_t time, int64_t number) {
        if (slot >= static_cast<int64_t>(keys.size())) keys.resize(std::max<size_t>(slot + 1, keys.size() * 3 / 2));
        keys[slot].push_back(kept.keep(columns, row, time, number, slot));
        times_there[time]++;
        next_number = std::max(next_number, number + 1);
    }

   private:
    using Key = std::vector<Kept*>;

    std::vector<Key> keys;
    BySlot by_slot;
    std::vector<Kept*> gone;
    std::vector<Kept*> out;
    std::vector<std::vector<const Kept*>> out_sources;
    std::map<int64_t, int64_t> times_there; /* the number of waiting rows by time */

    void bury() {
        for (Kept* row : gone) kept.drop(row);
        gone.clear();
        out.clear();
        out_sources.assign(offsets.size(), {});
    }
    void forget(int64_t time) {
        auto at = times_there.find(time);
        if (--at->second == 0) times_there.erase(at);
    }
    /* Releases the first `count` rows of a key, which need not wait any more. */
    void release(Key& key, size_t count) {
        for (size_t k = 0; k < count; k++) {
            Kept* row = key[k];
            forget(row->time);
            out.push_back(row);
            gone.push_back(row);
            for (size_t o = 0; o < offsets.size(); o++) {
                out_sources[o].push_back(k + offsets[o] < key.size() ? key[k + offsets[o]] : nullptr);
            }
        }
        key.erase(key.begin(), key.begin() + count);
    }
    void arrange() {
        std::vector<int64_t> order(out.size());
        for (size_t i = 0; i < order.size(); i++) order[i] = static_cast<int64_t>(i);
        std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
            return out[a]->number != out[b]->number ? out[a]->number < out[b]->number : a < b;
        });
        ready.resize(out.size());
        sources.assign(offsets.size(), std::vector<const Kept*>(out.size()));
        for (size_t i = 0; i < order.size(); i++) {
            ready[i] = out[order[i]];
            for (size_t o = 0; o < offsets.size(); o++) sources[o][i] = out_sources[o][order[i]];
        }
    }
};

}  // namespace sabot
