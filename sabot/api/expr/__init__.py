"""Expressions over columns, as users write them.

`tree` defines expressions, and `cases` combines several into one (`when`, `coalesce`, `struct`). `text`, `time` and
`nested` have the methods for columns of one type.
"""

from sabot.api.expr.cases import (
    Then,
    When,
    all_horizontal,
    any_horizontal,
    coalesce,
    concat_str,
    instant,
    max_horizontal,
    min_horizontal,
    struct,
    sum_horizontal,
    when,
)
from sabot.api.expr.nested import ListExpr, StructExpr
from sabot.api.expr.text import StringExpr
from sabot.api.expr.time import DateExpr
from sabot.api.expr.tree import GUARDED, Expr, Operators, as_column, as_expr, col, lit
from sabot.api.expr.words import as_type

__all__ = [
    "GUARDED",
    "DateExpr",
    "Expr",
    "ListExpr",
    "Operators",
    "StringExpr",
    "StructExpr",
    "Then",
    "When",
    "all_horizontal",
    "any_horizontal",
    "as_column",
    "as_expr",
    "as_type",
    "coalesce",
    "col",
    "concat_str",
    "instant",
    "lit",
    "max_horizontal",
    "min_horizontal",
    "struct",
    "sum_horizontal",
    "when",
]
