"""Each object of a user's own that the runtime calls is judged as the code around it is, or refused: no tool that a rule denies
is called by it. `OBJECTS` is compared with the parameters of the public classes, so that a new one cannot be forgotten.
"""

import contextlib
import inspect
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import sabot
from sabot import App, Batch, Sink, Source, files, tumbling
from sabot.agents import (
    Budget,
    DurableContext,
    ExecutionRequest,
    InMemoryEventBus,
    InMemoryLedgerWriter,
    Ledger,
    PolicyEngine,
    RuntimeKernel,
    ToolPolicy,
)
from sabot.api.stream.stream import ConnectedStreams, GroupedStream, KeyedStream, WindowedStream
from sabot.api.streams import Stream
from sabot.clock import ManualClock, SystemClock
from sabot.connectors import Bounded, Scans
from sabot.connectors.base import KeepsToken, Positions, Token, Track
from sabot.engine.calls.judging import judged_clock
from sabot.engine.calls.tools import Tool
from sabot.errors import SabotError, TransientError, UserError
from sabot.llm import Agent, ExecutionEngine, MemoryCache, Price, PriceTable, ScriptedProvider, tool
from sabot.mcp import McpServerPool
from sabot.testing import ListSink
from tools.agent_tools import started, until


class Till:
    """A tool that a rule denies, its witness, and what was tried: `pay` is called by the objects of a user."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.tried = 0
        self.by = set[str]()
        made = self.made

        @tool
        def refund(order: str) -> str:
            """Pays money back."""
            made.append(order)
            return "paid"

        self.refund = refund
        self.on = False

    def pay(self, by: str = "") -> None:
        """Calls the tool; an error is the user's to catch. `by`: the name of the method that calls it."""
        if self.on:
            self.tried += 1
            self.by.add(by)
            with contextlib.suppress(SabotError):
                self.refund("o-1")


def of(kind: type, till: Till, *args: Any, **options: Any) -> Any:
    """Returns an object of a user's own class whose methods, and properties, call the tool before they do their work."""

    def read(name: str) -> property:
        def get(self: Any) -> Any:
            till.pay(name)
            return getattr(super(made, self), name)

        return property(get)

    def paying(name: str) -> Callable[..., Any]:
        def method(self: Any, *given: Any, **named: Any) -> Any:
            till.pay(name)
            return getattr(super(made, self), name)(*given, **named)

        return method

    names = [
        name
        for name in dir(kind)
        if not name.startswith("_") and inspect.isfunction(inspect.getattr_static(kind, name, None))
    ]
    names += [name for name in dir(kind) if isinstance(inspect.getattr_static(kind, name, None), staticmethod)]
    own = {name: paying(name) for name in names}
    own |= {name: read(name) for name in dir(kind) if isinstance(inspect.getattr_static(kind, name), property)}
    made: type = type(f"Own{kind.__name__}", (kind,), own)
    return made(*args, **options)


def _engine(till: Till, **options: Any) -> ExecutionEngine:
    options.setdefault("provider", ScriptedProvider("hi", model="m"))
    return ExecutionEngine(retries=options.pop("retries", 0), patience=0, **options)


def _kernel(till: Till, engine: ExecutionEngine | None = None, **options: Any) -> RuntimeKernel:
    asked = engine or _engine(till)

    async def work(ctx: Any) -> str:
        await ctx.step(lambda: 1)
        await ctx.llm(asked).complete("x")
        return "done"

    return RuntimeKernel.create(
        **{"agent": work, "policy": PolicyEngine([ToolPolicy(["refund"], denied=True)]), **options}
    )


def _middleware(till: Till) -> Any:
    async def passed(call: Any, following: Any) -> Any:
        till.pay()
        return await following(call)

    return passed


def _sleep(till: Till) -> Any:
    async def sleep(seconds: float) -> None:
        till.pay()

    return sleep


def _failing_once() -> Any:
    answers: list[Any] = [TransientError("busy"), "hi"]
    return lambda spec: _said(answers.pop(0))


