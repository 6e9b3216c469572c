"""Types and time literals of SQL, as Arrow types and values."""

import binascii
import datetime
import re
from decimal import Decimal, InvalidOperation
from zoneinfo import ZoneInfo

import pyarrow as pa

from sabot.api.expr import Expr, lit
from sabot.base.arrays import integer_range
from sabot.sql.syntax.text import Span, SqlFault, list_names
from sabot.sql.syntax.tree import Interval, Name, Type, TypedLiteral, TypeField

DAY_MS = 86_400_000

_UNITS_MS = {"WEEK": 7 * DAY_MS, "DAY": DAY_MS, "HOUR": 3_600_000, "MINUTE": 60_000, "SECOND": 1000}
_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
_PLAIN = {
    "BOOLEAN": pa.bool_(),
    "TINYINT": pa.int8(),
    "SMALLINT": pa.int16(),
    "INT": pa.int32(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "FLOAT": pa.float32(),
    "REAL": pa.float32(),
    "DOUBLE": pa.float64(),
    "STRING": pa.string(),
    "VARCHAR": pa.string(),
    "CHAR": pa.string(),
    "BYTES": pa.binary(),
    "VARBINARY": pa.binary(),
    "BINARY": pa.binary(),
    "DATE": pa.date32(),
}
_OTHERS = ("DECIMAL", "NUMERIC", "TIMESTAMP", "TIMESTAMP_LTZ", "TIME", "ARRAY", "MAP", "ROW")
_ELSEWHERE = {
    **dict.fromkeys(("TEXT", "NVARCHAR", "NCHAR", "CLOB", "UUID", "ENUM"), "STRING"),
    **dict.fromkeys(("JSON", "JSONB"), "STRING, and JSON_VALUE(text, '$.name')"),
    **dict.fromkeys(("DATETIME", "DATETIME2", "TIMESTAMP_NTZ", "SMALLDATETIME"), "TIMESTAMP(3)"),
    **dict.fromkeys(("TIMESTAMPTZ", "DATETIMEOFFSET", "TIMESTAMP_TZ"), "TIMESTAMP_LTZ(3)"),
    **dict.fromkeys(
        ("UNSIGNED", "SIGNED", "INT64", "INT8", "LONG", "SERIAL", "BIGSERIAL", "UINT32", "HUGEINT"), "BIGINT"
    ),
    **dict.fromkeys(("INT32", "INT4", "MEDIUMINT"), "INT"),
    **dict.fromkeys(("FLOAT8", "FLOAT64"), "DOUBLE"),
    **dict.fromkeys(("NUMBER", "MONEY"), "DECIMAL(19, 4)"),
    **dict.fromkeys(("BOOL", "BIT"), "BOOLEAN"),
    **dict.fromkeys(("BYTEA", "BLOB"), "BYTES"),
}
"""What to write for types of other dialects."""
_LOCAL = ("TIMESTAMP_LTZ", "TIMESTAMP WITH LOCAL TIME ZONE")


def arrow_type(type: Type) -> pa.DataType:
    """Returns the Arrow type of a SQL type. Raises SqlFault for a type that there is not."""
    name = type.name
    if name in _PLAIN:
        if type.numbers and not (name in ("VARCHAR", "CHAR", "VARBINARY", "BINARY") and len(type.numbers) == 1):
            raise SqlFault(type.span, f"{name} has no parameters")
        return _PLAIN[name]
    if name in ("DECIMAL", "NUMERIC", "DEC"):
        precision, scale = (*type.numbers, 10, 0)[:2] if len(type.numbers) != 1 else (type.numbers[0], 0)
        if not (1 <= precision <= 38 and 0 <= scale <= precision and len(type.numbers) <= 2):
            raise SqlFault(type.span, f"{name}({precision}, {scale}) cannot be", "up to 38 digits, scale included")
        return pa.decimal128(precision, scale)
    if name == "TIMESTAMP" or name in _LOCAL:
        unit = _unit(type, 6)
        return pa.timestamp(unit, tz="UTC") if name in _LOCAL else pa.timestamp(unit)
    if name == "TIME":
        unit = _unit(type, 0)
        return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)
    if name == "ARRAY" and len(type.inner) == 1:
        return pa.list_(arrow_type(type.inner[0]))
    if name == "ROW" and type.fields:
        return pa.struct([(field.name.text, arrow_type(field.type)) for field in type.fields])
    if name == "MAP" and len(type.inner) == 2:
        key, value = map(arrow_type, type.inner)
        if pa.types.is_nested(key):
            raise SqlFault(type.span, f"the keys of a MAP are no {sql_type(key)}", "MAP<STRING, …>")
        return pa.map_(key, value)
    if name == "MULTISET":
        raise SqlFault(type.span, f"there are no columns of the type {name}", "declare a MAP<…, INT> or an ARRAY")
    hint = _ELSEWHERE.get(name) or list_names(name, [*_PLAIN, *_OTHERS])
    raise SqlFault(type.span, f"there is no type {name}", hint)


