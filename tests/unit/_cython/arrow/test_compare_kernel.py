"""Strings beside constants: each kernel beside plain Python, on slices, with nulls, at the end of the memory."""

import ctypes
import math
import mmap
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.arrow.compare import LITERALS, LiteralSet, contains, equal_literal, starts_with
from sabot.api.expr import Expr, col, lit
from sabot.engine.operators.expressions.compiled import compile_expr

Test = Callable[[bytes], bool]

POOL = st.lists(st.binary(max_size=20) | st.text("ab\0", max_size=20).map(str.encode), min_size=1, max_size=6)
EIGHTS = [b"12345678", b"1234567", b"123456789", b"12345678abcdefgh", b"12345678Xabcdefgh", b"12345678Yabcdefgh"]


def evaluate(expr: Expr, batch: pa.RecordBatch) -> pa.Array:
    return compile_expr(expr, batch.schema)(batch)


def in_set(values: Sequence[bytes]) -> Callable[[pa.Array], pa.Array]:
    return LiteralSet(values).holds


def twin(strings: pa.Array, test: Test) -> list[bool | None]:
    values = [value.encode() if isinstance(value, str) else value for value in strings.to_pylist()]
    return [None if value is None else test(value) for value in values]


def check(made: pa.Array, strings: pa.Array, test: Test) -> None:
    made.validate(full=True)
    assert made.type == pa.bool_()
    assert made.to_pylist() == twin(strings, test)
    assert made.null_count == strings.null_count


def check_all(strings: pa.Array, values: Sequence[bytes]) -> None:
    for value in values:
        check(equal_literal(strings, value), strings, lambda each, value=value: each == value)
        check(starts_with(strings, value), strings, lambda each, value=value: each.startswith(value))
        check(contains(strings, value), strings, lambda each, value=value: value in each)
    check(in_set(values)(strings), strings, lambda each: each in values)


def rows_of(pool: Sequence[bytes | None], rows: int, seed: int) -> pa.Array:
    return pa.array([pool[i] for i in np.random.default_rng(seed).integers(0, len(pool), rows)], pa.binary())


@settings(max_examples=60, deadline=None)
@given(pool=POOL, wanted=POOL, nulls=st.booleans(), rows=st.integers(0, 300), seed=st.integers(0, 9), data=st.data())
def test_answers_are_those_of_plain_python_on_any_slice(pool, wanted, nulls, rows, seed, data):
    whole = rows_of([*pool, None] if nulls else pool, rows, seed)
    start = data.draw(st.integers(0, rows))
    length = data.draw(st.integers(0, rows - start))
    check_all(whole.slice(start, length), [*wanted, pool[0], pool[-1][:3]])


@pytest.mark.parametrize("size", range(21))
def test_strings_that_are_all_of_one_length_are_told_apart_at_every_byte(size):
    """They take a way of their own, where they are as wide as a number."""
    value = bytes(range(1, size + 1))
    others = [value[:i] + b"?" + value[i + 1 :] for i in range(size)]
    check_all(rows_of([value, *others], 200, 1).slice(3, 190), [value, *others[:2]])


def test_zero_bytes_are_bytes_like_others():
    pool = [b"", b"\0", b"\0\0", b"a", b"a\0", b"a\0\0\0\0\0\0", b"a\0\0\0\0\0\0\0", b"\0" * 8, b"\0" * 16]
    check_all(rows_of([*pool, None], 400, 2), pool)


def test_what_begins_in_one_string_and_ends_in_the_next_is_in_neither():
    strings = rows_of([b"ab", b"cd", b"", b"abcd", b"xxabc", b"bcdabcdx", None], 700, 7)
    for start in (0, 3, 8):
        check_all(strings.slice(start), [b"abcd", b"bc", b"bcd", b"a", b"dab", b"xabcdx", b"bcdabcdxab"])


def test_values_that_agree_in_length_head_and_tail_are_still_told_apart():
    """No hash of those three keeps them apart: the set falls back to comparing with each."""
    same = [b"12345678" + middle + b"abcdefgh" for middle in (b"----", b"----"[::-1][:3] + b"+", b"++++")]
    strings = rows_of([*same, b"12345678****abcdefgh", None], 300, 3)
    check_all(strings, same[:2])
    check_all(strings, same[:1])


def test_long_and_short_values_of_one_set():
    check_all(rows_of([*EIGHTS, b"", None, b"123"], 500, 4), EIGHTS)
    check_all(rows_of([*EIGHTS, b"", None, b"123"], 500, 4), [b"", b"123", EIGHTS[1]])


def test_bytes_of_all_ones_are_no_empty_slot():
    pool = [b"\xff" * size for size in range(18)]
    check_all(rows_of([*pool, None], 600, 8), [b"a", b"b"])
    check_all(rows_of([*pool, None], 600, 8), pool[1:8])
    check_all(rows_of([*pool, None], 600, 8), pool[7:17])


@pytest.mark.parametrize("long", [[], [b"a long one"]])
def test_a_set_tells_a_value_from_the_same_value_with_zero_bytes_behind_it(long):
    letters = [bytes([i]) for i in range(ord("a"), ord("z"))]
    strings = pa.array([letter + b"\0" * more for letter in letters for more in range(10)])
    check(in_set([*letters, *long])(strings), strings, lambda each: each in letters)


@pytest.mark.parametrize("width", [3, 7, 12])
def test_a_set_may_be_large_and_no_larger(width):
    values = [str(i).zfill(width).encode() for i in range(LITERALS + 1)]
    strings = rows_of(values, 1000, 5)
    check(in_set([*values[:LITERALS]])(strings), strings, lambda each: each != values[-1])
    with pytest.raises(ValueError, match="257 constants"):
        LiteralSet(values)


