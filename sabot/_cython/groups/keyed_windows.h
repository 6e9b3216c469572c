/* The results of windows of several panes, from one table of groups whose last key is the pane.

   A group has a pane, and the panes are divided into blocks of as many panes as a window has, so that a window lies in
   at most two blocks. For each group, the accumulators of its key are merged from the beginning of its block up to it
   (before_), and from it to the end of its block (after_):

           blocks      | 0  1  2  3 | 4  5  6  7 |      windows of 4 panes
           window            2..5                       after_[2] = 2+3, before_[5] = 4+5

   So each window takes one merge for each of its keys, however many panes it has. This is the algorithm of van Herk,
   A fast algorithm for local minimum and maximum filters (1992), without its inner loop. Blocks are counted from a fixed
   time. Therefore the order in which the panes of a window are added, on which the last digits of sums of floats depend,
   follows from the panes and the window alone.

   Nothing here needs the GIL. The table must not change meanwhile. A sum that overflows is noted in the table, as there. */
#pragma once

#include "groups/keyed_table.h"

namespace sabot {

class Windows {
  public:
    explicit Windows(Table* table) : table_(*table) {}

    /* `slots`: groups by ascending panes. `blocks`: the block of the pane of each. `starts`, `ends`: the windows, both
       ascending. `last_blocks`: the block of each window whose groups are merged from its beginning: that of its last
       pane, or the one behind, if the last pane ends its block. Throws std::bad_alloc, and
       std::invalid_argument if any of them are not ascending. */
    void open(
        const int32_t* slots, const int64_t* blocks, int64_t groups, const int64_t* starts, const int64_t* ends,
        const int64_t* last_blocks, int64_t windows
    ) {
        slots_.assign(slots, slots + groups);
        blocks_.assign(blocks, blocks + groups);
        starts_.assign(starts, starts + windows);
        ends_.assign(ends, ends + windows);
        last_blocks_.assign(last_blocks, last_blocks + windows);
        pane_at_ = table_.keys_.back().at;
        panes_.resize(groups);
        for (int64_t i = 0; i < groups; i++) panes_[i] = get<int64_t>(table_.row(slots_[i] + 1) + pane_at_);
        for (const auto* each : {&panes_, &blocks_, &starts_, &ends_, &last_blocks_})
            if (!std::is_sorted(each->begin(), each->end())) throw std::invalid_argument("groups and windows must be ascending");
        link();
        count();
        merge();
    }

    /* Goes on to the next windows, of at most `most` results, but at least one window. Returns the number of results, 0
       at the end. Throws std::bad_alloc. */
    int64_t next(int64_t most) {
        const int64_t windows = static_cast<int64_t>(ends_.size()), groups = static_cast<int64_t>(slots_.size());
        int64_t total = 0;
        begin_ = end_;
        std::vector<int64_t> places;
        while (end_ < windows && (total == 0 || total + counts_[end_] <= most)) {
            places.push_back(total);
            total += counts_[end_++];
        }
        rows_.resize(total * table_.stride_);
        last_.resize(total);
        windows_.resize(total);
        spans_.resize(2 * total);
        std::vector<int32_t> first(total); /* the group from which on the key's groups of the first block count, or -1 */
        while (total && group_ < groups && panes_[group_] < starts_[begin_]) group_++;
        for (int64_t g = group_; total && g < groups && panes_[g] < ends_[end_ - 1]; g++) {
            int32_t& cursor = cursors_[keys_[g]];
            for (int64_t w = std::max<int64_t>(from_[g], begin_); w < std::min<int64_t>(upto_[g], end_); w++) {
                while (panes_[cursor] < starts_[w]) cursor = next_[cursor];
                const int64_t place = places[w - begin_]++;
                const bool in_last = blocks_[g] >= last_blocks_[w];
                last_[place] = in_last ? static_cast<int32_t>(g) : -1;
                first[place] = blocks_[cursor] >= last_blocks_[w] ? -1 : cursor;
                windows_[place] = static_cast<int32_t>(w);
                spans_[place] = ranks_[cursor];
                spans_[total + place] = ranks_[g];
            }
        }
        combine(first, total);
        return total;
    }

    int64_t key_bytes(int key) const {
        return table_.key_bytes_of(key, static_cast<int64_t>(windows_.size()), [&](int64_t i) { return result(i); });
    }
    /* Writes the columns of the results. */
    void columns(const std::vector<Source>& sources, Output* outputs) const {
        table_.columns_of(sources, static_cast<int64_t>(windows_.size()), table_.arena_.data(), outputs, [&](int64_t i) {
            return result(i);
        });
    }
    /* The window of each result. */
    const int32_t* windows() const { return windows_.data(); }
    /* The groups by key, those of a key by ascending panes: the place of each in `slots`. */
    const int32_t* order() const { return order_.data(); }
    /* For each result the first of its groups, then for each the last, as places in `order`. */
    const int32_t* spans() const { return spans_.data(); }

