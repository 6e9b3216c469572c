"""Columns that depend on the other rows of a row's key, in order of event time: aggregates over a frame, lag, lead,
ranks.

    rows, by event time ─▶ [rows of the newest time wait] ─▶ frames, lag, ranks ─▶ [rows wait for lead] ─▶ rows with the new columns
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot.api.aggregates import Aggregate
from sabot.api.nodes import keyed as nodes
from sabot.api.over import OverFunction
from sabot.codecs.json import schema_text
from sabot.engine.operators.aggregates.aggregator import KINDS
from sabot.engine.operators.aggregates.arguments import Arguments
from sabot.engine.operators.base import (
    CHUNK_ROWS,
    END_OF_TIME,
    START_OF_TIME,
    TIME_COLUMN,
    OperatorContext,
    Saved,
    with_time,
    without_time,
)
from sabot.engine.operators.columns import check_distinct, key_columns, key_table, time_index
from sabot.engine.operators.keyed.ordered import in_order
from sabot.engine.operators.keyed.over_columns import (
    RANKS,
    OverColumn,
    OverMigration,
    columns_read,
    over_arguments,
    over_migration,
)
from sabot.engine.operators.keyed.over_lead import LeadState
from sabot.engine.operators.keyed.over_state import Array, FrameState, OverState, PlaceState, RunningState
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.readers import StateReaders
from sabot.engine.operators.rows.stateless import Drop
from sabot.engine.operators.state_facts import StateReader, StateSchema
from sabot.engine.operators.state_parts import RowsPart, SavesWatermark, StateParts, columns_schema
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

OVER_KINDS = frozenset([*RANKS, "lag", "lead"])  # the kinds that are not aggregates
_INT64 = pa.int64()


class Over(SavesWatermark):
    """Emits every row of the input, with one more column for each of `columns`. The value of such a column depends on
    the rows of the row's key, in order of event time.

    An aggregate is over a frame:

        preceding_rows=n   the row, and the n rows before it
        preceding_ms=t     rows with a time from the row's time - t to the row's time; rows of equal time that come later too
        neither            all rows up to this row; with `peers` also rows of equal time that come later

    lag, lead and the ranks have no frame. Rows must come in order of event time (`EventOrder`). With preceding_ms or
    `peers`, rows of the newest time wait until the watermark or a later row has passed this time. With lead, a row waits for
    the row to which lead refers; rows that have none are emitted at the end of the input. Rows are emitted in the
    order in which they became complete.

    Late rows: a row is late if a row of its key with a later time has been emitted. It is emitted at once, and it is
    included in the results of rows that follow; results that were emitted do not change. Its own results follow from
    its place by event time among the rows that the state still has. If it is older than all of these, its frame has
    only itself. Without a frame, and for ranks, it is treated as the newest row.

    With a directory, the state keeps to the memory budget. Aggregates, ranks with lag, and lead have equal shares of
    it. Raises UserError for a frame, an offset or a kind that does not exist.
    """

    def __init__(
        self,
        keys: Sequence[str],
        columns: Sequence[OverColumn],
        *,
        preceding_rows: int | None = None,
        preceding_ms: int | None = None,
        peers: bool = False,
    ) -> None:
        if preceding_rows is not None and preceding_ms is not None:
            raise UserError("over: a frame has preceding_rows or preceding_ms, not both", hint="give one of them")
        if preceding_rows is not None and preceding_rows < 0:
            raise UserError(f"over: preceding_rows is {preceding_rows}", hint="give 0 or more, or None for all")
        if preceding_ms is not None and preceding_ms < 0:
            raise UserError(f"over: preceding_ms is {preceding_ms}", hint="give 0 or more, or None for all")
        for each in columns:
            if each.kind not in OVER_KINDS and each.kind not in KINDS:
                raise UserError(
                    f"{each.name}: there is no {each.kind!r} over rows",
                    hint=f"one of {', '.join(sorted(OVER_KINDS | KINDS))}",
                )
            if each.kind in ("lag", "lead") and each.offset < 1:
                raise UserError(f"{each.name}: {each.kind} by {each.offset} rows", hint="give 1 or more")
        self._names, self._described = list(keys), list(columns)
        self._rows, self._ms, self._peers = preceding_rows, preceding_ms, peers
        self._parts: list[OverState] = []

    def open(self, context: OperatorContext) -> pa.Schema:
        self._context = context
        self._time = time_index(context.input, "columns over rows")
        self._keys, keys = key_columns(self._names, context.input)
        key_table(self._keys)
        aggregates = [each for each in self._described if each.kind in KINDS]
        around = [each for each in self._described if each.kind in RANKS or each.kind == "lag"]
        leads = [each for each in self._described if each.kind == "lead"]
        fields: dict[str, pa.Field] = {}
        self._parts = []
        shares = sum(1 for some in (aggregates, around, leads) if some)
        shared = replace(context, memory_budget=context.memory_budget // max(shares, 1))
        if aggregates and self._rows is None and self._ms is None:
            self._parts.append(RunningState(self._names, aggregates, shared, peers=self._peers))
        elif aggregates:
            self._parts.append(FrameState(self._names, aggregates, shared, self._rows, self._ms))
        if around:
            self._parts.append(PlaceState(self._names, around, shared))
        for part in self._parts:
            fields |= {field.name: field for field in part.fields}
        made = pa.schema([*without_time(context.input), *fields.values(), pa.field(TIME_COLUMN, _INT64)])
        self._leading = LeadState(self._names, leads, made, shared) if leads else None
        if self._leading is not None:
            fields |= {field.name: field for field in self._leading.fields}
        self._added = [fields[each.name] for each in self._described]
        result = [*without_time(context.input), *self._added]
        check_distinct([field.name for field in result], "over: ", "give the new one another name")
        self._schema = with_time(pa.schema(result))
        self._held: list[pa.RecordBatch] = []  # rows of the newest time, while more of them may come
        self._held_time = START_OF_TIME
        kept = [each for part in self._parts for each in part.parts()]
        if self._leading is not None:
            kept += self._leading.parts()
        input = context.input
        self._migration: OverMigration | None = None
        more: Any = {"others": True, "renewed": self._renewed}
        kept.append(RowsPart("held", lambda: list(self._held), self._held_back, schema=input, keys=keys, **more))
        self.state_parts = StateParts(context, kept, keyed=len(self._names) > 0)
        return self._schema

    # Rows in

    def process(self, batch: Batch) -> None:
        if not self._waits_for_time():
            self._run(batch)
            return
        if not batch.num_rows:
            return
        times = batch.data.column(self._time)
        newest = pc.max(times if batch.selection is None else times.take(batch.selection)).as_py()
        if newest < self._held_time or newest < self._watermark:
            self._run(batch)  # a later row, or the watermark, has passed the time of all its rows
            return
        data = batch.taken()
        waits = pc.equal(data.column(self._time), pa.scalar(newest, _INT64))
        held, early = data.filter(waits), data.filter(pc.invert(waits))
        if newest > self._held_time and self._held:
            early = pa.concat_batches([*self._held, early])
            self._held.clear()
        self._held_time = newest
        if early.num_rows:
            self._run(Batch(early))
        self._held.append(held)

    def advance(self, watermark_ms: int) -> int | None:
        self._watermark = watermark_ms
        if self._held and watermark_ms > self._held_time:
            self._emit_held()
        for part in self._parts:
            part.advance(watermark_ms)
        if self._leading is None:
            return None
        if watermark_ms == END_OF_TIME:
            self._emit_with_leads(self._leading.flush())
            return None
        oldest = self._leading.least
        return None if oldest is None else min(oldest, watermark_ms)

    def finish(self) -> None:
        if self._held:
            self._emit_held()
        if self._leading is not None:
            self._emit_with_leads(self._leading.flush())

    def _emit_held(self) -> None:
        rows = pa.concat_batches(self._held)
        self._held.clear()
        self._run(Batch(rows))

    def _run(self, batch: Batch) -> None:
        columns: dict[str, Array] = {}
        for part in self._parts:
            columns |= part.add(batch)
        data = batch.taken()
        if self._leading is not None:
            arrays = [*data.drop_columns([TIME_COLUMN]).columns, *columns.values(), data.column(self._time)]
            self._emit_with_leads(self._leading.add(pa.RecordBatch.from_arrays(arrays, schema=self._leading.columns)))
            return
        self._emit(data, columns)

    def _emit_with_leads(self, pieces: "Iterator[tuple[pa.RecordBatch, dict[str, Array]]]") -> None:
        for rows, leads in pieces:
            self._emit(rows, {name: rows.column(name) for name in rows.schema.names} | leads)

    def _emit(self, data: pa.RecordBatch, columns: dict[str, Array]) -> None:
        """Emits the input's columns of `data` with the added columns. `columns`: the added columns, by name."""
        plain = [data.column(field.name) for field in without_time(self._context.input)]
        added = [columns[field.name] for field in self._added]
        times = data.column(TIME_COLUMN)
        rows = pa.RecordBatch.from_arrays([*plain, *added, times], schema=self._schema)
        for start in range(0, rows.num_rows, CHUNK_ROWS):
            self.emit(Batch(rows.slice(start, CHUNK_ROWS)))

    # State

    def state_schema(self) -> StateSchema:
        frame: dict[str, int] | str = "all"
        if self._rows is not None:
            frame = {"rows": self._rows}
        elif self._ms is not None:
            frame = {"ms": self._ms}
        schema: StateSchema = {
            "kind": "over",
            "keys": columns_schema(self._keys),
            "frame": frame,
            "columns": [
                [each.name, f"{_exact(each, self._context.input)}{each.description()}", str(field.type)]
                for each, field in zip(self._described, self._added, strict=True)
            ],
        }
        if arguments := over_arguments(self._described, self._context.input, frame):
            schema["arguments"] = arguments
        if self._keeps_rows():  # rows that wait are kept with all their columns
            schema["rows"] = columns_schema(without_time(self._context.input))
        return schema

    def _keeps_rows(self) -> bool:
        return self._leading is not None or self._waits_for_time()

    def _waits_for_time(self) -> bool:
        """Returns True if rows of the newest time wait for others of this time."""
        if self._ms is not None:
            return any(isinstance(part, FrameState) for part in self._parts)
        return self._peers and any(isinstance(part, RunningState) for part in self._parts)

    def state_reader(self) -> StateReader:
        described = [
            {
                name: value
                for name, value in vars(each).items()
                if value is not None and name not in ("default", "shares", "rounds")
            }
            for each in self._described
        ]
        return {
            "keys": self._names,
            "calls": described,
            "preceding_rows": self._rows,
            "preceding_ms": self._ms,
            "input": schema_text(self._context.input),
            "shares": False,
            "rounds": False,
        }

    def taken_over(self, fact: str, before: Any, now: Any, groups: int) -> str | None:
        if fact != "rows":
            return None
        if before is None or now is None:
            return "rows wait in it from now on" if before is None else "rows no longer wait in it"
        then = dict(before)
        if any(then.get(name, kind) != kind for name, kind in now):
            return None
        new = [name for name, _ in now if name not in then]
        return f"in rows that wait, {', '.join(new)} is null" if new else "rows that wait lose columns"

    def contents(self) -> Iterator[pa.RecordBatch]:
        """Yields, for each key, the aggregates after its newest row. If the step has no aggregates, yields the number
        of rows of each key instead.
        """
        for part in self._parts:
            if part.has_contents:
                yield from part.contents()
                return

    def group_count(self) -> int:
        waiting: int = sum(rows.num_rows for rows in self._held)
        return max([waiting, *(part.groups() for part in self._every_part())])

    def before_restore(self, saved: Sequence[Saved]) -> None:
        self._migration = over_migration(saved, self.state_schema(), self._described, self.forgets)
        for part in self._parts:
            part.migration = self._migration
        if self._leading is not None:
            self._leading.migration = self._migration

    def _renewed(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        return rows if self._migration is None else self._migration.rows(self._context.input, rows)

    def after_restore(self, saved: Sequence[Saved]) -> None:
        super().after_restore(saved)
        for part in self._parts:
            part.advance(self._watermark)

    def _held_back(self, rows: pa.RecordBatch) -> None:
        """Restores rows that waited for their time to pass when the checkpoint was taken."""
        self._held.append(rows)
        self._held_time = max(self._held_time, pc.max(rows.column(self._time)).as_py())

    def close(self) -> None:
        for part in self._every_part():
            part.close()
        self._parts = []
        self._leading = None

    def statistics(self) -> "ToldStep":
        every = [part.statistics() for part in self._every_part()]
        return {
            "keys": max((each["keys"] for each in every), default=0),
            "rows": sum(each["rows"] for each in every) + sum(rows.num_rows for rows in getattr(self, "_held", [])),
            "bytes": sum(each.get("bytes", 0) for each in every),
            "disk_bytes": sum(each.get("disk_bytes", 0) for each in every),
            "cold": sum(each.get("cold", 0) for each in every),
            "evicted_total": sum(each.get("evicted_total", 0) for each in every),
            "faults_total": sum(each.get("faults_total", 0) for each in every),
        }

    def _every_part(self) -> list[OverState | LeadState]:
        leading = getattr(self, "_leading", None)
        return [*self._parts] if leading is None else [*self._parts, leading]


def _exact(each: OverColumn, input: pa.Schema) -> str:
    """Returns "exact " if the column is an aggregate of decimals that keeps all digits, else "". It is the prefix of
    the column's text in `state_schema`.
    """
    kept = each.kind in ("sum", "mean", "min", "max", "first", "last") and not (each.rounds and each.kind == "mean")
    return "exact " if kept and pa.types.is_decimal(input.field(each.argument).type) else ""


# -- their place in a plan ----------------------------------------------------------------------------------------------


def plan_over(node: nodes.Over, point: PlanPoint) -> PlanPoint:
    point = in_order(point.partition_by(node.keys, "over"), node.keys, node.id)
    arguments = Arguments(node.columns, [*node.keys, *(node.input.column_names or ())])
    described = [_over_column(name, each, arguments) for name, each in node.columns]
    make = partial(
        Over, node.keys, described, preceding_rows=node.preceding_rows, preceding_ms=node.preceding_ms, peers=node.peers
    )
    point = arguments.add(point).step(node.text(), make, id=node.id)
    made = [name for name, _ in arguments.columns]
    return point.step(f"drop {', '.join(made)}", partial(Drop, made)) if made else point


def _over_column(name: str, each: Aggregate | OverFunction, arguments: Arguments) -> OverColumn:
    where = None if isinstance(each, OverFunction) else each.predicate
    argument = arguments.column(each.argument, where)
    if isinstance(each, OverFunction):
        return OverColumn(name, each.kind, argument, each.offset, each.default, text=each.text())
    ddof = each.options.get("ddof", 1)
    return OverColumn(name, each.kind, argument, where=arguments.column(where), ddof=ddof, text=each.text())


PLANNERS: Planners = {nodes.Over: plan_over}


def _read_with(reader: Mapping[str, Any]) -> Over:
    return Over(
        reader["keys"],
        columns_read(reader),
        preceding_rows=reader["preceding_rows"],
        preceding_ms=reader["preceding_ms"],
    )


STATE_READERS: StateReaders = {"over": _read_with}