def type_of(type: pa.DataType, span: Span) -> Type:
    """Returns the SQL type of a column of this Arrow type, as CREATE TABLE would declare it. `span`: the place of the table."""
    if pa.types.is_decimal(type):
        return Type("DECIMAL", span, (type.precision, type.scale))
    if pa.types.is_timestamp(type):
        return Type("TIMESTAMP_LTZ" if type.tz else "TIMESTAMP", span, (_DIGITS[type.unit],))
    if pa.types.is_time(type):
        return Type("TIME", span, (_DIGITS[type.unit],))
    if pa.types.is_list(type):
        return Type("ARRAY", span, inner=(type_of(type.value_type, span),))
    if pa.types.is_map(type):
        return Type("MAP", span, inner=(type_of(type.key_type, span), type_of(type.item_type, span)))
    if pa.types.is_struct(type):
        fields = tuple(TypeField(Name(each.name, span), type_of(each.type, span)) for each in type)
        return Type("ROW", span, fields=fields)
    return Type(sql_type(type), span)


def text_length(type: Type) -> int | None:
    """Returns the most characters of a text of a type: n of VARCHAR(n) and CHAR(n), 1 of CHAR; None for any other."""
    if type.name in ("VARCHAR", "CHAR") and type.numbers:
        return type.numbers[0]
    return 1 if type.name == "CHAR" else None


def _unit(type: Type, default: int) -> str:
    precision = type.numbers[0] if type.numbers else default
    if len(type.numbers) > 1 or precision > 9:
        raise SqlFault(type.span, f"{type.name} has one parameter, the digits of the second: 0 to 9")
    return "s" if precision == 0 else "ms" if precision <= 3 else "us" if precision <= 6 else "ns"


