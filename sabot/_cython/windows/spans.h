/* Spans of event time by key: sessions, and runs of rows. One table of spans (`Spans`) and two rules (`Sessions`, `Runs`).

        latest[slot] ──▶ session ──left──▶ session ──left──▶ …        sessions: one chain per key, by time; `right` leads back
        latest[slot] ──▶ run                                          runs: the one that the key's next row may belong to
        wheel (wheel.h): the time at which a span has to be checked next

   A chain is walked from its latest session; if that takes long, the key gets a search tree over the same sessions
   (`trees`). The wheel is lazy: rows that extend a span do not change its entry. The time of an entry is at most the time
   at which its span is due. An entry whose span is not due yet is inserted again; a stale entry (its span has another
   `due`) is dropped. So a span costs one insertion for each wait, and an advance costs the entries that it finds and the
   rest of the bucket in which it ends. (A binary heap instead took a third of all time, at 50,000 open sessions.)

   Nothing here needs the GIL. Functions that allocate may throw std::bad_alloc, and std::overflow_error for the 2^31st span
   (`except +`); functions marked noexcept throw nothing. Callers have to check that slots and ids are within the table. */
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "arrow/column.h"
#include "windows/wheel.h"

namespace sabot {

using Ids = std::vector<int32_t>;

/* Times. The difference of two int64 may overflow, so differences are compared as uint64, which is exact if later >=
   earlier. */

/* Returns true if later >= earlier + ms, for ms > 0. */
static inline bool apart(int64_t earlier, int64_t later, int64_t ms) noexcept {
    return later >= earlier && static_cast<uint64_t>(later) - static_cast<uint64_t>(earlier) >= static_cast<uint64_t>(ms);
}

/* Returns time + ms, but at most INT64_MAX, for ms >= 0. */
static inline int64_t plus(int64_t time, int64_t ms) noexcept { return time > INT64_MAX - ms ? INT64_MAX : time + ms; }

/* The rows of one call: row i of `count` has slot slots[i], and its time is at row(i). */
struct SpanRows {
    const int32_t* slots = nullptr;
    const int64_t* times = nullptr;  /* null if the rows have no times */
    const int32_t* chosen = nullptr; /* null for all rows */
    int64_t count = 0;
    int32_t greatest = -1; /* the greatest slot */

    int64_t row(int64_t i) const noexcept { return chosen ? chosen[i] : i; }
};

struct Span {
    int64_t first; /* the least time of its rows, ms; for a run with a limited span, the time of the row that began it */
    int64_t last;  /* the greatest time of its rows, ms */
    int64_t due;   /* the time of its current entry in the wheel, or OVER if it has none */
    int32_t slot;  /* the slot of its key, or NONE for a free id */
};

/* The methods of a table of spans that do not depend on its rule. */
class SpanTable {
   public:
    static constexpr int32_t NONE = -1;         /* no span */
    static constexpr int32_t GIVEN_BACK = -2;   /* for a slot: no span, and `remove` or `vacant` has reported the slot */
    static constexpr int64_t OVER = INT64_MIN;

