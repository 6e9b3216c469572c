"""A record agent: one call for each record."""

from collections.abc import Callable, Sequence
from typing import Any

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.partition import hash_rows
from sabot.api.agent import AgentSpec
from sabot.api.context import AgentContext, CallTimers, record_context
from sabot.api.functions import Timer
from sabot.codecs.records import encode_json
from sabot.engine.calls import Worker
from sabot.engine.calls.functions import awaitable
from sabot.engine.operators.agents.lanes import LaneOperator
from sabot.engine.operators.agents.rows import (
    RecordReader,
    Result,
    Row,
    collect_results,
    place_of,
    results_of,
    waiting_batches,
)
from sabot.engine.operators.agents.timers import DueTimer, KeyTimers, key_bytes, key_of
from sabot.engine.operators.row_queue import QueuedRows


class RecordAgentOperator(LaneOperator):
    """The operator of a record agent: decodes records and gives each to the lane of its key."""

    def __init__(self, spec: AgentSpec, **wiring: Any) -> None:
        super().__init__(spec, **wiring)
        self._turn = 0
        self._call = collect_results(spec.func, payload_of=self.payload_of)
        self._reader = RecordReader(spec, self.key_kinds, self.codec_for)
        self._prefix = "" if spec.key is None else f"{spec.agent_id}/"
        self._no_timers = CallTimers(spec.agent_id, fires=False) if spec.on_timer is None else None
        if spec.on_timer is not None:
            self.timers = KeyTimers(f"agent {spec.agent_id}", self.clock, self._put_due, self.broke)
            self._timer_call = collect_results(spec.on_timer, payload_of=self.payload_of)

    def put(self, batch: Batch) -> None:
        rows = self.take_records(self._reader, batch)
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
        """Puts due timers into the lanes of their keys, behind the rows that came before."""
        topic = self.spec.topics[0] if len(self.spec.topics) == 1 else ""
        rows = []
        held = QueuedRows(len(due))  # without data: a barrier saves them together with the timers that are not due
        for place, timer in enumerate(due):
            scope, at, _ = timer
            row = Row(None, key_bytes(key_of(scope)), at, -1, -1, (), topic, None, scope, held, place, timer)
            self.renew(row)
            rows.append(row)
        self.hold_rows(held)
        for row in rows:
            self._enqueue(self.lanes[(row.scope[0] << 8 | row.scope[1]) % len(self.lanes)], row)

    @staticmethod
    def _enqueue(lane: Worker[Row], row: Row) -> None:
        lane.queue.append(row)
        lane.rouse()

    def end_rows_of(self, item: Row) -> bool:
        return self.held.end(item.held, item.place)

    def unfinished(self) -> list[Batch]:
        return waiting_batches(self.held)

    def _where(self, item: Row) -> str:
        if item.timer is not None:
            scope, at, name = item.timer
            return f"the timer {name!r} at {at} of {self.spec.key} {key_of(scope)!r}"
        return place_of(item)

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
        """Calls `on_timer`, and returns its result as `begin` does. No call is made if the timer was deleted while it
        waited in its lane.
        """
        assert self.timers is not None
        if not self.timers.is_set(timer):
            return None, False
        _, at, name = timer
        call, coroutine_function = self._timer_call
        timer_event = Timer(at, name, "processing")
        return (call(timer_event, ctx), True) if coroutine_function else awaitable(run(call, timer_event, ctx))

    def written(self, item: Row, value: Any) -> Sequence[Result]:
        output = results_of(value, self.payload_of)
        if type(value) is dict and b"null" not in (output[0][0] or b""):
            return output  # the usual case: the result names no sink, and no NaN became null
        return self.check_results(output, value, self._where(item))

    def _end(self, item: Row, output: Sequence[Result] | None) -> None:
        if output is not None and self.results is not None:
            for payload, key, headers, topic in output:
                into = self.results if topic is None else self.branches[topic]
                key = item.key if key is None else key
                into.add(payload, key, item.timestamp, item.partition, item.offset, headers)
        if item.timer is None:
            self.counters.messages_processed += 1
            self.counters.last_message_time = self.clock.time()

    def _send_to_dead_letters(self, item: Row, failure: BaseException, attempts: int) -> None:
        if item.timer is not None:
            assert self.timers is not None
            self.timers.ended(item.timer)
            item.payload = encode_json(item.value)
            self.dead_letter(item, failure, attempts, step=self._where(item))
        else:
            item.payload = item.raw()
            self.dead_letter(item, failure, attempts)

    def renew(self, item: Row) -> None:
        if item.timer is None:
            item.payload = item.raw()
            self._reader.decode(item)
            item.payload = None
        else:
            item.value = {self.spec.key: key_of(item.scope)}