def sql_type(type: pa.DataType) -> str:
    """Returns the SQL name of an Arrow type, for DESCRIBE."""
    if pa.types.is_decimal(type):
        return f"DECIMAL({type.precision}, {type.scale})"
    if pa.types.is_timestamp(type):
        return f"TIMESTAMP_LTZ({_DIGITS[type.unit]})" if type.tz else f"TIMESTAMP({_DIGITS[type.unit]})"
    if pa.types.is_time(type):
        return f"TIME({_DIGITS[type.unit]})"
    if pa.types.is_list(type):
        return f"ARRAY<{sql_type(type.value_type)}>"
    if pa.types.is_map(type):
        return f"MAP<{sql_type(type.key_type)}, {sql_type(type.item_type)}>"
    if pa.types.is_struct(type):
        return f"ROW<{', '.join(f'{each.name} {sql_type(each.type)}' for each in type)}>"
    if pa.types.is_string(type):
        return "STRING"
    if pa.types.is_binary(type):
        return "BYTES"
    if pa.types.is_int32(type):
        return "INT"
    found = next((name for name, each in _PLAIN.items() if each == type), None)
    return found or str(type).upper()


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Returns the type to which values of both types are cast where they become one column, or None if there is none.

    BIGINT, DOUBLE          DOUBLE
    INT, DECIMAL(5, 2)      DECIMAL(12, 2)
    """
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_timestamp(one) and pa.types.is_timestamp(other) and (one.tz is None) == (other.tz is None):
        return max((one, other), key=lambda type: ("s", "ms", "us", "ns").index(type.unit))
    types = (one, other)
    integers = [type for type in types if pa.types.is_integer(type)]
    decimals = [type for type in types if pa.types.is_decimal(type)]
    floats = [type for type in types if pa.types.is_floating(type)]
    if len(integers) + len(decimals) + len(floats) < 2:
        return None
    if floats:
        return floats[0] if len(floats) == 1 and not decimals else pa.float64()
    if not decimals:
        return max(integers, key=lambda type: type.bit_width)
    sizes = [(type.precision, type.scale) for type in decimals]
    sizes += [(20 if type == pa.uint64() else {8: 3, 16: 5, 32: 10, 64: 19}[type.bit_width], 0) for type in integers]
    scale = max(scale for _, scale in sizes)
    digits = max(precision - scale for precision, scale in sizes)
    return pa.decimal128(min(digits + scale, 38), scale)


def named_as(type: pa.DataType, like: pa.DataType) -> pa.DataType:
    """Returns a type whose rows, at all levels, have the names of the fields of another one, by their positions."""
    types = pa.types
    if types.is_list(type) and types.is_list(like):
        return pa.list_(named_as(type.value_type, like.value_type))
    if types.is_map(type) and types.is_map(like):
        return pa.map_(named_as(type.key_type, like.key_type), named_as(type.item_type, like.item_type))
    if types.is_struct(type) and types.is_struct(like) and type.num_fields == like.num_fields:
        return pa.struct([(b.name, named_as(a.type, b.type)) for a, b in zip(type, like, strict=True)])
    return type


def is_implicit(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Returns True if values are written into a column of another type without a CAST, as Flink's implicit casts are.

    INT into BIGINT       True     DOUBLE into BIGINT             False, the fraction would be cut off
    DOUBLE into DECIMAL   True     BIGINT into INT                False
    INT into STRING       False    TIMESTAMP into TIMESTAMP_LTZ   True
    """
    types = pa.types
    if given == wanted or types.is_null(given):
        return True
    is_number = bool(types.is_integer(given) or types.is_floating(given) or types.is_decimal(given))
    if types.is_integer(wanted):
        low, high = integer_range(wanted)
        least, greatest = integer_range(given) if types.is_integer(given) else (low - 1, high + 1)
        return low <= least and greatest <= high
    if types.is_floating(wanted):
        return is_number and not (types.is_floating(given) and given.bit_width > wanted.bit_width)
    if types.is_decimal(wanted):
        return is_number
    if types.is_timestamp(given):
        return bool(types.is_timestamp(wanted) or types.is_date(wanted) or types.is_time(wanted))
    if types.is_list(given) and types.is_list(wanted):
        return is_implicit(given.value_type, wanted.value_type)
    if types.is_struct(given) and types.is_struct(wanted) and given.num_fields == wanted.num_fields:
        return all(is_implicit(one.type, other.type) for one, other in zip(given, wanted, strict=True))
    if types.is_map(given) and types.is_map(wanted):
        return bool(named_as(given, wanted) == wanted)
    return bool(types.is_time(given) and types.is_time(wanted))


_MONTHS = {"MONTH": 1, "QUARTER": 3, "YEAR": 12}


_MOST_MONTHS = 9_999 * 12
_MOST_MS = 106_751_991 * DAY_MS  # 64 bits of microseconds


def months_within(months: int, span: Span) -> int:
    """Returns the months. Raises SqlFault if they are more than any time can be moved."""
    if abs(months) > _MOST_MONTHS:
        raise SqlFault(span, "this interval is too long", "up to 9,999 years")
    return months


def ms_within(ms: int, span: Span) -> int:
    """Returns the milliseconds. Raises SqlFault if they are more than any time can be moved."""
    if abs(ms) > _MOST_MS:
        raise SqlFault(span, "this interval is too long", "up to 106,751,991 days")
    return ms


