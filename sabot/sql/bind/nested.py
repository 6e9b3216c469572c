"""A SELECT that is bound as one over another: QUALIFY, and OVER of groups."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sabot.sql.bind.groups import has_aggregate, is_aggregate
from sabot.sql.bind.over import complete_window
from sabot.sql.bind.select import SelectBinder
from sabot.sql.scope import (
    Relation,
    StarName,
)
from sabot.sql.syntax.tree import (
    Call,
    Column,
    Constant,
    Expression,
    Item,
    Name,
    SelectBody,
    Star,
)
from sabot.sql.values import Context, conjuncts, rebuilt, walk

BindSelect = Callable[[SelectBody], Relation]
"""A function that binds the SELECT inside."""


def qualified(context: Context, select: SelectBody, qualify: Expression, bind: BindSelect) -> Relation:
    """Returns the rows of SELECT … QUALIFY: those of a query inside that meet the condition outside."""
    added: list[Item] = []
    shown_names = {item.alias.text.lower() for item in select.items if item.alias is not None}
    plain = [item.expression for item in select.items if isinstance(item.expression, Column)]
    shown_names |= {node.parts[-1].text.lower() for node in plain}
    every = any(isinstance(item.expression, Star) for item in select.items)
    grouped = bool(select.group) or has_aggregate(select.items)

    def is_inside(node: Any) -> bool:
        if isinstance(node, Column):  # a column that only the query inside has
            return len(node.parts) > 1 or not (every or node.parts[0].text.lower() in shown_names)
        return is_over(node) or (grouped and is_aggregate(node))

    def outside(node: Any) -> Any:
        if is_inside(node):
            name = Name(f"qualify{len(added)}", node.span, True)
            added.append(Item(node, name, node.span))
            return Column((name,), node.span)
        return node

    condition = rebuilt(qualify, outside)
    inner = bind(replace(select, qualify=None, items=(*select.items, *added)))
    shown = inner.fields[: len(inner.fields) - len(added)]
    items = tuple(
        Item(Column((StarName(each.name, select.span, True, each),), select.span), None, select.span) for each in shown
    )
    outer = replace(
        select,
        distinct=False,
        items=items,
        where=None,
        group=(),
        sets=(),
        having=None,
        qualify=None,
        hints=(),
        source=None,
    )
    return SelectBinder(context, outer, inner, conjuncts(condition)).bind()


def over_groups(context: Context, select: SelectBody, bind: BindSelect) -> Relation:
    """Returns the rows of a SELECT with groups and OVER: those of OVER over a query inside that has the groups.

        SELECT k, RANK() OVER (ORDER BY SUM(x)) AS r FROM t GROUP BY k
    as
        SELECT k, RANK() OVER (ORDER BY over1) AS r FROM (SELECT k, SUM(x) AS over1 FROM t GROUP BY k)
    """
    over = [any(is_over(node) for node in walk(item)) for item in select.items]
    inside = [
        # a number in the place of OVER, so that GROUP BY 1 still means the first entry
        Item(Constant("integer", "0", item.span), None, item.span) if has else item
        for item, has in zip(select.items, over, strict=True)
    ]
    shown: dict[str, int] = {}
    for i, item in enumerate(inside):
        name = item.alias or (item.expression.parts[-1] if isinstance(item.expression, Column) else None)
        if name is not None:
            shown[name.text.lower()] = i

    def moved(node: Any) -> Any:
        """Returns a column that the query inside has for an expression without OVER."""
        if not any(isinstance(each, Column) or is_aggregate(each) for each in walk(node)):
            return node
        known = shown.get(node.parts[0].text.lower()) if isinstance(node, Column) and len(node.parts) == 1 else None
        if known is None:
            known = len(inside)
            inside.append(Item(node, Name(f"over{known}", node.span, True), node.span))
        return Column((StarName(str(known), node.span, True),), node.span)

    def split(node: Any) -> Any:
        if is_over(node):
            window = complete_window(node.over, select.windows)
            order = tuple(replace(each, expression=moved(each.expression)) for each in window.order)
            window = replace(window, partition=tuple(map(moved, window.partition)), order=order)
            rows = None if node.filter is None else moved(node.filter)
            return replace(node, arguments=tuple(map(moved, node.arguments)), filter=rows, over=window)
        without = isinstance(node, Expression) and not any(is_over(each) for each in walk(node))
        return moved(node) if without else node

    outside = [rebuilt(item.expression, split) if has else None for item, has in zip(select.items, over, strict=True)]
    inner = bind(replace(select, items=tuple(inside), distinct=False, windows=()))

    def found(node: Any) -> Any:
        if isinstance(node, Column) and isinstance(node.parts[0], StarName) and node.parts[0].column is None:
            field = inner.fields[int(node.parts[0].text)]
            return Column((StarName(field.name, node.span, True, field),), node.span)
        return node

    items = []
    for i, (item, made) in enumerate(zip(select.items, outside, strict=True)):
        alias = item.alias
        if made is None:
            if alias is None and isinstance(item.expression, Column):
                alias = item.expression.parts[-1]
            made = Column((StarName(str(i), item.span, True),), item.span)
        items.append(Item(rebuilt(made, found), alias, item.span))
    middle = replace(select, items=tuple(items), where=None, group=(), sets=(), having=None, hints=(), source=None)
    return SelectBinder(context, middle, inner, []).bind()


def is_over(node: Any) -> bool:
    return isinstance(node, Call) and node.over is not None
