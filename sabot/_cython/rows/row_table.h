/* Rows by key. See row_table.pyi for the calls; this file defines the layout of the rows in memory.

       key ──Table (keyed_table.h)──▶ slot ──chains_[slot]──▶ entries (order, id), sorted       row_chain.h
                                                                      │
       pages_[id / 2^25][id / 2^16] ──▶ RowBlock: the columns of up to 65,536 rows  ◀──────────┘   row_column.h
                                        + order, slot, live bit, [count] of each

   - A row's id gives its block and its position in the block. Blocks are filled one after the other; in a full block only
     live bits and counts change. A block without live rows is freed. A block with few live rows is replaced by a sparse
     one: these rows, and the sorted list of their positions in the old block, in which ids are searched. So ids stay valid.
   - A cut (a snapshot) shares the blocks. It copies live bits and counts, and the block that still grows.
   - row_runs.h is the index by order, which finds the rows below a bound; it is built at the first query.
   - A key with many rows of one order gets a second chain, by the hash of the whole row, when one of these rows is first
     looked up by value.

   Nothing here needs the GIL. Functions throw std::bad_alloc, std::out_of_range for a row that does not exist,
   std::invalid_argument for a row that is removed twice in a call, and the exceptions of row_mapped.h (`except +`). */
#pragma once

#include <array>
#include <memory>
#include <string>
#include <unordered_map>

#include "groups/keyed_table.h"
#include "rows/row_chain.h"
#include "rows/row_column.h"
#include "rows/row_mapped.h"
#include "rows/row_runs.h"

namespace sabot {

constexpr int BLOCK_BITS = 16;
constexpr int64_t BLOCK_IDS = int64_t(1) << BLOCK_BITS;
constexpr int64_t STEP = 4096;             /* rows copied at a time */
constexpr int64_t MOST_LOOSE = 64 << 20;   /* the most bytes of variable data in a block */
constexpr int64_t FEW = 32;                /* up to so many rows of one order are compared one by one */
constexpr int64_t SMALL_BLOCK = 65536;     /* a block of at most so many bytes gets no file */
constexpr int64_t SPARSE = 4;              /* a block is replaced by a sparse one if at most one in so many rows is alive */

/* counts ones among the positions `from` to `end` - 1 */
static inline int64_t count_bits(const uint64_t* words, int64_t from, int64_t end) {
    int64_t total = 0;
    for (; from < end && (from & 63); from++) total += (words[from >> 6] >> (from & 63)) & 1;
    for (; from + 64 <= end; from += 64) total += __builtin_popcountll(words[from >> 6]);
    for (; from < end; from++) total += (words[from >> 6] >> (from & 63)) & 1;
    return total;
}

struct RowBlock {
    std::unique_ptr<uint8_t, void (*)(void*)> wide{nullptr, std::free}; /* the columns of fixed width, of a block that will become full */
    std::unique_ptr<Mapped> mapped; /* the file that has the columns, if any */
    int64_t first_id = 0;
    int64_t used = 0; /* the number of rows inserted */
    std::vector<Store> columns;
    Memory orders;                /* int64 */
    Memory slots;                 /* int32 */
    bool sparse = false;
    std::vector<uint16_t> locals; /* for a sparse block: id - first_id of each row, ascending */

    /* These fields still change when the block is full */
    int64_t alive = 0;
    std::vector<uint64_t> live;  /* bits, by position */
    std::vector<int32_t> counts;
    std::vector<uint64_t> marks; /* bits used during one call */
    bool touched = false;

    int64_t order(int64_t at) const { return orders.as<int64_t>()[at]; }
    int32_t slot(int64_t at) const { return slots.as<int32_t>()[at]; }
    bool is_live(int64_t at) const { return (live[at >> 6] >> (at & 63)) & 1; }
    void set_live(int64_t at) { live[at >> 6] |= 1ULL << (at & 63); }
    void set_dead(int64_t at) { live[at >> 6] &= ~(1ULL << (at & 63)); }
    int64_t id(int64_t at) const { return first_id + (sparse ? locals[at] : at); }
    /* Returns the position of the first row whose id is at least `id`. */
    int64_t position_from(int64_t id) const {
        const int64_t local = std::max<int64_t>(id - first_id, 0);
        if (!sparse) return std::min(local, used);
        if (local >= BLOCK_IDS) return used;
        return std::lower_bound(locals.begin(), locals.end(), static_cast<uint16_t>(local)) - locals.begin();
    }
    /* Returns the position of a row, or -1 if the block does not have it. */
    int64_t position(int64_t id) const {
        const int64_t local = id - first_id;
        if (!sparse) return local < used ? local : -1;
        const auto found = std::lower_bound(locals.begin(), locals.end(), static_cast<uint16_t>(local));
        return found != locals.end() && *found == local ? found - locals.begin() : -1;
    }
    int64_t nbytes() const {
        int64_t total = sizeof(RowBlock) + 2 * locals.capacity() + 8 * live.capacity() + 4 * counts.capacity() + 8 * marks.capacity();
        if (mapped) return total;
        total += orders.room() + slots.room();
        for (const Store& store : columns) total += sizeof(Store) + store.nbytes();
        return total;
    }
};

/* The live rows of a block, in the form that takes the fewest bytes in a file. */
struct Alive {
    enum Kind : uint8_t { all, bits, locals } kind = all;
    std::string data;   /* bits by id - first_id, or a list of these numbers as uint16 */
    std::string counts; /* the counts of the live rows, by id, each in as many bytes as the largest needs; empty if all are 0 */
};

/* A snapshot of the rows. Its blocks do not change; any thread may read it. */
class RowsCut {
  public:
    struct Part {
        std::shared_ptr<const RowBlock> block;
        int64_t used;
        int64_t alive;
        std::vector<uint64_t> live;
        std::vector<int32_t> counts;
    };
    std::vector<Part> parts;
    int64_t rows = 0;
    int64_t next_id = 0;

