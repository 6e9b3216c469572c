"""Reads a consumer's records into columns, and sends records from columns through a producer, without a Python object
per record.

See librdkafka.pyi for the contracts. The loops are in record_queue.h and record_producer.h, the access to a Python
client is in plugin.h. Each call releases the GIL once per batch.
"""

cimport cython
from libc.stdint cimport int32_t, int64_t, uintptr_t
from libcpp cimport bool as cbool
from libcpp.memory cimport make_shared, shared_ptr
from libcpp.string cimport string
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

import pyarrow as pa

from sabot._cython.arrow.c_data cimport ArrowArray, ArrowSchema, array_of, schema_of

from sabot.errors import UserError

__all__ = ["PLUGINS", "RecordProducer", "RecordQueue", "load_client", "rows_above"]

PLUGINS = "plugin.library.paths"


cdef extern from "kafka/librdkafka.h" nogil:
    cppclass rd_kafka_t:
        pass

cdef extern from "kafka/librdkafka.h" namespace "sabot" nogil:
    string c_load "sabot::load" (const char* path) except +
    const char* version_str "sabot::client::version_str" ()
    int last_error "sabot::client::last_error" ()
    const char* err2str "sabot::client::err2str" (int error)

cdef extern from "kafka/record_queue.h" namespace "sabot" nogil:
    cppclass Event:
        int code
        int32_t partition
        int64_t offset
        string text

    cppclass Queue "sabot::RecordQueue":
        Queue(rd_kafka_t* consumer, cbool later) except +
        cbool follow(const char* topic, int32_t partition)
        int64_t read(
            int64_t most, int timeout_ms, ArrowArray* out, unordered_map[int32_t, int64_t]& next, vector[Event]& events
        ) except +
        vector[int32_t] hold(const vector[int32_t]& partitions) except +
        void headers(const int32_t* partitions, const int64_t* offsets, int64_t count, ArrowArray* out) except +
        void close()

cdef extern from "kafka/record_producer.h" namespace "sabot" nogil:
    cppclass Records:
        int64_t length
        Records()
        Records(const ArrowSchema* schema, const ArrowArray* array)
        @staticmethod
        cbool fits(const ArrowSchema* schema)
        void above(int64_t limit, vector[int64_t]& rows, vector[int64_t]& sizes) except +

    cppclass Refusal:
        int code
        int32_t partition
        int64_t size
        cbool keyed
        size_t key_size
        char* key

    cppclass Deliveries:
        void wait(int timeout_ms)
        int64_t refused(Refusal& first)

    shared_ptr[Deliveries]* deliveries_expected "sabot::Deliveries::expected"

    cppclass Fault:
        int code
        string text

    cppclass Producer "sabot::RecordProducer":
        Producer(rd_kafka_t* producer, shared_ptr[Deliveries] deliveries, const char* topic, int32_t partitions) except +
        shared_ptr[Deliveries] deliveries
        cbool ready()
        int64_t put(const Records& records, int64_t taken, Fault& fault) except +

cdef extern from "kafka/plugin.h" namespace "sabot" nogil:
    rd_kafka_t* client_made


def load_client(str library not None):
    """Finds librdkafka's functions through a loaded shared object that uses them. Returns librdkafka's version.
    Raises UserError.
    """
    missing = c_load(library.encode()).decode()
    if missing:
        raise UserError(
            f"librdkafka is not found through {library}: {missing}",
            hint="install confluent-kafka as a wheel (pip install --only-binary=:all: confluent-kafka), or with a librdkafka of at least 2.6",
        )
    return version_str().decode()


cdef object _client(make, dict conf):
    """Calls `make` with these settings and our plugin, and returns the client. Its handle is then in `client_made`."""
    global client_made
    theirs = conf.get(PLUGINS)
    client_made = NULL
    client = make({**conf, PLUGINS: f"{theirs};{__file__}" if theirs else __file__})
    if client_made == NULL:
        raise UserError("the Kafka client has not loaded sabot's plugin", hint="is it made by confluent_kafka, of at least 2.6?")
    return client


