"""The columns that `Over` adds, as descriptions, and how the state of those of a checkpoint becomes that of those of now.

What a column keeps, its kind says: aggregates over all rows keep accumulators. Aggregates over a frame keep the values of its rows, which
all aggregates of one argument share. Ranks share counters. `lag` keeps the values of its argument; for `lead`, whole rows wait.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sabot.codecs.json import schema_of_text
from sabot.operators.aggregates.aggregator import KINDS, AggregateColumn
from sabot.operators.aggregates.migration import Keeps, shared_by, sources_of
from sabot.operators.base import Saved

RANKS = ("row_number", "rank", "dense_rank")
_MADE = re.compile(
    r"__[0-9]+"
)  # names of columns that were made of arguments: another program gives them to other arguments


@dataclass(frozen=True)
class OverColumn:
    """One column that is added. kind: that of an aggregate, or one of OVER_KINDS. `argument` and `where` name input columns.

    offset, default: for lag and lead. where, ddof: for aggregates. text: the column as the user wrote it, where its argument is an
    expression without a name. shares, rounds: as of an AggregateColumn.
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
        """The column as text, without its name."""
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


def keeps_over(frame: Any) -> Keeps:
    """What a column keeps, as text, by what it computes. frame: as in the schema of the operator's state."""

    def keeps(words: str) -> str:
        kind, _, rest = words.partition("(")
        if kind in RANKS:
            return "ranks"
        if kind == "lag":
            return f"lag({re.sub(r'(, offset=[0-9]+)?(, default=.*)?[)]$', '', rest)}"
        if kind not in KINDS or frame == "all":
            return shared_by(words)
        return f"frame({re.sub(r', ddof=[0-9]+', '', rest)}"

    return keeps


def hidden_over(columns: Sequence[Sequence[str]]) -> list[tuple[str, str, str]]:
    """What an `Over` of these columns keeps beside them, as a column: where it has ranks or lag, all ranks of its rows."""
    kinds = {words.partition("(")[0] for _, words, _ in columns}
    return [("", "row_number()", "int64")] if kinds & {*RANKS, "lag"} else []


def columns_read(reader: Mapping[str, Any]) -> list[OverColumn]:
    """The columns that an Over of a checkpoint had. What its version did otherwise, it does not say."""
    older: dict[str, Any] = {name: reader.get(name, True) for name in ("shares", "rounds")}
    return [OverColumn(**each, **older) for each in reader["calls"]]


class OverMigration:
    """The columns that a checkpoint had (`was`), over rows of `input`, and with the state of which of them those of now go on."""

    def __init__(self, reader: Mapping[str, Any], now: Sequence[OverColumn], sources: Sequence[int | None]) -> None:
        self.was = columns_read(reader)
        input = schema_of_text(reader["input"])
        assert input is not None
        self.input = input
        self._sources = {
            new.name: self.was[source] for new, source in zip(now, sources, strict=True) if source is not None
        }
        # Of columns that are added, or were made of arguments: the names of now -> those that they had; "": there was none.
        self._names = {new.name: "" for new in now} | {name: old.name for name, old in self._sources.items()}
        for new in now:
            old = self._sources.get(new.name)
            if old is not None:
                pairs = ((new.argument, old.argument), (new.where, old.where))
                self._names |= {mine: theirs for mine, theirs in pairs if mine is not None and theirs is not None}

    def source(self, column: OverColumn) -> OverColumn | None:
        """The column of the checkpoint with whose state this one goes on."""
        return self._sources.get(column.name)

    def rows(
        self, schema: pa.Schema, rows: pa.RecordBatch, defaults: Mapping[str | None, Any] | None = None
    ) -> pa.RecordBatch:
        """Rows of the checkpoint with these columns. Those that they do not have are null, or as `defaults` says by name."""
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
    """How the columns of a checkpoint become those of now; None where it has the same ones. schema: of the operator's state now."""
    facts = next((part.facts for part in saved if part.facts.get("schema")), None)
    if facts is None:
        return None
    before, reader = facts["schema"]["columns"], facts["reader"]
    sources = sources_of(before, schema["columns"], forgets, keeps_over(schema["frame"]))
    same = reader.get("shares") is False or all(call.get("ddof", 1) == 1 for call in reader["calls"])
    if same and sources == list(range(len(before))):
        return None
    return OverMigration(reader, now, sources)
