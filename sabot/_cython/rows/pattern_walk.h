/* The partial matches of a pattern, and their extension by rows. See pattern.pyi for the definition of a match.

        key ──▶ partial ──next──▶ partial ──▶ …           in the order of preference, hence also ordered by their first row
                   │ node            │ node
                   ▼                 ▼
         row c ──▶ row b ──prev──▶ row a                  nodes: the rows taken, newest first; shared and reference counted;
                                                          if a step does not keep each row, one node stands for several

   A partial match may take two kinds of rows next: another row of its `step` (`loop`), or a first row of a step in
   `targets`. A row that it takes makes a new partial match in its place. The old one stays behind the new one, with the
   steps that it may still take if it skips the row, or is dropped if there are none. `interest` has the bits of the tests
   that can affect a partial match: a row that passes none of them costs only a look at its key.

   Nothing here needs the GIL. Functions that add partial matches or nodes may throw std::bad_alloc (`except +`); those that
   only read are noexcept. */
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "arrow/column.h"

namespace sabot {

enum : int { STRICT = 0, RELAXED = 1, ANY = 2 };           /* which rows may be skipped before a row that is taken */
enum : int { PAST_LAST = 0, TO_NEXT = 1, ALL = 2 };        /* where matching goes on after a match */
enum : int { SIGNED = 0, UNSIGNED = 1, FLOAT = 2, BYTES = 3 }; /* the kind of a value */
/* the rows of a step that are kept: none (only their number), the first and the last, all */
enum : int { COUNT = 0, ENDS = 1, EACH = 2 };
constexpr int END = 63;  /* the bit of `targets` for the time after the last step in which no forbidden row may come */
constexpr uint64_t EVERY = 1ull << 63;                     /* the bit of a test that all rows pass */
constexpr int LOOK_BACK = 16;                              /* the number of earlier partial matches that a new one is compared with */

struct Condition {
    int op; /* == != < <= > >= */
    bool left_captured, right_captured;
    int left, right; /* a slot of the partial match, or a column of operands */
    int kind;
    bool own; /* true if it compares with an earlier row of the same step; the first row of the step passes */
};

struct Test {
    uint64_t bits;
    std::vector<Condition> conditions;
};

struct StepPlan {
    int32_t least, most; /* numbers of rows; `most` 0 for any number */
    int before, between; /* which rows may be skipped before its first row, and between its rows */
    bool optional, greedy;
    int keep;
    Test test;
};

struct SlotPlan {
    int step;
    bool first; /* true for the value of the step's first row, false for its last row */
    int kind;
    int source; /* the column of operands */
};

constexpr int64_t FAR_SERIAL = int64_t{1} << 62; /* greater than the number of any row */

struct Partial {
    int64_t start, last; /* the serial numbers of its first and its last row */
    int64_t first_time;
    uint64_t targets;
    uint64_t valid; /* one bit for each slot that has a value */
    int32_t node, next;
    int32_t count; /* its number of rows in `step`; for a step with any number of rows, counted up to `least` only */
    int16_t step;
    bool loop;
};

struct Node {
    int64_t row; /* its number, or -1 if it has none because no match reports it */
    int32_t prev, refs;
    int32_t depth; /* the number of nodes up to this one */
    int32_t total; /* the number of rows up to this one */
    int32_t weight; /* the number of rows for which it stands; its own row is the last of them */
    int32_t slot; /* the slot of its key */
    int32_t step;
};

struct KeyOf {
    uint64_t interest = 0; /* the union of its partial matches' interest, or a superset */
    int64_t deadline = INT64_MAX; /* the deadline of the first partial match */
    int64_t queued_at = 0; /* the deadline under which the key is in the queue */
    int32_t head = -1, tail = -1, size = 0;
    int32_t nodes = 0;
    bool queued = false, listed = false;
};

struct Found { /* found matches; the rows of match i are those from offsets[i] to offsets[i + 1] */
    std::vector<int32_t> slots, steps;
    std::vector<int64_t> first, last, offsets, rows, weights;
    void clear() {
        slots.clear(), steps.clear(), first.clear(), last.clear(), offsets.clear(), rows.clear(), weights.clear();
        offsets.push_back(0);
    }
};

class Matcher {
public:
    std::vector<StepPlan> steps;
    std::vector<std::vector<Test>> gaps; /* tests of rows that may not come before step i; the last entry: after the last step */
    std::vector<SlotPlan> slots;
    std::vector<int> operand_kinds;
    std::vector<View> operands; /* the operands of the batch */
    int64_t within = -1;
    int skip = PAST_LAST;
    int64_t most_partials = 10000, most_nodes = 1000000, output_rows = 1 << 20; /* the first two are limits per key */

