/* Sends records from columns through a producer, and counts their deliveries.

   `RecordProducer::put` passes rows to the client, which copies them. It passes the rows of one partition together.
   The client keeps a list of records per partition and walks each list several times; if neighbours of a list are not
   neighbours in memory, these walks wait for memory (1 M records with keys to 4 partitions took 2.3 CPU s in the
   order of the batch, and 0.9 grouped).

   A delivered record only increments a count; of the records that were not delivered, `Deliveries` keeps the first.
   Both come from an interceptor, which the client calls in its own threads for each record that is acknowledged or
   given up. The client's delivery reports are not used: they would wait in a queue for Python's `poll`, where the
   Python client takes the pointer that a record carries for an object of its own. So our records carry no pointer. */
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "arrow/arrow_c.h"
#include "arrow/column.h"
#include "kafka/librdkafka.h"

namespace sabot {

constexpr int QUEUE_FULL = -184; /* RD_KAFKA_RESP_ERR__QUEUE_FULL */
constexpr int COPY = 2;          /* RD_KAFKA_MSG_F_COPY */
constexpr int64_t NOBODY = INT64_MAX;
/* rows are grouped in blocks of so many, which bounds the rows that are sent again after a full queue */
constexpr int64_t GROUPED_ROWS = 16384;
constexpr int64_t HEADER_LENGTHS = 10; /* the most bytes that the lengths of a header's name and value take */
enum Vtype { VTYPE_RKT = 2, VTYPE_VALUE = 4, VTYPE_KEY = 5, VTYPE_MSGFLAGS = 7, VTYPE_TIMESTAMP = 8, VTYPE_HEADERS = 10 };

/* The rows of a batch with the columns payload, key, timestamp, partition, offset and headers, of which partition and
   offset are not read. Owns no memory: the structs must live as long as it is used. */
class Records {
  public:
    Records() = default;
    Records(const ArrowSchema* schema, const ArrowArray* array)
        : length(array->length), payloads_(column(schema, array, 0)), keys_(column(schema, array, 1)), timestamps_(column(schema, array, 2)),
          headers_(column(schema, array, 5)) {
        const ArrowSchema* pairs_schema = schema->children[5]->children[0];
        const ArrowArray* lists = array->children[5];
        const ArrowArray* pairs = lists->children[0];
        bounds_ = lists->n_buffers > 1 ? static_cast<const int32_t*>(lists->buffers[1]) : nullptr;
        names_ = view_of(pairs_schema->children[0], pairs->children[0], pairs->offset, pairs->length);
        values_ = view_of(pairs_schema->children[1], pairs->children[1], pairs->offset, pairs->length);
    }

    /* Returns true if a batch has columns of these types. */
    static bool fits(const ArrowSchema* schema) {
        static const char* const formats[] = {"z", "z", "l", "i", "l", "+l"};
        if (schema->n_children != 6) return false;
        for (int i = 0; i < 6; i++)
            if (!is(schema->children[i], formats[i])) return false;
        const ArrowSchema* pairs = schema->children[5]->children[0];
        return is(pairs, "+s") && pairs->n_children == 2 && is(pairs->children[0], "u") && is(pairs->children[1], "z");
    }

    int64_t length = 0; /* rows */

    /* Return null for no payload or key; never null for an empty one. */
    void* payload(int64_t row, size_t* size) const { return bytes(payloads_, row, size); }
    void* key(int64_t row, size_t* size) const { return bytes(keys_, row, size); }

    /* Returns milliseconds since 1970, or 0 for null; the client replaces 0 by the current time. */
    int64_t timestamp(int64_t row) const { return timestamps_.valid(row) ? timestamps_.int64s()[row] : 0; }

    /* Returns the headers of a row, owned by the caller, or null if it has none. */
    rd_kafka_headers_t* headers(int64_t row) const {
        const Range range = entries(row);
        if (range.first == range.end) return nullptr;
        rd_kafka_headers_t* made = client::headers_new(static_cast<size_t>(range.end - range.first));
        for (int64_t entry = range.first; entry < range.end; entry++) {
            size_t name_size, size;
            const void* name = bytes(names_, entry, &name_size);
            const void* value = bytes(values_, entry, &size);
            client::header_add(made, name ? static_cast<const char*>(name) : "", static_cast<ssize_t>(name_size), value, static_cast<ssize_t>(size));
        }
        return made;
    }

    /* Returns the bytes of a row's payload, key and headers, including the lengths of headers. */
    int64_t size(int64_t row) const {
        size_t payload_size, key_size;
        payload(row, &payload_size);
        key(row, &key_size);
        int64_t total = static_cast<int64_t>(payload_size + key_size);
        const Range range = entries(row);
        for (int64_t entry = range.first; entry < range.end; entry++) {
            size_t name_size, value_size;
            bytes(names_, entry, &name_size);
            bytes(values_, entry, &value_size);
            total += static_cast<int64_t>(name_size + value_size) + HEADER_LENGTHS;
        }
        return total;
    }

