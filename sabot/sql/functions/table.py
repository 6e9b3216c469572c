"""The table of scalar functions, and what to write for functions that SQL does not have here."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from sabot.api.expr import Expr, coalesce, lit, max_horizontal, min_horizontal, struct, when
from sabot.sql.functions import arrays, json, maps, numbers, texts, times
from sabot.sql.functions.aggregates import AGGREGATES
from sabot.sql.functions.arguments import CallArguments, Function, Make
from sabot.sql.syntax.text import SqlFault, near_names
from sabot.sql.syntax.tree import Name
from sabot.sql.types import sql_type


def scalar(name: Name, registered: Mapping[str, Any]) -> Make:
    """Returns the function of this name, which checks the number of its arguments. Raises SqlFault if there is none."""
    function = FUNCTIONS.get(name.text.upper())
    if function is None:
        known = [*FUNCTIONS, *MOMENTS, *AGGREGATES, *registered]
        hint = _ELSEWHERE.get(name.text.upper(), "")
        if not hint and name.text.upper() not in _MISSING:
            hint = near_names(name.text, known)
        hint = hint or f'SHOW FUNCTIONS lists them; app.register("{name.text}", function) adds one of Python'
        raise SqlFault(name.span, f"there is no function {name.text}", hint)

    def made(arguments: CallArguments) -> Expr:
        count = len(arguments)
        if count < function.least or (function.most is not None and count > function.most):
            wanted = f"{function.least}" if function.least == function.most else f"{function.least} to {function.most}"
            wanted = f"at least {function.least}" if function.most is None else wanted
            message = f"{name.text.upper()} takes {wanted} argument{'s' * (wanted != '1')}, and there are {count}"
            raise SqlFault(arguments.call.span, message, f"{name.text.upper()}({function.form})")
        return function.make(arguments)

    return made


_WINDOW_TABLE = "FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' HOUR)) GROUP BY window_start, window_end"
_WINDOW_SELECT = "SELECT TUMBLE_START(ts, INTERVAL '1' HOUR), and GROUP BY TUMBLE(ts, INTERVAL '1' HOUR)"
_PERCENTILES = ("MEDIAN", "QUANTILE", "PERCENTILE_CONT", "PERCENTILE_DISC", "APPROX_PERCENTILE", "QUANTILE_CONT")
_WINDOW_GROUP = "GROUP BY TUMBLE(ts, INTERVAL '1' HOUR)"
_GREATEST = "QUALIFY ROW_NUMBER() OVER (PARTITION BY key ORDER BY x DESC) = 1"

_MISSING = frozenset(("CRC32", "LEVENSHTEIN", "SOUNDEX", "TRANSLATE3", "JSON_LENGTH"))
"""Functions of Flink that are not here, for which a similar name would mislead."""

_ELSEWHERE = {
    **dict.fromkeys(("GETDATE", "SYSDATE", "SYSTIMESTAMP"), "NOW(), or CURRENT_TIMESTAMP"),
    **dict.fromkeys(("CURDATE", "TODAY"), "CURRENT_DATE"),
    "RANDOM": "RAND()",
    **dict.fromkeys(("GEN_RANDOM_UUID", "NEWID", "GENERATE_UUID"), "UUID()"),
    **dict.fromkeys(
        _PERCENTILES, "PERCENTILE(x, 0.5): the median; 0.9 in place of 0.5 is exceeded by a tenth of the values"
    ),
    **dict.fromkeys(("TUMBLE", "HOP", "SESSION", "CUMULATE"), _WINDOW_SELECT),
    **dict.fromkeys(("LENGTH", "LEN"), "CHAR_LENGTH(text)"),
    **dict.fromkeys(("STRING_AGG", "GROUP_CONCAT"), "LISTAGG(text, ',')"),
    **dict.fromkeys(("STRFTIME", "TO_CHAR", "FORMAT_TIMESTAMP", "FORMAT_DATE"), "DATE_FORMAT(ts, 'yyyy-MM-dd')"),
    **dict.fromkeys(("DATEDIFF", "DATE_DIFF"), "TIMESTAMPDIFF(DAY, start, end)"),
    **dict.fromkeys(("DATEADD", "DATE_ADD"), "ts + INTERVAL '1' DAY"),
    "STRPTIME": "TO_TIMESTAMP(text, 'yyyy-MM-dd HH:mm:ss')",
    **dict.fromkeys(("IIF", "IFF"), "IF(condition, x, y)"),
    **dict.fromkeys(("CONVERT", "TRY_CONVERT"), "CAST(x AS BIGINT), or TRY_CAST"),
    **dict.fromkeys(("CHARINDEX", "STRPOS"), "POSITION(part IN text)"),
    **dict.fromkeys(("SPLIT_PART", "SUBSTRING_INDEX"), "SPLIT_INDEX(text, ',', 0): the first part is 0"),
    **dict.fromkeys(("ARG_MAX", "MAX_BY", "ARG_MIN", "MIN_BY"), _GREATEST),
    **dict.fromkeys(("COUNT_IF", "COUNTIF", "SUM_IF", "SUMIF"), "COUNT(*) FILTER (WHERE condition)"),
    **dict.fromkeys(("ROW_NUMBER", "RANK", "DENSE_RANK"), "ROW_NUMBER() OVER (PARTITION BY key ORDER BY x DESC)"),
    "DATE_PART": "EXTRACT(HOUR FROM ts)",
    "DAYNAME": "DATE_FORMAT(ts, 'EEEE')",
    "MONTHNAME": "DATE_FORMAT(ts, 'MMMM')",
    **dict.fromkeys(("TO_UNIXTIME", "EPOCH", "EPOCH_MS", "UNIX_MILLIS"), "EXTRACT(EPOCH FROM ts)"),
    "CONTAINS": "text LIKE '%part%'",
    **dict.fromkeys(("EXPLODE", "UNNEST", "FLATTEN"), "CROSS JOIN UNNEST(array) AS t (x)"),
    **dict.fromkeys(("LIST", "COLLECT_LIST", "ARRAY_AGG_DISTINCT", "GROUP_ARRAY"), "ARRAY_AGG(x)"),
    "COLLECT_SET": "LISTAGG(DISTINCT x), or COUNT(DISTINCT x)",
    **dict.fromkeys(("FIRST", "ARBITRARY"), "FIRST_VALUE(x)"),
    "LAST": "LAST_VALUE(x)",
    "DATE": "DATE '2024-05-17', or CAST(text AS DATE)",
    "TIMESTAMP": "TIMESTAMP '2024-05-17 12:30:00', or TO_TIMESTAMP(text)",
    "DATETIME": "TIMESTAMP '2024-05-17 12:30:00', or TO_TIMESTAMP(text)",
    "COLUMNS": "name the columns",
    **dict.fromkeys(("STRUCT", "NAMED_STRUCT"), "ROW(x, y), and CAST(ROW(x, y) AS ROW<a INT, b STRING>) for names"),
    "ANY_VALUE": "FIRST_VALUE(x)",
    "ARRAY_LENGTH": "CARDINALITY(array)",
    "JSON_EXTRACT": "JSON_VALUE(text, '$.name')",
    "CLASSIFIER": "a measure for each variable: COUNT(A.x) AS a, COUNT(B.x) AS b",
    "MATCH_NUMBER": "ROW_NUMBER() in a query outside",
    "NEXT": "a variable for the next row: PATTERN (A B)",
    "PREV": "LAST(A.x, 1): the row before, in the match; or LAG(x) OVER (ORDER BY ts) in a query inside",
    "LAG": "LAG(x) OVER (ORDER BY ts)",
    "LEAD": "LEAD(x) OVER (ORDER BY ts)",
    **dict.fromkeys(("DATE_TRUNC", "TIMESTAMP_TRUNC", "DATETIME_TRUNC"), "FLOOR(ts TO HOUR)"),
    "REGEXP_LIKE": "REGEXP(text, pattern)",
    "ELEMENT": "tags[1]: the first element",
    "SAFE_DIVIDE": "x / NULLIF(y, 0)",
    "STRING": "CAST(x AS STRING)",
    "ISNULL": "IFNULL(x, y), or x IS NULL",
    "NVL": "COALESCE(x, y)",
    "TIME_BUCKET": _WINDOW_TABLE,
    "WINDOW": _WINDOW_TABLE,
    **dict.fromkeys(("TUMBLE_START", "TUMBLE_END", "TUMBLE_ROWTIME"), _WINDOW_GROUP),
}
"""What to write for functions of other dialects, and for those that need their group."""


def is_known(name: str) -> bool:
    """Returns True if SQL has a function or an aggregate of this name, in capitals."""
    return name in FUNCTIONS or name in AGGREGATES or name in MOMENTS


def _nullif(arguments: CallArguments) -> Expr:
    a, b = arguments.exprs
    return when((a == b).fill_null(False)).then(lit(None)).otherwise(a)


def _if(arguments: CallArguments) -> Expr:
    condition, a, b = arguments.exprs
    return when(condition).then(a).otherwise(b)


def _text(method: str, arguments: CallArguments) -> Expr:
    return getattr(arguments.expr(0).str, method)()  # type: ignore[no-any-return]


def _number(method: str, arguments: CallArguments) -> Expr:
    return getattr(arguments.expr(0), method)()  # type: ignore[no-any-return]


def _part(name: str, arguments: CallArguments) -> Expr:
    return times.PARTS[name](arguments.clock(0))


_HASHES = ("MD5", "SHA1", "SHA224", "SHA256", "SHA384", "SHA512")
_LENGTH = Function(1, 1, "text", partial(_text, "length"))
_COALESCE = Function(1, None, "x, …", lambda a: coalesce(*a.exprs))

OF_ONE_TYPE = frozenset(("COALESCE", "GREATEST", "IF", "IFNULL", "LEAST", "NULLIF", "TIMESTAMPDIFF"))
"""Functions whose arguments are compared or put in each other's place."""