    size_t part_from(int64_t id) const { /* returns the first part that ends after this id */
        size_t low = 0, high = parts.size();
        while (low < high) {
            const size_t middle = (low + high) / 2;
            if (parts[middle].block->first_id + BLOCK_IDS <= id) low = middle + 1;
            else high = middle;
        }
        return low;
    }
    int64_t rows_in(int64_t first, int64_t end) const {
        int64_t total = 0;
        for (size_t p = part_from(first); p < parts.size() && parts[p].block->first_id < end; p++) {
            const Part& part = parts[p];
            total += count_bits(part.live.data(), part.block->position_from(first), std::min(part.used, part.block->position_from(end)));
        }
        return total;
    }
    Alive alive(const Part& part) const;
    /* Copies columns, order and id of live rows with first <= id < end, at most `most`, to `out`. Returns the first
       id not read. */
    int64_t read(const std::vector<Layout>& layouts, int64_t first, int64_t end, int64_t most, std::vector<Store>& out) const;
};

/* The rows of a batch. If there is a list `chosen`, only its rows count. */
struct Incoming {
    ArrowArray* const* columns = nullptr; /* the columns of the table if these are whole rows, else null */
    int64_t offset = 0;                   /* the offset of the batch */
    const View* keys = nullptr;
    const uint64_t* hashes = nullptr;     /* the hashes of all rows; may be null */
    const int32_t* chosen = nullptr;
    int64_t count = 0;
    const int64_t* order = nullptr;       /* the orders of all rows, or null for 0; in a search, the order that is searched for */

    int64_t row(int64_t i) const { return chosen ? chosen[i] : i; }
    int64_t order_of(int64_t i) const { return order ? order[row(i)] : 0; }
};

class RowTable;

/* A search that can be continued where it stopped. */
class Finder {
  public:
    /* `lower`, `upper`: bounds for all rows; may be null. */
    Finder(const int64_t* lower, const int64_t* upper, int64_t limit) : lower_(lower), upper_(upper), limit_(limit) {}
    void start(RowTable& table, const Incoming& in);
    /* Writes up to `most` pairs to numbers (int32) and ids (int64). Returns how many; fewer than `most` at the end. */
    int64_t next(const RowTable& table, int64_t most, Memory& numbers, Memory& ids);
    bool outdated(const RowTable& table) const;

  private:
    const int64_t* lower_;
    const int64_t* upper_;
    int64_t limit_;
    std::vector<int32_t> slots_;
    const int32_t* chosen_ = nullptr;
    int64_t version_ = 0;
    int64_t probe_ = 0; /* the current row of the batch */
    bool inside_ = false;
    Spot spot_{0, 0};
    int64_t left_ = 0;  /* how many more rows it may find */
};

class RowTable {
    friend class Finder;

  public:
    Table keys; /* key -> slot */

    RowTable() = default;
    RowTable(const RowTable&) = delete;
    RowTable& operator=(const RowTable&) = delete;
    ~RowTable() {
        for (Chain& chain : chains_) entries_.clear(chain);
        for (auto& twin : twins_) entries_.clear(twin.second);
    }

    void add_column(const ArrowSchema* schema) { layouts_.push_back(Layout::of(schema)); }
    bool column_is_kept(int64_t column) const { return layouts_[column].shape != Layout::Shape::other; }
    void ready(int64_t key_columns, bool counted) {
        keyed_ = key_columns > 0;
        counted_ = counted;
        keys.ready();
        measure();
    }
    /* Moves full blocks, the oldest first, into files in this directory, so that at most `memory_bytes` bytes of them
       are in memory. */
    void use_directory(const std::string& directory, int64_t memory_bytes) {
        directory_ = directory;
        memory_bytes_ = memory_bytes;
    }
    const std::vector<Layout>& layouts() const { return layouts_; }
    int64_t rows() const { return rows_; }
    int64_t blocks() const { return blocks_; }
    int64_t nbytes() const { return bytes_; }

    /* Adds rows. OUT ids[count]. */
    void insert(const Incoming& in, int64_t* ids);
    /* Looks up keys. OUT slots[count], -1 if the key does not exist or is null. */
    void known_slots(const Incoming& in, int32_t* slots) {
        keys.resolve(in.keys, keyed_ ? in.hashes : nullptr, in.chosen, in.count, false, slots);
        for (size_t k = 0; k < key_count(); k++) {
            if (!in.keys[k].nullable()) continue;
            for (int64_t i = 0; i < in.count; i++)
                if (!in.keys[k].valid(in.row(i))) slots[i] = -1;
        }
    }
    void set_key_count(size_t count) { key_count_ = count; }
    size_t key_count() const { return key_count_; }
    /* Finds the last row at or before the order, or the first at or after it. OUT ids[count]. */
    void nearest(const Incoming& in, bool last, int64_t* ids);
    void match(const Incoming& in, int64_t* ids);
    /* The following functions throw std::out_of_range for an id that does not exist; only `take` accepts -1. */
    void take(const int64_t* ids, int64_t count, const std::vector<int>& columns, std::vector<Store>& out) const;
    void orders(const int64_t* ids, int64_t count, int64_t* out) const {
        each(ids, count, [&](int64_t i, const RowBlock& block, int64_t at) { out[i] = block.order(at); });
    }
    void hashes(const int64_t* ids, int64_t count, uint64_t* out) const {
        each(ids, count, [&](int64_t i, const RowBlock& block, int64_t at) {
            const int32_t slot = block.slot(at);
            if (keyed_) keys.hashes(&slot, 1, out + i);
            else out[i] = 0;
        });
    }
    void counts(const int64_t* ids, int64_t count, int32_t* out) const {
        each(ids, count, [&](int64_t i, const RowBlock& block, int64_t at) { out[i] = block.counts[at]; });
    }
    /* Adds by[i] to the count of row ids[i], or `same` to all if `by` is null. */
    void add_counts(const int64_t* ids, int64_t count, const int32_t* by, int32_t same) {
        each(ids, count, [](int64_t, const RowBlock&, int64_t) {});
        each(ids, count, [&](int64_t i, const RowBlock& block, int64_t at) {
            const_cast<RowBlock&>(block).counts[at] += by ? by[i] : same;
        });
    }
    /* Removes rows. Throws std::invalid_argument for an id that is named twice. */
    void remove(const int64_t* ids, int64_t count);
    void below(int64_t order, std::vector<int64_t>& ids);
    void superseded(int64_t order, std::vector<int64_t>& ids);
    std::shared_ptr<RowsCut> cut() const;

