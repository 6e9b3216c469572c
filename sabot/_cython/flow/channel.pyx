"""Elements, Channel and Gate. See channel.pyi for the contract and channel.pxd for the rules of access to fields."""

import threading
from collections import deque

from cpython.exc cimport PyErr_CheckSignals, PyErr_ExceptionMatches, PyErr_WriteUnraisable
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.math cimport INFINITY
from libc.stdint cimport INT64_MIN

__all__ = ["ACTIVE", "END", "IDLE", "Abort", "Barrier", "Channel", "ChannelClosed", "Gate", "Watermark"]

cdef extern from "Python.h":
    PyObject* PyObject_CallNoArgs(PyObject* function)  # returns NULL with an error set

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident()

cdef unsigned long MAIN_THREAD = threading.main_thread().ident
cdef double SIGNAL_SECONDS = 0.1    # the interval at which a waiting main thread checks for Ctrl-C
cdef double LONGEST_WAIT = 3600.0   # longer waits are divided, because C++ clocks overflow on very long ones


# Elements

cdef class Barrier:
    """A mark in a channel: everything before it belongs to the checkpoint `checkpoint_id`, which must be > 0.
    Compared by value.
    """

    def __init__(self, int64_t checkpoint_id):
        if checkpoint_id <= 0:
            raise ValueError(f"a checkpoint id must be positive, not {checkpoint_id}")
        self.checkpoint_id = checkpoint_id

    def __eq__(self, other):
        return isinstance(other, Barrier) and self.checkpoint_id == (<Barrier> other).checkpoint_id

    def __hash__(self):
        return hash((Barrier, self.checkpoint_id))

    def __repr__(self):
        return f"Barrier({self.checkpoint_id})"

    def __reduce__(self):
        return Barrier, (self.checkpoint_id,)


cdef class Abort:
    """A mark in a channel: the checkpoint `checkpoint_id` is aborted, so a gate reads its held inputs again. Compared
    by value.
    """

    def __init__(self, int64_t checkpoint_id):
        if checkpoint_id <= 0:
            raise ValueError(f"a checkpoint id must be positive, not {checkpoint_id}")
        self.checkpoint_id = checkpoint_id

    def __eq__(self, other):
        return isinstance(other, Abort) and self.checkpoint_id == (<Abort> other).checkpoint_id

    def __hash__(self):
        return hash((Abort, self.checkpoint_id))

    def __repr__(self):
        return f"Abort({self.checkpoint_id})"

    def __reduce__(self):
        return Abort, (self.checkpoint_id,)


cdef class Watermark:
    """A mark in a channel: after it, no row with an event time below `timestamp_ms` is expected. Compared by value."""

    def __init__(self, int64_t timestamp_ms):
        self.timestamp_ms = timestamp_ms

    def __eq__(self, other):
        return isinstance(other, Watermark) and self.timestamp_ms == (<Watermark> other).timestamp_ms

    def __hash__(self):
        return hash((Watermark, self.timestamp_ms))

    def __repr__(self):
        return f"Watermark({self.timestamp_ms})"

    def __reduce__(self):
        return Watermark, (self.timestamp_ms,)


cdef class _Mark:
    """A mark without content: IDLE, ACTIVE or END. There is one object of each kind, and marks are compared with
    `is`.
    """

    def __init__(self, str name not None):
        self.name = name

    def __repr__(self):
        return self.name

    def __reduce__(self):
        return self.name  # unpickling finds the one object by this name in this module


IDLE = _Mark("IDLE")
ACTIVE = _Mark("ACTIVE")
END = _Mark("END")

cdef _Mark _IDLE = IDLE
cdef _Mark _ACTIVE = ACTIVE
cdef _Mark _END = END


class ChannelClosed(Exception):
    """Raised by a put after the consumer has closed the channel."""


# Waiting