def _said(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


BUDGETS = [Budget("*", max_calls_daily=9)]
KERNELS: Mapping[str, Callable[[Till], RuntimeKernel]] = {
    "RuntimeKernel(clock)": lambda till: _kernel(till, clock=of(SystemClock, till)),
    "a clock for tests": lambda till: _kernel(till, clock=of(ManualClock, till)),
    "ExecutionEngine(clock)": lambda till: _kernel(till, _engine(till, clock=of(SystemClock, till))),
    "ExecutionEngine(provider)": lambda till: _kernel(
        till, _engine(till, provider=of(ScriptedProvider, till, "hi", model="m"))
    ),
    "ExecutionEngine(fallback)": lambda till: _kernel(
        till,
        _engine(
            till,
            provider=ScriptedProvider([TransientError("busy")], model="n"),
            fallback=[of(ScriptedProvider, till, "hi", model="m")],
        ),
    ),
    "ExecutionEngine(middleware)": lambda till: _kernel(till, _engine(till, middleware=[_middleware(till)])),
    "ExecutionEngine(cache)": lambda till: _kernel(till, _engine(till, cache=of(MemoryCache, till))),
    "ExecutionEngine(prices)": lambda till: _kernel(
        till, _engine(till, prices=of(PriceTable, till, {"m": Price(1, 1)}, version="1"))
    ),
    "ExecutionEngine(sleep)": lambda till: _kernel(
        till,
        _engine(till, provider=ScriptedProvider(_failing_once(), model="m"), retries=2, sleep=_sleep(till)),
    ),
    "RuntimeKernel(ledger_writer)": lambda till: _kernel(
        till, ledger_writer=of(InMemoryLedgerWriter, till), budgets=BUDGETS
    ),
    "Ledger(clock)": lambda till: _kernel(
        till, budgets=Ledger(InMemoryLedgerWriter(), budgets=BUDGETS, clock=of(SystemClock, till))
    ),
    "Agent(instructions)": lambda till: _kernel(
        till, agent=Agent(_engine(till), instructions=lambda *_: (till.pay(), "be kind")[1])
    ),
    "RuntimeKernel(event_bus)": lambda till: _kernel(till, event_bus=of(InMemoryEventBus, till)),
}


@pytest.mark.parametrize("name", KERNELS)
async def test_an_object_that_a_kernel_calls_calls_no_tool_that_is_denied(name: str) -> None:
    till = Till()
    kernel = KERNELS[name](till)
    till.on = True
    with contextlib.suppress(SabotError):
        async with kernel:
            await (await kernel.execute(ExecutionRequest(prompt="x"))).result()
    assert (till.tried > 0, till.made) == (True, [])


@pytest.mark.parametrize("from_start", [True, False])
async def test_the_clock_of_an_app_calls_no_tool(from_start: bool, memory_url: str) -> None:
    """It is asked in the task of the agents, in a crew, in a checkpoint and in threads, where no judge was. An app that has it stops
    all the same: of its threads those went on that read sources, write sinks and take figures.
    """
    before = {each for each in threading.enumerate() if not each.name.startswith(_LASTING)}
    till, asked = Till(), list[str]()
    clock = of(SystemClock, till)
    policy = PolicyEngine([ToolPolicy(["refund"], denied=True)])
    app = App("desk", memory_url, clock=clock, journal="memory", policy=policy)

    @app.agent("orders", sink="done")
    async def plain(ctx: Any) -> str:
        asked.append("plain")
        return "done"

    @app.agent("claims", sink="paid", durable=True)
    async def durable(ctx: Any) -> str:
        await ctx.step(lambda: 1)
        asked.append("durable")
        return "paid"

    till.on = from_start
    with contextlib.suppress(SabotError):
        async with started(app):
            till.on = True
            for topic in ("orders", "claims"):
                await app.send(topic, {"n": 1})
            await until(lambda: till.tried > 0)
    assert (till.tried > 0, till.made) == (True, [])
    left = [each.name for each in threading.enumerate() if each not in before and not each.name.startswith(_LASTING)]
    assert left == []


# Threads of the process, of any run: of asyncio, and those that block for whoever asks.
_LASTING = ("asyncio", "sabot-blocking")


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("who", ["the text of an error", "a handler of logging"])
async def test_what_is_called_about_a_failed_record_calls_no_tool_that_is_denied(
    who: str, durable: bool, memory_url: str
) -> None:
    """The task of an agent without jobs had no judge when it logged an error, and when it wrote the dead letter."""
    till = Till()

    class Wrong(ValueError):
        def __str__(self) -> str:
            if who == "the text of an error":
                till.pay()
            return "wrong"

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not till.tried:  # each denial is logged too
                till.pay()

    app = App("desk", memory_url, journal="memory", policy=PolicyEngine([ToolPolicy(["refund"], denied=True)]))

    @app.agent("orders", on_error="skip", durable=durable)
    async def fails(ctx: Any) -> None:
        raise Wrong

    handler, log = Handler(), logging.getLogger("sabot")
    if who == "a handler of logging":
        log.addHandler(handler)
    try:
        async with started(app):
            till.on = True
            await app.send("orders", {"n": 1})
            await until(lambda: till.tried > 0)
            till.on = False
    finally:
        log.removeHandler(handler)
    assert till.made == []


COLUMNS = pa.schema({"n": pa.int64()})


class Numbers(Source, Bounded, Scans):
    """Three rows, one for each read."""

    name = "numbers"

    def __init__(self) -> None:
        self._next = 0

    @property
    def schema(self) -> pa.Schema:
        return COLUMNS

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self._next = (positions or {}).get(("numbers", 0), 0)

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if self._next == 3:
            return None
        self._next += 1
        rows = pa.record_batch([pa.array([self._next], pa.int64())], schema=COLUMNS)
        return Batch(rows, self.positions(), self.name)

    @property
    def exhausted(self) -> bool:
        return self._next == 3

    def positions(self) -> Positions:
        return {("numbers", 0): self._next}

    def remember(self) -> Mapping[tuple[str, int], bytes]:
        return {("numbers", 0): b"x"}

    def identity(self) -> str:
        return "numbers"

    def infer_schema(self) -> pa.Schema:
        return COLUMNS

    def scan(self, schema: pa.Schema | None, columns: Sequence[str] | None) -> bool:
        return True

    def close(self) -> None: ...


class Written(Sink):
    name = "written"

    def open(self) -> None: ...

    def write(self, batch: Batch) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Kept(KeepsToken, Written):
    """Keeps the token of its rows in memory."""

    def __init__(self) -> None:
        self._token: Token | None = None

    def known(self, track: Track) -> Token | None:
        return self._token

    def claim(self, track: Track) -> Token | None:
        return self._token

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None: ...

    def settle(self, seq: int) -> None: ...


@pytest.mark.one_in(4, "a third of a second of a core each")
@pytest.mark.parametrize("sink", [Written, Kept])
@pytest.mark.parametrize("reads", ["stream", "agent", "durable agent", "batch agent"])
async def test_no_method_of_a_source_or_a_sink_calls_a_tool_that_is_denied(
    reads: str, sink: type[Sink], tmp_path: Path
) -> None:
    """Those that tell figures, and those that a start asks before it opens them, had no judge."""
    till = Till()
    for _ in range(2):  # the second run goes on from a checkpoint
        policy = PolicyEngine([ToolPolicy(["refund"], denied=True)])
        app = App("desk", state=str(tmp_path / "state"), journal=str(tmp_path / "journal"), policy=policy)
        numbers, out = of(Numbers, till), of(sink, till)
        if reads == "stream":
            app.stream(numbers).to(out)
        elif reads == "batch agent":

            @app.agent(numbers, sink=out, batch=True)
            async def passes(batch: pa.RecordBatch, ctx: Any) -> pa.RecordBatch:
                return batch
        else:
            durable: dict[str, Any] = {"durable": True, "job_id": "n"} if reads == "durable agent" else {}

            @app.agent(numbers, sink=out, **durable)
            async def handle(ctx: Any) -> dict[str, int]:
                return {"n": 1}

        till.on = True
        await app.run()
        till.on = False
    asked = {
        "open",
        "read_batch",
        "positions",
        "close",
        "lag",
        "figures",
        "log_id",
        "commit",
        "remember",
        "start_afresh",
    }
    asked |= {"claim", "deliver"} if sink is Kept else {"write", "flush"}
    asked |= set() if reads == "stream" else {"recall"}  # a stream that has ended is not opened again
    assert (till.made, asked - till.by) == ([], set())


class Sum(sabot.UserAggregate):
    """A sum whose methods call the tool of a till."""

    type = pa.int64()

    def __init__(self, till: Till) -> None:
        self._till = till

    def init(self) -> int:
        self._till.pay("init")
        return 0

    def accumulate(self, state: int, batch: pa.RecordBatch) -> int:
        self._till.pay("accumulate")
        return state + batch.num_rows

    def merge(self, state: int, later: int) -> int:
        self._till.pay("merge")
        return state + later

    def finish(self, state: int) -> int:
        self._till.pay("finish")
        return state


def _passed(till: Till) -> Callable[..., Any]:
    def passes(given: Any, *_: Any) -> Any:
        till.pay()
        return given

    return passes


def _rows(till: Till) -> Callable[..., Any]:
    def rows(start: int) -> Iterator[dict[str, int]]:
        till.pay()
        yield {"n": 1, "at": 0}

    return rows


def _group(till: Till) -> Any:
    @sabot.aggregate("int64")
    def size(numbers: pa.Array) -> int:
        till.pay()
        return len(numbers)

    return size


def _found(till: Till) -> Callable[..., Any]:
    async def found(key: Any) -> dict[str, int]:
        till.pay()
        return {"m": 1}

    return found


def _async_passed(till: Till) -> Callable[..., Any]:
    async def passes(row: dict[str, Any]) -> dict[str, Any]:
        till.pay()
        return row

    return passes


def _fired(till: Till) -> dict[str, Any]:
    def sets(row: dict[str, Any], ctx: Any) -> None:
        ctx.timers.event(row["at"] + 1)

    def on_timer(timer: Any, ctx: Any) -> None:
        till.pay()

    return {"function": sets, "on_timer": on_timer}


WINDOW = tumbling("1s")
FUNCTIONS: Mapping[str, Callable[[Stream, Till], Stream]] = {
    "map_batches": lambda rows, till: rows.map_batches(_passed(till), schema=TIMED),
    "flat_map": lambda rows, till: rows.flat_map(lambda row: [_passed(till)(row)], schema=TIMED),
    "map_async": lambda rows, till: rows.map_async(_async_passed(till), schema=TIMED),
    "lookup": lambda rows, till: rows.lookup(_found(till), on="n", schema={"m": "int64"}),
    "process": lambda rows, till: rows.key_by("n").process(_passed(till), schema=TIMED),
    "process(on_timer)": lambda rows, till: rows.key_by("n").process(**_fired(till), schema=TIMED),
    "connect": lambda rows, till: (
        rows.key_by("n").connect(rows.key_by("n")).process(lambda row, ctx: None, right=_passed(till), schema=TIMED)
    ),
    "reduce": lambda rows, till: rows.with_columns(n=sabot.lit(1)).key_by("n").reduce(_passed(till)),
    "apply": lambda rows, till: rows.window(WINDOW).apply(_passed(till), schema=TIMED),
    "aggregate": lambda rows, till: rows.key_by("n").window(WINDOW).aggregate(m=_group(till)("n")),
    "aggregate_with": lambda rows, till: (
        rows.key_by("n").window(WINDOW).aggregate(m=sabot.aggregate_with(Sum(till), "n"))
    ),
}
TIMED = pa.schema({"n": pa.int64(), "at": pa.int64()})


@pytest.mark.parametrize("name", [*FUNCTIONS, "source", "SQL"])
async def test_no_function_of_a_stream_calls_a_tool_that_is_denied(name: str, tmp_path: Path) -> None:
    till, given = Till(), tmp_path / "rows.ndjson"
    given.write_text("".join(f'{{"n": {number}, "at": {number * 400}}}\n' for number in range(9)))
    app = App("desk", state="memory", policy=PolicyEngine([ToolPolicy(["refund"], denied=True)]))
    if name == "source":
        stream = app.stream(app.source(schema=TIMED)(_rows(till)))
    else:
        stream = app.stream(files(str(given)), schema=TIMED, time="at")
        stream = stream if name == "SQL" else FUNCTIONS[name](stream, till)
    if name == "SQL":

        def doubled(number: int) -> int:
            till.pay()
            return number * 2

        app.register("doubled", doubled)
        stream = app.sql("SELECT doubled(n) AS m FROM stream", stream=stream)
    stream.to(ListSink("out"))
    till.on = True
    await app.run()
    assert (till.tried > 0, till.made) == (True, [])


def test_a_clock_that_calls_a_tool_is_told_what_to_do() -> None:
    till = Till()
    till.on = True
    clock = judged_clock(of(SystemClock, till))
    with pytest.raises(UserError, match=r"refund was not called: the clock OwnSystemClock(.|\n)*in an agent, a tool"):
        clock.time()
    assert till.made == []
    plain = ManualClock()
    assert judged_clock(plain) is plain
    assert judged_clock(clock) is clock


# Whose the calls of each object are. Functions of agents and streams, sinks and sources are walked in `test_rules_contract`.
OBJECTS: Mapping[str, str] = {
    "refused: it is asked for the time at any time": "App(clock) RuntimeKernel(clock) Ledger(clock)",
    "judged, as the call that it serves": "ExecutionEngine(cache) ExecutionEngine(clock) ExecutionEngine(fallback) "
    "ExecutionEngine(middleware) ExecutionEngine(prices) ExecutionEngine(provider) ExecutionEngine(sleep) Agent(instructions) "
    "Agent(tools) DurableContext.call(tool) DurableContext.step(func) Tool(converse) Tool(func) Tool(part_of) Tool(reconcile) "
    "McpServerPool(ask)",
    "judged, as the function of an agent or a stream": "App.agent(on_timer) App.llm_agent(prompt) App.llm_agent(reply) "
    "App.resource(function) DurableContext.aggregating_state(add) DurableContext.aggregating_state(create) "
    "DurableContext.aggregating_state(result) DurableContext.child(agent) DurableContext.reducing_state(reduce) "
    "RuntimeKernel(agent) Stream.flat_map(function) Stream.lookup(table) Stream.map_async(function) "
    "Stream.map_batches(function) Stream.map_llm(prompt) ConnectedStreams.process(on_timer) ConnectedStreams.process(right) "
    "KeyedStream.process(on_timer) KeyedStream.reduce(function) WindowedStream.apply(function)",
    "judged, as a Sink, a Source, a handler or a ledger writer": "App(events) App.agent(dead_letter) App.agent(sink) "
    "App.stream(dead_letter) App.stream(source) App.table(dead_letter) App.table(source) Ledger(writer) "
    "RuntimeKernel(event_bus) RuntimeKernel(ledger_writer) Stream.join(late) Stream.join_asof(late) "
    "Stream.lookup(dead_letter) Stream.map_async(dead_letter) Stream.map_llm(dead_letter) Stream.sorted(late) "
    "Stream.to(sink) Stream.window(late) KeyedStream.pattern(late) KeyedStream.window(late)",
    "judged, and where the program awaits the kernel the program's": "RuntimeKernel(action_store) RuntimeKernel(job_store) "
    "RuntimeKernel(journal) RuntimeKernel(policy) PolicyEngine(rules) Ledger(on_decision)",
    "a name, or an object that Sabot gives": "WindowedStream(late) App.agent_of(function) App.surround_jobs(events) DurableContext(clock) "
    "DurableContext(state_backend) Tool(copy_of)",
}
_CALLED = re.compile(
    r"\b(Callable|Clock|Provider|CompletionCache|Prices|Sink|Source|Journal|JobStore|ActionStore|LedgerWriter|EffectGuard|"
    r"PolicyRule|\w*EventBus|StateBackend|Tool)\b"
)
_WITH_METHODS = (App, DurableContext, ConnectedStreams)
_CALLERS = (
    App,
    RuntimeKernel,
    ExecutionEngine,
    Ledger,
    Agent,
    Tool,
    PolicyEngine,
    Stream,
    KeyedStream,
    WindowedStream,
    GroupedStream,
    ConnectedStreams,
    DurableContext,
    McpServerPool,
)


def _parameters() -> Iterator[str]:
    for kind in _CALLERS:
        methods = (
            inspect.getmembers(kind, inspect.isfunction)
            if kind.__name__.endswith("Stream") or kind in _WITH_METHODS
            else []
        )
        made = [(kind.__name__, kind.__init__), *((f"{kind.__name__}.{name}", each) for name, each in methods)]
        for name, function in made:
            if "._" in name:
                continue
            for each in inspect.signature(function).parameters.values():
                if _CALLED.search(str(each.annotation)):
                    yield f"{name}({each.name})"


def test_each_object_that_the_runtime_calls_is_in_the_table() -> None:
    known = [name for names in OBJECTS.values() for name in names.split()]
    assert len(known) == len({*known})
    assert {*_parameters()} == {*known}, "say in OBJECTS whose its calls are, and show it by a test"
    assert {*KERNELS} - {*known} == {"a clock for tests"}
