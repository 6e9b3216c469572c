"""CAST, and what a value is as a text or a number, with Flink's rounding."""

import datetime

import pyarrow as pa

from sabot.api.expr import Expr, instant, lit, struct, when
from sabot.api.expr.time import ZONED
from sabot.base.arrays import decimal_type
from sabot.sql.scope import TypedExpr
from sabot.sql.types import named_as
from sabot.sql.zones import UTC, is_local, on_the_clock

MOST_DIGITS = 38
AWAY = "half_away_from_zero"


def is_number(type: pa.DataType) -> bool:
    """Returns True for integers, floats and decimals."""
    return bool(pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_decimal(type))


def roomy(expr: Expr, type: pa.DataType) -> Expr:
    """Returns a decimal in a type with one digit more, since 9.5 is 10 if it is rounded."""
    return expr.cast(decimal_type(type.precision + 1, type.scale))


def cast(operand: TypedExpr, target: pa.DataType, zone: str, *, strict: bool) -> Expr:
    """Returns CAST of Flink: a fraction is cut off where the target is an integer, and rounded where it is a decimal with fewer digits.
    A TIMESTAMP_LTZ is a time on the clock of the session's zone.
    """
    expr, type = operand
    if is_local(target) and not is_local(type) and zone != UTC:
        if pa.types.is_temporal(type) or pa.types.is_string(type):
            clock = pa.timestamp(target.unit)
            if not pa.types.is_string(type):
                return instant(expr if type == clock else expr.cast(clock, strict=strict), zone)
            made = instant(read_text(expr, clock, strict), zone)
            return when(expr.str.contains(ZONED)).then(read_text(expr, target, strict)).otherwise(made)
    elif is_local(type) and not is_local(target) and pa.types.is_temporal(target):
        expr, type = on_the_clock(operand, zone)
    if (pa.types.is_list(type) or pa.types.is_map(type)) and (named := named_as(type, target)) != type:
        expr, type = Expr("list.named", (expr,), (("type", named),)), named
        if type == target:
            return expr
    if pa.types.is_struct(type) and pa.types.is_struct(target) and type.num_fields == target.num_fields:
        return _cast_row(expr, type, target, zone, strict=strict)
    if pa.types.is_string(target):
        return as_text(operand, zone, strict=strict)
    if pa.types.is_boolean(target) and pa.types.is_decimal(type):
        return expr != 0
    if pa.types.is_integer(target) and pa.types.is_decimal(type) and type.scale:
        expr = roomy(expr, type)
        expr = when(expr < 0).then(expr.ceil()).otherwise(expr.floor())
    if pa.types.is_decimal(target) and pa.types.is_floating(type):
        expr = expr.round(target.scale, mode=AWAY)
    if pa.types.is_decimal(target) and pa.types.is_decimal(type) and type.scale > target.scale:
        expr = roomy(expr, type).round(target.scale, mode=AWAY)
    if pa.types.is_boolean(type) and is_number(target):
        return when(expr).then(lit(1)).when(~expr).then(lit(0)).otherwise(lit(None)).cast(target)
    if pa.types.is_string(type) and pa.types.is_time(target):  # the time of a day, which texts of times have behind a T
        moment = read_text(lit("1970-01-01T") + expr.str.strip(" "), pa.timestamp("us"), strict)
        return moment.dt.date_trunc("1s" if target.unit == "s" else "1ms").cast(target)
    return read_text(expr, target, strict) if pa.types.is_string(type) else expr.cast(target, strict=strict)


def _cast_row(expr: Expr, type: pa.DataType, target: pa.DataType, zone: str, *, strict: bool) -> Expr:
    """Returns a ROW whose fields have the names and types of another one, by their positions."""
    if [field.name for field in type] == [field.name for field in target]:
        return expr.cast(target, strict=strict)
    parts = expr.inputs if expr.kind == "struct" else [expr[field.name] for field in type]
    fields = {
        wanted.name: part
        if given.type == wanted.type
        else cast(TypedExpr(part, given.type), wanted.type, zone, strict=strict)
        for part, given, wanted in zip(parts, type, target, strict=True)
    }
    made = struct(**fields)
    return made if expr.kind == "struct" else when(expr.is_not_null()).then(made).otherwise(lit(None))


def read_text(texts: Expr, target: pa.DataType, strict: bool) -> Expr:
    """Returns the values of texts, which Flink reads more generously than the engine: ' 12 ', '12.7' as an INT, 'yes',
    '2024-4-5'.
    """
    return Expr("cast", (texts,), (("type", target), ("strict", strict), ("lenient", True)))


def _is_plain(type: pa.DataType) -> bool:
    """Returns True for the types of elements whose texts in Flink are those of the engine."""
    return bool(
        pa.types.is_string(type) or pa.types.is_date(type) or (is_number(type) and not pa.types.is_floating(type))
    )


def _in_text(bound: TypedExpr, zone: str, *, strict: bool) -> Expr:
    """Returns a part of a ROW as a text, and the word NULL for a part that is not there."""
    return as_text(bound, zone, strict=strict).fill_null("NULL")


def _between(begin: str, parts: list[Expr], end: str) -> Expr:
    """Returns texts with commas between them."""
    made = lit(begin)
    for i, part in enumerate(parts):
        made = made + lit(", ") + part if i else made + part
    return made + lit(end)


def as_text(bound: TypedExpr, zone: str, *, strict: bool = True) -> Expr:
    """Returns the value as a text; a TIMESTAMP_LTZ as the time on the clock of the session's zone. `strict`: False if bytes
    that are no UTF-8 become NULL.
    """
    expr, type = on_the_clock(bound, zone)
    if pa.types.is_string(type):
        return expr
    if pa.types.is_struct(type):
        parts = [_in_text(TypedExpr(expr[each.name], each.type), zone, strict=strict) for each in type]
        return when(expr.is_not_null()).then(_between("(", parts, ")")).otherwise(lit(None))
    if pa.types.is_list(type) and _is_plain(type.value_type):
        elements = expr if pa.types.is_string(type.value_type) else expr.cast(pa.list_(pa.string()), strict=strict)
        joined = Expr("list.fill_null", (elements, lit("NULL"))).list.join(", ")
        return _between("[", [joined], "]")
    if pa.types.is_boolean(type):
        return when(expr).then(lit("TRUE")).when(~expr).then(lit("FALSE")).otherwise(lit(None))
    value = expr.option("value") if expr.kind == "lit" else None
    if isinstance(value, datetime.datetime | datetime.time) and not is_local(type):
        text = f"{value:%H:%M:%S.%f}" if isinstance(value, datetime.time) else f"{value:%Y-%m-%d %H:%M:%S.%f}"
        return lit(text.rstrip("0").rstrip("."))  # it has the digits that are written
    return (expr.dt.replace_time_zone(None) if is_local(type) else expr).cast("string", strict=strict)