cdef class _Signal:
    cdef bint wait(self, uint64_t count, double deadline) except -1:
        cdef bint in_main_thread = PyThread_get_thread_ident() == MAIN_THREAD
        cdef double longest = SIGNAL_SECONDS if in_main_thread else LONGEST_WAIT
        cdef double left
        cdef bint moved
        while True:
            left = deadline - steady_seconds()
            if left <= 0:
                return False
            with nogil:
                moved = self.signal.wait(count, left if left < longest else longest)
            if in_main_thread:
                PyErr_CheckSignals()
            if moved:
                return True


cdef double _deadline(object timeout) except? -1.0:
    """Returns the time of steady_seconds that is `timeout` seconds from now; infinity for None."""
    return INFINITY if timeout is None else steady_seconds() + <double> timeout


cdef int _call(object callback) except -1:
    """Calls the callback, if it is not None. Its exception is reported and not raised, because it belongs to the
    other task.
    """
    cdef PyObject* result
    if callback is not None:
        result = PyObject_CallNoArgs(<PyObject*> callback)
        if result != NULL:
            Py_DECREF(<object> result)
        elif PyErr_ExceptionMatches(Exception):
            PyErr_WriteUnraisable(callback)
        else:
            return -1  # KeyboardInterrupt is raised
    return 0


# Channel

cdef class Channel:
    """A bounded queue between two tasks: one producer and one consumer, each on any thread or event loop.

    A batch is accepted while both the rows and the bytes in the channel are below their capacities; marks are always
    accepted. A full channel makes the producer wait and loses nothing. Blocking calls release the GIL. In the main
    thread Ctrl-C interrupts them; in other threads only `close()` does.
    """

    def __init__(self, int64_t capacity_rows=65536, int64_t capacity_bytes=67108864, str name not None=""):
        if capacity_rows <= 0 or capacity_bytes <= 0:
            raise ValueError(f"a channel's capacity must be positive, not {capacity_rows} rows and {capacity_bytes} bytes")
        self.capacity_rows = capacity_rows
        self.capacity_bytes = capacity_bytes
        self.name = name
        self._elements = deque()
        self._readable = _Signal()
        self._writable = _Signal()

    def put(self, element, timeout=None):
        """Puts an element; blocks while the channel is full. Returns False after `timeout` seconds (None: never).
        Raises ChannelClosed.
        """
        if self.push(element):
            return True
        self._full_total += 1
        cdef double deadline = _deadline(timeout)
        cdef uint64_t count
        while True:
            count = self._writable.signal.count()
            if self.push(element):
                return True
            if not self._writable.wait(count, deadline):
                return False

    def put_nowait(self, element):
        """Puts an element. Returns False if the channel is full. Raises ChannelClosed."""
        if self.push(element):
            return True
        self._full_total += 1
        return False

    def get(self, timeout=None):
        """Takes the oldest element; blocks while the channel is empty. Returns None after `timeout` seconds (None:
        never), or if the channel is closed and empty.
        """
        element = self.pop()
        if element is not None:
            return element
        cdef double deadline = _deadline(timeout)
        cdef _Signal readable = self._readable
        cdef uint64_t count
        while True:
            count = readable.signal.count()
            element = self.pop()
            if element is not None or self._closed or not readable.wait(count, deadline):
                return element

    def get_nowait(self):
        """Takes the oldest element. Returns None if the channel is empty."""
        return self.pop()

    def peek_nowait(self):
        """Returns the element that the next get would take, or None if the channel is empty."""
        return self._elements[0] if self._elements else None

    def when_readable(self, callback):
        """Registers a callback that is called once, when there is an element or the channel is closed; at once if
        that is so already. It runs in the thread that puts the element or closes the channel. A later registration
        replaces an earlier one.
        """
        replaced = self._on_readable  # freed at the end of this call, because freeing it may run Python code
        self._on_readable = callback
        if self._elements or self._closed:
            callback, self._on_readable = self._on_readable, None
            _call(callback)

    def when_writable(self, callback):
        """Like `when_readable`, for the producer: the callback is called when the channel would accept a batch or is
        closed.
        """
        replaced = self._on_writable
        self._on_writable = callback
        if not self.full() or self._closed:
            callback, self._on_writable = self._on_writable, None
            _call(callback)

    def close(self):
        """Drops all elements and wakes waiting producers, which raise ChannelClosed. Called by the consumer.
        Idempotent.
        """
        self._closed = True
        dropped = self._elements
        self._elements = deque()
        self._rows = self._bytes = 0
        self._readable.signal.notify()
        self._writable.signal.notify()
        on_readable, self._on_readable = self._on_readable, None
        on_writable, self._on_writable = self._on_writable, None
        _call(on_readable)
        _call(on_writable)

    @property
    def rows(self):
        return self._rows

    @property
    def nbytes(self):
        return self._bytes

    def __len__(self):
        return len(self._elements)

    def __repr__(self):
        return f"Channel({self.name!r}, {len(self._elements)} elements, {self._rows} of {self.capacity_rows} rows)"

    def statistics(self):
        """Returns rows, bytes and elements in the channel, its capacities, and totals. full_total counts the puts
        that found it full.
        """
        return {
            "rows": self._rows,
            "bytes": self._bytes,
            "elements": len(self._elements),
            "capacity_rows": self.capacity_rows,
            "capacity_bytes": self.capacity_bytes,
            "rows_total": self._rows_total,
            "batches_total": self._batches_total,
            "full_total": self._full_total,
        }

    cdef bint full(self) noexcept:
        return self._rows >= self.capacity_rows or self._bytes >= self.capacity_bytes

    cdef bint push(self, object element) except -1:
        cdef int64_t size
        if isinstance(element, Batch):
            size = (<Batch> element).size()  # read first, because it may call Python
            if self._closed:
                raise ChannelClosed(self.name)
            if self.full():
                return False
            self._elements.append(element)
            self._rows += (<Batch> element).num_rows
            self._bytes += size
            self._rows_total += (<Batch> element).num_rows
            self._batches_total += 1
        elif isinstance(element, (Barrier, Abort, Watermark, _Mark)):
            if self._closed:
                raise ChannelClosed(self.name)
            self._elements.append(element)
        else:
            raise TypeError(f"a channel accepts batches and marks, not {type(element).__name__}")
        self._readable.signal.notify()
        callback, self._on_readable = self._on_readable, None
        _call(callback)
        return True

    cdef object pop(self):
        if not self._elements:
            return None
        element = self._elements.popleft()
        if isinstance(element, Batch):
            self._rows -= (<Batch> element).num_rows
            self._bytes -= (<Batch> element).size()
            if not self.full():
                self._writable.signal.notify()
                callback, self._on_writable = self._on_writable, None
                _call(callback)
        return element


