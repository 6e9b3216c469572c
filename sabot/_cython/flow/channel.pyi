from collections.abc import Callable, Sequence

from sabot._cython.arrow.batch import Batch

class Barrier:
    """An in-band mark: everything before it belongs to the checkpoint `checkpoint_id` (> 0). Compared by value."""
    @property
    def checkpoint_id(self) -> int: ...
    def __init__(self, checkpoint_id: int) -> None: ...

class Abort:
    """An in-band mark: the checkpoint `checkpoint_id` is aborted, so a gate reads the inputs again that it held back. Compared by value."""
    @property
    def checkpoint_id(self) -> int: ...
    def __init__(self, checkpoint_id: int) -> None: ...

class Watermark:
    """An in-band mark: no row with an event time below `timestamp_ms` is expected after it. Compared by value."""
    @property
    def timestamp_ms(self) -> int: ...
    def __init__(self, timestamp_ms: int) -> None: ...

class _Mark: ...

IDLE: _Mark  # this input does not count for the watermark until ACTIVE
ACTIVE: _Mark
END: _Mark  # the last element of an input

Element = Batch | Barrier | Abort | Watermark | _Mark

class ChannelClosed(Exception):
    """The consumer has closed the channel; nothing more can be put."""

class Channel:
    """A bounded queue between two tasks, one producer and one consumer, each on any thread or event loop.

    A BATCH is accepted while rows and bytes held are below both capacities (so one batch larger than the capacity
    passes through an empty channel); marks are always accepted. Full means backpressure, never loss.
    Blocking calls release the GIL; in the main thread Ctrl-C interrupts them (within 100 ms), in others only `close()` does.
    An error of a callback is reported through sys.unraisablehook and not raised, because the caller is the other task.
    """

    name: str
    def __init__(self, capacity_rows: int = 65536, capacity_bytes: int = 67108864, name: str = "") -> None: ...
    def put(self, element: Element, timeout: float | None = None) -> bool:
        """Puts an element, and blocks while the channel is full; returns False after `timeout` seconds. Raises ChannelClosed."""
    def put_nowait(self, element: Element) -> bool:
        """Puts an element; returns False when the channel is full. Raises ChannelClosed."""
    def get(self, timeout: float | None = None) -> Element | None:
        """Takes an element, and blocks while the channel is empty; returns None after `timeout` seconds, or when it is closed and empty."""
    def get_nowait(self) -> Element | None: ...
    def peek_nowait(self) -> Element | None: ...
    def when_readable(self, callback: Callable[[], object]) -> None:
        """Registers a callback that is called once, as soon as there is an element or the channel is closed, possibly at once. It runs in
        the thread that caused this. A later registration replaces it.
        """
    def when_writable(self, callback: Callable[[], object]) -> None:
        """Like `when_readable`, for the producer: when a batch would be accepted, or the channel is closed."""
    def close(self) -> None:
        """Called by the consumer: drops the elements, and wakes waiting producers, which raise ChannelClosed. Idempotent."""
    @property
    def rows(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def __len__(self) -> int: ...
    def statistics(self) -> dict[str, int]:
        """rows, bytes and elements in the channel; capacity_rows, capacity_bytes; rows_total, batches_total; full_total, the number of puts
        that found it full.
        """

class Gate:
    """Joins the input channels of a task: it aligns barriers, and takes the minimum of the watermarks of inputs that are not idle.

    Elements come out as (input index, element):
    - BATCH with the input that it came from; inputs are served in turn, so none starves;
    - BARRIER with index -1 once every input that has not ended has delivered it. Meanwhile the inputs that have delivered it are held
      back: they are not read, so their channels fill and slow their sources down;
    - ABORT with index -1 when one comes in-band on an input that is not held back, or by `abort()`. Held inputs are then read again, and
      later barriers with that id or a lower one are dropped. A newer barrier than the awaited one aborts the older one (ABORT is emitted
      first). Each id is emitted once, however many inputs deliver it, and even when its barrier has passed this gate already, because
      tasks downstream may wait for it. Barriers up to the last one that was emitted are dropped too (repeated ids);
    - WATERMARK with index -1 when the minimum over active inputs rises; IDLE when all have become idle, after the greatest of their
      watermarks (as if the inputs behind had become idle first); ACTIVE when one has woken;
    - END with index -1, once, when all inputs have ended. An input that has ended counts as idle, and as having delivered every barrier.
    """
    def __init__(self, channels: Sequence[Channel]) -> None: ...
    def next_nowait(self) -> tuple[int, Element] | None: ...
    def next(self, timeout: float | None = None) -> tuple[int, Element] | None:
        """Takes the next element, and blocks until there is one; None on time-out, after END, and when the gate is closed."""
    def wake(self) -> None:
        """Makes the current or the next call of `next` return soon, even if there is nothing to read. May be called from any thread."""
    def when_readable(self, callback: Callable[[], object]) -> None:
        """Like Channel.when_readable, for any input that is not held back.

        The callback may be called when `next_nowait` returns None (because of a race with holding back), but never too seldom.
        """
    def deliver(self, index: int, checkpoint_id: int) -> None:
        """Acts as if this barrier were the next element of this input, whose consumer is busy: the barrier overtakes the batches in the
        channel, which the checkpoint then does not cover. The real barrier is dropped when it comes. Only on the thread that reads the
        gate."""
    def end(self, index: int) -> None:
        """Acts as if END were the next element of this input: the elements in its channel are not read any more. Idempotent; only on the
        thread that reads the gate."""
    def pause(self, index: int) -> None:
        """Stops reading this input until `resume`, because its consumer has no room. Barriers behind its batches wait too."""
    def ended(self, index: int) -> bool:
        """Whether END of this input has been read. Only on the thread that reads the gate."""
    def resume(self, index: int) -> None:
        """Reads this input again after `pause`. Idempotent; only on the thread that reads the gate."""
    def abort(self, checkpoint_id: int) -> None:
        """Acts as if an ABORT had come. May be called from any thread."""
    @property
    def waiting_for(self) -> list[int]:
        """The inputs that have not delivered the awaited barrier; empty when none is awaited."""
    def close(self) -> None:
        """Closes all channels."""
    def statistics(self) -> dict[str, int]:
        """inputs, and how many of them are ended, idle, held; rows and bytes in their channels; awaited (checkpoint id, 0: none);
        barriers_total (aligned), aborts_total."""
