"""A Source of the user's own, in the forms that docs/connectors.md shows, as a stream."""

import asyncio
import errno
import os
import random

import msgspec
import numpy as np
import pyarrow as pa
import pytest

import sabot
from sabot import App, Batch, SabotError, Source, UserError, col, tumbling
from sabot.codecs.records import build_records
from sabot.connectors.base import MEMORY_BYTES, Bounded
from sabot.engine.runtime.tasks.reading import Reader
from sabot.errors import RegistryUnavailable
from sabot.testing import BARRIER, CRASH, END, ListSink, ScriptedSource, run
from tools.agent_tools import checkpoint, crash_image, started, until


class Numbers(Source, Bounded):
    """The source of docs/connectors.md: its batches come decoded, as its `schema` says."""

    name = "numbers"
    schema = pa.schema([("n", pa.int64()), ("half", pa.float64())])

    def __init__(self, count):
        self.count, self.next = count, 0

    def open(self, positions, start="earliest"):
        self.next = (positions or {}).get((self.name, 0), 0)

    def read_batch(self, max_rows, timeout):
        end = min(self.next + min(max_rows, 3), self.count)
        if end == self.next:
            return None
        data, self.next = self.rows(range(self.next, end)), end
        return Batch(data, {(self.name, 0): end}, self.name)

    def rows(self, numbers):
        return pa.record_batch({"n": pa.array(numbers, pa.int64()), "half": [n / 2 for n in numbers]})

    @property
    def exhausted(self):
        return self.next == self.count

    def positions(self):
        return {(self.name, 0): self.next}

    def close(self):
        """Nothing to let go of."""


class Records(Numbers):
    """The same without a schema: its batches have RECORD_SCHEMA."""

    schema = None

    def rows(self, numbers):
        texts = [b'{"n": %d, "half": %f}' % (n, n / 2) for n in numbers]
        return build_records(texts, None, [0] * len(texts), 0, list(numbers))


class Unsaid(Numbers):
    """Gives columns, and says none."""

    schema = None


class Full(Numbers):
    """Keeps what it has fetched on a disk that is full."""

    def read_batch(self, max_rows, timeout):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_named_with_what_to_do_wherever_it_ends_a_task():
    with pytest.raises(SabotError, match="No space left on device") as failed:
        App("own").stream(Full(4)).collect()
    assert "the disk is full (df -h)" in failed.value.hint


@pytest.mark.parametrize("source", [Numbers, Records])
@pytest.mark.parametrize("parallelism", [1, 2])
def test_a_source_of_ones_own_is_a_stream(source, parallelism):
    app = App("own", parallelism=parallelism)
    rows = app.stream(source(10)).filter(col("n") > 6).select("n", twice=col("half") * 4)
    assert sorted(rows.collect().to_pylist(), key=str) == [{"n": n, "twice": 2.0 * n} for n in (7, 8, 9)]
    minutes = App("own").stream(source(10), time="n").window(tumbling("5ms")).aggregate(n=sabot.count())
    assert minutes.collect()["n"].to_pylist() == [5, 5]
    assert App("own").stream(source(10)).aggregate(n=sabot.count()).collect()["n"].to_pylist() == [*range(1, 11)]


def test_a_stream_may_say_the_columns_that_its_source_has_and_no_others():
    assert App("own").stream(Numbers(4), schema={"n": "int64"}).collect()["n"].to_pylist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match="source numbers has no column m"):
        App("own").stream(Numbers(4), schema={"m": "int64"}).collect()
    with pytest.raises(UserError, match="n is int64, and schema= of the stream says string"):
        App("own").stream(Numbers(4), schema={"n": "string"}).collect()


def test_a_source_that_gives_columns_and_says_no_schema_is_told_what_to_say():
    with pytest.raises(UserError, match=r"its source returns columns \(n, half\), but declares no schema") as refused:
        App("own").stream(Unsaid(4)).collect()
    assert "schema = pa.schema(" in refused.value.hint


# -- positions and memory, as a checkpoint keeps them


class Remembering(ScriptedSource):
    """A script that goes on only if the memory that it gets back is that of the positions. `opened`: the memory at each start."""

    def __init__(self, script, opened, schema=None):
        super().__init__(script, schema=schema)
        self.opened, self.behind, self.recalled = opened, 0, None

    def open(self, positions, start="earliest"):
        super().open(positions, start)
        known = (positions or {}).get((self.name, 0))
        if known is not None and self.recalled != {(self.name, 0): b"behind %d" % known}:
            raise UserError(f"position {known} came back with the memory {self.recalled}")
        self.opened.append(self.recalled)
        self.behind, self.recalled = known or 0, None

    def read_batch(self, max_rows, timeout):
        batch = super().read_batch(max_rows, timeout)
        if batch is not None:
            self.behind = batch.offsets[(self.name, 0)]
        return batch

    def remember(self):
        return {(self.name, 0): b"behind %d" % self.behind}

    def recall(self, memory):
        self.recalled = memory


