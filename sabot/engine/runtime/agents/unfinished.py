"""Rows that agents have taken but not finished, and positions, in the form in which a checkpoint stores them."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.arrow.border import validate
from sabot.codecs.records import RECORD_SCHEMA
from sabot.connectors.base import Positions
from sabot.engine.checkpoint import TaskSnapshot
from sabot.engine.operators.agents.operator import AgentOperator
from sabot.engine.runtime.tasks.writing import OperatorPort


def keep_unfinished(snapshot: TaskSnapshot, agent_id: str, batches: Iterable[Batch]) -> None:
    """Adds rows to the snapshot that a restore must process again. They follow the rows of this agent that the
    snapshot has already.
    """
    kept = snapshot.meta["agents"][agent_id]["unfinished"]
    for batch in batches:
        kept.append({"file": f"{agent_id}.{len(kept)}.arrow", "topic": batch.topic})
        snapshot.files[kept[-1]["file"]] = to_ipc(batch.data)


def positions_of(rows: list[list[Any]]) -> Positions:
    """Turns [[topic, partition, offset], …] of a manifest into positions."""
    return {(topic, partition): offset for topic, partition, offset in rows}


def lowest_offsets(data: pa.RecordBatch) -> list[tuple[int, int]]:
    """Returns the lowest offset of each partition in a batch of records; an empty list for columns."""
    if not data.schema.equals(RECORD_SCHEMA) or not data.num_rows:
        return []
    # group_by would wake a pool of threads, which takes 5 ms in the middle of the cut.
    partitions, offsets = data.column(3).to_numpy(), data.column(4).to_numpy()
    return [(int(each), int(offsets[partitions == each].min())) for each in np.unique(partitions)]


def finished_up_to(
    reader: AgentOperator, topic: str, partition: int, taken: int, first_open: Mapping[tuple[str, str, int], int]
) -> int | None:
    """Returns the offset up to which a partition may be committed: that of the first row that is not finished, either
    in `reader` or in an agent to which it passes rows. Returns None if that is unknown, because a batch agent on the
    way has dropped the positions of rows; the committed offset then stays as it is.

    Rows that one agent passes to another carry the position of the record from which they came. `taken`: the offset
    up to which the reader has taken rows. `first_open`: the first unfinished offset by agent, input (a topic or an
    agent) and partition; partition -1 means that a row without a position is unfinished.
    """
    lowest = min(taken, first_open.get((reader.spec.agent_id, topic, partition), taken))
    agent, port = reader, reader.port
    while isinstance(port, OperatorPort):
        place = port.operator.spec.agent_id, agent.spec.agent_id
        if (*place, -1) in first_open:
            return None
        lowest = min(lowest, first_open.get((*place, partition), lowest))
        agent, port = port.operator, port.operator.port
    return lowest


def to_ipc(data: pa.RecordBatch) -> bytes:
    """Returns the rows in Arrow's IPC format."""
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, data.schema) as writer:
        writer.write_batch(data)
    return bytes(buffer.getvalue())


def from_ipc(data: bytes) -> pa.RecordBatch:
    """Reads what `to_ipc` has returned. Raises if the data is damaged."""
    with pa.ipc.open_stream(data) as reader:
        batch = reader.read_next_batch()
        validate(batch)
        return batch
