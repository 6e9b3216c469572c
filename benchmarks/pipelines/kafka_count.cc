/* The bound of kafka_ingest.py: librdkafka's consumer, which counts records and bytes and does nothing else with them.

    kafka_count ADDRESS TOPIC PARTITIONS ROWS [NAME VALUE]...

Reads partitions 0 to PARTITIONS - 1 from their beginning until ROWS records have come. Prints rows, bytes of payload, seconds of wall
time from the first record, and of processor time, all of the reading only. Declares what it needs of librdkafka, whose header need not be installed. */
#include "bounds.h"

enum { BATCH = 16384, WAIT_MS = 10, QUIET_SECONDS = 120 };

int main(int argc, char** argv) {
    static rd_kafka_message_t* messages[BATCH];
    if (argc < 5) return 2;
    const int64_t wanted = atoll(argv[4]);

    rd_kafka_t* consumer = consumer_of(argc, argv);
    rd_kafka_queue_t* queue = rd_kafka_queue_get_consumer(consumer);
    const double cpu_before = cpu();
    assign(consumer, argv[2], atoi(argv[3]));

    int64_t rows = 0, bytes = 0;
    double began = now(), heard = began;
    while (rows < wanted && now() < heard + QUIET_SECONDS) {
        const ssize_t count = rd_kafka_consume_batch_queue(queue, WAIT_MS, messages, BATCH);
        if (rows == 0) began = now();
        for (ssize_t i = 0; i < count; i++) {
            if (messages[i]->err)
                fprintf(stderr, "%s\n", rd_kafka_message_errstr(messages[i]));
            else {
                rows++;
                bytes += static_cast<int64_t>(messages[i]->len);
            }
            rd_kafka_message_destroy(messages[i]);
        }
        if (count > 0) heard = now();
    }
    printf("{\"rows\": %" PRId64 ", \"bytes\": %" PRId64 ", \"seconds\": %.4f, \"cpu_seconds\": %.3f}\n", rows, bytes,
           now() - began, cpu() - cpu_before);
    rd_kafka_queue_destroy(queue);
    rd_kafka_consumer_close(consumer);
    rd_kafka_destroy(consumer);
    return rows == wanted ? 0 : 1;
}
