"""Streams as users write them: a graph of descriptions. Building the graph runs nothing.

    app.stream("transactions", schema=..., time="ts", lateness="5s")
        .filter(col("amount") > 10).key_by("account").window(tumbling("1m")).aggregate(n=count())
        .to("account_minutes")

A `Stream` is the rows after one step. Each method returns a new stream, and `to` names a sink for the rows. The steps
are the nodes of `api/nodes`; `engine/plan/` makes stages of them. A step is checked when it is written, as far as its
columns are known.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, Never, TypeAlias, Unpack, overload

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
from sabot.api.describe import EXACT_ROWS, aggregates_of, figures_of, table_of
from sabot.api.elsewhere import STREAMS, TOTALS, WINDOWS, StreamKind
from sabot.api.expr import Expr, col
from sabot.api.formats import sink_format
from sabot.api.functions import process_spec
from sabot.api.group_functions import applied
from sabot.api.model_engine import ModelEngine, checked_engine
from sabot.api.nodes.agents import Feed
from sabot.api.nodes.calls import MapAsync
from sabot.api.nodes.changes import Changelog, GroupAggregate, Materialize, Upsert, sort_node
from sabot.api.nodes.functions import Connect, Process, Side
from sabot.api.nodes.joins import JoinHow
from sabot.api.nodes.keyed import Deduplicate, Over, Reduce, RunningAggregate, Ties, TopN
from sabot.api.nodes.node import Node, check_columns, walk, with_id
from sabot.api.nodes.patterns import Match
from sabot.api.nodes.read import Read, Write
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
from sabot.api.nodes.times import InTimeOrder, with_time_node
from sabot.api.nodes.windows import AggregateWindow, WindowTopN
from sabot.api.over import OverFunction
from sabot.api.patterns import MATCH_END, MATCH_START, Overlap, Pattern, Skip, check_measures, columns_of_match
from sabot.api.stream.joins import asof_node, join_node, keyed_sides, lookup_async_node, lookup_node, without_made
from sabot.api.stream.looks import Looks, Shown
from sabot.api.stream.outputs import check_takes_changes, late_sink, place_of
from sabot.api.stream.owner import Owner
from sabot.api.windows import CountWindow, SessionWindow, TimeWindow, Window
from sabot.base.arrays import python_value
from sabot.base.checks import FLAG, Of, OneOf, Whole, check, is_whole
from sabot.base.config import Duration
from sabot.base.dataclass import dataclass
from sabot.base.options import spells_out
from sabot.codecs.base import Format
from sabot.connectors.base import Delivery, OnNan, Sink, Source
from sabot.connectors.checks import check_delivery, check_nan, check_sink
from sabot.errors import UserError

LateRows: TypeAlias = str | Sink | Source | list[Any] | None
"""The place for late rows of a step: a topic, a sink or a list; None: they are dropped."""

Late: TypeAlias = LateRows | tuple[LateRows, LateRows]
"""The places for late rows of a join: one for both streams, or a pair (for this stream, for the other one)."""


@dataclass(frozen=True)
class Steps:
    """The basis of every kind of stream: `node` is the last step, from which all steps before it can be reached, and
    `owner` is the app.
    """

    owner: Owner
    node: Node

    def then(self, node: Node) -> "Stream":
        """Checks a further step, and returns the stream after it. Raises UserError if the step is not possible."""
        node.check()
        _ = node.changes  # asked of each step in turn: only of the last of many, one answer would call for the next
        return Stream(self.owner, node)

    def then_aggregate(self, node: Node, aggregates: tuple[tuple[str, Aggregate], ...], computed: Computed) -> "Stream":
        """Checks a step that computes these aggregates, and returns the stream after it. `computed`: results that are
        expressions over the aggregates; aggregates that only occur in such expressions are not in the stream. It is
        empty if there are none.
        """
        stream = self.then(node)
        made, results = {name for name, _ in aggregates}, dict(computed)
        if not results:
            return stream
        if node.column_names is not None:
            return stream.select(*(name for name in node.column_names if name not in made), **results)
        own = {name: expr for name, expr in computed if name not in made}
        return stream.with_columns(**own).drop([*made.difference(results)])

    def then_process(self, node: Process | Connect) -> "ProcessedStream":
        """Checks a process step, which may have output branches (`side`), and returns the stream after it. Raises
        UserError if the step is not possible.
        """
        node.check()
        return ProcessedStream(self.owner, node)

    @staticmethod
    def of(stream: object) -> "Steps | None":
        """Returns the steps of a Stream; None for any other object, such as a KeyedStream."""
        return Steps(stream._owner, stream._node) if isinstance(stream, Stream) else None


_NO_NAMES: Mapping[str, str] = MappingProxyType({})
_ROWS = "rows of apply"  # the column with the results of a window, between two steps
_COLUMN = Of(str | None, 'the name of a new column: rank="place"')


class Stream(Looks, StreamKind):
    """The rows after a step. A stream is immutable: every method returns a new stream. Nothing runs before the app
    runs, or `collect` is called.

    Most streams are append-only: a row that was emitted stays as it is. `group_by`, `upsert`, `top_n` and outer joins
    emit changes: rows, and later updates and deletes of these rows. A step that cannot process changes raises
    UserError when it is added.

    All methods raise UserError for arguments that do not fit the stream, such as the name of a column that it does
    not have.
    """

    _elsewhere = STREAMS | TOTALS

    def __init__(self, owner: Owner, node: Node) -> None:
        self._owner = owner
        self._node = node

    # -- rows and columns ---------------------------------------------------------------------------------------------

    def filter(self, *predicates: Expr, **constraints: Any) -> "Stream":
        """Keeps the rows for which all predicates are true. A row for which a predicate is null is dropped.

        `constraints`: values that columns have to equal: `filter(carrier="UA")` is `filter(col("carrier") == "UA")`.
        """
        if not predicates and not constraints:
            raise UserError("filter needs a predicate", hint='filter(col("amount") > 10), filter(carrier="UA")')
        node = self._node
        for predicate in (*predicates, *(col(name) == value for name, value in constraints.items())):
            node = Filter(node, expression_of(predicate, "filter"))
        return self._then(node)

    def select(self, *columns: str | Expr | Sequence[str | Expr], **named: Expr | Any) -> "Stream":
        """Keeps these columns, in this order: names, expressions, or name=expression. Raises UserError if two of them
        have the same name, or if there is none.
        """
        chosen = named_columns_of(columns, named, "select")
        if not chosen:
            raise UserError("select: no columns are given", hint='name those to keep: select("a", "b")')
        return self._then(Select(self._node, chosen))

    def with_columns(self, *columns: Expr, **named: Expr | Any) -> "Stream":
        """Adds columns, or replaces columns of the same name. All expressions use the columns as they were before
        this step.
        """
        return self._then(WithColumns(self._node, named_columns_of(columns, named, "with_columns")))

    def drop(self, *names: str | Sequence[str]) -> "Stream":
        """Removes these columns."""
        return self._then(Drop(self._node, column_names(flat(names), "drop")))

    def rename(self, names: Mapping[str, str] = _NO_NAMES, *more: Never, **named: Never) -> "Stream":
        """Renames columns. `names` is {old name: new name}. Raises UserError for any other arguments, such as
        `columns=` of pandas.
        """
        if more or named or not isinstance(names, Mapping):
            pairs = (names, *more) if isinstance(names, str) and len(more) == 1 else ("amount", "total")
            meant = named.get("columns", dict([pairs]))
            raise UserError("rename takes one dict, {old name: new name}", hint=f"rename({meant!r})")
        column_names([*names, *names.values()], "rename")
        return self._then(Rename(self._node, tuple(names.items())))

    def with_time(
        self,
        time: str | Expr,
        *,
        lateness: Duration = 0,
        time_unit: TimeUnit | None = None,
        time_format: str | None = None,
        time_zone: str | None = None,
    ) -> "Stream":
        """Gives the rows another event time, which later windows and joins use.

        The arguments are those of `App.stream`. For a row whose value is not a time, the policy of `on_error`
        applies.
        """
        return self._then(with_time_node(self._node, time, time_unit, time_format, time_zone, lateness))

    def on_error(self, policy: RowPolicy) -> "Stream":
        """Sets what happens to rows for which an expression or a function of a later step fails. Without this call, the
        argument `on_error=` of `App.stream` applies, by default "dead_letter". `collect` and `print` have no dead
        letters: in them, "dead_letter" means "fail".

        `policy`: "dead_letter" sends the row to the dead letters of its source; "null" replaces the failed value by
        null; "fail" stops the app with an error that names the row.
        """
        return self._then(OnError(self._node, row_policy("on_error", policy)))

    def map_batches(
        self,
        function: Callable[[pa.RecordBatch], Any],
        *,
        schema: Schema | None = None,
        on_error: RowPolicy | None = None,
        rows: int | None = None,
    ) -> "Stream":
        """Calls `function(batch: pa.RecordBatch)` for the rows. It returns Arrow data (such as a pa.RecordBatch or a
        data frame of polars), or None for no rows.

        - `schema`: the columns of the result; without it, the function is called once with an empty batch to find
          them.
        - `on_error`: the policy for this step, see `Stream.on_error`. If the function raises an error, it is called
          again with halves of the batch, until the failing rows are found; so it may get a row more than once.
        - `rows`: the most rows of a call. The source is then also read in pieces of this size, so that a checkpoint
          need not wait for many rows of a slow function.

        If windows follow, event time is read again from its column, if the result has this column; otherwise the
        result must have as many rows as the batch. Raises UserError if the rows are changes (updates and deletes of
        earlier rows).
        """
        return self._then(map_batches_node(self._node, function, schema, on_error, rows))

    def flat_map(
        self, function: Callable[[dict[str, Any]], Any], *, schema: Schema, on_error: RowPolicy | None = None
    ) -> "Stream":
        """Calls `function(row: dict)` for each row. It returns the rows of the result: None, a dict, or an iterable of
        dicts.

        `schema`: the columns of the result. A column that a row lacks is null; a row with another column is an error.
        `on_error`: the policy for this step, see `Stream.on_error`. Python runs for each row, so `map_batches` is
        faster. Raises UserError if the rows are changes (updates and deletes of earlier rows).
        """
        return self._then(flat_map_node(self._node, function, schema, on_error))

    def explode(self, *columns: str | Sequence[str], empty_as_null: bool = False, keep_nulls: bool = True) -> "Stream":
        """Makes a row of each value of the list in this column, and repeats the other columns.

            id  tags                 id  tags
            1   ["a", "b"]    ->     1   "a"
            2   []                   1   "b"
            3   null                 3   null

        A null list becomes one row with null, and an empty list becomes no row, as in polars 2. With
        `empty_as_null=True` an empty list also becomes a row with null; with `keep_nulls=False` a null list becomes no
        row. Lists of several columns are exploded together. If their lengths differ in a row, this row has failed, and
        the policy of `Stream.on_error` decides what happens to it.

        Raises UserError for an expression, for no column or a repeated one, and if the rows are changes (updates and
        deletes of earlier rows).
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
        """Emits the first `n` rows (0 or more), in order of arrival over all subtasks, and no rows after them.

        The count is part of the checkpoint, so n rows are emitted in total, after any crash and with any parallelism.
        With several readers or partitions, the order of arrival may differ from run to run. The input is still read
        to its end (an endless one for ever), for its event time, and because other streams may read it too. Raises
        UserError if the rows are changes (updates and deletes of earlier rows).
        """
        n = python_value(n)
        if not is_whole(n, 0):
            raise UserError(
                f"head: {n!r} is not a number of rows",
                hint="a whole number, 0 or more; which rows are last is known only at the end",
            )
        return self._then(Head(self._node, n))

    def sample(self, fraction: float, *, seed: int = 0) -> "Stream":
        """Keeps a random sample: each row passes with the probability `fraction` (0 to 1).

        `seed`: the seed of the random number generator, a whole number from 0 up. The same rows, in the same order and with the same
        parallelism, give the same sample.
        """
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
            raise UserError(f"sample: {fraction!r} is not a fraction of the rows", hint="from 0 to 1: sample(0.1)")
        seed = check("sample: seed", python_value(seed), Whole())
        return self._then(Sample(self._node, float(fraction), seed))

    def split(self, predicate: Expr) -> tuple["Stream", "Stream"]:
        """Returns two streams: the rows for which the predicate is true, and all other rows, also those for which it is null."""
        yes = expression_of(predicate, "split")
        return self.filter(yes), self.filter(~yes.fill_null(False))

    # -- keys and time ------------------------------------------------------------------------------------------------

    def key_by(self, *keys: str | Expr, **named: str | Expr) -> "KeyedStream":
        """Groups rows by key, for steps that work on each key separately.

        Keys are names of columns, or expressions: `key_by("shop", day=col("ts").dt.date())`. Null is a key like any
        other.
        """
        node, names, _ = self._with_keys(keys, named)
        return KeyedStream(Steps(self._owner, node), names)

    def _with_keys(
        self, keys: Sequence[str | Expr], named: Mapping[str, str | Expr] | None = None, where: str = "key_by"
    ) -> tuple[Node, tuple[str, ...], list[str]]:
        """Returns three values: a step that has the keys as columns, the names of the key columns, and the names of
        those that were added for keys that are expressions.
        """
        if not keys and not named:
            raise UserError(f"{where} needs a column", hint=f'{where}("account")')
        pairs = named_columns_of(keys, named or {}, where)
        made = tuple((name, expr) for name, expr in pairs if not expr.same(col(name)))
        known = self._node.column_names or ()
        for name, expr in made:
            if name in expr.columns or name in known:
                raise UserError(
                    f"{where}: {expr!r} would take the place of column {name!r}",
                    hint=f"{where}({name}_key=…)" if name in (named or {}) else 'give it another name: .alias("…")',
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
        late: LateRows = None,
    ) -> "WindowedStream":
        """Groups all rows by window, without a key. The arguments are those of `KeyedStream.window`."""
        return KeyedStream(Steps(self._owner, self._node), ()).window(
            window, allowed_lateness=allowed_lateness, emit_every=emit_every, late=late
        )

    def aggregate(self, *unnamed: Aggregate, **aggregates: Aggregate | Expr) -> "Stream":
        """Emits for each row the aggregates of all rows so far, including this one. See `KeyedStream.aggregate`."""
        return KeyedStream(Steps(self._owner, self._node), ()).aggregate(*unnamed, ttl=None, **aggregates)

    def deduplicate(self, *keys: str | Expr, within: Duration | None = None) -> "Stream":
        """Keeps the first row of each key, in order of arrival.

        `keys`: names of columns, or expressions. `within`: when so much event time has passed since the first row of
        a key, the next row of the key counts as a first row again; None keeps the keys for ever.
        """
        node, names, made = self._with_keys(keys, where="deduplicate")
        firsts = KeyedStream(Steps(self._owner, node), names).deduplicate(within=within)
        return firsts.drop(*made) if made else firsts

    def named(self, id: str) -> "Stream":
        """Gives an id to the last step that keeps state, such as `aggregate`, `join` or `top_n`.

        The state is restored by this id, even if other steps of the program have changed; and `sabot state` and
        `app.state(id)` can read it. `id`: at most 80 letters, digits, "_", "-" and ".". Raises UserError if no step
        before this call keeps state, or if the step already has an id.
        """
        if not isinstance(id, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", id):
            raise UserError(
                f"named: {id!r} is not an id", hint='letters, digits, "_", "-" and ".", at most 80: "totals"'
            )
        return self._then(with_id(self._node, id))

    # -- several streams ----------------------------------------------------------------------------------------------

    def union(self, *others: "Stream") -> "Stream":
        """Returns a stream with the rows of this stream and of the others. All must have the same columns, in the
        same order.
        """
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
        """Joins rows of two streams whose keys are equal. The result has the columns of this stream, then those of
        the other one without its keys.

        - `on`: the key columns that both streams have. In its place, `left_on=` and `right_on=` name the keys of this stream
          and of the other one. Expressions are allowed, such as `left_on=col("name").str.lower()`; the computed key is not a
          column of the result. As in SQL, null equals nothing.
        - `how`: "inner", "left", "right", "full", "semi" (rows of this stream that have a partner), or "anti" (rows
          that have none).
        - `suffix`: the text added to the name of a column of the other stream, if this stream has a column of that
          name.

        The following arguments decide which rows are joined, and how long the state keeps rows:

        - `between=("-1h", "5m")`: pairs whose other row has an event time from 1 h before to 5 min after the time
          of this row, both included; None leaves an end open. Older rows are dropped from the state. A row without
          a partner is emitted when no partner can arrive any more.
        - `window=tumbling("1m")`: pairs within one window, emitted when it closes, with `window_start` and
          `window_end`.
        - Neither `between` nor `window`: all pairs, for ever. The state grows with the rows. Except for "inner" and "semi"
          the result is changes: a row that was emitted without a partner is retracted when one arrives.
        - `keep=("1h", "1d")`, without `between` and `window`: rows of this stream are deleted from the state one hour of
          event time after their own time, rows of the other one after a day (None keeps them). Results that were emitted are
          not retracted. Unlike with `between=`, the result depends on the order in which rows arrive.

        - `max_drift`: the greatest distance in event time by which a source is read ahead of the others, in joins
          by event time. Records that are ahead wait, so that a backlog of one side does not fill the state. None sets
          no limit.
        - `late`: a topic, Sink or list for rows that arrive too late, with `between=` or `window=`; or a pair, for this
          stream and for the other one. "{topic}.dlq" makes them dead letters of their source. Late rows are counted
          in any case.

        `other.broadcast()` marks the other stream as small: each subtask gets all of it, and rows of this stream are
        not repartitioned. With "inner", "left", "semi" and "anti" the other stream may lack event time. Its rows then
        apply from their arrival. If that stream ends (files), it is read first, unless both are made of the same
        `app.stream(…)`.

        The event time of a pair is the later of the two. Both streams may be changes, unless `between=` or `window=`
        is given. Raises UserError for streams of two apps, and for keys or bounds that do not fit.
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
        """Joins each row with the row of the other stream that was valid for its key at its event time: by default
        the last one at or before this time.

        The other stream has versions of a value (prices, rates, addresses). Each is valid from its event time until
        the next one of its key; in a table (`app.table`, `upsert`), a deletion also ends its validity. A row is
        emitted when event time has passed it in both streams.

        - `strategy`: "backward" (the last row at or before), "forward" (the first row at or after), or "nearest".
        - `tolerance`: the largest distance in event time; "forward" and "nearest" require it.
        - `how`: "left" keeps rows without a partner, with nulls; "inner" drops them.

        Keys, `max_drift`, `late` and `suffix` are those of `join`. Raises UserError in the same cases as `join`.
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
        """Adds to each row the columns that a table, or a coroutine function, has for its key when the row arrives.

        Later changes of the table do not change rows that were emitted. A table that ends (files) is read before the
        first row of this stream. If the table does not end, or if both are made of the same `app.stream(…)`, the
        result depends on the order in which their rows arrive; use `join_asof` if it must not.

        - `table`: a table (`app.table(…)`); another stream, of which the last row of each key is used; or `async def
          f(key)`, which returns a dict of the columns `schema`, or None: `lookup(f, on="account", schema={...})`. A
          small table may be `.broadcast()`, so that rows of this stream stay in their subtasks.
        - `on`, `left_on`, `right_on`: the keys, as in `join`.
        - `how`: "left" keeps rows without an answer, with nulls; "inner" drops them.
        - `suffix`: the text added to the name of an added column, if this stream has a column of that name.

        The following arguments are for a function only, and raise UserError with a table. `options` are the fields of
        `LookupOptions`: the columns of the answer (`schema`), the cache of answers, and the limits of the calls.

        - `dead_letter`: the topic or Sink for rows whose calls failed; it requires `on_error="skip"`.
        """
        if not isinstance(table, Stream):
            one_sided = left_on is None and right_on is None
            return self._then(
                lookup_async_node(self._node, table, on if one_sided else None, how, suffix, dead_letter, options)
            )
        if options or dead_letter is not None:
            given = ", ".join([*options, *(["dead_letter"] if dead_letter is not None else [])])
            raise UserError(
                f"lookup: {given} cannot be given with a table",
                hint="only a lookup by a coroutine function has these arguments",
            )
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
        """Calls `async def function(row: dict)` for each row. It returns a dict of the columns `schema`, a list of
        dicts, or None for no row; it may also yield dicts.

        The calls run on the event loop of the app. A watermark never overtakes a row, whatever the order of the
        results. If the function raises `Overloaded`, fewer calls run at a time, and the call is repeated. Calls in
        flight are part of the checkpoint: a call that had not ended is repeated after a restart. Raises UserError if
        the function is not async.

        `options`: the fields of `MapAsyncOptions`, such as the number of calls at a time, their timeout, and
        `on_error`.

        `dead_letter`: the topic or Sink for rows whose calls failed; it requires `on_error="skip"`.
        """
        call = AsyncCall.of(function, schema=schema, **options)
        if dead_letter is not None:
            check_sink(dead_letter, "map_async: dead_letter")
        return self._then(MapAsync(self._node, call, dead_letter))

    def map_llm(
        self,
        prompt: str | Expr | Callable[[pa.RecordBatch], Any],
        engine: ModelEngine[Any],
        *,
        output: Any = None,
        instructions: str = "",
        concurrency: int | None = None,
        ordered: bool = True,
        on_error: Literal["fail", "skip"] = "fail",
        dead_letter: str | Sink | None = None,
        cache: int = 10_000,
        allow_cut: bool = False,
        **fields: Any,
    ) -> "Stream":
        """Adds to each row the answer of a model to the row's prompt. Equal prompts are sent once.

        - `prompt`: a template over columns, "Sentiment of: {text}"; an expression; or a function of a RecordBatch
          that returns a text for each row. If the prompt of a row is null (or a column in it is), the model is not
          asked, and the answer is null.
        - `output`: the columns of the answer, {"label": "string", "score": "float64"}; a Struct, dataclass, TypedDict
          or pydantic model, with a column for each field; or the name of a column for the text, by default "content".
        - `instructions`: the system message before each prompt. `fields`: further fields of the request (model,
          temperature, max_tokens, …), without tools.
        - `concurrency`: the number of prompts in flight in each subtask; by default as many as the engine's limits
          allow.
        - `cache`: the number of answers that are kept; the most recently used ones are kept.
        - `ordered`, `on_error`, `dead_letter`: the same as in `map_async`. The engine repeats failed attempts itself.
        - `allow_cut`: True to take texts that were cut off at `max_tokens`, filtered or empty too. A further column
          "finish_reason" then says how each answer has ended. By default such an answer fails its row.

        Prompts in flight are part of the checkpoint: a prompt without an answer is sent again after a restart.
        """
        options = {"concurrency": concurrency, "ordered": ordered, "on_error": on_error, "cache": cache}
        options["allow_cut"] = allow_cut
        asked, judge = checked_engine(engine, "map_llm"), self._owner.judge
        return self._then(
            asked.stream_step(self._node, prompt, output, instructions, dead_letter, options, fields, judge)
        )

    def broadcast(self) -> "Stream":
        """Returns this stream, marked so that each subtask of the next step gets all of its rows. It is for the small
        side of `join` or `lookup`, and for the rules of `connect`.
        """
        return self._then(Broadcast(self._node))

    # -- changes ------------------------------------------------------------------------------------------------------

    @property
    def changes(self) -> bool:
        """True if the rows are changes: besides inserts, they are updates and deletes of earlier rows. The methods
        `changelog`, `materialize` and `upsert` can process changes.
        """
        return self._node.changes

    def group_by(self, *keys: str | Expr, **named: str | Expr) -> "GroupedStream":
        """Groups rows by key, for aggregates with one result row per key that is kept up to date: SQL's GROUP BY.

        Keys are names of columns, or expressions: `group_by(day=col("ts").dt.date())`. Without keys, all rows are one
        group.
        """
        node, names, _ = self._with_keys(keys, named, "group_by") if keys or named else (self._node, (), [])
        return GroupedStream(Steps(self._owner, node), names)

    def upsert(self, *keys: str) -> "Stream":
        """Returns the changes of a table that has the last row of each key.

        Each row of an append-only stream replaces the earlier row of its key. If this stream is already changes,
        `upsert` only names the key that a sink uses: rows of one key replace each other, and a key that has no row
        any more is deleted (in a topic, by a tombstone). Raises UserError without a key.
        """
        if not keys:
            raise UserError("upsert needs the key", hint='upsert("account")')
        return self._then(Upsert(self._node, column_names(flat(keys), "upsert")))

    def changelog(self) -> "Stream":
        """Turns each change into a row of an append-only stream. Its first column `op` is "insert", "update_before",
        "update_after" or "delete".

        Raises UserError if the rows are not changes.
        """
        if not self._node.changes:
            raise UserError(
                "changelog: these rows are no changes", hint="it follows group_by, upsert, top_n or an outer join"
            )
        return self._then(Changelog(self._node))

    def materialize(self) -> "Stream":
        """Applies changes to a table in the state, and emits the rows of the table once, when the input has ended. An
        append-only stream is returned unchanged.

        With `.named("x")`, `app.state("x")` can read the table before the input has ended.
        """
        return self._then(Materialize(self._node)) if self._node.changes else self

    def sort(
        self,
        by: str | Sequence[str],
        *more_by: str,
        descending: bool | Sequence[bool] = False,
        nulls_last: bool | Sequence[bool] = False,
    ) -> "Stream":
        """Emits the rows in the order of these columns, when the input has ended. If the rows are changes, it emits
        the final rows.

        A stream without an end can only be sorted by its event time: the first column must be its column of event
        time, ascending. Rows are then emitted when event time has passed them. Later steps that divide rows by key do
        not keep the order.

        `descending`, `nulls_last`: one value for all columns, or one for each. NaN is greater than all numbers. If
        the rows need more memory than `memory_budget=`, they are sorted on disk, if the app has a `state=` directory.
        Raises UserError for any other order of a stream without an end.
        """
        return self._then(sort_node(self._node, [by, *more_by], descending, nulls_last))

    def sorted(self, *, within: Duration = 0, late: LateRows = None) -> "Stream":
        """Emits the rows in the order of their event time. A row is emitted when event time has passed it. Rows of
        equal time keep their order of arrival. All rows are sorted by one task, and rows that wait are in memory.

        - `within`: how much longer rows wait, in event time, in addition to the stream's `lateness=`. Rows that
          arrive after that are late. For later steps no emitted row is late.
        - `late`: a topic, Sink or list for late rows; "{topic}.dlq" makes them dead letters of their source. With
          None, late rows are dropped and counted.

        Raises UserError for a stream without event time.
        """
        return self._then(InTimeOrder(self._node, whole_ms(within, "sorted: within"), late_sink(late, "sorted: late")))

    # -- out ----------------------------------------------------------------------------------------------------------

    def to(
        self,
        sink: str | Sink | Source | list[Any] | Callable[..., Any],
        *,
        key: str | None = None,
        delivery: Delivery = None,
        nan: OnNan = None,
        format: str | Format | None = None,
    ) -> None:
        """Writes the rows to this topic, Sink, list or agent when the app runs. It may be called several times for
        one stream.

        - `key`: the column whose value is the key of the records of a topic.
        - `delivery`: "exactly_once" makes rows visible when a checkpoint contains them, each exactly once after any
          crash. "at_least_once" makes them visible at once; they may be repeated after a crash. By default it is
          exactly once if the sink supports it and checkpoints are written.
        - `nan`: what happens to floats that the format of the sink cannot represent (NaN and infinities in JSON, NaN
          in SQLite): "null" writes null, "fail" stops the app before the batch is written, and None writes null with
          a warning for each column.
        - `format`: the format of the records of a topic: "json" (the default), "csv", "raw", "arrow", Avro(…),
          Protobuf(…); see docs/formats.md.

        Special sinks:

        - `files("s3://bucket/folder/", "parquet")` is an ObjectSink here.
        - A list gets each row as a dict, at least once.
        - An agent is given by its function, declared with `@app.agent()`. There is no topic in between, and the
          agent's checkpoints contain the rows. A record agent gets each row as if it came from JSON, a batch agent
          gets columns. The rows must not be changes, and `delivery`, `nan` and `format` must not be given.

        Raises UserError for options that the sink does not have, and for changes that it cannot write.
        """
        place = place_of(sink, "to")
        check_nan(nan, f"to({place!r})")
        if callable(place) and not isinstance(place, str | Sink):
            for name, value in (("nan", nan), ("format", format)):
                if value is not None:
                    raise UserError(f"to({place!r}): {name}= is for sinks, and this is an agent", hint="leave it out")
            self._feed(self._owner.agent_of(place), key, delivery)
            return
        check_sink(place, "to", 'to("topic") or to(ParquetSink("out.parquet"))')
        check_delivery(delivery, f"to({place!r})")
        written = sink_format(format, place, f"to({place!r})", keyed=key is not None or self._node.changes)
        if key is not None and isinstance(place, Sink) and place.format is None:
            raise UserError(
                f"to({place!r}): key= is for records, and this sink stores columns",
                hint='leave it out; .upsert("id") before .to(SqlSink(…)) replaces the row of a key',
            )
        node = Write(self._node, place, key, delivery, nan, written)
        node.check()
        if self._node.changes:
            check_takes_changes(self._node, place, key)
        self._owner.write(node)

    def _feed(self, agent: AgentSpec, key: str | None, delivery: Delivery) -> None:
        if delivery is not None:
            raise UserError(
                f"to(agent {agent.agent_id}): delivery= is for sinks; rows reach an agent's state exactly once",
                hint="set it for the agent's own sink: @app.agent(sink=…, delivery=…)",
            )
        node = Feed(self._node, agent, key)
        node.check()
        self._owner.write(node)

    def describe(self) -> pa.Table:
        """Runs the stream now, and returns a table with one row per column: column, type, count, nulls, distinct,
        mean, std, min, 25%, 50%, 75%, max.

        Mean, std and quartiles are computed for numbers only; min and max are texts. Up to 1,000,000 rows are kept in
        memory, and all statistics are exact. A stream with more rows is read twice, in bounded memory, and its
        distinct count and its quartiles are estimates (`approx_count_distinct`, `approx_quantile`). A topic is read
        up to its present end.
        """
        schema = self.schema
        ended = Stream(self._owner, self._owner.ended(self._node))
        rows = ended.collect(limit=EXACT_ROWS + 1)
        if rows.num_rows <= EXACT_ROWS:
            return table_of(schema, figures_of(rows))
        found = ended.materialize().group_by().aggregate(ttl=None, **aggregates_of(schema)).collect()
        return table_of(schema, found.to_pylist()[0])

    @property
    def schema(self) -> pa.Schema:
        """The names and types of the columns.

        If the schema is not declared, the source is read to infer it: a file, or the first records of a topic. Raises
        UserError for a topic without a schema and without records.
        """
        if any(isinstance(each, Read) and each.found_schema() is None for each in walk([self._node])):
            return Stream(self._owner, self._owner.ended(self._node)).collect(limit=0).schema
        return self._owner.schema(self._node)

    def _other(self, other: Any, where: str) -> Node:
        if not isinstance(other, Stream):
            raise UserError(f"{where}: {other!r} is not a stream", hint="app.stream(…)")
        if other._owner is not self._owner:
            raise UserError(f"{where}: the other stream belongs to another app", hint="make both with one app")
        return other._node

    def _then(self, node: Node) -> "Stream":
        return Steps(self._owner, self._node).then(node)


class ProcessedStream(Stream):
    """The main output of a process step. `side` returns its other output branches."""

    def side(self, name: str) -> Stream:
        """Returns the stream of the rows that the functions have emitted with `ctx.side(name, …)`. Raises UserError
        for a name that is not in `sides=`.
        """
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


class KeyedStream(Shown, StreamKind):
    """Rows with a key: the methods work on the rows of each key separately."""

    _made_by = 'key_by("column")'
    _ends_in = "aggregate(…), over(…), process(…)"

    def __init__(self, steps: Steps, keys: tuple[str, ...]) -> None:
        self._steps, self._owner, self._node = steps, steps.owner, steps.node
        self._keys = keys

    def window(
        self,
        window: Window,
        *,
        allowed_lateness: Duration = 0,
        emit_every: Duration | None = None,
        late: LateRows = None,
    ) -> "WindowedStream":
        """Groups the rows of each key by windows of event time, of processing time, or of a count.

        - `allowed_lateness`: how long a window still accepts rows after its end, in event time. Each such row emits
          the whole result of the window again. It is not possible for sessions: such a row may begin a session
          earlier or join two, and the results that it replaces would stay in a table.
        - `emit_every`: the interval of event time after which an open window emits an early result; None for no early
          results. It is not possible for sessions and counts.
        - `late`: a topic, Sink or list for rows that arrive even later; "{topic}.dlq" makes them dead letters of
          their source. With None they are dropped. Late rows are counted in any case.

        Raises UserError for `allowed_lateness` or `late` with processing time and with windows by count, and for
        `allowed_lateness` with sessions.
        """
        if not isinstance(window, Window):
            raise UserError(
                f"window: {window!r} is not a window", hint='tumbling("1m"), hopping("1h", "1m"), session("5m")'
            )
        sink = late_sink(late, "window: late")
        by_arrival = isinstance(window, CountWindow) or window.time == "processing"
        if by_arrival and (late is not None or allowed_lateness):
            kind = "window by count" if isinstance(window, CountWindow) else "window of processing time"
            raise UserError(f"window: no row is late for a {kind}", hint="leave late= and allowed_lateness= out")
        every = None if emit_every is None else whole_ms(emit_every, "emit_every")
        if every is not None and isinstance(window, SessionWindow | CountWindow):
            raise UserError("emit_every: sessions and windows by count have no early results", hint="leave it out")
        lateness = whole_ms(allowed_lateness, "allowed_lateness")
        if lateness and isinstance(window, SessionWindow):
            raise UserError(
                "allowed_lateness: a late row may begin a session earlier, or join two, and the results that it replaces"
                " would stay: its rows would count twice",
                hint="give the stream more lateness=: its sessions then wait for late rows; late= keeps those that come"
                " even later",
            )
        return WindowedStream(self._steps, self._keys, window, lateness, every, sink)

    @overload  # for a dict of aggregates: without it, mypy takes the dict for one that may have a value for ttl
    def aggregate(self, *unnamed: Aggregate, **aggregates: Aggregate | Expr) -> "Stream": ...

    @overload
    def aggregate(
        self, *unnamed: Aggregate, ttl: Duration | None = None, **aggregates: Aggregate | Expr
    ) -> "Stream": ...

    def aggregate(self, *unnamed: Aggregate, ttl: Duration | None = None, **aggregates: Aggregate | Expr) -> "Stream":  # type: ignore[misc]
        """Emits for each row its key and the aggregates of the rows of the key so far, including this row. A result
        may also be computed from aggregates: `share=sum("a") / sum("b")`. `over` keeps all columns of the row.

        The aggregates count, sum, min, max, mean, variance, stddev, first, last and any are possible, over numbers
        and times. All others need a window or `group_by`, and raise UserError here.

        `ttl`: a key that had no row for so much event time is forgotten, and its next row begins new aggregates; None
        for never.
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
        """Emits for each row one row that is computed from all rows of its key so far: the result of
        `function(so_far, row)`, where `so_far` is the row that was emitted before.

        The function gets and returns dicts with the same columns; the first row of a key is emitted as it is. `ttl`:
        a key that had no row for so much event time is forgotten, and its next row is a first row again; None for
        never.
        """
        node = Reduce(
            self._steps.node, self._keys, function_of(function, "reduce", "so_far", "row"), optional_ms(ttl, "ttl")
        )
        return self._steps.then(node)

    def deduplicate(self, *, within: Duration | None = None) -> "Stream":
        """Keeps the first row of each key, in order of arrival.

        `within`: when so much event time has passed since the first row of a key, the next row of the key counts as a
        first row again; None keeps the keys for ever.
        """
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
        """Keeps the first `n` rows of each key up to date, in the order of `by`. The result is changes.

        - `descending`: True puts the greatest first; a list sets the direction of each column. Null and NaN come
          last.
        - `ties`: "row_number" keeps n rows, of equal ones the first to arrive; "rank" keeps all rows that have fewer
          than n rows before them; "dense_rank" keeps all rows with one of the first n values.
        - `rank`: the name of a column for the rank of the row (1, 2, …); if a row moves in the ranking, this is then
          an update of the row. None for no such column.
        """
        number, order = order_of("top_n", n, by, descending)
        ties = check("top_n: ties", ties, OneOf(("row_number", "rank", "dense_rank")))
        rank = check("top_n: rank", rank, _COLUMN)
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
        order: Literal["time"] | None = None,
    ) -> "ProcessedStream":
        """Calls `function(row, ctx)` for each row, with the state and the timers of its key. It returns None, a dict,
        or several dicts.

        - `function`: a function, or an object with the methods of `sabot.Process`.
        - `schema`: the columns of the result.
        - `batch`: True calls `function(keys, batch, ctx)` and `on_timer(keys, at, ctx)` with Arrow data, so that
          Python does not run for each row.
        - `on_timer`: the function `on_timer(timer, ctx)` for timers that fire.
        - `sides`: {name: schema} of output branches. `ctx.side(name, row)` emits into a branch, and the method
          `side(name)` of the result returns its stream.
        - `ttl`: the event time after which a value of the state expires, measured from its last put.
        - `on_error`: the policy for this step, see `Stream.on_error`. If a call fails, all of its changes are undone:
          values, timers, results and broadcast maps.
        - `order`: "time" passes the rows to the function in the order of their event time, each when event time has
          passed it; a late row is passed at once. With None, rows are passed as they arrive. It cannot be used with
          both `batch` and `on_timer`.

        `ctx` is a `sabot.ProcessContext`, or with `batch` a `sabot.BatchProcessContext`. Raises UserError if the rows are
        changes (updates and deletes of earlier rows).
        """
        spec = process_spec(function, schema=schema, batch=batch, on_timer=on_timer, sides=sides, ttl=ttl)
        own = None if on_error is None else row_policy(spec.name, on_error)
        by = None if order is None else check("process: order", order, OneOf(("time",)))
        if by is not None and spec.batch and spec.on_timer is not None:
            raise UserError(
                f'{spec.name}: with order="time" timers fire between rows, and timers cannot fire between rows that come at once',
                hint="leave batch=True out, so that the function gets one row at a time; or leave order= out, and on_timer "
                "is called between batches",
            )
        node = Process(self._steps.node, self._keys, spec, on_error=own, order=by)
        return self._steps.then_process(node)

    @overload
    def over(self, *unnamed: Never, **columns: Aggregate | OverFunction) -> "Stream": ...

    @overload
    def over(
        self, *unnamed: Never, preceding: int | Duration | None = None, **columns: Aggregate | OverFunction
    ) -> "Stream": ...

    def over(  # type: ignore[misc]
        self, *unnamed: Never, preceding: int | Duration | None = None, **columns: Aggregate | OverFunction
    ) -> "Stream":
        """Adds columns to each row that are computed from this row and the earlier rows of its key, in the order of
        event time: SQL's OVER.

        - `preceding`: which earlier rows are used: a number of rows (5 means six rows with the row itself), or a
          duration of event time ("1h"; it also includes later rows of equal time). None for all earlier rows.
        - `columns`: aggregates of numbers and times, such as `total=sabot.sum("x")`, and `sabot.lag("x")`,
          `lead("x")`, `row_number()`, `rank()`, `dense_rank()`.

        A row is emitted when event time has passed it; with `lead`, when the later rows that it needs have arrived.
        Raises UserError if a new column has the name of an existing one.
        """
        if unnamed:
            column = isinstance(unnamed[0], Aggregate | OverFunction)
            hint = f"over(x={unnamed[0]!r})" if column else 'over(preceding=5, mean=sabot.mean("price"))'
            raise UserError(f"over: {unnamed[0]!r} needs a name", hint=hint)
        if not columns:
            raise UserError("over needs a column to add", hint='over(preceding=5, mean=sabot.mean("price"))')
        rows, ms, preceding = None, None, python_value(preceding)
        if isinstance(preceding, int) and not isinstance(preceding, bool):
            rows = preceding
            if rows < 0:
                raise UserError(f"over: preceding={preceding!r} is not a number of rows", hint="0 or more")
        elif preceding is not None:
            ms = whole_ms(preceding, "preceding")
        for name, each in columns.items():
            if not isinstance(each, Aggregate | OverFunction):
                raise UserError(
                    f"over: {name}={each!r} is neither an aggregate nor a function such as sabot.lag",
                    hint=f'{name}=sabot.sum("amount"), sabot.lag("amount"), …',
                )
            if isinstance(each, Aggregate) and each.computed is not None:
                raise UserError(
                    f"over: {name}={each!r} is computed of all values of a group, and over() has a value for each row",
                    hint=f"group_by(…).aggregate({name}=…), or window(…).aggregate({name}=…)",
                )
            check_columns(f"over: {name}", self._steps.node, sorted(each.columns))
        known = self._steps.node.column_names or ()
        if taken := [name for name in columns if name in known]:
            raise UserError(f"over: {taken[0]!r} is the name of another column", hint="choose another name")
        return self._steps.then(Over(self._steps.node, self._keys, tuple(columns.items()), rows, ms))

    def pattern(
        self,
        pattern: Pattern,
        *,
        skip: Skip = "past_last",
        overlap: Overlap = "complete",
        max_partial: int = 10_000,
        late: LateRows = None,
        **measures: Expr,
    ) -> "Stream":
        """Emits one row for each sequence of rows of a key that matches the pattern (`sabot.pattern`), in the order
        of event time.

        The result has the keys, `match_start` and `match_end` (the times of the first and the last row, both
        included), then the measures, such as `n=sabot.step("a").count()` and `amount=sabot.step("b").last("amount")`.

        - `skip`: the row at which the next match may begin: "past_last" is the row after the last row of the match,
          "to_next" the row after its first row, ("to_first", "a") and ("to_last", "a") the first or last row of the
          step "a". With "none" a match may begin at any row, so that all matches are found.
        - `overlap`: which one of several overlapping matches is found: "complete" finds the one that is complete
          first, "begun" the one that began first, as standard SQL does.
        - `max_partial`: the most incomplete matches that a key may have; if it has more, the app stops.
        - `late`: a topic, Sink or list for rows that arrive too late, as in `window`.
        """
        known = check_measures(pattern, skip, measures, overlap)
        sink = late_sink(late, "pattern: late")
        max_partial = python_value(max_partial)
        if not is_whole(max_partial, 1):
            raise UserError(
                f"pattern: max_partial={max_partial!r} is not a number of matches", hint="a whole number, 1 or more"
            )
        own = (*self._keys, MATCH_START, MATCH_END)
        for name, measure in known:
            if name in own:
                raise UserError(f"pattern: {name!r} is the name of another column", hint="choose another name")
            if outside := sorted(columns_of_match(measure).difference(own)):
                raise UserError(
                    f"pattern: {name}={measure!r}: column {outside[0]!r} has a value for each row of a match",
                    hint=f'step("{pattern.steps[0].name}").last("{outside[0]}"), or first, sum, list, …',
                )
        return self._steps.then(Match(self._steps.node, self._keys, pattern, skip, known, overlap, max_partial, sink))

    def connect(self, other: "KeyedStream | Stream") -> "ConnectedStreams":
        """Connects this stream with another one for one process step. The other stream has the same keys, or is
        broadcast: `connect(rules.broadcast())`.

        Raises UserError for another number of keys, for a stream that is neither keyed nor broadcast, and for a stream of
        another app.
        """
        by_key = isinstance(other, KeyedStream)
        right = other._steps if isinstance(other, KeyedStream) else self._steps.of(other)
        if right is not None and right.owner is not self._steps.owner:
            raise UserError("connect: the other stream belongs to another app", hint="make both with one app")
        right_keys = other._keys if isinstance(other, KeyedStream) else ()
        fits = len(right_keys) == len(self._keys) if by_key else right is not None and isinstance(right.node, Broadcast)
        if right is None or not fits:
            raise UserError(
                f"connect: {other!r} is neither a stream with {len(self._keys)} keys nor a broadcast one",
                hint='connect(other.key_by("account")), connect(rules.broadcast())',
            )
        return ConnectedStreams(self._steps, self._keys, right.node, right_keys)

    def _words(self) -> str:
        return f"KeyedStream(by {', '.join(self._keys)})"


class WindowedStream(Shown, StreamKind):
    """Rows with a key and a window: the methods work on the rows of each key and window separately."""

    _elsewhere = STREAMS | WINDOWS
    _made_by = 'window(tumbling("1m"))'
    _ends_in = "aggregate(…), top_n(…), apply(…)"

    def __init__(
        self,
        steps: Steps,
        keys: tuple[str, ...],
        window: Window,
        allowed_lateness_ms: int,
        emit_every_ms: int | None,
        late: str | Sink | None,
    ) -> None:
        self._steps, self._owner, self._node = steps, steps.owner, steps.node
        self._keys = keys
        self._window = window
        self._allowed_lateness_ms = allowed_lateness_ms
        self._emit_every_ms = emit_every_ms
        self._late = late

    def aggregate(self, *unnamed: Aggregate, **aggregates: Aggregate | Expr) -> "Stream":
        """Emits one row for each key and window: the keys, `window_start`, `window_end` (exclusive), then the
        aggregates.

        A result may also be computed from aggregates: `share=sum("a") / sum("b")`.
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
        """Emits the first `n` rows of each key and window in the order of `by`, with `window_start` and `window_end`,
        when the window closes.

        The arguments are those of `KeyedStream.top_n`. If the rows already have the bounds of an earlier window,
        these columns are renamed to `row_window_start` and `row_window_end`. Raises UserError for sessions, for
        windows by count, and for windows with `emit_every`.
        """
        window = self._window
        if not isinstance(window, TimeWindow) or self._emit_every_ms is not None:
            raise UserError(
                "top_n needs tumbling, hopping or cumulative windows, without emit_every=",
                hint='window(tumbling("1m"))',
            )
        number, order = order_of("top_n", n, by, descending)
        ties = check("top_n: ties", ties, OneOf(("row_number", "rank", "dense_rank")))
        rank = check("top_n: rank", rank, _COLUMN)
        known = self._steps.node.column_names or ()
        own = {name: f"row_{name}" for name in ("window_start", "window_end") if name in known}
        node: Node = self._steps.node
        if own and not any(name in own for name in self._keys):
            node = Rename(node, tuple(own.items()))
            node.check()
            order = tuple((own.get(name, name), down) for name, down in order)
        node = WindowTopN(node, self._keys, window, number, order, ties, rank, self._allowed_lateness_ms, self._late)
        return self._steps.then(node)

    def apply(self, function: Callable[[pa.Table], Any], *, schema: Schema) -> "Stream":
        """Calls `function(rows: pa.Table)` with all rows of each key and window, in order of event time; rows of equal
        times are in order of arrival. It returns Arrow data, such as a pa.Table or a data frame of polars or pandas, or None for no rows.

        `schema`: the columns of the result. The emitted rows have the keys, `window_start` and `window_end` before
        them. All rows of the open windows are kept as state: prefer `aggregate`. Raises UserError if the columns of
        the stream are not known yet.
        """
        names = self._steps.node.column_names
        if names is None:
            raise UserError(
                "window(…).apply needs the columns of the rows, which are unknown before the first record",
                hint="give the stream schema=, or .select(…) the columns before key_by",
            )
        rows, made = applied(function, schema, names)
        if wrong := [name for name in (*self._keys, "window_start", "window_end") if name in made]:
            raise UserError(f"apply: {wrong[0]!r} is the name of another column", hint="leave it out of schema=")
        several = self.aggregate(**{_ROWS: rows}).explode(_ROWS, keep_nulls=False)
        row = col(_ROWS).struct
        return several.select(*self._keys, "window_start", "window_end", **{name: row.field(name) for name in made})

    def _words(self) -> str:
        return f"WindowedStream({self._window})"


class GroupedStream(Shown, StreamKind):
    """Rows grouped by key. `aggregate` makes one row of each group, and updates it as rows arrive."""

    _made_by = 'group_by("column")'
    _ends_in = "aggregate(…)"

    def __init__(self, steps: Steps, keys: tuple[str, ...]) -> None:
        self._steps, self._owner, self._node = steps, steps.owner, steps.node
        self._keys = keys

    @overload  # for a dict of aggregates: without it, mypy takes the dict for one that may have a value for ttl
    def aggregate(self, *unnamed: Aggregate, **aggregates: Aggregate | Expr) -> "Stream": ...

    @overload
    def aggregate(
        self, *unnamed: Aggregate, ttl: Duration | None = None, **aggregates: Aggregate | Expr
    ) -> "Stream": ...

    def aggregate(self, *unnamed: Aggregate, ttl: Duration | None = None, **aggregates: Aggregate | Expr) -> "Stream":  # type: ignore[misc]
        """Emits the keys and their aggregates as changes. A result may also be computed from aggregates:
        `share=sum("a") / sum("b")`.

        A batch updates the row of a key at most once. If the rows of this stream are changes, the row of a key is
        deleted when all rows of the key were deleted.

        `ttl`: a key that had no row for so much event time is forgotten; None for never. Its last result is not
        deleted, and its next row begins a new result. With `ttl`, rows are aggregated only when event time has passed
        them, and must not be changes.
        """
        known, computed = aggregates_of_keywords(unnamed, aggregates)
        for name in aggregates:
            if name in self._keys:
                raise UserError(f"aggregate: {name!r} is the name of another column", hint="choose another name")
        node = GroupAggregate(self._steps.node, self._keys, known, ttl_ms=optional_ms(ttl, "ttl"))
        return self._steps.then_aggregate(node, known, computed)

    def _words(self) -> str:
        return f"GroupedStream(by {', '.join(self._keys)})"


class ConnectedStreams:
    """Two streams that one process step reads."""

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
        """Calls `function(row, ctx)` for rows of this stream and `right(row, ctx)` for rows of the other one.

        Both functions share state and timers by key. If the other stream is broadcast, each subtask gets all of its
        rows; `right` then writes into `ctx.broadcast(name)`, a map that both functions can read for all keys. The
        other arguments are those of `KeyedStream.process`.
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