@cython.no_gc_clear  # the collector must not clear `client`, which must outlive the queue
cdef class RecordQueue:
    cdef Queue* queue
    cdef readonly object client
    cdef object schema

    def __init__(self, make, schema, dict conf not None, *, bint headers=True):
        if self.queue != NULL:
            raise TypeError("a RecordQueue cannot be initialised twice")
        self.client = _client(make, conf)
        self.schema = schema
        self.queue = new Queue(client_made, not headers)

    def __dealloc__(self):
        del self.queue

    def follow(self, str topic not None, partitions):
        cdef bytes name = topic.encode()
        for partition in partitions:
            if self.queue == NULL or not self.queue.follow(name, partition):
                raise UserError(f"{topic}[{partition}]: the Kafka client has no queue of this partition", hint="is the source closed?")

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

    def hold(self, partitions):
        cdef vector[int32_t] held = partitions, paused
        if self.queue != NULL:
            with nogil:
                paused = self.queue.hold(held)
        return paused

    def headers(self, const int32_t[::1] partitions not None, const int64_t[::1] offsets not None):
        cdef ArrowArray out
        cdef Py_ssize_t rows = partitions.shape[0]
        if offsets.shape[0] != rows:
            raise ValueError(f"{rows} partitions, and {offsets.shape[0]} offsets")
        if self.queue == NULL or rows == 0:
            return pa.nulls(rows, self.schema.field("headers").type)
        self.queue.headers(&partitions[0], &offsets[0], rows, &out)
        return pa.Array._import_from_c(<uintptr_t> &out, self.schema.field("headers").type)

    def close(self):
        if self.queue != NULL:
            with nogil:
                self.queue.close()


cdef Records _records(tuple capsules) except *:
    """Returns a view of the batch in these capsules, which must stay alive as long as the view. Raises TypeError for
    other columns.
    """
    if not Records.fits(schema_of(capsules[0])):
        raise TypeError("the batch does not have the columns of records")
    return Records(schema_of(capsules[0]), array_of(capsules[1]))


def rows_above(data, int64_t limit):
    cdef tuple capsules = data.__arrow_c_array__()
    cdef Records records = _records(capsules)
    cdef vector[int64_t] rows, sizes
    with nogil:
        records.above(limit, rows, sizes)
    return dict(zip(rows, sizes))


@cython.no_gc_clear  # the collector must not clear `client`, which must outlive its topic
cdef class RecordProducer:
    cdef Producer* producer
    cdef rd_kafka_t* made
    cdef shared_ptr[Deliveries] deliveries
    cdef readonly object client

    def __cinit__(self, make, str topic not None, int32_t partitions, dict conf not None):
        global deliveries_expected
        self.deliveries = make_shared[Deliveries]()
        deliveries_expected = &self.deliveries
        try:
            self.client = _client(make, conf)
        finally:
            deliveries_expected = NULL
        self.made = client_made
        if partitions:
            self.open_topic(topic, partitions)

    def open_topic(self, str topic not None, int32_t partitions):
        cdef bytes name = topic.encode()
        if self.producer != NULL:
            raise ValueError("the topic is open already")
        self.producer = new Producer(self.made, self.deliveries, name, partitions)
        if not self.producer.ready():
            raise UserError(f"the Kafka client refuses the topic {topic!r}: {err2str(last_error()).decode()}")

    def __dealloc__(self):
        del self.producer

    def produce(self, data, int64_t taken):
        cdef tuple capsules = data.__arrow_c_array__()
        cdef Records records
        cdef Fault fault
        if taken < 0:
            raise ValueError(f"the number of rows already taken is negative: {taken}")
        if self.producer == NULL:
            raise ValueError("the topic is not open")
        records = _records(capsules)
        with nogil:
            taken = self.producer.put(records, taken, fault)
        return taken, (fault.code, fault.text.decode(errors="replace")) if fault.code else None

    def wait(self, double seconds):
        cdef int timeout_ms = <int> (seconds * 1000 + 0.999)
        with nogil:
            self.deliveries.get().wait(timeout_ms)

    def refused(self):
        cdef Refusal first
        cdef int64_t count = self.deliveries.get().refused(first)
        if count == 0:
            return None
        return count, first.code, first.partition, first.key[:first.key_size] if first.keyed else None, first.size