def test_an_empty_set_holds_nothing_and_equal_constants_count_once():
    strings = pa.array(["a", None, ""] * 50)
    check(LiteralSet([]).holds(strings), strings, lambda each: False)
    check(LiteralSet([b"a"] * 9).holds(strings), strings, lambda each: each == b"a")


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int8(), pa.string())]
)
def test_strings_of_other_encodings(kind):
    strings = pa.array(["DE", "FR", None, "DEU"] * 30).cast(kind)
    plain = strings.cast(pa.string()).slice(5)
    check(equal_literal(strings.slice(5), b"DE"), plain, lambda each: each == b"DE")


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="int64"):
        equal_literal(pa.array([1]), b"a")
    with pytest.raises(TypeError, match="constant must be bytes, not str"):
        LiteralSet(["a"])


def test_arrays_without_rows_or_without_a_bitmap():
    for strings in (pa.array([], pa.string()), pa.nulls(0, pa.string()), pa.nulls(70, pa.string())):
        check_all(strings, [b"", b"a"])
    whole = pa.array(["a", "b"] * 40)
    unmarked = pa.Array.from_buffers(pa.string(), 70, [None, *whole.buffers()[1:]], -1, 9)
    check_all(unmarked, [b"a"])


@pytest.mark.parametrize("pool", [[b"DE", b"FR"], [b"", b"a"], EIGHTS], ids=["two", "tiny", "long"])
def test_nothing_is_read_behind_the_end_of_the_strings(pool):
    """The page behind them cannot be read: the process would die."""
    strings = rows_of(pool, 5 * 64, 6)
    _, offsets, data = strings.buffers()
    size = sum(map(len, strings.to_pylist()))
    border = mmap.PAGESIZE * 3
    pages = mmap.mmap(-1, 2 * border)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    pages[border - size : border] = data.to_pybytes()[:size]
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address + border), ctypes.c_size_t(border), 0) == 0
    at_border = pa.foreign_buffer(address + border - size, size, base=pages)
    check_all(pa.Array.from_buffers(pa.binary(), len(strings), [None, offsets, at_border], 0), pool)


FRAME = {
    "s": pa.array(["DE", "FR", None, "D", "", "DEU", "Österreich", "D\0"] * 40),
    "x": pa.array([1.0, math.nan, None, -0.0, 0.0, math.inf, 2.5, -math.inf] * 40),
    "y": pa.array([math.nan, math.nan, 1.0, 0.0, None, math.inf, 3.5, 1.0] * 40),
    "u": pa.array([1.0, 2.0, None, -0.0, 0.0, math.inf, 2.5, -math.inf] * 40),
    "v": pa.array([1.0, 3.0, 1.0, 0.0, None, math.inf, 1.5, 1.0] * 40),
}


@pytest.mark.parametrize(
    "case",
    [
        lambda c: c("s") == "DE",
        lambda c: c("s") != "DE",
        lambda c: c("s") == "Österreich",
        lambda c: (c("s") == "DE") | (c("s") != "") & ~(c("s") == "FR"),
        *[lambda c, a=a, b=b: c(a) > c(b) for a, b in ["xy", "yx", "uv", "uy", "xv"]],
        *[lambda c, a=a, b=b: c(a) >= c(b) for a, b in ["xy", "yx", "uv", "uy", "xv"]],
        *[lambda c, a=a, b=b: c(a) == c(b) for a, b in ["xy", "uv", "uy", "xv"]],
        *[lambda c, a=a, b=b: c(a) != c(b) for a, b in ["xy", "uv", "uy", "xv"]],
    ],
)
def test_expressions_answer_as_polars(case: Callable[[Callable[[str], Expr]], Expr]):
    batch = pa.record_batch(FRAME).slice(3, 301)
    theirs = pl.DataFrame(pl.from_arrow(batch)).select(case(pl.col)).to_series().to_list()
    assert evaluate(case(col), batch).to_pylist() == theirs


def test_expressions_of_sets_and_prefixes_answer_as_polars():
    batch = pa.record_batch(FRAME).slice(3, 301)
    frame = pl.DataFrame(pl.from_arrow(batch))
    assert evaluate(lit("DE") == col("s"), batch).equals(evaluate(col("s") == "DE", batch))
    countries = ["DE", "Österreich", ""]
    made = evaluate(col("s").is_in(countries), batch).to_pylist()
    assert made == frame.select(pl.col("s").is_in(countries)).to_series().to_list()
    made = evaluate(col("s").str.startswith("D"), batch).to_pylist()
    assert made == frame.select(pl.col("s").str.starts_with("D")).to_series().to_list()


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("rows", [0, 1, 100])
def test_texts_of_ascii_alone_take_a_shorter_way_to_the_same_answer(start: int, rows: int):
    """Not ASCII are the first three, which the slice leaves out."""
    whole = ["Österreich", "ßΣ", "İ", *["Mixed Case", None, "", "UPPER\0", "low\x7f"] * 20]
    batch = pa.record_batch({"s": pa.array(whole)}).slice(start, rows)
    frame = pl.DataFrame(pl.from_arrow(batch))
    theirs = [pl.col("s").str.to_lowercase(), pl.col("s").str.to_uppercase(), pl.col("s").str.len_chars()]
    for ours, their in zip([col("s").str.lower(), col("s").str.upper(), col("s").str.length()], theirs, strict=True):
        assert evaluate(ours, batch).to_pylist() == frame.select(their).to_series().to_list()
        assert evaluate(ours, batch).type == evaluate(ours, batch.slice(0, 0)).type
    made = evaluate(col("s").str.contains("e", literal=True), batch).to_pylist()
    assert made == frame.select(pl.col("s").str.contains("e", literal=True)).to_series().to_list()
