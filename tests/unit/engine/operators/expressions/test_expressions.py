"""Expressions beside polars, which has the names and the semantics that they follow.

Most cases are written once and read by both: the names are the same. Where they differ, a case has two forms.
"""

import datetime as dt
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.arrow.selection import select_rows
from sabot.api import expr as sabot_expr
from sabot.api.expr import Expr, as_type, coalesce, col, lit, max_horizontal, struct, when
from sabot.engine.operators.base import TIME_COLUMN
from sabot.engine.operators.expressions.compiled import compile_expr, compile_predicate
from sabot.errors import DataError, UserError

NAN, INF = math.nan, math.inf
LEAST, GREATEST = -(2**63), 2**63 - 1

TIMES = [
    dt.datetime(2024, 2, 29, 13, 45, 59, 123456),
    dt.datetime(1969, 12, 31, 23, 59, 59, 999999),
    None,
    dt.datetime(2023, 1, 1),
]
FRAME = {
    "i": pa.array([7, -7, None, 0, GREATEST, LEAST, 3, 1]),
    "j": pa.array([2, -2, 5, None, -1, -1, 0, 10]),
    "n": pa.array([0, 1, 2, None, 3, 4, 5, 1]),
    "i8": pa.array([1, -128, 127, None, 0, 5, 9, -1], pa.int8()),
    "u8": pa.array([1, 255, 127, None, 0, 5, 9, 3], pa.uint8()),
    "u64": pa.array([1, 2**64 - 1, 2**63, None, 0, 5, 9, 3], pa.uint64()),
    "f": pa.array([7.5, -7.5, None, NAN, INF, 0.0, -0.0, 2.25]),
    "g": pa.array([2.0, NAN, 1.0, NAN, INF, None, 0.0, -INF]),
    "f4": pa.array([1.5, 0.1, None, NAN, 3e38, -2.5, 0.5, 1.0], pa.float32()),
    "p": pa.array([True, None, False, True, None, False, None, True]),
    "q": pa.array([None, None, None, True, False, False, True, False]),
    "s": pa.array(["  Ab c ", "äÖß", "", "x,y,,z", None, "𝄞𝄞", "ΣΟΦΟΣ", "İx"]),
    "t": pa.array(["", "ä", "x", "z", "q", "𝄞", "Σ", None]),
    "ts": pa.array([*TIMES, *TIMES], pa.timestamp("us")),
    "ms": pa.array([*TIMES, *TIMES], pa.timestamp("us")).cast(pa.timestamp("ms"), safe=False),
    "z": pa.array([*TIMES, *TIMES], pa.timestamp("us")).cast(pa.timestamp("us", "Europe/Berlin")),
    "d": pa.array([t and t.date() for t in [*TIMES, *TIMES]], pa.date32()),
    "st": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}, *[{"a": 2, "b": None}] * 5]),
    "l": pa.array([[1, 2], [3], None, [], [None], [2, None, 7], [5, 2], [1]]),
    "lf": pa.array([[NAN, 2.0], [3.0], None, [], [None], [-0.0], [5.0], [1.0]]),
    "nothing": pa.nulls(8),
}
BATCH = pa.record_batch(FRAME)


def evaluate(expr: Expr, batch: pa.RecordBatch) -> pa.Array:
    return compile_expr(expr, batch.schema)(batch)


class Ours:
    """What a case is written with: our functions, or polars'."""

    col, lit, when, coalesce, struct = map(staticmethod, (col, lit, when, coalesce, struct))
    min_horizontal, max_horizontal = map(staticmethod, (sabot_expr.min_horizontal, sabot_expr.max_horizontal))
    sum_horizontal, concat_str = map(staticmethod, (sabot_expr.sum_horizontal, sabot_expr.concat_str))
    all_horizontal, any_horizontal = map(staticmethod, (sabot_expr.all_horizontal, sabot_expr.any_horizontal))


def plain(values: list[Any]) -> list[Any]:
    """Values that compare with ==: every NaN the same, a zone's time as its UTC."""

    def one(value: Any) -> Any:
        if isinstance(value, float):
            return "NaN" if math.isnan(value) else value
        if isinstance(value, list):
            return plain(value)
        if isinstance(value, dict):
            return {name: one(part) for name, part in value.items()}
        if isinstance(value, dt.datetime) and value.tzinfo is not None:
            return value.astimezone(dt.UTC)
        return value

    return [one(value) for value in values]


def by_polars(case: Callable[[Any], Any], batch: pa.RecordBatch) -> list[Any]:
    frame = pl.DataFrame(pl.from_arrow(batch))
    made = frame.select(case(pl).alias("made"))["made"]
    return plain(
        (made if len(made) == len(frame) else frame.select(case(pl).alias("made"), pl.first())["made"]).to_list()
    )


def ours(case: Callable[[Any], Any], batch: pa.RecordBatch) -> list[Any]:
    array = evaluate(case(Ours), batch)
    assert isinstance(array, pa.Array)
    assert array.type == compile_expr(case(Ours), batch.schema).type
    array.validate(full=True)
    return plain(array.to_pylist())


