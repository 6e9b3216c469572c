"""Steps that make changes of rows, or rows of changes."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeAlias

from sabot.api.aggregates import Aggregate
from sabot.api.arguments import column_names, flags_of, flat
from sabot.api.nodes.keyed import Aggregates, ByKey
from sabot.api.nodes.node import Columns, Node, refused_changes, time_column, with_more, without
from sabot.api.nodes.read import Read, TableFormat, endless_read, read_node
from sabot.api.words import by_keys, named_texts
from sabot.base.dataclass import dataclass
from sabot.base.quantities import span_words
from sabot.codecs.base import Format
from sabot.codecs.formats import JSON, format_of
from sabot.codecs.keyed import KeyAndValue, as_key
from sabot.connectors.base import Scans, Source
from sabot.errors import UserError

OP = "op"  # the column of a changelog that readers see
_ENVELOPE = {"before", "after", "op"}


@dataclass(frozen=True, eq=False)
class GroupAggregate(Aggregates):
    """A step with one result row for each key: the key and its aggregates. Its output is changes, which keep this
    table up to date.

    `ttl_ms`: a key that had no row for so many ms of event time is forgotten, and its next row begins a new result;
    None for never.
    """

    word = "group_by"
    takes_changes = True
    keeps_time = False
    carries_time = True
    input: Node
    keys: tuple[str, ...]
    aggregates: tuple[tuple[str, Aggregate], ...]
    id: str = ""
    ttl_ms: int | None = None

    def text(self) -> str:
        kept = "" if self.ttl_ms is None else f", kept {span_words(self.ttl_ms)}"
        return f"group{by_keys(self.keys)}: {named_texts(self.aggregates)}{kept}"

    def check(self) -> None:
        super().check()
        if self.ttl_ms is None:
            return
        if self.input.changes:
            raise refused_changes("group_by(…).aggregate(ttl=)")
        if not self.keys:
            raise UserError(
                "group_by().aggregate(ttl=) has one row for all, which never expires", hint="leave ttl= out"
            )

    @property
    def needs_time(self) -> bool:
        return self.ttl_ms is not None

    @cached_property
    def changes(self) -> bool:
        return True

    @cached_property
    def unique(self) -> tuple[str, ...] | None:
        return self.keys


@dataclass(frozen=True, eq=False)
class Upsert(ByKey):
    """A step that makes a table with the last row of each key. Its output is the changes of this table.

    If the input is append-only, or `deletes` is True, the step stores the last row of each key. If the input is changes
    and `deletes` is False, it stores all rows of a key that were not deleted, since a delete may make an earlier row the
    last one again. If the input is changes that have this unique key already, the planner leaves the step out.

    - `deletes`: True if a row with the op DELETE deletes the row of its key.
    - `kept`: True if the step stores rows. False if the input is append-only, and the only next step is a sink that
      overwrites the row of a key: then the step stores nothing, and passes each row on.
    """

    word = "upsert"
    takes_changes = True
    input: Node
    keys: tuple[str, ...]
    deletes: bool = False
    id: str = ""
    kept: bool = True

    def check(self) -> None:
        super().check()
        if twice := [name for name in self.keys if self.keys.count(name) > 1]:
            raise UserError(f"upsert: the key has column {twice[0]!r} twice", hint="name it once")

    def text(self) -> str:
        return f"upsert{by_keys(self.keys)}{', whose rows the sink keeps' * (not self.kept)}"

    @property
    def keeps_rows(self) -> bool:
        return self.kept and (self.deletes or not self.input.changes)

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (with_more(wanted, self.keys),)

    @cached_property
    def changes(self) -> bool:
        return True

    @cached_property
    def unique(self) -> tuple[str, ...] | None:
        return self.keys

    @property
    def upserted(self) -> bool:
        return True

    def versions(self) -> Node:
        return Versions(self.input, self.deletes)


def table_node(
    source: str | Source,
    key: str | Sequence[str] | None,
    format: str | Format,
    key_format: str | Format | None = None,
    **options: Any,
) -> tuple[Read, Upsert]:
    """Returns the checked first two steps of a table: the one that reads the source, and the one that keeps the last
    row of each key. `key_format`: the format of the records' keys, or None for that of `record_keys`. `options` are those of
    `read_node`.

    Raises UserError for a format whose records contain several rows. Also raises it for "debezium" without `schema=`,
    with `fields=`, or with a Source of rows.
    """
    if key is None:
        key = source.keys if isinstance(source, Source) else ()
        if not key:
            name = source if isinstance(source, str) else source.name
            raise UserError(f"table: key= is left out, and {name} does not say what its key is", hint='key="id"')
    keys = column_names(flat([key]), "table: key")
    if not keys:
        raise UserError("table: key=[] has no columns", hint='key="id", or key=["shop", "id"]')
    payloads = None if format in ("json", "debezium") else format_of(format, "table", ["debezium"])
    if payloads is not None and not payloads.one_row:
        raise UserError(
            f"table: format {payloads.name}, whose records have many rows", hint="a record of a table is a row"
        )
    if format == "debezium" and isinstance(source, Source) and (isinstance(source, Scans) or source.schema is not None):
        raise UserError(
            f"table: format='debezium' is for records, and {source.name} has rows",
            hint="read the envelopes from a topic; of a file of rows, leave format= out",
        )
    if format == "debezium" and options["schema"] is None:
        raise UserError("table: the columns of a debezium topic are not inferred", hint='schema={"id": "int64", …}')
    if format == "debezium" and options.get("fields"):
        raise UserError(
            "table: fields= are for records, and a record of debezium may change two rows",
            hint="leave fields= out; before and after of an envelope are the rows",
        )
    kind: Any = format if payloads is None else "json"
    if key_format is not None:
        in_keys = format_of(key_format, "table: key_format", [])
        if in_keys.own_columns:
            in_keys.check_input(None, "table: key_format")
        if not in_keys.one_row:
            raise UserError(
                f"table: key_format={in_keys.name!r}, whose records have many rows", hint="a key is one row"
            )
        payloads = KeyAndValue(payloads or JSON, as_key(in_keys), tuple(keys))
    read = read_node(source, table=TableFormat(keys, kind), format=payloads, **options)
    if payloads is not None and read.schema is not None and set(read.schema.names) >= _ENVELOPE:
        raise UserError(
            f"table: the columns are those of Debezium's envelopes, in {payloads.name}, which can be read only from JSON",
            hint="let the connector write rows: transforms.unwrap.type=io.debezium.transforms.ExtractNewRecordState",
        )
    table = Upsert(read, keys, deletes=True)
    table.check()
    return read, table


@dataclass(frozen=True, eq=False)
class Versions(Node):
    """A step that reads the input of an Upsert, and passes on all of its rows as changes. A join by event time
    (AsofJoin) needs them, since a row was valid until the next row of its key replaced it. The planner puts this step
    before an AsofJoin.
    """

    word = "versions"
    takes_changes = True
    input: Node
    deletes: bool

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (wanted,)

    @cached_property
    def changes(self) -> bool:
        return True


@dataclass(frozen=True, eq=False)
class Changelog(Node):
    """A step that turns each change into a row. The column `op` has the kind of the change, such as "insert" or
    "delete".
    """

    word = "changelog"
    takes_changes = True
    input: Node

    @cached_property
    def column_names(self) -> list[str] | None:
        known = self.input.column_names
        return None if known is None else [OP, *known]

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (without(wanted, [OP]),)

    @property
    def given(self) -> dict[str, str | None]:
        return {OP: None}


@dataclass(frozen=True, eq=False)
class Materialize(Node):
    """A step that applies changes to a table, and emits the rows of the table when the input has ended."""

    word = "materialize"
    takes_changes = True
    keeps_time = False
    input: Node
    id: str = ""

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (wanted,)


SortKey: TypeAlias = tuple[str, bool, bool]
"""A column of an order, True if the greatest comes first, and True if null comes last."""


@dataclass(frozen=True, eq=False)
class SortRows(Node):
    """A step that emits rows in an order. `by`: the columns of the order.

    `by_time`: False if the rows are emitted when the input has ended. True for a stream without an end, whose order
    begins with its event time: then a row is emitted when event time has passed it.
    """

    word = "sort"
    takes_changes = True
    input: Node
    by: tuple[SortKey, ...]
    by_time: bool = False
    id: str = ""

    def text(self) -> str:
        words = [f"{name}{' descending' * descending}{' nulls last' * last}" for name, descending, last in self.by]
        return f"sort by {', '.join(words)}{', as event time passes' * self.by_time}"

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (frozenset(name for name, _, _ in self.by),)

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (with_more(wanted, *self.mentioned),)

    @property
    def needs_time(self) -> bool:
        return self.by_time


def sort_node(
    input: Node,
    by: Sequence[str | Sequence[str]],
    descending: bool | Sequence[bool],
    nulls_last: bool | Sequence[bool],
) -> SortRows:
    """Returns the step of `Stream.sort`. Raises UserError for a stream without an end, unless it is sorted by its
    event time first.
    """
    names = column_names(flat(by), "sort")
    if not names:
        raise UserError("sort needs the columns to sort by", hint='sort("amount")')
    down = flags_of("sort", "descending", descending, len(names))
    keys = tuple(zip(names, down, flags_of("sort", "nulls_last", nulls_last, len(names)), strict=True))
    if endless_read(input) is None:
        return SortRows(input, keys)
    time = time_column(input)
    if input.changes or names[0] != time or down[0]:
        first = (
            "the rows are changes" if input.changes else f"its event time is {time}" if time else "it has no event time"
        )
        raise UserError(
            f"sort by {names[0]!r}: the stream has no end to sort at, and {first}",
            hint='sort by event time first, ascending; or top_n(n, by="x") after key_by or window',
        )
    return SortRows(input, keys, by_time=True)