    virtual ~SpanTable() = default;
    virtual int64_t size() const noexcept = 0;
    virtual int64_t nbytes() const noexcept = 0;
    /* Adds rows. out[i]: the span of row i, or NONE. The rule defines a, b and c. */
    virtual void add(const SpanRows& rows, int32_t* out, Ids& a, Ids& b, Ids& c) = 0;
    virtual void advance(int64_t watermark_ms, Ids& ripe, Ids& over) = 0;
    /* Returns the position of the first entry of `ids` that is not a span, or -1 if all are. */
    virtual int64_t unknown(const int32_t* ids, int64_t count) const noexcept = 0;
    virtual void bounds(const int32_t* ids, int64_t count, int64_t* first, int64_t* last) const noexcept = 0;
    virtual void slots(const int32_t* ids, int64_t count, int32_t* out) const noexcept = 0;
    /* Removes spans; an id may be named twice. OUT vacant: slots that have no span any more. */
    virtual void remove(const int32_t* ids, int64_t count, Ids& vacant) = 0;
    /* Finds the spans of these slots, slot by slot, each key's latest first. OUT which: the position in `slots` of
       each. */
    virtual void of_slots(const int32_t* slots, int64_t count, Ids& ids, Ids& which) const = 0;
    /* Fills `ids` with all spans. */
    virtual void all(Ids& ids) const = 0;
    /* Writes these spans to columns. `rest`: the column that only this rule has. */
    virtual void write(const int32_t* ids, int64_t count, int32_t* slots, int64_t* first, int64_t* last, void* rest) const noexcept = 0;
    /* Loads spans that `write` wrote. OUT out: their new ids. */
    virtual void load(const SpanRows& rows, const int64_t* first, const int64_t* last, const View& rest, int32_t* out) = 0;
};

/* The rule is the class that derives from this one. It must have
       unlink(id): removes the span from the chain of its key
       before(id): returns the span of the same key before it in time, or NONE
       waits(id): returns true if the span still needs its entry in the wheel
       look_at(id, watermark, ripe, over): called when the time of its entry has come. */
template <class Rule, class S>
class Spans : public SpanTable {
   public:
    int64_t size() const noexcept override { return spans.size() - unused.size(); }
    int64_t nbytes() const noexcept override {
        return spans.capacity() * sizeof(S) + (unused.capacity() + latest.capacity()) * 4 + wheel.entries * sizeof(Wheel::Entry)
               + Wheel::EMPTY_BYTES;
    }
    void advance(int64_t watermark_ms, Ids& ripe, Ids& over) override {
        std::vector<Wheel::Entry> bucket, early;
        wheel.advance(watermark_ms);
        while (wheel.take(bucket)) {
            for (const auto& [due, id] : bucket) {
                if (spans[id].slot == NONE || spans[id].due != due || !rule().waits(id)) continue;
                if (due > watermark_ms) early.emplace_back(due, id);
                else rule().look_at(id, watermark_ms, ripe, over);
            }
            for (const auto& [due, id] : early) wheel.put(due, id);
            early.clear();
        }
    }
    int64_t unknown(const int32_t* ids, int64_t count) const noexcept override {
        for (int64_t i = 0; i < count; i++)
            if (ids[i] < 0 || ids[i] >= static_cast<int64_t>(spans.size()) || spans[ids[i]].slot == NONE) return i;
        return -1;
    }
    void slots(const int32_t* ids, int64_t count, int32_t* out) const noexcept override {
        for (int64_t i = 0; i < count; i++) out[i] = spans[ids[i]].slot;
    }
    void of_slots(const int32_t* slots, int64_t count, Ids& ids, Ids& which) const override {
        ids.reserve(count);
        which.reserve(count);
        for (int64_t i = 0; i < count; i++) {
            if (slots[i] < 0 || slots[i] >= static_cast<int64_t>(latest.size())) continue;
            for (int32_t id = latest[slots[i]]; id >= 0; id = rule_of().before(id)) {
                ids.push_back(id);
                which.push_back(static_cast<int32_t>(i));
            }
        }
    }
    void all(Ids& ids) const override {
        ids.reserve(size());
        for (size_t id = 0; id < spans.size(); id++)
            if (spans[id].slot != NONE) ids.push_back(static_cast<int32_t>(id));
    }
    void remove(const int32_t* ids, int64_t count, Ids& vacant) override {
        for (int64_t i = 0; i < count; i++) {
            const int32_t id = ids[i], slot = spans[id].slot;
            if (slot == NONE) continue; /* the id is named twice */
            rule().unlink(id);
            spans[id].slot = NONE;
            unused.push_back(id);
            if (latest[slot] == NONE) {
                latest[slot] = GIVEN_BACK;
                vacant.push_back(slot);
            }
        }
        if (is_cluttered()) sweep();
    }

