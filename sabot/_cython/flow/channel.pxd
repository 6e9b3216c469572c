"""Elements, the bounded channel between two tasks, and the gate that joins the input channels of a task.

The GIL guards every field below: only code that holds the GIL, and calls no Python between reading and writing, touches them. Only
waiting is done without the GIL, on a Signal:

    producer                         consumer
    ────────                         ────────
    append to _elements              count = readable.count()
    readable.notify()        ──▶     look into _elements: nothing
    call _on_readable                wait, without the GIL, until the count has moved on from `count`

A Signal's mutex is held only to read or increment its count, and never while waiting for the GIL, so the two cannot deadlock. Because the
count is read before looking, a notification between looking and waiting is not lost.
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
        uint64_t count() nogil                              # the number of notifications so far
        void notify() nogil                                 # from any thread
        bool wait(uint64_t count, double seconds) nogil     # until count() != count; False after `seconds`
    double steady_seconds "sabot::steady_seconds"() nogil   # used for time-outs only, never for decisions


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

    # Waits without the GIL until the count differs from `count`, or until the deadline (a time of steady_seconds; inf: none), when it
    # returns False. In the main thread a signal handler that raises (Ctrl-C) raises here, within SIGNAL_SECONDS.
    cdef bint wait(self, uint64_t count, double deadline) except -1


cdef class Channel:
    cdef readonly int64_t capacity_rows, capacity_bytes
    cdef readonly str name
    cdef object _elements         # collections.deque, oldest first
    cdef int64_t _rows, _bytes    # the sums over the batches in _elements
    cdef int64_t _rows_total, _batches_total, _full_total
    cdef bint _closed
    cdef _Signal _readable        # notified when an element was put or the channel closed; a gate puts its own signal here
    cdef _Signal _writable        # notified when a batch was taken or the channel closed
    cdef object _on_readable      # armed callbacks, or None; removed before they are called
    cdef object _on_writable

    cdef bint full(self) noexcept
    cdef bint push(self, object element) except -1      # False when full; raises ChannelClosed
    cdef object pop(self)                               # None when empty


cdef struct Input:
    int64_t watermark    # the last watermark of the input; the least int64 before the first
    bint idle            # the input does not count for the watermark
    bint held            # the input has delivered the awaited barrier, and is not read until it is aligned
    bint ended           # the input is never read again
    bint paused          # the input is not read until resume()


cdef class Gate:
    cdef list _channels
    cdef vector[Input] _inputs    # the states of the inputs, in the order of _channels
    cdef size_t _turn             # the input that is polled first
    cdef object _out              # deque of (index, element): output caused by the last element that was read
    cdef object _aborts           # deque of checkpoint ids from abort(), to which any thread appends
    cdef int64_t _awaited         # the checkpoint id of the barrier being aligned; 0: none. Ids are > 0
    cdef int64_t _settled         # the highest id that was completed or aborted: barriers up to it are dropped
    cdef int64_t _aborted         # the highest id for which ABORT was emitted
    cdef int64_t _watermark       # the last watermark that was emitted
    cdef bint _idle               # whether IDLE was emitted after the last ACTIVE
    cdef bint _ended              # whether END was emitted
    cdef bint _closed
    cdef bint _woken              # makes `next` return once, even without an element
    cdef _Signal _signal          # shared by all channels
    cdef object _on_readable
    cdef int64_t _barriers_total, _aborts_total
    cdef double _awaited_since    # steady seconds when the first input delivered the awaited barrier
    cdef double _alignment_seconds    # how long the alignment of the last barrier took

    cdef tuple poll(self)         # None when there is nothing to read
    cdef object read(self, size_t index, object element)
    cdef object give_up(self, int64_t checkpoint_id)
    cdef object complete_if_aligned(self)
    cdef object settle_time(self)
    cdef void release(self) noexcept
    cdef bint ready(self) noexcept