    uint64_t start_bits = 0, watched = 0;
    Found found;
    std::vector<int64_t> taken; /* the rows of the batch that got a number, in order */
    std::vector<KeyOf> keys;
    int64_t next_row = 0, serial = 0;
    int64_t partials = 0, nodes = 0, bytes = 0;
    int32_t crowded = -1; /* the key that exceeds a limit, or -1 */

    /* Prepares matching. Call it when the plans are filled in. */
    void ready() {
        const int n = static_cast<int>(steps.size());
        reach_.assign(n + 1, 0);
        final_.assign(n + 1, false);
        jump_bits_.assign(n + 1, std::vector<uint64_t>(n + 1, 0));
        for (int from = 0; from <= n; from++) { /* from 0: before the first step; from i + 1: in step i */
            int to = from;
            for (; to < n; to++) {
                reach_[from] |= 1ull << to;
                if (!steps[to].optional) break;
            }
            if (to == n && from > 0) {
                if (gaps[n].empty()) final_[from] = true;
                else reach_[from] |= 1ull << END;
            }
            uint64_t bits = 0;
            for (int gap = from; gap <= n; gap++) {
                for (const Test& test : gaps[gap]) bits |= test.bits;
                jump_bits_[from][gap] = bits;
            }
        }
        for (int j = 0; j < n; j++) {
            watched |= steps[j].test.bits;
            if (reach_[0] >> j & 1) start_bits |= steps[j].test.bits;
            if ((j && steps[j].before == STRICT) || (steps[j].most != 1 && steps[j].between == STRICT)) watched |= EVERY;
            for (const Test& test : gaps[j]) watched |= test.bits;
        }
        for (const Test& test : gaps[n]) watched |= test.bits;
        for (const SlotPlan& slot : slots) has_text_ |= slot.kind == BYTES;
        row_text_.assign(operand_kinds.size(), -1);
        found.clear();
    }

    void reach_slot(int32_t greatest) {
        if (static_cast<int64_t>(keys.size()) <= greatest) keys.resize(greatest + 1);
    }

    bool full() const { return static_cast<int64_t>(found.rows.size()) >= output_rows; }

    /* Processes a row of a key. `mask` has the bits of the tests that the row passes. */
    void row(int32_t slot, int64_t index, uint64_t mask, int64_t time) {
        KeyOf& key = keys[slot];
        if (!(mask & (key.interest | start_bits))) return;
        serial++;
        index_ = index;
        row_ = -1;
        if (key.deadline < time) expire_front(slot, time);
        bool over = false;
        if (mask & key.interest) over = walk(slot, mask, time);
        if (!over && (mask & start_bits)) begin(slot, mask, time);
        if (has_text_) forget_row_text();
        if (key.size > most_partials || key.nodes > most_nodes) crowded = slot;
        note(slot);
    }

    /* Drops the partial matches that no row at or after `watermark` can extend. Returns false if `found` became full
       before the end. */
    bool expire(int64_t watermark) {
        while (!queue_.empty() && queue_.front().first < watermark) {
            if (full()) return false;
            const int32_t slot = queue_.front().second;
            std::pop_heap(queue_.begin(), queue_.end(), Later());
            queue_.pop_back();
            keys[slot].queued = false;
            if (keys[slot].size == 0) continue; /* the slot has become vacant; it may belong to another key by now */
            expire_front(slot, watermark);
            note(slot);
        }
        return true;
    }

    /* Appends the keys that have lost their last partial match since the last call. */
    void drain_vacant(std::vector<int32_t>& out) {
        for (int32_t slot : listed_) {
            keys[slot].listed = false;
            if (keys[slot].size == 0) out.push_back(slot);
        }
        listed_.clear();
    }

