"""App: agents, broker, state and checkpoints under one name."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from inspect import isgeneratorfunction
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import pyarrow as pa

from sabot.api.agent import AgentSpec
from sabot.api.elsewhere import APPS, NamedElsewhere
from sabot.api.nodes.node import Node, walk
from sabot.api.nodes.read import Read, StreamEnd, Write
from sabot.api.notebook import drawing_or_none, page
from sabot.api.settings import Settings
from sabot.api.stream import Stream
from sabot.api.streams import HasStreams
from sabot.api.topics import HasTopics
from sabot.api.unrun import note_run, note_written
from sabot.app.agents import AgentDeclarations
from sabot.app.scripts import print_without_traceback
from sabot.base.arrays import python_value
from sabot.base.checks import Whole, check, is_number
from sabot.base.config import checked_name, checked_topic
from sabot.base.dataclass import dataclass
from sabot.base.lazy_imports import no_collections
from sabot.base.logs import name_program, set_up_logging
from sabot.base.options import check_names, option, takes, takes_id_and
from sabot.base.present_job import refuse_in_job
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.codecs.records import HeadersLike, checked_headers, encode_key, encode_payload
from sabot.connectors.memory import TableSink
from sabot.engine.runtime.agents.runtime import AgentRuntime
from sabot.engine.runtime.app_spec import AppSpec
from sabot.engine.runtime.life.host import loop_runs_here
from sabot.engine.runtime.life.signals import StopSignals
from sabot.engine.state import StateBackend
from sabot.errors import SabotError, UserError
from sabot.kafka.topics import RecordSender

if TYPE_CHECKING:
    from sabot.agents.accounts.budgets import Budget
    from sabot.agents.accounts.ledger import Ledger
    from sabot.agents.events.bus import EventBus
    from sabot.agents.policy.engine import PolicyEngine
    from sabot.engine.checkpoint import CheckpointStorage, Manifest
    from sabot.engine.operators.reading import StateView
    from sabot.engine.plan import Plan
    from sabot.engine.runtime.agents.kind import AgentKind
    from sabot.engine.runtime.watch.reports import Summary
    from sabot.llm.engine import ExecutionEngine
    from sabot.sql.session import Session
    from sabot.sql.templates import TemplateText

IMPORTING = ContextVar("IMPORTING", default=False)
"""True while a program is imported by code that will start its app."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AppSettings(Settings):
    """All settings of an app: those of `Settings`, and those that only the program can give, because their values are
    Python objects.
    """

    events: "EventBus | None" = option(None, "the EventBus that publishes what happens in the jobs of durable agents")
    policy: "PolicyEngine | None" = option(None, "the PolicyEngine that decides what agents may do")
    budgets: "Sequence[Budget] | Ledger | None" = option(
        None, "the limits on the use of each scope, or a Ledger; [] only records the use"
    )
    clock: Clock = option(SYSTEM_CLOCK, "the clock, for tests")