   protected:
    std::vector<S> spans;
    Ids unused; /* free ids */
    Ids latest; /* the latest span of each slot */
    Wheel wheel;

    void reach(int32_t slot) {
        if (static_cast<int64_t>(latest.size()) <= slot) latest.resize(slot + 1, NONE);
    }
    /* Returns an id for a new span, which the caller has to fill. */
    int32_t take_id(const char* name) {
        if (!unused.empty()) {
            const int32_t id = unused.back();
            unused.pop_back();
            return id;
        }
        if (spans.size() >= 0x7FFFFFFF)
            throw std::overflow_error(std::string("more than 2^31 - 1 ") + name + " in one subtask: use more parallelism");
        spans.emplace_back();
        return static_cast<int32_t>(spans.size() - 1);
    }
    void schedule(int32_t id, int64_t due) {
        spans[id].due = due;
        wheel.put(due, id);
        if (is_cluttered()) sweep();
    }
    void put_bounds(int32_t id, int64_t at, int32_t* slots, int64_t* first, int64_t* last) const noexcept {
        slots[at] = spans[id].slot;
        first[at] = spans[id].first;
        last[at] = spans[id].last;
    }

   private:
    static constexpr int64_t SLACK = 1024; /* this many stale entries of the wheel are always tolerated */

    Rule& rule() noexcept { return static_cast<Rule&>(*this); }
    const Rule& rule_of() const noexcept { return static_cast<const Rule&>(*this); }
    bool is_cluttered() const noexcept { return wheel.entries > 2 * size() + SLACK; }
    /* Removes stale entries. Spans that `advance` found to be over have no entry. */
    void sweep() {
        wheel.clear();
        for (size_t id = 0; id < spans.size(); id++)
            if (spans[id].slot != NONE && spans[id].due != OVER) wheel.put(spans[id].due, static_cast<int32_t>(id));
    }
};

struct Session : Span {
    int32_t left;  /* the session of the same key before it in time */
    int32_t right; /* the session after it */
    int32_t into;  /* if it was merged in this call of `add`, the session that it became a part of; else NONE */
    uint8_t given; /* it was returned as ripe, and has not changed since */
    uint8_t fresh; /* it was made in this call of `add` */
};

/* A row belongs to a session if it is less than gap_ms away from one of its rows. `add` returns (created, into,
   source). */
class Sessions final : public Spans<Sessions, Session> {
   public:
    int64_t merges = 0, late = 0;

    Sessions(int64_t gap_ms, int64_t lateness_ms) : gap_ms(gap_ms), lateness_ms(lateness_ms) {
        wheel.waits_for(plus(gap_ms, lateness_ms));
    }
    int64_t nbytes() const noexcept override { return Spans::nbytes() + in_trees * TREE_NODE; }