SAME: dict[str, Callable[[Any], Any]] = {
    "col": lambda m: m.col("i"),
    "lit": lambda m: m.lit("x"),
    "add": lambda m: m.col("i") + m.col("j"),
    "add a literal": lambda m: m.col("i") + 1,
    "add to a literal": lambda m: 1 + m.col("i"),
    "add null": lambda m: m.col("i") + m.lit(None),
    "add strings": lambda m: m.col("s") + m.col("t"),
    "add text": lambda m: m.col("s") + "!",
    "subtract": lambda m: m.col("i") - m.col("j"),
    "multiply": lambda m: m.col("i") * m.col("j"),
    "multiply a float": lambda m: m.col("i") * 1.5,
    "divide": lambda m: m.col("i") / m.col("j"),
    "divide by zero": lambda m: m.col("i") / 0,
    "divide floats": lambda m: m.col("f") / m.col("g"),
    "floor-divide": lambda m: m.col("i") // m.col("j"),
    "floor-divide by zero": lambda m: m.col("i") // 0,
    "floor-divide by -2": lambda m: m.col("i") // -2,
    "floor-divide a literal": lambda m: 7 // m.col("j"),
    "floor-divide floats": lambda m: m.col("f") // m.col("g"),
    "floor-divide by a float": lambda m: m.col("j") // 2.0,
    "remainder": lambda m: m.col("i") % m.col("j"),
    "remainder by zero": lambda m: m.col("i") % 0,
    "remainder by -3": lambda m: m.col("i") % -3,
    "remainder of a literal": lambda m: 7 % m.col("j"),
    "remainder of floats": lambda m: m.col("f") % m.col("g"),
    "remainder unsigned": lambda m: m.col("u8") % 3,
    "power": lambda m: m.col("i") ** 2,
    "products wrap": lambda m: m.col("i8") * m.col("i8") * m.col("i8"),
    "power of columns": lambda m: m.col("i8") ** m.col("n"),
    "power of floats": lambda m: m.col("f") ** 2,
    "power a half": lambda m: m.col("j") ** 0.5,
    "power unsigned": lambda m: m.col("u64") ** 2,
    "negate": lambda m: -m.col("i"),
    "negate floats": lambda m: -m.col("f"),
    "narrow wraps": lambda m: m.col("i8") + m.col("i8"),
    "narrow and narrow": lambda m: m.col("i8") + m.col("i8"),
    "unsigned wraps": lambda m: m.col("u8") + m.col("u8"),
    "signed and unsigned": lambda m: m.col("i8") - m.col("u8"),
    "float32": lambda m: m.col("f4") * 2,
    "bool counts": lambda m: m.col("p") + m.col("q"),
    "bool times int": lambda m: m.col("p") * m.col("i"),
    "null column": lambda m: m.col("nothing") + 1,
    "abs": lambda m: m.col("i").abs(),
    "abs float": lambda m: m.col("f").abs(),
    "round": lambda m: m.col("f").round(),
    "round to 1": lambda m: m.col("f").round(1),
    "round int": lambda m: m.col("i").round(),
    "clip": lambda m: m.col("i").clip(-3, 5),
    "clip floats": lambda m: m.col("f").clip(-1.0, 2.5),
    "clip below": lambda m: m.col("f").clip(lower_bound=0.0) if m is pl else m.col("f").clip(0.0),
    "clip by a column": lambda m: (
        m.col("i").clip(upper_bound=m.col("j")) if m is pl else m.col("i").clip(upper=m.col("j"))
    ),
    "clip times": lambda m: m.col("ms").clip(TIMES[1], TIMES[3]),
    "log": lambda m: m.col("f").log(),
    "exp": lambda m: m.col("n").exp(),
    "sign": lambda m: m.col("i").sign(),
    "sign of floats": lambda m: m.col("f").sign(),
    "is_finite": lambda m: m.col("f").is_finite(),
    "is_infinite": lambda m: m.col("f").is_infinite(),
    "is_not_nan": lambda m: m.col("f").is_not_nan(),
    "fill_nan": lambda m: m.col("f").fill_nan(1.5),
    "fill_nan by null": lambda m: m.col("f").fill_nan(None),
    "between columns": lambda m: m.col("i").is_between(m.col("j"), m.col("n")),
    "strip_chars_start": lambda m: m.col("s").str.strip_chars_start(),
    "strip_chars_end": lambda m: m.col("s").str.strip_chars_end("cßΣ "),
    "pad_start": lambda m: m.col("s").str.pad_start(6, "0"),
    "pad_end": lambda m: m.col("s").str.pad_end(6),
    "len_bytes": lambda m: m.col("s").str.len_bytes(),
    "count_matches": lambda m: m.col("s").str.count_matches("[,ΟΣ]"),
    "count_matches literal": lambda m: m.col("s").str.count_matches(",", literal=True),
    "date": lambda m: m.col("z").dt.date(),
    "quarter": lambda m: m.col("ts").dt.quarter(),
    "week": lambda m: m.col("ts").dt.week(),
    "ordinal_day": lambda m: m.col("ts").dt.ordinal_day(),
    "millisecond": lambda m: m.col("ts").dt.millisecond(),
    "list first": lambda m: m.col("l").list.first(),
    "list last": lambda m: m.col("l").list.last(),
    "list join": lambda m: m.col("s").str.split(",").list.join("-"),
    "between columns of the rows": lambda m: m.col("f").is_between(m.col("g"), m.col("i")),
    "floor": lambda m: m.col("f").floor(),
    "floor int": lambda m: m.col("i").floor(),
    "ceil": lambda m: m.col("f").ceil(),
    "ceil int": lambda m: m.col("i").ceil(),
    "sqrt": lambda m: m.col("f").sqrt(),
    "sqrt int": lambda m: m.col("n").sqrt(),
    "and": lambda m: m.col("p") & m.col("q"),
    "or": lambda m: m.col("p") | m.col("q"),
    "xor": lambda m: m.col("p") ^ m.col("q"),
    "not": lambda m: ~m.col("p"),
    "and literal": lambda m: m.col("p") & False,
    "and null": lambda m: m.col("p") & m.lit(None),
    "bits and": lambda m: m.col("i") & m.col("j"),
    "bits or": lambda m: m.col("i") | 3,
    "bits xor": lambda m: m.col("i") ^ m.col("j"),
    "bits not": lambda m: ~m.col("i"),
    "is_null": lambda m: m.col("f").is_null(),
    "is_not_null": lambda m: m.col("s").is_not_null(),
    "is_nan": lambda m: m.col("f").is_nan(),
    "is_nan of ints": lambda m: m.col("i").is_nan(),
    "fill_null": lambda m: m.col("f").fill_null(1.5),
    "fill_null int by float": lambda m: m.col("i8").fill_null(1.5),
    "fill_null by a column": lambda m: m.col("i").fill_null(m.col("j")),
    "fill_null string": lambda m: m.col("s").fill_null("none"),
    "is_in": lambda m: m.col("i").is_in([1, 7, None]),
    "is_in nothing": lambda m: m.col("i").is_in([]),
    "is_in floats": lambda m: m.col("f").is_in([NAN, 0.0]),
    "is_in strings": lambda m: m.col("s").is_in(["", "äÖß"]),
    "between": lambda m: m.col("i").is_between(-7, 3),
    "between left": lambda m: m.col("i").is_between(0, 7, closed="left"),
    "between right": lambda m: m.col("f").is_between(m.col("g"), 7.5, closed="right"),
    "between none": lambda m: m.col("f").is_between(-8, 7.5, closed="none"),
    "compare bool": lambda m: m.col("p") < m.col("q"),
    "compare bool and int": lambda m: m.col("p") == 1,
    "compare int and float": lambda m: m.col("i") < m.col("f"),
    "compare with a wider literal": lambda m: m.col("i8") < 300,
    "compare unsigned": lambda m: m.col("i") < m.col("u64"),
    "compare unsigned and negative": lambda m: m.col("u64") > -1,
    "compare times": lambda m: m.col("ts") > dt.datetime(2023, 1, 1),
    "compare ms times": lambda m: m.col("ms") <= dt.datetime(2024, 2, 29, 13, 45, 59, 123456),
    "compare time and date": lambda m: m.col("ts") > dt.date(2023, 1, 1),
    "compare dates": lambda m: m.col("d") == dt.date(2023, 1, 1),
    "compare null column": lambda m: m.col("nothing") == m.col("nothing"),
    "time plus duration": lambda m: m.col("ms") + dt.timedelta(hours=1),
    "time minus time": lambda m: m.col("ts") - dt.datetime(2023, 1, 1),
    "date minus date": lambda m: m.col("d") - m.col("d"),
    "when": lambda m: m.when(m.col("i") > 1).then(m.col("f")).otherwise(m.col("g")),
    "when names a column": lambda m: m.when(m.col("p")).then("s").otherwise(m.lit("no")),
    "when without otherwise": lambda m: m.when(m.col("p")).then(7),
    "when chained": lambda m: (
        m.when(m.col("i") > 5).then(1).when(m.col("i") > 0).then(m.lit(None)).otherwise(m.col("i"))
    ),
    "when strings or null": lambda m: m.when(m.col("p")).then("s").when(m.col("q")).then(m.lit(None)).otherwise("t"),
    "when a string": lambda m: m.when(m.col("p")).then("s"),
    "when both": lambda m: m.when(m.col("p"), m.col("n") > 2).then(m.lit("a")).otherwise(m.lit("b")),
    "when literals": lambda m: m.when(m.lit(True)).then(m.col("i8")).otherwise(0),
    "when structs": lambda m: m.when(m.col("p")).then(m.col("st")).otherwise(m.lit(None)),
    "when lists": lambda m: m.when(m.col("p")).then(m.col("l")).otherwise(m.lit(None)),
    "coalesce": lambda m: m.coalesce("i", "f", 0),
    "coalesce strings": lambda m: m.coalesce(m.col("s"), m.col("t"), m.lit("?")),
    "alias": lambda m: (m.col("i") * 2).alias("twice"),
    "struct": lambda m: m.struct(a="i", b=m.col("s").str.len_chars(), c=m.lit(1)),
    "struct field": lambda m: m.col("st").struct.field("b"),
    "list.get": lambda m: m.col("l").list.get(1, null_on_oob=True),
    "list.get from the end": lambda m: m.col("l").list.get(-2, null_on_oob=True),
    "list.len": lambda m: m.col("l").list.len(),
    "list.contains": lambda m: m.col("l").list.contains(2),
    "list.contains null": lambda m: m.col("l").list.contains(None),
    "list.contains a column": lambda m: m.col("l").list.contains(m.col("n")),
    "list.contains NaN": lambda m: m.col("lf").list.contains(NAN),
    "list.contains zero": lambda m: m.col("lf").list.contains(0.0),
    "to_lowercase": lambda m: m.col("s").str.to_lowercase(),
    "to_uppercase": lambda m: m.col("s").str.to_uppercase(),
    "strip_chars": lambda m: m.col("s").str.strip_chars(),
    "strip_chars given": lambda m: m.col("s").str.strip_chars(" Ax"),
    "split": lambda m: m.col("s").str.split(","),
    "part of a split": lambda m: m.col("s").str.split(",").list.get(1, null_on_oob=True),
    "part of a split from the end": lambda m: m.col("s").str.split(",").list.get(-2, null_on_oob=True),
    "first part of a split": lambda m: m.col("s").str.split(",").list.first(),
    "contains": lambda m: m.col("s").str.contains("b|y"),
    "contains literal": lambda m: m.col("s").str.contains(",y", literal=True),
    "starts_with": lambda m: m.col("s").str.starts_with("x"),
    "ends_with": lambda m: m.col("s").str.ends_with("ß"),
    "extract": lambda m: m.col("s").str.extract(r"(\w),(?:[(x]|(?P<second>\w))", 2),
    "extract all": lambda m: m.col("s").str.extract(r"\w,\w", 0),
    "len_chars": lambda m: m.col("s").str.len_chars(),
    "len_chars of null": lambda m: m.col("nothing").cast(pl.String if m is pl else "string").str.len_chars(),
    "slice": lambda m: m.col("s").str.slice(1, 2),
    "reverse": lambda m: m.col("s").str.reverse(),
    "to_titlecase": lambda m: (m.col("s") + "'S b_c ÉA 漢ab").str.to_titlecase(),
    "slice to the end": lambda m: m.col("s").str.slice(2),
    "slice from the end": lambda m: m.col("s").str.slice(-2),
    "slice within the end": lambda m: m.col("s").str.slice(-3, 2),
    "slice beyond the end": lambda m: m.col("s").str.slice(-3, 5),
    "slice nothing": lambda m: m.col("s").str.slice(1, 0),
    "replace": lambda m: m.col("s").str.replace("[a-z]", "<$0>"),
    "replace_all": lambda m: m.col("s").str.replace_all("([a-z])", "${1}\\$$"),
    "min_horizontal": lambda m: m.min_horizontal("f", "g", "i"),
    "max_horizontal": lambda m: m.max_horizontal("f", "g", "i"),
    "min_horizontal of times": lambda m: m.min_horizontal("ts", m.lit(dt.datetime(2000, 1, 1))),
    "max_horizontal of instants": lambda m: m.max_horizontal(
        m.col("ts").dt.replace_time_zone("UTC"), m.lit(dt.datetime(2000, 1, 1)).dt.replace_time_zone("UTC")
    ),
    "max_horizontal of texts": lambda m: m.max_horizontal("s", "t"),
    "min_horizontal of one": lambda m: m.min_horizontal("i"),
    "sum_horizontal": lambda m: m.sum_horizontal("i", "j", "n"),
    "sum_horizontal of floats": lambda m: m.sum_horizontal("f", "j"),
    "sum_horizontal with nulls": lambda m: m.sum_horizontal("i", "j", ignore_nulls=False),
    "all_horizontal": lambda m: m.all_horizontal("p", "q"),
    "any_horizontal": lambda m: m.any_horizontal("p", "q"),
    "concat_str": lambda m: m.concat_str("s", "i", m.col("p"), "f"),
    "concat_str separated": lambda m: m.concat_str("s", "i", "t", separator=", "),
    "concat_str without nulls": lambda m: m.concat_str("s", "i", "t", separator=", ", ignore_nulls=True),
    "replace values": lambda m: m.col("n").replace({1: 10, 3: None}),
    "replace values of a list": lambda m: m.col("s").replace(["x,y,,z", ""], ["list", "none"]),
    "replace several by one": lambda m: m.col("n").replace([1, 2, 3], 0),
    "replace NaN": lambda m: m.col("f").replace({NAN: 0.0}),
    "replace zero": lambda m: m.col("f").replace({0.0: 5.0}),
    "replace_strict of zero": lambda m: m.col("f").replace_strict({-0.0: "zero", NAN: "none"}, default=None),
    "is_in of a NaN that was computed": lambda m: (m.col("f") / m.col("g")).is_in([NAN]),
    "replace a NaN that was computed": lambda m: (m.col("f") / m.col("g")).replace({NAN: 5.0}),
    "replace_strict": lambda m: m.col("n").replace_strict({0: "zero", 1: "one"}, default="many"),
    "replace_strict by a column": lambda m: m.col("n").replace_strict({0: 7, 1: 8}, default=m.col("i")),
    "list.median": lambda m: m.col("l").list.median(),
    "strptime": lambda m: m.col("t").str.strptime(pl.Date if m is pl else "date32", "%Y-%m-%d", strict=False),
    "replace literal": lambda m: m.col("s").str.replace_all(",", "$0", literal=True),
}
for unit in ("1h", "15m", "7m", "3h", "1d", "2d", "1w", "3w", "1mo", "5mo", "1q", "1y", "3y", "10s"):
    for column in (
        "ts",
        "ms",
        "z",
        *([] if unit == "7m" else ["d"]),
    ):  # polars takes a date to the day before its 7 minutes
        SAME[f"truncate {column} {unit}"] = lambda m, c=column, u=unit: m.col(c).dt.truncate(u)
