/* The rows of one key in order: sorted entries (order, id).

       count 0, 1      in the head itself
       up to SOME      in an array from a pool, whose size is doubled each time
       more            in leaves of up to SOME entries, with a list of leaves: a key may have millions, arriving in any order

   Appending a row at the end, which is the usual case, moves nothing.

   Nothing here needs the GIL. Functions throw only std::bad_alloc. */
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <vector>

namespace sabot {

struct Entry {
    int64_t order, id;
    bool operator<(const Entry& other) const { return order != other.order ? order < other.order : id < other.id; }
};

constexpr int64_t LEAST = std::numeric_limits<int64_t>::min(), MOST = std::numeric_limits<int64_t>::max();
constexpr uint32_t SOME = 512;
constexpr int POOL_CLASSES = 10; /* arrays of 2^class entries */

/* A pool of arrays of 2 to SOME entries. Each slab has arrays of one length, and is freed with the last of them. */
class EntryPool {
  public:
    EntryPool() = default;
    EntryPool(const EntryPool&) = delete;
    EntryPool& operator=(const EntryPool&) = delete;
    ~EntryPool() {
        for (Slab*& first : open_)
            while (first) drop(first);
        while (full_) drop(full_);
    }

    Entry* take(int size_class) {
        Slab* slab = open_[size_class];
        if (slab == nullptr) slab = fresh(size_class);
        Entry* place;
        if (slab->free) {
            place = slab->free;
            slab->free = *reinterpret_cast<Entry**>(place);
        } else {
            place = reinterpret_cast<Entry*>(reinterpret_cast<uint8_t*>(slab) + slab->untouched);
            slab->untouched += sizeof(Entry) << size_class;
        }
        slab->taken++;
        if (slab->free == nullptr && slab->untouched + (sizeof(Entry) << size_class) > SLAB) {
            unlink(slab, open_[size_class]);
            link(slab, full_);
            slab->full = true;
        }
        return place;
    }
    void give(Entry* place) {
        Slab* slab = reinterpret_cast<Slab*>(reinterpret_cast<uintptr_t>(place) & ~uintptr_t(SLAB - 1));
        *reinterpret_cast<Entry**>(place) = slab->free;
        slab->free = place;
        slab->taken--;
        Slab*& open = open_[slab->size_class];
        if (slab->full) {
            unlink(slab, full_);
            link(slab, open);
            slab->full = false;
        }
        if (slab->taken == 0 && (slab->next || open != slab)) drop_from(slab, open); /* keeps the only slab, which would be made again */
    }
    int64_t nbytes() const { return slabs_ * SLAB; }

  private:
    static constexpr size_t SLAB = 65536;
    struct Slab {
        Slab* next;
        Slab* before;
        Entry* free;
        uint32_t untouched; /* bytes from here on were never used */
        uint32_t taken;
        int size_class;
        bool full;
    };
    Slab* open_[POOL_CLASSES] = {};
    Slab* full_ = nullptr;
    int64_t slabs_ = 0;

    Slab* fresh(int size_class) {
        void* memory = std::aligned_alloc(SLAB, SLAB);
        if (memory == nullptr) throw std::bad_alloc();
        Slab* slab = new (memory) Slab{nullptr, nullptr, nullptr, 64, 0, size_class, false};
        link(slab, open_[size_class]);
        slabs_++;
        return slab;
    }
    static void link(Slab* slab, Slab*& first) {
        slab->before = nullptr;
        slab->next = first;
        if (first) first->before = slab;
        first = slab;
    }
    static void unlink(Slab* slab, Slab*& first) {
        if (slab->before) slab->before->next = slab->next;
        else first = slab->next;
        if (slab->next) slab->next->before = slab->before;
    }
    void drop(Slab*& first) { drop_from(first, first); }
    void drop_from(Slab* slab, Slab*& first) {
        unlink(slab, first);
        std::free(slab);
        slabs_--;
    }
};

struct Leaf {
    uint32_t count = 0;
    Entry entries[SOME];
};

struct Leaves {
    struct Part {
        Entry first;
        Leaf* leaf;
    };
    std::vector<Part> parts;

