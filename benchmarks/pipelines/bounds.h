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