    /* Finds the rows above `limit` bytes. OUT rows, and sizes: the bytes of each. */
    void above(int64_t limit, std::vector<int64_t>& rows, std::vector<int64_t>& sizes) const {
        for (int64_t row = 0; row < length; row++) {
            const int64_t bytes = size(row);
            if (bytes <= limit) continue;
            rows.push_back(row);
            sizes.push_back(bytes);
        }
    }

  private:
    struct Range {
        int64_t first, end;
    };

    View payloads_, keys_, timestamps_, headers_, names_, values_;
    const int32_t* bounds_ = nullptr; /* the index of the first header of each row; null if there are no rows */

    static bool is(const ArrowSchema* schema, const char* format) {
        return schema->dictionary == nullptr && std::strcmp(schema->format, format) == 0;
    }

    static View column(const ArrowSchema* schema, const ArrowArray* array, int index) {
        return view_of(schema->children[index], array->children[index], array->offset, array->length);
    }

    static void* bytes(const View& column, int64_t row, size_t* size) {
        *size = 0;
        if (!column.valid(row)) return nullptr;
        int64_t count;
        const uint8_t* data = column.bytes_at(row, &count);
        *size = static_cast<size_t>(count);
        return const_cast<uint8_t*>(data);
    }

    Range entries(int64_t row) const {
        if (bounds_ == nullptr || !headers_.valid(row)) return {0, 0};
        const int32_t* bound = bounds_ + headers_.start + row;
        return {bound[0], bound[1]};
    }
};

/* The hash of a key by which Kafka's Java clients, and librdkafka with `murmur2` or `murmur2_random`, choose its
   partition. Source: Austin Appleby, MurmurHash2, with the seed 0x9747b28c. */
static inline uint32_t murmur2(const uint8_t* data, size_t size) {
    constexpr uint32_t factor = 0x5bd1e995;
    uint32_t mixed = 0x9747b28c ^ static_cast<uint32_t>(size);
    for (; size >= 4; data += 4, size -= 4) {
        uint32_t word = data[0] | data[1] << 8 | data[2] << 16 | static_cast<uint32_t>(data[3]) << 24;
        word *= factor;
        word ^= word >> 24;
        mixed = mixed * factor ^ word * factor;
    }
    if (size > 2) mixed ^= static_cast<uint32_t>(data[2] << 16);
    if (size > 1) mixed ^= static_cast<uint32_t>(data[1] << 8);
    if (size > 0) mixed = (mixed ^ data[0]) * factor;
    mixed ^= mixed >> 13;
    mixed *= factor;
    return mixed ^ mixed >> 15;
}

/* Groups the rows of a block by partition and keeps their order inside each. Rows without a key, whose partition the
   client chooses, come last. Reused for block after block. Throws bad_alloc. */
class Grouping {
  public:
    explicit Grouping(int32_t partitions) : partitions_(partitions) {}

    /* Returns the order of rows [begin, end), counted from `begin`, or null for the order in which they are. */
    const int32_t* group(const Records& records, int64_t begin, int64_t end) {
        if (partitions_ < 2) return nullptr;
        const size_t count = static_cast<size_t>(end - begin);
        groups_.resize(count);
        order_.resize(count);
        starts_.assign(static_cast<size_t>(partitions_) + 2, 0);
        for (size_t i = 0; i < count; i++) {
            size_t size;
            const void* key = records.key(begin + static_cast<int64_t>(i), &size);
            const uint32_t hash = key ? murmur2(static_cast<const uint8_t*>(key), size) & 0x7fffffff : 0;
            groups_[i] = key ? static_cast<int32_t>(hash % static_cast<uint32_t>(partitions_)) : partitions_;
            starts_[static_cast<size_t>(groups_[i]) + 1]++;
        }
        for (size_t group = 1; group < starts_.size(); group++) starts_[group] += starts_[group - 1];
        for (size_t i = 0; i < count; i++) order_[static_cast<size_t>(starts_[static_cast<size_t>(groups_[i])]++)] = static_cast<int32_t>(i);
        return order_.data();
    }

  private:
    const int32_t partitions_;
    std::vector<int32_t> groups_, starts_, order_;
};

struct Refusal { /* a record that was not delivered */
    static constexpr size_t KEY_BYTES = 64;
    int code = 0; /* the code of the client's error, or 0 */
    int32_t partition = -1; /* -1 if none was chosen yet */
    int64_t size = 0; /* bytes of payload and key */
    bool keyed = false;
    size_t key_size = 0;     /* the number of bytes in `key` */
    char key[KEY_BYTES] = {}; /* its first bytes */
};

/* The deliveries of one client, which reports them in its own threads. Owned by the client and the RecordProducer
   together. All methods may be called from any thread. */
class Deliveries {
  public:
    /* The deliveries of the client that this thread is making; null if it makes no client with deliveries. */
    static inline thread_local std::shared_ptr<Deliveries>* expected = nullptr;

    void gave(int64_t records) { given_ += records; }

    void tell(const rd_kafka_message_t* record) {
        if (record->err) refuse(record);
        if (++done_ < goal_) return;
        std::lock_guard<std::mutex> lock(mutex_);
        goal_ = NOBODY;
        advanced_.notify_all();
    }

