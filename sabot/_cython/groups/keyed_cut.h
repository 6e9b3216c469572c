/* A cut: a snapshot of the groups of a table, read in another thread while the table changes.

          bits     by id: 1 means that the row in the table is unchanged since the cut, and is read there
          kept     copies of the rows that the owner has changed or removed since the cut

   Taking a cut makes the bits and copies nothing else. From then on a writer holds `mutex` for each block of rows, and
   copies each row whose bit is set to `kept` before changing it. The reader holds the mutex for some hundred rows at a
   time, and copies the rows whose bit is set into its own memory. So each group is in exactly one of the two places.
   Reading changes neither, so a reader that failed to write its rows can begin again. A row that is copied to `kept` after
   it was read is marked `late`. Without a cut, writers only test one pointer per block.

   Nothing here needs the GIL. Functions that keep or copy rows may throw std::bad_alloc (`except +`). */
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <vector>

#include "arrow/column.h"

namespace sabot {

/* Rows outside the table. The cell of a long key holds an offset into `bytes`. */
struct Copies {
    std::vector<uint8_t> rows;
    std::vector<uint8_t> bytes;
    int64_t count = 0;

    void clear() {
        rows.clear();
        bytes.clear();
        count = 0;
    }
};

class Cut {
    friend class Table;

  public:
    int64_t groups = 0;
    int64_t next_slot = 0; /* the slot after the last group of this turn, or 0 at the end of the table */

    /* Starts reading from the beginning. */
    void rewind() {
        std::lock_guard<std::mutex> hold(mutex_);
        next_id_ = next_kept_ = 0;
        for (auto& piece : kept_) std::fill_n(piece->late, KEPT_ROWS, false);
    }
    /* Releases the cut and the rows kept for it. No read may follow. Idempotent. */
    void close() {
        std::vector<uint64_t> bits;
        std::vector<std::unique_ptr<Kept>> kept; /* freed after the lock is released, so that the owner does not wait for it */
        std::lock_guard<std::mutex> hold(mutex_);
        open_ = false;
        bits_.swap(bits);
        kept_.swap(kept);
    }

  private:
    static constexpr int64_t KEPT_ROWS = 1024;
    static constexpr int64_t READ_ROWS = 512;  /* the rows (and up to one word more) that are copied while the owner may wait */
    static constexpr int64_t READ_WORDS = 8192;

    struct Kept { /* a piece of the kept rows; with pieces, keeping a row never moves earlier rows */
        Copies rows;
        bool late[KEPT_ROWS] = {}; /* true if the row was read before it was kept */
    };

    std::mutex mutex_; /* guards the following fields and the table's rows */
    bool open_ = true;
    std::vector<uint64_t> bits_;
    std::vector<std::unique_ptr<Kept>> kept_;
    int64_t next_id_ = 0;   /* rows below this id were read; always the first bit of a word */
    int64_t next_kept_ = 0; /* the number of kept rows that were read or skipped */

    int64_t kept_rows() const {
        return kept_.empty() ? 0 : static_cast<int64_t>(kept_.size() - 1) * KEPT_ROWS + kept_.back()->rows.count;
    }
    bool has(uint32_t id) const { return (id >> 6) < bits_.size() && (bits_[id >> 6] >> (id & 63) & 1); }
};

}  // namespace sabot
