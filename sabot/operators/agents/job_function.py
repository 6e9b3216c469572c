"""The function of a durable agent, as jobs call it: over the record, or the batch, that the journal has."""

from collections.abc import Coroutine
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from sabot.api.agent import AgentSpec
from sabot.api.context import Message
from sabot.api.durable import BatchJobContext, DurableContext, batch_job_context, durable_context
from sabot.calls.functions import awaitable
from sabot.clock import Clock
from sabot.codecs.records import decode_json
from sabot.errors import RowErrors
from sabot.jobs.run import JobRun
from sabot.jobs.values import in_order, pack
from sabot.operators.agents.batches import named_rows, returned
from sabot.operators.agents.job_batches import BatchInput, of_ipc, read_batch, to_ipc
from sabot.operators.agents.job_rows import JobInput, decode_record, encode, payload_from, row_of
from sabot.operators.agents.rows import gathering, place_of, plain_of
from sabot.state import StateAt, StateBackend
from sabot.state.backends.memory import MemoryBackend
from sabot.state.base import LocalBackend


class JobFunction:
    """keyed: there is one job of a key at a time, and its state is the key's. begun: where values of that state expire, the open jobs, and
    when they began. What a job reads is judged at its own time (`ctx.now`), so that it reads the same in a replay: a value is needed
    until the jobs that began before it expired are over.
    """

    def __init__(self, spec: AgentSpec, state: StateBackend | None, clock: Clock) -> None:
        """state: of the agent. Without key= what a job keeps is its own, and nobody else's: nothing of it is ever applied."""
        self.keyed = spec.job_key is not None
        self._agent_id = spec.agent_id
        self._clock = clock
        self._state = state if self.keyed else MemoryBackend()
        self._expiry = self._state.expiry if isinstance(self._state, LocalBackend) else None
        self.begun: dict[str, int] = {}
        self._prefix = f"{spec.agent_id}/" if self.keyed else ""
        self._function, _ = gathering(spec.func, _ordered)

    def context(self, job: JobRun) -> tuple[DurableContext, JobInput | BatchInput]:
        """What the function gets for this job, and the record, or the batch, that it is about. Raises DataError."""
        begin, state = job.history.begin, self._state
        if self._expiry is not None and state is not None:
            self.opened(job.job_id, begin.at_ms)
            state = StateAt(state, self._expiry, job.now_ms)
        record = decode_record(begin.body)  # type: ignore[arg-type]
        row = row_of(record)
        if record.columns:
            (row.value,) = of_ipc(record.columns).to_pylist()
        else:
            row.value = None if record.payload is None else decode_json(record.payload, where=place_of(row))
        row.scope = begin.key if self.keyed else b""
        return durable_context(job, row, state, self._agent_id, self._prefix, self._clock), record

    def opened(self, job_id: str, begun_ms: int) -> None:
        """The job is open, and began then. Idempotent."""
        if self._expiry is not None:
            self.begun.setdefault(job_id, begun_ms)

    def call(self, ctx: DurableContext) -> Coroutine[Any, Any, Any]:
        """Its coroutine, not begun."""
        return self._result(ctx)

    async def _result(self, ctx: DurableContext) -> Any:
        value, pending = awaitable(self._function(ctx))
        return _ordered(await value if pending else value)

    def continued(self, job: JobRun, message: Any) -> bytes:
        """The record of the job that goes on with this message."""
        record = decode_record(job.history.begin.body)  # type: ignore[arg-type]
        return encode(msgspec.structs.replace(record, payload=payload_from(message), columns=b""))

    def packed(self, job: JobRun, value: Any) -> bytes:
        """What it has returned, as END has it. Raises UserError."""
        return pack(plain_of(value), f"the result of job {job.job_id}")


class BatchJobFunction(JobFunction):
    """That of a batch agent. It gets the columns that the journal has, live as in replay."""

    def __init__(self, spec: AgentSpec, state: StateBackend | None, clock: Clock) -> None:
        super().__init__(spec, state, clock)
        self._of_batch = spec.func

    def context(self, job: JobRun) -> tuple[BatchJobContext, BatchInput]:
        batch = read_batch(job.history.begin.body, job.job_id)  # type: ignore[arg-type]
        return batch_job_context(job, of_ipc(batch.columns), batch.topic, self._agent_id, self._clock), batch

    def call(self, ctx: DurableContext) -> Coroutine[Any, Any, Any]:
        assert isinstance(ctx, BatchJobContext)
        return self._good_rows(ctx)

    async def _good_rows(self, ctx: BatchJobContext) -> Any:
        """The call; and another one without them, where it has named bad rows before it asked for anything."""
        left, before = np.arange(ctx.message.num_rows), ctx.asked
        while ctx.message.num_rows:
            try:
                value, pending = awaitable(self._of_batch(ctx.message, ctx))
                return await value if pending else value
            except RowErrors as error:
                if ctx.asked > before or not named_rows(error, ctx.message):
                    raise
                ctx.given_up.update((int(left[row]), reason) for row, reason in error.rows.items())
                keep = np.ones(len(left), bool)
                keep[list(error.rows)] = False
                left, ctx.message = left[keep], ctx.message.filter(pa.array(keep))
        return None

    def packed(self, job: JobRun, value: Any) -> bytes:
        """How many rows it has returned, and a digest of them. Raises TypeError for anything but Arrow."""
        if value is None:
            return pack(None, "")
        rows = returned(value)
        return pack({"rows": rows.num_rows, "digest": blake2b(to_ipc(rows), digest_size=16).hexdigest()}, "")


def job_function(spec: AgentSpec, state: StateBackend | None, clock: Clock) -> JobFunction:
    """The function of a durable agent. state: of the agent."""
    return (BatchJobFunction if spec.batch else JobFunction)(spec, state, clock)


def _ordered(value: Any) -> Any:
    """What the function gives, as each run of the job gives it."""
    if isinstance(value, Message):
        return Message(in_order(value.value), key=value.key, headers=value.headers, topic=value.topic)
    return in_order(value)
