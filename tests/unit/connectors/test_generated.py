"""`@app.source`: generator functions as sources."""

import asyncio
import time

import pytest

from sabot import App, UserError, col
from sabot.testing import MemoryBroker
from tools.agent_tools import started, until

NUMBERS = {"n": "int64"}


def endless(app):
    @app.source(schema=NUMBERS)
    def numbers(position):
        n = position
        while True:
            yield {"n": n}
            n += 1

    return numbers


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("batches", [1, 1000])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_generator_is_a_source(is_async, batches):
    app = App("own")

    if is_async:

        @app.source(schema=NUMBERS, bounded=True)
        async def numbers(position):
            for n in range(position, 20_000, batches):
                yield [{"n": m} for m in range(n, n + batches)]
                if n % 5_000 == 0:
                    await asyncio.sleep(0)
    else:

        @app.source(schema=NUMBERS, bounded=True)
        def numbers(position):
            for n in range(position, 20_000, batches):
                yield [{"n": m} for m in range(n, n + batches)]

    assert app.stream(numbers).collect().column("n").to_pylist() == list(range(20_000))
    assert app.stream(numbers).filter(col("n") < 2).collect().num_rows == 2  # a generator for each stream


def test_a_look_at_an_endless_generator_needs_a_limit():
    app = App("own")
    numbers = app.stream(endless(app))
    assert numbers.collect(limit=3).to_pylist() == [{"n": 0}, {"n": 1}, {"n": 2}]
    with pytest.raises(UserError, match=r"stream numbers has no end .*collect\(limit=20\)"):
        numbers.collect()


CURSORS = {  # of the row n, and the way back
    "number": (lambda n: n * 10, lambda at: at // 10),
    "text": (lambda n: f"é{n}", lambda at: int(at[1:])),
    "128 bits": (lambda n: (n << 70) + (1 << 64), lambda at: at >> 70),
    "below zero": (lambda n: -1 - n, lambda at: -1 - at),
    "dict": (lambda n: {"page": [n, None], "more": True}, lambda at: at["page"][0]),
    "fraction": (lambda n: n + 0.5, int),
}


@pytest.mark.parametrize("kind", CURSORS)
@pytest.mark.parametrize("rows", [0, 1, 4, 9, 10])
def test_a_cursor_of_any_json_value_begins_a_generator_behind_each_row(kind, rows):
    cursor, number = CURSORS[kind]
    asked = []

    def source():
        @App("own").source(schema=NUMBERS, bounded=True)
        def numbers(place):
            asked.append(place)
            for n in range(0 if place == 0 and kind != "number" else number(place), 10):
                yield {"n": n}, cursor(n + 1)

        return numbers

    def read(reader, most):
        found = []
        while len(found) < most and (batch := reader.read_batch(min(3, most - len(found)), 60)) is not None:
            found += batch.data.column("n").to_pylist()
        return found

    first, later = source(), source()
    first.open(None)
    before = read(first, rows)
    memory, positions = first.remember(), first.positions()
    first.close()
    later.recall(memory)
    later.open(positions)
    assert (later.remember(), later.positions()) == (memory, positions)
    assert before + read(later, 100) == [*range(10)]
    later.close()
    assert asked == [0, cursor(rows) if rows else 0]
    later.recall(memory)
    later.open(None)  # a fresh start
    assert read(later, 100) == [*range(10)]
    later.close()


def test_a_cursor_is_what_it_was_when_it_was_yielded():
    @App("own").source(schema=NUMBERS, bounded=True)
    def numbers(place):
        place = place or {"next": 0}
        while place["next"] < 5:
            place["next"] += 1
            yield {"n": place["next"]}, place

    numbers.open(None)
    numbers.read_batch(2, 60)
    assert numbers.remember() == {("numbers", 0): b'{"next": 2}'}
    numbers.close()


def test_a_cursor_without_rows_is_kept():
    @App("own").source(schema=NUMBERS, bounded=True)
    def numbers(place):
        yield {"n": 1}, "a"
        yield [], "b"

    numbers.open(None)
    assert numbers.read_batch(100, 60).num_rows == 1
    while not numbers.exhausted:
        numbers.read_batch(100, 60)
    assert numbers.remember() == {("numbers", 0): b'"b"'}
    numbers.close()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([({"n": 1}, {1, 2})], "the cursor {1, 2} is no JSON value: .*set"),
        ([({"n": 1}, float("nan"))], "the cursor nan is no JSON value"),
        ([({"n": 1}, b"abc")], "the cursor b'abc' is no JSON value"),
        ([({"n": 1}, {"at": (1, 2)})], r"no JSON value: it would come back as \{'at': \[1, 2\]\}"),
        ([({"n": 1}, {1: "a"})], "no JSON value: it would come back as {'1': 'a'}"),
        ([({"n": 1}, "a"), {"n": 2}], "a row came without a cursor, behind rows with one"),
    ],
)
def test_a_cursor_from_which_no_restart_could_go_on_is_refused(given, message):
    app = App("own")

    @app.source(schema=NUMBERS, bounded=True)
    def numbers(place):
        yield from given

    with pytest.raises(UserError, match=f"source numbers: .*{message}"):
        app.stream(numbers).collect()


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("kind", ["rows", "number", "text", "128 bits"])
async def test_each_row_counts_once_after_restarts(tmp_path, kind):
    cursor, number = CURSORS.get(kind, (None, int))
    found, asked = [], []
    for _ in range(3):
        app = App("own", state=str(tmp_path))

        @app.source(schema=NUMBERS)
        def numbers(position):
            asked.append(position)
            for n in range(0 if position == 0 else number(position), 1_000_000):
                yield {"n": n} if cursor is None else ({"n": n}, cursor(n + 1))
                time.sleep(0.0005)

        app.stream(numbers).to(found)
        before = len(found)
        await app.start()
        await until(lambda n=before: len(found) > n + 50)
        await app.stop()
    assert [row["n"] for row in found] == list(range(len(found)))
    assert asked[0] == 0
    assert cursor is None or asked[1] == cursor(number(asked[1]))
    assert 0 < number(asked[1]) < number(asked[2])