    /* Appends the numbers of the rows in nodes, ascending, each once. */
    void live_rows(std::vector<int64_t>& out) const {
        out.reserve(nodes);
        for (const Node& node : node_pool_)
            if (node.refs > 0 && node.row >= 0) out.push_back(node.row);
        std::sort(out.begin(), out.end());
        out.erase(std::unique(out.begin(), out.end()), out.end());
    }

    /* Gives row live[i] the number i. */
    void renumber(const std::vector<int64_t>& live) {
        for (Node& node : node_pool_)
            if (node.refs > 0 && node.row >= 0) node.row = std::lower_bound(live.begin(), live.end(), node.row) - live.begin();
        next_row = static_cast<int64_t>(live.size());
    }

    /* Appends the partial matches of these keys, in their order, and their nodes, key by key. `place` returns the
       position of a node in `order` until `forget_places`. */
    void gather(const int32_t* given, int64_t count, std::vector<int32_t>& which, std::vector<int32_t>& order) {
        if (places_.size() < node_pool_.size()) places_.resize(node_pool_.size(), -1);
        for (int64_t i = 0; i < count; i++) {
            if (given[i] < 0 || given[i] >= static_cast<int64_t>(keys.size())) continue;
            for (int32_t p = keys[given[i]].head; p >= 0; p = pool_[p].next) {
                which.push_back(p);
                for (int32_t node = pool_[p].node; node >= 0 && places_[node] < 0; node = node_pool_[node].prev) {
                    places_[node] = static_cast<int32_t>(order.size());
                    order.push_back(node);
                }
            }
        }
    }
    int32_t place(int32_t node) const { return places_[node]; }
    void forget_places(const std::vector<int32_t>& order) {
        for (int32_t node : order) places_[node] = -1;
    }

    /* Drops all partial matches of these keys. These keys are not reported as vacant. */
    void evict(const int32_t* given, int64_t count) {
        for (int64_t i = 0; i < count; i++)
            if (given[i] >= 0 && given[i] < static_cast<int64_t>(keys.size())) clear(given[i]);
    }

    /* Appends the keys that `expire` may change, with repeats. */
    void due(int64_t watermark, std::vector<int32_t>& out) const {
        std::vector<size_t> open;
        if (!queue_.empty()) open.push_back(0);
        while (!open.empty()) {
            const size_t at = open.back();
            open.pop_back();
            if (queue_[at].first >= watermark) continue;
            out.push_back(queue_[at].second);
            for (size_t child = 2 * at + 1; child <= 2 * at + 2 && child < queue_.size(); child++) open.push_back(child);
        }
    }
    const Node& node(int32_t i) const { return node_pool_[i]; }
    const Partial& partial(int32_t i) const { return pool_[i]; }
    uint64_t value(int32_t partial, int slot) const { return values_[partial * slots.size() + slot]; }
    const std::string& text(uint64_t handle) const { return texts_[handle]; }

    /* Adds a node of a checkpoint. Returns its id, or -1 if there are more rows than a match can have. */
    int32_t load_node(int64_t row, int32_t prev, int32_t step, int32_t weight, int32_t slot) {
        if (prev >= 0 && weight > INT32_MAX - node_pool_[prev].total) return -1;
        const int32_t made = new_node(row, prev, step, weight, slot);
        node_pool_[made].refs = 0;
        nodes--;
        keys[slot].nodes--;
        return made;
    }
    /* Returns true if the partial match can result from some rows in this pattern. */
    bool belongs(const Partial& given) const {
        const StepPlan& step = steps[given.step];
        return given.count >= 1 && given.count <= std::max(step.least, step.most) && !(given.targets & ~reach_[given.step + 1])
            && 0 <= given.start && given.start <= given.last && given.last < FAR_SERIAL;
    }
    int32_t load_partial(int32_t slot, const Partial& given) {
        const int32_t p = new_partial();
        pool_[p] = given;
        pool_[p].valid = 0;
        hold(given.node);
        if (given.start >= serial) serial = given.start + 1;
        if (given.last >= serial) serial = given.last + 1;
        attach(slot, p);
        return p;
    }
    void load_value(int32_t p, int slot, uint64_t raw) {
        values_[p * slots.size() + slot] = raw;
        pool_[p].valid |= 1ull << slot;
    }
    void load_text(int32_t p, int slot, const uint8_t* data, int64_t size) { load_value(p, slot, new_text(data, size)); }

