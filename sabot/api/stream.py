"""Streams as users write them: a graph of descriptions, nothing runs.

    app.stream("transactions", schema=..., time="ts", lateness="5s")
        .filter(col("amount") > 10).key_by("account").window(tumbling("1m")).aggregate(n=count())
        .to("account_minutes")

A `Stream` stands for the rows after one step; each method gives a new one, and `to` says where rows go. The steps are the
nodes of `api/nodes`; `plan/` makes stages of them. A step is checked when it is written, as far as its columns are known (`api/shape`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import pyarrow as pa

from sabot.api.aggregates import Aggregate
from sabot.api.arguments import (
    aggregates_of_keywords,
    column_names,
    expression_of,
    flat,
    function_of,
    interval_ms,
    join_keys,
    keep_ms,
    named_columns_of,
    one_of,
    optional_ms,
    order_of,
    whole_ms,
)
from sabot.api.calls import AsyncCall, LookupCall
from sabot.api.describe import aggregates_of, table_of
from sabot.api.expr import Expr, col
from sabot.api.nodes.calls import LookupAsync, MapAsync
from sabot.api.nodes.changes import Changelog, GroupAggregate, Materialize, Upsert
from sabot.api.nodes.functions import Connect, Process, Side
from sabot.api.nodes.joins import AsofJoin, IntervalJoin, Join, JoinHow, Lookup, WindowJoin
from sabot.api.nodes.keyed import Deduplicate, Over, Reduce, RunningAggregate, Ties, TopN
from sabot.api.nodes.node import Node, check_columns
from sabot.api.nodes.patterns import Match
from sabot.api.nodes.read import Schema, Write, schema_of
from sabot.api.nodes.rows import (
    Broadcast,
    Drop,
    Filter,
    FlatMap,
    MapBatches,
    Rename,
    Sample,
    Select,
    Union,
    WithColumns,
)
from sabot.api.nodes.windows import AggregateWindow, WindowTopN
from sabot.api.over import OverFunction
from sabot.api.patterns import MATCH_END, MATCH_START, Pattern, check_measures
from sabot.api.process import process_spec
from sabot.api.windows import CountWindow, CumulativeWindow, HoppingWindow, SessionWindow, TumblingWindow, Window
from sabot.config import Duration
from sabot.connectors.base import Delivery, Sink, check_delivery, check_sink
from sabot.errors import UserError

__all__ = ["ConnectedStreams", "GroupedStream", "KeyedStream", "Owner", "ProcessedStream", "Stream", "WindowedStream"]

_HOWS = ("inner", "left", "right", "full", "semi", "anti")


class Owner(Protocol):
    """What a stream asks of its app."""

    def write(self, node: Write) -> None:
        """The stream will be run with the app."""

    def collect(self, node: Node) -> pa.Table:
        """Runs the steps up to this node, now, over bounded inputs."""

    def explain(self, node: Node) -> str:
        """The plan of the steps up to this node."""

    def schema(self, node: Node) -> pa.Schema:
        """The columns of the rows of this node."""


class Stream:
    """The rows after a step. Immutable: every method gives a new stream; nothing runs before the app does, or `collect`.

    Most streams are append streams: a row that came stays. What `group_by`, `upsert`, `top_n` and outer joins give are changes: rows
    that may be updated and deleted later. Steps that cannot take changes say so when they are written.
    """

    def __init__(self, owner: Owner, node: Node) -> None:
        self._owner = owner
        self._node = node

    # -- rows and columns ---------------------------------------------------------------------------------------------

    def filter(self, *predicates: Expr) -> "Stream":
        """The rows for which all predicates are true; not those for which one is null."""
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
        """Adds columns, or replaces those of the same name. All see the columns as they were before."""
        return self._then(WithColumns(self._node, named_columns_of(columns, named, "with_columns")))

    def drop(self, *names: str | Sequence[str]) -> "Stream":
        """All columns but these."""
        return self._then(Drop(self._node, column_names(flat(names), "drop")))

    def rename(self, names: Mapping[str, str]) -> "Stream":
        """{old name: new name}."""
        pairs = tuple((str(old), str(new)) for old, new in names.items())
        return self._then(Rename(self._node, pairs))

    def map_batches(self, function: Callable[[pa.RecordBatch], Any], *, schema: Schema | None = None) -> "Stream":
        """`function(batch: pa.RecordBatch)` -> anything that speaks Arrow, or None for nothing.

        schema: of what it gives; without one it is called with an empty batch, once, to see. Where windows follow, event time is
        read again from its column if that is there, else the number of rows must stay the same.
        """
        return self._then(MapBatches(self._node, function_of(function, "map_batches"), schema_of(schema)))

    def flat_map(self, function: Callable[[dict[str, Any]], Any], *, schema: Schema) -> "Stream":
        """`function(row: dict)` -> an iterable of dicts. A Python call for each row: prefer `map_batches`."""
        known = schema_of(schema)
        assert known is not None
        return self._then(FlatMap(self._node, function_of(function, "flat_map"), known))

    def union(self, *others: "Stream") -> "Stream":
        """The rows of this stream and of the others; their columns are the same, in the same order."""
        return self._then(Union((self._node, *(self._other(other, "union") for other in others))))

    def sample(self, fraction: float, *, seed: int = 0) -> "Stream":
        """About this share of the rows, by chance: each row with the probability `fraction` (0 to 1), by a generator that starts at `seed`.

        The same rows, in the same order and with the same parallelism, give the same sample.
        """
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
            raise UserError(f"sample: {fraction!r} is no share of the rows", hint="from 0 to 1: sample(0.1)")
        return self._then(Sample(self._node, float(fraction), seed))

    def split(self, predicate: Expr) -> tuple["Stream", "Stream"]:
        """-> (rows for which the predicate is true, all other rows: those where it is null too)."""
        yes = expression_of(predicate, "split")
        return self.filter(yes), self.filter(~yes.fill_null(False))

    # -- keys and time ------------------------------------------------------------------------------------------------

    def key_by(self, *keys: str | Expr) -> "KeyedStream":
        """Rows that belong together: names of columns, or expressions with an alias. Null is a key like others."""
        if not keys:
            raise UserError("key_by needs a column", hint='key_by("account")')
        named = named_columns_of(keys, {}, "key_by")
        made = tuple((name, expr) for name, expr in named if not expr.same(col(name)))
        for name, expr in made:
            if name in expr.columns:
                raise UserError(
                    f"key_by: {expr!r} would take the place of column {name!r}", hint='give it a name: .alias("…")'
                )
        node = WithColumns(self._node, made) if made else self._node
        return KeyedStream(self._owner, node, tuple(name for name, _ in named))

    def window(
        self,
        window: Window,
        *,
        allowed_lateness: Duration = 0,
        emit_every: Duration | None = None,
        late: str | Sink | None = None,
    ) -> "WindowedStream":
        """All rows of a window together. See KeyedStream.window."""
        return KeyedStream(self._owner, self._node, ()).window(
            window, allowed_lateness=allowed_lateness, emit_every=emit_every, late=late
        )

    def aggregate(self, *unnamed: Aggregate, **aggregates: Aggregate) -> "Stream":
        """For each row the aggregates of all rows so far, this one included. See KeyedStream.aggregate."""
        return KeyedStream(self._owner, self._node, ()).aggregate(*unnamed, ttl=None, **aggregates)

    def deduplicate(self, *keys: str | Expr, within: Duration | None = None) -> "Stream":
        """The first row of each key; with `within`, a key counts as new again so long (of event time) after its first row."""
        keyed = self.key_by(*keys)
        made = keyed._node.columns if isinstance(keyed._node, WithColumns) and keyed._node is not self._node else ()
        firsts = keyed.deduplicate(within=within)
        return firsts.drop(*(name for name, _ in made)) if made else firsts

    def named(self, id: str) -> "Stream":
        """Gives the step before this place that keeps state (aggregate, reduce, deduplicate) an id: its state goes on under it when the
        program around it changes, and `sabot state` reads it by it.
        """
        if not isinstance(id, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", id):
            raise UserError(f"named: {id!r} is no id", hint='letters, digits, "_", "-" and ".", at most 80: "totals"')
        return self._then(_with_id(self._node, id))

    # -- several streams ----------------------------------------------------------------------------------------------

    def join(
        self,
        other: "Stream",
        on: str | Sequence[str] | None = None,
        *,
        left_on: str | Sequence[str] | None = None,
        right_on: str | Sequence[str] | None = None,
        how: JoinHow = "inner",
        between: tuple[Duration | None, Duration | None] | None = None,
        window: Window | None = None,
        keep: Duration | tuple[Duration | None, Duration | None] | None = None,
        suffix: str = "_right",
    ) -> "Stream":
        """Rows of both streams whose keys are equal: the columns of this one, then the other's without its keys.

        on: columns that both have; or left_on= and right_on=. Null equals nothing, as in SQL. how: "inner", "left", "right", "full",
        "semi" (rows of this stream that have a partner), "anti" (those that have none). suffix: behind names that both have.

        between=("-1h", "5m"): only where the other's event time is between this row's time - 1 h and + 5 min, both ends included. What is
        older than that is forgotten; None for an end that is open. Rows without a partner come out when none can come any more.
        window=tumbling("1m"): only rows that fall into the same window, when it closes; with window_start and window_end.
        Neither: all rows, for ever. Then the state grows with them, and but for "inner" and "semi" the result is changes: a row that
        had no partner is taken back when one comes. keep=("1h", "1d"): rows of this stream are forgotten when event time has passed them
        by an hour, the other's by a day (None: never); what came out with them stays. That is coarser than between=, which decides
        for each pair, whatever the order in which rows come.
        other.broadcast(): the other stream is small and goes to every subtask whole; rows of this one stay where they are. The other may
        have no event time where this one has it ("inner", "left", "semi", "anti"): its rows are of the time when they come, and where
        it ends (files) it is read first.
        Event time of a pair: the later of the two. Both streams may be changes, where neither between= nor window= is given.
        """
        left_keys, right_keys = join_keys("join", on, left_on, right_on)
        node: Join
        given = (
            self._node,
            self._other(other, "join"),
            left_keys,
            right_keys,
            one_of("join: how", how, _HOWS),
            suffix,
        )
        if between is not None and window is not None:
            raise UserError("join: between= and window= are two kinds of joins", hint="give one of them")
        if between is not None:
            lower_ms, upper_ms = interval_ms(between, how)
            node = IntervalJoin(*given, lower_ms=lower_ms, upper_ms=upper_ms)
        elif window is not None:
            if not isinstance(window, TumblingWindow | HoppingWindow | CumulativeWindow):
                raise UserError(
                    f"join: {window!r} is no window that two streams can share",
                    hint='tumbling("1m"), hopping("1h", "1m")',
                )
            node = WindowJoin(*given, window=window)
        else:
            node = Join(*given, keep_ms=keep_ms(keep))
        if keep is not None and type(node) is not Join:
            raise UserError(
                "join: between= and window= say by themselves how long rows are kept", hint="leave keep= out"
            )
        if isinstance(node.right, Broadcast):
            _check_broadcast(node)
        _check_keep(node)
        return self._then(node)

    def join_asof(
        self,
        other: "Stream",
        on: str | Sequence[str] | None = None,
        *,
        left_on: str | Sequence[str] | None = None,
        right_on: str | Sequence[str] | None = None,
        how: Literal["left", "inner"] = "left",
        strategy: Literal["backward", "forward", "nearest"] = "backward",
        tolerance: Duration | None = None,
        suffix: str = "_right",
    ) -> "Stream":
        """Each row with the other's row of the same key that was current at its event time: the last one at or before it.

        The other stream holds versions (prices, rates, addresses), each valid from its event time to the next of its key; a table
        (`app.table`, `upsert`) may end them too. strategy: "forward", the first at or after; "nearest". tolerance: how far off it may be
        (forward and nearest need it). how: "left" keeps rows without a partner, "inner" does not. A row comes out when event time
        has passed it on both sides.
        """
        left_keys, right_keys = join_keys("join_asof", on, left_on, right_on)
        strategy = one_of("join_asof: strategy", strategy, ("backward", "forward", "nearest"))
        if strategy != "backward" and tolerance is None:
            raise UserError(
                f"join_asof: strategy={strategy!r} needs a tolerance",
                hint='tolerance="5s": how long a row waits for it',
            )
        node = AsofJoin(
            self._node,
            self._other(other, "join_asof"),
            left_keys,
            right_keys,
            one_of("join_asof: how", how, ("left", "inner")),
            suffix,
            strategy=strategy,
            tolerance_ms=None if tolerance is None else whole_ms(tolerance, "tolerance"),
        )
        return self._then(node)

    def lookup(
        self,
        table: "Stream | Callable[[Any], Any]",
        on: str | Sequence[str] | None = None,
        *,
        left_on: str | Sequence[str] | None = None,
        right_on: str | Sequence[str] | None = None,
        how: Literal["left", "inner"] = "left",
        suffix: str = "_right",
        dead_letter: str | Sink | None = None,
        **options: Any,
    ) -> "Stream":
        """Each row with what a table, or a coroutine function, knows of its key when the row comes. What changes later changes no row.

        table: a stream (`app.table`, or another, of which the last row of a key counts). One that ends (files) is read before the
        first row. Else the answer depends on which came first; where it must not, `join_asof` goes by event time. Keys as in `join`.
        Or `async def f(key)` -> a dict of the columns schema=, or None: `lookup(f, on="account", schema={...})`. options, with their
        defaults: cache=10_000 answers kept, cache_ttl="10m", concurrency=100, ordered=True, timeout="30s", retries=0,
        backoff="100ms", on_error="fail" or "skip"; then rows whose calls failed go to dead_letter.
        how: "left" keeps rows without an answer, with nulls; "inner" does not.
        """
        if isinstance(table, Stream):
            if options or dead_letter is not None:
                given = ", ".join([*options, *(["dead_letter"] if dead_letter is not None else [])])
                raise UserError(f"lookup: {given}: not for a table", hint="they are for a coroutine function")
            left_keys, right_keys = join_keys("lookup", on, left_on, right_on)
            how = one_of("lookup: how", how, ("left", "inner"))
            return self._then(Lookup(self._node, self._other(table, "lookup"), left_keys, right_keys, how, suffix))
        if left_on is not None or right_on is not None or on is None:
            raise UserError("lookup: a function needs on=, the columns whose values it gets", hint='on="account"')
        if dead_letter is not None:
            check_sink(dead_letter, "lookup: dead_letter")
        call = LookupCall.of(table, on=on, how=how, **options)
        return self._then(LookupAsync(self._node, call, suffix, dead_letter))

    def map_async(
        self,
        function: Callable[[Any], Any],
        *,
        schema: Schema,
        concurrency: int = 100,
        ordered: bool = True,
        timeout: Duration | None = "30s",
        retries: int = 0,
        backoff: Duration = "100ms",
        on_error: Literal["fail", "skip"] = "fail",
        dead_letter: str | Sink | None = None,
        batch: bool = False,
        rows: int = 1024,
    ) -> "Stream":
        """`async def function(row: dict)` -> a dict of the columns `schema`, a list of them, or None. Runs on the app's event loop.

        concurrency: so many calls are in flight (in each subtask), others wait. ordered: results come out in the order of the rows; if not,
        as they are ready, but event time never overtakes a row. timeout: of one attempt. retries: with backoff, twice as long each time.
        on_error: what happens after the last attempt: "fail" stops the job, "skip" goes on, and the row goes to dead_letter.
        batch: the function gets a RecordBatch of at most `rows` rows, and gives anything that speaks Arrow.
        What is in flight is in the checkpoint: a call that had not ended is made again after a restart.
        """
        call = AsyncCall.of(
            function,
            schema=schema,
            concurrency=concurrency,
            ordered=ordered,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            on_error=on_error,
            batch=batch,
            rows=rows,
        )
        if dead_letter is not None:
            check_sink(dead_letter, "map_async: dead_letter")
        return self._then(MapAsync(self._node, call, dead_letter))

    def broadcast(self) -> "Stream":
        """This stream as the small side of `join`, or the rules of `connect`: every subtask gets all of it."""
        return self._then(Broadcast(self._node))

    # -- changes ------------------------------------------------------------------------------------------------------

    def group_by(self, *keys: str | Expr) -> "GroupedStream":
        """One row for each key, kept up to date: SQL's GROUP BY. Without keys, one row for all."""
        keyed = self.key_by(*keys) if keys else KeyedStream(self._owner, self._node, ())
        return GroupedStream(keyed)

    def upsert(self, *keys: str) -> "Stream":
        """The table in which the last row of each key is the key's row, as changes.

        Of an append stream a row replaces the one before it of the same key. Of changes it says by which key a sink keeps them: rows
        of one key replace each other, and a key that has no row any more is deleted (in a topic: a tombstone).
        """
        if not keys:
            raise UserError("upsert needs the key", hint='upsert("account")')
        return self._then(Upsert(self._node, column_names(flat(keys), "upsert")))

    def changelog(self) -> "Stream":
        """Changes as rows that stay: the column `op` (insert, update_before, update_after, delete) says what happened to each."""
        if not self._node.changes:
            raise UserError(
                "changelog: these rows are no changes", hint="it follows group_by, upsert, top_n or an outer join"
            )
        return self._then(Changelog(self._node))

    def materialize(self) -> "Stream":
        """The table that changes make, kept in state: its rows come out once, when the input has ended. `.named("x")`, and
        `app.state("x")` reads it before that. An append stream stays as it is.
        """
        return self._then(Materialize(self._node)) if self._node.changes else self

    # -- out ----------------------------------------------------------------------------------------------------------

    def to(self, sink: str | Sink, *, key: str | None = None, delivery: Delivery = None) -> None:
        """Rows go to this topic or Sink when the app runs. May be said several times. key: the column that is the records' key.

        delivery: "exactly_once": rows are there once a checkpoint covers them, each of them once whatever crashes. "at_least_once": they
        are there at once, and may be there again after a crash. None: exactly once where the sink can and checkpoints are written.
        """
        check_sink(sink, "to", 'to("topic") or to(ParquetSink("out.parquet"))')
        check_delivery(delivery, f"to({sink!r})")
        node = Write(self._node, sink, key, delivery)
        node.check()
        if self._node.changes:
            _check_takes_changes(self._node, sink, key)
        self._owner.write(node)

    def collect(self) -> pa.Table:
        """Runs it now and gives all rows; of changes, those that are there in the end. Bounded inputs only. Also in a notebook."""
        return self._owner.collect(self.materialize()._node)

    def print(self, n: int = 20) -> None:
        """Runs it now and prints the first `n` rows. Bounded inputs only."""
        table = self.collect()
        print(f"{_shown(table.slice(0, n))}\n{table.num_rows} rows")

    def describe(self) -> pa.Table:
        """Runs it now; for each column a row: column, type, count, nulls, distinct, mean, std, min, 25%, 50%, 75%, max.

        mean, std and quartiles of numbers only; min and max as text. How many are distinct and the quartiles are approximate (see
        `approx_count_distinct`, `approx_quantile`). Bounded inputs only.
        """
        schema = self.schema
        found = self.materialize().group_by().aggregate(**aggregates_of(schema)).collect()
        return table_of(schema, found.to_pylist()[0] if found.num_rows else {})

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns. Where no schema was given, the source is asked for it; not for the columns of a topic."""
        return self._owner.schema(self._node)

    def explain(self) -> str:
        """The plan as text: stages, what each does, what is read; where rows are changes."""
        return self._owner.explain(self._node)

    def __repr__(self) -> str:
        return f"Stream({type(self._node).__name__})"

    def _other(self, other: Any, where: str) -> Node:
        if not isinstance(other, Stream):
            raise UserError(f"{where}: {other!r} is no stream", hint="app.stream(…)")
        if other._owner is not self._owner:
            raise UserError(f"{where}: the other stream is of another app", hint="make both with one app")
        return other._node

    def _then(self, node: Node) -> "Stream":
        return _stream(self._owner, node)


class KeyedStream:
    """Rows by key."""

    def __init__(self, owner: Owner, node: Node, keys: tuple[str, ...]) -> None:
        self._owner = owner
        self._node = node
        self._keys = keys
        check_columns("key_by", node, keys)

    def window(
        self,
        window: Window,
        *,
        allowed_lateness: Duration = 0,
        emit_every: Duration | None = None,
        late: str | Sink | None = None,
    ) -> "WindowedStream":
        """Rows of a key put together by event time (or count).

        allowed_lateness: how long after its end a window still takes rows; each time it did, its whole result is emitted again.
        emit_every: early results of windows that are still open, each time event time has gone on by so much.
        late: a topic or Sink for rows that come after that; they are counted in any case.
        """
        if not isinstance(window, Window):
            raise UserError(
                f"window: {window!r} is no window", hint='tumbling("1m"), hopping("1h", "1m"), session("5m")'
            )
        if late is not None:
            check_sink(late, "window: late", 'late="late-orders"')
        every = None if emit_every is None else whole_ms(emit_every, "emit_every")
        if every is not None and isinstance(window, SessionWindow | CountWindow):
            raise UserError("emit_every: sessions and windows by count have no early results", hint="leave it out")
        return WindowedStream(self, window, whole_ms(allowed_lateness, "allowed_lateness"), every, late)

    def aggregate(self, *unnamed: Aggregate, ttl: Duration | None = None, **aggregates: Aggregate) -> Stream:
        """For each row, its key's aggregates so far, the row included. ttl: a key not seen for so long of event time starts anew.

        Of numbers and times: count, sum, min, max, mean, variance, stddev, first, last, any. The others need a window.
        """
        known = aggregates_of_keywords(unnamed, aggregates)
        return _stream(self._owner, RunningAggregate(self._node, self._keys, known, optional_ms(ttl, "ttl")))

    def reduce(
        self,
        function: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]],
        *,
        ttl: Duration | None = None,
    ) -> Stream:
        """For each row, its key's rows so far reduced to one: `function(so_far, row)`, dicts of the same columns."""
        node = Reduce(self._node, self._keys, function_of(function, "reduce"), optional_ms(ttl, "ttl"))
        return _stream(self._owner, node)

    def deduplicate(self, *, within: Duration | None = None) -> Stream:
        """The first row of each key; with `within`, a key counts as new again so long (of event time) after its first row."""
        return _stream(self._owner, Deduplicate(self._node, self._keys, optional_ms(within, "within")))

    def top_n(
        self,
        n: int,
        by: str | Sequence[str],
        *,
        descending: bool | Sequence[bool] = True,
        ties: Ties = "row_number",
        rank: str | None = None,
    ) -> Stream:
        """The first `n` rows of each key in the order of `by`, kept up to date: changes.

        descending: the greatest come first; for several columns, one of each. Null and NaN come last. ties: "row_number": of equal rows
        the first to come; "rank": all rows that have fewer than `n` before them; "dense_rank": all rows of the first `n` values. rank:
        the name of a column that says which place it is (1, 2, …); then each move is an update.
        """
        number, order = order_of("top_n", n, by, descending)
        ties = one_of("top_n: ties", ties, ("row_number", "rank", "dense_rank"))
        return _stream(self._owner, TopN(self._node, self._keys, number, order, ties, rank))

    def process(
        self,
        function: Any,
        *,
        schema: Schema,
        batch: bool = False,
        on_timer: Callable[..., Any] | None = None,
        sides: Mapping[str, Schema] | None = None,
        ttl: Duration | None = None,
    ) -> "ProcessedStream":
        """One's own function over the rows of a key, with its state and its timers: `function(row, ctx)` -> None, a dict, or several.

        schema: of what it gives. function may be an object too (see `sabot.Process`). on_timer: `on_timer(timer, ctx)`. batch: the
        vectorised form, `function(keys, batch, ctx)` and `on_timer(keys, at, ctx)`: no Python per row. sides: name -> schema of rows
        that leave by `ctx.side(name, row)`; `.side(name)` is their stream. ttl: a value of the state is forgotten so long (of event
        time) after it was put. `api/process` describes what `ctx` can do.
        """
        spec = process_spec(function, schema=schema, batch=batch, on_timer=on_timer, sides=sides, ttl=ttl)
        node = Process(self._node, self._keys, spec)
        node.check()
        return ProcessedStream(self._owner, node)

    def over(self, *, preceding: int | Duration | None = None, **columns: Aggregate | OverFunction) -> Stream:
        """Every row, and beside it columns made of the rows of its key up to it, in the order of event time: SQL's OVER.

        preceding: how many rows before it count (5: six with itself), or of how much event time ("1h": also those of equal time that come
        after it); None: all. `total=sabot.sum("x")` and the other aggregates of numbers and times; `sabot.lag("x")`, `lead("x")`,
        `row_number()`, `rank()`, `dense_rank()`. A row comes out when event time has passed it; with lead, when those that follow have
        come.
        """
        if not columns:
            raise UserError("over needs a column to add", hint='over(preceding=5, mean=sabot.mean("price"))')
        rows, ms = None, None
        if isinstance(preceding, int) and not isinstance(preceding, bool):
            rows = preceding
            if rows < 0:
                raise UserError(f"over: preceding={preceding!r} rows", hint="0 or more")
        elif preceding is not None:
            ms = whole_ms(preceding, "preceding")
        for name, each in columns.items():
            if not isinstance(each, Aggregate | OverFunction):
                raise UserError(f"over: {name}={each!r}", hint=f'{name}=sabot.sum("amount"), sabot.lag("amount"), …')
            check_columns(f"over: {name}", self._node, sorted(each.columns))
        known = self._node.column_names or ()
        if taken := [name for name in columns if name in known]:
            raise UserError(f"over: {taken[0]!r} is the name of another column", hint="choose another name")
        return _stream(self._owner, Over(self._node, self._keys, tuple(columns.items()), rows, ms))

    def pattern(
        self,
        pattern: Pattern,
        *,
        skip: Literal["past_last", "to_next", "none"] = "past_last",
        max_partial: int = 10_000,
        **measures: Expr,
    ) -> Stream:
        """A row for each sequence of rows of a key that follows the pattern (`sabot.pattern`), in the order of event time.

        The keys, match_start and match_end (the times of its first and last row, both included), then the measures:
        `n=sabot.step("a").count()`, `amount=sabot.step("b").last("amount")`. skip: where the next match may begin: "past_last" behind the
        last row of this one; "to_next" at the row behind its first; "none": all matches. Rows that come too late are dropped.
        max_partial: of a key, how many matches may be begun and not complete; more stop the job.
        """
        known = check_measures(pattern, skip, measures)
        if isinstance(max_partial, bool) or not isinstance(max_partial, int) or max_partial < 1:
            raise UserError(f"pattern: max_partial={max_partial!r}", hint="a whole number, 1 or more")
        for name, _ in known:
            if name in (*self._keys, MATCH_START, MATCH_END):
                raise UserError(f"pattern: {name!r} is the name of another column", hint="choose another name")
        return _stream(self._owner, Match(self._node, self._keys, pattern, skip, known, max_partial))

    def connect(self, other: "KeyedStream | Stream") -> "ConnectedStreams":
        """This stream and another, processed together: one by the same keys, or a broadcast one: `connect(rules.broadcast())`."""
        if getattr(other, "_owner", self._owner) is not self._owner:
            raise UserError("connect: the other stream is of another app", hint="make both with one app")
        if isinstance(other, Stream) and isinstance(other._node, Broadcast):
            return ConnectedStreams(self, other._node, ())
        if not isinstance(other, KeyedStream) or len(other._keys) != len(self._keys):
            raise UserError(
                f"connect: {other!r} is no stream by {len(self._keys)} keys, and no broadcast one",
                hint='connect(other.key_by("account")), connect(rules.broadcast())',
            )
        return ConnectedStreams(self, other._node, other._keys)

    def __repr__(self) -> str:
        return f"KeyedStream(by {', '.join(self._keys)})"