def script_of(seed):
    """Rows 0 to 399 in lists of any length, with checkpoints and crashes between them."""
    chance, script, n = random.Random(seed), [], 0
    while n < 400:
        end = min(400, n + chance.randrange(1, 60))
        script.append([{"n": each} for each in range(n, end)])
        script += [BARRIER] * chance.randrange(2) + [CRASH] * (chance.random() < 0.3)
        n = end
    return [*script, END]


@pytest.mark.one_in(9, "a tenth of a second of a core each")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("decoded", [True, False])
def test_the_memory_and_the_positions_of_a_checkpoint_are_of_one_moment(tmp_path, seed, decoded):
    found, opened = ListSink(), []
    schema = pa.schema([("n", pa.int64())]) if decoded else None

    def build(directory):
        app = App("own", checkpoint_dir=directory)
        app.stream(Remembering(script_of(seed), opened, schema), schema={"n": "int64"}).to(found)
        return app

    run(build, tmp_path)
    assert [row["n"] for row in found.rows] == [*range(400)]
    assert len(opened) > 1
    assert any(opened)


@pytest.mark.slow  # half a second of a core
async def test_the_memory_of_an_agents_source_is_that_behind_the_rows_that_the_agent_has_taken(tmp_path):
    """Barriers overtake rows that wait for a full agent, so the source is ahead of what the checkpoint covers."""
    opened, may_go_on = [], asyncio.Event()

    def made(directory):
        app = App("own", checkpoint_dir=directory)
        source = Remembering([[{"n": n} for n in range(40_000)]], opened)

        @app.agent(source, sink=ListSink())
        async def passed(ctx):
            await may_go_on.wait()

        return app, source

    app, source = made(tmp_path / "state")
    async with started(app):
        await until(lambda: source.behind == 40_000)
        await checkpoint(app)
        image = crash_image(tmp_path / "state", tmp_path / "image")
        may_go_on.set()
    app, source = made(image)
    async with started(app):
        await until(lambda: len(opened) == 2)
    assert opened[1] not in ({("script", 0): b"behind 40000"}, {("script", 0): b"behind 0"})


@pytest.mark.one_in(3, "a fifth of a second of a core each")
@pytest.mark.parametrize("seed", range(4))
def test_an_agent_goes_on_with_the_memory_of_its_source(tmp_path, seed):
    found, opened = ListSink(), []

    def build(directory):
        app = App("own", checkpoint_dir=directory)

        @app.agent(Remembering(script_of(seed), opened), sink=found, concurrency=1)
        async def passed(ctx):
            return ctx.message

        return app

    run(build, tmp_path)
    assert sorted(row["n"] for row in found.rows) == [*range(400)]
    assert any(opened)


def test_a_batch_that_waits_for_a_schema_registry_does_not_count_in_the_memory():
    class Waiting(Reader):
        def _ready(self, batch):
            if waits.pop():
                raise RegistryUnavailable("the registry does not answer")
            return batch

    opened, waits = [], [False, True, False]
    source = Remembering([{"n": 1}, {"n": 2}], opened)
    reader = Waiting("rows", source, max_rows=1)
    reader.open_source(None, "earliest", None)
    assert reader.next(0).num_rows == 1
    assert reader.next(0) is None
    assert source.remember() == {("script", 0): b"behind 2"}
    assert reader.memory() == {"rows#memory": msgspec.msgpack.encode([("script", 0, b"behind 1")])}
    assert bounded_next(reader).num_rows == 1
    assert reader.memory() == {"rows#memory": msgspec.msgpack.encode([("script", 0, b"behind 2")])}


def bounded_next(reader):
    """The next batch; the wait for the registry ends by itself."""
    for _ in range(6000):
        if (batch := reader.next(0.01)) is not None:
            return batch
    raise AssertionError("no batch came in a minute")


