/* Timers by key. A timer is returned once, when it is due. See timers.pyi.

          index     (slot, kind, time, name) ──▶ timer          open addressing; 8 bytes per entry
          timers    by id: time, key, order, …                  ids are reused
          Queue     one per kind:
                        run       all timers of one time, in order ──▶ the next to be returned
                        heap      timers that were set at or before `last`, the time of the queue
                        buckets   all later timers: bucket b holds times whose highest bit that differs from `last` is b

   The queue is a radix heap (Ahuja, Mehlhorn, Orlin, Tarjan 1990). A radix heap takes no time below the last one returned;
   such timers go to the small heap beside it. Setting a timer appends it to a bucket. It moves at most 64 times, each time
   to a lower bucket, and usually a few times. A deleted timer stays in the queue as a dead one until the queue reaches it,
   or until more timers are dead than alive.

   Order: by time, then by how long the key has had timers, then by when the timer was set.

   Nothing here needs the GIL. Functions that add timers may throw std::bad_alloc, and std::overflow_error for the 2^31st
   timer (`except +`). */
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <vector>

namespace sabot {

constexpr int64_t SLACK = 1024; /* this many dead timers are always tolerated */
constexpr int KINDS = 2;
constexpr int64_t TIMERS_AHEAD = 16; /* how many timers ahead memory is prefetched */
constexpr size_t SOON = 16;          /* the timers of a bucket with at most so many count as next */

struct Timer {
    int64_t at;      /* ms */
    uint64_t serial; /* the serial of its key; lower for keys that have had timers for longer */
    uint64_t order;  /* the order in which timers were set */
    int32_t slot;    /* the slot of its key */
    int32_t name;
    int32_t next, before; /* ids of the neighbours in the list of timers of the key, or -1 */
    uint8_t kind;
    bool alive;
};

struct Slot {
    uint64_t serial = 0;
    int64_t at = 0;        /* the time of its timers in the batch that is being taken, in ms */
    uint64_t batch = 0;    /* the last batch that it was in */
    uint64_t round = 0;    /* the last guarded round in which it set timers */
    uint64_t looked = 0;   /* the last call of `vacant` that checked it */
    int64_t guarded = 0;   /* the number of timers that it set in that round at or before the floor */
    int64_t timers = 0;
    int32_t head = -1;     /* the id of one of its timers, or -1 */
};

struct Entry {
    int64_t at;
    int32_t id;
};

class Timers {
  public:
    int64_t alive = 0, dead = 0;
    int64_t fired = 0;
    int32_t over = -1; /* the slot that set more timers in a round than the guard allows, or -1 */
    uint64_t serials = 0, orders = 0; /* the greatest given so far */
    std::mutex mutex; /* held to change timers without the GIL, and to read timers for a snapshot */

    /* Sets a timer. Returns true if it is new; the caller then counts one more timer for its name. */
    bool add(int32_t slot, int64_t at, int kind, int32_t name) { return set<true>(slot, at, kind, name, 0, 0); }

    /* Like `add`, for a timer that was set before: it keeps its place in the order. */
    bool put(int32_t slot, int64_t at, int kind, int32_t name, uint64_t serial, uint64_t order) {
        return set<false>(slot, at, kind, name, serial, order);
    }

