"""map_async and lookups by async functions: order, marks, bounds, errors, and what a checkpoint holds of calls in flight.

Most of it runs on one thread: the event loop takes turns when the test says so, and its time is the test's.
"""

import asyncio
import contextlib
import contextvars
import itertools
import random
import re
import threading
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.engine.operators.calls.async_runs import INPUT, OUTPUT, Loop, Run, Service, buried, letters_in, rows, spoken

from sabot import App, count, tumbling
from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import ACTIVE, IDLE
from sabot._cython.groups.partition import hash_columns
from sabot.api.calls import AsyncCall, LookupCall
from sabot.clock import ManualClock
from sabot.codecs.records import RECORD_SCHEMA
from sabot.engine.calls import CallOptions, Retry, crew
from sabot.engine.operators.base import END_OF_TIME, TIME_COLUMN, OperatorContext, Saved, with_time
from sabot.engine.operators.calls import async_operator
from sabot.engine.operators.calls.async_operator import AsyncOperator
from sabot.engine.operators.calls.lookups import LookupAsync
from sabot.engine.operators.calls.map_async import MapAsync
from sabot.engine.operators.state_parts import owned_groups
from sabot.errors import InternalError, UserError
from sabot.testing import BARRIER, END, ListSink, ScriptedSource, simulate


def mapping(loop, service, *, restored=(), subtask=0, parallelism=1, schema=OUTPUT, input=INPUT, **options):
    operator = MapAsync(service, schema, **spoken(options))
    return Run(operator, loop, input, subtask=subtask, parallelism=parallelism, restored=restored)


# -- order ----------------------------------------------------------------------------------------------------------------


def test_results_come_in_the_order_of_the_input_with_its_event_time(loop):
    service = Service(loop)
    run = mapping(loop, service)
    run.feed(rows(1, 2, 3))
    assert run.answered(service, 2) == []
    assert run.answered(service, 1) == [(2, 10), (4, 20)]
    run.feed(rows(4))
    assert run.answered(service, 4, 3) == [(6, 30), (8, 40)]
    assert run.operator.is_empty
    run.close()


def test_unordered_results_come_as_they_are_ready(loop):
    service = Service(loop)
    run = mapping(loop, service, ordered=False)
    run.feed(rows(1, 2, 3))
    run.feed(rows(4))
    assert run.answered(service, 3) == [(6, 30)]
    assert run.answered(service, 4, 1) == [(8, 40), (2, 10)]
    assert not run.operator.is_empty
    assert run.answered(service, 2) == [(4, 20)]
    assert run.operator.is_empty
    run.close()


@pytest.mark.parametrize("ordered", [True, False])
def test_a_mark_comes_out_when_all_rows_before_it_are_out_and_no_row_after_it_is(loop, ordered):
    service = Service(loop)
    run = mapping(loop, service, ordered=ordered)
    run.mark(5)
    assert run.out == [5]  # nothing is before it
    run.out.clear()
    run.feed(rows(1, 2))
    run.mark(20)
    run.feed(rows(3))
    run.mark(30)
    assert run.answered(service, 3) == []
    assert run.answered(service, 1) == [(2, 10)]
    assert run.answered(service, 2) == [(4, 20), 20, (6, 30), 30]
    assert run.operator.is_empty
    run.close()


def test_a_run_of_marks_says_its_last_watermark_and_whether_the_input_is_idle(loop):
    service = Service(loop)
    run = mapping(loop, service)
    run.feed(rows(1))
    for mark in (10, 11, IDLE, ACTIVE, 12, IDLE):
        run.mark(mark)
    run.feed(rows(2))
    run.mark(ACTIVE)
    run.mark(20)
    assert run.answered(service, 1) == [(2, 10), 12, "idle"]
    assert run.answered(service, 2) == [(4, 20), "active", 20]
    run.close()


def test_none_is_no_row_and_a_list_is_several(loop):
    service = Service(loop, lambda n: None if n == 1 else [{"m": n}, {"m": -n}] if n == 2 else [] if n == 3 else {})
    run = mapping(loop, service)
    run.feed(rows(1, 2, 3, 4))
    assert run.answered(service, 1, 2, 3, 4) == [(2, 20), (-2, 20), (None, 40)]
    assert run.operator.is_empty
    run.close()


def test_a_function_that_yields_gives_its_rows_when_it_has_ended(loop):
    tries = []

    async def letters(row):
        tries.append(row["n"])
        for number in range(row["n"]):
            await asyncio.sleep(0)
            yield {"m": number}
            if row["n"] == 3 and tries.count(3) == 1:
                raise ConnectionError("half way")
        yield None

    run = mapping(loop, letters, retries=1)
    run.feed(rows(2, 0, 3))
    loop.turns(20)
    loop.advance(1)
    loop.turns(20)
    run.poll()
    assert run.out == [(0, 20), (1, 20), (0, 30), (1, 30), (2, 30)]
    assert tries == [2, 0, 3, 3]
    run.close()


def test_a_dict_that_is_changed_and_yielded_again_is_another_row(loop):
    async def counted(row):
        made = {}
        for made["m"] in range(row["n"]):
            yield made

    run = mapping(loop, counted)
    run.feed(rows(3))
    loop.turns(20)
    run.poll()
    assert run.out == [(0, 30), (1, 30), (2, 30)]
    run.close()


def test_without_event_time_there_are_only_the_columns_of_the_schema(loop):
    service = Service(loop)
    run = mapping(loop, service, input=INPUT.remove(1))
    run.feed(rows(1, 2).select(["n"]))
    assert run.answered(service, 1, 2) == [(2,), (4,)]
    run.close()


def test_only_selected_rows_count(loop):
    service = Service(loop)
    run = mapping(loop, service)
    run.operator.process(Batch(rows(1, 2, 3)).with_selection(pa.array([0, 2], pa.int32())))
    loop.turns()
    assert run.answered(service, 1, 3) == [(2, 10), (6, 30)]
    run.close()


# -- bounds ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
def test_so_many_calls_are_in_flight_and_no_more_and_rows_wait_outside_when_enough_do(loop, ordered):
    service = Service(loop)
    run = mapping(loop, service, concurrency=3, ordered=ordered)
    assert run.operator.has_room
    run.feed(rows(*range(6)))
    assert service.in_flight == [0, 1, 2]
    assert not run.operator.has_room
    for n in range(6):
        service.answer(n)
        assert len(service.in_flight) == min(3, 5 - n)
        run.poll()
        assert run.operator.has_room
    assert run.out == [(n * 2, n * 10) for n in range(6)]
    assert service.most == 3
    run.close()


