/* State of aggregates over changes, from which rows can be removed again. See multiset.pyi for its meaning.

   Values are byte strings that sort like the values. They are kept in `Sorted`: a sequence of sorted chunks of at most
   MOST entries, so that an insertion moves few entries, however many there are. Most groups have one chunk.

       tops_      [    c    ] [   f   ] [ g ]      the first bytes of each chunk's last entry, as a number: contiguous in memory
       chunks_ ─▶ [ a a b c ] [ d d f ] [ g ]      lower(e): by the tops, then within one chunk

   Nothing here needs the GIL. Adding and saving may throw std::bad_alloc; `load` throws std::invalid_argument for a damaged
   state (`except +`). */
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace sabot {

/* Returns the first eight bytes as a number that sorts like these bytes. */
static inline uint64_t prefix_of(std::string_view bytes) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data(), std::min<size_t>(8, bytes.size()));
    return __builtin_bswap64(word);
}

/* A sorted sequence of entries. Less has less(entry, probe), and top(entry) and top(probe): numbers that sort like
   the entries, or are equal if they do not decide the order. */
template <class Entry, class Less>
class Sorted {
    static constexpr size_t MOST = 256;
    std::vector<std::vector<Entry>> chunks_;
    std::vector<uint64_t> tops_;

    void set_top(size_t chunk) { tops_[chunk] = Less::top(chunks_[chunk].back()); }
    void drop(size_t chunk) {
        chunks_.erase(chunks_.begin() + chunk);
        tops_.erase(tops_.begin() + chunk);
    }

  public:
    struct Place {
        size_t chunk, at;
    };

    bool empty() const { return chunks_.empty(); }
    bool ends(Place place) const { return place.chunk == chunks_.size(); }
    const Entry& operator[](Place place) const { return chunks_[place.chunk][place.at]; }
    Entry& operator[](Place place) { return chunks_[place.chunk][place.at]; } /* a change must not affect its order */
    Place first() const { return {0, 0}; }
    Place end() const { return {chunks_.size(), 0}; }
    void advance(Place& place) const {
        if (++place.at == chunks_[place.chunk].size()) place = {place.chunk + 1, 0};
    }
    /* Moves the place back by one entry. Returns false if it was at the first. */
    bool retreat(Place& place) const {
        if (place.at > 0) {
            place.at--;
            return true;
        }
        if (place.chunk == 0) return false;
        place.chunk--;
        place.at = chunks_[place.chunk].size() - 1;
        return true;
    }

    /* Returns the place of the first entry that is not less than the probe. */
    template <class Probe>
    Place lower(const Probe& probe) const {
        const Less less{};
        const auto [low, high] = std::equal_range(tops_.begin(), tops_.end(), Less::top(probe));
        const auto chunk = std::partition_point(
            chunks_.begin() + (low - tops_.begin()),
            chunks_.begin() + (high - tops_.begin()),
            [&](const std::vector<Entry>& each) { return less(each.back(), probe); }
        );
        if (chunk == chunks_.end()) return end();
        const auto entry =
            std::partition_point(chunk->begin(), chunk->end(), [&](const Entry& each) { return less(each, probe); });
        return {static_cast<size_t>(chunk - chunks_.begin()), static_cast<size_t>(entry - chunk->begin())};
    }

    /* Inserts an entry before `place`, which must be a result of `lower`. */
    void insert(Place place, Entry&& entry) {
        if (chunks_.empty()) {
            chunks_.emplace_back();
            tops_.push_back(0);
        }
        if (place.chunk == chunks_.size()) place = {chunks_.size() - 1, chunks_.back().size()};
        if (chunks_[place.chunk].size() >= MOST) {
            std::vector<Entry>& full = chunks_[place.chunk];
            /* entries come in order: leave chunks full */
            const bool behind = place.chunk + 1 == chunks_.size() && place.at == full.size();
            const size_t kept = behind ? MOST : MOST / 2;
            std::vector<Entry> rest(std::make_move_iterator(full.begin() + kept), std::make_move_iterator(full.end()));
            full.resize(kept);
            chunks_.insert(chunks_.begin() + place.chunk + 1, std::move(rest));
            tops_.insert(tops_.begin() + place.chunk + 1, 0);
            set_top(place.chunk);
            if (!behind) set_top(place.chunk + 1);
            if (place.at > kept || behind) place = {place.chunk + 1, place.at - kept};
        }
        std::vector<Entry>& chunk = chunks_[place.chunk];
        chunk.insert(chunk.begin() + place.at, std::move(entry));
        if (place.at + 1 == chunk.size()) set_top(place.chunk);
    }