  private:
    static constexpr int PAGE_BITS = 9;
    struct Page {
        std::array<std::shared_ptr<RowBlock>, 1 << PAGE_BITS> blocks;
        int used = 0;
    };
    struct Found {
        RowBlock* block;
        int64_t at;
    };

    std::vector<Layout> layouts_;
    size_t key_count_ = 0;
    bool keyed_ = false, counted_ = false;
    int64_t rows_ = 0, blocks_ = 0, bytes_ = 0, full_bytes_ = 0;
    int64_t version_ = 0;
    std::vector<std::unique_ptr<Page>> pages_;
    int64_t first_page_ = 0;
    int64_t next_block_ = 0;          /* the number of the next block */
    RowBlock* open_ = nullptr;        /* the block that grows */
    std::string directory_;           /* empty if all blocks stay in memory */
    int64_t memory_bytes_ = 0;
    int64_t next_to_move_ = 0;        /* blocks with a lower number are in files, or too small for one */
    bool filled_ = false;             /* true if some block became full; then the next ones probably will */
    std::vector<int64_t> texts_;      /* by column: the bytes of its texts in the last full block */
    std::vector<Chain, Scattered<Chain>> chains_; /* by slot */
    Chains entries_;                  /* the memory of all chains */
    std::unordered_map<int32_t, Chain> twins_;
    std::unique_ptr<OrderRuns> expiring_, versions_;
    std::vector<int64_t> given_; /* the superseded rows found so far */

    /* Blocks */

    RowBlock* block_of(int64_t id) const {
        const int64_t number = id >> BLOCK_BITS, page = (number >> PAGE_BITS) - first_page_;
        if (id < 0 || page < 0 || page >= static_cast<int64_t>(pages_.size()) || !pages_[page]) return nullptr;
        return pages_[page]->blocks[number & ((1 << PAGE_BITS) - 1)].get();
    }
    std::shared_ptr<RowBlock>& place_of(int64_t number) {
        return pages_[(number >> PAGE_BITS) - first_page_]->blocks[number & ((1 << PAGE_BITS) - 1)];
    }
    bool locate(int64_t id, Found& found) const {
        found.block = block_of(id);
        if (found.block == nullptr) return false;
        found.at = found.block->position(id);
        return found.at >= 0 && found.block->is_live(found.at);
    }
    [[noreturn]] static void absent(int64_t id) { throw std::out_of_range("row " + std::to_string(id) + " is not in the table"); }
    bool is_live(int64_t id) const {
        Found found;
        return locate(id, found);
    }
    template <class Body>
    void each(const int64_t* ids, int64_t count, Body body) const {
        Found some[256];
        for (int64_t base = 0; base < count; base += 256) {
            const int64_t n = std::min<int64_t>(256, count - base);
            for (int64_t i = 0; i < n; i++) {
                if (!locate(ids[base + i], some[i])) absent(ids[base + i]);
                __builtin_prefetch(some[i].block->orders.as<int64_t>() + some[i].at);
                __builtin_prefetch(some[i].block->slots.as<int32_t>() + some[i].at);
            }
            for (int64_t i = 0; i < n; i++) body(base + i, *some[i].block, some[i].at);
        }
    }
    std::shared_ptr<RowBlock> make_block(int64_t number) const {
        auto block = std::make_shared<RowBlock>();
        block->first_id = number << BLOCK_BITS;
        block->columns.resize(layouts_.size());
        for (size_t c = 0; c < layouts_.size(); c++) block->columns[c].prepare(layouts_[c]);
        return block;
    }
    void open_block();
    void close_block();
    void free_block(RowBlock* block) {
        const int64_t number = block->first_id >> BLOCK_BITS;
        full_bytes_ -= block->nbytes();
        place_of(number).reset();
        blocks_--;
        Page* page = pages_[(number >> PAGE_BITS) - first_page_].get();
        if (--page->used == 0 && (next_block_ >> PAGE_BITS) != (number >> PAGE_BITS)) {
            pages_[(number >> PAGE_BITS) - first_page_].reset();
            size_t gone = 0;
            while (gone < pages_.size() && !pages_[gone]) gone++;
            pages_.erase(pages_.begin(), pages_.begin() + gone);
            first_page_ += gone;
        }
    }
    void thin_out(RowBlock* block);
    /* Frees or replaces a full block, if few rows are left in it. Call it after rows were removed. */
    void settle(RowBlock* block) {
        if (block->alive == 0) free_block(block);
        else if (block->alive * SPARSE < block->used) thin_out(block);
    }
    void move_out(std::shared_ptr<RowBlock>& place);
    void move_out() {
        if (directory_.empty()) return;
        next_to_move_ = std::max(next_to_move_, first_page_ << PAGE_BITS);
        const int64_t end = open_ ? next_block_ - 1 : next_block_;
        for (; full_bytes_ > memory_bytes_ && next_to_move_ < end; next_to_move_++) {
            if (!pages_[(next_to_move_ >> PAGE_BITS) - first_page_]) continue;
            std::shared_ptr<RowBlock>& place = place_of(next_to_move_);
            if (place && !place->mapped && place->nbytes() > SMALL_BLOCK) move_out(place);
        }
    }
    /* Appends rows of a batch to the open block: at most STEP, and no more than it has room for. */
    void append_rows(RowBlock& block, const Incoming& in, int64_t base, int64_t count, const int32_t* slots);
    void append_columns(std::vector<Store>& columns, const Incoming& in, int64_t base, int64_t count) const;
    void measure() {
        bytes_ = sizeof(RowTable) + keys.nbytes() + static_cast<int64_t>(chains_.capacity() * sizeof(Chain)) + entries_.nbytes()
            + full_bytes_ + (open_ ? open_->nbytes() : 0) + (expiring_ ? expiring_->nbytes() : 0) + (versions_ ? versions_->nbytes() : 0)
            + static_cast<int64_t>(8 * given_.capacity() + pages_.size() * sizeof(Page) + twins_.size() * 64);
    }