    ~Leaves() {
        for (Part& part : parts) delete part.leaf;
    }
    /* Returns the index of the leaf that has an entry, or would have it. */
    size_t part_of(const Entry& entry) const {
        size_t low = 0, high = parts.size();
        while (high - low > 1) {
            const size_t middle = (low + high) / 2;
            if (entry < parts[middle].first) high = middle;
            else low = middle;
        }
        return low;
    }
};

/* The head of a key's chain. It has no destructor: the table that owns it frees the memory that it points to. */
struct alignas(32) Chain {
    static constexpr uint8_t IN_LEAVES = 0xff;
    uint32_t count = 0;
    uint8_t size_class = 0; /* the size class of the array; 0 if the entry is in the head */
    bool twin = false;      /* true if there is a second chain, by the hash of the whole row */
    union {
        Entry one;
        Entry* some;
        Leaves* many;
    };
    Chain() : one{0, 0} {}
};

/* A position in a chain. */
struct Spot {
    uint32_t part, at;
};

class Chains {
  public:
    static void fetch(const Chain& chain) {
        if (chain.size_class) __builtin_prefetch(chain.some);
    }
    /* Prefetches the place where the next entry will most likely be put. */
    static void fetch_end(const Chain& chain) {
        if (chain.size_class && chain.size_class != Chain::IN_LEAVES) __builtin_prefetch(chain.some + chain.count);
    }

    /* Returns the position of the first entry that is not before this one. */
    static Spot seek(const Chain& chain, const Entry& entry) {
        if (chain.size_class != Chain::IN_LEAVES) {
            const Entry* first = entries(chain);
            return {0, static_cast<uint32_t>(lower(first, chain.count, entry))};
        }
        const Leaves& leaves = *chain.many;
        size_t part = leaves.part_of(entry);
        const Leaf& leaf = *leaves.parts[part].leaf;
        uint32_t at = static_cast<uint32_t>(lower(leaf.entries, leaf.count, entry));
        if (at == leaf.count && part + 1 < leaves.parts.size()) {
            part++;
            at = 0;
        }
        return {static_cast<uint32_t>(part), at};
    }
    /* Returns the contiguous entries from the position on; none at the end. */
    static const Entry* run(const Chain& chain, const Spot& spot, uint32_t* length) {
        if (chain.size_class != Chain::IN_LEAVES) {
            *length = chain.count - spot.at;
            return entries(chain) + spot.at;
        }
        if (spot.part >= chain.many->parts.size()) {
            *length = 0;
            return nullptr;
        }
        const Leaf& leaf = *chain.many->parts[spot.part].leaf;
        *length = leaf.count - spot.at;
        return leaf.entries + spot.at;
    }
    static void step(const Chain& chain, Spot& spot, uint32_t taken, uint32_t length) {
        spot.at += taken;
        if (taken == length && chain.size_class == Chain::IN_LEAVES) spot = {spot.part + 1, 0};
    }
    /* Returns the entry before the position, or null. */
    static const Entry* before(const Chain& chain, const Spot& spot) {
        if (chain.size_class != Chain::IN_LEAVES) return spot.at ? entries(chain) + spot.at - 1 : nullptr;
        if (spot.at) return chain.many->parts[spot.part].leaf->entries + spot.at - 1;
        if (spot.part == 0) return nullptr;
        const Leaf& leaf = *chain.many->parts[spot.part - 1].leaf;
        return leaf.entries + leaf.count - 1;
    }

    void add(Chain& chain, const Entry& entry) {
        if (chain.count == 0) {
            chain.size_class = 0;
            chain.one = entry;
            chain.count = 1;
            return;
        }
        if (chain.size_class == Chain::IN_LEAVES) return add_to_leaves(chain, entry);
        Entry* first = entries(chain);
        const uint32_t count = chain.count;
        if (count == 1u << chain.size_class) {
            if (count == SOME) {
                into_leaves(chain);
                return add_to_leaves(chain, entry);
            }
            Entry* grown = pool_.take(chain.size_class + 1);
            std::copy(first, first + count, grown);
            if (chain.size_class) pool_.give(first);
            chain.size_class++;
            chain.some = first = grown;
        }
        put(first, count, entry);
        chain.count++;
    }

    /* Removes an entry. Returns false if it does not exist. */
    bool remove(Chain& chain, const Entry& entry) {
        if (chain.count == 0) return false;
        const Spot spot = seek(chain, entry);
        uint32_t length;
        Entry* at = const_cast<Entry*>(run(chain, spot, &length));
        if (length == 0 || entry < *at) return false;
        std::copy(at + 1, at + length, at);
        chain.count--;
        if (chain.size_class == Chain::IN_LEAVES) {
            shrink_leaf(chain, spot.part);
        } else if (chain.count == 0) {
            if (chain.size_class) pool_.give(chain.some);
            chain.size_class = 0;
        } else if (chain.size_class && chain.count <= (1u << chain.size_class) / 4) {
            Entry* old = chain.some;
            Entry* fewer = pool_.take(chain.size_class - 1);
            std::copy(old, old + chain.count, fewer);
            chain.some = fewer;
            chain.size_class--;
            pool_.give(old);
        }
        return true;
    }
    /* Removes all entries and frees the memory of the chain. */
    void clear(Chain& chain) {
        if (chain.size_class == Chain::IN_LEAVES) {
            leaves_ -= chain.many->parts.size();
            delete chain.many;
        } else if (chain.size_class) {
            pool_.give(chain.some);
        }
        chain = Chain();
    }
    int64_t nbytes() const { return pool_.nbytes() + leaves_ * static_cast<int64_t>(sizeof(Leaf) + sizeof(Leaves::Part)); }