    /* Waits until a quarter of the records in flight has been delivered or given up, or for `timeout_ms`. Returns at
       once if none are in flight. */
    void wait(int timeout_ms) {
        std::unique_lock<std::mutex> lock(mutex_);
        const int64_t done = done_, goal = done + (given_ - done + 3) / 4;
        goal_ = goal;
        advanced_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return done_ >= goal; });
        goal_ = NOBODY;
    }

    /* Returns the number of records that were refused since the last call. OUT first: the first of them, if there is
       one. */
    int64_t refused(Refusal& first) {
        std::lock_guard<std::mutex> lock(mutex_);
        first = first_;
        const int64_t count = refused_;
        refused_ = 0;
        return count;
    }

  private:
    std::atomic<int64_t> given_{0}, done_{0}; /* records taken by the client; those of them that were delivered or refused */
    std::atomic<int64_t> goal_{NOBODY};       /* the value of `done_` that a thread waits for */
    std::mutex mutex_;                        /* guards the following fields */
    std::condition_variable advanced_;
    int64_t refused_ = 0;
    Refusal first_;

    void refuse(const rd_kafka_message_t* record) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (refused_++) return;
        first_.code = record->err;
        first_.partition = record->partition;
        first_.size = static_cast<int64_t>(record->len + record->key_len);
        first_.keyed = record->key != nullptr;
        first_.key_size = std::min(record->key_len, Refusal::KEY_BYTES);
        if (first_.key_size) std::memcpy(first_.key, record->key, first_.key_size);
    }
};

struct Fault { /* why a row was not taken */
    int code = 0; /* the code of the client's error, or 0 if its queue is full */
    std::string text;
};

/* Sends records to one topic of one producer, which gets all its records from here. Methods may be called from any
   thread, without the GIL. */
class RecordProducer {
  public:
    RecordProducer(rd_kafka_t* producer, std::shared_ptr<Deliveries> deliveries, const char* topic, int32_t partitions)
        : deliveries(std::move(deliveries)), producer_(producer), topic_(client::topic_new(producer, topic, nullptr)), partitions_(partitions) {}
    RecordProducer(const RecordProducer&) = delete;
    RecordProducer& operator=(const RecordProducer&) = delete;
    ~RecordProducer() {
        if (topic_) client::topic_destroy(topic_);
    }

    const std::shared_ptr<Deliveries> deliveries;

    /* Returns false if the client refuses this name of a topic. */
    bool ready() const { return topic_ != nullptr; }

    /* Passes the rows to the client, which copies them, except the `taken` rows that earlier calls for this batch
       passed. Returns how many rows it has then. If these are not all, `fault` says why it refused the next row.
       Throws bad_alloc. */
    int64_t put(const Records& records, int64_t taken, Fault& fault) {
        Grouping grouping(partitions_);
        Fields fields(topic_);
        const int64_t before = taken;
        bool takes = true;
        while (takes && taken < records.length) {
            const int64_t begin = taken - taken % GROUPED_ROWS, end = std::min(begin + GROUPED_ROWS, records.length);
            const int32_t* order = grouping.group(records, begin, end);
            while (takes && taken < end) {
                takes = give(records, order ? begin + order[taken - begin] : taken, fields, fault);
                taken += takes;
            }
        }
        deliveries->gave(taken - before);
        return taken;
    }

  private:
    struct Fields { /* the fields of a record for the client */
        rd_kafka_vu_t all[6];
        rd_kafka_vu_t &payload = all[2], &key = all[3], &timestamp = all[4], &headers = all[5];

        explicit Fields(rd_kafka_topic_t* topic) {
            all[0].vtype = VTYPE_RKT;
            all[0].u.rkt = topic;
            all[1].vtype = VTYPE_MSGFLAGS;
            all[1].u.i = COPY;
            payload.vtype = VTYPE_VALUE;
            key.vtype = VTYPE_KEY;
            timestamp.vtype = VTYPE_TIMESTAMP;
            headers.vtype = VTYPE_HEADERS;
        }
    };

    rd_kafka_t* const producer_; /* owned by the Python client, which outlives this object */
    rd_kafka_topic_t* const topic_;
    const int32_t partitions_; /* the number of partitions by which rows are grouped */

    /* Passes one row to the client. Returns false if the client does not take it. */
    bool give(const Records& records, int64_t row, Fields& fields, Fault& fault) {
        fields.payload.u.mem.ptr = records.payload(row, &fields.payload.u.mem.size);
        fields.key.u.mem.ptr = records.key(row, &fields.key.u.mem.size);
        fields.timestamp.u.i64 = records.timestamp(row);
        rd_kafka_headers_t* headers = fields.headers.u.headers = records.headers(row);
        rd_kafka_error_t* error = client::produceva(producer_, fields.all, headers ? 6 : 5);
        if (error == nullptr) return true;
        if (headers) client::headers_destroy(headers); /* the client owns them only if it takes the record */
        const int code = client::error_code(error);
        if (code != QUEUE_FULL) {
            fault.code = code;
            fault.text = client::error_string(error);
        }
        client::error_destroy(error);
        return false;
    }
};

}  // namespace sabot
