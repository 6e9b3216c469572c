/* What the bounds in C share: librdkafka's interface, linked when they are compiled; clocks; a client of settings that the command names.

The types and most functions are those that our kernel declares (sabot/_cython/kafka/librdkafka.h), so the header of librdkafka need not be
installed. */
#pragma once

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <sys/resource.h>

#include "kafka/librdkafka.h"

extern "C" {
struct rd_kafka_topic_partition_list_t;

#define BOUND_DECLARE(name, result, arguments) result rd_kafka_##name arguments;
SABOT_LIBRDKAFKA(BOUND_DECLARE)
#undef BOUND_DECLARE
rd_kafka_conf_t* rd_kafka_conf_new();
rd_kafka_t* rd_kafka_new(int type, rd_kafka_conf_t*, char* errstr, size_t size);
void rd_kafka_destroy(rd_kafka_t*);
int rd_kafka_poll(rd_kafka_t*, int timeout_ms);
int rd_kafka_flush(rd_kafka_t*, int timeout_ms);
int rd_kafka_poll_set_consumer(rd_kafka_t*);
rd_kafka_topic_partition_list_t* rd_kafka_topic_partition_list_new(int size);
void* rd_kafka_topic_partition_list_add(rd_kafka_topic_partition_list_t*, const char* topic, int32_t partition);
int rd_kafka_topic_partition_list_set_offset(rd_kafka_topic_partition_list_t*, const char*, int32_t, int64_t offset);
void rd_kafka_topic_partition_list_destroy(rd_kafka_topic_partition_list_t*);
int rd_kafka_assign(rd_kafka_t*, const rd_kafka_topic_partition_list_t*);
rd_kafka_queue_t* rd_kafka_queue_get_consumer(rd_kafka_t*);
int rd_kafka_consumer_close(rd_kafka_t*);
}

enum { PRODUCER = 0, CONSUMER = 1 };

static double now() {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return static_cast<double>(at.tv_sec) + static_cast<double>(at.tv_nsec) * 1e-9;
}

static double cpu() {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return static_cast<double>(used.ru_utime.tv_sec + used.ru_stime.tv_sec)
        + static_cast<double>(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
}

static void set(rd_kafka_conf_t* conf, const char* name, const char* value) {
    char why[512];
    if (rd_kafka_conf_set(conf, name, value, why, sizeof why)) {
        fprintf(stderr, "%s: %s\n", name, why);
        exit(1);
    }
}

/* With the names and values that the arguments from the fifth on are. It ends the program where there is none. */
static rd_kafka_t* client(int type, rd_kafka_conf_t* conf, int argc, char** argv) {
    char why[512];
    set(conf, "bootstrap.servers", argv[1]);
    for (int i = 5; i + 1 < argc; i += 2) set(conf, argv[i], argv[i + 1]);
    rd_kafka_t* made = rd_kafka_new(type, conf, why, sizeof why);
    if (!made) {
        fprintf(stderr, "%s\n", why);
        exit(1);
    }
    return made;
}

/* A consumer without partitions. */
[[maybe_unused]] static rd_kafka_t* consumer_of(int argc, char** argv) {
    rd_kafka_conf_t* conf = rd_kafka_conf_new();
    set(conf, "group.id", "bound");
    set(conf, "enable.auto.commit", "false");
    rd_kafka_t* consumer = client(CONSUMER, conf, argc, argv);
    rd_kafka_poll_set_consumer(consumer);
    return consumer;
}

/* It reads partitions 0 to `partitions` - 1 from their beginning. */
[[maybe_unused]] static void assign(rd_kafka_t* consumer, const char* topic, int partitions) {
    rd_kafka_topic_partition_list_t* places = rd_kafka_topic_partition_list_new(partitions);
    for (int i = 0; i < partitions; i++) {
        rd_kafka_topic_partition_list_add(places, topic, i);
        rd_kafka_topic_partition_list_set_offset(places, topic, i, 0);
    }
    rd_kafka_assign(consumer, places);
    rd_kafka_topic_partition_list_destroy(places);
}