def test_rows_that_hang_behind_the_first_count_as_waiting(loop):
    service = Service(loop)
    run = mapping(loop, service, concurrency=2)
    run.feed(rows(*range(4)))
    assert run.answered(service, 1, 2, 3) == []
    assert not run.operator.has_room
    assert run.operator.statistics()["held_rows"] == 4
    run.close()


def test_bytes_that_wait_have_a_bound_too(loop, monkeypatch):
    monkeypatch.setattr(async_operator, "_CAPACITY_BYTES", 100)
    service = Service(loop)
    run = mapping(loop, service)
    run.feed(rows(*range(8)))
    assert not run.operator.has_room
    run.answered(service, *range(8))
    assert run.operator.has_room
    assert run.operator.statistics()["held_bytes"] == 0
    run.close()


def test_a_batch_function_has_room_for_twice_as_many_slices(loop):
    service = BatchService(loop, lambda first: None)
    run = mapping(loop, service, batch=True, rows=2, concurrency=3)
    run.feed(rows(*range(11)))
    assert run.operator.has_room
    run.feed(rows(11))
    assert not run.operator.has_room
    run.close()


def test_a_rate_is_shared_by_the_subtasks(loop):
    began = []

    async def at_once(row):
        began.append(loop.time())
        return {"m": row["n"]}

    run = Run(MapAsync(at_once, OUTPUT, options=CallOptions(10, rate=4.0)), loop, parallelism=2)
    run.feed(rows(*range(6)))
    for _ in range(60):
        loop.advance(0.1)
    run.poll()
    assert [time - began[0] for time in began] == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5], abs=0.3)
    assert [m for m, _ in run.out] == list(range(6))
    run.close()


def test_one_call_that_hangs_does_not_let_the_queue_grow(loop):
    service = Service(loop)
    run = mapping(loop, service, concurrency=2, ordered=False)
    run.feed(rows(0))
    for n in range(1, 200):
        run.feed(rows(n))
        run.answered(service, n)
    assert len(run.operator.queue) == 1
    assert run.operator.has_room
    run.close()


def test_the_operator_is_woken_when_something_can_come_out_and_not_before(loop):
    service = Service(loop)
    run = mapping(loop, service)
    run.feed(rows(1, 2, 3))
    service.answer(2, 3)
    loop.advance(60)
    assert run.wakes == 0
    service.answer(1)
    assert run.wakes == 1
    run.feed(rows(4, 5))
    service.answer(4)
    loop.advance(60)
    assert run.wakes == 1  # it has not looked yet
    assert run.answered(service) == [(2, 10), (4, 20), (6, 30), (8, 40)]
    service.answer(5)
    assert run.wakes == 2
    run.feed(rows(6))
    assert run.answered(service, 6) == [(10, 50), (12, 60)]
    run.feed(rows(7))
    service.answer(7)
    assert run.wakes == 2  # so soon after: others may follow
    loop.advance(0.01)
    assert run.wakes == 3
    loop.advance(60)
    assert run.wakes == 3
    run.close()


def test_functions_that_never_wait_leave_the_loop_to_others():
    ticks = []

    async def at_once(row):
        for _ in range(200):
            pass
        return {"m": row["n"]}

    async def main():
        loop = asyncio.get_running_loop()
        run = Run(MapAsync(at_once, OUTPUT, options=CallOptions(4)), _Turnless(loop))
        run.operator.process(Batch(rows(*range(20_000))))

        async def tick():
            while run.operator.statistics()["calls"] < 20_000:
                ticks.append(1)
                await asyncio.sleep(0)

        await tick()
        run.operator.poll(0)
        assert [n for n, _ in run.out] == list(range(20_000))
        run.operator.close()
        await asyncio.sleep(0.01)

    asyncio.run(main())
    assert len(ticks) > 5


class _Turnless:
    """A loop that runs already."""

    def __init__(self, loop):
        self._loop = loop

    def __getattr__(self, name):
        return getattr(self._loop, name)

    def turns(self):
        pass


def test_each_call_has_a_context_of_its_own(loop):
    """Workers make one call after the other: a variable that a call had set was there in the next one."""
    name = contextvars.ContextVar("name", default="nobody")

    async def greet(row):
        before = name.get()
        name.set(f"call {row['n']}")
        await asyncio.sleep(0)
        assert name.get() == f"call {row['n']}"
        return {"m": before == "nobody"}

    run = mapping(loop, greet, concurrency=1, schema=pa.schema([("m", pa.bool_())]))
    run.feed(rows(1, 2, 3))
    loop.turns(10)
    assert run.answered(None) == [(True, 10), (True, 20), (True, 30)]
    run.close()


# -- errors ---------------------------------------------------------------------------------------------------------------


def test_an_error_names_the_function_the_row_and_the_cause(loop):
    service = Service(loop)

    async def ask(row):
        return await service(row)

    run = mapping(loop, ask, input=pa.schema([("n", pa.int64()), ("text", pa.string())]))
    run.feed(pa.record_batch({"n": [7], "text": ["x" * 5000]}))
    service.fail(7, ValueError("no such account"))
    assert run.wakes == 1
    with pytest.raises(
        UserError, match=r"map_async\(.*ask\): ValueError: no such account; row {'n': 7, 'text': 'xx"
    ) as caught:
        run.poll()
    assert isinstance(caught.value.__cause__, ValueError)
    assert len(str(caught.value)) < 500
    run.close()


def test_a_call_is_retried_after_waits_that_double_up_to_30_s(loop):
    asked = []

    async def never(row):
        asked.append(loop.time())
        raise ConnectionError("down")

    run = mapping(loop, never, retries=12, backoff_s=0.1)
    run.feed(rows(1))
    for _ in range(2500):
        loop.now += 0.1
        loop.turns(1)
    waits = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30, 30], abs=0.3)
    with pytest.raises(UserError, match=r"down \(13 attempts\); row"):
        run.poll()
    run.close()


def test_another_attempt_gets_the_row_as_it_came_though_the_failed_one_changed_it(loop):
    """It got the changed dict: a function that took a field out of its row met a KeyError at the second attempt."""
    seen = []

    async def changing(row):
        seen.append(dict(row))
        number = row.pop("n")
        if len(seen) == 1:
            raise OSError("down")
        return {"m": number * 2}

    run = mapping(loop, changing, retries=1)
    run.feed(rows(1, 2))
    loop.advance(0.2)
    run.poll()
    assert seen == [{"n": 1}, {"n": 2}, {"n": 1}]
    assert run.out == [(2, 10), (4, 20)]
    run.close()


