"""Elements, the bounded channel between two tasks, and the gate that joins the channels of a task.

The GIL guards every field below: each is touched only by code that holds it and that calls no Python between reading and
writing. Only the waiting is done without it, on a Signal:

    producer                         consumer
    ────────                         ────────
    append to _elements              count = readable.count()
    readable.notify()        ──▶     look into _elements: nothing
    call _on_readable                wait, without the GIL, until the count has moved on from `count`

A Signal's mutex is held only to read or step its count, never while the GIL is taken, so the two cannot lock each other out; and
because the count is read before looking, a notification between looking and waiting is not lost.
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
        uint64_t count() nogil                              # notifications so far
        void notify() nogil                                 # from any thread
        bool wait(uint64_t count, double seconds) nogil     # until count() != count; False after `seconds`
    double steady_seconds "sabot::steady_seconds"() nogil   # for how long to wait, never for what to decide


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

    # Waits without the GIL until the count has moved on from `count` or the deadline (of steady_seconds; inf: none) is reached.
    # -> False at the deadline. In the main thread a signal handler that raises (Ctrl-C) raises here, within SIGNAL_SECONDS.
    cdef bint wait(self, uint64_t count, double deadline) except -1


cdef class Channel:
    cdef readonly int64_t capacity_rows, capacity_bytes
    cdef readonly str name
    cdef object _elements         # collections.deque, oldest first
    cdef int64_t _rows, _bytes    # of the batches in _elements
    cdef int64_t _rows_total, _batches_total, _full_total
    cdef bint _closed
    cdef _Signal _readable        # notified when an element came or the channel closed; a gate puts its own here
    cdef _Signal _writable        # notified when a batch left, or the channel closed
    cdef object _on_readable      # armed callbacks, or None; taken out before they are called
    cdef object _on_writable

    cdef bint full(self) noexcept
    cdef bint push(self, object element) except -1      # False: full; raises ChannelClosed
    cdef object pop(self)                               # None: empty


cdef struct Input:
    int64_t watermark    # the last one that came; the least int64: none yet
    bint idle            # does not count for the watermark
    bint held            # has delivered the awaited barrier: not read
    bint ended           # never read again
    bint paused          # not read until resume()


cdef class Gate:
    cdef list _channels
    cdef vector[Input] _inputs    # as _channels
    cdef size_t _turn             # the input to look at first
    cdef object _out              # deque of (index, element) that the last element read gave rise to
    cdef object _aborts           # deque of checkpoint ids from abort(), any thread appends
    cdef int64_t _awaited         # checkpoint id of the barrier being aligned, 0: none. Ids are > 0
    cdef int64_t _settled         # the highest id that was completed or aborted: barriers up to it are dropped
    cdef int64_t _aborted         # the highest id for which ABORT went out
    cdef int64_t _watermark       # the last one that went out
    cdef bint _idle               # IDLE went out after the last ACTIVE
    cdef bint _ended              # END went out
    cdef bint _closed
    cdef bint _woken              # `next` returns once, whatever there is
    cdef _Signal _signal          # of all channels
    cdef object _on_readable
    cdef int64_t _barriers_total, _aborts_total
    cdef double _awaited_since    # steady seconds at which the awaited barrier came first
    cdef double _alignment_seconds    # how long the last aligned barrier was awaited

    cdef tuple poll(self)         # None: nothing to read
    cdef object read(self, size_t index, object element)
    cdef object give_up(self, int64_t checkpoint_id)
    cdef object complete_if_aligned(self)
    cdef object settle_time(self)
    cdef void release(self) noexcept
    cdef bint ready(self) noexcept
