"""Rows that agents have taken and not finished, and positions, as a checkpoint keeps them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.arrow.border import validate
from sabot.checkpoint import TaskSnapshot
from sabot.codecs.records import RECORD_SCHEMA
from sabot.connectors.base import Positions

__all__ = ["from_ipc", "keep_unfinished", "lowest_offsets", "positions_of"]


def keep_unfinished(snapshot: TaskSnapshot, agent_id: str, batches: Iterable[Batch]) -> None:
    """Rows that the checkpoint must repeat, behind those that it has of this agent already."""
    kept = snapshot.meta["agents"][agent_id]["unfinished"]
    for batch in batches:
        kept.append({"file": f"{agent_id}.{len(kept)}.arrow", "topic": batch.topic})
        snapshot.files[kept[-1]["file"]] = _to_ipc(batch.data)


def positions_of(rows: list[list[Any]]) -> Positions:
    """[[topic, partition, offset], …] of a manifest -> positions."""
    return {(topic, partition): offset for topic, partition, offset in rows}


def lowest_offsets(data: pa.RecordBatch) -> list[tuple[int, int]]:
    """By partition, of records; of columns none."""
    if not data.schema.equals(RECORD_SCHEMA) or not data.num_rows:
        return []
    # not group_by: it wakes a pool of threads, 5 ms in the middle of the cut
    partitions, offsets = data.column(3).to_numpy(), data.column(4).to_numpy()
    return [(int(each), int(offsets[partitions == each].min())) for each in np.unique(partitions)]


def _to_ipc(data: pa.RecordBatch) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, data.schema) as writer:
        writer.write_batch(data)
    return bytes(buffer.getvalue())


def from_ipc(data: bytes) -> pa.RecordBatch:
    """What `keep_unfinished` wrote. Raises for data that is damaged."""
    with pa.ipc.open_stream(data) as reader:
        batch = reader.read_next_batch()
        validate(batch)
        return batch
