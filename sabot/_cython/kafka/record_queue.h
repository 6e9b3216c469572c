/* Reads a consumer's records into columns.

   Only the queues of partitions are forwarded to our queue, before the partitions are assigned. These queues carry
   records and errors of partitions, no callbacks. The Python client still owns the handle and runs all callbacks
   (errors, statistics, tokens, commits) in its `poll`, with the Python state that they need. */
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <deque>
#include <iterator>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "arrow/arrow_c.h"
#include "arrow/bytes.h"
#include "arrow/new_array.h"
#include "arrow/utf8.h"
#include "kafka/librdkafka.h"

namespace sabot {

constexpr int64_t AHEAD = 4; /* how many records ahead memory is prefetched */

struct Event { /* an event of a partition: its end was reached, or an error */
    int code;
    int32_t partition;
    int64_t offset;
    std::string text;
};

/* A column of bytes that grows by a row at a time, for at most `rows` rows. Throws bad_alloc, overflow_error. */
class BytesColumn {
  public:
    explicit BytesColumn(int64_t rows, int64_t likely_bytes) {
        offsets_.ensure((rows + 1) * 4);
        valid_.ensure(rows / 8 + 8);
        std::memset(valid_.data, 0, static_cast<size_t>(rows / 8 + 8));
        data_.ensure(likely_bytes);
        put_offset();
    }

    void add(const void* data, size_t size) {
        if (data == nullptr) {
            nulls_++;
        } else {
            valid_.data[rows_ >> 3] |= static_cast<uint8_t>(1 << (rows_ & 7));
            data_.put(data, static_cast<int64_t>(size));
        }
        rows_++;
        put_offset();
    }

    int64_t bytes() const { return data_.len; }

    /* Exports the column. `out` must be released. */
    void give(ArrowArray* out) {
        make_array(out, rows_, 3, 0);
        out->null_count = nulls_;
        if (nulls_) out->buffers[0] = valid_.take();
        out->buffers[1] = offsets_.take();
        out->buffers[2] = data_.take();
    }

  private:
    Bytes offsets_, valid_, data_;
    int64_t rows_ = 0, nulls_ = 0;

    void put_offset() {
        const int32_t at = static_cast<int32_t>(data_.len);
        std::memcpy(offsets_.data + rows_ * 4, &at, 4);
    }
};

/* The headers of records: a list of structs of a name and a value. Throws bad_alloc, overflow_error. */
class HeadersColumn {
  public:
    explicit HeadersColumn(int64_t rows) {
        bounds_.ensure((rows + 1) * 4);
        valid_.ensure(rows / 8 + 8);
        std::memset(valid_.data, 0, static_cast<size_t>(rows / 8 + 8));
        put_bound();
    }

    void add(const rd_kafka_message_t* message) {
        rd_kafka_headers_t* headers = nullptr;
        if (client::message_headers(message, &headers) == 0) {
            const char* name;
            const void* value;
            size_t size;
            const size_t before = entries_.size();
            for (size_t i = 0; client::header_get_all(headers, i, &name, &value, &size) == 0; i++) {
                entries_.push_back({static_cast<int64_t>(names_.size()), value ? static_cast<int64_t>(size) : -1});
                put_name(name);
                if (value) values_.append(static_cast<const char*>(value), size);
            }
            if (entries_.size() > before) {
                valid_.data[rows_ >> 3] |= static_cast<uint8_t>(1 << (rows_ & 7));
                with_headers_++;
            }
        }
        rows_++;
        put_bound();
    }

    /* Appends a row without headers. */
    void skip() {
        rows_++;
        put_bound();
    }

    void give(ArrowArray* out) {
        const int64_t count = static_cast<int64_t>(entries_.size());
        make_array(out, rows_, 2, 1);
        out->null_count = rows_ - with_headers_;
        if (out->null_count) out->buffers[0] = valid_.take();
        out->buffers[1] = bounds_.take();
        ArrowArray* pairs = out->children[0];
        make_array(pairs, count, 1, 2);
        BytesColumn names(count, static_cast<int64_t>(names_.size())), values(count, static_cast<int64_t>(values_.size()));
        int64_t at = 0;
        for (int64_t i = 0; i < count; i++) {
            const int64_t end = i + 1 < count ? entries_[i + 1].name : static_cast<int64_t>(names_.size());
            names.add(names_.data() + entries_[i].name, static_cast<size_t>(end - entries_[i].name));
            const int64_t size = entries_[i].size;
            values.add(size < 0 ? nullptr : values_.data() + at, static_cast<size_t>(std::max<int64_t>(size, 0)));
            at += std::max<int64_t>(size, 0);
        }
        names.give(pairs->children[0]);
        values.give(pairs->children[1]);
    }