def test_a_retry_that_succeeds_is_as_good_as_a_first_call(loop):
    service = Service(loop)
    run = mapping(loop, service, retries=1)
    run.feed(rows(1, 2))
    service.fail(1, OSError())
    assert service.in_flight == [2]
    loop.advance(0.1)
    assert run.answered(service, 2, 1) == [(2, 10), (4, 20)]
    assert run.operator.statistics()["retries"] == 1
    run.close()


def test_a_call_that_takes_too_long_is_cancelled_and_counts_as_failed(loop):
    service = Service(loop)
    run = mapping(loop, service, timeout_s=2.0, retries=1)
    run.feed(rows(1))
    loop.advance(1.9)
    assert service.in_flight == [1]
    loop.advance(0.2)
    assert service.in_flight == []
    loop.advance(0.1)
    assert service.in_flight == [1]
    loop.advance(2.1)
    with pytest.raises(
        UserError, match=r"TimeoutError: the call took longer than timeout=2.0s \(2 attempts\); row {'n': 1}"
    ):
        run.poll()
    assert run.operator.statistics()["timeouts"] == 2
    run.close()


def test_each_call_has_its_own_time_and_is_cancelled_once(loop):
    cancelled = []

    async def stays(row):
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.append((row["n"], loop.time() - 100))
        await asyncio.sleep(5)
        return {"m": 1}

    run = mapping(loop, stays, timeout_s=2.0)
    for n in range(3):
        run.feed(rows(n))
        loop.now += 0.5
    for _ in range(1000):
        loop.now += 0.01
        loop.turns(2)
    run.poll()
    assert [n for n, _ in cancelled] == [0, 1, 2]
    assert [at for _, at in cancelled] == pytest.approx([2.0, 2.5, 3.0], abs=0.05)
    assert run.out == [(1, 0), (1, 10), (1, 20)]  # it swallowed that, and gave its result
    run.close()


@pytest.mark.parametrize("ordered", [True, False])
def test_skip_counts_rows_and_gives_them_to_the_dead_with_the_reason(loop, ordered):
    service = Service(loop)
    run = mapping(loop, service, on_error="skip", ordered=ordered)
    run.feed(rows(1, 2, 3))
    run.mark(50)
    service.fail(2, KeyError("k"))
    assert run.answered(service, 1, 3) == [(2, 10), (6, 30), 50]
    assert run.dead == [{"n": 2, "error": "KeyError: 'k'"}]
    assert run.operator.branch_schema("dead", INPUT) == RECORD_SCHEMA
    (letter,) = run.letters
    assert (letter.key, letter.headers) == (None, ())
    assert "in __call__" in letter.facts.pop("traceback")
    assert letter.facts == {
        "topic": "",
        "timestamp": "20",
        "agent": "",
        "error": "KeyError",
        "message": "'k'",
        "attempts": "1",
        "version": "",
        "step": run.operator.name,
    }
    assert run.operator.statistics()["dead_rows"] == 1
    run.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("text", r"the result is a str; row {'n': 1} \(return a dict, a list of dicts, or None\)"),
        ([{"m": 1}, 5], "the result is a int"),
        ({"m": 1, "q": 2}, r"a column 'q', which schema= has not; row {'n': 1} \(schema= has m, s\)"),
        ({"m": "x", "s": "y"}, "column 'm' cannot be int64: .*; row {'n': 1}"),
        ({"m": 1, "s": 5}, "column 's' cannot be string: .*; row {'n': 1}"),
        ({"m": 2**63, "s": ""}, "column 'm' cannot be int64: .*; row {'n': 1}"),
        ({"m": 1}, "column 's' is null, which schema= does not allow; row {'n': 1}"),
    ],
)
def test_what_does_not_fit_the_schema_is_an_error_that_names_column_and_row(loop, answer, message):
    schema = pa.schema([("m", pa.int64()), pa.field("s", pa.string(), nullable=False)])
    for skip in (False, True):
        service = Service(loop, lambda n: answer if n == 1 else {"m": n, "s": "good"})
        run = mapping(loop, service, schema=schema, on_error="skip" if skip else "fail", retries=3)
        run.feed(rows(0, 1, 2))
        service.answer(0, 1, 2)
        if skip:
            run.poll()
            assert run.out == [(0, "good", 0), (2, "good", 20)]
            assert [row["n"] for row in run.dead] == [1]
        else:
            with pytest.raises(UserError, match=message):
                run.poll()
        assert service.asked == [0, 1, 2]
        run.close()


def test_a_cancellation_of_the_functions_own_is_an_error_like_others(loop):
    async def gives_up(row):
        raise asyncio.CancelledError

    run = mapping(loop, gives_up)
    run.feed(rows(1))
    with pytest.raises(UserError, match="the call cancelled itself"):
        run.poll()
    run.close()


def test_a_call_that_is_cancelled_from_outside_is_told_of(loop):
    service = Service(loop)
    run = mapping(loop, service)
    run.feed(rows(1))
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.turns()
    with pytest.raises(InternalError, match="cancelled from outside"):
        run.poll()
    run.close()


def sync(row):
    return row


async def yields(row):
    yield row


async def fine(row):
    return row