class ConnectedStreams:
    """Two streams that one step will process."""

    def __init__(self, keyed: KeyedStream, right: Node, right_keys: tuple[str, ...]) -> None:
        self._keyed = keyed
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
    ) -> "ProcessedStream":
        """As KeyedStream.process; `right(row, ctx)` gets the rows of the other stream. State and timers are one, by key.

        Of a broadcast stream every subtask gets all rows; what they say is kept in `ctx.broadcast(name)`, a map that all keys read.
        """
        keyed = self._keyed
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
        node = Connect(keyed._node, self._right, keyed._keys, self._right_keys, spec)
        node.check()
        return ProcessedStream(keyed._owner, node)


class ProcessedStream(Stream):
    """What a process step gives, and what leaves it by its sides."""

    def side(self, name: str) -> Stream:
        """The rows that the functions gave to `ctx.side(name, …)`."""
        node = self._node
        assert isinstance(node, Process | Connect)
        if name not in node.spec.sides:
            known = ", ".join(node.spec.sides) or "none"
            raise UserError(
                f"side({name!r}): the step has no side of that name, but {known}", hint="process(…, sides={…})"
            )
        return _stream(self._owner, Side(node, name))

    def named(self, id: str) -> "ProcessedStream":
        return ProcessedStream(self._owner, super().named(id)._node)