def interval_months(node: Interval) -> int | None:
    """Returns the months of an interval of years, quarters or months, or None for other units."""
    if node.unit not in _MONTHS:
        return None
    text = node.text.strip()
    if node.to_unit is None:
        match = re.fullmatch(r"[+-]?\d+", text)
        found = None if match is None else int(text) * _MONTHS[node.unit]
    else:
        match = re.fullmatch(r"([+-]?)(\d+)-(\d+)", text) if (node.unit, node.to_unit) == ("YEAR", "MONTH") else None
        found = None if match is None else (int(match[2]) * 12 + int(match[3])) * (-1 if match[1] == "-" else 1)
    if found is None:
        raise SqlFault(node.span, f"'{node.text}' is no interval of {node.unit}", "'3', or '1-6' YEAR TO MONTH")
    return months_within(found, node.span)


def interval_ms(node: Interval) -> int:
    """Returns the milliseconds of an interval. Raises SqlFault for months and years, whose length differs."""
    if node.unit in ("YEAR", "QUARTER", "MONTH"):
        raise SqlFault(node.span, f"an interval of {node.unit}s has no fixed length", "write it in days")
    if node.to_unit is not None:
        return _compound_ms(node)
    try:
        amount = Decimal(node.text) * _UNITS_MS[node.unit]
    except InvalidOperation:
        raise SqlFault(node.span, f"'{node.text}' is not a number of {node.unit.lower()}s") from None
    if not amount.is_finite():
        raise SqlFault(node.span, f"'{node.text}' is not a number of {node.unit.lower()}s")
    if abs(amount) <= _MOST_MS and amount != int(amount):
        raise SqlFault(node.span, "an interval has whole milliseconds")
    return ms_within(int(amount) if abs(amount) <= _MOST_MS else _MOST_MS + 1, node.span)


def _compound_ms(node: Interval) -> int:
    units = ("DAY", "HOUR", "MINUTE", "SECOND")
    wrong = SqlFault(node.span, f"'{node.text}' is no interval {node.unit} TO {node.to_unit}", "'1 02:03:04.5'")
    if node.unit not in units or node.to_unit not in units or units.index(node.unit) >= units.index(node.to_unit):
        raise wrong
    asked = units[units.index(node.unit) : units.index(node.to_unit) + 1]
    parts = re.split(r"[\s:]+", node.text.strip().lstrip("+-"))
    if len(parts) != len(asked) or not all(re.fullmatch(r"\d+(\.\d{1,3})?", part) for part in parts):
        raise wrong
    total = sum(Decimal(part) * _UNITS_MS[unit] for part, unit in zip(parts, asked, strict=True))
    return ms_within(int(-total if node.text.strip().startswith("-") else total), node.span)


def literal_time(node: TypedLiteral, zone: str) -> Expr:
    """Returns DATE '…', TIME '…', TIMESTAMP '…', X'…' as a literal. Raises SqlFault for a text that is none.

    `zone`: the time zone of a TIMESTAMP_LTZ whose text has none.
    """
    text = node.text.strip()
    try:
        if node.type == "DATE":
            return lit(datetime.date.fromisoformat(text))
        if node.type == "X":
            return lit(binascii.unhexlify(node.text))
        if node.type == "TIME":
            return lit(datetime.time.fromisoformat(f"0{text}" if text[1:2] == ":" else text))
        value = datetime.datetime.fromisoformat(_ONE_DIGIT.sub(r"\g<1>0\2", text))
    except ValueError:
        raise SqlFault(
            node.span, f"'{node.text}' is no {node.type if node.type != 'X' else 'binary literal'}", _FORMS[node.type]
        ) from None
    if node.type == "TIMESTAMP_LTZ":
        return lit(value.replace(tzinfo=value.tzinfo or ZoneInfo(zone)).astimezone(datetime.UTC))
    if value.tzinfo is not None:
        raise SqlFault(node.span, "a TIMESTAMP has no time zone", "write TIMESTAMP_LTZ '…'")
    return lit(value)


_ONE_DIGIT = re.compile(r"^([\d-]+[ T])(\d:)")  # an hour of one digit
_FORMS = {
    "DATE": "DATE '2024-05-17'",
    "X": "X'0aff': two hexadecimal digits for each byte",
    "TIME": "TIME '12:30:00'",
    "TIMESTAMP": "TIMESTAMP '2024-05-17 12:30:00'",
    "TIMESTAMP_LTZ": "TIMESTAMP_LTZ '2024-05-17 12:30:00Z'",
}