    int64_t memory() const {
        return static_cast<int64_t>(
            pool_.capacity() * sizeof(Partial) + values_.capacity() * 8 + node_pool_.capacity() * sizeof(Node)
            + keys.capacity() * sizeof(KeyOf) + queue_.capacity() * 16 + texts_.capacity() * sizeof(std::string) + bytes
        );
    }

private:
    struct Later {
        bool operator()(const std::pair<int64_t, int32_t>& a, const std::pair<int64_t, int32_t>& b) const { return a > b; }
    };

    std::vector<uint64_t> reach_;
    std::vector<bool> final_;
    std::vector<std::vector<uint64_t>> jump_bits_;
    std::vector<Partial> pool_;
    std::vector<uint64_t> values_;
    std::vector<int32_t> unused_;
    std::vector<Node> node_pool_;
    std::vector<int32_t> unused_nodes_, places_;
    std::vector<std::string> texts_;
    std::vector<int32_t> text_refs_, unused_texts_, row_text_;
    std::vector<std::pair<int64_t, int32_t>> queue_; /* a heap of (deadline, key), the earliest on top; entries may be out of date */
    std::vector<int32_t> listed_, fresh_;
    bool has_text_ = false;
    int64_t index_ = 0, row_ = -1; /* the current row: its index in the batch, and its number once it is taken */

    void note(int32_t slot) {
        KeyOf& key = keys[slot];
        if (key.size == 0 && !key.listed) {
            key.listed = true;
            listed_.push_back(slot);
        }
    }

    int64_t deadline_of(const Partial& p) const {
        if (within < 0) return INT64_MAX;
        return p.first_time > INT64_MAX - within ? INT64_MAX : p.first_time + within;
    }

    /* -- partials, nodes, texts ------------------------------------------------------------------------------------------ */

    int32_t new_partial() {
        partials++;
        if (!unused_.empty()) {
            const int32_t p = unused_.back();
            unused_.pop_back();
            return p;
        }
        pool_.emplace_back();
        values_.resize(pool_.size() * slots.size());
        return static_cast<int32_t>(pool_.size()) - 1;
    }

    void drop(int32_t p) {
        const Partial& partial = pool_[p];
        release(partial.node);
        if (has_text_)
            for (size_t i = 0; i < slots.size(); i++)
                if (slots[i].kind == BYTES && (partial.valid >> i & 1)) release_text(values_[p * slots.size() + i]);
        unused_.push_back(p);
        if (--partials == 0) { /* release the arrays, so that the peak of a busy hour does not slow later scans */
            pool_.clear();
            values_.clear();
            unused_.clear();
        }
    }

    int32_t new_node(int64_t row, int32_t prev, int32_t step, int32_t weight, int32_t slot) {
        nodes++;
        keys[slot].nodes++;
        int32_t made;
        if (unused_nodes_.empty()) {
            made = static_cast<int32_t>(node_pool_.size());
            node_pool_.emplace_back();
        } else {
            made = unused_nodes_.back();
            unused_nodes_.pop_back();
        }
        if (prev >= 0) hold(prev);
        const int32_t depth = prev >= 0 ? node_pool_[prev].depth : 0, total = prev >= 0 ? node_pool_[prev].total : 0;
        node_pool_[made] = {row, prev, 1, depth + 1, total + weight, weight, slot, step};
        return made;
    }

    void hold(int32_t node) {
        if (node_pool_[node].refs++ > 0) return;
        nodes++; /* a loaded node */
        keys[node_pool_[node].slot].nodes++;
    }

    void release(int32_t node) {
        while (node >= 0 && --node_pool_[node].refs == 0) {
            unused_nodes_.push_back(node);
            nodes--;
            keys[node_pool_[node].slot].nodes--;
            node = node_pool_[node].prev;
        }
        if (nodes == 0) {
            node_pool_.clear();
            unused_nodes_.clear();
        }
    }