class CallsAsync:
    async def __call__(self, row):
        return row


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AsyncCall.of(sync, schema=OUTPUT), r"map_async\(sync\): the function is not a coroutine function"),
        (lambda: AsyncCall.of(yields, schema=OUTPUT, batch=True), r"the function yields \(return one batch\)"),
        (lambda: LookupCall.of(yields, on="k", schema=OUTPUT), r"the function yields \(return a dict\)"),
        (lambda: AsyncCall.of(5, schema=OUTPUT), "5 is not a function"),
        (lambda: MapAsync(sync, OUTPUT), "write async def sync"),
        (lambda: LookupAsync(sync, ["k"], OUTPUT), r"lookup\(sync\): the function is not a coroutine function"),
        (lambda: AsyncCall.of(fine, schema={}), "there are no columns"),
        (lambda: AsyncCall.of(fine, schema=["a"]), r"schema=\['a'\]"),
        (lambda: AsyncCall.of(fine, schema={"a": "what"}), "unknown type 'what'"),
        (lambda: AsyncCall.of(fine, schema=OUTPUT, concurrency=0), "concurrency=0"),
        (lambda: AsyncCall.of(fine, schema=OUTPUT, retries=-1), "retries=-1"),
        (lambda: AsyncCall.of(fine, schema=OUTPUT, timeout=0), "timeout=0"),
        (lambda: AsyncCall.of(fine, schema=OUTPUT, on_error="dunno"), "one of 'fail', 'skip'"),
        (lambda: LookupCall.of(fine, on=[], schema=OUTPUT), r"on=\[\]"),
        (lambda: LookupCall.of(fine, on="k", schema=OUTPUT, how="full"), "how='full'"),
        (lambda: LookupCall.of(fine, on="k", schema=OUTPUT, cache=-1), "cache=-1"),
        (
            lambda: LookupCall.of(fine, on="k", schema=OUTPUT, batch=True),
            r"lookup has no option batch \(.*it has backoff",
        ),
    ],
)
def test_what_cannot_be_is_said_when_the_program_is_built(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_call_is_described_in_seconds_and_columns():
    call = AsyncCall.of(CallsAsync(), schema={"m": "int64"}, timeout="1m", backoff="50ms", retries=2, ordered=False)
    assert call.schema == OUTPUT
    assert call.name == "CallsAsync"
    assert call.options == CallOptions(concurrency=100, timeout_s=60.0, retry=Retry(2, 0.05), on_error="fail")
    assert not call.ordered
    lookup = LookupCall.of(fine, on="k", schema={"m": "int64"}, cache_ttl=None, concurrency=5)
    assert (lookup.on, lookup.cache_rows, lookup.cache_ttl_s, lookup.call.options.concurrency) == (
        ("k",),
        10_000,
        None,
        5,
    )


def test_the_names_of_our_own_columns_are_not_for_results(loop):
    with pytest.raises(UserError, match="no column can be called '__time'"):
        mapping(loop, fine, schema=pa.schema([("__time", pa.int64())]))


# -- batches --------------------------------------------------------------------------------------------------------------


class BatchService(Service):
    """Is asked with batches; known by their first row."""

    async def __call__(self, batch):
        assert batch.schema.names == ["n"]
        self.sizes = [*getattr(self, "sizes", []), batch.num_rows]
        return await super().__call__(batch.column(0)[0].as_py())


def doubled(first, count):
    return pa.table({"m": pa.array([n * 2 for n in range(first, first + count)], pa.int64())})


@pytest.mark.parametrize("ordered", [True, False])
def test_a_batch_function_is_called_for_slices_and_keeps_event_time(loop, ordered):
    service = BatchService(loop, lambda first: doubled(first, 4 if first < 8 else 2))
    run = mapping(loop, service, batch=True, rows=4, ordered=ordered)
    run.feed(rows(*range(10)))
    assert service.sizes == [4, 4, 2]
    out = run.answered(service, 4, 8, 0)
    assert sorted(out) == [(n * 2, n * 10) for n in range(10)]
    assert out[0] == ((0, 0) if ordered else (8, 40))
    run.close()


def test_a_batch_function_may_give_none_or_read_event_time_anew(loop):
    input = with_time(pa.schema([("n", pa.int64())]))
    schema = pa.schema([("ts", pa.int64())])
    service = BatchService(loop, lambda first: None if first == 0 else pa.table({"ts": [first, first + 100, 5]}))
    run = mapping(loop, service, batch=True, rows=2, schema=schema, input=input, time="ts")
    run.feed(rows(*range(4)))
    assert run.answered(service, 0, 2) == [(2, 2), (102, 102), (5, 5)]
    run.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (doubled(0, 1), "returned 1 rows for 2, so their event times are unknown"),
        (pa.table({"m": ["x", "y"]}), "'m' is string, not int64"),
        ("text", "returned a str, which is not Arrow data"),
    ],
)
def test_a_batch_that_does_not_fit_is_an_error_that_says_which(loop, answer, message):
    service = BatchService(loop, lambda first: answer)
    run = mapping(loop, service, batch=True, rows=2)
    run.feed(rows(0, 1))
    service.answer(0)
    with pytest.raises(UserError, match=f"{message}.*; a batch of 2 rows, the first {{'n': 0}}"):
        run.poll()
    run.close()


# -- checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
def test_a_snapshot_holds_rows_marks_and_finished_results_and_calls_are_not_repeated(loop, tmp_path, ordered):
    service = Service(loop, lambda n: None if n == 4 else [{"m": n}] * 2 if n == 5 else {"m": n * 2})
    run = mapping(loop, service, ordered=ordered)
    run.feed(rows(1, 2, 3))
    run.mark(30)
    run.feed(rows(4, 5, 6))
    run.answered(service, 1)
    service.answer(3, 4, 5)  # the operator has not looked at them
    saved = run.saved(tmp_path / "saved")
    assert saved.facts["groups"] == 5
    assert saved.facts["marks"] == [[2, 30]]
    run.close()

    after = Service(loop, service.answer_of)
    run = mapping(loop, after, ordered=ordered, restored=[saved])
    assert after.asked == [2, 6]
    assert run.out == ([] if ordered else [(6, 30)])
    run.out.clear()
    out = run.answered(after, 2)
    assert out == ([(4, 20), (6, 30)] if ordered else [(4, 20)]) + [30, (5, 50), (5, 50)]
    assert run.answered(after, 6) == [(12, 60)]
    assert run.operator.is_empty
    run.close()


def test_rows_that_were_given_up_stay_given_up_unless_errors_count_now(loop, tmp_path):
    service = Service(loop)
    run = mapping(loop, service, on_error="skip")
    run.feed(rows(1, 2))
    service.fail(2, OSError("gone"))
    saved = run.saved(tmp_path / "saved")
    run.close()

    after = Service(loop)
    run = mapping(loop, after, on_error="skip", restored=[saved])
    assert run.answered(after, 1) == [(2, 10)]
    assert run.dead == [{"n": 2, "error": "OSError: gone"}]
    run.close()

    after = Service(loop)
    run = mapping(loop, after, restored=[saved])
    assert run.answered(after, 1, 2) == [(2, 10), (4, 20)]
    run.close()


def test_with_another_schema_finished_calls_are_made_again(loop, tmp_path):
    service = Service(loop)
    run = mapping(loop, service)
    run.feed(rows(1, 2))
    service.answer(2)
    saved = run.saved(tmp_path / "saved")
    run.close()
    after = Service(loop, lambda n: {"text": str(n)})
    run = mapping(loop, after, restored=[saved], schema=pa.schema([("text", pa.string())]))
    assert run.answered(after, 1, 2) == [("1", 10), ("2", 20)]
    run.close()


def test_a_result_that_fits_no_schema_is_asked_for_again(loop, tmp_path):
    service = Service(loop, lambda n: {"m": "text" if n == 2 else n})
    run = mapping(loop, service)
    run.feed(rows(1, 2, 3))
    service.answer(2, 3)
    saved = run.saved(tmp_path / "saved")
    run.close()
    after = Service(loop, lambda n: {"m": n})  # it has been put right
    run = mapping(loop, after, restored=[saved])
    assert after.asked == [1, 2]
    assert run.answered(after, 1, 2) == [(1, 10), (2, 20), (3, 30)]
    run.close()