async def test_an_app_ends_when_its_generator_ends():
    app, found = App("own"), []

    @app.source(schema=NUMBERS)  # not said to be bounded
    async def numbers(position):
        yield {"n": 1}

    app.stream(numbers).to(found)
    await asyncio.wait_for(app.run(), 60)
    assert found == [{"n": 1}]


async def test_a_generator_that_sleeps_does_not_hold_up_the_stop():
    app, closed = App("own"), []

    @app.source(schema=NUMBERS)
    async def numbers(position):
        try:
            yield {"n": 1}
            await asyncio.sleep(3600)
        finally:
            closed.append(True)

    found = []
    app.stream(numbers).to(found)
    async with started(app):
        await until(lambda: found)
        begun = time.monotonic()
    assert time.monotonic() - begun < 60
    assert closed == [True]


async def test_a_generator_that_has_nothing_to_yield_but_empty_lists_does_not_hold_up_the_stop():
    app, found, left = App("own"), [], []

    @app.source(schema=NUMBERS)
    def numbers(position):
        yield {"n": 1}
        for _ in range(100_000):  # as many as take longer than a stop
            yield []
            time.sleep(0.001)
        left.append(True)

    app.stream(numbers).to(found)
    async with started(app):
        await until(lambda: found)
    assert left == []


async def test_a_call_that_somebody_cancels_inside_a_generator_ends_the_app_with_an_error():
    app = App("own")

    @app.source(schema=NUMBERS, bounded=True)
    async def numbers(position):
        yield {"n": 1}
        request = asyncio.ensure_future(asyncio.sleep(60))
        request.cancel()
        await request

    app.stream(numbers).to([])
    with pytest.raises(UserError, match="source numbers: the function raised CancelledError"):
        await asyncio.wait_for(app.run(), 60)


def test_a_generator_waits_for_its_reader_however_long_its_lists_are():
    yielded = []

    @App("own").source(schema=NUMBERS, bounded=True)
    def numbers(position):
        for page in range(200):
            yielded.append(page)
            yield [{"n": page}] * 5_000

    numbers.open(None)
    for read in range(1, 50):
        assert numbers.read_batch(8_192, 60).num_rows == 5_000
        assert len(yielded) - read < 10
    numbers.close()


async def test_an_agent_reads_a_generator():
    app, seen = App("own"), []

    @app.source(schema=NUMBERS, bounded=True)
    def numbers(position):
        yield from ({"n": n} for n in range(position, 3))

    @app.agent(numbers)
    async def show(ctx):
        seen.append(ctx.message["n"])

    await app.run()
    assert seen == [0, 1, 2]


async def test_rows_that_do_not_fit_are_dead_letters(memory_url):
    app, found = App("own", broker=memory_url), []

    @app.source(schema=NUMBERS, bounded=True)
    def numbers(position):
        yield {"n": 1}
        yield [{"n": "two"}, 3, {"m": 4}]

    app.stream(numbers).to(found)
    await app.run()
    assert found == [{"n": 1}, {"n": None}]
    letters = [record.value for record in MemoryBroker.get(memory_url).records("numbers.dlq")]
    assert letters == [{"n": "two"}, 3]


def test_the_error_of_a_generator_ends_the_app_after_the_rows_before_it():
    app = App("own")

    @app.source(schema=NUMBERS, bounded=True)
    def numbers(position):
        yield {"n": 1}
        raise RuntimeError("the place is gone")

    with pytest.raises(
        UserError, match="source numbers: the function raised RuntimeError: the place is gone"
    ) as raised:
        app.stream(numbers).collect()
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_a_function_that_cannot_be_a_source_is_refused():
    app = App("own")

    def rows(position):
        return [{"n": 1}]

    def deaf():
        yield {"n": 1}

    for function, message in ((rows, "rows is no generator function"), (deaf, "deaf takes no position")):
        with pytest.raises(UserError, match=message):
            app.source(schema=NUMBERS)(function)