    uint64_t new_text(const uint8_t* data, int64_t size) {
        int32_t made;
        if (unused_texts_.empty()) {
            made = static_cast<int32_t>(texts_.size());
            texts_.emplace_back();
            text_refs_.push_back(0);
        } else {
            made = unused_texts_.back();
            unused_texts_.pop_back();
        }
        texts_[made].assign(reinterpret_cast<const char*>(data), size);
        text_refs_[made] = 1;
        bytes += size;
        return made;
    }

    void release_text(uint64_t text) {
        if (--text_refs_[text] > 0) return;
        bytes -= static_cast<int64_t>(texts_[text].size());
        std::string().swap(texts_[text]);
        unused_texts_.push_back(static_cast<int32_t>(text));
    }

    void forget_row_text() {
        for (int32_t& text : row_text_)
            if (text >= 0) {
                release_text(text);
                text = -1;
            }
    }

    /* Stores the values of the current row in the step's slots. */
    void capture(int32_t p, int step, bool first) {
        for (size_t i = 0; i < slots.size(); i++) {
            const SlotPlan& slot = slots[i];
            if (slot.step != step || (slot.first && !first)) continue;
            uint64_t& value = values_[p * slots.size() + i];
            const uint64_t bit = 1ull << i;
            if (slot.kind == BYTES && (pool_[p].valid & bit)) release_text(value);
            const View& view = operands[slot.source];
            if (!view.valid(index_)) {
                pool_[p].valid &= ~bit;
                continue;
            }
            pool_[p].valid |= bit;
            if (slot.kind != BYTES) {
                value = static_cast<const uint64_t*>(view.values)[view.start + index_];
                continue;
            }
            int32_t& text = row_text_[slot.source];
            if (text < 0) {
                int64_t size;
                const uint8_t* data = view.bytes_at(index_, &size);
                text = static_cast<int32_t>(new_text(data, size));
            }
            text_refs_[text]++;
            value = static_cast<uint64_t>(text);
        }
    }

    /* -- tests ------------------------------------------------------------------------------------------------------------ */

    static int compared(double a, double b) { /* NaN equals NaN, and is greater than all other values */
        if (a < b) return -1;
        if (a > b) return 1;
        if (a == b) return 0;
        return (a != a) - (b != b);
    }
    template <class T>
    static int ordered(T a, T b) { return a < b ? -1 : a > b; }

    bool read(bool captured, int index, int kind, int32_t p, uint64_t* raw, const uint8_t** data, int64_t* size) const {
        if (captured) {
            if (p < 0 || !(pool_[p].valid >> index & 1)) return false;
            *raw = values_[p * slots.size() + index];
            if (kind == BYTES) {
                const std::string& text = texts_[*raw];
                *data = reinterpret_cast<const uint8_t*>(text.data());
                *size = static_cast<int64_t>(text.size());
            }
            return true;
        }
        const View& view = operands[index];
        if (!view.valid(index_)) return false;
        if (kind == BYTES) *data = view.bytes_at(index_, size);
        else *raw = static_cast<const uint64_t*>(view.values)[view.start + index_];
        return true;
    }

    bool holds(const Condition& given, int32_t p, bool looping) const {
        if (given.own && !looping) return true;
        uint64_t a = 0, b = 0;
        const uint8_t *left = nullptr, *right = nullptr;
        int64_t left_size = 0, right_size = 0;
        if (!read(given.left_captured, given.left, given.kind, p, &a, &left, &left_size)) return false;
        if (!read(given.right_captured, given.right, given.kind, p, &b, &right, &right_size)) return false;
        int order;
        if (given.kind == SIGNED) order = ordered(static_cast<int64_t>(a), static_cast<int64_t>(b));
        else if (given.kind == UNSIGNED) order = ordered(a, b);
        else if (given.kind == FLOAT) order = compared(double_of(a), double_of(b));
        else {
            const int64_t common = std::min(left_size, right_size);
            order = common ? std::memcmp(left, right, common) : 0;
            if (order == 0) order = ordered(left_size, right_size);
        }
        switch (given.op) {
            case 0: return order == 0;
            case 1: return order != 0;
            case 2: return order < 0;
            case 3: return order <= 0;
            case 4: return order > 0;
            default: return order >= 0;
        }
    }

