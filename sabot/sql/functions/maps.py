"""MAP[…], and the functions of maps."""

from collections.abc import Sequence

import pyarrow as pa

from sabot.api.expr import Expr
from sabot.sql.functions.arguments import CallArguments
from sabot.sql.scope import TypedExpr
from sabot.sql.syntax.text import Span, SqlFault
from sabot.sql.types import common_type, sql_type


def map_of(items: Sequence[TypedExpr], span: Span) -> Expr:
    """Returns MAP[key, value, …]. Raises SqlFault if keys or values have no type in common."""
    if not items or len(items) % 2:
        raise SqlFault(span, "a map has keys and values by turns", "MAP['a', 1, 'b', 2]")
    sides = [_of_one_type(items[i::2], what, span) for i, what in enumerate(("keys", "values"))]
    return Expr("map.of", tuple(each for pair in zip(*sides, strict=True) for each in pair))


def _of_one_type(items: Sequence[TypedExpr], what: str, span: Span) -> list[Expr]:
    type = items[0].type
    for item in items[1:]:
        found = common_type(type, item.type)
        if found is None:
            raise SqlFault(span, f"{what} of {sql_type(type)} and {sql_type(item.type)} in a map", "write a CAST")
        type = found
    if pa.types.is_null(type) or (what == "keys" and pa.types.is_nested(type)):
        raise SqlFault(span, f"the {what} of a map are {sql_type(type)}", "CAST(NULL AS STRING)")
    return [each.expr if each.type == type else each.expr.cast(type) for each in items]


def element(bound: TypedExpr, key: TypedExpr, span: Span) -> Expr:
    """Returns the value of a key of a map. Raises SqlFault if the key has another type."""
    wanted = bound.type.key_type
    if key.type != wanted and common_type(wanted, key.type) != wanted and not _is_whole(key, wanted):
        raise SqlFault(
            span, f"{sql_type(key.type)} is no key of {sql_type(bound.type)}", f"CAST(… AS {sql_type(wanted)})"
        )
    return Expr("map.get", (bound.expr, key.expr if key.type == wanted else key.expr.cast(wanted)))


def _is_whole(key: TypedExpr, wanted: pa.DataType) -> bool:
    return key.expr.kind == "lit" and pa.types.is_integer(key.type) and pa.types.is_integer(wanted)


def part(kind: str, arguments: CallArguments) -> Expr:
    """Returns an expression of this kind over a map."""
    bound = arguments.bound(0)
    if not pa.types.is_map(bound.type):
        message = f"{arguments.call.name.text.upper()} takes a map, and this is {sql_type(bound.type)}"
        raise SqlFault(arguments.items[0].tree.span, message, "MAP['a', 1], or STR_TO_MAP(text)")
    return Expr(kind, (bound.expr,))


def size(arguments: CallArguments) -> Expr:
    """Returns the number of values of an array, or of entries of a map."""
    return part("map.len", arguments) if pa.types.is_map(arguments.bound(0).type) else arguments.expr(0).list.len()


def from_arrays(arguments: CallArguments) -> Expr:
    for i in (0, 1):
        if not pa.types.is_list(arguments.bound(i).type):
            message = f"MAP_FROM_ARRAYS takes two arrays, and this is {sql_type(arguments.bound(i).type)}"
            raise SqlFault(arguments.items[i].tree.span, message, "MAP_FROM_ARRAYS(ARRAY['a'], ARRAY[1])")
    return Expr("map.from_arrays", tuple(arguments.exprs))


def union(arguments: CallArguments) -> Expr:
    """Returns the entries of all maps. Of equal keys the last one counts."""
    keys, values = pa.null(), pa.null()
    for item in arguments.items:
        type = item.bound.type if item.bound is not None else pa.null()
        found = (common_type(keys, type.key_type), common_type(values, type.item_type)) if pa.types.is_map(type) else ()
        if None in found or not found:
            wanted = f"maps of one type, and this is {sql_type(type)}"
            raise SqlFault(item.tree.span, f"MAP_UNION takes {wanted}", "MAP_UNION(MAP['a', 1], MAP['b', 2])")
        keys, values = found
    maps = [each.cast(pa.map_(keys, values)) for each in arguments.exprs]
    sides = (Expr("list.concat", tuple(Expr(kind, (each,)) for each in maps)) for kind in ("map.keys", "map.values"))
    return Expr("map.from_arrays", tuple(sides))


def from_text(arguments: CallArguments) -> Expr:
    text = arguments.plain_text(0)
    given = [arguments.constant(i, "string", "the separator") for i in range(1, len(arguments))]
    between, within = (*given, *(",", "=")[len(given) :])
    return Expr("map.from_text", (text,), (("between", between), ("within", within)))
