"""The elements of streams, the bounded channel between two tasks, and the gate that joins the input channels of a task.

The GIL guards every field below. Code touches a field only while it holds the GIL, and calls no Python between reading
and writing it. The only thing done without the GIL is waiting on a Signal:

    producer                         consumer
    ────────                         ────────
    append to _elements              count = readable.count()
    readable.notify()        ──▶     look into _elements: empty
    call _on_readable                wait, without the GIL, until the count differs from `count`

A Signal's mutex is held only to read or to increment its count, and never while waiting for the GIL, so the two locks
cannot deadlock. The consumer reads the count before it looks into _elements, so no notification is lost in between.
"""

from libc.stdint cimport int64_t, uint64_t
from libcpp cimport bool
from libcpp.vector cimport vector

from sabot._cython.arrow.batch cimport Batch


cdef extern from *:
    """
    #include <chrono>
    #include <condition_variable>
    #include <cstdint>
    #include <mutex>

    namespace sabot {
    struct Signal {
        std::mutex mutex;
        std::condition_variable moved;
        uint64_t steps = 0;

        uint64_t count() {
            std::lock_guard<std::mutex> lock(mutex);
            return steps;
        }
        void notify() {
            {
                std::lock_guard<std::mutex> lock(mutex);
                ++steps;
            }
            moved.notify_all();
        }
        bool wait(uint64_t count, double seconds) {
            std::unique_lock<std::mutex> lock(mutex);
            return moved.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return steps != count; });
        }
    };
    inline double steady_seconds() {
        return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    }
    }
    """
    cdef cppclass CSignal "sabot::Signal":
        uint64_t count() nogil                              # returns the number of notifications so far
        void notify() nogil                                 # may be called from any thread
        bool wait(uint64_t count, double seconds) nogil     # waits until count() != count; returns False after `seconds`
    # seconds of a monotonic clock; used for time-outs and figures, never for decisions
    double steady_seconds "sabot::steady_seconds"() nogil


cdef class Barrier:
    cdef readonly int64_t checkpoint_id


cdef class Abort:
    cdef readonly int64_t checkpoint_id


cdef class Watermark:
    cdef readonly int64_t timestamp_ms    # ms since 1970, UTC


cdef class _Mark:
    cdef str name


cdef class _Signal:
    cdef CSignal signal

    # Waits without the GIL until the count differs from `count` and returns True, or returns False at `deadline`
    # (seconds of steady_seconds; inf waits for ever). In the main thread, signal handlers run at least every
    # SIGNAL_SECONDS, and their exception is raised here (KeyboardInterrupt for Ctrl-C).
    cdef bint wait(self, uint64_t count, double deadline) except -1


cdef class Channel:
    cdef readonly int64_t capacity_rows, capacity_bytes
    cdef readonly str name
    cdef object _elements         # collections.deque, oldest element first
    cdef int64_t _rows, _bytes    # the sums over the batches in _elements
    cdef int64_t _rows_total, _batches_total, _full_total
    cdef bint _closed
    cdef _Signal _readable        # notified when an element was put or the channel was closed; a gate replaces it by its own signal
    cdef _Signal _writable        # notified when a batch was taken or the channel was closed
    cdef object _on_readable      # a registered callback, or None; it is removed before it is called
    cdef object _on_writable

    cdef bint full(self) noexcept
    cdef bint push(self, object element) except -1      # returns False if the channel is full; raises ChannelClosed
    cdef object pop(self)                               # returns None if the channel is empty


cdef struct Input:
    int64_t watermark    # event time in ms: the last watermark of the input; the least int64 before the first one
    bint idle            # the input does not count for the watermark
    bint held            # the input has delivered the awaited barrier and is not read until the barrier is aligned
    bint ended           # the input has delivered END and is never read again
    bint paused          # the input is not read until resume()


cdef class Gate:
    cdef list _channels
    cdef vector[Input] _inputs    # the states of the inputs, in the order of _channels
    cdef size_t _turn             # the index of the input that is polled first
    cdef object _out              # deque of (index, element): what the last element read caused, to be returned next
    cdef object _aborts           # deque of checkpoint ids passed to abort(), to which any thread appends
    cdef int64_t _awaited         # the id of the checkpoint whose barrier is being aligned, or 0 (ids are > 0)
    cdef int64_t _settled         # the highest id that was completed or aborted; barriers with this id or a lower one are dropped
    cdef int64_t _aborted         # the highest id for which ABORT was emitted
    cdef int64_t _watermark       # the last watermark that was emitted, in ms
    cdef bint _idle               # true if IDLE was emitted after the last ACTIVE
    cdef bint _ended              # true if END was emitted
    cdef bint _closed
    cdef bint _woken              # makes `next` return once, even without an element
    cdef _Signal _signal          # shared by all channels of the gate
    cdef object _on_readable
    cdef int64_t _barriers_total, _aborts_total
    cdef double _awaited_since    # steady_seconds when the first input delivered the awaited barrier
    cdef double _alignment_seconds    # seconds from the first to the last arrival of the last aligned barrier

    cdef tuple poll(self)         # returns (index, element), or None if there is nothing to read
    cdef object read(self, size_t index, object element)
    cdef object give_up(self, int64_t checkpoint_id)
    cdef object complete_if_aligned(self)
    cdef object settle_time(self)
    cdef void release(self) noexcept
    cdef bint ready(self) noexcept