def test_slices_of_which_others_own_rows_are_asked_for_again(loop, tmp_path):
    service = BatchService(loop, lambda first: doubled(first, 4))
    run = mapping(loop, service, batch=True, rows=4, keys=("n",))
    run.feed(rows(*range(40)))
    service.answer(4, 8, 20, 36)
    saved = run.saved(tmp_path / "saved")
    run.close()
    emitted = []
    for subtask in range(2):

        async def double(batch):
            return pa.table({"m": [n * 2 for n in batch.column(0).to_pylist()]})

        part = mapping(loop, double, batch=True, restored=[saved], subtask=subtask, parallelism=2, keys=("n",))
        part.poll()
        emitted += [row for row in part.out if isinstance(row, tuple)]
        part.close()
    assert sorted(emitted) == [(n * 2, n * 10) for n in range(40)]


def test_slices_keep_their_bounds_over_a_restore(loop, tmp_path):
    service = BatchService(loop, lambda first: doubled(first, 2))
    run = mapping(loop, service, batch=True, rows=2)
    run.feed(rows(*range(8)))
    service.answer(2, 6)
    saved = run.saved(tmp_path / "saved")
    run.close()
    after = BatchService(loop, lambda first: doubled(first, 1))
    run = mapping(loop, after, batch=True, rows=1, restored=[saved])  # smaller now: for those that have not been called
    assert after.asked == [0, 1, 4, 5]
    assert run.answered(after, 0, 1, 4, 5) == [(n * 2, n * 10) for n in range(8)]
    run.close()


def test_a_restore_may_be_of_nothing_and_of_marks_alone(loop, tmp_path):
    run = mapping(loop, Service(loop))
    saved = run.saved(tmp_path / "saved")
    run.close()
    run = mapping(loop, Service(loop), restored=[saved])
    assert run.operator.is_empty
    run.close()
    facts = {**saved.facts, "marks": [[0, 30]]}
    run = mapping(loop, Service(loop), restored=[Saved(saved.directory, facts)])
    assert run.out == [30]
    assert run.operator.is_empty
    run.close()


@pytest.mark.parametrize("keys", [(), ("n",)])
@pytest.mark.parametrize(("before", "now"), [(1, 3), (3, 2), (2, 1), (3, 3)])
def test_with_another_parallelism_each_row_in_flight_has_one_owner(loop, tmp_path, keys, before, now):
    numbers = list(range(60))
    owner = _owners(numbers, before)
    service, saved = Service(loop), []
    for subtask in range(before):
        run = mapping(loop, service, subtask=subtask, parallelism=before, keys=keys, concurrency=100)
        mine = [n for n in numbers if owner[n] == subtask]
        run.feed(rows(*mine[:5]))
        run.mark(100 + subtask)
        run.feed(rows(*mine[5:]))
        service.answer(*mine[1::2])
        saved.append(run.saved(tmp_path / str(subtask)))
        run.close()

    after, emitted = Service(loop), {}
    for subtask in range(now):
        run = mapping(loop, after, restored=saved, subtask=subtask, parallelism=now, keys=keys, concurrency=100)
        after.answer(*after.in_flight)
        run.poll()
        assert run.operator.is_empty
        emitted[subtask] = [row for row in run.out if isinstance(row, tuple)]
        marks = [mark for mark in run.out if not isinstance(mark, tuple)]
        if before == now:
            assert marks == [100 + subtask]
        else:
            assert marks == [100]
            assert run.out[-1] == 100
            if keys:
                owners = _owners(numbers, now)
                assert {owners[n // 10] for _, n in emitted[subtask]} <= {subtask}
        run.close()
    assert sorted(row for part in emitted.values() for row in part) == [(n * 2, n * 10) for n in numbers]
    called = Counter(service.asked + after.asked)
    for part in range(before):
        mine = [n for n in numbers if owner[n] == part]
        assert all(called[n] == 1 for n in mine[1::2])


@pytest.mark.parametrize("now", [1, 2, 3])
def test_a_drained_app_that_goes_on_begins_time_anew(loop, tmp_path, now):
    """With another parallelism the end of time came back as a watermark, and all rows after it were late."""
    saved = []
    for subtask in range(2):
        run = mapping(loop, Service(loop), subtask=subtask, parallelism=2)
        run.mark(100)
        run.mark(END_OF_TIME)
        saved.append(run.saved(tmp_path / str(subtask)))
        run.close()
    for subtask in range(now):
        run = mapping(loop, Service(loop), restored=saved, subtask=subtask, parallelism=now)
        assert run.out == []
        assert run.saved(tmp_path / f"again {subtask}").facts["watermark"] is None
        run.close()


def _owners(numbers, parallelism):
    hashes = hash_columns([pa.array(numbers, pa.int64())])
    owned = [owned_groups(OperatorContext(INPUT, part, parallelism))(hashes).to_pylist() for part in range(parallelism)]
    return {n: next(part for part in range(parallelism) if owned[part][i]) for i, n in enumerate(numbers)}


def test_rows_in_flight_can_be_read_without_the_function(loop, tmp_path):
    service = Service(loop)
    run = mapping(loop, service, ordered=False)
    run.feed(rows(1, 2, 3))
    run.answered(service, 2)
    saved = run.saved(tmp_path / "saved")
    assert saved.facts["schema"] == {"kind": "calls", "columns": [["n", "int64"]]}
    run.close()
    reader = AsyncOperator(keys=saved.facts["reader"]["keys"])
    reader.open(OperatorContext(INPUT, loop=lambda: pytest.fail("nobody is to be called")))
    reader.restore([saved])
    assert [row["n"] for piece in reader.contents() for row in piece.to_pylist()] == [1, 3]
    reader.close()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), ordered=st.booleans(), concurrency=st.integers(1, 9))
