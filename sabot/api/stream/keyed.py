"""Streams behind `key_by`."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from sabot.api.aggregates import Aggregate
from sabot.api.arguments import (
    RowPolicy,
    Schema,
    aggregates_of_keywords,
    function_of,
    one_of,
    optional_ms,
    order_of,
    row_policy,
    whole_ms,
)
from sabot.api.expr import Expr
from sabot.api.functions import process_spec
from sabot.api.nodes.functions import Process
from sabot.api.nodes.keyed import Deduplicate, Over, Reduce, RunningAggregate, Ties, TopN
from sabot.api.nodes.node import check_columns
from sabot.api.nodes.patterns import Match
from sabot.api.nodes.rows import (
    Broadcast,
)
from sabot.api.over import OverFunction
from sabot.api.patterns import MATCH_END, MATCH_START, Pattern, check_measures
from sabot.api.stream.connected import ConnectedStreams
from sabot.api.stream.elsewhere import NamedElsewhere
from sabot.api.stream.windowed import WindowedStream
from sabot.api.windows import CountWindow, SessionWindow, Window
from sabot.arrays import python_value
from sabot.config import Duration, is_whole
from sabot.connectors.base import Sink, check_sink
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.api.stream.base import ProcessedStream, Steps, Stream


class KeyedStream(NamedElsewhere):
    """Rows with a key: its methods work on the rows of each key separately."""

    _made_by = 'key_by("column")'
    _ends_in = "aggregate(…), over(…), process(…)"

    def __init__(self, steps: "Steps", keys: tuple[str, ...]) -> None:
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
        ties = one_of("top_n: ties", ties, ("row_number", "rank", "dense_rank"))
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
