from collections.abc import Callable, Sequence

from sabot._cython.arrow.batch import Batch

class Barrier:
    """In-band mark: everything before it belongs to the checkpoint `checkpoint_id` (> 0). Compared by value."""
    @property
    def checkpoint_id(self) -> int: ...
    def __init__(self, checkpoint_id: int) -> None: ...

class Abort:
    """In-band mark: the checkpoint `checkpoint_id` is given up; a gate lets go of what it held back. Compared by value."""
    @property
    def checkpoint_id(self) -> int: ...
    def __init__(self, checkpoint_id: int) -> None: ...

class Watermark:
    """No row with an event time below `timestamp_ms` is expected after this. Compared by value."""
    @property
    def timestamp_ms(self) -> int: ...
    def __init__(self, timestamp_ms: int) -> None: ...

class _Mark: ...

IDLE: _Mark  # this input does not count for the watermark until ACTIVE
ACTIVE: _Mark
END: _Mark  # the last element of an input

Element = Batch | Barrier | Abort | Watermark | _Mark

class ChannelClosed(Exception):
    """The consumer of a channel is gone; nothing more can be put."""

class Channel:
    """A bounded queue between two tasks, one producer and one consumer, each on any thread or event loop.

    A BATCH is accepted while rows and bytes held are below both capacities (so one batch larger than the capacity
    passes through an empty channel); marks are always accepted. Full means backpressure, never loss.
    Blocking calls release the GIL; in the main thread Ctrl-C interrupts them (within 100 ms), in others only `close()` does.
    What a callback raises is reported through sys.unraisablehook and not passed on: the caller is the other task.
    """

    name: str
    def __init__(self, capacity_rows: int = 65536, capacity_bytes: int = 67108864, name: str = "") -> None: ...
    def put(self, element: Element, timeout: float | None = None) -> bool:
        """Blocks while full; False when `timeout` seconds passed. Raises ChannelClosed."""
    def put_nowait(self, element: Element) -> bool:
        """False when full. Raises ChannelClosed."""
    def get(self, timeout: float | None = None) -> Element | None:
        """Blocks while empty; None when `timeout` seconds passed, or closed and empty."""
    def get_nowait(self) -> Element | None: ...
    def peek_nowait(self) -> Element | None: ...
    def when_readable(self, callback: Callable[[], object]) -> None:
        """Calls once, from whichever thread makes it so, when an element is there or the channel is closed; at once if it is already.

        Replaces an earlier one.
        """
    def when_writable(self, callback: Callable[[], object]) -> None:
        """The same for the producer: when a batch would be accepted, or the channel is closed."""
    def close(self) -> None:
        """The consumer goes away: held elements are dropped, waiting producers wake with ChannelClosed. Idempotent."""
    @property
    def rows(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def __len__(self) -> int: ...
    def statistics(self) -> dict[str, int]:
        """rows, bytes, elements held; capacity_rows, capacity_bytes; rows_total, batches_total; full_total (puts that found it full)."""

class Gate:
    """Joins the input channels of a task: aligns barriers, takes the minimum watermark of the inputs that are not idle.

    Elements come out as (input index, element):
    - BATCH with the input it came from; inputs are served in turn, none starves;
    - BARRIER with index -1 once every input that has not ended has delivered it; meanwhile inputs that have are held back
      (not read, so their channels fill and slow their sources);
    - ABORT with index -1 when one comes in-band on an input that is not held back, or by `abort()`; held inputs go on;
      later barriers with that id or lower are dropped. A newer barrier than the one awaited aborts the older (ABORT comes out first).
      Each id comes out once, however many inputs bring it, and also when its barrier has gone through here: tasks further on may wait.
      Barriers up to the last one that came out are dropped too (repeated ids);
    - WATERMARK with index -1 when the minimum over active inputs rises; IDLE when all became idle, after the greatest WATERMARK of them
      (as if those behind had become idle before the others); ACTIVE when one woke;
    - END with index -1, once, when all inputs ended. An input that ends counts as having delivered every barrier and as idle.
    """
    def __init__(self, channels: Sequence[Channel]) -> None: ...
    def next_nowait(self) -> tuple[int, Element] | None: ...
    def next(self, timeout: float | None = None) -> tuple[int, Element] | None:
        """Blocks until an element is there; None on time-out, after END, and when the gate is closed."""
    def wake(self) -> None:
        """`next` returns soon, now or the next time, though there may be nothing to read. Any thread."""
    def when_readable(self, callback: Callable[[], object]) -> None:
        """As Channel.when_readable, for any input that is not held back.

        May call when `next_nowait` then gives None (a held-back race); never misses.
        """
    def deliver(self, index: int, checkpoint_id: int) -> None:
        """As if this barrier stood before the next element of this input (whose consumer is busy): the barrier overtakes the batches
        in its channel, which are then not covered. The real one is dropped when it comes. On the thread that reads the gate."""
    def end(self, index: int) -> None:
        """As if END stood before the next element of this input: what its channel holds is not read any more. Idempotent; on the
        thread that reads the gate."""
    def pause(self, index: int) -> None:
        """Read this input no more until `resume`: its consumer has no room. Barriers behind its batches wait too."""
    def ended(self, index: int) -> bool:
        """Whether END of this input has been read. On the thread that reads the gate."""
    def resume(self, index: int) -> None:
        """Read this input again. Idempotent; on the thread that reads the gate."""
    def abort(self, checkpoint_id: int) -> None:
        """Out of band, from any thread: as if ABORT had come."""
    @property
    def waiting_for(self) -> list[int]:
        """Inputs that have not delivered the barrier that others have; empty when none is awaited."""
    def close(self) -> None:
        """Closes all channels."""
    def statistics(self) -> dict[str, int]:
        """inputs, and how many of them are ended, idle, held; rows and bytes in their channels; awaited (checkpoint id, 0: none);
        barriers_total (aligned), aborts_total."""
