/* The bound of the latencies of kafka_ingest.py: librdkafka's consumer and producer pass the records of one topic on into another.

    kafka_relay ADDRESS TOPIC OUT PARTITIONS [NAME VALUE]...

Reads partitions 0 to PARTITIONS - 1 of TOPIC from their beginning and gives each record to OUT, without looking into it, until the standard
input ends. Prints "ready" when it reads. Each setting goes to the client whose it is; the other one leaves it aside. */
#include <atomic>
#include <thread>
#include <vector>

#include "bounds.h"

enum { RKT = 2, VALUE = 4, KEY = 5, MSGFLAGS = 7, COPY = 2, QUEUE_FULL = -184, BATCH = 16384, WAIT_MS = 100, FLUSH_MS = 10000 };

/* Gives a record to the producer, which copies it. */
static void pass_on(rd_kafka_t* producer, rd_kafka_topic_t* topic, const rd_kafka_message_t* message) {
    rd_kafka_vu_t fields[4];
    fields[0].vtype = RKT;
    fields[0].u.rkt = topic;
    fields[1].vtype = MSGFLAGS;
    fields[1].u.i = COPY;
    fields[2].vtype = VALUE;
    fields[2].u.mem = {message->payload, message->len};
    fields[3].vtype = KEY;
    fields[3].u.mem = {message->key, message->key_len};
    while (rd_kafka_error_t* error = rd_kafka_produceva(producer, fields, 4)) {
        if (rd_kafka_error_code(error) != QUEUE_FULL) {
            fprintf(stderr, "%s\n", rd_kafka_error_string(error));
            exit(1);
        }
        rd_kafka_error_destroy(error);
        rd_kafka_poll(producer, 1);
    }
}

int main(int argc, char** argv) {
    if (argc < 5) return 2;
    rd_kafka_t* producer = client(PRODUCER, rd_kafka_conf_new(), argc, argv);
    rd_kafka_topic_t* out = rd_kafka_topic_new(producer, argv[3], nullptr);
    rd_kafka_t* consumer = consumer_of(argc, argv);
    assign(consumer, argv[2], atoi(argv[4]));
    rd_kafka_queue_t* queue = rd_kafka_queue_get_consumer(consumer);
    printf("ready\n");
    fflush(stdout);

    std::atomic<bool> ended{false};
    std::thread input([&] {
        while (getchar() != EOF) {}
        ended = true;
    });
    std::vector<rd_kafka_message_t*> messages(BATCH);
    while (!ended) {
        /* A wait for more than one record would last until so many have come. */
        ssize_t count = rd_kafka_consume_batch_queue(queue, 0, messages.data(), BATCH);
        if (count <= 0) count = rd_kafka_consume_batch_queue(queue, WAIT_MS, messages.data(), 1);
        for (ssize_t i = 0; i < count; i++) {
            rd_kafka_message_t* message = messages[static_cast<size_t>(i)];
            if (message->err)
                fprintf(stderr, "%s\n", rd_kafka_message_errstr(message));
            else
                pass_on(producer, out, message);
            rd_kafka_message_destroy(message);
        }
        rd_kafka_poll(producer, 0);
    }
    input.join();
    const int left = rd_kafka_flush(producer, FLUSH_MS);
    rd_kafka_queue_destroy(queue);
    rd_kafka_consumer_close(consumer);
    rd_kafka_destroy(consumer);
    rd_kafka_topic_destroy(out);
    rd_kafka_destroy(producer);
    return left == 0 ? 0 : 1;
}