  private:
    struct Entry {
        int64_t name; /* the offset of its name */
        int64_t size; /* bytes of its value, or -1 for null */
    };

    Bytes bounds_, valid_;
    std::vector<Entry> entries_;
    std::string names_, values_;
    int64_t rows_ = 0, with_headers_ = 0;

    /* Appends a name as text. Kafka's own clients write UTF-8; an invalid byte becomes U+FFFD. */
    void put_name(const char* name) {
        const uint8_t* p = reinterpret_cast<const uint8_t*>(name);
        const uint8_t* const end = p + std::strlen(name);
        while (p < end) {
            const int n = *p < 0x80 ? 1 : utf8_length(p, end);
            if (n)
                names_.append(reinterpret_cast<const char*>(p), static_cast<size_t>(n));
            else
                names_.append("\xEF\xBF\xBD");
            p += n ? n : 1;
        }
    }

    void put_bound() {
        const int32_t at = static_cast<int32_t>(entries_.size());
        std::memcpy(bounds_.data + rows_ * 4, &at, 4);
    }
};

/* A column of numbers for at most `rows` rows. Throws bad_alloc. */
template <class T>
class NumberColumn {
  public:
    explicit NumberColumn(int64_t rows) { values_.ensure(rows * static_cast<int64_t>(sizeof(T))); }

    void add(T value) {
        std::memcpy(values_.data + rows_ * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
        rows_++;
    }

    void give(ArrowArray* out) {
        make_array(out, rows_, 2, 0);
        out->buffers[1] = values_.take();
    }

  private:
    Bytes values_;
    int64_t rows_ = 0;
};

/* Messages taken from the client. They are destroyed with this object, if not before. */
class Messages {
  public:
    Messages() = default;
    Messages(const Messages&) = delete;
    Messages& operator=(const Messages&) = delete;
    ~Messages() { clear(); }

    /* Adds up to `most` messages. With a timeout it waits until there are so many, or until the timeout. */
    void take(rd_kafka_queue_t* queue, int timeout_ms, int64_t most) {
        if (held_.size() < static_cast<size_t>(count_ + most)) held_.resize(static_cast<size_t>(count_ + most));
        const ssize_t came = client::consume_batch_queue(queue, timeout_ms, held_.data() + count_, static_cast<size_t>(most));
        if (came > 0) count_ += came;
    }

    void add(rd_kafka_message_t* message) {
        if (held_.size() == static_cast<size_t>(count_)) held_.push_back(nullptr);
        held_[static_cast<size_t>(count_++)] = message;
    }

    /* Returns message i to the caller, who owns it then. It must not be used here again. */
    rd_kafka_message_t* give(int64_t i) { return std::exchange(held_[static_cast<size_t>(i)], nullptr); }

    int64_t count() const { return count_; }
    bool empty() const { return count_ == 0; }
    const rd_kafka_message_t* operator[](int64_t i) const { return held_[static_cast<size_t>(i)]; }

    /* Destroys message i, which must not be used again. */
    void drop(int64_t i) {
        client::message_destroy(held_[static_cast<size_t>(i)]);
        held_[static_cast<size_t>(i)] = nullptr;
    }

    void clear() {
        for (int64_t i = 0; i < count_; i++) {
            if (i + AHEAD < count_) __builtin_prefetch(held_[static_cast<size_t>(i + AHEAD)]);
            if (held_[static_cast<size_t>(i)] != nullptr) drop(i);
        }
        count_ = 0;
    }

    void look_ahead(int64_t i) const {
        if (i + 2 * AHEAD < count_) __builtin_prefetch((*this)[i + 2 * AHEAD]);
        if (i + AHEAD < count_) __builtin_prefetch((*this)[i + AHEAD]->payload);
    }

  private:
    std::vector<rd_kafka_message_t*> held_;
    int64_t count_ = 0;
};

/* A bounded number of messages that were taken from the client when their partitions were held; by partition, in
   order. */
class KeptMessages {
  public:
    KeptMessages() = default;
    KeptMessages(const KeptMessages&) = delete;
    KeptMessages& operator=(const KeptMessages&) = delete;
    ~KeptMessages() { clear(); }

    /* Takes all messages of the queue. Returns false, without them, if they are too many. */
    bool take(rd_kafka_queue_t* queue) {
        Messages came;
        do {
            came.clear();
            came.take(queue, 0, std::min(AT_ONCE, ROWS - count_));
            for (int64_t i = 0; i < came.count(); i++) {
                rd_kafka_message_t* message = came.give(i);
                by_partition_[message->partition].push_back(message);
                bytes_ += size_of(message);
                count_++;
            }
        } while (!came.empty() && count_ < ROWS && bytes_ < BYTES);
        return came.empty();
    }

