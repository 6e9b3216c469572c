from collections.abc import Callable, Sequence

from sabot._cython.arrow.batch import Batch
from sabot.base.figures import ToldInput

class Barrier:
    """A mark in a channel: everything before it belongs to the checkpoint `checkpoint_id`, which must be > 0.
    Compared by value.
    """
    @property
    def checkpoint_id(self) -> int: ...
    def __init__(self, checkpoint_id: int) -> None: ...

class Abort:
    """A mark in a channel: the checkpoint `checkpoint_id` is aborted, so a gate reads its held inputs again. Compared
    by value.
    """
    @property
    def checkpoint_id(self) -> int: ...
    def __init__(self, checkpoint_id: int) -> None: ...

class Watermark:
    """A mark in a channel: after it, no row with an event time below `timestamp_ms` is expected. Compared by value."""
    @property
    def timestamp_ms(self) -> int: ...
    def __init__(self, timestamp_ms: int) -> None: ...

class _Mark: ...

IDLE: _Mark  # this input does not count for the watermark until ACTIVE
ACTIVE: _Mark
END: _Mark  # the last element of an input

Element = Batch | Barrier | Abort | Watermark | _Mark

class ChannelClosed(Exception):
    """Raised by a put after the consumer has closed the channel."""

class Channel:
    """A bounded queue between two tasks: one producer and one consumer, each on any thread or event loop.

    A batch is accepted while both the rows and the bytes in the channel are below their capacities. So a batch that
    is larger than the capacity passes through an empty channel. Marks are always accepted. A full channel makes the
    producer wait and loses nothing. Blocking calls release the GIL. In the main thread Ctrl-C interrupts them within
    100 ms; in other threads only `close()` does. An exception of a callback is reported through sys.unraisablehook
    and not raised, because it belongs to the other task.
    """

    name: str
    def __init__(self, capacity_rows: int = 65536, capacity_bytes: int = 67108864, name: str = "") -> None: ...
    def put(self, element: Element, timeout: float | None = None) -> bool:
        """Puts an element; blocks while the channel is full. Returns False after `timeout` seconds (None: never).
        Raises ChannelClosed.
        """
    def put_nowait(self, element: Element) -> bool:
        """Puts an element. Returns False if the channel is full. Raises ChannelClosed."""
    def get(self, timeout: float | None = None) -> Element | None:
        """Takes the oldest element; blocks while the channel is empty. Returns None after `timeout` seconds (None:
        never), or if the channel is closed and empty.
        """
    def get_nowait(self) -> Element | None: ...
    def peek_nowait(self) -> Element | None: ...
    def when_readable(self, callback: Callable[[], object]) -> None:
        """Registers a callback that is called once, when there is an element or the channel is closed; at once if
        that is so already. It runs in the thread that puts the element or closes the channel. A later registration
        replaces an earlier one.
        """
    def when_writable(self, callback: Callable[[], object]) -> None:
        """Like `when_readable`, for the producer: the callback is called when the channel would accept a batch or is
        closed.
        """
    def close(self) -> None:
        """Drops all elements and wakes waiting producers, which raise ChannelClosed. Called by the consumer.
        Idempotent.
        """
    @property
    def rows(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def __len__(self) -> int: ...
    def statistics(self) -> dict[str, int]:
        """Returns rows, bytes and elements in the channel; capacity_rows and capacity_bytes; rows_total and
        batches_total; and full_total, the number of puts that found the channel full.
        """

class Gate:
    """Joins the input channels of a task: it aligns barriers and takes the least watermark of the inputs that are not idle.

    Elements come out as (input index, element); marks have the index -1:
    - a batch comes out with the index of its input. Inputs are read in turn, so that none starves;
    - Barrier comes out when every input that has not ended has delivered it. An input that has delivered it is held: it is
      not read until the barrier is aligned, so its channel fills and its producer waits;
    - Abort comes out when an input that is not held delivers it, or after `abort()`. Held inputs are read again, and later
      barriers with this id or a lower one are dropped. A newer barrier than the awaited one aborts the awaited one. Each id
      is emitted once, even if its barrier has come out already, because tasks downstream may still wait for that barrier.
      A barrier with an id that has come out is dropped as well;
    - Watermark comes out when the least watermark of the active inputs rises. IDLE comes out when all inputs have become
      idle, after a watermark equal to the greatest of theirs. ACTIVE comes out when one of them is active again;
    - END comes out once, when all inputs have ended. An ended input counts as idle and as having delivered every barrier.
    """
    def __init__(self, channels: Sequence[Channel]) -> None: ...
    def next_nowait(self) -> tuple[int, Element] | None: ...
    def next(self, timeout: float | None = None) -> tuple[int, Element] | None:
        """Takes the next element; blocks until there is one. Returns None after `timeout` seconds (None: never),
        after END, after `wake()`, and if the gate is closed.
        """
    def wake(self) -> None:
        """Makes the current or the next call of `next` return soon, even if there is nothing to read. May be called
        from any thread.
        """
    def when_readable(self, callback: Callable[[], object]) -> None:
        """Like Channel.when_readable, for any input that is not held.

        The callback may also be called when `next_nowait` returns None, because an input was held meanwhile; it is
        never omitted.
        """
    def deliver(self, index: int, checkpoint_id: int) -> None:
        """Treats this barrier as the next element of this input, whose consumer is busy. The barrier overtakes the
        batches in the channel, so the checkpoint does not cover them. The real barrier is dropped when it arrives.
        Only the thread that reads the gate may call this.
        """
    def end(self, index: int) -> None:
        """Treats END as the next element of this input: the elements in its channel are never read. Idempotent. Only
        the thread that reads the gate may call this.
        """
    def pause(self, index: int) -> None:
        """Stops reading this input until `resume`, because its consumer has no room. Its barriers wait too."""
    def ended(self, index: int) -> bool:
        """Returns True if END of this input has been read. Only the thread that reads the gate may call this."""
    def resume(self, index: int) -> None:
        """Reads this input again after `pause`. Idempotent. Only the thread that reads the gate may call this."""
    def abort(self, checkpoint_id: int) -> None:
        """Aborts this checkpoint as if Abort had arrived on an input. May be called from any thread. Raises
        ValueError unless the id is > 0.
        """
    @property
    def waiting_for(self) -> list[int]:
        """The indexes of the inputs that have not delivered the awaited barrier; empty if no barrier is awaited."""
    def close(self) -> None:
        """Closes all channels. Idempotent."""
    def statistics(self) -> ToldInput:
        """Returns the number of inputs and how many are ended, idle and held; rows and bytes in their channels;
        awaited (a checkpoint id, or 0); barriers_total (aligned barriers), aborts_total; and alignment_seconds, the
        time from the first to the last arrival of the last aligned barrier.
        """