# Gate

cdef class Gate:
    """Joins the input channels of a task: it aligns barriers and takes the least watermark of the inputs that are not
    idle.

    See channel.pyi for the elements that it emits. One thread at a time reads a gate; any thread may call `abort`,
    `wake`, `close` and `statistics`.
    """

    def __init__(self, channels):
        cdef Channel channel
        self._channels = list(channels)
        if not self._channels:
            raise ValueError("a gate needs at least one channel")
        self._signal = _Signal()
        for channel in self._channels:
            channel._readable = self._signal
            self._inputs.push_back(Input(INT64_MIN, False, False, False, False))
        self._out = deque()
        self._aborts = deque()
        self._watermark = INT64_MIN

    def next_nowait(self):
        """Takes the next (input index, element). Returns None if there is nothing to read now."""
        return self.poll()

    def next(self, timeout=None):
        """Takes the next element; blocks until there is one. Returns None after `timeout` seconds (None: never),
        after END, after `wake()`, and if the gate is closed.
        """
        found = self.poll()
        if found is not None:
            return found
        cdef double deadline = _deadline(timeout)
        cdef uint64_t count
        while True:
            count = self._signal.signal.count()
            found = self.poll()
            if found is not None or self._ended or self._closed or self._woken:
                self._woken = False
                return found
            if not self._signal.wait(count, deadline):
                return None

    def wake(self):
        """Makes the current or the next call of `next` return soon, even if there is nothing to read. May be called from any thread."""
        self._woken = True
        self._signal.signal.notify()

    def when_readable(self, callback):
        """Like Channel.when_readable, for any input that is not held.

        The callback may also be called when `next_nowait` returns None, because an input was held meanwhile; it is
        never omitted.
        """
        cdef size_t i
        replaced = self._on_readable
        self._on_readable = callback
        if self.ready():
            self._fire()
            return
        for i in range(self._inputs.size()):
            if not self._inputs[i].held and not self._inputs[i].ended and not self._inputs[i].paused:
                (<Channel> self._channels[i]).when_readable(self._fire)

    def _fire(self):
        callback, self._on_readable = self._on_readable, None
        _call(callback)

    def deliver(self, size_t index, int64_t checkpoint_id):
        """Treats this barrier as the next element of this input. The real barrier, which is behind batches, is
        dropped when it arrives.
        """
        if not self._inputs.at(index).held and not self._inputs.at(index).ended:
            self.read(index, Barrier(checkpoint_id))
            self._fire()

    def end(self, size_t index):
        """Treats END as the next element of this input: the elements in its channel are never read. Idempotent."""
        if not self._inputs.at(index).ended:
            self.read(index, _END)
            self._fire()

    def pause(self, size_t index):
        """Stops reading this input until `resume`, because its consumer has no room. Its channel fills and its
        producer waits.
        """
        self._inputs.at(index).paused = True

    def resume(self, size_t index):
        """Reads this input again after `pause`. Idempotent."""
        self._inputs.at(index).paused = False
        self._signal.signal.notify()
        self._fire()

    def ended(self, size_t index):
        """Returns True if END of this input has been read."""
        return True if self._inputs.at(index).ended else False

    def abort(self, int64_t checkpoint_id):
        """Aborts this checkpoint as if Abort had arrived on an input. May be called from any thread."""
        if checkpoint_id <= 0:
            raise ValueError(f"a checkpoint id must be positive, not {checkpoint_id}")
        self._aborts.append(checkpoint_id)
        self._signal.signal.notify()
        self._fire()

    @property
    def waiting_for(self):
        """The indexes of the inputs that have not delivered the awaited barrier; empty if no barrier is awaited."""
        if self._awaited == 0:
            return []
        return [i for i in range(self._inputs.size()) if not self._inputs[i].held and not self._inputs[i].ended]

    def close(self):
        """Closes all channels. Idempotent."""
        self._closed = True
        for channel in self._channels:
            channel.close()
        self._signal.signal.notify()
        self._fire()

    def __repr__(self):
        return f"Gate({self._channels})"

    def statistics(self):
        """Returns the figures of the gate; see channel.pyi."""
        cdef Input input
        figures = {
            "inputs": self._inputs.size(),
            "ended": 0,
            "idle": 0,
            "held": 0,
            "rows": sum([channel.rows for channel in self._channels]),
            "bytes": sum([channel.nbytes for channel in self._channels]),
            "awaited": self._awaited,
            "barriers_total": self._barriers_total,
            "aborts_total": self._aborts_total,
            "alignment_seconds": self._alignment_seconds,
        }
        for input in self._inputs:
            figures["ended"] += 1 if input.ended else 0
            figures["idle"] += 1 if input.idle and not input.ended else 0
            figures["held"] += 1 if input.held else 0
        return figures

    cdef tuple poll(self):
        cdef size_t i, k, count = self._inputs.size()
        while not self._closed:
            if self._out:
                return self._out.popleft()
            if self._aborts:
                self.give_up(self._aborts.popleft())
                continue
            for k in range(count):
                i = (self._turn + k) % count
                if self._inputs[i].held or self._inputs[i].ended or self._inputs[i].paused:
                    continue
                element = (<Channel> self._channels[i]).pop()
                if element is None:
                    continue
                self._turn = i + 1
                if isinstance(element, Batch):
                    if self._inputs[i].idle:
                        self.settle_time()
                    return i, element
                self.read(i, element)
                if self._inputs[i].idle and not self._inputs[i].ended:
                    self.settle_time()  # the input counted as active while this mark was in its channel
                break
            else:
                return None
        return None

    cdef object read(self, size_t index, object element):
        """Handles a mark of an input that is neither held nor ended, and appends the elements that it causes to _out."""
        cdef Input* input = &self._inputs[index]
        cdef int64_t checkpoint_id
        if isinstance(element, Barrier):
            checkpoint_id = (<Barrier> element).checkpoint_id
            if checkpoint_id <= self._settled or checkpoint_id < self._awaited:
                return  # this checkpoint is completed, aborted, or older than the awaited one
            if 0 < self._awaited < checkpoint_id:
                self.give_up(self._awaited)
            if self._awaited == 0:
                self._awaited_since = steady_seconds()
            self._awaited = checkpoint_id
            input.held = True
            self.complete_if_aligned()
        elif isinstance(element, Abort):
            self.give_up((<Abort> element).checkpoint_id)
        elif isinstance(element, Watermark):
            if (<Watermark> element).timestamp_ms > input.watermark:
                input.watermark = (<Watermark> element).timestamp_ms
                self.settle_time()
        elif element is _END:
            input.ended = True
            self.complete_if_aligned()
            self.settle_time()
        else:
            input.idle = element is _IDLE
            self.settle_time()

    cdef object give_up(self, int64_t checkpoint_id):
        """Aborts the checkpoint and all older ones."""
        if checkpoint_id <= self._aborted:
            return  # every input delivers the same Abort
        self._aborted = checkpoint_id
        self._settled = max(self._settled, checkpoint_id)
        if 0 < self._awaited <= checkpoint_id:
            self.release()
        self._aborts_total += 1
        self._out.append((-1, Abort(checkpoint_id)))

    cdef object complete_if_aligned(self):
        """Emits Barrier if all inputs that have not ended have delivered it."""
        cdef size_t i
        if self._awaited == 0:
            return
        for i in range(self._inputs.size()):
            if not self._inputs[i].held and not self._inputs[i].ended:
                return
        self._settled = self._awaited
        self._alignment_seconds = steady_seconds() - self._awaited_since
        self._barriers_total += 1
        self._out.append((-1, Barrier(self._awaited)))
        self.release()

    cdef void release(self) noexcept:
        """Reads held inputs again and awaits no barrier."""
        cdef size_t i
        self._awaited = 0
        for i in range(self._inputs.size()):
            self._inputs[i].held = False

    cdef object settle_time(self):
        """Emits END, ACTIVE, Watermark or IDLE after the state of an input has changed.

        An idle input with elements in its channel counts as active. Its ACTIVE was put before other inputs could move
        event time beyond its rows, but the gate may read the channels of the other inputs first.
        """
        cdef size_t i, running = 0, active = 0
        cdef int64_t least = 0
        cdef bint greatest = False
        for i in range(self._inputs.size()):
            if self._inputs[i].ended:
                continue
            running += 1
            if not self._inputs[i].idle or (<Channel> self._channels[i])._elements:
                if active == 0 or self._inputs[i].watermark < least:
                    least = self._inputs[i].watermark
                active += 1
        if running == 0:
            self._ended = True
            self._out.append((-1, _END))
        elif active == 0:
            if not self._idle:
                # The watermark must not depend on the order in which inputs become idle, so it is the greatest of
                # theirs, as if the other inputs had become idle first.
                for i in range(self._inputs.size()):
                    if not self._inputs[i].ended and self._inputs[i].watermark > self._watermark:
                        self._watermark = self._inputs[i].watermark
                        greatest = True
                if greatest:
                    self._out.append((-1, Watermark(self._watermark)))
                self._idle = True
                self._out.append((-1, _IDLE))
        else:
            if self._idle:
                self._idle = False
                self._out.append((-1, _ACTIVE))
            if least > self._watermark:
                self._watermark = least
                self._out.append((-1, Watermark(least)))

    cdef bint ready(self) noexcept:
        """Returns True if there may be something to read."""
        cdef size_t i
        if self._out or self._aborts or self._closed:
            return True
        for i in range(self._inputs.size()):
            if self._inputs[i].held or self._inputs[i].ended or self._inputs[i].paused:
                continue
            if (<Channel> self._channels[i])._elements:
                return True
        return False
