"""Operators that hold rows for calls, driven by hand: one thread, an event loop that takes turns when the test says so, its own time."""

import asyncio
import json
from dataclasses import replace

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import IDLE, Watermark
from sabot.codecs.records import iterate_records
from sabot.engine.calls import CallOptions, Retry
from sabot.engine.letters.form import letter_of_record
from sabot.engine.operators.base import TIME_COLUMN, OperatorContext, Saved

INPUT = pa.schema([("n", pa.int64()), (TIME_COLUMN, pa.int64())])
OUTPUT = pa.schema([("m", pa.int64())])


def rows(*numbers, time=lambda n: n * 10):
    return pa.RecordBatch.from_pylist([{"n": n, TIME_COLUMN: time(n)} for n in numbers], INPUT)


class Loop(asyncio.SelectorEventLoop):
    """Goes on when it is told to, and time with it."""

    now = 100.0

    def time(self):
        return self.now

    def turns(self, count=4):
        for _ in range(count):
            self.call_soon(self.stop)
            self.run_forever()

    def advance(self, seconds):
        self.now += seconds
        self.turns()


class LoopClock:
    """The time of a loop."""

    def __init__(self, loop):
        self.time = self.monotonic = loop.time


class Service:
    """What the user's function asks: answers when the test says so."""

    def __init__(self, loop, answer=lambda n: {"m": n * 2}):
        self.loop, self.answer_of = loop, answer
        self.asked = []  # in the order in which calls began
        self.open = {}  # argument -> futures
        self.most = 0

    async def __call__(self, argument):
        argument = argument["n"] if isinstance(argument, dict) else argument
        self.asked.append(argument)
        future = self.loop.create_future()
        self.open.setdefault(argument, []).append(future)
        self.most = max(self.most, len(self.in_flight))
        try:
            return await future
        finally:
            self.open[argument].remove(future)

    @property
    def in_flight(self):
        return [argument for argument, futures in self.open.items() for _ in futures]

    def answer(self, *arguments):
        for argument in arguments:
            for future in self.open[argument]:
                future.set_result(self.answer_of(argument))
        self.loop.turns()

    def fail(self, argument, error):
        self.open[argument][0].set_exception(error)
        self.loop.turns()


def letters_in(data):
    return [
        letter_of_record(each.partition, each.offset, each.timestamp, each.key, each.payload, each.headers)
        for each in iterate_records(data, "dead")
    ]


def buried(letter):
    """The row of a dead letter, and its error."""
    return {**json.loads(letter.payload), "error": f"{letter.facts['error']}: {letter.facts['message']}"}


class Run:
    """An operator as its task drives it. out: rows and marks, in the order in which they came out."""

    def __init__(self, operator, loop, input=INPUT, *, subtask=0, parallelism=1, restored=(), clock=None):
        self.operator, self.loop = operator, loop
        self.out, self.dead, self.wakes = [], [], 0
        operator.emit = self._emit
        operator.on_mark = lambda mark: self.out.append(
            mark.timestamp_ms if isinstance(mark, Watermark) else "idle" if mark is IDLE else "active"
        )
        operator.wake = self._wake
        context = OperatorContext(input, subtask, parallelism, clock=clock or LoopClock(loop), loop=lambda: loop)
        self.letters = []
        context.branches["dead"] = self._bury
        self.schema = operator.open(context)
        if len(restored) == parallelism:
            restored = [replace(restored[subtask], own=True)]
        if restored:
            operator.restore(list(restored))
            self.poll()

    def _bury(self, batch):
        letters = letters_in(batch.taken())
        self.letters += letters
        self.dead += [buried(letter) for letter in letters]

    def _emit(self, batch):
        assert batch.schema.equals(self.schema), f"{batch.schema} is not {self.schema}"
        assert batch.num_rows
        batch.taken().validate(full=True)
        self.out += [tuple(row.values()) for row in batch.taken().to_pylist()]

    def _wake(self):
        self.wakes += 1

    def feed(self, data):
        self.operator.process(Batch(data))
        self.loop.turns()

    def mark(self, ms):
        self.operator.hold(Watermark(ms) if isinstance(ms, int) else ms)

    def poll(self):
        self.operator.poll(0)
        self.loop.turns()

    def answered(self, service, *arguments):
        """-> what comes out when these are answered, one after the other."""
        for argument in arguments:
            service.answer(argument)
            self.poll()
        self.poll()
        out, self.out = self.out, []
        return out

    def saved(self, directory):
        directory.mkdir()
        facts, state = self.operator.snapshot()
        written = state.save(directory)
        assert written == sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        state.discard()
        return Saved(directory, json.loads(json.dumps(facts)))

    def close(self):
        self.operator.close()
        self.operator.close()
        self.loop.turns()


def spoken(options):
    """Those of calls among an operator's options, made into CallOptions."""
    ours = {"timeout_s": None, "concurrency": 10} | options
    retry = Retry(ours.pop("retries", 0), ours.pop("backoff_s", 0.1))
    calls = {name: ours.pop(name) for name in ("concurrency", "timeout_s", "on_error") if name in ours}
    return ours | {"options": CallOptions(retry=retry, **calls)}
