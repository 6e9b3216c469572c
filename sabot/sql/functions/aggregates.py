"""The aggregates of SQL."""

from collections.abc import Callable, Sequence
from functools import partial
from operator import and_

import pyarrow as pa

from sabot.api import aggregates as engine
from sabot.api.aggregates import Aggregate
from sabot.api.expr import Expr, lit, struct, when
from sabot.sql.functions import json
from sabot.sql.functions.arguments import balanced
from sabot.sql.functions.conversions import as_text, is_number
from sabot.sql.functions.numbers import divided
from sabot.sql.scope import TypedExpr
from sabot.sql.syntax.text import SqlFault
from sabot.sql.syntax.tree import Call, Constant, Expression, Word
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
    "JSON_ARRAYAGG": engine.collect_list,
    "JSON_OBJECTAGG": engine.collect_list,
    "PERCENTILE": engine.collect_list,
}
"""The aggregates, by their name in capitals."""

_SAME_IF_DISTINCT = ("MIN", "MAX")
_OF_NUMBERS = ("SUM", "AVG", "STDDEV", "VAR", "PERCENTILE")
_OF_PRESENT = ("FIRST_VALUE", "LAST_VALUE", "LISTAGG")  # they leave NULL out
_OF_DISTINCT = ("SUM", "AVG", "LISTAGG")
_ARRAYS = ("ARRAY_AGG", "COLLECT")
_OF_JSON = {"JSON_ARRAYAGG": json.arrayed, "JSON_OBJECTAGG": json.members_joined}
LISTED = frozenset((*_ARRAYS, *_OF_JSON, "LISTAGG"))
"""The aggregates whose value is made of the values of all rows."""
FIRST_ONES = frozenset(
    ("COUNT", "SUM", "AVG", "STDDEV", "STDDEV_SAMP", "STDDEV_POP", "VARIANCE", "VAR_SAMP", "VAR_POP")
)
"""The aggregates whose DISTINCT is the aggregate of the rows that have a value for the first time."""


def is_aggregate(name: str) -> bool:
    """Returns True if a function of this name, in capitals, is an aggregate."""
    return name in AGGREGATES


def listed(text: TypedExpr, order: Sequence[Expr], predicate: Expr | None, zone: str) -> Aggregate:
    """Returns the aggregate of LISTAGG that is ordered by other values: a list of structs of the text and these values."""
    present = text.expr.is_not_null()
    keys = {f"by{i}": each for i, each in enumerate(order)}
    made = engine.collect_list(struct(text=as_text(text, zone), **keys))
    return made.filter(present if predicate is None else predicate & present)


def argument_of(call: Call, bind: Callable[[Expression], TypedExpr], zone: str) -> TypedExpr | None:
    """Returns the value over which a call aggregates, or None for COUNT(*). COUNT(a, b) counts the rows in which neither is
    NULL, as one text of both.
    """
    name = call.name.text.upper()
    if name in _OF_JSON:
        values = [bind(each) for each in call.arguments if not isinstance(each, Word)]
        return TypedExpr(json.listed_member(call, values), pa.string())
    if name != "COUNT" or len(call.arguments) < 2:
        return bind(call.arguments[0]) if call.arguments else None
    values = [bind(each) for each in call.arguments]
    texts = [_as_key(each, node, zone) for each, node in zip(values, call.arguments, strict=True)]
    whole = struct(**{f"v{i}": text for i, text in enumerate(texts)}).struct.json_encode()
    present = balanced([each.expr.is_not_null() for each in values], and_)
    return TypedExpr(when(present).then(whole).otherwise(lit(None)), pa.string())


def _as_key(value: TypedExpr, node: Expression, zone: str) -> Expr:
    """Returns a value as a text that no other value of its type has."""
    if pa.types.is_nested(value.type):
        message = f"COUNT of several values takes no {sql_type(value.type)}"
        raise SqlFault(node.span, message, "JSON_STRING(…) of it, or its parts")
    if pa.types.is_binary(value.type):
        return Expr("value.hex_of_bytes", (value.expr,))
    if pa.types.is_floating(value.type):
        value = TypedExpr(value.expr + lit(0.0), value.type)  # -0.0 is 0.0
    return as_text(value, zone)


def finished(call: Call, values: TypedExpr) -> TypedExpr:
    """Returns the value of ARRAY_AGG, COLLECT, JSON_ARRAYAGG or JSON_OBJECTAGG, from the list that it has become."""
    name, expr = call.name.text.upper(), values.expr
    if name in _OF_JSON:
        return TypedExpr(_OF_JSON[name](expr), pa.string())
    made = Expr("list.unique", (expr,)) if call.distinct else expr
    made = when(expr.list.len() > 0).then(made).otherwise(lit(None)) if name == "ARRAY_AGG" else made
    return TypedExpr(made, values.type)


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
    if (name in _OF_JSON or _is_said(call, "IGNORE")) and argument is not None:
        present = argument.expr.is_not_null()  # a member of JSON is NULL if it is absent
        predicate = present if predicate is None else predicate & present
    if name == "LISTAGG" and argument is not None:
        argument = TypedExpr(as_text(argument, zone), pa.string())
    if argument is None:
        made = engine.count()
    elif call.distinct and name == "COUNT":
        made = engine.count_distinct(argument.expr)
    elif call.distinct and name not in (*_SAME_IF_DISTINCT, *_ARRAYS):
        if name not in _OF_DISTINCT:
            hint = f"{', '.join(['COUNT', *_OF_DISTINCT, *_ARRAYS])} take DISTINCT"
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


def _is_said(call: Call, word: str) -> bool:
    return any(isinstance(each, Word) and each.text == word for each in call.arguments)


def check_arguments(call: Call) -> None:
    """Raises SqlFault unless an aggregate has as many arguments as it takes, or is COUNT(*)."""
    name = call.name.text.upper()
    wanted = 0 if call.star else 2 if name in ("PERCENTILE", "JSON_OBJECTAGG") else 1
    found = sum(not isinstance(each, Word) for each in call.arguments)
    several = name == "COUNT" and found > 1
    if (found == wanted or several) and (not call.star or name == "COUNT"):
        return
    hints = {"MIN": "LEAST(x, y)", "MAX": "GREATEST(x, y)", "COUNT": "COUNT(*)"}
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