def test_whatever_the_latencies_each_row_gives_its_result_once_over_any_restores(
    tmp_path_factory, seed, ordered, concurrency
):
    """Rows in batches, watermarks between, answers in random order, snapshots and restarts anywhere; against plain Python."""
    rng = random.Random(seed)
    directory = tmp_path_factory.mktemp("calls")
    loop = Loop()

    def answer(n):
        return None if n % 7 == 3 else [{"m": n}, {"m": -n}] if n % 7 == 5 else {"m": n * 2}

    def expected(n):
        made = answer(n)
        return [(row["m"], n * 10) for row in ([] if made is None else made if isinstance(made, list) else [made])]

    total = rng.randrange(1, 120)
    service = Service(loop, answer)
    run = mapping(loop, service, ordered=ordered, concurrency=concurrency)
    fed, marks, out, lives, answered = 0, [], [], 0, []
    while fed < total or not run.operator.is_empty:
        choice = rng.random()
        if choice < 0.35 and fed < total and run.operator.has_room:
            size = min(total - fed, rng.choice([1, 2, 5, 40]))
            run.feed(rows(*range(fed, fed + size)))
            fed += size
            if rng.random() < 0.5:
                run.mark(fed * 10)
                marks.append(fed * 10)
        elif choice < 0.85 and service.in_flight:
            assert len(service.in_flight) <= concurrency
            chosen = rng.sample(service.in_flight, rng.randrange(1, len(service.in_flight) + 1))
            answered += chosen
            service.answer(*chosen)
        elif choice < 0.95:
            run.poll()
        elif rng.random() < 0.4:
            lives += 1
            saved = run.saved(directory / str(lives))
            out += run.out
            run.close()
            service = Service(loop, answer)
            run = mapping(loop, service, ordered=ordered, concurrency=concurrency, restored=[saved])
        else:
            run.poll()
    out += run.out
    run.close()
    assert not asyncio.all_tasks(loop)
    loop.close()

    segments, segment = [], []
    for each in out:
        if isinstance(each, tuple):
            segment.append(each)
        else:
            segments.append((segment, each))
            segment = []
    assert [mark for _, mark in segments] == marks
    assert sorted(answered) == list(range(total)), "a call that had ended was made again, or one was never made"
    bounds = [0, *(mark // 10 for mark in marks), total]
    for (got, _), first, end in zip([*segments, (segment, None)], bounds, bounds[1:], strict=False):
        want = [row for n in range(first, end) for row in expected(n)]
        assert got == want if ordered else Counter(got) == Counter(want)


# -- the end --------------------------------------------------------------------------------------------------------------


def test_closing_cancels_what_is_in_flight(loop):
    service = Service(loop)
    run = mapping(loop, service)
    run.feed(rows(1, 2))
    assert service.in_flight == [1, 2]
    run.close()
    assert service.in_flight == []
    assert run.wakes == 0


class LoopThread:
    """An event loop in a thread of its own, as a running app has it."""

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.left = asyncio.all_tasks(self.loop)
        for task in self.left:
            task._log_destroy_pending = False
        self.loop.close()


def test_a_function_that_swallows_its_cancellation_does_not_hang_the_stop(monkeypatch, caplog):
    monkeypatch.setattr(crew, "CANCEL_SECONDS", 0.05)
    begun = threading.Event()

    async def stubborn(row):
        begun.set()
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)

    with LoopThread() as thread:
        run = Run(MapAsync(stubborn, OUTPUT), _Turnless(thread.loop))
        run.operator.process(Batch(rows(1)))
        assert begun.wait(60)
        run.operator.close()
    assert "1 calls did not end after their cancellation" in caplog.text
    assert run.operator.left_behind == ["1 calls of " + run.operator.name]


def test_a_stop_logs_the_counted_errors_in_the_thread_that_counts_them(caplog):
    threads, failed = set(), threading.Event()

    async def broken(row):
        threads.add(threading.get_ident())
        raise ValueError("no")

    with LoopThread() as thread:
        run = Run(MapAsync(broken, OUTPUT, **spoken({"on_error": "skip"})), _Turnless(thread.loop))
        run.operator.wake = failed.set
        run.operator.process(Batch(rows(1, 2)))
        while not run.operator.is_empty:
            assert failed.wait(60)
            failed.clear()
            run.poll()
        run.operator.close()
    said = [record for record in caplog.records if "1 more errors ValueError" in record.getMessage()]
    assert {record.thread for record in said} == threads


def test_a_function_that_takes_long_to_let_go_is_waited_for():
    begun, ended = threading.Event(), []

    async def tidy(row):
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.02)
            ended.append(row["n"])

    with LoopThread() as thread:
        run = Run(MapAsync(tidy, OUTPUT), _Turnless(thread.loop))
        run.operator.process(Batch(rows(1)))
        assert begun.wait(60)
        run.operator.close()
        assert ended == [1]
        assert run.operator.left_behind == []
    assert not thread.left


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("ordered", [True, False])
def test_between_two_threads_nothing_is_lost(ordered):
    """The task's loop, by hand: it sleeps until it is woken, and never asks in vain."""
    woken = threading.Event()

    async def double(row):
        await asyncio.sleep(row["n"] % 5 * 0.0005)
        return {"m": row["n"] * 2}

    with LoopThread() as thread:
        run = Run(MapAsync(double, OUTPUT, ordered=ordered, options=CallOptions(20)), _Turnless(thread.loop))
        run.operator.wake = woken.set
        fed = 0
        while fed < 3000 or not run.operator.is_empty:
            while fed < 3000 and run.operator.has_room:
                run.operator.process(Batch(rows(*range(fed, fed + 50))))
                fed += 50
                run.mark(fed * 10)
            assert woken.wait(60), "rows are in flight and nobody tells"
            woken.clear()
            run.operator.poll(0)
        run.operator.close()
    assert not thread.left
    marks = [(at, mark) for at, mark in enumerate(run.out) if isinstance(mark, int)]
    assert [mark for _, mark in marks] == list(range(500, 30_001, 500))
    assert [at for at, _ in marks] == list(range(50, 3060, 51))
    for number, (at, _) in enumerate(marks):
        part = run.out[at - 50 : at]
        want = [(n * 2, n * 10) for n in range(number * 50, number * 50 + 50)]
        assert (part if ordered else sorted(part)) == want


# -- lookups --------------------------------------------------------------------------------------------------------------

KEYED = pa.schema([("k", pa.string()), ("n", pa.int64()), (TIME_COLUMN, pa.int64())])


def keyed_rows(*pairs):
    return pa.RecordBatch.from_pylist([{"k": k, "n": n, TIME_COLUMN: n * 10} for k, n in pairs], KEYED)


def lookup(loop, service, *, on=("k",), schema=OUTPUT, restored=(), clock=None, input=KEYED, **options):
    operator = LookupAsync(service, on, schema, **spoken(options))
    return Run(operator, loop, input, restored=restored, clock=clock)


def length(key):
    return None if key == "nobody" else {"m": len(key)}