    /* Moves up to `most` messages of partitions that are not held to `out`. */
    void move(const std::unordered_set<int32_t>& held, int64_t most, Messages& out) {
        if (count_ == 0) return;
        for (auto& [partition, messages] : by_partition_) {
            if (held.count(partition)) continue;
            for (; most > 0 && !messages.empty(); most--) {
                out.add(messages.front());
                bytes_ -= size_of(messages.front());
                count_--;
                messages.pop_front();
            }
        }
    }

    void clear() {
        for (auto& [partition, messages] : by_partition_)
            for (rd_kafka_message_t* message : messages) client::message_destroy(message);
        by_partition_.clear();
        count_ = bytes_ = 0;
    }

  private:
    static constexpr int64_t ROWS = 200'000, BYTES = 128 << 20, AT_ONCE = 4096; /* twice the limit of our settings for fetching ahead */
    std::unordered_map<int32_t, std::deque<rd_kafka_message_t*>> by_partition_;
    int64_t count_ = 0, bytes_ = 0;

    static int64_t size_of(const rd_kafka_message_t* message) { return static_cast<int64_t>(message->len + message->key_len); }
};

/* The records of those partitions of one consumer that `follow` was called for. Methods may be called from any
   thread, without the GIL, and wait for each other. After `close` they do nothing. */
class RecordQueue {
  public:
    /* `later`: true if the column `headers` of `read` shall be null, and `headers` returns those of single records.
       To find out that a message has no headers the client makes a buffer, which takes a quarter of the time of all
       reading. */
    RecordQueue(rd_kafka_t* consumer, bool later) : consumer_(consumer), queue_(client::queue_new(consumer)), later_(later) {}
    RecordQueue(const RecordQueue&) = delete;
    RecordQueue& operator=(const RecordQueue&) = delete;
    ~RecordQueue() { close(); }

    /* Forwards the records of this partition to this queue, from its assignment on. Returns false if the client has
       no such queue, or this one is closed. */
    bool follow(const char* topic, int32_t partition) {
        std::lock_guard<std::mutex> lock(in_use_);
        topic_ = topic;
        return queue_ != nullptr && forward(partition, queue_);
    }

    /* Reads records. Returns their number, at most `most`; if there are none, waits up to `timeout_ms` for the first.
       OUT `out`, made only if there are records: a struct array with the columns payload, key, timestamp, partition,
       offset and headers; `next`: the offset after the last record of each partition; `events`: events of partitions.
       Throws bad_alloc, overflow_error. */
    int64_t read(int64_t most, int timeout_ms, ArrowArray* out, std::unordered_map<int32_t, int64_t>& next, std::vector<Event>& events) {
        std::lock_guard<std::mutex> lock(in_use_);
        if (queue_ == nullptr || most < 1) return 0;
        last_.clear();
        kept_.move(held_, most, last_);
        if (last_.empty()) last_.take(queue_, 0, most);
        if (last_.empty() && timeout_ms > 0 && !ending_) {
            last_.take(queue_, timeout_ms, 1);
            if (!last_.empty() && most > 1) last_.take(queue_, 0, most - 1);
        }
        return last_.empty() ? 0 : columns(out, next, events);
    }

    /* Makes `read` return no records of these partitions, and of all others again. Fetched records of held partitions
       are kept, and come when the partition is not held any more. Returns the newly held partitions that the client
       has to pause; the others stay in their own queues. Throws bad_alloc. */
    std::vector<int32_t> hold(const std::vector<int32_t>& partitions) {
        std::lock_guard<std::mutex> lock(in_use_);
        if (queue_ == nullptr) return {};
        const std::unordered_set<int32_t> before = std::exchange(held_, {partitions.begin(), partitions.end()});
        for (const int32_t each : std::vector<int32_t>(apart_.begin(), apart_.end()))
            if (!held_.count(each)) rejoin(each);
        std::vector<int32_t> fresh, paused;
        std::copy_if(partitions.begin(), partitions.end(), std::back_inserter(fresh), [&](int32_t each) { return !before.count(each); });
        for (const int32_t each : fresh)
            if (apart_.size() < APART && forward(each, nullptr))
                apart_.insert(each);
            else
                paused.push_back(each);
        if (fresh.empty() || kept_.take(queue_)) return paused;
        for (const int32_t each : fresh) /* records left in the queue disappear only if the client pauses the partition */
            if (apart_.count(each)) rejoin(each);
        return fresh;
    }