    void erase(Place place) {
        std::vector<Entry>& chunk = chunks_[place.chunk];
        chunk.erase(chunk.begin() + place.at);
        if (chunk.empty()) {
            drop(place.chunk);
            if (chunks_.empty()) *this = {};
        } else if (place.chunk + 1 < chunks_.size() && chunk.size() + chunks_[place.chunk + 1].size() <= MOST / 2) {
            std::vector<Entry>& next = chunks_[place.chunk + 1];
            chunk.insert(chunk.end(), std::make_move_iterator(next.begin()), std::make_move_iterator(next.end()));
            drop(place.chunk + 1);
            set_top(place.chunk);
        } else if (place.at == chunk.size()) {
            set_top(place.chunk);
        }
    }

    template <class Body>
    void each(Body body) const {
        for (const auto& chunk : chunks_)
            for (const Entry& entry : chunk) body(entry);
    }
};

/* An array of byte strings under construction: row i ends at ends[i]. */
struct Strings {
    std::vector<int64_t> ends;
    std::vector<uint8_t> valid;
    std::string data;

    void add(std::string_view value, bool is_valid = true) {
        data.append(value);
        ends.push_back(static_cast<int64_t>(data.size()));
        valid.push_back(is_valid);
    }
};

template <class T>
static inline void append(std::string& to, T value) {
    to.append(reinterpret_cast<const char*>(&value), sizeof value);
}

/* Reads the bytes that `append` wrote. Throws std::invalid_argument if they end too early. */
struct Reader {
    const char* at;
    const char* end;

    std::string_view bytes(size_t size) {
        if (static_cast<size_t>(end - at) < size) throw std::invalid_argument("a state ends in the middle of a value");
        const std::string_view found(at, size);
        at += size;
        return found;
    }
    template <class T>
    T get() {
        T value;
        std::memcpy(&value, bytes(sizeof value).data(), sizeof value);
        return value;
    }
};

static inline int64_t heap_of(size_t size) { return 48 + (size > 15 ? static_cast<int64_t>(size) + 17 : 0); }

struct Counted {
    std::string key;
    int64_t count;
};
struct ByKey {
    bool operator()(const Counted& a, std::string_view key) const { return std::string_view(a.key) < key; }
    static uint64_t top(const Counted& a) { return prefix_of(a.key); }
    static uint64_t top(std::string_view key) { return prefix_of(key); }
};

/* The distinct values of each slot, with counts. */
class Multisets {
    std::vector<Sorted<Counted, ByKey>> slots_;
    std::vector<int64_t> differing_; /* the number of distinct values of each slot */

  public:
    int64_t nbytes_held = 0;