  private:
    Table& table_;
    int pane_at_ = 0;                    /* the offset of the pane in a row */
    std::vector<int32_t> slots_;
    std::vector<int64_t> panes_, blocks_; /* of each group */
    std::vector<int64_t> starts_, ends_, last_blocks_; /* of each window */
    std::vector<int32_t> keys_;          /* by group, the number of its key without the pane */
    std::vector<int32_t> previous_, next_; /* by group, the one of the same key before and after it, or -1 */
    std::vector<int32_t> order_, ranks_; /* the groups by key, and by group its place in them */
    std::vector<int32_t> cursors_;       /* by key, its first group that the windows from begin_ on may need */
    std::vector<int32_t> from_, upto_;   /* by group, the windows in which it is the last of its key */
    std::vector<int64_t> counts_;        /* by window, its results */
    std::vector<uint8_t> before_, after_; /* rows of the table, by group */
    bool two_blocks_ = false;            /* true if groups of the first block of a window count */
    int64_t begin_ = 0, end_ = 0, group_ = 0; /* the current windows, and their first group */
    std::vector<uint8_t> rows_;          /* the results, as rows of the table */
    std::vector<int32_t> last_, windows_, spans_; /* by result */

    uint8_t* result(int64_t i) const { return const_cast<uint8_t*>(rows_.data()) + i * table_.stride_; }
    const uint8_t* group(int64_t i) const { return table_.row(slots_[i] + 1); }

    uint64_t hash_of(const uint8_t* row) const {
        uint64_t hash = get<uint64_t>(row + 8) & table_.key_nulls_;
        for (size_t k = 0; k + 1 < table_.keys_.size(); k++) {
            const KeyColumn& key = table_.keys_[k];
            const bool bytes = has_bytes(key.type);
            const Cell cell{get<uint64_t>(row + key.at), bytes ? get<uint64_t>(row + key.at + 8) : 0};
            const bool is_long = bytes && cell.is_long();
            hash = sabot_mix(hash ^ cell.low ^ SABOT_K0, (is_long ? cell.length() : cell.high) ^ SABOT_K1);
            if (is_long) hash ^= sabot_hash(table_.arena_.data() + cell.high, cell.length());
        }
        return hash;
    }
    bool same_key(const uint8_t* a, const uint8_t* b) const {
        if ((get<uint64_t>(a + 8) ^ get<uint64_t>(b + 8)) & table_.key_nulls_) return false;
        for (size_t k = 0; k + 1 < table_.keys_.size(); k++) {
            const int at = table_.keys_[k].at;
            if (get<uint64_t>(a + at) != get<uint64_t>(b + at)) return false;
            if (!has_bytes(table_.keys_[k].type)) continue;
            Cell cell{get<uint64_t>(b + at), get<uint64_t>(b + at + 8)};
            if (cell.is_long()) cell.high = reinterpret_cast<uint64_t>(table_.arena_.data() + cell.high);
            if (!table_.same_bytes(a + at, cell)) return false;
        }
        return true;
    }

    /* Numbers the keys, and links the groups of each. */
    void link() {
        const int64_t groups = static_cast<int64_t>(slots_.size());
        size_t places = 16;
        while (places < 2 * static_cast<size_t>(groups)) places *= 2;
        std::vector<int32_t> known(places, -1); /* by hash, the number of a key */
        std::vector<int32_t> latest;            /* by key, its last group so far */
        keys_.resize(groups);
        previous_.resize(groups);
        next_.assign(groups, -1);
        for (int64_t i = 0; i < groups; i++) {
            size_t at = hash_of(group(i)) & (places - 1);
            while (known[at] >= 0 && !same_key(group(latest[known[at]]), group(i))) at = (at + 1) & (places - 1);
            const bool is_new = known[at] < 0;
            if (is_new) {
                known[at] = static_cast<int32_t>(latest.size());
                latest.push_back(-1);
                cursors_.push_back(static_cast<int32_t>(i));
            }
            const int32_t key = keys_[i] = known[at];
            previous_[i] = latest[key];
            if (!is_new) next_[latest[key]] = static_cast<int32_t>(i);
            latest[key] = static_cast<int32_t>(i);
        }
        order_.reserve(groups);
        ranks_.resize(groups);
        for (const int32_t first : cursors_) {
            for (int32_t i = first; i >= 0; i = next_[i]) {
                ranks_[i] = static_cast<int32_t>(order_.size());
                order_.push_back(i);
            }
        }
    }

