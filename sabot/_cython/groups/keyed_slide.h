/* The groups of a window that slides over panes: one table, which panes enter and leave in the same order. No key is
   hashed and no pane's keys are copied: when a pane enters, its groups are found once, by the hashes in the pane's rows,
   and after that by their slots.

           panes    1  2  3  4 | 5  6  7      the window is 2 to 7; the next one is 3 to 8
           front       2  3  4 |              for each group of 2, the merged accumulators of 3+4: a stack, 2 on top, 4 at the bottom
           front_cell          2+3+4          by slot: the front as it is now
           back_cell              5+6+7       by slot: the back

   When 8 enters, it is merged into the back. When 2 leaves, the front of each of its groups is set to the accumulators of
   3+4. In both cases each group of the pane is then front + back, merged anew, so that the result depends on where the
   front ends and on nothing else: floats are added in an order that follows from the panes. When the front is used up, all
   panes of the back turn into a new front: from the last pane to the first, the merged accumulators of the panes after it
   are saved for each pane, and then the pane is merged into them. This is the two-stacks algorithm of Tangwongsan, Hirzel,
   Schneider: Low-latency sliding-window aggregation. It takes two passes over a pane's groups besides the pass in which it
   enters, and no subtraction, which would be inexact for sums of floats and impossible for minimum and maximum.

   A cell is a row of the table without hash and keys: | number of the last pane that has the
   group 4 · bits 4 | accumulators |. The pane number answers three questions: the group is removed when that pane leaves;
   the front or the back has the group if that pane is in it; and that pane is the first one to turn that has the group. So
   cells are never cleared: a cell with too low a number counts as empty. At a turn the two change places.

   Nothing here needs the GIL. `enter`, `turn` and `leave` throw what a Table throws (`except +`). */
#pragma once

#include "groups/keyed_table.h"

namespace sabot {

class Slide {
  public:
    explicit Slide(Table* window) : window_(*window) {}

    /* Lays out the cells. Call it after the table's `ready`. */
    void ready() {
        const int skipped = window_.body_at_ - 8; /* a cell is a row without its hash and keys */
        layout_ = window_.aggregates_;
        for (Aggregate& a : layout_) {
            a.at -= skipped;
            for (Bit* bit : {&a.seen, &a.null}) bit->at = bit->at == 8 ? 0 : bit->at - skipped;
        }
        width_ = window_.end_ - skipped;
        image_.assign(width_, 0);
        std::memcpy(image_.data() + 8, window_.image_.data() + window_.body_at_, width_ - 8);
    }

    int64_t nbytes() const { return static_cast<int64_t>(cells_.capacity() + front_room_); }
    int64_t groups_in_front() const { return front_size_ / width_; }

    void clear() {
        std::fill(cells_.begin(), cells_.end(), 0);
        back_ = 1;
        left_ = 0;
        front_size_ = 0;
    }

    /* Adds a pane, or a part of one. `number`: the pane's number, above all before; 0 for a pane that never leaves.
       OUT slots[pane.groups]. */
    void enter(const Table& pane, int32_t number, int32_t* slots) {
        Block block(0);
        std::vector<uint8_t*> cells(BLOCK_ROWS), from(BLOCK_ROWS);
        for (int64_t id = 1; id < pane.used_;) {
            const int n = pane.next_rows(&id, from.data());
            window_.find_rows(pane, from.data(), n, block);
            if (number) {
                make_room();
                for (int i = 0; i < n; i++) {
                    __builtin_prefetch(cells[i] = back_cell(block.id[i] - 1), 1);
                    __builtin_prefetch(front_cell(block.id[i] - 1));
                }
                with_width([&](auto width) {
                    for (int i = 0; i < n; i++) {
                        reset(cells[i], last_of(cells[i]) < back_, width);
                        put(cells[i], number);
                    }
                });
                const bool already = window_.overflow >= 0;
                window_.merge_rows(layout_, cells.data(), pane.aggregates_, from.data(), n);
                if (!already && window_.overflow >= 0) name_overflow(pane, block.at, from.data(), n);
                with_width([&](auto width) {
                    for (int i = 0; i < n; i++) {
                        const uint8_t* front = front_cell(block.id[i] - 1);
                        set(block.at[i], last_of(front) > left_ ? front : image_.data(), width);
                    }
                });
                window_.merge_rows(window_.aggregates_, block.at, layout_, cells.data(), n);
            } else {
                window_.merge_rows(window_.aggregates_, block.at, pane.aggregates_, from.data(), n);
            }
            for (int i = 0; i < n; i++) *slots++ = static_cast<int32_t>(block.id[i]) - 1;
        }
    }