    int64_t nbytes() const { return nbytes_held + static_cast<int64_t>(slots_.capacity() * (sizeof(slots_[0]) + 8)); }
    void reach(int32_t slot) {
        if (static_cast<size_t>(slot) >= slots_.size()) {
            const size_t size = std::max<size_t>(slot + 1, 2 * slots_.size());
            slots_.resize(size);
            differing_.resize(size);
        }
    }
    void add(int32_t slot, std::string_view key, int64_t by) {
        reach(slot);
        auto& values = slots_[slot];
        const auto place = values.lower(key);
        if (!values.ends(place) && values[place].key == key) {
            if ((values[place].count += by) != 0) return;
            values.erase(place);
            nbytes_held -= heap_of(key.size());
            differing_[slot]--;
        } else if (by != 0) {
            values.insert(place, {std::string(key), by});
            nbytes_held += heap_of(key.size());
            differing_[slot]++;
        }
    }
    void differing(const int32_t* slots, int64_t count, int64_t* out) const {
        for (int64_t i = 0; i < count; i++) out[i] = has(slots[i]) ? differing_[slots[i]] : 0;
    }
    void least(const int32_t* slots, int64_t count, std::string_view last_resort, Strings& out) const {
        for (int64_t i = 0; i < count; i++) {
            const Sorted<Counted, ByKey>* values = has(slots[i]) ? &slots_[slots[i]] : nullptr;
            if (values == nullptr || values->empty()) {
                out.add({}, false);
                continue;
            }
            auto place = values->first();
            if (differing_[slots[i]] > 1 && (*values)[place].key == last_resort) values->advance(place);
            out.add((*values)[place].key);
        }
    }
    /* Finds the greatest value of each slot. `last_resort`: a value that is returned only if there is no other. */
    void greatest(const int32_t* slots, int64_t count, std::string_view last_resort, Strings& out) const {
        for (int64_t i = 0; i < count; i++) {
            const Sorted<Counted, ByKey>* values = has(slots[i]) ? &slots_[slots[i]] : nullptr;
            if (values == nullptr || values->empty()) {
                out.add({}, false);
                continue;
            }
            auto place = values->end();
            values->retreat(place);
            if (differing_[slots[i]] > 1 && (*values)[place].key == last_resort) values->retreat(place);
            out.add((*values)[place].key);
        }
    }
    /* Finds the least value that has the same first part as the greatest. The first part is the first `width` bytes
       or, for -1, the bytes up to and including `ending`. */
    void first_of_greatest(const int32_t* slots, int64_t count, int64_t width, std::string_view ending, Strings& out) const {
        for (int64_t i = 0; i < count; i++) {
            const Sorted<Counted, ByKey>* values = has(slots[i]) ? &slots_[slots[i]] : nullptr;
            if (values == nullptr || values->empty()) {
                out.add({}, false);
                continue;
            }
            auto place = values->end();
            values->retreat(place);
            const std::string_view last((*values)[place].key);
            const size_t size = width >= 0 ? static_cast<size_t>(width) : last.find(ending) + ending.size();
            out.add((*values)[values->lower(last.substr(0, size))].key);
        }
    }
    /* Finds the `most` greatest values of each slot, greatest first. OUT sizes[i]: how many were found. */
    void best(const int32_t* slots, int64_t count, int64_t most, int64_t* sizes, Strings& out) const {
        for (int64_t i = 0; i < count; i++) {
            int64_t left = most;
            if (has(slots[i])) {
                const Sorted<Counted, ByKey>& values = slots_[slots[i]];
                auto place = values.end();
                while (left > 0 && values.retreat(place)) {
                    for (int64_t n = values[place].count; n > 0 && left > 0; n--, left--) out.add(values[place].key);
                }
            }
            sizes[i] = most - left;
        }
    }
    void save(const int32_t* slots, int64_t count, Strings& out) const {
        for (int64_t i = 0; i < count; i++) {
            if (has(slots[i])) {
                slots_[slots[i]].each([&](const Counted& entry) {
                    append(out.data, entry.count);
                    append(out.data, static_cast<uint32_t>(entry.key.size()));
                    out.data.append(entry.key);
                });
            }
            out.add({});
        }
    }
    void load(int32_t slot, const char* data, int64_t size) {
        Reader reader{data, data + size};
        while (reader.at < reader.end) {
            const int64_t by = reader.get<int64_t>();
            const uint32_t length = reader.get<uint32_t>();
            add(slot, reader.bytes(length), by);
        }
    }
    void remove(const int32_t* slots, int64_t count) {
        for (int64_t i = 0; i < count; i++) {
            if (!has(slots[i])) continue;
            slots_[slots[i]].each([&](const Counted& entry) { nbytes_held -= heap_of(entry.key.size()); });
            slots_[slots[i]] = {};
            differing_[slots[i]] = 0;
        }
    }
    void clear() {
        slots_.clear();
        slots_.shrink_to_fit();
        differing_.clear();
        nbytes_held = 0;
    }

  private:
    bool has(int32_t slot) const { return static_cast<size_t>(slot) < slots_.size(); }
};

/* A value with its order and the number of its arrival. */
struct Arrival {
    int64_t order, number;
    std::string value;
};
using ArrivalAt = std::unique_ptr<Arrival>;
struct Moment {
    int64_t order, number;
};
struct Wanted {
    std::string_view value;
    int64_t order, number;
};
struct ByMoment {
    bool operator()(const ArrivalAt& a, const Moment& b) const {
        return a->order != b.order ? a->order < b.order : a->number < b.number;
    }
    static uint64_t top(const ArrivalAt& a) { return static_cast<uint64_t>(a->order) ^ (1ULL << 63); }
    static uint64_t top(const Moment& a) { return static_cast<uint64_t>(a.order) ^ (1ULL << 63); }
};
struct ByValue {
    bool operator()(const Arrival* a, const Wanted& b) const {
        const int order = std::string_view(a->value).compare(b.value);
        if (order != 0) return order < 0;
        return a->order != b.order ? a->order < b.order : a->number < b.number;
    }
    static uint64_t top(const Arrival* a) { return prefix_of(a->value); }
    static uint64_t top(const Wanted& a) { return prefix_of(a.value); }
};

/* The values of each slot in order, with an index by value. */
class Arrivals {
    struct Group {
        Sorted<ArrivalAt, ByMoment> moments; /* owns the arrivals */
        Sorted<Arrival*, ByValue> values;
        int64_t size = 0;
    };
    std::vector<Group> slots_;
    int64_t number_ = 0;

  public:
    int64_t nbytes_held = 0;

    int64_t nbytes() const { return nbytes_held + static_cast<int64_t>(slots_.capacity() * sizeof(Group)); }
    void reach(int32_t slot) {
        if (static_cast<size_t>(slot) >= slots_.size()) slots_.resize(std::max<size_t>(slot + 1, 2 * slots_.size()));
    }
    void add(int32_t slot, int64_t order, std::string_view value) { put(slot, order, number_++, value); }