FUNCTIONS: dict[str, Function] = {
    "ABS": Function(1, 1, "number", partial(_number, "abs")),
    **{
        name: Function(1, 1, "number", partial(numbers.of_doubles, name.lower()))
        for name in ("ACOS", "ASIN", "ATAN", "COS", "COSH", "SIN", "SINH", "TAN", "TANH")
    },
    "ARRAY_APPEND": Function(2, 2, "array, x", arrays.append),
    "ARRAY_CONCAT": Function(1, None, "array, …", partial(arrays.of_arrays, "list.concat")),
    "ARRAY_CONTAINS": Function(2, 2, "array, x", lambda a: a.expr(0).list.contains(a.expr(1))),
    "ARRAY_DISTINCT": Function(1, 1, "array", partial(arrays.plain, "list.unique")),
    "ARRAY_EXCEPT": Function(2, 2, "array, array", partial(arrays.of_arrays, "list.except")),
    "ARRAY_INTERSECT": Function(2, 2, "array, array", partial(arrays.of_arrays, "list.intersect")),
    "ARRAY_JOIN": Function(2, 3, "array, separator[, text]", arrays.joined),
    "ARRAY_MAX": Function(1, 1, "array", partial(arrays.extreme, True)),
    "ARRAY_MIN": Function(1, 1, "array", partial(arrays.extreme, False)),
    "ARRAY_POSITION": Function(2, 2, "array, x", partial(arrays.of_element, "list.position")),
    "ARRAY_PREPEND": Function(2, 2, "array, x", arrays.prepend),
    "ARRAY_REMOVE": Function(2, 2, "array, x", partial(arrays.of_element, "list.remove")),
    "ARRAY_REVERSE": Function(1, 1, "array", partial(arrays.plain, "list.reverse")),
    "ARRAY_SLICE": Function(2, 3, "array, start[, end]", arrays.part),
    "ARRAY_SORT": Function(1, 3, "array[, ascending[, nulls_first]]", arrays.ordered),
    "ARRAY_UNION": Function(2, 2, "array, array", partial(arrays.of_arrays, "list.union")),
    "ASCII": Function(1, 1, "text", partial(texts.of_values, "ascii")),
    "ATAN2": Function(2, 2, "y, x", partial(numbers.of_doubles, "atan2")),
    "BIN": Function(1, 1, "number", partial(texts.of_values, "bin")),
    "BTRIM": Function(1, 2, "text[, characters]", partial(texts.trimmed, "strip", None)),
    "CARDINALITY": Function(1, 1, "x", maps.size),
    "CEIL": Function(1, 2, "number", partial(numbers.rounded, "ceil")),
    "CEILING": Function(1, 2, "number", partial(numbers.rounded, "ceil")),
    "CHARACTER_LENGTH": _LENGTH,
    "CHAR_LENGTH": _LENGTH,
    "CHR": Function(1, 1, "number", partial(texts.of_values, "chr")),
    "COALESCE": _COALESCE,
    "CONCAT": Function(1, None, "text, …", texts.concat),
    "CONCAT_WS": Function(2, None, "separator, text, …", texts.concat_ws),
    "CONVERT_TZ": Function(3, 3, "text, zone, other_zone", times.convert_tz),
    "COT": Function(1, 1, "number", numbers.cotangent),
    "DATE_FORMAT": Function(2, 2, "time, pattern", times.date_format),
    "DAYOFMONTH": Function(1, 1, "time", partial(_part, "DAY")),
    "DAYOFWEEK": Function(1, 1, "time", partial(_part, "DOW")),
    "DAYOFYEAR": Function(1, 1, "time", partial(_part, "DOY")),
    "DECODE": Function(2, 2, "bytes, characters", partial(texts.in_characters, "decode")),
    "DEGREES": Function(1, 1, "radians", partial(numbers.in_degrees, 180 / math.pi)),
    "E": Function(0, 0, "", lambda a: lit(math.e)),
    "ELT": Function(2, None, "number, text, …", texts.chosen),
    "ENCODE": Function(2, 2, "text, characters", partial(texts.in_characters, "encode")),
    "ENDSWITH": Function(
        2, 2, "text, end", partial(texts.with_columns, "endswith", "tt", partial(texts.ends, "endswith"))
    ),
    "EXP": Function(1, 1, "number", partial(_number, "exp")),
    "EXTRACT": Function(2, 2, "unit FROM time", times.extract),
    "FLOOR": Function(1, 2, "number[ TO unit]", partial(numbers.rounded, "floor")),
    "FROM_BASE64": Function(1, 1, "text", partial(texts.of_values, "from_base64")),
    "FROM_UNIXTIME": Function(1, 2, "seconds[, pattern]", times.from_unixtime),
    "GREATEST": Function(1, None, "x, …", partial(numbers.extreme, max_horizontal)),
    "HEX": Function(1, 1, "x", texts.hexadecimal),
    "INITCAP": Function(1, 1, "text", partial(_text, "to_titlecase")),
    "IF": Function(3, 3, "condition, x, y", _if),
    "IFNULL": Function(2, 2, "x, y", lambda a: coalesce(*a.exprs)),
    "INSTR": Function(2, 2, "text, part", texts.in_text),
    "IS_ALPHA": Function(1, 1, "x", partial(texts.has_only, "letters")),
    "IS_DECIMAL": Function(1, 1, "x", partial(texts.has_only, "decimal")),
    "IS_DIGIT": Function(1, 1, "x", partial(texts.has_only, "digits")),
    "JSON_ARRAY": Function(0, None, "[x, …]", json.array),
    "JSON_EXISTS": Function(2, 3, "text, path[ ON ERROR]", json.exists),
    "JSON_OBJECT": Function(0, None, "[KEY name VALUE x, …]", json.object_of),
    "JSON_QUERY": Function(2, 5, "text, path", json.query),
    "JSON_QUOTE": Function(1, 1, "text", json.quoted),
    "JSON_STRING": Function(1, 1, "x", json.string),
    "JSON_UNQUOTE": Function(1, 1, "text", json.unquoted),
    "JSON_VALUE": Function(2, 5, "text, path", json.value),
    "LEAST": Function(1, None, "x, …", partial(numbers.extreme, min_horizontal)),
    "LEFT": Function(2, 2, "text, length", partial(texts.with_columns, "left", "tn", texts.left)),
    "LN": Function(1, 1, "number", partial(_number, "log")),
    "LOCATE": Function(
        2, 3, "part, text[, start]", partial(texts.with_columns, "locate", "ttn", partial(texts.place, 1, 0))
    ),
    "LOG": Function(1, 2, "[base, ]number", numbers.logarithm),
    "LOG10": Function(1, 1, "number", lambda a: a.expr(0).log(10)),
    "LOG2": Function(1, 1, "number", lambda a: a.expr(0).log(2)),
    "LOWER": Function(1, 1, "text", partial(_text, "lower")),
    "LPAD": Function(
        3,
        3,
        "text, length, character",
        partial(texts.with_columns, "pad_start", "tnt", partial(texts.pad, "pad_start")),
    ),
    "LTRIM": Function(1, 2, "text[, characters]", partial(texts.trimmed, "strip_start", " ")),
    "MAP_ENTRIES": Function(1, 1, "map", partial(maps.part, "map.entries")),
    "MAP_FROM_ARRAYS": Function(2, 2, "keys, values", maps.from_arrays),
    "MAP_KEYS": Function(1, 1, "map", partial(maps.part, "map.keys")),
    "MAP_UNION": Function(1, None, "map, …", maps.union),
    "MAP_VALUES": Function(1, 1, "map", partial(maps.part, "map.values")),
    "MOD": Function(2, 2, "number, divisor", numbers.mod),
    "NULLIF": Function(2, 2, "x, y", _nullif),
    "OVERLAY": Function(3, 4, "text PLACING part FROM start[ FOR length]", texts.overlay),
    "PARSE_URL": Function(2, 3, "url, part[, name]", texts.url_part),
    "PI": Function(0, 0, "", lambda a: lit(math.pi)),
    "POSITION": Function(
        2, 2, "part IN text", partial(texts.with_columns, "locate", "ttn", partial(texts.place, 1, 0))
    ),
    "POWER": Function(2, 2, "number, exponent", numbers.power),
    "PRINTF": Function(1, None, "format, …", texts.printf),
    "RADIANS": Function(1, 1, "degrees", partial(numbers.in_degrees, math.pi / 180)),
    "REGEXP": Function(2, 2, "text, pattern", lambda a: a.expr(0).str.contains(a.constant(1, "string", "the pattern"))),
    "REGEXP_COUNT": Function(2, 2, "text, pattern", texts.regexp_count),
    "REGEXP_EXTRACT": Function(2, 3, "text, pattern[, group]", texts.regexp_extract),
    "REGEXP_EXTRACT_ALL": Function(2, 3, "text, pattern[, group]", texts.regexp_extract_all),
    "REGEXP_INSTR": Function(2, 2, "text, pattern", texts.regexp_instr),
    "REGEXP_REPLACE": Function(3, 3, "text, pattern, replacement", texts.regexp_replace),
    "REGEXP_SUBSTR": Function(2, 2, "text, pattern", texts.regexp_extract),
    "REPEAT": Function(2, 2, "text, number", partial(texts.of_values, "repeat")),
    "REPLACE": Function(3, 3, "text, old, new", partial(texts.with_columns, "replace", "ttt", texts.replaced)),
    "REVERSE": Function(1, 1, "text", partial(_text, "reverse")),
    "RIGHT": Function(2, 2, "text, length", partial(texts.with_columns, "right", "tn", texts.right)),
    "ROW": Function(1, None, "x, …", lambda a: struct(**{f"EXPR${i}": each for i, each in enumerate(a.exprs)})),
    "ROUND": Function(1, 2, "number[, digits]", numbers.to_digits),
    "RPAD": Function(
        3, 3, "text, length, character", partial(texts.with_columns, "pad_end", "tnt", partial(texts.pad, "pad_end"))
    ),
    "RTRIM": Function(1, 2, "text[, characters]", partial(texts.trimmed, "strip_end", " ")),
    **{name: Function(1, 1, "text", partial(texts.of_values, name.lower())) for name in _HASHES},
    "SHA2": Function(2, 2, "text, bits", texts.sha2),
    "SIGN": Function(1, 1, "number", partial(_number, "sign")),
    "SPLIT": Function(2, 2, "text, separator", lambda a: a.expr(0).str.split(a.constant(1, "string", "the separator"))),
    "SPLIT_INDEX": Function(
        3, 3, "text, separator, index", partial(texts.with_columns, "split_index", "ttn", texts.split_index)
    ),
    "SQRT": Function(1, 1, "number", partial(_number, "sqrt")),
    "STARTSWITH": Function(
        2, 2, "text, start", partial(texts.with_columns, "startswith", "tt", partial(texts.ends, "startswith"))
    ),
    "STR_TO_MAP": Function(1, 3, "text[, separator[, separator_of_key]]", maps.from_text),
    "SUBSTR": Function(2, 3, "text, start[, length]", partial(texts.with_columns, "substring", "tnn", texts.substring)),
    "SUBSTRING": Function(
        2, 3, "text, start[, length]", partial(texts.with_columns, "substring", "tnn", texts.substring)
    ),
    "TIMESTAMPADD": Function(3, 3, "unit, number, time", times.timestampadd),
    "TIMESTAMPDIFF": Function(3, 3, "unit, start, end", times.timestampdiff),
    "TO_BASE64": Function(1, 1, "text", partial(texts.of_values, "to_base64")),
    "TO_DATE": Function(1, 2, "text[, pattern]", partial(times.to_time, "to_date")),
    "TO_TIMESTAMP": Function(1, 2, "text[, pattern]", partial(times.to_time, "to_datetime")),
    "TO_TIMESTAMP_LTZ": Function(1, 3, "number[, digits]", times.to_timestamp_ltz),
    "TRIM": Function(1, 3, "text", texts.trim),
    "TRANSLATE": Function(3, 3, "text, old, new", partial(texts.of_values, "translate")),
    "TRUNCATE": Function(1, 2, "number[, digits]", numbers.truncated),
    "TYPEOF": Function(1, 2, "x[, TRUE]", lambda a: lit(sql_type(a.bound(0).type))),
    "UNHEX": Function(1, 1, "text", partial(texts.of_values, "unhex")),
    "UNIX_TIMESTAMP": Function(1, 2, "text[, pattern]", times.unix_timestamp),
    "UPPER": Function(1, 1, "text", partial(_text, "upper")),
    "URL_DECODE": Function(1, 1, "text", partial(texts.of_values, "url_decode")),
    "URL_ENCODE": Function(1, 1, "text", partial(texts.of_values, "url_encode")),
    **{
        name: Function(1, 1, "time", partial(_part, name))
        for name in ("YEAR", "QUARTER", "MONTH", "WEEK", "HOUR", "MINUTE", "SECOND")
    },
}
"""The scalar functions, by their name in capitals."""

MOMENTS = frozenset(
    [
        *("CURRENT_DATE", "CURRENT_ROW_TIMESTAMP", "CURRENT_TIME", "CURRENT_TIMESTAMP", "LOCALTIME", "LOCALTIMESTAMP"),
        *("CURRENT_WATERMARK", "NOW", "PROCTIME", "RAND", "RAND_INTEGER", "UUID"),
    ]
)
"""The functions whose values are those of the moment at which rows are processed (`sabot.sql.moments`)."""
