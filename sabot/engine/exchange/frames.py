"""Frames: the messages between two workers. A frame is one message of Arrow Flight: rows, or none, and the marks
after the rows.

    channel of the sender      B  B  W  B  BARRIER  B        B: a batch, W: a watermark
    frames                    [B+B | W] [B | BARRIER] [B]    small batches that wait are joined; nothing waits for more to come
    channel of the receiver    B     W   B   BARRIER   B

The rows are an Arrow record batch; the rest of a batch and the marks are its metadata, in msgpack. Only the selected
rows are sent: the sender's thread copies them, once each, because a shuffle sends every row to one channel. Key
hashes are not sent, because sending 8 bytes a row costs more than computing the hash again. The origin of rows
(`RowOrigin`) is sent as two more columns, because dead letters of the receiver contain it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import ACTIVE, END, IDLE, Abort, Barrier, Channel, Watermark
from sabot.engine.operators.base import COMPLETE
from sabot.engine.operators.rows.origin import RowOrigin
from sabot.errors import InternalError

JOINED_ROWS = 32_768
SMALL_ROWS = 4_096  # smaller batches are joined with those that wait behind them
MOST_MARKS = 1_024  # of one frame

_ORIGIN = (pa.field("__partition", pa.int32(), nullable=False), pa.field("__offset", pa.int64(), nullable=False))
_WORD_BYTES = 8

_SINGLE = {"idle": IDLE, "active": ACTIVE, "end": END, "complete": COMPLETE}
_NUMBERED = {"watermark": Watermark, "barrier": Barrier, "abort": Abort}


class Frame(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The metadata of a message: the facts about its rows besides their columns, and the marks after them, in order.

    `asks`: True if the receiver has to answer when the rows are in its channel; the answer returns credit to the
    sender. `goes_on`: True if this call ends here, and another call continues the edge with other columns.
    """

    topic: str = ""
    offsets: list[tuple[str, int, int]] = []  # topic, partition, next offset
    has_origin: bool = False  # the last two columns are the partition and the offset of each row
    marks: list[tuple[str, int]] = []
    asks: bool = False
    goes_on: bool = False

    @property
    def is_last(self) -> bool:
        """True if the last mark is END, so no frame follows."""
        return bool(self.marks) and self.marks[-1][0] == "end"

    def elements(self) -> Iterator[Any]:
        """Yields the marks as elements. Raises InternalError for an unknown mark."""
        for name, number in self.marks:
            if name in _SINGLE:
                yield _SINGLE[name]
            elif name in _NUMBERED:
                yield _NUMBERED[name](number)
            else:
                raise InternalError(f"a frame has an unknown mark: {name!r}")


def _mark(element: Any) -> tuple[str, int]:
    match element:
        case Watermark():
            return "watermark", element.timestamp_ms
        case Barrier():
            return "barrier", element.checkpoint_id
        case Abort():
            return "abort", element.checkpoint_id
    return next(name for name, mark in _SINGLE.items() if mark is element), 0