    /* Removes the oldest equal value with this order, or else the first equal value. Returns false if there is no
       equal value. */
    bool take(int32_t slot, int64_t order, std::string_view value) {
        if (!has(slot)) return false;
        Group& group = slots_[slot];
        auto place = group.values.lower(Wanted{value, order, INT64_MIN});
        if (group.values.ends(place) || group.values[place]->value != value || group.values[place]->order != order) {
            place = group.values.lower(Wanted{value, INT64_MIN, INT64_MIN});
            if (group.values.ends(place) || group.values[place]->value != value) return false;
        }
        const Arrival* found = group.values[place];
        group.values.erase(place);
        nbytes_held -= 64 + heap_of(found->value.size());
        group.moments.erase(group.moments.lower(Moment{found->order, found->number}));
        group.size--;
        return true;
    }
    void ends_of(const int32_t* slots, int64_t count, bool last, Strings& out) const {
        for (int64_t i = 0; i < count; i++) {
            if (!has(slots[i]) || slots_[slots[i]].moments.empty()) {
                out.add({}, false);
                continue;
            }
            const auto& moments = slots_[slots[i]].moments;
            auto place = last ? moments.end() : moments.first();
            if (last) moments.retreat(place);
            out.add(moments[place]->value);
        }
    }
    void all(const int32_t* slots, int64_t count, int64_t* sizes, Strings& out) const {
        for (int64_t i = 0; i < count; i++) {
            sizes[i] = has(slots[i]) ? slots_[slots[i]].size : 0;
            if (sizes[i]) slots_[slots[i]].moments.each([&](const ArrivalAt& each) { out.add(each->value); });
        }
    }
    void save(const int32_t* slots, int64_t count, Strings& out) const {
        for (int64_t i = 0; i < count; i++) {
            if (has(slots[i])) {
                slots_[slots[i]].moments.each([&](const ArrivalAt& each) {
                    append(out.data, each->order);
                    append(out.data, each->number);
                    append(out.data, static_cast<uint32_t>(each->value.size()));
                    out.data.append(each->value);
                });
            }
            out.add({});
        }
    }
    void load(int32_t slot, const char* data, int64_t size) {
        Reader reader{data, data + size};
        while (reader.at < reader.end) {
            const int64_t order = reader.get<int64_t>(), number = reader.get<int64_t>();
            const uint32_t length = reader.get<uint32_t>();
            put(slot, order, number, reader.bytes(length));
            number_ = std::max(number_, number + 1);
        }
    }
    void remove(const int32_t* slots, int64_t count) {
        for (int64_t i = 0; i < count; i++) {
            if (!has(slots[i])) continue;
            slots_[slots[i]].moments.each([&](const ArrivalAt& each) { nbytes_held -= 64 + heap_of(each->value.size()); });
            slots_[slots[i]] = {};
        }
    }
    void clear() {
        slots_.clear();
        slots_.shrink_to_fit();
        nbytes_held = 0;
    }

  private:
    bool has(int32_t slot) const { return static_cast<size_t>(slot) < slots_.size(); }
    void put(int32_t slot, int64_t order, int64_t number, std::string_view value) {
        reach(slot);
        Group& group = slots_[slot];
        ArrivalAt arrival(new Arrival{order, number, std::string(value)});
        group.values.insert(group.values.lower(Wanted{value, order, number}), arrival.get());
        group.moments.insert(group.moments.lower(Moment{order, number}), std::move(arrival));
        group.size++;
        nbytes_held += 64 + heap_of(value.size());
    }
};

/* Appends one part of a key. A part of fixed width is written as it is. In any other part, a byte 0 is written as 0
   255, and the part ends with 0 0. */
static inline void append_escaped(std::string& out, const char* data, int64_t size) {
    const char* end = data + size;
    while (data < end) {
        const char* zero = static_cast<const char*>(std::memchr(data, 0, end - data));
        const char* stop = zero == nullptr ? end : zero;
        out.append(data, stop);
        if (zero != nullptr) out.append("\x00\xff", 2);
        data = stop + 1;
    }
    out.append("\x00\x00", 2);
}

static inline void read_escaped(Reader& reader, std::string& out) {
    for (;;) {
        const char* zero = static_cast<const char*>(std::memchr(reader.at, 0, reader.end - reader.at));
        if (zero == nullptr || zero + 1 == reader.end) throw std::invalid_argument("a key ends in the middle of a value");
        out.append(reader.at, zero);
        reader.at = zero + 2;
        if (zero[1] == 0) return;
        out.push_back('\0');
    }
}

static inline void append_bytes(std::string& out, Reader& reader, int64_t size) { out.append(reader.bytes(size)); }

}  // namespace sabot