    bool holds(const Test& test, uint64_t mask, int32_t p, bool looping) const {
        if (!(mask & test.bits)) return false;
        for (const Condition& each : test.conditions)
            if (!holds(each, p, looping)) return false;
        return true;
    }

    /* Returns true if the current row is forbidden between step `from - 1` and step `to`. */
    bool forbidden(int from, int to, uint64_t mask, int32_t p) const {
        if (!(mask & jump_bits_[from][to])) return false;
        for (int gap = from; gap <= to; gap++)
            for (const Test& test : gaps[gap])
                if (holds(test, mask, p, false)) return true;
        return false;
    }

    uint64_t interest(const Partial& p) const {
        const StepPlan& plan = steps[p.step];
        const int from = p.step + 1, n = static_cast<int>(steps.size());
        uint64_t bits = 0;
        if (p.loop) {
            bits |= plan.test.bits;
            if (plan.between == STRICT) bits |= EVERY;
            if (p.count >= plan.least) bits |= jump_bits_[from][from];
        }
        for (uint64_t left = p.targets & ~(1ull << END); left; left &= left - 1) {
            const int j = __builtin_ctzll(left);
            bits |= steps[j].test.bits | jump_bits_[from][j];
            if (steps[j].before == STRICT) bits |= EVERY;
        }
        if (p.targets >> END & 1) bits |= jump_bits_[from][n];
        return bits;
    }

    /* -- rows ------------------------------------------------------------------------------------------------------------- */

    /* Extends partial match `p` (-1 for a new one) by the current row as a row of step j. OUT complete: true if it is
       a match. */
    int32_t child(int32_t slot, int32_t p, int j, bool looping, int64_t time, bool* complete) {
        const StepPlan& plan = steps[j];
        if (row_ < 0 && plan.keep != COUNT) {
            row_ = next_row++;
            taken.push_back(index_);
        }
        const int32_t made = new_partial();
        Partial& now = pool_[made];
        int32_t count = 1;
        if (p >= 0) {
            const Partial& old = pool_[p];
            now.start = old.start;
            now.first_time = old.first_time;
            now.valid = old.valid;
            const size_t width = slots.size();
            for (size_t i = 0; i < width; i++) {
                const uint64_t value = values_[p * width + i];
                values_[made * width + i] = value;
                if (slots[i].kind == BYTES && (old.valid >> i & 1)) text_refs_[value]++;
            }
            if (looping) count = old.count + 1;
        } else {
            now.start = serial;
            now.first_time = time;
            now.valid = 0;
        }
        now.last = serial;
        now.node = grown(p >= 0 ? pool_[p].node : -1, j, looping, slot);
        now.next = -1;
        now.step = static_cast<int16_t>(j);
        now.loop = plan.most == 0 || count < plan.most;
        const bool enough = count >= plan.least;
        now.count = plan.most == 0 && enough ? plan.least : count;
        now.targets = enough ? reach_[j + 1] : 0;
        *complete = enough && final_[j + 1];
        if (!slots.empty()) capture(made, j, !looping);
        return made;
    }

    /* Returns a node for the current row: a new one after `prev`, or a changed `prev` if its row need not be kept. */
    int32_t grown(int32_t prev, int j, bool looping, int32_t slot) {
        const int keep = steps[j].keep;
        int32_t weight = 1;
        if (looping && keep != EACH) {
            const Node& last = node_pool_[prev];
            if (keep == COUNT || (last.prev >= 0 && node_pool_[last.prev].step == j)) {
                weight = last.weight + 1;
                prev = last.prev;
            }
        }
        return new_node(keep == COUNT ? -1 : row_, prev, j, weight, slot);
    }

    void emit(int32_t slot, int32_t p, int64_t end) {
        const Partial& partial = pool_[p];
        const int32_t depth = node_pool_[partial.node].depth;
        const size_t base = found.rows.size();
        found.rows.resize(base + depth);
        found.steps.resize(base + depth);
        found.weights.resize(base + depth);
        size_t place = base + depth;
        for (int32_t node = partial.node; node >= 0; node = node_pool_[node].prev) {
            place--;
            found.rows[place] = node_pool_[node].row;
            found.steps[place] = node_pool_[node].step;
            found.weights[place] = node_pool_[node].weight;
        }
        found.slots.push_back(slot);
        found.first.push_back(partial.first_time);
        found.last.push_back(end);
        found.offsets.push_back(static_cast<int64_t>(base + depth));
    }

