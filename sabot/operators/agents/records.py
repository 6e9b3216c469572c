"""A record agent: one call per record."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.partition import hash_rows
from sabot._cython.text.json import NESTING_MAX, is_too_deep
from sabot._cython.text.records import state_key
from sabot.api.agent import AgentSpec
from sabot.api.context import AgentContext, CallTimers, Message, record_context
from sabot.api.functions import Timer
from sabot.calls import Worker
from sabot.calls.functions import awaitable, behind, each_piece
from sabot.codecs.json import JsonCodec
from sabot.codecs.records import Headers, decode_json, encode_json, to_records
from sabot.errors import UNREADABLE, DataError
from sabot.operators.agents.lanes import LaneOperator
from sabot.operators.agents.operator import Row, rows_of
from sabot.operators.agents.timers import DueTimer, KeyTimers, key_bytes, key_of
from sabot.operators.held import HeldRows

__all__ = ["RECORD_ROWS", "RecordAgentOperator"]

RECORD_ROWS = 2048
"""More records do not come at once: to deal so many to the lanes holds the event loop up for 2 ms."""

_decode = msgspec.json.Decoder().decode

Result = tuple[bytes, bytes | None, Headers]  # payload, key (None: the key of the input), headers


class RecordAgentOperator(LaneOperator):
    """Rows of RECORD_SCHEMA, decoded where they enter and dealt to lanes by their key."""

    def __init__(self, spec: AgentSpec, **wiring: Any) -> None:
        super().__init__(spec, **wiring)
        self._turn = 0
        self._call = _gathering(spec.func)
        self._checker = None if spec.schema is None else JsonCodec(spec.schema)
        self._prefix = "" if spec.key is None else f"{spec.agent_id}/"
        self._no_timers = CallTimers(spec.agent_id, fires=False) if spec.on_timer is None else None
        if spec.on_timer is not None:
            self.timers = KeyTimers(f"agent {spec.agent_id}", self.clock, self._put_due, self.broke)
            self._timer_call = _gathering(spec.on_timer)

    def put(self, batch: Batch) -> None:
        rows = []
        records = to_records(batch, self.now_ms())
        reasons = self._misfits(records)
        held = HeldRows(records.num_rows, records, topic=batch.topic)
        for number, row in enumerate(rows_of(records, batch.topic)):
            try:
                if number in reasons:
                    raise DataError(f"{self._where(row)}: {reasons[number]}")
                self._decode(row)
            except DataError as error:
                self.counters.errors_count += 1
                self.dead_letter(row, error, 0)
                held.end(number)
            else:
                row.held, row.place, row.payload = held, number, None
                rows.append(row)
        self.took(held)
        lanes = self.lanes
        count = len(lanes)
        if count == 1:
            lanes[0].queue.extend(rows)
            lanes[0].rouse()
            return
        if self.spec.key is not None:
            for row in rows:
                self._enqueue(lanes[(row.scope[0] << 8 | row.scope[1]) % count], row)
            return
        for row, key_hash in zip(rows, hash_rows([row.key for row in rows]), strict=True):
            if row.key is None:
                self._turn += 1
                key_hash = self._turn
            self._enqueue(lanes[key_hash % count], row)

    def _put_due(self, due: list[DueTimer]) -> None:
        """Timers that are due, each into the lane of its key, behind the rows that came before."""
        topic = self.spec.topics[0] if len(self.spec.topics) == 1 else ""
        rows = []
        held = HeldRows(len(due))  # the barrier saves them with the timers that are not due
        for place, timer in enumerate(due):
            scope, at, _ = timer
            row = Row(None, key_bytes(key_of(scope)), at, -1, -1, (), topic, None, scope, held, place, timer)
            self.renew(row)
            rows.append(row)
        self.took(held)
        for row in rows:
            self._enqueue(self.lanes[(row.scope[0] << 8 | row.scope[1]) % len(self.lanes)], row)

    def _misfits(self, records: pa.RecordBatch) -> dict[int, str]:
        """With `schema=`: which records do not fit it, and why. The agent gets the others as json.loads gives them."""
        if self._checker is None:
            return {}
        return {bad.row: bad.reason for bad in self._checker.decode(records)[1]}

    @staticmethod
    def _enqueue(lane: Worker[Row], row: Row) -> None:
        lane.queue.append(row)
        lane.rouse()

    def _decode(self, row: Row) -> None:
        """Gives the row its value, and with `key=` the scope of its state. Raises DataError."""
        payload = row.payload
        if payload is None:
            raise DataError(f"{self._where(row)}: the payload is null", hint="a tombstone has no JSON value")
        try:
            if len(payload) > NESTING_MAX and is_too_deep(payload):
                row.value = decode_json(payload, where=self._where(row))  # which says so
            else:
                row.value = _decode(payload)
        except UNREADABLE:
            row.value = decode_json(payload, where=self._where(row))
        if self.spec.key is not None:
            key = row.value.get(self.spec.key) if isinstance(row.value, dict) else None
            if key is None:
                raise DataError(f"{self._where(row)}: no key: field {self.spec.key!r} is missing or null")
            try:
                row.scope = state_key(key)
            except (TypeError, ValueError, OverflowError) as error:
                raise DataError(f"{self._where(row)}: no key: field {self.spec.key!r}: {error}") from error

    def over(self, item: Row) -> bool:
        return self.held.end(item.held, item.place)

    def unfinished(self) -> list[Batch]:
        by_topic: dict[str, list[pa.RecordBatch]] = {}
        for held in self.held:
            if (rows := held.waiting_data()) is not None:
                by_topic.setdefault(held.topic, []).append(rows)
        return [Batch(pa.concat_batches(pieces), None, topic) for topic, pieces in by_topic.items()]

    def _where(self, item: Row) -> str:
        if item.timer is not None:
            scope, at, name = item.timer
            return f"the timer {name!r} at {at} of {self.spec.key} {key_of(scope)!r}"
        return f"{item.topic}[{item.partition}]@{item.offset}"

    def begin(self, item: Row, run: Callable[..., Any]) -> tuple[AgentContext, Any, bool]:
        ctx = record_context(item, self.backend, self.spec.agent_id, self._prefix, self.clock, self._no_timers)
        if item.timer is not None:
            return ctx, *self._fire(item.timer, ctx, run)
        call, coroutine_function = self._call
        if coroutine_function:
            return ctx, call(ctx), True
        value = run(call, ctx)
        return ctx, *awaitable(value)

    def _fire(self, timer: DueTimer, ctx: AgentContext, run: Callable[..., Any]) -> tuple[Any, bool]:
        """The call of on_timer: as `begin`. None is made for a timer that was deleted while it waited in its lane."""
        assert self.timers is not None
        if not self.timers.is_set(timer):
            return None, False
        _, at, name = timer
        call, coroutine_function = self._timer_call
        told = Timer(at, name, "processing")
        return (call(told, ctx), True) if coroutine_function else awaitable(run(call, told, ctx))

    def written(self, item: Row, value: Any) -> Sequence[Result]:
        return value.results if type(value) is _Several else (_result(value),)

    def _end(self, item: Row, output: Sequence[Result] | None) -> None:
        if output is not None and self.results is not None:
            add = self.results.add
            for payload, key, headers in output:
                add(payload, item.key if key is None else key, item.timestamp, item.partition, item.offset, headers)
        if item.timer is None:
            self.counters.messages_processed += 1
            self.counters.last_message_time = self.clock.time()

    def _bury(self, item: Row, failure: BaseException, attempts: int) -> None:
        if item.timer is not None:
            assert self.timers is not None
            self.timers.ended(item.timer)
            item.payload = encode_json(item.value)
            self.dead_letter(item, failure, attempts, step=self._where(item))
        else:
            item.payload = _payload(item)
            self.dead_letter(item, failure, attempts)

    def renew(self, item: Row) -> None:
        if item.timer is None:
            item.payload = _payload(item)
            self._decode(item)
            item.payload = None
        else:
            item.value = {self.spec.key: key_of(item.scope)}


def _payload(row: Row) -> bytes:
    """The payload of a row in a lane: the batch that the row came in has it, and the row does not keep a copy."""
    assert row.held.data is not None
    payload: bytes = row.held.data.column(0)[row.place].as_py()
    return payload


def _result(value: Any) -> Result:
    """A value or Message as it will be written. Raises UserError for what JSON cannot say."""
    key: bytes | None = None
    headers: Headers = ()
    if isinstance(value, Message):
        key, headers, value = value.key, value.headers, value.value
    return value if isinstance(value, bytes) else encode_json(value), key, headers


@dataclass(slots=True)
class _Several:
    """What a call yielded, written down at once: the agent may go on changing the values."""

    results: list[Result]

    def add(self, value: Any) -> None:
        """One of them; None is no result."""
        if value is not None:
            self.results.append(_result(value))


def _gathering(func: Callable[..., Any]) -> tuple[Callable[..., Any], bool]:
    """The function to call, and whether it is a coroutine function; what generators give is gathered into _Several."""
    target = behind(func)
    if inspect.isasyncgenfunction(target):

        async def gather(*given: Any) -> _Several:
            several = _Several([])
            await each_piece(func(*given), several.add)
            return several

        return gather, True
    if inspect.isgeneratorfunction(target):

        def gather_here(*given: Any) -> _Several:
            several = _Several([])
            for value in func(*given):
                several.add(value)
            return several

        return gather_here, False
    return func, inspect.iscoroutinefunction(target)