    /* Whole rows */

    uint64_t row_hash(const std::vector<Store>& columns, int64_t at, int64_t order) const {
        uint64_t hash = hash_words(static_cast<uint64_t>(order), 0, 8);
        for (size_t c = 0; c < columns.size(); c++) hash = hash_combined(hash, hash_value(layouts_[c], columns[c], at));
        return hash;
    }
    bool same_row(const std::vector<Store>& a, int64_t i, const std::vector<Store>& b, int64_t j) const {
        for (size_t c = 0; c < a.size(); c++)
            if (!same_value(layouts_[c], a[c], i, b[c], j)) return false;
        return true;
    }
    Entry twin_entry(const RowBlock& block, int64_t at) const {
        return {static_cast<int64_t>(row_hash(block.columns, at, block.order(at))), block.id(at)};
    }
    void make_twin(int32_t slot);
    int64_t match_one(
        const std::vector<Store>& columns, int64_t at, int64_t order, int32_t slot, std::unordered_map<int64_t, int64_t>& last,
        std::vector<Found>& marked
    );
    bool mark(int64_t id, const std::vector<Store>& columns, int64_t at, std::vector<Found>& marked) const {
        Found found;
        if (!locate(id, found)) return false;
        std::vector<uint64_t>& marks = found.block->marks;
        if (marks.size() < found.block->live.size()) marks.resize(found.block->live.size()); /* the open block grows */
        if ((marks[found.at >> 6] >> (found.at & 63)) & 1) return false;
        if (!same_row(columns, at, found.block->columns, found.at)) return false;
        marks[found.at >> 6] |= 1ULL << (found.at & 63);
        marked.push_back(found);
        return true;
    }

