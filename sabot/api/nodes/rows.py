"""Steps over single rows: the result of a row depends only on the row, or on a function of the user."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from sabot.api.arguments import RowPolicy, Schema, function_of, row_policy, schema_of
from sabot.api.expr import Expr, col
from sabot.api.nodes.node import Columns, Node, with_more, without
from sabot.api.words import name_of, select_text, with_text
from sabot.base.checks import Whole, check
from sabot.base.dataclass import dataclass
from sabot.errors import UserError


@dataclass(frozen=True, eq=False)
class RowStep(Node):
    """A base class of steps that make one row or none of each row of their input. If the input is changes, so is the
    output.
    """

    takes_changes = True
    input: Node

    @cached_property
    def changes(self) -> bool:
        return self.input.changes

    @property
    def upserted(self) -> bool:
        return self.input.upserted


@dataclass(frozen=True, eq=False)
class Filter(RowStep):
    """A step that keeps the rows for which the predicate is true."""

    word = "filter"
    predicate: Expr

    def text(self) -> str:
        return f"filter {self.predicate.text()}"

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (self.predicate.columns,)

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (with_more(wanted, self.predicate.columns),)

    @cached_property
    def unique(self) -> tuple[str, ...] | None:
        return self.input.unique

    def versions(self) -> Node:
        return EndVersions(self.input.versions(), self.predicate)


@dataclass(frozen=True, eq=False)
class EndVersions(Node):
    """A filter after a `Versions` step. If a row does not pass the filter, the row of its key before it is no longer
    valid from then on. The planner puts this step before a join by event time (AsofJoin).
    """

    word = "filter"
    takes_changes = True
    input: Node
    predicate: Expr

    def text(self) -> str:
        return f"versions while {self.predicate.text()}"

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (self.predicate.columns,)

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (with_more(wanted, self.predicate.columns),)

    @cached_property
    def changes(self) -> bool:
        return True


@dataclass(frozen=True, eq=False)
class Select(RowStep):
    """A step whose rows have exactly these columns."""

    word = "select"
    columns: tuple[tuple[str, Expr], ...]

    def text(self) -> str:
        return select_text(self.columns)

    @cached_property
    def column_names(self) -> list[str] | None:
        return [name for name, _ in self.columns]

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (_columns_of(self.columns),)

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (_columns_of(only_wanted(self.columns, wanted)),)

    def moved_before(self, predicate: Expr) -> Expr | None:
        made = dict(self.columns)
        if predicate.columns <= made.keys() and all(made[name].column for name in predicate.columns):
            return predicate.substitute({name: made[name] for name in predicate.columns})
        return None

    @cached_property
    def unique(self) -> tuple[str, ...] | None:
        key = self.input.unique
        kept = {expr.name: name for name, expr in self.columns if expr.same(col(expr.name))}
        return tuple(kept[name] for name in key) if key is not None and set(key) <= kept.keys() else None

    @property
    def given(self) -> dict[str, str | None]:
        return {name: expr.column for name, expr in self.columns}


@dataclass(frozen=True, eq=False)
class WithColumns(RowStep):
    """A step that adds columns. A new column with the name of an existing one replaces it."""

    word = "with_columns"
    columns: tuple[tuple[str, Expr], ...]

    @property
    def made(self) -> frozenset[str]:
        """The names of the columns that the step adds or replaces."""
        return frozenset(name for name, _ in self.columns)

    def text(self) -> str:
        return with_text(self.columns)

    @cached_property
    def column_names(self) -> list[str] | None:
        known = self.input.column_names
        return None if known is None else known + [name for name, _ in self.columns if name not in known]

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (_columns_of(self.columns),)

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (with_more(without(wanted, self.made), _columns_of(only_wanted(self.columns, wanted))),)

    def moved_before(self, predicate: Expr) -> Expr | None:
        return None if predicate.columns & self.made else predicate

    @cached_property
    def unique(self) -> tuple[str, ...] | None:
        key = self.input.unique
        return None if key is None or self.made.intersection(key) else key

    @property
    def given(self) -> dict[str, str | None]:
        return {name: name if expr.column == name else None for name, expr in self.columns}


@dataclass(frozen=True, eq=False)
class Drop(RowStep):
    """A step that removes these columns."""

    word = "drop"
    names: tuple[str, ...]

    def text(self) -> str:
        return f"drop {', '.join(self.names)}"

    def check(self) -> None:
        super().check()
        if self.column_names == []:
            raise all_dropped(self.names)

    @cached_property
    def column_names(self) -> list[str] | None:
        known = self.input.column_names
        return None if known is None else [name for name in known if name not in self.names]

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (frozenset(self.names),)

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (wanted,)

    def moved_before(self, predicate: Expr) -> Expr | None:
        return predicate

    @cached_property
    def unique(self) -> tuple[str, ...] | None:
        key = self.input.unique
        return None if key is None or set(key) & set(self.names) else key


def all_dropped(names: Iterable[str]) -> UserError:
    return UserError(f"drop: {', '.join(names)} are all columns, and a stream needs at least one")


@dataclass(frozen=True, eq=False)
class Rename(RowStep):
    """A step that renames columns. `names` has pairs (old, new)."""

    word = "rename"
    names: tuple[tuple[str, str], ...]

    def text(self) -> str:
        return "rename " + ", ".join(f"{old} to {new}" for old, new in self.names)

    @cached_property
    def column_names(self) -> list[str] | None:
        known = self.input.column_names
        return None if known is None else [dict(self.names).get(name, name) for name in known]

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (frozenset(old for old, _ in self.names),)

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        old_names = {new: old for old, new in self.names}
        return (None if wanted is None else frozenset(old_names.get(name, name) for name in wanted),)

    def moved_before(self, predicate: Expr) -> Expr | None:
        old_names = {new: old for old, new in self.names}
        if predicate.columns & {old for old, _ in self.names} - old_names.keys():
            return None
        return predicate.substitute({new: col(old) for new, old in old_names.items()})

    @cached_property
    def unique(self) -> tuple[str, ...] | None:
        key = self.input.unique
        return None if key is None else tuple(dict(self.names).get(name, name) for name in key)

    @property
    def given(self) -> dict[str, str | None]:
        return {new: old for old, new in self.names}


@dataclass(frozen=True, eq=False)
class MapBatches(Node):
    """A step that calls a function of the user with RecordBatches."""

    word = "map_batches"
    input: Node
    function: Callable[[pa.RecordBatch], Any]
    schema: pa.Schema | None
    on_error: RowPolicy | None = None  # None: the policy of the stream
    most_rows: int | None = None  # of a batch; None: as many as come

    def text(self) -> str:
        return f"map_batches {name_of(self.function)}"

    @cached_property
    def column_names(self) -> list[str] | None:
        return None if self.schema is None else list(self.schema.names)


@dataclass(frozen=True, eq=False)
class FlatMap(Node):
    """A step that calls a function of the user with each row as a dict. The function returns any number of dicts."""

    word = "flat_map"
    input: Node
    function: Callable[[dict[str, Any]], Any]
    schema: pa.Schema
    on_error: RowPolicy | None = None  # None: the policy of the stream

    def text(self) -> str:
        return f"flat_map {name_of(self.function)}"

    @cached_property
    def column_names(self) -> list[str] | None:
        return list(self.schema.names)


@dataclass(frozen=True, eq=False)
class Explode(Node):
    """A step that makes a row of each value of a list, for the lists in these columns."""

    word = "explode"
    takes_changes = True
    input: Node
    columns: tuple[str, ...]
    empty_as_null: bool = False
    keep_nulls: bool = True

    def text(self) -> str:
        said = [*(["empty as null"] if self.empty_as_null else []), *([] if self.keep_nulls else ["without nulls"])]
        return f"explode {', '.join([*self.columns, *said])}"

    @cached_property
    def changes(self) -> bool:
        return self.input.changes

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (frozenset(self.columns),)

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (with_more(wanted, self.columns),)

    def moved_before(self, predicate: Expr) -> Expr | None:
        return None if predicate.columns.intersection(self.columns) else predicate

    @property
    def given(self) -> dict[str, str | None]:
        return dict.fromkeys(self.columns)


@dataclass(frozen=True, eq=False)
class Union(Node):
    """A step that emits the rows of several streams that have the same columns."""

    word = "union"
    takes_changes = True
    streams: tuple[Node, ...]

    @property
    def inputs(self) -> tuple[Node, ...]:
        return self.streams

    def over(self, *inputs: Node) -> Node:
        return replace(self, streams=inputs)

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (wanted,) * len(self.streams)

    def moved_before(self, predicate: Expr) -> Expr | None:
        return predicate

    @cached_property
    def changes(self) -> bool:
        return any(stream.changes for stream in self.streams)

    @cached_property
    def event_times(self) -> dict[str, bool]:
        times: dict[str, bool] = {}
        for stream in self.streams:
            times |= {time: as_is and times.get(time, True) for time, as_is in stream.event_times.items()}
        return times


@dataclass(frozen=True, eq=False)
class OnError(RowStep):
    """A step that sets the policy for rows for which a later step fails. A filter after this step must not be moved
    before it, since another policy applies there.
    """

    word = "on_error"
    policy: RowPolicy

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (wanted,)

    @cached_property
    def unique(self) -> tuple[str, ...] | None:
        return self.input.unique


@dataclass(frozen=True, eq=False)
class Broadcast(Node):
    """A step that sends all rows to every subtask of the next step."""

    word = "broadcast"
    takes_changes = True
    input: Node

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (wanted,)

    @cached_property
    def changes(self) -> bool:
        return self.input.changes

    @cached_property
    def unique(self) -> tuple[str, ...] | None:
        return self.input.unique


@dataclass(frozen=True, eq=False)
class Head(Node):
    """A step that emits the first `n` rows, counted over all subtasks, and no further ones."""

    word = "head"
    hint_of_changes = 'key_by("key").top_n(n, by=…) keeps the first rows of a key up to date; '
    input: Node
    n: int
    id: str = ""

    def text(self) -> str:
        return f"head {self.n}"

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (wanted,)


@dataclass(frozen=True, eq=False)
class Sample(Node):
    """A step that lets each row pass with a given probability."""

    word = "sample"
    input: Node
    fraction: float
    seed: int
    id: str = ""

    def text(self) -> str:
        return f"sample {self.fraction:g}"

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (wanted,)


def map_batches_node(
    input: Node, function: Any, schema: Schema | None, on_error: RowPolicy | None, rows: int | None
) -> MapBatches:
    """Returns the node of `Stream.map_batches`. Raises UserError."""
    columns = None if schema is None else schema_of(schema)
    most = None if rows is None else check("map_batches: rows", rows, Whole(1))
    own = _own_policy("map_batches", on_error)
    return MapBatches(input, function_of(function, "map_batches", "batch"), columns, own, most)


def flat_map_node(input: Node, function: Any, schema: Schema, on_error: RowPolicy | None) -> FlatMap:
    """Returns the node of `Stream.flat_map`. Raises UserError."""
    return FlatMap(
        input, function_of(function, "flat_map", "row"), schema_of(schema), _own_policy("flat_map", on_error)
    )


def _own_policy(where: str, on_error: RowPolicy | None) -> RowPolicy | None:
    return None if on_error is None else row_policy(where, on_error)


def only_wanted(columns: Sequence[tuple[str, Expr]], wanted: Columns) -> tuple[tuple[str, Expr], ...]:
    """Returns the columns that later steps use, out of those that the step computes. `wanted`: the names of the used
    columns; None for all.
    """
    return tuple((name, expr) for name, expr in columns if wanted is None or name in wanted)


def _columns_of(columns: Iterable[tuple[str, Expr]]) -> frozenset[str]:
    return frozenset().union(*(expr.columns for _, expr in columns))
