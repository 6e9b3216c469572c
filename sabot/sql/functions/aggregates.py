"""The aggregates of SQL."""

from collections.abc import Callable, Sequence
from functools import partial

import pyarrow as pa

from sabot.api import aggregates as engine
from sabot.api.aggregates import Aggregate
from sabot.api.expr import Expr, lit, struct, when
from sabot.sql.functions.conversions import as_text, is_number
from sabot.sql.functions.numbers import divided
from sabot.sql.scope import TypedExpr
from sabot.sql.syntax.text import SqlFault
from sabot.sql.syntax.tree import Call, Constant, Expression
from sabot.sql.types import sql_type

AGGREGATES: dict[str, Callable[[Expr], Aggregate]] = {
    "COUNT": engine.count,
    "SUM": engine.sum,
    "MIN": engine.min,
    "MAX": engine.max,
    "AVG": engine.mean,
    "FIRST_VALUE": engine.first,
    "LAST_VALUE": engine.last,
    "STDDEV": engine.stddev,
    "STDDEV_SAMP": engine.stddev,
    "STDDEV_POP": partial(engine.stddev, ddof=0),
    "VARIANCE": engine.variance,
    "VAR_SAMP": engine.variance,
    "VAR_POP": partial(engine.variance, ddof=0),
    "APPROX_COUNT_DISTINCT": engine.approx_count_distinct,
    "ARRAY_AGG": engine.collect_list,
    "COLLECT": engine.collect_list,
    "LISTAGG": engine.collect_list,
    "PERCENTILE": engine.collect_list,
}
"""The aggregates of one argument, and PERCENTILE, by their name in capitals."""

_SAME_IF_DISTINCT = ("MIN", "MAX")
_OF_NUMBERS = ("SUM", "AVG", "STDDEV", "VAR", "PERCENTILE")
_OF_PRESENT = ("FIRST_VALUE", "LAST_VALUE", "LISTAGG")  # they leave NULL out
_OF_DISTINCT = ("SUM", "AVG", "LISTAGG")


def is_aggregate(name: str) -> bool:
    """Returns True if a function of this name, in capitals, is an aggregate."""
    return name in AGGREGATES


def listed(text: TypedExpr, order: Sequence[Expr], predicate: Expr | None, zone: str) -> Aggregate:
    """Returns the aggregate of LISTAGG that is ordered by other values: a list of structs of the text and these values."""
    present = text.expr.is_not_null()
    keys = {f"by{i}": each for i, each in enumerate(order)}
    made = engine.collect_list(struct(text=as_text(text, zone), **keys))
    return made.filter(present if predicate is None else predicate & present)


def _fraction(node: Expression) -> float:
    """Returns the second argument of PERCENTILE."""
    value = float(node.text) if isinstance(node, Constant) and node.kind != "string" else -1.0
    if not 0 <= value <= 1:
        raise SqlFault(node.span, "the fraction of PERCENTILE is a constant number from 0 to 1", "0.5 is the median")
    return value


def aggregate(call: Call, argument: TypedExpr | None, predicate: Expr | None, zone: str) -> Aggregate | Expr:
    """Returns the aggregate of a call, or an expression of one. `argument`: None for COUNT(*). `zone`: that of the session.

    Raises SqlFault for what there is not.
    """
    name = call.name.text.upper()
    if call.order and name != "LISTAGG":
        raise SqlFault(call.span, f"{name} WITHIN GROUP is not supported", "LISTAGG(x) WITHIN GROUP (ORDER BY x)")
    if argument is not None and name.startswith(_OF_NUMBERS) and not is_number(argument.type):
        is_condition = pa.types.is_boolean(argument.type)
        hint = "COUNT(*) FILTER (WHERE condition)" if is_condition else "it takes numbers"
        raise SqlFault(call.span, f"{name} of {sql_type(argument.type)}", hint)
    if name in _OF_PRESENT and argument is not None:
        present = argument.expr.is_not_null()
        predicate = present if predicate is None else predicate & present
    if name == "LISTAGG" and argument is not None:
        argument = TypedExpr(as_text(argument, zone), pa.string())
    if argument is None:
        made = engine.count()
    elif call.distinct and name == "COUNT":
        made = engine.count_distinct(argument.expr)
    elif call.distinct and name not in _SAME_IF_DISTINCT:
        if name not in _OF_DISTINCT:
            hint = f"{', '.join(['COUNT', *_OF_DISTINCT])} take DISTINCT"
            raise SqlFault(call.span, f"{name}(DISTINCT …) is not supported", hint)
        made = engine.collect_set(argument.expr)
    else:
        made = AGGREGATES[name](argument.expr)
    made = made if predicate is None else made.filter(predicate)
    if name == "PERCENTILE":
        return made.expression().list.quantile(_fraction(call.arguments[1]), "linear")
    if made.kind != "collect_set" or name == "LISTAGG":
        return made
    total = made.expression().list.sum()
    return total if name == "SUM" else total.cast("float64") / made.expression().list.len()


def check_arguments(call: Call) -> None:
    """Raises SqlFault unless an aggregate has as many arguments as it takes, or is COUNT(*)."""
    name = call.name.text.upper()
    wanted = 0 if call.star else 2 if name == "PERCENTILE" else 1
    if len(call.arguments) == wanted and (not call.star or name == "COUNT"):
        return
    hints = {"MIN": "LEAST(x, y)", "MAX": "GREATEST(x, y)"}
    hints["COUNT"] = "SELECT COUNT(*) FROM (SELECT DISTINCT a, b FROM t)" if call.distinct else "COUNT(*)"
    hints["LISTAGG"] = "LISTAGG(text[, separator])"
    hints["PERCENTILE"] = "PERCENTILE(x, 0.5)"
    number = "two arguments" if name == "PERCENTILE" else "one argument"
    message = f"{name} takes {number}" + (", or *" if name == "COUNT" else "")
    raise SqlFault(call.span, message, hints.get(name, f"{name}(x)"))


def shown_aggregate(type: pa.DataType, argument: pa.DataType, shown: pa.DataType | None) -> pa.DataType | None:
    """Returns the type in SQL of an aggregate (`TableColumn.shown`): that of its argument for MAX and its kin, and a list of
    them for ARRAY_AGG. `type`, `argument`: the types of both in the engine. `shown`: that of the argument in SQL.
    """
    if shown is None:
        return None
    return shown if type == argument else pa.list_(shown) if type == pa.list_(argument) else None


def mean_of(type: pa.DataType, total: TypedExpr, number: TypedExpr) -> TypedExpr:
    """Returns AVG of whole numbers of a type, which is one too: cut off towards zero, and NULL without a number."""
    quotient = divided("/", total, number)
    made = when(number.expr > 0).then(quotient).otherwise(lit(None))
    return TypedExpr(made if type.bit_width == 64 else made.cast(type, strict=False), type)


def as_argument(value: TypedExpr, type: pa.DataType | None) -> TypedExpr:
    """Returns SUM or AVG of a FLOAT as a FLOAT; any other aggregate, whose `type` is None, unchanged."""
    return value if type is None else TypedExpr(value.expr.cast(type), type)
