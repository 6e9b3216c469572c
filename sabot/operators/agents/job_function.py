"""The function of a durable agent, as jobs call it: over the record that the journal has."""

from collections.abc import Callable, Coroutine
from typing import Any

from sabot.api.agent import AgentSpec
from sabot.api.durable import DurableContext, durable_context
from sabot.calls.functions import awaitable
from sabot.clock import Clock
from sabot.codecs.records import decode_json
from sabot.jobs.run import JobRun
from sabot.jobs.values import pack
from sabot.operators.agents.job_rows import JobInput, decode_record, row_of
from sabot.operators.agents.rows import gathering, place_of, plain_of
from sabot.state import StateBackend
from sabot.state.backends.memory import MemoryBackend

__all__ = ["JobFunction"]


class JobFunction:
    """keyed: there is one job of a key at a time, and its state is the key's."""

    def __init__(self, spec: AgentSpec, state: StateBackend | None, clock: Clock) -> None:
        """state: of the agent. Without key= what a job keeps is its own, and nobody else's: nothing of it is ever applied."""
        self.keyed = spec.key is not None
        self._agent_id = spec.agent_id
        self._clock = clock
        self._state = state if self.keyed else MemoryBackend()
        self._prefix = f"{spec.agent_id}/" if self.keyed else ""
        self._function, self._is_coroutine_function = gathering(spec.func)

    def context(self, job: JobRun) -> tuple[DurableContext, JobInput]:
        """What the function gets for this job, and the record that it is about. Raises DataError."""
        begin = job.history.begin
        record = decode_record(begin.body)  # type: ignore[arg-type]
        row = row_of(record)
        row.value = decode_json(record.payload, where=place_of(row))
        row.scope = begin.key if self.keyed else b""
        return durable_context(job, row, self._state, self._agent_id, self._prefix, self._clock), record

    def call(self, ctx: DurableContext) -> Coroutine[Any, Any, Any]:
        """Its coroutine, not begun."""
        return self._function(ctx) if self._is_coroutine_function else _plain(self._function, ctx)

    def packed(self, job: JobRun, value: Any) -> bytes:
        """What it has returned, as END has it. Raises UserError."""
        return pack(plain_of(value), f"the result of job {job.job_id}")


async def _plain(function: Callable[..., Any], ctx: DurableContext) -> Any:
    """The call of a function that is no coroutine function; what it gives may still be awaitable."""
    value, pending = awaitable(function(ctx))
    return await value if pending else value