  private:
    EntryPool pool_;
    int64_t leaves_ = 0;

    static Entry* entries(Chain& chain) { return chain.size_class ? chain.some : &chain.one; }
    static const Entry* entries(const Chain& chain) { return chain.size_class ? chain.some : &chain.one; }

    static int64_t lower(const Entry* first, uint32_t count, const Entry& entry) {
        return std::lower_bound(first, first + count, entry) - first;
    }
    static void put(Entry* first, uint32_t count, const Entry& entry) {
        uint32_t at = count;
        if (entry < first[count - 1]) {
            at = static_cast<uint32_t>(lower(first, count, entry));
            std::copy_backward(first + at, first + count, first + count + 1);
        }
        first[at] = entry;
    }
    void into_leaves(Chain& chain) {
        auto many = std::make_unique<Leaves>();
        auto leaf = std::make_unique<Leaf>();
        std::copy(chain.some, chain.some + chain.count, leaf->entries);
        leaf->count = chain.count;
        many->parts.push_back({leaf->entries[0], leaf.get()});
        leaf.release();
        leaves_++;
        pool_.give(chain.some);
        chain.size_class = Chain::IN_LEAVES;
        chain.many = many.release();
    }
    void add_to_leaves(Chain& chain, const Entry& entry) {
        std::vector<Leaves::Part>& parts = chain.many->parts;
        size_t part = chain.many->part_of(entry);
        Leaf* leaf = parts[part].leaf;
        if (leaf->count == SOME) { /* at the end begin a new leaf instead of splitting: rows that come in order fill the old one */
            const bool last = part + 1 == parts.size() && leaf->entries[SOME - 1] < entry;
            const uint32_t left = last ? SOME : SOME / 2;
            auto right = std::make_unique<Leaf>();
            std::copy(leaf->entries + left, leaf->entries + SOME, right->entries);
            right->count = SOME - left;
            const Entry first = last ? entry : right->entries[0];
            parts.insert(parts.begin() + part + 1, {first, right.get()});
            leaf->count = left;
            leaves_++;
            Leaf* made = right.release();
            if (!(entry < first)) {
                leaf = made;
                part++;
            }
        }
        if (leaf->count == 0) leaf->entries[0] = entry;
        else put(leaf->entries, leaf->count, entry);
        leaf->count++;
        parts[part].first = leaf->entries[0];
        chain.count++;
    }
    void shrink_leaf(Chain& chain, size_t part) {
        std::vector<Leaves::Part>& parts = chain.many->parts;
        Leaf* leaf = parts[part].leaf;
        leaf->count--;
        if (chain.count == 0) return clear_count(chain);
        if (leaf->count) parts[part].first = leaf->entries[0];
        if (leaf->count > SOME / 4) return;
        const size_t other = part + 1 < parts.size() ? part + 1 : part - 1;
        if (leaf->count == 0) {
            drop_leaf(parts, part);
        } else if (other < parts.size() && parts[other].leaf->count + leaf->count <= SOME * 3 / 4) {
            Leaf* left = parts[std::min(part, other)].leaf;
            Leaf* right = parts[std::max(part, other)].leaf;
            std::copy(right->entries, right->entries + right->count, left->entries + left->count);
            left->count += right->count;
            drop_leaf(parts, std::max(part, other));
        }
        if (parts.size() == 1 && chain.count <= SOME / 4) {
            Entry* few = pool_.take(8);
            static_assert(SOME / 4 <= 1u << 8, "the entries fit");
            std::copy(parts[0].leaf->entries, parts[0].leaf->entries + chain.count, few);
            const uint32_t count = chain.count;
            const bool twin = chain.twin;
            clear(chain);
            chain.count = count;
            chain.twin = twin;
            chain.size_class = 8;
            chain.some = few;
        }
    }
    void drop_leaf(std::vector<Leaves::Part>& parts, size_t part) {
        delete parts[part].leaf;
        parts.erase(parts.begin() + part);
        leaves_--;
    }
    void clear_count(Chain& chain) {
        const bool twin = chain.twin;
        clear(chain);
        chain.twin = twin;
    }
};

}  // namespace sabot
