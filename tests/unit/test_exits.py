"""KeyboardInterrupt and SystemExit of the user's code: wherever they are raised, the app stops in good order, and then they are raised."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import sabot
from sabot import App, SabotError, SqlSink, UserAggregate
from sabot.base.process_exit import find_exit, wrap_exit
from sabot.connectors.files import NdjsonSource, files
from sabot.connectors.memory import MemorySource
from sabot.engine.state import MemoryBackend, open_backend
from sabot.llm import ExecutionEngine, ScriptedProvider
from sabot.testing import END, ListSink, MemoryBroker, ScriptedSource

SCHEMA = {"k": "int64", "x": "int64"}


@pytest.fixture(autouse=True)
def broker() -> MemoryBroker:
    MemoryBroker.get().reset()
    return MemoryBroker.get()


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Three rows; the function of the user's ends the process at the second."""
    file = tmp_path / "in.ndjson"
    file.write_text("".join(json.dumps({"k": 1, "x": x}) + "\n" for x in (1, 2, 3)))
    return str(file)


class Leaves:
    """Raises, as long as it is told to, at the row with x = 2."""

    def __init__(self, asked: BaseException | None) -> None:
        self.asked = asked

    def __call__(self, x: Any = 2) -> Any:
        if self.asked is not None and x == 2:
            raise self.asked
        return x


def leaving() -> list[Any]:
    return [
        pytest.param(KeyboardInterrupt("here"), id="KeyboardInterrupt"),
        pytest.param(SystemExit(3), id="SystemExit"),
    ]


# --- agents


def record(app: App, path: str, leave: Leaves, out: ListSink) -> None:
    @app.agent(NdjsonSource(path), sink=out, on_error="skip")
    def f(ctx: Any) -> Any:
        return leave(ctx.message["x"])


def coroutine(app: App, path: str, leave: Leaves, out: ListSink) -> None:
    @app.agent(NdjsonSource(path), sink=out, on_error="retry", concurrency=2)
    async def f(ctx: Any) -> Any:
        await asyncio.sleep(0)
        return leave(ctx.message["x"])


def generator(app: App, path: str, leave: Leaves, out: ListSink) -> None:
    @app.agent(NdjsonSource(path), sink=out)
    async def f(ctx: Any) -> Any:
        yield leave(ctx.message["x"])


def batch(app: App, path: str, leave: Leaves, out: ListSink) -> None:
    @app.agent(NdjsonSource(path), sink=out, batch=True, on_error="skip")
    def f(rows: pa.RecordBatch, ctx: Any) -> pa.RecordBatch:
        for x in rows["x"].to_pylist():
            leave(x)
        return rows


AGENTS = [record, coroutine, generator, batch]


@pytest.mark.one_in(9, "a tenth of a second of a core each")
@pytest.mark.parametrize("asked", leaving())
@pytest.mark.parametrize("make", AGENTS)
async def test_an_exit_in_an_agent_stops_the_app_and_its_record_is_not_done(
    make: Callable[..., None], asked: BaseException, path: str, tmp_path: Path
) -> None:
    """KeyboardInterrupt hung in asyncio's end until SIGKILL; SystemExit was one more error of the agent, skipped where errors are."""
    out = ListSink()

    async def life(leave: Leaves) -> App:
        app = App("a", state=str(tmp_path / "state"))
        make(app, path, leave, out)
        await app.run()
        return app

    with pytest.raises(type(asked)) as raised:
        await life(Leaves(asked))
    assert raised.value is asked
    app = await life(Leaves(None))  # the directory is free, and it goes on at the record
    assert app.agent_runtime.runner.restored_from is not None
    rows = [row if isinstance(row, int) else row["x"] for row in out.rows]
    assert sorted(rows) == [1, 2, 3]


