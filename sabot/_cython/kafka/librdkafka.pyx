"""Reads a consumer's records into columns, without a Python object per record. See librdkafka.pyi for the contract; the loop is in librdkafka.h.

One call without the GIL takes a batch of messages from the client, copies them into the buffers of columns, and gives the messages back.
"""

cimport cython
from libc.stdint cimport int32_t, int64_t, uintptr_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

import pyarrow as pa

from sabot._cython.arrow.c_data cimport ArrowArray

from sabot.errors import UserError

__all__ = ["PLUGINS", "RecordQueue", "load_client"]

PLUGINS = "plugin.library.paths"


cdef extern from "kafka/librdkafka.h" nogil:
    cppclass rd_kafka_t:
        pass

cdef extern from "kafka/librdkafka.h" namespace "sabot" nogil:
    string c_load "sabot::load" (const char* path) except +
    const char* version_str "sabot::client::version_str" ()
    rd_kafka_t* client_made

    cppclass Event:
        int code
        int32_t partition
        int64_t offset
        string text

    cppclass Queue "sabot::RecordQueue":
        Queue(rd_kafka_t* consumer) except +
        cbool follow(const char* topic, int32_t partition)
        int64_t read(
            int64_t most, int timeout_ms, ArrowArray* out, unordered_map[int32_t, int64_t]& next, vector[Event]& events
        ) except +
        void close()


def load_client(str library not None):
    """Finds librdkafka's functions through a loaded shared object that uses them. Returns librdkafka's version; raises UserError."""
    missing = c_load(library.encode()).decode()
    if missing:
        raise UserError(
            f"librdkafka is not found through {library}: {missing}",
            hint="install confluent-kafka as a wheel (pip install --only-binary=:all: confluent-kafka), or with a librdkafka of at least 2.6",
        )
    return version_str().decode()


@cython.no_gc_clear  # else the collector could take `client` away first, and the client must outlive the queue
cdef class RecordQueue:
    cdef Queue* queue
    cdef readonly object client
    cdef object schema

    def __init__(self, make, schema, dict conf not None):
        global client_made
        if self.queue != NULL:
            raise TypeError("a RecordQueue is made once")
        theirs = conf.get(PLUGINS)
        client_made = NULL
        self.client = make({**conf, PLUGINS: f"{theirs};{__file__}" if theirs else __file__})
        if client_made == NULL:
            raise UserError("the Kafka client has not loaded sabot's plugin", hint="is it made by confluent_kafka, of at least 2.6?")
        self.schema = schema
        self.queue = new Queue(client_made)

    def __dealloc__(self):
        del self.queue

    def follow(self, str topic not None, partitions):
        cdef bytes name = topic.encode()
        for partition in partitions:
            if self.queue == NULL or not self.queue.follow(name, partition):
                raise UserError(f"{topic}[{partition}]: the Kafka client has no queue of it", hint="is the source closed?")

    def read(self, int64_t max_rows, double seconds):
        cdef ArrowArray out
        cdef unordered_map[int32_t, int64_t] next
        cdef vector[Event] events
        cdef int64_t rows
        cdef int timeout_ms = <int> (seconds * 1000 + 0.999)
        if self.queue == NULL:
            return None, {}, []
        try:
            with nogil:
                rows = self.queue.read(max_rows, timeout_ms, &out, next, events)
        except OverflowError as error:
            raise UserError(str(error), hint="make the batches smaller") from None
        data = pa.RecordBatch._import_from_c(<uintptr_t> &out, self.schema) if rows else None
        told = [(events[i].code, events[i].text.decode(errors="replace"), events[i].partition, events[i].offset) for i in range(events.size())]
        return data, dict(next), told

    def close(self):
        if self.queue != NULL:
            with nogil:
                self.queue.close()