    void add(const SpanRows& rows, int32_t* out, Ids& created, Ids& into, Ids& source) override {
        made.clear();
        merged_away.clear();
        reach(rows.greatest);
        for (int64_t i = 0; i < rows.count; i++) out[i] = place(rows.slots[i], rows.times[rows.row(i)]);
        if (!merged_away.empty()) {
            for (int64_t i = 0; i < rows.count; i++)
                if (out[i] >= 0) out[i] = survivor(out[i]);
        }
        for (int32_t id : made) {
            spans[id].fresh = false;
            if (spans[id].into == NONE) created.push_back(id);
        }
        for (int32_t id : joined) {
            source.push_back(id);
            into.push_back(survivor(id));
        }
        for (int32_t id : merged_away) { /* not earlier, because `into` of other sessions led through these */
            spans[id].into = NONE;
            unused.push_back(id);
        }
        joined.clear();
    }
    /* Finds sessions at a watermark. OUT ripe: sessions that have ended, and have changed since they were last
       returned; over: sessions whose lateness has passed too. */
    void advance(int64_t watermark, Ids& ripe, Ids& over) override {
        if (watermark > watermark_ms) watermark_ms = watermark;
        Spans::advance(watermark_ms, ripe, over);
    }
    bool waits(int32_t) const noexcept { return true; }
    void look_at(int32_t id, int64_t watermark, Ids& ripe, Ids& over) {
        Session& session = spans[id];
        int64_t due = plus(session.last, gap_ms);
        if (due <= watermark) {
            if (!session.given) {
                session.given = true;
                ripe.push_back(id);
            }
            due = plus(due, lateness_ms);
        }
        if (due <= watermark) {
            session.due = OVER; /* then an entry of an earlier session with this id does not match it */
            over.push_back(id);
        } else {
            schedule(id, due);
        }
    }
    void bounds(const int32_t* ids, int64_t count, int64_t* first, int64_t* end) const noexcept override {
        for (int64_t i = 0; i < count; i++) {
            first[i] = spans[ids[i]].first;
            end[i] = plus(spans[ids[i]].last, gap_ms);
        }
    }
    /* Appends those of the slots without a session that were not reported yet. */
    void vacant(const int32_t* slots, int64_t count, Ids& out) {
        for (int64_t i = 0; i < count; i++) {
            if (slots[i] < static_cast<int64_t>(latest.size()) && latest[slots[i]] == NONE) {
                latest[slots[i]] = GIVEN_BACK;
                out.push_back(slots[i]);
            }
        }
    }
    /* Removes a session from its chain. */
    void unlink(int32_t id) {
        const Session& session = spans[id];
        if (session.left != NONE) spans[session.left].right = session.right;
        if (session.right != NONE) spans[session.right].left = session.left;
        else latest[session.slot] = session.left;
        if (auto tree = tree_of(session.slot)) {
            tree->erase(session.first);
            in_trees--;
            if (tree->size() < TREE_LIMIT) {
                in_trees -= tree->size();
                trees.erase(session.slot);
            }
        }
    }
    int32_t before(int32_t id) const noexcept { return spans[id].left; }
    void write(const int32_t* ids, int64_t count, int32_t* slots, int64_t* first, int64_t* last, void* given) const noexcept override {
        uint8_t* bits = static_cast<uint8_t*>(given);
        std::memset(bits, 0, (count + 7) / 8);
        for (int64_t at = 0; at < count; at++) {
            put_bounds(ids[at], at, slots, first, last);
            if (spans[ids[at]].given) bits[at >> 3] |= static_cast<uint8_t>(1 << (at & 7));
        }
    }
    void load(const SpanRows& rows, const int64_t* first, const int64_t* last, const View& given, int32_t* out) override {
        reach(rows.greatest);
        for (int64_t i = 0; i < rows.count; i++) {
            int32_t right;
            const int32_t left = find(rows.slots[i], first[i], &right);
            out[i] = make(rows.slots[i], first[i], last[i], left, right);
            if (given.truth(i)) spans[out[i]].given = true;
            spans[out[i]].fresh = false;
        }
        made.clear();
    }

   private:
    using Tree = std::map<int64_t, int32_t>; /* sessions by `first` */
    static constexpr int WALK_LIMIT = 16;    /* steps along a chain before its key gets a tree */
    static constexpr size_t TREE_LIMIT = 8;  /* with fewer sessions the key loses its tree again */
    static constexpr int64_t TREE_NODE = 64; /* the approximate bytes of a session in a tree */

    const int64_t gap_ms, lateness_ms;
    int64_t watermark_ms = INT64_MIN, in_trees = 0;
    std::unordered_map<int32_t, Tree> trees; /* by slot, for keys with long chains */
    /* Sessions of one call of `add`: those made; those merged away; of the latter, those that existed before the
       call. */
    Ids made, merged_away, joined;