@pytest.mark.parametrize("asked", leaving())
async def test_the_other_agents_stop_too(asked: BaseException, path: str) -> None:
    app, out = App("a"), ListSink()
    record(app, path, Leaves(asked), out)
    app.agent("for ever", name="g")(lambda ctx: None)
    with pytest.raises(type(asked)):
        async with asyncio.timeout(60):
            await app.run()


# --- what else is the user's in an app of agents


class Backend(MemoryBackend):
    def __init__(self, leave: Leaves, where: str) -> None:
        super().__init__()
        self.leave, self.where = leave, where

    def write(self, namespace: str, key: bytes, value: bytes | None) -> None:
        if self.where == "write":
            self.leave()
        super().write(namespace, key, value)

    async def snapshot(self) -> Any:
        if self.where == "snapshot":
            await asyncio.sleep(0)
            self.leave()
        return await super().snapshot()


class Reads(MemorySource):
    def __init__(self, leave: Leaves, where: str) -> None:
        super().__init__("in", "memory://", "g")
        self.leave, self.where = leave, where

    def open(self, *args: Any) -> None:
        if self.where == "open":
            self.leave()
        super().open(*args)

    def read_batch(self, max_rows: int, timeout: float) -> Any:
        if self.where == "read":
            self.leave()
        return super().read_batch(max_rows, timeout)

    def close(self) -> None:
        super().close()
        if self.where == "close":
            self.leave()


class Writes(ListSink):
    def __init__(self, leave: Leaves, where: str) -> None:
        super().__init__()
        self.leave, self.where = leave, where

    def open(self) -> None:
        if self.where == "open":
            self.leave()
        super().open()

    def write(self, batch: Any) -> None:
        if self.where == "write":
            self.leave()
        super().write(batch)

    def flush(self) -> None:
        if self.where == "flush":
            self.leave()
        super().flush()

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        if self.where == "deliver":
            self.leave()
        super().deliver(seq, batches)


def with_backend(where: str) -> Callable[[App, Leaves], None]:
    def build(app: App, leave: Leaves) -> None:
        app.state_backend = Backend(leave, where)

        @app.agent("in")
        async def f(ctx: Any) -> None:
            await ctx.state().put("k", 1)

    return build


def with_source(where: str, *, stream: bool) -> Callable[[App, Leaves], None]:
    def build(app: App, leave: Leaves) -> None:
        if stream:
            app.stream(Reads(leave, where), schema=SCHEMA).to("out")
        else:
            app.agent(Reads(leave, where), name="f")(lambda ctx: None)

    return build


def with_sink(where: str, *, stream: bool) -> Callable[[App, Leaves], None]:
    def build(app: App, leave: Leaves) -> None:
        sink = Writes(leave, where)
        delivery: Any = "exactly_once" if where == "deliver" else "at_least_once"
        if stream:
            app.stream("in", schema=SCHEMA).to(sink, delivery=delivery)
        else:
            app.agent("in", name="f", sink=sink, delivery=delivery)(lambda ctx: 1)

    return build


CONNECTORS = {
    **{f"backend {where}": with_backend(where) for where in ("write", "snapshot")},
    **{
        f"{kind} of {'a stream' if stream else 'an agent'} {where}": make(where, stream=stream)
        for stream in (False, True)
        for kind, make, places in (
            ("source", with_source, ("open", "read")),
            ("sink", with_sink, ("open", "write", "flush", "deliver")),
        )
        for where in places
    },
}


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("asked", leaving())
@pytest.mark.parametrize("where", CONNECTORS)
async def test_an_exit_in_a_connector_or_a_backend_of_the_user_is_raised(
    where: str, asked: BaseException, broker: MemoryBroker, tmp_path: Path
) -> None:
    broker.publish("in", [{"k": 1, "x": 2}])
    app = App("a", checkpoint_dir=tmp_path / "checkpoints", checkpoint_interval=0.05)
    CONNECTORS[where](app, Leaves(asked))
    with pytest.raises(type(asked)) as raised:
        async with asyncio.timeout(60):
            await app.run()
    assert raised.value is asked
    assert app.agent_runtime.runner.status.restarts == 0
    assert not app.agent_runtime.runner.running


