"""The binder of FOR SYSTEM_TIME AS OF: rows with the version of a table at their event time, or with its rows of now."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sabot.sql.bind.joins.columns import copied, joined, with_further
from sabot.sql.bind.joins.conditions import JoinConditions
from sabot.sql.bind.joins.lookups import asked_table, bind_database, reads_database
from sabot.sql.bind.joins.versions import ends_in_lists, versions, what_has_versions
from sabot.sql.scope import (
    Relation,
    at,
    is_clock,
)
from sabot.sql.syntax.text import SqlFault
from sabot.sql.syntax.tree import (
    Column,
    JoinSource,
    TableName,
)
from sabot.sql.values import Context, walk

_log = logging.getLogger(__name__)


def bind_system_time(context: Context, join: JoinSource, left: Relation, right: Relation, table: TableName) -> Relation:
    """Returns the rows of the left table with those of the right one that FOR SYSTEM_TIME AS OF of `table` says."""
    node = table.as_of
    on = JoinConditions(context, join, left, right, [])
    if (node is not None and is_clock(node)) or (isinstance(node, Column) and _is_clock_of(right, node, left)):
        return _bind_lookup(on)
    assert isinstance(node, Column)
    field, further = left.find(node.parts)
    if field.clock:
        return _bind_lookup(on)
    if further or field.shift_ms != 0:
        times = [each.name for each in left.fields if each.shift_ms == 0]
        hint = f"the event time is {times[0]}" if times else "declare it: WATERMARK FOR ts AS ts"
        raise SqlFault(node.span, f"{node.parts[-1].text} is neither the event time nor PROCTIME()", hint)
    return _bind_as_of(on)


def _is_clock_of(right: Relation, node: Column, left: Relation) -> bool:
    """Returns True for a column PROCTIME() of the right table, which the left one does not have."""
    try:
        left.find(node.parts)
    except SqlFault:
        return any(each.clock and each.name.lower() == node.parts[-1].text.lower() for each in right.fields)
    return False


def _bind_lookup(on: JoinConditions) -> Relation:
    """Returns the rows of the left table with the row that the right one has at the moment of processing."""
    if on.left.stream.changes:
        message = "these rows are updated as others come, and a lookup takes rows that are only added"
        raise SqlFault(
            on.join.left.span,
            message,
            "look up first, and group or rank the joined rows; or a JOIN without AS OF",
        )
    table = asked_table(on.right.stream)
    if table is not None:
        return bind_database(on, table)
    if reads_database(on.right.stream):
        name = next((each.qualifier for each in on.right.fields), "this query")
        message = f"{name} is computed from all rows of a database, and AS OF a PROCTIME() asks for those of a key"
        hint = "FOR SYSTEM_TIME AS OF the table itself, or a view with columns and WHERE; JOIN without it reads all at the start"
        raise SqlFault(on.join.right.span, message, hint)
    return _bound(on, lambda stream, other, options: stream.lookup(other, **options))


def _bind_as_of(on: JoinConditions) -> Relation:
    """Returns the rows of the left table with the version of the right one at their event time."""
    if on.left.stream.changes:
        raise SqlFault(
            on.join.left.span,
            "these rows are updated as others come, and FOR SYSTEM_TIME AS OF an event time takes final ones",
            "the first row by the event time is final (ROW_NUMBER() … ORDER BY ts, = 1); or join first, and rank the joined rows",
        )
    _check_versions(on)
    right = on.right
    if ends_in_lists(right.stream):
        name = next((each.qualifier for each in right.fields), "this table")
        raise SqlFault(
            on.join.right.span,
            f"{name} has its lists when its rows have ended, so it has no versions by event time",
            "ARRAY_AGG and LISTAGG in GROUP BY of a window; or aggregates of one value, such as MAX",
        )
    if right.stream.changes:
        with at(on.join.right.span):
            found = versions(right.stream)
        if found is None:
            name = next((each.qualifier for each in right.fields), "this table")
            raise SqlFault(
                on.join.right.span,
                f"{name} is updated as rows come, so it has no versions by event time",
                f"{what_has_versions(right.stream)}; or AS OF a column PROCTIME(), for the rows that exist",
            )
        on.right = replace(right, stream=found)
    return _bound(on, lambda stream, other, options: stream.join_asof(other, **options))


def _check_versions(on: JoinConditions) -> None:
    """Raises SqlFault if a declared table has no versions: no event time, or a key that ON leaves out. Warns if it
    has no key.
    """
    right, name = on.right, next((each.qualifier for each in on.right.fields), "")
    if right.key is None:
        return
    span = on.join.right.span
    if not any(each.shift_ms == 0 for each in right.fields):
        raise SqlFault(
            span,
            f"{name} has no event time, so its rows are valid at no time",
            "AS OF a column PROCTIME() of the left table asks the database"
            if asked_table(right.stream) is not None
            else "WATERMARK FOR ts AS ts in CREATE TABLE",
        )
    columns = [node for each in on.own for node in walk(each) if isinstance(node, Column)]
    found = [on.both.find(node.parts)[0] for node in columns]
    asked = {each.name.lower() for each in found if any(each is mine for mine in right.fields)}
    left_out = next((each for each in right.key if each.lower() not in asked), None)
    if left_out is not None:
        raise SqlFault(
            span,
            f"ON leaves out {left_out} of the PRIMARY KEY of {name}",
            f"… AND a.{left_out} = {name}.{left_out}",
        )
    if not right.key:
        message = "%s has no PRIMARY KEY: FOR SYSTEM_TIME AS OF takes its last row with the values of ON at that time"
        _log.warning(message, name)


def _bound(on: JoinConditions, make: Callable[[Any, Any, dict[str, Any]], Any]) -> Relation:
    on.sort()
    further, on.residual = [*on.residual, *on.bounds], []
    if not on.keys:
        raise SqlFault(on.join.span, "AS OF needs ON a.key = b.key", "a column of each table that are equal")
    left, right, outer = copied(on, on.left, on.right)
    left_on, right_on = [key.expr for _, key, _ in on.keys], [key.expr for _, _, key in on.keys]
    options = {"left_on": left_on, "right_on": right_on, "how": on.how}
    with at(on.join.span):
        stream = make(left.stream, right.stream, options)
    relation = joined(on, stream, left, right, outer)
    own = {each.column for each in relation.fields} - {each.column for each in left.fields}
    return with_further(on, relation, further, own)