    /* Makes the column `headers` for `count` records of the last `read`, in any order; null for other records. Throws
       bad_alloc, overflow_error. */
    void headers(const int32_t* partitions, const int64_t* offsets, int64_t count, ArrowArray* out) {
        std::lock_guard<std::mutex> lock(in_use_);
        using Place = std::pair<int32_t, int64_t>;
        std::vector<std::pair<Place, const rd_kafka_message_t*>> there;
        for (int64_t i = 0; i < last_.count(); i++) {
            const rd_kafka_message_t* const message = last_[i];
            if (message != nullptr && !message->err) there.push_back({{message->partition, message->offset}, message});
        }
        std::sort(there.begin(), there.end());
        HeadersColumn column(count);
        for (int64_t i = 0; i < count; i++) {
            const Place place{partitions[i], offsets[i]};
            const auto found = std::lower_bound(there.begin(), there.end(), place, [](const auto& each, const Place& asked) { return each.first < asked; });
            if (found == there.end() || found->first != place)
                column.skip();
            else
                column.add(found->second);
        }
        column.give(out);
    }

    void close() {
        std::lock_guard<std::mutex> once(closing_);
        if (queue_ == nullptr) return;
        /* The yield ends one call of the client, which may be one that does not wait: its reader sees `ending_` before
           it waits. A reader that has looked already makes no other call before, so the yield is there for its wait. */
        ending_ = true;
        client::queue_yield(queue_);
        std::lock_guard<std::mutex> lock(in_use_);
        last_.clear();
        kept_.clear();
        client::queue_destroy(queue_);
        queue_ = nullptr;
    }

  private:
    rd_kafka_t* const consumer_; /* owned by the Python client, which outlives this object */
    rd_kafka_queue_t* queue_;    /* null once closed */
    std::mutex in_use_, closing_; /* only `close` changes `queue_`, and it holds both */
    std::atomic<bool> ending_{false};
    const bool later_;
    Messages last_; /* the last batch read; if headers are read later, they come from it until the next batch */
    std::string topic_;
    std::unordered_set<int32_t> held_;  /* partitions that are held */
    std::unordered_set<int32_t> apart_; /* held partitions that stay in their own queues, up to the client's limit for fetching ahead */
    KeptMessages kept_; /* older than the messages in the queue of the same partition */
    double bytes_per_row_ = 128; /* bytes of payload per row in the last batch */

    static constexpr size_t APART = 2; /* each may take as much memory as all partitions that are read take together */

    /* Forwards the records of a partition, with those in its queue, to `to`, or for null back to its own queue.
       Returns false if the partition has no queue. */
    bool forward(int32_t partition, rd_kafka_queue_t* to) {
        rd_kafka_queue_t* from = client::queue_get_partition(consumer_, topic_.c_str(), partition);
        if (from == nullptr) return false;
        client::queue_forward(from, to);
        client::queue_destroy(from);
        return true;
    }

    void rejoin(int32_t partition) {
        forward(partition, queue_);
        apart_.erase(partition);
    }

    int64_t columns(ArrowArray* out, std::unordered_map<int32_t, int64_t>& next, std::vector<Event>& events) {
        const int64_t most = last_.count();
        BytesColumn payloads(most, std::min<int64_t>(MAX_OFFSET / 2, static_cast<int64_t>(static_cast<double>(most) * bytes_per_row_)));
        BytesColumn keys(most, 0);
        NumberColumn<int64_t> timestamps(most), offsets(most);
        NumberColumn<int32_t> partitions(most);
        HeadersColumn headers(most);
        int64_t rows = 0;
        int32_t partition = -1;
        int64_t* behind = nullptr; /* the entry of `partition` in `next` */
        for (int64_t i = 0; i < most; i++) {
            last_.look_ahead(i);
            const rd_kafka_message_t* message = last_[i];
            if (message->err) {
                const char* text = client::message_errstr(message);
                events.push_back({message->err, message->partition, message->offset, text ? text : ""});
                continue;
            }
            payloads.add(message->payload, message->len);
            keys.add(message->key, message->key_len);
            timestamps.add(client::message_timestamp(message, nullptr));
            partitions.add(message->partition);
            offsets.add(message->offset);
            if (later_)
                headers.skip();
            else
                headers.add(message);
            if (behind == nullptr || message->partition != partition) {
                partition = message->partition;
                behind = &next[partition];
            }
            *behind = message->offset + 1;
            rows++;
            if (!later_) last_.drop(i);
        }
        if (rows == 0) return 0;
        bytes_per_row_ = static_cast<double>(payloads.bytes()) / static_cast<double>(rows) * 1.05;
        out->release = nullptr;
        try {
            make_array(out, rows, 1, 6);
            payloads.give(out->children[0]);
            keys.give(out->children[1]);
            timestamps.give(out->children[2]);
            partitions.give(out->children[3]);
            offsets.give(out->children[4]);
            headers.give(out->children[5]);
        } catch (...) {
            if (out->release) out->release(out);
            throw;
        }
        return rows;
    }
};

}  // namespace sabot