    /* Moves a pane to the front. Panes must come from the last that entered to the first that has not left. `slots`:
       the slots from `enter`. */
    void turn(const Table& pane, int32_t number, const int32_t* slots) {
        make_room();
        if (number >= back_) front_at_ = width_ - front_at_; /* the last pane, which turns first */
        make_room_in_front(pane.groups * width_);
        uint8_t* states = front_.get() + front_size_;
        front_size_ += pane.groups * width_;
        std::vector<uint8_t*> cells(BLOCK_ROWS), from(BLOCK_ROWS);
        back_ = std::max(back_, number + 1);
        for (int64_t id = 1; id < pane.used_;) {
            const int n = pane.next_rows(&id, from.data());
            for (int i = 0; i < n; i++) __builtin_prefetch(cells[i] = front_cell(slots[i]), 1);
            with_width([&](auto width) {
                for (int i = 0; i < n; i++) {
                    reset(cells[i], last_of(cells[i]) == number, width);
                    copy(states, cells[i], width);
                    states += width;
                }
            });
            window_.merge_rows(layout_, cells.data(), pane.aggregates_, from.data(), n);
            slots += n;
        }
    }

    /* Ends a turn, after the first pane has turned: each group is now what the front has. */
    void turned() {
        make_room();
        with_width([&](auto width) {
            for (int64_t slot = 0; slot < window_.slots_used(); slot++)
                if (window_.live(slot)) set(window_.row(slot + 1), front_cell(slot), width);
        });
    }

    /* Removes the pane that turned last, and the groups that no other pane has. `slots`: the slots from `turn`, at
       most `groups_in_front`. */
    void leave(int32_t number, const int32_t* slots, int64_t count) {
        make_room();
        front_size_ -= count * width_;
        const uint8_t* states = front_.get() + front_size_;
        std::vector<uint8_t*> rows(BLOCK_ROWS), cells(BLOCK_ROWS), some_rows(BLOCK_ROWS), some_cells(BLOCK_ROWS);
        std::vector<int32_t> gone(count);
        int64_t left = 0;
        left_ = number;
        for (int64_t base = 0; base < count; base += BLOCK_ROWS) {
            const int n = Table::block_rows(base, count);
            for (int i = 0; i < n; i++) {
                __builtin_prefetch(rows[i] = window_.row(slots[base + i] + 1), 1);
                __builtin_prefetch(front_cell(slots[base + i]), 1);
                __builtin_prefetch(cells[i] = back_cell(slots[base + i]));
            }
            int some = 0;
            with_width([&](auto width) {
                for (int i = 0; i < n; i++) {
                    copy(front_cell(slots[base + i]), states, width);
                    set(rows[i], states, width);
                    const bool in_back = last_of(cells[i]) >= back_;
                    gone[left] = slots[base + i];
                    left += !in_back && last_of(states) == number;
                    states += width;
                    some_rows[some] = rows[i];
                    some_cells[some] = cells[i];
                    some += in_back;
                }
            });
            window_.merge_rows(window_.aggregates_, some_rows.data(), layout_, some_cells.data(), some);
        }
        window_.remove(gone.data(), left);
    }