    /* Indexes the rows that came since the last query by order. */
    void take_in(OrderRuns& runs);
};

inline Alive RowsCut::alive(const Part& part) const {
    Alive result;
    const RowBlock& block = *part.block;
    if (part.alive < part.used || block.sparse) {
        const bool few = block.sparse || part.alive < part.used / 16;
        result.kind = few ? Alive::locals : Alive::bits;
        if (few) result.data.reserve(2 * part.alive);
        else result.data.assign(reinterpret_cast<const char*>(part.live.data()), (part.used + 7) / 8);
        for (int64_t at = 0; few && at < part.used; at++) {
            if (!((part.live[at >> 6] >> (at & 63)) & 1)) continue;
            const uint16_t local = static_cast<uint16_t>(block.id(at) - block.first_id);
            result.data.append(reinterpret_cast<const char*>(&local), 2);
        }
    }
    int32_t least = 0, most = 0;
    for (int32_t count : part.counts) {
        least = std::min(least, count);
        most = std::max(most, count);
    }
    if (least == 0 && most == 0) return result;
    const int width = least >= -128 && most < 128 ? 1 : least >= -32768 && most < 32768 ? 2 : 4;
    result.counts.reserve(width * part.alive);
    for (int64_t at = 0; at < part.used; at++)
        if ((part.live[at >> 6] >> (at & 63)) & 1) result.counts.append(reinterpret_cast<const char*>(&part.counts[at]), width);
    return result;
}

inline int64_t RowsCut::read(
    const std::vector<Layout>& layouts, int64_t first, int64_t end, int64_t most, std::vector<Store>& out
) const {
    const size_t columns = layouts.size();
    out.clear();
    out.resize(columns + 2);
    for (size_t c = 0; c < columns; c++) out[c].prepare(layouts[c]);
    int64_t taken = 0;
    std::vector<int64_t> positions;
    for (size_t p = part_from(first); p < parts.size() && taken < most; p++) {
        const Part& part = parts[p];
        const RowBlock& block = *part.block;
        if (block.first_id >= end) break;
        positions.clear();
        int64_t at = block.position_from(first);
        const int64_t stop = std::min(part.used, block.position_from(end));
        for (; at < stop && taken < most; at++) {
            if (!(at & 63) && part.live[at >> 6] == 0) {
                at += 63;
                continue;
            }
            if (!((part.live[at >> 6] >> (at & 63)) & 1)) continue;
            positions.push_back(at);
            taken++;
        }
        const int64_t n = static_cast<int64_t>(positions.size());
        for (size_t c = 0; c < columns; c++)
            gather(out[c], layouts[c], n, false, [&](int64_t i) { return Place{&block.columns[c], positions[i]}; });
        for (size_t c = columns; c < columns + 2; c++) out[c].values.reserve(8 * (out[c].rows + n));
        for (int64_t i = 0; i < n; i++) {
            out[columns].values.as<int64_t>()[out[columns].rows++] = block.order(positions[i]);
            out[columns + 1].values.as<int64_t>()[out[columns + 1].rows++] = block.id(positions[i]);
        }
        if (taken == most) return block.id(positions.back()) + 1;
    }
    return end;
}

inline void RowTable::open_block() {
    const int64_t number = next_block_, page = number >> PAGE_BITS;
    if (pages_.empty()) first_page_ = page;
    while (first_page_ + static_cast<int64_t>(pages_.size()) <= page) pages_.push_back(nullptr);
    std::unique_ptr<Page>& at = pages_[page - first_page_];
    if (!at) at = std::make_unique<Page>();
    auto block = make_block(number);
    if (filled_) { /* in huge pages, because rows are read at random */
        int64_t bytes = 12 * BLOCK_IDS;
        for (const Layout& layout : layouts_) bytes += layout.wide() * BLOCK_IDS;
        uint8_t* at = static_cast<uint8_t*>(allocate(bytes));
        block->wide.reset(at);
        auto lend = [&](Memory& memory, int64_t width) {
            memory.lend(at, width * BLOCK_IDS);
            at += width * BLOCK_IDS;
        };
        for (size_t c = 0; c < layouts_.size(); c++)
            if (layouts_[c].wide()) lend(block->columns[c].values, layouts_[c].wide());
        for (size_t c = 0; c < layouts_.size(); c++) /* texts of as many rows probably take as many bytes again */
            if (texts_[c]) block->columns[c].data.keep(texts_[c] + texts_[c] / 16);
        lend(block->orders, 8);
        lend(block->slots, 4);
        block->live.reserve(BLOCK_IDS / 64);
        if (counted_) block->counts.reserve(BLOCK_IDS);
        for (size_t c = 0; c < layouts_.size(); c++) block->columns[c].reserve(layouts_[c], BLOCK_IDS, nullptr);
    }
    open_ = block.get();
    at->blocks[number & ((1 << PAGE_BITS) - 1)] = std::move(block);
    at->used++;
    next_block_++;
    blocks_++;
}

/* Closes the open block. The memory of its texts is trimmed, and the next block gets as much. */
inline void RowTable::close_block() {
    texts_.assign(layouts_.size(), 0);
    for (size_t c = 0; c < layouts_.size(); c++) {
        if (layouts_[c].shape != Layout::Shape::bytes) continue;
        Store& column = open_->columns[c];
        const int64_t used = column.values.as<uint32_t>()[column.rows];
        column.data.fit(used);
        if (open_->used == BLOCK_IDS) texts_[c] = used;
    }
}

inline void RowTable::append_columns(std::vector<Store>& columns, const Incoming& in, int64_t base, int64_t count) const {
    std::vector<int64_t> picked(in.chosen ? count : 0);
    for (size_t i = 0; i < picked.size(); i++) picked[i] = in.offset + in.chosen[base + i];
    const Picked rows{in.chosen ? picked.data() : nullptr, in.offset + base, count};
    for (size_t c = 0; c < columns.size(); c++) append(columns[c], layouts_[c], in.columns[c], rows);
}

inline void RowTable::append_rows(RowBlock& block, const Incoming& in, int64_t base, int64_t count, const int32_t* slots) {
    const int64_t used = block.used, end = used + count;
    try {
        block.orders.reserve(8 * end);
        block.slots.reserve(4 * end);
        block.live.resize((end + 63) / 64);
        if (counted_) block.counts.resize(end);
        append_columns(block.columns, in, base, count);
    } catch (...) {
        for (size_t c = 0; c < layouts_.size(); c++) block.columns[c].truncate(layouts_[c], used);
        throw;
    }
    for (int64_t i = 0; i < count; i++) block.orders.as<int64_t>()[used + i] = in.order_of(base + i);
    std::memcpy(block.slots.as<int32_t>() + used, slots + base, 4 * count);
    block.used = end;
}

inline void RowTable::insert(const Incoming& in, int64_t* ids) {
    if (in.count == 0) return;
    std::vector<int32_t> slots(in.count);
    keys.resolve(in.keys, keyed_ ? in.hashes : nullptr, in.chosen, in.count, true, slots.data());
    if (static_cast<int64_t>(chains_.size()) < keys.slots_used()) {
        if (static_cast<int64_t>(chains_.capacity()) < keys.slots_used()) chains_.reserve(keys.slots_used() + keys.slots_used() / 2);
        chains_.resize(keys.slots_used());
    }
    std::vector<RowBlock*> full;
    try {
        for (int64_t base = 0; base < in.count;) {
            if (open_ == nullptr) open_block();
            const int64_t count = std::min({STEP, in.count - base, BLOCK_IDS - open_->used});
            const int64_t first = open_->first_id + open_->used;
            append_rows(*open_, in, base, count, slots.data());
            for (int64_t i = 0; i < count; i++) ids[base + i] = first + i;
            base += count;
            int64_t loose = 0;
            for (size_t c = 0; c < layouts_.size(); c++) loose += open_->columns[c].loose(layouts_[c]);
            filled_ = filled_ || open_->used == BLOCK_IDS;
            if (open_->used == BLOCK_IDS || loose > MOST_LOOSE) {
                close_block();
                full_bytes_ += open_->nbytes();
                full.push_back(open_);
                open_ = nullptr;
            }
        }
    } catch (...) { /* removes keys that were added for these rows */
        std::vector<int32_t> empty;
        for (int32_t slot : slots)
            if (chains_[slot].count == 0) empty.push_back(slot);
        std::sort(empty.begin(), empty.end());
        empty.erase(std::unique(empty.begin(), empty.end()), empty.end());
        keys.remove(empty.data(), static_cast<int64_t>(empty.size()));
        for (RowBlock* done : full) settle(done);
        throw;
    }
    version_++;
    RowBlock* block = nullptr;
    for (int64_t i = 0; i < in.count; i++) {
        if (i + 2 * FETCH < in.count) __builtin_prefetch(&chains_[slots[i + 2 * FETCH]], 1);
        if (i + FETCH < in.count) Chains::fetch_end(chains_[slots[i + FETCH]]);
        if (block == nullptr || ids[i] - block->first_id >= BLOCK_IDS) block = block_of(ids[i]);
        const int64_t at = ids[i] - block->first_id;
        block->set_live(at);
        block->alive++;
        Chain& chain = chains_[slots[i]];
        entries_.add(chain, {block->order(at), ids[i]});
        if (chain.twin) entries_.add(twins_[slots[i]], twin_entry(*block, at));
    }
    rows_ += in.count;
    for (RowBlock* done : full) settle(done);
    measure();
    move_out(); /* may throw; the rows are inserted already */
    measure();
}

inline void Finder::start(RowTable& table, const Incoming& in) {
    slots_.resize(in.count);
    table.known_slots(in, slots_.data());
    chosen_ = in.chosen;
    version_ = table.version_;
}

inline bool Finder::outdated(const RowTable& table) const { return version_ != table.version_; }

inline int64_t Finder::next(const RowTable& table, int64_t most, Memory& numbers, Memory& ids) {
    const int64_t count = static_cast<int64_t>(slots_.size());
    int64_t pairs = 0, room = 0;
    auto make_room = [&](int64_t more) {
        if (pairs + more <= room) return;
        numbers.reserve(4 * (pairs + more));
        ids.reserve(8 * (pairs + more));
        room = std::min(numbers.room() / 4, ids.room() / 8);
    };
    make_room(std::min(most, count - probe_));
    while (probe_ < count && pairs < most) {
        const int64_t row = chosen_ ? chosen_[probe_] : probe_;
        if (!inside_) {
            if (probe_ + 2 * FETCH < count && slots_[probe_ + 2 * FETCH] >= 0)
                __builtin_prefetch(&table.chains_[slots_[probe_ + 2 * FETCH]]);
            if (probe_ + FETCH < count && slots_[probe_ + FETCH] >= 0) Chains::fetch(table.chains_[slots_[probe_ + FETCH]]);
            if (slots_[probe_] < 0) {
                probe_++;
                continue;
            }
            spot_ = lower_ ? Chains::seek(table.chains_[slots_[probe_]], {lower_[row], LEAST}) : Spot{0, 0};
            left_ = limit_;
            inside_ = true;
        }
        const Chain& chain = table.chains_[slots_[probe_]];
        uint32_t length;
        const Entry* entry = Chains::run(chain, spot_, &length);
        uint32_t good = length;
        if (upper_ && length && entry[length - 1].order > upper_[row])
            good = static_cast<uint32_t>(std::upper_bound(entry, entry + length, Entry{upper_[row], MOST}) - entry);
        const int64_t taken = std::min<int64_t>({good, left_, most - pairs});
        make_room(taken);
        int32_t* number = numbers.as<int32_t>() + pairs;
        int64_t* id = ids.as<int64_t>() + pairs;
        for (int64_t k = 0; k < taken; k++) {
            number[k] = static_cast<int32_t>(probe_);
            id[k] = entry[k].id;
        }
        pairs += taken;
        left_ -= taken;
        if (left_ == 0 || (taken == good && (good < length || length == 0 || chain.size_class != Chain::IN_LEAVES))) {
            probe_++;
            inside_ = false;
        } else {
            Chains::step(chain, spot_, static_cast<uint32_t>(taken), length);
        }
    }
    return pairs;
}

inline void RowTable::nearest(const Incoming& in, bool last, int64_t* ids) {
    std::vector<int32_t> slots(in.count);
    known_slots(in, slots.data());
    for (int64_t i = 0; i < in.count; i++) {
        if (i + 2 * FETCH < in.count && slots[i + 2 * FETCH] >= 0) __builtin_prefetch(&chains_[slots[i + 2 * FETCH]]);
        if (i + FETCH < in.count && slots[i + FETCH] >= 0) Chains::fetch(chains_[slots[i + FETCH]]);
        ids[i] = -1;
        if (slots[i] < 0) continue;
        const Chain& chain = chains_[slots[i]];
        const Spot spot = Chains::seek(chain, {in.order_of(i), last ? MOST : LEAST});
        uint32_t length = 0;
        const Entry* entry = last ? Chains::before(chain, spot) : Chains::run(chain, spot, &length);
        if (last ? entry != nullptr : length > 0) ids[i] = entry->id;
    }
}

inline void RowTable::make_twin(int32_t slot) {
    Chain& chain = chains_[slot];
    Chain& twin = twins_[slot];
    chain.twin = true;
    Spot spot{0, 0};
    uint32_t length;
    std::vector<Entry> entries;
    for (;;) {
        const Entry* entry = Chains::run(chain, spot, &length);
        if (length == 0) break;
        for (uint32_t k = 0; k < length; k++) {
            Found found;
            if (locate(entry[k].id, found)) entries.push_back(twin_entry(*found.block, found.at));
        }
        Chains::step(chain, spot, length, length);
        if (chain.size_class != Chain::IN_LEAVES) break;
    }
    std::sort(entries.begin(), entries.end()); /* then each is appended at the end */
    for (const Entry& entry : entries) entries_.add(twin, entry);
}

inline int64_t RowTable::match_one(
    const std::vector<Store>& columns, int64_t at, int64_t order, int32_t slot, std::unordered_map<int64_t, int64_t>& last,
    std::vector<Found>& marked
) {
    const Chain* chain = &chains_[slot];
    int64_t wanted = order, looked = 0;
    Spot spot = Chains::seek(*chain, {order, LEAST});
    for (bool twin = false;;) {
        uint32_t length;
        const Entry* entry = Chains::run(*chain, spot, &length);
        uint32_t k = 0;
        for (; k < length && entry[k].order == wanted; k++) {
            if (!twin && ++looked > FEW) break;
            if (!mark(entry[k].id, columns, at, marked)) continue;
            if (twin) last[wanted] = entry[k].id;
            return entry[k].id;
        }
        if (!twin && looked > FEW) { /* too many rows to compare one by one */
            if (!chain->twin) make_twin(slot);
            twin = true;
            chain = &twins_[slot];
            wanted = static_cast<int64_t>(row_hash(columns, at, order));
            const auto before = last.find(wanted);
            spot = Chains::seek(*chain, {wanted, before == last.end() ? LEAST : before->second + 1});
            continue;
        }
        if (k < length || length == 0 || chain->size_class != Chain::IN_LEAVES) return -1;
        Chains::step(*chain, spot, length, length);
    }
}

inline void RowTable::match(const Incoming& in, int64_t* ids) {
    std::vector<int32_t> slots(in.count);
    keys.resolve(in.keys, keyed_ ? in.hashes : nullptr, in.chosen, in.count, false, slots.data());
    std::vector<Found> marked;
    std::unordered_map<int64_t, int64_t> last; /* by the hash of a row: the last of these rows that was returned */
    struct Unmark {
        std::vector<Found>& marked;
        ~Unmark() {
            for (const Found& found : marked) found.block->marks[found.at >> 6] &= ~(1ULL << (found.at & 63));
        }
    } unmark{marked};
    for (int64_t base = 0; base < in.count; base += STEP) {
        const int64_t count = std::min(STEP, in.count - base);
        std::vector<Store> columns(layouts_.size());
        for (size_t c = 0; c < columns.size(); c++) columns[c].prepare(layouts_[c]);
        append_columns(columns, in, base, count);
        for (int64_t i = 0; i < count; i++) {
            const int64_t p = base + i;
            if (p + 2 * FETCH < in.count && slots[p + 2 * FETCH] >= 0) __builtin_prefetch(&chains_[slots[p + 2 * FETCH]]);
            if (p + FETCH < in.count && slots[p + FETCH] >= 0) Chains::fetch(chains_[slots[p + FETCH]]);
            ids[p] = slots[p] < 0 ? -1 : match_one(columns, i, in.order_of(p), slots[p], last, marked);
        }
    }
}

inline void RowTable::take(const int64_t* ids, int64_t count, const std::vector<int>& columns, std::vector<Store>& out) const {
    out.resize(columns.size());
    for (size_t c = 0; c < columns.size(); c++) {
        out[c].prepare(layouts_[columns[c]]);
        out[c].reserve(layouts_[columns[c]], count, nullptr);
    }
    std::vector<Found> places(static_cast<size_t>(std::min(count, STEP)));
    for (int64_t base = 0; base < count; base += STEP) {
        const int64_t n = std::min(STEP, count - base);
        bool missing = false;
        for (int64_t i = 0; i < n; i++) {
            if (ids[base + i] == -1) {
                places[i].block = nullptr;
                missing = true;
            } else if (!locate(ids[base + i], places[i])) {
                absent(ids[base + i]);
            }
        }
        for (size_t c = 0; c < columns.size(); c++) {
            const int column = columns[c];
            gather(out[c], layouts_[column], n, missing, [&](int64_t i) {
                const Found& found = places[i];
                return Place{found.block ? &found.block->columns[column] : nullptr, found.at};
            });
            if (base == 0 && n < count) out[c].expect(layouts_[column], count);
        }
    }
}

inline void RowTable::thin_out(RowBlock* block) {
    std::vector<int64_t> positions;
    for (int64_t at = 0; at < block->used; at++)
        if (block->is_live(at)) positions.push_back(at);
    const int64_t n = static_cast<int64_t>(positions.size());
    auto few = make_block(block->first_id >> BLOCK_BITS);
    few->sparse = true;
    few->orders.reserve(8 * n);
    few->slots.reserve(4 * n);
    few->locals.reserve(n);
    if (counted_) few->counts.reserve(n);
    for (size_t c = 0; c < layouts_.size(); c++) {
        few->columns[c].reserve(layouts_[c], n, nullptr);
        gather(few->columns[c], layouts_[c], n, false, [&](int64_t i) { return Place{&block->columns[c], positions[i]}; });
    }
    for (int64_t i = 0; i < n; i++) {
        few->orders.as<int64_t>()[i] = block->order(positions[i]);
        few->slots.as<int32_t>()[i] = block->slot(positions[i]);
        few->locals.push_back(static_cast<uint16_t>(block->id(positions[i]) - block->first_id));
        if (counted_) few->counts.push_back(block->counts[positions[i]]);
    }
    few->live.assign((n + 63) / 64, 0);
    for (int64_t i = 0; i < n; i++) few->set_live(i);
    few->used = few->alive = n;
    full_bytes_ += few->nbytes() - block->nbytes();
    place_of(block->first_id >> BLOCK_BITS) = std::move(few);
}

/* Makes a new block, because a snapshot may be reading the old one. */
inline void RowTable::move_out(std::shared_ptr<RowBlock>& place) {
    RowBlock& block = *place;
    std::vector<Mapped::Part> parts;
    auto collect = [&](const Memory& memory, size_t bytes) { parts.push_back({memory.at(), bytes}); };
    for (size_t c = 0; c < layouts_.size(); c++) each_memory(block.columns[c], layouts_[c], block.used, block.columns[c], collect);
    collect(block.orders, 8 * block.used);
    collect(block.slots, 4 * block.used);
    auto mapped = std::make_unique<Mapped>(directory_, parts);
    auto moved = std::make_shared<RowBlock>();
    moved->first_id = block.first_id;
    moved->used = block.used;
    moved->columns.resize(layouts_.size());
    auto lend = [&](Memory& memory, size_t bytes) { mapped->lend_next(memory, bytes); };
    for (size_t c = 0; c < layouts_.size(); c++) {
        moved->columns[c].take_shape(block.columns[c]);
        each_memory(moved->columns[c], layouts_[c], block.used, block.columns[c], lend);
    }
    lend(moved->orders, 8 * block.used);
    lend(moved->slots, 4 * block.used);
    moved->mapped = std::move(mapped);
    moved->sparse = block.sparse;
    moved->locals = block.locals;
    full_bytes_ -= block.nbytes();
    moved->alive = block.alive;
    moved->live = std::move(block.live);
    moved->counts = std::move(block.counts);
    full_bytes_ += moved->nbytes();
    place = std::move(moved);
}

inline void RowTable::remove(const int64_t* ids, int64_t count) {
    std::vector<Found> found(count);
    std::vector<RowBlock*> touched;
    for (int64_t i = 0; i < count; i++) {
        if (!locate(ids[i], found[i])) {
            bool twice = false;
            for (int64_t k = i; k-- > 0;) {
                found[k].block->set_live(found[k].at);
                twice = twice || ids[k] == ids[i];
            }
            if (twice) throw std::invalid_argument("row " + std::to_string(ids[i]) + " is given twice to be removed");
            absent(ids[i]);
        }
        found[i].block->set_dead(found[i].at);
        __builtin_prefetch(found[i].block->slots.as<int32_t>() + found[i].at);
        __builtin_prefetch(found[i].block->orders.as<int64_t>() + found[i].at);
    }
    version_++;
    std::vector<int32_t> empty;
    for (int64_t i = 0; i < count; i++) {
        if (i + 2 * FETCH < count) __builtin_prefetch(&chains_[found[i + 2 * FETCH].block->slot(found[i + 2 * FETCH].at)]);
        if (i + FETCH < count) Chains::fetch(chains_[found[i + FETCH].block->slot(found[i + FETCH].at)]);
        RowBlock* block = found[i].block;
        const int32_t slot = block->slot(found[i].at);
        Chain& chain = chains_[slot];
        if (chain.twin) {
            entries_.remove(twins_[slot], twin_entry(*block, found[i].at));
            if (chain.count == 1) {
                entries_.clear(twins_[slot]);
                twins_.erase(slot);
                chain.twin = false;
            }
        }
        entries_.remove(chain, {block->order(found[i].at), ids[i]});
        if (chain.count == 0) empty.push_back(slot);
        block->alive--;
        if (!block->touched) {
            block->touched = true;
            touched.push_back(block);
        }
    }
    keys.remove(empty.data(), static_cast<int64_t>(empty.size()));
    rows_ -= count;
    for (RowBlock* block : touched) {
        block->touched = false;
        if (block != open_) settle(block);
    }
    measure();
}

inline void RowTable::take_in(OrderRuns& runs) {
    std::vector<Entry> more;
    const int64_t pages = static_cast<int64_t>(pages_.size());
    for (int64_t number = std::max(runs.next_id >> BLOCK_BITS, first_page_ << PAGE_BITS); number < next_block_; number++) {
        const int64_t page = (number >> PAGE_BITS) - first_page_;
        if (page >= pages || !pages_[page]) {
            number |= (1 << PAGE_BITS) - 1;
            continue;
        }
        const RowBlock* block = place_of(number).get();
        if (block == nullptr) continue;
        for (int64_t at = block->position_from(runs.next_id); at < block->used; at++)
            if (block->is_live(at)) more.push_back({block->order(at), block->id(at)});
    }
    runs.next_id = open_ ? open_->first_id + open_->used : next_block_ << BLOCK_BITS;
    runs.take_in(std::move(more), rows_, [&](int64_t id) { return is_live(id); });
}

inline void RowTable::below(int64_t order, std::vector<int64_t>& ids) {
    if (!expiring_) expiring_ = std::make_unique<OrderRuns>();
    take_in(*expiring_);
    std::vector<Entry> found;
    expiring_->below(order, false, [&](int64_t id) { return is_live(id); }, [&](const Entry& entry) { found.push_back(entry); });
    if (!std::is_sorted(found.begin(), found.end())) std::sort(found.begin(), found.end());
    ids.reserve(found.size());
    for (const Entry& entry : found) ids.push_back(entry.id);
    measure();
}

inline void RowTable::superseded(int64_t order, std::vector<int64_t>& ids) {
    if (!versions_) versions_ = std::make_unique<OrderRuns>();
    take_in(*versions_);
    std::vector<int32_t> slots; /* keys with a row that the order has passed */
    versions_->below(order, true, [&](int64_t id) { return is_live(id); }, [&](const Entry& entry) {
        Found found;
        locate(entry.id, found);
        slots.push_back(found.block->slot(found.at));
    });
    std::sort(slots.begin(), slots.end());
    slots.erase(std::unique(slots.begin(), slots.end()), slots.end());
    std::vector<int64_t> found_now; /* for each key, the rows before its last row below the order */
    for (size_t i = 0; i < slots.size(); i++) {
        if (i + 2 * FETCH < slots.size()) __builtin_prefetch(&chains_[slots[i + 2 * FETCH]]);
        if (i + FETCH < slots.size()) Chains::fetch(chains_[slots[i + FETCH]]);
        const Chain& chain = chains_[slots[i]];
        const Entry* last = Chains::before(chain, Chains::seek(chain, {order, LEAST}));
        if (last == nullptr) continue;
        const Entry newest = *last;
        Spot spot{0, 0};
        for (bool more = true; more;) {
            uint32_t length;
            const Entry* entry = Chains::run(chain, spot, &length);
            uint32_t k = 0;
            for (; k < length && entry[k] < newest; k++) found_now.push_back(entry[k].id);
            more = k == length && length && chain.size_class == Chain::IN_LEAVES;
            if (more) Chains::step(chain, spot, length, length);
        }
    }
    std::sort(found_now.begin(), found_now.end());
    std::vector<int64_t> before; /* rows returned by an earlier call, perhaps with a later order, and not removed since */
    for (int64_t id : given_) {
        Found found;
        if (!locate(id, found) || std::binary_search(found_now.begin(), found_now.end(), id)) continue;
        before.push_back(id);
        if (found.block->order(found.at) >= order) continue;
        const Chain& chain = chains_[found.block->slot(found.at)];
        const Entry* last = Chains::before(chain, Chains::seek(chain, {order, LEAST}));
        if (last && last->id != id) ids.push_back(id);
    }
    const size_t again = ids.size();
    ids.insert(ids.end(), found_now.begin(), found_now.end());
    std::inplace_merge(ids.begin(), ids.begin() + again, ids.end());
    given_.resize(before.size() + found_now.size());
    std::merge(before.begin(), before.end(), found_now.begin(), found_now.end(), given_.begin());
    measure();
}

inline std::shared_ptr<RowsCut> RowTable::cut() const {
    auto cut = std::make_shared<RowsCut>();
    cut->rows = rows_;
    cut->next_id = open_ ? open_->first_id + open_->used : next_block_ << BLOCK_BITS;
    cut->parts.reserve(blocks_);
    for (const auto& page : pages_) {
        if (!page) continue;
        for (const std::shared_ptr<RowBlock>& block : page->blocks) {
            if (!block || block->alive == 0) continue;
            std::shared_ptr<const RowBlock> kept = block;
            if (block.get() == open_) { /* other blocks are not written any more */
                auto copy = make_block(block->first_id >> BLOCK_BITS);
                const int64_t n = copy->used = block->used;
                copy->orders.reserve(8 * n);
                std::memcpy(copy->orders.at(), block->orders.at(), 8 * n);
                for (size_t c = 0; c < layouts_.size(); c++)
                    gather(copy->columns[c], layouts_[c], n, false, [&](int64_t i) { return Place{&block->columns[c], i}; });
                kept = std::move(copy);
            }
            cut->parts.push_back({std::move(kept), block->used, block->alive, block->live, block->counts});
        }
    }
    return cut;
}

}  // namespace sabot
