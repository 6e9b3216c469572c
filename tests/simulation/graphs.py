"""Random programs of streams and agents, the data they run over, and their answers by DuckDB.

A seed is a program: one to three sources with some rows each, steps without state, a union; in many seeds then joins, patterns,
process functions, calls, tables and what else `steps` has; then one or two outputs: the rows themselves, windows, distinct keys,
running aggregates, or one over the other, or changes; in some seeds an agent beside them, or durable agents (`jobs`). `Seed.run` lets
it live a few lives in the simulation, each with another parallelism, other batches and other barriers, and compares.
"""

import asyncio
import contextlib
import contextvars
import copy
import dataclasses
import functools
import json
import random
import sqlite3
import unittest.mock
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from cluster import Faults, Network, Rendezvous, WorkerProcess, supervised
from flows import (
    SCHEMA,
    Dice,
    Flow,
    Output,
    distinct,
    narrow,
    running,
    stateless,
    unified,
    windowed,
)
from jobs import SHARE, Jobs
from steps import append_step, called, changes_step, enriched, looked_up, slim, told

import sabot
from sabot import App, Batch, Sink, Source, col
from sabot._cython.flow.channel import Channel
from sabot.connectors.base import Bounded, Positions, Scans
from sabot.connectors.files import NdjsonSink, ParquetSink
from sabot.connectors.sql import SqlSink
from sabot.engine.operators.agents.kinds import agent_operator
from sabot.engine.workers import over_workers
from sabot.errors import TransientError
from sabot.testing import ListSink, ScriptedSource, Simulation, simulate
from sabot.testing.lives import temporary_directory
from sabot.testing.script import BARRIER, END

DISORDER_MS = 500
START_MS = 1_700_000_000_000
TABLES = 4  # more than there are


# -- rows -----------------------------------------------------------------------------------------------------------------


