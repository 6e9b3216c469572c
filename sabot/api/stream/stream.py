"""Streams as users write them: a graph of descriptions. Building it runs nothing.

    app.stream("transactions", schema=..., time="ts", lateness="5s")
        .filter(col("amount") > 10).key_by("account").window(tumbling("1m")).aggregate(n=count())
        .to("account_minutes")

A `Stream` stands for the rows after one step; each method gives a new one, and `to` says where rows go. The steps are the
nodes of `api/nodes`; `plan/` makes stages of them. A step is checked when it is written, as far as its columns are known.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Unpack

import pyarrow as pa

from sabot.api.agent import AgentSpec
from sabot.api.aggregates import Aggregate
from sabot.api.arguments import (
    Computed,
    Keys,
    RowPolicy,
    Schema,
    TimeUnit,
    aggregates_of_keywords,
    column_names,
    expression_of,
    flat,
    function_of,
    named_columns_of,
    optional_ms,
    order_of,
    row_policy,
    whole_ms,
)
from sabot.api.calls import AsyncCall, LookupOptions, MapAsyncOptions
from sabot.api.describe import aggregates_of, table_of
from sabot.api.expr import Expr, col
from sabot.api.formats import sink_format
from sabot.api.functions import process_spec
from sabot.api.nodes.agents import Feed
from sabot.api.nodes.calls import MapAsync
from sabot.api.nodes.changes import Changelog, GroupAggregate, Materialize, Upsert
from sabot.api.nodes.functions import Connect, Process, Side
from sabot.api.nodes.joins import JoinHow
from sabot.api.nodes.keyed import Deduplicate, Over, Reduce, RunningAggregate, Ties, TopN
from sabot.api.nodes.node import Node, check_columns, with_id
from sabot.api.nodes.patterns import Match
from sabot.api.nodes.read import Write
from sabot.api.nodes.rows import (
    Broadcast,
    Drop,
    Explode,
    Filter,
    Head,
    OnError,
    Rename,
    Sample,
    Select,
    Union,
    WithColumns,
    flat_map_node,
    map_batches_node,
)
from sabot.api.nodes.times import with_time_node
from sabot.api.nodes.windows import AggregateWindow, WindowTopN
from sabot.api.over import OverFunction
from sabot.api.patterns import MATCH_END, MATCH_START, Pattern, check_measures
from sabot.api.stream.elsewhere import NamedElsewhere
from sabot.api.stream.joins import asof_node, join_node, keyed_sides, lookup_async_node, lookup_node, without_made
from sabot.api.stream.looks import Looks
from sabot.api.stream.outputs import check_takes_changes
from sabot.api.stream.owner import Owner
from sabot.api.windows import CountWindow, CumulativeWindow, HoppingWindow, SessionWindow, TumblingWindow, Window
from sabot.arrays import python_value
from sabot.checks import FLAG, OneOf, check, is_whole
from sabot.codecs.base import Format
from sabot.config import Duration
from sabot.connectors.base import Delivery, OnNan, Sink, Source
from sabot.connectors.checks import check_delivery, check_nan, check_sink
from sabot.connectors.defaults import sink_of
from sabot.errors import UserError
from sabot.options import spells_out

if TYPE_CHECKING:
    from sabot.llm.engine import ExecutionEngine

Late: TypeAlias = str | Sink | tuple[str | Sink | None, str | Sink | None] | None
"""Where late rows of a join go: of both streams, or of this one and of the other."""


@dataclass(frozen=True)
class Steps:
    """The basis of every kind of stream: its last step, with all steps before it, and the app to which they belong."""

    owner: Owner
    node: Node

    def then(self, node: Node) -> "Stream":
        """Checks the next step, and returns the stream behind it."""
        node.check()
        return Stream(self.owner, node)

    def then_aggregate(self, node: Node, aggregates: tuple[tuple[str, Aggregate], ...], computed: Computed) -> "Stream":
        """As `then`, for a step that gives these aggregates, with what is computed of them in the place of its parts."""
        stream = self.then(node)
        made, results = {name for name, _ in aggregates}, dict(computed)
        if not results:
            return stream
        if node.column_names is not None:
            return stream.select(*(name for name in node.column_names if name not in made), **results)
        own = {name: expr for name, expr in computed if name not in made}
        return stream.with_columns(**own).drop([*made.difference(results)])

    def then_process(self, node: Process | Connect) -> "ProcessedStream":
        """As `then`, for a process step, which may have output branches (`side`)."""
        node.check()
        return ProcessedStream(self.owner, node)

    @staticmethod
    def of(stream: object) -> "Steps | None":
        """The steps of a stream without keys. None: the object is no such stream."""
        return Steps(stream._owner, stream._node) if isinstance(stream, Stream) else None


class Stream(Looks, NamedElsewhere):
    """The rows after a step. Immutable: every method gives a new stream; nothing runs before the app does, or `collect`.

    Most streams are append streams: a row that came stays. What `group_by`, `upsert`, `top_n` and outer joins give are changes: rows
    that may be updated and deleted later. Steps that cannot take changes say so when they are written.
    """

    def __init__(self, owner: Owner, node: Node) -> None:
        self._owner = owner
        self._node = node

    # -- rows and columns ---------------------------------------------------------------------------------------------

    def filter(self, *predicates: Expr) -> "Stream":
        """The rows for which all predicates are true. A row for which one is null is dropped."""
        if not predicates:
            raise UserError("filter needs a predicate", hint='filter(col("amount") > 10)')
        node = self._node
        for predicate in predicates:
            node = Filter(node, expression_of(predicate, "filter"))
        return self._then(node)

    def select(self, *columns: str | Expr | Sequence[str | Expr], **named: Expr | Any) -> "Stream":
        """These columns, in this order: names, expressions, or name=expression."""
        return self._then(Select(self._node, named_columns_of(columns, named, "select")))

    def with_columns(self, *columns: Expr, **named: Expr | Any) -> "Stream":
        """Adds columns, or replaces those of the same name. All expressions see the columns as they were before the step."""
        return self._then(WithColumns(self._node, named_columns_of(columns, named, "with_columns")))

    def drop(self, *names: str | Sequence[str]) -> "Stream":
        """All columns but these."""
        return self._then(Drop(self._node, column_names(flat(names), "drop")))

    def rename(self, names: Mapping[str, str]) -> "Stream":
        """Renames columns: {old name: new name}."""
        pairs = tuple((str(old), str(new)) for old, new in names.items())
        return self._then(Rename(self._node, pairs))

    def with_time(
        self,
        time: str | Expr,
        *,
        lateness: Duration = 0,
        time_unit: TimeUnit | None = None,
        time_format: str | None = None,
    ) -> "Stream":
        """Rows have this event time from here on; windows behind go by it. Arguments as in `App.stream`; values that are no times are
        errors of their rows (`on_error`).
        """
        return self._then(with_time_node(self._node, time, time_unit, time_format, lateness))

    def on_error(self, policy: RowPolicy) -> "Stream":
        """What becomes of a row for which an expression or a function of a later step fails: "dead_letter", "null" or "fail"."""
        return self._then(OnError(self._node, row_policy("on_error", policy)))

    def map_batches(
        self,
        function: Callable[[pa.RecordBatch], Any],
        *,
        schema: Schema | None = None,
        on_error: RowPolicy | None = None,
    ) -> "Stream":
        """Calls `function(batch: pa.RecordBatch)`, which returns anything that speaks Arrow, or None for no rows.

        schema: of the result; without one, the function is called once with an empty batch to find out. If windows follow, event time is
        read again from its column if the result has it; otherwise the number of rows must stay the same. on_error: as of `on_error`, for
        this step; where the function fails it is called again with halves of the batch, until the rows that it fails for are found.
        """
        return self._then(map_batches_node(self._node, function, schema, on_error))

    def flat_map(
        self, function: Callable[[dict[str, Any]], Any], *, schema: Schema, on_error: RowPolicy | None = None
    ) -> "Stream":
        """Calls `function(row: dict)`, which returns an iterable of dicts. This is a Python call for each row: prefer `map_batches`."""
        return self._then(flat_map_node(self._node, function, schema, on_error))

    def explode(self, *columns: str | Sequence[str], empty_as_null: bool = False, keep_nulls: bool = True) -> "Stream":
        """A row for each value of the list in this column; a list that is null gives a row with null, an empty one none, as in polars.

        empty_as_null: an empty list gives a row with null, too. keep_nulls=False: one that is null gives none. Lists of several columns go
        together; a row in which they differ in length fails (`on_error`). Not for changes.
        """
        for each in flat(columns):
            if isinstance(each, Expr):
                name = each.column
                hint = f'with_columns(items={each!r}).explode("items")' if name is None else f'explode("{name}")'
                raise UserError(f"explode: {each!r} is an expression, and explode takes names of columns", hint=hint)
        names = column_names(flat(columns), "explode")
        if not names or len(set(names)) < len(names):
            raise UserError("explode needs columns of lists, each once", hint='explode("tags")')
        return self._then(
            Explode(
                self._node,
                names,
                check("explode: empty_as_null", empty_as_null, FLAG),
                check("explode: keep_nulls", keep_nulls, FLAG),
            )
        )

    def head(self, n: int) -> "Stream":
        """The first `n` rows to arrive (0 or more), of all subtasks together; no rows after those.

        The count is in the checkpoint, so n rows pass in total, whatever crashes, and with whatever parallelism the app resumes. With
        several readers or partitions, the order of arrival may differ from run to run. The input is still read to its end (an endless one
        for ever), as other streams may read it too, and for its event time. Not for changes.
        """
        n = python_value(n)
        if not is_whole(n, 0):
            raise UserError(
                f"head: {n!r} is no number of rows",
                hint="a whole number, 0 or more; which rows are last is known only at the end",
            )
        return self._then(Head(self._node, n))

    def sample(self, fraction: float, *, seed: int = 0) -> "Stream":
        """A random sample: each row passes with the probability `fraction` (0 to 1). `seed`: that of the random number generator.

        The same rows, in the same order and with the same parallelism, give the same sample.
        """
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
            raise UserError(f"sample: {fraction!r} is no share of the rows", hint="from 0 to 1: sample(0.1)")
        return self._then(Sample(self._node, float(fraction), seed))

    def split(self, predicate: Expr) -> tuple["Stream", "Stream"]:
        """Returns two streams: the rows for which the predicate is true, and all other rows, also those for which it is null."""
        yes = expression_of(predicate, "split")
        return self.filter(yes), self.filter(~yes.fill_null(False))

    # -- keys and time ------------------------------------------------------------------------------------------------

    def key_by(self, *keys: str | Expr, **named: str | Expr) -> "KeyedStream":
        """Groups rows by key: names of columns, or expressions: `key_by("shop", day=col("ts").dt.date())`. Null is a key like any other."""
        node, names, _ = self._with_keys(keys, named)
        return KeyedStream(Steps(self._owner, node), names)

    def _with_keys(
        self, keys: Sequence[str | Expr], named: Mapping[str, str | Expr] | None = None, where: str = "key_by"
    ) -> tuple[Node, tuple[str, ...], list[str]]:
        """Returns the step that has the keys as columns, the names of the keys, and those of the columns that were made for them."""
        if not keys and not named:
            raise UserError(f"{where} needs a column", hint=f'{where}("account")')
        pairs = named_columns_of(keys, named or {}, where)
        made = tuple((name, expr) for name, expr in pairs if not expr.same(col(name)))
        known = self._node.column_names or ()
        for name, expr in made:
            if name in expr.columns or name in known:
                raise UserError(
                    f"{where}: {expr!r} would take the place of column {name!r}",
                    hint='give it another name: .alias("…")',
                )
        node = WithColumns(self._node, made) if made else self._node
        names = tuple(name for name, _ in pairs)
        check_columns(where, node, names)
        return node, names, [name for name, _ in made]

    def window(
        self,
        window: Window,
        *,
        allowed_lateness: Duration = 0,
        emit_every: Duration | None = None,
        late: str | Sink | None = None,
    ) -> "WindowedStream":
        """Groups all rows by window, without a key. See KeyedStream.window."""
        return KeyedStream(Steps(self._owner, self._node), ()).window(
            window, allowed_lateness=allowed_lateness, emit_every=emit_every, late=late
        )

    def aggregate(self, *unnamed: Aggregate, **aggregates: Aggregate | Expr) -> "Stream":
        """For each row, the aggregates of all rows so far, including this one. See KeyedStream.aggregate."""
        return KeyedStream(Steps(self._owner, self._node), ()).aggregate(*unnamed, ttl=None, **aggregates)

    def deduplicate(self, *keys: str | Expr, within: Duration | None = None) -> "Stream":
        """The first row of each key; with `within`, a key counts as new again once this much event time has passed since its first row."""
        node, names, made = self._with_keys(keys)
        firsts = KeyedStream(Steps(self._owner, node), names).deduplicate(within=within)
        return firsts.drop(*made) if made else firsts

    def named(self, id: str) -> "Stream":
        """Gives an id to the last step that keeps state (aggregate, reduce, deduplicate). Under this id its state is restored when the
        program around the step changes, and `sabot state` reads it.
        """
        if not isinstance(id, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", id):
            raise UserError(f"named: {id!r} is no id", hint='letters, digits, "_", "-" and ".", at most 80: "totals"')
        return self._then(with_id(self._node, id))

    # -- several streams ----------------------------------------------------------------------------------------------

    def union(self, *others: "Stream") -> "Stream":
        """The rows of this stream and of the others; their columns are the same, in the same order."""
        return self._then(Union((self._node, *(self._other(other, "union") for other in others))))

    def join(
        self,
        other: "Stream",
        on: Keys | None = None,
        *,
        left_on: Keys | None = None,
        right_on: Keys | None = None,
        how: JoinHow = "inner",
        between: tuple[Duration | None, Duration | None] | None = None,
        window: Window | None = None,
        keep: Duration | tuple[Duration | None, Duration | None] | None = None,
        max_drift: Duration | None = "5m",
        late: Late = None,
        suffix: str = "_right",
    ) -> "Stream":
        """Joins rows of both streams whose keys are equal: the columns of this stream, then the other's without its keys.

        on: columns that both streams have; or left_on= and right_on=. Expressions too: left_on=col("name").str.lower(); what is computed is
        no column of the result. As in SQL, null equals nothing. how: "inner", "left", "right",
        "full", "semi" (rows of this stream with a partner), "anti" (rows without one). suffix: added to the other's name of
        a column that both streams have.

        between=("-1h", "5m"): only pairs in which the other row's event time is between this row's time - 1 h and + 5 min, both inclusive;
        None leaves an end open. Rows too old for that are dropped from the state. Rows without a partner are emitted when none can arrive
        any more.
        window=tumbling("1m"): only pairs within the same window, emitted when it closes, with window_start and window_end.
        Without either: all pairs, for ever. The state then grows with the rows, and except for "inner" and "semi" the result is changes: a
        row emitted without a partner is retracted when one arrives. keep=("1h", "1d"): rows of this stream are dropped from the state once
        event time has passed them by an hour, the other's by a day (None: never); results emitted with them stay. This is coarser than
        between=, which decides for each pair, in whatever order rows arrive.
        other.broadcast(): the other stream is small, and each subtask gets all of it; rows of this stream are not repartitioned. The other
        may have no event time even if this stream has one ("inner", "left", "semi", "anti"): its rows then count from their arrival, and if
        it ends (files), it is read first.
        max_drift: in joins by event time a source is read no further than this ahead of the others; it waits, so that a backlog of one
        side does not fill the state. None: as it comes.
        late: with between= or window=, a topic or Sink for rows that arrive too late to be joined, or a pair: this stream's place, the
        other's. They are counted in any case. "{topic}.dlq", as for dead_letter= of a stream, makes dead letters of them.
        The event time of a pair is the later of the two. Both streams may be changes, unless between= or window= is given.
        """
        left, right, keys, made = keyed_sides(
            "join", self._node, self._other(other, "join"), on, left_on, right_on, how
        )
        options: Any = {"between": between, "window": window, "keep": keep, "max_drift": max_drift, "late": late}
        node = join_node(left, right, keys, how, suffix, **options)
        return self._then(without_made(node, made))

    def join_asof(
        self,
        other: "Stream",
        on: Keys | None = None,
        *,
        left_on: Keys | None = None,
        right_on: Keys | None = None,
        how: Literal["left", "inner"] = "left",
        strategy: Literal["backward", "forward", "nearest"] = "backward",
        tolerance: Duration | None = None,
        max_drift: Duration | None = "5m",
        late: Late = None,
        suffix: str = "_right",
    ) -> "Stream":
        """Joins each row with the other's row of the same key that was valid at its event time: the last one at or before it.

        The other stream holds versions (prices, rates, addresses), each valid from its event time until the next one of its key. In a table
        (`app.table`, `upsert`), a deletion ends a version too. strategy: "forward", the first row at or after; "nearest". tolerance: the
        largest distance in time (forward and nearest need it). how: "left" keeps rows without a partner, "inner" does not. A row is emitted
        once event time has passed it on both sides. max_drift, late: as in `join`.
        """
        right = self._other(other, "join_asof")
        left, right, keys, made = keyed_sides("join_asof", self._node, right, on, left_on, right_on)
        options: Any = {"strategy": strategy, "tolerance": tolerance, "max_drift": max_drift, "late": late}
        node = asof_node(left, right, keys, how, suffix, **options)
        return self._then(without_made(node, made))

    @spells_out(LookupOptions)
    def lookup(
        self,
        table: "Stream | Callable[[Any], Any]",
        on: Keys | None = None,
        *,
        left_on: Keys | None = None,
        right_on: Keys | None = None,
        how: Literal["left", "inner"] = "left",
        suffix: str = "_right",
        dead_letter: str | Sink | None = None,
        **options: Unpack[LookupOptions],
    ) -> "Stream":
        """Adds the columns that a table, or a coroutine function, has for a row's key when the row arrives.

        Later changes of the table do not change rows that were emitted. A table that ends (files) is read before the first row.
        Otherwise the result depends on the order of arrival; use `join_asof` where it must not.

        `table`: a stream (`app.table`, or another, of which the last row of each key counts); a small one may be `.broadcast()`, so that
        the rows of this stream stay in their threads. Or `async def f(key)`, which returns a dict of the columns `schema`, or None:
        `lookup(f, on="account", schema={...})`; the options below are for such a function.
        `on`, `left_on`, `right_on`: the keys, as in `join`.
        `how`: "left" keeps rows without an answer, with nulls; "inner" drops them.
        `suffix`: the ending of a column's name that this stream has too.
        `dead_letter`: the topic or Sink for rows whose calls failed, with on_error="skip".
        """
        if not isinstance(table, Stream):
            one_sided = left_on is None and right_on is None
            return self._then(
                lookup_async_node(self._node, table, on if one_sided else None, how, suffix, dead_letter, options)
            )
        if options or dead_letter is not None:
            given = ", ".join([*options, *(["dead_letter"] if dead_letter is not None else [])])
            raise UserError(f"lookup: {given}: not for a table", hint="they are for a coroutine function")
        right = self._other(table, "lookup")
        left, right, keys, made = keyed_sides("lookup", self._node, right, on, left_on, right_on)
        return self._then(without_made(lookup_node(left, right, keys, how, suffix), made))

    @spells_out(MapAsyncOptions)
    def map_async(
        self,
        function: Callable[[Any], Any],
        *,
        schema: Schema,
        dead_letter: str | Sink | None = None,
        **options: Unpack[MapAsyncOptions],
    ) -> "Stream":
        """Calls `async def function(row: dict)`, which returns a dict of the columns `schema`, a list of dicts, or None.

        The calls run on the event loop of the app. A watermark never overtakes a row, whatever the order of the results. If the function
        raises `Overloaded`, fewer calls are made at a time, and the call is made again. Calls in flight are in the checkpoint: a call that
        had not ended is made again after a restart.

        `dead_letter`: the topic or Sink for rows whose calls failed, with on_error="skip".
        """
        call = AsyncCall.of(function, schema=schema, **options)
        if dead_letter is not None:
            check_sink(dead_letter, "map_async: dead_letter")
        return self._then(MapAsync(self._node, call, dead_letter))

    def map_llm(
        self,
        prompt: str | Expr | Callable[[pa.RecordBatch], Any],
        engine: "ExecutionEngine",
        *,
        output: Any = None,
        instructions: str = "",
        concurrency: int | None = None,
        ordered: bool = True,
        on_error: Literal["fail", "skip"] = "fail",
        dead_letter: str | Sink | None = None,
        cache: int = 10_000,
        **fields: Any,
    ) -> "Stream":
        """Adds to each row what a model answers to its prompt. Equal prompts are asked once.

        prompt: a template over columns, "Sentiment of: {text}"; an expression; or a function of a RecordBatch that gives a text for each
        row. A row whose prompt is null, as where a column in it is, is not asked about: its answer is null.
        output: the columns of the answer, {"label": "string", "score": "float64"}; a Struct, dataclass, TypedDict or pydantic model, with a
        column for each field; or the name of a column for the text, "content" by default. instructions: the system message. fields: of
        the request (model, temperature, max_tokens, …).
        concurrency: prompts in flight in each subtask; by default as many as the engine's limits allow. cache: so many answers are kept,
        those used last. ordered, on_error, dead_letter, and what is in the checkpoint: as of map_async. Attempts are the engine's.
        """
        from sabot.api.asking import map_llm_node

        options = {"concurrency": concurrency, "ordered": ordered, "on_error": on_error, "cache": cache}
        judge = self._owner.judge
        return self._then(
            map_llm_node(self._node, prompt, engine, output, instructions, dead_letter, options, fields, judge)
        )

    def broadcast(self) -> "Stream":
        """Marks this stream as the small side of `join` or `lookup`, or the rules of `connect`: each subtask gets all of it."""
        return self._then(Broadcast(self._node))

    # -- changes ------------------------------------------------------------------------------------------------------

    @property
    def changes(self) -> bool:
        """Whether the rows are changes, which `changelog`, `materialize` and `upsert` take: updates and deletes of earlier rows, beside new
        ones.
        """
        return self._node.changes

    def group_by(self, *keys: str | Expr, **named: str | Expr) -> "GroupedStream":
        """Groups rows by key, with one result row for each key that is kept up to date: SQL's GROUP BY. Without keys, one row for all.

        Keys are names of columns, or expressions: `group_by(day=col("ts").dt.date())`.
        """
        node, names, _ = self._with_keys(keys, named, "group_by") if keys or named else (self._node, (), [])
        return GroupedStream(Steps(self._owner, node), names)

    def upsert(self, *keys: str) -> "Stream":
        """The table, as changes, that has the last row of each key.

        Each row of an append stream replaces the earlier row of its key. For a stream of changes it sets the key that a sink uses:
        rows of the same key replace each other, and a key that has no row any more is deleted (in a topic, by a tombstone).
        """
        if not keys:
            raise UserError("upsert needs the key", hint='upsert("account")')
        return self._then(Upsert(self._node, column_names(flat(keys), "upsert")))

    def changelog(self) -> "Stream":
        """Turns changes into rows of an append stream. The column `op` has the kind: insert, update_before, update_after, delete."""
        if not self._node.changes:
            raise UserError(
                "changelog: these rows are no changes", hint="it follows group_by, upsert, top_n or an outer join"
            )
        return self._then(Changelog(self._node))

    def materialize(self) -> "Stream":
        """The table that changes make, kept in state: its rows are emitted once, when the input has ended. With `.named("x")`,
        `app.state("x")` reads it before that. An append stream is not changed.
        """
        return self._then(Materialize(self._node)) if self._node.changes else self

    # -- out ----------------------------------------------------------------------------------------------------------

    def to(
        self,
        sink: str | Sink | Source | Callable[..., Any],
        *,
        key: str | None = None,
        delivery: Delivery = None,
        nan: OnNan = None,
        format: str | Format | None = None,
    ) -> None:
        """Writes the rows to this topic, Sink or agent when the app runs. May be called several times. key: the column of the records' key.

        An agent is given by its function, declared with `@app.agent()`. There is no topic in between: its checkpoints keep the rows as
        those that it read itself. A record agent gets each row as if from JSON, a batch agent gets columns. It cannot
        take changes. `files("s3://bucket/folder/", "parquet")` is an ObjectSink there.

        delivery: "exactly_once": rows are visible once a checkpoint covers them, each exactly once whatever crashes. "at_least_once": rows
        are visible at once, and may be repeated after a crash. None: exactly once if the sink supports it and checkpoints are written.

        nan: what becomes of floats that the sink's format does not have, NaN and infinities in JSON, NaN in SQLite: "null"; "fail" stops
        the app, before the batch is written. None: null, with a warning for each column.

        format: of a topic, what rows become: "json" (the default), "csv", "raw", "arrow", Avro(…), Protobuf(…). docs/formats.md has all.
        """
        place = sink_of(sink, "to")
        check_nan(nan, f"to({place!r})")
        if callable(place) and not isinstance(place, str | Sink):
            for name, value in (("nan", nan), ("format", format)):
                if value is not None:
                    raise UserError(f"to({place!r}): {name}= is of sinks, and this is an agent", hint="leave it out")
            self._feed(self._owner.agent_of(place), key, delivery)
            return
        check_sink(place, "to", 'to("topic") or to(ParquetSink("out.parquet"))')
        check_delivery(delivery, f"to({place!r})")
        written = sink_format(format, place, f"to({place!r})", keyed=key is not None or self._node.changes)
        node = Write(self._node, place, key, delivery, nan, written)
        node.check()
        if self._node.changes:
            check_takes_changes(self._node, place, key)
        self._owner.write(node)

    def _feed(self, agent: AgentSpec, key: str | None, delivery: Delivery) -> None:
        if delivery is not None:
            raise UserError(
                f"to(agent {agent.agent_id}): delivery= is of sinks; rows reach an agent's state exactly once",
                hint="say it of what the agent writes: @app.agent(sink=…, delivery=…)",
            )
        node = Feed(self._node, agent, key)
        node.check()
        self._owner.write(node)

    def describe(self) -> pa.Table:
        """Runs the stream now; one row for each column: column, type, count, nulls, distinct, mean, std, min, 25%, 50%, 75%, max.

        mean, std and quartiles are for numbers only; min and max are text. The distinct count and the quartiles are approximate (see
        `approx_count_distinct`, `approx_quantile`). Bounded inputs only.
        """
        schema = self.schema
        found = self.materialize().group_by().aggregate(**aggregates_of(schema)).collect()
        return table_of(schema, found.to_pylist()[0] if found.num_rows else {})

    @property
    def schema(self) -> pa.Schema:
        """Returns names and types of the columns. Without a declared schema, the source is asked for it; a topic has none to give."""
        return self._owner.schema(self._node)

    def _other(self, other: Any, where: str) -> Node:
        if not isinstance(other, Stream):
            raise UserError(f"{where}: {other!r} is no stream", hint="app.stream(…)")
        if other._owner is not self._owner:
            raise UserError(f"{where}: the other stream is of another app", hint="make both with one app")
        return other._node

    def _then(self, node: Node) -> "Stream":
        return Steps(self._owner, self._node).then(node)


class ProcessedStream(Stream):
    """The main output of a process step. `side` gives its other output branches."""

    def side(self, name: str) -> Stream:
        """The rows that the functions gave to `ctx.side(name, …)`."""
        node = self._node
        assert isinstance(node, Process | Connect)
        if name not in node.spec.sides:
            known = ", ".join(node.spec.sides) or "none"
            raise UserError(
                f"side({name!r}): the step has no side of that name, but {known}", hint="process(…, sides={…})"
            )
        return self._then(Side(node, name))

    def named(self, id: str) -> "ProcessedStream":
        return ProcessedStream(self._owner, super().named(id)._node)


class KeyedStream(NamedElsewhere):
    """Rows with a key: its methods work on the rows of each key separately."""

    _made_by = 'key_by("column")'
    _ends_in = "aggregate(…), over(…), process(…)"

    def __init__(self, steps: Steps, keys: tuple[str, ...]) -> None:
        self._steps = steps
        self._keys = keys

    def window(
        self,
        window: Window,
        *,
        allowed_lateness: Duration = 0,
        emit_every: Duration | None = None,
        late: str | Sink | None = None,
    ) -> "WindowedStream":
        """Groups the rows of each key by windows of event time, of processing time, or of a count.

        allowed_lateness: how long after its end a window still takes rows; each time it does, its whole result is emitted again.
        emit_every: emits early results of open windows each time event time has advanced by this much.
        late: a topic or Sink for rows that arrive even later; they are counted in any case. "{topic}.dlq", as for dead_letter= of a stream,
        makes dead letters of them.
        """
        if not isinstance(window, Window):
            raise UserError(
                f"window: {window!r} is no window", hint='tumbling("1m"), hopping("1h", "1m"), session("5m")'
            )
        if late is not None:
            check_sink(late, "window: late", 'late="late-orders"')
        if getattr(window, "time", "event") == "processing" and (late is not None or allowed_lateness):
            raise UserError(
                "window: no row comes late for a window of processing time",
                hint="leave late= and allowed_lateness= out",
            )
        every = None if emit_every is None else whole_ms(emit_every, "emit_every")
        if every is not None and isinstance(window, SessionWindow | CountWindow):
            raise UserError("emit_every: sessions and windows by count have no early results", hint="leave it out")
        return WindowedStream(
            self._steps, self._keys, window, whole_ms(allowed_lateness, "allowed_lateness"), every, late
        )

    def aggregate(self, *unnamed: Aggregate, ttl: Duration | None = None, **aggregates: Aggregate | Expr) -> "Stream":
        """For each row, the aggregates of its key so far, including the row, or what is computed of them (`share=sum("a") / sum("b")`).
        ttl: a key without rows for so much event time starts anew.

        For numbers and times: count, sum, min, max, mean, variance, stddev, first, last, any. The other aggregates need a window.
        """
        known, computed = aggregates_of_keywords(unnamed, aggregates)
        node = RunningAggregate(self._steps.node, self._keys, known, optional_ms(ttl, "ttl"))
        return self._steps.then_aggregate(node, known, computed)

    def reduce(
        self,
        function: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]],
        *,
        ttl: Duration | None = None,
    ) -> "Stream":
        """For each row, the rows of its key so far reduced to one: `function(so_far, row)` gets and returns dicts of the same columns."""
        node = Reduce(self._steps.node, self._keys, function_of(function, "reduce"), optional_ms(ttl, "ttl"))
        return self._steps.then(node)

    def deduplicate(self, *, within: Duration | None = None) -> "Stream":
        """The first row of each key; with `within`, a key counts as new again once this much event time has passed since its first row."""
        return self._steps.then(Deduplicate(self._steps.node, self._keys, optional_ms(within, "within")))

    def top_n(
        self,
        n: int,
        by: str | Sequence[str],
        *,
        descending: bool | Sequence[bool] = True,
        ties: Ties = "row_number",
        rank: str | None = None,
    ) -> "Stream":
        """The first `n` rows of each key in the order of `by`, kept up to date, as changes.

        descending: the greatest come first; for several columns, give one of each. Null and NaN come last. ties: "row_number": of equal
        rows, the first to arrive; "rank": all rows that have fewer than `n` before them; "dense_rank": all rows of the first `n` values.
        rank: the name of a column with the row's rank (1, 2, …); each move in the ranking is then an update.
        """
        number, order = order_of("top_n", n, by, descending)
        ties = check("top_n: ties", ties, OneOf(("row_number", "rank", "dense_rank")))
        return self._steps.then(TopN(self._steps.node, self._keys, number, order, ties, rank))

    def process(
        self,
        function: Any,
        *,
        schema: Schema,
        batch: bool = False,
        on_timer: Callable[..., Any] | None = None,
        sides: Mapping[str, Schema] | None = None,
        ttl: Duration | None = None,
        on_error: RowPolicy | None = None,
    ) -> "ProcessedStream":
        """Calls the user's function for the rows of a key, with its state and timers: `function(row, ctx)` gives None, a dict, or several.

        schema: of the result. function may also be an object (see `sabot.Process`). on_timer: `on_timer(timer, ctx)`. batch: the
        vectorised form, `function(keys, batch, ctx)` and `on_timer(keys, at, ctx)`: no Python per row. sides: name -> schema of the rows
        that leave by `ctx.side(name, row)`; `.side(name)` is their stream. ttl: a value of the state expires after so long (of event
        time) since it was put. `api/functions` describes what `ctx` can do. on_error: as `Stream.on_error`, for this step; what a call has
        changed before it failed (values, timers, results, broadcast maps) is undone.
        """
        spec = process_spec(function, schema=schema, batch=batch, on_timer=on_timer, sides=sides, ttl=ttl)
        own = None if on_error is None else row_policy(spec.name, on_error)
        node = Process(self._steps.node, self._keys, spec, on_error=own)
        return self._steps.then_process(node)

    def over(self, *, preceding: int | Duration | None = None, **columns: Aggregate | OverFunction) -> "Stream":
        """Adds columns to each row that are computed from the rows of its key up to it, in the order of event time: SQL's OVER.

        preceding: how many earlier rows count (5: six with the row itself), or those of how much event time ("1h": this includes rows of
        equal time that come after it); None: all. `total=sabot.sum("x")` and the other aggregates of numbers and times; `sabot.lag("x")`,
        `lead("x")`, `row_number()`, `rank()`, `dense_rank()`. A row is emitted once event time has passed it; with lead, once the rows that
        it looks ahead to have come.
        """
        if not columns:
            raise UserError("over needs a column to add", hint='over(preceding=5, mean=sabot.mean("price"))')
        rows, ms, preceding = None, None, python_value(preceding)
        if isinstance(preceding, int) and not isinstance(preceding, bool):
            rows = preceding
            if rows < 0:
                raise UserError(f"over: preceding={preceding!r} rows", hint="0 or more")
        elif preceding is not None:
            ms = whole_ms(preceding, "preceding")
        for name, each in columns.items():
            if not isinstance(each, Aggregate | OverFunction):
                raise UserError(f"over: {name}={each!r}", hint=f'{name}=sabot.sum("amount"), sabot.lag("amount"), …')
            check_columns(f"over: {name}", self._steps.node, sorted(each.columns))
        known = self._steps.node.column_names or ()
        if taken := [name for name in columns if name in known]:
            raise UserError(f"over: {taken[0]!r} is the name of another column", hint="choose another name")
        return self._steps.then(Over(self._steps.node, self._keys, tuple(columns.items()), rows, ms))

    def pattern(
        self,
        pattern: Pattern,
        *,
        skip: Literal["past_last", "to_next", "none"] = "past_last",
        max_partial: int = 10_000,
        late: str | Sink | None = None,
        **measures: Expr,
    ) -> "Stream":
        """Emits one row for each sequence of rows of a key that matches the pattern (`sabot.pattern`), in the order of event time.

        Its columns are the keys, match_start and match_end (the times of the first and last row, both included), then the measures:
        `n=sabot.step("a").count()`, `amount=sabot.step("b").last("amount")`. skip: where the next match may begin: "past_last": behind the
        last row of this one; "to_next": at the row behind its first; "none": anywhere, so all matches are found.
        max_partial: how many incomplete matches a key may have; more stop the app.
        late: a topic or Sink for rows that arrive too late to be matched, as in `window`.
        """
        known = check_measures(pattern, skip, measures)
        if late is not None:
            check_sink(late, "pattern: late", 'late="late-orders"')
        max_partial = python_value(max_partial)
        if not is_whole(max_partial, 1):
            raise UserError(f"pattern: max_partial={max_partial!r}", hint="a whole number, 1 or more")
        for name, _ in known:
            if name in (*self._keys, MATCH_START, MATCH_END):
                raise UserError(f"pattern: {name!r} is the name of another column", hint="choose another name")
        return self._steps.then(Match(self._steps.node, self._keys, pattern, skip, known, max_partial, late))

    def connect(self, other: "KeyedStream | Stream") -> "ConnectedStreams":
        """Connects two streams for one process step: another by the same keys, or a broadcast one: `connect(rules.broadcast())`."""
        by_key = isinstance(other, KeyedStream)
        right = other._steps if isinstance(other, KeyedStream) else self._steps.of(other)
        if right is not None and right.owner is not self._steps.owner:
            raise UserError("connect: the other stream is of another app", hint="make both with one app")
        right_keys = other._keys if isinstance(other, KeyedStream) else ()
        fits = len(right_keys) == len(self._keys) if by_key else right is not None and isinstance(right.node, Broadcast)
        if right is None or not fits:
            raise UserError(
                f"connect: {other!r} is no stream by {len(self._keys)} keys, and no broadcast one",
                hint='connect(other.key_by("account")), connect(rules.broadcast())',
            )
        return ConnectedStreams(self._steps, self._keys, right.node, right_keys)

    def __repr__(self) -> str:
        return f"KeyedStream(by {', '.join(self._keys)})"


class WindowedStream(NamedElsewhere):
    """Rows with a key and a window: its methods work on the rows of each key and window separately."""

    _made_by = 'window(tumbling("1m"))'
    _ends_in = "aggregate(…), top_n(…)"

    def __init__(
        self,
        steps: Steps,
        keys: tuple[str, ...],
        window: Window,
        allowed_lateness_ms: int,
        emit_every_ms: int | None,
        late: str | Sink | None,
    ) -> None:
        self._steps = steps
        self._keys = keys
        self._window = window
        self._allowed_lateness_ms = allowed_lateness_ms
        self._emit_every_ms = emit_every_ms
        self._late = late

    def aggregate(self, *unnamed: Aggregate, **aggregates: Aggregate | Expr) -> "Stream":
        """One row for each key and window: the keys, window_start, window_end (the end is exclusive), then these aggregates, or what is
        computed of them: `share=sum("a") / sum("b")`.
        """
        known, computed = aggregates_of_keywords(unnamed, aggregates)
        node = AggregateWindow(
            self._steps.node,
            self._keys,
            self._window,
            known,
            self._allowed_lateness_ms,
            self._emit_every_ms,
            self._late,
        )
        for name in aggregates:
            if name in (*self._keys, "window_start", "window_end"):
                raise UserError(f"aggregate: {name!r} is the name of another column", hint="choose another name")
        return self._steps.then_aggregate(node, known, computed)

    def top_n(
        self,
        n: int,
        by: str | Sequence[str],
        *,
        descending: bool | Sequence[bool] = True,
        ties: Ties = "row_number",
        rank: str | None = None,
    ) -> "Stream":
        """The first `n` rows of each key and window in the order of `by`, when the window closes: the row, window_start, window_end.

        The arguments are as in KeyedStream.top_n. For tumbling, hopping and cumulative windows. Behind another window, the bounds of the
        rows' own window are row_window_start and row_window_end.
        """
        window = self._window
        if not isinstance(window, TumblingWindow | HoppingWindow | CumulativeWindow) or self._emit_every_ms is not None:
            raise UserError(
                "top_n: only of tumbling, hopping and cumulative windows, at their end", hint='window(tumbling("1m"))'
            )
        number, order = order_of("top_n", n, by, descending)
        ties = check("top_n: ties", ties, OneOf(("row_number", "rank", "dense_rank")))
        known = self._steps.node.column_names or ()
        own = {name: f"row_{name}" for name in ("window_start", "window_end") if name in known}
        node: Node = self._steps.node
        if own and not any(name in own for name in self._keys):
            node = Rename(node, tuple(own.items()))
            node.check()
            order = tuple((own.get(name, name), down) for name, down in order)
        node = WindowTopN(node, self._keys, window, number, order, ties, rank, self._allowed_lateness_ms, self._late)
        return self._steps.then(node)

    def __repr__(self) -> str:
        return f"WindowedStream({self._window})"


class GroupedStream(NamedElsewhere):
    """Rows grouped by key. `aggregate` makes one row of each group, and updates it as rows come."""

    _made_by = 'group_by("column")'
    _ends_in = "aggregate(…)"

    def __init__(self, steps: Steps, keys: tuple[str, ...]) -> None:
        self._steps = steps
        self._keys = keys

    def aggregate(self, *unnamed: Aggregate, **aggregates: Aggregate | Expr) -> "Stream":
        """The keys and these aggregates, or what is computed of them (`share=sum("a") / sum("b")`), as changes. A batch updates the row of
        a key at most once. A key is deleted when all its rows are.
        """
        known, computed = aggregates_of_keywords(unnamed, aggregates)
        for name in aggregates:
            if name in self._keys:
                raise UserError(f"aggregate: {name!r} is the name of another column", hint="choose another name")
        return self._steps.then_aggregate(GroupAggregate(self._steps.node, self._keys, known), known, computed)

    def __repr__(self) -> str:
        return f"GroupedStream(by {', '.join(self._keys)})"


class ConnectedStreams:
    """Two streams that one step will process."""

    def __init__(self, steps: Steps, keys: tuple[str, ...], right: Node, right_keys: tuple[str, ...]) -> None:
        self._steps = steps
        self._keys = keys
        self._right = right
        self._right_keys = right_keys

    def process(
        self,
        function: Any,
        *,
        right: Callable[..., Any] | None = None,
        schema: Schema,
        batch: bool = False,
        on_timer: Callable[..., Any] | None = None,
        sides: Mapping[str, Schema] | None = None,
        ttl: Duration | None = None,
        on_error: RowPolicy | None = None,
    ) -> "ProcessedStream":
        """As KeyedStream.process; `right(row, ctx)` gets the rows of the other stream. Both functions share state and timers by key.

        Each subtask gets all rows of a broadcast stream; what they say is kept in `ctx.broadcast(name)`, a map that all keys read.
        """
        spec = process_spec(
            function,
            schema=schema,
            batch=batch,
            on_timer=on_timer,
            sides=sides,
            ttl=ttl,
            right=right,
            two_inputs=True,
            broadcast=isinstance(self._right, Broadcast),
        )
        own = None if on_error is None else row_policy(spec.name, on_error)
        node = Connect(self._steps.node, self._right, self._keys, self._right_keys, spec, on_error=own)
        return self._steps.then_process(node)