class Halves(Source):
    """Two readers at least, each with rows 0, 1, … of its own; `recalled`: what each of them got back."""

    name = "halves"
    schema = pa.schema([("reader", pa.int64()), ("n", pa.int64())])

    def __init__(self, recalled, number=0):
        self.all, self.number, self.next, self.memory = recalled, number, 0, None

    def readers(self, count):
        return [Halves(self.all, number) for number in range(count)]

    def recall(self, memory):
        self.memory = memory

    def open(self, positions, start="earliest"):
        self.next = (positions or {}).get((self.name, self.number), 0)
        if positions:
            self.all[self.number] = self.memory

    def read_batch(self, max_rows, timeout):
        if self.next == 5:
            return None
        self.next += 1
        rows = pa.record_batch({"reader": [self.number], "n": [self.next - 1]}, self.schema)
        return Batch(rows, self.positions(), self.name)

    def positions(self):
        return {(self.name, self.number): self.next}

    def remember(self):
        return {(self.name, self.number): b"%d" % self.next}

    def close(self): ...


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("later", [2, 3, 1])
async def test_each_reader_gets_the_memory_of_all_readers_at_any_parallelism(tmp_path, later):
    found, recalled = [], {}
    for parallelism in (2, later):
        app = App("own", state=str(tmp_path), parallelism=parallelism)
        app.stream(Halves(recalled)).to(found)
        async with started(app):
            await until(lambda: len(found) == 10)
    assert recalled == {each: {("halves", 0): b"5", ("halves", 1): b"5"} for each in range(2)}
    assert sorted((row["reader"], row["n"]) for row in found) == [(each, n) for each in range(2) for n in range(5)]


class Given(Numbers):
    """Says positions, memory and ids as a test gives them."""

    given = None
    kept = None
    log_id = ""

    def read_batch(self, max_rows, timeout):
        batch = super().read_batch(max_rows, timeout)
        return batch if batch is None or self.given is None else Batch(batch.data, self.given, self.name)

    def remember(self):
        return {} if self.kept is None else self.kept


PLACE = ("numbers", 0)
REFUSED = {
    "70 bits": ("given", {PLACE: 2**70}, "its position 1180591620717411303424 of"),
    "below 64 bits": ("given", {PLACE: -(2**63) - 1}, "its position -9223372036854775809 of"),
    "a text": ("given", {PLACE: "abc"}, "its position 'abc' of"),
    "a fraction": ("given", {PLACE: 1.5}, "its position 1.5 of"),
    "a bool": ("given", {PLACE: True}, "its position True of"),
    "none": ("given", {PLACE: None}, "its position None of"),
    "a partition by name": ("given", {("numbers", "a"): 1}, r"its position 1 of \('numbers', 'a'\)"),
    "no pair": ("given", {"numbers": 1}, "its position 1 of 'numbers'"),
    "half a character": ("given", {("\ud800", 0): 1}, "its position 1 of"),
    "memory of text": ("kept", {PLACE: "abc"}, r"remember\(\) returned"),
    "memory of a name": ("kept", {"numbers": b"abc"}, r"remember\(\) returned"),
    "memory of none": ("kept", {PLACE: None}, r"remember\(\) returned"),
    "much memory": (
        "kept",
        {PLACE: bytes(MEMORY_BYTES), ("numbers", 1): b"1"},
        r"remember\(\) returned 4,194,305 bytes",
    ),
    "a log": ("log_id", 7, "its log_id is 7"),
}


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("kind", REFUSED)
async def test_what_no_start_could_read_back_is_refused_with_the_sources_name_before_a_checkpoint_has_it(
    tmp_path, kind
):
    """It was written into a checkpoint that counted as complete, and no start could restore it."""
    member, value, message = REFUSED[kind]
    app, source = App("own", state=str(tmp_path)), Given(10)
    setattr(source, member, value)
    app.stream(source).to([])
    with pytest.raises(UserError, match=f"source numbers: {message}"):
        await app.run()
    assert [*tmp_path.rglob("checkpoints/*.json")] == []


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("kind", REFUSED)
async def test_what_no_start_could_read_back_ends_its_agent(tmp_path, kind):
    member, value, message = REFUSED[kind]
    app, source = App("own", state=str(tmp_path)), Given(10)
    setattr(source, member, value)

    @app.agent(source, sink=ListSink())
    async def passed(ctx):
        return ctx.message

    with pytest.raises(SabotError, match=f"source numbers: {message}"):
        await app.run()
    assert [*tmp_path.rglob("checkpoints/*.json")] == []


async def test_whole_numbers_of_numpy_are_positions_and_the_most_memory_comes_back(tmp_path):
    class Kept(Given):
        given, kept = {PLACE: np.int64(2**63 - 1)}, {PLACE: os.urandom(MEMORY_BYTES)}
        exhausted = False

        def open(self, positions, start="earliest"):
            asked.append(positions)

        def recall(self, memory):
            recalled.append(memory)

    asked, recalled, found = [], [], []
    for life in range(1, 3):
        app = App("own", state=str(tmp_path))
        app.stream(Kept(10)).to(found)
        async with started(app):
            await until(lambda life=life: len(found) == 10 * life)
    assert asked == [None, {PLACE: 2**63 - 1}]
    assert recalled == [Kept.kept]