  private:
    struct Free {
        void operator()(uint8_t* memory) const { std::free(memory); }
    };
    Table& window_;
    std::vector<Aggregate> layout_; /* the aggregates with their positions in a cell */
    std::vector<uint8_t> image_;    /* the cell of a group without values */
    std::vector<uint8_t, Scattered<uint8_t>> cells_; /* two for each slot, of the front and of the back */
    int64_t front_at_ = 0;          /* the offset of the front's cell: 0 or width_ */
    std::unique_ptr<uint8_t, Free> front_; /* a stack of cells */
    int64_t front_size_ = 0;        /* bytes in use, and capacity in bytes */
    int64_t front_room_ = 0;
    int64_t width_ = 8;             /* bytes per cell */
    int32_t back_ = 1;              /* panes with this number or a higher one are in the back */
    int32_t left_ = 0;              /* panes with this number or a lower one have left */

    uint8_t* front_cell(int64_t slot) { return cells_.data() + 2 * slot * width_ + front_at_; }
    uint8_t* back_cell(int64_t slot) { return cells_.data() + (2 * slot + 1) * width_ - front_at_; }
    static int32_t last_of(const uint8_t* cell) { return get<int32_t>(cell); }
    /* Calls body(width) with a compile-time constant for the usual widths. */
    template <class Body>
    void with_width(Body body) const {
        switch (width_) {
            case 16: return body(std::integral_constant<int64_t, 16>());
            case 24: return body(std::integral_constant<int64_t, 24>());
            case 32: return body(std::integral_constant<int64_t, 32>());
            case 40: return body(std::integral_constant<int64_t, 40>());
            default: return body(width_);
        }
    }
    static void copy(uint8_t* to, const uint8_t* from, int64_t bytes) {
        for (int64_t w = 0; w < bytes; w += 8) put(to + w, get<uint64_t>(from + w));
    }
    void reset(uint8_t* cell, bool really, int64_t width) const {
        const uint64_t mask = -static_cast<uint64_t>(really); /* no branch, because both cases are equally likely */
        const uint8_t* image = image_.data();
        put(cell, get<uint64_t>(cell) & ~(mask & ~0xffffffffULL));
        for (int64_t w = 8; w < width; w += 8) put(cell + w, (get<uint64_t>(cell + w) & ~mask) | (get<uint64_t>(image + w) & mask));
    }
    /* Sets the accumulators of a row to those of a cell. */
    void set(uint8_t* row, const uint8_t* cell, int64_t width) const {
        const uint64_t kept = 0xffffffffULL | window_.key_nulls_;
        put(row + 8, (get<uint64_t>(row + 8) & kept) | (get<uint64_t>(cell) & ~kept));
        copy(row + window_.body_at_, cell + 8, width - 8);
    }
    /* After a sum of the back overflowed: finds its group, if the sum of the window overflows too. */
    [[gnu::cold, gnu::noinline]] void name_overflow(const Table& pane, uint8_t* const* rows, uint8_t* const* from, int n) {
        const int aggregate = window_.overflow;
        window_.overflow = -1;
        window_.merge_rows(window_.aggregates_, rows, pane.aggregates_, from, n);
        if (window_.overflow < 0) window_.overflow = aggregate;
    }
    void make_room() {
        const size_t needed = static_cast<size_t>(2 * window_.capacity_ * width_);
        if (cells_.size() < needed) cells_.resize(needed);
    }
    void make_room_in_front(int64_t more) {
        if (front_size_ + more <= front_room_) return;
        const int64_t room = std::max(front_size_ + more, front_room_ * 3 / 2);
        uint8_t* larger = static_cast<uint8_t*>(std::realloc(front_.get(), room)); /* realloc remaps large memory instead of copying it */
        if (larger == nullptr) throw std::bad_alloc();
        (void)front_.release();
        front_.reset(larger);
        front_room_ = room;
    }
};

}  // namespace sabot