# The methods import the runtime only when they need it: many programs make an App only to plan it, or to read its state.
class App(AgentDeclarations, HasStreams, HasTopics, NamedElsewhere):
    """An application: `app = App("fraud", broker="kafka://localhost:19092", state="rocksdb:///var/lib/fraud")`.

    `id`: the name of the app; its agents are called `<id>.<name>`. docs/settings.md lists the other arguments, which `configure` and the
    command line may change. Raises UserError for a wrong value.
    """

    _elsewhere = APPS
    _of_engine = (
        "accounts agent_of begun_streams captured checkpoints clock collect declared ended explain explain_ends guards judge lifespan "
        "note_start plan policy progress schema spec sql_session surround_jobs write"
    )

    @takes_id_and(AppSettings)
    def __init__(self, id: str, broker: str = "memory://", **settings: Any) -> None:
        if id in ("", None):
            raise UserError("an App needs an id", hint='App("orders")')
        self.id = checked_name(id, "App id")
        check_names("App", AppSettings, settings)
        made = AppSettings(broker, **settings)
        self.spec = AppSpec(
            self.id,
            made,
            made.clock,
            kind=_durable_kind,
            guards=lambda: self.guards,
            accounts=lambda: self.accounts,
            listener=self.surround_jobs(made.events, made.policy, made.budgets),
            close=self._close_sender,
        )
        self.lifespan = self.spec.lifespan
        self.agent_runtime = AgentRuntime(self)
        self.begun_streams: list[Read] = []
        self._collected: set[Node] = set()  # the nodes that collect() has run; not their ids, which others may get
        self._sender: RecordSender | None = None
        self._sql: Session | None = None
        self._columns: WeakKeyDictionary[Node, pa.Schema] = WeakKeyDictionary()  # of steps that `schema` was asked for
        self._captured: list[StreamEnd] | None = None  # set while EXPLAIN binds a statement
        self._sender_lock = threading.Lock()
        self.configure(reprocess=made.reprocess)

    @takes(Settings)
    def configure(self, broker: str | None = None, **settings: Any) -> None:
        """Changes settings for the next start. None leaves a setting as it is. Raises UserError for a wrong value."""
        given = {name: value for name, value in {"broker": broker, **settings}.items() if value is not None}
        check_names("App.configure", Settings, given)
        self.spec.configure(**given)

    @property
    def settings(self) -> Settings:
        """The settings of the next start; `configure` changes them."""
        return self.spec.settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self.spec.settings = settings

    @property
    def clock(self) -> Clock:
        return self.spec.clock

    @property
    def broker(self) -> str:
        """The address of the broker."""
        return self.settings.broker

    @property
    def state_backend(self) -> StateBackend | None:
        """The state backend that the user has assigned, or None. It replaces the one that `state=` describes, and the
        app does not close it. Assign it before the start; an assignment while the app runs raises UserError.
        """
        return self.spec.state_backend

    @state_backend.setter
    def state_backend(self, backend: StateBackend | None) -> None:
        if self.agent_runtime.runner.running:
            raise UserError(f"app {self.id} runs already", hint="assign state_backend before the start")
        self.spec.state_backend = backend

    # -- streams ------------------------------------------------------------------------------------------------------

    def graph(self) -> str:
        """Returns the plan of all streams and agents of this app, as a Mermaid graph."""
        from sabot.engine.plan import mermaid

        return mermaid(self.plan())

    def draw(self, node: Node | None = None) -> str:
        """Returns the plan of all streams and agents of this app as a drawing in SVG. Nothing runs.

        `node`: the last step that is drawn; None draws all. Streams give it.
        """
        from sabot.engine.plan.drawing.render import svg

        return svg(self.plan() if node is None else self._plan_of(node), title=self.id)

    def _repr_svg_(self) -> str | None:
        return drawing_or_none(self.draw)

    def _repr_html_(self) -> str:
        """Returns the name and the plan, for notebooks. Nothing runs."""
        return page(f"App {self.id}", None, self.draw, lambda: self.plan().text())

    def plan(self) -> "Plan":
        """Returns the plan of all streams and agents, as far as it is known without their data."""
        return self.spec.plan()

    def write(self, end: StreamEnd) -> None:
        """Adds the last step of a stream, which writes its rows to a topic, a sink or an agent; called by
        `Stream.to`.
        """
        if self._captured is not None:
            self._captured.append(end)
            return
        self.agent_runtime.add_stream(end)
        if isinstance(end, Write):
            note_written(self.id, end.sink if isinstance(end.sink, str) else end.sink.name)

    def agent_of(self, function: Callable[..., Any] | str) -> AgentSpec:
        """Returns the declaration of the agent that has this function or this name, for streams that write to the
        agent or read its results. Raises UserError if the app has no such agent.
        """
        for spec in self.spec.agent_specs:
            if spec.func is function or spec.agent_id == f"{self.id}.{function}":
                return spec
        name = function if isinstance(function, str) else getattr(function, "__name__", repr(function))
        hint = f"put @app.agent() above {name}, before the stream goes there"
        if isgeneratorfunction(function):
            hint += "; or @app.source(schema={…}), if it yields the rows of a stream"
        raise UserError(f"{name} is no agent of app {self.id}", hint=hint)

    def collect(self, node: Node, limit: int | None, seconds: float | None) -> pa.Table:
        """Runs the steps up to this node; called by `Stream.collect`."""
        runner = self.agent_runtime.runner  # first, since it imports the runtime without collections of garbage
        from sabot.engine.runtime.life.collecting import collect_rows

        self._collected.update(walk([node]))
        return collect_rows(runner.app, node, limit, seconds)

    def ended(self, node: Node) -> Node:
        """Returns the same steps, in which each topic without an end of its own ends behind its present records."""
        from sabot.engine.plan.optimise import ending

        (end,) = ending([Write(node, TableSink("out"), None)], "now")
        assert isinstance(end, Write)
        return end.input

    def explain(self, node: Node) -> str:
        plan = self._plan_of(node)
        plan.check()
        return plan.text()

    def schema(self, node: Node) -> pa.Schema:
        """Returns the columns of this node, without those of the engine; called by `Stream.schema`. Raises UserError
        if they are known only from the first records.
        """
        from sabot.engine.operators.base import without_marks
        from sabot.engine.plan import Reading, behind_known, with_schemas

        if isinstance(node, Read):  # SQL asks each table for its columns, for which no plan is needed
            (end,) = with_schemas([Write(node, TableSink("out"), None)], {id(node): node.found_schema()})
            (read,) = end.inputs
            assert isinstance(read, Read)
            known = Reading(read, None, timed=False).rows
        else:
            plan = self._plan_of(behind_known(node, self._columns))
            known = plan.schemas().get(next(stage.id for stage in reversed(plan.stages) if stage.agent is None))
        if known is None:
            raise UserError(
                "schema: the columns are not known before the first records have come",
                hint="give app.stream(…, schema=)",
            )
        found = without_marks(known)
        if not isinstance(node, Read):
            self._columns[node] = found
        return found

    @contextmanager
    def captured(self) -> Iterator[list[StreamEnd]]:
        found: list[StreamEnd] = []
        self._captured = found
        try:
            yield found
        finally:
            self._captured = None

    def explain_ends(self, ends: Sequence[StreamEnd], form: str, checkpoint: str | None) -> str:
        """Returns the plan of these ends of streams; called by EXPLAIN of SQL. `form`: see `runtime.life.explaining`.

        `checkpoint`: the place of checkpoints, or None. If it is given, returns what a start of the whole app with these
        ends would do with each state.
        """
        from sabot.engine.runtime.life.explaining import explain_against, explain_ends
        from sabot.kafka import open_sink

        agents = {id: agent.spec for id, agent in self.spec.agents.items()}
        if checkpoint is None:
            return explain_ends(ends, agents, self.settings.parallelism, form)
        every = [*self.spec.ends, *ends]
        return explain_against(
            self.id,
            every,
            agents,
            self.settings.parallelism,
            lambda topic: open_sink(topic, self.broker, self.settings.kafka),
            checkpoint,
        )

    def sql(self, text: "str | TemplateText", /, **values: Any) -> Stream | pa.Table | str | None:
        """Runs SQL statements, in the language of Flink SQL, and returns the result of the last one: the stream of a
        query, a table for SHOW, DESCRIBE and SET, a text for EXPLAIN and SHOW CREATE, or None.

        `values`: streams of this app, which the text uses as tables of these names, and the values of its parameters
        (`:least`). A template string (`t"… WHERE delay > {least}"`, Python 3.14) gives both in its own text. CREATE TABLE
        and CREATE VIEW stay known to later calls; INSERT INTO writes when the app runs.

        ```python
        from sabot import App, files

        with open("flights.csv", "w") as file:
            file.write("carrier,delay\nUA,20\nUA,40\nAA,5\n")

        app = App("flights")
        flights = app.stream(files("flights.csv"))
        late = app.sql("SELECT carrier, COUNT(*) AS n FROM flights WHERE delay > :least GROUP BY carrier", flights=flights, least=15)
        late.print()
        ```

        ```text
        carrier  n
        UA       2
        1 row
        ```

        Raises SqlError, a UserError, with the position of each error in the text.
        """
        return self.sql_session.run(text, values)

    @property
    def sql_session(self) -> "Session":
        """The tables and views that SQL statements of this app have declared."""
        if self._sql is None:
            with no_collections():
                from sabot.engine.operators.expressions.compiled import compile_expr
                from sabot.sql.session import Session
            self._sql = Session(self, compile_expr, _engine_of_vendor)
        return self._sql

    def register(self, name: str, thing: Any, **options: Any) -> None:
        """Gives SQL texts of this app a table, a function, an agent or a model of this name.

        - A stream is a table.
        - A function is called in expressions, with the values of one row; None stands for NULL. The type of its
          results is its annotation, or `returns="int64"`. With `batch=True` it gets pa.Arrays and returns one.
        - An `async def` function is called as in `lookup`, whose options it takes (retries, timeout, concurrency, …).
          Its result is NULL if an argument is NULL.
        - An agent of the app is the target of INSERT INTO.
        - An ExecutionEngine is the model of ML_PREDICT, with the options of `map_llm` (output, instructions, …).

        ```python
        from sabot import App, files

        def initials(name: str) -> str:
            return "".join(word[0] for word in name.split())

        with open("people.csv", "w") as file:
            file.write("name\\nAda Lovelace\\n")

        app = App("people")
        app.register("initials", initials)
        app.register("people", app.stream(files("people.csv")))
        app.sql("SELECT initials(name) AS short FROM people").print()
        ```

        ```text
        short
        AL
        1 row
        ```

        Raises UserError for a name that SQL has already, and for a function whose results have no known type.
        """
        self.sql_session.register(name, thing, options)

    def _plan_of(self, node: Node) -> "Plan":
        """Returns the plan of the steps up to this node. If they read results of agents, the plan includes these
        agents. It has no sink of the user's.
        """
        from sabot.engine.plan import leading_to, make_plan, with_schemas

        spec = self.spec
        ends, agents = leading_to(Write(node, TableSink("out"), None), spec.agent_specs, spec.ends)
        known = {id(read): read.found_schema() for read in walk(ends) if isinstance(read, Read)}
        return make_plan(with_schemas(ends, known), agents=agents, parallelism=self.settings.parallelism)

    def _warn_of_loose_ends(self) -> None:
        """Logs a warning for each stream that no sink and no `collect` reads, most often because of a forgotten
        `.to`, and for a `memory_budget` in an app whose state is in memory, where it has no effect.
        """
        budget = self.settings.memory_budget
        if budget is not None and self.settings.state_dir is None:
            _log.warning("memory_budget=%s bounds nothing, because state is in memory: give state=DIR", budget)
        read = self._collected.union(walk(self.spec.ends))
        for node in self.begun_streams:
            if node not in read and self.spec.ends:
                _log.warning("the rows of stream %s are written nowhere: end it with .to(…)", node.name)

    # -- state, read from outside -----------------------------------------------------------------------------------------

    def state(self, name: str, *, key: Any = None, as_of: int | None = None) -> "StateView":
        """Returns a view of the state that an operator of a stream (by its id, see `explain()`, or its `.named(...)`)
        or an agent keeps; `.to_arrow()` reads it.

        `key`: only the state of this key. `as_of`: the state at this checkpoint. By default the view is of the newest
        checkpoint; from a thread other than that of the running app's event loop a checkpoint is taken first.
        """
        from sabot.engine.operators.reading import StateView, state_of

        return StateView(lambda: state_of(self._manifest(as_of), name, key))

    def _manifest(self, checkpoint_id: int | None) -> "Manifest":
        storage = self.checkpoints()
        if storage is None:
            raise UserError(
                f"app {self.id} writes no checkpoints, but its state can only be read from a checkpoint",
                hint="App(..., state=DIRECTORY), or checkpoint_dir=",
            )
        if checkpoint_id is None:
            self.agent_runtime.runner.checkpoint_from_outside()
        found = storage.latest() if checkpoint_id is None else storage.read(checkpoint_id)
        if found is None:
            raise UserError(f"app {self.id} has no checkpoint in {storage.directory}", hint="run it first")
        return found

    # -- start and stop ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Restores the last checkpoint and runs. Returns when all inputs have ended, or after Ctrl-C. Raises
        AgentFailed if agents stopped by their own errors, and UserError while a program is imported to be started by
        `sabot run`.

        The first SIGINT (Ctrl-C), SIGTERM or SIGHUP takes a last checkpoint and stops the app, unless the program
        handles the signal itself. The second one has Python's own effect.
        """
        if IMPORTING.get():
            raise UserError(
                f"app.run() of app {self.id} was called while its program is imported, so the app would run twice",
                hint="`sabot run` starts it: put app.main() under if __name__ == '__main__'",
            )
        self._warn_of_loose_ends()
        self.note_start()
        try:
            await self.agent_runtime.run(partial(StopSignals.asked, self.request_stop, self.settings.stop_timeout_s))
        finally:
            await self._close_sender()

    def main(self, argv: Sequence[str] | None = None) -> None:
        """`asyncio.run(app.run())`, for scripts, with log lines as `sabot run` has. A second SIGINT, SIGTERM or SIGHUP ends the process.
        Raises what `run` raises; a SabotError that the script does not catch is printed as one line, and ends it with code 1.

        `argv`: the options of the script, `sys.argv[1:]`: those of `sabot run` that set the app, and `--loglevel`,
        `--log-format` and `--help`. None takes no options. A wrong option ends the script with code 2.
        """
        level, form = "info", "text"
        if argv is not None:
            from sabot.api.script_options import hint_with_program, script_parser, settings_of

            note_run(self.id)  # --help and a wrong option end the script here
            parser = script_parser()
            settings, level, form = settings_of(parser, argv)
            try:
                self.configure(**settings)
            except UserError as error:
                parser.error(str(error))
        with StopSignals.held():
            if loop_runs_here():
                raise UserError(
                    f"app {self.id}: main() starts an event loop, but one runs here already",
                    hint="await app.run(), as in a notebook",
                )
            set_up_logging(level, form)
            name_program(self.id, self.settings.version)
            try:
                asyncio.run(self.run())
            except SabotError as error:
                if argv is not None:
                    error.hint = hint_with_program(error.hint, f"python {parser.prog}")
                if level != "debug" or form == "json":
                    print_without_traceback(error, with_traceback=level == "debug")
                raise
            except Exception as error:
                if form == "json":  # a traceback would be many lines that are no JSON
                    print_without_traceback(error, with_traceback=True)
                raise

    async def start(self) -> None:
        """Starts agents and streams and returns; `await app.stop()` ends them.

        If a stream or a sink fails later, or the engine has a bug, then the error is logged and is shown in
        `statistics()["failure"]`. No more records are read. The next `send`, checkpoint, `start` and `stop` raise the
        error. The error of a failed agent is shown in `statistics()` too if streams of the app write to agents or
        read their results; these streams then process nothing more until `stop`, which takes a last checkpoint.
        `restart=` applies to `run()` only: after `start`, call `stop()` and `start()` to resume from the last
        checkpoint.
        """
        self._warn_of_loose_ends()
        self.note_start()
        await self.agent_runtime.start_all()

    async def stop(self, drain: bool = False) -> None:
        """Takes a last checkpoint, and stops all agents and streams. `drain`: True processes the rows that were
        already read first. If the run had failed before, this raises its error and takes no checkpoint.
        """
        try:
            await self.agent_runtime.stop_all(drain=drain)
        finally:
            await self._close_sender()

    def request_stop(self) -> None:
        """Makes `run()` stop and return; from any thread or signal handler."""
        self.agent_runtime.runner.request_stop()

    # -- sending records --------------------------------------------------------------------------------------------------

    async def send(
        self,
        topic: str,
        value: Any,
        *,
        key: Any = None,
        headers: HeadersLike = (),
        timestamp: int | None = None,
        partition: int | None = None,
    ) -> int:
        """Writes one record, and returns its offset once the broker has stored it. May be called on any loop or
        thread, even while the app does not run.

        `value`: bytes are written as they are, anything else as JSON; None with a key is a tombstone, a null payload.
        `key`: bytes or str. `headers`: as in `Message`. `timestamp`: ms UTC, by default now. If the app has failed
        since `start()`, `send` raises that error. In the function of a durable agent it raises UserError.
        """
        refuse_in_job(f"sends a record to {topic!r}", "await ctx.step(app.send, topic, value) sends it once")
        checked_topic(topic, "send: topic")
        if timestamp is not None and not is_number(python_value(timestamp)):
            raise UserError(f"send({topic!r}): timestamp={timestamp!r}", hint="ms since 1970 UTC, a number")
        at = None if timestamp is None else int(timestamp)
        if partition is not None:
            partition = check(f"send({topic!r}): partition", python_value(partition), Whole())
        self.agent_runtime.runner.raise_failure()
        payload, pairs = encode_payload(value, key), checked_headers(headers, f"send({topic!r})")
        with self._sender_lock:
            if self._sender is None:
                self._sender = RecordSender(self.broker, self.settings.kafka)
            sender = self._sender
        return await sender.send(topic, payload, encode_key(key), pairs, at, partition)

    async def _close_sender(self) -> None:
        with self._sender_lock:
            sender, self._sender = self._sender, None
        if sender is not None:
            await asyncio.to_thread(sender.close)

    # -- what has happened ------------------------------------------------------------------------------------------------

    def checkpoints(self) -> "CheckpointStorage | None":
        """Returns the storage for checkpoints, not locked, or None if there are none."""
        return self.spec.checkpoints()

    def progress(self) -> tuple[float, float] | None:
        """Returns the bytes read and the total bytes of the files that streams read, or None if there are none, or
        nothing runs. From any thread.
        """
        return self.agent_runtime.runner.watch.progress()

    @property
    def summary(self) -> "Summary":
        """The counts of this run, or of the last one: rows in and out, late rows, dead letters, seconds. `print(app.summary)` shows
        them as text. From any thread.
        """
        return self.agent_runtime.runner.watch.summary

    def statistics(self) -> dict[str, Any]:
        """Returns figures of this app by part: `app`, `failure`, `agents`, `checkpoints`, `state`, `sources`, `operators`, `sinks`,
        `agent_tasks`, `jobs`, `streams`, `delivery`, `workers`, `engines`, `gate`, `broker`, `metrics` and `process`. From any thread.

        docs/metrics.md explains them. Entries about running parts are empty while the app does not run.
        """
        return {"app": self.id, **self.agent_runtime.runner.watch.report()}


def _durable_kind(spec: AppSpec) -> "AgentKind":
    from sabot.agents.durable.kind import DurableKind

    return DurableKind(spec)


def _engine_of_vendor(*how: Any, **options: Any) -> "ExecutionEngine":
    from sabot.llm.vendors import engine_of

    return engine_of(*how, **options)
