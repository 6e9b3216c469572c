/* Access to a Python client without Python. `conf_init` is the entry point of a librdkafka plugin. A client that is
   made with this module in `plugin.library.paths` calls it, and then `client_made` is that client's handle. The
   Python client still owns the handle and runs all callbacks in its `poll`. */
#pragma once

#include <cstdio>
#include <memory>

#include "kafka/librdkafka.h"
#include "kafka/record_producer.h"

namespace sabot {

constexpr int CLIENT_FAILED = -196; /* RD_KAFKA_RESP_ERR__FAIL */
constexpr const char* PLUGIN = "sabot";

static thread_local rd_kafka_t* client_made = nullptr; /* the client that this thread has made last */

extern "C" {
static int note_delivery(rd_kafka_t*, rd_kafka_message_t* record, void* deliveries) {
    (*static_cast<std::shared_ptr<Deliveries>*>(deliveries))->tell(record);
    return 0;
}

static int forget_deliveries(rd_kafka_t*, void* deliveries) { /* the last interceptor that a client calls */
    delete static_cast<std::shared_ptr<Deliveries>*>(deliveries);
    return 0;
}

static int note_client(rd_kafka_t* made, const rd_kafka_conf_t*, void*, char*, size_t) {
    client_made = made;
    if (Deliveries::expected == nullptr) return 0;
    auto* deliveries = new (std::nothrow) std::shared_ptr<Deliveries>(*Deliveries::expected);
    if (deliveries == nullptr) return CLIENT_FAILED;
    client::interceptor_add_on_acknowledgement(made, PLUGIN, note_delivery, deliveries);
    return client::interceptor_add_on_destroy(made, PLUGIN, forget_deliveries, deliveries);
}
}

}  // namespace sabot

/* The entry point of the plugin, called while a client is configured. */
extern "C" __attribute__((visibility("default"), used)) inline int conf_init(rd_kafka_conf_t* conf, void**, char* errstr, size_t size) {
    using namespace sabot;
    if (client::conf_interceptor_add_on_new == nullptr) {
        std::snprintf(errstr, size, "this process has loaded another version of sabot's Kafka module; if its files were replaced, restart it");
        return CLIENT_FAILED;
    }
    /* Without this setting a delivered record stays in memory until Python polls. The Python client does not pass its
       own setting of this name on. */
    if (Deliveries::expected && client::conf_set(conf, "delivery.report.only.error", "true", errstr, size) != 0) return CLIENT_FAILED;
    return client::conf_interceptor_add_on_new(conf, PLUGIN, note_client, nullptr);
}
