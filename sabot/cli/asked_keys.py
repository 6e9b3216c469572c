"""The keys that a question asks for, so that of a saved table only their rows are read."""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import product
from typing import Any, TypeAlias

import pyarrow as pa

from sabot.api.expr import Expr
from sabot.api.nodes.node import Node
from sabot.api.nodes.read import Read, StreamEnd
from sabot.api.nodes.rows import Filter
from sabot.engine.checkpoint.saved_tables import SavedTable
from sabot.engine.operators.expressions.compiled import compile_expr
from sabot.errors import SabotError

_MOST = 1_000  # keys of one question
_MOST_STEPS = 10_000
_Values: TypeAlias = dict[str, Any]
"""Values that columns must have, by the name of the column, as Arrow scalars. Without a name, all rows are meant."""

_NUMBERS = 0
_KINDS = (
    lambda type: pa.types.is_integer(type) or pa.types.is_decimal(type),
    pa.types.is_boolean,
    lambda type: pa.types.is_string(type) or pa.types.is_large_string(type),
    lambda type: pa.types.is_binary(type) or pa.types.is_large_binary(type),
    pa.types.is_date,
    pa.types.is_time,
    pa.types.is_timestamp,
)


def read_asked_keys(ends: Iterable[StreamEnd]) -> None:
    """Lets each saved table that is read before these ends read only the keys that the filters behind it allow. The filters stay. A
    table of which somebody asks for more than keys is read whole.
    """
    asked: dict[SavedTable, list[_Values]] = {}
    ways: list[tuple[Node, list[Expr]]] = [(end.input, []) for end in ends]
    for _ in range(_MOST_STEPS):
        if not ways:
            break
        node, predicates = ways.pop()
        if isinstance(node, Read) and isinstance(node.source, SavedTable):
            asked.setdefault(node.source, []).extend(keys_in(predicates, node.source.keys))
        elif isinstance(node, Filter):
            ways.append((node.input, [*predicates, node.predicate]))
        else:
            moved = [each for each in map(node.moved_before, predicates) if each is not None]
            ways += [(upstream, moved) for upstream in node.inputs]
    else:
        return  # tables that are read in very many ways are read whole
    for table, keys in asked.items():
        if all(keys) and len(keys) <= _MOST:
            arrays = [
                pa.concat_arrays([pa.nulls(0, field.type), *(pa.repeat(key[field.name], 1) for key in keys)])
                for field in table.keys
            ]
            table.read_only(pa.RecordBatch.from_arrays(arrays, schema=table.keys))


def keys_in(predicates: Sequence[Expr], keys: pa.Schema) -> list[_Values]:
    """Returns the keys that rows may have for which all predicates are true, each with a value for each of the columns `keys`; [{}] if
    the predicates do not say them.

    The constants are of the keys' types. One is used only if a cast there and back gives it again, and never for a key that is a
    float, whose equal values may have different bytes.
    """
    found: list[_Values] = [{}]
    for predicate in predicates:
        found = _both(found, _alternatives(predicate, keys))
    return found if keys.names and all(len(each) == len(keys) for each in found) else [{}]


def _alternatives(expr: Expr, keys: pa.Schema) -> list[_Values]:
    """Returns alternatives, of which each row has one for which the expression is true."""
    if expr.kind == "alias":
        return _alternatives(expr.inputs[0], keys)
    if expr.kind == "&":
        left, right = (_alternatives(each, keys) for each in expr.inputs)
        return _both(left, right)
    if expr.kind == "|":
        left, right = (_alternatives(each, keys) for each in expr.inputs)
        return [*left, *right] if all(left) and all(right) and len(left) + len(right) <= _MOST else [{}]
    if expr.kind == "is_null":
        return _of(expr.inputs[0], [None], keys)
    if expr.kind == "is_in":
        return _of(expr.inputs[0], expr.option("values"), keys)
    if expr.kind == "==":
        for column, other in (expr.inputs, expr.inputs[::-1]):
            if column.column in keys.names and not other.columns:
                return _of(column, [other], keys)
    return [{}]


def _constant(expr: Expr) -> "pa.Scalar[Any]":
    """Returns the value of an expression without columns. Raises TypeError for any other one."""
    value = None if expr.columns else compile_expr(expr, pa.schema([])).value
    if value is None:
        raise TypeError(f"{expr.text()} is no constant")
    return value


def _of(column: Expr, values: Sequence[Any], keys: pa.Schema) -> list[_Values]:
    """Returns an alternative for each value of a key column; [{}] if the column is no key, or one of the values is not of its type."""
    name = column.column
    if name is None or name not in keys.names or len(values) > _MOST:
        return [{}]
    try:
        return [{name: _as_key(value, keys.field(name).type)} for value in values]
    except (pa.ArrowException, SabotError, TypeError, ValueError, OverflowError):
        return [{}]


def _as_key(value: Any, type: pa.DataType) -> Any:
    """Returns a constant as a value of this type. Raises an error if it has no equal value of this type, or none that is known."""
    given = _constant(value) if isinstance(value, Expr) else pa.scalar(value)
    if not given.is_valid:
        return pa.scalar(None, type)
    if (kind := _kind(type)) is None or _kind(given.type) != kind:
        raise TypeError(f"{given.type} beside keys of {type}")
    if pa.types.is_timestamp(type):  # a time without a zone is compared with an instant as one in UTC
        given = given.cast(pa.timestamp(given.type.unit, type.tz))
    if kind == _NUMBERS:
        made = pa.scalar(Decimal(given.as_py()), type) if pa.types.is_decimal(type) else given.cast(type)
        same = made.as_py() == given.as_py()
    else:
        made = given.cast(type)
        same = made.cast(given.type).equals(given)
    if not same:
        raise ValueError(f"{given} is not a value of {type}")
    return made


def _kind(type: pa.DataType) -> int | None:
    """Returns the kind of a type of keys; only values of one kind are compared without a change of their meaning."""
    return next((place for place, is_kind in enumerate(_KINDS) if is_kind(type)), None)


def _both(left: list[_Values], right: list[_Values]) -> list[_Values]:
    """Returns the alternatives of rows that have one of both lists. Where both have a value of one column, the left one is taken."""
    if len(left) * len(right) > _MOST:
        return left
    return [{**b, **a} for a, b in product(left, right)]
