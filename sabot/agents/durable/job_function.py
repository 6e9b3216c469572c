"""The function of a durable agent, called for a job with the record or batch from its journal."""

from collections.abc import Coroutine
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from sabot.agents.durable.context import BatchJobContext, DurableContext, batch_job_context, durable_context
from sabot.agents.durable.job_batches import BatchInput, from_ipc, read_batch, to_ipc
from sabot.agents.durable.job_rows import (
    JobInput,
    decode_record,
    encode,
    payload_from,
    row_of,
    user_headers,
    value_headers,
    value_of_header,
)
from sabot.api.agent import AgentSpec
from sabot.api.context import Message
from sabot.clock import Clock
from sabot.codecs.records import decode_json
from sabot.engine.calls.functions import awaitable
from sabot.engine.calls.judging import ValueCode
from sabot.engine.operators.agents.batches import named_rows, returned
from sabot.engine.operators.agents.rows import collect_results, place_of, plain_value
from sabot.engine.state import StateAt, StateBackend
from sabot.engine.state.backends.memory import MemoryBackend
from sabot.engine.state.base import LocalBackend
from sabot.errors import RowErrors
from sabot.jobs.run import JobRun
from sabot.jobs.values import in_order, pack, unpack


class JobFunction:
    """The function of a durable agent, with the keyed state that it uses.

    - `keyed`: True if the agent has `key=`. Then at most one job of each key runs at a time, and the jobs of a key
      share a state.
    - `begun`: the time at which each open job began, in milliseconds since 1970, by the id of the job. It is only
      filled if values of the state can expire.

    If values of the state can expire, a job reads the state as of its own time (`ctx.now`), so that it reads the same
    values when it is replayed. Therefore an expired value is kept until all jobs have ended that began before it
    expired.
    """

    def __init__(self, spec: AgentSpec, state: StateBackend | None, clock: Clock) -> None:
        """Makes the object. `state` is the store of the agent's keyed state. It is used only if the agent has `key=`.
        Otherwise each job has a state of its own in memory, which is dropped when the job ends.
        """
        self.keyed = spec.job_key is not None
        self._agent_id = spec.agent_id
        self._clock = clock
        self._state = state if self.keyed else MemoryBackend()
        self._expiry = self._state.expiry if isinstance(self._state, LocalBackend) else None
        self.begun: dict[str, int] = {}
        self._prefix = f"{spec.agent_id}/" if self.keyed else ""
        self._function, _ = collect_results(spec.func, _ordered)

    def context(self, job: JobRun) -> tuple[DurableContext, JobInput | BatchInput]:
        """Returns the `ctx` argument for the function of a job, and the job's record or batch, decoded from its BEGIN
        entry. Raises DataError if the payload of the record cannot be decoded.
        """
        begin, state = job.history.begin, self._state
        if self._expiry is not None and state is not None:
            self.opened(job.job_id, begin.at_ms)
            state = StateAt(state, self._expiry, job.now_ms)
        record = decode_record(begin.body)  # type: ignore[arg-type]
        row = row_of(record)
        if (packed := value_of_header(record.headers)) is not None:
            row.value, row.headers = unpack(packed), user_headers(record.headers)
        elif record.columns:
            (row.value,) = from_ipc(record.columns).to_pylist()
        else:
            row.value = None if record.payload is None else decode_json(record.payload, where=place_of(row))
        row.scope = begin.key if self.keyed else b""
        return durable_context(job, row, state, self._agent_id, self._prefix, self._clock), record

    def opened(self, job_id: str, begun_ms: int) -> None:
        """Records the time at which an open job began, in milliseconds since 1970. Does nothing if values of the
        state never expire, or if the job is recorded already.
        """
        if self._expiry is not None:
            self.begun.setdefault(job_id, begun_ms)

    def call(self, ctx: DurableContext) -> Coroutine[Any, Any, Any]:
        """Calls the function, and returns its coroutine. The coroutine has not been started."""
        return self._result(ctx)

    async def _result(self, ctx: DurableContext) -> Any:
        value, pending = awaitable(self._function(ctx))
        return _ordered(await value if pending else value)

    def continued(self, job: JobRun, message: Any) -> bytes:
        """Returns the encoded record with which the job continues after `ctx.continue_as(message)`."""
        record = decode_record(job.history.begin.body)  # type: ignore[arg-type]
        payload = payload_from(message)
        headers = (*user_headers(record.headers), *value_headers(message, payload))
        return encode(msgspec.structs.replace(record, payload=payload, columns=b"", headers=headers))

    def packed(self, job: JobRun, value: Any) -> bytes:
        """Encodes the value that the function has returned, for the job's END entry. Raises UserError if the value
        cannot be encoded.
        """
        with ValueCode(job.history.begin.agent):
            return pack(plain_value(value), f"the result of job {job.job_id}")


class BatchJobFunction(JobFunction):
    """The function of a durable agent that gets batches. The function always gets the columns that are stored in the
    journal, in its first run too. So a replay gets the same values.
    """

    def __init__(self, spec: AgentSpec, state: StateBackend | None, clock: Clock) -> None:
        super().__init__(spec, state, clock)
        self._of_batch = spec.func

    def context(self, job: JobRun) -> tuple[BatchJobContext, BatchInput]:
        batch = read_batch(job.history.begin.body, job.job_id)  # type: ignore[arg-type]
        return batch_job_context(job, from_ipc(batch.columns), batch.topic, self._agent_id, self._clock), batch

    def call(self, ctx: DurableContext) -> Coroutine[Any, Any, Any]:
        assert isinstance(ctx, BatchJobContext)
        return self._good_rows(ctx)

    async def _good_rows(self, ctx: BatchJobContext) -> Any:
        """Calls the function with the batch, and returns its result. If the function raises `RowErrors`, the rows
        named by that error are recorded in `ctx.given_up`, and the function is called again without them. If no rows
        are left, returns None.

        Raises the error if the function had already made an effect before it raised the error, because a second call
        would repeat that effect.
        """
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
        """Encodes the number of result rows and a hash of them, for the job's END entry. The rows themselves are not
        stored. Raises TypeError if the result is no Arrow data.
        """
        if value is None:
            return pack(None, "")
        rows = returned(value)
        return pack({"rows": rows.num_rows, "digest": blake2b(to_ipc(rows), digest_size=16).hexdigest()}, "")


def job_function(spec: AgentSpec, state: StateBackend | None, clock: Clock) -> JobFunction:
    """Makes the object that calls the function of a durable agent: a BatchJobFunction if the agent gets batches,
    otherwise a JobFunction. `state` is the store of the agent's keyed state.
    """
    return (BatchJobFunction if spec.batch else JobFunction)(spec, state, clock)


def _ordered(value: Any) -> Any:
    """Returns the value with a sorted list in place of each set in it. The order of a set may differ between
    processes, but a replay in another process must return the same result.
    """
    if isinstance(value, Message):
        return Message(in_order(value.value), key=value.key, headers=value.headers, topic=value.topic)
    return in_order(value)