class GroupedStream:
    """Rows by key, of which one is made that changes with them."""

    def __init__(self, keyed: KeyedStream) -> None:
        self._keyed = keyed

    def aggregate(self, *unnamed: Aggregate, **aggregates: Aggregate) -> Stream:
        """The keys, then these: changes. Each batch updates the row of a key once; a key whose last row was taken back is deleted."""
        keyed = self._keyed
        node = GroupAggregate(keyed._node, keyed._keys, aggregates_of_keywords(unnamed, aggregates))
        for name, _ in node.aggregates:
            if name in keyed._keys:
                raise UserError(f"aggregate: {name!r} is the name of another column", hint="choose another name")
        return _stream(keyed._owner, node)

    def __repr__(self) -> str:
        return f"GroupedStream(by {', '.join(self._keyed._keys)})"


class WindowedStream:
    """Rows by key and window."""

    def __init__(
        self,
        keyed: KeyedStream,
        window: Window,
        allowed_lateness_ms: int,
        emit_every_ms: int | None,
        late: str | Sink | None,
    ) -> None:
        self._keyed = keyed
        self._window = window
        self._allowed_lateness_ms = allowed_lateness_ms
        self._emit_every_ms = emit_every_ms
        self._late = late

    def aggregate(self, *unnamed: Aggregate, **aggregates: Aggregate) -> Stream:
        """One row for each key and window: the keys, window_start, window_end (end exclusive), then these."""
        keyed = self._keyed
        node = AggregateWindow(
            keyed._node,
            keyed._keys,
            self._window,
            aggregates_of_keywords(unnamed, aggregates),
            self._allowed_lateness_ms,
            self._emit_every_ms,
            self._late,
        )
        for name, _ in node.aggregates:
            if name in (*keyed._keys, "window_start", "window_end"):
                raise UserError(f"aggregate: {name!r} is the name of another column", hint="choose another name")
        return _stream(keyed._owner, node)

    def top_n(
        self,
        n: int,
        by: str | Sequence[str],
        *,
        descending: bool | Sequence[bool] = True,
        ties: Ties = "row_number",
        rank: str | None = None,
    ) -> Stream:
        """The first `n` rows of each key and window in the order of `by`, when the window closes: the row, window_start, window_end.

        The words as in KeyedStream.top_n. Tumbling, hopping and cumulative windows.
        """
        keyed, window = self._keyed, self._window
        if not isinstance(window, TumblingWindow | HoppingWindow | CumulativeWindow) or self._emit_every_ms is not None:
            raise UserError(
                "top_n: only of tumbling, hopping and cumulative windows, at their end", hint='window(tumbling("1m"))'
            )
        number, order = order_of("top_n", n, by, descending)
        ties = one_of("top_n: ties", ties, ("row_number", "rank", "dense_rank"))
        node = WindowTopN(
            keyed._node, keyed._keys, window, number, order, ties, rank, self._allowed_lateness_ms, self._late
        )
        return _stream(keyed._owner, node)

    def __repr__(self) -> str:
        return f"WindowedStream({self._window})"


