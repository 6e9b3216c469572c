"""What the changes that come into a step are, over the tables before it that make them: by that a start sees whether they go on.

    table cars ──▶ filter x > 3 ──▶ with z = x * 2 ──▶ group by g: sum(z)
      the maker      where              columns          lineage: from cars, where x > 3, g = g, z = x * 2

A step over changes takes rows away that it had got before. So its state is right only as long as the same rows come in from the same
maker: with another filter between, it would keep rows that are never taken away, and take away rows that it never had.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from sabot.api.expr import Expr, col
from sabot.api.nodes.changes import GroupAggregate
from sabot.api.nodes.node import Columns, Node
from sabot.api.nodes.rows import Broadcast, Drop, Filter, OnError, Rename, Select, Union, WithColumns
from sabot.operators.layout.stages import Step


@dataclass(frozen=True)
class Lineage:
    """Changes as they come out of a step. maker: the id of the step before it that keeps the table whose changes they are. columns: what
    those columns are, over the maker's, that are not the maker's of that name. where: the filters that they have passed, as texts.
    """

    maker: str
    columns: Mapping[str, Expr] = field(default_factory=dict)
    where: tuple[str, ...] = ()


Lineages: TypeAlias = tuple[Lineage, ...]
"""One for each maker: several behind a union, none where the rows are no changes."""


def lineages_behind(node: Node, before: Sequence[Lineages], step: Step | None) -> Lineages:
    """Returns the lineages of the rows that a node gives. before: those of its inputs. step: its operator, if it has one."""
    if not node.changes:
        return ()
    if isinstance(node, Union):
        return tuple(each for lineages in before for each in lineages)
    if isinstance(node, Filter | Select | WithColumns | Drop | Rename | OnError | Broadcast):
        return tuple(_passed(node, each) for each in before[0])
    if step is None:  # an upsert of changes that have its key already
        return before[0] if before else ()
    if isinstance(node, GroupAggregate):  # an aggregate is what it computes: names may be given to others
        return (Lineage(step.id, {name: col(each.text()) for name, each in node.aggregates}),)
    return (Lineage(step.id),) if hasattr(node, "id") else ()


def _passed(node: Node, lineage: Lineage) -> Lineage:
    columns = lineage.columns
    if isinstance(node, Filter):
        return replace(lineage, where=(*lineage.where, node.predicate.substitute(columns).text()))
    if isinstance(node, Select):
        return replace(lineage, columns={name: expr.substitute(columns) for name, expr in node.columns})
    if isinstance(node, WithColumns):
        return replace(lineage, columns={**columns, **{name: expr.substitute(columns) for name, expr in node.columns}})
    if isinstance(node, Rename):
        moved = {new: columns.get(old, col(old)) for old, new in node.names}
        kept = {name: expr for name, expr in columns.items() if name not in {old for old, _ in node.names}}
        return replace(lineage, columns=kept | moved)
    return lineage


def said(node: Node, before: Sequence[Lineages], used: Columns) -> list[list[dict[str, Any]]]:
    """Returns, for each input of a step, what a checkpoint says of its lineages, as JSON values; none where no input is changes.

    used: the columns of the step's rows that are used behind it. Columns that the step does not ask for are left out.
    """
    if not any(before):
        return []
    found = []
    for lineages, upstream, asked in zip(before, node.inputs, node.asks(used), strict=True):
        names = sorted(asked if asked is not None else upstream.column_names or ())
        found.append(
            [
                {
                    "from": each.maker,
                    "where": sorted(each.where),
                    "columns": {name: each.columns.get(name, col(name)).text() for name in names},
                }
                for each in lineages
            ]
        )
    return found