async def test_an_exit_while_a_source_is_closed_changes_nothing(broker: MemoryBroker) -> None:
    app = App("a")
    with_source("close", stream=False)(app, Leaves(SystemExit(3)))
    await app.start()
    await app.stop()
    assert not app.agent_runtime.runner.running


# --- streams


class Sum(UserAggregate):
    type = pa.int64()

    def __init__(self, leave: Leaves) -> None:
        self.leave = leave

    def init(self) -> int:
        return 0

    def accumulate(self, state: int, batch: pa.RecordBatch) -> int:
        return state + sum(self.leave(x) for x in batch.column(0).to_pylist())

    def merge(self, a: int, b: int) -> int:
        return a + b

    def finish(self, state: int) -> int:
        return state


def map_batches(stream: Any, leave: Leaves) -> Any:
    def f(batch: pa.RecordBatch) -> pa.RecordBatch:
        for x in batch["x"].to_pylist():
            leave(x)
        return batch

    return stream.map_batches(f, schema=SCHEMA)


def aggregate(stream: Any, leave: Leaves) -> Any:
    return stream.key_by("k").window(sabot.count_window(3)).aggregate(x=sabot.aggregate_with(Sum(leave), "x"))


def reduce(stream: Any, leave: Leaves) -> Any:
    return stream.key_by("k").reduce(lambda a, b: {**b, "x": a["x"] + leave(b["x"])})


def process(stream: Any, leave: Leaves) -> Any:
    return stream.key_by("k").process(lambda row, ctx: {"x": leave(row["x"])}, schema={"x": "int64"})


def process_batches(stream: Any, leave: Leaves) -> Any:
    def f(keys: Any, batch: pa.RecordBatch, ctx: Any) -> pa.RecordBatch:
        for x in batch["x"].to_pylist():
            leave(x)
        return batch.select(["x"])

    return stream.key_by("k").process(f, schema={"x": "int64"}, batch=True)


def map_async(stream: Any, leave: Leaves) -> Any:
    async def f(row: dict[str, Any]) -> dict[str, Any]:
        return {"x": leave(row["x"])}

    return stream.map_async(f, schema={"x": "int64"}, on_error="skip", retries=5)


def lookup(stream: Any, leave: Leaves) -> Any:
    async def f(x: int) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"y": leave(x)}

    return stream.lookup(f, on="x", schema={"y": "int64"}, on_error="skip")


def prompts_of_map_llm(stream: Any, leave: Leaves) -> Any:
    def prompts(batch: pa.RecordBatch) -> list[str]:
        return [str(leave(x)) for x in batch["x"].to_pylist()]

    return stream.map_llm(prompts, ExecutionEngine(ScriptedProvider("yes")), on_error="skip")


STREAMS = [map_batches, aggregate, reduce, process, process_batches, map_async, lookup, prompts_of_map_llm]


@pytest.mark.one_in(12, "some hundredths of a second of a core each")
@pytest.mark.parametrize("asked", leaving())
@pytest.mark.parametrize("make", STREAMS)
async def test_an_exit_in_a_function_of_a_stream_is_raised_and_the_next_run_has_all_rows(
    make: Callable[..., Any], asked: BaseException, path: str, tmp_path: Path
) -> None:
    """It was an InternalError, and three restarts later the exit code was 1."""

    async def life(leave: Leaves) -> tuple[App, ListSink]:
        app, out = App("a", state=str(tmp_path / "state")), ListSink()
        make(app.stream(files(path), schema=SCHEMA), leave).to(out)
        await app.run()
        return app, out

    with pytest.raises(type(asked)) as raised:
        await life(Leaves(asked))
    assert raised.value is asked
    _, out = await life(Leaves(None))
    assert out.rows


