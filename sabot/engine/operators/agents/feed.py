"""The last step of a stream before an agent: makes records or columns for the agent."""

from functools import partial

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch, normalise
from sabot.api.agent import AgentSpec
from sabot.api.nodes.agents import Feed
from sabot.api.words import check_names
from sabot.base.arrays import empty_batch
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.codecs.formats import JSON
from sabot.codecs.records import RECORD_SCHEMA, record_keys, row_records
from sabot.engine.operators.agents.rows import RECORD_ROWS
from sabot.engine.operators.base import Operator, OperatorContext, without_marks
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.errors import UserError


class AgentFeed(Operator):
    """A step that converts the rows of a stream to the input of an agent: to records (RECORD_SCHEMA) for a record
    agent; to the columns of `schema=`, or all columns without it, for a batch agent.

    The partition of the records is -1, because they come from no single record of a topic. `key`: the column whose
    values become the keys of the records, or None. Raises UserError for missing columns, for types that JSON cannot
    encode, and for types that differ from those of `schema=`.
    """

    def __init__(self, spec: AgentSpec, key: str | None = None) -> None:
        self._spec = spec
        self._key = key
        self._names: list[str] = []
        self._clock: Clock = SYSTEM_CLOCK

    def open(self, context: OperatorContext) -> pa.Schema:
        columns, where = without_marks(context.input), f"to(agent {self._spec.agent_id})"
        self._clock = context.clock
        self._names = columns.names
        if not self._spec.batch:
            check_names(where, [name for name in (self._key, self._spec.key) if name is not None], columns.names)
            JSON.check_types(columns, where)
            return RECORD_SCHEMA
        if self._spec.schema is None:
            return columns
        wanted = normalise(empty_batch(self._spec.schema)).schema
        check_names(where, wanted.names, columns.names)
        for field in wanted:
            there = columns.field(field.name).type
            if there != field.type:
                raise UserError(
                    f"{where}: column {field.name!r} is {there}, and the agent's schema= says {field.type}",
                    hint=f"with_columns({field.name}=col({field.name!r}).cast(…)) before it, or change schema=",
                )
        self._names = wanted.names
        return pa.schema([columns.field(name) for name in wanted.names])

    def process(self, batch: Batch) -> None:
        data, agent_id = batch.taken().select(self._names), self._spec.agent_id
        if self._spec.batch:
            self.emit(Batch(data, None, agent_id))
            return
        keys = None if self._key is None else record_keys(data, [self._key])
        records = row_records(data, keys, int(self._clock.time() * 1000))
        nowhere = pa.array(np.full(data.num_rows, -1, np.int32))
        records = records.set_column(3, RECORD_SCHEMA.field(3), nowhere)
        for start in range(0, records.num_rows, RECORD_ROWS):
            self.emit(Batch(records.slice(start, RECORD_ROWS), None, agent_id))


def plan_feed(node: Feed, point: PlanPoint) -> PlanPoint:
    return point.step(node.text(), partial(AgentFeed, node.agent, node.key))


PLANNERS: Planners = {Feed: plan_feed}
