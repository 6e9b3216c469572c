/* The partial matches of a pattern, and their extension by rows. See pattern.pyi for the definition of a match.

        key ──▶ partial ──next──▶ partial ──▶ …           in the order of preference, hence also ordered by their first row
                   │ node            │ node
                   ▼                 ▼
         row c ──▶ row b ──prev──▶ row a                  nodes: the rows taken, newest first; shared and reference counted;
                                                          if a step does not keep each row, one node stands for several

   A partial match may take two kinds of rows next: another row of its `step` (`loop`), or a first row of a step in
   `targets`, by the edges of its step. A row that it takes makes a new partial match in its place. The old one stays
   behind the new one, with the steps that it may still take if it skips the row, or is dropped if there are none.
   `interest` has the bits of the tests that can affect a partial match: a row that passes none of them costs only a look
   at its key.

   Of overlapping matches the one that is complete first counts, or the one that began first (`begun`). In the second case
   a complete match stays in the list while a partial match before it may still become the one that counts (`DONE`).

   Nothing here needs the GIL. Functions that add partial matches or nodes may throw std::bad_alloc (`except +`); those that
   only read are noexcept. */
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "arrow/column.h"
#include "rows/pattern_program.h"

namespace sabot {

enum : int { STRICT = 0, RELAXED = 1, ANY = 2 };           /* which rows may be skipped before a row that is taken */
enum : int { PAST_LAST = 0, TO_NEXT = 1, ALL = 2, TO_SLOT = 3 }; /* where matching goes on after a match */
/* the rows of a step that are kept: none (only their number), the first and the last, all */
enum : int { COUNT = 0, ENDS = 1, EACH = 2 };
constexpr int END = 63;  /* the bit of `targets` for the time after the last step in which no forbidden row may come */
constexpr int DONE = 62; /* the bit of `targets` of a complete match; the other bits have the ms from its first to its last row */
constexpr int ACCEPT = -2; /* the target of an edge at which the pattern is complete */
constexpr uint64_t EVERY = 1ull << 63;                     /* the bit of a test that all rows pass */
constexpr int LOOK_BACK = 16;                              /* the number of earlier partial matches that a new one is compared with */

struct Test {
    uint64_t bits;
    std::vector<Program> conditions;
};

struct StepPlan {
    int32_t least, most; /* numbers of rows; `most` 0 for any number */
    int between;         /* which rows may be skipped between its rows */
    bool greedy, reluctant;
    int keep;
    int variable;        /* the number of its name; several steps may have one name */
    Test test;
    std::vector<Test> after; /* tests of rows that end the step once it has `least` rows */
    uint64_t after_bits;
};

/* A step that may follow another one, or END, or ACCEPT. Those of a step are in the order of preference. */
struct Edge {
    int to;
    int before;            /* which rows may be skipped before the first row of step `to` */
    std::vector<Test> gap; /* tests of rows that may not come between the two steps */
    uint64_t gap_bits;
};

enum : int { FIRST_VALUE, LAST_VALUE, SUM, NUMBER, LEAST, GREATEST, LATER, EARLIER };

/* A value that a partial match remembers of its rows of a variable (-1: of all its rows): of the first or the last row,
   the sum, the number of values that are not null, the least, the greatest. LATER: of the row after the first `rows` rows,
   whose number is in slot `other`. EARLIER: what slot `other` had before the last row of the variable. */
struct SlotPlan {
    int variable, what, kind;
    int source; /* the column of operands; -1 for the serial number of the row, and for NUMBER the number of rows */
    int other;
    int64_t rows;
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
    uint64_t seen; /* the bits of the variables of the rows up to this one */
};

struct KeyOf {
    uint64_t interest = 0; /* the union of its partial matches' interest, or a superset */
    int64_t deadline = INT64_MAX; /* the deadline of the first partial match */
    int64_t queued_at = 0; /* the deadline under which the key is in the queue */
    int32_t head = -1, tail = -1, size = 0;
    int32_t nodes = 0;
    int32_t done = 0; /* the number of complete matches in the list */
    bool queued = false, listed = false;
};

struct Found { /* found matches; the rows of match i are those from offsets[i] to offsets[i + 1] */
    std::vector<int32_t> slots, steps;
    std::vector<int64_t> first, last, known, offsets, rows, weights; /* known: the time at which it was sure to count */
    void clear() {
        slots.clear(), steps.clear(), first.clear(), last.clear(), known.clear(), offsets.clear(), rows.clear(), weights.clear();
        offsets.push_back(0);
    }
};

class Matcher {
public:
    std::vector<StepPlan> steps;
    std::vector<std::vector<Edge>> edges; /* from 0: to the steps that can be first; from i + 1: to those after step i */
    std::vector<SlotPlan> slots;
    std::vector<int> operand_kinds;
    std::vector<View> operands; /* the operands of the batch */
    int64_t within = -1;
    int skip = PAST_LAST;
    int skip_slot = -1; /* TO_SLOT: the slot with the serial number of the row at which the next match may begin */
    bool begun = false;
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
        const size_t n = steps.size();
        reach_.assign(n + 1, 0);
        preferred_.assign(n + 1, 0);
        final_.assign(n + 1, false);
        const auto fresh_in = [this](const Test& test) {
            for (const Program& program : test.conditions)
                for (const Instruction& each : program)
                    if (each.op == FRESH) fresh_bits_ |= 1ull << each.index;
        };
        for (size_t from = 0; from <= n; from++) {
            for (Edge& edge : edges[from]) {
                if (edge.to == ACCEPT) {
                    final_[from] = true;
                    continue;
                }
                reach_[from] |= 1ull << edge.to;
                if (!final_[from]) preferred_[from] |= 1ull << edge.to;
                edge.gap_bits = union_of(edge.gap);
                watched |= edge.gap_bits;
                for (const Test& test : edge.gap) fresh_in(test);
                if (edge.to == END) continue;
                if (from == 0) start_bits |= steps[edge.to].test.bits;
                else if (edge.before == STRICT) watched |= EVERY;
            }
        }
        for (StepPlan& step : steps) {
            step.after_bits = union_of(step.after);
            watched |= step.test.bits | step.after_bits;
            if (step.most != 1 && step.between == STRICT) watched |= EVERY;
            fresh_in(step.test);
            for (const Test& test : step.after) fresh_in(test);
        }
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
        floor_ = 0;
        if (key.deadline < time) expire_front(slot, time);
        if (mask & key.interest) walk(slot, mask, time);
        if (floor_ <= serial && (mask & start_bits)) begin(slot, mask, time);
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