    /* Finds the windows in which each group is the last of its key. */
    void count() {
        const int64_t groups = static_cast<int64_t>(slots_.size());
        const int32_t windows = static_cast<int32_t>(ends_.size());
        std::vector<int64_t> changes(windows + 1, 0);
        from_.resize(groups);
        upto_.resize(groups);
        int32_t ended = 0, begun = 0; /* the first window that ends after the pane, and the first that begins after it */
        for (int64_t i = 0; i < groups; i++) {
            while (ended < windows && ends_[ended] <= panes_[i]) ended++;
            while (begun < windows && starts_[begun] <= panes_[i]) begun++;
            from_[i] = ended;
            upto_[i] = begun;
            if (previous_[i] >= 0) upto_[previous_[i]] = std::min(upto_[previous_[i]], ended);
        }
        for (int64_t i = 0; i < groups; i++) {
            if (from_[i] >= upto_[i]) continue;
            changes[from_[i]]++;
            changes[upto_[i]]--;
        }
        counts_.resize(windows);
        int64_t open = 0;
        for (int32_t w = 0; w < windows; w++) counts_[w] = open += changes[w];
        int64_t first = 0;
        for (int32_t w = 0; w < windows && !two_blocks_; w++) {
            while (first < groups && panes_[first] < starts_[w]) first++;
            two_blocks_ = first < groups && panes_[first] < ends_[w] && blocks_[first] < last_blocks_[w];
        }
    }

    /* Merges `other`, of group i, into a row. */
    void add(uint8_t* row, const uint8_t* other, int64_t i) {
        uint8_t* from = const_cast<uint8_t*>(other);
        table_.merge_rows(table_.aggregates_, &row, table_.aggregates_, &from, 1);
        if (table_.overflow >= 0 && table_.overflow_slot < 0) table_.overflow_slot = slots_[i];
    }

    void merge() {
        const int64_t groups = static_cast<int64_t>(slots_.size()), stride = table_.stride_;
        before_.resize(groups * stride);
        for (int64_t i = 0; i < groups; i++) {
            uint8_t* row = before_.data() + i * stride;
            const int32_t last = previous_[i];
            if (last < 0 || blocks_[last] != blocks_[i]) {
                std::memcpy(row, group(i), stride);
            } else {
                std::memcpy(row, before_.data() + last * stride, stride);
                add(row, group(i), i);
            }
        }
        if (!two_blocks_) return;
        after_.resize(groups * stride);
        for (int64_t i = groups - 1; i >= 0; i--) {
            uint8_t* row = after_.data() + i * stride;
            const int32_t later = next_[i];
            if (later < 0 || blocks_[later] != blocks_[i]) {
                std::memcpy(row, group(i), stride);
            } else { /* in this order, as a Slide has it: a variance depends on it */
                std::memcpy(row, after_.data() + later * stride, stride);
                add(row, group(i), i);
            }
        }
    }

    void combine(const std::vector<int32_t>& first, int64_t total) {
        const int64_t stride = table_.stride_;
        std::vector<uint8_t*> to(BLOCK_ROWS), from(BLOCK_ROWS);
        for (int64_t base = 0; base < total; base += BLOCK_ROWS) {
            const int64_t upto = std::min<int64_t>(base + BLOCK_ROWS, total);
            int some = 0;
            for (int64_t i = base; i < upto; i++) {
                const bool in_first = first[i] >= 0;
                std::memcpy(result(i), (in_first ? after_.data() + first[i] * stride : before_.data() + last_[i] * stride), stride);
                if (!in_first || last_[i] < 0) continue;
                to[some] = result(i);
                from[some++] = before_.data() + last_[i] * stride;
            }
            const bool already = table_.overflow >= 0;
            table_.merge_rows(table_.aggregates_, to.data(), table_.aggregates_, from.data(), some);
            if (already || table_.overflow < 0) continue;
            table_.overflow = -1; /* again one by one, to find out whose sum it is */
            for (int64_t i = base; i < upto && table_.overflow < 0; i++) {
                if (first[i] < 0 || last_[i] < 0) continue;
                std::memcpy(result(i), after_.data() + first[i] * stride, stride);
                add(result(i), before_.data() + last_[i] * stride, last_[i]);
            }
        }
    }
};

}  // namespace sabot