def _stream(owner: Owner, node: Node) -> Stream:
    """The checked next step."""
    node.check()
    return Stream(owner, node)


def _with_id(node: Node, id: str) -> Node:
    if hasattr(node, "id"):
        if node.id:
            raise UserError(f"named: this step is called {node.id!r} already", hint="name it once")
        return replace(node, id=id)  # type: ignore[call-arg]
    if len(node.inputs) != 1:
        hint = "call it right behind the step that keeps state: aggregate, join, top_n, …"
        raise UserError(f"named({id!r}): no step before this place keeps state", hint=hint)
    return node.over(_with_id(node.inputs[0], id))


def _check_keep(node: Join) -> None:
    """Changes say by themselves how long rows stay, and of some right sides all rows are needed."""
    for name, side, ms in zip(("this", "the other"), node.inputs, node.keep_ms, strict=True):
        if ms is not None and side.changes:
            raise UserError(f"join: keep= of {name} stream, which is changes: they say how long its rows are kept")
    if node.keep_ms[1] is not None and (node.how in ("semi", "anti") or isinstance(node.right, Broadcast)):
        raise UserError(
            f"join: of the other stream {'that is broadcast' if node.how not in ('semi', 'anti') else f'of how={node.how!r}'} "
            "all rows are kept",
            hint="keep=(…, None); between=(…) says how near a partner must be",
        )