for part in ("year", "month", "day", "hour", "minute", "second", "weekday"):
    for column in ("ts", "ms", "z", *(["d"] if part in ("year", "month", "day", "weekday") else [])):
        SAME[f"{part} {column}"] = lambda m, c=column, p=part: getattr(m.col(c).dt, p)()
for length in ("1mo", "-1mo", "13mo", "-1q", "4y", "1d", "-2w", "90m", "-1h"):
    for column in ("ts", "ms", "z", *(["d"] if length[-1] not in "mh" else [])):
        SAME[f"offset {column} {length}"] = lambda m, c=column, by=length: m.col(c).dt.offset_by(by)
for total in ("days", "hours", "minutes", "seconds", "milliseconds", "microseconds"):
    SAME[f"total_{total}"] = lambda m, t=total: getattr((m.col("ts") - dt.datetime(2000, 1, 1)).dt, f"total_{t}")()
SAME["convert_time_zone"] = lambda m: m.col("z").dt.convert_time_zone("Asia/Tokyo")
SAME["convert_time_zone of clocks"] = lambda m: m.col("ts").dt.convert_time_zone("Asia/Tokyo")
SAME["replace_time_zone"] = lambda m: m.col("ts").dt.replace_time_zone("Europe/Berlin")
SAME["replace_time_zone by another"] = lambda m: m.col("z").dt.replace_time_zone("Asia/Tokyo")
SAME["replace_time_zone by none"] = lambda m: m.col("z").dt.replace_time_zone(None)
for unit in ("ns", "us", "ms", "s", "d"):
    for column in ("ts", "ms", "z", "d"):
        SAME[f"epoch {column} {unit}"] = lambda m, c=column, u=unit: m.col(c).dt.epoch(u)
FORMAT = "%Y-%m-%d %H:%M:%S|%f|%3f|%.6f|%%f|%j|%A %a %b %B %p %I %y %e|%F %T|%u|%w|%V|%G|%D|%R"
FIXED = "%Y-%m-%d %H:%M:%S|%f|%3f|%.6f|%%f|ü %F %T|%R%%"  # of codes of a fixed width, for which there is a kernel
for column in ("ts", "ms", "z"):
    SAME[f"strftime {column}"] = lambda m, c=column: m.col(c).dt.strftime(FORMAT)
    SAME[f"strftime fixed {column}"] = lambda m, c=column: m.col(c).dt.strftime(FIXED)
SAME["strftime d"] = lambda m: m.col("d").dt.strftime("%Y/%m/%d")
OPERATORS = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
for sign, compare in OPERATORS.items():
    SAME[f"{sign} floats"] = lambda m, f=compare: f(m.col("f"), m.col("g"))
    SAME[f"{sign} a float"] = lambda m, f=compare: f(m.col("f"), 7.5)
    SAME[f"{sign} NaN"] = lambda m, f=compare: f(m.col("f"), NAN)
    SAME[f"a float {sign}"] = lambda m, f=compare: f(m.lit(7.5), m.col("f"))
    SAME[f"{sign} ints"] = lambda m, f=compare: f(m.col("i"), m.col("j"))
    SAME[f"{sign} strings"] = lambda m, f=compare: f(m.col("s"), m.col("t"))
    SAME[f"{sign} text"] = lambda m, f=compare: f(m.col("s"), "x")


@pytest.mark.one_in(18, "a hundredth of a second of a core each")
@pytest.mark.parametrize("name", SAME)
def test_it_gives_what_polars_gives(name: str) -> None:
    case = SAME[name]
    for batch in (BATCH, BATCH.slice(3, 4), BATCH.slice(2, 1), BATCH.slice(0, 0)):
        assert ours(case, batch) == by_polars(case, batch)


@pytest.mark.parametrize("name", ["f", "f4", "n"])
@pytest.mark.parametrize("base", [2, 3, 10])
def test_logarithms_are_those_of_polars_but_for_the_last_digit(name: str, base: int) -> None:
    def case(m: Any) -> Any:
        return m.col(name).log(base)

    made, expected = ours(case, BATCH), by_polars(case, BATCH)
    assert [each for each in made if not isinstance(each, float)] == [e for e in expected if not isinstance(e, float)]
    numbers = [each for each in made if isinstance(each, float)]
    assert numbers == pytest.approx([each for each in expected if isinstance(each, float)], rel=1e-6)


@pytest.mark.parametrize("between", ["nearest", "lower", "higher", "midpoint", "linear"])
@pytest.mark.parametrize("fraction", [0, 0.1, 0.375, 0.5, 0.99, 1])
def test_a_quantile_of_a_list_is_that_of_polars(between: Any, fraction: float) -> None:
    lists = [[3.0, 1.0, None, 2.0], [], None, [5.0], [7.0, -1.0], [1.0, 1.0, 2.0, 9.0, 4.0], [None]]
    column = pa.array(lists, pa.list_(pa.float64()))
    made = evaluate(col("l").list.quantile(fraction, between), pa.record_batch({"l": column}).slice(0))
    expected = [
        None if each is None else pl.Series(each, dtype=pl.Float64).quantile(fraction, between) for each in lists
    ]
    assert made.to_pylist() == pytest.approx(expected, nan_ok=True)
    sliced = evaluate(col("l").list.quantile(fraction, between), pa.record_batch({"l": column}).slice(3, 2))
    assert sliced.to_pylist() == pytest.approx(expected[3:5])


@pytest.mark.parametrize("nulls_last", [False, True])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("lists", [[[3.0, None, NAN, 1.0, INF], [], None, [2.0]], [["b", None, "", "a"], ["z"], None]])
def test_a_sorted_list_is_that_of_polars(lists: list[Any], descending: bool, nulls_last: bool) -> None:
    batch = pa.record_batch({"l": pa.array(lists)}).slice(0)
    expected = pl.Series(lists).list.sort(descending=descending, nulls_last=nulls_last).to_list()
    for made in (
        evaluate(col("l").list.sort(descending, nulls_last=nulls_last), batch),
        evaluate(col("l").list.sort(descending, nulls_last=nulls_last), batch.slice(1)),
    ):
        assert repr(made.to_pylist()) == repr(expected[len(expected) - len(made) :])


@pytest.mark.parametrize("nulls_last", [False, True])
@pytest.mark.parametrize("descending", [False, True])
def test_a_field_of_structs_in_a_list_is_sorted_by_others_as_in_polars(descending: bool, nulls_last: bool) -> None:
    rows = [("a", 2, NAN), ("b", 1, 1.0), ("c", None, 0.5), ("d", 1, None), ("e", 2, INF), ("f", 1, 1.0)]
    structs = [dict(zip(("t", "x", "y"), row, strict=True)) for row in rows]
    lists = [structs, [], None, structs[:2], [None, structs[4]]]
    batch = pa.record_batch({"l": pa.array(lists)})
    made = col("l").list.field("t", by=["x", "y"], descending=[descending, False], nulls_last=[nulls_last, True])
    frame = pl.DataFrame(rows, schema=["t", "x", "y"], orient="row")
    expected = frame.sort(
        ["x", "y"], descending=[descending, False], nulls_last=[nulls_last, True], maintain_order=True
    )
    found = evaluate(made, batch).to_pylist()
    assert found[:3] == [expected["t"].to_list(), [], None]
    assert evaluate(made, batch.slice(2)).to_pylist() == found[2:]
    assert evaluate(col("l").list.field("x"), batch).to_pylist()[3:] == [[2, 1], [None, 2]]