    template <bool NEW>
    bool set(int32_t slot, int64_t at, int kind, int32_t name, uint64_t serial, uint64_t order) {
        if (static_cast<size_t>(slot) >= slots_.size()) slots_.resize(std::max<size_t>(slot + 1, slots_.size() * 2));
        if ((alive + 1) * 8 > static_cast<int64_t>(index_.size()) * 5) grow();
        const uint64_t hash = hash_of(slot, at, kind, name);
        size_t place = hash & mask_;
        for (; index_[place].id >= 0; place = (place + 1) & mask_) {
            if (index_[place].tag == tag_of(hash) && same(timers_[index_[place].id], slot, at, kind, name)) return false;
        }
        const int32_t id = new_id();
        Slot& key = slots_[slot];
        if (NEW) {
            order = ++orders;
            if (key.timers++ == 0) key.serial = ++serials;
            if (guard_limit_ && at <= guard_floor_) guard(slot);
        } else {
            if (key.timers++ == 0) key.serial = serial;
            serials = std::max(serials, serial);
            orders = std::max(orders, order);
        }
        Timer& timer = timers_[id];
        timer.at = at, timer.serial = key.serial, timer.order = order;
        timer.slot = slot, timer.name = name, timer.kind = static_cast<uint8_t>(kind), timer.alive = true;
        timer.next = key.head, timer.before = -1;
        if (key.head >= 0) timers_[key.head].before = id;
        key.head = id;
        index_[place] = {id, tag_of(hash)};
        alive++;
        Queue& queue = queues_[kind];
        if (queue.holding && order > queue.held_from) queue.held.push_back(id);
        else push(queue, id);
        return true;
    }

    void fetch_slot(int32_t slot) const {
        if (slot >= 0 && static_cast<size_t>(slot) < slots_.size()) __builtin_prefetch(&slots_[slot]);
    }

    /* Prefetches the timer before which the next timer of the slot will be linked. The slot should be in the cache
       already. */
    void fetch_head(int32_t slot) const {
        if (slot < 0 || static_cast<size_t>(slot) >= slots_.size()) return;
        if (slots_[slot].head >= 0) __builtin_prefetch(&timers_[slots_[slot].head], 1);
    }

    /* Prefetches the memory that `add` will use. */
    void fetch(int32_t slot, int64_t at, int kind, int32_t name) const {
        if (static_cast<size_t>(slot) < slots_.size()) __builtin_prefetch(&slots_[slot], 1);
        if (!index_.empty()) __builtin_prefetch(&index_[hash_of(slot, at, kind, name) & mask_], 1);
    }

    /* Deletes a timer. Returns true if it existed; the caller then counts one timer less for its name. `out`: gets a
       copy of the timer, or null. */
    bool remove(int32_t slot, int64_t at, int kind, int32_t name, Timer* out = nullptr) {
        if (index_.empty()) return false;
        const uint64_t hash = hash_of(slot, at, kind, name);
        for (size_t place = hash & mask_; index_[place].id >= 0; place = (place + 1) & mask_) {
            const int32_t id = index_[place].id;
            if (index_[place].tag == tag_of(hash) && same(timers_[id], slot, at, kind, name)) {
                if (out) *out = timers_[id];
                forget(place, id);
                dead++;
                if (dead > alive + SLACK) sweep();
                return true;
            }
        }
        return false;
    }

    /* Removes the next timer of the kind with time <= limit and copies it to `out`. Returns false if there is none. */
    bool take(int kind, int64_t limit, Timer* out) {
        Queue& queue = queues_[kind];
        const int32_t id = next(queue, limit);
        if (id < 0) return false;
        *out = timers_[id];
        drop(queue, id);
        return true;
    }

    /* Removes the next timers, at most `rows`, and appends their slots and times. It stops before a timer whose key
       is in the batch with another time. */
    void take_batch(int kind, int64_t limit, int64_t rows, std::vector<int32_t>& slots, std::vector<int64_t>& times) {
        Queue& queue = queues_[kind];
        batches_++;
        for (int64_t row = 0; row < rows; row++) {
            const int32_t id = next(queue, limit);
            if (id < 0) return;
            Slot& key = slots_[timers_[id].slot];
            if (key.batch == batches_) {
                if (key.at != timers_[id].at) return;
            } else {
                key.batch = batches_;
                key.at = timers_[id].at;
            }
            slots.push_back(timers_[id].slot);
            times.push_back(timers_[id].at);
            names.push_back(timers_[id].name);
            drop(queue, id);
        }
    }
    /* the names of the timers removed by the last take_batch or evict; the caller counts one timer less for each */
    std::vector<int32_t> names;