    /* Returns true if partial match `a` makes `b` superfluous: `a` can become all that `b` can, and `a` is preferred. */
    bool covers(int32_t a, int32_t b) const {
        const Partial &x = pool_[a], &y = pool_[b];
        if (x.step != y.step || x.count != y.count || x.valid != y.valid || (y.targets & ~x.targets)) return false;
        if (x.loop != y.loop && (y.loop || steps[x.step].greedy)) return false; /* a greedy `a` must take rows that `b` may skip */
        for (size_t i = 0; i < slots.size(); i++) {
            if (!(x.valid >> i & 1)) continue;
            const uint64_t left = value(a, static_cast<int>(i)), right = value(b, static_cast<int>(i));
            if (left != right && (slots[i].kind != BYTES || texts_[left] != texts_[right])) return false;
        }
        return true;
    }
    bool comparable(int32_t a, int32_t b) const { /* false for different first rows: the earlier is preferred, but its time ends sooner */
        return pool_[a].start == pool_[b].start || (skip == PAST_LAST && within < 0);
    }

    void keep(int32_t p) {
        if (skip != ALL) {
            const int size = static_cast<int>(fresh_.size());
            for (int i = size - 1; i >= 0 && i >= size - LOOK_BACK && comparable(fresh_[i], p); i--)
                if (covers(fresh_[i], p)) return drop(p);
        }
        fresh_.push_back(p);
    }

    /* Offers the current row to all partial matches of a key. Returns true if it completed a match after which
       matching starts anew. */
    bool walk(int32_t slot, uint64_t mask, int64_t time) {
        fresh_.clear();
        int64_t ended = -1; /* the first row that has a complete match and starts no other (TO_NEXT) */
        int32_t next;
        for (int32_t p = keys[slot].head; p >= 0; p = next) {
            next = pool_[p].next;
            if (pool_[p].start == ended) {
                drop(p);
                continue;
            }
            if (!(mask & interest(pool_[p]))) {
                keep(p);
                continue;
            }
            const int i = pool_[p].step, n = static_cast<int>(steps.size());
            bool loop = pool_[p].loop;
            uint64_t targets = pool_[p].targets;
            for (uint64_t left = targets; left; left &= left - 1) {
                const int j = __builtin_ctzll(left);
                if (forbidden(i + 1, j == END ? n : j, mask, p)) targets &= ~(1ull << j);
            }
            if (loop && pool_[p].count >= steps[i].least && forbidden(i + 1, i + 1, mask, p)) loop = false;
            const bool looping = loop && holds(steps[i].test, mask, p, true);
            bool stop = false;
            if (looping) stop = advance(slot, p, i, true, time);
            if (looping && steps[i].greedy) {
                loop = false;
                targets = 0;
            } else {
                loop = loop && (steps[i].between == ANY || (steps[i].between == RELAXED && !looping));
                for (uint64_t left = targets & ~(1ull << END); left && !stop; left &= left - 1) {
                    const int j = __builtin_ctzll(left);
                    const bool fits = holds(steps[j].test, mask, p, false);
                    if (fits) stop = advance(slot, p, j, false, time);
                    if (steps[j].before == STRICT || (steps[j].before == RELAXED && fits)) targets &= ~(1ull << j);
                }
            }
            if (stop) {
                const int64_t start = pool_[p].start;
                if (skip == PAST_LAST) {
                    for (int32_t each : fresh_) drop(each);
                    while (p >= 0) {
                        next = pool_[p].next;
                        drop(p);
                        p = next;
                    }
                    empty(slot);
                    return true;
                }
                while (!fresh_.empty() && pool_[fresh_.back()].start == start) {
                    drop(fresh_.back());
                    fresh_.pop_back();
                }
                ended = start;
                drop(p);
                continue;
            }
            if (!loop && !targets) {
                drop(p);
                continue;
            }
            pool_[p].loop = loop;
            pool_[p].targets = targets;
            keep(p);
        }
        relink(slot);
        return false;
    }