class Framing:
    """Makes frames of the elements that wait together in a channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._next: Any = None  # an element that was taken, and is not in the last frame

    def next(self) -> tuple[pa.RecordBatch | None, Frame] | None:
        """Waits for an element. Returns the rows of the next frame (None if it has no rows) and the frame, or None if
        the channel is closed.
        """
        element = self._channel.get() if self._next is None else self._next
        return None if element is None else self._frame(element)

    def next_nowait(self) -> tuple[pa.RecordBatch | None, Frame] | None:
        """Like `next`, but also returns None if no element waits."""
        element = self._channel.get_nowait() if self._next is None else self._next
        return None if element is None else self._frame(element)

    def _frame(self, element: Any) -> tuple[pa.RecordBatch | None, Frame]:
        self._next = None
        batches: list[Batch] = []
        marks: list[tuple[str, int]] = []
        rows = 0
        while element is not None:
            if not isinstance(element, Batch) or element is COMPLETE:
                marks.append(_mark(element))
                if element is END or len(marks) >= MOST_MARKS:
                    break
            elif not batches and not marks:
                batches.append(element)
                rows = element.num_rows
            elif (
                not marks
                and rows < SMALL_ROWS
                and _alike(batches[0], element)
                and rows + element.num_rows < JOINED_ROWS
            ):
                batches.append(element)
                rows += element.num_rows
            else:
                self._next = element
                break
            element = self._channel.get_nowait()
        if not batches:
            return None, Frame(marks=marks)
        data, frame = rows_of(batches)
        frame.marks = marks
        return data, frame


def _alike(first: Batch, other: Batch) -> bool:
    """Returns True if the two batches can be joined."""
    return (
        first.topic == other.topic
        and (first.records is None) == (other.records is None)
        and bool(first.data.schema.equals(other.data.schema, check_metadata=True))
    )


def rows_of(batches: Sequence[Batch]) -> tuple[pa.RecordBatch, Frame]:
    """Returns the selected rows of these batches as one record batch, and their frame. The batches must have the same
    topic and columns.
    """
    taken = [batch.taken() for batch in batches]
    data = taken[0] if len(taken) == 1 else pa.concat_batches(taken)
    offsets = {place: offset for batch in batches for place, offset in batch.offsets.items()}
    frame = Frame(batches[0].topic, [(topic, partition, offset) for (topic, partition), offset in offsets.items()])
    if batches[0].records is not None:
        places = [_places(batch) for batch in batches]
        columns = [pa.concat_arrays([each[k] for each in places]) for k in (0, 1)]
        schema = pa.schema([*data.schema, *_ORIGIN], metadata=data.schema.metadata)
        data = pa.RecordBatch.from_arrays([*data.columns, *columns], schema=schema)
        frame.has_origin = True
    return data, frame


def _places(batch: Batch) -> tuple[pa.Array, pa.Array]:
    """Returns the partition and the offset of each selected row."""
    origin = batch.records
    if not isinstance(origin, RowOrigin):
        raise InternalError(
            f"a batch of {type(origin).__name__} cannot be sent to another worker: only rows of a stream can"
        )
    rows = batch.selection
    return origin.columns(pa.array(np.arange(batch.num_rows, dtype=np.int32)) if rows is None else rows)


def parts_of(data: pa.RecordBatch, most_bytes: int) -> list[tuple[pa.RecordBatch, int]]:
    """Splits the rows, in order, into parts of about `most_bytes`. Returns each part with its bytes; a larger row is
    a part of its own.
    """
    nbytes = data.nbytes
    count = min(-(-nbytes // most_bytes), data.num_rows)
    if count <= 1:
        return [(data, nbytes)]
    rows = -(-data.num_rows // count)
    parts = [data.slice(start, rows) for start in range(0, data.num_rows, rows)]
    return [(part, part.nbytes) for part in parts]


def element_of(data: pa.RecordBatch, frame: Frame) -> Batch:
    """Returns the batch of a message with rows."""
    offsets = {(topic, partition): offset for topic, partition, offset in frame.offsets}
    if not frame.has_origin:
        return Batch(data, offsets, frame.topic)
    partitions, places = data.columns[-2:]
    data = data.select(list(range(data.num_columns - len(_ORIGIN))))
    return Batch(data, offsets, frame.topic, RowOrigin.of_records(partitions, places))


def word_aligned(data: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the same rows in buffers that begin at whole words, as kernels expect.

    The buffers from Flight are slices of a message after a header of any length, so all of them are shifted by the
    same number of bytes, and one buffer shows whether a copy is needed. Most messages are copied. This costs less
    than the other copies between the two processes.
    """
    for column in data.columns:
        for buffer in column.buffers():
            if buffer is not None and buffer.size:
                return data if buffer.address % _WORD_BYTES == 0 else pa.concat_batches([data, data.slice(0, 0)])
    return data