def test_a_lookup_adds_columns_and_equal_keys_share_a_call(loop):
    service = Service(loop, length)
    run = lookup(loop, service)
    assert run.schema.names == ["k", "n", "m", TIME_COLUMN]
    run.feed(keyed_rows(("a", 1), ("bb", 2), ("a", 3), ("nobody", 4)))
    run.feed(keyed_rows(("bb", 5), ("ccc", 6)))
    assert service.asked == ["a", "bb", "nobody", "ccc"]
    assert run.answered(service, "bb") == []
    assert run.answered(service, "a") == [("a", 1, 1, 10), ("bb", 2, 2, 20), ("a", 3, 1, 30)]
    assert run.answered(service, "ccc", "nobody") == [("nobody", 4, None, 40), ("bb", 5, 2, 50), ("ccc", 6, 3, 60)]
    assert run.operator.is_empty
    run.close()


def test_an_inner_lookup_leaves_rows_without_an_answer_out(loop):
    service = Service(loop, length)
    run = lookup(loop, service, how="inner", ordered=False, names={"m": "size"})
    assert run.schema.names == ["k", "n", "size", TIME_COLUMN]
    run.feed(keyed_rows(("nobody", 1), ("a", 2), (None, 3), ("a", 4)))
    assert run.answered(service, "a", "nobody") == [("a", 2, 1, 20), ("a", 4, 1, 40)]
    assert service.asked == ["nobody", "a"]
    assert run.operator.is_empty
    run.close()


def test_a_null_is_no_key_and_several_columns_make_a_tuple(loop):
    service = Service(loop, lambda key: {"m": len(key[0]) + key[1]})
    run = lookup(loop, service, on=("k", "n"))
    run.feed(keyed_rows((None, 9), ("a", 1), ("a", 2), ("a", 1), ("b", 1), (None, 1)))
    assert service.asked == [("a", 1), ("a", 2), ("b", 1)]
    out = run.answered(service, ("a", 1), ("a", 2), ("b", 1))
    assert [row[:3] for row in out] == [
        (None, 9, None),
        ("a", 1, 2),
        ("a", 2, 3),
        ("a", 1, 2),
        ("b", 1, 2),
        (None, 1, None),
    ]
    run.close()


def test_rows_whose_answers_are_kept_go_on_at_once(loop):
    service = Service(loop, length)
    run = lookup(loop, service)
    run.feed(keyed_rows(("a", 1), ("nobody", 2)))
    run.answered(service, "a", "nobody")
    run.operator.process(Batch(keyed_rows(("a", 3), ("nobody", 4))))
    assert run.out == [("a", 3, 1, 30), ("nobody", 4, None, 40)]
    assert service.asked == ["a", "nobody"]
    assert run.operator.statistics()["cache_hits"] == 2
    run.close()


def test_answers_are_kept_so_many_and_so_long(loop):
    service, clock = Service(loop, length), ManualClock()
    run = lookup(loop, service, cache_rows=2, cache_ttl_s=60.0, clock=clock)

    def ask(*keys):
        before = len(service.asked)
        run.feed(keyed_rows(*((key, 0) for key in keys)))
        asked = service.asked[before:]
        run.answered(service, *asked)
        return asked

    assert ask("a", "b") == ["a", "b"]
    assert ask("a") == []
    assert ask("c") == ["c"]  # b was used longest ago
    assert ask("a", "c") == []
    assert ask("b") == ["b"]
    assert run.operator.statistics()["cached_rows"] == 2
    clock.advance(61)
    assert ask("b") == ["b"]
    run.close()


def test_without_a_cache_only_calls_in_flight_are_shared(loop):
    service = Service(loop, length)
    run = lookup(loop, service, cache_rows=0)
    run.feed(keyed_rows(("a", 1), ("a", 2)))
    assert service.asked == ["a"]
    run.answered(service, "a")
    run.feed(keyed_rows(("a", 3)))
    assert service.asked == ["a", "a"]
    run.close()


def test_a_lookup_that_fails_says_the_key_and_is_not_kept_when_skipped(loop):
    service = Service(loop, length)
    run = lookup(loop, service)
    run.feed(keyed_rows(("a", 1)))
    service.fail("a", OSError("down"))
    with pytest.raises(UserError, match=r"lookup\(.*\): OSError: down; key 'a'"):
        run.poll()
    run.close()

    run = lookup(loop, service, on_error="skip")
    run.feed(keyed_rows(("a", 1), ("b", 2), ("a", 3)))
    service.fail("a", OSError("down"))
    assert run.answered(service, "b") == [("b", 2, 1, 20)]
    assert run.dead == [{"k": "a", "n": n, "error": "OSError: down"} for n in (1, 3)]
    run.feed(keyed_rows(("a", 4)))
    assert run.answered(service, "a") == [("a", 4, 1, 40)]
    run.close()


def test_an_answer_that_does_not_fit_names_column_and_row(loop):
    service = Service(loop, lambda key: {"m": key})
    run = lookup(loop, service)
    run.feed(keyed_rows(("a", 1)))
    service.answer("a")
    with pytest.raises(UserError, match=r"column 'm' cannot be int64.*; row {'k': 'a', 'n': 1}"):
        run.poll()
    run.close()

    service = Service(loop, lambda key: {"m": key if key == "a" else 1})
    run = lookup(loop, service, on_error="skip")
    run.feed(keyed_rows(("a", 1), ("b", 2), ("a", 3)))
    assert run.answered(service, "b", "a") == [("b", 2, 1, 20)]
    assert [row["n"] for row in run.dead] == [1, 3]
    run.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on": ("q",)}, r"there is no column 'q' \(there are k, n\)"),
        ({"schema": pa.schema([("k", pa.int64())])}, "the result would have two columns 'k'"),
        ({"input": pa.schema([("k", pa.list_(pa.int64()))])}, "'k' is list<.*>, which cannot be a key"),
    ],
)
def test_a_lookup_that_cannot_be_is_said_at_build_time(loop, options, message):
    with pytest.raises(UserError, match=message):
        lookup(loop, fine, **options)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), ordered=st.booleans(), inner=st.booleans(), cache=st.sampled_from([0, 2, 100]))