    /* Appends slots that probably have the next timers, in no order. */
    void soon(int kind, int64_t limit, size_t rows, std::vector<int32_t>& out) {
        Queue& queue = queues_[kind];
        if (next(queue, limit) < 0) return;
        auto look = [&](int32_t id) { /* the key of a dead timer may not exist any more */
            if (timers_[id].alive) out.push_back(timers_[id].slot);
        };
        for (size_t i = queue.at_run; i < queue.run.size() && out.size() < rows; i++) look(queue.run[i]);
        for (size_t i = 0; i < queue.heap.size() && out.size() < rows; i++) look(queue.heap[i].id);
        for (const auto& bucket : queue.buckets) {
            for (size_t i = 0; i < bucket.entries.size() && out.size() < rows; i++) look(bucket.entries[i].id);
        }
    }

    /* Returns a lower bound of the times (ms) of timers of the kind, or INT64_MAX if there are none. It may be the
       time of a deleted timer. */
    int64_t soonest(int kind) const noexcept {
        const Queue& queue = queues_[kind];
        int64_t at = INT64_MAX;
        if (queue.at_run < queue.run.size()) at = queue.run_at;
        if (!queue.heap.empty()) at = std::min(at, queue.heap.front().at);
        for (const Bucket& bucket : queue.buckets) {
            if (at != INT64_MAX) break;
            if (!bucket.entries.empty()) at = bucket.least;
        }
        return at;
    }

    /* Holds back timers of the kind that are set from now on until `release`, even if they are evicted and put back. */
    void hold(int kind) {
        queues_[kind].holding = true;
        queues_[kind].held_from = orders;
    }
    void release(int kind) {
        Queue& queue = queues_[kind];
        queue.holding = false;
        for (const int32_t id : queue.held) push(queue, id);
        queue.held.clear();
    }

    /* Begins a round in which a key may set `limit` timers at or before the floor. 0 ends the round. */
    void begin_guard(int64_t limit) {
        guard_limit_ = limit;
        rounds_++;
        over = -1;
    }
    void set_floor(int64_t floor) { guard_floor_ = floor; }

    /* Appends the slots without timers, each once, among these slots and all that have lost their last timer since
       the last call. */
    void vacant(const int32_t* slots, int64_t count, std::vector<int32_t>& out) {
        looks_++;
        auto look = [&](int32_t slot) {
            if (slot < 0) return;
            if (static_cast<size_t>(slot) >= slots_.size()) slots_.resize(slot + 1);
            Slot& key = slots_[slot];
            if (key.looked == looks_) return;
            key.looked = looks_;
            if (key.timers == 0) out.push_back(slot);
        };
        for (const int32_t slot : vacated_) look(slot);
        for (int64_t i = 0; i < count; i++) look(slots[i]);
        vacated_.clear();
    }

    /* Appends the timers of these slots. */
    void of_slots(const int32_t* slots, int64_t count, std::vector<Timer>& out) const {
        for (int64_t i = 0; i < count; i++) {
            if (i + TIMERS_AHEAD < count) fetch_slot(slots[i + TIMERS_AHEAD]);
            if (slots[i] < 0 || static_cast<size_t>(slots[i]) >= slots_.size()) continue;
            for (int32_t id = slots_[slots[i]].head; id >= 0; id = timers_[id].next) out.push_back(timers_[id]);
        }
    }

    /* Removes the timers of these slots. `vacant` does not report these slots. */
    void evict(const int32_t* slots, int64_t count) {
        const size_t vacated = vacated_.size();
        for (int64_t i = 0; i < count; i++) {
            if (slots[i] < 0 || static_cast<size_t>(slots[i]) >= slots_.size()) continue;
            for (int32_t id; (id = slots_[slots[i]].head) >= 0;) {
                size_t place = hash_of(timers_[id]) & mask_;
                while (index_[place].id != id) place = (place + 1) & mask_;
                names.push_back(timers_[id].name);
                forget(place, id);
                dead++;
            }
        }
        vacated_.resize(vacated);
        if (dead > alive + SLACK) sweep();
    }

