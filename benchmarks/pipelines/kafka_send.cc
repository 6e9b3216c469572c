/* The bound of kafka_produce.py: librdkafka's producer, fed from memory.

    kafka_send ADDRESS TOPIC FILE TIMES [NAME VALUE]...

FILE has records: the sizes of key and payload as two int32, then their bytes. It is read first; then its records are produced TIMES times,
each with the time of the first, and flushed. Prints rows, seconds of wall time and of processor time, all of the producing only. */
#include <cstring>
#include <string>

#include "bounds.h"

enum { RKT = 2, VALUE = 4, KEY = 5, MSGFLAGS = 7, TIMESTAMP = 8, COPY = 2, QUEUE_FULL = -184, QUIET_SECONDS = 60 };

static std::string read_all(const char* path) {
    std::string content;
    FILE* file = fopen(path, "rb");
    char block[1 << 16];
    for (size_t count; file && (count = fread(block, 1, sizeof block, file)) > 0;) content.append(block, count);
    if (file) fclose(file);
    return content;
}

int main(int argc, char** argv) {
    if (argc < 5) return 2;
    std::string records = read_all(argv[3]);
    const int times = atoi(argv[4]);
    rd_kafka_t* producer = client(PRODUCER, rd_kafka_conf_new(), argc, argv);
    rd_kafka_topic_t* topic = rd_kafka_topic_new(producer, argv[2], nullptr);
    rd_kafka_vu_t fields[5];
    fields[0].vtype = RKT;
    fields[0].u.rkt = topic;
    fields[1].vtype = MSGFLAGS;
    fields[1].u.i = COPY;
    fields[2].vtype = VALUE;
    fields[3].vtype = KEY;
    fields[4].vtype = TIMESTAMP;
    fields[4].u.i64 = static_cast<int64_t>(time(nullptr)) * 1000;

    const double began = now(), cpu_before = cpu();
    int64_t rows = 0;
    for (int round = 0; round < times; round++) {
        for (char* at = &records[0]; at < &records[0] + records.size(); rows++) {
            int32_t sizes[2];
            memcpy(sizes, at, sizeof sizes);
            char* key = at + sizeof sizes;
            char* payload = key + sizes[0];
            at = payload + sizes[1];
            fields[2].u.mem = {payload, static_cast<size_t>(sizes[1])};
            fields[3].u.mem = {key, static_cast<size_t>(sizes[0])};
            while (rd_kafka_error_t* error = rd_kafka_produceva(producer, fields, 5)) {
                if (rd_kafka_error_code(error) != QUEUE_FULL) {
                    fprintf(stderr, "%s\n", rd_kafka_error_string(error));
                    return 1;
                }
                rd_kafka_error_destroy(error);
                rd_kafka_poll(producer, 1);
            }
        }
    }
    const int left = rd_kafka_flush(producer, QUIET_SECONDS * 1000);
    printf("{\"rows\": %" PRId64 ", \"seconds\": %.4f, \"cpu_seconds\": %.3f}\n", rows, now() - began, cpu() - cpu_before);
    rd_kafka_topic_destroy(topic);
    rd_kafka_destroy(producer);
    return left == 0 ? 0 : 1;
}