    Tree* tree_of(int32_t slot) {
        if (trees.empty()) return nullptr;
        const auto found = trees.find(slot);
        return found == trees.end() ? nullptr : &found->second;
    }
    /* Returns the session that this one has become a part of, and shortens the path to it. */
    int32_t survivor(int32_t id) noexcept {
        int32_t top = id;
        while (spans[top].into != NONE) top = spans[top].into;
        while (spans[id].into != NONE) {
            const int32_t after = spans[id].into;
            spans[id].into = top;
            id = after;
        }
        return top;
    }
    /* Adds a row. Returns the session that it belongs to, or NONE for a late row. */
    int32_t place(int32_t slot, int64_t time) {
        int32_t right;
        int32_t left = find(slot, time, &right);
        const bool touches_left = left != NONE && !apart(spans[left].last, time, gap_ms);
        const bool touches_right = right != NONE && !apart(time, spans[right].first, gap_ms);
        if (touches_left) {
            if (touches_right) left = join(left, right);
            if (spans[left].last < time) spans[left].last = time;
            return changed(left);
        }
        if (touches_right) {
            move_first(right, time);
            return changed(right);
        }
        if (plus(plus(time, gap_ms), lateness_ms) <= watermark_ms) {
            late++;
            return NONE;
        }
        return make(slot, time, time, left, right);
    }
    /* Returns the key's last session with first <= time, or NONE. OUT right: the one after it, or NONE. */
    int32_t find(int32_t slot, int64_t time, int32_t* right) {
        int32_t left = latest[slot];
        *right = NONE;
        if (left == GIVEN_BACK) {
            latest[slot] = NONE; /* the slot is in use again */
            return NONE;
        }
        for (int steps = 1; left != NONE && spans[left].first > time; steps++) {
            if (steps > WALK_LIMIT) return search(slot, time, right);
            *right = left;
            left = spans[left].left;
        }
        return left;
    }
    /* Like the walk along the chain, but through the key's tree. */
    int32_t search(int32_t slot, int64_t time, int32_t* right) {
        Tree* tree = tree_of(slot);
        if (tree == nullptr) {
            tree = &trees[slot];
            for (int32_t id = latest[slot]; id != NONE; id = spans[id].left) (*tree)[spans[id].first] = id;
            in_trees += tree->size();
        }
        *right = tree->upper_bound(time)->second; /* never the end: `time` is before WALK_LIMIT sessions */
        return spans[*right].left;
    }
    /* Notes that a session has changed, so that it is returned as ripe again. Call it after adding a row. */
    int32_t changed(int32_t id) {
        Session& session = spans[id];
        if (session.given) {
            session.given = false;
            schedule(id, plus(session.last, gap_ms));
        }
        return id;
    }
    /* Makes a new session between these two of its key. */
    int32_t make(int32_t slot, int64_t first, int64_t last, int32_t left, int32_t right) {
        const int32_t id = take_id("open sessions");
        Session& session = spans[id];
        session.first = first, session.last = last, session.slot = slot;
        session.left = left, session.right = right, session.into = NONE;
        session.given = false, session.fresh = true;
        if (left != NONE) spans[left].right = id;
        if (right != NONE) spans[right].left = id;
        else latest[slot] = id;
        if (auto tree = tree_of(slot)) {
            (*tree)[first] = id;
            in_trees++;
        }
        made.push_back(id);
        schedule(id, plus(last, gap_ms));
        return id;
    }
    void move_first(int32_t id, int64_t first) {
        Session& session = spans[id];
        if (auto tree = tree_of(session.slot)) {
            tree->erase(session.first);
            (*tree)[first] = id;
        }
        session.first = first;
    }
    /* Merges two neighbours. Returns the session that stays, preferably one that existed before this call. */
    int32_t join(int32_t left, int32_t right) {
        const bool keep_right = spans[left].fresh && !spans[right].fresh;
        const int32_t kept = keep_right ? right : left, other = keep_right ? left : right;
        const int64_t first = spans[left].first, last = spans[right].last;
        unlink(other);
        move_first(kept, first);
        spans[kept].last = last;
        spans[other].into = kept;
        spans[other].slot = NONE;
        merged_away.push_back(other);
        if (!spans[other].fresh) joined.push_back(other);
        merges++;
        return kept;
    }
};

struct Run : Span {
    int64_t count; /* the number of rows */
};

/* Divides the rows of a key, in the order in which they come, into runs. A limit of 0 is none. `add` returns (runs
   that began, the rows that began them, runs that ended). */
class Runs final : public Spans<Runs, Run> {
   public:
    Runs(int64_t rows, int64_t idle_ms, int64_t span_ms) : most_rows(rows), idle_ms(idle_ms), span_ms(span_ms) {
        wheel.waits_for(idle_ms > span_ms ? idle_ms : span_ms);
    }
    void add(const SpanRows& rows, int32_t* out, Ids& began, Ids& heads, Ids& ended) override {
        reach(rows.greatest);
        for (int64_t i = 0; i < rows.count; i++) {
            const int32_t slot = rows.slots[i];
            const int64_t time = rows.times ? rows.times[rows.row(i)] : 0;
            int32_t id = latest[slot];
            if (id >= 0 && is_over(spans[id], time)) {
                ended.push_back(id);
                id = NONE;
            }
            if (id < 0) {
                id = make(slot, time, time, 0);
                began.push_back(id);
                heads.push_back(static_cast<int32_t>(rows.row(i)));
            }
            Run& run = spans[id];
            run.count++;
            if (run.last < time) run.last = time;
            if (run.first > time && !span_ms) run.first = time;
            if (run.count == most_rows) {
                ended.push_back(id);
                latest[slot] = NONE;
            }
            out[i] = id;
        }
    }
    /* A run that has ended and is not removed yet needs no entry. */
    bool waits(int32_t id) const noexcept { return latest[spans[id].slot] == id; }
    void look_at(int32_t id, int64_t watermark, Ids&, Ids& over) {
        const int64_t due = due_of(spans[id]);
        if (due <= watermark) {
            spans[id].due = OVER; /* then an entry of an earlier run with this id does not match it */
            over.push_back(id);
        } else {
            schedule(id, due);
        }
    }
    void bounds(const int32_t* ids, int64_t count, int64_t* first, int64_t* last) const noexcept override {
        for (int64_t i = 0; i < count; i++) {
            first[i] = spans[ids[i]].first;
            last[i] = spans[ids[i]].last;
        }
    }
    void unlink(int32_t id) noexcept {
        if (latest[spans[id].slot] == id) latest[spans[id].slot] = NONE;
    }
    int32_t before(int32_t) const noexcept { return NONE; }
    void write(const int32_t* ids, int64_t count, int32_t* slots, int64_t* first, int64_t* last, void* counts) const noexcept override {
        for (int64_t at = 0; at < count; at++) {
            put_bounds(ids[at], at, slots, first, last);
            static_cast<int64_t*>(counts)[at] = spans[ids[at]].count;
        }
    }
    void load(const SpanRows& rows, const int64_t* first, const int64_t* last, const View& counts, int32_t* out) override {
        reach(rows.greatest);
        for (int64_t i = 0; i < rows.count; i++) out[i] = make(rows.slots[i], first[i], last[i], counts.integer(i));
    }

   private:
    const int64_t most_rows, idle_ms, span_ms;

    /* Returns true if no row at this time or later can belong to the run. */
    bool is_over(const Run& run, int64_t time) const noexcept {
        return (idle_ms && apart(run.last, time, idle_ms)) || (span_ms && apart(run.first, time, span_ms));
    }
    /* Returns the time from which on the run is over. */
    int64_t due_of(const Run& run) const noexcept {
        int64_t due = idle_ms ? plus(run.last, idle_ms) : INT64_MAX;
        if (span_ms && plus(run.first, span_ms) < due) due = plus(run.first, span_ms);
        return due;
    }
    int32_t make(int32_t slot, int64_t first, int64_t last, int64_t count) {
        const int32_t id = take_id("runs");
        Run& run = spans[id];
        run.first = first, run.last = last, run.count = count, run.slot = slot;
        latest[slot] = id;
        if (idle_ms || span_ms) schedule(id, due_of(run));
        return id;
    }
};

}  // namespace sabot