    /* Appends the slots of all timers of the kind with time <= limit, with repeats. */
    void due(int kind, int64_t limit, std::vector<int32_t>& out) const {
        const Queue& queue = queues_[kind];
        auto look = [&](int32_t id) {
            if (timers_[id].alive && timers_[id].at <= limit) out.push_back(timers_[id].slot);
        };
        for (size_t i = queue.at_run; i < queue.run.size(); i++) look(queue.run[i]);
        for (const Entry& entry : queue.heap) look(entry.id);
        for (const Bucket& bucket : queue.buckets) {
            if (bucket.entries.empty() || bucket.least > limit) continue;
            for (const Entry& entry : bucket.entries)
                if (entry.at <= limit) look(entry.id);
        }
    }

    /* Returns the slot of the next timer of the kind with time <= limit, or -1. */
    int32_t next_slot(int kind, int64_t limit) {
        const int32_t id = next(queues_[kind], limit);
        return id < 0 ? -1 : timers_[id].slot;
    }

    int64_t bytes() const {
        int64_t entries = 0;
        for (const Queue& queue : queues_) {
            entries += queue.heap.capacity() + queue.run.capacity();
            for (const auto& bucket : queue.buckets) entries += bucket.entries.capacity();
        }
        return timers_.capacity() * sizeof(Timer) + slots_.capacity() * sizeof(Slot) + index_.size() * sizeof(Known)
            + (unused_.capacity() + vacated_.capacity()) * sizeof(int32_t) + entries * sizeof(Entry);
    }

  private:
    struct Known {
        int32_t id; /* -1 for a free entry */
        uint32_t tag;
    };
    struct Bucket {
        std::vector<Entry> entries;
        int64_t least = INT64_MAX; /* the least time in the bucket in ms, dead timers included */
    };
    struct Queue {
        Bucket buckets[65];
        std::vector<Entry> heap;
        std::vector<int32_t> run, held;
        size_t at_run = 0;
        int64_t run_at = 0;
        int64_t last = INT64_MIN;
        bool holding = false;
        uint64_t held_from = 0; /* timers with a greater order are held back */
    };

    std::vector<Timer> timers_;
    std::vector<int32_t> unused_;
    std::vector<Slot> slots_;
    std::vector<int32_t> vacated_;
    std::vector<Known> index_;
    size_t mask_ = 0;
    Queue queues_[KINDS];
    uint64_t batches_ = 0, rounds_ = 0, looks_ = 0;
    int64_t guard_limit_ = 0, guard_floor_ = INT64_MIN;

    static uint64_t hash_of(int32_t slot, int64_t at, int kind, int32_t name) {
        const uint64_t who = static_cast<uint64_t>(static_cast<uint32_t>(slot)) << 32 | static_cast<uint32_t>(name * 2 + kind);
        const unsigned __int128 product = (static_cast<unsigned __int128>(who ^ 0x6a09e667f3bcc909ULL))
            * (static_cast<uint64_t>(at) * 0x9e3779b97f4a7c15ULL ^ 0xbb67ae8584caa73bULL);
        uint64_t hash = static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
        hash = (hash ^ who) * 0xa54ff53a5f1d36f1ULL;
        return hash ^ hash >> 32;
    }
    /* Returns the part of a hash that an entry of the index keeps. It also gives the entry's position, because the
       index has at most 2^32 entries. */
    static uint32_t tag_of(uint64_t hash) { return static_cast<uint32_t>(hash); }
    static bool same(const Timer& timer, int32_t slot, int64_t at, int kind, int32_t name) {
        return timer.at == at && timer.slot == slot && timer.name == name && timer.kind == kind;
    }
    uint64_t hash_of(const Timer& timer) const { return hash_of(timer.slot, timer.at, timer.kind, timer.name); }

    int32_t new_id() {
        if (!unused_.empty()) {
            const int32_t id = unused_.back();
            unused_.pop_back();
            return id;
        }
        if (timers_.size() >= INT32_MAX) throw std::overflow_error("more than 2^31 - 1 timers in one subtask: use more parallelism");
        timers_.push_back({});
        return static_cast<int32_t>(timers_.size() - 1);
    }