    /* Lets partial match `p` take the current row. Returns true if that ends all partial matches with the same first
       row. */
    bool advance(int32_t slot, int32_t p, int j, bool looping, int64_t time) {
        bool complete;
        const int32_t made = child(slot, p, j, looping, time, &complete);
        if (complete) {
            emit(slot, made, time);
            if (skip != ALL) {
                drop(made);
                return true;
            }
        }
        if (pool_[made].loop || pool_[made].targets) keep(made);
        else drop(made);
        return false;
    }

    /* Starts matches with the current row. */
    void begin(int32_t slot, uint64_t mask, int64_t time) {
        fresh_.clear();
        for (uint64_t left = reach_[0]; left; left &= left - 1) {
            const int j = __builtin_ctzll(left);
            if (!holds(steps[j].test, mask, -1, false)) continue;
            if (!advance(slot, -1, j, false, time)) continue;
            for (int32_t each : fresh_) drop(each);
            fresh_.clear();
            if (skip == PAST_LAST) clear(slot);
            break;
        }
        for (int32_t p : fresh_) {
            const int32_t tail = keys[slot].tail;
            if (skip != ALL && tail >= 0 && comparable(tail, p) && covers(tail, p)) drop(p);
            else attach(slot, p);
        }
    }

    /* -- the list of a key -------------------------------------------------------------------------------------------------- */

    void attach(int32_t slot, int32_t p) {
        KeyOf& key = keys[slot];
        pool_[p].next = -1;
        if (key.tail >= 0) pool_[key.tail].next = p;
        else key.head = p;
        key.tail = p;
        key.size++;
        key.interest |= interest(pool_[p]);
        if (key.head == p) await(slot);
    }

    void relink(int32_t slot) {
        KeyOf& key = keys[slot];
        if (fresh_.empty()) return empty(slot);
        key.interest = 0;
        for (size_t i = 0; i < fresh_.size(); i++) {
            Partial& p = pool_[fresh_[i]];
            p.next = i + 1 < fresh_.size() ? fresh_[i + 1] : -1;
            key.interest |= interest(p);
        }
        key.head = fresh_.front();
        key.tail = fresh_.back();
        key.size = static_cast<int32_t>(fresh_.size());
        await(slot);
    }

    void empty(int32_t slot) {
        KeyOf& key = keys[slot];
        key.head = key.tail = -1;
        key.size = 0;
        key.interest = 0;
        key.deadline = INT64_MAX;
    }

    void clear(int32_t slot) {
        for (int32_t p = keys[slot].head, next; p >= 0; p = next) {
            next = pool_[p].next;
            drop(p);
        }
        empty(slot);
    }

    void pop_front(int32_t slot) {
        KeyOf& key = keys[slot];
        const int32_t p = key.head;
        key.head = pool_[p].next;
        key.size--;
        drop(p);
        if (key.head < 0) empty(slot);
    }

    /* Updates the deadline of the key. Call it when another partial match has become its first. */
    void await(int32_t slot) {
        KeyOf& key = keys[slot];
        if (within < 0) return;
        key.deadline = deadline_of(pool_[key.head]);
        if (key.queued && key.queued_at <= key.deadline) return; /* the key is checked again then */
        key.queued = true;
        key.queued_at = key.deadline;
        queue_.emplace_back(key.deadline, slot);
        std::push_heap(queue_.begin(), queue_.end(), Later());
    }

    /* Drops the key's partial matches whose time is over at `now`. Those that only had to wait become matches. */
    void expire_front(int32_t slot, int64_t now) {
        KeyOf& key = keys[slot];
        while (key.head >= 0) {
            const Partial first = pool_[key.head];
            const int64_t deadline = deadline_of(first);
            if (deadline >= now) break;
            const bool complete = first.targets >> END & 1;
            if (complete) emit(slot, key.head, deadline);
            pop_front(slot);
            if (!complete || skip == ALL) continue;
            while (key.head >= 0 && (skip == PAST_LAST ? pool_[key.head].start <= first.last : pool_[key.head].start == first.start))
                pop_front(slot);
        }
        if (key.head >= 0) await(slot);
    }
};

}  // namespace sabot