def make_rows(dice: Dice, number: int, most: int) -> pa.Table:
    """In the order of their arrival: up to DISORDER_MS after their time. number: of the table."""
    rows = dice.choice([rows for rows in (0, 1, 20, 40, 40, 60, 60, 120, 250) if rows <= most])
    keys = dice.choice([["a"], ["a", "b", "c", None], [f"k{n}" for n in range(20)]])
    step = dice.choice([20, 100, 2000])
    times = [ts * TABLES + number for ts in sorted(dice.sample(range(rows * step // TABLES + 1), rows))]
    arrivals = [ts for _, ts in sorted((ts + dice.randrange(DISORDER_MS), ts) for ts in times)]
    columns = {
        "n": list(range(rows)),
        "ts": [START_MS + ts for ts in arrivals],
        "k": dice.choices(keys, k=rows),
        "i": [dice.choice([None, 2**53 + 1, -1, 0, 1, 2, 3]) for _ in range(rows)],
        "amount": [None if dice.random() < 0.1 else dice.randrange(-6400, 64000) / 64 for _ in range(rows)],
        "s": dice.choices(["", "x", "abc", "Zz", None], k=rows),
    }
    return pa.table([pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names], schema=SCHEMA)


class Parts(Source, Bounded, Scans):
    """A table as partitions, in batches as the dice fall; now and then it has nothing for the moment, or asks for a checkpoint."""

    def __init__(self, name: str, table: pa.Table, partitions: int, dice: Dice, checkpoint: Callable[[], Any]) -> None:
        self.name = name
        self._columns = table.schema
        self._parts = {
            p: table.take(pa.array(range(p, table.num_rows, partitions), pa.int64())) for p in range(partitions)
        }
        self._most = dice.choice([1, 2, 5, 1000] if table.num_rows <= 60 else [1, 7, 30, 1000])
        self._pauses = dice.choice([0.0, 0.2, 0.6, 0.8])
        self._barriers = dice.choice([0.0, 0.05, 0.3, 0.3])
        self._dice = dice
        self._checkpoint = checkpoint
        self._at: dict[int, int] = {}

    def readers(self, count: int) -> "Sequence[Source]":
        shares = [dict(list(self._parts.items())[i::count]) for i in range(count)]
        readers = []
        for share in shares:
            if share:
                reader = Parts.__new__(Parts)
                reader.__dict__.update(self.__dict__, _parts=share, _dice=random.Random(self._dice.random()))
                readers.append(reader)
        return readers

    def scan(self, schema: pa.Schema | None, columns: Sequence[str] | None) -> bool:
        wanted = self._columns.names if columns is None else list(columns)
        self._parts = {p: part.select(wanted) for p, part in self._parts.items()}
        return True

    def infer_schema(self) -> pa.Schema:
        return self._columns

    @property
    def schema(self) -> pa.Schema:
        return next(iter(self._parts.values())).schema

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self._at = {p: (positions or {}).get((self.name, p), 0) for p in self._parts}

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if self._dice.random() < self._barriers:
            self._checkpoint()
        ready = [p for p, part in self._parts.items() if self._at[p] < part.num_rows]
        if not ready or self._dice.random() < self._pauses:
            return None
        p = self._dice.choice(ready)
        at = self._at[p]
        rows = min(self._dice.randint(1, self._most), max_rows, self._parts[p].num_rows - at)
        self._at[p] += rows
        data = self._parts[p].slice(at, rows).combine_chunks().to_batches()[0]
        return Batch(data, {(self.name, p): at + rows}, self.name)

    @property
    def exhausted(self) -> bool:
        return all(self._at[p] >= part.num_rows for p, part in self._parts.items())

    def positions(self) -> Positions:
        return {(self.name, p): at for p, at in self._at.items()}

    def lag(self) -> dict[tuple[str, int], int]:
        return {(self.name, p): part.num_rows - self._at[p] for p, part in self._parts.items()}

    def close(self) -> None:
        """Nothing to let go of."""


class Refusing(ListSink):
    """Exactly once it now and then fails for a moment: before the rows have arrived, or after that."""

    def __init__(self, name: str, share: float, dice: Dice) -> None:
        super().__init__(name)
        self.refuses = share > 0
        self._share = share
        self._dice = dice

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        if self._dice.random() < self._share:
            raise TransientError(f"{self.name} is busy")
        super().deliver(seq, batches)
        if self._dice.random() < self._share:
            raise TransientError(f"the answer of {self.name} is lost")


def with_room(make: Any, capacity_rows: int) -> Any:
    """With room for so many rows, whatever is asked for."""
    return lambda *given, **named: make(*given, **{**named, "capacity_rows": capacity_rows})


def asking(app: App) -> Callable[[], None]:
    """Asks the app of this app for a checkpoint, some times, wherever it is called."""
    job, barriers, here = app.agent_runtime.runner, iter(range(12)), contextvars.copy_context()

    def checkpoint() -> None:
        if job.started and next(barriers, None) is not None:
            here.run(job.coordinator.trigger)

    return checkpoint


# -- programs -------------------------------------------------------------------------------------------------------------


def make_output(flow: Flow, dice: Dice) -> Output:
    """An end of a flow, with a step or two before it."""
    once = dice.random() < 0.8
    kinds = ["rows", "distinct"]
    if flow.time is not None and not {"window_start", "window_end"} & set(flow.columns):
        kinds += ["window"] * 3 + ["window, running", "window, distinct"]
    if flow.floats:
        kinds.append("running")
    kind = dice.choice(kinds)
    keys = (dice.choice(flow.keys),) if dice.random() < 0.75 else flow.keys[:2]
    if kind == "rows":
        return Output(flow, exactly_once=once)
    if kind == "distinct":
        return Output(distinct(flow, keys), exactly_once=once)
    if kind == "running":
        return Output(running(flow, keys), keys, "running", exactly_once=once)
    windows = windowed(flow, keys, dice)
    if dice.random() < 0.3:
        rows = next(name for name in windows.columns if name.startswith("rows"))
        windows = windows.then(lambda s: s.filter(col(rows) > 1), f"select * from {{rows}} where {rows} > 1")
    if kind == "window, running" and windows.floats:
        return Output(running(windows, keys[:1]), keys[:1], "running", exactly_once=once)
    if kind == "window, distinct":
        return Output(distinct(windows, keys[:1]), exactly_once=once)
    return Output(windows, exactly_once=once)


def make_changes_output(flow: Flow, dice: Dice) -> Output:
    """An end of changes."""
    kind = dice.choice(["changelog", "materialize", "upsert", "upsert"])
    if kind == "materialize":
        rows = flow.then(lambda s: s.materialize(), "select * from {rows}", changes=False, time=None)
        return make_output(rows, dice) if dice.random() < 0.3 else Output(rows)
    if kind == "changelog" or flow.unique is None:
        return Output(flow.then(lambda s: s.changelog(), "select * from {rows}"), kind="changelog")
    keys = flow.unique
    there = functools.reduce(lambda a, b: a & b, [col(key).is_not_null() for key in keys])
    words = " and ".join(f"{key} is not null" for key in keys)
    flow = flow.then(lambda s: s.filter(there).upsert(*keys), f"select * from {{rows}} where {words}")
    return Output(flow, keys, "upsert")


def make_program(flows: list[Flow], plain: list[Flow], dice: Dice) -> Output:
    """One to five of the steps of `steps`, and an end. plain: flows without event time."""
    flow = unified(flows) if dice.random() < 0.3 else dice.choice(flows)
    if dice.random() < 0.25 and set(flow.columns) <= set(SCHEMA.names):
        flow = called(flow, dice)
    elif (drawn := dice.random()) < 0.15:
        flow = looked_up(flow, dice)
    elif drawn < 0.25:
        flow = told(flow, dice)
    reference = dice.random() < 0.15
    if reference:
        flow = enriched(flow, slim(dice.choice(plain), dice), dice)
    if not flow.changes and dice.random() < 0.6 and flow.apart:
        flow = stateless(append_step(flow, dice.choice(flows), dice), dice)
    if flow.changes or dice.random() < 0.6:
        for _ in range(dice.choice([1, 1, 2, 3])):
            flow = stateless(changes_step(flow, flows, dice), dice)
    output = make_changes_output(flow, dice) if flow.changes else make_output(flow, dice)
    return dataclasses.replace(output, reference=reference)


# -- a seed ---------------------------------------------------------------------------------------------------------------


@dataclass
class Seed:
    """One program, its rows, and the world outside it."""

    number: int
    tables: list[pa.Table] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    sinks: list[ListSink] = field(default_factory=list)
    lives: int = 0
    workers: int = 0  # several: its streams run in so many processes (`cluster`), and there are no agents
    is_real: bool = False  # real processes: the outputs are files and databases

    def __post_init__(self) -> None:
        dice = random.Random(f"program {self.number}")
        self.is_stateful = dice.random() < 0.45  # has steps of `steps`
        most = 60 if self.is_stateful else 250
        self.tables = [make_rows(dice, number, most) for number in range(dice.choice([1, 1, 2, 3]))]
        self.partitions = [dice.randint(1, 3) for _ in self.tables]
        flows = [stateless(self.rows_of(at), dice) for at in range(len(self.tables))]
        if len({flow.columns for flow in flows}) > 1:  # a union needs the same columns
            flows = [narrow(flow, SCHEMA.names) for flow in flows]
        if self.is_stateful:
            plain = [stateless(self.rows_of(at, is_plain=True), dice) for at in range(len(self.tables))]
            self.outputs = [make_program(flows, plain, dice) for _ in range(dice.choice([1, 1, 1, 2]))]
        else:
            flow = stateless(unified(flows), dice)
            self.outputs = [make_output(flow, dice) for _ in range(dice.choice([1, 1, 2]))]
        self.outputs = [dataclasses.replace(output, place=place_of(output, dice)) for output in self.outputs]
        routes = random.Random(
            f"routes {self.number}"
        )  # some sources by way of agents, to which they go without a topic
        kinds = ["", "", "records", "columns", "two agents"]
        self.routes = [routes.choice(kinds) for _ in self.tables]
        if any(output.reference for output in self.outputs):  # an agent does not wait for it
            self.routes = [""] * len(self.tables)
        self.state = dice.choice(["memory"] * 9 + ["directory"])
        self.crashes, self.stops = dice.randrange(4), dice.choice([0, 0, 1])
        keys = dice.choice([["a", "b", "c"], ["a", "b", "bad"]])
        self.values = [dice.choice(keys) for _ in range(dice.choice([0, 0, 10, 60]))]  # of the agent
        self.copies = dice.choice([1, 1, 2])  # that another agent makes of each before it
        self.script = [
            what for value in self.values for what in ({"k": value}, BARRIER)[: 2 if dice.random() < 0.03 else 1]
        ]
        self.script.append(END)
        self.agent_once = dice.random() < 0.8
        self.faults = dice.choice([0, 0, 0, 1, 4])
        self.limits = {
            "sabot.engine.runtime.tasks.edges.Channel": with_room(Channel, dice.choice([1, 20, 65_536])),
            "sabot.engine.runtime.agents.source.Channel": with_room(Channel, room := dice.choice([1, 65_536])),
            "sabot.engine.runtime.tasks.writing.Channel": with_room(Channel, room),
            "sabot.engine.runtime.agents.output.Channel": with_room(Channel, room),
            "sabot.engine.runtime.agents.local_agents.agent_operator": with_room(
                agent_operator, dice.choice([2, 16_384])
            ),
            "sabot.engine.delivery.parts.PART_BYTES": dice.choice([100, 2000, 64 << 20]),
            "sabot.engine.delivery.tracks.FULL_EPOCHS": dice.choice([2, 4, 16]),
        }
        refusals = dice.choice([0.0, 0.0, 0.05, 0.2])
        self.sinks = [Refusing(f"out{at}", refusals, random.Random(dice.random())) for at in range(len(self.outputs))]
        self.counts = Refusing("counts", refusals, random.Random(dice.random()))
        self.letters = Refusing("letters", refusals, random.Random(dice.random()))
        self.jobs: Jobs | None = None
        if random.Random(f"has apps {self.number}").random() < SHARE:
            self.jobs = Jobs(self.number, lambda name: Refusing(name, refusals, random.Random(f"{name} {self.number}")))
            self.limits["sabot.jobs.timers._LOOK_SECONDS"] = self.jobs.looks_s
        self.worker_faults = Faults(random.Random(f"cluster {self.number}").choice([0, 1, 2, 4]))
        if self.workers > 1:
            self.values, self.script, self.routes, self.jobs = [], [END], [""] * len(self.tables), None
        if self.is_real:
            self.outputs = [
                dataclasses.replace(each, exactly_once=True, place="sqlite" if each.kind == "upsert" else "ndjson")
                for each in self.outputs
            ]

    def rows_of(self, at: int, *, is_plain: bool = False) -> Flow:
        """The rows of a table, as they come; is_plain: without event time, by another source."""
        stream = at + len(self.tables) * is_plain
        return Flow(
            lambda given: given[stream],
            f"select * from t{at}",
            tuple(SCHEMA.names),
            time=None if is_plain else "ts",
            apart=not is_plain,
            ordered=self.partitions[at] == 1,
            unique=("n",),
        )

    def build(self, directory: Path) -> App:
        """The app of the next life."""
        self.lives += 1
        if self.workers < 2:
            return self.made(directory)
        dice = random.Random(f"cluster of life {self.lives} of {self.number}")
        network = Network(dice, self.worker_faults)
        app = self.made(directory)
        ask = asking(app)

        def launch(number: int) -> WorkerProcess:
            return WorkerProcess(network, number, lambda: self.made(directory, ask).spec)

        app.spec.workers = over_workers(app.spec, Rendezvous(network, launch).begin, self.workers)
        app.run = supervised(app.run, self.worker_faults)  # type: ignore[assignment, method-assign]
        return app

    def made(self, directory: Path, ask: Callable[[], None] | None = None) -> App:
        """An app of this life. ask: it is that of a worker, and its sources ask the coordinator so for a checkpoint."""
        dice = random.Random(f"life {self.lives} of {self.number}")
        intervals = [0.2, 1, 60] if self.counts.refuses or self.is_stateful else [0.01, 0.1, 60]
        if self.jobs is not None:  # which may take minutes of virtual time
            intervals = [2, 10, 60]
        app = App(
            "graph",
            journal=None if self.jobs is None else directory / "journal",
            state="memory" if self.state == "memory" else str(directory / "state"),
            checkpoint_dir=directory / "checkpoints",
            checkpoint_interval=dice.choice(intervals),
            parallelism=dice.randint(1, 3 if self.is_stateful else 4),
            memory_budget=dice.choice(["64KB", "256MB"]),
            restart="fixed(1000, 100ms)",
            checkpoint_timeout="2h",
        )
        checkpoint = ask or asking(app)
        streams = [
            app.stream(
                Parts(f"rows{at}", table, self.partitions[at], dice, checkpoint), time="ts", lateness=DISORDER_MS / 1000
            )
            for at, table in enumerate(self.tables)
        ]
        for at, kind in enumerate(self.routes):
            if kind:
                streams[at] = through_agents(app, streams[at], f"pass{at}", kind, dice)
        if self.is_stateful:
            streams += [
                app.stream(Parts(f"plain{at}", table, self.partitions[at], dice, checkpoint))
                for at, table in enumerate(self.tables)
            ]
        for output, kept in zip(self.outputs, self.sinks, strict=True):
            sink = kept if output.place == "list" else sink_at(output.place, directory / kept.name)
            if ask is not None and output.place == "list" and output.exactly_once:
                sink = copy.copy(kept)  # the coordinator has its own
            output.flow.make(streams).to(sink, delivery="exactly_once" if output.exactly_once else "at_least_once")
        if self.values:
            self.add_agent(app, dice)
        if self.jobs is not None:
            self.jobs.add(app, directory / "journal", dice)
        return app

    def add_agent(self, app: App, dice: Dice) -> None:
        """Counts its values by key, with waits between what it reads and what it writes; bad ones are dead letters. Each call sets a
        timer that is due at once, and these are counted below zero. It may have another before it, which copies the values.
        """
        waits = dice.choice([0.0, 0.02])

        async def perhaps_wait() -> None:
            if dice.random() < 0.3:
                await asyncio.sleep(waits)  # of virtual time

        async def copy(ctx: sabot.AgentContext) -> AsyncIterator[Any]:
            for _ in range(self.copies):
                await perhaps_wait()
                yield ctx.message

        async def count(ctx: sabot.AgentContext) -> dict[str, Any]:
            seen = (await ctx.state().get("seen") or 0) + 1
            await perhaps_wait()
            await ctx.state().put("seen", seen)
            ctx.timers.processing(seen, "due")
            if ctx.message["k"] == "bad":
                raise ValueError("bad")
            return {"k": ctx.message["k"], "seen": seen}

        async def fire(timer: sabot.Timer, ctx: sabot.AgentContext) -> dict[str, Any]:
            fired = (await ctx.state().get("fired") or 0) + 1
            await perhaps_wait()
            await ctx.state().put("fired", fired)
            return {"k": ctx.message["k"], "seen": -fired}

        source = ScriptedSource(self.script, name="values")
        app.agent(
            None if self.copies > 1 else source,
            key="k",
            sink=self.counts,
            concurrency=dice.choice([1, 3]),
            delivery="exactly_once" if self.agent_once else "at_least_once",
            on_error="skip",
            dead_letter=self.letters,
            on_timer=fire,
        )(count)
        if self.copies > 1:
            app.agent(source, key="k", sink=count, concurrency=dice.choice([1, 2]), dead_letter=self.letters)(copy)

    def run(self) -> Simulation:
        """Raises AssertionError where the outputs are not DuckDB's answer. Once only."""
        try:
            with contextlib.ExitStack() as around:
                for name, limit in self.limits.items():
                    around.enter_context(unittest.mock.patch(name, limit))
                folder = around.enter_context(temporary_directory())
                simulation = simulate(
                    self.build,
                    self.number,
                    directory=folder,
                    crashes=self.crashes,
                    stops=self.stops,
                    faults=self.faults,
                    most_turns=2_000_000 * max(1, self.workers),
                )
                self.check(folder)
        except BaseException as error:
            error.add_note(f"seed {self.number}: {self}")
            raise
        return simulation

    # -- the answer ---------------------------------------------------------------------------------------------------

    def check(self, folder: Path) -> None:
        connection = database()
        for at, table in enumerate(self.tables):
            connection.register(f"t{at}", table)
        for output, sink in zip(self.outputs, self.sinks, strict=True):
            for computed in output.flow.computed:
                rows = computed.function(connection.sql(computed.query).to_arrow_table().to_pylist())
                connection.register(computed.name, pa.Table.from_pylist(rows, schema=computed.schema))
            query = f"select {', '.join(output.flow.columns)} from ({output.flow.sql})"
            if output.place != "list":
                rows = rows_at(output.place, folder / sink.name)
            else:
                rows = sink.current if output.kind == "upsert" and sink.rows else sink.rows
            compare(output, sink.name, rows, connection.execute(query).fetchall())
        values = Counter(self.values * self.copies)
        bad, letters = values.pop("bad", 0), [row["k"] for row in self.letters.rows]
        assert set(letters) <= {"bad"}
        assert len(letters) == bad or (len(letters) > bad > 0 and not self.agent_once), (
            f"{len(letters)} letters, not {bad}"
        )
        expected = Counter((key, seen) for key, count in values.items() for seen in range(-count, count + 1) if seen)
        found = Counter((row["k"], row["seen"]) for row in self.counts.rows)
        assert (found if self.agent_once else Counter(set(found))) == expected, (
            f"the agent's counts: {found - expected} {expected - found}"
        )
        if self.jobs is not None:
            self.jobs.check()

    def __str__(self) -> str:
        rows = [table.num_rows for table in self.tables]
        outputs = "; ".join(
            f"{o.kind}, {o.place if o.exactly_once else 'at least once'}: {o.flow.sql}" for o in self.outputs
        )
        outputs += f"; by way of agents: {self.routes}"
        outputs += "" if self.jobs is None else f"; {self.jobs}"
        world = f"{rows} rows in {self.partitions} partitions, {len(self.values)} values, state {self.state}"
        return f"{world}, {self.crashes} crashes, {self.stops} stops, {self.faults} faults: {outputs}"


def through_agents(app: App, stream: sabot.Stream, name: str, kind: str, dice: Dice) -> sabot.Stream:
    """The same rows, in the same order, as an agent gives them; or two, one behind the other. They may have their time late."""
    waits = dice.choice([0.0, 0.02])

    async def records(ctx: sabot.AgentContext) -> Any:
        if dice.random() < 0.3:
            await asyncio.sleep(waits)  # of virtual time
        return ctx.message

    async def columns(batch: pa.RecordBatch, ctx: sabot.AgentContext) -> pa.RecordBatch:
        if dice.random() < 0.3:
            await asyncio.sleep(waits)
        return batch

    for agent in [records, columns] if kind == "two agents" else [records if kind == "records" else columns]:
        app.agent(name=f"{name}.{agent.__name__}", batch=agent is columns)(agent)
        stream.to(agent)
        stream = app.stream(agent, schema=SCHEMA, time="ts", lateness="1h", idle="10d")
    return stream


@functools.cache
def database() -> duckdb.DuckDBPyConnection:
    """One for all seeds: to open one costs more than to ask it."""
    connection = duckdb.connect()
    connection.execute("set threads = 1")
    return connection


def place_of(output: Output, dice: Dice) -> str:
    """At least once a list; changes by key only where rows can be changed."""
    if not output.exactly_once:
        return "list"
    if output.kind == "upsert":
        return dice.choice(["list", "sqlite"])
    return dice.choice(["list"] * 6 + ["ndjson", "parquet", "sqlite"])


def sink_at(place: str, path: Path) -> Sink:
    if place == "sqlite":
        return SqlSink(f"sqlite:///{path}.db", "rows")
    return NdjsonSink(f"{path}.ndjson") if place == "ndjson" else ParquetSink(f"{path}.parquet")


def rows_at(place: str, path: Path) -> list[dict[str, Any]]:
    """What the world outside has; nothing, where no row came."""
    if place == "ndjson":
        whole = Path(f"{path}.ndjson")
        return [json.loads(line) for line in whole.read_text().splitlines()] if whole.exists() else []
    if place == "parquet":
        return pq.read_table(f"{path}.parquet").to_pylist()
    with contextlib.closing(sqlite3.connect(f"{path}.db")) as connection:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute("select * from rows")]
    times = ("window_start", "window_end", "match_start", "match_end")
    return [row | {name: datetime.fromisoformat(row[name]) for name in times if row.get(name)} for row in rows]


def compare(output: Output, name: str, rows: list[dict[str, Any]], answer: list[tuple[Any, ...]]) -> None:
    columns = output.flow.columns
    found = [tuple(plain(row[column]) for column in columns) for row in rows]
    expected = Counter(answer)
    if output.kind == "running":
        have = last_ones(output, name, found)
    elif output.kind == "changelog":
        have = applied(output, name, [row["op"] for row in rows], found)
    else:
        have = Counter(found) if output.exactly_once else Counter(set(found)) | (Counter(found) & expected)
    missing, more = expected - have, have - expected
    assert not missing | more, (
        f"{name} ({output.kind} in {output.place}) {columns}: {missing.total()} rows lack, {more.total()} are too many\n"
        f"  lacking  {list(missing)[:4]}\n  too many {list(more)[:4]}"
    )


def last_ones(output: Output, name: str, found: list[tuple[Any, ...]]) -> "Counter[tuple[Any, ...]]":
    last: dict[Any, tuple[Any, ...]] = {}
    key_columns, changes = len(output.keys), len(output.keys)
    for row in found:
        before = last.get(row[:key_columns])
        if before is None or row[changes] > before[changes]:
            last[row[:key_columns]] = row
        else:
            assert not output.exactly_once, f"{name}: {row} came after {before}"
    return Counter(last.values())


def applied(output: Output, name: str, ops: list[str], found: list[tuple[Any, ...]]) -> "Counter[tuple[Any, ...]]":
    """The table that a changelog makes; no row of it takes what is not there, and an update's two rows stand together."""
    there: Counter[tuple[Any, ...]] = Counter()
    keys = [output.flow.columns.index(key) for key in output.flow.unique or ()]
    before = ""
    for at, (op, row) in enumerate(zip(ops, found, strict=True)):
        there[row] += 1 if op in ("insert", "update_after") else -1
        assert there[row] >= 0, f"{name}: {op} of {row}, which is not there"
        assert (op == "update_after") == (before == "update_before"), f"{name}: {op} of {row} came after {before}"
        if op == "update_after":
            assert [row[key] for key in keys] == [found[at - 1][key] for key in keys], (
                f"{name}: {found[at - 1 : at + 1]}"
            )
        before = op
    assert before != "update_before", f"{name} ends in an update of which the second row lacks"
    return +there


def plain(value: Any) -> Any:
    """Times as ms."""
    return round(value.timestamp() * 1000) if hasattr(value, "timestamp") else value