    void guard(int32_t slot) {
        Slot& key = slots_[slot];
        if (key.round != rounds_) {
            key.round = rounds_;
            key.guarded = 0;
        }
        if (++key.guarded > guard_limit_) over = slot;
    }

    /* Doubles the size of the index. */
    void grow() {
        const size_t size = index_.empty() ? 1024 : index_.size() * 2;
        std::vector<Known> before(size, Known{-1, 0});
        before.swap(index_);
        mask_ = size - 1;
        for (const Known& known : before) {
            if (known.id < 0) continue;
            size_t place = known.tag & mask_;
            while (index_[place].id >= 0) place = (place + 1) & mask_;
            index_[place] = known;
        }
    }

    /* Removes a timer from the index and from its key, and closes the gap in the index. */
    void forget(size_t place, int32_t id) {
        size_t hole = place;
        for (size_t at = (hole + 1) & mask_; index_[at].id >= 0; at = (at + 1) & mask_) {
            const size_t home = index_[at].tag & mask_;
            if (((at - home) & mask_) >= ((at - hole) & mask_)) {
                index_[hole] = index_[at];
                hole = at;
            }
        }
        index_[hole].id = -1;
        Timer& timer = timers_[id];
        Slot& key = slots_[timer.slot];
        if (timer.before >= 0) timers_[timer.before].next = timer.next;
        else key.head = timer.next;
        if (timer.next >= 0) timers_[timer.next].before = timer.before;
        timer.alive = false;
        alive--;
        if (--key.timers == 0) vacated_.push_back(timer.slot);
    }

    /* Removes a timer that is first in the run or the heap, to be returned. */
    void drop(Queue& queue, int32_t id) {
        const uint64_t hash = hash_of(timers_[id]);
        size_t place = hash & mask_;
        while (index_[place].id != id) place = (place + 1) & mask_;
        forget(place, id);
        fired++;
        if (queue.at_run < queue.run.size() && queue.run[queue.at_run] == id) queue.at_run++;
        else pop_heap(queue);
        unused_.push_back(id);
    }

    bool later(const Entry& a, const Entry& b) const {
        if (a.at != b.at) return a.at > b.at;
        const Timer &left = timers_[a.id], &right = timers_[b.id];
        if (left.serial != right.serial) return left.serial > right.serial;
        return left.order > right.order;
    }
    void pop_heap(Queue& queue) {
        std::pop_heap(queue.heap.begin(), queue.heap.end(), [this](const Entry& a, const Entry& b) { return later(a, b); });
        queue.heap.pop_back();
    }

    void push(Queue& queue, int32_t id) {
        const int64_t at = timers_[id].at;
        if (at <= queue.last) {
            queue.heap.push_back({at, id});
            std::push_heap(queue.heap.begin(), queue.heap.end(), [this](const Entry& a, const Entry& b) { return later(a, b); });
        } else {
            push_bucket(queue, {at, id});
        }
    }
    void push_bucket(Queue& queue, Entry entry) {
        const uint64_t differing = static_cast<uint64_t>(entry.at) ^ static_cast<uint64_t>(queue.last); /* not 0, because at != last */
        Bucket& bucket = queue.buckets[64 - __builtin_clzll(differing)];
        bucket.entries.push_back(entry);
        bucket.least = std::min(bucket.least, entry.at);
    }

    /* Frees the id of a dead timer that the queue has reached. */
    void bury(int32_t id) {
        dead--;
        unused_.push_back(id);
    }

    /* Returns the next living timer with time <= limit, now first in the run or the heap, or -1. */
    int32_t next(Queue& queue, int64_t limit) {
        while (true) {
            while (queue.at_run < queue.run.size() && !timers_[queue.run[queue.at_run]].alive) bury(queue.run[queue.at_run++]);
            while (!queue.heap.empty() && !timers_[queue.heap.front().id].alive) {
                bury(queue.heap.front().id);
                pop_heap(queue);
            }
            const bool has_run = queue.at_run < queue.run.size();
            if (has_run || !queue.heap.empty()) {
                int32_t id = has_run ? queue.run[queue.at_run] : queue.heap.front().id;
                if (has_run && !queue.heap.empty() && later({queue.run_at, id}, queue.heap.front())) id = queue.heap.front().id;
                return timers_[id].at <= limit ? id : -1;
            }
            if (!refill(queue, limit)) return -1;
        }
    }

