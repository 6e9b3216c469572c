"""ARRAY[…], and the functions of arrays."""

import pyarrow as pa

from sabot.api.expr import Expr, lit, when
from sabot.sql.functions.arguments import CallArguments
from sabot.sql.scope import TypedExpr
from sabot.sql.syntax.text import Span, SqlFault
from sabot.sql.types import common_type, sql_type


def array_of(values: list[TypedExpr], span: Span) -> Expr:
    """Returns ARRAY[…] of values that have one type. Raises SqlFault if they have none in common."""
    type = values[0].type
    for value in values[1:]:
        found = common_type(type, value.type)
        if found is None:
            raise SqlFault(span, f"an array of {sql_type(type)} and {sql_type(value.type)}", "write a CAST")
        type = found
    return Expr("list.of", tuple(each.expr if each.type == type else each.expr.cast(type) for each in values))


def _array(arguments: CallArguments, i: int = 0) -> TypedExpr:
    """Returns argument `i`, which must be an array."""
    bound = arguments.bound(i)
    if not pa.types.is_list(bound.type):
        name = arguments.call.name.text.upper()
        raise SqlFault(
            arguments.items[i].tree.span,
            f"{name} takes an array here, and this is {sql_type(bound.type)}",
            "ARRAY[1, 2], or SPLIT(text, ',')",
        )
    return bound


def _element(arguments: CallArguments, array: TypedExpr, i: int = 1) -> Expr:
    """Returns argument `i` with the type of the values of an array."""
    expr, type = arguments.bound(i)
    wanted = array.type.value_type
    if type == wanted or common_type(wanted, type) == wanted:
        return expr if type == wanted else expr.cast(wanted)
    if expr.kind == "lit" and pa.types.is_integer(type) and pa.types.is_integer(wanted):
        return expr.cast(wanted)
    message = f"{sql_type(type)} is no value of {sql_type(array.type)}"
    raise SqlFault(arguments.items[i].tree.span, message, f"CAST(… AS {sql_type(wanted)})")


def _of_one_type(arguments: CallArguments) -> list[Expr]:
    """Returns all arguments, which are arrays, with one type."""
    arrays = [_array(arguments, i) for i in range(len(arguments))]
    type = arrays[0].type.value_type
    for i, each in enumerate(arrays):
        found = common_type(type, each.type.value_type)
        if found is None:
            message = f"an array of {sql_type(type)} and {sql_type(each.type.value_type)}"
            raise SqlFault(arguments.items[i].tree.span, message, "write a CAST")
        type = found
    return [each.expr if each.type == pa.list_(type) else each.expr.cast(pa.list_(type)) for each in arrays]


def plain(kind: str, arguments: CallArguments) -> Expr:
    """Returns an expression of this kind over an array."""
    return Expr(kind, (_array(arguments).expr,))


def of_element(kind: str, arguments: CallArguments) -> Expr:
    """Returns an expression of this kind over an array and one of its values."""
    array = _array(arguments)
    return Expr(kind, (array.expr, _element(arguments, array)))


def of_arrays(kind: str, arguments: CallArguments) -> Expr:
    """Returns an expression of this kind over arrays of one type."""
    return Expr(kind, tuple(_of_one_type(arguments)))


def append(arguments: CallArguments) -> Expr:
    array = _array(arguments)
    return Expr("list.concat", (array.expr, Expr("list.of", (_element(arguments, array),))))


def prepend(arguments: CallArguments) -> Expr:
    array = _array(arguments)
    first = Expr("list.of", (_element(arguments, array),))
    return when(array.expr.is_not_null()).then(Expr("list.concat", (first, array.expr))).otherwise(lit(None))


def extreme(greatest: bool, arguments: CallArguments) -> Expr:
    """Returns the greatest or the least value of an array; NULL if it has none."""
    return _array(arguments).expr.list.sort(descending=greatest, nulls_last=True).list.get(0)


def ordered(arguments: CallArguments) -> Expr:
    """Returns the sorted array. Without a third argument NULL is the least value."""
    flags = [_flag(arguments, i) for i in range(1, len(arguments))]
    ascending = flags[0] if flags else True
    nulls_first = flags[1] if len(flags) > 1 else ascending
    return _array(arguments).expr.list.sort(descending=not ascending, nulls_last=not nulls_first)


def _flag(arguments: CallArguments, i: int) -> bool:
    value = arguments.expr(i).option("value") if arguments.expr(i).kind == "lit" else None
    if not isinstance(value, bool):
        raise SqlFault(
            arguments.items[i].tree.span, "the order is TRUE or FALSE", "ARRAY_SORT(array, FALSE): descending"
        )
    return value


def part(arguments: CallArguments) -> Expr:
    for i in range(1, len(arguments)):
        type = arguments.bound(i).type
        if not (pa.types.is_integer(type) or pa.types.is_null(type)):
            message = f"a place in an array is a whole number, and this is {sql_type(type)}"
            raise SqlFault(arguments.items[i].tree.span, message, "1 is the first element, -1 the last one")
    end = arguments.expr(2) if len(arguments) > 2 else lit((1 << 31) - 1)
    return Expr("list.slice", (_array(arguments).expr, arguments.expr(1), end))


def joined(arguments: CallArguments) -> Expr:
    """Returns the texts of an array with a separator between them. NULL is left out, or a third argument stands for it."""
    array = _array(arguments)
    kind, more = ("list.fill_null", (_element(arguments, array, 2),)) if len(arguments) > 2 else ("list.drop_nulls", ())
    return Expr(kind, (array.expr, *more)).list.join(arguments.constant(1, "string", "the separator"))