def _check_broadcast(node: Join) -> None:
    """Rows of the left stay where they are, and none of the subtasks knows of those of the others."""
    by_time = type(node) is not Join
    if by_time or node.how in ("right", "full"):
        raise UserError(
            f"join: a broadcast stream cannot be joined {'by time' if by_time else repr(node.how)}",
            hint='how="inner", "left", "semi" or "anti", without between= and window=; or without .broadcast()',
        )
    if node.left.changes:
        raise UserError(
            "join: a stream of changes cannot be joined with a broadcast one", hint="leave .broadcast() out"
        )


def _check_takes_changes(node: Node, sink: str | Sink, key: str | None) -> None:
    """A sink gets changes only where it can keep them, by a key that the program says."""
    name = repr(sink) if isinstance(sink, str) else f"{type(sink).__name__}({sink.name!r})"
    if not isinstance(sink, str) and not sink.takes_changes:
        raise UserError(
            f"to({name}): the rows are changes (updates and deletes of earlier ones), and this sink can only add rows",
            hint=".materialize().to(…) writes the final rows, .changelog().to(…) each change as a row; "
            "a topic or a SqlSink takes .upsert(key)",
        )
    if not node.upserted:
        unique = node.unique
        hint = f".upsert({', '.join(map(repr, unique))})" if unique else '.upsert("key")'
        raise UserError(
            f"to({name}): the rows are changes (updates and deletes of earlier ones), and nothing says which row they change",
            hint=f"{hint}.to(…) keeps the last row of each key; .materialize() writes the final rows, .changelog() each change as a row",
        )
    if node.unique is None:
        raise UserError(f"to({name}): the key of the upsert is gone", hint="keep its columns in select and drop")
    if key is not None:
        raise UserError(f"to({name}): the key of an upsert is its own", hint="leave key= out")


def _shown(table: pa.Table) -> str:
    """A table as text, in columns."""
    columns = [
        [name, *(str(value) for value in table.column(i).to_pylist())] for i, name in enumerate(table.column_names)
    ]
    if not columns:
        return "(no columns)"
    widths = [max(map(len, cells)) for cells in columns]
    rows = zip(*columns, strict=True)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