    /* Drops all partial matches, since no row comes any more, and emits the complete ones that waited for them. `known`: the
       time. Returns false if `found` became full before the end. */
    bool flush(int64_t known) {
        for (; flushed_ < keys.size(); flushed_++) {
            if (full()) return false;
            const int32_t slot = static_cast<int32_t>(flushed_);
            if (keys[slot].size == 0) continue;
            while (keys[slot].size > 0)
                if (!settle(slot, known)) pop_front(slot);
            note(slot);
        }
        flushed_ = 0;
        return true;
    }
    /* Appends the keys that have partial matches. */
    void occupied(std::vector<int32_t>& out) const {
        for (size_t i = 0; i < keys.size(); i++)
            if (keys[i].size > 0) out.push_back(static_cast<int32_t>(i));
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
        const bool fits = is_done(given)
            ? begun && final_[given.step + 1] && !given.loop && given.first_time <= INT64_MAX - length_of(given)
            : !(given.targets & ~reach_[given.step + 1]);
        return fits && given.count >= 1 && given.count <= std::max(step.least, step.most)
            && 0 <= given.start && given.start <= given.last && given.last < FAR_SERIAL;
    }
    int32_t load_partial(int32_t slot, const Partial& given) {
        const int32_t p = new_partial();
        pool_[p] = given;
        pool_[p].valid = 0;
        hold(given.node);
        if (given.start >= serial) serial = given.start + 1;
        if (given.last >= serial) serial = given.last + 1;
        if (is_done(given)) keys[slot].done++;
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

    /* by `from` as in `edges`: the bits of its steps, of those that are preferred to ACCEPT, and whether it has ACCEPT */
    std::vector<uint64_t> reach_, preferred_;
    std::vector<bool> final_;
    uint64_t fresh_bits_ = 0; /* the variables that FRESH asks for */
    int64_t floor_ = 0;       /* no match may begin before the row with this serial number */
    size_t flushed_ = 0;
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

    static uint64_t union_of(const std::vector<Test>& tests) {
        uint64_t bits = 0;
        for (const Test& test : tests) bits |= test.bits;
        return bits;
    }

    static bool is_done(const Partial& p) { return (p.targets >> DONE & 3) == 1; }
    static int64_t length_of(const Partial& done) { return static_cast<int64_t>(done.targets & ((1ull << DONE) - 1)); }
    static int64_t end_of(const Partial& done) { return done.first_time + length_of(done); }

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
        if (is_done(partial)) keys[node_pool_[partial.node].slot].done--;
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
        const uint64_t seen = (prev >= 0 ? node_pool_[prev].seen : 0) | 1ull << steps[step].variable;
        node_pool_[made] = {row, prev, 1, depth + 1, total + weight, weight, slot, step, seen};
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

    bool seen(int32_t p, int variable) const { /* -1: any variable */
        return p >= 0 && (variable < 0 || node_pool_[pool_[p].node].seen >> variable & 1);
    }

    /* Stores the values of the current row in the slots of partial match `made`, a copy of `before` (-1: there is none)
       that has taken the row for a step. Goes down, since a slot is read by those behind it. */
    void capture(int32_t made, int32_t before, int step) {
        for (int i = static_cast<int>(slots.size()) - 1; i >= 0; i--) {
            const SlotPlan& slot = slots[i];
            if (slot.variable >= 0 && slot.variable != steps[step].variable) continue;
            uint64_t* values = &values_[made * slots.size()];
            const bool has = pool_[made].valid >> i & 1;
            switch (slot.what) {
                case FIRST_VALUE:
                    if (!seen(before, slot.variable)) put_row(made, i);
                    break;
                case LAST_VALUE:
                    put_row(made, i);
                    break;
                case LATER:
                    if ((pool_[made].valid >> slot.other & 1 ? static_cast<int64_t>(values[slot.other]) : 0) == slot.rows) put_row(made, i);
                    break;
                case EARLIER:
                    forget(made, i);
                    if (!(pool_[made].valid >> slot.other & 1)) break;
                    values[i] = values[slot.other];
                    pool_[made].valid |= 1ull << i;
                    if (slot.kind == BYTES) text_refs_[values[i]]++;
                    break;
                default: {
                    if (slot.source >= 0 && !operands[slot.source].valid(index_)) break;
                    if (!has) {
                        if (slot.what == NUMBER) values[i] = 1, pool_[made].valid |= 1ull << i;
                        else put_row(made, i);
                        break;
                    }
                    const Value now = slot.what == NUMBER ? Value{1, nullptr, 0, true} : operand(slot.source, slot.kind);
                    if (slot.what == SUM && slot.kind == FLOAT) values[i] = bits_of(double_of(values[i]) + double_of(now.raw));
                    else if (slot.what == SUM || slot.what == NUMBER) values[i] += now.raw;
                    else {
                        const int order = compared(now, remembered(made, i, slot.kind), slot.kind);
                        if (slot.what == LEAST ? order < 0 : order > 0) put_row(made, i);
                    }
                }
            }
        }
    }

    void forget(int32_t p, int i) {
        const uint64_t bit = 1ull << i;
        if (slots[i].kind == BYTES && (pool_[p].valid & bit)) release_text(values_[p * slots.size() + i]);
        pool_[p].valid &= ~bit;
    }

    /* Stores the current row's value in slot i. */
    void put_row(int32_t p, int i) {
        const SlotPlan& slot = slots[i];
        forget(p, i);
        if (slot.source < 0) {
            values_[p * slots.size() + i] = static_cast<uint64_t>(serial);
            pool_[p].valid |= 1ull << i;
            return;
        }
        const View& view = operands[slot.source];
        if (!view.valid(index_)) return;
        pool_[p].valid |= 1ull << i;
        if (slot.kind != BYTES) {
            values_[p * slots.size() + i] = static_cast<const uint64_t*>(view.values)[view.start + index_];
            return;
        }
        int32_t& text = row_text_[slot.source];
        if (text < 0) {
            int64_t size;
            const uint8_t* data = view.bytes_at(index_, &size);
            text = static_cast<int32_t>(new_text(data, size));
        }
        text_refs_[text]++;
        values_[p * slots.size() + i] = static_cast<uint64_t>(text);
    }

    /* -- tests ------------------------------------------------------------------------------------------------------------ */

    Value operand(int index, int kind) const {
        const View& view = operands[index];
        Value value = {0, nullptr, 0, view.valid(index_)};
        if (!value.valid) return value;
        if (kind == BYTES) value.data = view.bytes_at(index_, &value.size);
        else value.raw = static_cast<const uint64_t*>(view.values)[view.start + index_];
        return value;
    }

    Value remembered(int32_t p, int slot, int kind) const {
        Value value = {0, nullptr, 0, p >= 0 && (pool_[p].valid >> slot & 1)};
        if (!value.valid) return value;
        value.raw = values_[p * slots.size() + slot];
        if (kind == BYTES) {
            const std::string& text = texts_[value.raw];
            value.data = reinterpret_cast<const uint8_t*>(text.data());
            value.size = static_cast<int64_t>(text.size());
        }
        return value;
    }

    bool holds(const Test& test, uint64_t mask, int32_t p) const {
        if (!(mask & test.bits)) return false;
        for (const Program& each : test.conditions) {
            const Value value = run(each, [this, p](const Instruction& given) -> Value {
                if (given.op == OPERAND) return operand(given.index, given.kind);
                if (given.op == SLOT) return remembered(p, given.index, given.kind);
                return {!seen(p, given.index), nullptr, 0, true};
            });
            if (!value.valid || !value.raw) return false;
        }
        return true;
    }

    bool any_holds(const std::vector<Test>& tests, uint64_t bits, uint64_t mask, int32_t p) const {
        if (!(mask & bits)) return false;
        for (const Test& test : tests)
            if (holds(test, mask, p)) return true;
        return false;
    }

    uint64_t interest(const Partial& p) const {
        if (is_done(p)) return 0;
        const StepPlan& plan = steps[p.step];
        uint64_t bits = 0;
        if (p.loop) {
            bits |= plan.test.bits;
            if (plan.between == STRICT) bits |= EVERY;
            if (p.count >= plan.least) bits |= plan.after_bits;
        }
        for (const Edge& edge : edges[p.step + 1]) {
            if (edge.to == ACCEPT || !(p.targets >> edge.to & 1)) continue;
            bits |= edge.gap_bits;
            if (edge.to == END) continue;
            bits |= steps[edge.to].test.bits;
            if (edge.before == STRICT) bits |= EVERY;
        }
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
        const int32_t made = p >= 0 ? copy_of(p) : new_partial();
        Partial& now = pool_[made];
        const int32_t count = looping ? now.count + 1 : 1;
        if (p < 0) {
            now.start = serial;
            now.first_time = time;
            now.valid = 0;
            now.next = -1;
        }
        now.last = serial;
        now.node = grown(p >= 0 ? pool_[p].node : -1, j, looping, slot);
        now.step = static_cast<int16_t>(j);
        const bool enough = count >= plan.least;
        *complete = enough && final_[j + 1];
        const bool ends = *complete && begun; /* what is less preferred than to end cannot count any more */
        now.loop = (plan.most == 0 || count < plan.most) && !(ends && plan.reluctant);
        now.count = plan.most == 0 && enough ? plan.least : count;
        now.targets = !enough ? 0 : ends ? preferred_[j + 1] : reach_[j + 1];
        if (!slots.empty()) capture(made, p, j);
        return made;
    }

    /* Returns a partial match with the values of another one, of which the caller sets the rest. */
    int32_t copy_of(int32_t p) {
        const int32_t made = new_partial();
        pool_[made] = pool_[p];
        pool_[made].next = -1;
        pool_[made].targets = 0;
        const size_t width = slots.size();
        for (size_t i = 0; i < width; i++) {
            const uint64_t value = values_[p * width + i];
            values_[made * width + i] = value;
            if (slots[i].kind == BYTES && (pool_[p].valid >> i & 1)) text_refs_[value]++;
        }
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

    void emit(int32_t slot, int32_t p, int64_t end, int64_t known) {
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
        found.known.push_back(known);
        found.offsets.push_back(static_cast<int64_t>(base + depth));
    }

    /* Returns true if partial match `a` makes `b` superfluous: `a` can become all that `b` can, and `a` is preferred. */
    bool covers(int32_t a, int32_t b) const {
        const Partial &x = pool_[a], &y = pool_[b];
        if (x.step != y.step || x.count != y.count || x.valid != y.valid || (y.targets & ~x.targets)) return false;
        if (x.loop != y.loop && (y.loop || steps[x.step].greedy)) return false; /* a greedy `a` must take rows that `b` may skip */
        if ((node_pool_[x.node].seen ^ node_pool_[y.node].seen) & fresh_bits_) return false;
        for (size_t i = 0; i < slots.size(); i++) {
            if (!(x.valid >> i & 1)) continue;
            const uint64_t left = value(a, static_cast<int>(i)), right = value(b, static_cast<int>(i));
            if (left != right && (slots[i].kind != BYTES || texts_[left] != texts_[right])) return false;
        }
        return true;
    }
    /* Returns false for a complete match, and in most cases for different first rows: the earlier is preferred, but its
       time ends sooner, and a complete match before it may let the next one begin between the two. */
    bool comparable(int32_t a, int32_t b) const {
        if (is_done(pool_[a]) || is_done(pool_[b])) return false;
        if (pool_[a].start == pool_[b].start) return true;
        return skip == PAST_LAST && within < 0 && !(begun && keys[node_pool_[pool_[b].node].slot].done > 0);
    }

    /* Returns the serial number of the first row with which a match may begin after this one. */
    int64_t resume_of(int32_t p) const {
        const Partial& match = pool_[p];
        if (skip == PAST_LAST) return match.last + 1;
        const Value row = skip == TO_SLOT ? remembered(p, skip_slot, SIGNED) : Value{0, nullptr, 0, false};
        return std::max(match.start + 1, row.valid ? static_cast<int64_t>(row.raw) : 0);
    }

    void keep(int32_t p) {
        if (skip != ALL) {
            const int size = static_cast<int>(fresh_.size());
            for (int i = size - 1; i >= 0 && i >= size - LOOK_BACK && comparable(fresh_[i], p); i--)
                if (covers(fresh_[i], p)) return drop(p);
        }
        fresh_.push_back(p);
    }

    /* Offers the current row to all partial matches of a key. */
    void walk(int32_t slot, uint64_t mask, int64_t time) {
        fresh_.clear();
        int64_t ended = -1; /* the first row whose match is complete: partial matches behind it are less preferred */
        int32_t next;
        for (int32_t p = keys[slot].head; p >= 0; p = next) {
            next = pool_[p].next;
            if (pool_[p].start == ended || pool_[p].start < floor_) {
                drop(p);
                continue;
            }
            if (is_done(pool_[p])) {
                ended = pool_[p].start;
                fresh_.push_back(p);
                continue;
            }
            if (!(mask & interest(pool_[p]))) {
                keep(p);
                continue;
            }
            const int i = pool_[p].step;
            bool loop = pool_[p].loop;
            uint64_t targets = pool_[p].targets;
            for (const Edge& edge : edges[i + 1])
                if (edge.to != ACCEPT && (targets >> edge.to & 1) && any_holds(edge.gap, edge.gap_bits, mask, p))
                    targets &= ~(1ull << edge.to);
            if (loop && pool_[p].count >= steps[i].least && any_holds(steps[i].after, steps[i].after_bits, mask, p)) loop = false;
            const bool looping = loop && holds(steps[i].test, mask, p);
            bool stop = false;
            if (looping && !steps[i].reluctant) stop = advance(slot, p, i, true, time);
            if (looping && steps[i].greedy) {
                loop = false;
                targets = 0;
            } else {
                loop = loop && (steps[i].between == ANY || (steps[i].between == RELAXED && !looping));
                for (const Edge& edge : edges[i + 1]) {
                    if (stop) break;
                    const int j = edge.to;
                    if (j == ACCEPT || j == END || !(targets >> j & 1)) continue;
                    const bool fits = holds(steps[j].test, mask, p);
                    if (fits) stop = advance(slot, p, j, false, time);
                    if (edge.before == STRICT || (edge.before == RELAXED && fits)) targets &= ~(1ull << j);
                }
                if (looping && steps[i].reluctant && !stop) stop = advance(slot, p, i, true, time);
            }
            if (stop) {
                ended = pool_[p].start;
                while (!begun && !fresh_.empty() && (skip != TO_NEXT || pool_[fresh_.back()].start == ended)) {
                    drop(fresh_.back());
                    fresh_.pop_back();
                }
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
        settle(slot, time);
    }

    /* Lets partial match `p` take the current row. Returns true if that completes a match, so that what is less preferred
       with the same first row cannot count any more. */
    bool advance(int32_t slot, int32_t p, int j, bool looping, int64_t time) {
        bool complete;
        int32_t made = child(slot, p, j, looping, time, &complete);
        const bool goes_on = pool_[made].loop || pool_[made].targets;
        if (complete && begun) {
            if (goes_on) {
                const int32_t longer = made;
                made = copy_of(longer);
                hold(pool_[made].node);
                keep(longer);
            }
            pool_[made].loop = false;
            pool_[made].targets = 1ull << DONE | static_cast<uint64_t>(time - pool_[made].first_time);
            keys[slot].done++;
            fresh_.push_back(made);
            return true;
        }
        if (complete) {
            emit(slot, made, time, time);
            if (skip != ALL) {
                floor_ = resume_of(made);
                drop(made);
                return true;
            }
        }
        if (goes_on) keep(made);
        else drop(made);
        return false;
    }

    /* Starts matches with the current row. */
    void begin(int32_t slot, uint64_t mask, int64_t time) {
        fresh_.clear();
        for (const Edge& edge : edges[0]) {
            if (!holds(steps[edge.to].test, mask, -1) || any_holds(edge.gap, edge.gap_bits, mask, -1)) continue;
            if (!advance(slot, -1, edge.to, false, time)) continue;
            if (begun) break;
            for (int32_t each : fresh_) drop(each);
            fresh_.clear();
            if (skip != TO_NEXT) clear(slot);
            break;
        }
        for (int32_t p : fresh_) {
            const int32_t tail = keys[slot].tail;
            if (skip != ALL && tail >= 0 && comparable(tail, p) && covers(tail, p)) drop(p);
            else attach(slot, p);
        }
        settle(slot, time);
    }

    /* Emits the complete matches at the front of the list, and drops what they rule out. Returns true if there were some.
       `known`: the time at which the last partial match before them has gone. */
    bool settle(int32_t slot, int64_t known) {
        KeyOf& key = keys[slot];
        if (key.done == 0 || !is_done(pool_[key.head])) return false;
        while (key.head >= 0 && is_done(pool_[key.head])) {
            const int64_t end = end_of(pool_[key.head]);
            emit(slot, key.head, end, std::max(end, known));
            floor_ = resume_of(key.head);
            while (key.head >= 0 && pool_[key.head].start < floor_) pop_front(slot);
        }
        if (key.head >= 0) await(slot);
        return true;
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
            const int64_t resume = complete && skip != ALL ? resume_of(key.head) : 0;
            if (complete) emit(slot, key.head, deadline, deadline);
            pop_front(slot);
            while (key.head >= 0 && pool_[key.head].start < resume) pop_front(slot);
            settle(slot, deadline);
        }
        if (key.head >= 0) await(slot);
    }
};

}  // namespace sabot
