/* The used part of librdkafka's C interface, declared here and resolved at run time.

   `load` finds the functions in the library that the loaded Python client uses (from its wheel or from the system),
   so that the process has one librdkafka. All declarations are of the stable, public interface (rdkafka.h; the
   structs have not changed since 0.9, `rd_kafka_vu_t` not since it was added in 1.6). */
#pragma once

#include <dlfcn.h>
#include <sys/types.h>

#include <cstdint>
#include <string>

extern "C" {
struct rd_kafka_t;
struct rd_kafka_conf_t;
struct rd_kafka_topic_t;
struct rd_kafka_topic_conf_t;
struct rd_kafka_queue_t;
struct rd_kafka_headers_t;
struct rd_kafka_error_t;

struct rd_kafka_message_t {
    int err; /* if not 0: an event of the partition, whose text is `payload`, or a record that was not delivered */
    rd_kafka_topic_t* rkt;
    int32_t partition;
    void* payload; /* null for a tombstone */
    size_t len;
    void* key; /* null if there is no key */
    size_t key_len;
    int64_t offset;
    void* _private;
};

struct rd_kafka_vu_t { /* a field of a produced record */
    int vtype;
    union {
        rd_kafka_topic_t* rkt;
        int i;
        int64_t i64;
        struct {
            void* ptr;
            size_t size;
        } mem;
        rd_kafka_headers_t* headers;
        char pad[64];
    } u;
};

typedef int rd_kafka_on_new(rd_kafka_t*, const rd_kafka_conf_t*, void* opaque, char* errstr, size_t size);
typedef int rd_kafka_on_destroy(rd_kafka_t*, void* opaque);
typedef int rd_kafka_on_acknowledgement(rd_kafka_t*, rd_kafka_message_t*, void* opaque);
}

namespace sabot {

/* The name of each function without rd_kafka_, and its type. */
#define SABOT_LIBRDKAFKA(F) \
    F(version_str, const char*, (void)) \
    F(last_error, int, (void)) \
    F(err2str, const char*, (int error)) \
    F(conf_set, int, (rd_kafka_conf_t*, const char* name, const char* value, char* errstr, size_t size)) \
    F(conf_interceptor_add_on_new, int, (rd_kafka_conf_t*, const char* name, rd_kafka_on_new*, void* opaque)) \
    F(interceptor_add_on_destroy, int, (rd_kafka_t*, const char* name, rd_kafka_on_destroy*, void* opaque)) \
    F(interceptor_add_on_acknowledgement, int, (rd_kafka_t*, const char* name, rd_kafka_on_acknowledgement*, void* opaque)) \
    F(queue_new, rd_kafka_queue_t*, (rd_kafka_t*)) \
    F(queue_destroy, void, (rd_kafka_queue_t*)) \
    F(queue_get_partition, rd_kafka_queue_t*, (rd_kafka_t*, const char* topic, int32_t partition)) \
    F(queue_forward, void, (rd_kafka_queue_t* from, rd_kafka_queue_t* to)) \
    F(queue_yield, void, (rd_kafka_queue_t*)) \
    F(consume_batch_queue, ssize_t, (rd_kafka_queue_t*, int timeout_ms, rd_kafka_message_t**, size_t size)) \
    F(message_destroy, void, (rd_kafka_message_t*)) \
    F(message_errstr, const char*, (const rd_kafka_message_t*)) \
    F(message_timestamp, int64_t, (const rd_kafka_message_t*, int* type)) \
    F(message_headers, int, (const rd_kafka_message_t*, rd_kafka_headers_t**)) \
    F(header_get_all, int, (const rd_kafka_headers_t*, size_t, const char** name, const void** value, size_t* size)) \
    F(topic_new, rd_kafka_topic_t*, (rd_kafka_t*, const char* name, rd_kafka_topic_conf_t*)) \
    F(topic_destroy, void, (rd_kafka_topic_t*)) \
    F(headers_new, rd_kafka_headers_t*, (size_t likely)) \
    F(headers_destroy, void, (rd_kafka_headers_t*)) \
    F(header_add, int, (rd_kafka_headers_t*, const char* name, ssize_t name_size, const void* value, ssize_t size)) \
    F(produceva, rd_kafka_error_t*, (rd_kafka_t*, const rd_kafka_vu_t*, size_t count)) \
    F(error_code, int, (const rd_kafka_error_t*)) \
    F(error_string, const char*, (const rd_kafka_error_t*)) \
    F(error_destroy, void, (rd_kafka_error_t*))

namespace client {
#define SABOT_DECLARE(name, result, arguments) static result(*name) arguments = nullptr;
SABOT_LIBRDKAFKA(SABOT_DECLARE)
#undef SABOT_DECLARE
}  // namespace client

/* Resolves the functions in the loaded shared object `path` and in the libraries that it needs. Returns "" or an
   error text. */
static std::string load(const char* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (library == nullptr) return "it is not loaded";
#define SABOT_CHECK(name, result, arguments) \
    if (dlsym(library, "rd_kafka_" #name) == nullptr) return "no rd_kafka_" #name " in it or in the libraries it needs";
    SABOT_LIBRDKAFKA(SABOT_CHECK)
#undef SABOT_CHECK
#define SABOT_RESOLVE(name, result, arguments) \
    client::name = reinterpret_cast<result(*) arguments>(dlsym(library, "rd_kafka_" #name));
    SABOT_LIBRDKAFKA(SABOT_RESOLVE)
#undef SABOT_RESOLVE
    return ""; /* the library stays loaded until the process ends */
}

}  // namespace sabot