@pytest.mark.parametrize("asked", leaving())
@pytest.mark.parametrize("make", STREAMS)
def test_collect_raises_the_exit_too(make: Callable[..., Any], asked: BaseException, path: str) -> None:
    with pytest.raises(type(asked)) as raised:
        make(App("a").stream(files(path), schema=SCHEMA), Leaves(asked)).collect()
    assert raised.value is asked


@pytest.mark.parametrize("asked", leaving())
async def test_collect_within_a_running_loop_raises_it(asked: BaseException, path: str) -> None:
    with pytest.raises(type(asked)):
        map_async(App("a").stream(files(path), schema=SCHEMA), Leaves(asked)).collect()


async def test_the_exit_is_told_with_its_place(path: str, caplog: pytest.LogCaptureFixture) -> None:
    app = App("a")
    record(app, path, Leaves(SystemExit(3)), ListSink())
    with pytest.raises(SystemExit):
        await app.run()
    assert "in.ndjson[0]@" in caplog.text
    assert "SystemExit: 3 (the function asked for the end of the process)" in caplog.text


# --- main, and start


@pytest.mark.parametrize("asked", leaving())
@pytest.mark.parametrize("make", [record, coroutine])
def test_main_ends_with_the_exit(make: Callable[..., None], asked: BaseException, path: str) -> None:
    app = App("a")
    make(app, path, Leaves(asked), ListSink())
    began = time.monotonic()
    with pytest.raises(type(asked)) as raised:
        app.main()
    assert raised.value is asked
    assert time.monotonic() - began < 60


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("asked", leaving())
@pytest.mark.parametrize("make", [record, map_batches, map_async])
def test_after_start_the_app_stops_and_the_event_loop_ends_with_the_exit(
    make: Callable[..., None], asked: BaseException, path: str, tmp_path: Path
) -> None:
    """Nobody waits in `run`: the program waits for something of its own."""
    ended: list[bool] = []
    app = App("a", state=str(tmp_path / "state"))

    async def program() -> None:
        if make is record:
            record(app, path, Leaves(asked), ListSink())
        else:
            make(app.stream(files(path), schema=SCHEMA), Leaves(asked)).to(ListSink())
        await app.start()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(app.agent_runtime.runner.running)

    with pytest.raises(type(asked)) as raised:
        asyncio.run(program())
    assert raised.value is asked
    assert ended == [False]
    open_backend(str(tmp_path / "state"), "db")  # it is free again


def test_a_start_that_the_user_ends_raises_the_exit() -> None:
    app = App("a")
    with_source("open", stream=False)(app, Leaves(SystemExit(3)))
    with pytest.raises(SystemExit):
        asyncio.run(app.start())


# --- the carrier


def test_an_exit_is_found_behind_the_errors_that_carry_it() -> None:
    asked = SystemExit(3)
    outer = RuntimeError("outer")
    outer.__cause__ = wrap_exit(asked, "the sink")
    assert str(outer.__cause__) == "the sink ends the process: SystemExit: 3"
    assert str(wrap_exit(KeyboardInterrupt(), "it")) == "it ends the process: KeyboardInterrupt"
    assert find_exit(outer) is asked
    assert find_exit(ValueError("x")) is find_exit(None) is None


def test_an_error_that_is_its_own_cause_has_no_exit_behind_it() -> None:
    error = ValueError("x")
    error.__cause__ = error
    assert find_exit(error) is None


def test_a_sink_that_cannot_be_opened_ends_the_app_with_its_error_which_is_not_its_own_cause(tmp_path: Path) -> None:
    """It was raised from itself; who looked for an exit behind it went round for ever, deaf to Ctrl-C."""
    app = App("a", restart="none")
    app.stream(ScriptedSource([END]), schema={"x": "int64"}).to(SqlSink(f"sqlite:{tmp_path}", "t"))
    with pytest.raises(SabotError) as caught:
        asyncio.run(app.run())
    assert caught.value.__cause__ is not caught.value
