/* An index of the rows of all keys by order. It finds the rows below a bound without reading the others.

   Rows are indexed when the index is queried: those that came since the last query are sorted and become a run. Runs
   are merged so that each is at least twice as long as the next (O'Neil, Cheng, Gawlick, O'Neil, The log-structured
   merge-tree, 1996). So a row is moved O(log n) times, and a query reads O(log n) runs. Removed rows are skipped, and
   dropped by merges.

   Nothing here needs the GIL. Functions throw only std::bad_alloc. */
#pragma once

#include <algorithm>
#include <vector>

#include "rows/row_chain.h"

namespace sabot {

class OrderRuns {
  public:
    int64_t next_id = 0; /* rows from this id on are not indexed yet */

    /* Adds rows in any order. */
    template <class Live>
    void take_in(std::vector<Entry>&& more, int64_t rows, Live live) {
        if (!more.empty()) {
            if (!std::is_sorted(more.begin(), more.end())) std::sort(more.begin(), more.end());
            runs_.push_back({std::move(more), 0});
        }
        while (runs_.size() > 1 && runs_[runs_.size() - 2].left() < 2 * runs_.back().left()) merge_last(live);
        if (size() > 2 * rows + 65536)
            while (!runs_.empty() && (runs_.size() > 1 || size() > 2 * rows + 65536)) merge_last(live);
    }

    /* Calls body(entry) for each live row with an order below the bound, run by run. `consume`: true if these rows
       shall not be returned again. */
    template <class Live, class Body>
    void below(int64_t order, bool consume, Live live, Body body) {
        for (Run& run : runs_) {
            size_t at = run.at;
            bool all_dead = true;
            for (; at < run.entries.size() && run.entries[at].order < order; at++) {
                if (live(run.entries[at].id)) {
                    all_dead = all_dead && consume;
                    body(run.entries[at]);
                }
                if (all_dead) run.at = at + 1;
            }
        }
        for (Run& run : runs_) {
            if (run.at * 2 <= run.entries.size() || run.at < 1024) continue;
            std::vector<Entry>(run.entries.begin() + run.at, run.entries.end()).swap(run.entries);
            run.at = 0;
        }
    }

    int64_t nbytes() const {
        int64_t total = 0;
        for (const Run& run : runs_) total += run.entries.capacity() * sizeof(Entry);
        return total;
    }

  private:
    struct Run {
        std::vector<Entry> entries;
        size_t at; /* the entries before this index were consumed */
        size_t left() const { return entries.size() - at; }
    };
    std::vector<Run> runs_;

    int64_t size() const {
        int64_t total = 0;
        for (const Run& run : runs_) total += run.left();
        return total;
    }
    template <class Live>
    void merge_last(Live live) {
        Run last = std::move(runs_.back());
        runs_.pop_back();
        Run none{{}, 0};
        Run& into = runs_.empty() ? none : runs_.back();
        std::vector<Entry> merged;
        merged.reserve(into.left() + last.left());
        auto keep = [&](const Entry& entry) {
            if (live(entry.id)) merged.push_back(entry);
        };
        size_t i = into.at, j = last.at;
        while (i < into.entries.size() && j < last.entries.size())
            keep(last.entries[j] < into.entries[i] ? last.entries[j++] : into.entries[i++]);
        while (i < into.entries.size()) keep(into.entries[i++]);
        while (j < last.entries.size()) keep(last.entries[j++]);
        if (runs_.empty()) {
            if (!merged.empty()) runs_.push_back({std::move(merged), 0});
            return;
        }
        if (merged.empty()) runs_.pop_back();
        else runs_.back() = {std::move(merged), 0};
    }
};

}  // namespace sabot
