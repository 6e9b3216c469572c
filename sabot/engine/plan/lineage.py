"""Describes the changes that come into a step, starting at the steps that keep their tables. A start compares this
description with the one in the checkpoint, to find out whether the changes continue.

    table cars ──▶ filter x > 3 ──▶ with z = x * 2 ──▶ group by g: sum(z)
      the maker      where              columns          lineage: from cars, where x > 3, g = g, z = x * 2

A step over changes takes away rows that it has had before. So its state is right only as long as it receives the same
rows of the same maker. If the filter changed, the step would keep rows that are never taken away, and would have to
take away rows that it never had.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Any, TypeAlias

from sabot.api.expr import Expr, col
from sabot.api.nodes.changes import GroupAggregate
from sabot.api.nodes.node import Columns, Node
from sabot.api.nodes.rows import Broadcast, Drop, Filter, OnError, Rename, Select, Union, WithColumns
from sabot.base.dataclass import dataclass
from sabot.engine.operators.layout.stages import Step


@dataclass(frozen=True)
class Lineage:
    """The description of the changes that a step emits.

    `maker`: the id of the step that keeps the table. `columns`: the columns as expressions over the maker's columns;
    a column that is not listed is the maker's column of the same name. `where`: the filters that the changes have
    passed, as texts.
    """

    maker: str
    columns: Mapping[str, Expr] = field(default_factory=dict)
    where: tuple[str, ...] = ()


Lineages: TypeAlias = tuple[Lineage, ...]
"""The lineages of the changes that a step emits, one for each table from which they come: several behind a union,
none if its rows are no changes.
"""


def lineages_behind(node: Node, before: Sequence[Lineages], step: Step | None) -> Lineages:
    """Returns the lineages of the rows that a node emits. `before`: those of its inputs. `step`: the node's operator,
    or None if it has none.
    """
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


def computed_behind(node: Node, before: Sequence[Mapping[str, Expr]]) -> Mapping[str, Expr]:
    """Returns the columns of the rows that a node emits, as expressions over the columns of the last step with state before it,
    or of the source; a column that is not listed is that one's column of the same name. `before`: those of its inputs.
    """
    if isinstance(node, Filter | Select | WithColumns | Drop | Rename | OnError | Broadcast):
        return _passed(node, Lineage("", before[0])).columns
    return {}


def computed_texts(node: Node, before: Sequence[Mapping[str, Expr]], used: Columns) -> list[dict[str, str]]:
    """Returns the columns that a step with state needs of each of its inputs, as texts. `before`: the columns of all inputs.
    `used`: the columns of the step's rows that later steps use.
    """
    found = []
    for columns, upstream, asked in zip(before, node.inputs, node.asks(used), strict=True):
        names = sorted(asked if asked is not None else upstream.column_names or ())
        found.append({name: columns.get(name, col(name)).text() for name in names})
    return found


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
    """Returns the lineages of each input of a step in the form in which a checkpoint stores them, as JSON values.
    Returns an empty list if no input is changes.

    `before`: the lineages of all inputs. `used`: the columns of the step's rows that later steps use. Input columns
    that the step needs neither for them nor itself are left out.
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
