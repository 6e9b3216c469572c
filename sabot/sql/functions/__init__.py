"""The functions of SQL, each in one line of a table: name, arguments, and the expression of the engine that it becomes.

The meaning of each is that of Flink's documentation ("System (Built-in) Functions").

    table           the scalar functions by name; hints for those of other dialects
    aggregates      the aggregates by name
    numbers, texts, arrays, json, times     how each becomes an expression, by its kind
    conversions     CAST, and values as texts
    arguments       the arguments of a call, as the others ask for them
"""

from sabot.sql.functions.aggregates import (
    AGGREGATES,
    FIRST_ONES,
    LISTED,
    aggregate,
    argument_of,
    as_argument,
    check_arguments,
    finished,
    is_aggregate,
    listed,
    mean_of,
    shown_aggregate,
)
from sabot.sql.functions.arguments import ArgumentOf, CallArguments, Function, balanced, is_word, value_of
from sabot.sql.functions.arrays import array_of
from sabot.sql.functions.conversions import as_text, cast, is_number
from sabot.sql.functions.maps import element, map_of
from sabot.sql.functions.numbers import beside, divided, product
from sabot.sql.functions.table import FUNCTIONS, MOMENTS, OF_ONE_TYPE, is_known, scalar
from sabot.sql.functions.texts import like, similar
from sabot.sql.functions.times import at_time_zone, known_zone, plus_months

__all__ = [
    "AGGREGATES",
    "FIRST_ONES",
    "FUNCTIONS",
    "LISTED",
    "MOMENTS",
    "OF_ONE_TYPE",
    "ArgumentOf",
    "CallArguments",
    "Function",
    "aggregate",
    "argument_of",
    "array_of",
    "as_argument",
    "as_text",
    "at_time_zone",
    "balanced",
    "beside",
    "cast",
    "check_arguments",
    "divided",
    "element",
    "finished",
    "is_aggregate",
    "is_known",
    "is_number",
    "is_word",
    "known_zone",
    "like",
    "listed",
    "map_of",
    "mean_of",
    "plus_months",
    "product",
    "scalar",
    "shown_aggregate",
    "similar",
    "value_of",
]
