/* The groups of a table as they were at one moment, read while the table goes on.

        bits     by id: 1, the row stands in the table as it was, and is to be read there
        kept     rows as they were, of those that the owner has changed or removed since

   To cut is to make the bits; nothing else is copied then. From there on whoever writes rows holds `mutex` for a block of rows, and
   keeps first those whose bit is set; the reader holds it for some hundred rows at a time, and copies those whose bit is set into
   memory of its own. So each group is in exactly one of the two places. To read changes nothing, so that who failed to write what he
   read can begin again: of a row that is kept after it was read, that is noted. Without a cut, writers look at one pointer a block.

   All of it is `nogil`. What keeps or copies rows may throw std::bad_alloc (`except +`). */
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <vector>

#include "arrow/column.h"

namespace sabot {

/* Rows outside of the table. What a cell of long bytes says is then the place in `bytes`. */
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
    int64_t next_slot = 0; /* behind the last one of the turn; 0: there was none after it */

    /* To be read from the start. */
    void rewind() {
        std::lock_guard<std::mutex> hold(mutex_);
        next_id_ = next_kept_ = 0;
        for (auto& piece : kept_) std::fill_n(piece->late, KEPT_ROWS, false);
    }
    /* Nobody will read it any more. Idempotent. */
    void close() {
        std::vector<uint64_t> bits;
        std::vector<std::unique_ptr<Kept>> kept; /* to be freed when the owner can go on */
        std::lock_guard<std::mutex> hold(mutex_);
        open_ = false;
        bits_.swap(bits);
        kept_.swap(kept);
    }

  private:
    static constexpr int64_t KEPT_ROWS = 1024;
    static constexpr int64_t READ_ROWS = 512;  /* so many, and a word's more, while the owner waits */
    static constexpr int64_t READ_WORDS = 8192;

    struct Kept { /* pieces: to keep a row never moves what was kept before */
        Copies rows;
        bool late[KEPT_ROWS] = {}; /* it was read before it was kept */
    };

    std::mutex mutex_; /* of all that follows, and of the table's rows */
    bool open_ = true;
    std::vector<uint64_t> bits_;
    std::vector<std::unique_ptr<Kept>> kept_;
    int64_t next_id_ = 0;   /* those below were read; always of a word's first bit */
    int64_t next_kept_ = 0; /* so many kept rows were read, or passed over */

    int64_t kept_rows() const {
        return kept_.empty() ? 0 : static_cast<int64_t>(kept_.size() - 1) * KEPT_ROWS + kept_.back()->rows.count;
    }
    bool has(uint32_t id) const { return (id >> 6) < bits_.size() && (bits_[id >> 6] >> (id & 63) & 1); }
};

}  // namespace sabot