def test_a_field_of_a_list_that_is_not_there_is_named() -> None:
    batch = pa.record_batch({"l": pa.array([[{"t": "a", "x": [1]}]]), "n": pa.array([[1]])})
    for made, message in (
        (col("n").list.field("t"), "not a list of structs"),
        (col("l").list.field("u"), "the structs have no field 'u'"),
        (col("l").list.field("t", by=["x"]), "'x' is list<item: int64>, which has no order"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(made, batch)
    with pytest.raises(UserError, match="have a value for each field of by="):
        col("l").list.field("t", by=["x"], descending=[True, False])


@pytest.mark.parametrize(
    ("type", "lists", "sums"),
    [
        (pa.int32(), [[2**31 - 1, 1, None], [], None, [None], [-5]], [2**31, None, None, None, -5]),
        (pa.int64(), [[2**63 - 1, -1], [-(2**63), 0]], [2**63 - 2, -(2**63)]),
        (pa.uint64(), [[2**63, 5]], [2**63 + 5]),
        (pa.float64(), [[0.5, None, 1.5], [NAN, 1.0]], [2.0, NAN]),
        (pa.decimal128(4, 2), [[Decimal("99.99"), Decimal("0.01")]], [Decimal("100.00")]),
    ],
)
def test_a_sum_of_a_list_is_exact(type: pa.DataType, lists: list[Any], sums: list[Any]) -> None:
    made = evaluate(col("l").list.sum(), pa.record_batch({"l": pa.array(lists, pa.list_(type))}))
    assert repr(made.to_pylist()) == repr(sums)


def test_a_sum_of_a_list_that_has_too_many_digits_is_an_error() -> None:
    for type, lists in ((pa.int64(), [[1], [2**63 - 1, 1]]), (pa.uint64(), [[2**63, 2**63]])):
        with pytest.raises(DataError, match="the sum does not fit"):
            evaluate(col("l").list.sum(), pa.record_batch({"l": pa.array(lists, pa.list_(type))}))


def test_a_cut_has_the_labels_of_polars() -> None:
    values = pa.record_batch({"f": pa.array([-5.0, 0, 0.5, 1, 1.5, None, NAN, 3, INF, -INF])})
    assert evaluate(col("f").cut([0, 1, 1.5]), values).to_pylist() == [
        *["(-inf, 0]", "(-inf, 0]", "(0, 1]", "(0, 1]", "(1, 1.5]", None, None],
        *["(1.5, inf]", "(1.5, inf]", "(-inf, 0]"],
    ]
    assert evaluate(col("f").cut([0, 1], ["a", "b", "c"], left_closed=True), values).to_pylist() == [
        *["a", "b", "b", "c", "c", None, None, "c", "c", "a"],
    ]
    whole = pa.record_batch({"i": pa.array([1, None, 100], pa.uint8())})
    assert evaluate(col("i").cut([1, 1e20]), whole).to_pylist() == [
        "(-inf, 1]",
        None,
        "(1, 100000000000000000000]",
    ]


def test_every_name_of_the_list_is_there() -> None:
    listed = {
        Expr: "is_null is_not_null fill_null is_nan is_in between abs round floor ceil sqrt cast alias",
        sabot_expr.StringExpr: "lower upper strip split contains startswith endswith regexp_extract length slice "
        "to_lowercase to_uppercase strip_chars starts_with ends_with extract len_chars replace replace_all",
        sabot_expr.DateExpr: "date_trunc hour day_of_week strftime truncate weekday epoch year month day minute second",
        sabot_expr.StructExpr: "field",
        sabot_expr.ListExpr: "get len contains",
    }
    for kind, names in listed.items():
        assert [name for name in names.split() if not callable(getattr(kind, name, None))] == []
    pairs = {
        "lower": "to_lowercase",
        "upper": "to_uppercase",
        "strip": "strip_chars",
        "startswith": "starts_with",
        "endswith": "ends_with",
        "regexp_extract": "extract",
        "length": "len_chars",
    }
    arguments = {"startswith": ["x"], "endswith": ["x"], "regexp_extract": ["(x)"]}
    for name, other in pairs.items():
        given = arguments.get(name, [])
        text = col("s").str
        assert getattr(text, name)(*given).same(getattr(text, other)(*given))
    assert col("t").dt.date_trunc("hour").same(col("t").dt.truncate("1h"))
    assert col("t").dt.day_of_week().same(col("t").dt.weekday())
    assert col("a").between(1, 2).same(col("a").is_between(1, 2))
    assert col("a")["b"].same(col("a").struct.field("b"))


# -- types ----------------------------------------------------------------------------------------------------------------

NUMBERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"]
TO_POLARS = {
    name: getattr(
        pl, name.replace("uint", "UInt").replace("int", "Int").replace("float", "Float").replace("UInt", "UInt")
    )
    for name in NUMBERS
}


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize("sign", ["+", "/", "//", "%", "**"])
def test_numbers_meet_in_the_types_of_polars(sign: str) -> None:
    apply = {
        "+": lambda a, b: a + b,
        "/": lambda a, b: a / b,
        "//": lambda a, b: a // b,
        "%": lambda a, b: a % b,
        "**": lambda a, b: a**b,
    }[sign]
    wrong = []
    for a in NUMBERS:
        for b in [*NUMBERS, 1, 300, 1.5, -1]:
            if sign == "**" and b == -1:
                continue
            frame = pl.DataFrame(
                {"a": pl.Series([1], dtype=TO_POLARS[a]), "b": pl.Series([1], dtype=TO_POLARS.get(b, pl.Int8))}
            )
            expected = frame.select(apply(pl.col("a"), pl.col("b") if isinstance(b, str) else b)).dtypes[0]
            schema = pa.schema({"a": as_type(a), "b": as_type(b if isinstance(b, str) else "int8")})
            expr = apply(col("a"), col("b") if isinstance(b, str) else b)
            if expected == pl.Int128 or (a == "uint64" and b == -1):
                if sign != "**" and isinstance(b, str):
                    with pytest.raises(UserError, match="uint64"):
                        compile_expr(expr, schema)
                continue
            made = compile_expr(expr, schema).type
            if isinstance(b, int) and sign != "/":  # polars keeps the 8 bits of a column, here a literal has 32
                narrow = {"int8", "uint8", "int16", "uint16"}
                expected = pl.Int32 if a in narrow else pl.Int64 if a == "uint32" else expected
            if {"float": "Float32", "double": "Float64"}.get(str(made), str(made)).lower() != str(expected).lower():
                wrong.append((a, sign, b, str(made), str(expected)))
    assert wrong == []


@pytest.mark.parametrize(
    ("type", "result"),
    [
        (pa.int8(), pa.int32()),
        (pa.uint8(), pa.int32()),
        (pa.int16(), pa.int32()),
        (pa.uint16(), pa.int32()),
        (pa.int32(), pa.int32()),
        (pa.uint32(), pa.int64()),
        (pa.int64(), pa.int64()),
        (pa.uint64(), pa.uint64()),
    ],
    ids=str,
)
def test_a_narrow_column_and_a_literal_are_computed_with_32_bits(type: pa.DataType, result: pa.DataType) -> None:
    batch = pa.record_batch({"m": pa.array([64, 3, None], type)})
    for expr, expected in [
        (col("m") * 1000, [64_000, 3000, None]),
        (1000 * col("m"), [64_000, 3000, None]),
        (col("m") * 10 * 100, [64_000, 3000, None]),
        (col("m") + 120, [184, 123, None]),
        (col("m") - 3, [61, 0, None]),
        (70 - col("m"), [6, 67, None]),
        (col("m") // 10, [6, 0, None]),
        (col("m") % 10, [4, 3, None]),
        (col("m") ** 3, [262_144, 27, None]),
        (col("m") + lit(120), [184, 123, None]),
        (col("m") + np.int8(120), [184, 123, None]),
    ]:
        made = compile_expr(expr, batch.schema)(batch)
        assert (made.type, made.to_pylist()) == (result, expected), expr
    for expr, expected in [
        (col("m") * 1000 > 60_000, [True, False, None]),
        (when(col("m") * 1000 > 60_000).then(1).otherwise(0), [1, 0, 0]),
        ((col("m") * 1000).fill_null(0), [64_000, 3000, 0]),
        ((col("m") * 1000).is_in([64_000]), [True, False, None]),
        (col("m").is_in([3, 2**70 // 2**10, -(2**62)]), [False, True, None]),
        (col("m").is_in([2**60, -5, 64]), [True, False, None]),
    ]:
        assert compile_expr(expr, batch.schema)(batch).to_pylist() == expected, expr
    if type != pa.uint64():  # 64 bits without a sign have no wider type
        assert compile_expr(col("m") - 5, batch.schema)(batch).to_pylist() == [59, -2, None]


@pytest.mark.parametrize("type", [pa.int8(), pa.int16(), pa.uint8(), pa.uint16(), pa.uint32()], ids=str)
def test_values_that_a_literal_only_stands_beside_keep_the_type_of_their_column(type: pa.DataType) -> None:
    """Nothing is computed in these, so that nothing can leave the type."""
    batch = pa.record_batch({"m": pa.array([64, 3, None], type)})
    for expr in (
        col("m").fill_null(7),
        when(col("m") > 5).then(col("m")).otherwise(7),
        col("m").clip(0, 9),
        max_horizontal("m", 7),
        col("m") & 7,
        col("m") + col("m"),
        col("m") * lit(2, type),
    ):
        assert compile_expr(expr, batch.schema).type == type, expr
    assert compile_expr(col("m") / 2, batch.schema).type == pa.float64()
    for expr in (col("m").fill_null(2**40), when(col("m") > 5).then(col("m")).otherwise(2**40)):
        assert compile_expr(expr, batch.schema).type == (pa.uint64() if "u" in str(type) else pa.int64())


@pytest.mark.parametrize(
    ("expr", "words"),
    [
        (col("s") + col("i"), r'col\("s"\) \+ col\("i"\) cannot be computed: \+ of string and int64'),
        (col("s") == 1, r'col\("s"\) == 1 cannot be'),
        (col("ts") > "2023-01-01", r'of timestamp.* and string.*lit\("2023-01-01"\).cast\("timestamp\[us\]"\)'),
        (col("s") > col("d"), r'cast one of them: .cast\("date32'),
        (col("s").clip(1, 2), "clip of string"),
        (col("s").str.to_datetime("%Y-%q-%d"), "%q is not a code"),
        (col("s").str.to_datetime("%Y-%m"), "no year, month and day"),
        (col("s").str.to_datetime("%Y-%m-%d %d"), "has a part of the time twice"),
        (col("s").str.to_datetime("%F %I:%M"), "an hour of half a day is %I with %p"),
        (col("s").str.to_datetime("%F %H:%M %p"), "an hour of half a day is %I with %p"),
        (col("i").str.to_date(), "str.to_date of int64"),
        (col("i").is_in(["x"]), "is_in.*the column is int64"),
        (col("i").is_in([1.5]), "the column is int64"),
        (col("ms").is_in([TIMES[0]]), "59.123456 has digits that timestamp.ms. has not"),
        (col("d").is_in([dt.datetime(2024, 1, 1, 12)]), "12:00:00 has digits that date32"),
        (col("i").replace({1.5: 2}), "a value does not fit int64: not all values are integers"),
        (col("i").replace({1: 2.5}), "a value does not fit int64: not all values are integers"),
        (col("ms").replace({TIMES[3]: TIMES[0]}), "a value does not fit timestamp"),
        (col("i").str.lower(), "str.lower of int64"),
        (col("s").dt.hour(), "dt.hour of string"),
        (col("d").dt.hour(), "dt.hour of date32"),
        (col("s").is_nan(), "is_nan of string"),
        (-col("u8"), "no sign"),
        (-col("p"), "neg of bool"),
        (col("i") & col("p"), "& of int64 and bool"),
        (when(col("i")).then(1).otherwise(2), "is int64, not true or false"),
        (col("st")["c"], "no field 'c'.*a, b"),
        (col("i")["c"], "is int64, not a struct"),
        (col("s").list.len(), "not a list"),
        (col("l") == col("l"), "list"),
        (col("l").cast("int64"), "cannot be cast"),
        (col("s").str.extract("x"), "the pattern has 0 groups"),
        (col("s").str.contains("("), r"contains\("),
        (col("s").str.replace("x", "$name"), "is no group"),
        (col("i") ** -1, "is not an integer"),
        (col("nope"), "there is no column 'nope' .*the columns are i, j, n"),
        (col("nothin"), "did you mean 'nothing'"),
        (coalesce("i", "s"), "coalesce of int64 and string"),
    ],
)
def test_what_does_not_fit_is_a_user_error_at_build_time(expr: Expr, words: str) -> None:
    with pytest.raises(UserError, match=words):
        compile_expr(expr, BATCH.schema)


def test_a_joined_text_of_bytes_can_fail_so_rows_that_a_filter_took_are_not_in_its_batch() -> None:
    batch = pa.record_batch({"b": pa.array([b"a", b"\xff"])})
    made = compile_expr(sabot_expr.concat_str("b", lit("-")), batch.schema)
    assert made.can_fail
    with pytest.raises(DataError, match="is no string"):
        made(batch)


FAR = {
    "s": pa.array([dt.datetime(2500, 1, 1), dt.datetime(1500, 1, 1), dt.datetime(2024, 1, 1)], pa.timestamp("s")),
    "d": pa.array([dt.date(9999, 12, 31), dt.date(1, 1, 1), dt.date(2024, 1, 1)]),
    "ns": pa.array([dt.datetime(2024, 1, 1)] * 3, pa.timestamp("ns")),
    "long": pa.array([10**11, -(10**11), 0], pa.duration("s")),
    "short": pa.array([0, 0, 0], pa.duration("ns")),
}


@pytest.mark.parametrize(
    ("expr", "want"),
    [
        (col("s") > col("ns"), [True, False, False]),
        (col("s") == col("ns"), [False, False, True]),
        (col("d") <= col("ns"), [False, True, True]),
        (col("long") < col("short"), [False, True, False]),
        (col("ns") < dt.datetime(9999, 12, 31), [True] * 3),
        (col("ns").between(dt.date(1, 1, 1), dt.date(9999, 12, 31)), [True] * 3),
        (col("ns") != dt.datetime(2500, 1, 1), [True] * 3),
        (col("short") > -dt.timedelta(days=200_000), [True] * 3),
    ],
)
def test_times_that_are_too_far_for_the_finer_unit_are_compared(expr: Expr, want: list[bool]) -> None:
    """They wrapped around: no ns was before the end of 9999."""
    assert evaluate(expr, pa.record_batch(FAR)).to_pylist() == want


@pytest.mark.parametrize("expr", [coalesce("s", "ns"), col("s") - col("ns"), sabot_expr.min_horizontal("s", "ns")])
def test_times_that_are_too_far_for_the_unit_of_the_result_are_refused(expr: Expr) -> None:
    batch = pa.record_batch(FAR)
    with pytest.raises(DataError, match=r"datetime\(2500, 1, 1, 0, 0\) does not fit timestamp\[ns\]"):
        evaluate(expr, batch)
    assert compile_expr(expr, batch.schema).can_fail
    with pytest.raises(UserError, match=r"9999.* does not fit timestamp\[ns\]"):
        evaluate(col("ns").fill_null(dt.datetime(9999, 12, 31)), batch)


@pytest.mark.parametrize(
    "expr",
    [
        col("ns") + dt.timedelta(days=100_000),
        col("ns") - dt.timedelta(days=-100_000),
        col("ns") - lit(dt.datetime(1700, 1, 1)).cast("timestamp[ns]"),
        col("ns").dt.offset_by("300y"),
        col("ns").dt.offset_by("-7000mo"),
        col("ns").dt.offset_by("100000d"),
        col("ns").dt.convert_time_zone("Europe/Berlin").dt.offset_by("90000d"),
        col("ns").dt.offset_by("2560000h"),
        col("long") * 10**8,
    ],
    ids=Expr.text,
)
def test_a_time_that_does_not_fit_is_no_time_of_another_century(expr: Expr) -> None:
    batch = pa.record_batch(FAR)
    with pytest.raises(DataError, match=r"cannot be computed for .*(overflow|does not fit 64 bits)"):
        evaluate(expr, batch)
    assert evaluate(expr, pa.record_batch({name: pa.nulls(2, each.type) for name, each in FAR.items()})).null_count == 2


def test_the_column_of_event_time_is_not_offered() -> None:
    schema = pa.schema([("a", pa.int64()), (TIME_COLUMN, pa.int64())])
    with pytest.raises(UserError) as caught:
        compile_expr(col("b"), schema)
    assert TIME_COLUMN not in str(caught.value)
    with pytest.raises(UserError, match="2 columns 'a'"):
        compile_expr(col("a"), pa.schema([("a", pa.int64()), ("a", pa.int64())]))


def test_a_predicate_is_true_or_false_and_null_does_not_pass() -> None:
    batch = pa.record_batch({"a": [1, None, 3]})
    for predicate, passing in [(col("a") > 1, [2]), (lit(None), []), (col("a") < 9, [0, 2])]:
        assert select_rows(compile_predicate(predicate, batch.schema)(batch)).to_pylist() == passing
    with pytest.raises(UserError, match="int64, not true or false"):
        compile_predicate(col("a") + 1, batch.schema)


# -- casts ----------------------------------------------------------------------------------------------------------------

TEXTS = [
    "1",
    " 2",
    "x",
    "1.5",
    "+3",
    "-4",
    "",
    None,
    "1_000",
    "0x10",
    "1e3",
    "99999999999999999999",
    "nan",
    "inf",
    "NaN",
    ".5",
    "5.",
]
CASTS: list[tuple[pa.Array, str, Any]] = [
    (pa.array(TEXTS), "int64", pl.Int64),
    (pa.array(TEXTS), "int8", pl.Int8),
    (pa.array(["18446744073709551615", "-1", "+7", "0"]), "uint64", pl.UInt64),
    (pa.array(TEXTS), "float64", pl.Float64),
    (pa.array([1.9, -1.9, None, NAN, INF, 1e30, -1e30, 2.0**63, -(2.0**63), 255.9, -0.5]), "int64", pl.Int64),
    (pa.array([1.9, -1.9, None, NAN, INF, 255.9, 256.0, -0.5]), "uint8", pl.UInt8),
    (pa.array([1.5, -(2.0**63), NAN], pa.float32()), "int64", pl.Int64),
    (pa.array([300, 127, -128, None, -129]), "int8", pl.Int8),
    (pa.array([-1, 0, None, GREATEST]), "uint64", pl.UInt64),
    (pa.array([2**64 - 1, 5], pa.uint64()), "int64", pl.Int64),
    (pa.array([0, 1, -2, None]), "bool", pl.Boolean),
    (pa.array([0.0, 1.5, NAN, None]), "bool", pl.Boolean),
    (pa.array([True, None, False]), "int8", pl.Int8),
    (pa.array([True, None, False]), "float64", pl.Float64),
    (pa.array([True, None, False]), "string", pl.String),
    (
        pa.array([1.0, 1.5, NAN, INF, 1e20, 1e-7, 0.1, -0.0, 1e16, 123456789.125, None, -3.0, 12345678.0]),
        "string",
        pl.String,
    ),
    (pa.array([7, None, LEAST]), "string", pl.String),
    (pa.array([2**53 + 1, None]), "float32", pl.Float32),
    (pa.array([1e300, 0.1, NAN, None]), "float32", pl.Float32),
    (pa.array([0, 1000, None, -1]), "timestamp[ms]", pl.Datetime("ms")),
    (FRAME["ts"], "int64", pl.Int64),
    (FRAME["ts"], "timestamp[ms]", pl.Datetime("ms")),
    (FRAME["ts"], "timestamp[ns]", pl.Datetime("ns")),
    (FRAME["ts"], "date32", pl.Date),
    (FRAME["d"], "timestamp[us]", pl.Datetime("us")),
    (FRAME["d"], "int32", pl.Int32),
    (FRAME["d"], "string", pl.String),
    (FRAME["ts"], "string", pl.String),
    (pa.array([[1, 2], None]), "list", pl.List(pl.Float64)),
    (pa.nulls(2), "int64", pl.Int64),
]


@pytest.mark.parametrize(
    ("values", "name", "theirs"), CASTS, ids=lambda v: str(v.type) if isinstance(v, pa.Array) else str(v)
)
def test_a_cast_that_is_not_strict_gives_null_where_polars_does(values: pa.Array, name: str, theirs: Any) -> None:
    batch = pa.record_batch({"a": values})
    target = pa.list_(pa.float64()) if name == "list" else as_type(name)
    made = evaluate(col("a").cast(target, strict=False), batch)
    frame = pl.DataFrame(pl.from_arrow(batch))
    expected = frame.select(pl.col("a").cast(theirs, strict=False))["a"].to_list()
    assert made.type == target
    assert plain(made.to_pylist()) == plain(expected)
    strict = compile_expr(col("a").cast(target), batch.schema)
    if made.null_count == values.null_count:
        assert plain(strict(batch).to_pylist()) == plain(expected)
    else:
        row = next(i for i in range(len(values)) if values[i].is_valid and not made[i].is_valid)
        assert strict.can_fail
        with pytest.raises(DataError) as caught:
            strict(batch)
        assert f"column 'a': {values[row].as_py()!r} is no {target}" in str(caught.value)
        assert "strict=False" in str(caught.value)


def test_texts_become_times_whether_or_not_they_have_a_zone() -> None:
    texts = [
        "2024-01-01T10:00:00",
        "2024-01-01 10:00:00.5",
        "2024-01-01T10:00:00Z",
        "2024-01-01T12:00:00+02:00",
        "2024-01-01 10:00:00.1239999",
        "2024-01-01T10:00:00.123456789Z",
        "2024-01-01",
        "no",
        "2024-01-01T10:00:00.1239999?",
        None,
    ]
    at_ten = dt.datetime(2024, 1, 1, 10)
    half, finer = at_ten.replace(microsecond=500000), at_ten.replace(microsecond=123000)
    expected = [at_ten, half, at_ten, at_ten, finer, finer, dt.datetime(2024, 1, 1), None, None, None]
    batch = pa.record_batch({"a": texts})
    assert evaluate(col("a").cast("timestamp[ms]", strict=False), batch).to_pylist() == expected
    zoned = evaluate(col("a").cast("timestamp[ms, UTC]", strict=False), batch)
    assert zoned.type == pa.timestamp("ms", "UTC")
    assert zoned.cast(pa.timestamp("ms")).to_pylist() == expected
    with pytest.raises(DataError, match="'no' is no timestamp"):
        evaluate(col("a").cast("timestamp[ms]"), batch)


@pytest.mark.parametrize(
    ("format", "values"),
    [
        ("%Y-%m-%d %H:%M:%S", ["2024-02-29 23:59:59", "2023-02-29 00:00:00", "2024-02-29", "x", None, "2024-02-29 24:00:00"]),
        ("%d.%m.%Y", ["29.02.2024", "31.04.2024", "01.12.1969", "1.12.1969 ", ""]),
        ("%d %b %Y %R", ["29 Feb 2024 13:45", "01 Foo 2024 13:45", "31 dec 1969 23:59"]),
        ("%F %T%.f", ["2024-02-29 13:45:59.123456", "2024-02-29 13:45:59.5", "2024-02-29 13:45:59"]),
        ("%B %d, %Y (%%)", ["February 29, 2024 (%)", "Feb 29, 2024 (%)"]),
        ("%m/%d/%Y %I:%M %p", ["02/29/2024 12:59 AM", "02/29/2024 12:00 PM", "02/29/2024 01:30 pm", "02/29/2024 13:00 PM"]),
        ("%FT%T%z", ["2024-02-29T13:45:59+0200", "2024-02-29T13:45:59-11:30", "2024-02-29T13:45:59"]),
    ],
)  # fmt: skip
def test_texts_in_a_format_become_times_as_in_polars(format: str, values: list[str | None]) -> None:
    batch = pa.record_batch({"s": pa.array(values, pa.string())})
    dated = {"%d.%m.%Y", "%B %d, %Y (%%)"}  # polars reads dates as times without a clock only as dates
    ask = pl.col("s").str.to_date if format in dated else pl.col("s").str.to_datetime
    expected = plain(pl.DataFrame(pl.from_arrow(batch)).select(ask(format, strict=False))["s"].to_list())
    text = col("s").str
    made = (text.to_date if format in dated else text.to_datetime)(format, strict=False)
    assert plain(evaluate(made, batch).to_pylist()) == expected
    days = [each and (each.date() if isinstance(each, dt.datetime) else each) for each in expected]
    assert evaluate(text.to_date(format, strict=False), batch).to_pylist() == days
    with pytest.raises(DataError, match="is no timestamp"):
        evaluate(text.to_datetime(format), pa.record_batch({"s": ["never"]}))


def test_texts_become_times_without_a_format_as_by_a_cast() -> None:
    batch = pa.record_batch({"s": ["2024-02-29T13:45:59.5", "2024-02-29 13:45:59+02:00", "n/a", None]})
    made = evaluate(col("s").str.to_datetime(strict=False), batch)
    assert made.to_pylist() == [
        dt.datetime(2024, 2, 29, 13, 45, 59, 500_000),
        dt.datetime(2024, 2, 29, 11, 45, 59),
        None,
        None,
    ]
    with pytest.raises(DataError, match="'n/a' is no timestamp"):
        evaluate(col("s").str.to_datetime(), batch)
    assert evaluate(col("s").str.to_date(), pa.record_batch({"s": ["2024-02-29"]})).to_pylist() == [
        dt.date(2024, 2, 29)
    ]


def test_types_have_their_names_of_sql() -> None:
    for name, type in {
        "BIGINT": pa.int64(),
        "integer": pa.int64(),
        "smallint": pa.int16(),
        "varchar": pa.string(),
        "VARCHAR(20)": pa.string(),
        "text": pa.string(),
        "double precision": pa.float64(),
        "decimal(23,3)": pa.decimal128(23, 3),
        "NUMERIC(10)": pa.decimal128(10, 0),
        "decimal(50, 2)": pa.decimal256(50, 2),
        "timestamp": pa.timestamp("us"),
        "timestamptz": pa.timestamp("us", "UTC"),
        "Boolean": pa.bool_(),
        "date": pa.date32(),
    }.items():
        assert as_type(name) == type, name


def test_the_date_of_a_time_is_that_of_its_zone() -> None:
    """Polars' cast takes the date in UTC, its `dt.date` the zone's; beside year, month and day, which are the zone's, this one fits."""
    made = evaluate(col("z").cast("date32"), BATCH).to_pylist()
    assert made == pl.DataFrame(pl.from_arrow(BATCH)).select(pl.col("z").dt.date())["z"].to_list()


def test_a_cast_that_cannot_fail_says_so() -> None:
    schema = BATCH.schema
    assert not compile_expr(col("i8").cast("int64"), schema).can_fail
    assert not compile_expr(col("i").cast("float64") > 1, schema).can_fail
    assert not compile_expr(col("s").cast("int64", strict=False), schema).can_fail
    assert compile_expr(col("s").cast("int64") > 1, schema).can_fail


# -- times as int64 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["1h", "15m", "1d", "1w", "1mo", "1y"])
def test_int64_columns_are_ms_since_1970(unit: str) -> None:
    as_ints = pa.record_batch({"t": BATCH.column("ms").cast(pa.int64())})
    as_times = pa.record_batch({"t": BATCH.column("ms")})
    trunc = col("t").dt.date_trunc(unit)
    assert compile_expr(trunc, as_ints.schema).type == pa.int64()
    assert evaluate(trunc, as_ints).to_pylist() == evaluate(trunc, as_times).cast(pa.int64()).to_pylist()
    for expr in (
        col("t").dt.hour(),
        col("t").dt.day_of_week(),
        col("t").dt.epoch("s"),
        col("t").dt.strftime("%F %T.%3f"),
    ):
        assert evaluate(expr, as_ints).to_pylist() == evaluate(expr, as_times).to_pylist()


def test_words_name_lengths_of_time() -> None:
    for word, text in {
        "hour": "1h",
        "minutes": "1m",
        "day": "1d",
        "week": "1w",
        "month": "1mo",
        "quarter": "1q",
        "year": "1y",
    }.items():
        assert col("t").dt.date_trunc(word).same(col("t").dt.date_trunc(text))
    assert col("t").dt.date_trunc(dt.timedelta(minutes=5)).columns == {"t"}
    with pytest.raises(UserError, match="not a length of time"):
        col("t").dt.date_trunc("fortnight")


# -- generated data -------------------------------------------------------------------------------------------------------

ints = st.one_of(st.none(), st.integers(-5, 5), st.sampled_from([LEAST, LEAST + 1, GREATEST, 2**53 + 1]))
floats = st.one_of(st.none(), st.sampled_from([NAN, INF, -INF, 0.0, -0.0]), st.integers(-40, 40).map(lambda n: n / 4))
flags = st.one_of(st.none(), st.booleans())
texts = st.one_of(st.none(), st.text("aA,ß𝄞 1", max_size=6))
stamps = st.one_of(st.none(), st.integers(-(10**13), 10**13))
rows = st.lists(st.tuples(ints, ints, floats, floats, flags, flags, texts, texts, stamps), max_size=12)
GENERATED = [
    "add", "subtract", "multiply", "divide", "divide floats", "floor-divide", "remainder", "floor-divide by -2", "remainder by -3",
    "clip floats", "sign of floats", "fill_nan", "count_matches", "pad_start", "between columns of the rows",
    "add strings", "and", "or", "xor", "abs", "floor", "ceil", "is_in floats", "between right", "compare int and float", "when",
    "when chained", "when strings or null",
    "when a string", "coalesce", "to_lowercase", "to_uppercase", "strip_chars", "split", "contains", "len_chars", "slice",
    "slice within the end", "replace_all", "truncate ms 7m", "truncate ms 1w", "truncate ms 5mo", "weekday ms", "strftime ms",
    "strftime fixed ms",
    "== floats", "< floats", ">= floats", "!= a float", "> a float", "<= NaN", "a float <", "== ints", "< strings", "bits xor",
]  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(rows, st.integers(0, 3))
def test_generated_columns_give_what_polars_gives(data: list[tuple[Any, ...]], offset: int) -> None:
    types = [
        pa.int64(),
        pa.int64(),
        pa.float64(),
        pa.float64(),
        pa.bool_(),
        pa.bool_(),
        pa.string(),
        pa.string(),
        pa.timestamp("ms"),
    ]
    names = ["i", "j", "f", "g", "p", "q", "s", "t", "ms"]
    columns = [pa.array([row[k] for row in data], kind) for k, kind in enumerate(types)]
    batch = pa.record_batch(columns, names=names).slice(min(offset, len(data)))
    for name in GENERATED:
        assert ours(SAME[name], batch) == by_polars(SAME[name], batch), name


# -- the description ------------------------------------------------------------------------------------------------------


def test_an_expression_reads_like_the_program() -> None:
    for expr, text in [
        ((col("amount") > 10) & (col("country") == "DE"), '((col("amount") > 10) & (col("country") == "DE"))'),
        (1 - col("a") ** 2, '(1 - (col("a") ** 2))'),
        (~col("a").is_null(), '(~col("a").is_null())'),
        (col("s").str.lower().str.slice(1, 2), 'col("s").str.lower().str.slice(1, length=2)'),
        (col("a").cast("int64", strict=False), 'col("a").cast("int64", strict=False)'),
        (col("a").cast(pa.timestamp("ms", "UTC")), 'col("a").cast("timestamp[ms, tz=UTC]")'),
        (when(col("a") > 1).then("b").otherwise(lit("c")), 'when((col("a") > 1)).then(col("b")).otherwise(lit("c"))'),
        (coalesce("a", 0), 'coalesce(col("a"), 0)'),
        (struct(x="a", y=lit(1, "int8")), 'struct(x=col("a"), y=lit(1, "int8"))'),
        (col('q"').alias("ü"), 'col("q\\"").alias("ü")'),
        (lit(1) + 2, "(lit(1) + 2)"),
        (col("a").cast("float32") + lit(1.5, "float64"), '(col("a").cast("float32") + lit(1.5, "float64"))'),
    ]:
        assert repr(expr) == text
        names = {"col": col, "when": when, "coalesce": coalesce, "struct": struct, "lit": lit}
        assert expr.same(eval(text, names))
    assert ((col("a") > 1) & col("b")).text() == '(col("a") > 1) & col("b")'


def test_a_long_list_of_values_is_shown_short_and_still_told_apart() -> None:
    one, other = col("a").is_in(range(1000)), col("a").is_in([*range(999), 5000])
    assert len(repr(one)) < 200
    assert one.text() != other.text()
    assert not one.same(other)
    assert col("a").is_in({"x", "y"}).same(col("a").is_in({"y", "x"}))


def test_equality_is_by_structure_and_types() -> None:
    assert (col("a") + 1).same(col("a") + 1)
    assert not (col("a") + 1).same(col("a") + 1.0)
    assert not (col("a") + 1).same(col("a") + True)
    assert not lit("a").same(col("a"))
    assert lit(NAN).same(lit(NAN))
    assert not lit(0.0).same(lit(-0.0))
    assert not col("a").same("a")


def test_what_the_planner_asks() -> None:
    expr = when(col("a") > 1).then(col("b") + 1).otherwise("c")
    assert expr.columns == {"a", "b", "c"}
    for case in (
        "add to a literal",
        "when",
        "coalesce",
        "is_in",
        "struct field",
        "alias",
        "to_uppercase",
        "lit",
        "when literals",
    ):
        assert SAME[case](Ours).name == SAME[case](pl).meta.output_name()
    assert struct(x="a").name == "x"
    assert expr.renamed({"a": "x", "c": "y"}).same(when(col("x") > 1).then(col("b") + 1).otherwise("y"))
    assert (col("a") + col("b")).substitute({"a": col("b"), "b": col("a") * 2}).same(col("b") + col("a") * 2)
    parts = ((col("a") > 1) & (col("b") > 2) & (col("c") | col("d"))).alias("all").conjuncts()
    assert [part.text() for part in parts] == ['col("a") > 1', 'col("b") > 2', 'col("c") | col("d")']


def test_an_expression_has_no_truth_value() -> None:
    with pytest.raises(UserError, match=r"use & \| ~"):
        bool(col("a") > 1)
    with pytest.raises(UserError, match="has no truth value"):
        _ = 1 < col("a") < 3
    with pytest.raises(UserError):
        _ = 1 in col("a")
    with pytest.raises(TypeError):
        list(col("a"))
    with pytest.raises(TypeError):
        hash(col("a"))
    with pytest.raises(UserError, match="is_null"):
        _ = col("a") == None  # noqa: E711


@pytest.mark.parametrize(
    "make",
    [
        lambda: col(1),
        lambda: lit(object()),
        lambda: lit(2**64),
        lambda: lit("x", "int64"),
        lambda: col("a").is_in("abc"),
        lambda: col("a").between(1, 2, closed="most"),
        lambda: col("a").cast("integer number"),
        lambda: col("a").str.split(""),
        lambda: col("a").str.pad_start(-1),
        lambda: col("a").str.pad_end(3, "ab"),
        lambda: col("a").str.count_matches("", literal=True),
        lambda: col("a").clip(),
        lambda: col("a").log(1),
        lambda: col("a").cast("decimal(99, 2)"),
        lambda: col("a").str.slice("1"),
        lambda: col("a").alias(None),
        lambda: col("a").dt.epoch("years"),
        lambda: coalesce(),
        lambda: when(),
        lambda: sabot_expr.min_horizontal(),
        lambda: sabot_expr.concat_str("a", separator=1),
        lambda: col("a").cut([]),
        lambda: col("a").cut([2, 1]),
        lambda: col("a").cut([math.nan]),
        lambda: col("a").cut(["x"]),
        lambda: col("a").cut([1, 2], ["low", "high"]),
        lambda: col("a").cut([1], "ab"),
        lambda: col("a").replace({}),
        lambda: col("a").replace([1, 2], [3, 4, 5]),
        lambda: col("a").replace([1, 1], [3, 4]),
        lambda: col("a").replace({None: 1}),
        lambda: col("a").list.quantile(1.5),
        lambda: col("a").list.quantile(0.5, "middle"),
        lambda: col("a").str.strptime("int64"),
        lambda: col("a").dt.replace_time_zone("Europe/Nowhere"),
        lambda: col("a").dt.convert_time_zone(None),
        lambda: col("a").dt.replace_time_zone("Asia/Tokyo", ambiguous="first"),
    ],
)
def test_wrong_use_is_a_user_error_where_it_is_written(make: Callable[[], Any]) -> None:
    with pytest.raises(UserError):
        make()


def test_it_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        col("a").kind = "lit"  # type: ignore[misc]


def test_numpy_and_arrow_scalars_are_literals() -> None:
    import numpy as np

    batch = pa.record_batch({"a": [1.0, 2.0]})
    assert evaluate(np.float64(2) * col("a"), batch).to_pylist() == [2.0, 4.0]
    assert evaluate(col("a") == pa.scalar(2.0), batch).to_pylist() == [False, True]
    assert evaluate(lit([1, 2]), batch).to_pylist() == [[1, 2], [1, 2]]


def test_decimals_take_part() -> None:
    batch = pa.record_batch(
        {"a": pa.array([1, 2, None]).cast(pa.decimal128(38, 0)), "b": [1, 5, 7], "f": [0.5, 2.0, 1.0]}
    )
    assert evaluate(col("a") < col("b"), batch).to_pylist() == [False, True, None]
    assert evaluate(col("a") * col("f"), batch).to_pylist() == [0.5, 4.0, None]
    assert evaluate(col("a") / 2, batch).to_pylist() == [0.5, 1.0, None]
    narrow = pa.record_batch({"a": batch.column("a").cast(pa.decimal128(20, 0)), "b": batch.column("b")})
    assert evaluate(col("a") * 2 + col("b"), narrow).to_pylist() == [3, 9, None]
    assert evaluate(col("b").cast(pa.decimal128(3, 2), strict=False) == 5, narrow).to_pylist() == [False, True, False]
    assert evaluate((col("b") * 10).cast(pa.decimal128(3, 2), strict=False), narrow).to_pylist() == [None, None, None]


def test_list_get_beyond_the_end_is_null_or_a_data_error() -> None:
    batch = pa.record_batch({"l": [[1, 2], [3]]})
    assert evaluate(col("l").list.get(1), batch).to_pylist() == [2, None]
    with pytest.raises(DataError, match="null_on_oob"):
        evaluate(col("l").list.get(1, null_on_oob=False), batch)
    part = col("s").str.split(",").list.get(1, null_on_oob=False)
    assert evaluate(part, pa.record_batch({"s": ["a,b", None]})).to_pylist() == ["b", None]
    with pytest.raises(DataError, match=r"the list has only 1 values: \['c'\]"):
        evaluate(part, pa.record_batch({"s": ["a,b", None, "c"]}))
    with pytest.raises(UserError, match=r"str\.split of int64"):
        evaluate(part, pa.record_batch({"s": [1]}))


def test_a_time_that_python_has_no_object_for_is_named_where_a_cast_refuses_it():
    """It was an OverflowError of ours."""
    data = pa.record_batch({"t": pa.array([10**15], pa.timestamp("s"))})
    with pytest.raises(DataError, match="1000000000000000 s since 1970 is no timestamp"):
        evaluate(col("t").cast("timestamp[ns]"), data)


@pytest.mark.parametrize(
    ("expr", "found"),
    [
        (col("ts") + col("du"), r"datetime\(3000, 1, 1, 0, 0\) and .*: .*out of bounds"),
        (col("d") - col("du"), r"date\(3000, 1, 1\) and .*: .*out of bounds"),
        (col("du") * col("u"), r".* and 18446744073709551615: .*not in range"),
        (col("i") ** col("u"), r"2 and 18446744073709551615: .*negative"),
        (col("clock") + col("du"), r"time\(23, 59\) and .*: .*acceptable range"),
    ],
    ids=["far time", "far date", "unsigned", "exponent", "clock"],
)
def test_a_value_that_a_step_cannot_take_is_a_data_error_with_the_step_and_the_value(expr: Expr, found: str) -> None:
    near, far = dt.datetime(2024, 1, 1), dt.datetime(3000, 1, 1)
    good = {"ts": near, "d": near.date(), "du": dt.timedelta(0), "u": 1, "i": 2, "clock": dt.time(1)}
    bad = {"ts": far, "d": far.date(), "du": dt.timedelta(days=1), "u": 2**64 - 1, "i": 2, "clock": dt.time(23, 59)}
    schema = pa.schema(
        [
            ("ts", pa.timestamp("ms")),
            ("d", pa.date32()),
            ("du", pa.duration("ns")),
            ("u", pa.uint64()),
            ("i", pa.int64()),
            ("clock", pa.time64("us")),
        ]
    )
    made = compile_expr(expr, schema)
    assert len(made(pa.RecordBatch.from_pylist([good] * 5, schema))) == 5
    for place in (0, 3, 4):
        rows = [bad if row == place else good for row in range(5)]
        with pytest.raises(DataError, match=found) as caught:
            made(pa.RecordBatch.from_pylist(rows, schema))
        assert str(caught.value).startswith(f"{expr.text()} cannot be computed for ")


@pytest.mark.parametrize("decimals", [0, 1, 2, 15, 300])
def test_floats_too_great_to_have_a_fraction_round_to_themselves(decimals: int) -> None:
    values = [2.5, 1e308, -1.7e308, None, NAN, INF, 0.25]
    made = evaluate(col("a").round(decimals), pa.record_batch({"a": values}))
    expected = [round(v, decimals) if v is not None and math.isfinite(v) else v for v in values]
    assert plain(made.to_pylist()) == plain(expected)
    narrow = pa.record_batch({"a": pa.array([1.5, 3e38, -3e38, None], pa.float32())})
    made = evaluate(col("a").round(decimals or 1), narrow)
    assert made.equals(narrow.column(0))


def test_a_time_beyond_all_dates_is_no_date() -> None:
    for unit, value in (("ms", GREATEST), ("s", 2**50)):
        batch = pa.record_batch({"a": pa.array([0, value, None, -value], pa.timestamp(unit))})
        for target in ("date32", "date64"):
            made = evaluate(col("a").cast(target, strict=False), batch)
            assert made.to_pylist() == [dt.date(1970, 1, 1), None, None, None]
            with pytest.raises(DataError, match=f"column 'a': {value} {unit} since 1970 is no {target}"):
                evaluate(col("a").cast(target), batch)


def test_a_duration_by_zero_is_null() -> None:
    batch = pa.record_batch({"a": pa.array([6, 6, None], pa.duration("us")), "b": [2, 0, 0]})
    assert evaluate(col("a") / col("b"), batch).cast(pa.int64()).to_pylist() == [3, None, None]
    assert evaluate(col("a") / 0, batch).to_pylist() == [None, None, None]
    assert evaluate(col("a") / 3, batch).cast(pa.int64()).to_pylist() == [2, 2, None]


def test_unsigned_times_are_truncated_exactly() -> None:
    batch = pa.record_batch({"a": pa.array([2**60 + 7, 0], pa.uint64())})
    made = evaluate(col("a").dt.date_trunc("5ms"), batch)
    assert made.to_pylist() == [(2**60 + 7) // 5 * 5, 0]


@pytest.mark.parametrize(
    "type",
    [
        pa.decimal128(10, 2),
        pa.decimal256(10, 2),
        pa.struct({"b": pa.int64()}),
        pa.struct([pa.field("b c", pa.float32(), nullable=False), ("d", pa.list_(pa.struct({"x": pa.float64()})))]),
        pa.large_list(pa.timestamp("us", "Europe/Paris")),
        pa.map_(pa.string(), pa.list_(pa.decimal128(4, 1))),
        pa.struct([]),
    ],
    ids=str,
)
def test_a_type_that_pyarrow_prints_is_taken(type: pa.DataType) -> None:
    assert as_type(str(type)) == type
    assert as_type("list<string>") == pa.list_(pa.string())


def test_a_nested_type_has_an_end() -> None:
    with pytest.raises(UserError, match="is no name of a type"):
        as_type("list<" * 5000 + "int64" + ">" * 5000)


@pytest.mark.parametrize("name", ["struct<int64>", "list<>", "list<string>>", "struct<x: decimal>", "decimal"])
def test_a_type_that_has_no_name_is_given_as_one_of_arrow_s(name: str) -> None:
    with pytest.raises(UserError, match=r"is no name of a type .*a pa.DataType for the others: pa\.struct\("):
        as_type(name)


def test_lists_behind_a_null_row_have_no_values() -> None:
    inner = pa.array([[3, 1], [2, 1], [9, 8]], pa.list_(pa.int64()))
    hidden = pa.ListArray.from_arrays(inner.offsets, inner.values, mask=pa.array([False, True, False]))
    batch = pa.record_batch({"l": hidden})
    assert evaluate(col("l").list.sort(), batch).to_pylist() == [[1, 3], None, [8, 9]]
    assert evaluate(col("l").list.sum(), batch).to_pylist()[::2] == [4, 17]


def test_lists_of_lists_have_no_order() -> None:
    with pytest.raises(UserError, match=r"list\.sort of list"):
        evaluate(col("l").list.sort(), pa.record_batch({"l": pa.array([[[1], [0]]])}))