def test_a_lookup_gives_what_plain_python_gives_over_any_restores(tmp_path_factory, seed, ordered, inner, cache):
    rng = random.Random(seed)
    directory = tmp_path_factory.mktemp("lookups")
    loop = Loop()
    names = [None, "nobody", *(c * (i + 1) for i, c in enumerate("abcdefg"))]
    pairs = [(rng.choice(names), n) for n in range(rng.randrange(1, 150))]
    options = {"ordered": ordered, "how": "inner" if inner else "left", "cache_rows": cache, "concurrency": 3}
    service = Service(loop, length)
    run = lookup(loop, service, **options)
    fed, out, lives, marks = 0, [], 0, []
    while fed < len(pairs) or not run.operator.is_empty:
        assert len(set(service.in_flight)) == len(service.in_flight) <= 3
        choice = rng.random()
        if choice < 0.4 and fed < len(pairs) and run.operator.has_room:
            size = rng.choice([1, 3, 20])
            run.feed(keyed_rows(*pairs[fed : fed + size]))
            fed = min(len(pairs), fed + size)
            run.mark(fed * 10)
            marks.append(fed * 10)
        elif choice < 0.8 and service.in_flight:
            service.answer(rng.choice(service.in_flight))
        elif choice > 0.97:
            lives += 1
            saved = run.saved(directory / str(lives))
            out += run.out
            run.close()
            service = Service(loop, length)
            run = lookup(loop, service, restored=[saved], **options)
        else:
            run.poll()
    out += run.out
    run.close()
    assert not asyncio.all_tasks(loop)
    loop.close()
    want = [
        (k, n, None if k in (None, "nobody") else len(k), n * 10)
        for k, n in pairs
        if not inner or k not in (None, "nobody")
    ]
    got = [each for each in out if isinstance(each, tuple)]
    assert got == want if ordered else sorted(got, key=lambda row: row[1]) == want
    # no row behind a mark comes before it, and none before it comes behind; of a run of marks the last one counts
    told = -1
    for each in out:
        if isinstance(each, tuple):
            assert told <= each[3]
        else:
            told = each
            assert all(row[3] < told for row in got if row in out[: out.index(each)])
    assert told == marks[-1]


def test_a_large_batch_of_any_key_types_is_looked_up_like_by_hand(loop):
    numbers = list(range(40_000))
    data = pa.record_batch(
        {
            "k": pa.array([None if n % 11 == 0 else n % 977 for n in numbers], pa.int32()),
            "f": [n % 2 / 2 for n in numbers],
        }
    )
    answers = {}

    async def at_once(key):
        assert key not in answers, "asked twice"
        answers[key] = key[0] + key[1]
        return {"m": answers[key]}

    operator = LookupAsync(at_once, ["k", "f"], pa.schema([("m", pa.float64())]), options=CallOptions(100))
    run = Run(operator, loop, data.schema)
    for start in range(0, 40_000, 9_999):
        run.feed(data.slice(start, 9_999))
    while not operator.is_empty:
        run.poll()
    assert run.out == [(k, f, None if k is None else k + f) for k, f in zip(*data.to_pydict().values(), strict=True)]
    assert operator.statistics()["calls"] == len(answers) == 2 * 977
    run.close()


# -- in an app ------------------------------------------------------------------------------------------------------------


@pytest.mark.one_in(8, "a second of a core each")
@pytest.mark.parametrize("by_key", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_an_app_that_crashes_stops_and_changes_its_parallelism_counts_each_row_once(seed, by_key):
    """In a simulation, exactly once; the windows behind see no row late, however long its call took."""
    rng = random.Random(seed)
    total, waits = 90, [rng.choice([0, 0.001, 0.05, 2.0]) for _ in range(90)]
    rows_out, counts = ListSink(), ListSink("counts")

    async def double(row):
        await asyncio.sleep(waits[row["n"]])
        return {"n": row["n"], "m": row["n"] * 2}

    async def of_key(key):
        await asyncio.sleep(waits[key])
        return {"m": key * 2} if key else None

    def build(folder):
        parallelism = rng.choice([1, 2, 3])
        app = App("calls", checkpoint_dir=str(folder), checkpoint_interval="100ms", parallelism=parallelism)
        script = []
        for first in range(0, total, 9):
            script += [[{"n": n, "ts": n * 100, "k": n % 5} for n in range(first, first + 9)], BARRIER]
        schema = pa.schema([(name, pa.int64()) for name in ("n", "ts", "k")])
        stream = app.stream(ScriptedSource([*script, END], schema=schema), schema=schema, time="ts")
        if by_key:
            made = stream.lookup(of_key, on="k", schema={"m": "int64"}, concurrency=2, ordered=seed % 2 == 0)
        else:
            made = stream.map_async(double, schema={"n": "int64", "m": "int64"}, concurrency=4, ordered=seed % 2 == 0)
        made.select("n", "m").to(rows_out, delivery="exactly_once")
        made.key_by("m").window(tumbling("1s")).aggregate(c=count()).to(counts, delivery="exactly_once")
        return app

    found = simulate(build, seed, crashes=2, stops=1)
    assert found.lives > 1
    want = [(n, (n % 5 * 2 or None) if by_key else n * 2) for n in range(total)]
    assert sorted((row["n"], row["m"]) for row in rows_out.rows) == want
    by_window = Counter((m, n // 10) for n, m in want)
    assert {(row["m"], row["window_start"].timestamp()): row["c"] for row in counts.rows} == by_window


def test_rows_that_are_skipped_go_to_the_dead_letter_sink(tmp_path):
    dead, good = ListSink("dead"), ListSink()

    async def picky(row):
        if row["n"] % 3 == 0:
            raise ValueError("three")
        return {"n": row["n"]}

    def build(folder):
        app = App("picky", checkpoint_dir=str(folder))
        schema = pa.schema([("n", pa.int64())])
        source = ScriptedSource([[{"n": n} for n in range(7)], END], schema=schema)
        stream = app.stream(source, schema=schema)
        stream.map_async(picky, schema=schema, on_error="skip", dead_letter=dead).to(good)
        return app

    simulate(build, 1, directory=tmp_path)
    assert [row["n"] for row in good.rows] == [1, 2, 4, 5]
    letters = [letter for data in dead.batches for letter in letters_in(data)]
    assert list(map(buried, letters)) == [{"n": n, "error": "ValueError: three"} for n in (0, 3, 6)]
    assert {letter.facts["step"] for letter in letters} == {
        "map_async(test_rows_that_are_skipped_go_to_the_dead_letter_sink.<locals>.picky)"
    }
    assert {letter.facts["agent"].split("/")[0] for letter in letters} == {"picky"}
    for letter in letters:
        assert re.fullmatch(
            r' +File "[^"]+", line \d+, in picky\n +raise ValueError\("three"\)', letter.facts["traceback"]
        )


def test_all_of_an_app_is_told_to_people(loop):
    run = mapping(loop, Service(loop))
    run.feed(rows(1, 2))
    figures = run.operator.statistics()
    assert figures["held_rows"] == figures["in_flight"] == figures["calls"] == 2
    assert figures["held_bytes"] > 0
    run.close()