    /* Moves the timers of the next time into the run if that time is <= limit. Returns false if there are none. */
    bool refill(Queue& queue, int64_t limit) {
        queue.run.clear();
        queue.at_run = 0;
        for (Bucket& bucket : queue.buckets) {
            if (bucket.entries.empty()) continue;
            if (bucket.least > limit) return false;
            std::vector<Entry> entries;
            entries.swap(bucket.entries);
            bucket.least = INT64_MAX;
            int64_t least = INT64_MAX;
            size_t kept = 0;
            const bool soon = entries.size() <= SOON;
            for (size_t i = 0; i < entries.size(); i++) {
                if (i + TIMERS_AHEAD < entries.size()) __builtin_prefetch(&timers_[entries[i + TIMERS_AHEAD].id]);
                const Entry entry = entries[i];
                const Timer& timer = timers_[entry.id];
                if (timer.alive) {
                    if (soon) fetch(timer.slot, timer.at, timer.kind, timer.name);
                    entries[kept++] = entry;
                    least = std::min(least, entry.at);
                } else {
                    bury(entry.id);
                }
            }
            entries.resize(kept);
            if (entries.empty()) continue;
            if (least > limit) {
                bucket.least = least;
                entries.swap(bucket.entries);
                return false;
            }
            queue.last = queue.run_at = least;
            for (const Entry& entry : entries) {
                if (entry.at == least) queue.run.push_back(entry.id);
                else push_bucket(queue, entry);
            }
            sort_run(queue.run);
            return true;
        }
        return false;
    }

    void sort_run(std::vector<int32_t>& run) {
        if (run.size() < 2) return;
        struct Place {
            uint64_t serial, order;
            int32_t id;
        };
        std::vector<Place> places;
        places.reserve(run.size());
        bool sorted = true;
        for (const int32_t id : run) {
            places.push_back({timers_[id].serial, timers_[id].order, id});
            const size_t n = places.size();
            sorted = sorted && (n < 2 || !before(places[n - 1].serial, places[n - 1].order, places[n - 2].serial, places[n - 2].order));
        }
        if (sorted) return;
        std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) { return before(a.serial, a.order, b.serial, b.order); });
        for (size_t i = 0; i < run.size(); i++) run[i] = places[i].id;
    }
    static bool before(uint64_t serial, uint64_t order, uint64_t other_serial, uint64_t other_order) {
        return serial != other_serial ? serial < other_serial : order < other_order;
    }

    /* Removes all dead timers from the queue. */
    void sweep() {
        for (Queue& queue : queues_) {
            auto buried = [&](int32_t id) {
                if (timers_[id].alive) return false;
                bury(id);
                return true;
            };
            queue.run.erase(queue.run.begin(), queue.run.begin() + queue.at_run);
            queue.at_run = 0;
            queue.run.erase(std::remove_if(queue.run.begin(), queue.run.end(), buried), queue.run.end());
            queue.held.erase(std::remove_if(queue.held.begin(), queue.held.end(), buried), queue.held.end());
            auto entry_buried = [&](const Entry& entry) { return buried(entry.id); };
            queue.heap.erase(std::remove_if(queue.heap.begin(), queue.heap.end(), entry_buried), queue.heap.end());
            std::make_heap(queue.heap.begin(), queue.heap.end(), [this](const Entry& a, const Entry& b) { return later(a, b); });
            for (Bucket& bucket : queue.buckets) {
                auto& entries = bucket.entries;
                entries.erase(std::remove_if(entries.begin(), entries.end(), entry_buried), entries.end());
                bucket.least = INT64_MAX;
                for (const Entry& entry : entries) bucket.least = std::min(bucket.least, entry.at);
            }
        }
    }
};

}  // namespace sabot
