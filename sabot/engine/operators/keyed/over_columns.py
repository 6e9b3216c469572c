"""Descriptions of the columns that `Over` adds, and the conversion of their state from a checkpoint with other
columns.

The state of a column depends on its kind:

    aggregate over all rows   accumulators
    aggregate over a frame    the values of the rows in the frame; aggregates of the same argument share them
    row_number and ranks      counters, which all of them share
    lag                       the values of its argument
    lead                      the rows that wait, whole
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from sabot.base.dataclass import dataclass
from sabot.codecs.json import schema_of_text
from sabot.engine.operators.aggregates.aggregator import KINDS, AggregateColumn, state_arguments
from sabot.engine.operators.aggregates.migration import Keeps, shared_by, sources_of
from sabot.engine.operators.base import Saved

RANKS = ("row_number", "rank", "dense_rank")
# what follows the argument in the text of a lag
_LAG = re.compile(r"(, offset=(?P<offset>[0-9]+))?(, default=.*)?[)]$")
_MADE = re.compile(r"__[0-9]+")  # names of columns that hold arguments: another program uses them for other arguments


@dataclass(frozen=True)
class OverColumn:
    """One column that `Over` adds. `argument` and `where` name input columns.

    `kind`: the kind of an aggregate, or one of OVER_KINDS. `offset`, `default`: for lag and lead, the distance in
    rows, and the value where there is no such row. `where`, `ddof`, `shares`, `rounds`: as in AggregateColumn.
    `text`: the column as the user wrote it, if its argument is an expression without a name.
    """

    name: str
    kind: str
    argument: str | None = None
    offset: int = 1
    default: Any = None
    where: str | None = None
    ddof: int = 1
    text: str = ""
    shares: bool = False
    rounds: bool = False

    def description(self) -> str:
        """Returns the column as text, without its name: "lag(x, 2)"."""
        if self.text:
            return self.text
        if self.kind in KINDS:
            return self.aggregate().description()
        default = None if self.default is None else f"default={self.default!r}"
        given = [self.argument, str(self.offset) if self.kind in ("lag", "lead") else None, default]
        return f"{self.kind}({', '.join(each for each in given if each is not None)})"

    def aggregate(self) -> AggregateColumn:
        said: Any = {
            "where": self.where,
            "ddof": self.ddof,
            "text": self.text,
            "shares": self.shares,
            "rounds": self.rounds,
        }
        return AggregateColumn(self.name, self.kind, self.argument, **said)


def over_arguments(columns: Sequence[OverColumn], input: pa.Schema, frame: Any) -> dict[str, str]:
    """Returns, by name, what the state of an aggregate depends on in the type of its argument, as text: a frame keeps the
    values of its rows, decimals as whole numbers.

    `frame`: the frame in the form of the operator's `state_schema`.
    """
    calls = [each for each in columns if each.kind in KINDS]
    if frame == "all":
        return state_arguments([each.aggregate() for each in calls], input)
    kinds = {each.name: input.field(each.argument).type for each in calls if each.argument is not None}
    return {
        name: f"decimals of scale {kind.scale}" if pa.types.is_decimal(kind) else str(kind)
        for name, kind in kinds.items()
    }


def keeps_over(frame: Any, before: Sequence[Sequence[str]]) -> Keeps:
    """Returns a function from the text of a column to the text of its state. Columns with equal texts of state share
    it.

    `frame`: the frame in the form of the operator's `state_schema`. `before`: the columns in the checkpoint, in this form.
    As many rows are kept for lag as its greatest offset, so the state of a `lag` that looks further back is another one.
    """
    depth = max((_offset_of(words) for _, words, _ in before if words.startswith("lag(")), default=0)

    def keeps(words: str) -> str:
        kind, _, rest = words.partition("(")
        if kind in RANKS:
            return "ranks"
        if kind == "lag":
            argument = _LAG.sub("", rest)
            return f"lag({argument}" if _offset_of(words) <= depth else f"lag({argument}, {_offset_of(words)} rows back"
        if kind not in KINDS or frame == "all":
            return shared_by(words)
        return f"frame({re.sub(r', ddof=[0-9]+', '', rest)}"

    return keeps


def _offset_of(words: str) -> int:
    """Returns the offset of a lag, whose text has it if it is not 1."""
    found = _LAG.search(words)
    return int(found["offset"] or 1) if found else 1


def hidden_over(columns: Sequence[Sequence[str]]) -> list[tuple[str, str, str]]:
    """Returns the state that an `Over` of these columns keeps and that is the state of no single column: the counters
    of all ranks, if a column is lag or a rank. The result has the form of `columns`.
    """
    kinds = {words.partition("(")[0] for _, words, _ in columns}
    return [("", "row_number()", "int64")] if kinds & {*RANKS, "lag"} else []


def columns_read(reader: Mapping[str, Any]) -> list[OverColumn]:
    """Returns the columns of an `Over` in a checkpoint, from its `state_reader`. An option that an older version did
    not write has the value that this version implied.
    """
    older: dict[str, Any] = {name: reader.get(name, True) for name in ("shares", "rounds")}
    return [OverColumn(**each, **older) for each in reader["calls"]]


class OverMigration:
    """The conversion of state from the columns of a checkpoint (`was`) to the columns of the program. `input`: the
    input columns in the checkpoint.

    `sources`: for each column of the program, the index of the checkpoint's column whose state it continues with, or
    None.
    """

    def __init__(self, reader: Mapping[str, Any], now: Sequence[OverColumn], sources: Sequence[int | None]) -> None:
        self.was = columns_read(reader)
        input = schema_of_text(reader["input"])
        assert input is not None
        self.input = input
        self._sources = {
            new.name: self.was[source] for new, source in zip(now, sources, strict=True) if source is not None
        }
        # For added columns and their arguments: the name in the program -> the name in the checkpoint, or "" for none.
        self._names = {new.name: "" for new in now} | {name: old.name for name, old in self._sources.items()}
        for new in now:
            old = self._sources.get(new.name)
            if old is not None:
                pairs = ((new.argument, old.argument), (new.where, old.where))
                self._names |= {mine: theirs for mine, theirs in pairs if mine is not None and theirs is not None}

    def source(self, column: OverColumn) -> OverColumn | None:
        """Returns the checkpoint's column whose state `column` continues with, or None if it begins empty."""
        return self._sources.get(column.name)

    def rows(
        self, schema: pa.Schema, rows: pa.RecordBatch, defaults: Mapping[str | None, Any] | None = None
    ) -> pa.RecordBatch:
        """Converts rows of the checkpoint to the columns of `schema`. A column that is missing in them has its value
        in `defaults`, or null.
        """
        columns = []
        for field in schema:
            then = self._names.get(field.name, "" if _MADE.fullmatch(field.name) else field.name)
            if then in rows.schema.names:
                columns.append(rows.column(then))
            else:
                columns.append(pa.array([(defaults or {}).get(field.name)] * rows.num_rows, field.type))
        fields = [field.with_type(column.type) for field, column in zip(schema, columns, strict=True)]
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, schema.metadata))


def over_migration(
    saved: Sequence[Saved], schema: Mapping[str, Any], now: Sequence[OverColumn], forgets: frozenset[str]
) -> OverMigration | None:
    """Returns the conversion from a checkpoint's columns to those of the program. Returns None if the program has the
    same columns, and if the checkpoint does not say which columns it has.

    `schema`: the `state_schema` of the program's operator. `now`: the columns of the program. `forgets`: names of
    columns whose state the user drops.
    """
    facts = next((part.facts for part in saved if part.facts.get("schema")), None)
    if facts is None:
        return None
    before, reader = facts["schema"]["columns"], facts["reader"]
    sources = sources_of(before, schema["columns"], forgets, keeps_over(schema["frame"], before))
    same = reader.get("shares") is False or all(call.get("ddof", 1) == 1 for call in reader["calls"])
    same = same and _depth(columns_read(reader)) == _depth(now)
    if same and sources == list(range(len(before))):
        return None
    return OverMigration(reader, now, sources)


def _depth(columns: Sequence[OverColumn]) -> int:
    """Returns the number of rows that are kept for lag."""
    return max((each.offset for each in columns if each.kind == "lag"), default=0)
