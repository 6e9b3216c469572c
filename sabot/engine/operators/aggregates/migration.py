"""Converts the state of aggregates in a checkpoint for a program with other aggregates.

    checkpoint   total = sum(x)   n = count()
                      │               └── not in the program: its state is dropped
    program      total = sum(x)   biggest = max(x)   begins empty in each group

Aggregates are matched by what they compute; their names may differ. The state of an aggregate is stored in
accumulators of a table, and in columns beside the table (`StatePlace`). Each group of the checkpoint is restored:
with its saved state for aggregates that match, and with empty state for aggregates that are new.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from sabot._cython.groups.keyed import GroupTable
from sabot.engine.state.base import Saved
from sabot.engine.state.tables.restored import Renewal
from sabot.errors import UserError

_KEPT_AS = {"stddev": "variance", "any": "first"}
ROWS_OF_A_KEY = ("", "count()", "int64")  # the row count that every group keeps, in the form of an aggregate

Array: TypeAlias = pa.Array
Keeps: TypeAlias = Callable[[str], str]


class StatePlace(NamedTuple):
    """The columns of one aggregate's state. `accumulators`: the indices of its accumulators in the table. `beside`:
    the names of its columns beside the table.
    """

    accumulators: Sequence[int]
    beside: Sequence[str]


class StateLayout(NamedTuple):
    """The columns of the state of all aggregates.

    `table`: returns an empty table. `beside`: the schema of the state beside the table: the keys, then the state.
    `places`: the columns of each aggregate.
    """

    table: Callable[[], GroupTable]
    beside: pa.Schema
    places: Sequence[StatePlace]


class AggregateVerdict(NamedTuple):
    """The decision whether one aggregate continues with its saved state.

    `name`: its name in the program, or in the checkpoint if the program no longer has it. `outcome`: "keep": it
    continues with the state of the checkpoint's aggregate number `source`. "add": it begins empty. "drop": its state
    is dropped. "refuse": the checkpoint has another computation under its name, so the program cannot start.
    `before`, `now`: its text in the checkpoint and in the program, with the type of the result, or None if it is
    missing there. `why`: the reason, as text for the user. `called`: its name in the checkpoint if that differs from
    `name`, else "".
    """

    name: str
    outcome: Literal["keep", "add", "drop", "refuse"]
    before: str | None
    now: str | None
    why: str = ""
    source: int | None = None
    called: str = ""


def aggregate_verdicts(
    before: Sequence[Sequence[str]],
    now: Sequence[Sequence[str]],
    forgets: frozenset[str] = frozenset(),
    *,
    keeps: Keeps | None = None,
    hidden: Sequence[Sequence[str]] = (),
    begins: str = "it begins empty",
    arguments: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
) -> list[AggregateVerdict]:
    """Returns a decision for each aggregate of the program, in order, then for those that only the checkpoint has.

    `before`, `now`: (name, text, type of the result) of each aggregate of the checkpoint and of the program.
    `forgets`: names of aggregates whose state the user drops. `keeps`: maps an aggregate's text to the text of its
    state; `shared_by` if None. Aggregates with equal state texts share one state, except if `keeps` is `str`.
    `hidden`: state that the operator stores for no aggregate of the user, in the form of `before`. `begins`: the
    reason that is reported for a new aggregate. `arguments`: by name, the types of the arguments in the checkpoint and
    in the program (`state_arguments`). A type that one of them lacks counts as equal.
    """
    keeps = shared_by if keeps is None else keeps
    anyway = {} if keeps is str else {keeps(words): "the step" for _, words, _ in hidden}
    before = [*before, *hidden]
    sources = sources_of(before, now, forgets, keeps)
    taken = {source for source in sources if source is not None}
    kept = {keeps(words): name for (name, words, _), source in zip(now, sources, strict=True) if source is not None}
    kept |= anyway
    names = {name: number for number, (name, _, _) in enumerate(before)}
    found = []
    for (name, words, kind), source in zip(now, sources, strict=True):
        text, same_name = f"{words} {kind}", names.get(name)
        if source is not None:
            was, then, old = before[source]
            if then == words and old != kind:
                found.append(_refused(name, f"{then} {old}", text))
                continue
            one, two = arguments[0].get(was), arguments[1].get(name)
            if one is not None and two is not None and one != two:
                found.append(_refused(name, f"{then} of {one}", f"{words} of {two}"))
                continue
            why = "" if was == name else f"the checkpoint calls it {was}" if was else "every group keeps it anyway"
            found.append(AggregateVerdict(name, "keep", text, text, why, source, "" if was == name else was))
        elif name in forgets and keeps(words) in kept:
            why = f"it shares its state with {kept[keeps(words)]}: it cannot be dropped alone"
            found.append(AggregateVerdict(name, "keep", text, text, why))
        elif same_name is not None and same_name not in taken and name not in forgets:
            was = " ".join(before[same_name][1:])
            taken.add(same_name)
            found.append(_refused(name, was, text))
        else:
            why = "its state is dropped, as asked" if name in forgets else begins
            found.append(AggregateVerdict(name, "add", None, text, why))
    here = {name for name, _, _ in now}
    for number, (name, *said) in enumerate(before):
        if number not in taken and name and not (name in forgets and name in here):
            why = (
                "its state is dropped, as asked"
                if name in forgets
                else "the program no longer has it; a table into which it was written keeps the column"
            )
            found.append(AggregateVerdict(name, "drop", " ".join(said), None, why))
    return found


def _refused(name: str, before: str, now: str) -> AggregateVerdict:
    return AggregateVerdict(name, "refuse", before, now, f"it was {before}, is {now}")


def sources_of(
    before: Sequence[Sequence[str]], now: Sequence[Sequence[str]], forgets: frozenset[str], keeps: Keeps
) -> list[int | None]:
    """Returns, for each aggregate of the program, the index of the checkpoint's aggregate whose state it continues
    with, or None if it begins empty.

    If several aggregates of the checkpoint have that state, one with the same text is preferred, then one with the
    same name. `keeps`: as in `aggregate_verdicts`.
    """
    found: list[int | None] = []
    for name, words, _ in now:
        same = [number for number, was in enumerate(before) if keeps(was[1]) == keeps(words) and was[0] not in forgets]
        likeness = {number: (before[number][1] != words, before[number][0] != name) for number in same}
        found.append(None if name in forgets else min(same, key=likeness.__getitem__, default=None))
    return found


def shared_by(words: str) -> str:
    """Returns the state of an aggregate as text. Aggregates with different results may share accumulators:
    `stddev(x)` keeps the state of `variance(x)`.
    """
    kind, _, rest = words.partition("(")
    return f"{_KEPT_AS.get(kind, kind)}({re.sub(r', ddof=[0-9]+', ', ddof', rest)}"


class StateMigration(Renewal):
    """A conversion of groups in a checkpoint (`was`) to groups of the program (`now`).

    `sources`: for each aggregate of the program, the index of the checkpoint's aggregate whose state it continues
    with, or None if it begins empty. The attribute `states` has all columns of the checkpoint. Raises UserError if
    the state of an aggregate has another number of columns, or a column another type, than in the checkpoint.
    """

    def __init__(self, was: StateLayout, now: StateLayout, sources: Sequence[int | None]) -> None:
        self.make, self._now = was.table, now
        self._keys = len(was.table().keys)
        self._states = now.table().states
        # all columns that the checkpoint has
        self.states = pa.schema([*was.table().states, *list(was.beside)[self._keys :]])
        self._width = len(was.beside)
        accumulators: dict[int, int] = {}
        beside: dict[str, str] = {}
        for place, source in zip(now.places, sources, strict=True):
            if source is not None:
                then = was.places[source]
                if len(place.accumulators) != len(then.accumulators) or len(place.beside) != len(then.beside):
                    raise _of_another_type("in another number of columns")
                accumulators |= zip(place.accumulators, then.accumulators, strict=True)
                beside |= zip(place.beside, then.beside, strict=True)
        self._from = beside
        for name in self._states.names[self._keys :]:
            number, _, part = name.partition(".")
            if int(number) in accumulators:
                self._from[name] = f"{accumulators[int(number)]}.{part}"
        self._blank: pa.RecordBatch | None = None  # a group without rows

    def groups(self, groups: pa.RecordBatch) -> pa.RecordBatch:
        """Converts groups of the checkpoint (`groups`) to the columns of the program's table, and returns their keys
        and accumulators.
        """
        columns = [*groups.columns[: self._keys], *self._accumulators(groups)]
        return pa.RecordBatch.from_arrays(columns, schema=self._states)

    def beside(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the keys and the columns beside the table. Further columns of `rows`, which the operator itself has
        added, are appended unchanged.
        """
        own = range(self._width, rows.num_columns)
        columns = [*rows.columns[: self._keys], *self._beside(rows), *(rows.column(each) for each in own)]
        return pa.RecordBatch.from_arrays(
            columns, schema=pa.schema([*self._now.beside, *(rows.schema.field(each) for each in own)])
        )

    def whole(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the keys, the accumulators, and the columns beside the table."""
        columns = [*rows.columns[: self._keys], *self._accumulators(rows), *self._beside(rows)]
        fields = list(self._now.beside)[self._keys :]
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema([*self._states, *fields]))

    def _accumulators(self, groups: pa.RecordBatch) -> list[Array]:
        if self._blank is None and groups.num_rows:
            table = self._now.table()
            self._blank = table.export(table.resolve(groups.slice(0, 1), list(range(self._keys))))
        fields = list(self._states)[self._keys :]
        return [self._column(field, groups, self._blank_of(field)) for field in fields]

    def _beside(self, rows: pa.RecordBatch) -> list[Array]:
        fields = list(self._now.beside)[self._keys :]
        return [
            self._column(field, rows, pa.array([[] if pa.types.is_list(field.type) else b""], field.type))
            for field in fields
        ]

    def _blank_of(self, field: pa.Field) -> Array:
        return pa.nulls(1, field.type) if self._blank is None else self._blank.column(field.name)

    def _column(self, field: pa.Field, rows: pa.RecordBatch, blank: Array) -> Array:
        source = self._from.get(field.name)
        if source is None:
            return blank.take(pa.array(np.zeros(rows.num_rows, np.int32)))
        column = rows.column(source)
        if column.type != field.type:
            raise _of_another_type(f"as {column.type}, and the program keeps it as {field.type}")
        return column


def _of_another_type(how: str) -> UserError:
    return UserError(
        f"the checkpoint has the state of an aggregate {how}: the type of its column has changed",
        hint="cast the column to the type that it had, or let the step begin empty (--drop)",
    )


def migration_of(
    saved: Sequence[Saved],
    now: Sequence[Sequence[str]],
    forgets: frozenset[str],
    layout: StateLayout,
    was: Callable[[Mapping[str, Any]], StateLayout],
    *,
    hidden: Sequence[Sequence[str]] = (),
    keeps: Keeps | None = None,
) -> StateMigration | None:
    """Returns the conversion of a checkpoint's state to that of the program's aggregates. Returns None if the
    aggregates are the same, and if the checkpoint does not say which aggregates it has.

    `now`, `keeps`: the parameters of `aggregate_verdicts`. `layout`: the layout of the program's state. `was`:
    returns the layout of the checkpoint's state from its `Stateful.state_reader`. `hidden`: state that checkpoint and
    program both store for no aggregate of the user, in the form of `now`. In both layouts it comes last.
    """
    facts = next((part.facts for part in saved if part.facts.get("schema")), None)
    if facts is None:
        return None
    before, reader = facts["schema"]["aggregates"], facts["reader"]
    sources = sources_of([*before, *hidden], now, forgets, shared_by if keeps is None else keeps)
    same = reader.get("shares") is False or all(call.get("ddof", 1) == 1 for call in reader["calls"])
    if same and sources == list(range(len(before))):
        return None
    return StateMigration(was(reader), layout, [*sources, *range(len(before), len(before) + len(hidden))])
